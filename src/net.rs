//! One stream type for both directions: TCP, or TLS over it.
//!
//! Octets are read through a buffer that belongs to the thread, not to the connection, so an idle
//! connection holds none. Nothing here knows SMTP.

mod splice;
mod wire;

use std::cell::RefCell;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use postroad_smtp::line::Input;
use rustls::pki_types::ServerName;
use rustls::server::Acceptor;
use socket2::{SockRef, Socket, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Sleep, sleep_until, timeout, timeout_at};
use tokio_rustls::{LazyConfigAcceptor, TlsConnector, TlsStream};

use crate::tls::ServerTls;
pub use splice::Bounds;
use wire::Direct;
pub use wire::Wire;

/// Octets taken from a socket at a time, at most.
const READ_OCTETS: usize = 64 * 1024;
/// What a peer may still send into a connection that we have closed, before it is cut off.
const LINGER_OCTETS_MAX: usize = 1024 * 1024;
const LINGER: Duration = Duration::from_secs(3);
/// For what is on its way over the longest lines.
const LINGER_IDLE: Duration = Duration::from_millis(300);
/// A connection that says nothing for so long is asked by the kernel, again after so much, so often.
const ALIVE_IDLE: Duration = Duration::from_secs(60);
const ALIVE_INTERVAL: Duration = Duration::from_secs(20);
const ALIVE_RETRIES: u32 = 3;
/// RFC 9266 §4.2.
const BINDING_LABEL: &[u8] = b"EXPORTER-Channel-Binding";

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_OCTETS].into_boxed_slice());
}

/// A connection, secured or not.
#[derive(Debug)]
pub enum Stream {
    /// Plain TCP.
    Plain(TcpStream),
    /// TLS, either side of it.
    Tls(Box<TlsStream<Wire>>),
    /// What somebody passes on within the TLS session with them: as good as a plain connection with whoever is
    /// behind.
    Within(Box<TlsStream<Wire>>),
    /// A socket in the file system.
    Unix(UnixStream),
}

/// Ends a connection at once, whoever uses it. It holds a descriptor of its own.
#[derive(Debug)]
pub struct Cut(Socket);

impl Cut {
    /// Ends it: whoever reads or writes there finds it lost.
    pub fn now(&self) {
        // One that has ended already is what is wanted.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// Where somebody listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// IP address and port.
    Tcp(SocketAddr),
    /// A socket in the file system.
    Unix(PathBuf),
}

impl Address {
    /// Returns the IP address; a socket in the file system is on this host.
    pub fn ip(&self) -> IpAddr {
        match self {
            Address::Tcp(address) => address.ip(),
            Address::Unix(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => address.fmt(f),
            Address::Unix(path) => path.display().fmt(f),
        }
    }
}

impl Stream {
    /// Connects within `limit`.
    ///
    /// # Errors
    /// What the operating system says, or `TimedOut`.
    pub async fn connect(address: &Address, limit: Duration) -> io::Result<Stream> {
        let connect = async {
            Ok(match address {
                Address::Tcp(address) => {
                    let tcp = TcpStream::connect(address).await?;
                    tcp.set_nodelay(true)?;
                    Stream::Plain(tcp)
                }
                Address::Unix(path) => Stream::Unix(UnixStream::connect(path).await?),
            })
        };
        timeout(limit, connect).await.map_err(|_| timed_out("no answer in time"))?
    }

