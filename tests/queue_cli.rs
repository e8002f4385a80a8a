//! The queue from the command line: what is seen, what can be done, for programs and with the agent
//! down.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::Value;
use support::agent::{Agent, Builder, items};
use support::client::{Client, Way};
use support::net::{SOON, own_address, wait_until};
use support::sink::{Behaviour, Sink};

const CONTENT: &[u8] = b"From: <a@client.test>\r\nSubject: queue\r\n\r\nbody\r\n";

/// Two domains that put everything off for now, and one where notifications go.
struct Stage {
    agent: Agent,
    away: Sink,
    other: Sink,
    home: Sink,
}

fn stage(more: impl FnOnce(Builder) -> Builder) -> Stage {
    let (away, other, home) = (Sink::new(), Sink::new(), Sink::new());
    for sink in [&away, &other] {
        sink.behave(|sink| sink.rcpt = Arc::new(|_, _| "451 4.2.1 Come back later".into()));
    }
    let builder = Builder::new()
        .set("queue.retry_first", "\"1h\"")
        .set("queue.retry_max", "\"4h\"")
        .route("away.test", away.address())
        .route("other.test", other.address())
        .route("*", home.address());
    Stage { agent: more(builder).start(), away, other, home }
}

impl Stage {
    /// Sends a message and returns its queue id.
    fn send(&self, from: &str, to: &[&str]) -> String {
        let mut client = Client::connect(self.agent.smtp());
        client.ehlo();
        let reply = client.deliver(from, to, CONTENT, Way::Data);
        assert_eq!(reply.code, 250, "{}", reply.text());
        reply.queue_id()
    }

    fn list(&self, words: &[&str]) -> Vec<Value> {
        items(&self.agent.ok(&[&["queue", "list", "--json"], words].concat()))
    }

    fn ids(&self, words: &[&str]) -> Vec<String> {
        self.list(words).iter().map(|item| item["id"].as_str().expect("an id").to_owned()).collect()
    }

    fn wait_deferred(&self, count: usize) {
        let tried = |item: &Value| item["state"] == "deferred";
        wait_until("all were tried", SOON, || self.list(&[]).iter().filter(|item| tried(item)).count() == count);
    }
}

fn is_sorted(ids: &[String]) -> bool {
    ids.windows(2).all(|pair| pair[0] < pair[1])
}

#[test]
fn the_list_says_what_waits_and_filters() {
    let stage = stage(|builder| builder);
    let first = stage.send("a@client.test", &["x@away.test", "y@other.test"]);
    let second = stage.send("b@client.test", &["z@other.test"]);
    let third = stage.send("", &["Z@away.test"]);
    stage.wait_deferred(3);
    assert_eq!(stage.ids(&[]), [first.clone(), second.clone(), third.clone()], "oldest first");
    for (filter, want) in [
        (&["--from", "A@CLIENT*"][..], vec![&first]),
        (&["--from", "<>"], vec![&third]),
        (&["--from", "*@*", "--to", "*@Away.test"], vec![&first]),
        (&["--to", "z@*.test"], vec![&second, &third]),
        (&["--domain", "other.test."], vec![&first, &second]),
        (&["--domain", "away.test"], vec![&first, &third]),
        (&["--reply", "come back"], vec![&first, &second, &third]),
        (&["--attempts", "2"], vec![]),
        (&["--held"], vec![]),
        (&["--older", "1h"], vec![]),
        (&["--newer", "1h", "--limit", "1"], vec![&first]),
        (&[&second], vec![&second]),
    ] {
        assert_eq!(stage.ids(filter).iter().collect::<Vec<_>>(), want, "{filter:?}");
    }
    let shown = stage.agent.ok(&["queue", "show", &first]);
    for text in ["a@client.test", "x@away.test", "y@other.test", "451 4.2.1 Come back later"] {
        assert!(shown.contains(text), "no {text} in {shown}");
    }
    let item = &items(&stage.agent.ok(&["queue", "show", "--json", &first]))[0];
    assert_eq!((&item["recipients_total"], &item["state"]), (&2.into(), &"deferred".into()), "{item}");
    assert_eq!(item["recipients"][0]["attempts"], 1, "{item}");
    let why = stage.agent.ok(&["queue", "why", &first]);
    assert!(why.contains("away.test") || why.contains(&stage.away.ip().to_string()), "{why}");
    assert!(!stage.agent.cli(&["queue", "show", "0MCC5RM000007"]).status.success());
    assert!(!stage.agent.cli(&["queue", "show", "no id"]).status.success());
}

