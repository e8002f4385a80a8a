//! A connection to a next hop: drives [`client::Session`] over a [`Stream`].
//!
//! Performs what the machine asks for and tells what became of each recipient. Decides nothing
//! about retries and never changes content.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use postroad_queue::ContentReader;
use postroad_smtp::client::{self, Action, Answer, Failure, TlsNeed, Transaction};
use postroad_smtp::line::Input;
use postroad_smtp::sasl::Credentials;
use postroad_smtp::{Reply, Status};
use tokio_rustls::TlsConnector;
use tracing::debug;

use crate::metrics::Open;
use crate::net::{Address, Stream};
use crate::tls::client::server_name;

/// Octets of content handed to the machine at a time.
const PIECE_OCTETS: usize = 64 * 1024;
/// Content above this size is read from the disk on a thread that may block.
const READ_INLINE_OCTETS_MAX: u64 = 256 * 1024;
/// How long the end of a TLS session and of a connection may take.
const QUIT_LIMIT: Duration = Duration::from_secs(5);

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
    /// Limit of the TCP connect and of the TLS handshake, each.
    pub connect_limit: Duration,
}

impl Target {
    /// Returns the host as `name [address]`, for people.
    pub fn remote(&self) -> Box<str> {
        match self.name.starts_with('[') {
            true => self.address.to_string().into(),
            false => format!("{} [{}]", self.name, self.address).into(),
        }
    }
}

/// An open session with a next hop, ready for a transaction whenever nobody is inside `send`.
pub struct Connection {
    stream: Stream,
    session: client::Session,
    input: Input,
    target: Arc<Target>,
    remote: Box<str>,
    transactions: u32,
    failure: Option<Failure>,
    /// Counts the connection as open for as long as it lasts.
    counted: Option<Open>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No TCP connection.
    #[error("connect to {name} [{address}]: {source}")]
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
        let session = client::Session::new(target.session.clone(), target.implicit_tls, Instant::now());
        let stream = if target.implicit_tls { secure(stream, &target).await? } else { stream };
        let mut connection = Connection {
            stream,
            session,
            input: Input::new(),
            remote: target.remote(),
            target,
            transactions: 0,
            failure: None,
            counted: None,
        };
        loop {
            match connection.step().await {
                Step::Ready => return Ok(connection),
                Step::StartTls => {
                    let Connection { stream, target, .. } = connection;
                    connection = Connection { stream: secure(stream, &target).await?, target, ..connection };
                    connection.session.handle_tls(Instant::now());
                }
                Step::Failed(failure) => return Err(OpenError::Session(failure)),
                Step::WantContent | Step::Done(_) => unreachable!("no transaction has begun"),
            }
        }
    }

    /// Sends one message to the recipients of the transaction; one answer for each, in order.
    /// Afterwards [`Connection::failure`] tells whether the session can go on.
    pub async fn send(&mut self, transaction: Transaction, content: ContentReader) -> Vec<Answer> {
        self.transactions += 1;
        let recipients = transaction.recipients.len();
        self.session.begin(transaction, Instant::now());
        let mut content = Some(content);
        loop {
            match self.step().await {
                Step::Done(answers) => {
                    // RSET or the answers to what was refused may still be on their way.
                    self.settle().await;
                    return answers;
                }
                Step::WantContent => match content.take() {
                    Some(content) => self.send_content(content).await,
                    None => self.session.handle_eof(),
                },
                Step::Failed(failure) => {
                    let answer = Answer::Transient(failure.reply());
                    self.failure = Some(failure);
                    return vec![answer; recipients];
                }
                Step::Ready | Step::StartTls => unreachable!("a transaction ends with its answers"),
            }
        }
    }

    /// Sends what the machine has still to say, without waiting for the answer.
    async fn settle(&mut self) {
        let until = Instant::now() + self.target.session.timeouts.block;
        if self.stream.flush(self.session.output(), until).await.is_err() {
            self.failure = Some(Failure::Lost);
        }
        if self.failure.is_none()
            && let Action::Failed(failure) = self.session.poll(&mut self.input, Instant::now())
        {
            self.failure = Some(failure);
        }
        self.input.release();
    }

    async fn send_content(&mut self, mut content: ContentReader) {
        match self.send_pieces(&mut content).await {
            Ok(()) => self.session.content_end(Instant::now()),
            Err(error) => {
                // Cutting the connection is the only way to take back what was sent: the peer must
                // not take half a message for the whole.
                debug!(host = %self.target.name, %error, "the content was not sent to its end");
                self.session.handle_eof();
            }
        }
    }

    async fn send_pieces(&mut self, content: &mut ContentReader) -> io::Result<()> {
        let block = self.target.session.timeouts.block;
        if let Some(whole) = content.in_memory() {
            for piece in whole.chunks(PIECE_OCTETS) {
                self.session.content(piece);
                if whole.len() > PIECE_OCTETS {
                    self.stream.flush(self.session.output(), Instant::now() + block).await?;
                }
            }
            return Ok(());
        }
        let mut piece = vec![0; PIECE_OCTETS.min(content.octets() as usize + 1)];
        let mut offset = 0;
        loop {
            let blocking = content.octets() > READ_INLINE_OCTETS_MAX;
            let n = if blocking {
                tokio::task::block_in_place(|| content.read_at(offset, &mut piece))?
            } else {
                content.read_at(offset, &mut piece)?
            };
            if n == 0 {
                return Ok(());
            }
            offset += n as u64;
            self.session.content(&piece[..n]);
            self.stream.flush(self.session.output(), Instant::now() + block).await?;
        }
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
                Action::Failed(failure) => return Step::Failed(failure),
                Action::Closed => return Step::Failed(Failure::Lost),
            }
        }
    }

    async fn flush(&mut self) {
        let until = Instant::now() + self.target.session.timeouts.block;
        match self.stream.flush(self.session.output(), until).await {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::TimedOut => self.session.handle_timeout(),
            Err(_) => self.session.handle_eof(),
        }
    }

    async fn read(&mut self, until: Instant) {
        self.flush().await;
        match self.stream.fill(&mut self.input, until).await {
            Ok(1..) => {}
            Err(error) if error.kind() == io::ErrorKind::TimedOut => self.session.handle_timeout(),
            Ok(0) | Err(_) => self.session.handle_eof(),
        }
    }

    /// Says QUIT and closes.
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

    /// Returns whether the session is under TLS.
    pub fn is_secure(&self) -> bool {
        self.session.is_secure()
    }

    /// Returns whether the host takes over what the sender wants to hear (RFC 3461).
    pub fn carries_notify(&self) -> bool {
        self.session.offered().dsn
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
    Failed(Failure),
}

async fn secure(stream: Stream, target: &Target) -> Result<Stream, OpenError> {
    let name = server_name(&target.name, target.address.ip());
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
