//! Giving space back: removing segments nothing is needed of, moving what is left of mostly dead ones.
//!
//! Runs on the committer's thread, between batches where space presses and when nothing arrives.
//! Order matters: what is needed is synced at its new place before its old one goes.

use std::collections::{HashSet, VecDeque};

use crate::ahead::Ahead;
use crate::answers::Answers;
use crate::codec;
use crate::committer::{Op, PendingState, write_internal};
use crate::fs::{Dir, read_full};
use crate::id::QueueId;
use crate::index::{Entry, Index, Place};
use crate::log::{Fault, Log};
use crate::read;
use crate::record::{HEADER_OCTETS, Header, Kind, META_OCTETS_MAX};
use crate::recorded::encode_whole;
use crate::retirement::{Retire, retired_ops};
use crate::spool::{Spool, lock};
use crate::tail::Part;

/// What is left to tidy.
#[derive(Default)]
pub(crate) struct Untidy {
    /// Content files whose messages are retired, each by a record before this sequence.
    pub contents: Vec<(u64, QueueId)>,
    /// Retired messages whose records found no room.
    later: Vec<Retire>,
    /// The segment being compacted, and how far.
    victim: Option<(u32, u64)>,
}

/// A message on its way to another segment, with its newest state.
pub(crate) struct Move {
    id: QueueId,
    old: Entry,
    meta: Vec<u8>,
    content: Vec<u8>,
    content_crc: u32,
}

/// Octets moved between two batches.
const STEP_OCTETS: u64 = 1 << 20;
/// So many small segments are left alone.
const SMALL_SEGMENTS_MAX: usize = 16;

impl Op {
    /// Returns the message that a record is of.
    fn id(&self) -> Option<QueueId> {
        match self {
            Op::State(id, _) => Some(*id),
            Op::Move(moved) => Some(moved.id),
            Op::Commit(_) | Op::Retired { .. } => None,
        }
    }
}

impl Move {
    pub(crate) fn part(&self) -> Part<'_> {
        Part {
            kind: Kind::Message,
            id: self.id,
            meta: &self.meta,
            meta_crc: crc32fast::hash(&self.meta),
            inline: &self.content,
            spilled: self.old.spilled,
            content_octets: self.old.content_octets,
            // The checksum made when it was received: what was damaged since stays detectable.
            content_crc: self.content_crc,
        }
    }

    /// Notes the new place. A message retired meanwhile is to be retired there as well.
    pub(crate) fn apply(self, index: &mut Index, place: Place) -> Option<Retire> {
        if index.get(self.id).is_none_or(|entry| entry.message != self.old.message) {
            return Some(Retire { id: self.id, segments: vec![place.segment], entry: None });
        }
        let meta_octets = self.meta.len() as u32;
        index.replace(self.id, &Entry { message: place, meta_octets, state: None, changes: Vec::new(), ..self.old });
        None
    }
}

/// Keeps retired messages whose records found no room on the disk.
pub(crate) fn keep_for_later(spool: &Spool, list: Vec<Retire>) {
    lock(&spool.untidy).later.extend(list);
}

/// Where there was room for a batch, what had found none goes into the next.
pub(crate) fn try_again(spool: &Spool, answers: &Answers) {
    if !answers.is_any_good() {
        return;
    }
    let later = std::mem::take(&mut lock(&spool.untidy).later);
    if !later.is_empty() {
        lock(&spool.inbox).retires.extend(later);
    }
}

/// What is done behind every batch.
pub(crate) fn after_batch(spool: &Spool, log: &mut Log) {
    remove_contents(spool, log);
    let result =
        release(spool, log).and_then(|()| if is_pressed(spool) { compact_step(spool, log).map(drop) } else { Ok(()) });
    note_fault(spool, result);
}

/// Makes durable what was written without a sync.
pub(crate) fn sync(spool: &Spool) {
    if spool.check_poison().is_ok() {
        let mut log = lock(&spool.log);
        note_fault(spool, log.sync(spool));
        remove_contents(spool, &log);
    }
}

