//! One incoming connection: drives [`server::Session`] over a [`Stream`].
//!
//! A short loop: poll, perform, repeat. What is decided here is nothing; the policy decides who
//! may do what, the queue decides whether content is safe.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use postroad_mesh::quota::Way;
use postroad_mesh::{NodeId, Passage};
use postroad_queue::{Committed, Origin, UnixMillis};
use postroad_smtp::line::Input;
use postroad_smtp::server::{self, Action, Facts, Question, Session};
use postroad_smtp::trace::TlsFacts;
use postroad_smtp::{Envelope, ForwardPath, Priority, Reply, ReversePath, Status};
use tokio::sync::watch;
use tracing::field::display;
use tracing::{debug, info, warn};

use super::content::{Intake, Terms};
use super::passing::{self, Arriving};
use super::{Context, Drain, drained, release_limit};
use crate::clock;
use crate::config::Service;
use crate::memory::{self, Held};
use crate::metrics::{self, Direction, Handshake, Refusal};
use crate::net::{Stream, Timer};
use crate::peer::Peers;
use crate::policy::limits::SessionPermit;
use crate::tls;
use crate::turn::Grant;
use asking::{Asking, with};
use through::Passed;

/// How long a client may take to read what we say.
const WRITE_LIMIT: Duration = Duration::from_secs(60);
/// What a waiting session keeps of the buffer for its replies.
const OUTPUT_OCTETS_KEPT: usize = 1024;
/// How long a TLS handshake may take.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(30);

/// One incoming connection.
struct Connection {
    context: Arc<Context>,
    peer: Peer,
    /// Names the session in the log and in the queue.
    name: Box<str>,
    session: Session,
    facts: Facts,
    input: Input,
    /// Ends the waits for it.
    timer: Timer,
    transaction: Transaction,
    /// What ATRN was accepted for.
    grant: Option<Box<Grant>>,
    /// What XVIA was accepted for.
    passed: Option<Box<Passed>>,
    /// The session knows that the agent drains.
    draining: bool,
    /// Where the client is a member of the mesh: which, and what tells when the members change.
    members: Option<Box<(NodeId, watch::Receiver<u64>)>>,
}

/// A connection that was accepted.
pub struct Arrival {
    /// The connection.
    pub stream: Stream,
    /// Where it comes from.
    pub peer: SocketAddr,
    /// Where it arrived.
    pub service: Service,
    /// What its session is told.
    pub settings: Arc<server::Config>,
    /// Its place among the sessions, or the reply that refuses it.
    pub permit: Result<SessionPermit, Reply>,
    /// Names the session.
    pub name: Box<str>,
    /// Whose mail it is, where a program of this host hands it in.
    pub owner: Option<Owner>,
}

/// A user of this host who hands mail in.
#[derive(Clone, Copy, Debug)]
pub struct Owner {
    /// As the kernel says it, of the socket or of the file.
    pub uid: u32,
    /// It was handed in while no agent ran, and whoever did so has gone: nobody can be told now.
    pub is_gone: bool,
}

/// Who is at the other end.
struct Peer {
    ip: IpAddr,
    service: Service,
    /// The node whose key it has proved to hold, a member of the mesh or not.
    node: Option<Box<NodeId>>,
    /// Counts this session for as long as it lasts.
    permit: Result<SessionPermit, Reply>,
    /// How many recipients its session had looked up at other members of the mesh.
    asked: u16,
    /// Whose mail it is, where a program of this host hands it in.
    owner: Option<Owner>,
}

impl Peer {
    /// Returns whether nobody is there who could be told of a refusal.
    fn is_gone(&self) -> bool {
        self.owner.is_some_and(|owner| owner.is_gone)
    }
}

/// What the shell keeps of the transaction that is going on.
#[derive(Default)]
struct Transaction {
    intake: Option<Box<Intake>>,
    /// The only recipient so far.
    recipient: Option<ForwardPath>,
    reverse_path: Option<String>,
    smtputf8: bool,
    /// The priority it was accepted with.
    priority: Option<Priority>,
    /// When it began: by-times count from here.
    begun: UnixMillis,
    /// The way it came through the mesh, where a member says one.
    passage: Option<Box<Passage>>,
    /// Counts its envelope.
    envelope: Option<Held>,
    /// The way it came, where a member hands it over and it has recipients outside the mesh.
    outside: Option<Box<Way>>,
}

