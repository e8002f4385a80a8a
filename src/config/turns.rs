//! `[[turn]]` and `[[fetch]]`: mail that waits for a customer who fetches it, and mail that this host
//! fetches itself (On-Demand Mail Relay, RFC 2645); with what they must agree on with other sections.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use postroad_smtp::{Domain, Host};
use toml::Spanned;
use toml::de::DeValue;

use super::destinations::login_name;
use super::read::{Places, TLS_USES, count, patience, plain, seconds};
use super::section::{Faults, Section};
use super::settings::*;
use super::value::{self, Read, refuse};
use super::{Config, RouteCredentials, RouteMatch};

/// The port of On-Demand Mail Relay (RFC 2645 §4).
const PORT: u16 = 366;
const HOUR: u64 = 3600;
/// A customer that hears nothing for ten minutes gives the connection up.
const KEEPALIVE_SECONDS_MAX: u64 = 9 * 60;

/// `[[turn]]`: domains whose mail waits until a customer fetches it.
#[derive(Clone, Debug, PartialEq)]
pub struct Turn {
    /// Who may fetch, in lower case; unique.
    pub user: String,
    /// Whose mail waits; none stands twice in the file.
    pub domains: Vec<Domain>,
    /// Whether a connection that was turned stays open for new mail, if the customer's side asks for that;
    /// default false.
    pub keep: bool,
    /// How often something is said over a connection without work; default 4 minutes.
    pub keepalive: Duration,
    /// Turned connections of the user at a time; default 2.
    pub connections_max: u32,
    /// Holds the secret for CRAM-MD5 in its first line; default none: only passwords of `[users]`.
    pub secret_file: Option<PathBuf>,
    /// Default: that of `[queue]`, key by key.
    pub patience: Patience,
    /// The line of the file that names its user.
    pub line: usize,
}

/// `[[fetch]]`: a host that keeps mail for local domains until this one fetches it.
#[derive(Clone, Debug, PartialEq)]
pub struct Fetch {
    /// The host.
    pub host: Host,
    /// Its port; default 366. 465 means TLS from the first octet (RFC 8314).
    pub port: u16,
    /// Who this host says it is.
    pub credentials: RouteCredentials,
    /// Required or Verify; default Verify.
    pub tls: TlsUse,
    /// Whose mail is asked for; empty: all that is kept for the user. Each is local.
    pub domains: Vec<Domain>,
    /// The pause between two fetches; default 5 minutes.
    pub every: Duration,
    /// Whether the connection stays open for new mail, if the other host allows that; default false.
    pub keep: bool,
    /// The line of the file that names its host.
    pub line: usize,
}

/// One `[[turn]]`; `None` is a fault.
pub(super) fn turn(
    mut s: Section<'_>,
    base_dir: &Path,
    queue: &Queue,
    places: &mut Places,
    faults: &Faults,
) -> Option<Turn> {
    let header = s.span();
    for key in ["user", "domains"] {
        if !s.holds(key) {
            let remedy = "a [[turn]] says user = \"branch\" and domains = [\"branch.example\"]";
            faults.conflict(header.clone(), format!("a [[turn]] without `{key}`"), remedy);
        }
    }
    let user = s.get("user", login_name);
    let domains = s.list("domains", value::domain);
    if let Some(list) = domains.as_ref().filter(|_| s.holds_empty_list("domains")) {
        faults.conflict(list.span(), "`domains` is empty: nothing would be fetched", "name the customer's domains");
    }
    let turn = Turn {
        user: user.as_ref().map(|user| user.get_ref().to_lowercase()).unwrap_or_default(),
        domains: domains.iter().flat_map(|list| list.get_ref()).map(|domain| domain.get_ref().clone()).collect(),
        keep: s.or("keep", false, value::boolean),
        keepalive: s.or("keepalive", Duration::from_secs(240), seconds(1..=KEEPALIVE_SECONDS_MAX)),
        connections_max: s.or("connections", 2, count(1..=16)),
        secret_file: s.get("secret_file", value::path(base_dir)).map(Spanned::into_inner),
        patience: patience(&mut s, queue.patience(), faults),
        line: 0,
    };
    s.finish();
    places.turns.push((user?.span(), domains?.into_inner().iter().map(Spanned::span).collect()));
    Some(turn)
}

