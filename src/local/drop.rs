//! The drop directory: mail that was handed in while no agent ran. Everybody may put files there (mode 1733)
//! and nobody but the agent may see which there are; what they are called nobody can guess.
//!
//! A file is two lines and the content: `postroad-drop 1`, the [`Slip`] as JSON, then octets as on the wire.
//! It is written under another name and synced before it has its own, and the file system is synced before the
//! command says that it is done: a directory that one may not read cannot be synced by itself.
//!
//! What the agent finds there was put there by anybody: it follows no link, waits for no pipe, believes no
//! length, and whose a file is the kernel says.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::{self as sys, AtFlags, FileType, Mode, OFlags, Stat};
use rustix::rand::{GetRandomFlags, getrandom};

use super::letter::{Letter, Slip};
use super::{MESSAGE_OCTETS_MAX, RECIPIENTS_MAX};

/// The first line, with the version of the format.
const MAGIC: &[u8] = b"postroad-drop 1\n";
/// What the first line begins with in every version.
const MAGIC_OF_ALL: &[u8] = b"postroad-drop ";
/// What the names of complete files begin with; others are being written.
const COMPLETE: &str = "mail.";
const INCOMPLETE: &str = "new.";
/// The longest envelope: [`RECIPIENTS_MAX`] of the longest addresses, escaped, and some more.
const SLIP_OCTETS_MAX: u64 = 2 << 20;
const FILE_OCTETS_MAX: u64 = MESSAGE_OCTETS_MAX + SLIP_OCTETS_MAX + MAGIC.len() as u64;
/// Free space that is left to others, in octets.
const RESERVE_OCTETS: u64 = 32 << 20;
/// What was begun so long ago is not finished any more.
const INCOMPLETE_AGE_MAX: Duration = Duration::from_secs(24 * 3600);

/// Puts a letter into the drop directory; it is on stable storage when this returns.
///
/// # Errors
/// What the operating system says; nothing is left behind then.
pub fn put(directory: &Path, letter: &Letter) -> io::Result<()> {
    let mut random = [0; 16];
    fill(&mut random)?;
    let name: String = random.iter().map(|octet| format!("{octet:02x}")).collect();
    let (new, complete) = (directory.join(format!("{INCOMPLETE}{name}")), directory.join(format!("{COMPLETE}{name}")));
    let flags = OFlags::NOFOLLOW.bits().cast_signed();
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).custom_flags(flags).open(&new)?;
    let written = write(&mut file, letter).and_then(|()| std::fs::rename(&new, &complete));
    if let Err(error) = written {
        let _ = std::fs::remove_file(&new);
        return Err(error);
    }
    if let Err(error) = sys::syncfs(&file) {
        // Who hears of an error tries again.
        let _ = std::fs::remove_file(&complete);
        return Err(error.into());
    }
    Ok(())
}

/// Fills it by the kernel alone: a source of random numbers in the process would have to be seeded for this one name.
fn fill(mut rest: &mut [u8]) -> io::Result<()> {
    while !rest.is_empty() {
        let count = getrandom(&mut *rest, GetRandomFlags::empty())?;
        rest = &mut rest[count..];
    }
    Ok(())
}

fn write(file: &mut File, letter: &Letter) -> io::Result<()> {
    let room = sys::fstatvfs(&*file)?;
    if room.f_bavail.saturating_mul(room.f_frsize) < letter.content.len() as u64 + RESERVE_OCTETS {
        return Err(io::ErrorKind::StorageFull.into());
    }
    file.write_all(MAGIC)?;
    file.write_all(&serde_json::to_vec(&letter.slip)?)?;
    file.write_all(b"\n")?;
    file.write_all(&letter.content)?;
    // The agent is no superuser and reads what is not its own. Whatever the umask says.
    sys::fchmod(&*file, Mode::from_raw_mode(0o644))?;
    file.sync_all()
}

/// The drop directory as the agent sees it.
#[derive(Debug)]
pub struct Drops {
    directory: OwnedFd,
    aside: OwnedFd,
}

/// A file of the drop directory that is one.
#[derive(Debug)]
pub struct Dropped {
    /// Whose it is.
    pub uid: u32,
    /// The envelope.
    pub slip: Slip,
    /// The content.
    pub content: BufReader<File>,
}

/// Why a file is not taken.
#[derive(Debug, thiserror::Error)]
pub enum DropError {
    /// It is gone, or cannot be read now.
    #[error("it cannot be read now: {0}")]
    NotNow(io::Error),
    /// It will never be one.
    #[error("{0}")]
    Bad(String),
}

