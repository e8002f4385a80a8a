//! Everything that a queue does, in six scripts. `crash.rs` lists the steps that they must not cease to
//! reach.

use std::sync::Arc;

use postroad_queue::Queue;

use super::{
    LIST_OCTETS, Ledger, Shared, accept, flush, ledger, options, quarantine, record, retire, retire_beside,
    retire_later, retire_next, submit, tidy,
};
use crate::sim::disk::{phase, while_syncing};
use crate::sim::{Plan, SimFs};

/// Everything a queue does: accepts alone and in batches, inline and in files, empty ones, states,
/// retirement, full segments, compaction, an idle and an empty queue.
fn script(queue: &Queue, shared: &Shared) {
    let first = accept(queue, shared, 600);
    let large = accept(queue, shared, 4000);
    record(queue, shared, first, 1);
    record(queue, shared, first, 2);
    flush(queue, shared);
    let batch: Vec<_> = [0, 900, 2500].into_iter().map(|octets| submit(queue, shared, octets)).collect();
    flush(queue, shared);
    retire(queue, shared, batch[1]);
    record(queue, shared, large, 3);
    flush(queue, shared);
    let kept: Vec<_> = (0..6).map(|n| accept(queue, shared, 900 + n)).collect();
    record(queue, shared, kept[1], 5);
    flush(queue, shared);
    for id in [kept[0], kept[2], kept[3], large] {
        retire(queue, shared, id);
    }
    record(queue, shared, kept[1], 6);
    flush(queue, shared);
    tidy(queue);
    retire(queue, shared, first);
    retire(queue, shared, batch[2]);
    let last = accept(queue, shared, 1400);
    retire(queue, shared, kept[1]);
    tidy(queue);
    for id in [batch[0], kept[4], kept[5], last] {
        retire(queue, shared, id);
    }
    tidy(queue);
    let _ = accept(queue, shared, 100);
    tidy(queue);
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
        retire_later(queue, shared, Some(id));
    }
    flush(queue, shared);
    let last = accept(queue, shared, 20);
    for id in more.into_iter().chain([last]) {
        retire(queue, shared, id);
    }
    tidy(queue);
    let _ = accept(queue, shared, 1300);
}

/// Batches of everything at once, larger than a segment; states and large messages that move when
/// their segment is given back; what is set aside while the queue runs.
fn moving(queue: &Queue, shared: &Shared) {
    let batch: Vec<_> =
        [900, 1800, 1300, 1400, 20, 2000, 1200].into_iter().map(|octets| submit(queue, shared, octets)).collect();
    flush(queue, shared);
    for (n, id) in batch.iter().enumerate() {
        record(queue, shared, *id, n as u64);
    }
    let more = submit(queue, shared, 700);
    retire_later(queue, shared, batch[2]);
    flush(queue, shared);
    // Their messages stay in an old segment while these go into a later one and move from there.
    record(queue, shared, batch[0], 11);
    record(queue, shared, batch[1], 12);
    let fillers: Vec<_> = (0..4).map(|n| submit(queue, shared, 1400 + n)).collect();
    flush(queue, shared);
    for id in fillers {
        retire_later(queue, shared, id);
    }
    quarantine(queue, shared, batch[5]);
    quarantine(queue, shared, batch[4]);
    let _ = accept(queue, shared, 30);
    tidy(queue);
    retire(queue, shared, batch[3]);
    retire(queue, shared, more);
    let _ = accept(queue, shared, 1450);
    tidy(queue);
    record(queue, shared, batch[1], 13);
    retire_later(queue, shared, batch[6]);
    let _ = accept(queue, shared, 1450);
    tidy(queue);
    retire(queue, shared, batch[1]);
    let _ = accept(queue, shared, 1450);
    tidy(queue);
}

