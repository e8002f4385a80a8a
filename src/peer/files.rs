//! The files of the mesh in the state directory: the key, what is known, what DNS proved, and what this host alone
//! decided. Each is written whole: to another name, synced, renamed, the directory synced.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use postroad_mesh::archive::{self, Own};
use postroad_mesh::{Directory, Proofs, SecretKey};

/// The directory of these files, in the state directory.
const DIRECTORY: &str = "mesh";
const KEY: &str = "key.der";
/// The key that comes next, until the mesh was told of it.
const NEXT_KEY: &str = "next-key.der";
/// The key that was there before, until all members were told of the next one.
const OLD_KEY: &str = "old-key.der";
const KNOWN: &str = "directory";
const OWN: &str = "own";
const PROOFS: &str = "proofs";

/// Where the files are.
#[derive(Clone, Debug)]
pub(super) struct Files(PathBuf);

/// Why a file of the mesh is of no use.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot read {}: {source}; let the user that runs postroad read it", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// It holds something else.
    #[error(
        "{}: {why}; put the directory back from a backup, or remove it and join the mesh anew",
        path.display()
    )]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// It cannot be written.
    #[error("cannot write {}: {source}; check the space on the disk of the state directory", path.display())]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
}

impl Files {
    pub(super) fn new(state_dir: &Path) -> Files {
        Files(state_dir.join(DIRECTORY))
    }

    /// Reads the key; `None` when there is none.
    pub(super) fn key(&self) -> Result<Option<SecretKey>, FileError> {
        self.key_at(KEY)
    }

    /// Reads the key that is to come next; `None` when there is none.
    pub(super) fn next_key(&self) -> Result<Option<SecretKey>, FileError> {
        self.key_at(NEXT_KEY)
    }

    /// Reads the key that was there before; `None` when it is given up.
    pub(super) fn old_key(&self) -> Result<Option<SecretKey>, FileError> {
        self.key_at(OLD_KEY)
    }

    fn key_at(&self, name: &str) -> Result<Option<SecretKey>, FileError> {
        let Some(der) = self.read(name)? else { return Ok(None) };
        SecretKey::from_pkcs8(&der).map(Some).map_err(|why| self.unusable(name, &why))
    }

    /// Keeps a key, as PKCS #8.
    pub(super) fn put_key(&self, der: &[u8]) -> Result<(), FileError> {
        self.put(KEY, der)
    }

    /// Keeps the key that is to come next, as PKCS #8.
    pub(super) fn put_next_key(&self, der: &[u8]) -> Result<(), FileError> {
        self.put(NEXT_KEY, der)
    }

    /// Puts the next key in the place of the key, which is the old one from then on.
    pub(super) fn take_next_key(&self) -> Result<(), FileError> {
        if let Some(key) = self.read(KEY)? {
            self.put(OLD_KEY, &key)?;
        }
        let path = self.0.join(KEY);
        fs::rename(self.0.join(NEXT_KEY), &path).and_then(|()| self.sync()).map_err(self.unwritable(path))
    }

    /// Forgets the old key.
    pub(super) fn forget_old_key(&self) -> Result<(), FileError> {
        self.remove(&[OLD_KEY])
    }

    /// Forgets mesh and key. What is known goes first: a key without it is that of a host in no mesh.
    pub(super) fn forget(&self) -> Result<(), FileError> {
        self.remove(&[KNOWN, OWN, PROOFS, NEXT_KEY, OLD_KEY, KEY])
    }

    fn remove(&self, names: &[&str]) -> Result<(), FileError> {
        for name in names {
            let path = self.0.join(name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(self.unwritable(path)(error)),
                _ => {}
            }
        }
        self.sync().map_err(self.unwritable(self.0.clone()))
    }

