//! One outcome per recipient, and nothing lost on the way: refusals become one notification,
//! troubles are retried, the next exchange is tried, a next hop that hangs up in any phase costs a
//! repetition at most.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mail_parser::{MessageParser, MimeHeaders};
use postroad::dns_zone::Zone;
use support::agent::{Agent, Builder};
use support::client::{Client, Way};
use support::dns::{self, Dns};
use support::net::{SOON, own_address, wait_until};
use support::sink::{Behaviour, Message, Phase, Sink};

const CONTENT: &[u8] = b"From: <a@client.test>\r\nSubject: outcomes\r\nX-Mark: 4711\r\n\r\nbody of the message\r\n";

fn send(agent: &Agent, from: &str, to: &[&str]) {
    Client::hand_over(agent.smtp(), from, to, CONTENT, Way::Data);
}

/// An agent whose mail for client.test goes to the first sink and everything else to the second.
fn between(home: &Sink, away: &Sink) -> Builder {
    Builder::new().route("client.test", home.address()).route("*", away.address())
}

/// Returns the fields of a notification's delivery-status part, one block for the message and one
/// for each recipient.
fn status_of(notice: &Message) -> Vec<String> {
    let parsed = MessageParser::new().parse(&notice.content).expect("a notification is a message");
    let kind = parsed.content_type().expect("a notification has a content type");
    assert_eq!((kind.ctype(), kind.subtype()), ("multipart", Some("report")));
    assert_eq!(kind.attribute("report-type"), Some("delivery-status"));
    let part = parsed
        .parts
        .iter()
        .find(|part| part.content_type().is_some_and(|kind| kind.subtype() == Some("delivery-status")))
        .expect("a report has a delivery-status part");
    let text = String::from_utf8(part.contents().to_vec()).expect("ASCII").replace("\r\n", "\n");
    text.split("\n\n").map(str::trim).filter(|block| !block.is_empty()).map(str::to_owned).collect()
}

#[track_caller]
fn assert_fields(block: &str, fields: &[&str]) {
    for field in fields {
        assert!(block.to_ascii_lowercase().contains(&field.to_ascii_lowercase()), "no {field:?} in\n{block}");
    }
}

#[test]
fn refused_recipients_are_reported_once_and_the_others_delivered() {
    let (home, away) = (Sink::new(), Sink::new());
    away.behave(|sink| {
        sink.rcpt = Arc::new(|path, asked| match path.split('@').next() {
            Some("bad") => "550 5.1.1 No such user here".into(),
            Some("full") => "552 5.2.2 Over quota".into(),
            Some("later") if asked == 0 => "451 4.7.1 Greylisted, try again".into(),
            _ => "250 2.1.5 OK".into(),
        });
    });
    let agent = between(&home, &away).start();
    let to = ["good@away.test", "bad@away.test", "later@away.test", "full@away.test"];
    send(&agent, "a@client.test", &to);
    agent.wait_empty(SOON);

    let mut arrived: Vec<String> = away.messages().into_iter().flat_map(|message| message.recipients).collect();
    arrived.sort();
    assert_eq!(arrived, ["good@away.test", "later@away.test"]);
    let notices = home.messages();
    assert_eq!(notices.len(), 1, "both failures happened in one attempt");
    assert_eq!(
        (notices[0].reverse_path.as_str(), notices[0].recipients.as_slice()),
        ("", &["a@client.test".into()][..])
    );
    let status = status_of(&notices[0]);
    assert_eq!(status.len(), 3);
    assert_fields(&status[0], &["Reporting-MTA: dns; mx.test", "Arrival-Date: "]);
    assert_fields(&status[1], &["Final-Recipient: rfc822; bad@away.test", "Action: failed", "Status: 5.1.1"]);
    assert_fields(&status[1], &["Diagnostic-Code: smtp; 550 5.1.1 No such user here", "Remote-MTA: "]);
    assert_fields(&status[2], &["Final-Recipient: rfc822; full@away.test", "Action: failed", "Status: 5.2.2"]);
    let text = String::from_utf8_lossy(&notices[0].content).into_owned();
    assert!(text.contains("X-Mark: 4711"), "the notice returns the header: {text}");
    assert!(text.contains("Auto-Submitted: auto-replied"), "RFC 3834: {text}");
}

