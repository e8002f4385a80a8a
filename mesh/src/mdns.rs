//! Members of one network find one another by multicast DNS (RFC 6762, RFC 6763): a machine that says when to announce,
//! to ask and to answer, and what is taken of what others say.
//!
//! It never admits anybody: what is heard is one more address of a node that is a member already, and a link is with the
//! key that was asked for. It says at most one message a second in each network, whatever others ask, and asks once at
//! the start and then once an hour, only while members are missed. What it keeps of others is bounded.
//!
//! Done otherwise than the RFC has it: a name is not probed for (§8.1) and not given up when somebody else uses it (§9): it is the
//! hash of a key, and who has the key is settled by TLS. Questions from other ports (§6.7) and for answers by unicast (§5.4)
//! are not answered by unicast: nothing is sent to anybody but the group.
//!
//! The shell tells of interfaces, carries messages, and calls [`Mdns::poll`] until it is told to wait. Times are milliseconds
//! of a clock that never goes back; chance comes from a seed.

mod found;
mod packet;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use hickory_proto::op::Query;
use hickory_proto::rr::{Record, RecordType};

use crate::candidate::is_dialled;
use crate::chance::Chance;
use crate::node::NodeId;
use crate::record::Address;
use found::Found;
pub use found::{ADDRESSES_MAX, STRANGERS_MAX};
use packet::{Asked, Place, Said};
pub use packet::{MESSAGE_OCTETS_MAX, TTL_S};

/// The port of multicast DNS; who speaks from another one is no responder (RFC 6762 §6).
pub const PORT: u16 = 5353;
/// The shortest time between two messages in one network.
pub const PAUSE_MS: u64 = 1_000;
/// The shortest time between two times that members are asked for.
pub const ASK_INTERVAL_MS: u64 = 3_600_000;
/// The most interfaces that are spoken at.
pub const INTERFACES_MAX: usize = 16;
/// The most members that are asked for by name; beyond that all are.
const NAMED_MAX: usize = 8;
/// How long after a question a group that was not there yet is asked, too: addresses of IPv6 are checked for a moment (RFC 4862
/// §5.4) after those of IPv4 are there.
const LATE_MS: u64 = 10_000;
/// How often what is announced is repeated (RFC 6762 §8.3).
const REPEATS: u8 = 1;
/// How long a member that is missed is not dialled anew because of what is heard of it.
const NEWS_INTERVAL_MS: u64 = 300_000;

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// 224.0.0.251.
    V4,
    /// ff02::fb.
    V6,
}

/// Where something is sent or was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Way {
    /// The number of the interface.
    pub interface: u32,
    /// By which group.
    pub family: Family,
}

/// An address of this host with the network that it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// The address.
    pub ip: IpAddr,
    /// How many bits of it are the network's.
    pub prefix: u8,
}

/// What is said of this host at an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The port of SMTP with STARTTLS.
    pub port: u16,
    /// Addresses of that interface, at most [`ADDRESSES_MAX`] of which are said.
    pub addresses: Vec<IpAddr>,
}

/// An interface that there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its number.
    pub index: u32,
    /// The groups that can be reached there.
    pub families: BTreeSet<Family>,
    /// Its addresses.
    pub networks: Vec<Network>,
    /// What is said there; `None`: members cannot reach this host there, it only asks.
    pub offer: Option<Offer>,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send this to the group.
    Send(Way, Vec<u8>),
    /// Nothing until this time; `None`: until something happens.
    Wait(Option<u64>),
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Mdns {
    ids: Vec<NodeId>,
    places: BTreeMap<u32, Local>,
    /// When each interface may be used again, also one that went away for a moment.
    free_at: BTreeMap<u32, u64>,
    missed: BTreeSet<NodeId>,
    has_browsed: bool,
    ask_at: u64,
    late_until: u64,
    questions: Vec<Query>,
    found: Found,
    told: BTreeMap<NodeId, u64>,
    chance: Chance,
}

#[derive(Clone, Debug)]
struct Local {
    interface: Interface,
    duties: BTreeMap<Family, Duty>,
}

