//! What passes over a link, a session between two nodes behind XLINK: messages, each with its length
//! before it, as CBOR with numbered fields. Version 1.
//!
//! A [`Message`] that was read keeps the limits. One of a kind that this release does not know is
//! [`Message::Unknown`], to be passed over: later releases may say more.

use minicbor::bytes::{ByteArray, ByteVec};
use minicbor::{Decode, Encode};

use crate::frame::{FRAME_OCTETS_MAX, Frame};
use crate::invite::Proof;
use crate::question::{Answer, Fault, QUESTION_OCTETS_MAX, Question, VIA_MAX};
use crate::statement::{STATEMENT_OCTETS_MAX, TEXT_OCTETS_MAX};
use crate::wire::{NOT_CBOR, Wrong, few, text};
use crate::{NodeId, node::Signature};

/// Octets of the length before each message.
pub const LENGTH_OCTETS: usize = 4;
/// The most octets of a message of a member.
pub const MESSAGE_OCTETS_MAX: usize = FRAME_OCTETS_MAX + 4096;
/// The most octets of a message of somebody who is no member yet.
pub const STRANGER_OCTETS_MAX: usize = 1024;

/// Something said over a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// About the mesh.
    Spread(Frame),
    /// Whoever dialled asks to be let in.
    Join {
        /// That it was invited, bound to this session.
        proof: Proof,
        /// What it is called.
        label: Box<str>,
    },
    /// It is let in; this is the statement that founded the mesh.
    Admitted {
        /// As octets.
        founding: Box<[u8]>,
    },
    /// It is not let in.
    Refused {
        /// Why, for people.
        why: Box<str>,
    },
    /// A question to a node, this one or another.
    Ask(Question),
    /// An answer to the question of the same number.
    Answer(Answer),
    /// Something of a later release.
    Unknown(u8),
}

