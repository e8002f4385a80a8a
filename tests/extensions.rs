//! What a sender asks of the way its mail takes: MT-PRIORITY (RFC 6710), DELIVERBY (RFC 2852) and
//! FUTURERELEASE (RFC 4865). From MAIL through the queue to hosts that offer it and to hosts that do not.

mod support;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use support::agent::{Agent, Builder, items, make_maildir};
use support::client::{Client, Way};
use support::net::{SOON, wait_until};
use support::sink::{Behaviour, Message, Sink};
use support::users;

const CONTENT: &[u8] = b"From: <a@client.test>\r\nSubject: extensions\r\n\r\nbody\r\n";

/// Where strangers come from: no relay network holds it.
const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 200, 0, 1));

/// A sink that offers all that is asked for here.
fn knowing() -> Sink {
    Sink::start(Behaviour { mt_priority: true, deliver_by: Some(0), ..Behaviour::default() })
}

/// Sends a message and returns its queue id.
fn send(client: &mut Client, parameters: &str, to: &str) -> String {
    client.envelope(&format!("MAIL FROM:<a@client.test>{parameters}"), &[to]);
    let reply = client.content(CONTENT, Way::Bdat(1000));
    assert_eq!(reply.code, 250, "{}", reply.text());
    reply.queue_id()
}

fn connect(agent: &Agent) -> Client {
    let mut client = Client::connect(agent.smtp());
    client.ehlo();
    client
}

/// Returns the value of a parameter that came with MAIL.
fn parameter<'a>(message: &'a Message, keyword: &str) -> Option<&'a str> {
    message.mail_parameters.split(' ').find_map(|word| word.strip_prefix(keyword)?.strip_prefix('='))
}

fn trace_of(message: &Message) -> String {
    let field = &message.content[..message.content.len() - message.relayed().len()];
    String::from_utf8_lossy(field).replace("\r\n", "")
}

#[test]
fn a_priority_travels_with_the_message_where_it_is_understood() {
    let (knowing, plain) = (knowing(), Sink::new());
    let builder = Builder::new().route("knows.test", knowing.address()).route("plain.test", plain.address());
    let agent = builder.start();
    let mut client = connect(&agent);
    for number in ["6", "-2", "0"] {
        let asked = format!(" MT-PRIORITY={number}");
        send(&mut client, &asked, "b@knows.test");
        let message = knowing.expect(1, SOON).remove(0);
        assert_eq!(parameter(&message, "MT-PRIORITY"), Some(number));
        assert!(trace_of(&message).contains(&format!(" PRIORITY {number};")), "{}", trace_of(&message));
        knowing.forget();
        send(&mut client, &asked, "b@plain.test");
        assert_eq!(parameter(&plain.expect(1, SOON)[0], "MT-PRIORITY"), None);
        plain.forget();
    }
    send(&mut client, "", "b@knows.test");
    let message = knowing.expect(1, SOON).remove(0);
    assert!(parameter(&message, "MT-PRIORITY").is_none() && !trace_of(&message).contains("PRIORITY"));
    assert_eq!((knowing.complaints(), plain.complaints()), (vec![], vec![]));
}

#[test]
fn a_stranger_may_stand_back_and_not_go_first() {
    let store = Sink::start(Behaviour { lmtp: true, mt_priority: true, ..Behaviour::default() });
    let lmtp = format!("domain = \"local.test\"\nlmtp = \"{}\"\nrecipients = \"any\"", store.address());
    let agent = Builder::new().set("relay.networks", "[\"127.0.0.1/32\"]").table("local", &lmtp).start();
    let mut client = Client::connect_from(STRANGER, agent.smtp());
    assert!(client.ehlo().offers("MT-PRIORITY"));
    let reply = client.expect("MAIL FROM:<a@client.test> MT-PRIORITY=9", 250);
    assert!(reply.text().contains("2.3.6 0 is the priority"), "{}", reply.text());
    client.expect("RCPT TO:<b@local.test>", 250);
    assert_eq!(client.content(CONTENT, Way::Data).code, 250);
    let message = store.expect(1, SOON).remove(0);
    assert_eq!(parameter(&message, "MT-PRIORITY"), Some("0"));
    assert!(trace_of(&message).contains(" PRIORITY 0;"), "{}", trace_of(&message));
    store.forget();
    send(&mut client, " MT-PRIORITY=-9", "b@local.test");
    assert_eq!(parameter(&store.expect(1, SOON)[0], "MT-PRIORITY"), Some("-9"));
}

