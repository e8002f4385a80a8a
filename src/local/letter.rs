//! What a program hands to the sendmail command: its input becomes content as it is on the wire, and its
//! arguments and header section an envelope, the [`Slip`].
//!
//! Line ends become CR LF here and nowhere else (docs/decisions/0002-line-ends.md). A CR that stands alone
//! ends a line of the text, since progress bars in the output of jobs are full of them; in the header section
//! it is a space, so that no field is smuggled in behind one. NUL is left out.

use std::io::{self, Read};

use postroad_smtp::mailbox::MailboxError;
use postroad_smtp::{Domain, ForwardPath, ReversePath};
use serde::{Deserialize, Serialize};

use super::addresses::{self, Found};
use super::header::{self, Field};
use super::{HEADER_OCTETS_MAX, MESSAGE_OCTETS_MAX, RECIPIENTS_MAX};

/// The envelope of local mail as it was asked for: names without a domain get the agent's. It is also the
/// second line of a drop file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slip {
    /// The login name of whoever hands it in.
    pub user: String,
    /// The reverse-path; none: the null one.
    pub from: Option<String>,
    /// The name in a From field that has to be added.
    pub name: Option<String>,
    /// The recipients.
    pub to: Vec<String>,
    /// NOTIFY of all recipients (RFC 3461 §4.1).
    pub notify: Option<Wish>,
    /// RET=HDRS or, where it is false, RET=FULL (RFC 3461 §4.3).
    pub headers_only: Option<bool>,
    /// ENVID (RFC 3461 §4.4).
    pub envid: Option<String>,
    /// Whether the content has octets above 127.
    pub eight_bit: bool,
    /// Octets of the header section, with the empty line behind it.
    pub header_octets: u64,
    /// Octets of the content, the header section included.
    pub octets: u64,
}

/// When the sender wants to be notified; nothing of it is NEVER.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wish {
    /// On delivery.
    pub success: bool,
    /// On failure.
    pub failure: bool,
    /// When it takes long.
    pub delay: bool,
}

/// What the arguments say.
#[derive(Clone, Debug, Default)]
pub struct Order {
    /// The envelope as far as the arguments tell; `to` holds lists of addresses.
    pub slip: Slip,
    /// Whether the recipients of the header section are added.
    pub from_header: bool,
    /// Whether a line with a lone dot is a line of the text.
    pub dots_are_text: bool,
}

/// A message with its envelope.
#[derive(Clone, Debug)]
pub struct Letter {
    /// The envelope.
    pub slip: Slip,
    /// The content, every line with CR LF, the header section first.
    pub content: Vec<u8>,
}

