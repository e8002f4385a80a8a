//! Opening: what is on disk becomes the index; what a crash left half done is undone; what is damaged
//! is set aside and reported.
//!
//! Every step may be cut off by another crash: the next open then does the same again. What is damaged
//! is saved and synced in `quarantine/` before anything is changed in its place.

use std::fmt;
use std::io::{self, IoSlice};

use crate::error::{OpenError, is_full};
use crate::fs::{Access, Dir, Fs, FsFile};
use crate::gather::{Depth, Fault, Gathered, failed, gather, read_header};
use crate::id::QueueId;
use crate::index::Index;
use crate::log::Log;
use crate::quarantine::save;
use crate::record::{HEADER_OCTETS, Header, Kind, SegmentHeader, segment_name};
use crate::scan::Region;
use crate::summary;

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

type Result<T> = std::result::Result<T, OpenError>;

/// Reads the queue and puts it in order.
pub(crate) fn recover(fs: &dyn Fs, depth: Depth) -> Result<Recovered> {
    let mut gathered = gather(fs, depth, &mut |_, _| {})?;
    let mut report = gathered.report();
    report.damage = set_aside(fs, &mut gathered.faults)?;
    if gathered.faults.is_empty() {
        report.drafts_removed = gathered.orphans.len();
        remove(fs, Dir::Content, &gathered.orphans)?;
    } else if gathered.faults.iter().any(|fault| fault.region.unreadable) {
        // They may belong to records that stay where they are, to be read another time.
    } else {
        // One of them may be what a damaged record speaks of.
        report.damage.extend(set_orphans_aside(fs, &gathered.orphans)?);
    }
    forget_summaries(fs, &gathered)?;
    repair(fs, &gathered.faults)?;
    let blank: Vec<String> = gathered.blank.iter().map(|number| segment_name(*number)).collect();
    remove(fs, Dir::Log, &blank)?;
    remove(fs, Dir::Log, &gathered.spares)?;
    settle(fs, gathered.previous.number, &gathered.rest)?;
    write_summaries(fs, &gathered);
    let log = Log::new(gathered.previous, gathered.next_number, gathered.sequence);
    Ok(Recovered { log, index: gathered.index, last_id: gathered.last_id, report })
}

/// Removes the summaries of segments that are about to be changed, and those without a segment.
fn forget_summaries(fs: &dyn Fs, gathered: &Gathered) -> Result<()> {
    let mut names: Vec<String> = gathered.faults.iter().map(|fault| summary::name(fault.number)).collect();
    names.extend(gathered.strays.iter().cloned());
    names.sort_unstable();
    names.dedup();
    remove(fs, Dir::Summary, &names)
}

/// Writes the summaries that were missing. Where that fails the segments are read the next time, too.
fn write_summaries(fs: &dyn Fs, gathered: &Gathered) {
    for (number, segment, end, summary) in &gathered.summaries {
        if gathered.faults.iter().all(|fault| fault.number != *number) {
            let _ = summary.write(fs, *number, *segment, *end);
        }
    }
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

/// Saves every damaged region in a file of its own. What a full disk has no room for stays where it is,
/// to be found and saved another time; a torn end is given up, nobody was promised anything of it.
fn set_aside(fs: &dyn Fs, faults: &mut [Fault]) -> Result<Vec<Damage>> {
    let mut all = Vec::new();
    for fault in faults {
        let name = segment_name(fault.number);
        let saved = match save(fs, (Dir::Log, &name), fault.region.from, fault.region.to) {
            Err(e) if is_full(&e) => {
                fault.region.unreadable |= !fault.is_torn();
                None
            }
            saved => saved.map_err(failed(fs, "save a damaged part of", &format!("log/{name}")))?,
        };
        all.push(fault.damage(saved));
    }
    if !all.is_empty() {
        fs.sync_dir(Dir::Quarantine).map_err(failed(fs, "sync", "quarantine"))?;
    }
    Ok(all)
}

impl Fault {
    /// Returns whether it is the end of a write that a crash cut off.
    fn is_torn(&self) -> bool {
        self.newest && self.region.tail && self.region.from > 0
    }

    pub(crate) fn damage(&self, saved: Option<String>) -> Damage {
        let Region { from, to, id, what, .. } = self.region;
        let place = format!("log/{}", segment_name(self.number));
        Damage { place, from, to, id, what, maybe_torn: self.newest && from > 0, saved }
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
        // Writing to a failing disk could only do harm; the part is reported again next time.
        if fault.region.unreadable {
            continue;
        }
        let name = segment_name(fault.number);
        let place = format!("log/{name}");
        let Some(segment) = fault.segment.or_else(|| read_header(fs, fault.number).ok().flatten().map(|h| h.segment))
        else {
            remove(fs, Dir::Log, &[name])?;
            continue;
        };
        let file = fs.open(Dir::Log, &name, Access::Write).map_err(failed(fs, "open", &place))?;
        match blank_out(&*file, fault, segment).and_then(|()| file.sync()) {
            // Found again next time.
            Err(e) if is_full(&e) => {}
            done => done.map_err(failed(fs, "blank out a part of", &place))?,
        }
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
    // Less than a header is damaged only behind the last record: what is written there covers nothing else.
    let octets = (to - from).max(HEADER_OCTETS as u64);
    if file.octets()? < from + octets {
        file.set_octets(from + octets)?;
    }
    let header = Header {
        kind: Kind::Void,
        spilled: false,
        segment,
        sequence: 0,
        id: QueueId::from_u64(0),
        meta_octets: 0,
        meta_crc: 0,
        content_octets: octets - HEADER_OCTETS as u64,
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