    /// Reads what is known of the mesh, with what DNS proved; `None` when this host was never in one.
    pub(super) fn known(&self, now: u64) -> Result<Option<Directory>, FileError> {
        let Some(octets) = self.read(KNOWN)? else { return Ok(None) };
        let proven = self.proofs(0)?.proven();
        archive::read(&octets, proven, now).map(Some).map_err(|why| self.unusable(KNOWN, &why))
    }

    /// Reads what DNS proved; chance in what comes of it is from a seed.
    pub(super) fn proofs(&self, seed: u64) -> Result<Proofs, FileError> {
        let Some(octets) = self.read(PROOFS)? else { return Ok(Proofs::new(seed)) };
        Proofs::from_octets(&octets, seed).map_err(|why| self.unusable(PROOFS, &why))
    }

    /// Keeps octets of [`Proofs::to_octets`].
    pub(super) fn put_proofs(&self, octets: &[u8]) -> Result<(), FileError> {
        self.put(PROOFS, octets)
    }

    /// Keeps octets of `archive::write`.
    pub(super) fn put_known(&self, octets: &[u8]) -> Result<(), FileError> {
        self.put(KNOWN, octets)
    }

    /// Reads what this host alone decided.
    pub(super) fn own(&self) -> Result<Own, FileError> {
        let Some(octets) = self.read(OWN)? else { return Ok(Own::default()) };
        Own::from_octets(&octets).map_err(|why| self.unusable(OWN, &why))
    }

    pub(super) fn put_own(&self, own: &Own) -> Result<(), FileError> {
        self.put(OWN, &own.to_octets())
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, FileError> {
        let path = self.0.join(name);
        match fs::read(&path) {
            Ok(octets) => Ok(Some(octets)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(FileError::Unreadable { path, source }),
        }
    }

    /// Writes a file that only its owner reads, all of it or nothing.
    fn put(&self, name: &str, octets: &[u8]) -> Result<(), FileError> {
        let (path, temporary) = (self.0.join(name), self.0.join(format!("{name}.new")));
        let write = || {
            DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(octets)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            self.sync()
        };
        write().map_err(self.unwritable(path.clone()))
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.0)?.sync_all()
    }

    fn unusable(&self, name: &str, why: &dyn std::fmt::Display) -> FileError {
        FileError::Unusable { path: self.0.join(name), why: why.to_string() }
    }

    fn unwritable(&self, path: PathBuf) -> impl FnOnce(io::Error) -> FileError + use<> {
        move |source| FileError::Unwritable { path, source }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_reads_back_is_private_and_damage_is_named() {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let files = Files::new(directory.path());
        assert!(files.key().expect("readable").is_none());
        let key = SecretKey::from_seed(&[7; 32]);
        files.put_key(&key.to_pkcs8()).expect("writable");
        assert_eq!(files.key().expect("readable").expect("there").public(), key.public());
        let path = directory.path().join("mesh/key.der");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        fs::write(&path, b"-----BEGIN").expect("writable");
        let error = files.key().expect_err("no key").to_string();
        assert!(error.contains("key.der") && error.contains("backup"), "{error}");
    }
    #[test]
    fn the_next_key_takes_the_place_of_the_first_and_all_is_forgotten() {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let files = Files::new(directory.path());
        let (key, next) = (SecretKey::from_seed(&[7; 32]), SecretKey::from_seed(&[8; 32]));
        files.put_key(&key.to_pkcs8()).expect("writable");
        files.put_next_key(&next.to_pkcs8()).expect("writable");
        files.take_next_key().expect("writable");
        assert_eq!(files.key().expect("readable").expect("there").public(), next.public());
        assert!(files.next_key().expect("readable").is_none());
        assert_eq!(files.old_key().expect("readable").expect("there").public(), key.public());
        files.forget_old_key().expect("writable");
        assert!(files.old_key().expect("readable").is_none());
        files.forget().expect("writable");
        assert!(files.key().expect("readable").is_none());
        files.forget().expect("nothing is left to forget");
    }
}
