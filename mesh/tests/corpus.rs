//! Replays the committed fuzzing corpus of what peers send, and what it is grown from.

#[path = "../../fuzz/mesh_targets.rs"]
mod targets;

#[path = "../../fuzz/replay.rs"]
mod replay;

use postroad_mesh::card::Card;
use postroad_mesh::difference::begin;
use postroad_mesh::frame::{Frame, Item};
use postroad_mesh::link::{LENGTH_OCTETS, Message};
use postroad_mesh::mdns::{Action, Family, Interface, Mdns, Network, Offer};
use postroad_mesh::question::{Question, kind};
use postroad_mesh::recipient::Asked;
use postroad_mesh::record::{Egress, Said};
use postroad_mesh::statement::What;
use postroad_mesh::{Caps, Invitation, MeshMessageId, Passage, Record, Statement, archive};
use replay::{keep_sample, replay};
use targets::{id, key};

#[test]
fn every_message_is_read_or_refused() {
    replay("mesh-message", targets::message);
}

#[test]
fn every_statement_and_record_is_read_or_refused() {
    replay("mesh-signed", targets::signed);
}

#[test]
fn every_text_is_read_or_refused() {
    replay("mesh-text", targets::text);
}

#[test]
fn a_member_bears_whatever_comes_over_a_link() {
    replay("mesh-link", targets::link);
}

#[test]
fn a_member_bears_whatever_its_network_says() {
    replay("mesh-mdns", targets::mdns);
}

/// Statements, records and messages as members make them; cut, altered and with lengths that lie they are
/// read or refused as well.
#[test]
fn what_members_say_is_in_the_corpus_and_bears_every_cut() {
    for (name, target, samples) in samples() {
        for (number, octets) in samples.iter().enumerate() {
            let path = keep_sample(name, &format!("sample-{number}"), octets);
            assert!(path.exists(), "{} lacks: POSTROAD_WRITE_CORPUS=1 writes it", path.display());
            target(octets);
            for end in 0..octets.len().min(600) {
                target(&octets[..end]);
                let mut altered = octets.clone();
                altered[end] ^= 0x9b;
                target(&altered);
            }
        }
    }
}

