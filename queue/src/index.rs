//! What is where: the messages in the queue and the segments that hold them. In memory only, rebuilt
//! at every open.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::fs::FsFile;
use crate::id::QueueId;
use crate::record::ALIGN;

/// Where a record stands: segment number and offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub segment: u32,
    unit: u32,
}

/// What is kept in memory of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Octets of the content.
    pub content_octets: u64,
    /// Its Message record.
    pub message: Place,
    pub meta_octets: u32,
    pub content_crc: u32,
    /// Its newest State record, where there is one since the Message record.
    pub state: Option<(Place, u32)>,
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
    pub entries: BTreeMap<QueueId, Entry>,
    pub segments: BTreeMap<u32, Segment>,
    /// Segments with a Message record that compaction has copied elsewhere.
    moved: HashMap<QueueId, Vec<u32>>,
    /// Octets of content of all messages.
    pub content_octets: u64,
    /// Octets of content in files of their own.
    pub spilled_octets: u64,
}

const _: () = assert!(size_of::<Entry>() + size_of::<QueueId>() <= 64);

impl Place {
    pub(crate) fn new(segment: u32, offset: u64) -> Place {
        debug_assert!(offset.is_multiple_of(ALIGN));
        Place { segment, unit: u32::try_from(offset / ALIGN).expect("a segment ends below 256 GiB") }
    }

    pub(crate) fn offset(self) -> u64 {
        u64::from(self.unit) * ALIGN
    }
}

impl Entry {
    fn records(&self) -> impl Iterator<Item = (Place, u64)> {
        let inline = if self.spilled { 0 } else { self.content_octets };
        let message = (self.message, crate::record::span(self.meta_octets, inline));
        [Some(message), self.state.map(|(place, octets)| (place, crate::record::span(octets, 0)))].into_iter().flatten()
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
    /// Puts a new message in.
    pub(crate) fn insert(&mut self, id: QueueId, entry: Entry) {
        self.count(&entry);
        self.content_octets += entry.content_octets;
        self.spilled_octets += if entry.spilled { entry.content_octets } else { 0 };
        self.entries.insert(id, entry);
    }

    /// Takes a message out.
    pub(crate) fn remove(&mut self, id: QueueId) -> Option<Entry> {
        let entry = self.entries.remove(&id)?;
        self.discount(&entry);
        self.content_octets -= entry.content_octets;
        self.spilled_octets -= if entry.spilled { entry.content_octets } else { 0 };
        Some(entry)
    }

    /// Takes a message out for good; returns also the segments with a Message record of it.
    pub(crate) fn retire(&mut self, id: QueueId) -> Option<(Entry, Vec<u32>)> {
        let entry = self.remove(id)?;
        let mut segments = self.moved.remove(&id).unwrap_or_default();
        segments.push(entry.message.segment);
        Some((entry, segments))
    }

    /// Replaces a message's entry by that of a later copy; the segment of the earlier one is kept in
    /// mind, for when the message is retired.
    pub(crate) fn replace(&mut self, id: QueueId, entry: Entry) {
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

    /// Notes the newest State record of a message; returns whether the message is there.
    pub(crate) fn set_state(&mut self, id: QueueId, place: Place, meta_octets: u32) -> bool {
        let Some(entry) = self.entries.get(&id).copied() else { return false };
        self.discount(&entry);
        let entry = Entry { state: Some((place, meta_octets)), ..entry };
        self.count(&entry);
        self.entries.insert(id, entry);
        true
    }

    fn count(&mut self, entry: &Entry) {
        for (place, octets) in entry.records() {
            let segment = self.segments.entry(place.segment).or_default();
            segment.live += 1;
            segment.live_octets += octets;
        }
    }

    fn discount(&mut self, entry: &Entry) {
        for (place, octets) in entry.records() {
            if let Some(segment) = self.segments.get_mut(&place.segment) {
                segment.live -= 1;
                segment.live_octets -= octets;
            }
        }
    }
}
