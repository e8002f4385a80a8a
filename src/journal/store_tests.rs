//! Files of the journal: their bounds, torn ends, damage, and the format that is frozen.

use std::path::Path;

use postroad_queue::{Item, Origin, QueueId, State};
use postroad_smtp::{Envelope, MailParams, Recipient, Reply, Status};

use super::*;
use crate::journal::event::{Kind, Note, put_acceptance, put_note};
use crate::journal::{Key, Question, search};

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
const HOUR_MS: u64 = 3_600_000;
const LIMITS: Limits = Limits { octets_max: 64 * 1024, age_ms: 16 * HOUR_MS };
const SAMPLE: &str = "tests/samples/journal-version-1";

fn batch(notes: &[(UnixMillis, u64)]) -> Vec<u8> {
    let mut batch = vec![0; segment::BATCH_HEAD_OCTETS];
    for (at, id) in notes {
        put_note(&mut batch, *at, QueueId::from_u64(*id), Kind::Retired, &Note::default());
    }
    segment::seal(&mut batch);
    batch
}

fn count(dir: &Path, now: UnixMillis, id: u64) -> (usize, u64) {
    let question = Question { key: Key::Queue(QueueId::from_u64(id)), since: UnixMillis(0), messages_max: 10 };
    let found = search(dir, LIMITS, now, &question).expect("readable");
    (found.messages.iter().map(|message| message.events.len()).sum(), found.damaged)
}

fn octets(dir: &Path) -> u64 {
    segment::list(dir).expect("readable").iter().map(|segment| segment.path.metadata().expect("there").len()).sum()
}

#[test]
fn the_files_stay_within_their_bounds_and_the_newest_events_stay() {
    let dir = tempfile::tempdir().expect("scratch");
    let mut store = Store::open(dir.path().join("journal"), LIMITS).expect("nothing there");
    for n in 0..2000 {
        store.append(&batch(&[(NOW, n); 8]), NOW).expect("writable");
        assert!(octets(&store.dir) <= LIMITS.octets_max, "after {n}");
    }
    assert!(octets(&store.dir) > LIMITS.octets_max / 2, "most of the room is used");
    assert!(store.segments.len() as u64 >= SEGMENTS_MIN / 2);
    assert_eq!((count(&store.dir, NOW, 1999), count(&store.dir, NOW, 0)), ((8, 0), (0, 0)));
}

#[test]
fn what_is_too_old_is_neither_found_nor_kept() {
    let dir = tempfile::tempdir().expect("scratch");
    let mut store = Store::open(dir.path().to_owned(), LIMITS).expect("nothing there");
    store.append(&batch(&[(NOW, 1)]), NOW).expect("writable");
    let later = NOW.plus(2 * HOUR_MS);
    store.append(&batch(&[(later, 2)]), later).expect("writable");
    store.append(&batch(&[(later, 2)]), later.plus(HOUR_MS)).expect("writable");
    assert_eq!(store.segments.len(), 2, "a segment ends after its share of the time");
    let at = store.forgets_at().expect("something is kept");
    assert!(at > later.plus(LIMITS.age_ms) && at < later.plus(LIMITS.age_ms + 2));
    store.forget(UnixMillis(at.0 - 1));
    assert_eq!(store.segments.len(), 2);
    store.forget(at);
    assert_eq!((store.segments.len(), octets(dir.path())), (1, store.octets()));
    store.forget(later.plus(10 * LIMITS.age_ms));
    assert_eq!((store.forgets_at(), octets(dir.path())), (None, 0));
    store.append(&batch(&[(later, 3)]), later).expect("a new file");
    assert_eq!(count(dir.path(), later, 3), (1, 0));
}

#[test]
fn a_torn_end_is_cut_off_wherever_it_tore_and_what_stands_before_it_stays() {
    let whole = tempfile::tempdir().expect("scratch");
    let mut store = Store::open(whole.path().to_owned(), LIMITS).expect("nothing there");
    store.append(&batch(&[(NOW, 1)]), NOW).expect("writable");
    let good = store.segments[0].octets as usize;
    store.append(&batch(&[(NOW, 1), (NOW, 1)]), NOW).expect("writable");
    let written = fs::read(&store.segments[0].path).expect("readable");
    for end in good..written.len() {
        let dir = tempfile::tempdir().expect("scratch");
        fs::write(dir.path().join("0000000001.journal"), &written[..end]).expect("writable");
        assert_eq!(count(dir.path(), NOW, 1), (1, 0), "cut at {end}, read without opening");
        let mut store = Store::open(dir.path().to_owned(), LIMITS).expect("readable");
        assert_eq!((octets(dir.path()), store.last), (good as u64, NOW), "cut at {end}");
        store.append(&batch(&[(NOW, 1)]), NOW).expect("writable");
        assert_eq!((count(dir.path(), NOW, 1), store.segments.len()), ((2, 0), 1), "cut at {end}");
    }
}

