//! Replays the committed fuzzing corpus of the queue's files, and what it is grown from.

#[path = "../../fuzz/queue_targets.rs"]
#[allow(dead_code, reason = "of the simulated disk, other tests use more")]
mod targets;

use std::path::{Path, PathBuf};

/// No input of a few kilobytes makes the process ask for so much memory.
const ADDRESS_SPACE_KIB_MAX: u64 = 2 << 20;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/queue")
}

fn check_memory() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmPeak:")?.trim().strip_suffix(" kB")?.parse().ok());
    assert!(peak.unwrap_or(0) < ADDRESS_SPACE_KIB_MAX, "{peak:?} KiB were asked for");
}

#[test]
fn a_queue_opens_on_any_files() {
    let mut count = 0;
    for entry in std::fs::read_dir(corpus()).expect("the corpus is committed") {
        targets::queue(&std::fs::read(entry.expect("a readable directory").path()).expect("a readable file"));
        count += 1;
    }
    assert!(count > 0);
    check_memory();
}

/// The samples of both formats, with each octet altered in turn; nothing but whole records has right checksums
/// otherwise.
#[test]
fn a_queue_opens_on_samples_altered_behind_their_checksums() {
    for version in [1, 2] {
        let octets = sample(version);
        let path = corpus().join(format!("sample-{version}"));
        if std::env::var_os("POSTROAD_WRITE_CORPUS").is_some() {
            std::fs::create_dir_all(corpus()).expect("writable");
            std::fs::write(&path, &octets).expect("writable");
        }
        assert_eq!(std::fs::read(&path).expect("POSTROAD_WRITE_CORPUS=1 writes it"), octets);
        for place in (0..octets.len()).step_by(2) {
            // Lengths of gibibytes and more are among them.
            let mut altered = octets.clone();
            altered[place] ^= [0x01, 0x80][place / 2 % 2];
            if let Some(next) = altered.get_mut(place + 1) {
                *next ^= [0x80, 0x01, 0][place / 4 % 3];
            }
            targets::queue(&altered);
        }
        for end in (0..octets.len()).step_by(48) {
            targets::queue(&octets[..end]);
        }
    }
    check_memory();
}

/// Returns a sample queue as one input.
fn sample(version: u8) -> Vec<u8> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/samples/version-{version}"));
    let mut input = Vec::new();
    for (place, directory) in (0..).zip(["log", "content", "summary"]) {
        let Ok(entries) = std::fs::read_dir(root.join(directory)) else { continue };
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("readable").path()).collect();
        files.sort();
        for (serial, file) in (1u8..).zip(files) {
            // Behind the records of these small segments stand zeros.
            let octets = std::fs::read(file).expect("readable");
            let used = octets.iter().rposition(|octet| *octet != 0).map_or(0, |last| last + 1).next_multiple_of(64);
            let octets = &octets[..used.min(octets.len())];
            let count = u16::try_from(octets.len()).expect("samples are small");
            input.extend([place, serial, count.to_be_bytes()[0], count.to_be_bytes()[1]]);
            input.extend_from_slice(octets);
        }
    }
    input
}
