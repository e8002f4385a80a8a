//! What a submission server adds to a message that lacks it (RFC 6409 §8): Date, Message-ID and
//! From. Nothing that is there is changed.
//!
//! Holds the header section, at most [`HEADER_OCTETS_MAX`], until it is complete.

use mail_parser::MessageParser;
use memchr::memmem;
use postroad_queue::UnixMillis;
use postroad_smtp::trace::Date;

/// A longer header section is passed on as it is.
pub const HEADER_OCTETS_MAX: usize = 256 * 1024;

/// A header section that is being collected.
pub struct Completion {
    held: Vec<u8>,
    fields: Missing,
}

/// The fields to add where the message has none.
pub struct Missing {
    /// When the message was submitted.
    pub date: UnixMillis,
    /// `left@right` of the Message-ID.
    pub message_id: String,
    /// The reverse-path; none when it is null.
    pub from: Option<String>,
}

impl Completion {
    /// Begins to collect.
    pub fn new(fields: Missing) -> Completion {
        Completion { held: Vec::new(), fields }
    }

    /// Takes the next piece; returns what to write in place of everything collected once the
    /// header section is complete.
    pub fn push(&mut self, piece: &[u8]) -> Option<Vec<u8>> {
        // The empty line may lie across two pieces.
        let seam = self.held.len().saturating_sub(3);
        self.held.extend_from_slice(piece);
        let ended = self.held.starts_with(b"\r\n") || memmem::find(&self.held[seam..], b"\r\n\r\n").is_some();
        (ended || self.held.len() > HEADER_OCTETS_MAX).then(|| self.completed())
    }

    /// Returns what to write when the content ended before the header section did.
    pub fn finish(mut self) -> Vec<u8> {
        self.completed()
    }

    fn completed(&mut self) -> Vec<u8> {
        let held = std::mem::take(&mut self.held);
        let mut out = Vec::with_capacity(held.len() + 256);
        let parsed = MessageParser::new().parse_headers(&held[..]);
        let has = |name: &str| parsed.as_ref().is_some_and(|message| message.header_raw(name).is_some());
        if !has("Date") {
            out.extend_from_slice(format!("Date: {}\r\n", Date(self.fields.date.0)).as_bytes());
        }
        if !has("Message-ID") {
            out.extend_from_slice(format!("Message-ID: <{}>\r\n", self.fields.message_id).as_bytes());
        }
        if let Some(from) = self.fields.from.take().filter(|_| !has("From")) {
            out.extend_from_slice(format!("From: {from}\r\n").as_bytes());
        }
        if !looks_like_header(&held) {
            // Text without a header section: what was added needs the empty line that ends one.
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(&held);
        out
    }
}

/// Returns whether the first line is a field, or ends an empty header section.
fn looks_like_header(held: &[u8]) -> bool {
    let line = &held[..memchr::memchr(b'\r', held).unwrap_or(held.len())];
    let name = &line[..memchr::memchr(b':', line).unwrap_or(0)];
    held.starts_with(b"\r\n") || (!name.is_empty() && name.iter().all(|c| matches!(c, b'!'..=b'~')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(message: &str, cut: usize) -> String {
        let fields =
            Missing { date: UnixMillis(0), message_id: "1@host.example".into(), from: Some("a@b.example".into()) };
        let mut completion = Completion::new(fields);
        let mut out = Vec::new();
        let (first, second) = message.as_bytes().split_at(cut);
        match completion.push(first) {
            Some(header) => out.extend([&header[..], second].concat()),
            None => match completion.push(second) {
                Some(header) => out.extend(header),
                None => out.extend(completion.finish()),
            },
        }
        String::from_utf8(out).expect("the test's text")
    }

    const ADDED: &str =
        "Date: Thu, 01 Jan 1970 00:00:00 +0000\r\nMessage-ID: <1@host.example>\r\nFrom: a@b.example\r\n";

    #[test]
    fn what_is_missing_is_added_on_top_wherever_the_pieces_split() {
        for (message, added) in [
            ("Subject: x\r\n\r\nbody\r\n", ADDED),
            ("\r\nbody\r\n", ADDED),
            ("Subject: x\r\n", ADDED),
            ("date: x\r\nMESSAGE-ID: <y>\r\nFrom: z\r\n\r\nDate: in the body\r\n", ""),
        ] {
            for cut in 0..=message.len() {
                assert_eq!(complete(message, cut), format!("{added}{message}"), "cut at {cut}");
            }
        }
    }

    #[test]
    fn text_without_a_header_section_becomes_the_body() {
        assert_eq!(complete("just text\r\n", 4), format!("{ADDED}\r\njust text\r\n"));
    }
}
