//! What became of a message, as the control socket and `--json` show it: what the journal says, and
//! what is still queued. The same for an agent that runs and for files read from disk. Fields are only
//! ever added.

use postroad_mesh::MeshMessageId;
use postroad_queue::{QueueId, UnixMillis};
use serde::{Deserialize, Serialize};

use super::backend::Entry;
use super::request::Id;
use super::standing::WaitView;
use super::view::{LISTED_RECIPIENTS_MAX, MessageView, OriginView, Time};
use crate::journal::{Accepted, Event, Found, Key, Kind, Message, Question};

/// Messages shown unless more are asked for.
pub const MESSAGES_SHOWN: u64 = 20;
/// Messages shown at most.
const MESSAGES_MAX: u64 = 10_000;

/// Events kept at the beginning and at the end of a story that is shortened.
const SHORT_EVENTS: usize = 10;

/// A message, and what happened to it on one host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TraceView {
    /// Its name in that host's queue.
    pub id: Id,
    /// The host: the label that members of a mesh know it by, elsewhere its name.
    pub host: String,
    /// The name that the host gives itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Its way through the mesh, when it came that way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mesh: Option<PassageView>,
    /// Its Message-ID, without angle brackets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_id: Option<String>,
    /// The reverse-path; `<>` when null.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Octets of content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Who handed it over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<OriginView>,
    /// What happened, in the order of time.
    pub events: Vec<EventView>,
    /// Events that are not shown.
    #[serde(default, skip_serializing_if = "is_none")]
    pub events_more: u64,
    /// The message, while it is queued there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued: Option<Box<MessageView>>,
    /// What each part of it waits for, where the host could say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waits: Vec<WaitView>,
}

/// The way of a message through the mesh, up to one host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassageView {
    /// The message's id in the mesh: the same on all hosts.
    pub id: String,
    /// The node at which it came into the mesh.
    pub origin: String,
    /// The nodes it had visited, the first one first, each by the beginning of its id.
    pub visited: Vec<String>,
}

/// Something that happened to a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventView {
    /// When.
    pub at: Time,
    /// What: `accepted`, `delivered`, `deferred`, `failed`, `expired`, `held`, `released`, `removed`,
    /// `bounced`, `notified`, `retired`, `set_aside` or `diverted`: a member on the way for less could not be reached.
    pub what: String,
    /// The first of the recipients that it concerns.
    pub recipients: Vec<String>,
    /// How many it concerns.
    pub recipients_total: u64,
    /// The host that answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<String>,
    /// What it answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<String>,
    /// How long it took, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ms: Option<u32>,
    /// Who did it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// The notification that was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notification: Option<Id>,
    /// Its kind: `failure`, `delay` or `success`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Where a damaged message lies now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
}

/// What was searched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SearchedView {
    /// Whose journal.
    pub host: String,
    /// Whether there is one.
    pub is_on: bool,
    /// How far back it reaches; none when it is empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reaches: Option<Time>,
    /// Octets of it.
    pub octets: u64,
    /// Older messages that the limit left out.
    pub more: u64,
    /// Parts of it that are damaged.
    pub damaged: u64,
    /// Members of the mesh that had a message and did not say what became of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub silent: Vec<SilentView>,
}

/// A member of the mesh that had a message and did not say what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SilentView {
    /// What it is called.
    pub host: String,
    /// Its id.
    pub node: String,
    /// The message's id in the mesh.
    pub mesh_id: String,
    /// When the message was last heard of there: it was handed over to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Time>,
    /// Why it did not say.
    pub why: String,
}

fn is_none(count: &u64) -> bool {
    *count == 0
}

/// Returns what is asked by a person's words.
pub fn question(what: &str, now: UnixMillis, since_ms: Option<u64>, limit: Option<u64>) -> Question {
    let limit = limit.unwrap_or(MESSAGES_SHOWN).min(MESSAGES_MAX);
    Question {
        key: key(what),
        since: UnixMillis(since_ms.map_or(0, |ms| now.since(UnixMillis(ms)))),
        messages_max: usize::try_from(limit).unwrap_or(usize::MAX),
    }
}

/// An id of a queue or of the mesh has the form of no address and hardly that of a Message-ID.
fn key(what: &str) -> Key {
    let what = what.trim();
    if let Ok(id) = what.parse::<QueueId>() {
        return Key::Queue(id);
    }
    match what.parse::<MeshMessageId>() {
        Ok(id) => Key::Mesh(id.to_string()),
        Err(_) => Key::Text(what.trim_start_matches('<').trim_end_matches('>').to_owned()),
    }
}

