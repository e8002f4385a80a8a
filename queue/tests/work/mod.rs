//! What the crash tests do with a queue and what they know to be promised: a ledger, and the check of a
//! disk against it.

// Each test program that includes this file uses another part of it.
#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use postroad_queue::{Item, Options, Origin, Queue, QueueId, RecipientState, RecoveryReport, State, UnixMillis};
use postroad_smtp::{Envelope, MailParams, Recipient};

use crate::sim::disk::phase;
use crate::sim::{Op, Plan, SimFs, Survives};

pub mod scripts;

pub const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
pub const EXPIRES: UnixMillis = UnixMillis(1_900_000_000_000);

pub fn options() -> Options {
    Options { segment_octets: 4096, inline_octets_max: 1500, reserve_octets: 0, ..Options::default() }
}

pub fn open(fs: &Arc<SimFs>) -> (Queue, RecoveryReport) {
    phase("open");
    Queue::open(fs.clone(), options()).expect("a crash never keeps the queue from opening")
}

/// What the test knows to be promised.
#[derive(Clone, Default)]
pub struct Ledger {
    pub submitted: BTreeMap<QueueId, (Envelope, Vec<u8>)>,
    pub committed: BTreeSet<QueueId>,
    pub refused: BTreeSet<QueueId>,
    /// States acknowledged, then those handed in behind them.
    pub states: BTreeMap<QueueId, Vec<State>>,
    pub acknowledged: BTreeMap<QueueId, usize>,
    pub retired: BTreeSet<QueueId>,
    /// Retired, and perhaps not yet written.
    pub fresh: BTreeSet<QueueId>,
    /// Retired, and something synced behind it.
    pub gone: BTreeSet<QueueId>,
    /// What is to be retired while files are synced: one before and one behind each sync, or none.
    pub beside: VecDeque<Option<QueueId>>,
    /// The disk forgot what it was told to keep: what was not promised may come, damaged even, and go.
    pub is_forgotten: bool,
}

pub type Shared = Arc<Mutex<Ledger>>;

pub fn ledger(shared: &Shared) -> MutexGuard<'_, Ledger> {
    shared.lock().expect("no callback panics")
}

/// Content of so many octets goes to many recipients: their states are recorded as changes.
pub const LIST_OCTETS: usize = 333;

pub fn envelope(n: usize, octets: usize) -> Envelope {
    let recipients = if octets == LIST_OCTETS { 9 } else { 1 + n % 3 };
    let path = |i| Recipient::new(format!("r{i}@example.org").parse().expect("path"));
    let from = format!("s{n}@example.net").parse().expect("path");
    Envelope::new(from, MailParams::default(), (0..recipients).map(path).collect()).expect("recipients")
}

pub fn content(octets: usize, seed: usize) -> Vec<u8> {
    (0..octets).map(|i| (i * 31 + seed * 7 + i / 251 + 1) as u8).collect()
}

/// Hands a message in without writing it.
pub fn submit(queue: &Queue, shared: &Shared, octets: usize) -> Option<QueueId> {
    phase("accept");
    let mut draft = queue.draft(NOW).ok()?;
    let (id, n) = (draft.id(), ledger(shared).submitted.len());
    let content = content(octets, n);
    for piece in content.chunks(700) {
        draft.append(piece).ok()?;
    }
    ledger(shared).submitted.insert(id, (envelope(n, octets), content));
    let after = shared.clone();
    let origin = Origin { protocol: "ESMTP".into(), session: "s".into(), ..Origin::default() };
    draft.commit(envelope(n, octets), origin, EXPIRES, NOW, move |result| {
        let mut ledger = ledger(&after);
        match result {
            Ok(committed) => {
                assert_eq!(committed.id(), id);
                ledger.committed.insert(id);
                synced(&mut ledger);
            }
            Err(_) => drop(ledger.refused.insert(id)),
        }
    });
    Some(id)
}

/// A sync succeeded: what was retired before this batch began is gone for good.
pub fn synced(ledger: &mut Ledger) {
    ledger.gone = ledger.retired.difference(&ledger.fresh).copied().collect();
}

/// Writes what waits.
pub fn flush(queue: &Queue, shared: &Shared) {
    queue.flush();
    ledger(shared).fresh.clear();
}

pub fn accept(queue: &Queue, shared: &Shared, octets: usize) -> Option<QueueId> {
    let id = submit(queue, shared, octets);
    flush(queue, shared);
    id
}

pub fn record(queue: &Queue, shared: &Shared, id: Option<QueueId>, attempt: u64) {
    let Some(id) = id.filter(|id| ledger(shared).committed.contains(id)) else { return };
    phase("record");
    let recipients = ledger(shared).submitted[&id].0.recipients().len();
    let mut state = State { held: attempt % 2 == 1, ..State::fresh(recipients, NOW, EXPIRES) };
    let changed = attempt as usize % recipients;
    state.recipients[changed] =
        RecipientState::Pending { attempts: 1, due: NOW.plus(attempt), last: None, earlier: Default::default() };
    let mut before = ledger(shared);
    let states = before.states.entry(id).or_default();
    states.push(state.clone());
    let count = states.len();
    drop(before);
    let after = shared.clone();
    queue.record(id, state, move |result| {
        if result.is_ok() {
            let mut ledger = ledger(&after);
            let acknowledged = ledger.acknowledged.entry(id).or_default();
            *acknowledged = count.max(*acknowledged);
            synced(&mut ledger);
        }
    });
}

pub fn retire(queue: &Queue, shared: &Shared, id: Option<QueueId>) {
    phase("retire");
    retire_later(queue, shared, id);
    flush(queue, shared);
}

