//! Who is to be told, and when (RFC 3461 §4.1, §5.2): a pure function of an item and the time.

use postroad_queue::{Item, RecipientState, Report, State, UnixMillis};
use postroad_smtp::{Notify, Reply, Status};

use super::{Action, Kind};

/// How senders are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How long after its release outcomes are gathered for one notification while some recipients
    /// have not been tried at all, in milliseconds.
    pub gather_ms: u64,
    /// The largest message returned whole; of larger ones the header section is returned.
    pub full_octets_max: u64,
}

impl Default for Policy {
    /// A minute to gather, messages of up to 50 KiB returned whole.
    fn default() -> Policy {
        Policy { gather_ms: 60_000, full_octets_max: 50 * 1024 }
    }
}

/// What holds for one recipient by the route that it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Whether we deliver into its mailbox ourselves: if not, a success means that it was relayed.
    pub is_final: bool,
    /// When it is given up.
    pub expires: UnixMillis,
    /// When its sender hears that it is late; never when absent.
    pub late: Option<UnixMillis>,
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
    /// Until when it is tried.
    pub until: UnixMillis,
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

/// Returns whom to tell what at `now`. `terms` says what holds for the recipient at a place.
///
/// A message is told to be late once, when the first of its recipients is: the notice names all that
/// wait, but those whose route wants none.
///
/// A recipient whose next hop knows of notifications and was given `NOTIFY` is that hop's business:
/// the dispatcher records it as delivered and notified.
pub fn due_notifications(item: &Item, now: UnixMillis, policy: &Policy, terms: impl Fn(usize) -> Terms) -> Due {
    let mut due = Due { notifications: Vec::new(), silent: Vec::new(), next: next_time(item, now, policy, &terms) };
    let has_sender = item.envelope.reverse_path.mailbox().is_some();
    let has_by_time = item.envelope.params.deliver_by.is_some();
    let (mut failed, mut succeeded, mut late) = (Vec::new(), Vec::new(), Vec::new());
    for (index, (recipient, state)) in item.envelope.recipients().iter().zip(&item.state.recipients).enumerate() {
        let wants = recipient.wants();
        let notice = |action| Notice { recipient: index, action, until: terms(index).expires };
        match state {
            RecipientState::Failed { notified: false, .. } if has_sender && wants.failure => {
                failed.push(notice(Action::Failed));
            }
            RecipientState::Delivered { notified: false, .. }
                if has_sender && (wants.success || (has_by_time && wants != Notify::NEVER)) =>
            {
                succeeded.push(notice(if terms(index).is_final { Action::Delivered } else { Action::Relayed }));
            }
            RecipientState::Failed { notified: false, .. } | RecipientState::Delivered { notified: false, .. } => {
                due.silent.push(index);
            }
            RecipientState::Pending { .. } if is_told_late(item, index, &terms(index)) => {
                late.push(notice(Action::Delayed));
            }
            _ => {}
        }
    }
    if is_gathering(item, now, policy) {
        (failed, succeeded) = Default::default();
    }
    late.retain(|notice| now < notice.until);
    if delay_notice_at(item, &terms).is_none_or(|at| now < at) {
        late.clear();
    }
    for (kind, notices) in [(Kind::Failure, failed), (Kind::Delay, late), (Kind::Success, succeeded)] {
        if !notices.is_empty() {
            due.notifications.push(Notification { kind, notices });
        }
    }
    due
}

/// Gives up on what is still pending when its time is over, which `expires` says by place; returns
/// whether anything changed. What the next hop said last stays the report, a transient reply: that is how a failure
/// for lack of time is told from a refusal.
pub fn expire(state: &mut State, now: UnixMillis, expires: impl Fn(usize) -> UnixMillis) -> bool {
    let mut changed = false;
    for (place, recipient) in state.recipients.iter_mut().enumerate() {
        if let RecipientState::Pending { last, .. } = recipient
            && now >= expires(place)
        {
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

fn pending(item: &Item) -> impl Iterator<Item = (usize, u32)> {
    item.state.recipients.iter().enumerate().filter_map(|(place, recipient)| match recipient {
        RecipientState::Pending { attempts, .. } => Some((place, *attempts)),
        _ => None,
    })
}

fn is_gathering(item: &Item, now: UnixMillis, policy: &Policy) -> bool {
    // Of a clock that was ahead nothing is awaited.
    let gathers = item.released()..item.released().plus(policy.gather_ms);
    gathers.contains(&now) && pending(item).any(|(_, attempts)| attempts == 0)
}

/// Returns whether somebody is to hear, sooner or later, that a pending recipient is late.
fn is_told_late(item: &Item, place: usize, terms: &Terms) -> bool {
    let wants = item.envelope.recipients()[place].wants();
    wants.delay && terms.late.is_some() && item.envelope.reverse_path.mailbox().is_some()
}

/// Returns when the notice of delay is due, unless it was sent or nobody waits whom it is about.
fn delay_notice_at(item: &Item, terms: impl Fn(usize) -> Terms) -> Option<UnixMillis> {
    if item.state.delay_notified {
        return None;
    }
    let told = pending(item).map(|(place, _)| (place, terms(place)));
    told.filter(|(place, terms)| is_told_late(item, *place, terms)).filter_map(|(_, terms)| terms.late).min()
}

fn next_time(item: &Item, now: UnixMillis, policy: &Policy, terms: impl Fn(usize) -> Terms) -> Option<UnixMillis> {
    let gathered = is_gathering(item, now, policy).then(|| item.released().plus(policy.gather_ms));
    let late = delay_notice_at(item, &terms);
    let expired = pending(item).map(|(place, _)| terms(place).expires);
    [gathered, late].into_iter().flatten().chain(expired).filter(|at| *at > now).min()
}
