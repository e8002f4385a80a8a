//! What was stated about members and lacks voices: an admission or a revocation that others may add
//! theirs to.

use std::collections::{BTreeMap, BTreeSet};

use crate::caps::Caps;
use crate::node::NodeId;
use crate::roster::Roster;
use crate::statement::What;

/// Something that lacks voices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Whom it is about.
    pub node: NodeId,
    /// What one of them stated: an admission or a revocation. Whoever agrees states the same.
    pub what: What,
    /// Who stated it.
    pub by: BTreeSet<NodeId>,
    /// How many independent voices they have together.
    pub voices: u8,
    /// How many it takes.
    pub needed: u8,
}

impl Roster {
    /// Returns what lacks voices, admissions first.
    pub fn pending(&self) -> Vec<Pending> {
        let lines = self.lines();
        let (guests, sponsors) = self.read_guests(&lines);
        let policy = self.policy();
        let mut found: BTreeMap<(u8, NodeId), Pending> = BTreeMap::new();
        for statement in self.statements().values() {
            let by = statement.by_id();
            let Some(signer) = guests.get(&by) else { continue };
            let (node, kind, needed) = match statement.what() {
                What::Admit { node, .. } if !guests.contains_key(&node.id()) && signer.caps.has(Caps::ADMIT) => {
                    (node.id(), 0, policy.admit_by)
                }
                What::Revoke { node, .. } if self.member(node).is_some() && *node != by => (*node, 1, policy.revoke_by),
                _ => continue,
            };
            let what = statement.what().clone();
            let pending = Pending { node, what, by: BTreeSet::new(), voices: 0, needed };
            found.entry((kind, node)).or_insert(pending).by.insert(by);
        }
        let counted = |pending: Pending| {
            let voices = sponsors.voices_of(self.founder(), &pending.by, &lines, pending.needed);
            Pending { voices, ..pending }
        };
        found.into_values().map(counted).collect()
    }
}
