//! What a member may do beyond exchanging mail for what it serves: a set, granted with its admission.

use std::fmt;
use std::str::FromStr;

/// A set of rights. Bits that this release does not know are kept, so that a grant made by a later
/// one is not lessened by passing through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caps(u32);

const NAMES: [(&str, Caps); 5] = [
    ("relay", Caps::RELAY),
    ("admit", Caps::ADMIT),
    ("trace", Caps::TRACE),
    ("queue", Caps::QUEUE),
    ("custody", Caps::CUSTODY),
];

/// The text names a right that there is not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is none of relay, admit, trace, queue, custody")]
pub struct CapsError(Box<str>);

impl Caps {
    /// No right.
    pub const NONE: Caps = Caps(0);
    /// To send mail for others through its members.
    pub const RELAY: Caps = Caps(1);
    /// To admit others.
    pub const ADMIT: Caps = Caps(2);
    /// To follow messages of others.
    pub const TRACE: Caps = Caps(4);
    /// To look into the queues of others; to steer one is for its own host to allow.
    pub const QUEUE: Caps = Caps(8);
    /// To keep copies for others.
    pub const CUSTODY: Caps = Caps(16);
    /// Every right, those of later releases included.
    pub const ALL: Caps = Caps(u32::MAX);

    /// Takes a set from its bits.
    pub fn from_bits(bits: u32) -> Caps {
        Caps(bits)
    }

    /// Returns the bits.
    pub fn bits(self) -> u32 {
        self.0
    }

    /// Returns whether all of `other` are in this set.
    pub fn has(self, other: Caps) -> bool {
        self.0 & other.0 == other.0
    }

    /// Returns what is in either set.
    #[must_use]
    pub fn and(self, other: Caps) -> Caps {
        Caps(self.0 | other.0)
    }

    /// Returns what is in both sets.
    #[must_use]
    pub fn limited_to(self, other: Caps) -> Caps {
        Caps(self.0 & other.0)
    }
}

impl FromStr for Caps {
    type Err = CapsError;

    /// Reads names with commas between them; nothing is the empty set.
    fn from_str(text: &str) -> Result<Caps, CapsError> {
        let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
        names.map(one).try_fold(Caps::NONE, |set, cap| Ok(set.and(cap?)))
    }
}

fn one(name: &str) -> Result<Caps, CapsError> {
    let known = NAMES.iter().find(|(known, _)| *known == name);
    known.map(|(_, cap)| *cap).ok_or_else(|| CapsError(name.into()))
}

impl fmt::Display for Caps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = NAMES.iter().filter(|(_, cap)| self.has(*cap)).map(|(name, _)| *name).collect();
        f.pad(&names.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_as_they_went() {
        for text in ["", "relay", "relay,admit", "admit,trace,queue,custody"] {
            assert_eq!(text.parse::<Caps>().expect("known").to_string(), text);
        }
        assert_eq!("relay, admit".parse(), Ok(Caps::RELAY.and(Caps::ADMIT)));
        assert_eq!("root".parse::<Caps>(), Err(CapsError("root".into())));
    }
}
