//! A message for `postroad send`: text and attachments as MIME, or octets put into wire form.

use std::path::{Path, PathBuf};

use lettre::Address;
use lettre::message::header::{ContentTransferEncoding, ContentType};
use lettre::message::{Attachment, Body, Mailbox, Message, MultiPart, SinglePart};

use super::{Failure, exit};

/// What a message is made of.
pub(super) struct Draft<'a> {
    pub(super) from: &'a Address,
    pub(super) to: &'a [Address],
    pub(super) subject: &'a str,
    pub(super) body: String,
    pub(super) attach: &'a [PathBuf],
}

/// Makes a message in wire form.
pub(super) fn compose(draft: Draft<'_>) -> Result<Vec<u8>, Failure> {
    let mut builder = Message::builder()
        .from(Mailbox::new(None, draft.from.clone()))
        .subject(draft.subject)
        .date_now()
        .message_id(None);
    for address in draft.to {
        builder = builder.to(Mailbox::new(None, address.clone()));
    }
    let text = SinglePart::plain(draft.body);
    let message = if draft.attach.is_empty() {
        builder.singlepart(text)
    } else {
        let mut parts = MultiPart::mixed().singlepart(text);
        for file in draft.attach {
            parts = parts.singlepart(attachment(file)?);
        }
        builder.multipart(parts)
    };
    let message = message.map_err(|fault| Failure::new(exit::FAILED, format!("no message can be made: {fault}")))?;
    Ok(message.formatted())
}

fn attachment(file: &Path) -> Result<SinglePart, Failure> {
    let octets = std::fs::read(file).map_err(|fault| super::unreadable(file, &fault))?;
    let name = file.file_name().unwrap_or(file.as_os_str()).to_string_lossy().into_owned();
    let content_type = ContentType::parse(media_type(&name)).expect("a constant media type");
    // In base64 the file arrives as it is; as text its line ends would have to change.
    let body = Body::new_with_encoding(octets, ContentTransferEncoding::Base64).expect("base64 encodes everything");
    Ok(Attachment::new(name).body(body, content_type))
}

/// Enough that common files open at a click; the rest is octets.
fn media_type(name: &str) -> &'static str {
    match name.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase()).as_deref() {
        Some("txt" | "log" | "md") => "text/plain; charset=utf-8",
        Some("csv") => "text/csv; charset=utf-8",
        Some("html" | "htm") => "text/html; charset=utf-8",
        Some("json") => "application/json",
        Some("pdf") => "application/pdf",
        Some("zip") => "application/zip",
        Some("gz" | "tgz") => "application/gzip",
        Some("png") => "image/png",
        Some("jpg" | "jpeg") => "image/jpeg",
        Some("gif") => "image/gif",
        _ => "application/octet-stream",
    }
}

/// Gives every line the line end of the wire; files mostly have LF. Nothing else is changed.
pub(super) fn wire_form(octets: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(octets.len() + octets.len() / 32);
    for line in octets.split_inclusive(|octet| *octet == b'\n') {
        match line.strip_suffix(b"\n") {
            Some(text) => {
                out.extend_from_slice(text.strip_suffix(b"\r").unwrap_or(text));
                out.extend_from_slice(b"\r\n");
            }
            None => out.extend_from_slice(line),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_ends_become_those_of_the_wire_and_nothing_else_changes() {
        assert_eq!(wire_form(b"a\nb\r\n.\n\nend"), b"a\r\nb\r\n.\r\n\r\nend");
        assert_eq!(wire_form(b"a\rb\r\r\n"), b"a\rb\r\r\n");
        assert_eq!(wire_form(b""), b"");
    }

    #[test]
    fn a_message_with_an_attachment_has_both_parts_and_only_crlf() {
        let dir = tempfile::tempdir().expect("a scratch directory");
        let file = dir.path().join("größe.csv");
        std::fs::write(&file, "a;b\n1;2\n").expect("written");
        let (from, to) = ("a@x.test".parse().expect("valid"), vec!["b@x.test".parse().expect("valid")]);
        let draft =
            Draft { from: &from, to: &to, subject: "Größe", body: "sieh an\n.\n".to_owned(), attach: &[file] };
        let text = compose(draft).expect("composed");
        let parsed = mail_parser::MessageParser::default().parse(&text).expect("a message");
        assert_eq!(parsed.subject(), Some("Größe"));
        let attached: Vec<&[u8]> = parsed.attachments().map(|part| part.contents()).collect();
        assert_eq!(attached, [b"a;b\n1;2\n"]);
        assert!(wire_form(&text) == text, "{}", String::from_utf8_lossy(&text));
    }
}