#[test]
fn the_priority_chooses_the_lane() {
    let agent = Builder::new().set("queue.hold", "true").start();
    let mut client = connect(&agent);
    for (parameter, lane) in [
        ("", "normal"),
        (" MT-PRIORITY=-1", "bulk"),
        (" MT-PRIORITY=0", "normal"),
        (" MT-PRIORITY=3", "normal"),
        (" MT-PRIORITY=4", "urgent"),
    ] {
        let id = send(&mut client, parameter, "b@away.test");
        let why = agent.ok(&["queue", "why", "--json", &id]);
        assert!(why.contains(&format!("\"lane\":\"{lane}\"")), "{parameter}: {why}");
    }
    let id = send(&mut client, " MT-PRIORITY=4", "b@away.test");
    assert!(agent.ok(&["queue", "show", &id]).contains("priority   4"));
}

#[test]
fn a_notification_is_urgent_whatever_it_is_about() {
    let (home, away) = (Sink::new(), knowing());
    home.behave(|sink| sink.rcpt = Arc::new(|_, _| "451 4.2.1 Come back later".into()));
    away.behave(|sink| sink.rcpt = Arc::new(|_, _| "550 5.1.1 No such user".into()));
    let agent = between(&home, &away).start();
    send(&mut connect(&agent), " MT-PRIORITY=-9", "b@away.test");
    let mut why = String::new();
    wait_until("its sender cannot be told yet", SOON, || {
        let list = items(&agent.ok(&["queue", "list", "--json"]));
        let Some(id) = list.iter().find(|one| one["from"] == "<>").and_then(|one| one["id"].as_str()) else {
            return false;
        };
        why = agent.ok(&["queue", "why", "--json", id]);
        why.contains("\"lane\"")
    });
    assert!(why.contains("\"lane\":\"urgent\""), "{why}");
    home.behave(|sink| *sink = Behaviour::default());
    agent.wait_empty(SOON);
}

/// An agent whose notifications go to the first sink and everything else to the second.
fn between(home: &Sink, away: &Sink) -> Builder {
    Builder::new().route("client.test", home.address()).route("*", away.address())
}

/// Returns the only notification that comes, as text without folds.
fn notice(home: &Sink) -> String {
    let message = home.expect(1, SOON).remove(0);
    assert_eq!(message.recipients, ["a@client.test"]);
    String::from_utf8_lossy(&message.content).replace("\r\n ", " ")
}

#[track_caller]
fn assert_says(notice: &str, all: &[&str]) {
    for words in all {
        assert!(notice.contains(words), "no {words:?} in\n{notice}");
    }
}

#[test]
fn the_time_that_is_left_is_passed_on() {
    let (home, away) = (Sink::new(), knowing());
    let agent = between(&home, &away).start();
    let mut client = connect(&agent);
    for (given, words) in [("3600;R", "R"), ("3600;N", "N"), ("-3600;N", "N")] {
        send(&mut client, &format!(" BY={given}"), "b@away.test");
        let message = away.expect(1, SOON).remove(0);
        let (left, mode) = parameter(&message, "BY").and_then(|by| by.split_once(';')).expect("BY");
        let spent = given.split_once(';').expect("a mode").0.parse::<i32>().expect("seconds")
            - left.parse::<i32>().expect("seconds");
        assert!(mode == words && (1..30).contains(&spent), "{given}: {}", message.mail_parameters);
        away.forget();
    }
    agent.wait_empty(SOON);
    assert_eq!((home.count(), away.complaints()), (0, vec![]));
}

