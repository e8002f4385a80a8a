//! The schedule, one rule a test: outages and probes, windows, turns, lanes, and what an admin does.

use std::sync::Arc;

use postroad_queue::schedule::{Attempt, Finish, Job, Lane, Limits, Load, Next, Schedule, Selector, WakeReason, Why};
use postroad_queue::{QueueId, RetryPolicy, UnixMillis};

const BACKOFF: RetryPolicy = RetryPolicy { first_ms: 1_000, factor: 2.0, max_ms: 60_000, jitter_ratio: 0.0 };

fn limits() -> Limits {
    Limits { destination_backoff: BACKOFF, ..Limits::default() }
}

fn schedule() -> Schedule {
    Schedule::new(limits(), 1)
}

fn at(ms: u64) -> UnixMillis {
    UnixMillis(ms)
}

fn id(n: u64) -> QueueId {
    QueueId::from_u64(n)
}

fn admit(schedule: &mut Schedule, n: u64, destination: &str, due: u64, lane: Lane) {
    let (sender, load, allowance) = (0, Load::new(1, 1_000), 0);
    let job = Job { id: id(n), destination: destination.into(), due: at(due), lane, sender, load, allowance };
    schedule.admit(job, at(0));
}

/// Starts all that may start now.
fn start_all(schedule: &mut Schedule, now: u64) -> Vec<Attempt> {
    let mut attempts = Vec::new();
    while let Next::Start(attempt) = schedule.poll(at(now)) {
        attempts.push(attempt);
    }
    attempts
}

fn start(schedule: &mut Schedule, now: u64) -> Attempt {
    match schedule.poll(at(now)) {
        Next::Start(attempt) => attempt,
        other => panic!("expected a start, not {other:?}"),
    }
}

fn failed() -> Finish {
    Finish::DestinationFailed { said: "connection refused".into() }
}

fn why(schedule: &Schedule, n: u64, now: u64) -> Why {
    schedule.describe(id(n), at(now)).remove(0).why
}

#[test]
fn a_job_starts_when_it_is_due_and_not_before() {
    let mut s = schedule();
    admit(&mut s, 1, "a", 500, Lane::Normal);
    assert_eq!(s.poll(at(499)), Next::Wake { at: at(500), why: WakeReason::JobDue });
    assert_eq!(why(&s, 1, 499), Why::Deferred { due: at(500) });
    let attempt = start(&mut s, 500);
    assert_eq!((attempt.id(), &**attempt.destination()), (id(1), "a"));
    assert_eq!(s.poll(at(501)), Next::Idle);
    s.finished(attempt, Finish::Requeue { due: at(900) }, at(600));
    assert_eq!(s.poll(at(600)), Next::Wake { at: at(900), why: WakeReason::JobDue });
    let attempt = start(&mut s, 900);
    s.finished(attempt, Finish::Done, at(901));
    assert_eq!(s.poll(at(901)), Next::Idle);
    assert_eq!(s.totals().jobs, 0);
}

#[test]
fn after_an_outage_one_probe_goes_and_then_all_that_waits() {
    let mut s = schedule();
    (1..=100).for_each(|n| admit(&mut s, n, "dead", 0, Lane::Normal));
    let first = start_all(&mut s, 10);
    assert_eq!(first.len(), 5);
    first.into_iter().for_each(|attempt| s.finished(attempt, failed(), at(20)));
    assert_eq!(s.poll(at(20)), Next::Wake { at: at(1_020), why: WakeReason::BackoffEnds });
    assert_eq!(why(&s, 50, 20), Why::Closed { until: at(1_020), failures: 1, said: "connection refused".into() });

    let probe = start(&mut s, 1_020);
    assert!(probe.is_probe());
    assert_eq!(s.poll(at(1_020)), Next::Idle);
    assert_eq!(why(&s, 50, 1_020), Why::Probing { failures: 1, said: "connection refused".into() });
    s.finished(probe, failed(), at(1_100));
    assert_eq!(s.poll(at(1_100)), Next::Wake { at: at(3_100), why: WakeReason::BackoffEnds });

    let probe = start(&mut s, 3_100);
    s.finished(probe, Finish::Done, at(3_200));
    let mut running = start_all(&mut s, 3_200);
    assert_eq!(running.len(), 5, "the flood begins at the first window");
    assert!(running.iter().all(|attempt| !attempt.is_probe()));
    let mut done = 1;
    while let Some(attempt) = running.pop() {
        s.finished(attempt, Finish::Done, at(3_200));
        done += 1;
        running.extend(start_all(&mut s, 3_200));
        assert!(running.len() <= 20);
    }
    assert_eq!(done, 100, "nobody waits for a due time of its own");
}

