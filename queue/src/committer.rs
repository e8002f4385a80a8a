//! The one writer: takes all that waits, writes it as one batch, syncs once, then answers.
//!
//! While one sync runs, arrivals collect for the next: no delay is ever added. Callbacks are called
//! outside all locks. What it does when nothing waits stands in `tidy`.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::answers::{Answers, unless_panic};
use crate::cache::Recent;
use crate::draft::{Charge, Committed};
use crate::error::{CommitError, RecordError, is_full};
use crate::fs::{Dir, FsFile};
use crate::id::QueueId;
use crate::inbox::Sleep;
use crate::index::{Entry, Place};
use crate::item::{Item, State};
use crate::log::{Fault, Log, sync_dir};
use crate::record::Kind;
use crate::recorded::still_known;
use crate::retirement::{self, Retire};
use crate::spool::{Spool, lock};
use crate::syncers;
use crate::tail::Part;
use crate::tidy;

/// What a thread finds when it wakes up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Woken {
    /// There is something to do.
    Work,
    /// Nothing has arrived for a while.
    Idle,
    /// Nothing will come any more.
    Over,
}

/// A message to commit.
pub(crate) struct Pending {
    pub item: Arc<Item>,
    pub meta: Vec<u8>,
    pub meta_crc: u32,
    pub content: Content,
    pub content_crc: u32,
    /// Counts inline content as memory until it is on disk.
    pub charge: Charge,
    pub done: CommitDone,
}

/// Content to commit.
pub(crate) enum Content {
    Inline(Vec<u8>),
    /// In a file not yet synced.
    Spilled(Arc<dyn FsFile>),
    /// In a file that is synced; its directory is not.
    Synced,
}

/// A state to record.
#[derive(Default)]
pub(crate) struct PendingState {
    /// What is written; for a message with many recipients made when it is.
    pub meta: Vec<u8>,
    /// The state of a message with many recipients.
    pub state: Option<State>,
    /// Whether `meta` only says what has changed.
    pub is_change: bool,
    pub done: Vec<RecordDone>,
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

/// The thread that writes. Dropping it stops it, and those that sync large messages for it.
pub struct Committer {
    spool: Arc<Spool>,
    /// Taken out by the drop.
    thread: Option<JoinHandle<()>>,
}

/// How long nothing must have arrived before the committer tidies up.
const IDLE: Duration = Duration::from_secs(1);

impl Committer {
    pub(crate) fn start(spool: Arc<Spool>) -> io::Result<Committer> {
        let own = spool.clone();
        let thread = std::thread::Builder::new().name("committer".into()).spawn(move || run(&own))?;
        lock(&spool.inbox).syncers.admit();
        Ok(Committer { spool, thread: Some(thread) })
    }

    /// Writes what waits, answers it and ends the threads. Whatever comes later is refused.
    pub fn stop(self) {}
}

impl Drop for Committer {
    fn drop(&mut self) {
        lock(&self.spool.inbox).stopped = true;
        self.spool.wake.notify_all();
        syncers::join(&self.spool);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("no thread of the queue panics");
        }
    }
}

/// Writes until the queue is stopped. When something panics, a callback or we, nothing more is
/// promised: the queue is poisoned, and what waits is refused rather than left without an answer.
fn run(spool: &Spool) {
    if unless_panic(spool, || write_all(spool)).is_none() {
        while wait(spool, Sleep::Deep) != Woken::Over {
            refuse_all(spool);
        }
        refuse_all(spool);
    }
}

/// Refuses all that waits, behind a panic.
fn refuse_all(spool: &Spool) {
    loop {
        let ops = lock(&spool.inbox).take();
        if ops.is_empty() {
            return;
        }
        let mut answers = Answers::default();
        refuse(spool, ops, &Fault::Broken(String::new()), &mut answers);
        unless_panic(spool, || answers.give(spool));
    }
}

fn write_all(spool: &Spool) {
    let mut sleep = Sleep::Light;
    loop {
        sleep = match wait(spool, sleep) {
            Woken::Work => {
                step(spool);
                Sleep::Light
            }
            Woken::Idle => {
                tidy::tidy(spool);
                Sleep::Deep
            }
            Woken::Over => break,
        };
    }
    flush(spool);
    tidy::sync(spool);
}

/// Waits for work; sleeping lightly, at most until it is time to tidy.
fn wait(spool: &Spool, sleep: Sleep) -> Woken {
    let mut inbox = lock(&spool.inbox);
    let mut beside = inbox.beside;
    let woken = loop {
        if inbox.is_over() {
            break Woken::Over;
        }
        if !inbox.is_empty() || inbox.is_due {
            break Woken::Work;
        }
        inbox.sleep = sleep;
        let poisoned = "no thread panics while it holds a lock of the queue";
        if sleep == Sleep::Deep {
            inbox = spool.wake.wait(inbox).expect(poisoned);
            continue;
        }
        let (guard, timeout) = spool.wake.wait_timeout(inbox, IDLE).expect(poisoned);
        inbox = guard;
        if timeout.timed_out() && std::mem::replace(&mut beside, inbox.beside) == inbox.beside {
            break Woken::Idle;
        }
    };
    (inbox.sleep, inbox.is_due) = (Sleep::Not, false);
    woken
}

/// Writes batches until nothing waits.
pub(crate) fn flush(spool: &Spool) {
    while step(spool) {}
}

