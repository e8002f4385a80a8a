//! What the server session and its shell say to each other.

use std::time::Instant;

use crate::domain::Domain;
use crate::envelope::{Envelope, MailParams, Recipient};
use crate::node::Node;
use crate::path::ReversePath;
use crate::reply::Reply;
use crate::sasl::{CramResponse, Credentials};
use crate::trace::TlsFacts;

/// What the shell does next. Output waits in [`Session::output`](super::Session::output).
#[derive(Debug)]
pub enum Action<'a> {
    /// Decide this, then call `handle_verdict`. The machine stands still until then.
    Ask(Question<'a>),
    /// Append this piece of content to the open draft. Never empty; dots are unstuffed.
    Body(&'a [u8]),
    /// The content is complete: make it durable, then call `handle_stored`.
    Commit(Box<Envelope>),
    /// The open draft is void; drop it.
    Discard,
    /// Flush the output, then poll again.
    Flush,
    /// Flush the output, start TLS as the server, then call `handle_tls`. When the handshake
    /// fails, close the connection.
    StartTls,
    /// Flush the output and take the connection: what the input holds and what follows are frames.
    /// The session is over. Only ever after [`Session::offer_link`](super::Session::offer_link).
    Link,
    /// Flush the output, then wait for octets (append them to the input and poll) or for the
    /// deadline (`handle_timeout`) or for the end of the stream (`handle_eof`).
    Read {
        /// When the peer's time is over.
        until: Instant,
    },
    /// Flush the output, then hand the connection over: this session has ended. Behind ATRN the peer is an
    /// SMTP server that greets next (RFC 2645 §4); behind XVIA it speaks with another member. Nothing it says was
    /// read yet.
    HandOver,
    /// Flush the output and close the connection.
    Close,
}

/// What the machine cannot decide itself.
#[derive(Debug)]
pub enum Question<'a> {
    /// Is the connection welcome? Asked once, before the greeting.
    Connect,
    /// Is this name acceptable? Printable and without spaces, otherwise unchecked.
    Helo(&'a str),
    /// May this sender begin a transaction?
    Mail {
        /// Who hears of failures.
        reverse_path: &'a ReversePath,
        /// The parameters that travel on.
        params: &'a MailParams,
        /// The size the client announces, in octets; within the limit.
        size: Option<u64>,
    },
    /// Is mail for this recipient accepted?
    Rcpt {
        /// Who hears of failures.
        reverse_path: &'a ReversePath,
        /// The recipient.
        recipient: &'a Recipient,
        /// How many recipients were accepted before.
        accepted: usize,
    },
    /// Can content be stored? Accepting means that a draft is open from here on, until `Commit`
    /// or `Discard`.
    Content,
    /// Are these credentials right? The answer is `Authenticated` or a refusal.
    Auth(&'a Credentials),
    /// Is this answer to our challenge right? As with `Auth`.
    Cram(&'a CramResponse),
    /// May the authenticated user have the connection reversed and get the mail for these domains?
    /// None named means all of its own (RFC 2645 §5.2.1).
    Turn(&'a [Domain]),
    /// Start what waits for this node (RFC 1985). The answer is `Answer` or a refusal.
    Start(&'a Node),
    /// May the client, a member of the mesh, have its octets passed to this member and back? Small letters and
    /// digits, 64 at most. Accepting means that there is a connection with that one.
    Via(&'a str),
}

/// The shell's answer to a [`Question`].
#[derive(Clone, Debug)]
pub enum Verdict {
    /// Go on.
    Accept,
    /// The sender may, but not with the priority it asks for: the message has 0 (RFC 6710 §4.1).
    /// An answer to `Mail`, to any other question the same as `Accept`.
    AcceptUnprivileged,
    /// The credentials are those of this user.
    Authenticated(Box<str>),
    /// Done; say this. An answer to `Start`, to any other question the same as `Accept`.
    Answer(Reply),
    /// Say this to the client; the session goes on.
    Refuse(Reply),
    /// Say this to the client and close.
    Close(Reply),
}

/// What is known of a session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// What the client called itself.
    pub helo: Option<Box<str>>,
    /// The session's TLS.
    pub tls: Option<TlsFacts>,
    /// The authenticated user.
    pub user: Option<Box<str>>,
    /// Whether the client said EHLO or LHLO.
    pub esmtp: bool,
}
