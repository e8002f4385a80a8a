//! One site as the schedule sees it: the hosts that take the mail of one or many destinations, how
//! many sessions they bear at once and how fast, and whether they can be reached at all.
//!
//! The window opens by one after a round of successes and halves when sessions are refused or
//! lost. A site that fails with no success beside it is closed; when its back-off ends one attempt
//! probes it, and a success opens it for all that waits: by one for each success up to half of what
//! it bore before, then by one a round again. Jobs that lost their session when the outage began go with
//! the others then. Only attempts that started after the last such judgement count, so that twenty
//! sessions lost together are one event.

use std::sync::Arc;

use super::Lane;
use super::job::{LANES, Load};
use super::limits::{Allowance, bulk_max};
use super::pace::Pace;
use super::probe::{Silence, pause_ms};
use crate::id::{QueueId, UnixMillis};
use crate::retry::RetryPolicy;

/// The class of sites that have answered since they were last silent.
pub(super) const PROVEN: usize = 0;
/// The class of the others.
pub(super) const UNPROVEN: usize = 1;

/// Jobs remembered that lost their session, at most.
const SHAKEN_MAX: usize = 1_000;

/// What the schedule keeps of a site.
#[derive(Debug)]
pub(super) struct Site {
    pub name: Arc<str>,
    /// Which of the limits' allowances holds for it.
    pub allowance: u16,
    /// How many lines lead here.
    pub lines: u32,
    /// Lines with a ready job, by lane.
    pub waiting: [u32; LANES],
    /// Attempts that have started and not finished, by lane.
    pub in_flight: [u32; LANES],
    /// Attempts behind these, which wait for their sessions.
    pub behind: u32,
    /// How many attempts may be in flight while it is open.
    pub window: u32,
    /// Below this the window grows with every success.
    threshold: u32,
    /// Why it is closed; none while it is open.
    pub outage: Option<Box<Outage>>,
    /// Its turn in each rotation, by class and lane; 0 where it does not stand.
    pub listed: [[u64; LANES]; 2],
    /// When it has to be looked at again, as it stands among the timers.
    pub timer: Option<UnixMillis>,
    /// Counts its starts, for the lanes' turns.
    pub turn: u32,
    /// Jobs a kept connection took while others waited, since its last turn in the rotation.
    pub taken: u32,
    /// Jobs whose session was refused or lost since a transaction was last completed, and their lines,
    /// which led here.
    pub shaken: Vec<(QueueId, u32)>,
    pace: Pace,
    /// Whether it has answered since it was last silent.
    proven: bool,
    /// Successes since the window last changed.
    successes: u32,
    /// The newest attempt there was when a failure last counted.
    judged: u64,
    /// The newest attempt there was at the last success.
    succeeded: u64,
}

/// A site that cannot be reached.
#[derive(Debug)]
pub(super) struct Outage {
    pub until: UnixMillis,
    pub failures: u32,
    pub said: Arc<str>,
    /// The attempt that probes it now.
    pub probe: Option<u64>,
    /// When the latest one that did started; before the first, when it was closed.
    probed_at: UnixMillis,
}

impl Site {
    pub fn new(name: Arc<str>, allowance: u16, window: u32) -> Site {
        Site {
            name,
            allowance,
            lines: 0,
            waiting: [0; LANES],
            in_flight: [0; LANES],
            behind: 0,
            window,
            threshold: 0,
            outage: None,
            listed: Default::default(),
            timer: None,
            turn: 0,
            taken: 0,
            shaken: Vec::new(),
            pace: Pace::default(),
            proven: false,
            successes: 0,
            judged: 0,
            succeeded: 0,
        }
    }

    /// Returns how many attempts are in flight.
    pub fn attempts(&self) -> u32 {
        self.in_flight.iter().sum()
    }

    /// Returns whether one more attempt fits, its back-off and its rates aside.
    pub fn has_slot(&self) -> bool {
        match &self.outage {
            None => self.attempts() < self.window,
            Some(outage) => outage.probe.is_none(),
        }
    }

    /// Returns whether a job of this lane may have a slot that is free.
    pub fn fits(&self, lane: Lane) -> bool {
        lane != Lane::Bulk || self.outage.is_some() || self.in_flight[Lane::Bulk as usize] < bulk_max(self.window)
    }

