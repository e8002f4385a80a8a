//! A card: what a node shows of itself so that a member can admit it without a network between them. It
//! holds nothing secret; whoever admits has to know from whom it comes.

use std::fmt;
use std::str::FromStr;

use crate::node::{NodeKey, base32, from_base32, sha256};

/// What a card begins with, its format version included.
const PREFIX: &str = "card1:";

/// A card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Card {
    /// The key of the node.
    pub key: NodeKey,
}

/// The text is no card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CardError {
    /// Something else.
    #[error("a card begins with {PREFIX}")]
    Prefix,
    /// Part of it was lost on the way.
    #[error("the card is cut short or mistyped; copy it whole, on one line")]
    Form,
}

impl Card {
    /// Four octets that tell a mistyped card.
    fn check(&self) -> [u8; 4] {
        *sha256(&[b"postroad card\0", self.key.octets()]).first_chunk().expect("a hash is longer")
    }
}

impl FromStr for Card {
    type Err = CardError;

    fn from_str(text: &str) -> Result<Card, CardError> {
        let octets = text.trim().strip_prefix(PREFIX).ok_or(CardError::Prefix)?;
        let octets = from_base32(octets).ok_or(CardError::Form)?;
        let (key, check) = octets.split_first_chunk().ok_or(CardError::Form)?;
        let card = Card { key: NodeKey::from_octets(*key) };
        if check == card.check() { Ok(card) } else { Err(CardError::Form) }
    }
}

impl fmt::Display for Card {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", base32(&[&self.key.octets()[..], &self.check()].concat()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::SecretKey;

    #[test]
    fn a_card_reads_back_and_a_slip_is_found() {
        let card = Card { key: SecretKey::from_seed(&[7; 32]).public() };
        let text = card.to_string();
        assert_eq!(text.parse(), Ok(card));
        assert_eq!("mesh1:x".parse::<Card>(), Err(CardError::Prefix));
        assert_eq!(text[..text.len() - 2].parse::<Card>(), Err(CardError::Form));
        let slip = if text.ends_with('a') { "b" } else { "a" };
        assert_eq!(format!("{}{slip}", &text[..text.len() - 1]).parse::<Card>(), Err(CardError::Form));
    }
}
