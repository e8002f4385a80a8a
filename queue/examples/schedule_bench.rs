//! What the schedule costs a message: processor time of admit, start and finish together, with many
//! or few jobs deferred, destinations and senders, and the longest that one call takes.
//!
//! `cargo run --release -p postroad-queue --example schedule_bench [-- JOBS DESTINATIONS SENDERS]`

#![allow(clippy::print_stdout)]

use std::hint::black_box;
use std::sync::Arc;

use postroad_queue::schedule::{Finish, Job, Lane, Limits, Load, Next, Schedule, Selector};
use postroad_queue::{QueueId, UnixMillis};

const DAY_MS: u64 = 86_400_000;
const MESSAGES: u64 = 200_000;
const BEGIN_MS: u64 = 1_800_000_000_000;

/// Nanoseconds of processor that this thread has used: others on the machine do not count.
fn ran() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    u64::try_from(time.tv_sec * 1_000_000_000 + time.tv_nsec).expect("it only grows")
}

struct Bench {
    schedule: Schedule,
    names: Vec<Arc<str>>,
    senders: u32,
    next: u64,
}

impl Bench {
    fn admit(&mut self, due: u64) {
        let n = self.next;
        self.next += 1;
        let id = QueueId::from_u64((BEGIN_MS + n) << 20);
        let destination = self.names[n as usize % self.names.len()].clone();
        let sender = (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32 % self.senders;
        let (lane, load, due) = (Lane::Normal, Load::new(1, 10_000), UnixMillis(due));
        let job = Job { id, destination, due, lane, sender, load, allowance: 0 };
        self.schedule.admit(job, UnixMillis(BEGIN_MS));
    }

    /// One message arrives, starts and ends, `MESSAGES` times.
    fn flow(&mut self) -> u64 {
        let begun = ran();
        for _ in 0..MESSAGES {
            self.admit(BEGIN_MS);
            let Next::Start(attempt) = self.schedule.poll(UnixMillis(BEGIN_MS)) else { panic!("it is due") };
            self.schedule.finished(black_box(attempt), Finish::Done, UnixMillis(BEGIN_MS));
        }
        (ran() - begun) / MESSAGES
    }

    /// All that is deferred starts and ends. Returns the time for each and that of the longest call.
    fn flood(&mut self) -> (u64, u64) {
        let (begun, mut longest, mut done) = (ran(), 0, 0u64);
        self.schedule.retry_now(Selector::All);
        while self.schedule.totals().jobs > 0 {
            let before = ran();
            if let Next::Start(attempt) = self.schedule.poll(UnixMillis(BEGIN_MS)) {
                self.schedule.finished(attempt, Finish::Done, UnixMillis(BEGIN_MS));
                done += 1;
            }
            longest = longest.max((ran() - before) / 1_000);
        }
        ((ran() - begun) / done.max(1), longest)
    }
}

fn measure(jobs: u64, destinations: u64, senders: u32) {
    let names = (0..destinations).map(|d| format!("mx:host{d}.example.org").into()).collect();
    let schedule = Schedule::new(Limits::default(), 1);
    let mut bench = Bench { schedule, names, senders, next: 0 };
    let begun = ran();
    for n in 0..jobs {
        bench.admit(BEGIN_MS + 1_000 + n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % DAY_MS);
    }
    let admit = (ran() - begun) / jobs.max(1);
    let flow = bench.flow();
    let (flood, longest) = bench.flood();
    println!("{jobs:>9} {destinations:>7} {senders:>7} {admit:>8} {flow:>8} {flood:>8} {longest:>10}");
}

fn main() {
    let given: Vec<u64> = std::env::args().skip(1).filter_map(|number| number.parse().ok()).collect();
    println!("     jobs   sites senders admit ns  flow ns flood ns longest us");
    if let [jobs, destinations, senders] = given[..] {
        return measure(jobs, destinations, senders as u32);
    }
    for (jobs, destinations, senders) in [
        (1, 1, 1),
        (1_000, 1, 1),
        (1_000, 1_000, 1_000),
        (100_000, 1, 1_000),
        (100_000, 1_000, 1_000),
        (1_000_000, 1, 1),
        (1_000_000, 1, 1_000),
        (1_000_000, 1_000, 1_000),
        (1_000_000, 100_000, 100_000),
    ] {
        measure(jobs, destinations, senders);
    }
}
