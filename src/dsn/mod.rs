//! Delivery status notifications: what a sender is told, and when (RFC 3461, RFC 3464; UTF-8:
//! RFC 6533; `Auto-Submitted`: RFC 3834).
//!
//! Pure text and rules: nothing here reads a clock, a disk or the network. The dispatcher asks
//! [`due_notifications`] who is to be told, composes one message each, commits it to the queue like
//! all mail, and only then marks the recipients as notified. About mail with the null reverse-path
//! nobody is told anything.

mod due;
mod returned;
mod status;
mod text;
mod words;

use lettre::message::header::{ContentTransferEncoding, ContentType, HeaderName, HeaderValue, Headers, Subject};
use lettre::message::{Body, MultiPart, MultiPartKind, SinglePart};
use postroad_queue::{Item, UnixMillis};
use postroad_smtp::trace;
use postroad_smtp::{Domain, Envelope, ForwardPath, MailParams, Mailbox, Notify, Recipient};

pub use due::{Due, Notice, Notification, Policy, Terms, due_notifications, expire};
pub use returned::{HEADER_OCTETS_MAX, octets_wanted};

use returned::Returned;

/// What a notification is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Some recipients will never get the message.
    Failure,
    /// Some recipients have not got it yet.
    Delay,
    /// Some recipients have got it, or it was passed on to a host that tells nothing.
    Success,
}

/// What happened to one recipient (RFC 3464 §2.3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It will not be delivered.
    Failed,
    /// It is still tried.
    Delayed,
    /// It is in the mailbox.
    Delivered,
    /// A host that does not know of notifications took it over (RFC 3461 §5.2.2).
    Relayed,
}

/// A notification, ready to be committed to the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Composed {
    /// Null reverse-path, one recipient, `NOTIFY=NEVER` (RFC 3461 §7.1).
    pub envelope: Envelope,
    /// The message: every line ends in CRLF.
    pub content: Vec<u8>,
}

/// Composes a notification about `item`, from this host at `now`. `front` is the start of the
/// item's content: the [`octets_wanted`] octets. Returns nothing when the item has the null
/// reverse-path.
pub fn compose(
    item: &Item,
    notification: &Notification,
    hostname: &Domain,
    policy: &Policy,
    front: &[u8],
    now: UnixMillis,
) -> Option<Composed> {
    let sender = item.envelope.reverse_path.mailbox()?;
    let about = About { item, notification, hostname, now };
    let returned = Returned::of(item, notification.kind, policy, front);
    let status = status::write(&about);
    let boundary = boundary(&about, front);
    let mut whole = MultiPart::builder().kind(MultiPartKind::Mixed).build();
    *whole.headers_mut() = header(&about, sender, &boundary, front);
    let whole = whole.singlepart(SinglePart::plain(words::write(&about, &returned, front))).singlepart(
        SinglePart::builder()
            .header(content_type(status.content_type()))
            .body(Body::dangerous_pre_encoded(status.octets, encoding(status.is_eight_bit))),
    );
    let content = with_original(whole.formatted(), &returned, &boundary);
    let params = MailParams {
        eight_bit: !content.is_ascii(),
        smtputf8: !sender.is_ascii(),
        // RFC 6710: a notification is as urgent as what it is about.
        priority: item.envelope.params.priority,
        ..MailParams::default()
    };
    let to =
        Recipient { forward_path: ForwardPath::Mailbox(sender.clone()), notify: Some(Notify::NEVER), original: None };
    let envelope = Envelope::new(postroad_smtp::ReversePath::Null, params, vec![to]);
    Some(Composed { envelope: envelope.expect("there is one recipient"), content })
}

/// What every part of a notification is written from.
struct About<'a> {
    item: &'a Item,
    notification: &'a Notification,
    hostname: &'a Domain,
    now: UnixMillis,
}