    /// Waits for octets and appends them to `input`; 0 is the end of the stream. While nothing
    /// arrives, an empty `input` holds no memory. `timer` is kept from one wait to the next.
    ///
    /// # Errors
    /// `TimedOut` at the deadline, or what the connection says.
    pub async fn fill(&mut self, input: &mut Input, timer: &mut Timer, until: Instant) -> io::Result<usize> {
        let filled = poll_fn(|cx| {
            let filled = self.poll_fill(cx, input);
            if filled.is_ready() {
                return filled.map_ok(Some);
            }
            input.release();
            timer.poll(cx, until.into()).map(|()| Ok(None))
        });
        filled.await?.ok_or_else(|| timed_out("nothing was received in time"))
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>, input: &mut Input) -> Poll<io::Result<usize>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            let read = ready!(match self {
                Stream::Plain(tcp) => Pin::new(tcp).poll_read(cx, &mut buffer),
                Stream::Tls(tls) | Stream::Within(tls) => Pin::new(&mut **tls).poll_read(cx, &mut buffer),
                Stream::Unix(unix) => Pin::new(unix).poll_read(cx, &mut buffer),
            });
            // Many clients leave TLS without a word (close_notify). SMTP says by itself where everything ends, so
            // that this is the end of the stream as it is without TLS.
            match read {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                read => read?,
            }
            input.extend(buffer.filled());
            Poll::Ready(Ok(buffer.filled().len()))
        })
    }

    /// Sends all of `output` and empties it.
    ///
    /// # Errors
    /// `TimedOut` when the peer does not take it by `until`, or what the connection says.
    pub async fn flush(&mut self, output: &mut Vec<u8>, until: Instant) -> io::Result<()> {
        if output.is_empty() {
            return Ok(());
        }
        timeout_at(until.into(), self.write(output)).await.map_err(|_| timed_out("the peer takes no data"))??;
        output.clear();
        Ok(())
    }

    async fn write(&mut self, octets: &[u8]) -> io::Result<()> {
        match self {
            Stream::Plain(tcp) => tcp.write_all(octets).await,
            Stream::Tls(tls) | Stream::Within(tls) => {
                tls.write_all(octets).await?;
                tls.flush().await
            }
            Stream::Unix(unix) => unix.write_all(octets).await,
        }
    }

    /// Completes the server's half of a TLS handshake within `limit`.
    ///
    /// # Errors
    /// What TLS says, `TimedOut`, or `InvalidInput` on a stream that has TLS already.
    pub async fn accept_tls(self, tls: &ServerTls, limit: Duration) -> io::Result<Stream> {
        let plain = self.into_wire()?;
        let handshake = async {
            let begun = LazyConfigAcceptor::new(Acceptor::default(), plain).await?;
            let config = tls.answer(begun.client_hello().server_name());
            begun.into_stream(config).await
        };
        let tls = timeout(limit, handshake).await.map_err(|_| timed_out("TLS handshake"))??;
        Ok(Stream::Tls(Box::new(TlsStream::Server(tls))))
    }

    /// Completes the client's half of a TLS handshake within `limit`.
    ///
    /// # Errors
    /// What TLS says, `TimedOut`, or `InvalidInput` on a stream that has TLS already.
    pub async fn connect_tls(
        self,
        connector: &TlsConnector,
        name: ServerName<'static>,
        limit: Duration,
    ) -> io::Result<Stream> {
        let handshake = connector.connect(name, self.into_wire()?);
        let tls = timeout(limit, handshake).await.map_err(|_| timed_out("TLS handshake"))??;
        Ok(Stream::Tls(Box::new(TlsStream::Client(tls))))
    }

    /// Returns what somebody passes on within this TLS session with them.
    ///
    /// # Errors
    /// `InvalidInput` without TLS.
    pub fn into_within(self) -> io::Result<Stream> {
        match self {
            Stream::Tls(tls) => Ok(Stream::Within(tls)),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "the connection has no TLS")),
        }
    }

    /// Returns whether others pass on what is said here.
    pub fn is_passed_on(&self) -> bool {
        match self {
            Stream::Plain(_) | Stream::Unix(_) => false,
            Stream::Tls(tls) => !tls.get_ref().0.is_direct(),
            Stream::Within(_) => true,
        }
    }

    fn into_wire(self) -> io::Result<Wire> {
        match self {
            Stream::Plain(tcp) => Ok(Wire::Tcp(Direct::new(tcp))),
            Stream::Within(tls) => Ok(Wire::Within(tls)),
            Stream::Tls(_) => Err(io::Error::new(io::ErrorKind::InvalidInput, "the connection has TLS already")),
            Stream::Unix(_) => Err(io::Error::new(io::ErrorKind::InvalidInput, "no TLS on a socket of this host")),
        }
    }

    /// Returns the connection under TLS, for those who read and write at the same time. The kernel asks
    /// now and then whether the other side is still there, so that nobody has to wake up for it.
    ///
    /// # Errors
    /// `InvalidInput` without TLS, or what the operating system says.
    pub fn into_tls(self) -> io::Result<TlsStream<Wire>> {
        let Stream::Tls(tls) = self else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the connection has no TLS"));
        };
        ask_alive(tls.get_ref().0.tcp())?;
        Ok(*tls)
    }

    /// Has the kernel ask now and then whether the other side is still there, for a connection that is kept
    /// without work for days: one that is dead ends after two minutes, and the way through NAT is not forgotten.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn keep_alive(&self) -> io::Result<()> {
        match self {
            Stream::Plain(tcp) => ask_alive(tcp),
            Stream::Tls(tls) | Stream::Within(tls) => ask_alive(tls.get_ref().0.tcp()),
            Stream::Unix(_) => Ok(()),
        }
    }

    /// Returns what ends the connection while others use it.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn cut(&self) -> io::Result<Cut> {
        let socket = match self {
            Stream::Plain(tcp) => SockRef::from(tcp).try_clone(),
            Stream::Tls(tls) | Stream::Within(tls) => SockRef::from(tls.get_ref().0.tcp()).try_clone(),
            Stream::Unix(unix) => SockRef::from(unix).try_clone(),
        };
        socket.map(Cut)
    }

    /// Returns the connection's state as rustls sees it, where there is TLS.
    pub fn tls(&self) -> Option<&rustls::CommonState> {
        match self {
            Stream::Plain(_) | Stream::Within(_) | Stream::Unix(_) => None,
            Stream::Tls(tls) => Some(tls.get_ref().1),
        }
    }

    /// Returns octets that both sides of this TLS session know and nobody else, nor any other session
    /// (RFC 9266, `tls-exporter`); `None` without TLS.
    pub fn channel_binding(&self) -> Option<[u8; 32]> {
        let Stream::Tls(tls) = self else { return None };
        let exported = match &**tls {
            TlsStream::Client(tls) => tls.get_ref().1.export_keying_material([0; 32], BINDING_LABEL, Some(&[])),
            TlsStream::Server(tls) => tls.get_ref().1.export_keying_material([0; 32], BINDING_LABEL, Some(&[])),
        };
        exported.ok()
    }

    /// Returns whether an idle connection is still open and silent, as one between transactions
    /// has to be. One that others pass on is not taken for that.
    pub fn is_quiet(&self) -> bool {
        let mut octet = [0];
        let read = match self {
            Stream::Plain(tcp) => tcp.try_read(&mut octet),
            _ if self.is_passed_on() => return false,
            Stream::Tls(tls) if tls.get_ref().0.has_arrived() => return false,
            Stream::Tls(tls) | Stream::Within(tls) => tls.get_ref().0.tcp().try_read(&mut octet),
            Stream::Unix(unix) => unix.try_read(&mut octet),
        };
        matches!(read, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Closes the connection so that the last reply arrives: what the peer still sends is read and
    /// discarded for a moment, since unread data would make the kernel reset the connection.
    pub async fn close(self) {
        self.close_within(LINGER).await;
    }

    /// Closes the connection of a peer that is not expected to send anything: who leaves it without work may
    /// not look at it for hours, and is not waited for.
    pub async fn close_idle(self) {
        self.close_within(LINGER_IDLE).await;
    }

    async fn close_within(mut self, linger: Duration) {
        let finish = async {
            match &mut self {
                Stream::Plain(tcp) => tcp.shutdown().await?,
                Stream::Tls(tls) | Stream::Within(tls) => tls.shutdown().await?,
                Stream::Unix(unix) => unix.shutdown().await?,
            }
            let mut rest = Input::default();
            let mut taken = 0;
            while taken < LINGER_OCTETS_MAX {
                match poll_fn(|cx| self.poll_fill(cx, &mut rest)).await? {
                    0 => break,
                    n => taken += n,
                }
                rest = Input::default();
            }
            io::Result::Ok(())
        };
        // The peer may be gone already: there is nobody left to tell.
        let _ = timeout(linger, finish).await;
    }
}

/// Ends waits of one connection. Of the many deadlines of a session few pass: the runtime hears of the
/// first, and of another only when that time has come, or sooner where the new one is.
#[derive(Debug, Default)]
pub struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    /// Ready when it is `until`, or later.
    fn poll(&mut self, cx: &mut Context<'_>, until: tokio::time::Instant) -> Poll<()> {
        if until <= tokio::time::Instant::now() {
            return Poll::Ready(());
        }
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if until < sleep.deadline() {
            sleep.as_mut().reset(until);
        }
        loop {
            ready!(sleep.as_mut().poll(cx));
            if until <= sleep.deadline() {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(until);
        }
    }

    /// Forgets what was waited for: nobody is woken any more.
    pub fn clear(&mut self) {
        self.0 = None;
    }
}

fn timed_out(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
}

fn ask_alive(tcp: &TcpStream) -> io::Result<()> {
    let alive = TcpKeepalive::new().with_time(ALIVE_IDLE).with_interval(ALIVE_INTERVAL).with_retries(ALIVE_RETRIES);
    SockRef::from(tcp).set_tcp_keepalive(&alive)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn who_is_silent_is_not_waited_for_for_long() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = Address::Tcp(listener.local_addr().expect("bound"));
        let pair = || async { tokio::join!(Stream::connect(&address, LINGER), listener.accept()) };
        let ((idle, _first_peer), (busy, _second_peer)) = (pair().await, pair().await);
        let soon = timeout(LINGER / 2, idle.expect("connected").close_idle());
        tokio::select! {
            biased;
            closed = soon => assert!(closed.is_ok(), "it is waited for as long as others"),
            () = busy.expect("connected").close() => panic!("who may have more to say is not waited for"),
        }
    }

    #[tokio::test]
    async fn each_wait_ends_at_its_own_time_under_one_timer() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        let (mut stream, mut timer) = (Stream::Unix(ours), Timer::default());
        let (hour, soon) = (Duration::from_hours(1), Duration::from_millis(20));
        let fill = async |stream: &mut Stream, timer: &mut Timer, limit| {
            stream.fill(&mut Input::new(), timer, Instant::now() + limit).await.map_err(|error| error.kind())
        };
        assert!(timeout(soon, fill(&mut stream, &mut timer, hour)).await.is_err(), "nothing came");
        let waited = timeout(Duration::from_secs(30), fill(&mut stream, &mut timer, soon)).await;
        assert_eq!(waited, Ok(Err(io::ErrorKind::TimedOut)), "a sooner time than the one before");
        let answer = async {
            tokio::time::sleep(soon).await;
            theirs.write_all(b"late").await
        };
        let (filled, written) = tokio::join!(fill(&mut stream, &mut timer, hour), answer);
        assert_eq!((filled, written.is_ok()), (Ok(4), true), "a time that has passed was that of another wait");
        let over = fill(&mut stream, &mut timer, Duration::ZERO).await;
        assert_eq!(over, Err(io::ErrorKind::TimedOut), "no time at all");
    }
}
