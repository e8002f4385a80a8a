//! The power of the disk is cut again and again under a loaded agent, on ext4 and on xfs: every message
//! that got its 250 is there when power is back, octet for octet.
//!
//! A kill leaves to the kernel what was written; a cut takes everything that was not synced, names of
//! files included. Needs root and loop devices, so it runs only when asked, as `.ci/run` does:
//! `cargo test --test power -- --ignored --test-threads=1`. `POSTROAD_POWER_CUTS=100` asks for more
//! cuts than five.

mod support;

use std::time::Duration;

use rustix::process::Signal;

use support::agent::{Agent, Builder};
use support::disk::{Disk, Kind};
use support::load::Load;
use support::sink::Sink;
use support::{note, skip};

fn cuts() -> usize {
    std::env::var("POSTROAD_POWER_CUTS").ok().and_then(|text| text.parse().ok()).unwrap_or(5)
}

/// An agent whose state lies on a disk of its own.
fn agent_on(kind: Kind, sink: &Sink) -> Option<(Agent, Disk)> {
    let builder = Builder::new().route("*", sink.address()).set("log.level", "\"warn\"");
    match Disk::in_file(&builder.path("state"), kind) {
        Ok(disk) => Some((builder.start(), disk)),
        Err(why) => {
            skip(&format!("no {kind:?} in a file can be mounted here: {why}"));
            None
        }
    }
}

fn cut_again_and_again(kind: Kind) {
    let sink = Sink::new();
    let Some((mut agent, disk)) = agent_on(kind, &sink) else { return };
    let mut random = fastrand::Rng::with_seed(815);
    let cuts = cuts();
    let balance = Load::during(&mut agent, &sink, |agent, load| {
        for _ in 0..cuts {
            std::thread::sleep(Duration::from_millis(random.u64(20..800)));
            // Nobody says anything when power is gone. A sync that is under way when the file system is
            // shut down may report success all the same, which no loss of power can bring about.
            agent.signal(Signal::STOP);
            disk.cut();
            agent.kill();
            disk.restore();
            agent.start();
            load.wait_accepted();
            load.ledger.collect(&sink);
        }
    });
    let each = balance.duplicates as f64 / cuts as f64;
    note(format_args!("{kind:?}: {cuts} cuts, {} acknowledged, {each:.1} repeated per cut", balance.accepted));
    drop(agent);
}

#[test]
#[ignore = "needs root and loop devices"]
fn no_acknowledged_message_is_lost_on_ext4() {
    cut_again_and_again(Kind::Ext4);
}

#[test]
#[ignore = "needs root and loop devices"]
fn no_acknowledged_message_is_lost_on_xfs() {
    cut_again_and_again(Kind::Xfs);
}
