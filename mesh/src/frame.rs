//! What members say to one another about the mesh, as octets: CBOR, format version 1.
//!
//! A [`Frame`] that was read keeps the limits; the statements and records in it are not checked yet:
//! that costs a signature each, and is for whoever takes them in.

use std::collections::BTreeSet;

use minicbor::bytes::{ByteArray, ByteVec};
use minicbor::{Decode, Encode};

use crate::difference::{Key, LISTED_MAX, RANGES_MAX, Range, SUM_OCTETS, Said};
use crate::node::sha256;
use crate::wire::{NOT_CBOR, Wrong, few, without_signature};

/// The most octets of a frame.
pub const FRAME_OCTETS_MAX: usize = 128 * 1024;
/// The most statements and records in a frame.
pub const ITEMS_MAX: usize = 64;
/// The most keys asked for in a frame.
pub const ASKED_MAX: usize = 1_024;
/// The most nodes left out of a comparison.
pub const WITHOUT_MAX: usize = 256;

/// The beginning of a node id, enough to tell members apart.
pub type ShortId = [u8; 8];

/// Something said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A step of a comparison.
    Compare {
        /// The nodes whose records both sides leave out.
        without: BTreeSet<ShortId>,
        /// What this side has.
        ranges: Vec<Range>,
    },
    /// What the other side has not, or what is new.
    Give(Vec<Item>),
    /// Keys of what this side has not.
    Ask(Vec<Key>),
}

/// A statement or a record, signed, as octets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A statement.
    Statement(Box<[u8]>),
    /// A record.
    Record(Box<[u8]>),
}

