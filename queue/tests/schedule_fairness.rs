//! Nobody delays anybody: senders, large messages, destinations that are dead or flooded, and
//! urgent mail behind bulk. Each test counts starts, from seeds where order could depend on luck.

use std::sync::Arc;

use postroad_queue::schedule::{Ahead, Attempt, Finish, Job, Lane, Limits, Load, Next, Schedule, Selector, Why};
use postroad_queue::{QueueId, UnixMillis};

const BULK: u32 = 1;

fn at(ms: u64) -> UnixMillis {
    UnixMillis(ms)
}

/// A schedule that one session at a time leaves, so that the order of starts shows.
fn narrow() -> Schedule {
    let one = Limits { destination_concurrency_max: 1, total_concurrency_max: 1, ..Limits::default() };
    Schedule::new(one, 1)
}

fn job(n: u64, destination: &str, sender: u32) -> Job {
    Job {
        id: QueueId::from_u64(n),
        destination: destination.into(),
        due: at(0),
        lane: Lane::Normal,
        sender,
        load: Load::new(1, 2_000),
        allowance: 0,
    }
}

fn start(schedule: &mut Schedule, now: u64) -> Option<Attempt> {
    match schedule.poll(at(now)) {
        Next::Start(attempt) => Some(attempt),
        _ => None,
    }
}

/// Starts and ends one after the other until message `n` starts; returns how many went before.
fn starts_before(schedule: &mut Schedule, n: u64) -> usize {
    for before in 0..1_000_000 {
        let attempt = start(schedule, 1).expect("something is ready until it has started");
        let is_it = attempt.id() == QueueId::from_u64(n);
        schedule.finished(attempt, Finish::Done, at(1));
        if is_it {
            return before;
        }
    }
    panic!("message {n} never starts");
}

#[test]
fn one_message_passes_a_hundred_thousand_of_a_bulk_sender() {
    let mut s = narrow();
    (0..100_000).for_each(|n| s.admit(job(n, "a", BULK), at(0)));
    for sender in 2..20 {
        let n = 100_000 + u64::from(sender);
        s.admit(job(n, "a", sender), at(0));
        assert!(starts_before(&mut s, n) <= 2);
    }
}

#[test]
fn a_hundred_thousand_that_become_due_together_let_one_pass() {
    let mut s = narrow();
    (0..100_000).for_each(|n| s.admit(Job { due: at(500 + n % 100), ..job(n, "a", BULK) }, at(0)));
    s.admit(Job { due: at(600), ..job(200_000, "a", 2) }, at(0));
    let mut before = 0;
    while let Some(attempt) = start(&mut s, 600) {
        let is_it = attempt.id() == QueueId::from_u64(200_000);
        s.finished(attempt, Finish::Done, at(600));
        if is_it {
            break;
        }
        before += 1;
    }
    // They are put in line a thousand with each call.
    assert!(before <= 150, "{before}");
}

#[test]
fn a_bulk_sender_with_ten_thousand_destinations_does_not_delay_another() {
    let mut s = narrow();
    (0..10_000).for_each(|n| s.admit(job(n, &format!("d{n}"), BULK), at(0)));
    for sender in 2..20 {
        let n = 100_000 + u64::from(sender);
        s.admit(job(n, &format!("d{}", 5_000 + sender), sender), at(0));
        let before = starts_before(&mut s, n);
        // What goes before it at its destination, and a turn or two of either class of sites.
        assert!(before <= 5, "{before} for {sender}");
    }
}

#[test]
fn a_message_with_ten_thousand_recipients_costs_its_own_sender() {
    let mut s = narrow();
    s.admit(Job { load: Load::new(10_000, 2_000), ..job(1, "a", BULK) }, at(0));
    s.admit(job(2, "a", BULK), at(0));
    s.admit(Job { load: Load::new(1, 2_000_000_000), ..job(3, "a", 2) }, at(0));
    s.admit(job(4, "a", 2), at(0));
    (100..200).for_each(|n| s.admit(job(n, "a", 3), at(0)));
    assert!(starts_before(&mut s, 3) <= 2, "what is large goes in its turn");
    assert!(starts_before(&mut s, 199) <= 99, "whoever sends small messages need not wait for it");
    assert_eq!(starts_before(&mut s, 4), 0);
    assert_eq!(starts_before(&mut s, 2), 0);
}

