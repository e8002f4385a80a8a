//! What a message carries on its way through the mesh: its name, where it came in, and the nodes it
//! has visited. By the name nobody delivers it twice, by the nodes nobody passes it in circles.
//!
//! As text (`XMESH=` of MAIL, the queue): `NAME:ORIGIN:NODE,NODE`, base32 in lower case, each visited
//! node by the first ten octets of its id, the first to be visited first.

use std::fmt::{self, Write};
use std::str::FromStr;

use aws_lc_rs::digest::{Context, SHA256};
use postroad_smtp::PassageToken;

use crate::history::MeshMessageId;
use crate::node::{NodeId, name_from_base32, show_base32};
use crate::path::VISITED_MAX;

/// Octets by which a visited node is known.
const SHORT_OCTETS: usize = 10;
/// Octets of the text, and of each node that was visited.
const TOKEN_OCTETS: usize = 26 + 1 + 52 + 1;
const NODE_OCTETS: usize = 16 + 1;

/// The way of one message so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passage {
    /// The message.
    pub message: MeshMessageId,
    /// The member that took it in.
    pub origin: NodeId,
    visited: Vec<ShortId>,
}

/// The beginning of a node's id: enough to know it among members.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShortId([u8; SHORT_OCTETS]);

/// The text is no passage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a passage is NAME:ORIGIN:NODE,NODE with at most {VISITED_MAX} nodes")]
pub struct PassageError;

/// Names a message while its content streams by: the same content from the same sender has the same
/// name wherever it comes in, so that copies of it meet and one of them is dropped.
pub struct Naming(Context);

impl Passage {
    /// Begins at the member that takes the message in.
    pub fn new(message: MeshMessageId, origin: NodeId) -> Passage {
        Passage { message, origin, visited: Vec::new() }
    }

    /// Returns whether the message was at a node before.
    pub fn has_visited(&self, node: &NodeId) -> bool {
        self.visited.contains(&node.into())
    }

    /// Returns the nodes that it visited, the first to be visited first.
    pub fn visited(&self) -> &[ShortId] {
        &self.visited
    }

    /// Returns whether it may visit no more nodes.
    pub fn is_at_its_end(&self) -> bool {
        self.visited.len() >= VISITED_MAX
    }

    /// Returns the passage as the next node is to hear of it: with this one among those visited.
    ///
    /// # Errors
    /// It has visited as many as it may.
    pub fn by_way_of(&self, node: &NodeId) -> Result<Passage, PassageError> {
        if self.is_at_its_end() {
            return Err(PassageError);
        }
        let mut passage = self.clone();
        passage.visited.push(node.into());
        Ok(passage)
    }

    /// Returns it as MAIL carries it.
    pub fn token(&self) -> PassageToken {
        let mut text = String::with_capacity(TOKEN_OCTETS + NODE_OCTETS * self.visited.len());
        write!(text, "{self}").expect("a string takes all");
        text.parse().expect("twelve nodes are shorter than the limit, and base32 is letters and digits")
    }
}

/// Returns whether a message was at no node before, which its passage shows without being read.
pub fn has_visited_nobody(passage: &PassageToken) -> bool {
    passage.as_str().ends_with(':')
}

impl Naming {
    /// Begins a message with this reverse-path; empty when it is null.
    pub fn new(reverse_path: &str) -> Naming {
        let mut context = Context::new(&SHA256);
        context.update(&(reverse_path.len() as u64).to_be_bytes());
        context.update(reverse_path.as_bytes());
        Naming(context)
    }

    /// Takes the next piece of the content, as it was received.
    pub fn add(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// Names the message, accepted at this time in milliseconds since the Unix epoch. `own` is what
    /// only this message has: empty, or the queue id where nothing else tells two apart that a script
    /// sent on purpose.
    pub fn finish(&self, accepted_ms: u64, own: &str) -> MeshMessageId {
        MeshMessageId::new(accepted_ms, &[self.0.clone().finish().as_ref(), own.as_bytes()])
    }
}

impl From<&NodeId> for ShortId {
    fn from(node: &NodeId) -> ShortId {
        ShortId(*node.octets().first_chunk().expect("an id is longer"))
    }
}

impl FromStr for Passage {
    type Err = PassageError;

