//! Connections as the shell sees them: places, TLS handshakes and the drain.

use std::path::Path;

use arc_swap::ArcSwap;
use postroad_queue::{Options, OsFs, Queue};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};

use super::*;
use crate::admin::mesh::MeshRequest;
use crate::clock::Clock;
use crate::config::Config;
use crate::history::{self, Repeats};
use crate::journal::Journal;
use crate::listen::{Homes, Listener, SessionNames};
use crate::memory::{Memory, Usage};
use crate::metrics::Metrics;
use crate::net::Bounds;
use crate::peer::{self, Peers};
use crate::policy::Policy;
use crate::tls::{Identity, ServerTls};
use crate::turn::Meeting;

const PATIENCE: Duration = Duration::from_secs(10);

fn context(directory: &Path, text: &str) -> Arc<Context> {
    let config = Arc::new(Config::from_str(text, "test", directory).unwrap_or_else(|faults| panic!("{faults}")));
    let fs = OsFs::open(&directory.join("queue")).expect("a directory");
    let (queue, _) = Queue::open(Arc::new(fs), Options::default()).expect("an empty queue");
    let identity = Identity::SelfSigned { dir: directory.join("tls"), hostname: config.hostname.clone() };
    let clock = Clock::start();
    let tls = ServerTls::load(&identity).expect("made");
    let (current, metrics) = (Arc::new(ArcSwap::from(config.clone())), Arc::new(Metrics::new()));
    let parts = peer::Parts { config: current.clone(), tls: tls.clone(), clock, metrics: metrics.clone() };
    let peers = Peers::open(parts).expect("no key is there");
    Arc::new(Context {
        policy: Arc::new(Policy::new(config.clone())),
        config: current,
        repeats: Repeats::new(&directory.join("history"), queue.clone(), history::AGE_MS),
        queue,
        memory: Arc::new(Memory::new(u64::MAX, Usage::default)),
        peers,
        tls,
        clock,
        journal: Journal::default(),
        metrics,
        drain: tokio::sync::watch::Sender::new(false),
        names: SessionNames::new(clock.now()),
        turn: Meeting::default(),
        homes: Homes::default(),
        is_disk_short: false.into(),
    })
}

/// A session before its first octet.
fn session(context: &Arc<Context>, peer: IpAddr) -> Connection {
    let peer = Peer {
        ip: peer,
        service: Service::Smtp,
        node: None,
        permit: context.policy.connect(peer),
        asked: 0,
        owner: None,
    };
    let settings = Context::session_config(&context.config.load(), Service::Smtp);
    Connection::new(context.clone(), peer, context.names.next(), settings, None)
}

/// Both ends of a connection.
async fn connected() -> (Stream, TcpStream, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let client = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("it listens");
    let (server, peer) = listener.accept().await.expect("connected");
    (Stream::Plain(server), client, peer)
}

#[tokio::test]
async fn a_session_is_told_of_the_drain_once_and_then_waits_for_its_client() {
    let directory = tempfile::tempdir().expect("scratch");
    let context = context(directory.path(), "hostname = \"mx.example.org\"");
    let (mut stream, client, peer) = connected().await;
    let mut drain = context.drain.subscribe();
    let mut connection = session(&context, peer.ip());
    context.drain.send_replace(true);
    let far = Instant::now() + PATIENCE;
    connection.read(&mut stream, far, &mut drain).await.expect("told");
    assert!(connection.draining && Instant::now() < far);
    let until = Instant::now() + Duration::from_millis(100);
    connection.read(&mut stream, until, &mut drain).await.expect("timed out");
    assert!(Instant::now() >= until, "it does not spin");
    drop(client);
}

/// Who is silent, and who goes on for ever, is cut where the session passes octets on.
#[tokio::test]
async fn octets_of_a_session_are_passed_on_for_so_long() {
    const SHORT: Duration = Duration::from_millis(50);
    let directory = tempfile::tempdir().expect("scratch");
    let text = format!("hostname = \"mx.example.org\"\nstate_dir = {:?}", directory.path().display().to_string());
    let context = context(directory.path(), &text);
    let found = MeshRequest::Init { label: None, admit_by: 1, revoke_by: 2, founders: Vec::new() };
    context.peers.perform(found).await.expect("founded");
    // The only member there is stands at both ends.
    let me = context.peers.me().expect("a member");
    let passed = |bounds: Option<Bounds>| {
        let ((near, left), (right, far)) = (pair(), pair());
        let (context, place) = (context.clone(), context.turn.admit_through(&me).expect("room"));
        let passing = tokio::spawn(async move {
            let mut drain = context.drain.subscribe();
            let mut connection = session(&context, IpAddr::from([127, 0, 0, 1]));
            connection.members = Some(Box::new((me, context.peers.changed())));
            let mut passed = Passed::new(me, place, Some((me, Stream::Unix(right))));
            let (minute, hour) = (Duration::from_mins(1), Duration::from_hours(1));
            assert_eq!(passed.bounds, Bounds { idle: 15 * minute, total: 2 * hour });
            passed.bounds = bounds.unwrap_or(passed.bounds);
            let ended = connection.pass(passed, Stream::Unix(left), &mut drain).await;
            ended.map_err(|error| error.kind())
        });
        (near, far, passing)
    };
    let (_near, _far, passing) = passed(Some(Bounds { idle: SHORT, total: 60 * SHORT * 60 }));
    let ended = tokio::time::timeout(PATIENCE, passing).await.expect("cut").expect("no panic");
    assert_eq!(ended, Err(io::ErrorKind::TimedOut), "nobody says anything");
    let (mut near, mut far, passing) = passed(Some(Bounds { idle: 60 * SHORT * 60, total: SHORT }));
    let talk = async { while near.write_all(b"x").await.is_ok() && far.read_u8().await.is_ok() {} };
    tokio::time::timeout(PATIENCE, talk).await.expect("cut");
    assert_eq!(passing.await.expect("no panic"), Err(io::ErrorKind::TimedOut), "they talk for too long");
    // As they are, they leave a session alone that says something now and then, until the agent drains.
    let (mut near, mut far, passing) = passed(None);
    for _ in 0..5 {
        tokio::time::sleep(SHORT).await;
        near.write_all(b"x").await.expect("open");
        assert_eq!(far.read_u8().await.expect("open"), b'x');
    }
    assert!(!passing.is_finished());
    context.drain.send_replace(true);
    let ended = tokio::time::timeout(PATIENCE, passing).await.expect("cut").expect("no panic");
    assert_eq!(ended, Ok(()));
}

