//! What the whole-agent tests share: agents as processes, next hops that misbehave on demand, a
//! client that says exactly what it is told, messages, and a ledger.
//!
//! Everything listens on loopback addresses of its own, made from the process id, so that tests run
//! beside each other and need no port that is free by luck. Threads, no runtime: a test reads from
//! top to bottom.
//!
//! Nothing here happens at once: the agent answers before it has written its log, and a neighbour has
//! mail before the one that sent it has heard so. What a test reads it waits for.

#![allow(dead_code, reason = "each test file uses its part of this module")]

pub mod agent;
pub mod client;
pub mod corpus;
pub mod disk;
pub mod dns;
pub mod lan;
pub mod ledger;
pub mod load;
pub mod mesh;
pub mod net;
pub mod networks;
pub mod sink;
pub mod tls;
pub mod users;
pub mod wire;

/// Shows something to whoever reads the test's output.
#[allow(clippy::print_stderr, reason = "a test has no other way to speak")]
pub fn note(text: impl std::fmt::Display) {
    eprintln!("{text}");
}

/// Says that a test did not run, so that nobody takes silence for success.
///
/// # Panics
/// Where all tests are to run, as in CI: with `POSTROAD_SKIP=never`. What a test that passes says is not shown.
pub fn skip(why: &str) {
    note(format_args!("SKIPPED: {why}"));
    assert!(std::env::var_os("POSTROAD_SKIP").is_none_or(|when| when != "never"), "it cannot run here: {why}");
}

/// Returns what to start an agent through for a clock that is so far ahead. The library itself: the program
/// `faketime` stands between the agent and signals.
pub fn ahead(time: &str) -> Option<Vec<String>> {
    let libraries = std::fs::read_dir("/usr/lib").expect("it is there").flatten();
    let path = libraries.map(|entry| entry.path().join("faketime/libfaketime.so.1")).find(|path| path.exists())?;
    let preload = format!("LD_PRELOAD={}", path.display());
    Some(["env", &preload, "FAKETIME_DONT_FAKE_MONOTONIC=1", &format!("FAKETIME={time}")].map(str::to_owned).into())
}
