//! How long a site is left alone that cannot be reached, before one attempt probes it again.
//!
//! Whoever answers that it is busy is asked less and less often. Where nobody answers at all, trying
//! costs nobody anything, and what waits wants to go the moment somebody is back: the more messages
//! wait, the less the pauses grow. By this no message makes for more than one attempt an hour, which
//! is less than if each were tried for itself.

use crate::retry::RetryPolicy;

/// So often each waiting message may have a silent site tried.
const EACH_MS: u64 = 3_600_000;
/// However many wait, a pause is no shorter.
const LEAST_MS: u64 = 2_000;

/// What is known where nobody answered at all.
#[derive(Clone, Copy, Debug)]
pub(super) struct Silence {
    /// Messages that wait for the site.
    pub waiting: u32,
    /// How long it took to find out: where connections time out a probe occupies a session.
    pub took_ms: u64,
}

/// Returns how long to leave a site alone after so many failures in a row. `random` lies in 0..1.
pub(super) fn pause_ms(backoff: &RetryPolicy, failures: u32, silence: Option<Silence>, random: f64) -> u64 {
    let pause = backoff.delay(failures, random);
    // Longer pauses than ours were chosen by somebody: the line may cost money.
    let Some(silence) = silence.filter(|_| backoff.first_ms <= RetryPolicy::DESTINATION.first_ms) else { return pause };
    let each = EACH_MS / u64::from(silence.waiting.max(1));
    let most = each.max(LEAST_MS.min(backoff.first_ms)).max(silence.took_ms);
    pause.min(RetryPolicy { first_ms: most, max_ms: most, ..*backoff }.delay(1, random))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: RetryPolicy = RetryPolicy { jitter_ratio: 0.0, ..RetryPolicy::DESTINATION };

    fn silent(waiting: u32, took_ms: u64) -> Option<Silence> {
        Some(Silence { waiting, took_ms })
    }

    #[test]
    fn the_more_wait_the_less_the_pauses_grow() {
        for (waiting, last) in [(0, 600), (1, 600), (6, 600), (60, 60), (720, 5), (1_800, 2), (1_000_000, 2)] {
            let waits: Vec<u64> = (1..=9).map(|n| pause_ms(&PLAIN, n, silent(waiting, 0), 0.5) / 1_000).collect();
            let grown = [10, 20, 40, 80, 160, 320, 600, 600, 600];
            assert_eq!(waits, grown.map(|wait| wait.min(last)), "{waiting} wait");
        }
        assert_eq!(pause_ms(&PLAIN, 9, None, 0.5), 600_000, "who answers is left in peace");
    }

    #[test]
    fn a_probe_that_takes_long_leaves_as_long_to_others() {
        assert_eq!(pause_ms(&PLAIN, 9, silent(1_000_000, 30_000), 0.5), 30_000);
        assert_eq!(pause_ms(&PLAIN, 1, silent(1_000_000, 30_000), 0.5), 10_000, "and never longer than without");
    }

    #[test]
    fn pauses_that_somebody_chose_are_kept_and_shorter_ones_stay_short() {
        let chosen = RetryPolicy { first_ms: 60_000, max_ms: 3_600_000, ..PLAIN };
        assert_eq!(pause_ms(&chosen, 3, silent(1_000_000, 0), 0.5), 240_000);
        let short = RetryPolicy { first_ms: 1_000, ..PLAIN };
        assert_eq!(pause_ms(&short, 5, silent(1_000_000, 0), 0.5), 1_000);
    }

    #[test]
    fn short_pauses_are_spread_too() {
        let pause = |random| pause_ms(&RetryPolicy::DESTINATION, 9, silent(1_000_000, 0), random);
        assert_eq!([pause(0.0), pause(1.0)], [1_600, 2_400]);
    }
}
