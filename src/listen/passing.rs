//! Mail on its way through the mesh, as it comes in: where it is named, what loops and what is a repeat.
//!
//! A repeat is answered 250 and not stored, so a member that lost our reply may simply ask again. Nothing
//! here is asked of mail that has to do with no mesh.

use std::io;

use postroad_mesh::passage::{Naming, ShortId};
use postroad_mesh::quota::{Over, Way};
use postroad_mesh::{Caps, MeshMessageId, NodeId, Passage};
use postroad_queue::UnixMillis;
use postroad_smtp::{Envelope, PassageToken, Reply, Status};
use tracing::{error, warn};

use super::Context;
use crate::history::{Claim, Claimed};
use crate::metrics::Misdeed;

/// Said of a message that was taken already.
pub const DUPLICATE: Reply = Reply::of(250, Some(Status::new(2, 0, 0)), "duplicate: it was taken before");
const BUSY: Reply = Reply::of(451, Some(Status::new(4, 3, 2)), "another session is sending this message; try again");
const LOOP: Reply =
    Reply::of(451, Some(Status::new(4, 4, 6)), "this message was here before: the mesh passes it in a circle");
const OVER_QUOTA: Reply = Reply::of(450, Some(Status::new(4, 7, 28)), "");
const NOT_ITS_OWN: Reply = Reply::of(
    451,
    Some(Status::new(4, 7, 1)),
    "XMESH says that this message came another way than it does, or began at another member",
);
const NO_PASSAGE: Reply = Reply::of(501, Some(Status::new(5, 5, 4)), "XMESH is NAME:ORIGIN:NODE,NODE");
const UNKNOWN: Reply = Reply::of(451, Some(Status::new(4, 3, 0)), "this host cannot tell repeats from new mail now");

/// What becomes of a message that came through the mesh, or comes into it here.
pub enum Arriving {
    /// It is to be committed with this envelope; kept afterwards, the claim remembers it.
    New(Envelope, Option<Claim>),
    /// Nothing is to be done; this is the answer.
    Answered(Reply),
}

/// Returns what a node may do as a member of this host's mesh; none when it is no member.
pub fn member(context: &Context, node: Option<&NodeId>) -> Option<Caps> {
    context.peers.view().member(node?).map(|member| member.caps)
}

/// Returns which way mail of a member came: where its passage says another origin, that is believed only to
/// the cost of who says it.
pub fn way(from: NodeId, passage: Option<&Passage>) -> Way {
    Way { from, origin: passage.map_or(from, |passage| passage.origin) }
}

/// Says to a member that it hands over more than it may, wherever it goes.
pub fn over_pace(over: Over) -> Reply {
    let text = "this member hands over too much mail";
    OVER_QUOTA.with_text(&format!("{text} (quota of all_{over} in an hour); come again later"))
}

/// Says to a member that it has handed over too much of what leaves the mesh.
pub fn over_quota(over: Over) -> Reply {
    let text = "too much mail of this member leaves the mesh here";
    OVER_QUOTA.with_text(&format!("{text} (quota of {over} in an hour); come again later"))
}

/// Reads the passage that a member says in MAIL.
///
/// # Errors
/// The reply that refuses the message: it was here before, is not what it says, or this is no passage.
pub fn read_from(context: &Context, from: Option<&NodeId>, token: Option<&PassageToken>) -> Read {
    let view = context.peers.view();
    let me = view.me().map(|me| view.names(&me)).unwrap_or_default();
    let passage = read(&me, token)?;
    let (Some(said), Some(from)) = (&passage, from) else { return Ok(passage) };
    let names = |node: &NodeId| if view.is_member(node) { view.names(node) } else { Vec::new() };
    if !is_true(said, from, &names) {
        context.peers.report(*from, Misdeed::Origin, &format!("XMESH={said}"));
        return Err(NOT_ITS_OWN);
    }
    Ok(passage)
}

type Read = Result<Option<Box<Passage>>, Reply>;

/// Returns whether a passage can be what it says: its first node is its origin, and its last one is the
/// member that says it, by any of the ids (`names`) that a member has and had. An origin that is no member now may
/// have been one when it took the message.
fn is_true(passage: &Passage, from: &NodeId, names: &dyn Fn(&NodeId) -> Vec<NodeId>) -> bool {
    let is = |short: Option<&ShortId>, names: &[NodeId]| {
        short.is_some_and(|short| names.iter().any(|name| ShortId::from(name) == *short))
    };
    let (visited, origin) = (passage.visited(), names(&passage.origin));
    (origin.is_empty() || is(visited.first(), &origin)) && is(visited.last(), &names(from))
}

/// Reads a passage; `me`: the ids that this host has and had, none in no mesh.
fn read(me: &[NodeId], token: Option<&PassageToken>) -> Read {
    let Some(token) = token.filter(|_| !me.is_empty()) else { return Ok(None) };
    let passage: Passage = token.as_str().parse().map_err(|_| NO_PASSAGE)?;
    if me.iter().any(|me| passage.has_visited(me)) { Err(LOOP) } else { Ok(Some(Box::new(passage))) }
}

/// Begins to name a message that comes into the mesh at this host.
pub fn naming(context: &Context, reverse_path: &str) -> Option<Naming> {
    context.peers.me().map(|_| Naming::new(reverse_path))
}

