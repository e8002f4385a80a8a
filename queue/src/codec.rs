//! Item ↔ octets: fields of tag, length and value, nested where a value has parts.
//!
//! Readers skip tags they do not know, so a release may add fields that older ones can do without;
//! anything else needs a new format version. Decoding never panics and never allocates more than the
//! octets it was given. Formats: `docs/queue-format.md`.

use std::net::IpAddr;

use postroad_smtp::{
    ByMode, Code, DeliverBy, Envelope, MailParams, Notify, OriginalRecipient, PassageToken, Priority, Recipient,
    Release, Reply, Ret, Status,
};

use crate::history::{History, Said};
use crate::id::{QueueId, UnixMillis};
use crate::item::{Item, Origin, RecipientState, Report, State};

/// The octets are no item: what was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CodecError(pub &'static str);

type Result<T> = std::result::Result<T, CodecError>;

mod tag {
    pub const ARRIVED: u8 = 1;
    pub const REVERSE_PATH: u8 = 2;
    pub const PARAMS: u8 = 3;
    pub const RET: u8 = 4;
    pub const ENVID: u8 = 5;
    pub const RECIPIENT: u8 = 6;
    pub const PRIORITY: u8 = 7;
    pub const DELIVER_BY: u8 = 8;
    pub const HOLD_FOR: u8 = 15;
    pub const HOLD_UNTIL: u8 = 16;
    pub const PASSAGE: u8 = 17;
    pub const PEER: u8 = 10;
    pub const HELO: u8 = 11;
    pub const USER: u8 = 12;
    pub const PROTOCOL: u8 = 13;
    pub const SESSION: u8 = 14;
    pub const STATE: u8 = 20;
}

mod recipient_tag {
    pub const FORWARD_PATH: u8 = 1;
    pub const NOTIFY: u8 = 2;
    pub const ORIGINAL_TYPE: u8 = 3;
    pub const ORIGINAL_ADDRESS: u8 = 4;
}

mod state_tag {
    pub const FLAGS: u8 = 1;
    pub const EXPIRES: u8 = 2;
    pub const RECIPIENT: u8 = 3;
}

mod progress_tag {
    pub const KIND: u8 = 1;
    pub const ATTEMPTS: u8 = 2;
    pub const DUE: u8 = 3;
    pub const REPORT: u8 = 4;
    pub const NOTIFIED: u8 = 5;
    pub const EARLIER: u8 = 6;
}

mod report_tag {
    pub const AT: u8 = 1;
    pub const REMOTE: u8 = 2;
    pub const CODE: u8 = 3;
    pub const STATUS: u8 = 4;
    pub const TEXT: u8 = 5;
    pub const TIMES: u8 = 6;
    pub const UNTIL: u8 = 7;
}

const PENDING: u8 = 0;
const DELIVERED: u8 = 1;
const FAILED: u8 = 2;

/// Appends the metadata of a Message record: all of the item but id, content length and content.
pub(crate) fn encode_item(item: &Item, out: &mut Vec<u8>) {
    put(out, tag::ARRIVED, &item.arrived.0.to_le_bytes());
    put_envelope(out, &item.envelope);
    let origin = &item.origin;
    match origin.peer {
        Some(IpAddr::V4(ip)) => put(out, tag::PEER, &ip.octets()),
        Some(IpAddr::V6(ip)) => put(out, tag::PEER, &ip.octets()),
        None => {}
    }
    put_some(out, tag::HELO, origin.helo.as_deref());
    put_some(out, tag::USER, origin.user.as_deref());
    put(out, tag::PROTOCOL, origin.protocol.as_bytes());
    put(out, tag::SESSION, origin.session.as_bytes());
    nest(out, tag::STATE, |out| encode_state(&item.state, out));
}

/// Appends the metadata of a State record.
pub(crate) fn encode_state(state: &State, out: &mut Vec<u8>) {
    put(out, state_tag::FLAGS, &[u8::from(state.held) | u8::from(state.delay_notified) << 1]);
    put(out, state_tag::EXPIRES, &state.expires.0.to_le_bytes());
    for recipient in &state.recipients {
        nest(out, state_tag::RECIPIENT, |out| put_progress(out, recipient));
    }
}

