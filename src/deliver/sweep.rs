//! What time alone brings about: idle connections end, senders hear of a delay, mail expires.
//!
//! Retries cannot see to the age of messages: mail for a destination that is down waits for the
//! destination alone, without attempts of its own. Queue ids sort by arrival, so a cursor over them
//! for each age that means something comes by every message once when it is of that age, and needs
//! no memory. Whoever cannot be dealt with in passing (held, being tried, not quite due, a full
//! disk) gets a reminder.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use postroad_queue::schedule::{Standing, Why};
use postroad_queue::{Item, LoadError, QueueId, RecipientState, Report, UnixMillis};
use postroad_smtp::client::ReplyReader;
use postroad_smtp::line::Input;
use postroad_smtp::{Reply, Severity, Status};
use tokio::time::{sleep, timeout_at};
use tracing::error;

use super::active::Current;
use super::attempt::{TROUBLE_DELAY_MS, finish_up, record};
use super::dispatcher::{Core, Delivery, Routing};
use super::note;
use crate::clock::millis;
use crate::dsn;
use crate::route::{MESH_PREFIX, turn};

/// What falls due within this time is seen to in one sweep.
const PERIOD: Duration = Duration::from_secs(1);
/// Messages looked at by each cursor in one sweep, at most.
const MESSAGES_PER_SWEEP: usize = 1000;
/// A message is looked at this much later than its id says: the id is given out when the content
/// begins, the message counts as arrived when it was complete.
const SLACK_MS: u64 = 5_000;
/// So long after the start of a run mail of earlier ones is not given up before its turn has come: not its
/// destination was away but this host, or its clock is wrong.
const FIRST_TURN_LIMIT_MS: u64 = 3_600_000;

/// How far each cursor is.
#[derive(Default)]
pub struct Sweep {
    /// By the age that it looks for, in milliseconds.
    cursors: BTreeMap<u64, Option<QueueId>>,
    /// Of the settings that the cursors ran under.
    generation: u64,
}

impl Sweep {
    /// Sweeps until the agent drains. An agent that has nothing to do sleeps for hours.
    pub async fn run(mut self, core: Arc<Core>) {
        while !core.is_draining() {
            sleep(PERIOD).await;
            let at = core.clock.instant(self.next_at(&core));
            // Woken early or for nothing, it looks and sleeps on.
            let _ = timeout_at(at.into(), core.sweep_changed.notified()).await;
            self.once(&core).await;
        }
    }

    /// Returns when something falls due, if nothing is changed before ([`Core::sweep_changed`]).
    fn next_at(&self, core: &Core) -> UnixMillis {
        let routing = core.routing.load();
        let cursor = |age_ms: u64| self.cursors.get(&age_ms).copied().flatten();
        let of_age = ages(core, &routing).map(|age_ms| of_age_at(core, cursor(age_ms), age_ms));
        let left = |age: Duration| millis(routing.config.outbound.idle.saturating_sub(age));
        let kept = core.pool.oldest_age().map(|age| core.clock.now().plus(left(age)));
        of_age.chain(kept).chain(core.first_reminder()).min().unwrap_or(UnixMillis(u64::MAX))
    }

    async fn once(&mut self, core: &Arc<Core>) {
        let routing = core.routing.load_full();
        let generation = core.pool.generation();
        if self.generation != generation {
            // Other limits hold for what the cursors have passed.
            *self = Sweep { generation, ..Sweep::default() };
        }
        for age_ms in ages(core, &routing) {
            self.cursors.entry(age_ms).or_default();
        }
        for connection in core.pool.expire(routing.config.outbound.idle) {
            core.spawn(connection.quit());
        }
        let mut due = core.reminders(core.clock.now());
        for (age_ms, cursor) in &mut self.cursors {
            due.extend(come_of_age(core, cursor, *age_ms));
        }
        for id in due {
            if core.is_draining() {
                return;
            }
            if let Some(at) = look_at(core, id, &routing).await {
                core.remind(at, id);
            }
        }
    }
}

/// Returns every age at which something is due, in milliseconds.
fn ages(core: &Core, routing: &Routing) -> impl Iterator<Item = u64> {
    routing.ages().chain([core.expire_min_ms()])
}

