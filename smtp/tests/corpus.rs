//! Replays the committed fuzzing corpus.

#[path = "../../fuzz/targets.rs"]
mod targets;

#[path = "../../fuzz/replay.rs"]
mod replay;

use replay::replay;

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
