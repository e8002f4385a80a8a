//! What was acknowledged against what was delivered. It never claims too much: a message counts as
//! accepted only once its 250 was read; without a reply it may or may not arrive.

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::sink::Message;

/// The header field that names a message.
const FIELD: &str = "X-Ledger: ";

/// The messages that were acknowledged.
#[derive(Default)]
pub struct Ledger {
    accepted: Mutex<BTreeMap<u64, usize>>,
    unknown: Mutex<Vec<u64>>,
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

    /// Notes that a message of so many octets was acknowledged.
    pub fn accept(&self, number: u64, octets: usize) {
        self.accepted.lock().expect("no thread panicked with the lock").insert(number, octets);
    }

    /// Notes that no reply was read for a message: it may arrive.
    pub fn unknown(&self, number: u64) {
        self.unknown.lock().expect("no thread panicked with the lock").push(number);
    }

    /// Returns whether a message was acknowledged.
    pub fn knows(&self, number: u64) -> bool {
        self.accepted.lock().expect("no thread panicked with the lock").contains_key(&number)
    }

    /// Returns how many messages were acknowledged.
    pub fn count(&self) -> usize {
        self.accepted.lock().expect("no thread panicked with the lock").len()
    }

    /// Returns whether every acknowledged message is among these.
    pub fn is_delivered(&self, delivered: &[Message]) -> bool {
        let seen: std::collections::BTreeSet<u64> =
            delivered.iter().map(|message| number_of(&message.content)).collect();
        self.accepted.lock().expect("no thread panicked with the lock").keys().all(|number| seen.contains(number))
    }

    /// Compares with what a sink took.
    ///
    /// # Panics
    /// When something was delivered that was never sent.
    pub fn balance(&self, delivered: &[Message]) -> Balance {
        let accepted = self.accepted.lock().expect("no thread panicked with the lock");
        let unknown = self.unknown.lock().expect("no thread panicked with the lock");
        let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
        let mut altered = Vec::new();
        for message in delivered {
            let number = number_of(&message.content);
            assert!(accepted.contains_key(&number) || unknown.contains(&number), "message {number} was never sent");
            *counts.entry(number).or_default() += 1;
            let octets = accepted.get(&number).copied().unwrap_or(message.relayed().len());
            if message.relayed() != Ledger::content(number, octets) {
                altered.push(number);
            }
        }
        Balance {
            accepted: accepted.len(),
            missing: accepted.keys().filter(|number| !counts.contains_key(number)).copied().collect(),
            altered,
            duplicates: counts.values().map(|count| count - 1).sum(),
        }
    }
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
