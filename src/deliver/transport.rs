//! A connection to a next hop: drives [`client::Session`] over a [`Stream`].
//!
//! Performs what the machine asks for and tells what became of each recipient. Decides nothing
//! about retries and never changes content.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use postroad_mesh::NodeId;
use postroad_queue::{ContentReader, QueueId};
use postroad_smtp::client::{self, Action, Answer, Failure, Protocol, TlsNeed, Transaction};
use postroad_smtp::line::Input;
use postroad_smtp::sasl::Credentials;
use postroad_smtp::{ByMode, DeliverBy, Reply, Status};
use tokio_rustls::TlsConnector;
use tracing::debug;

use super::turned::Ticket;
use crate::metrics::Open;
use crate::net::{Address, Stream, Timer};
use crate::tls::client::server_name;
use crate::tls::node;

/// How long the end of a TLS session and of a connection may take.
const QUIT_LIMIT: Duration = Duration::from_secs(5);
/// How long the reply to RSET may take: outcomes wait for it.
const RESET_LIMIT: Duration = Duration::from_secs(5);
/// How long a peer that takes no more octets may go on talking.
const LAST_WORDS_LIMIT: Duration = Duration::from_secs(2);

/// Where and how to connect.
#[derive(Clone)]
pub struct Target {
    /// The host's name, for TLS and for people.
    pub name: Box<str>,
    /// Where it listens.
    pub address: Address,
    /// What to say to it.
    pub session: client::Config,
    /// Whether TLS begins with the first octet (RFC 8314).
    pub implicit_tls: bool,
    /// Verifies what TLS has to verify.
    pub tls: TlsConnector,
    /// Which nodes a session is between, where the host is a member of the mesh.
    pub nodes: Option<Nodes>,
    /// Limit of the TCP connect and of the TLS handshake, each.
    pub connect_limit: Duration,
}

/// The two ends of a session within the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nodes {
    /// This host, under the key that it shows there.
    pub me: NodeId,
    /// The member.
    pub member: NodeId,
}

impl Target {
    /// Returns the host as `name [address]`, for people.
    pub fn remote(&self) -> Box<str> {
        match self.name.starts_with('[') {
            true => self.address.to_string().into(),
            // A customer came from some port where nobody listens.
            false if matches!(self.address, Address::Tcp(address) if address.port() == 0) => {
                format!("{} [{}]", self.name, self.address.ip()).into()
            }
            false => format!("{} [{}]", self.name, self.address).into(),
        }
    }
}

/// An open session with a next hop, ready for a transaction whenever nobody is inside `send`.
pub struct Connection {
    stream: Stream,
    /// Ends the waits for what it says.
    timer: Timer,
    pub(super) session: client::Session,
    input: Input,
    pub(super) target: Arc<Target>,
    remote: Box<str>,
    transactions: u32,
    failure: Option<Failure>,
    /// Why nothing can be written any more; what the peer said before is still read.
    broken: Option<io::ErrorKind>,
    /// Whether an octet was received since the last transaction began.
    heard: bool,
    /// Why the content could not be read to its end.
    damage: Option<io::Error>,
    /// The settings it was opened under, as the pool numbers them; of none, it is never kept.
    generation: Option<u64>,
    /// The message whose envelope was sent behind the content of the one before.
    ahead: Option<QueueId>,
    /// How long the last transaction took.
    took: Option<Duration>,
    /// Counts the connection as open for as long as it lasts.
    counted: Option<Open>,
    /// Says that a customer has opened and reversed it, and what may go over it.
    ticket: Option<Box<Ticket>>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No TCP connection.
    #[error("connect to {name} [{address}]: {}", words(source))]
    Connect {
        /// The host.
        name: Box<str>,
        /// Where it should listen.
        address: Address,
        /// What the operating system says.
        source: io::Error,
    },
    /// The handshake failed and TLS was needed.
    #[error("TLS with {name} [{address}]: {source}")]
    Tls {
        /// The host.
        name: Box<str>,
        /// Where it listens.
        address: Address,
        /// What TLS says.
        source: io::Error,
    },
    /// The host does not want to talk.
    #[error("{0}")]
    Session(Failure),
}

