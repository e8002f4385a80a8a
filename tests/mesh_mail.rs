//! Mail between members of a mesh: agents as processes of their own, with no DNS and no route to one
//! another. What is acknowledged arrives once, whoever is killed and whatever is cut on the way.

mod support;

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use support::agent::Agent;
use support::client::{Client, Way};
use support::ledger::Ledger;
use support::mesh::{host, join, mailbox, wait_routed};
use support::net::{SOON, own_address, wait_for, wait_until};
use support::sink::{Behaviour, Sink};
use support::{ahead, note, skip};

/// How long mail may wait for another way when a member is gone. The one that is killed stays away: what nobody
/// routes anew never comes.
const REROUTE_LIMIT: Duration = Duration::from_secs(5);
/// So many messages are sent behind the kill at least, however fast the machine is.
const BEHIND_THE_KILL: u64 = 100;
/// How many send at a time.
const SENDERS: usize = 4;
/// What an agent may have taken over and not said so: over twenty connections one message each and the next
/// behind it, and as many on their way out.
const IN_FLIGHT_MAX: usize = 60;

/// Waits until everybody knows what all say of themselves.
fn wait_known(agents: &[&Agent]) {
    wait_routed(agents, SOON, |member| member["label"] != "");
}

fn send(agent: &Agent, to: &str, content: &[u8]) -> String {
    let mut client = Client::connect(agent.smtp());
    client.ehlo();
    let reply = client.deliver("sender@client.test", &[to], content, Way::Bdat(usize::MAX));
    assert_eq!(reply.code, 250, "{}", reply.text());
    client.quit();
    reply.queue_id()
}

fn count(text: &str, what: &str) -> usize {
    text.matches(what).count()
}

#[test]
fn members_deliver_to_each_other_by_the_directory_alone() {
    let (a, b) = (host("a").start(), host("b").start());
    join(&a, &b, "b.example");
    wait_known(&[&a, &b]);
    let id = send(&a, "user@b.example", b"Subject: one\r\nMessage-ID: <1@client.test>\r\n\r\nhello\r\n");
    wait_until("it is in the mailbox", SOON, || mailbox(&b).len() == 1);
    send(&b, "user@a.example", b"Subject: back\r\n\r\nhello\r\n");
    wait_until("so is the answer", SOON, || mailbox(&a).len() == 1);
    // One name from the first hop to the mailbox.
    let accepted = wait_for("it is in the log", SOON, || {
        a.log().lines().find(|line| line.contains(&id) && line.contains("accepted")).map(str::to_owned)
    });
    let mid = accepted.split("mid=").nth(1).and_then(|rest| rest.split_whitespace().next()).expect("with its name");
    assert!(mailbox(&b)[0].contains(&format!("(mid {mid})")), "{}", mailbox(&b)[0]);
    b.wait_logged(mid);
    // Who asks is told the same.
    let explained = a.ok(&["explain", "user@b.example"]);
    assert!(explained.contains("by the mesh: b (") && explained.contains("to the home b ("), "{explained}");
    // The session is kept: more mail, no more handshakes.
    let before = count(&b.log(), "a node of the mesh");
    (0..20).for_each(|n| drop(send(&a, "user@b.example", format!("Subject: {n}\r\n\r\nhello\r\n").as_bytes())));
    wait_until("all are in the mailbox", SOON, || mailbox(&b).len() == 21);
    assert!(count(&b.log(), "a node of the mesh") <= before + 2);
    for agent in [&a, &b] {
        agent.wait_empty(SOON);
    }
}

#[test]
fn who_submits_the_same_again_means_it() {
    let (a, b) = (host("a").start(), host("b").start());
    join(&a, &b, "b.example");
    wait_known(&[&a, &b]);
    let same = b"Subject: again\r\nMessage-ID: <same@client.test>\r\n\r\nhello\r\n";
    for copies in 1..=3 {
        send(&a, "user@b.example", same);
        wait_until("each is in the mailbox", SOON, || mailbox(&b).len() == copies);
    }
    // At another member it is a copy of what came in a moment ago: who lost our 250 and turned to the next host
    // has sent it once.
    let message = b"Subject: once\r\nMessage-ID: <once@client.test>\r\n\r\nhello\r\n";
    send(&b, "user@b.example", message);
    send(&a, "user@b.example", message);
    b.wait_logged("a repeat from a member of the mesh");
    [&a, &b].iter().for_each(|agent| agent.wait_empty(SOON));
    assert_eq!((mailbox(&b).len(), b.logged("a repeat from a member of the mesh")), (4, 1));
}

