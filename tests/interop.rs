//! Real programs around the agent: clients that submit through it, and Postfix, Exim, OpenSMTPD and Dovecot
//! as neighbours in both directions. What arrives is compared with what was sent.
//!
//! Needs root and the packages that `.ci/run` installs, so it runs only when asked:
//! `cargo test --test interop -- --ignored --test-threads=1`. Every peer runs in a directory of its
//! own, on loopback addresses of its own, and is ended by its process id.

#[path = "interop/daemon.rs"]
mod daemon;
#[path = "interop/peers.rs"]
mod peers;
#[path = "interop/recorder.rs"]
mod recorder;
#[path = "interop/strangers.rs"]
mod strangers;
mod support;

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use daemon::{Place, program};
use support::agent::{Agent, Builder, make_maildir};
use support::client::{Client, Way};
use support::corpus::{self, Sample};
use support::net::{SOON, wait_until};
use support::sink::{Behaviour, Message, Sink, without_received};
use support::users;

const TEXT: &str = "From: Alice <alice@local.test>\nTo: <x@away.test>\nSubject: interop\nDate: Mon, 1 Jan 2024 00:00:00 \
                    +0000\nMessage-ID: <interop@local.test>\n\nA line\n.\n..and dots\nlast line\n";

/// An agent that alice may submit through.
fn submission(sink: &Sink) -> Agent {
    let builder = Builder::new().submission().set("users.file", "\"users\"");
    std::fs::write(builder.path("users"), users::line("alice", "secret 1", "alice@local.test")).expect("writable");
    builder.set("relay.networks", "[]").route("*", sink.address()).start()
}

/// Runs a client to its end, with this standard input.
#[track_caller]
fn run(command: &mut Command, input: &str) {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}; .ci/run installs what is needed"));
    let mut stdin = child.stdin.take().expect("it is piped");
    // A client that does not read it is fine.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().expect("it is a child");
    let texts = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success(), "{command:?}: {}\n{}\n{}", output.status, texts[0], texts[1]);
}

fn crlf(text: &str) -> String {
    text.replace('\n', "\r\n")
}

#[track_caller]
fn assert_submitted(message: &Message, text: &str) {
    assert_eq!(message.recipients, ["x@away.test"]);
    assert_eq!(String::from_utf8_lossy(message.relayed()), crlf(text));
    let trace = String::from_utf8_lossy(&message.content).into_owned();
    assert!(trace.contains("with ESMTPSA"), "{trace}");
}

#[test]
#[ignore = "needs swaks"]
fn swaks_submits() {
    let sink = Sink::new();
    let agent = submission(&sink);
    let place = Place::new();
    let file = place.path("message");
    std::fs::write(&file, TEXT).expect("writable");
    let swaks = |words: &[&str]| {
        let mut command = Command::new(program("swaks"));
        command.args(["--helo", "client.test", "--from", "alice@local.test", "--to", "x@away.test", "--data"]);
        command.arg(format!("@{}", file.display())).args(words);
        command
    };
    let ip = agent.smtp().ip().to_string();
    let auth = |mechanism: &'static str| ["--auth", mechanism, "--auth-user", "alice", "--auth-password", "secret 1"];
    run(swaks(&["--server", &ip, "--port", "2587", "--tls"]).args(auth("PLAIN")), "");
    run(swaks(&["--server", &ip, "--port", "2465", "--tls-on-connect"]).args(auth("LOGIN")), "");
    run(swaks(&["--server", &ip, "--port", "2587", "--tls", "--pipeline"]).args(auth("PLAIN")), "");
    let refused = swaks(&["--server", &ip, "--port", "2587", "--tls"]).output().expect("swaks runs");
    assert!(!refused.status.success(), "without a login nothing is taken");
    let messages = sink.expect(3, SOON);
    // swaks ends content with a line end of its own.
    messages.iter().for_each(|message| {
        let text = String::from_utf8_lossy(message.relayed()).into_owned();
        assert_eq!(text.trim_end(), crlf(TEXT).trim_end());
    });
    assert_eq!(sink.count(), 3);
}

