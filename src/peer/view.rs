//! What this host knows of the mesh at one moment: who is a member, what members say of themselves, and
//! the map for the way of mail. Never changes; a change makes another view.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use postroad_mesh::archive::Contained;
use postroad_mesh::passage::ShortId;
use postroad_mesh::path::Map;
use postroad_mesh::quota::Way;
use postroad_mesh::record::Said;
use postroad_mesh::roster::Member;
use postroad_mesh::{Directory, MeshId, NodeId, Roster};
use postroad_smtp::Domain;

/// What is known of the mesh; by default, of a host in none, nothing.
#[derive(Clone, Debug, Default)]
pub struct View {
    me: Option<NodeId>,
    roster: Option<Arc<Roster>>,
    records: BTreeMap<NodeId, Said>,
    map: Option<Map>,
    refused: BTreeSet<NodeId>,
    unfounded: BTreeMap<NodeId, Vec<Domain>>,
    contained: Vec<Contained>,
}

/// A name that does not say which member is meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeNameError {
    /// Nobody is called so.
    #[error("no member of the mesh is called {0:?}")]
    Nobody(Box<str>),
    /// Several are.
    #[error("{0:?} may be any of {1}")]
    Several(Box<str>, String),
}

impl View {
    /// Draws what a directory says to `me`, to whom the refused are no members.
    pub fn new(me: NodeId, directory: &Directory, refused: BTreeSet<NodeId>) -> View {
        let roster = directory.shared_roster();
        let current = |id: &NodeId| roster.successor(id).unwrap_or(*id);
        // Who is refused is so under each of its keys.
        let refused_nodes: BTreeSet<NodeId> = refused.iter().map(current).collect();
        let all = roster.members().keys().filter(|id| refused_nodes.contains(&current(id))).copied();
        let refused: BTreeSet<NodeId> = all.chain(refused).collect();
        let mut records = directory.described();
        // Mail goes to a node under the last key that it has said something under.
        let known: BTreeSet<NodeId> = records.keys().copied().collect();
        records.retain(|id, _| !refused.contains(id) && (current(id) == *id || !known.contains(&current(id))));
        for said in records.values_mut() {
            said.pickups.iter_mut().for_each(|pickup| *pickup = current(pickup));
            said.links.iter_mut().for_each(|link| link.to = current(&link.to));
        }
        // Who is no member himself has nobody to pass mail to.
        let is_member = roster.member(&me).is_some();
        let map = is_member.then(|| Map::new(me, records.iter().map(|(id, said)| (*id, said))));
        View {
            me: is_member.then_some(me),
            roster: Some(roster),
            records,
            map,
            refused,
            unfounded: directory.unfounded(),
            contained: Vec::new(),
        }
    }

    /// The same with those whose mail leaves the mesh here as a trickle.
    pub fn containing(self, contained: Vec<Contained>) -> View {
        View { contained, ..self }
    }

    /// Returns those whose mail leaves the mesh here as a trickle.
    pub fn contained(&self) -> &[Contained] {
        &self.contained
    }

    /// Returns whether mail that came this way leaves the mesh here as a trickle.
    pub fn is_contained(&self, way: &Way) -> bool {
        let way = self.way(*way);
        self.contained.iter().any(|contained| match (self.current(&contained.node), contained.via) {
            (node, Some(via)) => node == way.origin && self.current(&via) == way.from,
            (node, None) => node == way.origin || node == way.from,
        })
    }

    /// Returns the same way with the nodes under the keys that they have now: a new key is no new account.
    pub fn way(&self, way: Way) -> Way {
        Way { from: self.current(&way.from), origin: self.current(&way.origin) }
    }

    /// Returns the member that the beginning of an id means, one that it had before included.
    pub fn by_short(&self, short: &ShortId) -> Option<NodeId> {
        let all = || self.members().map(|(id, _)| *id);
        all().find(|id| self.names(id).iter().any(|name| ShortId::from(name) == *short))
    }

    /// Returns the node under the key that it goes on under; the same where it has given up none.
    pub fn current(&self, node: &NodeId) -> NodeId {
        self.roster().and_then(|roster| roster.successor(node)).unwrap_or(*node)
    }