#[test]
fn mail_goes_through_a_member_in_the_middle() {
    // Neither end can be dialled, so that they have no link with each other.
    let end = |name| host(name).set("mesh.reach", "\"dials-out\"").start();
    let (a, b, c) = (end("a"), host("b").start(), end("c"));
    join(&b, &a, "a.example");
    join(&b, &c, "c.example");
    wait_known(&[&a, &b, &c]);
    send(&a, "user@c.example", b"Subject: far\r\n\r\nhello\r\n");
    wait_until("it is in the mailbox", SOON, || mailbox(&c).len() == 1);
    let content = mailbox(&c).remove(0);
    let by: Vec<usize> = ["by c.test", "by b.test", "by a.test"].map(|by| content.find(by).expect(by)).to_vec();
    assert!(by.is_sorted() && count(&content, "(mid ") + count(&content, "(mid\n") == 2, "{content}");
}

/// Its home takes no more of the sender's mail for an hour, and the sender asks again in an hour: somebody new
/// takes it at once.
#[test]
fn mail_that_waits_is_tried_at_once_when_the_mesh_has_another_way() {
    let a = host("a").set("queue.retry_first", "\"1h\"").set("queue.retry_max", "\"4h\"").start();
    let home = host("home").set("mesh.quota.all_messages", "1").start();
    join(&a, &home, "home.example");
    wait_known(&[&a, &home]);
    send(&a, "user@home.example", b"Subject: one\r\n\r\nhello\r\n");
    wait_until("it is in the mailbox", SOON, || mailbox(&home).len() == 1);
    send(&a, "user@home.example", b"Subject: two\r\n\r\nhello\r\n");
    a.wait_logged("450 4.7.28");
    let c = host("c").start();
    join(&a, &c, "c.example");
    wait_until("so is the other one", 3 * SOON, || mailbox(&home).len() == 2);
    wait_until("nobody has it any more", SOON, || a.queued() + c.queued() == 0);
    assert!(mailbox(&home).iter().any(|letter| letter.contains("by c.test")), "over who is new");
}

#[test]
fn whoever_lists_xmesh_and_is_no_member_gets_mail_as_any_host() {
    let sink = Sink::start(Behaviour { mesh: true, starttls: true, ..Behaviour::default() });
    let a = host("a").set("mesh.egress", "true").route("sink.test", sink.address()).start();
    let b = host("b").start();
    join(&a, &b, "b.example");
    wait_known(&[&a, &b]);
    send(&b, "plain@sink.test", b"Subject: out\r\n\r\nhello\r\n");
    sink.expect(1, SOON);
    a.edit_config("tls = \"never\"", "tls = \"required\"");
    a.ok(&["reload"]);
    send(&b, "secure@sink.test", b"Subject: out\r\n\r\nhello\r\n");
    for (message, tls) in sink.expect(2, SOON).iter().zip([false, true]) {
        assert_eq!(message.tls, tls);
        let content = String::from_utf8_lossy(&message.content);
        assert!(content.contains("(mid "), "it came through the mesh: {content}");
        assert!(!message.mail_parameters.to_ascii_uppercase().contains("XMESH"), "{}", message.mail_parameters);
    }
}

#[test]
fn a_member_without_the_right_to_relay_reaches_homes_alone() {
    let sink = Sink::new();
    let a = host("a").set("mesh.egress", "true").route("sink.test", sink.address()).start();
    let b = host("b").start();
    let token = a.ok(&["mesh", "invite", "--caps", "trace", "--serves", "b.example"]);
    b.ok(&["mesh", "join", token.trim()]);
    wait_known(&[&a, &b]);
    send(&b, "user@a.example", b"Subject: near\r\n\r\nhello\r\n");
    wait_until("it is in the mailbox", SOON, || mailbox(&a).len() == 1);
    send(&b, "user@sink.test", b"Subject: out\r\n\r\nhello\r\n");
    wait_until("it is tried by MX", SOON, || b.log().contains(" deferred ") || b.log().contains(" failed "));
    assert_eq!(sink.count(), 0);
    assert!(!a.log().contains("sink.test"), "nothing of it came here");
}

#[test]
fn another_egress_is_taken_at_once_when_one_is_killed() {
    kill_an_egress(400);
}

#[test]
#[ignore = "ten thousand messages; .ci/run has a step for it"]
fn another_egress_is_taken_at_once_when_one_is_killed_under_ten_thousand_messages() {
    kill_an_egress(10_000);
}