#[test]
#[ignore = "needs swaks"]
fn swaks_relays_from_a_network_that_may() {
    let sink = Sink::new();
    let agent = Builder::new().route("*", sink.address()).start();
    let ip = agent.smtp().ip().to_string();
    for tls in [&[][..], &["--tls"]] {
        let mut command = Command::new(program("swaks"));
        command.args(["--server", &ip, "--port", "2525", "--helo", "client.test", "--to", "x@away.test"]).args(tls);
        run(command.args(["--from", "alice@local.test", "--ehlo", "client.test"]), "");
    }
    sink.expect(2, SOON);
}

#[test]
#[ignore = "needs msmtp"]
fn msmtp_submits() {
    let sink = Sink::new();
    let agent = submission(&sink);
    for (port, starttls) in [("2587", "on"), ("2465", "off")] {
        for mechanism in ["plain", "login"] {
            let mut command = Command::new(program("msmtp"));
            command
                .arg("--file=/dev/null")
                .arg(format!("--host={}", agent.smtp().ip()))
                .arg(format!("--port={port}"))
                .arg(format!("--tls-starttls={starttls}"))
                .arg(format!("--auth={mechanism}"))
                .args(["--tls=on", "--tls-certcheck=off", "--user=alice", "--passwordeval=echo 'secret 1'"])
                .args(["--from=alice@local.test", "--", "x@away.test"]);
            run(&mut command, TEXT);
        }
    }
    let messages = sink.expect(4, SOON);
    messages.iter().for_each(|message| assert_submitted(message, TEXT));
}

const SMTPLIB: &str = r#"
import smtplib, ssl, sys
from email.message import EmailMessage
host, text = sys.argv[1], sys.stdin.read()
context = ssl._create_unverified_context()
with smtplib.SMTP(host, 2587, local_hostname="client.test") as smtp:
    smtp.starttls(context=context)
    smtp.login("alice", "secret 1")
    assert smtp.sendmail("alice@local.test", ["x@away.test"], text) == {}
    refused = smtp.mail("bob@local.test")
    assert refused[0] == 550, refused
with smtplib.SMTP_SSL(host, 2465, local_hostname="client.test", context=context) as smtp:
    smtp.login("alice", "secret 1")
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "alice@local.test", "x@away.test", "grüße"
    message.set_content("Größe\n")
    message.add_attachment(bytes(range(256)) * 400, maintype="application", subtype="octet-stream")
    smtp.send_message(message)
    message.replace_header("To", "用户@away.test")
    smtp.send_message(message)
"#;

#[test]
#[ignore = "needs python3"]
fn smtplib_submits() {
    let sink = Sink::new();
    let agent = submission(&sink);
    let ip = agent.smtp().ip().to_string();
    run(Command::new(program("python3")).args(["-c", SMTPLIB, &ip]), TEXT);
    let messages = sink.expect(3, SOON);
    let is_first = |message: &&Message| memchr::memmem::find(&message.content, b"Subject: interop").is_some();
    assert_submitted(messages.iter().find(is_first).expect("it came"), TEXT);
    let international = messages.iter().find(|message| message.recipients == ["用户@away.test"]).expect("it came");
    assert!(international.mail_parameters.contains("SMTPUTF8"), "{}", international.mail_parameters);
}