/// One `[[fetch]]`; `None` is a fault.
pub(super) fn fetch(mut s: Section<'_>, base_dir: &Path, places: &mut Places, faults: &Faults) -> Option<Fetch> {
    let header = s.span();
    for key in ["host", "user", "password_file"] {
        if !s.holds(key) {
            let remedy =
                "a [[fetch]] says host = \"relay.isp.example\", user = \"branch\" and password_file = \"isp.password\"";
            faults.conflict(header.clone(), format!("a [[fetch]] without `{key}`"), remedy);
        }
    }
    let host = s.get("host", host);
    let port = s.or("port", PORT, super::read::port);
    let user = s.get("user", login_name);
    let password_file = s.get("password_file", value::path(base_dir));
    let tls = s.get("tls", value::choice(TLS_USES));
    if let Some(tls) = tls.as_ref().filter(|tls| matches!(tls.get_ref(), TlsUse::Never | TlsUse::Opportunistic)) {
        faults.conflict(
            tls.span(),
            "the password could be sent without encryption",
            "write tls = \"verify\" or \"required\"",
        );
    }
    let domains = s.list("domains", value::domain);
    let every = s.or("every", Duration::from_secs(300), seconds(1..=24 * HOUR));
    let keep = s.or("keep", false, value::boolean);
    s.finish();
    let (host, user, password_file) = (host?, user?, password_file?);
    let spans = domains.iter().flat_map(|list| list.get_ref().iter().map(Spanned::span)).collect();
    places.fetches.push((host.span(), spans));
    Some(Fetch {
        host: host.into_inner(),
        port,
        credentials: RouteCredentials { user: user.into_inner(), password_file: password_file.into_inner() },
        tls: tls.map_or(TlsUse::Verify, Spanned::into_inner),
        domains: domains.map(plain).unwrap_or_default(),
        every,
        keep,
        line: 0,
    })
}

fn host(found: &DeValue<'_>) -> Read<Host> {
    match found.as_str().and_then(value::host_port) {
        Some((host, None)) => Ok(host),
        _ => refuse(
            "expected the name of a host in quotes",
            "write \"relay.isp.example\"; its port has a key of its own",
        ),
    }
}

/// Checks both against the rest of the file.
pub(super) fn check(config: &Config, places: &Places, faults: &Faults) {
    for (at, turn) in config.turns.iter().enumerate() {
        let (user, domains) = &places.turns[at];
        let earlier = &config.turns[..at];
        if earlier.iter().any(|other| other.user == turn.user) {
            let message = format!("there is already a [[turn]] for the user {}", turn.user);
            faults.conflict(user.clone(), message, "name all domains of a user in one [[turn]]");
        }
        for (n, (domain, place)) in turn.domains.iter().zip(domains).enumerate() {
            let twice =
                turn.domains[..n].contains(domain) || earlier.iter().any(|other| other.domains.contains(domain));
            let routed = config.routes.iter().any(|route| route.matches == RouteMatch::Domain(domain.clone()));
            let (what, remedy) = match () {
                () if twice => ("stands here a second time", "keep it in one [[turn]]"),
                () if config.local(domain).is_some() => {
                    ("is local: it is not fetched", "keep the [[local]] or the [[turn]]")
                }
                () if routed => ("has a route: it is not fetched", "keep the [[route]] or the [[turn]]"),
                () => continue,
            };
            faults.conflict(place.clone(), format!("{domain} {what}"), remedy);
        }
    }
    for (fetch, (host, domains)) in config.fetches.iter().zip(&places.fetches) {
        fetched(config, fetch, (host, domains), faults);
    }
}

/// What is fetched ends here: never an open relay for whoever runs the other side.
fn fetched(config: &Config, fetch: &Fetch, (host, domains): (&Range<usize>, &[Range<usize>]), faults: &Faults) {
    for (domain, place) in fetch.domains.iter().zip(domains) {
        if config.local(domain).is_none() {
            let remedy = format!("add a [[local]] with domain = \"{domain}\"");
            faults.conflict(
                place.clone(),
                format!("{domain} is fetched but not local: its mail would be refused"),
                remedy,
            );
        }
    }
    if let Host::Literal(ip) = &fetch.host
        && config.listen.all().any(|(_, own)| own.ip() == *ip && own.port() == fetch.port)
    {
        faults.conflict(host.clone(), "this agent would fetch its own mail", "name the host that keeps it");
    }
}

/// Says what is allowed but probably not meant.
pub(super) fn warnings(config: &Config, out: &mut Vec<String>) {
    if !config.turns.is_empty() && config.listen.submission.is_empty() && config.listen.submissions.is_empty() {
        out.push(
            "mail waits to be fetched, but nobody can log in: set listen.submission, for example to port 366"
                .to_owned(),
        );
    }
    if !config.fetches.is_empty() && config.locals.is_empty() {
        out.push("mail is fetched, but no domain is local: all of it would be refused".to_owned());
    }
}