/// Why there is nothing to send.
#[derive(Debug, thiserror::Error)]
pub enum LetterError {
    /// The input.
    #[error("standard input cannot be read: {0}")]
    Input(#[from] io::Error),
    /// It is too long.
    #[error("the message is longer than {MESSAGE_OCTETS_MAX} octets")]
    TooLong,
    /// Its header section is too long.
    #[error("the header section is longer than {HEADER_OCTETS_MAX} octets")]
    HeaderTooLong,
    /// There is nobody to send it to.
    #[error("no recipients: name them, or write them into To, Cc or Bcc and say -t")]
    NoRecipients,
    /// There are too many.
    #[error("more than {RECIPIENTS_MAX} recipients: send it several times")]
    TooManyRecipients,
    /// Not an address.
    #[error("{address:?} is no address to send to: {why}")]
    Recipient {
        /// What stands there.
        address: String,
        /// What is wrong with it.
        why: MailboxError,
    },
    /// A list that cannot be read.
    #[error("{0:?} is no list of addresses")]
    List(String),
    /// Not an address.
    #[error("{address:?} is no address to send from: {why}")]
    Sender {
        /// What stands there.
        address: String,
        /// What is wrong with it.
        why: MailboxError,
    },
}

/// Reads a message and makes the envelope that the arguments and its header section ask for.
///
/// # Errors
/// Why there is nothing to send.
pub fn compose(input: &mut dyn Read, order: Order) -> Result<Letter, LetterError> {
    let mut raw = Vec::new();
    input.take(MESSAGE_OCTETS_MAX + 1).read_to_end(&mut raw)?;
    if raw.len() as u64 > MESSAGE_OCTETS_MAX {
        return Err(LetterError::TooLong);
    }
    let text = if order.dots_are_text { &raw[..] } else { before_lone_dot(&raw) };
    let (mut fields, text) = split(text)?;
    let mut slip = order.slip;
    let mut to = Vec::new();
    for list in &slip.to {
        add_recipients(list.as_bytes(), &mut to)?;
    }
    if order.from_header {
        let is_resent = fields.iter().any(|field| RESENT.contains(&&*field.name));
        let names = if is_resent { RESENT } else { SENT };
        for field in fields.iter().filter(|field| names.contains(&&*field.name)) {
            add_recipients(&field.octets[field.value()..], &mut to)?;
        }
    }
    if to.is_empty() {
        return Err(LetterError::NoRecipients);
    }
    fields.retain(|field| !matches!(&*field.name, "bcc" | "resent-bcc"));
    let mut content: Vec<u8> = fields.into_iter().flat_map(|field| field.octets).collect();
    content.extend_from_slice(b"\r\n");
    slip.header_octets = content.len() as u64;
    push_text(text, &mut content);
    slip.to = to;
    check_sender(&slip)?;
    slip.eight_bit = !content.is_ascii();
    slip.octets = content.len() as u64;
    Ok(Letter { slip, content })
}

const SENT: &[&str] = &["to", "cc", "bcc"];
const RESENT: &[&str] = &["resent-to", "resent-cc", "resent-bcc"];

/// A name that stands for the host's where only the form of an address matters.
fn some_host() -> Domain {
    "localhost".parse().expect("localhost is a domain")
}

fn add_recipients(list: &[u8], to: &mut Vec<String>) -> Result<(), LetterError> {
    let text = |octets| String::from_utf8_lossy(octets).trim().to_owned();
    for found in addresses::find(list) {
        let Found::Address(range) = found else { return Err(LetterError::List(text(list))) };
        let address = text(&list[range]);
        forward_path(&address, &some_host()).map_err(|why| LetterError::Recipient { address: address.clone(), why })?;
        if !to.contains(&address) {
            to.push(address);
        }
        if to.len() > RECIPIENTS_MAX {
            return Err(LetterError::TooManyRecipients);
        }
    }
    Ok(())
}

fn check_sender(slip: &Slip) -> Result<(), LetterError> {
    let Some(address) = &slip.from else { return Ok(()) };
    let path = reverse_path(slip, &some_host());
    path.map(drop).map_err(|why| LetterError::Sender { address: address.clone(), why })
}

/// Returns a recipient's path, at this host where it has no domain.
///
/// # Errors
/// It is no address.
pub(super) fn forward_path(address: &str, host: &Domain) -> Result<ForwardPath, MailboxError> {
    if address.eq_ignore_ascii_case("postmaster") { address.parse() } else { header::qualified(address, host).parse() }
}

/// Returns the reverse-path, at this host where it has no domain.
///
/// # Errors
/// It is no address.
pub(super) fn reverse_path(slip: &Slip, host: &Domain) -> Result<ReversePath, MailboxError> {
    match slip.from.as_deref() {
        None => Ok(ReversePath::Null),
        Some(address) => header::qualified(address, host).parse(),
    }
}

/// Cuts the input at a line that holds a dot alone.
fn before_lone_dot(raw: &[u8]) -> &[u8] {
    let mut start = 0;
    for line in raw.split_inclusive(|c| *c == b'\n') {
        if line.trim_ascii_end() == b"." && line.starts_with(b".") {
            return &raw[..start];
        }
        start += line.len();
    }
    raw
}

/// Cuts the input into the fields of its header section and the text behind it. A first line that begins an
/// entry of a mailbox file is left out, and text that begins without a header section is all text.
fn split(raw: &[u8]) -> Result<(Vec<Field>, &[u8]), LetterError> {
    let (mut fields, mut at, mut octets): (Vec<Field>, _, _) = (Vec::new(), 0, 0);
    for line in raw.split_inclusive(|c| *c == b'\n') {
        let clean = clean_line(line);
        octets += clean.len();
        if clean == b"\r\n" {
            return Ok((fields, &raw[at + line.len()..]));
        }
        match fields.last_mut() {
            Some(field) if clean.starts_with(b" ") || clean.starts_with(b"\t") => field.octets.extend(clean),
            None if at == 0 && (clean.starts_with(b"From ") || clean.starts_with(b">From ")) => {}
            _ => match Field::begin(clean) {
                Ok(field) => fields.push(field),
                Err(_) => return Ok((fields, &raw[at..])),
            },
        }
        if octets > HEADER_OCTETS_MAX {
            return Err(LetterError::HeaderTooLong);
        }
        at += line.len();
    }
    Ok((fields, &raw[at..]))
}

/// Returns a line of the header section as it is on the wire.
fn clean_line(line: &[u8]) -> Vec<u8> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let end = line.iter().rposition(|c| *c != b'\r').map_or(0, |last| last + 1);
    let octets = line[..end].iter().filter(|c| **c != 0).map(|c| if *c == b'\r' { b' ' } else { *c });
    octets.chain(*b"\r\n").collect()
}