/// Messages that a neighbour may not legitimately change: a well-formed header section, lines
/// that are not too long, something in the body.
fn proper() -> Vec<Sample> {
    let is_field = |line: &str| {
        let name = line.split(':').next().unwrap_or_default();
        line.starts_with([' ', '\t'])
            || (name.len() < line.len() && !name.is_empty() && name.bytes().all(|octet| octet.is_ascii_graphic()))
    };
    let mut samples = corpus::committed();
    samples.extend(corpus::generated());
    samples.retain(|sample| {
        let Some(end) = memchr::memmem::find(&sample.content, b"\r\n\r\n") else { return false };
        let Ok(header) = std::str::from_utf8(&sample.content[..end]) else { return false };
        let mut fields = header.split("\r\n");
        let begins_well = !header.starts_with([' ', '\t']);
        let short = sample.content.split(|octet| *octet == b'\n').all(|line| line.len() <= 999);
        // Every neighbour has an opinion about these fields, and about a header of 64 KB.
        let touched = ["return-path:", "bcc:", "content-length:", "resent-bcc:", "x-ledger:"];
        let lower = header.to_ascii_lowercase();
        let opinion = touched.iter().any(|name| lower.split("\r\n").any(|line| line.starts_with(name)));
        sample.is_sendable()
            && sample.content.ends_with(b"\r\n")
            && fields.all(is_field)
            && header.is_ascii()
            && header.len() < 30_000
            && (begins_well && short && !opinion)
    });
    assert!(samples.len() > 50, "only {} messages are proper", samples.len());
    samples
}

fn send_all(to: std::net::SocketAddr, domain: &str, samples: &[Sample]) {
    let mut client = Client::connect(to);
    client.ehlo();
    for (index, sample) in samples.iter().enumerate() {
        let body = if sample.content.is_ascii() { "" } else { " BODY=8BITMIME" };
        client.envelope(&format!("MAIL FROM:<s{index}@client.test>{body}"), &[&format!("user@{domain}")]);
        let reply = client.content(&sample.content, Way::Data);
        assert_eq!(reply.code, 250, "{}: {}", sample.name, reply.text());
    }
    client.quit();
}

/// Compares what came through `hops` hosts with what was sent.
fn compare(messages: &[Message], samples: &[Sample], hops: usize) {
    assert_eq!(messages.len(), samples.len());
    for (index, sample) in samples.iter().enumerate() {
        let path = format!("s{index}@client.test");
        let message = messages.iter().find(|message| message.reverse_path == path).expect(&sample.name);
        let content = (0..hops).fold(message.content.as_slice(), |content, _| without_received(content));
        let shown = || String::from_utf8_lossy(&content[..content.len().min(2000)]).into_owned();
        assert!(content == sample.content, "{} came as\n{}", sample.name, shown());
    }
}

/// Returns whether every header section has the text, however long the names of the hosts made its
/// fields: a fold may stand wherever a space does (RFC 5322 §2.2.3).
fn has(messages: &[Message], text: &str) -> bool {
    messages.iter().all(|message| {
        let header = String::from_utf8_lossy(&message.content[..1000.min(message.content.len())]).into_owned();
        header.replace("\r\n\t", " ").replace("\r\n ", " ").contains(text)
    })
}

/// Sends through a neighbour into the agent, and through the agent into the neighbour, under TLS where that offers it.
fn both_ways(start: impl FnOnce(&Place, &peers::Neighbours) -> daemon::Daemon, samples: &[Sample], offers_tls: bool) {
    let (sink, back) = (Sink::new(), Sink::new());
    let place = Place::new();
    let peer = std::net::SocketAddr::new(support::net::own_address(), 2526);
    let agent = Builder::new()
        .set("limits.hops", "60")
        .route("forth.test", sink.address())
        .route_with("back.test", peer, if offers_tls { "tls = \"required\"" } else { "tls = \"never\"" })
        .start();
    let neighbours = peers::Neighbours { address: peer, agent: agent.smtp(), back: back.address(), tls: true };
    let daemon = start(&place, &neighbours);
    daemon.wait_listening(peer);
    send_all(peer, "forth.test", samples);
    send_all(agent.smtp(), "back.test", samples);
    let limit = Duration::from_secs(120);
    let forth = sink.expect(samples.len(), limit);
    let came_back = back.expect(samples.len(), limit);
    agent.wait_empty(SOON);
    compare(&forth, samples, 2);
    compare(&came_back, samples, 2);
    assert!(has(&forth, "with ESMTPS ("), "the neighbour used TLS towards the agent");
    assert_eq!((sink.count(), back.count()), (samples.len(), samples.len()), "nothing came twice");
}

