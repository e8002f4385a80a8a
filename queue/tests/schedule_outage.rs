//! How soon mail goes when a destination is back, by simulation: one attempt at a time probes it, the
//! sooner the more waits, and what it costs while nobody answers stays within bounds.

use postroad_queue::schedule::{Finish, Job, Lane, Limits, Load, Next, Schedule, Why};
use postroad_queue::{QueueId, UnixMillis};

const SECOND: u64 = 1_000;
const HOUR: u64 = 3_600 * SECOND;

/// What the attempts of an outage come to.
#[derive(Clone, Copy, PartialEq)]
enum Dead {
    /// Nobody answers, and that takes so many milliseconds.
    Silent(u64),
    /// A host says that it is busy.
    Busy,
}

/// What came of an outage.
struct Outcome {
    probes: usize,
    /// From the destination's return until the first message was delivered, and until half of them were.
    first_ms: u64,
    half_ms: u64,
}

/// Lets a destination with `jobs` waiting be dead for so long and then take each message in 10 ms.
fn outage(jobs: u64, lasts: u64, dead: Dead, seed: u64) -> Outcome {
    let mut s = Schedule::new(Limits::default(), seed);
    for n in 0..jobs {
        let (id, due, load) = (QueueId::from_u64(n), UnixMillis(0), Load::new(1, 1_000));
        let job = Job { id, destination: "d".into(), due, lane: Lane::Normal, sender: 1, load, allowance: 0 };
        s.admit(job, UnixMillis(0));
    }
    let (mut now, mut running, mut done) = (0, Vec::new(), 0);
    let mut outcome = Outcome { probes: 0, first_ms: 0, half_ms: 0 };
    while outcome.half_ms == 0 {
        let wake = loop {
            match s.poll(UnixMillis(now)) {
                Next::Start(attempt) => {
                    let is_back = now >= lasts;
                    let takes = if let (Dead::Silent(takes), false) = (dead, is_back) { takes } else { 10 };
                    outcome.probes += usize::from(!is_back);
                    running.push((now + takes, is_back, attempt));
                }
                Next::Wake { at, .. } => break Some(at.0),
                Next::Idle => break None,
            }
        };
        let end = running.iter().map(|(end, ..)| *end).min();
        now = [wake, end].into_iter().flatten().min().expect("something happens until all is delivered");
        let (ended, rest): (Vec<_>, Vec<_>) = running.into_iter().partition(|(end, ..)| *end <= now);
        running = rest;
        for (_, is_back, attempt) in ended {
            let finish = match dead {
                _ if is_back => Finish::Done,
                Dead::Silent(_) => Finish::Silent { said: "connection refused".into() },
                Dead::Busy => Finish::DestinationFailed { said: "421 busy".into() },
            };
            done += u64::from(is_back);
            s.finished(attempt, finish, UnixMillis(now));
        }
        if done > 0 && outcome.first_ms == 0 {
            outcome.first_ms = now - lasts;
        }
        if 2 * done >= jobs {
            outcome.half_ms = now - lasts;
        }
    }
    outcome
}

#[test]
fn a_large_drain_starts_within_seconds_of_the_destinations_return() {
    for seed in 0..20 {
        let lasts = HOUR + seed * 777;
        let Outcome { probes, first_ms, half_ms } = outage(20_000, lasts, Dead::Silent(1), seed);
        assert!(first_ms <= 2_500, "seed {seed}: begun after {first_ms} ms");
        // At the adaptive rate: twenty sessions of ten milliseconds after a few rounds.
        assert!(half_ms - first_ms <= 6 * SECOND, "seed {seed}: half of it after {half_ms} ms");
        assert!((1_400..=2_300).contains(&probes), "seed {seed}: {probes} probes in an hour");
    }
}

#[test]
fn a_small_queue_is_worth_fewer_probes() {
    for (jobs, most_ms) in [(2, 720 * SECOND), (60, 75 * SECOND), (600, 8 * SECOND)] {
        for seed in 0..20 {
            let Outcome { probes, first_ms, .. } = outage(jobs, 6 * HOUR + seed * 777, Dead::Silent(1), seed);
            assert!(first_ms <= most_ms, "{jobs} jobs, seed {seed}: begun after {first_ms} ms");
            // Each message for itself would be tried more than once an hour in the first hours.
            let most = 6 * (usize::try_from(jobs).expect("few") * 5 / 4).max(8) + 10;
            assert!(probes <= most, "{jobs} jobs, seed {seed}: {probes} probes in six hours");
        }
    }
}

#[test]
fn who_answers_that_it_is_busy_is_left_in_peace() {
    for seed in 0..20 {
        let Outcome { probes, .. } = outage(20_000, 6 * HOUR, Dead::Busy, seed);
        assert!(probes <= 5 + 6 + 6 * 8, "seed {seed}: {probes} probes");
    }
}

#[test]
fn a_probe_that_hangs_has_a_session_half_of_the_time_at_most() {
    for seed in 0..20 {
        let Outcome { probes, .. } = outage(20_000, HOUR, Dead::Silent(30 * SECOND), seed);
        assert!(probes <= 5 + 65, "seed {seed}: {probes} probes of 30 s in an hour");
    }
}

#[test]
fn what_is_said_of_a_silent_destination_names_the_next_probe() {
    let mut s = Schedule::new(Limits::default(), 1);
    let (id, due, load) = (QueueId::from_u64(1), UnixMillis(0), Load::new(1, 1_000));
    s.admit(Job { id, destination: "d".into(), due, lane: Lane::Normal, sender: 1, load, allowance: 0 }, due);
    let Next::Start(attempt) = s.poll(UnixMillis(5)) else { panic!("it is due") };
    s.finished(attempt, Finish::Silent { said: "no route to host".into() }, UnixMillis(9));
    let Next::Wake { at: until, .. } = s.poll(UnixMillis(9)) else { panic!("it is probed some time") };
    let why = s.describe(id, UnixMillis(9)).remove(0).why;
    assert_eq!(why, Why::Closed { until, failures: 1, said: "no route to host".into() });
}
