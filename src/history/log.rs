//! The history on disk: one file for each day, appended to, and removed when all in it is too old.
//!
//! A file (`DAY.v1`) is a header of 32 octets (`PRoadHis`, format version 1, zeros, CRC-32) and records of 32
//! octets: when its age counts from, in milliseconds (8, little-endian), the entry (18), zeros (2),
//! CRC-32 (4). Records have one length, so a torn or damaged one is passed over and the next is found.
//! What cannot be read costs a repeat at worst; nothing here ever stops mail.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use postroad_mesh::history::{ENTRY_OCTETS, Entry};
use postroad_queue::UnixMillis;
use tracing::warn;

const MAGIC: &[u8; 8] = b"PRoadHis";
const VERSION: u16 = 1;
const RECORD_OCTETS: usize = 32;
const DAY_MS: u64 = 86_400_000;
/// Of this version. What a later release writes has another, and is not seen here.
const SUFFIX: &str = ".v1";

/// The files, of which the newest is appended to.
pub(super) struct Log {
    directory: PathBuf,
    age_ms: u64,
    /// From when on the youngest entry of each day's file counts.
    days: BTreeMap<u64, u64>,
    newest: Option<(u64, Arc<File>)>,
    last_ms: u64,
    /// It was said that nothing can be written.
    complained: bool,
}

impl Log {
    /// Reads all files that still matter and removes the others; `each` gets every record.
    ///
    /// # Errors
    /// The directory cannot be made or read.
    pub(super) fn open(
        directory: &Path,
        age_ms: u64,
        now: UnixMillis,
        mut each: impl FnMut(Entry, u64),
    ) -> io::Result<Log> {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let (directory, days) = (directory.to_owned(), BTreeMap::new());
        let mut log = Log { directory, age_ms, days, newest: None, last_ms: 0, complained: false };
        for entry in fs::read_dir(&log.directory)? {
            let name = entry?.file_name();
            let Some(day) = name.to_str().and_then(|name| name.strip_suffix(SUFFIX)?.parse::<u64>().ok()) else {
                continue;
            };
            let Some(youngest) = log.read(day, &mut each)? else { continue };
            log.days.insert(day, youngest);
            log.last_ms = log.last_ms.max(youngest.min(now.0));
        }
        log.remove_old(now);
        Ok(log)
    }

    /// Returns when an entry was last appended, as far as that is known.
    pub(super) fn last_ms(&self) -> u64 {
        self.last_ms
    }

    /// Returns the file that is appended to.
    pub(super) fn file(&self) -> Option<Arc<File>> {
        self.newest.as_ref().map(|(_, file)| file.clone())
    }

    /// Writes entries down, each with the time from which its age counts.
    pub(super) fn append(&mut self, entries: &[(Entry, u64)], now: UnixMillis) {
        let Some(counts_from) = entries.iter().map(|(_, counts_from)| *counts_from).max() else { return };
        let records: Vec<_> = entries.iter().map(|(entry, counts_from)| record(entry, *counts_from)).collect();
        let written = self.today(now).and_then(|file| (&*file).write_all(records.as_flattened()));
        match written {
            Ok(()) => {
                let youngest = self.days.entry(now.0 / DAY_MS).or_default();
                *youngest = counts_from.min(now.0 + self.age_ms).max(*youngest);
                self.complained = false;
            }
            Err(error) => {
                // A record that was torn is passed over; what follows begins where one ends.
                self.newest = None;
                if !std::mem::replace(&mut self.complained, true) {
                    let path = self.directory.display();
                    warn!(%error, %path, "the history of the mesh cannot be written; after a restart some mail may come twice");
                }
            }
        }
    }

    fn path(&self, day: u64) -> PathBuf {
        self.directory.join(format!("{day}{SUFFIX}"))
    }

    /// Returns the file of the day, which is made, or cut where its last whole record ends.
    fn today(&mut self, now: UnixMillis) -> io::Result<Arc<File>> {
        let day = now.0 / DAY_MS;
        if let Some((of, file)) = &self.newest
            && *of == day
        {
            return Ok(file.clone());
        }
        self.remove_old(now);
        let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(self.path(day))?;
        let octets = file.metadata()?.len();
        if octets < RECORD_OCTETS as u64 {
            file.set_len(0)?;
            file.write_all(&header())?;
        } else {
            file.set_len(octets - octets % RECORD_OCTETS as u64)?;
        }
        let file = Arc::new(file);
        self.newest = Some((day, file.clone()));
        Ok(file)
    }

    /// Reads one file. Returns from when on its youngest entry counts; none when it is of no use.
    fn read(&self, day: u64, each: &mut impl FnMut(Entry, u64)) -> io::Result<Option<u64>> {
        let path = self.path(day);
        let octets = fs::read(&path)?;
        let mut records = octets.chunks_exact(RECORD_OCTETS);
        match records.next() {
            Some(first) if *first == header() => {}
            Some(_) => {
                warn!(path = %path.display(), "a file of the mesh's history is damaged and set aside; some mail may come twice");
                fs::rename(&path, path.with_extension("damaged"))?;
                return Ok(None);
            }
            // Made by a run that ended before its first entry.
            None => return Ok(Some(0)),
        }
        let (mut youngest, mut damaged) = (0, usize::from(!records.remainder().is_empty()));
        for octets in records {
            match entry(octets) {
                Some((entry, counts_from)) => {
                    youngest = counts_from.min((day + 1) * DAY_MS + self.age_ms).max(youngest);
                    each(entry, counts_from);
                }
                None => damaged += 1,
            }
        }
        if damaged > 0 {
            warn!(path = %path.display(), damaged, "entries of the mesh's history cannot be read; some mail may come twice");
        }
        Ok(Some(youngest))
    }

    fn remove_old(&mut self, now: UnixMillis) {
        let limit = now.0.saturating_sub(self.age_ms);
        let today = now.0 / DAY_MS;
        let old = self.days.iter().filter(|(day, youngest)| **day < today && **youngest < limit);
        let old: Vec<u64> = old.map(|(day, _)| *day).collect();
        for day in old {
            self.days.remove(&day);
            // What stays is removed another time.
            let _ = fs::remove_file(self.path(day));
        }
    }
}

fn header() -> [u8; RECORD_OCTETS] {
    let mut octets = [0; RECORD_OCTETS];
    octets[..8].copy_from_slice(MAGIC);
    octets[8..10].copy_from_slice(&VERSION.to_le_bytes());
    seal(octets)
}

fn record(entry: &Entry, counts_from: u64) -> [u8; RECORD_OCTETS] {
    let mut octets = [0; RECORD_OCTETS];
    octets[..8].copy_from_slice(&counts_from.to_le_bytes());
    octets[8..8 + ENTRY_OCTETS].copy_from_slice(entry.octets());
    seal(octets)
}

fn seal(mut octets: [u8; RECORD_OCTETS]) -> [u8; RECORD_OCTETS] {
    let sum = crc32fast::hash(&octets[..RECORD_OCTETS - 4]);
    octets[RECORD_OCTETS - 4..].copy_from_slice(&sum.to_le_bytes());
    octets
}

fn entry(octets: &[u8]) -> Option<(Entry, u64)> {
    let (octets, sum) = octets.split_last_chunk::<4>()?;
    if crc32fast::hash(octets).to_le_bytes() != *sum {
        return None;
    }
    let (counts_from, rest) = octets.split_first_chunk::<8>()?;
    Some((Entry::from_octets(*rest.first_chunk()?), u64::from_le_bytes(*counts_from)))
}
