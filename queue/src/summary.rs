//! What stands in a sealed segment, in a small file of its own, so that opening a queue need not read
//! every segment.
//!
//! A summary is never needed: where it is missing, damaged or of another segment, the segment itself is
//! read. It is written behind the sync that seals its segment and says only what stands there; what
//! records say is read from the records. Format: `docs/queue-format.md`.

use std::io::{self, IoSlice};

use crate::fs::{Access, Dir, Fs, read_full};
use crate::id::QueueId;
use crate::record::{
    CONTENT_OCTETS_MAX, HEADER_OCTETS, Header, Kind, SEQUENCE_MAX, seal, span, u32_at, u64_at, unseal,
};

const MAGIC: [u8; 8] = *b"PRoadSum";
const VERSION: u16 = 1;
const SPILLED: u8 = 0x10;
/// The most octets a summary may have: that of the largest segment with nothing but empty records.
const OCTETS_MAX: u64 = 1 << 30;

/// The records of a segment, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    /// The highest sequence of a record.
    sequence: u64,
    last_id: u64,
    body: Vec<u8>,
}

/// What a summary says of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// Where it stands.
    pub offset: u64,
    pub kind: Kind,
    pub spilled: bool,
    pub id: QueueId,
    pub meta_octets: u32,
    pub content_octets: u64,
    /// The ids in a Retired record.
    pub retired: Vec<QueueId>,
}

impl Summary {
    /// Adds the record behind those added before.
    pub(crate) fn add(&mut self, header: &Header, meta: &[u8]) {
        self.sequence = self.sequence.max(header.sequence);
        self.body.push(header.kind as u8 | if header.spilled { SPILLED } else { 0 });
        match header.kind {
            Kind::Retired => {
                self.number(u64::from(header.meta_octets / 8));
                retired_ids(meta).for_each(|id| self.id(id));
            }
            Kind::Void => self.number(header.content_octets),
            Kind::End => {}
            Kind::Message | Kind::State | Kind::Change => {
                self.id(header.id);
                self.number(u64::from(header.meta_octets));
                if header.kind == Kind::Message {
                    self.number(header.content_octets);
                }
            }
        }
    }

    /// Returns the highest sequence of a record.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Writes the summary of a segment that ends at `end`. Nothing is synced: what a crash tears is no
    /// summary.
    pub(crate) fn write(&self, fs: &dyn Fs, number: u32, segment: u64, end: u64) -> io::Result<()> {
        let name = name(number);
        let file = match fs.create(Dir::Summary, &name) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                fs.remove(Dir::Summary, &name)?;
                fs.create(Dir::Summary, &name)?
            }
            file => file?,
        };
        let mut head = [0; HEADER_OCTETS];
        head[0..8].copy_from_slice(&MAGIC);
        head[8..10].copy_from_slice(&VERSION.to_le_bytes());
        head[12..16].copy_from_slice(&number.to_le_bytes());
        head[16..24].copy_from_slice(&segment.to_le_bytes());
        head[24..32].copy_from_slice(&end.to_le_bytes());
        head[32..40].copy_from_slice(&self.sequence.to_le_bytes());
        head[40..48].copy_from_slice(&(self.body.len() as u64).to_le_bytes());
        head[48..52].copy_from_slice(&crc32fast::hash(&self.body).to_le_bytes());
        seal(&mut head);
        file.write_at(0, &mut [IoSlice::new(&head), IoSlice::new(&self.body)])
    }

    /// Reads the summary of a segment with this id that ends at `end`. `None` where there is none that
    /// is sound and says so.
    pub(crate) fn read(fs: &dyn Fs, number: u32, segment: u64, end: u64) -> Option<Summary> {
        let file = fs.open(Dir::Summary, &name(number), Access::Read).ok()?;
        let octets = file.octets().ok().filter(|octets| *octets <= OCTETS_MAX)?;
        let mut all = vec![0; octets as usize];
        let n = read_full(&*file, 0, &mut all).ok()?;
        let head = unseal(&all[..n])?;
        let known = head[0..8] == MAGIC && head[8..10] == VERSION.to_le_bytes() && u32_at(head, 12) == number;
        let meant = u64_at(head, 16) == segment && u64_at(head, 24) == end;
        let (sequence, length, crc) = (u64_at(head, 32), u64_at(head, 40), u32_at(head, 48));
        let body = all.split_off(HEADER_OCTETS);
        let sound = body.len() as u64 == length && crc32fast::hash(&body) == crc;
        let summary = Summary { sequence, last_id: 0, body };
        let sound = sound && sequence <= SEQUENCE_MAX;
        (known && meant && sound && summary.lines().end() == Some(end)).then_some(summary)
    }

    /// Returns what it says of each record.
    pub(crate) fn lines(&self) -> Lines<'_> {
        Lines { rest: &self.body, offset: HEADER_OCTETS as u64, last_id: 0 }
    }

    fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.body.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.body.push(number as u8);
    }

    /// Writes the difference to the id before, its sign in the lowest bit.
    fn id(&mut self, id: QueueId) {
        let step = id.to_u64().wrapping_sub(self.last_id).cast_signed();
        self.last_id = id.to_u64();
        self.number((step << 1 ^ step >> 63).cast_unsigned());
    }
}