/// Returns the next messages that are older than `age_ms` and moves the cursor behind them.
fn come_of_age(core: &Core, cursor: &mut Option<QueueId>, age_ms: u64) -> Vec<QueueId> {
    let old = UnixMillis(core.clock.now().since(UnixMillis(age_ms.saturating_add(SLACK_MS))));
    let mut ids = core.queue.ids(*cursor, MESSAGES_PER_SWEEP);
    let young = ids.iter().position(|id| arrived(core, *id) > old);
    ids.truncate(young.unwrap_or(ids.len()));
    *cursor = ids.last().copied().or(*cursor);
    ids
}

/// Returns when the message behind the cursor is older than `age_ms`, or the next that arrives.
fn of_age_at(core: &Core, cursor: Option<QueueId>, age_ms: u64) -> UnixMillis {
    let next = core.queue.ids(cursor, 1).first().map_or(core.clock.now(), |id| arrived(core, *id));
    next.plus(age_ms.saturating_add(SLACK_MS))
}

/// Returns when a message arrived, as the cursors count. Where a clock was ahead once, ids say a time that is yet to come
/// until it has come: then the message knows. One that was accepted by that clock counts as old, so that
/// it is looked at and keeps nobody behind it from that.
fn arrived(core: &Core, id: QueueId) -> UnixMillis {
    let now = core.clock.now();
    if id.arrived() <= now {
        return id.arrived();
    }
    let known = core.queue.load(id).ok().map(|item| item.arrived);
    known.filter(|at| *at <= now).unwrap_or_default()
}

/// Does what the age of a message asks for. Returns when to come back, if this cannot be done now.
async fn look_at(core: &Arc<Core>, id: QueueId, routing: &Routing) -> Option<UnixMillis> {
    let now = core.clock.now();
    let later = now.plus(TROUBLE_DELAY_MS);
    let active = match core.active.get(id) {
        Ok(active) => active,
        Err(LoadError::Unknown(_)) => return None,
        Err(error) => {
            core.unreadable(id, &error);
            return Some(later);
        }
    };
    let mut current = active.current.lock().await;
    if current.is_gone {
        return None;
    }
    if current.attempts > 0 || current.item.state.held {
        return Some(later);
    }
    if has_first_turn_ahead(core, &current.item, now) {
        core.admit_lost(&current.item);
        return Some(later);
    }
    if let Err(why) = expire(core, &mut current, routing, now).await {
        error!(queue_id = %id, %why, "the expiry of a message cannot be recorded");
        return Some(later);
    }
    if let Err(why) = finish_up(core, &mut current, routing).await {
        // finish_up leaves a reminder.
        error!(queue_id = %id, %why, "a sender cannot be told yet");
        return None;
    }
    if current.is_gone {
        core.schedule().remove(id);
        return None;
    }
    core.admit_lost(&current.item);
    next_look(core, &current.item, routing)
}

/// Returns whether mail of an earlier run is still to be tried for the first time in this one. What must not be late
/// waits for nothing (RFC 2852 §4.1).
fn has_first_turn_ahead(core: &Core, item: &Item, now: UnixMillis) -> bool {
    let is_late = item.returns_late() && item.deliver_by().is_some_and(|by| by <= now);
    if is_late || item.id > core.last_of_earlier_run || now >= core.started.plus(FIRST_TURN_LIMIT_MS) {
        return false;
    }
    let standings = core.schedule().describe(item.id, now);
    let waits_for_its_turn = |why: &Why| {
        !matches!(why, Why::Closed { .. } | Why::Deferred { .. } | Why::Held | Why::DestinationHeld | Why::AllHeld)
    };
    standings.is_empty() || standings.iter().any(|standing| waits_for_its_turn(&standing.why))
}