/// Writes one batch and gives space back; returns whether there was a batch.
fn step(spool: &Spool) -> bool {
    let mut log = lock(&spool.log);
    let ops = lock(&spool.inbox).take();
    let is_any = !ops.is_empty();
    let mut answers = Answers::default();
    write(spool, &mut log, ops, &mut answers);
    tidy::try_again(spool, &answers);
    tidy::after_batch(spool, &mut log);
    drop(log);
    answers.give(spool);
    is_any
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
    sync_content_names(spool, &ops);
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

/// Syncs the content files that are not: before their directory, and before their records are written.
pub(crate) fn sync_contents(spool: &Spool, ops: VecDeque<Op>, answers: &mut Answers) -> VecDeque<Op> {
    let mut good = VecDeque::with_capacity(ops.len());
    for op in ops {
        match op {
            Op::Commit(Pending {
                content: Content::Spilled(file),
                item,
                meta,
                meta_crc,
                content_crc,
                charge,
                done,
            }) if spool.check_poison().is_ok() => {
                let synced = file.sync();
                let id = item.id;
                let pending = Pending { content: Content::Synced, item, meta, meta_crc, content_crc, charge, done };
                match synced {
                    Err(e) if is_full(&e) => {
                        refuse(spool, [Op::Commit(pending)], &Fault::Full, answers);
                        continue;
                    }
                    // The write that follows is refused for the whole batch.
                    Err(e) => drop(spool.poison(&format!("sync of content/{id} failed: {e}"))),
                    Ok(()) => {}
                }
                good.push_back(Op::Commit(pending));
            }
            op => good.push_back(op),
        }
    }
    good
}

/// Syncs the directory of the content files when a batch has any.
fn sync_content_names(spool: &Spool, ops: &VecDeque<Op>) {
    let any = ops.iter().any(|op| matches!(op, Op::Commit(Pending { content: Content::Synced, .. })));
    if any
        && spool.check_poison().is_ok()
        && let Err(Fault::Broken(why)) = sync_dir(spool, Dir::Content)
    {
        spool.poison(&why);
    }
}

/// Brings what was written into the index.
fn apply(spool: &Spool, ops: impl Iterator<Item = (Op, Place)>, answers: &mut Answers) {
    let sequence = lock(&spool.tail).sequence;
    let mut index = lock(&spool.index);
    let mut cache = lock(&spool.cache);
    let mut late = Vec::new();
    for (op, place) in ops {
        match op {
            Op::Commit(pending) => {
                let id = pending.item.id;
                index.insert(id, &pending.entry(place));
                answers.commits.push((pending.done, Ok(Committed::new(pending.item.clone()))));
                answers.items.push(pending.item.clone());
                let content = match pending.content {
                    Content::Inline(content) => Some(Arc::new(content)),
                    _ => None,
                };
                cache.insert(id, Recent { item: Some(pending.item), content });
            }
            Op::State(id, state) => {
                index.set_state(id, place, state.meta.len() as u32, state.is_change);
                cache.forget_item(id);
                if let Some(state) = state.state {
                    lock(&spool.recorded).keep(id, state);
                }
                answers.states.extend(state.done.into_iter().map(|done| (done, Ok(()))));
            }
            Op::Retired { list, .. } => {
                // What is needed no more is looked for behind every batch.
                retirement::note(spool, &mut index, place, list, sequence);
            }
            Op::Move(moved) => late.extend(moved.apply(&mut index, place)),
        }
    }
    drop((index, cache));
    lock(&spool.inbox).retires.extend(late);
}

fn refuse(spool: &Spool, ops: impl IntoIterator<Item = Op>, fault: &Fault, answers: &mut Answers) {
    let poison = || spool.check_poison().err().unwrap_or_else(|| "unknown".into());
    let passes = !matches!(fault, Fault::Broken(_));
    for op in ops {
        match op {
            Op::Commit(pending) => {
                if passes && pending.is_spilled() {
                    let _ = spool.fs.remove(Dir::Content, &pending.item.id.to_string());
                }
                let error = match fault {
                    Fault::Full => CommitError::Full,
                    Fault::NoDescriptors => CommitError::NoDescriptors,
                    Fault::Broken(_) => CommitError::Poisoned(poison()),
                };
                answers.commits.push((pending.done, Err(error)));
            }
            Op::State(_, state) => {
                let error = match fault {
                    Fault::Full => RecordError::Full,
                    Fault::NoDescriptors => RecordError::NoDescriptors,
                    Fault::Broken(_) => RecordError::Poisoned(poison()),
                };
                answers.states.extend(state.done.into_iter().map(|done| (done, Err(error.clone()))));
            }
            // They are tried again with the next batch that finds room.
            Op::Retired { list, .. } if passes => tidy::keep_for_later(spool, list),
            Op::Retired { .. } | Op::Move(_) => {}
        }
    }
}

impl Pending {
    fn is_spilled(&self) -> bool {
        !matches!(self.content, Content::Inline(_))
    }

    fn entry(&self, place: Place) -> Entry {
        Entry {
            content_octets: self.item.content_octets,
            message: place,
            meta_octets: self.meta.len() as u32,
            state: None,
            changes: Vec::new(),
            spilled: self.is_spilled(),
        }
    }
}

impl Op {
    fn part(&self) -> Part<'_> {
        match self {
            Op::State(id, state) => {
                Part::plain(if state.is_change { Kind::Change } else { Kind::State }, *id, &state.meta)
            }
            Op::Retired { meta, .. } => Part::plain(Kind::Retired, QueueId::from_u64(0), meta),
            Op::Move(moved) => moved.part(),
            Op::Commit(pending) => {
                let inline: &[u8] = if let Content::Inline(content) = &pending.content { content } else { &[] };
                Part {
                    kind: Kind::Message,
                    id: pending.item.id,
                    meta: &pending.meta,
                    meta_crc: pending.meta_crc,
                    inline,
                    spilled: pending.is_spilled(),
                    content_octets: pending.item.content_octets,
                    content_crc: pending.content_crc,
                }
            }
        }
    }
}
