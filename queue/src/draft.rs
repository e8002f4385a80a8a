//! A message being received: content in memory while it is small, in a file of its own when it grows.
//!
//! Nothing of a draft is durable before its commit; dropping it discards it. Memory for each draft is
//! bounded by [`Options::inline_octets_max`](crate::Options), for all drafts together by
//! [`Options::draft_memory_octets_max`](crate::Options).

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crc32fast::Hasher;
use postroad_smtp::Envelope;

use crate::codec;
use crate::committer::{Content, Pending};
use crate::error::{AppendError, CommitError, is_full};
use crate::fs::{Dir, FsFile};
use crate::id::{QueueId, UnixMillis};
use crate::item::{Item, Origin, State};
use crate::record::META_OCTETS_MAX;
use crate::spool::{Spool, lock};
use crate::syncers;

/// A message being received.
pub struct Draft {
    spool: Arc<Spool>,
    id: QueueId,
    hasher: Hasher,
    octets: u64,
    memory: Vec<u8>,
    /// What of it counts in the spool's total.
    charge: Charge,
    file: Option<Spill>,
    void: bool,
    /// The message will wait for an admin.
    held: bool,
}

/// Octets counted as memory of content that is not on disk yet, for as long as this is kept.
pub(crate) struct Charge {
    spool: Arc<Spool>,
    octets: usize,
}

/// The file of a draft that has grown too large for memory.
struct Spill {
    file: Arc<dyn FsFile>,
    /// Octets written so far; the rest is still in memory.
    written: u64,
    /// How far the system was asked to start writing.
    started: u64,
}

/// Proof that a message is on stable storage. Only the queue makes it.
#[derive(Debug, PartialEq, Eq)]
pub struct Committed(Arc<Item>);

/// Octets written at once to the file of a large draft.
const SPILL_OCTETS: usize = 128 << 10;
/// Octets after which the system is asked to start writing a large draft to the disk.
const WRITEBACK_OCTETS: u64 = 1 << 20;
/// What a draft may hold in memory once all drafts together hold too much.
const TIGHT_OCTETS: usize = 8 << 10;

impl Committed {
    pub(crate) fn new(item: Arc<Item>) -> Committed {
        Committed(item)
    }

    /// Returns the message's name in the queue.
    pub fn id(&self) -> QueueId {
        self.0.id
    }

    /// Returns the octets of its content.
    pub fn content_octets(&self) -> u64 {
        self.0.content_octets
    }

    /// Returns the message as it was committed.
    pub fn item(&self) -> &Item {
        &self.0
    }
}

impl Draft {
    pub(crate) fn new(spool: Arc<Spool>, id: QueueId) -> Draft {
        Draft {
            charge: Charge::new(spool.clone()),
            spool,
            id,
            hasher: Hasher::new(),
            octets: 0,
            memory: Vec::new(),
            file: None,
            void: false,
            held: false,
        }
    }

    /// Returns the id the message will have.
    pub fn id(&self) -> QueueId {
        self.id
    }

    /// Returns the octets appended so far.
    pub fn content_octets(&self) -> u64 {
        self.octets
    }

    /// Appends a piece of content. After an error the draft is void: it cannot be committed.
    ///
    /// May write to a file, buffered by the system and never synced here.
    pub fn append(&mut self, piece: &[u8]) -> Result<(), AppendError> {
        if self.void {
            return Err(AppendError::Void);
        }
        self.hasher.update(piece);
        self.octets += piece.len() as u64;
        if self.file.is_none() && self.memory.len() + piece.len() <= self.memory_max() {
            self.memory.extend_from_slice(piece);
            self.charge.set(self.memory.capacity());
            return Ok(());
        }
        let result = self.append_to_file(piece);
        self.void = result.is_err();
        result.map_err(|e| if is_full(&e) { AppendError::Full } else { AppendError::Io { id: self.id, source: e } })
    }

    /// Lets the message wait for an admin: no attempt is made until it is released.
    pub fn hold(&mut self) {
        self.held = true;
    }