/// A segment of which nothing is needed but the newest state of a message, and then not even that.
fn outlived(queue: &Queue, shared: &Shared) {
    let message = accept(queue, shared, 600);
    let stays: Vec<_> = (0..3).map(|n| accept(queue, shared, 800 + n)).collect();
    let fillers: Vec<_> = (0..3).map(|n| accept(queue, shared, 900 + n)).collect();
    record(queue, shared, message, 7);
    flush(queue, shared);
    for id in fillers {
        retire_later(queue, shared, id);
    }
    let _ = accept(queue, shared, 1400);
    retire(queue, shared, message);
    let _ = accept(queue, shared, 100);
    retire(queue, shared, stays[1]);
}

/// Messages with many recipients: states written whole and as changes, in several segments, folded by
/// compaction, recorded again behind it, moved, retired.
fn lists(queue: &Queue, shared: &Shared) {
    let list = accept(queue, shared, LIST_OCTETS);
    for attempt in 1..4 {
        record(queue, shared, list, attempt);
        flush(queue, shared);
    }
    let fillers: Vec<_> = (0..3).map(|_| accept(queue, shared, 1400)).collect();
    record(queue, shared, list, 4);
    flush(queue, shared);
    let other = accept(queue, shared, LIST_OCTETS);
    record(queue, shared, other, 5);
    record(queue, shared, list, 6);
    flush(queue, shared);
    record(queue, shared, other, 7);
    for id in fillers {
        retire(queue, shared, id);
    }
    let last = accept(queue, shared, 1300);
    tidy(queue);
    record(queue, shared, list, 8);
    flush(queue, shared);
    retire(queue, shared, other);
    retire(queue, shared, last);
    let _ = accept(queue, shared, 1400);
    tidy(queue);
    record(queue, shared, list, 9);
    flush(queue, shared);
    retire(queue, shared, list);
    tidy(queue);
}

/// Messages that end while others are synced, before the disk has those and behind that: small ones,
/// large ones whose files wait for the next sync, some when their segment is full or about to go.
fn beside(queue: &Queue, shared: &Shared) {
    let small: Vec<_> = (0..4).map(|n| accept(queue, shared, 100 + n)).collect();
    let large: Vec<_> = (0..3).map(|n| accept(queue, shared, 2000 + n)).collect();
    retire_beside(shared, [small[0], large[0]]);
    let next = accept(queue, shared, 300);
    retire_beside(shared, [None, small[1], large[1], None, small[2], next]);
    let more: Vec<_> = [700, 1200, 900].into_iter().map(|octets| accept(queue, shared, octets)).collect();
    record(queue, shared, small[3], 1);
    retire_beside(shared, [small[3], more[0], more[1], large[2]]);
    flush(queue, shared);
    let last = accept(queue, shared, 1400);
    tidy(queue);
    retire_beside(shared, [more[2], last]);
    let _ = accept(queue, shared, 1300);
    flush(queue, shared);
    tidy(queue);
}

pub type Script = fn(&Queue, &Shared);

pub const SCRIPTS: [Script; 6] = [script, ageing, moving, outlived, lists, beside];

/// Runs a script on an open queue, with what it does while files are synced.
pub fn run(queue: &Queue, shared: &Shared, script: Script) {
    let beside = (queue.clone(), shared.clone());
    while_syncing(Some(Box::new(move || retire_next(&beside.0, &beside.1))));
    script(queue, shared);
    while_syncing(None);
}

pub fn run_script(plan: Plan, script: Script) -> (Arc<SimFs>, Ledger) {
    let (fs, shared) = (Arc::new(SimFs::new(plan)), Shared::default());
    phase("open");
    if let Ok((queue, _)) = Queue::open(fs.clone(), options()) {
        run(&queue, &shared, script);
    }
    let ledger = ledger(&shared).clone();
    (fs, ledger)
}

/// Returns every `step`th of a script's operations; all of them in a long run.
pub fn sample(script: Script, step: usize) -> impl Iterator<Item = usize> {
    let count = run_script(Plan::Well, script).0.trace().len();
    (0..=count).step_by(if is_long() { 1 } else { step })
}

pub fn is_long() -> bool {
    std::env::var("POSTROAD_LONG_TESTS").is_ok_and(|text| text == "1")
}
