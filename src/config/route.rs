//! The settings of a `[[route]]`: which domains it is for, where their mail goes, and how.

use std::path::PathBuf;

use postroad_smtp::{Domain, Host};

use super::settings::{Pace, Patience, TlsUse};

/// `[[route]]`: where mail for a domain goes when it is not where DNS says, and how long it is tried.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// Unique among the routes.
    pub matches: RouteMatch,
    /// Where to.
    pub via: Via,
    /// What of it is taken from everybody; default nothing. Never beside [`RouteMatch::Any`].
    pub accept: Option<Accept>,
    /// Default: the one of `[outbound]`; `Verify` when there are credentials.
    pub tls: TlsUse,
    /// Said to this next hop only, and only over TLS.
    pub credentials: Option<RouteCredentials>,
    /// Default: that of `[queue]`, key by key.
    pub patience: Patience,
    /// Default: that of `[outbound]`, key by key.
    pub pace: Pace,
    /// The line of the file that names its domain.
    pub line: usize,
}

/// Which domains a route is for. An exact domain goes before `.domain`, the longest of these
/// before shorter ones, and `*` comes last.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RouteMatch {
    /// `"corp.example"`: this domain only.
    Domain(Domain),
    /// `".corp.example"`: every domain below it, not itself.
    Below(Domain),
    /// `"*"`: every other domain.
    Any,
}

/// The recipients that a route's domains have: mail for these is taken from everybody, for others from nobody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accept {
    /// These, in lower case without quotes, sorted; and the postmaster.
    Listed(Vec<String>),
    /// The next hop decides.
    Any,
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Via {
    /// Where DNS says: an exception to a wider route.
    Mx,
    /// One host, whose MX records are not asked for.
    Host {
        /// Its name or address.
        host: Host,
        /// Default the port of `[outbound]`. 465 means TLS from the first octet (RFC 8314).
        port: u16,
    },
}

/// User name and the file that holds the password in its first line. It is read when it is
/// needed, so that it can be changed without a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteCredentials {
    /// The user name.
    pub user: String,
    /// The file.
    pub password_file: PathBuf,
}

impl RouteMatch {
    /// Returns whether a route with this pattern is for the domain.
    pub fn matches(&self, domain: &Domain) -> bool {
        match self {
            RouteMatch::Domain(name) => domain == name,
            RouteMatch::Below(parent) => domain != parent && domain.is_within(parent),
            RouteMatch::Any => true,
        }
    }
}

impl Via {
    /// Returns whether TLS starts with the first octet.
    pub fn is_implicit_tls(&self) -> bool {
        matches!(self, Via::Host { port: 465, .. })
    }
}

impl std::fmt::Display for Accept {
    /// Says how many there are.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Accept::Listed(names) if names.len() == 1 => f.write_str("1 recipient"),
            Accept::Listed(names) => write!(f, "{} recipients", names.len()),
            Accept::Any => f.write_str("any recipient"),
        }
    }
}

impl std::fmt::Display for RouteMatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RouteMatch::Domain(domain) => domain.fmt(f),
            RouteMatch::Below(parent) => write!(f, ".{parent}"),
            RouteMatch::Any => f.write_str("*"),
        }
    }
}

impl std::fmt::Display for Via {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Via::Mx => f.write_str("mx"),
            Via::Host { host, port } => write!(f, "{host}:{port}"),
        }
    }
}
