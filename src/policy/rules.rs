//! The rules for MAIL and RCPT: pure over configuration, users and the facts of the session.
//!
//! Never an open relay: a recipient elsewhere needs a [`RelayGrant`]. A login, a configured network and the key of
//! a member of the mesh give one, and so do domains that somebody named because their mail passes here. Local-parts are never interpreted beyond case, quotes and the tag
//! behind a `+`: `a%b`, `a!b` and `"a@b"` are names of mailboxes, which do not exist.

use std::net::IpAddr;

use postroad_mesh::{Caps, NodeId};
use postroad_queue::UnixMillis;
use postroad_smtp::{Domain, ForwardPath, LocalPart, MailParams, Mailbox, Priority, Reply, ReversePath};

use super::mailboxes::{self, Directories};
use super::users::UserList;
use super::{aliases, replies};
use crate::config::{Accept, Config, Local, RouteMatch, Service, Turn, UserName, Via};
use crate::route::{Members, Route, Router};

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    /// The address of the peer.
    pub peer: IpAddr,
    /// The listener it came through.
    pub service: Service,
    /// The user it logged in as.
    pub user: Option<&'a str>,
    /// What it may do as a member of this host's mesh, where it proved to be one.
    pub member: Option<Caps>,
}

/// Why somebody may relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelayGrant {
    /// A right password.
    Login,
    /// An address within `relay.networks`.
    Network,
    /// A user of this host, as the kernel says.
    Local,
    /// Nobody's: the mail is for a domain that is kept here until its customer fetches it.
    Kept,
    /// The key of a member of the mesh.
    Member,
    /// Nobody's: this host is an exchange for the domain, whose home is another member of the mesh.
    Exchange,
    /// Nobody's: a `[[route]]` accepts mail for the domain.
    Route,
}

/// What an accepted recipient is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// A mailbox of a local domain.
    Local(UserName),
    /// Postmaster mail, which goes to this mailbox ([`Router::target`]).
    Redirected(Mailbox),
    /// A name that stands for other addresses.
    Aliased,
    /// A recipient elsewhere.
    Relay(RelayGrant),
}

/// Decides about MAIL: a login is needed for submission, and a login may only send as its own
/// addresses. The null reverse-path is nobody's, and mail clients need it for read receipts.
///
/// # Errors
/// The reply that refuses it.
pub fn mail(users: &UserList, client: &Client<'_>, reverse_path: &ReversePath) -> Result<(), Reply> {
    let Some(name) = client.user else {
        return if client.service.needs_login() { Err(replies::LOGIN_NEEDED) } else { Ok(()) };
    };
    let user = users.get(name).ok_or(replies::LOGIN_GONE)?;
    match reverse_path {
        ReversePath::Mailbox(mailbox) if !user.may_send_as(mailbox) => Err(replies::NOT_YOUR_ADDRESS),
        _ => Ok(()),
    }
}

/// Decides about the times that MAIL names at `now`: a message cannot be late before it may set out.
///
/// # Errors
/// The reply that refuses it.
pub fn times(params: &MailParams, now: UnixMillis) -> Result<(), Reply> {
    let (Some(release), Some(by)) = (params.release, params.deliver_by) else { return Ok(()) };
    let held_ms = release.unix_ms(now.0).saturating_sub(now.0);
    let by_ms = u64::try_from(by.seconds).unwrap_or(0) * 1000;
    if held_ms > 0 && held_ms >= by_ms { Err(replies::LATE_BEFORE_RELEASE) } else { Ok(()) }
}

/// Returns the priority that a message has which asks for one (RFC 6710 §4.1): above normal only for
/// those who may relay, or everybody's mail would be urgent. To stand back is anybody's right.
pub fn priority(config: &Config, client: &Client<'_>, asked: Option<Priority>) -> Option<Priority> {
    let is_granted = |asked: &Priority| *asked <= Priority::NORMAL || relay_grant(config, client).is_some();
    asked.map(|asked| if is_granted(&asked) { asked } else { Priority::NORMAL })
}