impl Line {
    /// Says the same of a record that was read.
    pub(crate) fn of(offset: u64, header: &Header, meta: &[u8]) -> Line {
        let Header { kind, spilled, id, meta_octets, content_octets, .. } = *header;
        let retired = if kind == Kind::Retired { retired_ids(meta).collect() } else { Vec::new() };
        Line { offset, kind, spilled, id, meta_octets, content_octets, retired }
    }
}

/// Returns the ids in the metadata of a Retired record.
pub(crate) fn retired_ids(meta: &[u8]) -> impl Iterator<Item = QueueId> {
    meta.chunks_exact(8).map(|id| QueueId::from_u64(u64_at(id, 0)))
}

/// Removes the summary of a segment, if there is one. What stays behind is removed at the next open.
pub(crate) fn remove(fs: &dyn Fs, number: u32) {
    let _ = fs.remove(Dir::Summary, &name(number));
}

/// Returns the file name of the summary of a segment.
pub(crate) fn name(number: u32) -> String {
    format!("{number:08x}.sum")
}

/// Reads a summary, line by line; ends early where it makes no sense.
pub(crate) struct Lines<'a> {
    rest: &'a [u8],
    offset: u64,
    last_id: u64,
}

impl Lines<'_> {
    /// Reads to the end; returns where the last record ends, `None` where it makes no sense.
    fn end(mut self) -> Option<u64> {
        while !self.rest.is_empty() {
            self.line()?;
        }
        Some(self.offset)
    }

    fn line(&mut self) -> Option<Line> {
        let (octet, rest) = self.rest.split_first()?;
        self.rest = rest;
        let kind = Kind::from_octet(octet & !SPILLED)?;
        let (offset, spilled) = (self.offset, octet & SPILLED != 0);
        let mut line = Line {
            offset,
            kind,
            spilled,
            id: QueueId::from_u64(0),
            meta_octets: 0,
            content_octets: 0,
            retired: Vec::new(),
        };
        match kind {
            Kind::Retired => {
                let count = self.number()?;
                line.meta_octets = u32::try_from(count.checked_mul(8)?).ok()?;
                for _ in 0..count {
                    line.retired.push(self.id()?);
                }
            }
            Kind::Void => line.content_octets = self.number()?,
            // Never among the records of a segment.
            Kind::End => return None,
            Kind::Message | Kind::State | Kind::Change => {
                line.id = self.id()?;
                line.meta_octets = u32::try_from(self.number()?).ok()?;
                if kind == Kind::Message {
                    line.content_octets = self.number()?;
                }
            }
        }
        if line.content_octets > CONTENT_OCTETS_MAX {
            return None;
        }
        let inline = if spilled { 0 } else { line.content_octets };
        self.offset = offset.checked_add(span(line.meta_octets, inline))?;
        Some(line)
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let (octet, rest) = self.rest.split_first()?;
            self.rest = rest;
            number |= u64::from(octet & 0x7f) << shift;
            if octet & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn id(&mut self) -> Option<QueueId> {
        let step = self.number()?;
        let step = (step >> 1) ^ (step & 1).wrapping_neg();
        self.last_id = self.last_id.wrapping_add(step);
        Some(QueueId::from_u64(self.last_id))
    }
}

impl Iterator for Lines<'_> {
    type Item = Line;

    fn next(&mut self) -> Option<Line> {
        self.line()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: Kind, id: u64, meta_octets: u32, content_octets: u64, spilled: bool) -> Header {
        let id = QueueId::from_u64(id);
        Header {
            kind,
            spilled,
            segment: 1,
            sequence: id.to_u64() % 7,
            id,
            meta_octets,
            meta_crc: 0,
            content_octets,
            content_crc: 0,
        }
    }

    #[test]
    fn what_was_added_reads_back_in_order_with_its_place() {
        let mut summary = Summary::default();
        let ids = [u64::MAX, 0, 1 << 60];
        let meta: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        let records = [
            header(Kind::Message, 1_800_000_000_000 << 20, 300, 1000, false),
            header(Kind::Message, 7, 1, 1 << 40, true),
            header(Kind::State, u64::MAX, 16 << 20, 0, false),
            header(Kind::Retired, 0, 24, 0, false),
            header(Kind::Void, 0, 0, 64, false),
            header(Kind::Change, 3, 0, 0, false),
        ];
        records.iter().for_each(|record| summary.add(record, if record.kind == Kind::Retired { &meta } else { &[] }));
        let mut offset = 64;
        for (line, header) in summary.lines().zip(&records) {
            assert_eq!(
                (line.offset, line.kind, line.id, line.spilled),
                (offset, header.kind, header.id, header.spilled)
            );
            assert_eq!((line.meta_octets, line.content_octets), (header.meta_octets, header.content_octets));
            assert_eq!(line.retired.len(), if header.kind == Kind::Retired { 3 } else { 0 });
            assert!(line.retired.iter().zip(ids).all(|(found, id)| found.to_u64() == id));
            offset += header.span();
        }
        let sequence = records.iter().map(|record| record.sequence).max();
        assert_eq!((summary.lines().count(), summary.lines().end()), (6, Some(offset)));
        assert_eq!(Some(summary.sequence()), sequence);
    }

    #[test]
    fn nonsense_ends_early_and_never_panics() {
        for octets in
            [&[6u8][..], &[1, 0x80], &[3, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], &[2, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 1]]
        {
            let summary = Summary { body: octets.to_vec(), ..Summary::default() };
            assert_eq!(summary.lines().end(), None, "{octets:?}");
        }
    }
}
