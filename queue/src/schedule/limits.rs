//! What the schedule never exceeds, and how it backs off. Constants here are defaults; the agent
//! takes the values from its configuration.

use crate::retry::RetryPolicy;

/// What the schedule never exceeds, and how it backs off.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Sessions to one destination at once, at most.
    pub destination_concurrency_max: u32,
    /// Sessions to a destination of which nothing is known yet.
    pub destination_concurrency_first: u32,
    /// Sessions in all, at most.
    pub total_concurrency_max: u32,
    /// Of these, sessions to destinations that have not answered since they were last silent.
    pub unproven_concurrency_max: u32,
    /// How long a destination that cannot be reached is left alone.
    pub destination_backoff: RetryPolicy,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            destination_concurrency_max: 20,
            destination_concurrency_first: 5,
            total_concurrency_max: 500,
            unproven_concurrency_max: 375,
            destination_backoff: RetryPolicy::DESTINATION,
        }
    }
}

impl Limits {
    /// Returns limits with which something can start: 0 counts as 1, and no part exceeds the whole.
    pub(super) fn sane(self) -> Limits {
        let max = self.destination_concurrency_max.max(1);
        let total = self.total_concurrency_max.max(1);
        Limits {
            destination_concurrency_max: max,
            destination_concurrency_first: self.destination_concurrency_first.clamp(1, max),
            total_concurrency_max: total,
            unproven_concurrency_max: self.unproven_concurrency_max.clamp(1, total),
            ..self
        }
    }
}
