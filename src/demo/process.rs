//! The three agents as processes of their own, which never outlive the demo: the kernel ends them
//! when it dies, however it dies, and dropping one kills it.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, getppid, kill_process};
use serde::de::DeserializeOwned;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use super::DemoError;
use super::site::{Host, Site};
use crate::admin::mesh::MeshRequest;
use crate::admin::trace::TraceView;
use crate::admin::view::StatusView;
use crate::admin::{AskError, Client, News, Request};

/// How long an agent may take until it serves.
const START_MAX: Duration = Duration::from_secs(15);
/// How long a drain may take before it is cut off.
const STOP_MAX: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(10);
/// Lines of its log that are shown when an agent does not start.
const LOG_LINES_SHOWN: usize = 8;

/// One agent.
#[derive(Debug)]
pub struct Agent {
    host: Host,
    config_file: PathBuf,
    control: PathBuf,
    log: PathBuf,
    child: Option<Child>,
}

impl Agent {
    /// Prepares an agent; nothing runs yet.
    pub fn new(site: &Site, host: Host) -> Agent {
        Agent {
            host,
            config_file: site.config_file(host),
            control: site.control(host),
            log: site.log(host),
            child: None,
        }
    }

    /// Starts it and waits until it serves. Must be called on the main thread: the kernel watches
    /// over the thread that started a process.
    ///
    /// # Errors
    /// It does not start, or does not serve in time.
    pub async fn start(&mut self) -> Result<Duration, DemoError> {
        let begun = Instant::now();
        let child = self.spawn().map_err(|source| DemoError::Spawn { host: self.host, source })?;
        self.child = Some(child);
        while !serves(&self.control) {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if ended.is_some() || begun.elapsed() > START_MAX {
                let log = last_lines(&self.log);
                return Err(DemoError::NotServing { host: self.host, file: self.log.clone(), log });
            }
            sleep(POLL).await;
        }
        Ok(begun.elapsed())
    }

    fn spawn(&self) -> io::Result<Child> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        Command::new(std::env::current_exe()?)
            .args(["demo", "--parent", &std::process::id().to_string(), "--agent"])
            .arg(&self.config_file)
            .env_remove("NOTIFY_SOCKET")
            .env_remove("POSTROAD_CONFIG")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C is for the demo, which then stops the agents in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
    }

    /// Returns which of the three it is.
    pub fn host(&self) -> Host {
        self.host
    }

    /// Returns its process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// Ends it with SIGKILL: no drain, no last write.
    ///
    /// # Errors
    /// It cannot be killed.
    pub async fn kill(&mut self) -> Result<(), DemoError> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        child.kill().await.map_err(|source| DemoError::Kill { host: self.host, source })
    }

    /// Lets it drain and end, and kills it when it does not.
    pub async fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        // One that has ended already cannot be told to.
        let _ = pid.map(|pid| kill_process(pid, Signal::TERM));
        if timeout(STOP_MAX, child.wait()).await.is_err() {
            let _ = child.kill().await;
        }
    }
}

/// Becomes the agent of this configuration: what `postroad demo --agent` does. Returns only when
/// it cannot.
pub fn become_agent(config_file: &Path, parent: i32) -> io::Error {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::KILL)) {
        return error.into();
    }
    // The demo may have died before the kernel was asked to watch it.
    if getppid().map(|pid| pid.as_raw_nonzero().get()) != Some(parent) {
        return io::Error::other("the demo has ended");
    }
    match std::env::current_exe() {
        Ok(executable) => std::process::Command::new(executable).arg("--config").arg(config_file).arg("run").exec(),
        Err(error) => error,
    }
}

/// Asks an agent how it is; blocks for moments only.
///
/// # Errors
/// Nobody answers.
pub fn status(control: &Path) -> Result<StatusView, AskError> {
    one(control, &Request::Status {})
}

/// Asks something of the mesh, as `postroad mesh` does; blocks as long as the agent takes.
///
/// # Errors
/// Nobody answers, or the agent cannot do it.
pub fn mesh<T: DeserializeOwned>(control: &Path, request: MeshRequest) -> Result<T, AskError> {
    one(control, &Request::Mesh { request })
}

/// Asks what became of a letter, here and on the other members.
///
/// # Errors
/// Nobody answers.
pub fn trace(control: &Path, message_id: &str) -> Result<Vec<TraceView>, AskError> {
    all(control, &Request::Trace { what: format!("<{message_id}>"), since_ms: None, limit: None })
}

/// Asks for what is shown as one item.
fn one<T: DeserializeOwned>(control: &Path, request: &Request) -> Result<T, AskError> {
    let answer = all(control, request)?.into_iter().next();
    answer.ok_or_else(|| AskError::Broken(io::ErrorKind::UnexpectedEof.into()))
}

fn all<T: DeserializeOwned>(control: &Path, request: &Request) -> Result<Vec<T>, AskError> {
    let mut items = Vec::new();
    Client::connect(control)?.ask::<T, AskError>(request, |news| {
        if let News::Item(item) = news {
            items.push(item);
        }
        Ok(())
    })?;
    Ok(items)
}

/// Counts the messages of an agent that is down, as anyone can: `postroad queue list` reads its
/// disk. `None` when that fails.
pub async fn count_on_disk(site: &Site, host: Host) -> Option<u64> {
    let mut list = Command::new(std::env::current_exe().ok()?);
    list.arg("--config").arg(site.config_file(host)).args(["queue", "list", "--json"]);
    let output = list.stdin(Stdio::null()).stderr(Stdio::null()).output().await.ok()?;
    let lines = output.stdout.iter().filter(|octet| **octet == b'\n').count();
    output.status.success().then_some(lines as u64)
}

fn serves(control: &Path) -> bool {
    status(control).is_ok_and(|status| status.state == "serving")
}

fn last_lines(file: &Path) -> String {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n")
}