    fn from_str(text: &str) -> Result<Passage, PassageError> {
        let mut parts = text.split(':');
        let (Some(message), Some(origin), Some(visited), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(PassageError);
        };
        let nodes = visited.split(',').filter(|_| !visited.is_empty()).take(VISITED_MAX + 1);
        let visited = nodes.map(ShortId::from_str).collect::<Result<Vec<_>, _>>()?;
        if visited.len() > VISITED_MAX {
            return Err(PassageError);
        }
        let (message, origin) = (message.parse().map_err(|_| PassageError)?, origin.parse().map_err(|_| PassageError)?);
        Ok(Passage { message, origin, visited })
    }
}

impl FromStr for ShortId {
    type Err = PassageError;

    fn from_str(text: &str) -> Result<ShortId, PassageError> {
        name_from_base32(text).map(ShortId).ok_or(PassageError)
    }
}

impl fmt::Display for Passage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.message, self.origin)?;
        let mut comma = "";
        for node in &self.visited {
            write!(f, "{comma}{node}")?;
            comma = ",";
        }
        Ok(())
    }
}

impl fmt::Display for ShortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show_base32(&self.0, f)
    }
}

impl fmt::Debug for ShortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ShortId({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn node(n: u8) -> NodeId {
        NodeId::from_octets([n; 32])
    }

    fn name(path: &str, pieces: &[&[u8]], own: &str) -> MeshMessageId {
        let mut naming = Naming::new(path);
        pieces.iter().for_each(|piece| naming.add(piece));
        naming.finish(7, own)
    }

    #[test]
    fn a_passage_grows_by_its_nodes_up_to_a_limit() {
        let mut passage = Passage::new(name("a@b.example", &[b"x"], ""), node(1));
        for n in 0..VISITED_MAX as u8 {
            assert!(!passage.has_visited(&node(n)) && !passage.is_at_its_end());
            passage = passage.by_way_of(&node(n)).expect("there is room");
            assert!(passage.has_visited(&node(n)));
        }
        assert_eq!(passage.by_way_of(&node(99)), Err(PassageError));
        assert_eq!(passage.token().as_str().parse(), Ok(passage));
    }

    #[test]
    fn what_is_no_passage_is_refused() {
        let good = Passage::new(name("", &[], ""), node(1)).by_way_of(&node(2)).expect("room").to_string();
        let (head, short) = good.rsplit_once(':').expect("three parts");
        let many = vec![short; VISITED_MAX + 1].join(",");
        for text in [
            String::new(),
            "::".to_owned(),
            head.to_owned(),
            format!("{head}:{short},"),
            format!("{head}:{many}"),
            format!("{good}:"),
            format!("{head}:{}", &short[1..]),
        ] {
            assert_eq!(text.parse::<Passage>(), Err(PassageError), "{text}");
        }
        assert!(format!("{head}:").parse::<Passage>().is_ok_and(|passage| passage.visited().is_empty()));
    }

    #[test]
    fn the_name_is_that_of_sender_and_content_however_it_comes() {
        let one = name("a@b.example", &[b"hello"], "");
        assert_eq!(one, name("a@b.example", &[b"he", b"", b"llo"], ""));
        for other in [
            name("", &[b"hello"], ""),
            name("a@b.example", &[b"hello!"], ""),
            name("a@b.example", &[b"hello"], "1MCC5RM000001"),
        ] {
            assert_ne!(one, other);
        }
    }

    proptest! {
        #[test]
        fn passages_come_back_as_they_went(ms in 0u64..1 << 48, body: Vec<u8>, nodes in proptest::collection::vec(0u8.., 0..VISITED_MAX)) {
            let message = MeshMessageId::new(ms, &[&body]);
            let mut passage = Passage::new(message, node(9));
            for n in nodes {
                passage = passage.by_way_of(&node(n)).expect("there is room");
            }
            prop_assert_eq!(passage.token().as_str().parse(), Ok(passage));
        }

        #[test]
        fn no_text_panics(text in "[a-z0-9:,]{0,320}") {
            let _ = text.parse::<Passage>();
        }
    }
}
