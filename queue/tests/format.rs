//! The format is frozen: the sample queue in `tests/samples/` reads as it did when it was written.
//!
//! A new format version gets a sample of its own beside the old one, which must go on reading.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use postroad_queue::{
    History, Item, Options, Origin, OsFs, Queue, QueueId, RecipientState, Report, Snapshot, State, UnixMillis,
};
use postroad_smtp::{Envelope, MailParams, Notify, OriginalRecipient, Recipient, Reply, Ret, ReversePath, Status};

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
const EXPIRES: UnixMillis = UnixMillis(1_800_432_000_000);

fn sample(version: u16) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/samples/version-{version}"))
}

fn options() -> Options {
    Options { segment_octets: 2048, inline_octets_max: 700, reserve_octets: 0, ..Options::default() }
}

fn recipient(text: &str) -> Recipient {
    Recipient::new(text.parse().expect("path"))
}

fn report(code: u16, status: Status, text: &'static str) -> Report {
    let reply = Reply::of(code, Some(status), text);
    Report { at: NOW.plus(60_000), remote: Some("mx.example.org [192.0.2.25]".into()), reply }
}

fn origin() -> Origin {
    Origin {
        peer: Some("2001:db8::7".parse().expect("address")),
        helo: Some("client.example.net".into()),
        user: Some("alice".into()),
        protocol: "ESMTPSA".into(),
        session: "9f3c01".into(),
    }
}

type Message = (Envelope, Origin, Vec<u8>, State);

/// The messages of the samples: envelope, content, and the state recorded last.
fn messages() -> Vec<Message> {
    let plain =
        Envelope::new(ReversePath::Null, MailParams::default(), vec![recipient("Postmaster")]).expect("recipient");
    let mut all = recipient("\"a b\"@example.org");
    all.notify = Some(Notify { success: true, failure: true, delay: false });
    all.original = Some(OriginalRecipient { addr_type: "utf-8".into(), address: "jürgen@example.org".into() });
    let params = MailParams {
        eight_bit: true,
        smtputf8: true,
        ret: Some(Ret::Headers),
        envid: Some("QQ314159".into()),
        ..MailParams::default()
    };
    let from = "jürgen@example.net".parse().expect("path");
    let rich = Envelope::new(from, params, vec![all, recipient("b@[192.0.2.1]"), recipient("c@example.org")])
        .expect("recipient");
    let last = Some(report(451, Status::new(4, 7, 1), "Greylisted,\ntry later"));
    let recipients = vec![
        RecipientState::Delivered { report: report(250, Status::new(2, 0, 0), "queued as 1"), notified: true },
        RecipientState::Failed { report: report(550, Status::new(5, 1, 1), "no such user"), notified: false },
        RecipientState::Pending { attempts: 2, due: NOW.plus(900_000), last, earlier: History::default() },
    ];
    let state = State { held: true, delay_notified: true, expires: EXPIRES, recipients };
    let text = b"Subject: one\r\n\r\n.dot\r\n".to_vec();
    let long: Vec<u8> = (0..40).flat_map(|n| format!("line {n} of a longer text\r\n").into_bytes()).collect();
    let dsn = Origin { protocol: "dsn".into(), session: "local".into(), ..Origin::default() };
    vec![
        (plain.clone(), dsn.clone(), text, State::fresh(1, NOW, EXPIRES)),
        (rich, origin(), long, state),
        (plain.clone(), dsn.clone(), Vec::new(), State::fresh(1, NOW, EXPIRES)),
        (plain, dsn, vec![b'x'; 650], State::fresh(1, NOW, EXPIRES)),
    ]
}

/// The message that version 2 adds: one with many recipients, whose state is recorded as changes.
fn list() -> Message {
    let recipients = (0..9).map(|n| recipient(&format!("reader{n}@example.org"))).collect();
    let envelope = Envelope::new("list@example.net".parse().expect("path"), MailParams::default(), recipients);
    (envelope.expect("recipients"), origin(), b"Subject: list\r\n\r\n".to_vec(), list_states().pop().expect("three"))
}

