//! What is fuzzed of the mesh: everything that a peer can send, as octets or as text. Each function takes any
//! octets and panics when a promise is broken. The fuzz binaries call them, and `mesh/tests/corpus.rs`
//! replays the committed corpus through them.

use std::fmt::{Debug, Display};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use postroad_mesh::archive::Own;
use postroad_mesh::candidate::NODES_MAX;
use postroad_mesh::card::Card;
use postroad_mesh::frame::{FRAME_OCTETS_MAX, Frame, Item};
use postroad_mesh::link::{LENGTH_OCTETS, MESSAGE_OCTETS_MAX, Message, message_octets};
use postroad_mesh::mdns::{self, Family, Interface, Mdns, Network, Offer, STRANGERS_MAX, Way};
use postroad_mesh::node::Purpose;
use postroad_mesh::recipient::{Asked, Told};
use postroad_mesh::record::{Address, Said};
use postroad_mesh::spread::{Action, Profile, Spread};
use postroad_mesh::statement::{Policy, What};
use postroad_mesh::{
    Caps, Directory, Invitation, MeshMessageId, NodeId, Passage, Record, Roster, SecretKey, Statement, archive,
};

/// The most frames that one frame of a peer is answered with.
const ANSWERS_MAX: usize = 64;

/// Any octets are a message or an error, and what was read is written and read back the same.
pub fn message(octets: &[u8]) {
    if let Ok(message) = Message::from_octets(octets) {
        let written = message.to_octets();
        let (length, rest) = written.split_first_chunk::<LENGTH_OCTETS>().expect("a length");
        assert_eq!(message_octets(*length, u32::MAX as usize), Ok(rest.len()));
        assert_eq!(Message::from_octets(rest), Ok(message));
    }
    if let Ok(frame) = Frame::from_octets(octets) {
        let written = frame.to_octets();
        assert!(written.len() <= 2 * FRAME_OCTETS_MAX);
        if written.len() <= FRAME_OCTETS_MAX {
            assert_eq!(Frame::from_octets(&written), Ok(frame));
        }
    }
    if let Ok(asked) = Asked::from_octets(octets) {
        assert_eq!(Asked::from_octets(&asked.to_octets()), Ok(asked));
    }
    let told = Told::from_octets(octets);
    assert_eq!(Told::from_octets(&told.to_octets()), told);
}

/// Any octets are a statement and a record or an error, as they came and as a member would have signed them; what
/// was read is passed on as it came. Files of such are read or refused.
pub fn signed(octets: &[u8]) {
    if let Ok(statement) = Statement::from_octets(octets) {
        assert_eq!(Statement::from_octets(&statement.to_octets()), Ok(statement));
    }
    if let Ok(record) = Record::from_octets(octets) {
        let again = Record::from_octets(&record.to_octets()).expect("it was read before");
        assert_eq!((again.said(), again.fingerprint()), (record.said(), record.fingerprint()));
    }
    let key = key(1);
    if let Ok(statement) = Statement::read(octets, key.sign(Purpose::Statement, octets)) {
        assert_eq!(statement.octets(), octets);
        assert_eq!(Statement::from_octets(&statement.to_octets()), Ok(statement.clone()));
        let mut roster = mesh().roster().clone();
        roster.merge([statement.clone()]);
        let members = roster.members().clone();
        assert!(roster.merge([statement]).taken.is_empty(), "what is known is not new");
        assert_eq!(*roster.members(), members);
    }
    if let Ok(record) = Record::read(octets, key.sign(Purpose::Record, octets)) {
        assert_eq!(Record::from_octets(&record.to_octets()).expect("it was read before").said(), record.said());
        mesh().take_records([record], 0);
    }
    if let Ok(directory) = archive::read(octets, Default::default(), 0) {
        assert!(archive::read(&archive::write(&directory), Default::default(), 0).is_ok());
    }
    if let Ok(own) = Own::from_octets(octets) {
        assert_eq!(Own::from_octets(&own.to_octets()), Ok(own));
    }
}

/// Any text is an invitation, a card, a passage, an address or an id, or none; what was read comes back the same.
pub fn text(octets: &[u8]) {
    let Ok(text) = std::str::from_utf8(octets) else { return };
    comes_back::<Invitation>(text);
    comes_back::<Card>(text);
    comes_back::<Passage>(text);
    comes_back::<MeshMessageId>(text);
    comes_back::<NodeId>(text);
    comes_back::<Address>(text);
    comes_back::<Caps>(text);
    let _ = NodeId::from_server_name(text);
}

fn comes_back<T: FromStr + Display + PartialEq + Debug>(text: &str) {
    let Ok(read) = text.parse::<T>() else { return };
    let written = read.to_string();
    assert_eq!(written.parse::<T>().ok(), Some(read), "{text:?} became {written:?}");
}

