//! What the queue knows of a message: envelope, where it came from and how far each recipient is.

use std::net::IpAddr;

use postroad_smtp::{ByMode, DeliverBy, Envelope, Reply};

use crate::history::History;
use crate::id::{QueueId, UnixMillis};

/// A message in the queue, all but its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Its name in this queue.
    pub id: QueueId,
    /// When it was accepted.
    pub arrived: UnixMillis,
    /// Reverse-path, parameters and recipients as accepted.
    pub envelope: Envelope,
    /// Who handed it to us.
    pub origin: Origin,
    /// Octets of the content, our trace fields included.
    pub content_octets: u64,
    /// How far it is.
    pub state: State,
}

/// Who handed a message to us, for logs, `queue show` and traces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The client's address; none for what this host made itself.
    pub peer: Option<IpAddr>,
    /// What it said in HELO or EHLO.
    pub helo: Option<Box<str>>,
    /// The user it authenticated as.
    pub user: Option<Box<str>>,
    /// The `with` protocol of the trace field (RFC 3848), or `dsn` for our own notifications.
    pub protocol: Box<str>,
    /// The id of the session it came by, as in the log.
    pub session: Box<str>,
}

/// The part of an item that changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Whether an admin holds it: no attempt is made until it is released.
    pub held: bool,
    /// Whether the notice of delay was sent (RFC 3464 `Action: delayed`); at most one ever is.
    pub delay_notified: bool,
    /// When we give up on recipients still pending.
    pub expires: UnixMillis,
    /// One for each recipient of the envelope, in its order.
    pub recipients: Vec<RecipientState>,
}

/// How far one recipient is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecipientState {
    /// Still to be delivered.
    Pending {
        /// Attempts made so far.
        attempts: u32,
        /// When the next one is due.
        due: UnixMillis,
        /// What came of the last one.
        last: Option<Report>,
        /// What came of those before it.
        earlier: History,
    },
    /// A next hop or a mailbox has taken responsibility for it.
    Delivered {
        /// What it said.
        report: Report,
        /// Whether nobody waits for a notification of it any more.
        notified: bool,
    },
    /// It will never be delivered.
    Failed {
        /// Why.
        report: Report,
        /// Whether nobody waits for a notification of it any more.
        notified: bool,
    },
}

/// What a next hop said, or what we say where none could be asked (`4.4.1` and its kind).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// When.
    pub at: UnixMillis,
    /// The host that said it, as `name [address]`; none when the words are ours.
    pub remote: Option<Box<str>>,
    /// The reply.
    pub reply: Reply,
}

impl Item {
    /// Returns when it may set out: when it arrived, or when its sender wants it to be released
    /// (RFC 4865). Delays and expiry count from here.
    pub fn released(&self) -> UnixMillis {
        self.envelope.params.release.map_or(self.arrived, |release| UnixMillis(release.unix_ms(self.arrived.0)))
    }

    /// Returns when its sender wants it to be released, if that is still to come. Of one without such a
    /// wish nothing is to come, whatever clock it was accepted by.
    pub fn held_until(&self, now: UnixMillis) -> Option<UnixMillis> {
        self.envelope.params.release.map(|_| self.released()).filter(|at| *at > now)
    }

    /// Returns by when the sender wants it delivered (RFC 2852).
    pub fn deliver_by(&self) -> Option<UnixMillis> {
        let ms = i64::from(self.envelope.params.deliver_by?.seconds) * 1000;
        Some(UnixMillis(self.arrived.0.saturating_add_signed(ms)))
    }

    /// Returns what is left of that time at `now`, in whole seconds: of a second begun, nothing.
    pub fn deliver_by_left(&self, now: UnixMillis) -> Option<DeliverBy> {
        let by = self.envelope.params.deliver_by?;
        Some(by.after(now.since(self.arrived) / 1000 + 1))
    }

    /// Returns whether it goes back to its sender when it is late, rather than being late.
    pub fn returns_late(&self) -> bool {
        self.envelope.params.deliver_by.is_some_and(|by| by.mode == ByMode::Return)
    }
}

impl State {
    /// The state of a message just accepted: every recipient is due at once.
    pub fn fresh(recipients: usize, now: UnixMillis, expires: UnixMillis) -> State {
        let pending = RecipientState::Pending { attempts: 0, due: now, last: None, earlier: History::default() };
        State { held: false, delay_notified: false, expires, recipients: vec![pending; recipients] }
    }

    /// Returns whether nothing is left to do: every recipient is delivered or failed, and whoever
    /// was to hear of it has been told.
    pub fn is_settled(&self) -> bool {
        self.recipients.iter().all(|recipient| match recipient {
            RecipientState::Pending { .. } => false,
            RecipientState::Delivered { notified, .. } | RecipientState::Failed { notified, .. } => *notified,
        })
    }
}

#[cfg(test)]
mod tests {
    use postroad_smtp::{MailParams, Recipient};

    use super::*;

    #[test]
    fn of_a_second_begun_nothing_is_left() {
        let deliver_by = Some(DeliverBy { seconds: 60, mode: ByMode::Notify, trace: false });
        let params = MailParams { deliver_by, ..MailParams::default() };
        let to = vec![Recipient::new("b@example.net".parse().expect("a path"))];
        let envelope = Envelope::new("a@example.org".parse().expect("a path"), params, to).expect("a recipient");
        let (id, arrived) = (QueueId::from_u64(1), UnixMillis(5_000));
        let state = State::fresh(1, arrived, UnixMillis(u64::MAX));
        let item = Item { id, arrived, envelope, origin: Origin::default(), content_octets: 1, state };
        for (later_ms, left) in [(0, 59), (1, 59), (999, 59), (1_000, 58), (59_999, 0), (61_000, -2)] {
            let by = item.deliver_by_left(arrived.plus(later_ms)).expect("it has a time");
            assert_eq!(by.seconds, left, "{later_ms} ms later");
        }
    }
}
