//! The journal's format is frozen: the sample reads as it did when it was written. A new version gets a
//! sample of its own beside it.

use std::path::Path;

use postroad::journal::{Key, Kind, Limits, Question, search};
use postroad_queue::{Origin, QueueId, UnixMillis};

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

#[test]
fn the_sample_of_version_1_reads_as_it_was_written() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/samples/journal-version-1");
    let limits = Limits { octets_max: 16 << 20, age_ms: 86_400_000 };
    let question = Question { key: Key::Text("CAROL@example.com".into()), since: UnixMillis(0), messages_max: 9 };
    let found = search(&dir, limits, NOW.plus(1), &question).expect("readable");
    assert_eq!((found.reaches, found.damaged, found.more), (Some(NOW), 0, 0));
    let [message] = &found.messages[..] else { panic!("{found:?}") };
    assert_eq!(message.id, QueueId::next(QueueId::from_u64(0), NOW));
    let accepted = message.accepted.as_ref().expect("accepted");
    assert_eq!((accepted.at, accepted.octets, accepted.from.as_str()), (NOW, 1234, "app@example.org"));
    assert_eq!(accepted.message_id.as_deref(), Some("1.2@app.example.org"));
    assert_eq!(accepted.recipients, ["bob@example.com", "carol@example.com"]);
    let origin = Origin {
        peer: Some("2001:db8::7".parse().expect("valid")),
        helo: Some("client.example".into()),
        user: Some("app".into()),
        protocol: "ESMTPSA".into(),
        session: "6b49d200-1".into(),
    };
    assert_eq!(accepted.origin, origin);
    let told: Vec<_> =
        message.events.iter().map(|event| (event.kind, event.at.since(NOW), &event.places[..])).collect();
    let want: [(Kind, u64, &[usize]); 7] = [
        (Kind::Delivered, 20, &[0]),
        (Kind::Deferred, 20, &[1]),
        (Kind::Held, 1000, &[]),
        (Kind::Released, 2000, &[]),
        (Kind::Expired, 3000, &[1]),
        (Kind::Notified, 3001, &[1]),
        (Kind::Retired, 3002, &[]),
    ];
    assert_eq!(told, want);
    let first = &message.events[0];
    assert_eq!(first.remote.as_deref(), Some("mx.example.com [192.0.2.25]"));
    assert_eq!((first.reply.as_deref(), first.took_ms), (Some("250 2.0.0 Ok: queued as 4F2"), Some(12)));
    assert_eq!(message.events[2].by.as_deref(), Some("uid 0"));
    let notified = &message.events[5];
    assert_eq!(notified.other, Some(QueueId::next(message.id, NOW.plus(3001))));
    assert_eq!(notified.word.as_deref(), Some("failure"));
}
