//! One host by itself: what it keeps, and what becomes of it when its mesh fails.

use std::path::Path;
use std::time::Duration;

use postroad_mesh::frame::{Frame, Item};
use postroad_mesh::record::Said;
use postroad_mesh::statement::{Policy, What};
use postroad_mesh::{Caps, Directory, Record, Roster, Statement};

use super::*;
use crate::admin::mesh::MeshRequest;
use crate::tls::Identity as Certificate;

fn peers(directory: &Path) -> Peers {
    let text = format!("state_dir = {:?}\nhostname = \"mx.example\"", directory.display().to_string());
    let config = Config::from_str(&text, "test", directory).unwrap_or_else(|faults| panic!("{faults}"));
    let certificate = Certificate::SelfSigned { dir: directory.join("tls"), hostname: config.hostname.clone() };
    let parts = Parts {
        config: Arc::new(ArcSwap::from_pointee(config)),
        tls: ServerTls::load(&certificate).expect("made"),
        clock: Clock::start(),
        metrics: Arc::new(Metrics::new()),
    };
    Peers::open(parts).expect("what is on disk is sound")
}

fn init() -> MeshRequest {
    MeshRequest::Init { label: None, admit_by: 1, revoke_by: 2, founders: Vec::new() }
}

#[tokio::test]
async fn what_is_on_disk_is_what_it_is() {
    let directory = tempfile::tempdir().expect("scratch");
    let first = peers(directory.path());
    assert!(first.me().is_none() && first.connector(&NodeId::from_octets([0; 32])).is_none());
    first.perform(init()).await.expect("founded");
    let me = first.me().expect("it is the first member");
    assert_eq!(peers(directory.path()).me(), Some(me));
    std::fs::write(directory.path().join("mesh/directory"), b"x").expect("writable");
    let error = Peers::open(same_parts(&first)).err().expect("damaged").to_string();
    assert!(error.contains("mesh/directory") && error.contains("backup"), "{error}");
}

/// The link was on its way when the node was revoked: nothing would end it.
#[tokio::test]
async fn no_link_is_taken_with_who_is_no_member_any_more() {
    let directory = tempfile::tempdir().expect("scratch");
    let peers = peers(directory.path());
    peers.perform(init()).await.expect("founded");
    for dialled in [true, false] {
        assert!(peers.hold(NodeId::from_octets([7; 32]), dialled, false).is_none());
    }
    assert_eq!(peers.link_count(), 0);
}

/// It hears of those who were let in before the one it joined with, and only then of that one.
#[tokio::test]
async fn who_joins_keeps_the_link_with_its_inviter_while_it_is_told_in_parts() {
    let directory = tempfile::tempdir().expect("scratch");
    let peers = peers(directory.path());
    peers.make_key().await.expect("made");
    let [founder, inviter, other] = [1, 2, 3].map(|seed| SecretKey::from_seed(&[seed; 32]));
    let founding = Statement::found(&founder, Policy::DEFAULT, "lab", 0);
    let mut roster = Roster::new(founding).expect("it founds");
    peers.take_part(Directory::new(roster.clone())).await.expect("writable");
    let linked = inviter.public().id();
    let _hold = peers.hold(linked, true, false).expect("there is no other");
    let own_key = peers.0.identity.load_full().expect("made").key.public();
    let admitted = [(&founder, other.public()), (&founder, inviter.public()), (&inviter, own_key)];
    let mut tell = |by: &SecretKey, what: What| {
        let statement = Statement::new(by, roster.next_head(&by.public().id(), 0), what);
        roster.merge([statement.clone()]);
        peers.heard(linked, Message::Spread(Frame::Give(vec![Item::Statement(statement.to_octets().into())])));
        let mut state = peers.state();
        let state = state.as_mut().expect("it takes part");
        state.view();
        state.links().contains_key(&linked)
    };
    for (by, node) in admitted {
        let admit = What::Admit { node, caps: Caps::ALL, serves: Vec::new(), label: "".into() };
        assert!(tell(by, admit), "the link is kept");
    }
    assert!(!tell(&inviter, What::Retire), "and given up when it is no member any more");
}

/// A restart would send its mail to whatever DNS says.
#[tokio::test]
async fn what_a_member_says_first_is_on_disk_at_once() {
    let directory = tempfile::tempdir().expect("scratch");
    let peers = peers(directory.path());
    peers.perform(init()).await.expect("founded");
    let other = SecretKey::from_seed(&[7; 32]);
    let (node, key) = (other.public().id(), other.public());
    let admit = What::Admit { node: key, caps: Caps::RELAY, serves: Vec::new(), label: "".into() };
    peers.state_durably(admit).await.expect("it may");
    let said = Said::new(key, peers.view().mesh().expect("it is in one"), 1);
    let record = Record::sign(&other, &said).expect("within the limits");
    peers.heard(node, Message::Spread(Frame::Give(vec![Item::Record(record.to_octets().into())])));
    let is_waiting = || peers.0.keeping.load(Ordering::Relaxed);
    let written = async |what: &str, is_written: &dyn Fn() -> bool| {
        let waiting = async {
            while !is_written() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), waiting).await.expect(what);
    };
    written("what was known before is written", &|| !is_waiting()).await;
    drop(peers.0.deciding.lock().await);
    let view = peers.state().as_mut().and_then(State::view);
    peers.show(view);
    assert!(peers.view().record(&node).is_some() && is_waiting());
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert!(!is_waiting(), "it does not wait for more");
    let on_disk = || view_on_disk(directory.path()).expect("sound").record(&node).is_some();
    written("it is on disk", &on_disk).await;
}

fn same_parts(of: &Peers) -> Parts {
    let parts = &of.0.parts;
    Parts { config: parts.config.clone(), tls: parts.tls.clone(), clock: parts.clock, metrics: parts.metrics.clone() }
}

/// Whoever panics while it holds the state takes nobody with it: the view stays, and the state comes
/// back from disk.
#[tokio::test]
async fn a_panic_ends_neither_the_view_nor_the_mesh() {
    let directory = tempfile::tempdir().expect("scratch");
    let peers = peers(directory.path());
    peers.perform(init()).await.expect("founded");
    let me = peers.me();
    let running = tokio::spawn(peers.clone().run());
    let broken = peers.clone();
    let panicked = std::thread::spawn(move || {
        let mut state = broken.state();
        *state = None;
        panic!("in the middle of a change");
    });
    assert!(panicked.join().is_err());
    peers.0.wake.notify_one();
    let mended = async {
        while peers.0.state.is_poisoned() || peers.state().is_none() {
            assert_eq!(peers.me(), me);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), mended).await.expect("it starts anew");
    assert_eq!(peers.me(), me);
    running.abort();
}
