//! A next hop that does what the test wants: an SMTP or LMTP server that records every message,
//! octet by octet, and misbehaves on demand.
//!
//! It watches the client, too: [`Sink::complaints`] lists what no client may do (a bare CR or LF,
//! pipelining that was not offered, parameters that were not offered, octets before the greeting).

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::net::{own_address, wait_until};
use super::wire::Wire;

mod session;

/// Where a session can be cut or slowed down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Instead of the greeting.
    Greeting,
    /// Instead of the reply to EHLO or LHLO.
    Hello,
    /// Instead of the reply to MAIL.
    Mail,
    /// Instead of the reply to RCPT.
    Rcpt,
    /// Instead of 354.
    Data,
    /// After content was read (and recorded), instead of its reply.
    Content,
    /// Instead of the reply to QUIT.
    Quit,
}

/// How the sink answers a recipient, a sender or content: the text and how often it was asked
/// about it before give the reply line.
pub type Answer = Arc<dyn Fn(&str, usize) -> String + Send + Sync>;

/// What the sink does. Change it at any time by [`Sink::behave`].
#[derive(Clone)]
pub struct Behaviour {
    /// The greeting.
    pub greeting: String,
    /// LMTP: LHLO, and one reply per recipient.
    pub lmtp: bool,
    /// Extensions offered.
    pub starttls: bool,
    /// PIPELINING.
    pub pipelining: bool,
    /// CHUNKING.
    pub chunking: bool,
    /// 8BITMIME.
    pub eight_bit: bool,
    /// SMTPUTF8.
    pub smtputf8: bool,
    /// DSN.
    pub dsn: bool,
    /// DELIVERBY with this shortest by-time.
    pub deliver_by: Option<u32>,
    /// MT-PRIORITY.
    pub mt_priority: bool,
    /// XMESH 1, as a member of a mesh lists it to members.
    pub mesh: bool,
    /// SIZE with this limit.
    pub size: Option<u64>,
    /// Credentials that AUTH needs; MAIL is refused without it.
    pub auth: Option<(String, String)>,
    /// The reply to MAIL.
    pub mail: Answer,
    /// The reply to each RCPT.
    pub rcpt: Answer,
    /// The reply to DATA, when it is not 354.
    pub data: Option<String>,
    /// The reply to the content; LMTP: to the content for each recipient.
    pub content: Answer,
    /// Where the connection is dropped.
    pub drop_at: Option<Phase>,
    /// How often it is; after that it goes on there.
    pub drops: usize,
    /// Where a session pauses.
    pub slow_at: Option<(Phase, Duration)>,
    /// Refuse TLS in the handshake although STARTTLS is offered.
    pub break_tls: bool,
}

impl Default for Behaviour {
    fn default() -> Behaviour {
        Behaviour {
            greeting: "220 sink.test ESMTP".into(),
            lmtp: false,
            starttls: false,
            pipelining: true,
            chunking: true,
            eight_bit: true,
            smtputf8: true,
            dsn: true,
            deliver_by: None,
            mt_priority: false,
            mesh: false,
            size: None,
            auth: None,
            mail: Arc::new(|_, _| "250 2.1.0 Sender OK".into()),
            rcpt: Arc::new(|_, _| "250 2.1.5 Recipient OK".into()),
            data: None,
            content: Arc::new(|_, _| "250 2.0.0 Taken".into()),
            drop_at: None,
            drops: usize::MAX,
            slow_at: None,
            break_tls: false,
        }
    }
}

/// A message as it came over the wire.
#[derive(Clone, Debug)]
pub struct Message {
    /// The number of the session, from 0.
    pub session: usize,
    /// What the client called itself.
    pub helo: String,
    /// Whether TLS was on.
    pub tls: bool,
    /// The user that logged in.
    pub user: Option<String>,
    /// Whether it came by BDAT.
    pub bdat: bool,
    /// The argument of MAIL FROM without brackets.
    pub reverse_path: String,
    /// The parameters of MAIL.
    pub mail_parameters: String,
    /// The accepted recipients, without brackets.
    pub recipients: Vec<String>,
    /// Their RCPT parameters.
    pub rcpt_parameters: Vec<String>,
    /// The content, dots unstuffed.
    pub content: Vec<u8>,
    /// What the sink said to it (LMTP: to the first recipient).
    pub reply: String,
}

impl Message {
    /// Returns the content without the Received field that the agent put on top.
    ///
    /// # Panics
    /// When the content does not begin with one.
    pub fn relayed(&self) -> &[u8] {
        without_received(&self.content)
    }

    /// Returns whether the sink took it: a message that it refused or dropped does not count.
    pub fn taken(&self) -> bool {
        self.reply.starts_with('2')
    }
}

/// Returns content without the Received field on top.
///
/// # Panics
/// When it does not begin with one.
pub fn without_received(content: &[u8]) -> &[u8] {
    let shown = || String::from_utf8_lossy(&content[..content.len().min(200)]).into_owned();
    assert!(content.starts_with(b"Received: "), "no Received field on top: {}", shown());
    let mut end = 0;
    loop {
        end += memchr::memmem::find(&content[end..], b"\r\n").expect("a header field has an end") + 2;
        if !matches!(content.get(end), Some(b' ' | b'\t')) {
            return &content[end..];
        }
    }
}

struct Shared {
    behaviour: Mutex<Behaviour>,
    messages: Mutex<Vec<Message>>,
    complaints: Mutex<Vec<String>>,
    commands: Mutex<Vec<String>>,
    asked: Mutex<HashMap<String, usize>>,
    sessions: Mutex<usize>,
    dropped: AtomicUsize,
    closed: AtomicBool,
}

