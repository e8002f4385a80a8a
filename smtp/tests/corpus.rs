//! Replays the committed fuzzing corpus.

#[path = "../../fuzz/targets.rs"]
mod targets;

use std::path::Path;

fn replay(name: &str, target: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(name);
    let mut count = 0;
    for entry in std::fs::read_dir(&dir).expect("the corpus is committed") {
        target(&std::fs::read(entry.expect("a readable directory").path()).expect("a readable file"));
        count += 1;
    }
    assert!(count > 0, "{} is empty", dir.display());
}

#[test]
fn every_line_is_a_command_or_an_error() {
    replay("command", targets::command);
}

#[test]
fn every_reply_reads_the_same_in_every_chunking() {
    replay("reply", targets::reply);
}

#[test]
fn content_reads_the_same_in_every_chunking() {
    replay("data", targets::data);
}

#[test]
fn a_session_is_the_same_in_every_chunking() {
    replay("session", targets::session);
}
