//! Replies out of octets (RFC 5321 §4.2.1, §4.5.3.1.5): strict about codes and lines, bounded in
//! every direction. What a peer says is shown to people, so no control character survives.

use std::borrow::Cow;

use crate::line::{Input, Line};
use crate::reply::{Code, REPLY_TEXT_OCTETS_MAX, Reply, Status, is_printable_ascii};

/// The longest reply line, its CR LF included; RFC 5321 §4.5.3.1.5 promises 512, AUTH needs more.
pub const REPLY_LINE_OCTETS_MAX: usize = 12_288;
/// The most lines one reply may have.
pub const REPLY_LINES_MAX: usize = 128;
/// The most octets one reply may have.
pub const REPLY_OCTETS_MAX: usize = 65_536;

/// Why octets are no reply. The session cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    /// No code between 200 and 599, or no space, hyphen or line end behind it.
    #[error("the server's reply is malformed")]
    Malformed,
    /// The lines of one reply carry different codes.
    #[error("the lines of the server's reply carry different codes")]
    CodeChanged,
    /// More than [`REPLY_LINES_MAX`] lines, or one of the octet limits.
    #[error("the server's reply is too long")]
    TooLong,
}

/// Collects the lines of one reply after the other.
#[derive(Debug, Default)]
pub struct ReplyReader {
    partial: Option<Box<Partial>>,
}

#[derive(Debug)]
struct Partial {
    code: Code,
    status: Option<Status>,
    text: String,
    lines: usize,
    octets: usize,
}

/// One line, taken apart.
struct ReplyLine<'a> {
    code: Code,
    last: bool,
    text: &'a [u8],
}

impl ReplyReader {
    /// Makes a reader at the start of a reply.
    pub fn new() -> ReplyReader {
        ReplyReader::default()
    }

    /// Takes the next complete reply from the front of `input`; `None` when octets are missing.
    /// Text beyond [`REPLY_TEXT_OCTETS_MAX`] is cut.
    ///
    /// # Errors
    /// Why this is no reply.
    pub fn next(&mut self, input: &mut Input) -> Result<Option<Reply>, ReplyError> {
        self.next_with(input, REPLY_TEXT_OCTETS_MAX)
    }

    /// Takes the next reply whole: the list of EHLO is longer than what is worth quoting.
    pub(super) fn next_whole(&mut self, input: &mut Input) -> Result<Option<Reply>, ReplyError> {
        self.next_with(input, REPLY_OCTETS_MAX)
    }

    fn next_with(&mut self, input: &mut Input, text_octets_max: usize) -> Result<Option<Reply>, ReplyError> {
        loop {
            let line = match input.take_line(REPLY_LINE_OCTETS_MAX) {
                Line::Complete(line) => line,
                Line::Incomplete => return Ok(None),
                Line::BareLineFeed => return Err(ReplyError::Malformed),
                Line::TooLong | Line::Endless => return Err(ReplyError::TooLong),
            };
            let octets = line.len() + 2;
            let line = ReplyLine::parse(line).ok_or(ReplyError::Malformed)?;
            let last = line.last;
            self.add(&line, octets)?;
            if last {
                return Ok(self.partial.take().map(|partial| partial.into_reply(text_octets_max)));
            }
        }
    }

    fn add(&mut self, line: &ReplyLine<'_>, octets: usize) -> Result<(), ReplyError> {
        let text = String::from_utf8_lossy(line.text);
        let Some(partial) = &mut self.partial else {
            self.partial = Some(Box::new(Partial::first(line.code, &text, octets)));
            return Ok(());
        };
        if partial.code != line.code {
            return Err(ReplyError::CodeChanged);
        }
        partial.lines += 1;
        partial.octets += octets;
        if partial.lines > REPLY_LINES_MAX || partial.octets > REPLY_OCTETS_MAX {
            return Err(ReplyError::TooLong);
        }
        partial.text.push('\n');
        let (_, rest) = split_status(line.code, &text);
        push_printable(&mut partial.text, rest);
        Ok(())
    }
}

