//! The agent under the signals of its host: reload, drain, and an end at once.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(20);

/// A running agent; its end is the test's.
struct Agent {
    child: Child,
    log: Receiver<String>,
}

impl Agent {
    /// Starts one in `directory` and returns it with the address it takes mail at.
    fn start(directory: &Path) -> (Agent, String) {
        let mut command = program(directory, "run");
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("the program starts");
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let (sender, log) = channel();
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let agent = Agent { child, log };
        let ready = agent.line_with("listeners=");
        let address = ready.split("smtp ").nth(1).expect("a listener");
        let address =
            address.split(|c: char| !(c.is_ascii_digit() || ".:".contains(c))).next().expect("one").to_owned();
        (agent, address)
    }

    /// Waits for a line of the log.
    fn line_with(&self, part: &str) -> String {
        let (mut before, until) = (Vec::new(), Instant::now() + PATIENCE);
        loop {
            match self.log.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(part) => return line,
                Ok(line) => before.push(line),
                Err(error) => panic!("no line with {part}: {error}; {before:#?}"),
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it runs");
    }

    /// Waits for the end; returns how long that took and whether the agent calls it a success.
    fn ended(&mut self) -> (Duration, bool) {
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait().expect("ours") {
                return (started.elapsed(), status.success());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("it goes on");
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program(directory: &Path, subcommand: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_postroad"));
    command.args(["--config", "p.toml", subcommand]).current_dir(directory).env_remove("POSTROAD_LOG");
    command
}

fn configure(directory: &Path, rest: &str) {
    let text = format!("hostname = \"mx.example.org\"\nstate_dir = \"state\"\n{rest}");
    std::fs::write(directory.join("p.toml"), text).expect("written");
}

/// A client that says one line and waits for one reply.
struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(address: &str) -> Client {
        let stream = TcpStream::connect(address).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time");
        let mut client = Client(BufReader::new(stream));
        assert!(client.reply().starts_with("220 "));
        client
    }

    fn say(&mut self, line: &str, code: &str) {
        self.0.get_mut().write_all(format!("{line}\r\n").as_bytes()).expect("sent");
        let reply = self.reply();
        assert!(reply.starts_with(code), "{line}: {reply}");
    }

    fn reply(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("a reply");
        line
    }

    /// Begins a transaction and leaves it there.
    fn begin(address: &str) -> Client {
        let mut client = Client::connect(address);
        client.say("HELO client.example", "250");
        client.say("MAIL FROM:<a@client.example>", "250");
        client
    }
}

#[test]
fn a_second_signal_ends_the_drain() {
    let directory = tempfile::tempdir().expect("scratch");
    configure(directory.path(), "[listen]\nsmtp = [\"127.0.0.1:0\"]\nsubmission = []\n[timeouts]\ndrain = \"10m\"\n");
    let (mut agent, address) = Agent::start(directory.path());
    let mut client = Client::begin(&address);
    agent.signal(Signal::TERM);
    agent.line_with("sessions end");
    client.say("RCPT TO:<postmaster@mx.example.org>", "");
    agent.signal(Signal::HUP);
    agent.signal(Signal::INT);
    assert!(agent.ended().1, "an end in order");
}

#[test]
fn sessions_and_attempts_share_one_deadline() {
    let directory = tempfile::tempdir().expect("scratch");
    // A next hop that never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let hop = silent.local_addr().expect("bound");
    let rest = format!(
        "[listen]\nsmtp = [\"127.0.0.1:0\"]\nsubmission = []\n[timeouts]\ndrain = \"6s\"\n\
         [[route]]\ndomain = \"*\"\nvia = \"{hop}\"\ntls = \"never\"\n"
    );
    configure(directory.path(), &rest);
    let (mut agent, address) = Agent::start(directory.path());
    let mut client = Client::begin(&address);
    client.say("RCPT TO:<b@far.example>", "250");
    client.say("DATA", "354");
    client.say("Subject: x\r\n\r\nx\r\n.", "250");
    let (mut attempt, _) = silent.accept().expect("an attempt");
    let waiting = Client::begin(&address);
    agent.signal(Signal::TERM);
    let (took, in_order) = agent.ended();
    assert!(in_order && took > Duration::from_secs(5), "{took:?}");
    assert!(took < Duration::from_secs(11), "the limit was spent twice: {took:?}");
    drop(waiting);
    let _ = attempt.read(&mut [0; 1]);
}

#[test]
fn what_needs_a_restart_is_said_until_there_was_one() {
    let directory = tempfile::tempdir().expect("scratch");
    let listen = "[listen]\nsmtp = [\"127.0.0.1:0\"]\nsubmission = []\n";
    configure(directory.path(), listen);
    let (agent, _) = Agent::start(directory.path());
    let reload = || {
        let Output { status, stdout, stderr } = program(directory.path(), "reload").output().expect("it runs");
        assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
        String::from_utf8(stdout).expect("UTF-8")
    };
    assert!(!reload().contains("restart"));
    configure(directory.path(), &format!("{listen}[queue]\nreserve = \"1 MB\"\n"));
    assert!(reload().contains("queue.reserve"));
    assert!(reload().contains("queue.reserve"), "the agent still runs with what it was started with");
    configure(directory.path(), listen);
    assert!(!reload().contains("restart"), "nothing differs from the start any more");
    drop(agent);
}
