//! The commands against a live control socket, and against an agent that is down.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use clap::Parser;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::*;
use crate::admin::testing::{HOUR_MS, Memory, NOW, entry};
use crate::admin::{ControlSocket, Target};
use crate::cli::exit;
use postroad_queue::{CommitError, Committed, Options, OsFs, Queue, QueueId};

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

/// An agent with a queue in memory, or none.
struct Host {
    state: TempDir,
    backend: Arc<Memory>,
    _runtime: Option<Runtime>,
}

fn host(runs: bool) -> Host {
    let state = tempfile::tempdir().expect("a scratch directory");
    let config = format!("state_dir = \"{}\"\n", state.path().display());
    std::fs::write(state.path().join("postroad.toml"), config).expect("written");
    let backend = Arc::new(Memory::sample());
    let runtime = runs.then(|| {
        let runtime = Runtime::new().expect("a runtime");
        let _inside = runtime.enter();
        let socket = ControlSocket::bind(&state.path().join("control.sock")).expect("bound");
        runtime.spawn(socket.serve(backend.clone()));
        drop(_inside);
        runtime
    });
    Host { state, backend, _runtime: runtime }
}

#[derive(Clone, Default)]
struct Paper(Arc<Mutex<Vec<u8>>>);

impl Write for Paper {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic").write(octets)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Host {
    /// Runs `postroad queue` with the words of `line` and returns exit code and output.
    fn run(&self, line: &str) -> (u8, String) {
        let (line, json) = match line.strip_suffix(" --json") {
            Some(line) => (line, true),
            None => (line, false),
        };
        let args = Line::try_parse_from(["queue"].into_iter().chain(line.split(' '))).expect(line).args;
        let paper = Paper::default();
        let mut context = Context::to(Box::new(paper.clone()), self.state.path().join("postroad.toml"), json);
        let code = run(args, &mut context).err().map_or(0, |failure| failure.code());
        let text = String::from_utf8(paper.0.lock().expect("no panic").clone()).expect("UTF-8");
        (code, text)
    }

    fn acts(&self) -> Vec<(Action, Target)> {
        self.backend.acts.lock().expect("no panic").clone()
    }
}

fn target(id: u64, recipients: &[usize]) -> Target {
    Target { id: QueueId::from_u64(id), recipients: recipients.to_vec() }
}

fn first_fields(text: &str) -> Vec<&str> {
    text.lines().map(|line| line.split('\t').next().unwrap_or_default()).collect()
}

#[test]
fn lists_take_filters_and_limits() {
    let host = host(true);
    let (code, text) = host.run("list");
    assert_eq!((code, first_fields(&text)), (0, vec!["0000000000001", "0000000000002", "0000000000003"]));
    let (_, text) = host.run("list --from <>");
    assert_eq!(first_fields(&text), ["0000000000002"]);
    let (_, text) = host.run("list --deferred --older 90m");
    assert_eq!(first_fields(&text), ["0000000000001"]);
    let (_, text) = host.run("list --domain example.com --limit 2 --json");
    assert_eq!(text.lines().count(), 2);
    assert_eq!(host.run("list --to nobody@*"), (0, String::new()));
}

#[test]
fn an_id_that_is_not_there_is_a_failure() {
    let host = host(true);
    let (code, text) = host.run("list 0000000000003 0000000000009");
    assert_eq!((code, first_fields(&text)), (exit::FAILED, vec!["0000000000003"]));
    assert_eq!(host.run("show 0000000000009").0, exit::FAILED);
    let (code, text) = host.run("show 0000000000009 0000000000003");
    assert!(code == exit::FAILED && text.starts_with("0000000000003  deferred\n"), "{text}");
}

#[test]
fn why_says_what_each_destination_waits_for() {
    let (code, text) = host(true).run("why 0000000000001");
    assert_eq!(code, 0, "{text}");
    for part in [
        "0000000000001 from cron@app.example.org, accepted ",
        "\nmx:dead.example (",
        "): was put off; the next attempt is due at 2027-01-15T08:30:00.000Z\n  change it by: postroad queue retry \
         0000000000001 --destination 'mx:dead.example'\n  ops@dead.example: tried 7 times\n    450 4.2.0 Greylisted",
        "\nmx:example.com (",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
}

#[test]
fn a_dry_run_changes_nothing_and_the_real_run_what_it_showed() {
    let host = host(true);
    let (code, text) = host.run("bounce --domain dead.example --dry-run");
    assert_eq!((code, text.as_str()), (0, "0000000000001\twould_change\n"));
    assert!(host.acts().is_empty());
    let (code, text) = host.run("bounce --domain dead.example --yes");
    assert_eq!((code, text.as_str()), (0, "0000000000001\tchanged\n"));
    assert_eq!(host.acts(), [(Action::Bounce, target(1, &[0]))]);
}

#[test]
fn what_matches_nothing_or_says_nothing_fails() {
    let host = host(true);
    assert_eq!(host.run("hold --to nobody@*").0, exit::FAILED);
    assert_eq!(host.run("remove --yes").0, exit::FAILED);
    assert!(host.acts().is_empty());
    assert_eq!(
        host.run("release --all").1,
        "0000000000001\tunchanged\n0000000000002\tchanged\n0000000000003\tunchanged\n"
    );
}

#[test]
fn very_many_ids_are_asked_for_in_several_requests() {
    let host = host(true);
    let ids: Vec<String> = (1..=5000).map(|n| QueueId::from_u64(n).to_string()).collect();
    let (code, text) = host.run(&format!("retry {}", ids.join(" ")));
    assert_eq!((code, text.lines().count()), (exit::FAILED, 3));
    assert_eq!(host.acts().len(), 3);
}

#[test]
fn without_an_agent_what_changes_something_says_try_later() {
    let host = host(false);
    for line in ["hold --all", "retry 0000000000001", "why 0000000000001", "stats"] {
        assert_eq!(host.run(line).0, exit::TRY_LATER, "{line}");
    }
}

#[test]
fn stats_end_with_the_totals() {
    let (code, text) = host(true).run("stats --json");
    assert_eq!(code, 0);
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines[0]["destination"], "mx:dead.example");
    assert_eq!(lines[1]["totals"]["messages"], 3);
}

