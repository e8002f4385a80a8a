//! Trace information (RFC 5321 §4.4): the Received field this host adds, and counting the hops a
//! message has made.
//!
//! A field made here is one header field whatever its parts were: nothing from outside adds a
//! line end or leaves its comment.

use std::fmt::{self, Write};
use std::net::IpAddr;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::domain::{Domain, Host};
use crate::path::ForwardPath;
use crate::priority::Priority;

/// Where lines of a field are folded, in octets without CR LF (RFC 5322 §2.1.1).
pub const FOLD_OCTETS: usize = 78;

/// What is known of a session's TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFacts {
    /// The protocol version, such as `TLSv1.3`.
    pub version: Box<str>,
    /// The cipher suite.
    pub cipher: Box<str>,
}

/// How a message was transmitted: the `with` clause (RFC 3848, RFC 6531 §4.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each is one letter of the keyword")]
pub struct With {
    /// LMTP rather than SMTP.
    pub lmtp: bool,
    /// EHLO rather than HELO.
    pub esmtp: bool,
    /// Under TLS.
    pub tls: bool,
    /// From an authenticated user.
    pub authenticated: bool,
    /// With the SMTPUTF8 parameter.
    pub smtputf8: bool,
}

impl With {
    /// Returns the registered keyword.
    pub fn keyword(self) -> &'static str {
        const NAMES: [[&str; 4]; 4] = [
            ["ESMTP", "ESMTPA", "ESMTPS", "ESMTPSA"],
            ["LMTP", "LMTPA", "LMTPS", "LMTPSA"],
            ["UTF8SMTP", "UTF8SMTPA", "UTF8SMTPS", "UTF8SMTPSA"],
            ["UTF8LMTP", "UTF8LMTPA", "UTF8LMTPS", "UTF8LMTPSA"],
        ];
        if !self.esmtp && !self.lmtp {
            return "SMTP";
        }
        let row = usize::from(self.lmtp) + 2 * usize::from(self.smtputf8);
        NAMES[row][usize::from(self.authenticated) + 2 * usize::from(self.tls)]
    }
}

/// A Received field; `Display` writes it folded, with its final CR LF.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// What the client called itself; `None` for mail that came through no session.
    pub helo: Option<&'a str>,
    /// Where the connection came from; `None` for a local socket.
    pub peer: Option<IpAddr>,
    /// This host.
    pub by: &'a Domain,
    /// How it came: [`With::keyword`] or another atom.
    pub with: &'a str,
    /// Which user of this host handed it in, where the kernel said so.
    pub uid: Option<u32>,
    /// The session's TLS.
    pub tls: Option<&'a TlsFacts>,
    /// The queue id.
    pub id: &'a str,
    /// Its name in the mesh, where it came by that; in a comment, since the clause is not registered.
    pub mesh_id: Option<&'a str>,
    /// The recipient, only when there is exactly one: more would disclose them to each other.
    pub recipient: Option<&'a ForwardPath>,
    /// The priority it was accepted with, where the client said one (RFC 6710).
    pub priority: Option<Priority>,
    /// When, in milliseconds since the Unix epoch.
    pub unix_ms: u64,
}

impl fmt::Display for Received<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = Folder { f, column: 0, text: String::with_capacity(FOLD_OCTETS) };
        line.word("Received:")?;
        self.write_from(&mut line)?;
        line.word("by")?;
        line.word(self.by.as_str())?;
        line.word("with")?;
        line.atom("", self.with, "")?;
        if let Some(uid) = self.uid {
            line.words(format_args!("(uid {uid})"))?;
        }
        if let Some(tls) = self.tls {
            line.atom("(", &tls.version, "")?;
            line.atom("", &tls.cipher, ")")?;
        }
        line.word("id")?;
        line.atom("", self.id, "")?;
        if let Some(mesh_id) = self.mesh_id {
            line.word("(mid")?;
            line.atom("", mesh_id, ")")?;
        }
        if let Some(path) = self.recipient {
            line.words(format_args!("for {path}"))?;
        }
        if let Some(priority) = self.priority {
            line.words(format_args!("PRIORITY {priority}"))?;
        }
        line.end(";")?;
        line.words(format_args!("{}", Date(self.unix_ms)))?;
        line.f.write_str("\r\n")
    }
}

