//! The last resort of mail in a mesh: a message that can only go back the way it came goes through a member that
//! passes octets on and takes no responsibility for it. Agents as processes of their own; who asks for what it
//! may not is a session of this test under the key of a member.

mod support;

use std::time::{Duration, Instant};

use postroad_mesh::{MeshMessageId, Passage, SecretKey};
use rustix::process::Signal;
use serde_json::Value;
use support::agent::{Agent, items};
use support::client::{Client, Way};
use support::mesh::{host, join, join_with, key_of, mailbox, pass_on, session, status, wait_routed};
use support::net::{SOON, wait_until};

/// Waits until everybody knows what all say of themselves.
fn wait_known(agents: &[&Agent]) {
    wait_routed(agents, 3 * SOON, |member| member["serves"] != Value::Array(Vec::new()));
}

fn send(agent: &Agent, to: &str, content: &[u8]) {
    Client::hand_over(agent.smtp(), "sender@client.test", &[to], content, Way::Data);
}

/// Returns the id of the only message in a queue.
fn only(agent: &Agent) -> String {
    let listed = items(&agent.ok(&["queue", "list", "--json"]));
    assert_eq!(listed.len(), 1, "{listed:?}");
    listed[0]["id"].as_str().expect("an id").to_owned()
}

/// Returns with how many connections a member has come.
fn connections(agent: &Agent, label: &str) -> u64 {
    let status = status(agent);
    let members = status["members"].as_array().expect("a list");
    let found = members.iter().find(|member| member["label"] == label);
    found.and_then(|member| member["connections"].as_u64()).unwrap_or_default()
}

fn node(agent: &Agent) -> String {
    status(agent)["node"].as_str().expect("a text").to_owned()
}

/// A home that dials out comes to x alone, and is asleep: mail that enters at v is held by x. When it wakes it
/// comes to v alone, which the message has visited. While it sleeps again v says so, and is asked again.
#[test]
fn what_can_only_go_back_goes_through_a_member_that_passes_octets_on() {
    let content =
        [b"Subject: astray\r\n\r\n".to_vec(), b"All the way round, and back again.\r\n".repeat(20_000)].concat();
    let v = host("v").metrics().start();
    let mut x = host("x").set("mesh.holds", "\"14d\"").start();
    let home = host("h").set("mesh.reach", "\"dials-out\"").set("mesh.pickups", "[\"x\"]");
    let mut h = home.start();
    join(&v, &x, "x.example");
    join(&v, &h, "h.example");
    wait_known(&[&v, &x, &h]);
    wait_until("it has come to x", 3 * SOON, || connections(&x, "h") > 0);
    assert!(h.stop().success());
    wait_until("it is away", SOON, || connections(&x, "h") == 0);
    wait_until("the way leads over x", 2 * SOON, || {
        String::from_utf8_lossy(&v.cli(&["explain", "user@h.example"]).stdout).contains("by the mesh: x")
    });
    send(&v, "user@h.example", &content);
    wait_until("x holds it", 2 * SOON, || x.queued() == 1 && v.queued() == 0);
    let id = only(&x);
    assert!(x.stop().success());
    h.edit_config("pickups = [\"x\"]", "pickups = [\"v\"]");
    h.start();
    wait_until("it has come to v", 3 * SOON, || connections(&v, "h") > 0);
    assert!(h.stop().success());
    wait_until("it is away again", SOON, || connections(&v, "h") == 0);
    // What x knows is old when it begins.
    x.start();
    wait_until("x is told why not, and tells it", 6 * SOON, || {
        x.cli(&["queue", "retry", "--all"]);
        x.ok(&["queue", "why", &id]).contains("no way from here to h (")
    });
    h.start();
    wait_until("it is in the mailbox", 6 * SOON, || {
        x.cli(&["queue", "retry", "--all"]);
        mailbox(&h).len() == 1
    });
    wait_until("nobody has it any more", 2 * SOON, || [&v, &x, &h].iter().all(|agent| agent.queued() == 0));
    let letter = mailbox(&h).remove(0);
    let lines = |text: &str| text.replace("\r\n", "\n");
    let sent = String::from_utf8(content).expect("ASCII");
    assert!(lines(&letter).ends_with(&lines(&sent)), "as it was sent: {}", &letter[..2_000]);
    let by = |name: &str| letter.matches(&format!("by {name}.test")).count();
    assert_eq!((by("v"), by("x"), by("h")), (1, 1, 1), "each of them took it once: {}", &letter[..2_000]);
    let told = x.ok(&["trace", &id, "--json"]);
    assert!(told.contains("through v ("), "{told}");
    v.wait_logged("octets are passed on between two members");
    // Ordinary mail goes its ordinary way again.
    send(&v, "user@h.example", b"Subject: straight\r\n\r\nhello\r\n");
    wait_until("it is in the mailbox", 3 * SOON, || mailbox(&h).len() == 2);
    wait_until("nothing is passed on any more", SOON, || v.metric("postroad_mesh_through") == 0);
    assert_eq!(v.logged("octets are passed on"), 1);
}

