//! The jobs, and the orders they stand in: by message, by due time while they wait for one, and by
//! turn once they are ready. Flat trees over all lines instead of some for each: a million
//! destinations with one job each cost no more nodes than one with a million.

use std::collections::BTreeSet;

use super::Lane;
use super::job::Load;
use super::slab::Slab;
use crate::id::{QueueId, UnixMillis};

/// What is known of a job.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub id: QueueId,
    /// Ready: its turn, as the line counts. Otherwise when it is due, in milliseconds.
    pub at: u64,
    /// The destination.
    pub line: u32,
    pub sender: u32,
    pub load: Load,
    /// Of the line when the job was put off: jobs of earlier epochs are due.
    pub epoch: u32,
    pub lane: Lane,
    pub phase: Phase,
}

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It may start.
    Ready,
    /// It waits for its due time.
    Deferred,
    /// Held by an admin.
    Held,
    /// Started; the flags say what becomes of it when the attempt has finished.
    InFlight { held: bool, again: bool, removed: bool },
}

/// A job by its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Filed {
    id: QueueId,
    line: u32,
    job: u32,
}

/// A ready job in its line and lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Ready {
    row: u32,
    turn: u64,
    job: u32,
}

/// A job that waits for its due time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Deferred {
    line: u32,
    due: u64,
    job: u32,
}

/// All jobs.
#[derive(Debug, Default)]
pub(super) struct Book {
    jobs: Slab<Entry>,
    filed: BTreeSet<Filed>,
    ready: BTreeSet<Ready>,
    deferred: BTreeSet<Deferred>,
}

/// Returns the key of a lane in a line, or in a site.
pub(super) fn row(number: u32, lane: Lane) -> u32 {
    number * 4 + lane as u32
}

impl Book {
    pub fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Takes a job in. It stands in no line yet.
    pub fn insert(&mut self, entry: Entry) -> u32 {
        let job = self.jobs.insert(entry);
        self.filed.insert(Filed { id: entry.id, line: entry.line, job });
        job
    }

    /// Forgets a job that stands in no line.
    pub fn remove(&mut self, job: u32) {
        let Entry { id, line, .. } = *self.jobs.get(job);
        self.filed.remove(&Filed { id, line, job });
        self.jobs.free(job);
    }

    pub fn get(&self, job: u32) -> &Entry {
        self.jobs.get(job)
    }

    pub fn at(&mut self, job: u32) -> &mut Entry {
        self.jobs.at(job)
    }

    /// Returns the job of a message in a line.
    pub fn find(&self, id: QueueId, line: u32) -> Option<u32> {
        // Messages arrive in the order of their ids: most are newer than all that are here.
        if self.filed.last().is_none_or(|last| (last.id, last.line) < (id, line)) {
            return None;
        }
        let from = Filed { id, line, job: 0 };
        self.filed.range(from..).next().filter(|filed| filed.id == id && filed.line == line).map(|filed| filed.job)
    }

    /// Returns the jobs of a message.
    pub fn of_message(&self, id: QueueId) -> Vec<u32> {
        let from = Filed { id, line: 0, job: 0 };
        self.filed.range(from..).take_while(|filed| filed.id == id).map(|filed| filed.job).collect()
    }

    /// Returns the jobs behind one, the oldest message first.
    pub fn after(&self, last: Option<(QueueId, u32)>) -> impl Iterator<Item = u32> {
        let from = match last {
            Some((id, line)) => Filed { id, line: line.saturating_add(1), job: 0 },
            None => Filed { id: QueueId::from_u64(0), line: 0, job: 0 },
        };
        self.filed.range(from..).map(|filed| filed.job)
    }

    /// Puts a job in line at this turn.
    pub fn make_ready(&mut self, job: u32, turn: u64) {
        let entry = self.jobs.at(job);
        (entry.phase, entry.at) = (Phase::Ready, turn);
        self.ready.insert(Ready { row: row(entry.line, entry.lane), turn, job });
    }

    /// Puts a job off until it is due.
    pub fn defer(&mut self, job: u32, due: UnixMillis, epoch: u32) {
        let entry = self.jobs.at(job);
        (entry.phase, entry.at, entry.epoch) = (Phase::Deferred, due.0, epoch);
        self.deferred.insert(Deferred { line: entry.line, due: due.0, job });
    }

    /// Takes a job out of line, whichever it stands in.
    pub fn take_out(&mut self, job: u32) {
        let entry = self.jobs.get(job);
        match entry.phase {
            Phase::Ready => drop(self.ready.remove(&Ready { row: row(entry.line, entry.lane), turn: entry.at, job })),
            Phase::Deferred => drop(self.deferred.remove(&Deferred { line: entry.line, due: entry.at, job })),
            Phase::Held | Phase::InFlight { .. } => {}
        }
    }

    /// Returns the ready jobs of a line's lane with their turns, whoever is next first.
    pub fn in_turn(&self, line: u32, lane: Lane) -> impl Iterator<Item = (u64, u32)> {
        let row = row(line, lane);
        let from = Ready { row, turn: 0, job: 0 };
        self.ready.range(from..).take_while(move |one| one.row == row).map(|one| (one.turn, one.job))
    }

    /// Returns the job of a line that is due next of those put off, and when.
    pub fn first_deferred(&self, line: u32) -> Option<(u64, u32)> {
        self.deferred(line, (0, 0)).next()
    }

    /// Returns the jobs of a line that are put off, from this due time and job on.
    pub fn deferred(&self, line: u32, from: (u64, u32)) -> impl Iterator<Item = (u64, u32)> {
        let from = Deferred { line, due: from.0, job: from.1 };
        self.deferred.range(from..).take_while(move |one| one.line == line).map(|one| (one.due, one.job))
    }
}
