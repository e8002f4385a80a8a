//! The composition root: builds every room from the configuration, starts and drains them in order.
//!
//! It alone knows all rooms; no room names it. Order of a start: queue, delivery, control socket,
//! listeners, readiness. Order of a drain: listeners and sessions, attempts, committer.

mod backend;
mod descriptors;
mod fleet;
mod mesh;
mod recipient;
mod reload;
mod signals;
mod trace;
mod words;

use std::fs::DirBuilder;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use postroad_queue::{Committer, OpenError, Options, OsFs, Queue, RecoveryReport, UnixMillis};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tracing::{error, info, warn};

use crate::admin::{BindError, ControlSocket};
use crate::clock::Clock;
use crate::config::{Config, LogFormat, LogLevel, Service};
use crate::deliver::{Delivery, Parts, Routing};
use crate::history::{self, Repeats};
use crate::journal::{self, Journal, Limits};
use crate::listen::{Context, Door, Homes, Listener, SessionNames};
use crate::memory::{self, Level, Memory, Resident, Usage};
use crate::metrics::{self, Metrics};
use crate::peer::{self, PeerError, Peers};
use crate::policy::Policy;
use crate::route::{Resolver, ResolverError};
use crate::systemd;
use crate::telemetry::{self, Format, LogError, Logs};
use crate::tls::{ClientTls, Identity, ServerTls, TlsError};
use crate::turn::Meeting;
use crate::turn::fetch::Fetches;
use backend::Backend;
pub use mesh::members_on_disk;
use signals::{Signal, Signals};

