//! Flat cost by breadth: relay at full speed to 1, 10, 100 and 1,000 destinations, each of which has
//! an address of its own. The reference is one destination, measured in turn with the others.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;

use crate::Bench;
use crate::agent::{Agent, Route};
use crate::load::Mail;
use crate::plot::ratio_charts;
use crate::relay;
use crate::results::{Bar, Results};
use crate::sink::{Manner, Sink, Tally};

const PART: &str = "destinations";
const MANY: &str = "many destinations";
const ONE: &str = "one destination";

pub fn measure(bench: &Bench) -> Result<()> {
    let results = Results::begin(bench, PART)?;
    let tally = Arc::new(Tally::default());
    let most = bench.size(1000, 100);
    let manner = if bench.arguments.chunking { Manner::TakeChunks } else { Manner::Take };
    let start = |_| Sink::start(bench.runtime.handle(), bench.address(), manner, &tally);
    let sinks = (0..most).map(start).collect::<Result<Vec<_>>>()?;
    let route = |(n, sink): (usize, &Sink)| (domain(n as u64), sink.address);
    let routes: Vec<Route> = sinks.iter().enumerate().map(route).collect();
    let (reference, agent) = (Agent::start(bench, "one", &routes, "")?, Agent::start(bench, "many", &routes, "")?);
    for warm in [&reference, &agent] {
        relay::measure(bench, warm, &tally, bench.messages() / 4, spread(1))?;
    }
    for count in [1, 10, 100, 1000].into_iter().filter(|count| *count <= most) {
        let (mut many, mut one) = (Vec::new(), Vec::new());
        let before = tally.connections();
        for _ in 0..bench.rounds() {
            one.push(relay::measure(bench, &reference, &tally, bench.messages(), spread(1))?);
            many.push(relay::measure(bench, &agent, &tally, bench.messages(), spread(count))?);
        }
        relay::compare(&results, count, (MANY, &many), (ONE, &one))?;
        let messages = (bench.messages() * bench.rounds() as u64) as f64;
        let connections = (tally.connections() - before) as f64 / messages;
        results.add(MANY, count, "connections a message", connections, "", Bar::None)?;
    }
    Ok(())
}

fn domain(n: u64) -> String {
    format!("d{n}.test")
}

/// Mail for so many destinations in turn.
fn spread(count: u64) -> Mail {
    Arc::new(move |n, micros| (format!("s{}@sender.test", n % 50), format!("b{micros}@{}", domain(n % count))))
}

pub fn draw(directory: &Path) -> Result<()> {
    let titles = ["Relay rate by number of destinations", "Processor time of a message by number of destinations"];
    ratio_charts(directory, PART, "destinations", [MANY, ONE], titles)
}
