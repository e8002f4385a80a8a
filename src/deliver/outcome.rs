//! From what a next hop answered to what is recorded: one outcome per recipient. Pure.
//!
//! A permanent answer fails the recipient; a transient one defers it, or fails it once the message
//! has expired (RFC 5321 §4.5.4.1). Whether anybody has to be told follows from NOTIFY (RFC 3461).

use postroad_queue::{History, Item, RecipientState, Report, RetryPolicy, UnixMillis};
use postroad_smtp::{Notify, ReversePath};

/// What became of one recipient in one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A next hop or a mailbox has taken responsibility.
    Delivered {
        /// What it said.
        report: Report,
        /// Whether it also took over the sender's wish to hear of success (RFC 3461 §5.2.1).
        carries_notify: bool,
        /// Whether the sender is to hear that it was relayed, unless it never wants to hear: its
        /// by-time is traced, or ends here (RFC 2852 §4.1.4).
        ends_by_time: bool,
    },
    /// Not now.
    Deferred(Report),
    /// Never.
    Failed(Report),
}

impl Outcome {
    /// Returns what was said.
    pub fn report(&self) -> &Report {
        let (Outcome::Delivered { report, .. } | Outcome::Deferred(report) | Outcome::Failed(report)) = self;
        report
    }

    /// Returns whether it was "not now".
    pub fn is_deferral(&self) -> bool {
        matches!(self, Outcome::Deferred(_))
    }
}

/// How deferrals are timed.
#[derive(Clone, Copy)]
pub struct Timing<'a> {
    /// Now.
    pub now: UnixMillis,
    /// The delays between attempts for the recipient at a place, and when it is given up.
    pub patience: &'a dyn Fn(&Item, usize) -> (RetryPolicy, UnixMillis),
    /// From 0 to 1: where in the jitter this attempt falls.
    pub random: f64,
    /// Whether nobody at the destination was heard. Its pauses count then, which the schedule knows: the recipient's own
    /// would hold it back when the destination has come back, behind a restart or a reload.
    pub is_unheard: bool,
}

/// Writes outcomes, each with the recipient's place in the envelope, into the state. Returns when
/// the earliest of the deferred ones is due again; none when all of them are settled.
pub fn apply(item: &mut Item, outcomes: Vec<(usize, Outcome)>, timing: Timing<'_>) -> Option<UnixMillis> {
    let mut earliest = None;
    for (place, outcome) in outcomes {
        // An admin may have removed or bounced it while the attempt ran: that stands.
        let RecipientState::Pending { attempts, .. } = item.state.recipients[place] else { continue };
        let history = history(&mut item.state.recipients[place]);
        let wants = item.envelope.recipients()[place].wants();
        let nobody = item.envelope.reverse_path == ReversePath::Null;
        let attempts = attempts + 1;
        let (retry, expires) = (timing.patience)(item, place);
        item.state.recipients[place] = match outcome {
            Outcome::Delivered { report, carries_notify, ends_by_time } => {
                let told = carries_notify || !wants.success;
                let heard = told && !(ends_by_time && wants != Notify::NEVER);
                RecipientState::Delivered { report, notified: nobody || heard }
            }
            Outcome::Failed(report) => RecipientState::Failed { report, notified: nobody || !wants.failure },
            Outcome::Deferred(report) if timing.now >= expires => {
                // The transient answer stays: that is how lack of time is told from a refusal.
                RecipientState::Failed { report, notified: nobody || !wants.failure }
            }
            Outcome::Deferred(report) => {
                let pause_ms = if timing.is_unheard { 0 } else { retry.delay(attempts, timing.random) };
                let due = timing.now.plus(pause_ms);
                earliest = Some(earliest.map_or(due, |other: UnixMillis| other.min(due)));
                RecipientState::Pending { attempts, due, last: Some(report), earlier: history }
            }
        };
    }
    earliest
}