#[test]
fn what_must_not_be_late_goes_to_nobody_who_might_be() {
    for (offer, words) in
        [(None, "the next hop does not offer DELIVERBY"), (Some(7200), "the next hop needs more time than is left")]
    {
        let (home, away) = (Sink::new(), Sink::start(Behaviour { deliver_by: offer, ..Behaviour::default() }));
        let agent = between(&home, &away).start();
        send(&mut connect(&agent), " BY=3600;R", "b@away.test");
        let notice = notice(&home);
        let words = format!("X-Postroad; 554 5.4.7 {}: {words}", away.address());
        assert_says(
            &notice,
            &[&words, "Action: failed", "Status: 5.4.7", "Deliver-By-Date: ", "You asked for delivery by"],
        );
        agent.wait_empty(SOON);
        assert_eq!(away.count(), 0, "it was not sent there");
    }
}

#[test]
fn what_is_late_goes_back_when_its_sender_says_so() {
    let (home, away) = (Sink::new(), knowing());
    away.behave(|sink| sink.rcpt = Arc::new(|_, _| "451 4.2.1 Come back later".into()));
    let agent = between(&home, &away).set("queue.retry_first", "\"1h\"").set("queue.retry_max", "\"1h\"").start();
    let begun = Instant::now();
    // Long enough for an attempt on a busy machine.
    send(&mut connect(&agent), " BY=6;R", "b@away.test");
    let notice = notice(&home);
    assert!(begun.elapsed() >= Duration::from_secs(5), "not before its time");
    assert_says(&notice, &["Action: failed", "Status: 5.4.7", "451 4.2.1 Come back later"]);
    agent.wait_empty(SOON);
}

#[test]
fn what_was_held_too_long_goes_back_without_an_attempt() {
    let (home, away) = (Sink::new(), Sink::new());
    let builder = between(&home, &away).set("queue.hold", "true");
    make_maildir(&builder.path("mail/b"));
    let mut agent = builder.table("local", "domain = \"local.test\"\nmaildir = \"mail/{user}\"").start();
    let id = send(&mut connect(&agent), " BY=1;R", "b@local.test");
    std::thread::sleep(Duration::from_millis(1100));
    agent.restart();
    agent.ok(&["queue", "release", &id]);
    assert_says(&notice(&home), &["Status: 5.4.7", "Deliver-By-Date: "]);
    agent.wait_empty(SOON);
    let mailbox = std::fs::read_dir(agent.path("mail/b/new")).expect("readable");
    assert_eq!(mailbox.count(), 0, "late mail is not delivered");
}

#[test]
fn who_asks_for_it_hears_once_that_mail_is_late_and_it_is_still_delivered() {
    let (home, away) = (Sink::new(), knowing());
    away.behave(|sink| sink.rcpt = Arc::new(|_, _| "451 4.2.1 Come back later".into()));
    let agent = between(&home, &away).start();
    send(&mut connect(&agent), " BY=1;N", "b@away.test");
    assert_says(&notice(&home), &["Action: delayed", "Deliver-By-Date: ", "Will-Retry-Until: "]);
    away.behave(|sink| sink.rcpt = Arc::new(|_, _| "250 2.1.5 OK".into()));
    let message = away.expect(1, SOON).remove(0);
    assert!(parameter(&message, "BY").is_some_and(|by| by.starts_with('-') && by.ends_with(";N")));
    agent.wait_empty(SOON);
    assert_eq!(home.count(), 1, "one notice");
}