#[test]
fn nobody_is_told_who_did_not_want_to_be() {
    let (home, away) = (Sink::new(), Sink::new());
    away.behave(|sink| sink.rcpt = Arc::new(|_, _| "550 5.1.1 No".into()));
    let agent = between(&home, &away).start();
    send(&agent, "", &["bad@away.test"]);
    let mut client = Client::connect(agent.smtp());
    client.ehlo();
    client.expect("MAIL FROM:<a@client.test>", 250);
    client.expect("RCPT TO:<bad@away.test> NOTIFY=NEVER", 250);
    client.expect("RCPT TO:<bad@other.test> NOTIFY=SUCCESS", 250);
    assert_eq!(client.content(CONTENT, Way::Data).code, 250);
    agent.wait_empty(SOON);
    assert_eq!(home.count(), 0);
}

#[test]
fn success_is_reported_to_who_asks() {
    let (home, away) = (Sink::new(), Sink::new());
    away.behave(|sink| sink.dsn = false);
    let agent = between(&home, &away).start();
    let mut client = Client::connect(agent.smtp());
    client.ehlo();
    client.expect("MAIL FROM:<a@client.test> RET=HDRS ENVID=QQ314159", 250);
    client.expect("RCPT TO:<good@away.test> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;list+2Bx@old.test", 250);
    client.expect("RCPT TO:<silent@away.test>", 250);
    assert_eq!(client.content(CONTENT, Way::Data).code, 250);
    let notices = home.expect(1, SOON);
    agent.wait_empty(SOON);
    let status = status_of(&notices[0]);
    assert_eq!((home.count(), status.len()), (1, 2), "{status:?}");
    assert_fields(&status[0], &["Original-Envelope-Id: QQ314159"]);
    assert_fields(&status[1], &["Original-Recipient: rfc822; list+x@old.test", "Action: relayed", "Status: 2."]);
    let text = String::from_utf8_lossy(&notices[0].content).into_owned();
    assert!(!text.contains("body of the message"), "RET=HDRS returns the header only: {text}");
    assert!(text.contains("Subject: Your message was passed on\r\n"), "nobody knows of a delivery: {text}");
}

#[test]
fn a_failed_notification_ends_there() {
    let (home, away) = (Sink::new(), Sink::new());
    for sink in [&home, &away] {
        sink.behave(|sink| sink.rcpt = Arc::new(|_, _| "550 5.1.1 No".into()));
    }
    let agent = between(&home, &away).start();
    send(&agent, "a@client.test", &["bad@away.test"]);
    agent.wait_empty(SOON);
    let asked = home.commands().iter().filter(|line| line.starts_with("RCPT")).count();
    assert_eq!((asked, home.count()), (1, 0), "{:?}", home.commands());
}

#[test]
fn a_delay_is_told_while_the_message_still_waits() {
    let (home, away) = (Sink::new(), Sink::new());
    away.behave(|sink| sink.rcpt = Arc::new(|_, asked| if asked < 4 { "451 4.2.1 Busy" } else { "250 OK" }.into()));
    let agent = between(&home, &away).set("queue.delay_notice", "\"1s\"").start();
    send(&agent, "a@client.test", &["b@away.test"]);
    away.expect(1, SOON);
    agent.wait_empty(SOON);
    let notices = home.messages();
    assert_eq!(notices.len(), 1, "one notice for one delay");
    let status = status_of(&notices[0]);
    assert_fields(&status[1], &["Action: delayed", "Status: 4.2.1", "Will-Retry-Until: "]);
}

/// RFC 3464 §2.3.5, §2.3.6: Remote-MTA and the type `smtp` are for what another host said.
#[test]
fn what_this_host_found_is_put_into_no_others_mouth() {
    let (home, away) = (Sink::new(), Sink::new());
    away.behave(|sink| sink.size = Some(10));
    // Nobody listens there: the first message is tried, the others wait behind it without an attempt of their own.
    let down = SocketAddr::from((away.address().ip(), 1));
    let agent = between(&home, &away).set("queue.delay_notice", "\"1s\"").route("down.test", down).start();
    send(&agent, "a@client.test", &["b@away.test"]);
    let large = home.expect(1, SOON).remove(0);
    for _ in 0..3 {
        send(&agent, "a@client.test", &["b@down.test"]);
    }
    let late = home.expect(4, SOON).split_off(1);
    let block = |notice: &Message| status_of(notice)[1].replace("\n ", " ");
    let host = away.address();
    assert_fields(
        &block(&large),
        &["Status: 5.3.4", &format!("Diagnostic-Code: X-Postroad; 552 5.3.4 {host}: the message")],
    );
    for notice in &late {
        let fields = ["Action: delayed", "Status: 4.4.1", "Diagnostic-Code: X-Postroad; 451 4.4.1 connect to "];
        assert_fields(&block(notice), &fields);
        assert_fields(&block(notice), &["Connection refused"]);
    }
    for notice in late.iter().chain([&large]) {
        let text = String::from_utf8_lossy(&notice.content).into_owned();
        assert!(text.contains("This host found:") && !text.contains(" said:"), "{text}");
        assert!(!text.contains("Remote-MTA"), "{text}");
    }
}

