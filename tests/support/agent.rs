//! An agent as a process of its own, with a configuration, a state directory and an address of its
//! own. When a test fails its log is shown.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::client::Client;
use super::dns::Dns;
use super::net::{SOON, own_address, wait_for, wait_until};
use super::note;

/// The binary under test.
pub const POSTROAD: &str = env!("CARGO_BIN_EXE_postroad");

/// How much of a failed agent's log is shown, in octets.
const LOG_SHOWN: usize = 20_000;

/// An agent to be.
pub struct Builder {
    ip: IpAddr,
    directory: TempDir,
    sections: BTreeMap<String, BTreeMap<String, String>>,
    tables: Vec<String>,
    wrapper: Vec<String>,
}

/// A running (or stopped) agent.
pub struct Agent {
    ip: IpAddr,
    directory: TempDir,
    wrapper: Vec<String>,
    child: Option<Child>,
}

impl Builder {
    /// Begins with an agent `mx.test` that listens for SMTP only and retries within a second.
    pub fn new() -> Builder {
        let ip = own_address();
        let directory = tempfile::Builder::new().prefix("postroad-test-").tempdir().expect("a temporary directory");
        let builder = Builder { ip, directory, sections: BTreeMap::new(), tables: Vec::new(), wrapper: Vec::new() };
        let state = builder.path("state");
        builder
            .set("hostname", "\"mx.test\"")
            .set("state_dir", &format!("{:?}", state.display().to_string()))
            .set("listen.smtp", &format!("[\"{ip}:2525\"]"))
            .set("queue.retry_first", "\"1s\"")
            .set("queue.retry_max", "\"1s\"")
            .set("queue.reserve", "\"1MB\"")
            .set("dns.servers", "[\"127.0.0.1:9\"]")
            .set("dns.timeout", "\"1s\"")
            .set("outbound.idle", "\"1s\"")
            .set("limits.sessions_per_address", "1000")
            .set("timeouts.drain", "\"5s\"")
    }

    /// Gives it another address, in a network that the test has made.
    pub fn at(mut self, ip: IpAddr) -> Builder {
        self.ip = ip;
        self.set("listen.smtp", &format!("[\"{ip}:2525\"]"))
    }

    /// Lets it find next hops through this name server, in the clear and on the tests' port.
    pub fn by_dns(self, dns: &Dns) -> Builder {
        self.set("dns.servers", &dns.servers())
            .set("outbound.port", "2525")
            .set("outbound.allow_loopback", "true")
            .set("outbound.tls", "\"never\"")
    }

    /// Returns a path in the agent's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Returns the address that it will have.
    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    /// Sets a key, as in `set("queue.retry_first", "\"1s\"")`: the value is TOML.
    pub fn set(mut self, key: &str, value: &str) -> Builder {
        let (section, name) = key.split_once('.').unwrap_or(("", key));
        self.sections.entry(section.into()).or_default().insert(name.into(), value.into());
        self
    }

    /// Adds a table of an array, as in `table("local", "domain = \"example.org\"\n…")`.
    pub fn table(mut self, name: &str, lines: &str) -> Builder {
        self.tables.push(format!("[[{name}]]\n{lines}\n"));
        self
    }

    /// Sends mail for `domain` (a pattern) to this next hop; no TLS unless set otherwise.
    pub fn route(self, domain: &str, via: SocketAddr) -> Builder {
        self.route_with(domain, via, "tls = \"never\"")
    }

    /// The same with more lines.
    pub fn route_with(self, domain: &str, via: SocketAddr, lines: &str) -> Builder {
        let (ip, port) = (via.ip(), via.port());
        self.table("route", &format!("domain = {domain:?}\nvia = \"[{ip}]:{port}\"\n{lines}"))
    }

    /// Listens for submission on 2587 and, with implicit TLS, on 2465.
    pub fn submission(self) -> Builder {
        let ip = self.ip;
        self.set("listen.submission", &format!("[\"{ip}:2587\"]"))
            .set("listen.submissions", &format!("[\"{ip}:2465\"]"))
    }

    /// Serves metrics on 9025.
    pub fn metrics(self) -> Builder {
        let ip = self.ip;
        self.set("metrics.listen", &format!("\"{ip}:9025\""))
    }

