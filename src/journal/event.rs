//! What the journal holds: an event is a record of a kind, a time, a queue id and fields, each with a
//! number and a length. Written here into a buffer, and read back; `docs/journal-format.md` has the
//! octets.
//!
//! Kinds and fields that a reader does not know are skipped, so new ones need no new version. Nothing
//! that is read is trusted: what does not hold together is no event.

use std::fmt::{self, Write as _};
use std::net::IpAddr;

use postroad_queue::{Item, Origin, QueueId, UnixMillis};
use postroad_smtp::{PassageToken, Reply};

/// Octets of a record in front of its fields: length, kind, time, queue id.
const HEAD_OCTETS: usize = 4 + 1 + 8 + 8;
/// A record is ended and the recipients go on in another one behind so many octets.
const RECORD_OCTETS_FULL: usize = 32 * 1024;
/// The longest text kept of a reply or a name, in octets.
const TEXT_OCTETS_MAX: usize = 2048;
/// The octet behind which a step between places has four of its own.
const WIDE_STEP: u8 = 255;

/// What happened to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// It was committed to the queue.
    Accepted = 1,
    /// More of the recipients it was accepted for.
    Recipients = 2,
    /// A next hop or a mailbox took recipients over.
    Delivered = 3,
    /// A transient answer.
    Deferred = 4,
    /// A permanent answer.
    Failed = 5,
    /// Recipients were given up because their time was over.
    Expired = 6,
    /// No attempt until it is released.
    Held = 7,
    /// A hold was ended.
    Released = 8,
    /// Recipients were given up without a notification.
    Removed = 9,
    /// Recipients were given up and the sender is notified.
    Bounced = 10,
    /// A notification was committed to the queue.
    Notified = 11,
    /// It left the queue: nothing was left to do.
    Retired = 12,
    /// It was found damaged and set aside.
    SetAside = 13,
    /// A member of the mesh on the way for less could not be reached: recipients went another way.
    Diverted = 14,
}

impl Kind {
    const ALL: [Kind; 14] = [
        Kind::Accepted,
        Kind::Recipients,
        Kind::Delivered,
        Kind::Deferred,
        Kind::Failed,
        Kind::Expired,
        Kind::Held,
        Kind::Released,
        Kind::Removed,
        Kind::Bounced,
        Kind::Notified,
        Kind::Retired,
        Kind::SetAside,
        Kind::Diverted,
    ];

    fn from_octet(octet: u8) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| *kind as u8 == octet)
    }
}

/// Numbers of fields.
mod field {
    pub const PLACES: u8 = 1;
    pub const REMOTE: u8 = 2;
    pub const REPLY: u8 = 3;
    pub const BY: u8 = 4;
    pub const OTHER: u8 = 5;
    pub const TOOK_MS: u8 = 7;
    pub const WORD: u8 = 8;
    pub const PASSAGE: u8 = 16;
    pub const MESSAGE_ID: u8 = 17;
    pub const REVERSE_PATH: u8 = 18;
    pub const RECIPIENT: u8 = 19;
    pub const OCTETS: u8 = 20;
    pub const PEER: u8 = 21;
    pub const HELO: u8 = 22;
    pub const USER: u8 = 23;
    pub const PROTOCOL: u8 = 24;
    pub const SESSION: u8 = 25;
}

/// Anything else that happened, to be written. What is not said is left at its default.
#[derive(Clone, Copy, Debug, Default)]
pub struct Note<'a> {
    /// Places of the recipients that it concerns; empty for all there are.
    pub places: &'a [usize],
    /// The host that answered, as `name [address]`.
    pub remote: Option<&'a str>,
    /// What was answered.
    pub reply: Option<&'a Reply>,
    /// What was said, where it is no reply of its own.
    pub said: Option<&'a str>,
    /// Who did it.
    pub by: Option<&'a str>,
    /// The message that came of it.
    pub other: Option<QueueId>,
    /// How long it took, in milliseconds.
    pub took_ms: Option<u32>,
    /// What kind of notification it is, or where the message lies now.
    pub word: Option<&'a str>,
}

