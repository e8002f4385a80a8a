//! Message content on the wire: end of data and dot-stuffing (RFC 5321 §4.5.2), and the rule that
//! every line ends with CR LF.
//!
//! Content ends at CR LF `.` CR LF and nowhere else. A CR or LF that stands alone, and NUL, are
//! faults in both directions, so no two hosts can disagree about where a message ends. Nothing
//! depends on how the octets were split. Lines longer than the 998 octets of RFC 5322 §2.1.1 pass
//! as they are: refusing them would refuse real mail.

use std::ops::Range;

use memchr::{memchr, memchr_iter, memmem};

/// What must not stand in content: whoever sends it, nothing behind it may be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContentFault {
    /// A CR without LF, or a LF without CR.
    #[error("a line of the message does not end with CR LF")]
    LineEnd,
    /// A NUL octet.
    #[error("the message contains a NUL octet")]
    Nul,
}

/// Checks line ends across pieces of any size.
#[derive(Clone, Copy, Debug, Default)]
pub struct LineCheck {
    /// The last octet so far was CR.
    after_cr: bool,
}

impl LineCheck {
    /// Checks the next piece.
    ///
    /// # Errors
    /// The fault in it; the content is not to be used then.
    pub fn check(&mut self, piece: &[u8]) -> Result<(), ContentFault> {
        self.check_up_to(piece, |_| false).map(|_| ())
    }

    /// Checks that content may end here.
    ///
    /// # Errors
    /// [`ContentFault::LineEnd`] when the last octet was CR.
    pub fn check_end(&self) -> Result<(), ContentFault> {
        if self.after_cr { Err(ContentFault::LineEnd) } else { Ok(()) }
    }

    /// Checks `piece` up to the first line start where `stop(index)` holds and returns where that is.
    fn check_up_to(&mut self, piece: &[u8], stop: impl Fn(usize) -> bool) -> Result<usize, ContentFault> {
        let (end, clean) = self.scan(piece, stop);
        match piece[..end].last() {
            _ if !clean => Err(self.first_fault(piece)),
            None => Ok(end),
            Some(last) => {
                self.after_cr = *last == b'\r';
                Ok(end)
            }
        }
    }

    /// Returns where the scan ended and whether all before it is clean, at memory speed.
    fn scan(self, piece: &[u8], stop: impl Fn(usize) -> bool) -> (usize, bool) {
        let mut end = piece.len();
        let mut crs_due = 0;
        for lf in memchr_iter(b'\n', piece) {
            match lf.checked_sub(1) {
                Some(before) if piece[before] == b'\r' => crs_due += 1,
                None if self.after_cr => {}
                _ => return (lf + 1, false),
            }
            if stop(lf + 1) {
                end = lf + 1;
                break;
            }
        }
        let checked = &piece[..end];
        let continued = !self.after_cr || checked.first().is_none_or(|c| *c == b'\n');
        // Each LF had its CR; a CR more than that stands alone, unless its LF is yet to come.
        let crs_due = crs_due + usize::from(checked.last() == Some(&b'\r'));
        let clean = continued && memchr_iter(b'\r', checked).count() == crs_due && memchr(0, checked).is_none();
        (end, clean)
    }

    /// Returns the fault that comes first, so that the split of the content does not decide it.
    fn first_fault(self, piece: &[u8]) -> ContentFault {
        let mut after_cr = self.after_cr;
        for c in piece {
            if after_cr != (*c == b'\n') {
                return ContentFault::LineEnd;
            }
            if *c == 0 {
                return ContentFault::Nul;
            }
            after_cr = *c == b'\r';
        }
        ContentFault::LineEnd
    }
}

/// The receiver's half of DATA: finds the end, takes stuffed dots out, copies nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct ContentDecoder {
    place: Place,
    lines: LineCheck,
}

/// Where in a line the decoder stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    /// At the start of a line.
    #[default]
    Start,
    /// Behind a dot at the start of a line: stuffed, or the end.
    Dot,
    /// Behind a dot and CR at the start of a line.
    DotCr,
    /// Anywhere else.
    Text,
}

/// One step of [`ContentDecoder::decode`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// How many octets to consume, whatever `event` says.
    pub consumed: usize,
    /// What they were.
    pub event: Event,
}

/// What a step of the decoder found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Content: this range of the octets given. Never empty.
    Content(Range<usize>),
    /// All octets were consumed without content; more are needed.
    More,
    /// CR LF `.` CR LF: the content is complete.
    End,
    /// The content is faulty; decoding ends here.
    Fault(ContentFault),
}

impl ContentDecoder {
    /// Makes a decoder at the start of content.
    pub fn new() -> ContentDecoder {
        ContentDecoder::default()
    }

    /// Decodes the front of `octets`. Call again with what was not consumed until it asks for
    /// more or ends.
    pub fn decode(&mut self, octets: &[u8]) -> Decoded {
        let mut at = 0;
        while self.place != Place::Text {
            let Some(&c) = octets.get(at) else { return Decoded { consumed: at, event: Event::More } };
            let step = match (self.place, c) {
                (Place::Start, b'.') => Ok(Place::Dot),
                (Place::Dot, b'\r') => Ok(Place::DotCr),
                (Place::DotCr, b'\n') => Err(Event::End),
                (Place::DotCr, _) => Err(Event::Fault(ContentFault::LineEnd)),
                _ => break,
            };
            at += 1;
            match step {
                Ok(place) => self.place = place,
                Err(event) => return Decoded { consumed: at, event },
            }
        }
        self.decode_text(octets, at)
    }

