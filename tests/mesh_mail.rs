//! Mail between members of a mesh: agents as processes of their own, with no DNS and no route to one
//! another. What is acknowledged arrives once, whoever is killed and whatever is cut on the way.

mod support;

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use support::agent::Agent;
use support::client::{Client, Way};
use support::ledger::Ledger;
use support::mesh::{host, join, wait_members};
use support::net::{SOON, own_address, wait_until};
use support::note;
use support::sink::Sink;

/// How long mail may wait for another way when a member is gone.
const REROUTE_LIMIT: Duration = Duration::from_secs(5);

/// Waits until everybody knows what all say of themselves.
fn wait_known(agents: &[&Agent]) {
    wait_members(agents, SOON, |member| member["label"] != "");
    // The agent looks at what all changes come to a moment later.
    std::thread::sleep(Duration::from_secs(1));
}

fn send(agent: &Agent, to: &str, content: &[u8]) -> String {
    let mut client = Client::connect(agent.smtp());
    client.ehlo();
    let reply = client.deliver("sender@client.test", &[to], content, Way::Bdat(usize::MAX));
    assert_eq!(reply.code, 250, "{}", reply.text());
    client.quit();
    reply.queue_id()
}

/// Returns what stands in the mailbox of the only user.
fn mailbox(agent: &Agent) -> Vec<String> {
    let new = std::fs::read_dir(agent.path("mail/user/new")).expect("a Maildir");
    new.map(|entry| std::fs::read_to_string(entry.expect("an entry").path()).expect("text")).collect()
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
    let log = a.log();
    let accepted = log.lines().find(|line| line.contains(&id) && line.contains("accepted")).expect("it is in the log");
    let mid = accepted.split("mid=").nth(1).and_then(|rest| rest.split_whitespace().next()).expect("with its name");
    assert!(mailbox(&b)[0].contains(&format!("(mid {mid})")), "{}", mailbox(&b)[0]);
    assert!(b.log().contains(mid));
    // Who asks is told the same.
    let explained = a.ok(&["explain", "user@b.example"]);
    assert!(explained.contains("by the mesh: b (") && explained.contains("to the home b ("), "{explained}");
    // The session is kept: more mail, no more handshakes.
    let before = count(&b.log(), "a node of the mesh");
    (0..20).for_each(|n| drop(send(&a, "user@b.example", format!("Subject: {n}\r\n\r\nhello\r\n").as_bytes())));
    wait_until("all are in the mailbox", SOON, || mailbox(&b).len() == 21);
    assert!(count(&b.log(), "a node of the mesh") <= before + 2);
    for agent in [&a, &b] {
        assert_eq!(agent.queued(), 0);
    }
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
#[ignore = "long: ten thousand messages; run with --ignored"]
fn another_egress_is_taken_at_once_when_one_is_killed_under_ten_thousand_messages() {
    kill_an_egress(10_000);
}

/// Sends a stream of mail through a member that has two ways out, and kills one in the middle.
fn kill_an_egress(messages: u64) {
    let sink = Sink::new();
    let egress = |name| host(name).set("mesh.egress", "true").route("sink.test", sink.address());
    let (a, mut out, other) = (host("a").start(), egress("b").start(), egress("c").start());
    join(&a, &out, "b.example");
    join(&a, &other, "c.example");
    wait_known(&[&a, &out, &other]);
    let ledger = Ledger::over(1);
    let mut client = Client::connect(a.smtp());
    client.ehlo();
    let mut killed = None;
    for number in 0..messages {
        if number == messages / 3 {
            wait_until("both are used", SOON, || {
                [&out, &other].iter().all(|agent| agent.log().contains(" delivered "))
            });
            out.kill();
            killed = Some(Instant::now());
        }
        let content = Ledger::content(number, 2000);
        ledger.unknown(number);
        let reply = client.deliver("sender@client.test", &["user@sink.test"], &content, Way::Bdat(usize::MAX));
        assert_eq!(reply.code, 250, "{}", reply.text());
        ledger.accept(number, &content);
    }
    let last = Instant::now();
    wait_until("all that was accepted went the other way", REROUTE_LIMIT, || a.queued() == 0);
    note(format_args!(
        "{messages} messages, the last {} ms after the kill; all re-routed {} ms later",
        killed.map_or(0, |at| (last - at).as_millis()),
        last.elapsed().as_millis()
    ));
    out.start();
    for agent in [&out, &other] {
        agent.wait_empty(6 * SOON);
    }
    ledger.collect(&sink);
    let balance = ledger.balance();
    note(format_args!("accepted {}, delivered once more {}", balance.accepted, balance.duplicates));
    balance.assert_even();
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
    const MESSAGES: u64 = 60;
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
    let ledger = Ledger::over(1);
    let mut client = Client::connect(a.smtp());
    client.ehlo();
    for number in 0..MESSAGES {
        let content = Ledger::content(number, 2 * MESSAGE_OCTETS_MIN);
        let reply = client.deliver("sender@client.test", &["user@sink.test"], &content, Way::Bdat(usize::MAX));
        assert_eq!(reply.code, 250, "{}", reply.text());
        ledger.accept(number, &content);
    }
    a.wait_empty(3 * SOON);
    b.wait_empty(3 * SOON);
    ledger.collect(&sink);
    let (balance, cuts) = (ledger.balance(), cutter.cuts.load(Ordering::SeqCst));
    note(format_args!("{cuts} replies were cut off, {} repeats were known", count(&b.log(), "duplicate")));
    balance.assert_even();
    assert_eq!(balance.duplicates, 0);
    assert!(cuts as u64 >= MESSAGES / 4, "only {cuts} replies were cut off");
    assert!(count(&b.log(), "duplicate") as u64 >= MESSAGES / 4, "the repeats were known as such");
}
