//! From a message to its jobs: one for each destination with pending recipients, whose turn each
//! takes and what it costs. Pure but for the settings.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use postroad_queue::schedule::{Job, Lane, Load};
use postroad_queue::{Item, UnixMillis};

use super::dispatcher::Routing;
use crate::route::Route;

/// The lowest priority that goes before other mail. Those below are what mail clients make of
/// "important"; 4 is what "urgent" of X.400 becomes (RFC 6710).
const URGENT_PRIORITY_MIN: i8 = 4;

/// Returns one job for each destination that has pending recipients.
pub fn jobs(routing: &Routing, senders: &RandomState, item: &Item) -> Vec<Job> {
    let (lane, sender) = (lane(item), sender(senders, item));
    let mail = routing.router.mail(item);
    let mut found: Vec<(Arc<str>, u16, UnixMillis, usize)> = Vec::new();
    for (place, recipient) in item.envelope.recipients().iter().enumerate() {
        let Some(due) = routing.due(item, place) else { continue };
        let route = routing.router.route_mail(&recipient.forward_path, &mail);
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
