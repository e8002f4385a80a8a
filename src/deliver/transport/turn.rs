//! Connections that are reversed (RFC 2645): from a customer who comes for its mail, and to a host
//! that keeps ours. And those that lead to another member of the mesh.

use std::sync::Arc;
use std::time::{Duration, Instant};

use postroad_mesh::NodeId;
use postroad_smtp::{Domain, Reply};

use super::{Connection, OpenError, Step, Target, secure};
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
        self.handed_over().await
    }

    /// Has a member of the mesh pass octets to another one and back, or begin a session within this one where
    /// that is the member itself. Gives the connection away: what is said next is under TLS with that one.
    ///
    /// # Errors
    /// What the peer said instead, or why it said nothing.
    pub async fn through(mut self, node: &NodeId) -> Result<Stream, Reply> {
        self.session.through(&node.to_string(), Instant::now());
        self.handed_over().await
    }

    /// Begins a session with a host to which others pass octets on.
    ///
    /// # Errors
    /// Says which step failed.
    pub async fn within(stream: Stream, target: Arc<Target>) -> Result<Connection, OpenError> {
        let (name, address) = (target.name.clone(), target.address.clone());
        let stream = stream.into_within().map_err(|source| OpenError::Tls { name, address, source })?;
        Connection::new(secure(stream, &target).await?, true, target).ready().await
    }

    async fn handed_over(mut self) -> Result<Stream, Reply> {
        match self.step().await {
            Step::HandOver => Ok(self.stream),
            Step::NotTurned(reply) => {
                self.quit().await;
                Err(reply)
            }
            Step::Failed(failure) => Err(failure.reply()),
            Step::Ready | Step::StartTls | Step::WantContent | Step::Done(_) => {
                unreachable!("ATRN and XVIA are answered or the session fails")
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

    /// Something was read or written.
    pub(super) fn beat(&self) {
        if let Some(ticket) = &self.ticket {
            ticket.pulse().beat();
        }
    }

    /// Returns whether its customer came anew while it was at work.
    pub fn has_follower(&self) -> bool {
        self.ticket.as_ref().is_some_and(|ticket| ticket.pulse().has_follower())
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