/// Shows what the journal of `host` says. A message that is asked for by its queue id is among it even
/// when the journal knows nothing of it: the queue may.
pub fn views(host: &str, question: &Question, found: Found) -> Vec<TraceView> {
    let mut views: Vec<TraceView> = found.messages.into_iter().map(|message| TraceView::of(host, message)).collect();
    if let (Key::Queue(id), true) = (&question.key, views.is_empty()) {
        let unknown = Message { id: *id, accepted: None, events: Vec::new(), more: 0 };
        views.push(TraceView::of(host, unknown));
    }
    views
}

impl TraceView {
    fn of(host: &str, message: Message) -> TraceView {
        let accepted = message.accepted.as_ref();
        let named = accepted.map_or(&[][..], |accepted| &accepted.recipients);
        let first = accepted.map(EventView::accepted);
        let events = first.into_iter().chain(message.events.iter().map(|event| EventView::of(event, named))).collect();
        TraceView {
            id: Id(message.id),
            host: host.to_owned(),
            hostname: Some(host.to_owned()),
            events,
            events_more: message.more,
            mesh: accepted.and_then(|accepted| PassageView::read(accepted.passage.as_deref()?)),
            queued: None,
            waits: Vec::new(),
            size: accepted.map(|accepted| accepted.octets),
            origin: accepted.map(|accepted| OriginView::of(&accepted.origin)),
            from: accepted.map(|accepted| accepted.from.clone()),
            message_id: message.accepted.and_then(|accepted| accepted.message_id),
        }
    }

    /// Adds that the message is queued still, and what it waits for as far as that is known.
    pub fn add_queued(&mut self, entry: &Entry, waits: Vec<WaitView>) {
        let message = MessageView::whole(entry);
        self.from.get_or_insert_with(|| message.from.clone());
        self.size.get_or_insert(message.size);
        let passage = entry.item.envelope.params.passage.as_ref();
        self.mesh = self.mesh.take().or_else(|| PassageView::read(passage?.as_str()));
        self.origin.get_or_insert_with(|| message.origin.clone());
        self.queued = Some(Box::new(message));
        self.waits = waits;
    }

    /// Leaves out the recipients that somebody else is not to see, and what was said about them alone.
    pub fn conceal(&mut self, is_seen: impl Fn(&str) -> bool) {
        self.events.retain_mut(|event| {
            event.recipients.retain(|name| is_seen(name));
            event.recipients_total == 0 || !event.recipients.is_empty()
        });
        self.waits.retain_mut(|wait| {
            wait.recipients.retain(|one| is_seen(&one.to));
            !wait.recipients.is_empty()
        });
        if let Some(queued) = &mut self.queued {
            queued.recipients.retain(|one| is_seen(&one.to));
        }
    }

    /// Makes it shorter: of very many recipients and events, the first and the last are enough.
    pub fn shorten(&mut self) {
        let waiting = self.waits.iter_mut().map(|wait| &mut wait.recipients);
        let queued = self.queued.iter_mut().map(|queued| &mut queued.recipients);
        waiting.chain(queued).for_each(|all| all.truncate(LISTED_RECIPIENTS_MAX));
        if let Some(surplus) = self.events.len().checked_sub(2 * SHORT_EVENTS) {
            self.events.drain(SHORT_EVENTS..SHORT_EVENTS + surplus);
            self.events_more += surplus as u64;
        }
    }

    /// Returns whether nothing is known of it.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty() && self.queued.is_none()
    }
}

impl PassageView {
    /// Reads what MAIL carried: `NAME:ORIGIN:NODE,NODE`.
    fn read(text: &str) -> Option<PassageView> {
        let mut parts = text.split(':').map(str::to_owned);
        let (id, origin, visited) = (parts.next()?, parts.next()?, parts.next()?);
        let visited = visited.split(',').filter(|node| !node.is_empty()).map(str::to_owned).collect();
        Some(PassageView { id, origin, visited })
    }
}

impl EventView {
    fn accepted(accepted: &Accepted) -> EventView {
        EventView {
            recipients: accepted.recipients.iter().take(LISTED_RECIPIENTS_MAX).cloned().collect(),
            recipients_total: accepted.recipients.len() as u64,
            ..EventView::new(accepted.at, Kind::Accepted)
        }
    }

