//! Connections that customers have reversed (RFC 2645), between two messages, and what they have in common
//! with those of members of the mesh ([`Callers`](super::callers::Callers)).
//!
//! A customer's domains are held destinations of one site with one session. They are released for as
//! long as a connection is here that may carry their mail, so that waiting for a customer is neither an
//! attempt nor a failure. Whoever takes the last connection and whoever puts one back do so under one
//! lock with the destinations: none is released without a connection, except while it is used.

use std::collections::HashMap;
use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use postroad_queue::schedule::{Attempt, Selector};
use postroad_smtp::client::TlsNeed;
use tokio::time::sleep;
use tracing::{debug, info};

use super::attempt::{Ended, Task};
use super::dispatcher::Core;
use super::open::session;
use super::remote::{Lane, Result, Sent};
use super::takeover::{Earlier, Pulse, SILENCE, take_over};
use super::transport::{Connection, Nodes, Target};
use crate::config::{self, Config};
use crate::memory::{Held, SESSION_OCTETS};
use crate::metrics::Open;
use crate::net::Address;
use crate::route::{TurnHop, turn};
use crate::turn::{Grant, Guest, Place, Turned};

/// How long one is kept at least whose next message cannot start yet.
const IDLE_MIN: Duration = Duration::from_secs(1);

/// Connections without work, by customer; the one used last is at the end.
#[derive(Default)]
pub struct TurnedPool {
    idle: Mutex<HashMap<String, Vec<Idle>>>,
    /// All connections of customers, those at work with them; locked behind the others.
    known: Mutex<HashMap<String, Vec<Weak<Pulse>>>>,
}

/// A connection without work.
pub struct Idle {
    pub connection: Connection,
    since: Instant,
}

/// What is known of a connection that was reversed; it goes with it.
pub struct Ticket {
    guest: Guest,
    /// Whether it stays when nothing waits.
    stays: bool,
    /// Counts it among the guest's.
    _place: Place,
    /// Counts it as open.
    _open: Open,
    _held: Held,
    /// Gone when it is.
    alive: Arc<()>,
    pulse: Arc<Pulse>,
}

impl Idle {
    pub fn new(connection: Connection) -> Idle {
        Idle { connection, since: Instant::now() }
    }

    /// Returns whether it is the connection of which this is left.
    pub fn is(&self, alive: &Arc<()>) -> bool {
        self.connection.ticket().is_some_and(|ticket| Arc::ptr_eq(&ticket.alive, alive))
    }

    /// Returns how much of a time without work is left; none when it is over.
    pub fn left(&self, limit: Duration) -> Option<Duration> {
        limit.checked_sub(self.since.elapsed()).filter(|left| !left.is_zero())
    }
}

impl Ticket {
    /// Returns who has come.
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    /// Returns whether the connection stays when nothing waits.
    pub fn stays(&self) -> bool {
        self.stays
    }

    /// Returns what tells whether something moves on it.
    pub fn pulse(&self) -> &Arc<Pulse> {
        &self.pulse
    }

    /// Returns what is gone when the connection is.
    pub fn alive(&self) -> Weak<()> {
        Arc::downgrade(&self.alive)
    }

    /// Returns whether the customer may still have the mail of all these domains.
    fn is_granted(&self, config: &Config) -> bool {
        let Guest::Customer(own) = &self.guest else { return false };
        let turn = config.turn(&own.user);
        turn.is_some_and(|turn| own.domains.iter().all(|domain| turn.domains.contains(domain)))
    }

    fn carries(&self, key: &str) -> bool {
        keys(&self.guest).any(|own| *own == *key)
    }
}

/// Returns the destinations of a customer's domains.
fn keys(guest: &Guest) -> impl Iterator<Item = Arc<str>> {
    let turn = match guest {
        Guest::Customer(turn) => Some(turn),
        Guest::Member(_) => None,
    };
    turn.into_iter().flat_map(keys_of)
}

fn keys_of(turn: &config::Turn) -> impl Iterator<Item = Arc<str>> {
    turn.domains.iter().map(|domain| turn::key(&turn.user, domain))
}

/// What the guard of a connection finds.
pub enum Look {
    /// It is no more.
    Gone,
    /// It has work, or had it lately: look again after this time.
    Later(Duration),
    /// It has been without work for long; here it is.
    Idle(Box<Connection>),
}

