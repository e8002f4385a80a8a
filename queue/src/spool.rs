//! [`Queue`]: what the agent sees of the durable queue, and what its parts share.

use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, RwLock};

use crate::ahead::Ahead;
use crate::answers::Listener;
use crate::cache::Cache;
use crate::committer::{self, Committer};
use crate::content::{ContentReader, Source};
use crate::draft::Draft;
use crate::error::{DraftError, LoadError, OpenError, RecordError};
use crate::fs::{Access, Dir, Fs, FsFile, read_full};
use crate::gather::Depth;
use crate::id::{QueueId, UnixMillis};
use crate::inbox::{Inbox, Sleep};
use crate::index::{Entry, Index};
use crate::item::{Item, State};
use crate::log::Log;
use crate::read;
use crate::record::segment_name;
use crate::recorded::{self, Recorded, encode_whole};
use crate::recovery::{self, RecoveryReport};
use crate::retirement::{self, Retire};
use crate::syncers;
use crate::tail::Tail;
use crate::tidy::{self, Untidy};
use crate::walk::Walk;
use crate::words::Words;

/// Sizes of a queue.
#[derive(Clone, Debug)]
pub struct Options {
    /// Octets of a segment file; also what is reserved on disk ahead of need.
    pub segment_octets: u64,
    /// Content up to this many octets lies in the segment, larger content in a file of its own.
    pub inline_octets_max: usize,
    /// No draft is given out while less than this is free on the disk.
    pub reserve_octets: u64,
    /// Octets of drafts held in memory at once; beyond them even small content goes to a file.
    pub draft_memory_octets_max: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            segment_octets: 32 << 20,
            inline_octets_max: 256 << 10,
            reserve_octets: 256 << 20,
            draft_memory_octets_max: 64 << 20,
        }
    }
}

/// The durable queue. Clones are handles to the same queue; it closes with the last one.
#[derive(Clone)]
pub struct Queue(pub(crate) Arc<Spool>);

type Teller = Box<dyn Fn(&str) + Send + Sync>;

/// What the parts of a queue share. Locks are taken in the order log, tail, index,
/// cache, recorded, untidy, inbox.
pub(crate) struct Spool {
    pub fs: Arc<dyn Fs>,
    pub options: Options,
    pub log: Mutex<Log>,
    pub tail: Mutex<Tail>,
    pub inbox: Mutex<Inbox>,
    pub wake: Condvar,
    pub wake_syncers: Condvar,
    pub syncers: syncers::Threads,
    pub index: Mutex<Index>,
    pub cache: Mutex<Cache>,
    pub recorded: Mutex<Recorded>,
    /// Octets of content held in memory that is not on disk yet.
    pub draft_octets: AtomicUsize,
    /// Beyond so many of them even small content goes to a file.
    pub draft_octets_max: AtomicUsize,
    pub listener: RwLock<Option<Box<dyn Listener>>>,
    pub untidy: Mutex<Untidy>,
    last_id: AtomicU64,
    poison: OnceLock<Arc<str>>,
    on_stopped: OnceLock<Teller>,
    space: Mutex<Space>,
}

/// The room on the disk of a queue.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Octets free; `None` where that cannot be known.
    pub free_octets: Option<u64>,
    /// Octets below which nothing is accepted.
    pub reserve_octets: u64,
}

impl Room {
    /// Returns whether nothing is accepted. Not knowing is no reason to refuse mail: the write itself will tell.
    pub fn is_short(&self) -> bool {
        self.free_octets.is_some_and(|free| free < self.reserve_octets)
    }
}

/// What is known of the free space.
#[derive(Default)]
struct Space {
    checked: Option<UnixMillis>,
    free_octets: Option<u64>,
}

/// How long a look at the free space is good for.
const SPACE_MILLIS: u64 = 200;
/// The most segment files kept open for reading.
const OPEN_SEGMENTS_MAX: usize = 128;

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no thread panics while it holds a lock of the queue")
}

