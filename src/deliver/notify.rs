//! Tells senders what became of their mail: composes notifications and commits them to the queue
//! by the same door as all mail.
//!
//! A notification is on stable storage before its recipients are marked as notified, so a crash
//! may repeat one and never loses one.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;

use postroad_queue::{Item, Origin, QueueId, UnixMillis};
use postroad_smtp::trace::HeaderScanner;
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::attempt::record;
use super::dispatcher::{Core, Routing};
use super::sweep::say_why;
use crate::clock::millis;
use crate::dsn::{self, Composed, Kind, Notification};
use crate::journal::{self, Note};
use crate::metrics::DsnKind;

/// Sends every notification that is due for a message and records that it was sent. After an error `current` says
/// what was sent all the same, and that is on no disk yet.
///
/// # Errors
/// Says why one cannot be committed or recorded; it is tried again with the next attempt.
pub async fn send_due(core: &Arc<Core>, current: &mut Arc<Item>, routing: &Routing) -> Result<(), String> {
    let policy = dsn::Policy::default();
    let now = core.clock.now();
    let due = dsn::due_notifications(current, now, &policy, |place| routing.terms(current, place));
    if let Some(at) = due.next.filter(|_| owes(current)) {
        core.remind(at, current.id);
    }
    if due.notifications.is_empty() && due.silent.is_empty() {
        return Ok(());
    }
    let item = Arc::make_mut(current);
    due.mark_silent(&mut item.state);
    for notification in &due.notifications {
        let front = front(core, item, notification.kind, &policy);
        let hostname = &routing.config.hostname;
        let told = with_reasons(core, item, notification.kind, now);
        if let Some(composed) = dsn::compose(&told, notification, hostname, &policy, &front, now) {
            let id = commit(core, composed, routing).await?;
            say(core, item, notification, id);
        }
        notification.mark(&mut item.state);
    }
    record(core, item).await
}

/// Returns the message as its sender is told of it: who waits behind an outage and was never tried is late because of it.
fn with_reasons<'a>(core: &Arc<Core>, item: &'a Item, kind: Kind, now: UnixMillis) -> Cow<'a, Item> {
    let mut told = Cow::Borrowed(item);
    if kind == Kind::Delay {
        say_why(core, told.to_mut(), now);
    }
    told
}

/// Returns whether some outcome waits to be told together with others.
fn owes(item: &Item) -> bool {
    use postroad_queue::RecipientState::{Delivered, Failed};
    let waits = |state: &_| matches!(state, Delivered { notified: false, .. } | Failed { notified: false, .. });
    item.state.recipients.iter().any(waits)
}

/// Reads as much of the message as goes back to its sender. The sender is to hear of the failure
/// even when the message itself cannot be read.
fn front(core: &Core, item: &Item, kind: Kind, policy: &dsn::Policy) -> Vec<u8> {
    let octets = usize::try_from(dsn::octets_wanted(item, kind, policy)).unwrap_or(usize::MAX);
    read_front(core, item.id, octets).unwrap_or_else(|error| {
        warn!(queue_id = %item.id, %error, "the notification goes without the message");
        Vec::new()
    })
}

fn read_front(core: &Core, id: QueueId, octets: usize) -> io::Result<Vec<u8>> {
    let mut content = core.queue.content(id).map_err(io::Error::other)?;
    let mut front = vec![0; octets];
    let mut have = 0;
    while have < front.len() {
        match content.read_at(have as u64, &mut front[have..])? {
            0 => break,
            n => have += n,
        }
    }
    front.truncate(have);
    Ok(front)
}

async fn commit(core: &Core, composed: Composed, routing: &Routing) -> Result<QueueId, String> {
    let now = core.clock.now();
    let mut draft = core.queue.draft(now).map_err(|error| error.to_string())?;
    draft.append(&composed.content).map_err(|error| error.to_string())?;
    let origin = Origin { protocol: "dsn".into(), ..Origin::default() };
    let expires = now.plus(millis(routing.config.queue.expire));
    let (tell, told) = oneshot::channel();
    let done = Box::new(move |result| drop(tell.send(result)));
    draft.commit(composed.envelope, origin, expires, now, done);
    match told.await {
        Ok(Ok(committed)) => {
            let mut header = HeaderScanner::new();
            header.scan(&composed.content);
            core.journal.accepted(committed.item(), header.message_id());
            Ok(committed.id())
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the queue is stopping".to_owned()),
    }
}

fn say(core: &Core, item: &Item, notification: &Notification, id: QueueId) {
    let (kind, label) = match notification.kind {
        Kind::Failure => ("failure", DsnKind::Failure),
        Kind::Delay => ("delay", DsnKind::Delay),
        Kind::Success => ("success", DsnKind::Success),
    };
    let (recipients, to) = (notification.notices.len(), &item.envelope.reverse_path);
    info!(queue_id = %item.id, notification = %id, kind, recipients, %to, "sender notified");
    core.metrics.count_notification(label);
    let places: Vec<usize> = notification.notices.iter().map(|notice| notice.recipient).collect();
    let note = Note { places: &places, other: Some(id), word: Some(kind), ..Note::default() };
    core.journal.note(core.clock.now(), item.id, journal::Kind::Notified, &note);
}

#[cfg(test)]
#[path = "notify_tests.rs"]
mod tests;
