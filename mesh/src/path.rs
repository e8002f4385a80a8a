//! Which way a message goes next: from the members' records to an ordered list of steps.
//!
//! A domain that a member serves goes to that member, its *home*, or, while that cannot be reached, to
//! a node that holds mail for it. Everything else goes to an *egress*, a member that sends mail out.
//! A link counts when both ends state it, by name or with all that they do not name; to a node that cannot
//! be dialled it leads from its pick-ups alone, which it dials. Each step leads along the cheapest path, in this map,
//! that passes neither this node nor any the message has visited: so no message visits a
//! node twice, however old or contradictory the maps of the nodes are.

mod through;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};
use std::sync::OnceLock;

use postroad_smtp::Domain;

use crate::node::{NodeId, sha256};
use crate::record::{Egress, Link, Reach, Said};
pub use through::{THROUGH_MAX, Through};

/// The most nodes that a message may visit.
pub const VISITED_MAX: usize = 12;
/// What an egress costs more when it is not known to speak for the sender's domain: enough to go
/// some way for one that is.
const UNCOVERED_COST: u32 = 1_000;
/// What it costs more to leave mail with a node that holds it for its home.
const PICKUP_COST: u32 = 10_000;
/// What a link within a site costs that is not listed.
const NEAR_COST: u32 = 1;
/// The most goals that are compared.
const GOALS_MAX: usize = 16;
/// Goals whose cost is within so many percent of the best share the load.
const EQUAL_PERCENT: u32 = 20;

/// The members as their records show them, to one of them.
#[derive(Clone, Debug)]
pub struct Map {
    me: NodeId,
    places: Vec<Place>,
    by_id: BTreeMap<NodeId, usize>,
    by_domain: HashMap<Domain, Vec<NodeId>>,
}

#[derive(Clone, Debug)]
struct Place {
    id: NodeId,
    egress: Vec<Egress>,
    pickups: Vec<NodeId>,
    holds: bool,
    is_public: bool,
    /// The number of its site; none where it names none.
    site: Option<usize>,
    /// What its links cost to all that it does not list; 0: there are none but those.
    link_cost: u32,
    /// The places that it lists, and what each costs.
    listed: BTreeMap<usize, u32>,
    /// The places that it lists or that list it.
    named: BTreeSet<usize>,
    /// Its pick-ups: where nobody else can dial it, links lead here from these alone.
    dialled: Vec<usize>,
    /// What it costs to get here from each place, for mail that has visited this node alone: most
    /// mail, and so it is found once.
    fresh_costs: OnceLock<Vec<Option<u32>>>,
}

/// What a message needs.
#[derive(Clone, Copy, Debug)]
pub struct Need<'a> {
    /// The domain of the recipient.
    pub to: &'a Domain,
    /// The domain of the sender; none of a notification.
    pub from: Option<&'a Domain>,
    /// The size of the content, in octets.
    pub octets: u64,
    /// The nodes that the message has visited.
    pub visited: &'a [NodeId],
    /// What tells messages apart: equal goals share the load by it, and copies of one message meet.
    pub spread: u64,
}

/// A way that a message may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// What to do with it here.
    pub step: Step,
    /// Where it is to get to.
    pub goal: Goal,
    /// What the whole way costs.
    pub cost: u32,
}

/// What to do with a message here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// It is where it is to get to: deliver it, hold it, or send it out.
    Stay,
    /// Pass it on to this member.
    Pass(NodeId),
}

/// Where a message is to get to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Goal {
    /// A node that serves its domain.
    Home(NodeId),
    /// A node that holds it until its home comes for it.
    Pickup {
        /// It.
        at: NodeId,
        /// The home.
        home: NodeId,
    },
    /// A node that sends it out.
    Egress(NodeId),
}

/// What this node knows of its own links, from its own sessions: it counts for more than a map.
#[derive(Clone, Debug, Default)]
pub struct Health {
    /// Nodes to which no session can be opened now.
    pub down: BTreeSet<NodeId>,
    /// What it costs more to go by a node: it is slow, or refuses now and then.
    pub penalties: BTreeMap<NodeId, u32>,
}

