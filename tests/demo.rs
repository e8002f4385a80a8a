//! `postroad demo` as the README has it: the ledger balances, and nothing it starts outlives it.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

fn demo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_postroad"));
    command.arg("demo").args(arguments).stdin(Stdio::null());
    command
}

#[test]
fn everything_accepted_is_delivered_although_a_host_was_killed() {
    let output = demo(&["--once", "--messages", "80", "--json"]).output().expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["balanced"], true, "{report}");
    assert_eq!(report["letters_accepted"], 80, "{report}");
    assert_eq!(report["copies_owed"], report["copies_delivered"], "{report}");
    assert_eq!(report["lost"], serde_json::json!([]), "{report}");
    assert_eq!(report["duplicates"], 0, "members know repeats again: {report}");
    assert!(report["went_around_b"].as_u64() > Some(0), "nothing went around the dead host: {report}");
    let told = report["trace"].as_array().expect("a list").iter();
    let hosts: std::collections::BTreeSet<_> = told.map(|view| view["host"].as_str().expect("a name")).collect();
    assert_eq!(hosts.into_iter().collect::<Vec<_>>(), ["a", "b", "c"], "{report}");
    assert!(report["on_disk_of_b_when_killed"].as_u64() > Some(0), "b was killed with nothing to lose: {report}");
}

#[test]
fn the_agents_end_with_the_demo_however_it_ends() {
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path().join("demo");
    let mut demo =
        Killed(demo(&["--keep", dir.to_str().expect("UTF-8")]).stdout(Stdio::piped()).spawn().expect("it starts"));
    let lines = BufReader::new(demo.0.stdout.take().expect("a pipe")).lines();
    let serving = lines.map_while(Result::ok).filter(|line| line.contains(" serves after ")).take(3).count();
    assert_eq!(serving, 3, "all serve");
    let sockets = ["a", "b"].map(|host| dir.join(host).join("state/control.sock"));
    assert!(sockets.iter().all(|socket| UnixStream::connect(socket).is_ok()));
    demo.0.kill().expect("it runs");
    let begun = Instant::now();
    while sockets.iter().any(|socket| UnixStream::connect(socket).is_ok()) {
        assert!(begun.elapsed() < Duration::from_secs(10), "an agent still answers");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A demo that does not outlive a failed test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
