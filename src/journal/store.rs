//! Where batches go: the newest segment, begun anew when it is long or old enough; the oldest go when
//! all together are too long, and each when all that it holds is too old.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::PathBuf;

use postroad_queue::UnixMillis;

use super::Limits;
use super::segment::{self, Segment};

/// A segment is at most this part of all, in length and in time.
const SEGMENTS_MIN: u64 = 16;
/// A segment is read whole into memory.
const SEGMENT_OCTETS_MAX: u64 = 16 << 20;

/// The segments of a journal, and the file that is written.
pub struct Store {
    dir: PathBuf,
    limits: Limits,
    /// The oldest first; the last one is written while `file` is there.
    segments: VecDeque<Segment>,
    file: Option<File>,
    /// When the last event was written.
    last: UnixMillis,
    next_number: u64,
}

impl Store {
    /// Takes what is in `dir`, which need not exist, and cuts off what a crash left of a batch.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(dir: PathBuf, limits: Limits) -> io::Result<Store> {
        let mut segments: VecDeque<Segment> = segment::list(&dir)?.into();
        let (mut file, mut last) = (None, UnixMillis(0));
        if let Some(newest) = segments.back_mut() {
            let (reopened, at) = segment::reopen(newest)?;
            (file, last) = (Some(reopened), at);
        }
        let next_number = segment::last_number(&dir) + 1;
        Ok(Store { dir, limits, segments, file, last, next_number })
    }

    /// Appends a batch that is sealed, and makes room for it.
    ///
    /// # Errors
    /// What the system says; the next batch goes into another segment.
    pub fn append(&mut self, batch: &[u8], now: UnixMillis) -> io::Result<()> {
        self.forget(now);
        if self.newest_is_full(batch, now) {
            self.file = None;
        }
        while self.octets() + batch.len() as u64 > self.limits.octets_max && !self.segments.is_empty() {
            self.remove_oldest()?;
        }
        let mut file = match self.file.take() {
            Some(file) => file,
            None => {
                let (file, segment) = segment::create(&self.dir, self.next_number, now)?;
                self.next_number += 1;
                self.segments.push_back(segment);
                file
            }
        };
        let newest = self.segments.back_mut().expect("the file that is written is one of them");
        if let Err(error) = file.write_all(batch) {
            // What a full disk took of it would hide what comes behind it.
            let _ = file.set_len(newest.octets);
            return Err(error);
        }
        newest.octets += batch.len() as u64;
        (self.file, self.last) = (Some(file), now);
        Ok(())
    }

    fn newest_is_full(&self, batch: &[u8], now: UnixMillis) -> bool {
        let full = (self.limits.octets_max / SEGMENTS_MIN).min(SEGMENT_OCTETS_MAX);
        self.segments.back().is_some_and(|newest| {
            newest.octets + batch.len() as u64 > full || now.since(newest.begun) > self.limits.age_ms / SEGMENTS_MIN
        })
    }

    fn octets(&self) -> u64 {
        self.segments.iter().map(|segment| segment.octets).sum()
    }

    /// Removes the segments of which every event is too old.
    pub fn forget(&mut self, now: UnixMillis) {
        while self.oldest_ends().is_some_and(|end| now.since(end) > self.limits.age_ms) {
            // What cannot be removed now is tried again with the next batch.
            if self.remove_oldest().is_err() {
                return;
            }
        }
    }

    /// Returns when the oldest segment will be too old; none when there is nothing.
    pub fn forgets_at(&self) -> Option<UnixMillis> {
        self.oldest_ends().map(|end| end.plus(self.limits.age_ms + 1))
    }

    /// Returns when the last event of the oldest segment happened, or a little later.
    fn oldest_ends(&self) -> Option<UnixMillis> {
        match (self.segments.front(), self.segments.get(1)) {
            (None, _) => None,
            (Some(_), Some(next)) => Some(next.begun),
            (Some(_), None) => Some(self.last),
        }
    }

    fn remove_oldest(&mut self) -> io::Result<()> {
        let Some(oldest) = self.segments.front() else { return Ok(()) };
        match fs::remove_file(&oldest.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.segments.pop_front();
        if self.segments.is_empty() {
            self.file = None;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
