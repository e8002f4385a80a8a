//! Who hears of a batch: callbacks and the listener, called outside all locks.
//!
//! The listener takes new messages in before those who gave them hear that they are kept: whatever is asked about a
//! message by whoever was told so is asked of somebody who knows it.
//! They are not ours. One that panics must not take the thread with it that all mail goes through.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use crate::committer::{CommitDone, RecordDone};
use crate::draft::Committed;
use crate::error::{CommitError, RecordError};
use crate::item::Item;
use crate::spool::Spool;

/// Who hears of new messages: once for each batch behind its sync, on the committer's thread and outside all locks.
pub trait Listener: Send + Sync {
    /// Takes the messages of a batch in, before anybody is told that they were committed: who waits for that waits
    /// for this.
    fn admit(&self, items: &[Arc<Item>]);

    /// Goes on with them, when all are told.
    fn go_on(&self);
}

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
        let listener = spool.listener.read().expect("nothing panics while it names a listener");
        let listener = listener.as_deref().filter(|_| !self.items.is_empty());
        // What is on stable storage is answered so, whatever becomes of the listener.
        let taken = catch_unwind(AssertUnwindSafe(|| listener.inspect(|one| one.admit(&self.items))));
        for (done, result) in self.commits {
            done(result);
        }
        for (done, result) in self.states {
            done(result);
        }
        match taken {
            Ok(Some(listener)) => listener.go_on(),
            Ok(None) => {}
            Err(panic) => resume_unwind(panic),
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
