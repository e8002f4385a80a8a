//! Opening a session with one of the hosts of a next hop: what to tell it, what to insist on, and who is tried
//! when one does not take it.

use std::sync::Arc;
use std::time::Duration;

use postroad_smtp::client::{self, Protocol, TlsNeed};
use postroad_smtp::sasl::Credentials;
use postroad_smtp::{Reply, Severity, Status};
use tracing::debug;

use super::dispatcher::{Core, Routing};
use super::transport::{Connection, Nodes, OpenError, Target, credentials};
use crate::config::{Config, RouteCredentials, TlsUse};
use crate::metrics::{Direction, Handshake};
use crate::net::Address;
use crate::route::Hop;

/// How long a member of the mesh may take to be reached: there are others.
const MEMBER_CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Said of a member that does not list XMESH to this host.
pub const UNKNOWN_TO_MEMBER: Reply =
    Reply::of(451, Some(Status::new(4, 7, 0)), "the member does not know this host as one of the mesh yet");
/// Said where this host has left the mesh.
pub const NO_KEY: Reply = Reply::of(451, Some(Status::new(4, 3, 5)), "this host has no key in the mesh any more");

/// Why none of some hosts takes a session.
pub struct NoSession {
    /// Who said so, or did not answer.
    pub remote: Box<str>,
    /// Whether the reply is what that host said, in its own words.
    pub is_said: bool,
    /// What is reported for every recipient.
    pub reply: Reply,
    /// Whether none of them answered at all.
    pub is_silent: bool,
}

/// Connects to the first host that takes a session. One that greets with 5yz takes no mail now:
/// another may, and the message waits for one (RFC 5321 §5.1).
pub async fn dial(core: &Core, targets: Vec<Target>) -> Result<Connection, NoSession> {
    let (mut refusal, mut is_silent) = (None, true);
    for target in targets {
        let remote = target.remote();
        match Connection::open(Arc::new(target)).await {
            Ok(connection) if connection.is_member() && !connection.knows_us() => {
                debug!(host = %remote, "it does not list XMESH");
                is_silent = false;
                refusal.get_or_insert((remote, true, UNKNOWN_TO_MEMBER));
                core.spawn(connection.quit());
            }
            Ok(mut connection) => {
                connection.count(core.metrics.open_connection());
                if connection.is_secure() {
                    core.metrics.count_handshake(Direction::Out, Handshake::Done);
                }
                return Ok(connection);
            }
            Err(error) => {
                debug!(host = %remote, %error, "no session");
                core.metrics.connections_failed.inc();
                is_silent &= matches!(error, OpenError::Connect { .. });
                if matches!(error, OpenError::Tls { .. }) {
                    core.metrics.count_handshake(Direction::Out, Handshake::Failed);
                }
                // Of several, what a host said tells more than that another did not answer.
                if refusal.is_none() || matches!(error, OpenError::Session(_)) {
                    let (is_said, reply) = words(&remote, &error);
                    refusal = Some((remote, is_said, reply));
                }
            }
        }
    }
    let (remote, is_said, reply) = refusal.expect("a destination has at least one address to try");
    Err(NoSession { remote, is_said, reply, is_silent })
}

/// Returns what is reported of a host that takes no session, and whether that is the host's own reply. What this host says
/// names the other one; it is transient always.
fn words(remote: &str, error: &OpenError) -> (bool, Reply) {
    let OpenError::Session(failure) = error else { return (false, error.reply()) };
    match failure.said() {
        Some(said) if said.severity() != Severity::Permanent => (true, said.clone()),
        Some(said) => {
            let text = format!("{remote} takes no mail now: {said}");
            (false, Reply::of(451, Some(Status::new(4, 4, 1)), "").with_text(&text))
        }
        None => (false, of_host(remote, failure.reply())),
    }
}

/// Returns a reply of this host's own about another one, which it names.
pub fn of_host(remote: &str, reply: Reply) -> Reply {
    let text = format!("{remote}: {}", reply.text);
    reply.with_text(&text)
}

/// Returns how each of these hops is connected to.
///
/// # Errors
/// The reply that says why none can be.
pub async fn targets(core: &Core, routing: &Routing, hops: &[Hop]) -> Result<Vec<Target>, Reply> {
    let mut targets = Vec::with_capacity(hops.len());
    for hop in hops {
        targets.push(target(core, routing, hop).await?);
    }
    Ok(targets)
}

async fn target(core: &Core, routing: &Routing, hop: &Hop) -> Result<Target, Reply> {
    let auth = match &hop.credentials {
        None => None,
        Some(login) => Some(password(Arc::clone(login)).await?),
    };
    let (connector, nodes) = match (hop.node, hop.tls) {
        (Some(member), _) => {
            let (me, connector) = core.peers.connector(&member).ok_or(NO_KEY)?;
            (connector, Some(Nodes { me, member }))
        }
        (None, TlsUse::Verify) => (core.tls.trusted_certificate().clone(), None),
        (None, _) => (core.tls.any_certificate().clone(), None),
    };
    let connect_limit = match nodes {
        Some(_) => routing.config.timeouts.connect.min(MEMBER_CONNECT_LIMIT),
        None => routing.config.timeouts.connect,
    };
    let tls = match hop.tls {
        TlsUse::Never => TlsNeed::Never,
        TlsUse::Opportunistic => TlsNeed::Opportunistic,
        TlsUse::Required | TlsUse::Verify => TlsNeed::Required,
    };
    Ok(Target {
        name: hop.name.clone(),
        address: Address::Tcp(hop.addr),
        session: session(&routing.config, tls, auth),
        implicit_tls: hop.implicit_tls,
        tls: connector,
        nodes,
        connect_limit,
    })
}

/// Returns what a session of this host with another one goes by.
pub fn session(config: &Config, tls: TlsNeed, auth: Option<Credentials>) -> client::Config {
    let timeouts = &config.timeouts;
    client::Config {
        helo: config.helo().as_str().into(),
        protocol: Protocol::Smtp,
        tls,
        auth,
        timeouts: client::Timeouts {
            greeting: timeouts.reply,
            command: timeouts.reply,
            data: timeouts.data_start,
            block: timeouts.data,
            final_reply: timeouts.data_end,
            ..client::Timeouts::default()
        },
    }
}

/// Reads the password of a route, each time, so that changing it needs no restart; on a thread that
/// may block.
pub(super) async fn password(login: Arc<RouteCredentials>) -> Result<Credentials, Reply> {
    let read = tokio::task::spawn_blocking(move || read_password(&login)).await;
    let read = read.unwrap_or_else(|fault| Err(fault.to_string()));
    read.map_err(|why| Reply::of(451, Some(Status::new(4, 3, 5)), "").with_text(&why))
}

fn read_password(login: &RouteCredentials) -> Result<Credentials, String> {
    let path = login.password_file.display();
    let text = std::fs::read_to_string(&login.password_file)
        .map_err(|error| format!("the route's password_file {path} cannot be read: {error}"))?;
    let password = text.lines().next().unwrap_or_default();
    credentials(&login.user, password).map_err(|error| format!("the login in {path} is not usable: {error}"))
}
