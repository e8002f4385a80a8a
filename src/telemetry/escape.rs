//! Text of others made safe for a line of a log and for a terminal.
//!
//! Escaped are C0 and C1 controls, DEL, line and paragraph separators and the characters that turn
//! the direction of text; all else, UTF-8 included, stays readable. The escapes are JSON's.

use std::fmt::Write;

/// Returns `text` as it may be shown on a terminal.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    push_escaped(&mut out, text, false);
    out
}

/// Appends `text` without quotes; in quoted text `"` and `\` are escaped as well.
pub fn push_escaped(out: &mut String, text: &str, quoted: bool) {
    let is_plain = |octet: u8| matches!(octet, b' '..=b'~') && !(quoted && matches!(octet, b'"' | b'\\'));
    if text.bytes().all(is_plain) {
        return out.push_str(text);
    }
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '"' | '\\' if quoted => out.extend(['\\', c]),
            c if is_unsafe(c) => push_code(out, c),
            c => out.push(c),
        }
    }
}

/// Appends `text` as a JSON string.
pub fn push_quoted(out: &mut String, text: &str) {
    out.push('"');
    push_escaped(out, text, true);
    out.push('"');
}

/// Appends `text` as the value of `key=value`: bare when nothing in it could be misread.
pub fn push_value(out: &mut String, text: &str) {
    let is_bare = |c: char| match c {
        '"' | '\'' | '=' | '\\' | '`' => false,
        '!'..='~' => true,
        c => c.is_alphanumeric() && !is_unsafe(c),
    };
    if !text.is_empty() && text.chars().all(is_bare) {
        out.push_str(text);
    } else {
        push_quoted(out, text);
    }
}

fn push_code(out: &mut String, c: char) {
    let mut units = [0; 2];
    for unit in c.encode_utf16(&mut units) {
        write!(out, "\\u{unit:04x}").expect("writing to a string cannot fail");
    }
}

fn is_unsafe(c: char) -> bool {
    // Bidirectional controls reorder a line on the screen (CVE-2021-42574).
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn value(text: &str) -> String {
        let mut out = String::new();
        push_value(&mut out, text);
        out
    }

    #[test]
    fn plain_values_stay_bare_and_others_are_quoted() {
        assert_eq!(value("<a@b.example>"), "<a@b.example>");
        assert_eq!(value("bücher"), "bücher");
        assert_eq!(value(""), r#""""#);
        assert_eq!(value("two words"), r#""two words""#);
        assert_eq!(value("a=b"), r#""a=b""#);
        assert_eq!(value("x\r\nINFO forged"), r#""x\r\nINFO forged""#);
        assert_eq!(value("\u{1b}[2J\u{9b}\u{7f}\u{202e}"), r#""\u001b[2J\u009b\u007f\u202e""#);
    }

    proptest! {
        #[test]
        fn a_quoted_value_reads_back_and_stays_on_its_line(text: String) {
            let mut out = String::new();
            push_quoted(&mut out, &text);
            prop_assert!(!out.chars().any(char::is_control));
            prop_assert_eq!(serde_json::from_str::<String>(&out).expect("JSON"), text);
        }
    }
}