#[test]
fn undeliverable_mail_goes_back_when_its_time_is_over() {
    if std::env::var_os("POSTROAD_LONG_TESTS").is_none() {
        return support::note("expiry takes a minute: POSTROAD_LONG_TESTS=1 asks for it");
    }
    let (home, away) = (Sink::new(), Sink::new());
    away.behave(|sink| sink.rcpt = Arc::new(|_, _| "451 4.2.1 Busy".into()));
    // Nobody listens there: most of its mail is never tried by itself, and time alone ends it.
    let down = SocketAddr::from((away.address().ip(), 1));
    let agent = between(&home, &away).set("queue.expire", "\"60s\"").route("down.test", down).start();
    send(&agent, "busy@client.test", &["b@away.test"]);
    for _ in 0..10 {
        send(&agent, "down@client.test", &["b@down.test"]);
    }
    let notices = home.expect(11, Duration::from_secs(120));
    agent.wait_empty(SOON);
    let (busy, down): (Vec<_>, Vec<_>) = notices.iter().partition(|notice| notice.recipients == ["busy@client.test"]);
    assert_fields(&status_of(busy[0])[1], &["Action: failed", "Diagnostic-Code: smtp; 451 4.2.1 Busy"]);
    assert_eq!((busy.len(), down.len()), (1, 10));
    for notice in down {
        assert_fields(&status_of(notice)[1], &["Action: failed", "Status: 4."]);
    }
}

/// Two sessions are cut in one phase, then the next hop behaves.
fn cut_at(phase: Phase) {
    const CUTS: usize = 2;
    // Where BDAT is offered nobody says DATA.
    let away = Sink::start(Behaviour { chunking: phase != Phase::Data, ..Behaviour::default() });
    away.behave(|sink| (sink.drop_at, sink.drops) = (Some(phase), CUTS));
    let agent = Builder::new().route("*", away.address()).start();
    send(&agent, "a@client.test", &["b@away.test", "c@away.test"]);
    agent.wait_empty(SOON);
    let messages = away.messages();
    for message in &messages {
        assert_eq!(message.recipients, ["b@away.test", "c@away.test"], "{phase:?}");
        assert_eq!(message.relayed(), CONTENT, "{phase:?}");
    }
    // Content that was taken without a word must be sent again; everything else only once.
    let wanted = if phase == Phase::Content { CUTS + 1 } else { 1 };
    assert_eq!(messages.len(), wanted, "{phase:?}");
    // Whose message was taken has no reason to come again.
    let cut = if phase == Phase::Quit { 0..=1 } else { CUTS..=CUTS };
    assert!(cut.contains(&away.dropped()), "{phase:?}: {} sessions were cut", away.dropped());
    assert_eq!(away.complaints(), [""; 0], "{phase:?}");
}

#[test]
fn a_next_hop_that_hangs_up_costs_a_repetition_at_most() {
    use Phase::{Content, Data, Greeting, Hello, Mail, Quit, Rcpt};
    std::thread::scope(|scope| {
        for phase in [Greeting, Hello, Mail, Rcpt, Data, Content, Quit] {
            scope.spawn(move || cut_at(phase));
        }
    });
}

type Change = fn(&mut Behaviour);

#[test]
fn every_transient_refusal_is_tried_again() {
    let changes: [(&str, Change); 5] = [
        ("greeting", |sink| sink.greeting = "421 4.3.2 Not now".into()),
        ("mail", |sink| sink.mail = Arc::new(|_, _| "421 4.3.2 Closing".into())),
        ("rcpt", |sink| sink.rcpt = Arc::new(|_, _| "450 4.2.1 Not now".into())),
        ("data", |sink| sink.data = Some("451 4.3.0 Not now".into())),
        ("content", |sink| sink.content = Arc::new(|_, _| "452 4.3.1 Full".into())),
    ];
    std::thread::scope(|scope| {
        for (what, change) in changes {
            for chunking in [true, false] {
                // With BDAT there is no DATA to refuse.
                if !(chunking && what == "data") {
                    scope.spawn(move || tried_again(what, change, chunking));
                }
            }
        }
    });
}

