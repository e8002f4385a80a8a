//! The agent on a disk that fails or fills up: it refuses mail with 4xx, says why, and loses none that
//! it acknowledged.
//!
//! `strace` injects errors into one kind of system call from its n-th on; needs a kernel that lets it
//! trace. `POSTROAD_LONG_TESTS=1` tries more positions.

mod support;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use support::agent::{Agent, Builder, has_program};
use support::client::{Client, Reply, Way};
use support::disk::{Disk, Kind};
use support::ledger::Ledger;
use support::net::{SOON, wait_until};
use support::sink::{Behaviour, Sink};
use support::skip;

/// How long nothing must happen to count as stopped.
const PAUSE: Duration = Duration::from_millis(1500);

/// A next hop that takes nothing yet, so that what is accepted stays in the queue.
fn reluctant() -> Sink {
    let sink = Sink::new();
    sink.behave(|sink| sink.rcpt = Arc::new(|_, _| "451 4.2.1 Later".into()));
    sink
}

/// Sends a message in a session of its own and notes what came of it; `None` when nobody answers.
fn send(agent: &Agent, ledger: &Ledger, number: u64, octets: usize) -> Option<Reply> {
    let mut client = Client::dial(None, agent.smtp()).ok()?;
    client.try_reply().ok()?;
    client.ehlo();
    for line in ["MAIL FROM:<sender@client.test>", "RCPT TO:<user@sink.test>"] {
        let reply = client.say(line);
        if reply.code != 250 {
            return Some(reply);
        }
    }
    let content = Ledger::content(number, octets);
    ledger.unknown(number);
    let reply = client.content(&content, Way::Bdat(usize::MAX));
    if reply.code == 250 {
        ledger.accept(number, &content);
    }
    Some(reply)
}

/// Lets everything through and waits until all that was acknowledged has arrived.
fn settle(agent: &Agent, sink: &Sink, ledger: &Ledger) {
    sink.behave(|sink| *sink = Behaviour::default());
    // It fails when all was delivered already.
    agent.cli(&["queue", "retry", "--all"]);
    agent.wait_empty(Duration::from_secs(60));
    ledger.collect(sink);
    ledger.balance().assert_even();
}

/// Finds out whether strace may trace and inject here.
fn can_inject() -> bool {
    let tried = Command::new("strace").args(["-qq", "-e", "trace=none", "true"]).status();
    has_program("strace") && tried.is_ok_and(|status| status.success())
}

fn positions(few: &[usize], many: std::ops::Range<usize>) -> Vec<usize> {
    let long = std::env::var("POSTROAD_LONG_TESTS").is_ok_and(|text| text == "1");
    if long { many.chain(few.iter().copied()).collect() } else { few.to_vec() }
}

/// An agent that is not yet started, whose `call`s fail as `fault` says.
fn faulty(sink: &Sink, call: &str, fault: &str) -> Agent {
    let builder = Builder::new().route("*", sink.address()).set("metrics.listen", "\"127.0.0.1:0\"");
    let trace = builder.path("trace").display().to_string();
    let calls = format!("trace={call},fdatasync,fsync");
    let inject = format!("inject={call}:{fault}");
    builder.wrapped(&["strace", "-D", "-f", "-qq", "-o", &trace, "-e", &calls, "-e", &inject]).build()
}

/// Starts it; returns false when the fault hit the start, which then has said so.
fn comes_up(agent: &mut Agent) -> bool {
    agent.spawn();
    let up = support::net::wait_for("the agent greets or gives up", SOON, || match agent.ended() {
        true => Some(false),
        false => agent.greets().then_some(true),
    });
    assert!(up || agent.log().contains("error: cannot "), "it says why it does not start: {}", agent.log());
    up
}

/// The calls in its trace, from the first that was made to fail on.
fn behind_the_fault(agent: &Agent) -> Vec<String> {
    let trace = std::fs::read_to_string(agent.path("trace")).expect("strace wrote it");
    trace.lines().skip_while(|line| !line.contains("(INJECTED)")).map(str::to_owned).collect()
}