impl Map {
    /// Draws the map that `me` has, of what members say in their records.
    pub fn new<'a>(me: NodeId, members: impl IntoIterator<Item = (NodeId, &'a Said)>) -> Map {
        let members: BTreeMap<NodeId, &Said> = members.into_iter().collect();
        let by_id: BTreeMap<NodeId, usize> = members.keys().copied().zip(0..).collect();
        let mut sites: HashMap<&str, usize> = HashMap::new();
        let mut places: Vec<Place> = Vec::with_capacity(members.len());
        for (id, said) in &members {
            let next = sites.len();
            let number = |id: &NodeId| by_id.get(id).copied();
            places.push(Place {
                id: *id,
                egress: said.egress.clone(),
                pickups: said.pickups.clone(),
                holds: said.holds_days > 0,
                is_public: said.reach == Reach::Public,
                site: (!said.site.is_empty()).then(|| *sites.entry(&said.site).or_insert(next)),
                link_cost: u32::from(said.link_cost),
                // Of one that is listed twice the first counts.
                listed: said
                    .links
                    .iter()
                    .rev()
                    .filter_map(|link| Some((number(&link.to)?, listed_cost(link))))
                    .collect(),
                named: BTreeSet::new(),
                dialled: said.pickups.iter().filter_map(number).collect(),
                fresh_costs: OnceLock::new(),
            });
        }
        for from in 0..places.len() {
            let listed: Vec<usize> = places[from].listed.keys().copied().collect();
            for to in listed {
                places[from].named.insert(to);
                places[to].named.insert(from);
            }
        }
        let mut by_domain: HashMap<Domain, Vec<NodeId>> = HashMap::new();
        for (id, said) in &members {
            for domain in said.serves.iter().collect::<BTreeSet<_>>() {
                by_domain.entry(domain.clone()).or_default().push(*id);
            }
        }
        Map { me, places, by_id, by_domain }
    }

    /// Returns the nodes that serve a domain or one above it; those of the closest one.
    pub fn homes(&self, domain: &Domain) -> &[NodeId] {
        if let Some(homes) = self.by_domain.get(domain) {
            return homes;
        }
        let mut above = std::iter::successors(domain.parent(), Domain::parent);
        above.find_map(|domain| self.by_domain.get(&domain)).map_or(&[], Vec::as_slice)
    }

    /// Returns whether two nodes state a link with each other.
    pub fn has_link(&self, from: &NodeId, to: &NodeId) -> bool {
        let (Some(from), Some(to)) = (self.by_id.get(from), self.by_id.get(to)) else { return false };
        self.cost(*from, *to).is_some()
    }

    /// Returns the links that both ends state, each once, with what each end says that it costs: first
    /// that of the node that is named first.
    pub fn links(&self) -> Vec<(NodeId, NodeId, [u32; 2])> {
        let pairs = (0..self.places.len()).flat_map(|one| (one + 1..self.places.len()).map(move |other| (one, other)));
        let link = |(one, other): (usize, usize)| {
            Some((self.places[one].id, self.places[other].id, [self.cost(one, other)?, self.cost(other, one)?]))
        };
        pairs.filter_map(link).collect()
    }

    /// Returns the cheapest way from here to each node that one leads to: what it costs, and the node
    /// before it. All of them together are a tree.
    pub fn tree(&self) -> BTreeMap<NodeId, (u32, NodeId)> {
        let mut tree = BTreeMap::new();
        let Some(me) = self.by_id.get(&self.me) else { return tree };
        let mut closed = BTreeSet::new();
        let mut open = BinaryHeap::from([Reverse((0u32, self.me, *me))]);
        while let Some(Reverse((cost, before, at))) = open.pop() {
            if !closed.insert(at) {
                continue;
            }
            if at != *me {
                tree.insert(self.places[at].id, (cost, before));
            }
            let onward = self.links_from(at).filter(|(to, _)| !closed.contains(to));
            open.extend(onward.map(|(to, link)| Reverse((cost.saturating_add(link), self.places[at].id, to))));
        }
        tree
    }

    /// Returns the ways that a message may go from here, the best first; each next step stands in
    /// the list once. Empty: it waits here until the map or the health changes.
    pub fn choices(&self, need: &Need<'_>, health: &Health) -> Vec<Choice> {
        let mut choices = Vec::new();
        if need.visited.len() >= VISITED_MAX {
            return choices;
        }
        let mut goals: Vec<(u32, Vec<Choice>)> = Vec::new();
        for (goal, extra) in self.goals(need) {
            let ways = self.ways(goal, extra, need, health);
            if let Some(best) = ways.first() {
                goals.push((best.cost, ways));
            }
        }
        // Most mail has one goal, and one link leads to each node: its ways differ in their steps.
        if let [(_, ways)] = &mut goals[..] {
            return std::mem::take(ways);
        }
        goals.sort_by_key(|(cost, _)| *cost);
        share(&mut goals, need.spread);
        let mut seen = BTreeSet::new();
        for choice in goals.into_iter().take(GOALS_MAX).flat_map(|(_, ways)| ways) {
            if seen.insert(choice.step) {
                choices.push(choice);
            }
        }
        choices
    }

    /// Returns where a message may be meant to get to, and what is to be added to the way there.
    fn goals(&self, need: &Need<'_>) -> Vec<(Goal, u32)> {
        let homes = self.homes(need.to);
        if homes.is_empty() {
            let offers = self.places.iter().filter_map(|place| Some((Goal::Egress(place.id), offer(place, need)?)));
            return offers.collect();
        }
        let mut goals = Vec::new();
        for home in homes {
            goals.push((Goal::Home(*home), 0));
            for at in &self.places[self.by_id[home]].pickups {
                if self.by_id.get(at).is_some_and(|place| self.places[*place].holds) {
                    goals.push((Goal::Pickup { at: *at, home: *home }, PICKUP_COST));
                }
            }
        }
        goals
    }

    /// Returns the steps that lead towards a goal, the cheapest first.
    fn ways(&self, goal: Goal, extra: u32, need: &Need<'_>, health: &Health) -> Vec<Choice> {
        let end = goal.node();
        if end == self.me {
            return vec![Choice { step: Step::Stay, goal, cost: extra }];
        }
        let (Some(me), Some(end)) = (self.by_id.get(&self.me), self.by_id.get(&end)) else { return Vec::new() };
        let visited = || need.visited.iter().filter_map(|id| self.by_id.get(id)).filter(|place| *place != me).copied();
        let closed = || visited().chain([*me]).collect();
        let mut once = None;
        let costs = match visited().next() {
            None => self.places[*end].fresh_costs.get_or_init(|| self.costs_to(*end, &closed())),
            Some(_) => once.insert(self.costs_to(*end, &closed())),
        };
        let way = |(next, link): (usize, u32)| {
            let id = self.places[next].id;
            let rest = costs[next].filter(|_| !health.down.contains(&id))?;
            let penalty = health.penalties.get(&id).copied().unwrap_or_default();
            let cost = [link, rest, extra, penalty].into_iter().fold(0, u32::saturating_add);
            Some(Choice { step: Step::Pass(id), goal, cost })
        };
        let mut ways: Vec<Choice> = self.links_from(*me).filter_map(way).collect();
        ways.sort_by_key(|choice| (choice.cost, choice.step));
        ways
    }

    /// Returns what it costs to get from each place to `end` without passing a closed one (Dijkstra). What a place
    /// pays for links that nobody lists is the same whoever is at their other end: so the first that is reached of all
    /// it can go to is the cheapest, and the others need not be looked at.
    fn costs_to(&self, end: usize, closed: &BTreeSet<usize>) -> Vec<Option<u32>> {
        let mut costs = vec![None; self.places.len()];
        let mut unlisted = Unlisted::new(&self.places);
        let mut open = BinaryHeap::from([Reverse((0u32, end))]);
        while let Some(Reverse((cost, at))) = open.pop() {
            if costs[at].is_some() || closed.contains(&at) {
                continue;
            }
            costs[at] = Some(cost);
            let place = &self.places[at];
            let by_name = place.named.iter().chain(place.dialled.iter().filter(|_| !place.is_public));
            let by_name = by_name.filter_map(|before| Some((*before, self.cost(*before, at)?)));
            let all = by_name.chain(unlisted.take(&self.places, at));
            open.extend(all.map(|(before, link)| Reverse((cost.saturating_add(link), before))));
        }
        costs
    }

    /// Returns the places with a link from here, and what it costs.
    fn links_from(&self, from: usize) -> impl Iterator<Item = (usize, u32)> {
        (0..self.places.len()).filter_map(move |to| Some((to, self.cost(from, to)?)))
    }

    /// Returns what a link costs that both ends state; `None`: there is none.
    fn cost(&self, from: usize, to: usize) -> Option<u32> {
        let (near, far) = (&self.places[from], &self.places[to]);
        let can_be_dialled = far.is_public || far.dialled.contains(&from);
        if from == to || !can_be_dialled {
            return None;
        }
        near.stated(far, to).filter(|_| far.stated(near, from).is_some())
    }
}

