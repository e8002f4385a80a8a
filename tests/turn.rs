//! Hosts that cannot be reached come for their mail (RFC 2645): a provider that keeps it, and customers
//! that fetch it, played by the test or by an agent of their own. ETRN (RFC 1985) besides.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use support::agent::{Agent, Builder, items};
use support::client::{Client, Way};
use support::ledger::{Ledger, number_of};
use support::net::{SOON, wait_until};
use support::sink::{Behaviour, Sink, without_received};
use support::wire::Wire;
use support::{note, tls, users};

const CONTENT: &[u8] = b"From: <a@away.test>\r\nSubject: turn\r\n\r\nbody\r\n.dot\r\n";

/// A host that keeps mail for `branch`; strangers may write to it and to nobody else.
fn provider(more: &str) -> Builder {
    let builder = Builder::new().submission().set("users.file", "\"users\"").set("relay.networks", "[]");
    let lines = ["branch", "other"].map(|name| users::line(name, "secret", "*"));
    std::fs::write(builder.path("users"), lines.concat()).expect("writable");
    let turn = format!("user = \"branch\"\ndomains = [\"branch.test\", \"second.test\"]\n{more}");
    builder.table("turn", &turn)
}

/// A host that fetches its mail from there. It has no address that the provider knows, and refuses
/// everybody on the one where the test looks whether it runs.
fn customer(provider: &Agent, mailboxes: &Sink, more: &str) -> Builder {
    mailboxes.behave(|sink| sink.lmtp = true);
    let builder = Builder::new();
    std::fs::write(builder.path("password"), "secret\n").expect("writable");
    let (ip, port) = (provider.submission().ip(), provider.submission().port());
    let fetch = format!(
        "host = \"{ip}\"\nport = {port}\nuser = \"branch\"\npassword_file = \"password\"\ntls = \"required\"\n{more}"
    );
    let local = format!("domain = \"branch.test\"\nlmtp = \"{}\"\nrecipients = [\"user\"]", mailboxes.address());
    builder.table("local", &local).table("fetch", &fetch)
}

fn send(agent: &Agent, to: &str, content: &[u8]) -> String {
    let mut client = Client::connect(agent.smtp());
    client.ehlo();
    let reply = client.deliver("a@away.test", &[to], content, Way::Data);
    assert_eq!(reply.code, 250, "{}", reply.text());
    reply.queue_id()
}

/// Logs in as a customer, over TLS.
fn login(agent: &Agent, user: &str) -> Client {
    let mut client = Client::connect(agent.submission());
    client.ehlo();
    assert!(client.starttls().offers("ATRN"));
    assert_eq!(client.auth_plain(user, "secret").code, 235);
    client
}

/// Plays the server over a reversed connection up to QUIT; returns the recipients of what came, sorted.
fn serve(client: &mut Client) -> Vec<String> {
    let mut recipients = Vec::new();
    client.send("220 branch.test ready\r\n");
    while let Some(line) = client.wire().line().expect("the provider speaks") {
        let line = String::from_utf8(line).expect("ASCII");
        let reply = match line.get(..4).unwrap_or_default() {
            "EHLO" => "250-branch.test\r\n250 8BITMIME",
            "RCPT" => {
                recipients.push(line["RCPT TO:".len()..].trim_matches(['<', '>']).to_owned());
                "250 ok"
            }
            "DATA" => {
                client.send("354 go on\r\n");
                while client.wire().line().expect("content").is_some_and(|line| line != b".") {}
                "250 taken"
            }
            "QUIT" => {
                client.send("221 bye\r\n");
                recipients.sort();
                return recipients;
            }
            _ => "250 ok",
        };
        client.send(format!("{reply}\r\n"));
    }
    panic!("the provider leaves without QUIT");
}

