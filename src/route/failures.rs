//! Look-ups that failed are not repeated at once (RFC 9520): a name server in trouble is not made
//! worse, and a queue full of mail for a dead domain does not wait for one timeout per message.
//!
//! Only failures are kept here, never answers: NXDOMAIN and empty answers are answers.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// The most failures remembered; the one that ends first makes room.
pub const FAILURES_MAX: usize = 4096;
/// How long the first failure is remembered.
pub const FIRST: Duration = Duration::from_secs(5);
/// How long any failure is remembered at most (RFC 9520 §3.2).
pub const LONGEST: Duration = Duration::from_secs(300);

/// A bounded memory of failures. The time comes in as an argument.
#[derive(Debug)]
pub struct Failures<K> {
    entries: HashMap<K, Failure>,
}

#[derive(Debug)]
struct Failure {
    until: Instant,
    lasts: Duration,
    why: Box<str>,
}

impl<K: Hash + Eq + Clone> Failures<K> {
    /// Returns why the look-up failed when it must not be repeated yet.
    pub fn recent(&self, key: &K, now: Instant) -> Option<&str> {
        self.entries.get(key).filter(|failure| now < failure.until).map(|failure| &*failure.why)
    }

    /// Remembers a failure, twice as long as the one before it.
    pub fn failed(&mut self, key: K, why: &str, now: Instant) {
        let lasts = match self.entries.get(&key) {
            Some(before) if now < before.until + LONGEST => (before.lasts * 2).min(LONGEST),
            _ => FIRST,
        };
        if !self.entries.contains_key(&key) {
            self.make_room(now);
        }
        self.entries.insert(key, Failure { until: now + lasts, lasts, why: why.into() });
    }

    /// Forgets what is known of a look-up: it has been answered.
    pub fn answered(&mut self, key: &K) {
        self.entries.remove(key);
    }

    /// Forgets everything: someone asks for a new attempt now.
    pub fn clear(&mut self) {
        self.entries.clear();
    }

    fn make_room(&mut self, now: Instant) {
        if self.entries.len() < FAILURES_MAX {
            return;
        }
        self.entries.retain(|_, failure| now < failure.until);
        if self.entries.len() >= FAILURES_MAX {
            let first = self.entries.iter().min_by_key(|(_, failure)| failure.until).map(|(key, _)| key.clone());
            first.and_then(|key| self.entries.remove(&key));
        }
    }
}

impl<K> Default for Failures<K> {
    fn default() -> Failures<K> {
        Failures { entries: HashMap::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_last_longer_each_time_and_end_with_an_answer() {
        let (mut failures, mut now) = (Failures::default(), Instant::now());
        let mut lasted = Vec::new();
        for _ in 0..8 {
            failures.failed("a", "timed out", now);
            assert_eq!(failures.recent(&"a", now), Some("timed out"));
            let start = now;
            while failures.recent(&"a", now).is_some() {
                now += Duration::from_secs(1);
            }
            lasted.push((now - start).as_secs());
        }
        assert_eq!(lasted, [5, 10, 20, 40, 80, 160, 300, 300]);
        failures.answered(&"a");
        failures.failed("a", "timed out", now);
        assert_eq!(failures.recent(&"a", now + FIRST), None);
    }

    #[test]
    fn the_memory_is_bounded_and_keeps_the_longest() {
        let (mut failures, now) = (Failures::default(), Instant::now());
        for n in 0..FAILURES_MAX + 100 {
            failures.failed(n, "x", now + Duration::from_millis(n as u64));
        }
        assert_eq!(failures.entries.len(), FAILURES_MAX);
        assert!(failures.recent(&(FAILURES_MAX + 99), now).is_some() && failures.recent(&0, now).is_none());
    }
}
