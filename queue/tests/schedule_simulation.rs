//! The schedule against a naive model, from seeds: jobs, next hops that fail, refuse, move to other
//! hosts and come back, and an admin who meddles. The model says of every poll what it may answer:
//! no job is lost or started twice, no limit exceeded, every wake exact to the millisecond, and in
//! the end every due job has started. A failing seed is named by the panic.

use std::collections::BTreeMap;
use std::sync::Arc;

use postroad_queue::schedule::{
    Allowance, Attempt, DestinationStats, Finish, Job, Lane, Limits, Load, Next, Rate, Schedule, Selector,
};
use postroad_queue::{QueueId, RetryPolicy, UnixMillis};

const DESTINATIONS: [&str; 5] = ["a", "b", "c", "d", "e"];
/// Where the mail of a destination may turn out to go; `a` is the destination itself.
const SITES: [&str; 3] = ["s", "t", "a"];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Waiting,
    Held,
    InFlight { held: bool, again: bool, removed: bool },
}

#[derive(Clone, Copy, Debug)]
struct ModelJob {
    due: u64,
    lane: Lane,
    phase: Phase,
}

type ModelKey = (QueueId, usize);
/// By destination.
type Stats = Vec<Option<DestinationStats>>;

struct Simulation {
    random: u64,
    now: u64,
    limits: Limits,
    schedule: Schedule,
    jobs: BTreeMap<ModelKey, ModelJob>,
    running: Vec<Attempt>,
    held: [bool; DESTINATIONS.len()],
    all_held: bool,
    dead: [bool; DESTINATIONS.len()],
    /// The site that the schedule knows of, and the one that DNS names.
    known: [&'static str; DESTINATIONS.len()],
    truth: [&'static str; DESTINATIONS.len()],
    /// What lost its session since a transaction was last completed, by site.
    shaken: BTreeMap<Arc<str>, Vec<ModelKey>>,
    next_id: u64,
    settled: u64,
}

impl Simulation {
    fn new(seed: u64) -> Simulation {
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let backoff = RetryPolicy { first_ms: 50, factor: 2.0, max_ms: 2_000, jitter_ratio: 0.5 };
        let limits = Limits {
            destination_concurrency_max: 1 + roll(&mut random, 6) as u32,
            destination_concurrency_first: 1 + roll(&mut random, 3) as u32,
            total_concurrency_max: 1 + roll(&mut random, 12) as u32,
            unproven_concurrency_max: 1 + roll(&mut random, 12) as u32,
            destination_backoff: backoff,
            messages: seed.is_multiple_of(4).then_some(Rate { count: 3, period_ms: 500 }),
            octets: None,
            allowances: vec![Allowance {
                concurrency_max: 2,
                messages: None,
                octets: Some(Rate { count: 1_000_000, period_ms: 1_000 }),
                backoff,
            }],
        };
        Simulation {
            random,
            now: 1_000,
            schedule: Schedule::new(limits.clone(), seed),
            limits,
            jobs: BTreeMap::new(),
            running: Vec::new(),
            held: [false; DESTINATIONS.len()],
            all_held: false,
            dead: [false; DESTINATIONS.len()],
            known: DESTINATIONS,
            truth: DESTINATIONS,
            shaken: BTreeMap::new(),
            next_id: 1,
            settled: 0,
        }
    }

    fn roll(&mut self, below: u64) -> u64 {
        roll(&mut self.random, below)
    }

    fn stats(&self) -> Stats {
        let mut all = self.schedule.stats(UnixMillis(self.now));
        let mut find = |name: &str| all.iter().position(|s| &*s.destination == name).map(|at| all.swap_remove(at));
        DESTINATIONS.iter().map(|name| find(name)).collect()
    }

    fn in_flight(&self, d: usize) -> usize {
        self.running.iter().filter(|attempt| &**attempt.destination() == DESTINATIONS[d]).count()
    }

    fn in_flight_at(&self, site: &str, lane: Option<Lane>) -> usize {
        let fits = |attempt: &&Attempt| &**attempt.site() == site && lane.is_none_or(|lane| attempt.lane() == lane);
        self.running.iter().filter(fits).count()
    }

    /// Returns when a site lets a job of this lane start, as far as time alone decides; none when
    /// something has to happen first.
    fn gate(&self, stats: &DestinationStats, lane: Lane) -> Option<u64> {
        let in_flight = |lane| self.in_flight_at(&stats.site, lane);
        let window = stats.window as usize;
        let bulk_max = if window > 1 { window - (window / 8).max(1) } else { window };
        let is_open = match stats.closed_until {
            None => in_flight(None) < window && (lane != Lane::Bulk || in_flight(Some(Lane::Bulk)) < bulk_max),
            Some(_) => !stats.is_probed,
        };
        let until = |at: Option<UnixMillis>| at.map_or(0, |at| at.0);
        is_open.then_some(until(stats.closed_until).max(until(stats.paced_until)))
    }

    fn has_unproven(&self, lane: Lane) -> bool {
        let max = self.limits.unproven_concurrency_max.min(self.limits.total_concurrency_max) as usize;
        self.schedule.totals().unproven < max - [0, max / 32, max / 8][lane as usize]
    }

    fn total_max(&self, lane: Lane) -> usize {
        let total = self.limits.total_concurrency_max as usize;
        total - [0, total / 32, total / 8][lane as usize]
    }

    /// Returns the jobs that may start by the rules.
    fn startable(&self, stats: &Stats) -> Vec<ModelKey> {
        let is_due = |job: &ModelJob| job.phase == Phase::Waiting && job.due <= self.now && !self.all_held;
        let may = |(_, d): &ModelKey, job: &ModelJob| {
            let stats = stats[*d].as_ref().expect("a destination with jobs has stats");
            is_due(job)
                && !self.held[*d]
                && self.gate(stats, job.lane).is_some_and(|at| at <= self.now)
                && (stats.is_proven || self.has_unproven(job.lane))
                && self.running.len() < self.total_max(job.lane)
        };
        self.jobs.iter().filter(|(key, job)| may(key, job)).map(|(key, _)| *key).collect()
    }

    /// Returns when something is to be looked at again by the rules, nothing being startable: a job
    /// is due, or a site lets go of jobs that are.
    fn next_wake(&self, stats: &Stats) -> Option<u64> {
        if self.all_held || self.running.len() >= self.limits.total_concurrency_max as usize {
            return None;
        }
        let waiting = self.jobs.iter().filter(|(_, job)| job.phase == Phase::Waiting);
        let wakes = waiting.filter_map(|((_, d), job)| match job.due > self.now {
            true => Some(job.due),
            false if self.held[*d] => None,
            false => self.gate(stats[*d].as_ref()?, job.lane).filter(|at| *at > self.now),
        });
        wakes.min()
    }

    /// Asks the schedule until it starts nothing more, and holds every answer to the model.
    fn poll(&mut self) {
        loop {
            let stats = self.stats();
            let startable = self.startable(&stats);
            match self.schedule.poll(UnixMillis(self.now)) {
                Next::Start(attempt) => self.note_start(attempt, &startable),
                Next::Wake { at, .. } => {
                    assert!(startable.is_empty(), "could start {startable:?} at {}", self.now);
                    assert_eq!(Some(at.0), self.next_wake(&stats), "at {}", self.now);
                    assert!(at.0 > self.now);
                    return;
                }
                Next::Idle => {
                    assert!(startable.is_empty(), "could start {startable:?} at {}", self.now);
                    assert_eq!(self.next_wake(&stats), None, "at {}", self.now);
                    return;
                }
            }
        }
    }

    fn note_start(&mut self, attempt: Attempt, startable: &[ModelKey]) {
        let d = index_of(attempt.destination());
        assert!(startable.contains(&(attempt.id(), d)), "{attempt:?} started against the rules");
        assert_eq!(&**attempt.site(), self.known[d]);
        let job = self.jobs.get_mut(&(attempt.id(), d)).expect("only what was admitted starts");
        job.phase = Phase::InFlight { held: false, again: false, removed: false };
        self.running.push(attempt);
        assert!(self.running.len() <= self.limits.total_concurrency_max as usize);
    }

    /// Lets an attempt find out where its mail goes. Returns whether it may go on.
    fn resolve(&mut self, attempt: &mut Attempt) -> bool {
        let d = index_of(attempt.destination());
        let site: Arc<str> = self.truth[d].into();
        let is_there = attempt.site() == &site;
        let stats = self.schedule.stats(UnixMillis(self.now)).into_iter().find(|stats| stats.site == site);
        let unproven = (self.schedule.totals().unproven, self.has_unproven(attempt.lane()));
        let may = self.schedule.relocate(attempt, &site, UnixMillis(self.now));
        self.known[d] = self.truth[d];
        let known = self.known;
        self.shaken.retain(|site, _| known.iter().any(|name| **name == **site));
        assert!(may || !is_there);
        if let Some(stats) = stats.filter(|_| !is_there) {
            let is_open = self.gate(&stats, attempt.lane()).is_some_and(|at| at <= self.now);
            assert!(!may || is_open, "moved to a site that is busy: {stats:?}");
            assert!(may || !is_open || !stats.is_proven, "not moved to a site that is free: {stats:?}");
        }
        assert!(self.schedule.totals().unproven <= unproven.0 + usize::from(unproven.1));
        assert_eq!(may, attempt.site() == &site);
        may
    }

    fn admit(&mut self) {
        let id = if self.roll(10) == 0 { 1 + self.roll(self.next_id) } else { self.next_id };
        self.next_id = self.next_id.max(id + 1);
        let id = QueueId::from_u64(id);
        for _ in 0..1 + self.roll(2) {
            let d = self.roll(DESTINATIONS.len() as u64) as usize;
            let due = if self.roll(2) == 0 { self.now } else { self.now + self.roll(3_000) };
            let lane = Lane::ALL[self.roll(3) as usize];
            let (sender, load) = (self.roll(3) as u32, Load::new(1 + self.roll(5) as usize, self.roll(200_000)));
            let (destination, allowance) = (DESTINATIONS[d].into(), u16::from(d == 3));
            let job = Job { id, destination, due: UnixMillis(due), lane, sender, load, allowance };
            self.schedule.admit(job, UnixMillis(self.now));
            let phase = match self.jobs.get(&(id, d)).map(|job| job.phase) {
                None => Phase::Waiting,
                Some(Phase::InFlight { held, .. }) => Phase::InFlight { held, again: true, removed: false },
                Some(phase) => phase,
            };
            self.jobs.insert((id, d), ModelJob { due, lane, phase });
        }
    }

    fn finish_one(&mut self) {
        if self.running.is_empty() {
            return;
        }
        let pick = self.roll(self.running.len() as u64) as usize;
        let mut attempt = self.running.swap_remove(pick);
        let d = index_of(attempt.destination());
        let is_moved = self.roll(4) == 0 && !self.resolve(&mut attempt);
        let key = (attempt.id(), d);
        let later = self.now + 1 + self.roll(2_000);
        let dice = self.roll(100);
        let (finish, due) = match dice {
            _ if is_moved => (Finish::Returned, None),
            _ if self.dead[d] => (Finish::DestinationFailed { said: "dead".into() }, Some(self.now)),
            0..65 => (Finish::Done, None),
            65..80 => (Finish::Requeue { due: UnixMillis(later) }, Some(later)),
            80..90 => (Finish::Throttled { due: UnixMillis(later), said: "421".into() }, Some(later)),
            90..93 => (Finish::DestinationFailed { said: "lost".into() }, Some(self.now)),
            93..95 => (Finish::Silent { said: "refused".into() }, Some(self.now)),
            _ => (Finish::Returned, None),
        };
        let is_returned = finish == Finish::Returned;
        let freed = self.judge(&attempt, key, &finish);
        self.schedule.finished(attempt, finish, UnixMillis(self.now));
        let job = self.jobs.remove(&key).expect("a job in flight");
        let Phase::InFlight { held, again, removed } = job.phase else { panic!("{job:?} was not in flight") };
        let due = match (again, is_returned) {
            (false, true) => Some(job.due),
            (true, true) => Some(job.due.min(self.now)),
            (true, false) => Some(due.unwrap_or(job.due).min(job.due)),
            (false, false) => due,
        };
        match due.filter(|_| !removed) {
            None => self.settled += 1,
            Some(due) => {
                let phase = if held { Phase::Held } else { Phase::Waiting };
                self.jobs.insert(key, ModelJob { due, phase, ..job });
            }
        }
        for key in freed {
            if let Some(job) = self.jobs.get_mut(&key).filter(|job| job.phase == Phase::Waiting) {
                job.due = job.due.min(self.now);
            }
        }
    }

    /// Returns what goes at once because the end of this attempt ends an outage.
    fn judge(&mut self, attempt: &Attempt, key: ModelKey, finish: &Finish) -> Vec<ModelKey> {
        let (site, known) = (attempt.site(), self.known);
        match finish {
            Finish::Throttled { .. } if known[key.1] == &**site => {
                self.shaken.entry(site.clone()).or_default().push(key);
                Vec::new()
            }
            Finish::Done | Finish::Requeue { .. } => {
                let stats = self.schedule.stats(UnixMillis(self.now));
                let was_closed = stats.iter().any(|stats| stats.site == *site && stats.closed_until.is_some());
                let here = |other: &ModelKey| *other != key && known[other.1] == &**site;
                let ends = was_closed || matches!(finish, Finish::Done);
                let shaken = if ends { self.shaken.remove(site) } else { None }.unwrap_or_default();
                if was_closed { shaken.into_iter().filter(here).collect() } else { Vec::new() }
            }
            _ => Vec::new(),
        }
    }

    fn meddle(&mut self) {
        let d = self.roll(DESTINATIONS.len() as u64) as usize;
        let id = QueueId::from_u64(1 + self.roll(self.next_id));
        match self.roll(13) {
            0 => self.set_held(id, true),
            1 | 2 => self.set_held(id, false),
            3 => {
                self.schedule.hold(Selector::Destination(DESTINATIONS[d]));
                self.held[d] = true;
            }
            4 | 5 => {
                self.schedule.release(Selector::Destination(DESTINATIONS[d]));
                self.held[d] = false;
            }
            6 => {
                self.all_held = !self.all_held;
                if self.all_held {
                    self.schedule.hold(Selector::All)
                } else {
                    self.schedule.release(Selector::All)
                };
            }
            7 => self.remove(id),
            8 => self.retry(Selector::Destination(DESTINATIONS[d])),
            9 => self.retry(Selector::Id(id)),
            10 => self.retry(Selector::All),
            11 => self.truth[d] = if self.roll(3) == 0 { DESTINATIONS[d] } else { SITES[self.roll(3) as usize] },
            _ => self.dead[d] = !self.dead[d],
        }
    }

    fn set_held(&mut self, id: QueueId, on: bool) {
        let count = if on { self.schedule.hold(Selector::Id(id)) } else { self.schedule.release(Selector::Id(id)) };
        let mut found = 0;
        for (_, job) in self.jobs.iter_mut().filter(|((of, _), _)| *of == id) {
            found += 1;
            job.phase = match job.phase {
                Phase::InFlight { again, removed, .. } => Phase::InFlight { held: on, again, removed },
                _ if on => Phase::Held,
                _ => Phase::Waiting,
            };
        }
        assert_eq!(count, found);
    }

    fn remove(&mut self, id: QueueId) {
        self.schedule.remove(id);
        self.jobs.retain(|(of, _), job| *of != id || matches!(job.phase, Phase::InFlight { .. }));
        for (_, job) in self.jobs.iter_mut().filter(|((of, _), _)| *of == id) {
            if let Phase::InFlight { held, .. } = job.phase {
                job.phase = Phase::InFlight { held, again: false, removed: true };
            }
        }
    }

    fn retry(&mut self, which: Selector<'_>) {
        self.schedule.retry_now(which);
        for ((id, to), job) in &mut self.jobs {
            let is_meant = match which {
                Selector::Id(which) => *id == which,
                Selector::Destination(name) => DESTINATIONS[*to] == name,
                Selector::All => true,
            };
            if is_meant && matches!(job.phase, Phase::Waiting | Phase::Held) {
                job.due = 0;
            }
        }
    }

    fn check_stats(&self) {
        for (d, stats) in self.stats().iter().enumerate() {
            let jobs = || self.jobs.iter().filter(|((_, to), _)| *to == d);
            let Some(stats) = stats else {
                assert_eq!(jobs().count(), 0);
                continue;
            };
            let waiting = |lane, ready| {
                let fits =
                    |job: &ModelJob| job.phase == Phase::Waiting && job.lane == lane && (job.due <= self.now) == ready;
                jobs().filter(|(_, job)| fits(job)).count()
            };
            assert_eq!(stats.ready, Lane::ALL.map(|lane| waiting(lane, true)));
            assert_eq!(stats.deferred, Lane::ALL.map(|lane| waiting(lane, false)));
            assert_eq!(stats.held, jobs().filter(|(_, job)| job.phase == Phase::Held).count());
            assert_eq!(stats.in_flight, self.in_flight(d));
            assert_eq!(stats.site_in_flight, self.in_flight_at(&stats.site, None));
            assert_eq!(stats.ages.iter().sum::<usize>(), jobs().count());
            assert_eq!(stats.oldest, jobs().map(|((id, _), _)| *id).min());
            assert_eq!(stats.is_held, self.held[d]);
        }
        let count = |is: fn(u64, &ModelJob) -> bool| self.jobs.values().filter(|job| is(self.now, job)).count();
        let totals = self.schedule.totals();
        assert_eq!(totals.jobs, self.jobs.len());
        assert_eq!(totals.held, count(|_, job| job.phase == Phase::Held));
        assert_eq!(totals.deferred, count(|now, job| job.phase == Phase::Waiting && job.due > now));
        assert_eq!(self.schedule.totals().in_flight, self.running.len());
    }

    fn step(&mut self) {
        match self.roll(21) {
            20 => self.go_behind(),
            0..8 => self.admit(),
            8..15 => self.finish_one(),
            15 => self.meddle(),
            16 => self.take_next(),
            17 => self.check_stats(),
            _ => self.now += self.roll(400),
        }
        self.poll();
    }

    /// A worker that keeps its connection asks for more.
    fn take_next(&mut self) {
        let site = self.known[self.roll(DESTINATIONS.len() as u64) as usize];
        let startable = self.startable(&self.stats());
        if let Some(attempt) = self.schedule.next_for(site, UnixMillis(self.now)) {
            self.note_start(attempt, &startable);
        }
    }

    /// A worker takes one more behind its attempt, and gives it back: both change nothing for others.
    fn go_behind(&mut self) {
        let (now, before) = (UnixMillis(self.now), self.schedule.totals());
        let Some(attempt) = self.running.last() else { return };
        let Some(behind) = self.schedule.next_behind(attempt, now) else { return };
        let job = self.jobs[&(behind.id(), index_of(behind.destination()))];
        assert!(job.phase == Phase::Waiting && job.due <= self.now && behind.lane() <= attempt.lane());
        let totals = self.schedule.totals();
        assert_eq!((totals.in_flight, totals.unproven), (before.in_flight, before.unproven));
        self.schedule.finished(behind, Finish::Returned, now);
    }

    /// Lets everything through: what is due must start and end, and nothing may be left.
    fn drain(&mut self) {
        (0..DESTINATIONS.len()).for_each(|d| {
            self.schedule.release(Selector::Destination(DESTINATIONS[d]));
        });
        self.schedule.release(Selector::All);
        (self.held, self.all_held, self.dead) = Default::default();
        (1..=self.next_id).for_each(|id| self.set_held(QueueId::from_u64(id), false));
        for _ in 0..100_000 {
            self.poll();
            if self.running.is_empty() {
                match self.next_wake(&self.stats()) {
                    None => break,
                    Some(at) => self.now = at,
                }
            }
            self.finish_one();
        }
        assert!(self.jobs.is_empty(), "never started: {:?}", self.jobs);
        self.check_stats();
    }
}

fn index_of(name: &str) -> usize {
    DESTINATIONS.iter().position(|d| *d == name).expect("one of ours")
}

fn roll(random: &mut u64, below: u64) -> u64 {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    (*random >> 16) % below
}

fn simulate(seed: u64, steps: usize) {
    let mut simulation = Simulation::new(seed);
    (0..steps).for_each(|_| simulation.step());
    simulation.drain();
    assert!(simulation.settled > 0);
}

fn simulate_seeds(seeds: std::ops::Range<u64>, steps: usize) {
    for seed in seeds {
        let outcome = std::panic::catch_unwind(|| simulate(seed, steps));
        assert!(outcome.is_ok(), "seed {seed} with {steps} steps fails; its own panic stands above");
    }
}

#[test]
fn the_schedule_does_what_the_model_says() {
    simulate_seeds(0..150, 600);
}

#[test]
#[ignore = "minutes: the same with many more seeds"]
fn the_schedule_does_what_the_model_says_at_length() {
    simulate_seeds(1_000..6_000, 1_000);
}
