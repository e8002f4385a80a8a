//! SMTP replies (RFC 5321 §4.2, RFC 2034, RFC 3463): what we say, and what a peer said.

use std::borrow::Cow;
use std::fmt;
use std::io::Write;

/// The longest reply text kept of a peer, in octets; what is longer is cut (a reply may be quoted
/// in a notification, so it is bounded here once).
pub const REPLY_TEXT_OCTETS_MAX: usize = 1024;

/// A reply code, 200 to 599.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Code(u16);

/// The first digit of a reply code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// 2yz: done.
    Positive,
    /// 3yz: go on.
    Intermediate,
    /// 4yz: try again later.
    Transient,
    /// 5yz: never like this.
    Permanent,
}

/// An enhanced status code `class.subject.detail` (RFC 3463).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Status {
    /// 2, 4 or 5.
    pub class: u8,
    /// 0 to 999.
    pub subject: u16,
    /// 0 to 999.
    pub detail: u16,
}

/// A reply: code, enhanced status and text of one or more lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The reply code.
    pub code: Code,
    /// The enhanced status code, where there is one.
    pub status: Option<Status>,
    /// The text without codes; lines are separated by `\n`. Printable, no other control characters.
    pub text: Cow<'static, str>,
}

impl Code {
    /// Builds a code; `None` outside 200 to 599.
    pub const fn new(code: u16) -> Option<Code> {
        if code >= 200 && code <= 599 { Some(Code(code)) } else { None }
    }

    /// Returns the number.
    pub const fn get(self) -> u16 {
        self.0
    }

    /// Returns what the first digit says.
    pub const fn severity(self) -> Severity {
        match self.0 / 100 {
            2 => Severity::Positive,
            3 => Severity::Intermediate,
            4 => Severity::Transient,
            _ => Severity::Permanent,
        }
    }
}

impl Status {
    /// Builds a status from its three numbers.
    pub const fn new(class: u8, subject: u16, detail: u16) -> Status {
        Status { class, subject, detail }
    }

    /// Reads `class.subject.detail` from the start of a reply text and returns what follows it.
    pub fn split(text: &str) -> Option<(Status, &str)> {
        let end = text.find(' ').unwrap_or(text.len());
        let mut parts = text[..end].split('.');
        let class = match parts.next()? {
            "2" => 2,
            "4" => 4,
            "5" => 5,
            _ => return None,
        };
        let mut number = || {
            let digits = parts.next()?;
            let good = (1..=3).contains(&digits.len()) && digits.bytes().all(|c| c.is_ascii_digit());
            good.then(|| digits.parse::<u16>().ok()).flatten()
        };
        let status = Status { class, subject: number()?, detail: number()? };
        parts.next().is_none().then(|| (status, text[end..].trim_start_matches(' ')))
    }
}

impl Reply {
    /// Builds one of our own replies. Where a status is due its class agrees with the code.
    ///
    /// # Panics
    /// When `code` is outside 200 to 599: a fault of the caller's constant.
    pub const fn of(code: u16, status: Option<Status>, text: &'static str) -> Reply {
        match Code::new(code) {
            Some(code) => Reply { code, status, text: Cow::Borrowed(text) },
            None => panic!("a reply code lies between 200 and 599"),
        }
    }

    /// Returns this reply with another text; control characters become spaces.
    pub fn with_text(self, text: &str) -> Reply {
        let clean = || text.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect();
        Reply { text: Cow::Owned(if is_printable_ascii(text) { text.to_owned() } else { clean() }), ..self }
    }

    /// Returns what the code's first digit says.
    pub fn severity(&self) -> Severity {
        self.code.severity()
    }

    /// Returns whether the code is 2yz.
    pub fn is_positive(&self) -> bool {
        self.severity() == Severity::Positive
    }

    /// Appends the reply as it goes on the wire, each line with its code and CRLF. The status
    /// code stands on every line (RFC 2034 §4).
    pub fn write_to(&self, out: &mut Vec<u8>) {
        let mut lines = self.text.split('\n').peekable();
        while let Some(line) = lines.next() {
            let dash = if lines.peek().is_some() { b'-' } else { b' ' };
            let Code(code) = self.code;
            out.extend([code / 100, code / 10 % 10, code % 10].map(|digit| b'0' + digit as u8));
            out.push(dash);
            if let Some(status) = self.status {
                // Writing to a Vec cannot fail.
                let _ = write!(out, "{status} ");
            }
            out.extend_from_slice(line.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.class, self.subject, self.detail)
    }
}

impl fmt::Display for Reply {
    /// Writes the reply on one line, for logs, `queue why` and diagnostic codes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.code.fmt(f)?;
        if let Some(status) = self.status {
            write!(f, " {status}")?;
        }
        self.text.split('\n').try_for_each(|line| write!(f, " {line}"))
    }
}

/// Returns whether nothing in a text has to be replaced before people see it; most texts are so.
pub(crate) fn is_printable_ascii(text: &str) -> bool {
    text.bytes().all(|c| matches!(c, b' '..=b'~'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_only_where_one_stands() {
        assert_eq!(Status::split("5.1.1 no such user"), Some((Status::new(5, 1, 1), "no such user")));
        assert_eq!(Status::split("4.7.650"), Some((Status::new(4, 7, 650), "")));
        for text in ["", "3.1.1 x", "5.1 x", "5.1.1.1 x", "5.1.1111 x", "5.+1.1 x", "5..1 x", "hello"] {
            assert_eq!(Status::split(text), None, "{text}");
        }
    }

    #[test]
    fn every_line_carries_code_and_status() {
        let mut out = Vec::new();
        Reply::of(550, Some(Status::new(5, 7, 1)), "one\ntwo").write_to(&mut out);
        assert_eq!(out, b"550-5.7.1 one\r\n550 5.7.1 two\r\n");
    }

    #[test]
    fn text_from_outside_cannot_add_a_line_end() {
        let reply = Reply::of(250, None, "").with_text("a\r\u{0}\u{1b}b");
        assert_eq!(reply.text, "a   b");
    }
}
