//! What is counted at what. Each at no less than it takes, measured on 64-bit Linux.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use postroad_smtp::Recipient;

use super::Memory;

/// A session with TLS and what it has in its buffers; without, it is a tenth.
pub const SESSION_OCTETS: u64 = 48 << 10;
/// An attempt: a session, the content on its way, a message.
const ATTEMPT_OCTETS: u64 = 256 << 10;
/// A recipient of an envelope without its texts.
const RECIPIENT_OCTETS: u64 = 256;
/// A recipient of a message that is being delivered: its envelope twice, its state, its outcome.
const TRIED_RECIPIENT_OCTETS: u64 = 2 << 10;
/// A message in the index and in the schedule.
const MESSAGE_OCTETS: u64 = 384;
/// Messages just committed that the queue keeps, at most, and one of them beside its content.
const RECENT_OCTETS_MAX: u64 = 16 << 20;
const RECENT_MESSAGE_OCTETS: u64 = 64 << 10;

/// Memory that somebody holds: counted for as long as this is kept.
pub struct Held {
    memory: Arc<Memory>,
    octets: u64,
}

impl Held {
    /// Begins to count so many octets.
    pub fn new(memory: Arc<Memory>, octets: u64) -> Held {
        memory.held.fetch_add(octets, Ordering::Relaxed);
        Held { memory, octets }
    }

    /// Counts more.
    pub fn add(&mut self, octets: u64) {
        self.memory.held.fetch_add(octets, Ordering::Relaxed);
        self.octets += octets;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.memory.held.fetch_sub(self.octets, Ordering::Relaxed);
    }
}

/// Returns what a recipient in an envelope takes.
pub fn recipient_octets(recipient: &Recipient) -> u64 {
    let mailbox = recipient.forward_path.mailbox();
    let path = mailbox.map_or(0, |mailbox| {
        mailbox.local_part.as_str().len() + mailbox.domain().map_or(0, |domain| domain.as_str().len())
    });
    let original = recipient.original.as_ref();
    let original = original.map_or(0, |original| original.addr_type.len() + original.address.len());
    RECIPIENT_OCTETS + (path + original) as u64
}

/// Returns what an attempt at a message with so many recipients takes.
pub fn attempt_octets(recipients: usize) -> u64 {
    ATTEMPT_OCTETS + TRIED_RECIPIENT_OCTETS * recipients as u64
}

/// Returns what a queue of so many messages with so much content takes, drafts aside.
pub fn queue_octets(messages: usize, content_octets: u64) -> u64 {
    let messages = messages as u64;
    MESSAGE_OCTETS * messages + (content_octets + RECENT_MESSAGE_OCTETS * messages).min(RECENT_OCTETS_MAX)
}