fn put_envelope(out: &mut Vec<u8>, envelope: &Envelope) {
    put_path(out, tag::REVERSE_PATH, &envelope.reverse_path);
    let params = &envelope.params;
    put(out, tag::PARAMS, &[u8::from(params.eight_bit) | u8::from(params.smtputf8) << 1]);
    if let Some(ret) = params.ret {
        put(out, tag::RET, &[u8::from(ret == Ret::Headers)]);
    }
    put_some(out, tag::ENVID, params.envid.as_deref());
    if let Some(priority) = params.priority {
        put(out, tag::PRIORITY, &priority.get().to_le_bytes());
    }
    if let Some(by) = params.deliver_by {
        let [a, b, c, d] = by.seconds.to_le_bytes();
        let flags = u8::from(by.mode == ByMode::Return) | u8::from(by.trace) << 1;
        put(out, tag::DELIVER_BY, &[a, b, c, d, flags]);
    }
    match params.release {
        Some(Release::After(seconds)) => put(out, tag::HOLD_FOR, &seconds.to_le_bytes()),
        Some(Release::At(unix_ms)) => put(out, tag::HOLD_UNTIL, &unix_ms.to_le_bytes()),
        None => {}
    }
    put_some(out, tag::PASSAGE, params.passage.as_ref().map(PassageToken::as_str));
    for recipient in envelope.recipients() {
        nest(out, tag::RECIPIENT, |out| {
            put_path(out, recipient_tag::FORWARD_PATH, &recipient.forward_path);
            if let Some(n) = recipient.notify {
                let bits = u8::from(n.success) | u8::from(n.failure) << 1 | u8::from(n.delay) << 2;
                put(out, recipient_tag::NOTIFY, &[bits]);
            }
            if let Some(original) = &recipient.original {
                put(out, recipient_tag::ORIGINAL_TYPE, original.addr_type.as_bytes());
                put(out, recipient_tag::ORIGINAL_ADDRESS, original.address.as_bytes());
            }
        });
    }
}

pub(crate) fn put_progress(out: &mut Vec<u8>, recipient: &RecipientState) {
    match recipient {
        RecipientState::Pending { attempts, due, last, earlier } => {
            put(out, progress_tag::KIND, &[PENDING]);
            put(out, progress_tag::ATTEMPTS, &attempts.to_le_bytes());
            put(out, progress_tag::DUE, &due.0.to_le_bytes());
            if let Some(report) = last {
                nest(out, progress_tag::REPORT, |out| put_report(out, report));
            }
            for said in &earlier.0 {
                nest(out, progress_tag::EARLIER, |out| put_said(out, said));
            }
        }
        RecipientState::Delivered { report, notified } => put_settled(out, DELIVERED, report, *notified),
        RecipientState::Failed { report, notified } => put_settled(out, FAILED, report, *notified),
    }
}

fn put_settled(out: &mut Vec<u8>, kind: u8, report: &Report, notified: bool) {
    put(out, progress_tag::KIND, &[kind]);
    nest(out, progress_tag::REPORT, |out| put_report(out, report));
    put(out, progress_tag::NOTIFIED, &[u8::from(notified)]);
}

fn put_said(out: &mut Vec<u8>, said: &Said) {
    put_report(out, &said.report);
    put(out, report_tag::TIMES, &said.times.to_le_bytes());
    put(out, report_tag::UNTIL, &said.until.0.to_le_bytes());
}

fn put_report(out: &mut Vec<u8>, report: &Report) {
    put(out, report_tag::AT, &report.at.0.to_le_bytes());
    put_some(out, report_tag::REMOTE, report.remote.as_deref());
    put(out, report_tag::CODE, &report.reply.code.get().to_le_bytes());
    if let Some(status) = report.reply.status {
        let (subject, detail) = (status.subject.to_le_bytes(), status.detail.to_le_bytes());
        put(out, report_tag::STATUS, &[status.class, subject[0], subject[1], detail[0], detail[1]]);
    }
    put(out, report_tag::TEXT, report.reply.text.as_bytes());
}

pub(crate) fn put(out: &mut Vec<u8>, tag: u8, value: &[u8]) {
    out.push(tag);
    put_length(out, value.len());
    out.extend_from_slice(value);
}

fn put_some(out: &mut Vec<u8>, tag: u8, value: Option<&str>) {
    if let Some(value) = value {
        put(out, tag, value.as_bytes());
    }
}

/// Writes a path without its angle brackets.
fn put_path(out: &mut Vec<u8>, tag: u8, path: &impl std::fmt::Display) {
    let text = path.to_string();
    put(out, tag, text.trim_start_matches('<').strip_suffix('>').unwrap_or(&text).as_bytes());
}

/// Seven bits an octet, the lowest first, the top bit set on all but the last.
fn put_length(out: &mut Vec<u8>, mut length: usize) {
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
}

