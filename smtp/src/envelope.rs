//! What travels beside the content: reverse-path, recipients and the parameters that must survive
//! every hop (RFC 5321 §2.3.1; DSN: RFC 3461; SMTPUTF8: RFC 6531; MT-PRIORITY: RFC 6710;
//! DELIVERBY: RFC 2852; FUTURERELEASE: RFC 4865).
//!
//! If you hold an [`Envelope`], it has at least one recipient and all its parts were checked.

use std::fmt;

use crate::deliver_by::DeliverBy;
use crate::passage::PassageToken;
use crate::path::{ForwardPath, ReversePath};
use crate::priority::Priority;
use crate::release::Release;

/// The longest ENVID or ORCPT value kept, in octets after xtext decoding (RFC 3461 §4.4, §4.2).
pub const DSN_VALUE_OCTETS_MAX: usize = 500;

/// A complete envelope: never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Who hears of failures.
    pub reverse_path: ReversePath,
    /// Parameters of MAIL.
    pub params: MailParams,
    recipients: Vec<Recipient>,
}

/// Parameters of MAIL that stay with the message. SIZE is not one: each hop states its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MailParams {
    /// BODY=8BITMIME (RFC 6152): content has octets above 127.
    pub eight_bit: bool,
    /// SMTPUTF8 (RFC 6531): addresses or header fields need it.
    pub smtputf8: bool,
    /// RET (RFC 3461 §4.3): how much of the message a failure notification returns.
    pub ret: Option<Ret>,
    /// ENVID (RFC 3461 §4.4), decoded: printable ASCII only.
    pub envid: Option<Box<str>>,
    /// MT-PRIORITY (RFC 6710); absent means the same as 0 and is not passed on.
    pub priority: Option<Priority>,
    /// BY (RFC 2852): by when the sender wants it delivered.
    pub deliver_by: Option<DeliverBy>,
    /// HOLDFOR or HOLDUNTIL (RFC 4865): when it sets out from here. Not passed on.
    pub release: Option<Release>,
    /// XMESH: which way it came through the mesh; said between its members only.
    pub passage: Option<PassageToken>,
}

/// How much a delivery status notification returns (RFC 3461 §4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ret {
    /// The whole message.
    Full,
    /// The header section only.
    Headers,
}

/// One recipient of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipient {
    /// Where the copy goes.
    pub forward_path: ForwardPath,
    /// NOTIFY (RFC 3461 §4.1), or `None` when the sender did not say.
    pub notify: Option<Notify>,
    /// ORCPT (RFC 3461 §4.2): the address as the original sender wrote it.
    pub original: Option<OriginalRecipient>,
}

/// When the sender wants to be notified (RFC 3461 §4.1). All three false is `NOTIFY=NEVER`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Notify {
    /// On delivery to the mailbox.
    pub success: bool,
    /// On permanent failure.
    pub failure: bool,
    /// When delivery takes unusually long.
    pub delay: bool,
}

/// `addr-type ";" address` of ORCPT, decoded from xtext.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginalRecipient {
    /// Address type, lower case; `rfc822` or `utf-8` for mail.
    pub addr_type: Box<str>,
    /// The address: no control characters.
    pub address: Box<str>,
}

impl Envelope {
    /// Builds an envelope; `None` when there is no recipient.
    pub fn new(reverse_path: ReversePath, params: MailParams, recipients: Vec<Recipient>) -> Option<Envelope> {
        (!recipients.is_empty()).then_some(Envelope { reverse_path, params, recipients })
    }

    /// Returns the recipients, in the order of their RCPT commands; never empty.
    pub fn recipients(&self) -> &[Recipient] {
        &self.recipients
    }
}

impl Notify {
    /// `NOTIFY=NEVER`.
    pub const NEVER: Notify = Notify { success: false, failure: false, delay: false };
    /// What holds when the sender did not say: failures, and delays as RFC 3461 §4.1 allows.
    pub const DEFAULT: Notify = Notify { success: false, failure: true, delay: true };
}

impl Recipient {
    /// A recipient without DSN parameters.
    pub fn new(forward_path: ForwardPath) -> Recipient {
        Recipient { forward_path, notify: None, original: None }
    }

    /// Returns what the sender wants to hear, the default included.
    pub fn wants(&self) -> Notify {
        self.notify.unwrap_or(Notify::DEFAULT)
    }
}

impl fmt::Display for Notify {
    /// Writes the value of NOTIFY as on the wire.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Notify::NEVER {
            return f.write_str("NEVER");
        }
        let names = [(self.success, "SUCCESS"), (self.failure, "FAILURE"), (self.delay, "DELAY")];
        let mut comma = "";
        for (_, name) in names.into_iter().filter(|(on, _)| *on) {
            write!(f, "{comma}{name}")?;
            comma = ",";
        }
        Ok(())
    }
}