impl Queue {
    /// Opens the queue: reads the log, sets aside what is damaged and what a crash left half done.
    /// The report says what was found.
    pub fn open(fs: Arc<dyn Fs>, options: Options) -> Result<(Queue, RecoveryReport), OpenError> {
        let recovered = recovery::recover(&*fs, Depth::Quick)?;
        let spool = Spool {
            fs,
            draft_octets_max: AtomicUsize::new(options.draft_memory_octets_max),
            options,
            tail: Mutex::new(Tail { sequence: recovered.log.synced(), ..Tail::default() }),
            log: Mutex::new(recovered.log),
            inbox: Mutex::default(),
            wake: Condvar::new(),
            wake_syncers: Condvar::new(),
            syncers: Mutex::default(),
            index: Mutex::new(recovered.index),
            cache: Mutex::default(),
            recorded: Mutex::default(),
            draft_octets: AtomicUsize::new(0),
            listener: RwLock::new(None),
            untidy: Mutex::default(),
            last_id: AtomicU64::new(recovered.last_id.to_u64()),
            poison: OnceLock::new(),
            on_stopped: OnceLock::new(),
            space: Mutex::default(),
        };
        Ok((Queue(Arc::new(spool)), recovered.report))
    }

    /// Reads all of a queue that is not open, every record and every content, and puts aside in
    /// `quarantine/` what is not as it was written; everything else stays. The report says what was found.
    pub fn repair(fs: &dyn Fs) -> Result<RecoveryReport, OpenError> {
        Ok(recovery::recover(fs, Depth::Whole)?.report)
    }

    /// Starts the thread that writes. Without it only [`Queue::flush`] does.
    pub fn start(&self) -> io::Result<Committer> {
        Committer::start(self.0.clone())
    }

    /// Writes all that waits, in the caller's thread; callbacks are called before it returns.
    pub fn flush(&self) {
        committer::flush(&self.0);
    }

    /// Does what the committer does when nothing arrives for a second, in the caller's thread: syncs,
    /// compacts, gives memory and disk space back.
    pub fn tidy(&self) {
        tidy::tidy(&self.0);
    }

    /// Begins a message that arrives at `now`. Refused early when the disk is nearly full.
    pub fn draft(&self, now: UnixMillis) -> Result<Draft, DraftError> {
        self.0.check_poison().map_err(DraftError::Poisoned)?;
        if lock(&self.0.inbox).stopped {
            return Err(DraftError::Stopped);
        }
        self.0.check_space(now)?;
        Ok(Draft::new(self.0.clone(), self.0.next_id(now)))
    }

    /// Names who hears of new messages. It replaces the one named before.
    pub fn on_committed(&self, listener: impl Listener + 'static) {
        *self.0.listener.write().expect("nothing panics while it names a listener") = Some(Box::new(listener));
    }

    /// Names who hears, once and at once, that the queue has stopped, and why. Called while the queue
    /// holds locks: it must not call the queue. Only the first one named counts.
    pub fn on_stopped(&self, tell: impl Fn(&str) + Send + Sync + 'static) {
        let _ = self.0.on_stopped.set(Box::new(tell));
    }

    /// Reads a message, all but its content, with the state recorded last. What was just committed
    /// comes from memory.
    pub fn load(&self, id: QueueId) -> Result<Arc<Item>, LoadError> {
        if let Some(item) = lock(&self.0.cache).get(id).and_then(|recent| recent.item.clone()) {
            return Ok(item);
        }
        self.0.with_entry(id, |entry| self.0.read_item(id, entry)).map(Arc::new)
    }

