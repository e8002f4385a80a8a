//! What became of a message, by `postroad trace`: by each of its names, after it is gone, while it waits,
//! with the agent down, and with a journal that cannot be written.

mod support;

use std::fs;
use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;
use support::agent::{Agent, Builder, items};
use support::client::{Client, Way};
use support::net::{SOON, wait_for, wait_until};
use support::sink::{Behaviour, Sink};

fn content(message_id: &str) -> Vec<u8> {
    format!("From: <a@client.test>\r\nMessage-ID: <{message_id}>\r\nSubject: trace\r\n\r\nbody\r\n").into_bytes()
}

fn send(agent: &Agent, to: &[&str], message_id: &str) -> String {
    let mut client = Client::connect(agent.smtp());
    client.ehlo();
    let reply = client.deliver("a@client.test", to, &content(message_id), Way::Data);
    assert_eq!(reply.code, 250, "{}", reply.text());
    reply.queue_id()
}

fn trace(agent: &Agent, what: &str) -> Vec<Value> {
    items(&agent.ok(&["trace", what, "--json"]))
}

/// What happened, as `what recipients`.
fn story(message: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let tell = |event: &Value| {
        let to: Vec<String> = event["recipients"].as_array().expect("a list").iter().map(text).collect();
        format!("{} {}", text(&event["what"]), to.join(","))
    };
    message["events"].as_array().expect("a list").iter().map(tell).collect()
}

#[test]
fn a_message_that_is_gone_is_found_by_each_of_its_names() {
    let sink = Sink::new();
    let agent = Builder::new().route("*", sink.address()).start();
    let id = send(&agent, &["x@away.test", "Y@away.test"], "1.2@client.test");
    let other = send(&agent, &["z@away.test"], "other@client.test");
    sink.expect(2, SOON);
    agent.wait_empty(SOON);
    let asked = Instant::now();
    for what in [&id[..], "1.2@client.test", "<1.2@client.test>", "x@away.test", "y@AWAY.test"] {
        let found = trace(&agent, what);
        let [message] = &found[..] else { panic!("{what}: {found:?}") };
        let want = ["accepted", "delivered", "retired"].map(|what| format!("{what} x@away.test,Y@away.test"));
        assert_eq!(story(message), want, "{what}");
        assert_eq!((&message["id"], &message["from"]), (&id.as_str().into(), &"a@client.test".into()), "{message}");
        assert_eq!(message["events"][1]["reply"], "250 2.0.0 Taken", "what was said, octet for octet");
        assert_eq!(message["host"], "mx.test");
    }
    assert!(asked.elapsed() < SOON);
    let ids: Vec<Value> = trace(&agent, "a@client.test").iter().map(|message| message["id"].clone()).collect();
    assert_eq!(ids, [id.as_str(), &other]);
    let one = agent.cli(&["trace", "a@client.test", "--limit", "1"]);
    let (text, errors) = (String::from_utf8_lossy(&one.stdout), String::from_utf8_lossy(&one.stderr));
    assert!(text.contains(&other) && !text.contains(&id), "{text}");
    assert!(errors.contains("1 older messages are not shown"), "{errors}");
    assert!(text.lines().all(|line| line.split('\t').count() == 7), "{text}");
    let none = agent.cli(&["trace", "nobody@away.test"]);
    let errors = String::from_utf8_lossy(&none.stderr);
    assert_eq!(none.status.code(), Some(1));
    assert!(
        errors.contains("nothing is known of nobody@away.test") && errors.contains("reaches back to 20"),
        "{errors}"
    );
}

