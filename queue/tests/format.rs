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

fn sample() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/samples/version-1")
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

/// The messages of the sample: envelope, content, and the state recorded last.
fn messages() -> Vec<(Envelope, Origin, Vec<u8>, State)> {
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

fn ids() -> Vec<QueueId> {
    // The third was retired and the fourth submitted behind it.
    [0, 1, 3, 4].iter().map(|n| QueueId::from_u64((NOW.0 << 20) + n)).collect()
}

fn submit(queue: &Queue, (envelope, origin, content, state): (Envelope, Origin, Vec<u8>, State)) -> QueueId {
    let mut draft = queue.draft(NOW).expect("draft");
    let id = draft.id();
    draft.append(&content).expect("append");
    draft.commit(envelope.clone(), origin, EXPIRES, NOW, |result| {
        result.expect("committed");
    });
    queue.flush();
    if state != State::fresh(envelope.recipients().len(), NOW, EXPIRES) {
        queue.record(id, state, |result| result.expect("recorded"));
        queue.flush();
    }
    id
}

fn check(ids: &[QueueId], load: impl Fn(QueueId) -> (Item, Vec<u8>)) {
    assert_eq!(ids, self::ids());
    for (id, (envelope, origin, content, state)) in ids.iter().zip(messages()) {
        let expected = Item { id: *id, arrived: NOW, envelope, origin, content_octets: content.len() as u64, state };
        assert_eq!(load(*id), (expected, content));
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

#[test]
fn the_sample_of_version_1_reads_as_it_was_written() {
    let dir = tempfile::tempdir().expect("scratch");
    let path = dir.path().join("queue");
    copy(&sample(), &path);
    let snapshot = Snapshot::read(&path).expect("snapshot");
    assert_eq!(snapshot.damage(), []);
    let ids: Vec<QueueId> = snapshot.ids().collect();
    check(&ids, |id| (snapshot.load(id).expect("item"), whole(snapshot.content(id).expect("content"))));
    let (queue, report) = Queue::open(Arc::new(OsFs::open(&path).expect("directory")), options()).expect("queue");
    assert_eq!((report.messages, report.drafts_removed, report.damage), (4, 0, Vec::new()));
    check(&queue.ids(None, 10), |id| {
        ((*queue.load(id).expect("item")).clone(), whole(queue.content(id).expect("content")))
    });
    let verified = queue.verify(&mut |_| {});
    assert!(verified.damage.is_empty() && verified.messages == 4, "{verified:?}");
}

#[test]
#[ignore = "writes the sample of a format version; to be run once, when there is a new one"]
fn write_the_sample() {
    let dir = tempfile::tempdir().expect("scratch");
    let path = dir.path().join("queue");
    let (queue, _) = Queue::open(Arc::new(OsFs::open(&path).expect("directory")), options()).expect("queue");
    let mut messages = messages().into_iter();
    for message in messages.by_ref().take(2) {
        submit(&queue, message);
    }
    let retired = submit(&queue, self::messages().swap_remove(3));
    queue.retire(retired);
    for message in messages {
        submit(&queue, message);
    }
    drop(queue);
    drop(Queue::open(Arc::new(OsFs::open(&path).expect("directory")), options()).expect("queue"));
    fs::remove_file(path.join("lock")).expect("lock");
    fs::remove_dir(path.join("quarantine")).expect("empty");
    copy(&path, &sample());
}
