//! Hosts become a mesh and learn of one another: agents as processes of their own, with the commands
//! that a person would type.

mod support;

use std::time::{Duration, Instant};

use serde_json::Value;
use support::agent::{Agent, Builder};
use support::client::Client;
use support::net::{SOON, wait_until};

/// How long joining may take a person who waits for it; the test's machine is busy.
const JOIN_LIMIT: Duration = Duration::from_secs(5);

/// A host that members reach at its own address, with a domain of its own.
fn host(name: &str) -> Builder {
    let builder = Builder::new();
    let (ip, mail) = (builder.ip(), builder.path("mail"));
    let lines = format!("domain = \"{name}.example\"\nmaildir = \"{}/{{user}}\"", mail.display());
    builder
        .set("mesh.label", &format!("{name:?}"))
        .set("mesh.addresses", &format!("[\"{ip}:2525\"]"))
        .table("local", &lines)
}

fn invite(agent: &Agent, words: &[&str]) -> String {
    agent.ok(&[&["mesh", "invite"], words].concat()).trim().to_owned()
}

fn status(agent: &Agent) -> Value {
    agent.json(&["mesh", "status", "--json"])
}

/// Returns the members that an agent knows, by label, with what they serve.
fn members(agent: &Agent) -> Vec<(String, String)> {
    let status = status(agent);
    let members = status["members"].as_array().expect("a list").iter();
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let serves =
        |member: &Value| member["serves"].as_array().expect("a list").iter().map(text).collect::<Vec<_>>().join(" ");
    let mut members: Vec<_> = members.map(|member| (text(&member["label"]), serves(member))).collect();
    members.sort();
    members
}

fn links(agent: &Agent) -> usize {
    let status = status(agent);
    let members = status["members"].as_array().expect("a list");
    members.iter().filter(|member| ["dialled", "accepted"].contains(&member["link"].as_str().expect("a text"))).count()
}

fn wait_members(agent: &Agent, wanted: &[(&str, &str)]) {
    let mut wanted: Vec<(String, String)> =
        wanted.iter().map(|(label, serves)| ((*label).to_owned(), (*serves).to_owned())).collect();
    wanted.sort();
    wait_until(&format!("the members are {wanted:?}"), SOON, || members(agent) == wanted);
}

#[test]
fn two_commands_make_two_hosts_a_mesh() {
    let (a, b) = (host("a").start(), host("b").start());
    let token = invite(&a, &["--serves", "b.example"]);
    let begun = Instant::now();
    let said = b.ok(&["mesh", "join", &token]);
    assert!(begun.elapsed() < JOIN_LIMIT, "{:?}", begun.elapsed());
    assert!(said.contains("is a member of the mesh a, with a"), "{said}");
    for agent in [&a, &b] {
        wait_members(agent, &[("a", "a.example"), ("b", "b.example")]);
        assert_eq!(links(agent), 1);
    }
    // The invitation was for one.
    let c = host("c").start();
    let refused = c.cli(&["mesh", "join", &token]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("no open invitation fits"), "{said}");
    assert_eq!(members(&a).len(), 2);
}

#[test]
fn three_hosts_learn_of_one_another_through_one() {
    let (a, b, c) = (host("a").start(), host("b").start(), host("c").start());
    for (agent, domain) in [(&b, "b.example"), (&c, "c.example")] {
        agent.ok(&["mesh", "join", &invite(&a, &["--serves", domain])]);
    }
    for agent in [&a, &b, &c] {
        wait_members(agent, &[("a", "a.example"), ("b", "b.example"), ("c", "c.example")]);
        wait_until("everybody has a link with both others", SOON, || links(agent) == 2);
    }
}

#[test]
fn a_restart_keeps_the_membership_and_finds_the_others() {
    let (mut a, mut b) = (host("a").start(), host("b").start());
    b.ok(&["mesh", "join", &invite(&a, &["--serves", "b.example"])]);
    wait_members(&a, &[("a", "a.example"), ("b", "b.example")]);
    let node = status(&b)["node"].clone();
    b.restart();
    assert_eq!(status(&b)["node"], node);
    wait_members(&b, &[("a", "a.example"), ("b", "b.example")]);
    wait_until("they are linked again", SOON, || links(&a) == 1 && links(&b) == 1);
    // What a statement says is on disk before anybody hears it: killed, it is known as well.
    let token = invite(&a, &["--uses", "2"]);
    a.kill();
    a.start();
    wait_members(&a, &[("a", "a.example"), ("b", "b.example")]);
    let c = host("c").start();
    c.ok(&["mesh", "join", &token]);
}

#[test]
fn a_host_is_admitted_by_its_card() {
    let (a, b) = (host("a").start(), host("b").start());
    a.ok(&["mesh", "init", "--label", "ours"]);
    let card = b.ok(&["mesh", "card"]);
    let token = a.ok(&["mesh", "admit", card.trim(), "--label", "b", "--serves", "b.example"]);
    let said = b.ok(&["mesh", "join", token.trim()]);
    assert!(said.contains("the mesh ours"), "{said}");
    wait_members(&a, &[("a", "a.example"), ("b", "b.example")]);
    // What leads to the mesh lets nobody else in.
    let c = host("c").start();
    assert!(!c.cli(&["mesh", "join", token.trim()]).status.success());
}

#[test]
fn faults_name_the_remedy() {
    let (a, b) = (host("a").start(), host("b").start());
    let fails = |agent: &Agent, words: &[&str], what: &str| {
        let output = agent.cli(words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(what) && said.contains("help:"), "{words:?}: {said}");
    };
    fails(&a, &["mesh", "join", "nonsense"], "an invitation begins with mesh1:");
    let token = invite(&a, &[]);
    fails(&b, &["mesh", "join", &token[..token.len() - 3]], "cut short or mistyped");
    fails(&a, &["mesh", "invite", "--caps", "root"], "is none of relay");
    fails(&a, &["mesh", "invite", "--serves", "no domain"], "is no domain");
    fails(&a, &["mesh", "init"], "a member of a mesh already");
    fails(&a, &["mesh", "join", &token], "a member of a mesh already");
    b.ok(&["mesh", "join", &token]);
    fails(&b, &["mesh", "invite"], "may not admit others");
    let c = host("c").build();
    let output = c.cli(&["mesh", "status"]);
    assert_eq!(output.status.code(), Some(75), "{output:?}");
}

/// With STARTTLS and any certificate, as every ordinary host comes.
#[test]
fn an_ordinary_host_sees_nothing_of_the_mesh() {
    let a = host("a").start();
    invite(&a, &[]);
    let mut client = Client::connect(a.smtp());
    let plain = client.ehlo();
    assert!(!plain.lines.iter().any(|line| line.starts_with('X')), "{plain:?}");
    client.expect("XLINK 1", 500);
    let secure = client.starttls();
    assert!(!secure.lines.iter().any(|line| line.starts_with('X')), "{secure:?}");
    client.expect("XLINK 1", 500);
    client.expect("MAIL FROM:<x@y.example> XMESH=1", 555);
}
