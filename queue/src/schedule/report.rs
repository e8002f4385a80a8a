//! What an admin may ask the schedule: why a message waits, and how each destination stands. The
//! raw material of `queue why` and `queue stats`; the words are made where they are printed.

use std::sync::Arc;

use super::book::{Entry, Phase};
use super::census::AGES;
use super::limits::bulk_max;
use super::site::{Site, UNPROVEN};
use super::{Lane, Schedule};
use crate::id::{QueueId, UnixMillis};

/// Jobs counted that go before one, at most.
const AHEAD_MAX: usize = 1_000;

/// How one job of a message stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Where it goes.
    pub destination: Arc<str>,
    /// The site that takes its mail, which other destinations may share.
    pub site: Arc<str>,
    /// Its lane.
    pub lane: Lane,
    /// What it waits for.
    pub why: Why,
    /// Who goes before it there, once it is ready.
    pub ahead: Ahead,
}

/// Ready jobs of the same destination and lane that go before one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ahead {
    /// Of the same sender.
    pub same_sender: usize,
    /// Of others: senders take turns.
    pub others: usize,
    /// Whether there may be more: not all were counted.
    pub is_more: bool,
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
    /// For its site, which could not be reached.
    Closed {
        /// When it is probed.
        until: UnixMillis,
        /// Failures in a row.
        failures: u32,
        /// What was said last.
        said: Arc<str>,
    },
    /// For the attempt that probes its site now.
    Probing {
        /// Failures in a row before this probe.
        failures: u32,
        /// What was said last.
        said: Arc<str>,
    },
    /// For one of its site's sessions.
    Window {
        /// Attempts in flight there.
        in_flight: u32,
        /// How many there may be now.
        window: u32,
    },
    /// For one of its site's sessions that its lane may have: the last ones are kept for others.
    Lane {
        /// Attempts of the lane in flight there.
        in_flight: u32,
        /// How many of the lane there may be now.
        limit: u32,
    },
    /// For a rate of its site.
    Rate {
        /// When one more may start.
        at: UnixMillis,
    },
    /// For one of the sessions in all.
    Total {
        /// Attempts in flight.
        in_flight: u32,
        /// How many there may be when its lane starts one.
        limit: u32,
    },
    /// For one of the sessions to destinations that have not answered yet.
    Unproven {
        /// Attempts in flight to such destinations.
        in_flight: u32,
        /// How many there may be when its lane starts one.
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
    /// The site that takes its mail; what follows about sessions and reachability is the site's.
    pub site: Arc<str>,
    /// Jobs that are due, by lane in the order of [`Lane::ALL`].
    pub ready: [usize; 3],
    /// Jobs that wait for their due time, by lane.
    pub deferred: [usize; 3],
    /// Jobs held one by one.
    pub held: usize,
    /// Whether the destination is held.
    pub is_held: bool,
    /// Attempts in flight to this destination.
    pub in_flight: usize,
    /// Attempts in flight to the site.
    pub site_in_flight: usize,
    /// How many attempts to the site may be in flight now.
    pub window: u32,
    /// Whether the site has answered since it was last silent.
    pub is_proven: bool,
    /// When its rates allow one more, if not now.
    pub paced_until: Option<UnixMillis>,
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
    /// Jobs by the age of their messages, in the classes of
    /// [`AGE_MINUTES`](super::AGE_MINUTES): below 5 minutes, below 10, …, 1,280 and more.
    pub ages: [usize; AGES],
}

/// Counts that cost nothing to ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Jobs, those in flight included.
    pub jobs: usize,
    /// Of these, jobs that wait for their due time.
    pub deferred: usize,
    /// Of these, jobs held one by one.
    pub held: usize,
    /// Attempts in flight.
    pub in_flight: usize,
    /// Of these, attempts that started when their destination had not answered yet.
    pub unproven: usize,
    /// Destinations that have a job or whose site is remembered.
    pub destinations: usize,
    /// Sites of these destinations.
    pub sites: usize,
    /// Whether everything is held.
    pub is_held: bool,
}

impl Schedule {
    /// Returns the standing of each job of a message at `now`; none for a message it has no job of.
    pub fn describe(&self, id: QueueId, now: UnixMillis) -> Vec<Standing> {
        let stand = |job: u32| {
            let entry = self.book.get(job);
            let line = self.lines.get(entry.line);
            Standing {
                destination: line.name.clone(),
                site: self.sites.get(line.site).name.clone(),
                lane: entry.lane,
                why: self.why(entry, now.max(self.now)),
                ahead: self.ahead(job),
            }
        };
        self.book.of_message(id).into_iter().map(stand).collect()
    }