/// Sends streams of mail through a member that has two ways out, and kills one in the middle.
fn kill_an_egress(messages: u64) {
    let sink = Sink::new();
    let egress = |name| {
        // All of it comes from one member within the hour.
        let quota = (2 * messages).to_string();
        let builder = host(name).set("mesh.egress", "true").route("sink.test", sink.address());
        builder.set("mesh.quota.messages", &quota).set("mesh.quota.recipients", &quota).start()
    };
    let (a, mut out, other) = (host("a").start(), egress("b"), egress("c"));
    join(&a, &out, "b.example");
    join(&a, &other, "c.example");
    wait_known(&[&a, &out, &other]);
    let (ledger, next, is_killed) = (Ledger::over(1), AtomicU64::new(0), AtomicBool::new(false));
    let numbers = Numbers { next: &next, end: messages, is_killed: &is_killed };
    let (killed, first) = std::thread::scope(|scope| {
        (0..SENDERS).for_each(|_| drop(scope.spawn(|| send_numbers(&a, &ledger, &numbers))));
        wait_until("both are used in mid-flow", 6 * SOON, || {
            next.load(Ordering::SeqCst) > messages / 3
                && [&out, &other].iter().all(|agent| agent.logged(" delivered ") > 0)
        });
        out.kill();
        is_killed.store(true, Ordering::SeqCst);
        // Half of what comes now would have gone by the one that is gone.
        let (killed, from) = (Instant::now(), next.load(Ordering::SeqCst));
        wait_until("what came just then went the other way", REROUTE_LIMIT, || {
            ledger.collect(&sink);
            (from..from + 20).all(|number| ledger.has_arrived(number))
        });
        (killed, killed.elapsed())
    });
    a.wait_empty(6 * SOON);
    note(format_args!(
        "{messages} messages; the first twenty after the kill came within {} ms, all were out of {} ms later",
        first.as_millis(),
        killed.elapsed().as_millis()
    ));
    out.start();
    for agent in [&out, &other] {
        agent.wait_empty(6 * SOON);
    }
    ledger.collect(&sink);
    let balance = ledger.balance();
    note(format_args!("accepted {}, delivered once more {}", balance.accepted, balance.duplicates));
    balance.assert_even();
    assert_eq!(balance.accepted as u64, messages);
    // It had taken them over, or sent them out, and nobody heard of that: the other egress does not know.
    assert!(balance.duplicates <= IN_FLIGHT_MAX, "{}", balance.duplicates);
}

/// The numbers of messages that are to be sent.
struct Numbers<'a> {
    next: &'a AtomicU64,
    end: u64,
    is_killed: &'a AtomicBool,
}

impl Numbers<'_> {
    /// Takes the next one; the last of them only when a member was killed.
    fn take(&self) -> Option<u64> {
        if self.next.load(Ordering::SeqCst) + BEHIND_THE_KILL > self.end {
            wait_until("a member is killed", 12 * SOON, || self.is_killed.load(Ordering::SeqCst));
        }
        Some(self.next.fetch_add(1, Ordering::SeqCst)).filter(|number| *number < self.end)
    }
}

/// Sends the messages of the ledger that nobody else has sent yet.
fn send_numbers(agent: &Agent, ledger: &Ledger, numbers: &Numbers<'_>) {
    let mut client = Client::connect(agent.smtp());
    client.ehlo();
    while let Some(number) = numbers.take() {
        let content = Ledger::content(number, 2000);
        ledger.unknown(number);
        let reply = client.deliver("sender@client.test", &["user@sink.test"], &content, Way::Bdat(usize::MAX));
        assert_eq!(reply.code, 250, "{}", reply.text());
        ledger.accept(number, &content);
    }
}

/// Passes connections on, and cuts every second one that a message was just answered on, so that the
/// reply is lost. TLS hides what is said; a message is longer than a handshake.
struct Cutter {
    address: SocketAddr,
    cuts: Arc<AtomicUsize>,
}

/// What a client sends in one go when it sends a message.
const MESSAGE_OCTETS_MIN: usize = 6000;

impl Cutter {
    fn start(ip: IpAddr, to: SocketAddr) -> Cutter {
        let listener = TcpListener::bind(SocketAddr::new(ip, 2525)).expect("an address of its own");
        let (answers, cuts) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let shared = (answers, cuts.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // The agent behind it may not be there yet.
                let Ok(server) = TcpStream::connect(to) else { continue };
                pass(client, server, shared.clone());
            }
        });
        Cutter { address: SocketAddr::new(ip, 2525), cuts }
    }
}

