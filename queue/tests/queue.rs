//! The queue on the real file system, from draft to retirement.

use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use postroad_queue::{
    Committed, Item, Listener, LoadError, Options, Origin, OsFs, Queue, QueueId, RecordError, RecoveryReport, Snapshot,
    State, UnixMillis,
};
use postroad_smtp::{Envelope, MailParams, Recipient};

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

fn options() -> Options {
    Options { segment_octets: 64 << 10, inline_octets_max: 8 << 10, reserve_octets: 0, ..Options::default() }
}

fn open(dir: &std::path::Path) -> (Queue, RecoveryReport) {
    Queue::open(Arc::new(OsFs::open(&dir.join("queue")).expect("directory")), options()).expect("queue")
}

fn envelope(recipients: usize) -> Envelope {
    let path = |i| Recipient::new(format!("r{i}@example.org").parse().expect("path"));
    Envelope::new("s@example.net".parse().expect("path"), MailParams::default(), (0..recipients).map(path).collect())
        .expect("recipients")
}

fn origin() -> Origin {
    Origin { protocol: "ESMTP".into(), session: "s1".into(), ..Origin::default() }
}

fn content(octets: usize, seed: usize) -> Vec<u8> {
    (0..octets).map(|i| (i * 31 + seed * 7 + i / 251) as u8).collect()
}

fn submit(queue: &Queue, content: &[u8]) -> mpsc::Receiver<Committed> {
    let (sender, receiver) = mpsc::channel();
    let mut draft = queue.draft(NOW).expect("draft");
    for piece in content.chunks(3000) {
        draft.append(piece).expect("append");
    }
    draft.commit(envelope(2), origin(), NOW.plus(1000), NOW, move |result| {
        sender.send(result.expect("committed")).expect("receiver waits");
    });
    receiver
}

/// Notes the ids of new messages; what comes behind the answers is the caller's.
struct Heard<F>(Arc<Mutex<Vec<QueueId>>>, F);

impl<F: Fn(&[QueueId]) + Send + Sync> Listener for Heard<F> {
    fn admit(&self, items: &[Arc<Item>]) {
        self.0.lock().expect("lock").extend(items.iter().map(|item| item.id));
    }

    fn go_on(&self) {
        let heard = self.0.lock().expect("lock").clone();
        (self.1)(&heard);
    }
}

fn read(queue: &Queue, id: QueueId) -> Vec<u8> {
    let mut reader = queue.content(id).expect("content");
    let (mut out, mut piece) = (Vec::new(), [0; 1000]);
    loop {
        match reader.read_at(out.len() as u64, &mut piece).expect("read") {
            0 => return out,
            n => out.extend_from_slice(&piece[..n]),
        }
    }
}

#[test]
fn a_segment_is_written_over_once_nothing_in_it_is_needed_or_read() {
    let dir = tempfile::tempdir().expect("scratch");
    let (queue, _) = open(dir.path());
    let files = || std::fs::read_dir(dir.path().join("queue/log")).expect("log").count();
    let first = content(7000, 1);
    let id = {
        let done = submit(&queue, &first);
        queue.flush();
        done.recv().expect("committed").id()
    };
    // From the disk, not from memory.
    queue.tidy();
    let mut reader = queue.content(id).expect("content");
    let mut front = [0; 100];
    reader.read_at(0, &mut front).expect("read");
    queue.retire(id);
    for seed in 0..100 {
        let done = submit(&queue, &content(7000, seed));
        queue.flush();
        queue.retire(done.recv().expect("committed").id());
    }
    assert!(files() <= 4, "{} files", files());
    let mut rest = vec![0; 6900];
    assert_eq!(reader.read_at(100, &mut rest).expect("read"), 6900, "its checksum is right");
    assert_eq!([&front[..], &rest].concat(), first, "who reads a message sees no other");
}

