//! Which attempt starts next, and when to wake and why. A machine without IO: the dispatcher owns
//! one, tells it what happened and asks [`Schedule::poll`] what to do. It reads no clock, keeps
//! nothing on disk and never looks at a message; a job is an id, a destination and a due time.
//!
//! * A message with recipients at k destinations is k jobs; a job is never started twice at once.
//! * A job waits for its own due time; when its destination cannot be reached it waits for that
//!   alone, and all such jobs are ready at once when a probe gets through (`destination`).
//! * Ready destinations take turns, one start each, so that none delays another. Urgent jobs go
//!   before normal ones and these before bulk, but every eighth turn is for each lower lane.
//! * Limits hold always: sessions of a destination (adaptive), sessions in all, and among these
//!   sessions to destinations not known to answer, so that no number of dead ones takes them all.
//!
//! Every operation on a message costs O(log n), on a destination or all O(n); a deferred job costs
//! about 120 octets.

mod destination;
mod job;
mod limits;
mod line;
mod report;
mod steer;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use crate::id::UnixMillis;
use destination::{Blame, Destination, PROVEN, UNPROVEN};
use job::LANES;
use line::{Entry, Key, Line, Phase};

pub use job::{Attempt, Finish, Job, Lane, Next, WakeReason};
pub use limits::Limits;
pub use report::{DestinationStats, Standing, Totals, Why};
pub use steer::Selector;

/// How many jobs a kept connection may take in a row for one destination while others wait for
/// one of the sessions in all.
const TAKEN_MAX: u32 = 20;
/// Destinations without jobs whose window and back-off are remembered.
const IDLE_DESTINATIONS_MAX: usize = 1_024;

/// The schedule.
#[derive(Debug)]
pub struct Schedule {
    limits: Limits,
    /// The latest time heard of.
    now: UnixMillis,
    /// The latest serial given out.
    serial: u64,
    in_flight: u32,
    /// Of these, attempts that started when their destination was unproven.
    unproven: u32,
    /// Whether an admin holds all there is.
    held: bool,
    turn: u32,
    random: u64,
    line: Line,
    /// By place. A freed place is kept for the next destination.
    destinations: Vec<Destination>,
    free: Vec<u32>,
    names: HashMap<Arc<str>, u32>,
    /// Destinations with a due job, unproven ones apart, by lane, in the order of their turns. One
    /// that cannot start when its turn comes is dropped; [`Schedule::place`] puts it back when it
    /// can.
    rotation: [[VecDeque<u32>; LANES]; 2],
    /// When destinations have to be looked at again, unproven ones apart.
    timers: [BTreeSet<(UnixMillis, u32)>; 2],
    idle: VecDeque<u32>,
}

impl Schedule {
    /// Builds an empty schedule; a limit of 0 counts as 1. `seed` is for the jitter of back-offs.
    pub fn new(limits: Limits, seed: u64) -> Schedule {
        Schedule {
            limits: limits.sane(),
            now: UnixMillis(0),
            serial: 0,
            in_flight: 0,
            unproven: 0,
            held: false,
            turn: 0,
            random: seed,
            line: Line::default(),
            destinations: Vec::new(),
            free: Vec::new(),
            names: HashMap::new(),
            rotation: Default::default(),
            timers: Default::default(),
            idle: VecDeque::new(),
        }
    }

