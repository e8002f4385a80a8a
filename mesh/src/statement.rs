//! Signed statements about who is a member: the only authority there is in a mesh.
//!
//! Each names the mesh it belongs to, and the one that its signer made before, so that a node's
//! statements are a chain: once a node was revoked, what it says in its past's name is told from
//! what it had said. A [`Statement`] was checked: its signature, its limits, its form. What it is
//! worth is for the `roster` to decide.
//!
//! On the wire: CBOR, numbered fields, format version 1; 2 for one that founds a mesh with several, so that a
//! release that knew of one founder only does not misread it. The octets are kept as they were signed, so
//! that fields of later releases travel through this one unchanged.

use std::fmt;

use minicbor::bytes::ByteArray;
use minicbor::{Decode, Encode};
use postroad_smtp::Domain;

use crate::caps::Caps;
use crate::node::{NodeId, NodeKey, Purpose, SecretKey, Signature, base32, sha256, show_base32};
use crate::wire::{NOT_CBOR, Wrong, domains, few, text, with_signature, without_signature};

/// The most octets of a statement, signature not counted.
pub const STATEMENT_OCTETS_MAX: usize = 4096;
/// The most domains that one admission grants.
pub const GRANTED_DOMAINS_MAX: usize = 32;
/// The longest label or reason, in octets of UTF-8.
pub const TEXT_OCTETS_MAX: usize = 200;
/// The most statements that one node ever makes; a node that needs more rotates its key.
pub const SEQUENCE_MAX: u32 = 4095;
/// How many of these are kept for giving the key up: to go on under another one, and to retire this one.
const SEQUENCES_KEPT: u32 = 2;
/// The most that found a mesh together, beside who signs.
pub const FOUNDERS_MAX: usize = 16;
/// The formats described here.
const VERSION: u8 = 1;
const VERSION_OF_SEVERAL: u8 = 2;

/// The name of a statement: SHA-256 of its octets.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StatementId([u8; 32]);

/// The name of a mesh: that of the statement that founded it.
pub type MeshId = StatementId;

/// A statement whose signature holds.
#[derive(Clone, PartialEq, Eq)]
pub struct Statement {
    id: StatementId,
    octets: Box<[u8]>,
    signature: Signature,
    by: NodeKey,
    by_id: NodeId,
    head: Head,
    what: What,
}

/// What every statement says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The mesh; `None` in the statement that founds it.
    pub mesh: Option<MeshId>,
    /// How many statements its signer made before; at most [`SEQUENCE_MAX`].
    pub sequence: u32,
    /// The last of these.
    pub previous: Option<StatementId>,
    /// When it was made by the signer's clock, in milliseconds since the Unix epoch. For people:
    /// nothing is decided by it.
    pub at: u64,
}

/// What is stated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// There is a mesh, and its signer is its first member.
    Found {
        /// How its members decide.
        policy: Policy,
        /// Its name, for people.
        label: Box<str>,
        /// Who founds it with its signer: members from the beginning, each with a voice of its own.
        founders: Vec<NodeKey>,
    },
    /// This node is a member.
    Admit {
        /// Its key.
        node: NodeKey,
        /// What it may do; what the signer itself may not counts as not said.
        caps: Caps,
        /// The domains whose mail it may take.
        serves: Vec<Domain>,
        /// Its name, for people.
        label: Box<str>,
    },
    /// This node is a member no more.
    Revoke {
        /// It.
        node: NodeId,
        /// The last of its statements that is to stand, with all before it; `None`: none of them.
        upto: Option<StatementId>,
        /// Why, for people.
        reason: Box<str>,
    },
    /// The signer goes on under another key.
    Rotate {
        /// That key.
        to: NodeKey,
    },
    /// The signer leaves.
    Retire,
    /// Something of a later release: kept and passed on, otherwise ignored.
    Unknown(u8),
}

/// How the members of a mesh decide; the same for all its life. Voices are counted by the `roster`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Voices that make a member; at least 1.
    pub admit_by: u8,
    /// Voices that end a membership; at least 1.
    pub revoke_by: u8,
}

