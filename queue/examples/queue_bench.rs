//! Measures the queue beside one file per message, in one run on one disk.
//!
//! `queue_bench DIRECTORY [SECONDS] [OCTETS] [WRITERS]`: WRITERS threads commit messages, wait for the
//! answer, load and read each once and retire it. The other side writes each message to a file of its
//! own, syncs it and its directory, reads it and removes it. Figures are ratios: disks differ.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use postroad_queue::{Options, Origin, OsFs, Queue, UnixMillis};
use postroad_smtp::{Envelope, MailParams, Recipient};

struct Figures {
    messages: u64,
    seconds: f64,
    cpu_micros: f64,
    latencies: Vec<u64>,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let place = arguments.next().ok_or("name a directory on the disk to measure")?;
    let mut number = |default: u64| arguments.next().map_or(Ok(default), |text| text.parse());
    let (seconds, octets, writers) = (number(5)?, number(10 << 10)? as usize, number(64)?);
    let place = Path::new(&place).join("queue_bench");
    let _ = fs::remove_dir_all(&place);
    fs::create_dir_all(&place)?;
    let files = measure(seconds, writers, |w| one_file_each(&place, w, octets));
    let queue = Queue::open(Arc::new(OsFs::open(&place.join("queue"))?), Options::default())?.0;
    let committer = queue.start()?;
    let log = measure(seconds, writers, |w| through_queue(&queue, w, octets));
    committer.stop();
    drop(queue);
    fs::remove_dir_all(&place)?;
    show("one file each, synced with its directory", &files, 1.0);
    show("the queue", &log, (log.messages as f64 / log.seconds) / (files.messages as f64 / files.seconds));
    Ok(())
}

/// Runs one step of every writer over and over for some seconds.
fn measure<S: FnMut()>(seconds: u64, writers: u64, make: impl Fn(u64) -> S + Sync) -> Figures {
    let (stop, messages) = (AtomicBool::new(false), AtomicU64::new(0));
    let (start, cpu) = (Instant::now(), cpu_micros());
    let run = |w| {
        let (mut step, mut latencies) = (make(w), Vec::new());
        while !stop.load(Ordering::Relaxed) {
            let begin = Instant::now();
            step();
            latencies.push(begin.elapsed().as_micros() as u64);
            messages.fetch_add(1, Ordering::Relaxed);
        }
        latencies
    };
    let latencies = thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = (0..writers).map(|w| scope.spawn(move || run(w))).collect();
        thread::sleep(Duration::from_secs(seconds));
        stop.store(true, Ordering::Relaxed);
        let mut latencies: Vec<u64> =
            threads.into_iter().flat_map(|t| t.join().expect("writers do not panic")).collect();
        latencies.sort_unstable();
        latencies
    });
    let (seconds, cpu_micros) = (start.elapsed().as_secs_f64(), cpu_micros() - cpu);
    Figures { messages: messages.into_inner(), seconds, cpu_micros, latencies }
}

fn through_queue(queue: &Queue, writer: u64, octets: usize) -> impl FnMut() + use<'_> {
    let content = content(writer, octets);
    let path = |text: &str| text.parse().expect("an address");
    let recipients = vec![Recipient::new(path("someone@example.org"))];
    let envelope = Envelope::new("s@example.net".parse().expect("an address"), MailParams::default(), recipients)
        .expect("a recipient");
    let origin = Origin { protocol: "ESMTPS".into(), session: "0123456789".into(), ..Origin::default() };
    let (sender, receiver) = mpsc::sync_channel(1);
    let mut piece = vec![0; 64 << 10];
    move || {
        let now = now();
        let mut draft = queue.draft(now).expect("a draft");
        for piece in content.chunks(16 << 10) {
            draft.append(piece).expect("space");
        }
        let sender = sender.clone();
        let expires = now.plus(5 * 86_400_000);
        draft.commit(envelope.clone(), origin.clone(), expires, now, move |result| {
            sender.send(result).expect("the writer waits");
        });
        let id = receiver.recv().expect("an answer").expect("committed").id();
        let item = queue.load(id).expect("an item");
        let mut reader = queue.content(id).expect("content");
        let mut at = 0;
        while at < item.content_octets {
            at += reader.read_at(at, &mut piece).expect("sound content") as u64;
        }
        queue.retire(id);
    }
}

fn one_file_each(place: &Path, writer: u64, octets: usize) -> impl FnMut() {
    let content = content(writer, octets);
    let dir = place.join(format!("files-{}", writer % 16));
    fs::create_dir_all(&dir).expect("a directory");
    let mut n = 0;
    move || {
        n += 1;
        let path = dir.join(format!("{writer}-{n}"));
        let mut file = File::create_new(&path).expect("a new file");
        file.write_all(&content).expect("space");
        file.sync_all().expect("a sync");
        File::open(&dir).and_then(|dir| dir.sync_all()).expect("a sync");
        assert_eq!(fs::read(&path).expect("content").len(), content.len());
        fs::remove_file(&path).expect("removed");
    }
}

fn content(seed: u64, octets: usize) -> Vec<u8> {
    (0..octets as u64).map(|i| (i.wrapping_mul(i + seed) >> 3) as u8).collect()
}

fn now() -> UnixMillis {
    UnixMillis(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_millis() as u64))
}

/// Processor time of this process so far, the kernel's work for it included.
fn cpu_micros() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

#[allow(clippy::print_stdout)]
fn show(name: &str, figures: &Figures, ratio: f64) {
    let Figures { messages, seconds, cpu_micros, latencies } = figures;
    let at = |share: f64| latencies.get((latencies.len() as f64 * share) as usize).copied().unwrap_or(0) as f64 / 1e3;
    println!(
        "{name:<42} {:>8.0} messages/s ({ratio:.1}x)  {:>6.1} us CPU each  p50 {:.2} ms  p99 {:.2} ms",
        *messages as f64 / seconds,
        cpu_micros / *messages as f64,
        at(0.5),
        at(0.99)
    );
}
