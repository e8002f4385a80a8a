//! What a million deferred jobs cost: memory per job, and time per operation.
//!
//! Alone in this process, because the memory is read off the process itself.

use std::sync::Arc;
use std::time::Instant;

use postroad_queue::schedule::{Finish, Job, Lane, Limits, Load, Next, Schedule, Selector};
use postroad_queue::{QueueId, UnixMillis};

/// The most a deferred job may cost, in octets of resident memory.
const JOB_OCTETS_MAX: usize = 125;
const DAY_MS: u64 = 86_400_000;

fn resident_octets() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux tells a process its memory");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS is always there");
    let kib = line.split_whitespace().nth(1).and_then(|kib| kib.parse::<usize>().ok());
    1024 * kib.expect("VmRSS is a number of KiB")
}

fn deferred(jobs: u64, destinations: u64) -> Schedule {
    let names: Vec<Arc<str>> = (0..destinations).map(|d| format!("mx:host{d}.example.org").into()).collect();
    let mut schedule = Schedule::new(Limits::default(), 1);
    for n in 0..jobs {
        // Ids rise as messages arrive; due times are spread by the jitter.
        let id = QueueId::from_u64((1_800_000_000_000 + n) << 20);
        let due = UnixMillis(DAY_MS + n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % DAY_MS);
        let destination = names[(n % destinations) as usize].clone();
        let (lane, sender, load) = (Lane::Normal, n as u32 % 1_000, Load::new(1, 10_000));
        schedule.admit(Job { id, destination, due, lane, sender, load, allowance: 0 }, UnixMillis(0));
    }
    schedule
}

#[test]
fn a_deferred_job_costs_little_memory() {
    let jobs = 200_000;
    let before = resident_octets();
    let schedule = deferred(jobs, 1_000);
    let each = (resident_octets() - before) / jobs as usize;
    assert_eq!(schedule.totals().jobs, jobs as usize);
    assert!(each <= JOB_OCTETS_MAX, "{each} octets a job");
}

/// `cargo test --release -p postroad-queue --test schedule_scale -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
#[allow(clippy::print_stdout)]
fn a_million_jobs() {
    let jobs = 1_000_000;
    // All are built before one is drained: memory that was given back would be counted as free.
    let built = [1, 1_000, 100_000].map(|destinations| {
        let (before, begun) = (resident_octets(), Instant::now());
        let schedule = deferred(jobs, destinations);
        let admit = begun.elapsed() / jobs as u32;
        let octets = (resident_octets() - before) / jobs as usize;
        println!("{jobs} jobs to {destinations}: {octets} octets a job, admit {admit:?}");
        (destinations, schedule)
    });
    for (destinations, mut schedule) in built {
        let begun = Instant::now();
        assert_eq!(schedule.stats(UnixMillis(0)).len() as u64, destinations);
        let stats = begun.elapsed();
        let begun = Instant::now();
        schedule.retry_now(Selector::All);
        let retry = begun.elapsed();
        let begun = Instant::now();
        let mut done = 0;
        while schedule.totals().jobs > 0 {
            if let Next::Start(attempt) = schedule.poll(UnixMillis(1)) {
                schedule.finished(attempt, Finish::Done, UnixMillis(1));
                done += 1;
            }
        }
        assert_eq!(u64::from(done), jobs);
        let poll = begun.elapsed() / done;
        println!("{jobs} jobs to {destinations}: poll and finish {poll:?}, stats {stats:?}, retry all {retry:?}");
    }
}
