//! Queue ids and the time they sort by.

use std::fmt;
use std::str::FromStr;

/// Milliseconds since the Unix epoch. The queue reads no clock: times come in as arguments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// Returns the time `millis` later, at most the end of time.
    pub const fn plus(self, millis: u64) -> UnixMillis {
        UnixMillis(self.0.saturating_add(millis))
    }

    /// Returns the milliseconds from `earlier` to this time; zero when it lies ahead.
    pub const fn since(self, earlier: UnixMillis) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Names a message in one host's queue. Ids sort by arrival and are never used twice by a queue.
///
/// 44 bits of milliseconds, then a 20-bit counter; written as 13 characters of Crockford's base 32.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueId(u64);

/// The text is no queue id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a queue id is 13 letters and digits, as `postroad queue list` shows it")]
pub struct QueueIdError;

const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const COUNTER_BITS: u32 = 20;

impl QueueId {
    /// Returns the first id after `last` for a message that arrives at `now`: later than every
    /// earlier one even when the clock went back.
    pub fn next(last: QueueId, now: UnixMillis) -> QueueId {
        QueueId((now.0 << COUNTER_BITS).max(last.0 + 1))
    }

    /// Returns the id with this number, as the queue wrote it.
    pub const fn from_u64(number: u64) -> QueueId {
        QueueId(number)
    }

    /// Returns when the message arrived, as the id has it: later than in truth where many arrive at
    /// once or the clock went back, never earlier.
    pub const fn arrived(self) -> UnixMillis {
        UnixMillis(self.0 >> COUNTER_BITS)
    }

    /// Returns the number.
    pub const fn to_u64(self) -> u64 {
        self.0
    }
}

impl fmt::Display for QueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0u8; 13];
        for (i, c) in text.iter_mut().enumerate() {
            *c = ALPHABET[(self.0 >> (5 * (12 - i)) & 31) as usize];
        }
        f.write_str(std::str::from_utf8(&text).expect("the alphabet is ASCII"))
    }
}

impl fmt::Debug for QueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for QueueId {
    type Err = QueueIdError;

    /// Reads an id in either case; as Crockford has it, O reads as 0 and I and L as 1.
    fn from_str(text: &str) -> Result<QueueId, QueueIdError> {
        if text.len() != 13 {
            return Err(QueueIdError);
        }
        let mut number: u64 = 0;
        for c in text.bytes() {
            let c = match c.to_ascii_uppercase() {
                b'O' => b'0',
                b'I' | b'L' => b'1',
                c => c,
            };
            let digit = ALPHABET.iter().position(|a| *a == c).ok_or(QueueIdError)?;
            number = number.checked_mul(32).ok_or(QueueIdError)? + digit as u64;
        }
        Ok(QueueId(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_by_arrival_even_when_the_clock_goes_back() {
        let a = QueueId::next(QueueId(0), UnixMillis(1_800_000_000_000));
        let b = QueueId::next(a, UnixMillis(1_700_000_000_000));
        assert!(b > a);
        assert!(b.to_string() > a.to_string());
    }

    #[test]
    fn the_text_reads_back() {
        for n in [0, 1, 1_800_000_000_000 << 20 | 7, u64::MAX] {
            let id = QueueId(n);
            assert_eq!(id.to_string().to_lowercase().parse(), Ok(id));
        }
        for text in ["", "0", "0000000000000O0", "UUUUUUUUUUUUU", "ZZZZZZZZZZZZZ", "é00000000000"] {
            assert_eq!(text.parse::<QueueId>(), Err(QueueIdError), "{text}");
        }
    }
}