/// What is to be said by one group.
#[derive(Clone, Debug, Default)]
struct Duty {
    /// When to announce, or to answer: it is the same.
    say_at: Option<u64>,
    repeats: u8,
    /// When to ask.
    ask_at: Option<u64>,
    /// Who is about to say what more it knows, and what it lacks so far.
    asker: Option<(IpAddr, Vec<Record>)>,
    /// Others remember it.
    is_announced: bool,
}

impl Mdns {
    /// Begins with no interface.
    pub fn new(seed: u64) -> Mdns {
        Mdns {
            ids: Vec::new(),
            places: BTreeMap::new(),
            free_at: BTreeMap::new(),
            missed: BTreeSet::new(),
            has_browsed: false,
            ask_at: 0,
            late_until: 0,
            questions: Vec::new(),
            found: Found::default(),
            told: BTreeMap::new(),
            chance: Chance::new(seed),
        }
    }

    /// Takes the ids of this host and the interfaces that there are in the place of those before. What is new is
    /// announced, twice.
    pub fn set(&mut self, ids: Vec<NodeId>, interfaces: Vec<Interface>, now: u64) {
        let are_others = self.ids != ids;
        self.ids = ids;
        let mut before = std::mem::take(&mut self.places);
        for mut interface in interfaces.into_iter().take(INTERFACES_MAX) {
            if let Some(offer) = &mut interface.offer {
                offer.addresses.truncate(ADDRESSES_MAX);
            }
            let offer = interface.offer.take().filter(|offer| offer.port != 0 && !offer.addresses.is_empty());
            interface.offer = offer;
            let known = before.remove(&interface.index);
            let is_new = are_others || known.as_ref().is_none_or(|known| known.interface.offer != interface.offer);
            let mut duties = known.map(|known| known.duties).unwrap_or_default();
            duties.retain(|family, _| interface.families.contains(family));
            for family in &interface.families {
                let is_added = !duties.contains_key(family);
                let duty = duties.entry(*family).or_default();
                if is_added && now < self.late_until {
                    duty.ask_at = Some(now + 20 + self.chance.below(101));
                }
                if interface.offer.is_none() {
                    *duty = Duty { ask_at: duty.ask_at, ..Duty::default() };
                } else if is_new || is_added {
                    // Hosts that get power at the same time do not speak at the same time.
                    duty.say_at = Some(now + self.chance.below(250));
                    duty.repeats = REPEATS;
                }
            }
            self.places.insert(interface.index, Local { interface, duties });
        }
        self.free_at.retain(|index, at| *at > now || self.places.contains_key(index));
    }

    /// Takes the members that are missed: only for these it asks after the start.
    pub fn seek(&mut self, missed: BTreeSet<NodeId>) {
        self.told.retain(|node, _| missed.contains(node));
        self.missed = missed;
    }

    /// Takes in a message that came to the group; `member` returns who a node is now, if it is a member. Returns
    /// the members that are missed and are said to be where they were not before: these are worth a dial.
    pub fn received(
        &mut self,
        way: Way,
        from: SocketAddr,
        octets: &[u8],
        member: impl Fn(&NodeId) -> Option<NodeId>,
        now: u64,
    ) -> Vec<NodeId> {
        let Some(local) = self.places.get(&way.interface) else { return Vec::new() };
        // RFC 6762 §6 and §11.
        if from.port() != PORT || !local.interface.is_on_link(from.ip()) {
            return Vec::new();
        }
        match packet::read(octets) {
            Some(Said::Query(asked)) => {
                self.asked(way, from.ip(), &asked, now);
                Vec::new()
            }
            Some(Said::Places(places)) => {
                let interface = local.interface.clone();
                let news =
                    places.into_iter().filter_map(|place| self.heard(&interface, place, from.ip(), &member, now));
                news.collect()
            }
            None => Vec::new(),
        }
    }

