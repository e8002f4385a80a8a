//! The side that fetches (RFC 2645): for each `[[fetch]]`, and for each member of the mesh that holds mail
//! for this host, a task that has the connection made and reversed, gives it to the server's half, and
//! comes again.
//!
//! It decides only when. How a host is reached and logged in to is for its [`Caller`] to know, and
//! what is accepted for its [`Host`].

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use postroad_mesh::NodeId;
use postroad_smtp::Reply;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::outages::Outages;
use crate::config::Fetch;
use crate::metrics::{self, Metrics};
use crate::net::Stream;

/// The pause before the first try to be connected again, where the connection is to stay.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// A connection that stayed less long than this counts as one that failed.
const STAY_MIN: Duration = Duration::from_secs(60);
/// The longest pause before a member of the mesh is dialled again: mail waits there.
const MEMBER_PAUSE_MAX: Duration = Duration::from_secs(60);

/// Where mail is fetched.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// At a host that the configuration names.
    Host(Fetch),
    /// At a member of the mesh.
    Member {
        /// Which one.
        node: NodeId,
        /// Tells connections to one member apart.
        number: u32,
    },
}

/// Reaches the host that keeps mail.
pub trait Caller: Clone + Send + Sync + 'static {
    /// Connects, logs in and has the connection reversed.
    fn reverse(&self, source: &Source) -> impl Future<Output = Result<Reversed, NotReversed>> + Send;
}

/// Takes mail over a connection that was reversed.
pub trait Host: Clone + Send + Sync + 'static {
    /// Serves it to its end, or until `stop` says so and no message is on its way.
    fn serve(&self, reversed: Reversed, keep: bool, stop: watch::Receiver<bool>) -> impl Future<Output = ()> + Send;
}

/// A connection whose peer is the client from now on.
pub struct Reversed {
    /// The connection.
    pub stream: Stream,
    /// The other host.
    pub peer: std::net::SocketAddr,
}

/// Why there is none.
pub struct NotReversed {
    /// The other host, for people.
    pub remote: Box<str>,
    /// What it said, or what we say.
    pub reply: Reply,
}

impl NotReversed {
    /// Returns whether all is well, only nothing waits (RFC 2645 §5.2.1).
    fn is_no_mail(&self) -> bool {
        self.reply.code.get() == 453
    }
}

/// All that are fetched from. Dropping it cuts them off.
pub struct Fetches<C, H> {
    caller: C,
    host: H,
    metrics: Arc<Metrics>,
    outages: Arc<Outages>,
    running: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    known: Vec<Known>,
    tasks: JoinSet<()>,
}

/// A task that fetches.
struct Known {
    source: Source,
    /// Stops it.
    stop: watch::Sender<bool>,
    /// Whether its connection is reversed now.
    is_open: Arc<AtomicBool>,
}

impl<C: Caller, H: Host> Fetches<C, H> {
    /// Fetches from nobody yet.
    pub fn new(caller: C, host: H, metrics: Arc<Metrics>) -> Fetches<C, H> {
        Fetches { caller, host, metrics, outages: Arc::default(), running: Mutex::default() }
    }

    /// Fetches from these and no others from now on. What stays the same goes on undisturbed.
    pub fn apply(&self, sources: impl IntoIterator<Item = Source>) {
        let wanted: Vec<Source> = sources.into_iter().map(Source::without_place).collect();
        self.outages.keep(|host| wanted.iter().any(|source| source.to_string() == host));
        let mut running = self.running();
        running.known.retain(|known| {
            let stays = wanted.contains(&known.source);
            if !stays {
                known.stop.send_replace(true);
            }
            stays
        });
        for source in wanted {
            if running.known.iter().any(|known| known.source == source) {
                continue;
            }
            let (stop, is_open) = (watch::Sender::new(false), Arc::new(AtomicBool::new(false)));
            let task = Task {
                caller: self.caller.clone(),
                host: self.host.clone(),
                metrics: self.metrics.clone(),
                outages: self.outages.clone(),
                source: source.clone(),
                stop: stop.subscribe(),
                is_open: is_open.clone(),
            };
            running.known.push(Known { source, stop, is_open });
            running.tasks.spawn(task.run());
        }
        while running.tasks.try_join_next().is_some() {}
    }

    /// Returns the members of the mesh that can push mail to this host now.
    pub fn open_members(&self) -> BTreeSet<NodeId> {
        let running = self.running();
        let open = running.known.iter().filter(|known| known.is_open.load(Ordering::Relaxed));
        open.filter_map(|known| match known.source {
            Source::Member { node, .. } => Some(node),
            Source::Host(_) => None,
        })
        .collect()
    }