/// What has begun gets a message further than its member may; then it is cut.
#[tokio::test]
async fn octets_beyond_the_quota_of_who_asked_are_passed_on_to_the_end_of_a_message() {
    const QUOTA: usize = 100_000;
    const MESSAGE: usize = 65_536;
    let directory = tempfile::tempdir().expect("scratch");
    let state = directory.path().display().to_string();
    let text = format!(
        "hostname = \"mx.example.org\"\nstate_dir = {state:?}\n[limits]\nmessage_size = {MESSAGE}\n\
         [mesh.quota]\nall_data = {QUOTA}"
    );
    let context = context(directory.path(), &text);
    let found = MeshRequest::Init { label: None, admit_by: 1, revoke_by: 2, founders: Vec::new() };
    context.peers.perform(found).await.expect("founded");
    let me = context.peers.me().expect("a member");
    let ((mut near, left), (right, mut far)) = (pair(), pair());
    let passing = tokio::spawn({
        let context = context.clone();
        async move {
            let mut drain = context.drain.subscribe();
            let mut connection = session(&context, IpAddr::from([127, 0, 0, 1]));
            connection.members = Some(Box::new((me, context.peers.changed())));
            let place = context.turn.admit_through(&me).expect("room");
            let passed = Passed::new(me, place, Some((me, Stream::Unix(right))));
            connection.pass(passed, Stream::Unix(left), &mut drain).await
        }
    });
    let write = async {
        let much = vec![b'x'; 4 * (QUOTA + MESSAGE)];
        near.write_all(&much).await
    };
    let mut taken = Vec::new();
    let talk = async { tokio::join!(write, far.read_to_end(&mut taken)) };
    // What was on its way when it was cut may have been taken, too.
    let (_, ended) = tokio::time::timeout(PATIENCE, talk).await.expect("cut");
    ended.expect("closed in order");
    let ended = passing.await.expect("no panic").map_err(|error| error.kind());
    assert_eq!(ended, Err(io::ErrorKind::QuotaExceeded));
    assert!(taken.len() > QUOTA + MESSAGE && taken.len() < 2 * (QUOTA + MESSAGE), "{} octets", taken.len());
    assert!(context.peers.pace_passage(me).is_err(), "it is told so when it asks again");
}

fn pair() -> (UnixStream, UnixStream) {
    UnixStream::pair().expect("two ends")
}

#[tokio::test]
async fn a_client_in_its_tls_handshake_takes_a_place() {
    let directory = tempfile::tempdir().expect("scratch");
    let text = "hostname = \"mx.example.org\"\n[limits]\nsessions = 1\nsessions_per_address = 1\n";
    let context = context(directory.path(), text);
    let address = "127.0.0.1:0".parse().expect("an address");
    let listener = Listener::bind(address, Service::Submissions).expect("bound");
    let address = listener.address().expect("bound");
    let serving = tokio::spawn(listener.serve(context.clone()));
    let first = TcpStream::connect(address).await.expect("it listens");
    let counted = async {
        while context.policy.session_count() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, counted).await.expect("counted before it says anything");
    let mut second = TcpStream::connect(address).await.expect("it listens");
    let answer = tokio::time::timeout(PATIENCE, second.read_u8()).await.expect("not kept waiting");
    assert!(answer.is_err(), "closed without a handshake");
    assert_eq!(context.policy.session_count(), 1);
    drop(first);
    let left = async {
        while context.policy.session_count() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, left).await.expect("its place is free again");
    serving.abort();
}

/// What a session holds while it waits for its client, beside its socket; with its task it fits 2 KiB.
const WAITING_SESSION_OCTETS_MAX: usize = 1_900;

#[test]
fn a_waiting_session_is_small() {
    fn octets<F>(_: impl FnOnce(Box<Arrival>, Arc<Context>, Drain) -> F) -> usize {
        size_of::<F>()
    }
    assert!(octets(serve) <= WAITING_SESSION_OCTETS_MAX, "{} octets", octets(serve));
}