/// Why octets are no statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StatementError {
    /// Longer than [`STATEMENT_OCTETS_MAX`].
    #[error("the statement is longer than {STATEMENT_OCTETS_MAX} octets")]
    TooLong,
    /// Not the CBOR that a statement is, or a limit is exceeded.
    #[error("the statement is malformed: {0}")]
    Malformed(&'static str),
    /// Made by a release whose format this one does not read.
    #[error("the statement has format version {0}; this release reads versions up to {VERSION_OF_SEVERAL}")]
    Version(u8),
    /// Its signature, or the consent in it, does not hold.
    #[error("the signature of the statement does not hold")]
    Signature,
    /// Its signer has made as many as one may.
    #[error("a key makes no more than {SEQUENCE_MAX} statements")]
    Spent,
}

#[derive(Encode, Decode)]
#[cbor(map)]
struct Wire {
    #[n(0)]
    version: u8,
    #[n(1)]
    by: ByteArray<32>,
    #[n(2)]
    mesh: Option<ByteArray<32>>,
    #[n(3)]
    sequence: u32,
    #[n(4)]
    previous: Option<ByteArray<32>>,
    #[n(5)]
    at: u64,
    #[n(6)]
    kind: u8,
    /// Founding: voices that admit, voices that revoke.
    #[n(7)]
    policy: Option<(u8, u8)>,
    #[n(8)]
    key: Option<ByteArray<32>>,
    #[n(9)]
    node: Option<ByteArray<32>>,
    #[n(10)]
    caps: Option<u32>,
    #[n(11)]
    serves: Option<Vec<String>>,
    #[n(12)]
    text: Option<String>,
    #[n(13)]
    upto: Option<ByteArray<32>>,
    /// Rotation: the next key's signature over the key that it follows.
    #[n(14)]
    consent: Option<ByteArray<64>>,
    /// Founding, version 2: who founds it as well.
    #[n(15)]
    founders: Option<Vec<ByteArray<32>>>,
}

const FOUND: u8 = 1;
const ADMIT: u8 = 2;
const REVOKE: u8 = 3;
const ROTATE: u8 = 4;
const RETIRE: u8 = 5;

impl Statement {
    /// Founds a mesh.
    pub fn found(founder: &SecretKey, policy: Policy, label: &str, at: u64) -> Statement {
        Statement::found_with(founder, Vec::new(), policy, label, at)
    }

    /// Founds a mesh together with others.
    ///
    /// # Panics
    ///
    /// When there are more than [`FOUNDERS_MAX`], or one stands twice.
    pub fn found_with(founder: &SecretKey, founders: Vec<NodeKey>, policy: Policy, label: &str, at: u64) -> Statement {
        let head = Head { mesh: None, sequence: 0, previous: None, at };
        Statement::sign(founder, head, What::Found { policy, label: label.into(), founders }, None)
    }

    /// States something in a mesh. For a rotation use [`Statement::rotate`].
    ///
    /// # Panics
    ///
    /// Where [`Statement::try_new`] says why not.
    pub fn new(by: &SecretKey, head: Head, what: What) -> Statement {
        Statement::try_new(by, head, what).expect("what is stated keeps the limits")
    }

    /// States something in a mesh, where nobody has looked at the limits yet.
    ///
    /// # Errors
    ///
    /// When it is longer than a statement may be, or the key has made as many as it may: the last ones are kept for
    /// giving it up.
    ///
    /// # Panics
    ///
    /// When it is a rotation.
    pub fn try_new(by: &SecretKey, head: Head, what: What) -> Result<Statement, StatementError> {
        assert!(!matches!(what, What::Rotate { .. } | What::Unknown(_)), "a rotation needs the next key's consent");
        let kept = if what == What::Retire { 0 } else { SEQUENCES_KEPT };
        if head.sequence > SEQUENCE_MAX - kept {
            return Err(StatementError::Spent);
        }
        Statement::try_sign(by, head, what, None)
    }

    /// States that `by` goes on as `to`; both sign.
    pub fn rotate(by: &SecretKey, to: &SecretKey, head: Head) -> Statement {
        let consent = to.sign(Purpose::Rotation, by.public().octets());
        Statement::sign(by, head, What::Rotate { to: to.public() }, Some(consent))
    }

