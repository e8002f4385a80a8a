//! What is found in a journal, by each kind of name.

use std::path::PathBuf;

use postroad_queue::{Item, Origin, State};
use postroad_smtp::{Envelope, MailParams, Recipient};
use tempfile::TempDir;

use super::*;
use crate::journal::event::{Kind, Note, put_acceptance, put_note};
use crate::journal::store::Store;

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
const LIMITS: Limits = Limits { octets_max: 256 << 20, age_ms: 15 * 86_400_000 };
const MINUTE_MS: u64 = 60_000;

fn id(n: u64) -> QueueId {
    QueueId::next(QueueId::from_u64(0), NOW.plus(n * MINUTE_MS))
}

/// A journal of so many messages, a minute apart, from `app` to one of ten recipients each.
fn journal(messages: u64) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("scratch");
    let mut store = Store::open(dir.path().to_owned(), LIMITS).expect("nothing there");
    for n in 0..messages {
        let arrived = NOW.plus(n * MINUTE_MS);
        let to = Recipient::new(format!("User{}@example.com", n % 10).parse().expect("valid"));
        let from = "app@example.org".parse().expect("valid");
        let item = Item {
            id: id(n),
            arrived,
            envelope: Envelope::new(from, MailParams::default(), vec![to]).expect("a recipient"),
            origin: Origin::default(),
            content_octets: 1,
            state: State::fresh(1, arrived, arrived),
        };
        let mut batch = vec![0; segment::BATCH_HEAD_OCTETS];
        // As it comes when an attempt is faster than the session.
        put_note(&mut batch, arrived.plus(5), item.id, Kind::Retired, &Note::default());
        put_note(&mut batch, arrived.plus(4), item.id, Kind::Delivered, &Note::default());
        put_acceptance(&mut batch, &item, format!("{n}.1@app.example.org").as_bytes());
        segment::seal(&mut batch);
        store.append(&batch, arrived).expect("writable");
    }
    let path = dir.path().to_owned();
    (dir, path)
}

fn ask(dir: &Path, now: UnixMillis, key: Key, since: UnixMillis, messages_max: usize) -> Found {
    search(dir, LIMITS, now, &Question { key, since, messages_max }).expect("readable")
}

fn text(text: &str) -> Key {
    Key::Text(text.to_owned())
}

#[test]
fn a_message_is_found_by_each_of_its_names_with_all_that_happened_in_order() {
    let (_kept, dir) = journal(50);
    let now = NOW.plus(50 * MINUTE_MS);
    for key in [Key::Queue(id(7)), text("7.1@app.example.org"), text("7.1@APP.EXAMPLE.ORG")] {
        let found = ask(&dir, now, key.clone(), UnixMillis(0), 10);
        let [message] = &found.messages[..] else { panic!("{key:?}: {found:?}") };
        assert_eq!(message.id, id(7));
        assert_eq!(message.accepted.as_ref().expect("accepted").recipients, ["User7@example.com"]);
        let kinds: Vec<Kind> = message.events.iter().map(|event| event.kind).collect();
        assert_eq!(kinds, [Kind::Delivered, Kind::Retired], "{key:?}");
    }
    let found = ask(&dir, now, text("user3@example.com"), UnixMillis(0), 10);
    let ids: Vec<QueueId> = found.messages.iter().map(|message| message.id).collect();
    assert_eq!(ids, [3, 13, 23, 33, 43].map(id));
    assert_eq!((found.more, found.damaged, found.reaches), (0, 0, Some(NOW)));
}

#[test]
fn the_newest_are_shown_and_the_rest_counted() {
    let (_kept, dir) = journal(50);
    let now = NOW.plus(50 * MINUTE_MS);
    let found = ask(&dir, now, text("app@example.org"), UnixMillis(0), 3);
    let ids: Vec<QueueId> = found.messages.iter().map(|message| message.id).collect();
    assert_eq!((ids, found.more), ([47, 48, 49].map(id).to_vec(), 47));
    let found = ask(&dir, now, text("app@example.org"), NOW.plus(48 * MINUTE_MS), 9);
    assert_eq!((found.messages.len(), found.more), (2, 0), "only since then");
}

#[test]
fn what_is_not_there_is_not_found_and_the_reach_is_said() {
    let (_kept, dir) = journal(3);
    for key in [Key::Queue(id(99)), text("nobody@example.com"), text("")] {
        let found = ask(&dir, NOW, key, UnixMillis(0), 10);
        assert_eq!((found.messages.len(), found.reaches), (0, Some(NOW)));
        assert!(found.octets > 100);
    }
    let late = NOW.plus(LIMITS.age_ms + 90_000);
    let found = ask(&dir, late, text("app@example.org"), UnixMillis(0), 10);
    assert_eq!(found.messages.len(), 1, "the others are too old to be shown");
    assert_eq!(found.reaches, Some(NOW.plus(90_000)));
    let none = ask(&dir.join("none"), NOW, text("app@example.org"), UnixMillis(0), 10);
    assert_eq!(none, Found::default());
}