    /// Returns what to do at `now`.
    pub fn poll(&mut self, now: u64) -> Action {
        self.plan_questions(now);
        let mut next: Option<u64> = None;
        let mut due: Option<(u64, Way)> = None;
        for (index, local) in &self.places {
            let free_at = self.free_at.get(index).copied().unwrap_or(0);
            for (family, duty) in &local.duties {
                let Some(at) = [duty.say_at, duty.ask_at].into_iter().flatten().min() else { continue };
                if at.max(free_at) > now {
                    next = Some(next.map_or(at.max(free_at), |next| next.min(at.max(free_at))));
                } else if due.is_none_or(|(first, _)| at < first) {
                    due = Some((at, Way { interface: *index, family: *family }));
                }
            }
        }
        if let Some(octets) = due.and_then(|(_, way)| self.speak(way, now).map(|octets| (way, octets))) {
            return Action::Send(octets.0, octets.1);
        }
        let asks = self.wants_to_ask() && self.places.values().any(|local| !local.duties.is_empty());
        Action::Wait(next.into_iter().chain(asks.then_some(self.ask_at)).min())
    }

    /// Returns what takes back what was announced, at an end (RFC 6762 §10.1). Goes out at once, one message for each
    /// group that heard an announcement.
    pub fn goodbye(&mut self) -> Vec<(Way, Vec<u8>)> {
        let mut said = Vec::new();
        for (index, local) in &mut self.places {
            let Some(offer) = &local.interface.offer else { continue };
            for (family, duty) in &mut local.duties {
                if duty.is_announced {
                    let way = Way { interface: *index, family: *family };
                    said.push((way, packet::announcement(&self.ids, offer, 0)));
                }
                *duty = Duty::default();
            }
        }
        self.places.clear();
        said
    }

    /// Returns where members are said to be.
    pub fn places(&self, now: u64) -> Vec<(NodeId, Address)> {
        let address =
            |at: SocketAddr| Address { host: at.ip().to_string().into(), port: at.port(), implicit_tls: false };
        self.found.places(now).map(|(node, at)| (node, address(at))).collect()
    }

    /// Returns the instances that are no members, for people: at most [`STRANGERS_MAX`].
    pub fn strangers(&self, now: u64) -> Vec<String> {
        self.found.strangers(now).map(str::to_owned).collect()
    }

    fn wants_to_ask(&self) -> bool {
        !self.has_browsed || !self.missed.is_empty()
    }

    /// Asks for everybody at the start; later for those that are missed.
    fn plan_questions(&mut self, now: u64) {
        let is_heard = self.places.values().any(|local| !local.duties.is_empty());
        if !self.wants_to_ask() || now < self.ask_at || !is_heard {
            return;
        }
        self.questions = match self.has_browsed && self.missed.len() <= NAMED_MAX {
            true => self.missed.iter().map(packet::resolve).collect(),
            false => vec![packet::browse()],
        };
        self.has_browsed = true;
        self.late_until = now + LATE_MS;
        self.ask_at = now + ASK_INTERVAL_MS + self.chance.below(ASK_INTERVAL_MS / 4);
        for duty in self.places.values_mut().flat_map(|local| local.duties.values_mut()) {
            // RFC 6762 §5.2.
            duty.ask_at = Some(now + 20 + self.chance.below(101));
        }
    }

    /// Returns what is due by a group, and counts it.
    fn speak(&mut self, way: Way, now: u64) -> Option<Vec<u8>> {
        let local = self.places.get_mut(&way.interface)?;
        let duty = local.duties.get_mut(&way.family)?;
        let says = duty.say_at.is_some_and(|at| duty.ask_at.is_none_or(|ask_at| at <= ask_at));
        let octets = match &local.interface.offer {
            Some(offer) if says => {
                duty.is_announced = true;
                duty.asker = None;
                duty.say_at = duty.repeats.checked_sub(1).map(|repeats| {
                    duty.repeats = repeats;
                    now + PAUSE_MS
                });
                packet::announcement(&self.ids, offer, TTL_S)
            }
            _ => {
                duty.ask_at = None;
                packet::query(self.questions.clone())
            }
        };
        self.free_at.insert(way.interface, now + PAUSE_MS);
        Some(octets)
    }

