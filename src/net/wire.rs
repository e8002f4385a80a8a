//! What TLS runs over: TCP, or the TLS session of somebody who passes octets on and sees those within as
//! little as any other. Sessions within sessions are as many as members stand between.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

/// Octets under TLS.
#[derive(Debug)]
pub enum Wire {
    /// A connection of this host.
    Tcp(TcpStream),
    /// A session with a member of the mesh, which passes on what is said within.
    Within(Box<TlsStream<Wire>>),
}

impl Wire {
    /// Returns the connection at the bottom.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Wire::Tcp(tcp) => tcp,
            Wire::Within(tls) => tls.get_ref().0.tcp(),
        }
    }

    /// Returns whether nobody else's session is around this one.
    pub fn is_direct(&self) -> bool {
        matches!(self, Wire::Tcp(_))
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Wire::Tcp(tcp) => Pin::new(tcp).poll_read(cx, buffer),
            Wire::Within(tls) => Pin::new(&mut **tls).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Wire::Tcp(tcp) => Pin::new(tcp).poll_write(cx, octets),
            Wire::Within(tls) => Pin::new(&mut **tls).poll_write(cx, octets),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Wire::Tcp(tcp) => Pin::new(tcp).poll_write_vectored(cx, pieces),
            Wire::Within(tls) => Pin::new(&mut **tls).poll_write_vectored(cx, pieces),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Wire::Tcp(tcp) => tcp.is_write_vectored(),
            Wire::Within(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Wire::Tcp(tcp) => Pin::new(tcp).poll_flush(cx),
            Wire::Within(tls) => Pin::new(&mut **tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Wire::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Wire::Within(tls) => Pin::new(&mut **tls).poll_shutdown(cx),
        }
    }
}
