//! What happened to each message, kept after it is gone: a bounded log on disk that `postroad trace`
//! searches.
//!
//! Mail never waits for it. Whoever sees something happen writes it into a buffer in memory; a thread
//! writes what has come together to the newest file, within a second, and is asleep while nothing
//! happens. Nothing is synced: after a crash the last second may be missing, after a power cut what the
//! system had not written. When the disk fails or is full, that is said once, events are dropped and
//! counted, and mail goes on. Format: `docs/journal-format.md`.

mod event;
mod search;
mod segment;
mod store;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use postroad_queue::{Item, QueueId, UnixMillis};
use tracing::{error, info};

pub use event::{Accepted, Event, Kind, Note};
pub use search::{Found, Key, Message, Question, search};

use crate::clock::{Clock, millis};
use crate::config;
use crate::metrics::Metrics;
use segment::BATCH_HEAD_OCTETS;
use store::Store;

/// How long events wait for others to be written with.
const PERIOD: Duration = Duration::from_secs(1);
/// So many octets are written at once, whatever the time.
const BATCH_OCTETS: usize = 256 * 1024;
/// So many octets wait at most, while the disk does not take them; what comes then is dropped.
const WAITING_OCTETS_MAX: usize = 4 << 20;
/// How soon what could not be removed is tried again.
const FORGET_PAUSE: Duration = Duration::from_secs(60);
/// How long a search waits for what was noted before it.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// All files together, in octets.
    pub octets_max: u64,
    /// Events older than this go, in milliseconds.
    pub age_ms: u64,
}

impl Limits {
    /// Returns the limits of a configuration; none when it turns the journal off.
    pub fn of(config: &config::Journal) -> Option<Limits> {
        config.is_on().then(|| Limits { octets_max: config.octets_max, age_ms: millis(config.age) })
    }
}

/// The journal of an agent. Clones are handles to the same one; the default one is off.
#[derive(Clone, Default)]
pub struct Journal(Option<Arc<Shared>>);

struct Shared {
    dir: PathBuf,
    limits: Limits,
    clock: Clock,
    metrics: Arc<Metrics>,
    waiting: Mutex<Waiting>,
    /// The writer has something to do.
    wake: Condvar,
    /// A batch was written, or given up.
    written: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What is to be written, behind room for the head of its batch.
#[derive(Default)]
struct Waiting {
    batch: Vec<u8>,
    events: u64,
    /// Counts the batches handed to the writer.
    taken: u64,
    /// Counts those that it is done with.
    done: u64,
    /// The writer sleeps until the first event.
    is_asleep: bool,
    /// What there is is wanted on disk now.
    is_urgent: bool,
    is_closed: bool,
}

impl Journal {
    /// Starts the journal in `dir`, which is made with the first event.
    ///
    /// # Errors
    /// There is no thread for it.
    pub fn start(dir: PathBuf, limits: Limits, clock: Clock, metrics: Arc<Metrics>) -> io::Result<Journal> {
        let shared = Arc::new(Shared {
            dir,
            limits,
            clock,
            metrics,
            waiting: Mutex::default(),
            wake: Condvar::new(),
            written: Condvar::new(),
            thread: Mutex::default(),
        });
        let writer = Writer { shared: shared.clone(), store: None, lost: 0 };
        let thread = std::thread::Builder::new().name("journal".to_owned()).spawn(move || writer.run())?;
        *lock(&shared.thread) = Some(thread);
        Ok(Journal(Some(shared)))
    }

    /// Returns whether events are kept.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Notes that a message was accepted, with its Message-ID or nothing.
    pub fn accepted(&self, item: &Item, message_id: &[u8]) {
        self.add(|batch| event::put_acceptance(batch, item, message_id));
        if item.state.held {
            self.note(item.arrived, item.id, Kind::Held, &Note { by: Some("queue.hold"), ..Note::default() });
        }
    }

    /// Notes anything else that happened.
    pub fn note(&self, at: UnixMillis, id: QueueId, kind: Kind, note: &Note<'_>) {
        self.add(|batch| event::put_note(batch, at, id, kind, note));
    }

    fn add(&self, put: impl FnOnce(&mut Vec<u8>)) {
        let Some(shared) = &self.0 else { return };
        let mut waiting = lock(&shared.waiting);
        if waiting.batch.len() >= WAITING_OCTETS_MAX {
            drop(waiting);
            shared.metrics.journal_dropped.inc();
            return;
        }
        if waiting.batch.is_empty() {
            waiting.batch.extend_from_slice(&[0; BATCH_HEAD_OCTETS]);
        }
        let before = waiting.batch.len();
        put(&mut waiting.batch);
        waiting.events += 1;
        // A call of the system once for each batch, not for each event.
        let is_full = before < BATCH_OCTETS && waiting.batch.len() >= BATCH_OCTETS;
        if std::mem::take(&mut waiting.is_asleep) || is_full {
            shared.wake.notify_one();
        }
    }

