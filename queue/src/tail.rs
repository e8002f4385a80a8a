//! The end of the log: the segment being written, and where in it the next record goes.
//!
//! Held for a write, never for a sync: while the committer syncs a batch, others write Retired records
//! behind it. Only the committer begins and ends segments and syncs them.

use std::io::{self, IoSlice};
use std::sync::Arc;

use crate::error::is_full;
use crate::fs::FsFile;
use crate::id::QueueId;
use crate::index::{Index, Place};
use crate::log::{Fault, fault};
use crate::record::{ALIGN, HEADER_OCTETS, Header, Kind, segment_name, span};
use crate::summary::Summary;

/// Octets of the End record.
pub(crate) const END_OCTETS: u64 = HEADER_OCTETS as u64;

/// Where the log goes on.
#[derive(Default)]
pub(crate) struct Tail {
    /// None before the first record and while the committer changes segments.
    pub active: Option<Active>,
    /// That of the next record.
    pub sequence: u64,
    /// Whether something was written since the last sync began.
    pub dirty: bool,
}

/// The segment that is written.
pub(crate) struct Active {
    pub number: u32,
    pub segment: u64,
    pub file: Arc<dyn FsFile>,
    pub end: u64,
    pub capacity: u64,
    /// Octets reserved on the disk ahead of need.
    pub reserved: u64,
    /// What stands in it.
    pub summary: Summary,
}

/// A record to write.
pub(crate) struct Part<'a> {
    pub kind: Kind,
    pub id: QueueId,
    pub meta: &'a [u8],
    pub meta_crc: u32,
    /// The content inside the record; empty when it is spilled.
    pub inline: &'a [u8],
    pub spilled: bool,
    pub content_octets: u64,
    pub content_crc: u32,
}

impl<'a> Part<'a> {
    /// A record without content.
    pub(crate) fn plain(kind: Kind, id: QueueId, meta: &'a [u8]) -> Part<'a> {
        let meta_crc = crc32fast::hash(meta);
        Part { kind, id, meta, meta_crc, inline: &[], spilled: false, content_octets: 0, content_crc: 0 }
    }

    pub(crate) fn span(&self) -> u64 {
        span(self.meta.len() as u32, self.inline.len() as u64)
    }

    fn header(&self, segment: u64, sequence: u64) -> Header {
        Header {
            kind: self.kind,
            spilled: self.spilled,
            segment,
            sequence,
            id: self.id,
            meta_octets: self.meta.len() as u32,
            meta_crc: self.meta_crc,
            content_octets: self.content_octets,
            content_crc: self.content_crc,
        }
    }
}

impl Tail {
    /// Writes these records, for which there is room, and where they end. `frame` is scratch.
    ///
    /// # Errors
    /// Nothing of them counts as written, though some of it may stand there.
    pub(crate) fn write(&mut self, parts: &[Part<'_>], frame: &mut Vec<u8>) -> io::Result<Vec<Place>> {
        let Some(active) = &mut self.active else { return Ok(Vec::new()) };
        write_parts(active, parts, self.sequence, frame)?;
        let mut places = Vec::with_capacity(parts.len());
        for (part, sequence) in parts.iter().zip(self.sequence..) {
            active.summary.add(&part.header(active.segment, sequence), part.meta);
            places.push(Place::new(active.number, active.end));
            active.end += part.span();
        }
        self.sequence += parts.len() as u64;
        self.dirty = true;
        Ok(places)
    }

    /// Tells the index where the segment ends.
    pub(crate) fn note_end(&self, index: &mut Index) {
        let Some(active) = &self.active else { return };
        if let Some(segment) = index.segments.get_mut(&active.number) {
            segment.octets = active.end;
        }
    }
}

impl Active {
    /// Returns whether so many octets more fit into the segment.
    pub(crate) fn fits(&self, octets: u64) -> bool {
        self.end + octets + END_OCTETS <= self.capacity
    }

    /// Returns whether so many octets more fit into what is reserved on the disk already.
    pub(crate) fn is_ready_for(&self, octets: u64) -> bool {
        self.fits(octets) && self.end + octets + END_OCTETS <= self.reserved
    }

    /// Takes back what a failed write may have left behind the end, and ends the segment here.
    pub(crate) fn cut(&mut self) {
        self.capacity = self.end;
        // What is refused is not to be found when nothing else can be written, either.
        let _ = self.file.set_octets(self.end);
    }

    /// Reserves space up to `end` and, while the disk has it, more ahead: twice what was, so that a busy
    /// queue seldom asks and a quiet one holds little.
    pub(crate) fn reserve(&mut self, end: u64, least: u64) -> Result<(), Fault> {
        if end <= self.reserved {
            return Ok(());
        }
        let ahead = (2 * self.reserved).max(end.next_multiple_of(least.max(1))).min(self.capacity);
        let mut reserved = self.file.allocate(ahead).map(|()| ahead);
        if ahead > end && reserved.as_ref().is_err_and(is_full) {
            reserved = self.file.allocate(end).map(|()| end);
        }
        let action = || format!("allocation of log/{}", segment_name(self.number));
        self.reserved = reserved.map_err(|e| fault(&action(), &e))?;
        Ok(())
    }
}

/// Returns what stands behind the last record.
pub(crate) fn end_record(segment: u64, sequence: u64) -> [u8; HEADER_OCTETS] {
    Part::plain(Kind::End, QueueId::from_u64(0), &[]).header(segment, sequence).encode()
}

/// Writes records one behind the other, and where they end; content is handed to the system where it lies.
fn write_parts(active: &Active, parts: &[Part<'_>], sequence: u64, frame: &mut Vec<u8>) -> io::Result<()> {
    frame.clear();
    let mut cuts = Vec::with_capacity(parts.len());
    for (part, sequence) in parts.iter().zip(sequence..) {
        frame.extend_from_slice(&part.header(active.segment, sequence).encode());
        frame.extend_from_slice(part.meta);
        cuts.push(frame.len());
        let used = (HEADER_OCTETS + part.meta.len() + part.inline.len()) as u64;
        frame.resize(frame.len() + (part.span() - used) as usize, 0);
    }
    frame.extend_from_slice(&end_record(active.segment, sequence + parts.len() as u64));
    let mut pieces = Vec::with_capacity(2 * parts.len() + 1);
    let mut from = 0;
    for (part, cut) in parts.iter().zip(cuts) {
        pieces.push(IoSlice::new(&frame[from..cut]));
        pieces.push(IoSlice::new(part.inline));
        from = cut;
    }
    pieces.push(IoSlice::new(&frame[from..]));
    debug_assert!(active.end.is_multiple_of(ALIGN));
    active.file.write_at(active.end, &mut pieces)
}
