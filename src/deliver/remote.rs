//! Delivery to other hosts: hops in their order, one kept connection per worker, transactions of a
//! bounded number of recipients.

use std::sync::Arc;
use std::time::Duration;

use postroad_mesh::NodeId;
use postroad_queue::schedule::Attempt;
use postroad_queue::{LoadError, QueueId, Report};
use postroad_smtp::client::{Answer, Failure, Transaction};
use postroad_smtp::{DeliverBy, ForwardPath, MailParams, OriginalRecipient, Recipient, Reply, Severity, Status};
use tracing::{debug, error, warn};

use super::attempt::{Ended, Task};
use super::dispatcher::{Core, Routing};
use super::members;
use super::open::{NoSession, dial, of_host, targets};
use super::outcome::Outcome;
use super::transport::{Connection, Target};
use crate::metrics::Direction;
use crate::route::{self, Hop, NextHop};

/// Recipients of one transaction, at most: what every host has to take (RFC 5321 §4.5.3.1.8).
const RECIPIENTS_PER_TRANSACTION_MAX: usize = 100;
/// How long it is believed, with connections at hand, that a destination's mail goes to the site
/// that DNS named last.
const SITE_TRUSTED_MS: u64 = 60_000;

const NO_ADDRESS: Reply = Reply::of(451, Some(Status::new(4, 4, 4)), "no address of this member of the mesh is known");

/// A worker's way to its site: the connection it holds, if any.
pub struct Lane {
    site: Arc<str>,
    pub(super) connection: Option<Connection>,
}

/// What became of a task: outcomes by place, and how the destination behaved.
pub type Result = (Vec<(usize, Outcome)>, Ended);

/// What became of what was sent to one host.
pub struct Sent {
    /// Outcomes by place.
    pub outcomes: Vec<(usize, Outcome)>,
    /// Places whose content was sent whole and whose reply was lost: the host may have taken it.
    pub unknown: Vec<usize>,
    /// How the host behaved.
    pub ended: Ended,
}

impl Lane {
    /// A way to a site, without a connection yet.
    pub fn new(site: Arc<str>) -> Lane {
        Lane { site, connection: None }
    }

    /// Returns the site that it leads to.
    pub fn site(&self) -> &str {
        &self.site
    }

    /// Returns how long the last transaction took, where the peer takes an envelope ahead of its turn.
    pub fn pace_ahead(&self) -> Option<Duration> {
        self.connection.as_ref()?.pace_ahead()
    }

    /// Keeps the connection for the next worker, or closes it.
    pub async fn end(self, core: &Arc<Core>) {
        let Some(connection) = self.connection else { return };
        if connection.ticket().is_some() {
            core.put_back(connection, false);
            return core.start_ready();
        }
        let surplus = match connection.failure() {
            None if !core.is_draining() => core.keep(&self.site, connection),
            _ => Some(connection),
        };
        if let Some(connection) = surplus {
            connection.quit().await;
        }
    }

    /// Tries to deliver to a next hop: to the site that DNS names, if that has room.
    pub async fn deliver(&mut self, core: &Core, attempt: &mut Attempt, task: &Task<'_>, next_hop: &NextHop) -> Result {
        if let route::Target::Members { steps, .. } = next_hop.target() {
            return Box::pin(self.deliver_to_members(core, attempt, task, (next_hop, steps))).await;
        }
        let is_known = attempt.learned().is_some_and(|at| core.clock.now().since(at) < SITE_TRUSTED_MS);
        if (is_known || !next_hop.is_by_mx())
            && let Some(sent) = self.over_kept(core, task).await
        {
            return sent.into();
        }
        let found = task.routing.resolver.resolve(next_hop).await;
        // Trouble with DNS is the destination's own, and no fault of those who took its mail so far.
        let site = found.as_ref().map_or_else(|_| next_hop.key(), |found| &found.site);
        if !core.relocate(attempt, site) {
            return (Vec::new(), Ended::Elsewhere);
        }
        self.go_to(core, site);
        let hops = match found {
            Ok(found) => found.hops,
            Err(error) => return refused(core, task, None, Reply::from(&error)).into(),
        };
        match self.over_kept(core, task).await {
            Some(sent) => sent.into(),
            None => self.over_hops(core, task, hops).await.into(),
        }
    }