#[test]
fn what_lost_its_session_when_an_outage_began_goes_when_it_ends() {
    let mut s = schedule();
    (1..=5).for_each(|n| admit(&mut s, n, "dying", 0, Lane::Normal));
    let lost = || Finish::Throttled { due: at(300_000), said: "connection reset".into() };
    start_all(&mut s, 10).into_iter().for_each(|attempt| s.finished(attempt, lost(), at(20)));
    assert_eq!(why(&s, 1, 20), Why::Deferred { due: at(300_000) }, "the site may be sound");

    admit(&mut s, 6, "dying", 0, Lane::Normal);
    let next = start(&mut s, 30);
    s.finished(next, failed(), at(40));
    let probe = start(&mut s, 1_040);
    s.finished(probe, Finish::Done, at(1_050));
    assert_eq!(start_all(&mut s, 1_050).len(), 5, "all of them, long before they were due");
}

#[test]
fn what_lost_its_session_before_the_site_worked_again_keeps_its_own_time() {
    let mut s = schedule();
    (1..=20).for_each(|n| admit(&mut s, n, "shaky", 0, Lane::Normal));
    let first = start(&mut s, 10);
    s.finished(first, Finish::Throttled { due: at(300_000), said: "421 4.3.2".into() }, at(20));
    while let Next::Start(attempt) = s.poll(at(30)) {
        s.finished(attempt, Finish::Done, at(30));
    }
    admit(&mut s, 30, "shaky", 0, Lane::Normal);
    let next = start(&mut s, 40);
    s.finished(next, failed(), at(50));
    let probe = start(&mut s, 1_050);
    s.finished(probe, Finish::Done, at(1_060));
    assert_eq!(start_all(&mut s, 1_060).len(), 0, "the message put off first has nothing to do with this outage");
}

#[test]
fn nobody_wakes_for_what_is_held_or_gone() {
    for act in [|s: &mut Schedule| s.hold(Selector::Id(id(1))), |s: &mut Schedule| s.remove(id(1))] {
        let mut s = schedule();
        admit(&mut s, 1, "dead", 0, Lane::Normal);
        let attempt = start(&mut s, 10);
        s.finished(attempt, failed(), at(20));
        assert_eq!(s.poll(at(20)), Next::Wake { at: at(1_020), why: WakeReason::BackoffEnds });
        act(&mut s);
        assert_eq!(s.poll(at(20)), Next::Idle);
    }
}

#[test]
fn a_due_time_given_while_held_is_newer_than_a_retry_before() {
    let mut s = schedule();
    admit(&mut s, 1, "a", 5_000, Lane::Normal);
    s.hold(Selector::Id(id(1)));
    s.retry_now(Selector::Destination("a"));
    admit(&mut s, 1, "a", 9_000, Lane::Normal);
    s.release(Selector::Id(id(1)));
    assert_eq!(why(&s, 1, 10), Why::Deferred { due: at(9_000) });
}

#[test]
fn the_probe_is_not_always_the_same_message() {
    let mut s = schedule();
    (1..=3).for_each(|n| admit(&mut s, n, "dead", 0, Lane::Normal));
    let mut seen = Vec::new();
    let mut now = 1;
    for _ in 0..9 {
        for attempt in start_all(&mut s, now) {
            seen.push(attempt.id());
            s.finished(attempt, failed(), at(now));
        }
        match s.poll(at(now)) {
            Next::Wake { at, .. } => now = at.0,
            other => panic!("{other:?}"),
        }
    }
    (1..=3).for_each(|n| assert!(seen[3..].contains(&id(n)), "{n} never probed: {seen:?}"));
}

#[test]
fn a_message_put_off_on_its_own_account_does_not_go_with_the_flood() {
    let mut s = schedule();
    admit(&mut s, 1, "a", 0, Lane::Normal);
    admit(&mut s, 2, "a", 50_000, Lane::Normal);
    let attempt = start(&mut s, 0);
    s.finished(attempt, failed(), at(0));
    assert_eq!(why(&s, 2, 0), Why::Deferred { due: at(50_000) });
    let probe = start(&mut s, 1_000);
    s.finished(probe, Finish::Done, at(1_000));
    assert_eq!(s.poll(at(1_000)), Next::Wake { at: at(50_000), why: WakeReason::JobDue });
}

