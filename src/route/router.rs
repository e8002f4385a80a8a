//! The rules: local domains, then those that a customer fetches, then the most specific `[[route]]` that
//! names the domain, then the home among the members of the mesh, then `[[route]]` for everything, or a
//! member that sends mail out, then MX. Pure: no DNS, no clock.
//!
//! It decides where mail goes, never whether it may: an address of a local domain that does not
//! exist, or a client that may not relay, are for policy. A forward-path that is routed here is
//! taken literally; `%`, `!` and quoted `@` in a local-part mean nothing.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, RwLock};

use postroad_mesh::NodeId;
use postroad_queue::Item;
use postroad_smtp::{Domain, ForwardPath, Host, Mailbox, Reply, Status};

use super::members::{Mail, Members, Way};
use super::recorder::{Recorder, Step};
use super::{LocalHop, NextHop, OwnAddresses, Route, Target, TurnHop, members, mx, tls_name};
use crate::config::{self, Accept, Config, Patience, Recipients, RouteMatch, TlsUse, Via};

/// Routing rules of one configuration.
#[derive(Debug)]
pub struct Router {
    locals: HashMap<Domain, (LocalHop, usize)>,
    turns: HashMap<Domain, Turn>,
    exact: HashMap<Domain, Rule>,
    below: HashMap<Domain, Rule>,
    any: Option<Rule>,
    postmaster: Option<ForwardPath>,
    /// Local domains without a postmaster of their own.
    without_postmaster: HashSet<Domain>,
    hostname: Domain,
    own: OwnAddresses,
    port: u16,
    tls: TlsUse,
    allow_loopback: bool,
    /// Where no route says otherwise.
    patience: Patience,
    /// The limits of members that come for their mail, as [`NextHop::pace`] has it.
    comers_pace: u16,
    /// The mesh, of which this host is a member.
    members: Option<Arc<Members>>,
    /// The next hops of mail that comes in here for domains with one home: nothing else of a message matters
    /// there, and so each is found once.
    to_homes: RwLock<HashMap<Domain, NextHop>>,
}

/// A domain of a `[[turn]]`.
#[derive(Debug)]
struct Turn {
    hop: TurnHop,
    patience: Patience,
    line: usize,
}

/// One `[[route]]`.
#[derive(Debug)]
struct Rule {
    route: config::Route,
    /// The next hop, where it is the same for every domain.
    fixed: Option<NextHop>,
    /// As [`NextHop::pace`] has it.
    pace: u16,
}

/// The most next hops of [`Router::to_homes`]; names below a domain that is served are as many as somebody likes.
const TO_HOMES_MAX: usize = 1_000;
const NOTHING_PANICS: &str = "nothing panics while it holds the next hops";
const NO_POSTMASTER: Reply = Reply::of(
    550,
    Some(Status::new(5, 1, 1)),
    "no postmaster is set up on this host: set postmaster in its configuration",
);
const OWN_LITERAL: Reply =
    Reply::of(550, Some(Status::new(5, 1, 1)), "no such mailbox at this host; write the domain instead of the address");
const BAD_LITERAL: Reply = Reply::of(550, Some(Status::new(5, 1, 2)), "mail cannot be sent to this address literal");

impl Router {
    /// Builds the rules of a host that is in no mesh.
    pub fn new(config: &Config) -> Router {
        Router::with_members(config, None)
    }

    /// Builds the rules.
    pub fn with_members(config: &Config, members: Option<Arc<Members>>) -> Router {
        let local = |local: &config::Local| (local.domain.clone(), (LocalHop::new(local.domain.clone()), local.line));
        let mut router = Router {
            locals: config.locals.iter().map(local).collect(),
            turns: turns(config),
            exact: HashMap::new(),
            below: HashMap::new(),
            any: None,
            postmaster: config.postmaster().map(ForwardPath::Mailbox),
            without_postmaster: without_postmaster(config),
            hostname: config.hostname.clone(),
            own: OwnAddresses::new(config.listen.all().map(|(_, address)| address).collect()),
            port: config.outbound.port,
            tls: config.outbound.tls,
            allow_loopback: config.outbound.allow_loopback,
            patience: config.queue.patience(),
            comers_pace: pace_behind_routes(config, 2),
            members,
            to_homes: RwLock::default(),
        };
        for (route, number) in config.routes.iter().zip(1..) {
            // One site cannot be left alone for two lengths of time.
            let is_usual = route.pace == config.outbound.pace && route.patience.retry == config.queue.retry;
            let pace = if is_usual { 0 } else { number };
            let rule = Rule { fixed: fixed_hop(route, pace), route: route.clone(), pace };
            match &route.matches {
                RouteMatch::Domain(domain) => drop(router.exact.insert(domain.clone(), rule)),
                RouteMatch::Below(parent) => drop(router.below.insert(parent.clone(), rule)),
                RouteMatch::Any => router.any = Some(rule),
            }
        }
        router
    }