impl Received<'_> {
    /// A name that is none is shown in a comment, behind the address literal.
    fn write_from(&self, line: &mut Folder<'_, '_>) -> fmt::Result {
        let Some(helo) = self.helo else { return Ok(()) };
        let peer = self.peer.map(Host::Literal);
        match (helo.parse::<Host>(), peer) {
            (Ok(host), None) => line.words(format_args!("from {host}")),
            (Ok(host), Some(peer)) => line.words(format_args!("from {host} ({peer})")),
            (Err(_), None) => line.words(format_args!("from unknown (helo {})", Atom(helo))),
            (Err(_), Some(peer)) => line.words(format_args!("from {peer} (helo {})", Atom(helo))),
        }
    }
}

/// Text from outside inside a field: printable ASCII without what opens, closes or quotes.
struct Atom<'a>(&'a str);

impl Atom<'_> {
    fn push_to(&self, out: &mut impl Write) -> fmt::Result {
        let is_safe = |c: char| c.is_ascii_graphic() && !matches!(c, '(' | ')' | '<' | '>' | '\\' | '"' | ';' | ',');
        if self.0.chars().all(is_safe) {
            return out.write_str(self.0);
        }
        self.0.chars().try_for_each(|c| out.write_char(if is_safe(c) { c } else { '?' }))
    }
}

impl fmt::Display for Atom<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.push_to(f)
    }
}

/// An RFC 5322 date-time in UTC.
pub struct Date(pub u64);

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = i64::try_from(self.0).unwrap_or(i64::MAX);
        let time = Timestamp::from_millisecond(ms).unwrap_or(Timestamp::MAX).to_zoned(TimeZone::UTC);
        write!(f, "{}", time.strftime("%a, %d %b %Y %H:%M:%S +0000"))
    }
}

/// Writes words with one space between them, or a fold where the line would grow too long.
struct Folder<'a, 'b> {
    f: &'a mut fmt::Formatter<'b>,
    column: usize,
    /// Where words are put together: one buffer for all of a field.
    text: String,
}

impl Folder<'_, '_> {
    fn words(&mut self, text: fmt::Arguments<'_>) -> fmt::Result {
        let mut words = std::mem::take(&mut self.text);
        words.clear();
        words.write_fmt(text)?;
        words.split(' ').try_for_each(|word| self.word(word))?;
        self.text = words;
        Ok(())
    }

    /// Writes a word out of text from outside, with what stands around it.
    fn atom(&mut self, before: &str, text: &str, after: &str) -> fmt::Result {
        let mut word = std::mem::take(&mut self.text);
        word.clear();
        word.push_str(before);
        Atom(text).push_to(&mut word)?;
        word.push_str(after);
        self.word(&word)?;
        self.text = word;
        Ok(())
    }

    /// Adds to the last word; [`FOLD_OCTETS`] leaves room for one octet.
    fn end(&mut self, text: &str) -> fmt::Result {
        self.column += text.len();
        self.f.write_str(text)
    }

    fn word(&mut self, word: &str) -> fmt::Result {
        if self.column > 0 {
            let fits = self.column + 1 + word.len() < FOLD_OCTETS;
            self.f.write_str(if fits { " " } else { "\r\n " })?;
            self.column = if fits { self.column + 1 } else { 1 };
        }
        self.column += word.len();
        self.f.write_str(word)
    }
}

/// The longest Message-ID kept, in octets: a line of RFC 5322 §2.1.1 has no more.
pub const MESSAGE_ID_OCTETS_MAX: usize = 998;

/// Reads the header section of content that passes by, in pieces of any size: counts its Received
/// fields and keeps its first Message-ID.
#[derive(Clone, Debug, Default)]
pub struct HeaderScanner {
    place: Place,
    hops: u32,
    message_id: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    /// At the start of a line: no octet of it was seen.
    #[default]
    Start,
    /// So many octets of the line agree with the field's name.
    Name(Field, u8),
    /// In a line that is not interesting any more.
    Line,
    /// In the value of the Message-ID.
    MessageId,
    /// At the start of the line behind it, which may go on with it.
    Folded,
    /// Behind CR at the start of a line.
    EmptyCr,
    /// Behind the header section.
    Body,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Received,
    MessageId,
}

impl Field {
    const fn name(self) -> &'static [u8] {
        match self {
            Field::Received => b"received:",
            Field::MessageId => b"message-id:",
        }
    }
}

impl HeaderScanner {
    /// Makes a scanner at the start of content.
    pub fn new() -> HeaderScanner {
        HeaderScanner::default()
    }

