//! Which of the hosts that mail is fetched from are out of reach, so that it is said when that begins and when
//! it is over, and not at every try. Connections to one host have one outage together.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Hosts out of reach, by their names for people.
#[derive(Debug, Default)]
pub(super) struct Outages(Mutex<BTreeSet<Box<str>>>);

impl Outages {
    /// A try has failed. Returns whether the outage begins with it.
    pub fn failed(&self, host: &str) -> bool {
        self.lock().insert(host.into())
    }

    /// A host was reached. Returns whether an outage is over with that.
    pub fn reached(&self, host: &str) -> bool {
        self.lock().remove(host)
    }

    /// Forgets all but those named.
    pub fn keep(&self, is_known: impl Fn(&str) -> bool) {
        self.lock().retain(|host| is_known(host));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<Box<str>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_begins_once_and_ends_once() {
        let outages = Outages::default();
        assert!(!outages.reached("a"), "nothing was wrong");
        assert_eq!([(); 4].map(|()| outages.failed("a")), [true, false, false, false]);
        assert!(outages.failed("b"), "another host has its own");
        assert!(outages.reached("a") && !outages.reached("a"));
        assert!(outages.failed("a"));
        outages.keep(|host| host == "b");
        assert!(outages.failed("a") && !outages.failed("b"));
    }
}