fn fails_for_good(call: &str, error: &str, position: usize) {
    let sink = reluctant();
    let mut agent = faulty(&sink, call, &format!("error={error}:when={position}"));
    let ledger = Ledger::default();
    let up = comes_up(&mut agent);
    if up {
        let end = Instant::now() + SOON;
        let refused = (1..).find_map(|number| {
            assert!(Instant::now() < end, "{call} {position} was never met: {}", ledger.count());
            send(&agent, &ledger, number, 3000).filter(|reply| reply.code != 250)
        });
        let refused = refused.expect("it ends with a refusal");
        assert_eq!(refused.code, 451, "{call} {position}: {}", refused.text());
        stays_stopped(&mut agent, &sink, &ledger);
        agent.stop();
    }
    let behind = behind_the_fault(&agent);
    let synced = behind.iter().skip(1).filter(|line| line.contains("sync(") && line.contains("= 0"));
    assert_eq!(synced.count(), 0, "{call} {position}: something was synced behind the failure: {behind:?}");
    agent.run_bare();
    agent.start();
    settle(&agent, &sink, &ledger);
}

/// Nothing is accepted and nothing delivered, and it is said in the log and in the status.
fn stays_stopped(agent: &mut Agent, sink: &Sink, ledger: &Ledger) {
    for number in 1_000_000..1_000_003 {
        let reply = send(agent, ledger, number, 500).expect("it still answers");
        assert_eq!(reply.code, 451, "{}", reply.text());
    }
    // What was under way when it failed may end.
    std::thread::sleep(PAUSE);
    sink.behave(|sink| *sink = Behaviour::default());
    agent.cli(&["queue", "retry", "--all"]);
    std::thread::sleep(PAUSE);
    assert_eq!(sink.count(), 0, "what cannot be recorded is not delivered");
    agent.wait_logged("the queue has stopped");
    assert_eq!(agent.logged("the queue has stopped"), 1, "the log says once that the queue has stopped");
    let status = agent.json(&["status", "--json"]);
    assert_eq!(status["state"], "stopped");
    assert!(status["stopped"].as_str().is_some_and(|why| why.contains("failed")), "{status}");
}

#[test]
fn a_failing_sync_is_never_answered_with_250() {
    if !can_inject() {
        return skip("strace is not here or may not trace");
    }
    // The agent's start needs some.
    positions(&[2, 9, 30], 1..16).into_iter().for_each(|position| fails_for_good("fdatasync", "EIO", position));
}

#[test]
fn a_failing_write_or_sync_of_a_directory_stops_the_queue() {
    if !can_inject() {
        return skip("strace is not here or may not trace");
    }
    for (call, few, many) in [("pwritev", &[3, 20][..], 1..12), ("fsync", &[1, 3], 1..4), ("fallocate", &[1], 1..2)] {
        positions(few, many).into_iter().for_each(|position| fails_for_good(call, "EIO", position));
    }
}

#[test]
fn what_passes_is_refused_for_a_while_only() {
    if !can_inject() {
        return skip("strace is not here or may not trace");
    }
    for (call, error, position) in
        [("pwritev", "ENOSPC", 4), ("pwritev", "ENOSPC", 17), ("fallocate", "ENOSPC", 1), ("pwritev", "EDQUOT", 6)]
    {
        let sink = reluctant();
        // Some in a row: the next tries meet it again.
        let mut agent = faulty(&sink, call, &format!("error={error}:when={position}..{}", position + 4));
        let ledger = Ledger::default();
        assert!(comes_up(&mut agent), "{}", agent.log());
        let end = Instant::now() + SOON;
        let mut refused = 0;
        for number in 1.. {
            assert!(Instant::now() < end, "{call} {position}: {} accepted, {refused} refused", ledger.count());
            let reply = send(&agent, &ledger, number, 2000).expect("it answers");
            assert!(matches!(reply.code, 250 | 452), "{call} {position}: {}", reply.text());
            refused += usize::from(reply.code == 452);
            if refused > 0 && reply.code == 250 {
                break;
            }
        }
        assert_eq!(agent.json(&["status", "--json"])["state"], "serving");
        agent.stop();
        agent.run_bare();
        agent.start();
        settle(&agent, &sink, &ledger);
    }
}

/// Lets a process open no file any more, or so many.
fn limit_descriptors(process: u32, limit: Option<usize>) {
    let open: Vec<usize> = std::fs::read_dir(format!("/proc/{process}/fd"))
        .expect("it runs")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    let free = (0..).find(|number| !open.contains(number)).expect("there is always one");
    let limit = format!("--nofile={}:", limit.unwrap_or(free));
    let status = Command::new("prlimit").args(["--pid", &process.to_string(), &limit]).status();
    assert!(status.is_ok_and(|status| status.success()), "util-linux has prlimit");
}

