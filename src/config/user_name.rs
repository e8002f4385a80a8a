//! The name of a local mailbox, safe as one component of a path: whatever a stranger writes into
//! RCPT, it never leads out of the directory it is put into.

use std::fmt;

use postroad_smtp::LocalPart;

/// The longest user name, in octets: what file systems allow for one component of a path.
pub const USER_NAME_OCTETS_MAX: usize = 255;

/// The character between user and tag in `user+tag` (RFC 5233).
pub const SUBADDRESS_SEPARATOR: char = '+';

/// The name of a mailbox: lower case, one harmless component of a path.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserName(Box<str>);

impl UserName {
    /// Takes a local-part, without its quotes and in lower case. `None` when it is empty, too long,
    /// begins with a dot or has two dots in a row, a slash, a backslash or a control character in it.
    pub fn new(local_part: &LocalPart) -> Option<UserName> {
        UserName::from_text(&local_part.unquoted())
    }

    /// The same for a text without quotes.
    pub fn from_text(text: &str) -> Option<UserName> {
        let name = text.to_lowercase();
        let length = (1..=USER_NAME_OCTETS_MAX).contains(&name.len());
        let harmless = !name.starts_with('.')
            && !name.contains("..")
            && !name.contains(|c: char| matches!(c, '/' | '\\') || c.is_control());
        (length && harmless).then(|| UserName(name.into()))
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the name without its tag, or `None` when it has none.
    pub fn without_tag(&self) -> Option<UserName> {
        let (user, _) = self.0.split_once(SUBADDRESS_SEPARATOR)?;
        (!user.is_empty()).then(|| UserName(user.into()))
    }
}

impl fmt::Display for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_leads_out_of_its_directory() {
        for text in
            ["", ".", "..", "a..b", ".ssh", "../x", "a/b", "/etc", "a\\b", "a\0b", "a\nb", "a\u{85}", &"x".repeat(256)]
        {
            assert_eq!(UserName::from_text(text), None, "{text:?}");
        }
        for (text, want) in
            [("Alice", "alice"), ("a.b", "a.b"), ("J\u{dc}RGEN", "j\u{fc}rgen"), ("a b", "a b"), ("~", "~")]
        {
            assert_eq!(UserName::from_text(text).expect(text).as_str(), want);
        }
    }

    #[test]
    fn quotes_do_not_hide_a_path() {
        for text in ["\"../root\"", "\"a/../../b\"", "\".x\"", "\"\\/etc\"", "\"\""] {
            let local_part: LocalPart = text.parse().expect(text);
            assert_eq!(UserName::new(&local_part), None, "{text}");
        }
    }

    #[test]
    fn the_tag_begins_at_the_first_plus() {
        let without = |text| UserName::from_text(text).expect("valid").without_tag().map(|name| name.to_string());
        assert_eq!(without("user+tag+more").as_deref(), Some("user"));
        assert_eq!((without("user"), without("+tag")), (None, None));
    }
}
