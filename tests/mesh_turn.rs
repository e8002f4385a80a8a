//! Members of a mesh that nobody can dial: they dial those that hold their mail and are pushed it. Agents as
//! processes of their own, and one in a network of its own.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use postroad_mesh::SecretKey;
use serde_json::Value;
use support::agent::{Agent, Builder, items};
use support::client::{Client, Way};
use support::ledger::{Ledger, number_of};
use support::mesh::{self, join, key_of, named, status, take_view};
use support::net::{SOON, wait_until};
use support::networks::{INNER, Networks, OUTER};
use support::sink::{Sink, without_received};
use support::{ahead, note, skip};

const CONTENT: &[u8] = b"From: <a@away.test>\r\nSubject: turn\r\n\r\nbody\r\n";

/// A host that can be dialled; with `holds`, one that holds mail for those that cannot.
fn host(name: &str, holds: &str) -> Builder {
    mesh::host(name).set("mesh.holds", &format!("{holds:?}"))
}

/// A host with mailboxes at a sink that says of itself that it only dials; where it says it could be dialled,
/// nobody listens.
fn sleeper(name: &str, mailboxes: &Sink) -> Builder {
    mailboxes.behave(|sink| sink.lmtp = true);
    let local = format!("domain = \"{name}.example\"\nlmtp = \"{}\"\nrecipients = [\"user\"]", mailboxes.address());
    named(name).set("mesh.addresses", "[\"127.0.0.1:9\"]").set("mesh.reach", "\"dials-out\"").table("local", &local)
}

/// Returns what an agent knows of a member.
fn member(agent: &Agent, label: &str) -> Value {
    let status = status(agent);
    let members = status["members"].as_array().expect("a list");
    members.iter().find(|member| member["label"] == label).cloned().unwrap_or_default()
}

/// Waits until a member is connected to be pushed its mail, and both ends say so.
fn wait_here(at: &Agent, at_label: &str, agent: &Agent, label: &str) {
    wait_until(&format!("{label} has come to {at_label}"), 2 * SOON, || {
        member(at, label)["connections"].as_u64() >= Some(2) && member(agent, at_label)["pushes"] == true
    });
}

/// Waits until an agent knows the way to a domain, by these words of `explain`, and mail goes by it.
fn wait_way(agent: &Agent, to: &str, words: &str) {
    wait_until(&format!("the way to {to} is known: {words}"), 2 * SOON, || {
        String::from_utf8_lossy(&agent.cli(&["explain", to]).stdout).contains(words)
    });
    take_view(agent);
}

fn send(agent: &Agent, to: &str, content: &[u8]) -> String {
    let mut client = Client::connect(agent.smtp());
    client.ehlo();
    let reply = client.deliver("sender@client.test", &[to], content, Way::Bdat(usize::MAX));
    assert_eq!(reply.code, 250, "{}", reply.text());
    client.quit();
    reply.queue_id()
}

/// Sends many messages over one session.
fn send_all(agent: &Agent, to: &str, numbers: std::ops::Range<u64>) {
    let mut client = Client::connect(agent.smtp());
    client.ehlo();
    for number in numbers {
        let content = Ledger::content(number, 2_000);
        let reply = client.deliver("sender@client.test", &[to], &content, Way::Bdat(usize::MAX));
        assert_eq!(reply.code, 250, "{}", reply.text());
    }
}

/// Counts what arrived, and that it is what was sent.
fn collect(mailboxes: &Sink, arrived: &mut BTreeMap<u64, usize>) {
    for message in mailboxes.take() {
        let number = number_of(&message.content);
        assert!(without_received(&message.content).ends_with(&Ledger::content(number, 2_000)), "message {number}");
        *arrived.entry(number).or_default() += 1;
    }
}

