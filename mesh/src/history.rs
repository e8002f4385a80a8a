//! What was delivered already: a bounded memory of (message, recipient), by which a repeat after a
//! lost reply is answered 250 and not delivered twice.
//!
//! A message keeps its name, a [`MeshMessageId`], from its first hop on. Half of it is when that was,
//! so that entries leave by age: what is older than the memory reaches back is told apart from what is new, and
//! is never taken for it.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::str::FromStr;

use crate::node::{name_from_base32, sha256, show_base32};

/// The name of a message in all the mesh: 48 bits of time, 80 of what it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MeshMessageId([u8; 16]);

/// The text names no message: 26 letters and digits of base32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the name of a message in the mesh has 26 letters and digits (a to z, 2 to 7)")]
pub struct MeshMessageIdError;

/// What is remembered of a message for one recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing: it is new.
    New,
    /// It was taken responsibility for: say so again, and do nothing.
    Already,
    /// It is older than the memory reaches: nobody can say.
    TooOld,
}

/// Octets of an [`Entry`].
pub const ENTRY_OCTETS: usize = 18;
/// What comes into the mesh so long after the same content was remembered is meant, and no copy of that, in
/// milliseconds.
pub const COPY_MS_MAX: u64 = 3_600_000;
/// Times are kept in minutes, so that entries of about the same time leave together.
const MINUTE_MS: u64 = 60_000;

/// A message and a recipient as they are remembered: digests of the message's content and of the
/// recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Entry([u8; ENTRY_OCTETS]);

/// The memory.
#[derive(Clone, Debug)]
pub struct History {
    age_ms: u64,
    entries_max: usize,
    /// What was accepted before this time may have been forgotten for lack of room.
    reach: u64,
    /// By content, and by recipient: the time in a name is that of the first hop that made one, and
    /// a client that submits again elsewhere gets another time for the same content.
    entries: HashMap<Entry, Kept>,
    by_age: BTreeMap<u32, Vec<Entry>>,
}

/// When an entry was remembered last, and when its age begins, in minutes since the Unix epoch.
#[derive(Clone, Copy, Debug)]
struct Kept {
    since: u32,
    leaves: u32,
}

impl MeshMessageId {
    /// Names a message: when its first hop accepted it, in milliseconds since the Unix epoch, and
    /// the parts that make it what it is (reverse-path, Message-ID, Date, From, digest of the body).
    pub fn new(accepted_ms: u64, parts: &[&[u8]]) -> MeshMessageId {
        let mut framed = Vec::new();
        for part in parts {
            framed.extend((part.len() as u64).to_be_bytes());
            framed.extend_from_slice(part);
        }
        let mut octets = [0; 16];
        octets[..6].copy_from_slice(&accepted_ms.to_be_bytes()[2..]);
        octets[6..].copy_from_slice(&sha256(&[&framed])[..10]);
        MeshMessageId(octets)
    }

    /// Takes a name from its octets.
    pub fn from_octets(octets: [u8; 16]) -> MeshMessageId {
        MeshMessageId(octets)
    }

    /// Returns the octets.
    pub fn octets(&self) -> &[u8; 16] {
        &self.0
    }

    /// Returns when the first hop accepted it, in milliseconds since the Unix epoch.
    pub fn accepted_ms(&self) -> u64 {
        self.0[..6].iter().fold(0, |ms, octet| ms << 8 | u64::from(*octet))
    }

    /// Returns a number that is the same for copies of one message.
    pub fn spread(&self) -> u64 {
        self.content()[..8].iter().fold(0, |number, octet| number << 8 | u64::from(*octet))
    }

    fn content(&self) -> [u8; 10] {
        self.0[6..].try_into().expect("16 less 6 octets")
    }
}

impl History {
    /// Builds an empty memory that reaches back `age_ms`, and less where that would be more than
    /// `entries_max` entries.
    pub fn new(age_ms: u64, entries_max: usize) -> History {
        History { age_ms, entries_max, reach: 0, entries: HashMap::new(), by_age: BTreeMap::new() }
    }

    /// Returns what is remembered of a message for a recipient, at `now`.
    pub fn seen(&self, message: &MeshMessageId, recipient: &str, now: u64) -> Seen {
        self.seen_entry(&Entry::new(message, recipient), message, now)
    }