#[test]
fn kept_mail_waits_and_nothing_is_tried() {
    let agent = provider("").start();
    let id = send(&agent, "user@branch.test", CONTENT);
    // Longer than a try would wait for the next.
    std::thread::sleep(Duration::from_secs(2));
    let why = agent.json(&["queue", "why", &id, "--json"]);
    let wait = if why.is_array() { &why[0] } else { &why };
    assert_eq!(wait["reason"], "not_fetched", "{why}");
    assert_eq!(wait["text"], "waits for branch to fetch it", "{why}");
    assert_eq!(wait["recipients"][0]["attempts"], 0, "{why}");
    assert!(!agent.log().contains("deferred"), "{}", agent.log());
    let mut stranger = Client::connect(agent.smtp());
    stranger.ehlo();
    stranger.expect("MAIL FROM:<a@away.test>", 250);
    stranger.expect("RCPT TO:<user@sub.branch.test>", 550);
    stranger.expect("RCPT TO:<user@away.test>", 550);
}

#[test]
fn a_customer_gets_what_is_its_own_and_is_told_when_there_is_nothing() {
    let agent = provider("").start();
    for to in ["one@branch.test", "two@second.test", "three@branch.test"] {
        send(&agent, to, CONTENT);
    }
    let mut client = login(&agent, "branch");
    client.expect("ATRN second.test", 250);
    assert_eq!(serve(&mut client), ["two@second.test"], "only what was asked for");
    let mut client = login(&agent, "branch");
    client.expect("ATRN second.test", 453);
    client.expect("ATRN", 250);
    assert_eq!(serve(&mut client), ["one@branch.test", "three@branch.test"]);
    agent.wait_empty(SOON);
    login(&agent, "branch").expect("ATRN", 453);
    let id = send(&agent, "four@branch.test", CONTENT);
    assert!(agent.ok(&["queue", "why", &id]).contains("waits for branch to fetch it"), "it is held again");
}

#[test]
fn who_may_not_fetch_is_told_why() {
    let agent = provider("").start();
    send(&agent, "user@branch.test", CONTENT);
    let mut client = Client::connect(agent.submission());
    assert!(!client.ehlo().offers("ATRN"));
    client.expect("ATRN branch.test", 530);
    assert!(client.starttls().offers("ATRN"));
    client.expect("ATRN branch.test", 530);
    assert_eq!(client.auth_plain("branch", "wrong").code, 535);
    client.expect("ATRN branch.test", 530);
    login(&agent, "other").expect("ATRN branch.test", 450);
    let mut client = login(&agent, "branch");
    client.expect("ATRN branch.test,foreign.test", 450);
    client.expect("ATRN branch..test", 501);
    client.send("ATRN branch.test\r\n220 branch.test ready\r\n");
    assert_eq!(client.reply().code, 554);
    let mut client = Client::connect(agent.smtp());
    client.ehlo();
    client.expect("ATRN branch.test", 502);
    assert_eq!(agent.queued(), 1);
}

#[test]
fn a_lost_connection_loses_nothing_and_the_next_one_goes_on() {
    let agent = provider("").start();
    for number in 0..5 {
        send(&agent, &format!("user{number}@branch.test"), CONTENT);
    }
    let mut client = login(&agent, "branch");
    client.expect("ATRN", 250);
    client.send("220 branch.test ready\r\n");
    // It goes in the middle of the first message.
    while !client.wire().line().expect("a line").expect("a command").starts_with(b"RCPT") {
        client.send("250 branch.test\r\n");
    }
    drop(client);
    // Who comes just while the loss is recorded gets that message when it comes again.
    let mut got = Vec::new();
    wait_until("the customer has come again for all of it", SOON, || {
        let mut client = login(&agent, "branch");
        if client.say("ATRN").code == 250 {
            got.extend(serve(&mut client));
        }
        got.len() >= 5
    });
    got.sort();
    assert_eq!(got, [0, 1, 2, 3, 4].map(|number| format!("user{number}@branch.test")));
    agent.wait_empty(SOON);
}

/// A customer that comes, takes the beginning of what waits and falls silent, its connection open.
fn half_dead(agent: &Agent) -> Client {
    let mut client = login(agent, "branch");
    client.expect("ATRN", 250);
    client.send("220 branch.test ready\r\n");
    while !client.wire().line().expect("a line").expect("a command").starts_with(b"RCPT") {
        client.send("250 branch.test\r\n");
    }
    client
}

