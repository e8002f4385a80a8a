//! What an agent costs while it does little: syncs at a start, wake-ups at rest, memory for each
//! idle session, and no entropy that is computed. Counts, not times, so that a busy host changes
//! nothing; docs/performance.md has the times.

mod support;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use support::agent::{Agent, Builder, POSTROAD, has_program};
use support::client::{Client, Way};
use support::net::{SOON, wait_until};
use support::skip;

/// The queue's directory and the one around it, its log, key, certificate and their directory; where local mail is
/// handed in, and again the directory around it.
const SYNCS_OF_FIRST_START: usize = 8;
/// The queue's directory and its log: what recovery found holds from here on.
const SYNCS_OF_LATER_START: usize = 2;
const REST: Duration = Duration::from_secs(5);
/// A thread of the runtime that is needed no more ends once; nothing else has a reason.
const WAKE_UPS_AT_REST_MAX: u64 = 4;
/// More than what lies in a segment: 256 KiB.
const LARGE_LINES: usize = 8000;
const SESSIONS: usize = 400;
/// What an idle agent of a release build takes at most, in octets (PSS).
const IDLE_OCTETS_MAX: usize = 10_000_000;
const OCTETS_PER_SESSION_MAX: usize = 8 * 1024;

#[test]
fn a_start_syncs_only_what_it_makes() {
    if !has_program("strace") {
        return skip("strace is missing");
    }
    let builder = Builder::new();
    let trace = builder.path("trace").display().to_string();
    let words = ["strace", "-D", "-f", "-qq", "-o", &trace, "-e", "trace=fsync,fdatasync"];
    let mut agent = builder.wrapped(&words).start();
    assert_eq!(syncs(&trace), SYNCS_OF_FIRST_START);
    agent.restart();
    // The trace was begun anew.
    assert_eq!(syncs(&trace), SYNCS_OF_LATER_START);
}

fn syncs(trace: &str) -> usize {
    let text = fs::read_to_string(trace).expect("strace writes it");
    text.lines().filter(|line| line.contains("sync(")).count()
}

#[test]
fn nothing_wakes_an_idle_agent() {
    let agent = Builder::new().start();
    let woken_in = |time| {
        let before = wake_ups(&agent);
        std::thread::sleep(time);
        wake_ups(&agent).saturating_sub(before)
    };
    // On a busy machine it takes a while until all that a start leaves to do is done.
    wait_until("the start is over", 3 * SOON, || woken_in(REST / 2) == 0);
    let woken = woken_in(REST);
    assert!(woken <= WAKE_UPS_AT_REST_MAX, "woken {woken} times in {REST:?}");
}

#[test]
fn threads_that_sync_large_messages_start_with_the_first_of_them() {
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 9));
    let agent = Builder::new().route("waits.example", nowhere).start();
    assert_eq!(syncers(&agent), 0);
    let mut client = Client::connect(agent.smtp());
    client.ehlo();
    let line = [&[b'x'; 76][..], b"\r\n"].concat();
    for lines in [1, LARGE_LINES, LARGE_LINES] {
        let content = [b"Subject: large\r\n\r\n".to_vec(), line.repeat(lines)].concat();
        let reply = client.deliver("a@sender.example", &["b@waits.example"], &content, Way::Data);
        assert_eq!(reply.code, 250, "{}", reply.text());
        assert_eq!(syncers(&agent), usize::from(lines == LARGE_LINES), "one at a time needs one");
    }
}

/// How many threads of an agent are there to sync the content of large messages.
fn syncers(agent: &Agent) -> usize {
    let threads = fs::read_dir(format!("/proc/{}/task", agent.pid())).expect("it runs");
    let is_syncer = |thread: &fs::DirEntry| {
        fs::read_to_string(thread.path().join("comm")).is_ok_and(|name| name.trim_end() == "content sync")
    };
    threads.filter(|thread| thread.as_ref().is_ok_and(is_syncer)).count()
}

/// How often the threads of an agent have gone to sleep so far.
fn wake_ups(agent: &Agent) -> u64 {
    let threads = fs::read_dir(format!("/proc/{}/task", agent.pid())).expect("it runs");
    let slept = |thread: fs::DirEntry| number(&thread.path().join("status"), "voluntary_ctxt_switches:");
    threads.map(|thread| slept(thread.expect("readable")) as u64).sum()
}

#[test]
#[ignore = "of a release build, which POSTROAD_AGENT names; .ci/run does so"]
fn an_idle_agent_takes_few_megabytes() {
    let agent = Builder::new().start();
    std::thread::sleep(REST);
    let octets = number(Path::new(&format!("/proc/{}/smaps_rollup", agent.pid())), "Pss:") * 1024;
    println!("an idle agent takes {octets} octets");
    assert!(
        (1..IDLE_OCTETS_MAX).contains(&octets),
        "{octets} octets; see docs/decisions/0023-functions-that-run-together.md"
    );
}

#[test]
fn an_idle_session_takes_a_few_kibibytes() {
    let agent = Builder::new().start();
    let status = format!("/proc/{}/status", agent.pid());
    let memory = || number(Path::new(&status), "RssAnon:") * 1024;
    let greeted = || {
        let mut client = Client::connect(agent.smtp());
        client.ehlo();
        client
    };
    // What the first sessions cause to be set up is no session's own.
    let _first: Vec<Client> = (0..20).map(|_| greeted()).collect();
    let before = memory();
    let _clients: Vec<Client> = (0..SESSIONS).map(|_| greeted()).collect();
    let each = memory().saturating_sub(before) / SESSIONS;
    assert!(each <= OCTETS_PER_SESSION_MAX, "{each} octets for each session");
}

/// Returns the number behind a name in a file of /proc.
fn number(path: &Path, name: &str) -> usize {
    let text = fs::read_to_string(path).unwrap_or_default();
    let rest = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("0");
    rest.split_whitespace().next().and_then(|digits| digits.parse().ok()).expect("a number")
}

#[test]
fn the_seed_of_the_cryptography_is_the_kernels() {
    let program = fs::read(POSTROAD).expect("readable");
    let has = |symbol: &[u8]| memchr::memmem::find(&program, symbol).is_some();
    assert!(has(b"vm_ube_fallback_get_seed"), "the names of functions are in the program");
    assert!(!has(b"jent_entropy_collector_alloc"), "build with the settings of .cargo/config.toml");
}
