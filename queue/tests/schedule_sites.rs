//! Destinations whose mail the same hosts take: one window, one rate, one outage, and destinations
//! that move from one site to another.

use std::sync::Arc;

use postroad_queue::schedule::{
    Allowance, Attempt, Finish, Job, Lane, Limits, Load, Next, Rate, Schedule, Selector, WakeReason, Why,
};
use postroad_queue::{QueueId, RetryPolicy, UnixMillis};

const BACKOFF: RetryPolicy = RetryPolicy { first_ms: 1_000, factor: 2.0, max_ms: 60_000, jitter_ratio: 0.0 };

fn at(ms: u64) -> UnixMillis {
    UnixMillis(ms)
}

fn schedule() -> Schedule {
    Schedule::new(Limits { destination_backoff: BACKOFF, ..Limits::default() }, 1)
}

fn admit(schedule: &mut Schedule, n: u64, destination: &str) {
    let (id, destination, due) = (QueueId::from_u64(n), destination.into(), at(0));
    let (lane, sender, load, allowance) = (Lane::Normal, n as u32 % 7, Load::new(1, 2_000), 0);
    schedule.admit(Job { id, destination, due, lane, sender, load, allowance }, at(0));
}

fn start_all(schedule: &mut Schedule, now: u64) -> Vec<Attempt> {
    std::iter::from_fn(|| match schedule.poll(at(now)) {
        Next::Start(attempt) => Some(attempt),
        _ => None,
    })
    .collect()
}

/// Lets each attempt find that its mail goes to `site`; those that find it busy go back into line.
fn resolve(schedule: &mut Schedule, attempts: Vec<Attempt>, site: &str, now: u64) -> Vec<Attempt> {
    let site: Arc<str> = site.into();
    let mut there = Vec::new();
    for mut attempt in attempts {
        if schedule.relocate(&mut attempt, &site, at(now)) {
            assert_eq!((attempt.site(), attempt.learned()), (&site, Some(at(now))));
            there.push(attempt);
        } else {
            schedule.finished(attempt, Finish::Returned, at(now));
        }
    }
    there
}

fn why(schedule: &Schedule, n: u64, now: u64) -> Why {
    schedule.describe(QueueId::from_u64(n), at(now)).remove(0).why
}

#[test]
fn a_thousand_domains_with_the_same_hosts_share_one_window() {
    let mut s = schedule();
    (0..5_000).for_each(|n| admit(&mut s, n, &format!("d{}", n % 1_000)));
    let first = start_all(&mut s, 1);
    assert_eq!(first.len(), 364, "nobody knows yet");
    let mut running = resolve(&mut s, first, "hosts", 1);
    assert_eq!(running.len(), 5, "the first window of one site");
    let (mut done, mut found) = (0, 0);
    while let Some(attempt) = running.pop() {
        s.finished(attempt, Finish::Done, at(2));
        done += 1;
        let more = start_all(&mut s, 2);
        found += more.iter().filter(|attempt| attempt.learned().is_none()).count();
        running.extend(resolve(&mut s, more, "hosts", 2));
        assert!(running.len() <= 20);
    }
    assert_eq!(done, 5_000);
    assert!(found < 1_000, "hardly more than one asks for each domain: {found}");
    assert_eq!(s.totals().sites, 1);
}

#[test]
fn one_probe_opens_a_site_for_all_its_domains() {
    let mut s = schedule();
    (0..1_000).for_each(|n| admit(&mut s, n, &format!("d{}", n % 100)));
    let first = start_all(&mut s, 1);
    let running = resolve(&mut s, first, "hosts", 1);
    let refused = || Finish::DestinationFailed { said: "connection refused".into() };
    running.into_iter().for_each(|attempt| s.finished(attempt, refused(), at(10)));
    assert_eq!(s.poll(at(10)), Next::Wake { at: at(1_010), why: WakeReason::BackoffEnds });
    (0..1_000).for_each(|n| {
        let until = at(1_010);
        assert_eq!(why(&s, n, 20), Why::Closed { until, failures: 1, said: "connection refused".into() });
    });
    let mut probes = start_all(&mut s, 1_010);
    assert_eq!(probes.len(), 1, "one for a hundred domains");
    s.finished(probes.remove(0), Finish::Done, at(1_020));
    let mut running = start_all(&mut s, 1_020);
    let mut done = 1;
    while let Some(attempt) = running.pop() {
        assert_eq!(&**attempt.site(), "hosts");
        s.finished(attempt, Finish::Done, at(1_020));
        done += 1;
        running.extend(start_all(&mut s, 1_020));
    }
    assert_eq!(done, 1_000, "all that waited goes at once");
}