#[test]
fn a_dead_destination_does_not_delay_the_other() {
    let mut s = Schedule::new(Limits { total_concurrency_max: 8, unproven_concurrency_max: 6, ..limits() }, 1);
    (0..1_000).for_each(|n| admit(&mut s, n, if n % 2 == 0 { "dead" } else { "alive" }, 0, Lane::Normal));
    let mut hanging = Vec::new();
    let mut delivered = 0;
    for now in 0..300 {
        let (alive, dead): (Vec<_>, Vec<_>) =
            start_all(&mut s, now).into_iter().partition(|attempt| &**attempt.destination() == "alive");
        hanging.extend(dead);
        delivered += alive.len();
        alive.into_iter().for_each(|attempt| s.finished(attempt, Finish::Done, at(now)));
    }
    assert_eq!(delivered, 500);
    assert_eq!(hanging.len(), 5, "unanswered attempts stay within the first window");
}

#[test]
fn many_dead_destinations_leave_sessions_for_the_living() {
    let mut s = schedule();
    admit(&mut s, 0, "alive", 0, Lane::Normal);
    let first = start(&mut s, 0);
    s.finished(first, Finish::Done, at(0));
    (0..5_000).for_each(|n| admit(&mut s, 1 + n, &format!("dead-{}", n % 500), 1, Lane::Normal));
    let hanging = start_all(&mut s, 1);
    assert_eq!(hanging.len(), 364, "of 375 some are kept for what is urgent");
    assert_eq!(why(&s, 5_000, 1), Why::Unproven { in_flight: 364, limit: 364 });
    (0..50).for_each(|n| admit(&mut s, 10_000 + n, "alive", 2, Lane::Normal));
    assert_eq!(start_all(&mut s, 2).len(), 5);
}

#[test]
fn ready_destinations_take_turns() {
    let mut s = Schedule::new(Limits { total_concurrency_max: 1, ..limits() }, 1);
    (0..30).for_each(|n| admit(&mut s, n, ["a", "b", "c"][n as usize / 10], 0, Lane::Normal));
    let mut order = String::new();
    for _ in 0..30 {
        let attempt = start(&mut s, 1);
        order.push_str(attempt.destination());
        s.finished(attempt, Finish::Done, at(1));
    }
    for end in 6..=order.len() {
        let counts = ["a", "b", "c"].map(|name| order[..end].matches(name).count());
        assert!(counts.iter().all(|count| count.abs_diff(end / 3) <= 2), "unfair: {order}");
    }
}

#[test]
fn a_kept_connection_gives_way_when_others_wait() {
    let mut s = Schedule::new(Limits { total_concurrency_max: 2, ..limits() }, 1);
    (0..200).for_each(|n| admit(&mut s, n, "a", 0, Lane::Normal));
    let mut mine = start(&mut s, 0);
    let other = start(&mut s, 0);
    admit(&mut s, 1_000, "b", 0, Lane::Normal);
    let mut taken = 0;
    loop {
        s.finished(mine, Finish::Done, at(1));
        match s.next_for("a", at(1)) {
            Some(next) => mine = next,
            None => break,
        }
        taken += 1;
    }
    assert_eq!(taken, 20);
    let mut firsts = [start(&mut s, 1).id(), id(0)];
    s.finished(other, Finish::Done, at(1));
    firsts[1] = start(&mut s, 1).id();
    assert!(firsts.contains(&id(1_000)), "{firsts:?}");
}

#[test]
fn what_goes_behind_another_takes_its_session_and_none_besides() {
    let mut s = Schedule::new(Limits { destination_concurrency_max: 2, ..limits() }, 1);
    (0..8).for_each(|n| admit(&mut s, n, "a", 0, Lane::Normal));
    admit(&mut s, 8, "a", 0, Lane::Bulk);
    let first = start(&mut s, 0);
    assert_eq!(s.next_behind(&first, at(0)), None, "nobody knows yet whether it answers");
    s.finished(first, Finish::Done, at(1));
    let mut running = start_all(&mut s, 1);
    assert_eq!((running.len(), why(&s, 7, 1)), (2, Why::Window { in_flight: 2, window: 2 }));
    let mut behind: Vec<Attempt> = running.iter().filter_map(|one| s.next_behind(one, at(1))).collect();
    assert_eq!(behind.iter().map(|one| one.id()).collect::<Vec<_>>(), [id(3), id(4)]);
    assert_eq!((why(&s, 3, 1), s.totals().in_flight), (Why::InFlight, 2));
    s.finished(running.remove(0), Finish::Done, at(2));
    s.take_up(&mut behind[0]);
    assert_eq!((s.poll(at(2)), s.totals().in_flight), (Next::Idle, 2), "the session is in use again");
    let returned = behind.remove(1);
    s.finished(returned, Finish::Returned, at(2));
    assert_eq!(s.poll(at(2)), Next::Idle, "it had no session to give back");
    let again = s.next_behind(&running[0], at(2)).expect("it is next as before");
    assert_eq!(again.id(), id(4));
    s.finished(again, Finish::Done, at(3));
    s.finished(running.remove(0), Finish::Done, at(3));
    s.finished(behind.remove(0), Finish::Done, at(3));
    assert_eq!(s.totals().in_flight, 0);
}