    /// Reads the next piece. Behind the header section this costs nothing.
    pub fn scan(&mut self, piece: &[u8]) {
        if self.is_complete() {
            return;
        }
        let mut at = 0;
        while let Some(&c) = piece.get(at) {
            at += self.step(c, &piece[at..]);
            if self.is_complete() {
                break;
            }
        }
    }

    /// Moves on behind at least one octet, of which `rest` begins with the first, and returns how many.
    fn step(&mut self, c: u8, rest: &[u8]) -> usize {
        self.place = match (self.place, c) {
            (Place::EmptyCr, b'\n') => Place::Body,
            (Place::MessageId, b'\n') => Place::Folded,
            (Place::Folded, b' ' | b'\t') => Place::MessageId,
            (_, b'\n') => Place::Start,
            (Place::Start | Place::Folded, b'\r') => Place::EmptyCr,
            (Place::Start | Place::Folded, b'r' | b'R') => Place::Name(Field::Received, 1),
            (Place::Start | Place::Folded, b'm' | b'M') if self.message_id.is_empty() => {
                Place::Name(Field::MessageId, 1)
            }
            (Place::Name(field, matched), c) => self.match_name(field, matched, c),
            (Place::MessageId, _) => {
                let end = memchr::memchr(b'\n', rest).unwrap_or(rest.len());
                let room = MESSAGE_ID_OCTETS_MAX - self.message_id.len();
                self.message_id.extend_from_slice(&rest[..end.min(room)]);
                return end;
            }
            _ => {
                let line_end = memchr::memchr(b'\n', rest);
                self.place = if line_end.is_some() { Place::Start } else { Place::Line };
                return line_end.map_or(rest.len(), |lf| lf + 1);
            }
        };
        1
    }

    fn match_name(&mut self, field: Field, matched: u8, c: u8) -> Place {
        let name = field.name();
        if c.to_ascii_lowercase() != name[usize::from(matched)] {
            return Place::Line;
        }
        if usize::from(matched) + 1 < name.len() {
            return Place::Name(field, matched + 1);
        }
        match field {
            Field::Received => {
                self.hops += 1;
                Place::Line
            }
            Field::MessageId => Place::MessageId,
        }
    }

    /// Returns how many Received fields were seen (RFC 5321 §6.3).
    pub fn hops(&self) -> u32 {
        self.hops
    }

    /// Returns the Message-ID seen first, without its angle brackets (RFC 5322 §3.6.4); empty when none
    /// was. Nothing of its grammar is checked.
    pub fn message_id(&self) -> &[u8] {
        let value = &self.message_id;
        let inside = memchr::memchr(b'<', value).map_or(&value[..], |open| &value[open + 1..]);
        let inside = memchr::memchr(b'>', inside).map_or(inside, |close| &inside[..close]);
        inside.trim_ascii()
    }

