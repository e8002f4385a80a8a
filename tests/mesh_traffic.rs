//! What members of a mesh say to one another while nothing happens, and while mail waits: octets counted by
//! proxies that stand before real agents. The simulator (mesh/tests/spread.rs) has the same for a thousand.

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::agent::Agent;
use support::client::{Client, Way};
use support::mesh::{host, status, wait_members};
use support::net::{SOON, own_address, wait_until};
use support::note;

/// Headers of TCP and IP of a segment and of its acknowledgement, with timestamps.
const SEGMENT_OCTETS: u64 = 2 * 52;
/// What a node may say and hear in a minute, at rest and while mail waits for a member that is gone.
const AT_REST_MAX: u64 = 1_500;
const WITH_MAIL_MAX: u64 = 4_000;

/// Passes connections on and counts what passes, both ways. Returns where it listens.
fn stand_before(to: SocketAddr, octets: &Arc<AtomicU64>) -> SocketAddr {
    let listener = TcpListener::bind((own_address(), 2525)).expect("an address of its own");
    let address = listener.local_addr().expect("bound");
    let octets = octets.clone();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            // Whoever is behind it may be gone.
            let Ok(server) = TcpStream::connect(to) else { continue };
            let (client, server) = (Arc::new(client), Arc::new(server));
            for (from, to) in [(&client, &server), (&server, &client)] {
                let (from, to, octets) = (from.clone(), to.clone(), octets.clone());
                std::thread::spawn(move || pass(&from, &to, &octets));
            }
        }
    });
    address
}

fn pass(mut from: &TcpStream, mut to: &TcpStream, octets: &AtomicU64) {
    let mut buffer = [0; 16_384];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        octets.fetch_add(n as u64 + SEGMENT_OCTETS, Ordering::SeqCst);
        if to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    for end in [from, to] {
        let _ = end.shutdown(Shutdown::Both);
    }
}

/// A mesh in which every second host only dials out; two hold mail for those.
struct Mesh {
    agents: Vec<Agent>,
    octets: Arc<AtomicU64>,
}

impl Mesh {
    fn of(count: usize) -> Mesh {
        let octets = Arc::<AtomicU64>::default();
        let agent = |n: usize| {
            let builder = host(&format!("n{n}")).set("mesh.profile", "\"lan\"");
            let address = stand_before(SocketAddr::new(builder.ip(), 2525), &octets);
            let builder = builder.set("mesh.addresses", &format!("[\"{address}\"]"));
            // As long as it is outside of tests.
            let builder = builder.set("queue.retry_first", "\"1m\"").set("queue.retry_max", "\"1h\"");
            match n {
                0 | 2 => builder.set("mesh.holds", "\"14d\"").start(),
                _ if n % 2 == 1 => builder.set("mesh.reach", "\"dials-out\"").start(),
                _ => builder.start(),
            }
        };
        let agents: Vec<Agent> = (0..count).map(agent).collect();
        // One in twenty lets the next ones in. Who takes longer to join than it may says that it failed.
        let mut slowest = Duration::ZERO;
        for (n, agent) in agents.iter().enumerate().skip(1) {
            let inviter = &agents[(n - 1) / 20 * 20];
            let (serves, caps) = (format!("n{n}.example"), if n % 20 == 0 { "relay,admit" } else { "relay" });
            let token = inviter.ok(&["mesh", "invite", "--caps", caps, "--serves", &serves]);
            let began = Instant::now();
            agent.ok(&["mesh", "join", token.trim()]);
            slowest = slowest.max(began.elapsed());
        }
        note(format_args!("{count} members, the slowest joined within {slowest:?}"));
        wait_members(&agents.iter().collect::<Vec<_>>(), 6 * SOON, |member| member["label"] != "");
        wait_until("all are linked as they are to stay", 6 * SOON, || {
            agents.iter().all(|agent| links(agent) >= 3.min(count / 2))
        });
        let joining = octets.load(Ordering::SeqCst);
        // A handshake alone takes as much.
        assert!(joining > 1_000 * (count as u64 - 1), "what passes is counted: {joining}");
        Mesh { agents, octets }
    }

