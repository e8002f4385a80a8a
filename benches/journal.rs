//! What the journal costs: processor time to note what happens to a message, and the time to search a
//! full one.
//!
//! `cargo bench --bench journal` fills 256 MiB below the temporary directory, which are in the system's
//! cache when they are searched. Processor times, so that a busy machine changes little; the times of
//! the searches are those of a clock.

#![allow(clippy::print_stdout, reason = "a bench shows its figures")]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use postroad::clock::Clock;
use postroad::journal::{Journal, Key, Kind, Limits, Note, Question, search};
use postroad::metrics::Metrics;
use postroad_queue::{Item, Origin, QueueId, State, UnixMillis};
use postroad_smtp::{Envelope, MailParams, Recipient, Reply, Status};
use rustix::time::{ClockId, clock_gettime};

const LIMITS: Limits = Limits { octets_max: 256 << 20, age_ms: 15 * 86_400_000 };
/// Enough to fill the journal and to push the first ones out.
const MESSAGES: u64 = 1_000_000;
/// Noted at a time, before the writer is given time to follow.
const BURST: u64 = 5_000;

fn main() {
    let scratch = tempfile::tempdir().expect("a temporary directory");
    let dir = scratch.path().join("journal");
    let clock = Clock::start();
    let journal = Journal::start(dir.clone(), LIMITS, clock, Arc::new(Metrics::new())).expect("a thread");
    let noted = fill(&journal, clock.now());
    println!("note: {:.0} ns of the processor a message (accepted, delivered, retired)", noted * 1e9 / MESSAGES as f64);
    journal.close();
    let octets: u64 = files(&dir).sum();
    println!("journal: {:.1} MiB", octets as f64 / f64::from(1 << 20));
    let last = id(MESSAGES - 1);
    for (name, key) in [
        ("queue id, the newest", Key::Queue(last)),
        ("Message-ID, the newest", Key::Text(message_id(MESSAGES - 1))),
        ("Message-ID, not there", Key::Text("nobody@example.org".to_owned())),
        ("address, of each hundredth", Key::Text("recipient-42@example.com".to_owned())),
    ] {
        let question = Question { key, since: UnixMillis(0), messages_max: 20 };
        let started = Instant::now();
        let found = search(&dir, LIMITS, clock.now(), &question).expect("readable");
        let took = started.elapsed();
        println!(
            "search by {name}: {} ms, {} messages and {} more",
            took.as_millis(),
            found.messages.len(),
            found.more
        );
    }
}

fn files(dir: &Path) -> impl Iterator<Item = u64> {
    std::fs::read_dir(dir).expect("made").map(|file| file.expect("readable").metadata().expect("there").len())
}

fn id(n: u64) -> QueueId {
    QueueId::from_u64((1_800_000_000_000 << 20) + n)
}

fn message_id(n: u64) -> String {
    format!("20261122070405.{n}.5af1@app-17.example.org")
}

/// Notes what usually happens to so many messages; returns the seconds of the processor that this thread
/// took for it.
fn fill(journal: &Journal, now: UnixMillis) -> f64 {
    let reply = Reply::of(250, Some(Status::new(2, 0, 0)), "Ok: queued as 4FxKzT2b9Qz1c7");
    let items: Vec<Item> = (0..100).map(|n| item(n, now)).collect();
    let ids: Vec<String> = (0..BURST).map(message_id).collect();
    let mut seconds = 0.0;
    for burst in 0..MESSAGES / BURST {
        let ids: Vec<String> = match burst + 1 == MESSAGES / BURST {
            true => (burst * BURST..MESSAGES).map(message_id).collect(),
            false => ids.clone(),
        };
        let mut items = items.clone();
        let started = processor();
        for (n, message_id) in ids.iter().enumerate() {
            let item = &mut items[n % 100];
            item.id = id(burst * BURST + n as u64);
            journal.accepted(item, message_id.as_bytes());
            let remote = Some("mx1.example.com [192.0.2.25]");
            let note = Note { remote, reply: Some(&reply), took_ms: Some(12), ..Note::default() };
            journal.note(now, item.id, Kind::Delivered, &note);
            journal.note(now, item.id, Kind::Retired, &Note::default());
        }
        seconds += processor() - started;
        std::thread::sleep(Duration::from_millis(5));
    }
    seconds
}

fn item(n: u64, now: UnixMillis) -> Item {
    let to = Recipient::new(format!("recipient-{n}@example.com").parse().expect("valid"));
    let from = "newsletter@app.example.org".parse().expect("valid");
    Item {
        id: QueueId::from_u64(0),
        arrived: now,
        envelope: Envelope::new(from, MailParams::default(), vec![to]).expect("a recipient"),
        origin: Origin {
            peer: Some("192.0.2.9".parse().expect("valid")),
            helo: Some("app-17.example.org".into()),
            user: None,
            protocol: "ESMTPS".into(),
            session: "6b49d200-1f4".into(),
        },
        content_octets: 10_240,
        state: State::fresh(1, now, now),
    }
}

fn processor() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
