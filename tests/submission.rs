//! Submission (RFC 6409) on ports with STARTTLS and with TLS from the first octet, and what keeps
//! the agent from being an open relay.

mod support;

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};

use base64::prelude::{BASE64_STANDARD, Engine};
use support::agent::{Agent, Builder, POSTROAD, make_maildir};
use support::client::{Client, Way};
use support::net::{SOON, wait_until};
use support::sink::Sink;
use support::users;

const CONTENT: &[u8] = b"From: <alice@local.test>\r\nSubject: x\r\n\r\nbody\r\n";

/// Where strangers come from: no relay network holds it.
const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 200, 0, 1));

/// An agent with users alice and bob, the local domain local.test, and everything else to the sink.
fn agent(sink: &Sink) -> Agent {
    let builder = Builder::new().submission();
    make_maildir(&builder.path("mail/alice"));
    make_maildir(&builder.path("mail/bob"));
    let users = users::line("alice", "secret of alice", "alice@local.test,sales@local.test")
        + &users::line("bob", "secret of bob", "bob@local.test");
    std::fs::write(builder.path("users"), users).expect("writable");
    builder
        .set("relay.networks", "[\"127.0.0.1/32\"]")
        .set("users.file", "\"users\"")
        .set("limits.auth_failures", "100")
        .table("local", "domain = \"local.test\"\nmaildir = \"mail/{user}\"")
        .route("*", sink.address())
        .start()
}

/// Logs in as alice on the port with STARTTLS.
fn alice(agent: &Agent) -> Client {
    let mut client = Client::connect(agent.submission());
    client.ehlo();
    client.starttls();
    assert_eq!(client.auth_plain("alice", "secret of alice").code, 235);
    client
}

#[test]
fn a_password_is_asked_for_under_tls_only() {
    let sink = Sink::new();
    let agent = agent(&sink);
    let mut client = Client::connect(agent.submission());
    let offer = client.ehlo();
    assert!(offer.offers("STARTTLS") && !offer.offers("AUTH"), "{offer:?}");
    assert!(client.auth_plain("alice", "secret of alice").code >= 500, "no password in the clear");
    assert_eq!(client.say("MAIL FROM:<alice@local.test>").code, 530);
    let offer = client.starttls();
    assert!(!offer.offers("STARTTLS"), "{offer:?}");
    let line = offer.lines.iter().find(|line| line.starts_with("AUTH ")).expect("AUTH under TLS");
    assert!(line.contains("PLAIN") && line.contains("LOGIN"), "{line}");
    assert_eq!(client.say("MAIL FROM:<alice@local.test>").code, 530, "TLS alone is no login");
    assert_eq!(client.auth_plain("alice", "wrong").code, 535);
    assert_eq!(client.auth_plain("nobody", "secret of alice").code, 535);
    assert_eq!(client.auth_plain("alice", "secret of alice").code, 235);
    assert_eq!(client.deliver("alice@local.test", &["x@away.test"], CONTENT, Way::Data).code, 250);
    client.quit();

    let mut client = Client::connect_tls(agent.submissions());
    assert!(client.ehlo().offers("AUTH"));
    assert_eq!(client.auth_login("bob", "secret of bob").code, 235);
    assert_eq!(client.deliver("bob@local.test", &["y@away.test"], CONTENT, Way::Bdat(9)).code, 250);
    sink.expect(2, SOON);

    let mut client = Client::connect(agent.smtp());
    client.ehlo();
    assert!(!client.starttls().offers("AUTH"), "port 25 is for hosts");
}

/// Adds a user as an admin does, with the password on standard input.
fn add_user(agent: &Agent, words: &[&str], password: &str) {
    let mut child = Command::new(POSTROAD)
        .arg("--config")
        .arg(agent.config_path())
        .args(["user", "add"])
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("the binary runs");
    writeln!(child.stdin.take().expect("it is piped"), "{password}").expect("it reads the password");
    assert!(child.wait().expect("it is a child").success());
}

#[test]
fn a_user_can_log_in_as_soon_as_there_is_one() {
    let sink = Sink::new();
    let agent = agent(&sink);
    add_user(&agent, &["carol", "--address", "@local.test"], "a new password");
    let mut client = Client::connect_tls(agent.submissions());
    client.ehlo();
    assert_eq!(client.auth_plain("carol", "a new password").code, 235);
    assert_eq!(client.deliver("anyone@local.test", &["x@away.test"], CONTENT, Way::Data).code, 250);
    agent.ok(&["user", "remove", "carol"]);
    client.expect("MAIL FROM:<anyone@local.test>", 550);
    assert_eq!(sink.expect(1, SOON).len(), 1);
}