#[test]
fn a_site_that_is_closed_takes_nobody_who_finds_it() {
    let mut s = schedule();
    admit(&mut s, 1, "a");
    let first = start_all(&mut s, 1);
    let running = resolve(&mut s, first, "hosts", 1);
    let dead = Finish::DestinationFailed { said: "no route".into() };
    running.into_iter().for_each(|attempt| s.finished(attempt, dead.clone(), at(1)));
    admit(&mut s, 2, "b");
    let second = start_all(&mut s, 2);
    assert!(resolve(&mut s, second, "hosts", 2).is_empty());
    assert_eq!(why(&s, 2, 2), Why::Closed { until: at(1_001), failures: 1, said: "no route".into() });
    assert_eq!(s.totals().sites, 1);
}

#[test]
fn dns_trouble_of_one_domain_is_its_own() {
    let mut s = schedule();
    ["a", "b"].iter().zip(1..).for_each(|(name, n)| admit(&mut s, n, name));
    let first = start_all(&mut s, 1);
    let running = resolve(&mut s, first, "hosts", 1);
    running.into_iter().for_each(|attempt| s.finished(attempt, Finish::Requeue { due: at(5) }, at(2)));
    for mut attempt in start_all(&mut s, 5) {
        if &**attempt.destination() == "a" {
            assert!(s.relocate(&mut attempt, &"a".into(), at(6)));
            assert_eq!(attempt.learned(), None);
            s.finished(attempt, Finish::DestinationFailed { said: "SERVFAIL".into() }, at(6));
        } else {
            s.finished(attempt, Finish::Requeue { due: at(7) }, at(6));
        }
    }
    assert_eq!(why(&s, 1, 7), Why::Closed { until: at(1_006), failures: 1, said: "SERVFAIL".into() });
    assert_eq!(start_all(&mut s, 7).len(), 1, "the site of the other is open");
}

#[test]
fn a_domain_that_moves_takes_its_line_along_in_order() {
    let mut s = schedule();
    (0..20_000).for_each(|n| admit(&mut s, n, "a"));
    (20_000..20_100).for_each(|n| admit(&mut s, n, "b"));
    let first = start_all(&mut s, 1);
    let mut running = resolve(&mut s, first, "old", 1);
    s.hold(Selector::Destination("b"));
    let of_a = running.iter().position(|attempt| &**attempt.destination() == "a");
    let mut moved = running.remove(of_a.expect("some are"));
    assert!(s.relocate(&mut moved, &"new".into(), at(2)));
    s.finished(moved, Finish::Done, at(2));
    running.into_iter().for_each(|attempt| s.finished(attempt, Finish::Done, at(2)));
    let mut last = [0; 7];
    for _ in 0..4_000 {
        for attempt in start_all(&mut s, 3) {
            assert_eq!((&**attempt.destination(), &**attempt.site()), ("a", "new"));
            let (n, sender) = (attempt.id().to_u64(), attempt.id().to_u64() as usize % 7);
            assert!(n > last[sender], "in the order of each sender");
            last[sender] = n;
            s.finished(attempt, Finish::Done, at(3));
        }
    }
    s.release(Selector::Destination("b"));
    assert!(start_all(&mut s, 4).iter().all(|attempt| &**attempt.site() == "old"));
}

#[test]
fn a_line_that_comes_to_a_busy_site_takes_turns_there() {
    let one = Limits { destination_concurrency_max: 1, ..Limits::default() };
    let mut s = Schedule::new(Limits { destination_backoff: BACKOFF, ..one }, 1);
    let job = |n: u64, destination: &str, sender| {
        let (id, destination, due) = (QueueId::from_u64(n), destination.into(), at(0));
        Job { id, destination, due, lane: Lane::Normal, sender, load: Load::new(1, 2_000), allowance: 0 }
    };
    (0..4_000).for_each(|n| s.admit(job(n, "a", 1), at(0)));
    for _ in 0..2_000 {
        let started = start_all(&mut s, 1);
        let there = resolve(&mut s, started, "hosts", 1);
        there.into_iter().for_each(|attempt| s.finished(attempt, Finish::Done, at(1)));
    }
    (0..500).for_each(|n| s.admit(job(10_000 + n, "b", 2), at(1)));
    let mut of_b = 0;
    for _ in 0..200 {
        let started = start_all(&mut s, 2);
        for attempt in resolve(&mut s, started, "hosts", 2) {
            of_b += usize::from(&**attempt.destination() == "b");
            s.finished(attempt, Finish::Done, at(2));
        }
    }
    assert!((90..=110).contains(&of_b), "{of_b} of 200");
}