    /// Returns the address that mail for this one is really written to: the postmaster of this host
    /// (bare, or at its name or own address where that is no local domain) is a configured mailbox,
    /// and so is that of local domains that have none of their own.
    pub fn target<'a>(&'a self, path: &'a ForwardPath) -> Cow<'a, ForwardPath> {
        match (&self.postmaster, self.is_own_postmaster(path)) {
            (Some(postmaster), true) => Cow::Borrowed(postmaster),
            _ => Cow::Borrowed(path),
        }
    }

    /// Returns where mail for a forward-path goes; for the postmaster of this host, where mail for
    /// [`Router::target`] goes.
    pub fn route(&self, path: &ForwardPath) -> Route {
        self.route_recorded(path, &mut Recorder::off())
    }

    /// Returns where one recipient of a message goes: where the mesh has more than one way, it depends
    /// on the message, too.
    pub fn route_mail(&self, path: &ForwardPath, mail: &Mail<'_>) -> Route {
        self.decide(path, mail, &mut Recorder::off())
    }

    /// Returns what of a message [`Router::route_mail`] looks at.
    pub fn mail<'a>(&self, item: &'a Item) -> Mail<'a> {
        if self.members.is_some() { Mail::of(item) } else { Mail::default() }
    }

    /// Returns the mesh that this host is a member of.
    pub fn members(&self) -> Option<&Arc<Members>> {
        self.members.as_ref()
    }

    /// Returns where mail for a domain goes.
    pub fn route_of(&self, domain: &Domain) -> Route {
        self.route_domain(domain, &Mail::default(), &mut Recorder::off())
    }

    /// As [`Router::route`], recording why.
    pub fn route_recorded(&self, path: &ForwardPath, recorder: &mut Recorder) -> Route {
        self.decide(path, &Mail::default(), recorder)
    }

    /// As [`Router::route_mail`], recording why.
    pub fn decide(&self, path: &ForwardPath, mail: &Mail<'_>, recorder: &mut Recorder) -> Route {
        let route = match self.target(path).as_ref() {
            ForwardPath::Postmaster => Route::Refused(NO_POSTMASTER),
            ForwardPath::Mailbox(mailbox) => match &mailbox.host {
                Host::Domain(domain) => self.route_domain(domain, mail, recorder),
                Host::Literal(ip) => self.route_literal(*ip, recorder),
            },
        };
        recorder.note(|| match &route {
            Route::Local(hop) => Step::Destination { key: hop.key().to_string() },
            Route::Smtp(hop) => Step::Destination { key: hop.key().to_string() },
            Route::Turn(hop) => Step::Destination { key: hop.key().to_string() },
            Route::Refused(reply) => Step::Refused { reply: reply.to_string() },
        });
        route
    }

    /// Returns how often and how long mail for a forward-path is tried: what the route that it takes
    /// says.
    pub fn patience(&self, path: &ForwardPath) -> &Patience {
        let target = self.target(path);
        if let Some(turn) = target.domain().and_then(|domain| self.turns.get(domain)) {
            return &turn.patience;
        }
        let rule = target.mailbox().and_then(|mailbox| match &mailbox.host {
            Host::Domain(domain) if self.locals.contains_key(domain) => None,
            Host::Domain(domain) => self.rule(domain),
            Host::Literal(_) => self.smarthost().map(|(rule, _)| rule),
        });
        rule.map_or(&self.patience, |rule| &rule.route.patience)
    }

    /// Returns whether mail for a forward-path ends in a mailbox here.
    pub fn is_local(&self, path: &ForwardPath) -> bool {
        self.target(path).domain().is_some_and(|domain| self.locals.contains_key(domain))
    }

    fn is_own_postmaster(&self, path: &ForwardPath) -> bool {
        let ForwardPath::Mailbox(Mailbox { local_part, host }) = path else { return true };
        let at_host = match host {
            Host::Domain(domain) if self.locals.contains_key(domain) => self.without_postmaster.contains(domain),
            Host::Domain(domain) => *domain == self.hostname,
            Host::Literal(ip) => self.is_own(*ip),
        };
        at_host && local_part.unquoted().eq_ignore_ascii_case("postmaster")
    }

    fn is_own(&self, ip: IpAddr) -> bool {
        ip.to_canonical().is_loopback() && !self.allow_loopback || self.own.has(ip)
    }

    fn route_domain(&self, domain: &Domain, mail: &Mail<'_>, recorder: &mut Recorder) -> Route {
        if let Some((hop, line)) = self.locals.get(domain) {
            recorder.note(|| Step::Local { domain: domain.to_string(), line: *line });
            return Route::Local(hop.clone());
        }
        if let Some(turn) = self.turns.get(domain) {
            recorder.note(|| Step::Turn { user: turn.hop.user().to_owned(), line: turn.line });
            return Route::Turn(turn.hop.clone());
        }
        if self.named_rule(domain).is_none()
            && let Some(next_hop) = self.by_members(domain, mail, recorder)
        {
            return Route::Smtp(next_hop);
        }
        let Some(rule) = self.rule(domain) else {
            recorder.note(|| Step::NoRule);
            return Route::Smtp(NextHop::new(Target::Mx(domain.clone()), self.tls, None, 0));
        };
        note_rule(rule, recorder);
        let by_mx = || NextHop::new(Target::Mx(domain.clone()), rule.route.tls, None, rule.pace);
        Route::Smtp(rule.fixed.clone().unwrap_or_else(by_mx))
    }

    /// Returns the members that a domain's mail goes to: those on the way to its home, or else to where
    /// mail leaves the mesh. Whoever names one host for all mail has said where it leaves.
    fn by_members(&self, domain: &Domain, mail: &Mail<'_>, recorder: &mut Recorder) -> Option<NextHop> {
        let members = self.members.as_ref()?;
        let is_first = mail.comes_in_here();
        if is_first && !recorder.is_on() {
            let known = self.to_homes.read().expect(NOTHING_PANICS).get(domain).cloned();
            if known.is_some() {
                return known;
            }
        }
        let to_egress = || members.to_egress(domain, mail).filter(|_| self.any.is_none());
        let (way, choices) = members.to_home(domain, mail).or_else(to_egress)?;
        recorder.note(|| Step::Mesh {
            choices: match &way {
                Way::Pass(steps) if choices.is_empty() => steps.iter().map(ToString::to_string).collect(),
                _ => choices.iter().map(|choice| members::describe(members, choice, mail)).collect(),
            },
        });
        match way {
            Way::Stay => None,
            Way::Pass(steps) => {
                let pace = if steps.first().is_some_and(|step| step.comes) { self.comers_pace } else { 0 };
                let target = Target::Members { steps, domain: domain.clone() };
                let next_hop = NextHop::new(target, TlsUse::Required, None, pace);
                if is_first && members.has_one_end(domain) {
                    self.keep(domain, &next_hop);
                }
                Some(next_hop)
            }
        }
    }

    fn keep(&self, domain: &Domain, next_hop: &NextHop) {
        let mut to_homes = self.to_homes.write().expect(NOTHING_PANICS);
        if to_homes.len() < TO_HOMES_MAX {
            to_homes.insert(domain.clone(), next_hop.clone());
        }
    }

    /// Returns whether this host holds mail for a domain until its home comes for it.
    pub fn holds_for_members(&self, domain: &Domain) -> bool {
        self.members.as_ref().is_some_and(|members| members.holds(domain))
    }

    /// Returns whether a member of the mesh serves a domain.
    pub fn has_home(&self, domain: &Domain) -> bool {
        self.members.as_ref().is_some_and(|members| !members.homes(domain).is_empty())
    }

    /// Returns the other members of the mesh at which mail for a domain ends, where no rule of this host
    /// comes first.
    pub fn homes_by_mesh(&self, domain: &Domain) -> Vec<NodeId> {
        let is_ruled = self.locals.contains_key(domain) || self.turns.contains_key(domain);
        match &self.members {
            Some(members) if !is_ruled && self.named_rule(domain).is_none() => {
                let homes = members.homes(domain);
                if homes.contains(&members.me()) { Vec::new() } else { homes }
            }
            _ => Vec::new(),
        }
    }

    /// Returns the recipients of a domain whose mail this host takes from everybody, to pass it on; `None`: it takes
    /// none.
    pub fn accepts(&self, domain: &Domain) -> Option<&Accept> {
        let is_kept = self.locals.contains_key(domain) || self.turns.contains_key(domain);
        self.named_rule(domain).filter(|_| !is_kept)?.route.accept.as_ref()
    }

    /// Returns the most specific rule for a domain that is not local.
    fn rule(&self, domain: &Domain) -> Option<&Rule> {
        self.named_rule(domain).or(self.any.as_ref())
    }

    /// Returns the most specific rule that names a domain or one above it.
    fn named_rule(&self, domain: &Domain) -> Option<&Rule> {
        self.exact.get(domain).or_else(|| self.longest_below(domain))
    }

    /// Returns whether this host takes mail for a domain from members that may send through it: it
    /// knows the way there, and does not send out what it never offered to.
    pub fn carries_for_members(&self, domain: &Domain) -> bool {
        let Some(members) = &self.members else { return false };
        self.named_rule(domain).is_some() || members.sends_out() || !members.homes(domain).is_empty()
    }

    /// Returns the one host that takes everything, if a route names it.
    fn smarthost(&self) -> Option<(&Rule, &NextHop)> {
        self.any.as_ref().and_then(|rule| Some((rule, rule.fixed.as_ref()?)))
    }

    fn longest_below(&self, domain: &Domain) -> Option<&Rule> {
        if self.below.is_empty() {
            return None;
        }
        let parents = std::iter::successors(domain.parent(), Domain::parent);
        parents.into_iter().find_map(|parent| self.below.get(&parent))
    }

    /// A smarthost takes literals too; without one the address itself is the next hop, unless it is
    /// this host or none that mail can be sent to (RFC 5321 §4.1.3).
    fn route_literal(&self, ip: IpAddr, recorder: &mut Recorder) -> Route {
        if self.is_own(ip) {
            return Route::Refused(OWN_LITERAL);
        }
        if let Some((rule, hop)) = self.smarthost() {
            note_rule(rule, recorder);
            return Route::Smtp(hop.clone());
        }
        if let Some(why) = mx::refusal(ip, self.allow_loopback) {
            recorder.dropped(ip, why);
            return Route::Refused(BAD_LITERAL);
        }
        recorder.note(|| Step::NoRule);
        let addr = SocketAddr::new(ip.to_canonical(), self.port);
        Route::Smtp(NextHop::new(Target::Literal(addr), self.tls, None, 0))
    }
}

