//! The part for people: what happened to which recipient, in whose words, and what can be done.

use std::fmt::Write;

use mail_parser::{Message, MessageParser};
use postroad_queue::Report;
use postroad_smtp::{ForwardPath, Recipient, Status};

use super::due::Notice;
use super::returned::Returned;
use super::status::{is_expired, report_of, status_of};
use super::text::{QUOTE_OCTETS_MAX, quote};
use super::{About, Action, Kind, date};

/// Recipients described one by one; of more, only the addresses stand in the other part.
const RECIPIENTS_DESCRIBED_MAX: usize = 100;
const SUBJECT_CHARS_MAX: usize = 100;
/// Lines of a reply repeated; the other part has the rest.
const REPLY_LINES_MAX: usize = 20;

/// Writes the part; lines end in `\n`.
pub(super) fn write(about: &About<'_>, returned: &Returned<'_>, front: &[u8]) -> String {
    let mut out = format!("This is the mail system at {}.\n\n", about.hostname);
    line(&mut out, &opening(about, front));
    let notices = &about.notification.notices;
    for notice in notices.iter().take(RECIPIENTS_DESCRIBED_MAX) {
        describe(&mut out, about, notice);
    }
    if let Some(more) = notices.len().checked_sub(RECIPIENTS_DESCRIBED_MAX).filter(|more| *more > 0) {
        line(&mut out, &format!("\nAnd {more} more: the attached report names them all."));
    }
    out.push('\n');
    line(&mut out, &closing(about, returned));
    let (host, id) = (about.hostname, about.item.id);
    line(&mut out, &format!("\nFor help, write to postmaster@{host} and quote the id {id}."));
    out
}

/// Returns the identifier of the original, if it has one that is safe to repeat in a field.
pub(super) fn message_id(front: &[u8]) -> Option<String> {
    const MESSAGE_ID_OCTETS_MAX: usize = 512;
    let message = parse_header(front)?;
    let id = message.message_id()?;
    let is_safe = id.len() <= MESSAGE_ID_OCTETS_MAX && id.contains('@');
    let is_clean = |c: u8| c.is_ascii_graphic() && !matches!(c, b'<' | b'>' | b'(' | b')');
    (is_safe && id.bytes().all(is_clean)).then(|| id.to_owned())
}

fn parse_header(front: &[u8]) -> Option<Message<'_>> {
    let end = front.len().min(super::returned::HEADER_OCTETS_MAX as usize);
    MessageParser::new().with_message_ids().with_mime_headers().header_text("Subject").parse_headers(&front[..end])
}

fn opening(about: &About<'_>, front: &[u8]) -> String {
    let what = match parse_header(front).as_ref().and_then(Message::subject).filter(|subject| !subject.is_empty()) {
        Some(subject) => {
            let short: String = subject.chars().take(SUBJECT_CHARS_MAX).collect();
            let dots = if short.len() < subject.len() { "..." } else { "" };
            format!("Your message \"{}{dots}\"", quote(&short))
        }
        None => "Your message".to_owned(),
    };
    let arrived = date(about.item.arrived);
    let then = match about.notification.kind {
        Kind::Failure => "could not be delivered to:",
        Kind::Delay => "has not been delivered yet to:",
        Kind::Success if !about.has(Action::Delivered) => "was passed on towards:",
        Kind::Success if about.has(Action::Relayed) => "was delivered or passed on to:",
        Kind::Success => "has reached:",
    };
    format!("{what}, accepted here on {arrived}, {then}")
}

fn describe(out: &mut String, about: &About<'_>, notice: &Notice) {
    let recipient = &about.item.envelope.recipients()[notice.recipient];
    let report = report_of(&about.item.state.recipients[notice.recipient]);
    line(out, &format!("\n  {}", address(recipient, about)));
    match (notice.action, report) {
        (Action::Delivered, _) => line(out, "    It was delivered into the mailbox."),
        (Action::Relayed, report) => {
            let host = report.and_then(|report| report.remote.as_deref()).unwrap_or("the next host");
            // Asked for with BY, it says nothing of the host (RFC 2852 §4.1).
            let silent = if about.item.deliver_by().is_some() { "" } else { ", which sends no notice of delivery" };
            line(out, &format!("    It was passed on to {}{silent}.", quote(host)));
        }
        (Action::Delayed, None) => line(out, "    The next host could not be reached so far."),
        (Action::Failed | Action::Delayed, Some(report)) => said(out, report),
        (Action::Failed, None) => {}
    }
    if notice.action == Action::Failed {
        if is_expired(report) {
            line(out, "    It was tried again and again until the time for it ran out.");
        }
        let is_ours = report.is_some_and(|report| report.remote.is_none());
        let status = status_of(about.item, notice.action, report);
        line(out, &format!("    {}", advice(status, is_expired(report), is_ours)));
    }
}

