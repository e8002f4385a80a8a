//! Members of the mesh that cannot be dialled and have come for their mail, with their connections between
//! two messages.
//!
//! A destination of which only such a member is left is held while it is away, so that waiting is neither an
//! attempt nor a failure; whoever finds it so holds it here, under one lock with the connections, and whoever
//! brings a connection releases it. So does one that finds all connections in use. What has other members to
//! go to does not wait. Nothing here is kept on disk: after a start everybody is away.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use postroad_mesh::NodeId;
use postroad_queue::schedule::Selector;
use postroad_smtp::{Reply, Status};
use tracing::debug;

use super::attempt::{Ended, Task};
use super::carrier::LOOKED_AT_ONCE;
use super::dispatcher::{Core, Delivery};
use super::remote::{Lane, Sent, refused};
use super::transport::Connection;
use super::turned::{Idle, Look, look_at};
use crate::route::leads_to;
use crate::turn::Guest;

const AWAY: Reply =
    Reply::of(451, Some(Status::new(4, 4, 1)), "this member of the mesh comes for its mail and is not connected now");

/// Members that come for their mail, those that are here and those that are waited for.
#[derive(Default)]
pub struct Callers(Mutex<BTreeMap<NodeId, Caller>>);

#[derive(Default)]
struct Caller {
    /// Connections without work; the one used last is at the end.
    idle: Vec<Idle>,
    /// Of each connection, with work or without, what is gone when it is.
    alive: Vec<Weak<()>>,
    /// Destinations that are held until one of them is free.
    held: BTreeSet<Arc<str>>,
}

/// What there is for somebody who wants a connection.
enum Found {
    Free(Box<Connection>),
    /// All are in use: the destination is held until one is free.
    Busy,
    /// The member is not here.
    Away,
}

impl Callers {
    /// Takes a connection of a member. `waits`: the destination has nobody else, and is held while the member
    /// is away.
    fn take(&self, core: &Core, node: &NodeId, key: &Arc<str>, waits: bool) -> Found {
        let mut callers = self.lock();
        let caller = callers.entry(*node).or_default();
        caller.sort_out();
        if let Some(one) = caller.idle.pop() {
            return Found::Free(Box::new(one.connection));
        }
        let is_here = !caller.alive.is_empty();
        if is_here || waits {
            caller.held.insert(key.clone());
            core.schedule().hold(Selector::Destination(key));
        } else if caller.is_forgotten() {
            callers.remove(node);
        }
        if is_here { Found::Busy } else { Found::Away }
    }

    /// Puts a connection back, or a new one in: what waits for it may start. Gives it back when its member
    /// has no right to it any more.
    pub fn put(&self, core: &Core, node: NodeId, connection: Connection) -> Option<Connection> {
        let is_granted = core.routing.load().router.members().is_some_and(|members| members.comes(&node));
        let alive = connection.ticket().filter(|ticket| is_granted && ticket.stays()).map(|ticket| ticket.alive());
        let Some(alive) = alive.filter(|_| !core.is_draining()) else { return Some(connection) };
        let mut callers = self.lock();
        let caller = callers.entry(node).or_default();
        if !caller.alive.iter().any(|known| known.ptr_eq(&alive)) {
            caller.alive.push(alive);
        }
        caller.idle.push(Idle::new(connection));
        caller.release(core);
        None
    }

    /// A connection has failed or is closed: who waited for it looks who else there is.
    pub fn lost(&self, core: &Core, node: &NodeId, alive: &Arc<()>) {
        let mut callers = self.lock();
        let Some(caller) = callers.get_mut(node) else { return };
        caller.alive.retain(|one| one.upgrade().is_some_and(|one| !Arc::ptr_eq(&one, alive)));
        if caller.release(core) {
            core.set_alarm(core.clock.now());
        }
        if caller.is_forgotten() {
            callers.remove(node);
        }
    }

    /// Takes out the connection of a member that has been without work longest.
    pub fn take_oldest(&self, node: &NodeId) -> Option<Connection> {
        let mut callers = self.lock();
        let idle = &mut callers.get_mut(node)?.idle;
        if idle.is_empty() { None } else { Some(idle.remove(0).connection) }
    }

