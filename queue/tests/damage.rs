//! Turns over every bit of a queue's files, one at a time: no panic, no altered content, every message
//! that is not hit stays, and what is hit is reported and saved.

mod sim;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use postroad_queue::fs::Dir;
use postroad_queue::{Item, LoadError, Options, Origin, Queue, QueueId, State, UnixMillis};
use postroad_smtp::{Envelope, MailParams, Recipient};
use sim::{Plan, SimFs, Survives};

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

type Messages = BTreeMap<QueueId, (Arc<Item>, Vec<u8>)>;

fn options() -> Options {
    Options { segment_octets: 4096, inline_octets_max: 400, reserve_octets: 0, ..Options::default() }
}

fn submit(queue: &Queue, content: &[u8]) -> QueueId {
    let mut draft = queue.draft(NOW).expect("draft");
    let id = draft.id();
    draft.append(content).expect("append");
    let recipients = vec![Recipient::new("r@example.org".parse().expect("path"))];
    let envelope = Envelope::new("s@example.net".parse().expect("path"), MailParams::default(), recipients);
    let origin = Origin { protocol: "ESMTP".into(), session: "s".into(), ..Origin::default() };
    draft.commit(envelope.expect("recipient"), origin, NOW, NOW, |result| {
        result.expect("committed");
    });
    queue.flush();
    id
}

fn read(queue: &Queue, id: QueueId) -> io::Result<Vec<u8>> {
    let mut reader = queue.content(id).map_err(io_error)?;
    let mut content = vec![0; reader.octets() as usize];
    for (i, piece) in content.chunks_mut(100).enumerate() {
        reader.read_at(i as u64 * 100, piece)?;
    }
    Ok(content)
}

fn io_error(error: LoadError) -> io::Error {
    match error {
        LoadError::Damaged { .. } => io::Error::new(io::ErrorKind::InvalidData, error),
        other => io::Error::other(other),
    }
}

/// A queue with inline, spilled, recorded and retired messages; `more` fills a second segment.
fn sample(more: bool) -> (Arc<SimFs>, Messages) {
    let fs = Arc::new(SimFs::new(Plan::Well));
    let (queue, _) = Queue::open(fs.clone(), options()).expect("open");
    let ids = [b"one".as_slice(), &[b'2'; 300], b"three", &[b'L'; 500], b"five"].map(|content| submit(&queue, content));
    let state = State { held: true, ..State::fresh(1, NOW, NOW.plus(9)) };
    queue.record(ids[2], state, |result| result.expect("recorded"));
    queue.retire(ids[0]);
    queue.flush();
    if more {
        for _ in 0..6 {
            submit(&queue, &[b'm'; 350]);
        }
    }
    queue.flush();
    drop(queue);
    let fs = Arc::new(fs.crashed(Survives::Everything, Plan::Well));
    let (queue, report) = Queue::open(fs.clone(), options()).expect("open");
    assert!(report.damage.is_empty(), "{report:?}");
    let found = queue.ids(None, 100).into_iter();
    let messages = found.map(|id| (id, (queue.load(id).expect("item"), read(&queue, id).expect("content")))).collect();
    drop(queue);
    (Arc::new(fs.crashed(Survives::Everything, Plan::Well)), messages)
}

/// A queue whose newest segment lies in a file that was a segment before, with octets of that one
/// behind its last record.
fn worn() -> (Arc<SimFs>, Messages) {
    let fs = Arc::new(SimFs::new(Plan::Well));
    let (queue, _) = Queue::open(fs.clone(), options()).expect("open");
    for _ in 0..40 {
        let id = submit(&queue, &[b'x'; 390]);
        queue.retire(id);
    }
    let ids = [b"one".as_slice(), &[b'2'; 300], b"three"].map(|content| submit(&queue, content));
    let messages = ids.map(|id| (id, (queue.load(id).expect("item"), read(&queue, id).expect("content")))).into();
    let (_, octets) = fs.files(Dir::Log).into_iter().rfind(|(name, _)| name.ends_with(".seg")).expect("a segment");
    assert!(octets[3000..].contains(&b'x'), "there is nothing of an earlier use");
    drop(queue);
    (Arc::new(fs.crashed(Survives::Everything, Plan::Well)), messages)
}

/// Opens the queue with one bit turned over and looks at everything in it.
fn check(fs: &SimFs, messages: &Messages, dir: Dir, name: &str, bit: usize) {
    let fs = Arc::new(fs.crashed(Survives::Everything, Plan::Well));
    fs.flip(dir, name, bit);
    let case = format!("{dir}/{name}, bit {bit}");
    let (queue, report) = Queue::open(fs.clone(), options()).unwrap_or_else(|e| panic!("{case}: {e}"));
    let mut damaged = report.damage.iter().filter(|damage| damage.saved.is_some()).count();
    assert_eq!(damaged, report.damage.len(), "{case}: not everything was saved: {report:?}");
    let mut whole = 0;
    for id in queue.ids(None, 100) {
        let load = queue.load(id);
        let found = load.map_err(io_error).and_then(|item| Ok((item, read(&queue, id)?)));
        match (found, messages.get(&id)) {
            (Ok((item, content)), Some((expected, submitted))) => {
                assert_eq!(&content, submitted, "{case}: {id} is altered");
                assert_eq!(
                    (&item.envelope, &item.origin),
                    (&expected.envelope, &expected.origin),
                    "{case}: {id} is altered"
                );
                assert!(item.state == expected.state || damaged > 0, "{case}: {id} lost its state in silence");
                whole += 1;
            }
            (Ok(_), None) => assert!(damaged > 0, "{case}: {id} came back in silence"),
            (Err(e), _) => {
                assert_eq!(e.kind(), io::ErrorKind::InvalidData, "{case}: {e}");
                let saved = queue.quarantine(id).expect("saved");
                let name = saved.place.strip_prefix("quarantine/").expect("its place");
                assert!(fs.files(Dir::Quarantine).iter().any(|(n, _)| n == name), "{case}");
                damaged += 1;
                if saved.stays {
                    // Only its state was hit: the message itself is whole.
                    queue.flush();
                    assert!(queue.load(id).is_ok() && read(&queue, id).expect("content") == messages[&id].1, "{case}");
                    whole += 1;
                } else {
                    assert!(matches!(queue.load(id), Err(LoadError::Unknown(_))), "{case}");
                }
            }
        }
    }
    let lost = messages.len() - whole;
    assert!(lost <= 1 && lost <= damaged, "{case}: {lost} lost, {damaged} reported: {report:?}");
    assert!(fs.files(Dir::Quarantine).len() >= damaged, "{case}");
    drop(queue);
    let (_, again) = Queue::open(fs, options()).unwrap_or_else(|e| panic!("{case}: {e}"));
    assert!(again.damage.is_empty(), "{case}: still there when opened again: {again:?}");
}

