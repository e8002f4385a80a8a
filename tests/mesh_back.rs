//! Members that were away and come back as they were: mail that waits for them goes at once, although nothing that
//! they say of themselves has changed. Agents as processes of their own.

mod support;

use support::agent::{Agent, Builder, items};
use support::client::{Client, Way};
use support::mesh::{host, join, join_with, mailbox, status, wait_members};
use support::net::{SOON, wait_until};

/// A host that tries as seldom as hosts do outside of tests.
fn patient(name: &str) -> Builder {
    host(name).set("queue.retry_first", "\"1h\"").set("queue.retry_max", "\"4h\"")
}

/// Sends mail for somebody who is away, and has it tried so often that the next time is minutes ahead.
fn leave_waiting(agent: &Agent, to: &str) {
    let mut client = Client::connect(agent.smtp());
    client.ehlo();
    let reply = client.deliver("sender@client.test", &[to], b"Subject: waits\r\n\r\nhello\r\n", Way::Data);
    assert_eq!(reply.code, 250, "{}", reply.text());
    client.quit();
    for times in 1..=8 {
        agent.wait_logged_times(" deferred ", times);
        agent.wait_deferred(SOON);
        if times < 8 {
            agent.ok(&["queue", "retry", "--all"]);
        }
    }
    let listed = items(&agent.ok(&["queue", "list", "--json"]));
    let why = agent.ok(&["queue", "why", listed[0]["id"].as_str().expect("an id")]);
    assert!(why.contains("failures in a row"), "{why}");
}

/// Returns whether a member has a link with another one.
fn is_linked(agent: &Agent, label: &str) -> bool {
    let status = status(agent);
    let members = status["members"].as_array().expect("a list");
    let found = members.iter().find(|member| member["label"] == label);
    found.is_some_and(|member| ["dialled", "accepted"].contains(&member["link"].as_str().expect("a text")))
}

#[test]
fn mail_for_a_member_that_was_away_goes_as_soon_as_it_has_a_link_again() {
    let (a, mut m) = (patient("a").start(), host("m").start());
    join(&a, &m, "m.example");
    wait_members(&[&a, &m], 2 * SOON, |member| member["label"] != "");
    assert!(m.stop().success());
    leave_waiting(&a, "user@m.example");
    m.start();
    wait_until("it is in the mailbox", 4 * SOON, || mailbox(&m).len() == 1);
    a.wait_empty(SOON);
}

/// Nobody can dial the one that has the mail, and that one has all the links that it wants.
#[test]
fn who_has_no_link_with_a_member_asks_now_and_then_whether_it_is_back() {
    let a = patient("a").set("mesh.reach", "\"dials-out\"").start();
    let others = ["b", "c", "d"].map(|name| host(name).start());
    let mut m = host("m").start();
    let [b, c, d] = &others;
    // One that may not send through others has no other way.
    join_with(b, &a, &["--caps", "trace", "--serves", "a.example"]);
    for (agent, serves) in [(c, "c.example"), (d, "d.example"), (&m, "m.example")] {
        join(b, agent, serves);
    }
    wait_members(&[&a, b, c, d, &m], 3 * SOON, |member| member["label"] != "");
    assert!(m.stop().success());
    wait_until("it has links with all others", 6 * SOON, || {
        ["b", "c", "d"].iter().all(|label| is_linked(&a, label)) && !is_linked(&a, "m")
    });
    leave_waiting(&a, "user@m.example");
    m.start();
    wait_until("it is in the mailbox", 10 * SOON, || mailbox(&m).len() == 1);
    a.wait_logged("a member that mail waits for is there again");
}
