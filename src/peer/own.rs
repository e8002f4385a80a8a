//! What this host says of itself to the mesh: its record, made from the configuration.

use std::collections::{BTreeMap, BTreeSet};

use postroad_mesh::node::NodeKey;
use postroad_mesh::record::{ADDRESSES_MAX, Address, DOMAINS_MAX, LABEL_OCTETS_MAX, PICKUPS_MAX, Reach, Said};
use postroad_mesh::{MeshId, NodeId};
use postroad_smtp::Domain;

use super::View;
use crate::config::Config;

/// Returns what this host has to say of itself, as to a mesh that looks like this.
pub(super) fn said(config: &Config, me: NodeKey, mesh: MeshId, view: &View) -> Said {
    let named: Vec<NodeId> = config.mesh.pickups.iter().filter_map(|name| view.find(name).ok()).collect();
    let pickups = match config.mesh.reach {
        Reach::DialsOut | Reach::Windows if config.mesh.pickups.is_empty() => {
            chosen_pickups(&config.mesh.site, &me.id(), view.records())
        }
        _ => named,
    };
    Said {
        label: label(config).into(),
        site: config.mesh.site.clone(),
        addresses: addresses(config),
        reach: config.mesh.reach,
        serves: serves(config),
        egress: config.mesh.egress.clone(),
        pickups: pickups.into_iter().take(PICKUPS_MAX).collect(),
        holds_days: config.mesh.holds_days,
        link_cost: config.mesh.link_cost,
        ..Said::new(me, mesh, 0)
    }
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

/// Returns who is to hold the mail of a host that cannot be dialled and names nobody: members that can be, those
/// first that hold mail at all, then those that were chosen before, which saves everybody a new way, then the
/// near ones; of equals such that not all hosts choose the same. Whom there is a link with at the moment
/// is of no matter: the links change, and others route by what is said here.
fn chosen_pickups(site: &str, me: &NodeId, records: &BTreeMap<NodeId, Said>) -> Vec<NodeId> {
    let before = records.get(me).map(|said| said.pickups.as_slice()).unwrap_or_default();
    let rank = |(id, said): (&NodeId, &Said)| {
        let is_far = site.is_empty() || *said.site != *site;
        (said.holds_days == 0, !before.contains(id), is_far, between(me, id), *id)
    };
    let others = records.iter().filter(|(id, said)| *id != me && said.reach == Reach::Public);
    let ranked: BTreeSet<_> = others.map(rank).collect();
    ranked.into_iter().take(PICKUPS_MAX).map(|(.., id)| id).collect()
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
    #[test]
    fn who_cannot_be_dialled_and_names_nobody_leaves_its_mail_with_those_that_hold_mail() {
        let key = |n: u8| postroad_mesh::SecretKey::from_seed(&[n; 32]).public();
        let record = |n: u8, holds_days: u16, site: &str| {
            let said = Said { holds_days, site: site.into(), ..Said::new(key(n), MeshId::from_octets([0; 32]), 1) };
            (key(n).id(), said)
        };
        let me = key(0).id();
        let chosen = |records: &BTreeMap<NodeId, Said>| chosen_pickups("cellar", &me, records);
        let mut records: BTreeMap<NodeId, Said> =
            [record(0, 0, "cellar"), record(1, 0, "attic"), record(2, 0, "cellar"), record(3, 9, "attic")].into();
        assert_eq!(chosen(&records), [key(3).id(), key(2).id(), key(1).id()]);
        records.get_mut(&key(2).id()).expect("it is there").reach = Reach::DialsOut;
        assert_eq!(chosen(&records), [key(3).id(), key(1).id()], "nobody can dial that one either");
        records.extend((4..12).map(|n| record(n, 9, "attic")));
        let three = chosen(&records);
        assert!(three.len() == PICKUPS_MAX && three.iter().all(|id| records[id].holds_days > 0));
        // Once said, it stays so, whoever comes.
        records.get_mut(&me).expect("it is there").pickups = three.clone();
        records.extend((12..30).map(|n| record(n, 9, "cellar")));
        assert_eq!(chosen(&records), three);
    }
}
