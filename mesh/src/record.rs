//! What a node says of itself: where it is reached, what it serves, where it sends mail out, whom it
//! has links with. Signed by the node alone; the one with the highest sequence counts.
//!
//! A [`Record`] was checked: its signature, its limits, its form. Whether its node is a member, and
//! which of the domains in it are its own, is for `directory` and `roster` to say.
//!
//! On the wire: CBOR, numbered fields, format version 1, kept as it was signed.

use std::fmt;
use std::str::FromStr;

use minicbor::bytes::ByteArray;
use minicbor::{Decode, Encode};
use postroad_smtp::Domain;

use crate::node::{NodeId, NodeKey, Purpose, SecretKey, Signature, base32, sha256};
use crate::statement::{MeshId, StatementId};
use crate::wire::{NOT_CBOR, Wrong, domains, few, text, with_signature, without_signature};

/// The most octets of a record, signature not counted.
pub const RECORD_OCTETS_MAX: usize = 4096;
/// The most addresses of a node.
pub const ADDRESSES_MAX: usize = 8;
/// The most domains that a node serves, and that one egress offer names.
pub const DOMAINS_MAX: usize = 64;
/// The most egress offers of a node.
pub const EGRESS_MAX: usize = 16;
/// The most nodes that hold mail for one that sleeps.
pub const PICKUPS_MAX: usize = 3;
/// The most links that a node lists.
pub const LINKS_MAX: usize = 64;
/// The longest label, in octets.
pub const LABEL_OCTETS_MAX: usize = 64;
/// The format described here.
const VERSION: u8 = 1;

/// A record whose signature holds.
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    octets: Box<[u8]>,
    signature: Signature,
    id: NodeId,
    fingerprint: [u8; 32],
    said: Said,
}

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// The node.
    pub node: NodeKey,
    /// The mesh that it speaks in.
    pub mesh: MeshId,
    /// Which of its records counts: the highest.
    pub sequence: u64,
    /// Its name, for people.
    pub label: Box<str>,
    /// Nodes of one site fail together: power, uplink, building.
    pub site: Box<str>,
    /// Where it is reached, the best first.
    pub addresses: Vec<Address>,
    /// How it is reached.
    pub reach: Reach,
    /// The domains whose mail it takes.
    pub serves: Vec<Domain>,
    /// Where it sends mail out to.
    pub egress: Vec<Egress>,
    /// The nodes that hold its mail while it sleeps. A node that cannot be dialled dials these, and gets its
    /// mail from them alone.
    pub pickups: Vec<NodeId>,
    /// How long it holds mail for nodes that name it as pick-up, in days; 0: not at all.
    pub holds_days: u16,
    /// The members it can reach, and at what cost.
    pub links: Vec<Link>,
    /// What its links cost to members that it does not list, all of them that can be dialled by one
    /// of the two ends; within a site they cost 1. 0: there are none but those listed.
    pub link_cost: u16,
}

/// An address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// A host name or an IP address.
    pub host: Box<str>,
    /// The port.
    pub port: u16,
    /// Whether TLS begins with the first octet there.
    pub implicit_tls: bool,
}

/// How a node is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// Anybody can dial it at any time.
    #[default]
    Public,
    /// Nobody can dial it; it dials others and keeps the session.
    DialsOut,
    /// It is there now and then.
    Windows,
}

/// An offer to send mail out of the mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Egress {
    /// The domains it is for, with all below them; empty: every domain.
    pub to: Vec<Domain>,
    /// The domains of senders for which this host may speak (SPF); empty: nothing is known.
    pub from: Vec<Domain>,
    /// What it costs.
    pub cost: u16,
    /// The largest message, in octets; 0: no limit.
    pub octets_max: u64,
}

/// A link to another member. It counts when that one lists it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The other end.
    pub to: NodeId,
    /// What it costs.
    pub cost: u16,
}

/// Why octets are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Longer than [`RECORD_OCTETS_MAX`].
    #[error("the record is longer than {RECORD_OCTETS_MAX} octets")]
    TooLong,
    /// Not the CBOR that a record is, or a limit is exceeded.
    #[error("the record is malformed: {0}")]
    Malformed(&'static str),
    /// Made by a release whose format this one does not read.
    #[error("the record has format version {0}; this release reads version {VERSION}")]
    Version(u8),
    /// Its signature does not hold.
    #[error("the signature of the record does not hold")]
    Signature,
}

