//! The messages that the demo submits: eight kinds as they occur in life, each with content of its
//! own, so that no two are alike.

use lettre::Address;
use lettre::message::header::{ContentTransferEncoding, ContentType};
use lettre::message::{Attachment, Body, Mailbox, Message, MessageBuilder, MultiPart, SinglePart};

/// Who submits; its domain is local to agent a.
pub const SENDER: &str = "demo@field.test";
/// Where the letters go; it is local to agent c.
pub const DESTINATION: &str = "office.test";
/// Who has a mailbox there. One of them needs SMTPUTF8 (RFC 6531).
pub const MAILBOXES: [&str; 3] = ["alice", "bob", "jörg"];

/// How many kinds there are; letters `n` and `n + KINDS` are of one kind.
pub const KINDS: usize = 8;

/// So many letters are enough for every kind.
pub const LETTERS_MIN: usize = KINDS;

/// Octets of the attachment that is kept in a file of its own by the queue, and of the others.
const LARGE_OCTETS: usize = 600_000;
const SMALL_OCTETS: usize = 24_000;

/// A message and its envelope.
#[derive(Clone, Debug)]
pub struct Letter {
    /// What it shows.
    pub kind: &'static str,
    /// Its Message-ID, without the brackets.
    pub message_id: String,
    /// The local-parts of its recipients, each one of [`MAILBOXES`].
    pub recipients: Vec<&'static str>,
    /// The message as it is submitted: CRLF line ends, the last one included.
    pub content: Vec<u8>,
}

