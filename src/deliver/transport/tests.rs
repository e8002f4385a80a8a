//! Connections against peers that refuse, object in the middle of the content, and vanish.

use std::path::Path;

use postroad_queue::{Committer, Queue, QueueId};
use postroad_smtp::client::Protocol;
use postroad_smtp::{MailParams, Recipient};
use tempfile::TempDir;

use super::super::pool::{Pool, Room};
use super::super::scenario::{Peer, Say, config, open_queue, put, text};
use super::*;
use crate::clock::Clock;
use crate::config::Config;
use crate::tls::ClientTls;

/// Content of messages to send.
struct Store {
    queue: Queue,
    directory: TempDir,
    _committer: Committer,
}

impl Store {
    fn new() -> Store {
        let directory = tempfile::tempdir().expect("scratch");
        let (queue, _committer) = open_queue(directory.path());
        Store { queue, directory, _committer }
    }

    async fn put(&self, octets: usize) -> QueueId {
        let content = b"Subject: so many octets, and a line end\r\n".repeat(octets / 41 + 1);
        put(&self.queue, Clock::start(), &["b@example.org"], &content).await
    }

    async fn send(&self, connection: &mut Connection, id: QueueId) -> Answer {
        let content = self.queue.content(id).expect("readable");
        let transaction = Transaction {
            reverse_path: "a@sender.example".parse().expect("a path"),
            params: MailParams::default(),
            recipients: vec![Recipient::new("b@example.org".parse().expect("a path"))],
            content_octets: content.octets(),
            needs_smtputf8: false,
        };
        let answers = tokio::time::timeout(Duration::from_secs(20), connection.send(transaction, content, None)).await;
        answers.expect("it ends").pop().expect("one recipient")
    }
}

async fn open(address: Address, protocol: Protocol) -> Connection {
    let target = Target {
        name: "peer.example".into(),
        address,
        session: client::Config { protocol, ..client::Config::new("client.example") },
        implicit_tls: false,
        tls: ClientTls::new().any_certificate().clone(),
        nodes: None,
        connect_limit: Duration::from_secs(5),
    };
    Connection::open(Arc::new(target)).await.unwrap_or_else(|error| panic!("{error}"))
}

async fn connect(port: u16) -> Connection {
    open(Address::Tcp(([127, 0, 0, 1], port).into()), Protocol::Smtp).await
}

fn code(answer: &Answer) -> u16 {
    answer.reply().code.get()
}

#[tokio::test]
async fn a_refused_transaction_leaves_a_session_at_rest() {
    for ehlo in ["250 peer", "250-peer\r\n250 PIPELINING"] {
        let (peer, port) = Peer::start(move |heard| match heard.line {
            "EHLO client.example" => text(ehlo),
            line if line.starts_with("RCPT") && heard.mails == 1 => text("550 5.1.1 no"),
            "DATA" if heard.mails == 1 => text("554 no recipients"),
            _ => None,
        })
        .await;
        let (store, mut connection) = (Store::new(), connect(port).await);
        let id = store.put(10).await;
        assert_eq!(code(&store.send(&mut connection, id).await), 550);
        assert_eq!(connection.failure(), None, "{ehlo}");
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(connection.is_quiet(), "the reply to RSET was read: {ehlo}");
        assert_eq!(code(&store.send(&mut connection, id).await), 250, "{ehlo}");
        assert_eq!(peer.heard("RSET").len(), 1);
    }
}