#[test]
fn a_retry_concerns_what_was_selected() {
    let stage = stage(|builder| builder);
    stage.send("a@client.test", &["x@away.test", "y@other.test"]);
    stage.wait_deferred(1);
    for sink in [&stage.away, &stage.other] {
        sink.behave(|sink| *sink = Behaviour::default());
    }
    stage.agent.ok(&["queue", "retry", "--domain", "away.test", "--dry-run"]);
    stage.agent.ok(&["queue", "retry", "--domain", "away.test"]);
    stage.away.expect(1, SOON);
    assert_eq!(stage.other.count(), 0);
    wait_until("one recipient is left", SOON, || stage.list(&[])[0]["recipients_pending"] == 1);
    stage.agent.ok(&["queue", "retry", "--all"]);
    stage.other.expect(1, SOON);
    stage.agent.wait_empty(SOON);
    assert_eq!((stage.away.count(), stage.other.count()), (1, 1));
}

#[test]
fn held_mail_waits_for_its_release_even_across_a_restart() {
    let mut stage = stage(|builder| builder);
    let id = stage.send("a@client.test", &["x@away.test"]);
    stage.wait_deferred(1);
    stage.agent.ok(&["queue", "hold", &id]);
    stage.away.behave(|sink| *sink = Behaviour::default());
    stage.agent.ok(&["queue", "retry", "--all"]);
    stage.agent.restart();
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!((stage.ids(&["--held"]), stage.away.count()), (vec![id.clone()], 0));
    assert!(stage.agent.ok(&["queue", "why", &id]).contains("held"));
    stage.agent.ok(&["queue", "release", "--held"]);
    stage.agent.ok(&["queue", "retry", "--all"]);
    stage.away.expect(1, SOON);
}

#[test]
fn mail_is_given_up_with_and_without_a_word() {
    let stage = stage(|builder| builder);
    let silent = stage.send("a@client.test", &["x@away.test"]);
    let told = stage.send("b@client.test", &["y@away.test", "z@other.test"]);
    stage.wait_deferred(2);
    let preview = stage.agent.ok(&["queue", "remove", &silent, "--dry-run"]);
    assert!(preview.contains(&silent), "{preview}");
    assert_eq!(stage.ids(&[]), [silent.clone(), told.clone()], "a dry run changes nothing");
    stage.agent.ok(&["queue", "remove", &silent]);
    assert_eq!(stage.ids(&[]), [told.as_str()]);
    stage.agent.ok(&["queue", "bounce", &told, "--domain", "away.test"]);
    let notice = &stage.home.expect(1, SOON)[0];
    let text = String::from_utf8_lossy(&notice.content).into_owned();
    assert_eq!((notice.reverse_path.as_str(), notice.recipients.as_slice()), ("", &["b@client.test".into()][..]));
    assert!(text.contains("y@away.test") && !text.contains("z@other.test"), "{text}");
    assert!(text.contains("It was not sent on from here"), "the next host is not to blame: {text}");
    wait_until("only the rest waits", SOON, || stage.ids(&[]) == [told.as_str()]);
    assert_eq!(stage.list(&[])[0]["recipients_pending"], 1);
    for words in [&["queue", "remove"][..], &["queue", "bounce", "--yes"], &["queue", "hold"]] {
        assert!(!stage.agent.cli(words).status.success(), "{words:?} without a filter must not mean everything");
    }
    stage.agent.ok(&["queue", "bounce", "--all", "--yes"]);
    stage.home.expect(2, SOON);
    stage.agent.wait_empty(SOON);
}

