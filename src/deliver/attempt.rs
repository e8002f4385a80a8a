//! One attempt: which recipients, over which way, and what is recorded of it.
//!
//! The order is fixed: try, record, notify, retire. What is recorded is durable before a
//! notification is written, and a notification is on stable storage before the message is retired.
//! Where the disk has no room for the record, memory keeps it, and nothing goes on before it is written.

use std::sync::Arc;
use std::time::{Duration, Instant};

use postroad_queue::schedule::{Attempt, Finish, Selector};
use postroad_queue::{Item, LoadError, RecipientState, Report, UnixMillis};
use postroad_smtp::Reply;
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use super::active::{Active, Current};
use super::admission::Admission;
use super::dispatcher::{Core, Routing};
use super::jobs::key;
use super::outcome::{Outcome, Timing, apply};
use super::remote::Lane;
use super::sweep::expire;
use super::{diverted, local_mail, note, notify};
use crate::clock::millis;
use crate::memory::{Held, attempt_octets};
use crate::metrics::Transport;
use crate::route::{Mail, Route};

/// How soon something is repeated that this host's own trouble prevented.
pub const TROUBLE_DELAY_MS: u64 = 60_000;
/// How soon an attempt comes back for recipients that another one is trying.
const BUSY_DELAY_MS: u64 = 1000;

/// What an attempt came to, beside the outcomes.
pub enum Ended {
    /// The destination answered.
    Answered,
    /// The session was refused or lost on the way.
    Throttled(Arc<str>),
    /// A connection that was kept turned out to be closed.
    Stale(Arc<str>),
    /// The destination could not be reached.
    Unreachable(Arc<str>),
    /// The same, and none of its hosts answered at all: no connection came about.
    Silent(Arc<str>),
    /// Nobody was asked: the hosts that take the destination's mail are those of others, too, and
    /// have enough to do or cannot be reached.
    Elsewhere,
}

/// The recipients of one attempt.
pub struct Task<'a> {
    /// The message.
    pub item: &'a Arc<Item>,
    /// The recipients' places in the envelope.
    pub places: Vec<usize>,
    /// The settings it runs under.
    pub routing: &'a Routing,
    /// What goes behind it, over the same connection if that is one of those that take it.
    pub next: Option<&'a Task<'a>>,
}

/// An attempt that has begun: nobody else tries its recipients.
pub struct Begun<'a> {
    core: &'a Arc<Core>,
    active: Active<'a>,
    routing: Arc<Routing>,
    item: Arc<Item>,
    places: Vec<usize>,
    route: Route,
    _held: Held,
}