#[test]
fn what_waits_is_said_with_where_and_why_and_who_did_what_to_it() {
    let (away, home) = (Sink::new(), Sink::new());
    away.behave(|sink| sink.rcpt = Arc::new(|_, _| "451 4.2.1 Come back later".into()));
    let builder = Builder::new().set("queue.retry_first", "\"1h\"").set("queue.retry_max", "\"1h\"");
    let agent = builder.route("away.test", away.address()).route("*", home.address()).start();
    let id = send(&agent, &["x@away.test", "y@home.test"], "1@client.test");
    home.expect(1, SOON);
    wait_until("both were tried", SOON, || trace(&agent, &id)[0]["events"].as_array().expect("a list").len() == 3);
    let found = trace(&agent, &id);
    let why = items(&agent.ok(&["queue", "why", &id, "--json"]));
    assert_eq!(found[0]["waits"][0]["text"], why[0]["text"], "the same words");
    assert_eq!(found[0]["waits"][0]["destination"], why[0]["destination"]);
    assert_eq!(found[0]["queued"]["recipients_pending"], 1);
    let mut story_so_far = story(&found[0]);
    story_so_far[1..].sort();
    assert_eq!(story_so_far, ["accepted x@away.test,y@home.test", "deferred x@away.test", "delivered y@home.test"]);
    agent.ok(&["queue", "hold", &id]);
    agent.ok(&["queue", "release", &id]);
    agent.ok(&["queue", "bounce", &id]);
    home.expect(2, SOON);
    agent.wait_empty(SOON);
    let found = trace(&agent, &id);
    let both = "x@away.test,y@home.test";
    let want = [format!("held {both}"), format!("released {both}"), "bounced x@away.test".to_owned()];
    assert_eq!(story(&found[0])[3..6], want);
    assert_eq!(story(&found[0])[6..], ["notified x@away.test".to_owned(), format!("retired {both}")]);
    let own = format!("uid {}", rustix::process::getuid().as_raw());
    assert_eq!((&found[0]["events"][3]["by"], &found[0]["events"][5]["by"]), (&own.as_str().into(), &own.into()));
    assert!(found[0]["queued"].is_null() && found[0]["waits"].is_null(), "{found:?}");
    let notice = found[0]["events"][6]["notification"].as_str().expect("an id");
    let found = trace(&agent, notice);
    assert_eq!(story(&found[0])[..2], ["accepted a@client.test", "delivered a@client.test"]);
    assert_eq!((&found[0]["from"], &found[0]["origin"]["protocol"]), (&"<>".into(), &"dsn".into()));
    assert!(found[0]["message_id"].as_str().is_some_and(|id| id.ends_with("@mx.test")), "{found:?}");
}

#[test]
fn a_message_whose_time_is_over_says_so() {
    let sink = Sink::new();
    sink.behave(|sink| {
        sink.content = Arc::new(|_, _| "452 4.2.2 Mailbox full".into());
        sink.deliver_by = Some(0);
    });
    let home = Sink::new();
    let builder = Builder::new().set("queue.retry_first", "\"1h\"").set("queue.retry_max", "\"1h\"");
    let agent = builder.route("slow.test", sink.address()).route("*", home.address()).start();
    // Its by-time ends sooner than any expiry that may be configured.
    let mut client = Client::connect(agent.smtp());
    client.ehlo();
    // Long enough for an attempt on a busy machine.
    client.expect("MAIL FROM:<a@client.test> BY=6;R", 250);
    client.expect("RCPT TO:<x@slow.test>", 250);
    let id = client.content(&content("1@client.test"), Way::Data).queue_id();
    let is_over = || story(&trace(&agent, &id)[0]).contains(&"expired x@slow.test".to_owned());
    wait_until("its time is over", SOON, is_over);
    let found = trace(&agent, &id);
    assert!(story(&found[0]).contains(&"deferred x@slow.test".to_owned()), "{found:?}");
    wait_until("its sender is told", SOON, || {
        story(&trace(&agent, &id)[0]).contains(&"notified x@slow.test".to_owned())
    });
}

