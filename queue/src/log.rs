//! The segments being written: one active, the others sealed. One write and one sync for a batch.
//!
//! Behind the last record stands an End record, which the next record overwrites: segments are used
//! again, and what stands behind is of an earlier use. Nothing else here knows what records mean. After
//! a fault of kind [`Fault::Broken`] nothing may be written any more; the caller poisons the queue.

use std::hash::{BuildHasher, RandomState};
use std::io::{self, IoSlice};
use std::sync::{Arc, MutexGuard};

use crate::error::{is_full, is_out_of_descriptors};
use crate::fs::{Dir, FsFile};
use crate::index::{Place, Segment};
use crate::record::{HEADER_OCTETS, SegmentHeader, segment_name, spare_name};
use crate::retirement;
use crate::spool::{Spool, lock};
use crate::summary::{self, Summary};
use crate::tail::{Active, END_OCTETS, Part, Tail, end_record};

/// The least that is reserved ahead on the disk, as a share of a segment.
const RESERVE_SHARE: u64 = 32;

/// The segments but for the end of the newest, which is the [`Tail`]. Only the committer has it.
#[derive(Default)]
pub(crate) struct Log {
    previous: Previous,
    next_number: u32,
    /// All records before this one are synced.
    synced: u64,
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

/// The segment written before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Previous {
    pub number: u32,
    pub segment: u64,
    pub end: u64,
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

impl Log {
    pub(crate) fn new(previous: Previous, next_number: u32, sequence: u64) -> Log {
        Log { previous, next_number, synced: sequence, ..Log::default() }
    }

    /// Returns the number of the newest segment, the one being written if there is one. It is never
    /// removed: it says which ids were used.
    pub(crate) fn newest(&self, spool: &Spool) -> u32 {
        lock(&spool.tail).active.as_ref().map_or(self.previous.number, |active| active.number)
    }

    /// Returns the sequence of the first record that may not be synced.
    pub(crate) fn synced(&self) -> u64 {
        self.synced
    }

