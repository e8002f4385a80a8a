//! Messages and totals as the control socket and `--json` show them. Times are RFC 3339 in
//! UTC; fields are only ever added.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use postroad_mesh::Passage;
use postroad_queue::{Item, Origin, RecipientState, Report, Said, UnixMillis};
use postroad_smtp::Priority;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::backend::Entry;
use super::filter::{address, sender};
use super::request::Id;

/// How many recipients a list shows of each message; `queue show` shows all.
pub const LISTED_RECIPIENTS_MAX: usize = 10;

/// A message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MessageView {
    /// Its name.
    pub id: Id,
    /// When it was accepted.
    pub arrived: Time,
    /// When the first of its pending recipients is given up.
    pub expires: Time,
    /// Octets of content.
    pub size: u64,
    /// The reverse-path; `<>` when null.
    pub from: String,
    /// How it is as a whole.
    pub state: MessageState,
    /// Who handed it to us.
    pub origin: OriginView,
    /// The sender's ENVID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envid: Option<String>,
    /// Its MT-PRIORITY, from -9 to 9, where the client said one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i8>,
    /// When its sender wants it released (RFC 4865).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<Time>,
    /// By when its sender wants it delivered (RFC 2852).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deliver_by: Option<Time>,
    /// Its name in the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mid: Option<String>,
    /// How many recipients it has.
    pub recipients_total: u64,
    /// How many of them are pending.
    pub recipients_pending: u64,
    /// Recipients: in a list the first of those selected, else all.
    pub recipients: Vec<RecipientView>,
}

/// How a message is as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MessageState {
    /// An admin holds it.
    Held,
    /// Some recipient was not tried yet.
    Queued,
    /// Every pending recipient was tried before.
    Deferred,
    /// No recipient is pending; notifications may be.
    Settled,
}

/// Who handed a message to us.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OriginView {
    /// The client's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// Its HELO or EHLO name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub helo: Option<String>,
    /// The user it logged in as.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The protocol, as in the trace field.
    pub protocol: String,
    /// The session, as in the log.
    pub session: String,
}

/// A recipient.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecipientView {
    /// Its address.
    pub to: String,
    /// How far it is.
    pub state: RecipientStateView,
    /// Attempts made; for pending ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// When the next attempt is due; for pending ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due: Option<Time>,
    /// The next hop's key, when the agent knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
    /// What was said last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<ReportView>,
    /// Why nothing is tried at the next hop for now; for pending ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outage: Option<OutageView>,
    /// What was said before, each reply once, the first first: where it is asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<SaidView>,
}

/// How far a recipient is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecipientStateView {
    /// To be delivered.
    Pending,
    /// Delivered or handed on.
    Delivered,
    /// Given up.
    Failed,
}

/// A next hop cannot be reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutageView {
    /// When it is tried again.
    pub until: Time,
    /// What was said of it last.
    pub said: String,
}

/// What a next hop said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportView {
    /// When.
    pub at: Time,
    /// Who; ourselves when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<String>,
    /// The reply, on one line.
    pub reply: String,
}

/// A reply that was given once or several times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaidView {
    /// It, as it was given first.
    #[serde(flatten)]
    pub report: ReportView,
    /// How often.
    pub times: u32,
    /// When it was given last.
    pub until: Time,
}

/// A message and what was done to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActView {
    /// The message before the change, with the recipients meant.
    #[serde(flatten)]
    pub message: MessageView,
    /// What was done.
    pub outcome: ActOutcome,
    /// Why it could not be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What was done to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActOutcome {
    /// It is now otherwise.
    Changed,
    /// It was so before.
    Unchanged,
    /// It would be changed, but for `dry_run`.
    WouldChange,
    /// It could not be done.
    Failed,
}

/// The queue in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TotalsView {
    /// Messages.
    pub messages: u64,
    /// Octets of their content.
    pub content_octets: u64,
    /// Octets on disk.
    pub disk_octets: u64,
    /// Jobs: a message counts once for each destination.
    pub jobs: u64,
    /// Of these, jobs that wait for their time.
    pub deferred: u64,
    /// Of these, jobs that are held one by one.
    pub held_jobs: u64,
    /// Attempts in flight.
    pub in_flight: u64,
    /// Whether an admin holds everything.
    pub held: bool,
}

/// How the agent is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StatusView {
    /// The agent's version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// The name it says in its greeting.
    pub hostname: String,
    /// `serving`, `draining`, or `stopped` when a failed write ended acceptance.
    pub state: String,
    /// Why it is stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
    /// Since when it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// Sessions open.
    pub sessions: u64,
    /// Where it listens, as `smtp 127.0.0.1:25`.
    pub listeners: Vec<String>,
    /// The configuration it runs on.
    pub config: String,
    /// The queue.
    pub queue: TotalsView,
    /// Memory.
    pub memory: MemoryView,
    /// The disk of the queue.
    pub disk: DiskView,
}

/// The disk of the queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskView {
    /// `ample`, or `short` when new mail is refused.
    pub state: String,
    /// Octets free; `None` where that cannot be known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free_octets: Option<u64>,
    /// Octets below which new mail is refused.
    pub reserve_octets: u64,
}

/// The agent's memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryView {
    /// `ample`, `short` when new mail is refused, or `full` when new sessions are, too.
    pub state: String,
    /// Octets used: what is both counted and resident.
    pub used_octets: u64,
    /// Octets that the agent may use.
    pub limit_octets: u64,
    /// Of those used, content that is being received.
    pub draft_octets: u64,
}

