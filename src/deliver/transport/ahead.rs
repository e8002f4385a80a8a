//! What was sent of the next message behind the content of the one before.

use std::time::Duration;

use postroad_queue::QueueId;

use super::Connection;

impl Connection {
    /// Returns the message whose envelope was sent already: the connection is good for nothing else.
    pub fn ahead(&self) -> Option<QueueId> {
        self.ahead
    }

    /// Returns how long the last transaction took, where the peer takes an envelope ahead of its turn
    /// and gains by it.
    pub fn pace_ahead(&self) -> Option<Duration> {
        self.took.filter(|_| self.session.takes_ahead() && self.ticket.is_none() && self.failure.is_none())
    }
}
