//! The edge of a mesh: whoever takes mail in for a mailbox at another member learns there whether it exists,
//! so that nobody has to send a notification. Agents as processes of their own.

mod support;

use support::agent::{Agent, Builder};
use support::client::Client;
use support::mesh::{self, join, status};
use support::net::{SOON, wait_until};

/// A host that waits for the answer of a home as long as it may: on a busy machine it comes late.
fn host(name: &str) -> Builder {
    mesh::host(name).set("timeouts.mailbox", "\"20s\"")
}

/// A host that strangers write to: nobody may relay through it, and it is an exchange for the others.
fn exchange(name: &str) -> Builder {
    host(name).set("relay.networks", "[]").set("mesh.mx", "true").set("limits.errors", "1000")
}

/// Waits until a host asks the home of a domain.
fn wait_asked(agent: &Agent, domain: &str) {
    wait_until("the home is asked", SOON, || {
        rcpt(&mut sender(agent), &format!("probe@{domain}")).starts_with("550 5.1.1 ")
    });
}

/// Returns a session with a transaction that has begun.
fn sender(agent: &Agent) -> Client {
    let mut client = Client::connect(agent.smtp());
    client.ehlo();
    client.expect("MAIL FROM:<sender@client.test>", 250);
    client
}

fn rcpt(client: &mut Client, to: &str) -> String {
    client.say(&format!("RCPT TO:<{to}>")).text()
}

/// Returns how many recipients were looked up with this answer, as the metrics have it.
fn looked_up(agent: &Agent, answer: &str) -> usize {
    agent.metric(&format!("postroad_mesh_recipients_total{{answer=\"{answer}\"}}"))
}

#[test]
fn who_does_not_exist_at_the_home_is_refused_at_the_edge() {
    let (a, mut b) = (host("a").metrics().start(), host("b").start());
    join(&a, &b, "b.example");
    wait_asked(&a, "b.example");
    let mut client = sender(&a);
    assert!(rcpt(&mut client, "user@b.example").starts_with("250 "));
    assert!(rcpt(&mut client, "USER+tag@B.example").starts_with("250 "));
    for nobody in ["nobody@b.example", "\"../user\"@b.example"] {
        let said = rcpt(&mut client, nobody);
        assert!(said.starts_with("550 5.1.1 the host of this domain has no mailbox"), "{nobody}: {said}");
    }
    // Asked once; what was said is known without the home, and what was not is taken for it.
    let asked = looked_up(&a, "unknown");
    assert!(rcpt(&mut client, "nobody@b.example").starts_with("550 5.1.1"));
    assert_eq!(looked_up(&a, "unknown"), asked);
    b.kill();
    assert!(rcpt(&mut client, "nobody@b.example").starts_with("550 5.1.1"));
    assert!(rcpt(&mut client, "user@b.example").starts_with("250 "));
    for number in 0..20 {
        assert!(rcpt(&mut client, &format!("other{number}@b.example")).starts_with("250 "));
    }
    let silent = looked_up(&a, "silent");
    assert!(silent >= 20, "{silent}");
    assert_eq!(a.log().matches("a member does not say which recipients exist").count(), 1, "said once");
    // It is asked again when it is there; nothing was queued for whom it has not.
    b.start();
    wait_until("the home is asked again", 6 * SOON, || {
        let number = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("later").as_nanos();
        rcpt(&mut sender(&a), &format!("late{number}@b.example")).starts_with("550 5.1.1")
    });
    assert_eq!(a.queued(), 0);
}

#[test]
fn strangers_reach_the_mailboxes_of_members_and_nothing_else() {
    let (a, b) = (exchange("a").start(), host("b").start());
    join(&a, &b, "b.example");
    wait_asked(&a, "b.example");
    let mut client = sender(&a);
    for (to, want) in [
        ("user@b.example", "250 "),
        ("user@a.example", "250 "),
        ("nobody@b.example", "550 5.1.1"),
        ("nobody@a.example", "550 5.1.1"),
        ("user@world.example", "550 5.7.1"),
        ("user%world.example@b.example", "550 5.1.1"),
    ] {
        let said = rcpt(&mut client, to);
        assert!(said.starts_with(want), "{to}: {said}");
    }
    // A host that is no exchange tells strangers as much as any host.
    let c = host("c").set("relay.networks", "[]").start();
    join(&a, &c, "c.example");
    wait_until("it knows the home", SOON, || {
        let status = status(&c);
        let members = status["members"].as_array().expect("a list");
        members.iter().any(|member| member["serves"].to_string().contains("b.example"))
    });
    assert!(rcpt(&mut sender(&c), "user@b.example").starts_with("550 5.7.1"));
}

/// A session may ask for so many; the home is asked no more often, and the next session is as good as ever.
#[test]
fn a_dictionary_is_no_flood_of_questions() {
    const QUESTIONS: usize = 50;
    let (a, b) = (exchange("a").metrics().start(), host("b").start());
    join(&a, &b, "b.example");
    wait_asked(&a, "b.example");
    let before = looked_up(&a, "unknown");
    let mut client = sender(&a);
    let said: Vec<String> =
        (0..QUESTIONS + 20).map(|n| rcpt(&mut client, &format!("name{n}@b.example"))[..9].to_owned()).collect();
    let count = |what: &str| said.iter().filter(|said| *said == what).count();
    assert_eq!((count("550 5.1.1"), count("451 4.3.2")), (QUESTIONS, 20), "{said:?}");
    assert_eq!((looked_up(&a, "unknown") - before, looked_up(&a, "unasked")), (QUESTIONS, 20));
    assert!(rcpt(&mut sender(&a), "user@b.example").starts_with("250 "));
}

/// The home cannot be dialled, and the edge has no link with it: a neighbour of both passes the question on.
#[test]
fn a_home_that_only_dials_out_is_asked_through_a_neighbour() {
    let end = |name| host(name).set("mesh.reach", "\"dials-out\"").start();
    let (a, hub, b) = (end("a"), host("hub").start(), end("b"));
    join(&hub, &a, "a.example");
    join(&hub, &b, "b.example");
    wait_asked(&a, "b.example");
    assert!(rcpt(&mut sender(&a), "user@b.example").starts_with("250 "));
}
