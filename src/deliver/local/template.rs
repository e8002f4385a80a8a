//! Where a user's mailbox lies: a path with `{user}` in it, and the rule that makes a directory
//! name of a local-part.
//!
//! A name that came from the network never leaves the directory it belongs in: it is one path
//! component without `/`, NUL, control characters, `..` or a leading dot.

use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use postroad_smtp::LocalPart;

/// The longest file name (`NAME_MAX`), in octets.
const NAME_OCTETS_MAX: usize = 255;
const PLACE: &str = "{user}";

/// The path of a mailbox with `{user}` where the user's name goes; absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MailboxTemplate {
    /// The directories above the first one that is a user's: the admin's, must exist.
    fixed: PathBuf,
    /// The path components below it; never empty.
    below: Vec<String>,
}

/// The text is no mailbox path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A relative path would depend on where the agent was started.
    #[error("`{0}` must be an absolute path such as /var/mail/example.org/{PLACE}")]
    Relative(String),
    /// `.`, `..`, the bare root or a character no path should have.
    #[error("`{0}` must be a plain path without `.`, `..` and control characters")]
    Malformed(String),
    /// Braces around something else.
    #[error("`{0}` holds a placeholder other than {PLACE}")]
    Placeholder(String),
}

/// The local-part cannot be a directory's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// `""@domain`.
    #[error("the local-part is empty")]
    Empty,
    /// Longer than a file name can be.
    #[error("the local-part is longer than {NAME_OCTETS_MAX} octets")]
    TooLong,
    /// It would name another place: a slash, `..`, a leading dot.
    #[error("the local-part cannot be the name of a mailbox (it holds a slash, `..` or a leading dot)")]
    Path,
    /// NUL and its kind.
    #[error("the local-part holds a control character")]
    Control,
}

impl MailboxTemplate {
    /// Returns the directories that must exist, and the names below them of `user`'s mailbox.
    pub fn resolve(&self, user: &str) -> (&Path, Vec<String>) {
        (&self.fixed, self.below.iter().map(|name| name.replace(PLACE, user)).collect())
    }
}

/// Returns the name of the mailbox of `local_part`: unquoted and in lower case.
///
/// # Errors
/// When it is no plain file name.
pub fn user_name(local_part: &LocalPart) -> Result<String, UserError> {
    let name = local_part.unquoted().to_lowercase();
    if name.is_empty() {
        return Err(UserError::Empty);
    }
    if name.len() > NAME_OCTETS_MAX {
        return Err(UserError::TooLong);
    }
    if name.chars().any(char::is_control) {
        return Err(UserError::Control);
    }
    if name.starts_with('.') || name.contains('/') || name.contains("..") {
        return Err(UserError::Path);
    }
    Ok(name)
}

impl FromStr for MailboxTemplate {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<MailboxTemplate, TemplateError> {
        if !text.starts_with('/') {
            return Err(TemplateError::Relative(text.to_owned()));
        }
        let malformed = || TemplateError::Malformed(text.escape_debug().to_string());
        // `Path::components` reads over `.`, so the text is asked.
        if text.chars().any(char::is_control) || text.split('/').any(|name| name == "." || name == "..") {
            return Err(malformed());
        }
        if text.replace(PLACE, "").contains(['{', '}']) {
            return Err(TemplateError::Placeholder(text.to_owned()));
        }
        let names: Vec<String> = Path::new(text)
            .components()
            .filter_map(|part| match part {
                Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
                _ => None,
            })
            .collect();
        let last = names.len().checked_sub(1).ok_or_else(malformed)?;
        let first_of_user = names.iter().position(|name| name.contains(PLACE)).unwrap_or(last);
        let mut fixed = PathBuf::from("/");
        fixed.extend(&names[..first_of_user]);
        Ok(MailboxTemplate { fixed, below: names[first_of_user..].to_vec() })
    }
}

impl fmt::Display for MailboxTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.below.iter().fold(self.fixed.clone(), |path, name| path.join(name));
        path.display().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(text: &str) -> Result<String, UserError> {
        user_name(&text.parse().expect(text))
    }

    #[test]
    fn a_name_stays_in_its_directory() {
        assert_eq!(user("Alice"), Ok("alice".into()));
        assert_eq!(user("\"John Doe\""), Ok("john doe".into()));
        assert_eq!(user("JÜRGEN"), Ok("jürgen".into()));
        assert_eq!(user("a+b.c"), Ok("a+b.c".into()));
        assert_eq!(user("\"\""), Err(UserError::Empty));
        for text in ["\"..\"", "\".\"", "\"../../etc/passwd\"", "a/b", "/etc", "\".ssh\"", "\"a..b\"", "\"x\\/y\""] {
            assert_eq!(user(text), Err(UserError::Path), "{text}");
        }
        assert_eq!(user(&"x".repeat(256)), Err(UserError::TooLong));
    }

    #[test]
    fn only_what_lies_above_the_user_is_the_admins() {
        let template: MailboxTemplate = "/var/mail/example.org/{user}/Maildir".parse().expect("valid");
        let (fixed, below) = template.resolve("bob");
        assert_eq!((fixed, below), (Path::new("/var/mail/example.org"), vec!["bob".into(), "Maildir".into()]));
        assert_eq!(template.to_string(), "/var/mail/example.org/{user}/Maildir");

        let one: MailboxTemplate = "/home/ops/Maildir/".parse().expect("valid");
        assert_eq!(one.resolve("bob"), (Path::new("/home/ops"), vec!["Maildir".into()]));
    }

    #[test]
    fn what_is_no_mailbox_path_is_refused() {
        assert!(matches!("mail/{user}".parse::<MailboxTemplate>(), Err(TemplateError::Relative(_))));
        assert!(matches!("/mail/{domain}/{user}".parse::<MailboxTemplate>(), Err(TemplateError::Placeholder(_))));
        for text in ["/", "/mail/../{user}", "/mail/./{user}", "/mail/\n/{user}"] {
            assert!(matches!(text.parse::<MailboxTemplate>(), Err(TemplateError::Malformed(_))), "{text:?}");
        }
    }
}
