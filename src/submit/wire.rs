//! The octets between lettre and the server: counted on their way out, and handed in line by line.
//!
//! lettre keeps what it has read ahead when STARTTLS turns the session to TLS, so that plaintext
//! planted behind the server's reply would be taken for part of the secured session
//! (CVE-2011-0411). It never gets to see more than one line at a time; what was planted reaches
//! the handshake, which fails.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use lettre::transport::smtp::client::AsyncTokioStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

const AHEAD_OCTETS: usize = 4096;

/// A stream that counts and hands in single lines.
#[derive(Debug)]
pub(super) struct Wire<S> {
    inner: S,
    peer: SocketAddr,
    sent: Arc<AtomicU64>,
    ahead: Vec<u8>,
    given: usize,
}

impl Wire<TcpStream> {
    /// Counts what goes out in `sent`.
    pub(super) fn new(tcp: TcpStream, sent: Arc<AtomicU64>) -> Wire<TcpStream> {
        // A connection that is gone by now fails at its first read.
        let peer = tcp.peer_addr().unwrap_or_else(|_| (Ipv4Addr::UNSPECIFIED, 0).into());
        Wire { sent, ..Wire::around(tcp, peer) }
    }
}

impl<S> Wire<S> {
    /// Counts for nobody.
    pub(super) fn around(inner: S, peer: SocketAddr) -> Wire<S> {
        Wire { inner, peer, sent: Arc::default(), ahead: Vec::new(), given: 0 }
    }

    pub(super) fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Gives the next line, or as much of it as was read and fits.
    fn give(&mut self, out: &mut ReadBuf<'_>) {
        let rest = &self.ahead[self.given..];
        let line = memchr::memchr(b'\n', rest).map_or(rest.len(), |at| at + 1);
        let octets = line.min(out.remaining());
        out.put_slice(&rest[..octets]);
        self.given += octets;
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.given == this.ahead.len() {
            let mut octets = [0; AHEAD_OCTETS];
            let mut buffer = ReadBuf::new(&mut octets);
            ready!(Pin::new(&mut this.inner).poll_read(cx, &mut buffer))?;
            this.ahead.clear();
            this.ahead.extend_from_slice(buffer.filled());
            this.given = 0;
        }
        this.give(out);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.inner).poll_write(cx, octets))?;
        self.sent.fetch_add(written as u64, Ordering::Relaxed);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + AsyncWrite + Send + Sync + Unpin + std::fmt::Debug> AsyncTokioStream for Wire<S> {
    fn peer_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn a_read_never_goes_beyond_one_line() {
        let mut wire =
            Wire::around(&b"220 go ahead\r\n250-evil\r\n250 AUTH PLAIN\r\nrest"[..], ([127, 0, 0, 1], 25).into());
        let mut lines = Vec::new();
        loop {
            let mut octets = [0; 100];
            match wire.read(&mut octets).await.expect("memory") {
                0 => break,
                length => lines.push(String::from_utf8_lossy(&octets[..length]).into_owned()),
            }
        }
        assert_eq!(lines, ["220 go ahead\r\n", "250-evil\r\n", "250 AUTH PLAIN\r\n", "rest"]);
    }
}