#[test]
fn retrying_a_destination_goes_on_in_pieces_and_ends_with_what_was_there() {
    let mut s = schedule();
    let job = |n: u64, due| {
        let (id, destination, due) = (QueueId::from_u64(n), "a".into(), at(due));
        Job { id, destination, due, lane: Lane::Normal, sender: 1, load: Load::new(1, 2_000), allowance: 0 }
    };
    (0..5_000).for_each(|n| s.admit(job(n, 1_000_000 + n), at(0)));
    s.hold(Selector::Id(QueueId::from_u64(7)));
    assert_eq!(s.retry_now(Selector::Destination("a")), 5_000);
    assert!(s.totals().deferred > 3_000, "not all at once");
    (5_000..5_010).for_each(|n| s.admit(job(n, 2_000_000), at(1)));
    let mut done = 0;
    while let Some(attempt) = start_all(&mut s, 2).pop() {
        s.finished(attempt, Finish::Returned, at(2));
        done += 1;
        if s.totals().deferred == 10 {
            break;
        }
        assert!(done < 100);
    }
    assert_eq!(s.totals().deferred, 10, "those that came later wait for their own time");
    assert_eq!(why(&s, 7, 2), Why::Held);
    s.release(Selector::Id(QueueId::from_u64(7)));
    assert_ne!(why(&s, 7, 2), Why::Deferred { due: at(1_000_007) });
}

#[test]
fn a_rate_holds_for_all_domains_of_a_site_to_the_millisecond() {
    let rate = |count| Some(Rate { count, period_ms: 1_000 });
    let slow = Allowance { concurrency_max: 20, messages: rate(4), octets: None, backoff: BACKOFF };
    let limits = Limits { messages: rate(5), allowances: vec![slow], ..Limits::default() };
    let mut s = Schedule::new(limits, 1);
    (0..40).for_each(|n| admit(&mut s, n, ["a", "b"][n as usize % 2]));
    let first = start_all(&mut s, 100_000);
    assert_eq!(first.len(), 2, "one of each, before anybody knows that they are one");
    let running = resolve(&mut s, first, "hosts", 100_000);
    assert_eq!(running.len(), 1);
    running.into_iter().for_each(|attempt| s.finished(attempt, Finish::Done, at(100_000)));
    assert_eq!(s.next_for("hosts", at(100_001)), None, "a kept connection is no way around it");
    assert_eq!(why(&s, 5, 100_001), Why::Rate { at: at(100_190) });
    let mut starts = Vec::new();
    let mut now = 100_001;
    while now < 102_000 {
        match s.poll(at(now)) {
            Next::Start(attempt) => {
                starts.push(now - 100_000);
                s.finished(attempt, Finish::Done, at(now));
            }
            Next::Wake { at, why } => {
                assert_eq!(why, WakeReason::Rate);
                now = at.0;
            }
            Next::Idle => panic!("there is more"),
        }
    }
    assert_eq!(starts, [190, 390, 590, 790, 990, 1_190, 1_390, 1_590, 1_790, 1_990]);
}

#[test]
fn another_rate_holds_at_once() {
    let at_rate = |count, period_ms| Limits { messages: Some(Rate { count, period_ms }), ..Limits::default() };
    let mut s = Schedule::new(at_rate(1, 86_400_000), 1);
    (0..4).for_each(|n| admit(&mut s, n, "a"));
    let first = start_all(&mut s, 1_000);
    assert_eq!(first.len(), 1);
    first.into_iter().for_each(|attempt| s.finished(attempt, Finish::Done, at(1_001)));
    assert_eq!(why(&s, 3, 1_001), Why::Rate { at: at(86_400_990) });
    s.set_limits(at_rate(1, 86_400_000));
    assert_eq!(why(&s, 3, 1_001), Why::Rate { at: at(86_400_990) }, "the same rate goes on");
    s.set_limits(at_rate(10, 1_000));
    assert_eq!(start_all(&mut s, 1_002).len(), 1, "what was sent at the old rate does not count");
    assert_eq!(s.poll(at(1_002)), Next::Wake { at: at(1_092), why: WakeReason::Rate });
}

#[test]
fn a_rate_of_octets_holds_for_what_travels() {
    let octets = Some(Rate { count: 10 * 1_024, period_ms: 1_000 });
    let mut s = Schedule::new(Limits { octets, ..Limits::default() }, 1);
    let job = |n, recipients, octets| {
        let (id, due, load) = (QueueId::from_u64(n), at(0), Load::new(recipients, octets));
        Job { id, destination: "a".into(), due, lane: Lane::Normal, sender: 0, load, allowance: 0 }
    };
    // The second travels twice, to a hundred recipients and to one.
    [job(0, 1, 5_000), job(1, 101, 5_000), job(2, 1, 1)].into_iter().for_each(|job| s.admit(job, at(0)));
    let mut starts = Vec::new();
    let mut now = 1_000;
    while starts.len() < 3 {
        match s.poll(at(now)) {
            Next::Start(attempt) => {
                starts.push((attempt.id().to_u64(), now - 1_000));
                s.finished(attempt, Finish::Done, at(now));
            }
            Next::Wake { at, .. } => now = at.0,
            Next::Idle => panic!("there is more"),
        }
    }
    assert_eq!(starts, [(0, 0), (1, 391), (2, 1_391)]);
}
