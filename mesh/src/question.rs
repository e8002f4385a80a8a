//! Questions that one member asks another, over their link or through others that pass them on.
//!
//! Both are signed by whom they are from, so that nobody in between can ask, or answer, in another's
//! name. Whoever passes them on can read them. What the octets mean is for who asks and who answers.

use minicbor::{Decode, Encode};

use crate::node::{NodeId, NodeKey, Purpose, SecretKey, Signature};

/// The most octets of a question, and of an answer.
pub const QUESTION_OCTETS_MAX: usize = 64 * 1024;
/// The most nodes that pass a question on.
pub const VIA_MAX: usize = 2;

/// What can be asked for.
pub mod kind {
    /// Whether somebody is there; the answer is empty.
    pub const PING: u8 = 0;
    /// What became of a message, by its id in the mesh; question and answer are JSON, with a word as in [`QUEUE`].
    pub const TRACE: u8 = 1;
    /// Whether a recipient exists there; question and answer are [`recipient`](crate::recipient)'s.
    pub const RECIPIENT: u8 = 2;
    /// A look into the queue, or a change of it; question and answer are JSON. Each carries a word that
    /// the answerer gave the asker before and takes once, so that nobody on the way can ask again.
    pub const QUEUE: u8 = 3;
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// What its answer is called on this link.
    pub number: u64,
    /// Who asks.
    pub from: NodeId,
    /// Who is asked.
    pub to: NodeId,
    /// Tells the questions of a node apart.
    pub nonce: u64,
    /// What is asked for: one of [`kind`].
    pub kind: u8,
    /// The nodes that passed it on, the first one first.
    pub via: Vec<NodeId>,
    /// The question itself.
    pub octets: Box<[u8]>,
    /// By who asks, over all but the number and the nodes that passed it on.
    pub signature: Signature,
}

/// What became of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The question's number on this link.
    pub number: u64,
    /// The answer, signed by who was asked.
    pub said: Result<(Box<[u8]>, Signature), Fault>,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Nobody on the way knows how to get there.
    #[error("no way leads to it")]
    NoWay,
    /// Too much is asked at once.
    #[error("it is asked too much at once")]
    Busy,
    /// Who asks is no member to who is asked.
    #[error("it does not know who asks")]
    Stranger,
    /// Nothing of this kind can be asked there.
    #[error("nothing of this kind can be asked there")]
    NotAsked,
}

#[derive(Encode, Decode)]
struct Signed<'a> {
    #[b(0)]
    #[cbor(with = "minicbor::bytes")]
    from: &'a [u8],
    #[b(1)]
    #[cbor(with = "minicbor::bytes")]
    to: &'a [u8],
    #[n(2)]
    nonce: u64,
    #[n(3)]
    kind: u8,
    #[b(4)]
    #[cbor(with = "minicbor::bytes")]
    octets: &'a [u8],
}

impl Question {
    /// Asks.
    pub fn new(by: &SecretKey, to: NodeId, nonce: u64, kind: u8, octets: Box<[u8]>) -> Question {
        let from = by.public().id();
        let signature = by.sign(Purpose::Question, &signed(&from, &to, nonce, kind, &octets));
        Question { number: nonce, from, to, nonce, kind, via: Vec::new(), octets, signature }
    }

    /// Returns whether the holder of this key asks it.
    pub fn is_from(&self, key: &NodeKey) -> bool {
        let signed = signed(&self.from, &self.to, self.nonce, self.kind, &self.octets);
        key.id() == self.from && key.verifies(Purpose::Question, &signed, &self.signature)
    }

    /// Answers.
    pub fn answer(&self, by: &SecretKey, octets: Box<[u8]>) -> Answer {
        let signature = by.sign(Purpose::Answer, &signed(&self.from, &self.to, self.nonce, self.kind, &octets));
        Answer { number: self.number, said: Ok((octets, signature)) }
    }

    /// Returns whether the holder of this key, who was asked, answered this.
    pub fn is_answered(&self, key: &NodeKey, octets: &[u8], signature: &Signature) -> bool {
        let signed = signed(&self.from, &self.to, self.nonce, self.kind, octets);
        key.id() == self.to && key.verifies(Purpose::Answer, &signed, signature)
    }
}

fn signed(from: &NodeId, to: &NodeId, nonce: u64, kind: u8, octets: &[u8]) -> Vec<u8> {
    let signed = Signed { from: from.octets(), to: to.octets(), nonce, kind, octets };
    minicbor::to_vec(signed).expect("memory takes what is written")
}

impl Fault {
    pub(crate) fn code(self) -> u8 {
        match self {
            Fault::NoWay => 1,
            Fault::Busy => 2,
            Fault::Stranger => 3,
            Fault::NotAsked => 4,
        }
    }

    /// One that this release does not know is no way.
    pub(crate) fn from_code(code: u8) -> Fault {
        match code {
            2 => Fault::Busy,
            3 => Fault::Stranger,
            4 => Fault::NotAsked,
            _ => Fault::NoWay,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(seed: u8) -> SecretKey {
        SecretKey::from_seed(&[seed; 32])
    }

    #[test]
    fn nobody_in_between_speaks_for_another() {
        let to = key(2).public();
        let question = Question::new(&key(1), to.id(), 7, kind::PING, b"hello"[..].into());
        assert!(question.is_from(&key(1).public()));
        assert!(!question.is_from(&key(3).public()));
        for altered in [
            Question { to: key(3).public().id(), ..question.clone() },
            Question { nonce: 8, ..question.clone() },
            Question { kind: 9, ..question.clone() },
            Question { octets: b"hellO"[..].into(), ..question.clone() },
        ] {
            assert!(!altered.is_from(&key(1).public()), "{altered:?}");
        }
        let said = |by: &SecretKey| question.answer(by, b"here"[..].into()).said.expect("answered");
        let (octets, signature) = said(&key(2));
        assert!(question.is_answered(&to, &octets, &signature));
        assert!(!question.is_answered(&to, b"there", &signature));
        assert!(!question.is_answered(&to, &octets, &said(&key(3)).1));
        let other = Question::new(&key(1), to.id(), 8, kind::PING, b"hello"[..].into());
        assert!(!other.is_answered(&to, &octets, &signature), "the answer to another question");
    }
}
