//! `postroad send` against an agent: what arrives, and what is said when it does not.

mod support;

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use support::agent::{Agent, Builder, make_maildir};
use support::net::SOON;
use support::users;

fn agent() -> Agent {
    let builder = Builder::new().submission();
    make_maildir(&builder.path("mail/alice"));
    let users = users::line("alice@local.test", "secret of alice", "alice@local.test");
    std::fs::write(builder.path("users"), users).expect("writable");
    let builder = builder.set("users.file", "\"users\"");
    builder.table("local", "domain = \"local.test\"\nmaildir = \"mail/{user}\"").start()
}

fn send(words: &[&str], password: &str, stdin: &[u8]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_postroad"));
    command.arg("send").args(words).env("POSTROAD_PASSWORD", password);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    // One that has failed already reads nothing.
    let _ = child.stdin.take().expect("a pipe").write_all(stdin);
    child.wait_with_output().expect("it ends")
}

/// Returns the only file in alice's mailbox.
fn arrived(agent: &Agent) -> String {
    agent.wait_empty(SOON);
    let mut files = std::fs::read_dir(agent.path("mail/alice/new")).expect("readable");
    let file = files.next().expect("a message").expect("readable").path();
    assert!(files.next().is_none(), "one message only");
    std::fs::read_to_string(file).expect("UTF-8")
}

fn assert_fails(output: &Output, code: i32, text: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(code) && said.contains(text), "{:?}: {said}", output.status);
}

#[test]
fn a_text_with_an_attachment_arrives_after_a_login() {
    let agent = agent();
    let file = agent.path("numbers.csv");
    std::fs::write(&file, "a;b\n1;2\n").expect("writable");
    let (server, file) = (agent.submission().to_string(), file.display().to_string());
    let words = ["--server", &server, "--user", "alice@local.test", "--to", "alice@local.test", "--attach", &file];
    let output = send(&[&words[..], &["--subject", "Grüße"]].concat(), "secret of alice", b"two lines\n.\n");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("250 2.0.0 Accepted as "));
    let text = arrived(&agent);
    let message = mail_parser::MessageParser::default().parse(&text).expect("a message");
    assert_eq!(message.subject(), Some("Grüße"));
    assert_eq!(message.body_text(0).as_deref().map(str::trim_end), Some("two lines\n."));
    assert_eq!(message.attachment(0).map(|part| part.contents()), Some(&b"a;b\n1;2\n"[..]));
    assert!(text.contains("with ESMTPSA"), "under TLS and with a login: {text}");
}

#[test]
fn a_whole_message_arrives_as_it_is() {
    let agent = agent();
    let server = agent.smtp().to_string();
    let raw = "From: a@x.test\nSubject: raw\n\n.\n..\nümläut\n\n";
    let output =
        send(&["--server", &server, "--from", "a@x.test", "--to", "alice@local.test", "--raw"], "", raw.as_bytes());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = arrived(&agent);
    assert!(text.ends_with(&format!("+0000\n{raw}")), "{text}");
}

#[test]
fn a_certificate_is_checked_against_the_name_and_whoever_vouches_for_it() {
    let agent = agent();
    let certificate = agent.path("state/tls/certificate.pem").display().to_string();
    for (server, tls) in [(agent.submission(), "starttls"), (agent.submissions(), "implicit")] {
        let server = server.to_string();
        let words = ["--server", &server, "--tls", tls, "--user", "alice@local.test", "--to", "alice@local.test"];
        let check = |name| [&words[..], &["--ca", &certificate, "--tls-name", name, "--body", "x"]].concat();
        assert_fails(&send(&check("other.test"), "secret of alice", b""), 1, "for another name");
        let output = send(&check("mx.test"), "secret of alice", b"");
        assert!(output.status.success(), "{tls}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn every_failure_says_where_it_happened() {
    let agent = agent();
    let (server, submission) = (agent.smtp().to_string(), agent.submission().to_string());
    let to = |address: &'static str| ["--from", "a@x.test", "--body", "x", "--to", address];
    let at = |server: &'static str| ["--server", server];
    let server = ["--server", &*server];
    let unknown = send(&[&server[..], &to("nobody@local.test")].concat(), "", b"");
    assert_fails(&unknown, 1, "RCPT TO:<nobody@local.test>: 550 5.1.1");
    let partly = send(&[&server[..], &to("nobody@local.test"), &["--to", "alice@local.test"]].concat(), "", b"");
    assert_fails(&partly, 1, "1 of 2 recipients refused");
    arrived(&agent);
    let login = ["--server", &submission, "--user", "alice@local.test"];
    assert_fails(&send(&[&login[..], &to("alice@local.test")].concat(), "wrong", b""), 1, "AUTH: 535");
    let clear = [&login[..], &to("alice@local.test"), &["--tls", "never"]].concat();
    assert_fails(&send(&clear, "secret of alice", b""), 1, "the password stays here");
    assert_fails(&send(&[&at("127.0.0.1:1")[..], &to("alice@local.test")].concat(), "", b""), 69, "cannot connect");
}

#[test]
fn what_is_asked_of_the_server_is_said_with_mail() {
    let agent = agent();
    let server = agent.submission().to_string();
    let words = ["--server", &server, "--user", "alice@local.test", "--to", "alice@local.test", "--body", "x"];
    let wishes = ["--priority", "-3", "--deliver-by", "3600;R", "--hold-for", "1"];
    let output = send(&[&words[..], &wishes].concat(), "secret of alice", b"");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let queued = agent.ok(&["queue", "list", "--json"]);
    for field in ["\"priority\":-3", "\"deliver_by\":\"20", "\"release\":\"20"] {
        assert!(queued.contains(field), "no {field} in {queued}");
    }
    assert!(arrived(&agent).replace("\n ", " ").contains(" PRIORITY -3;"));
    let relay = agent.smtp().to_string();
    let unknown = ["--server", &relay, "--from", "a@x.test", "--to", "alice@local.test", "--body", "x"];
    let until = ["--hold-until", "2027-01-15T09:00:00+01:00"];
    assert_fails(&send(&[&unknown[..], &until].concat(), "", b""), 1, "MAIL FROM:<a@x.test>: 555");
    assert_fails(&send(&[&words[..], &["--deliver-by", "0;R"]].concat(), "", b""), 2, "above 0");
}
