//! What the whole-agent tests share: agents as processes, next hops that misbehave on demand, a
//! client that says exactly what it is told, messages, and a ledger.
//!
//! Everything listens on loopback addresses of its own, made from the process id, so that tests run
//! beside each other and need no port that is free by luck. Threads, no runtime: a test reads from
//! top to bottom.

#![allow(dead_code, reason = "each test file uses its part of this module")]

pub mod agent;
pub mod client;
pub mod corpus;
pub mod disk;
pub mod dns;
pub mod ledger;
pub mod load;
pub mod net;
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
pub fn skip(why: &str) {
    note(format_args!("SKIPPED: {why}"));
}
