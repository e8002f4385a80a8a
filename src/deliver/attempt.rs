//! One attempt: which recipients, over which way, and what is recorded of it.
//!
//! The order is fixed: try, record, notify, retire. What is recorded is durable before a
//! notification is written, and a notification is on stable storage before the message is retired.

use std::sync::Arc;
use std::time::{Duration, Instant};

use postroad_queue::schedule::{Attempt, Finish};
use postroad_queue::{Item, LoadError, QueueId, RecipientState, Report, UnixMillis};
use postroad_smtp::Reply;
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use super::active::Active;
use super::dispatcher::{Core, Routing, key};
use super::outcome::{Outcome, Timing, apply};
use super::remote::Lane;
use super::{local_mail, notify};
use crate::clock::millis;
use crate::metrics::Transport;
use crate::route::Route;

/// How soon an attempt is repeated that the host's own trouble prevented.
const TROUBLE_DELAY_MS: u64 = 60_000;

/// Takes one attempt after the other for one destination.
pub struct Worker {
    core: Arc<Core>,
    /// The attempt that is owed to the schedule; given back even when the worker panics.
    attempt: Option<Attempt>,
    lane: Lane,
}

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
}

/// The recipients of one attempt.
pub struct Task<'a> {
    /// The message.
    pub item: &'a Arc<Item>,
    /// The recipients' places in the envelope.
    pub places: Vec<usize>,
    /// The settings it runs under.
    pub routing: &'a Routing,
}

impl Worker {
    /// Begins with this attempt.
    pub fn new(core: Arc<Core>, attempt: Attempt) -> Worker {
        Worker { lane: Lane::new(attempt.destination().clone()), attempt: Some(attempt), core }
    }

    /// Works until nothing is ready for the destination.
    pub async fn run(mut self) {
        while let Some(attempt) = &self.attempt {
            let id = attempt.id();
            let destination = attempt.destination().clone();
            let finish = run_one(&self.core, &mut self.lane, id, &destination).await;
            let attempt = self.attempt.take().expect("the attempt that was just made");
            self.attempt = self.core.finished(attempt, finish);
        }
        std::mem::replace(&mut self.lane, Lane::new("".into())).end(&self.core).await;
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(attempt) = self.attempt.take() {
            self.core.cut_off(attempt);
        }
        self.core.worker_ended();
    }
}

async fn run_one(core: &Arc<Core>, lane: &mut Lane, id: QueueId, destination: &str) -> Finish {
    let active = match core.active.get(id) {
        Ok(active) => active,
        Err(LoadError::Unknown(_)) => return Finish::Done,
        Err(error) => {
            error!(queue_id = %id, %error, "cannot read a message");
            return Finish::Requeue { due: core.clock.now().plus(TROUBLE_DELAY_MS) };
        }
    };
    let item = active.item.lock().await.clone();
    let routing = core.routing.load_full();
    let (places, route) = pick(&routing, &item, destination);
    let task = Task { item: &item, places, routing: &routing };
    let started = Instant::now();
    let (outcomes, ended) = match route {
        None => (Vec::new(), Ended::Answered),
        Some(Route::Refused(reply)) => (task.all_failed(core, &reply), Ended::Answered),
        Some(Route::Local(hop)) => local_mail::deliver(core, lane, &task, &hop).await,
        Some(Route::Smtp(next_hop)) => lane.deliver(core, &task, &next_hop).await,
    };
    report(core, &item, destination, &outcomes, started.elapsed());
    let due = match settle(core, &active, outcomes, &routing).await {
        Ok(due) => due,
        Err(why) => {
            error!(queue_id = %id, %why, "an outcome cannot be recorded; the message will be tried again");
            Some(core.clock.now().plus(TROUBLE_DELAY_MS))
        }
    };
    match (due, ended) {
        (None, _) => Finish::Done,
        (Some(due), Ended::Answered) => Finish::Requeue { due },
        (Some(due), Ended::Throttled(said) | Ended::Stale(said)) => Finish::Throttled { due, said },
        (Some(_), Ended::Unreachable(said)) => Finish::DestinationFailed { said },
    }
}

/// Returns the pending recipients that go to this destination, and their route.
fn pick(routing: &Routing, item: &Item, destination: &str) -> (Vec<usize>, Option<Route>) {
    let mut places = Vec::new();
    let mut found = None;
    for (place, recipient) in item.envelope.recipients().iter().enumerate() {
        if !matches!(item.state.recipients[place], RecipientState::Pending { .. }) {
            continue;
        }
        let route = routing.router.route(&recipient.forward_path);
        if *key(&route) == *destination {
            places.push(place);
            found = Some(route);
        }
    }
    (places, found)
}

/// Records outcomes, then does what follows from them. Returns when the message is due again at
/// this destination.
async fn settle(
    core: &Arc<Core>,
    active: &Active<'_>,
    outcomes: Vec<(usize, Outcome)>,
    routing: &Routing,
) -> Result<Option<UnixMillis>, String> {
    let mut current = active.item.lock().await;
    if all_done(&current, &outcomes) {
        core.queue.retire(current.id);
        return Ok(None);
    }
    let due = if outcomes.is_empty() { None } else { record_outcomes(core, &mut current, outcomes, routing).await? };
    // While other attempts run, what they come to may go into the same notification.
    if active.is_only() {
        notify::send_due(core, &mut current, routing).await?;
    }
    if current.state.is_settled() {
        core.queue.retire(current.id);
    }
    Ok(due)
}

async fn record_outcomes(
    core: &Arc<Core>,
    current: &mut Arc<Item>,
    outcomes: Vec<(usize, Outcome)>,
    routing: &Routing,
) -> Result<Option<UnixMillis>, String> {
    let mut item = (**current).clone();
    let timing = Timing { now: core.clock.now(), retry: &routing.retry, random: fastrand::f64() };
    let due = apply(&mut item, outcomes, timing);
    record(core, &item).await?;
    *current = Arc::new(item);
    Ok(due)
}

/// The common case: every recipient was delivered by this attempt and nobody waits to hear of it.
/// The retirement is the record.
fn all_done(item: &Item, outcomes: &[(usize, Outcome)]) -> bool {
    let heard = |place: usize| {
        !item.envelope.recipients()[place].wants().success || item.envelope.reverse_path.mailbox().is_none()
    };
    outcomes.len() == item.state.recipients.len()
        && outcomes.iter().all(|(place, outcome)| {
            matches!(outcome, Outcome::Delivered { carries_notify, .. } if *carries_notify || heard(*place))
        })
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
        let (Outcome::Delivered { report, .. } | Outcome::Deferred(report) | Outcome::Failed(report)) = outcome;
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
