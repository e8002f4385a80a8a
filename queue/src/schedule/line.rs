//! The jobs in two orders: by message, with all that is known of them, and in line, by
//! destination, lane and due time. Two flat trees instead of one a destination: a million
//! destinations with one job each cost no more nodes than one with a million.

use std::collections::{BTreeMap, BTreeSet};

use super::Lane;
use crate::id::{QueueId, UnixMillis};

/// Names a job: a message and the place of its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub id: QueueId,
    pub place: u32,
}

/// What is known of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// When it may start; of one in flight, when it was due, or is again.
    pub due: UnixMillis,
    pub lane: Lane,
    pub phase: Phase,
}

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// In line.
    Waiting,
    /// Held by an admin; not in line.
    Held,
    /// Started; the flags say what becomes of it when the attempt has finished.
    InFlight { held: bool, again: bool, removed: bool },
}

/// A waiting job's place in line; the order of the fields is the order of the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Spot {
    place: u32,
    lane: Lane,
    pub due: UnixMillis,
    pub id: QueueId,
}

/// All jobs.
#[derive(Debug, Default)]
pub(super) struct Line {
    jobs: BTreeMap<Key, Entry>,
    waiting: BTreeSet<Spot>,
}

impl Line {
    pub fn len(&self) -> usize {
        self.jobs.len()
    }

    pub fn get(&self, key: Key) -> Option<Entry> {
        self.jobs.get(&key).copied()
    }

    /// Replaces what is known of a job that is not in line and does not come into it.
    pub fn set(&mut self, key: Key, entry: Entry) {
        debug_assert_ne!(entry.phase, Phase::Waiting);
        self.jobs.insert(key, entry);
    }

    pub fn insert(&mut self, key: Key, entry: Entry) {
        self.jobs.insert(key, entry);
        if entry.phase == Phase::Waiting {
            self.waiting.insert(spot(key, entry));
        }
    }

    pub fn remove(&mut self, key: Key) -> Option<Entry> {
        let entry = self.jobs.remove(&key)?;
        if entry.phase == Phase::Waiting {
            self.waiting.remove(&spot(key, entry));
        }
        Some(entry)
    }

    /// Returns the job of a destination's lane that is due first.
    pub fn head(&self, place: u32, lane: Lane) -> Option<Spot> {
        self.in_lane(place, lane).next()
    }

    /// Returns the waiting jobs of a destination's lane, the first due first.
    pub fn in_lane(&self, place: u32, lane: Lane) -> impl Iterator<Item = Spot> {
        let from = Spot { place, lane, due: UnixMillis(0), id: QueueId::from_u64(0) };
        self.waiting.range(from..).copied().take_while(move |spot| spot.place == place && spot.lane == lane)
    }

    /// Returns the jobs of a message.
    pub fn of_message(&self, id: QueueId) -> impl Iterator<Item = (Key, Entry)> {
        let all = Key { id, place: 0 }..=Key { id, place: u32::MAX };
        self.jobs.range(all).map(|(key, entry)| (*key, *entry))
    }

    /// Returns every job, the oldest message first.
    pub fn keys(&self) -> impl Iterator<Item = Key> {
        self.jobs.keys().copied()
    }
}

fn spot(key: Key, entry: Entry) -> Spot {
    Spot { place: key.place, lane: entry.lane, due: entry.due, id: key.id }
}
