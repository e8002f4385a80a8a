//! A shell for the server session in memory: performs every action, keeps what was stored, and
//! checks on the way that the machine keeps its side of the contract about drafts.

#![allow(dead_code, reason = "each test that includes this file needs another part of it")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use postroad_smtp::server::{Action, Config, Question, Session, TlsFacts, Verdict};
use postroad_smtp::{Envelope, Input, ReleaseLimit, Reply};

/// Decides what the machine cannot.
pub trait Policy {
    fn decide(&mut self, question: &Question<'_>) -> Verdict;
    fn stored(&mut self) -> Reply;
}

/// A message that was committed.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    pub envelope: Envelope,
    pub content: Vec<u8>,
}

impl Message {
    /// Shows the paths as on the wire, reverse-path first.
    pub fn envelope_text(&self) -> String {
        let recipients = self.envelope.recipients().iter().map(|r| format!(" {}", r.forward_path));
        format!("{}{}", self.envelope.reverse_path, recipients.collect::<String>())
    }
}

/// A session and all that surrounds it.
pub struct Shell {
    session: Session,
    policy: Box<dyn Policy>,
    input: Input,
    now: Instant,
    until: Option<Instant>,
    draft: Option<Vec<u8>>,
    stored: Vec<Message>,
    transcript: Vec<u8>,
    waits_for_tls: bool,
    linked: bool,
    closed: bool,
    turned: bool,
    flushed_octets_max: usize,
}

impl Shell {
    pub fn new(config: Arc<Config>, tls: Option<TlsFacts>, policy: Box<dyn Policy>) -> Shell {
        let now = Instant::now();
        let mut shell = Shell {
            session: Session::new(config, tls, now),
            policy,
            input: Input::new(),
            now,
            until: None,
            draft: None,
            stored: Vec::new(),
            transcript: Vec::new(),
            waits_for_tls: false,
            linked: false,
            closed: false,
            turned: false,
            flushed_octets_max: 0,
        };
        shell.run();
        shell
    }

    pub fn offer_start(&mut self) {
        self.session.offer_start();
    }

    pub fn offer_cram(&mut self, seed: &str) {
        self.session.offer_cram(seed);
    }

    /// Whether the connection was handed over.
    pub fn is_turned(&self) -> bool {
        self.turned
    }

    pub fn offer_release(&mut self, limit: ReleaseLimit) {
        self.session.offer_release(limit);
    }

    pub fn offer_link(&mut self) {
        self.session.offer_link();
    }

    /// What stands behind XLINK, once the connection was handed over.
    pub fn frames(&self) -> Option<&[u8]> {
        self.linked.then(|| self.input.unread())
    }

    pub fn offer_mesh(&mut self) {
        self.session.offer_mesh();
    }

    /// As [`Session::offer_turn`].
    pub fn offer_turn(&mut self) {
        self.session.offer_turn();
    }

    /// Octets arrive. Behind the end of the session nobody reads them.
    pub fn receive(&mut self, octets: &[u8]) {
        if !self.closed && !self.turned {
            self.input.extend(octets);
            self.run();
        }
    }

    pub fn handshake(&mut self, tls: TlsFacts) {
        assert!(self.waits_for_tls, "the session asks for TLS");
        self.waits_for_tls = false;
        self.session.handle_tls(tls);
        self.run();
    }

    pub fn pass(&mut self, time: Duration) {
        self.now += time;
        if self.until.is_some_and(|until| until <= self.now) && !self.closed {
            self.session.handle_timeout(self.now);
            self.run();
        }
    }

    pub fn drain(&mut self) {
        self.session.handle_drain();
        self.run();
    }

    pub fn eof(&mut self) {
        self.session.handle_eof();
        self.run();
    }

    pub fn is_closed(&self) -> bool {
        self.closed
    }

    pub fn stored(&self) -> &[Message] {
        &self.stored
    }

    /// Everything the server has said.
    pub fn transcript(&self) -> &[u8] {
        &self.transcript
    }

    /// The most output that ever waited.
    pub fn flushed_octets_max(&self) -> usize {
        self.flushed_octets_max
    }

    /// Takes what the server has said since the last call.
    pub fn take_transcript(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.transcript)
    }

    pub fn waits_for_tls(&self) -> bool {
        self.waits_for_tls
    }

    fn run(&mut self) {
        while !self.closed && !self.turned && !self.waits_for_tls && !self.linked && self.step() {}
    }

    /// Performs one action; returns whether there may be another.
    fn step(&mut self) -> bool {
        match self.session.poll(&mut self.input, self.now) {
            Action::Ask(question) => {
                let opens_draft = matches!(question, Question::Content);
                let verdict = self.policy.decide(&question);
                if opens_draft && matches!(verdict, Verdict::Accept) {
                    assert!(self.draft.replace(Vec::new()).is_none(), "one draft at a time");
                }
                self.session.handle_verdict(verdict);
            }
            Action::Body(piece) => {
                assert!(!piece.is_empty(), "a piece of content is not empty");
                self.draft.as_mut().expect("content has a draft").extend_from_slice(piece);
            }
            Action::Commit(envelope) => {
                let content = self.draft.take().expect("what is committed has a draft");
                let reply = self.policy.stored();
                if reply.is_positive() {
                    self.stored.push(Message { envelope: *envelope, content });
                }
                self.session.handle_stored(reply);
            }
            Action::Discard => assert!(self.draft.take().is_some(), "what is discarded is open"),
            Action::Flush => self.flush(),
            Action::Read { until } => {
                self.flush();
                self.until = Some(until);
                return false;
            }
            Action::StartTls => {
                self.flush();
                assert!(self.input.is_empty(), "nothing stands before TLS");
                self.waits_for_tls = true;
                return false;
            }
            Action::Link => {
                self.flush();
                self.linked = true;
                return false;
            }
            Action::HandOver => {
                self.flush();
                assert!(self.input.is_empty() && self.draft.is_none(), "nothing is left behind");
                self.turned = true;
                return false;
            }
            Action::Close => {
                self.flush();
                assert!(self.draft.is_none(), "no draft is left behind");
                self.closed = true;
                return false;
            }
        }
        true
    }

    fn flush(&mut self) {
        let output = self.session.output();
        self.flushed_octets_max = self.flushed_octets_max.max(output.len());
        self.transcript.append(output);
    }
}
