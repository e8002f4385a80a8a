//! The segments being written: one active, the others sealed. One write and one sync for a batch.
//!
//! Behind the last record stands an End record, which the next batch overwrites: segments are used
//! again, and what stands behind is of an earlier use. Nothing else here knows what records mean. After
//! a fault of kind [`Fault::Broken`] nothing may be written any more; the caller poisons the queue.

use std::hash::{BuildHasher, RandomState};
use std::io::{self, IoSlice};
use std::sync::Arc;

use crate::error::{is_full, is_out_of_descriptors};
use crate::fs::{Dir, FsFile};
use crate::id::QueueId;
use crate::index::{Place, Segment};
use crate::record::{ALIGN, HEADER_OCTETS, Header, Kind, SegmentHeader, segment_name, span, spare_name};
use crate::spool::{Spool, lock};
use crate::summary::{self, Summary};

/// The least that is reserved ahead on the disk, as a share of a segment.
const RESERVE_SHARE: u64 = 32;

/// Where the log goes on. Only the committer has it.
#[derive(Default)]
pub(crate) struct Log {
    active: Option<Active>,
    previous: Previous,
    next_number: u32,
    sequence: u64,
    /// Whether something was written since the last sync.
    dirty: bool,
    /// Whether segments were removed since the last sync of the directory.
    removed: bool,
    frame: Vec<u8>,
    /// Files in which nothing is needed, to be written over.
    spares: Vec<Spare>,
}

/// A segment file under a name of its own, of the length that a segment is given.
struct Spare {
    name: String,
    file: Arc<dyn FsFile>,
}

/// The most files kept to be written over.
const SPARES_MAX: usize = 2;
/// Octets of the End record.
const END_OCTETS: u64 = HEADER_OCTETS as u64;

/// The segment that is written.
struct Active {
    number: u32,
    segment: u64,
    file: Arc<dyn FsFile>,
    end: u64,
    capacity: u64,
    /// Octets reserved on the disk ahead of need.
    reserved: u64,
    /// What stands in it.
    summary: Summary,
}

/// The segment written before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Previous {
    pub number: u32,
    pub segment: u64,
    pub end: u64,
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

/// Why something was not written.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// No space: nothing of it stays, and it may be tried again.
    Full,
    /// No descriptors for another file: nothing was written, and it may be tried again.
    NoDescriptors,
    /// The disk fails; what is on it is unknown.
    Broken(String),
}

