//! Reading a whole queue: what its files say becomes an index, and what is not as it was written is
//! noted. Writes nothing.
//!
//! A sealed segment whose summary is sound is not read. Every other is, content included: a crash may
//! have torn the newest, and one that was sealed without a summary was the newest when something went
//! wrong. A torn copy of a message must not stand for the whole one that lies before it.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;

use crate::error::{LoadError, OpenError};
use crate::fs::{Access, Dir, Fs, FsFile, read_full};
use crate::id::QueueId;
use crate::index::{Entry, Index, Place, Segment};
use crate::log::Previous;
use crate::read;
use crate::record::{ALIGN, HEADER_OCTETS, Kind, SegmentHeader, VERSION, is_spare, segment_name, segment_number, span};
use crate::recovery::{Damage, RecoveryReport};
use crate::scan::{Limit, Region, Scanned, scan};
use crate::summary::{self, Line, Summary};

/// How much to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    /// As little as opening needs.
    Quick,
    /// Everything: no summary is believed, every checksum is compared.
    Whole,
}

/// What the files say, before anything is changed.
pub(crate) struct Gathered {
    pub index: Index,
    pub last_id: QueueId,
    pub sequence: u64,
    pub previous: Previous,
    pub next_number: u32,
    pub faults: Vec<Fault>,
    /// Files that hold nothing but zeros: segments never used.
    pub blank: Vec<u32>,
    /// Content files no message has.
    pub orphans: Vec<String>,
    /// Segments longer than what is in them, and where they should end.
    pub rest: Vec<(u32, u64)>,
    /// Summaries of sealed segments that had none, with the segments' ids and ends.
    pub summaries: Vec<(u32, u64, u64, Summary)>,
    /// Files in which nothing was needed, kept to be written over.
    pub spares: Vec<String>,
    /// Summary files that say nothing of a segment.
    pub strays: Vec<String>,
}

/// A damaged region, or a whole segment of which nothing can be trusted.
pub(crate) struct Fault {
    pub number: u32,
    pub segment: Option<u64>,
    pub region: Region,
    pub newest: bool,
}

/// The most octets that a segment is believed to have had whose file is shorter now.
const SHORT_SEGMENT_OCTETS_MAX: u64 = 64 << 20;

type Result<T> = std::result::Result<T, OpenError>;

/// Names the action and the file in an error.
pub(crate) fn failed(fs: &dyn Fs, action: &'static str, file: &str) -> impl FnOnce(io::Error) -> OpenError {
    let place = format!("{}/{file}", fs.place());
    move |source| OpenError::Io { action, place, source }
}

/// Reads the queue. Writes nothing. `progress` gets how many octets are read, and of how many.
pub(crate) fn gather(fs: &dyn Fs, depth: Depth, progress: &mut dyn FnMut(u64, u64)) -> Result<Gathered> {
    let names = fs.list(Dir::Log).map_err(failed(fs, "list", "log"))?;
    let mut numbers: Vec<u32> = names.iter().filter_map(|name| segment_number(name)).collect();
    numbers.sort_unstable();
    let next_number = numbers.last().map_or(1, |last| last + 1);
    let mut reader = Reader::default();
    while let Some(last) = numbers.pop_if(|last| is_blank(fs, *last)) {
        reader.blank.push(last);
    }
    let mut headers: Vec<Option<SegmentHeader>> = Vec::with_capacity(numbers.len());
    for number in &numbers {
        headers.push(read_header(fs, *number)?);
    }
    let octets: Vec<u64> = numbers.iter().map(|number| segment_octets(fs, *number)).collect();
    let (mut done, segments) = (0, octets.iter().sum());
    for (i, number) in numbers.iter().enumerate() {
        let next = headers.get(i + 1).copied().flatten().filter(|next| next.previous == *number);
        let limit = next.and_then(|next| limit(&next, octets[i]));
        let newest = i + 1 == numbers.len();
        reader.last_id = reader.last_id.max(headers[i].map_or(0, |header| header.id_floor));
        reader.index.segments.insert(*number, Segment::default());
        let known = depth == Depth::Quick && !newest && reader.believe(fs, *number, headers[i], limit)?;
        if !known {
            reader.read(fs, *number, limit, newest)?;
        }
        done += octets[i];
        progress(done, segments);
    }
    let summaries = fs.list(Dir::Summary).map_err(failed(fs, "list", "summary"))?;
    let mut gathered = reader.finish();
    let known: HashSet<String> = gathered.index.segments.keys().map(|number| summary::name(*number)).collect();
    gathered.strays = summaries.into_iter().filter(|name| !known.contains(name)).collect();
    gathered.next_number = next_number;
    gathered.spares = names.into_iter().filter(|name| is_spare(name)).collect();
    match_contents(fs, &mut gathered)?;
    if depth == Depth::Whole {
        let total = segments + gathered.index.spilled_octets;
        read_messages(fs, &mut gathered, &mut |octets| {
            done += octets;
            progress(done, total);
        });
    }
    Ok(gathered)
}

