//! The side that fetches (RFC 2645): for each `[[fetch]]` a task that has the connection made and
//! reversed, gives it to the server's half, and comes again.
//!
//! It decides only when. How a host is reached and logged in to is for its [`Caller`] to know, and
//! what is accepted for its [`Host`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use postroad_smtp::Reply;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use crate::config::Fetch;
use crate::metrics::{self, Metrics};
use crate::net::Stream;

/// The pause before the first try to be connected again, where the connection is to stay.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// A connection that stayed less long than this counts as one that failed.
const STAY_MIN: Duration = Duration::from_secs(60);

/// Reaches the host that keeps mail.
pub trait Caller: Clone + Send + Sync + 'static {
    /// Connects, logs in and has the connection reversed.
    fn reverse(&self, fetch: &Fetch) -> impl Future<Output = Result<Reversed, NotReversed>> + Send;
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

/// All that are fetched from. Dropping it cuts them off.
pub struct Fetches<C, H> {
    caller: C,
    host: H,
    metrics: Arc<Metrics>,
    running: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    /// What each is told, and how it is stopped.
    known: Vec<(Fetch, watch::Sender<bool>)>,
    tasks: JoinSet<()>,
}

impl<C: Caller, H: Host> Fetches<C, H> {
    /// Fetches from nobody yet.
    pub fn new(caller: C, host: H, metrics: Arc<Metrics>) -> Fetches<C, H> {
        Fetches { caller, host, metrics, running: Mutex::default() }
    }

    /// Fetches from these and no others from now on. What stays the same goes on undisturbed.
    pub fn apply(&self, fetches: &[Fetch]) {
        // Where it stands in the file is of no matter.
        let wanted: Vec<Fetch> = fetches.iter().map(|fetch| Fetch { line: 0, ..fetch.clone() }).collect();
        let mut running = self.running();
        running.known.retain(|(fetch, stop)| {
            let stays = wanted.contains(fetch);
            if !stays {
                stop.send_replace(true);
            }
            stays
        });
        for fetch in wanted {
            if running.known.iter().any(|(known, _)| *known == fetch) {
                continue;
            }
            let stop = watch::Sender::new(false);
            let task = Task {
                caller: self.caller.clone(),
                host: self.host.clone(),
                metrics: self.metrics.clone(),
                fetch: fetch.clone(),
                stop: stop.subscribe(),
            };
            running.known.push((fetch, stop));
            running.tasks.spawn(task.run());
        }
        while running.tasks.try_join_next().is_some() {}
    }

    /// Stops all of them and waits for their sessions to end.
    pub async fn drain(&self) {
        let mut tasks = {
            let mut running = self.running();
            for (_, stop) in running.known.drain(..) {
                stop.send_replace(true);
            }
            std::mem::take(&mut running.tasks)
        };
        while tasks.join_next().await.is_some() {}
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One `[[fetch]]`.
struct Task<C, H> {
    caller: C,
    host: H,
    metrics: Arc<Metrics>,
    fetch: Fetch,
    stop: watch::Receiver<bool>,
}

impl<C: Caller, H: Host> Task<C, H> {
    async fn run(mut self) {
        let mut stop = self.stop.clone();
        let mut failures = 0;
        loop {
            let made = tokio::select! {
                made = self.caller.reverse(&self.fetch) => made,
                _ = stop.wait_for(|stopped| *stopped) => return,
            };
            failures = if self.served(made).await { 0 } else { failures + 1 };
            let pause = pause(&self.fetch, failures, fastrand::f64());
            debug!(host = %self.fetch.host, pause_ms = pause.as_millis(), "comes again");
            tokio::select! {
                () = sleep(pause) => {}
                _ = stop.wait_for(|stopped| *stopped) => return,
            }
        }
    }

    /// Serves what was made. Returns whether all is well.
    async fn served(&mut self, made: Result<Reversed, NotReversed>) -> bool {
        let host = format!("{}:{}", self.fetch.host, self.fetch.port);
        match made {
            Ok(reversed) => {
                self.metrics.turn.count_fetch(metrics::Turn::Done);
                let _open = self.metrics.turn.open_fetch();
                let since = Instant::now();
                info!(host, address = %reversed.peer, keep = self.fetch.keep, "fetching mail");
                self.host.serve(reversed, self.fetch.keep, self.stop.clone()).await;
                let stayed = since.elapsed();
                info!(host, seconds = stayed.as_secs(), "no longer fetching mail");
                !self.fetch.keep || stayed >= STAY_MIN
            }
            Err(NotReversed { reply, .. }) if reply.code.get() == 453 => {
                debug!(host, "no mail to fetch");
                self.metrics.turn.count_fetch(metrics::Turn::NoMail);
                true
            }
            Err(NotReversed { remote, reply }) => {
                warn!(host, remote, %reply, "cannot fetch mail");
                self.metrics.turn.count_fetch(metrics::Turn::Failed);
                false
            }
        }
    }
}

/// Returns how long to wait before the next fetch, after so many failures in a row; `random` is from 0
/// to 1. Where the connection is to stay, the first tries follow soon. Many customers whose provider was
/// away do not all come at once.
fn pause(fetch: &Fetch, failures: u32, random: f64) -> Duration {
    let soon = FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(20));
    let pause = if fetch.keep { soon.min(fetch.every) } else { fetch.every };
    pause.mul_f64(0.5_f64.mul_add(random, 0.75))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    fn fetch(more: &str) -> Fetch {
        let text = format!(
            "[[local]]\ndomain = \"b.example\"\nmaildir = \"/m/{{user}}\"\n[[fetch]]\nhost = \"relay.example\"\n\
             user = \"b\"\npassword_file = \"p\"\n{more}"
        );
        let config = Config::from_str(&text, "test", Path::new("/")).unwrap_or_else(|faults| panic!("{faults}"));
        config.fetches[0].clone()
    }

    #[test]
    fn a_lost_connection_is_made_again_soon_and_then_less_often() {
        let pauses = |fetch: &Fetch| [0, 1, 2, 3, 9, 99].map(|failures| pause(fetch, failures, 0.5).as_secs());
        assert_eq!(pauses(&fetch("keep = true\nevery = \"1m\"")), [1, 1, 2, 4, 60, 60]);
        assert_eq!(pauses(&fetch("every = \"10s\"")), [10; 6]);
        let jitter = [0.0, 1.0].map(|random| pause(&fetch("every = \"100s\""), 0, random).as_secs());
        assert_eq!(jitter, [75, 125]);
    }

    /// Never reaches anybody; counts those who have it tried.
    #[derive(Clone)]
    struct Nobody(watch::Sender<usize>);

    impl Caller for Nobody {
        async fn reverse(&self, _: &Fetch) -> Result<Reversed, NotReversed> {
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
        fetches.apply(std::slice::from_ref(&a));
        fetches.apply(&[Fetch { line: 99, ..a.clone() }, b]);
        calls.wait_for(|count| *count == 2).await.expect("the sender lives");
        assert_eq!(fetches.running().known.len(), 2);
        fetches.apply(&[a]);
        assert_eq!(fetches.running().known.len(), 1);
        fetches.drain().await;
        assert_eq!((*calls.borrow(), fetches.running().known.len()), (2, 0));
    }
}