/// Writes a field whose value `write` appends.
pub(crate) fn nest(out: &mut Vec<u8>, tag: u8, write: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    let at = out.len();
    write(out);
    let length = out.len() - at;
    let mut prefix = Vec::with_capacity(4);
    put_length(&mut prefix, length);
    out.extend_from_slice(&prefix);
    out[at..].rotate_right(prefix.len());
}

/// Reads what [`encode_item`] wrote.
pub(crate) fn decode_item(octets: &[u8], id: QueueId, content_octets: u64) -> Result<Item> {
    let (mut arrived, mut reverse_path, mut state) = (None, None, None);
    let (mut params, mut origin) = (MailParams::default(), Origin::default());
    let mut recipients = Vec::new();
    for field in Fields(octets) {
        let (tag, value) = field?;
        match tag {
            tag::ARRIVED => arrived = Some(UnixMillis(number(value)?)),
            tag::REVERSE_PATH => reverse_path = Some(parsed(value, "a reverse-path")?),
            tag::PARAMS => {
                let bits = octet(value)?;
                (params.eight_bit, params.smtputf8) = (bits & 1 != 0, bits & 2 != 0);
            }
            tag::RET => params.ret = Some(if octet(value)? == 0 { Ret::Full } else { Ret::Headers }),
            tag::ENVID => params.envid = Some(text(value)?.into()),
            tag::PRIORITY => {
                let priority = Priority::new(i8::from_le_bytes(array(value)?));
                params.priority = Some(priority.ok_or(CodecError("a priority"))?);
            }
            tag::DELIVER_BY => {
                let [a, b, c, d, flags] = array(value)?;
                let mode = if flags & 1 == 0 { ByMode::Notify } else { ByMode::Return };
                let seconds = i32::from_le_bytes([a, b, c, d]);
                params.deliver_by = Some(DeliverBy { seconds, mode, trace: flags & 2 != 0 });
            }
            tag::HOLD_FOR => params.release = Some(Release::After(u32::from_le_bytes(array(value)?))),
            tag::HOLD_UNTIL => params.release = Some(Release::At(number(value)?)),
            tag::PASSAGE => params.passage = Some(parsed(value, "a passage")?),
            tag::RECIPIENT => recipients.push(get_recipient(value)?),
            tag::PEER => origin.peer = Some(get_address(value)?),
            tag::HELO => origin.helo = Some(text(value)?.into()),
            tag::USER => origin.user = Some(text(value)?.into()),
            tag::PROTOCOL => origin.protocol = text(value)?.into(),
            tag::SESSION => origin.session = text(value)?.into(),
            tag::STATE => state = Some(decode_state(value)?),
            _ => {}
        }
    }
    let reverse_path = reverse_path.ok_or(CodecError("a reverse-path"))?;
    let envelope = Envelope::new(reverse_path, params, recipients).ok_or(CodecError("a recipient"))?;
    let state = state.ok_or(CodecError("a state"))?;
    if state.recipients.len() != envelope.recipients().len() {
        return Err(CodecError("a state for every recipient"));
    }
    let arrived = arrived.ok_or(CodecError("a time of arrival"))?;
    Ok(Item { id, arrived, envelope, origin, content_octets, state })
}

/// Reads what [`encode_state`] wrote.
pub(crate) fn decode_state(octets: &[u8]) -> Result<State> {
    let mut state = State { held: false, delay_notified: false, expires: UnixMillis(0), recipients: Vec::new() };
    let mut expires = None;
    for field in Fields(octets) {
        let (tag, value) = field?;
        match tag {
            state_tag::FLAGS => {
                let bits = octet(value)?;
                (state.held, state.delay_notified) = (bits & 1 != 0, bits & 2 != 0);
            }
            state_tag::EXPIRES => expires = Some(UnixMillis(number(value)?)),
            state_tag::RECIPIENT => state.recipients.push(get_progress(value)?),
            _ => {}
        }
    }
    state.expires = expires.ok_or(CodecError("an expiry"))?;
    Ok(state)
}

fn get_recipient(octets: &[u8]) -> Result<Recipient> {
    let (mut forward_path, mut notify, mut addr_type, mut address) = (None, None, None, None);
    for field in Fields(octets) {
        let (tag, value) = field?;
        match tag {
            recipient_tag::FORWARD_PATH => forward_path = Some(parsed(value, "a forward-path")?),
            recipient_tag::NOTIFY => {
                let bits = octet(value)?;
                notify = Some(Notify { success: bits & 1 != 0, failure: bits & 2 != 0, delay: bits & 4 != 0 });
            }
            recipient_tag::ORIGINAL_TYPE => addr_type = Some(text(value)?.into()),
            recipient_tag::ORIGINAL_ADDRESS => address = Some(text(value)?.into()),
            _ => {}
        }
    }
    let original = match (addr_type, address) {
        (Some(addr_type), Some(address)) => Some(OriginalRecipient { addr_type, address }),
        (None, None) => None,
        _ => return Err(CodecError("both parts of the original recipient")),
    };
    Ok(Recipient { forward_path: forward_path.ok_or(CodecError("a forward-path"))?, notify, original })
}

