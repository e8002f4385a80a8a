//! Words that make a question of another member good once. Questions pass through other members, who can read them
//! and could send them again: so each carries a word that the answerer made for the asker alone, and takes once,
//! within seconds. An answer brings the word for the next question.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use postroad_mesh::NodeId;

use crate::tls;

/// How long a word is good: little longer than a question may take.
const WORD_MS_MAX: u64 = 20_000;
/// Words that a member may have at a time: so many commands run beside each other.
const WORDS_MAX: usize = 8;

/// The words that were given out, with the time at which each was.
#[derive(Default)]
pub(super) struct Words(Mutex<HashMap<NodeId, Vec<(String, u64)>>>);

impl Words {
    /// Returns a new word for a member. None where random numbers are not to be had: whoever asks again hears that
    /// its word is stale.
    pub fn give(&self, to: NodeId, now: u64) -> Option<String> {
        let word = format!("{:032x}", u128::from_be_bytes(tls::random::<16>().ok()?));
        let mut given = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        given.retain(|_, words| {
            words.retain(|(_, given)| now.saturating_sub(*given) < WORD_MS_MAX);
            !words.is_empty()
        });
        let words = given.entry(to).or_default();
        if words.len() >= WORDS_MAX {
            words.remove(0);
        }
        words.push((word.clone(), now));
        Some(word)
    }

    /// Returns whether this word was given to this member, and uses it up.
    pub fn take(&self, from: &NodeId, word: &str, now: u64) -> bool {
        let mut given = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(words) = given.get_mut(from) else { return false };
        let Some(place) = words.iter().position(|(known, _)| known == word) else { return false };
        let (_, given) = words.remove(place);
        now.saturating_sub(given) < WORD_MS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u8) -> NodeId {
        NodeId::from_octets([number; 32])
    }

    #[test]
    fn a_word_is_good_once_for_whom_it_was_given_and_for_seconds() {
        let words = Words::default();
        let give = |now| words.give(node(1), now).expect("chance");
        let word = give(0);
        assert!(!words.take(&node(2), &word, 1), "somebody else's");
        assert!(words.take(&node(1), &word, 1));
        assert!(!words.take(&node(1), &word, 1), "sent again by somebody on the way");
        assert!(!words.take(&node(1), &give(0), WORD_MS_MAX), "kept back by somebody on the way");
        assert!(!words.take(&node(1), "c", 0), "guessed");
    }

    #[test]
    fn words_are_bounded() {
        let words = Words::default();
        let all: Vec<String> = (0..100).filter_map(|_| words.give(node(1), 0)).collect();
        assert_eq!(all.iter().filter(|word| words.take(&node(1), word, 0)).count(), WORDS_MAX);
        words.give(node(1), 0);
        words.give(node(2), WORD_MS_MAX);
        assert_eq!(words.0.lock().expect("nobody failed").len(), 1, "what is over is forgotten");
    }
}