/// Over two members, one of them twice: each is under TLS with whoever asks, and dials the next.
#[test]
fn members_pass_octets_on_through_one_another() {
    let (v, w) = (host("v").start(), host("w").start());
    let mut x = host("x").start();
    join(&v, &w, "w.example");
    join(&v, &x, "x.example");
    wait_known(&[&v, &w, &x]);
    let key = key_of(&x);
    assert!(x.stop().success());
    let mut client = session(&key, &v);
    client.ehlo();
    pass_on(&mut client, &key, &node(&w));
    pass_on(&mut client, &key, &node(&v));
    let me = key.public().id();
    let passage = Passage::new(MeshMessageId::new(1, &[b"x"]), me).by_way_of(&me).expect("room");
    client.expect(&format!("MAIL FROM:<user@x.example> XMESH={passage}"), 250);
    client.expect("RCPT TO:<user@v.example>", 250);
    assert_eq!(client.content(b"Subject: round\r\n\r\nhello\r\n", Way::Data).code, 250);
    // Where the octets come from says nothing: this host may relay from there, and nobody may within.
    client.expect("MAIL FROM:<user@x.example>", 250);
    client.expect("RCPT TO:<user@elsewhere.test>", 451);
    client.quit();
    wait_until("it is in the mailbox", SOON, || mailbox(&v).len() == 1);
    assert_eq!(w.queued() + mailbox(&w).len(), 0, "w took nothing");
}

/// What is asked of a member that passes octets on: it names members, it is bounded, and it ends with whoever is
/// revoked.
#[test]
fn octets_are_passed_on_for_members_to_members_and_for_nobody_else() {
    let v = host("v").metrics().start();
    let (asks, bare) = (host("asks").start(), host("bare").start());
    let mut away = host("away").set("mesh.reach", "\"dials-out\"").start();
    join(&v, &asks, "asks.example");
    join(&v, &away, "away.example");
    join_with(&v, &bare, &["--caps", "trace", "--serves", "bare.example"]);
    wait_known(&[&v, &asks, &bare, &away]);
    let asleep = node(&away);
    assert!(away.stop().success());
    let refused = |key: &SecretKey, node: &str| {
        let mut client = session(key, &v);
        assert!(!client.ehlo().offers("XVIA"));
        client.say(&format!("XVIA {node}")).text()
    };
    let own = node(&v);
    let stranger = SecretKey::from_seed(&[9; 32]);
    assert!(refused(&stranger, &own).starts_with("500 5.5.2 "));
    let key = key_of(&asks);
    let told = refused(&key_of(&bare), &own);
    assert!(told.starts_with("451 4.7.1 "), "{told}");
    for nobody in [stranger.public().id().to_string(), node(&asks), "xyz".to_owned()] {
        let told = refused(&key, &nobody);
        assert!(told.starts_with("451 4.4.4 no such member"), "{nobody}: {told}");
    }
    assert!(v.metric("postroad_mesh_misdeeds_total{what=\"through\"}") >= 3);
    assert!(v.ok(&["mesh", "status"]).contains("octets to be passed on"), "it is shown to people");
    wait_until("who sleeps is not here", SOON, || connections(&v, "away") == 0);
    let told = refused(&key, &asleep);
    assert!(told.starts_with("451 4.4.1 no way from here to away ("), "{told}");
    // So many of one member at a time, and no more.
    let mut kept: Vec<Client> = (0..8)
        .map(|_| {
            let mut client = session(&key, &v);
            client.ehlo();
            client.expect(&format!("XVIA {own}"), 220);
            client
        })
        .collect();
    let told = refused(&key, &own);
    assert!(told.starts_with("451 4.3.2 "), "{told}");
    v.ok(&["mesh", "refuse", "asks"]);
    let begun = Instant::now();
    for client in &mut kept {
        client.set_timeout(2 * SOON);
        assert_eq!(client.wire().rest(), b"", "it ends without a word");
    }
    // By itself it would end when the handshake within takes too long.
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}

