//! Changing the users file: other lines and comments stay as they are, the file is replaced in one
//! step, durable before the call returns, and readable by its owner only. One change at a time.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::list::{User, UserList};

/// The longest users file, in octets.
pub const USERS_FILE_OCTETS_MAX: u64 = 64 << 20;

/// Rights of the file: its owner reads and writes.
const MODE: u32 = 0o600;

/// A users file that can be changed.
#[derive(Clone, Debug)]
pub struct UsersFile {
    path: PathBuf,
}

/// Why the file was not changed.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// The file system refused something.
    #[error("{path}: cannot {action}: {fault}", path = path.display())]
    Io {
        /// The file it is about.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        fault: io::Error,
    },
    /// There is no such user.
    #[error("there is no user \"{0}\"; `postroad user list` shows the names")]
    Unknown(String),
    /// Somebody else is changing the file.
    #[error("{path}: somebody else is changing the file; try again", path = .0.display())]
    Busy(PathBuf),
}

impl UsersFile {
    /// Names a file, which need not exist.
    pub fn new(path: PathBuf) -> UsersFile {
        UsersFile { path }
    }

    /// Returns the path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the users; none when there is no file.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(&self) -> Result<UserList, EditError> {
        self.text().map(|text| UserList::parse(&text))
    }

    /// Returns whether others than the owner can read the hashes.
    pub fn is_exposed(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|found| found.mode() & 0o077 != 0)
    }

    /// Adds a user, or replaces the one of that name. Returns whether there was one.
    ///
    /// # Errors
    /// The file is as it was before.
    pub fn put(&self, user: &User) -> Result<bool, EditError> {
        let _lock = self.lock()?;
        let (mut lines, had) = without(&self.text()?, &user.name);
        lines.push(user.to_string());
        self.replace(&lines)?;
        Ok(had)
    }

    /// Removes a user.
    ///
    /// # Errors
    /// There is no such user, or the file cannot be changed; it is as it was before.
    pub fn remove(&self, name: &str) -> Result<(), EditError> {
        let _lock = self.lock()?;
        match without(&self.text()?, &name.to_lowercase()) {
            (lines, true) => self.replace(&lines),
            (_, false) => Err(EditError::Unknown(name.to_owned())),
        }
    }

    fn text(&self) -> Result<String, EditError> {
        match read_bounded(&self.path) {
            Ok(text) => Ok(text),
            Err(fault) if fault.kind() == ErrorKind::NotFound => Ok(String::new()),
            Err(fault) => Err(self.failed("read", fault)),
        }
    }

    /// Writes a new file beside the old one, makes it durable, and puts it in its place.
    fn replace(&self, lines: &[String]) -> Result<(), EditError> {
        let new = self.beside("new");
        let text = lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect::<String>();
        let written = self.write(&new, &text).map_err(|fault| self.failed("write a new version of", fault));
        let replaced = written.and_then(|()| {
            std::fs::rename(&new, &self.path).map_err(|fault| self.failed("replace", fault))?;
            let directory = File::open(self.directory()).and_then(|directory| directory.sync_all());
            directory.map_err(|fault| self.failed("make durable the replacement of", fault))
        });
        if replaced.is_err() {
            let _ = std::fs::remove_file(&new);
        }
        replaced
    }

    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        let _ = std::fs::remove_file(path);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(path)?;
        file.set_permissions(std::fs::Permissions::from_mode(MODE))?;
        self.hand_over(&file)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    }

    /// Gives a file that root made to the agent's user, who must be able to use it as well.
    fn hand_over(&self, file: &File) -> io::Result<()> {
        let Ok(old) = std::fs::metadata(&self.path).or_else(|_| std::fs::metadata(self.directory())) else {
            return Ok(());
        };
        let mine = file.metadata()?;
        match (mine.uid(), mine.gid()) == (old.uid(), old.gid()) {
            true => Ok(()),
            false => std::os::unix::fs::fchown(file, Some(old.uid()), Some(old.gid())),
        }
    }

    fn lock(&self) -> Result<File, EditError> {
        let path = self.beside("lock");
        let opened = OpenOptions::new().write(true).create(true).truncate(false).mode(MODE).open(&path);
        let file = opened.map_err(|fault| EditError::Io { path: path.clone(), action: "open", fault })?;
        self.hand_over(&file).map_err(|fault| EditError::Io { path: path.clone(), action: "give away", fault })?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(std::fs::TryLockError::WouldBlock) => Err(EditError::Busy(self.path.clone())),
            Err(std::fs::TryLockError::Error(fault)) => Err(EditError::Io { path, action: "lock", fault }),
        }
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        self.path.with_file_name(format!(".{name}.{suffix}"))
    }

    fn directory(&self) -> &Path {
        self.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }

    fn failed(&self, action: &'static str, fault: io::Error) -> EditError {
        EditError::Io { path: self.path.clone(), action, fault }
    }
}