impl Place {
    /// Returns what this place says that its link to another costs, or `None` when it states none.
    fn stated(&self, other: &Place, to: usize) -> Option<u32> {
        if let Some(cost) = self.listed.get(&to) {
            return Some(*cost);
        }
        let can_meet = self.is_public || other.is_public;
        let is_near = self.site.is_some() && self.site == other.site;
        (self.link_cost > 0 && can_meet).then_some(if is_near { NEAR_COST } else { self.link_cost })
    }
}

/// The places whose links that nobody lists were not gone along yet: those to any place, and those within a site.
struct Unlisted {
    far: Vec<usize>,
    near: HashMap<usize, Vec<usize>>,
}

impl Unlisted {
    fn new(places: &[Place]) -> Unlisted {
        let far: Vec<usize> = (0..places.len()).filter(|at| places[*at].link_cost > 0).collect();
        let mut near: HashMap<usize, Vec<usize>> = HashMap::new();
        for (at, site) in far.iter().filter_map(|at| Some((*at, places[*at].site?))) {
            near.entry(site).or_default().push(at);
        }
        Unlisted { far, near }
    }

    /// Takes out those that have such a link to a place, with what it costs each.
    fn take(&mut self, places: &[Place], to: usize) -> Vec<(usize, u32)> {
        let end = &places[to];
        // Links to those that cannot be dialled lead from their pick-ups, which are few.
        if end.link_cost == 0 || !end.is_public {
            return Vec::new();
        }
        let has_one = |at: &mut usize| *at != to && !end.named.contains(at);
        let mut taken: Vec<(usize, u32)> =
            self.far.extract_if(.., has_one).map(|at| (at, places[at].link_cost)).collect();
        if let Some(near) = end.site.and_then(|site| self.near.get_mut(&site)) {
            taken.extend(near.extract_if(.., has_one).map(|at| (at, NEAR_COST)));
        }
        taken
    }
}

