//! How the directory spreads, in a simulated network with a seed: what it costs, how long it takes, and
//! what a node that shouts costs the others.
//!
//! A thousand nodes take some minutes in a release build: `cargo test --release -p postroad-mesh --test
//! spread -- --ignored --nocapture`.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::LazyLock;

use postroad_mesh::directory::Directory;
use postroad_mesh::frame::{Frame, ITEMS_MAX, Item};
use postroad_mesh::record::{Reach, Record, Said};
use postroad_mesh::roster::Roster;
use postroad_mesh::spread::{Action, Profile, SESSIONS_MAX, Spread};
use postroad_mesh::statement::{Policy, Statement, What};
use postroad_mesh::{Caps, NodeId, SecretKey};

/// Octets that TLS, TCP and IP add to a frame, its acknowledgement included.
const WIRE_OCTETS: u64 = 130;
const MINUTE: u64 = 60_000;

static KEYS: LazyLock<Vec<SecretKey>> = LazyLock::new(|| {
    let seed = |n: u32| {
        let mut seed = [0; 32];
        seed[..4].copy_from_slice(&n.to_be_bytes());
        SecretKey::from_seed(&seed)
    };
    (0..1_000).map(seed).collect()
});

/// What happens, when, and to which node.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Poll,
    Opened { by: usize },
    Refused { by: usize },
    Frame { from: usize, octets: Vec<u8> },
}

struct Net {
    now: u64,
    seed: u64,
    nodes: Vec<Spread>,
    numbers: BTreeMap<NodeId, usize>,
    is_down: Vec<bool>,
    dials_out: Vec<bool>,
    events: BinaryHeap<Reverse<(u64, u64, usize, Event)>>,
    serial: u64,
    /// When each node is to be polled next.
    wakes: Vec<u64>,
    octets: Vec<u64>,
}

impl Net {
    /// A mesh in which everybody knows everybody: half cannot be dialled, a tenth is down.
    fn new(count: usize, seed: u64) -> Net {
        let founding = Statement::found(&KEYS[0], Policy::DEFAULT, "lab", 0);
        let mut roster = Roster::new(founding).expect("it founds");
        let mut head = roster.next_head(&KEYS[0].public().id(), 0);
        let mut admissions = Vec::new();
        for key in &KEYS[1..count] {
            let what = What::Admit { node: key.public(), caps: Caps::RELAY, serves: vec![], label: "".into() };
            let statement = Statement::new(&KEYS[0], head, what);
            head.sequence += 1;
            head.previous = Some(statement.id());
            admissions.push(statement);
        }
        roster.merge(admissions);
        let mut directory = Directory::new(roster);
        let records: Vec<Record> = (0..count).map(|n| record(&directory, n, 1)).collect();
        directory.take_records(records, 0);
        let nodes = (0..count)
            .map(|n| Spread::new(KEYS[n].public().id(), directory.clone(), Profile::Lan, seed + n as u64, 0))
            .collect();
        let mut net = Net {
            now: 0,
            seed,
            nodes,
            numbers: (0..count).map(|n| (KEYS[n].public().id(), n)).collect(),
            is_down: (0..count).map(|n| n % 10 == 3).collect(),
            dials_out: (0..count).map(dials_out).collect(),
            events: BinaryHeap::new(),
            serial: 0,
            wakes: vec![u64::MAX; count],
            octets: vec![0; count],
        };
        for node in (0..count).filter(|n| n % 10 != 3) {
            let at = net.random() % MINUTE;
            net.wake(node, at);
        }
        net
    }

