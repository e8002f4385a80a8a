//! Delivery to a Maildir (<https://cr.yp.to/proto/maildir.html>): written in `tmp`, synced, renamed
//! into `new`, the directory synced; only then is it delivered.
//!
//! The file begins with Return-Path (RFC 5321 §4.4) and Delivered-To; line ends become LF, as every
//! Maildir reader expects. Nothing else of the content is changed, and it is never held whole.
//!
//! The name is made of the queue id and the recipient's place, not of process and clock, so a
//! delivery repeated after a crash replaces its own earlier copy, or finds it where a reader has
//! moved it to. Only a copy that was already removed is delivered again.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use postroad_queue::{QueueId, UnixMillis};
use postroad_smtp::{ForwardPath, Reply, ReversePath, Status};
use rustix::fs::{AtFlags, Dir, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno;

use super::folder::Folder;
use super::line_ends::LineEnds;
use crate::config::{MaildirTemplate, UserName};

/// Octets of content in memory at a time.
const PIECE_OCTETS: usize = 64 * 1024;
/// What a template has where the user's name goes.
const PLACE: &str = "{user}";

/// The Maildirs of a local domain, one for each user.
#[derive(Clone, Debug)]
pub struct Maildir {
    /// The directories above the first one that is a user's: the admin's, must exist.
    fixed: PathBuf,
    /// The names below it, with [`PLACE`] in them; never empty.
    below: Vec<String>,
    /// This host's name as it stands in file names.
    host: Box<str>,
}

/// What is delivered, all but the content.
#[derive(Clone, Copy, Debug)]
pub struct Deliver<'a> {
    /// The message.
    pub id: QueueId,
    /// When this host accepted it; begins the file's name.
    pub arrived: UnixMillis,
    /// Who sent it.
    pub reverse_path: &'a ReversePath,
    /// Whose mailbox it goes into.
    pub user: &'a UserName,
    /// Who it is for, as the envelope has it.
    pub forward_path: &'a ForwardPath,
    /// The recipient's place in the envelope.
    pub place: usize,
    /// Whether an earlier run of the agent may have delivered it without recording so; only then
    /// are `new` and `cur` searched for its copy.
    pub maybe_repeat: bool,
}

/// The message is in the mailbox, on stable storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// Its file name in `new`, or where an earlier copy was found.
    pub name: String,
    /// Whether an earlier attempt had put it there.
    pub already: bool,
}

/// Why a message is not in the mailbox. All of it is the host's trouble, and transient.
#[derive(Debug, thiserror::Error)]
pub enum DeliverError {
    /// The admin's directory above the mailboxes is not there.
    #[error("{path} does not exist: make it, or mount the file system it lies on", path = path.display())]
    Missing {
        /// The directory.
        path: PathBuf,
    },
    /// Something else, perhaps a symbolic link, stands where a directory belongs.
    #[error("{path} is no directory (symbolic links are not followed)", path = path.display())]
    NotADirectory {
        /// The place.
        path: PathBuf,
    },
    /// The file system is full.
    #[error("no space left for {path}", path = path.display())]
    Full {
        /// What was written.
        path: PathBuf,
    },
    /// The owner's disk quota is used up.
    #[error("mailbox full: the quota of the owner of {path} is used up", path = path.display())]
    Quota {
        /// What was written.
        path: PathBuf,
    },
    /// Permissions, broken disks and all else.
    #[error("cannot {doing} {path}: {source}", path = path.display())]
    File {
        /// What was tried: `open`, `write`, `sync`.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The queue could not give the content.
    #[error("cannot read the message from the queue: {0}")]
    Content(#[source] io::Error),
    /// The delivery was cut off by a fault or the agent's end.
    #[error("the delivery was interrupted")]
    Interrupted,
}

impl DeliverError {
    /// Says what went wrong with `path`.
    pub(super) fn of(error: Errno, doing: &'static str, path: &Path) -> DeliverError {
        let path = path.to_owned();
        match error {
            Errno::NOSPC => DeliverError::Full { path },
            Errno::DQUOT => DeliverError::Quota { path },
            error => DeliverError::File { doing, path, source: error.into() },
        }
    }
}

impl From<&DeliverError> for Reply {
    fn from(error: &DeliverError) -> Reply {
        let (code, status) = match error {
            DeliverError::Missing { .. } | DeliverError::NotADirectory { .. } => (451, Status::new(4, 3, 5)),
            DeliverError::Full { .. } => (452, Status::new(4, 3, 1)),
            DeliverError::Quota { .. } => (452, Status::new(4, 2, 2)),
            DeliverError::File { .. } | DeliverError::Content(_) | DeliverError::Interrupted => {
                (451, Status::new(4, 3, 0))
            }
        };
        Reply::of(code, Some(status), "").with_text(&error.to_string())
    }
}

impl From<&Delivered> for Reply {
    fn from(delivered: &Delivered) -> Reply {
        let what = if delivered.already { "was delivered before" } else { "delivered" };
        Reply::of(250, Some(Status::new(2, 0, 0)), "").with_text(&format!("{what} to maildir as {}", delivered.name))
    }
}

impl Maildir {
    /// Delivers to the mailboxes that `template` names, as host `hostname`.
    pub fn new(template: &MaildirTemplate, hostname: &str) -> Maildir {
        let names: Vec<&str> = template.as_str().split('/').filter(|name| !name.is_empty()).collect();
        let last = names.len().saturating_sub(1);
        let first_of_user = names.iter().position(|name| name.contains(PLACE)).unwrap_or(last);
        let mut fixed = PathBuf::from("/");
        fixed.extend(&names[..first_of_user]);
        let below = names[first_of_user..].iter().map(ToString::to_string).collect();
        // The Maildir page's own escapes: a slash or colon would end the name early.
        Maildir { fixed, below, host: hostname.replace('/', "\\057").replace(':', "\\072").into() }
    }

    /// Writes the message into the recipient's Maildir. Blocks on the disk; when it returns `Ok`
    /// the message is on stable storage. Safe to repeat with the same `deliver`.
    ///
    /// # Errors
    /// What stood in the way; nothing is left in `new` then, except when only the last sync failed.
    pub fn deliver(&self, deliver: &Deliver<'_>, content: &mut dyn Read) -> Result<Delivered, DeliverError> {
        let mut mailbox = Folder::open(&self.fixed)?;
        for name in &self.below {
            mailbox = mailbox.child(&name.replace(PLACE, deliver.user.as_str()))?;
        }
        let (tmp, new, cur) = (mailbox.child("tmp")?, mailbox.child("new")?, mailbox.child("cur")?);
        let base = self.base_name(deliver);
        if deliver.maybe_repeat
            && let Some(name) = find_copy(&[&new, &cur], &base)?
        {
            new.sync()?;
            return Ok(Delivered { name, already: true });
        }
        let draft = TmpFile::create(&tmp, base)?;
        let octets = draft.fill(deliver, content)?;
        let name = draft.publish(&new, octets)?;
        new.sync()?;
        Ok(Delivered { name, already: false })
    }

    /// `seconds.M<microseconds>P<queue id>Q<place>.host`: the classic form, with values that are
    /// the same in every attempt where others put process id and counter.
    fn base_name(&self, deliver: &Deliver<'_>) -> String {
        let (seconds, micros) = (deliver.arrived.0 / 1000, deliver.arrived.0 % 1000 * 1000);
        format!("{seconds}.M{micros}P{}Q{}.{}", deliver.id, deliver.place, self.host)
    }
}

/// Looks for a file named `base`, with whatever size and flags behind it.
fn find_copy(folders: &[&Folder], base: &str) -> Result<Option<String>, DeliverError> {
    for folder in folders {
        let unreadable = |error| DeliverError::of(error, "read", &folder.path);
        for entry in Dir::read_from(&folder.fd).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let name = entry.file_name().to_string_lossy();
            if name.strip_prefix(base).is_some_and(|rest| rest.starts_with([',', ':'])) {
                return Ok(Some(name.into_owned()));
            }
        }
    }
    Ok(None)
}

/// A file in `tmp`, removed again unless it is published.
struct TmpFile<'a> {
    folder: &'a Folder,
    name: String,
    file: File,
    published: bool,
}