#[test]
fn a_node_that_only_dials_out_is_pushed_its_mail_at_once() {
    const MESSAGES: u64 = 200;
    const INTERVAL: Duration = Duration::from_millis(50);
    let mailboxes = Sink::new();
    let (keeper, away) = (host("keeper", "14d").start(), sleeper("away", &mailboxes).start());
    join(&keeper, &away, "away.example");
    wait_here(&keeper, "keeper", &away, "away");
    wait_way(&keeper, "user@away.example", "to the home away");
    let reversed = || keeper.log().matches("connection reversed").count();
    wait_until("all of its connections are there", SOON, || member(&keeper, "away")["connections"] == 4);
    let (mut arrived, mut took, before) = (BTreeMap::new(), Vec::new(), reversed());
    let mut client = Client::connect(keeper.smtp());
    client.ehlo();
    for number in 0..MESSAGES {
        let content = Ledger::content(number, 2_000);
        let reply = client.deliver("sender@client.test", &["user@away.example"], &content, Way::Bdat(usize::MAX));
        assert_eq!(reply.code, 250, "{}", reply.text());
        let sent = Instant::now();
        wait_until("it is pushed", SOON, || {
            collect(&mailboxes, &mut arrived);
            arrived.contains_key(&number)
        });
        took.push(sent.elapsed());
        std::thread::sleep(INTERVAL.saturating_sub(sent.elapsed()));
    }
    took.sort();
    note(format_args!("pushed within {:?} (median), {:?} (99 of 100), {:?}", took[99], took[197], took[199]));
    assert!(took[197] <= Duration::from_secs(5), "{took:?}");
    assert!(arrived.values().all(|copies| *copies == 1), "{arrived:?}");
    // What makes it a round trip: each went at its first attempt, over a connection that was there before it came.
    keeper.wait_empty(SOON);
    let log = keeper.log();
    assert!(!log.contains("deferred"), "nothing was tried in vain: {log}");
    assert_eq!((log.matches(" delivered ").count() as u64, reversed()), (MESSAGES, before), "{log}");
    // The other way it sends as everybody does.
    send(&away, "user@keeper.example", CONTENT);
    wait_until("it is in the mailbox", SOON, || {
        std::fs::read_dir(keeper.path("mail/user/new")).expect("a Maildir").count() == 1
    });
}

#[test]
fn what_comes_while_it_sleeps_is_held_and_goes_as_soon_as_it_wakes() {
    const MESSAGES: u64 = 400;
    let mailboxes = Sink::new();
    let (keeper, sender) = (host("keeper", "14d").start(), host("sender", "0d").start());
    let mut away = sleeper("away", &mailboxes).set("mesh.pickups", "[\"keeper\"]").start();
    join(&keeper, &sender, "sender.example");
    join(&keeper, &away, "away.example");
    wait_here(&keeper, "keeper", &away, "away");
    // Not to it, which cannot be dialled: to where it comes.
    wait_way(&sender, "user@away.example", "by the mesh: keeper");
    assert!(away.stop().success());
    send_all(&sender, "user@away.example", 0..MESSAGES);
    sender.wait_empty(2 * SOON);
    wait_until("all of it is held", SOON, || keeper.queued() as u64 == MESSAGES);
    wait_until("and waits for nothing else", SOON, || {
        let id = items(&keeper.ok(&["queue", "list", "--json"]))[0]["id"].as_str().expect("an id").to_owned();
        keeper.ok(&["queue", "why", &id]).contains("waits for a member of the mesh to come for it")
    });
    assert!(!keeper.log().contains("deferred"), "nothing was tried: {}", keeper.log());
    wait_until("nobody is here", SOON, || member(&keeper, "away")["connections"] == 0);
    away.start();
    let mut arrived = BTreeMap::new();
    let mut begun = None;
    wait_until("all of it is there", 4 * SOON, || {
        collect(&mailboxes, &mut arrived);
        if !arrived.is_empty() {
            begun.get_or_insert_with(Instant::now);
        }
        arrived.len() as u64 == MESSAGES
    });
    let took = begun.map_or(Duration::ZERO, |begun| begun.elapsed());
    note(format_args!("{MESSAGES} messages in {took:?}: {:.0}/s", MESSAGES as f64 / took.as_secs_f64()));
    assert!(arrived.values().all(|copies| *copies == 1), "{arrived:?}");
    keeper.wait_empty(SOON);
    // Those that hold it may go as well.
    let mut keeper = keeper;
    keeper.restart();
    wait_here(&keeper, "keeper", &away, "away");
    send_all(&keeper, "user@away.example", MESSAGES..MESSAGES + 1);
    wait_until("it is pushed again", SOON, || {
        collect(&mailboxes, &mut arrived);
        arrived.contains_key(&MESSAGES)
    });
}

