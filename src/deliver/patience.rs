//! How often and how long each recipient is tried: what the route that it takes says, by the
//! settings in force now. Mail in the queue follows them from a reload on.

use std::time::Duration;

use postroad_queue::{Item, RecipientState, RetryPolicy, UnixMillis};

use super::dispatcher::Routing;
use crate::clock::millis;
use crate::config::{self, Patience, Retry};
use crate::dsn;

impl Routing {
    /// Returns the pauses between attempts for a recipient.
    pub fn retry(&self, item: &Item, place: usize) -> RetryPolicy {
        policy(&self.patience(item, place).retry)
    }

    /// Returns what a sender is told of a recipient depends on.
    pub fn terms(&self, item: &Item, place: usize) -> dsn::Terms {
        let path = &item.envelope.recipients()[place].forward_path;
        let notice = self.router.patience(path).delay_notice;
        dsn::Terms {
            is_final: self.router.is_local(path),
            expires: self.router.expires(item, place),
            // Who says when a message is late hears of it then (RFC 2852 §4.1); of one that was late
            // when it came, the host before us has told.
            late: item
                .deliver_by()
                .filter(|at| !item.returns_late() && *at > item.arrived)
                .or(notice.map(|notice| item.released().plus(millis(notice)))),
        }
    }

    /// Returns when a pending recipient is due: as recorded, or sooner when its route has shorter
    /// pauses by now than when that was written, or when that was by a clock that was ahead.
    pub fn due(&self, item: &Item, place: usize, now: UnixMillis) -> Option<UnixMillis> {
        let RecipientState::Pending { attempts, due, last, .. } = &item.state.recipients[place] else { return None };
        let latest = match last {
            Some(last) => last.at.min(now).plus(self.retry(item, place).delay(*attempts, 1.0)),
            // Its sender says when it is due.
            None if item.envelope.params.release.is_some() => *due,
            None => now,
        };
        Some(latest.min(*due))
    }

    /// Returns how often a destination that cannot be reached is probed, where no route says more:
    /// whoever wants messages tried often wants that as often.
    pub fn probes(&self) -> RetryPolicy {
        let retry = policy(&self.config.queue.retry);
        RetryPolicy {
            first_ms: RetryPolicy::DESTINATION.first_ms.min(retry.first_ms),
            max_ms: RetryPolicy::DESTINATION.max_ms.min(retry.max_ms),
            ..RetryPolicy::DESTINATION
        }
    }

    /// Returns how often the next hop of a route is probed while it cannot be reached. With pauses of
    /// its own at these and no oftener: the line to it may cost money.
    pub fn probes_of(&self, route: &config::Route) -> RetryPolicy {
        let retry = &route.patience.retry;
        if *retry == self.config.queue.retry { self.probes() } else { policy(retry) }
    }

    /// Returns the ages, in milliseconds, at which mail expires or its sender hears of a delay.
    pub fn ages(&self) -> impl Iterator<Item = u64> {
        let queue = &self.config.queue;
        let of = |patience: &Patience| [patience.expire, patience.delay_notice];
        [Some(queue.expire), queue.delay_notice].into_iter().chain(self.own().flat_map(of)).flatten().map(millis)
    }

    /// Returns the shortest time after which mail expires, in milliseconds.
    pub fn expire_min_ms(&self) -> u64 {
        millis(self.own().filter_map(|patience| patience.expire).fold(self.config.queue.expire, Duration::min))
    }

    /// Returns what routes and customers have of their own.
    fn own(&self) -> impl Iterator<Item = &Patience> {
        let routes = self.config.routes.iter().map(|route| &route.patience);
        routes.chain(self.config.turns.iter().map(|turn| &turn.patience))
    }

    fn patience(&self, item: &Item, place: usize) -> &Patience {
        self.router.patience(&item.envelope.recipients()[place].forward_path)
    }
}

