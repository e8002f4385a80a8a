//! Every durable operation the queue makes, as a trait, and the system's file system behind it.
//!
//! The queue names files by directory and name only; nothing here follows a symbolic link or leaves
//! the queue's directory. What is written is durable only after [`FsFile::sync`], a directory entry
//! only after [`Fs::sync_dir`]. Tests put a simulated disk behind the same traits.

use std::fmt;
use std::io::{self, IoSlice};
use std::sync::Arc;

mod os;

pub use os::OsFs;

/// The directories of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dir {
    /// Segments.
    Log,
    /// Content too large for a segment.
    Content,
    /// What was found damaged.
    Quarantine,
    /// What stands in each sealed segment.
    Summary,
}

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    Read,
    /// Reading and writing.
    Write,
}

/// The directory tree of one queue.
pub trait Fs: Send + Sync {
    /// Returns the path of the queue's directory, for messages to people.
    fn place(&self) -> String;

    /// Returns the names of the files in `dir`, in no particular order.
    fn list(&self, dir: Dir) -> io::Result<Vec<String>>;

    /// Makes a new file for reading and writing; fails with `AlreadyExists` where there is one. It
    /// survives a crash only after [`Fs::sync_dir`].
    fn create(&self, dir: Dir, name: &str) -> io::Result<Arc<dyn FsFile>>;

    /// Opens a file that exists.
    fn open(&self, dir: Dir, name: &str, access: Access) -> io::Result<Arc<dyn FsFile>>;

    /// Moves a file to another directory under another name; both directories want a sync.
    fn rename(&self, from: (Dir, &str), to: (Dir, &str)) -> io::Result<()>;

    /// Removes a file. Who has it open goes on reading it.
    fn remove(&self, dir: Dir, name: &str) -> io::Result<()>;

    /// Makes everything created in and removed from `dir` so far durable.
    fn sync_dir(&self, dir: Dir) -> io::Result<()>;

    /// Returns how many octets are free for us on the disk.
    fn free_octets(&self) -> io::Result<u64>;
}

/// An open file. Positions are absolute: threads share it.
pub trait FsFile: Send + Sync {
    /// Returns its length in octets.
    fn octets(&self) -> io::Result<u64>;

    /// Reads at `offset`; returns how much, 0 at the end.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes all pieces one behind the other from `offset`. After an error any part of them may
    /// have been written.
    fn write_at(&self, offset: u64, pieces: &mut [IoSlice<'_>]) -> io::Result<()>;

    /// Reserves space so that the file is `octets` long and later writes need none; what was not
    /// written reads as zeros. Does nothing where the file system cannot.
    fn allocate(&self, octets: u64) -> io::Result<()>;

    /// Cuts the file to `octets`, or extends it with zeros.
    fn set_octets(&self, octets: u64) -> io::Result<()>;

    /// Asks the system to start writing this range to the disk; a hint without a promise.
    fn start_writeback(&self, offset: u64, octets: u64);

    /// Makes all that was written durable, the length included.
    fn sync(&self) -> io::Result<()>;
}

impl Dir {
    /// All directories.
    pub const ALL: [Dir; 4] = [Dir::Log, Dir::Content, Dir::Quarantine, Dir::Summary];

    /// Returns its name under the queue's directory.
    pub const fn name(self) -> &'static str {
        match self {
            Dir::Log => "log",
            Dir::Content => "content",
            Dir::Quarantine => "quarantine",
            Dir::Summary => "summary",
        }
    }
}

impl fmt::Display for Dir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Reads from `offset` until the buffer is full or the file ends; returns how much.
pub(crate) fn read_full(file: &dyn FsFile, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(offset + done as u64, &mut buffer[done..]) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}
