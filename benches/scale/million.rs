//! A million messages waiting for one destination that is down: what accepting them costs, what they
//! take in memory, how they are listed, how the agent comes back with them, and how they leave.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::Bench;
use crate::agent::{Agent, Route, SOON, wait};
use crate::depth::down;
use crate::load::Mail;
use crate::plot::{Chart, Series};
use crate::relay;
use crate::results::{Bar, Results, last_run, median, micros_each};
use crate::sink::{Manner, Sink, Tally};

const PART: &str = "million";
/// In how many steps the queue is filled.
const STEPS: u64 = 20;
/// How long the drain may take.
const DRAIN_LIMIT: Duration = Duration::from_secs(1200);
/// How long after the last delivery disk space may be given back.
const SHRINK_LIMIT: Duration = Duration::from_secs(60);
/// How long after the destination is back the agent may find it out by itself.
const RETURN_LIMIT: Duration = Duration::from_secs(30);

pub fn measure(bench: &Bench) -> Result<()> {
    let results = Results::begin(bench, PART)?;
    let total = bench.queued();
    let tally = Arc::new(Tally::default());
    let address = bench.address();
    let later = Manner::Refuse("451 4.7.1 Come back later\r\n");
    let refusing = match bench.arguments.tempfail {
        true => Some(Sink::start(bench.runtime.handle(), address, later, &Arc::default())?),
        false => None,
    };
    let routes: [Route; 1] = [("down.test".into(), address)];
    let mut agent = Agent::start(bench, PART, &routes, "")?;
    agent.wait_quiet()?;
    let idle = agent.pss()?;
    fill(bench, &results, &agent, idle, total)?;
    list(&results, &agent, total)?;
    restart(&results, &mut agent, idle, total + 1)?;
    drop(refusing);
    drain(bench, &results, &agent, address, &tally, total + 1)
}

/// Accepts all messages and one whose recipient is named `last`.
fn fill(bench: &Bench, results: &Results, agent: &Agent, idle: u64, total: u64) -> Result<()> {
    let step = (total / STEPS).max(1);
    let (mut rates, mut costs) = (Vec::new(), Vec::new());
    for n in 1..=STEPS {
        let (cpu, load) = (agent.cpu()?, relay::load(bench, agent, step, down()));
        let sent = bench.runtime.block_on(bench.runtime.spawn(load.send()))??;
        rates.push(sent.rate());
        costs.push(micros_each(agent.cpu()? - cpu, step));
        results.keep("accepting", n * step, "accepted", sent.rate(), "1/s")?;
        results.keep("accepting", n * step, "memory", mib(agent.pss()?), "MiB")?;
    }
    let last: Mail = Arc::new(|_, _| ("s@sender.test".into(), "last@down.test".into()));
    bench.runtime.block_on(bench.runtime.spawn(relay::load(bench, agent, 1, last).send()))??;
    agent.wait_quiet()?;
    results.add_all("accepting", total, "accepted (all)", &rates, "1/s", Bar::None)?;
    results.add_all("accepting", total, "CPU of the agent (all)", &costs, "us", Bar::None)?;
    // The first quarter and the last one.
    let quarter = STEPS as usize / 4;
    let ratio = |steps: &[f64]| median(&steps[steps.len() - quarter..]) / median(&steps[..quarter]);
    results.add("full", total, "accepting, last quarter to first", ratio(&rates), "", Bar::AtLeast(0.8))?;
    results.add("full", total, "its CPU, last quarter to first", ratio(&costs), "", Bar::AtMost(1.2))?;
    memory(results, agent, "full", idle, total)?;
    let spool = agent.spool_octets() as f64;
    results.add("full", total, "spool a message", spool / total as f64, "octets", Bar::None)
}

fn mib(octets: u64) -> f64 {
    octets as f64 / f64::from(1 << 20)
}

fn memory(results: &Results, agent: &Agent, case: &str, idle: u64, total: u64) -> Result<()> {
    let pss = agent.pss()?;
    results.add(case, total, "memory", mib(pss), "MiB", Bar::None)?;
    let each = pss.saturating_sub(idle) as f64 / total as f64;
    results.add(case, total, "memory a message above idle", each, "octets", Bar::AtMost(200.0))
}

/// Asks for the first lines of lists as a person would.
fn list(results: &Results, agent: &Agent, total: u64) -> Result<()> {
    let filters: [(&str, &[&str]); 3] = [
        ("list --domain, first line", &["queue", "list", "--domain", "down.test"]),
        ("list --domain --limit 50, all", &["queue", "list", "--domain", "down.test", "--limit", "50"]),
        ("list --to the last, first line", &["queue", "list", "--to", "last@down.test"]),
    ];
    for (name, words) in filters {
        let start = Instant::now();
        let mut child = agent.command(words).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("it is piped")?).lines();
        let first = lines.next().transpose()?.unwrap_or_default();
        if !first.contains("@down.test") {
            bail!("`postroad {}` showed {first:?}", words.join(" "));
        }
        if name.ends_with("all") && lines.count() + 1 != 50.min(total as usize + 1) {
            bail!("`postroad {}` did not show 50 messages", words.join(" "));
        }
        let seconds = start.elapsed().as_secs_f64();
        drop(child.kill());
        child.wait()?;
        results.add("full", total, name, seconds, "s", Bar::AtMost(1.0))?;
    }
    let start = Instant::now();
    agent.totals()?;
    results.add("full", total, "status", start.elapsed().as_secs_f64(), "s", Bar::AtMost(1.0))
}

