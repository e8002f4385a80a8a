//! What time brings about: jobs become due, back-offs and rates let go, and what was begun for many
//! jobs goes on, a limited piece with each call, so that none of them is long.

use super::book::{Entry, Phase};
use super::line::Head;
use super::{Schedule, clock};
use crate::id::{QueueId, UnixMillis};

/// Jobs put in order by one call, at most.
const PIECE: usize = 1_024;

/// What has to be looked at again at some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// A line: its next job is due.
    Line(u32),
    /// A site: its back-off ends, or its rate allows one more.
    Site(u32),
}

/// What was begun for many jobs.
#[derive(Clone, Copy, Debug)]
pub(super) enum Chore {
    /// All that a line has put off is due, from this due time and job on.
    Line { line: u32, from: (u64, u32) },
    /// The same of all lines, from this one on.
    All { from: u32 },
}

impl Schedule {
    /// Moves time on and lets in whatever's time has come.
    pub(super) fn advance(&mut self, now: UnixMillis) {
        self.now = self.now.max(now);
        let mut left = PIECE;
        while left > 0
            && let Some((_, timer)) = self.timers.first().copied().filter(|(at, _)| *at <= self.now)
        {
            let done = match timer {
                Timer::Line(line) => self.ripen(line, left),
                Timer::Site(site) => self.ring(site),
            };
            left = left.saturating_sub(done);
        }
        while left > 0
            && let Some(chore) = self.chores.pop_front()
        {
            let done = match chore {
                Chore::Line { line, from } => self.make_all_due(line, from, left),
                Chore::All { from } => self.begin_all(from),
            };
            left = left.saturating_sub(done);
        }
    }

    /// Returns whether there is more to put in order now.
    pub(super) fn is_behind(&self) -> bool {
        !self.chores.is_empty() || self.timers.first().is_some_and(|(at, _)| *at <= self.now)
    }

    /// Begins to make due at once all that a line has put off, and lets its site be probed.
    pub(super) fn make_line_due(&mut self, line: u32) {
        self.lines.at(line).epoch += 1;
        self.chores.push_back(Chore::Line { line, from: (0, 0) });
        self.probe_now(self.lines.get(line).site);
    }

    /// Begins the same for all lines.
    pub(super) fn make_all_lines_due(&mut self) {
        self.chores.push_back(Chore::All { from: 0 });
    }

    /// Ends a site's back-off.
    pub(super) fn probe_now(&mut self, site: u32) {
        if let Some(outage) = &mut self.sites.at(site).outage {
            outage.until = UnixMillis(0);
        }
        self.place(site);
    }

    /// Puts a job that stands nowhere where it belongs: in line, or off until it is due.
    pub(super) fn wait(&mut self, job: u32, due: UnixMillis) {
        if due > self.now {
            return self.put_off(job, due);
        }
        let Entry { line, lane, sender, load, .. } = *self.book.get(job);
        let line = self.lines.get(line);
        let clock = clock(line.site, lane);
        let is_alone = line.ready[lane as usize] == 0 && self.sites.get(line.site).waiting[lane as usize] == 0;
        let turn = line.at_line(lane, self.turns.take(clock, sender, load.cost(), is_alone));
        self.wait_at(job, turn);
    }

    /// Puts a job that stands nowhere in line at this turn, as its line counts.
    pub(super) fn wait_at(&mut self, job: u32, turn: u64) {
        self.book.make_ready(job, turn);
        let Entry { line: number, lane, sender, .. } = *self.book.get(job);
        let line = self.lines.at(number);
        let (site, is_held) = (line.site, line.held);
        line.ready[lane as usize] += 1;
        let new = Head { turn: line.at_site(lane, turn), job };
        let is_first = line.heads[lane as usize].is_none_or(|head| (new.turn, new.job) < (head.turn, head.job));
        if is_held {
            return;
        }
        if is_first {
            self.set_head(number, lane, Some(new));
        }
        self.hurry(site, lane, sender);
    }

    /// Takes note of a job that an admin holds and that stands nowhere.
    pub(super) fn keep(&mut self, job: u32, due: UnixMillis) {
        let number = self.book.get(job).line;
        let line = self.lines.at(number);
        line.held_jobs += 1;
        self.held_jobs += 1;
        let epoch = line.epoch;
        let entry = self.book.at(job);
        (entry.phase, entry.at, entry.epoch) = (Phase::Held, due.0, epoch);
    }

