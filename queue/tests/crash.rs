//! Pulls the plug at every disk operation, in every way the disk may then look, and opens again.
//!
//! After each crash: everything committed is there, octet for octet, with the state recorded last or
//! one handed in after it; nothing is there that was never submitted; what was retired and synced is
//! gone; opening a second time changes nothing. A new durable step in the queue is found by itself,
//! since every operation is tried.

mod sim;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use postroad_queue::fs::Dir;
use postroad_queue::{Item, Options, Origin, Queue, QueueId, RecipientState, RecoveryReport, State, UnixMillis};
use postroad_smtp::{Envelope, MailParams, Recipient};
use sim::{Op, Plan, SimFs, Survives};

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
const EXPIRES: UnixMillis = UnixMillis(1_900_000_000_000);

fn options() -> Options {
    Options { segment_octets: 4096, inline_octets_max: 1500, reserve_octets: 0, ..Options::default() }
}

fn open(fs: &Arc<SimFs>) -> (Queue, RecoveryReport) {
    Queue::open(fs.clone(), options()).expect("a crash never keeps the queue from opening")
}

/// What the test knows to be promised.
#[derive(Clone, Default)]
struct Ledger {
    submitted: BTreeMap<QueueId, (Envelope, Vec<u8>)>,
    committed: BTreeSet<QueueId>,
    refused: BTreeSet<QueueId>,
    /// States acknowledged, then those handed in behind them.
    states: BTreeMap<QueueId, Vec<State>>,
    acknowledged: BTreeMap<QueueId, usize>,
    retired: BTreeSet<QueueId>,
    /// Retired, and something synced behind it.
    gone: BTreeSet<QueueId>,
}

type Shared = Arc<Mutex<Ledger>>;

fn ledger(shared: &Shared) -> MutexGuard<'_, Ledger> {
    shared.lock().expect("no callback panics")
}

/// Content of so many octets goes to many recipients: their states are recorded as changes.
const LIST_OCTETS: usize = 333;

fn envelope(n: usize, octets: usize) -> Envelope {
    let recipients = if octets == LIST_OCTETS { 9 } else { 1 + n % 3 };
    let path = |i| Recipient::new(format!("r{i}@example.org").parse().expect("path"));
    let from = format!("s{n}@example.net").parse().expect("path");
    Envelope::new(from, MailParams::default(), (0..recipients).map(path).collect()).expect("recipients")
}

fn content(octets: usize, seed: usize) -> Vec<u8> {
    (0..octets).map(|i| (i * 31 + seed * 7 + i / 251 + 1) as u8).collect()
}