fn restart(results: &Results, agent: &mut Agent, idle: u64, total: u64) -> Result<()> {
    let stop = Instant::now();
    agent.stop()?;
    results.add("restart", total, "stop", stop.elapsed().as_secs_f64(), "s", Bar::None)?;
    let start = Instant::now();
    let greeting = agent.start_again()?;
    results.add("restart", total, "to the first 220", greeting.as_secs_f64(), "s", Bar::AtMost(1.0))?;
    wait("all jobs to be scheduled", SOON, || {
        let totals = agent.totals()?;
        Ok((totals.messages == total && totals.jobs == total).then_some(()))
    })?;
    results.add("restart", total, "to all jobs scheduled", start.elapsed().as_secs_f64(), "s", Bar::AtMost(10.0))?;
    agent.wait_quiet()?;
    results.add("restart", total, "CPU", agent.cpu()?.as_secs_f64(), "s", Bar::None)?;
    memory(results, agent, "restart", idle, total)
}

/// Brings the destination back and watches the queue run empty.
fn drain(
    bench: &Bench,
    results: &Results,
    agent: &Agent,
    address: SocketAddr,
    tally: &Arc<Tally>,
    total: u64,
) -> Result<()> {
    let peak = agent.spool_octets();
    let sink = || Ok(Sink::start(bench.runtime.handle(), address, Manner::Take, tally).ok());
    let (_sink, back) = (wait("the address to be free", SOON, sink)?, Instant::now());
    if wait("mail", RETURN_LIMIT, || Ok((tally.received() > 0).then_some(()))).is_err() {
        println!("  no attempt was due within {RETURN_LIMIT:?} of the return");
        retry(results, agent, total)?;
        tally.wait(1, SOON)?;
    }
    results.add("drain", total, "return to first delivery", back.elapsed().as_secs_f64(), "s", Bar::None)?;
    watch(results, agent, tally, total)?;
    let small = || Ok((agent.spool_octets() * 20 < peak).then_some(()));
    let shrunk = wait("the spool to shrink", SHRINK_LIMIT, small).is_ok();
    println!(
        "  the spool {} within {SHRINK_LIMIT:?} of the last delivery",
        if shrunk { "shrank" } else { "did not shrink" }
    );
    let share = agent.spool_octets() as f64 / peak as f64;
    results.add("drain", total, "spool to its peak", share, "", Bar::AtMost(0.05))?;
    agent.wait_quiet()?;
    results.add("drain", total, "memory", mib(agent.pss()?), "MiB", Bar::None)
}

/// Waits until all is delivered. Those that were tried while the destination was down are put off for
/// themselves; when nothing else is left they are asked for.
fn watch(results: &Results, agent: &Agent, tally: &Arc<Tally>, total: u64) -> Result<()> {
    let (start, cpu) = (Instant::now(), agent.cpu()?);
    let (mut seen, mut stalled, mut asked) = (tally.received(), 0, false);
    while tally.received() < total {
        std::thread::sleep(Duration::from_secs(1));
        let (now, second) = (tally.received(), start.elapsed().as_secs());
        results.keep("draining", second, "delivered", (now - seen) as f64, "1/s")?;
        results.keep("draining", second, "spool", mib(agent.spool_octets()), "MiB")?;
        stalled = if now > seen { 0 } else { stalled + 1 };
        seen = now;
        if start.elapsed() > DRAIN_LIMIT || (asked && stalled > 30) {
            bail!("the drain stands still at {now} of {total} messages");
        }
        if stalled == 3 && !asked {
            results.add("drain", total, "put off for themselves", (total - now) as f64, "", Bar::None)?;
            retry(results, agent, total)?;
            asked = true;
        }
    }
    // Without the seconds of standing still, which say nothing about the speed.
    let idle = if asked { 4.0 } else { 0.0 };
    let rate = total as f64 / (start.elapsed().as_secs_f64() - idle).max(1.0);
    results.add("drain", total, "delivered", rate, "1/s", Bar::None)?;
    results.add("drain", total, "CPU of the agent", micros_each(agent.cpu()? - cpu, total), "us", Bar::None)
}

fn retry(results: &Results, agent: &Agent, total: u64) -> Result<()> {
    let start = Instant::now();
    let status = agent.command(&["queue", "retry", "--domain", "down.test"]).stdout(Stdio::null()).status()?;
    if !status.success() {
        bail!("`postroad queue retry` failed: {status}");
    }
    results.add("drain", total, "`queue retry --domain`", start.elapsed().as_secs_f64(), "s", Bar::None)
}

pub fn draw(directory: &Path) -> Result<()> {
    let rows = last_run(directory, PART)?;
    let draw = |name: &str, title: &str, x: &str, y: &str, case: &str, metric: &str| {
        Chart {
            file: directory.join(format!("{PART}-{name}.svg")),
            title: title.to_owned(),
            x_label: x.to_owned(),
            y_label: y.to_owned(),
            is_x_logarithmic: false,
            band: None,
            series: vec![Series::of(&rows, case, metric)],
            remarks: Default::default(),
        }
        .draw(&rows)
    };
    let (waiting, seconds) = ("messages waiting", "seconds since the first delivery");
    draw(
        "accept",
        "Accepting mail for a destination that is down",
        waiting,
        "messages accepted a second",
        "accepting",
        "accepted",
    )?;
    draw("memory", "Memory of the agent", waiting, "MiB (PSS)", "accepting", "memory")?;
    draw("drain", "The destination is back", seconds, "messages delivered a second", "draining", "delivered")?;
    draw("spool", "Disk space while the queue runs empty", seconds, "MiB", "draining", "spool")
}