fn pass(mut client: TcpStream, mut server: TcpStream, (answers, cuts): (Arc<AtomicUsize>, Arc<AtomicUsize>)) {
    let sent = Arc::new(AtomicUsize::new(0));
    let (mut from_client, mut to_server) =
        (client.try_clone().expect("a handle"), server.try_clone().expect("a handle"));
    let counted = sent.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 65_536];
        while let Ok(n @ 1..) = from_client.read(&mut buffer) {
            counted.fetch_add(n, Ordering::SeqCst);
            if to_server.write_all(&buffer[..n]).is_err() {
                break;
            }
        }
        let _ = to_server.shutdown(Shutdown::Write);
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 65_536];
        while let Ok(n @ 1..) = server.read(&mut buffer) {
            let answers_a_message = sent.swap(0, Ordering::SeqCst) >= MESSAGE_OCTETS_MIN;
            if answers_a_message && answers.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) {
                cuts.fetch_add(1, Ordering::SeqCst);
                break;
            }
            if client.write_all(&buffer[..n]).is_err() {
                break;
            }
        }
        for end in [&client, &server] {
            let _ = end.shutdown(Shutdown::Both);
        }
    });
}

#[test]
fn a_lost_reply_between_members_is_no_second_copy() {
    cut_replies(60);
}

#[test]
#[ignore = "a thousand replies; .ci/run has a step for it, and POSTROAD_CUTS sets another number"]
fn a_thousand_lost_replies_between_members_are_no_second_copy() {
    let cuts = std::env::var("POSTROAD_CUTS").map_or(1_000, |cuts| cuts.parse().expect("a number"));
    cut_replies(cuts);
}

/// Sends messages between members whose connection is cut behind every second message, before its reply.
fn cut_replies(messages: u64) {
    let sink = Sink::new();
    let a = host("a").start();
    let ip = own_address();
    let b = host("b")
        .set("mesh.addresses", &format!("[\"{ip}:2525\"]"))
        .set("mesh.serves", "[\"sink.test\"]")
        .route("sink.test", sink.address())
        .start();
    let cutter = Cutter::start(ip, b.smtp());
    assert_eq!(cutter.address.ip(), ip);
    join(&a, &b, "sink.test");
    wait_known(&[&a, &b]);
    let (ledger, begun) = (Ledger::over(1), Instant::now());
    let mut client = Client::connect(a.smtp());
    client.ehlo();
    for number in 0..messages {
        let content = Ledger::content(number, 2 * MESSAGE_OCTETS_MIN);
        let reply = client.deliver("sender@client.test", &["user@sink.test"], &content, Way::Bdat(usize::MAX));
        assert_eq!(reply.code, 250, "{}", reply.text());
        ledger.accept(number, &content);
    }
    let limit = 3 * SOON + Duration::from_millis(200) * messages.try_into().expect("not so many");
    a.wait_empty(limit);
    b.wait_empty(limit);
    ledger.collect(&sink);
    let (balance, cuts) = (ledger.balance(), cutter.cuts.load(Ordering::SeqCst));
    // Only of what it had taken over the other side can say so: as often a reply was lost, and nothing else.
    b.wait_logged_times("duplicate", (messages / 10 * 9) as usize);
    let repeats = b.logged("duplicate");
    note(format_args!("{cuts} connections were cut, {repeats} repeats were known, in {:?}", begun.elapsed()));
    balance.assert_even();
    assert_eq!(balance.duplicates, 0);
    assert!(repeats as u64 >= messages / 10 * 9 && repeats <= cuts, "{cuts} cuts, {repeats} repeats known as such");
}

/// Nothing that mail between members needs has a date.
#[test]
fn mail_flows_with_every_clock_eleven_years_ahead() {
    // Eleven years with their leap days: on the first of January, too.
    let Some(ahead) = ahead("+4020d") else { return skip("libfaketime is not installed") };
    let mut agents = ["a", "b"].map(|name| host(name).start());
    join(&agents[0], &agents[1], "b.example");
    wait_known(&agents.each_ref());
    for agent in &mut agents {
        assert!(agent.stop().success());
        agent.wrap(ahead.clone());
        agent.start();
    }
    let [a, b] = &agents;
    send(a, "user@b.example", b"Subject: there\r\n\r\nhello\r\n");
    send(b, "user@a.example", b"Subject: back\r\n\r\nhello\r\n");
    for agent in [a, b] {
        wait_until("it is in the mailbox", 2 * SOON, || mailbox(agent).len() == 1);
        assert!(mailbox(agent)[0].contains("(mid "), "as between members: {}", mailbox(agent)[0]);
    }
    let log = a.log();
    let year = |line: Option<&str>| line.and_then(|line| line.get(..4)?.parse::<u32>().ok()).expect("a year");
    assert!(year(log.lines().last()) >= year(log.lines().next()) + 11, "the clock is ahead");
}