/// Returns what a link costs that is listed: something.
fn listed_cost(link: &Link) -> u32 {
    u32::from(link.cost).max(1)
}

impl Goal {
    /// Returns the node to get to.
    pub fn node(self) -> NodeId {
        match self {
            Goal::Home(node) | Goal::Egress(node) | Goal::Pickup { at: node, .. } => node,
        }
    }
}

/// Returns what it costs to leave by a node, or `None` when it does not offer that.
fn offer(place: &Place, need: &Need<'_>) -> Option<u32> {
    let fits = |offer: &&Egress| {
        (offer.to.is_empty() || offer.to.iter().any(|domain| need.to.is_within(domain)))
            && (offer.octets_max == 0 || need.octets <= offer.octets_max)
    };
    let cost = |offer: &Egress| {
        let covered = need.from.is_none_or(|from| offer.from.iter().any(|domain| from.is_within(domain)));
        u32::from(offer.cost) + if covered { 0 } else { UNCOVERED_COST }
    };
    place.egress.iter().filter(fits).map(cost).min()
}

/// Puts goals that cost about the same as the best in an order that differs from message to message
/// and is the same at every node (rendezvous hashing).
fn share(goals: &mut [(u32, Vec<Choice>)], spread: u64) {
    let Some(best) = goals.first().map(|(cost, _)| *cost) else { return };
    let limit = u64::from(best) * u64::from(100 + EQUAL_PERCENT) / 100;
    let equal = goals.iter().take_while(|(cost, _)| u64::from(*cost) <= limit).count();
    goals[..equal]
        .sort_by_cached_key(|(_, ways)| Reverse(sha256(&[&spread.to_be_bytes(), ways[0].goal.node().octets()])));
}
