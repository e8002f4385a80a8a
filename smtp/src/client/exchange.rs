//! One transaction: commands out, replies in, one answer per recipient (RFC 5321 §3.3; pipelining:
//! RFC 2920; BDAT: RFC 3030; LMTP: RFC 2033).
//!
//! Commands are numbered: 0 is MAIL, 1 to n are RCPT, n+1 is DATA or BDAT. Replies come in the same
//! order, so the number of replies read says what the next one is about.

use std::io::Write;
use std::time::Instant;

use super::commands::{needs_smtputf8, write_mail, write_rcpt};
use super::{Action, Answer, Failure, Protocol, Session, State, Transaction};
use crate::data::{ContentFault, DotStuffer, LineCheck};
use crate::deliver_by::{ByMode, DeliverBy};
use crate::extension::Offered;
use crate::line::Input;
use crate::reply::{Reply, Severity, Status};

/// Content up to this many octets follows a pipelined BDAT at once; larger content waits for the
/// recipients' replies, so that it is not sent for nothing.
pub(super) const EARLY_OCTETS_MAX: u64 = 1 << 20;

/// Commands written before their replies are read: both ends' buffers hold that many (RFC 2920 §3.1).
const WINDOW_COMMANDS_MAX: usize = 100;

/// A transaction on its way.
#[derive(Debug)]
pub(super) struct Exchange {
    transaction: Transaction,
    /// Parallel to the recipients; `None` is not answered yet.
    answers: Vec<Option<Answer>>,
    /// The reply that refused MAIL.
    refusal: Option<Reply>,
    chunked: bool,
    /// Whether content may be sent before the recipients are known to be accepted.
    early: bool,
    sent: usize,
    answered: usize,
    content: Content,
    /// The peer has answered for the message itself; no transaction is open there.
    closed: bool,
}

#[derive(Debug)]
enum Content {
    NotYet,
    Data(DotStuffer),
    Chunk {
        lines: LineCheck,
        left: u64,
    },
    /// 354 for no recipient: an empty message ends it (RFC 2920 §3.1).
    Empty,
    Complete,
}

/// Why content cannot be sent.
pub(super) enum ContentError {
    Fault(ContentFault),
    /// Not as many octets as announced.
    Length,
    /// The shell has no more of it.
    Unreadable,
}

/// What is said of content that must not leave.
pub(super) fn bad_content(fault: ContentFault) -> Reply {
    Reply::of(554, Some(Status::new(5, 6, 0)), "").with_text(&fault.to_string())
}

impl Exchange {
    pub(super) fn new(transaction: Transaction, chunked: bool, early: bool) -> Exchange {
        Exchange {
            answers: vec![None; transaction.recipients.len()],
            transaction,
            refusal: None,
            chunked,
            early,
            sent: 0,
            answered: 0,
            content: Content::NotYet,
            closed: false,
        }
    }

    /// Returns whether the content was sent whole and nothing but the answer to it is due.
    pub(super) fn awaits_answer(&self) -> bool {
        matches!(self.content, Content::Complete) && self.answered == self.recipients() + 2 && self.open() > 0
    }

    /// Writes the commands of a transaction as far as the content, unless they are too many for one write.
    pub(super) fn send_ahead(&mut self, offered: &Offered, out: &mut Vec<u8>) -> bool {
        let is_whole = self.recipients() + 2 <= WINDOW_COMMANDS_MAX;
        if is_whole {
            self.send(offered, out);
        }
        is_whole
    }

    fn recipients(&self) -> usize {
        self.answers.len()
    }

    fn open(&self) -> usize {
        if self.refusal.is_some() { 0 } else { self.answers.iter().filter(|answer| answer.is_none()).count() }
    }