fn tried_again(what: &str, change: Change, chunking: bool) {
    let away = Sink::start(Behaviour { chunking, ..Behaviour::default() });
    away.behave(change);
    let agent = Builder::new().route("*", away.address()).start();
    send(&agent, "a@client.test", &["b@away.test"]);
    agent.wait_logged(" deferred ");
    assert_eq!((agent.queued(), away.count()), (1, 0), "{what}");
    away.behave(|sink| *sink = Behaviour { chunking, ..Behaviour::default() });
    agent.wait_empty(SOON);
    assert_eq!(away.count(), 1, "{what}");
}

#[test]
fn the_next_exchange_is_tried_when_one_is_down_or_busy() {
    let (closed, busy, good) = (own_address(), Sink::new(), Sink::new());
    busy.behave(|sink| sink.greeting = "421 4.3.2 Too busy".into());
    let zone = dns::zone(
        "away.test",
        &[(10, "mx1.away.test", closed), (20, "mx2.away.test", busy.ip()), (30, "mx3.away.test", good.ip())],
    );
    let dns = Dns::start(zone);
    let agent = Builder::new().by_dns(&dns).start();
    send(&agent, "a@client.test", &["b@away.test"]);
    good.expect(1, SOON);
    agent.wait_empty(SOON);
    assert_eq!((busy.sessions(), busy.count()), (1, 0));
}

#[test]
fn dns_says_where_mail_goes_and_whether() {
    let (home, away) = (Sink::new(), Sink::new());
    let zone = dns::zone("away.test", &[(10, "mx.away.test", away.ip())])
        .address("implicit.test", away.ip())
        .alias("alias.test", "away.test")
        .mx("client.test", 5, "home.test")
        .address("home.test", home.ip())
        .null_mx("never.test")
        .servfail("broken.test");
    let dns = Dns::start(zone);
    let agent = Builder::new().by_dns(&dns).start();
    for domain in ["away.test", "implicit.test", "alias.test", "never.test", "nowhere.test", "broken.test"] {
        send(&agent, "a@client.test", &[&format!("b@{domain}")]);
    }
    let literal = format!("b@[{}]", away.ip());
    send(&agent, "a@client.test", &[&literal]);

    let mut arrived: Vec<String> = away.expect(4, SOON).into_iter().flat_map(|message| message.recipients).collect();
    arrived.sort();
    assert_eq!(arrived, [&literal, "b@alias.test", "b@away.test", "b@implicit.test"]);
    let mut statuses: Vec<String> = home.expect(2, SOON).iter().map(|notice| status_of(notice).remove(1)).collect();
    statuses.sort_by_key(|block| !block.contains("never.test"));
    assert_fields(&statuses[0], &["rfc822; b@never.test", "Status: 5.1.10"]);
    assert_fields(&statuses[1], &["rfc822; b@nowhere.test", "Status: 5.1.2"]);
    wait_until("all but one are settled", SOON, || agent.queued() == 1);
    let left = agent.ok(&["queue", "list", "--json"]);
    assert!(left.contains("b@broken.test"), "trouble with DNS is no reason to give up: {left}");
}

#[test]
fn opportunistic_tls_falls_back_and_required_tls_does_not() {
    let (broken, without) = (Sink::new(), Sink::new());
    broken.behave(|sink| (sink.starttls, sink.break_tls) = (true, true));
    let lines = |tls: &str| format!("tls = \"{tls}\"");
    let agent = Builder::new()
        .route_with("may.test", broken.address(), &lines("opportunistic"))
        .route_with("must.test", broken.address(), &lines("required"))
        .route_with("may-too.test", without.address(), &lines("opportunistic"))
        .route_with("must-too.test", without.address(), &lines("required"))
        .start();
    send(&agent, "a@client.test", &["b@may.test", "b@must.test", "b@may-too.test", "b@must-too.test"]);
    assert_eq!(broken.expect(1, SOON)[0].recipients, ["b@may.test"]);
    assert_eq!(without.expect(1, SOON)[0].recipients, ["b@may-too.test"]);
    // The other two are tried again, in vain.
    agent.wait_logged_times(" deferred ", 4);
    assert_eq!((broken.count(), without.count(), agent.queued()), (1, 1, 1));
    broken.behave(|sink| sink.break_tls = false);
    without.behave(|sink| sink.starttls = true);
    agent.wait_empty(SOON);
    assert!(broken.messages()[1].tls && without.messages()[1].tls);
}

