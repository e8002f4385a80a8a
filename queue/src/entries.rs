//! The messages of the index by id, in as little memory as their number allows: 40 octets each.
//!
//! Ids ascend, and new ones are nearly always the highest. So sorted runs of entries are filled to the
//! brim one after the other, where the nodes of a B-tree would stay half empty. A run that thins out
//! gives its memory back, and joins its neighbour when both are thin.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::id::QueueId;
use crate::index::Place;
use crate::record::META_OCTETS_MAX;

/// What is kept in memory of every message, unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packed {
    pub message: Place,
    /// Octets of the Message record's metadata.
    pub meta_octets: u32,
    /// Octets of the content.
    pub content_octets: u64,
    /// The newest full State record, where there is one since the Message record, and the octets of
    /// its metadata.
    pub state: Option<(Place, u32)>,
    /// Whether the content lies in a file of its own.
    pub spilled: bool,
    /// Whether Change records follow the state.
    pub changed: bool,
}

/// An entry as it is kept.
#[derive(Clone, Copy)]
struct Slot {
    id: QueueId,
    message: Place,
    state: Place,
    /// Octets of content, and above them those of the Message record's metadata.
    sizes: u64,
    /// Octets of the State record's metadata, and above them the flags.
    state_octets: u32,
}

/// All entries, sorted by id.
#[derive(Default)]
pub(crate) struct Entries {
    /// Runs by a lower bound of their ids. None is empty.
    runs: BTreeMap<QueueId, Vec<Slot>>,
    len: usize,
}

/// Entries in a run.
const RUN_MAX: usize = 256;
const CONTENT_BITS: u32 = 39;
/// The most octets of content that can be noted: what is longer is noted as this.
const CONTENT_OCTETS_MAX: u64 = (1 << CONTENT_BITS) - 1;
const META_BITS: u32 = 25;
const SPILLED: u32 = 1 << META_BITS;
const CHANGED: u32 = 1 << (META_BITS + 1);
/// No segment has this number.
const NOWHERE: Place = Place::NOWHERE;

const _: () = assert!(size_of::<Slot>() == 40 && META_OCTETS_MAX < 1 << META_BITS);

impl Slot {
    fn pack(id: QueueId, entry: &Packed) -> Slot {
        let content = entry.content_octets.min(CONTENT_OCTETS_MAX);
        let (state, octets) = entry.state.unwrap_or((NOWHERE, 0));
        let flags = if entry.spilled { SPILLED } else { 0 } | if entry.changed { CHANGED } else { 0 };
        let sizes = content | u64::from(entry.meta_octets) << CONTENT_BITS;
        Slot { id, message: entry.message, state, sizes, state_octets: octets | flags }
    }

    fn unpack(&self) -> Packed {
        Packed {
            message: self.message,
            meta_octets: (self.sizes >> CONTENT_BITS) as u32,
            content_octets: self.sizes & CONTENT_OCTETS_MAX,
            state: (self.state != NOWHERE).then_some((self.state, self.state_octets & (SPILLED - 1))),
            spilled: self.state_octets & SPILLED != 0,
            changed: self.state_octets & CHANGED != 0,
        }
    }
}

impl Entries {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn get(&self, id: QueueId) -> Option<Packed> {
        let (_, run) = self.runs.range(..=id).next_back()?;
        let at = run.binary_search_by_key(&id, |slot| slot.id).ok()?;
        Some(run[at].unpack())
    }

    /// Puts an entry in, over the one of that id if there is one.
    pub(crate) fn insert(&mut self, id: QueueId, entry: &Packed) {
        let slot = Slot::pack(id, entry);
        let Some((_, run)) = self.runs.range_mut(..=id).next_back() else { return self.insert_first(slot) };
        let at = match run.binary_search_by_key(&id, |slot| slot.id) {
            Ok(at) => return run[at] = slot,
            Err(at) => at,
        };
        self.len += 1;
        if run.len() < RUN_MAX {
            return run.insert(at, slot);
        }
        // Nearly always at the end or close to it: what is before stays full.
        let mut behind = run.split_off(at.max(RUN_MAX / 2));
        if at < RUN_MAX / 2 {
            run.insert(at, slot);
        } else {
            behind.insert(0, slot);
        }
        run.shrink_to_fit();
        self.runs.insert(behind[0].id, behind);
    }

    /// Puts in what is lower than all bounds.
    fn insert_first(&mut self, slot: Slot) {
        self.len += 1;
        let full = self.runs.first_key_value().is_none_or(|(_, run)| run.len() >= RUN_MAX);
        let mut run = if full { Vec::new() } else { self.runs.pop_first().map(|(_, run)| run).unwrap_or_default() };
        run.insert(0, slot);
        self.runs.insert(slot.id, run);
    }

    pub(crate) fn remove(&mut self, id: QueueId) -> Option<Packed> {
        let (bound, run) = self.runs.range_mut(..=id).next_back()?;
        let at = run.binary_search_by_key(&id, |slot| slot.id).ok()?;
        let entry = run.remove(at).unpack();
        self.len -= 1;
        let (bound, left) = (*bound, run.len());
        if left == 0 {
            self.runs.remove(&bound);
        } else if left * 2 < run.capacity() && run.capacity() > RUN_MAX / 32 {
            run.shrink_to(left + left / 2);
            let before = self.runs.range(..bound).next_back().map(|(before, _)| *before);
            let next = self.runs.range((Bound::Excluded(bound), Bound::Unbounded)).next().map(|(next, _)| *next);
            self.join(Some(bound), next);
            self.join(before, Some(bound));
        }
        Some(entry)
    }