#[test]
fn guessing_ends_the_session() {
    let sink = Sink::new();
    let agent = agent(&sink);
    let mut client = Client::connect_tls(agent.submissions());
    client.ehlo();
    let codes: Vec<u16> = std::iter::from_fn(|| {
        let word = BASE64_STANDARD.encode("\0alice\0guess");
        client.try_send(format!("AUTH PLAIN {word}\r\n")).ok()?;
        client.try_reply().ok().map(|reply| reply.code)
    })
    .take(20)
    .collect();
    assert!(codes.len() < 10 && codes.iter().all(|code| [535, 421].contains(code)), "{codes:?}");
}

#[test]
fn nobody_logs_in_as_somebody_else() {
    let sink = Sink::new();
    let agent = agent(&sink);
    let mut client = Client::connect_tls(agent.submissions());
    client.ehlo();
    let foreign = BASE64_STANDARD.encode("bob\0alice\0secret of alice");
    assert!(client.say(&format!("AUTH PLAIN {foreign}")).code >= 500, "PLAIN with a foreign authorization identity");
    let own = BASE64_STANDARD.encode("alice\0alice\0secret of alice");
    assert_eq!(client.say(&format!("AUTH PLAIN {own}")).code, 235);
}

#[test]
fn the_sender_belongs_to_the_login() {
    let sink = Sink::new();
    let agent = agent(&sink);
    let mut client = alice(&agent);
    for foreign in ["bob@local.test", "alice@away.test", "alice.local.test@away.test", "\"alice@local.test\"@away.test"]
    {
        let reply = client.say(&format!("MAIL FROM:<{foreign}>"));
        assert!([550, 553].contains(&reply.code) && reply.text().contains("5.7.1"), "{foreign}: {}", reply.text());
    }
    for own in ["alice@local.test", "sales@local.test", "Alice@LOCAL.test", ""] {
        client.expect(&format!("MAIL FROM:<{own}>"), 250);
        client.expect("RSET", 250);
    }
    assert_eq!(client.deliver("sales@local.test", &["x@away.test", "bob@local.test"], CONTENT, Way::Data).code, 250);
    sink.expect(1, SOON);
}

#[test]
fn missing_fields_are_completed_for_authors_and_only_for_them() {
    let sink = Sink::new();
    let agent = agent(&sink);
    let complete = b"Date: Mon, 1 Jan 2024 00:00:00 +0000\r\nMessage-ID: <1@local.test>\r\n\
        From: <alice@local.test>\r\n\r\nbody\r\n";
    let bare = b"Subject: x\r\n\r\nbody\r\nDate: not a field\r\n";
    let mut client = alice(&agent);
    assert_eq!(client.deliver("alice@local.test", &["bare@away.test"], bare, Way::Data).code, 250);
    assert_eq!(client.deliver("alice@local.test", &["complete@away.test"], complete, Way::Bdat(3)).code, 250);
    let mut relay = Client::connect(agent.smtp());
    relay.ehlo();
    assert_eq!(relay.deliver("alice@local.test", &["relayed@away.test"], bare, Way::Data).code, 250);
    let messages = sink.expect(3, SOON);
    let arrived = |name: &str| {
        let found = messages.iter().find(|message| message.recipients[0].starts_with(name)).expect("it arrived");
        String::from_utf8(found.relayed().to_vec()).expect("ASCII")
    };
    assert_eq!(arrived("complete").as_bytes(), complete);
    assert_eq!(arrived("relayed").as_bytes(), bare);
    let completed = arrived("bare");
    let (header, body) = completed.split_once("\r\n\r\n").expect("header and body");
    assert_eq!(body, "body\r\nDate: not a field\r\n");
    for field in ["\r\nDate: ", "\r\nMessage-ID: <", "\r\nFrom: "] {
        let count = format!("\r\n{header}").matches(field).count();
        assert_eq!(count, 1, "{field:?} in {header}");
    }
    assert!(header.contains("alice@local.test") && header.contains("Subject: x"), "{header}");
    let trace = messages.iter().find(|message| message.recipients[0].starts_with("bare")).expect("it arrived");
    assert!(String::from_utf8_lossy(&trace.content).contains("with ESMTPSA "));
}

