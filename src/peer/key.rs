//! The key that this host is known by: PKCS #8 in a file of its owner's.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use postroad_mesh::SecretKey;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error("cannot read the key of this node, {}: {source}; let the user that runs postroad read it", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// The file holds something else.
    #[error(
        "{} is not the key of a node ({why}); put it back from a backup, or remove it and join the mesh anew",
        path.display()
    )]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// Returns where the key is, in the directory of the mesh.
pub(super) fn path(directory: &Path) -> PathBuf {
    directory.join("key.der")
}

/// Reads the key; `None` when there is none.
pub(super) fn load(path: &Path) -> Result<Option<SecretKey>, KeyError> {
    let der = match fs::read(path) {
        Ok(der) => der,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(KeyError::Unreadable { path: path.to_owned(), source }),
    };
    let key = SecretKey::from_pkcs8(&der);
    key.map(Some).map_err(|why| KeyError::Unusable { path: path.to_owned(), why: why.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_reads_back_and_damage_is_named() {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let path = path(directory.path());
        assert!(load(&path).expect("readable").is_none());
        let key = SecretKey::from_seed(&[7; 32]);
        fs::write(&path, key.to_pkcs8()).expect("writable");
        let read = load(&path).expect("readable").expect("there");
        assert_eq!(read.public(), key.public());
        fs::write(&path, b"-----BEGIN").expect("writable");
        let error = load(&path).expect_err("no key").to_string();
        assert!(error.contains("key.der") && error.contains("backup"), "{error}");
    }
}