#[test]
fn the_sender_hears_where_its_time_is_no_longer_watched_and_where_it_is_traced() {
    let (home, plain, knowing) = (Sink::new(), Sink::new(), knowing());
    let builder = Builder::new().route("client.test", home.address()).route("plain.test", plain.address());
    let agent = builder.route("knows.test", knowing.address()).start();
    let mut client = connect(&agent);
    for (by, to, told) in [
        ("3600;N", "b@plain.test", true),
        ("3600;NT", "b@plain.test", true),
        ("3600;N", "b@knows.test", false),
        ("3600;NT", "b@knows.test", true),
        ("3600;RT", "b@knows.test", true),
    ] {
        client.envelope(&format!("MAIL FROM:<a@client.test> BY={by}"), &[to]);
        assert_eq!(client.content(CONTENT, Way::Data).code, 250);
        agent.wait_empty(SOON);
        assert_eq!(home.count(), usize::from(told), "{by} {to}");
        if told {
            assert_says(&notice(&home), &["Action: relayed", "Deliver-By-Date: "]);
        }
        home.forget();
        client.expect(&format!("MAIL FROM:<a@client.test> BY={by}"), 250);
        client.expect(&format!("RCPT TO:<{to}> NOTIFY=NEVER"), 250);
        assert_eq!(client.content(CONTENT, Way::Data).code, 250);
        agent.wait_empty(SOON);
        assert_eq!(home.count(), 0, "NOTIFY=NEVER: {by} {to}");
    }
}

/// An agent with a user alice, who is logged in.
fn submitting(builder: Builder) -> (Agent, Client) {
    let builder = builder.submission().set("users.file", "\"users\"");
    std::fs::write(builder.path("users"), users::line("alice", "secret", "*")).expect("writable");
    let agent = builder.start();
    let mut client = Client::connect(agent.submission());
    client.ehlo();
    assert!(client.starttls().offers("FUTURERELEASE"));
    assert_eq!(client.auth_plain("alice", "secret").code, 235);
    (agent, client)
}

#[test]
fn a_message_sets_out_when_its_sender_says() {
    let (home, away) = (Sink::new(), knowing());
    let (mut agent, mut client) = submitting(between(&home, &away).set("queue.delay_notice", "\"1s\""));
    let begun = Instant::now();
    let id = send(&mut client, " HOLDFOR=4", "b@away.test");
    let why = agent.ok(&["queue", "why", &id]);
    assert!(why.contains("its sender asked for its release at"), "{why}");
    assert!(agent.ok(&["queue", "show", &id]).contains("release "));
    agent.ok(&["queue", "retry", &id]);
    agent.restart();
    let message = away.expect(1, SOON).remove(0);
    assert!(begun.elapsed() >= Duration::from_secs(4), "not before its time");
    assert_eq!(parameter(&message, "HOLDFOR"), None, "the next hop has nothing to hold");
    agent.wait_empty(SOON);
    assert_eq!(home.count(), 0, "what is held on purpose is not late");
}

#[test]
fn what_was_released_in_vain_says_what_was_asked_for() {
    let (home, away) = (Sink::new(), Sink::new());
    away.behave(|sink| sink.rcpt = Arc::new(|_, _| "550 5.1.1 No such user".into()));
    let (agent, mut client) = submitting(between(&home, &away));
    send(&mut client, " HOLDUNTIL=2026-01-15T08:00:00+01:00", "b@away.test");
    assert_says(&notice(&home), &["Future-Release-Request: until;2026-01-15T07:00:00Z"]);
    agent.wait_empty(SOON);
    let reply = client.expect("MAIL FROM:<a@client.test> HOLDFOR=60 BY=60;R", 501);
    assert!(reply.text().contains("5.5.4"), "{}", reply.text());
}

#[test]
fn a_release_is_seen_from_the_outside() {
    let (agent, mut client) = submitting(Builder::new().route("*", Sink::new().address()));
    let id = send(&mut client, " HOLDFOR=86400", "b@away.test");
    let shown = agent.json(&["queue", "show", "--json", &id]).to_string();
    assert!(shown.contains("\"release\":\"20"), "{shown}");
    let why = agent.ok(&["queue", "why", "--json", &id]);
    assert!(why.contains("\"reason\":\"future_release\""), "{why}");
}