    /// Reads many messages as [`Queue::load`] does, one after the other as they are asked for, and those side
    /// by side on disk at once: for walking over the whole queue. Those that are not in the queue, or no
    /// longer, are left out.
    pub fn load_many<'a>(
        &'a self,
        ids: &'a [QueueId],
    ) -> impl Iterator<Item = (QueueId, Result<Arc<Item>, LoadError>)> + 'a {
        Walk::new(self, ids, Words::default())
    }

    /// The same for those messages alone that have `words` in them; some that have not may be among
    /// them.
    pub fn load_many_with<'a>(
        &'a self,
        ids: &'a [QueueId],
        words: Words,
    ) -> impl Iterator<Item = (QueueId, Result<Arc<Item>, LoadError>)> + 'a {
        Walk::new(self, ids, words)
    }

    /// Opens the content of a message. Refused once the queue is poisoned: the outcome of a delivery
    /// could not be recorded.
    pub fn content(&self, id: QueueId) -> Result<ContentReader, LoadError> {
        self.0.check_poison().map_err(LoadError::Poisoned)?;
        let recent = lock(&self.0.cache).get(id).and_then(|recent| recent.content.clone());
        if let Some(content) = recent {
            return Ok(ContentReader::new(id, content.len() as u64, 0, Source::Memory(content)));
        }
        self.0.with_entry(id, |entry| self.0.open_content(id, entry))
    }

    /// Records how far a message is. `done` is called on the committer's thread once it is durable;
    /// nobody acts on an outcome before. Several states of one message that wait for the same
    /// batch become one write of the last.
    pub fn record(&self, id: QueueId, state: State, done: impl FnOnce(Result<(), RecordError>) + Send + 'static) {
        let refusal = match self.0.check_poison() {
            Err(why) => Some(RecordError::Poisoned(why)),
            Ok(()) if !lock(&self.0.index).contains(id) => Some(RecordError::Unknown(id)),
            Ok(()) => None,
        };
        if let Some(refusal) = refusal {
            return done(Err(refusal));
        }
        // Of many recipients only those that changed are written: the committer knows which.
        let (meta, state) = match state.recipients.len() {
            recorded::RECIPIENTS_MIN.. => (Vec::new(), Some(state)),
            _ => match encode_whole(&state) {
                Ok(meta) => (meta, None),
                Err(error) => return done(Err(error)),
            },
        };
        let mut inbox = lock(&self.0.inbox);
        if inbox.stopped {
            drop(inbox);
            return done(Err(RecordError::Stopped));
        }
        let pending = inbox.states.entry(id).or_default();
        (pending.meta, pending.state) = (meta, state);
        pending.done.push(Box::new(done));
        self.0.wake(inbox);
    }

    /// Ends a message: every recipient is settled. That is written at once, so that the message is not
    /// delivered again when the process ends; power that fails before the next sync may bring it back.
    /// Returns whether it was there.
    pub fn retire(&self, id: QueueId) -> bool {
        let mut index = lock(&self.0.index);
        let Some((entry, segments)) = index.retire(id) else { return false };
        drop(index);
        lock(&self.0.cache).remove(id);
        lock(&self.0.inbox).retires.push(Retire { id, segments, entry: Some(entry) });
        retirement::write_waiting(&self.0);
        true
    }

    /// Returns up to `limit` ids above `after`, oldest first.
    pub fn ids(&self, after: Option<QueueId>, limit: usize) -> Vec<QueueId> {
        lock(&self.0.index).ids_after(after, limit)
    }

    /// Returns the latest id ever given out: after opening, that of the last run.
    pub fn last_id(&self) -> QueueId {
        self.0.last_id()
    }

    /// Returns how many messages there are.
    pub fn len(&self) -> usize {
        lock(&self.0.index).len()
    }

    /// Returns whether there is no message.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the octets of content of all messages.
    pub fn content_octets(&self) -> u64 {
        lock(&self.0.index).content_octets
    }

    /// Returns the octets the queue takes on disk, space reserved ahead not counted.
    pub fn disk_octets(&self) -> u64 {
        let index = lock(&self.0.index);
        index.spilled_octets + index.segments.values().map(|segment| segment.octets).sum::<u64>()
    }

    /// Returns the room on its disk, as it is now.
    pub fn room(&self) -> Room {
        self.0.room(self.0.fs.free_octets().ok())
    }

    /// Returns the octets of content held in memory that is not on disk yet.
    pub fn draft_octets(&self) -> usize {
        self.0.draft_octets.load(Ordering::Relaxed)
    }

    /// Replaces [`Options::draft_memory_octets_max`].
    pub fn set_draft_octets_max(&self, octets: usize) {
        self.0.draft_octets_max.store(octets, Ordering::Relaxed);
    }

    /// Returns why the queue takes and delivers nothing any more; `None` while all is well.
    pub fn poisoned(&self) -> Option<Arc<str>> {
        self.0.check_poison().err()
    }
}

