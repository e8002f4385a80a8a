//! What the agent takes leaves it octet for octet, but for the Received field on top: the whole
//! corpus, in every way in (DATA, BDAT in large and small chunks, plain and under TLS) and every
//! way out. What may not travel is refused, and loops end.

mod support;

use std::time::Duration;

use support::agent::{Agent, Builder};
use support::client::{Client, Way};
use support::corpus::{self, Sample};
use support::net::SOON;
use support::sink::{Behaviour, Message, Sink};

/// A next hop and the domain whose mail goes there.
struct Exit {
    domain: &'static str,
    sink: Sink,
    chunking: bool,
}

/// A way in.
#[derive(Clone, Copy, Debug)]
struct Entry {
    name: &'static str,
    way: Way,
    tls: bool,
}

const ENTRIES: [Entry; 4] = [
    Entry { name: "data", way: Way::Data, tls: false },
    Entry { name: "data-tls", way: Way::Data, tls: true },
    Entry { name: "bdat", way: Way::Bdat(usize::MAX), tls: false },
    Entry { name: "chunks-tls", way: Way::Bdat(997), tls: true },
];

fn exits() -> Vec<Exit> {
    let exit = |domain, chunking, starttls| {
        let sink = Sink::start(Behaviour { chunking, starttls, ..Behaviour::default() });
        Exit { domain, sink, chunking }
    };
    vec![
        exit("data.test", false, false),
        exit("data-tls.test", false, true),
        exit("bdat.test", true, false),
        exit("bdat-tls.test", true, true),
    ]
}

fn agent_for(exits: &[Exit]) -> Agent {
    let builder = Builder::new().set("limits.message_size", "\"80MB\"").set("limits.hops", "60");
    let route =
        |builder: Builder, exit: &Exit| builder.route_with(exit.domain, exit.sink.address(), "tls = \"opportunistic\"");
    exits.iter().fold(builder, route).start()
}

fn connect(agent: &Agent, tls: bool) -> Client {
    let mut client = Client::connect(agent.smtp());
    client.ehlo();
    if tls {
        client.starttls();
    }
    client
}

/// Sends all samples one way; the reverse-path names sample and way.
fn send_all(agent: &Agent, entry: Entry, samples: &[Sample], domains: &[&str]) {
    let recipients: Vec<String> = domains.iter().map(|domain| format!("user@{domain}")).collect();
    let recipients: Vec<&str> = recipients.iter().map(String::as_str).collect();
    let mut client = connect(agent, entry.tls);
    for (index, sample) in samples.iter().enumerate() {
        let body = if sample.content.is_ascii() { "" } else { " BODY=8BITMIME" };
        let mail = format!("MAIL FROM:<{}.{index}@client.test> SIZE={}{body}", entry.name, sample.content.len());
        client.envelope(&mail, &recipients);
        let reply = client.content(&sample.content, entry.way);
        assert_eq!(reply.code, 250, "{} by {}: {}", sample.name, entry.name, reply.text());
    }
    client.quit();
}

/// What must arrive: DATA cannot carry a last line without its line end.
fn expected(sample: &Sample, by_data: bool) -> Vec<u8> {
    let mut content = sample.content.clone();
    if by_data && !content.is_empty() && !content.ends_with(b"\r\n") {
        content.extend_from_slice(b"\r\n");
    }
    content
}

fn check(exit: &Exit, entry: Entry, index: usize, sample: &Sample, messages: &[Message]) {
    let path = format!("{}.{index}@client.test", entry.name);
    let found: Vec<&Message> = messages.iter().filter(|message| message.reverse_path == path).collect();
    let what = format!("{} in by {} and out to {}", sample.name, entry.name, exit.domain);
    assert_eq!(found.len(), 1, "{what}");
    assert_eq!(found[0].bdat, exit.chunking, "{what}");
    assert_eq!(found[0].tls, exit.domain.ends_with("-tls.test"), "{what}");
    assert_eq!(found[0].recipients, [format!("user@{}", exit.domain)], "{what}");
    let by_data = entry.way == Way::Data || !exit.chunking;
    let (want, got) = (expected(sample, by_data), found[0].relayed());
    if let Some(at) = (0..want.len().max(got.len())).find(|at| want.get(*at) != got.get(*at)) {
        let near = |octets: &[u8]| {
            let part = &octets[at.saturating_sub(30).min(octets.len())..(at + 30).min(octets.len())];
            part.escape_ascii().to_string()
        };
        panic!("{what}: octet {at} of {} differs: {} became {}", want.len(), near(&want), near(got));
    }
}

