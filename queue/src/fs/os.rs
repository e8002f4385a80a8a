//! [`Fs`] on the operating system: descriptors relative to the queue's directory, no symbolic link
//! followed, directories 0700, files 0600, one agent at a time by an advisory lock.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{self as sys, Advice, AtFlags, FallocateFlags, FlockOperation, Mode, OFlags};

use super::{Access, Dir, Fs, FsFile};
use crate::error::OpenError;

/// The queue's directory on disk. Holding it for writing holds its lock.
pub struct OsFs {
    path: PathBuf,
    root: OwnedFd,
    dirs: [Option<OwnedFd>; Dir::ALL.len()],
    _lock: Option<File>,
}

struct OsFile(File);

const LOCK: &str = "lock";
const DIR_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl OsFs {
    /// Opens the queue at `path` for one agent alone: makes what is missing of it (its parent must
    /// exist), checks the owner, tightens the permissions and takes the lock.
    pub fn open(path: &Path) -> Result<OsFs, OpenError> {
        let failed = |action| move |e: rustix::io::Errno| io_error(action, path, e);
        let made = make_dir(sys::CWD, path).map_err(failed("create"))?;
        let root = sys::openat(sys::CWD, path, DIR_FLAGS, Mode::empty()).map_err(failed("open"))?;
        let stat = sys::fstat(&root).map_err(failed("look at"))?;
        let user = rustix::process::geteuid().as_raw();
        if stat.st_uid != user {
            return Err(OpenError::Owner { place: path.display().to_string(), owner: stat.st_uid, user });
        }
        if stat.st_mode & 0o077 != 0 {
            sys::fchmod(&root, Mode::RWXU).map_err(failed("close to others"))?;
        }
        let lock = take_lock(&root, path)?;
        let mut dirs = Dir::ALL.map(|_| None);
        for (dir, fd) in Dir::ALL.into_iter().zip(&mut dirs) {
            make_dir(&root, Path::new(dir.name())).map_err(failed("create a directory in"))?;
            *fd =
                Some(sys::openat(&root, dir.name(), DIR_FLAGS, Mode::empty()).map_err(failed("open a directory in"))?);
        }
        sys::fsync(&root).map_err(failed("sync"))?;
        if made {
            sync_parent(path).map_err(failed("sync the parent of"))?;
        }
        Ok(OsFs { path: path.into(), root, dirs, _lock: Some(lock) })
    }

    /// Opens the queue at `path` for reading beside a running agent: makes nothing, takes no lock.
    pub fn open_read_only(path: &Path) -> Result<OsFs, OpenError> {
        let failed = |action| move |e: rustix::io::Errno| io_error(action, path, e);
        let root = sys::openat(sys::CWD, path, DIR_FLAGS, Mode::empty()).map_err(failed("open"))?;
        let mut dirs = Dir::ALL.map(|_| None);
        for (dir, fd) in Dir::ALL.into_iter().zip(&mut dirs) {
            *fd = match sys::openat(&root, dir.name(), DIR_FLAGS, Mode::empty()) {
                Ok(fd) => Some(fd),
                Err(rustix::io::Errno::NOENT) => None,
                Err(e) => return Err(io_error("open a directory in", path, e)),
            };
        }
        Ok(OsFs { path: path.into(), root, dirs, _lock: None })
    }

    fn dir(&self, dir: Dir) -> io::Result<&OwnedFd> {
        self.dirs[dir as usize].as_ref().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

fn io_error(action: &'static str, path: &Path, e: rustix::io::Errno) -> OpenError {
    OpenError::Io { action, place: path.display().to_string(), source: e.into() }
}

/// Makes a directory 0700; returns whether it was missing.
fn make_dir(at: impl rustix::fd::AsFd, path: &Path) -> rustix::io::Result<bool> {
    match sys::mkdirat(at, path, Mode::RWXU) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::EXIST) => Ok(false),
        Err(e) => Err(e),
    }
}

