//! What a node keeps of the mesh on disk, as octets: the statements and records that it knows, and what
//! it alone decided. CBOR, numbered fields, format version 1; fields of later releases are passed over.

use std::collections::BTreeSet;

use minicbor::bytes::{ByteArray, ByteVec};
use minicbor::{Decode, Encode};
use postroad_smtp::Domain;

use crate::caps::Caps;
use crate::directory::Directory;
use crate::invite::{INVITATIONS_MAX, Invitations, Open};
use crate::node::NodeId;
use crate::record::Record;
use crate::roster::Roster;
use crate::statement::{GRANTED_DOMAINS_MAX, Statement, StatementId, TEXT_OCTETS_MAX};
use crate::wire::{NOT_CBOR, Wrong, domains, few, text};

/// The format described here.
const VERSION: u8 = 1;
/// The most domains of all members.
const OWNED_MAX: usize = 1 << 20;

/// Octets that cannot be read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArchiveError {
    /// Not what was written.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    /// Written by a release whose format this one does not read.
    #[error("it has format version {0}; this release reads version {VERSION}")]
    Version(u8),
}

/// What a node alone decided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// Whom it invited.
    pub invitations: Invitations,
    /// Who is no member to it, whatever the others say.
    pub refused: Vec<NodeId>,
    /// Whose mail leaves the mesh here as a trickle.
    pub contained: Vec<Contained>,
}

/// The most that are contained.
pub const CONTAINED_MAX: usize = 256;

/// A member whose mail leaves the mesh here as a trickle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contained {
    /// Which.
    pub node: NodeId,
    /// Only what comes by this other member in its name; none: whatever way it comes.
    pub via: Option<NodeId>,
    /// Why, for people.
    pub why: Box<str>,
}

#[derive(Encode, Decode)]
#[cbor(map)]
struct WireDirectory {
    #[n(0)]
    version: u8,
    #[n(1)]
    mesh: ByteArray<32>,
    #[n(2)]
    statements: Vec<ByteVec>,
    #[n(3)]
    records: Vec<ByteVec>,
    /// Whose a domain was: of claims that contradict each other the older one holds.
    #[n(4)]
    owners: Option<Vec<(String, Vec<ByteArray<32>>)>>,
}

#[derive(Encode, Decode)]
#[cbor(map)]
struct WireOwn {
    #[n(0)]
    version: u8,
    #[n(1)]
    invitations: Vec<WireOpen>,
    #[n(2)]
    refused: Vec<ByteArray<32>>,
    #[n(3)]
    contained: Option<Vec<WireContained>>,
}

#[derive(Encode, Decode)]
#[cbor(map)]
struct WireContained {
    #[n(0)]
    node: ByteArray<32>,
    #[n(1)]
    via: Option<ByteArray<32>>,
    #[n(2)]
    why: String,
}

#[derive(Encode, Decode)]
#[cbor(map)]
struct WireOpen {
    #[n(0)]
    secret: ByteArray<16>,
    #[n(1)]
    until: u64,
    #[n(2)]
    uses: u32,
    #[n(3)]
    caps: u32,
    #[n(4)]
    serves: Vec<String>,
}

/// Returns everything that a directory knows, as octets.
pub fn write(directory: &Directory) -> Vec<u8> {
    let statements = directory.roster().statements().values();
    let owners = directory
        .owners()
        .iter()
        .map(|(domain, nodes)| (domain.to_string(), nodes.iter().map(|node| (*node.octets()).into()).collect()));
    let wire = WireDirectory {
        version: VERSION,
        mesh: (*directory.roster().mesh().octets()).into(),
        statements: statements.map(|statement| statement.to_octets().into()).collect(),
        records: directory.records().values().map(|record| record.to_octets().into()).collect(),
        owners: (!directory.owners().is_empty()).then(|| owners.collect()),
    };
    minicbor::to_vec(wire).expect("memory takes what is written")
}

/// Reads what [`write()`] wrote, at `now`, with what DNS proves. Records of a format that this release does not read are left
/// out, to be heard again.
///
/// # Errors
/// When it is damaged or of another version. Nothing in it is believed without its signature.
pub fn read(octets: &[u8], proofs: BTreeSet<(NodeId, Domain)>, now: u64) -> Result<Directory, ArchiveError> {
    check_version(octets, VERSION)?;
    let wire: WireDirectory = minicbor::decode(octets).map_err(|_| NOT_CBOR)?;
    let mut statements = Vec::with_capacity(wire.statements.len());
    for octets in &wire.statements {
        statements.push(Statement::from_octets(octets).map_err(|_| "a statement that is none")?);
    }
    let mesh = StatementId::from_octets(*wire.mesh);
    let founding = statements.iter().find(|statement| statement.id() == mesh).ok_or("nothing founds the mesh")?;
    let roster = Roster::new(founding.clone()).map_err(|_| "nothing founds the mesh")?;
    let mut directory = Directory::new(roster);
    directory.take_statements(statements);
    for (domain, nodes) in few(wire.owners.unwrap_or_default(), OWNED_MAX)? {
        let domain = domain.parse().map_err(|_| "a domain that is none")?;
        directory.remember(domain, nodes.iter().map(|node| NodeId::from_octets(**node)).collect());
    }
    directory.take_proofs(proofs);
    directory.take_records(wire.records.iter().filter_map(|octets| Record::from_octets(octets).ok()), now);
    Ok(directory)
}

