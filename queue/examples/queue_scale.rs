//! Measures a queue with very many deferred messages: opening it, reading it, and its memory.
//!
//! `queue_scale DIRECTORY MESSAGES [OCTETS]` fills the queue in DIRECTORY when it is empty: each message
//! is committed and one attempt recorded. Then, in a process of its own each time: opens it and reads
//! all messages as the start of an agent does; `--drain` retires all but one in a hundred, waits until
//! the queue has tidied up, and says what the disk gave back.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use postroad_queue::{
    Options, Origin, OsFs, Queue, QueueId, RecipientState, RecoveryReport, Report, State, UnixMillis, Words,
};
use postroad_smtp::{Envelope, MailParams, Recipient, Reply, Status};

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
const EXPIRES: UnixMillis = UnixMillis(1_800_432_000_000);
/// Messages handed in before the answers are waited for.
const AHEAD: usize = 2000;
/// Messages looked at in one go, as a list with a filter does.
const PAGE: usize = 64 << 10;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (options, words): (Vec<String>, Vec<String>) = std::env::args().skip(1).partition(|word| word.starts_with('-'));
    let place = words.first().ok_or("name a directory on the disk to measure")?;
    let count: usize = words.get(1).ok_or("say how many messages")?.parse()?;
    let octets = words.get(2).map_or(Ok(1024), |text| text.parse())?;
    let path = Path::new(place).join("queue");
    let (before, start, cpu) = (resident(), Instant::now(), cpu_seconds());
    let (queue, report) = open(&path)?;
    let (opened, opened_cpu) = (start.elapsed(), cpu_seconds() - cpu);
    if report.messages == 0 {
        let start = Instant::now();
        fill(&queue, count, octets)?;
        return show(format_args!("filled with {count} messages in {:.1} s", start.elapsed().as_secs_f64()));
    }
    let opened_memory = resident();
    let (start, cpu) = (Instant::now(), cpu_seconds());
    let read = read_with(&queue, &Words::default());
    let (read_time, read_cpu) = (start.elapsed(), cpu_seconds() - cpu);
    let (start, cpu) = (Instant::now(), cpu_seconds());
    let found = read_with(&queue, &Words::new(["RECIPIENT-1777@"]));
    let (found_time, found_cpu) = (start.elapsed(), cpu_seconds() - cpu);
    let each = |octets: usize| octets as f64 / report.messages as f64;
    show(format_args!(
        "{} messages in {} segments, {:.0} octets of disk each\nopened in {:.3} s ({opened_cpu:.3} s of a processor), {:.1} octets of memory each\n{read} read in {:.3} s ({read_cpu:.3} s), {:.1} octets of memory each\n{found} found among them in {:.3} s ({found_cpu:.3} s)",
        report.messages,
        report.segments,
        each(queue.disk_octets() as usize),
        opened.as_secs_f64(),
        each(opened_memory - before),
        read_time.as_secs_f64(),
        each(resident() - before),
        found_time.as_secs_f64(),
    ))?;
    if options.iter().any(|option| option == "--drain") { drain(&queue, Path::new(place)) } else { Ok(()) }
}

/// Reads all messages with these words in them, as the start of an agent and a list with a filter do.
fn read_with(queue: &Queue, words: &Words) -> usize {
    let (mut read, mut after) = (0, None);
    loop {
        let ids = queue.ids(after, PAGE);
        let Some(last) = ids.last() else { return read };
        after = Some(*last);
        read += queue.load_many_with(&ids, words.clone()).filter(|(_, item)| item.is_ok()).count();
    }
}

fn open(path: &Path) -> Result<(Queue, RecoveryReport), Box<dyn std::error::Error>> {
    Ok(Queue::open(Arc::new(OsFs::open(path)?), Options::default())?)
}

