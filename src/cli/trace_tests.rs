//! The exact words of `trace`.

use super::*;
use crate::admin::testing::{HOUR_MS, NOW, entry};
use crate::admin::trace::PassageView;
use crate::admin::view::Time;

fn event(after_ms: u64, what: &str, recipients: &[&str]) -> EventView {
    EventView {
        at: Time(NOW.plus(after_ms)),
        what: what.to_owned(),
        recipients: recipients.iter().map(|name| (*name).to_owned()).collect(),
        recipients_total: recipients.len() as u64,
        remote: None,
        reply: None,
        ms: None,
        by: None,
        notification: None,
        kind: None,
        place: None,
    }
}

fn view() -> TraceView {
    let both = ["bob@example.com", "eve@dead.example"];
    let answered = |event: EventView, reply: &str| EventView {
        remote: Some("mx.example.com [192.0.2.25]".into()),
        reply: Some(reply.into()),
        ms: Some(12),
        ..event
    };
    let by = |event: EventView| EventView { by: Some("uid 0".into()), ..event };
    TraceView {
        id: "0000000000001".parse().expect("valid"),
        host: "mx.example.org".into(),
        hostname: None,
        mesh: None,
        message_id: Some("1.2@app.example.org".into()),
        from: Some("app@example.org".into()),
        size: Some(1234),
        origin: Some(OriginView {
            peer: Some("192.0.2.9".into()),
            helo: Some("client.example".into()),
            user: Some("app".into()),
            protocol: "ESMTPSA".into(),
            session: "67-1".into(),
        }),
        events: vec![
            event(0, "accepted", &both),
            answered(event(20, "delivered", &both[..1]), "250 2.0.0 Ok: queued as 4F2"),
            answered(event(30, "deferred", &both[1..]), "451 4.7.1 \u{1b}[2JGreylisted"),
            by(event(40, "held", &both)),
            by(event(50, "released", &both)),
            EventView {
                remote: Some("hub (k5x2q7ab)".into()),
                reply: Some("451 4.4.1 no answer".into()),
                ..event(55, "diverted", &both[1..])
            },
            event(60, "expired", &both[1..]),
            EventView {
                notification: Some("0000000000002".parse().expect("valid")),
                kind: Some("failure".into()),
                ..event(70, "notified", &both[1..])
            },
            event(80, "retired", &[]),
        ],
        events_more: 0,
        queued: None,
        waits: Vec::new(),
    }
}

fn shown(look: Look, view: &TraceView) -> String {
    let mut out = Vec::new();
    for story in stories(std::slice::from_ref(view), &[]) {
        show(&mut out, look, &story, NOW.plus(HOUR_MS)).expect("written");
    }
    String::from_utf8(out).expect("UTF-8")
}