type Samples = (&'static str, fn(&[u8]), Vec<Vec<u8>>);

fn samples() -> [Samples; 5] {
    let signed = statements().into_iter().flat_map(|one| [one.octets().to_vec(), one.to_octets()]);
    let record = Record::sign(&key(1), &said()).expect("it is its own");
    let (known, short) = (archive::write(&targets::mesh()), record.to_octets());
    let signed = signed.chain([short, known]).collect();
    let messages = messages();
    let bare = messages.iter().map(|message| message.to_octets().split_off(LENGTH_OCTETS));
    let asked = Asked { recipient: "user@b.example".into() };
    // An array, a text and octets that claim four gibibytes.
    let lies = [b"\xa2\x00\x05\x09\x9a", b"\xa2\x00\x04\x02\x7a", b"\xa2\x00\x01\x01\x5a"];
    let lies = lies.map(|begun| [&begun[..], &[0xff; 4]].concat());
    let bare = bare.chain([asked.to_octets()]).chain(lies).collect();
    let whole: Vec<u8> = messages.iter().flat_map(Message::to_octets).collect();
    let everything = targets::mesh().keys(&Default::default());
    let known = targets::mesh();
    let keys = known.roster().statements().keys().map(|id| *id.octets()).collect();
    let asks = [Frame::Ask(keys), Frame::Compare { without: [].into(), ranges: begin(&everything) }];
    let asks: Vec<u8> = asks.into_iter().flat_map(|frame| Message::Spread(frame).to_octets()).collect();
    [
        ("mesh-signed", targets::signed, signed),
        ("mesh-message", targets::message, bare),
        ("mesh-link", targets::link, vec![whole, asks.repeat(3)]),
        ("mesh-text", targets::text, texts().into_iter().map(String::into_bytes).collect()),
        ("mesh-mdns", targets::mdns, vec![multicast()]),
    ]
}

/// What another member says at its start and at its end.
fn multicast() -> Vec<u8> {
    let ip = "10.0.0.2".parse().expect("an address");
    let interface = Interface {
        index: 1,
        families: [Family::V4].into(),
        networks: vec![Network { ip, prefix: 24 }],
        offer: Some(Offer { port: 25, addresses: vec![ip] }),
    };
    let mut host = Mdns::new(1);
    host.set(vec![id(2)], vec![interface], 0);
    let (mut steps, mut now) = (Vec::new(), 0);
    while now < 10_000 {
        match host.poll(now) {
            Action::Send(_, octets) => steps.push(targets::mdns_step(2, 1_000, &octets)),
            Action::Wait(at) => now = at.unwrap_or(u64::MAX),
        }
    }
    steps.extend(host.goodbye().into_iter().map(|(_, octets)| targets::mdns_step(2, 1_000, &octets)));
    steps.concat()
}

fn statements() -> Vec<Statement> {
    let roster = targets::mesh().roster().clone();
    let serves = vec!["lab.example".parse().expect("valid")];
    let what = [
        What::Admit { node: key(4).public(), caps: Caps::RELAY, serves, label: "lab".into() },
        What::Revoke { node: id(3), upto: Some(roster.mesh()), reason: "it sends spam".into() },
        What::Retire,
    ];
    let head = roster.next_head(&id(1), 3);
    let mut statements: Vec<Statement> = roster.statements().values().cloned().collect();
    statements.extend(what.map(|what| Statement::new(&key(1), head, what)));
    statements.push(Statement::rotate(&key(1), &key(5), head));
    statements
}

fn said() -> Said {
    let own = Said::new(key(1).public(), targets::mesh().roster().mesh(), 2);
    Said {
        label: "hq".into(),
        site: "cellar".into(),
        addresses: vec!["mx.example:25".parse().expect("valid"), "[2001:db8::1]:465/tls".parse().expect("valid")],
        serves: vec!["a.example".parse().expect("valid")],
        egress: vec![Egress { cost: 10, ..Egress::default() }],
        pickups: vec![id(2)],
        holds_days: 3,
        ..own
    }
}

fn messages() -> Vec<Message> {
    let question = Question::new(&key(2), id(1), 7, kind::PING, b"hello"[..].into());
    let invitation: Invitation = texts()[0].parse().expect("an invitation");
    let statements = statements().into_iter().map(|one| Item::Statement(one.to_octets().into()));
    let record = Record::sign(&key(2), &Said { node: key(2).public(), ..said() }).expect("it is its own");
    let items = statements.chain([Item::Record(record.to_octets().into())]).collect();
    let keys = targets::mesh().keys(&Default::default());
    vec![
        Message::Join { proof: invitation.prove(&[9; 32], &id(4)), label: "lab".into() },
        Message::Admitted {
            founding: targets::mesh().roster().statements().values().next().expect("one").to_octets().into(),
        },
        Message::Refused { why: "no".into() },
        Message::Answer(question.answer(&key(1), b"here"[..].into())),
        Message::Ask(question),
        Message::Spread(Frame::Compare { without: [[7; 8]].into(), ranges: begin(&keys) }),
        Message::Spread(Frame::Give(items)),
        Message::Spread(Frame::Ask(vec![[7; 32]])),
        Message::Unknown(99),
    ]
}

fn texts() -> Vec<String> {
    let invitation = Invitation { addresses: vec!["a.example:25".into()], inviter: id(1), secret: [7; 16] };
    let passage = Passage::new(MeshMessageId::new(1_800_000_000_000, &[b"x"]), id(1));
    let passage = passage.by_way_of(&id(1)).and_then(|passage| passage.by_way_of(&id(2))).expect("room");
    let card = Card { key: key(1).public() };
    [invitation.to_string(), card.to_string(), passage.to_string(), id(1).server_name(), "relay,admit".into()].into()
}
