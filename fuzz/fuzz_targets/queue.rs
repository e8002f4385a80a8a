//! Fuzzes `queue_targets::queue`.

#![no_main]

#[path = "../queue_targets.rs"]
#[allow(dead_code, reason = "of the simulated disk, tests use more")]
mod targets;

libfuzzer_sys::fuzz_target!(|octets: &[u8]| targets::queue(octets));