#[tokio::test]
async fn a_reset_that_is_not_answered_ends_the_session_and_no_answer() {
    let (_, port) = Peer::start(|heard| match heard.line {
        line if line.starts_with("RCPT") => text("550 5.1.1 no"),
        "DATA" => text("554 no recipients"),
        "RSET" => Some(Say::Last(String::new())),
        _ => None,
    })
    .await;
    let (store, mut connection) = (Store::new(), connect(port).await);
    let id = store.put(10).await;
    assert_eq!(code(&store.send(&mut connection, id).await), 550);
    assert_eq!(connection.failure(), Some(&Failure::Lost));
    assert!(!connection.was_stale(), "it answered");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_peer_says_in_the_middle_of_the_content_is_heard() {
    let (_, port) = Peer::start(|heard| {
        let words = "552 5.3.4 too large for this mailbox".to_owned();
        (heard.line == "DATA").then_some(Say::After(300_000, words))
    })
    .await;
    let (store, mut connection) = (Store::new(), connect(port).await);
    let id = store.put(16 << 20).await;
    let answer = store.send(&mut connection, id).await;
    assert!(matches!(&answer, Answer::Permanent(reply) if reply.code.get() == 552), "{answer:?}");
    assert!(connection.failure().is_some());
}

#[tokio::test]
async fn what_a_peer_said_before_it_was_gone_is_heard() {
    let (_, port) = Peer::start(|heard| {
        let last = || Say::Last("421 4.3.2 going down".to_owned());
        (heard.line == "NOOP 1").then(last)
    })
    .await;
    let (store, mut connection) = (Store::new(), connect(port).await);
    // Closed with something unread, so that the next write fails at once.
    let mut noops = b"NOOP 1\r\nNOOP 2\r\n".to_vec();
    noops.extend_from_slice(&b"NOOP 3\r\n".repeat(10_000));
    let _ = connection.stream.flush(&mut noops, Instant::now() + Duration::from_secs(1)).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let id = store.put(10).await;
    assert_eq!(code(&store.send(&mut connection, id).await), 421);
    assert!(matches!(connection.failure(), Some(Failure::Ended(_))), "{:?}", connection.failure());
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_content_is_not_the_peers_fault() {
    let (peer, port) = Peer::start(|_| None).await;
    let (store, mut connection) = (Store::new(), connect(port).await);
    let id = store.put(4 << 20).await;
    damage(&store.directory.path().join("queue"));
    let answer = store.send(&mut connection, id).await;
    assert_eq!(answer.reply().status, Some(Status::new(4, 3, 0)), "{answer:?}");
    assert!(matches!(answer, Answer::Transient(_)));
    assert!(matches!(connection.failure(), Some(Failure::Content(_))), "{:?}", connection.failure());
    assert!(connection.take_damage().expect("told").to_string().contains("checksum"));
    drop(connection);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(peer.heard("."), [], "no half message is taken for a whole one");
}

/// Alters the last octet of the one file of content.
fn damage(queue: &Path) {
    let mut files = std::fs::read_dir(queue.join("content")).expect("a directory");
    let path = files.next().expect("one file").expect("readable").path();
    let mut octets = std::fs::read(&path).expect("readable");
    *octets.last_mut().expect("content") ^= 1;
    std::fs::write(&path, octets).expect("writable");
}

#[tokio::test]
async fn only_a_connection_that_was_closed_before_is_stale() {
    for (at, stale) in [("MAIL", true), ("RCPT", false), (".", false)] {
        let (_, port) = Peer::start(move |heard| {
            let last = || Say::Last(String::new());
            (heard.mails == 2 && heard.line.starts_with(at)).then(last)
        })
        .await;
        let (store, mut connection) = (Store::new(), connect(port).await);
        let id = store.put(10).await;
        assert_eq!(code(&store.send(&mut connection, id).await), 250);
        assert!(!connection.was_stale());
        assert_eq!(code(&store.send(&mut connection, id).await), 451);
        assert_eq!(connection.was_stale(), stale, "closed at {at}");
    }
    let (_, port) = Peer::start(|heard| heard.line.starts_with("MAIL").then(|| Say::Last(String::new()))).await;
    let (store, mut connection) = (Store::new(), connect(port).await);
    let id = store.put(10).await;
    store.send(&mut connection, id).await;
    assert!(!connection.was_stale(), "it was new");
}

#[tokio::test]
async fn a_socket_of_this_host_is_not_exposed() {
    let directory = tempfile::tempdir().expect("scratch");
    let path = directory.path().join("lmtp");
    let _peer = Peer::start_unix(&path, |_| None);
    assert!(!open(Address::Unix(path), Protocol::Lmtp).await.is_exposed());
    let (_, port) = Peer::start(|_| None).await;
    assert!(connect(port).await.is_exposed());
}

#[tokio::test]
async fn the_pool_keeps_one_generation() {
    let (_, port) = Peer::start(|_| None).await;
    let (pool, site): (Pool, Arc<str>) = (Pool::default(), "hosts:peer.example".into());
    let room = Room::of(&Config::default());
    let of = async |generation| {
        let mut connection = connect(port).await;
        connection.set_generation(generation);
        connection
    };
    let first = pool.generation();
    assert!(pool.put(&site, of(Some(first)).await, room).is_none());
    assert!(pool.put(&site, of(Some(first)).await, room).is_none());
    assert!(pool.take(&site).is_some());
    assert_eq!(pool.clear().len(), 1);
    assert!(pool.take(&site).is_none());
    assert!(pool.put(&site, of(Some(first)).await, room).is_some(), "opened under settings that are gone");
    assert!(pool.put(&site, of(None).await, room).is_some());
    assert!(pool.put(&site, of(Some(pool.generation())).await, room).is_none());
    assert!(pool.take(&site).is_some());
    assert!(pool.clear().is_empty());
}

#[tokio::test]
async fn the_pool_keeps_so_many_of_a_site_and_in_all_and_for_so_long() {
    let (_, port) = Peer::start(|_| None).await;
    let pool = Pool::default();
    let room = Room { total_max: 3, of_site_max: 2 };
    let generation = Some(pool.generation());
    let put = async |site: &str| {
        let mut connection = connect(port).await;
        connection.set_generation(generation);
        pool.put(&site.into(), connection, room).is_none()
    };
    assert!(put("a").await && put("a").await);
    assert!(!put("a").await, "two of one site");
    assert!(put("b").await);
    assert!(!put("c").await, "three in all");
    assert_eq!(pool.len(), 3);
    assert!(pool.take("b").is_some() && put("c").await);
    assert!(pool.expire(Duration::from_secs(60)).is_empty());
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(pool.expire(Duration::from_millis(10)).len(), 3);
    assert_eq!(pool.len(), 0);
}

#[test]
fn as_many_are_kept_of_a_site_as_the_route_with_the_most_allows() {
    let room = |routes: &str| {
        let text =
            format!("hostname = \"mx.example\"\n[outbound]\nconnections_per_destination = 5\nidle_max = 50\n{routes}");
        Room::of(&config(&text, std::path::Path::new("/etc")))
    };
    assert_eq!(room(""), Room { total_max: 50, of_site_max: 5 });
    let route = |most: u32| {
        format!("[[route]]\ndomain = \"d{most}.example\"\nvia = \"192.0.2.1\"\nconnections_per_destination = {most}\n")
    };
    assert_eq!(room(&route(2)).of_site_max, 5);
    assert_eq!(room(&[route(2), route(30), route(7)].concat()).of_site_max, 30);
}

#[test]
fn who_reads_a_reply_is_told_no_numbers_of_this_system() {
    let address = Address::Tcp("192.0.2.1:25".parse().expect("an address"));
    let error = OpenError::Connect { name: "mx.example".into(), address, source: io::Error::from_raw_os_error(111) };
    assert_eq!(error.reply().to_string(), "451 4.4.1 connect to mx.example [192.0.2.1:25]: Connection refused");
}