    /// Sends over a new connection to the first of these hops that takes a session.
    pub(super) async fn over_hops(&mut self, core: &Core, task: &Task<'_>, hops: Vec<Hop>) -> Sent {
        match targets(core, task.routing, &hops).await {
            Ok(targets) if targets.is_empty() => refused(core, task, None, NO_ADDRESS),
            Ok(targets) => self.over_new(core, task, targets).await,
            Err(reply) => refused(core, task, None, reply),
        }
    }

    /// Turns to another site; a connection to the one before is kept for others.
    pub(super) fn go_to(&mut self, core: &Core, site: &Arc<str>) {
        if self.site == *site {
            return;
        }
        match self.connection.take() {
            Some(connection) if connection.ticket().is_some() => core.put_back(connection, false),
            Some(connection) => {
                if let Some(surplus) = core.keep(&self.site, connection) {
                    core.spawn(surplus.quit());
                }
            }
            None => {}
        }
        self.site = site.clone();
    }

    /// Tries to deliver to one of these hosts.
    pub async fn deliver_to(&mut self, core: &Core, task: &Task<'_>, targets: Vec<Target>) -> Result {
        match self.over_kept(core, task).await {
            Some(sent) => sent.into(),
            None => self.over_new(core, task, targets).await.into(),
        }
    }

    async fn over_new(&mut self, core: &Core, task: &Task<'_>, targets: Vec<Target>) -> Sent {
        let generation = generation(core, task.routing);
        match dial(core, targets).await {
            Ok(mut connection) => {
                connection.set_generation(generation);
                self.send_all(core, task, connection).await
            }
            Err(NoSession { remote, is_said, reply, is_silent }) => {
                let mut sent = refused(core, task, is_said.then_some(remote), reply);
                if let (true, Ended::Unreachable(said)) = (is_silent, &sent.ended) {
                    sent.ended = Ended::Silent(said.clone());
                }
                sent
            }
        }
    }

    /// Returns an open connection: this worker's own or one that another left, opened under the
    /// settings that hold now. One that the message's envelope went over already is its only one.
    fn kept(&mut self, core: &Core, id: QueueId) -> Option<Connection> {
        let own = self.connection.take();
        if own.as_ref().is_some_and(|own| own.ahead() == Some(id)) {
            return own;
        }
        if let Some(own) = own.filter(|own| own.ahead().is_none() && own.is_quiet()) {
            if own.generation() == Some(core.pool.generation()) && shows_the_key(core, &own) {
                return Some(own);
            }
            core.spawn(own.quit());
        }
        loop {
            let kept = core.pool.take(&self.site)?;
            if shows_the_key(core, &kept) {
                core.metrics.connections_reused.inc();
                return Some(kept);
            }
            core.spawn(kept.quit());
        }
    }

    /// Sends over a connection that was used before. `None` when it turns out that it was closed
    /// before the first transaction began: nobody can have taken the message, so a fresh connection
    /// is tried at once.
    pub(super) async fn over_kept(&mut self, core: &Core, task: &Task<'_>) -> Option<Sent> {
        let connection = self.kept(core, task.item.id)?;
        match self.send_all(core, task, connection).await {
            Sent { ended: Ended::Stale(_), .. } => {
                debug!(queue_id = %task.item.id, "a kept connection was closed; connecting anew");
                None
            }
            sent => Some(sent),
        }
    }