/// What is done when nothing arrives: sync, compact, give memory and disk back.
pub(crate) fn tidy(spool: &Spool) {
    lock(&spool.cache).clear();
    lock(&spool.recorded).clear();
    if spool.check_poison().is_err() {
        return;
    }
    let mut log = lock(&spool.log);
    let result = tidy_log(spool, &mut log);
    if result.is_ok() && spool.check_poison().is_ok() {
        log.shrink(spool);
    }
    note_fault(spool, result);
}

fn tidy_log(spool: &Spool, log: &mut Log) -> Result<(), Fault> {
    let later = std::mem::take(&mut lock(&spool.untidy).later);
    write_internal(spool, log, retired_ops(later).into());
    log.sync(spool)?;
    remove_contents(spool, log);
    while lock(&spool.inbox).is_empty() && compact_step(spool, log)? {}
    let is_empty = lock(&spool.index).len() == 0 && lock(&spool.inbox).is_empty();
    if is_empty {
        log.begin_anew(spool)?;
    }
    release(spool, log)?;
    log.give_spares_back(spool);
    Ok(())
}

/// A full disk hinders tidying only; anything else ends the queue.
fn note_fault(spool: &Spool, result: Result<(), Fault>) {
    if let Err(Fault::Broken(why)) = result {
        spool.poison(&why);
    }
}

/// Removes the content files of messages whose Retired records are synced.
fn remove_contents(spool: &Spool, log: &Log) {
    let mut untidy = lock(&spool.untidy);
    let (gone, rest) = std::mem::take(&mut untidy.contents).into_iter().partition(|(end, _)| *end <= log.synced());
    untidy.contents = rest;
    drop(untidy);
    let gone: Vec<(u64, QueueId)> = gone;
    for (_, id) in gone {
        // What stays behind is removed when the queue is next opened.
        let _ = spool.fs.remove(Dir::Content, &id.to_string());
    }
}

/// Removes the segments in which nothing is needed.
fn release(spool: &Spool, log: &mut Log) -> Result<(), Fault> {
    // A message that ended while it was moved has a copy of which no Retired record speaks yet; the one
    // there is has to stay until then.
    if !lock(&spool.inbox).retires.is_empty() {
        return Ok(());
    }
    let newest = log.newest(spool);
    let dead: Vec<u32> = {
        let index = lock(&spool.index);
        index.segments.iter().filter(|(n, s)| **n != newest && s.live == 0).map(|(n, _)| *n).collect()
    };
    for number in dead {
        let (carry, speaks_of_others) = {
            let index = lock(&spool.index);
            let Some(segment) = index.segments.get(&number) else { continue };
            let needed = segment.retired.iter().filter(|(n, _)| index.segments.contains_key(n));
            let retire = |(n, id): &(u32, QueueId)| Retire { id: *id, segments: vec![*n], entry: None };
            (needed.map(retire).collect::<Vec<_>>(), !segment.retired.is_empty())
        };
        if !carry.is_empty() {
            let count = carry.len();
            write_internal(spool, log, retired_ops(carry).into());
            log.sync(spool)?;
            // Where the disk is full they wait in memory: the old segment has to stay.
            if lock(&spool.untidy).later.len() >= count {
                return Ok(());
            }
        }
        // What made its records needless has to be on the disk before they go.
        log.sync(spool)?;
        log.remove(spool, number, speaks_of_others)?;
    }
    Ok(())
}

/// Returns whether dead records take so much space that compaction should not wait for idle time.
fn is_pressed(spool: &Spool) -> bool {
    let index = lock(&spool.index);
    let (used, live) = index.segments.values().fold((0, 0), |(u, l), s| (u + s.octets, l + s.live_octets));
    used > 3 * live + 2 * spool.options.segment_octets
}