/// Repeats what was said, line by line.
fn said(out: &mut String, report: &Report) {
    match &report.remote {
        Some(remote) => line(out, &format!("    {} said:", quote(remote))),
        None => line(out, "    This host found:"),
    }
    let mut left = QUOTE_OCTETS_MAX;
    let code = report.reply.code;
    let status = report.reply.status.map(|status| format!(" {status}")).unwrap_or_default();
    for (n, text) in report.reply.text.split('\n').take(REPLY_LINES_MAX).enumerate() {
        let words = quote(text);
        line(out, &if n == 0 { format!("      {code}{status} {words}") } else { format!("      {words}") });
        left = left.saturating_sub(words.len() + 1);
        if left == 0 {
            break;
        }
    }
}

fn address(recipient: &Recipient, about: &About<'_>) -> String {
    let address = match &recipient.forward_path {
        ForwardPath::Postmaster => format!("<postmaster@{}>", about.hostname),
        ForwardPath::Mailbox(mailbox) => format!("<{}>", quote(&mailbox.to_string())),
    };
    match &recipient.original {
        Some(original) if !address[1..].starts_with(&*original.address) => {
            format!("{address} (you wrote to {})", quote(&original.address))
        }
        _ => address,
    }
}

/// Returns what a sender can do about a failure (RFC 3463 §3) that the next host said, or this one (`is_ours`).
fn advice(status: Status, is_expired: bool, is_ours: bool) -> &'static str {
    if is_expired {
        return "You may send it again later, or reach the recipient in another way.";
    }
    match (status.subject, status.detail) {
        (1, _) => "Please check the address for mistakes before you send it again.",
        (2, 2) => "The mailbox is full: please tell the recipient in another way.",
        (3, 4) | (2, 3) => "The message is too large there: please send less at once.",
        (2, _) => "The mailbox takes no mail: please reach the recipient in another way.",
        (3, _) => "The recipient's mail system has a problem: please try again later.",
        (4, 7) => "The time that was given for its delivery is too short: please send it again with more, or without.",
        (4, _) => "The recipient's mail system could not be reached: please check the domain, or try again later.",
        (5, _) => "The two mail systems did not understand each other: please tell your postmaster.",
        (6, _) => "The recipient's mail system does not take this kind of content: please send it in another form.",
        (7, _) if is_ours => "It was not sent on from here: the postmaster named below can tell you why.",
        (7, _) => "The recipient's mail system refuses it by its own rules: only its postmaster can change that.",
        _ => "Please check the address, or reach the recipient in another way.",
    }
}

fn closing(about: &About<'_>, returned: &Returned<'_>) -> String {
    let attached = match returned.is_full {
        true => "The message is attached.",
        false => "The header of the message is attached.",
    };
    let by = match about.item.deliver_by() {
        Some(by) => format!("You asked for delivery by {}. ", date(by)),
        None => String::new(),
    };
    match about.notification.kind {
        Kind::Failure => format!("{by}No more attempts will be made for these recipients. {attached}"),
        Kind::Delay => {
            let longest = about.notification.notices.iter().map(|notice| notice.until).max();
            let until = date(longest.expect("a notification is about somebody"));
            let told = if tells_failure(about) { ", and you will be told if it fails" } else { "" };
            format!("{by}You need not do anything: it will be tried until {until}{told}. {attached}")
        }
        Kind::Success => format!("You asked for this notice. {attached}"),
    }
}

/// Whether the sender hears of it should any of these recipients fail.
fn tells_failure(about: &About<'_>) -> bool {
    let recipients = about.item.envelope.recipients();
    about.notification.notices.iter().all(|notice| recipients[notice.recipient].wants().failure)
}

/// Adds a line, folded at spaces; what follows a fold stands as far in as the line began.
fn line(out: &mut String, text: &str) {
    const COLUMNS: usize = 72;
    let body = text.trim_start_matches('\n');
    out.extend(text.chars().take_while(|c| *c == '\n'));
    let indent = &body[..body.len() - body.trim_start_matches(' ').len()];
    out.push_str(indent);
    let mut column = indent.len();
    for (n, word) in body.split(' ').filter(|word| !word.is_empty()).enumerate() {
        let width = word.chars().count();
        if n > 0 && column + 1 + width > COLUMNS {
            write!(out, "\n{indent}").expect("a String takes all");
            column = indent.len();
        } else if n > 0 {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += width;
    }
    out.push('\n');
}
