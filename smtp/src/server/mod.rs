//! The server's half of an SMTP session (RFC 5321, RFC 6409; LMTP: RFC 2033; ATRN: RFC 2645; ETRN:
//! RFC 1985) as a machine without IO.
//!
//! The shell polls and performs: it reads octets into an [`Input`], answers questions, stores
//! content, writes the output. The machine decides what every octet means. It never reads a clock,
//! never buffers content, and what it says does not depend on how the octets were split.
//!
//! A session ends on its own at: content with a bare CR, LF or NUL; octets behind STARTTLS, ATRN or XVIA; BDAT
//! without a readable size; too many errors, refusals or idle commands; a time-out; HTTP or TLS
//! where SMTP belongs.

mod action;
mod commands;
mod config;
mod content;
mod replies;
mod state;
mod verdict;

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

pub use action::{Action, Facts, Question, Verdict};
pub use config::{AuthOffer, Config, Limits, Service, Timeouts};
pub use replies::ALL as REPLIES;
use state::{Asking, State};

use crate::command::{AUTH_OCTETS_MAX, COMMAND_OCTETS_MAX, CommandError};
use crate::envelope::Envelope;
use crate::line::{Input, Line};
use crate::release::ReleaseLimit;
use crate::reply::Reply;
pub use crate::trace::TlsFacts;

/// Output beyond this many octets is flushed before more commands are read, so that pipelined
/// commands cannot fill memory with replies.
pub const OUTPUT_OCTETS_MAX: usize = 16_384;

/// The server's half of one session.
#[derive(Debug)]
pub struct Session {
    config: Arc<Config>,
    facts: Facts,
    state: State,
    output: Vec<u8>,
    /// When the peer's time is over; `None` until the next wait begins.
    deadline: Option<Instant>,
    /// What the last `Read` said.
    until: Instant,
    tally: Tally,
    draft: Draft,
    draining: bool,
    release: Option<ReleaseLimit>,
    link: bool,
    /// Whether ETRN is offered without a login.
    start: bool,
    /// What challenges of CRAM-MD5 are made of, where it is offered.
    cram: Option<Box<str>>,
    mesh: bool,
    /// Whether ATRN is taken without a login.
    turn: bool,
}

/// What a session has used of its limits.
#[derive(Debug, Default)]
struct Tally {
    errors: u32,
    refusals: u32,
    idle_commands: u32,
    auth_failures: u32,
    challenges: u32,
}

/// The shell's draft, as the machine knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Draft {
    None,
    Open,
    /// To be discarded before anything else happens.
    Void,
}

/// An [`Action`] without its borrows.
enum Step {
    Ask,
    Body(Range<usize>),
    Commit(Box<Envelope>),
    Discard,
    Flush,
    StartTls,
    Link,
    HandOver,
    Read(Instant),
    Close,
}

impl Session {
    /// Begins a session; `tls` is given when the connection began with TLS.
    pub fn new(config: Arc<Config>, tls: Option<TlsFacts>, now: Instant) -> Session {
        Session {
            deadline: None,
            until: now + config.timeouts.command,
            config,
            facts: Facts { tls, ..Facts::default() },
            state: State::Asking(Asking::Connect),
            output: Vec::new(),
            tally: Tally::default(),
            draft: Draft::None,
            draining: false,
            release: None,
            link: false,
            start: false,
            cram: None,
            mesh: false,
            turn: false,
        }
    }

    /// Offers FUTURERELEASE (RFC 4865) up to this limit. It names a time, so it is no setting that
    /// sessions share.
    pub fn offer_release(&mut self, limit: ReleaseLimit) {
        self.release = Some(limit);
    }

    /// Takes XLINK from here on: for sessions whose client has proved by its key who it is. Nothing in
    /// the reply to EHLO tells of it.
    pub fn offer_link(&mut self) {
        self.link = true;
    }

    /// Offers ETRN (RFC 1985) to a client that has not logged in: the shell knows its address.
    pub fn offer_start(&mut self) {
        self.start = true;
    }

    /// Offers CRAM-MD5 (RFC 2195) where AUTH is offered. `seed` makes the challenges: nobody must be
    /// able to foresee it, and no two sessions have the same. Printable ASCII without `<` and `>`.
    pub fn offer_cram(&mut self, seed: &str) {
        self.cram = Some(seed.into());
    }