    /// Writes what may go out now: nothing while replies are due, one command without pipelining.
    fn send(&mut self, offered: &Offered, out: &mut Vec<u8>) {
        if self.sent != self.answered || self.refusal.is_some() {
            return;
        }
        let window = if offered.pipelining { WINDOW_COMMANDS_MAX } else { 1 };
        for _ in 0..window {
            match self.sent.checked_sub(1) {
                None => write_mail(&self.transaction, offered, out),
                Some(i) if i < self.recipients() => {
                    write_rcpt(&self.transaction, &self.transaction.recipients[i], offered, out);
                }
                Some(i) if i > self.recipients() || !self.send_content_command(offered, out) => return,
                Some(_) => {}
            }
            self.sent += 1;
        }
    }

    fn send_content_command(&mut self, offered: &Offered, out: &mut Vec<u8>) -> bool {
        let known = self.answered == self.sent;
        let ahead = if self.chunked { self.early } else { offered.pipelining };
        if (known && self.open() == 0) || (!known && !ahead) {
            return false;
        }
        if self.chunked {
            let octets = self.transaction.content_octets;
            // Writing to a Vec cannot fail.
            let _ = write!(out, "BDAT {octets} LAST\r\n");
            self.content = Content::Chunk { lines: LineCheck::default(), left: octets };
        } else {
            out.extend_from_slice(b"DATA\r\n");
        }
        true
    }

    /// Takes the next reply, which is none of 421.
    fn handle(&mut self, reply: Reply, lmtp: bool, out: &mut Vec<u8>) {
        let index = self.answered;
        self.answered += 1;
        match index.checked_sub(1) {
            None if !reply.is_positive() => self.refusal = Some(reply),
            None => {}
            Some(i) if i < self.recipients() => {
                self.answers[i] = (!reply.is_positive()).then(|| Answer::from_reply(reply));
            }
            Some(i) if i == self.recipients() && !self.chunked => self.handle_data_reply(reply, out),
            Some(_) => self.handle_final(&reply, lmtp),
        }
    }

    fn handle_data_reply(&mut self, reply: Reply, out: &mut Vec<u8>) {
        if reply.severity() != Severity::Intermediate {
            // 2yz to DATA promises nothing.
            let answer = if reply.is_positive() { Answer::Transient(reply) } else { Answer::from_reply(reply) };
            self.answer_each(&answer);
        } else if self.open() > 0 {
            self.content = Content::Data(DotStuffer::new());
        } else {
            out.extend_from_slice(b".\r\n");
            self.content = Content::Empty;
        }
    }

    /// SMTP answers for all recipients at once, LMTP for each in its turn.
    fn handle_final(&mut self, reply: &Reply, lmtp: bool) {
        self.closed = self.open() > 0 || !self.chunked;
        let answer = Answer::from_reply(reply.clone());
        if !lmtp {
            self.answer_each(&answer);
        } else if let Some(open) = self.answers.iter_mut().find(|answer| answer.is_none()) {
            *open = Some(answer);
        }
    }

    fn answer_each(&mut self, answer: &Answer) {
        self.answers.iter_mut().filter(|open| open.is_none()).for_each(|open| *open = Some(answer.clone()));
    }

    /// Returns whether a reply is due for what was sent.
    fn expects_reply(&self) -> bool {
        let commands = self.recipients() + 2;
        if self.answered < self.sent {
            return true;
        }
        let ended = matches!(self.content, Content::Complete);
        match self.content {
            Content::Empty => self.answered == commands,
            _ => ended && self.open() > 0,
        }
    }

    fn wants_content(&self) -> bool {
        matches!(self.content, Content::Data(_) | Content::Chunk { .. })
    }