impl Own {
    /// Returns it as octets.
    pub fn to_octets(&self) -> Vec<u8> {
        let open = |open: &Open| WireOpen {
            secret: open.secret.into(),
            until: open.until,
            uses: open.uses,
            caps: open.caps.bits(),
            serves: open.serves.iter().map(Domain::to_string).collect(),
        };
        let contained = |contained: &Contained| WireContained {
            node: (*contained.node.octets()).into(),
            via: contained.via.map(|via| (*via.octets()).into()),
            why: contained.why.to_string(),
        };
        let wire = WireOwn {
            version: VERSION,
            invitations: self.invitations.open().iter().map(open).collect(),
            refused: self.refused.iter().map(|id| (*id.octets()).into()).collect(),
            contained: (!self.contained.is_empty()).then(|| self.contained.iter().map(contained).collect()),
        };
        minicbor::to_vec(wire).expect("memory takes what is written")
    }

    /// Reads what [`Own::to_octets`] wrote.
    ///
    /// # Errors
    /// When it is damaged or of another version.
    pub fn from_octets(octets: &[u8]) -> Result<Own, ArchiveError> {
        check_version(octets, VERSION)?;
        let wire: WireOwn = minicbor::decode(octets).map_err(|_| NOT_CBOR)?;
        let mut invitations = Invitations::default();
        for open in few(wire.invitations, INVITATIONS_MAX)? {
            let serves = domains(open.serves, GRANTED_DOMAINS_MAX)?;
            let caps = Caps::from_bits(open.caps);
            // What has ended since goes when the next one is added.
            invitations.add(Open { secret: *open.secret, until: open.until, uses: open.uses, caps, serves }, 0);
        }
        let mut contained = Vec::new();
        for WireContained { node, via, why } in few(wire.contained.unwrap_or_default(), CONTAINED_MAX)? {
            let via = via.map(|via| NodeId::from_octets(*via));
            contained.push(Contained { node: NodeId::from_octets(*node), via, why: text(Some(why), TEXT_OCTETS_MAX)? });
        }
        let refused = wire.refused.iter().map(|id| NodeId::from_octets(**id)).collect();
        Ok(Own { invitations, refused, contained })
    }
}

/// Checks the number under the key 0.
pub(crate) fn check_version(octets: &[u8], wanted: u8) -> Result<(), ArchiveError> {
    #[derive(Decode)]
    #[cbor(map)]
    struct Version {
        #[n(0)]
        version: u8,
    }
    let Version { version } = minicbor::decode(octets).map_err(|_| NOT_CBOR)?;
    if version == wanted { Ok(()) } else { Err(ArchiveError::Version(version)) }
}

impl From<Wrong> for ArchiveError {
    fn from(what: Wrong) -> ArchiveError {
        ArchiveError::Damaged(what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::SecretKey;
    use crate::record::Said;
    use crate::statement::{Policy, What};

    fn key(seed: u8) -> SecretKey {
        SecretKey::from_seed(&[seed; 32])
    }

    fn directory() -> Directory {
        let mut roster = Roster::new(Statement::found(&key(1), Policy::DEFAULT, "test", 5)).expect("it founds");
        let head = roster.next_head(&key(1).public().id(), 6);
        let what = What::Admit { node: key(2).public(), caps: Caps::RELAY, serves: Vec::new(), label: "b".into() };
        roster.merge([Statement::new(&key(1), head, what)]);
        let mesh = roster.mesh();
        let mut directory = Directory::new(roster);
        let record = |seed: u8| Record::sign(&key(seed), &Said::new(key(seed).public(), mesh, 3)).expect("sound");
        directory.take_records([record(1), record(2)], 0);
        directory
    }

    #[test]
    fn a_directory_reads_back_and_damage_is_found() {
        let octets = write(&directory());
        let read_back = read(&octets, BTreeSet::new(), 9).expect("sound");
        assert_eq!(write(&read_back), octets);
        assert_eq!((read_back.roster().members().len(), read_back.records().len()), (2, 2));
        for place in 0..octets.len() {
            let mut damaged = octets.clone();
            damaged[place] ^= 1;
            // A record that is damaged is left out; nothing else is got over.
            if let Ok(read) = read(&damaged, BTreeSet::new(), 9) {
                assert!(read.roster().members().len() == 2 && read.records().len() < 2, "octet {place}");
            }
        }
    }

    #[test]
    fn what_was_decided_reads_back_and_another_version_is_refused() {
        let mut own = Own { refused: vec![key(3).public().id()], ..Own::default() };
        let serves = vec!["lab.example".parse().expect("a domain")];
        own.invitations.add(Open { secret: [7; 16], until: 99, uses: 2, caps: Caps::RELAY, serves }, 5);
        let octets = own.to_octets();
        assert_eq!(Own::from_octets(&octets), Ok(own.clone()));
        let by_way = |via| Contained { node: key(4).public().id(), via, why: "spam".into() };
        own.contained = vec![by_way(None), by_way(Some(key(5).public().id()))];
        assert_eq!(Own::from_octets(&own.to_octets()), Ok(own));
        let mut later = octets;
        // A map, the key 0, the version.
        assert_eq!(later[..3], [0xa3, 0, VERSION]);
        later[2] = 2;
        assert_eq!(Own::from_octets(&later), Err(ArchiveError::Version(2)));
        assert!(Own::from_octets(b"").is_err());
    }
}