/// Serves one connection to its end; once `drain` says so, to the end of its transaction.
pub async fn serve(arrival: Box<Arrival>, context: Arc<Context>, mut drain: Drain) {
    let started = Instant::now();
    let (name, peer) = (arrival.name.clone(), arrival.peer.ip());
    let _open = context.metrics.open_session(match arrival.service.is_submission() {
        true => metrics::Service::Submission,
        false => metrics::Service::Relay,
    });
    let _held = Held::new(context.memory.clone(), memory::SESSION_OCTETS);
    debug!(session = %name, %peer, "connected");
    match begin(arrival, context, &mut drain).await {
        Ok(()) => debug!(session = %name, seconds = started.elapsed().as_secs(), "disconnected"),
        Err(error) => info!(session = %name, %peer, %error, "connection lost"),
    }
}

async fn begin(arrival: Box<Arrival>, context: Arc<Context>, drain: &mut Drain) -> io::Result<()> {
    let Arrival { stream, peer, service, settings, permit, name, owner } = unboxed(arrival);
    let stream = match service {
        // The reply could only be told behind a handshake, which is what there are too many of.
        Service::Submissions | Service::Mesh if let Err(reply) = &permit => {
            info!(session = %name, peer = %peer.ip(), what = "connect", %reply, "refused");
            context.metrics.count_refusal(Refusal::of(reply));
            return Ok(());
        }
        Service::Submissions | Service::Mesh => Box::pin(secure(stream, &context)).await?,
        // Who passes on what is said here is not who says it.
        Service::Fetch if stream.is_passed_on() => Box::pin(secure(stream, &context)).await?,
        // Where a connection was reversed, TLS began before.
        Service::Fetch | Service::Smtp | Service::Submission | Service::Local => stream,
    };
    let tls = stream.tls().map(tls::facts);
    let node = stream.tls().and_then(node_of);
    let peer = Peer { ip: peer.ip().to_canonical(), service, node, permit, asked: 0, owner };
    let mut connection = Connection::new(context, peer, name, settings, tls);
    connection.meet_node();
    if let Some(limit) = release_limit(&connection.context.config.load(), service, connection.context.clock.now()) {
        connection.session.offer_release(limit);
    }
    connection.offer_turn();
    let Some(stream) = connection.run(stream, drain).await? else { return Ok(()) };
    match connection.passed.take() {
        Some(passed) => return Box::pin(connection.pass(*passed, stream, drain)).await,
        None => connection.hand_over(stream),
    }
    Ok(())
}

/// Takes an arrival out of its box, which ends here and not with the session.
#[expect(clippy::boxed_local, reason = "the box is what is to end")]
fn unboxed(arrival: Box<Arrival>) -> Arrival {
    *arrival
}

impl Connection {
    /// Begins a session, of which nothing was said yet.
    fn new(
        context: Arc<Context>,
        peer: Peer,
        name: Box<str>,
        settings: Arc<server::Config>,
        tls: Option<TlsFacts>,
    ) -> Connection {
        Connection {
            session: Session::new(settings, tls.clone(), Instant::now()),
            facts: Facts { tls, ..Facts::default() },
            input: Input::new(),
            timer: Timer::default(),
            transaction: Transaction::default(),
            grant: None,
            passed: None,
            draining: false,
            members: None,
            context,
            peer,
            name,
        }
    }

    /// The futures of what a session does rarely are boxed: it would carry room for the largest of
    /// them while it waits.
    /// Returns the connection when it was reversed, or is to be passed on.
    async fn run(&mut self, mut stream: Stream, drain: &mut Drain) -> io::Result<Option<Stream>> {
        loop {
            match self.session.poll(&mut self.input, Instant::now()) {
                Action::Body(piece) => self.transaction.append(piece),
                Action::Ask(question) => {
                    let known_anew = matches!(
                        question,
                        Question::Connect | Question::Helo(_) | Question::Auth(_) | Question::Cram(_)
                    );
                    let asking = Asking { context: &self.context, name: &self.name, facts: &self.facts };
                    let verdict = match question {
                        Question::Turn(domains) => asking.turn(&self.peer, &mut self.grant, domains),
                        Question::Via(node) => Box::pin(asking.through(&self.peer, &mut self.passed, node)).await,
                        question => asking.decide(&mut self.peer, &mut self.transaction, question).await,
                    };
                    self.session.handle_verdict(verdict);
                    if known_anew {
                        self.facts = self.session.facts().clone();
                    }
                }
                Action::Commit(envelope) => {
                    let reply = Box::pin(self.commit(*envelope)).await;
                    self.session.handle_stored(reply);
                }
                Action::Discard => self.transaction = Transaction::default(),
                Action::Flush => flush(&mut stream, self.session.output()).await?,
                Action::Read { until } => {
                    flush(&mut stream, self.session.output()).await?;
                    self.read(&mut stream, until, drain).await?;
                }
                Action::StartTls => {
                    flush(&mut stream, self.session.output()).await?;
                    stream = Box::pin(secure(stream, &self.context)).await?;
                    self.peer.node = stream.tls().and_then(node_of);
                    self.meet_node();
                    if let Some(facts) = stream.tls().map(tls::facts) {
                        self.session.handle_tls(facts);
                        self.facts = self.session.facts().clone();
                    }
                }
                Action::Link => {
                    flush(&mut stream, self.session.output()).await?;
                    Box::pin(self.link(stream, drain)).await?;
                    return Ok(None);
                }
                Action::HandOver => {
                    flush(&mut stream, self.session.output()).await?;
                    return Ok(Some(stream));
                }
                Action::Close => {
                    flush(&mut stream, self.session.output()).await?;
                    // A drain need not wait for who is silent. The futures are large and rarely needed.
                    if self.draining {
                        Box::pin(stream.close_idle()).await
                    } else {
                        Box::pin(stream.close()).await
                    }
                    return Ok(None);
                }
            }
        }
    }

