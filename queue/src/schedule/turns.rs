//! Turns by sender, weighted by what a start costs: start-time fair queueing.
//!
//! Wherever jobs compete there is a clock that counts what was started. A sender that was idle
//! stands at the clock; one that has jobs in line stands behind its last one, by what that costs.
//! Whoever stands lowest is next. So one message of one sender passes the hundred thousand of
//! another, and a message with a thousand recipients counts for a thousand.

use std::collections::BTreeMap;

/// What one message with one recipient counts.
pub(super) const MESSAGE: u64 = 256;
/// How far a start moves the clock at least, while it is not a message ahead of who starts: senders
/// without number, each with one message, do not keep the second message of another waiting for
/// ever.
const CREEP: u64 = 8;
/// Where clocks begin; beyond reach of what may be taken off.
const BEGIN: u64 = 1 << 40;
/// How far before everybody an admin's wish stands.
const FRONT: u64 = 1 << 32;
/// What somebody may cost who comes while nobody waits, without being remembered.
const COST_FORGOTTEN: u64 = 2 * MESSAGE;
/// Senders looked at, to forget them, whenever one is added.
const LOOKED_AT: usize = 2;

/// The clocks, and where each sender stands behind its own jobs.
#[derive(Debug, Default)]
pub(super) struct Turns {
    clocks: Vec<Clock>,
    /// By clock and sender. Who stands no later than the clock is idle and need not be here.
    behind: BTreeMap<(u32, u32), u64>,
    looked: (u32, u32),
}

#[derive(Clone, Copy, Debug)]
struct Clock {
    now: u64,
    /// Where the last of all stands.
    latest: u64,
}

const FRESH: Clock = Clock { now: BEGIN, latest: BEGIN };

impl Turns {
    /// Returns the clock.
    pub fn now(&self, clock: u32) -> u64 {
        self.clocks.get(clock as usize).unwrap_or(&FRESH).now
    }

    /// Returns a turn before all others.
    pub fn front(&self, clock: u32) -> u64 {
        self.now(clock) - FRONT
    }

    /// Returns the next turn of a sender, which has to wait for `cost` behind it. `is_first`: nobody
    /// waits. Then a new round begins, and what anybody had before it counts no more.
    pub fn take(&mut self, clock: u32, sender: u32, cost: u64, is_first: bool) -> u64 {
        let at = self.at(clock);
        if is_first {
            at.now = at.now.max(at.latest);
            if cost <= COST_FORGOTTEN {
                // The usual case needs no memory: the next one of this sender stands behind it.
                at.now += 1;
                return at.now - 1;
            }
        }
        let now = at.now;
        let known = self.behind.len();
        let behind = self.behind.entry((clock, sender)).or_insert(now);
        let turn = now.max(*behind);
        *behind = turn.saturating_add(cost);
        let behind = *behind;
        if self.behind.len() > known {
            self.forget_idle();
        }
        let at = self.at(clock);
        at.latest = at.latest.max(behind);
        turn
    }

    /// Returns what the next turn of a sender would be.
    pub fn peek(&self, clock: u32, sender: u32) -> u64 {
        self.now(clock).max(self.behind.get(&(clock, sender)).copied().unwrap_or(0))
    }

    /// Moves a clock on, because somebody started whose turn this was.
    pub fn started(&mut self, clock: u32, turn: u64) {
        let at = self.at(clock);
        at.now = at.now.max(turn);
        at.now = at.now.max((at.now + CREEP).min(turn.saturating_add(MESSAGE)));
    }

    /// Forgets who stands where by a clock.
    pub fn forget(&mut self, clock: u32) {
        while let Some((key, _)) = self.behind.range((clock, 0)..=(clock, u32::MAX)).next() {
            let key = *key;
            self.behind.remove(&key);
        }
    }

    fn at(&mut self, clock: u32) -> &mut Clock {
        let at = clock as usize;
        if at >= self.clocks.len() {
            self.clocks.resize(at + 1, FRESH);
        }
        &mut self.clocks[at]
    }

    fn forget_idle(&mut self) {
        for _ in 0..LOOKED_AT {
            let Some((key, behind)) = self.behind.range(self.looked..).next() else {
                self.looked = (0, 0);
                return;
            };
            let (key, behind) = (*key, *behind);
            if behind <= self.now(key.0) {
                self.behind.remove(&key);
            }
            self.looked = if key.1 < u32::MAX { (key.0, key.1 + 1) } else { (key.0 + 1, 0) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Starts whoever stands lowest; returns the senders in their order.
    fn order(turns: &mut Turns, mut line: Vec<(u64, u32)>) -> Vec<u32> {
        let mut order = Vec::new();
        while let Some((turn, sender)) = line.iter().min().copied() {
            line.retain(|one| *one != (turn, sender));
            turns.started(0, turn);
            order.push(sender);
        }
        order
    }

    #[test]
    fn a_newcomer_is_next_and_the_rest_take_turns() {
        let mut turns = Turns::default();
        let mut line: Vec<_> = (0..100).map(|_| (turns.take(0, 1, MESSAGE, false), 1)).collect();
        line.extend((0..3).map(|_| (turns.take(0, 2, MESSAGE, false), 2)));
        assert_eq!(order(&mut turns, line)[..7], [1, 2, 1, 2, 1, 2, 1]);
    }

    #[test]
    fn what_costs_more_waits_longer_for_the_next_turn() {
        let mut turns = Turns::default();
        let mut line: Vec<_> = (0..2).map(|_| (turns.take(0, 1, 10 * MESSAGE, false), 1)).collect();
        line.extend((0..12).map(|_| (turns.take(0, 2, MESSAGE, false), 2)));
        assert_eq!(order(&mut turns, line).iter().rposition(|sender| *sender == 1), Some(11));
    }

    #[test]
    fn newcomers_without_end_do_not_starve_a_second_message() {
        let mut turns = Turns::default();
        turns.take(0, 1, MESSAGE, false);
        let second = turns.take(0, 1, MESSAGE, false);
        let before = (2..1_000).take_while(|sender| {
            let turn = turns.take(0, *sender, MESSAGE, false);
            turns.started(0, turn);
            turn <= second
        });
        assert!(before.count() <= 40);
    }

    #[test]
    fn who_is_idle_is_forgotten() {
        let mut turns = Turns::default();
        for sender in 0..100_000 {
            let turn = turns.take(0, sender, MESSAGE, false);
            turns.started(0, turn);
        }
        assert!(turns.behind.len() < 200, "{}", turns.behind.len());
        turns.forget(0);
        assert!(turns.behind.is_empty());
    }
}