    /// Waits until nobody has anything left to say of what has just happened, on however busy a machine.
    fn settle(&self, window: Duration) {
        wait_until("all is said", 15 * SOON, || {
            let octets = self.octets_in(window);
            octets <= 2 * AT_REST_MAX * window.as_secs() / 60
        });
    }

    /// Returns what a node says and hears in so long: a mean, of payload, TLS, TCP and IP.
    fn octets_in(&self, time: Duration) -> u64 {
        let before = self.octets.load(Ordering::SeqCst);
        std::thread::sleep(time);
        // One says it, another hears it.
        2 * (self.octets.load(Ordering::SeqCst) - before) / self.agents.len() as u64
    }
}

fn links(agent: &Agent) -> usize {
    let status = status(agent);
    let members = status["members"].as_array().expect("a list");
    members.iter().filter(|member| ["dialled", "accepted"].contains(&member["link"].as_str().expect("a text"))).count()
}

/// Lets one member go, and sends mail for it from all others.
fn leave_mail_waiting(mesh: &mut Mesh) {
    // One that comes for its mail, which is held for it.
    let gone = 1;
    assert!(mesh.agents[gone].stop().success());
    let others: Vec<&Agent> = mesh.agents.iter().enumerate().filter(|(n, _)| *n != gone).map(|(_, one)| one).collect();
    for agent in &others {
        let mut client = Client::connect(agent.smtp());
        client.ehlo();
        for _ in 0..5 {
            let content = b"Subject: waits\r\n\r\nhello\r\n";
            let reply = client.deliver("sender@client.test", &["user@n1.example"], content, Way::Data);
            assert_eq!(reply.code, 250, "{}", reply.text());
        }
    }
    let waiting = || others.iter().map(|agent| agent.queued()).sum::<usize>();
    wait_until("all of it waits", 6 * SOON, || waiting() == 5 * others.len());
}

/// Counts at rest and with mail that waits, for so long each, when nothing was said beyond that in a window.
fn count(members: usize, window: Duration, time: Duration) -> (u64, u64) {
    let mut mesh = Mesh::of(members);
    mesh.settle(window);
    let at_rest = mesh.octets_in(time);
    leave_mail_waiting(&mut mesh);
    mesh.settle(window);
    let with_mail = mesh.octets_in(time);
    note(format_args!("{members} members, octets a node in {time:?}: {at_rest} at rest, {with_mail} with mail"));
    (at_rest, with_mail)
}

/// No more than a minute's share in a few seconds: whoever talks all the time is noticed.
#[test]
fn three_members_at_rest_say_next_to_nothing() {
    let (at_rest, with_mail) = count(3, Duration::from_secs(2), Duration::from_secs(8));
    assert!(at_rest <= AT_REST_MAX && with_mail <= WITH_MAIL_MAX, "{at_rest}, {with_mail}");
}

fn counts_within_bars(members: usize) {
    // Each compares once a minute, more or less.
    const SECONDS: u64 = 90;
    let counted = count(members, Duration::from_secs(10), Duration::from_secs(SECONDS));
    let (at_rest, with_mail) = (counted.0 * 60 / SECONDS, counted.1 * 60 / SECONDS);
    assert!(at_rest <= AT_REST_MAX && with_mail <= WITH_MAIL_MAX, "octets a minute: {at_rest}, {with_mail}");
}

#[test]
#[ignore = "four minutes, nearly all of them at rest; .ci/run has a step for it"]
fn what_three_members_say_in_minutes() {
    counts_within_bars(3);
}

#[test]
#[ignore = "four minutes, nearly all of them at rest; .ci/run has a step for it"]
fn what_ten_members_say_in_minutes() {
    counts_within_bars(10);
}

#[test]
#[ignore = "six minutes; .ci/run has a step for it with POSTROAD_AGENT, an agent of a release build: two cores do the work of a hundred hosts"]
fn what_a_hundred_members_say_in_minutes() {
    // Two handles for each connection, and a pipe for each agent.
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }).expect("up to the maximum anybody may");
    counts_within_bars(100);
}
