//! Flat cost by depth: relay at full speed beside 1,000 to 1,000,000 messages that wait for a
//! destination that is down.
//!
//! Beside the agent with the deep queue runs one whose queue is empty, and the two are measured in
//! turn, so that a busy spell of the machine hits both.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;

use crate::Bench;
use crate::agent::{Agent, Route};
use crate::load::Mail;
use crate::plot::ratio_charts;
use crate::relay;
use crate::results::Results;
use crate::sink::{Manner, Sink, Tally};

const PART: &str = "depth";
const WAITING: &str = "beside waiting mail";
const EMPTY: &str = "empty queue";

pub fn measure(bench: &Bench) -> Result<()> {
    let results = Results::begin(bench, PART)?;
    let tally = Arc::new(Tally::default());
    let sink = Sink::start(bench.runtime.handle(), bench.address(), Manner::Take, &tally)?;
    let routes: [Route; 2] = [("down.test".into(), bench.address()), ("*".into(), sink.address)];
    let empty = Agent::start(bench, "empty", &routes, "")?;
    let deep = Agent::start(bench, "deep", &routes, "")?;
    for agent in [&empty, &deep] {
        relay::measure(bench, agent, &tally, bench.messages() / 4, live())?;
    }
    let mut queued = 0;
    for level in levels(bench.queued()) {
        let fill = relay::load(bench, &deep, level - queued, down());
        bench.runtime.block_on(bench.runtime.spawn(fill.send()))??;
        queued = level;
        deep.wait_quiet()?;
        let (mut beside, mut alone) = (Vec::new(), Vec::new());
        for _ in 0..bench.rounds() {
            alone.push(relay::measure(bench, &empty, &tally, bench.messages(), live())?);
            beside.push(relay::measure(bench, &deep, &tally, bench.messages(), live())?);
        }
        relay::compare(&results, level, (WAITING, &beside), (EMPTY, &alone))?;
    }
    Ok(())
}

/// 1,000, 10,000 … up to the most; a small run begins earlier.
fn levels(most: u64) -> Vec<u64> {
    let mut levels: Vec<u64> = [1000, 100, 10, 1].iter().map(|part| (most / part).max(1)).collect();
    levels.dedup();
    levels
}

/// Mail that can be delivered.
fn live() -> Mail {
    Arc::new(|n, micros| (format!("s{}@sender.test", n % 50), format!("b{micros}@live.test")))
}

/// Mail that waits.
pub fn down() -> Mail {
    Arc::new(|n, micros| (format!("s{}@sender.test", n % 50), format!("w{micros}@down.test")))
}

pub fn draw(directory: &Path) -> Result<()> {
    let titles = ["Relay rate beside waiting mail", "Processor time of a relayed message beside waiting mail"];
    ratio_charts(directory, PART, "messages waiting for a destination that is down", [WAITING, EMPTY], titles)
}