#[test]
fn senders_with_as_much_to_send_get_as_much() {
    for seed in 0..20u64 {
        let mut s = narrow();
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        for n in 0..3_000 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            // However they come in, each sender has a thousand waiting.
            let sender = if n < 1_500 { n % 3 } else { (random + n) % 3 };
            s.admit(job(n, "a", 10 + sender as u32), at(0));
        }
        let mut counts = [0usize; 3];
        for _ in 0..900 {
            let attempt = start(&mut s, 1).expect("ready");
            counts[sender_of(seed, attempt.id().to_u64())] += 1;
            s.finished(attempt, Finish::Done, at(1));
        }
        assert!(counts.iter().all(|count| (295..=305).contains(count)), "seed {seed}: {counts:?}");
    }
}

/// Returns the sender that message `n` had in [`senders_with_as_much_to_send_get_as_much`].
fn sender_of(seed: u64, n: u64) -> usize {
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for _ in 0..=n {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
    }
    (if n < 1_500 { n % 3 } else { (random + n) % 3 }) as usize
}

/// Returns when each message for "alive" started, with or without a second destination.
fn starts_of_the_living(other: Option<Finish>) -> Vec<(u64, u64)> {
    let mut s = Schedule::new(Limits { total_concurrency_max: 40, ..Limits::default() }, 1);
    let mut running: Vec<(u64, Attempt)> = Vec::new();
    let mut started = Vec::new();
    let mut n = 0;
    for now in 0..2_000u64 {
        if now % 2 == 0 && now < 1_000 {
            s.admit(Job { due: at(now), ..job(n, "alive", 1) }, at(now));
            if other.is_some() {
                s.admit(Job { due: at(now), ..job(100_000 + n, "other", 1) }, at(now));
            }
            n += 1;
        }
        let (ended, rest): (Vec<_>, Vec<_>) = running.into_iter().partition(|(until, _)| *until <= now);
        running = rest;
        for (_, attempt) in ended {
            let is_alive = &**attempt.destination() == "alive";
            let finish = if is_alive { Finish::Done } else { other.clone().expect("only then it starts") };
            s.finished(attempt, finish, at(now));
        }
        while let Some(attempt) = start(&mut s, now) {
            let is_alive = &**attempt.destination() == "alive";
            if is_alive {
                started.push((attempt.id().to_u64(), now));
            }
            // The living take 30 ms, the dead half a second to time out.
            running.push((now + if is_alive { 30 } else { 500 }, attempt));
        }
    }
    started
}

#[test]
fn one_dead_destination_of_two_changes_nothing_for_the_other() {
    let alone = starts_of_the_living(None);
    assert_eq!(alone.len(), 500);
    let dead = Finish::DestinationFailed { said: "timed out".into() };
    assert_eq!(starts_of_the_living(Some(dead)), alone, "order and time of every start");
    let busy = Finish::Throttled { due: at(0), said: "421".into() };
    assert_eq!(starts_of_the_living(Some(busy)), alone);
}

#[test]
fn a_thousand_dead_destinations_leave_sessions_and_time_for_the_living() {
    let mut s = Schedule::new(Limits::default(), 1);
    let dead = || Finish::DestinationFailed { said: "timed out".into() };
    s.admit(job(50_000, "alive", BULK), at(0));
    let first = start(&mut s, 0).expect("ready");
    s.finished(first, Finish::Done, at(0));
    for n in 0..20_000 {
        s.admit(job(n, &format!("dead{}", n % 1_000), BULK), at(0));
    }
    let mut hanging: Vec<Attempt> = std::iter::from_fn(|| start(&mut s, 0)).collect();
    assert_eq!(hanging.len(), 364);
    let mut now = 0;
    for n in 0..1_000 {
        now += 10;
        s.admit(Job { due: at(now), ..job(60_000 + n, "alive", BULK) }, at(now));
        if n % 100 == 0 {
            // Some time out, and others take their place.
            hanging.drain(..50).for_each(|attempt| s.finished(attempt, dead(), at(now)));
        }
        let mut found = false;
        while let Some(attempt) = start(&mut s, now) {
            match &**attempt.destination() {
                "alive" => {
                    found = true;
                    s.finished(attempt, Finish::Done, at(now));
                }
                _ => hanging.push(attempt),
            }
        }
        assert!(found, "mail for the living goes the moment it comes");
        assert!(hanging.len() <= 364);
    }
}

