//! The exact words of `queue why` and `queue stats`.

use std::sync::Arc;

use postroad_queue::schedule::{Ahead, Lane, Standing, Why};
use postroad_queue::{QueueId, RecipientState, Report};
use postroad_smtp::Reply;

use super::*;
use crate::admin::testing::{HOUR_MS, NOW, entry};
use crate::admin::view::Time;
use crate::admin::{Entry, Id};

fn screen(look: Look) -> Screen {
    Screen::with_look(look, NOW, Some(140))
}

fn report(hours_ago: u64, text: &str) -> Report {
    let reply = Reply::of(451, None, "").with_text(text);
    Report {
        at: UnixMillis(NOW.0 - hours_ago * HOUR_MS),
        remote: Some("mx1.dead.example [198.51.100.7]".into()),
        reply,
    }
}

/// Five recipients: three put off alike, one new, one delivered.
fn message() -> Entry {
    let to = [("a@dead.example", 4), ("b@dead.example", 4), ("c@dead.example", 4), ("d@dead.example", 4)];
    let rest = [("new@example.com", 0), ("done@example.com", 0)];
    let mut entry = entry(1, 30, "cron@app.example.org", &[&to[..], &rest[..]].concat());
    let states = &mut Arc::make_mut(&mut entry.item).state.recipients;
    for state in &mut states[..4] {
        let RecipientState::Pending { last, earlier, .. } = state else { panic!("pending") };
        *earlier = Default::default();
        earlier.add(report(30, "4.2.0 Greylisted"));
        earlier.add(report(29, "4.3.2 Busy"));
        earlier.add(report(28, "4.3.2 Busy"));
        *last = Some(report(2, "4.3.2 Busy"));
    }
    states[5] = RecipientState::Delivered { report: report(29, "2.0.0 Taken"), notified: true };
    entry
}

fn standings() -> Vec<Standing> {
    let one = |destination: &str, site: &str, lane, why, ahead| Standing {
        destination: destination.into(),
        site: site.into(),
        lane,
        why,
        ahead,
    };
    let said: Arc<str> = "451 4.4.1 connection refused".into();
    let closed = Why::Closed { until: NOW.plus(HOUR_MS), failures: 4, said };
    let busy = Why::Window { in_flight: 20, window: 20 };
    vec![
        one("mx:dead.example", "mx1.dead.example", Lane::Normal, closed, Ahead::default()),
        one("mx:example.com", "mx:example.com", Lane::Bulk, busy, Ahead { same_sender: 3, others: 0, is_more: false }),
    ]
}

fn why(look: Look) -> String {
    let entry = message();
    let mut waits: Vec<WaitView> = standings().iter().map(|standing| WaitView::of(&entry, standing, false)).collect();
    waits[1].passed_by = vec!["hub (k5x2q7ab): 451 4.4.1 no answer".into()];
    let mut out = Vec::new();
    screen(look).why(&mut out, Some(&MessageView::whole(&entry)), &waits).expect("printed");
    String::from_utf8(out).expect("UTF-8")
}

#[test]
fn why_on_a_terminal() {
    let want = "\
0000000000001 from cron@app.example.org, accepted 30h ago, given up in 3d; 5 of 6 recipients wait
mx:dead.example at mx1.dead.example (in 1h): cannot be reached (4 failures in a row) and is tried again at \
2027-01-15T09:00:00.000Z: 451 4.4.1 connection refused
  change it by: postroad queue retry 0000000000001 --destination 'mx:dead.example'
  a@dead.example, b@dead.example, c@dead.example and 1 more: tried 4 times
    451 4.2.0 Greylisted (mx1.dead.example [198.51.100.7], 30h ago)
    451 4.3.2 Busy (mx1.dead.example [198.51.100.7], 3 times since 29h ago, last 2h ago)
mx:example.com (bulk mail): waits for one of its site's sessions: 20 of 20 are in use; 3 of the same sender's domain go before it
  another way is taken, a member cannot be reached: hub (k5x2q7ab): 451 4.4.1 no answer
  new@example.com: not tried yet
delivered: done@example.com
    451 2.0.0 Taken (mx1.dead.example [198.51.100.7], 29h ago)
";
    assert_eq!(why(Look::Table), want);
    assert_eq!(why(Look::Plain), want);
}

#[test]
fn why_for_programs_has_the_history_of_each_recipient() {
    let text = why(Look::Json);
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["reason"], "destination_unreachable");
    assert_eq!(lines[0]["site"], "mx1.dead.example");
    assert_eq!(lines[0]["remedy"], "postroad queue retry 0000000000001 --destination 'mx:dead.example'");
    let earlier = &lines[0]["recipients"][3]["earlier"];
    assert_eq!((&earlier[0]["reply"], &earlier[0]["times"]), (&"451 4.2.0 Greylisted".into(), &1.into()));
    assert_eq!((&earlier[1]["reply"], &earlier[1]["times"]), (&"451 4.3.2 Busy".into(), &2.into()));
    assert_eq!(lines[1]["recipients"][0]["to"], "new@example.com");
    let view: WaitView = serde_json::from_str(text.lines().next().expect("a line")).expect("it reads back");
    assert_eq!(serde_json::to_value(view).expect("JSON"), lines[0]);
}