    fn sign(by: &SecretKey, head: Head, what: What, consent: Option<Signature>) -> Statement {
        Statement::try_sign(by, head, what, consent).expect("what is stated keeps the limits")
    }

    fn try_sign(
        by: &SecretKey,
        head: Head,
        what: What,
        consent: Option<Signature>,
    ) -> Result<Statement, StatementError> {
        let key = by.public();
        let octets = minicbor::to_vec(wire(&key, head, &what, consent)).expect("memory takes what is written");
        let signature = by.sign(Purpose::Statement, &octets);
        let statement = Statement::read(&octets, signature)?;
        debug_assert_eq!(statement.what, what);
        Ok(statement)
    }

    /// Reads a statement from its octets and their signature, and checks both.
    ///
    /// # Errors
    ///
    /// When it is malformed, of another version, or not signed by whom it says.
    pub fn read(octets: &[u8], signature: Signature) -> Result<Statement, StatementError> {
        if octets.len() > STATEMENT_OCTETS_MAX {
            return Err(StatementError::TooLong);
        }
        let wire: Wire = minicbor::decode(octets).map_err(|_| NOT_CBOR)?;
        match wire.version {
            VERSION => {}
            VERSION_OF_SEVERAL if wire.kind == FOUND => {}
            version => return Err(StatementError::Version(version)),
        }
        let by = NodeKey::from_octets(*wire.by);
        if !by.verifies(Purpose::Statement, octets, &signature) {
            return Err(StatementError::Signature);
        }
        let head = Head {
            mesh: wire.mesh.as_deref().copied().map(StatementId),
            sequence: wire.sequence,
            previous: wire.previous.as_deref().copied().map(StatementId),
            at: wire.at,
        };
        let what = what(wire, &by)?;
        check_head(&head, &what)?;
        let (id, by_id) = (StatementId(sha256(&[octets])), by.id());
        Ok(Statement { id, octets: octets.into(), signature, by, by_id, head, what })
    }

    /// Returns its name.
    pub fn id(&self) -> StatementId {
        self.id
    }

    /// Returns what was signed.
    pub fn octets(&self) -> &[u8] {
        &self.octets
    }

    /// Returns the signature.
    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// Returns the key of who states it.
    pub fn by(&self) -> &NodeKey {
        &self.by
    }

    /// Returns the name of who states it.
    pub fn by_id(&self) -> NodeId {
        self.by_id
    }

    /// Returns what it says of itself.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Returns what is stated.
    pub fn what(&self) -> &What {
        &self.what
    }

    /// Returns the octets and their signature as one, for files and the wire.
    pub fn to_octets(&self) -> Vec<u8> {
        with_signature(&self.octets, &self.signature)
    }

    /// Reads what [`Statement::to_octets`] wrote.
    ///
    /// # Errors
    ///
    /// As [`Statement::read`].
    pub fn from_octets(octets: &[u8]) -> Result<Statement, StatementError> {
        let (octets, signature) = without_signature(octets)?;
        Statement::read(&octets, signature)
    }
}

fn wire(by: &NodeKey, head: Head, what: &What, consent: Option<Signature>) -> Wire {
    let mut wire = Wire {
        version: VERSION,
        by: (*by.octets()).into(),
        mesh: head.mesh.map(|mesh| mesh.0.into()),
        sequence: head.sequence,
        previous: head.previous.map(|previous| previous.0.into()),
        at: head.at,
        kind: 0,
        policy: None,
        key: None,
        node: None,
        caps: None,
        serves: None,
        text: None,
        upto: None,
        consent: consent.map(|consent| (*consent.octets()).into()),
        founders: None,
    };
    match what {
        What::Found { policy, label, founders } => {
            if !founders.is_empty() {
                wire.version = VERSION_OF_SEVERAL;
                wire.founders = Some(founders.iter().map(|key| (*key.octets()).into()).collect());
            }
            wire.kind = FOUND;
            wire.policy = Some((policy.admit_by, policy.revoke_by));
            wire.text = Some(label.to_string());
        }
        What::Admit { node, caps, serves, label } => {
            wire.kind = ADMIT;
            wire.key = Some((*node.octets()).into());
            wire.caps = Some(caps.bits());
            wire.serves = Some(serves.iter().map(Domain::to_string).collect());
            wire.text = Some(label.to_string());
        }
        What::Revoke { node, upto, reason } => {
            wire.kind = REVOKE;
            wire.node = Some((*node.octets()).into());
            wire.upto = upto.map(|upto| upto.0.into());
            wire.text = Some(reason.to_string());
        }
        What::Rotate { to } => {
            wire.kind = ROTATE;
            wire.key = Some((*to.octets()).into());
        }
        What::Retire => wire.kind = RETIRE,
        What::Unknown(kind) => wire.kind = *kind,
    }
    wire
}

