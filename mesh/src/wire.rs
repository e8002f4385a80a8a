//! What statements, records and frames have in common as octets: limits on lists and texts, and a
//! signed part with its signature. Says what is wrong in words; each kind makes its error of them.

use minicbor::bytes::{ByteArray, ByteVec};
use postroad_smtp::Domain;

use crate::node::Signature;

/// What is wrong with octets.
pub(crate) type Wrong = &'static str;

/// Said of octets that CBOR or its fields do not fit.
pub(crate) const NOT_CBOR: Wrong = "not CBOR as expected";

/// Returns a list that is not too long.
pub(crate) fn few<T>(list: Vec<T>, max: usize) -> Result<Vec<T>, Wrong> {
    if list.len() > max { Err("a list is too long") } else { Ok(list) }
}

/// Returns a text for people: none is an empty one.
pub(crate) fn text(text: Option<String>, octets_max: usize) -> Result<Box<str>, Wrong> {
    let text = text.unwrap_or_default();
    if text.len() > octets_max || text.chars().any(char::is_control) {
        return Err("a text that is too long or has control characters");
    }
    Ok(text.into())
}

/// Returns domains whose grammar was checked.
pub(crate) fn domains(names: Vec<String>, max: usize) -> Result<Vec<Domain>, Wrong> {
    few(names, max)?.iter().map(|name| name.parse().map_err(|_| "a domain that is none")).collect()
}

/// Puts what was signed and its signature together.
pub(crate) fn with_signature(octets: &[u8], signature: &Signature) -> Vec<u8> {
    let parts = (ByteVec::from(octets.to_vec()), ByteArray::from(*signature.octets()));
    minicbor::to_vec(parts).expect("memory takes what is written")
}

/// Takes apart what [`with_signature`] put together; nothing is verified.
pub(crate) fn without_signature(octets: &[u8]) -> Result<(Vec<u8>, Signature), Wrong> {
    let (octets, signature): (ByteVec, ByteArray<64>) = minicbor::decode(octets).map_err(|_| NOT_CBOR)?;
    Ok((octets.into(), Signature::from_octets(*signature)))
}
