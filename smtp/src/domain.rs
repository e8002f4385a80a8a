//! Domain names and address literals as mail uses them (RFC 5321 §4.1.2, §4.1.3; RFC 5890).
//!
//! If you hold a [`Domain`], its grammar was checked and it is normalised: lower-case A-labels
//! without a trailing dot. Comparing two of them compares the names they mean.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// The longest domain accepted, in octets of its A-label form (RFC 5321 §4.5.3.1.2).
pub const DOMAIN_OCTETS_MAX: usize = 255;

/// A domain name: lower-case A-labels, at most 255 octets, no trailing dot, never empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Domain(Box<str>);

/// What is wrong with the text of a domain or address literal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DomainError {
    /// Nothing stands where a domain is needed.
    #[error("the domain is empty")]
    Empty,
    /// The name or one of its labels is longer than DNS allows (255 and 63 octets).
    #[error("the domain is too long")]
    TooLong,
    /// A character or a label that no domain has.
    #[error("the domain is malformed")]
    Malformed,
    /// Square brackets around something that is no IP address.
    #[error("the address literal is malformed")]
    Literal,
}

impl Domain {
    /// Returns the normalised name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns whether this name is `parent` or lies below it.
    pub fn is_within(&self, parent: &Domain) -> bool {
        match self.0.strip_suffix(parent.as_str()) {
            Some(rest) => rest.is_empty() || rest.ends_with('.'),
            None => false,
        }
    }

    /// Returns the name without its first label, or `None` when only one label is left.
    pub fn parent(&self) -> Option<Domain> {
        let (_, parent) = self.0.split_once('.')?;
        Some(Domain(parent.into()))
    }
}

impl FromStr for Domain {
    type Err = DomainError;

    /// Reads A-labels or U-labels, with or without a trailing dot.
    fn from_str(text: &str) -> Result<Domain, DomainError> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() {
            return Err(DomainError::Empty);
        }
        if text.len() > 4 * DOMAIN_OCTETS_MAX {
            return Err(DomainError::TooLong);
        }
        let name = if text.is_ascii() && !has_a_label(text) {
            text.to_ascii_lowercase()
        } else {
            idna::domain_to_ascii(text).map_err(|_| DomainError::Malformed)?
        };
        check_labels(&name)?;
        Ok(Domain(name.into()))
    }
}

fn has_a_label(text: &str) -> bool {
    text.split('.').any(|label| label.len() >= 4 && label.as_bytes()[..4].eq_ignore_ascii_case(b"xn--"))
}

/// RFC 5321 sub-domain, with the underscore that real hosts use in HELO and below MX names.
fn check_labels(name: &str) -> Result<(), DomainError> {
    if name.len() > DOMAIN_OCTETS_MAX {
        return Err(DomainError::TooLong);
    }
    for label in name.split('.') {
        let octets = label.as_bytes();
        if octets.len() > 63 {
            return Err(DomainError::TooLong);
        }
        let inner = |c: &u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_');
        let edge = |c: Option<&u8>| c.is_some_and(|c| *c != b'-');
        if !octets.iter().all(inner) || !edge(octets.first()) || !edge(octets.last()) {
            return Err(DomainError::Malformed);
        }
    }
    Ok(())
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a mailbox lives: a domain, or an address literal in square brackets.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// A domain name, to be resolved through DNS.
    Domain(Domain),
    /// An address literal such as `[192.0.2.1]` or `[IPv6:2001:db8::1]`.
    Literal(IpAddr),
}

impl Host {
    /// Returns the domain, or `None` for an address literal.
    pub fn domain(&self) -> Option<&Domain> {
        match self {
            Host::Domain(domain) => Some(domain),
            Host::Literal(_) => None,
        }
    }
}

impl FromStr for Host {
    type Err = DomainError;

    fn from_str(text: &str) -> Result<Host, DomainError> {
        match text.strip_prefix('[') {
            None => text.parse().map(Host::Domain),
            Some(rest) => {
                let inner = rest.strip_suffix(']').ok_or(DomainError::Literal)?;
                literal(inner).map(Host::Literal).ok_or(DomainError::Literal)
            }
        }
    }
}

fn literal(inner: &str) -> Option<IpAddr> {
    const TAG: usize = "IPv6:".len();
    match inner.get(..TAG) {
        Some(tag) if tag.eq_ignore_ascii_case("IPv6:") => inner[TAG..].parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        _ => inner.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Domain(domain) => domain.fmt(f),
            Host::Literal(IpAddr::V4(ip)) => write!(f, "[{ip}]"),
            Host::Literal(IpAddr::V6(ip)) => write!(f, "[IPv6:{ip}]"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_is_normalised_once() {
        for (text, want) in
            [("Example.ORG", "example.org"), ("a.b.", "a.b"), ("bücher.example", "xn--bcher-kva.example")]
        {
            assert_eq!(text.parse::<Domain>().expect(text).as_str(), want);
        }
    }

    #[test]
    fn what_is_no_domain_is_refused() {
        for text in ["", ".", "a..b", "-a.b", "a-.b", "a b", "a@b", "a\r\nb", "[1.2.3.4]", &"x".repeat(64), "xn--\u{0}"]
        {
            assert!(text.parse::<Domain>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn literals_keep_their_tag() {
        for text in ["[192.0.2.1]", "[IPv6:2001:db8::1]"] {
            assert_eq!(text.parse::<Host>().expect(text).to_string(), text);
        }
        for text in ["[2001:db8::1]", "[1.2.3]", "[1.2.3.4", "[IPv6:]", "[]"] {
            assert_eq!(text.parse::<Host>(), Err(DomainError::Literal), "{text}");
        }
    }

    #[test]
    fn within_means_at_a_label_boundary() {
        let d = |t: &str| t.parse::<Domain>().expect("valid");
        assert!(d("a.example.org").is_within(&d("example.org")));
        assert!(d("example.org").is_within(&d("example.org")));
        assert!(!d("badexample.org").is_within(&d("example.org")));
    }
}
