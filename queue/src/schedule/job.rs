//! What goes in and out of the schedule: a job, the attempt it becomes, what came of that, and what
//! to do next.

use std::sync::Arc;

use super::turns::MESSAGE;
use crate::id::{QueueId, UnixMillis};

/// How many lanes there are.
pub(super) const LANES: usize = 3;
/// Of this many turns one is for each of the lower lanes.
const LANE_TURNS: u32 = 8;
/// Recipients that travel in one transaction (RFC 5321 §4.5.3.1.8).
const RECIPIENTS_PER_TRANSACTION: u64 = 100;
const KIB: u64 = 1_024;

/// How soon a job goes when it competes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Notifications and alerts.
    Urgent,
    /// Mail.
    Normal,
    /// Mail that asked for it, or whose sender floods.
    Bulk,
}

/// One message on its way to one destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// The message.
    pub id: QueueId,
    /// The next hop's key.
    pub destination: Arc<str>,
    /// When it may start.
    pub due: UnixMillis,
    /// How soon it goes when it competes.
    pub lane: Lane,
    /// Whose it is: senders take turns. A hash of the name will do.
    pub sender: u32,
    /// What it costs.
    pub load: Load,
    /// What its destination is allowed: see [`Limits::allowances`](super::Limits::allowances).
    pub allowance: u16,
}

/// What delivering a job costs: for the turns of senders and for rates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    recipients: u16,
    kib: u32,
}

/// A job that has started. Whoever holds it owes the schedule one
/// [`Schedule::finished`](super::Schedule::finished); only the schedule makes it.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "an attempt that is not finished occupies its session for ever"]
pub struct Attempt {
    pub(super) id: QueueId,
    pub(super) destination: Arc<str>,
    pub(super) site_name: Arc<str>,
    pub(super) learned: Option<UnixMillis>,
    pub(super) serial: u64,
    pub(super) job: u32,
    pub(super) line: u32,
    pub(super) site: u32,
    pub(super) lane: Lane,
    pub(super) is_probe: bool,
    pub(super) is_unproven: bool,
    /// It waits behind another one and takes no session of its own.
    pub(super) is_behind: bool,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Start this attempt, then ask again.
    Start(Attempt),
    /// Nothing starts before `at` unless something happens; at `at` something may. That may be now:
    /// there is more to put in order than one call does, and whoever else waits goes first.
    Wake {
        /// When to ask again.
        at: UnixMillis,
        /// What happens then.
        why: WakeReason,
    },
    /// Nothing starts until something happens.
    Idle,
}

/// Why to wake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WakeReason {
    /// A job is due.
    JobDue,
    /// The back-off of a site ends; it is probed.
    BackoffEnds,
    /// The rate of a site allows one more.
    Rate,
}

/// What came of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// Every recipient at this destination is settled.
    Done,
    /// The destination answered, and some recipient is to be tried again at `due`.
    Requeue {
        /// When.
        due: UnixMillis,
    },
    /// The session was refused or lost on the way (`421`, too many connections, reset): fewer at
    /// once from now on.
    Throttled {
        /// When to try again.
        due: UnixMillis,
        /// What was said, on one line, for [`Why::Closed`](super::Why::Closed).
        said: Arc<str>,
    },
    /// The destination could not be reached. The job keeps its place and waits for the
    /// destination alone.
    DestinationFailed {
        /// What was said, on one line, for [`Why::Closed`](super::Why::Closed).
        said: Arc<str>,
    },
    /// The same, and nobody there answered at all: no connection came about. The more jobs wait, the
    /// sooner it is tried again.
    Silent {
        /// What the system says, on one line, for [`Why::Closed`](super::Why::Closed).
        said: Arc<str>,
    },
    /// The job has nothing left to do, and nobody was asked: that says nothing of the destination.
    Forgotten,
    /// This host's own trouble kept it from trying; it is ready again at `due`.
    Postponed {
        /// When.
        due: UnixMillis,
    },
    /// Nothing was tried: no resources, or the agent drains. The job is ready again.
    Returned,
}

impl Load {
    /// What a message with so many recipients there and so much content costs.
    pub fn new(recipients: usize, octets: u64) -> Load {
        Load {
            recipients: u16::try_from(recipients.max(1)).unwrap_or(u16::MAX),
            kib: u32::try_from(octets.div_ceil(KIB)).unwrap_or(u32::MAX),
        }
    }

    /// Returns how far it takes its sender back in the turns: each recipient counts, and 256 KiB
    /// as one more.
    pub(super) fn cost(self) -> u64 {
        MESSAGE * u64::from(self.recipients) + u64::from(self.kib)
    }

    /// Returns the messages that travel.
    pub(super) fn messages(self) -> u64 {
        u64::from(self.recipients).div_ceil(RECIPIENTS_PER_TRANSACTION)
    }

    /// Returns the octets that travel.
    pub(super) fn octets(self) -> u64 {
        self.messages() * u64::from(self.kib) * KIB
    }
}

impl Lane {
    /// All lanes, the soonest first.
    pub const ALL: [Lane; LANES] = [Lane::Urgent, Lane::Normal, Lane::Bulk];

    /// Returns the lanes in the order in which they are asked on this turn.
    pub(super) fn in_turn(turn: u32) -> [Lane; LANES] {
        match turn % LANE_TURNS {
            3 => [Lane::Normal, Lane::Urgent, Lane::Bulk],
            7 => [Lane::Bulk, Lane::Urgent, Lane::Normal],
            _ => Lane::ALL,
        }
    }
}

impl Attempt {
    /// Returns the message.
    pub fn id(&self) -> QueueId {
        self.id
    }

    /// Returns the next hop's key.
    pub fn destination(&self) -> &Arc<str> {
        &self.destination
    }

    /// Returns the site it was started for: all its destinations may share connections.
    pub fn site(&self) -> &Arc<str> {
        &self.site_name
    }

    /// Returns when somebody found that the destination belongs to the site; none when nobody has
    /// looked, and the destination is a site by itself.
    pub fn learned(&self) -> Option<UnixMillis> {
        self.learned
    }

    /// Returns a number that no other attempt of this schedule has.
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// Returns the lane that it started in.
    pub fn lane(&self) -> Lane {
        self.lane
    }

    /// Returns whether all else that waits for the site waits for this attempt.
    pub fn is_probe(&self) -> bool {
        self.is_probe
    }
}
