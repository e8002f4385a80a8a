//! Attempts whose outcome the disk has no room for, notifications of which it has none to say that they were sent, and
//! attempts that an admin steers meanwhile.

use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use postroad_queue::fs::{Access, Dir, FsFile};
use postroad_queue::schedule::Why;
use postroad_queue::{Fs, OsFs};

use super::super::scenario::{Agent, Peer, Say, text};
use super::*;

/// Whether there is no room for a write that begins so.
type HasNone = Arc<dyn Fn(&[u8]) -> bool + Send + Sync>;

/// A disk that is full now and then.
#[derive(Clone)]
struct Tight<T>(T, HasNone);

/// How the record of a state begins (docs/queue-format.md).
const STATE_RECORD: &[u8] = b"PRec\x02";

impl<T> Tight<T> {
    fn room(&self, octets: &[u8]) -> io::Result<()> {
        if (self.1)(octets) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn file(&self, file: Arc<dyn FsFile>) -> Arc<dyn FsFile> {
        Arc::new(Tight(file, self.1.clone()))
    }
}

impl Fs for Tight<OsFs> {
    fn place(&self) -> String {
        self.0.place()
    }

    fn list(&self, dir: Dir) -> io::Result<Vec<String>> {
        self.0.list(dir)
    }

    fn create(&self, dir: Dir, name: &str) -> io::Result<Arc<dyn FsFile>> {
        self.room(b"")?;
        Ok(self.file(self.0.create(dir, name)?))
    }

    fn open(&self, dir: Dir, name: &str, access: Access) -> io::Result<Arc<dyn FsFile>> {
        Ok(self.file(self.0.open(dir, name, access)?))
    }

    fn rename(&self, from: (Dir, &str), to: (Dir, &str)) -> io::Result<()> {
        self.0.rename(from, to)
    }

    fn remove(&self, dir: Dir, name: &str) -> io::Result<()> {
        self.0.remove(dir, name)
    }

    fn sync_dir(&self, dir: Dir) -> io::Result<()> {
        self.0.sync_dir(dir)
    }

    fn free_octets(&self) -> io::Result<u64> {
        self.0.free_octets()
    }
}

impl FsFile for Tight<Arc<dyn FsFile>> {
    fn octets(&self) -> io::Result<u64> {
        self.0.octets()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, pieces: &mut [IoSlice<'_>]) -> io::Result<()> {
        self.room(pieces.first().map_or(b"", |piece| piece))?;
        self.0.write_at(offset, pieces)
    }

    fn allocate(&self, octets: u64) -> io::Result<()> {
        self.room(b"")?;
        self.0.allocate(octets)
    }

    fn set_octets(&self, octets: u64) -> io::Result<()> {
        self.0.set_octets(octets)
    }

    fn start_writeback(&self, offset: u64, octets: u64) {
        self.0.start_writeback(offset, octets);
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }
}

fn all_to(port: u16) -> String {
    format!("hostname = \"mx.home.example\"\n[[route]]\ndomain = \"*\"\nvia = \"127.0.0.1:{port}\"\n")
}

/// Waits until nothing is under way, and so many jobs wait for their time.
async fn rest(agent: &Agent, deferred: usize) {
    let look = async {
        loop {
            let totals = agent.delivery.totals();
            if (totals.in_flight, totals.deferred) == (0, deferred) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), look).await;
    waited.unwrap_or_else(|_| panic!("{:?}", agent.delivery.totals()));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_delivered_to_is_not_tried_again_when_the_disk_had_no_room_to_say_so() {
    let is_full = Arc::new(AtomicBool::new(false));
    let fills = is_full.clone();
    let (peer, port) = Peer::start(move |heard| {
        let is_last = heard.line.starts_with("RCPT TO:<late@") && heard.mails < 3;
        if heard.line == "." {
            fills.store(heard.mails == 1, Ordering::Relaxed);
        }
        is_last.then(|| Say::Text("451 4.2.1 not now".to_owned()))
    })
    .await;
    let full = is_full.clone();
    let disk = |fs| Arc::new(Tight(fs, Arc::new(move |_: &[u8]| full.load(Ordering::Relaxed)))) as Arc<dyn Fs>;
    let agent = Agent::start_on(&all_to(port), disk);
    let id = agent.put(&["soon@example.org", "late@example.org"], b"x\r\n").await;
    rest(&agent, 1).await;
    assert_eq!(peer.heard("RCPT TO:<soon@").len(), 1);
    // While the disk is full nobody is tried: what came of it could not be recorded, either.
    assert_eq!(agent.delivery.retry(id, &[0, 1]), Ok(true));
    rest(&agent, 1).await;
    assert_eq!(peer.heard("MAIL").len(), 1);
    is_full.store(false, Ordering::Relaxed);
    for mails in [2, 3] {
        assert_eq!(agent.delivery.retry(id, &[1]), Ok(true));
        agent.wait(id, |item| item.is_none() || peer.heard("MAIL").len() == mails).await;
        if mails == 2 {
            rest(&agent, 1).await;
        }
    }
    agent.wait_delivered(id).await;
    assert_eq!((peer.heard("RCPT TO:<soon@").len(), peer.heard("RCPT TO:<late@").len()), (1, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_told_is_not_told_again_when_the_disk_had_no_room_to_say_so() {
    let (peer, port) = Peer::start(|heard| {
        heard.line.starts_with("RCPT TO:<nobody@").then(|| Say::Text("550 5.1.1 no such user".to_owned()))
    })
    .await;
    let (is_full, states) = (Arc::new(AtomicBool::new(true)), AtomicUsize::new(0));
    let full = is_full.clone();
    // Room for what the attempt came to, and none for the notification that was sent.
    let has_none = move |octets: &[u8]| {
        octets.starts_with(STATE_RECORD) && states.fetch_add(1, Ordering::Relaxed) > 0 && full.load(Ordering::Relaxed)
    };
    let agent = Agent::start_on(&all_to(port), |fs| Arc::new(Tight(fs, Arc::new(has_none))));
    let id = agent.put(&["nobody@example.org"], b"x\r\n").await;
    rest(&agent, 1).await;
    assert_eq!(agent.delivery.retry(id, &[0]), Ok(true));
    rest(&agent, 1).await;
    is_full.store(false, Ordering::Relaxed);
    assert_eq!(agent.delivery.retry(id, &[0]), Ok(true));
    agent.wait_delivered(id).await;
    rest(&agent, 0).await;
    assert_eq!(peer.heard("MAIL FROM:<>").len(), 1, "{:?}", peer.heard("MAIL"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_released_while_the_queue_was_read_is_not_held() {
    let (_, port) =
        Peer::start(|heard| heard.line.starts_with("RCPT").then(|| text("451 4.2.1 not now")).flatten()).await;
    let agent = Agent::start(&all_to(port));
    let id = agent.put(&["x@example.org"], b"x\r\n").await;
    rest(&agent, 1).await;
    assert_eq!(agent.delivery.hold(id, "uid 0").await, Ok(true));
    let read = agent.queue.load(id).expect("it waits");
    assert_eq!(agent.delivery.release(id, "uid 0").await, Ok(true));
    agent.delivery.0.admit(&[read], &Admission::Anew);
    let standings = agent.delivery.standings(id);
    assert!(standings.len() == 1 && standings[0].why != Why::Held, "{standings:?}");
}
