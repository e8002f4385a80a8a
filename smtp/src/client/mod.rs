//! The client's half of an SMTP or LMTP session (RFC 5321, RFC 2033) as a machine without IO.
//!
//! The shell polls and performs. The machine greets, starts TLS, authenticates, and runs one
//! transaction after the other in as few round trips as the peer allows: with PIPELINING the whole
//! envelope in one write, with CHUNKING besides the content in the same; without CHUNKING the next
//! envelope behind the content. Every recipient gets exactly one [`Answer`]. It never sends a password without TLS, never a bare CR, LF or NUL, and
//! never believes what came before TLS began.

mod ahead;
mod commands;
mod config;
mod exchange;
mod hello;
mod reply_reader;

use std::time::{Duration, Instant};

pub use config::{Action, Answer, Config, Failure, Protocol, Timeouts, TlsNeed, Transaction};
use exchange::Exchange;
pub use reply_reader::{REPLY_LINE_OCTETS_MAX, REPLY_LINES_MAX, REPLY_OCTETS_MAX, ReplyError, ReplyReader};

use crate::data::ContentFault;
use crate::domain::Domain;
use crate::extension::Offered;
use crate::line::Input;
use crate::reply::Reply;

/// The client's half of one session.
#[derive(Debug)]
pub struct Session {
    config: Config,
    offered: Offered,
    secure: bool,
    state: State,
    reader: ReplyReader,
    output: Vec<u8>,
    deadline: Instant,
    /// Replies to RSET that are due before any other.
    resets_due: u32,
    /// The transaction whose commands went out behind the content of the one before.
    ahead: Option<Box<Exchange>>,
    /// Answers the shell has not heard yet.
    done: Option<Vec<Answer>>,
    /// What this half itself answered recipients of the last transaction with.
    ours: Option<Reply>,
    /// The refusal of ATRN or XVIA that the shell has not heard yet.
    not_turned: Option<Reply>,
}

/// Where a session stands, named by what it expects.
#[derive(Debug)]
enum State {
    ExpectGreeting,
    ExpectHello,
    /// HELO, after EHLO was refused.
    ExpectHelo,
    ExpectStartTls,
    /// The shell owes the handshake.
    ExpectTls,
    ExpectAuth(hello::AuthStep),
    /// The reply to RSET, of a peer without PIPELINING.
    ExpectReset,
    ExpectNoop,
    /// The reply to ATRN or XVIA.
    ExpectTurn,
    /// This half has ended: the peer is the client from now on, or passes octets on.
    Turned,
    Ready,
    Sending(Box<Exchange>),
    ExpectBye,
    Closed,
    Failed(Failure),
}

impl Session {
    /// Begins a session on a new connection; `tls_already` when the connection began with TLS.
    pub fn new(config: Config, tls_already: bool, now: Instant) -> Session {
        Session {
            deadline: now + config.timeouts.greeting,
            config,
            offered: Offered::default(),
            secure: tls_already,
            state: State::ExpectGreeting,
            reader: ReplyReader::new(),
            output: Vec::new(),
            resets_due: 0,
            ahead: None,
            done: None,
            ours: None,
            not_turned: None,
        }
    }

    /// Returns the octets that wait to be written. The shell writes them and empties the vector.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// Returns what the peer offered last; nothing before EHLO was answered.
    pub fn offered(&self) -> &Offered {
        &self.offered
    }

    /// Returns whether a reply to recipients of the last transaction is none of the peer's but our own: it was not even
    /// tried there, or the session ended before the peer answered.
    pub fn is_ours(&self, reply: &Reply) -> bool {
        self.ours.as_ref() == Some(reply)
    }

    /// Returns whether the session is under TLS.
    pub fn is_secure(&self) -> bool {
        self.secure
    }