pub(crate) fn get_progress(octets: &[u8]) -> Result<RecipientState> {
    let (mut kind, mut attempts, mut due, mut report, mut notified) = (None, 0, UnixMillis(0), None, false);
    let mut earlier = History::default();
    for field in Fields(octets) {
        let (tag, value) = field?;
        match tag {
            progress_tag::KIND => kind = Some(octet(value)?),
            progress_tag::ATTEMPTS => attempts = u32::from_le_bytes(array(value)?),
            progress_tag::DUE => due = UnixMillis(number(value)?),
            progress_tag::REPORT => report = Some(get_report(value)?),
            progress_tag::EARLIER => earlier.0.push(get_said(value)?),
            progress_tag::NOTIFIED => notified = octet(value)? != 0,
            _ => {}
        }
    }
    let settled = |report: Option<Report>| report.ok_or(CodecError("a report"));
    match kind {
        Some(PENDING) => Ok(RecipientState::Pending { attempts, due, last: report, earlier }),
        Some(DELIVERED) => Ok(RecipientState::Delivered { report: settled(report)?, notified }),
        Some(FAILED) => Ok(RecipientState::Failed { report: settled(report)?, notified }),
        _ => Err(CodecError("how far a recipient is")),
    }
}

fn get_said(octets: &[u8]) -> Result<Said> {
    let report = get_report(octets)?;
    let (mut times, mut until) = (1, report.at);
    for field in Fields(octets) {
        match field? {
            (report_tag::TIMES, value) => times = u32::from_le_bytes(array(value)?),
            (report_tag::UNTIL, value) => until = UnixMillis(number(value)?),
            _ => {}
        }
    }
    Ok(Said { report, times, until })
}

fn get_report(octets: &[u8]) -> Result<Report> {
    let (mut at, mut remote, mut code, mut status, mut words) = (UnixMillis(0), None, None, None, "");
    for field in Fields(octets) {
        let (tag, value) = field?;
        match tag {
            report_tag::AT => at = UnixMillis(number(value)?),
            report_tag::REMOTE => remote = Some(text(value)?.into()),
            report_tag::CODE => code = Code::new(u16::from_le_bytes(array(value)?)),
            report_tag::STATUS => {
                let [class, s0, s1, d0, d1] = array(value)?;
                status = Some(Status::new(class, u16::from_le_bytes([s0, s1]), u16::from_le_bytes([d0, d1])));
            }
            report_tag::TEXT => words = text(value)?,
            _ => {}
        }
    }
    let code = code.ok_or(CodecError("a reply code"))?;
    Ok(Report { at, remote, reply: Reply { code, status, text: words.to_owned().into() } })
}

fn get_address(value: &[u8]) -> Result<IpAddr> {
    match value.len() {
        4 => Ok(IpAddr::from(array::<4>(value)?)),
        _ => Ok(IpAddr::from(array::<16>(value)?)),
    }
}

fn parsed<T: std::str::FromStr>(value: &[u8], expected: &'static str) -> Result<T> {
    text(value)?.parse().map_err(|_| CodecError(expected))
}

fn text(value: &[u8]) -> Result<&str> {
    std::str::from_utf8(value).map_err(|_| CodecError("UTF-8"))
}

fn octet(value: &[u8]) -> Result<u8> {
    array::<1>(value).map(|[octet]| octet)
}

fn number(value: &[u8]) -> Result<u64> {
    array(value).map(u64::from_le_bytes)
}

pub(crate) fn array<const N: usize>(value: &[u8]) -> Result<[u8; N]> {
    value.try_into().map_err(|_| CodecError("a value of another length"))
}

/// The fields of a value, in order.
pub(crate) struct Fields<'a>(pub &'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u8, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        let (tag, rest) = self.0.split_first()?;
        let field = split_value(rest).map(|(value, rest)| {
            self.0 = rest;
            (*tag, value)
        });
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or(CodecError("a whole field")))
    }
}

fn split_value(octets: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut length = 0usize;
    for (i, octet) in octets.iter().take(4).enumerate() {
        length |= usize::from(octet & 0x7f) << (7 * i);
        if octet & 0x80 == 0 {
            return octets[i + 1..].split_at_checked(length);
        }
    }
    None
}

#[cfg(test)]
mod tests;
