//! Which attempt starts next, and when to wake and why. A machine without IO: the dispatcher owns
//! one, tells it what happened and asks [`Schedule::poll`] what to do. It reads no clock, keeps
//! nothing on disk and never looks at a message; a job is an id, a destination and a due time.
//!
//! * A message with recipients at k destinations is k jobs; a job is never started twice at once.
//! * A job waits for its own due time; when its destination cannot be reached it waits for that
//!   alone, and all such jobs are ready at once when a probe gets through ([`destination`]).
//! * Ready destinations take turns, one start each, so that none delays another. Urgent jobs go
//!   before normal ones and these before bulk, but every eighth turn is for each lower lane.
//! * Limits hold always: sessions of a destination (adaptive) and sessions in all.
//!
//! Every operation costs O(log n); a deferred job costs about 120 octets.

mod destination;
mod line;
mod report;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use crate::id::{QueueId, UnixMillis};
use crate::retry::RetryPolicy;
use destination::{Blame, Destination, LANES};
use line::{Entry, Key, Line, Phase};

pub use report::{DestinationStats, Standing, Totals, Why};

/// How many jobs a kept connection may take in a row for one destination while others wait for
/// one of the sessions in all.
const TAKEN_MAX: u32 = 20;
/// Of this many turns one is for each of the lower lanes.
const LANE_TURNS: u32 = 8;
/// Destinations without jobs whose window and back-off are remembered.
const IDLE_DESTINATIONS_MAX: usize = 1_024;

/// What the schedule never exceeds, and how it backs off.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Sessions to one destination at once, at most.
    pub destination_concurrency_max: u32,
    /// Sessions to a destination of which nothing is known yet.
    pub destination_concurrency_first: u32,
    /// Sessions in all, at most.
    pub total_concurrency_max: u32,
    /// How long a destination that cannot be reached is left alone.
    pub destination_backoff: RetryPolicy,
}

/// How soon a job goes when it competes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Notifications and alerts.
    Urgent,
    /// Mail.
    Normal,
    /// Mail that asked for it, or whose sender floods.
    Bulk,
}

/// One message on its way to one destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// The message.
    pub id: QueueId,
    /// The next hop's key.
    pub destination: Arc<str>,
    /// When it may start.
    pub due: UnixMillis,
    /// How soon it goes when it competes.
    pub lane: Lane,
}

/// A job that has started. Whoever holds it owes the schedule one [`Schedule::finished`]; only
/// the schedule makes it.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "an attempt that is not finished occupies its session for ever"]
pub struct Attempt {
    id: QueueId,
    destination: Arc<str>,
    serial: u64,
    place: u32,
    is_probe: bool,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Start this attempt, then ask again.
    Start(Attempt),
    /// Nothing starts before `at` unless something happens; at `at` something does.
    Wake {
        /// When to ask again.
        at: UnixMillis,
        /// What happens then.
        why: WakeReason,
    },
    /// Nothing starts until something happens.
    Idle,
}

/// Why to wake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WakeReason {
    /// A job is due.
    JobDue,
    /// The back-off of a destination ends; it is probed.
    BackoffEnds,
}

/// What came of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// Every recipient at this destination is settled.
    Done,
    /// The destination answered, and some recipient is to be tried again at `due`.
    Requeue {
        /// When.
        due: UnixMillis,
    },
    /// The session was refused or lost on the way (`421`, too many connections, reset): fewer at
    /// once from now on.
    Throttled {
        /// When to try again.
        due: UnixMillis,
        /// What was said, on one line, for [`Why::Closed`].
        said: Arc<str>,
    },
    /// The destination could not be reached. The job keeps its place and waits for the
    /// destination alone.
    DestinationFailed {
        /// What was said, on one line, for [`Why::Closed`].
        said: Arc<str>,
    },
    /// Nothing was tried: no resources, or the agent drains. The job is ready again.
    Returned,
}

/// Which jobs an admin means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selector<'a> {
    /// All jobs of a message.
    Id(QueueId),
    /// All jobs of a destination.
    Destination(&'a str),
    /// All.
    All,
}

/// The schedule.
#[derive(Debug)]
pub struct Schedule {
    limits: Limits,
    /// The latest time heard of.
    now: UnixMillis,
    /// The latest serial given out.
    serial: u64,
    in_flight: u32,
    /// Whether an admin holds all there is.
    held: bool,
    turn: u32,
    random: u64,
    line: Line,
    /// By place. A freed place is kept for the next destination.
    destinations: Vec<Destination>,
    free: Vec<u32>,
    names: HashMap<Arc<str>, u32>,
    /// Destinations with a due job, by lane, in the order of their turns. One that cannot start
    /// when its turn comes is dropped; [`Schedule::place`] puts it back when it can.
    rotation: [VecDeque<u32>; LANES],
    timers: BTreeSet<(UnixMillis, u32)>,
    idle: VecDeque<u32>,
}

