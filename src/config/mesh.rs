//! `[mesh]`: what this host says of itself to the members of a mesh, and how members reach it. None of
//! it makes a mesh; that is done by `postroad mesh invite` and `postroad mesh join`.

use std::time::Duration;

use postroad_mesh::NodeId;
use postroad_mesh::quota::Quota;
use postroad_mesh::record::{
    ADDRESSES_MAX, Address, DOMAINS_MAX, EGRESS_MAX, Egress, LABEL_OCTETS_MAX, PICKUPS_MAX, Reach,
};
use postroad_mesh::spread::Profile;
use postroad_smtp::Domain;
use toml::Spanned;
use toml::de::DeValue;

use super::read::plain;
use super::section::{Faults, Section};
use super::value::{self, Read};

/// What a link costs where nobody says otherwise.
pub const LINK_COST_DEFAULT: u16 = 10;
/// What an egress costs where nobody says otherwise.
const EGRESS_COST_DEFAULT: u16 = 10;
/// The longest time that mail is held for a node that sleeps, in days.
const HOLDS_DAYS_MAX: u64 = 365;
/// The most addresses of members that are configured.
const PEERS_MAX: usize = 64;
/// The longest name of an interface, in octets (IFNAMSIZ less one).
const INTERFACE_OCTETS_MAX: usize = 15;
const DAY: Duration = Duration::from_secs(86_400);
/// How long an old key is good where nobody says otherwise.
const OLD_KEY_DEFAULT: Duration = Duration::from_secs(30 * 86_400);

/// `[mesh]`; its `listen` is in [`Listen`](super::Listen).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mesh {
    /// Where members reach this host, the best first; default the hostname and the first port of
    /// `listen.smtp`.
    pub addresses: Vec<Address>,
    /// Below which name DNS says where members are; default none: it is not asked.
    pub domain: Option<Domain>,
    /// Where members are that were not found otherwise: tried before what they say of themselves. Default none.
    pub peers: Vec<(NodeId, Address)>,
    /// Where it speaks multicast DNS with members; default nowhere.
    pub mdns: Mdns,
    /// Its name, for people; `None`: the hostname.
    pub label: Option<Box<str>>,
    /// Hosts of one site fail together; default none.
    pub site: Box<str>,
    /// How often it compares what it knows; default `wan`.
    pub profile: Profile,
    /// How it is reached; default `public`.
    pub reach: Reach,
    /// The domains that it takes mail for; `None`: the local ones.
    pub serves: Option<Vec<Domain>>,
    /// Where it sends mail out to for others; default nowhere.
    pub egress: Vec<Egress>,
    /// Whether it takes mail for domains of other members from everybody; default no.
    pub mx: bool,
    /// Members that it dials for its mail and that hold it meanwhile, by label or id; of a host that cannot be
    /// dialled and names none, such as it chooses.
    pub pickups: Vec<Box<str>>,
    /// How long it holds mail for members that name it in `pickups`, in days; default 0: not at all.
    pub holds_days: u16,
    /// How long a key that this host gave up is good for members that have not heard of the next one; default 30 days.
    pub old_key: Duration,
    /// Members that may look into its queue, beside those with the right to; default none.
    pub readers: Vec<NodeId>,
    /// Members that may also steer its queue; default none.
    pub operators: Vec<NodeId>,
    /// What its links to other sites cost; default 10. Within a site it is 1.
    pub link_cost: u16,
    /// What each member may hand over for outside the mesh, in an hour.
    pub quota: Quota,
}

/// Where multicast DNS is spoken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Mdns {
    /// Nowhere.
    #[default]
    Off,
    /// At all interfaces that are up, carry multicast and lead to more hosts than one.
    All,
    /// At these interfaces.
    On(Vec<Box<str>>),
}

const PROFILES: &[(&str, Profile)] =
    &[("lan", Profile::Lan), ("wan", Profile::Wan), ("quiet", Profile::Quiet), ("metered", Profile::Metered)];
const REACHES: &[(&str, Reach)] =
    &[("public", Reach::Public), ("dials-out", Reach::DialsOut), ("windows", Reach::Windows)];

