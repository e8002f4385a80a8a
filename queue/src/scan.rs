//! Reading a segment from its first octet to its last: every sound record, and every region that is
//! none.
//!
//! Used when the queue is opened, when it is verified and when it is read beside a running agent.
//! Writes nothing. What cannot be read counts as damage.

use std::io;

use crc32fast::Hasher;

use crate::fs::{FsFile, read_full};
use crate::id::QueueId;
use crate::record::{ALIGN, HEADER_OCTETS, Header, Kind, META_OCTETS_MAX, SegmentHeader, SegmentHeaderError};

/// What the segment behind it says of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    pub segment: u64,
    pub end: u64,
}

/// What was found in a segment.
#[derive(Debug)]
pub(crate) struct Scanned {
    /// Its random id; `None` when nothing in it can be trusted.
    pub segment: Option<u64>,
    /// Behind the last sound record.
    pub end: u64,
    /// Length of the file.
    pub octets: u64,
    pub regions: Vec<Region>,
    /// Whether the disk refused to read what would say which segment it is.
    pub unreadable: bool,
    /// Whether the file holds nothing but zeros.
    pub blank: bool,
}

/// A part of a segment that holds no sound record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    pub from: u64,
    pub to: u64,
    /// Whose record it was, where that can still be read.
    pub id: Option<QueueId>,
    pub what: &'static str,
    /// Whether nothing sound follows.
    pub tail: bool,
    /// Whether the disk refused to read some of it, so that it has to stay as it is.
    pub unreadable: bool,
}

const WINDOW_OCTETS: usize = 8 << 10;
const BLOCK_OCTETS: usize = 4096;
const FIRST: u64 = HEADER_OCTETS as u64;

/// Reads a segment. `visit` gets every sound record: offset, header, metadata.
pub(crate) fn scan(
    file: &dyn FsFile,
    limit: Option<Limit>,
    visit: &mut dyn FnMut(u64, &Header, &[u8]),
) -> io::Result<Result<Scanned, u16>> {
    let octets = file.octets()?;
    let mut scanner = Scanner { window: Window::new(file, octets), regions: Vec::new() };
    let segment = match SegmentHeader::decode(scanner.window.get(0, HEADER_OCTETS)) {
        Ok(header) => Some(header.segment),
        Err(SegmentHeaderError::Version(version)) => return Ok(Err(version)),
        Err(SegmentHeaderError::Damaged) => scanner.guess_segment(limit),
    };
    let Some(segment) = segment else {
        let blank = scanner.last_octet(0, octets) == 0 && !scanner.window.unreadable;
        let unreadable = scanner.window.unreadable;
        return Ok(Ok(Scanned { segment: None, end: 0, octets, regions: Vec::new(), unreadable, blank }));
    };
    let to = limit.map_or(octets, |limit| limit.end);
    let end = scanner.run(segment, to, limit.is_some(), visit);
    let regions = scanner.regions;
    Ok(Ok(Scanned { segment: Some(segment), end, octets, regions, unreadable: false, blank: false }))
}

struct Scanner<'a> {
    window: Window<'a>,
    regions: Vec<Region>,
}