/// Returns where a segment ends by the header of the one behind it, where it can end there: behind a record,
/// and no further than a segment is ever long.
fn limit(next: &SegmentHeader, octets: u64) -> Option<Limit> {
    let end = next.previous_end;
    let is_possible =
        end.is_multiple_of(ALIGN) && end >= HEADER_OCTETS as u64 && end <= octets.max(SHORT_SEGMENT_OCTETS_MAX);
    is_possible.then_some(Limit { segment: next.previous_segment, end })
}

fn open_segment(fs: &dyn Fs, number: u32) -> Result<Arc<dyn FsFile>> {
    let name = segment_name(number);
    fs.open(Dir::Log, &name, Access::Read).map_err(failed(fs, "open", &format!("log/{name}")))
}

fn segment_octets(fs: &dyn Fs, number: u32) -> u64 {
    open_segment(fs, number).ok().and_then(|file| file.octets().ok()).unwrap_or_default()
}

/// Returns whether a segment was made but never written: it holds nothing but zeros.
fn is_blank(fs: &dyn Fs, number: u32) -> bool {
    if read_header(fs, number).is_ok_and(|header| header.is_some()) {
        return false;
    }
    let scanned = open_segment(fs, number).ok().and_then(|file| scan(&*file, None, &mut |_, _, _| {}).ok());
    scanned.and_then(|scanned| scanned.ok()).is_some_and(|scanned| scanned.blank)
}

pub(crate) fn read_header(fs: &dyn Fs, number: u32) -> Result<Option<SegmentHeader>> {
    let mut octets = [0; HEADER_OCTETS];
    let read = read_full(&*open_segment(fs, number)?, 0, &mut octets);
    Ok(read.ok().and_then(|n| SegmentHeader::decode(&octets[..n]).ok()))
}

/// Collects what the records of all segments say, in their order.
#[derive(Default)]
struct Reader {
    index: Index,
    retired: Vec<(u32, QueueId)>,
    last_id: u64,
    sequence: u64,
    previous: Previous,
    faults: Vec<Fault>,
    blank: Vec<u32>,
    rest: Vec<(u32, u64)>,
    summaries: Vec<(u32, u64, u64, Summary)>,
}

impl Reader {
    /// Takes the word of a segment's summary for what stands in it, where both are of one segment and
    /// all of that is still there. Returns whether it did.
    fn believe(
        &mut self,
        fs: &dyn Fs,
        number: u32,
        header: Option<SegmentHeader>,
        limit: Option<Limit>,
    ) -> Result<bool> {
        let (Some(header), Some(limit)) = (header, limit) else { return Ok(false) };
        if header.segment != limit.segment {
            return Ok(false);
        }
        let Some(summary) = Summary::read(fs, number, limit.segment, limit.end) else { return Ok(false) };
        if open_segment(fs, number)?.octets().is_ok_and(|octets| octets < limit.end) {
            return Ok(false);
        }
        summary.lines().for_each(|line| self.visit(number, line));
        self.sequence = self.sequence.max(summary.sequence());
        self.previous = Previous { number, segment: limit.segment, end: limit.end };
        if let Some(segment) = self.index.segments.get_mut(&number) {
            segment.octets = limit.end;
        }
        Ok(true)
    }