/// The local domains whose postmaster is the configured one: all that do not list theirs. Nobody
/// looks for a directory here; whoever sets `postmaster` means it.
fn without_postmaster(config: &Config) -> HashSet<Domain> {
    let lists_one = |recipients: &Recipients| match recipients {
        Recipients::Listed(names) => names.iter().any(|name| name == "postmaster"),
        Recipients::Directories | Recipients::Any => false,
    };
    let all = config.locals.iter().filter(|local| config.postmaster.is_some() && !lists_one(&local.recipients));
    all.map(|local| local.domain.clone()).collect()
}

/// What waits for customers. All of them have the limits that stand behind those of the routes.
fn turns(config: &Config) -> HashMap<Domain, Turn> {
    let pace = pace_behind_routes(config, 1);
    let of_user = |turn: &config::Turn| {
        let (user, patience, line) = (turn.user.clone(), turn.patience, turn.line);
        let entry =
            move |domain: &Domain| (domain.clone(), Turn { hop: TurnHop::new(&user, domain, pace), patience, line });
        turn.domains.iter().map(entry).collect::<Vec<_>>()
    };
    config.turns.iter().flat_map(of_user).collect()
}

/// Returns the number of limits that stand so far behind those of the routes.
fn pace_behind_routes(config: &Config, place: usize) -> u16 {
    u16::try_from(config.routes.len() + place).unwrap_or(u16::MAX)
}

fn fixed_hop(route: &config::Route, pace: u16) -> Option<NextHop> {
    let Via::Host { host, port } = &route.via else { return None };
    Some(NextHop::fixed(host, *port, route.tls, route.credentials.clone(), pace))
}

fn note_rule(rule: &Rule, recorder: &mut Recorder) {
    recorder.note(|| Step::Rule {
        pattern: rule.route.matches.to_string(),
        via: format!("{} (TLS {})", rule.route.via, tls_name(rule.route.tls)),
        line: rule.route.line,
    });
}

#[cfg(test)]
mod tests;
