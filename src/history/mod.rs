//! What this member of a mesh has taken responsibility for: message and recipient, kept on disk for as
//! long as a repeat may come. A member that repeats a message after a lost reply hears 250, and nothing
//! is delivered twice.
//!
//! The order is fixed: the queue commits, then the history remembers, then a member hears its 250. A crash
//! between the first two leaves a message that only the queue knows of, so what the queue took in last
//! is remembered whenever the history is opened.

mod log;

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use postroad_mesh::history::{Entry, History, Seen};
use postroad_mesh::{MeshMessageId, Passage};
use postroad_queue::{Item, Queue, QueueId, UnixMillis};
use tracing::{info, warn};

use log::Log;

/// How long a node remembers that delivers mail or sends it out: longer than any sender tries.
pub const AGE_MS: u64 = 30 * 86_400_000;
/// How long one remembers that only passes mail on.
pub const AGE_PASSING_MS: u64 = 2 * 86_400_000;
/// The most entries, of some 60 octets in memory and 32 on disk.
const ENTRIES_MAX: usize = 2_000_000;
/// What the queue took in up to so long before the last entry may be missing in the history: a message
/// has its id from the begin of its content on.
const COMMIT_MS_MAX: u64 = 3 * 3_600_000;
/// Messages read from the queue at a time.
const BATCH: usize = 1000;
/// How long what was remembered may stay in the memory of the system.
const SYNC_AFTER: Duration = Duration::from_secs(1);
/// Entries that may wait to be written.
const UNWRITTEN_MAX: usize = 256;

/// The history. Clones are handles to the same one.
#[derive(Clone)]
pub struct Repeats(Arc<Inner>);

struct Inner {
    directory: PathBuf,
    queue: Queue,
    age_ms: u64,
    opened: Mutex<Option<Opened>>,
}

struct Opened {
    history: History,
    log: Log,
    /// What sessions are receiving now: the same must not be received twice at a time.
    claimed: HashSet<Entry>,
    /// Of mail that came in here first, with the time from which their age counts: no member can repeat what
    /// none has heard of, so they are written many at a time.
    unwritten: Vec<(Entry, u64)>,
    /// Whether a sync is on its way.
    syncing: bool,
}

/// What a message that comes from a member is.
pub enum Claimed {
    /// New for the recipients at these places.
    New {
        /// The places.
        places: Vec<usize>,
        /// To be kept until the message is committed.
        claim: Claim,
        /// It is older than the history reaches: nobody can say whether it was taken before.
        is_late: bool,
    },
    /// It was taken for every recipient.
    Taken,
    /// It comes in here, as the same did before, to one of these recipients at least.
    Again,
    /// Another session is receiving it.
    Busy,
}

/// The right to receive a message for some recipients. Dropped without [`Claim::keep`], nothing of it
/// is remembered.
pub struct Claim {
    repeats: Repeats,
    message: MeshMessageId,
    entries: Vec<Entry>,
    from_member: bool,
}

impl Repeats {
    /// Prepares a history below `directory`, which is opened when it is first needed: a host without a
    /// mesh has none. It remembers for `age_ms`.
    pub fn new(directory: &Path, queue: Queue, age_ms: u64) -> Repeats {
        let opened = Mutex::new(None);
        Repeats(Arc::new(Inner { directory: directory.to_owned(), queue, age_ms, opened }))
    }

    /// Reads what was written down, and what the queue took in since. Blocks.
    ///
    /// # Errors
    /// The directory cannot be made or read.
    pub fn open(&self, now: UnixMillis) -> io::Result<()> {
        self.opened(now).map(drop)
    }

    /// Claims a message for these recipients, in the order of its envelope. From a member the
    /// recipients count for which it is new; what comes in here first counts for all of them or for none.
    ///
    /// # Errors
    /// The history cannot be opened.
    pub fn claim(
        &self,
        message: &MeshMessageId,
        recipients: &[String],
        from_member: bool,
        now: UnixMillis,
    ) -> io::Result<Claimed> {
        let mut guard = self.opened(now)?;
        let opened = guard.as_mut().expect("it was just opened");
        let (mut places, mut entries, mut is_late) = (Vec::new(), Vec::new(), false);
        for (place, recipient) in recipients.iter().enumerate() {
            let entry = Entry::new(message, recipient);
            match opened.history.seen_entry(&entry, message, now.0) {
                Seen::Already if from_member => continue,
                Seen::Already => return Ok(Claimed::Again),
                Seen::TooOld => is_late = from_member,
                Seen::New => {}
            }
            if opened.claimed.contains(&entry) {
                return Ok(if from_member { Claimed::Busy } else { Claimed::Again });
            }
            places.push(place);
            entries.push(entry);
        }
        if places.is_empty() {
            return Ok(Claimed::Taken);
        }
        opened.claimed.extend(&entries);
        let claim = Claim { repeats: self.clone(), message: *message, entries, from_member };
        Ok(Claimed::New { places, claim, is_late })
    }

