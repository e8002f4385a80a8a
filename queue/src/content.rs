//! Reading the content of a message in pieces, its checksum verified on the way.

use std::io;
use std::sync::Arc;

use crc32fast::Hasher;

use crate::fs::FsFile;
use crate::id::QueueId;

/// The content of one message. It stays readable when the message is retired meanwhile.
///
/// Read from the first octet to the last, altered content is an error of kind `InvalidData` before
/// the last piece is handed out, so whoever sends while reading never completes it.
pub struct ContentReader {
    id: QueueId,
    octets: u64,
    crc: u32,
    source: Source,
    hasher: Hasher,
    /// Where the next piece must start to be part of a full sequential read.
    next: u64,
}

/// The content of one message from its first octet to its last.
pub struct ContentStream {
    reader: ContentReader,
    offset: u64,
}

pub(crate) enum Source {
    /// Just committed: these octets never were on disk only.
    Memory(Arc<Vec<u8>>),
    /// From `start` of a file.
    File { file: Arc<dyn FsFile>, start: u64, place: String },
}

impl ContentReader {
    pub(crate) fn new(id: QueueId, octets: u64, crc: u32, source: Source) -> ContentReader {
        ContentReader { id, octets, crc, source, hasher: Hasher::new(), next: 0 }
    }

    /// Returns the length in octets.
    pub fn octets(&self) -> u64 {
        self.octets
    }

    /// Returns it as a stream.
    pub fn stream(self) -> ContentStream {
        ContentStream { reader: self, offset: 0 }
    }

    /// Returns the whole content where it is still in memory: no read, no copy.
    pub fn in_memory(&self) -> Option<&[u8]> {
        match &self.source {
            Source::Memory(content) => Some(content),
            Source::File { .. } => None,
        }
    }

    /// Reads at `offset`; returns how much, 0 at the end. Less than the buffer holds is read only at
    /// the end. Reading from offset 0 begins a new verification.
    pub fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.octets.saturating_sub(offset);
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let buffer = &mut buffer[..want];
        match &self.source {
            Source::Memory(content) => {
                let from = offset.min(self.octets) as usize;
                buffer.copy_from_slice(&content[from..from + want]);
            }
            Source::File { file, start, place } => {
                if crate::fs::read_full(&**file, start + offset, buffer)? < want {
                    return Err(self.damaged(place, "it ends too early"));
                }
                if offset == 0 {
                    (self.hasher, self.next) = (Hasher::new(), 0);
                }
                if offset == self.next {
                    self.hasher.update(buffer);
                    self.next += want as u64;
                    if self.next == self.octets && self.hasher.clone().finalize() != self.crc {
                        return Err(self.damaged(place, "it fails the checksum"));
                    }
                }
            }
        }
        Ok(want)
    }

    /// Returns the file it is read from, relative to the queue's directory; empty for memory.
    pub(crate) fn place(&self) -> &str {
        match &self.source {
            Source::Memory(_) => "",
            Source::File { place, .. } => place,
        }
    }

    fn damaged(&self, place: &str, what: &str) -> io::Error {
        let text = format!("the content of message {} is damaged on disk ({place}: {what})", self.id);
        io::Error::new(io::ErrorKind::InvalidData, text)
    }
}

impl io::Read for ContentStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.reader.read_at(self.offset, buffer)?;
        self.offset += n as u64;
        Ok(n)
    }
}
