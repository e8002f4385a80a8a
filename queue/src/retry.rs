//! How long to wait before the next try (RFC 5321 §4.5.4.1): exponential, bounded, jittered.
//!
//! Pure arithmetic: the random number comes in as an argument, so that a simulation repeats from
//! its seed. The jitter keeps messages that failed together from coming back together.

/// An exponential back-off with jitter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryPolicy {
    /// The wait after the first failed attempt, in milliseconds.
    pub first_ms: u64,
    /// What each further failure multiplies the wait by; below 1 counts as 1.
    pub factor: f64,
    /// The longest wait before jitter, in milliseconds.
    pub max_ms: u64,
    /// How far a wait is spread around its value, 0 (not at all) to 1 (from nothing to twice).
    pub jitter_ratio: f64,
}

impl RetryPolicy {
    /// For messages that a next hop deferred: 5 minutes, doubling up to 4 hours. RFC 5321
    /// §4.5.4.1 asks for 30 minutes at least after the first tries; greylisting hosts, which are
    /// most of those that defer a first attempt, accept after a few.
    pub const MESSAGE: RetryPolicy =
        RetryPolicy { first_ms: 5 * 60_000, factor: 2.0, max_ms: 4 * 3_600_000, jitter_ratio: 0.2 };

    /// For probes of a destination that cannot be reached: 10 seconds, doubling up to 10 minutes.
    /// One connection a destination is cheap, and all that waits goes as soon as one succeeds.
    pub const DESTINATION: RetryPolicy =
        RetryPolicy { first_ms: 10_000, factor: 2.0, max_ms: 10 * 60_000, jitter_ratio: 0.2 };

    /// Returns the milliseconds to wait after `attempts` failed attempts (0 counts as 1), at
    /// least 1. `random` lies in 0..1.
    pub fn delay(&self, attempts: u32, random: f64) -> u64 {
        let exponent = attempts.saturating_sub(1).min(1_000);
        let grown = self.first_ms as f64 * self.factor.max(1.0).powi(exponent as i32);
        let wait = grown.min(self.max_ms as f64);
        let spread = self.jitter_ratio.clamp(0.0, 1.0) * (2.0 * random.clamp(0.0, 1.0) - 1.0);
        ((wait * (1.0 + spread)) as u64).max(1)
    }
}

impl Default for RetryPolicy {
    fn default() -> RetryPolicy {
        RetryPolicy::MESSAGE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: RetryPolicy = RetryPolicy { first_ms: 1_000, factor: 2.0, max_ms: 60_000, jitter_ratio: 0.0 };

    #[test]
    fn waits_double_up_to_the_longest() {
        let waits: Vec<u64> = (0..9).map(|attempts| PLAIN.delay(attempts, 0.5)).collect();
        assert_eq!(waits, [1_000, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000]);
        assert_eq!(PLAIN.delay(u32::MAX, 0.5), 60_000);
    }

    #[test]
    fn jitter_spreads_around_the_wait() {
        let policy = RetryPolicy { jitter_ratio: 0.25, ..PLAIN };
        assert_eq!(policy.delay(1, 0.0), 750);
        assert_eq!(policy.delay(1, 0.5), 1_000);
        assert_eq!(policy.delay(1, 1.0), 1_250);
    }

    #[test]
    fn senseless_settings_still_wait() {
        for policy in [
            RetryPolicy { first_ms: 0, ..PLAIN },
            RetryPolicy { max_ms: 0, ..PLAIN },
            RetryPolicy { factor: 0.0, ..PLAIN },
            RetryPolicy { factor: f64::NAN, ..PLAIN },
            RetryPolicy { factor: f64::INFINITY, ..PLAIN },
            RetryPolicy { jitter_ratio: 7.0, ..PLAIN },
        ] {
            let wait = policy.delay(3, 0.0);
            assert!((1..=60_000).contains(&wait), "{policy:?} waits {wait}");
        }
    }
}