#[test]
fn every_message_leaves_as_it_came() {
    let mut samples = corpus::committed();
    let old = corpus::from_registry();
    if old.is_empty() {
        support::skip("the samples of old mail clients: cargo's registry has no mail-parser 0.11.9");
    }
    samples.extend(old);
    samples.extend(corpus::generated());
    samples.push(Sample { name: "no final line end".into(), content: b"Subject: x\r\n\r\nlast line".to_vec() });
    samples.push(Sample { name: "a final CR LF dot".into(), content: b"Subject: x\r\n\r\nlast\r\n.".to_vec() });
    samples.retain(Sample::is_sendable);

    let exits = exits();
    let agent = agent_for(&exits);
    let domains: Vec<&str> = exits.iter().map(|exit| exit.domain).collect();
    std::thread::scope(|scope| {
        for entry in &ENTRIES {
            scope.spawn(|| send_all(&agent, *entry, &samples, &domains));
        }
    });
    for exit in &exits {
        let messages = exit.sink.expect(samples.len() * ENTRIES.len(), Duration::from_secs(60));
        for entry in ENTRIES {
            samples.iter().enumerate().for_each(|(index, sample)| check(exit, entry, index, sample, &messages));
        }
        assert_eq!(exit.sink.complaints(), [""; 0], "{}", exit.domain);
    }
    agent.wait_empty(SOON);
}

#[test]
fn an_empty_message_by_bdat_is_a_message() {
    let sink = Sink::new();
    let agent = Builder::new().route("*", sink.address()).start();
    let mut client = connect(&agent, false);
    assert_eq!(client.deliver("a@client.test", &["b@sink.test"], b"", Way::Bdat(1)).code, 250);
    assert_eq!(sink.expect(1, SOON)[0].relayed(), b"");
}

#[test]
fn fifty_megabytes_pass_without_being_held_in_memory() {
    let exits = exits();
    let agent = agent_for(&exits);
    let sample = Sample { name: "50 MB".into(), content: corpus::attachment(50_000_000) };
    let before = memory_kb(&agent);
    for (entry, exit) in [(ENTRIES[1], &exits[0]), (ENTRIES[2], &exits[3])] {
        send_all(&agent, entry, std::slice::from_ref(&sample), &[exit.domain]);
        let messages = exit.sink.expect(1, Duration::from_secs(120));
        check(exit, entry, 0, &sample, &messages);
    }
    let grown = memory_kb(&agent) - before;
    assert!(grown < 40_000, "the agent took {grown} kB for a message of 50 MB");
}

/// Reads the most memory that the agent ever had resident.
fn memory_kb(agent: &Agent) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("Linux tells the peak");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number of kB")
}

#[test]
fn a_thousand_recipients_take_one_transaction_and_one_more_is_refused() {
    let sink = Sink::new();
    let agent = Builder::new().route("*", sink.address()).start();
    let mut client = connect(&agent, false);
    let recipients: Vec<String> = (0..1000).map(|n| format!("user{n}@sink.test")).collect();
    // As real clients do: everything in one write.
    let mut commands = "MAIL FROM:<a@client.test>\r\n".to_owned();
    recipients.iter().for_each(|recipient| commands += &format!("RCPT TO:<{recipient}>\r\n"));
    commands += "RCPT TO:<toomany@sink.test>\r\nDATA\r\n";
    client.send(commands);
    let codes: Vec<u16> = (0..1003).map(|_| client.reply().code).collect();
    assert!(codes[..1001].iter().all(|code| *code == 250), "{codes:?}");
    assert_eq!(codes[1001..], [452, 354]);
    client.send("Subject: x\r\n\r\nbody\r\n.\r\n");
    assert_eq!(client.reply().code, 250);
    agent.wait_empty(SOON);
    let mut arrived: Vec<String> = sink.messages().into_iter().flat_map(|message| message.recipients).collect();
    let mut wanted = recipients;
    arrived.sort();
    wanted.sort();
    assert_eq!(arrived, wanted);
}