    /// Looks at one connection after it may have been without work for `limit`.
    pub fn look(&self, node: &NodeId, alive: &Weak<()>, limit: Duration) -> Look {
        let Some(alive) = alive.upgrade() else { return Look::Gone };
        match self.lock().get_mut(node) {
            Some(caller) => look_at(&mut caller.idle, &alive, limit),
            None => Look::Later(limit),
        }
    }

    /// Takes all out: the agent drains.
    pub fn clear(&self) -> Vec<Connection> {
        let callers = mem::take(&mut *self.lock());
        callers.into_values().flat_map(|caller| caller.idle).map(|one| one.connection).collect()
    }

    /// Releases all that is held, for mail is routed anew. Returns connections of those who are members no
    /// more or can be dialled now, for the caller to close.
    fn meet_anew(&self, core: &Core) -> Vec<Connection> {
        let routing = core.routing.load();
        let is_granted = |node: &NodeId| routing.router.members().is_some_and(|members| members.comes(node));
        let mut void = Vec::new();
        self.lock().retain(|node, caller| {
            caller.release(core);
            if !is_granted(node) {
                void.extend(caller.idle.drain(..).map(|one| one.connection));
            }
            !caller.is_forgotten()
        });
        void
    }

    /// Returns the members that are here, with how many connections.
    fn here(&self) -> Vec<(NodeId, usize)> {
        let mut callers = self.lock();
        callers.values_mut().for_each(Caller::sort_out);
        let here = callers.iter().filter(|(_, caller)| !caller.alive.is_empty());
        here.map(|(node, caller)| (*node, caller.alive.len())).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Caller>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Caller {
    /// Forgets connections that are gone: one that was closed, or speaks unasked, is of no use any more.
    fn sort_out(&mut self) {
        self.idle.retain(|one| one.connection.is_quiet());
        self.alive.retain(|alive| alive.strong_count() > 0);
    }

    /// Lets start what was held. Returns whether there was anything.
    fn release(&mut self, core: &Core) -> bool {
        let held = mem::take(&mut self.held);
        let mut schedule = core.schedule();
        for key in &held {
            schedule.release(Selector::Destination(key));
        }
        !held.is_empty()
    }

    fn is_forgotten(&self) -> bool {
        self.idle.is_empty() && self.alive.is_empty() && self.held.is_empty()
    }
}

impl Core {
    /// Makes all that may go to a member due at once: it has come.
    pub fn make_due(&self, node: &NodeId) {
        let mut from = Some(0);
        while let Some(number) = from {
            (_, from) = self.schedule().retry_some(number, LOOKED_AT_ONCE, |name| leads_to(name, node));
        }
    }

    /// Looks anew at who comes for mail: who are members, and which of them come, may be others now.
    pub fn meet_anew(&self) {
        for connection in self.callers.meet_anew(self) {
            self.dismiss(connection);
        }
    }
}

impl Delivery {
    /// Returns the members of the mesh that are connected here to be pushed their mail, with how many
    /// connections.
    pub fn callers(&self) -> Vec<(NodeId, usize)> {
        self.0.callers.here()
    }
}

impl Lane {
    /// Sends to a member that has come for its mail. `None`: nobody was asked, and the destination is held.
    pub(super) async fn over_caller(
        &mut self,
        core: &Core,
        task: &Task<'_>,
        (node, key, waits): (&NodeId, &Arc<str>, bool),
    ) -> Option<Sent> {
        loop {
            let connection = match self.of_caller(core, node) {
                Some(own) => own,
                None => match core.callers.take(core, node, key, waits) {
                    Found::Free(connection) => *connection,
                    Found::Away if !waits => return Some(refused(core, task, None, AWAY)),
                    Found::Away | Found::Busy => return None,
                },
            };
            match self.send_all(core, task, connection).await {
                Sent { ended: Ended::Stale(_), .. } => {
                    debug!(queue_id = %task.item.id, %node, "a reversed connection was closed");
                }
                sent => return Some(sent),
            }
        }
    }

    /// Returns this worker's own connection, if it is one of this member.
    fn of_caller(&mut self, core: &Core, node: &NodeId) -> Option<Connection> {
        let own = self.connection.take()?;
        match own.ticket().map(|ticket| ticket.guest()) {
            Some(Guest::Member(guest)) if guest == node && own.is_quiet() => return Some(own),
            Some(_) => core.put_back(own, false),
            // From when it could be dialled.
            None => core.spawn(own.quit()),
        }
        None
    }
}