#[test]
#[ignore = "needs postfix and root"]
fn postfix_relays_into_the_agent_and_receives_from_it() {
    both_ways(peers::postfix, &proper(), true);
}

#[test]
#[ignore = "needs exim4 and root"]
fn exim_relays_into_the_agent_and_receives_from_it() {
    both_ways(peers::exim, &proper(), true);
}

#[test]
#[ignore = "needs opensmtpd and root"]
fn opensmtpd_relays_into_the_agent_and_receives_from_it() {
    // It writes its own name behind authors that have no host.
    let is_whole = |line: &[u8]| !line.to_ascii_lowercase().starts_with(b"from:") || line.contains(&b'@');
    let mut samples = proper();
    samples.retain(|sample| sample.content.split(|octet| *octet == b'\n').all(is_whole));
    both_ways(peers::opensmtpd, &samples, false);
}

#[test]
#[ignore = "needs postfix and root"]
fn postfix_sees_nothing_of_the_mesh() {
    strangers::meets_a_member(peers::postfix, true);
}

#[test]
#[ignore = "needs exim4 and root"]
fn exim_sees_nothing_of_the_mesh() {
    strangers::meets_a_member(peers::exim, true);
}

#[test]
#[ignore = "needs opensmtpd and root"]
fn opensmtpd_sees_nothing_of_the_mesh() {
    strangers::meets_a_member(peers::opensmtpd, false);
}

/// A refusal by a neighbour becomes a notification, a refusal by the agent the neighbour's.
#[test]
#[ignore = "needs postfix and root"]
fn refusals_are_understood_on_both_sides() {
    let (sink, back) = (Sink::new(), Sink::new());
    let place = Place::new();
    let peer = std::net::SocketAddr::new(support::net::own_address(), 2526);
    let builder = Builder::new();
    make_maildir(&builder.path("mail/alice"));
    let agent = builder
        .table("local", "domain = \"forth.test\"\nmaildir = \"mail/{user}\"")
        .route("client.test", sink.address())
        .route("back.test", peer)
        .start();
    back.behave(|sink| sink.rcpt = std::sync::Arc::new(|_, _| "550 5.1.1 No such user".into()));
    let neighbours = peers::Neighbours { address: peer, agent: agent.smtp(), back: back.address(), tls: true };
    let daemon = peers::postfix(&place, &neighbours);
    daemon.wait_listening(peer);
    let content = b"Subject: refusals\r\n\r\nbody\r\n";
    let mut client = Client::connect(peer);
    client.ehlo();
    client.deliver("a@client.test", &["nobody@forth.test", "alice@forth.test"], content, Way::Data);
    let notice = &sink.expect(1, Duration::from_secs(60))[0];
    let text = String::from_utf8_lossy(&notice.content).into_owned();
    assert!(text.contains("nobody@forth.test") && text.contains("5.1.1"), "{text}");
    wait_until("the other recipient has it", SOON, || list(&agent.path("mail/alice/new")).len() == 1);
    let mut client = Client::connect(agent.smtp());
    client.ehlo();
    client.deliver("b@client.test", &["x@[192.0.2.1]", "y@back.test"], content, Way::Data);
    agent.ok(&["queue", "remove", "--to", "x@*", "--yes"]);
    sink.expect(2, Duration::from_secs(60));
}

fn list(directory: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(directory).into_iter().flatten().map(|entry| entry.expect("readable").path()).collect()
}

