//! Which attempt starts next, and when to wake and why. A machine without IO: the dispatcher owns
//! one, tells it what happened and asks [`Schedule::poll`] what to do. It reads no clock, keeps
//! nothing on disk and never looks at a message; a job is an id, a destination, a sender and a due
//! time.
//!
//! * A message with recipients at k destinations is k jobs; a job is never started twice at once.
//! * Destinations whose mail the same hosts take are lines to one site: they share its window, its
//!   rates and its back-off (docs/decisions/0006). Whoever finds where a destination's mail goes
//!   says so ([`Schedule::relocate`]); until then a destination is a site by itself.
//! * A job waits for its own due time; when its site cannot be reached it waits for that alone, and
//!   all such jobs are ready at once when a probe gets through (`site`).
//! * Turns (`turns`): ready sites, and within a site senders, so that no destination and no sender
//!   delays another. Urgent jobs go before normal ones and these before bulk, but every eighth turn
//!   is for each lower lane.
//! * Limits hold always: sessions of a site (adaptive), its rates, sessions in all, and among these
//!   sessions to sites not known to answer, so that no number of dead ones takes them all. Bulk
//!   never takes the last session of a site, and no lower lane the last ones of all. What goes behind
//!   another attempt, over its session, takes none itself (`behind`).
//!
//! Every operation on a message costs O(log n); on a destination or on all it begins something that
//! goes on with the calls that follow, a limited piece with each. A deferred job costs about 100
//! octets.

mod advance;
mod behind;
mod book;
mod census;
mod job;
mod limits;
mod line;
mod pace;
mod probe;
mod report;
mod rotation;
mod site;
mod slab;
mod steer;
mod turns;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use crate::id::{QueueId, UnixMillis};
use advance::{Chore, Timer};
use book::{Book, Entry, Phase};
use job::LANES;
use line::Line;
use site::{Blame, Site, UNPROVEN};
use slab::Slab;
use turns::Turns;

pub use census::{AGE_MINUTES, AGES, Census};
pub use job::{Attempt, Finish, Job, Lane, Load, Next, WakeReason};
pub use limits::{Allowance, Limits};
pub use pace::Rate;
pub use report::{Ahead, DestinationStats, Standing, Totals, Why};
pub use steer::Selector;

/// How many jobs a kept connection may take in a row for one site while others wait for one of the
/// sessions in all.
const TAKEN_MAX: u32 = 20;
/// Destinations without jobs whose site, window and back-off are remembered.
const IDLE_LINES_MAX: usize = 1_024;