/// An event that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub at: UnixMillis,
    /// Of which message.
    pub id: QueueId,
    /// What.
    pub kind: Kind,
    /// Places of the recipients that it concerns; empty for all there are.
    pub places: Vec<usize>,
    /// The host that answered.
    pub remote: Option<String>,
    /// What was answered, on one line.
    pub reply: Option<String>,
    /// Who did it.
    pub by: Option<String>,
    /// The message that came of it.
    pub other: Option<QueueId>,
    /// How long it took, in milliseconds.
    pub took_ms: Option<u32>,
    /// What kind of notification it is, or where the message lies now.
    pub word: Option<String>,
}

/// How a message was accepted, as it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accepted {
    /// When.
    pub at: UnixMillis,
    /// Its way through the mesh so far: its id there, where it came in, the nodes it had visited.
    pub passage: Option<String>,
    /// Its Message-ID, without angle brackets.
    pub message_id: Option<String>,
    /// The reverse-path without brackets, `<>` when null.
    pub from: String,
    /// Whom it was for, in the envelope's order.
    pub recipients: Vec<String>,
    /// Octets of content.
    pub octets: u64,
    /// Who handed it over.
    pub origin: Origin,
}

/// Appends that a message was accepted to `out`, as one record or, with very many recipients, several.
pub fn put_acceptance(out: &mut Vec<u8>, item: &Item, message_id: &[u8]) {
    let (at, id, origin) = (item.arrived, item.id, &item.origin);
    let mut record = Record::begin(out, Kind::Accepted, at, id);
    let passage = item.envelope.params.passage.as_ref().map_or("", PassageToken::as_str);
    record.text(field::PASSAGE, passage.as_bytes());
    record.text(field::MESSAGE_ID, message_id);
    if let Some(mailbox) = item.envelope.reverse_path.mailbox() {
        record.show(field::REVERSE_PATH, format_args!("{mailbox}"));
    }
    record.number(field::OCTETS, item.content_octets);
    match origin.peer {
        Some(IpAddr::V4(ip)) => record.octets(field::PEER, &ip.octets()),
        Some(IpAddr::V6(ip)) => record.octets(field::PEER, &ip.octets()),
        None => {}
    }
    record.text(field::HELO, origin.helo.as_deref().unwrap_or_default().as_bytes());
    record.text(field::USER, origin.user.as_deref().unwrap_or_default().as_bytes());
    record.text(field::PROTOCOL, origin.protocol.as_bytes());
    record.text(field::SESSION, origin.session.as_bytes());
    for recipient in item.envelope.recipients() {
        if record.len() >= RECORD_OCTETS_FULL {
            record.end();
            record = Record::begin(out, Kind::Recipients, at, id);
        }
        match recipient.forward_path.mailbox() {
            Some(mailbox) => record.show(field::RECIPIENT, format_args!("{mailbox}")),
            None => record.octets(field::RECIPIENT, b"postmaster"),
        }
    }
    record.end();
}

/// Appends anything else that happened to `out`.
pub fn put_note(out: &mut Vec<u8>, at: UnixMillis, id: QueueId, kind: Kind, note: &Note<'_>) {
    let mut record = Record::begin(out, kind, at, id);
    record.places(note.places);
    record.text(field::REMOTE, note.remote.unwrap_or_default().as_bytes());
    if let Some(reply) = note.reply {
        record.show(field::REPLY, format_args!("{reply}"));
    }
    record.text(field::REPLY, note.said.unwrap_or_default().as_bytes());
    record.text(field::BY, note.by.unwrap_or_default().as_bytes());
    record.text(field::WORD, note.word.unwrap_or_default().as_bytes());
    if let Some(other) = note.other {
        record.number(field::OTHER, other.to_u64());
    }
    if let Some(ms) = note.took_ms {
        record.octets(field::TOOK_MS, &ms.to_le_bytes());
    }
    record.end();
}

/// A record that is being written at the end of a buffer.
struct Record<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
}

