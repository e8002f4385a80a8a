//! Forward-path to [`Route`], and a next hop to the [`Hop`]s that are tried in turn.
//!
//! [`Router`] is pure: it answers from the configuration alone, so policy asks it for every RCPT.
//! [`Resolver`] asks DNS, for delivery only; [`Witness`] asks it for the mesh. Both record what they decide and why in a
//! [`Recorder`], which is how `postroad explain` shows the router itself and not a copy of it.

mod expiry;
pub mod failures;
pub mod fault;
pub mod members;
pub mod mx;
pub mod own;
pub mod recorder;
pub mod resolver;
pub mod router;
pub mod turn;
pub mod witness;

use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;

use postroad_mesh::NodeId;
use postroad_mesh::passage::ShortId;
use postroad_smtp::{Domain, Host, Reply};

use crate::config::{RouteCredentials, TlsUse};

pub use fault::ResolveError;
pub use members::{Mail, Member, Members};
pub use own::OwnAddresses;
pub use recorder::{Recorder, Step};
pub use resolver::{Resolver, ResolverError};
pub use router::Router;
pub use turn::TurnHop;
pub use witness::{Heard, Witness};

/// How the keys of members as destinations begin.
pub const MESH_PREFIX: &str = "mesh:";

/// Where mail for a forward-path goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// To a mailbox of a local domain.
    Local(LocalHop),
    /// To another host, by SMTP.
    Smtp(NextHop),
    /// To a customer, when it comes for it.
    Turn(TurnHop),
    /// Nowhere; the reply says why and is permanent.
    Refused(Reply),
}

/// A local domain as a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalHop {
    key: Arc<str>,
    domain: Domain,
}

/// Another host, or the exchanges of a domain, as a destination. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextHop(Arc<Destination>);

#[derive(Debug, PartialEq, Eq)]
struct Destination {
    key: Arc<str>,
    target: Target,
    tls: TlsUse,
    credentials: Option<Arc<RouteCredentials>>,
    pace: u16,
}

/// A next hop as DNS has it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Names the hosts: next hops with the same site may share connections, limits and outages.
    pub site: Arc<str>,
    /// The addresses to try, in their order; never empty.
    pub hops: Vec<Hop>,
}

/// What a next hop's addresses are found by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The MX records of a domain.
    Mx(Domain),
    /// The addresses of the one host a route names.
    Host {
        /// The host.
        name: Domain,
        /// Its port.
        port: u16,
    },
    /// An address that a route names.
    Address(SocketAddr),
    /// An address literal that a sender wrote.
    Literal(SocketAddr),
    /// Members of the mesh, the best first. Of none, mail waits for one.
    Members {
        /// Them.
        steps: Vec<Arc<Member>>,
        /// The domain that it is for.
        domain: Domain,
    },
}

/// One address to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The host name, or the address literal in brackets: for TLS and for reports.
    pub name: Box<str>,
    /// Where to connect.
    pub addr: SocketAddr,
    /// How far TLS is insisted on.
    pub tls: TlsUse,
    /// Whether TLS starts with the first octet (port 465, RFC 8314).
    pub implicit_tls: bool,
    /// The member of the mesh that it is: it proves that by its key, and so does this host.
    pub node: Option<NodeId>,
    /// Who this host says it is, and the file with the password. Only ever over TLS.
    pub credentials: Option<Arc<RouteCredentials>>,
}

impl LocalHop {
    fn new(domain: Domain) -> LocalHop {
        LocalHop { key: format!("local:{domain}").into(), domain }
    }

    /// Returns what attempts are grouped by: `local:` and the domain.
    pub fn key(&self) -> &Arc<str> {
        &self.key
    }

    /// Returns the local domain.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }
}

impl NextHop {
    /// Names one host, whose MX records are not asked for, as a route does.
    pub fn host(host: &Host, port: u16, tls: TlsUse, credentials: Option<RouteCredentials>) -> NextHop {
        NextHop::fixed(host, port, tls, credentials, 0)
    }

    /// Names one member of the mesh, by its addresses.
    pub fn member(member: Arc<Member>, hostname: &Domain) -> NextHop {
        let target = Target::Members { steps: vec![member], domain: hostname.clone() };
        NextHop::new(target, TlsUse::Required, None, 0)
    }

    fn fixed(host: &Host, port: u16, tls: TlsUse, credentials: Option<RouteCredentials>, pace: u16) -> NextHop {
        let target = match host {
            Host::Domain(name) => Target::Host { name: name.clone(), port },
            Host::Literal(ip) => Target::Address(SocketAddr::new(*ip, port)),
        };
        NextHop::new(target, tls, credentials.map(Into::into), pace)
    }

    fn new(target: Target, tls: TlsUse, credentials: Option<Arc<RouteCredentials>>, pace: u16) -> NextHop {
        let key = key_of(&target, credentials.as_deref(), || terms(tls, pace));
        NextHop(Arc::new(Destination { key, target, tls, credentials, pace }))
    }