    /// Returns [`PROVEN`] or [`UNPROVEN`].
    pub fn class(&self) -> usize {
        if self.proven { PROVEN } else { UNPROVEN }
    }

    /// Returns the time before which nothing starts; the beginning of time while it is open.
    pub fn closed_until(&self) -> UnixMillis {
        self.outage.as_ref().map_or(UnixMillis(0), |outage| outage.until)
    }

    /// Returns the time before which its rates let nothing start.
    pub fn paced_until(&self, allowance: &Allowance) -> UnixMillis {
        self.pace.free_at(allowance.messages, allowance.octets)
    }

    /// Goes on at other rates: what was sent at the old ones does not count.
    pub fn repace(&mut self, old: &Allowance, new: &Allowance) {
        if (old.messages, old.octets) != (new.messages, new.octets) {
            self.pace = Pace::default();
        }
    }

    /// Counts an attempt in; returns whether it is the probe.
    pub fn started(&mut self, serial: u64, lane: Lane, now: UnixMillis) -> bool {
        self.in_flight[lane as usize] += 1;
        self.turn = self.turn.wrapping_add(1);
        if let Some(outage) = &mut self.outage {
            outage.probe = Some(serial);
            outage.probed_at = now;
        }
        self.outage.is_some()
    }

    /// Counts an attempt in that goes behind another.
    pub fn started_behind(&mut self) {
        self.behind += 1;
        self.turn = self.turn.wrapping_add(1);
    }

    /// Counts such an attempt among those that have a session.
    pub fn taken_up(&mut self, lane: Lane) {
        self.behind -= 1;
        self.in_flight[lane as usize] += 1;
    }

    /// Counts what an attempt sends.
    pub fn sends(&mut self, load: Load, allowance: &Allowance, now: UnixMillis) {
        let rates = [allowance.messages, allowance.octets];
        if rates != [None, None] {
            self.pace.take(rates, [load.messages(), load.octets()], now);
        }
    }

    /// Counts an attempt out, without a judgement.
    pub fn ended(&mut self, serial: u64, lane: Lane) {
        self.in_flight[lane as usize] -= 1;
        if let Some(outage) = self.outage.as_mut().filter(|outage| outage.probe == Some(serial)) {
            outage.probe = None;
        }
    }

    /// Notes that the site answered. `newest` is the latest serial given out anywhere. Returns the jobs
    /// that lost their session when an outage began that ends here.
    pub fn reached(&mut self, newest: u64, window_first: u32) -> Vec<(QueueId, u32)> {
        self.succeeded = newest;
        self.proven = true;
        if self.outage.take().is_none() {
            return Vec::new();
        }
        self.threshold = self.window / 2;
        self.window = window_first;
        self.successes = 0;
        self.judged = newest;
        std::mem::take(&mut self.shaken)
    }

    /// Remembers a job that is put off because its session was refused or lost: should that be how an outage
    /// begins, it goes with all others when that ends.
    pub fn shook(&mut self, id: QueueId, line: u32) {
        if self.shaken.len() < SHAKEN_MAX {
            self.shaken.push((id, line));
        }
    }

    /// Notes a completed transaction: after a whole window of them the window grows by one, and with
    /// each as long as it is far from what it was.
    pub fn completed(&mut self, window_max: u32) {
        self.shaken = Vec::new();
        self.successes += 1;
        let grows = self.successes >= self.window || self.window < self.threshold;
        if grows && self.window < window_max {
            self.window += 1;
            self.successes = 0;
        }
    }

    /// Notes a session refused or lost: halves the window, or closes the site when there is nothing
    /// left to halve.
    pub fn throttled(&mut self, attempt: &Blame<'_>, random: f64) {
        if self.outage.is_none() && self.window > 1 {
            self.cut(attempt);
        } else {
            self.close(attempt, random);
        }
    }

    /// Notes that the site could not be reached: closes it, unless another attempt came through
    /// since this one started.
    pub fn unreachable(&mut self, attempt: &Blame<'_>, random: f64) {
        if self.outage.is_none() && self.succeeded >= attempt.serial && self.window > 1 {
            self.cut(attempt);
        } else {
            self.close(attempt, random);
        }
    }

