//! The directory of a demo: a new one that only its owner may enter and that is removed at the end,
//! or one that somebody wants to keep.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::DemoError;

/// How often a name is tried that does not exist yet.
const TRIES_MAX: usize = 16;

/// The directory; removed when this is dropped, unless it is kept.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    kept: bool,
}

impl Scratch {
    /// Makes a new directory, or takes `keep`, which must be empty or missing.
    ///
    /// # Errors
    /// The file system refuses, or there is something in `keep`.
    pub fn take(keep: Option<PathBuf>) -> Result<Scratch, DemoError> {
        match keep {
            Some(path) => keep_in(&path)
                .map_err(|source| DemoError::File { path: path.clone(), source })?
                .ok_or(DemoError::NotEmpty(path)),
            None => {
                let parent = std::env::temp_dir();
                new_in(&parent).map_err(|source| DemoError::File { path: parent, source })
            }
        }
    }

    /// Lets it stay.
    pub fn keep(&mut self) {
        self.kept = true;
    }

    /// Returns whether it stays.
    pub fn is_kept(&self) -> bool {
        self.kept
    }

    /// Returns where it is, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.kept {
            // What cannot be removed is left to whoever cleans the directory for such things.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

fn keep_in(path: &Path) -> io::Result<Option<Scratch>> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let is_empty = std::fs::read_dir(path)?.next().is_none();
    let path = path.canonicalize()?;
    Ok(is_empty.then_some(Scratch { path, kept: true }))
}

fn new_in(parent: &Path) -> io::Result<Scratch> {
    for _ in 0..TRIES_MAX {
        let path = parent.join(format!("postroad-demo-{:06x}", fastrand::u32(..1 << 24)));
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(Scratch { path: path.canonicalize()?, kept: false }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_directory_goes_and_a_kept_one_stays() {
        let scratch = Scratch::take(None).expect("a directory");
        let path = scratch.path().to_owned();
        std::fs::write(path.join("file"), "x").expect("it can be written");
        drop(scratch);
        assert!(!path.exists());

        let parent = tempfile::tempdir().expect("a directory");
        let keep = parent.path().join("new/deep");
        drop(Scratch::take(Some(keep.clone())).expect("a directory"));
        assert!(keep.is_dir());
        std::fs::write(keep.join("mail"), "x").expect("it can be written");
        assert!(matches!(Scratch::take(Some(keep)), Err(DemoError::NotEmpty(_))));
    }
}
