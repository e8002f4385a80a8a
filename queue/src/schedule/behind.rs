//! What goes behind an attempt, over the same session: so that its commands travel with the content
//! before it, or a burst of messages takes few sessions.
//!
//! It takes no session of its own until the one before it has finished, so it displaces nobody. It
//! goes where the site is open and answers, and no sooner than rates and turns allow.

use super::site::PROVEN;
use super::{Attempt, Lane, Schedule};
use crate::id::UnixMillis;

impl Schedule {
    /// Returns the next job of a site for whoever is to deliver it behind `attempt`, the last one so
    /// far over its session. It is none of a lower lane, which may have fewer sessions, and there is
    /// none while other sites wait for a session. When the attempts before it have finished it is to be
    /// taken up ([`Schedule::take_up`]) or finished, too.
    pub fn next_behind(&mut self, attempt: &Attempt, now: UnixMillis) -> Option<Attempt> {
        self.advance(now);
        let (number, site) = (attempt.site, self.sites.get(attempt.site));
        let is_open = site.class() == PROVEN && self.gate(number) <= self.now;
        let is_scarce = self.in_flight + 1 >= self.limits.total_max(Lane::Normal);
        if self.held || !is_open || (is_scarce && self.others_wait(number)) {
            return None;
        }
        let may = |lane: &Lane| *lane <= attempt.lane && site.waiting[*lane as usize] > 0;
        let lane = Lane::in_turn(site.turn).into_iter().find(may)?;
        self.launch(number, lane, true)
    }

    /// Gives an attempt that went behind another the session of that one, which has finished.
    pub fn take_up(&mut self, attempt: &mut Attempt) {
        if std::mem::take(&mut attempt.is_behind) {
            self.sites.at(attempt.site).taken_up(attempt.lane);
            self.in_flight += 1;
        }
    }
}
