//! How much one address may take: sessions at a time, and failed logins in a while. Memory is
//! bounded whatever the world does; an IPv6 /64 counts as one address, since one host has all of it.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use postroad_smtp::Reply;

use super::replies;

/// How long a failed login counts.
pub const AUTH_FAILURE_WINDOW: Duration = Duration::from_secs(600);

/// How many addresses with failed logins are remembered; the oldest is forgotten for a new one.
pub const AUTH_FAILURE_ADDRESSES_MAX: usize = 10_000;

/// An IPv4 address or an IPv6 /64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Origin(IpAddr);

impl Origin {
    fn of(peer: IpAddr) -> Origin {
        match peer.to_canonical() {
            IpAddr::V6(ip) if !ip.is_loopback() => {
                Origin(Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into())
            }
            ip => Origin(ip),
        }
    }
}

/// Sessions at a time.
#[derive(Debug, Default)]
pub struct Sessions(Mutex<SessionCounts>);

#[derive(Debug, Default)]
struct SessionCounts {
    all: u32,
    by_origin: HashMap<Origin, u32>,
}

/// One session, for as long as it is kept.
#[derive(Debug)]
pub struct SessionPermit {
    sessions: Arc<Sessions>,
    origin: Origin,
}

impl Sessions {
    /// Counts a session. This host itself is limited by `all_max` only.
    ///
    /// # Errors
    /// 421 when there are too many.
    pub fn enter(self: &Arc<Self>, peer: IpAddr, all_max: u32, per_address_max: u32) -> Result<SessionPermit, Reply> {
        let origin = Origin::of(peer);
        let mut counts = self.lock();
        if counts.all >= all_max {
            return Err(replies::TOO_MANY_SESSIONS);
        }
        let count = counts.by_origin.entry(origin).or_default();
        if *count >= per_address_max && !origin.0.is_loopback() {
            return Err(replies::TOO_MANY_SESSIONS_OF_ADDRESS);
        }
        *count += 1;
        counts.all += 1;
        Ok(SessionPermit { sessions: Arc::clone(self), origin })
    }

    /// Returns how many sessions there are.
    pub fn count(&self) -> u32 {
        self.lock().all
    }

    fn lock(&self) -> MutexGuard<'_, SessionCounts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for SessionPermit {
    fn drop(&mut self) {
        let mut counts = self.sessions.lock();
        counts.all -= 1;
        if let Some(count) = counts.by_origin.get_mut(&self.origin) {
            *count -= 1;
            if *count == 0 {
                counts.by_origin.remove(&self.origin);
            }
        }
    }
}

/// Failed logins of the last ten minutes.
#[derive(Debug, Default)]
pub struct AuthFailures(Mutex<HashMap<Origin, Failures>>);

#[derive(Clone, Copy, Debug)]
struct Failures {
    since: Instant,
    count: u32,
}

impl AuthFailures {
    /// Counts one more and returns `true`, or `false` when `failures_max` is reached already.
    pub fn add(&self, peer: IpAddr, failures_max: u32, now: Instant) -> bool {
        let origin = Origin::of(peer);
        let mut all = self.lock();
        if all.len() >= AUTH_FAILURE_ADDRESSES_MAX && !all.contains_key(&origin) {
            make_room(&mut all, now);
        }
        let failures = all.entry(origin).or_insert(Failures { since: now, count: 0 });
        if now.saturating_duration_since(failures.since) >= AUTH_FAILURE_WINDOW {
            *failures = Failures { since: now, count: 0 };
        }
        let allowed = failures.count < failures_max;
        failures.count += u32::from(allowed);
        allowed
    }

    /// Takes one back: the login was right, or nobody looked at it.
    pub fn take_back(&self, peer: IpAddr) {
        let origin = Origin::of(peer);
        let mut all = self.lock();
        let Some(failures) = all.get_mut(&origin) else { return };
        failures.count = failures.count.saturating_sub(1);
        if failures.count == 0 {
            all.remove(&origin);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Origin, Failures>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn make_room(all: &mut HashMap<Origin, Failures>, now: Instant) {
    all.retain(|_, failures| now.saturating_duration_since(failures.since) < AUTH_FAILURE_WINDOW);
    if all.len() >= AUTH_FAILURE_ADDRESSES_MAX {
        let oldest = all.iter().min_by_key(|(_, failures)| failures.since).map(|(origin, _)| *origin);
        oldest.map(|origin| all.remove(&origin));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect(text)
    }

    #[test]
    fn sessions_are_counted_by_address_and_altogether() {
        let sessions = Arc::new(Sessions::default());
        let enter = |peer| sessions.enter(ip(peer), 5, 2);
        let mut kept = vec![enter("192.0.2.1").expect("first"), enter("::ffff:192.0.2.1").expect("second")];
        assert_eq!(enter("192.0.2.1").expect_err("third"), replies::TOO_MANY_SESSIONS_OF_ADDRESS);
        kept.push(enter("2001:db8::1").expect("another"));
        kept.push(enter("2001:db8::ffff:1").expect("the same /64"));
        assert!(enter("2001:db8::2").is_err(), "a /64 is one address");
        kept.push(enter("2001:db8:0:1::1").expect("another /64"));
        assert_eq!(enter("127.0.0.1").expect_err("all"), replies::TOO_MANY_SESSIONS);
        kept.clear();
        assert_eq!((sessions.count(), sessions.lock().by_origin.len()), (0, 0), "nothing is left behind");
    }

    #[test]
    fn this_host_itself_may_use_all_sessions() {
        let sessions = Arc::new(Sessions::default());
        let kept: Vec<_> = (0..10).map(|_| sessions.enter(ip("127.0.0.1"), 10, 2).expect("loopback")).collect();
        assert!(sessions.enter(ip("127.0.0.1"), 10, 2).is_err());
        drop(kept);
    }

    #[test]
    fn failures_end_with_their_window() {
        let failures = AuthFailures::default();
        let (peer, start) = (ip("192.0.2.1"), Instant::now());
        let add = |after| failures.add(peer, 3, start + Duration::from_secs(after));
        assert!(add(0) && add(1) && add(2) && !add(3) && !add(599));
        assert!(failures.add(ip("192.0.2.2"), 3, start), "others are not concerned");
        assert!(add(600) && add(601));
        failures.take_back(peer);
        assert!(add(602) && add(603) && !add(604));
    }

    #[test]
    fn the_memory_of_failures_is_bounded() {
        let failures = AuthFailures::default();
        let start = Instant::now();
        for n in 0..AUTH_FAILURE_ADDRESSES_MAX as u32 + 50 {
            let peer = IpAddr::V4(n.into());
            assert!(failures.add(peer, 3, start + Duration::from_millis(n.into())));
        }
        assert_eq!(failures.lock().len(), AUTH_FAILURE_ADDRESSES_MAX);
    }
}
