//! Receiving content: DATA and BDAT, pieces straight out of the input.

use std::ops::Range;
use std::time::Instant;

use super::state::{Incoming, State};
use super::{Draft, Session, Step, replies};
use crate::data::{Decoded, Event};
use crate::line::Input;

impl Session {
    pub(super) fn receive_data(&mut self, input: &mut Input, now: Instant) -> Option<Step> {
        let State::ReceiveData(incoming) = &mut self.state else { return None };
        let Decoded { consumed, event } = incoming.decoder.decode(input.unread());
        let start = input.take(consumed).start;
        match event {
            Event::Content(range) => self.receive(start + range.start..start + range.end),
            Event::More => Some(self.wait(now)),
            Event::End => self.finish(),
            Event::Fault(_) => self.refuse_content(),
        }
    }

    pub(super) fn receive_chunk(&mut self, input: &mut Input, now: Instant) -> Option<Step> {
        let State::ReceiveChunk { incoming, left, last } = &mut self.state else { return None };
        if *left == 0 {
            return match (*last, incoming.oversize, incoming.lines.check_end()) {
                (true, _, Err(_)) => self.refuse_content(),
                (true, _, Ok(())) => self.finish(),
                (false, true, _) => self.refuse_chunk(),
                (false, false, _) => self.finish_chunk(),
            };
        }
        let octets = front(*left, input);
        if octets == 0 {
            return Some(self.wait(now));
        }
        *left -= octets as u64;
        let range = input.take(octets);
        if incoming.lines.check(input.slice(range.clone())).is_err() {
            return self.refuse_content();
        }
        self.receive(range)
    }

    pub(super) fn swallow_chunk(&mut self, input: &mut Input, now: Instant) -> Option<Step> {
        let State::SwallowChunk { left, reply, .. } = &mut self.state else { return None };
        let octets = front(*left, input);
        input.take(octets);
        *left -= octets as u64;
        if octets > 0 {
            self.deadline = None;
        }
        if *left > 0 {
            return Some(self.wait(now));
        }
        let reply = std::mem::replace(&mut **reply, replies::OK.clone());
        self.state = self.idle_state();
        self.deadline = None;
        self.fault(&reply);
        None
    }

    /// Hands a piece on, or swallows it when the message is too large already. An oversize message
    /// takes exactly the path of any other up to its end, so its end is found in the same place.
    fn receive(&mut self, range: Range<usize>) -> Option<Step> {
        self.deadline = None;
        let incoming = self.incoming()?;
        incoming.octets += range.len() as u64;
        let (octets, was_oversize) = (incoming.octets, incoming.oversize);
        if octets <= self.config.limits.message_octets_max {
            return Some(Step::Body(range));
        }
        if !was_oversize {
            self.incoming()?.oversize = true;
            self.void_draft();
        }
        None
    }

    fn incoming(&mut self) -> Option<&mut Incoming> {
        match &mut self.state {
            State::ReceiveData(incoming) | State::ReceiveChunk { incoming, .. } => Some(incoming),
            _ => None,
        }
    }

    /// The content, or what is wanted of it, has ended.
    fn finish(&mut self) -> Option<Step> {
        let state = std::mem::replace(&mut self.state, State::ExpectMail);
        let (State::ReceiveData(incoming) | State::ReceiveChunk { incoming, .. }) = state else { return None };
        let recipients = incoming.transaction.recipients.len();
        self.deadline = None;
        if incoming.oversize {
            self.say_for_content(recipients, |session| session.refuse(&replies::TOO_LARGE));
            return None;
        }
        self.draft = Draft::None;
        self.state = State::Storing { recipients };
        Some(Step::Commit(Box::new(incoming.into_envelope())))
    }

    fn finish_chunk(&mut self) -> Option<Step> {
        if let State::ReceiveChunk { incoming, .. } = std::mem::replace(&mut self.state, State::Closing) {
            self.state = State::ExpectChunk(incoming);
        }
        self.deadline = None;
        self.say(&replies::CHUNK_OK);
        None
    }

    /// The limit was passed in a chunk that is not the last: the transaction ends here.
    fn refuse_chunk(&mut self) -> Option<Step> {
        self.state = State::ExpectMail;
        self.deadline = None;
        self.refuse(&replies::TOO_LARGE);
        None
    }

    /// A client that writes such content may mean another end of data than this host does:
    /// nothing behind it is ever executed.
    fn refuse_content(&mut self) -> Option<Step> {
        self.say_last(&replies::BAD_CONTENT);
        None
    }
}

/// Returns how many of `left` octets the input holds.
fn front(left: u64, input: &Input) -> usize {
    usize::try_from(left).map_or(input.len(), |left| left.min(input.len()))
}
