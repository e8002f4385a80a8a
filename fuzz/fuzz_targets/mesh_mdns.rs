//! Fuzzes `mesh_targets::mdns`.

#![no_main]

#[path = "../mesh_targets.rs"]
#[allow(dead_code, reason = "each binary fuzzes one of the targets")]
mod targets;

libfuzzer_sys::fuzz_target!(|octets: &[u8]| targets::mdns(octets));