    /// Sends to all recipients of the task, so many in each transaction.
    pub(super) async fn send_all(&mut self, core: &Core, task: &Task<'_>, mut connection: Connection) -> Sent {
        let mut outcomes = Vec::with_capacity(task.places.len());
        let (mut ended, mut unknown) = (Ended::Answered, Vec::new());
        let mut rest = task.places.clone();
        while !rest.is_empty() && connection.failure().is_none() {
            let later = rest.split_off(rest.len().min(RECIPIENTS_PER_TRANSACTION_MAX));
            let places = std::mem::replace(&mut rest, later);
            let content = match core.queue.content(task.item.id) {
                Ok(content) => content,
                Err(error) => {
                    rest = places.into_iter().chain(rest).collect();
                    outcomes.extend(deferred(core, &rest, unreadable(task, &error)));
                    rest.clear();
                    break;
                }
            };
            let transaction = transaction(core, task, &places, connection.nodes().map(|nodes| nodes.me));
            let next = if rest.is_empty() { behind(core, task, &connection) } else { None };
            let answers = connection.send(transaction, content, next).await;
            if connection.is_exposed() {
                core.metrics.count_plaintext(Direction::Out);
            }
            if let Some(error) = connection.take_damage() {
                error!(queue_id = %task.item.id, %error, "cannot read the content to its end");
            }
            if let Some(failure) = connection.failure() {
                ended = ended_by(failure, &connection, &answers, outcomes.is_empty());
            }
            let (answered, surplus) = without_surplus(&places, answers);
            rest.splice(0..0, surplus);
            unknown.extend(
                answered.iter().filter(|(_, answer)| matches!(answer, Answer::Unknown(_))).map(|(place, _)| *place),
            );
            let by = task.item.envelope.params.deliver_by;
            let outcome = |(place, answer)| (place, outcome(core, answer, &connection, by));
            outcomes.extend(answered.into_iter().map(outcome));
        }
        // Untried recipients wait for the next attempt, which comes with the others'.
        let reply = Reply::of(451, Some(Status::new(4, 4, 2)), "The session ended before this recipient's turn");
        outcomes.extend(deferred(core, &rest, reply));
        self.keep(core, connection);
        Sent { outcomes, unknown, ended }
    }

    /// Keeps a connection that can go on. Outcomes wait to be recorded, so nobody waits for the end
    /// of one that has served; one that failed is cut.
    fn keep(&mut self, core: &Core, connection: Connection) {
        let uses_max = core.routing.load().config.outbound.connection_uses_max;
        match connection.failure() {
            Some(_) => {
                if let Some(ticket) = connection.ticket() {
                    core.lost(ticket);
                }
            }
            // Its customer would have to come again.
            None if connection.ticket().is_some() => self.connection = Some(connection),
            // A host behind a balancer gets a chance to move us.
            None if connection.transactions() >= uses_max => core.spawn(connection.quit()),
            None => self.connection = Some(connection),
        }
    }
}

/// Returns the number of the settings that `routing` belongs to, or `None` when others are in force
/// already. The order matters: the number is raised after the settings were changed.
fn generation(core: &Core, routing: &Routing) -> Option<u64> {
    let generation = core.pool.generation();
    let in_force = core.routing.load();
    std::ptr::eq(&raw const **in_force, routing).then_some(generation)
}

/// Returns whether a connection shows its host the key by which that one is to know this host. While a key is
/// changed that becomes another one, and sessions under the old key end with it.
pub(super) fn shows_the_key(core: &Core, connection: &Connection) -> bool {
    connection.nodes().is_none_or(|nodes| core.peers.me_to(&nodes.member) == Some(nodes.me))
}

/// Returns the transaction that goes behind a task's last one, where one does and the connection lasts
/// so long.
fn behind(core: &Core, task: &Task<'_>, connection: &Connection) -> Option<(QueueId, Transaction)> {
    let uses_max = core.routing.load().config.outbound.connection_uses_max;
    let lasts = connection.transactions() + 1 < uses_max && connection.ticket().is_none() && !connection.is_member();
    let next = task.next.filter(|_| lasts)?;
    Some((next.item.id, transaction(core, next, &next.places, None)))
}

fn transaction(core: &Core, task: &Task<'_>, places: &[usize], me: Option<NodeId>) -> Transaction {
    let envelope = &task.item.envelope;
    let deliver_by = task.item.deliver_by_left(core.clock.now());
    // Which way it came is for members alone.
    let passage = me.and_then(|me| members::onward(task, me));
    Transaction {
        reverse_path: envelope.reverse_path.clone(),
        params: MailParams { deliver_by, passage, ..envelope.params.clone() },
        recipients: places.iter().map(|place| recipient(task, *place)).collect(),
        content_octets: task.item.content_octets,
        needs_smtputf8: envelope.params.smtputf8,
    }
}

/// Returns a recipient as the next hop is to know it: mail for the postmaster of this host is
/// written to the mailbox it goes to. The sender hears of the address it wrote to (RFC 3461 §5.2.1:
/// an ORCPT that is added is the forward-path as received).
fn recipient(task: &Task<'_>, place: usize) -> Recipient {
    let mut recipient = task.item.envelope.recipients()[place].clone();
    let target = task.routing.router.target(&recipient.forward_path).into_owned();
    if target != recipient.forward_path {
        let written = std::mem::replace(&mut recipient.forward_path, target);
        recipient.original.get_or_insert_with(|| original(&written));
    }
    recipient
}