    /// Answers, after as long as it takes that not all do at once (RFC 6762 §6), and that others may have said all
    /// that they know (§7.2).
    fn asked(&mut self, way: Way, from: IpAddr, asked: &Asked, now: u64) {
        let Some(local) = self.places.get_mut(&way.interface) else { return };
        let Some(duty) = local.duties.get_mut(&way.family) else { return };
        // Somebody asks the same just now, and its answers are for all (§7.3).
        if asked.known.is_empty() && self.questions.iter().all(|question| asked.questions.contains(question)) {
            duty.ask_at = None;
        }
        let Some(offer) = &local.interface.offer else { return };
        let is_lacking = |record: &Record| !packet::is_known(record, &asked.known);
        if let Some((asker, lacking)) = duty.asker.as_mut().filter(|_| asked.questions.is_empty())
            && *asker == from
        {
            lacking.retain(is_lacking);
            if lacking.is_empty() && duty.repeats == 0 {
                (duty.say_at, duty.asker) = (None, None);
            }
            return;
        }
        let mut lacking = packet::records(&self.ids, offer, TTL_S);
        lacking.retain(|record| asked.questions.iter().any(|question| packet::answers(record, question)));
        lacking.retain(is_lacking);
        if lacking.is_empty() {
            return;
        }
        let is_shared = lacking.iter().any(|record| record.record_type() == RecordType::PTR);
        let delay = match (asked.is_truncated, is_shared) {
            (true, _) => 400 + self.chance.below(101),
            (false, true) => 20 + self.chance.below(101),
            (false, false) => 0,
        };
        let is_alone = duty.say_at.is_none();
        duty.say_at = Some(duty.say_at.map_or(now + delay, |at| at.min(now + delay)));
        duty.asker = (asked.is_truncated && is_alone).then_some((from, lacking));
    }

    /// Takes in where an instance is; returns the member if that is news of one that is missed.
    fn heard(
        &mut self,
        interface: &Interface,
        mut place: Place,
        from: IpAddr,
        member: impl Fn(&NodeId) -> Option<NodeId>,
        now: u64,
    ) -> Option<NodeId> {
        // Of its own network alone: nobody has members dial into another one.
        place.addresses.retain(|ip| interface.leads_to(*ip, place.port));
        let id: Option<NodeId> = place.label.parse().ok();
        if id.is_some_and(|id| self.ids.contains(&id)) {
            return None;
        }
        let Some(node) = id.and_then(|id| member(&id)) else {
            self.found.note_stranger(&place, now);
            return None;
        };
        if self.ids.contains(&node) {
            return None;
        }
        let is_new = self.found.take(node, &place, from, now);
        let is_told = self.told.get(&node).is_some_and(|at| now < at + NEWS_INTERVAL_MS);
        if !is_new || is_told || !self.missed.contains(&node) {
            return None;
        }
        self.told.insert(node, now);
        Some(node)
    }
}

impl Interface {
    /// Returns whether a host that speaks from this address is in the same network (RFC 6762 §11).
    fn is_on_link(&self, ip: IpAddr) -> bool {
        is_link_local_v6(ip) || self.networks.iter().any(|network| network.holds(ip))
    }

    /// Returns whether this is the address of another host that is dialled there. Link-local addresses of IPv6 are not: they
    /// mean something with an interface alone, and no record that mail goes by can say which.
    fn leads_to(&self, ip: IpAddr, port: u16) -> bool {
        let is_own = self.networks.iter().any(|network| network.ip == ip);
        is_dialled(ip, port, false) && !is_own && !is_link_local_v6(ip) && self.is_on_link(ip)
    }
}

impl Network {
    fn holds(&self, ip: IpAddr) -> bool {
        let (own, other, bits) = match (self.ip, ip) {
            (IpAddr::V4(own), IpAddr::V4(other)) => (u128::from(u32::from(own)), u128::from(u32::from(other)), 32),
            (IpAddr::V6(own), IpAddr::V6(other)) => (u128::from(own), u128::from(other), 128),
            _ => return false,
        };
        let rest = bits - u32::from(self.prefix).min(bits);
        own.checked_shr(rest).unwrap_or(0) == other.checked_shr(rest).unwrap_or(0)
    }
}

fn is_link_local_v6(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}
