//! The one writer: takes all that waits, writes it as one batch, syncs once, then answers.
//!
//! While one sync runs, arrivals collect for the next: no delay is ever added. Callbacks are called
//! outside all locks. What it does when nothing waits stands in `tidy`.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::cache::Recent;
use crate::draft::Committed;
use crate::error::{CommitError, RecordError, is_full};
use crate::fs::{Dir, FsFile};
use crate::id::QueueId;
use crate::index::{Entry, Place};
use crate::item::Item;
use crate::log::{Fault, Log, Part, sync_dir};
use crate::record::Kind;
use crate::spool::{Spool, lock};
use crate::tidy;

/// What waits to be written.
#[derive(Default)]
pub(crate) struct Inbox {
    pub commits: VecDeque<Pending>,
    pub states: HashMap<QueueId, PendingState>,
    pub retires: Vec<Retire>,
    /// Nothing more is taken.
    pub stopped: bool,
    /// The committer waits to be woken.
    pub sleeping: bool,
}

/// A message to commit.
pub(crate) struct Pending {
    pub item: Arc<Item>,
    pub meta: Vec<u8>,
    pub meta_crc: u32,
    pub content: Content,
    pub content_crc: u32,
    pub done: CommitDone,
}

/// Content to commit.
pub(crate) enum Content {
    Inline(Vec<u8>),
    Spilled(Arc<dyn FsFile>),
}

/// A state to record.
#[derive(Default)]
pub(crate) struct PendingState {
    pub meta: Vec<u8>,
    pub done: Vec<RecordDone>,
}

/// A message that is out of the index but not yet out of the log.
#[derive(Clone)]
pub(crate) struct Retire {
    pub id: QueueId,
    /// The segments with a Message record of it.
    pub segments: Vec<u32>,
    pub spilled: bool,
}

pub(crate) type CommitDone = Box<dyn FnOnce(Result<Committed, CommitError>) + Send>;
pub(crate) type RecordDone = Box<dyn FnOnce(Result<(), RecordError>) + Send>;

/// One record of a batch, and what is to happen behind its sync.
pub(crate) enum Op {
    State(QueueId, PendingState),
    Commit(Pending),
    Retired { meta: Vec<u8>, list: Vec<Retire> },
    Move(tidy::Move),
}

/// What is called once the locks are released.
#[derive(Default)]
struct Answers {
    commits: Vec<(CommitDone, Result<Committed, CommitError>)>,
    states: Vec<(RecordDone, Result<(), RecordError>)>,
    items: Vec<Arc<Item>>,
}

/// The thread that writes. Dropping it stops it too.
pub struct Committer {
    spool: Arc<Spool>,
    thread: Option<JoinHandle<()>>,
}

/// The most messages and octets of content written as one batch.
const BATCH_MESSAGES_MAX: usize = 512;
const BATCH_OCTETS_MAX: u64 = 8 << 20;
/// The most ids in one Retired record.
const RETIRED_IDS_MAX: usize = 8192;
/// How long nothing must have arrived before the committer tidies up.
const IDLE: Duration = Duration::from_secs(1);

impl Committer {
    pub(crate) fn start(spool: Arc<Spool>) -> io::Result<Committer> {
        let thread = {
            let spool = spool.clone();
            std::thread::Builder::new().name("committer".into()).spawn(move || run(&spool))?
        };
        Ok(Committer { spool, thread: Some(thread) })
    }

    /// Writes what waits, answers it and ends the thread. Whatever comes later is refused.
    pub fn stop(self) {}
}

impl Drop for Committer {
    fn drop(&mut self) {
        lock(&self.spool.inbox).stopped = true;
        self.spool.wake.notify_all();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the committer does not panic");
        }
    }
}

impl Inbox {
    pub(crate) fn is_empty(&self) -> bool {
        self.commits.is_empty() && self.states.is_empty() && self.retires.is_empty()
    }