/// Every form in which relays were once opened, said by a stranger: none is accepted.
#[test]
fn no_trick_relays() {
    let sink = Sink::new();
    let agent = agent(&sink);
    let tricks = [
        "<user@away.test>",
        "<@local.test:user@away.test>",
        "<@away.test:user@away.test>",
        "<@local.test,@away.test:user@away.test>",
        "<user%away.test@local.test>",
        "<user%away.test@[127.0.0.1]>",
        "<\"user@away.test\"@local.test>",
        "<\"user%away.test\"@local.test>",
        "<away.test!user@local.test>",
        "<\"away.test!user\"@local.test>",
        "<user@away.test@local.test>",
        "<user@local.test@away.test>",
        "<user@[192.0.2.1]>",
        "<user@[IPv6:2001:db8::1]>",
        "<user@[local.test]>",
        "<user@away.test.>",
        "<user@local.test.away.test>",
        "<user@xlocal.test>",
        "<user@.local.test>",
        "<user@away.test\\@local.test>",
        "<alice@local.test>@away.test",
        "<alice@local.test,user@away.test>",
        "<alice@local.test user@away.test>",
        "<user@away.test:alice@local.test>",
        "<user>",
        "<user@>",
        "<@local.test>",
        "<>",
        "user@away.test",
        "<user@bücher.test>",
        "<user@away\u{3002}test>",
        "<alice@local.test> ORCPT=rfc822;user@away.test NOTIFY=NEVER RELAY=YES",
    ];
    let senders = ["<x@away.test>", "<>", "<alice@local.test>", "<postmaster@mx.test>", "<x@[127.0.0.1]>"];
    for sender in senders {
        for trick in tricks {
            let mut client = Client::connect_from(STRANGER, agent.smtp());
            client.expect("EHLO localhost", 250);
            if client.say(&format!("MAIL FROM:{sender}")).code != 250 {
                continue;
            }
            let reply = client.say(&format!("RCPT TO:{trick}"));
            assert!((500..600).contains(&reply.code), "{sender} to {trick}: {}", reply.text());
        }
    }
    let mut client = Client::connect_from(STRANGER, agent.smtp());
    client.ehlo();
    assert_eq!(
        client.deliver("x@away.test", &["alice@local.test"], CONTENT, Way::Data).code,
        250,
        "local mail is welcome"
    );
    let mut client = Client::connect_from(STRANGER, agent.submission());
    client.ehlo();
    client.starttls();
    assert_eq!(client.say("MAIL FROM:<alice@local.test>").code, 530, "submission is for users, wherever they are");
    agent.wait_empty(SOON);
    assert_eq!(sink.commands(), [""; 0]);
}

#[test]
fn what_was_said_before_tls_is_forgotten() {
    let sink = Sink::new();
    let agent = agent(&sink);
    let mut client = Client::connect(agent.smtp());
    client.ehlo();
    client.expect("MAIL FROM:<x@away.test>", 250);
    client.expect("RCPT TO:<y@away.test>", 250);
    let offer = client.say("STARTTLS");
    if offer.code == 220 {
        client.wire().connect_tls().expect("the TLS handshake succeeds");
        assert_eq!(client.say("DATA").code, 503, "no transaction crosses STARTTLS");
        assert_eq!(client.say("MAIL FROM:<x@away.test>").code, 503, "not even EHLO does");
    } else {
        assert_eq!(offer.code, 503, "STARTTLS in a transaction");
    }
}

#[test]
fn octets_behind_starttls_end_the_session() {
    let sink = Sink::new();
    let agent = agent(&sink);
    for injected in ["EHLO evil.test\r\n", "NOOP\r\n", "\r\n", "x"] {
        let mut client = Client::connect(agent.submission());
        client.ehlo();
        client.send(format!("STARTTLS\r\n{injected}"));
        let rest = String::from_utf8_lossy(&client.wire().rest()).into_owned();
        let lines: Vec<&str> = rest.lines().collect();
        assert!(lines.len() <= 1 && !rest.starts_with("220"), "{injected:?}: {rest:?}");
    }
}

#[test]
fn the_log_says_who_handed_a_message_over() {
    let sink = Sink::new();
    let agent = agent(&sink);
    let content = b"From: <alice@local.test>\r\nMessage-ID: <42@app.local.test>\r\n\r\nbody\r\n";
    let mut client = alice(&agent);
    let id = client.deliver("alice@local.test", &["x@away.test"], content, Way::Data).queue_id();
    assert_eq!(client.say("MAIL FROM:<alice@local.test>").code, 250);
    assert_eq!(client.say("RCPT TO:<nobody@local.test>").code, 550);
    // As many clients do, it leaves without QUIT, and TLS without a word.
    drop(client);
    let is_over = || agent.json(&["status", "--json"])["sessions"] == 0;
    wait_until("the session is over", SOON, is_over);
    agent.wait_logged("to=<nobody@local.test>");
    let log = agent.log();
    let line = log.lines().find(|line| line.contains(&id) && line.contains("accepted")).expect("it is in the log");
    for field in ["peer=127.0.0.1", "user=alice", "from=<alice@local.test>", "message_id=<42@app.local.test>"] {
        assert!(line.contains(field), "no {field} in {line}");
    }
    let line = log.lines().find(|line| line.contains("refused")).expect("that, too");
    for field in ["peer=127.0.0.1", "user=alice", "from=<alice@local.test>", "to=<nobody@local.test>"] {
        assert!(line.contains(field), "no {field} in {line}");
    }
    assert!(!log.contains("connection lost") && !log.contains("close_notify"), "{log}");
}
