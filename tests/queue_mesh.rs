//! The queue of one member looked into and steered from another, through a third: who may, who may not, and
//! what is shown when one does not answer.

mod support;

use serde_json::Value;
use support::agent::{Agent, Builder, items};
use support::client::{Client, Way};
use support::mesh::{join_with, named, status, wait_members};
use support::net::{SOON, own_address, wait_until};

/// Messages that take several answers to list.
const MANY: usize = 200;

/// A host that members reach at its own address, whose mail for dead.test waits.
fn host(name: &str) -> Builder {
    named(name).route("dead.test", (own_address(), 2525).into())
}

fn join(member: &Agent, agent: &Agent, caps: &str) {
    join_with(member, agent, &["--caps", caps]);
}

fn wait_known(agents: &[&Agent]) {
    wait_members(agents, 3 * SOON, |member| member["reach"] != "unknown");
}

fn id_of(agent: &Agent) -> String {
    status(agent)["node"].as_str().expect("an id").to_owned()
}

fn submit(agent: &Agent, count: usize) -> Vec<String> {
    let mut client = Client::connect(agent.smtp());
    client.ehlo();
    let one = |n: usize| {
        let content = format!("Subject: {n}\r\n\r\nhello\r\n");
        client.deliver("sender@client.test", &["user@dead.test"], content.as_bytes(), Way::Data).queue_id()
    };
    (0..count).map(one).collect()
}

/// Runs a command that is to fail with 1, and returns what it said.
fn fails(agent: &Agent, words: &[&str]) -> String {
    let output = agent.cli(words);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{words:?}: {said}");
    said
}

fn states(agent: &Agent) -> Vec<Value> {
    items(&agent.ok(&["queue", "list", "--json"])).iter().map(|message| message["state"].clone()).collect()
}

/// Neither end can be dialled, so that all questions pass through the one in the middle.
#[test]
fn a_member_looks_into_another_queue_and_steers_it_where_it_may() {
    let end = |name| host(name).set("mesh.reach", "\"dials-out\"");
    let (a, b, c) = (end("a").start(), host("b").start(), end("c").set("mesh.operators", "[]").start());
    join(&b, &a, "relay,queue");
    join(&b, &c, "relay");
    wait_known(&[&a, &b, &c]);
    let ids = submit(&c, 3);
    let listed = items(&a.ok(&["queue", "list", "--peer", "c", "--json"]));
    let found: Vec<&str> = listed.iter().map(|message| message["id"].as_str().expect("an id")).collect();
    assert_eq!(found, ids);
    assert!(a.ok(&["queue", "show", &ids[1], "--peer", "c"]).contains("user@dead.test"));
    assert!(a.ok(&["queue", "--peer", "c", "why", &ids[1]]).contains("dead.test"));
    assert!(a.ok(&["queue", "stats", "--peer", "c"]).contains("3 messages"));
    assert!(a.ok(&["queue", "hold", "--all", "--dry-run", "--peer", "c"]).contains("would_change"));
    assert!(fails(&a, &["queue", "show", "0000000000001", "--peer", "c"]).contains("c: the queue has no message"));
    assert!(fails(&a, &["queue", "list", "--peer", "a"]).contains("is this host itself"));

    // Who has no right does not see; who may see may not touch.
    let said = fails(&c, &["queue", "list", "--peer", "b"]);
    assert!(said.contains("b: it does not let this host look into its queue") && said.contains(&id_of(&c)), "{said}");
    let said = fails(&a, &["queue", "hold", "--all", "--peer", "c"]);
    assert!(said.contains("c: it does not let this host steer its queue") && said.contains(&id_of(&a)), "{said}");
    assert!(!states(&c).contains(&"held".into()));

    c.edit_config("operators = []", &format!("operators = [{:?}]", id_of(&a)));
    c.ok(&["reload"]);
    a.ok(&["queue", "hold", &ids[0], "--peer", "c"]);
    assert_eq!(states(&c)[0], "held");
    let is_noted = |line: &str| line.contains("\theld\t") && line.contains("\ta (");
    wait_until("who did it is written down", SOON, || c.ok(&["trace", &ids[0]]).lines().any(is_noted));
    a.ok(&["queue", "release", &ids[0], "--peer", "c"]);
    assert!(!states(&c).contains(&"held".into()));
    a.ok(&["queue", "remove", "--to", "*@dead.test", "--yes", "--peer", "c"]);
    wait_until("the queue is empty", SOON, || c.queued() == 0);
    // What holds for one holds for nobody else.
    assert!(fails(&b, &["queue", "retry", "--all", "--peer", "c"]).contains("does not let this host steer"));
}

#[test]
fn a_long_queue_comes_in_pages_and_in_order() {
    let (a, b) = (host("a").start(), host("b").start());
    join(&a, &b, "relay");
    wait_known(&[&a, &b]);
    let ids = submit(&b, MANY);
    let list = |words: &[&str]| {
        let messages = items(&a.ok(&[&["queue", "list", "--peer", "b", "--json"], words].concat()));
        messages.iter().map(|message| message["id"].as_str().expect("an id").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(list(&[]), ids);
    assert_eq!(list(&["--limit", "150"]), ids[..150]);
}

#[test]
fn all_queues_stand_beside_each_other_and_who_does_not_tell_is_named() {
    let (a, b, mut c) = (host("a").start(), host("b").start(), host("c").start());
    join(&a, &b, "relay");
    join(&a, &c, "relay");
    wait_known(&[&a, &b, &c]);
    let (at_a, at_b) = (submit(&a, 1), submit(&b, 2));
    let text = a.ok(&["queue", "list", "--mesh"]);
    let lines: Vec<String> = text.lines().map(|line| line.split('\t').take(2).collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(lines, [format!("a {}", at_a[0]), format!("b {}", at_b[0]), format!("b {}", at_b[1])]);
    let stats = items(&a.ok(&["queue", "stats", "--mesh", "--json"]));
    let jobs =
        |node: &str| stats.iter().find(|one| one["node"] == node && one["jobs"].is_u64()).map(|one| &one["jobs"]);
    assert_eq!((jobs("a"), jobs("b"), jobs("c")), (Some(&1.into()), Some(&2.into()), None));
    // b was let in without the right to look, and c is gone.
    c.kill();
    let output = a.cli(&["queue", "list", "--mesh"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 3, "the others are shown");
    assert!(said.contains("warning: c: does not answer") && said.contains("one member did not tell"), "{said}");
    assert!(fails(&b, &["queue", "list", "--mesh"]).contains("2 members did not tell"));
    assert_eq!(b.cli(&["queue", "retry", "--all", "--mesh"]).status.code(), Some(2), "one queue at a time is changed");
}
