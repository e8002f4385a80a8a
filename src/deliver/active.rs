//! Messages that something is being done about: one copy of each in memory, whoever asks.
//!
//! A message is loaded when the first attempt (or admin) needs it and forgotten with the last one,
//! so memory follows what is in flight, not what is queued. What the disk has no room for is kept.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use postroad_queue::{Item, LoadError, Queue, QueueId};
use tokio::sync::Mutex as AsyncMutex;

/// The messages in use.
pub struct ActiveItems {
    queue: Queue,
    entries: Mutex<HashMap<QueueId, Entry>>,
}

struct Entry {
    users: usize,
    current: Arc<AsyncMutex<Current>>,
}

/// A message as it is now. Whoever changes it holds the lock until the change is recorded, or notes that it is not.
pub struct Current {
    /// The message.
    pub item: Arc<Item>,
    /// Places of the recipients that an attempt is under way for: no other may try them.
    pub trying: Vec<usize>,
    /// Attempts under way. The last one to end tells the sender what all of them came to.
    pub attempts: usize,
    /// Whether it has left the queue.
    pub is_gone: bool,
    /// Whether the disk has not taken yet what an attempt came to: until it does this copy is the only one
    /// that knows, and nobody is tried again.
    pub is_unrecorded: bool,
}

/// The right to read and change one message; given back when dropped.
pub struct Active<'a> {
    items: &'a ActiveItems,
    id: QueueId,
    /// The message.
    pub current: Arc<AsyncMutex<Current>>,
}

impl ActiveItems {
    /// Begins with none.
    pub fn new(queue: Queue) -> ActiveItems {
        ActiveItems { queue, entries: Mutex::default() }
    }

    /// Gives access to a message, from memory when it is in use already.
    ///
    /// # Errors
    /// The queue cannot load it.
    pub fn get(&self, id: QueueId) -> Result<Active<'_>, LoadError> {
        let mut entries = self.lock();
        let current = match entries.get_mut(&id) {
            Some(entry) => {
                entry.users += 1;
                entry.current.clone()
            }
            None => {
                // Under the lock, so that two who come at once share one copy.
                let item = self.queue.load(id)?;
                let current = Current { item, trying: Vec::new(), attempts: 0, is_gone: false, is_unrecorded: false };
                let current = Arc::new(AsyncMutex::new(current));
                entries.insert(id, Entry { users: 1, current: current.clone() });
                current
            }
        };
        Ok(Active { items: self, id, current })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<QueueId, Entry>> {
        self.entries.lock().expect("nothing panics while it holds the messages in use")
    }
}

impl Current {
    /// Ends an attempt for these recipients.
    pub fn end_attempt(&mut self, places: &[usize]) {
        self.attempts = self.attempts.saturating_sub(1);
        self.trying.retain(|place| !places.contains(place));
    }
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        let mut entries = self.items.lock();
        if let Some(entry) = entries.get_mut(&self.id) {
            entry.users -= 1;
            // Whoever has used it has let go of its lock.
            let is_owed = |current: &Current| current.is_unrecorded && !current.is_gone;
            if entry.users == 0 && !entry.current.try_lock().is_ok_and(|current| is_owed(&current)) {
                entries.remove(&self.id);
            }
        }
    }
}
