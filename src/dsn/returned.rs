//! The part that gives the message back, or its header section (RFC 3461 §4.3, RFC 3462 §2;
//! RFC 6533 §7 for UTF-8 header fields).

use memchr::memmem;
use postroad_queue::Item;
use postroad_smtp::Ret;

use super::{Kind, Policy};

/// The longest header section returned, in octets; what is longer is cut at a line.
pub const HEADER_OCTETS_MAX: u64 = 64 * 1024;

/// What is returned, and as what.
pub(super) struct Returned<'a> {
    pub octets: &'a [u8],
    pub content_type: &'static str,
    pub is_full: bool,
}

/// Returns how much of the item's content, from its start, [`compose`](super::compose) wants.
pub fn octets_wanted(item: &Item, kind: Kind, policy: &Policy) -> u64 {
    if is_full(item, kind, policy) { item.content_octets } else { item.content_octets.min(HEADER_OCTETS_MAX) }
}

/// Only a failure returns the whole message (RFC 3461 §4.3): when the sender asked for it or did
/// not say, and it is small enough.
fn is_full(item: &Item, kind: Kind, policy: &Policy) -> bool {
    kind == Kind::Failure
        && item.envelope.params.ret != Some(Ret::Headers)
        && item.content_octets <= policy.full_octets_max
}

impl<'a> Returned<'a> {
    /// Returns the part of `front` that goes back. A front shorter than wanted is returned as a
    /// header section, never as a whole message.
    pub fn of(item: &Item, kind: Kind, policy: &Policy, front: &'a [u8]) -> Returned<'a> {
        let header = header_section(front);
        let is_global = !header.is_ascii() && std::str::from_utf8(header).is_ok();
        let is_full = is_full(item, kind, policy) && front.len() as u64 == item.content_octets;
        let content_type = match (is_full, is_global) {
            (true, false) => "message/rfc822",
            (true, true) => "message/global",
            (false, false) => "text/rfc822-headers",
            (false, true) => "message/global-headers",
        };
        Returned { octets: if is_full { front } else { header }, content_type, is_full }
    }
}

/// Returns the header section without the empty line; of one that does not end within
/// [`HEADER_OCTETS_MAX`], its whole lines.
fn header_section(front: &[u8]) -> &[u8] {
    if front.starts_with(b"\r\n") {
        return &[];
    }
    let front = &front[..front.len().min(HEADER_OCTETS_MAX as usize)];
    match memmem::find(front, b"\r\n\r\n") {
        Some(end) => &front[..end + 2],
        None => &front[..memmem::rfind(front, b"\r\n").map_or(0, |end| end + 2)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_section_ends_at_the_empty_line() {
        assert_eq!(header_section(b"A: b\r\n\r\nbody\r\n\r\n"), b"A: b\r\n");
        assert_eq!(header_section(b"\r\nbody"), b"");
        assert_eq!(header_section(b""), b"");
        assert_eq!(header_section(b"no line end"), b"");
        let endless = b"X: y\r\n".repeat(100_000);
        let cut = header_section(&endless);
        assert!(cut.len() as u64 <= HEADER_OCTETS_MAX && cut.ends_with(b"\r\n"));
    }
}