    fn random(&mut self) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.seed >> 33
    }

    fn at(&mut self, at: u64, node: usize, event: Event) {
        self.serial += 1;
        self.events.push(Reverse((at, self.serial, node, event)));
    }

    fn wake(&mut self, node: usize, at: u64) {
        if at < self.wakes[node] {
            self.wakes[node] = at;
            self.at(at, node, Event::Poll);
        }
    }

    fn run_until(&mut self, end: u64) {
        while self.events.peek().is_some_and(|Reverse((at, ..))| *at < end) {
            let Reverse((at, _, node, event)) = self.events.pop().expect("there is one");
            self.now = at;
            if !self.is_down[node] {
                self.happens(node, event);
            }
        }
        self.now = end;
    }

    fn happens(&mut self, node: usize, event: Event) {
        match event {
            Event::Poll if self.wakes[node] > self.now => return,
            Event::Poll => {}
            Event::Opened { by } => {
                let id = KEYS[node].public().id();
                self.nodes[node].opened(KEYS[by].public().id(), false, self.now);
                self.nodes[by].opened(id, true, self.now);
                self.polls(by);
            }
            Event::Refused { by } => self.nodes[node].failed(KEYS[by].public().id(), self.now),
            Event::Frame { from, octets } => {
                self.octets[node] += octets.len() as u64 + WIRE_OCTETS;
                let frame = Frame::from_octets(&octets).expect("what is sent can be read");
                self.nodes[node].received(KEYS[from].public().id(), frame, self.now);
            }
        }
        self.polls(node);
    }

    fn polls(&mut self, node: usize) {
        self.wakes[node] = u64::MAX;
        loop {
            let latency = 20 + self.random() % 180;
            match self.nodes[node].poll(self.now) {
                Action::Wait(at) => return self.wake(node, at.max(self.now + 1)),
                Action::Dial(id) => {
                    let other = self.numbers[&id];
                    if self.is_down[other] || self.dials_out[other] {
                        self.at(self.now + 3_000, node, Event::Refused { by: other });
                    } else {
                        self.at(self.now + 3 * latency, other, Event::Opened { by: node });
                    }
                }
                Action::Send(id, frame) => {
                    let octets = frame.to_octets();
                    self.octets[node] += octets.len() as u64 + WIRE_OCTETS;
                    self.at(self.now + latency, self.numbers[&id], Event::Frame { from: node, octets });
                }
            }
        }
    }

    /// Lets a node say something new about itself; returns how long it took until so many of those
    /// that are up knew.
    fn spreads(&mut self, by: usize, sequence: u64) -> (u64, u64) {
        let start = self.now;
        let record = record(self.nodes[by].directory(), by, sequence);
        let fingerprint = *record.fingerprint();
        self.nodes[by].publish(vec![Item::Record(record.to_octets().into())], start);
        self.polls(by);
        let id = record.id();
        let (mut most, mut all) = (None, None);
        while all.is_none() && self.now < start + 30 * MINUTE {
            self.run_until(self.now + 500);
            let knows = |node: &Spread| *node.directory().records()[&id].fingerprint() == fingerprint;
            let up = self.is_down.iter().filter(|down| !**down).count();
            let known = self.nodes.iter().zip(&self.is_down).filter(|(node, down)| !**down && knows(node)).count();
            most = most.or_else(|| (known * 100 >= up * 95).then_some(self.now - start));
            all = (known == up).then_some(self.now - start);
        }
        (most.expect("most know in half an hour"), all.expect("all know in half an hour"))
    }

    /// Returns the most and the mean octets that nodes sent and received in a minute, over ten.
    fn octets_per_minute(&mut self) -> (u64, u64) {
        self.octets.fill(0);
        self.run_until(self.now + 10 * MINUTE);
        let up: Vec<u64> =
            self.octets.iter().zip(&self.is_down).filter(|(_, down)| !**down).map(|(octets, _)| octets / 10).collect();
        (*up.iter().max().expect("some are up"), up.iter().sum::<u64>() / up.len() as u64)
    }
}

fn dials_out(node: usize) -> bool {
    node % 2 == 1
}

fn record(directory: &Directory, node: usize, sequence: u64) -> Record {
    let reach = if dials_out(node) { Reach::DialsOut } else { Reach::Public };
    let said =
        Said { reach, label: "a node".into(), ..Said::new(KEYS[node].public(), directory.roster().mesh(), sequence) };
    Record::sign(&KEYS[node], &said).expect("within the limits")
}

#[allow(clippy::print_stdout, reason = "what was measured is for people to see")]
fn a_change_is_known_and_rest_is_cheap(count: usize) {
    let mut net = Net::new(count, 42);
    net.run_until(15 * MINUTE);
    let (most, mean) = net.octets_per_minute();
    let (soon, all) = net.spreads(2, 2);
    println!("{count} nodes: at rest {mean} octets a minute and node ({most} at most)");
    println!("{count} nodes: 95 % know of a change after {soon} ms, all after {all} ms");
    assert!(mean <= 1_500, "{count} nodes: {mean} octets a minute");
    assert!(soon <= 15_000 && all <= 180_000, "{count} nodes: {soon} ms, {all} ms");
}