    /// Takes a job from where it stands.
    pub(super) fn take_out(&mut self, job: u32) {
        self.book.take_out(job);
        let Entry { line: number, lane, phase, at, .. } = *self.book.get(job);
        let line = self.lines.at(number);
        match phase {
            Phase::Ready => {
                line.ready[lane as usize] -= 1;
                if line.heads[lane as usize].is_some_and(|head| head.job == job) {
                    self.rehead(number, lane);
                }
            }
            Phase::Deferred => {
                line.deferred[lane as usize] -= 1;
                self.deferred -= 1;
                if line.timer == Some(UnixMillis(at)) {
                    self.retime(number);
                }
            }
            Phase::Held => {
                line.held_jobs -= 1;
                self.held_jobs -= 1;
            }
            Phase::InFlight { .. } => {}
        }
    }

    /// Returns when a job that is not ready is due.
    pub(super) fn due_of(&self, entry: &Entry) -> UnixMillis {
        let is_past = entry.epoch < self.lines.get(entry.line).epoch;
        UnixMillis(if is_past { 0 } else { entry.at })
    }

    fn put_off(&mut self, job: u32, due: UnixMillis) {
        let Entry { line: number, lane, .. } = *self.book.get(job);
        let line = self.lines.at(number);
        line.deferred[lane as usize] += 1;
        self.deferred += 1;
        let (epoch, timer) = (line.epoch, line.timer);
        self.book.defer(job, due, epoch);
        if timer.is_none_or(|at| due < at) {
            self.set_timer(number, Some(due));
        }
    }

    /// Looks again at a site whose timer has run out.
    fn ring(&mut self, number: u32) -> usize {
        if let Some(at) = self.sites.at(number).timer.take() {
            self.timers.remove(&(at, Timer::Site(number)));
        }
        self.place(number);
        1
    }

    /// Puts jobs of a line that are due in line, at most `max`. Returns how many, at least 1.
    fn ripen(&mut self, line: u32, max: usize) -> usize {
        let now = self.now.0;
        let mut done = 0;
        while done < max
            && let Some((_, job)) = self.book.first_deferred(line).filter(|(due, _)| *due <= now)
        {
            self.undefer(line, job);
            done += 1;
        }
        self.retime(line);
        self.place(self.lines.get(line).site);
        done.max(1)
    }

    /// Goes on with a line all of which is due, at most `max` jobs of it.
    fn make_all_due(&mut self, line: u32, from: (u64, u32), max: usize) -> usize {
        let found: Vec<(u64, u32)> = self.book.deferred(line, from).take(max).collect();
        let epoch = self.lines.get(line).epoch;
        for (_, job) in &found {
            if self.book.get(*job).epoch < epoch {
                self.undefer(line, *job);
            }
        }
        if let Some((due, job)) = found.last().filter(|_| found.len() == max) {
            self.chores.push_back(Chore::Line { line, from: (*due, job.saturating_add(1)) });
        }
        self.retime(line);
        self.place(self.lines.get(line).site);
        found.len().max(1)
    }

    /// Makes jobs of a site due at once that wait for the time they were put off to.
    pub(super) fn make_due(&mut self, site: u32, jobs: impl Iterator<Item = (QueueId, u32)>) {
        for (id, line) in jobs {
            // The line may lead elsewhere by now, or be another destination's.
            let is_off = |job: &u32| self.book.get(*job).phase == Phase::Deferred;
            let job = self.book.find(id, line).filter(is_off);
            if let Some(job) = job.filter(|_| self.lines.get(line).site == site) {
                self.undefer(line, job);
                self.retime(line);
            }
        }
    }

    fn begin_all(&mut self, from: u32) -> usize {
        if from >= self.lines.end() {
            return 1;
        }
        if !self.lines.get(from).is_free() {
            self.make_line_due(from);
        }
        // In front of the lines: they are many, and each waits for none but itself.
        self.chores.push_front(Chore::All { from: from + 1 });
        1
    }

    fn undefer(&mut self, line: u32, job: u32) {
        let lane = self.book.get(job).lane;
        self.book.take_out(job);
        self.lines.at(line).deferred[lane as usize] -= 1;
        self.deferred -= 1;
        self.wait(job, UnixMillis(0));
    }

    fn retime(&mut self, line: u32) {
        let first = self.book.first_deferred(line).map(|(due, _)| UnixMillis(due));
        self.set_timer(line, first);
    }

    fn set_timer(&mut self, number: u32, timer: Option<UnixMillis>) {
        let line = self.lines.at(number);
        if line.timer == timer {
            return;
        }
        if let Some(at) = std::mem::replace(&mut line.timer, timer) {
            self.timers.remove(&(at, Timer::Line(number)));
        }
        if let Some(at) = timer {
            self.timers.insert((at, Timer::Line(number)));
        }
    }
}
