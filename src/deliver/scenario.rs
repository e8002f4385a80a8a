//! For tests: a delivery with a queue in a scratch directory, and peers on the loopback that follow
//! a script.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use postroad_queue::{Committer, Fs, Item, Options, OsFs, Queue, QueueId};
use postroad_smtp::{Envelope, MailParams, Recipient};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

use super::{Delivery, Parts, Routing};
use crate::clock::{Clock, millis};
use crate::config::Config;
use crate::journal::Journal;
use crate::memory::{Memory, Usage};
use crate::metrics::Metrics;
use crate::peer::{self, Peers};
use crate::route::Resolver;
use crate::tls::{ClientTls, Identity, ServerTls};

/// How long anything that should happen soon may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a peer does about a line.
pub enum Say {
    /// Says this, without its last CR LF.
    Text(String),
    /// Says this and is gone at once, whatever is still unread.
    Last(String),
    /// Reads so many octets, then the same.
    After(usize, String),
    /// Says this, and nothing ever after.
    Silence(String),
}

/// A line that a peer has read.
pub struct Heard<'a> {
    /// Counts the connections from 0.
    pub connection: usize,
    /// How many MAIL commands came over this connection so far.
    pub mails: usize,
    /// Without its CR LF; `.` stands for a whole message.
    pub line: &'a str,
}

type Script = Arc<dyn Fn(&Heard<'_>) -> Option<Say> + Send + Sync>;

/// A host that takes mail as a script says, and else takes all of it.
#[derive(Clone)]
pub struct Peer {
    script: Script,
    /// Every line, behind the number of its connection.
    log: Arc<Mutex<Vec<(usize, String)>>>,
}

pub fn text(text: &str) -> Option<Say> {
    Some(Say::Text(text.to_owned()))
}

impl Peer {
    /// Listens on a free port of the loopback.
    pub async fn start(script: impl Fn(&Heard<'_>) -> Option<Say> + Send + Sync + 'static) -> (Peer, u16) {
        let peer = Peer { script: Arc::new(script), log: Arc::default() };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let copy = peer.clone();
        tokio::spawn(async move {
            for connection in 0.. {
                let (stream, _) = listener.accept().await.expect("a connection");
                tokio::spawn(copy.clone().serve(connection, stream));
            }
        });
        (peer, port)
    }

    /// The same on a socket in the file system, for one connection.
    pub fn start_unix(path: &Path, script: impl Fn(&Heard<'_>) -> Option<Say> + Send + Sync + 'static) -> Peer {
        let peer = Peer { script: Arc::new(script), log: Arc::default() };
        let listener = tokio::net::UnixListener::bind(path).expect("a socket");
        let copy = peer.clone();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.expect("a connection");
            copy.serve(0, stream).await;
        });
        peer
    }

    /// Returns the lines that begin so, each behind the number of its connection.
    pub fn heard(&self, begin: &str) -> Vec<(usize, String)> {
        let log = self.log.lock().expect("no panic");
        log.iter().filter(|(_, line)| line.starts_with(begin)).cloned().collect()
    }

    async fn serve(self, connection: usize, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let mut stream = BufReader::new(stream);
        stream.write_all(b"220 peer\r\n").await.expect("it is there");
        let (mut mails, mut content) = (0, false);
        loop {
            let mut line = String::new();
            match stream.read_line(&mut line).await {
                Ok(1..) => {}
                _ => return,
            }
            let line = line.trim_end_matches("\r\n");
            if content && line != "." {
                continue;
            }
            self.log.lock().expect("no panic").push((connection, line.to_owned()));
            mails += usize::from(line.starts_with("MAIL"));
            let say = (self.script)(&Heard { connection, mails, line });
            let (words, goes) = match say.or_else(|| text(usual(line))).expect("a reply") {
                Say::Text(words) => (words, false),
                Say::Last(words) => (words, true),
                Say::After(octets, words) => {
                    stream.write_all(b"354 go\r\n").await.expect("it is there");
                    tokio::io::AsyncReadExt::read_exact(&mut stream, &mut vec![0; octets]).await.expect("content");
                    (words, true)
                }
                Say::Silence(words) => {
                    let _ = stream.write_all(format!("{words}\r\n").as_bytes()).await;
                    std::future::pending().await
                }
            };
            content = words.starts_with("354");
            let words = if words.is_empty() { words } else { format!("{words}\r\n") };
            if stream.write_all(words.as_bytes()).await.is_err() || goes {
                return;
            }
        }
    }
}

fn usual(line: &str) -> &'static str {
    match line.split_once(' ').map_or(line, |(verb, _)| verb) {
        "EHLO" | "LHLO" => "250-peer\r\n250-DSN\r\n250 PIPELINING",
        "DATA" => "354 go",
        "QUIT" => "221 bye",
        _ => "250 ok",
    }
}

/// Deliveries out of a queue of their own.
pub struct Agent {
    pub delivery: Delivery,
    pub queue: Queue,
    pub metrics: Arc<Metrics>,
    pub directory: TempDir,
    clock: Clock,
    _committer: Committer,
}