fn sync_parent(path: &Path) -> rustix::io::Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    sys::fsync(sys::openat(sys::CWD, parent, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

fn take_lock(root: &OwnedFd, path: &Path) -> Result<File, OpenError> {
    let failed = |e| io_error("lock", path, e);
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(sys::openat(root, LOCK, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?);
    match sys::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut text = [0; 64];
            let n = file.read(&mut text).unwrap_or(0);
            let holder = match String::from_utf8_lossy(&text[..n]).trim() {
                "" => "another agent".to_owned(),
                text => text.chars().filter(|c| !c.is_control()).collect(),
            };
            return Err(OpenError::Locked { place: path.display().to_string(), holder });
        }
        Err(e) => return Err(failed(e)),
    }
    // The words only help people; the lock itself is the kernel's and ends with the process. They are as
    // long as those of the process before: to cut the file could wait for the file system's own journal.
    let _ = file.write_all(format!("process {:<10}\n", std::process::id()).as_bytes());
    Ok(file)
}

impl Fs for OsFs {
    fn place(&self) -> String {
        self.path.display().to_string()
    }

    fn list(&self, dir: Dir) -> io::Result<Vec<String>> {
        let Ok(fd) = self.dir(dir) else { return Ok(Vec::new()) };
        let mut names = Vec::new();
        for entry in sys::Dir::read_from(fd)? {
            let entry = entry?;
            if let Ok(name) = entry.file_name().to_str()
                && name != "."
                && name != ".."
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    fn create(&self, dir: Dir, name: &str) -> io::Result<Arc<dyn FsFile>> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = sys::openat(self.dir(dir)?, name, flags, Mode::RUSR | Mode::WUSR)?;
        Ok(Arc::new(OsFile(fd.into())))
    }

    fn open(&self, dir: Dir, name: &str, access: Access) -> io::Result<Arc<dyn FsFile>> {
        let mode = if access == Access::Write { OFlags::RDWR } else { OFlags::RDONLY };
        let flags = mode | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(sys::openat(self.dir(dir)?, name, flags, Mode::empty())?);
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok(Arc::new(OsFile(file)))
    }

    fn rename(&self, from: (Dir, &str), to: (Dir, &str)) -> io::Result<()> {
        Ok(sys::renameat(self.dir(from.0)?, from.1, self.dir(to.0)?, to.1)?)
    }

    fn remove(&self, dir: Dir, name: &str) -> io::Result<()> {
        Ok(sys::unlinkat(self.dir(dir)?, name, AtFlags::empty())?)
    }

    fn sync_dir(&self, dir: Dir) -> io::Result<()> {
        Ok(sys::fsync(self.dir(dir)?)?)
    }

    fn free_octets(&self) -> io::Result<u64> {
        let stat = sys::fstatvfs(&self.root)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

impl FsFile for OsFile {
    fn octets(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }

    fn write_at(&self, mut offset: u64, mut pieces: &mut [IoSlice<'_>]) -> io::Result<()> {
        IoSlice::advance_slices(&mut pieces, 0);
        while !pieces.is_empty() {
            let count = pieces.len().min(IOV_MAX);
            match rustix::io::pwritev(&self.0, &pieces[..count], offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    offset += n as u64;
                    IoSlice::advance_slices(&mut pieces, n);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn allocate(&self, octets: u64) -> io::Result<()> {
        match sys::fallocate(&self.0, FallocateFlags::empty(), 0, octets) {
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn set_octets(&self, octets: u64) -> io::Result<()> {
        self.0.set_len(octets)
    }

    fn start_writeback(&self, offset: u64, octets: u64) {
        // On Linux this advice starts the write of dirty pages and drops clean ones only. A range is
        // named once, while it is dirty, so what the delivery will read stays in memory.
        if let Some(octets) = std::num::NonZeroU64::new(octets) {
            let _ = sys::fadvise(&self.0, offset, Some(octets), Advice::DontNeed);
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

/// The most pieces one `pwritev` takes (`IOV_MAX` of Linux).
const IOV_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    #[test]
    fn two_agents_never_share_a_queue() {
        let dir = tempfile::tempdir().expect("scratch");
        let path = dir.path().join("queue");
        let held = OsFs::open(&path).expect("first");
        let error = OsFs::open(&path).map(|_| ()).expect_err("second").to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(held);
        OsFs::open(&path).expect("free again");
    }

    #[test]
    fn nobody_else_may_look() {
        let dir = tempfile::tempdir().expect("scratch");
        let path = dir.path().join("queue");
        std::fs::create_dir(&path).expect("made wide open");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("chmod");
        let fs = OsFs::open(&path).expect("open");
        fs.create(Dir::Log, "a").expect("create");
        for (name, mode) in [("", 0o700), ("log", 0o700), ("content", 0o700), ("log/a", 0o600), ("lock", 0o600)] {
            let found = std::fs::metadata(path.join(name)).expect(name).mode() & 0o777;
            assert_eq!(found, mode, "{name}");
        }
    }

    #[test]
    fn planted_links_are_not_followed() {
        let dir = tempfile::tempdir().expect("scratch");
        let (path, target) = (dir.path().join("queue"), dir.path().join("target"));
        std::fs::write(&target, "secret").expect("target");
        let fs = OsFs::open(&path).expect("open");
        symlink(&target, path.join("log/1")).expect("plant");
        assert!(fs.open(Dir::Log, "1", Access::Read).is_err());
        assert!(fs.create(Dir::Log, "1").is_err());
        drop(fs);
        std::fs::remove_dir(path.join("content")).expect("remove");
        symlink(dir.path(), path.join("content")).expect("plant");
        assert!(OsFs::open(&path).is_err());
    }
}
