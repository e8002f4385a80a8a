//! Hosts that change their key while mail flows and while others are away: nobody loses sight of them.

mod support;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use postroad_mesh::SecretKey;
use serde_json::Value;
use support::agent::Agent;
use support::client::{Client, Way};
use support::mesh::{host, join, key_of, session_with, status, wait_routed};
use support::net::{SOON, wait_until};

fn three() -> [Agent; 3] {
    let [a, b, c] = ["a", "b", "c"].map(|name| host(name).start());
    join(&a, &b, "b.example");
    join(&a, &c, "c.example");
    wait_routed(&[&a, &b, &c], SOON, |member| member["serves"] != Value::Array(Vec::new()));
    [a, b, c]
}

fn mailbox(agent: &Agent) -> usize {
    std::fs::read_dir(agent.path("mail/user/new")).expect("a Maildir").count()
}

/// Sends one message after the other until it is to stop; returns how many were taken, which all were.
fn keep_sending(at: std::net::SocketAddr, to: &str, stop: &AtomicBool) -> usize {
    let (mut client, mut sent) = (Client::connect(at), 0);
    client.ehlo();
    while !stop.load(Ordering::Relaxed) {
        let content = format!("Message-ID: <{sent}.{to}.{at}>\r\nSubject: x\r\n\r\nhello\r\n");
        let reply = client.deliver("x@y.example", &[to], content.as_bytes(), Way::Data);
        assert_eq!(reply.code, 250, "{}", reply.text());
        sent += 1;
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    sent
}

/// Whether a host takes sessions under a key for those of a member, where it is asked for under this id.
fn takes(agent: &Agent, node: &Value, key: &SecretKey) -> bool {
    session_with(key, agent, node).ehlo().lines.iter().any(|line| line.starts_with("XMESH"))
}

fn key_in(path: &Path) -> SecretKey {
    SecretKey::from_pkcs8(&std::fs::read(path).expect("a file")).expect("a key")
}

/// How many members somebody sees, and how many that are gone.
fn seen(agent: &Agent) -> (usize, usize) {
    let status = status(agent);
    let count = |list: &str| status[list].as_array().expect("a list").len();
    (count("members"), count("gone"))
}

#[test]
fn a_key_is_changed_while_mail_flows_and_none_is_lost_or_refused() {
    let [a, b, c] = three();
    let (old, before) = (key_of(&b), status(&b)["node"].clone());
    let stop = AtomicBool::new(false);
    let sent = std::thread::scope(|scope| {
        let ways = [(&a, "user@b.example"), (&b, "user@a.example"), (&c, "user@b.example"), (&b, "user@c.example")];
        let stop = &stop;
        let senders = ways.map(|(agent, to)| {
            let at = agent.smtp();
            scope.spawn(move || keep_sending(at, to, stop))
        });
        wait_until("mail flows", SOON, || mailbox(&b) > 20 && mailbox(&a) > 10 && mailbox(&c) > 10);
        b.ok(&["mesh", "rotate"]);
        let after = status(&b)["node"].clone();
        assert_ne!(before, after);
        assert!(takes(&a, &status(&a)["node"], &old), "the old key is good still");
        for agent in [&a, &c] {
            wait_until("everybody has heard", 3 * SOON, || takes(agent, &status(agent)["node"], &key_of(&b)));
        }
        assert!(takes(&b, &after, &key_of(&a)));
        wait_until("the old key is given up", 6 * SOON, || status(&b)["rotation"].is_null());
        let flowed = mailbox(&b);
        wait_until("mail flows on", SOON, || mailbox(&b) > flowed + 20);
        stop.store(true, Ordering::Relaxed);
        senders.map(|sender| sender.join().expect("every message is taken"))
    });
    for agent in [&a, &b, &c] {
        agent.wait_empty(3 * SOON);
        assert_eq!(seen(agent), (3, 0), "one node under two keys was one, and is");
        let log = agent.log();
        let refusal = log.lines().find(|line| line.contains("451 4.7.1") || line.contains("550 "));
        assert_eq!(refusal, None, "nothing is refused");
    }
    // A queue may be empty since another one has the last of it, and that one had been looked at before.
    let wanted = (sent[1], sent[0] + sent[2], sent[3]);
    wait_until("all is in the mailboxes", SOON, || (mailbox(&a), mailbox(&b), mailbox(&c)) == wanted);
    wait_until("the others hear that it is given up", SOON, || !takes(&a, &status(&a)["node"], &old));
    assert!(!b.path("state/mesh/old-key.der").exists());
}

#[test]
fn who_was_away_finds_a_host_by_its_old_key_and_hears_of_the_new_one() {
    let [a, mut b, mut c] = three();
    let before = status(&b)["node"].clone();
    c.stop();
    b.ok(&["mesh", "rotate"]);
    wait_until("a has heard, and c cannot", 3 * SOON, || status(&b)["rotation"]["unheard"] == serde_json::json!(["c"]));
    let after = status(&b)["node"].clone();
    assert!(b.ok(&["mesh", "status"]).contains("is known still to c, until "));
    let refused = b.cli(&["mesh", "rotate"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("under way already"), "{refused:?}");
    // In the middle of it.
    b.restart();
    assert_eq!(status(&b)["node"], after);
    assert_eq!(status(&b)["rotation"]["earlier"], before);
    let mut client = Client::connect(b.smtp());
    client.ehlo();
    let reply = client.deliver("user@b.example", &["user@c.example"], b"Subject: x\r\n\r\nhello\r\n", Way::Data);
    assert_eq!(reply.code, 250, "it waits for who is away");
    let old = key_in(&b.path("state/mesh/old-key.der"));
    assert!(takes(&b, &before, &key_of(&c)) && takes(&b, &after, &key_of(&a)), "it answers under both");
    c.start();
    assert!(takes(&c, &status(&c)["node"], &old), "and is taken under the one that c knows");
    let mut client = Client::connect(c.smtp());
    client.ehlo();
    let reply = client.deliver("user@c.example", &["user@b.example"], b"Subject: x\r\n\r\nhello\r\n", Way::Data);
    assert_eq!(reply.code, 250, "{}", reply.text());
    wait_until("mail passes both ways", 3 * SOON, || mailbox(&b) == 1 && mailbox(&c) == 1);
    wait_until("c has heard, and the old key is given up", 6 * SOON, || status(&b)["rotation"].is_null());
    for agent in [&a, &b, &c] {
        wait_until("one of three", SOON, || seen(agent) == (3, 0));
    }
}

#[test]
fn a_key_that_somebody_read_is_given_up_at_once() {
    let [a, b, mut c] = three();
    c.stop();
    let (old, before) = (key_of(&b), status(&b)["node"].clone());
    b.ok(&["mesh", "rotate"]);
    b.ok(&["mesh", "rotate", "--finish"]);
    assert!(status(&b)["rotation"].is_null());
    wait_until("it is no member's any more", SOON, || !takes(&a, &status(&a)["node"], &old));
    let again = b.cli(&["mesh", "rotate", "--finish"]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("no change of key is under way"), "{again:?}");
    // Who was away hears of both at once, from those whom it knows.
    c.start();
    wait_until("c knows the new key", 3 * SOON, || {
        let status = status(&c);
        let members = status["members"].as_array().expect("a list");
        members.len() == 3 && members.iter().all(|member| member["node"] != before)
    });
    assert!(b.ok(&["mesh", "ping", "c"]).contains("answers"));
}