/// A running next hop.
pub struct Sink {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Sink {
    /// Starts one at an address of its own, port 2525.
    pub fn start(behaviour: Behaviour) -> Sink {
        Sink::start_at(SocketAddr::new(own_address(), 2525), behaviour)
    }

    /// Starts one that puts everybody off.
    pub fn busy() -> Sink {
        let sink = Sink::new();
        sink.behave(|sink| sink.rcpt = Arc::new(|_, _| "451 4.2.1 Busy".into()));
        sink
    }

    /// Returns how often it was asked to take a recipient.
    pub fn asked(&self) -> usize {
        self.commands().iter().filter(|line| line.starts_with("RCPT")).count()
    }

    /// Starts a well-behaved one.
    pub fn new() -> Sink {
        Sink::start(Behaviour::default())
    }

    /// Starts one at this address.
    pub fn start_at(address: SocketAddr, behaviour: Behaviour) -> Sink {
        let listener = TcpListener::bind(address).unwrap_or_else(|error| panic!("{address}: {error}"));
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared::new(behaviour));
        let state = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if state.closed.load(Ordering::SeqCst) {
                    break;
                }
                serve(stream.into(), &state);
            }
        });
        Sink { address, shared }
    }

    /// Starts one at a socket in the file system.
    pub fn start_unix(path: &Path, behaviour: Behaviour) -> Sink {
        let listener = std::os::unix::net::UnixListener::bind(path).expect("the path is free");
        let shared = Arc::new(Shared::new(behaviour));
        let state = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                serve(stream.into(), &state);
            }
        });
        Sink { address: SocketAddr::from(([0, 0, 0, 0], 0)), shared }
    }

    /// Returns where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the IP address.
    pub fn ip(&self) -> IpAddr {
        self.address.ip()
    }

    /// Changes what it does from the next command on.
    pub fn behave(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut lock(&self.shared.behaviour));
    }

    /// Returns everything that was recorded, refused messages included.
    pub fn recorded(&self) -> Vec<Message> {
        lock(&self.shared.messages).clone()
    }

    /// Returns the messages that the sink took.
    pub fn messages(&self) -> Vec<Message> {
        lock(&self.shared.messages).iter().filter(|message| message.taken()).cloned().collect()
    }

    /// Returns how many messages the sink took.
    pub fn count(&self) -> usize {
        lock(&self.shared.messages).iter().filter(|message| message.taken()).count()
    }

    /// Returns the messages that the sink took since this was asked last, and forgets all.
    pub fn take(&self) -> Vec<Message> {
        let mut messages = std::mem::take(&mut *lock(&self.shared.messages));
        messages.retain(Message::taken);
        messages
    }

    /// Forgets what was recorded.
    pub fn forget(&self) {
        lock(&self.shared.messages).clear();
    }

    /// Returns how many sessions began.
    pub fn sessions(&self) -> usize {
        *lock(&self.shared.sessions)
    }

    /// Returns how many sessions were dropped on purpose.
    pub fn dropped(&self) -> usize {
        self.shared.dropped.load(Ordering::SeqCst)
    }

    /// Returns every command line seen.
    pub fn commands(&self) -> Vec<String> {
        lock(&self.shared.commands).clone()
    }

    /// Returns what clients did wrong.
    pub fn complaints(&self) -> Vec<String> {
        lock(&self.shared.complaints).clone()
    }

    /// Waits until it took so many messages and returns them.
    #[track_caller]
    pub fn expect(&self, count: usize, limit: Duration) -> Vec<Message> {
        wait_until(&format!("{count} messages at the sink"), limit, || self.count() >= count);
        self.messages()
    }

    /// Stops listening: connections are refused from here on. Running sessions go on.
    pub fn close(&self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        // Wakes the listener so that it sees it. It may be gone already.
        let _ = std::net::TcpStream::connect(self.address);
        wait_until("the sink closes its port", Duration::from_secs(5), || {
            std::net::TcpStream::connect(self.address).is_err()
        });
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        if self.address.port() != 0 {
            // As in `close`, without waiting.
            let _ = std::net::TcpStream::connect(self.address);
        }
    }
}

impl Shared {
    fn new(behaviour: Behaviour) -> Shared {
        Shared {
            behaviour: Mutex::new(behaviour),
            messages: Mutex::default(),
            complaints: Mutex::default(),
            commands: Mutex::default(),
            asked: Mutex::default(),
            sessions: Mutex::default(),
            dropped: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
        }
    }

    fn behaviour(&self) -> Behaviour {
        lock(&self.behaviour).clone()
    }

    /// Returns whether a session is to be dropped here, and counts it.
    fn drops(&self, behaviour: &Behaviour, phase: Phase) -> bool {
        let count = |dropped: usize| (dropped < behaviour.drops).then_some(dropped + 1);
        behaviour.drop_at == Some(phase) && self.dropped.fetch_update(Ordering::SeqCst, Ordering::SeqCst, count).is_ok()
    }

    fn complain(&self, text: impl Into<String>) {
        lock(&self.complaints).push(text.into());
    }

    /// Returns how often this was asked before.
    fn count(&self, what: &str) -> usize {
        let mut asked = lock(&self.asked);
        let count = asked.entry(what.to_owned()).or_default();
        *count += 1;
        *count - 1
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no thread panicked with the lock")
}

fn serve(wire: Wire, shared: &Arc<Shared>) {
    let shared = shared.clone();
    std::thread::spawn(move || {
        let number = {
            let mut sessions = lock(&shared.sessions);
            *sessions += 1;
            *sessions - 1
        };
        // Clients close when they like, and agents are killed.
        let _ = session::Session::new(wire, number, &shared).run();
    });
}

fn dropped() -> io::Error {
    io::Error::other("dropped on purpose")
}
