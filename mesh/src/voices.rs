//! How many independent voices a set of nodes has.
//!
//! Who was admitted by whom makes a graph with the founder at its root. The voices of a set are the
//! most paths from the founder to different nodes of the set that share no node but the founder. So
//! somebody who controls one node has one voice, however many nodes he lets in through it: every
//! path to these leads through the one (Menger's theorem).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::node::NodeId;
use crate::succession::Lines;

/// Who let whom in.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sponsors {
    edges: BTreeMap<NodeId, BTreeSet<NodeId>>,
}

/// A node, seen where paths enter it or where they leave it: between the two only one path passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Gate {
    Into(NodeId),
    OutOf(NodeId),
}

impl Sponsors {
    /// Notes that `sponsor` let `node` in; returns whether that is new.
    pub(crate) fn add(&mut self, sponsor: NodeId, node: NodeId) -> bool {
        self.edges.entry(sponsor).or_default().insert(node)
    }

    /// Returns the independent voices of a set, at most `limit`, all keys of a node counted as one.
    pub(crate) fn voices_of(&self, founder: NodeId, set: &BTreeSet<NodeId>, lines: &Lines, limit: u8) -> u8 {
        if lines.is_empty() {
            return self.voices(founder, set, limit);
        }
        let mut by_node = Sponsors::default();
        for (from, to) in self.edges.iter().flat_map(|(from, all)| all.iter().map(move |to| (from, to))) {
            by_node.add(lines.name(from), lines.name(to));
        }
        by_node.voices(founder, &set.iter().map(|key| lines.name(key)).collect(), limit)
    }

    /// Returns the independent voices of a set, at most `limit`; those of nodes to which no path leads
    /// do not count.
    fn voices(&self, founder: NodeId, set: &BTreeSet<NodeId>, limit: u8) -> u8 {
        // The founder's own voice needs no path.
        let mut voices = u8::from(set.contains(&founder));
        let mut flow = Flow::default();
        while voices < limit && flow.augment(self, founder, set) {
            voices += 1;
        }
        voices
    }
}

/// Paths found so far: of each node on one, the node before it.
#[derive(Default)]
struct Flow {
    before: BTreeMap<NodeId, NodeId>,
    ends: BTreeSet<NodeId>,
}

impl Flow {
    /// Finds one more path, moving others aside where need be (Ford and Fulkerson).
    fn augment(&mut self, sponsors: &Sponsors, founder: NodeId, set: &BTreeSet<NodeId>) -> bool {
        let mut came: BTreeMap<Gate, Gate> = BTreeMap::new();
        let mut waiting = VecDeque::from([Gate::OutOf(founder)]);
        while let Some(gate) = waiting.pop_front() {
            if let Gate::OutOf(node) = gate
                && node != founder
                && set.contains(&node)
                && !self.ends.contains(&node)
            {
                self.take(&came, node);
                return true;
            }
            for next in self.steps(sponsors, founder, gate) {
                if next != Gate::OutOf(founder) && !came.contains_key(&next) {
                    came.insert(next, gate);
                    waiting.push_back(next);
                }
            }
        }
        false
    }

    /// Returns where a further path may go from here: forward along unused edges, or backward along
    /// used ones.
    fn steps(&self, sponsors: &Sponsors, founder: NodeId, gate: Gate) -> Vec<Gate> {
        let is_used = |node: &NodeId| self.before.contains_key(node);
        match gate {
            Gate::OutOf(node) => {
                let sponsored = sponsors.edges.get(&node).into_iter().flatten().copied();
                let is_free = |next: &NodeId| *next != founder && self.before.get(next) != Some(&node);
                let mut steps: Vec<Gate> = sponsored.filter(is_free).map(Gate::Into).collect();
                // Back through a node that a path passes: that path is to go elsewhere from here.
                if node != founder && is_used(&node) {
                    steps.push(Gate::Into(node));
                }
                steps
            }
            Gate::Into(node) if is_used(&node) => vec![Gate::OutOf(self.before[&node])],
            Gate::Into(node) => vec![Gate::OutOf(node)],
        }
    }