#[test]
fn what_was_committed_is_there_after_opening_again() {
    let dir = tempfile::tempdir().expect("scratch");
    let contents: Vec<Vec<u8>> =
        [0, 1, 5000, 8192, 8193, 300_000].into_iter().enumerate().map(|(i, n)| content(n, i)).collect();
    let (queue, _) = open(dir.path());
    let heard = Arc::new(Mutex::new(Vec::new()));
    queue.on_committed(Heard(heard.clone(), |_: &[QueueId]| {}));
    let waiting: Vec<_> = contents.iter().map(|content| submit(&queue, content)).collect();
    queue.flush();
    let ids: Vec<QueueId> = waiting.iter().map(|w| w.recv().expect("answer").id()).collect();
    assert_eq!(*heard.lock().expect("lock"), ids);
    for (id, content) in ids.iter().zip(&contents) {
        assert_eq!(&read(&queue, *id), content);
    }
    let item = queue.load(ids[2]).expect("item");
    drop(queue);
    let (queue, report) = open(dir.path());
    assert_eq!((report.messages, report.damage.len()), (contents.len(), 0), "{report:?}");
    assert_eq!(queue.ids(None, 100), ids);
    assert_eq!(queue.ids(Some(ids[1]), 2), ids[2..4]);
    assert_eq!(queue.load(ids[2]).expect("item"), item);
    for (id, content) in ids.iter().zip(&contents) {
        assert_eq!(&read(&queue, *id), content);
    }
}

#[test]
fn the_last_state_recorded_is_the_one_that_stands() {
    let dir = tempfile::tempdir().expect("scratch");
    let (queue, _) = open(dir.path());
    let committer = queue.start().expect("thread");
    let id = submit(&queue, b"x").recv().expect("answer").id();
    let (sender, receiver) = mpsc::channel();
    for expires in [5, 6, 7] {
        let sender = sender.clone();
        let state = State { held: true, ..State::fresh(2, NOW, UnixMillis(expires)) };
        queue.record(id, state, move |result| sender.send(result).expect("receiver waits"));
    }
    for _ in 0..3 {
        assert_eq!(receiver.recv().expect("answer"), Ok(()));
    }
    assert_eq!(queue.load(id).expect("item").state.expires, UnixMillis(7));
    committer.stop();
    drop(queue);
    let (queue, _) = open(dir.path());
    let state = queue.load(id).expect("item").state.clone();
    assert!(state.held && state.expires == UnixMillis(7), "{state:?}");
}

#[test]
fn what_is_retired_stays_away_and_what_is_unknown_is_said_to_be() {
    let dir = tempfile::tempdir().expect("scratch");
    let (queue, _) = open(dir.path());
    let waiting = [submit(&queue, b"one"), submit(&queue, &content(20_000, 1)), submit(&queue, b"three")];
    queue.flush();
    let ids: Vec<QueueId> = waiting.iter().map(|w| w.recv().expect("answer").id()).collect();
    let mut open_reader = queue.content(ids[1]).expect("content");
    assert!(queue.retire(ids[0]) && queue.retire(ids[1]));
    assert!(!queue.retire(ids[0]), "only once");
    assert!(matches!(queue.load(ids[0]), Err(LoadError::Unknown(_))));
    let (sender, receiver) = mpsc::channel();
    queue.record(ids[0], State::fresh(2, NOW, NOW), move |result| sender.send(result).expect("receiver waits"));
    queue.flush();
    assert_eq!(receiver.recv().expect("answer"), Err(RecordError::Unknown(ids[0])));
    queue.tidy();
    assert_eq!(open_reader.read_at(0, &mut [0; 20_000]).expect("still readable"), 20_000);
    drop(queue);
    let (queue, report) = open(dir.path());
    assert_eq!(queue.ids(None, 10), ids[2..], "{report:?}");
    assert!(std::fs::read_dir(dir.path().join("queue/content")).expect("list").next().is_none());
}

