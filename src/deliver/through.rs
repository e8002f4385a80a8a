//! The last resort of mail in the mesh: through members that pass octets on (XVIA), to one that takes it.
//!
//! Those in between take no responsibility and read nothing: the session within is under the key of the member
//! behind them. So a message that can only go back the way it came gets on, and no member takes it twice. The
//! other side of it is here, too: this host passes octets on over a session of its own, never to an address.

use std::sync::Arc;
use std::time::Duration;

use postroad_mesh::NodeId;
use postroad_smtp::client::TlsNeed;
use postroad_smtp::{Reply, Status};
use tokio::time::timeout;
use tracing::{debug, info};

use super::attempt::{Ended, Task};
use super::dispatcher::{Core, Routing};
use super::open::{NO_KEY, UNKNOWN_TO_MEMBER, dial, session, targets};
use super::remote::{Lane, Sent, refused, shows_the_key};
use super::transport::{Connection, Nodes, Target};
use crate::net::Stream;
use crate::route::{Member, NextHop};

/// How long it may take until a member is reached for another one.
const REACH_LIMIT: Duration = Duration::from_secs(30);
/// How long it may take until one is reached through others, each of which may take that long.
const THROUGH_LIMIT: Duration = Duration::from_secs(90);
const AWAY: Reply =
    Reply::of(451, Some(Status::new(4, 4, 1)), "it comes for its mail and has no connection free here now");
const NOT_DESCRIBED: Reply =
    Reply::of(451, Some(Status::new(4, 4, 4)), "nothing is known of this member of the mesh yet");
const LATE: Reply = Reply::of(451, Some(Status::new(4, 4, 1)), "no answer in time");

/// Why there is no session, and who said so.
type Refused = (Box<str>, Reply);

impl Lane {
    /// Sends to a member through others.
    pub(super) async fn over_others(&mut self, core: &Core, task: &Task<'_>, member: &Member) -> Sent {
        if let Some(own) = self.connection.take() {
            if own.is_passed_on() && shows_the_key(core, &own) {
                match self.send_all(core, task, own).await {
                    Sent { ended: Ended::Stale(_), .. } => debug!(%member, "what was passed on has ended"),
                    sent => return sent,
                }
            } else {
                core.spawn(own.quit());
            }
        }
        match in_time(THROUGH_LIMIT, core.session_through(task.routing, member)).await {
            Ok(connection) => {
                info!(queue_id = %task.item.id, %member, "no other way: through members that pass octets on");
                self.send_all(core, task, connection).await
            }
            Err((remote, reply)) => refused(core, task, Some(remote), reply),
        }
    }
}

impl Core {
    /// Opens a session with a member for another one, and has it begin a new one within: who asked speaks with
    /// it from then on.
    ///
    /// # Errors
    /// The reply that says why not: transient.
    pub(super) async fn reach(&self, node: &NodeId) -> Result<Stream, Reply> {
        let reach = async {
            let routing = self.routing.load_full();
            let found = routing.router.members().and_then(|members| members.member(node)).cloned();
            let member = found.ok_or_else(|| (node.short().into(), NOT_DESCRIBED))?;
            let connection = self.session_with(&routing, &member).await?;
            connection.through(node).await.map_err(|reply| (member.to_string().into(), reply))
        };
        in_time(REACH_LIMIT, reach).await.map_err(|(remote, reply): Refused| {
            let text = format!("no way from here to {remote}: {reply}");
            Reply::of(451, Some(Status::new(4, 4, 1)), "").with_text(&text)
        })
    }

    /// Opens a session with the first of those in between, one within it with the next, and so on to the member.
    async fn session_through(&self, routing: &Routing, member: &Member) -> Result<Connection, Refused> {
        let mut way = member.through.iter().map(AsRef::as_ref).chain([member]);
        let first = way.next().expect("the member itself stands at the end");
        let mut connection = self.session_with(routing, first).await?;
        for next in way {
            let (at, address) = (Box::<str>::from(connection.remote()), connection.address().clone());
            let refused = |reply| (at.clone(), reply);
            let (me, tls) = self.peers.connector(&next.node).ok_or_else(|| refused(NO_KEY))?;
            let target = Target {
                name: next.to_string().into(),
                address,
                session: session(&routing.config, TlsNeed::Required, None),
                implicit_tls: true,
                tls,
                nodes: Some(Nodes { me, member: next.node }),
                connect_limit: REACH_LIMIT,
            };
            let stream = connection.through(&next.node).await.map_err(refused)?;
            let remote = target.remote();
            connection = Connection::within(stream, Arc::new(target)).await.map_err(|error| (remote, error.reply()))?;
            if !connection.knows_us() {
                let remote = connection.remote().into();
                self.spawn(connection.quit());
                return Err((remote, UNKNOWN_TO_MEMBER));
            }
        }
        connection.count(self.metrics.open_connection());
        Ok(connection)
    }

    /// Opens a session with a member itself, or takes one over which it has come.
    async fn session_with(&self, routing: &Routing, member: &Member) -> Result<Connection, Refused> {
        let remote = || member.to_string().into();
        if member.comes {
            while let Some(mut connection) = self.callers.take_oldest(&member.node) {
                let is_open = connection.is_quiet();
                if let Some(ticket) = connection.take_ticket() {
                    self.lost(&ticket);
                }
                if is_open {
                    return Ok(connection);
                }
            }
            return Err((remote(), AWAY));
        }
        let itself = Arc::new(Member { through: Vec::new(), ..member.clone() });
        let next_hop = NextHop::member(itself, &routing.config.hostname);
        self.dial_hop(routing, &next_hop).await.map_err(|(said, reply)| (said.unwrap_or_else(remote), reply))
    }

    /// Connects to the first host of a next hop that takes a session.
    pub(super) async fn dial_hop(
        &self,
        routing: &Routing,
        next_hop: &NextHop,
    ) -> Result<Connection, (Option<Box<str>>, Reply)> {
        let found = routing.resolver.resolve(next_hop).await.map_err(|error| (None, Reply::from(&error)))?;
        let targets = targets(self, routing, &found.hops).await.map_err(|reply| (None, reply))?;
        dial(self, targets).await.map_err(|none| (Some(none.remote), none.reply))
    }
}

async fn in_time<T>(limit: Duration, reach: impl Future<Output = Result<T, Refused>>) -> Result<T, Refused> {
    timeout(limit, reach).await.unwrap_or_else(|_| Err(("the mesh".into(), LATE)))
}