/// The octets are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no message of a link: {0}")]
pub struct MessageError(&'static str);

#[derive(Encode, Decode, Default)]
#[cbor(map)]
struct Wire {
    #[n(0)]
    kind: u8,
    #[n(1)]
    octets: Option<ByteVec>,
    #[n(2)]
    text: Option<String>,
    #[n(3)]
    proof: Option<ByteArray<32>>,
    #[n(4)]
    number: Option<u64>,
    #[n(5)]
    from: Option<ByteArray<32>>,
    #[n(6)]
    to: Option<ByteArray<32>>,
    #[n(7)]
    nonce: Option<u64>,
    /// What is asked for, or why there is no answer.
    #[n(8)]
    what: Option<u8>,
    #[n(9)]
    via: Option<Vec<ByteArray<32>>>,
    #[n(10)]
    signature: Option<ByteArray<64>>,
}

const SPREAD: u8 = 1;
const JOIN: u8 = 2;
const ADMITTED: u8 = 3;
const REFUSED: u8 = 4;
const ASK: u8 = 5;
const ANSWER: u8 = 6;

/// Returns how many octets the message behind a length has.
///
/// # Errors
/// When there are more than `max`.
pub fn message_octets(length: [u8; LENGTH_OCTETS], max: usize) -> Result<usize, MessageError> {
    let octets = u32::from_be_bytes(length) as usize;
    if octets > max { Err(MessageError("it is too long")) } else { Ok(octets) }
}

impl Message {
    /// Returns the octets with their length before them, as they are sent.
    pub fn to_octets(&self) -> Vec<u8> {
        let octets = minicbor::to_vec(self.wire()).expect("memory takes what is written");
        let length = u32::try_from(octets.len()).expect("the limits are below");
        [&length.to_be_bytes()[..], &octets].concat()
    }

    fn wire(&self) -> Wire {
        let none = Wire::default();
        let id = |id: &NodeId| Some((*id.octets()).into());
        match self {
            Message::Spread(frame) => Wire { kind: SPREAD, octets: Some(frame.to_octets().into()), ..none },
            Message::Join { proof, label } => {
                Wire { kind: JOIN, proof: Some((*proof.octets()).into()), text: Some(label.to_string()), ..none }
            }
            Message::Admitted { founding } => Wire { kind: ADMITTED, octets: Some(founding.to_vec().into()), ..none },
            Message::Refused { why } => Wire { kind: REFUSED, text: Some(why.to_string()), ..none },
            Message::Ask(question) => Wire {
                kind: ASK,
                number: Some(question.number),
                from: id(&question.from),
                to: id(&question.to),
                nonce: Some(question.nonce),
                what: Some(question.kind),
                via: Some(question.via.iter().map(|id| (*id.octets()).into()).collect()),
                octets: Some(question.octets.to_vec().into()),
                signature: Some((*question.signature.octets()).into()),
                ..none
            },
            Message::Answer(Answer { number, said: Ok((octets, signature)) }) => Wire {
                kind: ANSWER,
                number: Some(*number),
                octets: Some(octets.to_vec().into()),
                signature: Some((*signature.octets()).into()),
                ..none
            },
            Message::Answer(Answer { number, said: Err(fault) }) => {
                Wire { kind: ANSWER, number: Some(*number), what: Some(fault.code()), ..none }
            }
            Message::Unknown(kind) => Wire { kind: *kind, ..none },
        }
    }

    /// Reads a message, its length taken off.
    ///
    /// # Errors
    /// When it is none, or exceeds a limit.
    pub fn from_octets(octets: &[u8]) -> Result<Message, MessageError> {
        let wire: Wire = minicbor::decode(octets).map_err(|_| NOT_CBOR)?;
        Ok(match wire.kind {
            SPREAD => {
                let frame = Frame::from_octets(&wire.octets.ok_or(MISSING)?);
                Message::Spread(frame.map_err(|_| "a frame that is none")?)
            }
            JOIN => Message::Join {
                proof: Proof::from_octets(*wire.proof.ok_or(MISSING)?),
                label: text(wire.text, TEXT_OCTETS_MAX)?,
            },
            ADMITTED => {
                let founding = limited(wire.octets, STATEMENT_OCTETS_MAX + 128)?;
                Message::Admitted { founding }
            }
            REFUSED => Message::Refused { why: text(wire.text, TEXT_OCTETS_MAX)? },
            ASK => Message::Ask(Question {
                number: wire.number.ok_or(MISSING)?,
                from: NodeId::from_octets(*wire.from.ok_or(MISSING)?),
                to: NodeId::from_octets(*wire.to.ok_or(MISSING)?),
                nonce: wire.nonce.ok_or(MISSING)?,
                kind: wire.what.ok_or(MISSING)?,
                via: few(wire.via.unwrap_or_default(), VIA_MAX)?
                    .into_iter()
                    .map(|id| NodeId::from_octets(*id))
                    .collect(),
                octets: limited(wire.octets, QUESTION_OCTETS_MAX)?,
                signature: Signature::from_octets(*wire.signature.ok_or(MISSING)?),
            }),
            ANSWER => {
                let said = match (wire.what, wire.signature) {
                    (Some(code), _) => Err(Fault::from_code(code)),
                    (None, Some(signature)) => {
                        Ok((limited(wire.octets, QUESTION_OCTETS_MAX)?, Signature::from_octets(*signature)))
                    }
                    (None, None) => return Err(MISSING.into()),
                };
                Message::Answer(Answer { number: wire.number.ok_or(MISSING)?, said })
            }
            kind => Message::Unknown(kind),
        })
    }
}

const MISSING: Wrong = "a field is missing";

fn limited(octets: Option<ByteVec>, max: usize) -> Result<Box<[u8]>, Wrong> {
    let octets = Vec::from(octets.ok_or(MISSING)?);
    if octets.len() > max { Err("a field is too long") } else { Ok(octets.into()) }
}

impl From<Wrong> for MessageError {
    fn from(what: Wrong) -> MessageError {
        MessageError(what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Item;
    use proptest::prelude::*;

    fn octets(max: usize) -> impl Strategy<Value = Box<[u8]>> {
        prop::collection::vec(any::<u8>(), 0..max).prop_map(Vec::into_boxed_slice)
    }

    fn id() -> impl Strategy<Value = NodeId> {
        any::<[u8; 32]>().prop_map(NodeId::from_octets)
    }

    fn signature() -> impl Strategy<Value = Signature> {
        prop::collection::vec(any::<u8>(), 64).prop_map(|o| Signature::from_octets(o.try_into().expect("64")))
    }

    fn question() -> impl Strategy<Value = Question> {
        let names = (any::<u64>(), id(), id(), any::<u64>(), any::<u8>());
        (names, prop::collection::vec(id(), 0..VIA_MAX), octets(99), signature()).prop_map(
            |((number, from, to, nonce, kind), via, octets, signature)| Question {
                number,
                from,
                to,
                nonce,
                kind,
                via,
                octets,
                signature,
            },
        )
    }

    fn answer() -> impl Strategy<Value = Answer> {
        let said = prop_oneof![
            (octets(99), signature()).prop_map(Ok),
            prop::sample::select(vec![Fault::NoWay, Fault::Busy, Fault::Stranger, Fault::NotAsked]).prop_map(Err),
        ];
        (any::<u64>(), said).prop_map(|(number, said)| Answer { number, said })
    }

    fn message() -> impl Strategy<Value = Message> {
        prop_oneof![
            octets(99).prop_map(|octets| Message::Spread(Frame::Give(vec![Item::Record(octets)]))),
            (any::<[u8; 32]>(), "[a-z]{0,40}")
                .prop_map(|(proof, label)| Message::Join { proof: Proof::from_octets(proof), label: label.into() }),
            octets(999).prop_map(|founding| Message::Admitted { founding }),
            "[ -~]{0,99}".prop_map(|why| Message::Refused { why: why.into() }),
            question().prop_map(Message::Ask),
            answer().prop_map(Message::Answer),
            (7..=u8::MAX).prop_map(Message::Unknown),
        ]
    }

    proptest! {
        #[test]
        fn messages_come_back_as_they_went(message in message()) {
            let octets = message.to_octets();
            let (length, rest) = octets.split_first_chunk().expect("a length");
            prop_assert_eq!(message_octets(*length, MESSAGE_OCTETS_MAX), Ok(rest.len()));
            prop_assert_eq!(Message::from_octets(rest), Ok(message));
        }

        /// Octets of every kind, and sound messages of which some were altered.
        #[test]
        fn garbage_is_borne(
            message in message(),
            hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..9),
            garbage in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut altered = message.to_octets().split_off(LENGTH_OCTETS);
            for (place, octet) in hits {
                let place = place.index(altered.len());
                altered[place] = octet;
            }
            let _ = Message::from_octets(&altered);
            let _ = Message::from_octets(&garbage);
        }

        #[test]
        fn no_length_beyond_the_limit_is_believed(length in any::<[u8; 4]>()) {
            let said = u32::from_be_bytes(length) as usize;
            prop_assert_eq!(message_octets(length, STRANGER_OCTETS_MAX).is_ok(), said <= STRANGER_OCTETS_MAX);
        }
    }

    #[test]
    fn a_list_or_a_text_that_is_too_long_is_refused() {
        let wire = Wire { kind: REFUSED, text: Some("x".repeat(TEXT_OCTETS_MAX + 1)), ..Wire::default() };
        assert!(Message::from_octets(&minicbor::to_vec(wire).expect("memory")).is_err());
        let founding = vec![0; 2 * STATEMENT_OCTETS_MAX];
        let wire = Wire { kind: ADMITTED, octets: Some(founding.into()), ..Wire::default() };
        assert!(Message::from_octets(&minicbor::to_vec(wire).expect("memory")).is_err());
    }
}
