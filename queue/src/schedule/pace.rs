//! Rates: how soon the next message may go to a site that takes only so many, or so much, in a
//! time. Virtual scheduling in whole nanoseconds (the generic cell rate algorithm): no division
//! loses anything, and waking once at the right millisecond is enough.

use crate::id::UnixMillis;

/// What may go at once after a pause: what the rate allows in this time, or one message.
const BURST_MS: u64 = 100;
/// How late a start may be without losing anything of the rate: clocks wake in whole milliseconds,
/// and not always in time.
const LATE_MS: u64 = 10;
const NANOS_PER_MILLI: u64 = 1_000_000;

/// So many in so much time: messages or octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many; 0 counts as 1.
    pub count: u64,
    /// In how many milliseconds.
    pub period_ms: u64,
}

/// What is still to be waited for by the rates of a site: when, in nanoseconds since the Unix epoch,
/// what was started would have gone at exactly the rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pace {
    messages_ns: u64,
    octets_ns: u64,
}

impl Rate {
    /// Returns how long `amount` takes at this rate.
    fn nanos(self, amount: u64) -> u64 {
        let nanos = u128::from(amount) * u128::from(self.period_ms) * u128::from(NANOS_PER_MILLI);
        u64::try_from(nanos / u128::from(self.count.max(1))).unwrap_or(u64::MAX)
    }

    /// Returns how far ahead of the rate one more may start.
    fn slack(self) -> u64 {
        (BURST_MS * NANOS_PER_MILLI).saturating_sub(self.nanos(1))
    }
}

impl Pace {
    /// Returns when the next one may start; the beginning of time when at once.
    pub fn free_at(&self, messages: Option<Rate>, octets: Option<Rate>) -> UnixMillis {
        let at = |rate: Option<Rate>, ns: u64| rate.map_or(0, |rate| ns.saturating_sub(rate.slack()));
        UnixMillis(at(messages, self.messages_ns).max(at(octets, self.octets_ns)).div_ceil(NANOS_PER_MILLI))
    }

    /// Counts what has started.
    pub fn take(&mut self, rates: [Option<Rate>; 2], amounts: [u64; 2], now: UnixMillis) {
        let begin_ns = now.0.saturating_sub(LATE_MS).saturating_mul(NANOS_PER_MILLI);
        for ((rate, amount), ns) in rates.into_iter().zip(amounts).zip([&mut self.messages_ns, &mut self.octets_ns]) {
            if let Some(rate) = rate {
                *ns = begin_ns.max(*ns).saturating_add(rate.nanos(amount));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Starts one message of `octets` as often as the pace lets it; returns when each started.
    fn starts(messages: Option<Rate>, octets: Option<Rate>, each: u64, until: u64) -> Vec<u64> {
        let mut pace = Pace::default();
        let mut now = 1_800_000_000_000;
        let begin = now;
        let mut starts = Vec::new();
        while now < begin + until {
            let free = pace.free_at(messages, octets).0;
            if free > now {
                now = free;
                continue;
            }
            starts.push(now - begin);
            pace.take([messages, octets], [1, each], UnixMillis(now));
        }
        starts
    }

    #[test]
    fn a_hundred_a_minute_is_one_in_600_milliseconds() {
        let rate = Rate { count: 100, period_ms: 60_000 };
        assert_eq!(starts(Some(rate), None, 0, 3_000), [0, 590, 1_190, 1_790, 2_390, 2_990]);
    }

    #[test]
    fn odd_rates_lose_nothing() {
        let rate = Rate { count: 7, period_ms: 1_000 };
        assert_eq!(starts(Some(rate), None, 0, 1_000), [0, 133, 276, 419, 562, 705, 848, 990]);
        assert_eq!(starts(Some(rate), None, 0, 3_600_000).len(), 7 * 3_600 + 1);
    }

    #[test]
    fn fast_rates_go_in_small_bursts() {
        let rate = Rate { count: 5_000, period_ms: 1_000 };
        let starts = starts(Some(rate), None, 0, 1_000);
        assert_eq!(starts.iter().filter(|at| **at == 0).count(), 550);
        assert!((5_000..=5_550).contains(&starts.len()), "{}", starts.len());
    }

    #[test]
    fn a_message_larger_than_the_rate_goes_and_is_waited_for_after() {
        let rate = Rate { count: 1_000_000, period_ms: 1_000 };
        assert_eq!(starts(None, Some(rate), 5_000_000, 12_000), [0, 4_891, 9_891]);
    }

    #[test]
    fn the_slower_of_two_rates_decides() {
        let (messages, octets) = (Rate { count: 10, period_ms: 1_000 }, Rate { count: 1_000, period_ms: 1_000 });
        let starts = starts(Some(messages), Some(octets), 500, 2_000);
        assert_eq!(starts, [0, 391, 891, 1_391, 1_891]);
    }
}