impl<'a> Record<'a> {
    fn begin(out: &'a mut Vec<u8>, kind: Kind, at: UnixMillis, id: QueueId) -> Record<'a> {
        let start = out.len();
        let mut head = [0; HEAD_OCTETS];
        head[4] = kind as u8;
        head[5..13].copy_from_slice(&at.0.to_le_bytes());
        head[13..].copy_from_slice(&id.to_u64().to_le_bytes());
        out.extend_from_slice(&head);
        Record { out, start }
    }

    fn len(&self) -> usize {
        self.out.len() - self.start
    }

    fn octets(&mut self, field: u8, octets: &[u8]) {
        let length = u16::try_from(octets.len()).expect("no field is longer than TEXT_OCTETS_MAX");
        let [low, high] = length.to_le_bytes();
        self.out.extend_from_slice(&[field, low, high]);
        self.out.extend_from_slice(octets);
    }

    fn number(&mut self, field: u8, number: u64) {
        self.octets(field, &number.to_le_bytes());
    }

    /// Writes a text, unless it is empty; of a very long one the beginning.
    fn text(&mut self, field: u8, text: &[u8]) {
        if !text.is_empty() {
            self.octets(field, &text[..text.len().min(TEXT_OCTETS_MAX)]);
        }
    }

    /// Writes what is shown, without a copy of its own.
    fn show(&mut self, field: u8, shown: fmt::Arguments<'_>) {
        self.out.extend_from_slice(&[field, 0, 0]);
        let from = self.out.len();
        write!(Text(self.out), "{shown}").expect("writing to a buffer cannot fail");
        self.out.truncate(from + TEXT_OCTETS_MAX);
        let length = u16::try_from(self.out.len() - from).expect("it was cut");
        self.out[from - 2..from].copy_from_slice(&length.to_le_bytes());
    }

    /// Writes places as the steps between them, each in one octet or, behind 255, in five; very many in
    /// several fields.
    fn places(&mut self, places: &[usize]) {
        let mut last = 0;
        for some in places.chunks(TEXT_OCTETS_MAX / 5) {
            self.out.extend_from_slice(&[field::PLACES, 0, 0]);
            let from = self.out.len();
            for place in some {
                let step = u32::try_from(place.saturating_sub(last)).unwrap_or(u32::MAX);
                last = *place;
                match u8::try_from(step) {
                    Ok(octet) if octet != WIDE_STEP => self.out.push(octet),
                    _ => {
                        self.out.push(WIDE_STEP);
                        self.out.extend_from_slice(&step.to_le_bytes());
                    }
                }
            }
            let length = u16::try_from(self.out.len() - from).expect("a chunk is short");
            self.out[from - 2..from].copy_from_slice(&length.to_le_bytes());
        }
    }

    fn end(self) {
        let length = u32::try_from(self.len() - 4).expect("a record is ended when it is full");
        self.out[self.start..self.start + 4].copy_from_slice(&length.to_le_bytes());
    }
}

/// A buffer that text is shown in.
struct Text<'a>(&'a mut Vec<u8>);

impl fmt::Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

/// A record that was found: its head is read, its fields are not yet.
#[derive(Clone, Copy, Debug)]
pub struct Raw<'a> {
    kind: u8,
    /// When.
    pub at: UnixMillis,
    /// Of which message.
    pub id: QueueId,
    fields: &'a [u8],
}

/// Returns the records of a batch, up to the first that does not hold together.
pub fn records(mut batch: &[u8]) -> impl Iterator<Item = Raw<'_>> {
    std::iter::from_fn(move || {
        let (length, rest) = batch.split_first_chunk()?;
        let (record, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        let (kind, record) = record.split_first()?;
        let (at, record) = record.split_first_chunk()?;
        let (id, fields) = record.split_first_chunk()?;
        batch = rest;
        let (at, id) = (UnixMillis(u64::from_le_bytes(*at)), QueueId::from_u64(u64::from_le_bytes(*id)));
        Some(Raw { kind: *kind, at, id, fields })
    })
}

