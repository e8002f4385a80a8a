//! What one member asks another before it takes mail for it: does this recipient exist at its home?
//! CBOR with numbered fields, format version 1 ([`kind::RECIPIENT`](crate::question::kind::RECIPIENT)).
//!
//! The answer is what the home's own rules say to RCPT (RFC 5321 §3.6.2 wants no notification for what
//! could have been refused). Whoever gets an answer that it does not understand takes it for none.

use minicbor::{Decode, Encode};

use crate::wire::NOT_CBOR;

/// The most octets of a recipient: a local-part, the `@` and a domain (RFC 5321 §4.5.3.1), with room
/// for those of SMTPUTF8.
pub const RECIPIENT_OCTETS_MAX: usize = 512;

/// The question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The mailbox, `local-part@domain`. Its grammar is for whoever answers.
    pub recipient: Box<str>,
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Mail for it is taken.
    Exists,
    /// There is no such mailbox, for good.
    Unknown,
    /// It cannot be told now.
    Unclear,
    /// No mail for its domain ends at this node: it is for others to say.
    Onward,
}

/// The octets are no question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no question about a recipient: {0}")]
pub struct AskedError(&'static str);

#[derive(Encode, Decode)]
#[cbor(map)]
struct Wire {
    #[n(0)]
    recipient: String,
}

#[derive(Encode, Decode)]
#[cbor(map)]
struct WireTold {
    #[n(0)]
    code: u8,
}

const EXISTS: u8 = 1;
const UNKNOWN: u8 = 2;
const UNCLEAR: u8 = 3;
/// Unclear to who does not know it.
const ONWARD: u8 = 4;

impl Asked {
    /// Returns the octets.
    pub fn to_octets(&self) -> Vec<u8> {
        minicbor::to_vec(Wire { recipient: self.recipient.to_string() }).expect("memory takes what is written")
    }

    /// Reads the octets.
    ///
    /// # Errors
    /// When they are no question, or name what is longer than a recipient.
    pub fn from_octets(octets: &[u8]) -> Result<Asked, AskedError> {
        let wire: Wire = minicbor::decode(octets).map_err(|_| AskedError(NOT_CBOR))?;
        if wire.recipient.len() > RECIPIENT_OCTETS_MAX {
            return Err(AskedError("a recipient that is too long"));
        }
        Ok(Asked { recipient: wire.recipient.into() })
    }
}

impl Told {
    /// Returns the octets.
    pub fn to_octets(self) -> Vec<u8> {
        let code = match self {
            Told::Exists => EXISTS,
            Told::Unknown => UNKNOWN,
            Told::Unclear => UNCLEAR,
            Told::Onward => ONWARD,
        };
        minicbor::to_vec(WireTold { code }).expect("memory takes what is written")
    }

    /// Reads the octets; what a later release may say is unclear to this one.
    pub fn from_octets(octets: &[u8]) -> Told {
        match minicbor::decode(octets) {
            Ok(WireTold { code: EXISTS }) => Told::Exists,
            Ok(WireTold { code: UNKNOWN }) => Told::Unknown,
            Ok(WireTold { code: ONWARD }) => Told::Onward,
            _ => Told::Unclear,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_said_is_understood_and_nothing_else() {
        for told in [Told::Exists, Told::Unknown, Told::Unclear, Told::Onward] {
            assert_eq!(Told::from_octets(&told.to_octets()), told);
        }
        assert_eq!(Told::from_octets(&minicbor::to_vec(WireTold { code: 9 }).expect("memory")), Told::Unclear);
        assert_eq!(Told::from_octets(b""), Told::Unclear);
        let long = Asked { recipient: "x".repeat(RECIPIENT_OCTETS_MAX + 1).into() };
        assert!(Asked::from_octets(&long.to_octets()).is_err());
    }

    proptest! {
        #[test]
        fn questions_come_back_as_they_went(recipient in "\\PC{0,128}") {
            let asked = Asked { recipient: recipient.into() };
            prop_assert_eq!(Asked::from_octets(&asked.to_octets()), Ok(asked));
        }

        #[test]
        fn garbage_is_borne(octets in prop::collection::vec(any::<u8>(), 0..99)) {
            let _ = (Asked::from_octets(&octets), Told::from_octets(&octets));
        }
    }
}
