//! What this host says of itself to the mesh: its record, made from the configuration.

use std::collections::BTreeSet;

use postroad_mesh::node::NodeKey;
use postroad_mesh::record::{
    ADDRESSES_MAX, Address, DOMAINS_MAX, LABEL_OCTETS_MAX, LINKS_MAX, Link, PICKUPS_MAX, Said,
};
use postroad_mesh::{MeshId, NodeId};
use postroad_smtp::Domain;

use super::View;
use crate::config::Config;

/// What a link within a site costs where links are listed.
const NEAR_COST: u16 = 1;

/// Returns what this host has to say of itself, as to a mesh that looks like this.
pub(super) fn said(config: &Config, me: NodeKey, mesh: MeshId, view: &View) -> Said {
    let pickups = config.mesh.pickups.iter().filter_map(|name| view.find(name).ok());
    let mut said = Said {
        label: label(config).into(),
        site: config.mesh.site.clone(),
        addresses: addresses(config),
        reach: config.mesh.reach,
        serves: serves(config),
        egress: config.mesh.egress.clone(),
        pickups: pickups.take(PICKUPS_MAX).collect(),
        holds_days: config.mesh.holds_days,
        link_cost: config.mesh.link_cost,
        ..Said::new(me, mesh, 0)
    };
    if view.members().count() > LINKS_MAX {
        said.links = links(config, &me.id(), view);
        said.link_cost = 0;
    }
    said
}

/// Returns what this host is called.
pub(super) fn label(config: &Config) -> &str {
    let label = config.mesh.label.as_deref().unwrap_or(config.hostname.as_str());
    // A longer host name is cut; it is ASCII.
    label.get(..LABEL_OCTETS_MAX).unwrap_or(label)
}

/// Returns where members reach this host.
pub(super) fn addresses(config: &Config) -> Vec<Address> {
    if !config.mesh.addresses.is_empty() {
        return config.mesh.addresses.clone();
    }
    let at = |port: u16, implicit_tls| Address { host: config.hostname.as_str().into(), port, implicit_tls };
    let plain = config.listen.smtp.first().map(|address| at(address.port(), false));
    let tls = config.listen.mesh.first().map(|address| at(address.port(), true));
    plain.into_iter().chain(tls).take(ADDRESSES_MAX).collect()
}

/// Returns the domains that this host takes mail for.
pub(super) fn serves(config: &Config) -> Vec<Domain> {
    let local = || config.locals.iter().map(|local| local.domain.clone()).collect();
    let mut serves: Vec<Domain> = config.mesh.serves.clone().unwrap_or_else(local);
    serves.truncate(DOMAINS_MAX);
    serves
}

/// Returns links with so many as a record lists, in a mesh of more: those of the site first, then such
/// that the other end chooses as well.
fn links(config: &Config, me: &NodeId, view: &View) -> Vec<Link> {
    let is_near =
        |id: &NodeId| !config.mesh.site.is_empty() && view.record(id).is_some_and(|said| said.site == config.mesh.site);
    let mut others: Vec<NodeId> = view.members().map(|(id, _)| *id).filter(|id| id != me).collect();
    others.sort_by_cached_key(|id| (!is_near(id), between(me, id)));
    let cost = |id: &NodeId| if is_near(id) { NEAR_COST } else { config.mesh.link_cost };
    others.iter().take(LINKS_MAX).map(|id| Link { to: *id, cost: cost(id) }).collect()
}

/// Returns octets that are the same for both ends of a link, and spread evenly over links.
fn between(one: &NodeId, other: &NodeId) -> [u8; 32] {
    let mut sum = [0; 32];
    for (place, digit) in sum.iter_mut().enumerate() {
        *digit = one.octets()[place] ^ other.octets()[place];
    }
    sum
}

/// Returns the domains that the configuration claims and that nobody has granted to this node.
pub(super) fn not_granted(config: &Config, me: &NodeId, view: &View) -> BTreeSet<Domain> {
    let granted = view.member(me).map(|member| &member.serves);
    let is_granted =
        |domain: &Domain| granted.is_some_and(|granted| granted.keys().any(|above| domain.is_within(above)));
    serves(config).into_iter().filter(|domain| !is_granted(domain)).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(text: &str) -> Config {
        Config::from_str(text, "test", Path::new("/")).unwrap_or_else(|faults| panic!("{faults}"))
    }

    #[test]
    fn without_a_word_it_is_known_by_hostname_port_and_local_domains() {
        let text = "hostname = \"mx.example\"\n[listen]\nsmtp = [\"127.0.0.1:2525\"]\n\
                    [mesh]\nlisten = [\"127.0.0.1:4465\"]\n[[local]]\ndomain = \"a.example\"\nmaildir = \"/m/{user}\"";
        let config = config(text);
        let addresses: Vec<String> = addresses(&config).iter().map(Address::to_string).collect();
        assert_eq!(addresses, ["mx.example:2525", "mx.example:4465/tls"]);
        assert_eq!(label(&config), "mx.example");
        assert_eq!(serves(&config), ["a.example".parse::<Domain>().expect("valid")]);
    }

    #[test]
    fn what_is_said_is_said() {
        let text = "[mesh]\naddresses = [\"192.0.2.1:25\"]\nlabel = \"hq\"\nserves = []\nholds = \"36h\"\n\
                    egress = true\nreach = \"dials-out\"\nsite = \"cellar\"";
        let config = config(text);
        let key = postroad_mesh::SecretKey::from_seed(&[1; 32]).public();
        let said = said(&config, key, MeshId::from_octets([0; 32]), &View::default());
        assert_eq!((said.label.as_ref(), said.site.as_ref(), said.holds_days), ("hq", "cellar", 2));
        assert_eq!((said.serves.len(), said.egress.len(), said.link_cost), (0, 1, 10));
        assert_eq!(said.addresses[0].to_string(), "192.0.2.1:25");
    }
}