    /// Starts the agent through another program, whose arguments come before the agent's.
    pub fn wrapped(mut self, words: &[&str]) -> Builder {
        self.wrapper = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Returns the configuration's text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (section, keys) in &self.sections {
            if !section.is_empty() {
                text += &format!("\n[{section}]\n");
            }
            keys.iter().for_each(|(key, value)| text += &format!("{key} = {value}\n"));
        }
        self.tables.iter().for_each(|table| text += &format!("\n{table}"));
        text
    }

    /// Writes the configuration without starting anything.
    pub fn build(self) -> Agent {
        let text = self.text();
        let Builder { ip, directory, wrapper, .. } = self;
        let agent = Agent { ip, directory, wrapper, child: None };
        std::fs::write(agent.config_path(), text).expect("writable");
        agent
    }

    /// Starts the agent and waits until it answers.
    pub fn start(self) -> Agent {
        let mut agent = self.build();
        agent.start();
        agent
    }
}

impl Agent {
    /// Returns where it listens for SMTP.
    pub fn smtp(&self) -> SocketAddr {
        SocketAddr::new(self.ip, 2525)
    }

    /// Returns where it listens for submission.
    pub fn submission(&self) -> SocketAddr {
        SocketAddr::new(self.ip, 2587)
    }

    /// Returns where it listens for submission with implicit TLS.
    pub fn submissions(&self) -> SocketAddr {
        SocketAddr::new(self.ip, 2465)
    }

    /// Returns the value of one of its metrics, by its name with labels.
    ///
    /// # Panics
    /// When there is none of this name.
    pub fn metric(&self, name: &str) -> usize {
        let address = SocketAddr::new(self.ip, 9025);
        let mut client = Client::dial(None, address).expect("metrics are served");
        client.send(format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"));
        let text = String::from_utf8(client.wire().rest()).expect("text");
        let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok());
        found.unwrap_or_else(|| panic!("there is no {name} in\n{text}"))
    }

    /// Returns a path in its directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Returns its configuration file.
    pub fn config_path(&self) -> PathBuf {
        self.path("postroad.toml")
    }

