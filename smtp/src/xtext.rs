//! xtext (RFC 3461 §4) and its UTF-8 relative (RFC 6533 §3): how parameter values carry any text.
//!
//! Decoding refuses whatever could end a line or a field later: no control character comes out,
//! however it was written.

use std::fmt::{self, Write};

use crate::envelope::DSN_VALUE_OCTETS_MAX;

/// Decodes xtext to printable ASCII; `None` when it is malformed, empty, too long or hides
/// another octet.
pub fn decode(value: &str) -> Option<Box<str>> {
    let octets = value.as_bytes();
    let mut out = String::with_capacity(octets.len());
    let mut at = 0;
    while let Some(&c) = octets.get(at) {
        let (c, width) = match c {
            b'+' => (hex_pair(octets.get(at + 1..at + 3)?)?, 3),
            b'!'..=b'~' if c != b'=' => (c, 1),
            _ => return None,
        };
        if !(b' '..=b'~').contains(&c) {
            return None;
        }
        out.push(char::from(c));
        at += width;
    }
    bounded(out)
}

/// Decodes the address of `ORCPT=utf-8;…`: `\x{HEX}` stands for any character, UTF-8 for itself.
pub fn decode_utf8(value: &str) -> Option<Box<str>> {
    let mut out = String::with_capacity(value.len());
    let mut rest = value;
    while let Some(c) = rest.chars().next() {
        let (c, width) = match c {
            '\\' => {
                let hex = rest.strip_prefix("\\x{")?.split_once('}')?.0;
                let good = (2..=6).contains(&hex.len()) && hex.bytes().all(|c| c.is_ascii_hexdigit());
                let point = good.then(|| u32::from_str_radix(hex, 16).ok()).flatten()?;
                (char::from_u32(point)?, hex.len() + "\\x{}".len())
            }
            '+' => (hex_pair(rest.as_bytes().get(1..3)?).filter(u8::is_ascii).map(char::from)?, 3),
            '=' | ' ' => return None,
            other => (other, other.len_utf8()),
        };
        if c.is_control() {
            return None;
        }
        out.push(c);
        rest = &rest[width..];
    }
    bounded(out)
}

fn bounded(text: String) -> Option<Box<str>> {
    (1..=DSN_VALUE_OCTETS_MAX).contains(&text.len()).then(|| text.into())
}

/// RFC 3461 writes the digits in upper case; lower case is read as well.
fn hex_pair(pair: &[u8]) -> Option<u8> {
    let digit = |c: u8| char::from(c).to_digit(16);
    let value = digit(pair[0])? * 16 + digit(pair[1])?;
    u8::try_from(value).ok()
}

/// Shows printable ASCII as xtext.
pub struct Xtext<'a>(pub &'a str);

impl fmt::Display for Xtext<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.bytes().try_for_each(|c| match c {
            b'!'..=b'~' if c != b'+' && c != b'=' => f.write_char(char::from(c)),
            _ => write!(f, "+{c:02X}"),
        })
    }
}

/// Shows an address as utf-8-enc-addr: UTF-8 as itself only when `utf8` says the session allows it.
pub struct Utf8Xtext<'a> {
    /// The address.
    pub address: &'a str,
    /// Whether SMTPUTF8 was given for the message.
    pub utf8: bool,
}

impl fmt::Display for Utf8Xtext<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.chars().try_for_each(|c| match c {
            '+' | '=' | '\\' => write!(f, "\\x{{{:02X}}}", u32::from(c)),
            '!'..='~' => f.write_char(c),
            _ if self.utf8 && !c.is_ascii() => f.write_char(c),
            _ => write!(f, "\\x{{{:02X}}}", u32::from(c)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xtext_comes_back_as_it_was() {
        for text in ["QQ314159", "a+b=c d", "~!", "+"] {
            assert_eq!(decode(&Xtext(text).to_string()).as_deref(), Some(text));
        }
    }

    #[test]
    fn what_could_end_a_line_is_refused_in_every_spelling() {
        for value in ["+0A", "+0d", "+00", "+7F", "a+", "a+4", "a+4G", "a=b", "a b", "", "ü", "+C3+BC", "\r"] {
            assert_eq!(decode(value), None, "{value:?}");
        }
        for value in
            ["\\x{0A}", "\\x{0000D}", "\\x{85}", "+0A", "\\x{D800}", "\\x{}", "\\x41", "\\x{41", "+C3", "", "a=b"]
        {
            assert_eq!(decode_utf8(value), None, "{value:?}");
        }
    }

    #[test]
    fn a_utf8_address_has_two_spellings() {
        let address = "jürgen+x@bücher.example";
        for utf8 in [false, true] {
            let spelled = Utf8Xtext { address, utf8 }.to_string();
            assert_eq!(spelled.is_ascii(), !utf8);
            assert_eq!(decode_utf8(&spelled).as_deref(), Some(address));
        }
    }
}
