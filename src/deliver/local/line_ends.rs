//! Line ends on their way from the wire to a file: CRLF becomes LF, in any chunking.
//!
//! A CR that no LF follows stays, so nothing but line ends is ever changed.

use memchr::memchr;

/// Converts pieces of content; remembers a CR at the end of a piece.
#[derive(Debug, Default)]
pub struct LineEnds {
    pending_cr: bool,
}

impl LineEnds {
    /// Appends `piece` to `out` with LF line ends.
    pub fn convert(&mut self, mut piece: &[u8], out: &mut Vec<u8>) {
        if let (true, Some(first)) = (self.pending_cr, piece.first()) {
            self.pending_cr = false;
            if *first != b'\n' {
                out.push(b'\r');
            }
        }
        while let Some(at) = memchr(b'\r', piece) {
            out.extend_from_slice(&piece[..at]);
            piece = &piece[at + 1..];
            match piece.first() {
                Some(b'\n') => {}
                Some(_) => out.push(b'\r'),
                None => self.pending_cr = true,
            }
        }
        out.extend_from_slice(piece);
    }

    /// Appends the CR that the content ended with, if it did.
    pub fn finish(self, out: &mut Vec<u8>) {
        if self.pending_cr {
            out.push(b'\r');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn convert(pieces: &[&[u8]]) -> Vec<u8> {
        let (mut out, mut ends) = (Vec::new(), LineEnds::default());
        pieces.iter().for_each(|piece| ends.convert(piece, &mut out));
        ends.finish(&mut out);
        out
    }

    #[test]
    fn only_line_ends_change() {
        assert_eq!(convert(&[b"a\r\n.\r\n..\r\n\r\nb"]), b"a\n.\n..\n\nb");
        assert_eq!(convert(&[b"\r\r\n\r", b"\r", b"\nx\r"]), b"\r\n\r\nx\r");
        assert_eq!(convert(&[b""]), b"");
    }

    proptest! {
        #[test]
        fn every_chunking_gives_the_same_file(
            content in proptest::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'x'), any::<u8>()], 0..64),
            cuts in proptest::collection::vec(1usize..5, 1..64),
        ) {
            let whole = convert(&[&content]);
            let (mut pieces, mut rest) = (Vec::new(), &content[..]);
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, behind) = rest.split_at((*cut).min(rest.len()));
                pieces.push(piece);
                rest = behind;
            }
            prop_assert_eq!(convert(&pieces), whole.clone());
            let plain = String::from_utf8_lossy(&content).replace("\r\n", "\n");
            prop_assert_eq!(String::from_utf8_lossy(&whole), plain);
        }
    }
}
