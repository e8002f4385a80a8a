//! From the greeting to a session that is ready: EHLO, STARTTLS, AUTH (RFC 5321 §3.1, RFC 3207,
//! RFC 4954), and every reply outside a transaction.

use std::time::Instant;

use super::{Failure, Protocol, Session, State, TlsNeed};
use crate::extension::Offered;
use crate::reply::{Reply, Severity};
use crate::sasl::Mechanism;

/// What the next reply of an AUTH exchange is to.
#[derive(Clone, Copy, Debug)]
pub(super) enum AuthStep {
    /// `AUTH LOGIN`: the user's name goes next.
    Name,
    /// The user's name: the password goes next.
    Password,
    /// The last response.
    Verdict,
}

impl Session {
    pub(super) fn handle_reply(&mut self, reply: Reply, now: Instant) {
        if matches!(self.state, State::ExpectBye) {
            self.state = State::Closed;
            return;
        }
        if reply.code.get() == 421 {
            return self.fail(Failure::Ended(reply));
        }
        match self.state {
            State::ExpectGreeting if reply.code.get() == 220 => self.say_hello(now),
            State::ExpectGreeting => self.fail(Failure::Greeting(reply)),
            State::ExpectHello => self.handle_hello(reply, now),
            State::ExpectHelo if reply.is_positive() => self.after_hello(now),
            State::ExpectHelo => self.fail(Failure::Hello(reply)),
            State::ExpectStartTls => self.handle_starttls(reply, now),
            State::ExpectAuth(step) => self.handle_auth(step, reply, now),
            State::ExpectReset => self.state = State::Ready,
            State::ExpectNoop if reply.is_positive() => self.state = State::Ready,
            State::ExpectTurn if reply.is_positive() => self.state = State::Turned,
            State::ExpectTurn => {
                self.state = State::Ready;
                self.not_turned = Some(reply);
            }
            _ => self.fail(Failure::Unexpected(reply)),
        }
    }

    pub(super) fn say_hello(&mut self, now: Instant) {
        self.say(if self.config.protocol == Protocol::Lmtp { "LHLO" } else { "EHLO" }, now);
        self.state = State::ExpectHello;
    }

    fn say(&mut self, verb: &str, now: Instant) {
        [verb, " ", &self.config.helo, "\r\n"].iter().for_each(|part| self.output.extend_from_slice(part.as_bytes()));
        self.restart(self.config.timeouts.command, now);
    }

    fn say_line(&mut self, line: &str, now: Instant) {
        self.output.extend_from_slice(line.as_bytes());
        self.output.extend_from_slice(b"\r\n");
        self.restart(self.config.timeouts.command, now);
    }

    fn handle_hello(&mut self, reply: Reply, now: Instant) {
        if reply.is_positive() {
            self.offered = Offered::parse(&reply.text);
            return self.after_hello(now);
        }
        // RFC 5321 §3.2: a server that does not know EHLO is asked again with HELO.
        if reply.severity() == Severity::Permanent && self.config.protocol == Protocol::Smtp {
            self.say("HELO", now);
            self.state = State::ExpectHelo;
        } else {
            self.fail(Failure::Hello(reply));
        }
    }

    fn after_hello(&mut self, now: Instant) {
        match self.config.tls {
            _ if self.secure => self.authenticate(now),
            TlsNeed::Opportunistic | TlsNeed::Required if self.offered.starttls => {
                self.say_line("STARTTLS", now);
                self.state = State::ExpectStartTls;
            }
            TlsNeed::Required => self.fail(Failure::TlsNotOffered),
            TlsNeed::Never | TlsNeed::Opportunistic => self.authenticate(now),
        }
    }

    fn handle_starttls(&mut self, reply: Reply, now: Instant) {
        if reply.code.get() == 220 {
            self.state = State::ExpectTls;
        } else if self.config.tls == TlsNeed::Required {
            self.fail(Failure::TlsRefused(reply));
        } else {
            self.authenticate(now);
        }
    }

    fn authenticate(&mut self, now: Instant) {
        let Some(credentials) = &self.config.auth else {
            self.state = State::Ready;
            return;
        };
        if !self.secure {
            return self.fail(Failure::AuthNeedsTls);
        }
        let (line, step) = match self.offered.mechanism() {
            Some(Mechanism::Plain) => (format!("AUTH PLAIN {}", credentials.plain()), AuthStep::Verdict),
            Some(Mechanism::Login) => ("AUTH LOGIN".to_owned(), AuthStep::Name),
            Some(Mechanism::CramMd5) | None => return self.fail(Failure::AuthNotOffered),
        };
        self.say_line(&line, now);
        self.state = State::ExpectAuth(step);
    }

    fn handle_auth(&mut self, step: AuthStep, reply: Reply, now: Instant) {
        match (step, reply.severity()) {
            (AuthStep::Verdict, Severity::Positive) => self.state = State::Ready,
            (AuthStep::Name, Severity::Intermediate) => self.say_login(0, AuthStep::Password, now),
            (AuthStep::Password, Severity::Intermediate) => self.say_login(1, AuthStep::Verdict, now),
            _ => self.fail(Failure::Auth(reply)),
        }
    }

    fn say_login(&mut self, part: usize, next: AuthStep, now: Instant) {
        let Some(credentials) = &self.config.auth else { return self.fail(Failure::AuthNotOffered) };
        let line = &credentials.login()[part];
        self.say_line(line, now);
        self.state = State::ExpectAuth(next);
    }
}