/// Appends text with the line ends of the wire.
fn push_text(mut text: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    while let Some(at) = memchr::memchr3(b'\r', b'\n', 0, text) {
        out.extend_from_slice(&text[..at]);
        let mut end = at + 1;
        if text[at] == b'\r' {
            end += text[end..].iter().take_while(|c| **c == b'\r').count();
            end += usize::from(text.get(end) == Some(&b'\n'));
        }
        if text[at] != 0 {
            out.extend_from_slice(b"\r\n");
        }
        text = &text[end..];
    }
    out.extend_from_slice(text);
    if out.len() > start && !out.ends_with(b"\r\n") {
        out.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(input: &str, to: &[&str], from_header: bool) -> Result<Letter, LetterError> {
        let to = to.iter().map(ToString::to_string).collect();
        let slip = Slip { user: "u".into(), from: Some("u".into()), to, ..Slip::default() };
        compose(&mut input.as_bytes(), Order { slip, from_header, dots_are_text: false })
    }

    fn content(input: &str) -> String {
        String::from_utf8(letter(input, &["a"], false).expect("it is right").content).expect("text")
    }

    #[test]
    fn input_becomes_what_is_on_the_wire() {
        for (input, want) in [
            ("Subject: x\n\nbody\n", "Subject: x\r\n\r\nbody\r\n"),
            ("Subject: x\r\n y\r\n\r\nbody", "Subject: x\r\n y\r\n\r\nbody\r\n"),
            ("From me Mon 1\nSubject: x\n\n.x\n.\nlost", "Subject: x\r\n\r\n.x\r\n"),
            ("just text\n", "\r\njust text\r\n"),
            ("Subject: x\nno field\n", "Subject: x\r\n\r\nno field\r\n"),
            ("\nbody\n", "\r\nbody\r\n"),
            ("", "\r\n"),
            ("Subject: x\n\n1%\r2%\r\r\n3%\0\r\r4\n", "Subject: x\r\n\r\n1%\r\n2%\r\n3%\r\n4\r\n"),
            ("Subject: x\rBcc: evil@x.example\n\n", "Subject: x Bcc: evil@x.example\r\n\r\n"),
            ("Bcc: a, b\n c\nTo: d\nResent-Bcc: e\n\n", "To: d\r\n\r\n"),
        ] {
            assert_eq!(content(input), want, "{input:?}");
        }
    }

    #[test]
    fn recipients_come_from_the_arguments_and_with_t_from_the_header_section() {
        let input = "To: A <a@x.example>, root\nCc: a@x.example\nBcc: b@x.example\n\n";
        let to = |input, to, header| letter(input, to, header).expect("it is right").slip.to;
        assert_eq!(to(input, &["c, d@x.example"], false), ["c", "d@x.example"]);
        assert_eq!(to(input, &["c"], true), ["c", "a@x.example", "root", "b@x.example"]);
        assert_eq!(to("Resent-To: z\nTo: a\n\n", &[], true), ["z"]);
    }

    #[test]
    fn what_cannot_be_sent_is_said() {
        let many = (0..=RECIPIENTS_MAX).map(|n| format!("a{n},")).collect::<String>();
        let long = format!("Subject: {}\n\n", "x ".repeat(HEADER_OCTETS_MAX));
        let folded = format!("Subject: x\n{}\n", " y\n".repeat(HEADER_OCTETS_MAX));
        for (input, to, want) in [
            ("Subject: x\n\n", "", "no recipients"),
            ("", "a b", "no list of addresses"),
            ("", "a@", "no address to send to"),
            ("", "a@b_c..d", "no address to send to"),
            ("", "a\u{1}b", "no address to send to"),
            ("", &many, "more than 1000"),
            (&folded, "a", "the header section is longer"),
            (&long, "a", "the header section is longer"),
        ] {
            let error = letter(input, &[to], true).expect_err(want).to_string();
            assert!(error.contains(want), "{to}: {error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn whatever_comes_in_every_line_ends_as_on_the_wire(input in "[a:\\r\\n\\x00 .é-]{0,60}") {
            let letter = letter(&input, &["a"], false).expect("there is a recipient");
            let content = String::from_utf8_lossy(&letter.content).replace("\r\n", "");
            assert!(!content.contains(['\r', '\n', '\0']));
            assert!(letter.content.ends_with(b"\r\n"));
            assert_eq!(letter.slip.octets, letter.content.len() as u64);
            assert!(letter.content[..letter.slip.header_octets as usize].ends_with(b"\r\n"));
        }
    }
}