/// What the operating system says, without its number: whoever sent the mail may read it.
fn words(error: &io::Error) -> String {
    let mut text = error.to_string();
    text.truncate(text.rfind(" (os error ").unwrap_or(text.len()));
    text
}

impl OpenError {
    /// Returns what to report for every recipient: what the host said, or our own 4.4.1.
    pub fn reply(&self) -> Reply {
        let status = match self {
            OpenError::Session(failure) => return failure.reply(),
            OpenError::Connect { .. } => Status::new(4, 4, 1),
            OpenError::Tls { .. } => Status::new(4, 7, 5),
        };
        Reply::of(451, Some(status), "").with_text(&self.to_string())
    }
}

impl Connection {
    /// Connects and comes as far as the first transaction. Where TLS is opportunistic and the
    /// handshake fails, a second connection does without (RFC 7435).
    ///
    /// # Errors
    /// Says which step failed.
    pub async fn open(target: Arc<Target>) -> Result<Connection, OpenError> {
        match Connection::open_once(target.clone()).await {
            Err(OpenError::Tls { source, .. }) if target.session.tls == TlsNeed::Opportunistic => {
                debug!(host = %target.name, %source, "TLS failed; going on without");
                let session = client::Config { tls: TlsNeed::Never, ..target.session.clone() };
                Connection::open_once(Arc::new(Target { session, ..(*target).clone() })).await
            }
            result => result,
        }
    }

    async fn open_once(target: Arc<Target>) -> Result<Connection, OpenError> {
        let connect = Stream::connect(&target.address, target.connect_limit).await;
        let stream = connect.map_err(|source| OpenError::Connect {
            name: target.name.clone(),
            address: target.address.clone(),
            source,
        })?;
        let stream = if target.implicit_tls { secure(stream, &target).await? } else { stream };
        Connection::new(stream, target.implicit_tls, target).ready().await
    }

    /// Begins a session over a stream; with TLS already or without.
    fn new(stream: Stream, is_secure: bool, target: Arc<Target>) -> Connection {
        Connection {
            session: client::Session::new(target.session.clone(), is_secure, Instant::now()),
            stream,
            timer: Timer::default(),
            input: Input::new(),
            remote: target.remote(),
            target,
            transactions: 0,
            failure: None,
            broken: None,
            heard: false,
            damage: None,
            generation: None,
            ahead: None,
            took: None,
            counted: None,
            ticket: None,
        }
    }

    /// Comes as far as the first transaction.
    async fn ready(self) -> Result<Connection, OpenError> {
        let mut connection = self;
        loop {
            match connection.step().await {
                Step::Ready => return Ok(connection),
                Step::StartTls => {
                    let Connection { stream, target, .. } = connection;
                    connection = Connection { stream: secure(stream, &target).await?, target, ..connection };
                    connection.session.handle_tls(Instant::now());
                }
                Step::Failed(failure) => return Err(OpenError::Session(failure)),
                Step::WantContent | Step::Done(_) | Step::HandOver | Step::NotTurned(_) => {
                    unreachable!("neither a transaction nor a turn has begun")
                }
            }
        }
    }