impl<'a> Begun<'a> {
    /// Begins an attempt: marks the recipients that go to its destination as being tried.
    ///
    /// # Errors
    /// How it ends when there is nothing to try.
    pub async fn new(core: &'a Arc<Core>, attempt: &Attempt) -> Result<Begun<'a>, Finish> {
        let id = attempt.id();
        let active = match core.active.get(id) {
            Ok(active) => active,
            Err(LoadError::Unknown(_)) => return Err(Finish::Forgotten),
            Err(error) => return Err(core.unreadable(id, &error)),
        };
        let routing = core.routing.load_full();
        let (item, places, route) = mark(core, &active, &routing, attempt.destination()).await?;
        let held = Held::new(core.memory.clone(), attempt_octets(item.envelope.recipients().len()));
        Ok(Begun { core, active, routing, item, places, route, _held: held })
    }

    /// Returns what is to be done, and what goes behind it.
    pub fn task<'b>(&'b self, next: Option<&'b Task<'b>>) -> Task<'b> {
        Task { item: &self.item, places: self.places.clone(), routing: &self.routing, next }
    }

    /// Makes the attempt, and records what came of it.
    pub async fn make(&self, lane: &mut Lane, attempt: &mut Attempt, task: &Task<'_>) -> Finish {
        let (core, item) = (self.core, &self.item);
        let started = Instant::now();
        let (outcomes, ended) = match &self.route {
            Route::Refused(reply) => (task.all_failed(core, reply), Ended::Answered),
            Route::Local(hop) => local_mail::deliver(core, lane, task, hop).await,
            Route::Smtp(next_hop) => lane.deliver(core, attempt, task, next_hop).await,
            Route::Turn(hop) => lane.hand_out(core, attempt, task, hop).await,
        };
        if let Ended::Elsewhere = ended {
            return self.give_back().await;
        }
        // In memory, and first: that it left the queue comes behind why.
        diverted::note(core, task, &self.route, &outcomes);
        note::outcomes(core, item, &outcomes, started.elapsed());
        note::outside(core, item, &self.route, &outcomes);
        retire_delivered(core, &self.active, &outcomes).await;
        report(core, item, attempt.destination(), &outcomes, started.elapsed());
        let is_unheard = matches!(ended, Ended::Unreachable(_) | Ended::Silent(_));
        match (settle(core, &self.active, &self.places, (outcomes, is_unheard), &self.routing).await, ended) {
            // Nobody at the destination was heard, whatever became of the message.
            (_, Ended::Unreachable(said)) => Finish::DestinationFailed { said },
            (_, Ended::Silent(said)) => Finish::Silent { said },
            (Ok(None), _) => Finish::Done,
            (Ok(Some(due)), Ended::Answered | Ended::Elsewhere) => Finish::Requeue { due },
            (Ok(Some(due)), Ended::Throttled(said) | Ended::Stale(said)) => Finish::Throttled { due, said },
            (Err(why), _) => unrecorded(core, item, &why),
        }
    }

    /// Ends an attempt in which nobody was asked: there is nothing to record. It may have been the last
    /// of those that the notification waits for.
    pub async fn give_back(&self) -> Finish {
        let mut current = self.active.current.lock().await;
        current.end_attempt(&self.places);
        if current.is_gone {
            return Finish::Forgotten;
        }
        if current.attempts == 0
            && let Err(why) = finish_up(self.core, &mut current, &self.routing).await
        {
            error!(queue_id = %current.item.id, %why, "a sender cannot be told yet");
        }
        Finish::Returned
    }
}

/// Marks the recipients that go to this destination as being tried.
async fn mark(
    core: &Arc<Core>,
    active: &Active<'_>,
    routing: &Routing,
    destination: &str,
) -> Result<(Arc<Item>, Vec<usize>, Route), Finish> {
    let mut current = active.current.lock().await;
    if current.is_gone {
        return Err(Finish::Forgotten);
    }
    if current.item.state.held {
        core.schedule().hold(Selector::Id(current.item.id));
        return Err(Finish::Returned);
    }
    if let Err(why) = record_owed(core, &mut current).await {
        return Err(unrecorded(core, &current.item, &why));
    }
    // An admin may have made it due; the sender's wish stands.
    if let Some(due) = current.item.held_until(core.clock.now()) {
        return Err(Finish::Postponed { due });
    }
    if let Some(finish) = end_by_time(core, &mut current, routing).await {
        return Err(finish);
    }
    let (places, route) = pick(routing, &current.item, &core.mail(routing, &current.item), destination);
    let busy = places.iter().any(|place| current.trying.contains(place));
    match route {
        // After a reload two attempts may mean the same recipients: the second waits for the first.
        Some(_) if busy => Err(Finish::Postponed { due: core.clock.now().plus(BUSY_DELAY_MS) }),
        Some(route) => {
            current.attempts += 1;
            current.trying.extend(&places);
            Ok((current.item.clone(), places, route))
        }
        None => Err(nothing_here(core, &mut current, routing).await),
    }
}

/// Where the time is over that the sender gave the message, it goes back or its sender hears that it
/// is late, before anything is tried (RFC 2852 §4.1). Returns how the attempt ends when nothing is.
async fn end_by_time(core: &Arc<Core>, current: &mut Current, routing: &Routing) -> Option<Finish> {
    let now = core.clock.now();
    current.item.deliver_by().filter(|at| *at <= now)?;
    if current.attempts > 0 {
        // What another attempt comes to stands before that it came too late.
        let due = now.plus(BUSY_DELAY_MS);
        return current.item.returns_late().then_some(Finish::Postponed { due });
    }
    let told = match expire(core, current, routing, now).await {
        Ok(()) => finish_up(core, current, routing).await,
        Err(why) => Err(why),
    };
    match told {
        Ok(()) => current.is_gone.then_some(Finish::Forgotten),
        Err(why) => {
            error!(queue_id = %current.item.id, %why, "a sender cannot be told yet that its message is late");
            Some(Finish::Postponed { due: now.plus(TROUBLE_DELAY_MS) })
        }
    }
}