    /// Takes what goes into one batch: states first, they are small and deliveries wait for them.
    fn take(&mut self) -> VecDeque<Op> {
        let states = std::mem::take(&mut self.states).into_iter().map(|(id, state)| Op::State(id, state));
        let mut ops: VecDeque<Op> = states.collect();
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

/// Makes Retired records of a list of messages.
pub(crate) fn retired_ops(list: Vec<Retire>) -> Vec<Op> {
    let op = |list: &[Retire]| {
        let mut ids: Vec<u64> = list.iter().map(|retire| retire.id.to_u64()).collect();
        ids.dedup();
        Op::Retired { meta: ids.iter().flat_map(|id| id.to_le_bytes()).collect(), list: list.to_vec() }
    };
    list.chunks(RETIRED_IDS_MAX).map(op).collect()
}

fn run(spool: &Spool) {
    let mut tidied = false;
    while wait(spool, tidied) {
        tidied = match step(spool) {
            true => false,
            false => {
                tidy::tidy(spool);
                true
            }
        };
    }
    flush(spool);
    tidy::sync(spool);
}

/// Waits for work, at most until it is time to tidy; returns whether to go on.
fn wait(spool: &Spool, tidied: bool) -> bool {
    let mut inbox = lock(&spool.inbox);
    while inbox.is_empty() && !inbox.stopped {
        inbox.sleeping = true;
        let poisoned = "no thread panics while it holds a lock of the queue";
        if tidied {
            inbox = spool.wake.wait(inbox).expect(poisoned);
        } else {
            let (guard, timeout) = spool.wake.wait_timeout(inbox, IDLE).expect(poisoned);
            inbox = guard;
            if timeout.timed_out() {
                break;
            }
        }
    }
    inbox.sleeping = false;
    !inbox.stopped
}

/// Writes batches until nothing waits.
pub(crate) fn flush(spool: &Spool) {
    while step(spool) {}
}

/// Writes one batch; returns whether there was one.
fn step(spool: &Spool) -> bool {
    let mut log = lock(&spool.log);
    let ops = lock(&spool.inbox).take();
    if ops.is_empty() {
        return false;
    }
    let mut answers = Answers::default();
    write(spool, &mut log, ops, &mut answers);
    tidy::after_batch(spool, &mut log);
    drop(log);
    answers.give(spool);
    true
}

/// Writes records of the queue itself: moved messages and retired ids.
pub(crate) fn write_internal(spool: &Spool, log: &mut Log, ops: VecDeque<Op>) {
    write(spool, log, ops, &mut Answers::default());
}

fn write(spool: &Spool, log: &mut Log, ops: VecDeque<Op>, answers: &mut Answers) {
    let mut ops = match spool.check_poison() {
        Ok(()) => sync_contents(spool, still_known(spool, ops, answers), answers),
        Err(_) => ops,
    };
    while !ops.is_empty() {
        let written = spool.check_poison().map_err(|why| Fault::Broken(why.to_string())).and_then(|()| {
            let parts: Vec<Part<'_>> = ops.iter().map(Op::part).collect();
            let sync = ops.iter().any(|op| !matches!(op, Op::Retired { .. }));
            log.append(spool, &parts, sync)
        });
        match written {
            Ok(places) => {
                let count = places.len();
                apply(spool, ops.drain(..count).zip(places), answers);
            }
            Err(fault) => {
                if let Fault::Broken(why) = &fault {
                    spool.poison(why);
                }
                refuse(spool, ops.drain(..), &fault, answers);
            }
        }
    }
}

/// Drops states of messages retired since they were handed in.
fn still_known(spool: &Spool, ops: VecDeque<Op>, answers: &mut Answers) -> VecDeque<Op> {
    if !ops.iter().any(|op| matches!(op, Op::State(..))) {
        return ops;
    }
    let index = lock(&spool.index);
    let mut known = VecDeque::with_capacity(ops.len());
    for op in ops {
        match op {
            Op::State(id, state) if !index.entries.contains_key(&id) => {
                answers.states.extend(state.done.into_iter().map(|done| (done, Err(RecordError::Unknown(id)))));
            }
            op => known.push_back(op),
        }
    }
    known
}

/// Syncs the content files of a batch, then their directory: before their records are written.
fn sync_contents(spool: &Spool, ops: VecDeque<Op>, answers: &mut Answers) -> VecDeque<Op> {
    let mut good = VecDeque::with_capacity(ops.len());
    let mut any = false;
    for op in ops {
        if let Op::Commit(Pending { content: Content::Spilled(file), item, .. }) = &op
            && spool.check_poison().is_ok()
        {
            match file.sync() {
                Ok(()) => any = true,
                Err(e) if is_full(&e) => {
                    refuse(spool, [op], &Fault::Full, answers);
                    continue;
                }
                // The write below fails for the whole batch.
                Err(e) => drop(spool.poison(&format!("sync of content/{} failed: {e}", item.id))),
            }
        }
        good.push_back(op);
    }
    if any && let Err(Fault::Broken(why)) = sync_dir(spool, Dir::Content) {
        spool.poison(&why);
    }
    good
}

/// Brings what was written into the index.
fn apply(spool: &Spool, ops: impl Iterator<Item = (Op, Place)>, answers: &mut Answers) {
    let mut index = lock(&spool.index);
    let mut cache = lock(&spool.cache);
    let mut late = Vec::new();
    for (op, place) in ops {
        match op {
            Op::Commit(pending) => {
                let id = pending.item.id;
                index.insert(id, pending.entry(place));
                answers.commits.push((pending.done, Ok(Committed::new(id, pending.item.content_octets))));
                answers.items.push(pending.item.clone());
                let content = match pending.content {
                    Content::Inline(content) => Some(Arc::new(content)),
                    Content::Spilled(_) => None,
                };
                cache.insert(id, Recent { item: Some(pending.item), content });
            }
            Op::State(id, state) => {
                index.set_state(id, place, state.meta.len() as u32);
                cache.forget_item(id);
                answers.states.extend(state.done.into_iter().map(|done| (done, Ok(()))));
            }
            Op::Retired { list, .. } => tidy::note_retired(spool, &mut index, place, list),
            Op::Move(moved) => late.extend(moved.apply(&mut index, place)),
        }
    }
    drop((index, cache));
    lock(&spool.inbox).retires.extend(late);
}

fn refuse(spool: &Spool, ops: impl IntoIterator<Item = Op>, fault: &Fault, answers: &mut Answers) {
    let poison = || spool.check_poison().err().unwrap_or_else(|| "unknown".into());
    for op in ops {
        match op {
            Op::Commit(pending) => {
                let full = matches!(fault, Fault::Full);
                if full && matches!(pending.content, Content::Spilled(_)) {
                    let _ = spool.fs.remove(Dir::Content, &pending.item.id.to_string());
                }
                let error = if full { CommitError::Full } else { CommitError::Poisoned(poison()) };
                answers.commits.push((pending.done, Err(error)));
            }
            Op::State(_, state) => {
                let error =
                    if matches!(fault, Fault::Full) { RecordError::Full } else { RecordError::Poisoned(poison()) };
                answers.states.extend(state.done.into_iter().map(|done| (done, Err(error.clone()))));
            }
            // They are tried again with the next batch that finds room.
            Op::Retired { list, .. } if matches!(fault, Fault::Full) => tidy::keep_for_later(spool, list),
            Op::Retired { .. } | Op::Move(_) => {}
        }
    }
}

impl Answers {
    fn give(self, spool: &Spool) {
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

impl Pending {
    fn entry(&self, place: Place) -> Entry {
        Entry {
            content_octets: self.item.content_octets,
            message: place,
            meta_octets: self.meta.len() as u32,
            content_crc: self.content_crc,
            state: None,
            spilled: matches!(self.content, Content::Spilled(_)),
        }
    }
}

impl Op {
    fn part(&self) -> Part<'_> {
        let plain = |kind, id, meta| Part {
            kind,
            id,
            meta,
            meta_crc: crc32fast::hash(meta),
            inline: &[],
            spilled: false,
            content_octets: 0,
            content_crc: 0,
        };
        match self {
            Op::State(id, state) => plain(Kind::State, *id, &state.meta),
            Op::Retired { meta, .. } => plain(Kind::Retired, QueueId::from_u64(0), meta),
            Op::Move(moved) => moved.part(),
            Op::Commit(pending) => {
                let (inline, spilled): (&[u8], bool) = match &pending.content {
                    Content::Inline(content) => (content, false),
                    Content::Spilled(_) => (&[], true),
                };
                Part {
                    kind: Kind::Message,
                    id: pending.item.id,
                    meta: &pending.meta,
                    meta_crc: pending.meta_crc,
                    inline,
                    spilled,
                    content_octets: pending.item.content_octets,
                    content_crc: pending.content_crc,
                }
            }
        }
    }
}
