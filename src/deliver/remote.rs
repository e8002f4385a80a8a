//! Delivery to other hosts: hops in their order, one kept connection per worker, transactions of a
//! bounded number of recipients.

use std::sync::Arc;

use postroad_queue::{ContentReader, LoadError, Report};
use postroad_smtp::client::{self, Answer, Failure, Protocol, TlsNeed, Transaction};
use postroad_smtp::{Recipient, Reply, Severity, Status};
use tracing::{debug, warn};

use super::attempt::{Ended, Task};
use super::dispatcher::{Core, Routing};
use super::outcome::Outcome;
use super::transport::{Connection, OpenError, Target, credentials};
use crate::config::TlsUse;
use crate::metrics::{Direction, Handshake};
use crate::net::Address;
use crate::route::{Hop, NextHop};

/// Recipients of one transaction, at most: what every host has to take (RFC 5321 §4.5.3.1.8).
const RECIPIENTS_PER_TRANSACTION_MAX: usize = 100;
/// Transactions of one connection, at most: a host behind a balancer gets a chance to move us.
const TRANSACTIONS_PER_CONNECTION_MAX: u32 = 1000;

/// A worker's way to its destination: the connection it holds, if any.
pub struct Lane {
    destination: Arc<str>,
    connection: Option<Connection>,
}

/// What became of a task: outcomes by place, and how the destination behaved.
pub type Result = (Vec<(usize, Outcome)>, Ended);

impl Lane {
    /// A way to a destination, without a connection yet.
    pub fn new(destination: Arc<str>) -> Lane {
        Lane { destination, connection: None }
    }

    /// Keeps the connection for the next worker, or closes it.
    pub async fn end(self, core: &Core) {
        let Some(connection) = self.connection else { return };
        let surplus = match connection.failure() {
            None if !core.is_draining() => core.pool.put(&self.destination, connection),
            _ => Some(connection),
        };
        if let Some(connection) = surplus {
            connection.quit().await;
        }
    }

    /// Tries to deliver to a next hop.
    pub async fn deliver(&mut self, core: &Core, task: &Task<'_>, next_hop: &NextHop) -> Result {
        if let Some(result) = self.over_kept(core, task).await {
            return result;
        }
        let targets = match task.routing.resolver.hops(next_hop).await {
            Ok(hops) => hops.iter().map(|hop| target(core, task.routing, hop)).collect(),
            Err(error) => return refused(core, task, None, Reply::from(&error)),
        };
        match targets {
            Ok(targets) => self.over_new(core, task, targets).await,
            Err(reply) => refused(core, task, None, reply),
        }
    }

    /// Tries to deliver to one of these hosts.
    pub async fn deliver_to(&mut self, core: &Core, task: &Task<'_>, targets: Vec<Target>) -> Result {
        match self.over_kept(core, task).await {
            Some(result) => result,
            None => self.over_new(core, task, targets).await,
        }
    }

    async fn over_new(&mut self, core: &Core, task: &Task<'_>, targets: Vec<Target>) -> Result {
        match dial(core, targets).await {
            Ok(connection) => self.send_all(core, task, connection).await,
            Err((remote, reply)) => refused(core, task, Some(remote), reply),
        }
    }

    /// Returns an open connection: this worker's own or one that another left.
    fn kept(&mut self, core: &Core) -> Option<Connection> {
        let own = self.connection.take().filter(Connection::is_quiet);
        own.or_else(|| core.pool.take(&self.destination))
    }

    /// Sends over a connection that was used before. `None` when it turns out to be closed: that
    /// says nothing about the message, so a fresh one is tried at once.
    async fn over_kept(&mut self, core: &Core, task: &Task<'_>) -> Option<Result> {
        let connection = self.kept(core)?;
        match self.send_all(core, task, connection).await {
            (_, Ended::Stale(_)) => {
                debug!(queue_id = %task.item.id, "a kept connection was closed; connecting anew");
                None
            }
            result => Some(result),
        }
    }

    /// Sends to all recipients of the task, so many in each transaction.
    async fn send_all(&mut self, core: &Core, task: &Task<'_>, mut connection: Connection) -> Result {
        let mut outcomes = Vec::with_capacity(task.places.len());
        let mut ended = Ended::Answered;
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
            let answers = connection.send(transaction(task, &places, &content), content).await;
            if !connection.is_secure() {
                core.metrics.count_plaintext(Direction::Out);
            }
            if let Some(failure) = connection.failure() {
                ended = ended_by(failure, &connection, &answers);
            }
            let (answered, surplus) = without_surplus(&places, answers);
            rest.splice(0..0, surplus);
            outcomes.extend(answered.into_iter().map(|(place, answer)| (place, outcome(core, answer, &connection))));
        }
        // Untried recipients wait for the next attempt, which comes with the others'.
        let reply = Reply::of(451, Some(Status::new(4, 4, 2)), "The session ended before this recipient's turn");
        outcomes.extend(deferred(core, &rest, reply));
        self.keep(connection).await;
        (outcomes, ended)
    }

    async fn keep(&mut self, connection: Connection) {
        match connection.failure() {
            Some(_) => connection.quit().await,
            None if connection.transactions() >= TRANSACTIONS_PER_CONNECTION_MAX => connection.quit().await,
            None => self.connection = Some(connection),
        }
    }
}

fn transaction(task: &Task<'_>, places: &[usize], content: &ContentReader) -> Transaction {
    let envelope = &task.item.envelope;
    Transaction {
        reverse_path: envelope.reverse_path.clone(),
        params: envelope.params.clone(),
        recipients: places.iter().map(|place| recipient(task, *place)).collect(),
        content_octets: content.octets(),
        needs_smtputf8: envelope.params.smtputf8,
    }
}