/// Says which recipients a message is new for. One that comes into the mesh here is new for all of
/// them: whoever submits the same again means it, and only members repeat by mistake. It is named `anew`, so that
/// those behind this host do not take it for a repeat either.
pub fn arrive(
    context: &Context,
    passage: Option<&mut Passage>,
    anew: &dyn Fn() -> Option<MeshMessageId>,
    envelope: Envelope,
    now: UnixMillis,
) -> Arriving {
    let Some(passage) = passage else { return Arriving::New(envelope, None) };
    let recipients: Vec<String> = envelope.recipients().iter().map(|one| one.forward_path.to_string()).collect();
    let is_repeatable = envelope.params.passage.is_some();
    let claim = |name: &MeshMessageId| context.repeats.claim(name, &recipients, is_repeatable, now);
    let claimed = match claim(&passage.message) {
        Ok(Claimed::Again) => {
            passage.message = anew().unwrap_or(passage.message);
            claim(&passage.message)
        }
        claimed => claimed,
    };
    match claimed {
        Ok(Claimed::New { places, claim, is_late }) => {
            if is_late {
                warn!(mid = %passage.message, "older than the history of the mesh reaches: it may have come before");
            }
            Arriving::New(with_passage(envelope, &places, passage), Some(claim))
        }
        Ok(Claimed::Taken) => Arriving::Answered(DUPLICATE),
        // Two at one moment that have one name although each was named anew.
        Ok(Claimed::Busy | Claimed::Again) => Arriving::Answered(BUSY),
        Err(error) => unreadable(&error, is_repeatable, envelope, passage),
    }
}

/// Without a history a repeat would be delivered twice: members come again. What others send is no
/// repeat, and waits for nothing.
fn unreadable(error: &io::Error, is_repeatable: bool, envelope: Envelope, passage: &Passage) -> Arriving {
    error!(%error, "the history of the mesh cannot be opened");
    if is_repeatable {
        return Arriving::Answered(UNKNOWN);
    }
    let places: Vec<usize> = (0..envelope.recipients().len()).collect();
    Arriving::New(with_passage(envelope, &places, passage), None)
}

/// Returns the envelope for these recipients, with the passage so far.
fn with_passage(mut envelope: Envelope, places: &[usize], passage: &Passage) -> Envelope {
    // A member has said it in the same words.
    envelope.params.passage.get_or_insert_with(|| passage.token());
    if places.len() == envelope.recipients().len() {
        return envelope;
    }
    let recipients = places.iter().map(|place| envelope.recipients()[*place].clone()).collect();
    Envelope::new(envelope.reverse_path, envelope.params, recipients).expect("it is new for somebody")
}

#[cfg(test)]
mod tests {
    use postroad_mesh::MeshMessageId;

    use super::*;

    #[test]
    fn a_passage_is_by_whom_it_says() {
        let node = |n: u8| NodeId::from_octets([n; 32]);
        let begun = |origin| Passage::new(MeshMessageId::new(1, &[b"x"]), node(origin));
        let by = |passage: Passage, n| passage.by_way_of(&node(n)).expect("room");
        // 7 was 6 before, and 9 is no member.
        let names = |id: &NodeId| match id.octets()[0] {
            6 | 7 => vec![node(7), node(6)],
            9 => Vec::new(),
            _ => vec![*id],
        };
        let is_true = |passage: &Passage, from| is_true(passage, &node(from), &names);
        assert!(is_true(&by(begun(1), 1), 1) && is_true(&by(by(begun(1), 1), 2), 2));
        assert!(!is_true(&by(begun(1), 1), 2), "it did not come from there");
        assert!(!is_true(&by(begun(1), 2), 2), "it began elsewhere");
        assert!(!is_true(&begun(1), 1), "it was nowhere");
        assert!(is_true(&by(begun(9), 1), 1), "its origin was a member once");
        assert!(is_true(&by(begun(6), 7), 7) && is_true(&by(begun(7), 6), 7) && is_true(&by(begun(6), 6), 6));
        assert!(!is_true(&by(begun(6), 1), 1) && !is_true(&by(begun(6), 6), 1), "another node");
        let reply = over_quota(Over::Messages).to_string();
        assert!(reply.starts_with("450 4.7.28 ") && reply.contains("quota of messages"), "{reply}");
    }

    #[test]
    fn what_was_here_before_is_refused_and_what_is_no_passage_too() {
        let node = |n: u8| NodeId::from_octets([n; 32]);
        let fresh = Passage::new(MeshMessageId::new(1, &[b"x"]), node(1));
        let once = fresh.by_way_of(&node(1)).expect("room");
        let read =
            |passage: &Passage, me| read(&[node(me)], Some(&passage.token())).map(|found| found.map(|found| *found));
        assert_eq!(read(&once, 2), Ok(Some(once.clone())));
        assert_eq!(read(&once, 1), Err(LOOP));
        assert_eq!(read(&once.by_way_of(&node(2)).expect("room"), 1), Err(LOOP));
        assert_eq!(super::read(&[node(2), node(1)], Some(&once.token())), Err(LOOP), "under the key before");
        assert_eq!(super::read(&[node(1)], Some(&"a:b:c".parse().expect("a token"))), Err(NO_PASSAGE));
        assert_eq!(super::read(&[node(1)], None), Ok(None));
    }
}