fn committed(done: Result<Committed, CommitError>) {
    done.expect("committed");
}

/// Puts two messages into the queue of a host whose agent is down.
fn fill(host: &Host) {
    let fs = Arc::new(OsFs::open(&host.state.path().join("queue")).expect("opened"));
    let (queue, _) =
        Queue::open(fs, Options { segment_octets: 1 << 20, reserve_octets: 0, ..Options::default() }).expect("opened");
    for to in ["bob@example.com", "eve@dead.example"] {
        let entry = entry(1, 1, "shop@example.org", &[(to, 0)]);
        let mut draft = queue.draft(NOW).expect("room");
        draft.append(b"Subject: x\r\n\r\nhello\r\n").expect("room");
        let (envelope, origin) = (entry.item.envelope.clone(), entry.item.origin.clone());
        draft.commit(envelope, origin, NOW.plus(HOUR_MS), NOW, Box::new(committed));
    }
    queue.flush();
}

#[test]
fn without_an_agent_the_spool_is_read() {
    let host = host(false);
    fill(&host);
    let (code, text) = host.run("list");
    assert_eq!((code, text.lines().count()), (0, 2));
    let (_, text) = host.run("list --destination mx:dead.example --json");
    let message: serde_json::Value = serde_json::from_str(&text).expect("one message");
    assert_eq!(message["recipients"][0]["to"], "eve@dead.example");
    let id = message["id"].as_str().expect("an id");
    let (code, text) = host.run(&format!("show {id}"));
    assert!(code == 0 && text.contains("  eve@dead.example: not tried yet\n"), "{text}");
    assert_eq!(host.run(&format!("list {id} --limit 1")).0, 0);
    assert_eq!(host.run("list 0000000000009").0, exit::FAILED);
    assert_eq!(host.run("show 0000000000009").0, exit::FAILED);
}

#[test]
fn verify_reads_every_message_and_finds_what_is_damaged() {
    let host = host(false);
    fill(&host);
    let (code, text) = host.run("verify --json");
    let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((code, &report["messages"], &report["content_octets"]), (0, &2.into(), &42.into()));
    let log = host.state.path().join("queue/log");
    let segment = std::fs::read_dir(log).expect("a log").next().expect("a segment").expect("readable").path();
    let mut octets = std::fs::read(&segment).expect("readable");
    let at = octets.windows(5).position(|window| window == b"hello").expect("the content");
    octets[at] ^= 1;
    std::fs::write(&segment, octets).expect("written");
    let (code, text) = host.run("verify");
    assert!(code == exit::FAILED && text.contains("damaged: "), "{code} {text}");
}

#[test]
fn repair_puts_aside_what_is_damaged_and_keeps_the_rest() {
    let host = host(false);
    // Twice, so that the damage is in a segment that an opening need not read.
    fill(&host);
    fill(&host);
    let segment = host.state.path().join("queue/log/00000001.seg");
    let mut octets = std::fs::read(&segment).expect("readable");
    let at = octets.windows(5).position(|window| window == b"hello").expect("the first content");
    octets[at] ^= 1;
    std::fs::write(&segment, &octets).expect("written");
    let (code, text) = host.run("repair --dry-run");
    assert!(code == 0 && text.contains("1 places would be put aside; 3 messages are in order"), "{code} {text}");
    assert_eq!(std::fs::read(&segment).expect("readable"), octets, "nothing was changed");
    let (code, text) = host.run("repair");
    assert!(code == 0 && text.contains("saved as quarantine/"), "{code} {text}");
    let (code, text) = host.run("verify --json");
    let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((code, &report["messages"]), (0, &3.into()));
    let (_, text) = host.run("repair --json");
    let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((&report["messages"], report["damage"].as_array().map(Vec::len)), (&3.into(), Some(0)));
}
