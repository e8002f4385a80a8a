//! Messages that something is being done about: one copy of each item in memory, whoever asks.
//!
//! An item is loaded when the first attempt (or admin) needs it and forgotten with the last one,
//! so memory follows what is in flight, not what is queued.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use postroad_queue::{Item, LoadError, Queue, QueueId};
use tokio::sync::Mutex as AsyncMutex;

/// The items in use.
pub struct ActiveItems {
    queue: Queue,
    entries: Mutex<HashMap<QueueId, Entry>>,
}

struct Entry {
    users: usize,
    item: Arc<AsyncMutex<Arc<Item>>>,
}

/// The right to read and change one item; given back when dropped.
pub struct Active<'a> {
    items: &'a ActiveItems,
    id: QueueId,
    /// The item as it is now. Whoever changes it holds the lock until the change is recorded.
    pub item: Arc<AsyncMutex<Arc<Item>>>,
}

impl ActiveItems {
    /// Begins with none.
    pub fn new(queue: Queue) -> ActiveItems {
        ActiveItems { queue, entries: Mutex::default() }
    }

    /// Gives access to an item, from memory when it is in use already.
    ///
    /// # Errors
    /// The queue cannot load it.
    pub fn get(&self, id: QueueId) -> Result<Active<'_>, LoadError> {
        let mut entries = self.lock();
        let item = match entries.get_mut(&id) {
            Some(entry) => {
                entry.users += 1;
                entry.item.clone()
            }
            None => {
                // Under the lock, so that two who come at once share one copy.
                let item = Arc::new(AsyncMutex::new(self.queue.load(id)?));
                entries.insert(id, Entry { users: 1, item: item.clone() });
                item
            }
        };
        Ok(Active { items: self, id, item })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<QueueId, Entry>> {
        self.entries.lock().expect("nothing panics while it holds the items in use")
    }
}

impl Active<'_> {
    /// Returns whether nobody else uses the item now.
    pub fn is_only(&self) -> bool {
        self.items.lock().get(&self.id).is_some_and(|entry| entry.users == 1)
    }
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        let mut entries = self.items.lock();
        if let Some(entry) = entries.get_mut(&self.id) {
            entry.users -= 1;
            if entry.users == 0 {
                entries.remove(&self.id);
            }
        }
    }
}