#[test]
fn the_journal_is_read_while_the_agent_is_down_also_after_a_kill() {
    let sink = Sink::new();
    let mut agent = Builder::new().set("queue.hold", "true").route("*", sink.address()).start();
    let gone = send(&agent, &["x@away.test"], "gone@client.test");
    agent.ok(&["queue", "release", &gone]);
    sink.expect(1, SOON);
    agent.wait_empty(SOON);
    let held = send(&agent, &["y@away.test"], "held@client.test");
    let is_written = |octets: &[u8]| memchr::memmem::find(octets, b"held@client.test").is_some();
    let (path, mut octets) =
        wait_for("the journal is written by itself", SOON, || segment(&agent).filter(|(_, octets)| is_written(octets)));
    agent.kill();
    // What a crash in the middle of a write leaves.
    octets.extend_from_slice(&[200, 0, 0, 0, 1, 2, 3]);
    fs::write(&path, octets).expect("writable");
    let output = agent.cli(&["trace", "gone@client.test", "--json"]);
    assert!(output.status.success() && String::from_utf8_lossy(&output.stderr).contains("does not run"));
    let found = items(&String::from_utf8(output.stdout).expect("UTF-8"));
    let want = ["accepted x@away.test", "held x@away.test", "released x@away.test", "delivered x@away.test"];
    assert_eq!(story(&found[0])[..4], want);
    let text = agent.ok(&["trace", &held]);
    assert!(text.contains("\tqueued\ty@away.test\t"), "{text}");
    agent.start();
    agent.ok(&["queue", "release", &held]);
    sink.expect(2, SOON);
    let is_told = |what: &str| story(&trace(&agent, &held)[0]).iter().any(|told| told.starts_with(what));
    wait_until("the journal goes on behind what was torn", SOON, || is_told("retired"));
    assert!(is_told("accepted") && is_told("delivered"));
    assert_eq!(story(&trace(&agent, &gone)[0]).len(), 5);
}

/// The newest file of an agent's journal, with what it holds, once there is one.
fn segment(agent: &Agent) -> Option<(std::path::PathBuf, Vec<u8>)> {
    let files = fs::read_dir(agent.path("state/journal")).ok()?;
    let path = files.map(|file| file.expect("readable").path()).max()?;
    let octets = fs::read(&path).expect("readable");
    Some((path, octets))
}

#[test]
fn mail_goes_on_where_the_journal_cannot_be_written_and_that_is_said_once() {
    let sink = Sink::new();
    let builder = Builder::new().route("*", sink.address());
    fs::create_dir_all(builder.path("state")).expect("writable");
    fs::write(builder.path("state/journal"), "in the way").expect("writable");
    let agent = builder.metrics().start();
    for n in 1..=3 {
        send(&agent, &["x@away.test"], &format!("{n}@client.test"));
        // Accepted, delivered and retired.
        wait_until("its events are lost", SOON, || agent.metric("postroad_journal_dropped_events_total") == 3 * n);
    }
    sink.expect(3, SOON);
    agent.wait_empty(SOON);
    agent.wait_logged("the journal cannot be written");
    assert_eq!(agent.logged("the journal cannot be written"), 1, "{}", agent.log());
    fs::remove_file(agent.path("state/journal")).expect("removable");
    let id = send(&agent, &["x@away.test"], "later@client.test");
    agent.wait_logged("the journal is written again lost=9");
    assert!(story(&trace(&agent, &id)[0]).contains(&"accepted x@away.test".to_owned()));
}

#[test]
fn a_journal_that_is_off_makes_no_files_and_the_queue_answers_still() {
    let sink = Sink::new();
    sink.behave(|sink| sink.rcpt = Arc::new(|_, _| "451 4.2.1 Come back later".into()));
    let agent = Builder::new().set("journal.age", "\"0s\"").route("*", sink.address()).start();
    let id = send(&agent, &["x@away.test"], "1@client.test");
    agent.wait_deferred(SOON);
    let found = trace(&agent, &id);
    assert_eq!((story(&found[0]).len(), &found[0]["queued"]["recipients_total"]), (0, &1.into()), "{found:?}");
    sink.behave(|sink| *sink = Behaviour::default());
    agent.ok(&["queue", "retry", "--all"]);
    agent.wait_empty(SOON);
    let output = agent.cli(&["trace", &id]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("the journal is off"), "{output:?}");
    assert!(!agent.path("state/journal").exists());
}
