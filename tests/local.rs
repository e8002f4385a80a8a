//! Delivery that ends here: Maildirs, and LMTP with one reply for each recipient. Unknown users are
//! refused while the client can still be told.

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use support::agent::{Agent, Builder, make_maildir};
use support::client::{Client, Way};
use support::corpus;
use support::net::{SOON, wait_for};
use support::sink::{Behaviour, Sink};

const CONTENT: &[u8] = b"From: <a@client.test>\r\nSubject: x\r\n\r\nbody\r\n.\r\nend\r\n";

fn connect(agent: &Agent) -> Client {
    let mut client = Client::connect(agent.smtp());
    client.ehlo();
    client
}

/// Returns the files in a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    entries.map(|entry| entry.expect("readable").path()).collect()
}

fn with_maildirs() -> Builder {
    let builder = Builder::new();
    make_maildir(&builder.path("mail/alice"));
    make_maildir(&builder.path("mail/bob"));
    builder.table("local", "domain = \"local.test\"\nmaildir = \"mail/{user}\"")
}

#[test]
fn mail_for_users_lies_in_their_maildirs() {
    let agent = with_maildirs().start();
    let mut client = connect(&agent);
    let to = ["alice@local.test", "BOB@Local.Test", "alice+lists@local.test"];
    assert_eq!(client.deliver("a@client.test", &to, CONTENT, Way::Data).code, 250);
    agent.wait_empty(SOON);
    let alice = files(&agent.path("mail/alice/new"));
    assert_eq!((alice.len(), files(&agent.path("mail/bob/new")).len()), (2, 1), "a copy for each address");
    for user in ["alice", "bob"] {
        assert!(files(&agent.path(&format!("mail/{user}/tmp"))).is_empty());
    }
    let text = std::fs::read_to_string(&alice[0]).expect("ASCII");
    assert!(text.starts_with("Return-Path: <a@client.test>\n"), "{text}");
    assert!(text.contains("\nDelivered-To: alice") && text.contains("\nReceived: from client.test"), "{text}");
    assert!(text.ends_with("\nFrom: <a@client.test>\nSubject: x\n\nbody\n.\nend\n"), "{text}");
    assert!(!text.contains('\r'));
    let mode = std::fs::metadata(&alice[0]).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o077, 0, "mail is for its owner: {mode:o}");
}

#[test]
fn the_corpus_lies_in_the_maildir_as_it_came() {
    let agent = with_maildirs().start();
    let mut samples = corpus::committed();
    samples.extend(corpus::generated());
    samples.retain(|sample| sample.is_sendable() && sample.content.ends_with(b"\r\n"));
    let mut client = connect(&agent);
    for sample in &samples {
        let reply = client.deliver("a@client.test", &["alice@local.test"], &sample.content, Way::Data);
        assert_eq!(reply.code, 250, "{}: {}", sample.name, reply.text());
    }
    agent.wait_empty(SOON);
    let mut stored: Vec<Vec<u8>> = files(&agent.path("mail/alice/new"))
        .iter()
        .map(|path| without_trace(&std::fs::read(path).expect("readable")))
        .collect();
    let mut wanted: Vec<Vec<u8>> = samples.iter().map(|sample| with_lf(&sample.content)).collect();
    stored.sort();
    wanted.sort();
    assert_eq!(stored.len(), wanted.len());
    for (at, (stored, wanted)) in stored.iter().zip(&wanted).enumerate() {
        assert!(stored == wanted, "file {at} differs: {}", String::from_utf8_lossy(&stored[..stored.len().min(300)]));
    }
}

fn with_lf(content: &[u8]) -> Vec<u8> {
    let lines = content.split_inclusive(|octet| *octet == b'\n');
    lines.flat_map(|line| line.strip_suffix(b"\r\n").map_or(line.to_vec(), |line| [line, b"\n"].concat())).collect()
}

/// Takes off Return-Path, Delivered-To and the first Received field.
fn without_trace(content: &[u8]) -> Vec<u8> {
    let mut rest = content;
    for name in ["Return-Path: ", "Delivered-To: ", "Received: "] {
        assert!(rest.starts_with(name.as_bytes()), "{name}: {}", String::from_utf8_lossy(&rest[..rest.len().min(200)]));
        let mut end = 0;
        loop {
            end += memchr::memchr(b'\n', &rest[end..]).expect("a field has an end") + 1;
            if !matches!(rest.get(end), Some(b' ' | b'\t')) {
                break;
            }
        }
        rest = &rest[end..];
    }
    rest.to_vec()
}

#[test]
fn unknown_users_are_refused_at_once() {
    let agent = with_maildirs().start();
    let mut client = connect(&agent);
    client.expect("MAIL FROM:<a@client.test>", 250);
    let names =
        ["carol", "..", "../alice", "alice/../bob", ".", "mail", "alice/new", "\"alice \"", "\"al\\ice/\"", "a%b"];
    for name in names {
        let reply = client.say(&format!("RCPT TO:<{name}@local.test>"));
        assert!((500..600).contains(&reply.code), "{name}: {}", reply.text());
    }
    assert!(client.say("RCPT TO:<carol@local.test>").text().starts_with("550 5.1.1 "));
    client.expect("RCPT TO:<\"alice\"@local.test>", 250);
    make_maildir(&agent.path("mail/carol"));
    client.expect("RCPT TO:<carol@local.test>", 250);
}

