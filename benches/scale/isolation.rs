//! Isolation: mail for a sound destination beside mail for others that refuse, are silent or slow.
//!
//! Both flows come at fixed rates, far below what the agent can do, so that what is measured is
//! waiting and not work. The reference has the same flows with all destinations sound.

use std::sync::Arc;

use anyhow::Result;

use crate::Bench;
use crate::agent::{Agent, Route};
use crate::load::{Load, Mail};
use crate::relay;
use crate::results::{Bar, Results};
use crate::sink::{BlackHole, Manner, Sink, Tally};

/// Messages a second, for the sound destination and for the others together.
const SOUND_RATE: f64 = 200.0;
const OTHERS_RATE: f64 = 200.0;

/// How the other destinations are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Others {
    Sound,
    /// Nobody listens: connections are refused.
    Refused,
    /// Packets get lost: connections time out.
    Lost,
    /// Connections are taken, and then nothing is said.
    Mute,
}

const CASES: &[(&str, Others, u64)] = &[
    ("1 refused", Others::Refused, 1),
    ("1 lost", Others::Lost, 1),
    ("1 mute", Others::Mute, 1),
    ("100 refused", Others::Refused, 100),
    ("100 lost", Others::Lost, 100),
    ("100 mute", Others::Mute, 100),
];

pub fn measure(bench: &Bench) -> Result<()> {
    let results = Results::begin(bench, "isolation")?;
    let (mut beside_sound, mut beside_them) = (Vec::new(), vec![Vec::new(); CASES.len()]);
    for round in 0..bench.rounds() {
        for ((name, others, count), all) in CASES.iter().zip(&mut beside_them) {
            // In turn with each: a slow spell of the disk lasts for seconds, and is to hit both.
            beside_sound.extend(one(bench, &format!("{name} sound {round}"), Others::Sound, 1)?);
            all.extend(one(bench, &format!("{name} {round}"), *others, *count)?);
        }
    }
    beside_sound.sort_unstable();
    let reference = results.add_latency("1 sound beside it", 1, "delivered after", &beside_sound)?;
    for ((name, _, count), mut all) in CASES.iter().zip(beside_them) {
        all.sort_unstable();
        let p99 = results.add_latency(name, *count, "delivered after", &all)?;
        results.add(name, *count, "p99 to that beside a sound one", p99 / reference, "", Bar::AtMost(1.2))?;
    }
    Ok(())
}

/// Returns the latencies of the sound destination's mail.
fn one(bench: &Bench, name: &str, others: Others, count: u64) -> Result<Vec<u64>> {
    let (tally, runtime) = (Arc::new(Tally::default()), bench.runtime.handle());
    let sound = Sink::start(runtime, bench.address(), Manner::Take, &tally)?;
    let (mut routes, mut sinks, mut holes): (Vec<Route>, _, _) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..count {
        let address = bench.address();
        match others {
            Others::Sound => sinks.push(Sink::start(runtime, address, Manner::Take, &Arc::default())?),
            Others::Mute => sinks.push(Sink::start(runtime, address, Manner::Mute, &Arc::default())?),
            Others::Lost => holes.push(BlackHole::start(address)?),
            Others::Refused => {}
        }
        routes.push((format!("other{n}.test"), address));
    }
    routes.push(("*".into(), sound.address));
    let agent = Agent::start(bench, name, &routes, "")?;
    let seconds = bench.period().as_secs_f64() / 2.0;
    let load = |rate: f64, mail: Mail| Load {
        rate: Some(rate),
        sessions: 8,
        ..relay::load(bench, &agent, (rate * seconds) as u64, mail)
    };
    let of_others =
        Arc::new(move |n, micros| ("o@sender.test".to_owned(), format!("o{micros}@other{}.test", n % count)));
    let of_sound = Arc::new(|_, micros| ("s@sender.test".to_owned(), format!("b{micros}@live.test")));
    let others = bench.runtime.spawn(load(OTHERS_RATE, of_others).send());
    let sound = bench.runtime.spawn(load(SOUND_RATE, of_sound).send());
    let sent = bench.runtime.block_on(sound)??;
    bench.runtime.block_on(others)??;
    tally.wait(sent.acks.len() as u64, bench.period())?;
    Ok(tally.latencies(b'b'))
}