fn what(wire: Wire, by: &NodeKey) -> Result<What, StatementError> {
    let key = |key: Option<ByteArray<32>>| key.map(|key| NodeKey::from_octets(*key)).ok_or("no key");
    Ok(match wire.kind {
        FOUND => {
            let (admit_by, revoke_by) = wire.policy.ok_or("no policy")?;
            if admit_by == 0 || revoke_by == 0 {
                return Err("a policy by nobody".into());
            }
            // To version 1 it is a field of a later release.
            let founders = wire.founders.filter(|_| wire.version == VERSION_OF_SEVERAL).unwrap_or_default();
            let founders: Vec<NodeKey> =
                few(founders, FOUNDERS_MAX)?.iter().map(|key| NodeKey::from_octets(**key)).collect();
            let is_new = |(place, key): (usize, &NodeKey)| key != by && !founders[..place].contains(key);
            if !founders.iter().enumerate().all(is_new) {
                return Err("a founder that stands twice".into());
            }
            let policy = Policy { admit_by, revoke_by };
            What::Found { policy, label: text(wire.text, TEXT_OCTETS_MAX)?, founders }
        }
        ADMIT => What::Admit {
            node: key(wire.key)?,
            caps: Caps::from_bits(wire.caps.unwrap_or_default()),
            serves: domains(wire.serves.unwrap_or_default(), GRANTED_DOMAINS_MAX)?,
            label: text(wire.text, TEXT_OCTETS_MAX)?,
        },
        REVOKE => What::Revoke {
            node: NodeId::from_octets(*wire.node.ok_or("no node")?),
            upto: wire.upto.as_deref().copied().map(StatementId),
            reason: text(wire.text, TEXT_OCTETS_MAX)?,
        },
        ROTATE => {
            let to = key(wire.key)?;
            let consent = Signature::from_octets(*wire.consent.ok_or("no consent")?);
            if !to.verifies(Purpose::Rotation, by.octets(), &consent) {
                return Err(StatementError::Signature);
            }
            What::Rotate { to }
        }
        RETIRE => What::Retire,
        kind => What::Unknown(kind),
    })
}

fn check_head(head: &Head, what: &What) -> Result<(), StatementError> {
    let founds = matches!(what, What::Found { .. });
    if founds != head.mesh.is_none() || (founds && head.sequence != 0) {
        return Err("only the first statement of a mesh founds it".into());
    }
    if head.sequence > SEQUENCE_MAX || (head.sequence == 0) != head.previous.is_none() {
        return Err("the number does not fit the chain".into());
    }
    Ok(())
}

impl From<Wrong> for StatementError {
    fn from(what: Wrong) -> StatementError {
        StatementError::Malformed(what)
    }
}

impl StatementId {
    /// Takes a name from its octets.
    pub fn from_octets(octets: [u8; 32]) -> StatementId {
        StatementId(octets)
    }

    /// Returns the octets.
    pub fn octets(&self) -> &[u8; 32] {
        &self.0
    }
}

impl Policy {
    /// Any member that may admit admits; two revoke.
    pub const DEFAULT: Policy = Policy { admit_by: 1, revoke_by: 2 };

    /// Returns eight characters to compare it by, for people.
    pub fn hash(&self) -> String {
        base32(&sha256(&[b"postroad mesh policy 1\0", &[self.admit_by, self.revoke_by]]))[..8].to_owned()
    }
}

impl fmt::Display for StatementId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show_base32(&self.0, f)
    }
}

impl fmt::Debug for StatementId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&base32(&self.0)[..8])
    }
}

impl fmt::Debug for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {:?} states {:?}", self.id, self.by, self.what)
    }
}