    fn read(&mut self, fs: &dyn Fs, number: u32, limit: Option<Limit>, newest: bool) -> Result<()> {
        let file = open_segment(fs, number)?;
        let name = format!("log/{}", segment_name(number));
        let mut summary = Summary::default();
        let scanned = scan(&*file, limit, &mut |at, header, meta| {
            summary.add(header, meta);
            self.visit(number, Line::of(at, header, meta));
        })
        .map_err(failed(fs, "read", &name))?
        .map_err(|found| OpenError::Version {
            place: format!("{}/{name}", fs.place()),
            found,
            known: VERSION,
        })?;
        self.sequence = self.sequence.max(summary.sequence());
        self.note(number, &scanned, limit, newest);
        if let (Some(segment), Some(limit), [], false) = (scanned.segment, limit, &scanned.regions[..], newest) {
            self.summaries.push((number, segment, limit.end, summary));
        }
        Ok(())
    }

    fn visit(&mut self, number: u32, line: Line) {
        let place = Place::new(number, line.offset);
        self.last_id = self.last_id.max(line.id.to_u64());
        match line.kind {
            Kind::Message => {
                let entry = Entry {
                    content_octets: line.content_octets,
                    message: place,
                    meta_octets: line.meta_octets,
                    state: None,
                    changes: Vec::new(),
                    spilled: line.spilled,
                };
                self.index.replace(line.id, &entry);
            }
            // Without its message it is of a message that was retired, or moved with a later state.
            Kind::State => self.index.set_state(line.id, place, line.meta_octets, false),
            Kind::Change => self.index.set_state(line.id, place, line.meta_octets, true),
            Kind::Retired => {
                self.last_id = line.retired.iter().map(|id| id.to_u64()).fold(self.last_id, u64::max);
                self.retired.extend(line.retired.into_iter().map(|id| (number, id)));
            }
            Kind::Void | Kind::End => {}
        }
    }

    fn note(&mut self, number: u32, scanned: &Scanned, limit: Option<Limit>, newest: bool) {
        let end = limit.map_or(scanned.end, |limit| limit.end);
        if let Some(segment) = self.index.segments.get_mut(&number) {
            segment.octets = end;
        }
        for region in &scanned.regions {
            self.faults.push(Fault { number, segment: scanned.segment, region: region.clone(), newest });
        }
        let Some(segment) = scanned.segment else {
            self.index.segments.remove(&number);
            self.blank.extend(scanned.blank.then_some(number));
            if !(scanned.blank && newest) {
                let what =
                    if scanned.blank { "it holds only zeros" } else { "its header and its first record are damaged" };
                let (to, unreadable) = (scanned.octets, scanned.unreadable);
                let region = Region { from: 0, to, id: None, what, tail: true, unreadable };
                self.faults.push(Fault { number, segment: None, region, newest });
            }
            return;
        };
        // Behind a damaged record at the end that is to be blanked out, not cut off, and behind what
        // may be readable another time.
        let stays = |r: &&Region| !r.tail || r.unreadable;
        let end = scanned.regions.iter().filter(stays).map(|r| r.to).fold(end, u64::max);
        if limit.is_none() && scanned.octets > end {
            self.rest.push((number, end));
        }
        if let Some(entry) = self.index.segments.get_mut(&number) {
            entry.octets = end;
        }
        self.previous = Previous { number, segment, end };
    }

    fn finish(mut self) -> Gathered {
        let known: HashSet<QueueId> = self.retired.iter().map(|(_, id)| *id).collect();
        let mut segments_of: HashMap<QueueId, Vec<u32>> = HashMap::new();
        for id in known {
            if let Some((entry, segments)) = self.index.retire(id) {
                self.index.discount(&entry);
                segments_of.insert(id, segments);
            }
        }
        for (number, id) in self.retired {
            let others = segments_of.get(&id).into_iter().flatten().filter(|n| **n != number).map(|n| (*n, id));
            if let Some(segment) = self.index.segments.get_mut(&number) {
                segment.retired.extend(others);
            }
        }
        Gathered {
            index: self.index,
            last_id: QueueId::from_u64(self.last_id),
            sequence: self.sequence + 1,
            previous: self.previous,
            next_number: 1,
            faults: self.faults,
            blank: self.blank,
            orphans: Vec::new(),
            rest: self.rest,
            summaries: self.summaries,
            spares: Vec::new(),
            strays: Vec::new(),
        }
    }
}

