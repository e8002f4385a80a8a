//! One link from its first message to its last: reads and writes side by side, so that two nodes that
//! both have much to say do not wait for each other.

use std::io::{self, Cursor};
use std::time::{Duration, Instant};

use postroad_mesh::NodeId;
use postroad_mesh::link::{LENGTH_OCTETS, MESSAGE_OCTETS_MAX, Message, message_octets};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::{debug, info};

use super::Peers;
use super::state::Hold;
use crate::net::Stream;

/// How long the other side may take to read a message.
const WRITE_LIMIT: Duration = Duration::from_secs(60);
/// The most messages of one link in so long. To tell a mesh of a thousand nodes takes some hundreds.
const PACE_MESSAGES_MAX: u32 = 2_000;
const PACE_WINDOW: Duration = Duration::from_secs(10);

impl Peers {
    /// Serves a link to its end. `ahead` is what was read behind XLINK already.
    pub(super) async fn serve_link(&self, stream: Stream, ahead: Vec<u8>, node: NodeId, hold: Hold) {
        debug!(%node, number = hold.number, "link open");
        let ended = self.carry(stream, ahead, node, hold.outbound).await;
        match ended {
            Ok(()) => debug!(%node, number = hold.number, "link closed"),
            Err(error) => info!(%node, %error, "link lost"),
        }
        self.link_ended(node, hold.number);
    }

    async fn carry(
        &self,
        stream: Stream,
        ahead: Vec<u8>,
        node: NodeId,
        outbound: mpsc::Receiver<Message>,
    ) -> io::Result<()> {
        let (reader, writer) = tokio::io::split(stream.into_tls()?);
        tokio::select! {
            ended = self.hear(Cursor::new(ahead).chain(reader), node) => ended,
            ended = say(writer, outbound) => ended,
        }
    }

    async fn hear(&self, mut reader: impl AsyncRead + Unpin, node: NodeId) -> io::Result<()> {
        let mut pace = Pace { since: Instant::now(), messages: 0 };
        while let Some(message) = read(&mut reader, MESSAGE_OCTETS_MAX).await? {
            if !pace.step(Instant::now()) {
                self.shut(node);
                return Err(io::Error::new(io::ErrorKind::QuotaExceeded, "it says more than a member has to say"));
            }
            self.heard(node, message);
        }
        Ok(())
    }
}

/// How much was heard lately.
struct Pace {
    since: Instant,
    messages: u32,
}

impl Pace {
    /// Counts a message; returns whether there are not too many.
    fn step(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.since) >= PACE_WINDOW {
            *self = Pace { since: now, messages: 0 };
        }
        self.messages += 1;
        self.messages <= PACE_MESSAGES_MAX
    }
}

/// Sends what is to be sent, until the link is given up.
async fn say(mut writer: impl AsyncWrite + Unpin, mut outbound: mpsc::Receiver<Message>) -> io::Result<()> {
    while let Some(message) = outbound.recv().await {
        write(&mut writer, &message).await?;
    }
    // Nobody may be left to hear it.
    let _ = timeout(WRITE_LIMIT, writer.shutdown()).await;
    Ok(())
}

/// Sends one message.
pub(super) async fn write(writer: &mut (impl AsyncWrite + Unpin), message: &Message) -> io::Result<()> {
    let send = async {
        writer.write_all(&message.to_octets()).await?;
        writer.flush().await
    };
    timeout(WRITE_LIMIT, send)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the other side takes no data"))?
}

/// Reads one message; `None` at the end. While nothing comes, no buffer is held.
pub(super) async fn read(reader: &mut (impl AsyncRead + Unpin), octets_max: usize) -> io::Result<Option<Message>> {
    let malformed = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    let mut length = [0; LENGTH_OCTETS];
    match reader.read_exact(&mut length).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    };
    let mut octets = vec![0; message_octets(length, octets_max).map_err(malformed)?];
    reader.read_exact(&mut octets).await?;
    Message::from_octets(&octets).map(Some).map_err(malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_pass_and_a_length_beyond_the_limit_ends_the_link() {
        let (mut near, mut far) = tokio::io::duplex(64);
        let said = Message::Refused { why: "x".repeat(199).into() };
        let sent = said.clone();
        let sending = tokio::spawn(async move {
            write(&mut near, &sent).await?;
            near.write_all(&[0xff; 4]).await
        });
        assert_eq!(read(&mut far, 1024).await.expect("sound"), Some(said));
        assert_eq!(read(&mut far, 1024).await.expect_err("too long").kind(), io::ErrorKind::InvalidData);
        sending.await.expect("no panic").expect("sent");
        assert_eq!(read(&mut far, 1024).await.expect("the end"), None);
    }
}