#[test]
fn the_postmaster_is_always_reached() {
    let builder = with_maildirs().set("postmaster", "\"bob@local.test\"");
    let agent = builder.start();
    let mut client = connect(&agent);
    for postmaster in ["Postmaster", "postmaster@local.test", "postmaster@mx.test"] {
        assert_eq!(client.deliver("", &[postmaster], CONTENT, Way::Data).code, 250, "{postmaster}");
    }
    agent.wait_empty(SOON);
    assert_eq!(files(&agent.path("mail/bob/new")).len(), 3);
}

#[test]
fn local_and_remote_recipients_share_a_message() {
    let away = Sink::new();
    let agent = with_maildirs().route("*", away.address()).start();
    let mut client = connect(&agent);
    let to = ["alice@local.test", "x@away.test"];
    assert_eq!(client.deliver("a@client.test", &to, CONTENT, Way::Data).code, 250);
    assert_eq!(away.expect(1, SOON)[0].recipients, ["x@away.test"]);
    agent.wait_empty(SOON);
    assert_eq!(files(&agent.path("mail/alice/new")).len(), 1);
}

#[test]
fn a_maildir_that_cannot_be_written_keeps_the_mail() {
    let agent = with_maildirs().start();
    std::fs::rename(agent.path("mail/alice/new"), agent.path("kept")).expect("renamed");
    std::os::unix::fs::symlink("/tmp", agent.path("mail/alice/new")).expect("linked");
    let mut client = connect(&agent);
    assert_eq!(client.deliver("a@client.test", &["alice@local.test"], CONTENT, Way::Data).code, 250);
    agent.wait_logged(" deferred ");
    assert_eq!(agent.queued(), 1, "a symbolic link is not followed");
    std::fs::remove_file(agent.path("mail/alice/new")).expect("removed");
    std::fs::rename(agent.path("kept"), agent.path("mail/alice/new")).expect("renamed");
    agent.wait_empty(SOON);
    assert_eq!(files(&agent.path("mail/alice/new")).len(), 1);
}

#[test]
fn lmtp_has_one_reply_for_each_recipient() {
    let home = Sink::new();
    let builder = Builder::new();
    let socket = builder.path("lmtp");
    let unix = Sink::start_unix(&socket, Behaviour { lmtp: true, chunking: false, ..Behaviour::default() });
    unix.behave(|sink| {
        sink.content = Arc::new(|path, asked| match path.split('@').next() {
            Some("full") => "552 5.2.2 Over quota".into(),
            Some("busy") if asked == 0 => "451 4.2.0 Locked".into(),
            _ => "250 2.0.0 Saved".into(),
        });
    });
    let agent = builder
        .table("local", &format!("domain = \"local.test\"\nlmtp = \"unix:{}\"\nrecipients = \"any\"", socket.display()))
        .route("*", home.address())
        .start();
    let mut client = connect(&agent);
    let to = ["good@local.test", "full@local.test", "busy@local.test"];
    assert_eq!(client.deliver("a@client.test", &to, CONTENT, Way::Data).code, 250);
    let notice = &home.expect(1, SOON)[0];
    let text = String::from_utf8_lossy(&notice.content).into_owned();
    assert!(text.contains("full@local.test") && text.contains("5.2.2") && !text.contains("busy@"), "{text}");
    agent.wait_empty(SOON);
    let recorded = unix.recorded();
    assert_eq!(recorded.len(), 2, "only the busy one is tried again");
    assert_eq!(recorded[1].recipients, ["busy@local.test"]);
    assert_eq!(recorded[0].content, recorded[1].content);
    assert!(recorded[0].content.ends_with(CONTENT), "what the LMTP server gets is the message");
    assert_eq!(unix.complaints(), [""; 0]);
}

#[test]
fn a_list_of_recipients_is_kept_at_the_door() {
    let lmtp = Sink::start(Behaviour { lmtp: true, ..Behaviour::default() });
    let lines = format!("domain = \"local.test\"\nlmtp = \"{}\"\nrecipients = [\"alice\", \"bob\"]", lmtp.address());
    let agent = Builder::new().table("local", &lines).start();
    let mut client = connect(&agent);
    client.expect("MAIL FROM:<a@client.test>", 250);
    client.expect("RCPT TO:<carol@local.test>", 550);
    client.expect("RCPT TO:<Alice@local.test>", 250);
    client.expect("RCPT TO:<bob+tag@local.test>", 250);
    assert_eq!(client.content(CONTENT, Way::Data).code, 250);
    let messages = wait_for("LMTP delivery", SOON, || Some(lmtp.messages()).filter(|messages| !messages.is_empty()));
    assert_eq!(messages[0].recipients, ["Alice@local.test", "bob+tag@local.test"]);
    agent.wait_empty(SOON);
}
