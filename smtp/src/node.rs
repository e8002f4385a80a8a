//! What ETRN names (RFC 1985 §5.2): a domain, a domain with all below it, or a queue of this host.
//!
//! If you hold a [`Node`], its grammar was checked; whether anything waits for it is not known here.

use std::fmt;
use std::str::FromStr;

use crate::domain::Domain;

/// What ETRN names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// `domain`: mail for this domain.
    Domain(Domain),
    /// `@domain`: mail for this domain and for all below it.
    Within(Domain),
    /// `#queue`: what this host calls so. Printable ASCII, not empty.
    Queue(Box<str>),
}

/// The text names no node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a node is a domain, @ and a domain, or # and the name of a queue")]
pub struct NodeError;

impl FromStr for Node {
    type Err = NodeError;

    fn from_str(text: &str) -> Result<Node, NodeError> {
        let domain = |text: &str| text.parse::<Domain>().map_err(|_| NodeError);
        if let Some(name) = text.strip_prefix('#') {
            let good = !name.is_empty() && name.bytes().all(|octet| octet.is_ascii_graphic());
            return if good { Ok(Node::Queue(name.into())) } else { Err(NodeError) };
        }
        match text.strip_prefix('@') {
            Some(parent) => domain(parent).map(Node::Within),
            None => domain(text).map(Node::Domain),
        }
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Node::Domain(domain) => domain.fmt(f),
            Node::Within(domain) => write!(f, "@{domain}"),
            Node::Queue(name) => write!(f, "#{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_reads_as_it_is_written() {
        for text in ["example.org", "@example.org", "#mx:example.org/verify", "##", "#@x"] {
            assert_eq!(text.parse::<Node>().expect(text).to_string(), text);
        }
        for text in ["", "@", "#", "a b", "#a b", "@@a", "#\u{e4}", "a@b"] {
            assert_eq!(text.parse::<Node>(), Err(NodeError), "{text}");
        }
    }
}
