//! Events written and read back, and octets that are none.

use postroad_queue::State;
use postroad_smtp::{Envelope, MailParams, Recipient, Status};
use proptest::prelude::*;

use super::*;

const AT: UnixMillis = UnixMillis(1_800_000_000_000);
const ID: QueueId = QueueId::from_u64(77);

fn item(from: &str, to: &[impl AsRef<str>], origin: Origin) -> Item {
    let recipients = to.iter().map(|to| Recipient::new(to.as_ref().parse().expect("valid"))).collect();
    let envelope = Envelope::new(from.parse().expect("valid"), MailParams::default(), recipients).expect("some");
    let state = State::fresh(to.len(), AT, AT.plus(1));
    Item { id: ID, arrived: AT, envelope, origin, content_octets: 1234, state }
}

fn accepted(octets: &[u8]) -> Accepted {
    let mut accepted = Accepted::default();
    records(octets).for_each(|raw| raw.add_to(&mut accepted));
    accepted
}

#[test]
fn an_acceptance_reads_back() {
    let origin = Origin {
        peer: Some("192.0.2.9".parse().expect("valid")),
        helo: Some("client.example".into()),
        user: Some("app".into()),
        protocol: "ESMTPSA".into(),
        session: "67-1".into(),
    };
    let to = ["Bob@example.com", "postmaster"];
    let mut out = Vec::new();
    put_acceptance(&mut out, &item("app@example.org", &to, origin.clone()), b"1.2@app.example.org");
    let want = Accepted {
        at: AT,
        passage: None,
        message_id: Some("1.2@app.example.org".into()),
        from: "app@example.org".into(),
        recipients: to.map(str::to_owned).to_vec(),
        octets: 1234,
        origin: origin.clone(),
    };
    assert_eq!(accepted(&out), want);
    let raw = records(&out).next().expect("one record");
    for name in ["1.2@APP.example.org", "app@example.org", "bob@EXAMPLE.com"] {
        assert!(raw.names(name.as_bytes()), "{name}");
    }
    for name in ["client.example", "app", "67-1", "ob@example.com", ""] {
        assert!(!raw.names(name.as_bytes()), "{name}");
    }
    out.clear();
    put_acceptance(&mut out, &item("", &to, origin), b"");
    assert_eq!(accepted(&out), Accepted { message_id: None, from: "<>".into(), ..want });
}

#[test]
fn a_passage_is_kept_and_its_name_finds_the_message() {
    let mut item = item("app@example.org", &["bob@example.com"], Origin::default());
    item.envelope.params.passage = "abc234:n5x:v1,v2".parse().ok();
    let mut out = Vec::new();
    put_acceptance(&mut out, &item, b"1.2@app.example.org");
    assert_eq!(accepted(&out).passage.as_deref(), Some("abc234:n5x:v1,v2"));
    let raw = records(&out).next().expect("one record");
    assert!(raw.is_in_mesh_as(b"abc234"));
    for name in ["abc", "abc234:", "n5x", "1.2@app.example.org", ""] {
        assert!(!raw.is_in_mesh_as(name.as_bytes()), "{name}");
    }
}

#[test]
fn very_many_recipients_stand_in_several_records() {
    let to: Vec<String> = (0..5000).map(|n| format!("recipient-{n}@example.com")).collect();
    let mut out = Vec::new();
    put_acceptance(&mut out, &item("", &to, Origin::default()), b"");
    assert!(records(&out).count() > 1 && records(&out).all(|raw| raw.fields.len() < 2 * RECORD_OCTETS_FULL));
    assert_eq!(accepted(&out).recipients, to);
    assert!(records(&out).any(|raw| raw.names(b"recipient-4999@example.com")));
}