#[test]
fn a_reply_cannot_steer_the_terminal() {
    let mut entry = message();
    let RecipientState::Pending { last, earlier, .. } = &mut Arc::make_mut(&mut entry.item).state.recipients[0] else {
        panic!("pending")
    };
    earlier.add(report(3, "\u{1b}[2J\u{202e}gone"));
    *last = Some(report(1, "a\nb\u{7}"));
    let waits: Vec<WaitView> = standings().iter().map(|standing| WaitView::of(&entry, standing, false)).collect();
    let mut out = Vec::new();
    screen(Look::Table).why(&mut out, Some(&MessageView::whole(&entry)), &waits).expect("printed");
    let text = String::from_utf8(out).expect("UTF-8");
    assert!(!text.contains(|c: char| (c.is_control() && c != '\n') || c == '\u{202e}'), "{text:?}");
}

fn destinations() -> Vec<DestinationView> {
    let dead = DestinationView {
        destination: "mx:dead.example".into(),
        site: "mx:dead.example".into(),
        destinations: 1,
        jobs: 21,
        ready: 21,
        window: 5,
        lanes: [0, 20, 1],
        ages: [1, 0, 2, 0, 3, 0, 4, 0, 5, 6],
        closed_until: Some(Time(NOW.plus(HOUR_MS))),
        failures: 4,
        said: Some("451 4.4.1 connection refused".into()),
        oldest: Some(Id(QueueId::from_u64(1))),
        ..DestinationView::default()
    };
    let busy = DestinationView {
        destination: "mx:example.com".into(),
        site: "mx:example.com".into(),
        destinations: 1,
        jobs: 8,
        ready: 3,
        in_flight: 5,
        window: 5,
        lanes: [0, 3, 0],
        ages: [8, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ..DestinationView::default()
    };
    vec![dead, busy]
}

#[test]
fn stats_on_a_terminal() {
    let shown = destinations();
    let mut all = DestinationView::default();
    shown.iter().for_each(|one| all.add(one));
    all.add(&DestinationView { destinations: 12, jobs: 340, deferred: 340, held: 2, ages: [340; 10], ..all.clone() });
    let totals = TotalsView {
        messages: 369,
        content_octets: 5_000_000,
        disk_octets: 7_000_000,
        jobs: 369,
        deferred: 335,
        held_jobs: 5,
        in_flight: 5,
        held: false,
    };
    let mut out = Vec::new();
    screen(Look::Table).totals(&mut out, &totals).expect("printed");
    screen(Look::Table).destinations(&mut out, &shown, &all, 14).expect("printed");
    let want = "\
369 messages (5.0 MB), 369 jobs: 24 ready, 335 deferred, 5 held, 5 being delivered; 7.0 MB on disk
DESTINATION      JOBS  READY  ACTIVE  HELD  URGENT  BULK  <5m  <20m  <80m  <5h  <21h  OLDER
TOTAL             369     48      10     2       0     2  349   682   683  684   685    346
mx:dead.example    21     21       0     0       0     1    1     2     3    4     5      6
  cannot be reached (4 times), tried again in 1h: 451 4.4.1 connection refused
mx:example.com      8      3       5     0       0     0    8     0     0    0     0      0
  all of its 5 sessions are in use
and 12 more with 340 jobs: see --limit
";
    assert_eq!(String::from_utf8(out).expect("UTF-8"), want);
}

#[test]
fn what_is_not_there_takes_no_column_and_a_site_says_how_many_it_serves() {
    let mut site = DestinationView { lanes: [0, 20, 0], closed_until: None, ..destinations().remove(0) };
    site.destination = "mx1.dead.example".into();
    site.add(&destinations()[1]);
    let mut out = Vec::new();
    screen(Look::Table).destinations(&mut out, std::slice::from_ref(&site), &site, 1).expect("printed");
    let want = "\
DESTINATION                        JOBS  READY  ACTIVE  <5m  <20m  <80m  <5h  <21h  OLDER
TOTAL                                29     24       5    9     2     3    4     5      6
mx1.dead.example (2 destinations)    29     24       5    9     2     3    4     5      6
  all of its 5 sessions are in use
";
    assert_eq!(String::from_utf8(out).expect("UTF-8"), want);
}

#[test]
fn stats_in_a_pipe() {
    let mut out = Vec::new();
    for one in destinations() {
        screen(Look::Plain).destination(&mut out, &one).expect("printed");
    }
    let want = "\
mx:dead.example\t21\t21\t0\t0\t0\t5\t0\t20\t1\t1\t0\t2\t0\t3\t0\t4\t0\t5\t6\t0000000000001\t\
cannot be reached (4 times), tried again in 1h: 451 4.4.1 connection refused
mx:example.com\t8\t3\t0\t0\t5\t5\t0\t3\t0\t8\t0\t0\t0\t0\t0\t0\t0\t0\t0\t-\tall of its 5 sessions are in use
";
    assert_eq!(String::from_utf8(out).expect("UTF-8"), want);
}
