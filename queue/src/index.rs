//! What is where: the messages in the queue and the segments that hold them. In memory only, rebuilt
//! at every open.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::entries::{Entries, Packed};
use crate::fs::FsFile;
use crate::id::QueueId;
use crate::record::{ALIGN, span};

/// Where a record stands: segment number and offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub segment: u32,
    unit: u32,
}

/// What is known of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Octets of the content.
    pub content_octets: u64,
    /// Its Message record.
    pub message: Place,
    pub meta_octets: u32,
    /// Its newest full State record, where there is one since the Message record.
    pub state: Option<(Place, u32)>,
    /// The Change records behind that, oldest first.
    pub changes: Vec<(Place, u32)>,
    /// Whether the content lies in a file of its own.
    pub spilled: bool,
}

/// A segment file.
#[derive(Default)]
pub(crate) struct Segment {
    /// The file while it is open.
    pub file: Option<Arc<dyn FsFile>>,
    /// Whether the file was opened anew: somebody may read it by another handle.
    pub reopened: bool,
    /// Octets in use.
    pub octets: u64,
    /// Octets of records still needed, Retired records not counted.
    pub live_octets: u64,
    /// Number of records still needed.
    pub live: u32,
    /// Messages retired by records in this segment: the segment of each Message record, and its id.
    pub retired: Vec<(u32, QueueId)>,
    /// Set when damage keeps it from being compacted.
    pub fixed: bool,
}

/// All messages and segments.
#[derive(Default)]
pub(crate) struct Index {
    entries: Entries,
    /// The Change records of messages that have any.
    changes: HashMap<QueueId, Vec<(Place, u32)>>,
    pub segments: BTreeMap<u32, Segment>,
    /// Segments with a Message record that compaction has copied elsewhere.
    moved: HashMap<QueueId, Vec<u32>>,
    /// Octets of content of all messages.
    pub content_octets: u64,
    /// Octets of content in files of their own.
    pub spilled_octets: u64,
}

impl Place {
    /// Where no record stands: segments are numbered from 1.
    pub(crate) const NOWHERE: Place = Place { segment: 0, unit: 0 };

    pub(crate) fn new(segment: u32, offset: u64) -> Place {
        debug_assert!(offset.is_multiple_of(ALIGN));
        Place { segment, unit: u32::try_from(offset / ALIGN).expect("a segment ends below 256 GiB") }
    }

    pub(crate) fn offset(self) -> u64 {
        u64::from(self.unit) * ALIGN
    }
}

impl Entry {
    /// Returns its State and Change records, in the order in which they hold.
    pub(crate) fn states(&self) -> impl Iterator<Item = (Place, u32)> {
        self.state.into_iter().chain(self.changes.iter().copied())
    }

    /// Returns the segments with a record of it, some of them more than once.
    pub(crate) fn segments(&self) -> impl Iterator<Item = u32> {
        self.records().map(|(place, _)| place.segment)
    }

    fn records(&self) -> impl Iterator<Item = (Place, u64)> {
        let inline = if self.spilled { 0 } else { self.content_octets };
        let message = (self.message, span(self.meta_octets, inline));
        [message].into_iter().chain(self.states().map(|(place, octets)| (place, span(octets, 0))))
    }

    fn packed(&self) -> Packed {
        Packed {
            message: self.message,
            meta_octets: self.meta_octets,
            content_octets: self.content_octets,
            state: self.state,
            spilled: self.spilled,
            changed: !self.changes.is_empty(),
        }
    }
}

impl Segment {
    /// Returns the file of a segment that was taken out, if nobody reads it: who does must never see
    /// another message in it.
    pub(crate) fn into_unread_file(self) -> Option<Arc<dyn FsFile>> {
        self.file.filter(|file| !self.reopened && Arc::strong_count(file) == 1)
    }
}

impl Index {
    /// Returns how many messages there are.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns whether a message is there.
    pub(crate) fn contains(&self, id: QueueId) -> bool {
        self.entries.get(id).is_some()
    }

    /// Returns what is known of a message.
    pub(crate) fn get(&self, id: QueueId) -> Option<Entry> {
        self.entries.get(id).map(|packed| self.unpack(id, packed))
    }

    /// Returns all ids, ascending.
    pub(crate) fn ids(&self) -> impl Iterator<Item = QueueId> {
        self.entries.ids()
    }

    /// Returns up to `limit` ids above `after`, ascending.
    pub(crate) fn ids_after(&self, after: Option<QueueId>, limit: usize) -> Vec<QueueId> {
        self.entries.ids_after(after).take(limit).collect()
    }