    /// Returns whether a message has a job for a destination; none: for any.
    pub fn has_job(&self, id: QueueId, destination: Option<&str>) -> bool {
        match destination {
            Some(name) => self.line_names.get(name).is_some_and(|line| self.book.find(id, *line).is_some()),
            None => !self.book.of_message(id).is_empty(),
        }
    }

    fn why(&self, entry: &Entry, now: UnixMillis) -> Why {
        let line = self.lines.get(entry.line);
        let site = self.sites.get(line.site);
        match entry.phase {
            Phase::InFlight { .. } => return Why::InFlight,
            Phase::Held => return Why::Held,
            Phase::Ready | Phase::Deferred if line.held => return Why::DestinationHeld,
            Phase::Ready | Phase::Deferred if self.held => return Why::AllHeld,
            Phase::Deferred if self.due_of(entry) > now.max(site.closed_until()) => {
                return Why::Deferred { due: self.due_of(entry) };
            }
            Phase::Ready | Phase::Deferred => {}
        }
        if let Some(outage) = &site.outage {
            let (failures, said) = (outage.failures, outage.said.clone());
            return match outage.probe {
                Some(_) => Why::Probing { failures, said },
                None => Why::Closed { until: outage.until, failures, said },
            };
        }
        self.why_of_limits(site, entry.lane, now)
    }

    /// Which limit keeps a job from starting at a site that is open.
    fn why_of_limits(&self, site: &Site, lane: Lane, now: UnixMillis) -> Why {
        if site.attempts() >= site.window {
            return Why::Window { in_flight: site.attempts(), window: site.window };
        }
        if !site.fits(lane) {
            return Why::Lane { in_flight: site.in_flight[lane as usize], limit: bulk_max(site.window) };
        }
        let at = site.paced_until(&self.limits.allowance(site.allowance));
        if at > now {
            return Why::Rate { at };
        }
        let total = self.limits.total_max(lane);
        if self.in_flight >= total {
            return Why::Total { in_flight: self.in_flight, limit: total };
        }
        if site.class() == UNPROVEN && !self.has_unproven_session(lane) {
            return Why::Unproven { in_flight: self.unproven, limit: self.limits.unproven_max(lane) };
        }
        Why::Turn
    }

    fn ahead(&self, job: u32) -> Ahead {
        let mut ahead = Ahead::default();
        let entry = self.book.get(job);
        if entry.phase != Phase::Ready {
            return ahead;
        }
        for (_, other) in self.book.in_turn(entry.line, entry.lane).take_while(|(_, other)| *other != job) {
            if ahead.same_sender + ahead.others == AHEAD_MAX {
                ahead.is_more = true;
                break;
            }
            match self.book.get(other).sender == entry.sender {
                true => ahead.same_sender += 1,
                false => ahead.others += 1,
            }
        }
        ahead
    }

    /// Returns until when a destination is left alone that cannot be reached, and what was said last.
    pub fn outage(&self, destination: &str) -> Option<(UnixMillis, Arc<str>)> {
        let line = self.line_names.get(destination)?;
        let outage = self.sites.get(self.lines.get(*line).site).outage.as_ref()?;
        Some((outage.until, outage.said.clone()))
    }

    /// Returns whether a destination is held.
    pub fn is_held(&self, destination: &str) -> bool {
        self.line_names.get(destination).is_some_and(|line| self.lines.get(*line).held)
    }

    /// Returns how many jobs of a destination wait for nothing but their turn, a held destination's
    /// release apart; and how many wait for their due time besides.
    pub fn waiting(&self, destination: &str) -> (usize, usize) {
        let Some(line) = self.line_names.get(destination).map(|line| self.lines.get(*line)) else { return (0, 0) };
        let sum = |lanes: &[u32]| lanes.iter().map(|count| *count as usize).sum();
        (sum(&line.ready), sum(&line.deferred))
    }

    /// Returns the counts that cost nothing.
    pub fn totals(&self) -> Totals {
        Totals {
            jobs: self.book.len(),
            deferred: self.deferred,
            held: self.held_jobs,
            in_flight: self.in_flight as usize,
            unproven: self.unproven as usize,
            destinations: self.line_names.len(),
            sites: self.site_names.len(),
            is_held: self.held,
        }
    }
}
