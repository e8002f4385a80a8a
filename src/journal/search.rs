//! Finding what the journal says about a message. Reads every segment that may hold an answer, once to
//! find which messages are meant and once for their events; reads heads of records alone where that is
//! enough, so that a full journal is searched well within a second.
//!
//! Works beside an agent that writes, and without one.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::Path;

use postroad_queue::{QueueId, UnixMillis};

use super::Limits;
use super::event::{Accepted, Event, Raw, records};
use super::segment::{self, Content, Segment};

/// Events of one message, at most: more are counted.
const EVENTS_MAX: usize = 10_000;

/// Which messages are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// The one with this queue id.
    Queue(QueueId),
    /// Those with this id in the mesh.
    Mesh(String),
    /// Those with this Message-ID, sender or recipient, without angle brackets.
    Text(String),
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Which messages.
    pub key: Key,
    /// Only those accepted since then.
    pub since: UnixMillis,
    /// So many at most, the newest.
    pub messages_max: usize,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The messages, the oldest first.
    pub messages: Vec<Message>,
    /// Older messages that the limit left out.
    pub more: u64,
    /// How far back the journal reaches; none when it is empty.
    pub reaches: Option<UnixMillis>,
    /// Octets of it.
    pub octets: u64,
    /// Batches that could not be read for damage.
    pub damaged: u64,
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its name in the queue.
    pub id: QueueId,
    /// How it came; none when the journal does not reach back so far.
    pub accepted: Option<Accepted>,
    /// What happened since, in the order of time.
    pub events: Vec<Event>,
    /// Events beyond those.
    pub more: u64,
}

/// Searches the journal in `dir`, of which `limits` say what is too old at `now`.
///
/// # Errors
/// The files cannot be read.
pub fn search(dir: &Path, limits: Limits, now: UnixMillis, question: &Question) -> io::Result<Found> {
    let segments = segment::list(dir)?;
    let oldest = UnixMillis(now.since(UnixMillis(limits.age_ms)));
    let mut walk = Walk { segments, buffer: Vec::new(), damaged: 0 };
    let mut found = Found {
        reaches: walk.segments.first().map(|first| first.begun.max(oldest)),
        octets: walk.segments.iter().map(|segment| segment.octets).sum(),
        ..Found::default()
    };
    let since = question.since.max(oldest);
    let ids = match &question.key {
        Key::Queue(id) => vec![*id],
        key => walk.ids(key, since, question.messages_max, &mut found.more)?,
    };
    found.messages = walk.messages(ids, since)?;
    found.damaged = walk.damaged;
    Ok(found)
}

struct Walk {
    segments: Vec<Segment>,
    buffer: Vec<u8>,
    damaged: u64,
}

impl Walk {
    /// Returns the newest messages that `key` names; `more` counts those left out.
    fn ids(&mut self, key: &Key, since: UnixMillis, max: usize, more: &mut u64) -> io::Result<Vec<QueueId>> {
        let mut ids = VecDeque::new();
        self.each(since, |raw| {
            let is_meant = match key {
                Key::Queue(id) => raw.id == *id,
                Key::Mesh(id) => raw.is_in_mesh_as(id.as_bytes()),
                Key::Text(text) => raw.names(text.as_bytes()),
            };
            // The recipients of one message may stand in several records, one behind the other.
            if is_meant && raw.at >= since && ids.back() != Some(&raw.id) {
                ids.push_back(raw.id);
            }
            if ids.len() > max {
                ids.pop_front();
                *more += 1;
            }
        })?;
        Ok(ids.into())
    }

    /// Returns what happened to these messages.
    fn messages(&mut self, ids: Vec<QueueId>, since: UnixMillis) -> io::Result<Vec<Message>> {
        let Some(first) = ids.iter().min() else { return Ok(Vec::new()) };
        // A segment that ended before the first of them came has nothing of it.
        let since = since.max(UnixMillis(first.arrived().since(UnixMillis(CLOCK_SLACK_MS))));
        let place: HashMap<QueueId, usize> = ids.iter().enumerate().map(|(place, id)| (*id, place)).collect();
        let empty = |id: &QueueId| Message { id: *id, accepted: None, events: Vec::new(), more: 0 };
        let mut messages: Vec<Message> = ids.iter().map(empty).collect();
        self.each(since, |raw| {
            if let Some(place) = place.get(&raw.id) {
                messages[*place].add(&raw);
            }
        })?;
        messages.retain(|message| message.accepted.is_some() || !message.events.is_empty());
        // What a session notes and what an attempt notes may come the other way round.
        messages.iter_mut().for_each(|message| message.events.sort_by_key(|event| event.at));
        messages.sort_by_key(|message| message.id);
        Ok(messages)
    }

    /// Hands every record of the segments that reach behind `since` to `see`.
    fn each(&mut self, since: UnixMillis, mut see: impl FnMut(Raw<'_>)) -> io::Result<()> {
        self.damaged = 0;
        for at in 0..self.segments.len() {
            if self.segments.get(at + 1).is_some_and(|next| next.begun < since) {
                continue;
            }
            let content = match Content::read(&self.segments[at].path, std::mem::take(&mut self.buffer)) {
                Ok(content) => content,
                // Its time was over meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            self.damaged += content.damaged;
            content.batches().flat_map(records).for_each(&mut see);
            self.buffer = content.into_octets();
        }
        Ok(())
    }
}

/// How far a clock that was set back lets a message's first event stand before its id's time.
const CLOCK_SLACK_MS: u64 = 3_600_000;

impl Message {
    fn add(&mut self, raw: &Raw<'_>) {
        if raw.is_acceptance() {
            raw.add_to(self.accepted.get_or_insert_default());
        } else if self.events.len() >= EVENTS_MAX {
            self.more += 1;
        } else {
            self.events.extend(raw.event());
        }
    }
}

#[cfg(test)]
#[path = "search_tests.rs"]
mod tests;
