//! Directories of a mailbox, opened one name at a time without following a symbolic link, so that
//! a link planted by a mailbox's owner leads nowhere.
//!
//! Missing ones are made with mode 0700, and the directory above is synced so that they survive a
//! crash. The admin's own part of the path may hold links (`/var/mail` often is one).

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, fsync, mkdirat, openat};
use rustix::io::Errno;

use super::maildir::DeliverError;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// An open directory and the path that led to it, for error messages.
#[derive(Debug)]
pub struct Folder {
    /// The directory.
    pub fd: OwnedFd,
    /// Its path; only for people.
    pub path: PathBuf,
}

impl Folder {
    /// Opens a directory of the admin's; it must exist: a missing one may be a file system that is
    /// not mounted, and mail must not go under its mount point.
    pub fn open(path: &Path) -> Result<Folder, DeliverError> {
        match openat(CWD, path, DIRECTORY, Mode::empty()) {
            Ok(fd) => Ok(Folder { fd, path: path.to_owned() }),
            Err(Errno::NOENT) => Err(DeliverError::Missing { path: path.to_owned() }),
            Err(error) => Err(DeliverError::of(error, "open", path)),
        }
    }

    /// Opens the directory `name` in this one, made when it is missing.
    pub fn child(&self, name: &str) -> Result<Folder, DeliverError> {
        let path = self.path.join(name);
        let open = || openat(&self.fd, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty());
        let fd = match open() {
            Err(Errno::NOENT) => self.make(name, &path).and_then(|()| open().map_err(|e| child_error(e, &path))),
            result => result.map_err(|error| child_error(error, &path)),
        };
        Ok(Folder { fd: fd?, path })
    }

    fn make(&self, name: &str, path: &Path) -> Result<(), DeliverError> {
        match mkdirat(&self.fd, name, Mode::RWXU) {
            Ok(()) => self.sync(),
            // Another delivery to the same mailbox was first.
            Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(DeliverError::of(error, "make", path)),
        }
    }

    /// Puts the directory's entries on stable storage.
    pub fn sync(&self) -> Result<(), DeliverError> {
        fsync(&self.fd).map_err(|error| DeliverError::of(error, "sync", &self.path))
    }
}

fn child_error(error: Errno, path: &Path) -> DeliverError {
    match error {
        Errno::NOTDIR | Errno::LOOP => DeliverError::NotADirectory { path: path.to_owned() },
        error => DeliverError::of(error, "open", path),
    }
}
