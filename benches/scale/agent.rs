//! One agent as an operator runs it: its own process, the shipped defaults but for what the
//! measurement needs, its log in a file; and what the kernel says about it.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::Bench;

/// How long anything that an agent should do at once may take.
pub const SOON: Duration = Duration::from_secs(120);
/// The unit of times in /proc, the same on every Linux.
const TICKS_PER_SECOND: u64 = 100;

/// A domain and its next hop.
pub type Route = (String, SocketAddr);

/// A running agent; killed when it is dropped.
pub struct Agent {
    program: PathBuf,
    /// Words in front of the program, such as `strace -c`.
    wrapper: Vec<String>,
    state: PathBuf,
    child: Child,
    pub smtp: SocketAddr,
}

/// The totals that `postroad status` shows.
#[derive(Clone, Copy, Debug, serde::Deserialize)]
pub struct Totals {
    pub messages: u64,
    pub jobs: u64,
}

impl Agent {
    /// Starts an agent with an empty queue; `more` is added to its configuration.
    pub fn start(bench: &Bench, name: &str, routes: &[Route], more: &str) -> Result<Agent> {
        Agent::start_under(bench, name, routes, more, &[])
    }

    /// Starts an agent under another program.
    pub fn start_under(bench: &Bench, name: &str, routes: &[Route], more: &str, wrapper: &[String]) -> Result<Agent> {
        let state = bench.scratch.path().join(name);
        fs::create_dir(&state).with_context(|| format!("cannot make {}", state.display()))?;
        let smtp = bench.address();
        fs::write(state.join("postroad.toml"), configuration(&state, smtp, routes, more))?;
        let (program, wrapper) = (bench.arguments.agent.clone(), wrapper.to_vec());
        let child = spawn(&program, &wrapper, &state)?;
        let agent = Agent { program, wrapper, state, child, smtp };
        agent.wait_greeting()?;
        Ok(agent)
    }

    /// Starts the agent again after a stop; returns how long it took to its first 220.
    pub fn start_again(&mut self) -> Result<Duration> {
        let start = Instant::now();
        self.child = spawn(&self.program, &self.wrapper, &self.state)?;
        self.wait_greeting()?;
        Ok(start.elapsed())
    }

    /// Stops the agent in order and waits for its end.
    pub fn stop(&mut self) -> Result<()> {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).context("a process id fits")?;
        kill_process(pid, Signal::TERM).context("cannot stop the agent")?;
        wait("the agent to stop", SOON, || Ok(self.child.try_wait()?))?;
        Ok(())
    }

    /// The process that does the work: under a wrapper its child.
    pub fn pid(&self) -> u32 {
        let own = self.child.id();
        if self.wrapper.is_empty() {
            return own;
        }
        let children = fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
        children.split_whitespace().next().and_then(|pid| pid.parse().ok()).unwrap_or(own)
    }

    fn wait_greeting(&self) -> Result<()> {
        let log = self.state.join("agent.log");
        wait("the first 220", SOON, || {
            let Ok(mut stream) = TcpStream::connect(self.smtp) else { return Ok(None) };
            let mut greeting = [0; 3];
            stream.read_exact(&mut greeting)?;
            Ok((&greeting == b"220").then_some(()))
        })
        .with_context(|| format!("the agent does not start; see {}", log.display()))
    }

    /// User and system time of all its threads so far.
    pub fn cpu(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        let behind_name = stat.rsplit(')').next().unwrap_or_default();
        let ticks: u64 = behind_name.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
        Ok(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
    }

    /// Its proportional share of memory, in octets.
    pub fn pss(&self) -> Result<u64> {
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid()))?;
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).context("smaps_rollup has no Pss")?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kib * 1024)
    }

    /// How often each of its threads has gone to sleep so far.
    pub fn sleeps(&self) -> Result<HashMap<OsString, u64>> {
        let mut sleeps = HashMap::new();
        for task in fs::read_dir(format!("/proc/{}/task", self.pid()))? {
            let task = task?;
            let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
            let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            sleeps.insert(task.file_name(), count.and_then(|count| count.trim().parse().ok()).unwrap_or(0));
        }
        Ok(sleeps)
    }

    /// Octets that its queue takes on disk.
    pub fn spool_octets(&self) -> u64 {
        octets_below(&self.state.join("queue"))
    }

    /// Asks over the control socket how the queue stands.
    pub fn totals(&self) -> Result<Totals> {
        let mut socket = UnixStream::connect(self.state.join("control.sock"))?;
        socket.set_read_timeout(Some(SOON))?;
        socket.write_all(b"{\"v\":1,\"op\":\"status\"}\n")?;
        let mut line = String::new();
        BufReader::new(socket).read_line(&mut line)?;
        let answer: serde_json::Value = serde_json::from_str(&line)?;
        serde_json::from_value(answer["item"]["queue"].clone()).with_context(|| format!("no status in {line}"))
    }

    /// A command of the agent's command line, about this agent.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(self.state.join("postroad.toml")).args(words).stdin(Stdio::null());
        command
    }

    /// Waits until the agent uses less than a twentieth of a core.
    pub fn wait_quiet(&self) -> Result<()> {
        wait("the agent to come to rest", SOON, || {
            let before = self.cpu()?;
            std::thread::sleep(Duration::from_millis(500));
            Ok((self.cpu()? - before < Duration::from_millis(25)).then_some(()))
        })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended already. Under a wrapper both end.
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        let _ = pid.map(|pid| kill_process(pid, Signal::KILL));
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.state);
    }
}

fn configuration(state: &Path, smtp: SocketAddr, routes: &[Route], more: &str) -> String {
    let mut text = format!(
        "hostname = \"agent.bench.test\"\nstate_dir = \"{}\"\n\n[listen]\nsmtp = [\"{smtp}\"]\n\n{more}\n",
        state.display()
    );
    for (domain, hop) in routes {
        text += &format!("[[route]]\ndomain = \"{domain}\"\nvia = \"[{}]:{}\"\n\n", hop.ip(), hop.port());
    }
    text
}

fn spawn(program: &Path, wrapper: &[String], state: &Path) -> Result<Child> {
    let log = fs::File::options().create(true).append(true).open(state.join("agent.log"))?;
    let mut words = wrapper.iter().map(Into::into).chain([program.into()]);
    let first: std::ffi::OsString = words.next().context("there is a program")?;
    Command::new(&first)
        .args(words)
        .arg("--config")
        .arg(state.join("postroad.toml"))
        .arg("run")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start {}", Path::new(&first).display()))
}

fn octets_below(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    // What is removed meanwhile takes no space any more.
    let each = entries.map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => octets_below(&entry.path()),
        Ok(found) => found.blocks() * 512,
        Err(_) => 0,
    });
    each.sum()
}

/// Waits until `done` gives a value.
pub fn wait<T>(what: &str, limit: Duration, mut done: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = done()? {
            return Ok(value);
        }
        if start.elapsed() > limit {
            bail!("waited {limit:?} in vain for {what}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
