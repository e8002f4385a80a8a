//! What one node has and another has not, found with few octets: two sets of keys are compared range by
//! range, by count and sum, and ranges that differ are cut until what is left can be listed.
//!
//! One side begins with [`begin`]; each side answers what [`compare`] says until one
//! answer is empty. Equal sets cost one range. Sums are of hashes, modulo 2^256, and hashed again: to
//! make two sets look alike takes a collision, not a choice of items.

use std::collections::BTreeSet;

use crate::node::sha256;

/// A key: the SHA-256 of an item.
pub type Key = [u8; 32];

/// Octets of a sum.
pub const SUM_OCTETS: usize = 16;
/// A range with so few keys is listed.
pub const LISTED_MAX: usize = 12;
/// Into how many parts a range is cut.
const PARTS: usize = 8;
/// The most ranges in one message; what is beyond them is compared the next time.
pub const RANGES_MAX: usize = 256;

/// What is said of the keys of one range, from where the range before it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// Where it ends, itself not included; `None`: behind all keys.
    pub end: Option<Key>,
    /// What is said.
    pub said: Said,
}

/// What is said of a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// Nothing: it is the same at both, or dealt with.
    Nothing,
    /// How many keys there are, and their sum.
    Sum([u8; SUM_OCTETS]),
    /// The keys there are.
    Keys(BTreeSet<Key>),
}

/// What came of a message of the other side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// What to answer; empty: nothing is left to compare.
    pub answer: Vec<Range>,
    /// What this side has and the other has not.
    pub to_give: Vec<Key>,
    /// What the other side has and this one has not.
    pub to_ask: Vec<Key>,
}

/// A set of keys, with the sum of all, which most comparisons need and nothing else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys {
    sorted: Vec<Key>,
    root: [u8; SUM_OCTETS],
}

impl FromIterator<Key> for Keys {
    fn from_iter<I: IntoIterator<Item = Key>>(keys: I) -> Keys {
        let mut sorted: Vec<Key> = keys.into_iter().collect();
        sorted.sort_unstable();
        sorted.dedup();
        Keys { root: sum(&sorted), sorted }
    }
}

impl Keys {
    /// Returns the count and sum of all keys: equal for equal sets.
    pub fn root(&self) -> [u8; SUM_OCTETS] {
        self.root
    }

    /// Returns how many there are.
    pub fn len(&self) -> usize {
        self.sorted.len()
    }

    /// Returns whether there is none.
    pub fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }

    fn has(&self, key: &Key) -> bool {
        self.sorted.binary_search(key).is_ok()
    }

    fn range(&self, from: &Key, end: Option<&Key>) -> &[Key] {
        let first = self.sorted.partition_point(|key| key < from);
        let end = end.map_or(self.sorted.len(), |end| self.sorted.partition_point(|key| key < end));
        &self.sorted[first..end.max(first)]
    }

    fn sum(&self, range: &[Key]) -> [u8; SUM_OCTETS] {
        if range.len() == self.sorted.len() { self.root } else { sum(range) }
    }
}

/// Begins a comparison: one range with all keys.
pub fn begin(keys: &Keys) -> Vec<Range> {
    vec![Range { end: None, said: Said::Sum(keys.root) }]
}

/// Compares what the other side says with what this side has. Ranges out of order end the comparison.
pub fn compare(keys: &Keys, theirs: &[Range]) -> Comparison {
    let mut comparison = Comparison::default();
    let mut from = [0; 32];
    for range in theirs.iter().take(RANGES_MAX) {
        if range.end.is_some_and(|end| end < from) {
            break;
        }
        let mine = keys.range(&from, range.end.as_ref());
        match &range.said {
            Said::Nothing => comparison.pass(range.end),
            Said::Sum(theirs) if *theirs == keys.sum(mine) => comparison.pass(range.end),
            Said::Sum(_) if mine.len() <= LISTED_MAX => {
                comparison.answer.push(Range { end: range.end, said: Said::Keys(mine.iter().copied().collect()) });
            }
            Said::Sum(_) => comparison.cut(mine, range.end),
            Said::Keys(theirs) => {
                comparison.pass(range.end);
                comparison.to_give.extend(mine.iter().filter(|key| !theirs.contains(*key)));
                let within = |key: &&Key| **key >= from && range.end.is_none_or(|end| **key < end);
                comparison.to_ask.extend(theirs.iter().filter(within).filter(|key| !keys.has(key)));
            }
        }
        match range.end {
            Some(end) => from = end,
            None => break,
        }
    }
    comparison.answer.truncate(RANGES_MAX);
    while comparison.answer.last().is_some_and(|range| range.said == Said::Nothing) {
        comparison.answer.pop();
    }
    comparison
}

impl Comparison {
    /// Says nothing of a range; one behind the other are one.
    fn pass(&mut self, end: Option<Key>) {
        match self.answer.last_mut() {
            Some(last) if last.said == Said::Nothing => last.end = end,
            _ => self.answer.push(Range { end, said: Said::Nothing }),
        }
    }

