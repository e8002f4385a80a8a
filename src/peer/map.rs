//! The map as it is shown to people: members, the links between them, and the cheapest ways from here.

use std::collections::BTreeSet;

use postroad_mesh::NodeId;
use postroad_mesh::record::Egress;

use super::{Peers, members};
use crate::admin::mesh::{EgressView, LinkView, MapView, PlaceView};

/// The most members whose links are all shown. Of more, every one with every other, people see those that mail goes
/// along from here, and those that are open.
const ALL_LINKS_MAX: usize = 64;

impl Peers {
    /// Returns the map that mail goes by here.
    pub(super) fn map_view(&self) -> MapView {
        let view = self.view();
        let open = self.state().as_ref().map(|state| state.links()).unwrap_or_default();
        let tree = view.map().map(|map| map.tree()).unwrap_or_default();
        let path = |node: &NodeId| {
            let mut path = Vec::new();
            let mut at = Some(*node);
            while let Some((node, (_, before))) = at.and_then(|node| Some((node, tree.get(&node)?))) {
                path.push(node.to_string());
                at = Some(*before);
            }
            path.reverse();
            path
        };
        let place = |node: &NodeId| {
            let said = view.record(node);
            let ids = |ids: &[NodeId]| ids.iter().map(NodeId::to_string).collect();
            PlaceView {
                node: node.to_string(),
                label: view.label(node),
                site: said.map(|said| said.site.to_string()).unwrap_or_default(),
                reach: members::reach(said).to_owned(),
                serves: said.map(|said| members::names(&said.serves)).unwrap_or_default(),
                claims: members::names(view.unfounded(node)),
                egress: said.map(|said| said.egress.iter().map(egress).collect()).unwrap_or_default(),
                pickups: said.map(|said| ids(&said.pickups)).unwrap_or_default(),
                holds_days: said.map_or(0, |said| said.holds_days),
                path: path(node),
                cost: tree.get(node).map(|(cost, _)| *cost),
            }
        };
        let used: BTreeSet<(NodeId, NodeId)> = tree.iter().map(|(node, (_, before))| (*before, *node)).collect();
        let link = |(a, b, [cost, cost_back]): (NodeId, NodeId, [u32; 2])| {
            let is_open = [(a, b), (b, a)].iter().any(|(me, to)| view.me() == Some(*me) && open.contains_key(to));
            LinkView {
                a: a.to_string(),
                b: b.to_string(),
                cost,
                cost_back,
                state: if is_open { "open" } else { "stated" }.to_owned(),
                is_used: used.contains(&(a, b)) || used.contains(&(b, a)),
            }
        };
        let is_small = view.members().count() <= ALL_LINKS_MAX;
        let links = view.map().into_iter().flat_map(|map| map.links()).map(link);
        let is_shown = |link: &LinkView| is_small || link.is_used || link.state == "open";
        MapView {
            label: members::label(&view).unwrap_or_default(),
            node: view.me().map(|me| me.to_string()),
            nodes: view.members().map(|(node, _)| place(node)).collect(),
            links: links.filter(is_shown).collect(),
        }
    }
}

fn egress(offer: &Egress) -> EgressView {
    EgressView {
        to: members::names(&offer.to),
        from: members::names(&offer.from),
        cost: offer.cost,
        octets_max: offer.octets_max,
    }
}
