//! A host that leaves its mesh: its sessions end, nothing that waits is lost, and the others go on without it. Agents as
//! processes of their own.

mod support;

use std::time::{Duration, Instant};

use support::agent::{Agent, items};
use support::client::{Client, Way};
use support::mesh::{host, join, key_of, mailbox, pass_on, session, status, wait_routed};
use support::net::{SOON, wait_until};
use support::sink::Sink;

fn wait_known(agents: &[&Agent]) {
    wait_routed(agents, 2 * SOON, |member| member["label"] != "");
}

fn send(agent: &Agent, to: &str) {
    Client::hand_over(agent.smtp(), "sender@client.test", &[to], b"Subject: left\r\n\r\nhello\r\n", Way::Data);
}

/// Whichever of the three leaves: the one that asked, the one that passes octets on, the one behind.
#[test]
fn what_is_passed_on_ends_when_one_of_the_three_leaves() {
    for leaves in 0..3 {
        let agents = ["v", "asks", "behind"].map(|name| host(name).metrics().start());
        let [v, asks, behind] = &agents;
        join(v, asks, "asks.example");
        join(v, behind, "behind.example");
        wait_known(&[v, asks, behind]);
        let key = key_of(asks);
        let end = status(behind)["node"].as_str().expect("a text").to_owned();
        let mut client = session(&key, v);
        client.ehlo();
        pass_on(&mut client, &key, &end);
        client.expect("MAIL FROM:<>", 250);
        assert_eq!(v.metric("postroad_mesh_through"), 1);
        agents[leaves].ok(&["mesh", "leave"]);
        let begun = Instant::now();
        client.set_timeout(2 * SOON);
        assert_eq!(client.wire().rest(), b"", "it ends without a word");
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
        wait_until("nothing is passed on any more", SOON, || v.metric("postroad_mesh_through") == 0);
        if leaves == 0 {
            // The founder is gone; what it let in stays, and needs it for nothing.
            wait_until("two are left", SOON, || status(asks)["members"].as_array().expect("a list").len() == 2);
            send(asks, "user@behind.example");
            wait_until("it is in the mailbox", 2 * SOON, || mailbox(behind).len() == 1);
        }
    }
}

/// It takes one message an hour, and who sends tries once an hour: that the other one goes at once is for who left.
#[test]
fn mail_that_waits_for_a_member_that_leaves_goes_as_any_mail_does() {
    let smarthost = Sink::new();
    let leaves = host("leaves").set("mesh.quota.all_messages", "1").start();
    let patient = host("a").set("queue.retry_first", "\"1h\"").set("queue.retry_max", "\"4h\"");
    let a = patient.route("*", smarthost.address()).start();
    join(&leaves, &a, "a.example");
    wait_known(&[&leaves, &a]);
    send(&a, "user@leaves.example");
    wait_until("it is in the mailbox", SOON, || mailbox(&leaves).len() == 1);
    send(&a, "user@leaves.example");
    a.wait_logged("450 4.7.28");
    leaves.ok(&["mesh", "leave"]);
    wait_until("a is alone", SOON, || status(&a)["members"].as_array().expect("a list").len() == 1);
    smarthost.expect(1, 2 * SOON);
    a.wait_empty(SOON);
    assert_eq!(mailbox(&leaves).len(), 1);
}

#[test]
fn who_leaves_is_told_of_mail_that_waits_for_members_and_loses_none() {
    let smarthost = Sink::new();
    let mut a = host("a").route("*", smarthost.address()).start();
    let mut b = host("b").start();
    join(&a, &b, "b.example");
    wait_known(&[&a, &b]);
    assert!(b.stop().success());
    send(&a, "user@b.example");
    a.wait_logged(" deferred ");
    let output = a.cli(&["mesh", "leave"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("1 message waits here for members of the mesh"), "{said}");
    assert_eq!((a.queued(), status(&a)["is_member"].as_bool()), (1, Some(true)));
    let waiting = items(&a.ok(&["queue", "list", "--json"]));
    assert_eq!(waiting.len(), 1, "{waiting:?}");
    a.ok(&["mesh", "leave", "--now"]);
    smarthost.expect(1, 2 * SOON);
    a.wait_empty(SOON);
    a.restart();
    assert!(status(&a)["mesh"].is_null(), "it is forgotten, key and all: {}", status(&a));
}

#[test]
fn who_is_in_no_mesh_is_told_so_where_members_are_asked_for() {
    let agent = host("a").start();
    let is_told = || {
        let output = agent.cli(&["mesh", "candidates"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("this host is in no mesh") && said.contains("postroad mesh join TOKEN"), "{said}");
    };
    is_told();
    agent.ok(&["mesh", "init"]);
    assert_eq!(agent.ok(&["mesh", "candidates"]), "no other member is known\n", "a mesh of one");
    agent.ok(&["mesh", "leave"]);
    is_told();
}