#[test]
fn bulk_leaves_a_session_of_each_destination_and_some_of_all() {
    let mut s = Schedule::new(Limits { total_concurrency_max: 64, ..Limits::default() }, 1);
    let lane = |lane, n, destination: &str| Job { lane, ..job(n, destination, BULK) };
    for n in 0..2_000 {
        s.admit(lane(Lane::Bulk, n, &format!("d{}", n % 20)), at(0));
    }
    let mut running = Vec::new();
    while let Some(attempt) = start(&mut s, 1) {
        running.push(attempt);
    }
    assert_eq!(running.len(), 56, "an eighth of all sessions is left");
    s.admit(lane(Lane::Bulk, 3_000, "e"), at(1));
    assert_eq!(why(&s, 3_000), Why::Total { in_flight: 56, limit: 56 });
    s.admit(lane(Lane::Urgent, 3_001, "d0"), at(1));
    s.admit(lane(Lane::Normal, 3_002, "d1"), at(1));
    let mut found: Vec<u64> = std::iter::from_fn(|| start(&mut s, 1)).map(|attempt| attempt.id().to_u64()).collect();
    found.sort();
    assert_eq!(found, [3_001, 3_002], "nobody waits behind bulk");

    let mut s = Schedule::new(Limits::default(), 1);
    (0..100).for_each(|n| s.admit(lane(Lane::Bulk, n, "a"), at(0)));
    let running: Vec<Attempt> = std::iter::from_fn(|| start(&mut s, 1)).collect();
    assert_eq!(running.len(), 4, "of the first five sessions one is left");
    assert_eq!(why(&s, 99), Why::Lane { in_flight: 4, limit: 4 });
    s.admit(lane(Lane::Urgent, 200, "a"), at(1));
    assert_eq!(start(&mut s, 1).expect("a session is left").id(), QueueId::from_u64(200));
}

#[test]
fn what_is_urgent_goes_to_a_new_destination_while_bulk_hangs_at_a_thousand() {
    let mut s = Schedule::new(Limits::default(), 1);
    let lane = |lane, n: u64| Job { lane, ..job(n, &format!("d{n}"), n as u32 % 5) };
    (0..1_000).for_each(|n| s.admit(lane(Lane::Bulk, n), at(0)));
    let hanging: Vec<Attempt> = std::iter::from_fn(|| start(&mut s, 1)).collect();
    assert_eq!((hanging.len(), why(&s, 999)), (329, Why::Unproven { in_flight: 329, limit: 329 }));
    (1_000..2_000).for_each(|n| s.admit(lane(Lane::Normal, n), at(1)));
    let more: Vec<Attempt> = std::iter::from_fn(|| start(&mut s, 1)).collect();
    assert_eq!((more.len(), why(&s, 1_999)), (35, Why::Unproven { in_flight: 364, limit: 364 }));
    s.admit(lane(Lane::Urgent, 5_000), at(1));
    assert_eq!(start(&mut s, 1).map(|attempt| attempt.id()), Some(QueueId::from_u64(5_000)));
}

fn why(schedule: &Schedule, n: u64) -> Why {
    schedule.describe(QueueId::from_u64(n), at(1)).remove(0).why
}

#[test]
fn who_waits_for_a_turn_can_see_who_goes_before() {
    let mut s = Schedule::new(Limits { destination_concurrency_max: 1, ..Limits::default() }, 1);
    (0..10).for_each(|n| s.admit(job(n, "a", BULK), at(0)));
    s.admit(job(100, "a", 2), at(0));
    s.admit(job(101, "a", 2), at(0));
    let running = start(&mut s, 1).expect("ready");
    let standing = s.describe(QueueId::from_u64(101), at(1)).remove(0);
    assert_eq!(standing.why, Why::Window { in_flight: 1, window: 1 });
    assert_eq!(standing.ahead, Ahead { same_sender: 1, others: 2, is_more: false });
    s.finished(running, Finish::Done, at(1));
}

#[test]
fn a_line_that_was_held_does_not_make_up_for_it() {
    let mut s = narrow();
    let site: Arc<str> = "site".into();
    for (n, name) in [(1, "a"), (2, "b")] {
        s.admit(job(n, name, n as u32), at(0));
        let mut attempt = start(&mut s, 0).expect("ready");
        assert!(s.relocate(&mut attempt, &site, at(0)));
        s.finished(attempt, Finish::Done, at(0));
    }
    (0..1_000).for_each(|n| s.admit(job(100 + n, "a", 1), at(0)));
    (0..1_000).for_each(|n| s.admit(job(5_000 + n, "b", 2), at(0)));
    s.hold(Selector::Destination("a"));
    for _ in 0..500 {
        let attempt = start(&mut s, 1).expect("ready");
        assert_eq!(&**attempt.destination(), "b");
        s.finished(attempt, Finish::Done, at(1));
    }
    s.release(Selector::Destination("a"));
    let mut of_a = 0;
    for _ in 0..100 {
        let attempt = start(&mut s, 1).expect("ready");
        of_a += usize::from(&**attempt.destination() == "a");
        s.finished(attempt, Finish::Done, at(1));
    }
    assert!((45..=55).contains(&of_a), "{of_a} of 100");
}