/// Reads a file of bounded length.
pub(super) fn read_bounded(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(USERS_FILE_OCTETS_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > USERS_FILE_OCTETS_MAX {
        return Err(io::Error::new(ErrorKind::FileTooLarge, "the file is longer than 64 MiB"));
    }
    Ok(text)
}

/// Returns the lines that are not about a user, and whether there was one that is.
fn without(text: &str, name: &str) -> (Vec<String>, bool) {
    let is_about = |line: &str| line.trim().split_once(':').is_some_and(|(known, _)| known.to_lowercase() == name);
    let (about, others): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| is_about(line));
    (others.into_iter().map(str::to_owned).collect(), !about.is_empty())
}

#[cfg(test)]
mod tests {
    use super::super::password::DECOY;
    use super::*;

    fn user(name: &str, senders: &str) -> User {
        format!("{name}:{DECOY}:{senders}").parse().expect("valid")
    }

    #[test]
    fn a_change_keeps_every_other_line() {
        let directory = tempfile::tempdir().expect("scratch");
        let path = directory.path().join("users");
        std::fs::write(&path, format!("# ours\nalice:{DECOY}:*\nbroken line\n")).expect("written");
        let file = UsersFile::new(path.clone());
        assert!(file.is_exposed() || std::fs::metadata(&path).expect("there").mode() & 0o077 == 0);
        assert!(!file.put(&user("bob", "bob@example.org")).expect("added"));
        assert!(file.put(&user("alice", "alice@example.org")).expect("replaced"));
        let text = std::fs::read_to_string(&path).expect("readable");
        let want = format!("# ours\nbroken line\nbob:{DECOY}:bob@example.org\nalice:{DECOY}:alice@example.org\n");
        assert_eq!(text, want);
        assert_eq!(std::fs::metadata(&path).expect("there").mode() & 0o777, MODE);
        assert!(!file.is_exposed());
        file.remove("BOB").expect("removed");
        assert!(matches!(file.remove("bob"), Err(EditError::Unknown(name)) if name == "bob"));
        assert_eq!(file.read().expect("readable").users().len(), 1);
    }

    #[test]
    fn two_changes_at_a_time_do_not_lose_one() {
        let directory = tempfile::tempdir().expect("scratch");
        let file = UsersFile::new(directory.path().join("users"));
        let held = file.lock().expect("free");
        assert!(matches!(file.put(&user("bob", "*")), Err(EditError::Busy(_))));
        drop(held);
        file.put(&user("bob", "*")).expect("free again");
    }

    #[test]
    fn what_root_makes_belongs_to_the_agents_user() {
        let directory = tempfile::tempdir().expect("scratch");
        let agent = 65_534;
        // Only root can give away; everybody else makes files of their own anyhow.
        let owner = match std::os::unix::fs::chown(directory.path(), Some(agent), Some(agent)) {
            Ok(()) => agent,
            Err(_) => std::fs::metadata(directory.path()).expect("there").uid(),
        };
        let file = UsersFile::new(directory.path().join("users"));
        file.put(&user("bob", "*")).expect("added");
        for path in [file.path().to_owned(), file.beside("lock")] {
            assert_eq!(std::fs::metadata(&path).expect("there").uid(), owner, "{}", path.display());
        }
    }

    #[test]
    fn a_planted_link_is_not_followed() {
        let directory = tempfile::tempdir().expect("scratch");
        let victim = directory.path().join("victim");
        std::fs::write(&victim, "precious").expect("written");
        let file = UsersFile::new(directory.path().join("users"));
        std::os::unix::fs::symlink(&victim, file.beside("new")).expect("planted");
        file.put(&user("bob", "*")).expect("added");
        assert_eq!(std::fs::read_to_string(&victim).expect("readable"), "precious");
    }
}
