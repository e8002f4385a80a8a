//! The users file as a value: text -> [`UserList`], with a fault for every line that is wrong.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use postroad_smtp::{Domain, Mailbox};

use super::password;
use crate::config::SUBADDRESS_SEPARATOR;

/// The longest user name, in octets.
pub const USER_NAME_OCTETS_MAX: usize = 255;

/// Every user of the file.
#[derive(Clone, Debug, Default)]
pub struct UserList {
    users: Vec<User>,
    by_name: HashMap<String, usize>,
    faults: Vec<LineFault>,
}

/// One user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The name said at login, in lower case.
    pub name: String,
    /// The argon2id hash in its PHC form.
    pub hash: String,
    /// Whom the user may send as.
    pub senders: Vec<SenderRule>,
}

/// Whom a user may send as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SenderRule {
    /// One address, with or without a tag behind a `+`.
    Address(Mailbox),
    /// Every address of a domain: `@example.org`.
    Domain(Domain),
    /// Every address: `*`, for programs that send for many.
    Any,
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineFault {
    /// From 1.
    pub line: usize,
    /// What is wrong and what to do.
    pub message: String,
}

impl UserList {
    /// Reads the text of a users file.
    pub fn parse(text: &str) -> UserList {
        let mut list = UserList::default();
        for (at, line) in text.lines().enumerate() {
            let trimmed = line.trim();
            if trimmed.is_empty() || trimmed.starts_with('#') {
                continue;
            }
            match trimmed.parse::<User>() {
                Ok(user) if list.by_name.contains_key(&user.name) => {
                    list.fault(at, format!("the user \"{}\" stands here a second time; keep one line", user.name));
                }
                Ok(user) => {
                    list.by_name.insert(user.name.clone(), list.users.len());
                    list.users.push(user);
                }
                Err(message) => list.fault(at, message),
            }
        }
        list
    }

    fn fault(&mut self, at: usize, message: String) {
        self.faults.push(LineFault { line: at + 1, message });
    }

    /// Returns a user; upper and lower case are the same.
    pub fn get(&self, name: &str) -> Option<&User> {
        self.by_name.get(&name.to_lowercase()).map(|at| &self.users[*at])
    }

    /// Returns the users in the order of the file.
    pub fn users(&self) -> &[User] {
        &self.users
    }

    /// Returns what is wrong with the file; these lines let nobody in.
    pub fn faults(&self) -> &[LineFault] {
        &self.faults
    }

    /// Returns the user whose password this is. Takes as long for a user who does not exist as for
    /// one who does. Takes a good part of a second of one core.
    pub fn verify(&self, name: &str, password: &str) -> Option<&User> {
        match self.get(name) {
            Some(user) => password::verify(&user.hash, password).then_some(user),
            None => {
                // The same work with the parameters of a real user.
                let decoy = self.users.first().map_or(password::DECOY, |user| &user.hash);
                let _ = password::verify(decoy, password);
                None
            }
        }
    }
}

impl User {
    /// Returns whether the user may send with this address as reverse-path.
    pub fn may_send_as(&self, mailbox: &Mailbox) -> bool {
        self.senders.iter().any(|rule| match rule {
            SenderRule::Any => true,
            SenderRule::Domain(domain) => mailbox.domain() == Some(domain),
            SenderRule::Address(own) => own.host == mailbox.host && is_same_user(own, mailbox),
        })
    }

    /// Checks a name for the file: no colon, no space, no control character.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check_name(name: &str) -> Result<String, String> {
        let bad = |c: char| c == ':' || c == '#' || c.is_whitespace() || c.is_control();
        match name {
            "" => Err("the user name is empty".to_owned()),
            name if name.len() > USER_NAME_OCTETS_MAX => Err("the user name is longer than 255 octets".to_owned()),
            name if name.contains(bad) => Err(format!(
                "the user name \"{}\" has a colon, a # or a space in it; choose another",
                name.escape_debug()
            )),
            name => Ok(name.to_lowercase()),
        }
    }
}