/// Why the agent does not start. Each text names the thing, the place and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The log cannot be set up.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The state directory cannot be made.
    #[error("cannot make the state directory {}: {source}; make it, or set state_dir to one that this user may write", path.display())]
    StateDir {
        /// The directory.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// The queue cannot be opened.
    #[error("cannot open the queue: {0}{remedy}", remedy = queue_remedy(.0))]
    Queue(#[from] OpenError),
    /// There is no certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// What this host is in the mesh cannot be read.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// There is no name resolution.
    #[error(transparent)]
    Resolver(#[from] ResolverError),
    /// A listener cannot be bound.
    #[error("cannot listen on {address} ({service}): {source}{remedy}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What it is for.
        service: &'static str,
        /// What the operating system says.
        source: io::Error,
        /// What to do about it.
        remedy: &'static str,
    },
    /// The control socket cannot be made.
    #[error(transparent)]
    Control(#[from] BindError),
    /// The operating system refuses a thread, a signal handler or the like.
    #[error("cannot start {what}: {source}")]
    System {
        /// What.
        what: &'static str,
        /// What the operating system says.
        source: io::Error,
    },
}

/// Everything that runs, and what a reload changes.
pub(crate) struct Agent {
    fetches: Fetches<Delivery, Arc<Context>>,
    path: Option<PathBuf>,
    started: UnixMillis,
    config: Arc<ArcSwap<Config>>,
    /// What it was started with: what needs a restart is compared to this.
    first: Arc<Config>,
    /// Held by a reload: one after the other.
    reloading: Mutex<()>,
    context: Arc<Context>,
    delivery: Delivery,
    queue: Queue,
    logs: Logs,
    listeners: Vec<String>,
}

/// Runs the agent until it is told to stop. `path` is the file that a reload reads again; without it
/// that is the default one, which need not exist.
///
/// # Errors
/// Why it cannot start. Once it serves, it ends without an error.
pub async fn run(config: Config, path: Option<PathBuf>) -> Result<(), StartError> {
    let mut signals = Signals::new().map_err(|source| StartError::System { what: "signal handlers", source })?;
    let logs = telemetry::start(log_format(config.log.format), log_level(config.log.level))?;
    descriptors::raise_limit();
    let (config, clock) = (Arc::new(config), Clock::start());
    make_state_dir(&config.state_dir)?;
    let (queue, committer) = open_queue(&config)?;
    let memory = Arc::new(measured_memory(&config, &queue));
    let metrics = Arc::new(Metrics::new());
    let journal = start_journal(&config, clock, &metrics)?;
    let current = Arc::new(ArcSwap::from(config.clone()));
    let tls = ServerTls::load(&identity(&config))?;
    let parts = peer::Parts { config: current.clone(), tls: tls.clone(), clock, metrics: metrics.clone() };
    let peers = Peers::open(parts)?;
    let context = Arc::new(Context {
        config: current.clone(),
        policy: Arc::new(Policy::new(config.clone())),
        queue: queue.clone(),
        memory,
        tls,
        peers: peers.clone(),
        repeats: repeats(&config, &queue),
        clock,
        metrics: metrics.clone(),
        journal: journal.clone(),
        drain: watch::Sender::new(false),
        names: SessionNames::new(clock.now()),
        turn: Meeting::default(),
        homes: Homes::default(),
        is_disk_short: false.into(),
    });
    let delivery = delivery(&config, &context)?;
    context.turn.set_carrier(delivery.clone());
    let control = ControlSocket::bind(&config.control.socket)?;
    let (listeners, metrics_socket) = (bind_all(&config)?, bind_metrics(&config).await?);
    let agent = Arc::new(Agent {
        fetches: Fetches::new(delivery.clone(), context.clone(), metrics.clone()),
        path,
        started: clock.now(),
        config: current,
        first: config.clone(),
        reloading: Mutex::new(()),
        context: context.clone(),
        delivery: delivery.clone(),
        queue: queue.clone(),
        logs,
        listeners: describe(&listeners),
    });

    let (mut tasks, mut sessions) = (JoinSet::new(), JoinSet::new());
    tasks.spawn(agent.clone().begin_mesh().await);
    tasks.spawn(async move { delivery.run().await });
    tasks.spawn(peers.run());
    tasks.spawn(control.serve(Arc::new(Backend(agent.clone()))));
    if let Some(socket) = metrics_socket {
        tasks.spawn(agent.clone().serve_metrics(socket, metrics));
    }
    tasks.spawn(async move { systemd::watchdog(|| queue.poisoned().is_none()).await });
    open_door(&config, &context, &mut sessions);
    listeners.into_iter().for_each(|(_, listener)| drop(sessions.spawn(listener.serve(context.clone()))));
    agent.apply_fetches();
    agent.say_ready();
    agent.until_stopped(&mut signals, sessions).await;
    tasks.shutdown().await;
    committer.stop();
    journal.close();
    info!("stopped");
    Ok(())
}

impl Agent {
    fn say_ready(&self) {
        let config = self.config.load();
        if config.tls.files.is_some() {
            for complaint in self.context.tls.complaints(&config.hostname) {
                warn!("those who verify the certificate refuse it: {complaint}");
            }
        }
        for warning in &config.warnings {
            warn!("{warning}");
        }
        let listeners = self.listeners.join(", ");
        info!(hostname = %config.hostname, listeners, queued = self.queue.len(), "ready");
        systemd::ready(&format!("listening on {listeners}"));
    }

    async fn until_stopped(&self, signals: &mut Signals, sessions: JoinSet<()>) {
        while signals.next().await == Signal::Reload {
            // What came of it is in the log.
            let _ = self.reload().await;
        }
        tokio::select! {
            () = self.drain(sessions) => {}
            () = signals.stopped() => warn!("told to stop again: sessions and attempts cut off"),
        }
    }

    async fn drain(&self, mut sessions: JoinSet<()>) {
        let limit = self.config.load().timeouts.drain;
        info!(limit_s = limit.as_secs(), "draining");
        systemd::stopping("draining");
        self.context.drain.send_replace(true);
        // One deadline: what the sessions took is not to be had again by the attempts.
        let deadline = Instant::now() + limit;
        let ended = async {
            self.fetches.drain().await;
            while sessions.join_next().await.is_some() {}
        };
        if timeout_at(deadline, ended).await.is_err() {
            warn!("sessions cut off at the end of the drain");
        }
        sessions.shutdown().await;
        self.delivery.drain(deadline.saturating_duration_since(Instant::now())).await;
        self.context.peers.part_from_network();
        self.context.peers.keep_rest().await;
    }

    async fn serve_metrics(self: Arc<Agent>, socket: TcpListener, metrics: Arc<Metrics>) {
        let config = self.config.clone();
        let allows = move |peer: IpAddr| config.load().metrics.allow.iter().any(|net| net.contains(&peer));
        metrics::serve(socket, metrics, allows, Arc::new(move |metrics| self.set_gauges(metrics))).await;
    }

    fn set_gauges(&self, metrics: &Metrics) {
        let totals = self.delivery.totals();
        metrics.connections_idle.set(gauge(self.delivery.idle_connections() as u64));
        metrics.queue_messages.set(gauge(self.queue.len() as u64));
        metrics.queue_deferred.set(gauge(totals.deferred as u64));
        metrics.queue_held.set(gauge(totals.held as u64));
        metrics.queue_octets.set(gauge(self.queue.content_octets()));
        metrics.queue_disk_octets.set(gauge(self.queue.disk_octets()));
        let room = self.queue.room();
        metrics.queue_disk_free_octets.set(room.free_octets.map_or(-1, gauge));
        metrics.queue_disk_short.set(i64::from(room.is_short()));
        metrics.mesh.members.set(gauge(self.context.peers.view().members().count() as u64));
        metrics.mesh.contained.set(gauge(self.context.peers.view().contained().len() as u64));
        metrics.mesh.links.set(gauge(self.context.peers.link_count() as u64));
        metrics.mesh.callers.set(gauge(self.delivery.callers().len() as u64));
        let memory = &self.context.memory;
        metrics.memory_octets.set(gauge(memory.used()));
        metrics.memory_limit_octets.set(gauge(memory.limit()));
        metrics.memory_short.set(i64::from(memory.level() != Level::Ample));
        metrics.queue_stopped.set(i64::from(self.queue.poisoned().is_some()));
    }
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn log_format(format: LogFormat) -> Format {
    match format {
        LogFormat::Text => Format::Text,
        LogFormat::Json => Format::Json,
    }
}

fn log_level(level: LogLevel) -> &'static str {
    match level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    }
}

fn delivery(config: &Arc<Config>, context: &Context) -> Result<Delivery, StartError> {
    let members = mesh::members(&context.peers.view());
    Ok(Delivery::new(Parts {
        queue: context.queue.clone(),
        routing: Routing::new(config.clone(), Resolver::new(config)?, members),
        tls: ClientTls::new(),
        peers: context.peers.clone(),
        clock: context.clock,
        metrics: context.metrics.clone(),
        journal: context.journal.clone(),
        memory: context.memory.clone(),
    }))
}

fn start_journal(config: &Config, clock: Clock, metrics: &Arc<Metrics>) -> Result<Journal, StartError> {
    let Some(limits) = Limits::of(&config.journal) else { return Ok(Journal::default()) };
    let started = Journal::start(journal::directory(&config.state_dir), limits, clock, metrics.clone());
    started.map_err(|source| StartError::System { what: "the journal's thread", source })
}

/// Prepares the history of the mesh: who ends the way of mail remembers longer than who passes it on.
fn repeats(config: &Config, queue: &Queue) -> Repeats {
    let serves = config.mesh.serves.as_ref().map_or(!config.locals.is_empty(), |serves| !serves.is_empty());
    let age_ms = match serves || !config.mesh.egress.is_empty() {
        true => history::AGE_MS,
        false => history::AGE_PASSING_MS,
    };
    Repeats::new(&config.state_dir.join("mesh/history"), queue.clone(), age_ms)
}

fn make_state_dir(path: &Path) -> Result<(), StartError> {
    let is_missing = !path.exists();
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path).and_then(|()| match is_missing {
        // Whoever hands in mail passes through to `local/`; all else in it is for the agent alone. Whatever the
        // umask says.
        true => std::fs::set_permissions(path, PermissionsExt::from_mode(0o711)),
        false => Ok(()),
    });
    made.map_err(|source| StartError::StateDir { path: path.to_owned(), source })
}