fn original(written: &ForwardPath) -> OriginalRecipient {
    OriginalRecipient {
        addr_type: if written.is_ascii() { "rfc822" } else { "utf-8" }.into(),
        address: written.mailbox().map_or("postmaster".into(), |mailbox| mailbox.to_string().into()),
    }
}

fn outcome(core: &Core, answer: Answer, connection: &Connection, by: Option<DeliverBy>) -> Outcome {
    let (at, remote, is_ours) = (core.clock.now(), connection.remote(), connection.is_ours(&answer));
    let report = |reply| match is_ours {
        true => Report { at, remote: None, reply: of_host(remote, reply) },
        false => Report { at, remote: Some(remote.into()), reply },
    };
    match answer {
        Answer::Accepted(reply) => Outcome::Delivered {
            report: report(reply),
            carries_notify: connection.carries_notify(),
            ends_by_time: by.is_some_and(|by| connection.ends_by_time(by)),
        },
        Answer::Transient(reply) | Answer::Unknown(reply) => Outcome::Deferred(report(reply)),
        Answer::Permanent(reply) => Outcome::Failed(report(reply)),
    }
}

fn deferred(core: &Core, places: &[usize], reply: Reply) -> Vec<(usize, Outcome)> {
    let report = Report { at: core.clock.now(), remote: None, reply };
    places.iter().map(|place| (*place, Outcome::Deferred(report.clone()))).collect()
}

/// Says how a session ended. A kept connection that was closed before the first of the task's
/// transactions tells nothing; whatever was sent behind a sign of life may have been delivered, and
/// so may content that was written to its end: that is not sent again at once. Content that cannot
/// be read is no fault of the peer.
fn ended_by(failure: &Failure, connection: &Connection, answers: &[Answer], first: bool) -> Ended {
    let said: Arc<str> = failure.to_string().into();
    let unknown = answers.iter().any(|answer| matches!(answer, Answer::Unknown(_)));
    match failure {
        Failure::Content(_) => Ended::Answered,
        _ if first && !unknown && connection.was_stale() => Ended::Stale(said),
        // Its customer is here anew, and would otherwise wait for it until the next attempt.
        _ if first && connection.has_follower() => Ended::Stale(said),
        _ => Ended::Throttled(said),
    }
}

/// Takes out recipients that were too many for one transaction (452, RFC 5321 §4.5.3.1.10): they
/// go with the next one at once, as long as each transaction moves somebody forward.
fn without_surplus(places: &[usize], answers: Vec<Answer>) -> (Vec<(usize, Answer)>, Vec<usize>) {
    let moved = answers.iter().any(|answer| matches!(answer, Answer::Accepted(_)));
    let is_surplus = |answer: &Answer| moved && answer.reply().code.get() == 452;
    let (surplus, answered): (Vec<_>, Vec<_>) =
        places.iter().copied().zip(answers).partition(|(_, answer)| is_surplus(answer));
    (answered, surplus.into_iter().map(|(place, _)| place).collect())
}

/// Says that the content cannot be read.
pub fn unreadable(task: &Task<'_>, error: &LoadError) -> Reply {
    warn!(queue_id = %task.item.id, %error, "cannot read the content");
    Reply::of(451, Some(Status::new(4, 3, 0)), "").with_text(&error.to_string())
}

/// No host of the destination could be used. A reply of our own may be permanent: there is no such
/// domain, or it takes no mail.
pub fn refused(core: &Core, task: &Task<'_>, remote: Option<Box<str>>, reply: Reply) -> Sent {
    let said: Arc<str> = reply.to_string().into();
    let permanent = reply.severity() == Severity::Permanent;
    let report = Report { at: core.clock.now(), remote, reply };
    let (outcome, ended) = match permanent {
        true => (Outcome::Failed(report), Ended::Answered),
        false => (Outcome::Deferred(report), Ended::Unreachable(said)),
    };
    Sent { outcomes: task.all(&outcome), unknown: Vec::new(), ended }
}

impl From<Sent> for Result {
    fn from(sent: Sent) -> Result {
        (sent.outcomes, sent.ended)
    }
}

#[cfg(test)]
mod tests;