/// Its only message is on its way over the one that is dead, or it may have no other connection.
#[test]
fn who_comes_anew_takes_over_from_a_connection_that_is_dead() {
    for (more, count) in [("", 1), ("connections = 1", 3)] {
        let agent = provider(more).start();
        let users: Vec<String> = (0..count).map(|number| format!("user{number}@branch.test")).collect();
        users.iter().for_each(|user| drop(send(&agent, user, CONTENT)));
        let mut dead = half_dead(&agent);
        let mut client = login(&agent, "branch");
        client.expect("ATRN", 250);
        client.set_timeout(3 * SOON);
        assert_eq!(serve(&mut client), users, "all of it, and none twice");
        agent.wait_empty(SOON);
        dead.set_timeout(SOON);
        assert_eq!(dead.wire().rest(), b"", "the dead one was cut");
        agent.wait_logged("its earlier connection is silent");
    }
}

/// Who is slow is not dead: the one that came beside it gets nothing, and the slow one all.
#[test]
fn who_comes_anew_takes_nothing_from_a_connection_that_lives() {
    let agent = provider("").start();
    send(&agent, "user@branch.test", CONTENT);
    let mut slow = half_dead(&agent);
    let mut beside = login(&agent, "branch");
    beside.expect("ATRN", 250);
    let (served, taken) = std::thread::scope(|scope| {
        let beside = scope.spawn(move || {
            beside.set_timeout(3 * SOON);
            serve(&mut beside)
        });
        for _ in 0..15 {
            slow.send("250-still looking\r\n");
            std::thread::sleep(Duration::from_secs(1));
        }
        slow.send("250 ok\r\n");
        slow.set_timeout(SOON);
        (slow.wire().line().expect("it speaks").expect("a line"), beside.join().expect("no panic"))
    });
    assert_eq!((served.as_slice(), taken), (&b"DATA"[..], Vec::new()));
    assert!(!agent.log().contains("is silent"), "{}", agent.log());
}

/// Counts what arrived at the customer's mailboxes, and that it is what was sent.
fn collect(mailboxes: &Sink, arrived: &mut BTreeMap<u64, usize>) {
    for message in mailboxes.take() {
        let number = number_of(&message.content);
        let content = Ledger::content(number, 500);
        let got = without_received(&message.content);
        assert!(got.ends_with(&content), "message {number}: {}", String::from_utf8_lossy(&message.content));
        *arrived.entry(number).or_default() += 1;
    }
}

#[test]
fn an_agent_that_was_away_gets_all_of_it_and_what_comes_is_pushed_at_once() {
    const WAITING: u64 = 150;
    const PUSHED: u64 = 100;
    let provider = provider("keep = true\nkeepalive = \"1s\"").start();
    let mailboxes = Sink::new();
    for number in 0..WAITING {
        send(&provider, "user@branch.test", &Ledger::content(number, 500));
    }
    let mut customer = customer(&provider, &mailboxes, "keep = true\nevery = \"60s\"").start();
    let mut arrived = BTreeMap::new();
    wait_until("all that waited is there", 3 * SOON, || {
        collect(&mailboxes, &mut arrived);
        arrived.len() as u64 == WAITING
    });
    provider.wait_empty(SOON);
    // Long enough for something to be said over a connection without work.
    std::thread::sleep(Duration::from_secs(3));
    let mut took: Vec<Duration> = Vec::new();
    for number in WAITING..WAITING + PUSHED {
        send(&provider, "user@branch.test", &Ledger::content(number, 500));
        let sent = Instant::now();
        wait_until("it is pushed", SOON, || {
            collect(&mailboxes, &mut arrived);
            arrived.contains_key(&number)
        });
        took.push(sent.elapsed());
    }
    took.sort();
    note(format_args!("pushed within {:?} (median), {:?} (99 of 100), {:?}", took[49], took[98], took[99]));
    // By itself it would come in a minute.
    assert_eq!(provider.log().matches("connection reversed").count(), 1, "one connection carried all");

    // A customer that dies in the middle and comes back.
    let last = WAITING + PUSHED + 200;
    for number in WAITING + PUSHED..last {
        send(&provider, "user@branch.test", &Ledger::content(number, 500));
        if number % 100 == 50 {
            customer.kill();
            customer.start();
        }
    }
    wait_until("nothing is lost", 6 * SOON, || {
        collect(&mailboxes, &mut arrived);
        arrived.len() as u64 == last
    });
    assert!(arrived.keys().copied().eq(0..last));
    let twice: BTreeSet<u64> = arrived.iter().filter(|(_, copies)| **copies > 1).map(|(number, _)| *number).collect();
    // Killed between the delivery and its record, or between its own 250 and the provider's.
    assert!(twice.len() <= 4, "{twice:?}");
    provider.wait_empty(SOON);
    assert!(customer.stop().success());
}

