//! What time alone brings about: idle connections end, senders hear of a delay, mail expires.
//!
//! Retries cannot see to the age of messages: mail for a destination that is down waits for the
//! destination alone, without attempts of its own. Queue ids sort by arrival, so two cursors over
//! them find what has come of age, each message once, and need no memory.

use std::sync::Arc;

use postroad_queue::schedule::{Selector, Why};
use postroad_queue::{Item, QueueId, RecipientState, Report, UnixMillis};
use postroad_smtp::{Reply, Status};
use tracing::error;

use super::attempt::record;
use super::dispatcher::{Core, Routing};
use super::notify;
use crate::clock::millis;
use crate::dsn;

/// Messages looked at in one sweep, at most, so that the alarm is never late by much.
const MESSAGES_PER_SWEEP: usize = 500;

/// How far each cursor is.
#[derive(Default)]
pub struct Sweep {
    delayed: Option<QueueId>,
    expired: Option<QueueId>,
}

impl Sweep {
    /// Does what has become due.
    pub async fn run(&mut self, core: &Arc<Core>) {
        let routing = core.routing.load_full();
        for connection in core.pool.expire(routing.config.outbound.idle) {
            core.spawn(connection.quit());
        }
        let now = core.clock.now();
        for id in core.reminders(now) {
            settle(core, id, &routing, false).await;
        }
        if let Some(notice) = routing.config.queue.delay_notice {
            let old = UnixMillis(now.since(UnixMillis(millis(notice))));
            for id in come_of_age(core, &mut self.delayed, old) {
                settle(core, id, &routing, false).await;
            }
        }
        let old = UnixMillis(now.since(UnixMillis(millis(routing.config.queue.expire))));
        for id in come_of_age(core, &mut self.expired, old) {
            settle(core, id, &routing, true).await;
        }
    }
}

/// Returns the next messages that arrived before `old` and moves the cursor behind them.
fn come_of_age(core: &Core, cursor: &mut Option<QueueId>, old: UnixMillis) -> Vec<QueueId> {
    let mut ids = core.queue.ids(*cursor, MESSAGES_PER_SWEEP);
    ids.retain(|id| id.arrived() <= old);
    *cursor = ids.last().copied().or(*cursor);
    ids
}

/// Fails what has expired and sends what notifications are due. A message that an attempt works on
/// is left to it: the outcome of that attempt is judged by the same rules.
async fn settle(core: &Arc<Core>, id: QueueId, routing: &Routing, expire: bool) {
    let Ok(active) = core.active.get(id) else { return };
    let mut current = active.item.lock().await;
    if !active.is_only() || current.state.held {
        return;
    }
    let mut item = (**current).clone();
    if expire {
        let now = core.clock.now();
        say_why(core, &mut item, now);
        if !dsn::expire(&mut item.state, now) {
            return;
        }
        core.schedule().remove(Selector::Id(id));
        if let Err(why) = record(core, &item).await {
            error!(queue_id = %id, %why, "the expiry of a message cannot be recorded");
            return;
        }
        *current = Arc::new(item);
    }
    if let Err(why) = notify::send_due(core, &mut current, routing).await {
        error!(queue_id = %id, %why, "a notification cannot be sent");
        return;
    }
    if current.state.is_settled() {
        core.queue.retire(id);
    }
}

/// Recipients that were never tried wait for a destination that is closed: what it said is the
/// reason that their sender hears.
fn say_why(core: &Core, item: &mut Item, now: UnixMillis) {
    let standings = core.schedule().describe(item.id, now);
    let said = standings.iter().find_map(|standing| match &standing.why {
        Why::Closed { said, .. } => Some(said),
        _ => None,
    });
    let Some(said) = said else { return };
    let reply = Reply::of(451, Some(Status::new(4, 4, 1)), "").with_text(said);
    for state in &mut item.state.recipients {
        if let RecipientState::Pending { last: last @ None, .. } = state {
            *last = Some(Report { at: now, remote: None, reply: reply.clone() });
        }
    }
}