    /// Hands the message to the committer. `done` is called once, on the committer's thread, when it
    /// is on stable storage or refused. `now` is when it arrived, `expires` when we give up on it.
    /// What its sender asks for changes that: a later release (RFC 4865) moves it, and it may have to
    /// go back sooner (RFC 2852).
    pub fn commit(
        mut self,
        envelope: Envelope,
        origin: Origin,
        expires: UnixMillis,
        now: UnixMillis,
        done: impl FnOnce(Result<Committed, CommitError>) + Send + 'static,
    ) {
        let released = envelope.params.release.map_or(now, |release| UnixMillis(release.unix_ms(now.0)));
        let expires = expires.plus(released.since(now));
        let state = State { held: self.held, ..State::fresh(envelope.recipients().len(), released, expires) };
        let mut item = Item { id: self.id, arrived: now, envelope, origin, content_octets: self.octets, state };
        if let Some(by) = item.deliver_by().filter(|_| item.returns_late()) {
            item.state.expires = by.min(expires);
        }
        match self.prepare(&item) {
            Err(error) => done(Err(error)),
            Ok((meta, content)) => {
                let content_crc = std::mem::take(&mut self.hasher).finalize();
                let meta_crc = crc32fast::hash(&meta);
                let item = Arc::new(item);
                let mut inbox = lock(&self.spool.inbox);
                if inbox.stopped {
                    drop(inbox);
                    // What `prepare` took over is no longer removed by the drop of the draft.
                    if matches!(content, Content::Spilled(_)) {
                        let _ = self.spool.fs.remove(Dir::Content, &self.id.to_string());
                    }
                    return done(Err(CommitError::Stopped));
                }
                let to_sync = matches!(content, Content::Spilled(_));
                let charge = std::mem::replace(&mut self.charge, Charge::new(self.spool.clone()));
                let pending = Pending { item, meta, meta_crc, content, content_crc, charge, done: Box::new(done) };
                if to_sync {
                    return syncers::hand_over(&self.spool, inbox, pending);
                }
                inbox.commits.push_back(pending);
                self.spool.wake(inbox);
            }
        }
    }

    /// Makes of the draft what the committer writes.
    fn prepare(&mut self, item: &Item) -> Result<(Vec<u8>, Content), CommitError> {
        self.spool.check_poison().map_err(CommitError::Poisoned)?;
        if self.void {
            return Err(CommitError::Void);
        }
        let mut meta = Vec::with_capacity(256 + 64 * item.envelope.recipients().len());
        codec::encode_item(item, &mut meta);
        if meta.len() > META_OCTETS_MAX {
            return Err(CommitError::TooLarge { octets: meta.len(), max: META_OCTETS_MAX });
        }
        if self.file.is_some() {
            self.write_out(&[]).map_err(|e| if is_full(&e) { CommitError::Full } else { CommitError::Void })?;
        }
        let content = match self.file.take() {
            Some(spill) => {
                // On its way to the disk before the committer asks for it to be there.
                spill.file.start_writeback(spill.started, spill.written - spill.started);
                Content::Spilled(spill.file)
            }
            None => Content::Inline(std::mem::take(&mut self.memory)),
        };
        Ok((meta, content))
    }

    /// Returns whether all drafts together hold too much.
    fn is_tight(&self) -> bool {
        let max = self.spool.draft_octets_max.load(Ordering::Relaxed);
        self.spool.draft_octets.load(Ordering::Relaxed) > max
    }

    fn memory_max(&self) -> usize {
        let max = self.spool.options.inline_octets_max;
        if self.is_tight() { TIGHT_OCTETS.min(max) } else { max }
    }

    fn append_to_file(&mut self, piece: &[u8]) -> std::io::Result<()> {
        if self.file.is_none() {
            let file = self.spool.fs.create(Dir::Content, &self.id.to_string())?;
            self.file = Some(Spill { file, written: 0, started: 0 });
        }
        let at_once = if self.is_tight() { TIGHT_OCTETS } else { SPILL_OCTETS };
        if self.memory.len() + piece.len() >= at_once {
            return self.write_out(piece);
        }
        self.memory.extend_from_slice(piece);
        self.charge.set(self.memory.capacity());
        Ok(())
    }

    /// Writes what is in memory, and `piece` behind it, to the file.
    fn write_out(&mut self, piece: &[u8]) -> std::io::Result<()> {
        let Some(spill) = &mut self.file else { return Ok(()) };
        spill.file.write_at(spill.written, &mut [IoSlice::new(&self.memory), IoSlice::new(piece)])?;
        spill.written += (self.memory.len() + piece.len()) as u64;
        if spill.written - spill.started >= WRITEBACK_OCTETS {
            spill.file.start_writeback(spill.started, spill.written - spill.started);
            spill.started = spill.written;
        }
        self.memory.clear();
        self.memory.shrink_to(if self.is_tight() { TIGHT_OCTETS } else { SPILL_OCTETS });
        self.charge.set(self.memory.capacity());
        Ok(())
    }
}

impl Charge {
    fn new(spool: Arc<Spool>) -> Charge {
        Charge { spool, octets: 0 }
    }

    fn set(&mut self, octets: usize) {
        if octets > self.octets {
            self.spool.draft_octets.fetch_add(octets - self.octets, Ordering::Relaxed);
        } else {
            self.spool.draft_octets.fetch_sub(self.octets - octets, Ordering::Relaxed);
        }
        self.octets = octets;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.set(0);
    }
}

impl Drop for Draft {
    /// Discards what was not handed to the committer.
    fn drop(&mut self) {
        if self.file.take().is_some() {
            // A file that stays behind is removed when the queue is next opened.
            let _ = self.spool.fs.remove(Dir::Content, &self.id.to_string());
        }
    }
}