/// A shell holds some hundreds of frames that wait for one node (`OUTBOUND_MAX` of the agent); who needs more loses its
/// link in the middle.
#[test]
fn who_knows_nothing_is_told_all_in_few_frames() {
    const COUNT: usize = 300;
    let mut all = Net::new(COUNT, 1).nodes.swap_remove(0);
    let founding = Statement::found(&KEYS[0], Policy::DEFAULT, "lab", 0);
    let (me, founder) = (KEYS[COUNT].public().id(), KEYS[0].public().id());
    let nothing = Directory::new(Roster::new(founding).expect("it founds"));
    let mut newcomer = Spread::new(me, nothing, Profile::Lan, 2, 0);
    all.opened(me, false, 0);
    newcomer.opened(founder, true, 0);
    let (mut rounds, mut most) = (0, 0);
    while newcomer.directory().records().len() < COUNT {
        rounds += 1;
        assert!(rounds < 20, "it is told of {}", newcomer.directory().records().len());
        for frame in sent(&mut newcomer) {
            all.received(me, frame, 0);
        }
        let given = sent(&mut all);
        most = most.max(given.len());
        for frame in given {
            let frame = Frame::from_octets(&frame.to_octets()).expect("it keeps the limits");
            newcomer.received(founder, frame, 0);
        }
    }
    // A statement and a record of each, and what was asked for again.
    assert!(most * ITEMS_MAX <= 4 * COUNT, "{most} frames at once for {COUNT} nodes");
}

/// Returns what a node has to send now.
fn sent(node: &mut Spread) -> Vec<Frame> {
    let mut frames = Vec::new();
    loop {
        match node.poll(0) {
            Action::Send(_, frame) => frames.push(frame),
            Action::Dial(id) => node.failed(id, 0),
            Action::Wait(_) => return frames,
        }
    }
}

#[test]
fn a_change_is_known_to_all_soon_and_rest_costs_little() {
    for count in [10, 100] {
        a_change_is_known_and_rest_is_cheap(count);
    }
}

#[test]
#[ignore = "takes a minute in a release build"]
fn a_thousand_nodes_cost_each_no_more() {
    a_change_is_known_and_rest_is_cheap(1_000);
}

/// Where every octet costs: it hears what others bring, and says nothing unasked.
#[test]
fn who_is_metered_dials_nobody_and_compares_with_nobody() {
    let mut net = Net::new(5, 7);
    net.run_until(15 * MINUTE);
    let directory = net.nodes[1].directory().clone();
    let (me, other) = (KEYS[1].public().id(), KEYS[0].public().id());
    let said = |profile| {
        let mut node = Spread::new(me, directory.clone(), profile, 1, 0);
        node.opened(other, false, 0);
        let mut said = 0;
        for minute in 0..24 * 60 {
            while !matches!(node.poll(minute * MINUTE), Action::Wait(_)) {
                said += 1;
            }
        }
        said
    };
    assert_eq!(said(Profile::Metered), 0);
    assert!(said(Profile::Quiet) > 24 * 3, "others do");
}

#[test]
fn who_shouts_is_not_passed_on() {
    shouting_costs_the_others_nothing(50, 1);
}

#[test]
#[ignore = "takes two minutes in a release build"]
fn who_shouts_a_hundred_times_a_second_is_not_passed_on() {
    shouting_costs_the_others_nothing(1_000, 100);
}

