//! Where a node may be found: addresses out of several sources, in the order in which they are worth a try.
//!
//! A source never admits anybody, and what it says is believed by nobody: whoever answers at an address has to
//! have the key of the node. So a false one costs a dial that fails, now and then: addresses that do not come from
//! this host or the node itself are left alone for ever longer when they fail. Nobody but the people of this host
//! makes it dial itself, or nowhere ([`is_dialled`]).
//!
//! DNS is asked (SRV records of [`SERVICE`], RFC 2782) only when a node was found nowhere else. Which target is
//! which node says the first label of the target: its id.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use crate::chance::Chance;
use crate::node::NodeId;
use crate::record::Address;

/// The labels below which a mesh has its SRV records.
pub const SERVICE: &str = "_smtp-mesh._tcp";
/// The most addresses that one source has of a node.
pub const ADDRESSES_MAX: usize = 8;
/// The most nodes that one source tells of.
pub const NODES_MAX: usize = 256;
/// The shortest and the longest time between two questions, as far as the time to live has no say.
pub const ASK_INTERVAL_MIN_MS: u64 = 3_600_000;
/// See [`ASK_INTERVAL_MIN_MS`].
pub const ASK_INTERVAL_MAX_MS: u64 = 86_400_000;
/// How long an address that failed is left alone at first; it doubles up to a day.
const PAUSE_MS: u64 = 60_000;
const PAUSE_MAX_MS: u64 = 86_400_000;
/// How many addresses of a node it is remembered of how they answered.
const REMEMBERED_MAX: usize = 32;

/// Who says where a node is; the first is tried first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The configuration of this host.
    Configured,
    /// The record of the node, kept here or brought by any member.
    Directory,
    /// The invitation by which this host joined.
    Invitation,
    /// SRV records.
    Srv,
    /// Multicast DNS in a network of this host.
    Mdns,
}

/// How an address did when it was tried last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It was not.
    Untried,
    /// The node answered there.
    Reached,
    /// It did not.
    Failed {
        /// How often in a row.
        times: u32,
        /// Until when it is left alone.
        until: u64,
    },
}

/// Returns whether an address is dialled on the word of a member or of DNS. Private ones are: a mesh may be in one
/// network. Loopback ones are this host, and would have it speak to programs that trust it: they are dialled only
/// where `is_on_loopback` this host itself says to members that it is reached so.
pub fn is_dialled(ip: IpAddr, port: u16, is_on_loopback: bool) -> bool {
    let ip = ip.to_canonical();
    let is_nowhere = match ip {
        // All of 0.0.0.0/8 (RFC 1122 §3.2.1.3).
        IpAddr::V4(ip) => ip.octets()[0] == 0 || ip == Ipv4Addr::BROADCAST,
        IpAddr::V6(ip) => ip.is_unspecified(),
    };
    port != 0 && !is_nowhere && !ip.is_multicast() && (is_on_loopback || !ip.is_loopback())
}

/// Returns whether a host that states these of itself is reached over loopback: its mesh is on one machine.
pub fn is_on_loopback(stated: &[Address]) -> bool {
    let is_loopback = |address: &Address| match address.host.parse::<IpAddr>() {
        Ok(ip) => ip.to_canonical().is_loopback(),
        Err(_) => address.host.eq_ignore_ascii_case("localhost"),
    };
    stated.iter().any(is_loopback)
}

/// What all sources say. Times are milliseconds of a clock that never goes back.
#[derive(Clone, Debug, Default)]
pub struct Candidates {
    found: BTreeMap<Source, BTreeMap<NodeId, Vec<Address>>>,
    tried: BTreeMap<NodeId, Vec<(Address, Standing)>>,
    chance: Chance,
    ask_at: u64,
}

/// Returns the node that a target of an SRV record names.
pub fn node_of(target: &str) -> Option<NodeId> {
    target.split('.').next()?.parse().ok()
}

impl Candidates {
    /// Begins with nothing; chance comes from a seed.
    pub fn new(seed: u64) -> Candidates {
        Candidates { chance: Chance::new(seed), ..Candidates::default() }
    }