/// No pending recipient goes to this destination: whoever is left goes elsewhere now, or only the
/// sender is still to be told.
async fn nothing_here(core: &Arc<Core>, current: &mut Current, routing: &Routing) -> Finish {
    if current.item.state.recipients.iter().any(|state| matches!(state, RecipientState::Pending { .. })) {
        core.admit(std::slice::from_ref(&current.item), &Admission::First);
        return Finish::Forgotten;
    }
    match finish_up(core, current, routing).await {
        Ok(()) => Finish::Forgotten,
        Err(why) => {
            error!(queue_id = %current.item.id, %why, "a sender cannot be told yet");
            Finish::Postponed { due: core.clock.now().plus(TROUBLE_DELAY_MS) }
        }
    }
}

/// Returns the pending recipients that go to this destination, and their route.
fn pick(routing: &Routing, item: &Item, mail: &Mail<'_>, destination: &str) -> (Vec<usize>, Option<Route>) {
    let mut places = Vec::new();
    let mut found = None;
    for (place, recipient) in item.envelope.recipients().iter().enumerate() {
        if !matches!(item.state.recipients[place], RecipientState::Pending { .. }) {
            continue;
        }
        let route = routing.router.route_mail(&recipient.forward_path, mail);
        if *key(&route) == *destination {
            places.push(place);
            found = Some(route);
        }
    }
    (places, found)
}

/// The common case: every recipient was delivered by this attempt and nobody waits to hear of it. The
/// retirement is the record, and comes before all else: until then the end of the process would repeat
/// the delivery.
async fn retire_delivered(core: &Core, active: &Active<'_>, outcomes: &[(usize, Outcome)]) {
    let mut current = active.current.lock().await;
    if !current.is_gone && all_done(&current.item, outcomes) {
        current.is_gone = true;
        core.retire(&current.item);
    }
}

/// Records outcomes, and whether nobody was heard at the destination, then does what follows from
/// them. Returns when the message is due again at this destination.
async fn settle(
    core: &Arc<Core>,
    active: &Active<'_>,
    places: &[usize],
    (outcomes, is_unheard): (Vec<(usize, Outcome)>, bool),
    routing: &Routing,
) -> Result<Option<UnixMillis>, String> {
    let mut current = active.current.lock().await;
    current.end_attempt(places);
    if current.is_gone {
        return Ok(None);
    }
    let mut item = (*current.item).clone();
    let patience = |item: &Item, place| (routing.retry(item, place), routing.router.expires(item, place));
    let timing = Timing { now: core.clock.now(), patience: &patience, random: fastrand::f64(), is_unheard };
    let put_off: Vec<usize> = outcomes.iter().filter(|(_, outcome)| outcome.is_deferral()).map(|(at, _)| *at).collect();
    let due = apply(&mut item, outcomes, timing);
    let recorded = record(core, &item).await;
    note::expired(core, &item, put_off);
    // It holds whether or not the disk has room for it: who was delivered to is not delivered to again.
    current.item = Arc::new(item);
    current.is_unrecorded = recorded.is_err();
    recorded?;
    // While other attempts run, what they come to may go into the same notification: the last one
    // to end sends it.
    if current.attempts == 0 {
        finish_up(core, &mut current, routing).await?;
    }
    Ok(due)
}