/// The octets are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no frame of the mesh: {0}")]
pub struct FrameError(&'static str);

#[derive(Encode, Decode)]
#[cbor(map)]
struct Wire {
    #[n(0)]
    without: Option<Vec<ByteArray<8>>>,
    #[n(1)]
    ranges: Option<Vec<WireRange>>,
    /// Kind (1 statement, 2 record) and octets.
    #[n(2)]
    items: Option<Vec<(u8, ByteVec)>>,
    #[n(3)]
    asked: Option<Vec<ByteArray<32>>>,
}

/// A range: its end without trailing zeros, and either a sum, or keys, or neither.
#[derive(Encode, Decode)]
#[cbor(map)]
struct WireRange {
    #[n(0)]
    end: Option<ByteVec>,
    #[n(1)]
    sum: Option<ByteArray<SUM_OCTETS>>,
    #[n(2)]
    keys: Option<Vec<ByteArray<32>>>,
}

impl Item {
    /// Returns the octets.
    pub(crate) fn octets(&self) -> &[u8] {
        let (Item::Statement(octets) | Item::Record(octets)) = self;
        octets
    }

    /// Returns the key that it has in a comparison; `None`: it is damaged. Nothing is verified.
    pub(crate) fn key(&self) -> Option<Key> {
        without_signature(self.octets()).ok().map(|(signed, _)| sha256(&[&signed]))
    }
}

impl Frame {
    /// Returns the octets.
    pub fn to_octets(&self) -> Vec<u8> {
        let mut wire = Wire { without: None, ranges: None, items: None, asked: None };
        match self {
            Frame::Compare { without, ranges } => {
                wire.without = (!without.is_empty()).then(|| without.iter().map(|id| (*id).into()).collect());
                wire.ranges = Some(ranges.iter().map(wire_range).collect());
            }
            Frame::Give(items) => wire.items = Some(items.iter().map(wire_item).collect()),
            Frame::Ask(keys) => wire.asked = Some(keys.iter().map(|key| (*key).into()).collect()),
        }
        minicbor::to_vec(wire).expect("memory takes what is written")
    }

    /// Reads a frame.
    ///
    /// # Errors
    ///
    /// When it is none, or exceeds a limit.
    pub fn from_octets(octets: &[u8]) -> Result<Frame, FrameError> {
        if octets.len() > FRAME_OCTETS_MAX {
            return Err(FrameError("it is too long"));
        }
        let wire: Wire = minicbor::decode(octets).map_err(|_| NOT_CBOR)?;
        match (wire.ranges, wire.items, wire.asked) {
            (Some(ranges), None, None) => {
                let without = few(wire.without.unwrap_or_default(), WITHOUT_MAX)?;
                let ranges = few(ranges, RANGES_MAX)?;
                Ok(Frame::Compare {
                    without: without.into_iter().map(|id| *id).collect(),
                    ranges: ranges.into_iter().map(range).collect::<Result<_, _>>()?,
                })
            }
            (None, Some(items), None) => {
                Ok(Frame::Give(few(items, ITEMS_MAX)?.into_iter().map(item).collect::<Result<_, _>>()?))
            }
            (None, None, Some(keys)) => Ok(Frame::Ask(few(keys, ASKED_MAX)?.into_iter().map(|key| *key).collect())),
            _ => Err(FrameError("it says more than one thing, or nothing")),
        }
    }
}

fn wire_range(range: &Range) -> WireRange {
    let used = |end: &Key| end.iter().rposition(|octet| *octet != 0).map_or(0, |last| last + 1);
    WireRange {
        end: range.end.map(|end| end[..used(&end)].to_vec().into()),
        sum: match &range.said {
            Said::Sum(sum) => Some((*sum).into()),
            _ => None,
        },
        keys: match &range.said {
            Said::Keys(keys) => Some(keys.iter().map(|key| (*key).into()).collect()),
            _ => None,
        },
    }
}

fn range(wire: WireRange) -> Result<Range, FrameError> {
    let end = match wire.end {
        None => None,
        Some(used) => {
            let mut end = [0; 32];
            end.get_mut(..used.len()).ok_or(FrameError("a key is too long"))?.copy_from_slice(&used);
            Some(end)
        }
    };
    let said = match (wire.sum, wire.keys) {
        (None, None) => Said::Nothing,
        (Some(sum), None) => Said::Sum(*sum),
        (None, Some(keys)) => Said::Keys(few(keys, LISTED_MAX)?.into_iter().map(|key| *key).collect()),
        _ => return Err(FrameError("a range says two things")),
    };
    Ok(Range { end, said })
}

fn wire_item(item: &Item) -> (u8, ByteVec) {
    match item {
        Item::Statement(octets) => (1, octets.to_vec().into()),
        Item::Record(octets) => (2, octets.to_vec().into()),
    }
}

fn item((kind, octets): (u8, ByteVec)) -> Result<Item, FrameError> {
    let octets: Box<[u8]> = Vec::from(octets).into();
    match kind {
        1 => Ok(Item::Statement(octets)),
        2 => Ok(Item::Record(octets)),
        _ => Err(FrameError("an item of an unknown kind")),
    }
}

impl From<Wrong> for FrameError {
    fn from(what: Wrong) -> FrameError {
        FrameError(what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn said() -> impl Strategy<Value = Said> {
        let keys = prop::collection::btree_set(any::<Key>(), 0..LISTED_MAX);
        prop_oneof![Just(Said::Nothing), any::<[u8; SUM_OCTETS]>().prop_map(Said::Sum), keys.prop_map(Said::Keys)]
    }

    fn frame() -> impl Strategy<Value = Frame> {
        let end = prop_oneof![Just(None), any::<Key>().prop_map(Some), Just(Some([0; 32])), Just(Some([1; 32]))];
        let range = (end, said()).prop_map(|(end, said)| Range { end, said });
        let octets = || prop::collection::vec(any::<u8>(), 0..40).prop_map(Vec::into_boxed_slice);
        let item = prop_oneof![octets().prop_map(Item::Statement), octets().prop_map(Item::Record)];
        prop_oneof![
            (prop::collection::btree_set(any::<ShortId>(), 0..5), prop::collection::vec(range, 0..9))
                .prop_map(|(without, ranges)| Frame::Compare { without, ranges }),
            prop::collection::vec(item, 0..5).prop_map(Frame::Give),
            prop::collection::vec(any::<Key>(), 0..9).prop_map(Frame::Ask),
        ]
    }

    proptest! {
        #[test]
        fn frames_come_back_as_they_went(frame in frame()) {
            prop_assert_eq!(Frame::from_octets(&frame.to_octets()), Ok(frame));
        }

        #[test]
        fn garbage_is_borne(octets in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Frame::from_octets(&octets);
        }
    }
}
