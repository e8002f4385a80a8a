//! What an admin may do to the schedule: hold, release, remove and retry, by message, by
//! destination or all. Nothing here touches an attempt in flight: it ends in its own time, and what
//! was asked meanwhile happens then.

use std::sync::Arc;

use super::book::{Entry, Phase};
use super::job::Lane;
use super::{Schedule, clock};
use crate::id::QueueId;

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

impl Schedule {
    /// Holds what `which` names: no attempt starts until it is released; attempts in flight go on.
    /// Holding a destination or all holds what comes later, too. Returns the jobs concerned.
    pub fn hold(&mut self, which: Selector<'_>) -> usize {
        match which {
            Selector::Id(id) => self.each_of(id, Schedule::hold_one),
            Selector::Destination(name) => {
                let line = self.line_of(&Arc::from(name), None);
                self.set_line_held(line, true)
            }
            Selector::All => {
                self.held = true;
                self.book.len()
            }
        }
    }

    /// Releases what [`Schedule::hold`] held under the same name: what is held twice over is
    /// released twice. Returns the jobs concerned.
    pub fn release(&mut self, which: Selector<'_>) -> usize {
        match which {
            Selector::Id(id) => self.each_of(id, Schedule::release_one),
            Selector::Destination(name) => match self.line_names.get(name) {
                Some(line) => self.set_line_held(*line, false),
                None => 0,
            },
            Selector::All => {
                self.held = false;
                self.book.len()
            }
        }
    }

    /// Forgets the jobs of a message. A job in flight is forgotten when its attempt has finished.
    /// Returns how many.
    pub fn remove(&mut self, id: QueueId) -> usize {
        self.each_of(id, Schedule::remove_one)
    }

    /// Makes what `which` names due at once, and probes its sites at once. What is held stays held.
    /// The jobs of one message go before all others, those of a destination or of all by turns; they
    /// are put in line with the calls that follow. Returns the jobs concerned.
    pub fn retry_now(&mut self, which: Selector<'_>) -> usize {
        match which {
            Selector::Id(id) => self.each_of(id, Schedule::retry_one),
            Selector::Destination(name) => {
                let Some(line) = self.line_names.get(name).copied() else { return 0 };
                self.make_line_due(line);
                self.advance(self.now);
                self.lines.get(line).jobs() as usize
            }
            Selector::All => {
                self.make_all_lines_due();
                self.advance(self.now);
                self.book.len()
            }
        }
    }

    /// Makes due at once what goes to some destinations: those of `max`, from the number `from` on, that
    /// are meant. Returns the jobs concerned, and the number to go on with.
    pub fn retry_some(&mut self, from: u32, max: u32, is_meant: impl Fn(&str) -> bool) -> (usize, Option<u32>) {
        let end = self.lines.end();
        let until = end.min(from.saturating_add(max));
        let mut jobs = 0;
        for number in from..until {
            let line = self.lines.get(number);
            if !line.is_free() && is_meant(&line.name) && line.jobs() > 0 {
                jobs += line.jobs() as usize;
                self.make_line_due(number);
            }
        }
        self.advance(self.now);
        (jobs, (until < end).then_some(until))
    }

    /// Makes the one job of a message at a destination due at once, before all others there, and
    /// probes the site at once. Returns the jobs concerned.
    pub fn retry_job(&mut self, id: QueueId, destination: &str) -> usize {
        let Some(line) = self.line_names.get(destination).copied() else { return 0 };
        let Some(job) = self.book.find(id, line) else { return 0 };
        self.retry_one(job);
        1
    }

    fn retry_one(&mut self, job: u32) {
        let Entry { line: number, lane, phase, .. } = *self.book.get(job);
        let site = self.lines.get(number).site;
        match phase {
            Phase::Ready | Phase::Deferred => {
                self.take_out(job);
                let turn = self.turns.front(clock(site, lane));
                let turn = self.lines.get(number).at_line(lane, turn);
                self.wait_at(job, turn);
            }
            Phase::Held => self.book.at(job).at = 0,
            Phase::InFlight { .. } => {}
        }
        self.probe_now(site);
    }

    fn hold_one(&mut self, job: u32) {
        let entry = *self.book.get(job);
        match entry.phase {
            Phase::InFlight { again, removed, .. } => {
                self.book.at(job).phase = Phase::InFlight { held: true, again, removed };
            }
            Phase::Ready | Phase::Deferred => {
                let due = if entry.phase == Phase::Ready { self.now } else { self.due_of(&entry) };
                self.take_out(job);
                self.keep(job, due);
                // Nobody may be left whom the site would have to wake for.
                self.place(self.lines.get(entry.line).site);
            }
            Phase::Held => {}
        }
    }

    fn release_one(&mut self, job: u32) {
        let entry = *self.book.get(job);
        match entry.phase {
            Phase::InFlight { again, removed, .. } => {
                self.book.at(job).phase = Phase::InFlight { held: false, again, removed };
            }
            Phase::Held => {
                let due = self.due_of(&entry);
                self.take_out(job);
                self.wait(job, due);
                self.place(self.lines.get(entry.line).site);
            }
            Phase::Ready | Phase::Deferred => {}
        }
    }

    fn remove_one(&mut self, job: u32) {
        let Entry { line, phase, .. } = *self.book.get(job);
        if let Phase::InFlight { held, .. } = phase {
            self.book.at(job).phase = Phase::InFlight { held, again: false, removed: true };
            return;
        }
        self.take_out(job);
        self.book.remove(job);
        self.place(self.lines.get(line).site);
        self.retire_if_idle(line);
    }

    fn set_line_held(&mut self, number: u32, held: bool) -> usize {
        self.lines.at(number).held = held;
        if !held {
            Lane::ALL.iter().for_each(|lane| self.catch_up(number, *lane));
        }
        Lane::ALL.iter().for_each(|lane| self.rehead(number, *lane));
        self.place(self.lines.get(number).site);
        let count = self.lines.get(number).jobs();
        self.retire_if_idle(number);
        count as usize
    }

    /// Moves the turns of a line that stood still up to the clock: it does not make up for the time
    /// that it was held.
    fn catch_up(&mut self, number: u32, lane: Lane) {
        let Some((turn, _)) = self.book.in_turn(number, lane).next() else { return };
        let line = self.lines.at(number);
        let now = self.turns.now(clock(line.site, lane));
        let behind = now.saturating_sub(line.at_site(lane, turn));
        line.offset[lane as usize] = line.offset[lane as usize].wrapping_add(behind);
    }

    fn each_of(&mut self, id: QueueId, act: fn(&mut Schedule, u32)) -> usize {
        let jobs = self.book.of_message(id);
        jobs.iter().for_each(|job| act(self, *job));
        jobs.len()
    }
}