/// To, from, cost, octets.
type WireEgress = (Vec<String>, Vec<String>, u16, u64);

#[derive(Encode, Decode)]
#[cbor(map)]
struct Wire {
    #[n(0)]
    version: u8,
    #[n(1)]
    node: ByteArray<32>,
    #[n(2)]
    mesh: ByteArray<32>,
    #[n(3)]
    sequence: u64,
    #[n(4)]
    label: Option<String>,
    #[n(5)]
    site: Option<String>,
    /// Host, port, flags: 1 TLS at once.
    #[n(6)]
    addresses: Option<Vec<(String, u16, u8)>>,
    #[n(7)]
    reach: Option<u8>,
    #[n(8)]
    serves: Option<Vec<String>>,
    #[n(9)]
    egress: Option<Vec<WireEgress>>,
    #[n(10)]
    pickups: Option<Vec<ByteArray<32>>>,
    #[n(11)]
    holds_days: Option<u16>,
    #[n(12)]
    links: Option<Vec<(ByteArray<32>, u16)>>,
    #[n(13)]
    link_cost: Option<u16>,
}

impl Said {
    /// Returns what a node says that says nothing.
    pub fn new(node: NodeKey, mesh: MeshId, sequence: u64) -> Said {
        Said {
            node,
            mesh,
            sequence,
            label: Box::default(),
            site: Box::default(),
            addresses: Vec::new(),
            reach: Reach::default(),
            serves: Vec::new(),
            egress: Vec::new(),
            pickups: Vec::new(),
            holds_days: 0,
            links: Vec::new(),
            link_cost: 0,
        }
    }
}

impl Record {
    /// Signs what a node says of itself.
    ///
    /// # Errors
    ///
    /// When a limit is exceeded, or the key is another node's.
    pub fn sign(key: &SecretKey, said: &Said) -> Result<Record, RecordError> {
        let octets = minicbor::to_vec(wire(said)).expect("memory takes what is written");
        let signature = key.sign(Purpose::Record, &octets);
        Record::read(&octets, signature)
    }

    /// Reads a record from its octets and their signature, and checks both.
    ///
    /// # Errors
    ///
    /// When it is malformed, of another version, or not signed by its node.
    pub fn read(octets: &[u8], signature: Signature) -> Result<Record, RecordError> {
        if octets.len() > RECORD_OCTETS_MAX {
            return Err(RecordError::TooLong);
        }
        let wire: Wire = minicbor::decode(octets).map_err(|_| NOT_CBOR)?;
        if wire.version != VERSION {
            return Err(RecordError::Version(wire.version));
        }
        let node = NodeKey::from_octets(*wire.node);
        if !node.verifies(Purpose::Record, octets, &signature) {
            return Err(RecordError::Signature);
        }
        let fingerprint = sha256(&[octets]);
        Ok(Record { octets: octets.into(), signature, id: node.id(), fingerprint, said: said(wire, node)? })
    }

    /// Returns the node.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// Returns what it says.
    pub fn said(&self) -> &Said {
        &self.said
    }

    /// Returns the SHA-256 of what was signed.
    pub fn fingerprint(&self) -> &[u8; 32] {
        &self.fingerprint
    }

    /// Returns whether this record counts rather than another of the same node. Of two with the same
    /// sequence, which an honest node does not make, the one that all nodes choose alike.
    pub fn supersedes(&self, other: &Record) -> bool {
        (self.said.sequence, self.fingerprint) > (other.said.sequence, other.fingerprint)
    }

    /// Returns the octets and their signature as one, for files and the wire.
    pub fn to_octets(&self) -> Vec<u8> {
        with_signature(&self.octets, &self.signature)
    }

    /// Reads what [`Record::to_octets`] wrote.
    ///
    /// # Errors
    ///
    /// As [`Record::read`].
    pub fn from_octets(octets: &[u8]) -> Result<Record, RecordError> {
        let (octets, signature) = without_signature(octets)?;
        Record::read(&octets, signature)
    }
}

