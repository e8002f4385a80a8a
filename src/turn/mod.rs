//! Hosts that cannot be reached come for their mail (On-Demand Mail Relay, RFC 2645; ETRN, RFC 1985):
//! where the two halves of the agent meet over a connection that is reversed.
//!
//! On the side that keeps mail, `listen` hears ATRN and hands the connection to a [`Carrier`], which
//! `deliver` is. On the side that fetches, [`fetch`] has the connection made, and hands it to `listen`.
//! Neither half names the other. Who may fetch what is for `policy` to say.
//!
//! Members of a mesh that cannot be dialled come in the same way to those that hold their mail: their key
//! stands for the login, and they stay. Octets that members exchange through this host (XVIA) come in at one
//! half and go out at the other, too.

pub mod fetch;
mod outages;
mod places;

use std::fmt;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use postroad_mesh::NodeId;
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

const TOO_MANY_THROUGH: Reply =
    Reply::of(451, Some(Status::new(4, 3, 2)), "octets of enough sessions are passed on here; try again later");

/// Sessions of one member that are passed on at a time.
const THROUGH_PER_MEMBER_MAX: u32 = 8;
/// Sessions of all members together.
const THROUGH_MAX: usize = 64;
/// Connections that one member of the mesh keeps with each of those that hold its mail: while some wait for
/// the other side's disk, the next messages are on their way over others.
pub const MEMBER_CONNECTIONS: u32 = 4;
/// Connections of one member at a time: those of before its address changed may still be there.
const MEMBER_CONNECTIONS_MAX: u32 = 2 * MEMBER_CONNECTIONS;
/// How often something is said to a member over a connection without work.
const MEMBER_KEEPALIVE: Duration = Duration::from_secs(240);

/// A session with a member, on its way, or the reply that says why there is none.
pub type Reaching<'a> = Pin<Box<dyn Future<Output = Result<Stream, Reply>> + Send + 'a>>;

/// Who carries mail over reversed connections.
pub trait Carrier: Send + Sync {
    /// Returns how many messages wait for the domains of a customer.
    fn waiting(&self, turn: &Turn) -> usize;

    /// Returns how many earlier connections of a customer are at work for the same domains. One that is silent
    /// is cut soon when the customer comes anew.
    fn at_work(&self, turn: &Turn) -> usize;

    /// Closes the connection of a guest that has been without work longest. Returns whether there was one.
    fn close_idle(&self, guest: &Guest) -> bool;

    /// Takes a connection over: its peer is about to greet.
    fn carry(&self, turned: Turned);

    /// Opens a session with a member of the mesh for another one, which speaks with it from then on.
    fn reach<'a>(&'a self, node: &'a NodeId) -> Reaching<'a>;

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
    /// Who has come.
    pub guest: Guest,
    /// Counts the connection for as long as it lasts.
    pub place: Place,
}

/// Who comes for mail.
#[derive(Clone, Debug, PartialEq)]
pub enum Guest {
    /// A customer, with the domains that are fetched now.
    Customer(Turn),
    /// A member of the mesh, for all that goes to it.
    Member(NodeId),
}

impl Guest {
    /// Returns its name, for people.
    pub fn name(&self) -> String {
        match self {
            Guest::Customer(turn) => turn.user.clone(),
            Guest::Member(node) => node.short(),
        }
    }

    /// Returns what its connections are counted by.
    fn key(&self) -> String {
        match self {
            Guest::Customer(turn) => turn.user.clone(),
            // No user's name has a control character in it.
            Guest::Member(node) => format!("\n{node}"),
        }
    }

    /// Returns whether a connection stays open when nothing waits, if the guest asks for that.
    pub fn keeps(&self) -> bool {
        match self {
            Guest::Customer(turn) => turn.keep,
            Guest::Member(_) => true,
        }
    }

    /// Returns how often something is said over a connection without work.
    pub fn keepalive(&self) -> Duration {
        match self {
            Guest::Customer(turn) => turn.keepalive,
            Guest::Member(_) => MEMBER_KEEPALIVE,
        }
    }

    fn connections_max(&self) -> u32 {
        match self {
            Guest::Customer(turn) => turn.connections_max,
            Guest::Member(_) => MEMBER_CONNECTIONS_MAX,
        }
    }
}

/// Where the halves meet. Clones are the same place.
#[derive(Clone, Default)]
pub struct Meeting(Arc<Inner>);

#[derive(Default)]
struct Inner {
    carrier: OnceLock<Box<dyn Carrier>>,
    places: Arc<Places>,
    /// Sessions that are passed on, by the member that asked.
    through: Arc<Places>,
}

impl Meeting {
    /// Says who carries. Only the first to come does.
    pub fn set_carrier(&self, carrier: impl Carrier + 'static) {
        // There is one composition root, and it asks once.
        let _ = self.0.carrier.set(Box::new(carrier));
    }

