//! Hosts that cannot be reached come for their mail (On-Demand Mail Relay, RFC 2645; ETRN, RFC 1985):
//! where the two halves of the agent meet over a connection that is reversed.
//!
//! On the side that keeps mail, `listen` hears ATRN and hands the connection to a [`Carrier`], which
//! `deliver` is. On the side that fetches, [`fetch`] has the connection made, and hands it to `listen`.
//! Neither half names the other. Who may fetch what is for `policy` to say.

pub mod fetch;
mod places;

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use postroad_smtp::{Node, Reply, Status};

use crate::config::Turn;
use crate::net::Stream;
pub use places::Place;
use places::Places;

/// Nothing waits, and nobody stays for what comes (RFC 2645 §5.2.1).
pub const NO_MAIL: Reply = Reply::of(453, Some(Status::new(4, 2, 0)), "you have no mail");
const TOO_MANY: Reply =
    Reply::of(451, Some(Status::new(4, 3, 2)), "your earlier connections are still in use; try again later");
const NOT_YET: Reply = Reply::of(451, Some(Status::new(4, 3, 2)), "this host is starting or stopping; try again later");

/// Who carries mail over reversed connections.
pub trait Carrier: Send + Sync {
    /// Returns how many messages wait for the domains of a customer.
    fn waiting(&self, turn: &Turn) -> usize;

    /// Closes the connection of a customer that has been without work longest. Returns whether there was one.
    fn close_idle(&self, user: &str) -> bool;

    /// Takes a connection over: its peer is about to greet.
    fn carry(&self, turned: Turned);

    /// Makes what waits for a node due at once; returns how many messages that are, or `None` when it
    /// waits for a customer who is not here.
    fn start(&self, node: &Node) -> Option<usize>;
}

/// A connection whose peer is an SMTP server from now on.
pub struct Turned {
    /// The connection.
    pub stream: Stream,
    /// Where it comes from.
    pub peer: IpAddr,
    /// What may go over it.
    pub grant: Grant,
}

/// What ATRN was answered with 250 for.
pub struct Grant {
    /// The customer, with the domains that are fetched now.
    pub turn: Turn,
    /// Counts the connection for as long as it lasts.
    pub place: Place,
}

/// Where the halves meet. Clones are the same place.
#[derive(Clone, Default)]
pub struct Meeting(Arc<Inner>);

#[derive(Default)]
struct Inner {
    carrier: OnceLock<Box<dyn Carrier>>,
    places: Arc<Places>,
}

impl Meeting {
    /// Says who carries. Only the first to come does.
    pub fn set_carrier(&self, carrier: impl Carrier + 'static) {
        // There is one composition root, and it asks once.
        let _ = self.0.carrier.set(Box::new(carrier));
    }

    /// Decides whether there is reason and room for one more connection of a customer who may fetch.
    ///
    /// # Errors
    /// The reply to ATRN: 453 when nothing waits, 451 when it has too many connections already.
    pub fn admit(&self, turn: Turn) -> Result<Grant, Reply> {
        let carrier = self.0.carrier.get().ok_or(NOT_YET)?;
        if !turn.keep && carrier.waiting(&turn) == 0 {
            return Err(NO_MAIL);
        }
        let enter = || self.0.places.enter(&turn.user, turn.connections_max);
        // One that is left over from before the customer's address changed is of no use to it.
        let place = enter().or_else(|| if carrier.close_idle(&turn.user) { enter() } else { None });
        place.map(|place| Grant { turn, place }).ok_or(TOO_MANY)
    }

    /// Hands a connection over.
    pub fn carry(&self, turned: Turned) {
        if let Some(carrier) = self.0.carrier.get() {
            carrier.carry(turned);
        }
    }

    /// Answers ETRN of somebody who may say it (RFC 1985 §5.3).
    pub fn start(&self, node: &Node) -> Reply {
        let Some(carrier) = self.0.carrier.get() else { return NOT_YET };
        match carrier.start(node) {
            None => {
                said(458, Status::new(4, 4, 1), &format!("mail for node {node} waits for its customer to fetch it"))
            }
            Some(0) => said(251, Status::new(2, 0, 0), &format!("ok, no messages waiting for node {node}")),
            Some(count) => {
                said(253, Status::new(2, 0, 0), &format!("ok, {count} pending messages for node {node} started"))
            }
        }
    }

    /// Returns how many connections are reversed now.
    pub fn connections(&self) -> usize {
        self.0.places.count()
    }
}

fn said(code: u16, status: Status, text: &str) -> Reply {
    Reply::of(code, Some(status), "").with_text(text)
}

impl fmt::Debug for Meeting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meeting").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::config::Config;

    /// So many messages wait, and so many connections can be closed.
    struct Fake(usize, Arc<AtomicUsize>);

    impl Carrier for Fake {
        fn waiting(&self, _: &Turn) -> usize {
            self.0
        }

        fn close_idle(&self, _: &str) -> bool {
            self.1.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |idle| idle.checked_sub(1)).is_ok()
        }

        fn carry(&self, _: Turned) {}

        fn start(&self, node: &Node) -> Option<usize> {
            matches!(node, Node::Domain(_)).then_some(self.0)
        }
    }

    fn meeting(waiting: usize, idle: &Arc<AtomicUsize>) -> Meeting {
        let meeting = Meeting::default();
        meeting.set_carrier(Fake(waiting, idle.clone()));
        meeting
    }

    fn turn(more: &str) -> Turn {
        let text = format!("[[turn]]\nuser = \"branch\"\ndomains = [\"branch.example\"]\n{more}");
        let config = Config::from_str(&text, "test", Path::new("/")).unwrap_or_else(|faults| panic!("{faults}"));
        config.turns[0].clone()
    }

    #[test]
    fn who_has_no_mail_stays_only_to_wait_for_it() {
        let meeting = meeting(0, &Arc::default());
        assert_eq!(meeting.admit(turn("")).err(), Some(NO_MAIL));
        assert!(meeting.admit(turn("keep = true")).is_ok());
        assert_eq!(Meeting::default().admit(turn("")).err(), Some(NOT_YET));
    }

    #[test]
    fn connections_of_a_user_are_bounded_and_idle_ones_make_room() {
        let idle = Arc::new(AtomicUsize::new(0));
        let meeting = meeting(1, &idle);
        let kept = [meeting.admit(turn("")), meeting.admit(turn(""))];
        assert!(kept.iter().all(Result::is_ok) && meeting.connections() == 2);
        assert_eq!(meeting.admit(turn("")).err(), Some(TOO_MANY));
        assert!(meeting.admit(turn("connections = 3")).is_ok());
        idle.store(1, Ordering::SeqCst);
        // The fake one says that it closed one and did not.
        assert_eq!(meeting.admit(turn("")).err(), Some(TOO_MANY));
        assert_eq!(idle.load(Ordering::SeqCst), 0);
        drop(kept);
        assert_eq!(meeting.connections(), 0);
    }

    #[test]
    fn etrn_is_answered_as_the_rfc_has_it() {
        let start =
            |waiting, node: &str| meeting(waiting, &Arc::default()).start(&node.parse().expect(node)).to_string();
        assert_eq!(start(3, "a.example"), "253 2.0.0 ok, 3 pending messages for node a.example started");
        assert_eq!(start(0, "a.example"), "251 2.0.0 ok, no messages waiting for node a.example");
        assert_eq!(start(3, "#q"), "458 4.4.1 mail for node #q waits for its customer to fetch it");
    }
}