fn fill(queue: &Queue, count: usize, octets: usize) -> Result<(), Box<dyn std::error::Error>> {
    let committer = queue.start()?;
    let content: Vec<u8> = (0..octets).map(|i| b"Lorem ipsum dolor sit amet.\r\n"[i % 29]).collect();
    for from in (0..count).step_by(AHEAD) {
        let ids: Vec<QueueId> = (from..count.min(from + AHEAD)).map(|n| submit(queue, n, &content)).collect();
        wait(|| queue.len() == from + ids.len());
        let recorded = Arc::new(AtomicUsize::new(0));
        for id in &ids {
            let recorded = recorded.clone();
            queue.record(*id, deferred(), move |result| {
                result.expect("recorded");
                recorded.fetch_add(1, Ordering::Relaxed);
            });
        }
        wait(|| recorded.load(Ordering::Relaxed) == ids.len());
    }
    committer.stop();
    Ok(())
}

fn submit(queue: &Queue, n: usize, content: &[u8]) -> QueueId {
    // Some hundred a second, as they would arrive.
    let mut draft = queue.draft(NOW.plus(n as u64 * 2)).expect("a draft");
    draft.append(content).expect("space");
    let id = draft.id();
    let path = |text: String| text.parse().expect("an address");
    let recipients = vec![Recipient::new(path(format!("recipient-{n}@example-{}.org", n % 1000)))];
    let from = format!("sender-{}@example.net", n % 100).parse().expect("an address");
    let envelope = Envelope::new(from, MailParams::default(), recipients).expect("a recipient");
    let peer = Some("192.0.2.1".parse().expect("an address"));
    let helo = Some("client.example.net".into());
    let origin = Origin { peer, helo, protocol: "ESMTPS".into(), session: "0123456789".into(), ..Origin::default() };
    draft.commit(envelope, origin, EXPIRES, NOW, |result| {
        result.expect("committed");
    });
    id
}

fn deferred() -> State {
    let reply = Reply::of(451, Some(Status::new(4, 4, 1)), "cannot connect to mx.example.org: connection refused");
    let last = Some(Report { at: NOW, remote: Some("mx.example.org [192.0.2.25]".into()), reply });
    let recipients =
        vec![RecipientState::Pending { attempts: 1, due: NOW.plus(300_000), last, earlier: Default::default() }];
    State { recipients, ..State::fresh(0, NOW, EXPIRES) }
}

fn drain(queue: &Queue, place: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let (peak, count) = (blocks(place)?, queue.len());
    let committer = queue.start()?;
    let start = Instant::now();
    for (n, id) in queue.ids(None, usize::MAX).into_iter().enumerate() {
        if n % 100 > 0 {
            queue.retire(id);
        }
    }
    let (mut last, mut since) = (u64::MAX, Instant::now());
    while since.elapsed() < Duration::from_secs(3) {
        std::thread::sleep(Duration::from_millis(100));
        let now = blocks(place)?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    show(format_args!(
        "{} of {count} left; {:.1} s until the disk was given back: {last} octets of {peak}, {:.1} %; {} octets of memory",
        queue.len(),
        (start.elapsed() - since.elapsed()).as_secs_f64(),
        last as f64 * 100.0 / peak as f64,
        resident(),
    ))?;
    committer.stop();
    Ok(())
}

/// Returns the octets of disk that a directory takes, as `du` counts them.
fn blocks(place: &Path) -> std::io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut sum = 0;
    for entry in std::fs::read_dir(place)? {
        let entry = entry?;
        sum += match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => blocks(&entry.path())?,
            Ok(metadata) => metadata.blocks() * 512,
            Err(_) => 0,
        };
    }
    Ok(sum)
}

fn wait(done: impl Fn() -> bool) {
    while !done() {
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Returns the processor time of this process so far, the kernel's work for it included.
fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Returns the octets of memory this process has.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    text.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096
}

#[allow(clippy::print_stdout)]
fn show(text: std::fmt::Arguments<'_>) -> Result<(), Box<dyn std::error::Error>> {
    println!("{text}");
    Ok(())
}
