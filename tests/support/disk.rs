//! Small file systems of their own for an agent's state: one that fills up, and one whose power can be
//! cut. Unmounted when dropped.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::agent::{has_program, is_root};
use super::net::wait_until;

/// A file system under a directory of a test.
pub struct Disk {
    mount: PathBuf,
    image: Option<PathBuf>,
}

/// What a disk in a file is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// ext4 with its defaults.
    Ext4,
    /// xfs with its defaults.
    Xfs,
}

/// Octets of a disk in a file; the least that `mkfs.xfs` takes is 300 MiB.
const IMAGE_OCTETS: u64 = 512 << 20;

impl Disk {
    /// Mounts a tmpfs of this size, as in `100m`, which it creates the directory for.
    ///
    /// # Errors
    /// Says what is missing here.
    pub fn in_memory(mount: &Path, size: &str) -> Result<Disk, String> {
        let options = format!("size={size},mode=0755");
        Disk::mount(mount, None, &["-t", "tmpfs", "-o", &options, "postroad-test"])
    }

    /// Makes a file system in a file beside `mount` and mounts it by a loop device.
    ///
    /// # Errors
    /// Says what is missing here.
    pub fn in_file(mount: &Path, kind: Kind) -> Result<Disk, String> {
        let image = mount.with_extension("image");
        let file = std::fs::File::create(&image).map_err(|error| format!("{}: {error}", image.display()))?;
        file.set_len(IMAGE_OCTETS).map_err(|error| format!("{}: {error}", image.display()))?;
        let path = image.display().to_string();
        match kind {
            Kind::Ext4 => run("mkfs.ext4", &["-q", "-F", &path])?,
            Kind::Xfs => run("mkfs.xfs", &["-q", "-f", &path])?,
        }
        Disk::mount(mount, Some(image), &["-o", "loop", &path])
    }

    fn mount(mount: &Path, image: Option<PathBuf>, words: &[&str]) -> Result<Disk, String> {
        if !is_root() {
            return Err("to mount a disk one has to be root".into());
        }
        std::fs::create_dir_all(mount).map_err(|error| format!("{}: {error}", mount.display()))?;
        run("mount", &[words, &[&mount.display().to_string()]].concat())?;
        Ok(Disk { mount: mount.to_owned(), image })
    }

    /// Cuts the power: from here on nothing reaches the disk, and what was not synced is gone.
    pub fn cut(&self) {
        run("xfs_io", &["-x", "-c", "shutdown", &self.path()]).expect("the kernel can shut this file system down");
    }

    /// Power is back: the file system is mounted anew. Nobody may have a file of it open.
    pub fn restore(&self) {
        let image = self.image.as_ref().expect("a disk in memory has no power to lose").display().to_string();
        // The kernel closes the files of a killed process a moment later.
        wait_until("the disk is unmounted", Duration::from_secs(20), || run("umount", &[&self.path()]).is_ok());
        run("mount", &["-o", "loop", &image, &self.path()]).expect("its journal is replayed");
    }

    /// Fills the disk until it takes nothing any more; [`Disk::make_room`] undoes it.
    pub fn fill(&self) {
        let mut file = std::fs::File::create(self.mount.join("ballast")).expect("created");
        let piece = vec![b'x'; 64 << 10];
        // The last piece fits in part.
        while std::io::Write::write_all(&mut file, &piece).is_ok() {}
        let _ = file.sync_all();
    }

    /// Removes what [`Disk::fill`] wrote.
    pub fn make_room(&self) {
        std::fs::remove_file(self.mount.join("ballast")).expect("it was filled before");
    }

    fn path(&self) -> String {
        self.mount.display().to_string()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // It is in use until the agent has ended; then the lazy part does nothing.
        let _ = Command::new("umount").arg("-l").arg(&self.mount).status();
    }
}

fn run(program: &str, words: &[&str]) -> Result<(), String> {
    if !has_program(program) {
        return Err(format!("{program} is not installed"));
    }
    let output = Command::new(program).args(words).output().map_err(|error| format!("{program}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{program} {}: {}", words.join(" "), said.trim())) }
}