    pub(super) fn content(&mut self, piece: &[u8], out: &mut Vec<u8>) -> Result<(), ContentError> {
        match &mut self.content {
            Content::Data(stuffer) => stuffer.stuff(piece, out).map_err(ContentError::Fault),
            Content::Chunk { lines, left } => {
                lines.check(piece).map_err(ContentError::Fault)?;
                *left = left.checked_sub(piece.len() as u64).ok_or(ContentError::Length)?;
                out.extend_from_slice(piece);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    pub(super) fn content_end(&mut self, out: &mut Vec<u8>) -> Result<(), ContentError> {
        match std::mem::replace(&mut self.content, Content::Complete) {
            Content::Data(stuffer) => stuffer.finish(out).map_err(ContentError::Fault),
            Content::Chunk { lines, left: 0 } => lines.check_end().map_err(ContentError::Fault),
            Content::Chunk { .. } => Err(ContentError::Length),
            other => {
                self.content = other;
                Ok(())
            }
        }
    }

    /// Answers for a session that has ended: what the peer said stays said.
    pub(super) fn lost(self, failure: &Failure) -> Vec<Answer> {
        let sent_whole = matches!(self.content, Content::Complete);
        // 421 in place of an earlier reply says that the content was never looked at.
        let refused = matches!(failure, Failure::Ended(_)) && self.answered <= self.recipients();
        self.answer_open(&if sent_whole && !refused {
            Answer::Unknown(failure.own_reply())
        } else {
            Answer::Transient(failure.reply())
        })
    }

    /// Returns all answers, with this one where none was given.
    pub(super) fn answer_open(self, open: &Answer) -> Vec<Answer> {
        let Exchange { answers, refusal, .. } = self;
        match refusal {
            Some(reply) => vec![Answer::from_reply(reply); answers.len()],
            None => answers.into_iter().map(|answer| answer.unwrap_or_else(|| open.clone())).collect(),
        }
    }
}

impl Session {
    /// Returns why a transaction cannot even be tried here: it would only be refused.
    pub(super) fn local_refusal(&self, transaction: &Transaction) -> Option<Answer> {
        if needs_smtputf8(transaction) && !self.offered.smtputf8 {
            let text = "the next hop does not offer SMTPUTF8, which this message needs";
            return Some(Answer::Permanent(Reply::of(550, Some(Status::new(5, 6, 7)), text)));
        }
        if let Some(text) = transaction.params.deliver_by.and_then(|by| self.lateness(by)) {
            return Some(Answer::Permanent(Reply::of(554, Some(Status::new(5, 4, 7)), text)));
        }
        let limit = self.offered.size.flatten()?;
        (transaction.content_octets > limit).then(|| {
            let text = "the message is larger than the next hop accepts";
            Answer::Permanent(Reply::of(552, Some(Status::new(5, 3, 4)), text))
        })
    }

    /// Returns why a message that is to go back when it is late must not go here (RFC 2852 §4.1.4):
    /// nobody behind this host would send it back. A mail store is the end of the way.
    fn lateness(&self, by: DeliverBy) -> Option<&'static str> {
        match self.offered.deliver_by {
            _ if by.is_void() => Some("the time for its delivery is over"),
            _ if by.mode == ByMode::Notify || self.config.protocol == Protocol::Lmtp => None,
            None => Some("the next hop does not offer DELIVERBY, so it cannot be kept from being delivered late"),
            Some(least) => {
                let is_short = i64::from(by.seconds) < i64::from(least);
                is_short.then_some("the next hop needs more time than is left for its delivery")
            }
        }
    }

    /// Moves the open transaction on until something is to be done.
    pub(super) fn poll_exchange(&mut self, input: &mut Input, now: Instant) -> Option<Action> {
        let lmtp = self.config.protocol == Protocol::Lmtp;
        let State::Sending(exchange) = &mut self.state else { return None };
        if exchange.expects_reply() {
            let wants_content = exchange.wants_content();
            return match self.next_reply(input) {
                Some(reply) => {
                    self.handle_exchange_reply(reply, lmtp, now);
                    None
                }
                None if matches!(self.state, State::Failed(_)) => None,
                None if wants_content => Some(Action::WantContent),
                None => Some(Action::Read { until: self.deadline }),
            };
        }
        if exchange.wants_content() {
            return self.poll_interruption(input);
        }
        let before = exchange.sent;
        exchange.send(&self.offered, &mut self.output);
        if exchange.sent == before {
            self.finish_exchange(now);
        }
        None
    }

    /// A server that cannot go on says so in the middle of the content. What it says is the answer,
    /// and the session is over: the rest of the content cannot be taken back.
    fn poll_interruption(&mut self, input: &mut Input) -> Option<Action> {
        match self.next_reply(input) {
            Some(reply) if reply.is_positive() => self.fail(Failure::Unexpected(reply)),
            Some(reply) => {
                if let State::Sending(exchange) = &mut self.state {
                    exchange.answer_each(&Answer::from_reply(reply.clone()));
                }
                self.fail(Failure::Ended(reply));
            }
            None if matches!(self.state, State::Failed(_)) => {}
            None => return Some(Action::WantContent),
        }
        None
    }

    fn handle_exchange_reply(&mut self, reply: Reply, lmtp: bool, now: Instant) {
        let State::Sending(exchange) = &mut self.state else { return };
        if reply.code.get() == 421 {
            let at_end = exchange.answered > exchange.recipients() && matches!(exchange.content, Content::Complete);
            if at_end {
                exchange.handle_final(&reply, lmtp);
            }
            return self.fail(Failure::Ended(reply));
        }
        exchange.handle(reply, lmtp, &mut self.output);
        self.restart_for_next_reply(now);
    }

    /// Gives the peer the time that its next reply may take: content that went out early does not
    /// make the reply to MAIL the one to the content.
    pub(super) fn restart_for_next_reply(&mut self, now: Instant) {
        let State::Sending(exchange) = &self.state else { return };
        let timeouts = &self.config.timeouts;
        let envelope_answered = exchange.answered > exchange.recipients();
        let time = match exchange.content {
            Content::Complete | Content::Empty if envelope_answered => timeouts.final_reply,
            Content::NotYet if envelope_answered => timeouts.data,
            _ => timeouts.command,
        };
        self.restart(time, now);
    }

    /// Every recipient has its answer. A transaction that is still open at the peer is reset, in
    /// the same write as the next one where the peer takes that.
    fn finish_exchange(&mut self, now: Instant) {
        let State::Sending(exchange) = std::mem::replace(&mut self.state, State::Ready) else { return };
        if exchange.refusal.is_none() && !exchange.closed {
            self.output.extend_from_slice(b"RSET\r\n");
            self.restart(self.config.timeouts.command, now);
            if self.offered.pipelining {
                self.resets_due += 1;
            } else {
                self.state = State::ExpectReset;
            }
        }
        self.done = Some(exchange.answer_open(&Answer::Transient(Failure::Lost.reply())));
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;
    use crate::envelope::{MailParams, Recipient};
    use crate::path::{ForwardPath, ReversePath};

    #[test]
    fn what_is_to_come_back_goes_only_where_it_will_be_sent_back() {
        let answer = |by: DeliverBy, protocol: Protocol, deliver_by: Option<u32>| {
            let mut session = Session::new(Config { protocol, ..Config::new("x.example") }, false, Instant::now());
            session.offered = Offered { deliver_by, ..Offered::default() };
            let transaction = Transaction {
                reverse_path: ReversePath::Null,
                params: MailParams { deliver_by: Some(by), ..MailParams::default() },
                recipients: vec![Recipient::new(ForwardPath::Postmaster)],
                content_octets: 1,
                needs_smtputf8: false,
            };
            session.local_refusal(&transaction).map(|answer| answer.reply().to_string())
        };
        let by = |text: &str| text.parse::<DeliverBy>().expect(text);
        for offered in [None, Some(0), Some(61)] {
            assert_eq!(answer(by("-60;N"), Protocol::Smtp, offered), None);
            assert_eq!(answer(by("60;R"), Protocol::Lmtp, offered), None);
            let late = answer(by("60;R").after(60), Protocol::Lmtp, offered);
            assert_eq!(late.as_deref(), Some("554 5.4.7 the time for its delivery is over"));
        }
        assert_eq!(answer(by("60;R"), Protocol::Smtp, Some(60)), None);
        for offered in [None, Some(61)] {
            assert!(answer(by("60;R"), Protocol::Smtp, offered).is_some_and(|reply| reply.starts_with("554 5.4.7 ")));
        }
    }
}