#[test]
fn content_that_may_not_travel_is_refused_and_the_session_ends() {
    let sink = Sink::new();
    let agent = Builder::new().route("*", sink.address()).start();
    let mut samples: Vec<Sample> = corpus::committed().into_iter().chain(corpus::from_registry()).collect();
    samples.retain(|sample| !sample.is_sendable());
    assert!(!samples.is_empty(), "the corpus has a message with NULs");
    for (name, content) in [
        ("NUL", &b"Subject: x\r\n\r\na\0b\r\n"[..]),
        ("bare LF", b"Subject: x\n\r\nbody\r\n"),
        ("bare CR", b"Subject: x\r\n\r\nbo\rdy\r\n"),
        ("LF dot CRLF", b"Subject: x\r\n\r\nbody\n.\r\nMAIL FROM:<evil@client.test>\r\n"),
        ("CRLF dot LF", b"Subject: x\r\n\r\nbody\r\n.\nMAIL FROM:<evil@client.test>\r\n"),
        ("CR dot CR", b"Subject: x\r\n\r\nbody\r.\rMAIL FROM:<evil@client.test>\r\n"),
    ] {
        samples.push(Sample { name: name.into(), content: content.to_vec() });
    }
    for sample in &samples {
        for way in [Way::Data, Way::Bdat(usize::MAX), Way::Bdat(1)] {
            let mut client = connect(&agent, false);
            client.envelope("MAIL FROM:<a@client.test>", &["b@sink.test"]);
            let reply = client.content(&sample.content, way);
            assert_eq!(reply.code, 554, "{} {way:?}: {}", sample.name, reply.text());
            assert_eq!(client.wire().rest(), b"", "{} {way:?}: nothing may follow", sample.name);
        }
    }
    assert_eq!((agent.queued(), sink.commands()), (0, vec![]));
}

#[test]
fn the_trace_field_says_how_the_message_came() {
    let sink = Sink::new();
    let agent = Builder::new().route("*", sink.address()).start();
    let content = b"Subject: x\r\n\r\nbody\r\n";
    connect(&agent, false).deliver("1@client.test", &["b@sink.test"], content, Way::Data);
    connect(&agent, true).deliver("2@client.test", &["b@sink.test"], content, Way::Data);
    let mut client = Client::connect(agent.smtp());
    client.expect("HELO old.client.test", 250);
    let reply = client.deliver("3@client.test", &["b@sink.test", "c@sink.test"], content, Way::Data);
    let messages = sink.expect(3, SOON);
    let trace = |sender: &str| {
        let message = messages.iter().find(|message| message.reverse_path.starts_with(sender)).expect("it arrived");
        let field = &message.content[..message.content.len() - message.relayed().len()];
        String::from_utf8(field.to_vec()).expect("ASCII").replace("\r\n ", " ")
    };
    let plain = trace("1");
    assert!(plain.starts_with("Received: from client.test ([127.0.0.1]) by mx.test with ESMTP id "), "{plain}");
    assert!(plain.contains(" for <b@sink.test>; ") && plain.ends_with(" +0000\r\n"), "{plain}");
    assert!(trace("2").contains(" with ESMTPS (TLSv1.3 "), "{}", trace("2"));
    let old = trace("3");
    assert!(old.contains("from old.client.test ([127.0.0.1]) by mx.test with SMTP id"), "{old}");
    assert!(!old.contains("@sink.test"), "recipients must not learn of each other: {old}");
    assert!(old.contains(&reply.queue_id()), "{old} has not the id of {}", reply.text());
}

#[test]
fn an_address_beyond_ascii_needs_a_next_hop_that_takes_it() {
    let sink = Sink::new();
    let old = Sink::start(Behaviour { smtputf8: false, ..Behaviour::default() });
    let agent = Builder::new().route("new.test", sink.address()).route("*", old.address()).start();
    let mut client = connect(&agent, false);
    let content = "From: <grüße@client.test>\r\nSubject: 試験\r\n\r\nTéxt\r\n".as_bytes();
    assert_eq!(client.say("MAIL FROM:<grüße@client.test>").code, 553, "without SMTPUTF8");
    client.envelope("MAIL FROM:<grüße@new.test> SMTPUTF8 BODY=8BITMIME", &["用户@new.test", "user@old.test"]);
    assert_eq!(client.content(content, Way::Data).code, 250);
    let messages = sink.expect(2, SOON);
    assert_eq!(messages[0].recipients, ["用户@new.test"]);
    assert!(messages[0].mail_parameters.contains("SMTPUTF8"), "{}", messages[0].mail_parameters);
    assert_eq!(messages[0].relayed(), content);
    let notice = String::from_utf8_lossy(&messages[1].content).into_owned();
    assert_eq!((messages[1].reverse_path.as_str(), &messages[1].recipients[..]), ("", &["grüße@new.test".into()][..]));
    assert!(notice.contains("user@old.test") && notice.contains("5.6.7"), "{notice}");
    assert_eq!((old.count(), old.complaints()), (0, vec![]));
}