    /// Offers XMESH, and takes XVIA: the client has proved in TLS that it is a member of this host's mesh.
    pub fn offer_mesh(&mut self) {
        self.mesh = true;
    }

    /// Offers ATRN (RFC 2645) to a client that has not logged in: it has proved in TLS who it is.
    pub fn offer_turn(&mut self) {
        self.turn = true;
    }

    /// Returns what is known of the session.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Returns the replies that wait. The shell writes them and empties the vector before it
    /// performs `Flush`, `Read`, `StartTls` and `Close`; taking the vector gives its memory back.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// Returns what to do next. Time is only compared with what was handed in before.
    pub fn poll<'a>(&'a mut self, input: &'a mut Input, now: Instant) -> Action<'a> {
        match self.advance(input, now) {
            Step::Ask => match &self.state {
                State::Asking(asking) => Action::Ask(asking.question()),
                _ => unreachable!("a question is asked in its state"),
            },
            Step::Body(range) => Action::Body(input.slice(range)),
            Step::Commit(envelope) => Action::Commit(envelope),
            Step::Discard => Action::Discard,
            Step::Flush => Action::Flush,
            Step::StartTls => Action::StartTls,
            Step::Link => Action::Link,
            Step::HandOver => Action::HandOver,
            Step::Read(until) => Action::Read { until },
            Step::Close => Action::Close,
        }
    }

    fn advance(&mut self, input: &mut Input, now: Instant) -> Step {
        loop {
            if self.draft == Draft::Void {
                self.draft = Draft::None;
                return Step::Discard;
            }
            if self.output.len() >= OUTPUT_OCTETS_MAX {
                return Step::Flush;
            }
            let step = match &self.state {
                State::Asking(_) => Some(Step::Ask),
                State::Storing { .. } => Some(self.wait(now)),
                State::StartTlsDue => self.accept_tls(input),
                State::TurnDue(_) | State::ViaDue(_) => self.accept_turn(input),
                State::Turned => Some(Step::HandOver),
                State::ExpectTls => Some(Step::StartTls),
                State::Linked => Some(Step::Link),
                State::Closing => Some(Step::Close),
                State::ReceiveData(_) => self.receive_data(input, now),
                State::ReceiveChunk { .. } => self.receive_chunk(input, now),
                State::SwallowChunk { .. } => self.swallow_chunk(input, now),
                _ => self.read_line(input, now),
            };
            if let Some(step) = step {
                return step;
            }
        }
    }

    fn read_line(&mut self, input: &mut Input, now: Instant) -> Option<Step> {
        let idle = matches!(self.state, State::ExpectHello | State::ExpectMail);
        if self.draining && idle {
            self.say(&replies::SHUTTING_DOWN);
            return None;
        }
        // A TLS handshake record: the client wants a port with implicit TLS.
        if matches!(self.state, State::ExpectHello) && input.line_start() == Some(0x16) {
            self.say_last(&replies::NOT_SMTP);
            return None;
        }
        let auth = self.config.auth != AuthOffer::Never;
        match input.take_line(if auth { AUTH_OCTETS_MAX } else { COMMAND_OCTETS_MAX }) {
            Line::Complete(line) => self.handle_line(line),
            Line::BareLineFeed => self.refuse_line(CommandError::LineEnd),
            Line::TooLong => self.refuse_line(CommandError::TooLong),
            Line::Endless => self.say_last(&replies::ENDLESS_LINE),
            Line::Incomplete => return Some(self.wait(now)),
        }
        self.deadline = None;
        None
    }

    /// STARTTLS holds only when nothing stands behind it: what came in plaintext must not be taken
    /// for what came under TLS (RFC 3207 §4.2; command injection).
    fn accept_tls(&mut self, input: &Input) -> Option<Step> {
        if input.is_empty() {
            self.say(&replies::STARTTLS_READY);
            self.state = State::ExpectTls;
        } else {
            self.say_last(&replies::INJECTED);
        }
        None
    }

