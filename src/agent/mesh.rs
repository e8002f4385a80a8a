//! The mesh under the rest of the agent: when what is known of it changes, mail is routed, accepted and
//! fetched by what is known now.

use std::sync::Arc;
use std::time::Duration;

use postroad_mesh::record::Reach;
use postroad_mesh::{Caps, NodeId};
use tokio::sync::watch;
use tracing::{error, info};

use super::{Agent, fleet, recipient, trace};
use crate::admin::mesh::MeshView;
use crate::config::Config;
use crate::peer::{self, FileError, View};
use crate::route::Members;
use crate::turn::MEMBER_CONNECTIONS;
use crate::turn::fetch::Source;

/// Changes come in bunches. The first one counts at once, since mail may wait for it; what the others come to is
/// looked at after a rest that is so many times as long as the last look took, and not shorter than this.
const REST: Duration = Duration::from_millis(20);
const REST_TIMES: u32 = 20;

/// Returns the members as routing needs them; none of a host that is no member itself.
pub(super) fn members(view: &View) -> Option<Arc<Members>> {
    let me = view.me()?;
    let relays = view.member(&me).is_some_and(|member| member.caps.has(Caps::RELAY));
    Some(Arc::new(Members::new(me, view.records().clone(), relays).once_called(view.renamed())))
}

/// Returns the members as the files of an agent have them; none when this host is in no mesh.
///
/// # Errors
/// A file cannot be read, or is damaged.
pub fn members_on_disk(config: &Config) -> Result<Option<Arc<Members>>, FileError> {
    Ok(members(&peer::view_on_disk(&config.state_dir)?))
}

impl Agent {
    /// Takes what is known of the mesh at the start. What was taken through it is read before anybody
    /// can repeat it. Returns what follows the mesh from there on, and never ends.
    pub(super) async fn begin_mesh(self: Arc<Agent>) -> impl Future<Output = ()> {
        trace::answer(&self);
        fleet::answer(&self);
        recipient::answer(&self);
        let changed = self.context.peers.changed();
        let view = self.context.peers.view();
        let current = members(&view);
        self.context.policy.set_members(current.clone());
        if view.me().is_some() {
            let (repeats, now) = (self.context.repeats.clone(), self.context.clock.now());
            let opened = tokio::task::spawn_blocking(move || repeats.open(now)).await;
            if let Ok(Err(error)) = opened {
                error!(%error, "the history of the mesh cannot be opened; members are told to come again");
            }
        }
        self.follow_mesh(changed, current)
    }

    async fn follow_mesh(self: Arc<Agent>, mut changed: watch::Receiver<u64>, mut current: Option<Arc<Members>>) {
        loop {
            if changed.changed().await.is_err() {
                return std::future::pending().await;
            }
            let begun = tokio::time::Instant::now();
            // A reload takes the members, too: one after the other.
            let alone = self.reloading.lock().await;
            let next = members(&self.context.peers.view());
            let is_same = match (&current, &next) {
                (Some(current), Some(next)) => current.is_same(next),
                (None, None) => true,
                _ => false,
            };
            if !is_same {
                info!(queued = self.queue.len(), "what is known of the mesh has changed; mail is routed anew");
                self.context.policy.set_members(next.clone());
                self.delivery.set_members(next.clone());
                current = next;
            }
            self.apply_fetches();
            drop(alone);
            tokio::time::sleep((begun.elapsed() * REST_TIMES).max(REST)).await;
        }
    }

    /// Fetches mail where the configuration says, and, where this host told the mesh that it cannot be
    /// dialled, from those that it told the others to leave its mail with.
    pub(super) fn apply_fetches(&self) {
        let hosts = self.config.load().fetches.clone().into_iter().map(Source::Host);
        let connections = |node| (0..MEMBER_CONNECTIONS).map(move |number| Source::Member { node, number });
        let members = pickups(&self.context.peers.view()).into_iter().flat_map(connections);
        self.fetches.apply(hosts.chain(members));
    }

    /// Adds to how the mesh is who pushes mail to whom, and whom mail did not reach: no room knows all of it.
    pub(super) fn add_pushes(&self, view: &mut MeshView) {
        let (callers, sources) = (self.delivery.callers(), self.fetches.open_members());
        let down = self.delivery.members_down();
        for member in &mut view.members {
            let here = callers.iter().find(|(node, _)| node.to_string() == member.node);
            member.down = down.get(&member.node).cloned();
            member.connections = here.map_or(0, |(_, connections)| *connections as u64);
            member.pushes = sources.iter().any(|node| node.to_string() == member.node);
        }
    }
}

/// Returns the members that this host goes to for its mail: none while it can be dialled.
fn pickups(view: &View) -> Vec<NodeId> {
    let said = view.me().and_then(|me| view.record(&me)).filter(|said| said.reach != Reach::Public);
    said.into_iter().flat_map(|said| &said.pickups).filter(|node| view.is_member(node)).copied().collect()
}