fn open_queue(config: &Config) -> Result<(Queue, Committer), StartError> {
    let options = Options { reserve_octets: config.queue.reserve_octets, ..Options::default() };
    let fs = OsFs::open(&config.state_dir.join("queue"))?;
    let (queue, report) = Queue::open(Arc::new(fs), options)?;
    log_recovery(&report);
    queue.on_stopped(|why| {
        let until = "the disk is mended and the agent restarted";
        error!(%why, until, "the queue has stopped: nothing is accepted or delivered");
    });
    let committer = queue.start().map_err(|source| StartError::System { what: "the committer thread", source })?;
    Ok((queue, committer))
}

/// Returns the limit on the agent's memory, in octets.
fn memory_limit(config: &Config) -> u64 {
    config.limits.memory_octets.unwrap_or_else(memory::default_limit)
}

fn measured_memory(config: &Config, queue: &Queue) -> Memory {
    let limit = memory_limit(config);
    queue.set_draft_octets_max(Memory::draft_share(limit));
    let (resident, queue) = (Resident::open(), queue.clone());
    let queued = move || (queue.draft_octets() as u64, memory::queue_octets(queue.len(), queue.content_octets()));
    // What there is before anything happens is in no count.
    let base = resident.octets().saturating_sub(queued().1);
    Memory::new(limit, move || {
        let (drafts, queued) = queued();
        Usage { resident: resident.octets(), counted: base + queued + drafts, drafts }
    })
}