#[test]
fn every_bit_of_the_newest_segment_and_of_a_content_file() {
    let (fs, messages) = sample(false);
    for dir in [Dir::Log, Dir::Content] {
        for (name, octets) in fs.files(dir) {
            for bit in 0..octets.len() * 8 {
                check(&fs, &messages, dir, &name, bit);
            }
        }
    }
}

#[test]
fn a_segment_in_a_file_used_before_is_as_good_as_a_new_one() {
    let (fs, messages) = worn();
    let (name, octets) = fs.files(Dir::Log).into_iter().rfind(|(name, _)| name.ends_with(".seg")).expect("a segment");
    for bit in (0..octets.len() * 8).step_by(5) {
        check(&fs, &messages, Dir::Log, &name, bit);
    }
}

#[test]
fn of_a_torn_end_no_more_is_saved_than_may_be_of_the_last_batch() {
    let (fs, _) = worn();
    let (name, octets) = fs.files(Dir::Log).into_iter().rfind(|(name, _)| name.ends_with(".seg")).expect("a segment");
    let end = (0..octets.len()).step_by(64).find(|at| octets[*at..].starts_with(b"PRec\x06")).expect("an End record");
    fs.flip(Dir::Log, &name, end * 8);
    let (queue, report) = Queue::open(fs, options()).expect("open");
    assert_eq!((queue.len(), report.damage.len()), (3, 1), "{report:?}");
    assert!(report.damage[0].maybe_torn && report.damage[0].to - report.damage[0].from <= 640, "{report:?}");
}

#[test]
fn every_bit_of_a_sealed_segment() {
    let (fs, messages) = sample(true);
    let files = fs.files(Dir::Log);
    assert_eq!(files.len(), 2);
    for bit in 0..files[0].1.len() * 8 {
        check(&fs, &messages, Dir::Log, &files[0].0, bit);
    }
}

#[test]
fn every_bit_of_a_summary() {
    let (fs, messages) = sample(true);
    let files = fs.files(Dir::Summary);
    assert_eq!(files.len(), 1);
    let (undamaged, _) = Queue::open(Arc::new(fs.crashed(Survives::Everything, Plan::Well)), options()).expect("open");
    for bit in 0..files[0].1.len() * 8 {
        let fs = Arc::new(fs.crashed(Survives::Everything, Plan::Well));
        fs.flip(Dir::Summary, &files[0].0, bit);
        let (queue, report) = Queue::open(fs.clone(), options()).expect("open");
        assert!(report.damage.is_empty() && queue.ids(None, 100) == undamaged.ids(None, 100), "bit {bit}: {report:?}");
        assert!(messages.iter().all(|(id, (item, _))| queue.load(*id).expect("item") == *item), "bit {bit}");
        assert_eq!(fs.files(Dir::Summary), files, "bit {bit}: it was not written again");
    }
}

#[test]
fn a_lost_segment_header_and_first_record_lose_nothing_else_when_the_next_segment_is_sound() {
    let (fs, messages) = sample(true);
    let name = fs.files(Dir::Log)[0].0.clone();
    for bit in 0..192 * 8 {
        fs.flip(Dir::Log, &name, bit);
    }
    let (queue, report) = Queue::open(fs, options()).expect("open");
    assert!(!report.damage.is_empty());
    assert!(queue.len() >= messages.len() - 1, "{} of {}: {report:?}", queue.len(), messages.len());
}

#[test]
fn a_record_planted_in_the_content_of_a_message_is_never_taken_for_one() {
    let (victim, _) = sample(false);
    let planted = victim.files(Dir::Log)[0].1.clone();
    let fs = Arc::new(SimFs::new(Plan::Well));
    let options = || Options { inline_octets_max: 8192, ..options() };
    let (queue, _) = Queue::open(fs.clone(), options()).expect("open");
    // Whatever the alignment, the same octets in the same places, behind a record that gets damaged.
    let id = submit(&queue, &planted[64..]);
    drop(queue);
    let name = fs.files(Dir::Log)[0].0.clone();
    for bit in (0..128 * 8).step_by(97) {
        fs.flip(Dir::Log, &name, bit);
    }
    let (queue, report) = Queue::open(fs.clone(), options()).expect("open");
    assert!(queue.ids(None, 10).iter().all(|found| *found == id), "{report:?}");
    assert!(!report.damage.is_empty());
}
