//! Next hops that take, count and forget mail, and next hops that misbehave.
//!
//! What a sink wants to know of a message stands in the recipient: a letter for its kind and the
//! microsecond it was sent at, so that content is passed over without a look.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// How a next hop behaves.
#[derive(Clone, Copy, Debug)]
pub enum Manner {
    /// Takes everything at once.
    Take,
    /// The same, and offers CHUNKING (RFC 3030).
    TakeChunks,
    /// Takes everything, the reply to the content comes late.
    Slow(Duration),
    /// This reply to every recipient.
    Refuse(&'static str),
    /// Takes connections and never says a word.
    Mute,
}

/// What all next hops of one measurement took.
#[derive(Default)]
pub struct Tally {
    received: AtomicU64,
    connections: AtomicU64,
    /// Microseconds from sending to taking, by kind of message.
    latencies: Mutex<BTreeMap<u8, Vec<u64>>>,
}

/// A next hop that listens until it is dropped.
pub struct Sink {
    pub address: SocketAddr,
    listener: JoinHandle<()>,
}

impl Tally {
    /// Messages taken so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Connections taken so far.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Takes out the latencies of one kind, sorted.
    pub fn latencies(&self, kind: u8) -> Vec<u64> {
        let mut all = self.lock().remove(&kind).unwrap_or_default();
        all.sort_unstable();
        all
    }

    /// Waits until so many messages were taken in all.
    pub fn wait(&self, messages: u64, limit: Duration) -> Result<()> {
        let start = Instant::now();
        while self.received() < messages {
            if start.elapsed() > limit {
                bail!("only {} of {messages} messages arrived within {limit:?}", self.received());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    fn take(&self, recipients: &mut Vec<(u8, u64)>) {
        self.received.fetch_add(1, Ordering::Relaxed);
        let now = micros();
        let mut latencies = self.lock();
        for (kind, sent) in recipients.drain(..) {
            latencies.entry(kind).or_default().push(now.saturating_sub(sent));
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u8, Vec<u64>>> {
        self.latencies.lock().expect("nobody panics with the lock")
    }
}

impl Sink {
    /// Starts to listen; with port 0 at any free one.
    pub fn start(runtime: &Handle, address: SocketAddr, manner: Manner, tally: &Arc<Tally>) -> Result<Sink> {
        let _guard = runtime.enter();
        let listener = std::net::TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (listener, tally) = (TcpListener::from_std(listener)?, tally.clone());
        let listener = runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let tally = tally.clone();
                tally.connections.fetch_add(1, Ordering::Relaxed);
                // Clients may go as they like.
                tokio::spawn(async move {
                    let _ = serve(stream, manner, &tally).await;
                });
            }
        });
        Ok(Sink { address, listener })
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

/// An address that answers nothing at all, not even with a refusal: the backlog of its listener is
/// full, so the kernel drops what arrives.
pub struct BlackHole {
    _listener: Socket,
    _backlog: Vec<Socket>,
}

impl BlackHole {
    pub fn start(address: SocketAddr) -> Result<BlackHole> {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        listener.bind(&address.into()).with_context(|| format!("cannot bind {address}"))?;
        listener.listen(0)?;
        let fill = || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_nonblocking(true)?;
            // In progress for ever, once the backlog is full.
            let _ = socket.connect(&address.into());
            io::Result::Ok(socket)
        };
        let backlog = (0..4).map(|_| fill()).collect::<io::Result<_>>()?;
        Ok(BlackHole { _listener: listener, _backlog: backlog })
    }
}

/// Microseconds since 1970.
pub fn micros() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_micros() as u64)
}

async fn serve(mut stream: TcpStream, manner: Manner, tally: &Tally) -> io::Result<()> {
    if matches!(manner, Manner::Mute) {
        let mut octet = [0];
        while stream.read(&mut octet).await? > 0 {}
        return Ok(());
    }
    stream.set_nodelay(true)?;
    stream.write_all(b"220 sink.test ESMTP\r\n").await?;
    let mut session = Session { manner, ..Session::default() };
    let (mut input, mut output) = (Vec::with_capacity(64 << 10), Vec::with_capacity(1024));
    while !session.ended && stream.read_buf(&mut input).await? > 0 {
        while session.step(&mut input, &mut output, tally) {
            if let (Manner::Slow(pause), true) = (manner, session.took) {
                tokio::time::sleep(pause).await;
            }
        }
        if !output.is_empty() {
            stream.write_all(&output).await?;
            output.clear();
        }
    }
    Ok(())
}

struct Session {
    manner: Manner,
    in_content: bool,
    /// Octets of a BDAT that are yet to come, its last octet included.
    chunk_left: Option<usize>,
    /// Whether the last step ended a message.
    took: bool,
    ended: bool,
    /// Kind and time of each recipient that has them.
    recipients: Vec<(u8, u64)>,
}

impl Default for Session {
    fn default() -> Session {
        Session {
            manner: Manner::Take,
            in_content: false,
            chunk_left: None,
            took: false,
            ended: false,
            recipients: Vec::new(),
        }
    }
}

impl Session {
    /// Takes one line or the rest of one message; returns whether there was one.
    fn step(&mut self, input: &mut Vec<u8>, output: &mut Vec<u8>, tally: &Tally) -> bool {
        self.took = false;
        if self.in_content || self.chunk_left.is_some() {
            self.took = if self.in_content { skip_content(input) } else { self.skip_chunk(input) };
            if self.took {
                tally.take(&mut self.recipients);
                output.extend(b"250 2.0.0 Taken\r\n");
                (self.in_content, self.chunk_left) = (false, None);
            }
            return self.took;
        }
        let Some(end) = memchr::memchr(b'\n', input) else { return false };
        let reply = self.reply(&input[..=end]);
        output.extend(reply);
        input.drain(..=end);
        true
    }