/// Tells the sender what is due, and ends the message when nothing is left to do.
///
/// # Errors
/// Says why a notification cannot be sent; somebody has to come back for it.
pub async fn finish_up(core: &Arc<Core>, current: &mut Current, routing: &Routing) -> Result<(), String> {
    let told = match record_owed(core, current).await {
        Ok(()) => notify::send_due(core, &mut current.item, routing).await,
        Err(why) => Err(why),
    };
    if let Err(why) = told {
        // Who was told is not told again.
        current.is_unrecorded = true;
        core.remind(core.clock.now().plus(TROUBLE_DELAY_MS), current.item.id);
        return Err(why);
    }
    if current.item.state.is_settled() {
        current.is_gone = true;
        core.retire(&current.item);
    }
    Ok(())
}

/// Returns whether nothing is left to do for the message.
fn all_done(item: &Item, outcomes: &[(usize, Outcome)]) -> bool {
    let heard = |place: usize| {
        !item.envelope.recipients()[place].wants().success || item.envelope.reverse_path.mailbox().is_none()
    };
    outcomes.len() == item.state.recipients.len()
        && outcomes.iter().all(|(place, outcome)| {
            matches!(outcome, Outcome::Delivered { carries_notify, ends_by_time: false, .. }
                if *carries_notify || heard(*place))
        })
}

/// Says that the disk has not taken what an attempt came to, and returns how one ends that has to wait for that.
fn unrecorded(core: &Core, item: &Item, why: &str) -> Finish {
    error!(queue_id = %item.id, %why, "what became of a message cannot be recorded yet; nobody is tried again before");
    Finish::Postponed { due: core.clock.now().plus(TROUBLE_DELAY_MS) }
}

/// Makes the item's state durable.
///
/// # Errors
/// Says why it is not.
pub async fn record(core: &Core, item: &Item) -> Result<(), String> {
    let (tell, told) = oneshot::channel();
    core.queue.record(item.id, item.state.clone(), move |result| {
        let _ = tell.send(result);
    });
    match told.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the queue is stopping".to_owned()),
    }
}

/// Makes durable what could not be recorded when it came about.
async fn record_owed(core: &Core, current: &mut Current) -> Result<(), String> {
    if current.is_unrecorded {
        record(core, &current.item).await?;
        current.is_unrecorded = false;
    }
    Ok(())
}

impl Task<'_> {
    /// Returns whether an earlier attempt for this recipient is on record.
    pub fn tried_before(&self, place: usize) -> bool {
        !matches!(self.item.state.recipients[place], RecipientState::Pending { attempts: 0, .. })
    }

    /// The same outcome for every recipient of the task.
    pub fn all(&self, outcome: &Outcome) -> Vec<(usize, Outcome)> {
        self.places.iter().map(|place| (*place, outcome.clone())).collect()
    }

    fn all_failed(&self, core: &Core, reply: &Reply) -> Vec<(usize, Outcome)> {
        self.all(&Outcome::Failed(Report { at: core.clock.now(), remote: None, reply: reply.clone() }))
    }
}

/// Says what became of each recipient, in the log and in the metrics.
fn report(core: &Core, item: &Item, destination: &str, outcomes: &[(usize, Outcome)], took: Duration) {
    let age_ms = core.clock.now().since(item.arrived);
    let ms = millis(took);
    let by = transport(destination);
    for (place, outcome) in outcomes {
        let to = &item.envelope.recipients()[*place].forward_path;
        let report = outcome.report();
        let (remote, reply) = (report.remote.as_deref().unwrap_or("-"), &report.reply);
        match outcome {
            Outcome::Delivered { .. } => {
                info!(queue_id = %item.id, %to, remote, %reply, ms, age_ms, "delivered");
                core.metrics.count_delivered(by, 1, age_ms as f64 / 1000.0);
            }
            Outcome::Deferred(_) => {
                info!(queue_id = %item.id, %to, remote, %reply, ms, age_ms, "deferred");
                core.metrics.count_deferred(by, 1);
            }
            Outcome::Failed(_) => {
                warn!(queue_id = %item.id, %to, remote, %reply, ms, age_ms, "failed");
                core.metrics.count_failed(by, 1);
            }
        }
    }
}

fn transport(destination: &str) -> Transport {
    match destination.split_once(':') {
        Some(("local", _)) => Transport::Maildir,
        Some(("none", _)) | None => Transport::None,
        Some(_) => Transport::Smtp,
    }
}

#[cfg(test)]
mod tests;
