//! What was just committed, kept in memory so that its first delivery reads nothing from the disk.
//!
//! Bounded by octets and by count; the oldest goes first. Nothing depends on it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::id::QueueId;
use crate::item::Item;

/// What a recipient of a message counts as.
const RECIPIENT_OCTETS: usize = 512;
/// The most octets kept.
const CONTENT_OCTETS_MAX: usize = 16 << 20;
/// The most messages kept.
const ITEMS_MAX: usize = 4096;

/// Messages just committed.
#[derive(Default)]
pub(crate) struct Cache {
    recent: HashMap<QueueId, Recent>,
    order: VecDeque<QueueId>,
    octets: usize,
}

/// One of them.
#[derive(Clone)]
pub(crate) struct Recent {
    /// As committed; none once another state was recorded.
    pub item: Option<Arc<Item>>,
    /// The whole content; none when it was too large to keep.
    pub content: Option<Arc<Vec<u8>>>,
}

impl Cache {
    /// Keeps a message.
    pub(crate) fn insert(&mut self, id: QueueId, recent: Recent) {
        self.octets += octets(&recent);
        self.recent.insert(id, recent);
        self.order.push_back(id);
        while self.octets > CONTENT_OCTETS_MAX || self.order.len() > ITEMS_MAX {
            match self.order.pop_front() {
                Some(oldest) => self.remove(oldest),
                None => break,
            }
        }
    }

    /// Returns a message that is kept.
    pub(crate) fn get(&self, id: QueueId) -> Option<&Recent> {
        self.recent.get(&id)
    }

    /// Forgets the item, whose state has changed; the content stays.
    pub(crate) fn forget_item(&mut self, id: QueueId) {
        if let Some(recent) = self.recent.get_mut(&id) {
            self.octets -= item_octets(recent);
            recent.item = None;
        }
    }

    /// Forgets a message.
    pub(crate) fn remove(&mut self, id: QueueId) {
        if let Some(recent) = self.recent.remove(&id) {
            self.octets -= octets(&recent);
        }
    }

    /// Forgets everything and gives the memory back.
    pub(crate) fn clear(&mut self) {
        *self = Cache::default();
    }
}

fn octets(recent: &Recent) -> usize {
    recent.content.as_ref().map_or(0, |content| content.capacity()) + item_octets(recent)
}

fn item_octets(recent: &Recent) -> usize {
    recent.item.as_ref().map_or(0, |item| RECIPIENT_OCTETS * item.envelope.recipients().len())
}
