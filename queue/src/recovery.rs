//! Opening: what is on disk becomes the index; what a crash left half done is undone; what is damaged
//! is set aside and reported.
//!
//! Every step may be cut off by another crash: the next open then does the same again. What is damaged
//! is saved and synced in `quarantine/` before anything is changed in its place.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io::{self, IoSlice};

use crate::error::OpenError;
use crate::fs::{Access, Dir, Fs, FsFile, read_full};
use crate::id::QueueId;
use crate::index::{Entry, Index, Place, Segment};
use crate::log::{Log, Previous};
use crate::quarantine::save;
use crate::record::{
    HEADER_OCTETS, Header, Kind, SegmentHeader, VERSION, is_spare, segment_name, segment_number, span,
};
use crate::scan::{Check, Limit, Region, Scanned, scan};

/// What was found when a queue was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Messages in the queue.
    pub messages: usize,
    /// Octets of their content.
    pub content_octets: u64,
    /// Segment files read.
    pub segments: usize,
    /// Content files removed that belonged to drafts a crash cut off.
    pub drafts_removed: usize,
    /// What is not as it was written.
    pub damage: Vec<Damage>,
}

/// A part of a file that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The file, relative to the queue's directory.
    pub place: String,
    /// First octet.
    pub from: u64,
    /// Behind the last octet.
    pub to: u64,
    /// The message, where that can still be told.
    pub id: Option<QueueId>,
    /// What is wrong.
    pub what: &'static str,
    /// Whether a crash in the middle of a write explains it: then nobody was promised anything of it.
    pub maybe_torn: bool,
    /// Where it was saved, relative to the queue's directory.
    pub saved: Option<String>,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, octets {} to {}: {}", self.place, self.from, self.to, self.what)?;
        if let Some(id) = self.id {
            write!(f, " (message {id})")?;
        }
        if self.maybe_torn {
            f.write_str("; a crash in the middle of a write leaves this")?;
        }
        match &self.saved {
            Some(name) => write!(f, "; saved as {name}"),
            None => Ok(()),
        }
    }
}

/// An open queue's beginnings.
pub(crate) struct Recovered {
    pub log: Log,
    pub index: Index,
    pub last_id: QueueId,
    pub report: RecoveryReport,
}

/// What the files say, before anything is changed.
pub(crate) struct Gathered {
    pub index: Index,
    last_id: QueueId,
    sequence: u64,
    previous: Previous,
    next_number: u32,
    faults: Vec<Fault>,
    /// Files that hold nothing but zeros: segments never used.
    blank: Vec<u32>,
    /// Files in which nothing was needed.
    spares: Vec<String>,
    /// Content files no message has.
    orphans: Vec<String>,
    /// Segments longer than what is in them, and where they should end.
    rest: Vec<(u32, u64)>,
}

/// A damaged region, or a whole segment of which nothing can be trusted.
struct Fault {
    number: u32,
    segment: Option<u64>,
    region: Region,
    newest: bool,
}

type Result<T> = std::result::Result<T, OpenError>;

/// Names the action and the file in an error.
fn failed(fs: &dyn Fs, action: &'static str, file: &str) -> impl FnOnce(io::Error) -> OpenError {
    let place = format!("{}/{file}", fs.place());
    move |source| OpenError::Io { action, place, source }
}

/// Reads the queue and puts it in order.
pub(crate) fn recover(fs: &dyn Fs) -> Result<Recovered> {
    let gathered = gather(fs)?;
    let mut report = RecoveryReport {
        messages: gathered.index.entries.len(),
        content_octets: gathered.index.content_octets,
        segments: gathered.index.segments.len(),
        ..RecoveryReport::default()
    };
    report.damage = set_aside(fs, &gathered.faults)?;
    if gathered.faults.is_empty() {
        report.drafts_removed = gathered.orphans.len();
        remove(fs, Dir::Content, &gathered.orphans)?;
    } else {
        // One of them may be what a damaged record speaks of.
        report.damage.extend(set_orphans_aside(fs, &gathered.orphans)?);
    }
    repair(fs, &gathered.faults)?;
    let blank: Vec<String> = gathered.blank.iter().map(|number| segment_name(*number)).collect();
    remove(fs, Dir::Log, &blank)?;
    remove(fs, Dir::Log, &gathered.spares)?;
    settle(fs, gathered.previous.number, &gathered.rest)?;
    let log = Log::new(gathered.previous, gathered.next_number, gathered.sequence);
    Ok(Recovered { log, index: gathered.index, last_id: gathered.last_id, report })
}

/// Makes durable what was read: after a mere restart of the process it may never have been synced.
/// Cuts off the unused rest of segments whose end no later one knows.
fn settle(fs: &dyn Fs, newest: u32, rest: &[(u32, u64)]) -> Result<()> {
    let newest_only = (newest > 0 && rest.iter().all(|(number, _)| *number != newest)).then_some((newest, None));
    for (number, end) in rest.iter().map(|(number, end)| (*number, Some(*end))).chain(newest_only) {
        let name = segment_name(number);
        let place = format!("log/{name}");
        let file = fs.open(Dir::Log, &name, Access::Write).map_err(failed(fs, "open", &place))?;
        if let Some(end) = end {
            file.set_octets(end).map_err(failed(fs, "cut", &place))?;
        }
        file.sync().map_err(failed(fs, "sync", &place))?;
    }
    fs.sync_dir(Dir::Log).map_err(failed(fs, "sync", "log"))
}