fn is_same_user(own: &Mailbox, mailbox: &Mailbox) -> bool {
    let own = own.local_part.unquoted().to_lowercase();
    let other = mailbox.local_part.unquoted().to_lowercase();
    other == own || other.strip_prefix(&own).is_some_and(|tag| tag.starts_with(SUBADDRESS_SEPARATOR))
}

impl FromStr for User {
    type Err = String;

    fn from_str(line: &str) -> Result<User, String> {
        let mut fields = line.splitn(3, ':');
        let (Some(name), Some(hash), Some(senders)) = (fields.next(), fields.next(), fields.next()) else {
            return Err("a line has three fields: name:password hash:addresses".to_owned());
        };
        let name = User::check_name(name)?;
        password::check_hash(hash).map_err(|fault| format!("the password of \"{name}\" {fault}"))?;
        let senders = senders.split(',').map(str::trim).filter(|sender| !sender.is_empty());
        let senders = senders.map(str::parse).collect::<Result<Vec<_>, _>>()?;
        Ok(User { name, hash: hash.to_owned(), senders })
    }
}

impl FromStr for SenderRule {
    type Err = String;

    fn from_str(text: &str) -> Result<SenderRule, String> {
        let rule = match text.strip_prefix('@') {
            _ if text == "*" => Some(SenderRule::Any),
            Some(domain) => domain.parse().ok().map(SenderRule::Domain),
            None if text.contains([',', ':', '"']) || text.contains(char::is_control) => None,
            None => text.parse().ok().map(SenderRule::Address),
        };
        rule.ok_or_else(|| {
            format!("\"{}\" is no address; write user@example.org, @example.org or *", text.escape_debug())
        })
    }
}

impl fmt::Display for SenderRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SenderRule::Address(mailbox) => mailbox.fmt(f),
            SenderRule::Domain(domain) => write!(f, "@{domain}"),
            SenderRule::Any => f.write_str("*"),
        }
    }
}

impl fmt::Display for User {
    /// Writes the line of the file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.name, self.hash)?;
        let senders: Vec<_> = self.senders.iter().map(SenderRule::to_string).collect();
        f.write_str(&senders.join(","))
    }
}

impl fmt::Display for LineFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(senders: &str) -> User {
        format!("app:{}:{senders}", password::DECOY).parse().expect("valid")
    }

    #[test]
    fn a_wrong_line_lets_nobody_in_and_hides_nobody_else() {
        let hash = password::DECOY;
        let text = format!(
            "# comment\n\nalice:{hash}:alice@example.org\nbob:secret:bob@example.org\nalice:{hash}:*\nno fields\n\
             eve:{hash}:not an address\nb b:{hash}:*\ncarol:{hash}:\n"
        );
        let list = UserList::parse(&text);
        let names: Vec<_> = list.users().iter().map(|user| user.name.as_str()).collect();
        assert_eq!(names, ["alice", "carol"]);
        assert_eq!(list.faults().iter().map(|fault| fault.line).collect::<Vec<_>>(), [4, 5, 6, 7, 8]);
        assert_eq!(list.get("ALICE").expect("case does not matter").senders.len(), 1);
        assert_eq!(list.users()[0].to_string().parse::<User>().as_ref(), Ok(&list.users()[0]), "a line comes back");
    }

    #[test]
    fn a_user_sends_as_nobody_else() {
        for (senders, address, may) in [
            ("alice@example.org", "alice@example.org", true),
            ("alice@example.org", "Alice@EXAMPLE.org", true),
            ("alice@example.org", "alice+shop@example.org", true),
            ("alice@example.org", "\"alice\"@example.org", true),
            ("alice@example.org", "alice@sub.example.org", false),
            ("alice@example.org", "alicex@example.org", false),
            ("alice@example.org", "bob@example.org", false),
            ("alice+shop@example.org", "alice@example.org", false),
            ("a@x.example,@example.org", "anyone@example.org", true),
            ("@example.org", "anyone@sub.example.org", false),
            ("@example.org", "\"x@evil.example\"@example.org", true),
            ("@example.org", "anyone@[192.0.2.1]", false),
            ("*", "anyone@anywhere.example", true),
            ("", "alice@example.org", false),
        ] {
            assert_eq!(user(senders).may_send_as(&address.parse().expect(address)), may, "{senders} {address}");
        }
    }
}