    /// Searches what was noted so far. Reads all of the journal: called where blocking is allowed.
    ///
    /// # Errors
    /// The files cannot be read.
    pub fn search(&self, question: &Question) -> io::Result<Found> {
        let Some(shared) = &self.0 else { return Ok(Found::default()) };
        shared.flush();
        search(&shared.dir, shared.limits, shared.clock.now(), question)
    }

    /// Writes what waits and ends the thread; what is noted afterwards is lost.
    pub fn close(&self) {
        let Some(shared) = &self.0 else { return };
        lock(&shared.waiting).is_closed = true;
        shared.wake.notify_one();
        if let Some(thread) = lock(&shared.thread).take() {
            // A writer that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Returns when what was noted so far is on disk, or given up; a disk that hangs is not waited for
    /// long.
    fn flush(&self) {
        let until = Instant::now() + FLUSH_LIMIT;
        let mut waiting = lock(&self.waiting);
        let wanted = waiting.taken + u64::from(!waiting.batch.is_empty());
        while waiting.done < wanted && !waiting.is_closed {
            waiting.is_urgent = true;
            self.wake.notify_one();
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            waiting = self.written.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The thread that writes.
struct Writer {
    shared: Arc<Shared>,
    /// None until the first batch, and after a fault.
    store: Option<Store>,
    /// Events lost since the disk failed.
    lost: u64,
}

impl Writer {
    fn run(mut self) {
        let shared = self.shared.clone();
        // An agent that has nothing to do forgets, too.
        self.store = Store::open(shared.dir.clone(), shared.limits).ok();
        let mut spare = Vec::new();
        loop {
            let (mut batch, events, is_closed) = self.next_batch(spare);
            if !batch.is_empty() {
                segment::seal(&mut batch);
                let result = self.append(&batch);
                self.say(result, events);
                let mut waiting = lock(&shared.waiting);
                waiting.done = waiting.taken;
                drop(waiting);
                shared.written.notify_all();
            } else if let Some(store) = &mut self.store {
                store.forget(shared.clock.now());
            }
            if is_closed {
                return;
            }
            batch.clear();
            batch.shrink_to(BATCH_OCTETS);
            spare = batch;
        }
    }

    /// Waits for events, then a while for more. Comes back with nothing when there is something to
    /// forget, or to end.
    fn next_batch(&self, spare: Vec<u8>) -> (Vec<u8>, u64, bool) {
        let shared = &*self.shared;
        let mut waiting = lock(&shared.waiting);
        if waiting.batch.is_empty() && !waiting.is_closed {
            waiting.is_asleep = true;
            let forgets = self.store.as_ref().and_then(Store::forgets_at);
            waiting = match forgets {
                Some(at) => {
                    let left = Duration::from_millis(at.since(shared.clock.now())).max(FORGET_PAUSE);
                    shared.wake.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0
                }
                None => shared.wake.wait(waiting).unwrap_or_else(PoisonError::into_inner),
            };
            waiting.is_asleep = false;
        }
        let until = Instant::now() + PERIOD;
        let is_due = |waiting: &Waiting| {
            let is_wanted = waiting.is_urgent || waiting.is_closed || waiting.batch.is_empty();
            is_wanted || waiting.batch.len() >= BATCH_OCTETS || Instant::now() >= until
        };
        while !is_due(&waiting) {
            let left = until.saturating_duration_since(Instant::now());
            waiting = shared.wake.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let batch = std::mem::replace(&mut waiting.batch, spare);
        waiting.taken += u64::from(!batch.is_empty());
        waiting.is_urgent = false;
        (batch, std::mem::take(&mut waiting.events), waiting.is_closed)
    }

    fn append(&mut self, batch: &[u8]) -> io::Result<()> {
        let shared = &*self.shared;
        let mut store = match self.store.take() {
            Some(store) => store,
            None => Store::open(shared.dir.clone(), shared.limits)?,
        };
        store.append(batch, shared.clock.now())?;
        self.store = Some(store);
        Ok(())
    }

    /// Says once that the disk does not take it, and once that it does again.
    fn say(&mut self, result: io::Result<()>, events: u64) {
        let dir = self.shared.dir.display();
        match result {
            Ok(()) if self.lost > 0 => info!(lost = self.lost, %dir, "the journal is written again"),
            Ok(()) => {}
            Err(error) => {
                if self.lost == 0 {
                    error!(%error, %dir, "the journal cannot be written: what becomes of messages is not noted; mail goes on");
                }
                self.lost += events;
                self.shared.metrics.journal_dropped.inc_by(events);
                return;
            }
        }
        self.lost = 0;
    }
}

/// Returns where the journal of an agent lies.
pub fn directory(state_dir: &Path) -> PathBuf {
    state_dir.join("journal")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a panic left in a buffer is under a checksum of its own once it is read.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