#[test]
fn nothing_of_a_lower_lane_goes_behind_another() {
    let mut s = schedule();
    admit(&mut s, 1, "a", 0, Lane::Normal);
    let first = start(&mut s, 0);
    s.finished(first, Finish::Done, at(1));
    (2..4).for_each(|n| admit(&mut s, n, "a", 0, Lane::Normal));
    admit(&mut s, 4, "a", 0, Lane::Bulk);
    let first = start(&mut s, 1);
    let second = s.next_behind(&first, at(1)).expect("of the same lane");
    assert_eq!((second.id(), s.next_behind(&second, at(1))), (id(3), None));
    [first, second].into_iter().for_each(|attempt| s.finished(attempt, Finish::Done, at(2)));
    assert_eq!(start(&mut s, 2).id(), id(4));
}

#[test]
fn urgent_goes_before_normal_and_bulk_last_but_none_starves() {
    let mut s = Schedule::new(Limits { total_concurrency_max: 1, ..limits() }, 1);
    for n in 0..300u64 {
        admit(&mut s, n, "a", 0, Lane::ALL[n as usize % 3]);
        admit(&mut s, 3_000 + n, "b", 0, Lane::ALL[n as usize % 3]);
    }
    let mut counts = [0; 3];
    for _ in 0..160 {
        let attempt = start(&mut s, 1);
        counts[(attempt.id().to_u64() % 3) as usize] += 1;
        s.finished(attempt, Finish::Done, at(1));
    }
    assert_eq!(counts, [120, 20, 20]);
}

#[test]
fn refused_sessions_narrow_the_window_and_successes_widen_it() {
    let mut s = schedule();
    (0..500).for_each(|n| admit(&mut s, n, "a", 0, Lane::Normal));
    let window = |s: &Schedule| s.stats(at(1))[0].window;
    let mut running = start_all(&mut s, 1);
    for _ in 0..200 {
        s.finished(running.remove(0), Finish::Done, at(1));
        running.extend(start_all(&mut s, 1));
    }
    assert_eq!((window(&s), running.len()), (20, 20));
    assert_eq!(why(&s, 499, 1), Why::Window { in_flight: 20, window: 20 });
    let said: Arc<str> = "421 4.7.0 too many connections".into();
    for attempt in running {
        s.finished(attempt, Finish::Throttled { due: at(1), said: said.clone() }, at(1));
    }
    assert_eq!(window(&s), 10);
    assert_eq!(start_all(&mut s, 1).len(), 10);
}

#[test]
fn an_attempt_that_was_not_made_leaves_no_trace() {
    let mut s = schedule();
    admit(&mut s, 1, "a", 0, Lane::Normal);
    let attempt = start(&mut s, 0);
    s.finished(attempt, failed(), at(0));
    let probe = start(&mut s, 1_000);
    s.finished(probe, Finish::Returned, at(1_000));
    assert!(start(&mut s, 1_000).is_probe());
}

#[test]
fn what_is_admitted_again_in_flight_starts_again() {
    let mut s = schedule();
    admit(&mut s, 1, "a", 0, Lane::Normal);
    let attempt = start(&mut s, 0);
    admit(&mut s, 1, "a", 70, Lane::Normal);
    assert_eq!(s.poll(at(5)), Next::Idle, "never twice at once");
    s.finished(attempt, Finish::Done, at(10));
    assert_eq!(s.poll(at(10)), Next::Wake { at: at(70), why: WakeReason::JobDue });
}