impl Part<'_> {
    fn span(&self) -> u64 {
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

impl Log {
    pub(crate) fn new(previous: Previous, next_number: u32, sequence: u64) -> Log {
        Log { previous, next_number, sequence, ..Log::default() }
    }

    /// Returns the number of the newest segment, the one being written if there is one. It is never
    /// removed: it says which ids were used.
    pub(crate) fn newest(&self) -> u32 {
        self.active.as_ref().map_or(self.previous.number, |active| active.number)
    }

    /// Returns whether something written is not yet synced.
    pub(crate) fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// Writes the first of `parts`, as many as fit into one segment and at least one, and syncs them
    /// if told to. Returns where they stand.
    pub(crate) fn append(&mut self, spool: &Spool, parts: &[Part<'_>], sync: bool) -> Result<Vec<Place>, Fault> {
        let first = parts.first().map_or(0, Part::span);
        self.make_room(spool, first)?;
        let Some(active) = &mut self.active else { return Ok(Vec::new()) };
        let mut places = Vec::with_capacity(parts.len());
        let mut end = active.end;
        for part in parts {
            if end + part.span() + END_OCTETS > active.capacity {
                break;
            }
            places.push(Place::new(active.number, end));
            end += part.span();
        }
        reserve(active, end + END_OCTETS, spool.options.segment_octets / RESERVE_SHARE)?;
        let parts = &parts[..places.len()];
        let written = write_parts(active, parts, self.sequence, &mut self.frame);
        let name = segment_name(active.number);
        if let Err(e) = written {
            return Err(self.abandon(spool, &format!("write of log/{name}"), e));
        }
        for (part, sequence) in parts.iter().zip(self.sequence..) {
            active.summary.add(&part.header(active.segment, sequence), part.meta);
        }
        self.sequence += places.len() as u64;
        active.end = end;
        self.dirty = true;
        if let Some(segment) = lock(&spool.index).segments.get_mut(&active.number) {
            segment.octets = end;
        }
        if sync {
            self.sync(spool)?;
        }
        Ok(places)
    }

    /// Makes all that was written durable. Never tried again behind a fault.
    pub(crate) fn sync(&mut self, spool: &Spool) -> Result<(), Fault> {
        spool.check_poison().map_err(|why| Fault::Broken(why.to_string()))?;
        if let (true, Some(active)) = (self.dirty, &self.active) {
            let place = || format!("sync of log/{}", segment_name(active.number));
            active.file.sync().map_err(|e| Fault::Broken(format!("{} failed: {e}", place())))?;
        }
        self.dirty = false;
        Ok(())
    }

    /// Removes a segment that holds nothing needed, or keeps it to be written over. `after_others` when
    /// records in it speak of segments removed earlier: they must be gone for good first.
    pub(crate) fn remove(&mut self, spool: &Spool, number: u32, after_others: bool) -> Result<(), Fault> {
        if after_others && self.removed {
            sync_dir(spool, Dir::Log)?;
            self.removed = false;
        }
        let spare = spare_name(number);
        // Under another name nobody opens it any more.
        match spool.fs.rename((Dir::Log, &segment_name(number)), (Dir::Log, &spare)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(fault(&format!("renaming to log/{spare}"), &e));
            }
            _ => {}
        }
        self.removed = true;
        summary::remove(&*spool.fs, number);
        let file = lock(&spool.index).remove_segment(number).and_then(Segment::into_unread_file);
        let is_whole = |file: &Arc<dyn FsFile>| file.octets().is_ok_and(|n| n == spool.options.segment_octets);
        match file.filter(is_whole) {
            Some(file) if self.spares.len() < SPARES_MAX => self.spares.push(Spare { name: spare, file }),
            // What stays behind is removed when the queue is next opened.
            _ => drop(spool.fs.remove(Dir::Log, &spare)),
        }
        Ok(())
    }

    /// Begins a new segment though the active one is not full, so that the latter can be removed and
    /// its space goes back to the disk. Nothing is reserved before the next record.
    pub(crate) fn begin_anew(&mut self, spool: &Spool) -> Result<(), Fault> {
        self.give_spares_back(spool);
        let newest = self.newest();
        if lock(&spool.index).segments.get(&newest).is_some_and(|segment| segment.octets > HEADER_OCTETS as u64) {
            self.seal(spool)?;
            self.create(spool, 0)?;
            self.sync(spool)?;
        }
        Ok(())
    }

    /// Gives the disk back what was kept to be written over.
    pub(crate) fn give_spares_back(&mut self, spool: &Spool) {
        for spare in self.spares.drain(..) {
            let _ = spool.fs.remove(Dir::Log, &spare.name);
        }
    }

    /// Gives back the memory of the last batch, and the space reserved on the disk.
    pub(crate) fn shrink(&mut self) {
        self.frame = Vec::new();
        if let Some(active) = &mut self.active
            && active.reserved > active.end + END_OCTETS
            && active.file.set_octets(active.end + END_OCTETS).is_ok()
        {
            active.reserved = active.end + END_OCTETS;
        }
    }

    fn make_room(&mut self, spool: &Spool, octets: u64) -> Result<(), Fault> {
        if let Some(active) = &mut self.active
            && active.end == HEADER_OCTETS as u64
            && active.reserved == 0
        {
            active.capacity = active.capacity.max(active.end + octets + END_OCTETS);
        }
        if self.active.as_ref().is_some_and(|active| active.end + octets + END_OCTETS > active.capacity) {
            self.seal(spool)?;
        }
        if self.active.is_none() {
            self.create(spool, octets)?;
        }
        Ok(())
    }

    /// Ends the active segment: what it holds is synced before anything is written behind it.
    fn seal(&mut self, spool: &Spool) -> Result<(), Fault> {
        self.sync(spool)?;
        if let Some(active) = self.active.take() {
            self.previous = Previous { number: active.number, segment: active.segment, end: active.end };
            if active.reserved != spool.options.segment_octets {
                // It will not be written over; where this fails the next header still says the end.
                let _ = active.file.set_octets(active.end);
            }
            let is_needed = lock(&spool.index).segments.get_mut(&active.number).is_some_and(|segment| {
                segment.octets = active.end;
                segment.live > 0
            });
            // Without it the next open reads the segment.
            if is_needed {
                let _ = active.summary.write(&*spool.fs, active.number, active.segment, active.end);
            }
        }
        Ok(())
    }

    fn create(&mut self, spool: &Spool, octets: u64) -> Result<(), Fault> {
        let number = self.next_number;
        self.next_number += 1;
        let name = segment_name(number);
        let segment = RandomState::new().hash_one(number);
        let Previous { number: previous, segment: previous_segment, end: previous_end } = self.previous;
        let id_floor = spool.last_id().to_u64();
        let header = SegmentHeader { segment, number, previous, previous_segment, previous_end, id_floor };
        let end = HEADER_OCTETS as u64;
        let is_enough = end + octets + END_OCTETS <= spool.options.segment_octets;
        let spare = if is_enough { self.spares.pop() } else { None };
        let reserved = spare.as_ref().map_or(0, |_| spool.options.segment_octets);
        let file = match spare {
            Some(spare) => self.reuse(spool, spare, &name, &header)?,
            None => make(spool, &name, &header)?,
        };
        sync_dir(spool, Dir::Log)?;
        self.removed = false;
        self.dirty = true;
        let capacity = spool.options.segment_octets.max(end + octets + END_OCTETS);
        let entry = Segment { file: Some(file.clone()), octets: end, ..Default::default() };
        lock(&spool.index).segments.insert(number, entry);
        self.active = Some(Active { number, segment, file, end, capacity, reserved, summary: Summary::default() });
        Ok(())
    }

    /// Makes a segment out of a file that was one before: what it held is gone for good before it is
    /// written, and it begins as the new one before it is called so.
    fn reuse(
        &mut self,
        spool: &Spool,
        spare: Spare,
        name: &str,
        header: &SegmentHeader,
    ) -> Result<Arc<dyn FsFile>, Fault> {
        if std::mem::take(&mut self.removed) {
            sync_dir(spool, Dir::Log)?;
        }
        let start = [header.encode(), end_record(header.segment, self.sequence)].concat();
        let written = spare.file.write_at(0, &mut [IoSlice::new(&start)]).and_then(|()| spare.file.sync());
        let renamed = written.and_then(|()| spool.fs.rename((Dir::Log, &spare.name), (Dir::Log, name)));
        renamed.map_err(|e| fault(&format!("creation of log/{name} out of log/{}", spare.name), &e))?;
        Ok(spare.file)
    }

    /// After a failed write: when the disk is only full, the active segment ends where it ended
    /// before, and the next write begins a new one.
    fn abandon(&mut self, spool: &Spool, action: &str, error: io::Error) -> Fault {
        match fault(action, &error) {
            Fault::Full => {
                if let Some(active) = &self.active {
                    // What is refused is not to be found when nothing else can be written, either.
                    let _ = active.file.set_octets(active.end);
                }
                self.seal(spool).err().unwrap_or(Fault::Full)
            }
            broken => broken,
        }
    }
}

/// Makes the file of a segment.
fn make(spool: &Spool, name: &str, header: &SegmentHeader) -> Result<Arc<dyn FsFile>, Fault> {
    let failed = |e: io::Error| fault(&format!("creation of log/{name}"), &e);
    let file = spool.fs.create(Dir::Log, name).map_err(failed)?;
    // Behind it the file is empty: that is an end, too.
    if let Err(e) = file.write_at(0, &mut [IoSlice::new(&header.encode())]) {
        let _ = spool.fs.remove(Dir::Log, name);
        return Err(failed(e));
    }
    Ok(file)
}

/// Returns what stands behind the last record.
fn end_record(segment: u64, sequence: u64) -> [u8; HEADER_OCTETS] {
    let header = Header {
        kind: Kind::End,
        spilled: false,
        segment,
        sequence,
        id: QueueId::from_u64(0),
        meta_octets: 0,
        meta_crc: 0,
        content_octets: 0,
        content_crc: 0,
    };
    header.encode()
}

/// Reserves space up to `end` and, while the disk has it, more ahead: twice what was, so that a busy
/// queue seldom asks and a quiet one holds little.
fn reserve(active: &mut Active, end: u64, least: u64) -> Result<(), Fault> {
    if end <= active.reserved {
        return Ok(());
    }
    let ahead = (2 * active.reserved).max(end.next_multiple_of(least.max(1))).min(active.capacity);
    let mut reserved = active.file.allocate(ahead).map(|()| ahead);
    if ahead > end && reserved.as_ref().is_err_and(is_full) {
        reserved = active.file.allocate(end).map(|()| end);
    }
    let action = || format!("allocation of log/{}", segment_name(active.number));
    active.reserved = reserved.map_err(|e| fault(&action(), &e))?;
    Ok(())
}

/// Syncs a directory.
pub(crate) fn sync_dir(spool: &Spool, dir: Dir) -> Result<(), Fault> {
    spool.fs.sync_dir(dir).map_err(|e| Fault::Broken(format!("sync of {dir}/ failed: {e}")))
}

fn fault(action: &str, error: &io::Error) -> Fault {
    match error {
        error if is_full(error) => Fault::Full,
        error if is_out_of_descriptors(error) => Fault::NoDescriptors,
        error => Fault::Broken(format!("{action} failed: {error}")),
    }
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