impl Scanner<'_> {
    /// Finds the id of a segment whose header is damaged: from the segment behind it, or from the
    /// record that stands at the fixed place of the first. Never from anywhere else: content may
    /// hold anything.
    fn guess_segment(&mut self, limit: Option<Limit>) -> Option<u64> {
        let known = limit.map(|limit| limit.segment);
        let guess = known.or_else(|| Header::decode(self.window.get(FIRST, HEADER_OCTETS)).map(|h| h.segment))?;
        let what = "the segment's header is damaged";
        let unreadable = std::mem::take(&mut self.window.unreadable);
        self.regions.push(Region { from: 0, to: FIRST, id: None, what, tail: false, unreadable });
        Some(guess)
    }

    /// Visits the records up to `to`; returns where the last sound one ends.
    fn run(&mut self, segment: u64, to: u64, exact: bool, visit: &mut dyn FnMut(u64, &Header, &[u8])) -> u64 {
        let (mut at, mut end) = (FIRST, FIRST);
        while at < to {
            self.window.unreadable = false;
            let header = self.header(at, segment).filter(|h| h.span() <= to - at);
            let is_end = header.is_some_and(|h| h.kind == Kind::End);
            let Some(header) = header.filter(|_| !is_end) else {
                let Some(next) = self.find(at + ALIGN, to, segment) else {
                    if exact || !is_end {
                        self.tail(at, to, exact);
                    }
                    break;
                };
                self.damaged(at, next, None, "no record can be read there");
                at = next;
                continue;
            };
            let next = at + header.span();
            match self.fault(at, &header) {
                None => {
                    let meta = self.window.get(at + FIRST, header.meta_octets as usize);
                    visit(at, &header, meta);
                    end = next;
                }
                Some(what) => self.damaged(at, next, Some(header.id), what),
            }
            at = next;
        }
        end
    }

    fn header(&mut self, at: u64, segment: u64) -> Option<Header> {
        let header = Header::decode(self.window.get(at, HEADER_OCTETS))?;
        let fits = header.meta_octets as usize <= META_OCTETS_MAX;
        (header.segment == segment && fits).then_some(header)
    }

    /// Returns what is wrong with a record whose header is sound.
    fn fault(&mut self, at: u64, header: &Header) -> Option<&'static str> {
        let octets = header.meta_octets as usize;
        let meta = self.window.get(at + FIRST, octets);
        if meta.len() < octets || crc32fast::hash(meta) != header.meta_crc {
            return Some("its envelope or state fails the checksum");
        }
        let is_void = header.kind == Kind::Void;
        if is_void || header.inline_octets() == 0 {
            return None;
        }
        let (mut from, mut hasher) = (at + FIRST + octets as u64, Hasher::new());
        let end = from + header.content_octets;
        while from < end {
            let piece = self.window.get(from, (end - from).min(64 << 10) as usize);
            if piece.is_empty() {
                break;
            }
            hasher.update(piece);
            from += piece.len() as u64;
        }
        (from < end || hasher.finalize() != header.content_crc).then_some("its content fails the checksum")
    }

    fn find(&mut self, from: u64, to: u64, segment: u64) -> Option<u64> {
        (from..to).step_by(ALIGN as usize).find(|at| self.header(*at, segment).is_some_and(|h| h.span() <= to - at))
    }

    /// Finds a record of another segment.
    fn find_earlier(&mut self, from: u64, to: u64) -> Option<u64> {
        (from..to).step_by(ALIGN as usize).find(|at| Header::decode(self.window.get(*at, HEADER_OCTETS)).is_some())
    }

    fn damaged(&mut self, from: u64, to: u64, id: Option<QueueId>, what: &'static str) {
        let unreadable = std::mem::take(&mut self.window.unreadable);
        self.regions.push(Region { from, to, id, what, tail: false, unreadable });
    }

    /// Nothing sound follows `from`: the unused rest of the newest segment, or something torn or lost.
    fn tail(&mut self, from: u64, to: u64, exact: bool) {
        let last = self.last_octet(from, to);
        if exact || last > from || self.window.unreadable {
            let unreadable = self.window.unreadable;
            // Where a record of an earlier use of the file begins, a torn batch has ended or is missing.
            let earlier = |scanner: &mut Self| scanner.find_earlier(from + ALIGN, last).unwrap_or(last);
            let end = if exact || unreadable { to } else { earlier(self) };
            let what = "no record can be read there, and none follows";
            self.regions.push(Region { from, to: end, id: None, what, tail: true, unreadable });
        }
    }

    /// Returns the offset behind the last octet that is not zero, or `from`.
    fn last_octet(&mut self, from: u64, to: u64) -> u64 {
        let (mut at, mut last) = (from, from);
        while at < to {
            let piece = self.window.get(at, (to - at).min(64 << 10) as usize);
            if piece.is_empty() {
                break;
            }
            if let Some(i) = piece.iter().rposition(|octet| *octet != 0) {
                last = at + i as u64 + 1;
            }
            at += piece.len() as u64;
        }
        last
    }
}

/// The part of a file that is in memory. Blocks the disk refuses to read are zeros.
struct Window<'a> {
    file: &'a dyn FsFile,
    octets: u64,
    start: u64,
    buffer: Vec<u8>,
    unreadable: bool,
}

impl Window<'_> {
    fn new(file: &dyn FsFile, octets: u64) -> Window<'_> {
        Window { file, octets, start: 0, buffer: Vec::new(), unreadable: false }
    }

    /// Returns `count` octets from `at`, fewer at the end of the file.
    fn get(&mut self, at: u64, count: usize) -> &[u8] {
        let count = self.octets.saturating_sub(at).min(count as u64) as usize;
        let held = at >= self.start && at + count as u64 <= self.start + self.buffer.len() as u64;
        if !held {
            let want = self.octets.saturating_sub(at).min(count.max(WINDOW_OCTETS) as u64) as usize;
            self.fill(at, want);
        }
        let from = (at - self.start) as usize;
        &self.buffer[from..from + count]
    }

    fn fill(&mut self, at: u64, want: usize) {
        self.start = at;
        self.buffer.clear();
        self.buffer.resize(want, 0);
        if let Ok(n) = read_full(self.file, at, &mut self.buffer)
            && n == want
        {
            return;
        }
        self.unreadable = true;
        for (i, block) in self.buffer.chunks_mut(BLOCK_OCTETS).enumerate() {
            if read_full(self.file, at + (i * BLOCK_OCTETS) as u64, block).is_err() {
                block.fill(0);
            }
        }
    }
}