    /// Writes the first of `parts`, as many as fit into one segment and at least one, and syncs them
    /// if told to. Returns where they stand.
    pub(crate) fn append(&mut self, spool: &Spool, parts: &[Part<'_>], sync: bool) -> Result<Vec<Place>, Fault> {
        let first = parts.first().map_or(0, Part::span);
        let mut tail = self.make_room(spool, first)?;
        let Some(active) = &mut tail.active else { return Ok(Vec::new()) };
        let (mut count, mut octets) = (0, 0);
        while parts.get(count).is_some_and(|part| active.fits(octets + part.span())) {
            octets += parts[count].span();
            count += 1;
        }
        active.reserve(active.end + octets + END_OCTETS, spool.options.segment_octets / RESERVE_SHARE)?;
        let number = active.number;
        let places = match tail.write(&parts[..count], &mut self.frame) {
            Ok(places) => places,
            Err(e) => return Err(self.abandon(spool, tail, &format!("write of log/{}", segment_name(number)), e)),
        };
        tail.note_end(&mut lock(&spool.index));
        drop(tail);
        // Who came meanwhile found the tail in use.
        retirement::write_waiting(spool);
        if sync {
            self.sync(spool)?;
        }
        Ok(places)
    }

    /// Makes all that was written durable. Never tried again behind a fault.
    pub(crate) fn sync(&mut self, spool: &Spool) -> Result<(), Fault> {
        let mut tail = lock(&spool.tail);
        let (is_dirty, sequence) = (std::mem::take(&mut tail.dirty), tail.sequence);
        let active = tail.active.as_ref().map(|active| (active.number, active.file.clone()));
        drop(tail);
        match active {
            Some((number, file)) if is_dirty => self.sync_segment(spool, number, &*file, sequence),
            _ => spool.check_poison().map_err(|why| Fault::Broken(why.to_string())),
        }
    }

    /// Syncs a segment: then all records before `sequence` are durable.
    fn sync_segment(&mut self, spool: &Spool, number: u32, file: &dyn FsFile, sequence: u64) -> Result<(), Fault> {
        let check = || spool.check_poison().map_err(|why| Fault::Broken(why.to_string()));
        check()?;
        file.sync().map_err(|e| Fault::Broken(format!("sync of log/{} failed: {e}", segment_name(number))))?;
        self.synced = sequence;
        // A write beside it may have failed: then nothing is promised any more, not even this.
        check()
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
        let newest = self.newest(spool);
        if lock(&spool.index).segments.get(&newest).is_some_and(|segment| segment.octets > HEADER_OCTETS as u64) {
            self.seal(spool)?;
            drop(self.create(spool, 0)?);
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
    pub(crate) fn shrink(&mut self, spool: &Spool) {
        self.frame = Vec::new();
        if let Some(active) = &mut lock(&spool.tail).active
            && active.reserved > active.end + END_OCTETS
            && active.file.set_octets(active.end + END_OCTETS).is_ok()
        {
            active.reserved = active.end + END_OCTETS;
        }
    }

    /// Returns the end of a segment with room for so many octets.
    fn make_room<'a>(&mut self, spool: &'a Spool, octets: u64) -> Result<MutexGuard<'a, Tail>, Fault> {
        let mut tail = lock(&spool.tail);
        if let Some(active) = &mut tail.active {
            if active.end == HEADER_OCTETS as u64 && active.reserved == 0 {
                active.capacity = active.capacity.max(active.end + octets + END_OCTETS);
            }
            if active.fits(octets) {
                return Ok(tail);
            }
        }
        drop(tail);
        self.seal(spool)?;
        self.create(spool, octets)
    }

    /// Ends the active segment.
    fn seal(&mut self, spool: &Spool) -> Result<(), Fault> {
        self.end(spool, lock(&spool.tail))
    }

    /// Ends the active segment: nobody writes into it any more, and what it holds is synced before
    /// anything is written behind it.
    fn end(&mut self, spool: &Spool, mut tail: MutexGuard<'_, Tail>) -> Result<(), Fault> {
        let Some(active) = tail.active.take() else { return Ok(()) };
        let (is_dirty, sequence) = (std::mem::take(&mut tail.dirty), tail.sequence);
        drop(tail);
        if is_dirty {
            self.sync_segment(spool, active.number, &*active.file, sequence)?;
        }
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
        Ok(())
    }

    /// Begins a segment with room for so many octets; returns its end.
    fn create<'a>(&mut self, spool: &'a Spool, octets: u64) -> Result<MutexGuard<'a, Tail>, Fault> {
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
        let capacity = spool.options.segment_octets.max(end + octets + END_OCTETS);
        let entry = Segment { file: Some(file.clone()), octets: end, ..Default::default() };
        lock(&spool.index).segments.insert(number, entry);
        let mut tail = lock(&spool.tail);
        tail.active = Some(Active { number, segment, file, end, capacity, reserved, summary: Summary::default() });
        tail.dirty = true;
        Ok(tail)
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
        let start = [header.encode(), end_record(header.segment, lock(&spool.tail).sequence)].concat();
        let written = spare.file.write_at(0, &mut [IoSlice::new(&start)]).and_then(|()| spare.file.sync());
        let renamed = written.and_then(|()| spool.fs.rename((Dir::Log, &spare.name), (Dir::Log, name)));
        renamed.map_err(|e| fault(&format!("creation of log/{name} out of log/{}", spare.name), &e))?;
        Ok(spare.file)
    }

    /// After a failed write: when the disk is only full, the active segment ends where it ended
    /// before, and the next write begins a new one.
    fn abandon(&mut self, spool: &Spool, mut tail: MutexGuard<'_, Tail>, action: &str, error: io::Error) -> Fault {
        match fault(action, &error) {
            Fault::Full => {
                if let Some(active) = &mut tail.active {
                    active.cut();
                }
                self.end(spool, tail).err().unwrap_or(Fault::Full)
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

/// Syncs a directory.
pub(crate) fn sync_dir(spool: &Spool, dir: Dir) -> Result<(), Fault> {
    spool.fs.sync_dir(dir).map_err(|e| Fault::Broken(format!("sync of {dir}/ failed: {e}")))
}

/// Says what an error of the disk means for the log.
pub(crate) fn fault(action: &str, error: &io::Error) -> Fault {
    match error {
        error if is_full(error) => Fault::Full,
        error if is_out_of_descriptors(error) => Fault::NoDescriptors,
        error => Fault::Broken(format!("{action} failed: {error}")),
    }
}