impl About<'_> {
    fn subject(&self) -> &'static str {
        match self.notification.kind {
            Kind::Failure => "Your message could not be delivered",
            Kind::Delay => "Your message is delayed",
            Kind::Success if !self.has(Action::Delivered) => "Your message was passed on",
            Kind::Success => "Your message was delivered",
        }
    }

    /// Returns whether it goes to an address that every host takes.
    fn is_to_ascii(&self) -> bool {
        self.item.envelope.reverse_path.mailbox().is_none_or(Mailbox::is_ascii)
    }

    /// Returns whether it is about a recipient to which this happened.
    fn has(&self, action: Action) -> bool {
        self.notification.notices.iter().any(|notice| notice.action == action)
    }
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Failure => "failure",
            Kind::Delay => "delay",
            Kind::Success => "success",
        }
    }
}

/// Writes the header section. Our own words go through the builder; what comes from the sender was
/// checked and goes in as it is, for the builder knows fewer addresses than RFC 5321.
fn header(about: &About<'_>, sender: &Mailbox, boundary: &str, front: &[u8]) -> Headers {
    let host = about.hostname;
    let (id, kind, now) = (about.item.id, about.notification.kind, about.now);
    let mut headers = Headers::new();
    let mut raw = |name: &'static str, value: String| {
        let name = HeaderName::new_from_ascii_str(name);
        headers.insert_raw(HeaderValue::dangerous_new_pre_encoded(name, value.clone(), value));
    };
    raw("Date", date(now));
    raw("From", format!("Mail Delivery System <MAILER-DAEMON@{host}>"));
    raw("To", format!("<{sender}>"));
    raw("Message-ID", format!("<{id}.{}.{}@{host}>", now.0, kind.name()));
    if let Some(original) = words::message_id(front) {
        raw("In-Reply-To", format!("<{original}>"));
        raw("References", format!("<{original}>"));
    }
    raw("Auto-Submitted", "auto-replied".to_owned());
    raw("MIME-Version", "1.0".to_owned());
    headers.set(Subject::from(about.subject().to_owned()));
    headers.set(content_type(&format!("multipart/report; report-type=delivery-status; boundary=\"{boundary}\"")));
    headers
}

/// Puts the original in as it is, before the closing boundary: the builder never sees it.
fn with_original(mut message: Vec<u8>, returned: &Returned<'_>, boundary: &str) -> Vec<u8> {
    let closing = format!("--{boundary}--\r\n");
    message.truncate(message.len() - closing.len());
    let encoding = encoding(!returned.octets.is_ascii());
    let head = format!(
        "--{boundary}\r\nContent-Type: {}\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n",
        returned.content_type
    );
    message.extend_from_slice(head.as_bytes());
    message.extend_from_slice(returned.octets);
    let end: &[u8] = if returned.octets.ends_with(b"\r\n") { b"" } else { b"\r\n" };
    message.extend_from_slice(end);
    message.extend_from_slice(b"\r\n");
    message.extend_from_slice(closing.as_bytes());
    message
}

/// Returns a boundary that does not occur in what is returned.
fn boundary(about: &About<'_>, front: &[u8]) -> String {
    let start = format!("=_{}.{}", about.item.id, about.now.0);
    let candidates = (0u32..).map(|n| format!("{start}.{n}"));
    let mut free = candidates.filter(|candidate| memchr::memmem::find(front, candidate.as_bytes()).is_none());
    free.next().expect("a content of finite length has finitely many of them")
}

fn content_type(text: &str) -> ContentType {
    ContentType::parse(text).expect("ours are well-formed")
}

fn encoding(is_eight_bit: bool) -> ContentTransferEncoding {
    if is_eight_bit { ContentTransferEncoding::EightBit } else { ContentTransferEncoding::SevenBit }
}

/// Writes a time as RFC 5322 §3.3 has it, in UTC.
fn date(at: UnixMillis) -> String {
    trace::Date(at.0).to_string()
}