impl Drops {
    /// Opens the two directories.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn open(directory: &Path, aside: &Path) -> io::Result<Drops> {
        let open = |path: &Path| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            sys::open(path, flags, Mode::empty()).map_err(io::Error::from)
        };
        Ok(Drops { directory: open(directory)?, aside: open(aside)? })
    }

    /// Returns the names of complete files, at most `max`, and takes away what was never finished.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn names(&self, max: usize, now: SystemTime) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in sys::Dir::read_from(&self.directory)? {
            let Ok(name) = entry?.file_name().to_str().map(str::to_owned) else { continue };
            if name == "." || name == ".." {
                continue;
            }
            if !name.starts_with(INCOMPLETE) {
                names.push(name);
            } else if self.look_at(&name).is_ok_and(|stat| is_older(&stat, now, INCOMPLETE_AGE_MAX)) {
                // What is no file stays: it costs its owner's quota and nobody else.
                let _ = sys::unlinkat(&self.directory, &*name, AtFlags::empty());
            }
            if names.len() >= max {
                break;
            }
        }
        Ok(names)
    }

    /// Opens a file and reads its envelope. Never waits, whatever it is.
    ///
    /// # Errors
    /// Why it is not taken.
    pub fn take(&self, name: &str) -> Result<Dropped, DropError> {
        let bad = |what: &str| DropError::Bad(what.to_owned());
        let not_now = |error: rustix::io::Errno| DropError::NotNow(error.into());
        if !is_file(&self.look_at(name).map_err(not_now)?) {
            return Err(bad("it is no file"));
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = match sys::openat(&self.directory, name, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(rustix::io::Errno::ACCESS) => return Err(bad("its owner keeps it from being read")),
            Err(rustix::io::Errno::LOOP) => return Err(bad("it is a symbolic link")),
            Err(error) => return Err(not_now(error)),
        };
        let stat = sys::fstat(&file).map_err(not_now)?;
        if !is_file(&stat) || stat.st_nlink != 1 {
            return Err(bad("it is no file, or has other names"));
        }
        let octets = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
        if octets > FILE_OCTETS_MAX {
            return Err(bad("it is too large"));
        }
        let mut content = BufReader::new(file);
        let slip = read_slip(&mut content, octets)?;
        Ok(Dropped { uid: stat.st_uid, slip, content })
    }

    /// Removes a file that was taken.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        Ok(sys::unlinkat(&self.directory, name, AtFlags::empty())?)
    }

    /// Moves away what cannot be taken, to be looked at by people; what is more than `max` is removed.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn set_aside(&self, name: &str, max: usize) -> io::Result<()> {
        let is_file = self.look_at(name).is_ok_and(|stat| !FileType::from_raw_mode(stat.st_mode).is_dir());
        let count = sys::Dir::read_from(&self.aside)?.take(max + 2).count();
        if is_file && count >= max + 2 {
            return self.remove(name);
        }
        Ok(sys::renameat(&self.directory, name, &self.aside, name)?)
    }

    fn look_at(&self, name: &str) -> rustix::io::Result<Stat> {
        sys::statat(self.directory.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW)
    }
}

fn is_file(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode).is_file()
}

fn is_older(stat: &Stat, now: SystemTime, age: Duration) -> bool {
    let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(stat.st_mtime).unwrap_or(0));
    now.duration_since(changed).is_ok_and(|since| since > age)
}

/// Reads the two lines before the content, of a file of so many octets.
fn read_slip(content: &mut BufReader<File>, octets: u64) -> Result<Slip, DropError> {
    let mut line = Vec::new();
    let mut read_line = |line: &mut Vec<u8>, max: u64| {
        line.clear();
        Read::by_ref(content).take(max).read_until(b'\n', line).map_err(DropError::NotNow)
    };
    let mut head = read_line(&mut line, MAGIC.len() as u64)?;
    if line != MAGIC {
        let what = match line.starts_with(MAGIC_OF_ALL) {
            true => "it is of another version",
            false => "it is none of the sendmail command",
        };
        return Err(DropError::Bad(what.to_owned()));
    }
    head += read_line(&mut line, SLIP_OCTETS_MAX)?;
    let slip: Slip =
        serde_json::from_slice(&line).map_err(|error| DropError::Bad(format!("its envelope is no such: {error}")))?;
    if slip.octets.checked_add(head as u64) != Some(octets) || slip.to.is_empty() || slip.to.len() > RECIPIENTS_MAX {
        return Err(DropError::Bad("its envelope does not fit it".to_owned()));
    }
    Ok(slip)
}

#[cfg(test)]
#[path = "drop_tests.rs"]
mod tests;
