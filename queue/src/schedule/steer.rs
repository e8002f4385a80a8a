//! What an admin may do to the schedule: hold, release, remove and retry, by message, by
//! destination or all. Nothing here touches an attempt in flight: it ends in its own time, and what
//! was asked meanwhile happens then.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Schedule;
use super::line::{Entry, Key, Phase};
use crate::id::{QueueId, UnixMillis};

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
        self.retry_keys(keys)
    }

    /// The same for the one job of a message at a destination.
    pub fn retry_job(&mut self, id: QueueId, destination: &str) -> usize {
        let Some(place) = self.names.get(destination).copied() else { return 0 };
        let keys = self.line.of_message(id).map(|(key, _)| key).filter(|key| key.place == place).collect();
        self.retry_keys(keys)
    }

    fn retry_keys(&mut self, keys: Vec<Key>) -> usize {
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
}
