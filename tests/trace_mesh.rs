//! Following a message through a mesh: one timeline over all members that had it, what is known last of
//! one that is gone, and who is not told.

mod support;

use std::time::{Duration, Instant};

use serde_json::Value;
use support::agent::{Agent, items, make_maildir};
use support::client::{Client, Way};
use support::mesh::{join_with, named, wait_routed};
use support::net::{SOON, wait_until};
use support::note;
use support::sink::Sink;

/// How long a person waits; the best of a few, since the test's machine is busy.
const FOLLOWED: Duration = Duration::from_secs(1);

/// Lets a host join without the right to follow what is not its own.
fn join(member: &Agent, agent: &Agent, serves: &[&str]) {
    join_with(member, agent, &[&["--caps", "relay"], serves].concat());
}

/// Waits until everybody knows what all say of themselves.
fn wait_known(agents: &[&Agent]) {
    wait_routed(agents, 3 * SOON, |member| member["label"] != "");
}

/// What happened where, in the order of time.
fn story(views: &[Value]) -> Vec<String> {
    let events = |view: &Value| {
        let host = view["host"].as_str().expect("a host").to_owned();
        let events = view["events"].as_array().expect("a list").clone();
        let one = move |event: Value| {
            let text = |name: &str| event[name].as_str().expect("a text").to_owned();
            (text("at"), format!("{host} {}", text("what")))
        };
        events.into_iter().map(one).collect::<Vec<_>>()
    };
    let mut told: Vec<_> = views.iter().flat_map(events).collect();
    told.sort();
    told.into_iter().map(|(_, told)| told).collect()
}

#[test]
fn a_message_is_followed_over_four_hops_and_who_is_gone_is_named() {
    let sink = Sink::new();
    // Neither end can be dialled, so that all goes through the one in the middle.
    let end = |name| named(name).set("mesh.reach", "\"dials-out\"");
    let mut a = end("a").start();
    let b = named("b").start();
    let mut c = end("c").set("mesh.egress", "true").route("sink.test", sink.address()).start();
    join(&b, &a, &[]);
    join(&b, &c, &[]);
    wait_known(&[&a, &b, &c]);
    let mut client = Client::connect(a.smtp());
    client.ehlo();
    let content = b"Subject: far\r\nMessage-ID: <1@client.test>\r\n\r\nhello\r\n";
    let id = client.deliver("sender@client.test", &["user@sink.test"], content, Way::Data).queue_id();
    sink.expect(1, 3 * SOON);
    let follow = |agent: &Agent, what: &str| {
        let asked = Instant::now();
        let views = items(&agent.ok(&["trace", what, "--json"]));
        (views, asked.elapsed())
    };
    wait_until("all have told all", SOON, || story(&follow(&a, &id).0).len() == 9);
    let whole = ["accepted", "delivered", "retired"];
    let (views, _) = follow(&a, "1@client.test");
    for (host, view) in ["a", "b", "c"].iter().zip(&views) {
        let told = story(std::slice::from_ref(view));
        assert_eq!(told, whole.map(|what| format!("{host} {what}")), "{views:?}");
        assert_eq!(view["hostname"], format!("{host}.test"), "{views:?}");
        assert_eq!(view["mesh"]["id"], views[0]["mesh"]["id"], "the same message everywhere");
    }
    assert_eq!(views[2]["events"][1]["reply"], "250 2.0.0 Taken", "the words of the host outside");
    // As spans of one trace, each hop behind the one before.
    let spans: Value = serde_json::from_str(&a.ok(&["trace", &id, "--otlp", "-"])).expect("one line of JSON");
    let span = |at: usize| &spans["resourceSpans"][at]["scopeSpans"][0]["spans"][0];
    assert_eq!([&span(1)["parentSpanId"], &span(2)["parentSpanId"]], [&span(0)["spanId"], &span(1)["spanId"]]);
    assert!(span(0)["traceId"] == span(2)["traceId"] && span(0)["parentSpanId"].is_null(), "{spans}");
    let mut took: Vec<Duration> = (0..20).map(|_| follow(&a, &id).1).collect();
    took.sort();
    note(format_args!("followed over four hops within {:?} (median), {:?} (the longest of 20)", took[9], took[19]));
    assert!(took[0] <= FOLLOWED, "{took:?}");
    // By its name in the mesh, from the middle: the member that invited everybody has every right.
    let mesh_id = views[0]["mesh"]["id"].as_str().expect("an id");
    assert_eq!(follow(&b, mesh_id).0.len(), 3);
    // The last hop has no right to follow what is not its own.
    let output = c.cli(&["trace", mesh_id]);
    let text = String::from_utf8_lossy(&output.stdout);
    let told: Vec<&str> = text.lines().filter(|line| line.contains("\tunknown\t")).collect();
    assert!(told.len() == 2 && told.iter().all(|line| line.contains("no right `trace` there")), "{text}");
    assert_eq!(text.lines().filter(|line| line.contains("\taccepted\t")).count(), 1, "{text}");
    c.kill();
    let output = a.cli(&["trace", &id]);
    let text = String::from_utf8_lossy(&output.stdout);
    let unknown: Vec<&str> = text.lines().filter(|line| line.contains("\tunknown\t")).collect();
    assert!(unknown.len() == 1 && unknown[0].contains("\tc\t") && unknown[0].starts_with("20"), "{text}");
    // Read from disk it is named as when it runs.
    a.stop();
    let views = items(&a.ok(&["trace", &id, "--json"]));
    assert_eq!(
        (views.len(), &views[0]["host"], &views[0]["hostname"]),
        (1, &"a".into(), &"a.test".into()),
        "{views:?}"
    );
}

