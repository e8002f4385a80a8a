//! Short of memory: new mail is told to come again, what is there goes on, and once there is room mail
//! is taken again. The agent is never killed for lack of it.

mod support;

use std::time::Duration;

use support::agent::{Agent, Builder};
use support::client::{Client, Way};
use support::net::{SOON, wait_until};
use support::sink::Sink;

const CONTENT: &[u8] = b"Subject: memory\r\n\r\nbody\r\n";
/// Well above what an agent without work has, debug builds included.
const LIMIT: &str = "\"34MB\"";
/// Recipients of an envelope, each of nearly a kilobyte.
const RECIPIENTS: usize = 250;

/// A client that holds a large envelope.
fn envelope(agent: &Agent) -> Option<Client> {
    let mut client = Client::connect(agent.smtp());
    client.ehlo();
    if client.say("MAIL FROM:<a@client.test>").code != 250 {
        return None;
    }
    let domain = ["d".repeat(60).as_str(), &"e".repeat(60), &"f".repeat(60), "away.test"].join(".");
    let original = "o".repeat(440);
    for n in 0..RECIPIENTS {
        client.send(format!("RCPT TO:<{n:060}@{domain}> ORCPT=rfc822;{original}@old.test\r\n"));
    }
    for _ in 0..RECIPIENTS {
        assert_eq!(client.reply().code, 250);
    }
    Some(client)
}

fn mail_code(agent: &Agent) -> u16 {
    let Ok(mut client) = Client::dial(None, agent.smtp()) else { return 0 };
    match client.try_reply() {
        Ok(reply) if reply.code == 220 => {
            client.ehlo();
            client.say("MAIL FROM:<a@client.test>").code
        }
        Ok(reply) => reply.code,
        Err(_) => 0,
    }
}

#[test]
fn short_of_memory_new_mail_is_put_off_and_taken_again_later() {
    let sink = Sink::new();
    let agent = Builder::new().set("limits.memory", LIMIT).route("*", sink.address()).start();
    let mut early = Client::connect(agent.smtp());
    early.ehlo();
    early.envelope("MAIL FROM:<a@client.test>", &["early@away.test"]);
    let mut holding = Vec::new();
    while holding.len() < 400
        && let Some(client) = envelope(&agent)
    {
        holding.push(client);
    }
    assert!(holding.len() < 400, "{}", agent.ok(&["status"]));
    let refused = Client::connect(agent.smtp()).say("NOOP");
    assert!(refused.code == 250 || refused.code == 421, "{}", refused.text());
    let status = agent.json(&["status", "--json"]);
    assert_ne!(status["memory"]["state"], "ample", "{status}");
    assert_eq!(status["memory"]["limit_octets"], 34_000_000, "{status}");
    assert!(agent.ok(&["status"]).contains("new mail is refused until deliveries make room (451 4.3.1)"));
    assert_eq!(early.content(CONTENT, Way::Data).code, 250, "what was begun goes on");
    sink.expect(1, SOON);
    drop(holding);
    wait_until("mail is taken again", Duration::from_secs(30), || mail_code(&agent) == 250);
    let mut late = Client::connect(agent.smtp());
    late.ehlo();
    assert_eq!(late.deliver("a@client.test", &["late@away.test"], CONTENT, Way::Data).code, 250);
    sink.expect(2, SOON);
    let log = agent.log();
    assert!(log.contains("memory is short") && log.contains("memory is ample again"), "{log}");
}

#[test]
fn large_messages_have_a_share_of_their_own_and_are_never_refused_for_it() {
    let sink = Sink::new();
    let agent = Builder::new().set("limits.memory", LIMIT).route("*", sink.address()).start();
    let piece = b"x".repeat(200).into_iter().chain(*b"\r\n").collect::<Vec<u8>>().repeat(1000);
    let mut sessions = Vec::new();
    for n in 0..60 {
        let mut client = Client::connect(agent.smtp());
        client.ehlo();
        client.envelope("MAIL FROM:<a@client.test>", &[&format!("r{n}@away.test")]);
        client.expect("DATA", 354);
        client.send(&piece);
        sessions.push(client);
    }
    let status = agent.json(&["status", "--json"]);
    let used = status["memory"]["used_octets"].as_u64().expect("a number");
    assert!(used < 34_000_000, "60 sessions hold 200 kB each: {status}");
    for client in &mut sessions {
        client.send(b"\r\n.\r\n");
        assert_eq!(client.reply().code, 250);
    }
    sink.expect(60, Duration::from_secs(60));
}
