//! Retired records: written at once, by whoever ends a message, while the committer syncs.
//!
//! What a next hop has taken is delivered again after a crash until its Retired record is written. So
//! it waits neither for the batch that is being synced nor for the committer to wake up. It needs no
//! sync of its own, and where there is no room at the end of the log it goes with the next batch.

use crate::committer::Op;
use crate::id::QueueId;
use crate::inbox::Sleep;
use crate::index::{Entry, Index, Place};
use crate::log::{Fault, fault};
use crate::record::{Kind, segment_name};
use crate::spool::{Spool, lock};
use crate::tail::{Part, Tail};

/// A message that is out of the index but not yet out of the log.
#[derive(Clone)]
pub(crate) struct Retire {
    pub id: QueueId,
    /// The segments with a Message record of it.
    pub segments: Vec<u32>,
    /// Its records that are needed until its Retired record is written.
    pub entry: Option<Entry>,
}

/// The most ids in one Retired record.
const RETIRED_IDS_MAX: usize = 8192;
/// Behind so many records of ours the committer is to look whether there is space to give back.
const LOOK_AFTER_RECORDS: u64 = 1024;

/// Makes Retired records of a list of messages.
pub(crate) fn retired_ops(list: Vec<Retire>) -> Vec<Op> {
    list.chunks(RETIRED_IDS_MAX).map(|list| Op::Retired { meta: meta(list), list: list.to_vec() }).collect()
}

fn meta(list: &[Retire]) -> Vec<u8> {
    let mut ids: Vec<u64> = list.iter().map(|retire| retire.id.to_u64()).collect();
    ids.dedup();
    ids.iter().flat_map(|id| id.to_le_bytes()).collect()
}

/// Writes what waits to be retired, in the caller's thread. Where the end of the log is in use this is
/// left to who uses it: everybody comes here afterwards, and the committer looks before it sleeps.
pub(crate) fn write_waiting(spool: &Spool) {
    while let Ok(mut tail) = spool.tail.try_lock() {
        let list = std::mem::take(&mut lock(&spool.inbox).retires);
        if list.is_empty() {
            return;
        }
        let Some(place) = write(spool, &mut tail, &list) else {
            drop(tail);
            return hand_over(spool, list);
        };
        let mut index = lock(&spool.index);
        tail.note_end(&mut index);
        let is_dead = note(spool, &mut index, place, list, tail.sequence);
        drop((index, tail));
        let mut inbox = lock(&spool.inbox);
        inbox.beside += 1;
        if is_dead || inbox.sleep == Sleep::Deep || inbox.beside.is_multiple_of(LOOK_AFTER_RECORDS) {
            inbox.is_due = true;
            spool.wake(inbox);
        }
    }
}

/// Writes one record behind the last one. `None` where that has to be left to the committer.
fn write(spool: &Spool, tail: &mut Tail, list: &[Retire]) -> Option<Place> {
    let meta = meta(list);
    let part = Part::plain(Kind::Retired, QueueId::from_u64(0), &meta);
    let active = tail.active.as_ref().filter(|active| active.is_ready_for(part.span()))?;
    if list.len() > RETIRED_IDS_MAX || spool.check_poison().is_err() {
        return None;
    }
    let number = active.number;
    match tail.write(&[part], &mut Vec::new()) {
        Ok(places) => places.first().copied(),
        Err(e) => {
            if let Fault::Broken(why) = fault(&format!("write of log/{}", segment_name(number)), &e) {
                spool.poison(&why);
            } else if let Some(active) = &mut tail.active {
                active.cut();
            }
            None
        }
    }
}

/// Lets the committer write them, or drop them where nothing is written any more.
fn hand_over(spool: &Spool, list: Vec<Retire>) {
    let mut inbox = lock(&spool.inbox);
    inbox.retires.splice(0..0, list);
    spool.wake(inbox);
}

/// Notes in which segment it stands that messages are retired, as long as it matters; the record is
/// one of those before `sequence`. Returns whether nothing is needed any more of another segment.
pub(crate) fn note(spool: &Spool, index: &mut Index, place: Place, list: Vec<Retire>, sequence: u64) -> bool {
    let mut needed = Vec::new();
    let mut is_dead = false;
    for retire in list {
        let others = retire.segments.iter().filter(|n| **n != place.segment && index.segments.contains_key(n));
        needed.extend(others.map(|n| (*n, retire.id)));
        if let Some(entry) = retire.entry {
            index.discount(&entry);
            let live = |n: u32| index.segments.get(&n).map_or(0, |segment| segment.live);
            is_dead |= entry.segments().any(|n| n != place.segment && live(n) == 0);
            if entry.spilled {
                lock(&spool.untidy).contents.push((sequence, retire.id));
            }
        }
    }
    if let Some(segment) = index.segments.get_mut(&place.segment) {
        segment.retired.extend(needed);
    }
    is_dead
}