#[test]
fn where_a_member_in_the_middle_knows_nothing_any_more_the_ends_are_asked() {
    let sink = Sink::new();
    let end = |name| named(name).set("mesh.reach", "\"dials-out\"");
    let a = end("a").start();
    let mut b = named("b").start();
    let c = end("c").set("mesh.egress", "true").route("sink.test", sink.address()).start();
    let d = end("d");
    let mail = d.path("mail");
    make_maildir(&mail.join("user"));
    let d = d.table("local", &format!("domain = \"d.example\"\nmaildir = \"{}/{{user}}\"", mail.display())).start();
    join(&b, &a, &[]);
    join(&b, &c, &[]);
    join(&b, &d, &["--serves", "d.example"]);
    wait_known(&[&a, &b, &c, &d]);
    let mut client = Client::connect(a.smtp());
    client.ehlo();
    let to = ["user@sink.test", "user@d.example"];
    let id = client.deliver("sender@client.test", &to, b"Subject: far\r\n\r\nhello\r\n", Way::Data).queue_id();
    sink.expect(1, 3 * SOON);
    wait_until("it is in the mailbox", 3 * SOON, || mail.join("user/new").read_dir().expect("there").count() == 1);
    wait_until("all hosts are done with it", SOON, || [&a, &b, &c, &d].iter().all(|agent| agent.queued() == 0));
    // What is not on disk when a host is killed is gone; here all of it, had it come to the first file or not.
    b.kill();
    let _ = std::fs::remove_dir_all(b.path("state/journal"));
    b.start();
    let tells = |text: &str, host: &str, what: &str| {
        let is_it = |line: &str| line.contains(&format!("\t{host}\t")) && line.contains(&format!("\t{what}\t"));
        text.lines().any(is_it)
    };
    // Those at the ends are asked through the one in the middle, when it is there again.
    wait_until("who has it at last tells", 6 * SOON, || {
        let text = String::from_utf8_lossy(&a.cli(&["trace", &id]).stdout).into_owned();
        let is_named = tells(&text, "b", "unknown") && text.contains("its journal has nothing of it");
        is_named && tells(&text, "c", "delivered") && tells(&text, "d", "delivered")
    });
}

#[test]
fn the_home_of_a_recipient_is_told_of_its_own_alone() {
    let sink = Sink::new();
    let a = named("a").route("sink.test", sink.address()).start();
    let b = named("b");
    let mail = b.path("mail");
    make_maildir(&mail.join("user"));
    let b = b.table("local", &format!("domain = \"b.example\"\nmaildir = \"{}/{{user}}\"", mail.display())).start();
    join(&a, &b, &["--serves", "b.example"]);
    wait_known(&[&a, &b]);
    let mut client = Client::connect(a.smtp());
    client.ehlo();
    let to = ["secret@sink.test", "user@b.example"];
    client.deliver("sender@client.test", &to, b"Subject: both\r\n\r\nhello\r\n", Way::Data).queue_id();
    sink.expect(1, 3 * SOON);
    // It may not have come yet, or not be written down: then nothing is known.
    let ask = || items(&String::from_utf8_lossy(&b.cli(&["trace", "user@b.example", "--json"]).stdout));
    let told = || ask().iter().find(|view| view["host"] == "a").map(|view| story(std::slice::from_ref(view)));
    wait_until("its origin tells", 3 * SOON, || told().is_some_and(|told| told.contains(&"a delivered".to_owned())));
    assert!(!Value::from(ask()).to_string().contains("secret@sink.test"), "{:?}", ask());
    let all = a.ok(&["trace", "user@b.example", "--json"]);
    assert!(all.contains("secret@sink.test") && items(&all).len() == 2, "the origin hears all of both: {all}");
}