/// Reads a configuration; `{dir}` is `directory`.
pub fn config(text: &str, directory: &Path) -> Arc<Config> {
    let text = text.replace("{dir}", directory.to_str().expect("UTF-8"));
    Arc::new(Config::from_str(&text, "test", directory).unwrap_or_else(|faults| panic!("{faults}")))
}

/// Returns what follows from a configuration.
pub fn routing(config: &Arc<Config>) -> Routing {
    Routing::new(config.clone(), Resolver::new(config).expect("a resolver"), None)
}

/// Returns the mesh of a host that is in none.
fn peers(config: &Arc<Config>, clock: Clock, metrics: &Arc<Metrics>) -> Peers {
    let identity = Identity::SelfSigned { dir: config.state_dir.join("tls"), hostname: config.hostname.clone() };
    let tls = ServerTls::load(&identity).expect("made");
    let config = Arc::new(ArcSwap::from(config.clone()));
    Peers::open(peer::Parts { config, tls, clock, metrics: metrics.clone() }).expect("no key is there")
}

/// Opens a queue with small limits.
pub fn open_queue(directory: &Path) -> (Queue, Committer) {
    open_queue_on(Arc::new(OsFs::open(&directory.join("queue")).expect("opened")))
}

fn open_queue_on(fs: Arc<dyn Fs>) -> (Queue, Committer) {
    let options = Options { segment_octets: 1 << 20, reserve_octets: 0, ..Options::default() };
    let (queue, _) = Queue::open(fs, options).expect("opened");
    let committer = queue.start().expect("started");
    (queue, committer)
}

/// Puts a message into a queue and waits until it is there.
pub async fn put(queue: &Queue, clock: Clock, recipients: &[&str], content: &[u8]) -> QueueId {
    let recipients = recipients.iter().map(|path| Recipient::new(path.parse().expect("a path"))).collect();
    let sender = "a@sender.example".parse().expect("a path");
    let envelope = Envelope::new(sender, MailParams::default(), recipients).expect("recipients");
    put_envelope(queue, clock, envelope, Duration::from_secs(3600), content).await
}

/// The same with any envelope, and how long it is tried.
pub async fn put_envelope(
    queue: &Queue,
    clock: Clock,
    envelope: Envelope,
    lifetime: Duration,
    content: &[u8],
) -> QueueId {
    let now = clock.now();
    let mut draft = queue.draft(now).expect("room");
    content.chunks(64 * 1024).for_each(|piece| draft.append(piece).expect("room"));
    let (tell, told) = tokio::sync::oneshot::channel();
    let expires = now.plus(millis(lifetime));
    draft.commit(envelope, Default::default(), expires, now, move |result| drop(tell.send(result)));
    told.await.expect("told").expect("committed").id()
}

impl Agent {
    /// Starts under this configuration; `{dir}` in it is a scratch directory.
    pub fn start(text: &str) -> Agent {
        Agent::start_on(text, |fs| Arc::new(fs))
    }

    /// The same with something between the queue and its directory.
    pub fn start_on(text: &str, disk: impl FnOnce(OsFs) -> Arc<dyn Fs>) -> Agent {
        let directory = tempfile::tempdir().expect("scratch");
        let (queue, committer) = open_queue_on(disk(OsFs::open(&directory.path().join("queue")).expect("opened")));
        let (metrics, clock) = (Arc::new(Metrics::new()), Clock::start());
        let text = format!("state_dir = \"{}\"\n{text}", directory.path().display());
        let config = config(&text, directory.path());
        let delivery = Delivery::new(Parts {
            queue: queue.clone(),
            routing: routing(&config),
            tls: ClientTls::new(),
            peers: peers(&config, clock, &metrics),
            clock,
            journal: Journal::default(),
            metrics: metrics.clone(),
            memory: Arc::new(Memory::new(u64::MAX, Usage::default)),
        });
        Agent { delivery, queue, metrics, directory, clock, _committer: committer }
    }

    pub async fn put(&self, recipients: &[&str], content: &[u8]) -> QueueId {
        put(&self.queue, self.clock, recipients, content).await
    }

    pub async fn put_envelope(&self, envelope: Envelope, lifetime: Duration, content: &[u8]) -> QueueId {
        put_envelope(&self.queue, self.clock, envelope, lifetime, content).await
    }

    /// Waits for the record of a message to be so; `None` is a message that is gone, delivered to all.
    pub async fn wait(&self, id: QueueId, so: impl Fn(Option<&Item>) -> bool) {
        let look = async {
            while !so(self.queue.load(id).ok().as_deref()) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, look).await;
        waited.unwrap_or_else(|_| panic!("{:?}", self.queue.load(id)));
    }

    pub async fn wait_delivered(&self, id: QueueId) {
        self.wait(id, |item| item.is_none()).await;
    }

    /// Waits until a connection lies ready to be used again: that is a moment after the delivery over it.
    pub async fn wait_pooled(&self) {
        let look = async {
            while self.delivery.0.pool.len() == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, look).await.expect("one is kept");
    }
}
