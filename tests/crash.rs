//! The agent is killed again and again under load: every message that got its 250 is delivered at
//! least once, octet for octet. Full and failing disks refuse mail; they never lose any.
//!
//! Ten kills in an ordinary run; `POSTROAD_KILLS=50` asks for more, as CI does.

mod support;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use support::agent::{Agent, Builder, has_program, is_root};
use support::client::{Client, Way};
use support::ledger::Ledger;
use support::net::{SOON, wait_until};
use support::sink::{Behaviour, Sink};
use support::{note, skip};

/// Clients that send without a pause.
const CLIENTS: u64 = 6;

/// What the clients share.
struct Load {
    ledger: Ledger,
    next: AtomicU64,
    over: AtomicBool,
    to: std::net::SocketAddr,
}

impl Load {
    fn new(agent: &Agent) -> Load {
        Load { ledger: Ledger::default(), next: AtomicU64::new(1), over: AtomicBool::new(false), to: agent.smtp() }
    }

    /// Sends messages until the load is over; connects again whenever the agent comes back.
    fn client(&self) {
        while !self.over.load(Ordering::SeqCst) {
            match Client::dial(None, self.to) {
                // The session ends when the agent does.
                Ok(client) => drop(self.session(client)),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    fn session(&self, mut client: Client) -> std::io::Result<()> {
        client.set_timeout(Duration::from_secs(20));
        client.try_reply()?;
        client.try_send("EHLO client.test\r\n")?;
        client.try_reply()?;
        while !self.over.load(Ordering::SeqCst) {
            self.message(&mut client)?;
        }
        Ok(())
    }

    /// Sends one message by BDAT in one write and notes what is known of it. Every 20th is larger
    /// than what the queue keeps beside its envelope.
    fn message(&self, client: &mut Client) -> std::io::Result<()> {
        let number = self.next.fetch_add(1, Ordering::SeqCst);
        let octets = if number.is_multiple_of(20) { 400_000 } else { 2_000 + number as usize % 3000 };
        let content = Ledger::content(number, octets);
        let mut request = b"MAIL FROM:<sender@client.test>\r\nRCPT TO:<user@sink.test>\r\n".to_vec();
        request.extend_from_slice(format!("BDAT {} LAST\r\n", content.len()).as_bytes());
        request.extend_from_slice(&content);
        // Until the reply is read nobody knows; this note comes first so that nothing is missed.
        self.ledger.unknown(number);
        client.try_send(request)?;
        client.try_reply()?;
        client.try_reply()?;
        if client.try_reply()?.code == 250 {
            self.ledger.accept(number, octets);
        }
        Ok(())
    }
}

fn kills() -> u32 {
    std::env::var("POSTROAD_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(10)
}

/// Runs clients while `work` goes on, then lets the queue empty itself and compares.
fn under_load(agent: &mut Agent, sink: &Sink, work: impl FnOnce(&mut Agent, &Load)) {
    let load = Load::new(agent);
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| load.client());
        }
        // A failure here must not leave the clients running.
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(agent, &load)));
        load.over.store(true, Ordering::SeqCst);
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    wait_until("every acknowledged message is delivered", Duration::from_secs(120), || {
        load.ledger.is_delivered(&sink.messages())
    });
    let balance = load.ledger.balance(&sink.messages());
    note(format_args!("accepted {}, delivered once more {}", balance.accepted, balance.duplicates));
    balance.assert_even();
    assert!(balance.accepted > 0, "the clients were heard");
    agent.wait_empty(SOON);
}

fn kill_again_and_again(sink: &Sink, mut agent: Agent, kills: u32) {
    let mut random = fastrand::Rng::with_seed(4711);
    under_load(&mut agent, sink, |agent, load| {
        for _ in 0..kills {
            let before = load.ledger.count();
            std::thread::sleep(Duration::from_millis(random.u64(20..600)));
            agent.kill();
            agent.start();
            wait_until("mail is accepted again", SOON, || load.ledger.count() > before);
        }
    });
}

#[test]
fn killed_under_load_no_acknowledged_message_is_lost() {
    let sink = Sink::new();
    let agent = Builder::new().route("*", sink.address()).set("log.level", "\"warn\"").start();
    kill_again_and_again(&sink, agent, kills());
}

#[test]
fn killed_while_the_next_hop_is_capricious() {
    let sink = Sink::start(Behaviour { chunking: false, ..Behaviour::default() });
    let count = Arc::new(AtomicU64::new(0));
    sink.behave(|sink| {
        sink.content = Arc::new(move |_, _| match count.fetch_add(1, Ordering::SeqCst) % 5 {
            0 => "451 4.3.0 Not now".into(),
            _ => "250 2.0.0 Taken".into(),
        });
    });
    let agent = Builder::new().route("*", sink.address()).set("log.level", "\"warn\"").start();
    kill_again_and_again(&sink, agent, kills() / 5);
}