fn list_states() -> Vec<State> {
    let last = Some(report(451, Status::new(4, 2, 1), "come back"));
    let mut earlier = History::default();
    earlier.add(report(421, Status::new(4, 3, 2), "closing"));
    let mut state = State::fresh(9, NOW, EXPIRES);
    state.recipients.fill(RecipientState::Pending {
        attempts: 1,
        due: NOW.plus(300_000),
        last,
        earlier: Default::default(),
    });
    let mut states = vec![state.clone()];
    state.recipients[2] = RecipientState::Delivered { report: report(250, Status::new(2, 0, 0), "ok"), notified: true };
    states.push(state.clone());
    state.recipients[8] = RecipientState::Failed { report: report(550, Status::new(5, 1, 1), "no"), notified: false };
    state.delay_notified = true;
    states.push(state);
    states
}

/// The messages in the sample of a version, by their ids.
fn expected(version: u16) -> Vec<(QueueId, Message)> {
    // The third was retired and the fourth submitted behind it.
    let numbered = [0, 1, 3, 4].into_iter().zip(messages()).chain((version > 1).then(|| (5, list())));
    numbered.map(|(n, message)| (QueueId::from_u64((NOW.0 << 20) + n), message)).collect()
}

fn submit(queue: &Queue, (envelope, origin, content, state): Message) -> QueueId {
    let mut draft = queue.draft(NOW).expect("draft");
    let id = draft.id();
    draft.append(&content).expect("append");
    draft.commit(envelope.clone(), origin, EXPIRES, NOW, |result| {
        result.expect("committed");
    });
    queue.flush();
    let states = match envelope.recipients().len() {
        9 => list_states(),
        count => Some(state).filter(|state| *state != State::fresh(count, NOW, EXPIRES)).into_iter().collect(),
    };
    for state in states {
        queue.record(id, state, |result| result.expect("recorded"));
        queue.flush();
    }
    id
}

fn check(version: u16, ids: &[QueueId], load: impl Fn(QueueId) -> (Item, Vec<u8>)) {
    let expected = expected(version);
    assert_eq!(ids, expected.iter().map(|(id, _)| *id).collect::<Vec<_>>());
    for (id, (envelope, origin, content, state)) in expected {
        let expected = Item { id, arrived: NOW, envelope, origin, content_octets: content.len() as u64, state };
        assert_eq!(load(id), (expected, content));
    }
}

fn whole(mut reader: postroad_queue::ContentReader) -> Vec<u8> {
    let mut content = vec![0; reader.octets() as usize + 1];
    let n = reader.read_at(0, &mut content).expect("sound");
    content.truncate(n);
    content
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("directory");
    for entry in fs::read_dir(from).expect("list").map(|entry| entry.expect("entry")) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target)
        } else {
            fs::copy(entry.path(), target).expect("copy");
        }
    }
}

fn read_sample(version: u16) {
    let dir = tempfile::tempdir().expect("scratch");
    let path = dir.path().join("queue");
    copy(&sample(version), &path);
    for summaries in [true, false] {
        if !summaries && version > 1 {
            fs::remove_dir_all(path.join("summary")).expect("summaries");
        }
        let snapshot = Snapshot::read(&path).expect("snapshot");
        assert_eq!(snapshot.damage(), []);
        let ids: Vec<QueueId> = snapshot.ids().collect();
        check(version, &ids, |id| (snapshot.load(id).expect("item"), whole(snapshot.content(id).expect("content"))));
    }
    let (queue, report) = Queue::open(Arc::new(OsFs::open(&path).expect("directory")), options()).expect("queue");
    assert_eq!((report.messages, report.drafts_removed, report.damage), (expected(version).len(), 0, Vec::new()));
    check(version, &queue.ids(None, 10), |id| {
        ((*queue.load(id).expect("item")).clone(), whole(queue.content(id).expect("content")))
    });
    drop(queue);
    let whole = Snapshot::read_whole(&path, &mut |_, _| {}).expect("snapshot");
    assert_eq!((whole.len(), whole.damage()), (expected(version).len(), &[][..]));
}