/// Decides about RCPT; `accepted` recipients came before it. The router is the configuration's.
///
/// # Errors
/// The reply that refuses it.
pub fn rcpt(
    (config, router): (&Config, &Router),
    directories: &dyn Directories,
    client: &Client<'_>,
    reverse_path: &ReversePath,
    forward_path: &ForwardPath,
    accepted: usize,
) -> Result<Accepted, Reply> {
    if client.service.needs_login() && client.user.is_none() {
        return Err(replies::LOGIN_NEEDED);
    }
    if client.user.is_some() && *reverse_path == ReversePath::Null && accepted > 0 {
        return Err(replies::NULL_FOR_ONE_ONLY);
    }
    let target = router.target(forward_path);
    match ending((config, router), directories, forward_path) {
        Some(verdict) => verdict,
        // The name of this host is no domain for strangers to write to, unless it is a local one.
        None if aliases::of(config, router, forward_path).is_some() => {
            relay_grant(config, client).map(|_| Accepted::Aliased).ok_or(replies::RELAY_DENIED)
        }
        None if is_kept(router, &target) && client.service != Service::Fetch => Ok(Accepted::Relay(RelayGrant::Kept)),
        None => relay((config, router), client, target.domain()).and_then(|grant| routable(router, &target, grant)),
    }
}

/// Decides about a recipient whose mail ends here, whoever asks; `None`: it goes elsewhere.
///
/// # Errors
/// The reply that refuses it.
pub fn ending(
    (config, router): (&Config, &Router),
    directories: &dyn Directories,
    forward_path: &ForwardPath,
) -> Option<Result<Accepted, Reply>> {
    let target = router.target(forward_path);
    if aliases::is_for_everybody(config, &target) && aliases::of(config, router, forward_path).is_some() {
        return Some(Ok(Accepted::Aliased));
    }
    let Some(mailbox) = target.mailbox() else { return Some(Err(replies::NO_POSTMASTER)) };
    let local = mailbox.domain().and_then(|domain| config.local(domain));
    let is_redirected = *target != *forward_path;
    let look_up = |local: &Local| local_mailbox(local, &mailbox.local_part, is_redirected, directories);
    match (is_redirected, local) {
        (true, local) => {
            let found = local.map_or(Ok(()), |local| look_up(local).map(drop));
            Some(found.map(|()| Accepted::Redirected(mailbox.clone())))
        }
        (false, Some(local)) => Some(look_up(local).map(Accepted::Local)),
        (false, None) => None,
    }
}

/// A domain whose customer fetches its mail takes it from everybody, as its exchange has to.
fn is_kept(router: &Router, target: &ForwardPath) -> bool {
    matches!(router.route(target), Route::Turn(_))
}

/// Decides about ATRN: what the user named may fetch, or why it may not (RFC 2645 §5.2.1).
///
/// # Errors
/// The reply that refuses it.
pub fn turn<'c>(config: &'c Config, user: Option<&str>, domains: &[Domain]) -> Result<&'c Turn, Reply> {
    let turn = user.and_then(|user| config.turn(user)).ok_or(replies::NOTHING_KEPT)?;
    if domains.iter().any(|domain| !turn.domains.contains(domain)) {
        return Err(replies::NOT_YOUR_DOMAIN);
    }
    Ok(turn)
}

/// Decides about ATRN of a client that proved to be this node: a member that cannot be dialled may have
/// what goes to it, all of it, and nothing else.
///
/// # Errors
/// The reply that refuses it. Nothing is final: this host may not have heard of it yet.
pub fn turn_member(members: Option<&Members>, node: &NodeId, domains: &[Domain]) -> Result<(), Reply> {
    if !members.is_some_and(|members| members.comes(node)) {
        return Err(replies::NOT_HELD_FOR_YOU);
    }
    if domains.is_empty() { Ok(()) } else { Err(replies::MEMBERS_NAME_NO_DOMAIN) }
}

/// Decides about ETRN: whoever may relay may have what waits tried now, and this host itself.
///
/// # Errors
/// The reply that refuses it (RFC 1985 §5.3).
pub fn start(config: &Config, client: &Client<'_>) -> Result<(), Reply> {
    let is_here = client.peer.to_canonical().is_loopback() && client.service != Service::Fetch;
    if is_here || relay_grant(config, client).is_some() { Ok(()) } else { Err(replies::NODE_NOT_ALLOWED) }
}

fn local_mailbox(
    local: &Local,
    local_part: &LocalPart,
    for_postmaster: bool,
    directories: &dyn Directories,
) -> Result<UserName, Reply> {
    match mailboxes::resolve(local, local_part, for_postmaster, directories) {
        Ok(user) => user.ok_or(replies::NO_SUCH_MAILBOX),
        Err(fault) => {
            tracing::warn!(domain = %local.domain, %fault, "a mailbox cannot be looked up");
            Err(replies::LOOKUP_FAILED)
        }
    }
}