    /// Returns all messages with content in files of their own.
    pub(crate) fn spilled(&self) -> Vec<(QueueId, Entry)> {
        let spilled = self.entries.iter().filter(|(_, packed)| packed.spilled);
        spilled.map(|(id, packed)| (id, self.unpack(id, packed))).collect()
    }

    fn unpack(&self, id: QueueId, packed: Packed) -> Entry {
        let Packed { message, meta_octets, content_octets, state, spilled, changed } = packed;
        let changes = if changed { self.changes.get(&id).cloned().unwrap_or_default() } else { Vec::new() };
        Entry { content_octets, message, meta_octets, state, changes, spilled }
    }

    /// Puts a new message in.
    pub(crate) fn insert(&mut self, id: QueueId, entry: &Entry) {
        self.count(entry);
        self.content_octets += entry.content_octets;
        self.spilled_octets += if entry.spilled { entry.content_octets } else { 0 };
        self.entries.insert(id, &entry.packed());
    }

    /// Takes a message out.
    pub(crate) fn remove(&mut self, id: QueueId) -> Option<Entry> {
        let entry = self.take(id)?;
        self.discount(&entry);
        Some(entry)
    }

    fn take(&mut self, id: QueueId) -> Option<Entry> {
        let packed = self.entries.remove(id)?;
        let entry = self.unpack(id, packed);
        if packed.changed {
            self.changes.remove(&id);
        }
        self.content_octets -= entry.content_octets;
        self.spilled_octets -= if entry.spilled { entry.content_octets } else { 0 };
        Some(entry)
    }

    /// Takes a message out for good; returns also the segments with a Message record of it. Its
    /// records count as needed until [`Index::discount`]: without a Retired record it comes back at the
    /// next start, and then with its newest state.
    pub(crate) fn retire(&mut self, id: QueueId) -> Option<(Entry, Vec<u32>)> {
        let entry = self.take(id)?;
        let mut segments = self.moved.remove(&id).unwrap_or_default();
        segments.push(entry.message.segment);
        Some((entry, segments))
    }

    /// Replaces a message's entry by that of a later copy; the segment of the earlier one is kept in
    /// mind, for when the message is retired.
    pub(crate) fn replace(&mut self, id: QueueId, entry: &Entry) {
        if let Some(old) = self.remove(id)
            && old.message.segment != entry.message.segment
        {
            self.moved.entry(id).or_default().push(old.message.segment);
        }
        self.insert(id, entry);
    }

    /// Forgets a segment whose file is gone.
    pub(crate) fn remove_segment(&mut self, number: u32) -> Option<Segment> {
        self.moved.retain(|_, segments| {
            segments.retain(|n| *n != number);
            !segments.is_empty()
        });
        self.segments.remove(&number)
    }

    /// Notes the newest State record of a message, or a Change record behind it. Nothing happens when
    /// the message is not there.
    pub(crate) fn set_state(&mut self, id: QueueId, place: Place, meta_octets: u32, is_change: bool) {
        let Some(mut entry) = self.get(id) else { return };
        self.discount(&entry);
        if is_change {
            entry.changes.push((place, meta_octets));
        } else {
            (entry.state, entry.changes) = (Some((place, meta_octets)), Vec::new());
        }
        self.put_states(id, entry);
    }

    /// Forgets the State and Change records of a message.
    pub(crate) fn forget_states(&mut self, id: QueueId) {
        let Some(mut entry) = self.get(id) else { return };
        self.discount(&entry);
        (entry.state, entry.changes) = (None, Vec::new());
        self.put_states(id, entry);
    }

    fn put_states(&mut self, id: QueueId, entry: Entry) {
        self.count(&entry);
        self.entries.insert(id, &entry.packed());
        if entry.changes.is_empty() {
            self.changes.remove(&id);
        } else {
            self.changes.insert(id, entry.changes);
        }
    }

    fn count(&mut self, entry: &Entry) {
        for (place, octets) in entry.records() {
            let segment = self.segments.entry(place.segment).or_default();
            segment.live += 1;
            segment.live_octets += octets;
        }
    }

    /// Notes that the records of a message are needed no more.
    pub(crate) fn discount(&mut self, entry: &Entry) {
        for (place, octets) in entry.records() {
            if let Some(segment) = self.segments.get_mut(&place.segment) {
                segment.live -= 1;
                segment.live_octets -= octets;
            }
        }
    }
}