#[test]
fn totals_and_destinations_are_counted() {
    let stage = stage(|builder| builder);
    for n in 0..5 {
        stage.send("a@client.test", &[&format!("u{n}@away.test"), "y@other.test"]);
    }
    stage.wait_deferred(5);
    let text = stage.agent.ok(&["queue", "stats"]);
    assert!(text.contains(&stage.away.ip().to_string()), "{text}");
    let stats = items(&stage.agent.ok(&["queue", "stats", "--json"]));
    let away = stage.away.ip().to_string();
    let row = |ip: &str| stats.iter().find(|row| row["destination"].as_str().is_some_and(|key| key.contains(ip)));
    let row = row(&away).unwrap_or_else(|| panic!("{stats:?}"));
    let waiting = ["ready", "deferred"].map(|name| row[name].as_u64().expect("a number")).iter().sum::<u64>();
    assert_eq!(waiting, 5, "{row}");
    let totals = stats.iter().find_map(|row| row.get("totals").or(row.get("messages").map(|_| row)));
    assert_eq!(totals.expect("totals")["messages"], 5, "{stats:?}");
    let status = stage.agent.json(&["status", "--json"]);
    assert_eq!((&status["state"], &status["queue"]["messages"]), (&"serving".into(), &5.into()), "{status}");
}

