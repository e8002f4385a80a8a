//! Which command is possible in which state, and what it leads to.

use super::state::{Asking, Opening, State, Transaction};
use super::{AuthOffer, Service, Session, replies};
use crate::command::{COMMAND_OCTETS_MAX, Command, CommandError, Mail};
use crate::domain::Domain;
use crate::envelope::Recipient;
use crate::extension::Offer;
use crate::node::Node;
use crate::reply::Reply;
use crate::sasl::{Exchange, Mechanism, Progress, SaslError};

/// The longest name of a node, in octets.
const NODE_OCTETS_MAX: usize = 64;
/// The version of the frames behind XLINK.
const LINK_VERSION: &str = "1";

impl Session {
    pub(super) fn handle_line(&mut self, line: &[u8]) {
        if matches!(self.state, State::ExpectAuth(_)) {
            return self.handle_auth_response(line);
        }
        let is_auth = line.get(..5).is_some_and(|verb| verb.eq_ignore_ascii_case(b"AUTH "));
        if line.len() + 2 > COMMAND_OCTETS_MAX && !is_auth {
            return self.refuse_line(CommandError::TooLong);
        }
        match Command::parse(line) {
            Ok(command) => self.handle_command(command),
            Err(error) if error.is_fatal() => self.say_last(&error.reply()),
            Err(CommandError::Unknown) if is_http(line) => self.say_last(&replies::NOT_SMTP),
            // Who is no member hears of a parameter that there is not.
            Err(CommandError::Passage) if !self.mesh => self.fault(&CommandError::ParameterUnknown.reply()),
            Err(error) => self.fault(&error.reply()),
        }
    }

    /// A line that could not be read at all. In an AUTH exchange it ends the exchange.
    pub(super) fn refuse_line(&mut self, error: CommandError) {
        let exchange = matches!(self.state, State::ExpectAuth(_));
        if exchange {
            self.state = State::ExpectMail;
        }
        match error {
            CommandError::TooLong if exchange => self.fault(&replies::AUTH_TOO_LONG),
            error => self.fault(&error.reply()),
        }
    }

    fn handle_command(&mut self, command: Command<'_>) {
        match command {
            Command::Mail(mail) => return self.handle_mail(mail),
            Command::Rcpt(recipient) => return self.handle_rcpt(recipient),
            Command::Data => return self.handle_data(),
            Command::Bdat { octets, last } => return self.handle_bdat(octets, last),
            Command::Quit => return self.say_last(&replies::BYE),
            Command::XLink(version) => return self.handle_link(version),
            _ => {}
        }
        self.tally.idle_commands += 1;
        if self.tally.idle_commands > self.config.limits.idle_commands_max {
            return self.say(&replies::TOO_MANY_COMMANDS);
        }
        match command {
            Command::Ehlo(name) => self.handle_hello(name, true, self.config.service != Service::Lmtp),
            Command::Helo(name) => self.handle_hello(name, false, self.config.service != Service::Lmtp),
            Command::Lhlo(name) => self.handle_hello(name, true, self.config.service == Service::Lmtp),
            Command::Rset => self.handle_rset(),
            Command::StartTls => self.handle_starttls(),
            Command::Auth { mechanism, initial } => self.handle_auth(mechanism, initial),
            Command::Atrn(domains) => self.handle_atrn(domains),
            Command::Etrn(node) => self.handle_etrn(node),
            Command::XVia(node) => self.handle_via(node),
            Command::Vrfy => self.say(&replies::CANNOT_VERIFY),
            Command::Help => self.say(&replies::HELP),
            _ => self.say(&replies::OK),
        }
    }

    /// EHLO abandons an open transaction (RFC 5321 §4.1.4).
    fn handle_hello(&mut self, name: &str, esmtp: bool, fits_service: bool) {
        if !fits_service {
            return self.fault(&replies::WRONG_HELLO);
        }
        self.void_draft();
        self.state = State::Asking(Asking::Helo { name: name.into(), esmtp });
    }

    pub(super) fn offer(&self) -> Offer {
        Offer {
            message_octets_max: self.config.limits.message_octets_max,
            starttls: self.can_start_tls(),
            auth: self.config.auth == AuthOffer::OverTls && self.facts.tls.is_some() && self.facts.user.is_none(),
            release: self.release,
            cram: self.cram.is_some(),
            turn: (self.config.turn || self.turn) && self.facts.tls.is_some(),
            start: self.may_start(),
            keep: self.config.keep,
            mesh: self.mesh,
        }
    }

    fn can_start_tls(&self) -> bool {
        self.config.offer_starttls && self.facts.tls.is_none()
    }

    fn may_start(&self) -> bool {
        self.start || self.facts.user.is_some()
    }

