//! Making text from outside harmless before it is quoted: bounded, on one line, without control or
//! direction characters. What a hostile next hop says reaches a person's screen only through here.

use std::fmt::Write;

/// The longest reply quoted, in octets; the rest is cut with a mark.
pub(super) const QUOTE_OCTETS_MAX: usize = 1_024;
/// Where lines of a notification are folded, in octets.
const FOLD_OCTETS: usize = 76;
const CUT: &str = " [cut]";

/// Returns `text` on one line: control and direction characters as `\x{HEX}`, no longer than
/// [`QUOTE_OCTETS_MAX`].
pub(super) fn quote(text: &str) -> String {
    escape(text, |c| !is_harmless(c))
}

/// Returns `text` as [`quote`] does, all that is not ASCII escaped too.
pub(super) fn quote_ascii(text: &str) -> String {
    escape(text, |c| !is_harmless(c) || !c.is_ascii())
}

fn escape(text: &str, needs_escape: impl Fn(char) -> bool) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if out.len() >= QUOTE_OCTETS_MAX {
            out.push_str(CUT);
            break;
        }
        match c {
            '\n' => out.push(' '),
            c if needs_escape(c) => write!(out, "\\x{{{:X}}}", u32::from(c)).expect("a String takes all"),
            c => out.push(c),
        }
    }
    out
}

/// Whether a character may be shown to a person: no control, no direction override, nothing that
/// hides what stands beside it.
fn is_harmless(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Writes a field, folded at spaces, a word that is too long for any line broken by force
/// (RFC 5322 §2.1.1: 998 octets at most).
pub(super) fn field(out: &mut String, name: &str, value: &str) {
    const WORD_OCTETS_MAX: usize = 900;
    let mut column = name.len() + 1;
    write!(out, "{name}:").expect("a String takes all");
    for word in value.split(' ').filter(|word| !word.is_empty()) {
        for piece in pieces(word, WORD_OCTETS_MAX) {
            if column + 1 + piece.len() > FOLD_OCTETS && column > name.len() + 1 {
                out.push_str("\r\n");
                column = 0;
            }
            out.push(' ');
            out.push_str(piece);
            column += 1 + piece.len();
        }
    }
    out.push_str("\r\n");
}

/// Cuts a word into pieces of at most `octets_max`, between characters.
fn pieces(word: &str, octets_max: usize) -> impl Iterator<Item = &str> {
    let mut rest = word;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let piece;
        (piece, rest) = rest.split_at(rest.floor_char_boundary(octets_max));
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_quoted_is_one_harmless_line() {
        assert_eq!(quote("a\nb\r\u{1b}[2J"), "a b\\x{D}\\x{1B}[2J");
        assert_eq!(quote("evil\u{202e}gpj.exe"), "evil\\x{202E}gpj.exe");
        assert_eq!(quote("schön"), "schön");
        assert_eq!(quote_ascii("schön"), "sch\\x{F6}n");
    }

    #[test]
    fn what_is_quoted_is_bounded() {
        for hostile in ["x".repeat(1 << 20), "\u{1}".repeat(1 << 20), "é".repeat(1 << 20)] {
            let quoted = quote(&hostile);
            assert!(quoted.len() <= QUOTE_OCTETS_MAX + 16 && quoted.ends_with(CUT));
        }
    }

    #[test]
    fn fields_fold_and_never_grow_too_long() {
        let mut out = String::new();
        field(&mut out, "Diagnostic-Code", &format!("smtp; 550 {} {}", "word ".repeat(40), "x".repeat(5_000)));
        assert!(out.split("\r\n").all(|line| line.len() <= 998));
        assert!(out.split("\r\n").skip(1).all(|line| line.is_empty() || line.starts_with(' ')));
        let mut out = String::new();
        field(&mut out, "Action", "failed");
        assert_eq!(out, "Action: failed\r\n");
    }
}