/// A member takes any messages of a link, each with its length before it. It answers each with few frames,
/// none too long, and passes on nothing but what it took in itself.
pub fn link(octets: &[u8]) {
    let (me, peer, other) = (id(1), id(2), id(3));
    let mut spread = Spread::new(me, mesh(), Profile::Wan, 7, 0);
    spread.opened(peer, false, 0);
    spread.opened(other, false, 0);
    drain(&mut spread, 0);
    let mut rest = octets;
    let mut now = 0;
    while let Some((length, behind)) = rest.split_first_chunk::<LENGTH_OCTETS>() {
        let Ok(length) = message_octets(*length, MESSAGE_OCTETS_MAX) else { return };
        let Some((message, behind)) = behind.split_at_checked(length) else { return };
        rest = behind;
        now += 1_000;
        let Ok(Message::Spread(frame)) = Message::from_octets(message) else { continue };
        spread.received(peer, frame, now);
        let said = drain(&mut spread, now);
        assert!(said.len() <= ANSWERS_MAX, "{} frames for one", said.len());
        for (to, frame) in said {
            assert!(frame.to_octets().len() <= FRAME_OCTETS_MAX);
            if to == other
                && let Frame::Give(items) = frame
            {
                items.iter().for_each(|item| check_known(spread.directory(), item));
            }
        }
    }
}

/// Returns a step of [`mdns`]: who says what, so many milliseconds after the one before.
pub fn mdns_step(from: u8, wait: u64, octets: &[u8]) -> Vec<u8> {
    let head = [from, (wait >> 8) as u8, wait as u8, (octets.len() >> 8) as u8, octets.len() as u8];
    [&head, octets].concat()
}

/// A member bears any messages of its network: it says no more than one a second, none too long, and what it
/// remembers is bounded and leads into its network.
pub fn mdns(octets: &[u8]) {
    let ip = |number: u8| IpAddr::from(Ipv4Addr::new(10, 0, 0, number));
    let way = Way { interface: 1, family: Family::V4 };
    let networks = vec![Network { ip: ip(1), prefix: 24 }];
    let offer = Some(Offer { port: 25, addresses: vec![ip(1)] });
    let mut host = Mdns::new(7);
    host.set(vec![id(1)], vec![Interface { index: 1, families: [way.family].into(), networks, offer }], 0);
    host.seek([id(2)].into());
    let (mut rest, mut now, mut last) = (octets, 0, None);
    while let Some(([from, high, low, length @ ..], behind)) = rest.split_first_chunk::<5>() {
        let Some((message, behind)) = behind.split_at_checked(u16::from_be_bytes(*length).into()) else { return };
        (rest, now) = (behind, now + u64::from(u16::from_be_bytes([*high, *low])));
        host.received(way, SocketAddr::new(ip(*from), mdns::PORT), message, |node| Some(*node), now);
        while let mdns::Action::Send(_, said) = host.poll(now) {
            assert!(said.len() < mdns::MESSAGE_OCTETS_MAX && last.is_none_or(|last| last + mdns::PAUSE_MS <= now));
            last = Some(now);
        }
        let places = host.places(now);
        assert!(places.len() <= 2 * mdns::ADDRESSES_MAX * NODES_MAX && host.strangers(now).len() <= STRANGERS_MAX);
        assert!(places.iter().all(|(_, address)| address.host.starts_with("10.0.0.") && *address.host != *"10.0.0.1"));
    }
}

fn check_known(directory: &Directory, item: &Item) {
    let is_known = match item {
        Item::Statement(octets) => {
            let statement = Statement::from_octets(octets).expect("nothing unsound is passed on");
            directory.roster().statements().contains_key(&statement.id())
        }
        Item::Record(octets) => {
            let record = Record::from_octets(octets).expect("nothing unsound is passed on");
            directory.roster().member(&record.id()).is_some()
        }
    };
    assert!(is_known, "it is passed on and was not taken in");
}

fn drain(spread: &mut Spread, now: u64) -> Vec<(NodeId, Frame)> {
    let mut said = Vec::new();
    loop {
        match spread.poll(now) {
            Action::Send(to, frame) => said.push((to, frame)),
            Action::Dial(node) => spread.failed(node, now),
            Action::Wait(_) => return said,
        }
    }
}

pub fn key(seed: u8) -> SecretKey {
    SecretKey::from_seed(&[seed; 32])
}

pub fn id(seed: u8) -> NodeId {
    key(seed).public().id()
}

/// A mesh of three, each known to all.
pub fn mesh() -> Directory {
    let founding = Statement::found(&key(1), Policy::DEFAULT, "lab", 1);
    let mut roster = Roster::new(founding).expect("it founds");
    for seed in [2, 3] {
        let node = key(seed).public();
        let what = What::Admit { node, caps: Caps::ALL, serves: Vec::new(), label: format!("n{seed}").into() };
        roster.merge([Statement::new(&key(1), roster.next_head(&id(1), 2), what)]);
    }
    let of = roster.mesh();
    let mut directory = Directory::new(roster);
    let record = |seed: u8| Record::sign(&key(seed), &Said::new(key(seed).public(), of, 1)).expect("sound");
    directory.take_records([record(1), record(2), record(3)], 0);
    directory
}