    /// Sends one message to the recipients of the transaction; one answer for each, in order. Behind its
    /// content goes the envelope of the `next` one, where there is one and the peer takes that.
    /// Afterwards [`Connection::failure`] tells whether the session can go on.
    pub async fn send(
        &mut self,
        transaction: Transaction,
        content: ContentReader,
        mut next: Option<(QueueId, Transaction)>,
    ) -> Vec<Answer> {
        self.transactions += 1;
        let recipients = transaction.recipients.len();
        let begun = Instant::now();
        let goes_on = self.ahead.take().is_some() && self.session.go_on(begun);
        self.heard = goes_on && !self.input.is_empty();
        if !goes_on {
            self.session.begin(transaction, begun);
        }
        let mut content = Some(content);
        let mut step = self.step().await;
        loop {
            step = match step {
                Step::Done(answers) => {
                    self.took = Some(begun.elapsed());
                    self.settle().await;
                    return answers;
                }
                Step::WantContent if self.broken.is_some() => self.last_words().await,
                Step::WantContent => match content.take() {
                    Some(content) => self.send_content(content, next.take()).await,
                    None => {
                        self.session.handle_eof();
                        self.step().await
                    }
                },
                Step::Failed(failure) => {
                    let answer = Answer::Transient(failure.reply());
                    self.failure = Some(failure);
                    return vec![answer; recipients];
                }
                Step::Ready | Step::StartTls | Step::HandOver | Step::NotTurned(_) => {
                    unreachable!("a transaction ends with its answers")
                }
            }
        }
    }

    /// Brings the session to rest: afterwards it is ready with no reply on its way, or failed. A
    /// RSET whose reply was left unread would be taken for a peer that speaks unasked.
    async fn settle(&mut self) {
        // Its replies may have come with the last one.
        if self.session.is_ahead() && self.broken.is_none() {
            return;
        }
        let until = Instant::now() + RESET_LIMIT;
        loop {
            match self.session.poll(&mut self.input, Instant::now()) {
                Action::Ready | Action::Read { .. } if self.session.awaits_reset() && self.broken.is_none() => {
                    self.read(until).await;
                }
                Action::Ready if self.broken.is_none() => break,
                Action::Failed(failure) => {
                    self.failure = Some(failure);
                    break;
                }
                _ => {
                    self.failure = Some(Failure::Lost);
                    break;
                }
            }
        }
        self.rest();
    }

    /// Holds nothing while nobody sends over it, and wakes nobody.
    fn rest(&mut self) {
        self.input.release();
        self.timer.clear();
    }

    /// Polls the machine and performs until it needs somebody else.
    async fn step(&mut self) -> Step {
        loop {
            let action = self.session.poll(&mut self.input, Instant::now());
            match action {
                Action::Read { until } => self.read(until).await,
                Action::StartTls => {
                    self.flush().await;
                    return Step::StartTls;
                }
                Action::Ready => return Step::Ready,
                Action::WantContent => return Step::WantContent,
                Action::Done(answers) => return Step::Done(answers),
                Action::HandOver => return Step::HandOver,
                Action::NotTurned(reply) => return Step::NotTurned(reply),
                Action::Failed(failure) => return Step::Failed(failure),
                Action::Closed => return Step::Failed(Failure::Lost),
            }
        }
    }

    /// Reads on behind a broken write.
    async fn last_words(&mut self) -> Step {
        self.read(Instant::now() + LAST_WORDS_LIMIT).await;
        self.step().await
    }

    /// Writes what waits. A fault is not the end yet: what the peer said before it is read first.
    async fn flush(&mut self) {
        if self.broken.is_some() {
            return;
        }
        let until = Instant::now() + self.target.session.timeouts.block;
        if let Err(error) = self.stream.flush(self.session.output(), until).await {
            debug!(host = %self.target.name, %error, "nothing can be written any more");
            self.broken = Some(error.kind());
        } else {
            self.beat();
        }
    }

    async fn read(&mut self, until: Instant) {
        self.flush().await;
        let until = match self.broken {
            None => until,
            Some(_) => until.min(Instant::now() + LAST_WORDS_LIMIT),
        };
        let ended = match self.stream.fill(&mut self.input, &mut self.timer, until).await {
            Ok(1..) => {
                self.beat();
                self.heard = true;
                return;
            }
            Ok(0) => io::ErrorKind::UnexpectedEof,
            Err(error) => error.kind(),
        };
        match self.broken.unwrap_or(ended) {
            io::ErrorKind::TimedOut => self.session.handle_timeout(),
            _ => self.session.handle_eof(),
        }
    }

