//! Peers that mean harm, or know no better: floods, slow and endless ones on both sides. The agent
//! goes on serving the others, stays within its limits, and loses nothing.

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use support::agent::{Agent, Builder, has_program};
use support::client::{Client, Way};
use support::net::{SOON, wait_until};
use support::sink::{Behaviour, Phase, Sink};

const CONTENT: &[u8] = b"From: <a@client.test>\r\nSubject: hostile\r\n\r\nbody\r\n";

fn connect(agent: &Agent) -> Client {
    let mut client = Client::connect(agent.smtp());
    client.ehlo();
    client
}

fn send(agent: &Agent, to: &str) {
    let reply = connect(agent).deliver("a@client.test", &[to], CONTENT, Way::Data);
    assert_eq!(reply.code, 250, "{}", reply.text());
}

#[test]
fn sessions_beyond_the_limit_are_told_to_come_back() {
    let agent = Builder::new().set("limits.sessions", "3").start();
    // The probe that waited for the start may still be counted.
    wait_until("the limit is free", SOON, || agent.json(&["status", "--json"])["sessions"] == 0);
    let open: Vec<Client> = (0..3).map(|_| connect(&agent)).collect();
    let mut refused = Client::dial(None, agent.smtp()).expect("the agent listens");
    assert_eq!(refused.reply().code, 421);
    assert_eq!(refused.wire().rest(), b"");
    drop(open);
    wait_until("closed sessions make room", SOON, || {
        Client::dial(None, agent.smtp()).and_then(|mut client| client.try_reply()).is_ok_and(|reply| reply.code == 220)
    });
}

#[test]
fn silence_and_trickles_are_cut_off() {
    let agent = Builder::new().set("timeouts.command", "\"1s\"").set("timeouts.data", "\"1s\"").start();
    // The agent's time begins behind its last reply, which is later.
    let until_cut = |begin: Instant, mut client: Client, trickle: Option<&'static [u8]>| {
        if let Some(octets) = trickle {
            while begin.elapsed() < SOON && client.try_send(octets).is_ok() {
                std::thread::sleep(Duration::from_millis(200));
            }
        } else {
            assert_eq!(client.reply().code, 421);
        }
        client.wire().rest();
        begin.elapsed()
    };
    let silent = until_cut(Instant::now(), connect(&agent), None);
    let trickle = until_cut(Instant::now(), connect(&agent), Some(b"N"));
    let begin = Instant::now();
    let mut in_content = connect(&agent);
    in_content.envelope("MAIL FROM:<a@client.test>", &["postmaster@away.test"]);
    in_content.expect("DATA", 354);
    let content = until_cut(begin, in_content, None);
    for time in [silent, trickle, content] {
        assert!(time > Duration::from_millis(900) && time < SOON, "{time:?}");
    }
}

#[test]
fn idle_sessions_do_not_keep_others_out() {
    let sink = Sink::new();
    let agent = Builder::new().route("*", sink.address()).start();
    let idle: Vec<Client> = (0..400).map(|_| Client::connect(agent.smtp())).collect();
    // They may be silent for minutes.
    send(&agent, "b@away.test");
    sink.expect(1, SOON);
    drop(idle);
}

#[test]
fn running_out_of_descriptors_is_survived() {
    if !has_program("prlimit") {
        return support::skip("prlimit is not here");
    }
    let sink = Sink::new();
    let mut agent = Builder::new().wrapped(&["prlimit", "--nofile=80:80", "--"]).route("*", sink.address()).start();
    // Most of these wait in the kernel's backlog.
    let flood: Vec<Client> = (0..200).filter_map(|_| Client::dial(None, agent.smtp()).ok()).collect();
    agent.wait_logged("cannot accept a connection");
    drop(flood);
    wait_until("it accepts again", SOON, || {
        let mut client = Client::dial(None, agent.smtp()).expect("the agent listens");
        client.set_timeout(Duration::from_secs(1));
        client.try_reply().is_ok_and(|reply| reply.code == 220)
    });
    send(&agent, "b@away.test");
    sink.expect(1, SOON);
    assert!(agent.stop().success());
}