    fn opened(&self, now: UnixMillis) -> io::Result<MutexGuard<'_, Option<Opened>>> {
        let mut guard = self.lock();
        if guard.is_none() {
            let mut history = History::new(self.0.age_ms, ENTRIES_MAX);
            let mut log = Log::open(&self.0.directory, self.0.age_ms, now, |entry, counts_from| {
                history.recall(entry, counts_from, now.0);
            })?;
            let known = history.len();
            self.recall_queued(&mut history, &mut log, now);
            info!(entries = history.len(), from_queue = history.len() - known, "history of the mesh opened");
            *guard = Some(Opened { history, log, claimed: HashSet::new(), unwritten: Vec::new(), syncing: false });
        }
        Ok(guard)
    }

    /// Remembers what the queue took in last.
    fn recall_queued(&self, history: &mut History, log: &mut Log, now: UnixMillis) {
        let since = log.last_ms().saturating_sub(COMMIT_MS_MAX);
        let mut after = Some(QueueId::next(QueueId::from_u64(0), UnixMillis(since)));
        loop {
            let ids = self.0.queue.ids(after, BATCH);
            let Some(last) = ids.last() else { return };
            after = Some(*last);
            for item in self.0.queue.load_many(&ids).filter_map(|(_, item)| item.ok()) {
                let Some(message) = name_of(&item) else { continue };
                for recipient in item.envelope.recipients() {
                    let recipient = recipient.forward_path.to_string();
                    if history.seen(&message, &recipient, now.0) != Seen::Already {
                        log.append(&[(Entry::new(&message, &recipient), history.counts_from(&message, now.0))], now);
                        history.remember(&message, &recipient, now.0);
                    }
                }
            }
        }
    }

    /// Writes and syncs what was remembered a while later, once for all that is remembered until then.
    fn sync_later(&self, opened: &mut Opened, now: UnixMillis) {
        if std::mem::replace(&mut opened.syncing, true) {
            return;
        }
        let repeats = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(SYNC_AFTER).await;
            let file = {
                let mut guard = repeats.lock();
                let Some(opened) = guard.as_mut() else { return };
                opened.syncing = false;
                opened.write_rest(now);
                opened.log.file()
            };
            let synced = tokio::task::spawn_blocking(move || file.map_or(Ok(()), |file| file.sync_data()));
            if let Ok(Err(error)) = synced.await {
                warn!(%error, "the history of the mesh cannot be synced; after a power cut some mail may come twice");
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, Option<Opened>> {
        self.0.opened.lock().expect("nothing panics while it holds the history")
    }
}

impl Opened {
    fn write_rest(&mut self, now: UnixMillis) {
        self.log.append(&self.unwritten, now);
        self.unwritten.clear();
    }
}

/// Returns the name of a message that came through a mesh.
fn name_of(item: &Item) -> Option<MeshMessageId> {
    let token = item.envelope.params.passage.as_ref()?;
    token.as_str().parse::<Passage>().ok().map(|passage| passage.message)
}

impl Claim {
    /// Remembers the message: it is committed. What cannot be written down is remembered in memory
    /// alone, and said.
    pub fn keep(mut self, now: UnixMillis) {
        let entries = std::mem::take(&mut self.entries);
        let mut guard = self.repeats.lock();
        let Some(opened) = guard.as_mut() else { return };
        let counts_from = opened.history.counts_from(&self.message, now.0);
        for entry in entries {
            opened.claimed.remove(&entry);
            opened.history.recall(entry, counts_from, now.0);
            opened.unwritten.push((entry, counts_from));
        }
        if self.from_member || opened.unwritten.len() >= UNWRITTEN_MAX {
            opened.write_rest(now);
        }
        self.repeats.sync_later(opened, now);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.entries.is_empty() {
            return;
        }
        if let Some(opened) = self.repeats.lock().as_mut() {
            for entry in &self.entries {
                opened.claimed.remove(entry);
            }
        }
    }
}

#[cfg(test)]
mod tests;
