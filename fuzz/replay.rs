//! What the tests share that replay the committed corpus: each includes this file beside its targets.

use std::path::{Path, PathBuf};

/// No input of some kilobytes makes the process ask for so much memory.
const ADDRESS_SPACE_KIB_MAX: u64 = 2 << 20;

/// Gives each committed input of a target to it.
pub fn replay(name: &str, target: fn(&[u8])) {
    let mut count = 0;
    for entry in std::fs::read_dir(corpus(name)).expect("the corpus is committed") {
        target(&std::fs::read(entry.expect("a readable directory").path()).expect("a readable file"));
        count += 1;
    }
    assert!(count > 0, "{name} is empty");
    check_memory(name);
}

/// Fails when the process asked for gibibytes so far.
pub fn check_memory(name: &str) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmPeak:")?.trim().strip_suffix(" kB")?.parse().ok());
    assert!(peak.unwrap_or(0) < ADDRESS_SPACE_KIB_MAX, "{name}: {peak:?} KiB were asked for");
}

/// Returns where a sample lies that the fuzzer begins with, after writing it where `POSTROAD_WRITE_CORPUS` asks for it.
#[allow(dead_code, reason = "not every crate has samples")]
pub fn keep_sample(name: &str, sample: &str, octets: &[u8]) -> PathBuf {
    let path = corpus(name).join(sample);
    if std::env::var_os("POSTROAD_WRITE_CORPUS").is_some() {
        std::fs::create_dir_all(corpus(name)).expect("writable");
        std::fs::write(&path, octets).expect("writable");
    }
    path
}

fn corpus(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(name)
}
