//! The content of a message on its way to the machine and to the peer.

use std::io;
use std::time::Instant;

use postroad_queue::{ContentReader, QueueId};
use postroad_smtp::client::Transaction;

use super::{Connection, Step};

/// Octets of content handed to the machine at a time.
const PIECE_OCTETS: usize = 64 * 1024;
/// Content above this size is read from the disk on a thread that may block.
const READ_INLINE_OCTETS_MAX: u64 = 256 * 1024;

/// Why content was not given to its end.
enum Interruption {
    /// It cannot be read.
    Damage(io::Error),
    /// The peer answered, or the connection broke.
    Peer(Step),
}

impl Connection {
    /// Gives the machine the content to its end, and behind it the envelope of the next message.
    pub(super) async fn send_content(
        &mut self,
        mut content: ContentReader,
        next: Option<(QueueId, Transaction)>,
    ) -> Step {
        match self.send_pieces(&mut content).await {
            Ok(()) => {
                self.session.content_end(Instant::now());
                self.ahead = next.and_then(|(id, next)| self.session.begin_ahead(next).then_some(id));
            }
            Err(Interruption::Peer(step)) => return step,
            // The peer must not take half a message for the whole: the connection is cut.
            Err(Interruption::Damage(error)) => {
                self.session.content_abort();
                self.damage = Some(error);
            }
        }
        self.step().await
    }

    async fn send_pieces(&mut self, content: &mut ContentReader) -> Result<(), Interruption> {
        if let Some(whole) = content.in_memory() {
            for piece in whole.chunks(PIECE_OCTETS) {
                self.session.content(piece);
                if whole.len() > PIECE_OCTETS {
                    self.send_piece().await?;
                }
            }
            return Ok(());
        }
        let mut piece = vec![0; PIECE_OCTETS.min(content.octets() as usize + 1)];
        let mut offset = 0;
        loop {
            let blocking = content.octets() > READ_INLINE_OCTETS_MAX;
            let read = if blocking {
                tokio::task::block_in_place(|| content.read_at(offset, &mut piece))
            } else {
                content.read_at(offset, &mut piece)
            };
            let n = read.map_err(Interruption::Damage)?;
            if n == 0 {
                return Ok(());
            }
            offset += n as u64;
            self.session.content(&piece[..n]);
            self.send_piece().await?;
        }
    }

    /// Writes what was given of the content and hears whether the peer objects: one that takes no
    /// more of it says why, and what it says is the answer.
    async fn send_piece(&mut self) -> Result<(), Interruption> {
        self.flush().await;
        if self.broken.is_some() {
            return Err(Interruption::Peer(self.last_words().await));
        }
        // The time is over at once: only what has arrived already is taken.
        match self.stream.fill(&mut self.input, &mut self.timer, Instant::now()).await {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => return Ok(()),
            Ok(0) => self.broken = Some(io::ErrorKind::UnexpectedEof),
            Err(error) => self.broken = Some(error.kind()),
            Ok(_) => self.heard = true,
        }
        match self.step().await {
            Step::WantContent if self.broken.is_none() => Ok(()),
            step => Err(Interruption::Peer(step)),
        }
    }
}
