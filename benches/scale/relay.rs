//! One measurement of the relay: so many messages in and out again, flat out, and what they cost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::time::{ClockId, clock_gettime};

use crate::Bench;
use crate::agent::Agent;
use crate::load::{Load, Mail};
use crate::results::{Bar, Results, micros_each};
use crate::sink::Tally;

/// How long one measurement may take.
const LIMIT: Duration = Duration::from_secs(300);

/// What a measurement found; all for one message but the rate.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    pub rate: f64,
    pub cpu_micros: f64,
    /// Of this process, load and sinks together.
    pub driver_micros: f64,
}

/// Relays messages flat out and waits until the sinks have them all.
///
/// # Errors
/// Something was refused or did not arrive in time.
pub fn measure(bench: &Bench, agent: &Agent, tally: &Arc<Tally>, messages: u64, mail: Mail) -> Result<Figures> {
    let (received, cpu, own, start) = (tally.received(), agent.cpu()?, own_cpu(), Instant::now());
    let load = load(bench, agent, messages, mail);
    bench.runtime.block_on(bench.runtime.spawn(load.send()))??;
    tally.wait(received + messages, LIMIT)?;
    Ok(Figures {
        rate: messages as f64 / start.elapsed().as_secs_f64(),
        cpu_micros: micros_each(agent.cpu()? - cpu, messages),
        driver_micros: micros_each(own_cpu() - own, messages),
    })
}

/// A load as the arguments ask for it, flat out.
pub fn load(bench: &Bench, agent: &Agent, messages: u64, mail: Mail) -> Load {
    let arguments = &bench.arguments;
    Load {
        target: agent.smtp,
        sessions: arguments.sessions,
        octets: arguments.octets,
        pipelining: !arguments.plain,
        rate: None,
        messages,
        mail,
    }
}

/// Keeps the figures of a case and of its reference, measured in turn, and how they compare: the
/// median of the ratios of each round, since a machine can be busy in one round and idle in the next.
pub fn compare(results: &Results, at: u64, case: (&str, &[Figures]), reference: (&str, &[Figures])) -> Result<()> {
    for (name, figures) in [reference, case] {
        let each = |value: fn(&Figures) -> f64| figures.iter().map(value).collect::<Vec<_>>();
        results.add_all(name, at, "relayed", &each(|one| one.rate), "1/s", Bar::None)?;
        results.add_all(name, at, "CPU of the agent", &each(|one| one.cpu_micros), "us", Bar::None)?;
        results.add_all(name, at, "CPU of the driver", &each(|one| one.driver_micros), "us", Bar::None)?;
    }
    let ratios = |value: fn(&Figures) -> f64| {
        let rounds = case.1.iter().zip(reference.1);
        rounds.map(|(one, other)| value(one) / value(other)).collect::<Vec<_>>()
    };
    results.add_all(case.0, at, "rate to that of the reference", &ratios(|one| one.rate), "", Bar::AtLeast(0.8))?;
    results.add_all(case.0, at, "CPU to that of the reference", &ratios(|one| one.cpu_micros), "", Bar::AtMost(1.2))
}

/// Processor time of this process so far.
fn own_cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}