impl Lane {
    /// All lanes, the soonest first.
    pub const ALL: [Lane; LANES] = [Lane::Urgent, Lane::Normal, Lane::Bulk];
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            destination_concurrency_max: 20,
            destination_concurrency_first: 5,
            total_concurrency_max: 500,
            destination_backoff: RetryPolicy::DESTINATION,
        }
    }
}

impl Attempt {
    /// Returns the message.
    pub fn id(&self) -> QueueId {
        self.id
    }

    /// Returns the next hop's key.
    pub fn destination(&self) -> &Arc<str> {
        &self.destination
    }

    /// Returns a number that no other attempt of this schedule has.
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// Returns whether all else that waits for the destination waits for this attempt.
    pub fn is_probe(&self) -> bool {
        self.is_probe
    }
}

impl Schedule {
    /// Builds an empty schedule; a limit of 0 counts as 1. `seed` is for the jitter of back-offs.
    pub fn new(limits: Limits, seed: u64) -> Schedule {
        Schedule {
            limits: sane(limits),
            now: UnixMillis(0),
            serial: 0,
            in_flight: 0,
            held: false,
            turn: 0,
            random: seed,
            line: Line::default(),
            destinations: Vec::new(),
            free: Vec::new(),
            names: HashMap::new(),
            rotation: Default::default(),
            timers: BTreeSet::new(),
            idle: VecDeque::new(),
        }
    }

