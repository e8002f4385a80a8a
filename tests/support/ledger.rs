//! What was acknowledged against what was delivered. It never claims too much: a message counts as
//! accepted only once its 250 was read; without a reply it may or may not arrive.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};

use super::sink::{Sink, without_received};

/// The header field that names a message.
const FIELD: &str = "X-Ledger: ";

/// The messages that were acknowledged, and those that arrived.
#[derive(Default)]
pub struct Ledger {
    accepted: Mutex<BTreeMap<u64, usize>>,
    unknown: Mutex<BTreeSet<u64>>,
    arrived: Mutex<BTreeMap<u64, Arrived>>,
    /// Agents that a message passes beyond the first; each adds its Received field.
    more_agents: usize,
}

/// What arrived of one message.
#[derive(Clone, Copy, Default)]
struct Arrived {
    copies: usize,
    octets: usize,
    altered: bool,
}

/// How a ledger stands.
#[derive(Debug, PartialEq, Eq)]
pub struct Balance {
    /// Acknowledged messages.
    pub accepted: usize,
    /// Acknowledged and never delivered.
    pub missing: Vec<u64>,
    /// Delivered with other octets than sent.
    pub altered: Vec<u64>,
    /// Deliveries beyond the first.
    pub duplicates: usize,
}

impl Ledger {
    /// Begins a ledger of messages that each pass so many agents beyond the first.
    pub fn over(more_agents: usize) -> Ledger {
        Ledger { more_agents, ..Ledger::default() }
    }

    /// Returns the content of message `number`, about so many octets long; always the same.
    pub fn content(number: u64, octets: usize) -> Vec<u8> {
        let mut content = format!(
            "{FIELD}{number}\r\nFrom: <sender@client.test>\r\nTo: <user@sink.test>\r\n\
             Subject: message {number}\r\n\r\n"
        )
        .into_bytes();
        let mut random = fastrand::Rng::with_seed(number);
        while content.len() < octets {
            let length = random.usize(0..78);
            content.extend((0..length).map(|_| random.u8(b' '..=b'~')));
            content.extend_from_slice(b"\r\n");
        }
        content
    }

    /// Notes that a message with this content was acknowledged.
    pub fn accept(&self, number: u64, content: &[u8]) {
        lock(&self.accepted).insert(number, content.len());
    }

    /// Notes that no reply was read for a message: it may arrive.
    pub fn unknown(&self, number: u64) {
        lock(&self.unknown).insert(number);
    }

    /// Returns how many messages were acknowledged.
    pub fn count(&self) -> usize {
        lock(&self.accepted).len()
    }

    /// Notes what a sink took since it was asked last; the sink forgets it.
    ///
    /// # Panics
    /// When something was delivered that was never sent.
    pub fn collect(&self, sink: &Sink) {
        for message in sink.take() {
            let number = number_of(&message.content);
            let sent = lock(&self.unknown).contains(&number) || lock(&self.accepted).contains_key(&number);
            assert!(sent, "message {number} was never sent");
            let content = (0..self.more_agents).fold(message.relayed(), |content, _| without_received(content));
            let mut all = lock(&self.arrived);
            let arrived = all.entry(number).or_default();
            arrived.altered |= content != Ledger::content(number, content.len());
            arrived.altered |= arrived.copies > 0 && arrived.octets != content.len();
            arrived.octets = content.len();
            arrived.copies += 1;
        }
    }

    /// Returns whether every acknowledged message was collected.
    pub fn is_delivered(&self) -> bool {
        let arrived = lock(&self.arrived);
        lock(&self.accepted).keys().all(|number| arrived.contains_key(number))
    }

    /// Returns whether a message was collected.
    pub fn has_arrived(&self, number: u64) -> bool {
        lock(&self.arrived).contains_key(&number)
    }

    /// Returns how many copies were collected beyond the first of each message.
    pub fn duplicates(&self) -> usize {
        lock(&self.arrived).values().map(|arrived| arrived.copies - 1).sum()
    }

    /// Compares what was acknowledged with what was collected.
    pub fn balance(&self) -> Balance {
        let (accepted, arrived) = (lock(&self.accepted), lock(&self.arrived));
        let whole = |number: &u64, arrived: &Arrived| {
            !arrived.altered && accepted.get(number).is_none_or(|octets| *octets == arrived.octets)
        };
        Balance {
            accepted: accepted.len(),
            missing: accepted.keys().filter(|number| !arrived.contains_key(number)).copied().collect(),
            altered: arrived.iter().filter(|(n, arrived)| !whole(n, arrived)).map(|(n, _)| *n).collect(),
            duplicates: arrived.values().map(|arrived| arrived.copies - 1).sum(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no thread panicked with the lock")
}

impl Balance {
    /// Expects that nothing is missing or altered.
    #[track_caller]
    pub fn assert_even(&self) {
        assert!(self.missing.is_empty() && self.altered.is_empty(), "the ledger does not balance: {self:?}");
    }
}

/// Returns the number of a delivered message.
pub fn number_of(content: &[u8]) -> u64 {
    let at = memchr::memmem::find(content, FIELD.as_bytes()).expect("every message of the ledger has its field");
    let digits = &content[at + FIELD.len()..];
    let end = memchr::memchr(b'\r', digits).expect("a field has an end");
    std::str::from_utf8(&digits[..end]).ok().and_then(|text| text.parse().ok()).expect("a number")
}
