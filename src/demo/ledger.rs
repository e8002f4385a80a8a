//! The ledger: what agent a accepted against what lies in the mailboxes behind agent c.
//!
//! A letter is known from the moment it is offered and owed from its 250 on. A copy counts as
//! delivered when the file is trace fields and then, octet for octet, what was submitted. The
//! ledger infers nothing: what it did not read is not delivered.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};

use super::letters::{Letter, MAILBOXES};
use super::site::Host;

/// The fields that hosts put on top of a message on its way.
const TRACE_FIELDS: [&str; 3] = ["Return-Path: ", "Delivered-To: ", "Received: "];

/// The books of one run.
#[derive(Debug, Default)]
pub struct Ledger {
    letters: HashMap<String, Entry>,
    read: HashSet<PathBuf>,
    tally: Tally,
    longest_way: Option<Way>,
}

#[derive(Debug)]
struct Entry {
    /// How many were offered before it.
    turn: usize,
    /// As a mailbox has it, with LF.
    content: Vec<u8>,
    accepted: bool,
    /// Copies found, for each recipient.
    copies: BTreeMap<&'static str, u32>,
}

/// The sums.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Letters that got their 250.
    pub letters: u64,
    /// Their recipients in all: so many copies are owed.
    pub owed: u64,
    /// First copies found, identical to what was submitted.
    pub delivered: u64,
    /// Further copies of the same letter in the same mailbox.
    pub duplicates: u64,
    /// Those that came from a to c without b.
    pub around: u64,
    /// Files that differ from what was submitted, or that nobody submitted.
    pub altered: Vec<PathBuf>,
}

/// A letter that took as many hops as any, read from its trace fields.
#[derive(Debug)]
struct Way {
    message_id: String,
    hops: usize,
    turn: usize,
}

impl Ledger {
    /// Enters a letter before it is submitted.
    pub fn offer(&mut self, letter: &Letter) {
        // A letter has CR in line ends only.
        let content = letter.content.iter().copied().filter(|octet| *octet != b'\r').collect();
        let copies = letter.recipients.iter().map(|name| (*name, 0)).collect();
        let entry = Entry { turn: self.letters.len(), content, accepted: false, copies };
        self.letters.insert(letter.message_id.clone(), entry);
    }

    /// Notes that a letter got its 250.
    pub fn accept(&mut self, letter: &Letter) {
        if let Some(entry) = self.letters.get_mut(&letter.message_id) {
            entry.accepted = true;
            self.tally.letters += 1;
            self.tally.owed += entry.copies.len() as u64;
        }
    }

    /// Reads what is new in the mailboxes below `dir`.
    ///
    /// # Errors
    /// A mailbox cannot be read.
    pub fn read_mailboxes(&mut self, dir: &Path) -> io::Result<()> {
        for name in MAILBOXES {
            let entries = match std::fs::read_dir(dir.join(name).join("new")) {
                Ok(entries) => entries,
                // It is made with the first delivery.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            for entry in entries {
                let path = entry?.path();
                if !self.read.contains(&path) {
                    let octets = std::fs::read(&path)?;
                    self.deliver(name, &path, &octets);
                    self.read.insert(path);
                }
            }
        }
        Ok(())
    }

    /// Looks for the longest way among what arrives from here on: a host that was killed has not written down
    /// all that it did just before.
    pub fn forget_ways(&mut self) {
        self.longest_way = None;
    }

    fn deliver(&mut self, mailbox: &str, path: &Path, octets: &[u8]) {
        let found = find(&mut self.letters, octets).and_then(|(id, trace, entry)| {
            let copies = entry.copies.get_mut(mailbox)?;
            Some((id, trace, entry.turn, copies))
        });
        let Some((message_id, trace, turn, copies)) = found else {
            self.tally.altered.push(path.to_owned());
            return;
        };
        *copies += 1;
        if *copies > 1 {
            self.tally.duplicates += 1;
            return;
        }
        self.tally.delivered += 1;
        let hops = hops(&trace);
        self.tally.around += u64::from(!hops.iter().any(|hop| is_by(hop, Host::B.hostname())));
        let way = Way { message_id, hops: hops.len(), turn };
        let is_better = |last: &Way| (way.hops, Reverse(way.turn)) > (last.hops, Reverse(last.turn));
        if self.longest_way.as_ref().is_none_or(is_better) {
            self.longest_way = Some(way);
        }
    }

    /// Returns the sums.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Returns the Message-ID of a letter that took as many hops as any, the first of them that was offered.
    pub fn farthest(&self) -> Option<&str> {
        self.longest_way.as_ref().map(|way| way.message_id.as_str())
    }

    /// Returns the copies that are owed and were not found, as Message-ID and mailbox.
    pub fn missing(&self) -> Vec<(&str, &'static str)> {
        let owed = self.letters.iter().filter(|(_, entry)| entry.accepted);
        let copies = owed.flat_map(|(id, entry)| entry.copies.iter().map(move |(name, copies)| (id, name, copies)));
        copies.filter(|(_, _, copies)| **copies == 0).map(|(id, name, _)| (id.as_str(), *name)).collect()
    }

