//! What a client session is told, and what it tells: settings, actions, answers, failures.

use std::time::{Duration, Instant};

use super::reply_reader::ReplyError;
use crate::envelope::{MailParams, Recipient};
use crate::path::ReversePath;
use crate::reply::{Reply, Severity, Status};
use crate::sasl::Credentials;

/// The settings of a client session.
#[derive(Clone, Debug)]
pub struct Config {
    /// The name said in EHLO: a domain or an address literal.
    pub helo: Box<str>,
    /// What the peer speaks.
    pub protocol: Protocol,
    /// Whether TLS is needed.
    pub tls: TlsNeed,
    /// Whom to authenticate as. Never sent without TLS.
    pub auth: Option<Credentials>,
    /// How long the peer may take.
    pub timeouts: Timeouts,
}

/// What the peer speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// RFC 5321.
    Smtp,
    /// RFC 2033.
    Lmtp,
}

/// Whether a session needs TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsNeed {
    /// STARTTLS is not used.
    Never,
    /// STARTTLS is used where it is offered and works (RFC 7435).
    Opportunistic,
    /// Without TLS there is no session.
    Required,
}

/// How long the peer may take (RFC 5321 §4.5.3.2).
#[derive(Clone, Debug)]
pub struct Timeouts {
    /// For the greeting.
    pub greeting: Duration,
    /// For the reply to a command other than those below.
    pub command: Duration,
    /// For the reply to DATA.
    pub data: Duration,
    /// For taking one piece of content: the shell's limit for each write.
    pub block: Duration,
    /// For the reply to the end of the content.
    pub final_reply: Duration,
    /// For the reply to QUIT, which nobody needs.
    pub quit: Duration,
    /// For the reply to ATRN: at least ten minutes (RFC 2645 §5.2.1).
    pub turn: Duration,
}

impl Config {
    /// Settings for mail to another host, with opportunistic TLS and default time-outs.
    pub fn new(helo: &str) -> Config {
        Config {
            helo: helo.into(),
            protocol: Protocol::Smtp,
            tls: TlsNeed::Opportunistic,
            auth: None,
            timeouts: Timeouts::default(),
        }
    }
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        let minutes = |n: u64| Duration::from_secs(n * 60);
        Timeouts {
            greeting: minutes(5),
            command: minutes(5),
            data: minutes(2),
            block: minutes(3),
            final_reply: minutes(10),
            quit: Duration::from_secs(10),
            turn: minutes(10),
        }
    }
}

/// A message to send.
#[derive(Clone, Debug)]
pub struct Transaction {
    /// Who hears of failures.
    pub reverse_path: ReversePath,
    /// The parameters that travel on; each is said only where it is offered. The by-time is that of
    /// this moment.
    pub params: MailParams,
    /// The recipients; not empty.
    pub recipients: Vec<Recipient>,
    /// Exactly how many octets of content follow.
    pub content_octets: u64,
    /// Whether the header section needs SMTPUTF8. Addresses are looked at here.
    pub needs_smtputf8: bool,
}

/// What the shell does next. Output waits in [`Session::output`](super::Session::output).
#[derive(Debug)]
pub enum Action {
    /// Flush the output, then wait for octets (append them to the input and poll) or for the
    /// deadline (`handle_timeout`) or for the end of the stream (`handle_eof`).
    Read {
        /// When the peer's time is over.
        until: Instant,
    },
    /// Flush the output, start TLS as the client, then call `handle_tls`. When the handshake
    /// fails, the connection is of no more use.
    StartTls,
    /// A transaction may begin (`begin`), or the session may end (`quit`). Flush the output before
    /// the session is left alone.
    Ready,
    /// Give content with `content`, flushing the output between pieces, then `content_end`.
    WantContent,
    /// The transaction is over: one answer per recipient, in their order.
    Done(Vec<Answer>),
    /// ATRN or XVIA was accepted: flush, then hand the connection over. This half has ended; the peer waits
    /// for our greeting, and nothing it says was read yet.
    HandOver,
    /// ATRN or XVIA was refused; the session is ready again.
    NotTurned(Reply),
    /// The session cannot be used any more; close the connection.
    Failed(Failure),
    /// QUIT was answered; close the connection.
    Closed,
}