/// Returns the arithmetic of a setting.
fn policy(retry: &Retry) -> RetryPolicy {
    let Retry { first, factor, max } = *retry;
    RetryPolicy { first_ms: millis(first), factor, max_ms: millis(max), ..RetryPolicy::MESSAGE }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use postroad_queue::{History, Origin, QueueId, Report, State};
    use postroad_smtp::{Envelope, MailParams, Recipient, Reply};

    use super::super::scenario;
    use super::*;

    const MINUTE_MS: u64 = 60_000;

    fn routing(text: &str) -> Routing {
        scenario::routing(&scenario::config(text, Path::new("/etc")))
    }

    /// To a partner, somebody else and this host.
    fn item() -> Item {
        let to = ["a@partner.example", "b@example.net", "c@home.example"];
        let recipients: Vec<_> = to.iter().map(|path| Recipient::new(path.parse().expect("a path"))).collect();
        let reverse_path = "s@home.example".parse().expect("a path");
        let state = State::fresh(3, UnixMillis(0), UnixMillis(999 * MINUTE_MS));
        let envelope = Envelope::new(reverse_path, MailParams::default(), recipients).expect("recipients");
        Item {
            id: QueueId::from_u64(1),
            arrived: UnixMillis(0),
            envelope,
            origin: Origin::default(),
            content_octets: 1,
            state,
        }
    }

    const SETTINGS: &str = "[queue]\nretry_first = \"10m\"\nretry_max = \"2h\"\ndelay_notice = \"3h\"\n\
        [[local]]\ndomain = \"home.example\"\nmaildir = \"/m/{user}\"\n[[route]]\ndomain = \"*\"\nvia = \"mx\"\n\
        retry_factor = 3.0\n[[route]]\ndomain = \"partner.example\"\nvia = \"mx\"\nretry_first = \"1m\"\nretry_max = \"4m\"\n\
        expire = \"30m\"\ndelay_notice = \"0s\"\n";

    #[test]
    fn each_recipient_has_the_patience_of_its_route_and_the_rest_from_the_queue() {
        let (routing, item) = (routing(SETTINGS), item());
        let waits = |place: usize| [1, 2, 9].map(|tries| routing.retry(&item, place).delay(tries, 0.5) / MINUTE_MS);
        assert_eq!([waits(0), waits(1), waits(2)], [[1, 2, 4], [10, 30, 120], [10, 20, 120]]);
        let expires = [0, 1, 2].map(|place| routing.terms(&item, place).expires.0 / MINUTE_MS);
        assert_eq!(expires, [30, 999, 999]);
        let late = [0, 1, 2].map(|place| routing.terms(&item, place).late.map(|at| at.0 / MINUTE_MS));
        assert_eq!(late, [None, Some(180), Some(180)]);
        assert_eq!([0, 1, 2].map(|place| routing.terms(&item, place).is_final), [false, false, true]);
        let mut ages: Vec<u64> = routing.ages().map(|age| age / MINUTE_MS).collect();
        ages.sort_unstable();
        assert_eq!(ages, [30, 180, 180, 5 * 24 * 60]);
    }

    #[test]
    fn a_next_hop_is_probed_as_often_as_its_route_says_and_others_often() {
        let routing = routing(SETTINGS);
        let probes = |at: usize| routing.probes_of(&routing.config.routes[at]).first_ms;
        assert_eq!([probes(0), probes(1)], [10 * MINUTE_MS, MINUTE_MS]);
        assert_eq!((routing.probes().first_ms, routing.probes().max_ms), (10_000, 10 * MINUTE_MS));
    }

    #[test]
    fn shorter_pauses_hold_at_once_and_longer_ones_from_the_next_attempt() {
        let mut item = item();
        let said = Report { at: UnixMillis(0), remote: None, reply: Reply::of(451, None, "later") };
        let pending = |due| RecipientState::Pending {
            attempts: 1,
            due: UnixMillis(due),
            last: Some(said.clone()),
            earlier: History::default(),
        };
        item.state.recipients[0] = pending(60 * MINUTE_MS);
        item.state.recipients[1] = pending(5 * MINUTE_MS);
        let routing = routing(SETTINGS);
        let due = |item: &Item, place| routing.due(item, place, UnixMillis(0));
        assert_eq!(due(&item, 0), Some(UnixMillis(72_000)), "a minute, and the most of its jitter");
        assert_eq!(due(&item, 1), Some(UnixMillis(5 * MINUTE_MS)));
        assert_eq!(due(&item, 2), Some(UnixMillis(0)), "never tried: as recorded");
    }

    #[test]
    fn a_clock_that_was_ahead_puts_nothing_off_for_longer() {
        let (routing, now) = (routing(SETTINGS), UnixMillis(1_000_000));
        let mut item = item();
        let year = 365 * 24 * 60 * MINUTE_MS;
        let said = Report { at: UnixMillis(year), remote: None, reply: Reply::of(451, None, "later") };
        let (attempts, due, earlier) = (2, UnixMillis(year + MINUTE_MS), History::default());
        item.state.recipients[0] = RecipientState::Pending { attempts, due, last: Some(said), earlier };
        item.state.recipients[1] =
            RecipientState::Pending { attempts: 0, due, last: None, earlier: History::default() };
        assert_eq!(routing.due(&item, 0, now), Some(now.plus(144_000)), "two minutes, and the most of its jitter");
        assert_eq!(routing.due(&item, 1, now), Some(now));
        item.envelope.params.release = Some(postroad_smtp::Release::At(due.0));
        assert_eq!(routing.due(&item, 1, now), Some(due), "its sender asked for that");
    }
}