#[test]
fn parameters_travel_where_they_are_understood() {
    let sink = Sink::start(Behaviour { size: Some(10_000_000), ..Behaviour::default() });
    let plain = Sink::start(Behaviour {
        dsn: false,
        eight_bit: false,
        pipelining: false,
        chunking: false,
        ..Behaviour::default()
    });
    let agent = Builder::new().route("new.test", sink.address()).route("old.test", plain.address()).start();
    let mut client = connect(&agent, false);
    client.expect("MAIL FROM:<a@new.test> RET=HDRS ENVID=QQ314159 BODY=8BITMIME", 250);
    client.expect("RCPT TO:<b@new.test> NOTIFY=FAILURE,DELAY ORCPT=rfc822;Original@elsewhere.test", 250);
    client.expect("RCPT TO:<b@old.test> NOTIFY=NEVER", 250);
    client.content(b"Subject: x\r\n\r\n\xfcber\r\n", Way::Data);
    let message = &sink.expect(1, SOON)[0];
    for parameter in ["RET=HDRS", "ENVID=QQ314159", "BODY=8BITMIME", "SIZE="] {
        assert!(message.mail_parameters.contains(parameter), "{}", message.mail_parameters);
    }
    let notify = &message.rcpt_parameters[0];
    assert!(notify.contains("NOTIFY=FAILURE,DELAY") || notify.contains("NOTIFY=DELAY,FAILURE"), "{notify}");
    assert!(notify.contains("ORCPT=rfc822;Original@elsewhere.test"), "{notify}");
    assert_eq!(plain.expect(1, SOON)[0].relayed(), b"Subject: x\r\n\r\n\xfcber\r\n");
    assert_eq!((sink.complaints(), plain.complaints()), (vec![], vec![]));
}

#[test]
fn a_message_that_has_been_everywhere_is_refused() {
    let sink = Sink::new();
    let agent = Builder::new().route("*", sink.address()).start();
    let hops = |count: usize| {
        let field = b"Received: from a by b; Mon, 1 Jan 2024 00:00:00 +0000\r\n";
        [field.repeat(count).as_slice(), b"Subject: x\r\n\r\nReceived: not a field\r\n"].concat()
    };
    let mut client = connect(&agent, false);
    let reply = client.deliver("a@client.test", &["b@sink.test"], &hops(50), Way::Data);
    assert!(reply.text().starts_with("554 5.4.6 "), "{}", reply.text());
    assert_eq!(client.deliver("a@client.test", &["b@sink.test"], &hops(49), Way::Bdat(100)).code, 250);
    sink.expect(1, SOON);
}

#[test]
fn two_agents_that_point_at_each_other_stop() {
    let home = Sink::new();
    let first = Builder::new().set("hostname", "\"first.test\"").route("client.test", home.address());
    let second = Builder::new().set("hostname", "\"second.test\"").route("client.test", home.address());
    let to_first = std::net::SocketAddr::new(first.ip(), 2525);
    let to_second = std::net::SocketAddr::new(second.ip(), 2525);
    let first = first.route("loop.test", to_second).start();
    let _second = second.route("loop.test", to_first).start();
    let mut client = connect(&first, false);
    assert_eq!(client.deliver("a@client.test", &["b@loop.test"], b"Subject: x\r\n\r\nbody\r\n", Way::Data).code, 250);
    let notices = home.expect(1, Duration::from_secs(60));
    assert_eq!(notices[0].reverse_path, "");
    assert!(String::from_utf8_lossy(&notices[0].content).contains("5.4.6"), "the notice says why");
    first.wait_empty(SOON);
    assert_eq!(home.count(), 1, "one notice is enough");
}