    /// Who is not known to be a customer hears no more than that (RFC 2645 §5.2.1).
    fn handle_atrn(&mut self, domains: Vec<Domain>) {
        let is_known = self.turn || self.facts.user.is_some();
        match self.state {
            _ if !self.config.turn && !self.turn => self.fault(&replies::NOT_OFFERED),
            _ if !is_known && self.can_start_tls() => self.fault(&replies::TLS_FIRST),
            _ if !is_known => self.fault(&replies::AUTH_FIRST),
            State::ExpectHello => self.fault(&replies::HELLO_FIRST),
            State::ExpectMail => self.state = State::TurnDue(domains.into()),
            _ => self.fault(&replies::AMID_TRANSACTION),
        }
    }

    fn handle_etrn(&mut self, node: Node) {
        match self.state {
            _ if self.config.require_auth && self.facts.user.is_none() => self.fault(&replies::AUTH_FIRST),
            _ if !self.may_start() => self.fault(&replies::NOT_OFFERED),
            State::ExpectHello => self.fault(&replies::HELLO_FIRST),
            State::ExpectMail => self.state = State::Asking(Asking::Start(Box::new(node))),
            _ => self.fault(&replies::AMID_TRANSACTION),
        }
    }

    /// Who is no member hears of a command that there is not.
    fn handle_via(&mut self, node: &str) {
        let is_node = (1..=NODE_OCTETS_MAX).contains(&node.len())
            && node.bytes().all(|octet| octet.is_ascii_lowercase() || octet.is_ascii_digit());
        match self.state {
            _ if !self.mesh => self.fault(&CommandError::Unknown.reply()),
            _ if !is_node => self.fault(&CommandError::Via.reply()),
            State::ExpectHello => self.fault(&replies::HELLO_FIRST),
            State::ExpectMail => self.state = State::ViaDue(node.into()),
            _ => self.fault(&replies::AMID_TRANSACTION),
        }
    }

    fn handle_rset(&mut self) {
        self.void_draft();
        self.state = self.idle_state();
        self.say(&replies::OK);
    }

    fn handle_mail(&mut self, mail: Box<Mail>) {
        match self.state {
            State::ExpectMail => {}
            State::ExpectHello => return self.fault(&replies::HELLO_FIRST),
            _ => return self.fault(&replies::NESTED_MAIL),
        }
        if self.config.require_auth && self.facts.user.is_none() {
            let reply = if self.can_start_tls() { &replies::TLS_FIRST } else { &replies::AUTH_FIRST };
            return self.fault(reply);
        }
        if mail.size.is_some_and(|octets| octets > self.config.limits.message_octets_max) {
            return self.refuse(&replies::TOO_LARGE);
        }
        if mail.params.passage.is_some() && !self.mesh {
            return self.fault(&CommandError::ParameterUnknown.reply());
        }
        match (mail.params.release, self.release) {
            (Some(_), None) => return self.fault(&CommandError::ParameterUnknown.reply()),
            (Some(release), Some(limit)) if !limit.allows(release) => return self.refuse(&replies::HELD_TOO_LONG),
            _ => {}
        }
        self.state = State::Asking(Asking::Mail(mail));
    }

    fn handle_rcpt(&mut self, recipient: Box<Recipient>) {
        let State::ExpectRcpt(transaction) = &self.state else { return self.fault(self.out_of_order()) };
        if !transaction.params.smtputf8 && !recipient.forward_path.is_ascii() {
            return self.fault(&CommandError::NeedsSmtpUtf8.reply());
        }
        if transaction.recipients.len() >= self.config.limits.recipients_max {
            return self.say(&replies::TOO_MANY_RECIPIENTS);
        }
        self.with_transaction(|transaction| Asking::Rcpt(transaction, recipient));
    }

    fn handle_data(&mut self) {
        match &self.state {
            State::ExpectRcpt(transaction) if !transaction.recipients.is_empty() => {
                self.with_transaction(|transaction| Asking::Content(transaction, Opening::Data));
            }
            _ => self.fault(self.out_of_order()),
        }
    }

    /// The octets of a chunk follow its command without waiting: whatever is wrong, they are read
    /// before the next command is looked for (RFC 3030 §2).
    fn handle_bdat(&mut self, octets: u64, last: bool) {
        match std::mem::replace(&mut self.state, State::Closing) {
            State::ExpectRcpt(transaction) if !transaction.recipients.is_empty() => {
                self.state = State::Asking(Asking::Content(transaction, Opening::Chunk { octets, last }));
            }
            State::ExpectChunk(incoming) => self.state = State::ReceiveChunk { incoming, left: octets, last },
            other => {
                self.state = other;
                let reply = Box::new(self.out_of_order().clone());
                self.state = State::SwallowChunk { left: octets, reply, ends: None };
            }
        }
    }

    fn with_transaction(&mut self, ask: impl FnOnce(Box<Transaction>) -> Asking) {
        let state = std::mem::replace(&mut self.state, State::Closing);
        self.state = match state {
            State::ExpectRcpt(transaction) => State::Asking(ask(transaction)),
            other => other,
        };
    }