/// Whoever is at the other end is stopped in its tracks: only who passes octets on can have ended what ends.
#[test]
fn what_is_passed_on_ends_when_either_end_is_revoked() {
    let v = host("v").metrics().start();
    let [voice, asks, behind] = ["voice", "asks", "behind"].map(|name| {
        let agent = host(name).start();
        join(&v, &agent, &format!("{name}.example"));
        agent
    });
    wait_known(&[&v, &voice, &asks, &behind]);
    let opened = |key: &SecretKey| {
        let mut client = session(key, &v);
        client.ehlo();
        pass_on(&mut client, key, &node(&behind));
        client.expect("MAIL FROM:<>", 250);
        client
    };
    let (mut of_asks, mut of_voice) = (opened(&key_of(&asks)), opened(&key_of(&voice)));
    assert_eq!(v.metric("postroad_mesh_through"), 2);
    behind.signal(Signal::STOP);
    let revoke = |label: &str| {
        for agent in [&voice, &v] {
            agent.ok(&["mesh", "revoke", label, "--reason", "stolen"]);
        }
        Instant::now()
    };
    let ends = |client: &mut Client, since: Instant| {
        client.set_timeout(2 * SOON);
        assert_eq!(client.wire().rest(), b"", "it ends without a word");
        assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    };
    ends(&mut of_asks, revoke("asks"));
    wait_until("one is left", SOON, || v.metric("postroad_mesh_through") == 1);
    ends(&mut of_voice, revoke("behind"));
    wait_until("none is left", SOON, || v.metric("postroad_mesh_through") == 0);
    behind.signal(Signal::CONT);
}

/// What is passed on for a member is its own, and never cut: it is told when it asks again.
#[test]
fn octets_that_are_passed_on_count_against_the_quota_of_who_asked() {
    let v = host("v").set("mesh.quota.all_data", "\"200KB\"").metrics().start();
    let (asks, behind) = (host("asks").start(), host("behind").start());
    join(&v, &asks, "asks.example");
    join(&v, &behind, "behind.example");
    wait_known(&[&v, &asks, &behind]);
    let (key, end) = (key_of(&asks), node(&behind));
    let mut client = session(&key, &v);
    client.ehlo();
    pass_on(&mut client, &key, &end);
    let content = [b"Subject: much\r\n\r\n".to_vec(), b"More than it may have passed on.\r\n".repeat(10_000)].concat();
    let me = key.public().id();
    let passage = Passage::new(MeshMessageId::new(1, &[b"x"]), me).by_way_of(&me).expect("room");
    client.expect(&format!("MAIL FROM:<user@asks.example> XMESH={passage}"), 250);
    client.expect("RCPT TO:<user@behind.example>", 250);
    assert_eq!(client.content(&content, Way::Data).code, 250, "what has begun goes on");
    let asked = |key: &SecretKey| {
        let mut client = session(key, &v);
        client.ehlo();
        client.say(&format!("XVIA {end}")).text()
    };
    let told = asked(&key);
    assert!(told.starts_with("450 4.7.28 ") && told.contains("quota of all_data"), "{told}");
    let mut mail = session(&key, &v);
    mail.ehlo();
    mail.expect("MAIL FROM:<user@asks.example>", 450);
    let said = v.ok(&["mesh", "status"]);
    assert!(said.contains("over its quota: asks, "), "{said}");
    client.expect("NOOP", 250);
    assert!(v.metric("postroad_mesh_misdeeds_total{what=\"over_quota\"}") >= 2);
    v.edit_config("quota.all_data = \"200KB\"", "quota.all_data = \"2GB\"");
    v.ok(&["reload"]);
    assert!(asked(&key).starts_with("220 "));
    client.quit();
    wait_until("it is in the mailbox", SOON, || mailbox(&behind).len() == 1);
}
