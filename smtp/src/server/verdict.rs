//! Questions to the shell, and what follows from its verdicts.

use super::state::{Asking, Incoming, Opening, State, Transaction};
use super::{Draft, Question, Session, Verdict, replies};
use crate::priority::Priority;
use crate::reply::Reply;

impl Asking {
    pub(super) fn question(&self) -> Question<'_> {
        match self {
            Asking::Connect => Question::Connect,
            Asking::Helo { name, .. } => Question::Helo(name),
            Asking::Mail(mail) => {
                Question::Mail { reverse_path: &mail.reverse_path, params: &mail.params, size: mail.size }
            }
            Asking::Rcpt(transaction, recipient) => Question::Rcpt {
                reverse_path: &transaction.reverse_path,
                recipient,
                accepted: transaction.recipients.len(),
            },
            Asking::Content(..) => Question::Content,
            Asking::Auth(credentials) => Question::Auth(credentials),
            Asking::Cram(response) => Question::Cram(response),
            Asking::Turn(domains) => Question::Turn(domains),
            Asking::Start(node) => Question::Start(node),
            Asking::Via(node) => Question::Via(node),
        }
    }
}

impl Session {
    /// The shell has decided the question of the last `Ask`.
    pub fn handle_verdict(&mut self, verdict: Verdict) {
        let asking = match std::mem::replace(&mut self.state, State::Closing) {
            State::Asking(asking) => asking,
            other => {
                self.state = other;
                return;
            }
        };
        self.deadline = None;
        match verdict {
            Verdict::Close(reply) => self.say_last(&reply),
            Verdict::Refuse(reply) => self.refused(asking, &reply),
            Verdict::Accept => self.accepted(asking, None),
            Verdict::AcceptUnprivileged => self.accept_unprivileged(asking),
            Verdict::Authenticated(user) => self.accepted(asking, Some(user)),
            Verdict::Answer(reply) => self.answered(asking, &reply),
        }
    }

    /// RFC 6710 §4.1: the client hears which priority the message has instead.
    fn accept_unprivileged(&mut self, asking: Asking) {
        match asking {
            Asking::Mail(mut mail) => {
                mail.params.priority = Some(Priority::NORMAL);
                self.state = State::ExpectRcpt(Box::new(Transaction::new(*mail)));
                self.say(&replies::PRIORITY_LOWERED);
            }
            other => self.accepted(other, None),
        }
    }

    fn answered(&mut self, asking: Asking, reply: &Reply) {
        match asking {
            Asking::Start(_) => {
                self.state = State::ExpectMail;
                self.say(reply);
            }
            other => self.accepted(other, None),
        }
    }

    fn accepted(&mut self, asking: Asking, user: Option<Box<str>>) {
        match asking {
            Asking::Connect => self.greet(),
            Asking::Helo { name, esmtp } => self.accept_hello(name, esmtp),
            Asking::Mail(mail) => {
                self.state = State::ExpectRcpt(Box::new(Transaction::new(*mail)));
                self.say(&replies::SENDER_OK);
            }
            Asking::Rcpt(mut transaction, recipient) => {
                transaction.recipients.push(*recipient);
                self.state = State::ExpectRcpt(transaction);
                self.say(&replies::RECIPIENT_OK);
            }
            Asking::Content(transaction, opening) => self.accept_content(*transaction, opening),
            Asking::Start(_) => {
                self.state = State::ExpectMail;
                self.say(&replies::OK);
            }
            Asking::Turn(_) => {
                self.state = State::Turned;
                self.say(&replies::TURNING);
            }
            Asking::Via(_) => {
                self.state = State::Turned;
                self.say(&replies::THROUGH);
            }
            Asking::Auth(_) | Asking::Cram(_) => {
                self.state = State::ExpectMail;
                // Who was authenticated is for the shell to say; without a name nobody was.
                self.say(if user.is_some() { &replies::AUTHENTICATED } else { &replies::AUTH_UNDECIDED });
                self.facts.user = user;
            }
        }
    }

    fn greet(&mut self) {
        self.state = State::ExpectHello;
        let name = self.config.hostname.as_str();
        let protocol = if self.config.service == super::Service::Lmtp { "LMTP" } else { "ESMTP" };
        [b"220 ", name.as_bytes(), b" ", protocol.as_bytes(), b" Postroad\r\n"]
            .iter()
            .for_each(|part| self.output.extend_from_slice(part));
    }

    fn accept_hello(&mut self, name: Box<str>, esmtp: bool) {
        self.facts.helo = Some(name);
        self.facts.esmtp = esmtp;
        self.state = State::ExpectMail;
        if esmtp {
            self.offer().write_to(self.config.hostname.as_str(), &mut self.output);
        } else {
            self.output.extend_from_slice(b"250 ");
            self.output.extend_from_slice(self.config.hostname.as_str().as_bytes());
            self.output.extend_from_slice(b"\r\n");
        }
    }

    fn accept_content(&mut self, transaction: Transaction, opening: Opening) {
        self.draft = Draft::Open;
        let incoming = Box::new(Incoming::new(transaction));
        self.state = match opening {
            Opening::Data => State::ReceiveData(incoming),
            Opening::Chunk { octets, last } => State::ReceiveChunk { incoming, left: octets, last },
        };
        if matches!(opening, Opening::Data) {
            self.say(&replies::SEND_CONTENT);
        }
    }

    fn refused(&mut self, asking: Asking, reply: &Reply) {
        match asking {
            // RFC 5321 §3.1 lets a refused client stay for QUIT; there is nothing to gain by it.
            Asking::Connect => return self.say_last(reply),
            Asking::Helo { .. } | Asking::Mail(_) | Asking::Turn(_) | Asking::Start(_) | Asking::Via(_) => {
                self.state = self.idle_state();
            }
            Asking::Rcpt(mut transaction, _) => {
                transaction.refused = true;
                self.state = State::ExpectRcpt(transaction);
            }
            Asking::Content(transaction, Opening::Data) => self.state = State::ExpectRcpt(transaction),
            Asking::Content(_, Opening::Chunk { octets, .. }) => {
                self.state = State::SwallowChunk { left: octets, reply: Box::new(reply.clone()), ends: None };
                return;
            }
            Asking::Auth(_) | Asking::Cram(_) => {
                self.state = State::ExpectMail;
                return self.fail_auth(reply);
            }
        }
        self.refuse(reply);
    }
}