/// What became of a recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The peer has taken responsibility.
    Accepted(Reply),
    /// Not now.
    Transient(Reply),
    /// Never like this.
    Permanent(Reply),
    /// The content was sent and the connection ended before the reply: it may be accepted or not.
    /// The reply is our own.
    Unknown(Reply),
}

impl Answer {
    /// Sorts a reply by its code. 3yz is no answer, so it counts as transient.
    pub fn from_reply(reply: Reply) -> Answer {
        match reply.severity() {
            Severity::Positive => Answer::Accepted(reply),
            Severity::Permanent => Answer::Permanent(reply),
            Severity::Transient | Severity::Intermediate => Answer::Transient(reply),
        }
    }

    /// Returns the reply.
    pub fn reply(&self) -> &Reply {
        match self {
            Answer::Accepted(reply) | Answer::Transient(reply) | Answer::Permanent(reply) | Answer::Unknown(reply) => {
                reply
            }
        }
    }
}

/// Why a session is over. [`Failure::reply`] says it as a reply, for recipients that were not tried.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The greeting was no 220.
    #[error("the server does not take mail: {0}")]
    Greeting(Reply),
    /// EHLO, and HELO where that was possible, was refused.
    #[error("the server refuses our name: {0}")]
    Hello(Reply),
    /// TLS is required and not offered.
    #[error("TLS is required, and the server does not offer it")]
    TlsNotOffered,
    /// TLS is required and was refused.
    #[error("TLS is required, and the server refuses it: {0}")]
    TlsRefused(Reply),
    /// Octets came between the reply to STARTTLS and TLS: somebody is in between (RFC 3207 §6).
    #[error("octets behind the reply to STARTTLS")]
    TlsInjected,
    /// There are credentials and no TLS to protect them.
    #[error("no password is sent without TLS")]
    AuthNeedsTls,
    /// Octets came behind the reply to ATRN or XVIA: the peer speaks out of turn.
    #[error("octets behind the reply to ATRN or XVIA")]
    TurnedEarly,
    /// No common mechanism.
    #[error("the server offers neither AUTH PLAIN nor LOGIN")]
    AuthNotOffered,
    /// The credentials were refused.
    #[error("the server refuses our credentials: {0}")]
    Auth(Reply),
    /// The server ended the session with 421.
    #[error("the server ended the session: {0}")]
    Ended(Reply),
    /// A reply came that nothing asked for.
    #[error("an unexpected reply: {0}")]
    Unexpected(Reply),
    /// Octets that are no reply.
    #[error(transparent)]
    Protocol(#[from] ReplyError),
    /// The connection ended.
    #[error("the connection was lost")]
    Lost,
    /// The peer's time is over.
    #[error("the server did not answer in time")]
    TimedOut,
    /// The content was faulty, unreadable or not as long as announced; the connection had to be cut.
    #[error("the content cannot be sent: {0}")]
    Content(&'static str),
}

impl Failure {
    /// Returns what to report for recipients: what the peer said, or a transient reply of our own.
    pub fn reply(&self) -> Reply {
        self.said().cloned().unwrap_or_else(|| self.own_reply())
    }

    /// Returns what the peer said, if this is why the session is over.
    pub fn said(&self) -> Option<&Reply> {
        match self {
            Failure::Greeting(reply)
            | Failure::Hello(reply)
            | Failure::TlsRefused(reply)
            | Failure::Auth(reply)
            | Failure::Ended(reply) => Some(reply),
            _ => None,
        }
    }

    /// Returns a reply of our own, always transient, whatever the peer said.
    pub(super) fn own_reply(&self) -> Reply {
        let (code, status) = match self {
            Failure::Greeting(_) | Failure::Hello(_) | Failure::Lost | Failure::TimedOut | Failure::Ended(_) => {
                (451, Status::new(4, 4, 2))
            }
            Failure::TlsRefused(_) | Failure::Auth(_) => (454, Status::new(4, 7, 0)),
            Failure::TlsNotOffered | Failure::TlsInjected | Failure::AuthNeedsTls | Failure::AuthNotOffered => {
                (454, Status::new(4, 7, 0))
            }
            Failure::Unexpected(_) | Failure::Protocol(_) | Failure::TurnedEarly => (451, Status::new(4, 5, 0)),
            Failure::Content(_) => (451, Status::new(4, 3, 0)),
        };
        Reply::of(code, Some(status), "").with_text(&self.to_string())
    }
}
