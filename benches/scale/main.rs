//! Measures what the queue claims: flat cost, a million waiting, isolation, fairness, idle sessions.
//!
//! `cargo bench --bench scale -- [PART…] [--quick]` builds the agent and this driver, runs real agents
//! over loopback against sinks in this process, prints every figure beside its bar, appends all of
//! them to one CSV file for each part, and draws the plots from those files. It changes nothing outside
//! of its output and scratch directories but for `together`, which writes a file of the sources. What each part does stands in docs/performance.md.
#![allow(clippy::print_stdout)]

mod agent;
mod depth;
mod destinations;
mod fairness;
mod idle;
mod isolation;
mod load;
mod million;
mod plot;
mod relay;
mod results;
mod sink;
mod syncs;
mod together;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::Runtime;

/// Measures what the queue claims.
#[derive(Parser, Clone, Debug)]
#[command(name = "scale")]
pub struct Arguments {
    /// What to measure; everything when none is named.
    parts: Vec<Part>,
    /// Small sizes, to see that it works: a few minutes become one.
    #[arg(long)]
    quick: bool,
    /// Messages that wait, at most.
    #[arg(long)]
    queued: Option<u64>,
    /// Messages of one measurement of the relay.
    #[arg(long)]
    messages: Option<u64>,
    /// Measurements of each case, in alternation with its reference.
    #[arg(long)]
    rounds: Option<usize>,
    /// Idle sessions.
    #[arg(long)]
    idle_sessions: Option<usize>,
    /// Octets of a message, its header included.
    #[arg(long, default_value_t = 1024)]
    octets: usize,
    /// Sessions that inject at a time.
    #[arg(long, default_value_t = 20)]
    sessions: usize,
    /// One command at a time instead of PIPELINING.
    #[arg(long)]
    plain: bool,
    /// In `destinations`: they offer CHUNKING.
    #[arg(long)]
    chunking: bool,
    /// In `million`: the destination answers 451 to everybody instead of refusing connections.
    #[arg(long)]
    tempfail: bool,
    /// In `fairness`: lines of the configuration that allow each destination 50 messages a second;
    /// then the rate is measured, too.
    #[arg(long)]
    rate_setting: Option<String>,
    /// Only draw the plots again from the files in the output directory.
    #[arg(long)]
    plots_only: bool,
    /// The agent to measure; the default is the one built beside this program.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_postroad"))]
    agent: PathBuf,
    /// Where figures and plots go.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/target/bench"))]
    out: PathBuf,
    /// Where the queues go; the disk below it is measured, too.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/target/bench"))]
    scratch: PathBuf,
    /// Said by `cargo bench`; means nothing.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A part of the measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Relay beside 1,000 to 1,000,000 messages that wait for a dead destination.
    Depth,
    /// Relay to 1 to 1,000 destinations.
    Destinations,
    /// A million waiting: accepting, memory, listing, restart, drain.
    Million,
    /// Latency beside dead, silent and slow destinations.
    Isolation,
    /// One sender beside a bulk sender; notifications behind bulk; configured rates.
    Fairness,
    /// Start, idle agent, idle sessions.
    Idle,
    /// Syncs for each message, counted by strace.
    Syncs,
    /// Only when it is named: writes anew what link/together.ld has the linker put together.
    Together,
}

/// Where agents and sinks listen, each at an address of its own.
const PORT: u16 = 2525;

const PARTS: &[Part] =
    &[Part::Syncs, Part::Idle, Part::Destinations, Part::Isolation, Part::Fairness, Part::Depth, Part::Million];

/// What every part works with.
pub struct Bench {
    arguments: Arguments,
    /// Runs load and sinks; one thread, so that it never takes more than one core from the agent.
    runtime: Runtime,
    /// Removed at the end.
    scratch: tempfile::TempDir,
    /// How many addresses were given out.
    addresses: AtomicU32,
}

impl Bench {
    /// Returns an address of loopback that nobody else uses. Its port is none that the kernel gives
    /// to clients: a client of a dead address could otherwise meet itself there.
    fn address(&self) -> SocketAddr {
        let [_, _, high, low] = self.addresses.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        let process = std::process::id() as u8;
        SocketAddr::from((Ipv4Addr::new(127, 128 | process, high, low), PORT))
    }

    /// Returns the first for a full run, the second for a quick one.
    fn size<T>(&self, full: T, quick: T) -> T {
        if self.arguments.quick { quick } else { full }
    }

    /// Messages of one measurement of the relay.
    fn messages(&self) -> u64 {
        self.arguments.messages.unwrap_or(self.size(20_000, 3_000))
    }

    /// Measurements of each case.
    fn rounds(&self) -> usize {
        self.arguments.rounds.unwrap_or(self.size(5, 2))
    }

    /// Messages that wait, at most.
    fn queued(&self) -> u64 {
        self.arguments.queued.unwrap_or(self.size(1_000_000, 10_000))
    }

    /// How long a measurement at a fixed rate takes.
    fn period(&self) -> Duration {
        Duration::from_secs(self.size(20, 4))
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    std::fs::create_dir_all(&arguments.out).with_context(|| format!("cannot make {}", arguments.out.display()))?;
    let parts = if arguments.parts.is_empty() { PARTS.to_vec() } else { arguments.parts.clone() };
    if !arguments.plots_only {
        measure(&arguments, &parts)?;
    }
    for part in parts {
        match part {
            Part::Depth => depth::draw(&arguments.out)?,
            Part::Destinations => destinations::draw(&arguments.out)?,
            Part::Million => million::draw(&arguments.out)?,
            Part::Isolation | Part::Fairness | Part::Idle | Part::Syncs | Part::Together => {}
        }
    }
    Ok(())
}

fn measure(arguments: &Arguments, parts: &[Part]) -> Result<()> {
    let hard = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard }).context("cannot raise the limit of files")?;
    std::fs::create_dir_all(&arguments.scratch)
        .with_context(|| format!("cannot make {}", arguments.scratch.display()))?;
    let bench = Bench {
        scratch: tempfile::Builder::new().prefix("queue-").tempdir_in(&arguments.scratch)?,
        runtime: tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?,
        arguments: arguments.clone(),
        addresses: AtomicU32::new(1),
    };
    for part in parts {
        match part {
            Part::Depth => depth::measure(&bench)?,
            Part::Destinations => destinations::measure(&bench)?,
            Part::Million => million::measure(&bench)?,
            Part::Isolation => isolation::measure(&bench)?,
            Part::Fairness => fairness::measure(&bench)?,
            Part::Idle => idle::measure(&bench)?,
            Part::Syncs => syncs::measure(&bench)?,
            Part::Together => together::write(&bench)?,
        }
    }
    bench.runtime.shutdown_background();
    Ok(())
}
