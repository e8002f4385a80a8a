//! The memory that the agent may use, and who has to wait when it runs short.
//!
//! What is used is measured, not reckoned: the anonymous resident memory of the process, as the
//! kernel counts it before it kills, looked at every few milliseconds while mail comes in. Content that
//! is being received has a share of its own ([`Memory::draft_share`]), beyond which it lies in files;
//! so drafts never run into the limit, however many and large, and what does grow are the envelopes, the
//! sessions and the index of the queue. Short of memory, MAIL is refused; at the limit new sessions and
//! new content, too. Deliveries go on, fewer at a time: they are what makes room.
//!
//! The allocator keeps what was freed for a while, longest when nothing happens. So one at a time is let
//! in nevertheless, as long as that makes nothing grow: it uses what is free already.

mod machine;

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Instant;

use postroad_smtp::{Reply, Status};
use tracing::{info, warn};

use crate::clock::millis;

pub use machine::{Resident, default_limit};

/// How long a measurement is good for.
const SAMPLE_MILLIS: u64 = 10;
/// Of the limit one part in so many is for content that is being received.
const DRAFT_PART: u64 = 8;
/// More than this does not make receiving faster.
const DRAFT_OCTETS_MAX: u64 = 64 << 20;
/// Of the limit one part in so many has to come free again before more is taken in.
const RELIEF_PART: u64 = 32;

const NO_MAIL: Reply =
    Reply::of(451, Some(Status::new(4, 3, 1)), "Not enough memory for more mail, please try again later");
const NO_SESSION: Reply =
    Reply::of(421, Some(Status::new(4, 3, 1)), "Not enough memory for another session, please try again later");

/// How much memory there is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Enough.
    Ample,
    /// No new mail.
    Short,
    /// No new sessions or content either.
    Full,
}

/// What is used, in octets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// All of it.
    pub resident: u64,
    /// Of it, content that is being received.
    pub drafts: u64,
}

/// The memory of one agent.
pub struct Memory {
    measure: Box<dyn Fn() -> Usage + Send + Sync>,
    limit: AtomicU64,
    start: Instant,
    /// Milliseconds after the start; one who finds it too long ago measures anew.
    measured: AtomicU64,
    resident: AtomicU64,
    level: AtomicU8,
    /// What was used when the level last changed.
    at_change: AtomicU64,
    /// The measurement that somebody was let in by although memory is short.
    granted: AtomicU64,
}

impl Level {
    /// Returns the word for people and programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Ample => "ample",
            Level::Short => "short",
            Level::Full => "full",
        }
    }
}

impl Memory {
    /// Begins with a limit in octets, above which `measure` should not come.
    pub fn new(limit: u64, measure: impl Fn() -> Usage + Send + Sync + 'static) -> Memory {
        let memory = Memory {
            measure: Box::new(measure),
            limit: AtomicU64::new(limit),
            start: Instant::now(),
            measured: AtomicU64::new(0),
            resident: AtomicU64::new(0),
            level: AtomicU8::new(0),
            at_change: AtomicU64::new(u64::MAX),
            granted: AtomicU64::new(u64::MAX),
        };
        memory.look();
        memory
    }

    /// Returns the share of a limit that content may take while it is received.
    pub fn draft_share(limit: u64) -> usize {
        usize::try_from((limit / DRAFT_PART).min(DRAFT_OCTETS_MAX)).unwrap_or(usize::MAX)
    }

    /// Takes another limit.
    pub fn set_limit(&self, limit: u64) {
        self.limit.store(limit, Ordering::Relaxed);
        self.look();
    }

    /// Returns the limit, in octets.
    pub fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Returns what is used, in octets.
    pub fn used(&self) -> u64 {
        self.level();
        self.resident.load(Ordering::Relaxed)
    }

    /// Returns how much there is left.
    pub fn level(&self) -> Level {
        let now = millis(self.start.elapsed());
        let measured = self.measured.load(Ordering::Relaxed);
        let is_old = now.saturating_sub(measured) >= SAMPLE_MILLIS;
        if is_old && self.measured.compare_exchange(measured, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.look();
        }
        self.noted()
    }

    /// Decides about a connection.
    ///
    /// # Errors
    /// 421 at the limit.
    pub fn admit_session(&self) -> Result<(), Reply> {
        if self.level() == Level::Full && !self.reuses() { Err(NO_SESSION) } else { Ok(()) }
    }

    /// Decides about MAIL.
    ///
    /// # Errors
    /// 451 when memory is short.
    pub fn admit_mail(&self) -> Result<(), Reply> {
        if self.level() == Level::Ample || self.reuses() { Ok(()) } else { Err(NO_MAIL) }
    }

    /// Decides about content, whose MAIL was accepted a while ago.
    ///
    /// # Errors
    /// 451 at the limit.
    pub fn admit_content(&self) -> Result<(), Reply> {
        if self.level() == Level::Full { Err(NO_MAIL) } else { Ok(()) }
    }

    /// Returns whether one may be let in: nobody was since the last measurement, and by that one hardly
    /// more is used than when memory became short.
    fn reuses(&self) -> bool {
        let (measured, resident) = (self.measured.load(Ordering::Relaxed), self.resident.load(Ordering::Relaxed));
        let most = self.at_change.load(Ordering::Relaxed).saturating_add(self.limit() / RELIEF_PART);
        resident <= most && self.granted.swap(measured, Ordering::Relaxed) != measured
    }