#[test]
fn a_smarthost_gets_its_login_under_tls_only() {
    let smarthost = Sink::new();
    smarthost.behave(|sink| {
        sink.starttls = true;
        sink.auth = Some(("relay".into(), "geheim 123".into()));
    });
    let builder = Builder::new();
    std::fs::write(builder.path("password"), "geheim 123\n").expect("writable");
    let lines = "tls = \"required\"\nuser = \"relay\"\npassword_file = \"password\"";
    let agent = builder.route_with("*", smarthost.address(), lines).start();
    send(&agent, "a@client.test", &["b@away.test"]);
    let message = &smarthost.expect(1, SOON)[0];
    assert_eq!((message.user.as_deref(), message.tls), (Some("relay"), true));
    assert_eq!(smarthost.complaints(), [""; 0]);
    agent.wait_empty(SOON);
}

#[test]
fn a_slow_next_hop_holds_up_only_its_own_mail() {
    let (slow, quick) = (Sink::new(), Sink::new());
    slow.behave(|sink| sink.slow_at = Some((Phase::Content, 3 * SOON)));
    let agent = Builder::new().route("slow.test", slow.address()).route("*", quick.address()).start();
    for _ in 0..30 {
        send(&agent, "a@client.test", &["b@slow.test"]);
    }
    for _ in 0..30 {
        send(&agent, "a@client.test", &["b@quick.test"]);
    }
    quick.expect(30, SOON);
}

#[test]
fn sessions_are_used_again() {
    let away = Sink::new();
    // However slow the machine is, none is idle for too long.
    let builder = Builder::new().route("*", away.address()).set("outbound.idle", "\"60s\"");
    let agent = builder.set("outbound.connections_per_destination", "2").start();
    let mut client = Client::connect(agent.smtp());
    client.ehlo();
    for _ in 0..100 {
        assert_eq!(client.deliver("a@client.test", &["b@away.test"], CONTENT, Way::Data).code, 250);
    }
    away.expect(100, SOON);
    assert!(away.sessions() <= 10, "{} sessions for 100 messages", away.sessions());
    assert_eq!(away.complaints(), [""; 0]);
}

#[test]
fn a_session_ends_after_so_many_messages() {
    let away = Sink::new();
    let builder = Builder::new().route("*", away.address()).set("outbound.connections_per_destination", "1");
    let agent = builder.set("outbound.connection_uses", "10").start();
    let mut client = Client::connect(agent.smtp());
    client.ehlo();
    for _ in 0..45 {
        assert_eq!(client.deliver("a@client.test", &["b@away.test"], CONTENT, Way::Data).code, 250);
    }
    let messages = away.expect(45, SOON);
    for session in 0..away.sessions() {
        let of_it = messages.iter().filter(|message| message.session == session).count();
        assert!(of_it <= 10, "{of_it} messages over session {session}");
    }
    agent.wait_empty(SOON);
    assert_eq!((away.count(), away.complaints()), (45, vec![]));
}

#[test]
fn what_was_accepted_survives_a_restart() {
    let away = Sink::new();
    away.behave(|sink| sink.rcpt = Arc::new(|_, _| "451 4.2.1 Later".into()));
    let mut agent = Builder::new().route("*", away.address()).start();
    for _ in 0..20 {
        send(&agent, "a@client.test", &["b@away.test"]);
    }
    agent.restart();
    assert_eq!(agent.queued(), 20);
    away.behave(|sink| *sink = Behaviour::default());
    away.expect(20, SOON);
    agent.wait_empty(SOON);
    assert_eq!(away.count(), 20, "a stop in good order repeats nothing");
}

#[test]
fn a_next_hop_that_is_down_is_found_again() {
    let address = SocketAddr::new(own_address(), 2525);
    let agent = Builder::new().route("*", address).start();
    for _ in 0..10 {
        send(&agent, "a@client.test", &["b@away.test"]);
    }
    agent.wait_logged(" deferred ");
    assert_eq!(agent.queued(), 10);
    let away = Sink::start_at(address, Behaviour::default());
    away.expect(10, SOON);
    agent.wait_empty(SOON);
}

#[test]
fn a_zone_that_is_silent_costs_no_mail() {
    let home = Sink::new();
    let dns = Dns::start(Zone::new().silent("away.test"));
    let agent = Builder::new().by_dns(&dns).route("client.test", home.address()).start();
    send(&agent, "a@client.test", &["b@away.test"]);
    agent.wait_logged_times(" deferred ", 2);
    assert_eq!((agent.queued(), home.count()), (1, 0));
}