    /// Replaces the limits. Sessions above a lowered limit end in their own time.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits.sane();
        for place in 0..self.destinations.len() as u32 {
            let max = self.limits.destination_concurrency_max;
            let destination = self.at(place);
            destination.window = destination.window.min(max);
            self.place(place);
        }
    }

    /// Takes a job in. A job that is there already takes the new due time and lane; one that is in
    /// flight starts again after it has finished, whatever comes of the attempt.
    pub fn admit(&mut self, job: Job) {
        let place = self.place_of(&job.destination);
        let key = Key { id: job.id, place };
        let mut entry = Entry { due: job.due, lane: job.lane, phase: Phase::Waiting };
        match self.line.get(key).map(|entry| entry.phase) {
            None => {}
            Some(Phase::Waiting | Phase::Held) => {
                entry.phase = self.take_out(key).map_or(Phase::Waiting, |old| old.phase);
            }
            Some(Phase::InFlight { held, .. }) => {
                entry.phase = Phase::InFlight { held, again: true, removed: false };
                self.line.set(key, entry);
                return;
            }
        }
        self.put_in(key, entry);
        self.place(place);
    }

    /// Returns what to do at `now`.
    pub fn poll(&mut self, now: UnixMillis) -> Next {
        self.advance(now);
        if self.held || self.in_flight >= self.limits.total_concurrency_max {
            return Next::Idle;
        }
        for lane in Lane::in_turn(self.turn) {
            for class in self.classes_in_turn() {
                if let Some(attempt) = self.start_in(class, lane) {
                    return Next::Start(attempt);
                }
            }
        }
        self.wake()
    }

    /// Returns the next job of `destination` for a worker that keeps its connection, if one is
    /// ready and no other destination has waited too long for a session.
    pub fn next_for(&mut self, destination: &str, now: UnixMillis) -> Option<Attempt> {
        self.advance(now);
        let place = *self.names.get(destination)?;
        if self.held || self.in_flight >= self.limits.total_concurrency_max {
            return None;
        }
        if self.in_flight + 1 == self.limits.total_concurrency_max && self.others_wait(place) {
            let destination = self.at(place);
            if destination.taken >= TAKEN_MAX {
                return None;
            }
            destination.taken += 1;
        }
        self.start(place)
    }

    /// Takes an attempt back with what came of it.
    pub fn finished(&mut self, attempt: Attempt, finish: Finish, now: UnixMillis) {
        self.now = self.now.max(now);
        self.in_flight -= 1;
        self.unproven -= u32::from(attempt.is_unproven);
        self.judge(&attempt, &finish);
        let key = Key { id: attempt.id, place: attempt.place };
        let entry = self.take_out(key).expect("a job stays until its attempt has finished");
        let Phase::InFlight { held, again, removed } = entry.phase else {
            unreachable!("only a job in flight has an attempt");
        };
        let due = match finish {
            Finish::Done | Finish::Forgotten => None,
            Finish::Requeue { due } | Finish::Throttled { due, .. } | Finish::Postponed { due } => Some(due),
            Finish::DestinationFailed { .. } => Some(self.now),
            Finish::Returned => Some(if again { self.now } else { entry.due }),
        };
        let due = if again { Some(due.map_or(entry.due, |due| due.min(entry.due))) } else { due };
        if let (Some(due), false) = (due, removed) {
            let phase = if held { Phase::Held } else { Phase::Waiting };
            self.put_in(key, Entry { due, phase, ..entry });
        }
        self.place(attempt.place);
        self.retire_if_idle(attempt.place);
    }

    fn at(&mut self, place: u32) -> &mut Destination {
        &mut self.destinations[place as usize]
    }

    /// Returns the place of a destination, a new one if need be.
    fn place_of(&mut self, name: &Arc<str>) -> u32 {
        if let Some(place) = self.names.get(name) {
            return *place;
        }
        let fresh = Destination::new(name.clone(), self.limits.destination_concurrency_first);
        let place = match self.free.pop() {
            Some(place) => {
                self.destinations[place as usize] = fresh;
                place
            }
            None => {
                self.destinations.push(fresh);
                u32::try_from(self.destinations.len() - 1).expect("fewer than 2^32 destinations fit in memory")
            }
        };
        self.names.insert(name.clone(), place);
        place
    }

    /// Moves time on and lets every destination in whose time has come.
    fn advance(&mut self, now: UnixMillis) {
        self.now = self.now.max(now);
        for class in [PROVEN, UNPROVEN] {
            while let Some((at, place)) = self.timers[class].first().copied().filter(|(at, _)| *at <= self.now) {
                self.timers[class].remove(&(at, place));
                self.at(place).timer = None;
                self.place(place);
            }
        }
    }

    /// Returns when the next attempt can start, now that none can.
    fn wake(&self) -> Next {
        let unproven = self.timers[UNPROVEN].first().filter(|_| self.has_unproven_session());
        let Some((at, place)) = self.timers[PROVEN].first().into_iter().chain(unproven).min().copied() else {
            return Next::Idle;
        };
        let is_closed = self.destinations[place as usize].closed_until() == at;
        Next::Wake { at, why: if is_closed { WakeReason::BackoffEnds } else { WakeReason::JobDue } }
    }

    fn has_unproven_session(&self) -> bool {
        self.unproven < self.limits.unproven_concurrency_max
    }

    /// Puts a destination where it belongs after anything changed about it: into the rotation of
    /// each lane that has a due job, and among the timers for what comes later.
    fn place(&mut self, index: u32) {
        let destination = &mut self.destinations[index as usize];
        let (gate, class) = (destination.closed_until(), destination.class());
        let mut timer = None;
        if destination.has_slot() {
            for lane in Lane::ALL {
                let l = lane as usize;
                if destination.waiting[l] == 0 || destination.enlisted[class][l] {
                    continue;
                }
                let Some(head) = self.line.head(index, lane) else { continue };
                let at = head.due.max(gate);
                if at <= self.now {
                    destination.enlisted[class][l] = true;
                    self.rotation[class][l].push_back(index);
                } else {
                    timer = Some(timer.map_or((class, at), |(_, earlier)| (class, at.min(earlier))));
                }
            }
        }
        if destination.timer != timer {
            if let Some((class, at)) = destination.timer {
                self.timers[class].remove(&(at, index));
            }
            if let Some((class, at)) = timer {
                self.timers[class].insert((at, index));
            }
            destination.timer = timer;
        }
    }

    /// Returns both classes; either comes first half of the turns of every lane.
    fn classes_in_turn(&self) -> [usize; 2] {
        if (self.turn ^ (self.turn >> 3)) & 1 == 0 { [PROVEN, UNPROVEN] } else { [UNPROVEN, PROVEN] }
    }

    /// Starts a job of the first destination in a rotation that may start one.
    fn start_in(&mut self, class: usize, lane: Lane) -> Option<Attempt> {
        while class == PROVEN || self.has_unproven_session() {
            let place = self.rotation[class][lane as usize].pop_front()?;
            self.at(place).enlisted[class][lane as usize] = false;
            // One that changed its class takes its turn in the other rotation.
            if self.at(place).class() == class
                && let Some(attempt) = self.start(place)
            {
                self.turn = self.turn.wrapping_add(1);
                self.at(place).taken = 0;
                return Some(attempt);
            }
            self.place(place);
        }
        None
    }

    /// Starts the next job of a destination, if it may start one now.
    fn start(&mut self, place: u32) -> Option<Attempt> {
        let destination = &self.destinations[place as usize];
        if !destination.has_slot() || destination.closed_until() > self.now {
            return None;
        }
        let is_unproven = destination.class() == UNPROVEN;
        if is_unproven && !self.has_unproven_session() {
            return None;
        }
        let due = |lane: &Lane| self.line.head(place, *lane).filter(|head| head.due <= self.now);
        let head = Lane::in_turn(destination.turn).iter().find_map(due)?;
        let key = Key { id: head.id, place };
        let entry = self.take_out(key).expect("what stands in line is a job");
        self.line.set(key, Entry { phase: Phase::InFlight { held: false, again: false, removed: false }, ..entry });
        self.in_flight += 1;
        self.unproven += u32::from(is_unproven);
        self.serial += 1;
        let serial = self.serial;
        let is_probe = self.at(place).started(serial);
        self.place(place);
        let destination = self.at(place).name.clone();
        Some(Attempt { id: key.id, destination, serial, place, is_probe, is_unproven })
    }

    /// Lets the destination learn from an attempt.
    fn judge(&mut self, attempt: &Attempt, finish: &Finish) {
        let random = self.next_random();
        let (newest, now) = (self.serial, self.now);
        let Limits { destination_concurrency_max: max, destination_concurrency_first: first, .. } = self.limits;
        let destination = &mut self.destinations[attempt.place as usize];
        destination.ended(attempt.serial);
        let backoff = &self.limits.destination_backoff;
        let blame = |said| Blame { serial: attempt.serial, newest, now, said, backoff };
        match finish {
            Finish::Returned | Finish::Forgotten | Finish::Postponed { .. } => {}
            Finish::Throttled { said, .. } => destination.throttled(&blame(said), random),
            Finish::DestinationFailed { said } => destination.unreachable(&blame(said), random),
            Finish::Requeue { .. } => destination.reached(newest, first),
            Finish::Done => {
                destination.reached(newest, first);
                destination.completed(max);
            }
        }
    }

    /// Returns whether a destination other than this one stands in a rotation.
    fn others_wait(&self, place: u32) -> bool {
        self.rotation.iter().flatten().any(|lane| lane.len() > 1 || lane.front().is_some_and(|front| *front != place))
    }

    /// Adds a job, and to the counts of its destination.
    fn put_in(&mut self, key: Key, entry: Entry) {
        self.line.insert(key, entry);
        let destination = self.at(key.place);
        match entry.phase {
            Phase::Waiting => destination.waiting[entry.lane as usize] += 1,
            Phase::Held => destination.held_jobs += 1,
            Phase::InFlight { .. } => {}
        }
    }

    /// Takes a job out, and from the counts of its destination.
    fn take_out(&mut self, key: Key) -> Option<Entry> {
        let entry = self.line.remove(key)?;
        let destination = self.at(key.place);
        match entry.phase {
            Phase::Waiting => destination.waiting[entry.lane as usize] -= 1,
            Phase::Held => destination.held_jobs -= 1,
            Phase::InFlight { .. } => {}
        }
        Some(entry)
    }

    /// Notes a destination that has nothing left, and forgets the one that has been so longest.
    fn retire_if_idle(&mut self, place: u32) {
        let destination = self.at(place);
        if !destination.is_empty() || destination.idle {
            return;
        }
        destination.idle = true;
        self.idle.push_back(place);
        if self.idle.len() <= IDLE_DESTINATIONS_MAX {
            return;
        }
        let Some(oldest) = self.idle.pop_front() else { return };
        let destination = self.at(oldest);
        destination.idle = false;
        if !destination.is_empty() {
            return;
        }
        if destination.enlisted != [[false; LANES]; 2] {
            destination.idle = true;
            self.idle.push_back(oldest);
            return;
        }
        let name = std::mem::take(&mut destination.name);
        self.names.remove(&name);
        self.free.push(oldest);
    }

    /// Returns the next number in 0..1 of a small generator (splitmix64): only back-offs use it.
    fn next_random(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}