/// A small file system of its own, unmounted when dropped.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(path: &Path, size: &str) -> Option<SmallDisk> {
        std::fs::create_dir_all(path).expect("writable");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size},mode=0755"), "postroad-test"])
            .arg(path)
            .status();
        mounted.is_ok_and(|status| status.success()).then(|| SmallDisk(path.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // It is in use until the agent has ended; then the lazy part does nothing.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_refuses_mail_and_loses_none() {
    if !is_root() || !has_program("mount") {
        return skip("a small disk needs root and mount");
    }
    let sink = Sink::new();
    sink.behave(|sink| sink.rcpt = Arc::new(|_, _| "451 4.2.1 Later".into()));
    let builder = Builder::new().route("*", sink.address()).set("queue.reserve", "\"8MB\"");
    let Some(_disk) = SmallDisk::mount(&builder.path("state"), "100m") else {
        return skip("tmpfs cannot be mounted here");
    };
    let mut agent = builder.start();
    let ledger = Ledger::default();
    let mut client = Client::connect(agent.smtp());
    client.ehlo();
    let mut refused = 0;
    for number in 1..200 {
        let content = Ledger::content(number, 1_000_000);
        client.expect("MAIL FROM:<sender@client.test>", 250);
        client.expect("RCPT TO:<user@sink.test>", 250);
        match client.content(&content, Way::Bdat(usize::MAX)) {
            reply if reply.code == 250 => ledger.accept(number, 1_000_000),
            reply => {
                assert_eq!(reply.code, 452, "{}", reply.text());
                client.expect("RSET", 250);
                refused += 1;
                if refused > 5 {
                    break;
                }
            }
        }
    }
    assert!(ledger.count() > 10 && refused > 5, "{} accepted, {refused} refused", ledger.count());
    agent.kill();
    agent.start();
    sink.behave(|sink| *sink = Behaviour::default());
    // It fails when all was delivered already.
    agent.cli(&["queue", "retry", "--all"]);
    wait_until("all is delivered", Duration::from_secs(60), || ledger.is_delivered(&sink.messages()));
    ledger.balance(&sink.messages()).assert_even();
    agent.wait_empty(SOON);
    let mut client = Client::connect(agent.smtp());
    client.ehlo();
    wait_until("there is room again", SOON, || {
        client.expect("MAIL FROM:<sender@client.test>", 250);
        client.expect("RCPT TO:<user@sink.test>", 250);
        let reply = client.content(&Ledger::content(900, 1000), Way::Bdat(usize::MAX));
        if reply.code != 250 {
            client.expect("RSET", 250);
        }
        reply.code == 250
    });
    drop(agent);
}

/// Finds out whether strace may trace and inject here.
fn can_inject() -> bool {
    let tried = Command::new("strace").args(["-qq", "-e", "trace=none", "true"]).status();
    has_program("strace") && tried.is_ok_and(|status| status.success())
}

#[test]
fn a_failing_sync_is_never_answered_with_250() {
    if !can_inject() {
        return skip("strace is not here or may not trace");
    }
    let sink = Sink::new();
    sink.behave(|sink| sink.rcpt = Arc::new(|_, _| "451 4.2.1 Later".into()));
    let ledger = Ledger::default();
    // The agent's start needs some; then one fails, once.
    let inject = "inject=fdatasync:error=EIO:when=12";
    let builder = Builder::new().route("*", sink.address());
    let trace = builder.path("trace").display().to_string();
    let mut agent =
        builder.wrapped(&["strace", "-D", "-f", "-qq", "-o", &trace, "-e", "trace=fdatasync", "-e", inject]).start();
    let end = Instant::now() + SOON;
    let mut failed = false;
    for number in 1..2000 {
        assert!(Instant::now() < end, "the injected fault was never met: {number} messages");
        let Ok(mut client) = Client::dial(None, agent.smtp()) else { break };
        if client.try_reply().is_err() {
            break;
        }
        client.ehlo();
        let codes = [client.say("MAIL FROM:<sender@client.test>").code, client.say("RCPT TO:<user@sink.test>").code];
        let content = Ledger::content(number, 3000);
        if codes == [250, 250] {
            let reply = client.content(&content, Way::Bdat(usize::MAX));
            if reply.code == 250 {
                assert!(!failed, "a queue whose disk failed takes no more: {}", reply.text());
                ledger.accept(number, 3000);
                continue;
            }
            assert!((400..500).contains(&reply.code), "{}", reply.text());
        }
        let was = std::mem::replace(&mut failed, true);
        if was {
            break;
        }
    }
    assert!(ledger.count() > 0 && failed, "{} accepted", ledger.count());
    let traced = std::fs::read_to_string(&trace).expect("strace wrote it");
    assert!(traced.contains("INJECTED"), "{traced}");
    agent.stop();
    sink.behave(|sink| *sink = Behaviour::default());
    restart_without_faults(agent, &sink, &ledger);
}

/// What was acknowledged before the fault is there after a restart on a healthy disk.
fn restart_without_faults(mut agent: Agent, sink: &Sink, ledger: &Ledger) {
    agent.run_bare();
    agent.start();
    // It fails when all was delivered already.
    agent.cli(&["queue", "retry", "--all"]);
    // The one that failed may have reached the disk: it was never promised either way.
    let delivered = || {
        let mut messages = sink.messages();
        messages.retain(|message| ledger.knows(support::ledger::number_of(&message.content)));
        messages
    };
    wait_until("all is delivered", SOON, || ledger.is_delivered(&delivered()));
    ledger.balance(&delivered()).assert_even();
}
