//! What multicast DNS said of where nodes are. Nobody vouches for it: whoever is in the network says what it likes, so
//! each host can take back only what it said itself, and there is room for so much and no more.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use super::packet::Place;
use crate::candidate::NODES_MAX;
use crate::node::NodeId;

/// The most addresses that one host says of a node; also the most that this host announces.
pub const ADDRESSES_MAX: usize = 4;
/// The most addresses of a node, whoever says them.
const NODE_ADDRESSES_MAX: usize = 2 * ADDRESSES_MAX;
/// The most instances that are no members and are shown to people.
pub const STRANGERS_MAX: usize = 16;
/// The shortest and the longest time that something is remembered, in seconds.
const KEPT_S_MIN: u32 = 120;
const KEPT_S_MAX: u32 = 7_200;

/// What was found so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    members: BTreeMap<NodeId, Vec<Heard>>,
    /// The oldest first.
    strangers: VecDeque<(String, u64)>,
}

#[derive(Clone, Debug)]
struct Heard {
    at: SocketAddr,
    from: IpAddr,
    until: u64,
}

impl Found {
    /// Takes in where a member is, as `from` says; returns whether an address is new.
    pub fn take(&mut self, node: NodeId, place: &Place, from: IpAddr, now: u64) -> bool {
        self.members.retain(|_, heard| {
            heard.retain(|one| one.until > now);
            !heard.is_empty()
        });
        let is_full = self.members.len() >= NODES_MAX && !self.members.contains_key(&node);
        if is_full || place.ttl_s == 0 && !self.members.contains_key(&node) {
            return false;
        }
        let heard = self.members.entry(node).or_default();
        let before: Vec<SocketAddr> = heard.iter().map(|one| one.at).collect();
        // What it says now stands in the place of what it said before (RFC 6762 §10.2).
        heard.retain(|one| one.from != from);
        if place.ttl_s > 0 {
            let until = now + u64::from(place.ttl_s.clamp(KEPT_S_MIN, KEPT_S_MAX)) * 1_000;
            let at = |ip: &IpAddr| SocketAddr::new(*ip, place.port);
            heard.extend(place.addresses.iter().take(ADDRESSES_MAX).map(|ip| Heard { at: at(ip), from, until }));
        }
        let surplus = heard.len().saturating_sub(NODE_ADDRESSES_MAX);
        heard.drain(..surplus);
        heard.iter().any(|one| !before.contains(&one.at))
    }

    /// Notes an instance that is no member.
    pub fn note_stranger(&mut self, place: &Place, now: u64) {
        for ip in place.addresses.iter().take(ADDRESSES_MAX) {
            let shown = format!("{}: {}", place.label, SocketAddr::new(*ip, place.port));
            self.strangers.retain(|(known, _)| *known != shown);
            if place.ttl_s > 0 {
                let until = now + u64::from(place.ttl_s.clamp(KEPT_S_MIN, KEPT_S_MAX)) * 1_000;
                self.strangers.push_back((shown, until));
            }
        }
        let surplus = self.strangers.len().saturating_sub(STRANGERS_MAX);
        self.strangers.drain(..surplus);
    }

    /// Returns where members are said to be.
    pub fn places(&self, now: u64) -> impl Iterator<Item = (NodeId, SocketAddr)> {
        let all = self.members.iter().flat_map(|(node, heard)| heard.iter().map(|one| (*node, one)));
        all.filter(move |(_, one)| one.until > now).map(|(node, one)| (node, one.at))
    }

    /// Returns the instances that are no members, for people.
    pub fn strangers(&self, now: u64) -> impl Iterator<Item = &str> {
        self.strangers.iter().filter(move |(_, until)| *until > now).map(|(shown, _)| shown.as_str())
    }
}
