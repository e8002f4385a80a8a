//! What an agent takes when it does nothing: its start, its memory, its wake-ups, and thousands of
//! sessions that only stay open.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::task::JoinSet;

use crate::Bench;
use crate::agent::Agent;
use crate::load::Client;
use crate::results::{Bar, Results};

/// Fresh starts measured.
const STARTS: u64 = 10;
/// New sessions measured beside the idle ones.
const NEW_SESSIONS: usize = 50;
/// Idle sessions opened at a time.
const OPENING: usize = 50;

pub fn measure(bench: &Bench) -> Result<()> {
    let results = Results::begin(bench, "idle")?;
    starts(bench, &results)?;
    sessions(bench, &results)
}

fn starts(bench: &Bench, results: &Results) -> Result<()> {
    let mut agent = Agent::start(bench, "idle", &[], "")?;
    let mut millis = Vec::new();
    for _ in 0..STARTS {
        agent.stop()?;
        millis.push(agent.start_again()?.as_secs_f64() * 1e3);
    }
    results.add_all("start", 0, "to the first 220", &millis, "ms", Bar::None)?;
    std::thread::sleep(Duration::from_secs(3));
    results.add("idle", 0, "memory", agent.pss()? as f64 / f64::from(1 << 20), "MiB", Bar::None)?;
    let (cpu, sleeps, start) = (agent.cpu()?, agent.sleeps()?, Instant::now());
    std::thread::sleep(bench.period());
    let seconds = start.elapsed().as_secs_f64();
    // A thread that ended meanwhile takes its count along.
    let since = |(thread, count): (&OsString, &u64)| count.saturating_sub(sleeps.get(thread).copied().unwrap_or(0));
    let wakes: u64 = agent.sleeps()?.iter().map(since).sum();
    results.add("idle", 0, "wake-ups", wakes as f64 / seconds, "1/s", Bar::None)?;
    results.add("idle", 0, "CPU", (agent.cpu()? - cpu).as_secs_f64() * 1e3 / seconds, "ms/s", Bar::None)
}

fn sessions(bench: &Bench, results: &Results) -> Result<()> {
    let count = bench.arguments.idle_sessions.unwrap_or(bench.size(10_000, 1_000));
    // They must not time out while they are counted.
    let limits = format!("[limits]\nsessions = {}\n\n[timeouts]\ncommand = \"30m\"\n", count + NEW_SESSIONS + 1);
    let agent = Agent::start(bench, "sessions", &[], &limits)?;
    agent.wait_quiet()?;
    let (before, cpu) = (agent.pss()?, agent.cpu()?);
    let mut held = bench.runtime.block_on(open(&agent, count))?;
    agent.wait_quiet()?;
    // What the allocator lends and gives back is given back by then.
    std::thread::sleep(Duration::from_secs(2));
    let at = count as u64;
    let kib = (agent.pss()? - before) as f64 / 1024.0 / count as f64;
    results.add("idle sessions", at, "memory of a session", kib, "KiB", Bar::None)?;
    let cpu = (agent.cpu()? - cpu).as_secs_f64() * 1e6 / count as f64;
    results.add("idle sessions", at, "CPU to open a session", cpu, "us", Bar::None)?;
    let mut micros = Vec::new();
    for _ in 0..NEW_SESSIONS {
        let start = Instant::now();
        held.push(bench.runtime.block_on(Client::connect(agent.smtp))?);
        micros.push(start.elapsed().as_micros() as u64);
    }
    micros.sort_unstable();
    results.add_latency("idle sessions", at, "new session ready after", &micros)?;
    bench.runtime.block_on(async {
        for client in &mut held {
            client.noop().await?;
        }
        Ok(())
    })
}

async fn open(agent: &Agent, count: usize) -> Result<Vec<Client>> {
    let (mut opening, mut held) = (JoinSet::new(), Vec::with_capacity(count));
    for n in 0..count {
        if n >= OPENING
            && let Some(client) = opening.join_next().await
        {
            held.push(client??);
        }
        opening.spawn(Client::connect(agent.smtp));
    }
    while let Some(client) = opening.join_next().await {
        held.push(client??);
    }
    Ok(held)
}
