//! When mail is given up: what the route that it takes says, and its sender.

use postroad_queue::{Item, RecipientState, UnixMillis};

use postroad_smtp::ForwardPath;

use super::Router;

impl Router {
    /// Returns when a recipient is given up. A message keeps the `queue.expire` it was accepted
    /// under; a route's own counts from the release and holds for mail that waits already. Neither
    /// lasts longer than the time after which its sender wants it back (RFC 2852). What is held for a home
    /// that names this host as pick-up waits as long as this host said it holds mail, if that is longer.
    pub fn expires(&self, item: &Item, place: usize) -> UnixMillis {
        let own = self.patience(&item.envelope.recipients()[place].forward_path).expire;
        let millis = own.map(|expire| u64::try_from(expire.as_millis()).unwrap_or(u64::MAX));
        let expires = millis.map_or(item.state.expires, |millis| item.released().plus(millis));
        let held = self.held_ms(&item.envelope.recipients()[place].forward_path);
        let expires = held.map_or(expires, |millis| item.released().plus(millis).max(expires));
        item.deliver_by().filter(|_| item.returns_late()).map_or(expires, |by| by.min(expires))
    }

    /// Returns how long mail for a forward-path is held for its home here, in milliseconds.
    fn held_ms(&self, path: &ForwardPath) -> Option<u64> {
        self.members()?.holds_ms(path.domain()?)
    }

    /// Returns when the first of the pending recipients is given up.
    pub fn first_expires(&self, item: &Item) -> UnixMillis {
        let all = item.state.recipients.iter().enumerate();
        let pending = all.filter(|(_, state)| matches!(state, RecipientState::Pending { .. }));
        pending.map(|(place, _)| self.expires(item, place)).min().unwrap_or(item.state.expires)
    }
}