/// A kind of letter: its name, how it is written, who gets it.
type Kind = (&'static str, fn(MessageBuilder, usize) -> Vec<u8>, &'static [&'static str]);

const ALL_KINDS: [Kind; KINDS] = [
    ("plain text", plain, &["alice"]),
    ("8-bit text", eight_bit, &["bob"]),
    ("UTF-8 address and subject", international, &["jörg"]),
    ("attachments", attachments, &["alice", "bob"]),
    ("lines of dots", dots, &["alice"]),
    ("HTML and image", html, &["bob"]),
    ("long lines, odd header", odd, &["alice"]),
    ("forwarded message", forwarded, &["alice", "bob", "jörg"]),
];

/// Returns how many copies so many letters make.
pub fn copies(letters: usize) -> usize {
    (0..letters).map(|number| ALL_KINDS[number % KINDS].2.len()).sum()
}

impl Letter {
    /// Writes letter `number` of the run called `run`.
    pub fn write(run: &str, number: usize) -> Letter {
        let (kind, make, recipients) = ALL_KINDS[number % KINDS];
        let message_id = format!("{run}.{number}@field.test");
        let mut builder = Message::builder()
            .from(Mailbox::new(Some("Postroad Demo".to_owned()), address(SENDER)))
            .date_now()
            .message_id(Some(format!("<{message_id}>")));
        for name in recipients {
            builder = builder.to(Mailbox::new(None, recipient(name)));
        }
        let mut content = make(builder, number);
        if !content.ends_with(b"\r\n") {
            content.extend_from_slice(b"\r\n");
        }
        Letter { kind, message_id, recipients: recipients.to_vec(), content }
    }
}

/// Returns the full address of one of [`MAILBOXES`].
pub fn recipient(name: &str) -> Address {
    address(&format!("{name}@{DESTINATION}"))
}

/// Returns the address in a constant.
pub fn address(text: &str) -> Address {
    text.parse().expect("the demo's addresses are valid")
}

fn formatted(message: Result<Message, lettre::error::Error>) -> Vec<u8> {
    message.expect("it has a sender and recipients").formatted()
}

fn plain(builder: MessageBuilder, number: usize) -> Vec<u8> {
    let text = format!(
        "/etc/cron.daily/backup:\r\n\r\n\
         run {number}: 1,284 files, 7.4 GB, 0 errors\r\n\
         oldest snapshot kept: 30 days\r\n"
    );
    let builder = builder.subject(format!("Cron <root@field> backup {number}"));
    formatted(builder.header(ContentType::TEXT_PLAIN).body(text))
}

/// 8BITMIME (RFC 6152): octets above 127 travel as they are.
fn eight_bit(builder: MessageBuilder, number: usize) -> Vec<u8> {
    let text = format!(
        "Liebe Kolleginnen und Kollegen,\r\n\r\nder Lüfter in Schrank {number} läuft wieder; \
         Größe und Schräglage sind geprüft.\r\nÀ bientôt – naïve café, 日本語, Ελλάδα.\r\n"
    );
    let part = SinglePart::builder()
        .header(ContentType::TEXT_PLAIN)
        .header(ContentTransferEncoding::EightBit)
        .body(Body::dangerous_pre_encoded(text.into_bytes(), ContentTransferEncoding::EightBit));
    formatted(builder.subject(format!("Rack {number}: fan replaced")).singlepart(part))
}

/// SMTPUTF8 (RFC 6531) on the envelope, encoded words (RFC 2047) in the header.
fn international(builder: MessageBuilder, number: usize) -> Vec<u8> {
    let subject = format!("Übergabe №{number}: bitte prüfen ✓ 你好");
    formatted(builder.subject(subject).singlepart(SinglePart::plain(format!("Grüße aus dem Feld, {number}\r\n"))))
}

fn attachments(builder: MessageBuilder, number: usize) -> Vec<u8> {
    let row = |row: usize| format!("{row};{};{}.{:02}\r\n", number * 1000 + row, row * 7 % 900, row % 100);
    let table = Attachment::new(format!("readings-{number}.csv"))
        .body((0..400).map(row).collect::<String>(), media_type("text/csv; charset=utf-8"));
    let octets = if (number / KINDS).is_multiple_of(4) { LARGE_OCTETS } else { SMALL_OCTETS };
    let mut random = fastrand::Rng::with_seed(number as u64);
    let binary: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(octets).collect();
    let binary = Attachment::new("trace.bin".to_owned()).body(binary, media_type("application/octet-stream"));
    let parts = MultiPart::mixed()
        .singlepart(SinglePart::plain(format!("Readings of week {number} attached.\r\n")))
        .singlepart(table)
        .singlepart(binary);
    formatted(builder.subject(format!("Readings, week {number}")).multipart(parts))
}

fn media_type(text: &str) -> ContentType {
    ContentType::parse(text).expect("a constant media type")
}

/// Transparency (RFC 5321 §4.5.2): no line of dots ends the message.
fn dots(builder: MessageBuilder, number: usize) -> Vec<u8> {
    let mut text = format!("A scale of dots, {number}:\r\n");
    for length in 0..40 {
        text.push_str(&".".repeat(length));
        text.push_str("\r\n");
    }
    text.push_str(".\r\n.\r\nQUIT\r\n.\r\n");
    formatted(builder.subject(format!("Dots {number}")).header(ContentType::TEXT_PLAIN).body(text))
}

fn html(builder: MessageBuilder, number: usize) -> Vec<u8> {
    let page = format!("<h1>Status {number}</h1><p>All <b>green</b>. <img src=\"cid:dot\"></p>");
    let image = Attachment::new_inline("dot".to_owned()).body(DOT.to_vec(), media_type("image/gif"));
    let related = MultiPart::related().singlepart(SinglePart::html(page)).singlepart(image);
    let text = SinglePart::plain(format!("Status {number}: all green.\r\n"));
    let parts = MultiPart::alternative().singlepart(text).multipart(related);
    formatted(builder.subject(format!("Status page {number}")).multipart(parts))
}

/// A transparent GIF of one pixel.
const DOT: &[u8] = b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff!\xf9\x04\x01\x00\x00\x00\x00,\
                     \x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;";

/// What no composer writes but hosts must carry: lines of 998 octets, folds, tabs, white space at
/// line ends, a field without a value, a body that ends with empty lines.
fn odd(builder: MessageBuilder, number: usize) -> Vec<u8> {
    let builder = builder.subject(format!("Odd {number}")).header(ContentType::TEXT_PLAIN);
    let mut octets = formatted(builder.body(String::new()));
    while octets.ends_with(b"\r\n") {
        octets.truncate(octets.len() - 2);
    }
    let long = "0123456789".repeat(100);
    let long = &long[..998];
    let fields = format!("\r\nX-Folded: one\r\n\ttwo \r\n    three\r\nX-Empty:\r\nX-Number:{number}\r\n\r\n");
    octets.extend_from_slice(fields.as_bytes());
    octets.extend_from_slice(format!("{long}\r\n tab\tand trailing space \r\n{long}\r\n.\r\n\r\n\r\n").as_bytes());
    octets
}

fn forwarded(builder: MessageBuilder, number: usize) -> Vec<u8> {
    let inner = format!(
        "From: Someone Else <someone@else.test>\r\nTo: demo@field.test\r\nSubject: Original {number}\r\n\
         Received: from nowhere by nobody; Thu, 1 Jan 1970 00:00:00 +0000\r\n\r\nThe original text.\r\n--\r\nSomeone\r\n"
    );
    let inner = SinglePart::builder()
        .header(media_type("message/rfc822"))
        .header(ContentTransferEncoding::SevenBit)
        .body(Body::dangerous_pre_encoded(inner.into_bytes(), ContentTransferEncoding::SevenBit));
    let parts = MultiPart::mixed().singlepart(SinglePart::plain("See below.\r\n".to_owned())).singlepart(inner);
    formatted(builder.subject(format!("Fwd: Original {number}")).multipart(parts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_in_wire_form_with_lines_that_may_travel() {
        for number in 0..KINDS * 5 {
            let letter = Letter::write("t", number);
            assert!(letter.content.ends_with(b"\r\n"), "{}", letter.kind);
            let text = String::from_utf8_lossy(&letter.content);
            assert_eq!(text.matches('\n').count(), text.matches("\r\n").count(), "{}", letter.kind);
            assert_eq!(text.matches('\r').count(), text.matches("\r\n").count(), "{}", letter.kind);
            assert!(letter.content.split(|c| *c == b'\n').all(|line| line.len() <= 999), "{}", letter.kind);
            let parsed = mail_parser::MessageParser::default().parse(&letter.content).expect("a message");
            assert_eq!(parsed.message_id(), Some(letter.message_id.as_str()), "{}", letter.kind);
        }
    }

    #[test]
    fn each_kind_is_what_it_says() {
        let content = |number| Letter::write("t", number).content;
        assert!(content(0).is_ascii() && !content(1).is_ascii());
        assert!(content(3).len() > LARGE_OCTETS && content(3 + KINDS).len() < 4 * SMALL_OCTETS);
        assert!(String::from_utf8_lossy(&content(4)).contains("\r\n.\r\n.\r\nQUIT\r\n"));
        assert!(content(6).ends_with(b"\r\n.\r\n\r\n\r\n"));
        assert!(String::from_utf8_lossy(&content(7)).contains("message/rfc822"));
    }
}