/// Reads the queue. Writes nothing.
pub(crate) fn gather(fs: &dyn Fs) -> Result<Gathered> {
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
    for (i, number) in numbers.iter().enumerate() {
        let next = headers.get(i + 1).copied().flatten().filter(|next| next.previous == *number);
        let limit = next.map(|next| Limit { segment: next.previous_segment, end: next.previous_end });
        let newest = i + 1 == numbers.len();
        reader.read(fs, *number, headers[i], limit, newest)?;
    }
    let mut gathered = reader.finish();
    gathered.next_number = next_number;
    gathered.spares = names.into_iter().filter(|name| is_spare(name)).collect();
    match_contents(fs, &mut gathered)?;
    Ok(gathered)
}

fn open_segment(fs: &dyn Fs, number: u32) -> Result<std::sync::Arc<dyn FsFile>> {
    let name = segment_name(number);
    fs.open(Dir::Log, &name, Access::Read).map_err(failed(fs, "open", &format!("log/{name}")))
}

/// Returns whether a segment was made but never written: it holds nothing but zeros.
fn is_blank(fs: &dyn Fs, number: u32) -> bool {
    let scanned =
        open_segment(fs, number).ok().and_then(|file| scan(&*file, None, Check::Heads, &mut |_, _, _| {}).ok());
    scanned.and_then(|scanned| scanned.ok()).is_some_and(|scanned| scanned.blank)
}

fn read_header(fs: &dyn Fs, number: u32) -> Result<Option<SegmentHeader>> {
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
}

impl Reader {
    fn read(
        &mut self,
        fs: &dyn Fs,
        number: u32,
        header: Option<SegmentHeader>,
        limit: Option<Limit>,
        newest: bool,
    ) -> Result<()> {
        let file = open_segment(fs, number)?;
        let check = if newest { Check::Contents } else { Check::Heads };
        self.last_id = self.last_id.max(header.map_or(0, |header| header.id_floor));
        let name = format!("log/{}", segment_name(number));
        self.index.segments.insert(number, Segment::default());
        let scanned =
            scan(&*file, limit, check, &mut |at, header, meta| self.visit(Place::new(number, at), header, meta))
                .map_err(failed(fs, "read", &name))?
                .map_err(|found| OpenError::Version {
                    place: format!("{}/{name}", fs.place()),
                    found,
                    known: VERSION,
                })?;
        self.note(number, &scanned, limit, newest);
        Ok(())
    }

    fn visit(&mut self, place: Place, header: &Header, meta: &[u8]) {
        self.sequence = self.sequence.max(header.sequence);
        self.last_id = self.last_id.max(header.id.to_u64());
        match header.kind {
            Kind::Message => {
                let entry = Entry {
                    content_octets: header.content_octets,
                    message: place,
                    meta_octets: header.meta_octets,
                    content_crc: header.content_crc,
                    state: None,
                    spilled: header.spilled,
                };
                self.index.replace(header.id, entry);
            }
            // Without its message it is of a message that was retired, or moved with a later state.
            Kind::State => drop(self.index.set_state(header.id, place, header.meta_octets)),
            Kind::Retired => {
                for id in meta.chunks_exact(8) {
                    let id = u64::from_le_bytes(id.try_into().expect("eight octets"));
                    self.last_id = self.last_id.max(id);
                    self.retired.push((place.segment, QueueId::from_u64(id)));
                }
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
                let region = Region { from: 0, to: scanned.octets, id: None, what, tail: true, unreadable: false };
                self.faults.push(Fault { number, segment: None, region, newest });
            }
            return;
        };
        // Behind a damaged record at the end that is to be blanked out, not cut off.
        let end = scanned.regions.iter().filter(|r| !r.tail).map(|r| r.to).fold(end, u64::max);
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
            if let Some((_, segments)) = self.index.retire(id) {
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
            spares: Vec::new(),
            orphans: Vec::new(),
            rest: self.rest,
        }
    }
}