/// Compares the content files with what the records say of them.
fn match_contents(fs: &dyn Fs, gathered: &mut Gathered) -> Result<()> {
    let mut names: HashSet<String> =
        fs.list(Dir::Content).map_err(failed(fs, "list", "content"))?.into_iter().collect();
    for (id, entry) in gathered.index.spilled() {
        let name = id.to_string();
        let octets =
            names.take(&name).map(|name| fs.open(Dir::Content, &name, Access::Read).and_then(|file| file.octets()));
        let what = match octets {
            Some(Ok(octets)) if octets == entry.content_octets => continue,
            // It may be to be had another time; an attempt says what hinders it.
            Some(Err(e)) if e.kind() != io::ErrorKind::NotFound => continue,
            Some(Ok(_)) => "its content file has another length",
            Some(Err(_)) | None => "its content file is missing",
        };
        gathered.give_up(id, &entry, what, what != "its content file is missing");
    }
    gathered.orphans.extend(names);
    Ok(())
}

/// Reads every message as a delivery would, and content files to their end. What stands in segments was
/// compared with its checksums before. `progress` gets the octets of each content file.
fn read_messages(fs: &dyn Fs, gathered: &mut Gathered, progress: &mut dyn FnMut(u64)) {
    let mut buffer = vec![0; 256 << 10];
    let open = |number| fs.open(Dir::Log, &segment_name(number), Access::Read);
    for id in gathered.index.ids().collect::<Vec<_>>() {
        let Some(entry) = gathered.index.get(id) else { continue };
        let stateless = Entry { state: None, changes: Vec::new(), ..entry.clone() };
        match read::read_item(id, &entry, &read::from(&open)) {
            Err(LoadError::Damaged { .. }) if read::read_item(id, &stateless, &read::from(&open)).is_ok() => {
                for (place, octets) in entry.states() {
                    gathered.fault(id, place, span(octets, 0), "its state cannot be understood");
                }
                gathered.index.forget_states(id);
            }
            Err(LoadError::Damaged { what, .. }) => {
                gathered.give_up(id, &entry, what, entry.spilled);
                continue;
            }
            // A disk that does not answer is no reason to change anything.
            _ => {}
        }
        let content = entry.spilled.then(|| read::open_content(fs, id, &entry, &open).ok()).flatten();
        let read = content.map(|content| read::read_through(id, content, &mut buffer));
        if let Some(Err(LoadError::Damaged { what, .. })) = read {
            gathered.give_up(id, &entry, what, true);
        }
        if entry.spilled {
            progress(entry.content_octets);
        }
    }
}

impl Gathered {
    /// Returns what was found, all but the damage.
    pub(crate) fn report(&self) -> RecoveryReport {
        RecoveryReport {
            messages: self.index.len(),
            content_octets: self.index.content_octets,
            segments: self.index.segments.len(),
            ..RecoveryReport::default()
        }
    }

    /// Returns what is damaged; nothing of it is saved.
    pub(crate) fn damage(&self) -> Vec<Damage> {
        self.faults.iter().map(|fault| fault.damage(None)).collect()
    }

    /// Notes that a message cannot be delivered: its record is damage, and where it has a content file
    /// that goes the same way.
    fn give_up(&mut self, id: QueueId, entry: &Entry, what: &'static str, with_file: bool) {
        self.orphans.extend(with_file.then(|| id.to_string()));
        self.index.remove(id);
        let inline = if entry.spilled { 0 } else { entry.content_octets };
        self.fault(id, entry.message, span(entry.meta_octets, inline), what);
    }

    fn fault(&mut self, id: QueueId, place: Place, octets: u64, what: &'static str) {
        let (from, id) = (place.offset(), Some(id));
        let region = Region { from, to: from + octets, id, what, tail: false, unreadable: false };
        self.faults.push(Fault { number: place.segment, segment: None, region, newest: false });
    }
}