#[test]
fn a_damaged_batch_is_passed_over_and_no_octet_of_it_is_believed() {
    let dir = tempfile::tempdir().expect("scratch");
    let mut store = Store::open(dir.path().to_owned(), LIMITS).expect("nothing there");
    store.append(&batch(&[(NOW, 1)]), NOW).expect("writable");
    let (from, path) = (store.segments[0].octets as usize, store.segments[0].path.clone());
    store.append(&batch(&[(NOW, 1)]), NOW).expect("writable");
    let to = store.segments[0].octets as usize;
    store.append(&batch(&[(NOW, 1)]), NOW).expect("writable");
    let written = fs::read(&path).expect("readable");
    for at in from..to {
        let mut damaged = written.clone();
        damaged[at] ^= 0x10;
        fs::write(&path, &damaged).expect("writable");
        let (events, batches) = count(dir.path(), NOW, 1);
        // A length that is wrong hides what stands behind it.
        assert!((events, batches) == (2, 1) || (at < from + 4 && events == 1), "octet {at}: {events}, {batches}");
    }
}

#[test]
fn files_of_others_and_of_later_versions_are_left_alone() {
    let dir = tempfile::tempdir().expect("scratch");
    let mut later = b"PRJl".to_vec();
    later.extend_from_slice(&[2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    for (name, octets) in [("notes", &b"x"[..]), ("0000000007.journal", &later), ("0000000009.journal", b"")] {
        fs::write(dir.path().join(name), octets).expect("writable");
    }
    let mut store = Store::open(dir.path().to_owned(), LIMITS).expect("readable");
    store.append(&batch(&[(NOW, 1)]), NOW).expect("writable");
    assert!(dir.path().join("0000000010.journal").exists() && count(dir.path(), NOW, 1) == (1, 0));
    assert_eq!(fs::read(dir.path().join("0000000007.journal")).expect("there"), later);
}

/// What the sample of the format holds; see `docs/journal-format.md`.
fn sample_batch() -> Vec<u8> {
    let recipients = ["bob@example.com", "carol@example.com"].map(|to| Recipient::new(to.parse().expect(to)));
    let from = "app@example.org".parse().expect("valid");
    let origin = Origin {
        peer: Some("2001:db8::7".parse().expect("valid")),
        helo: Some("client.example".into()),
        user: Some("app".into()),
        protocol: "ESMTPSA".into(),
        session: "6b49d200-1".into(),
    };
    let item = Item {
        id: QueueId::next(QueueId::from_u64(0), NOW),
        arrived: NOW,
        envelope: Envelope::new(from, MailParams::default(), recipients.to_vec()).expect("recipients"),
        origin,
        content_octets: 1234,
        state: State::fresh(2, NOW, NOW.plus(1)),
    };
    let mut batch = vec![0; segment::BATCH_HEAD_OCTETS];
    put_acceptance(&mut batch, &item, b"1.2@app.example.org");
    let note = |batch: &mut Vec<u8>, after_ms, kind, note: &Note<'_>| {
        put_note(batch, NOW.plus(after_ms), item.id, kind, note);
    };
    let taken = Reply::of(250, Some(Status::new(2, 0, 0)), "Ok: queued as 4F2");
    let greylisted = Reply::of(451, Some(Status::new(4, 7, 1)), "Greylisted");
    let remote = Some("mx.example.com [192.0.2.25]");
    let at = |places, reply| Note { places, remote, reply: Some(reply), took_ms: Some(12), ..Note::default() };
    note(&mut batch, 20, Kind::Delivered, &at(&[0], &taken));
    note(&mut batch, 20, Kind::Deferred, &at(&[1], &greylisted));
    note(&mut batch, 1000, Kind::Held, &Note { by: Some("uid 0"), ..Note::default() });
    note(&mut batch, 2000, Kind::Released, &Note { by: Some("uid 0"), ..Note::default() });
    note(&mut batch, 3000, Kind::Expired, &Note { places: &[1], ..Note::default() });
    let other = Some(QueueId::next(item.id, NOW.plus(3001)));
    note(&mut batch, 3001, Kind::Notified, &Note { places: &[1], other, word: Some("failure"), ..Note::default() });
    note(&mut batch, 3002, Kind::Retired, &Note::default());
    segment::seal(&mut batch);
    batch
}

#[test]
fn the_sample_of_version_1_is_still_what_is_written() {
    let dir = tempfile::tempdir().expect("scratch");
    let mut store = Store::open(dir.path().to_owned(), LIMITS).expect("nothing there");
    store.append(&sample_batch(), NOW).expect("writable");
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join(SAMPLE).join("0000000001.journal");
    let want = fs::read(&sample).unwrap_or_else(|error| panic!("{}: {error}", sample.display()));
    assert_eq!(fs::read(&store.segments[0].path).expect("written"), want);
}