    /// Decides whether there is reason and room for one more connection of somebody who may fetch.
    ///
    /// # Errors
    /// The reply to ATRN: 453 when nothing waits, 451 when it has too many connections already.
    pub fn admit(&self, guest: Guest) -> Result<Grant, Reply> {
        let carrier = self.0.carrier.get().ok_or(NOT_YET)?;
        let at_work = match &guest {
            Guest::Customer(turn) => carrier.at_work(turn),
            Guest::Member(_) => 0,
        };
        // What is on its way over a connection that is dead waits as well.
        if let Guest::Customer(turn) = &guest
            && !turn.keep
            && at_work + carrier.waiting(turn) == 0
        {
            return Err(NO_MAIL);
        }
        let enter = |more: u32| self.0.places.enter(&guest.key(), guest.connections_max() + more, None);
        // One that is left over from before the guest's address changed is of no use to it.
        let place = enter(0).or_else(|| if carrier.close_idle(&guest) { enter(0) } else { None });
        // Nor is one that is dead in the middle of its work: there is room for one that comes in its place.
        let place = place.or_else(|| if at_work > 0 { enter(1) } else { None });
        place.map(|place| Grant { guest, place }).ok_or(TOO_MANY)
    }

    /// Hands a connection over.
    pub fn carry(&self, turned: Turned) {
        if let Some(carrier) = self.0.carrier.get() {
            carrier.carry(turned);
        }
    }

    /// Decides whether there is room for one more session of a member that is passed on.
    ///
    /// # Errors
    /// The reply to XVIA: there are too many, of this member or altogether.
    pub fn admit_through(&self, node: &NodeId) -> Result<Place, Reply> {
        let place = self.0.through.enter(&node.to_string(), THROUGH_PER_MEMBER_MAX, Some(THROUGH_MAX));
        place.ok_or(TOO_MANY_THROUGH)
    }

    /// Opens a session with a member of the mesh for another one.
    ///
    /// # Errors
    /// The reply to XVIA.
    pub async fn reach(&self, node: &NodeId) -> Result<Stream, Reply> {
        self.0.carrier.get().ok_or(NOT_YET)?.reach(node).await
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

    /// So many messages wait, so many connections can be closed, and so many are at work.
    struct Fake(usize, Arc<AtomicUsize>, usize);

    impl Carrier for Fake {
        fn waiting(&self, _: &Turn) -> usize {
            self.0
        }

        fn at_work(&self, _: &Turn) -> usize {
            self.2
        }

        fn close_idle(&self, _: &Guest) -> bool {
            self.1.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |idle| idle.checked_sub(1)).is_ok()
        }

        fn carry(&self, _: Turned) {}

        fn reach<'a>(&'a self, _: &'a NodeId) -> Reaching<'a> {
            Box::pin(async { Err(NOT_YET) })
        }

        fn start(&self, node: &Node) -> Option<usize> {
            matches!(node, Node::Domain(_)).then_some(self.0)
        }
    }

    fn meeting(waiting: usize, idle: &Arc<AtomicUsize>) -> Meeting {
        let meeting = Meeting::default();
        meeting.set_carrier(Fake(waiting, idle.clone(), 0));
        meeting
    }

    fn turn(more: &str) -> Guest {
        let text = format!("[[turn]]\nuser = \"branch\"\ndomains = [\"branch.example\"]\n{more}");
        let config = Config::from_str(&text, "test", Path::new("/")).unwrap_or_else(|faults| panic!("{faults}"));
        Guest::Customer(config.turns[0].clone())
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
    fn who_comes_in_the_place_of_a_connection_at_work_is_let_in_and_one_alone() {
        let meeting = Meeting::default();
        meeting.set_carrier(Fake(0, Arc::default(), 2));
        let kept: Vec<_> = (0..3).map(|_| meeting.admit(turn("")).expect("what is on its way may be for it")).collect();
        assert_eq!(meeting.admit(turn("")).err(), Some(TOO_MANY));
        drop(kept);
    }

    #[test]
    fn a_member_stays_and_is_counted_apart() {
        let idle = Arc::new(AtomicUsize::new(0));
        let meeting = meeting(0, &idle);
        let node = Guest::Member(NodeId::from_octets([7; 32]));
        let kept: Vec<_> = (0..MEMBER_CONNECTIONS_MAX).map(|_| meeting.admit(node.clone())).collect();
        assert!(kept.iter().all(Result::is_ok), "nothing waits, and it stays for what comes");
        assert_eq!(meeting.admit(node).err(), Some(TOO_MANY));
        assert!(meeting.admit(Guest::Member(NodeId::from_octets([8; 32]))).is_ok());
    }

    #[test]
    fn sessions_that_are_passed_on_are_bounded_for_each_member_and_altogether() {
        let meeting = Meeting::default();
        let node = |n: u8| NodeId::from_octets([n; 32]);
        let mut kept = Vec::new();
        for n in 0..64 / 8 {
            let own: Vec<_> = (0..THROUGH_PER_MEMBER_MAX).map(|_| meeting.admit_through(&node(n))).collect();
            assert!(own.iter().all(Result::is_ok));
            assert_eq!(meeting.admit_through(&node(n)).err(), Some(TOO_MANY_THROUGH));
            kept.push(own);
        }
        assert_eq!(meeting.admit_through(&node(99)).err(), Some(TOO_MANY_THROUGH), "altogether");
        kept.pop();
        assert!(meeting.admit_through(&node(99)).is_ok() && meeting.connections() == 0);
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