/// Returns a recipient as the next hop hears of it: mail for our postmaster is for the mailbox that
/// reads it, not for the postmaster of the next hop.
fn recipient(task: &Task<'_>, place: usize) -> Recipient {
    let recipient = &task.item.envelope.recipients()[place];
    let forward_path = task.routing.router.target(&recipient.forward_path).into_owned();
    Recipient { forward_path, ..recipient.clone() }
}

fn outcome(core: &Core, answer: Answer, connection: &Connection) -> Outcome {
    let report = |reply| Report { at: core.clock.now(), remote: Some(connection.remote().into()), reply };
    match answer {
        Answer::Accepted(reply) => {
            Outcome::Delivered { report: report(reply), carries_notify: connection.carries_notify() }
        }
        Answer::Transient(reply) | Answer::Unknown(reply) => Outcome::Deferred(report(reply)),
        Answer::Permanent(reply) => Outcome::Failed(report(reply)),
    }
}

fn deferred(core: &Core, places: &[usize], reply: Reply) -> Vec<(usize, Outcome)> {
    let report = Report { at: core.clock.now(), remote: None, reply };
    places.iter().map(|place| (*place, Outcome::Deferred(report.clone()))).collect()
}

/// Says how a session ended. A kept connection that is closed before anything was answered tells
/// nothing; one that is lost behind the content may have delivered it.
fn ended_by(failure: &Failure, connection: &Connection, answers: &[Answer]) -> Ended {
    let said: Arc<str> = failure.to_string().into();
    let untouched = answers.iter().all(|answer| matches!(answer, Answer::Transient(_)));
    match failure {
        Failure::Lost if untouched && connection.transactions() > 1 => Ended::Stale(said),
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
fn refused(core: &Core, task: &Task<'_>, remote: Option<Box<str>>, reply: Reply) -> Result {
    let said: Arc<str> = reply.to_string().into();
    let permanent = reply.severity() == Severity::Permanent;
    let report = Report { at: core.clock.now(), remote, reply };
    if permanent {
        return (task.all(&Outcome::Failed(report)), Ended::Answered);
    }
    (task.all(&Outcome::Deferred(report)), Ended::Unreachable(said))
}

/// Connects to the first host that takes a session. One that greets with 5yz takes no mail now:
/// another may, and the message waits for one (RFC 5321 §5.1).
async fn dial(core: &Core, targets: Vec<Target>) -> std::result::Result<Connection, (Box<str>, Reply)> {
    let mut refusal = None;
    for target in targets {
        let remote = target.remote();
        match Connection::open(Arc::new(target)).await {
            Ok(mut connection) => {
                connection.count(core.metrics.open_connection());
                if connection.is_secure() {
                    core.metrics.count_handshake(Direction::Out, Handshake::Done);
                }
                return Ok(connection);
            }
            Err(error) => {
                debug!(host = %remote, %error, "no session");
                core.metrics.connections_failed.inc();
                if matches!(error, OpenError::Tls { .. }) {
                    core.metrics.count_handshake(Direction::Out, Handshake::Failed);
                }
                // Of several, what a host said tells more than that another did not answer.
                if refusal.is_none() || matches!(error, OpenError::Session(_)) {
                    refusal = Some((remote, transient(error.reply())));
                }
            }
        }
    }
    Err(refusal.expect("a destination has at least one address to try"))
}

fn transient(reply: Reply) -> Reply {
    match reply.severity() {
        Severity::Permanent => {
            let text = format!("The host takes no mail now: {reply}");
            Reply::of(451, Some(Status::new(4, 4, 1)), "").with_text(&text)
        }
        _ => reply,
    }
}

fn target(core: &Core, routing: &Routing, hop: &Hop) -> std::result::Result<Target, Reply> {
    let timeouts = &routing.config.timeouts;
    let auth = match &hop.credentials {
        None => None,
        Some(login) => {
            Some(read_password(login).map_err(|why| Reply::of(451, Some(Status::new(4, 3, 5)), "").with_text(&why))?)
        }
    };
    let connector = match hop.tls {
        TlsUse::Verify => core.tls.trusted_certificate(),
        _ => core.tls.any_certificate(),
    };
    Ok(Target {
        name: hop.name.clone(),
        address: Address::Tcp(hop.addr),
        session: client::Config {
            helo: routing.config.helo().as_str().into(),
            protocol: Protocol::Smtp,
            tls: match hop.tls {
                TlsUse::Never => TlsNeed::Never,
                TlsUse::Opportunistic => TlsNeed::Opportunistic,
                TlsUse::Required | TlsUse::Verify => TlsNeed::Required,
            },
            auth,
            timeouts: session_timeouts(timeouts),
        },
        implicit_tls: hop.implicit_tls,
        tls: connector.clone(),
        connect_limit: timeouts.connect,
    })
}

/// The client's limits out of the configuration.
pub fn session_timeouts(timeouts: &crate::config::Timeouts) -> client::Timeouts {
    client::Timeouts {
        greeting: timeouts.reply,
        command: timeouts.reply,
        data: timeouts.data_start,
        block: timeouts.data,
        final_reply: timeouts.data_end,
        ..client::Timeouts::default()
    }
}

/// Reads the password of a route, each time, so that changing it needs no restart.
fn read_password(
    login: &crate::config::RouteCredentials,
) -> std::result::Result<postroad_smtp::sasl::Credentials, String> {
    let path = login.password_file.display();
    let text = std::fs::read_to_string(&login.password_file)
        .map_err(|error| format!("the route's password_file {path} cannot be read: {error}"))?;
    let password = text.lines().next().unwrap_or_default();
    credentials(&login.user, password).map_err(|error| format!("the login in {path} is not usable: {error}"))
}
