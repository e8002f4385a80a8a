//! Whole deliveries to scripted peers: what is sent again, to whom it is written, what is kept.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use postroad_queue::schedule::Selector;
use postroad_queue::{Item, RecipientState};
use postroad_smtp::client;

use super::super::open::password;
use super::super::scenario::{Agent, Peer, Say, config, routing};
use super::*;
use crate::config::RouteCredentials;
use crate::net::Address;

/// Everything goes to one peer.
fn all_to(port: u16) -> String {
    format!("hostname = \"mx.home.example\"\n[[route]]\ndomain = \"*\"\nvia = \"127.0.0.1:{port}\"\n")
}

fn tried(item: Option<&Item>) -> bool {
    let again = |state: &RecipientState| matches!(state, RecipientState::Pending { attempts: 1.., .. });
    item.is_some_and(|item| item.state.recipients.iter().any(again))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_delivered_is_not_sent_again_when_the_connection_is_lost() {
    let (peer, port) = Peer::start(|heard| {
        let gone = heard.connection == 0 && heard.mails == 3;
        gone.then(|| Say::Last(String::new()))
    })
    .await;
    let agent = Agent::start(&all_to(port));
    let first = agent.put(&["x@example.org"], b"x\r\n").await;
    agent.wait_delivered(first).await;
    let many: Vec<String> = (0..101).map(|i| format!("u{i}@example.org")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let id = agent.put(&many, b"x\r\n").await;
    agent.wait(id, |item| item.is_none() || tried(item)).await;
    assert_eq!(peer.heard("RCPT TO:<u7@").len(), 1, "the first hundred were taken");
    let item = agent.queue.load(id).expect("one recipient waits");
    let pending = item.state.recipients.iter().filter(|state| matches!(state, RecipientState::Pending { .. }));
    assert_eq!(pending.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_outcome_waits_and_a_closed_connection_does_not() {
    for (at, connections) in [(".", 1), ("RCPT", 1), ("MAIL", 2)] {
        let (peer, port) = Peer::start(move |heard| {
            let gone = heard.connection == 0 && heard.mails == 2 && heard.line.starts_with(at);
            gone.then(|| Say::Last(String::new()))
        })
        .await;
        let agent = Agent::start(&all_to(port));
        let first = agent.put(&["x@example.org"], b"x\r\n").await;
        agent.wait_delivered(first).await;
        agent.wait_pooled().await;
        let id = agent.put(&["y@example.org"], b"x\r\n").await;
        agent.wait(id, |item| item.is_none() || tried(item)).await;
        assert_eq!(peer.heard("EHLO").len(), connections, "lost at {at}");
        assert_eq!(agent.queue.load(id).is_err(), connections == 2, "lost at {at}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn postmaster_mail_is_written_to_whom_it_goes() {
    let (peer, port) = Peer::start(|_| None).await;
    let agent = Agent::start(&format!("postmaster = \"Admin@elsewhere.example\"\n{}", all_to(port)));
    let id = agent.put(&["postmaster@mx.home.example", "b@example.org"], b"x\r\n").await;
    agent.wait_delivered(id).await;
    let heard: Vec<String> = peer.heard("RCPT").into_iter().map(|(_, line)| line).collect();
    let redirected = "RCPT TO:<Admin@elsewhere.example> ORCPT=rfc822;postmaster@mx.home.example";
    assert_eq!(heard, [redirected, "RCPT TO:<b@example.org>"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn outcomes_do_not_wait_for_the_end_of_a_failed_session() {
    let (_, port) = Peer::start(|heard| {
        let silence = || Say::Silence("421 4.3.2 busy".to_owned());
        (heard.line == "DATA").then(silence)
    })
    .await;
    // The peer never closes its end; lingering would take three seconds, each time. One of a few that is quicker
    // is enough: the machine may be busy.
    for _ in 0..5 {
        let agent = Agent::start(&all_to(port));
        let id = agent.put(&["b@example.org"], b"x\r\n").await;
        let begun = std::time::Instant::now();
        agent.wait(id, tried).await;
        if begun.elapsed() < Duration::from_millis(2500) {
            return;
        }
    }
    panic!("its outcome waits");
}

/// Returns for how long a destination is left alone at which so many messages failed together: at least since
/// the attempt and at most from now on, in milliseconds.
async fn left_alone(port: u16, messages: usize) -> (u64, u64) {
    let agent = Agent::start(&all_to(port));
    let core = &agent.delivery.0;
    core.schedule().hold(Selector::All);
    for _ in 0..messages {
        agent.put(&["x@example.org"], b"x\r\n").await;
    }
    let begun = core.clock.now();
    core.schedule().release(Selector::All);
    core.start_ready();
    loop {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let now = core.clock.now();
        if let Some(until) = core.schedule().stats(now)[0].closed_until {
            return (until.since(begun), until.since(now));
        }
        assert!(now.since(begun) < 60_000, "nobody has tried it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_answer_is_tried_the_sooner_the_more_waits_and_who_is_busy_is_not() {
    let (_peer, busy) = Peer::start(|_| Some(Say::Last("421 busy".to_owned()))).await;
    // Nobody listens at a port that is ours.
    let silent = tokio::net::TcpSocket::new_v4().expect("a socket");
    silent.bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
    let nobody = silent.local_addr().expect("bound").port();
    assert!(left_alone(busy, 800).await.0 >= 8_000, "10 s, less the most of their jitter");
    assert!(left_alone(nobody, 800).await.1 <= 5_600, "an hour for 800, and the most of its jitter");
    assert!(left_alone(nobody, 1).await.0 >= 8_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_of_other_settings_is_not_used_again() {
    let (peer, port) = Peer::start(|_| None).await;
    let agent = Agent::start(&all_to(port));
    for i in 0..3 {
        let id = agent.put(&["b@example.org"], b"x\r\n").await;
        agent.wait_delivered(id).await;
        agent.wait_pooled().await;
        assert_eq!(peer.heard("EHLO").len(), 1 + i / 2, "message {i}");
        if i == 1 {
            let core = &agent.delivery.0;
            core.routing.store(Arc::new(routing(&config(&all_to(port), agent.directory.path()))));
            core.pool.clear().into_iter().for_each(|connection| core.spawn(connection.quit()));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_were_replaced_have_no_generation() {
    let agent = Agent::start(&all_to(2501));
    let core = &agent.delivery.0;
    let old = core.routing.load_full();
    assert_eq!(generation(core, &old), Some(core.pool.generation()));
    core.routing.store(Arc::new(routing(&config(&all_to(2502), agent.directory.path()))));
    assert_eq!(generation(core, &old), None);
}

#[tokio::test]
async fn a_password_file_that_blocks_blocks_nobody_else() {
    let directory = tempfile::tempdir().expect("scratch");
    let path = directory.path().join("password");
    let made = std::process::Command::new("mkfifo").arg(&path).status().expect("mkfifo runs");
    assert!(made.success());
    let ticked = Arc::new(AtomicBool::new(false));
    let writer = std::thread::spawn({
        let (path, ticked) = (path.clone(), ticked.clone());
        move || {
            // What blocks is let go in the end, whatever came of it.
            let late = std::time::Instant::now() + Duration::from_secs(20);
            while !ticked.load(Ordering::Acquire) && std::time::Instant::now() < late {
                std::thread::sleep(Duration::from_millis(10));
            }
            let before = ticked.load(Ordering::Acquire);
            std::fs::write(path, "secret\n").expect("written");
            before
        }
    });
    let login = Arc::new(RouteCredentials { user: "app".to_owned(), password_file: path });
    let tick = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        ticked.store(true, Ordering::Release);
    };
    let (read, ()) = tokio::join!(password(login), tick);
    assert!(read.is_ok());
    assert!(writer.join().expect("no panic"), "the runtime went on while the file was read");
}

/// A connection to a peer that takes everything.
async fn connection(agent: &Agent, port: u16) -> Connection {
    let target = Target {
        name: "peer.example".into(),
        address: Address::Tcp(([127, 0, 0, 1], port).into()),
        session: client::Config::new("client.example"),
        implicit_tls: false,
        tls: agent.delivery.0.tls.any_certificate().clone(),
        nodes: None,
        connect_limit: Duration::from_secs(5),
    };
    Connection::open(Arc::new(target)).await.unwrap_or_else(|error| panic!("{error}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_gives_up_a_connection_of_other_settings() {
    let (_, port) = Peer::start(|_| None).await;
    let agent = Agent::start(&all_to(port));
    let core = &agent.delivery.0;
    let mut lane = Lane::new("host:peer".into());
    for (generation, kept) in [(core.pool.generation(), true), (core.pool.generation() + 1, false)] {
        let mut held = connection(&agent, port).await;
        held.set_generation(Some(generation));
        lane.connection = Some(held);
        assert_eq!(lane.kept(core, postroad_queue::QueueId::from_u64(1)).is_some(), kept, "generation {generation}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn content_that_cannot_be_read_is_held_against_nobody() {
    let (_, port) = Peer::start(|_| None).await;
    let agent = Agent::start(&all_to(port));
    let connection = connection(&agent, port).await;
    assert!(matches!(ended_by(&Failure::Content("damaged"), &connection, &[], true), Ended::Answered));
    assert!(matches!(ended_by(&Failure::Lost, &connection, &[], true), Ended::Throttled(_)));
}
