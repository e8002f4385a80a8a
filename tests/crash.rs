//! The agent is killed again and again under load, while it starts as well: every message that got its
//! 250 is delivered at least once, octet for octet, and only what was under way is delivered twice.
//!
//! Ten kills in an ordinary run; `POSTROAD_KILLS=50` asks for more, as CI does.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use support::agent::{Agent, Builder};
use support::load::Load;
use support::note;
use support::sink::{Behaviour, Sink};

fn kills() -> u32 {
    std::env::var("POSTROAD_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(10)
}

/// So many deliveries are under way at once, at most.
const CONNECTIONS_MAX: u32 = 4;

fn start(sink: &Sink) -> Agent {
    let connections = CONNECTIONS_MAX.to_string();
    let agent = Builder::new().route("*", sink.address()).set("outbound.connections_per_destination", &connections);
    agent.set("log.level", "\"warn\"").start()
}

/// Only what a worker was about to write down when the process ended may be delivered again.
fn kill_again_and_again(sink: &Sink, mut agent: Agent, rounds: u32) {
    let mut random = fastrand::Rng::with_seed(4711);
    let mut kills = 0;
    let balance = Load::during(&mut agent, sink, |agent, load| {
        for _ in 0..rounds {
            std::thread::sleep(Duration::from_millis(random.u64(20..600)));
            agent.kill();
            kills += 1;
            if random.bool() {
                // Once more while it reads its queue.
                agent.spawn();
                std::thread::sleep(Duration::from_millis(random.u64(0..60)));
                agent.kill();
                kills += 1;
            }
            agent.start();
            load.wait_accepted();
            load.ledger.collect(sink);
        }
    });
    let each = balance.duplicates as f64 / f64::from(kills);
    note(format_args!("{kills} kills, {} acknowledged, {each:.2} repeated per kill", balance.accepted));
    assert!(balance.duplicates <= (CONNECTIONS_MAX * kills) as usize, "{balance:?} after {kills} kills");
}

#[test]
fn killed_under_load_no_acknowledged_message_is_lost() {
    let sink = Sink::new();
    kill_again_and_again(&sink, start(&sink), kills());
}

#[test]
fn killed_while_the_next_hop_is_capricious() {
    let sink = Sink::start(Behaviour { chunking: false, ..Behaviour::default() });
    let count = Arc::new(AtomicU64::new(0));
    sink.behave(|sink| {
        sink.content = Arc::new(move |_, _| match count.fetch_add(1, Ordering::SeqCst) % 5 {
            0 => "451 4.3.0 Not now".into(),
            _ => "250 2.0.0 Taken".into(),
        });
    });
    kill_again_and_again(&sink, start(&sink), kills() / 5);
}
