//! Hosts that become a mesh, for the tests of what its members do for one another.

use std::time::Duration;

use postroad::tls::{NodeTls, node};
use postroad_mesh::{NodeId, SecretKey};
use serde_json::Value;

use super::agent::{Agent, Builder, make_maildir};
use super::client::{Client, Way};
use super::net::wait_until;

/// A host that members reach at its own address.
pub fn named(name: &str) -> Builder {
    let builder = Builder::new();
    let ip = builder.ip();
    builder
        .set("hostname", &format!("\"{name}.test\""))
        .set("mesh.label", &format!("{name:?}"))
        .set("mesh.addresses", &format!("[\"{ip}:2525\"]"))
}

/// The same with a domain and one mailbox of its own: user@NAME.example.
pub fn host(name: &str) -> Builder {
    let builder = named(name);
    let mail = builder.path("mail");
    make_maildir(&mail.join("user"));
    builder.table("local", &format!("domain = \"{name}.example\"\nmaildir = \"{}/{{user}}\"", mail.display()))
}

/// Hands a short message over, in one chunk.
#[track_caller]
pub fn send(agent: &Agent, to: &str) {
    Client::hand_over(
        agent.smtp(),
        "sender@client.test",
        &[to],
        b"Subject: one\r\n\r\nhello\r\n",
        Way::Bdat(usize::MAX),
    );
}

/// Returns what stands in the mailbox of such a host's only user.
pub fn mailbox(agent: &Agent) -> Vec<String> {
    let new = std::fs::read_dir(agent.path("mail/user/new")).expect("a Maildir");
    new.map(|entry| std::fs::read_to_string(entry.expect("an entry").path()).expect("text")).collect()
}

/// Lets a host join with a domain.
pub fn join(founder: &Agent, agent: &Agent, serves: &str) {
    join_with(founder, agent, &["--serves", serves]);
}

/// Lets a host join by an invitation with these options.
pub fn join_with(founder: &Agent, agent: &Agent, options: &[&str]) {
    let token = founder.ok(&[&["mesh", "invite"], options].concat());
    agent.ok(&["mesh", "join", token.trim()]);
}

/// Returns what an agent says of the mesh.
pub fn status(agent: &Agent) -> Value {
    agent.json(&["mesh", "status", "--json"])
}

/// Waits until everybody knows as much of every member as `is_known` asks for.
pub fn wait_members(agents: &[&Agent], limit: Duration, is_known: impl Fn(&Value) -> bool) {
    for agent in agents {
        wait_until("every member's record is known", limit, || {
            let status = status(agent);
            let members = status["members"].as_array().expect("a list");
            members.len() == agents.len() && members.iter().all(&is_known)
        });
    }
}

/// Waits as [`wait_members`] does, and until their mail is routed by that.
pub fn wait_routed(agents: &[&Agent], limit: Duration, is_known: impl Fn(&Value) -> bool) {
    wait_members(agents, limit, is_known);
    agents.iter().for_each(|agent| take_view(agent));
}

/// Has an agent route its mail by what it knows of the mesh now. It does so by itself, a moment after it has heard
/// of something; a reload has done so when it is answered.
pub fn take_view(agent: &Agent) {
    agent.ok(&["reload"]);
}

/// Returns the key of a member.
pub fn key_of(agent: &Agent) -> SecretKey {
    let key = std::fs::read(agent.path("state/mesh/key.der")).expect("it has a key");
    SecretKey::from_pkcs8(&key).expect("a key")
}

/// Returns a session with a member under TLS as a node of the mesh has it, before EHLO.
pub fn session(key: &SecretKey, with: &Agent) -> Client {
    session_with(key, with, &status(with)["node"])
}

/// Goes on through the member of a session with another one, which greets and answers EHLO within.
pub fn pass_on(client: &mut Client, key: &SecretKey, node: &str) {
    client.expect(&format!("XVIA {node}"), 220);
    let tls = NodeTls::new(key).expect("a key for TLS");
    let name = node::server_name(&node.parse().expect("an id"));
    let secured = client.wire().connect_tls_as(tls.connector().config().clone(), name);
    secured.expect("the key is that node's, whoever stands between");
    assert_eq!(client.reply().code, 220);
    assert!(client.ehlo().offers("XMESH"));
}

/// The same with a member that is asked for under this id.
pub fn session_with(key: &SecretKey, with: &Agent, node: &Value) -> Client {
    let tls = NodeTls::new(key).expect("a key for TLS");
    let node: NodeId = node.as_str().expect("a text").parse().expect("an id");
    let mut client = Client::connect(with.smtp());
    client.ehlo();
    client.expect("STARTTLS", 220);
    let secured = client.wire().connect_tls_as(tls.connector().config().clone(), node::server_name(&node));
    secured.expect("the key is the node's");
    client
}