#[test]
fn an_outage_of_the_provider_is_said_once_and_its_end_once() {
    let mut provider = provider("keep = true").start();
    let customer = customer(&provider, &Sink::new(), "keep = true\nevery = \"1s\"").metrics().start();
    let failures = || customer.metric("postroad_fetches_total{outcome=\"failed\"}");
    let said = |words: &str| customer.log().matches(words).count();
    wait_until("it has come", SOON, || said("fetching mail") == 1);
    assert!(provider.stop().success());
    wait_until("it has tried some times", SOON, || failures() >= 3);
    assert_eq!((said("cannot fetch mail"), said("mail can be fetched again")), (1, 0), "{}", customer.log());
    provider.start();
    wait_until("it has come again", SOON, || said("mail can be fetched again") == 1);
    assert_eq!(said("cannot fetch mail"), 1);
}

#[test]
fn an_agent_fetches_now_and_then_and_unknown_users_go_back() {
    let (mailboxes, senders) = (Sink::new(), Sink::new());
    let provider = provider("").route("*", senders.address()).start();
    let _customer = customer(&provider, &mailboxes, "every = \"1s\"\ndomains = [\"branch.test\"]").start();
    send(&provider, "user@branch.test", CONTENT);
    send(&provider, "nobody@branch.test", CONTENT);
    assert_eq!(mailboxes.expect(1, SOON)[0].recipients, ["user@branch.test"]);
    let bounce = &senders.expect(1, SOON)[0];
    assert_eq!(bounce.recipients, ["a@away.test"]);
    assert!(String::from_utf8_lossy(&bounce.content).contains("550 5.1.1"), "what the customer said");
    provider.wait_empty(SOON);
    send(&provider, "user@branch.test", CONTENT);
    mailboxes.expect(2, SOON);
}

/// Whoever runs the other side, or has taken its place, gets nothing relayed: not even from an address
/// that may relay here.
#[test]
fn what_is_fetched_ends_here() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let builder = Builder::new();
    std::fs::write(builder.path("password"), "secret\n").expect("writable");
    let fetch = format!(
        "host = \"127.0.0.1\"\nport = {}\nuser = \"branch\"\npassword_file = \"password\"\ntls = \"required\"\nevery = \"1h\"",
        listener.local_addr().expect("bound").port()
    );
    let local = "domain = \"branch.test\"\nlmtp = \"127.0.0.1:9\"\nrecipients = [\"user\"]";
    let agent = builder.table("local", local).table("fetch", &fetch).start();
    let (tcp, _) = listener.accept().expect("the agent comes");
    let mut wire = Wire::from(tcp);
    wire.set_timeout(SOON);
    let talk = |wire: &mut Wire, says: &str, hears: &str| {
        wire.send(says.as_bytes()).expect("the agent reads");
        let line = wire.line().expect("the agent speaks").expect("a line");
        let line = String::from_utf8(line).expect("ASCII");
        assert!(line.starts_with(hears), "after {says:?}: {line:?}");
    };
    talk(&mut wire, "220 relay.test\r\n", "EHLO ");
    talk(&mut wire, "250-relay.test\r\n250 STARTTLS\r\n", "STARTTLS");
    wire.send(b"220 go on\r\n").expect("the agent reads");
    wire.accept_tls(tls::IDENTITY.server()).expect("TLS starts");
    talk(&mut wire, "", "EHLO ");
    talk(&mut wire, "250-relay.test\r\n250-ATRN\r\n250 AUTH PLAIN\r\n", "AUTH PLAIN ");
    talk(&mut wire, "235 welcome\r\n", "ATRN");
    talk(&mut wire, "250 now\r\n", "220 ");
    talk(&mut wire, "HELO relay.test\r\n", "250 ");
    talk(&mut wire, "STARTTLS\r\n", "502 ");
    talk(&mut wire, "AUTH PLAIN AGEAYg==\r\n", "502 ");
    talk(&mut wire, "ATRN\r\n", "502 ");
    talk(&mut wire, "ETRN branch.test\r\n", "502 ");
    talk(&mut wire, "MAIL FROM:<a@away.test>\r\n", "250 ");
    talk(&mut wire, "RCPT TO:<victim@away.test>\r\n", "550 5.7.1");
    talk(&mut wire, "RCPT TO:<nobody@branch.test>\r\n", "550 5.1.1");
    talk(&mut wire, "RCPT TO:<user@branch.test>\r\n", "250 ");
    assert_eq!(agent.queued(), 0);
    // By the ordinary way the same address may relay: it is in relay.networks.
    let mut client = Client::connect(agent.smtp());
    client.ehlo();
    client.expect("MAIL FROM:<a@away.test>", 250);
    client.expect("RCPT TO:<victim@away.test>", 250);
}