    /// Returns whether every copy that is owed lies in its mailbox as it was submitted, and nothing
    /// strange does.
    pub fn is_balanced(&self) -> bool {
        self.tally.altered.is_empty() && self.missing().is_empty()
    }
}

/// Splits a file into its trace fields and the letter that follows, when there is such a letter.
fn find<'a>(letters: &'a mut HashMap<String, Entry>, octets: &[u8]) -> Option<(String, String, &'a mut Entry)> {
    let end = memchr::memmem::find(octets, b"\n\n").unwrap_or(octets.len());
    let header = String::from_utf8_lossy(&octets[..end]);
    let id = header.lines().find_map(|line| line.strip_prefix("Message-ID: <")?.strip_suffix('>'))?;
    let entry = letters.get_mut(id)?;
    let trace = octets.strip_suffix(entry.content.as_slice())?;
    let trace = String::from_utf8(trace.to_vec()).ok()?;
    is_trace(&trace).then_some((id.to_owned(), trace, entry))
}

fn is_trace(text: &str) -> bool {
    let is_field = |line: &str| TRACE_FIELDS.iter().any(|field| line.starts_with(field));
    let is_whole = text.is_empty() || text.ends_with('\n');
    is_whole
        && !text.starts_with([' ', '\t'])
        && text.lines().all(|line| line.starts_with([' ', '\t']) || is_field(line))
}

fn hops(trace: &str) -> Vec<String> {
    let unfolded = trace.replace("\n ", " ").replace("\n\t", " ");
    let mut hops: Vec<String> =
        unfolded.lines().filter_map(|line| line.strip_prefix("Received: ")).map(str::to_owned).collect();
    hops.reverse();
    hops
}

/// Returns whether a Received field was written by this host.
fn is_by(hop: &str, host: &str) -> bool {
    let by = hop.split_whitespace().skip_while(|word| *word != "by").nth(1);
    by.is_some_and(|name| name.trim_end_matches(';') == host)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "Return-Path: <demo@field.test>\nDelivered-To: alice@office.test\n\
                         Received: from b.demo.test\n by c.demo.test; now\nReceived: from a.demo.test\n by b.demo.test; then\n\
                         Received: by a.demo.test; before\n";

    fn books(numbers: &[usize]) -> (Ledger, Vec<Letter>) {
        let mut ledger = Ledger::default();
        let letters: Vec<Letter> = numbers.iter().map(|number| Letter::write("t", *number)).collect();
        letters.iter().for_each(|letter| ledger.offer(letter));
        (ledger, letters)
    }

    fn file(letter: &Letter, trace: &str) -> Vec<u8> {
        let content = String::from_utf8(letter.content.clone()).expect("UTF-8").replace("\r\n", "\n");
        [trace, &content].concat().into_bytes()
    }

    #[test]
    fn accepted_equals_delivered() {
        let (mut ledger, letters) = books(&[0, 3]);
        assert!(ledger.is_balanced(), "nothing is owed before the first 250");
        letters.iter().for_each(|letter| ledger.accept(letter));
        assert!(!ledger.is_balanced() && ledger.missing().len() == 3);
        ledger.deliver("alice", Path::new("1"), &file(&letters[0], TRACE));
        ledger.deliver("alice", Path::new("2"), &file(&letters[1], TRACE));
        assert_eq!(ledger.missing(), [("t.3@field.test", "bob")]);
        let straight = "Received: from a.demo.test by c.demo.test; now\nReceived: by a.demo.test; before\n";
        ledger.deliver("bob", Path::new("3"), &file(&letters[1], straight));
        assert!(ledger.is_balanced());
        ledger.deliver("bob", Path::new("4"), &file(&letters[1], TRACE));
        let tally = Tally { letters: 2, owed: 3, delivered: 3, duplicates: 1, around: 1, altered: vec![] };
        assert_eq!((ledger.tally(), ledger.is_balanced()), (&tally, true));
        assert_eq!(ledger.farthest(), Some("t.0@field.test"), "both came over b, and this one was offered first");
        assert_eq!(hops(TRACE)[0], "by a.demo.test; before");
    }

    #[test]
    fn a_copy_that_differs_in_one_octet_does_not_count() {
        let (mut ledger, letters) = books(&[0]);
        ledger.accept(&letters[0]);
        let good = file(&letters[0], TRACE);
        let mut files = vec![good[..good.len() - 1].to_vec(), [&good[..], b"\n"].concat()];
        for at in [TRACE.len(), good.len() / 2, good.len() - 1] {
            let mut octets = good.clone();
            octets[at] ^= 1;
            files.push(octets);
        }
        files.push(file(&letters[0], &format!("{TRACE}X-Scanned: yes\n")));
        files.push(b"Subject: not ours\n\n".to_vec());
        for (number, octets) in files.iter().enumerate() {
            ledger.deliver("alice", Path::new("x"), octets);
            assert_eq!(ledger.tally().altered.len(), number + 1, "file {number}");
        }
        ledger.deliver("bob", Path::new("wrong mailbox"), &good);
        assert_eq!((ledger.tally().altered.len(), ledger.tally().delivered), (files.len() + 1, 0));
        assert!(!ledger.is_balanced());
    }
}
