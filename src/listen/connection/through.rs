//! Octets that members of the mesh exchange through this host (XVIA), for mail that has no other way: they
//! name members, never addresses, and what this host does not read it takes no responsibility for.
//!
//! The member at the end, which is this host where it is named itself, serves a session of its own within.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use postroad_mesh::{Caps, NodeId};
use postroad_smtp::server::Verdict;
use postroad_smtp::{Reply, Status};
use tracing::info;

use super::{Arrival, Asking, Connection, Context, Drain, Peer, drained, expelled, passing, serve};
use crate::config::Service;
use crate::metrics::Misdeed;
use crate::net::{Bounds, Stream};
use crate::turn::Place;

/// How long octets of one session are passed on: hosts wait ten minutes for each other's disk (RFC 5321
/// §4.5.3.2.6).
const BOUNDS: Bounds = Bounds { idle: Duration::from_secs(15 * 60), total: Duration::from_secs(2 * 60 * 60) };
const NO_MEMBER: Reply = Reply::of(451, Some(Status::new(4, 4, 4)), "no such member of the mesh is known here");
const MAY_NOT: Reply =
    Reply::of(451, Some(Status::new(4, 7, 1)), "this member was not admitted to send through others");

/// What XVIA was accepted for.
pub(super) struct Passed {
    /// Who asked.
    from: NodeId,
    /// Counts it among those of the member that asked.
    _place: Place,
    /// With whom; none: with this host.
    with: Option<(NodeId, Stream)>,
    pub(super) bounds: Bounds,
}

impl Passed {
    pub(super) fn new(from: NodeId, place: Place, with: Option<(NodeId, Stream)>) -> Passed {
        Passed { from, _place: place, with, bounds: BOUNDS }
    }
}

impl Asking<'_> {
    /// Answers XVIA: it is accepted once there is a session with the member that is asked for.
    pub(super) async fn through(&self, peer: &Peer, passed: &mut Option<Box<Passed>>, node: &str) -> Verdict {
        match self.pass(peer, node).await {
            Ok(found) => {
                *passed = Some(Box::new(found));
                Verdict::Accept
            }
            Err(reply) => self.refuse(peer, "through", (None, None), reply),
        }
    }

    async fn pass(&self, peer: &Peer, node: &str) -> Result<Passed, Reply> {
        let Context { peers, turn, .. } = self.context;
        let from = peer.node.as_deref().ok_or(MAY_NOT)?;
        let caps = passing::member(self.context, Some(from));
        if !caps.is_some_and(|caps| caps.has(Caps::RELAY)) {
            return Err(MAY_NOT);
        }
        let report = |reply: Reply| {
            peers.report(*from, Misdeed::Through, &format!("XVIA {node}: {reply}"));
            reply
        };
        let view = peers.view();
        let to = node.parse::<NodeId>().ok().filter(|to| view.is_member(to) && view.current(to) != *from);
        let to = view.current(&to.ok_or_else(|| report(NO_MEMBER))?);
        peers.pace_passage(*from).map_err(passing::over_pace)?;
        let place = turn.admit_through(from).map_err(report)?;
        let with = match view.me().is_some_and(|me| view.current(&me) == to) {
            true => None,
            false => Some((to, turn.reach(&to).await?)),
        };
        Ok(Passed::new(*from, place, with))
    }
}

impl Connection {
    /// Passes octets on, or serves the session within, until either end is closed or is no member any more.
    pub(super) async fn pass(&mut self, passed: Passed, stream: Stream, drain: &mut Drain) -> io::Result<()> {
        let Passed { from, with, _place, bounds } = passed;
        let revoked = || Err(io::Error::new(io::ErrorKind::PermissionDenied, "it is no member of the mesh any more"));
        let context = self.context.clone();
        let Some((to, other)) = with else {
            let within = serve_within(stream.into_within()?, self.peer.ip, context.clone(), drain.clone());
            return tokio::select! {
                () = within => Ok(()),
                () = expelled(&context.peers, &mut self.members) => revoked(),
            };
        };
        info!(session = %self.name, from = %from.short(), to = %to.short(), "octets are passed on between two members");
        let _open = context.metrics.mesh.open_through();
        let mut behind = Some(Box::new((to, context.peers.changed())));
        let mut left = beyond_quota(context.config.load().limits.message_octets_max);
        let counted = |octets| {
            if !context.peers.pace_octets(from, octets) {
                left = left.saturating_sub(octets);
            }
            left > 0
        };
        tokio::select! {
            ended = stream.splice(other, bounds, counted) => ended.inspect_err(|error| {
                if error.kind() == io::ErrorKind::QuotaExceeded {
                    context.peers.report(from, Misdeed::OverQuota, "all_data; what was passed on for it is cut off");
                }
            }),
            () = expelled(&context.peers, &mut self.members) => revoked(),
            () = expelled(&context.peers, &mut behind) => revoked(),
            () = drained(drain) => Ok(()),
        }
    }
}

/// Returns how many octets of a session are passed on although its member is beyond its quota: a message that had begun
/// gets to its end, with what stands around it. Whoever goes on after that is cut off, and hears why when it asks again.
fn beyond_quota(message_octets_max: u64) -> u64 {
    message_octets_max.saturating_add(message_octets_max / 8)
}

/// Serves a session within the one in which another member passes it on. As over a connection that this host
/// opened, where the octets come from says nothing: only who proves to be whom counts.
fn serve_within(
    stream: Stream,
    ip: IpAddr,
    context: Arc<Context>,
    drain: Drain,
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    let peer = SocketAddr::new(ip, 0);
    let (settings, permit) =
        (Context::session_config(&context.config.load_full(), Service::Fetch), context.admit(peer));
    let name = context.names.next();
    let arrival = Arrival { stream, peer, service: Service::Fetch, settings, permit, name, owner: None };
    Box::pin(serve(Box::new(arrival), context, drain))
}
