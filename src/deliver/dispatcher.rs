//! Owns the schedule: admits what the queue holds, starts workers, keeps the alarm.
//!
//! A worker takes one attempt after the other for its destination, over one connection while it
//! lasts. All decisions about order and limits are the schedule's.

use std::collections::BTreeSet;
use std::hash::RandomState;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use arc_swap::ArcSwap;
use postroad_queue::schedule::{Allowance, Attempt, Finish, Limits, Next, Rate, Schedule};
use postroad_queue::{Item, LoadError, Queue, QueueId, SetAside, UnixMillis};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tracing::{error, info};

use super::active::ActiveItems;
use super::admission::{Admission, Arrivals};
use super::attempt::TROUBLE_DELAY_MS;
use super::awaited::Awaited;
use super::callers::Callers;
use super::local::BlockingLimit;
use super::members::Links;
use super::pool::{Pool, Room};
use super::transport::Connection;
use super::turned::TurnedPool;
use super::worker::Worker;
use crate::clock::{Clock, millis};
use crate::config::{self, Config};
use crate::journal::{Journal, Kind, Note};
use crate::memory::{Level, Memory};
use crate::metrics::Metrics;
use crate::peer::Peers;
use crate::route::{Members, Resolver, Router};
use crate::tls::ClientTls;
use crate::turn::MEMBER_CONNECTIONS;

/// How long the end of idle connections may take.
const FAREWELL_LIMIT: Duration = Duration::from_secs(5);
/// Blocking local deliveries at a time.
const LOCAL_DELIVERIES_MAX: usize = 16;
/// Of the sessions in all, one in so many is kept from destinations that are not known to answer.
const UNPROVEN_RESERVE: u32 = 4;
/// Attempts in flight, at most, for another to start when memory is full.
const ATTEMPTS_WHEN_FULL_MAX: usize = 16;

/// What deliveries need; handles to rooms below.
pub struct Parts {
    /// Where mail waits.
    pub queue: Queue,
    /// Settings, rules and name resolution; swapped as one on reload.
    pub routing: Routing,
    /// Verifies next hops.
    pub tls: ClientTls,
    /// The mesh.
    pub peers: Peers,
    /// The time.
    pub clock: Clock,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What happened to messages.
    pub journal: Journal,
    /// How much memory is left.
    pub memory: Arc<Memory>,
}

/// What follows from one configuration.
pub struct Routing {
    /// Settings.
    pub config: Arc<Config>,
    /// Rules.
    pub router: Router,
    /// Name resolution.
    pub resolver: Resolver,
    /// For connections that wait for the next message.
    room: Room,
}

/// The way out. Clones are handles to the same one.
#[derive(Clone)]
pub struct Delivery(pub(super) Arc<Core>);

pub(super) struct Core {
    pub queue: Queue,
    pub routing: ArcSwap<Routing>,
    pub tls: ClientTls,
    pub peers: Peers,
    pub links: Links,
    pub awaited: Awaited,
    pub clock: Clock,
    pub metrics: Arc<Metrics>,
    pub journal: Journal,
    pub memory: Arc<Memory>,
    pub active: ActiveItems,
    pub pool: Pool,
    pub turned: TurnedPool,
    pub callers: Callers,
    pub local: BlockingLimit,
    /// The last message of earlier runs: up to it, mail may have been delivered without a record.
    pub last_of_earlier_run: QueueId,
    /// When this run began.
    pub started: UnixMillis,
    /// The shortest time after which mail of this run expires, in milliseconds.
    expire_min_ms: AtomicU64,
    schedule: Mutex<Schedule>,
    /// Makes senders' names into numbers, which nobody outside can foresee.
    senders: RandomState,
    runtime: Handle,
    /// When to look at messages again: for outcomes that wait to be told together with others, and
    /// for by-times that end.
    owed: Mutex<BTreeSet<(UnixMillis, QueueId)>>,
    alarm: Mutex<Option<UnixMillis>>,
    alarm_changed: Notify,
    worker_ended: Notify,
    /// Something may fall due sooner than the sweep knows.
    pub sweep_changed: Notify,
    draining: AtomicBool,
}

/// How far the schedule came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Started {
    /// All that may start has.
    All,
    /// There is more to put in order, of which some may start.
    MoreToOrder,
}

impl Routing {
    /// Takes what follows from a configuration, and from the mesh that this host is a member of.
    pub fn new(config: Arc<Config>, resolver: Resolver, members: Option<Arc<Members>>) -> Routing {
        Routing { router: Router::with_members(&config, members), room: Room::of(&config), config, resolver }
    }