/// Moves a part of what is live in the segment most worth it; returns whether there may be more.
fn compact_step(spool: &Spool, log: &mut Log) -> Result<bool, Fault> {
    let victim = lock(&spool.untidy).victim.take().or_else(|| choose(spool, log.newest(spool)));
    let Some((number, mut at)) = victim else { return Ok(false) };
    let mut ops = VecDeque::new();
    let (from, mut done) = (at, HashSet::new());
    let ahead = spool.read_ahead();
    while at - from < STEP_OCTETS {
        match next_op(spool, &ahead, Place::new(number, at), &done) {
            Next::Op(op, span) => {
                // Moved or written whole once, none of its records here is needed.
                done.extend(op.as_ref().and_then(Op::id));
                ops.extend(op);
                at += span;
            }
            Next::End => {
                at = u64::MAX;
                break;
            }
            Next::Unreadable => {
                at = u64::MAX;
                if let Some(segment) = lock(&spool.index).segments.get_mut(&number) {
                    segment.fixed = true;
                }
                break;
            }
        }
    }
    write_internal(spool, log, ops);
    if at < u64::MAX {
        lock(&spool.untidy).victim = Some((number, at));
    } else if let Some(segment) = lock(&spool.index).segments.get_mut(&number) {
        // Whatever could not be moved now is not tried over and over.
        segment.fixed = true;
    }
    release(spool, log)?;
    Ok(spool.check_poison().is_ok())
}

/// Returns a segment of which at least half is dead, or one of too many small ones.
fn choose(spool: &Spool, newest: u32) -> Option<(u32, u64)> {
    let index = lock(&spool.index);
    let sealed = || index.segments.iter().filter(|(n, s)| **n != newest && !s.fixed && s.live > 0);
    let worst =
        sealed().filter(|(_, s)| s.live_octets * 2 < s.octets).min_by_key(|(_, s)| s.live_octets * 1024 / s.octets);
    let small = || sealed().filter(|(_, s)| s.octets * 8 < spool.options.segment_octets);
    let number = match worst {
        Some((number, _)) => *number,
        None if small().count() > SMALL_SEGMENTS_MAX => *small().next()?.0,
        None => return None,
    };
    Some((number, HEADER_OCTETS as u64))
}

enum Next {
    /// What moves the record here, if it is needed, and the octets it takes.
    Op(Option<Op>, u64),
    End,
    Unreadable,
}

fn next_op(spool: &Spool, ahead: &Ahead<'_>, place: Place, done: &HashSet<QueueId>) -> Next {
    let end = lock(&spool.index).segments.get(&place.segment).map_or(0, |segment| segment.octets);
    if place.offset() >= end {
        return Next::End;
    }
    let mut octets = [0; HEADER_OCTETS];
    let Ok(HEADER_OCTETS) = ahead.read(place.segment, place.offset(), &mut octets) else { return Next::Unreadable };
    let Some(header) = Header::decode(&octets) else { return Next::Unreadable };
    let entry = lock(&spool.index).get(header.id).filter(|_| !done.contains(&header.id));
    let op = match (header.kind, entry) {
        (Kind::Message, Some(entry)) if entry.message == place => move_message(spool, header.id, entry),
        (Kind::State | Kind::Change, Some(entry)) if entry.states().any(|(at, _)| at == place) => {
            move_state(spool, header.id, &entry)
        }
        _ => return Next::Op(None, header.span()),
    };
    op.map_or(Next::Unreadable, |op| Next::Op(Some(op), header.span()))
}

/// Writes the newest state of a message whole; its earlier records are not needed then.
fn move_state(spool: &Spool, id: QueueId, entry: &Entry) -> Option<Op> {
    let item = spool.read_item(id, entry).ok()?;
    Some(Op::State(id, PendingState { meta: encode_whole(&item.state).ok()?, ..PendingState::default() }))
}

fn move_message(spool: &Spool, id: QueueId, old: Entry) -> Option<Op> {
    let header = read::read_header(id, old.message, &read::from(&|number| spool.segment_file(number))).ok()?;
    let item = spool.read_item(id, &old).ok()?;
    let mut meta = Vec::new();
    codec::encode_item(&item, &mut meta);
    if meta.len() > META_OCTETS_MAX {
        return None;
    }
    let mut content = Vec::new();
    if !old.spilled {
        content.resize(usize::try_from(old.content_octets).ok()?, 0);
        let file = spool.segment_file(old.message.segment).ok()?;
        let at = old.message.offset() + HEADER_OCTETS as u64 + u64::from(old.meta_octets);
        (read_full(&*file, at, &mut content).ok()? == content.len()).then_some(())?;
    }
    Some(Op::Move(Move { id, old, meta, content, content_crc: header.content_crc }))
}
