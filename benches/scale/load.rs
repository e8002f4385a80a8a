//! The clients: sessions that hand over mail flat out or at a rate, and sessions that do nothing.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::sink::micros;

/// Who writes to whom, for the n-th message sent at a microsecond.
pub type Mail = Arc<dyn Fn(u64, u64) -> (String, String) + Send + Sync>;

/// How mail is handed over.
#[derive(Clone)]
pub struct Load {
    pub target: SocketAddr,
    pub sessions: usize,
    pub octets: usize,
    pub pipelining: bool,
    /// Messages a second over all sessions; `None`: flat out.
    pub rate: Option<f64>,
    pub messages: u64,
    pub mail: Mail,
}

/// What was handed over.
pub struct Sent {
    pub seconds: f64,
    /// Microseconds from the first command to the 250, sorted.
    pub acks: Vec<u64>,
}

impl Sent {
    pub fn rate(&self) -> f64 {
        self.acks.len() as f64 / self.seconds
    }
}

impl Load {
    /// Hands over all messages.
    ///
    /// # Errors
    /// Any reply that is not the expected one: nothing may be refused in a measurement.
    pub async fn send(self) -> Result<Sent> {
        let (start, next) = (Instant::now(), Arc::new(AtomicU64::new(0)));
        let content: Arc<[u8]> = content(self.octets).into();
        let mut sessions = JoinSet::new();
        for _ in 0..self.sessions.min(self.messages as usize) {
            sessions.spawn(session(self.clone(), start, next.clone(), content.clone()));
        }
        let mut acks = Vec::with_capacity(self.messages as usize);
        while let Some(ended) = sessions.join_next().await {
            acks.extend(ended??);
        }
        let seconds = start.elapsed().as_secs_f64();
        acks.sort_unstable();
        Ok(Sent { seconds, acks })
    }
}

async fn session(load: Load, start: Instant, next: Arc<AtomicU64>, content: Arc<[u8]>) -> Result<Vec<u64>> {
    let mut client = Client::connect(load.target).await?;
    let mut acks = Vec::new();
    loop {
        let n = next.fetch_add(1, Ordering::Relaxed);
        if n >= load.messages {
            break;
        }
        if let Some(rate) = load.rate {
            tokio::time::sleep_until((start + Duration::from_secs_f64(n as f64 / rate)).into()).await;
        }
        let begin = Instant::now();
        let (from, to) = (load.mail)(n, micros());
        client.transact(&from, &to, &content, load.pipelining).await?;
        acks.push(begin.elapsed().as_micros() as u64);
    }
    client.write(b"QUIT\r\n").await?;
    Ok(acks)
}

/// One session as its client sees it.
pub struct Client {
    stream: TcpStream,
    input: Vec<u8>,
    output: Vec<u8>,
}

impl Client {
    /// Connects, waits for the greeting and says EHLO.
    pub async fn connect(target: SocketAddr) -> Result<Client> {
        let stream = TcpStream::connect(target).await.with_context(|| format!("cannot connect to {target}"))?;
        stream.set_nodelay(true)?;
        let mut client = Client { stream, input: Vec::new(), output: Vec::new() };
        client.expect(2).await?;
        client.write(b"EHLO load.test\r\n").await?;
        client.expect(2).await?;
        Ok(client)
    }

    /// Says NOOP and waits for its reply.
    pub async fn noop(&mut self) -> Result<()> {
        self.write(b"NOOP\r\n").await?;
        self.expect(2).await
    }

    async fn transact(&mut self, from: &str, to: &str, content: &[u8], pipelining: bool) -> Result<()> {
        let lines = [format!("MAIL FROM:<{from}>\r\n"), format!("RCPT TO:<{to}>\r\n"), "DATA\r\n".to_owned()];
        if pipelining {
            self.write(lines.concat().as_bytes()).await?;
            for class in [2, 2, 3] {
                self.expect(class).await?;
            }
        } else {
            for (line, class) in lines.iter().zip([2, 2, 3]) {
                self.write(line.as_bytes()).await?;
                self.expect(class).await?;
            }
        }
        self.output.clear();
        let head = format!("From: <{from}>\r\nTo: <{to}>\r\nMessage-ID: <{}@load.test>\r\nSubject: ", micros());
        if head.len() + 4 > HEADER_OCTETS {
            bail!("the addresses are too long for the header: {head}");
        }
        self.output.extend(head.as_bytes());
        self.output.extend(&content[head.len()..]);
        self.stream.write_all(&self.output).await?;
        self.expect(2).await
    }

    async fn write(&mut self, octets: &[u8]) -> io::Result<()> {
        self.stream.write_all(octets).await
    }

    /// Reads one reply, which must be of this class.
    async fn expect(&mut self, class: u8) -> Result<()> {
        loop {
            while let Some(end) = memchr::memchr(b'\n', &self.input) {
                let line = &self.input[..=end];
                let (is_last, is_expected) = (line.get(3) != Some(&b'-'), line[0] == b'0' + class);
                if !is_expected {
                    bail!("the agent said {:?}", String::from_utf8_lossy(line).trim_end());
                }
                self.input.drain(..=end);
                if is_last {
                    return Ok(());
                }
            }
            if self.stream.read_buf(&mut self.input).await? == 0 {
                bail!("the agent closed the connection");
            }
        }
    }
}

/// Octets kept for the header.
const HEADER_OCTETS: usize = 256;

/// A message with its final dot: one long field stands where those that differ will be.
fn content(octets: usize) -> Vec<u8> {
    let mut random = 0x9e37_79b9_u32;
    let mut letter = || {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789+"[(random >> 26) as usize]
    };
    let mut content: Vec<u8> = (0..HEADER_OCTETS - 4).map(|_| letter()).collect();
    content.extend(b"\r\n\r\n");
    while content.len() < octets {
        // Lines of 78 octets and CRLF.
        let at = content.len() % 80;
        content.push(if at == 78 {
            b'\r'
        } else if at == 79 {
            b'\n'
        } else {
            letter()
        });
    }
    content.extend(b"\r\n.\r\n");
    content
}