#[test]
fn the_sample_of_version_1_reads_as_it_was_written() {
    read_sample(1);
}

#[test]
fn the_sample_of_version_2_reads_as_it_was_written() {
    read_sample(2);
}

/// Writes the queue of which the newest sample is a copy.
fn write_queue(path: &Path) {
    let (queue, _) = Queue::open(Arc::new(OsFs::open(path).expect("directory")), options()).expect("queue");
    let mut messages = messages().into_iter();
    for message in messages.by_ref().take(2) {
        submit(&queue, message);
    }
    let retired = submit(&queue, self::messages().swap_remove(3));
    for (n, message) in messages.chain([list()]).enumerate() {
        submit(&queue, message);
        if n == 0 {
            // Its record stands behind that of the message that came next, in another segment.
            queue.retire(retired);
            queue.flush();
        }
    }
    drop(queue);
    drop(Queue::open(Arc::new(OsFs::open(path).expect("directory")), options()).expect("queue"));
    fs::remove_file(path.join("lock")).expect("lock");
    fs::remove_dir(path.join("quarantine")).expect("empty");
}

/// The kind of the record that ends a segment.
const END: u8 = 6;

/// Blanks what is random in a segment or a summary: the ids of segments, and checksums over them.
fn without_random_ids(name: &str, mut octets: Vec<u8>) -> Vec<u8> {
    octets[16..24].fill(0);
    octets[60..64].fill(0);
    if name.ends_with(".sum") {
        return octets;
    }
    octets[32..40].fill(0);
    let number = |octets: &[u8]| octets.iter().rev().fold(0, |sum, octet| sum << 8 | *octet as usize);
    let mut at = 64;
    while at < octets.len() {
        let record = &mut octets[at..];
        assert_eq!(&record[..4], b"PRec", "{name} at {at}");
        record[8..16].fill(0);
        record[60..64].fill(0);
        if record[4] == END {
            break;
        }
        let content = if record[5] & 1 == 0 { number(&record[40..48]) } else { 0 };
        at += (64 + number(&record[32..36]) + content).next_multiple_of(64);
    }
    octets
}

#[test]
fn the_writer_still_writes_what_the_sample_of_version_2_says() {
    let dir = tempfile::tempdir().expect("scratch");
    let path = dir.path().join("queue");
    write_queue(&path);
    let mut kinds = Vec::new();
    for part in ["log", "content", "summary"] {
        let names = |of: &Path| {
            let entries = fs::read_dir(of.join(part)).expect("list").map(|entry| entry.expect("entry").file_name());
            let mut names: Vec<String> = entries.map(|name| name.into_string().expect("ASCII")).collect();
            names.sort();
            names
        };
        assert_eq!(names(&path), names(&sample(2)), "{part}");
        for name in names(&path) {
            let read = |of: &Path| fs::read(of.join(part).join(&name)).expect("file");
            let (new, old) = (read(&path), read(&sample(2)));
            if part == "content" {
                assert_eq!(new, old, "{part}/{name}");
                continue;
            }
            kinds.extend(new.chunks(64).filter(|unit| unit.starts_with(b"PRec")).map(|unit| unit[4]));
            assert!(without_random_ids(&name, new) == without_random_ids(&name, old), "{part}/{name} differs");
        }
    }
    kinds.sort();
    kinds.dedup();
    assert_eq!(kinds, [1, 2, 3, 5, END], "the sample has a record of every kind that is written without damage");
}

#[test]
#[ignore = "writes the sample of a format version; to be run once, when there is a new one"]
fn write_the_sample() {
    let dir = tempfile::tempdir().expect("scratch");
    let path = dir.path().join("queue");
    write_queue(&path);
    copy(&path, &sample(2));
}
