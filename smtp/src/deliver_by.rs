//! By when a message is to be delivered, and what becomes of it otherwise (DELIVERBY, RFC 2852).

use std::fmt;
use std::str::FromStr;

/// The longest by-time either way, in seconds (RFC 2852 §2): nine digits.
pub const BY_SECONDS_MAX: i32 = 999_999_999;

/// The value of BY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeliverBy {
    /// The time that is left, in seconds; negative when it is over. As much as it says at the moment
    /// of MAIL; in an envelope that was accepted, when the message had arrived.
    pub seconds: i32,
    /// What becomes of the message behind that time.
    pub mode: ByMode,
    /// Whether the sender hears of each host that the message was relayed to.
    pub trace: bool,
}

/// What becomes of a message whose time is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByMode {
    /// It is still tried, and the sender hears that it is late.
    Notify,
    /// It goes back to its sender.
    Return,
}

/// The text is no by-value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the time is in seconds with N or R behind it, as in 3600;R; with R it is above 0")]
pub struct DeliverByError;

impl DeliverBy {
    /// Returns what is left of it so many seconds later.
    pub fn after(self, seconds: u64) -> DeliverBy {
        let left = i64::from(self.seconds).saturating_sub(i64::try_from(seconds).unwrap_or(i64::MAX));
        let least = i64::from(-BY_SECONDS_MAX);
        DeliverBy { seconds: i32::try_from(left.max(least)).unwrap_or(-BY_SECONDS_MAX), ..self }
    }

    /// Returns whether the time is over and with it every reason to deliver the message.
    pub fn is_void(self) -> bool {
        self.mode == ByMode::Return && self.seconds <= 0
    }
}

impl FromStr for DeliverBy {
    type Err = DeliverByError;

    /// Reads `by-time ";" by-mode [by-trace]` (RFC 2852 §2), letters in either case.
    fn from_str(text: &str) -> Result<DeliverBy, DeliverByError> {
        let (time, words) = text.split_once(';').ok_or(DeliverByError)?;
        let digits = time.strip_prefix(['-', '+']).unwrap_or(time);
        let good = (1..=9).contains(&digits.len()) && digits.bytes().all(|c| c.is_ascii_digit());
        let seconds = if good { time.parse().map_err(|_| DeliverByError)? } else { return Err(DeliverByError) };
        let (mode, trace) = match words.to_ascii_uppercase().as_str() {
            "N" => (ByMode::Notify, false),
            "NT" => (ByMode::Notify, true),
            "R" => (ByMode::Return, false),
            "RT" => (ByMode::Return, true),
            _ => return Err(DeliverByError),
        };
        let by = DeliverBy { seconds, mode, trace };
        // RFC 2852 §4.1: what is late already cannot be returned for being late.
        if by.is_void() { Err(DeliverByError) } else { Ok(by) }
    }
}

impl fmt::Display for DeliverBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = if self.mode == ByMode::Return { "R" } else { "N" };
        write!(f, "{};{mode}{}", self.seconds, if self.trace { "T" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_and_written() {
        for (text, want) in [
            ("120;R", Some("120;R")),
            ("+5;rt", Some("5;RT")),
            ("-5;n", Some("-5;N")),
            ("0;NT", Some("0;NT")),
            ("999999999;N", Some("999999999;N")),
            ("-999999999;N", Some("-999999999;N")),
            ("0;R", None),
            ("-1;R", None),
            ("1000000000;N", None),
            ("1", None),
            ("1;", None),
            ("1;T", None),
            ("1;RN", None),
            ("1;R;T", None),
            ("1 ;R", None),
            (";R", None),
            ("-;N", None),
            ("+-1;N", None),
            ("1.5;N", None),
        ] {
            let read = text.parse::<DeliverBy>().ok().map(|by| by.to_string());
            assert_eq!(read.as_deref(), want, "{text}");
        }
    }

    #[test]
    fn time_runs_and_stops_at_nine_digits() {
        let by = |text: &str| text.parse::<DeliverBy>().expect(text);
        assert_eq!(by("10;RT").after(3), by("7;RT"));
        assert!(!by("10;R").after(9).is_void() && by("10;R").after(10).is_void() && !by("10;N").after(10).is_void());
        assert_eq!(by("10;N").after(u64::MAX).seconds, -BY_SECONDS_MAX);
    }
}
