//! The machine-readable part: `message/delivery-status` (RFC 3464 §2), or its UTF-8 form
//! `message/global-delivery-status` (RFC 6533 §6) when an address needs it and the sender's address shows that
//! it gets there; otherwise addresses are in ASCII (`utf-8-addr-xtext`, RFC 6533 §3).

use std::borrow::Cow;

use postroad_queue::{Item, RecipientState, Report};
use postroad_smtp::{Domain, ForwardPath, Host, Recipient, Severity, Status};

use super::due::Notice;
use super::text::{field, quote, quote_ascii};
use super::{About, Action, date};

/// The part, written.
pub(super) struct StatusPart {
    pub octets: Vec<u8>,
    /// Whether it is the UTF-8 form.
    pub is_eight_bit: bool,
}

/// Writes the part.
pub(super) fn write(about: &About<'_>) -> StatusPart {
    let recipients = about.item.envelope.recipients();
    let mut named = about.notification.notices.iter().map(|notice| &recipients[notice.recipient]);
    // To a sender whose own address is ASCII the way back may not know SMTPUTF8.
    let is_utf8 = !about.is_to_ascii() && named.any(|recipient| !recipient.forward_path.is_ascii());
    let mut out = String::new();
    message_fields(&mut out, about, is_utf8);
    for notice in &about.notification.notices {
        out.push_str("\r\n");
        recipient_fields(&mut out, about, notice, is_utf8);
    }
    StatusPart { is_eight_bit: !out.is_ascii(), octets: out.into_bytes() }
}

impl StatusPart {
    pub fn content_type(&self) -> &'static str {
        if self.is_eight_bit { "message/global-delivery-status" } else { "message/delivery-status" }
    }
}

fn message_fields(out: &mut String, about: &About<'_>, is_utf8: bool) {
    let item = about.item;
    if let Some(envid) = &item.envelope.params.envid {
        field(out, "Original-Envelope-Id", &quoted(envid, is_utf8));
    }
    field(out, "Reporting-MTA", &format!("dns; {}", about.hostname));
    if let Some(helo) = received_from(item) {
        field(out, "Received-From-MTA", &format!("dns; {helo}"));
    }
    field(out, "Arrival-Date", &date(item.arrived));
    if let Some(release) = item.envelope.params.release {
        field(out, "Future-Release-Request", &release.to_string());
    }
    if let Some(by) = item.deliver_by() {
        field(out, "Deliver-By-Date", &date(by));
    }
}

/// Returns the name the client gave, where it is one.
fn received_from(item: &Item) -> Option<Domain> {
    item.origin.helo.as_ref()?.parse().ok()
}

fn recipient_fields(out: &mut String, about: &About<'_>, notice: &Notice, is_utf8: bool) {
    let recipient = &about.item.envelope.recipients()[notice.recipient];
    let state = &about.item.state.recipients[notice.recipient];
    let report = report_of(state);
    if let Some(original) = &recipient.original {
        let address = quoted(&original.address, is_utf8);
        field(out, "Original-Recipient", &format!("{}; {address}", quote_ascii(&original.addr_type)));
    }
    field(out, "Final-Recipient", &final_recipient(recipient, about.hostname, is_utf8));
    field(out, "Action", action_word(notice.action));
    field(out, "Status", &status_of(about.item, notice.action, report).to_string());
    if let Some(remote) = report.and_then(|report| report.remote.as_deref()) {
        field(out, "Remote-MTA", &remote_mta(remote));
    }
    if let Some(report) = report {
        let reply = quoted(&report.reply.to_string(), is_utf8);
        // Of type smtp are replies of another host alone (RFC 3464 §2.3.6).
        let who = if report.remote.is_some() { "smtp" } else { "X-Postroad" };
        field(out, "Diagnostic-Code", &format!("{who}; {reply}"));
        field(out, "Last-Attempt-Date", &date(report.at));
    }
    field(out, "Final-Log-ID", &about.item.id.to_string());
    if notice.action == Action::Delayed {
        field(out, "Will-Retry-Until", &date(notice.until));
    }
}

/// Returns what was said last about a recipient.
pub(super) fn report_of(state: &RecipientState) -> Option<&Report> {
    match state {
        RecipientState::Pending { last, .. } => last.as_ref(),
        RecipientState::Delivered { report, .. } | RecipientState::Failed { report, .. } => Some(report),
    }
}

/// Returns the address as it was used, with its type (RFC 3464 §2.3.2, RFC 6533 §3).
fn final_recipient(recipient: &Recipient, hostname: &Domain, is_utf8: bool) -> String {
    match &recipient.forward_path {
        ForwardPath::Postmaster => format!("rfc822; postmaster@{hostname}"),
        ForwardPath::Mailbox(mailbox) if mailbox.is_ascii() => format!("rfc822; {mailbox}"),
        ForwardPath::Mailbox(mailbox) => format!("utf-8; {}", quoted(&mailbox.to_string(), is_utf8)),
    }
}

fn action_word(action: Action) -> &'static str {
    match action {
        Action::Failed => "failed",
        Action::Delayed => "delayed",
        Action::Delivered => "delivered",
        Action::Relayed => "relayed",
    }
}

/// Returns the status that goes with the action. A failure after a transient reply is one for lack
/// of time: 4.4.7, "delivery time expired" (RFC 3463 §3.5), or 5.4.7 when it was the sender's own
/// time (RFC 2852 §4.1). A status whose class contradicts the action is replaced by the general one.
pub(super) fn status_of(item: &Item, action: Action, report: Option<&Report>) -> Status {
    let class = match action {
        Action::Failed if is_expired(report) && item.returns_late() => return Status::new(5, 4, 7),
        Action::Failed if is_expired(report) => return Status::new(4, 4, 7),
        Action::Failed => 5,
        Action::Delayed => 4,
        Action::Delivered | Action::Relayed => 2,
    };
    let said = report.and_then(|report| report.reply.status);
    said.filter(|status| status.class == class).unwrap_or(Status::new(class, 0, 0))
}

/// Returns whether the time ran out, rather than that anybody refused.
pub(super) fn is_expired(report: Option<&Report>) -> bool {
    report.is_some_and(|report| report.reply.severity() == Severity::Transient)
}

/// Returns the host of `name [address]`, with the type its name has.
fn remote_mta(remote: &str) -> String {
    let name = remote.split_once(" [").map_or(remote, |(name, _)| name);
    match name.parse::<Host>() {
        Ok(host) => format!("dns; {host}"),
        Err(_) => format!("x-local; {}", quote_ascii(name)),
    }
}

fn quoted(text: &str, is_utf8: bool) -> Cow<'static, str> {
    Cow::Owned(if is_utf8 { quote(text) } else { quote_ascii(text) })
}