    /// Shows an event of a message that was accepted for the recipients `named`.
    fn of(event: &Event, named: &[String]) -> EventView {
        let name = |place: &usize| named.get(*place).cloned().unwrap_or_else(|| format!("recipient {}", place + 1));
        let recipients: Vec<String> = match event.places.is_empty() {
            true => named.iter().take(LISTED_RECIPIENTS_MAX).cloned().collect(),
            false => event.places.iter().take(LISTED_RECIPIENTS_MAX).map(name).collect(),
        };
        let total = if event.places.is_empty() { named.len() } else { event.places.len() };
        let is_aside = event.kind == Kind::SetAside;
        EventView {
            recipients,
            recipients_total: total as u64,
            remote: event.remote.clone(),
            reply: event.reply.clone(),
            ms: event.took_ms,
            by: event.by.clone(),
            notification: event.other.map(Id),
            kind: event.word.clone().filter(|_| !is_aside),
            place: event.word.clone().filter(|_| is_aside),
            ..EventView::new(event.at, event.kind)
        }
    }

    fn new(at: UnixMillis, kind: Kind) -> EventView {
        EventView {
            at: Time(at),
            what: word(kind).to_owned(),
            recipients: Vec::new(),
            recipients_total: 0,
            remote: None,
            reply: None,
            ms: None,
            by: None,
            notification: None,
            kind: None,
            place: None,
        }
    }
}

impl SearchedView {
    /// Says what was searched for what was found; nothing where the journal is off.
    pub fn of(host: &str, found: Option<&Found>) -> SearchedView {
        let host = host.to_owned();
        let Some(found) = found else { return SearchedView { host, ..SearchedView::default() } };
        SearchedView {
            host,
            is_on: true,
            reaches: found.reaches.map(Time),
            octets: found.octets,
            more: found.more,
            damaged: found.damaged,
            silent: Vec::new(),
        }
    }
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Accepted | Kind::Recipients => "accepted",
        Kind::Delivered => "delivered",
        Kind::Deferred => "deferred",
        Kind::Failed => "failed",
        Kind::Expired => "expired",
        Kind::Held => "held",
        Kind::Released => "released",
        Kind::Removed => "removed",
        Kind::Bounced => "bounced",
        Kind::Notified => "notified",
        Kind::Retired => "retired",
        Kind::SetAside => "set_aside",
        Kind::Diverted => "diverted",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: Kind, places: &[usize]) -> Event {
        Event {
            at: UnixMillis(2),
            id: QueueId::from_u64(1),
            kind,
            places: places.to_vec(),
            remote: None,
            reply: None,
            by: None,
            other: None,
            took_ms: None,
            word: None,
        }
    }

    #[test]
    fn words_are_an_id_or_a_text() {
        assert_eq!(key(" 0000000000001 "), Key::Queue(QueueId::from_u64(1)));
        assert_eq!(key("<1.2@app.example>"), Key::Text("1.2@app.example".into()));
        assert_eq!(key("bob@example.com"), Key::Text("bob@example.com".into()));
        let id = MeshMessageId::from_octets([7; 16]).to_string();
        assert_eq!(key(&id.to_uppercase()), Key::Mesh(id));
        let question = question("x@y", UnixMillis(5000), Some(1000), None);
        assert_eq!((question.since, question.messages_max), (UnixMillis(4000), 20));
    }

    #[test]
    fn a_passage_is_read_as_it_was_said() {
        let view = PassageView::read("name:origin:one,two").expect("three parts");
        assert_eq!((view.id.as_str(), view.origin.as_str(), view.visited.len()), ("name", "origin", 2));
        assert_eq!(PassageView::read("name:origin:").expect("none visited yet").visited.len(), 0);
        assert_eq!(PassageView::read("name"), None);
    }

    #[test]
    fn recipients_have_the_names_they_were_accepted_with() {
        let accepted =
            Accepted { from: "<>".into(), recipients: vec!["a@x".into(), "b@x".into()], ..Accepted::default() };
        let events = vec![event(Kind::Deferred, &[1]), event(Kind::Delivered, &[]), event(Kind::Failed, &[7])];
        let message = Message { id: QueueId::from_u64(1), accepted: Some(accepted), events, more: 0 };
        let view = TraceView::of("mx.example.org", message);
        let names: Vec<_> = view.events.iter().map(|event| (event.what.as_str(), event.recipients.join(","))).collect();
        let want = [("accepted", "a@x,b@x"), ("deferred", "b@x"), ("delivered", "a@x,b@x"), ("failed", "recipient 8")];
        assert_eq!(names, want.map(|(what, names)| (what, names.to_owned())));
    }

    #[test]
    fn what_only_the_queue_knows_is_shown_too() {
        let entry = crate::admin::testing::entry(1, 1, "a@b.example", &[("c@dead.example", 1)]);
        let question = question("0000000000001", UnixMillis(1), None, None);
        let mut views = views("mx.example.org", &question, Found::default());
        assert!(views.len() == 1 && views[0].is_empty());
        views[0].add_queued(&entry, Vec::new());
        assert!(!views[0].is_empty() && views[0].from.as_deref() == Some("a@b.example"), "{views:?}");
    }
}
