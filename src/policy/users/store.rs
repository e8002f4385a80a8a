//! The users file as it is now: read again whenever it changes, without a restart. A file that
//! cannot be read leaves the users that were known; a file that is gone leaves nobody.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::file::read_bounded;
use super::list::UserList;

/// The users file as it is now.
#[derive(Debug)]
pub struct UserStore(Mutex<State>);

#[derive(Debug)]
struct State {
    path: PathBuf,
    seen: Option<Stamp>,
    fault: Option<ErrorKind>,
    list: Arc<UserList>,
}

/// What changes when a file does: an atomic replacement changes the inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    octets: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl UserStore {
    /// The users of a file, which need not exist.
    pub fn new(path: PathBuf) -> UserStore {
        UserStore(Mutex::new(State { path, seen: None, fault: None, list: Arc::default() }))
    }

    /// Takes another file.
    pub fn set_path(&self, path: PathBuf) {
        let mut state = self.lock();
        if state.path != path {
            *state = State { path, seen: None, fault: None, list: Arc::default() };
        }
    }

    /// Returns the users as the file has them now: one look at its attributes, and a reading when
    /// they differ.
    pub fn current(&self) -> Arc<UserList> {
        let mut state = self.lock();
        match stamp(&state.path) {
            Ok(now) if now == state.seen => {}
            Ok(None) => (state.seen, state.list) = (None, Arc::default()),
            Ok(now) => state.read(now),
            Err(fault) => state.failed(&fault),
        }
        Arc::clone(&state.list)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn read(&mut self, now: Option<Stamp>) {
        match read_bounded(&self.path) {
            Ok(text) => {
                let list = UserList::parse(&text);
                for fault in list.faults() {
                    tracing::warn!(file = %self.path.display(), line = fault.line, "{}", fault.message);
                }
                (self.seen, self.fault, self.list) = (now, None, Arc::new(list));
            }
            Err(fault) => self.failed(&fault),
        }
    }

    /// Says it once for each kind of fault, not at every login.
    fn failed(&mut self, fault: &std::io::Error) {
        if self.fault.replace(fault.kind()) != Some(fault.kind()) {
            tracing::warn!(file = %self.path.display(), %fault, "the users file cannot be read; the users stay as they were");
        }
    }
}

fn stamp(path: &Path) -> std::io::Result<Option<Stamp>> {
    match std::fs::metadata(path) {
        Ok(found) => Ok(Some(Stamp {
            inode: found.ino(),
            octets: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })),
        Err(fault) if fault.kind() == ErrorKind::NotFound => Ok(None),
        Err(fault) => Err(fault),
    }
}

#[cfg(test)]
mod tests {
    use super::super::password;
    use super::*;

    #[test]
    fn a_changed_file_is_read_again() {
        let directory = tempfile::tempdir().expect("scratch");
        let path = directory.path().join("users");
        let store = UserStore::new(path.clone());
        let names = || store.current().users().iter().map(|user| user.name.clone()).collect::<Vec<_>>();
        assert!(names().is_empty());
        let line = |name| format!("{name}:{}:*\n", password::DECOY);
        std::fs::write(&path, line("alice")).expect("written");
        assert_eq!(names(), ["alice"]);
        let other = directory.path().join("new");
        std::fs::write(&other, line("carol")).expect("written");
        std::fs::rename(&other, &path).expect("replaced");
        assert_eq!(names(), ["carol"]);
        std::fs::remove_file(&path).expect("removed");
        assert!(names().is_empty(), "a file that is gone leaves nobody");
    }

    #[test]
    fn a_file_that_cannot_be_read_leaves_the_users_as_they_were() {
        let directory = tempfile::tempdir().expect("scratch");
        let path = directory.path().join("users");
        std::fs::write(&path, format!("alice:{}:*\n", password::DECOY)).expect("written");
        let store = UserStore::new(path.clone());
        assert_eq!(store.current().users().len(), 1);
        std::fs::remove_file(&path).expect("removed");
        std::fs::create_dir(&path).expect("a directory in its place");
        assert_eq!(store.current().users().len(), 1);
    }
}