    /// Returns whether the empty line behind the header section was seen.
    pub fn is_complete(&self) -> bool {
        self.place == Place::Body
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received<'a>(by: &'a Domain, helo: &'a str) -> Received<'a> {
        Received {
            helo: Some(helo),
            peer: Some(IpAddr::from([192, 0, 2, 1])),
            by,
            with: "ESMTPS",
            uid: None,
            tls: None,
            id: "0123456789ABC",
            mesh_id: None,
            recipient: None,
            priority: None,
            unix_ms: 1_795_331_045_000,
        }
    }

    #[test]
    fn a_received_field_is_folded() {
        let by = "mx.example.org".parse().expect("valid");
        let tls = TlsFacts { version: "TLSv1.3".into(), cipher: "TLS13_AES_256_GCM_SHA384".into() };
        let path: ForwardPath = "alice@example.org".parse().expect("valid");
        let field = Received { tls: Some(&tls), recipient: Some(&path), ..received(&by, "client.example") }.to_string();
        assert_eq!(
            field,
            "Received: from client.example ([192.0.2.1]) by mx.example.org with ESMTPS\r\n \
             (TLSv1.3 TLS13_AES_256_GCM_SHA384) id 0123456789ABC for <alice@example.org>;\r\n \
             Sun, 22 Nov 2026 07:04:05 +0000\r\n"
        );
    }

    #[test]
    fn a_name_from_outside_stays_in_its_comment() {
        let by = "mx.example.org".parse().expect("valid");
        let field = received(&by, "x)\r\nEvil:;(\\").to_string();
        assert!(field.starts_with("Received: from [192.0.2.1] (helo x???Evil:???) by "), "{field}");
        let passed = Received { mesh_id: Some("x)\r\ny"), ..received(&by, "client.example") }.to_string();
        assert!(passed.contains("(mid x???y);"), "{passed}");
        let local =
            Received { helo: None, peer: None, with: "local", uid: Some(1000), ..received(&by, "") }.to_string();
        assert!(local.starts_with("Received: by mx.example.org with local (uid 1000) id 0123456789ABC;"), "{local}");
    }

    #[test]
    fn the_priority_stands_behind_the_clauses_of_rfc_5321() {
        let by = "mx.example.org".parse().expect("valid");
        let path: ForwardPath = "alice@example.org".parse().expect("valid");
        let field = Received { priority: Priority::new(-4), ..received(&by, "client.example") };
        for (recipient, end) in
            [(None, " id 0123456789ABC PRIORITY -4; Sun,"), (Some(&path), " for <alice@example.org> PRIORITY -4; Sun,")]
        {
            let field = Received { recipient, ..field }.to_string();
            assert!(field.replace("\r\n", "").contains(end), "{field}");
        }
    }

    #[test]
    fn the_name_in_the_mesh_is_a_comment() {
        let by = "mx.example.org".parse().expect("valid");
        let field =
            Received { mesh_id: Some("aebagbafaydqqcikbmga2dqpca"), ..received(&by, "client.example") }.to_string();
        assert!(field.contains(" 0123456789ABC (mid aebagbafaydqqcikbmga2dqpca); Sun,"), "{field}");
    }

    #[test]
    fn the_protocol_is_named_as_registered() {
        let with = With::default();
        assert_eq!(with.keyword(), "SMTP");
        let with = With { esmtp: true, tls: true, authenticated: true, ..with };
        assert_eq!(with.keyword(), "ESMTPSA");
        assert_eq!(With { smtputf8: true, ..with }.keyword(), "UTF8SMTPSA");
        assert_eq!(With { lmtp: true, authenticated: false, tls: false, ..with }.keyword(), "LMTP");
    }

    #[test]
    fn hops_are_counted_in_every_chunking_and_only_in_the_header() {
        let content = "RECEIVED: a\r\n received: folded\r\nreceivedx: no\r\nSubject: \u{fc}\r\nreceived:b\r\nReceive\r\n\r\n\
                       Received: body\r\n";
        for size in 1..content.len() {
            let mut scanner = HeaderScanner::new();
            content.as_bytes().chunks(size).for_each(|piece| scanner.scan(piece));
            assert_eq!((scanner.hops(), scanner.is_complete()), (2, true), "{size}");
        }
        let mut scanner = HeaderScanner::new();
        scanner.scan(b"\r\nReceived: x\r\n");
        assert_eq!((scanner.hops(), scanner.is_complete()), (0, true));
    }

    #[test]
    fn the_message_id_is_found_in_every_chunking_and_only_in_the_header() {
        let long = format!("message-ID: <{}@x>\r\n\r\n", "a".repeat(2 * MESSAGE_ID_OCTETS_MAX));
        for (content, want) in [
            ("Received: a\r\nMessage-ID: <1.2@host.example>\r\nMessage-ID: <second@x>\r\n\r\n", "1.2@host.example"),
            ("MESSAGE-id:\r\n <folded@x>\r\nreceived: b\r\n\r\n", "folded@x"),
            ("Message-ID:bare@x \r\nReceived: a\r\n\r\nMessage-ID: <body@x>\r\n", "bare@x"),
            ("Message-ID: <a@x> (a comment)\r\nReceived:\r\n\r\n", "a@x"),
            ("Message-IDs: <no@x>\r\nReceived:\r\n\r\nMessage-ID: <body@x>\r\n", ""),
            ("Message-ID: <>\r\nReceived: x\r\n\r\n", ""),
        ] {
            for size in 1..content.len() {
                let mut scanner = HeaderScanner::new();
                content.as_bytes().chunks(size).for_each(|piece| scanner.scan(piece));
                assert_eq!(scanner.message_id(), want.as_bytes(), "{content:?} by {size}");
                assert_eq!((scanner.hops(), scanner.is_complete()), (1, true), "{content:?} by {size}");
            }
        }
        let mut scanner = HeaderScanner::new();
        scanner.scan(long.as_bytes());
        assert!(scanner.message_id().len() < MESSAGE_ID_OCTETS_MAX && scanner.is_complete());
    }
}
