//! Lets the disk fail instead of the power: an error, no room, no descriptors, nothing readable, at every
//! operation of a working queue and of one that is being opened.
//!
//! Nothing is promised behind a failure, nothing promised before it is lost, and what only could not
//! be read is there when it can. `POSTROAD_LONG_TESTS=1` tries every combination where an ordinary run
//! takes a sample.

mod sim;
mod work;

use std::sync::Arc;

use postroad_queue::Queue;
use postroad_queue::fs::Dir;
use sim::disk::phase;
use sim::{Op, Plan, SimFs, Survives};
use work::scripts::{SCRIPTS, Script, is_long, run, run_script, sample};
use work::{Ledger, NOW, Shared, check, ledger, open, options, readable, reopen};

/// Opens a queue that a crash left, on a disk that then fails as `plan` says at each operation in turn;
/// what was committed is there once the disk is well.
fn fail_while_opening(plan: fn(usize) -> Plan, count: fn(&SimFs) -> usize) -> usize {
    let mut cases = 0;
    for (script, step) in SCRIPTS.into_iter().zip([31, 47, 37, 17, 37, 31]) {
        for k in sample(script, step) {
            let (fs, ledger) = run_script(Plan::Stop(k), script);
            for first in [Survives::Everything, Survives::First(1), Survives::Some(1)] {
                for j in 0.. {
                    let again = Arc::new(fs.crashed(first, plan(j)));
                    let case = format!("stop at {k}, {first:?}, then {:?}", plan(j));
                    if let Ok((queue, _)) = Queue::open(again.clone(), options()) {
                        let found = readable(&queue);
                        assert!(found.iter().all(|(id, (_, found))| ledger.submitted[id].1 == *found), "{case}");
                    } else {
                        assert!(!matches!(plan(j), Plan::Full(..)), "{case}: a full disk keeps nothing from opening");
                    }
                    if count(&again) <= j {
                        break;
                    }
                    restart(&again, ledger.clone(), &format!("{case}, restarted"));
                    for then in [Survives::Nothing, Survives::Everything] {
                        reopen(&Arc::new(again.crashed(then, Plan::Well)), &ledger, &format!("{case}, {then:?}"));
                    }
                    cases += 1;
                }
            }
        }
    }
    cases
}

#[test]
fn the_disk_may_fail_while_the_queue_is_opened() {
    let cases = fail_while_opening(Plan::Broken, |fs| fs.trace().len());
    assert!(cases > 100, "{cases} cases");
}

#[test]
fn the_disk_may_be_full_while_the_queue_is_opened() {
    let cases = fail_while_opening(|j| Plan::Full(j, usize::MAX), |fs| fs.trace().len());
    assert!(cases > 100, "{cases} cases");
}

#[test]
fn what_cannot_be_read_while_the_queue_is_opened_is_there_when_it_can() {
    let mut cases = fail_while_opening(|j| Plan::Unreadable(j, j + 1), |fs| fs.looks().len());
    cases += fail_while_opening(|j| Plan::Unreadable(j, usize::MAX), |fs| fs.looks().len());
    assert!(cases > 300, "{cases} cases");
}

#[test]
fn what_cannot_be_read_while_the_queue_works_harms_nothing() {
    for (script, step) in SCRIPTS.into_iter().zip([2, 5, 3, 3, 3, 3]) {
        let count = run_script(Plan::Well, script).0.looks().len();
        for j in (0..count).step_by(if is_long() { 1 } else { step }) {
            for length in [1, 2, usize::MAX / 2] {
                let (fs, ledger) = run_script(Plan::Unreadable(j, j + length), script);
                let case = format!("unreadable from {j}, {length} times");
                reopen(&Arc::new(fs.restarted(Plan::Well)), &ledger, &format!("{case}, restarted"));
                for survives in [Survives::Nothing, Survives::Everything, Survives::Some(6)] {
                    reopen(&Arc::new(fs.crashed(survives, Plan::Well)), &ledger, &format!("{case}, {survives:?}"));
                }
            }
        }
    }
}

#[test]
fn after_an_error_of_the_disk_nothing_is_promised_any_more() {
    for script in SCRIPTS {
        for k in 0..run_script(Plan::Well, script).0.trace().len() {
            fail_once(script, k);
        }
    }
}