    /// What follows from a client that proved to be a node: a link, and for a member what members say to
    /// each other.
    fn meet_node(&mut self) {
        let Some(key) = self.peer.node.as_deref().copied() else { return };
        let view = self.context.peers.view();
        // Who changes its key is one node under both, until the old one is given up.
        let node = if view.is_member(&key) { view.current(&key) } else { key };
        self.peer.node = Some(Box::new(node));
        let comes = self.peer.service != Service::Fetch;
        if comes {
            self.session.offer_link();
        }
        let peers = &self.context.peers;
        // Subscribed before it is asked: a change in between is not missed.
        let changed = peers.changed();
        let is_member = peers.view().is_member(&node);
        debug!(session = %self.name, %node, is_member, "a node of the mesh");
        if is_member {
            self.session.offer_mesh();
            if comes {
                self.session.offer_turn();
            }
            self.members = Some(Box::new((node, changed)));
        }
    }

    /// Hands the connection over to the mesh; the agent's drain ends it.
    async fn link(&mut self, stream: Stream, drain: &mut Drain) -> io::Result<()> {
        let Some(key) = stream.tls().and_then(tls::node::peer_key) else { return Ok(()) };
        let ahead = self.input.unread().to_vec();
        tokio::select! {
            () = self.context.peers.serve(stream, ahead, key) => {}
            () = drained(drain) => {}
        }
        Ok(())
    }