impl TurnedPool {
    /// Takes a connection for this destination. When there is none, the destination is held.
    fn take(&self, core: &Core, hop: &TurnHop) -> Option<Connection> {
        let mut pool = self.lock();
        if let Some(idle) = pool.get_mut(hop.user()) {
            // One that was closed, or speaks unasked, is of no use any more.
            idle.retain(|one| one.connection.is_quiet());
            let fits = |one: &Idle| one.connection.ticket().is_some_and(|ticket| ticket.carries(hop.key()));
            if let Some(at) = idle.iter().rposition(fits) {
                return Some(idle.remove(at).connection);
            }
        }
        core.schedule().hold(Selector::Destination(hop.key()));
        None
    }

    /// Puts a connection back, or a new one in: what waits for it may start. Gives it back when nothing
    /// does and it does not stay.
    fn put(&self, core: &Core, connection: Connection, is_new: bool) -> Option<Connection> {
        let Some(ticket) = connection.ticket() else { return Some(connection) };
        let (user, own) = (ticket.guest.name(), keys(&ticket.guest).collect::<Vec<_>>());
        let mut pool = self.lock();
        let mut ready = 0;
        {
            let mut schedule = core.schedule();
            for key in &own {
                schedule.release(Selector::Destination(key));
                if is_new {
                    schedule.retry_now(Selector::Destination(key));
                }
                ready += schedule.waiting(key).0;
            }
        }
        let is_granted = ticket.is_granted(&core.routing.load().config);
        let idle = pool.get(&user).map(Vec::as_slice).unwrap_or_default();
        // What is on its way over an earlier one may yet be for this one.
        let may_wait = ticket.stays || ready > 0 || (is_new && !self.at_work(&user, idle, &ticket.pulse).is_empty());
        if !is_granted || !may_wait || core.is_draining() {
            drop(pool);
            self.hold_others(core, own.into_iter(), &user);
            return Some(connection);
        }
        pool.entry(user).or_default().push(Idle::new(connection));
        None
    }

    /// A connection has failed or is closed: what no other carries is held.
    fn lost(&self, core: &Core, ticket: &Ticket) {
        self.hold_others(core, keys(&ticket.guest), &ticket.guest.name());
    }

    /// Holds those of these destinations that no connection is here for.
    fn hold_others(&self, core: &Core, keys: impl Iterator<Item = Arc<str>>, user: &str) {
        let pool = self.lock();
        let idle = pool.get(user).map(Vec::as_slice).unwrap_or_default();
        let is_carried =
            |key: &str| idle.iter().any(|one| one.connection.ticket().is_some_and(|ticket| ticket.carries(key)));
        let mut schedule = core.schedule();
        for key in keys.filter(|key| !is_carried(key)) {
            schedule.hold(Selector::Destination(&key));
        }
    }

    /// Returns the other connections of a customer that carry the same mail and are at work.
    fn at_work(&self, user: &str, idle: &[Idle], newcomer: &Pulse) -> Vec<Arc<Pulse>> {
        let rests = |pulse: &Arc<Pulse>| {
            idle.iter().any(|one| one.connection.ticket().is_some_and(|ticket| Arc::ptr_eq(&ticket.pulse, pulse)))
        };
        let is_meant =
            |pulse: &Arc<Pulse>| !std::ptr::eq(&raw const **pulse, newcomer) && pulse.shares(newcomer) && !rests(pulse);
        let known = self.known();
        known.get(user).into_iter().flatten().filter_map(Weak::upgrade).filter(is_meant).collect()
    }

    /// Returns how many connections of a customer for any of these domains are at work.
    pub fn count_at_work(&self, turn: &config::Turn) -> usize {
        let newcomer = Pulse::new(keys_of(turn), None);
        let pool = self.lock();
        self.at_work(&turn.user, pool.get(&turn.user).map(Vec::as_slice).unwrap_or_default(), &newcomer).len()
    }