    /// Takes what a source says now, in the place of what it said before.
    pub fn set(&mut self, source: Source, places: impl IntoIterator<Item = (NodeId, Address)>) {
        let mut nodes: BTreeMap<NodeId, Vec<Address>> = BTreeMap::new();
        for (node, address) in places {
            if nodes.len() >= NODES_MAX && !nodes.contains_key(&node) {
                continue;
            }
            let addresses = nodes.entry(node).or_default();
            if addresses.len() < ADDRESSES_MAX && !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        self.found.insert(source, nodes);
    }

    /// Returns where a node may be found, each address once, with what it `states` of itself in its place.
    pub fn all(&self, node: &NodeId, stated: &[Address]) -> Vec<(Source, Address, Standing)> {
        let found = self.found.iter().filter_map(|(source, nodes)| Some((*source, nodes.get(node)?.as_slice())));
        let mut sources: Vec<(Source, &[Address])> = found.chain([(Source::Directory, stated)]).collect();
        sources.sort_by_key(|(source, _)| *source);
        let mut all: Vec<(Source, Address, Standing)> = Vec::new();
        for (source, addresses) in sources {
            for address in addresses {
                if all.iter().all(|(_, known, _)| known != address) {
                    all.push((source, address.clone(), self.standing(node, address)));
                }
            }
        }
        all
    }

    /// Returns which of them are worth a try at `now`. How often the node itself is dialled its own pauses say.
    pub fn places(&self, node: &NodeId, stated: &[Address], now: u64) -> Vec<(Source, Address)> {
        let is_worth = |(source, _, standing): &(Source, Address, Standing)| match standing {
            Standing::Failed { until, .. } => *source <= Source::Directory || *until <= now,
            _ => true,
        };
        self.all(node, stated).into_iter().filter(is_worth).map(|(source, address, _)| (source, address)).collect()
    }

    /// Notes how an address did.
    pub fn tried(&mut self, node: &NodeId, address: &Address, is_reached: bool, now: u64) {
        let before = match self.standing(node, address) {
            Standing::Failed { times, .. } => times,
            _ => 0,
        };
        let pause = self.jittered((PAUSE_MS << before.min(16)).min(PAUSE_MAX_MS));
        let standing = match is_reached {
            true => Standing::Reached,
            false => Standing::Failed { times: before + 1, until: now + pause },
        };
        let tried = self.tried.entry(*node).or_default();
        tried.retain(|(known, _)| known != address);
        if tried.len() >= REMEMBERED_MAX {
            tried.remove(0);
        }
        tried.push((address.clone(), standing));
    }

    /// Forgets nodes of which this does not hold.
    pub fn retain(&mut self, is_known: impl Fn(&NodeId) -> bool) {
        self.tried.retain(|node, _| is_known(node));
    }

    /// Returns whether DNS may be asked at `now`; if so, it is not for the shortest interval.
    pub fn may_ask(&mut self, now: u64) -> bool {
        let may = now >= self.ask_at;
        if may {
            self.asked(0, now);
        }
        may
    }

    /// Notes that DNS gave an answer that is good for so long.
    pub fn asked(&mut self, ttl_ms: u64, now: u64) {
        let pause = ttl_ms.clamp(ASK_INTERVAL_MIN_MS, ASK_INTERVAL_MAX_MS);
        self.ask_at = now + pause + self.chance.below(ASK_INTERVAL_MIN_MS / 4);
    }

    fn standing(&self, node: &NodeId, address: &Address) -> Standing {
        let mut tried = self.tried.get(node).into_iter().flatten();
        tried.find(|(known, _)| known == address).map_or(Standing::Untried, |(_, standing)| *standing)
    }

    fn jittered(&mut self, ms: u64) -> u64 {
        ms + self.chance.below(ms / 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::SecretKey;

    fn id(number: u8) -> NodeId {
        SecretKey::from_seed(&[number; 32]).public().id()
    }

    fn at(text: &str) -> Address {
        text.parse().expect("an address")
    }

    fn shown(places: &[(Source, Address)]) -> Vec<String> {
        places.iter().map(|(_, address)| address.to_string()).collect()
    }

    #[test]
    fn the_order_of_sources_is_that_of_trust_and_none_is_tried_twice() {
        let mut candidates = Candidates::new(1);
        candidates.set(Source::Srv, [(id(1), at("d.example:25")), (id(1), at("b.example:25"))]);
        candidates.set(Source::Invitation, [(id(1), at("c.example:25"))]);
        candidates.set(Source::Configured, [(id(1), at("a.example:25")), (id(2), at("other.example:25"))]);
        let places = candidates.places(&id(1), &[at("b.example:25"), at("a.example:25")], 0);
        assert_eq!(shown(&places), ["a.example:25", "b.example:25", "c.example:25", "d.example:25"]);
        candidates.set(Source::Srv, []);
        assert_eq!(candidates.places(&id(1), &[], 0).len(), 2);
        assert!(candidates.places(&id(3), &[], 0).is_empty());
    }

    #[test]
    fn a_false_address_is_tried_ever_more_rarely_and_what_the_node_states_as_ever() {
        let mut candidates = Candidates::new(1);
        let (stated, false_one) = (at("a.example:25"), at("192.0.2.9:25"));
        candidates.set(Source::Srv, [(id(1), false_one.clone())]);
        let (mut now, mut dials) = (0, 0);
        while now < 7 * PAUSE_MAX_MS {
            let places = candidates.places(&id(1), std::slice::from_ref(&stated), now);
            assert_eq!(places[0].1, stated);
            dials += places.len() - 1;
            for (_, address) in places {
                candidates.tried(&id(1), &address, false, now);
            }
            now += 5_000;
        }
        assert!((11..=20).contains(&dials), "{dials} in a week");
        candidates.tried(&id(1), &false_one, true, now);
        assert_eq!(candidates.all(&id(1), &[])[0].2, Standing::Reached);
        assert_eq!(candidates.places(&id(1), &[], now).len(), 1);
        candidates.retain(|_| false);
        assert_eq!(candidates.all(&id(1), &[])[0].2, Standing::Untried);
    }

    #[test]
    fn dns_is_asked_once_for_each_answer_and_an_hour_at_least() {
        let mut candidates = Candidates::new(1);
        assert!(candidates.may_ask(5) && !candidates.may_ask(6));
        let asked = |candidates: &mut Candidates, until: u64| {
            (0..until / 60_000).filter(|minute| candidates.may_ask(10 + minute * 60_000)).count()
        };
        assert!((19..=24).contains(&asked(&mut candidates, 24 * ASK_INTERVAL_MIN_MS)));
        let mut long = Candidates::new(2);
        assert!(long.may_ask(0));
        long.asked(u64::MAX, 0);
        assert!(!long.may_ask(ASK_INTERVAL_MAX_MS - 1) && long.may_ask(ASK_INTERVAL_MAX_MS * 2));
    }

    #[test]
    fn what_a_source_says_has_limits() {
        let mut candidates = Candidates::new(1);
        let many = (0..=255).flat_map(|node| (1..40).map(move |port| (id(node), at(&format!("a.example:{port}")))));
        candidates.set(Source::Srv, many.chain([(NodeId::from_octets([1; 32]), at("late.example:25"))]));
        assert_eq!(candidates.places(&id(7), &[], 0).len(), ADDRESSES_MAX);
        assert!(candidates.places(&NodeId::from_octets([1; 32]), &[], 0).is_empty());
        for port in 1..200 {
            candidates.tried(&id(7), &at(&format!("b.example:{port}")), false, 0);
        }
        assert_eq!(candidates.tried[&id(7)].len(), REMEMBERED_MAX);
    }

    #[test]
    fn nobody_has_this_host_dial_itself_or_nowhere() {
        let is_dialled = |ip: &str, is_on_loopback| is_dialled(ip.parse().expect(ip), 25, is_on_loopback);
        for ip in ["0.0.0.0", "0.1.2.3", "::", "255.255.255.255", "224.0.0.251", "ff02::fb", "::ffff:224.0.0.1"] {
            assert!(!is_dialled(ip, false) && !is_dialled(ip, true), "{ip}");
        }
        for ip in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert!(!is_dialled(ip, false) && is_dialled(ip, true), "{ip}");
        }
        for ip in ["10.0.0.1", "192.168.1.1", "100.64.0.1", "192.0.2.1", "fd00::1", "2001:db8::1"] {
            assert!(is_dialled(ip, false), "{ip}");
        }
        assert!(!super::is_dialled("192.0.2.1".parse().expect("an address"), 0, true), "no port");
        let is_on_loopback = |texts: &[&str]| is_on_loopback(&texts.iter().map(|text| at(text)).collect::<Vec<_>>());
        assert!(is_on_loopback(&["mx.example:25", "127.0.0.7:25"]) && is_on_loopback(&["localhost:2525"]));
        assert!(!is_on_loopback(&["mx.example:25", "10.0.0.1:25"]) && !is_on_loopback(&[]));
    }

    #[test]
    fn a_target_names_its_node() {
        assert_eq!(node_of(&format!("{}.mesh.example", id(1))), Some(id(1)));
        assert_eq!(node_of("mx.example"), None);
        assert_eq!(node_of(""), None);
    }
}