/// The schedule.
#[derive(Debug)]
pub struct Schedule {
    limits: Limits,
    /// The latest time heard of.
    now: UnixMillis,
    /// The latest serial given out.
    serial: u64,
    in_flight: u32,
    /// Of these, attempts that started when their site was unproven.
    unproven: u32,
    /// Jobs that wait for their due time, and jobs that are held one by one.
    deferred: usize,
    held_jobs: usize,
    /// Whether an admin holds all there is.
    held: bool,
    turn: u32,
    random: u64,
    book: Book,
    lines: Slab<Line>,
    line_names: HashMap<Arc<str>, u32>,
    idle: VecDeque<u32>,
    sites: Slab<Site>,
    site_names: HashMap<Arc<str>, u32>,
    turns: Turns,
    /// Who is next of each line, by site and lane: turn, line.
    heads: BTreeSet<(u32, u64, u32)>,
    /// Sites with a ready job, unproven ones apart, by lane, in the order of their turns. One that
    /// cannot start when its turn comes is dropped; [`Schedule::place`] puts it back when it can.
    rotation: [[BTreeSet<(u64, u32)>; LANES]; 2],
    /// When lines and sites have to be looked at again.
    timers: BTreeSet<(UnixMillis, Timer)>,
    /// What was begun for many jobs and goes on.
    chores: VecDeque<Chore>,
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
            deferred: 0,
            held_jobs: 0,
            held: false,
            turn: 0,
            random: seed,
            book: Book::default(),
            lines: Slab::default(),
            line_names: HashMap::new(),
            idle: VecDeque::new(),
            sites: Slab::default(),
            site_names: HashMap::new(),
            turns: Turns::default(),
            heads: BTreeSet::new(),
            rotation: Default::default(),
            timers: BTreeSet::new(),
            chores: VecDeque::new(),
        }
    }

    /// Replaces the limits. Sessions above a lowered limit end in their own time.
    pub fn set_limits(&mut self, limits: Limits) {
        let before = std::mem::replace(&mut self.limits, limits.sane());
        for number in self.site_names.values().copied().collect::<Vec<u32>>() {
            let site = self.sites.at(number);
            let (old, new) = (before.allowance(site.allowance), self.limits.allowance(site.allowance));
            site.window = site.window.min(new.concurrency_max);
            site.repace(&old, &new);
            self.place(number);
        }
    }

    /// Takes a job in at `now`. A job that is there already takes the new due time and lane; one
    /// that is in flight starts again after it has finished, whatever comes of the attempt.
    pub fn admit(&mut self, job: Job, now: UnixMillis) {
        self.now = self.now.max(now);
        let line = self.line_of(&job.destination, Some(job.allowance));
        let Some(known) = self.book.find(job.id, line) else {
            let phase = Phase::Held;
            let (sender, load, lane) = (job.sender, job.load, job.lane);
            let entry = Entry { id: job.id, at: job.due.0, line, sender, load, epoch: 0, lane, phase };
            let number = self.book.insert(entry);
            self.wait(number, job.due);
            return self.place(self.lines.get(line).site);
        };
        match self.book.get(known).phase {
            Phase::InFlight { held, .. } => {
                let entry = self.book.at(known);
                // The attempt counts in the lane that it started in; it knows which.
                (entry.at, entry.lane) = (job.due.0, job.lane);
                entry.phase = Phase::InFlight { held, again: true, removed: false };
            }
            Phase::Held => {
                let epoch = self.lines.get(line).epoch;
                let entry = self.book.at(known);
                // Not what an earlier retry made due at once: this due time is newer.
                (entry.at, entry.lane, entry.epoch) = (job.due.0, job.lane, epoch);
            }
            Phase::Ready | Phase::Deferred => {
                self.take_out(known);
                self.book.at(known).lane = job.lane;
                self.wait(known, job.due);
                self.place(self.lines.get(line).site);
            }
        }
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

    /// Returns the next job of a site for a worker that keeps its connection, if one is ready and no
    /// other site has waited too long for a session.
    pub fn next_for(&mut self, site: &str, now: UnixMillis) -> Option<Attempt> {
        self.advance(now);
        let number = *self.site_names.get(site)?;
        if self.held || self.in_flight >= self.limits.total_concurrency_max {
            return None;
        }
        let is_scarce = self.in_flight + 1 >= self.limits.total_max(Lane::Normal);
        if is_scarce && self.others_wait(number) {
            let site = self.sites.at(number);
            if site.taken >= TAKEN_MAX {
                return None;
            }
            site.taken += 1;
        }
        self.start(number)
    }

    /// Tells where the mail of an attempt's destination really goes. From now on the destination is
    /// a line to that site. Returns whether the attempt may go there now; if not, the site is busy
    /// or closed, and the attempt is to be [`Finish::Returned`].
    pub fn relocate(&mut self, attempt: &mut Attempt, site: &Arc<str>, now: UnixMillis) -> bool {
        self.advance(now);
        self.take_up(attempt);
        let allowance = self.sites.get(self.lines.get(attempt.line).site).allowance;
        let target = self.site_of(site, allowance);
        self.point(attempt.line, target);
        let line = self.lines.at(attempt.line);
        let is_own = line.name == *site;
        line.learned = (!is_own).then_some(self.now);
        let may = attempt.site == target || self.move_attempt(attempt, target);
        if may {
            attempt.site_name = self.sites.get(target).name.clone();
            attempt.learned = self.lines.get(attempt.line).learned;
        }
        may
    }

    /// Takes an attempt back with what came of it.
    pub fn finished(&mut self, mut attempt: Attempt, finish: Finish, now: UnixMillis) {
        self.now = self.now.max(now);
        self.take_up(&mut attempt);
        self.in_flight -= 1;
        self.unproven -= u32::from(attempt.is_unproven);
        self.lines.at(attempt.line).in_flight -= 1;
        let shaken = self.judge(&attempt, &finish);
        let Entry { at, phase, .. } = *self.book.get(attempt.job);
        let Phase::InFlight { held, again, removed } = phase else {
            unreachable!("only a job in flight has an attempt");
        };
        let due = match finish {
            Finish::Done | Finish::Forgotten => None,
            Finish::Requeue { due } | Finish::Throttled { due, .. } | Finish::Postponed { due } => Some(due),
            Finish::DestinationFailed { .. } | Finish::Silent { .. } | Finish::Returned => Some(self.now),
        };
        let due = if again { Some(due.map_or(UnixMillis(at), |due| due.min(UnixMillis(at)))) } else { due };
        match due.filter(|_| !removed) {
            None => self.book.remove(attempt.job),
            Some(due) if held => self.keep(attempt.job, due),
            // What was not tried keeps its turn.
            Some(_) if finish == Finish::Returned && !again => self.wait_at(attempt.job, at),
            Some(due) => self.wait(attempt.job, due),
        }
        let own = (attempt.id, attempt.line);
        self.make_due(attempt.site, shaken.into_iter().filter(|job| *job != own));
        let site = self.lines.get(attempt.line).site;
        self.place(site);
        if attempt.site != site {
            self.place(attempt.site);
            self.forget_site_if_empty(attempt.site);
        }
        self.retire_if_idle(attempt.line);
    }

    /// Returns the line of a destination, a new one if need be.
    fn line_of(&mut self, name: &Arc<str>, allowance: Option<u16>) -> u32 {
        if let Some(line) = self.line_names.get(name).copied() {
            let number = self.lines.get(line).site;
            let site = self.sites.at(number);
            if let Some(allowance) = allowance.filter(|allowance| *allowance != site.allowance) {
                let old = std::mem::replace(&mut site.allowance, allowance);
                site.repace(&self.limits.allowance(old), &self.limits.allowance(allowance));
                // Other rates may let it start sooner.
                self.place(number);
            }
            return line;
        }
        let site = self.site_of(name, allowance.unwrap_or_default());
        self.sites.at(site).lines += 1;
        let line = self.lines.insert(Line::new(name.clone(), site));
        self.line_names.insert(name.clone(), line);
        line
    }

    /// Returns the site with this name, a new one if need be.
    fn site_of(&mut self, name: &Arc<str>, allowance: u16) -> u32 {
        if let Some(site) = self.site_names.get(name) {
            return *site;
        }
        let max = self.limits.allowance(allowance).concurrency_max;
        let first = self.limits.destination_concurrency_first.min(max);
        let site = self.sites.insert(Site::new(name.clone(), allowance, first));
        self.site_names.insert(name.clone(), site);
        site
    }

    /// Lets the site learn from an attempt. Returns the jobs that an outage put off, when it ends.
    fn judge(&mut self, attempt: &Attempt, finish: &Finish) -> Vec<(QueueId, u32)> {
        let (newest, now) = (self.serial, self.now);
        let random = self.next_random();
        let line = self.lines.get(attempt.line);
        let leads_here = line.site == attempt.site;
        let site = self.sites.at(attempt.site);
        // Of other lines at the site it is known how many have some.
        let waiting = line.ready.iter().sum::<u32>().max(site.waiting.iter().sum()).saturating_add(1);
        let Allowance { concurrency_max: max, backoff, .. } = self.limits.allowance(site.allowance);
        let first = self.limits.destination_concurrency_first.min(max);
        site.ended(attempt.serial, attempt.lane);
        let blame = |said| Blame { serial: attempt.serial, newest, now, said, backoff: &backoff, silent: None };
        match finish {
            Finish::Returned | Finish::Forgotten | Finish::Postponed { .. } => {}
            Finish::Throttled { said, .. } => {
                if leads_here {
                    site.shook(attempt.id, attempt.line);
                }
                site.throttled(&blame(said), random);
            }
            Finish::DestinationFailed { said } => site.unreachable(&blame(said), random),
            Finish::Silent { said } => site.unreachable(&Blame { silent: Some(waiting), ..blame(said) }, random),
            Finish::Requeue { .. } => return site.reached(newest, first),
            Finish::Done => {
                let shaken = site.reached(newest, first);
                site.completed(max);
                return shaken;
            }
        }
        Vec::new()
    }

    /// Makes a line lead to a site. What is in line comes along, in its order, at the clock there.
    fn point(&mut self, number: u32, target: u32) {
        let old = self.lines.get(number).site;
        if old == target {
            return;
        }
        for lane in Lane::ALL {
            self.behead(number, lane);
            let shift = self.turns.now(clock(target, lane)).wrapping_sub(self.turns.now(clock(old, lane)));
            let offset = &mut self.lines.at(number).offset[lane as usize];
            *offset = offset.wrapping_add(shift);
        }
        self.lines.at(number).site = target;
        self.sites.at(target).lines += 1;
        let old_site = self.sites.at(old);
        old_site.lines -= 1;
        if old_site.lines == 0 {
            old_site.shaken = Vec::new();
        }
        Lane::ALL.iter().for_each(|lane| self.rehead(number, *lane));
        self.place(target);
        self.place(old);
        self.forget_site_if_empty(old);
    }

    /// Moves a running attempt to another site, if one more may start there now.
    fn move_attempt(&mut self, attempt: &mut Attempt, target: u32) -> bool {
        let site = self.sites.get(target);
        let is_unproven = site.class() == UNPROVEN;
        let fits = attempt.is_unproven || !is_unproven || self.has_unproven_session(attempt.lane);
        if !fits || !self.may_start(target) || !site.fits(attempt.lane) {
            return false;
        }
        self.unproven = self.unproven - u32::from(attempt.is_unproven) + u32::from(is_unproven);
        self.sites.at(attempt.site).ended(attempt.serial, attempt.lane);
        let load = self.book.get(attempt.job).load;
        let (now, site) = (self.now, self.sites.at(target));
        site.sends(load, &self.limits.allowance(site.allowance), now);
        attempt.is_probe = site.started(attempt.serial, attempt.lane, now);
        attempt.is_unproven = is_unproven;
        let left = std::mem::replace(&mut attempt.site, target);
        self.place(target);
        self.place(left);
        self.forget_site_if_empty(left);
        true
    }

    /// Notes a line that has nothing left, and forgets the one that has been so longest.
    fn retire_if_idle(&mut self, number: u32) {
        let line = self.lines.at(number);
        if !line.is_empty() || line.idle {
            return;
        }
        line.idle = true;
        self.idle.push_back(number);
        if self.idle.len() <= IDLE_LINES_MAX {
            return;
        }
        let Some(oldest) = self.idle.pop_front() else { return };
        let line = self.lines.at(oldest);
        line.idle = false;
        if !line.is_empty() {
            return;
        }
        let (name, site) = (std::mem::take(&mut line.name), line.site);
        self.line_names.remove(&name);
        self.lines.free(oldest);
        self.sites.at(site).lines -= 1;
        self.forget_site_if_empty(site);
    }

    /// Forgets a site that no line leads to and no attempt has to do with.
    fn forget_site_if_empty(&mut self, number: u32) {
        let site = self.sites.get(number);
        if site.lines > 0 || site.attempts() + site.behind > 0 || !self.site_names.contains_key(&site.name) {
            return;
        }
        self.unlist(number);
        let name = std::mem::take(&mut self.sites.at(number).name);
        self.site_names.remove(&name);
        Lane::ALL.iter().for_each(|lane| self.turns.forget(clock(number, *lane)));
        self.sites.free(number);
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

/// Returns the clock of a site's lane, for the turns of senders there.
fn clock(site: u32, lane: Lane) -> u32 {
    rotation::CLOCKS + book::row(site, lane)
}
