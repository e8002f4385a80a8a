//! A mesh that comes apart into two halves, each in a network of its own: both go on taking mail for everybody,
//! deliver what they can, and the rest arrives once when they are one again.

mod support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use support::agent::Agent;
use support::client::{Client, Way};
use support::ledger::{Ledger, number_of};
use support::mesh::{host, join, wait_members};
use support::net::{SOON, wait_until};
use support::networks::{INNER, Networks, OUTER};
use support::note;

const NAMES: [&str; 4] = ["west", "southwest", "east", "northeast"];
/// What each host is given to send.
const MESSAGES: u64 = 150;
const PAUSE: Duration = Duration::from_millis(20);

/// Where a message is to go: to each of the others in turn.
fn home(sender: usize, number: u64) -> usize {
    (sender + 1 + number as usize % 3) % 4
}

fn is_near(one: usize, other: usize) -> bool {
    one / 2 == other / 2
}

/// Gives a host its messages, one after the other; the numbers of all hosts are different.
fn send(agent: &Agent, sender: usize, sent: &AtomicU64) {
    let mut client = Client::connect(agent.smtp());
    client.ehlo();
    for number in 0..MESSAGES {
        let to = format!("user@{}.example", NAMES[home(sender, number)]);
        let content = Ledger::content(number * 4 + sender as u64, 2_000);
        let reply = client.deliver("sender@client.test", &[&to], &content, Way::Bdat(usize::MAX));
        assert_eq!(reply.code, 250, "{}", reply.text());
        sent.store(number + 1, Ordering::SeqCst);
        std::thread::sleep(PAUSE);
    }
}

/// Returns how often each message is in a mailbox.
fn mailbox(agent: &Agent) -> BTreeMap<u64, usize> {
    let mut copies = BTreeMap::new();
    for entry in std::fs::read_dir(agent.path("mail/user/new")).expect("a Maildir") {
        let content = std::fs::read(entry.expect("an entry").path()).expect("readable");
        // A Maildir has the line ends of the system.
        let content = String::from_utf8(content).expect("ASCII").replace('\n', "\r\n");
        *copies.entry(number_of(content.as_bytes())).or_default() += 1;
    }
    copies
}

/// Returns the numbers of the messages for a home that others gave it, which `counts` chooses by sender and
/// place.
fn numbers(home_of: usize, counts: impl Fn(usize, u64) -> bool) -> Vec<u64> {
    let all = (0..4).flat_map(|sender| (0..MESSAGES).map(move |number| (sender, number)));
    let meant = all.filter(|(sender, number)| home(*sender, *number) == home_of && counts(*sender, *number));
    meant.map(|(sender, number)| number * 4 + sender as u64).collect()
}

#[test]
#[ignore = "needs root and ip (iproute2) for networks of its own; .ci/run has a step for it"]
fn both_halves_take_mail_and_all_of_it_arrives_once_when_they_are_one() {
    let networks = Networks::make();
    networks.connect();
    let place = |at: usize| ([OUTER, INNER][at / 2], at as u8 % 2 + 1);
    let agents: Vec<Agent> = (0..4)
        .map(|at| {
            let (net, number) = place(at);
            let builder = networks.host(net, number, host(NAMES[at])).set("relay.networks", "[\"198.18.0.0/15\"]");
            let builder = builder.set("timeouts.connect", "\"2s\"").set("timeouts.reply", "\"5s\"");
            builder.set("mesh.addresses", &format!("[\"{}:2525\"]", networks.address(net, number))).start()
        })
        .collect();
    for at in 1..4 {
        join(&agents[0], &agents[at], &format!("{}.example", NAMES[at]));
    }
    wait_members(&agents.iter().collect::<Vec<_>>(), 2 * SOON, |member| member["label"] != "");
    let sent: [AtomicU64; 4] = Default::default();
    let cut_at: Vec<u64> = std::thread::scope(|scope| {
        for (at, agent) in agents.iter().enumerate() {
            let sent = &sent[at];
            scope.spawn(move || send(agent, at, sent));
        }
        wait_until("all are in mid-flow", 3 * SOON, || {
            sent.iter().all(|sent| sent.load(Ordering::SeqCst) > MESSAGES / 3)
        });
        networks.pull_out();
        sent.iter().map(|sent| sent.load(Ordering::SeqCst)).collect()
    });
    // All was taken. What has not far to go arrives although the others are gone.
    wait_until("mail within each half is there", 3 * SOON, || {
        (0..4).all(|at| {
            let there = mailbox(&agents[at]);
            numbers(at, |sender, _| is_near(sender, at)).iter().all(|number| there.contains_key(number))
        })
    });
    let waiting: Vec<usize> = [0, 2].map(|at| agents[at].queued() + agents[at + 1].queued()).to_vec();
    for (at, agent) in agents.iter().enumerate() {
        let (there, far) =
            (mailbox(agent), numbers(at, |sender, number| !is_near(sender, at) && number > cut_at[sender]));
        assert!(!far.is_empty() && far.iter().all(|number| !there.contains_key(number)), "the halves are apart");
    }
    assert!(waiting.iter().all(|waiting| *waiting > 0), "mail for the others waits on both sides: {waiting:?}");
    networks.plug_in(INNER);
    let healed = Instant::now();
    for agent in &agents {
        agent.wait_empty(9 * SOON);
    }
    note(format_args!("{waiting:?} messages waited, all arrived {:?} after the halves were one", healed.elapsed()));
    for (at, agent) in agents.iter().enumerate() {
        let wanted: BTreeMap<u64, usize> = numbers(at, |_, _| true).into_iter().map(|number| (number, 1)).collect();
        assert!(mailbox(agent) == wanted, "{}: not each message once: {:?}", NAMES[at], mailbox(agent));
    }
}
