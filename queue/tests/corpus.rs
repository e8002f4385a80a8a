//! Replays the committed fuzzing corpus of the queue's files, and what it is grown from.

#[path = "../../fuzz/queue_targets.rs"]
#[allow(dead_code, reason = "of the simulated disk, other tests use more")]
mod targets;

#[path = "../../fuzz/replay.rs"]
mod replay;

use std::path::{Path, PathBuf};

use replay::{check_memory, keep_sample, replay};

#[test]
fn a_queue_opens_on_any_files() {
    replay("queue", targets::queue);
}

/// The samples of both formats, with each octet altered in turn; nothing but whole records has right checksums
/// otherwise.
#[test]
fn a_queue_opens_on_samples_altered_behind_their_checksums() {
    for version in [1, 2] {
        let octets = sample(version);
        let path = keep_sample("queue", &format!("sample-{version}"), &octets);
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
    check_memory("queue");
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