#[test]
fn an_empty_queue_gives_the_disk_back_and_never_uses_an_id_again() {
    let dir = tempfile::tempdir().expect("scratch");
    let (queue, _) = open(dir.path());
    let mut last = None;
    for i in 0..40 {
        let waiting = submit(&queue, &content(7000, i));
        queue.flush();
        let id = waiting.recv().expect("answer").id();
        assert!(Some(id) > last);
        last = Some(id);
        queue.retire(id);
    }
    queue.flush();
    queue.tidy();
    let segments: Vec<_> = std::fs::read_dir(dir.path().join("queue/log")).expect("list").flatten().collect();
    assert_eq!(segments.len(), 1, "{segments:?}");
    assert!(segments[0].metadata().expect("metadata").len() <= 64);
    assert_eq!(queue.disk_octets(), 64);
    drop(queue);
    let (queue, report) = open(dir.path());
    assert_eq!(report, RecoveryReport { segments: 1, ..RecoveryReport::default() });
    assert!(Some(queue.draft(UnixMillis(1)).expect("draft").id()) > last, "the clock went back");
}

#[test]
fn a_message_that_ends_beside_the_committer_gives_its_space_back() {
    let dir = tempfile::tempdir().expect("scratch");
    let (queue, _) = open(dir.path());
    let committer = queue.start().expect("thread");
    // While the committer waits for more, and when it has tidied up and sleeps until it is woken.
    for idle in [Duration::ZERO, Duration::from_millis(1500)] {
        let id = submit(&queue, &content(5000, 1)).recv().expect("committed").id();
        std::thread::sleep(idle);
        let before = queue.disk_octets();
        assert!(queue.retire(id));
        let since = Instant::now();
        while queue.disk_octets() > 64 {
            assert!(since.elapsed() < Duration::from_secs(20), "idle for {idle:?}: {before} octets are kept");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    committer.stop();
    assert!(queue.is_empty() && queue.poisoned().is_none());
}

#[test]
fn a_mostly_dead_segment_is_compacted_and_its_messages_stay_whole() {
    let dir = tempfile::tempdir().expect("scratch");
    let (queue, _) = open(dir.path());
    let mut kept = Vec::new();
    for i in 0..60 {
        let text = content(5000 + i * 60, i);
        let waiting = submit(&queue, &text);
        queue.flush();
        let id = waiting.recv().expect("answer").id();
        if i % 10 == 3 {
            queue.record(id, State { held: true, ..State::fresh(2, NOW, UnixMillis(i as u64)) }, |result| {
                result.expect("recorded")
            });
            kept.push((id, text, UnixMillis(i as u64)));
        } else {
            queue.retire(id);
        }
    }
    queue.flush();
    let before = queue.disk_octets();
    queue.tidy();
    assert!(queue.disk_octets() < before / 3, "{} of {before}", queue.disk_octets());
    for _ in 0..2 {
        assert_eq!(queue.len(), kept.len());
        for (id, text, expires) in &kept {
            assert_eq!(&read(&queue, *id), text);
            let state = queue.load(*id).expect("item").state.clone();
            assert_eq!((state.held, state.expires), (true, *expires));
        }
        queue.tidy();
    }
    drop(queue);
    let (queue, report) = open(dir.path());
    assert!(report.damage.is_empty(), "{report:?}");
    for (id, text, _) in &kept {
        assert_eq!(&read(&queue, *id), text);
    }
}

#[test]
fn drafts_that_were_dropped_leave_nothing() {
    let dir = tempfile::tempdir().expect("scratch");
    let (queue, _) = open(dir.path());
    let mut draft = queue.draft(NOW).expect("draft");
    draft.append(&content(20_000, 1)).expect("append");
    drop(draft);
    queue.flush();
    assert_eq!(queue.len(), 0);
    assert!(std::fs::read_dir(dir.path().join("queue/content")).expect("list").next().is_none());
}

#[test]
fn below_the_reserve_mail_is_refused_early() {
    let dir = tempfile::tempdir().expect("scratch");
    let fs = Arc::new(OsFs::open(&dir.path().join("queue")).expect("directory"));
    let (queue, _) = Queue::open(fs, Options { reserve_octets: u64::MAX, ..options() }).expect("queue");
    let error = queue.draft(NOW).map(|_| ()).expect_err("full");
    assert_eq!(postroad_smtp::Reply::from(&error).code.get(), 452);
}

#[test]
fn threads_commit_record_read_and_retire_at_once() {
    let dir = tempfile::tempdir().expect("scratch");
    let (queue, _) = open(dir.path());
    let committer = queue.start().expect("thread");
    let worker = |w: usize| {
        let mut kept = Vec::new();
        for n in 0..40 {
            let text = content(100 + (w * 997 + n * 331) % 12_000, w + n);
            let id = submit(&queue, &text).recv().expect("answer").id();
            assert_eq!(read(&queue, id), text);
            if n % 4 == 0 {
                let (sender, receiver) = mpsc::channel();
                let state = State { held: true, ..State::fresh(2, NOW, UnixMillis(n as u64)) };
                queue.record(id, state, move |result| sender.send(result).expect("receiver waits"));
                assert_eq!(receiver.recv().expect("answer"), Ok(()));
                kept.push((id, text, UnixMillis(n as u64)));
            } else {
                assert!(queue.retire(id));
            }
            if n % 13 == 7 {
                queue.tidy();
            }
            for (id, text, expires) in &kept {
                assert_eq!(&read(&queue, *id), text);
                assert_eq!(queue.load(*id).expect("item").state.expires, *expires);
            }
        }
        kept
    };
    let kept: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|w| scope.spawn(move || worker(w))).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    });
    committer.stop();
    assert_eq!(queue.poisoned(), None);
    drop(queue);
    let whole = Snapshot::read_whole(&dir.path().join("queue"), &mut |_, _| {}).expect("snapshot");
    assert_eq!((whole.len(), whole.damage()), (kept.len(), &[][..]));
    let (queue, report) = open(dir.path());
    assert_eq!((report.messages, report.damage.len()), (kept.len(), 0), "{report:?}");
    for (id, text, expires) in &kept {
        assert_eq!(&read(&queue, *id), text);
        assert_eq!(queue.load(*id).expect("item").state.expires, *expires);
    }
}