    /// Takes the path into the flow: what it goes backward along is given up.
    fn take(&mut self, came: &BTreeMap<Gate, Gate>, end: NodeId) {
        self.ends.insert(end);
        let mut path = vec![Gate::OutOf(end)];
        while let Some(gate) = came.get(path.last().expect("a path has an end")) {
            path.push(*gate);
        }
        path.reverse();
        let (mut lost, mut won) = (Vec::new(), Vec::new());
        for pair in path.windows(2) {
            match (pair[0], pair[1]) {
                (Gate::OutOf(from), Gate::Into(to)) if from != to => won.push((from, to)),
                (Gate::Into(to), Gate::OutOf(from)) if from != to => lost.push((from, to)),
                _ => {}
            }
        }
        for (_, to) in lost {
            self.before.remove(&to);
        }
        for (from, to) in won {
            self.before.insert(to, from);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn node(number: u8) -> NodeId {
        NodeId::from_octets([number; 32])
    }

    fn sponsors(edges: &[(u8, u8)]) -> Sponsors {
        let mut sponsors = Sponsors::default();
        for (from, to) in edges {
            sponsors.add(node(*from), node(*to));
        }
        sponsors
    }

    fn voices(edges: &[(u8, u8)], set: &[u8]) -> u8 {
        sponsors(edges).voices(node(0), &set.iter().copied().map(node).collect(), 9)
    }

    #[test]
    fn guests_of_one_node_have_one_voice() {
        let edges = [(0, 1), (0, 2), (1, 3), (1, 4), (4, 5)];
        assert_eq!(voices(&edges, &[1]), 1);
        assert_eq!(voices(&edges, &[3, 4, 5]), 1);
        assert_eq!(voices(&edges, &[1, 3, 4, 5]), 1);
        assert_eq!(voices(&edges, &[2, 5]), 2);
        assert_eq!(voices(&edges, &[0, 3, 4]), 2);
        assert_eq!(voices(&edges, &[7]), 0);
    }

    #[test]
    fn who_was_admitted_twice_over_speaks_for_himself() {
        assert_eq!(voices(&[(0, 1), (0, 2), (1, 3), (2, 3)], &[1, 3]), 2);
        assert_eq!(voices(&[(0, 1), (0, 2), (1, 3), (1, 4), (2, 4)], &[3, 4]), 2);
        // The first path found is in the way and has to move.
        assert_eq!(voices(&[(0, 1), (0, 2), (1, 3), (1, 4), (2, 3)], &[3, 4]), 2);
    }

    /// Removes each set of nodes in turn: as many as it takes to cut all of the set off.
    fn smallest_cut(edges: &[(u8, u8)], set: &[u8]) -> u8 {
        let reaches = |cut: u32| {
            let mut seen = vec![0u8];
            let mut next = 0;
            while let Some(at) = seen.get(next).copied() {
                next += 1;
                for (from, to) in edges {
                    if *from == at && cut & (1 << to) == 0 && !seen.contains(to) {
                        seen.push(*to);
                    }
                }
            }
            set.iter().any(|end| *end != 0 && seen.contains(end))
        };
        let own = u8::from(set.contains(&0));
        own + (0u32..128)
            .map(|cut| cut << 1)
            .filter(|cut| !reaches(*cut))
            .map(|cut| cut.count_ones() as u8)
            .min()
            .unwrap_or(0)
    }

    proptest! {
        #[test]
        fn voices_are_the_fewest_nodes_that_silence_them(
            edges in prop::collection::vec((0u8..8, 1u8..8), 0..20),
            set in prop::collection::vec(0u8..8, 0..5),
        ) {
            prop_assert_eq!(voices(&edges, &set), smallest_cut(&edges, &set));
        }
    }
}
