//! What a MAIL command between members of a mesh carries about the message (`XMESH=`): one token.
//!
//! Here only its grammar and its limit are known; what it says is for the mesh crate. If you hold a
//! [`PassageToken`], it can stand on a command line.

use std::fmt;
use std::str::FromStr;

/// The longest token, in octets.
pub const PASSAGE_OCTETS_MAX: usize = 320;

/// Lower-case letters, digits, colons and commas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassageToken(Box<str>);

/// The text is no such token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a passage is at most {PASSAGE_OCTETS_MAX} letters (a to z), digits, colons and commas")]
pub struct PassageTokenError;

impl PassageToken {
    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PassageToken {
    type Err = PassageTokenError;

    fn from_str(text: &str) -> Result<PassageToken, PassageTokenError> {
        let good = (1..=PASSAGE_OCTETS_MAX).contains(&text.len());
        let good = good && text.bytes().all(|c| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b':' | b','));
        if good { Ok(PassageToken(text.into())) } else { Err(PassageTokenError) }
    }
}

impl fmt::Display for PassageToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_token_can_leave_its_command() {
        assert_eq!("a1:b2:c3,d4".parse::<PassageToken>().map(|token| token.to_string()), Ok("a1:b2:c3,d4".to_owned()));
        assert!("x".repeat(PASSAGE_OCTETS_MAX).parse::<PassageToken>().is_ok());
        let long = "x".repeat(PASSAGE_OCTETS_MAX + 1);
        for text in ["", "A", "a b", "a=b", "a\r\nRSET", "a+", "<a>", "\u{e4}", &long] {
            assert_eq!(text.parse::<PassageToken>(), Err(PassageTokenError), "{text:?}");
        }
    }
}
