//! The history over crashes, torn tails and damage, and two sessions with one message.

use std::fs::{self, OpenOptions};
use std::io::Write;

use postroad_mesh::NodeId;
use postroad_queue::{Committer, Options, Origin, OsFs};
use postroad_smtp::{Envelope, MailParams, Recipient, ReversePath};
use tempfile::TempDir;

use super::*;

const DAY_MS: u64 = 86_400_000;
const NOW: UnixMillis = UnixMillis(20_500 * DAY_MS + 1000);

struct Host {
    directory: TempDir,
    queue: Queue,
    _committer: Committer,
}

impl Host {
    fn new() -> Host {
        let directory = tempfile::tempdir().expect("scratch");
        let fs = OsFs::open(&directory.path().join("queue")).expect("directory");
        let (queue, _) = Queue::open(Arc::new(fs), Options::default()).expect("queue");
        let committer = queue.start().expect("committer");
        Host { directory, queue, _committer: committer }
    }

    /// The history as a new process sees it.
    fn repeats(&self) -> Repeats {
        Repeats::new(&self.path(), self.queue.clone(), AGE_MS)
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("history")
    }

    /// The files, the oldest first.
    fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<_> =
            fs::read_dir(self.path()).expect("list").map(|entry| entry.expect("entry").path()).collect();
        files.sort();
        files
    }

    /// Commits a message that came by this passage.
    fn commit(&self, passage: &Passage, to: &str, now: UnixMillis) {
        let params = MailParams { passage: Some(passage.token()), ..MailParams::default() };
        let recipients = vec![Recipient::new(to.parse().expect("valid"))];
        let envelope = Envelope::new(ReversePath::Null, params, recipients).expect("a recipient");
        let mut draft = self.queue.draft(now).expect("room");
        draft.append(b"Subject: x\r\n\r\n").expect("room");
        let (tell, told) = std::sync::mpsc::channel();
        draft.commit(envelope, Origin::default(), now.plus(DAY_MS), now, move |done| {
            tell.send(done).expect("waited for")
        });
        told.recv().expect("answered").expect("committed");
    }
}

fn named(n: u64, at: UnixMillis) -> MeshMessageId {
    MeshMessageId::new(at.0, &[&n.to_be_bytes()])
}

/// Claims and keeps; returns whether it was new.
fn take(repeats: &Repeats, message: MeshMessageId, to: &str, now: UnixMillis) -> bool {
    match repeats.claim(&message, &[to.to_owned()], true, now).expect("opened") {
        Claimed::New { claim, .. } => {
            claim.keep(now);
            true
        }
        Claimed::Taken => false,
        Claimed::Busy | Claimed::Again => panic!("nobody else receives it, and a member hands it over"),
    }
}

#[tokio::test]
async fn what_was_taken_is_known_to_the_next_process() {
    let host = Host::new();
    let first = host.repeats();
    assert!(take(&first, named(1, NOW), "<b@home.example>", NOW));
    assert!(!take(&first, named(1, NOW), "<b@home.example>", NOW));
    assert!(take(&first, named(1, NOW), "<c@home.example>", NOW));
    let next = host.repeats();
    assert!(!take(&next, named(1, NOW), "<b@home.example>", NOW.plus(DAY_MS)));
    assert!(!take(&next, named(1, NOW), "<c@home.example>", NOW.plus(DAY_MS)));
    assert!(take(&next, named(2, NOW), "<b@home.example>", NOW.plus(DAY_MS)));
    // Whoever submits the same again means it.
    let submitted = |n| next.claim(&named(n, NOW), &["<b@home.example>".to_owned()], false, NOW).expect("opened");
    assert!(matches!(submitted(1), Claimed::Again));
    assert!(matches!(submitted(3), Claimed::New { is_late: false, .. }));
}

#[tokio::test]
async fn what_came_in_here_first_is_known_at_once_and_written_soon() {
    let host = Host::new();
    let (first, to) = (host.repeats(), ["<b@home.example>".to_owned()]);
    let is_known =
        |repeats: &Repeats, n| matches!(repeats.claim(&named(n, NOW), &to, true, NOW).expect("opened"), Claimed::Taken);
    let many = UNWRITTEN_MAX as u64;
    for n in 0..=many {
        let Ok(Claimed::New { claim, .. }) = first.claim(&named(n, NOW), &to, false, NOW) else { panic!("it is new") };
        claim.keep(NOW);
        assert!(is_known(&first, n), "{n}");
    }
    let next = host.repeats();
    assert!((0..many).all(|n| is_known(&next, n)), "so many are not kept back");
    let late = tokio::time::Instant::now() + 30 * SYNC_AFTER;
    while !is_known(&host.repeats(), many) {
        assert!(tokio::time::Instant::now() < late, "it is never written");
        tokio::time::sleep(SYNC_AFTER / 10).await;
    }
}

