//! What people and programs see: the exact text of each look.

use super::*;
use crate::admin::Entry;
use crate::admin::testing::{HOUR_MS, NOW, entry, held};
use crate::admin::view::ActOutcome;

fn sample() -> Vec<Entry> {
    vec![
        entry(1, 30, "cron@app.example.org", &[("ops@dead.example", 7), ("log@example.com", 0)]),
        held(entry(2, 2, "", &[("alice@example.com", 0)])),
        entry(3, 1, "shop@example.org", &[("bob@example.com", 1)]),
    ]
}

fn list(look: Look, entries: &[Entry]) -> String {
    let (mut screen, mut out) = (Screen::with_look(look, NOW, Some(140)), Vec::new());
    for entry in entries {
        screen.message(&mut out, &MessageView::whole(entry)).expect("printed");
    }
    screen.end_messages(&mut out).expect("printed");
    String::from_utf8(out).expect("UTF-8")
}

#[test]
fn a_list_on_a_terminal() {
    let want = "\
ID            AGE   SIZE STATE    TRIES NEXT   FROM                 TO                                LAST REPLY
0000000000001 30h 2.0 kB queued       7 now    cron@app.example.org ops@dead.example, log@example.com 450 4.2.0 Greylisted, come back later
0000000000002 2h  4.1 kB held         0 -      <>                   alice@example.com
0000000000003 1h  6.1 kB deferred     1 in 30m shop@example.org     bob@example.com                   450 4.2.0 Greylisted, come back later
";
    assert_eq!(list(Look::Table, &sample()), want);
}

#[test]
fn ids_and_addresses_stay_whole_on_a_narrow_terminal() {
    let want = "\
ID            AGE   SIZE STATE    TRIES NEXT   FROM
0000000000001 30h 2.0 kB queued       7 now    cron@app.example.org
    ops@dead.example, log@example.com
    450 4.2.0 Greylisted, come back later
0000000000002 2h  4.1 kB held         0 -      <>
    alice@example.com
0000000000003 1h  6.1 kB deferred     1 in 30m shop@example.org
    bob@example.com
    450 4.2.0 Greylisted, come back later
";
    for width in [30, 80] {
        let (mut screen, mut out) = (Screen::with_look(Look::Table, NOW, Some(width)), Vec::new());
        for entry in sample() {
            screen.message(&mut out, &MessageView::whole(&entry)).expect("printed");
        }
        screen.end_messages(&mut out).expect("printed");
        assert_eq!(String::from_utf8(out).expect("UTF-8"), want, "{width} columns");
    }
}

#[test]
fn what_waits_for_a_host_that_is_down_says_so() {
    let outage = |_: &str| Some((NOW.plus(HOUR_MS), "451 4.4.1 refused".into()));
    let (mut screen, mut out) = (Screen::with_look(Look::Plain, NOW, None), Vec::new());
    for tries in [0, 1] {
        let message = MessageView::whole(&entry(3, 1, "shop@example.org", &[("bob@example.com", tries)]));
        screen.message(&mut out, &message.with_outages(outage)).expect("printed");
    }
    let text = String::from_utf8(out).expect("UTF-8");
    let columns: Vec<Vec<&str>> = text.lines().map(|line| line.split('\t').collect()).collect();
    assert_eq!((columns[0][5], columns[0][8]), ("2027-01-15T09:00:00.000Z", "451 4.4.1 refused"));
    let last = "450 4.2.0 Greylisted, come back later";
    assert_eq!((columns[1][5], columns[1][8]), ("2027-01-15T09:00:00.000Z", last), "what it heard itself comes first");
}

#[test]
fn a_list_in_a_pipe() {
    let want = "\
0000000000001\t2027-01-14T02:00:00.000Z\t2048\tqueued\t7\t2027-01-14T02:00:00.000Z\tcron@app.example.org\tops@dead.example,log@example.com\t450 4.2.0 Greylisted, come back later
0000000000002\t2027-01-15T06:00:00.000Z\t4096\theld\t0\t2027-01-15T06:00:00.000Z\t<>\talice@example.com\t-
0000000000003\t2027-01-15T07:00:00.000Z\t6144\tdeferred\t1\t2027-01-15T08:30:00.000Z\tshop@example.org\tbob@example.com\t450 4.2.0 Greylisted, come back later
";
    assert_eq!(list(Look::Plain, &sample()), want);
}