#[test]
fn notes_read_back_and_long_texts_are_cut() {
    let long = "x".repeat(3 * TEXT_OCTETS_MAX);
    let reply = Reply::of(451, Some(Status::new(4, 7, 1)), "").with_text(&long);
    let places: Vec<usize> = (0..1000).chain([1300, 70_000]).collect();
    let note = Note {
        places: &places,
        remote: Some("mx.example.com [192.0.2.1]"),
        reply: Some(&reply),
        said: None,
        by: Some(&long),
        other: Some(QueueId::from_u64(9)),
        took_ms: Some(70_000),
        word: Some("delay"),
    };
    let mut out = Vec::new();
    put_note(&mut out, AT, ID, Kind::Deferred, &note);
    put_note(&mut out, AT.plus(1), ID, Kind::Retired, &Note::default());
    let events: Vec<Event> = records(&out).filter_map(|raw| raw.event()).collect();
    let [first, second] = &events[..] else { panic!("{events:?}") };
    assert_eq!((first.kind, first.at, first.id, &first.places), (Kind::Deferred, AT, ID, &places));
    assert_eq!((first.other, first.took_ms, first.word.as_deref()), (note.other, Some(70_000), Some("delay")));
    assert_eq!((first.remote.as_deref(), first.by.as_ref().map(String::len)), (note.remote, Some(TEXT_OCTETS_MAX)));
    let text = first.reply.as_deref().expect("a reply");
    assert!(text.starts_with("451 4.7.1 xxx") && text.len() == TEXT_OCTETS_MAX, "{text}");
    assert_eq!((second.kind, second.at, second.places.len(), &second.reply), (Kind::Retired, AT.plus(1), 0, &None));
}

#[test]
fn what_was_said_stands_where_a_reply_does() {
    let note = Note { remote: Some("b (k5x2q7ab)"), said: Some("451 4.4.1 no answer"), ..Note::default() };
    let mut out = Vec::new();
    put_note(&mut out, AT, ID, Kind::Diverted, &note);
    let event = records(&out).find_map(|raw| raw.event()).expect("one");
    assert_eq!((event.kind, event.remote.as_deref(), event.reply.as_deref()), (Kind::Diverted, note.remote, note.said));
}

#[test]
fn every_kind_has_a_number_of_its_own() {
    for kind in Kind::ALL {
        assert_eq!(Kind::from_octet(kind as u8), Some(kind));
    }
    assert_eq!((Kind::from_octet(0), Kind::from_octet(99)), (None, None));
}

#[test]
fn a_later_version_s_kinds_and_fields_are_skipped() {
    let mut out = Vec::new();
    put_note(&mut out, AT, ID, Kind::Delivered, &Note { remote: Some("a"), ..Note::default() });
    // A field behind those known, in the same record.
    out.extend_from_slice(&[200, 2, 0, 1, 1]);
    let length = u32::try_from(out.len() - 4).expect("short");
    out[..4].copy_from_slice(&length.to_le_bytes());
    let unknown = out.len();
    put_note(&mut out, AT, ID, Kind::Held, &Note::default());
    out[unknown + 4] = 200;
    put_note(&mut out, AT, ID, Kind::Released, &Note::default());
    let events: Vec<Kind> = records(&out).filter_map(|raw| raw.event()).map(|event| event.kind).collect();
    assert_eq!(events, [Kind::Delivered, Kind::Released]);
}

proptest! {
    #[test]
    fn octets_that_are_no_events_harm_nothing(octets: Vec<u8>, flip in 0usize..400, bit in 0u8..8) {
        let walk = |octets: &[u8]| {
            let mut accepted = Accepted::default();
            for raw in records(octets) {
                raw.add_to(&mut accepted);
                let _ = (raw.event(), raw.names(b"x"), raw.is_in_mesh_as(b"x"));
            }
        };
        walk(&octets);
        let mut out = Vec::new();
        let note = Note { places: &[1, 2, 900], remote: Some("a"), by: Some("b"), ..Note::default() };
        for _ in 0..5 {
            put_note(&mut out, AT, ID, Kind::Failed, &note);
        }
        if let Some(octet) = out.get_mut(flip) {
            *octet ^= 1 << bit;
        }
        walk(&out);
    }
}