    /// Stops all of them and waits for their sessions to end.
    pub async fn drain(&self) {
        let mut tasks = {
            let mut running = self.running();
            for known in running.known.drain(..) {
                known.stop.send_replace(true);
            }
            std::mem::take(&mut running.tasks)
        };
        while tasks.join_next().await.is_some() {}
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source {
    /// Where it stands in the file is of no matter.
    fn without_place(self) -> Source {
        match self {
            Source::Host(fetch) => Source::Host(Fetch { line: 0, ..fetch }),
            member @ Source::Member { .. } => member,
        }
    }

    /// Returns whether the connection is to stay open for new mail.
    fn keeps(&self) -> bool {
        match self {
            Source::Host(fetch) => fetch.keep,
            Source::Member { .. } => true,
        }
    }

    /// Returns the longest pause between two fetches.
    fn every(&self) -> Duration {
        match self {
            Source::Host(fetch) => fetch.every,
            Source::Member { .. } => MEMBER_PAUSE_MAX,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Host(fetch) => write!(f, "{}:{}", fetch.host, fetch.port),
            Source::Member { node, .. } => write!(f, "the member {}", node.short()),
        }
    }
}

/// One connection that is made again and again.
struct Task<C, H> {
    caller: C,
    host: H,
    metrics: Arc<Metrics>,
    outages: Arc<Outages>,
    source: Source,
    stop: watch::Receiver<bool>,
    is_open: Arc<AtomicBool>,
}

impl<C: Caller, H: Host> Task<C, H> {
    async fn run(mut self) {
        let mut stop = self.stop.clone();
        let mut failures = 0;
        loop {
            let made = tokio::select! {
                made = self.caller.reverse(&self.source) => made,
                _ = stop.wait_for(|stopped| *stopped) => return,
            };
            failures = if self.served(made).await { 0 } else { failures + 1 };
            let pause = pause(&self.source, failures, fastrand::f64());
            debug!(host = %self.source, pause_ms = pause.as_millis(), "comes again");
            tokio::select! {
                () = sleep(pause) => {}
                _ = stop.wait_for(|stopped| *stopped) => return,
            }
        }
    }

    /// Serves what was made. Returns whether all is well.
    async fn served(&mut self, made: Result<Reversed, NotReversed>) -> bool {
        let (host, keeps) = (self.source.to_string(), self.source.keeps());
        let is_reached = made.as_ref().err().is_none_or(NotReversed::is_no_mail);
        if is_reached && self.outages.reached(&host) {
            info!(host, "mail can be fetched again");
        }
        match made {
            Ok(reversed) => {
                self.metrics.turn.count_fetch(metrics::Turn::Done);
                let _open = self.metrics.turn.open_fetch();
                let since = Instant::now();
                info!(host, address = %reversed.peer, keep = keeps, "fetching mail");
                self.is_open.store(true, Ordering::Relaxed);
                self.host.serve(reversed, keeps, self.stop.clone()).await;
                self.is_open.store(false, Ordering::Relaxed);
                let stayed = since.elapsed();
                info!(host, seconds = stayed.as_secs(), "no longer fetching mail");
                !keeps || stayed >= STAY_MIN
            }
            Err(why) if why.is_no_mail() => {
                debug!(host, "no mail to fetch");
                self.metrics.turn.count_fetch(metrics::Turn::NoMail);
                true
            }
            Err(NotReversed { remote, reply }) => {
                if self.outages.failed(&host) {
                    warn!(host, remote, %reply, "cannot fetch mail; it is tried again until it works");
                } else {
                    debug!(host, remote, %reply, "still cannot fetch mail");
                }
                self.metrics.turn.count_fetch(metrics::Turn::Failed);
                false
            }
        }
    }
}

/// Returns how long to wait before the next fetch, after so many failures in a row; `random` is from 0
/// to 1. Where the connection is to stay, the first tries follow soon. Many customers whose provider was
/// away do not all come at once.
fn pause(source: &Source, failures: u32, random: f64) -> Duration {
    let soon = FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(20));
    let pause = if source.keeps() { soon.min(source.every()) } else { source.every() };
    pause.mul_f64(0.5_f64.mul_add(random, 0.75))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    fn fetch(more: &str) -> Source {
        let text = format!(
            "[[local]]\ndomain = \"b.example\"\nmaildir = \"/m/{{user}}\"\n[[fetch]]\nhost = \"relay.example\"\n\
             user = \"b\"\npassword_file = \"p\"\n{more}"
        );
        let config = Config::from_str(&text, "test", Path::new("/")).unwrap_or_else(|faults| panic!("{faults}"));
        Source::Host(config.fetches[0].clone())
    }

    #[test]
    fn a_lost_connection_is_made_again_soon_and_then_less_often() {
        let pauses = |source: &Source| [0, 1, 2, 3, 9, 99].map(|failures| pause(source, failures, 0.5).as_secs());
        let member = Source::Member { node: NodeId::from_octets([1; 32]), number: 0 };
        assert_eq!(pauses(&member), [1, 1, 2, 4, 60, 60]);
        assert_eq!(pauses(&fetch("keep = true\nevery = \"1m\"")), [1, 1, 2, 4, 60, 60]);
        assert_eq!(pauses(&fetch("every = \"10s\"")), [10; 6]);
        let jitter = [0.0, 1.0].map(|random| pause(&fetch("every = \"100s\""), 0, random).as_secs());
        assert_eq!(jitter, [75, 125]);
    }

    /// Never reaches anybody; counts those who have it tried.
    #[derive(Clone)]
    struct Nobody(watch::Sender<usize>);

    impl Caller for Nobody {
        async fn reverse(&self, _: &Source) -> Result<Reversed, NotReversed> {
            self.0.send_modify(|count| *count += 1);
            std::future::pending().await
        }
    }

    impl Host for Nobody {
        async fn serve(&self, _: Reversed, _: bool, _: watch::Receiver<bool>) {}
    }

    #[tokio::test]
    async fn a_reload_leaves_alone_what_stays_the_same_and_a_stop_ends_all() {
        let nobody = Nobody(watch::Sender::new(0));
        let mut calls = nobody.0.subscribe();
        let fetches = Fetches::new(nobody.clone(), nobody, Arc::default());
        let (a, b) = (fetch(""), fetch("every = \"7s\""));
        fetches.apply([a.clone()]);
        let Source::Host(moved) = a.clone() else { unreachable!("it is of a [[fetch]]") };
        fetches.apply([Source::Host(Fetch { line: 99, ..moved }), b]);
        calls.wait_for(|count| *count == 2).await.expect("the sender lives");
        assert_eq!(fetches.running().known.len(), 2);
        fetches.apply([a]);
        assert_eq!(fetches.running().known.len(), 1);
        fetches.drain().await;
        assert_eq!((*calls.borrow(), fetches.running().known.len()), (2, 0));
    }
}
