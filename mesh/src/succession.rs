//! Nodes that went on under another key: which keys belong to one node, and under which of them it goes on.
//!
//! While a node changes its key, both are members. They are one node all the same: it has one voice,
//! and mail goes to the later key.

use std::collections::BTreeMap;

use crate::node::NodeId;

/// A rotation: from which key, as which of its statements, to which key.
pub(crate) type Rotation = (NodeId, u32, NodeId);

/// Which keys belong together, whether their rotations stand or not: whoever signed as both is one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lines(BTreeMap<NodeId, NodeId>);

impl Lines {
    /// Puts keys together. A line with the founder in it is called by the founder.
    pub(crate) fn new(rotations: impl IntoIterator<Item = Rotation>, founder: NodeId) -> Lines {
        let mut lines = Lines::default();
        for (from, _, to) in rotations {
            let (one, other) = (lines.name(&from), lines.name(&to));
            let (name, lost) = if other == founder { (other, one) } else { (one, other) };
            lines.0.entry(from).or_insert(name);
            lines.0.entry(to).or_insert(name);
            lines.0.values_mut().filter(|known| **known == lost).for_each(|known| *known = name);
        }
        lines
    }

    /// Returns the one key that all keys of a node are counted as.
    pub(crate) fn name(&self, key: &NodeId) -> NodeId {
        self.0.get(key).copied().unwrap_or(*key)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Returns of each key that was given up the one under which its node goes on. Of several that a key
/// names, the last one counts; a circle leads nowhere.
pub(crate) fn heirs(
    rotations: impl IntoIterator<Item = Rotation>,
    is_member: impl Fn(&NodeId) -> bool,
) -> BTreeMap<NodeId, NodeId> {
    let mut next: BTreeMap<NodeId, (u32, NodeId)> = BTreeMap::new();
    for (from, sequence, to) in rotations {
        let last = next.entry(from).or_insert((sequence, to));
        *last = (*last).max((sequence, to));
    }
    let end = |from: &NodeId| {
        let mut at = *from;
        for _ in 0..=next.len() {
            match next.get(&at) {
                Some((_, to)) => at = *to,
                None => return Some(at).filter(&is_member),
            }
        }
        None
    };
    next.keys().filter_map(|from| Some((*from, end(from)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u8) -> NodeId {
        NodeId::from_octets([number; 32])
    }

    fn rotations(all: &[(u8, u32, u8)]) -> Vec<Rotation> {
        all.iter().map(|(from, sequence, to)| (node(*from), *sequence, node(*to))).collect()
    }

    #[test]
    fn all_keys_of_a_node_have_one_name_and_the_founders_is_its_own() {
        let lines = Lines::new(rotations(&[(1, 0, 2), (3, 0, 4), (2, 0, 3), (6, 0, 5)]), node(5));
        assert!((2..5).all(|key| lines.name(&node(key)) == lines.name(&node(1))));
        assert_eq!(lines.name(&node(6)), node(5));
        assert_eq!(lines.name(&node(9)), node(9));
    }

    #[test]
    fn a_node_goes_on_under_its_last_key_and_a_circle_leads_nowhere() {
        let of = |all: &[(u8, u32, u8)], members: &[u8]| {
            let heirs = heirs(rotations(all), |node| members.contains(&node.octets()[0]));
            heirs.into_iter().map(|(from, to)| (from.octets()[0], to.octets()[0])).collect::<Vec<_>>()
        };
        assert_eq!(of(&[(1, 0, 2), (2, 0, 3)], &[1, 3]), [(1, 3), (2, 3)]);
        assert_eq!(of(&[(1, 4, 2), (1, 5, 3)], &[2, 3]), [(1, 3)]);
        assert_eq!(of(&[(1, 0, 2)], &[1]), []);
        assert_eq!(of(&[(1, 0, 2), (2, 0, 1), (3, 0, 1)], &[1, 2, 3]), []);
    }
}
