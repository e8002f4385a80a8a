//! What can be seen from outside while the demo runs: the length of each queue, asked over the
//! control sockets as `postroad queue` does, and what lies in the mailboxes. A thread of its own
//! looks; nothing here changes anything.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::watch;

use super::ledger::Ledger;
use super::process::status;
use super::site::{Host, Site};

const POLL: Duration = Duration::from_millis(10);

/// One look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Messages in the queues of a, b and c; `None` while the agent is down.
    pub queued: [Option<u64>; 3],
    /// Letters that got their 250.
    pub letters: u64,
    /// Copies owed for them.
    pub owed: u64,
    /// Copies found as they should be.
    pub delivered: u64,
    /// Further copies.
    pub duplicates: u64,
    /// Copies that came without b.
    pub around: u64,
    /// Copies that are not as they should be.
    pub altered: u64,
}

impl Numbers {
    /// Returns whether all of so many letters are accepted and delivered and nothing waits anywhere.
    pub fn is_settled(&self, letters: u64) -> bool {
        let is_empty = self.queued.iter().all(|queued| *queued == Some(0));
        self.letters >= letters && self.delivered >= self.owed && is_empty
    }
}

/// The thread that looks; it ends when this is dropped.
#[derive(Debug)]
pub struct Watcher {
    numbers: watch::Receiver<Numbers>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Begins to look.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(site: &Site, ledger: Arc<Mutex<Ledger>>) -> io::Result<Watcher> {
        let (send, numbers) = watch::channel(Numbers::default());
        let stop = Arc::new(AtomicBool::new(false));
        let (site, stopped) = (site.clone(), stop.clone());
        let thread = std::thread::Builder::new().name("demo-watch".to_owned()).spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let now = look(&site, &ledger);
                send.send_if_modified(|old| std::mem::replace(old, now) != now);
                std::thread::sleep(POLL);
            }
        })?;
        Ok(Watcher { numbers, stop, thread: Some(thread) })
    }

    /// Returns what was seen last, now and later.
    pub fn numbers(&self) -> watch::Receiver<Numbers> {
        self.numbers.clone()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A look that panicked has nothing more to say.
            let _ = thread.join();
        }
    }
}

/// Looks at the queues in the order of the mail's way, then at the mailboxes: a message that moves
/// on meanwhile is seen at least once, so that nothing seems settled that is not.
fn look(site: &Site, ledger: &Mutex<Ledger>) -> Numbers {
    let queued = Host::ALL.map(|host| status(&site.control(host)).ok().map(|status| status.queue.messages));
    let mut ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
    // A file that vanishes or cannot be read now is looked for again; at the end it is missing.
    let _ = ledger.read_mailboxes(&site.mailboxes());
    let tally = ledger.tally();
    Numbers {
        queued,
        letters: tally.letters,
        owed: tally.owed,
        delivered: tally.delivered,
        duplicates: tally.duplicates,
        around: tally.around,
        altered: tally.altered.len() as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_settled_while_a_letter_may_be_on_its_way() {
        let all =
            Numbers { queued: [Some(0); 3], letters: 8, owed: 11, delivered: 11, duplicates: 1, around: 0, altered: 0 };
        assert!(all.is_settled(8));
        assert!(!all.is_settled(9), "not all are submitted");
        assert!(!Numbers { delivered: 10, ..all }.is_settled(8));
        assert!(!Numbers { queued: [Some(0), None, Some(0)], ..all }.is_settled(8), "an agent is down");
        assert!(!Numbers { queued: [Some(1), Some(0), Some(0)], ..all }.is_settled(8));
    }
}