/// Fourteen days pass for the one that holds the mail; the sender's own five are over long before.
#[test]
fn what_is_held_does_not_go_back_before_its_time() {
    let (Some(later), Some(last)) = (ahead("+13d"), ahead("+28d")) else {
        return skip("libfaketime is not installed");
    };
    let (mailboxes, senders) = (Sink::new(), Sink::new());
    let mut keeper = host("keeper", "14d").route("client.test", senders.address()).start();
    let mut away = sleeper("away", &mailboxes).start();
    join(&keeper, &away, "away.example");
    wait_here(&keeper, "keeper", &away, "away");
    assert!(away.stop().success());
    let id = send(&keeper, "user@away.example", &Ledger::content(1, 2_000));
    assert!(keeper.stop().success());
    // A clock that is thirteen days ahead reads what it finds as old.
    keeper.wrap(later.clone());
    keeper.start();
    let notice = |count: usize| {
        let notices = senders.expect(count, 3 * SOON);
        String::from_utf8(notices[count - 1].content.clone()).expect("ASCII")
    };
    let said = notice(1);
    assert!(said.contains("Action: delayed"), "{said}");
    // Longer than the sweep takes that would give it up.
    std::thread::sleep(Duration::from_secs(3));
    let held = items(&keeper.ok(&["queue", "list", "--json"]));
    assert!(held.iter().any(|item| item["id"] == id.as_str()), "it is held: {held:?}");
    away.wrap(later);
    away.start();
    let mut arrived = BTreeMap::new();
    wait_until("it is there", 4 * SOON, || {
        collect(&mailboxes, &mut arrived);
        arrived.len() == 1
    });
    assert!(away.stop().success());
    send(&keeper, "user@away.example", CONTENT);
    assert!(keeper.stop().success());
    keeper.wrap(last);
    keeper.start();
    let said = notice(2);
    assert!(said.contains("Action: failed") && said.contains("it waited for a member of the mesh to come"), "{said}");
}

/// What came for it in two weeks is there soon when it comes, and none of it went back.
#[test]
#[ignore = "half a minute; .ci/run has a step for it with POSTROAD_AGENT, an agent of a release build, of which a rate is asked"]
fn thousands_that_were_held_for_two_weeks_are_drained_fast() {
    const MESSAGES: u64 = 2_000;
    const A_SECOND_MIN: f64 = 200.0;
    let Some(later) = ahead("+14d") else { return skip("libfaketime is not installed") };
    let (mailboxes, senders) = (Sink::new(), Sink::new());
    let keeper = host("keeper", "15d").set("queue.delay_notice", "\"0s\"").route("client.test", senders.address());
    let (mut keeper, mut away) = (keeper.start(), sleeper("away", &mailboxes).start());
    join(&keeper, &away, "away.example");
    wait_here(&keeper, "keeper", &away, "away");
    assert!(away.stop().success());
    send_all(&keeper, "user@away.example", 0..MESSAGES);
    assert!(keeper.stop().success());
    keeper.wrap(later.clone());
    keeper.start();
    // Longer than the sweep takes that would give up what is too old.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(keeper.queued() as u64, MESSAGES, "all of it is held");
    away.wrap(later);
    away.start();
    let (mut arrived, mut counts) = (BTreeMap::new(), Vec::new());
    wait_until("all of it is there", 8 * SOON, || {
        collect(&mailboxes, &mut arrived);
        counts.push((Instant::now(), arrived.len()));
        arrived.len() as u64 == MESSAGES
    });
    let rate = |from: &(Instant, usize), to: &(Instant, usize)| {
        (to.1 - from.1) as f64 / to.0.duration_since(from.0).as_secs_f64()
    };
    let begun = counts.iter().find(|(_, count)| *count > 0).expect("some came");
    let whole = rate(begun, counts.last().expect("some were counted"));
    // The machine has other things to do now and then: the best quarter of it counts.
    let quarter = |from: &(Instant, usize)| {
        let to = counts.iter().find(|(_, count)| *count >= from.1 + MESSAGES as usize / 4)?;
        Some(rate(from, to))
    };
    let best = counts.iter().filter(|(_, count)| *count > 0).filter_map(quarter).fold(0.0, f64::max);
    note(format_args!("{MESSAGES} messages held for two weeks: {whole:.0}/s, the best quarter of them {best:.0}/s"));
    assert!(arrived.values().all(|copies| *copies == 1), "none twice");
    keeper.wait_empty(SOON);
    assert!(senders.take().is_empty(), "none of it went back");
    // A build that is not optimized is not what anybody waits for.
    let is_release = !cfg!(debug_assertions) || std::env::var_os("POSTROAD_AGENT").is_some();
    assert!(!is_release || best >= A_SECOND_MIN, "{best:.0}/s");
}