impl Spool {
    /// Stops the queue for good: from here on nothing is promised.
    pub(crate) fn poison(&self, why: &str) -> Arc<str> {
        let mut is_first = false;
        let first = || {
            is_first = true;
            why.into()
        };
        let why = self.poison.get_or_init(first).clone();
        if is_first && let Some(tell) = self.on_stopped.get() {
            tell(&why);
        }
        why
    }

    pub(crate) fn check_poison(&self) -> Result<(), Arc<str>> {
        self.poison.get().map_or(Ok(()), |why| Err(why.clone()))
    }

    /// Wakes the committer if it sleeps.
    pub(crate) fn wake(&self, mut inbox: MutexGuard<'_, Inbox>) {
        if std::mem::take(&mut inbox.sleep) != Sleep::Not {
            drop(inbox);
            self.wake.notify_one();
        }
    }

    pub(crate) fn last_id(&self) -> QueueId {
        QueueId::from_u64(self.last_id.load(Ordering::Relaxed))
    }

    fn next_id(&self, now: UnixMillis) -> QueueId {
        let next = |last| QueueId::next(QueueId::from_u64(last), now).to_u64();
        let last = self.last_id.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(next(last)));
        QueueId::from_u64(next(last.unwrap_or_else(|last| last)))
    }

    fn check_space(&self, now: UnixMillis) -> Result<(), DraftError> {
        let mut space = lock(&self.space);
        if space.checked.is_none_or(|at| at.since(now) > 0 || now.since(at) >= SPACE_MILLIS) {
            space.free_octets = self.fs.free_octets().ok();
            space.checked = Some(now);
        }
        match self.room(space.free_octets) {
            room @ Room { free_octets: Some(free_octets), reserve_octets } if room.is_short() => {
                Err(DraftError::Full { free_octets, reserve_octets })
            }
            _ => Ok(()),
        }
    }

    fn room(&self, free_octets: Option<u64>) -> Room {
        Room { free_octets, reserve_octets: self.options.reserve_octets }
    }

    /// Runs `read` with the entry of a message; once more when compaction moved it meanwhile.
    fn with_entry<T>(&self, id: QueueId, read: impl Fn(&Entry) -> Result<T, LoadError>) -> Result<T, LoadError> {
        let find = || lock(&self.index).get(id).ok_or(LoadError::Unknown(id));
        let mut entry = find()?;
        loop {
            let result = read(&entry);
            if result.is_ok() {
                return result;
            }
            let again = find()?;
            if again == entry {
                return result;
            }
            entry = again;
        }
    }

    /// Returns the file of a segment, opened when it is not.
    pub(crate) fn segment_file(&self, number: u32) -> io::Result<Arc<dyn FsFile>> {
        if let Some(file) = lock(&self.index).segments.get(&number).and_then(|segment| segment.file.clone()) {
            return Ok(file);
        }
        let file = self.fs.open(Dir::Log, &segment_name(number), Access::Read)?;
        let mut index = lock(&self.index);
        if let Some(segment) = index.segments.get_mut(&number) {
            segment.file = Some(file.clone());
            segment.reopened = true;
        }
        let mut open = index.segments.iter_mut().filter(|(n, segment)| **n != number && segment.file.is_some());
        if let Some((_, first)) = open.next()
            && open.count() + 2 > OPEN_SEGMENTS_MAX
        {
            first.file = None;
        }
        Ok(file)
    }

    /// Returns a reader of what lies side by side.
    pub(crate) fn read_ahead(&self) -> Ahead<'_> {
        Ahead::new(|number, offset, buffer: &mut [u8]| read_full(&*self.segment_file(number)?, offset, buffer))
    }

    pub(crate) fn read_item(&self, id: QueueId, entry: &Entry) -> Result<Item, LoadError> {
        read::read_item(id, entry, &read::from(&|number| self.segment_file(number)))
    }

    pub(crate) fn open_content(&self, id: QueueId, entry: &Entry) -> Result<ContentReader, LoadError> {
        read::open_content(&*self.fs, id, entry, &|number| self.segment_file(number))
    }
}
