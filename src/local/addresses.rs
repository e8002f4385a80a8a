//! Finds the addresses in a field of the header section (RFC 5322 §3.4), so that they can be sent to, or
//! completed where they stand. Comments, display names and groups are passed over; nothing is changed.

use std::ops::Range;

/// What stands at one place of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// An address: these octets, without brackets.
    Address(Range<usize>),
    /// Something that is none.
    Malformed,
}

/// What was read of one mailbox so far.
#[derive(Default)]
struct Reading {
    /// What stands outside brackets and comments.
    words: Vec<Range<usize>>,
    angle: Option<Range<usize>>,
    /// A word is not at its end.
    in_word: bool,
}

/// Returns what a list of addresses holds, in its order.
pub fn find(value: &[u8]) -> Vec<Found> {
    let (mut found, mut reading, mut at) = (Vec::new(), Reading::default(), 0);
    while let Some(c) = value.get(at) {
        let end = match c {
            b'(' => behind_comment(value, at),
            b'"' => behind(value, at, b'"'),
            b'[' => behind(value, at, b']'),
            b'<' => behind(value, at, b'>'),
            _ => Some(at + 1),
        };
        let Some(end) = end else {
            found.push(Found::Malformed);
            return found;
        };
        match c {
            b'(' | b' ' | b'\t' | b'\r' | b'\n' => reading.in_word = false,
            b'<' => {
                reading.angle = Some(trimmed(value, at + 1..end - 1));
                reading.in_word = false;
            }
            b',' | b';' => found.extend(std::mem::take(&mut reading).finish()),
            // The name of a group.
            b':' => reading = Reading::default(),
            _ => reading.add(at..end),
        }
        at = end;
    }
    found.extend(reading.finish());
    found
}

impl Reading {
    fn add(&mut self, piece: Range<usize>) {
        match self.words.last_mut() {
            Some(word) if self.in_word => word.end = piece.end,
            _ => self.words.push(piece),
        }
        self.in_word = true;
    }

    fn finish(self) -> Option<Found> {
        match (self.angle, &self.words[..]) {
            // Nobody: `<>`.
            (Some(angle), _) if angle.is_empty() => None,
            (Some(angle), _) => Some(Found::Address(angle)),
            (None, []) => None,
            (None, [word]) => Some(Found::Address(word.clone())),
            (None, _) => Some(Found::Malformed),
        }
    }
}

/// Returns the place behind what ends with `last`; in it a backslash and quotes hide octets.
fn behind(value: &[u8], start: usize, last: u8) -> Option<usize> {
    let mut at = start + 1;
    while let Some(c) = value.get(at) {
        at = match c {
            b'\\' => at + 2,
            c if *c == last => return Some(at + 1),
            b'"' => behind(value, at, b'"')?,
            _ => at + 1,
        };
    }
    None
}

/// Comments may stand in one another.
fn behind_comment(value: &[u8], start: usize) -> Option<usize> {
    let (mut depth, mut at) = (0_usize, start);
    while let Some(c) = value.get(at) {
        match c {
            b'\\' => at += 1,
            b'(' => depth += 1,
            b')' => depth -= 1,
            _ => {}
        }
        at += 1;
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

fn trimmed(value: &[u8], range: Range<usize>) -> Range<usize> {
    let inner = &value[range.clone()];
    let start = range.start + (inner.len() - inner.trim_ascii_start().len());
    start..start + inner.trim_ascii().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(value: &str) -> Vec<&str> {
        let text = |found: Found| match found {
            Found::Address(range) => &value[range],
            Found::Malformed => "?",
        };
        find(value.as_bytes()).into_iter().map(text).collect()
    }

    #[test]
    fn addresses_are_found_wherever_they_stand() {
        for (value, want) in [
            (" root (Cron Daemon)", &["root"][..]),
            ("\"Doe, J\" <j@x.example>, bob@y.example (B. (x) \\) z),", &["j@x.example", "bob@y.example"]),
            ("team: a@x.example, b;, c", &["a@x.example", "b", "c"]),
            ("undisclosed-recipients:;", &[]),
            ("\"a b\"@x.example,\r\n <@relay.example:c@d>", &["\"a b\"@x.example", "@relay.example:c@d"]),
            ("<>", &[]),
            ("a@[IPv6:::1], x", &["a@[IPv6:::1]", "x"]),
            ("Cron Daemon, a", &["?", "a"]),
            ("a, \"open", &["a", "?"]),
            ("(never closed", &["?"]),
            ("x <a\\", &["?"]),
            ("", &[]),
        ] {
            assert_eq!(texts(value), want, "{value}");
        }
    }

    proptest::proptest! {
        #[test]
        fn whatever_stands_there_is_read(value in "[a(\"<>\\[\\]:;,@\\\\) \\r\\n.é]{0,40}") {
            for found in find(value.as_bytes()) {
                if let Found::Address(range) = found {
                    assert!(!range.is_empty() && range.end <= value.len());
                }
            }
        }
    }
}