/// Returns when to look again at a message for which no cursor comes by in time: its content took
/// long, it was released later, or its own limits are other than those of today's configuration.
fn next_look(core: &Core, item: &Item, routing: &Routing) -> Option<UnixMillis> {
    let now = core.clock.now();
    // Of what a clock that is ahead accepted the cursors have passed all.
    let arrived = [item.id.arrived(), item.arrived].into_iter().find(|at| *at <= now);
    let visit = |arrived: UnixMillis| ages(core, routing).map(move |age_ms| arrived.plus(age_ms + SLACK_MS));
    let visits: Vec<UnixMillis> = arrived.into_iter().flat_map(visit).collect();
    let is_visited =
        |at: UnixMillis| visits.iter().any(|visit| *visit > now && *visit >= at && visit.since(at) <= SLACK_MS);
    let terms = (0..item.state.recipients.len()).filter(|place| is_pending(item, *place)).map(|place| {
        let terms = routing.terms(item, place);
        [Some(terms.expires), terms.late.filter(|_| !item.state.delay_notified)]
    });
    terms.flatten().flatten().filter(|at| *at > now && !is_visited(*at)).min()
}

fn is_pending(item: &Item, place: usize) -> bool {
    matches!(item.state.recipients[place], RecipientState::Pending { .. })
}

/// Gives up on what is still pending when its time is over.
pub async fn expire(core: &Arc<Core>, current: &mut Current, routing: &Routing, now: UnixMillis) -> Result<(), String> {
    let asked = current.item.clone();
    let expires = |place| routing.router.expires(&asked, place);
    if !(0..asked.state.recipients.len()).any(|place| is_pending(&asked, place) && now >= expires(place)) {
        return Ok(());
    }
    let mut item = (*current.item).clone();
    say_why(core, &mut item, now);
    if dsn::expire(&mut item.state, now, expires) {
        record(core, &item).await?;
        note::expired(
            core,
            &item,
            (0..asked.state.recipients.len()).filter(|place| is_pending(&asked, *place)).collect(),
        );
        current.item = Arc::new(item);
    }
    Ok(())
}

/// Recipients that were never tried wait for a destination that is closed: what was said of it is the
/// reason that their sender hears.
pub(super) fn say_why(core: &Arc<Core>, item: &mut Item, now: UnixMillis) {
    let standings = core.schedule().describe(item.id, now);
    let reasons: Vec<(Arc<str>, Reply)> =
        standings.into_iter().filter_map(|one| Some((one.destination.clone(), reason(&one)?))).collect();
    if reasons.is_empty() {
        return;
    }
    let destinations = Delivery(Arc::clone(core)).destinations_of(item);
    for (state, destination) in item.state.recipients.iter_mut().zip(destinations) {
        let reason = reasons.iter().find(|(of, _)| *of == destination);
        if let (RecipientState::Pending { last: last @ None, .. }, Some((_, reply))) = (state, reason) {
            *last = Some(Report { at: now, remote: None, reply: reply.clone() });
        }
    }
}

/// Returns why nothing of a destination was tried, where that is its own doing.
fn reason(standing: &Standing) -> Option<Reply> {
    let ours = |text: &str| Reply::of(451, Some(Status::new(4, 4, 1)), "").with_text(text);
    match &standing.why {
        Why::Closed { said, .. } | Why::Probing { said, .. } => Some(as_reply(said).unwrap_or_else(|| ours(said))),
        Why::DestinationHeld if standing.destination.starts_with(MESH_PREFIX) => {
            Some(ours("it waited for a member of the mesh to come for it, which has not come"))
        }
        Why::DestinationHeld => {
            let user = turn::user_of(&standing.destination)?;
            Some(ours(&format!("it waited for {user} to fetch it, who has not come")))
        }
        _ => None,
    }
}

/// Reads what was said of a destination where it is a transient reply: its code is not to stand in another one.
fn as_reply(said: &str) -> Option<Reply> {
    let mut input = Input::new();
    input.extend(format!("{said}\r\n").as_bytes());
    let reply = ReplyReader::new().next(&mut input).ok()??;
    (reply.severity() == Severity::Transient).then_some(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_of_a_destination_keeps_its_code() {
        for (said, want) in [
            ("451 4.4.1 connect to mx: refused", Some("451 4.4.1 connect to mx: refused")),
            ("421 busy", Some("421 busy")),
            ("the server did not answer in time", None),
            ("550 5.1.1 no", None),
            ("451 a\r\n250 b", Some("451 a")),
            ("", None),
        ] {
            assert_eq!(as_reply(said).map(|reply| reply.to_string()).as_deref(), want, "{said:?}");
        }
    }
}
