//! The last resort of a message that has gone astray: a way on through members that take no responsibility
//! for it.
//!
//! A message that went by a stale map may be where every way to its goal leads back through a member that it
//! has visited. None of those takes it again. But one may pass on octets, unread, between this node and a
//! member behind it: that one takes the message, and it has a way onward of the ordinary kind, so no node is
//! visited twice.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use super::{GOALS_MAX, Goal, Map, Need, VISITED_MAX};
use crate::node::NodeId;

/// The most members through which the octets of one message pass: each is one more connection, and a session
/// within another.
pub const THROUGH_MAX: usize = 4;

/// A way that a message may go where there is no other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Through {
    /// The members that pass its octets on, the nearest first. Never empty.
    pub by: Vec<NodeId>,
    /// The member behind them, which takes it.
    pub next: NodeId,
    /// Where it is to get to.
    pub goal: Goal,
    /// What the whole way costs.
    pub cost: u32,
}

impl Map {
    /// Returns the ways of a message that has no other ([`Map::choices`] is empty), the best first; each
    /// member that takes it stands in the list once.
    pub fn through(&self, need: &Need<'_>) -> Vec<Through> {
        let Some(me) = self.by_id.get(&self.me).filter(|_| need.visited.len() < VISITED_MAX) else { return Vec::new() };
        let mut closed: BTreeSet<usize> = need.visited.iter().filter_map(|id| self.by_id.get(id)).copied().collect();
        closed.insert(*me);
        let mut goals = self.goals(need);
        goals.sort_by_key(|(_, extra)| *extra);
        let goals = goals.into_iter().take(GOALS_MAX);
        let mut ways: Vec<Through> = goals.flat_map(|goal| self.ways_through(goal, *me, &closed)).collect();
        ways.sort_by_key(|way| (way.cost, way.next));
        let mut seen = BTreeSet::new();
        ways.retain(|way| seen.insert(way.next));
        ways
    }

    /// Returns the ways to one goal. Octets pass through whoever has no ordinary way to it, visited or not, up
    /// to the first that has one.
    fn ways_through(&self, (goal, extra): (Goal, u32), me: usize, closed: &BTreeSet<usize>) -> Vec<Through> {
        let Some(end) = self.by_id.get(&goal.node()) else { return Vec::new() };
        let rest = self.costs_to(*end, closed);
        let mut ways = Vec::new();
        let mut before: BTreeMap<usize, (usize, usize)> = BTreeMap::new();
        let mut open = BinaryHeap::from([Reverse((0u32, 0usize, me, me))]);
        while let Some(Reverse((cost, depth, at, from))) = open.pop() {
            if before.contains_key(&at) {
                continue;
            }
            before.insert(at, (from, depth));
            if let Some(rest) = rest[at] {
                let by = self.pipes(&before, at);
                let cost = [cost, rest, extra].into_iter().fold(0, u32::saturating_add);
                ways.extend((!by.is_empty()).then(|| Through { by, next: self.places[at].id, goal, cost }));
            } else if depth <= THROUGH_MAX {
                let onward = self.links_from(at).filter(|(to, _)| !before.contains_key(to));
                open.extend(onward.map(|(to, link)| Reverse((cost.saturating_add(link), depth + 1, to, at))));
            }
        }
        ways
    }

    /// Returns who stands between this node and another, the nearest first.
    fn pipes(&self, before: &BTreeMap<usize, (usize, usize)>, end: usize) -> Vec<NodeId> {
        let mut by = Vec::new();
        let (mut at, mut depth) = before[&end];
        while depth > 1 {
            by.push(self.places[at].id);
            (at, depth) = before[&at];
        }
        by.reverse();
        by
    }
}
