//! Who a node is: a long-lived Ed25519 key, and an id that is the SHA-256 of its
//! SubjectPublicKeyInfo (RFC 8410 §4), so that a TLS certificate with this key proves the id.
//!
//! No certificate authority, no date and no name has a part in it. Whoever holds a [`NodeKey`] can
//! check what its node signed; a [`SecretKey`] is held by its node alone.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use data_encoding::{BASE32_NOPAD, BASE32_NOPAD_NOCASE};

/// What stands before the 32 octets of an Ed25519 key in a SubjectPublicKeyInfo (RFC 8410 §4).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// The TLS server name of a node is its id below this domain, which DNS never has (RFC 9476).
const SERVER_NAME_SUFFIX: &str = ".mesh.alt";
/// Octets of a node id as text.
pub const NODE_ID_CHARS: usize = 52;

/// The name of a node: SHA-256 of its SubjectPublicKeyInfo.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId([u8; 32]);

/// The public key of a node: 32 octets of Ed25519.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeKey([u8; 32]);

/// An Ed25519 signature.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature([u8; 64]);

/// The secret half of a node's key.
pub struct SecretKey(Ed25519KeyPair);

/// What a signature is made for. What was signed for one purpose is worth nothing for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A statement about members.
    Statement,
    /// A node's description of itself.
    Record,
    /// The consent of the key that follows another.
    Rotation,
    /// A question to another node.
    Question,
    /// The answer to one.
    Answer,
}

/// The text is no node id: 52 letters and digits of base32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a node id has 52 letters and digits (a to z, 2 to 7)")]
pub struct NodeIdError;

/// The octets are no secret key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no Ed25519 key in PKCS #8 (RFC 8410)")]
pub struct SecretKeyError;

impl NodeId {
    /// Takes an id from its octets.
    pub fn from_octets(octets: [u8; 32]) -> NodeId {
        NodeId(octets)
    }

    /// Returns the octets.
    pub fn octets(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns the first eight characters, for people; not unique.
    pub fn short(&self) -> String {
        self.to_string()[..8].to_owned()
    }

    /// Returns the name that a client asks for in TLS to reach this node as a member.
    pub fn server_name(&self) -> String {
        format!("{self}{SERVER_NAME_SUFFIX}")
    }

    /// Returns the node that a TLS server name asks for, or `None` when it asks for none.
    pub fn from_server_name(name: &str) -> Option<NodeId> {
        name.to_ascii_lowercase().strip_suffix(SERVER_NAME_SUFFIX)?.parse().ok()
    }
}

impl NodeKey {
    /// Takes a key from its 32 octets.
    pub fn from_octets(octets: [u8; 32]) -> NodeKey {
        NodeKey(octets)
    }

    /// Returns the key in a SubjectPublicKeyInfo, or `None` when that is of another kind.
    pub fn from_spki(spki: &[u8]) -> Option<NodeKey> {
        Some(NodeKey(spki.strip_prefix(&SPKI_PREFIX)?.try_into().ok()?))
    }

    /// Returns the 32 octets.
    pub fn octets(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns the SubjectPublicKeyInfo.
    pub fn spki(&self) -> [u8; 44] {
        let mut spki = [0; 44];
        spki[..12].copy_from_slice(&SPKI_PREFIX);
        spki[12..].copy_from_slice(&self.0);
        spki
    }

    /// Returns the name of the node that has this key.
    pub fn id(&self) -> NodeId {
        NodeId(sha256(&[&self.spki()]))
    }

    /// Returns whether this key signed these octets for this purpose.
    pub fn verifies(&self, purpose: Purpose, octets: &[u8], signature: &Signature) -> bool {
        let signed = purpose.mark(octets);
        UnparsedPublicKey::new(&ED25519, &self.0).verify(&signed, &signature.0).is_ok()
    }
}

impl Signature {
    /// Takes a signature from its octets.
    pub fn from_octets(octets: [u8; 64]) -> Signature {
        Signature(octets)
    }