#[test]
fn a_snapshot_beside_a_running_queue_shows_what_is_there_and_writes_nothing() {
    let dir = tempfile::tempdir().expect("scratch");
    let (queue, _) = open(dir.path());
    let waiting = [submit(&queue, b"one"), submit(&queue, &content(20_000, 1))];
    queue.flush();
    let ids: Vec<QueueId> = waiting.iter().map(|w| w.recv().expect("answer").id()).collect();
    let snapshot = Snapshot::read(&dir.path().join("queue")).expect("snapshot");
    assert_eq!(snapshot.ids().collect::<Vec<_>>(), ids);
    assert_eq!(snapshot.load(ids[1]).expect("item"), *queue.load(ids[1]).expect("item"));
    let mut read = Vec::new();
    let whole = Snapshot::read_whole(&dir.path().join("queue"), &mut |done, total| read.push((done, total)));
    let whole = whole.expect("snapshot");
    assert_eq!((whole.len(), whole.content_octets(), whole.damage()), (2, 20_003, &[][..]));
    assert!(snapshot.damage().is_empty() && read.last().is_some_and(|(done, total)| done == total), "{read:?}");
    assert!(Snapshot::read(&dir.path().join("none")).is_err());
}

#[test]
fn a_stopped_queue_refuses_and_says_so() {
    let dir = tempfile::tempdir().expect("scratch");
    let (queue, _) = open(dir.path());
    let committer = queue.start().expect("thread");
    let id = submit(&queue, b"x").recv().expect("answer").id();
    let mut draft = queue.draft(NOW).expect("draft");
    draft.append(b"late").expect("append");
    committer.stop();
    let (sender, receiver) = mpsc::channel();
    draft.commit(envelope(1), origin(), NOW, NOW, move |result| sender.send(result.map(drop)).expect("receiver waits"));
    assert!(matches!(receiver.recv().expect("answer"), Err(postroad_queue::CommitError::Stopped)));
    let (sender, receiver) = mpsc::channel();
    queue.record(id, State::fresh(2, NOW, NOW), move |result| sender.send(result).expect("receiver waits"));
    assert_eq!(receiver.recv().expect("answer"), Err(RecordError::Stopped));
    assert!(queue.draft(NOW).is_err());
}