#[test]
fn an_endless_line_is_not_collected() {
    let agent = Builder::new().start();
    let mut client = connect(&agent);
    let megabyte = vec![b'A'; 1 << 20];
    let sent = (0..64).take_while(|_| client.try_send(&megabyte).is_ok()).count();
    assert!(sent < 64, "the agent swallowed 64 MiB of one line");
    connect(&agent).quit();
}

#[test]
fn too_many_errors_end_the_session() {
    let agent = Builder::new().set("limits.errors", "5").start();
    let mut client = connect(&agent);
    let codes: Vec<u16> = (0..6).map(|_| client.say("FOO").code).collect();
    assert_eq!(codes, [500, 500, 500, 500, 500, 421]);
    assert_eq!(client.wire().rest(), b"");
}

/// A next hop that does something wild first; the mail must wait for it to behave.
fn waits_for_reason(wild: impl FnOnce(&mut Behaviour)) -> String {
    let sink = Sink::new();
    sink.behave(wild);
    let agent = Builder::new().route("*", sink.address()).set("timeouts.reply", "\"1s\"").start();
    send(&agent, "b@away.test");
    wait_until("an attempt failed", SOON, || agent.ok(&["queue", "list", "--deferred"]).contains("b@away.test"));
    let why = agent.ok(&["queue", "list", "--json"]);
    sink.behave(|sink| *sink = Behaviour::default());
    // It fails when all was delivered already.
    agent.cli(&["queue", "retry", "--all"]);
    wait_until("it is delivered at last", Duration::from_secs(40), || sink.count() >= 1);
    agent.wait_empty(SOON);
    assert_eq!(sink.messages()[0].relayed(), CONTENT);
    why
}

#[test]
fn nonsense_from_a_next_hop_is_no_outcome() {
    let wild: [fn(&mut Behaviour); 7] = [
        |sink| sink.greeting = "hello there".into(),
        |sink| sink.greeting = "99 too short".into(),
        |sink| sink.greeting = "2".into(),
        |sink| sink.greeting = "220-line\r\n".repeat(200_000) + "220 end",
        |sink| sink.greeting = format!("220 {}", "x".repeat(5 << 20)),
        |sink| sink.mail = Arc::new(|_, _| "250-one\r\n251 two".into()),
        |sink| sink.rcpt = Arc::new(|_, _| "354 surprise".into()),
    ];
    std::thread::scope(|scope| {
        for wild in wild {
            scope.spawn(move || waits_for_reason(wild));
        }
    });
}

#[test]
fn a_next_hop_that_answers_too_late_is_left() {
    let why = waits_for_reason(|sink| sink.slow_at = Some((Phase::Mail, Duration::from_secs(30))));
    assert!(why.contains("4.4.2"), "{why}");
}

/// A reply in advance of its command would otherwise count for the next one.
#[test]
fn replies_in_advance_deliver_nothing() {
    let sink = Sink::start(Behaviour { chunking: false, pipelining: false, ..Behaviour::default() });
    sink.behave(|sink| {
        sink.rcpt = Arc::new(|_, _| "250 2.1.5 OK\r\n354 Go on\r\n250 2.0.0 Taken".into());
        sink.data = Some("554 5.7.1 Never".into());
    });
    let agent = Builder::new().route("*", sink.address()).start();
    send(&agent, "b@away.test");
    agent.wait_logged_times(" deferred ", 2);
    assert_eq!((sink.recorded().len(), agent.queued()), (0, 1), "what nobody took is still there");
}

#[test]
fn a_huge_refusal_makes_a_small_notification() {
    let (home, away) = (Sink::new(), Sink::new());
    away.behave(|sink| {
        sink.rcpt = Arc::new(|_, _| {
            let lines = (0..100).map(|n| format!("550-5.7.1 {n} {}\r\n", "blah \u{1b}[31m ".repeat(30)));
            lines.collect::<String>() + "550 5.7.1 end"
        });
    });
    let agent = Builder::new().route("client.test", home.address()).route("*", away.address()).start();
    send(&agent, "b@away.test");
    let notice = &home.expect(1, SOON)[0];
    assert!(notice.content.len() < 10_000, "{} octets", notice.content.len());
    assert!(!notice.content.contains(&0x1b), "control characters stay out");
    assert_eq!(home.complaints(), [""; 0]);
}