    /// As [`History::seen`], for whoever has the entry of the message and the recipient.
    pub fn seen_entry(&self, entry: &Entry, message: &MeshMessageId, now: u64) -> Seen {
        let accepted = message.accepted_ms();
        match self.entries.get(entry) {
            Some(kept) if accepted <= u64::from(kept.since) * MINUTE_MS + COPY_MS_MAX => Seen::Already,
            None if accepted < now.saturating_sub(self.age_ms).max(self.reach) => Seen::TooOld,
            _ => Seen::New,
        }
    }

    /// Remembers that responsibility for a message was taken for a recipient, at `now`.
    pub fn remember(&mut self, message: &MeshMessageId, recipient: &str, now: u64) {
        self.recall(Entry::new(message, recipient), self.counts_from(message, now), now);
    }

    /// Returns when a message counts as remembered that is remembered at `now`: the later of both times, since
    /// a clock that runs behind must not shorten the memory.
    pub fn counts_from(&self, message: &MeshMessageId, now: u64) -> u64 {
        now.max(message.accepted_ms())
    }

    /// Takes in what was remembered earlier and written down. A clock that runs ahead keeps it no longer than others.
    pub fn recall(&mut self, entry: Entry, counts_from: u64, now: u64) {
        let kept = Kept { since: minutes(counts_from), leaves: minutes(counts_from.min(now + self.age_ms)) };
        if self.entries.get(&entry).is_none_or(|known| known.since < kept.since) {
            self.entries.insert(entry, kept);
            self.by_age.entry(kept.leaves).or_default().push(entry);
        }
        self.forget(now);
        while self.entries.len() > self.entries_max {
            let Some((at, oldest)) = self.by_age.pop_first() else { break };
            self.remove(at, &oldest);
            // Those that follow were remembered later, and some of what was accepted before them is gone.
            self.reach = self.reach.max(u64::from(at) * MINUTE_MS);
        }
    }

    /// Forgets what is older than the memory reaches.
    pub fn forget(&mut self, now: u64) {
        let limit = minutes(now.saturating_sub(self.age_ms));
        while let Some(oldest) = self.by_age.first_entry().filter(|oldest| *oldest.key() < limit) {
            let (at, entries) = oldest.remove_entry();
            self.remove(at, &entries);
        }
    }

    /// Removes what leaves at this time; what was remembered again since stays.
    fn remove(&mut self, at: u32, entries: &[Entry]) {
        for entry in entries {
            if self.entries.get(entry).is_some_and(|kept| kept.leaves == at) {
                self.entries.remove(entry);
            }
        }
    }

    /// Returns how much is remembered.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns whether nothing is.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// Returns the minute at the end of which it is this time.
fn minutes(ms: u64) -> u32 {
    u32::try_from(ms.div_ceil(MINUTE_MS)).unwrap_or(u32::MAX)
}

impl Entry {
    /// Makes the entry of a message for a recipient.
    pub fn new(message: &MeshMessageId, recipient: &str) -> Entry {
        let mut octets = [0; ENTRY_OCTETS];
        octets[..10].copy_from_slice(&message.content());
        octets[10..].copy_from_slice(&sha256(&[recipient.as_bytes()])[..8]);
        Entry(octets)
    }

    /// Takes an entry from its octets.
    pub fn from_octets(octets: [u8; ENTRY_OCTETS]) -> Entry {
        Entry(octets)
    }

    /// Returns the octets.
    pub fn octets(&self) -> &[u8; ENTRY_OCTETS] {
        &self.0
    }
}

impl FromStr for MeshMessageId {
    type Err = MeshMessageIdError;

    fn from_str(text: &str) -> Result<MeshMessageId, MeshMessageIdError> {
        name_from_base32(text).map(MeshMessageId).ok_or(MeshMessageIdError)
    }
}

impl fmt::Display for MeshMessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show_base32(&self.0, f)
    }
}

