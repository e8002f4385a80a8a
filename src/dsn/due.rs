//! Who is to be told, and when (RFC 3461 §4.1, §5.2): a pure function of an item and the time.

use postroad_queue::{Item, RecipientState, Report, State, UnixMillis};
use postroad_smtp::{ForwardPath, Reply, Status};

use super::{Action, Kind};

/// How senders are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How long after arrival a sender hears that a message is late, in milliseconds; never when
    /// absent.
    pub delay_notice_ms: Option<u64>,
    /// How long after arrival outcomes are gathered for one notification while some recipients
    /// have not been tried at all, in milliseconds.
    pub gather_ms: u64,
    /// The largest message returned whole; of larger ones the header section is returned.
    pub full_octets_max: u64,
}

impl Default for Policy {
    /// A notice after 4 hours, a minute to gather, messages of up to 50 KiB returned whole.
    fn default() -> Policy {
        Policy { delay_notice_ms: Some(4 * 3_600_000), gather_ms: 60_000, full_octets_max: 50 * 1024 }
    }
}

/// One notification to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    /// What it is about.
    pub kind: Kind,
    /// The recipients it names; never empty.
    pub notices: Vec<Notice>,
}

/// One recipient in a notification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Which recipient of the envelope.
    pub recipient: usize,
    /// What happened to it.
    pub action: Action,
}

/// What is to be done about telling the sender.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// At most one of each kind.
    pub notifications: Vec<Notification>,
    /// Recipients that are settled and about which nobody wants to hear.
    pub silent: Vec<usize>,
    /// When to ask again if nothing happens before.
    pub next: Option<UnixMillis>,
}

/// Returns whom to tell what at `now`. `is_final` says whether we deliver a path into a mailbox
/// ourselves: if we do not, a success means that it was relayed.
///
/// A recipient whose next hop knows of notifications and was given `NOTIFY` is that hop's business:
/// the dispatcher records it as delivered and notified.
pub fn due_notifications(
    item: &Item,
    now: UnixMillis,
    policy: &Policy,
    is_final: impl Fn(&ForwardPath) -> bool,
) -> Due {
    let mut due = Due { notifications: Vec::new(), silent: Vec::new(), next: next_time(item, now, policy) };
    let has_sender = item.envelope.reverse_path.mailbox().is_some();
    let (mut failed, mut succeeded, mut late) = (Vec::new(), Vec::new(), Vec::new());
    for (index, (recipient, state)) in item.envelope.recipients().iter().zip(&item.state.recipients).enumerate() {
        let wants = recipient.wants();
        let notice = |action| Notice { recipient: index, action };
        match state {
            RecipientState::Failed { notified: false, .. } if has_sender && wants.failure => {
                failed.push(notice(Action::Failed));
            }
            RecipientState::Delivered { notified: false, .. } if has_sender && wants.success => {
                let is_final = is_final(&recipient.forward_path);
                succeeded.push(notice(if is_final { Action::Delivered } else { Action::Relayed }));
            }
            RecipientState::Failed { notified: false, .. } | RecipientState::Delivered { notified: false, .. } => {
                due.silent.push(index);
            }
            RecipientState::Pending { .. } if has_sender && wants.delay => late.push(notice(Action::Delayed)),
            _ => {}
        }
    }
    if is_gathering(item, now, policy) {
        (failed, succeeded) = Default::default();
    }
    if delay_notice_at(item, policy).is_none_or(|at| now < at || now >= item.state.expires) {
        late.clear();
    }
    for (kind, notices) in [(Kind::Failure, failed), (Kind::Delay, late), (Kind::Success, succeeded)] {
        if !notices.is_empty() {
            due.notifications.push(Notification { kind, notices });
        }
    }
    due
}

/// Gives up on what is still pending when the item's time is over; returns whether anything
/// changed. What the next hop said last stays the report, a transient reply: that is how a failure
/// for lack of time is told from a refusal.
pub fn expire(state: &mut State, now: UnixMillis) -> bool {
    if now < state.expires {
        return false;
    }
    let mut changed = false;
    for recipient in &mut state.recipients {
        if let RecipientState::Pending { last, .. } = recipient {
            let report = last.take().unwrap_or(Report { at: now, remote: None, reply: NEVER_TRIED });
            *recipient = RecipientState::Failed { report, notified: false };
            changed = true;
        }
    }
    changed
}

const NEVER_TRIED: Reply =
    Reply::of(451, Some(Status::new(4, 4, 7)), "The next hop could not be reached before the time ran out");

impl Notification {
    /// Notes in `state` that the notification was committed.
    pub fn mark(&self, state: &mut State) {
        if self.kind == Kind::Delay {
            state.delay_notified = true;
            return;
        }
        self.notices.iter().for_each(|notice| mark(state, notice.recipient));
    }
}

impl Due {
    /// Notes in `state` that nobody waits to hear of the silent recipients.
    pub fn mark_silent(&self, state: &mut State) {
        self.silent.iter().for_each(|recipient| mark(state, *recipient));
    }
}

fn mark(state: &mut State, recipient: usize) {
    match state.recipients.get_mut(recipient) {
        Some(RecipientState::Failed { notified, .. } | RecipientState::Delivered { notified, .. }) => *notified = true,
        Some(RecipientState::Pending { .. }) | None => {}
    }
}

fn pending(item: &Item) -> impl Iterator<Item = u32> {
    item.state.recipients.iter().filter_map(|recipient| match recipient {
        RecipientState::Pending { attempts, .. } => Some(*attempts),
        _ => None,
    })
}

fn is_gathering(item: &Item, now: UnixMillis, policy: &Policy) -> bool {
    now < item.arrived.plus(policy.gather_ms) && pending(item).any(|attempts| attempts == 0)
}

/// Returns when the notice of delay is due, unless it was sent or nobody is pending.
fn delay_notice_at(item: &Item, policy: &Policy) -> Option<UnixMillis> {
    let is_open = !item.state.delay_notified && pending(item).next().is_some();
    policy.delay_notice_ms.filter(|_| is_open).map(|delay| item.arrived.plus(delay))
}

fn next_time(item: &Item, now: UnixMillis, policy: &Policy) -> Option<UnixMillis> {
    let gathered = is_gathering(item, now, policy).then(|| item.arrived.plus(policy.gather_ms));
    let has_sender = item.envelope.reverse_path.mailbox().is_some();
    let late = delay_notice_at(item, policy).filter(|_| has_sender);
    let expired = pending(item).next().map(|_| item.state.expires);
    [gathered, late, expired].into_iter().flatten().filter(|at| *at > now).min()
}