/// Hands a message in without writing it.
fn submit(queue: &Queue, shared: &Shared, octets: usize) -> Option<QueueId> {
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
fn synced(ledger: &mut Ledger) {
    ledger.gone = ledger.retired.clone();
}

fn accept(queue: &Queue, shared: &Shared, octets: usize) -> Option<QueueId> {
    let id = submit(queue, shared, octets);
    queue.flush();
    id
}

fn record(queue: &Queue, shared: &Shared, id: Option<QueueId>, attempt: u64) {
    let Some(id) = id.filter(|id| ledger(shared).committed.contains(id)) else { return };
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

fn retire(queue: &Queue, shared: &Shared, id: Option<QueueId>) {
    if let Some(id) = id.filter(|id| ledger(shared).committed.contains(id)) {
        ledger(shared).retired.insert(id);
        queue.retire(id);
        queue.flush();
    }
}

/// Everything a queue does: accepts alone and in batches, inline and in files, empty ones, states,
/// retirement, full segments, compaction, an idle and an empty queue.
fn script(queue: &Queue, shared: &Shared) {
    let first = accept(queue, shared, 600);
    let large = accept(queue, shared, 4000);
    record(queue, shared, first, 1);
    record(queue, shared, first, 2);
    queue.flush();
    let batch: Vec<_> = [0, 900, 2500].into_iter().map(|octets| submit(queue, shared, octets)).collect();
    queue.flush();
    retire(queue, shared, batch[1]);
    record(queue, shared, large, 3);
    queue.flush();
    let kept: Vec<_> = (0..6).map(|n| accept(queue, shared, 900 + n)).collect();
    record(queue, shared, kept[1], 5);
    queue.flush();
    for id in [kept[0], kept[2], kept[3], large] {
        retire(queue, shared, id);
    }
    record(queue, shared, kept[1], 6);
    queue.flush();
    queue.tidy();
    retire(queue, shared, first);
    retire(queue, shared, batch[2]);
    let last = accept(queue, shared, 1400);
    retire(queue, shared, kept[1]);
    queue.tidy();
    for id in [batch[0], kept[4], kept[5], last] {
        retire(queue, shared, id);
    }
    queue.tidy();
    let _ = accept(queue, shared, 100);
    queue.tidy();
}

/// An old segment that stays, because most of it is still needed, while a later one goes that says what
/// of the old one is retired; then both go at once.
fn ageing(queue: &Queue, shared: &Shared) {
    let old: Vec<_> = [1400, 1400, 100].into_iter().map(|octets| accept(queue, shared, octets)).collect();
    let fillers: Vec<_> = (0..3).map(|_| accept(queue, shared, 1200)).collect();
    retire(queue, shared, old[2]);
    let newer = accept(queue, shared, 900);
    for id in fillers {
        retire(queue, shared, id);
    }
    let newest: Vec<_> = (0..3).map(|_| accept(queue, shared, 1100)).collect();
    retire(queue, shared, newer);
    let small = accept(queue, shared, 10);
    let more: Vec<_> = (0..3).map(|_| accept(queue, shared, 1300)).collect();
    for id in old[..2].iter().chain(&newest).chain([&small]).copied().flatten() {
        // All in one batch.
        if ledger(shared).committed.contains(&id) {
            ledger(shared).retired.insert(id);
            queue.retire(id);
        }
    }
    queue.flush();
    let last = accept(queue, shared, 20);
    for id in more.into_iter().chain([last]) {
        retire(queue, shared, id);
    }
    queue.tidy();
    let _ = accept(queue, shared, 1300);
}

/// Messages with many recipients: states written whole and as changes, in several segments, folded by
/// compaction, recorded again behind it, moved, retired.
fn lists(queue: &Queue, shared: &Shared) {
    let list = accept(queue, shared, LIST_OCTETS);
    for attempt in 1..4 {
        record(queue, shared, list, attempt);
        queue.flush();
    }
    let fillers: Vec<_> = (0..3).map(|_| accept(queue, shared, 1400)).collect();
    record(queue, shared, list, 4);
    queue.flush();
    let other = accept(queue, shared, LIST_OCTETS);
    record(queue, shared, other, 5);
    record(queue, shared, list, 6);
    queue.flush();
    record(queue, shared, other, 7);
    for id in fillers {
        retire(queue, shared, id);
    }
    let last = accept(queue, shared, 1300);
    queue.tidy();
    record(queue, shared, list, 8);
    queue.flush();
    retire(queue, shared, other);
    retire(queue, shared, last);
    let _ = accept(queue, shared, 1400);
    queue.tidy();
    record(queue, shared, list, 9);
    queue.flush();
    retire(queue, shared, list);
    queue.tidy();
}

fn run(plan: Plan) -> (Arc<SimFs>, Ledger) {
    run_script(plan, script)
}

fn run_script(plan: Plan, script: fn(&Queue, &Shared)) -> (Arc<SimFs>, Ledger) {
    let (fs, shared) = (Arc::new(SimFs::new(plan)), Shared::default());
    if let Ok((queue, _)) = Queue::open(fs.clone(), options()) {
        script(&queue, &shared);
    }
    let ledger = ledger(&shared).clone();
    (fs, ledger)
}

fn read(queue: &Queue, id: QueueId) -> std::io::Result<Vec<u8>> {
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

fn contents(queue: &Queue) -> BTreeMap<QueueId, (Arc<Item>, Vec<u8>)> {
    let read = |id| (id, (queue.load(id).expect("sound"), read(queue, id).expect("sound")));
    queue.ids(None, usize::MAX).into_iter().map(read).collect()
}

/// Checks what an open queue holds against what was promised.
fn check(queue: &Queue, ledger: &Ledger, case: &str) {
    let found = contents(queue);
    for (id, (item, content)) in &found {
        let (envelope, submitted) =
            ledger.submitted.get(id).unwrap_or_else(|| panic!("{case}: {id} was never submitted"));
        assert_eq!((&item.envelope, content), (envelope, submitted), "{case}: {id} is altered");
        assert!(!ledger.gone.contains(id), "{case}: {id} came back after its retirement was synced");
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
fn reopen(fs: &Arc<SimFs>, ledger: &Ledger, case: &str) {
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

fn ways_to_survive(fs: &SimFs) -> Vec<Survives> {
    let sectors = fs.last_write_sectors();
    let mut ways = vec![Survives::Nothing, Survives::Everything, Survives::Names, Survives::Writes];
    ways.extend((0..sectors).map(Survives::First));
    ways.extend((0..sectors).map(Survives::AllBut));
    // Other subsets at every operation.
    let seed = 1000 * fs.trace().len() as u64;
    ways.extend((seed..seed + 8).map(Survives::Some));
    ways
}

#[test]
fn power_may_fail_at_every_operation() {
    let mut cases = 0;
    for script in [script, ageing, lists] {
        let (fs, ledger) = run_script(Plan::Well, script);
        assert!(ledger.refused.is_empty());
        for k in 0..=fs.trace().len() {
            let (fs, ledger) = run_script(Plan::Stop(k), script);
            for survives in ways_to_survive(&fs) {
                reopen(&Arc::new(fs.crashed(survives, Plan::Well)), &ledger, &format!("stop at {k}, {survives:?}"));
                cases += 1;
            }
        }
    }
    assert!(cases > 1500, "{cases} cases");
}

#[test]
fn power_may_fail_again_while_the_queue_is_opened() {
    let count = run(Plan::Well).0.trace().len();
    let mut cases = 0;
    for k in 0..=count {
        let (fs, ledger) = run(Plan::Stop(k));
        for first in
            [Survives::Everything, Survives::First(1), Survives::AllBut(1), Survives::Some(1), Survives::Some(2)]
        {
            for j in 0.. {
                let again = Arc::new(fs.crashed(first, Plan::Stop(j)));
                let opened = Queue::open(again.clone(), options());
                if again.trace().len() <= j {
                    break;
                }
                drop(opened);
                for then in
                    [Survives::Nothing, Survives::Everything, Survives::Names, Survives::Writes, Survives::Some(3)]
                {
                    let case = format!("stop at {k}, {first:?}, again at {j}, {then:?}");
                    reopen(&Arc::new(again.crashed(then, Plan::Well)), &ledger, &case);
                    cases += 1;
                }
            }
        }
    }
    assert!(cases > 1000, "{cases} cases");
}

#[test]
fn after_an_error_of_the_disk_nothing_is_promised_any_more() {
    let trace = run(Plan::Well).0.trace();
    for (k, op) in trace.iter().enumerate() {
        let (fs, shared) = (Arc::new(SimFs::new(Plan::Broken(k))), Shared::default());
        let Ok((queue, _)) = Queue::open(fs.clone(), options()) else {
            assert!(fs.trace().len() == k + 1, "opening stops at the failure");
            continue;
        };
        script(&queue, &shared);
        let ledger = ledger(&shared).clone();
        // Space that is not given back harms nobody, and a draft's own file is its own affair.
        let harmless = matches!(
            op,
            Op::Remove(_)
                | Op::SetOctets(_)
                | Op::Create(Dir::Content | Dir::Summary)
                | Op::Write(Dir::Content | Dir::Summary)
        );
        assert_eq!(queue.poisoned().is_none(), harmless, "{op:?} at {k} failed");
        if !harmless {
            assert!(queue.draft(NOW).is_err());
            let done = fs.trace().len();
            queue.flush();
            queue.tidy();
            let id = queue.ids(None, 1).first().copied();
            assert!(id.is_none_or(|id| queue.content(id).is_err()), "deliveries stop");
            let writes = fs.trace()[k + 1..].iter().any(|op| matches!(op, Op::Sync(_) | Op::SyncDir(_)));
            assert!(!writes && done == fs.trace().len(), "nothing is synced behind a failure: {:?}", &fs.trace()[k..]);
        }
        drop(queue);
        for survives in [Survives::Nothing, Survives::Everything, Survives::Names, Survives::Writes, Survives::Some(4)]
        {
            reopen(
                &Arc::new(fs.crashed(survives, Plan::Well)),
                &ledger,
                &format!("{op:?} at {k} failed, {survives:?}"),
            );
        }
        reopen(&Arc::new(fs.restarted(Plan::Well)), &ledger, &format!("{op:?} at {k} failed, restarted"));
    }
}

#[test]
fn a_full_disk_refuses_and_harms_nothing() {
    let count = run(Plan::Well).0.trace().len();
    for k in 0..count {
        for length in [1, 2, 5, usize::MAX / 2] {
            refuses_and_harms_nothing(Plan::Full(k, k + length));
        }
    }
}

#[test]
fn a_lack_of_descriptors_refuses_and_harms_nothing() {
    let trace = run(Plan::Well).0.trace();
    for k in (0..trace.len()).filter(|k| matches!(trace[*k], Op::Create(_))) {
        for length in [1, 20, usize::MAX / 2] {
            refuses_and_harms_nothing(Plan::NoDescriptors(k, k + length));
        }
    }
}

fn refuses_and_harms_nothing(plan: Plan) {
    let (fs, shared) = (Arc::new(SimFs::new(plan)), Shared::default());
    let (queue, _) = open(&fs);
    script(&queue, &shared);
    let case = format!("{plan:?}");
    assert_eq!(queue.poisoned(), None, "{case}");
    check(&queue, &ledger(&shared), &case);
    let before = ledger(&shared).clone();
    drop(queue);
    let again = Arc::new(fs.restarted(Plan::Well));
    let (queue, _) = open(&again);
    check(&queue, &before, &case);
    for id in queue.ids(None, usize::MAX) {
        assert!(!before.refused.contains(&id), "{case}: {id} was refused and is there");
    }
    drop(queue);
    for survives in [Survives::Nothing, Survives::Everything, Survives::Some(5)] {
        reopen(&Arc::new(fs.crashed(survives, Plan::Well)), &before, &format!("{case}, {survives:?}"));
    }
}