impl MessageView {
    /// Shows a message with the recipients at `places`, at most `max` of them.
    pub fn of(entry: &Entry, places: &[usize], max: usize) -> MessageView {
        let item = &*entry.item;
        let pending = item.state.recipients.iter().filter(|state| is_pending(state)).count();
        MessageView {
            id: Id(item.id),
            arrived: Time(item.arrived),
            expires: Time(entry.expires),
            size: item.content_octets,
            from: sender(&item.envelope.reverse_path),
            state: state_of(item),
            origin: OriginView::of(&item.origin),
            envid: item.envelope.params.envid.as_deref().map(str::to_owned),
            priority: item.envelope.params.priority.map(Priority::get),
            release: item.envelope.params.release.map(|_| Time(item.released())),
            deliver_by: item.deliver_by().map(Time),
            mid: mid_of(item),
            recipients_total: item.envelope.recipients().len() as u64,
            recipients_pending: pending as u64,
            recipients: places.iter().take(max).map(|place| RecipientView::of(entry, *place)).collect(),
        }
    }

    /// Adds which next hops cannot be reached; `outage` says until when, and what was said.
    pub fn with_outages(mut self, outage: impl Fn(&str) -> Option<(UnixMillis, Arc<str>)>) -> MessageView {
        for recipient in self.recipients.iter_mut().filter(|one| one.state == RecipientStateView::Pending) {
            let found = recipient.destination.as_deref().and_then(&outage);
            recipient.outage = found.map(|(until, said)| OutageView { until: Time(until), said: said.to_string() });
        }
        self
    }

    /// Shows a message with all its recipients.
    pub fn whole(entry: &Entry) -> MessageView {
        let places: Vec<usize> = (0..entry.item.envelope.recipients().len()).collect();
        MessageView::of(entry, &places, usize::MAX)
    }
}

/// Returns whether a recipient is still to be delivered.
pub(super) fn is_pending(state: &RecipientState) -> bool {
    matches!(state, RecipientState::Pending { .. })
}

fn state_of(item: &Item) -> MessageState {
    let recipients = &item.state.recipients;
    let untried = |state: &RecipientState| matches!(state, RecipientState::Pending { attempts: 0, .. });
    if !recipients.iter().any(is_pending) {
        MessageState::Settled
    } else if item.state.held {
        MessageState::Held
    } else if recipients.iter().any(untried) {
        MessageState::Queued
    } else {
        MessageState::Deferred
    }
}

fn mid_of(item: &Item) -> Option<String> {
    let passage: Passage = item.envelope.params.passage.as_ref()?.as_str().parse().ok()?;
    Some(passage.message.to_string())
}

impl OriginView {
    /// Shows who handed a message over.
    pub fn of(origin: &Origin) -> OriginView {
        OriginView {
            peer: origin.peer.map(|peer| peer.to_string()),
            helo: origin.helo.as_deref().map(str::to_owned),
            user: origin.user.as_deref().map(str::to_owned),
            protocol: origin.protocol.to_string(),
            session: origin.session.to_string(),
        }
    }
}

impl RecipientView {
    /// Shows the recipient at `place`, which the message has.
    pub fn of(entry: &Entry, place: usize) -> RecipientView {
        let state = &entry.item.state.recipients[place];
        let (name, attempts, due, last) = match state {
            RecipientState::Pending { attempts, due, last, .. } => {
                (RecipientStateView::Pending, Some(*attempts), Some(Time(*due)), last.as_ref())
            }
            RecipientState::Delivered { report, .. } => (RecipientStateView::Delivered, None, None, Some(report)),
            RecipientState::Failed { report, .. } => (RecipientStateView::Failed, None, None, Some(report)),
        };
        RecipientView {
            to: address(&entry.item.envelope.recipients()[place].forward_path),
            state: name,
            attempts,
            due,
            destination: entry.destinations.get(place).map(|key| key.to_string()),
            last: last.map(ReportView::of),
            outage: None,
            earlier: Vec::new(),
        }
    }

    /// Returns when the next attempt can be made: not before its next hop is tried again.
    pub fn next(&self) -> Option<Time> {
        self.due.map(|due| self.outage.as_ref().map_or(due, |outage| due.max(outage.until)))
    }

    /// Adds what was said before.
    pub fn with_history(self, entry: &Entry, place: usize) -> RecipientView {
        let RecipientState::Pending { earlier, .. } = &entry.item.state.recipients[place] else { return self };
        let view =
            |said: &Said| SaidView { report: ReportView::of(&said.report), times: said.times, until: Time(said.until) };
        RecipientView { earlier: earlier.said().iter().map(view).collect(), ..self }
    }
}

impl ReportView {
    fn of(report: &Report) -> ReportView {
        let remote = report.remote.as_deref().map(str::to_owned);
        ReportView { at: Time(report.at), remote, reply: report.reply.to_string() }
    }
}

/// A time as text: RFC 3339 with milliseconds, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub UnixMillis);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = i64::try_from(self.0.0).ok().and_then(|millis| Timestamp::from_millisecond(millis).ok());
        write!(f, "{:.3}", time.unwrap_or(Timestamp::MAX))
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Time, D::Error> {
        let time: Timestamp = String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)?;
        let millis = u64::try_from(time.as_millisecond()).map_err(serde::de::Error::custom)?;
        Ok(Time(UnixMillis(millis)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_back() {
        let time = Time(UnixMillis(1_800_000_000_123));
        assert_eq!(serde_json::to_string(&time).expect("JSON"), "\"2027-01-15T08:00:00.123Z\"");
        assert_eq!(serde_json::from_str::<Time>("\"2027-01-15T08:00:00.123Z\"").expect("RFC 3339"), time);
        assert_eq!(Time(UnixMillis(u64::MAX)).to_string(), "9999-12-30T22:00:00.999Z");
    }
}