#[tokio::test]
async fn a_message_is_received_by_one_session_at_a_time() {
    let host = Host::new();
    let repeats = host.repeats();
    let claim = |to: &[&str]| {
        let to: Vec<String> = to.iter().map(|to| (*to).to_owned()).collect();
        repeats.claim(&named(1, NOW), &to, true, NOW).expect("opened")
    };
    let Claimed::New { claim: first, places, .. } = claim(&["<a@x.example>", "<b@x.example>"]) else {
        panic!("it is new")
    };
    assert_eq!(places, [0, 1]);
    assert!(matches!(claim(&["<b@x.example>"]), Claimed::Busy));
    // It was refused after all.
    drop(first);
    let Claimed::New { claim: second, .. } = claim(&["<b@x.example>"]) else { panic!("nobody has it") };
    second.keep(NOW);
    assert!(matches!(claim(&["<b@x.example>"]), Claimed::Taken));
    let Claimed::New { places, claim: third, .. } = claim(&["<b@x.example>", "<a@x.example>"]) else {
        panic!("a is new")
    };
    assert_eq!(places, [1]);
    third.keep(NOW);
    assert!(matches!(claim(&["<b@x.example>", "<a@x.example>"]), Claimed::Taken), "for each of them");
}

#[tokio::test]
async fn torn_tails_and_damage_cost_single_entries() {
    let host = Host::new();
    let first = host.repeats();
    (0..10).for_each(|n| assert!(take(&first, named(n, NOW), "<b@home.example>", NOW)));
    drop(first);
    let path = host.files().pop().expect("a file");
    let mut octets = fs::read(&path).expect("readable");
    octets[32 + 5 * 32 + 9] ^= 1;
    fs::write(&path, &octets).expect("writable");
    OpenOptions::new().append(true).open(&path).expect("there").write_all(&[7; 13]).expect("room");
    let next = host.repeats();
    for n in 0..10 {
        assert_eq!(take(&next, named(n, NOW), "<b@home.example>", NOW), n == 5, "{n}");
    }
    // What was appended behind the torn tail is found again.
    assert!(!take(&host.repeats(), named(5, NOW), "<b@home.example>", NOW));
    for cut in 0..40 {
        fs::write(&path, &octets[..cut]).expect("writable");
        assert!(take(&host.repeats(), named(99, NOW), "<b@home.example>", NOW), "cut at {cut}");
        assert_eq!(fs::read(&path).expect("readable").len(), 64, "cut at {cut}");
    }
}

#[tokio::test]
async fn a_file_that_is_none_is_set_aside() {
    let host = Host::new();
    let first = host.repeats();
    assert!(take(&first, named(1, NOW), "<b@home.example>", NOW));
    let path = host.files().pop().expect("a file");
    let mut octets = fs::read(&path).expect("readable");
    octets[3] ^= 1;
    fs::write(&path, &octets).expect("writable");
    let next = host.repeats();
    assert!(take(&next, named(1, NOW), "<b@home.example>", NOW));
    assert_eq!(fs::read(path.with_extension("damaged")).expect("readable"), octets);
    assert!(!take(&host.repeats(), named(1, NOW), "<b@home.example>", NOW));
}

#[tokio::test]
async fn what_is_too_old_leaves_the_disk_and_is_not_taken_for_new() {
    let host = Host::new();
    let repeats = host.repeats();
    for day in 0..70 {
        let now = NOW.plus(day * DAY_MS);
        assert!(take(&repeats, named(day, now), "<b@home.example>", now));
        assert!(host.files().len() <= 32, "{} files on day {day}", host.files().len());
    }
    let now = NOW.plus(70 * DAY_MS);
    let next = host.repeats();
    assert!(!take(&next, named(50, NOW.plus(50 * DAY_MS)), "<b@home.example>", now));
    let late = next.claim(&named(1, NOW.plus(DAY_MS)), &["<b@home.example>".to_owned()], true, now);
    assert!(matches!(late, Ok(Claimed::New { is_late: true, .. })));
}

/// The process was killed between the commit and the entry.
#[tokio::test]
async fn what_the_queue_holds_is_remembered_anyhow() {
    let host = Host::new();
    let passage = Passage::new(named(1, NOW), NodeId::from_octets([1; 32]));
    host.commit(&passage, "b@home.example", NOW);
    let repeats = host.repeats();
    assert!(!take(&repeats, passage.message, "<b@home.example>", NOW.plus(1000)));
    assert!(take(&repeats, passage.message, "<c@home.example>", NOW.plus(1000)));
    host.queue.ids(None, 10).into_iter().for_each(|id| assert!(host.queue.retire(id)));
    assert!(!take(&host.repeats(), passage.message, "<b@home.example>", NOW.plus(2000)));
}
