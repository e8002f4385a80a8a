//! Text that messages must have in them to be looked at: what walks over very many in search of a few
//! passes over the others without understanding them.

use memchr::memmem::Finder;

/// Pieces of text, each of which must stand somewhere in what is recorded of a message when it is
/// accepted (paths, parameters, origin), in any case of ASCII letters.
#[derive(Clone, Debug, Default)]
pub struct Words(Vec<Finder<'static>>);

impl Words {
    /// Takes pieces of text. Of a piece with letters beyond ASCII, whose case is not folded here, only the
    /// ASCII parts count.
    pub fn new<'a>(pieces: impl IntoIterator<Item = &'a str>) -> Words {
        let parts = pieces.into_iter().flat_map(|piece| piece.split(|c: char| !c.is_ascii()));
        let finder = |part: &str| Finder::new(&part.to_ascii_lowercase()).into_owned();
        Words(parts.filter(|part| !part.is_empty()).map(finder).collect())
    }

    /// Returns whether all pieces stand in these octets.
    pub(crate) fn are_in(&self, octets: &[u8], folded: &mut Vec<u8>) -> bool {
        if self.0.is_empty() {
            return true;
        }
        folded.clear();
        folded.extend(octets.iter().map(u8::to_ascii_lowercase));
        self.0.iter().all(|word| word.find(folded).is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_pieces_must_be_there_in_any_case() {
        let octets = b"\x06\x11Anna@Example.ORG\xff";
        for (pieces, there) in [
            (&[][..], true),
            (&["", "ANNA@"], true),
            (&["example.org", "anna"], true),
            (&["anna", "bob"], false),
            // What is not ASCII is not looked for; what stands around it is.
            (&["ann\u{e4}@ex"], true),
            (&["bo\u{e4}"], false),
        ] {
            assert_eq!(Words::new(pieces.iter().copied()).are_in(octets, &mut Vec::new()), there, "{pieces:?}");
        }
    }
}