    /// Returns all ids that a node has and had: the one that it has now comes first.
    pub fn names(&self, node: &NodeId) -> Vec<NodeId> {
        let current = self.current(node);
        let earlier = self.roster().into_iter().flat_map(|roster| roster.earlier(&current));
        [current].into_iter().chain(earlier).collect()
    }

    /// Returns the ids that a node had before and that are good still.
    pub fn earlier_members(&self, node: &NodeId) -> impl Iterator<Item = NodeId> {
        self.roster.iter().flat_map(|roster| roster.earlier(node)).filter(|earlier| self.is_member(earlier))
    }

    /// Returns the ids that nodes had before, with those that they have now.
    pub fn renamed(&self) -> impl Iterator<Item = (NodeId, NodeId)> {
        self.members()
            .flat_map(|(id, _)| self.roster.iter().flat_map(|roster| roster.earlier(id)).map(|old| (old, *id)))
    }

    /// Returns which node this host is; `None` while it is no member of a mesh.
    pub fn me(&self) -> Option<NodeId> {
        self.me
    }

    /// Returns the mesh.
    pub fn mesh(&self) -> Option<MeshId> {
        self.roster.as_ref().map(|roster| roster.mesh())
    }

    /// Returns whether a node is a member, and not refused here.
    pub fn is_member(&self, node: &NodeId) -> bool {
        self.member(node).is_some()
    }

    /// Returns a member that is not refused here.
    pub fn member(&self, node: &NodeId) -> Option<&Member> {
        self.roster.as_ref()?.member(node).filter(|_| !self.refused.contains(node))
    }

    /// Returns the members that are not refused here, this host with them, each once: under its last key.
    pub fn members(&self) -> impl Iterator<Item = (&NodeId, &Member)> {
        let members = self.roster.iter().flat_map(|roster| roster.members());
        members.filter(|(id, _)| !self.refused.contains(*id) && self.current(id) == **id)
    }

    /// Returns the roster, refusals of this host not counted.
    pub fn roster(&self) -> Option<&Roster> {
        self.roster.as_deref()
    }

    /// Returns what a member says of itself, with the domains that are its own.
    pub fn record(&self, node: &NodeId) -> Option<&Said> {
        self.records.get(node)
    }

    /// Returns what members say of themselves, with the domains that are each one's own.
    pub fn records(&self) -> &BTreeMap<NodeId, Said> {
        &self.records
    }

    /// Returns the map for the way of mail.
    pub fn map(&self) -> Option<&Map> {
        self.map.as_ref()
    }

    /// Returns the nodes that are refused here.
    pub fn refused(&self) -> &BTreeSet<NodeId> {
        &self.refused
    }

    /// Returns the domains that a member claims and nobody granted it: no mail goes to it for them.
    pub fn unfounded(&self, node: &NodeId) -> &[Domain] {
        self.unfounded.get(node).map_or(&[], Vec::as_slice)
    }

    /// Returns what a member is called: as its record says, else as its admission does, else the
    /// beginning of its id.
    pub fn label(&self, node: &NodeId) -> String {
        let said = self.record(node).map(|said| &said.label).filter(|label| !label.is_empty());
        let granted = || self.roster()?.member(node).map(|member| &member.label).filter(|label| !label.is_empty());
        said.or_else(granted).map_or_else(|| node.short(), |label| label.to_string())
    }

    /// Returns the member that a person means: by its label, its id, or what its id begins with.
    ///
    /// # Errors
    /// Nobody, or more than one, is called so.
    pub fn find(&self, name: &str) -> Result<NodeId, NodeNameError> {
        let wanted = name.to_lowercase();
        let members = self.roster.iter().flat_map(|roster| roster.members().keys());
        let all = || members.clone().filter(|id| self.current(id) == **id).copied();
        let labelled: Vec<NodeId> = all().filter(|id| self.label(id).to_lowercase() == wanted).collect();
        let is_meant = |id: &NodeId| self.names(id).iter().any(|name| name.to_string().starts_with(&wanted));
        let found = if labelled.is_empty() { all().filter(is_meant).collect() } else { labelled };
        match found.as_slice() {
            [one] if !wanted.is_empty() => Ok(*one),
            [] => Err(NodeNameError::Nobody(name.into())),
            several => {
                let ids: Vec<String> = several.iter().map(NodeId::short).collect();
                Err(NodeNameError::Several(name.into(), ids.join(", ")))
            }
        }
    }
}
