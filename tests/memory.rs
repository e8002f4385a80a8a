//! Short of memory: new mail is told to come again, what is there goes on, and once there is room mail
//! is taken again. The agent is never killed for lack of it.

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use support::agent::{Agent, Builder};
use support::client::{Client, Way};
use support::net::{SOON, wait_until};
use support::sink::Sink;

const CONTENT: &[u8] = b"Subject: memory\r\n\r\nbody\r\n";
/// Well above what an agent without work has, debug builds included.
const LIMIT: &str = "\"34MB\"";
/// Recipients of an envelope, each of nearly a kilobyte.
const RECIPIENTS: usize = 250;

/// A client that holds a large envelope.
fn envelope(agent: &Agent) -> Option<Client> {
    let mut client = Client::dial(None, agent.smtp()).ok()?;
    if client.try_reply().ok()?.code != 220 {
        return None;
    }
    client.ehlo();
    if client.say("MAIL FROM:<a@client.test>").code != 250 {
        return None;
    }
    let domain = ["d".repeat(60).as_str(), &"e".repeat(60), &"f".repeat(60), "away.test"].join(".");
    let original = "o".repeat(440);
    for n in 0..RECIPIENTS {
        client.send(format!("RCPT TO:<{n:060}@{domain}> ORCPT=rfc822;{original}@old.test\r\n"));
    }
    for _ in 0..RECIPIENTS {
        assert_eq!(client.reply().code, 250);
    }
    Some(client)
}

fn mail_code(agent: &Agent) -> u16 {
    let Ok(mut client) = Client::dial(None, agent.smtp()) else { return 0 };
    match client.try_reply() {
        Ok(reply) if reply.code == 220 => {
            client.ehlo();
            client.say("MAIL FROM:<a@client.test>").code
        }
        Ok(reply) => reply.code,
        Err(_) => 0,
    }
}

#[test]
fn short_of_memory_new_mail_is_put_off_and_taken_again_later() {
    let sink = Sink::new();
    let agent = Builder::new().set("limits.memory", LIMIT).route("*", sink.address()).start();
    let mut early = Client::connect(agent.smtp());
    early.ehlo();
    early.envelope("MAIL FROM:<a@client.test>", &["early@away.test"]);
    let mut holding = Vec::new();
    while holding.len() < 400
        && let Some(client) = envelope(&agent)
    {
        holding.push(client);
    }
    assert!(holding.len() < 400, "{}", agent.ok(&["status"]));
    let status = agent.json(&["status", "--json"]);
    assert_ne!(status["memory"]["state"], "ample", "{status}");
    assert_eq!(status["memory"]["limit_octets"], 34_000_000, "{status}");
    assert!(agent.ok(&["status"]).contains(" refused "), "people see it, too");
    assert_eq!(early.content(CONTENT, Way::Data).code, 250, "what was begun goes on");
    sink.expect(1, SOON);
    drop(holding);
    wait_until("mail is taken again", Duration::from_secs(30), || {
        let mut late = Client::connect(agent.smtp());
        late.ehlo();
        late.say("MAIL FROM:<a@client.test>").code == 250 && {
            late.expect("RCPT TO:<late@away.test>", 250);
            late.content(CONTENT, Way::Data).code == 250
        }
    });
    sink.expect(2, SOON);
    agent.wait_logged("memory is short");
}

#[test]
fn large_messages_have_a_share_of_their_own_and_are_never_refused_for_it() {
    let sink = Sink::new();
    let agent = Builder::new().set("limits.memory", LIMIT).route("*", sink.address()).start();
    let piece = b"x".repeat(200).into_iter().chain(*b"\r\n").collect::<Vec<u8>>().repeat(1000);
    let mut sessions = Vec::new();
    for n in 0..60 {
        let mut client = Client::connect(agent.smtp());
        client.ehlo();
        client.envelope("MAIL FROM:<a@client.test>", &[&format!("r{n}@away.test")]);
        client.expect("DATA", 354);
        client.send(&piece);
        sessions.push(client);
    }
    let status = agent.json(&["status", "--json"]);
    let used = status["memory"]["used_octets"].as_u64().expect("a number");
    assert!(used < 34_000_000, "60 sessions hold 200 kB each: {status}");
    for client in &mut sessions {
        client.send(b"\r\n.\r\n");
        assert_eq!(client.reply().code, 250);
    }
    sink.expect(60, Duration::from_secs(60));
}

