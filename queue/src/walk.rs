//! Reading very many messages one after the other: all of them, or the few that have certain words in them.
//!
//! One walk reads ahead in the segments, so it is worth the more the longer it is.

use std::slice;
use std::sync::Arc;

use crate::ahead::Ahead;
use crate::error::LoadError;
use crate::id::QueueId;
use crate::index::Entry;
use crate::item::Item;
use crate::read::read_item_if;
use crate::spool::{Queue, lock};
use crate::words::Words;

/// Messages on their way from the disk.
pub(crate) struct Walk<'a> {
    queue: &'a Queue,
    ids: slice::Iter<'a, QueueId>,
    words: Words,
    ahead: Ahead<'a>,
    /// What was read of the message looked at, and that in small letters: kept for their memory.
    record: Vec<u8>,
    folded: Vec<u8>,
}

impl<'a> Walk<'a> {
    pub(crate) fn new(queue: &'a Queue, ids: &'a [QueueId], words: Words) -> Walk<'a> {
        let ahead = queue.0.read_ahead();
        Walk { queue, ids: ids.iter(), words, ahead, record: Vec::new(), folded: Vec::new() }
    }

    /// Reads a message; `None` when the words are not in it.
    fn read(&mut self, id: QueueId, entry: &Entry) -> Result<Option<Arc<Item>>, LoadError> {
        let read = |number, offset, buffer: &mut [u8]| self.ahead.read(number, offset, buffer);
        let is_meant = |meta: &[u8]| self.words.are_in(meta, &mut self.folded);
        Ok(read_item_if(id, entry, &read, is_meant, &mut self.record)?.map(Arc::new))
    }
}

impl Iterator for Walk<'_> {
    type Item = (QueueId, Result<Arc<Item>, LoadError>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let id = *self.ids.next()?;
            let Some(entry) = lock(&self.queue.0.index).get(id) else { continue };
            // It may have been written, or moved, since the window was read.
            match self.read(id, &entry).or_else(|_| self.queue.load(id).map(Some)) {
                Ok(None) | Err(LoadError::Unknown(_)) => {}
                Ok(Some(item)) => return Some((id, Ok(item))),
                Err(error) => return Some((id, Err(error))),
            }
        }
    }
}