    fn noted(&self) -> Level {
        match self.level.load(Ordering::Relaxed) {
            0 => Level::Ample,
            1 => Level::Short,
            _ => Level::Full,
        }
    }

    fn look(&self) {
        let (usage, limit) = ((self.measure)(), self.limit());
        self.resident.store(usage.resident, Ordering::Relaxed);
        let (old, new) = (self.noted(), judge(usage, limit, self.noted()));
        self.level.store(new as u8, Ordering::Relaxed);
        if old != new {
            self.at_change.store(usage.resident, Ordering::Relaxed);
        }
        let (used_mb, limit_mb) = (usage.resident / 1_000_000, limit / 1_000_000);
        match new {
            _ if old == new => {}
            Level::Ample => info!(used_mb, limit_mb, "memory is ample again: mail is taken"),
            Level::Short => warn!(used_mb, limit_mb, "memory is short: new mail is refused until deliveries make room"),
            Level::Full => warn!(used_mb, limit_mb, "memory is full: new sessions are refused, too"),
        }
    }
}

/// Judges a measurement. What was short stays so until some more is free, so that nothing flickers.
fn judge(usage: Usage, limit: u64, old: Level) -> Level {
    let relief = |level| if old >= level { limit / RELIEF_PART } else { 0 };
    let share = Memory::draft_share(limit) as u64;
    // Drafts up to their share are foreseen.
    let unforeseen = usage.resident.saturating_sub(usage.drafts.min(share));
    if usage.resident.saturating_add(relief(Level::Full)) >= limit {
        Level::Full
    } else if unforeseen.saturating_add(share).saturating_add(relief(Level::Short)) >= limit {
        Level::Short
    } else {
        Level::Ample
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn usage(resident: u64, drafts: u64) -> Usage {
        Usage { resident: resident * MIB, drafts: drafts * MIB }
    }

    #[test]
    fn mail_is_refused_before_sessions_and_drafts_have_their_share() {
        let judge = |resident, drafts, old| judge(usage(resident, drafts), 64 * MIB, old);
        assert_eq!(judge(55, 0, Level::Ample), Level::Ample);
        assert_eq!(judge(56, 0, Level::Ample), Level::Short);
        assert_eq!(judge(63, 8, Level::Ample), Level::Ample, "the share of the drafts is used");
        assert_eq!(judge(63, 20, Level::Ample), Level::Ample, "and they may not have more");
        assert_eq!(judge(64, 8, Level::Ample), Level::Full);
    }

    #[test]
    fn what_was_short_stays_so_until_more_is_free() {
        let judge = |resident, old| judge(usage(resident, 0), 64 * MIB, old);
        assert_eq!(judge(62, Level::Full), Level::Full);
        assert_eq!(judge(61, Level::Full), Level::Short);
        assert_eq!(judge(54, Level::Short), Level::Short);
        assert_eq!(judge(53, Level::Short), Level::Ample);
    }

    #[test]
    fn measurements_are_taken_as_time_passes_and_limits_hold_at_once() {
        let resident = Arc::new(AtomicU64::new(10 * MIB));
        let measured = resident.clone();
        let memory =
            Memory::new(64 * MIB, move || Usage { resident: measured.load(Ordering::Relaxed), ..Usage::default() });
        assert_eq!((memory.admit_session(), memory.admit_mail(), memory.admit_content()), (Ok(()), Ok(()), Ok(())));
        resident.store(60 * MIB, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(2 * SAMPLE_MILLIS));
        assert_eq!(memory.used(), 60 * MIB);
        resident.store(63 * MIB, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(2 * SAMPLE_MILLIS));
        assert_eq!(
            (memory.admit_session(), memory.admit_mail(), memory.admit_content()),
            (Ok(()), Err(NO_MAIL), Ok(()))
        );
        memory.set_limit(50 * MIB);
        resident.store(70 * MIB, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(2 * SAMPLE_MILLIS));
        assert_eq!((memory.admit_session(), memory.admit_content()), (Err(NO_SESSION), Err(NO_MAIL)));
        memory.set_limit(500 * MIB);
        assert_eq!(memory.level(), Level::Ample);
    }

    #[test]
    fn what_was_freed_but_not_given_back_is_used_by_one_at_a_time() {
        let resident = Arc::new(AtomicU64::new(60 * MIB));
        let measured = resident.clone();
        let memory =
            Memory::new(64 * MIB, move || Usage { resident: measured.load(Ordering::Relaxed), ..Usage::default() });
        let later = |mib: u64| {
            resident.store(mib * MIB, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(2 * SAMPLE_MILLIS));
        };
        later(61);
        assert_eq!((memory.level(), memory.reuses()), (Level::Short, true), "hardly more is used than at first");
        assert!(!memory.reuses(), "one for each measurement");
        later(63);
        assert_eq!(memory.admit_mail(), Err(NO_MAIL), "that made it grow");
        later(58);
        assert_eq!((memory.admit_mail(), memory.level()), (Ok(()), Level::Short));
    }

    #[test]
    fn what_is_said_is_temporary() {
        assert_eq!(NO_MAIL.to_string(), "451 4.3.1 Not enough memory for more mail, please try again later");
        assert_eq!(NO_SESSION.to_string(), "421 4.3.1 Not enough memory for another session, please try again later");
    }
}