/// Reads the section; its key `listen` was asked for already.
pub(super) fn mesh(mut s: Section<'_>, faults: &Faults) -> Mesh {
    let mesh = Mesh {
        addresses: few(&mut s, "addresses", ADDRESSES_MAX, faults, address).unwrap_or_default(),
        domain: s.get("domain", value::domain).map(Spanned::into_inner),
        peers: few(&mut s, "peers", PEERS_MAX, faults, peer).unwrap_or_default(),
        mdns: mdns(&mut s),
        label: s.get("label", label).map(Spanned::into_inner),
        site: s.or("site", "".into(), label),
        profile: s.or("profile", Profile::Wan, value::choice(PROFILES)),
        reach: s.or("reach", Reach::Public, value::choice(REACHES)),
        serves: few(&mut s, "serves", DOMAINS_MAX, faults, value::domain),
        egress: egress(&mut s, faults),
        mx: s.or("mx", false, value::boolean),
        pickups: few(&mut s, "pickups", PICKUPS_MAX, faults, label).unwrap_or_default(),
        holds_days: whole_days(s.or("holds", Duration::ZERO, value::duration(Duration::ZERO..=holds_max()))),
        old_key: s.or("old_key", OLD_KEY_DEFAULT, value::duration(DAY / 24..=DAY * 365)),
        readers: s.list("readers", node).map(plain).unwrap_or_default(),
        operators: s.list("operators", node).map(plain).unwrap_or_default(),
        link_cost: s.or("link_cost", LINK_COST_DEFAULT, cost(1)),
        quota: quota(s.section("quota")),
    };
    s.finish();
    mesh
}

/// `[mesh.quota]`: generous to people and their programs, not to who writes to the whole world.
fn quota(mut s: Section<'_>) -> Quota {
    let count = || value::integer(1..=1 << 40);
    let quota = Quota {
        messages: s.or("messages", 5_000, count()),
        octets: s.or("data", 5_000_000_000, value::size(1..=1 << 50)),
        recipients: s.or("recipients", 10_000, count()),
        new_domains: s.or("new_domains", 1_000, count()),
        all_messages: s.or("all_messages", 200_000, count()),
        all_octets: s.or("all_data", 100_000_000_000, value::size(1..=1 << 50)),
    };
    s.finish();
    quota
}

