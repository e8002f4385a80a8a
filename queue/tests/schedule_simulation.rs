//! The schedule against a naive model, from seeds: jobs, next hops that fail, refuse and come back,
//! and an admin who meddles. The model says of every poll what it must answer: no job is lost or
//! started twice, no limit exceeded, every wake exact to the millisecond, and in the end every due
//! job has started. A failing seed is named by the panic.

use std::collections::BTreeMap;

use postroad_queue::schedule::{Attempt, DestinationStats, Finish, Job, Lane, Limits, Next, Schedule, Selector};
use postroad_queue::{QueueId, RetryPolicy, UnixMillis};

const DESTINATIONS: [&str; 5] = ["a", "b", "c", "d", "e"];

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
            next_id: 1,
            settled: 0,
        }
    }

    fn roll(&mut self, below: u64) -> u64 {
        roll(&mut self.random, below)
    }

    fn stats(&self) -> Vec<Option<DestinationStats>> {
        let mut all = self.schedule.stats(UnixMillis(self.now));
        let mut find = |name: &str| all.iter().position(|s| &*s.destination == name).map(|at| all.swap_remove(at));
        DESTINATIONS.iter().map(|name| find(name)).collect()
    }

    fn in_flight(&self, d: usize) -> usize {
        self.running.iter().filter(|attempt| &**attempt.destination() == DESTINATIONS[d]).count()
    }

    /// When the next job may start by the rules, were nothing else to happen: at most `now` when
    /// one may start at once.
    fn next_start(&self) -> Option<u64> {
        if self.all_held || self.running.len() >= self.limits.total_concurrency_max as usize {
            return None;
        }
        let stats = self.stats();
        let unproven_max = self.limits.unproven_concurrency_max.min(self.limits.total_concurrency_max) as usize;
        let unproven_full = self.schedule.totals().unproven >= unproven_max;
        let may = |d: usize| {
            let stats = stats[d].as_ref().expect("a destination with jobs has stats");
            let has_slot = match stats.closed_until {
                None => self.in_flight(d) < stats.window as usize,
                Some(_) => !stats.is_probed,
            };
            has_slot && !self.held[d] && (stats.is_proven || !unproven_full)
        };
        let waiting = self.jobs.iter().filter(|(_, job)| job.phase == Phase::Waiting);
        let starts = waiting.filter(|((_, d), _)| may(*d)).map(|((_, d), job)| {
            let gate = stats[*d].as_ref().and_then(|s| s.closed_until).map_or(0, |until| until.0);
            job.due.max(gate)
        });
        starts.min()
    }

    /// Asks the schedule until it starts nothing more, and holds every answer to the model.
    fn poll(&mut self) {
        loop {
            let expected = self.next_start();
            match self.schedule.poll(UnixMillis(self.now)) {
                Next::Start(attempt) => {
                    assert!(expected.is_some_and(|at| at <= self.now), "started too early, {expected:?}");
                    self.note_start(attempt);
                }
                Next::Wake { at, .. } => {
                    assert_eq!(Some(at.0), expected, "at {}", self.now);
                    assert!(at.0 > self.now);
                    return;
                }
                Next::Idle => {
                    assert_eq!(expected, None, "at {}", self.now);
                    return;
                }
            }
        }
    }

    fn note_start(&mut self, attempt: Attempt) {
        let d = index_of(attempt.destination());
        let job = self.jobs.get_mut(&(attempt.id(), d)).expect("only what was admitted starts");
        assert_eq!(job.phase, Phase::Waiting, "started twice, or though held");
        assert!(job.due <= self.now && !self.held[d] && !self.all_held);
        job.phase = Phase::InFlight { held: false, again: false, removed: false };
        self.running.push(attempt);
        assert!(self.running.len() <= self.limits.total_concurrency_max as usize);
        assert!(self.in_flight(d) <= self.limits.destination_concurrency_max as usize + 1, "a probe is one more");
    }

    fn admit(&mut self) {
        let id = if self.roll(10) == 0 { 1 + self.roll(self.next_id) } else { self.next_id };
        self.next_id = self.next_id.max(id + 1);
        let id = QueueId::from_u64(id);
        for _ in 0..1 + self.roll(2) {
            let d = self.roll(DESTINATIONS.len() as u64) as usize;
            let due = if self.roll(2) == 0 { self.now } else { self.now + self.roll(3_000) };
            let lane = Lane::ALL[self.roll(3) as usize];
            self.schedule.admit(Job { id, destination: DESTINATIONS[d].into(), due: UnixMillis(due), lane });
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
        let attempt = self.running.swap_remove(pick);
        let d = index_of(attempt.destination());
        let key = (attempt.id(), d);
        let later = self.now + 1 + self.roll(2_000);
        let dice = self.roll(100);
        let (finish, due) = match dice {
            _ if self.dead[d] => (Finish::DestinationFailed { said: "dead".into() }, Some(self.now)),
            0..65 => (Finish::Done, None),
            65..80 => (Finish::Requeue { due: UnixMillis(later) }, Some(later)),
            80..90 => (Finish::Throttled { due: UnixMillis(later), said: "421".into() }, Some(later)),
            90..95 => (Finish::DestinationFailed { said: "lost".into() }, Some(self.now)),
            _ => (Finish::Returned, None),
        };
        let is_returned = finish == Finish::Returned;
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
    }

    fn meddle(&mut self) {
        let d = self.roll(DESTINATIONS.len() as u64) as usize;
        let id = QueueId::from_u64(1 + self.roll(self.next_id));
        match self.roll(10) {
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
            8 => self.retry(d),
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
        self.schedule.remove(Selector::Id(id));
        self.jobs.retain(|(of, _), job| *of != id || matches!(job.phase, Phase::InFlight { .. }));
        for (_, job) in self.jobs.iter_mut().filter(|((of, _), _)| *of == id) {
            if let Phase::InFlight { held, .. } = job.phase {
                job.phase = Phase::InFlight { held, again: false, removed: true };
            }
        }
    }

    fn retry(&mut self, d: usize) {
        self.schedule.retry_now(Selector::Destination(DESTINATIONS[d]));
        for (_, job) in self.jobs.iter_mut().filter(|((_, to), _)| *to == d) {
            if matches!(job.phase, Phase::Waiting | Phase::Held) {
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
            assert_eq!(stats.oldest, jobs().map(|((id, _), _)| *id).min());
            assert_eq!(stats.is_held, self.held[d]);
        }
        assert_eq!(self.schedule.totals().jobs, self.jobs.len());
        assert_eq!(self.schedule.totals().in_flight, self.running.len());
    }

    fn step(&mut self) {
        match self.roll(20) {
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
        let d = self.roll(DESTINATIONS.len() as u64) as usize;
        let before = self.next_start();
        if let Some(attempt) = self.schedule.next_for(DESTINATIONS[d], UnixMillis(self.now)) {
            assert!(before.is_some_and(|at| at <= self.now));
            self.note_start(attempt);
        }
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
                match self.next_start() {
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