impl<'a> TmpFile<'a> {
    fn create(folder: &'a Folder, name: String) -> Result<TmpFile<'a>, DeliverError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || openat(&folder.fd, &name, flags, Mode::RUSR | Mode::WUSR);
        let opened = match open() {
            // What an attempt cut off by a crash left behind; no other delivery has this name.
            Err(Errno::EXIST) => unlinkat(&folder.fd, &name, AtFlags::empty()).and_then(|()| open()),
            result => result,
        };
        match opened {
            Ok(fd) => Ok(TmpFile { folder, name, file: fd.into(), published: false }),
            Err(error) => Err(DeliverError::of(error, "create", &folder.path.join(&name))),
        }
    }

    /// Writes header lines and content, syncs, and returns the octets written.
    fn fill(&self, deliver: &Deliver<'_>, content: &mut dyn Read) -> Result<u64, DeliverError> {
        let mut out = Vec::with_capacity(PIECE_OCTETS + PIECE_OCTETS / 4);
        out.extend_from_slice(top_lines(deliver).as_bytes());
        let (mut piece, mut ends, mut octets) = (vec![0; PIECE_OCTETS], LineEnds::default(), 0);
        loop {
            let read = match content.read(&mut piece) {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(DeliverError::Content(error)),
            };
            if read == 0 {
                break;
            }
            ends.convert(&piece[..read], &mut out);
            octets += self.write(&mut out)?;
        }
        ends.finish(&mut out);
        octets += self.write(&mut out)?;
        self.file.sync_all().map_err(|error| self.error("sync", error))?;
        Ok(octets)
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<u64, DeliverError> {
        (&self.file).write_all(out).map_err(|error| self.error("write", error))?;
        let octets = out.len() as u64;
        out.clear();
        Ok(octets)
    }

    /// Moves the file into `new`; an earlier copy of the same delivery is replaced.
    fn publish(mut self, new: &Folder, octets: u64) -> Result<String, DeliverError> {
        let name = format!("{},S={octets}", self.name);
        renameat(&self.folder.fd, &self.name, &new.fd, &name)
            .map_err(|error| DeliverError::of(error, "rename to", &new.path.join(&name)))?;
        self.published = true;
        Ok(name)
    }

    fn error(&self, doing: &'static str, source: io::Error) -> DeliverError {
        let path = self.folder.path.join(&self.name);
        match Errno::from_io_error(&source) {
            Some(errno) => DeliverError::of(errno, doing, &path),
            None => DeliverError::File { doing, path, source },
        }
    }
}

impl Drop for TmpFile<'_> {
    fn drop(&mut self) {
        if !self.published {
            // Nothing waits for it: what stays is replaced by the next attempt.
            let _ = unlinkat(&self.folder.fd, &self.name, AtFlags::empty());
        }
    }
}

fn top_lines(deliver: &Deliver<'_>) -> String {
    let to = match deliver.forward_path {
        ForwardPath::Postmaster => "postmaster".to_owned(),
        ForwardPath::Mailbox(mailbox) => mailbox.to_string(),
    };
    format!("Return-Path: {}\nDelivered-To: {to}\n", deliver.reverse_path)
}

#[cfg(test)]
#[path = "maildir_tests.rs"]
mod tests;