/// A control group with a limit, for one agent.
struct Group {
    path: std::path::PathBuf,
    is_v2: bool,
}

impl Group {
    /// Makes one; `None` where this process may not.
    fn new(octets: u64) -> Option<Group> {
        let v1 = std::path::Path::new("/sys/fs/cgroup/memory");
        let is_v2 = !v1.is_dir();
        let parent = if is_v2 { std::path::Path::new("/sys/fs/cgroup") } else { v1 };
        let path = parent.join(format!("postroad-test-{}", std::process::id()));
        std::fs::create_dir(&path).ok()?;
        let group = Group { path, is_v2 };
        let limit = if is_v2 { "memory.max" } else { "memory.limit_in_bytes" };
        std::fs::write(group.path.join(limit), octets.to_string()).ok()?;
        Some(group)
    }

    /// Returns how many processes the kernel has killed in it.
    fn kills(&self) -> u64 {
        let file = if self.is_v2 { "memory.events" } else { "memory.oom_control" };
        let text = std::fs::read_to_string(self.path.join(file)).expect("readable");
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.expect("the kernel counts kills").parse().expect("a number")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // It goes when its last process has gone.
        let _ = std::fs::remove_dir(&self.path);
    }
}

/// Sends large messages until it is told to stop; returns how many were taken and how many put off.
fn push_large(agent: &Agent, stop: &AtomicBool) -> (usize, usize) {
    let content = [b"Subject: large\r\n\r\n".to_vec(), [&[b'x'; 76][..], b"\r\n"].concat().repeat(13_000)].concat();
    let (mut taken, mut put_off) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        let Ok(mut client) = Client::dial(None, agent.smtp()) else { continue };
        if client.try_reply().is_ok_and(|reply| reply.code == 220) {
            client.ehlo();
            if client.say("MAIL FROM:<a@client.test>").code == 250 {
                client.expect("RCPT TO:<b@away.test>", 250);
                match client.say("DATA").code {
                    354 => {
                        client.send([&content[..], b".\r\n"].concat());
                        taken += usize::from(client.reply().code == 250);
                        continue;
                    }
                    code => assert_eq!(code, 451),
                }
            }
        }
        put_off += 1;
        std::thread::sleep(Duration::from_millis(50));
    }
    (taken, put_off)
}

/// The kernel's own judgement: an agent in a group of 96 MiB, whose limit it finds by itself, while some
/// hold all they can and others push.
#[test]
#[ignore = "needs root and control groups"]
fn in_a_small_control_group_the_agent_is_never_killed() {
    let Some(group) = Group::new(96 << 20) else { panic!("a control group cannot be made here: run it as root") };
    let sink = Sink::new();
    let script = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", group.path.display());
    let mut agent = Builder::new()
        .set("limits.sessions", "5000")
        .route("*", sink.address())
        .wrapped(&["sh", "-c", &script, "sh"])
        .start();
    let status = agent.json(&["status", "--json"]);
    assert_eq!(status["memory"]["limit_octets"], 48 << 20, "half of its group: {status}");
    let idle: Vec<Client> = (0..500).filter_map(|_| Client::dial(None, agent.smtp()).ok()).collect();
    let stop = AtomicBool::new(false);
    let (taken, put_off) = std::thread::scope(|scope| {
        let pushers: Vec<_> = (0..16).map(|_| scope.spawn(|| push_large(&agent, &stop))).collect();
        let holders: Vec<_> =
            (0..4).map(|_| scope.spawn(|| (0..200).map_while(|_| envelope(&agent)).collect::<Vec<Client>>())).collect();
        let held: usize = holders.into_iter().map(|holder| holder.join().expect("no panic").len()).sum();
        assert!(held < 800, "nobody was put off: {}", agent.ok(&["status"]));
        stop.store(true, Ordering::Relaxed);
        let sums = pushers.into_iter().map(|pusher| pusher.join().expect("no panic"));
        sums.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    });
    assert!(taken > 0, "{put_off} were put off");
    drop(idle);
    wait_until("mail is taken again", Duration::from_secs(30), || mail_code(&agent) == 250);
    agent.wait_empty(Duration::from_secs(60));
    assert_eq!(sink.count(), taken);
    assert_eq!(group.kills(), 0);
    assert!(agent.stop().success(), "it ran to the end");
}
