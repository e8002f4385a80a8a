//! Message content on the wire: end of data and dot-stuffing (RFC 5321 §4.5.2), and the rule that
//! every line ends with CR LF.
//!
//! Content ends at CR LF `.` CR LF and nowhere else. A CR or LF that stands alone, and NUL, are
//! faults in both directions, so no two hosts can disagree about where a message ends. Nothing
//! depends on how the octets were split. Lines longer than the 998 octets of RFC 5322 §2.1.1 pass
//! as they are: refusing them would refuse real mail.

use std::ops::Range;

use memchr::memmem;

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
        let (Some(first), Some(last)) = (piece.first(), piece.last()) else { return Ok(()) };
        if self.after_cr != (*first == b'\n') || *first == 0 || !is_clean_inside(piece) {
            return Err(self.first_fault(piece));
        }
        self.after_cr = *last == b'\r';
        Ok(())
    }

    /// Checks that content may end here.
    ///
    /// # Errors
    /// [`ContentFault::LineEnd`] when the last octet was CR.
    pub fn check_end(&self) -> Result<(), ContentFault> {
        if self.after_cr { Err(ContentFault::LineEnd) } else { Ok(()) }
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

/// Returns whether every CR has its LF next to it and the other way round, and no octet but perhaps the
/// first is NUL. Without branches: the compiler makes one pass of it, many octets at a time.
fn is_clean_inside(octets: &[u8]) -> bool {
    let pairs = octets.iter().zip(octets.iter().skip(1));
    let fault = |(before, after): (&u8, &u8)| ((*before == b'\r') != (*after == b'\n')) | (*after == 0);
    pairs.fold(0, |faults, pair| faults | u8::from(fault(pair))) == 0
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
        let end = memmem::find(text, b"\n.").map_or(text.len(), |lf| lf + 1);
        if let Err(fault) = self.lines.check(&text[..end]) {
            return Decoded { consumed: octets.len(), event: Event::Fault(fault) };
        }
        self.place = if text[end - 1] == b'\n' { Place::Start } else { Place::Text };
        Decoded { consumed: start + end, event: Event::Content(start..start + end) }
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
    fn a_fault_is_found_wherever_it_stands() {
        let clean = b"so many octets\r\n".repeat(12);
        for (at, was) in clean.iter().enumerate() {
            for c in [b'\r', b'\n', 0] {
                let mut octets = clean.clone();
                octets[at] = c;
                assert_eq!(LineCheck::default().check(&octets).is_ok(), c == *was, "{c} at {at}");
            }
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
