//! From a message to its jobs: one for each destination with pending recipients, whose turn each
//! takes and what it costs. Pure but for the settings.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use postroad_queue::schedule::{Job, Lane, Load};
use postroad_queue::{Item, UnixMillis};

use super::dispatcher::Routing;
use crate::route::{Mail, Route};

/// The lowest priority that goes before other mail. Those below are what mail clients make of
/// "important"; 4 is what "urgent" of X.400 becomes (RFC 6710).
const URGENT_PRIORITY_MIN: i8 = 4;

/// Returns one job for each destination that has pending recipients.
pub fn jobs(routing: &Routing, senders: &RandomState, item: &Item, mail: &Mail<'_>, now: UnixMillis) -> Vec<Job> {
    let (lane, sender) = (lane(item), sender(senders, item));
    let mut found: Vec<(Arc<str>, u16, UnixMillis, usize)> = Vec::new();
    for (place, recipient) in item.envelope.recipients().iter().enumerate() {
        let Some(due) = routing.due(item, place, now) else { continue };
        let route = routing.router.route_mail(&recipient.forward_path, mail);
        let destination = key(&route);
        match found.iter_mut().find(|(known, ..)| *known == destination) {
            Some((_, _, first, recipients)) => (*first, *recipients) = (due.min(*first), *recipients + 1),
            None => found.push((destination, pace(&route), due, 1)),
        }
    }
    if found.is_empty() {
        // Nothing pending but not retired: a notification is still owed. Any attempt settles it.
        found.push((refused_key(), 0, UnixMillis(0), 1));
    }
    let job = |(destination, allowance, due, recipients)| {
        let load = Load::new(recipients, item.content_octets);
        Job { id: item.id, destination, due, lane, sender, load, allowance }
    };
    found.into_iter().map(job).collect()
}

/// Returns the lane of a message: by its priority, of which the policy let pass what it trusts.
/// Anybody may send with the null reverse-path; what this host says itself is urgent.
fn lane(item: &Item) -> Lane {
    match item.envelope.params.priority.unwrap_or_default().get() {
        _ if &*item.origin.protocol == "dsn" => Lane::Urgent,
        ..0 => Lane::Bulk,
        0..URGENT_PRIORITY_MIN => Lane::Normal,
        URGENT_PRIORITY_MIN.. => Lane::Urgent,
    }
}

/// Returns whose turn a message takes: that of the user who logged in, else that of the domain it
/// comes from (lists write another local-part for each recipient), else that of the client. A number
/// made with a secret: nobody outside can choose to share another's.
fn sender(senders: &RandomState, item: &Item) -> u32 {
    let domain = item.envelope.reverse_path.mailbox().and_then(|mailbox| mailbox.domain());
    let hash = match (&item.origin.user, domain) {
        (Some(user), _) => senders.hash_one(("user", user)),
        (None, Some(domain)) => senders.hash_one(("domain", domain)),
        (None, None) => senders.hash_one(("peer", item.origin.peer)),
    };
    // Any half of it is as good as the other.
    (hash >> 32) as u32
}

/// Returns what attempts for a route are grouped by.
pub fn key(route: &Route) -> Arc<str> {
    match route {
        Route::Local(hop) => hop.key().clone(),
        Route::Smtp(hop) => hop.key().clone(),
        Route::Turn(hop) => hop.key().clone(),
        Route::Refused(_) => refused_key(),
    }
}

fn pace(route: &Route) -> u16 {
    match route {
        Route::Smtp(hop) => hop.pace(),
        Route::Turn(hop) => hop.pace(),
        Route::Local(_) | Route::Refused(_) => 0,
    }
}

/// The destination of what goes nowhere: attempts there settle without a connection.
fn refused_key() -> Arc<str> {
    Arc::from("none:")
}

#[cfg(test)]
mod tests {
    use postroad_queue::{Origin, QueueId, State};
    use postroad_smtp::{Envelope, MailParams, Priority, Recipient};

    use super::*;

    fn item(from: &str, user: Option<&str>, peer: &str) -> Item {
        let to = vec![Recipient::new("b@example.net".parse().expect("a path"))];
        let envelope = Envelope::new(from.parse().expect("a path"), MailParams::default(), to).expect("a recipient");
        let peer = Some(peer.parse().expect("an address"));
        let origin = Origin { user: user.map(Into::into), peer, ..Origin::default() };
        let state = State::fresh(1, UnixMillis(0), UnixMillis(1));
        Item { id: QueueId::from_u64(1), arrived: UnixMillis(0), envelope, origin, content_octets: 1, state }
    }

    #[test]
    fn turns_are_those_of_a_login_else_of_a_domain_else_of_a_client() {
        let senders = RandomState::new();
        let turn = |from, user, peer| sender(&senders, &item(from, user, peer));
        let list = turn("bounce-1@list.example", None, "192.0.2.1");
        assert_eq!(turn("bounce-2@list.example", None, "192.0.2.2"), list, "one for each recipient");
        assert_ne!(turn("a@other.example", None, "192.0.2.1"), list);
        let alice = turn("a@list.example", Some("alice"), "192.0.2.1");
        assert_ne!(alice, list);
        assert_eq!(turn("b@own.example", Some("alice"), "192.0.2.9"), alice);
        assert_ne!(turn("a@list.example", Some("bob"), "192.0.2.1"), alice);
        assert_eq!(turn("", None, "192.0.2.1"), turn("", None, "192.0.2.1"));
        assert_ne!(turn("", None, "192.0.2.1"), turn("", None, "192.0.2.2"));
    }

    #[test]
    fn the_lane_is_that_of_the_priority_and_what_this_host_says_is_urgent() {
        let mut item = item("a@list.example", None, "192.0.2.1");
        for (priority, want) in [(-9, Lane::Bulk), (-1, Lane::Bulk), (0, Lane::Normal), (3, Lane::Normal)]
            .into_iter()
            .chain([(4, Lane::Urgent), (9, Lane::Urgent)])
        {
            item.envelope.params.priority = Priority::new(priority);
            assert_eq!(lane(&item), want, "{priority}");
        }
        item.envelope.params.priority = Priority::new(-9);
        item.origin.protocol = "dsn".into();
        assert_eq!(lane(&item), Lane::Urgent);
    }
}
