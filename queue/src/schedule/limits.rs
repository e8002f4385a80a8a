//! What the schedule never exceeds, and how it backs off. Constants here are defaults; the agent
//! takes the values from its configuration.

use super::job::{LANES, Lane};
use super::pace::Rate;
use crate::retry::RetryPolicy;

/// Of the sessions in all, and of those to sites not known to answer, one in so many is kept from each
/// lane and those below it.
const TOTAL_RESERVES: [u32; LANES] = [u32::MAX, 32, 8];
/// Of the sessions of a site, one in so many, at least one, is kept from bulk.
const SITE_RESERVE: u32 = 8;

/// What the schedule never exceeds, and how it backs off.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Sessions to one site at once, at most.
    pub destination_concurrency_max: u32,
    /// Sessions to a site of which nothing is known yet.
    pub destination_concurrency_first: u32,
    /// Sessions in all, at most.
    pub total_concurrency_max: u32,
    /// Of these, sessions to sites that have not answered since they were last silent.
    pub unproven_concurrency_max: u32,
    /// How long a site that cannot be reached is left alone.
    pub destination_backoff: RetryPolicy,
    /// Messages to one site in a time; of many recipients each hundred counts as one, as they travel.
    pub messages: Option<Rate>,
    /// Octets of content to one site in a time.
    pub octets: Option<Rate>,
    /// What holds for some destinations instead: [`Job::allowance`](super::Job::allowance) n names
    /// the n-th of these, counted from 1.
    pub allowances: Vec<Allowance>,
}

/// What a site is allowed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Allowance {
    /// Sessions at once, at most.
    pub concurrency_max: u32,
    /// Messages in a time; of many recipients each hundred counts as one, as they travel.
    pub messages: Option<Rate>,
    /// Octets of content in a time.
    pub octets: Option<Rate>,
    /// How long it is left alone when it cannot be reached.
    pub backoff: RetryPolicy,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            destination_concurrency_max: 20,
            destination_concurrency_first: 5,
            total_concurrency_max: 500,
            unproven_concurrency_max: 375,
            destination_backoff: RetryPolicy::DESTINATION,
            messages: None,
            octets: None,
            allowances: Vec::new(),
        }
    }
}

impl Limits {
    /// Returns limits with which something can start: 0 counts as 1, and no part exceeds the whole.
    pub(super) fn sane(self) -> Limits {
        let total = self.total_concurrency_max.max(1);
        Limits {
            destination_concurrency_first: self.destination_concurrency_first.max(1),
            total_concurrency_max: total,
            unproven_concurrency_max: self.unproven_concurrency_max.clamp(1, total),
            ..self
        }
    }

    /// Returns the allowance with this number; that of all others where there is none.
    pub(super) fn allowance(&self, number: u16) -> Allowance {
        let at = usize::from(number).checked_sub(1);
        let found = at.and_then(|at| self.allowances.get(at)).copied().unwrap_or(Allowance {
            concurrency_max: self.destination_concurrency_max,
            messages: self.messages,
            octets: self.octets,
            backoff: self.destination_backoff,
        });
        Allowance { concurrency_max: found.concurrency_max.max(1), ..found }
    }

    /// Returns with how many sessions in all a job of this lane no longer starts.
    pub(super) fn total_max(&self, lane: Lane) -> u32 {
        self.total_concurrency_max - self.total_concurrency_max / TOTAL_RESERVES[lane as usize]
    }

    /// Returns the same of sessions to sites not known to answer: what is urgent goes to such sites,
    /// too, while bulk hangs at a thousand that are dead.
    pub(super) fn unproven_max(&self, lane: Lane) -> u32 {
        self.unproven_concurrency_max - self.unproven_concurrency_max / TOTAL_RESERVES[lane as usize]
    }
}

/// Returns how many of a site's sessions bulk may have: never the last, so that what is urgent need
/// not wait for it; where there is but one, that one.
pub(super) fn bulk_max(window: u32) -> u32 {
    if window > 1 { window - (window / SITE_RESERVE).max(1) } else { window }
}
