//! A customer that fetches its mail, as a destination (On-Demand Mail Relay, RFC 2645).

use std::sync::Arc;

use postroad_smtp::Domain;

/// How the keys of such destinations begin.
pub const PREFIX: &str = "turn:";

/// A domain whose mail is never dialled: it waits until its customer comes for it. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TurnHop(Arc<Waiting>);

#[derive(Debug, PartialEq, Eq)]
struct Waiting {
    key: Arc<str>,
    site: Arc<str>,
    user: Box<str>,
    pace: u16,
}

impl TurnHop {
    pub(super) fn new(user: &str, domain: &Domain, pace: u16) -> TurnHop {
        let (key, site) = (key(user, domain), site(user));
        TurnHop(Arc::new(Waiting { key, site, user: user.into(), pace }))
    }

    /// Returns what attempts are grouped by, as [`key`] makes it: each domain apart, since a customer
    /// may come for some of its domains.
    pub fn key(&self) -> &Arc<str> {
        &self.0.key
    }

    /// Returns what all domains of the customer share: its connection.
    pub fn site(&self) -> &Arc<str> {
        &self.0.site
    }

    /// Returns who fetches.
    pub fn user(&self) -> &str {
        &self.0.user
    }

    /// Returns the number of the limits that hold, behind those of the routes.
    pub fn pace(&self) -> u16 {
        self.0.pace
    }
}

/// Returns the destination of a customer's domain: `turn:branch/branch.example`.
pub fn key(user: &str, domain: &Domain) -> Arc<str> {
    format!("{PREFIX}{user}/{domain}").into()
}

/// Returns the site of a customer: `turn:branch`.
pub fn site(user: &str) -> Arc<str> {
    format!("{PREFIX}{user}").into()
}

/// Returns who fetches the mail of a destination, of those where customers do.
pub fn user_of(key: &str) -> Option<&str> {
    let (user, _) = key.strip_prefix(PREFIX)?.rsplit_once('/')?;
    Some(user)
}
