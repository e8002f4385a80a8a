//! A foreign server as a child process, in a directory that other users can enter.

use std::fs::{File, Permissions};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::support::net::{SOON, wait_until};
use crate::support::note;

/// A directory that the users of foreign servers can enter.
pub struct Place(TempDir);

impl Place {
    pub fn new() -> Place {
        let directory = tempfile::Builder::new().prefix("postroad-peer-").tempdir().expect("a temporary directory");
        allow(directory.path(), 0o755);
        Place(directory)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file that everyone may read.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("a file lies in a directory")).expect("writable");
        std::fs::write(&path, text).expect("writable");
        allow(&path, 0o644);
        path
    }

    /// Makes a directory that belongs to a user.
    pub fn directory_of(&self, name: &str, user: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(&path).expect("writable");
        let owned = Command::new("chown").arg(user).arg(&path).status().expect("chown runs");
        assert!(owned.success(), "there is no user {user}: .ci/run makes it");
        path
    }
}

pub fn allow(path: &Path, mode: u32) {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).expect("it is ours");
}

/// Finds a program, also where only root's path leads.
///
/// # Panics
/// When it is not installed.
pub fn program(name: &str) -> PathBuf {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let all = std::env::split_paths(&paths).chain(["/usr/sbin".into(), "/sbin".into(), extracted()]);
    let found = all.map(|path| path.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{name} is not installed: .ci/run does it"))
}

/// Where `.ci/run` unpacks what cannot be installed beside Postfix.
fn extracted() -> PathBuf {
    let root = std::env::var_os("POSTROAD_INTEROP").map_or("/var/tmp/postroad-interop".into(), PathBuf::from);
    root.join("usr/sbin")
}

/// A running server; it is ended when this is dropped.
pub struct Daemon {
    child: Mutex<Child>,
    log: PathBuf,
}

impl Daemon {
    /// Starts a server that stays in the foreground. `log` is shown when a test fails.
    pub fn start(command: &mut Command, log: PathBuf) -> Daemon {
        let output = File::options().create(true).append(true).open(&log).expect("writable");
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a descriptor is free"))
            .stderr(output)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Daemon { child: Mutex::new(child), log }
    }

    /// # Panics
    /// When it has ended.
    pub fn is_alive(&self) -> bool {
        let ended = self.child.lock().expect("not poisoned").try_wait().expect("it is a child");
        ended.inspect(|status| panic!("the peer ended with {status}:\n{}", self.log()));
        true
    }

    /// Waits until it listens.
    pub fn wait_listening(&self, address: SocketAddr) {
        wait_until("the peer listens", SOON, || self.is_alive() && TcpStream::connect(address).is_ok());
    }

    fn log(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&text[text.len().saturating_sub(20_000)..]).into_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            note(format_args!("---- log of the peer:\n{}", self.log()));
        }
        let child = self.child.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(pid) = Pid::from_raw(child.id().cast_signed()) {
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::TERM);
        }
        for _ in 0..500 {
            if matches!(child.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = child.kill();
        let _ = child.wait();
    }
}