/// A list that fits the record.
fn few<T>(
    s: &mut Section<'_>,
    key: &'static str,
    max: usize,
    faults: &Faults,
    read: impl Fn(&DeValue<'_>) -> Read<T>,
) -> Option<Vec<T>> {
    let list = s.list(key, read)?;
    if list.get_ref().len() > max {
        let message = format!("`{key}` names {} of them; at most {max} are used", list.get_ref().len());
        faults.conflict(list.span(), message, format!("keep the {max} that matter most"));
    }
    Some(plain(list))
}

/// `true`, or the names of interfaces.
fn mdns(s: &mut Section<'_>) -> Mdns {
    if s.holds_boolean("mdns") {
        return if s.or("mdns", false, value::boolean) { Mdns::All } else { Mdns::Off };
    }
    let names = s.list("mdns", interface).map(plain).unwrap_or_default();
    if names.is_empty() { Mdns::Off } else { Mdns::On(names) }
}

/// `true`, or `[[mesh.egress]]` once for each offer.
fn egress(s: &mut Section<'_>, faults: &Faults) -> Vec<Egress> {
    if s.holds_boolean("egress") {
        let everywhere = s.or("egress", false, value::boolean);
        return everywhere.then(|| Egress { cost: EGRESS_COST_DEFAULT, ..Egress::default() }).into_iter().collect();
    }
    let sections = s.sections("egress");
    if let Some(surplus) = sections.get(EGRESS_MAX) {
        let message = format!("members are told at most {EGRESS_MAX} offers");
        faults.conflict(surplus.span(), message, "put domains with the same cost into one");
    }
    sections.into_iter().map(|s| offer(s, faults)).collect()
}

fn offer(mut s: Section<'_>, faults: &Faults) -> Egress {
    let offer = Egress {
        to: few(&mut s, "to", DOMAINS_MAX, faults, value::domain).unwrap_or_default(),
        from: few(&mut s, "from", DOMAINS_MAX, faults, value::domain).unwrap_or_default(),
        cost: s.or("cost", EGRESS_COST_DEFAULT, cost(0)),
        octets_max: s.or("message_size", 0, value::size(1..=1 << 50)),
    };
    s.finish();
    offer
}

fn cost(least: u64) -> impl Fn(&DeValue<'_>) -> Read<u16> {
    let read = value::integer(least..=60_000);
    move |found| read(found).map(|cost| u16::try_from(cost).expect("the range fits 16 bits"))
}

fn holds_max() -> Duration {
    DAY * u32::try_from(HOLDS_DAYS_MAX).expect("a year has few days")
}

/// A day that was begun counts whole.
fn whole_days(time: Duration) -> u16 {
    u16::try_from(time.as_secs().div_ceil(DAY.as_secs())).expect("the range is a year")
}

/// A name for people, as records take it.
fn label(found: &DeValue<'_>) -> Read<Box<str>> {
    match found.as_str() {
        Some(text) if text.len() <= LABEL_OCTETS_MAX && !text.chars().any(char::is_control) => Ok(text.into()),
        Some(_) => value::refuse(format!("it is longer than {LABEL_OCTETS_MAX} octets"), "write a shorter name"),
        None => value::refuse("expected a text", "write for example \"hq\""),
    }
}

/// The name of an interface, as Linux takes it.
fn interface(found: &DeValue<'_>) -> Read<Box<str>> {
    let is_name = |text: &str| {
        let is_char = |c: char| !c.is_whitespace() && !c.is_control() && c != '/';
        (1..=INTERFACE_OCTETS_MAX).contains(&text.len()) && text.chars().all(is_char)
    };
    match found.as_str() {
        Some(text) if is_name(text) => Ok(text.into()),
        _ => value::refuse(
            "this is no name of an interface",
            "write for example mdns = [\"eth0\"], or mdns = true for all",
        ),
    }
}

/// A node by its whole id: names are what members call themselves.
fn node(found: &DeValue<'_>) -> Read<NodeId> {
    let remedy = "write the whole id, as `postroad mesh status --json` has it";
    match found.as_str().map(str::parse) {
        Some(Ok(node)) => Ok(node),
        Some(Err(_)) => value::refuse("this is no id of a node", remedy),
        None => value::refuse("expected a text", remedy),
    }
}

/// A node and an address of it.
fn peer(found: &DeValue<'_>) -> Read<(NodeId, Address)> {
    let remedy = "write \"ID@mx.example.org:25\" with the whole id, as `postroad mesh status --json` has it";
    let read = |text: &str| {
        let (node, address) = text.split_once('@')?;
        Some((node.parse().ok()?, address.parse().ok()?))
    };
    match found.as_str().map(read) {
        Some(Some(peer)) => Ok(peer),
        Some(None) => value::refuse("this is no id of a node with an address", remedy),
        None => value::refuse("expected a text", remedy),
    }
}

fn address(found: &DeValue<'_>) -> Read<Address> {
    let remedy = "write \"mx.example.org:25\", or \"mx.example.org:4465/tls\" where TLS begins at once";
    match found.as_str().map(str::parse) {
        Some(Ok(address)) => Ok(address),
        Some(Err(_)) => value::refuse("this is no host with a port", remedy),
        None => value::refuse("expected a text", remedy),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    fn read(value: &str) -> Result<Mdns, String> {
        let config = Config::from_str(&format!("[mesh]\nmdns = {value}"), "test", Path::new("/"));
        config.map(|config| config.mesh.mdns).map_err(|faults| faults.to_string())
    }

    #[test]
    fn multicast_dns_is_spoken_where_somebody_says_so() {
        assert_eq!(Config::default().mesh.mdns, Mdns::Off);
        assert_eq!([read("false"), read("[]"), read("true")], [Ok(Mdns::Off), Ok(Mdns::Off), Ok(Mdns::All)]);
        assert_eq!(read("[\"eth0\", \"br-lan\"]"), Ok(Mdns::On(vec!["eth0".into(), "br-lan".into()])));
        for fault in ["\"eth0\"", "1", "[\"\"]", "[\"a/b\"]", "[\"sixteen-octets-x\"]", "[true]"] {
            let said = read(fault).expect_err(fault);
            assert!(said.contains("mdns"), "{said}");
        }
    }
}