/// Compares the content files with what the records say of them.
fn match_contents(fs: &dyn Fs, gathered: &mut Gathered) -> Result<()> {
    let mut names: HashSet<String> =
        fs.list(Dir::Content).map_err(failed(fs, "list", "content"))?.into_iter().collect();
    let spilled = gathered.index.entries.iter().filter(|(_, entry)| entry.spilled);
    let spilled: Vec<(QueueId, Entry)> = spilled.map(|(id, entry)| (*id, *entry)).collect();
    for (id, entry) in spilled {
        let name = id.to_string();
        let octets =
            names.take(&name).map(|name| fs.open(Dir::Content, &name, Access::Read).and_then(|file| file.octets()));
        let what = match octets {
            Some(Ok(octets)) if octets == entry.content_octets => continue,
            Some(Ok(_)) => "its content file has another length",
            Some(Err(_)) => "its content file cannot be opened",
            None => "its content file is missing",
        };
        // The file, if any, goes where the record goes.
        gathered.orphans.extend((what != "its content file is missing").then_some(name));
        gathered.index.remove(id);
        let from = entry.message.offset();
        let to = from + span(entry.meta_octets, 0);
        let region = Region { from, to, id: Some(id), what, tail: false, unreadable: false };
        gathered.faults.push(Fault { number: entry.message.segment, segment: None, region, newest: false });
    }
    gathered.orphans.extend(names);
    Ok(())
}

/// Saves every damaged region in a file of its own.
fn set_aside(fs: &dyn Fs, faults: &[Fault]) -> Result<Vec<Damage>> {
    let mut all = Vec::new();
    for fault in faults {
        let name = segment_name(fault.number);
        let saved = save(fs, (Dir::Log, &name), fault.region.from, fault.region.to).map_err(failed(
            fs,
            "save a damaged part of",
            &format!("log/{name}"),
        ))?;
        all.push(fault.damage(saved));
    }
    if !all.is_empty() {
        fs.sync_dir(Dir::Quarantine).map_err(failed(fs, "sync", "quarantine"))?;
    }
    Ok(all)
}

impl Fault {
    fn damage(&self, saved: Option<String>) -> Damage {
        let Region { from, to, id, what, .. } = self.region;
        let place = format!("log/{}", segment_name(self.number));
        Damage { place, from, to, id, what, maybe_torn: self.newest && from > 0, saved }
    }
}

impl Gathered {
    /// Returns what is damaged; nothing of it is saved.
    pub(crate) fn damage(&self) -> Vec<Damage> {
        self.faults.iter().map(|fault| fault.damage(None)).collect()
    }
}

fn set_orphans_aside(fs: &dyn Fs, names: &[String]) -> Result<Vec<Damage>> {
    let mut all = Vec::new();
    for name in names {
        let place = format!("content/{name}");
        let to = fs.open(Dir::Content, name, Access::Read).and_then(|file| file.octets()).unwrap_or(0);
        let saved = format!("content.{name}");
        fs.rename((Dir::Content, name), (Dir::Quarantine, &saved)).map_err(failed(fs, "set aside", &place))?;
        let what = "no sound record speaks of it";
        let saved = Some(format!("quarantine/{saved}"));
        all.push(Damage { place, from: 0, to, id: name.parse().ok(), what, maybe_torn: true, saved });
    }
    if !all.is_empty() {
        for dir in [Dir::Quarantine, Dir::Content] {
            fs.sync_dir(dir).map_err(failed(fs, "sync", dir.name()))?;
        }
    }
    Ok(all)
}

/// Blanks out what was set aside, so that it is not found again.
fn repair(fs: &dyn Fs, faults: &[Fault]) -> Result<()> {
    for fault in faults {
        let name = segment_name(fault.number);
        let place = format!("log/{name}");
        let Some(segment) = fault.segment.or_else(|| read_header(fs, fault.number).ok().flatten().map(|h| h.segment))
        else {
            remove(fs, Dir::Log, &[name])?;
            continue;
        };
        // Writing to a failing disk could only do harm; the part is reported again next time.
        if fault.region.unreadable {
            continue;
        }
        let file = fs.open(Dir::Log, &name, Access::Write).map_err(failed(fs, "open", &place))?;
        blank_out(&*file, fault, segment).and_then(|()| file.sync()).map_err(failed(
            fs,
            "blank out a part of",
            &place,
        ))?;
    }
    Ok(())
}

fn blank_out(file: &dyn FsFile, fault: &Fault, segment: u64) -> io::Result<()> {
    let Region { from, to, tail, .. } = fault.region;
    if from == 0 {
        let number = fault.number;
        let header = SegmentHeader { segment, number, previous: 0, previous_segment: 0, previous_end: 0, id_floor: 0 };
        return file.write_at(0, &mut [IoSlice::new(&header.encode())]);
    }
    if tail && fault.newest {
        return file.set_octets(from);
    }
    if file.octets()? < to {
        file.set_octets(to)?;
    }
    let header = Header {
        kind: Kind::Void,
        spilled: false,
        segment,
        sequence: 0,
        id: QueueId::from_u64(0),
        meta_octets: 0,
        meta_crc: 0,
        content_octets: to - from - HEADER_OCTETS as u64,
        content_crc: 0,
    };
    file.write_at(from, &mut [IoSlice::new(&header.encode())])
}

fn remove(fs: &dyn Fs, dir: Dir, names: &[String]) -> Result<()> {
    for name in names {
        match fs.remove(dir, name) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(failed(fs, "remove", &format!("{dir}/{name}"))(e));
            }
            _ => {}
        }
    }
    if names.is_empty() { Ok(()) } else { fs.sync_dir(dir).map_err(failed(fs, "sync", dir.name())) }
}
