//! What the queue holds becomes jobs of the schedule: when it is new, when it is found at a start, and anew
//! when settings or the mesh say that it goes elsewhere.
//!
//! What waits for its next attempt and has another way now is tried at once: the pause was for the way before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};

use postroad_mesh::NodeId;
use postroad_queue::schedule::{Job, Schedule, Selector};
use postroad_queue::{Item, Listener, QueueId, RecipientState, UnixMillis};

use super::dispatcher::Core;
use super::jobs::jobs;
use crate::route::leads_to;

/// Messages read from the queue at a time when it is admitted as a whole.
const BATCH: usize = 1000;

/// Whether messages are in the schedule already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// They are not.
    First,
    /// They are, perhaps for other destinations than the settings name now.
    Anew,
    /// They are, and the mesh is another one. These members are reached otherwise than before.
    ByMesh(BTreeSet<NodeId>),
}

/// New mail becomes jobs before its sender hears that it was taken: whoever was told so finds it in the schedule,
/// which takes microseconds. The attempts start behind the answers, which wait for none of them.
pub struct Arrivals(Weak<Core>);

impl Arrivals {
    /// Takes new mail in as long as the way out is there.
    pub fn of(core: &Arc<Core>) -> Arrivals {
        Arrivals(Arc::downgrade(core))
    }
}

impl Listener for Arrivals {
    fn admit(&self, items: &[Arc<Item>]) {
        if let Some(core) = self.0.upgrade() {
            core.metrics.observe_batch(items.len());
            core.admit(items, &Admission::First);
        }
    }

    fn go_on(&self) {
        if let Some(core) = self.0.upgrade() {
            core.start_ready();
        }
    }
}

impl Core {
    /// Enters the jobs of messages: one for each destination with pending recipients.
    pub fn admit(&self, items: &[Arc<Item>], admission: &Admission) {
        let routing = self.routing.load();
        let now = self.clock.now();
        let all: Vec<Vec<Job>> =
            items.iter().map(|item| jobs(&routing, self.senders(), item, &self.mail(&routing, item), now)).collect();
        for (at, id) in items.iter().filter_map(|item| Some((by_time_end(item)?, item.id))) {
            self.remind(at, id);
        }
        let mut schedule = self.schedule();
        // One of each destination that is to be looked at again, however long it was to be left alone.
        let mut probes: BTreeMap<Arc<str>, QueueId> = BTreeMap::new();
        for (item, mut jobs) in items.iter().zip(all) {
            if *admission != Admission::First && has_set_out(item) {
                let later = jobs.iter_mut().filter(|job| job.due > now);
                for job in later.filter(|job| has_another_way(&schedule, job, admission)) {
                    job.due = now;
                    probes.entry(job.destination.clone()).or_insert(item.id);
                }
            }
            if *admission != Admission::First {
                schedule.remove(item.id);
            }
            jobs.into_iter().for_each(|job| schedule.admit(job, now));
            if item.state.held {
                schedule.hold(Selector::Id(item.id));
            }
        }
        for (destination, id) in probes {
            schedule.retry_job(id, &destination);
        }
        drop(schedule);
        items.iter().filter(|item| item.state.held).for_each(|item| self.release_late(item.id));
    }

    /// Releases a message that was held when it was read, and maybe not any more when it was entered: whoever
    /// released it meanwhile found nothing to release.
    fn release_late(&self, id: QueueId) {
        if self.queue.load(id).is_ok_and(|item| !item.state.held) {
            self.schedule().release(Selector::Id(id));
        }
    }

    /// Admits a message that has recipients pending and no job, which only trouble of ours can have
    /// brought about.
    pub fn admit_lost(self: &Arc<Core>, item: &Arc<Item>) {
        let pending = item.state.recipients.iter().any(|state| matches!(state, RecipientState::Pending { .. }));
        let lost = pending && !self.schedule().has_job(item.id, None);
        if lost {
            self.admit(std::slice::from_ref(item), &Admission::First);
            self.start_ready();
        }
    }

    /// Admits all that the queue holds, oldest first.
    pub fn admit_found(self: &Arc<Core>, admission: &Admission) {
        let mut after = None;
        loop {
            let ids = self.queue.ids(after, BATCH);
            let Some(last) = ids.last() else { return };
            after = Some(*last);
            let mut items = Vec::with_capacity(ids.len());
            for (id, loaded) in self.queue.load_many(&ids) {
                match loaded {
                    Ok(item) => items.push(item),
                    // A reminder is set: it is looked at again.
                    Err(error) => drop(self.unreadable(id, &error)),
                }
            }
            self.admit(&items, admission);
            self.start_ready();
        }
    }
}

/// Returns whether a message that is in the schedule had no such destination before, or goes there by a member
/// that is reached otherwise now.
fn has_another_way(schedule: &Schedule, job: &Job, admission: &Admission) -> bool {
    let is_new = || !schedule.has_job(job.id, Some(&job.destination));
    let is_reached_otherwise = || match admission {
        Admission::ByMesh(changed) => changed.iter().any(|node| leads_to(&job.destination, node)),
        Admission::First | Admission::Anew => false,
    };
    schedule.has_job(job.id, None) && (is_new() || is_reached_otherwise())
}

/// Returns whether a message was tried: one that is to be released later waits for its time.
fn has_set_out(item: &Item) -> bool {
    item.state.recipients.iter().any(|state| matches!(state, RecipientState::Pending { last: Some(_), .. }))
}

/// Returns when the by-time of a message ends, if it does before the message expires anyway.
fn by_time_end(item: &Item) -> Option<UnixMillis> {
    item.deliver_by().filter(|at| *at <= item.state.expires)
}