impl<'a> ReplyLine<'a> {
    fn parse(line: &'a [u8]) -> Option<ReplyLine<'a>> {
        let (digits, rest) = line.split_at_checked(3)?;
        if !digits.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let number = digits.iter().fold(0, |n, c| n * 10 + u16::from(c - b'0'));
        let (last, text) = match rest {
            [] => (true, rest),
            [b' ', text @ ..] => (true, text),
            [b'-', text @ ..] => (false, text),
            _ => return None,
        };
        Some(ReplyLine { code: Code::new(number)?, last, text })
    }
}

impl Partial {
    fn first(code: Code, text: &str, octets: usize) -> Partial {
        let (status, rest) = split_status(code, text);
        let mut partial = Partial { code, status, text: String::with_capacity(rest.len()), lines: 1, octets };
        push_printable(&mut partial.text, rest);
        partial
    }

    fn into_reply(mut self, text_octets_max: usize) -> Reply {
        let end = self.text.floor_char_boundary(text_octets_max);
        self.text.truncate(end);
        Reply { code: self.code, status: self.status, text: Cow::Owned(self.text) }
    }
}

/// A status whose class contradicts the code is text.
fn split_status(code: Code, text: &str) -> (Option<Status>, &str) {
    match Status::split(text) {
        Some((status, rest)) if u16::from(status.class) == code.get() / 100 => (Some(status), rest),
        _ => (None, text),
    }
}

fn push_printable(out: &mut String, text: &str) {
    if is_printable_ascii(text) {
        return out.push_str(text);
    }
    out.extend(text.chars().map(|c| if c.is_control() { ' ' } else { c }));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(wire: &[u8]) -> Result<Option<Reply>, ReplyError> {
        let mut input = Input::new();
        input.extend(wire);
        ReplyReader::new().next(&mut input)
    }

    #[test]
    fn a_reply_is_the_same_in_every_chunking() {
        let wire = b"250-2.1.0 one\r\n250-2.1.0 two\x1b[\r\n250\r\n";
        for size in 1..=wire.len() {
            let (mut input, mut reader, mut found) = (Input::new(), ReplyReader::new(), None);
            for piece in wire.chunks(size) {
                input.extend(piece);
                found = found.or(reader.next(&mut input).expect("valid"));
            }
            let reply = found.expect("complete");
            assert_eq!((reply.code.get(), reply.status), (250, Some(Status::new(2, 1, 0))));
            assert_eq!(reply.text, "one\ntwo [\n");
        }
    }

    #[test]
    fn what_is_no_reply_is_an_error() {
        for wire in [
            "\r\n",
            "25\r\n",
            "250x\r\n",
            "199 a\r\n",
            "600 a\r\n",
            "2\u{663} a\r\n",
            "250 a\n",
            "hello\r\n",
            "+50 a\r\n",
        ] {
            assert_eq!(read(wire.as_bytes()), Err(ReplyError::Malformed), "{wire:?}");
        }
        assert_eq!(read(b"250-a\r\n251 b\r\n"), Err(ReplyError::CodeChanged));
        assert_eq!(read("250-a\r\n".repeat(200).as_bytes()), Err(ReplyError::TooLong));
        assert_eq!(read(format!("250-{}\r\n", "x".repeat(6000)).repeat(12).as_bytes()), Err(ReplyError::TooLong));
        assert_eq!(read(&vec![b'2'; 80_000]), Err(ReplyError::TooLong));
    }

    #[test]
    fn text_is_bounded_and_a_bare_status_is_no_text() {
        let reply = read(format!("550 5.1.1 {}\r\n", "ü".repeat(2000)).as_bytes()).expect("valid").expect("complete");
        assert!(reply.text.len() <= REPLY_TEXT_OCTETS_MAX);
        let reply = read(b"250 2.0.0\r\n").expect("valid").expect("complete");
        assert_eq!((reply.status, &*reply.text), (Some(Status::new(2, 0, 0)), ""));
        let reply = read(b"550 2.0.0 odd\r\n").expect("valid").expect("complete");
        assert_eq!((reply.status, &*reply.text), (None, "2.0.0 odd"));
    }
}