#[test]
#[ignore = "needs dovecot and root"]
fn dovecot_takes_mail_by_lmtp() {
    let home = Sink::start(Behaviour::default());
    let place = Place::new();
    let daemon = peers::dovecot(&place);
    let socket = place.path("lmtp");
    wait_until("Dovecot listens", SOON, || daemon.is_alive() && socket.exists());
    let lines = format!("domain = \"local.test\"\nlmtp = \"unix:{}\"\nrecipients = \"any\"", socket.display());
    let agent = Builder::new().table("local", &lines).route("*", home.address()).start();
    let samples = proper();
    let mut client = Client::connect(agent.smtp());
    client.ehlo();
    for sample in &samples {
        let reply = client.deliver("a@client.test", &["alice@local.test"], &sample.content, Way::Data);
        assert_eq!(reply.code, 250, "{}", sample.name);
    }
    let to = ["alice@local.test", "nobody@local.test"];
    client.deliver("a@client.test", &to, b"Subject: two\r\n\r\nbody\r\n", Way::Data);
    agent.wait_empty(Duration::from_secs(60));
    let notice = String::from_utf8_lossy(&home.expect(1, SOON)[0].content).into_owned();
    assert!(notice.contains("nobody@local.test") && notice.contains("5.1.1"), "{notice}");
    let stored = list(&place.path("mail/alice/new"));
    assert_eq!(stored.len(), samples.len() + 1);
    let stored: Vec<Vec<u8>> = stored.iter().map(|path| std::fs::read(path).expect("readable")).collect();
    for sample in &samples {
        let wanted = sample.content.split(|octet| *octet == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        let wanted = wanted.collect::<Vec<_>>().join(&b'\n');
        assert!(stored.iter().any(|stored| stored.ends_with(&wanted)), "{} is not in the mailbox", sample.name);
    }
}

/// The customer that everybody has: CRAM-MD5, through a plugin for TLS since its own stalls between two
/// lines of one record (docs/operations.md).
#[test]
#[ignore = "needs fetchmail and openssl"]
fn fetchmail_fetches_what_is_kept_for_it() {
    let mailboxes = Sink::new();
    let builder = Builder::new().submission().set("relay.networks", "[]");
    std::fs::write(builder.path("secret"), "a secret\n").expect("writable");
    let agent =
        builder.table("turn", "user = \"branch\"\ndomains = [\"branch.test\"]\nsecret_file = \"secret\"").start();
    let mut client = Client::connect(agent.smtp());
    client.ehlo();
    // Others would get a line end from DATA.
    let is_whole = |sample: &Sample| sample.is_sendable() && sample.content.ends_with(b"\r\n");
    let samples: Vec<Sample> = corpus::committed().into_iter().filter(is_whole).take(20).collect();
    for sample in &samples {
        let reply = client.deliver("a@away.test", &["user@branch.test"], &sample.content, Way::Data);
        assert_eq!(reply.code, 250, "{}: {}", sample.name, reply.text());
    }
    let place = Place::new();
    let (provider, home) = (agent.smtp().ip(), mailboxes.address());
    let fetch = |secret: &str| {
        let rc = format!(
            "poll {provider} with protocol odmr, plugin \"openssl s_client -quiet -connect %h:2465\":\n user \"branch\" \
             password \"{secret}\" is * here fetchdomains branch.test smtphost {}/{}\n",
            home.ip(),
            home.port()
        );
        let file = place.path("fetchmailrc");
        std::fs::write(&file, rc).expect("writable");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("our own file");
        let mut command = Command::new(program("fetchmail"));
        command.env("HOME", file.parent().expect("a directory")).args(["--nodetach", "-N", "-f"]).arg(&file);
        command
    };
    assert!(!fetch("wrong").output().expect("fetchmail runs").status.success());
    run(&mut fetch("a secret"), "");
    agent.wait_empty(SOON);
    let messages = mailboxes.expect(samples.len(), SOON);
    let mut got: Vec<&[u8]> = messages.iter().map(Message::relayed).collect();
    let mut want: Vec<&[u8]> = samples.iter().map(|sample| &sample.content[..]).collect();
    got.sort_unstable();
    want.sort_unstable();
    assert!(got == want, "what arrived is not what was sent");
    run(&mut fetch("a secret"), "");
    assert_eq!(mailboxes.count(), samples.len(), "nothing is sent twice");
}