    /// ATRN and XVIA are the last of a group of commands: whoever says more cannot know yet who speaks next.
    fn accept_turn(&mut self, input: &Input) -> Option<Step> {
        match std::mem::replace(&mut self.state, State::Closing) {
            State::TurnDue(domains) if input.is_empty() => self.state = State::Asking(Asking::Turn(domains)),
            State::ViaDue(node) if input.is_empty() => self.state = State::Asking(Asking::Via(node)),
            State::ViaDue(_) => self.say_last(&replies::THROUGH_EARLY),
            _ => self.say_last(&replies::TURNED_EARLY),
        }
        None
    }

    /// Waits for octets; the peer's time began when the machine first waited for this.
    fn wait(&mut self, now: Instant) -> Step {
        let timeouts = &self.config.timeouts;
        let (timeout, ends) = match &mut self.state {
            State::ReceiveData(incoming) | State::ReceiveChunk { incoming, .. } => {
                (timeouts.content, Some(&mut incoming.ends))
            }
            State::SwallowChunk { ends, .. } => (timeouts.content, Some(ends)),
            _ => (timeouts.command, None),
        };
        let deadline = *self.deadline.get_or_insert(now + timeout);
        self.until = ends.map_or(deadline, |ends| deadline.min(*ends.get_or_insert(now + timeouts.message)));
        Step::Read(self.until)
    }

    /// The TLS handshake succeeded: all that was said before it is forgotten (RFC 3207 §4.2).
    pub fn handle_tls(&mut self, tls: TlsFacts) {
        if matches!(self.state, State::ExpectTls) {
            self.facts = Facts { tls: Some(tls), ..Facts::default() };
            self.state = State::ExpectHello;
            self.deadline = None;
        }
    }

    /// The message of the last `Commit` is safe, or not: `reply` says which.
    pub fn handle_stored(&mut self, reply: Reply) {
        let State::Storing { recipients } = self.state else { return };
        self.state = State::ExpectMail;
        self.deadline = None;
        self.tally.idle_commands = 0;
        self.say_for_content(recipients, |session| session.say(&reply));
    }

    /// Answers content: once, or in LMTP once for each recipient (RFC 2033 §4.2).
    fn say_for_content(&mut self, recipients: usize, say: impl Fn(&mut Session)) {
        let times = if self.config.service == Service::Lmtp { recipients } else { 1 };
        for _ in 0..times {
            if !matches!(self.state, State::Closing) {
                say(self);
            }
        }
    }

    /// The deadline of the last `Read` has passed. A call before it changes nothing.
    pub fn handle_timeout(&mut self, now: Instant) {
        match self.state {
            _ if now < self.until => {}
            // It is not the peer who is late.
            State::Asking(_) | State::Storing { .. } | State::Linked | State::Turned | State::Closing => {}
            // Neither side speaks plaintext any more.
            State::ExpectTls => self.close(),
            _ => self.say_last(&replies::TIMED_OUT),
        }
    }

    /// The host is shutting down: the session ends with 421 as soon as no transaction is open.
    pub fn handle_drain(&mut self) {
        self.draining = true;
    }

    /// The peer sends no more.
    pub fn handle_eof(&mut self) {
        self.close();
    }

    /// Appends a reply. 421 is always the last one (RFC 5321 §3.8).
    fn say(&mut self, reply: &Reply) {
        reply.write_to(&mut self.output);
        if reply.code.get() == 421 {
            self.close();
        }
    }

    fn say_last(&mut self, reply: &Reply) {
        reply.write_to(&mut self.output);
        self.close();
    }

    fn close(&mut self) {
        self.void_draft();
        self.state = State::Closing;
    }

    /// Says what the client did wrong.
    fn fault(&mut self, reply: &Reply) {
        self.tally.errors += 1;
        let too_many = self.tally.errors > self.config.limits.errors_max;
        self.say(if too_many { &replies::TOO_MANY_ERRORS } else { reply });
    }

    /// Says that something well-formed is not wanted.
    fn refuse(&mut self, reply: &Reply) {
        self.tally.refusals += 1;
        let too_many = self.tally.refusals > self.config.limits.refusals_max;
        self.say(if too_many { &replies::TOO_MANY_REFUSALS } else { reply });
    }

    fn void_draft(&mut self) {
        if self.draft == Draft::Open {
            self.draft = Draft::Void;
        }
    }

    /// The state between transactions.
    fn idle_state(&self) -> State {
        if self.facts.helo.is_some() { State::ExpectMail } else { State::ExpectHello }
    }
}