fn relay(
    (config, router): (&Config, &Router),
    client: &Client<'_>,
    domain: Option<&Domain>,
) -> Result<RelayGrant, Reply> {
    let grant = match (relay_grant(config, client), client.member) {
        (Some(RelayGrant::Member), _) if !domain.is_some_and(|domain| router.carries_for_members(domain)) => {
            return Err(replies::NOT_CARRIED);
        }
        (Some(grant), _) => grant,
        (None, _) if domain.is_some_and(|domain| is_passed_on(router, client, domain)) => RelayGrant::Route,
        (None, Some(_)) if domain.is_some_and(|domain| router.holds_for_members(domain)) => RelayGrant::Member,
        (None, Some(_)) => return Err(replies::MEMBER_MAY_NOT_RELAY),
        (None, None) if domain.is_some_and(|domain| is_exchange((config, router), client, domain)) => {
            RelayGrant::Exchange
        }
        (None, None) => return Err(replies::RELAY_DENIED),
    };
    match domain {
        Some(domain) if !is_complete(config, domain) && !router.has_home(domain) => Err(replies::DOMAIN_INCOMPLETE),
        _ => Ok(grant),
    }
}

/// A domain whose mail somebody had this host pass on is one like a local domain to strangers.
fn is_passed_on(router: &Router, client: &Client<'_>, domain: &Domain) -> bool {
    client.service != Service::Fetch && router.accepts(domain).is_some()
}

/// This host may stand in the MX records of members' domains: it takes their mail as their home does.
fn is_exchange((config, router): (&Config, &Router), client: &Client<'_>, domain: &Domain) -> bool {
    config.mesh.mx && client.service == Service::Smtp && !router.homes_by_mesh(domain).is_empty()
}

/// What the router or the next hop would refuse is refused before the sender has gone.
fn routable(router: &Router, forward_path: &ForwardPath, grant: RelayGrant) -> Result<Accepted, Reply> {
    if !exists_behind(router, forward_path) {
        return Err(replies::NO_SUCH_MAILBOX_BEHIND);
    }
    match router.route(forward_path) {
        Route::Refused(reply) => Err(reply),
        Route::Local(_) | Route::Smtp(_) | Route::Turn(_) => Ok(Accepted::Relay(grant)),
    }
}

/// Decides about a recipient by the list that the route of its domain has, whoever asks; `None`: it has none.
///
/// # Errors
/// The reply that refuses it.
pub fn listed(router: &Router, forward_path: &ForwardPath) -> Option<Result<Accepted, Reply>> {
    let Some(Accept::Listed(_)) = forward_path.domain().and_then(|domain| router.accepts(domain)) else { return None };
    Some(routable(router, forward_path, RelayGrant::Route))
}

/// Returns whether a recipient is none that a route leaves out. Whoever asks: it says which there are.
pub fn exists_behind(router: &Router, forward_path: &ForwardPath) -> bool {
    let Some(mailbox) = forward_path.mailbox() else { return true };
    let accept = mailbox.domain().and_then(|domain| router.accepts(domain));
    accept.is_none_or(|accept| mailboxes::is_accepted(accept, &mailbox.local_part))
}

/// Returns why a client may relay, or `None` when it may not.
pub fn relay_grant(config: &Config, client: &Client<'_>) -> Option<RelayGrant> {
    match client.user {
        Some(_) => Some(RelayGrant::Login),
        None if client.service.needs_login() => None,
        None if client.service == Service::Local => Some(RelayGrant::Local),
        // What is fetched ends here, whatever address the other host has.
        None if client.service != Service::Fetch && config.relay.allows(client.peer) => Some(RelayGrant::Network),
        None => client.member.filter(|caps| caps.has(Caps::RELAY)).map(|_| RelayGrant::Member),
    }
}

/// A domain has a dot, is named in a route, or is this host's own short name on its way to the host
/// that takes all mail of this one.
fn is_complete(config: &Config, domain: &Domain) -> bool {
    if domain.as_str().contains('.') {
        return true;
    }
    match config.route(domain) {
        Some(route) if route.matches == RouteMatch::Any => *domain == config.hostname && route.via != Via::Mx,
        Some(_) => true,
        None => false,
    }
}