    /// Replaces text in its configuration file.
    pub fn edit_config(&self, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.config_path()).expect("readable");
        assert!(text.contains(from), "the configuration has no {from:?}");
        std::fs::write(self.config_path(), text.replace(from, to)).expect("writable");
    }

    /// Gives it another address, from the next start on: everything that names its own is changed.
    pub fn move_to(&mut self, ip: IpAddr) {
        self.edit_config(&self.ip.to_string(), &ip.to_string());
        self.ip = ip;
    }

    /// Returns its log so far.
    pub fn log(&self) -> String {
        std::fs::read(self.path("log")).map_or(String::new(), |log| String::from_utf8_lossy(&log).into_owned())
    }

    /// Waits until its log holds this text: a line is written a moment after what it tells of.
    #[track_caller]
    pub fn wait_logged(&self, text: &str) {
        self.wait_logged_times(text, 1);
    }

    /// Waits until its log holds this text so many times, or more.
    #[track_caller]
    pub fn wait_logged_times(&self, text: &str, times: usize) {
        wait_until(&format!("the log says {text:?}, {times} times"), SOON, || self.logged(text) >= times);
    }

    /// Returns how often its log holds this text so far.
    pub fn logged(&self, text: &str) -> usize {
        self.log().matches(text).count()
    }

    /// Returns its process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// From the next start on, this program stands around it.
    pub fn wrap(&mut self, words: Vec<String>) {
        self.wrapper = words;
    }

    /// From the next start on, no other program stands around it.
    pub fn run_bare(&mut self) {
        self.wrapper.clear();
    }

    /// Starts it and waits until it answers; reading a queue that was cut off takes its time where
    /// nothing was optimized and much else runs.
    pub fn start(&mut self) {
        self.spawn();
        self.wait_ready(3 * SOON);
    }

    /// Starts it without waiting.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let log = File::options().create(true).append(true).open(self.path("log")).expect("writable");
        let mut words = self.wrapper.clone();
        // Another build of it, where a rate is measured.
        words.push(std::env::var("POSTROAD_AGENT").unwrap_or_else(|_| POSTROAD.to_owned()));
        let child = Command::new(&words[0])
            .args(&words[1..])
            .arg("--config")
            .arg(self.config_path())
            .arg("run")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor is free"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", words[0]));
        self.child = Some(child);
    }

    /// Waits until it greets.
    pub fn wait_ready(&mut self, limit: Duration) {
        wait_until("the agent greets", limit, || {
            assert!(!self.ended(), "the agent ended:\n{}", self.log());
            self.greets()
        });
    }

    /// Returns whether it greets now.
    pub fn greets(&self) -> bool {
        let greeting = Client::dial(None, self.smtp()).and_then(|mut client| client.try_reply());
        greeting.is_ok_and(|reply| reply.code == 220)
    }

    /// Returns whether it has ended by itself.
    pub fn ended(&mut self) -> bool {
        let Some(child) = &mut self.child else { return true };
        let ended = child.try_wait().expect("it is a child").is_some();
        if ended {
            self.child = None;
        }
        ended
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid().cast_signed()).expect("a process id is positive");
        kill_process(pid, signal).expect("our own child");
    }

    /// Kills it as a crash would.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        let status = self.child.take().expect("it runs").wait().expect("it is a child");
        assert_eq!(status.signal(), Some(9), "it had ended before: {status}\n{}", self.log());
    }

    /// Asks it to stop and waits until it has.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait_end(Duration::from_secs(30))
    }

    /// Waits until it has ended.
    pub fn wait_end(&mut self, limit: Duration) -> ExitStatus {
        let child = self.child.as_mut().expect("it runs");
        let status = wait_for("the agent ends", limit, || child.try_wait().expect("it is a child"));
        self.child = None;
        status
    }

    /// Stops it in good order and starts it again.
    pub fn restart(&mut self) {
        let status = self.stop();
        assert!(status.success(), "it ended with {status}");
        self.start();
    }

    /// Runs the command line with its configuration.
    pub fn cli(&self, words: &[&str]) -> Output {
        Command::new(POSTROAD)
            .arg("--config")
            .arg(self.config_path())
            .args(words)
            .stdin(Stdio::null())
            .output()
            .expect("the binary runs")
    }

    /// Runs the command line, expects success and returns what it printed.
    #[track_caller]
    pub fn ok(&self, words: &[&str]) -> String {
        let output = self.cli(words);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "postroad {words:?} ended with {}: {errors}", output.status);
        String::from_utf8(output.stdout).expect("the command line prints UTF-8")
    }

    /// Runs a command that prints one JSON value.
    #[track_caller]
    pub fn json(&self, words: &[&str]) -> serde_json::Value {
        let text = self.ok(words);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("postroad {words:?}: {error}: {text}"))
    }

    /// Waits until its queue is empty.
    #[track_caller]
    pub fn wait_empty(&self, limit: Duration) {
        wait_until("the queue is empty", limit, || self.queued() == 0);
    }

    /// Waits until everything in its queue has an attempt behind it that put it off, and none under way.
    #[track_caller]
    pub fn wait_deferred(&self, limit: Duration) {
        wait_until("all that waits was put off", limit, || {
            let deferred = items(&self.ok(&["queue", "list", "--json", "--deferred"])).len();
            deferred > 0 && deferred == self.queued()
        });
    }

    /// Returns how many messages its queue holds.
    pub fn queued(&self) -> usize {
        items(&self.ok(&["queue", "list", "--json"])).len()
    }
}

/// Reads a list as `--json` prints it: an array, or one object a line.
pub fn items(text: &str) -> Vec<serde_json::Value> {
    match serde_json::from_str(text) {
        Ok(serde_json::Value::Array(items)) => items,
        _ => text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect(),
    }
}

/// Returns whether a program can be found, as a shell would.
pub fn has_program(name: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths).chain(["/usr/sbin".into(), "/sbin".into()]).any(|path| path.join(name).is_file())
}

/// Returns whether this process is root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            let from = log.len().saturating_sub(LOG_SHOWN);
            let from = (from..log.len()).find(|at| log.is_char_boundary(*at)).unwrap_or(0);
            note(format_args!("---- log of the agent at {}:\n{}", self.ip, &log[from..]));
        }
    }
}

/// Creates the directory of a user's Maildir.
pub fn make_maildir(path: &Path) {
    for name in ["tmp", "new", "cur"] {
        std::fs::create_dir_all(path.join(name)).expect("writable");
    }
}
