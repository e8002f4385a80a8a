//! Threads that sync content files beside the committer, so that small messages never wait for the sync of a
//! large one. They start when there is work for one more of them: a queue that sees no large message has none.

use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{Builder, JoinHandle};

use crate::answers::{Answers, unless_panic};
use crate::committer::{Op, Pending, sync_contents};
use crate::inbox::Inbox;
use crate::spool::{Spool, lock};

/// The most that sync at a time.
const SYNCERS_MAX: usize = 8;

/// How many there are; a part of the inbox.
#[derive(Default)]
pub(crate) struct Crew {
    /// How many there may be; none without a committer, which does it itself then.
    max: usize,
    running: usize,
    /// How many of them have a message in hand. The others look for one before they rest.
    busy: usize,
}

/// Those that were started, to be waited for at the end.
pub(crate) type Threads = Mutex<Vec<JoinHandle<()>>>;

impl Crew {
    /// Lets threads start from now on.
    pub(crate) fn admit(&mut self) {
        self.max = SYNCERS_MAX;
    }

    /// Returns whether there is work for one more of them when so many messages wait.
    fn wants_more(&self, waiting: usize) -> bool {
        waiting > self.running - self.busy && self.running < self.max
    }

    /// Returns whether nobody but the committer can sync.
    pub(crate) fn is_empty(&self) -> bool {
        self.running == 0
    }
}

/// Has a message that is to be synced taken care of.
pub(crate) fn hand_over(spool: &Arc<Spool>, mut inbox: MutexGuard<'_, Inbox>, pending: Pending) {
    inbox.unsynced.push_back(pending);
    let waiting = inbox.unsynced.len();
    if !inbox.syncers.wants_more(waiting) {
        spool.wake_syncers.notify_one();
        return if inbox.syncers.is_empty() {
            spool.wake(inbox)
        };
    }
    inbox.syncers.running += 1;
    drop(inbox);
    let own = spool.clone();
    match Builder::new().name("content sync".into()).spawn(move || run(&own)) {
        Ok(thread) => lock(&spool.syncers).push(thread),
        // Others are at it, or the committer does it.
        Err(_) => {
            let mut inbox = lock(&spool.inbox);
            inbox.syncers.running -= 1;
            spool.wake(inbox);
        }
    }
}

/// Waits until all have ended. The queue is stopped.
pub(crate) fn join(spool: &Spool) {
    spool.wake_syncers.notify_all();
    let threads = std::mem::take(&mut *lock(&spool.syncers));
    for thread in threads {
        thread.join().expect("no thread of the queue panics");
    }
}

/// Syncs content files, one at a time, and hands their messages to the committer.
fn run(spool: &Spool) {
    let mut inbox = lock(&spool.inbox);
    loop {
        if let Some(pending) = inbox.unsynced.pop_front() {
            inbox.syncers.busy += 1;
            drop(inbox);
            let pending = unless_panic(spool, || sync_content(spool, pending)).flatten();
            inbox = lock(&spool.inbox);
            inbox.syncers.busy -= 1;
            inbox.commits.extend(pending);
            spool.wake(inbox);
            inbox = lock(&spool.inbox);
        } else if inbox.stopped {
            inbox.syncers.running -= 1;
            return spool.wake(inbox);
        } else {
            inbox = spool.wake_syncers.wait(inbox).expect("no thread panics while it holds a lock of the queue");
        }
    }
}

/// Syncs the content file of a message; answers it when that fails.
fn sync_content(spool: &Spool, pending: Pending) -> Option<Pending> {
    let mut answers = Answers::default();
    let synced = sync_contents(spool, [Op::Commit(pending)].into(), &mut answers).pop_front();
    answers.give(spool);
    match synced {
        Some(Op::Commit(pending)) => Some(pending),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_more_starts_where_all_have_a_message_and_there_may_be_more() {
        let mut crew = Crew::default();
        assert!(!crew.wants_more(1), "nobody without a committer");
        crew.admit();
        for running in 0..SYNCERS_MAX {
            crew = Crew { running, busy: running, ..crew };
            assert!(crew.wants_more(1));
            crew.busy = running.saturating_sub(1);
            assert_eq!(crew.wants_more(1), running == 0, "one of them looks for it");
            assert!(crew.wants_more(2));
        }
        crew = Crew { running: SYNCERS_MAX, busy: SYNCERS_MAX, ..crew };
        assert!(!crew.wants_more(100));
    }
}