#[test]
fn a_panic_in_a_callback_refuses_what_waits_and_leaves_nobody_without_an_answer() {
    let dir = tempfile::tempdir().expect("scratch");
    let (queue, _) = open(dir.path());
    let committer = queue.start().expect("threads");
    let kept = submit(&queue, b"kept").recv().expect("answer").id();
    let early = queue.draft(NOW).expect("draft");
    // It panics when both of what follows wait behind it.
    let (go, gone) = mpsc::channel::<()>();
    let gone = Mutex::new(gone);
    let listener = move |heard: &[QueueId]| {
        // The batch of the first may still be about to call.
        if heard.iter().all(|id| *id == kept) {
            return;
        }
        let _ = gone.lock().expect("called once").recv();
        panic!("on purpose");
    };
    queue.on_committed(Heard(Arc::default(), listener));
    submit(&queue, b"kept, too").recv().expect("it is on stable storage");
    let (sender, receiver) = mpsc::channel();
    let answer = sender.clone();
    queue.record(kept, State::fresh(2, NOW, NOW), move |result| answer.send(result.is_ok()).expect("waits"));
    early.commit(envelope(1), origin(), NOW, NOW, move |result| sender.send(result.is_ok()).expect("waits"));
    go.send(()).expect("the listener waits");
    let patience = std::time::Duration::from_secs(10);
    assert_eq!([(); 2].map(|()| receiver.recv_timeout(patience)), [Ok(false); 2]);
    assert!(queue.poisoned().is_some() && queue.draft(NOW).is_err());
    committer.stop();
    drop(queue);
    assert_eq!(open(dir.path()).0.len(), 2, "what was acknowledged is there");
}

#[test]
fn who_is_told_that_a_message_is_kept_finds_the_listener_knows_it() {
    let dir = tempfile::tempdir().expect("scratch");
    let (queue, _) = open(dir.path());
    let heard = Arc::new(Mutex::new(Vec::new()));
    let (told, all) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(0)));
    let (answered, behind) = (told.clone(), all.clone());
    let go_on = move |_: &[QueueId]| *behind.lock().expect("lock") = answered.lock().expect("lock").len();
    queue.on_committed(Heard(heard.clone(), go_on));
    for _ in 0..3 {
        let (heard, told) = (heard.clone(), told.clone());
        let draft = queue.draft(NOW).expect("draft");
        draft.commit(envelope(1), origin(), NOW.plus(1000), NOW, move |result| {
            let id = result.expect("committed").id();
            told.lock().expect("lock").push(heard.lock().expect("lock").contains(&id));
        });
    }
    queue.flush();
    assert_eq!(*told.lock().expect("lock"), [true; 3], "it heard of the whole batch first");
    assert_eq!(*all.lock().expect("lock"), 3, "it goes on when all are told");
}

#[test]
fn what_is_on_stable_storage_is_answered_so_though_the_listener_panics() {
    struct Panics;
    impl Listener for Panics {
        fn admit(&self, _: &[Arc<Item>]) {
            panic!("on purpose");
        }

        fn go_on(&self) {}
    }
    let dir = tempfile::tempdir().expect("scratch");
    let (queue, _) = open(dir.path());
    let committer = queue.start().expect("threads");
    queue.on_committed(Panics);
    submit(&queue, b"kept").recv().expect("it is on stable storage");
    committer.stop();
    assert!(queue.poisoned().is_some(), "nothing more is promised");
}
