//! What an admin may ask the schedule: why a message waits, and how each destination stands. The
//! raw material of `queue why` and `queue stats`; the words are made where they are printed.

use std::sync::Arc;

use super::destination::{Destination, UNPROVEN};
use super::line::{Entry, Key, Phase};
use super::{Lane, Schedule};
use crate::id::{QueueId, UnixMillis};

/// How one job of a message stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Where it goes.
    pub destination: Arc<str>,
    /// Its lane.
    pub lane: Lane,
    /// What it waits for.
    pub why: Why,
}

/// What a job waits for: of several reasons the one that lasts longest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// For nothing: it is being delivered.
    InFlight,
    /// For an admin to release the message.
    Held,
    /// For an admin to release the destination.
    DestinationHeld,
    /// For an admin to release everything.
    AllHeld,
    /// For its own due time.
    Deferred {
        /// When it is due.
        due: UnixMillis,
    },
    /// For its destination, which could not be reached.
    Closed {
        /// When it is probed.
        until: UnixMillis,
        /// Failures in a row.
        failures: u32,
        /// What was said last.
        said: Arc<str>,
    },
    /// For the attempt that probes its destination now.
    Probing {
        /// Failures in a row before this probe.
        failures: u32,
        /// What was said last.
        said: Arc<str>,
    },
    /// For one of its destination's sessions.
    Window {
        /// Attempts in flight there.
        in_flight: u32,
        /// How many there may be now.
        window: u32,
    },
    /// For one of the sessions in all.
    Total {
        /// Attempts in flight.
        in_flight: u32,
        /// How many there may be.
        limit: u32,
    },
    /// For one of the sessions to destinations that have not answered yet.
    Unproven {
        /// Attempts in flight to such destinations.
        in_flight: u32,
        /// How many there may be.
        limit: u32,
    },
    /// For nothing but its turn: it starts with the next polls.
    Turn,
}

/// How one destination stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DestinationStats {
    /// The next hop's key.
    pub destination: Arc<str>,
    /// Jobs that are due, by lane in the order of [`Lane::ALL`].
    pub ready: [usize; 3],
    /// Jobs that wait for their due time, by lane.
    pub deferred: [usize; 3],
    /// Jobs held one by one.
    pub held: usize,
    /// Whether the destination is held.
    pub is_held: bool,
    /// Attempts in flight.
    pub in_flight: usize,
    /// How many attempts may be in flight now.
    pub window: u32,
    /// Whether the destination has answered since it was last silent.
    pub is_proven: bool,
    /// When the destination is probed, while it is closed.
    pub closed_until: Option<UnixMillis>,
    /// Whether an attempt probes it now, while it is closed.
    pub is_probed: bool,
    /// Failures in a row, while it is closed.
    pub failures: u32,
    /// What was said last, while it is closed.
    pub said: Option<Arc<str>>,
    /// The oldest message that goes there.
    pub oldest: Option<QueueId>,
}

/// Counts that cost nothing to ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Jobs, those in flight included.
    pub jobs: usize,
    /// Attempts in flight.
    pub in_flight: usize,
    /// Of these, attempts that started when their destination had not answered yet.
    pub unproven: usize,
    /// Destinations that have a job or whose window is remembered.
    pub destinations: usize,
    /// Whether everything is held.
    pub is_held: bool,
}

impl Schedule {
    /// Returns the standing of each job of a message at `now`; none for a message it has no job of.
    pub fn describe(&self, id: QueueId, now: UnixMillis) -> Vec<Standing> {
        let stand = |(key, entry): (Key, Entry)| {
            let destination = &self.destinations[key.place as usize];
            let why = self.why(destination, &entry, now.max(self.now));
            Standing { destination: destination.name.clone(), lane: entry.lane, why }
        };
        self.line.of_message(id).map(stand).collect()
    }

    fn why(&self, destination: &Destination, entry: &Entry, now: UnixMillis) -> Why {
        match entry.phase {
            Phase::InFlight { .. } => return Why::InFlight,
            Phase::Held => return Why::Held,
            Phase::Waiting if destination.held => return Why::DestinationHeld,
            Phase::Waiting if self.held => return Why::AllHeld,
            Phase::Waiting => {}
        }
        if entry.due > now.max(destination.closed_until()) {
            return Why::Deferred { due: entry.due };
        }
        if let Some(outage) = &destination.outage {
            let (failures, said) = (outage.failures, outage.said.clone());
            return match outage.probe {
                Some(_) => Why::Probing { failures, said },
                None => Why::Closed { until: outage.until, failures, said },
            };
        }
        if destination.in_flight >= destination.window {
            return Why::Window { in_flight: destination.in_flight, window: destination.window };
        }
        let (total, unproven) = (self.limits.total_concurrency_max, self.limits.unproven_concurrency_max);
        if self.in_flight >= total {
            return Why::Total { in_flight: self.in_flight, limit: total };
        }
        if destination.class() == UNPROVEN && self.unproven >= unproven {
            return Why::Unproven { in_flight: self.unproven, limit: unproven };
        }
        Why::Turn
    }

    /// Returns how every destination stands at `now`, in no order. Walks over what is ready and
    /// the oldest jobs: for people and dashboards, not for every message.
    pub fn stats(&self, now: UnixMillis) -> Vec<DestinationStats> {
        let now = now.max(self.now);
        let mut oldest = self.oldest();
        let places = self.names.values();
        places.map(|place| self.stats_of(*place, now, oldest[*place as usize].take())).collect()
    }

    fn stats_of(&self, place: u32, now: UnixMillis, oldest: Option<QueueId>) -> DestinationStats {
        let destination = &self.destinations[place as usize];
        let ready = Lane::ALL.map(|lane| self.line.in_lane(place, lane).take_while(|spot| spot.due <= now).count());
        let deferred = Lane::ALL.map(|lane| destination.waiting[lane as usize] as usize - ready[lane as usize]);
        let outage = destination.outage.as_ref();
        DestinationStats {
            destination: destination.name.clone(),
            ready,
            deferred,
            held: destination.held_jobs as usize,
            is_held: destination.held,
            in_flight: destination.in_flight as usize,
            window: destination.window,
            is_proven: destination.class() != UNPROVEN,
            closed_until: outage.map(|outage| outage.until),
            is_probed: outage.is_some_and(|outage| outage.probe.is_some()),
            failures: outage.map_or(0, |outage| outage.failures),
            said: outage.map(|outage| outage.said.clone()),
            oldest,
        }
    }

    /// Returns the oldest message of each destination, by place. Stops as soon as all are found.
    fn oldest(&self) -> Vec<Option<QueueId>> {
        let has_jobs =
            |destination: &&Destination| destination.in_line() + destination.held_jobs + destination.in_flight > 0;
        let mut missing = self.destinations.iter().filter(has_jobs).count();
        let mut oldest = vec![None; self.destinations.len()];
        for key in self.line.keys() {
            if missing == 0 {
                break;
            }
            let slot: &mut Option<QueueId> = &mut oldest[key.place as usize];
            if slot.is_none() {
                *slot = Some(key.id);
                missing -= 1;
            }
        }
        oldest
    }

    /// Returns the counts that cost nothing.
    pub fn totals(&self) -> Totals {
        Totals {
            jobs: self.line.len(),
            in_flight: self.in_flight as usize,
            unproven: self.unproven as usize,
            destinations: self.names.len(),
            is_held: self.held,
        }
    }
}