fn log_recovery(report: &RecoveryReport) {
    info!(messages = report.messages, "queue opened");
    for damage in &report.damage {
        error!(%damage, "the queue was damaged");
    }
}

/// Returns where the certificate of a configuration comes from.
fn identity(config: &Config) -> Identity {
    match &config.tls.files {
        Some(files) => Identity::Files { certificate: files.certificate.clone(), key: files.key.clone() },
        None => Identity::SelfSigned { dir: config.state_dir.join("tls"), hostname: config.hostname.clone() },
    }
}

fn bind_all(config: &Config) -> Result<Vec<(Service, Listener)>, StartError> {
    let bind = |(service, address): (Service, SocketAddr)| {
        let bound =
            Listener::bind(address, service).map_err(|source| listen_error(address, service.as_str(), source))?;
        Ok((service, bound))
    };
    config.listen.all().map(bind).collect()
}

/// Serves the programs of this host. Mail that comes by other ways does not wait for it.
fn open_door(config: &Config, context: &Arc<Context>, sessions: &mut JoinSet<()>) {
    match Door::open(&config.state_dir) {
        Ok(door) => drop(sessions.spawn(door.serve(context.clone()))),
        Err(error) => error!(%error, "programs of this host cannot hand in mail by the sendmail command"),
    }
}

async fn bind_metrics(config: &Config) -> Result<Option<TcpListener>, StartError> {
    let Some(address) = config.metrics.listen else { return Ok(None) };
    let bound = TcpListener::bind(address).await;
    bound.map(Some).map_err(|source| listen_error(address, "metrics", source))
}

fn queue_remedy(error: &OpenError) -> &'static str {
    match error {
        OpenError::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            "; all of the state directory has to belong to the user that runs postroad, whoever made it (`chown -R`)"
        }
        _ => "",
    }
}

fn listen_error(address: SocketAddr, service: &'static str, source: io::Error) -> StartError {
    let remedy = match source.kind() {
        io::ErrorKind::AddrInUse if service == "metrics" => "; stop what listens there, or change [metrics] listen",
        io::ErrorKind::AddrInUse => "; stop what listens there, or choose another port under [listen]",
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 need root or CAP_NET_BIND_SERVICE: see deploy/postroad.service"
        }
        io::ErrorKind::AddrNotAvailable => "; no interface of this host has that address",
        _ => "",
    };
    StartError::Listen { address, service, source, remedy }
}

fn describe(listeners: &[(Service, Listener)]) -> Vec<String> {
    let each = listeners.iter().filter_map(|(service, listener)| {
        listener.address().ok().map(|address| format!("{} {address}", service.as_str()))
    });
    each.collect()
}