    /// Waits for octets, for the deadline or for the agent to drain.
    async fn read(&mut self, stream: &mut Stream, until: Instant, drain: &mut Drain) -> io::Result<()> {
        self.session.output().shrink_to(OUTPUT_OCTETS_KEPT);
        let filled = tokio::select! {
            biased;
            filled = stream.fill(&mut self.input, &mut self.timer, until) => filled,
            // Told once: a session inside a transaction goes on, and waits for its client alone.
            () = drained(drain), if !self.draining => {
                self.draining = true;
                self.session.handle_drain();
                return Ok(());
            }
            () = expelled(&self.context.peers, &mut self.members), if self.members.is_some() => {
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it is no member of the mesh any more"));
            }
        };
        match filled {
            Ok(0) => self.session.handle_eof(),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::TimedOut => self.session.handle_timeout(Instant::now()),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Makes the message durable; the reply says whether it is.
    async fn commit(&mut self, mut envelope: Envelope) -> Reply {
        let is_notice = self.transaction.is_notice();
        let Transaction { intake: Some(intake), begun, passage, outside, .. } = std::mem::take(&mut self.transaction)
        else {
            unreachable!("content is committed only behind an accepted Content question");
        };
        let config = self.context.config.load();
        let now = self.context.clock.now();
        let by = &mut envelope.params.deliver_by;
        *by = by.map(|by| by.after(now.since(begun) / 1000));
        let terms = Terms {
            now,
            expires: now.plus(clock::millis(config.queue.expire)),
            hops_max: config.limits.hops_max,
            hold: config.queue.hold,
        };
        let named = |name| self.context.peers.me().map(|me| Box::new(Passage::new(name, me)));
        let mut passage = passage.or_else(|| intake.name(now, false).and_then(named));
        let anew = || intake.name(now, true);
        let arriving = passing::arrive(&self.context, passage.as_deref_mut(), &anew, envelope, now);
        let mid = passage.as_ref().map(|passage| display(passage.message));
        let (envelope, claim) = match arriving {
            Arriving::New(envelope, claim) => (envelope, claim),
            Arriving::Answered(reply) => {
                info!(session = %self.name, mid, %reply, "a repeat from a member of the mesh");
                return reply;
            }
        };
        let envelope = match self.context.policy.expand(envelope) {
            Ok(envelope) => envelope,
            Err(reply) => return self.refused(reply),
        };
        let origin = self.origin(&envelope);
        let (from, recipients) = (envelope.reverse_path.to_string(), envelope.recipients().len());
        let (session, peer, user) = (&self.name, self.peer.ip, self.facts.user.as_deref());
        let uid = self.peer.owner.map(|owner| owner.uid);
        let started = Instant::now();
        match intake.commit(envelope, origin, &terms).await {
            Ok((committed, header)) => {
                self.context.metrics.observe_commit(started.elapsed().as_secs_f64());
                if let Some(claim) = claim {
                    claim.keep(now);
                }
                self.context.journal.accepted(committed.item(), header.message_id());
                let octets = committed.content_octets();
                let (queue_id, message_id) = (committed.id(), message_id(header.message_id()));
                info!(%queue_id, %session, %peer, user, uid, %from, recipients, octets, message_id, mid, "accepted");
                if self.facts.tls.is_none() && self.peer.owner.is_none() {
                    self.context.metrics.count_plaintext(Direction::In);
                }
                if let Some(node) = self.peer.node.as_deref() {
                    self.context.peers.pace_octets(*node, octets);
                }
                if let Some(way) = outside {
                    self.context.peers.charge_octets(*way, is_notice, octets);
                }
                self.context.metrics.accepted.inc();
                self.context.metrics.accepted_octets.inc_by(octets);
                accepted(&committed)
            }
            Err(reply) => {
                warn!(%session, %peer, user, %from, %reply, "message refused");
                self.context.metrics.count_refusal(Refusal::of(&reply));
                reply
            }
        }
    }

    /// Refuses a message whose content was read.
    fn refused(&self, reply: Reply) -> Reply {
        warn!(session = %self.name, peer = %self.peer.ip, %reply, "message refused");
        self.context.metrics.count_refusal(Refusal::of(&reply));
        reply
    }

    fn origin(&self, envelope: &Envelope) -> Origin {
        if let Some(Owner { uid, .. }) = self.peer.owner {
            let user = Some(format!("uid {uid}").into());
            return Origin { user, protocol: "local".into(), session: self.name.clone(), ..Origin::default() };
        }
        Origin {
            peer: Some(self.peer.ip),
            helo: self.facts.helo.clone(),
            user: self.facts.user.clone(),
            protocol: with(&self.facts, envelope.params.smtputf8).keyword().into(),
            session: self.name.clone(),
        }
    }
}

/// A Message-ID as the log shows it, in the brackets of its header; none where there is none.
fn message_id(octets: &[u8]) -> Option<String> {
    (!octets.is_empty()).then(|| format!("<{}>", String::from_utf8_lossy(octets)))
}

/// The 250 behind the content. Only the queue makes a [`Committed`], and only when the message is
/// on stable storage.
fn accepted(committed: &Committed) -> Reply {
    Reply::of(250, Some(Status::new(2, 0, 0)), "").with_text(&format!("Accepted as {}", committed.id()))
}

impl Transaction {
    fn begin(begun: UnixMillis, reverse_path: &ReversePath, smtputf8: bool, priority: Option<Priority>) -> Transaction {
        let reverse_path = reverse_path.mailbox().map(ToString::to_string);
        Transaction { begun, reverse_path, smtputf8, priority, ..Transaction::default() }
    }

    fn append(&mut self, piece: &[u8]) {
        if let Some(intake) = &mut self.intake {
            intake.append(piece);
        }
    }
}

/// Returns once the client is a member no more.
async fn expelled(peers: &Peers, members: &mut Option<Box<(NodeId, watch::Receiver<u64>)>>) {
    let Some((node, changed)) = members.as_deref_mut() else { return };
    // The mesh is gone when nobody tells of changes any more: the agent ends. Boxed, so that sessions of
    // everybody else have no room for it.
    while peers.view().is_member(node) && Box::pin(changed.changed()).await.is_ok() {}
}

/// Returns the node that the other side has proved to be.
fn node_of(connection: &rustls::CommonState) -> Option<Box<NodeId>> {
    tls::node::peer_key(connection).map(|key| Box::new(key.id()))
}

/// Completes our half of a TLS handshake.
async fn secure(stream: Stream, context: &Context) -> io::Result<Stream> {
    let result = stream.accept_tls(&context.tls, HANDSHAKE_LIMIT).await;
    let outcome = if result.is_ok() { Handshake::Done } else { Handshake::Failed };
    context.metrics.count_handshake(Direction::In, outcome);
    result
}

async fn flush(stream: &mut Stream, output: &mut Vec<u8>) -> io::Result<()> {
    stream.flush(output, Instant::now() + WRITE_LIMIT).await
}

mod asking;
mod recipient;
mod through;
mod turn;

#[cfg(test)]
mod tests;