/// Returns how many connections to sockets below this directory are open at the end that listens.
fn connections_below(directory: &Path) -> usize {
    let directory = directory.display().to_string();
    let sockets = std::fs::read_to_string("/proc/net/unix").expect("Linux lists them");
    let is_connected = |line: &&str| line.contains(&directory) && line.split_whitespace().nth(5) == Some("03");
    sockets.lines().filter(is_connected).count()
}

#[test]
fn without_descriptors_mail_is_refused_and_none_is_lost() {
    let sink = reluctant();
    let agent = Builder::new().route("*", sink.address()).set("outbound.idle", "\"300s\"").start();
    let ledger = Ledger::default();
    let mut client = Client::connect(agent.smtp());
    client.ehlo();
    let mut transaction = |number, code| {
        client.envelope("MAIL FROM:<sender@client.test>", &["user@sink.test"]);
        // Large enough for a file of its own.
        let content = Ledger::content(number, 300_000);
        ledger.unknown(number);
        let reply = client.content(&content, Way::Bdat(usize::MAX));
        assert_eq!(reply.code, code, "{}", reply.text());
        if code == 250 {
            ledger.accept(number, &content);
        } else {
            client.expect("RSET", 250);
        }
    };
    transaction(1, 250);
    // No attempt is to close a socket while there must be none to open.
    agent.wait_deferred(SOON);
    agent.ok(&["queue", "hold", "--all"]);
    wait_until("its attempt has ended", SOON, || agent.json(&["status", "--json"])["queue"]["in_flight"] == 0);
    // Nor is the connection of a command to be closed behind the look at what is open.
    wait_until("no command is connected", SOON, || connections_below(&agent.path("state")) == 0);
    for number in [2, 3] {
        limit_descriptors(agent.pid(), None);
        transaction(number, 451);
    }
    limit_descriptors(agent.pid(), Some(1000));
    agent.ok(&["queue", "release", "--all"]);
    transaction(4, 250);
    settle(&agent, &sink, &ledger);
}

/// Fills the disk under an agent that may use all of it, then makes room.
fn fills_up(disk: &Disk, mut agent: Agent, sink: &Sink) {
    let ledger = Ledger::default();
    let accepted = |number, octets| send(&agent, &ledger, number, octets).expect("it answers").code;
    (1..20).for_each(|number| assert_eq!(accepted(number, 20_000), 250));
    disk.fill();
    let mut refused = 0;
    for number in 100..400 {
        match accepted(number, 400_000) {
            452 => refused += 1,
            code => assert_eq!(code, 250),
        }
        if refused > 5 {
            break;
        }
    }
    assert!(refused > 5, "a full disk refuses: {} accepted", ledger.count());
    agent.kill();
    agent.start();
    assert_eq!(agent.json(&["status", "--json"])["state"], "serving", "it starts on a full disk");
    disk.make_room();
    wait_until("there is room again", SOON, || {
        send(&agent, &ledger, 900 + ledger.count() as u64, 400_000).is_some_and(|reply| reply.code == 250)
    });
    settle(&agent, sink, &ledger);
}

#[test]
fn a_full_disk_refuses_mail_and_loses_none() {
    for kind in [None, Some(Kind::Ext4), Some(Kind::Xfs)] {
        let sink = reluctant();
        let builder = Builder::new().route("*", sink.address()).set("queue.reserve", "\"0\"");
        let state = builder.path("state");
        let disk = match kind {
            None => Disk::in_memory(&state, "100m"),
            Some(kind) => Disk::in_file(&state, kind),
        };
        match disk {
            Ok(disk) => fills_up(&disk, builder.start(), &sink),
            Err(why) => skip(&why),
        }
    }
}

#[test]
fn a_short_disk_is_said_before_anybody_asks_why_no_mail_comes() {
    let agent = Builder::new().set("queue.reserve", "\"1000TB\"").metrics().start();
    for _ in 0..2 {
        let mut client = Client::connect(agent.smtp());
        client.ehlo();
        client.envelope("MAIL FROM:<a@client.test>", &["b@away.test"]);
        client.expect("DATA", 452);
    }
    let status = agent.json(&["status", "--json"]);
    assert_eq!(status["disk"]["state"], "short", "{status}");
    assert!(agent.ok(&["status"]).contains("queue.reserve"), "{status}");
    agent.wait_logged("until there is room on the disk");
    assert_eq!(agent.logged("until there is room on the disk"), 1, "once, whatever is refused: {}", agent.log());
    assert_eq!(agent.metric("postroad_queue_disk_short"), 1);
}
