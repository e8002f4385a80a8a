//! Pulls the plug at every disk operation, in every way the disk may then look, and opens again.
//!
//! After each crash: everything committed is there, octet for octet, with the state recorded last or
//! one handed in after it; nothing is there that was never submitted; what was retired and synced is
//! gone; opening a second time changes nothing. A new durable step in the queue is found by itself,
//! since every operation is tried; `STEPS` lists those that the scripts must not cease to reach.
//! `POSTROAD_LONG_TESTS=1` tries every combination where an ordinary run takes a sample.

mod sim;
mod work;

use std::sync::Arc;

use postroad_queue::Queue;
use sim::{Plan, SimFs, Survives};
use work::scripts::{SCRIPTS, run_script, sample};
use work::{Ledger, open, options, reopen, ways_to_survive};

/// Steps that the scripts reach, and how often at least: when the queue was about it, the operation, and
/// records among those written.
const STEPS: [(&str, &str, &str, usize); 33] = [
    ("accept", "Create(Log)", "", 10),
    ("accept", "Allocate(Log)", "", 10),
    // A segment that is not needed is kept, and written over.
    ("retire", "Rename", "", 1),
    ("tidy", "Rename", "", 2),
    ("accept", "Write(Content)", "", 4),
    ("accept", "Sync(Content)", "", 4),
    ("accept", "SyncDir(Content)", "", 3),
    ("accept", "Remove(Content)", "", 2),
    ("accept", "SyncDir(Log)", "", 10),
    ("accept", "Write(Log)", "M", 30),
    // Small and large messages in one batch.
    ("accept", "Write(Log)", "ML", 2),
    // States, messages and retirements in one batch.
    ("accept", "Write(Log)", "SMR", 2),
    ("record", "Write(Log)", "S", 4),
    ("record", "Sync(Log)", "", 4),
    ("retire", "Write(Log)", "R", 20),
    ("retire", "Create(Log)", "", 1),
    ("retire", "Remove(Log)", "", 1),
    ("retire", "SyncDir(Log)", "", 2),
    // While another batch is synced.
    ("beside", "Write(Log)", "R", 4),
    // Compaction: messages, large ones, states whose message lies elsewhere.
    ("tidy", "Write(Log)", "M", 5),
    ("tidy", "Write(Log)", "L", 2),
    ("tidy", "Write(Log)", "SM", 2),
    // Retirements carried over from a segment that goes.
    ("tidy", "Write(Log)", "R", 2),
    ("tidy", "Create(Log)", "", 1),
    ("tidy", "Remove(Log)", "", 4),
    ("tidy", "SyncDir(Log)", "", 5),
    ("quarantine", "Sync(Quarantine)", "", 3),
    ("quarantine", "SyncDir(Quarantine)", "", 2),
    // Recovery behind crashes.
    ("open", "Write(Log)", "V", 50),
    ("open", "SetOctets(Log)", "", 300),
    ("open", "Rename", "", 10),
    ("open", "Remove(Log)", "", 50),
    ("open", "Remove(Content)", "", 50),
];

#[test]
fn the_scripts_reach_every_step_of_the_queue() {
    let mut steps = Vec::new();
    for script in SCRIPTS {
        let well = run_script(Plan::Well, script).0;
        for k in 0..well.trace().len() {
            let (fs, _) = run_script(Plan::Stop(k), script);
            for survives in [Survives::Everything, Survives::First(1), Survives::Some(1)] {
                let fs = Arc::new(fs.crashed(survives, Plan::Well));
                drop(open(&fs));
                steps.extend(fs.steps());
            }
        }
        steps.extend(well.steps());
    }
    let reached = |(phase, op, records, _): &(&str, &str, &str, usize)| {
        let begin = format!("{phase}: {op}");
        let written = steps.iter().filter_map(|step| step.strip_prefix(&begin));
        written.filter(|written| records.chars().all(|record| written.contains(record))).count()
    };
    let counts = STEPS.map(|step| (step, reached(&step)));
    let missed: Vec<_> = counts.iter().filter(|((.., least), count)| count < least).collect();
    assert!(missed.is_empty(), "the scripts reach too little: {missed:#?}");
}

#[test]
fn power_may_fail_at_every_operation() {
    let mut cases = 0;
    for script in SCRIPTS {
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
    assert!(cases > 4500, "{cases} cases");
}

#[test]
fn power_may_fail_again_while_the_queue_is_opened() {
    let mut cases = 0;
    for (script, step) in SCRIPTS.into_iter().zip([2, 19, 11, 7, 11, 7]) {
        for k in sample(script, step) {
            let (fs, ledger) = run_script(Plan::Stop(k), script);
            for first in
                [Survives::Everything, Survives::First(1), Survives::AllBut(1), Survives::Some(1), Survives::Some(2)]
            {
                cases += stop_while_opening(&fs, first, &ledger, k);
            }
        }
    }
    assert!(cases > 1000, "{cases} cases");
}

fn stop_while_opening(fs: &SimFs, first: Survives, ledger: &Ledger, k: usize) -> usize {
    let mut cases = 0;
    for j in 0.. {
        let again = Arc::new(fs.crashed(first, Plan::Stop(j)));
        let opened = Queue::open(again.clone(), options());
        if again.trace().len() <= j {
            break;
        }
        drop(opened);
        for then in [Survives::Nothing, Survives::Everything, Survives::Names, Survives::Writes, Survives::Some(3)] {
            let case = format!("stop at {k}, {first:?}, again at {j}, {then:?}");
            reopen(&Arc::new(again.crashed(then, Plan::Well)), ledger, &case);
            cases += 1;
        }
    }
    cases
}
