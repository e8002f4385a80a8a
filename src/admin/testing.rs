//! A queue in memory for the tests of the control socket and the command line.

use std::io;
use std::sync::{Arc, Mutex};

use postroad_queue::schedule::{Ahead, DestinationStats, Lane, Standing, Why};
use postroad_queue::{History, Item, Origin, QueueId, RecipientState, Report, State, UnixMillis};
use postroad_smtp::{Envelope, MailParams, Recipient, Reply, ReversePath, Status};

use super::backend::{AdminBackend, Entry, Target};
use super::filter::Filter;
use super::mesh::MeshRequest;
use super::request::{Action, Done, Failure, Request};
use super::trace::{SilentView, TraceView};
use super::view::{StatusView, TotalsView};
use crate::journal::{Event, Found, Key, Kind, Message, Question};

/// The time of every test: 2027-01-15T08:00:00Z.
pub const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
/// An hour.
pub const HOUR_MS: u64 = 3_600_000;

/// Builds the `n`th message, accepted `age_hours` ago, to recipients whose attempts are given.
pub fn entry(n: u64, age_hours: u64, from: &str, to: &[(&str, u32)]) -> Entry {
    let arrived = UnixMillis(NOW.0 - age_hours * HOUR_MS);
    let reverse_path: ReversePath = from.parse().expect(from);
    let recipients = to.iter().map(|(to, _)| Recipient::new(to.parse().expect(to))).collect();
    let envelope = Envelope::new(reverse_path, MailParams::default(), recipients).expect("some recipient");
    let mut state = State::fresh(to.len(), arrived, arrived.plus(120 * HOUR_MS));
    for (state, (_, attempts)) in state.recipients.iter_mut().zip(to) {
        if *attempts > 0 {
            let due = NOW.plus(HOUR_MS / 2);
            let mut earlier = History::default();
            (1..*attempts).for_each(|_| earlier.add(refused(arrived)));
            *state = RecipientState::Pending { attempts: *attempts, due, last: Some(refused(arrived)), earlier };
        }
    }
    let origin = Origin {
        peer: Some("192.0.2.9".parse().expect("an address")),
        helo: Some("app.example.org".into()),
        user: None,
        protocol: "ESMTPS".into(),
        session: "S1".into(),
    };
    let id = QueueId::from_u64(n);
    let destinations = envelope
        .recipients()
        .iter()
        .map(|to| format!("mx:{}", to.forward_path.domain().map_or("local", |domain| domain.as_str())).into())
        .collect();
    let expires = state.expires;
    Entry {
        item: Arc::new(Item { id, arrived, envelope, origin, content_octets: 2048 * n, state }),
        destinations,
        expires,
    }
}

fn refused(at: UnixMillis) -> Report {
    let reply = Reply::of(450, Some(Status::new(4, 2, 0)), "Greylisted, come back later");
    Report { at, remote: Some("mx1.example.com [198.51.100.7]".into()), reply }
}

/// Returns `entry` held.
pub fn held(mut entry: Entry) -> Entry {
    Arc::make_mut(&mut entry.item).state.held = true;
    entry
}

/// A queue in memory that remembers what it was told to do.
#[derive(Debug, Default)]
pub struct Memory {
    /// The messages, by ascending id.
    pub entries: Vec<Entry>,
    /// What was done.
    pub acts: Mutex<Vec<(Action, Target)>>,
}

impl Memory {
    /// Builds a queue of three messages as an admin finds them on a bad day.
    pub fn sample() -> Memory {
        let entries = vec![
            entry(1, 30, "cron@app.example.org", &[("ops@dead.example", 7), ("log@example.com", 0)]),
            held(entry(2, 2, "", &[("alice@example.com", 0)])),
            entry(3, 1, "shop@example.org", &[("bob@example.com", 1)]),
        ];
        Memory { entries, acts: Mutex::default() }
    }
}

impl AdminBackend for Memory {
    fn now(&self) -> UnixMillis {
        NOW
    }

    fn len(&self) -> usize {
        self.entries.len()
    }

    fn ids(&self, after: Option<QueueId>, limit: usize) -> Vec<QueueId> {
        let ids = self.entries.iter().map(|entry| entry.item.id);
        ids.filter(|id| after.is_none_or(|after| *id > after)).take(limit).collect()
    }

    fn entry(&self, id: QueueId) -> Option<Entry> {
        let at = self.entries.binary_search_by_key(&id, |entry| entry.item.id).ok()?;
        Some(self.entries[at].clone())
    }

