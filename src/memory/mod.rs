//! The memory that the agent may use, and who has to wait when it runs short.
//!
//! It is known in two ways. The kernel says what is resident, as it counts before it kills; but the
//! allocator keeps what was freed, for long when nothing happens. The agent counts what it holds, each
//! thing at no less than it takes; but a count can forget something. What both say is used
//! (`Usage::octets`); far above the limit the kernel alone is believed.
//!
//! Content that is being received has a share of its own ([`Memory::draft_share`]), beyond which it lies
//! in files; so drafts never run into the limit, however many and large, and what does grow are the
//! envelopes, the sessions and the index of the queue. Short of memory, MAIL is refused; at the limit new
//! sessions and new content, too. Deliveries go on, fewer at a time: they are what makes room.

mod held;
mod machine;

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Instant;

use postroad_smtp::{Reply, Status};
use tracing::{info, warn};

use crate::clock::millis;

pub use held::{Held, SESSION_OCTETS, attempt_octets, queue_octets, recipient_octets};
pub use machine::{Resident, default_limit};

/// How long a measurement is good for.
const SAMPLE_MILLIS: u64 = 10;
/// Of the limit one part in so many is for content that is being received.
const DRAFT_PART: u64 = 8;
/// More than this does not make receiving faster.
const DRAFT_OCTETS_MAX: u64 = 64 << 20;
/// Of the limit one part in so many has to come free again before more is taken in.
const RELIEF_PART: u64 = 32;
/// So far above the limit, as a part of it, what is resident counts alone.
const BEYOND_PART: u64 = 2;

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
    /// What is resident and of no file.
    pub resident: u64,
    /// What is counted, without what [`Held`] counts.
    pub counted: u64,
    /// Of both, content that is being received.
    pub drafts: u64,
}

/// The memory of one agent.
pub struct Memory {
    measure: Box<dyn Fn() -> Usage + Send + Sync>,
    limit: AtomicU64,
    start: Instant,
    /// Milliseconds after the start; one who finds it too long ago measures anew.
    measured: AtomicU64,
    used: AtomicU64,
    level: AtomicU8,
    /// What sessions and attempts hold.
    held: AtomicU64,
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
            used: AtomicU64::new(0),
            level: AtomicU8::new(0),
            held: AtomicU64::new(0),
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
        self.used.load(Ordering::Relaxed)
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
        if self.level() == Level::Full { Err(NO_SESSION) } else { Ok(()) }
    }

    /// Decides about MAIL.
    ///
    /// # Errors
    /// 451 when memory is short.
    pub fn admit_mail(&self) -> Result<(), Reply> {
        if self.level() == Level::Ample { Ok(()) } else { Err(NO_MAIL) }
    }

    /// Decides about content, whose MAIL was accepted a while ago.
    ///
    /// # Errors
    /// 451 at the limit.
    pub fn admit_content(&self) -> Result<(), Reply> {
        if self.level() == Level::Full { Err(NO_MAIL) } else { Ok(()) }
    }

    fn noted(&self) -> Level {
        match self.level.load(Ordering::Relaxed) {
            0 => Level::Ample,
            1 => Level::Short,
            _ => Level::Full,
        }
    }

    fn look(&self) {
        let (mut usage, limit) = ((self.measure)(), self.limit());
        usage.counted += self.held.load(Ordering::Relaxed);
        self.used.store(usage.octets(limit), Ordering::Relaxed);
        let (old, new) = (self.noted(), judge(usage, limit, self.noted()));
        self.level.store(new as u8, Ordering::Relaxed);
        let (used_mb, limit_mb) = (usage.octets(limit) / 1_000_000, limit / 1_000_000);
        match new {
            _ if old == new => {}
            Level::Ample => info!(used_mb, limit_mb, "memory is ample again: mail is taken"),
            Level::Short => warn!(used_mb, limit_mb, "memory is short: new mail is refused until deliveries make room"),
            Level::Full => warn!(used_mb, limit_mb, "memory is full: new sessions are refused, too"),
        }
    }
}

impl Usage {
    /// Returns what is used under a limit.
    fn octets(&self, limit: u64) -> u64 {
        let is_beyond = self.resident >= limit.saturating_add(limit / BEYOND_PART);
        if is_beyond { self.resident } else { self.resident.min(self.counted) }
    }
}

/// Judges what is used. What was short stays so until some more is free, so that nothing flickers.
fn judge(usage: Usage, limit: u64, old: Level) -> Level {
    let relief = |level| if old >= level { limit / RELIEF_PART } else { 0 };
    let (used, share) = (usage.octets(limit), Memory::draft_share(limit) as u64);
    // Drafts up to their share are foreseen.
    let unforeseen = used.saturating_sub(usage.drafts.min(share));
    if used.saturating_add(relief(Level::Full)) >= limit {
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
        Usage { resident: resident * MIB, counted: resident * MIB, drafts: drafts * MIB }
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
        let memory = Memory::new(64 * MIB, move || usage(measured.load(Ordering::Relaxed) / MIB, 0));
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
    fn what_was_freed_but_not_given_back_is_not_used() {
        let used = |resident, counted| {
            let usage = Usage { resident: resident * MIB, counted: counted * MIB, drafts: 0 };
            (judge(usage, 64 * MIB, Level::Full), usage.octets(64 * MIB) / MIB)
        };
        assert_eq!(used(90, 20), (Level::Ample, 20));
        assert_eq!(used(20, 90), (Level::Ample, 20), "and what is counted but not there neither");
        assert_eq!(used(90, 80), (Level::Full, 80));
        assert_eq!(used(96, 20), (Level::Full, 96), "but that far nobody goes by a count");
    }

    #[test]
    fn what_is_held_counts_as_long_as_it_is_kept() {
        let memory = Arc::new(Memory::new(64 * MIB, || usage(80, 0)));
        memory.set_limit(60 * MIB);
        assert_eq!(memory.level(), Level::Full);
        let memory = Arc::new(Memory::new(64 * MIB, || Usage { resident: 80 * MIB, ..Usage::default() }));
        assert_eq!(memory.level(), Level::Ample);
        let mut held = Held::new(memory.clone(), 30 * MIB);
        held.add(40 * MIB);
        memory.set_limit(64 * MIB);
        assert_eq!((memory.level(), memory.used()), (Level::Full, 70 * MIB));
        drop(held);
        memory.set_limit(64 * MIB);
        assert_eq!((memory.level(), memory.used()), (Level::Ample, 0));
    }

    #[test]
    fn what_is_said_is_temporary() {
        assert_eq!(NO_MAIL.to_string(), "451 4.3.1 Not enough memory for more mail, please try again later");
        assert_eq!(NO_SESSION.to_string(), "421 4.3.1 Not enough memory for another session, please try again later");
    }
}
