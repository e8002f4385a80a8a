//! Fairness at one destination: a bulk sender's backlog, small senders and notifications behind it,
//! and whether a configured rate is kept.
//!
//! The destination takes so long for each message that the backlog lasts; what is measured is how
//! long the mail of the others takes through it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::Bench;
use crate::agent::{Agent, Route};
use crate::load::{Load, Mail};
use crate::relay;
use crate::results::{Bar, Results};
use crate::sink::{Manner, Sink, Tally};

/// How long the destination takes for a message: 20 connections make 1,000 a second.
const PAUSE: Duration = Duration::from_millis(20);
/// Small senders, each of a domain of its own, with a message a second.
const SMALL_SENDERS: u64 = 10;
/// Messages a second whose refusal brings about a notification.
const REFUSED_RATE: f64 = 2.0;
/// Messages a second that the lines of `--rate-setting` allow.
const ALLOWED_RATE: f64 = 50.0;
/// How long the backlog may take.
const DRAIN_LIMIT: Duration = Duration::from_secs(300);

pub fn measure(bench: &Bench) -> Result<()> {
    let results = Results::begin(bench, "fairness")?;
    let bulk = bench.size(50_000, 5_000);
    let alone = one(bench, &results, "alone", 0)?;
    let beside = one(bench, &results, "behind bulk", bulk)?;
    results.add("behind bulk", bulk, "p99 of small senders, more than alone", beside.0 - alone.0, "ms", Bar::None)?;
    results.add("behind bulk", bulk, "p99 of notifications, more than alone", beside.1 - alone.1, "ms", Bar::None)?;
    bench.arguments.rate_setting.as_ref().map_or(Ok(()), |setting| rate(bench, &results, setting))
}

/// Measures how many messages a second leave a backlog when a setting allows so many.
fn rate(bench: &Bench, results: &Results, setting: &str) -> Result<()> {
    let (tally, runtime) = (Arc::new(Tally::default()), bench.runtime.handle());
    let sink = Sink::start(runtime, bench.address(), Manner::Take, &tally)?;
    let agent = Agent::start(bench, "rate", &[("*".into(), sink.address)], setting)?;
    let backlog = (ALLOWED_RATE * bench.period().as_secs_f64() * 2.0) as u64;
    let mail: Mail = Arc::new(|_, micros| ("s@sender.test".into(), format!("b{micros}@live.test")));
    bench.runtime.block_on(bench.runtime.spawn(relay::load(bench, &agent, backlog, mail).send()))??;
    // What may go at once at the beginning has gone by then.
    std::thread::sleep(Duration::from_secs(1));
    let (before, start) = (tally.received(), Instant::now());
    std::thread::sleep(bench.period());
    let rate = (tally.received() - before) as f64 / start.elapsed().as_secs_f64();
    results.add("rate limit", ALLOWED_RATE as u64, "delivered", rate, "1/s", Bar::AtMost(ALLOWED_RATE * 1.02))?;
    results.add("rate limit", ALLOWED_RATE as u64, "of what is allowed", rate / ALLOWED_RATE, "", Bar::AtLeast(0.98))
}

/// Returns the 99th percentiles of small senders' mail and of notifications, in milliseconds.
fn one(bench: &Bench, results: &Results, name: &str, bulk: u64) -> Result<(f64, f64)> {
    let (tally, runtime) = (Arc::new(Tally::default()), bench.runtime.handle());
    let slow = Sink::start(runtime, bench.address(), Manner::Slow(PAUSE), &tally)?;
    let refusal = Manner::Refuse("550 5.1.1 Nobody of that name\r\n");
    let refusing = Sink::start(runtime, bench.address(), refusal, &Arc::default())?;
    let routes: [Route; 2] = [("refusing.test".into(), refusing.address), ("*".into(), slow.address)];
    let agent = Agent::start(bench, name, &routes, "")?;
    let period = bench.size(30, 4) as f64;
    let at_rate = |rate: f64, mail: Mail| Load {
        rate: Some(rate),
        sessions: 4,
        ..relay::load(bench, &agent, (rate * period) as u64, mail)
    };
    let of_bulk: Mail = Arc::new(|_, micros| ("bulk@bulk.test".into(), format!("b{micros}@live.test")));
    let start = Instant::now();
    if bulk > 0 {
        // The backlog comes first: the others find it there.
        bench.runtime.block_on(bench.runtime.spawn(relay::load(bench, &agent, bulk, of_bulk).send()))??;
    }
    let of_small: Mail =
        Arc::new(|n, micros| (format!("s@small{}.test", n % SMALL_SENDERS), format!("s{micros}@live.test")));
    let of_refused: Mail = Arc::new(|_, micros| (format!("n{micros}@notify.test"), "nobody@refusing.test".into()));
    let small = bench.runtime.spawn(at_rate(SMALL_SENDERS as f64, of_small).send());
    let refused = bench.runtime.spawn(at_rate(REFUSED_RATE, of_refused).send());
    let sent = bench.runtime.block_on(small)??.acks.len() + bench.runtime.block_on(refused)??.acks.len();
    tally.wait(bulk + sent as u64, DRAIN_LIMIT)?;
    if bulk > 0 {
        results.add(name, bulk, "until all were delivered", start.elapsed().as_secs_f64(), "s", Bar::None)?;
    }
    let small = results.add_latency(name, bulk, "small senders after", &tally.latencies(b's'))?;
    let notified = results.add_latency(name, bulk, "notifications after", &tally.latencies(b'n'))?;
    Ok((small, notified))
}