    /// Returns what is missing when a command of a transaction comes too early or too late.
    fn out_of_order(&self) -> &'static Reply {
        match &self.state {
            State::ExpectHello => &replies::HELLO_FIRST,
            State::ExpectMail => &replies::MAIL_FIRST,
            State::ExpectRcpt(transaction) if transaction.refused => &replies::NO_RECIPIENTS,
            State::ExpectRcpt(_) => &replies::RCPT_FIRST,
            _ => &replies::AMID_CHUNKS,
        }
    }

    fn handle_starttls(&mut self) {
        match self.state {
            _ if !self.config.offer_starttls => self.fault(&replies::NOT_OFFERED),
            _ if self.facts.tls.is_some() => self.fault(&replies::ALREADY_TLS),
            State::ExpectHello | State::ExpectMail => self.state = State::StartTlsDue,
            _ => self.fault(&replies::AMID_TRANSACTION),
        }
    }

    fn handle_link(&mut self, version: &str) {
        match self.state {
            _ if !self.link => self.fault(&CommandError::Unknown.reply()),
            State::ExpectHello | State::ExpectMail if version == LINK_VERSION => {
                self.say(&replies::LINKED);
                self.state = State::Linked;
            }
            State::ExpectHello | State::ExpectMail => self.fault(&replies::LINK_VERSION),
            _ => self.fault(&replies::AMID_TRANSACTION),
        }
    }

    fn handle_auth(&mut self, mechanism: &str, initial: Option<&str>) {
        let refusal = match self.state {
            _ if self.config.auth == AuthOffer::Never => Some(&replies::NOT_OFFERED),
            _ if self.facts.tls.is_none() => Some(&replies::AUTH_NEEDS_TLS),
            State::ExpectHello => Some(&replies::HELLO_FIRST),
            State::ExpectMail => self.facts.user.is_some().then_some(&replies::ALREADY_AUTHENTICATED),
            _ => Some(&replies::AMID_TRANSACTION),
        };
        if let Some(reply) = refusal {
            return self.fault(reply);
        }
        let Some(exchange) = self.exchange(mechanism) else { return self.fault(&replies::AUTH_MECHANISM) };
        match initial {
            // The server speaks first (RFC 2195 §2).
            Some(_) if exchange.is_cram() => self.fault(&CommandError::ArgumentUnexpected.reply()),
            Some(initial) => self.step_exchange(exchange, initial.as_bytes()),
            None => self.challenge(exchange),
        }
    }

    /// Begins an exchange; each of a session has a challenge of its own.
    fn exchange(&mut self, mechanism: &str) -> Option<Exchange> {
        let mechanism = Mechanism::named(mechanism)?;
        if mechanism != Mechanism::CramMd5 {
            return Some(Exchange::new(mechanism));
        }
        let seed = self.cram.as_ref()?;
        self.tally.challenges += 1;
        Some(Exchange::cram(&format!("<{}.{seed}@{}>", self.tally.challenges, self.config.hostname)))
    }

    fn handle_auth_response(&mut self, line: &[u8]) {
        match std::mem::replace(&mut self.state, State::ExpectMail) {
            State::ExpectAuth(exchange) => self.step_exchange(*exchange, line),
            other => self.state = other,
        }
    }

    fn step_exchange(&mut self, mut exchange: Exchange, response: &[u8]) {
        match exchange.respond(response) {
            Ok(Progress::Challenge) => self.challenge(exchange),
            Ok(Progress::Cram(response)) => self.state = State::Asking(Asking::Cram(Box::new(response))),
            Ok(Progress::Credentials(credentials)) => self.state = State::Asking(Asking::Auth(Box::new(credentials))),
            Err(SaslError::Cancelled) => self.fault(&replies::AUTH_CANCELLED),
            Err(SaslError::Malformed) => self.fault(&replies::AUTH_MALFORMED),
            Err(SaslError::ForeignIdentity) => self.fail_auth(&replies::AUTH_FOREIGN),
        }
    }

    fn challenge(&mut self, exchange: Exchange) {
        self.output.extend_from_slice(b"334 ");
        self.output.extend_from_slice(exchange.challenge().as_bytes());
        self.output.extend_from_slice(b"\r\n");
        self.state = State::ExpectAuth(Box::new(exchange));
    }

    /// Says that nobody was authenticated; guessing has an end.
    pub(super) fn fail_auth(&mut self, reply: &Reply) {
        self.tally.auth_failures += 1;
        let too_many = self.tally.auth_failures > self.config.limits.auth_failures_max;
        self.say(if too_many { &replies::TOO_MANY_ERRORS } else { reply });
    }
}

/// A browser, or a request forged by one: nothing behind this line may be executed.
fn is_http(line: &[u8]) -> bool {
    memchr::memmem::find(line, b" HTTP/").is_some()
}