#[test]
fn a_list_for_programs_is_one_object_a_line() {
    let text = list(Look::Json, &sample());
    assert_eq!(text.lines().count(), 3);
    for (line, entry) in text.lines().zip(sample()) {
        assert_eq!(serde_json::from_str::<MessageView>(line).expect("JSON"), MessageView::whole(&entry));
    }
    let want = "{\"id\":\"0000000000002\",\"arrived\":\"2027-01-15T06:00:00.000Z\",\"expires\":\"2027-01-20T06:00:00.000Z\",\
        \"size\":4096,\"from\":\"<>\",\"state\":\"held\",\"origin\":{\"peer\":\"192.0.2.9\",\"helo\":\"app.example.org\",\
        \"protocol\":\"ESMTPS\",\"session\":\"S1\"},\"recipients_total\":1,\"recipients_pending\":1,\"recipients\":[{\
        \"to\":\"alice@example.com\",\"state\":\"pending\",\"attempts\":0,\"due\":\"2027-01-15T06:00:00.000Z\",\
        \"destination\":\"mx:example.com\"}]}";
    assert_eq!(text.lines().nth(1), Some(want));
}

#[test]
fn one_message_in_full() {
    let (mut screen, mut out) = (Screen::with_look(Look::Table, NOW, None), Vec::new());
    screen.details(&mut out, &MessageView::whole(&sample()[0])).expect("printed");
    let want = "\
0000000000001  queued
  from       cron@app.example.org
  accepted   2027-01-14T02:00:00.000Z (30h ago)
  expires    2027-01-19T02:00:00.000Z (in 3d)
  size       2048 octets
  origin     ESMTPS from 192.0.2.9 as app.example.org session S1
  recipients 2, 2 of them pending
  ops@dead.example: tries: 7, next in 30m
    2027-01-14T02:00:00.000Z mx1.example.com [198.51.100.7] said 450 4.2.0 Greylisted, come back later
  log@example.com: not tried yet
";
    assert_eq!(String::from_utf8(out).expect("UTF-8"), want);
}

#[test]
fn what_a_stranger_wrote_cannot_steer_the_terminal_or_add_a_column() {
    let mut message = MessageView::whole(&sample()[2]);
    message.from = "\u{1b}[2J\u{202e}x\t\n@example.org".into();
    message.origin.helo = Some("a\u{9b}1A".into());
    if let Some(last) = &mut message.recipients[0].last {
        last.reply = "450 a\r\nb\tc".into();
    }
    let act = ActView { message: message.clone(), outcome: ActOutcome::Changed, error: None };
    for (look, width) in [(Look::Table, 200), (Look::Table, 80), (Look::Plain, 200)] {
        let (mut screen, mut out) = (Screen::with_look(look, NOW, Some(width)), Vec::new());
        screen.message(&mut out, &message).expect("printed");
        screen.end_messages(&mut out).expect("printed");
        screen.details(&mut out, &message).expect("printed");
        screen.acted(&mut out, &act).expect("printed");
        let text = String::from_utf8(out).expect("UTF-8");
        assert!(!text.contains(|c: char| c.is_control() && c != '\n' && c != '\t'), "{text:?}");
        assert!(!text.contains('\u{202e}') && !text.contains("\n@example.org"), "{text:?}");
        if look == Look::Plain {
            assert_eq!(text.lines().next().map(|line| line.split('\t').count()), Some(9));
        }
    }
}

#[test]
fn a_long_list_is_drawn_as_it_comes() {
    let entries: Vec<Entry> = (1..=450).map(|n| entry(n, 1, "a@b.example", &[("c@d.example", 0)])).collect();
    let text = list(Look::Table, &entries);
    assert_eq!(text.lines().count(), 451);
    assert_eq!(text.lines().filter(|line| line.starts_with("ID ")).count(), 1);
}

#[test]
fn spans_and_sizes_fit_a_column() {
    let spans = [0, 59_000, 60_000, 3_599_000, HOUR_MS, 47 * HOUR_MS, 48 * HOUR_MS].map(span);
    assert_eq!(spans, ["0s", "59s", "1m", "59m", "1h", "47h", "2d"]);
    assert_eq!([0, 999, 1000, 50_000_000].map(size), ["0 B", "999 B", "1.0 kB", "50.0 MB"]);
}