    fn entries<'a>(&'a self, ids: &'a [QueueId], _: &'a Filter) -> impl Iterator<Item = Entry> + 'a {
        ids.iter().filter_map(|id| self.entry(*id))
    }

    async fn standings(&self, id: QueueId) -> Vec<Standing> {
        let Some(entry) = self.entry(id) else { return Vec::new() };
        let why = if entry.item.state.held { Why::Held } else { Why::Deferred { due: NOW.plus(HOUR_MS / 2) } };
        let standing = |key: &Arc<str>| Standing {
            destination: key.clone(),
            site: key.clone(),
            lane: Lane::Normal,
            why: why.clone(),
            ahead: Ahead::default(),
        };
        entry.destinations.iter().map(standing).collect()
    }

    fn outage(&self, _: &str) -> Option<(UnixMillis, Arc<str>)> {
        None
    }

    async fn destinations(&self) -> Vec<DestinationStats> {
        vec![DestinationStats {
            destination: "mx:dead.example".into(),
            site: "mx:dead.example".into(),
            ready: [0, 1, 0],
            deferred: [0, 2, 0],
            held: 0,
            is_held: false,
            in_flight: 0,
            site_in_flight: 0,
            paced_until: None,
            ages: [3, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            is_proven: false,
            is_probed: false,
            window: 1,
            closed_until: Some(NOW.plus(HOUR_MS)),
            failures: 4,
            said: Some("451 4.4.1 connection refused".into()),
            oldest: Some(QueueId::from_u64(1)),
        }]
    }

    async fn totals(&self) -> TotalsView {
        TotalsView { messages: self.entries.len() as u64, content_octets: 12_288, jobs: 3, ..TotalsView::default() }
    }

    async fn status(&self) -> StatusView {
        StatusView { version: "0.1.0".into(), state: "serving".into(), ..StatusView::default() }
    }

    fn host(&self) -> String {
        "mx.example.org".to_owned()
    }

    fn label(&self) -> Option<String> {
        None
    }

    fn search(&self, question: &Question) -> Option<io::Result<Found>> {
        let event = |kind, message: &Entry| Event {
            at: message.item.arrived,
            id: message.item.id,
            kind,
            places: Vec::new(),
            remote: None,
            reply: None,
            by: None,
            other: None,
            took_ms: None,
            word: None,
        };
        let is_meant = |entry: &&Entry| match &question.key {
            Key::Queue(id) => entry.item.id == *id,
            Key::Mesh(_) => false,
            Key::Text(text) => entry.item.envelope.reverse_path.mailbox().is_some_and(|own| own.to_string() == *text),
        };
        let message = |entry: &Entry| Message {
            id: entry.item.id,
            accepted: None,
            events: vec![event(Kind::Released, entry)],
            more: 0,
        };
        let messages = self.entries.iter().filter(is_meant).map(message).collect();
        Some(Ok(Found { messages, reaches: Some(NOW), octets: 4096, ..Found::default() }))
    }

    async fn follow(&self, _: &[TraceView]) -> (Vec<TraceView>, Vec<SilentView>) {
        (Vec::new(), Vec::new())
    }

    async fn act(&self, action: Action, targets: Vec<Target>, _: Arc<str>) -> Vec<Result<bool, String>> {
        let outcome = |target: &Target| match (action, self.entry(target.id)) {
            (_, None) => Err("it is gone".to_owned()),
            (Action::Hold, Some(entry)) => Ok(!entry.item.state.held),
            (Action::Release, Some(entry)) => Ok(entry.item.state.held),
            _ => Ok(true),
        };
        let outcomes = targets.iter().map(outcome).collect();
        self.acts.lock().expect("no panic").extend(targets.into_iter().map(|target| (action, target)));
        outcomes
    }

    async fn mesh(&self, _: MeshRequest) -> Result<serde_json::Value, Failure> {
        Err(Failure::new("a queue in memory is in no mesh", ""))
    }

    async fn ask_peer(&self, _: &str, _: Request) -> Result<(Vec<serde_json::Value>, Done), Failure> {
        Err(Failure::new("a queue in memory is in no mesh", ""))
    }

    async fn reload(&self) -> Result<String, Failure> {
        Err(Failure::new("postroad.toml:3:1: unknown key `listn`", "did you mean `listen`?"))
    }
}
