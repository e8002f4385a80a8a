//! The writer: when it writes, what it does about a disk that fails, and how it ends.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::*;

const LIMITS: Limits = Limits { octets_max: 16 << 20, age_ms: 86_400_000 };
const ID: QueueId = QueueId::from_u64(5);

fn start(dir: &Path) -> (Journal, Arc<Metrics>, Clock) {
    let (clock, metrics) = (Clock::start(), Arc::new(Metrics::new()));
    let journal = Journal::start(dir.to_owned(), LIMITS, clock, metrics.clone()).expect("a thread");
    (journal, metrics, clock)
}

fn count(journal: &Journal) -> usize {
    let question = Question { key: Key::Queue(ID), since: UnixMillis(0), messages_max: 1 };
    let found = journal.search(&question).expect("readable");
    found.messages.first().map_or(0, |message| message.events.len())
}

fn note(journal: &Journal, clock: Clock, times: usize) {
    (0..times).for_each(|_| journal.note(clock.now(), ID, Kind::Held, &Note { by: Some("uid 0"), ..Note::default() }));
}

#[test]
fn what_was_noted_is_found_at_once_and_after_a_restart() {
    let scratch = tempfile::tempdir().expect("scratch");
    let dir = scratch.path().join("journal");
    let (journal, _, clock) = start(&dir);
    assert!(!dir.exists(), "nothing is made before something happens");
    let mut noted = 0;
    // One of a few that is quicker is enough: the machine may be busy.
    let is_quick = (0..5).any(|_| {
        note(&journal, clock, 3);
        noted += 3;
        let asked = Instant::now();
        assert_eq!(count(&journal), noted);
        asked.elapsed() < PERIOD
    });
    assert!(is_quick, "a search does not wait for the period");
    note(&journal, clock, 2);
    journal.close();
    let (journal, metrics, clock) = start(&dir);
    assert_eq!(count(&journal), noted + 2);
    note(&journal, clock, 1);
    assert_eq!((count(&journal), metrics.journal_dropped.get()), (noted + 3, 0));
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    let file = fs::read_dir(&dir).expect("there").next().expect("one file").expect("readable").path();
    assert_eq!((mode(&dir), mode(&file)), (0o700, 0o600), "others cannot read who writes to whom");
    journal.close();
}

#[test]
fn events_are_written_without_being_asked_for() {
    let scratch = tempfile::tempdir().expect("scratch");
    let dir = scratch.path().join("journal");
    let (journal, _, clock) = start(&dir);
    note(&journal, clock, 1);
    let question = Question { key: Key::Queue(ID), since: UnixMillis(0), messages_max: 1 };
    let (noted, late) = (Instant::now(), 20 * PERIOD);
    while search(&dir, LIMITS, clock.now(), &question).map_or(0, |found| found.messages.len()) == 0 {
        assert!(noted.elapsed() < late, "nothing is written by itself");
        std::thread::sleep(PERIOD / 20);
    }
    journal.close();
}

#[test]
fn a_disk_that_fails_costs_events_and_nothing_else() {
    let scratch = tempfile::tempdir().expect("scratch");
    let dir = scratch.path().join("journal");
    fs::write(&dir, "a file is in the way").expect("writable");
    let (journal, metrics, clock) = start(&dir);
    note(&journal, clock, 7);
    let shared = journal.0.as_ref().expect("it is on");
    shared.flush();
    assert_eq!(metrics.journal_dropped.get(), 7);
    fs::remove_file(&dir).expect("removable");
    note(&journal, clock, 2);
    assert_eq!((count(&journal), metrics.journal_dropped.get()), (2, 7));
    journal.close();
}

#[test]
fn a_disk_that_hangs_fills_the_buffer_and_no_more() {
    let (clock, metrics) = (Clock::start(), Arc::new(Metrics::new()));
    // Nobody takes what waits.
    let journal = Journal(Some(Arc::new(Shared {
        dir: PathBuf::new(),
        limits: LIMITS,
        clock,
        metrics: metrics.clone(),
        waiting: Mutex::default(),
        wake: Condvar::new(),
        written: Condvar::new(),
        thread: Mutex::default(),
    })));
    note(&journal, clock, 200_000);
    let waiting = journal.0.as_ref().expect("it is on").waiting.lock().expect("no panic").batch.len();
    assert!((WAITING_OCTETS_MAX..WAITING_OCTETS_MAX + 100).contains(&waiting), "{waiting}");
    assert!(metrics.journal_dropped.get() > 0);
}

#[test]
fn a_journal_that_is_off_does_nothing() {
    let journal = Journal::default();
    note(&journal, Clock::start(), 1);
    assert_eq!((count(&journal), journal.is_on()), (0, false));
    journal.close();
}
