//! How many syncs a message costs, counted by strace from outside: what the agent says about itself
//! is not believed.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result};

use crate::Bench;
use crate::agent::{Agent, Route};
use crate::load::{Load, Mail};
use crate::relay;
use crate::results::{Bar, Results};
use crate::sink::{Manner, Sink, Tally};

const CALLS: &str = "trace=fsync,fdatasync,sync_file_range,syncfs,sync,msync";

pub fn measure(bench: &Bench) -> Result<()> {
    let results = Results::begin(bench, "syncs")?;
    let version = Command::new("strace").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !version.is_ok_and(|status| status.success()) {
        println!("  not measured: strace is not installed");
        return Ok(());
    }
    let still = one(bench, 1, 0)?;
    let messages = bench.messages() / 4;
    for sessions in [1, 20, 100] {
        let syncs = one(bench, sessions, messages)?.saturating_sub(still) as f64 / messages as f64;
        results.add("relay", sessions as u64, "syncs a message, by sessions", syncs, "", Bar::None)?;
    }
    Ok(())
}

/// Returns how many syncs an agent makes from its start to its end around so many messages.
fn one(bench: &Bench, sessions: usize, messages: u64) -> Result<u64> {
    let counts = bench.scratch.path().join("syncs.txt");
    let words = ["strace", "-f", "--seccomp-bpf", "-c", "-U", "calls,name", "-e", CALLS, "-o"];
    let mut wrapper: Vec<String> = words.map(str::to_owned).to_vec();
    wrapper.push(counts.display().to_string());
    let tally = Arc::new(Tally::default());
    let sink = Sink::start(bench.runtime.handle(), bench.address(), Manner::Take, &tally)?;
    let routes: [Route; 1] = [("*".into(), sink.address)];
    let mut agent = Agent::start_under(bench, &format!("syncs-{sessions}-{messages}"), &routes, "", &wrapper)?;
    let mail: Mail = Arc::new(|_, micros| ("s@sender.test".into(), format!("b{micros}@live.test")));
    let load = Load { sessions, ..relay::load(bench, &agent, messages, mail) };
    bench.runtime.block_on(bench.runtime.spawn(load.send()))??;
    tally.wait(messages, crate::agent::SOON)?;
    agent.stop()?;
    let text = fs::read_to_string(&counts).context("strace left no counts")?;
    let sum = |line: &str| {
        let (count, name) = line.trim().split_once(' ')?;
        name.contains("sync").then(|| count.parse::<u64>().ok()).flatten()
    };
    Ok(text.lines().filter_map(sum).sum())
}