#[test]
fn hold_and_release_by_message_destination_and_all() {
    let mut s = schedule();
    (1..=3).for_each(|n| admit(&mut s, n, "a", 0, Lane::Normal));
    admit(&mut s, 1, "b", 0, Lane::Normal);
    assert_eq!(s.hold(Selector::Id(id(1))), 2);
    assert_eq!(why(&s, 1, 0), Why::Held);
    assert_eq!(s.hold(Selector::Destination("a")), 3);
    assert_eq!(why(&s, 2, 0), Why::DestinationHeld);
    assert_eq!(s.poll(at(0)), Next::Idle);
    assert_eq!(s.release(Selector::Destination("a")), 3);
    s.hold(Selector::All);
    assert_eq!(why(&s, 2, 0), Why::AllHeld);
    assert_eq!(s.poll(at(0)), Next::Idle);
    s.release(Selector::All);
    let attempts = start_all(&mut s, 0);
    assert_eq!(attempts.len(), 2);
    s.hold(Selector::Id(id(2)));
    for attempt in attempts {
        s.finished(attempt, Finish::Requeue { due: at(5) }, at(1));
    }
    assert_eq!(why(&s, 2, 9), Why::Held, "held in flight counts when the attempt has ended");
    let attempts = start_all(&mut s, 9);
    assert_eq!(attempts.len(), 1);
    assert_eq!(s.release(Selector::Id(id(1))), 2);
    assert_eq!(s.release(Selector::Id(id(2))), 1);
    assert_eq!(start_all(&mut s, 9).len(), 3);
}

#[test]
fn what_is_removed_does_not_come_back() {
    let mut s = schedule();
    (1..=10).for_each(|n| admit(&mut s, n, "a", 0, Lane::Normal));
    let attempt = start(&mut s, 0);
    assert_eq!(s.remove(attempt.id()), 1);
    s.finished(attempt, Finish::Requeue { due: at(0) }, at(0));
    assert_eq!(s.totals().jobs, 9);
    assert_eq!((1..=10).map(|n| s.remove(id(n))).sum::<usize>(), 9);
    assert_eq!(s.poll(at(0)), Next::Idle);
    assert!(s.describe(id(5), at(0)).is_empty());
}

#[test]
fn retry_now_goes_first_and_does_not_wait_for_the_back_off() {
    let mut s = schedule();
    admit(&mut s, 1, "a", 0, Lane::Normal);
    admit(&mut s, 2, "a", 90_000, Lane::Normal);
    let attempt = start(&mut s, 10);
    s.finished(attempt, failed(), at(10));
    assert_eq!(s.retry_now(Selector::Id(id(2))), 1);
    let probe = start(&mut s, 11);
    assert_eq!((probe.id(), probe.is_probe()), (id(2), true));
    s.finished(probe, Finish::Done, at(11));
    assert_eq!(start(&mut s, 11).id(), id(1));
}

#[test]
fn stats_tell_how_each_destination_stands() {
    let mut s = schedule();
    (1..=8).for_each(|n| admit(&mut s, n, "a", 0, Lane::Normal));
    admit(&mut s, 9, "a", 500, Lane::Bulk);
    s.hold(Selector::Id(id(8)));
    let attempt = start(&mut s, 0);
    let stats = s.stats(at(1)).remove(0);
    assert_eq!((stats.ready, stats.deferred, stats.held, stats.in_flight), ([0, 6, 0], [0, 0, 1], 1, 1));
    assert_eq!((stats.oldest, stats.window, stats.closed_until), (Some(id(1)), 5, None));
    s.finished(attempt, failed(), at(10));
    let stats = s.stats(at(10)).remove(0);
    assert_eq!((stats.closed_until, stats.failures, stats.is_proven), (Some(at(1_010)), 1, false));
    assert_eq!(stats.said.as_deref(), Some("connection refused"));
}

#[test]
fn jobs_are_counted_by_the_age_of_their_messages() {
    const MINUTE_MS: u64 = 60_000;
    let mut s = schedule();
    let now = 2_000 * MINUTE_MS;
    for (n, minutes) in (1..).zip([0, 4, 5, 9, 10, 320, 639, 640, 1_279, 1_280, 1_999]) {
        admit(&mut s, (now - minutes * MINUTE_MS) << 20 | n, "a", now + 1, Lane::Normal);
    }
    assert_eq!(s.stats(at(now))[0].ages, [2, 2, 1, 0, 0, 0, 0, 2, 2, 2]);
}

#[test]
fn idle_destinations_are_forgotten_in_the_end() {
    let mut s = schedule();
    for n in 0..10_000 {
        admit(&mut s, n, &format!("d{n}"), n, Lane::Normal);
        let attempt = start(&mut s, n);
        s.finished(attempt, Finish::Done, at(n));
    }
    assert!(s.totals().destinations <= 1_100, "{}", s.totals().destinations);
}