    /// Replaces the limits. Sessions above a lowered limit end in their own time.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = sane(limits);
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
        for lane in lanes_in_turn(self.turn) {
            while let Some(place) = self.rotation[lane as usize].pop_front() {
                self.at(place).enlisted[lane as usize] = false;
                if let Some(attempt) = self.start(place) {
                    self.turn = self.turn.wrapping_add(1);
                    self.at(place).taken = 0;
                    return Next::Start(attempt);
                }
                self.place(place);
            }
        }
        match self.timers.first() {
            None => Next::Idle,
            Some((at, place)) => {
                let closed_until = self.destinations[*place as usize].closed_until();
                let why = if closed_until == *at { WakeReason::BackoffEnds } else { WakeReason::JobDue };
                Next::Wake { at: *at, why }
            }
        }
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
        self.judge(&attempt, &finish);
        let key = Key { id: attempt.id, place: attempt.place };
        let entry = self.take_out(key).expect("a job stays until its attempt has finished");
        let Phase::InFlight { held, again, removed } = entry.phase else {
            unreachable!("only a job in flight has an attempt");
        };
        let due = match finish {
            Finish::Done => None,
            Finish::Requeue { due } | Finish::Throttled { due, .. } => Some(due),
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

    /// Holds what `which` names: no attempt starts until it is released; attempts in flight go on.
    /// Holding a destination or all holds what comes later, too. Returns the jobs concerned.
    pub fn hold(&mut self, which: Selector<'_>) -> usize {
        match which {
            Selector::Id(id) => self.each_of(id, |schedule, key, entry| schedule.hold_one(key, entry)),
            Selector::Destination(name) => {
                let place = self.place_of(&Arc::from(name));
                self.set_destination_held(place, true)
            }
            Selector::All => {
                self.held = true;
                self.line.len()
            }
        }
    }

    /// Releases what [`Schedule::hold`] held under the same name: what is held twice over is
    /// released twice. Returns the jobs concerned.
    pub fn release(&mut self, which: Selector<'_>) -> usize {
        match which {
            Selector::Id(id) => self.each_of(id, |schedule, key, entry| schedule.release_one(key, entry)),
            Selector::Destination(name) => match self.names.get(name) {
                Some(place) => self.set_destination_held(*place, false),
                None => 0,
            },
            Selector::All => {
                self.held = false;
                self.line.len()
            }
        }
    }

    /// Forgets what `which` names. A job in flight is forgotten when its attempt has finished.
    /// Returns the jobs concerned.
    pub fn remove(&mut self, which: Selector<'_>) -> usize {
        let keys = self.keys_of(which);
        let count = keys.len();
        for key in keys {
            let Some(entry) = self.line.get(key) else { continue };
            if let Phase::InFlight { held, .. } = entry.phase {
                self.line.set(key, Entry { phase: Phase::InFlight { held, again: false, removed: true }, ..entry });
            } else {
                self.take_out(key);
                self.place(key.place);
                self.retire_if_idle(key.place);
            }
        }
        count
    }

    /// Makes what `which` names due at once, and probes its destinations at once. What is held
    /// stays held. Returns the jobs concerned.
    pub fn retry_now(&mut self, which: Selector<'_>) -> usize {
        let keys = self.keys_of(which);
        let count = keys.len();
        let mut places = BTreeSet::new();
        for key in keys {
            let Some(entry) = self.line.get(key) else { continue };
            if matches!(entry.phase, Phase::Waiting | Phase::Held) {
                self.take_out(key);
                // Before all that became due by itself.
                self.put_in(key, Entry { due: UnixMillis(0), ..entry });
            }
            places.insert(key.place);
        }
        for place in places {
            if let Some(outage) = &mut self.at(place).outage {
                outage.until = UnixMillis(0);
            }
            self.place(place);
        }
        count
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
        while let Some((at, place)) = self.timers.first().copied().filter(|(at, _)| *at <= self.now) {
            self.timers.remove(&(at, place));
            self.at(place).timer = None;
            self.place(place);
        }
    }

    /// Puts a destination where it belongs after anything changed about it: into the rotation of
    /// each lane that has a due job, and among the timers for what comes later.
    fn place(&mut self, index: u32) {
        let destination = &mut self.destinations[index as usize];
        let mut timer = None;
        if destination.has_slot() {
            let gate = destination.closed_until();
            for lane in Lane::ALL {
                let l = lane as usize;
                if destination.waiting[l] == 0 || destination.enlisted[l] {
                    continue;
                }
                let Some(head) = self.line.head(index, lane) else { continue };
                let at = head.due.max(gate);
                if at <= self.now {
                    destination.enlisted[l] = true;
                    self.rotation[l].push_back(index);
                } else {
                    timer = Some(timer.map_or(at, |timer: UnixMillis| timer.min(at)));
                }
            }
        }
        if destination.timer != timer {
            if let Some(old) = destination.timer {
                self.timers.remove(&(old, index));
            }
            self.timers.extend(timer.map(|at| (at, index)));
            destination.timer = timer;
        }
    }

    /// Starts the next job of a destination, if it may start one now.
    fn start(&mut self, place: u32) -> Option<Attempt> {
        let destination = &self.destinations[place as usize];
        if !destination.has_slot() || destination.closed_until() > self.now {
            return None;
        }
        let due = |lane: &Lane| self.line.head(place, *lane).filter(|head| head.due <= self.now);
        let head = lanes_in_turn(destination.turn).iter().find_map(due)?;
        let key = Key { id: head.id, place };
        let entry = self.take_out(key).expect("what stands in line is a job");
        self.line.set(key, Entry { phase: Phase::InFlight { held: false, again: false, removed: false }, ..entry });
        self.in_flight += 1;
        self.serial += 1;
        let serial = self.serial;
        let is_probe = self.at(place).started(serial);
        self.place(place);
        let destination = self.at(place).name.clone();
        Some(Attempt { id: key.id, destination, serial, place, is_probe })
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
            Finish::Returned => {}
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
        self.rotation.iter().any(|lane| lane.len() > 1 || lane.front().is_some_and(|front| *front != place))
    }

    fn hold_one(&mut self, key: Key, entry: Entry) {
        let phase = match entry.phase {
            Phase::InFlight { again, removed, .. } => Phase::InFlight { held: true, again, removed },
            Phase::Waiting | Phase::Held => Phase::Held,
        };
        self.change(key, Entry { phase, ..entry });
    }

    fn release_one(&mut self, key: Key, entry: Entry) {
        let phase = match entry.phase {
            Phase::InFlight { again, removed, .. } => Phase::InFlight { held: false, again, removed },
            Phase::Waiting | Phase::Held => Phase::Waiting,
        };
        self.change(key, Entry { phase, ..entry });
    }

    fn change(&mut self, key: Key, entry: Entry) {
        if let Phase::InFlight { .. } = entry.phase {
            self.line.set(key, entry);
        } else {
            self.take_out(key);
            self.put_in(key, entry);
            self.place(key.place);
        }
    }

    fn set_destination_held(&mut self, place: u32, held: bool) -> usize {
        let destination = self.at(place);
        destination.held = held;
        let count = destination.in_line() + destination.held_jobs + destination.in_flight;
        self.place(place);
        self.retire_if_idle(place);
        count as usize
    }

    fn each_of(&mut self, id: QueueId, mut act: impl FnMut(&mut Schedule, Key, Entry)) -> usize {
        let found: Vec<(Key, Entry)> = self.line.of_message(id).collect();
        found.iter().for_each(|(key, entry)| act(self, *key, *entry));
        found.len()
    }

    fn keys_of(&self, which: Selector<'_>) -> Vec<Key> {
        match which {
            Selector::Id(id) => self.line.of_message(id).map(|(key, _)| key).collect(),
            Selector::All => self.line.keys().collect(),
            Selector::Destination(name) => match self.names.get(name) {
                Some(place) => self.line.keys().filter(|key| key.place == *place).collect(),
                None => Vec::new(),
            },
        }
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
        if destination.enlisted != [false; LANES] {
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

/// Returns the lanes in the order in which they are asked on this turn.
fn lanes_in_turn(turn: u32) -> [Lane; LANES] {
    match turn % LANE_TURNS {
        3 => [Lane::Normal, Lane::Urgent, Lane::Bulk],
        7 => [Lane::Bulk, Lane::Urgent, Lane::Normal],
        _ => Lane::ALL,
    }
}

fn sane(limits: Limits) -> Limits {
    let max = limits.destination_concurrency_max.max(1);
    Limits {
        destination_concurrency_max: max,
        destination_concurrency_first: limits.destination_concurrency_first.clamp(1, max),
        total_concurrency_max: limits.total_concurrency_max.max(1),
        ..limits
    }
}
