//! One destination as the schedule sees it: who waits for it, and the site that takes its mail.

use std::sync::Arc;

use super::Lane;
use super::job::LANES;
use crate::id::UnixMillis;

/// What the schedule keeps of a destination.
#[derive(Debug)]
pub(super) struct Line {
    pub name: Arc<str>,
    /// The site that takes its mail; first one of the same name.
    pub site: u32,
    /// When somebody found that it is this one.
    pub learned: Option<UnixMillis>,
    /// Whether an admin holds all that goes there.
    pub held: bool,
    /// Jobs that may start, by lane.
    pub ready: [u32; LANES],
    /// Jobs that wait for their due time, by lane.
    pub deferred: [u32; LANES],
    /// Jobs that are held one by one.
    pub held_jobs: u32,
    /// Attempts that have started and not finished.
    pub in_flight: u32,
    /// Who is next in each lane, as it stands among the site's.
    pub heads: [Option<Head>; LANES],
    /// What a lane's turns are ahead of the site's clock: another site has another one.
    pub offset: [u64; LANES],
    /// When the next of its jobs is due, as it stands among the timers.
    pub timer: Option<UnixMillis>,
    /// Counts the times that all of it was made due.
    pub epoch: u32,
    /// Whether it stands among the idle.
    pub idle: bool,
}

/// Who is next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// As the site counts.
    pub turn: u64,
    pub job: u32,
}

impl Line {
    pub fn new(name: Arc<str>, site: u32) -> Line {
        Line {
            name,
            site,
            learned: None,
            held: false,
            ready: [0; LANES],
            deferred: [0; LANES],
            held_jobs: 0,
            in_flight: 0,
            heads: [None; LANES],
            offset: [0; LANES],
            timer: None,
            epoch: 0,
            idle: false,
        }
    }

    /// Returns how many jobs it has.
    pub fn jobs(&self) -> u32 {
        self.ready.iter().chain(&self.deferred).sum::<u32>() + self.held_jobs + self.in_flight
    }

    /// Returns whether it can be forgotten: nothing waits, runs or is held.
    pub fn is_empty(&self) -> bool {
        self.jobs() == 0 && !self.held
    }

    /// Returns whether its number is not given out.
    pub fn is_free(&self) -> bool {
        self.name.is_empty()
    }

    /// Returns a turn of this line as the site counts.
    pub fn at_site(&self, lane: Lane, turn: u64) -> u64 {
        turn.wrapping_add(self.offset[lane as usize])
    }

    /// Returns a turn of the site as this line counts.
    pub fn at_line(&self, lane: Lane, turn: u64) -> u64 {
        turn.wrapping_sub(self.offset[lane as usize])
    }
}
