//! Reading a queue without its agent: for `queue list` and `verify` while the agent is down.
//!
//! Takes no lock and writes nothing. Beside a running agent it shows one moment or a mixture of two
//! close ones; what is being written then looks torn and is left out.

use std::path::Path;
use std::sync::Arc;

use crate::content::ContentReader;
use crate::error::{LoadError, OpenError};
use crate::fs::{Access, Dir, Fs, OsFs};
use crate::gather::{Depth, gather};
use crate::id::QueueId;
use crate::index::{Entry, Index};
use crate::item::Item;
use crate::read;
use crate::record::segment_name;
use crate::recovery::Damage;

/// A queue as its files show it.
pub struct Snapshot {
    fs: Arc<dyn Fs>,
    index: Index,
    damage: Vec<Damage>,
}

/// How often reading begins again because the agent removed a segment meanwhile.
const TRIES: usize = 4;

impl Snapshot {
    /// Reads the queue in this directory.
    pub fn read(path: &Path) -> Result<Snapshot, OpenError> {
        Snapshot::of(Arc::new(OsFs::open_read_only(path)?))
    }

    /// Reads the queue in this directory to its last octet and compares every checksum: what
    /// [`crate::Queue::repair`] would find. May take long; `progress` gets how many octets are read, and
    /// of how many.
    pub fn read_whole(path: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Snapshot, OpenError> {
        Snapshot::gathered(Arc::new(OsFs::open_read_only(path)?), Depth::Whole, progress)
    }

    /// Reads the queue behind `fs`.
    pub fn of(fs: Arc<dyn Fs>) -> Result<Snapshot, OpenError> {
        Snapshot::gathered(fs, Depth::Quick, &mut |_, _| {})
    }

    fn gathered(fs: Arc<dyn Fs>, depth: Depth, progress: &mut dyn FnMut(u64, u64)) -> Result<Snapshot, OpenError> {
        let mut tries = 1;
        let gathered = loop {
            match gather(&*fs, depth, progress) {
                Err(OpenError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound && tries < TRIES => {
                    tries += 1;
                }
                result => break result?,
            }
        };
        let damage = gathered.damage();
        Ok(Snapshot { fs, index: gathered.index, damage })
    }

    /// Returns the ids of all messages, oldest first.
    pub fn ids(&self) -> impl Iterator<Item = QueueId> {
        self.index.ids()
    }

    /// Returns how many messages there are.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Returns the octets of content of all messages.
    pub fn content_octets(&self) -> u64 {
        self.index.content_octets
    }

    /// Returns whether there is no message.
    pub fn is_empty(&self) -> bool {
        self.index.len() == 0
    }

    /// Returns what is not as it was written. The next start of the agent sets it aside.
    pub fn damage(&self) -> &[Damage] {
        &self.damage
    }

    /// Reads a message, all but its content.
    pub fn load(&self, id: QueueId) -> Result<Item, LoadError> {
        read::read_item(id, &self.entry(id)?, &read::from(&|number| self.segment(number)))
    }

    /// Opens the content of a message.
    pub fn content(&self, id: QueueId) -> Result<ContentReader, LoadError> {
        read::open_content(&*self.fs, id, &self.entry(id)?, &|number| self.segment(number))
    }

    fn entry(&self, id: QueueId) -> Result<Entry, LoadError> {
        self.index.get(id).ok_or(LoadError::Unknown(id))
    }

    fn segment(&self, number: u32) -> std::io::Result<Arc<dyn crate::fs::FsFile>> {
        self.fs.open(Dir::Log, &segment_name(number), Access::Read)
    }
}