    fn limits(&self) -> Limits {
        let outbound = &self.config.outbound;
        Limits {
            destination_concurrency_max: outbound.pace.connections_max,
            messages: outbound.pace.messages.map(rate),
            octets: outbound.pace.octets.map(rate),
            allowances: self
                .config
                .routes
                .iter()
                .map(|route| self.allowance(route))
                .chain([self.of_guests(1), self.of_guests(MEMBER_CONNECTIONS)])
                .collect(),
            total_concurrency_max: outbound.connections_max,
            // Dead ones never have them all, however few there are.
            unproven_concurrency_max: outbound.connections_max - outbound.connections_max.div_ceil(UNPROVEN_RESERVE),
            destination_backoff: self.probes(),
            ..Limits::default()
        }
    }

    /// Returns what holds for everybody who fetches: over each connection that was reversed, one message
    /// after the other. Of a customer that is one, of a member of the mesh more.
    fn of_guests(&self, concurrency_max: u32) -> Allowance {
        Allowance { concurrency_max, messages: None, octets: None, backoff: self.probes() }
    }

    /// Returns what holds for the next hop of a route.
    fn allowance(&self, route: &config::Route) -> Allowance {
        let config::Pace { connections_max, messages, octets } = route.pace;
        let (messages, octets) = (messages.map(rate), octets.map(rate));
        Allowance { concurrency_max: connections_max, messages, octets, backoff: self.probes_of(route) }
    }
}

impl Delivery {
    /// Sets up delivery on the current runtime. New mail is taken from now on; what the queue holds
    /// already is admitted by [`Delivery::run`].
    pub fn new(parts: Parts) -> Delivery {
        let schedule = Schedule::new(parts.routing.limits(), fastrand::u64(..));
        let delivery = Delivery(Arc::new(Core {
            active: ActiveItems::new(parts.queue.clone()),
            last_of_earlier_run: parts.queue.last_id(),
            started: parts.clock.now(),
            expire_min_ms: AtomicU64::new(parts.routing.expire_min_ms()),
            queue: parts.queue,
            routing: ArcSwap::from_pointee(parts.routing),
            tls: parts.tls,
            peers: parts.peers,
            links: Links::default(),
            awaited: Awaited::default(),
            clock: parts.clock,
            metrics: parts.metrics,
            journal: parts.journal,
            memory: parts.memory,
            pool: Pool::default(),
            turned: TurnedPool::default(),
            callers: Callers::default(),
            local: BlockingLimit::new(LOCAL_DELIVERIES_MAX),
            schedule: Mutex::new(schedule),
            senders: RandomState::new(),
            runtime: Handle::current(),
            owed: Mutex::default(),
            alarm: Mutex::default(),
            alarm_changed: Notify::new(),
            worker_ended: Notify::new(),
            sweep_changed: Notify::new(),
            draining: AtomicBool::new(false),
        }));
        // Nobody has come yet.
        let core = &delivery.0;
        drop(core.turned.reconfigure(core, None, &core.routing.load().config));
        core.queue.on_committed(Arrivals::of(core));
        delivery
    }

