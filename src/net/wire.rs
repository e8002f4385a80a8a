//! What TLS runs over: TCP, or the TLS session of somebody who passes octets on and sees those within as
//! little as any other. Sessions within sessions are as many as members stand between.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

/// What is taken from a connection at a time, at most: two records of TLS.
const READ_OCTETS: usize = 32 * 1024;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_OCTETS].into_boxed_slice());
}

/// Octets under TLS.
#[derive(Debug)]
pub enum Wire {
    /// A connection of this host.
    Tcp(Direct),
    /// A session with a member of the mesh, which passes on what is said within.
    Within(Box<TlsStream<Wire>>),
}

/// A connection of this host, from which TLS takes a record in pieces of 4 KiB: all that has arrived is asked for at
/// once, and kept until TLS has taken it.
#[derive(Debug)]
pub struct Direct {
    tcp: TcpStream,
    arrived: Vec<u8>,
    /// How much of it was taken.
    taken: usize,
}

impl Direct {
    /// Takes a connection from which nothing was read that is still wanted.
    pub fn new(tcp: TcpStream) -> Direct {
        Direct { tcp, arrived: Vec::new(), taken: 0 }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.arrived.is_empty() {
            return SCRATCH.with_borrow_mut(|scratch| {
                let mut all = ReadBuf::new(scratch);
                ready!(Pin::new(&mut self.tcp).poll_read(cx, &mut all))?;
                let (now, later) = all.filled().split_at(all.filled().len().min(buffer.remaining()));
                buffer.put_slice(now);
                self.arrived.extend_from_slice(later);
                Poll::Ready(Ok(()))
            });
        }
        let rest = &self.arrived[self.taken..];
        let now = &rest[..rest.len().min(buffer.remaining())];
        buffer.put_slice(now);
        self.taken += now.len();
        if self.taken == self.arrived.len() {
            // A connection that waits holds nothing.
            (self.arrived, self.taken) = (Vec::new(), 0);
        }
        Poll::Ready(Ok(()))
    }
}

impl Wire {
    /// Returns the connection at the bottom.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Wire::Tcp(direct) => &direct.tcp,
            Wire::Within(tls) => tls.get_ref().0.tcp(),
        }
    }

    /// Returns whether something has arrived that TLS has not taken.
    pub fn has_arrived(&self) -> bool {
        match self {
            Wire::Tcp(direct) => !direct.arrived.is_empty(),
            Wire::Within(tls) => tls.get_ref().0.has_arrived(),
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
            Wire::Tcp(direct) => direct.poll_read(cx, buffer),
            Wire::Within(tls) => Pin::new(&mut **tls).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Wire::Tcp(direct) => Pin::new(&mut direct.tcp).poll_write(cx, octets),
            Wire::Within(tls) => Pin::new(&mut **tls).poll_write(cx, octets),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Wire::Tcp(direct) => Pin::new(&mut direct.tcp).poll_write_vectored(cx, pieces),
            Wire::Within(tls) => Pin::new(&mut **tls).poll_write_vectored(cx, pieces),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Wire::Tcp(direct) => direct.tcp.is_write_vectored(),
            Wire::Within(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Wire::Tcp(direct) => Pin::new(&mut direct.tcp).poll_flush(cx),
            Wire::Within(tls) => Pin::new(&mut **tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Wire::Tcp(direct) => Pin::new(&mut direct.tcp).poll_shutdown(cx),
            Wire::Within(tls) => Pin::new(&mut **tls).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn what_arrived_is_taken_in_pieces_and_nothing_is_kept_behind_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (ours, theirs) = tokio::join!(listener.accept(), TcpStream::connect(address));
        let (mut wire, mut theirs) = (Wire::Tcp(Direct::new(ours.expect("accepted").0)), theirs.expect("connected"));
        let sent: Vec<u8> = (0..100_000u32).map(|n| n as u8 ^ (n >> 8) as u8).collect();
        let said = sent.clone();
        let saying = tokio::spawn(async move {
            theirs.write_all(&said).await?;
            theirs.shutdown().await
        });
        let (mut taken, mut was_ahead) = (Vec::new(), false);
        let mut piece = [0; 4096];
        loop {
            match wire.read(&mut piece).await.expect("open") {
                0 => break,
                n => taken.extend_from_slice(&piece[..n]),
            }
            was_ahead |= wire.has_arrived();
        }
        saying.await.expect("no panic").expect("all was taken");
        assert!(taken == sent && was_ahead && !wire.has_arrived());
        let Wire::Tcp(direct) = wire else { unreachable!("that is what it was made of") };
        assert_eq!(direct.arrived.capacity(), 0);
    }
}
