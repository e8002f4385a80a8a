//! Who hears of a batch: callbacks and the listener, called outside all locks.
//!
//! They are not ours. One that panics must not take the thread with it that all mail goes through.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::committer::{CommitDone, RecordDone};
use crate::draft::Committed;
use crate::error::{CommitError, RecordError};
use crate::item::Item;
use crate::spool::Spool;

/// What is called once the locks are released.
#[derive(Default)]
pub(crate) struct Answers {
    pub commits: Vec<(CommitDone, Result<Committed, CommitError>)>,
    pub states: Vec<(RecordDone, Result<(), RecordError>)>,
    pub items: Vec<Arc<Item>>,
}

impl Answers {
    /// Returns whether anything was written that somebody waits for.
    pub(crate) fn is_any_good(&self) -> bool {
        !self.items.is_empty() || self.states.iter().any(|(_, result)| result.is_ok())
    }

    /// Calls them all.
    pub(crate) fn give(self, spool: &Spool) {
        for (done, result) in self.commits {
            done(result);
        }
        for (done, result) in self.states {
            done(result);
        }
        if !self.items.is_empty()
            && let Some(listener) = &*spool.listener.read().expect("no listener panics")
        {
            listener(self.items);
        }
    }
}

/// Calls `work`; poisons the queue and returns `None` when it panics.
pub(crate) fn unless_panic<T>(spool: &Spool, work: impl FnOnce() -> T) -> Option<T> {
    // Whatever was left half done is not looked at again behind the poison.
    let result = catch_unwind(AssertUnwindSafe(work)).ok();
    if result.is_none() {
        spool.poison("a thread of the queue panicked");
    }
    result
}