    /// Returns what to do next.
    pub fn poll(&mut self, input: &mut Input, now: Instant) -> Action {
        loop {
            if let Some(answers) = self.done.take() {
                return Action::Done(answers);
            }
            if let Some(refusal) = self.not_turned.take() {
                return Action::NotTurned(refusal);
            }
            match &self.state {
                State::Failed(failure) => return Action::Failed(failure.clone()),
                State::Closed => return Action::Closed,
                State::ExpectTls if input.is_empty() => return Action::StartTls,
                State::ExpectTls => self.fail(Failure::TlsInjected),
                State::Turned if input.is_empty() => return Action::HandOver,
                State::Turned => self.fail(Failure::TurnedEarly),
                State::Sending(_) => {
                    if let Some(action) = self.poll_exchange(input, now) {
                        return action;
                    }
                }
                // What is in the input may answer what was sent ahead.
                State::Ready if input.is_empty() || self.ahead.is_some() => return Action::Ready,
                _ => match self.next_reply(input) {
                    Some(reply) => self.handle_reply(reply, now),
                    None if matches!(self.state, State::Failed(_)) => {}
                    None if matches!(self.state, State::Ready) => return Action::Ready,
                    None => return Action::Read { until: self.deadline },
                },
            }
        }
    }

    /// Takes the next reply that is not the one to a RSET; a malformed one fails the session.
    fn next_reply(&mut self, input: &mut Input) -> Option<Reply> {
        loop {
            let whole = matches!(self.state, State::ExpectHello);
            let reply = if whole { self.reader.next_whole(input) } else { self.reader.next(input) };
            match reply {
                Ok(Some(reply)) if self.resets_due > 0 && reply.code.get() != 421 => self.resets_due -= 1,
                Ok(reply) => return reply,
                Err(error) => {
                    self.fail(Failure::Protocol(error));
                    return None;
                }
            }
        }
    }

    /// Begins a transaction. The session is to be [`Action::Ready`]; otherwise every recipient is
    /// answered with the reason.
    pub fn begin(&mut self, transaction: Transaction, now: Instant) {
        let refusal = match &self.state {
            State::Ready if self.ahead.is_none() => self.local_refusal(&transaction),
            State::Failed(failure) => Some(Answer::Transient(failure.reply())),
            _ => Some(Answer::Transient(Failure::Lost.reply())),
        };
        self.ours = refusal.as_ref().map(|answer| answer.reply().clone());
        match refusal {
            Some(answer) => self.done = Some(vec![answer; transaction.recipients.len()]),
            None => {
                let early = self.offered.pipelining && transaction.content_octets <= exchange::EARLY_OCTETS_MAX;
                self.state = State::Sending(Box::new(Exchange::new(transaction, self.offered.chunking, early)));
                self.restart(self.config.timeouts.command, now);
            }
        }
    }

    /// Gives the next piece of content, when [`Action::WantContent`] asks for it.
    pub fn content(&mut self, piece: &[u8]) {
        if let State::Sending(exchange) = &mut self.state
            && let Err(fault) = exchange.content(piece, &mut self.output)
        {
            self.abort_content(fault);
        }
    }

    /// The content is complete.
    pub fn content_end(&mut self, now: Instant) {
        if let State::Sending(exchange) = &mut self.state {
            match exchange.content_end(&mut self.output) {
                Ok(()) => self.restart_for_next_reply(now),
                Err(fault) => self.abort_content(fault),
            }
        }
    }

    /// The shell cannot give the rest of the content: what was sent of it must not count as the
    /// message. Who is still without an answer gets a transient one of our own.
    pub fn content_abort(&mut self) {
        if matches!(self.state, State::Sending(_)) {
            self.abort_content(exchange::ContentError::Unreadable);
        }
    }

    /// Returns whether the reply to a RSET is still due. Before a connection is left alone, that
    /// reply is to be read (`poll` with more input): a session that is kept has nothing on its way.
    pub fn awaits_reset(&self) -> bool {
        self.resets_due > 0 || matches!(self.state, State::ExpectReset)
    }

