//! Connections between transactions, kept for the next message to the same site: to any of the
//! destinations whose mail the same hosts take.
//!
//! Each is kept for a limited time; of one site and in all there is a limit. A connection
//! that the peer has closed, or on which it speaks unasked, is never handed out; nor is one of an
//! earlier generation, which was opened under settings that no longer hold.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::transport::Connection;
use crate::config::Config;

/// The idle connections.
#[derive(Default)]
pub struct Pool {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    generation: u64,
    total: usize,
    by_site: HashMap<Arc<str>, Vec<Idle>>,
}

/// How many connections are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// In all.
    pub total_max: u32,
    /// Of one site.
    pub of_site_max: u32,
}

impl Room {
    /// Returns the room under these settings: for as many to a site as any route allows. No more than its own one does
    /// are ever open to one, and so no more come to be kept.
    pub fn of(config: &Config) -> Room {
        let of_routes = config.routes.iter().map(|route| route.pace.connections_max).max();
        let of_all = config.outbound.pace.connections_max;
        Room { total_max: config.outbound.idle_max, of_site_max: of_routes.map_or(of_all, |most| most.max(of_all)) }
    }
}

struct Idle {
    connection: Connection,
    since: Instant,
}

impl Pool {
    /// Returns the number of the settings in force. Whoever opens a connection asks for it before
    /// looking at the settings, and stamps the connection with it ([`Connection::set_generation`]).
    pub fn generation(&self) -> u64 {
        self.lock().generation
    }

    /// Begins a new generation: other settings are in force already. Returns all that was kept, for
    /// the caller to close; what workers still hold is refused by [`Pool::put`].
    #[must_use]
    pub fn clear(&self) -> Vec<Connection> {
        let mut kept = self.lock();
        kept.generation += 1;
        kept.total = 0;
        std::mem::take(&mut kept.by_site).into_values().flatten().map(|idle| idle.connection).collect()
    }

    /// Returns how many connections are kept.
    pub fn len(&self) -> usize {
        self.lock().total
    }

    /// Takes the connection used last for this site, if a usable one is kept.
    pub fn take(&self, site: &str) -> Option<Connection> {
        let mut kept = self.lock();
        loop {
            let idle = kept.by_site.get_mut(site)?.pop()?;
            kept.total -= 1;
            if idle.connection.generation() == Some(kept.generation) && idle.connection.is_quiet() {
                return Some(idle.connection);
            }
        }
    }

    /// Returns how long the last transaction took over the connection that would be taken next, where its
    /// peer takes an envelope ahead of its turn.
    pub fn pace_ahead(&self, site: &str) -> Option<Duration> {
        self.lock().by_site.get(site)?.last()?.connection.pace_ahead()
    }

    /// Keeps a connection; gives it back when there are enough, of the site or in all, or when it is
    /// of an earlier generation or good for one message alone.
    pub fn put(&self, site: &Arc<str>, connection: Connection, room: Room) -> Option<Connection> {
        let mut kept = self.lock();
        let is_usable = connection.generation() == Some(kept.generation) && connection.ahead().is_none();
        if kept.total >= room.total_max as usize || !is_usable {
            return Some(connection);
        }
        let of_site = kept.by_site.entry(site.clone()).or_default();
        if of_site.len() >= room.of_site_max as usize {
            return Some(connection);
        }
        of_site.push(Idle { connection, since: Instant::now() });
        kept.total += 1;
        None
    }

    /// Takes out every connection that has been idle for `limit`, for the caller to close.
    pub fn expire(&self, limit: Duration) -> Vec<Connection> {
        let mut expired = Vec::new();
        let mut kept = self.lock();
        kept.by_site.retain(|_, idle| {
            // The oldest are in front: `put` and `take` work at the other end.
            let old = idle.iter().take_while(|one| one.since.elapsed() >= limit).count();
            expired.extend(idle.drain(..old).map(|one| one.connection));
            !idle.is_empty()
        });
        kept.total -= expired.len();
        expired
    }

    /// Returns how long the connection that expires next has been idle; none when none is kept.
    pub fn oldest_age(&self) -> Option<Duration> {
        let kept = self.lock();
        kept.by_site.values().filter_map(|idle| idle.first()).map(|one| one.since.elapsed()).max()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().expect("nothing panics while it holds the pool")
    }
}