impl fmt::Debug for MeshMessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MeshMessageId({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DAY: u64 = 86_400_000;
    const NOW: u64 = 20_000 * DAY;
    const MANY: usize = 1 << 20;

    fn message(at: u64, body: &[u8]) -> MeshMessageId {
        MeshMessageId::new(at, &[b"a@n1.example", b"<1@n1.example>", body])
    }

    #[test]
    fn a_repeat_is_known_for_its_recipient_alone() {
        let mut history = History::new(30 * DAY, MANY);
        let first = message(NOW, b"hello");
        assert_eq!(history.seen(&first, "b@n2.example", NOW), Seen::New);
        history.remember(&first, "b@n2.example", NOW);
        assert_eq!(history.seen(&first, "b@n2.example", NOW + DAY), Seen::Already);
        assert_eq!(history.seen(&first, "c@n2.example", NOW + DAY), Seen::New);
        assert_eq!(history.seen(&message(NOW + 5, b"hello"), "b@n2.example", NOW + DAY), Seen::Already);
        assert_eq!(history.seen(&message(NOW, b"hello!"), "b@n2.example", NOW), Seen::New);
    }

    #[test]
    fn what_is_submitted_again_later_is_meant_and_what_a_member_repeats_is_not() {
        let mut history = History::new(30 * DAY, MANY);
        let (first, again) = (message(NOW, b"hello"), message(NOW + 2 * COPY_MS_MAX, b"hello"));
        history.remember(&first, "b@n2.example", NOW + 5);
        assert_eq!(history.seen(&first, "b@n2.example", NOW + 20 * DAY), Seen::Already);
        assert_eq!(history.seen(&message(NOW + COPY_MS_MAX, b"hello"), "b@n2.example", NOW + DAY), Seen::Already);
        assert_eq!(history.seen(&again, "b@n2.example", NOW + DAY), Seen::New);
        history.remember(&again, "b@n2.example", NOW + DAY);
        history.forget(NOW + 30 * DAY + DAY / 2);
        assert_eq!(history.seen(&again, "b@n2.example", NOW + 30 * DAY + DAY / 2), Seen::Already);
        history.forget(NOW + 32 * DAY);
        assert!(history.is_empty());
    }

    #[test]
    fn what_is_too_old_to_know_is_not_taken_for_new() {
        let mut history = History::new(30 * DAY, MANY);
        let first = message(NOW, b"hello");
        history.remember(&first, "b@n2.example", NOW);
        assert_eq!(history.seen(&first, "b@n2.example", NOW + 29 * DAY), Seen::Already);
        history.forget(NOW + 31 * DAY);
        assert!(history.is_empty());
        assert_eq!(history.seen(&first, "b@n2.example", NOW + 31 * DAY), Seen::TooOld);
    }

    #[test]
    fn it_holds_no_more_than_its_age_brings() {
        let mut history = History::new(30 * DAY, MANY);
        for day in 0..100 {
            let now = NOW + day * DAY;
            history.remember(&message(now, &day.to_be_bytes()), "b@n2.example", now);
            assert!(history.len() <= 31, "{} on day {day}", history.len());
        }
    }

    #[test]
    fn without_room_the_oldest_leave_and_are_not_taken_for_new() {
        let mut history = History::new(30 * DAY, 100);
        let at = |n: u64| NOW + n * 120_000;
        let named = |n: u64| message(at(n), &n.to_be_bytes());
        for n in 0..1000 {
            history.remember(&named(n), "b@n2.example", at(n));
            assert!(history.len() <= 100);
        }
        assert_eq!(history.seen(&named(999), "b@n2.example", at(1000)), Seen::Already);
        assert_eq!(history.seen(&named(950), "b@n2.example", at(1000)), Seen::Already);
        assert_eq!(history.seen(&named(800), "b@n2.example", at(1000)), Seen::TooOld);
        assert_eq!(history.seen(&named(1000), "b@n2.example", at(1000)), Seen::New);
    }

    #[test]
    fn parts_do_not_run_into_one_another() {
        assert_ne!(MeshMessageId::new(1, &[b"ab", b"c"]), MeshMessageId::new(1, &[b"a", b"bc"]));
    }

    proptest! {
        #[test]
        fn names_come_back_as_they_went(at in 0u64..1 << 48, body: Vec<u8>) {
            let name = message(at, &body);
            prop_assert_eq!(name.to_string().parse(), Ok(name));
            prop_assert_eq!(name.accepted_ms(), at);
        }

        /// Whatever the clock of the first hop said, within the age nothing is delivered twice.
        #[test]
        fn within_its_age_nothing_is_forgotten(at in 0u64..1 << 47, later in 0u64..30 * DAY) {
            let mut history = History::new(30 * DAY, MANY);
            let first = message(at, b"hello");
            history.remember(&first, "b@n2.example", NOW);
            history.forget(NOW + later);
            prop_assert_eq!(history.seen(&first, "b@n2.example", NOW + later), Seen::Already);
        }
    }
}