    fn cut(&mut self, attempt: &Blame<'_>) {
        if attempt.serial > self.judged {
            self.window = (self.window / 2).max(1);
            self.threshold = 0;
            self.successes = 0;
            self.judged = attempt.newest;
        }
    }

    fn close(&mut self, attempt: &Blame<'_>, random: f64) {
        if attempt.serial <= self.judged {
            return;
        }
        self.judged = attempt.newest;
        self.proven = false;
        let before = self.outage.as_ref().map(|outage| (outage.failures, attempt.now.since(outage.probed_at)));
        let (failures, took_ms) = before.unwrap_or_default();
        let failures = failures.saturating_add(1);
        let silence = attempt.silent.map(|waiting| Silence { waiting, took_ms });
        let until = attempt.now.plus(pause_ms(attempt.backoff, failures, silence, random));
        let (said, probed_at) = (attempt.said.clone(), attempt.now);
        self.outage = Some(Box::new(Outage { until, failures, said, probe: None, probed_at }));
    }
}

/// A failed attempt, for the judgement.
pub(super) struct Blame<'a> {
    pub serial: u64,
    /// The latest serial given out anywhere.
    pub newest: u64,
    pub now: UnixMillis,
    pub said: &'a Arc<str>,
    pub backoff: &'a RetryPolicy,
    /// How many messages wait, where nobody answered at all.
    pub silent: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blame<'a>(serial: u64, newest: u64, said: &'a Arc<str>) -> Blame<'a> {
        Blame { serial, newest, now: UnixMillis(1_000), said, backoff: &RetryPolicy::DESTINATION, silent: None }
    }

    #[test]
    fn the_window_grows_by_one_a_round_and_stops_at_the_limit() {
        let mut d = Site::new("d".into(), 0, 5);
        (0..5).for_each(|_| d.completed(7));
        assert_eq!(d.window, 6);
        (0..5).for_each(|_| d.completed(7));
        assert_eq!(d.window, 6);
        (0..100).for_each(|_| d.completed(7));
        assert_eq!(d.window, 7);
    }

    #[test]
    fn sessions_lost_together_halve_the_window_once() {
        let said: Arc<str> = "421 4.7.0 too many connections".into();
        let mut d = Site::new("d".into(), 0, 20);
        (1..=20).for_each(|serial| d.throttled(&blame(serial, 20, &said), 0.5));
        assert_eq!(d.window, 10);
        d.throttled(&blame(21, 30, &said), 0.5);
        assert_eq!(d.window, 5);
        assert!(d.outage.is_none());
    }

    #[test]
    fn throttling_at_one_session_closes() {
        let said: Arc<str> = "421".into();
        let mut d = Site::new("d".into(), 0, 1);
        d.throttled(&blame(1, 1, &said), 0.5);
        assert_eq!(d.closed_until(), UnixMillis(11_000));
    }

    #[test]
    fn one_unreachable_address_beside_successes_only_halves() {
        let said: Arc<str> = "timeout".into();
        let mut d = Site::new("d".into(), 0, 8);
        d.reached(3, 5);
        d.unreachable(&blame(2, 4, &said), 0.5);
        assert_eq!((d.window, d.outage.is_some()), (4, false));
        d.unreachable(&blame(5, 5, &said), 0.5);
        assert!(d.outage.is_some());
    }

    #[test]
    fn stragglers_of_before_the_outage_do_not_lengthen_it() {
        let said: Arc<str> = "refused".into();
        let mut d = Site::new("d".into(), 0, 5);
        (1..=5).for_each(|serial| d.unreachable(&blame(serial, 5, &said), 0.5));
        assert_eq!(d.outage.as_ref().map(|o| o.failures), Some(1));
        d.unreachable(&blame(6, 6, &said), 0.5);
        assert_eq!(d.outage.as_ref().map(|o| (o.failures, o.until)), Some((2, UnixMillis(21_000))));
    }

    #[test]
    fn after_an_outage_the_window_soon_is_half_of_what_it_was() {
        let said: Arc<str> = "refused".into();
        let mut d = Site::new("d".into(), 0, 40);
        d.unreachable(&blame(1, 1, &said), 0.5);
        d.reached(2, 5);
        (0..15).for_each(|_| d.completed(40));
        assert_eq!(d.window, 20);
        (0..15).for_each(|_| d.completed(40));
        assert_eq!(d.window, 20, "by one a round from here");
    }
}