    /// Takes a new connection of a customer down. Returns those before it that are at work for the same mail.
    fn enter(&self, turn: &config::Turn, newcomer: &Arc<Pulse>) -> Vec<Earlier> {
        let pool = self.lock();
        let idle = pool.get(&turn.user).map(Vec::as_slice).unwrap_or_default();
        let earlier = self.at_work(&turn.user, idle, newcomer).iter().map(Pulse::follow).collect();
        let mut known = self.known();
        let own = known.entry(turn.user.clone()).or_default();
        own.retain(|pulse| pulse.strong_count() > 0);
        own.push(Arc::downgrade(newcomer));
        earlier
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Vec<Weak<Pulse>>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes out the connection of a customer that has been without work longest.
    pub fn take_oldest(&self, core: &Core, user: &str) -> Option<Connection> {
        let taken = {
            let mut pool = self.lock();
            let idle = pool.get_mut(user)?;
            if idle.is_empty() { None } else { Some(idle.remove(0).connection) }
        }?;
        if let Some(ticket) = taken.ticket() {
            self.lost(core, ticket);
        }
        Some(taken)
    }

    /// Takes all out: the agent drains.
    pub fn clear(&self) -> Vec<Connection> {
        mem::take(&mut *self.lock()).into_values().flatten().map(|one| one.connection).collect()
    }

    /// Holds what waits for customers under another configuration, and releases what no longer does.
    /// Returns connections that were granted under what is not said any more, for the caller to close.
    pub fn reconfigure(&self, core: &Core, old: Option<&Config>, new: &Config) -> Vec<Connection> {
        let mut pool = self.lock();
        let mut void = Vec::new();
        for idle in pool.values_mut() {
            let is_void = |one: &mut Idle| one.connection.ticket().is_none_or(|ticket| !ticket.is_granted(new));
            void.extend(idle.extract_if(.., is_void).map(|one| one.connection));
        }
        let is_carried = |key: &str| {
            pool.values().flatten().any(|one| one.connection.ticket().is_some_and(|ticket| ticket.carries(key)))
        };
        let wanted: Vec<Arc<str>> = new.turns.iter().flat_map(keys_of).collect();
        let mut schedule = core.schedule();
        for key in old.into_iter().flat_map(|config| config.turns.iter().flat_map(keys_of)) {
            if !wanted.contains(&key) {
                schedule.release(Selector::Destination(&key));
            }
        }
        for key in wanted.iter().filter(|key| !is_carried(key)) {
            schedule.hold(Selector::Destination(key));
        }
        void
    }

    /// Looks at one connection after it may have been without work for `limit`.
    fn look(&self, user: &str, alive: &Weak<()>, limit: Duration) -> Look {
        let Some(alive) = alive.upgrade() else { return Look::Gone };
        match self.lock().get_mut(user) {
            Some(idle) => look_at(idle, &alive, limit),
            None => Look::Later(limit),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Vec<Idle>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks at one of these connections after it may have been without work for `limit`.
pub fn look_at(idle: &mut Vec<Idle>, alive: &Arc<()>, limit: Duration) -> Look {
    let Some(at) = idle.iter().position(|one| one.is(alive)) else { return Look::Later(limit) };
    match idle[at].left(limit) {
        Some(left) => Look::Later(left),
        None => Look::Idle(Box::new(idle.remove(at).connection)),
    }
}

impl Core {
    /// Begins to carry mail over a connection that a guest has just reversed.
    pub async fn carry(self: Arc<Core>, turned: Turned) {
        let Turned { stream, peer, grant: Grant { guest, place } } = turned;
        let (target, user) = (Arc::new(self.target_of(&guest, peer)), guest.name());
        if let Err(error) = stream.keep_alive() {
            debug!(user, %peer, %error, "the kernel does not ask whether the guest is still there");
        }
        let cut = matches!(guest, Guest::Customer(_)).then(|| stream.cut().ok()).flatten();
        let mut connection = match Connection::adopt(stream, target).await {
            Ok(connection) if connection.is_member() && !(connection.knows_us() && connection.may_stay()) => {
                info!(user, %peer, "a member reversed the connection and does not take this host for a member yet");
                return self.spawn(connection.quit());
            }
            Ok(connection) => connection,
            Err(error) => {
                info!(user, %peer, %error, "a guest reversed the connection and takes no mail");
                return;
            }
        };
        let config = self.routing.load().config.clone();
        let alive = Arc::new(());
        let stays = guest.keeps() && connection.may_stay();
        // What does not stay has this long until the next of its messages can start.
        let limit = if stays { guest.keepalive() } else { config.outbound.idle.max(IDLE_MIN) };
        let pulse = Pulse::new(keys(&guest), cut);
        let earlier = match &guest {
            Guest::Customer(turn) => self.turned.enter(turn, &pulse),
            // It remembers what it took, and has more than one connection.
            Guest::Member(_) => Vec::new(),
        };
        let limit = if earlier.is_empty() { limit } else { limit.max(2 * SILENCE) };
        let guard = Arc::downgrade(&alive);
        connection.set_ticket(Ticket {
            guest: guest.clone(),
            stays,
            _place: place,
            _open: self.metrics.turn.open_turned(),
            _held: Held::new(self.memory.clone(), SESSION_OCTETS),
            alive,
            pulse,
        });
        debug!(user, %peer, stays, "a guest takes mail");
        if !earlier.is_empty() {
            self.spawn(take_over(user.clone(), earlier));
        }
        self.put_back(connection, true);
        if let Guest::Member(node) = &guest {
            self.make_due(node);
        }
        self.start_ready();
        self.guard(&guest, &guard, limit, stays).await;
    }

    /// Keeps a connection from being forgotten on its way, and ends one that does not stay.
    async fn guard(self: Arc<Core>, guest: &Guest, alive: &Weak<()>, limit: Duration, stays: bool) {
        let mut pause = limit;
        loop {
            sleep(pause).await;
            let found = match guest {
                Guest::Customer(turn) => self.turned.look(&turn.user, alive, limit),
                Guest::Member(node) => self.callers.look(node, alive, limit),
            };
            match found {
                Look::Gone => return,
                Look::Later(left) => pause = left,
                Look::Idle(mut connection) => {
                    pause = limit;
                    if stays && !self.is_draining() && connection.noop().await {
                        self.put_back(*connection, false);
                        // Mail that came meanwhile found nobody.
                        self.start_ready();
                    } else {
                        self.dismiss(*connection);
                        return;
                    }
                }
            }
        }
    }

    /// Puts a reversed connection back; ends it when nothing waits for it and it does not stay.
    pub fn put_back(&self, connection: Connection, is_new: bool) {
        let surplus = match connection.ticket().map(Ticket::guest) {
            Some(Guest::Member(node)) => self.callers.put(self, *node, connection),
            _ => self.turned.put(self, connection, is_new),
        };
        if let Some(surplus) = surplus {
            self.dismiss(surplus);
        }
    }

    /// A reversed connection has failed or is closed.
    pub fn lost(&self, ticket: &Ticket) {
        info!(user = ticket.guest.name(), "a reversed connection has ended");
        match &ticket.guest {
            Guest::Customer(_) => self.turned.lost(self, ticket),
            Guest::Member(node) => self.callers.lost(self, node, &ticket.alive),
        }
    }

    /// Ends a reversed connection. Its place is free at once.
    pub fn dismiss(&self, mut connection: Connection) {
        if let Some(ticket) = connection.take_ticket() {
            self.lost(&ticket);
        }
        self.spawn(connection.quit());
    }

    /// Returns how a guest is spoken to that has connected.
    fn target_of(&self, guest: &Guest, peer: IpAddr) -> Target {
        let routing = self.routing.load();
        let config = &routing.config;
        let (name, nodes) = match guest {
            Guest::Customer(turn) => (turn.user.clone(), None),
            Guest::Member(node) => {
                let found = routing.router.members().and_then(|members| members.member(node));
                let nodes = self.peers.me_to(node).map(|me| Nodes { me, member: *node });
                (found.map_or_else(|| node.short(), ToString::to_string), nodes)
            }
        };
        Target {
            name: name.into(),
            // The port it came from is of no use to anybody.
            address: Address::Tcp(SocketAddr::new(peer, 0)),
            session: session(config, TlsNeed::Never, None),
            implicit_tls: false,
            tls: self.tls.any_certificate().clone(),
            nodes,
            connect_limit: config.timeouts.connect,
        }
    }
}

impl Lane {
    /// Hands mail to a customer who has come for it; nothing was tried when none is here any more.
    pub async fn hand_out(&mut self, core: &Core, attempt: &mut Attempt, task: &Task<'_>, hop: &TurnHop) -> Result {
        if !core.relocate(attempt, hop.site()) {
            return (Vec::new(), Ended::Elsewhere);
        }
        self.go_to(core, hop.site());
        loop {
            let Some(connection) = self.for_customer(core, hop) else { return (Vec::new(), Ended::Elsewhere) };
            match self.send_all(core, task, connection).await {
                Sent { ended: Ended::Stale(_), .. } => {
                    debug!(queue_id = %task.item.id, "a reversed connection was closed")
                }
                sent => return sent.into(),
            }
        }
    }

    /// Returns this worker's own connection, or one that waits.
    fn for_customer(&mut self, core: &Core, hop: &TurnHop) -> Option<Connection> {
        if let Some(own) = self.connection.take() {
            if own.is_quiet() && own.ticket().is_some_and(|ticket| ticket.carries(hop.key())) {
                return Some(own);
            }
            core.put_back(own, false);
        }
        core.turned.take(core, hop)
    }
}
