//! What waits for the committer, and what goes into its next batch.

use std::collections::{HashMap, VecDeque};

use crate::committer::{Content, Op, Pending, PendingState};
use crate::id::QueueId;
use crate::retirement::{Retire, retired_ops};
use crate::syncers::Crew;

/// What waits to be written.
#[derive(Default)]
pub(crate) struct Inbox {
    pub commits: VecDeque<Pending>,
    /// Large messages whose content files are to be synced before they go to `commits`.
    pub unsynced: VecDeque<Pending>,
    /// Threads that sync content files; without them the committer does it.
    pub syncers: Crew,
    pub states: HashMap<QueueId, PendingState>,
    pub retires: Vec<Retire>,
    /// Nothing more is taken.
    pub stopped: bool,
    /// How the committer waits to be woken.
    pub sleep: Sleep,
    /// There may be space to give back though nothing waits.
    pub is_due: bool,
    /// Records that others wrote beside the committer.
    pub beside: u64,
}

/// How a thread waits for something to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Sleep {
    /// It works.
    #[default]
    Not,
    /// Until it is time to tidy up.
    Light,
    /// Until it is woken: all is tidy.
    Deep,
}

/// The most messages and octets of content written as one batch.
const BATCH_MESSAGES_MAX: usize = 512;
const BATCH_OCTETS_MAX: u64 = 8 << 20;

impl Inbox {
    pub(crate) fn is_empty(&self) -> bool {
        let synced = !self.syncers.is_empty() || self.unsynced.is_empty();
        synced && self.commits.is_empty() && self.states.is_empty() && self.retires.is_empty()
    }

    /// Returns whether nothing will come any more.
    pub(crate) fn is_over(&self) -> bool {
        self.stopped && self.syncers.is_empty()
    }

    /// Takes what goes into one batch: states first, they are small and deliveries wait for them.
    pub(crate) fn take(&mut self) -> VecDeque<Op> {
        let states = std::mem::take(&mut self.states).into_iter().map(|(id, state)| Op::State(id, state));
        let mut ops: VecDeque<Op> = states.collect();
        if self.syncers.is_empty() {
            self.commits.append(&mut self.unsynced);
        }
        let mut octets = 0;
        while let Some(next) = self.commits.front() {
            octets += if matches!(next.content, Content::Inline(_)) { next.item.content_octets } else { 0 };
            if !ops.is_empty() && (octets > BATCH_OCTETS_MAX || ops.len() >= BATCH_MESSAGES_MAX) {
                break;
            }
            ops.extend(self.commits.pop_front().map(Op::Commit));
        }
        ops.extend(retired_ops(std::mem::take(&mut self.retires)));
        ops
    }
}
