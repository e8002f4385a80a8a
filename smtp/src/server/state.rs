//! The states of a server session, each named by what it expects and holding only what is true in it.

use std::time::Instant;

use crate::command::Mail;
use crate::data::{ContentDecoder, LineCheck};
use crate::domain::Domain;
use crate::envelope::{Envelope, MailParams, Recipient};
use crate::node::Node;
use crate::path::ReversePath;
use crate::reply::Reply;
use crate::sasl::{CramResponse, Credentials, Exchange};

/// Where a session stands. Between octets it owns at most one box.
#[derive(Debug)]
pub(super) enum State {
    /// The shell owes a verdict.
    Asking(Asking),
    /// No EHLO yet, or none since TLS began.
    ExpectHello,
    /// No transaction is open.
    ExpectMail,
    /// MAIL was accepted.
    ExpectRcpt(Box<Transaction>),
    /// The next line answers an AUTH challenge.
    ExpectAuth(Box<Exchange>),
    /// Content up to CR LF `.` CR LF.
    ReceiveData(Box<Incoming>),
    /// `left` octets of a chunk.
    ReceiveChunk { incoming: Box<Incoming>, left: u64, last: bool },
    /// A chunk was received and was not the last.
    ExpectChunk(Box<Incoming>),
    /// `left` octets of a chunk that nobody wants, and what to say behind them.
    SwallowChunk { left: u64, reply: Box<Reply>, ends: Option<Instant> },
    /// The shell owes the fate of a message with so many recipients.
    Storing { recipients: usize },
    /// STARTTLS was read; it holds only when nothing stands behind it.
    StartTlsDue,
    /// ATRN was read; it holds only when nothing stands behind it.
    TurnDue(Box<[Domain]>),
    /// XVIA was read; it holds only when nothing stands behind it.
    ViaDue(Box<str>),
    /// The shell owes the handshake.
    ExpectTls,
    /// The connection is the shell's.
    Linked,
    /// This half has ended; what follows is for others.
    Turned,
    /// Nothing more is read.
    Closing,
}

/// A question that waits for its verdict, with all that is needed to go on.
#[derive(Debug)]
pub(super) enum Asking {
    Connect,
    Helo { name: Box<str>, esmtp: bool },
    Mail(Box<Mail>),
    Rcpt(Box<Transaction>, Box<Recipient>),
    Content(Box<Transaction>, Opening),
    Auth(Box<Credentials>),
    Cram(Box<CramResponse>),
    Turn(Box<[Domain]>),
    Start(Box<Node>),
    Via(Box<str>),
}

/// How content begins.
#[derive(Clone, Copy, Debug)]
pub(super) enum Opening {
    Data,
    Chunk { octets: u64, last: bool },
}

/// A transaction that may still get recipients.
#[derive(Debug)]
pub(super) struct Transaction {
    pub(super) reverse_path: ReversePath,
    pub(super) params: MailParams,
    pub(super) recipients: Vec<Recipient>,
    /// Whether a recipient was refused: it decides what DATA without recipients hears.
    pub(super) refused: bool,
}

/// A message whose content is on its way.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) transaction: Transaction,
    pub(super) decoder: ContentDecoder,
    /// Line ends across the chunks of BDAT.
    pub(super) lines: LineCheck,
    /// Content so far.
    pub(super) octets: u64,
    /// The limit was passed: the draft is gone, the rest is swallowed.
    pub(super) oversize: bool,
    /// When all of the content must be there.
    pub(super) ends: Option<Instant>,
}

impl Transaction {
    pub(super) fn new(mail: Mail) -> Transaction {
        let Mail { reverse_path, params, size: _ } = mail;
        Transaction { reverse_path, params, recipients: Vec::new(), refused: false }
    }
}

impl Incoming {
    pub(super) fn new(transaction: Transaction) -> Incoming {
        Incoming {
            transaction,
            decoder: ContentDecoder::new(),
            lines: LineCheck::default(),
            octets: 0,
            oversize: false,
            ends: None,
        }
    }

    pub(super) fn into_envelope(self) -> Envelope {
        let Transaction { reverse_path, params, recipients, .. } = self.transaction;
        Envelope::new(reverse_path, params, recipients).expect("content is received only for accepted recipients")
    }
}