    /// Admits what the queue held at the start, then keeps the alarm and the sweeps. Never returns.
    pub async fn run(&self) {
        let core = self.0.clone();
        self.0.spawn(super::sweep::Sweep::default().run(core.clone()));
        self.0.spawn(core.clone().await_members());
        // Reading the whole queue blocks; new mail flows meanwhile.
        self.0.runtime.spawn_blocking(move || core.admit_found(&Admission::First));
        loop {
            let at = *lock(&self.0.alarm);
            let wake = async {
                match at {
                    Some(at) => tokio::time::sleep_until(self.0.clock.instant(at).into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = wake => {}
                () = self.0.alarm_changed.notified() => continue,
            }
            *lock(&self.0.alarm) = None;
            while self.0.start_some() == Started::MoreToOrder {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Takes another configuration; all that waits is routed anew.
    pub fn reload(&self, routing: Routing) {
        let core = self.0.clone();
        let limits = routing.limits();
        core.expire_min_ms.fetch_min(routing.expire_min_ms(), Ordering::AcqRel);
        let old = core.routing.swap(Arc::new(routing));
        // What was opened under other settings is used no more.
        for connection in core.pool.clear() {
            core.spawn(connection.quit());
        }
        core.sweep_changed.notify_one();
        core.schedule().set_limits(limits);
        for connection in core.turned.reconfigure(&core, Some(&old.config), &core.routing.load().config) {
            core.dismiss(connection);
        }
        core.meet_anew();
        // Reading a large queue again blocks.
        self.0.runtime.spawn_blocking(move || core.admit_found(&Admission::Anew));
    }

    /// Takes what is known of the mesh now; all that waits is routed anew, and tried at once where it has another
    /// way.
    pub fn set_members(&self, members: Option<Arc<Members>>) {
        let core = self.0.clone();
        let Routing { config, resolver, router, .. } = &**core.routing.load();
        let before = router.members().map(AsRef::as_ref);
        let changed = members.iter().flat_map(|now| now.reached_otherwise(before)).collect();
        core.routing.store(Arc::new(Routing::new(config.clone(), resolver.clone(), members)));
        core.meet_anew();
        self.0.runtime.spawn_blocking(move || core.admit_found(&Admission::ByMesh(changed)));
    }

    /// Starts nothing any more and waits for the attempts in flight, at most `limit`; then closes
    /// idle connections.
    pub async fn drain(&self, limit: Duration) {
        self.0.draining.store(true, Ordering::Release);
        self.0.sweep_changed.notify_one();
        let idle = async {
            while self.0.schedule().totals().in_flight > 0 {
                let ended = self.0.worker_ended.notified();
                let _ = tokio::time::timeout(Duration::from_millis(50), ended).await;
            }
        };
        if tokio::time::timeout(limit, idle).await.is_err() {
            info!(attempts = self.0.schedule().totals().in_flight, "attempts cut off at the end of the drain");
        }
        let mut farewells = JoinSet::new();
        let reversed = self.0.turned.clear().into_iter().chain(self.0.callers.clear());
        for connection in self.0.pool.expire(Duration::ZERO).into_iter().chain(reversed) {
            farewells.spawn(connection.quit());
        }
        let _ = tokio::time::timeout(FAREWELL_LIMIT, farewells.join_all()).await;
    }
}

impl Core {
    pub fn schedule(&self) -> MutexGuard<'_, Schedule> {
        lock(&self.schedule)
    }

    pub fn senders(&self) -> &RandomState {
        &self.senders
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Deals with a message that cannot be read: what is damaged is set aside, everything else is
    /// tried again later.
    pub fn unreadable(&self, id: QueueId, error: &LoadError) -> Finish {
        if let LoadError::Damaged { .. } = error {
            let aside = self.queue.quarantine(id);
            if let Ok(SetAside { place, .. }) = &aside {
                let note = Note { word: Some(place), ..Note::default() };
                self.journal.note(self.clock.now(), id, Kind::SetAside, &note);
            }
            match aside {
                Ok(SetAside { place, stays: true }) => {
                    error!(queue_id = %id, %error, place, "what was recorded of a message was damaged and set aside; it goes on from earlier, so that some recipients may get it again");
                }
                Ok(SetAside { place, stays: false }) => {
                    error!(queue_id = %id, %error, place, "a damaged message was set aside; its sender is not told");
                    return Finish::Forgotten;
                }
                Err(why) => error!(queue_id = %id, %error, %why, "a damaged message cannot be set aside"),
            }
        } else {
            error!(queue_id = %id, %error, "a message cannot be read; trying again later");
        }
        let due = self.clock.now().plus(TROUBLE_DELAY_MS);
        self.remind(due, id);
        Finish::Postponed { due }
    }

    /// Starts every attempt that may start now. Where very many jobs are to be put in order first
    /// [`Delivery::run`] sees to that: the committer, who calls this, has more to do.
    pub fn start_ready(self: &Arc<Core>) {
        if self.start_some() == Started::MoreToOrder {
            self.set_alarm(self.clock.now());
        }
    }

    /// The same, as far as it goes without putting more in order.
    fn start_some(self: &Arc<Core>) -> Started {
        while !self.is_draining() {
            let is_full = self.memory.level() == Level::Full;
            let next = {
                let mut schedule = self.schedule();
                // Whoever ends asks again.
                if is_full && schedule.totals().in_flight >= ATTEMPTS_WHEN_FULL_MAX {
                    break;
                }
                schedule.poll(self.clock.now())
            };
            match next {
                Next::Start(attempt) => drop(self.runtime.spawn(Worker::new(self.clone(), attempt).run())),
                Next::Wake { at, .. } if at <= self.clock.now() => return Started::MoreToOrder,
                Next::Wake { at, .. } => {
                    self.set_alarm(at);
                    break;
                }
                Next::Idle => break,
            }
        }
        Started::All
    }

    /// Runs something beside the deliveries.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        drop(self.runtime.spawn(task));
    }

    pub(super) fn set_alarm(&self, at: UnixMillis) {
        let mut alarm = lock(&self.alarm);
        let sooner = alarm.is_none_or(|old| at < old || old <= self.clock.now());
        if sooner {
            *alarm = Some(at);
            self.alarm_changed.notify_one();
        }
    }

    /// Tells the schedule where the mail of an attempt's destination goes. Returns whether it may go
    /// there now; if not, it is to be given back.
    pub fn relocate(&self, attempt: &mut Attempt, site: &Arc<str>) -> bool {
        self.schedule().relocate(attempt, site, self.clock.now())
    }

    /// Gives back an attempt that a fault of ours cut off.
    pub fn cut_off(self: &Arc<Core>, attempt: Attempt) {
        let due = self.clock.now().plus(TROUBLE_DELAY_MS);
        self.schedule().finished(attempt, Finish::Postponed { due }, self.clock.now());
    }

    /// Returns the shortest time that mail of this run may wait, in milliseconds.
    pub fn expire_min_ms(&self) -> u64 {
        self.expire_min_ms.load(Ordering::Acquire)
    }

    /// Takes a message that is settled out of the queue, and what was to be remembered of it.
    pub fn retire(&self, item: &Item) {
        self.queue.retire(item.id);
        self.journal.note(self.clock.now(), item.id, Kind::Retired, &Note::default());
        if let Some(at) = item.deliver_by() {
            lock(&self.owed).remove(&(at, item.id));
        }
    }

    /// Keeps a connection for others; gives it back when enough are kept.
    pub fn keep(&self, site: &Arc<str>, connection: Connection) -> Option<Connection> {
        // Those in between have better things to do.
        if connection.is_passed_on() {
            return Some(connection);
        }
        let surplus = self.pool.put(site, connection, self.routing.load().room);
        self.sweep_changed.notify_one();
        surplus
    }

    /// Remembers to look again at the age and the notifications of a message.
    pub fn remind(&self, at: UnixMillis, id: QueueId) {
        let mut owed = lock(&self.owed);
        if owed.first().is_none_or(|(first, _)| at < *first) {
            self.sweep_changed.notify_one();
        }
        owed.insert((at, id));
    }

    /// Returns when the first reminder is due.
    pub fn first_reminder(&self) -> Option<UnixMillis> {
        lock(&self.owed).first().map(|(at, _)| *at)
    }

    /// Returns the messages of which it is time to be reminded.
    pub fn reminders(&self, now: UnixMillis) -> Vec<QueueId> {
        let mut owed = lock(&self.owed);
        let later = owed.split_off(&(now.plus(1), QueueId::from_u64(0)));
        std::mem::replace(&mut *owed, later).into_iter().map(|(_, id)| id).collect()
    }

    pub fn worker_ended(&self) {
        self.worker_ended.notify_waiters();
    }
}

fn rate(rate: config::Rate) -> Rate {
    Rate { count: rate.count, period_ms: millis(rate.period) }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics while it holds a lock of the dispatcher")
}

#[cfg(test)]
mod tests {
    use postroad_queue::schedule::{Job, Lane, Load, Selector};

    use super::super::scenario::{Agent, Peer, Say, config, routing};
    use super::*;

    #[test]
    fn dead_destinations_never_have_all_sessions_however_few_there_are() {
        for (all, unproven) in [(1, 0), (2, 1), (20, 15), (100, 75), (500, 375), (2_000, 1_500)] {
            let text = format!("hostname = \"mx.home.example\"\n[outbound]\nconnections_max = {all}\n");
            let limits = routing(&config(&text, std::path::Path::new("/etc"))).limits();
            assert_eq!((limits.total_concurrency_max, limits.unproven_concurrency_max), (all, unproven));
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_committer_does_not_put_in_order_what_was_begun_for_very_many() {
        let (_peer, port) = Peer::start(|_| Some(Say::Silence("250-wait".into()))).await;
        let route = format!("[[route]]\ndomain = \"*\"\nvia = \"127.0.0.1:{port}\"\n");
        let agent = Agent::start(&format!("hostname = \"mx.home.example\"\n{route}"));
        let core = &agent.delivery.0;
        let (jobs, destination, later) = (30_000, Arc::<str>::from("held"), core.clock.now().plus(3_600_000));
        for n in 0..jobs {
            let (id, load) = (QueueId::from_u64(n), Load::new(1, 1));
            let (destination, lane) = (destination.clone(), Lane::Normal);
            let job = Job { id, destination, due: later, lane, sender: 0, load, allowance: 0 };
            core.schedule().admit(job, core.clock.now());
        }
        core.schedule().hold(Selector::Destination("held"));
        core.schedule().retry_now(Selector::Destination("held"));
        // The second is answered when what follows from the first is done.
        agent.put(&["x@example.org"], b"x\r\n").await;
        agent.put(&["y@example.org"], b"y\r\n").await;
        assert!(core.schedule().totals().deferred > 10_000, "{:?}", core.schedule().totals());
        assert!(lock(&core.alarm).is_some_and(|at| at <= core.clock.now()), "others go on with it");
    }
}
