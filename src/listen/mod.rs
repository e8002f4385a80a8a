//! Incoming connections: listeners, limits on sessions, and the shell around the server machine.
//!
//! Knows the queue and the policy; never asks how mail leaves. It and `deliver` meet in the queue
//! and, where a connection is reversed, in `turn`, so each can be tested, drained and restarted
//! without the other.

mod completion;
mod connection;
mod content;
mod fetched;
mod homes;
mod local;
mod passing;
mod session_name;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use postroad_queue::{DraftError, Queue, UnixMillis};
use postroad_smtp::release::HOLD_SECONDS_MAX;
use postroad_smtp::server::{self, AuthOffer};
use postroad_smtp::{ReleaseLimit, Reply};
use socket2::{Domain as Family, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::{error, info, warn};

use crate::clock::{Clock, millis};
use crate::config::{Config, Service};
use crate::history::Repeats;
use crate::journal::Journal;
use crate::memory::Memory;
use crate::metrics::Metrics;
use crate::net::Stream;
use crate::peer::Peers;
use crate::policy::Policy;
use crate::policy::limits::SessionPermit;
use crate::tls::ServerTls;
use crate::turn::Meeting;
use connection::Arrival;
pub use homes::Homes;
pub use local::Door;
pub use session_name::SessionNames;

/// Connections that the kernel keeps for us until they are accepted.
const BACKLOG: i32 = 4096;
/// The pause after a failed accept (no descriptors left): the condition needs time to pass.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Becomes true when the agent drains.
type Drain = watch::Receiver<bool>;

/// Returns once the agent drains.
async fn drained(drain: &mut Drain) {
    // An agent that is gone drains, too.
    let _ = drain.wait_for(|draining| *draining).await;
}

/// What every session needs. Configuration, policy and certificates are swapped under running
/// sessions; a session sees the new ones with its next question.
pub struct Context {
    /// Settings.
    pub config: Arc<ArcSwap<Config>>,
    /// Who may do what.
    pub policy: Arc<Policy>,
    /// Where accepted mail goes.
    pub queue: Queue,
    /// Who has to come again for lack of memory.
    pub memory: Arc<Memory>,
    /// Certificate and key.
    pub tls: ServerTls,
    /// The mesh.
    pub peers: Peers,
    /// What came through it, so that nothing is delivered twice.
    pub repeats: Repeats,
    /// The time.
    pub clock: Clock,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What happened to messages.
    pub journal: Journal,
    /// Becomes true when the agent drains.
    pub drain: watch::Sender<bool>,
    /// Names of sessions.
    pub names: SessionNames,
    /// Where reversed connections go, and what ETRN starts.
    pub turn: Meeting,
    /// Which recipients exist at other members of the mesh.
    pub homes: Homes,
    /// Whether it was said that the disk is short: once when that begins, and once when it ends.
    pub is_disk_short: AtomicBool,
}

impl Context {
    /// Counts a session, or says why there is no room for it.
    fn admit(&self, peer: SocketAddr) -> Result<SessionPermit, Reply> {
        self.memory.admit_session().and_then(|()| self.policy.connect(peer.ip().to_canonical()))
    }

    /// Answers a message that the queue has no room for.
    fn no_draft(&self, error: &DraftError) -> Reply {
        if matches!(error, DraftError::Full { .. }) && !self.is_disk_short.swap(true, Ordering::Relaxed) {
            warn!(%error, "new mail is refused (452 4.3.1) until there is room on the disk");
        }
        Reply::from(error)
    }

    /// Takes note that the queue has room.
    fn has_room(&self) {
        if self.is_disk_short.load(Ordering::Relaxed) && self.is_disk_short.swap(false, Ordering::Relaxed) {
            info!("there is room on the disk again, and mail is accepted");
        }
    }

    /// Returns the settings of the sessions of a listener.
    fn session_config(config: &Config, service: Service) -> Arc<server::Config> {
        let login = service.needs_login();
        Arc::new(server::Config {
            hostname: config.hostname.clone(),
            service: if service.is_submission() { server::Service::Submission } else { server::Service::Relay },
            offer_starttls: matches!(service, Service::Smtp | Service::Submission),
            auth: if login { AuthOffer::OverTls } else { AuthOffer::Never },
            require_auth: login,
            turn: login && !config.turns.is_empty(),
            keep: false,
            limits: server::Limits {
                message_octets_max: config.limits.message_octets_max,
                recipients_max: config.limits.recipients_max as usize,
                errors_max: config.limits.errors_max,
                ..server::Limits::default()
            },
            timeouts: server::Timeouts {
                command: config.timeouts.command,
                content: config.timeouts.data,
                ..server::Timeouts::default()
            },
        })
    }
}

/// Returns how far ahead of `now` a session of this listener may name a release (RFC 4865): for those
/// who submit. A host that relays holds its mail itself.
fn release_limit(config: &Config, service: Service, now: UnixMillis) -> Option<ReleaseLimit> {
    let max = config.queue.future_release_max.filter(|_| service.is_submission())?;
    let seconds_max = u32::try_from(max.as_secs()).map_or(HOLD_SECONDS_MAX, |s| s.min(HOLD_SECONDS_MAX));
    Some(ReleaseLimit { seconds_max, unix_ms_max: now.plus(millis(max)).0 })
}

/// What all sessions of a listener share, made anew when the configuration was changed.
struct Settings {
    of: Arc<Config>,
    session: Arc<server::Config>,
}

impl Settings {
    fn new(of: Arc<Config>, service: Service) -> Settings {
        Settings { session: Context::session_config(&of, service), of }
    }
}

/// A bound socket that waits for connections.
pub struct Listener {
    socket: TcpListener,
    service: Service,
}

impl Listener {
    /// Binds an address.
    ///
    /// # Errors
    /// What the operating system says: in use, not permitted, no such address.
    pub fn bind(address: SocketAddr, service: Service) -> io::Result<Listener> {
        let socket = Socket::new(Family::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            // [::]:25 beside 0.0.0.0:25: each its own socket.
            socket.set_only_v6(true)?;
        }
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(Listener { socket: TcpListener::from_std(socket.into())?, service })
    }

    /// Returns the bound address.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Accepts and serves connections until the agent drains; returns when the last session has
    /// ended. Dropping the future ends them all at once.
    pub async fn serve(self, context: Arc<Context>) {
        let mut drain = context.drain.subscribe();
        let mut sessions = JoinSet::new();
        let mut settings = Settings::new(context.config.load_full(), self.service);
        loop {
            tokio::select! {
                accepted = self.socket.accept() => match accepted {
                    Ok((tcp, peer)) => {
                        if !Arc::ptr_eq(&settings.of, &context.config.load()) {
                            settings = Settings::new(context.config.load_full(), self.service);
                        }
                        if let Some(arrival) = self.welcome(tcp, peer, &settings, &context) {
                            sessions.spawn(connection::serve(arrival, context.clone(), context.drain.subscribe()));
                        }
                    }
                    Err(error) => {
                        error!(%error, service = self.service.as_str(), "cannot accept a connection; pausing");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = sessions.join_next(), if !sessions.is_empty() => {}
                () = drained(&mut drain) => break,
            }
        }
        let address = self.address().map_or_else(|error| error.to_string(), |address| address.to_string());
        info!(%address, sessions = sessions.len(), "listener closed; sessions end");
        drop(self.socket);
        while sessions.join_next().await.is_some() {}
    }

    fn welcome(
        &self,
        tcp: TcpStream,
        peer: SocketAddr,
        settings: &Settings,
        context: &Context,
    ) -> Option<Box<Arrival>> {
        // Replies are written whole; waiting for more to send would only add latency.
        tcp.set_nodelay(true).ok()?;
        // Counted from the first octet on: a TLS handshake takes its place, too.
        let permit = context.admit(peer);
        let (stream, name) = (Stream::Plain(tcp), context.names.next());
        Some(Box::new(Arrival {
            stream,
            peer,
            service: self.service,
            settings: settings.session.clone(),
            permit,
            name,
            owner: None,
        }))
    }
}