    /// Joins a run and the next one when both together are thin.
    fn join(&mut self, bound: Option<QueueId>, next: Option<QueueId>) {
        let (Some(bound), Some(next)) = (bound, next) else { return };
        let len = |of| self.runs.get(&of).map_or(RUN_MAX, Vec::len);
        if len(bound) + len(next) <= RUN_MAX / 2 {
            let tail = self.runs.remove(&next).unwrap_or_default();
            let run = self.runs.entry(bound).or_default();
            run.reserve_exact(tail.len());
            run.extend(tail);
        }
    }

    /// Returns all ids, ascending.
    pub(crate) fn ids(&self) -> impl Iterator<Item = QueueId> {
        self.runs.values().flatten().map(|slot| slot.id)
    }

    /// Returns the ids above `after`, ascending.
    pub(crate) fn ids_after(&self, after: Option<QueueId>) -> impl Iterator<Item = QueueId> {
        let first =
            after.and_then(|after| self.runs.range(..=after).next_back()).map_or(QueueId::from_u64(0), |r| *r.0);
        self.runs.range(first..).flat_map(move |(_, run)| {
            let from = after.map_or(0, |after| run.partition_point(|slot| slot.id <= after));
            run[from..].iter().map(|slot| slot.id)
        })
    }

    /// Returns all entries, by ascending id.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (QueueId, Packed)> {
        self.runs.values().flatten().map(|slot| (slot.id, slot.unpack()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(n: u64) -> Packed {
        Packed {
            message: Place::new(n as u32 + 1, n % 100 * 64),
            meta_octets: (n % (META_OCTETS_MAX as u64 + 1)) as u32,
            content_octets: n.wrapping_mul(0x9e37_79b9) & CONTENT_OCTETS_MAX,
            state: (!n.is_multiple_of(3)).then(|| (Place::new(7, n % 50 * 64), META_OCTETS_MAX as u32)),
            spilled: n.is_multiple_of(2),
            changed: n.is_multiple_of(5),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(30))]
        #[test]
        fn it_holds_what_a_map_holds(steps in prop::collection::vec((0..4u8, 0..3000u64), 1..2500)) {
            let (mut entries, mut map) = (Entries::default(), BTreeMap::new());
            let mut high = 3000;
            for (n, (what, number)) in steps.into_iter().enumerate() {
                match what {
                    0 | 1 => {
                        // New ids a little out of order, as they are committed.
                        high += 3;
                        let id = QueueId::from_u64(high - number % 40 * 2);
                        entries.insert(id, &entry(n as u64));
                        map.insert(id, entry(n as u64));
                    }
                    2 => {
                        let id = QueueId::from_u64(number);
                        entries.insert(id, &entry(n as u64));
                        map.insert(id, entry(n as u64));
                    }
                    _ => {
                        let id = map.keys().nth(number as usize % map.len().max(1)).copied();
                        let id = id.unwrap_or(QueueId::from_u64(number));
                        prop_assert_eq!(entries.remove(id), map.remove(&id));
                    }
                }
            }
            prop_assert_eq!(entries.len(), map.len());
            prop_assert!(entries.iter().eq(map.iter().map(|(id, entry)| (*id, *entry))));
            prop_assert!(entries.ids().eq(map.keys().copied()));
            for number in (0..high + 9).step_by(7) {
                let id = QueueId::from_u64(number);
                prop_assert_eq!(entries.get(id), map.get(&id).copied());
                let behind = map.range((Bound::Excluded(id), Bound::Unbounded)).map(|(id, _)| *id);
                prop_assert!(entries.ids_after(Some(id)).take(5).eq(behind.take(5)));
            }
            while let Some((id, entry)) = map.pop_last() {
                prop_assert_eq!(entries.remove(id), Some(entry));
            }
            prop_assert!(entries.runs.is_empty() && entries.len() == 0);
        }
    }

    /// Octets of all runs' slots, used or not, for each entry.
    fn octets_each(entries: &Entries) -> f64 {
        let slots: usize = entries.runs.values().map(Vec::capacity).sum();
        (slots * size_of::<Slot>()) as f64 / entries.len() as f64
    }

    #[test]
    fn an_entry_takes_little_memory_whether_many_came_or_many_went() {
        let mut entries = Entries::default();
        // Ids as they are committed by many sessions at once: nearly in order.
        for n in 0..200_000u64 {
            entries.insert(QueueId::from_u64(n ^ 0x1f), &entry(n));
        }
        assert!(octets_each(&entries) < 50.0, "{} octets each", octets_each(&entries));
        for n in (0..200_000).filter(|n: &u64| !n.is_multiple_of(50)) {
            entries.remove(QueueId::from_u64(n));
        }
        assert_eq!(entries.len(), 4000);
        assert!(octets_each(&entries) < 100.0, "{} octets each", octets_each(&entries));
        assert!(entries.runs.len() < 4000 / 32, "{} runs", entries.runs.len());
    }
}