    /// Asks for the mail that waits for these domains, or for all that are the user's when none is named
    /// (RFC 2645 §5.2.1). The session is to be [`Action::Ready`]; it goes on with
    /// [`Action::HandOver`] or [`Action::NotTurned`].
    pub fn turn(&mut self, domains: &[Domain], now: Instant) {
        if matches!(self.state, State::Ready) {
            let names: Vec<&str> = domains.iter().map(Domain::as_str).collect();
            let space = if names.is_empty() { "" } else { " " };
            self.output.extend_from_slice(format!("ATRN{space}{}\r\n", names.join(",")).as_bytes());
            self.state = State::ExpectTurn;
            self.restart(self.config.timeouts.turn, now);
        }
    }

    /// Asks a member of the mesh to pass octets to another one and back, named in small letters and digits. The
    /// session is to be [`Action::Ready`]; it goes on with [`Action::HandOver`] or [`Action::NotTurned`].
    pub fn through(&mut self, node: &str, now: Instant) {
        if matches!(self.state, State::Ready) {
            self.output.extend_from_slice(format!("XVIA {node}\r\n").as_bytes());
            self.state = State::ExpectTurn;
            self.restart(self.config.timeouts.command, now);
        }
    }

    /// Says NOOP, which keeps the way open through whatever forgets silent connections. The session is
    /// to be [`Action::Ready`], and is again when it was answered.
    pub fn noop(&mut self, now: Instant) {
        if matches!(self.state, State::Ready) {
            self.output.extend_from_slice(b"NOOP\r\n");
            self.state = State::ExpectNoop;
            self.restart(self.config.timeouts.command, now);
        }
    }

    /// Says QUIT. Without an open transaction only, and with none sent ahead.
    pub fn quit(&mut self, now: Instant) {
        if matches!(self.state, State::Ready | State::ExpectReset) && self.ahead.is_none() {
            self.output.extend_from_slice(b"QUIT\r\n");
            self.state = State::ExpectBye;
            self.restart(self.config.timeouts.quit, now);
        }
    }

    /// The TLS handshake succeeded: what was offered before is forgotten (RFC 3207 §4.2).
    pub fn handle_tls(&mut self, now: Instant) {
        if matches!(self.state, State::ExpectTls) {
            self.secure = true;
            self.offered = Offered::default();
            self.say_hello(now);
        }
    }

    /// The deadline of the last `Read` has passed, or a write took too long.
    pub fn handle_timeout(&mut self) {
        self.fail(Failure::TimedOut);
    }

    /// The peer sends no more, or the connection broke.
    pub fn handle_eof(&mut self) {
        self.fail(Failure::Lost);
    }

    fn restart(&mut self, time: Duration, now: Instant) {
        self.deadline = now + time;
    }

    /// Ends the session; an open transaction is answered first.
    fn fail(&mut self, failure: Failure) {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::ExpectBye | State::Closed => return,
            State::Failed(first) => {
                self.state = State::Failed(first);
                return;
            }
            State::Sending(exchange) => {
                self.ours = Some(failure.own_reply());
                self.done = Some(exchange.lost(&failure));
            }
            _ => {}
        }
        self.state = State::Failed(failure);
    }

    /// Content that must not be sent: the connection is cut in the middle, so the peer drops it.
    fn abort_content(&mut self, fault: exchange::ContentError) {
        let ours = |text| (Answer::Transient(Failure::Content(text).reply()), text);
        let (answer, text) = match fault {
            exchange::ContentError::Fault(fault) => {
                (Answer::Permanent(exchange::bad_content(fault)), fault_text(fault))
            }
            exchange::ContentError::Length => ours("its length is not what was announced"),
            exchange::ContentError::Unreadable => ours("it cannot be read on this host"),
        };
        if let State::Sending(exchange) = std::mem::replace(&mut self.state, State::Closed) {
            self.ours = Some(answer.reply().clone());
            self.done = Some(exchange.answer_open(&answer));
        }
        self.output.clear();
        self.state = State::Failed(Failure::Content(text));
    }
}

fn fault_text(fault: ContentFault) -> &'static str {
    match fault {
        ContentFault::LineEnd => "it has a bare CR or LF",
        ContentFault::Nul => "it has a NUL octet",
    }
}
