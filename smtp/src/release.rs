//! When a submitted message is to set out (FUTURERELEASE, RFC 4865).

use std::fmt;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::parameter::number;

/// The longest HOLDFOR, in seconds (RFC 4865): nine digits.
pub const HOLD_SECONDS_MAX: u32 = 999_999_999;

/// What HOLDFOR or HOLDUNTIL asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// So many seconds after it was submitted.
    After(u32),
    /// At this time, in milliseconds since the Unix epoch; one that has passed is at once.
    At(u64),
}

/// How far ahead a release may lie, as EHLO says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReleaseLimit {
    /// The longest HOLDFOR, in seconds.
    pub seconds_max: u32,
    /// The latest HOLDUNTIL, in milliseconds since the Unix epoch.
    pub unix_ms_max: u64,
}

impl Release {
    /// Reads the value of HOLDFOR: up to nine digits.
    pub fn parse_after(text: &str) -> Option<Release> {
        let seconds = number(text).filter(|_| text.len() <= 9)?;
        seconds.try_into().ok().map(Release::After)
    }

    /// Reads the value of HOLDUNTIL: a date-time of RFC 3339 §5.6, in any time zone (RFC 4865 erratum 2040).
    pub fn parse_at(text: &str) -> Option<Release> {
        let time: Timestamp = text.parse().ok().filter(|_| is_date_time(text))?;
        Some(Release::At(u64::try_from(time.as_millisecond()).unwrap_or(0)))
    }

    /// Returns when that is for a message submitted at `unix_ms`, in milliseconds since the Unix epoch.
    pub fn unix_ms(self, unix_ms: u64) -> u64 {
        match self {
            Release::After(seconds) => unix_ms.saturating_add(u64::from(seconds) * 1000),
            Release::At(at) => at.max(unix_ms),
        }
    }
}

impl ReleaseLimit {
    /// Returns whether a release lies within it.
    pub fn allows(self, release: Release) -> bool {
        match release {
            Release::After(seconds) => seconds <= self.seconds_max,
            Release::At(unix_ms) => unix_ms <= self.unix_ms_max,
        }
    }
}

/// `YYYY-MM-DDThh:mm:ss[.fff](Z|±hh:mm)` and no other form that the library knows.
fn is_date_time(text: &str) -> bool {
    let (stamp, rest) = text.split_at_checked(19).unwrap_or((text, ""));
    let mut pattern = "0000-00-00T00:00:00".bytes();
    let is_stamp = stamp.len() == 19
        && stamp.bytes().all(|c| match pattern.next() {
            Some(b'0') => c.is_ascii_digit(),
            mark => mark == Some(c.to_ascii_uppercase()),
        });
    let zone = match rest.strip_prefix('.') {
        Some(fraction) => fraction.trim_start_matches(|c: char| c.is_ascii_digit()),
        None => rest,
    };
    let is_offset = zone.len() == 6 && zone.starts_with(['+', '-']) && zone.as_bytes()[3] == b':';
    is_stamp && !rest.starts_with(".Z") && (zone.eq_ignore_ascii_case("Z") || is_offset)
}

/// Writes the value of `Future-Release-Request` (RFC 4865).
impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Release::After(seconds) => write!(f, "for;{seconds}"),
            Release::At(unix_ms) => write!(f, "until;{}", DateTime(*unix_ms)),
        }
    }
}

/// Writes the two values behind the keyword of EHLO (RFC 4865).
impl fmt::Display for ReleaseLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.seconds_max, DateTime(self.unix_ms_max))
    }
}

/// A time in UTC as RFC 3339 has it, to the second.
struct DateTime(u64);

impl fmt::Display for DateTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = i64::try_from(self.0).unwrap_or(i64::MAX);
        let time = Timestamp::from_millisecond(ms).unwrap_or(Timestamp::MAX).to_zoned(TimeZone::UTC);
        write!(f, "{}", time.strftime("%Y-%m-%dT%H:%M:%SZ"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_written() {
        for (text, want) in [
            ("2027-01-15T08:00:00Z", Some("until;2027-01-15T08:00:00Z")),
            ("2027-01-15t08:00:00z", Some("until;2027-01-15T08:00:00Z")),
            ("2027-01-15T08:00:00.75Z", Some("until;2027-01-15T08:00:00Z")),
            ("2027-01-15T09:30:00+01:30", Some("until;2027-01-15T08:00:00Z")),
            ("1969-12-31T23:59:59Z", Some("until;1970-01-01T00:00:00Z")),
            ("2027-01-15T08:00:00", None),
            ("2027-01-15T08:00:00.Z", None),
            ("2027-01-15 08:00:00Z", None),
            ("2027-01-15T08:00Z", None),
            ("20270115T080000Z", None),
            ("2027-02-30T08:00:00Z", None),
            ("2027-01-15T08:00:00+0130", None),
            ("2027-01-15T08:00:00Z[UTC]", None),
            ("+002027-01-15T08:00:00Z", None),
            ("ü027-01-15T08:00:00Z", None),
            ("", None),
        ] {
            let read = Release::parse_at(text).map(|release| release.to_string());
            assert_eq!(read.as_deref(), want, "{text}");
        }
    }

    #[test]
    fn seconds_are_digits() {
        for (text, want) in [("0", Some(0)), ("999999999", Some(999_999_999)), ("0000000001", None), ("", None)] {
            assert_eq!(Release::parse_after(text), want.map(Release::After), "{text}");
        }
        for text in ["-1", "+1", "1s", "1.5", "1000000000"] {
            assert_eq!(Release::parse_after(text), None, "{text}");
        }
    }

    #[test]
    fn a_release_is_never_before_the_message() {
        assert_eq!(Release::After(2).unix_ms(5), 2005);
        assert_eq!((Release::At(3).unix_ms(5), Release::At(7).unix_ms(5)), (5, 7));
        let limit = ReleaseLimit { seconds_max: 60, unix_ms_max: 60_000 };
        assert!(limit.allows(Release::After(60)) && limit.allows(Release::At(60_000)));
        assert!(!limit.allows(Release::After(61)) && !limit.allows(Release::At(60_001)));
        assert_eq!(limit.to_string(), "60 1970-01-01T00:01:00Z");
    }
}