    /// Says QUIT and closes. What was sent ahead forbids QUIT: the peer sees the connection end.
    pub async fn quit(mut self) {
        self.session.quit(Instant::now());
        let farewell = async {
            self.flush().await;
            self.stream.close().await;
        };
        // Nobody needs the answer.
        let _ = tokio::time::timeout(QUIT_LIMIT, farewell).await;
    }

    /// Counts the connection as open from here on.
    pub fn count(&mut self, open: Open) {
        self.counted = Some(open);
    }

    /// Says under which settings it was opened, as the pool numbers them.
    pub fn set_generation(&mut self, generation: Option<u64>) {
        self.generation = generation;
    }

    /// Returns which settings it was opened under; `None` when they no longer held at that time.
    pub fn generation(&self) -> Option<u64> {
        self.generation
    }

    /// Returns why the content of the last message could not be read to its end, if so.
    pub fn take_damage(&mut self) -> Option<io::Error> {
        self.damage.take()
    }

    /// Returns whether the connection was closed already when the last transaction began: it had
    /// served before, and then it was lost without one octet from the peer.
    pub fn was_stale(&self) -> bool {
        self.transactions > 1 && !self.heard && self.failure == Some(Failure::Lost)
    }

    /// Returns why the session cannot go on, if it cannot.
    pub fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// Returns how many transactions were begun.
    pub fn transactions(&self) -> u32 {
        self.transactions
    }

    /// Returns whether the connection is open and silent, as it has to be between transactions.
    pub fn is_quiet(&self) -> bool {
        self.failure.is_none() && self.stream.is_quiet()
    }

    /// Returns whether other members of the mesh pass on what is said here.
    pub fn is_passed_on(&self) -> bool {
        self.stream.is_passed_on()
    }

    /// Returns whether messages can be read on their way: they cross a network without TLS.
    pub fn is_exposed(&self) -> bool {
        !self.is_secure() && !matches!(self.target.address, Address::Unix(_))
    }

    /// Returns whether the session is under TLS.
    pub fn is_secure(&self) -> bool {
        self.session.is_secure()
    }

    /// Returns whether the host takes over what the sender wants to hear (RFC 3461).
    pub fn carries_notify(&self) -> bool {
        self.session.offered().dsn
    }

    /// Returns whether the sender hears that its message went on from here: it asked for that, or
    /// the host knows nothing of by-times and will not tell when it is late (RFC 2852 §4.1.4). A mail
    /// store is the end of the way.
    pub fn ends_by_time(&self, by: DeliverBy) -> bool {
        let is_forgotten = by.mode == ByMode::Notify && self.session.offered().deliver_by.is_none();
        self.target.session.protocol == Protocol::Smtp && (by.trace || is_forgotten)
    }

    /// Returns whether the host itself did not give this answer of the last transaction: it was not even tried there, or the
    /// session ended first.
    pub fn is_ours(&self, answer: &Answer) -> bool {
        self.session.is_ours(answer.reply())
    }

    /// Returns the host as `name [address]`.
    pub fn remote(&self) -> &str {
        &self.remote
    }
}

/// What [`Connection::step`] stops for.
enum Step {
    Ready,
    StartTls,
    WantContent,
    Done(Vec<Answer>),
    HandOver,
    NotTurned(Reply),
    Failed(Failure),
}

async fn secure(stream: Stream, target: &Target) -> Result<Stream, OpenError> {
    let name = match target.nodes {
        Some(nodes) => node::server_name(&nodes.member),
        None => server_name(&target.name, target.address.ip()),
    };
    let handshake = stream.connect_tls(&target.tls, name, target.connect_limit).await;
    handshake.map_err(|source| OpenError::Tls { name: target.name.clone(), address: target.address.clone(), source })
}

/// Credentials as the machine takes them.
///
/// # Errors
/// Says what is wrong with them.
pub fn credentials(user: &str, password: &str) -> Result<Credentials, String> {
    Credentials::new(user, password).map_err(|error| error.to_string())
}

mod ahead;
mod content;
mod turn;

#[cfg(test)]
mod tests;
