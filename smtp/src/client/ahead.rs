//! The envelope of the next message behind the content of the one before, in one write: RFC 2920 §3.1
//! allows content to be the first of a group of commands. A message then costs one round trip.
//!
//! Nobody has tried to deliver a message of which only the envelope was sent: when the session ends
//! before its turn, there is no answer for it.

use std::time::Instant;

use super::exchange::Exchange;
use super::{Protocol, Session, State, Transaction};

impl Session {
    /// Writes MAIL, RCPT and DATA of the next message behind the content of this one, which is complete
    /// and about to be written. Returns whether it did: not for a peer without PIPELINING, nor for one
    /// with CHUNKING, which takes envelope and content in one write anyway.
    pub fn begin_ahead(&mut self, transaction: Transaction) -> bool {
        let State::Sending(exchange) = &self.state else { return false };
        let is_place = exchange.awaits_answer() && self.ahead.is_none();
        if !self.takes_ahead() || !is_place || self.local_refusal(&transaction).is_some() {
            return false;
        }
        let mut next = Box::new(Exchange::new(transaction, false, true));
        let is_sent = next.send_ahead(&self.offered, &mut self.output);
        self.ahead = is_sent.then_some(next);
        is_sent
    }

    /// Goes on with the transaction that was sent ahead, as [`Session::begin`] does with another. Between
    /// the answers of the one before and this the session is [`Action::Ready`](super::Action::Ready) for
    /// nothing else. Returns whether there is one: none when the session has failed.
    pub fn go_on(&mut self, now: Instant) -> bool {
        let Some(next) = self.ahead.take().filter(|_| matches!(self.state, State::Ready)) else { return false };
        self.ours = None;
        self.state = State::Sending(next);
        self.restart(self.config.timeouts.command, now);
        true
    }

    /// Returns whether the peer takes an envelope ahead, and gains by it.
    pub fn takes_ahead(&self) -> bool {
        self.offered.pipelining && !self.offered.chunking && self.config.protocol == Protocol::Smtp
    }

    /// Returns whether an envelope was sent ahead and its turn has come: the session is good for that
    /// message alone.
    pub fn is_ahead(&self) -> bool {
        self.ahead.is_some() && matches!(self.state, State::Ready)
    }
}