#[test]
fn the_queue_can_be_read_while_the_agent_is_down() {
    let mut stage = stage(|builder| builder);
    let mut ids: Vec<String> = (0..3).map(|n| stage.send("a@client.test", &[&format!("u{n}@away.test")])).collect();
    stage.wait_deferred(3);
    stage.agent.kill();
    let output = stage.agent.cli(&["queue", "list", "--json"]);
    assert!(output.status.success());
    let listed = items(&String::from_utf8(output.stdout).expect("UTF-8"));
    let listed: Vec<&str> = listed.iter().map(|item| item["id"].as_str().expect("an id")).collect();
    assert_eq!(listed, ids);
    let errors = String::from_utf8_lossy(&output.stderr).to_lowercase();
    assert!(errors.contains("does not run"), "{errors}");
    assert!(stage.agent.ok(&["queue", "show", &ids[0]]).contains("u0@away.test"));
    for words in [&["queue", "retry", "--all"][..], &["status"], &["queue", "stats"]] {
        let output = stage.agent.cli(words);
        assert_eq!(output.status.code(), Some(75), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    stage.agent.start();
    ids.push(stage.send("a@client.test", &["late@away.test"]));
    assert!(is_sorted(&ids), "ids are sorted by arrival, across a crash: {ids:?}");
    assert_eq!(stage.ids(&[]), ids);
}

#[test]
fn new_mail_is_held_when_the_configuration_says_so() {
    let stage = stage(|builder| builder.set("queue.hold", "true"));
    stage.away.behave(|sink| *sink = Behaviour::default());
    let id = stage.send("a@client.test", &["x@away.test"]);
    assert_eq!((stage.ids(&["--held"]), stage.away.sessions()), (vec![id.clone()], 0));
    stage.agent.ok(&["queue", "release", &id]);
    stage.away.expect(1, SOON);
}

#[test]
fn a_name_that_tries_to_paint_the_terminal_cannot() {
    let stage = stage(|builder| builder);
    stage.away.behave(|sink| sink.rcpt = Arc::new(|_, _| "451 4.2.1 \u{1b}[2J\u{7}gone".into()));
    let id = stage.send("a@client.test", &["x@away.test"]);
    stage.wait_deferred(1);
    for words in [&["queue", "list"][..], &["queue", "show", &id], &["queue", "why", &id]] {
        let text = stage.agent.ok(words);
        assert!(!text.contains('\u{1b}') && !text.contains('\u{7}'), "{words:?}: {text:?}");
    }
}

#[test]
fn a_message_is_printed_as_it_is_queued() {
    let mut stage = stage(|builder| builder);
    let id = stage.send("a@client.test", &["x@away.test"]);
    let running = stage.agent.cli(&["queue", "cat", &id]);
    assert!(running.status.success(), "{}", String::from_utf8_lossy(&running.stderr));
    assert!(running.stdout.starts_with(b"Received: from "), "{}", String::from_utf8_lossy(&running.stdout));
    assert!(running.stdout.ends_with(CONTENT), "octet for octet: {}", String::from_utf8_lossy(&running.stdout));
    stage.agent.kill();
    assert_eq!(stage.agent.cli(&["queue", "cat", &id]).stdout, running.stdout, "also while the agent is down");
    let unknown = stage.agent.cli(&["queue", "cat", "0MCC5RM000007"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("postroad trace"), "{unknown:?}");
    assert_eq!(stage.agent.cli(&["queue", "cat", "--json", &id]).status.code(), Some(2));
}

#[test]
fn an_agent_that_runs_is_asked_although_its_file_is_faulty_now() {
    let mut stage = stage(|builder| {
        let made = rcgen::generate_simple_self_signed(["mx.test".to_owned()]).expect("a certificate can be made");
        std::fs::write(builder.path("gone.pem"), made.cert.pem()).expect("writable");
        std::fs::write(builder.path("gone.key"), made.signing_key.serialize_pem()).expect("writable");
        builder.set("tls.certificate", "\"gone.pem\"").set("tls.key", "\"gone.key\"")
    });
    let id = stage.send("a@client.test", &["x@away.test"]);
    stage.wait_deferred(1);
    for file in ["gone.pem", "gone.key"] {
        std::fs::remove_file(stage.agent.path(file)).expect("it was there");
    }
    stage.agent.edit_config("hostname =", "hostnme =");
    for words in [&["status"][..], &["queue", "list"], &["queue", "hold", &id], &["trace", &id], &["mesh", "status"]] {
        let output = stage.agent.cli(words);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && errors.contains("postroad check"), "{words:?}: {errors}");
    }
    // What goes by the file itself, and nobody to ask: then the faults are the answer.
    assert_eq!(stage.agent.cli(&["check"]).status.code(), Some(78));
    stage.agent.kill();
    assert_eq!(stage.agent.cli(&["queue", "list"]).status.code(), Some(78));
}

#[test]
fn mail_behind_a_host_that_is_down_shows_why_and_until_when() {
    let down = SocketAddr::new(own_address(), 2525);
    let stage = stage(|builder| builder.route("down.test", down));
    for _ in 0..3 {
        stage.send("a@client.test", &["b@down.test"]);
    }
    // One of them was tried; the others wait behind it.
    let shown = || stage.list(&["--domain", "down.test"]);
    let waits = |item: &Value| item["recipients"][0]["outage"].is_object();
    wait_until("the host is known to be down", SOON, || shown().iter().filter(|item| waits(item)).count() == 3);
    for item in shown() {
        let said = item["recipients"][0]["outage"]["said"].as_str().expect("words");
        assert!(said.contains("Connection refused"), "{item}");
    }
    let listed = stage.agent.ok(&["queue", "list"]);
    for line in listed.lines() {
        let columns: Vec<&str> = line.split('\t').collect();
        assert!(columns[8].starts_with("451 4.4.1 connect to"), "{line}");
    }
    let untried = shown().into_iter().find(|item| item["recipients"][0]["last"].is_null()).expect("one was not tried");
    let id = untried["id"].as_str().expect("an id");
    let said = stage.agent.ok(&["queue", "show", id]);
    assert!(said.contains("not tried yet; its next hop cannot be reached, tried again "), "{said}");
    stage.agent.ok(&["queue", "delete", id]);
    assert_eq!(shown().len(), 2, "delete is remove");
}
