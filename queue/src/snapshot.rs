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
use crate::read::{self, VerifyReport};
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

    /// Reads the queue in this directory to its last octet: what [`crate::Queue::repair`] would find.
    pub fn read_whole(path: &Path) -> Result<Snapshot, OpenError> {
        Snapshot::gathered(Arc::new(OsFs::open_read_only(path)?), Depth::Whole)
    }

    /// Reads the queue behind `fs`.
    pub fn of(fs: Arc<dyn Fs>) -> Result<Snapshot, OpenError> {
        Snapshot::gathered(fs, Depth::Quick)
    }

    fn gathered(fs: Arc<dyn Fs>, depth: Depth) -> Result<Snapshot, OpenError> {
        let mut tries = 1;
        let gathered = loop {
            match gather(&*fs, depth) {
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

    /// Reads every message and its whole content and compares the checksums; `progress` gets how many
    /// messages are done.
    pub fn verify(&self, progress: &mut dyn FnMut(usize)) -> VerifyReport {
        let next = |after| self.index.ids_after(after, 256);
        read::verify(&next, &|id| Ok((self.load(id)?, self.content(id)?)), progress)
    }

    fn entry(&self, id: QueueId) -> Result<Entry, LoadError> {
        self.index.get(id).ok_or(LoadError::Unknown(id))
    }

    fn segment(&self, number: u32) -> std::io::Result<Arc<dyn crate::fs::FsFile>> {
        self.fs.open(Dir::Log, &segment_name(number), Access::Read)
    }
}