impl<'a> Raw<'a> {
    /// Returns the fields, in their order.
    fn fields(&self) -> impl Iterator<Item = (u8, &'a [u8])> + use<'a> {
        let mut rest = self.fields;
        std::iter::from_fn(move || {
            let ([number, low, high], behind) = rest.split_first_chunk()?;
            let (octets, behind) = behind.split_at_checked(usize::from(u16::from_le_bytes([*low, *high])))?;
            rest = behind;
            Some((*number, octets))
        })
    }

    /// Returns whether it is part of an acceptance.
    pub fn is_acceptance(&self) -> bool {
        self.kind == Kind::Accepted as u8 || self.kind == Kind::Recipients as u8
    }

    /// Returns whether a message of this Message-ID, sender or recipient was accepted here; `text` in
    /// any case of ASCII letters.
    pub fn names(&self, text: &[u8]) -> bool {
        let is_name = |number| matches!(number, field::MESSAGE_ID | field::REVERSE_PATH | field::RECIPIENT);
        self.is_acceptance()
            && self.fields().any(|(number, octets)| octets.eq_ignore_ascii_case(text) && is_name(number))
    }

    /// Returns whether a message of this id in the mesh was accepted here.
    pub fn is_in_mesh_as(&self, id: &[u8]) -> bool {
        let is_it = |octets: &[u8]| octets.strip_prefix(id).is_some_and(|rest| rest.starts_with(b":"));
        self.is_acceptance() && self.fields().any(|(number, octets)| number == field::PASSAGE && is_it(octets))
    }

    /// Adds what this part of an acceptance says.
    pub fn add_to(&self, accepted: &mut Accepted) {
        accepted.at = self.at;
        for (number, octets) in self.fields() {
            match number {
                field::PASSAGE => accepted.passage = Some(text(octets)),
                field::MESSAGE_ID => accepted.message_id = Some(text(octets)),
                field::REVERSE_PATH => accepted.from = text(octets),
                field::RECIPIENT => accepted.recipients.push(text(octets)),
                field::OCTETS => accepted.octets = number_of(octets).unwrap_or_default(),
                field::PEER => accepted.origin.peer = address(octets),
                field::HELO => accepted.origin.helo = Some(text(octets).into()),
                field::USER => accepted.origin.user = Some(text(octets).into()),
                field::PROTOCOL => accepted.origin.protocol = text(octets).into(),
                field::SESSION => accepted.origin.session = text(octets).into(),
                _ => {}
            }
        }
        if accepted.from.is_empty() {
            accepted.from = "<>".to_owned();
        }
    }

    /// Returns the event; none when it is of a kind that this reader does not know.
    pub fn event(&self) -> Option<Event> {
        let kind = Kind::from_octet(self.kind)?;
        let mut event = Event {
            at: self.at,
            id: self.id,
            kind,
            places: Vec::new(),
            remote: None,
            reply: None,
            by: None,
            other: None,
            took_ms: None,
            word: None,
        };
        for (number, octets) in self.fields() {
            match number {
                field::PLACES => add_places(&mut event.places, octets),
                field::REMOTE => event.remote = Some(text(octets)),
                field::REPLY => event.reply = Some(text(octets)),
                field::BY => event.by = Some(text(octets)),
                field::WORD => event.word = Some(text(octets)),
                field::OTHER => event.other = number_of(octets).map(QueueId::from_u64),
                field::TOOK_MS => event.took_ms = octets.try_into().ok().map(u32::from_le_bytes),
                _ => {}
            }
        }
        Some(event)
    }
}

fn text(octets: &[u8]) -> String {
    String::from_utf8_lossy(octets).into_owned()
}

fn number_of(octets: &[u8]) -> Option<u64> {
    octets.try_into().ok().map(u64::from_le_bytes)
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    match octets.len() {
        4 => <[u8; 4]>::try_from(octets).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(octets).ok().map(IpAddr::from),
    }
}

fn add_places(places: &mut Vec<usize>, mut octets: &[u8]) {
    let mut last = places.last().copied().unwrap_or_default();
    while let Some((first, rest)) = octets.split_first() {
        octets = rest;
        let mut step = usize::from(*first);
        if *first == WIDE_STEP {
            let Some((wide, rest)) = octets.split_first_chunk() else { return };
            (step, octets) = (u32::from_le_bytes(*wide) as usize, rest);
        }
        last = last.saturating_add(step);
        places.push(last);
    }
}

#[cfg(test)]
#[path = "event_tests.rs"]
mod tests;