/// Plays the server over a connection that was just reversed, up to where mail would begin.
fn greet(client: &mut Client) {
    client.send("220 away.test ready\r\n");
    let hello = client.wire().line().expect("it speaks").expect("a line");
    assert!(hello.starts_with(b"EHLO "), "{}", String::from_utf8_lossy(&hello));
    client.send("250-away.test\r\n250-XKEEP\r\n250 XMESH 1\r\n");
}

#[test]
fn who_is_no_member_or_no_more_gets_nothing_and_a_member_only_its_own() {
    let mailboxes = Sink::new();
    let (keeper, voice) = (host("keeper", "14d").start(), host("voice", "0d").start());
    join(&keeper, &voice, "voice.example");
    let mut agents = ["one", "other"].map(|name| sleeper(name, &mailboxes).set("mesh.pickups", "[\"keeper\"]").start());
    for (agent, name) in agents.iter().zip(["one", "other"]) {
        join(&keeper, agent, &format!("{name}.example"));
        wait_here(&keeper, "keeper", agent, name);
        wait_way(&keeper, &format!("user@{name}.example"), &format!("to the home {name}"));
    }
    for agent in &mut agents {
        assert!(agent.stop().success());
    }
    let [one, other] = agents;
    send(&keeper, "user@one.example", CONTENT);
    wait_until("nobody is here", SOON, || {
        ["one", "other"].iter().all(|name| member(&keeper, name)["connections"] == 0)
    });
    let mut stranger = mesh::session(&SecretKey::from_seed(&[9; 32]), &keeper);
    assert!(!stranger.ehlo().offers("ATRN"));
    stranger.expect("ATRN", 502);
    let mut dialled = mesh::session(&key_of(&voice), &keeper);
    dialled.ehlo();
    dialled.expect("ATRN", 450);
    let mut session = mesh::session(&key_of(&other), &keeper);
    assert!(session.ehlo().offers("ATRN"));
    session.expect("ATRN one.example", 450);
    session.expect("ATRN other.example", 450);
    session.expect("ATRN", 250);
    greet(&mut session);
    wait_until("it is here", SOON, || member(&keeper, "other")["connections"] == 1);
    // What waits is another's. The first thing said is about its own.
    send(&keeper, "user@other.example", CONTENT);
    let mail = session.wire().line().expect("it speaks").expect("a line");
    let mail = String::from_utf8(mail).expect("ASCII");
    assert!(mail.starts_with("MAIL FROM:<sender@client.test>") && mail.contains("XMESH="), "{mail}");
    session.send("250 ok\r\n");
    let rcpt = session.wire().line().expect("it speaks").expect("a line");
    assert_eq!(rcpt, b"RCPT TO:<user@other.example>");
    session.send("451 4.3.0 not now\r\n");
    assert_eq!(session.wire().line().expect("it speaks").expect("a line"), b"RSET");
    session.send("250 ok\r\n");
    // Who is revoked loses the connection, and with it what would have come.
    for agent in [&keeper, &voice] {
        agent.ok(&["mesh", "revoke", "other", "--reason", "stolen"]);
    }
    wait_until("it is no member any more", 2 * SOON, || member(&keeper, "other").is_null());
    session.set_timeout(SOON);
    let rest = String::from_utf8_lossy(&session.wire().rest()).into_owned();
    assert!(!rest.contains("RCPT") && !rest.contains("Subject"), "{rest}");
    let mut again = mesh::session(&key_of(&other), &keeper);
    assert!(!again.ehlo().offers("ATRN"));
    again.expect("ATRN", 502);
    // The one that it was for gets it.
    let mut one = one;
    one.start();
    wait_until("it is there", 4 * SOON, || mailboxes.count() == 1);
}

