//! The journal's files: segments of batches, each batch under a checksum. Their names are numbers that
//! are never used twice, so the order of the files is the order of time.
//!
//! Only the newest is written. What a crash left of its last batch is cut off at opening; a batch that
//! was damaged later is passed over. Nothing is ever synced: what the system had not written when
//! power went is missing, and nothing else.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use postroad_queue::UnixMillis;

use super::event::records;

/// The format that is written, and the only one there is.
const VERSION: u32 = 1;
const MAGIC: &[u8; 4] = b"PRJl";
const HEADER_OCTETS: usize = 16;
/// Length and checksum in front of a batch.
pub const BATCH_HEAD_OCTETS: usize = 8;
/// No file is read further: longer than any that is written.
const FILE_OCTETS_MAX: u64 = 64 << 20;
const EXTENSION: &str = "journal";

/// A file of the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its number.
    pub number: u64,
    /// Where it is.
    pub path: PathBuf,
    /// How long it is.
    pub octets: u64,
    /// When it was begun: all that it holds was noted up to a second before, or later.
    pub begun: UnixMillis,
}

/// What a file holds.
pub struct Content {
    octets: Vec<u8>,
    /// Where the batches end.
    end: usize,
    /// Batches that are not as they were written.
    pub damaged: u64,
}

/// Returns the segments of the journal in `dir`, the oldest first; none when there is no journal. A
/// file that is none of ours is left alone.
///
/// # Errors
/// The directory cannot be read.
pub fn list(dir: &Path) -> io::Result<Vec<Segment>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut segments = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let Some(number) = number_of(&path) else { continue };
        match File::open(&path).and_then(|mut file| Ok((begun(&mut file)?, file.metadata()?.len()))) {
            Ok((Some(begun), octets)) => segments.push(Segment { number, path, octets, begun }),
            Ok((None, _)) => {}
            // Its time was over meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    segments.sort_by_key(|segment| segment.number);
    Ok(segments)
}

/// Returns the highest number of any file in `dir`, whatever is in it.
pub fn last_number(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| number_of(&entry.path())).max().unwrap_or(0)
}

fn number_of(path: &Path) -> Option<u64> {
    let is_ours = path.extension().is_some_and(|extension| extension == EXTENSION);
    path.file_stem().filter(|_| is_ours)?.to_str()?.parse().ok()
}

/// Reads the header; none when it is none, or of a version that is not known.
fn begun(file: &mut File) -> io::Result<Option<UnixMillis>> {
    let mut header = [0; HEADER_OCTETS];
    match file.read_exact(&mut header) {
        Ok(()) => Ok(read_header(&header)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

fn read_header(octets: &[u8]) -> Option<UnixMillis> {
    let (magic, rest) = octets.split_first_chunk()?;
    let (version, rest) = rest.split_first_chunk()?;
    let (begun, _) = rest.split_first_chunk()?;
    let is_known = magic == MAGIC && u32::from_le_bytes(*version) == VERSION;
    is_known.then(|| UnixMillis(u64::from_le_bytes(*begun)))
}

/// Makes a new segment and the directory around it.
///
/// # Errors
/// What the system says.
pub fn create(dir: &Path, number: u64, begun: UnixMillis) -> io::Result<(File, Segment)> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let path = dir.join(format!("{number:010}.{EXTENSION}"));
    let mut file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(&path)?;
    let mut header = [0; HEADER_OCTETS];
    header[..4].copy_from_slice(MAGIC);
    header[4..8].copy_from_slice(&VERSION.to_le_bytes());
    header[8..].copy_from_slice(&begun.0.to_le_bytes());
    if let Err(error) = file.write_all(&header) {
        // An empty file would be in the way of nobody, but say nothing either.
        let _ = fs::remove_file(&path);
        return Err(error);
    }
    Ok((file, Segment { number, path, octets: HEADER_OCTETS as u64, begun }))
}

/// Opens the newest segment to be continued, cuts off what a crash left of its last batch, and
/// returns when its last event happened.
///
/// # Errors
/// What the system says.
pub fn reopen(segment: &mut Segment) -> io::Result<(File, UnixMillis)> {
    let content = Content::read(&segment.path, Vec::new())?;
    let last = content.batches().flat_map(records).map(|raw| raw.at).max().unwrap_or(segment.begun);
    let file = OpenOptions::new().append(true).open(&segment.path)?;
    file.set_len(content.end as u64)?;
    segment.octets = content.end as u64;
    Ok((file, last))
}

/// Completes a batch in front of which [`BATCH_HEAD_OCTETS`] were left free.
pub fn seal(batch: &mut [u8]) {
    let (head, payload) = batch.split_at_mut(BATCH_HEAD_OCTETS);
    let length = u32::try_from(payload.len()).expect("what waits is bounded");
    head[..4].copy_from_slice(&length.to_le_bytes());
    head[4..].copy_from_slice(&crc32fast::hash(payload).to_le_bytes());
}

impl Content {
    /// Reads a file into `octets`, whose room is used again, and finds its batches.
    ///
    /// # Errors
    /// What the system says; also that it is no segment.
    pub fn read(path: &Path, mut octets: Vec<u8>) -> io::Result<Content> {
        octets.clear();
        let file = File::open(path)?;
        octets.reserve_exact(usize::try_from(file.metadata()?.len().min(FILE_OCTETS_MAX)).unwrap_or(0) + 1);
        file.take(FILE_OCTETS_MAX).read_to_end(&mut octets)?;
        read_header(&octets).ok_or_else(|| io::Error::other("it is no segment of the journal"))?;
        let mut content = Content { octets, end: HEADER_OCTETS, damaged: 0 };
        content.check();
        Ok(content)
    }

    /// Finds where the batches end. One that is damaged is passed over when another stands behind it.
    fn check(&mut self) {
        let (mut at, mut damaged) = (HEADER_OCTETS, 0);
        while let Some((sum, payload, next)) = batch_at(&self.octets, at) {
            at = next;
            if crc32fast::hash(payload) == sum {
                (self.end, self.damaged) = (at, damaged);
            } else {
                damaged += 1;
            }
        }
    }

    /// Returns the batches that are as they were written.
    pub fn batches(&self) -> impl Iterator<Item = &[u8]> {
        let (octets, mut at) = (&self.octets[..self.end], HEADER_OCTETS);
        let all = std::iter::from_fn(move || {
            let (sum, payload, next) = batch_at(octets, at)?;
            at = next;
            Some((sum, payload))
        });
        let is_any_damaged = self.damaged > 0;
        all.filter(move |(sum, payload)| !is_any_damaged || crc32fast::hash(payload) == *sum)
            .map(|(_, payload)| payload)
    }

    /// Gives the room back.
    pub fn into_octets(self) -> Vec<u8> {
        self.octets
    }
}

/// Returns checksum, payload and end of the batch at `at`.
fn batch_at(octets: &[u8], at: usize) -> Option<(u32, &[u8], usize)> {
    let rest = octets.get(at..)?;
    let (length, rest) = rest.split_first_chunk()?;
    let (sum, rest) = rest.split_first_chunk()?;
    let length = u32::from_le_bytes(*length) as usize;
    let payload = rest.get(..length).filter(|_| length > 0)?;
    Some((u32::from_le_bytes(*sum), payload, at + BATCH_HEAD_OCTETS + length))
}