/// Retires a message without writing it.
pub fn retire_later(queue: &Queue, shared: &Shared, id: Option<QueueId>) {
    if let Some(id) = id.filter(|id| ledger(shared).committed.contains(id)) {
        ledger(shared).retired.insert(id);
        ledger(shared).fresh.insert(id);
        queue.retire(id);
    }
}

/// Lets these messages be retired during the next syncs.
pub fn retire_beside(shared: &Shared, ids: impl IntoIterator<Item = Option<QueueId>>) {
    ledger(shared).beside.extend(ids);
}

/// Retires what is next to be while files are synced.
pub fn retire_next(queue: &Queue, shared: &Shared) {
    let next = ledger(shared).beside.pop_front();
    if let Some(id @ Some(_)) = next {
        phase("beside");
        retire_later(queue, shared, id);
        phase("accept");
    }
}

pub fn quarantine(queue: &Queue, shared: &Shared, id: Option<QueueId>) {
    phase("quarantine");
    let known = id.filter(|id| ledger(shared).committed.contains(id));
    if let Some(id) = known.filter(|id| queue.quarantine(*id).is_ok()) {
        ledger(shared).retired.insert(id);
        flush(queue, shared);
    }
}

pub fn tidy(queue: &Queue) {
    phase("tidy");
    queue.tidy();
}

pub fn read(queue: &Queue, id: QueueId) -> std::io::Result<Vec<u8>> {
    let mut reader = queue.content(id).map_err(std::io::Error::other)?;
    let mut content = vec![0; reader.octets() as usize];
    for (i, piece) in content.chunks_mut(1000).enumerate() {
        reader.read_at(i as u64 * 1000, piece)?;
    }
    if content.is_empty() {
        reader.read_at(0, &mut [0])?;
    }
    Ok(content)
}

pub fn contents(queue: &Queue) -> BTreeMap<QueueId, (Arc<Item>, Vec<u8>)> {
    let found = readable(queue);
    assert_eq!(found.len(), queue.len(), "all is sound");
    found
}

/// The messages that can be read now.
pub fn readable(queue: &Queue) -> BTreeMap<QueueId, (Arc<Item>, Vec<u8>)> {
    let read = |id| Some((id, (queue.load(id).ok()?, read(queue, id).ok()?)));
    queue.ids(None, usize::MAX).into_iter().filter_map(read).collect()
}

/// Checks what an open queue holds against what was promised.
pub fn check(queue: &Queue, ledger: &Ledger, case: &str) {
    let found = if ledger.is_forgotten { readable(queue) } else { contents(queue) };
    for (id, (item, content)) in &found {
        let (envelope, submitted) =
            ledger.submitted.get(id).unwrap_or_else(|| panic!("{case}: {id} was never submitted"));
        assert_eq!((&item.envelope, content), (envelope, submitted), "{case}: {id} is altered");
        assert!(
            ledger.is_forgotten || !ledger.gone.contains(id),
            "{case}: {id} came back after its retirement was synced"
        );
        let states = ledger.states.get(id).map_or(&[][..], |states| states);
        let acknowledged = ledger.acknowledged.get(id).copied().unwrap_or(0);
        let fresh = State::fresh(envelope.recipients().len(), NOW, EXPIRES);
        let allowed = states.iter().skip(acknowledged.saturating_sub(1)).chain((acknowledged == 0).then_some(&fresh));
        assert!(allowed.into_iter().any(|state| *state == item.state), "{case}: {id} is in state {:?}", item.state);
    }
    for id in ledger.committed.difference(&ledger.retired) {
        assert!(found.contains_key(id), "{case}: {id} is lost");
    }
}

/// Opens a disk after a crash, checks it, opens it again, and goes on working with it.
pub fn reopen(fs: &Arc<SimFs>, ledger: &Ledger, case: &str) {
    let (queue, _) = open(fs);
    check(&queue, ledger, case);
    let (found, before) = (contents(&queue), fs.trace().len());
    drop(queue);
    let (queue, report) = open(fs);
    assert_eq!(contents(&queue), found, "{case}: opening twice differs from opening once");
    let mends = fs.trace()[before..].iter().any(|op| !matches!(op, Op::Sync(_) | Op::SyncDir(_)));
    assert!(!mends && report.damage.is_empty(), "{case}: the second open still had to mend: {report:?}");
    let mut ledger = ledger.clone();
    // What is away stays away; what came back is to be kept like any other.
    ledger.retired.retain(|id| !found.contains_key(id));
    ledger.gone = ledger.retired.clone();
    let shared = Arc::new(Mutex::new(ledger.clone()));
    let id = accept(&queue, &shared, 200).expect("draft");
    assert!(ledger.committed.iter().all(|used| id > *used), "{case}: {id} was used before");
    let after = self::ledger(&shared).clone();
    assert!(after.committed.contains(&id), "{case}: nothing can be committed");
    drop(queue);
    let fs = Arc::new(fs.crashed(Survives::Nothing, Plan::Well));
    check(&open(&fs).0, &after, case);
}

pub fn ways_to_survive(fs: &SimFs) -> Vec<Survives> {
    let sectors = fs.last_write_sectors();
    let mut ways = vec![Survives::Nothing, Survives::Everything, Survives::Names, Survives::Writes];
    ways.extend((0..sectors).map(Survives::First));
    ways.extend((0..sectors).map(Survives::AllBut));
    // Other subsets at every operation.
    let seed = 1000 * fs.trace().len() as u64;
    ways.extend((seed..seed + 8).map(Survives::Some));
    ways
}