#[test]
fn mail_takes_the_pickup_that_is_connected() {
    let mailboxes = Sink::new();
    let (first, second) = (host("first", "14d").start(), host("second", "14d").start());
    join(&first, &second, "second.example");
    let away = sleeper("away", &mailboxes).start();
    // It names nobody: it takes both.
    join(&first, &away, "away.example");
    wait_here(&first, "first", &away, "away");
    wait_here(&second, "second", &away, "away");
    wait_way(&first, "user@away.example", "to the home away");
    // It cannot get at the first any more, which others can.
    away.edit_config("reach = \"dials-out\"", "reach = \"dials-out\"\npickups = [\"second\"]");
    away.ok(&["reload"]);
    wait_until("it comes to the second alone", 2 * SOON, || {
        member(&first, "away")["connections"] == 0 && member(&second, "away")["connections"].as_u64() >= Some(2)
    });
    wait_way(&first, "user@away.example", "by the mesh: second");
    assert_eq!(member(&away, "first")["pushes"], false);
    send(&first, "user@away.example", CONTENT);
    wait_until("it is there", 2 * SOON, || mailboxes.count() == 1);
}

#[test]
fn who_can_be_dialled_after_all_is_dialled() {
    let mailboxes = Sink::new();
    let keeper = host("keeper", "14d").start();
    let away = sleeper("away", &mailboxes).set("mesh.pickups", "[\"keeper\"]").start();
    join(&keeper, &away, "away.example");
    wait_here(&keeper, "keeper", &away, "away");
    away.edit_config("\nreach = \"dials-out\"", "");
    away.edit_config("addresses = [\"127.0.0.1:9\"]", &format!("addresses = [\"{}\"]", away.smtp()));
    away.ok(&["reload"]);
    wait_until("it comes no more", 2 * SOON, || member(&keeper, "away")["connections"] == 0);
    wait_way(&keeper, "user@away.example", "=> relayed to this hop");
    send(&keeper, "user@away.example", CONTENT);
    wait_until("it is there", 2 * SOON, || mailboxes.count() == 1);
}

#[test]
#[ignore = "needs root and ip (iproute2) for networks of its own; .ci/run has a step for it"]
fn a_node_behind_address_translation_is_pushed_its_mail() {
    let networks = Networks::make();
    // It delivers within its own network, where the test has an address.
    let mailboxes = Sink::start_at(SocketAddr::new(networks.address(INNER, 254), 2524), Default::default());
    let keeper = networks.host(OUTER, 1, host("keeper", "14d")).set("relay.networks", "[\"198.18.0.0/15\"]");
    let keeper = keeper.set("mesh.addresses", &format!("[\"{}:2525\"]", networks.address(INNER, 254))).start();
    networks.translate(keeper.smtp());
    let own = networks.address(INNER, 1);
    let away = networks.host(INNER, 1, sleeper("away", &mailboxes)).set("mesh.addresses", &format!("[\"{own}:2525\"]"));
    let away = away.start();
    join(&keeper, &away, "away.example");
    wait_here(&keeper, "keeper", &away, "away");
    wait_way(&keeper, "user@away.example", "to the home away");
    let unreachable = Command::new("ip")
        .args(["-n", &networks.space(OUTER), "route", "get", &own.to_string()])
        .output()
        .expect("ip is there");
    assert!(
        !unreachable.status.success(),
        "the keeper has a way to it: {}",
        String::from_utf8_lossy(&unreachable.stdout)
    );
    let mut arrived = BTreeMap::new();
    for number in 0..100 {
        send_all(&keeper, "user@away.example", number..number + 1);
        if number % 40 == 20 {
            networks.forget();
        }
    }
    wait_until("all of it is there", 4 * SOON, || {
        collect(&mailboxes, &mut arrived);
        arrived.len() == 100
    });
    let twice: BTreeSet<u64> = arrived.iter().filter(|(_, copies)| **copies > 1).map(|(number, _)| *number).collect();
    assert!(twice.is_empty(), "{twice:?}");
    keeper.wait_empty(SOON);
}