fn fail_once(script: Script, k: usize) {
    let (fs, shared) = (Arc::new(SimFs::new(Plan::Broken(k))), Shared::default());
    phase("open");
    let Ok((queue, _)) = Queue::open(fs.clone(), options()) else {
        assert!(fs.trace().len() == k + 1, "opening stops at the failure");
        return;
    };
    run(&queue, &shared, script);
    let ledger = ledger(&shared).clone();
    let Some(op) = fs.trace().get(k).copied() else { return };
    // Space that is not given back harms nobody, a draft's own file is its own affair, and what cannot
    // be set aside stays where it is.
    let harmless = matches!(
        op,
        Op::Remove(_)
            | Op::SetOctets(_)
            | Op::Create(Dir::Content | Dir::Quarantine | Dir::Summary)
            | Op::Write(Dir::Content | Dir::Quarantine | Dir::Summary)
            | Op::Sync(Dir::Quarantine)
            | Op::SyncDir(Dir::Quarantine)
    );
    assert_eq!(queue.poisoned().is_none(), harmless, "{op:?} at {k} failed");
    if !harmless {
        assert!(queue.draft(NOW).is_err());
        let done = fs.trace().len();
        queue.flush();
        queue.tidy();
        let id = queue.ids(None, 1).first().copied();
        assert!(id.is_none_or(|id| queue.content(id).is_err()), "deliveries stop");
        let syncs = fs.trace()[k + 1..].iter().any(|op| matches!(op, Op::Sync(_) | Op::SyncDir(_)));
        assert!(!syncs && done == fs.trace().len(), "nothing is synced behind a failure: {:?}", &fs.trace()[k..]);
    }
    drop(queue);
    for survives in [Survives::Nothing, Survives::Everything, Survives::Names, Survives::Writes, Survives::Some(4)] {
        let case = format!("{op:?} at {k} failed, {survives:?}");
        reopen(&Arc::new(fs.crashed(survives, Plan::Well)), &ledger, &case);
    }
    restart(&fs, ledger, &format!("{op:?} at {k} failed, restarted"));
}

#[test]
fn a_disk_that_is_full_at_one_step_even_a_sync_loses_nothing() {
    for script in SCRIPTS {
        for k in 0..run_script(Plan::Well, script).0.trace().len() {
            be_short_once(script, k);
        }
    }
}

fn be_short_once(script: Script, k: usize) {
    let (fs, shared) = (Arc::new(SimFs::new(Plan::Short(k))), Shared::default());
    phase("open");
    let Ok((queue, _)) = Queue::open(fs.clone(), options()) else { return };
    run(&queue, &shared, script);
    let ledger = ledger(&shared).clone();
    let Some(op) = fs.trace().get(k).copied() else { return };
    if queue.poisoned().is_some() {
        assert!(matches!(op, Op::Sync(_) | Op::SyncDir(_)), "{op:?} at {k}: what found no room is tried again later");
        let syncs = fs.trace()[k + 1..].iter().any(|op| matches!(op, Op::Sync(_) | Op::SyncDir(_)));
        assert!(!syncs, "nothing is synced behind a failure: {:?}", &fs.trace()[k..]);
    } else {
        assert!(!matches!(op, Op::SyncDir(Dir::Log | Dir::Content)), "{op:?} at {k} was a promise");
    }
    drop(queue);
    for survives in [Survives::Nothing, Survives::Everything, Survives::Names, Survives::Writes, Survives::Some(4)] {
        let case = format!("no room for {op:?} at {k}, {survives:?}");
        reopen(&Arc::new(fs.crashed(survives, Plan::Well)), &ledger, &case);
    }
    restart(&fs, ledger, &format!("no room for {op:?} at {k}, restarted"));
}

/// Another process takes over: it sees what the system still has in memory, although a failed sync may
/// mean that it never reaches the disk. Nobody was promised that.
fn restart(fs: &SimFs, mut ledger: Ledger, case: &str) {
    ledger.is_forgotten = true;
    reopen(&Arc::new(fs.restarted(Plan::Well)), &ledger, case);
}

#[test]
fn a_full_disk_refuses_and_harms_nothing() {
    for (n, step) in [1, 3, 3, 2, 3, 2].into_iter().enumerate() {
        for k in sample(SCRIPTS[n], step) {
            for length in [1, 2, 5, usize::MAX / 2] {
                refuses_and_harms_nothing(n, Plan::Full(k, k + length));
            }
        }
    }
}

#[test]
fn a_lack_of_descriptors_refuses_and_harms_nothing() {
    for (n, script) in SCRIPTS.into_iter().enumerate() {
        let trace = run_script(Plan::Well, script).0.trace();
        for k in (0..trace.len()).filter(|k| matches!(trace[*k], Op::Create(_))) {
            for length in [1, 20, usize::MAX / 2] {
                refuses_and_harms_nothing(n, Plan::NoDescriptors(k, k + length));
            }
        }
    }
}

fn refuses_and_harms_nothing(n: usize, plan: Plan) {
    let (fs, shared) = (Arc::new(SimFs::new(plan)), Shared::default());
    let (queue, _) = open(&fs);
    run(&queue, &shared, SCRIPTS[n]);
    let case = format!("script {n}, {plan:?}");
    assert_eq!(queue.poisoned(), None, "{case}");
    if n > 0 {
        // A retirement that found no room may be written later than what found some.
        ledger(&shared).gone.clear();
    }
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
