//! Where members may be found beside what they state: the configuration, the invitation, SRV records, multicast DNS. None
//! of it is believed: a link is with the key that was asked for, whoever named the address.

use std::io;

use postroad_mesh::NodeId;
use postroad_mesh::candidate::{SERVICE, Source, Standing, node_of};
use postroad_mesh::record::Address;
use postroad_smtp::Domain;
use tracing::{debug, info};

use super::dial::{DIALLED_MAX, Dialling};
use super::{Peers, View};
use crate::admin::mesh::CandidateView;
use crate::clock::millis;
use crate::config::Config;
use crate::route::witness::Service;
use crate::route::{Heard, Witness};

/// The most members whose addresses are looked up behind one answer.
const LOOKED_UP_MAX: usize = 16;

impl Peers {
    /// Opens a link with a member at one of the places where it may be; `passing`: for a question only.
    pub(super) async fn link_to(&self, node: NodeId, passing: bool) -> io::Result<()> {
        let mut tried: Vec<Address> = Vec::new();
        let mut last = io::Error::new(io::ErrorKind::NotFound, "no address of it is known");
        let mut dialling = Dialling::new(&self.config());
        loop {
            // Also those that were heard of while others were dialled.
            let mut places = self.places(&node);
            places.retain(|(_, one)| !tried.contains(one));
            if tried.len() >= DIALLED_MAX || places.is_empty() && !self.ask_dns().await {
                return Err(last);
            }
            for (source, address) in places {
                dialling.is_believed = matches!(source, Source::Configured | Source::Invitation);
                let dialled = self.dial(&node, std::slice::from_ref(&address), &mut dialling).await;
                self.note_dialled(&node, &address, dialled.is_ok());
                match dialled {
                    Ok(linked) => {
                        if source > Source::Directory {
                            info!(%node, %address, source = name(source), "a member was found where it did not say it is");
                        }
                        let Some(hold) = self.hold(node, true, passing) else { return Ok(()) };
                        let peers = self.clone();
                        tokio::spawn(async move { peers.serve_link(linked.stream, linked.ahead, node, hold).await });
                        return Ok(());
                    }
                    Err(error) => last = error,
                }
                tried.push(address);
            }
        }
    }

    /// Returns where a member may be found now.
    fn places(&self, node: &NodeId) -> Vec<(Source, Address)> {
        let (view, config, now, heard) = (self.view(), self.config(), self.now(), self.mdns_places());
        let stated = view.record(node).map(|said| said.addresses.as_slice()).unwrap_or_default();
        let mut guard = self.state();
        let Some(state) = guard.as_mut() else { return Vec::new() };
        state.candidates.set(Source::Configured, configured(&config, &view));
        state.candidates.set(Source::Mdns, heard);
        state.candidates.retain(|node| view.is_member(node));
        state.candidates.places(node, stated, now)
    }

    fn note_dialled(&self, node: &NodeId, address: &Address, is_reached: bool) {
        let now = self.now();
        if let Some(state) = self.state().as_mut() {
            state.candidates.tried(node, address, is_reached, now);
        }
    }

    /// Notes where the invitation said that the inviter is.
    pub(super) fn note_invitation(&self, inviter: NodeId, addresses: &[Address]) {
        if let Some(state) = self.state().as_mut() {
            state.candidates.set(Source::Invitation, addresses.iter().map(|address| (inviter, address.clone())));
        }
    }

    /// Asks DNS where members are, if it may be asked now; returns whether it was.
    async fn ask_dns(&self) -> bool {
        let Some(domain) = self.config().mesh.domain.clone() else { return false };
        let now = self.now();
        if !self.state().as_mut().is_some_and(|state| state.candidates.may_ask(now)) {
            return false;
        }
        let peers = self.clone();
        // Goes on although whoever wanted a link has given up: it is not asked again for an hour.
        tokio::spawn(async move { peers.look_for_members(domain).await }).await.is_ok()
    }

    async fn look_for_members(&self, domain: Domain) {
        let witness = Witness::new(&self.config().dns);
        let heard = witness.services(&format!("{SERVICE}.{domain}")).await;
        debug!(%domain, ?heard, "DNS was asked where members are");
        let (services, ttl_ms) = match heard {
            Heard::Records { records, ttl, .. } => (records, millis(ttl)),
            Heard::Nothing(_) => (Vec::new(), 0),
            Heard::Unclear(_) => return,
        };
        let (view, linked) = (self.view(), self.state().as_ref().map(|state| state.links()).unwrap_or_default());
        let mut places = Vec::new();
        let mut strange = Vec::new();
        let mut looked_up = 0;
        for Service { target, port, .. } in services {
            let node = node_of(&target).map(|node| view.current(&node));
            let Some(node) = node.filter(|node| view.is_member(node)) else {
                strange.push(format!("{target}:{port}"));
                continue;
            };
            // Whoever is linked was found without it.
            if view.me() == Some(node) || linked.contains_key(&node) || looked_up >= LOOKED_UP_MAX {
                continue;
            }
            looked_up += 1;
            for ip in witness.addresses(&target).await {
                places.push((node, Address { host: ip.to_string().into(), port, implicit_tls: false }));
            }
        }
        info!(%domain, addresses = places.len(), "DNS says where members are that were not found");
        let now = self.now();
        if let Some(state) = self.state().as_mut() {
            state.candidates.set(Source::Srv, places);
            state.candidates.asked(ttl_ms, now);
            state.strange = strange;
        }
    }

    /// Returns where members may be found, as it is shown to people.
    pub(super) fn candidate_views(&self) -> Vec<CandidateView> {
        let (view, config, now) = (self.view(), self.config(), self.now());
        let (heard, strangers) = (self.mdns_places(), self.mdns_strangers());
        let mut guard = self.state();
        let Some(state) = guard.as_mut() else { return Vec::new() };
        state.candidates.set(Source::Configured, configured(&config, &view));
        state.candidates.set(Source::Mdns, heard);
        let mut shown = Vec::new();
        for (node, _) in view.members().filter(|(node, _)| view.me() != Some(**node)) {
            let stated = view.record(node).map(|said| said.addresses.as_slice()).unwrap_or_default();
            for (source, address, standing) in state.candidates.all(node, stated) {
                let (failures, until) = match standing {
                    Standing::Failed { times, until } => (times, until),
                    _ => (0, 0),
                };
                shown.push(CandidateView {
                    node: Some(node.to_string()),
                    label: view.label(node),
                    source: name(source).to_owned(),
                    address: address.to_string(),
                    is_reached: standing == Standing::Reached,
                    failures,
                    // How often the others are dialled the pauses of their node say.
                    wait_ms: if source > Source::Directory { until.saturating_sub(now) } else { 0 },
                });
            }
        }
        let strange = |source, address: &String| CandidateView {
            source: name(source).to_owned(),
            address: address.clone(),
            ..CandidateView::default()
        };
        shown.extend(state.strange.iter().map(|address| strange(Source::Srv, address)));
        shown.extend(strangers.iter().map(|address| strange(Source::Mdns, address)));
        shown
    }
}

/// Returns the addresses that the configuration has, under the keys that members have now.
fn configured(config: &Config, view: &View) -> Vec<(NodeId, Address)> {
    config.mesh.peers.iter().map(|(node, address)| (view.current(node), address.clone())).collect()
}

fn name(source: Source) -> &'static str {
    match source {
        Source::Configured => "configured",
        Source::Directory => "directory",
        Source::Invitation => "invitation",
        Source::Srv => "srv",
        Source::Mdns => "mdns",
    }
}