    /// Takes what has come of a chunk; returns whether that was all of it.
    fn skip_chunk(&mut self, input: &mut Vec<u8>) -> bool {
        let left = self.chunk_left.unwrap_or_default();
        let come = left.min(input.len());
        input.drain(..come);
        self.chunk_left = Some(left - come);
        come == left
    }

    fn reply(&mut self, line: &[u8]) -> &'static [u8] {
        match line.get(..4).unwrap_or_default() {
            b"EHLO" if matches!(self.manner, Manner::TakeChunks) => {
                b"250-sink.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-ENHANCEDSTATUSCODES\r\n250-CHUNKING\r\n250 SIZE\r\n"
            }
            b"BDAT" => {
                // One chunk is all that the agent sends.
                self.chunk_left = octets(line);
                if self.chunk_left.is_some() { b"" } else { b"501 5.5.4 BDAT octets LAST\r\n" }
            }
            b"EHLO" => b"250-sink.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-ENHANCEDSTATUSCODES\r\n250 SIZE\r\n",
            b"RCPT" => match self.manner {
                Manner::Refuse(reply) => reply.as_bytes(),
                _ => {
                    self.recipients.extend(stamp(line));
                    b"250 2.1.5 Recipient OK\r\n"
                }
            },
            b"DATA" if matches!(self.manner, Manner::Refuse(_)) => b"554 5.5.1 No valid recipients\r\n",
            b"DATA" => {
                self.in_content = true;
                b"354 Go on\r\n"
            }
            b"QUIT" => {
                self.ended = true;
                b"221 2.0.0 Bye\r\n"
            }
            b"RSET" => {
                self.recipients.clear();
                b"250 2.0.0 OK\r\n"
            }
            _ => b"250 2.0.0 OK\r\n",
        }
    }
}

/// Takes content up to its end; returns whether that has come.
fn skip_content(input: &mut Vec<u8>) -> bool {
    const END: &[u8] = b"\r\n.\r\n";
    match memchr::memmem::find(input, END) {
        Some(at) => drop(input.drain(..at + END.len())),
        // The end may be cut in two.
        None => {
            input.drain(..input.len().saturating_sub(END.len() - 1));
            return false;
        }
    }
    true
}

/// Reads the number out of `BDAT 1234 LAST`.
fn octets(line: &[u8]) -> Option<usize> {
    std::str::from_utf8(line).ok()?.trim_end().strip_suffix(" LAST")?.get(5..)?.parse().ok()
}

/// Reads kind and time out of `RCPT TO:<b1234567@…>`.
fn stamp(line: &[u8]) -> Option<(u8, u64)> {
    let local = &line[memchr::memchr(b'<', line)? + 1..memchr::memchr(b'@', line)?];
    let (kind, digits) = local.split_first()?;
    Some((*kind, std::str::from_utf8(digits).ok()?.parse().ok()?))
}
