//! Reverse-path and forward-path (RFC 5321 §4.1.1.2, §4.1.1.3): who hears of failures, and where
//! mail goes.

use std::fmt;
use std::str::FromStr;

use crate::domain::Domain;
use crate::mailbox::{Mailbox, MailboxError};

/// The argument of MAIL: a mailbox, or the null reverse-path of notifications, which has nobody
/// to notify.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ReversePath {
    /// `<>`: a notification, about which no further one is ever sent (RFC 5321 §4.5.5).
    Null,
    /// Where a delivery status notification goes.
    Mailbox(Mailbox),
}

/// The argument of RCPT: a mailbox, or the bare `<Postmaster>` of RFC 5321 §4.1.1.3.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ForwardPath {
    /// `<Postmaster>` without a domain: the postmaster of this host.
    Postmaster,
    /// A recipient.
    Mailbox(Mailbox),
}

impl ReversePath {
    /// Returns the mailbox, or `None` for the null reverse-path.
    pub fn mailbox(&self) -> Option<&Mailbox> {
        match self {
            ReversePath::Null => None,
            ReversePath::Mailbox(mailbox) => Some(mailbox),
        }
    }

    /// Returns whether the path fits a session without SMTPUTF8.
    pub fn is_ascii(&self) -> bool {
        self.mailbox().is_none_or(Mailbox::is_ascii)
    }
}

impl ForwardPath {
    /// Returns the mailbox, or `None` for the bare postmaster.
    pub fn mailbox(&self) -> Option<&Mailbox> {
        match self {
            ForwardPath::Postmaster => None,
            ForwardPath::Mailbox(mailbox) => Some(mailbox),
        }
    }

    /// Returns the domain, or `None` for the bare postmaster and address literals.
    pub fn domain(&self) -> Option<&Domain> {
        self.mailbox().and_then(Mailbox::domain)
    }

    /// Returns whether the path fits a session without SMTPUTF8.
    pub fn is_ascii(&self) -> bool {
        self.mailbox().is_none_or(Mailbox::is_ascii)
    }
}

impl FromStr for ReversePath {
    type Err = MailboxError;

    /// Reads what stands between the angle brackets; empty text is the null reverse-path. A
    /// source route is read over (RFC 5321 appendix C).
    fn from_str(text: &str) -> Result<ReversePath, MailboxError> {
        match text {
            "" => Ok(ReversePath::Null),
            text => strip_source_route(text)?.parse().map(ReversePath::Mailbox),
        }
    }
}

impl FromStr for ForwardPath {
    type Err = MailboxError;

    /// Reads what stands between the angle brackets. A source route is read over (RFC 5321
    /// appendix C): mail goes to the last host named, under the rules for that host.
    fn from_str(text: &str) -> Result<ForwardPath, MailboxError> {
        if text.eq_ignore_ascii_case("postmaster") {
            return Ok(ForwardPath::Postmaster);
        }
        strip_source_route(text)?.parse().map(ForwardPath::Mailbox)
    }
}

fn strip_source_route(text: &str) -> Result<&str, MailboxError> {
    let Some(route) = text.strip_prefix('@') else { return Ok(text) };
    let (hosts, mailbox) = route.split_once(':').ok_or(MailboxError::Incomplete)?;
    for host in hosts.split(',') {
        host.strip_prefix('@').unwrap_or(host).parse::<Domain>()?;
    }
    Ok(mailbox)
}

impl fmt::Display for ReversePath {
    /// Writes the path with its angle brackets, as on the wire.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReversePath::Null => f.write_str("<>"),
            ReversePath::Mailbox(mailbox) => write!(f, "<{mailbox}>"),
        }
    }
}

impl fmt::Display for ForwardPath {
    /// Writes the path with its angle brackets, as on the wire.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ForwardPath::Postmaster => f.write_str("<Postmaster>"),
            ForwardPath::Mailbox(mailbox) => write!(f, "<{mailbox}>"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_route_is_read_over() {
        let path: ForwardPath = "@a.example,@b.example:u@c.example".parse().expect("valid");
        assert_eq!(path.to_string(), "<u@c.example>");
        for text in ["@a.example", "@:u@c", "@a b:u@c", "@a.example:"] {
            assert!(text.parse::<ForwardPath>().is_err(), "{text}");
        }
    }

    #[test]
    fn only_rcpt_knows_the_bare_postmaster_and_only_mail_the_null_path() {
        assert_eq!("POSTMASTER".parse(), Ok(ForwardPath::Postmaster));
        assert!("postmaster".parse::<ReversePath>().is_err());
        assert_eq!("".parse(), Ok(ReversePath::Null));
        assert!("".parse::<ForwardPath>().is_err());
    }
}
