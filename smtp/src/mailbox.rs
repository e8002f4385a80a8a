//! `Local-part "@" (Domain / address-literal)` (RFC 5321 §4.1.2, RFC 6531 §3.3).
//!
//! If you hold a [`Mailbox`], its grammar was checked. The local-part is kept as it was written,
//! quotes included: only the host that delivers it may interpret it (RFC 5321 §2.3.11).

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use crate::domain::{Domain, DomainError, Host};

/// The longest local-part accepted, in octets. RFC 5321 §4.5.3.1.1 names 64 as the least; real
/// variable envelope return paths are longer.
pub const LOCAL_PART_OCTETS_MAX: usize = 256;

/// The part before the `@`, verbatim: a dot-string or a quoted-string, ASCII or UTF-8.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LocalPart(Box<str>);

/// A mailbox: local-part and host.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mailbox {
    /// The part before the last unquoted `@`.
    pub local_part: LocalPart,
    /// The part after it.
    pub host: Host,
}

/// What is wrong with the text of a mailbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MailboxError {
    /// No `@`, or nothing before it.
    #[error("an address needs a local-part, an @ and a domain")]
    Incomplete,
    /// Longer than [`LOCAL_PART_OCTETS_MAX`].
    #[error("the local-part is longer than {LOCAL_PART_OCTETS_MAX} octets")]
    TooLong,
    /// Neither a dot-string nor a quoted-string.
    #[error("the local-part is malformed")]
    LocalPart,
    /// The part after the `@`.
    #[error(transparent)]
    Host(#[from] DomainError),
}

impl LocalPart {
    /// Returns the local-part as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the local-part without quotes and backslashes: what a delivery agent compares.
    pub fn unquoted(&self) -> Cow<'_, str> {
        match self.0.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
            None => Cow::Borrowed(&self.0),
            Some(inner) if !inner.contains('\\') => Cow::Borrowed(inner),
            Some(inner) => {
                let mut chars = inner.chars();
                let mut out = String::with_capacity(inner.len());
                while let Some(c) = chars.next() {
                    out.extend(if c == '\\' { chars.next() } else { Some(c) });
                }
                Cow::Owned(out)
            }
        }
    }
}

impl FromStr for LocalPart {
    type Err = MailboxError;

    fn from_str(text: &str) -> Result<LocalPart, MailboxError> {
        if text.is_empty() {
            return Err(MailboxError::Incomplete);
        }
        if text.len() > LOCAL_PART_OCTETS_MAX {
            return Err(MailboxError::TooLong);
        }
        let good = match text.strip_prefix('"') {
            Some(rest) => rest.strip_suffix('"').is_some_and(is_quoted_content),
            None => text.split('.').all(|atom| !atom.is_empty() && atom.chars().all(is_atext)),
        };
        if good { Ok(LocalPart(text.into())) } else { Err(MailboxError::LocalPart) }
    }
}

/// RFC 5322 §3.2.3 atext, with the UTF-8 of RFC 6531 §3.3 but no control characters.
fn is_atext(c: char) -> bool {
    match c {
        'a'..='z' | 'A'..='Z' | '0'..='9' => true,
        '\u{80}'.. => !c.is_control(),
        _ => "!#$%&'*+-/=?^_`{|}~".contains(c),
    }
}

/// QcontentSMTP: printable characters, `"` and `\` only behind a backslash.
fn is_quoted_content(inner: &str) -> bool {
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        let c = match c {
            '"' => return false,
            '\\' => match chars.next() {
                Some(quoted @ ' '..='~') => quoted,
                _ => return false,
            },
            other => other,
        };
        if c.is_control() {
            return false;
        }
    }
    true
}

impl Mailbox {
    /// Returns the domain, or `None` for an address literal.
    pub fn domain(&self) -> Option<&Domain> {
        self.host.domain()
    }

    /// Returns whether the address fits a session without SMTPUTF8. The domain always does.
    pub fn is_ascii(&self) -> bool {
        self.local_part.0.is_ascii()
    }
}

impl FromStr for Mailbox {
    type Err = MailboxError;

    fn from_str(text: &str) -> Result<Mailbox, MailboxError> {
        let at = split_at_sign(text).ok_or(MailboxError::Incomplete)?;
        Ok(Mailbox { local_part: text[..at].parse()?, host: text[at + 1..].parse()? })
    }
}

/// Returns where the `@` stands that ends the local-part: behind the closing quote of a
/// quoted-string, or the first one.
fn split_at_sign(text: &str) -> Option<usize> {
    if !text.starts_with('"') {
        return text.find('@');
    }
    let mut escaped = false;
    for (i, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return text[i + 1..].starts_with('@').then_some(i + 1),
            _ => {}
        }
    }
    None
}

impl fmt::Display for LocalPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.local_part, self.host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back_as_they_were_written() {
        for text in [
            "a@example.org",
            "\"a@b\"@c.example",
            "\"a\\\"b\"@c.example",
            "x+y=z@[192.0.2.1]",
            "jürgen@example.org",
            "A.B@c",
        ] {
            assert_eq!(text.parse::<Mailbox>().expect(text).to_string(), text);
        }
    }

    #[test]
    fn what_is_no_mailbox_is_refused() {
        for text in [
            "",
            "@",
            "a@",
            "@b",
            "a",
            "a.@b",
            ".a@b",
            "a..b@c",
            "a b@c",
            "a@b@c",
            "\"a@b",
            "\"a\"b@c",
            "\"\"\"@c",
            "a\u{7f}@c",
            "a\u{85}@c",
            "a@-b",
            "<a@b>",
        ] {
            assert!(text.parse::<Mailbox>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn quotes_are_for_the_wire_only() {
        let local = |t: &str| t.parse::<LocalPart>().expect(t).unquoted().into_owned();
        assert_eq!(local("\"john doe\""), "john doe");
        assert_eq!(local("\"a\\\"b\\\\\""), "a\"b\\");
        assert_eq!(local("plain"), "plain");
    }
}