#[test]
fn etrn_has_what_waits_tried_at_once() {
    let away = Sink::new();
    away.behave(|sink| sink.rcpt = Arc::new(|_, _| "451 4.2.1 Come back later".into()));
    let slow = |builder: Builder| builder.set("queue.retry_first", "\"1h\"").set("queue.retry_max", "\"4h\"");
    let agent = slow(Builder::new()).route(".away.test", away.address()).route("x.test", away.address()).start();
    send(&agent, "a@one.away.test", CONTENT);
    send(&agent, "b@two.away.test", CONTENT);
    let put_off = |row: &serde_json::Value| row["deferred"].as_u64().unwrap_or(0);
    let put_off = || items(&agent.ok(&["queue", "stats", "--json"])).iter().map(put_off).sum::<u64>();
    wait_until("both are put off", SOON, || put_off() == 2);
    away.behave(|sink| *sink = Behaviour::default());
    let mut client = Client::connect(agent.smtp());
    assert!(client.ehlo().offers("ETRN"));
    client.expect("ETRN nothing.test", 251);
    let reply = client.expect("ETRN one.away.test", 253);
    assert_eq!(reply.text(), "253 2.0.0 ok, 2 pending messages for node one.away.test started");
    away.expect(2, SOON);
    agent.wait_empty(SOON);
    client.expect("ETRN one.away.test", 251);
}

#[test]
fn etrn_does_not_start_what_a_customer_fetches() {
    let agent = provider("").start();
    send(&agent, "user@branch.test", CONTENT);
    let mut client = login(&agent, "branch");
    assert!(client.ehlo().offers("ETRN"));
    client.expect("ETRN branch.test", 458);
    client.expect("ETRN #turn:branch/branch.test", 458);
    client.expect("ETRN @test", 251);
}

#[test]
fn a_reload_takes_rights_away_and_mail_goes_where_it_is_routed_then() {
    let sink = Sink::new();
    let agent = provider("keep = true").start();
    send(&agent, "user@second.test", CONTENT);
    let (via, from) = (sink.address(), ", \"second.test\"]");
    agent.edit_config(from, "]");
    let path = agent.config_path();
    let text = std::fs::read_to_string(&path).expect("readable");
    let route = format!("\n[[route]]\ndomain = \"second.test\"\nvia = \"{via}\"\ntls = \"never\"\n");
    std::fs::write(&path, text + &route).expect("writable");
    agent.ok(&["reload"]);
    assert_eq!(sink.expect(1, SOON)[0].recipients, ["user@second.test"]);
    agent.wait_empty(SOON);
    login(&agent, "branch").expect("ATRN second.test", 450);
}
