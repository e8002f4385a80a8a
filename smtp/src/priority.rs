//! How urgently a message is to be transferred, from -9 to 9 (RFC 6710).

use std::fmt;
use std::str::FromStr;

/// The value of MT-PRIORITY. The higher, the sooner; 0 is that of mail that does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Priority(i8);

/// The text is no priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a priority is a whole number from -9 to 9")]
pub struct PriorityError;

impl Priority {
    /// What a message has that does not say (RFC 6710 §3).
    pub const NORMAL: Priority = Priority(0);

    /// Returns the priority of this value, if there is one.
    pub fn new(value: i8) -> Option<Priority> {
        (-9..=9).contains(&value).then_some(Priority(value))
    }

    /// Returns the value, from -9 to 9.
    pub fn get(self) -> i8 {
        self.0
    }
}

impl FromStr for Priority {
    type Err = PriorityError;

    /// Reads `priority-value`: one digit, with a minus before it or not, and never `-0` (RFC 6710 §3).
    fn from_str(text: &str) -> Result<Priority, PriorityError> {
        match text.as_bytes() {
            [b'0'..=b'9'] | [b'-', b'1'..=b'9'] => text.parse().map(Priority).map_err(|_| PriorityError),
            _ => Err(PriorityError),
        }
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nineteen_texts_are_priorities() {
        for value in i8::MIN..=i8::MAX {
            let read = value.to_string().parse::<Priority>().ok();
            assert_eq!(read, Priority::new(value), "{value}");
            assert_eq!(read.is_some(), (-9..=9).contains(&value), "{value}");
        }
        for text in ["", "-", "-0", "+1", "01", "1.0", " 1", "1 ", "--1", "x", "\u{663}"] {
            assert_eq!(text.parse::<Priority>(), Err(PriorityError), "{text}");
        }
    }
}
