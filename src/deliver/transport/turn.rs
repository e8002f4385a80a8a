//! Connections that are reversed (RFC 2645): from a customer who comes for its mail, and to a host
//! that keeps ours.

use std::sync::Arc;
use std::time::{Duration, Instant};

use postroad_smtp::{Domain, Reply};

use super::{Connection, OpenError, Step, Target};
use crate::deliver::turned::Ticket;
use crate::net::{Address, Stream};

/// How long the answer to NOOP may take: mail waits meanwhile.
const NOOP_LIMIT: Duration = Duration::from_secs(60);

impl Connection {
    /// Goes on as the client over a connection that its peer opened: it greets next.
    ///
    /// # Errors
    /// Says why the peer takes no mail.
    pub async fn adopt(stream: Stream, target: Arc<Target>) -> Result<Connection, OpenError> {
        let is_secure = stream.tls().is_some();
        Connection::new(stream, is_secure, target).ready().await
    }

    /// Has the connection reversed and gives it away: the peer is the client from now on.
    ///
    /// # Errors
    /// What the peer said instead, or why it said nothing.
    pub async fn reverse(mut self, domains: &[Domain]) -> Result<Stream, Reply> {
        self.session.turn(domains, Instant::now());
        match self.step().await {
            Step::HandOver => Ok(self.stream),
            Step::NotTurned(reply) => {
                self.quit().await;
                Err(reply)
            }
            Step::Failed(failure) => Err(failure.reply()),
            Step::Ready | Step::StartTls | Step::WantContent | Step::Done(_) => {
                unreachable!("ATRN is answered or the session fails")
            }
        }
    }

    /// Says something that changes nothing. Returns whether the peer is still there.
    pub async fn noop(&mut self) -> bool {
        self.session.noop(Instant::now());
        let answered = tokio::time::timeout(NOOP_LIMIT, self.step()).await;
        self.rest();
        matches!(answered, Ok(Step::Ready))
    }

    /// Returns whether the peer lets the session stay open without work.
    pub fn may_stay(&self) -> bool {
        self.session.offered().keep
    }

    /// Returns what says that a customer has reversed it.
    pub fn ticket(&self) -> Option<&Ticket> {
        self.ticket.as_deref()
    }

    /// Takes that away, since the connection ends.
    pub fn take_ticket(&mut self) -> Option<Box<Ticket>> {
        self.ticket.take()
    }

    /// Says that a customer has reversed it.
    pub fn set_ticket(&mut self, ticket: Ticket) {
        self.ticket = Some(Box::new(ticket));
    }

    /// Returns where the host listens; for a socket in the file system nothing that can be dialled.
    pub fn address(&self) -> &Address {
        &self.target.address
    }
}