fn wire(said: &Said) -> Wire {
    let names = |domains: &[Domain]| domains.iter().map(Domain::to_string).collect::<Vec<_>>();
    let some = |names: Vec<String>| (!names.is_empty()).then_some(names);
    let address = |address: &Address| (address.host.to_string(), address.port, u8::from(address.implicit_tls));
    let egress = |offer: &Egress| (names(&offer.to), names(&offer.from), offer.cost, offer.octets_max);
    Wire {
        version: VERSION,
        node: (*said.node.octets()).into(),
        mesh: (*said.mesh.octets()).into(),
        sequence: said.sequence,
        label: Some(said.label.to_string()),
        site: Some(said.site.to_string()),
        addresses: Some(said.addresses.iter().map(address).collect()),
        reach: Some(said.reach as u8),
        serves: some(names(&said.serves)),
        egress: (!said.egress.is_empty()).then(|| said.egress.iter().map(egress).collect()),
        pickups: (!said.pickups.is_empty()).then(|| said.pickups.iter().map(|id| (*id.octets()).into()).collect()),
        holds_days: (said.holds_days > 0).then_some(said.holds_days),
        links: (!said.links.is_empty())
            .then(|| said.links.iter().map(|link| ((*link.to.octets()).into(), link.cost)).collect()),
        link_cost: (said.link_cost > 0).then_some(said.link_cost),
    }
}

fn said(wire: Wire, node: NodeKey) -> Result<Said, RecordError> {
    let egress = |(to, from, cost, octets_max): WireEgress| -> Result<Egress, Wrong> {
        Ok(Egress { to: domains(to, DOMAINS_MAX)?, from: domains(from, DOMAINS_MAX)?, cost, octets_max })
    };
    let link = |(to, cost): (ByteArray<32>, u16)| Link { to: NodeId::from_octets(*to), cost };
    Ok(Said {
        node,
        mesh: StatementId::from_octets(*wire.mesh),
        sequence: wire.sequence,
        label: text(wire.label, LABEL_OCTETS_MAX)?,
        site: text(wire.site, LABEL_OCTETS_MAX)?,
        addresses: few(wire.addresses.unwrap_or_default(), ADDRESSES_MAX)?
            .into_iter()
            .map(address)
            .collect::<Result<_, _>>()?,
        reach: match wire.reach.unwrap_or_default() {
            1 => Reach::DialsOut,
            2 => Reach::Windows,
            _ => Reach::Public,
        },
        serves: domains(wire.serves.unwrap_or_default(), DOMAINS_MAX)?,
        egress: few(wire.egress.unwrap_or_default(), EGRESS_MAX)?.into_iter().map(egress).collect::<Result<_, _>>()?,
        pickups: few(wire.pickups.unwrap_or_default(), PICKUPS_MAX)?
            .into_iter()
            .map(|id| NodeId::from_octets(*id))
            .collect(),
        holds_days: wire.holds_days.unwrap_or_default(),
        links: few(wire.links.unwrap_or_default(), LINKS_MAX)?.into_iter().map(link).collect(),
        link_cost: wire.link_cost.unwrap_or_default(),
    })
}

fn address((host, port, flags): (String, u16, u8)) -> Result<Address, RecordError> {
    let is_ip = host.parse::<std::net::IpAddr>().is_ok();
    if !is_ip && host.parse::<Domain>().is_err() {
        return Err("an address that is neither a host name nor an IP address".into());
    }
    Ok(Address { host: host.into(), port, implicit_tls: flags & 1 != 0 })
}

/// The text is no address: `host:port`, or `host:port/tls` where TLS begins at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an address is host:port, or host:port/tls where TLS begins at once")]
pub struct AddressError;

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Address, AddressError> {
        let (rest, implicit_tls) = text.strip_suffix("/tls").map_or((text, false), |rest| (rest, true));
        let (host, port) = rest.rsplit_once(':').ok_or(AddressError)?;
        let port = port.parse().map_err(|_| AddressError)?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let is_ipv6 = |host: &str| host.parse::<std::net::Ipv6Addr>().is_ok();
        let host = match bracketed {
            Some(host) if is_ipv6(host) => host,
            None if !is_ipv6(host) => host,
            _ => return Err(AddressError),
        };
        address((host.to_owned(), port, u8::from(implicit_tls))).map_err(|_| AddressError)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tls = if self.implicit_tls { "/tls" } else { "" };
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}{tls}", self.host, self.port),
            false => write!(f, "{}:{}{tls}", self.host, self.port),
        }
    }
}

impl From<Wrong> for RecordError {
    fn from(what: Wrong) -> RecordError {
        RecordError::Malformed(what)
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Record {}/{} of {:?}", self.said.sequence, &base32(&self.fingerprint)[..8], self.id)
    }
}