#[allow(clippy::print_stdout, reason = "what was measured is for people to see")]
fn shouting_costs_the_others_nothing(count: usize, times_a_second: u64) {
    let mut quiet = Net::new(count, 7);
    quiet.run_until(15 * MINUTE);
    let (_, before) = quiet.octets_per_minute();
    let mut loud = Net::new(count, 7);
    loud.run_until(14 * MINUTE);
    // What it may say at once passes in the first minute.
    for moment in 0..660 * times_a_second {
        if moment == 60 * times_a_second {
            loud.octets.fill(0);
        }
        let record = record(loud.nodes[2].directory(), 2, moment + 2);
        let octets = Frame::Give(vec![Item::Record(record.to_octets().into())]).to_octets();
        for other in [4, 6, 8] {
            let at = loud.now + 50;
            loud.at(at, other, Event::Frame { from: 2, octets: octets.clone() });
        }
        loud.run_until(loud.now + 1_000 / times_a_second);
    }
    let others: Vec<u64> = loud
        .octets
        .iter()
        .enumerate()
        .filter(|(n, _)| ![2, 4, 6, 8].contains(n) && n % 10 != 3)
        .map(|(_, octets)| octets / 10)
        .collect();
    let after = others.iter().sum::<u64>() / others.len() as u64;
    println!(
        "{count} nodes: at rest {before} octets a minute and node, beside one that says {times_a_second} a second {after}"
    );
    assert!(after * 100 <= before * 105, "{before} → {after}");
}

/// Everybody let the next one in, so each statement can only be understood behind the one before it, and
/// they are told in any order: who has just joined knows all at once, not at the next comparison.
#[test]
fn a_newcomer_is_told_everything_at_once() {
    newcomer_is_told_by_one_with_sessions(0);
}

/// Whoever lets many in has all sessions that it keeps.
#[test]
fn a_newcomer_is_told_everything_by_one_that_has_no_session_left() {
    newcomer_is_told_by_one_with_sessions(SESSIONS_MAX);
}

fn newcomer_is_told_by_one_with_sessions(sessions: usize) {
    const COUNT: usize = 60;
    let founding = Statement::found(&KEYS[0], Policy::DEFAULT, "lab", 0);
    let newcomer = Directory::new(Roster::new(founding.clone()).expect("it founds"));
    let mut roster = Roster::new(founding).expect("it founds");
    for pair in KEYS[..COUNT].windows(2) {
        let head = roster.next_head(&pair[0].public().id(), 0);
        let what = What::Admit { node: pair[1].public(), caps: Caps::ALL, serves: vec![], label: "".into() };
        roster.merge([Statement::new(&pair[0], head, what)]);
    }
    let mut known = Directory::new(roster);
    known.take_records((0..COUNT).map(|n| record(&known, n, 1)).collect::<Vec<_>>(), 0);
    let ids = [0, COUNT - 1].map(|n| KEYS[n].public().id());
    let mut nodes = [Spread::new(ids[0], known, Profile::Lan, 1, 0), Spread::new(ids[1], newcomer, Profile::Lan, 2, 0)];
    for key in &KEYS[1..=sessions] {
        nodes[0].opened(key.public().id(), false, 0);
    }
    nodes[0].opened(ids[1], false, 0);
    nodes[1].opened(ids[0], true, 0);
    let mut quiet = 0;
    while quiet < 2 {
        quiet += 1;
        for n in [0, 1] {
            while let action @ (Action::Send(..) | Action::Dial(_)) = nodes[n].poll(0) {
                if let Action::Send(to, frame) = action
                    && to == ids[1 - n]
                {
                    nodes[1 - n].received(ids[n], frame, 0);
                    quiet = 0;
                }
            }
        }
    }
    let known = nodes[1].directory();
    assert_eq!((known.roster().members().len(), known.records().len()), (COUNT, COUNT));
}

#[test]
fn who_could_not_be_dialled_is_missed_and_dialled_at_once_when_it_may_be_somewhere_else() {
    let mut node = Net::new(8, 1).nodes.swap_remove(0);
    let mut missed = BTreeSet::new();
    loop {
        match node.poll(0) {
            Action::Dial(id) => {
                node.failed(id, 0);
                assert!(missed.insert(id), "left alone");
            }
            Action::Send(..) => {}
            Action::Wait(_) => break,
        }
    }
    assert!(!missed.is_empty() && node.missed() == missed);
    let (first, stranger) = (*missed.first().expect("one"), SecretKey::from_seed(&[77; 32]).public().id());
    node.hasten(&stranger, 0);
    assert!(matches!(node.poll(0), Action::Wait(_)), "nobody knows that one");
    node.hasten(&first, 0);
    assert_eq!(node.poll(0), Action::Dial(first));
    node.opened(first, true, 0);
    missed.remove(&first);
    assert_eq!(node.missed(), missed);
}