    /// Cuts a range into parts of about as many keys each.
    fn cut(&mut self, keys: &[Key], end: Option<Key>) {
        let parts: Vec<&[Key]> = keys.chunks(keys.len().div_ceil(PARTS)).collect();
        for (number, part) in parts.iter().enumerate() {
            let end = parts.get(number + 1).map_or(end, |next| Some(next[0]));
            self.answer.push(Range { end, said: Said::Sum(sum(part)) });
        }
    }
}

fn sum(keys: &[Key]) -> [u8; SUM_OCTETS] {
    let mut sum = [0; 32];
    for key in keys {
        let mut carry = 0;
        for (digit, octet) in sum.iter_mut().zip(key).rev() {
            let all = u16::from(*digit) + u16::from(*octet) + carry;
            *digit = all as u8;
            carry = all >> 8;
        }
    }
    *sha256(&[&sum, &(keys.len() as u64).to_be_bytes()]).first_chunk().expect("a hash is longer")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Frame;
    use proptest::prelude::*;

    fn key(number: u32) -> Key {
        sha256(&[&number.to_be_bytes()])
    }

    fn keys(numbers: impl IntoIterator<Item = u32>) -> BTreeSet<Key> {
        numbers.into_iter().map(key).collect()
    }

    /// Two sides talk until nothing is left to say; returns both as they are then, and the messages.
    fn talk(mut left: BTreeSet<Key>, mut right: BTreeSet<Key>) -> (BTreeSet<Key>, BTreeSet<Key>, Vec<Vec<Range>>) {
        let all = |keys: &BTreeSet<Key>| keys.iter().copied().collect::<Keys>();
        let mut said = vec![begin(&all(&left))];
        let mut turn = 0;
        while !said.last().expect("something was said").is_empty() && turn < 40 {
            let (me, other) = if turn % 2 == 0 { (&mut right, &mut left) } else { (&mut left, &mut right) };
            let comparison = compare(&all(me), said.last().expect("something was said"));
            other.extend(&comparison.to_give);
            me.extend(comparison.to_ask.iter().filter(|key| other.contains(*key)).copied().collect::<Vec<_>>());
            said.push(comparison.answer);
            turn += 1;
        }
        (left, right, said)
    }

    #[test]
    fn equal_sets_cost_one_range() {
        let (.., said) = talk(keys(0..2_000), keys(0..2_000));
        assert_eq!(said.len(), 2);
        assert_eq!(said[0].len(), 1);
        let root = |numbers: &mut dyn Iterator<Item = u32>| numbers.map(key).collect::<Keys>().root();
        assert_eq!(root(&mut (0..9)), root(&mut (0..9).rev()));
        assert_ne!(root(&mut (0..9)), root(&mut (0..8)));
    }

    #[test]
    fn one_change_among_many_costs_little() {
        let (left, right, said) = talk(keys(0..2_000), keys(1..2_001));
        assert_eq!(left, right);
        let ranges: usize = said.iter().map(Vec::len).sum();
        assert!(ranges <= 70 && said.len() <= 8, "{ranges} ranges in {} messages", said.len());
    }

    /// As when a host comes back to a mesh all of whose members have said something new meanwhile.
    #[test]
    fn however_much_differs_an_answer_is_no_longer_than_a_frame_may_be() {
        let (mut left, mut right) = (keys(0..3_000), keys(2_900..5_900));
        for _ in 0..8 {
            let said;
            (left, right, said) = talk(left, right);
            for ranges in said {
                let count = ranges.len();
                let frame = Frame::Compare { without: BTreeSet::new(), ranges };
                assert!(Frame::from_octets(&frame.to_octets()).is_ok(), "{count} ranges");
            }
            if left == right {
                return assert!(left == keys(0..5_900));
            }
        }
        panic!("they still differ by {} keys", left.symmetric_difference(&right).count());
    }

    proptest! {
        #[test]
        fn both_sides_end_with_the_union(
            common in prop::collection::btree_set(0u32..100_000, 0..400),
            left in prop::collection::btree_set(100_000u32..101_000, 0..60),
            right in prop::collection::btree_set(102_000u32..103_000, 0..60),
        ) {
            let all = keys(common.iter().chain(&left).chain(&right).copied());
            let (a, b, said) = talk(keys(common.iter().chain(&left).copied()), keys(common.iter().chain(&right).copied()));
            prop_assert_eq!(&a, &all);
            prop_assert_eq!(&b, &all);
            prop_assert!(said.last().is_some_and(Vec::is_empty));
        }

        /// Whatever the other side says: no panic, and the answer is no longer than it may be.
        #[test]
        fn nonsense_is_borne(
            mine in prop::collection::btree_set(0u32..500, 0..300),
            said in prop::collection::vec((any::<Option<u32>>(), 0u8..3, prop::collection::vec(0u32..500, 0..20)), 0..20),
        ) {
            let range = |(end, kind, listed): (Option<u32>, u8, Vec<u32>)| Range {
                end: end.map(key),
                said: match kind {
                    0 => Said::Nothing,
                    1 => Said::Sum([7; SUM_OCTETS]),
                    _ => Said::Keys(keys(listed)),
                },
            };
            let theirs: Vec<Range> = said.into_iter().map(range).collect();
            let comparison = compare(&mine.into_iter().map(key).collect(), &theirs);
            prop_assert!(comparison.answer.len() <= (theirs.len() * PARTS).min(RANGES_MAX));
        }
    }
}