    /// Returns what attempts are grouped by: two next hops have the same key only if mail for both
    /// may share a connection. `mx:example.org`, `host:smtp.isp.example:587`, `mesh:` and the members, each with those that pass its octets on (`a<b`), with `user@` before
    /// the host and `/verify` and its kind behind it, and `/route3` when the third route has limits
    /// of its own.
    pub fn key(&self) -> &Arc<str> {
        &self.0.key
    }

    /// Returns what the addresses are found by.
    pub fn target(&self) -> &Target {
        &self.0.target
    }

    /// Returns the members of the mesh that it names, the best first.
    pub fn members(&self) -> &[Arc<Member>] {
        match &self.0.target {
            Target::Members { steps, .. } => steps,
            _ => &[],
        }
    }

    /// Returns whether DNS says which hosts it is.
    pub fn is_by_mx(&self) -> bool {
        matches!(self.0.target, Target::Mx(_))
    }

    /// Returns how far TLS is insisted on.
    pub fn tls(&self) -> TlsUse {
        self.0.tls
    }

    /// Returns the login of the route, where it has one.
    pub fn credentials(&self) -> Option<&Arc<RouteCredentials>> {
        self.0.credentials.as_ref()
    }

    /// Returns which route's limits hold, counted from 1 in the order of the file; 0 for those of
    /// `[outbound]`.
    pub fn pace(&self) -> u16 {
        self.0.pace
    }

    /// Returns the site that these exchanges are: their names in the order of preference, those of
    /// equal preference in that of the alphabet, with all that keeps connections apart. What the
    /// preferences are as numbers does not matter. With so many exchanges that some are left out by
    /// chance, a domain is a site by itself.
    fn site(&self, exchanges: &[mx::Exchange]) -> Arc<str> {
        if exchanges.len() >= mx::EXCHANGES_MAX {
            return self.0.key.clone();
        }
        let ranks = exchanges.chunk_by(|a, b| a.preference == b.preference);
        let names = ranks.map(|rank| {
            let mut names: Vec<&str> = rank.iter().map(|exchange| exchange.name.as_str()).collect();
            names.sort_unstable();
            names.join(",")
        });
        format!("hosts:{}{}", names.collect::<Vec<_>>().join(";"), terms(self.0.tls, self.0.pace)).into()
    }

    fn hop(&self, name: &str, addr: SocketAddr) -> Hop {
        let Destination { target, tls, credentials, .. } = &*self.0;
        // Only a port that the configuration names can mean TLS from the first octet.
        let implicit_tls = addr.port() == 465 && matches!(target, Target::Host { .. } | Target::Address(_));
        Hop { name: name.into(), addr, tls: *tls, implicit_tls, node: None, credentials: credentials.clone() }
    }
}

/// Returns whether mail for a destination may go to this member of the mesh, or through it.
pub fn leads_to(key: &str, node: &NodeId) -> bool {
    let wanted = ShortId::from(node).to_string();
    key.strip_prefix(MESH_PREFIX).is_some_and(|ids| ids.split([',', '<']).any(|id| id == wanted))
}

/// The policy belongs to the key: a connection is reused for all mail of one key, and mail that
/// insists on a verified host must not go over one that was not.
fn key_of(target: &Target, credentials: Option<&RouteCredentials>, policy: impl Fn() -> String) -> Arc<str> {
    let user = credentials.map(|login| format!("{}@", login.user)).unwrap_or_default();
    match target {
        Target::Mx(domain) => format!("mx:{user}{domain}{}", policy()).into(),
        Target::Host { name, port } => format!("host:{user}{name}:{port}{}", policy()).into(),
        Target::Address(addr) | Target::Literal(addr) => format!("host:{user}{addr}{}", policy()).into(),
        Target::Members { steps, domain } if steps.is_empty() => format!("{MESH_PREFIX}{domain}").into(),
        // So much of an id that nobody makes another with the same beginning.
        Target::Members { steps, .. } => {
            let mut key = String::from(MESH_PREFIX);
            // Writing to a String cannot fail.
            for (place, step) in steps.iter().enumerate() {
                let comma = if place == 0 { "" } else { "," };
                let _ = write!(key, "{comma}{}", ShortId::from(&step.node));
                for one in step.through.iter().rev() {
                    let _ = write!(key, "<{}", ShortId::from(&one.node));
                }
            }
            key.into()
        }
    }
}

/// Returns what keeps connections to the same hosts apart: the TLS policy, and limits of a route.
fn terms(tls: TlsUse, pace: u16) -> String {
    let tls = match tls {
        TlsUse::Opportunistic => String::new(),
        tls => format!("/{}", tls_name(tls)),
    };
    let pace = if pace == 0 { String::new() } else { format!("/route{pace}") };
    tls + &pace
}

/// Returns the policy's name in the configuration.
pub fn tls_name(tls: TlsUse) -> &'static str {
    match tls {
        TlsUse::Never => "never",
        TlsUse::Opportunistic => "opportunistic",
        TlsUse::Required => "required",
        TlsUse::Verify => "verify",
    }
}
