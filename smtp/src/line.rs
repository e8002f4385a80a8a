//! Lines out of octets that arrive in any chunking (RFC 5321 §2.3.8).
//!
//! [`Input`] is the receive buffer of one connection: the shell appends what it read, a machine
//! consumes from the front. Only CR LF ends a line; where another line end stood is told, never
//! mended. A line longer than its limit is skipped without being stored.

use std::ops::Range;

/// Skipping an overlong line ends here: a peer that sends more without a line end is no SMTP client.
pub const SKIP_OCTETS_MAX: usize = 65_536;

/// The receive buffer of one connection.
#[derive(Debug, Default)]
pub struct Input {
    octets: Vec<u8>,
    /// Everything before this index was consumed.
    read: usize,
    /// No line feed stands between `read` and this index.
    searched: usize,
    /// How many octets of an overlong line were dropped so far; 0 when none is being skipped.
    skipped: usize,
}

/// What [`Input::take_line`] found at the front.
#[derive(Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// A line, without its CR LF. A lone CR may stand inside: that is for its reader to refuse.
    Complete(&'a [u8]),
    /// A line that ended with LF alone.
    BareLineFeed,
    /// A line longer than the limit has just ended; it was dropped.
    TooLong,
    /// More than [`SKIP_OCTETS_MAX`] octets without a line end.
    Endless,
    /// The line is not complete yet.
    Incomplete,
}

impl Input {
    /// Makes an empty buffer that owns no memory.
    pub const fn new() -> Input {
        Input { octets: Vec::new(), read: 0, searched: 0, skipped: 0 }
    }

    /// Returns how many octets wait to be consumed.
    pub fn len(&self) -> usize {
        self.octets.len() - self.read
    }

    /// Returns whether every octet was consumed.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends octets that arrived.
    pub fn extend(&mut self, octets: &[u8]) {
        self.spare(octets.len()).extend_from_slice(octets);
    }

    /// Returns the buffer with room for at least `octets` more. The caller may only append.
    pub fn spare(&mut self, octets: usize) -> &mut Vec<u8> {
        if self.is_empty() {
            self.octets.clear();
        } else if self.read > 0 {
            self.octets.drain(..self.read);
        }
        self.searched = self.searched.saturating_sub(self.read);
        self.read = 0;
        self.octets.reserve(octets);
        &mut self.octets
    }

    /// Gives the memory back when every octet was consumed: idle connections hold no buffer.
    pub fn release(&mut self) {
        if self.is_empty() {
            *self = Input { skipped: self.skipped, ..Input::new() };
        }
    }

    /// Takes one line of at most `octets_max` octets, its CR LF included, from the front.
    pub fn take_line(&mut self, octets_max: usize) -> Line<'_> {
        let from = self.searched.max(self.read);
        let Some(found) = memchr::memchr(b'\n', &self.octets[from..]) else {
            return self.keep_partial(octets_max);
        };
        let (start, end) = (self.read, from + found);
        self.read = end + 1;
        if self.skipped > 0 || self.read - start > octets_max {
            self.skipped = 0;
            return Line::TooLong;
        }
        match &self.octets[start..end] {
            [line @ .., b'\r'] => Line::Complete(line),
            _ => Line::BareLineFeed,
        }
    }

    fn keep_partial(&mut self, octets_max: usize) -> Line<'_> {
        self.searched = self.octets.len();
        if self.skipped > 0 || self.len() > octets_max {
            self.skipped += self.len();
            self.read = self.octets.len();
        }
        if self.skipped > SKIP_OCTETS_MAX { Line::Endless } else { Line::Incomplete }
    }

    /// Returns the first octet of the line at the front, unless that line is being skipped.
    pub(crate) fn line_start(&self) -> Option<u8> {
        if self.skipped == 0 { self.unread().first().copied() } else { None }
    }

    /// Returns the octets that wait.
    pub fn unread(&self) -> &[u8] {
        &self.octets[self.read..]
    }

    /// Consumes `octets` octets and returns where they stand; [`Input::slice`] reads them until
    /// the next append.
    pub(crate) fn take(&mut self, octets: usize) -> Range<usize> {
        let start = self.read;
        self.read += octets;
        debug_assert!(self.read <= self.octets.len(), "no more is consumed than arrived");
        start..self.read
    }

    /// Reads octets that [`Input::take`] consumed since the last append.
    pub(crate) fn slice(&self, range: Range<usize>) -> &[u8] {
        &self.octets[range]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_ends_with_cr_lf_only() {
        let mut input = Input::new();
        input.extend(b"NOOP\r\nRSET\nA\rB\r\n\r\nQU");
        assert_eq!(input.take_line(512), Line::Complete(b"NOOP"));
        assert_eq!(input.take_line(512), Line::BareLineFeed);
        assert_eq!(input.take_line(512), Line::Complete(b"A\rB"));
        assert_eq!(input.take_line(512), Line::Complete(b""));
        assert_eq!(input.take_line(512), Line::Incomplete);
        input.extend(b"IT\r\n");
        assert_eq!(input.take_line(512), Line::Complete(b"QUIT"));
        assert!(input.is_empty());
    }

    #[test]
    fn an_overlong_line_is_dropped_as_it_arrives_and_told_at_its_end() {
        let mut input = Input::new();
        for _ in 0..100 {
            input.extend(&[b'x'; 100]);
            assert_eq!(input.take_line(512), Line::Incomplete);
            assert!(input.len() <= 512);
        }
        input.extend(b"x\r\nNOOP\r\n");
        assert_eq!(input.take_line(512), Line::TooLong);
        assert_eq!(input.take_line(512), Line::Complete(b"NOOP"));
    }

    #[test]
    fn the_limit_counts_the_line_end() {
        for (limit, want) in [(6, Line::Complete(b"NOOP")), (5, Line::TooLong)] {
            let mut input = Input::new();
            input.extend(b"NOOP\r\n");
            assert_eq!(input.take_line(limit), want);
        }
    }

    #[test]
    fn a_line_without_end_is_not_read_for_ever() {
        let mut input = Input::new();
        let mut sent = 0;
        loop {
            input.extend(&[b'x'; 1000]);
            sent += 1000;
            if input.take_line(512) == Line::Endless {
                break;
            }
            assert!(sent <= SKIP_OCTETS_MAX + 1000);
        }
    }

    #[test]
    fn an_idle_buffer_owns_no_memory() {
        let mut input = Input::new();
        input.extend(b"NOOP\r\n");
        input.release();
        assert_eq!(input.take_line(512), Line::Complete(b"NOOP"));
        input.release();
        assert_eq!(input.octets.capacity(), 0);
    }
}
