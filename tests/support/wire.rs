//! One connection, plain or under TLS, either side, with a buffer that hands out lines.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection, StreamOwned};

use super::tls;

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Server(Box<StreamOwned<ServerConnection, TcpStream>>),
    Client(Box<StreamOwned<ClientConnection, TcpStream>>),
    /// TLS within TLS.
    Within(Box<StreamOwned<ClientConnection, Stream>>),
    /// While TLS starts.
    Nothing,
}

/// A connection.
pub struct Wire {
    stream: Stream,
    input: Vec<u8>,
    at: usize,
}

impl From<TcpStream> for Wire {
    fn from(stream: TcpStream) -> Wire {
        stream.set_nodelay(true).expect("a TCP socket");
        Wire { stream: Stream::Tcp(stream), input: Vec::new(), at: 0 }
    }
}

impl From<UnixStream> for Wire {
    fn from(stream: UnixStream) -> Wire {
        Wire { stream: Stream::Unix(stream), input: Vec::new(), at: 0 }
    }
}

impl Wire {
    /// Bounds every read and write.
    pub fn set_timeout(&self, limit: Duration) {
        self.stream.set_timeout(limit).expect("an open socket");
    }

    /// Returns whether TLS is on.
    pub fn is_tls(&self) -> bool {
        matches!(self.stream, Stream::Server(_) | Stream::Client(_) | Stream::Within(_))
    }

    /// Returns how many octets were read and not yet taken.
    pub fn buffered(&self) -> usize {
        self.input.len() - self.at
    }

    /// Starts TLS as the server. The handshake happens with the first octets.
    pub fn accept_tls(&mut self, config: Arc<ServerConfig>) -> io::Result<()> {
        let session = ServerConnection::new(config).map_err(io::Error::other)?;
        match std::mem::replace(&mut self.stream, Stream::Nothing) {
            Stream::Tcp(tcp) => self.stream = Stream::Server(Box::new(StreamOwned::new(session, tcp))),
            _ => return Err(io::Error::other("TLS starts on plain TCP")),
        }
        Ok(())
    }

    /// Starts TLS as the client and finishes the handshake.
    pub fn connect_tls(&mut self) -> io::Result<()> {
        self.connect_tls_as(tls::client(), "mx.test".try_into().expect("a host name"))
    }

    /// The same with these settings, asking for this name. Under TLS already, another session begins within.
    pub fn connect_tls_as(&mut self, config: Arc<ClientConfig>, name: ServerName<'static>) -> io::Result<()> {
        let mut session = ClientConnection::new(config, name).map_err(io::Error::other)?;
        match std::mem::replace(&mut self.stream, Stream::Nothing) {
            Stream::Tcp(mut tcp) => {
                while session.is_handshaking() {
                    session.complete_io(&mut tcp)?;
                }
                self.stream = Stream::Client(Box::new(StreamOwned::new(session, tcp)));
            }
            mut outer @ (Stream::Client(_) | Stream::Within(_)) => {
                while session.is_handshaking() {
                    session.complete_io(&mut outer)?;
                }
                self.stream = Stream::Within(Box::new(StreamOwned::new(session, outer)));
            }
            _ => return Err(io::Error::other("TLS starts on plain TCP")),
        }
        Ok(())
    }

    /// Writes and flushes.
    pub fn send(&mut self, octets: &[u8]) -> io::Result<()> {
        self.stream.write_all(octets)?;
        self.stream.flush()
    }

    /// Says that nothing more comes, without closing the other direction.
    pub fn shutdown_write(&mut self) {
        if let Stream::Tcp(tcp) = &self.stream {
            // A peer that is gone already needs no telling.
            let _ = tcp.shutdown(std::net::Shutdown::Write);
        }
    }

    /// Takes one line without its line end; `None` at the end of the stream.
    pub fn line(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut searched = self.at;
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.input[searched..]) {
                let line = self.input[self.at..searched + end].to_vec();
                self.at = searched + end + 1;
                return Ok(Some(line.strip_suffix(b"\r").map_or(line.clone(), <[u8]>::to_vec)));
            }
            searched = self.input.len();
            let before = self.at;
            if self.fill()? == 0 {
                return Ok(None);
            }
            searched -= before - self.at;
        }
    }

    /// Takes exactly so many octets.
    pub fn exactly(&mut self, octets: usize) -> io::Result<Vec<u8>> {
        while self.buffered() < octets {
            if self.fill()? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let taken = self.input[self.at..self.at + octets].to_vec();
        self.at += octets;
        Ok(taken)
    }

    /// Takes everything up to and including CRLF `.` CRLF, as it stands on the wire.
    pub fn up_to_dot(&mut self) -> io::Result<Vec<u8>> {
        let finder = memchr::memmem::Finder::new(b"\r\n.\r\n");
        if self.buffered() < 3 {
            self.need(3)?;
        }
        if self.input[self.at..].starts_with(b".\r\n") {
            return self.exactly(3);
        }
        let mut searched = 0;
        loop {
            if let Some(found) = finder.find(&self.input[self.at + searched..]) {
                return self.exactly(searched + found + 5);
            }
            searched = self.buffered().saturating_sub(4);
            if self.fill()? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    fn need(&mut self, octets: usize) -> io::Result<()> {
        while self.buffered() < octets {
            if self.fill()? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    /// Takes what is left until the peer closes.
    pub fn rest(&mut self) -> Vec<u8> {
        // A reset tells the same as an end here.
        while matches!(self.fill(), Ok(read) if read > 0) {}
        let rest = self.input.split_off(self.at);
        self.at = self.input.len();
        rest
    }

    fn fill(&mut self) -> io::Result<usize> {
        if self.at > 0 {
            self.input.drain(..self.at);
            self.at = 0;
        }
        let length = self.input.len();
        self.input.resize(length + 65_536, 0);
        let spare = &mut self.input[length..];
        let read = self.stream.read(spare);
        // A process that was stopped and goes on.
        let is_interrupted = read.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::Interrupted);
        self.input.truncate(length + *read.as_ref().unwrap_or(&0));
        if is_interrupted { self.fill() } else { read }
    }
}

impl Stream {
    fn set_timeout(&self, limit: Duration) -> io::Result<()> {
        let some = Some(limit);
        match self {
            Stream::Tcp(tcp) => tcp.set_read_timeout(some).and(tcp.set_write_timeout(some)),
            Stream::Unix(unix) => unix.set_read_timeout(some).and(unix.set_write_timeout(some)),
            Stream::Server(tls) => tls.sock.set_read_timeout(some),
            Stream::Client(tls) => tls.sock.set_read_timeout(some),
            Stream::Within(tls) => tls.sock.set_timeout(limit),
            Stream::Nothing => Ok(()),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, spare: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(tcp) => tcp.read(spare),
            Stream::Unix(unix) => unix.read(spare),
            Stream::Server(tls) => tls.read(spare),
            Stream::Client(tls) => tls.read(spare),
            Stream::Within(tls) => tls.read(spare),
            Stream::Nothing => Ok(0),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(tcp) => tcp.write(octets),
            Stream::Unix(unix) => unix.write(octets),
            Stream::Server(tls) => tls.write(octets),
            Stream::Client(tls) => tls.write(octets),
            Stream::Within(tls) => tls.write(octets),
            Stream::Nothing => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Stream::Server(tls) => tls.flush(),
            Stream::Client(tls) => tls.flush(),
            Stream::Within(tls) => tls.flush(),
            Stream::Tcp(_) | Stream::Unix(_) | Stream::Nothing => Ok(()),
        }
    }
}