#[test]
fn a_timeline_on_a_terminal() {
    let want = "\
0000000000001 at mx.example.org from app@example.org, 1.2 kB, Message-ID <1.2@app.example.org>
  2027-01-15T08:00:00.000Z  accepted from user app at 192.0.2.9 (ESMTPSA, client.example, session 67-1), for \
bob@example.com, eve@dead.example
  2027-01-15T08:00:00.020Z  delivered bob@example.com: 250 2.0.0 Ok: queued as 4F2 (mx.example.com [192.0.2.25], 12 ms)
  2027-01-15T08:00:00.030Z  deferred eve@dead.example: 451 4.7.1 \\u001b[2JGreylisted (mx.example.com [192.0.2.25], 12 ms)
  2027-01-15T08:00:00.040Z  held by uid 0: no attempt until it is released
  2027-01-15T08:00:00.050Z  released by uid 0
  2027-01-15T08:00:00.055Z  another way for eve@dead.example: hub (k5x2q7ab) cannot be reached: 451 4.4.1 no answer
  2027-01-15T08:00:00.060Z  given up, its time is over: eve@dead.example
  2027-01-15T08:00:00.070Z  sender told by 0000000000002 of its failure: eve@dead.example
  2027-01-15T08:00:00.080Z  left the queue
";
    assert_eq!(shown(Look::Table, &view()), want);
}

#[test]
fn a_timeline_in_a_pipe() {
    let text = shown(Look::Plain, &view());
    assert_eq!(text.lines().count(), 9);
    let line = "2027-01-15T08:00:00.020Z\tmx.example.org\t0000000000001\tdelivered\tbob@example.com\t\
                mx.example.com [192.0.2.25]\t250 2.0.0 Ok: queued as 4F2";
    assert_eq!(text.lines().nth(1), Some(line));
    assert!(text.lines().all(|line| line.split('\t').count() == 7), "{text}");
}

#[test]
fn what_is_queued_is_said_with_what_it_waits_for() {
    let entry = entry(1, 1, "app@example.org", &[("bob@example.com", 2)]);
    let mut view = view();
    view.add_queued(&entry, Vec::new());
    let text = shown(Look::Table, &view);
    let (_, queued) = text.split_once("still queued at mx.example.org:\n").expect("it is queued");
    assert!(queued.contains("bob@example.com: tried 2 times; the next attempt is due now"), "{queued}");
    assert!(queued.contains("450 4.2.0 Greylisted, come back later (mx1.example.com [198.51.100.7]"), "{queued}");
    let plain = shown(Look::Plain, &view);
    let last = plain.lines().last().expect("a line");
    assert!(last.starts_with("2027-01-15T08:30:00.000Z\tmx.example.org\t0000000000001\tqueued\tbob@"), "{last}");
}

#[test]
fn what_several_hosts_say_is_one_timeline_and_who_is_silent_is_named() {
    let id = "aaaqeayeaudaocajbifqydiob4".to_owned();
    let mesh = |visited: &[&str]| PassageView {
        id: id.clone(),
        origin: "origin".into(),
        visited: visited.iter().map(|node| (*node).to_owned()).collect(),
    };
    let handed = EventView {
        remote: Some("b (k5x2q7ab) [192.0.2.2]".into()),
        reply: Some("250 2.0.0 Accepted as 0000000000009".into()),
        ..event(20, "delivered", &["bob@c.example"])
    };
    let a = TraceView {
        mesh: Some(mesh(&[])),
        host: "a".into(),
        events: vec![event(0, "accepted", &["bob@c.example"]), handed],
        ..view()
    };
    let b = TraceView {
        mesh: Some(mesh(&["n1"])),
        host: "b".into(),
        events: vec![event(19, "accepted", &["bob@c.example"])],
        ..view()
    };
    let silent = SilentView {
        host: "c".into(),
        node: "n3".into(),
        mesh_id: id.clone(),
        at: Some(Time(NOW.plus(30))),
        why: "it did not answer in time".into(),
    };
    let (views, silent) = ([b, a], [silent]);
    let stories = stories(&views, &silent);
    assert_eq!(stories.len(), 1);
    let lines = timeline(&stories[0], NOW);
    let story: Vec<&str> = lines[2..].iter().map(|line| line.trim()).collect();
    assert!(story[0].starts_with("2027-01-15T08:00:00.000Z  a  accepted"), "{lines:?}");
    assert!(story[1].starts_with("2027-01-15T08:00:00.019Z  b  accepted"), "{lines:?}");
    assert!(story[2].starts_with("2027-01-15T08:00:00.020Z  a  delivered bob@c.example: 250 2.0.0"), "{lines:?}");
    let want = "c: last known: handed over to it at 2027-01-15T08:00:00.030Z; what came of it there is not known: it did \
                not answer in time";
    assert_eq!(story[3..], [want]);
    // The same order in a pipe.
    let mut out = Vec::new();
    show(&mut out, Look::Plain, &stories[0], NOW).expect("written");
    let out = String::from_utf8(out).expect("UTF-8");
    let columns = |line: &str| line.split('\t').skip(1).step_by(2).take(2).collect::<Vec<_>>().join(" ");
    let told: Vec<String> = out.lines().map(columns).collect();
    assert_eq!(told, ["a accepted", "b accepted", "a delivered", "c unknown"], "{out}");
}

#[test]
fn nothing_found_says_what_was_searched() {
    let args = Args { what: "\u{1b}bob@example.com".into(), since: None, limit: None, otlp: None };
    let config = Config::default();
    let searched = SearchedView {
        host: "mx.example.org".into(),
        is_on: true,
        reaches: Some(Time(NOW)),
        octets: 3_200_000,
        ..SearchedView::default()
    };
    let want = "nothing is known of \\u001bbob@example.com: the journal of mx.example.org was searched, which reaches \
                back to 2027-01-15T08:00:00.000Z (3.2 MB)";
    assert_eq!(nothing(&args, &searched, &config).message(), want);
    let empty = SearchedView { reaches: None, ..searched };
    assert!(nothing(&args, &empty, &config).message().ends_with("the journal of mx.example.org is empty"));
    let off = nothing(&args, &SearchedView::default(), &config);
    assert!(off.message().ends_with("the journal is off"));
}

#[test]
fn spans_are_one_trace_in_which_each_hop_follows_from_the_one_before() {
    let mesh_id = "agraitbkbdpfqsm3lx7yc3wu2u";
    let passage = PassageView { id: mesh_id.into(), origin: "o".into(), visited: Vec::new() };
    let first = TraceView {
        host: "a.test".into(),
        mesh: Some(passage.clone()),
        events: vec![
            event(0, "accepted", &["bob@b.example"]),
            EventView {
                remote: Some("b (7luypcad) [192.0.2.2:25]".into()),
                reply: Some("250 2.0.0 Ok".into()),
                ms: Some(12),
                ..event(20, "delivered", &["bob@b.example"])
            },
            event(20, "retired", &[]),
        ],
        ..view()
    };
    let second = TraceView {
        id: "0000000000002".parse().expect("valid"),
        host: "b".into(),
        mesh: Some(passage),
        events: vec![event(15, "accepted", &["bob@b.example"]), event(30, "failed", &["bob@b.example"])],
        ..view()
    };
    let request = otlp::request(&[&first, &second]);
    let span = |at: usize| &request["resourceSpans"][at]["scopeSpans"][0]["spans"][0];
    let id: postroad_mesh::MeshMessageId = mesh_id.parse().expect("an id");
    let hex: String = id.octets().iter().map(|octet| format!("{octet:02x}")).collect();
    assert_eq!([&span(0)["traceId"], &span(1)["traceId"]], [&hex.as_str(), &hex.as_str()]);
    assert_eq!((hex.len(), span(0)["spanId"].as_str().map(str::len)), (32, Some(16)));
    assert_eq!((&span(1)["parentSpanId"], &span(0)["parentSpanId"]), (&span(0)["spanId"], &serde_json::Value::Null));
    assert_eq!((&span(0)["status"]["code"], &span(1)["status"]["code"]), (&1.into(), &2.into()));
    let from = u128::from(NOW.0) * 1_000_000;
    assert_eq!(span(0)["startTimeUnixNano"], from.to_string().as_str());
    assert_eq!(span(0)["endTimeUnixNano"], (from + 20_000_000).to_string().as_str());
    assert_eq!(span(0)["events"][1]["attributes"][2]["value"]["stringValue"], "250 2.0.0 Ok");
    assert_eq!(request["resourceSpans"][1]["resource"]["attributes"][1]["value"]["stringValue"], "b");
    // What never was in a mesh has a trace of its own, the same whenever it is asked for.
    let alone =
        |view: &TraceView| otlp::request(&[view])["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["traceId"].clone();
    assert_eq!(alone(&view()), alone(&view()));
    assert_ne!(alone(&view()), alone(&TraceView { host: "other.test".into(), ..view() }));
}
