//! A neighbour that is in no mesh beside a member of one: mail of both members passes, both ways, and nothing
//! that the two hosts say to each other tells of the mesh.

use std::net::SocketAddr;

use crate::daemon::{Daemon, Place};
use crate::peers::Neighbours;
use crate::recorder::{Recorder, Transcript};
use crate::support::client::{Client, Way};
use crate::support::mesh::{host, join, mailbox, status, wait_members};
use crate::support::net::{SOON, own_address, wait_until};
use crate::support::sink::{Message, Sink};

/// What members say to each other alone.
const MESH_WORDS: [&str; 4] = ["XMESH", "XLINK", "XKEEP", ".MESH.ALT"];
/// The parameters that anybody may say (RFC 1870, 3461, 4954, 6152, 6531).
const PARAMETERS: [&str; 8] = ["SIZE", "BODY", "SMTPUTF8", "AUTH", "RET", "ENVID", "NOTIFY", "ORCPT"];
/// How many characters of its id name a node where few words are wanted (`mesh::passage`).
const SHORT_ID_CHARS: usize = 16;

/// Lets a neighbour relay into a mesh of two by one of its members, and that member send out through the neighbour;
/// at last under TLS, of which the beginning can be read, where the neighbour offers it.
pub fn meets_a_member(start: impl FnOnce(&Place, &Neighbours) -> Daemon, offers_tls: bool) {
    let back = Sink::new();
    let place = Place::new();
    let peer = SocketAddr::new(own_address(), 2526);
    let out = Recorder::start(peer);
    let member = host("a").set("mesh.egress", "true").route("back.test", out.address()).start();
    let other = host("b").start();
    join(&member, &other, "b.example");
    wait_members(&[&member, &other], SOON, |record| record["label"] != "");
    let into = Recorder::start(member.smtp());
    let neighbours = Neighbours { address: peer, agent: into.address(), back: back.address(), tls: false };
    let daemon = start(&place, &neighbours);
    daemon.wait_listening(peer);

    send(peer, &["user@a.example"]);
    send(peer, &["user@b.example"]);
    wait_until("the members have their mail", 3 * SOON, || mailbox(&member).len() == 1 && mailbox(&other).len() == 1);
    assert!(passed_the_mesh(&mailbox(&other)[0]), "{}", mailbox(&other)[0]);
    send(member.smtp(), &["one@back.test"]);
    send(other.smtp(), &["two@back.test"]);
    back.expect(2, 3 * SOON);
    if offers_tls {
        member.edit_config("tls = \"never\"", "tls = \"required\"");
        member.ok(&["reload"]);
    }
    send(other.smtp(), &["three@back.test"]);
    let came = back.expect(3, 3 * SOON);
    for (user, by_mesh) in [("one", false), ("two", true), ("three", true)] {
        let path = format!("{user}@back.test");
        let message: &Message = came.iter().find(|message| message.recipients == [&*path]).expect(user);
        assert_eq!(passed_the_mesh(&String::from_utf8_lossy(&message.content)), by_mesh, "{user}");
    }

    let (into, out) = (into.transcripts(), out.transcripts());
    // More often when something was tried again.
    assert!(spoken(&into, "RCPT") >= 2 && spoken(&out, "RCPT") >= if offers_tls { 2 } else { 3 }, "all was heard");
    assert_eq!([&into, &out].map(|heard| spoken(heard, "STARTTLS") > 0), [false, offers_tls]);
    let nodes = [&member, &other].map(|agent| status(agent)["node"].as_str().expect("an id").to_owned());
    into.iter().chain(&out).for_each(|transcript| assert_silent(transcript, &nodes));
}

fn send(to: SocketAddr, recipients: &[&str]) {
    let mut client = Client::connect(to);
    client.ehlo();
    let content = b"Subject: strangers\r\nMessage-ID: <strangers@client.test>\r\n\r\nbody\r\n";
    let reply = client.deliver("sender@client.test", recipients, content, Way::Data);
    assert_eq!(reply.code, 250, "{}", reply.text());
    client.quit();
}

/// Returns whether a member that had it from another wrote so into its Received field.
fn passed_the_mesh(content: &str) -> bool {
    content.contains("(mid ")
}

/// Returns how many commands with this verb were said in the clear.
fn spoken(transcripts: &[Transcript], verb: &str) -> usize {
    let commands = transcripts.iter().flat_map(|transcript| lines(&transcript.client));
    commands.filter(|line| line.split([' ', ':']).next().is_some_and(|word| word == verb)).count()
}

fn lines(octets: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(octets).to_ascii_uppercase();
    // Behind STARTTLS stands what no terminal should see.
    text.split("\r\n").map(|line| line.escape_debug().to_string()).collect()
}

/// Checks that neither side said anything of the mesh.
fn assert_silent(transcript: &Transcript, nodes: &[String]) {
    let (client, server) = (lines(&transcript.client), lines(&transcript.server));
    let shown = format!("C: {}\nS: {}", client.join("\nC: "), server.join("\nS: "));
    let words = MESH_WORDS.map(str::to_owned).into_iter();
    for word in words.chain(nodes.iter().map(|node| node[..SHORT_ID_CHARS].to_ascii_uppercase())) {
        assert!(!shown.contains(&word), "{word} was said:\n{shown}");
    }
    let private = server.iter().find(|line| line.starts_with("250-X") || line.starts_with("250 X"));
    assert_eq!(private, None, "an extension of no RFC:\n{shown}");
    for command in client.iter().filter(|line| line.starts_with("MAIL FROM:") || line.starts_with("RCPT TO:")) {
        let (_, parameters) = command.split_once('>').expect("a path ends");
        let names = parameters.split_whitespace().map(|parameter| parameter.split('=').next().unwrap_or_default());
        names.for_each(|name| assert!(PARAMETERS.contains(&name), "{name} in {command:?}"));
    }
}