/// Takes out what was said to a pending recipient so far.
fn history(state: &mut RecipientState) -> History {
    let RecipientState::Pending { last, earlier, .. } = state else { return History::default() };
    let mut history = std::mem::take(earlier);
    if let Some(last) = last.take() {
        history.add(last);
    }
    history
}

#[cfg(test)]
mod tests {
    use postroad_queue::{Origin, QueueId, State};
    use postroad_smtp::{Envelope, MailParams, Recipient, Reply};

    use super::*;

    const RETRY: RetryPolicy = RetryPolicy { first_ms: 1000, factor: 2.0, max_ms: 8000, jitter_ratio: 0.0 };

    fn item(reverse_path: &str, notify: Option<Notify>) -> Item {
        let mut recipient = Recipient::new("b@example.org".parse().expect("valid"));
        recipient.notify = notify;
        let path = reverse_path.parse().expect("valid");
        let envelope = Envelope::new(path, MailParams::default(), vec![recipient]).expect("one recipient");
        let state = State::fresh(1, UnixMillis(0), UnixMillis(100_000));
        let id = QueueId::from_u64(1);
        Item { id, arrived: UnixMillis(0), envelope, origin: Origin::default(), content_octets: 1, state }
    }

    fn report(code: u16) -> Report {
        Report { at: UnixMillis(1), remote: None, reply: Reply::of(code, None, "so") }
    }

    fn timing(now: u64) -> Timing<'static> {
        let patience = &|item: &Item, _| (RETRY, item.state.expires);
        Timing { now: UnixMillis(now), patience, random: 0.5, is_unheard: false }
    }

    #[test]
    fn who_was_not_heard_is_due_whenever_the_destination_is_back() {
        let mut item = item("a@example.org", None);
        for now in [1, 1000] {
            let timing = Timing { is_unheard: true, ..timing(now) };
            let due = apply(&mut item, vec![(0, Outcome::Deferred(report(451)))], timing);
            assert_eq!(due, Some(UnixMillis(now)));
        }
        let timing = Timing { is_unheard: true, ..timing(100_000) };
        assert_eq!(apply(&mut item, vec![(0, Outcome::Deferred(report(451)))], timing), None, "its time is over");
    }

    #[test]
    fn deferrals_grow_until_the_message_expires() {
        let mut item = item("a@example.org", None);
        for (now, want) in [(0, Some(1000)), (1000, Some(3000)), (3000, Some(7000)), (100_000, None)] {
            let due = apply(&mut item, vec![(0, Outcome::Deferred(report(451)))], timing(now));
            assert_eq!(due, want.map(UnixMillis), "at {now}");
        }
        let RecipientState::Failed { report, notified: false } = &item.state.recipients[0] else {
            panic!("expired mail fails: {:?}", item.state)
        };
        assert_eq!(report.reply.to_string(), "451 so");
    }

    #[test]
    fn only_who_wants_to_hear_is_waited_for() {
        let never = Some(Notify::NEVER);
        let success = Some(Notify { success: true, ..Notify::NEVER });
        for (path, notify, carries, by, delivered_waits, failed_waits) in [
            ("a@example.org", None, false, false, false, true),
            ("a@example.org", None, true, true, true, true),
            ("a@example.org", never, false, false, false, false),
            ("a@example.org", never, false, true, false, false),
            ("a@example.org", success, false, false, true, false),
            ("a@example.org", success, true, false, false, false),
            ("a@example.org", success, true, true, true, false),
            ("", None, false, true, false, false),
            ("", success, false, false, false, false),
        ] {
            let mut one = item(path, notify);
            let outcome = Outcome::Delivered { report: report(250), carries_notify: carries, ends_by_time: by };
            assert_eq!(apply(&mut one, vec![(0, outcome)], timing(1)), None);
            assert_eq!(one.state.is_settled(), !delivered_waits, "delivered: {path:?} {notify:?}");
            let mut one = item(path, notify);
            assert_eq!(apply(&mut one, vec![(0, Outcome::Failed(report(550)))], timing(1)), None);
            assert_eq!(one.state.is_settled(), !failed_waits, "failed: {path:?} {notify:?}");
        }
    }
}