    /// Returns the octets.
    pub fn octets(&self) -> &[u8; 64] {
        &self.0
    }
}

impl SecretKey {
    /// Makes a key out of 32 random octets.
    pub fn from_seed(seed: &[u8; 32]) -> SecretKey {
        SecretKey(Ed25519KeyPair::from_seed_unchecked(seed).expect("every 32 octets are a seed"))
    }

    /// Reads a key as a file holds it.
    ///
    /// # Errors
    ///
    /// When it is no Ed25519 key in PKCS #8.
    pub fn from_pkcs8(der: &[u8]) -> Result<SecretKey, SecretKeyError> {
        Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).map(SecretKey).map_err(|_| SecretKeyError)
    }

    /// Returns the key as a file holds it, public half included (RFC 5958).
    pub fn to_pkcs8(&self) -> Vec<u8> {
        self.0.to_pkcs8().expect("a key in memory can be written").as_ref().to_vec()
    }

    /// Returns the public half.
    pub fn public(&self) -> NodeKey {
        NodeKey(self.0.public_key().as_ref().try_into().expect("an Ed25519 key has 32 octets"))
    }

    /// Signs octets for a purpose.
    pub fn sign(&self, purpose: Purpose, octets: &[u8]) -> Signature {
        let signature = self.0.sign(&purpose.mark(octets));
        Signature(signature.as_ref().try_into().expect("an Ed25519 signature has 64 octets"))
    }
}

impl Purpose {
    /// Puts what the signature is for, and the version of the format, before what is signed.
    fn mark(self, octets: &[u8]) -> Vec<u8> {
        let mark: &[u8] = match self {
            Purpose::Statement => b"postroad mesh 1 statement\0",
            Purpose::Record => b"postroad mesh 1 record\0",
            Purpose::Rotation => b"postroad mesh 1 rotation\0",
            Purpose::Question => b"postroad mesh 1 question\0",
            Purpose::Answer => b"postroad mesh 1 answer\0",
        };
        [mark, octets].concat()
    }
}

/// Returns the SHA-256 of parts, one behind the other.
pub(crate) fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let digest = match parts {
        [whole] => digest(&SHA256, whole),
        parts => digest(&SHA256, &parts.concat()),
    };
    digest.as_ref().try_into().expect("SHA-256 has 32 octets")
}

/// Returns base32 in lower case, without padding: short enough for a DNS label.
pub(crate) fn base32(octets: &[u8]) -> String {
    BASE32_NOPAD.encode(octets).to_ascii_lowercase()
}

/// Shows the base32 of a name, which has at most 40 octets. Names go with every message: no memory is asked for.
pub(crate) fn show_base32(octets: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut text = [0; 64];
    let text = &mut text[..BASE32_NOPAD.encode_len(octets.len())];
    BASE32_NOPAD.encode_mut(octets, text);
    text.make_ascii_lowercase();
    f.pad(std::str::from_utf8(text).expect("base32 is letters and digits"))
}

/// Reads base32 in any case.
pub(crate) fn from_base32(text: &str) -> Option<Vec<u8>> {
    BASE32_NOPAD_NOCASE.decode(text.as_bytes()).ok()
}

/// Reads a name of `N` octets, in any case.
pub(crate) fn name_from_base32<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut octets = [0; N];
    let is_as_long = BASE32_NOPAD_NOCASE.decode_len(text.len()) == Ok(N);
    (is_as_long && BASE32_NOPAD_NOCASE.decode_mut(text.as_bytes(), &mut octets).is_ok()).then_some(octets)
}

impl FromStr for NodeId {
    type Err = NodeIdError;

    fn from_str(text: &str) -> Result<NodeId, NodeIdError> {
        name_from_base32(text).map(NodeId).ok_or(NodeIdError)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show_base32(&self.0, f)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({})", self.short())
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey({})", self.id().short())
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signature")
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey({})", self.public().id().short())
    }
}