    fn decode_text(&mut self, octets: &[u8], start: usize) -> Decoded {
        let text = &octets[start..];
        if text.is_empty() {
            return Decoded { consumed: start, event: Event::More };
        }
        match self.lines.check_up_to(text, |at| text.get(at) == Some(&b'.')) {
            Err(fault) => Decoded { consumed: octets.len(), event: Event::Fault(fault) },
            Ok(end) => {
                self.place = if text[end - 1] == b'\n' { Place::Start } else { Place::Text };
                Decoded { consumed: start + end, event: Event::Content(start..start + end) }
            }
        }
    }
}

/// The sender's half of DATA: stuffs dots and writes the end.
#[derive(Clone, Copy, Debug)]
pub struct DotStuffer {
    lines: LineCheck,
    at_line_start: bool,
}

impl Default for DotStuffer {
    fn default() -> DotStuffer {
        DotStuffer::new()
    }
}

impl DotStuffer {
    /// Makes a stuffer at the start of content.
    pub fn new() -> DotStuffer {
        DotStuffer { lines: LineCheck::default(), at_line_start: true }
    }

    /// Appends the next piece of content to `out` as it goes on the wire.
    ///
    /// # Errors
    /// The fault in the piece; the connection must end then, without the end of data.
    pub fn stuff(&mut self, piece: &[u8], out: &mut Vec<u8>) -> Result<(), ContentFault> {
        self.lines.check(piece)?;
        let Some(last) = piece.last() else { return Ok(()) };
        out.reserve(piece.len() + 16);
        if self.at_line_start && piece[0] == b'.' {
            out.push(b'.');
        }
        let mut copied = 0;
        for lf in memmem::find_iter(piece, b"\n.") {
            out.extend_from_slice(&piece[copied..=lf]);
            out.push(b'.');
            copied = lf + 1;
        }
        out.extend_from_slice(&piece[copied..]);
        self.at_line_start = *last == b'\n';
        Ok(())
    }

    /// Appends the end of data; an unfinished last line is finished first.
    ///
    /// # Errors
    /// [`ContentFault::LineEnd`] when the content ended with CR.
    pub fn finish(self, out: &mut Vec<u8>) -> Result<(), ContentFault> {
        self.lines.check_end()?;
        out.extend_from_slice(if self.at_line_start { b".\r\n" } else { b"\r\n.\r\n" });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes `wire` in pieces of `size` octets: the content, how it ended, and what was left.
    fn decode(wire: &[u8], size: usize) -> (Vec<u8>, Event, Vec<u8>) {
        let mut decoder = ContentDecoder::new();
        let mut content = Vec::new();
        let mut taken = 0;
        for piece in wire.chunks(size) {
            let mut rest = piece;
            loop {
                let decoded = decoder.decode(rest);
                taken += decoded.consumed;
                match decoded.event {
                    Event::Content(range) => content.extend_from_slice(&rest[range]),
                    Event::More => break,
                    end => return (content, end, wire[taken..].to_vec()),
                }
                rest = &rest[decoded.consumed..];
            }
        }
        (content, Event::More, Vec::new())
    }

    #[test]
    fn content_ends_at_one_sequence_only_in_every_chunking() {
        let cases: [(&[u8], &[u8], &[u8]); 6] = [
            (b".\r\nNOOP", b"", b"NOOP"),
            (b"a\r\n.\r\nRSET", b"a\r\n", b"RSET"),
            (b"..\r\n.\r\n", b".\r\n", b""),
            (b".a\r\n...b\r\n.\r\n", b"a\r\n..b\r\n", b""),
            (b"\r\n.\r\n", b"\r\n", b""),
            (b"a.\r\nb.\r\n.\r\n.\r\n", b"a.\r\nb.\r\n", b".\r\n"),
        ];
        for (wire, content, left) in cases {
            for size in 1..=wire.len() {
                assert_eq!(decode(wire, size), (content.to_vec(), Event::End, left.to_vec()), "{wire:?} by {size}");
            }
        }
    }

    #[test]
    fn every_other_line_end_is_a_fault_in_every_chunking() {
        let cases: [&[u8]; 12] = [
            b"a\n.\n",
            b"a\n.\r\n",
            b"a\r\n.\n",
            b"a\r.\r\n",
            b"a\r\n.\r\r\n",
            b"a\r\n\r.\r\n",
            b"a\r\r\n",
            b"\n",
            b"\ra",
            b".\n",
            b".\rx",
            b"a\n\r\n",
        ];
        for wire in cases {
            for size in 1..=wire.len() {
                assert_eq!(decode(wire, size).1, Event::Fault(ContentFault::LineEnd), "{wire:?} by {size}");
            }
        }
        for size in 1..=8 {
            assert_eq!(decode(b"a\r\nb\0\n\rc", size).1, Event::Fault(ContentFault::Nul), "the first one, by {size}");
        }
    }

    #[test]
    fn stuffing_survives_every_piece_boundary() {
        let content = b".\r\n..\r\na\r\n.b\r\n\r\n.";
        for size in 1..=content.len() {
            let (mut stuffer, mut wire) = (DotStuffer::new(), Vec::new());
            content.chunks(size).for_each(|piece| stuffer.stuff(piece, &mut wire).expect("clean"));
            stuffer.finish(&mut wire).expect("clean");
            let mut want = content.to_vec();
            want.extend_from_slice(b"\r\n");
            assert_eq!(decode(&wire, 7), (want, Event::End, Vec::new()), "by {size}");
        }
    }

    #[test]
    fn a_lone_cr_or_lf_never_leaves() {
        for content in [&b"a\nb"[..], b"a\rb", b"a\0", b"\n"] {
            assert!(DotStuffer::new().stuff(content, &mut Vec::new()).is_err(), "{content:?}");
        }
        let mut stuffer = DotStuffer::new();
        stuffer.stuff(b"a\r", &mut Vec::new()).expect("its LF may follow");
        assert!(stuffer.finish(&mut Vec::new()).is_err());
    }
}
