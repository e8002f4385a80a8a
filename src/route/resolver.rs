//! Next hop to hops: MX, A and AAAA look-ups, with a deadline for the whole and a cache.
//!
//! Answers are cached by hickory for as long as DNS allows; failures by [`Failures`]. What DNS says
//! of a stranger's domain may be permanent; what it says of a host that the configuration names
//! never is. Look-ups are only ever for fully qualified names, search domains are not tried.

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use postroad_mesh::candidate::{is_dialled, is_on_loopback};
use postroad_smtp::{Domain, Host, Reply};
use tokio::task::JoinSet;

use super::failures::Failures;
use super::mx::{self, AddressRules, Exchange, MxRecord};
use super::recorder::{Recorder, Step};
use super::{Found, Hop, Member, NextHop, OwnAddresses, ResolveError, Target, tls_name};
use crate::config::{AddressFamily, Config, TlsUse};

/// The deadline for all look-ups of one next hop, in multiples of `dns.timeout`.
const DEADLINE_TIMEOUTS: u32 = 4;
/// Answers kept in the cache.
const ANSWERS_MAX: u64 = 16_384;
/// Queries under way over one connection to a name server.
const QUERIES_MAX: usize = 1024;
/// The longest chain of aliases followed when asking where a name leads.
const ALIASES_MAX: usize = 8;

/// Finds hops. Cheap to clone; clones share the caches.
#[derive(Clone)]
pub struct Resolver(Arc<Inner>);

/// Why there is no resolver.
#[derive(Debug, thiserror::Error)]
pub enum ResolverError {
    /// The system's configuration is missing or broken.
    #[error("cannot use the system's name servers: {0}; mend /etc/resolv.conf or set [dns] servers")]
    System(String),
    /// The library refuses.
    #[error("cannot set up name resolution: {0}; check [dns] servers")]
    Library(String),
}

struct Inner {
    dns: TokioResolver,
    failures: Mutex<Failures<(Domain, RecordType)>>,
    families: Vec<AddressFamily>,
    hostname: Domain,
    own: OwnAddresses,
    port: u16,
    allow_loopback: bool,
    /// Whether members are reached over loopback.
    is_on_loopback: bool,
    deadline: Duration,
}

/// What one look-up came to.
enum Answer {
    /// There are such records.
    Records(Lookup),
    /// The name exists without such records.
    Empty,
    /// There is no such name.
    NoName,
}

impl Resolver {
    /// Sets up name resolution; asks nobody yet.
    ///
    /// # Errors
    /// The system's name servers are asked for and not configured.
    pub fn new(config: &Config) -> Result<Resolver, ResolverError> {
        let mut builder = match &config.dns.servers[..] {
            [] => TokioResolver::builder_tokio().map_err(|error| ResolverError::System(error.to_string()))?,
            servers => {
                let servers = servers.iter().map(name_server).collect();
                let servers = ResolverConfig::from_name_servers(servers);
                let mut builder = TokioResolver::builder_with_config(servers, TokioRuntimeProvider::default());
                builder.options_mut().use_hosts_file = ResolveHosts::Never;
                builder
            }
        };
        let options = builder.options_mut();
        options.timeout = config.dns.timeout;
        options.attempts = 1;
        options.cache_size = ANSWERS_MAX;
        options.max_active_requests = QUERIES_MAX;
        let dns = builder.build().map_err(|error| ResolverError::Library(error.to_string()))?;
        Ok(Resolver(Arc::new(Inner {
            dns,
            failures: Mutex::default(),
            families: config.outbound.address_families.clone(),
            hostname: config.hostname.clone(),
            own: OwnAddresses::new(config.listen.smtp.clone()),
            port: config.outbound.port,
            allow_loopback: config.outbound.allow_loopback,
            is_on_loopback: is_on_loopback(&config.mesh.addresses),
            deadline: config.dns.timeout * DEADLINE_TIMEOUTS,
        })))
    }

    /// Returns the site and the addresses to try.
    ///
    /// # Errors
    /// Why there is none; [`Reply`] says whether for good.
    pub async fn resolve(&self, next_hop: &NextHop) -> Result<Found, ResolveError> {
        self.resolve_recorded(next_hop, &mut Recorder::off()).await
    }

    /// The same, recording why.
    ///
    /// # Errors
    /// As [`Resolver::resolve`].
    pub async fn resolve_recorded(&self, next_hop: &NextHop, recorder: &mut Recorder) -> Result<Found, ResolveError> {
        let search = tokio::time::timeout(self.0.deadline, self.find(next_hop, recorder));
        let found = search.await.unwrap_or_else(|_| Err(self.too_late(next_hop)));
        match &found {
            Ok(found) => found.hops.iter().for_each(|hop| recorder.note(|| hop_step(hop))),
            Err(error) => recorder.note(|| Step::Failed { reply: Reply::from(error).to_string() }),
        }
        found
    }

    /// Forgets failed look-ups, so that the next attempt asks again.
    pub fn forget_failures(&self) {
        self.failures().clear();
    }

    async fn find(&self, next_hop: &NextHop, recorder: &mut Recorder) -> Result<Found, ResolveError> {
        let hops = match next_hop.target() {
            Target::Mx(domain) => return self.find_exchanges(next_hop, domain, recorder).await,
            Target::Host { name, port } => self.host(next_hop, name, *port, recorder).await?,
            Target::Address(addr) | Target::Literal(addr) => match self.0.own.answers_at(*addr) {
                true => return Err(configured(addr, "it is this host itself")),
                false => vec![next_hop.hop(&Host::Literal(addr.ip()).to_string(), *addr)],
            },
            Target::Members { steps, domain } => self.members(steps, domain, recorder).await?,
        };
        Ok(Found { site: next_hop.key().clone(), hops })
    }

    async fn find_exchanges(
        &self,
        next_hop: &NextHop,
        domain: &Domain,
        recorder: &mut Recorder,
    ) -> Result<Found, ResolveError> {
        let inner = &self.0;
        let rules = AddressRules {
            families: &inner.families,
            allow_loopback: inner.allow_loopback,
            is_self: &|ip| inner.own.answers_at(SocketAddr::new(ip, inner.port)),
        };
        let exchanges = self.exchanges(domain, recorder).await?;
        let site = next_hop.site(&exchanges);
        let found = self.addresses(exchanges, recorder).await;
        let candidates = mx::arrange(domain, found, &rules, recorder);
        let candidates = match candidates {
            Err(ResolveError::NoMailHost { domain }) => Err(self.no_mail_host(domain).await),
            other => other,
        }?;
        let hop = |c: mx::Candidate| next_hop.hop(c.exchange.name.as_str(), SocketAddr::new(c.ip, inner.port));
        Ok(Found { site, hops: candidates.into_iter().map(hop).collect() })
    }

    /// The exchanges of a domain, or the domain itself when it has no MX (RFC 5321 §5.1).
    async fn exchanges(&self, domain: &Domain, recorder: &mut Recorder) -> Result<Vec<Exchange>, ResolveError> {
        let records = match self.query(domain, RecordType::MX, recorder).await {
            Ok(Answer::Records(lookup)) => mx_records(domain, &lookup, recorder),
            Ok(Answer::Empty) => Vec::new(),
            Ok(Answer::NoName) => return Err(ResolveError::NoSuchDomain { domain: domain.clone() }),
            Err(why) => return Err(ResolveError::Unanswered { name: domain.clone(), why }),
        };
        let records = if records.is_empty() {
            recorder.note(|| Step::ImplicitMx { domain: domain.to_string() });
            vec![MxRecord { preference: 0, exchange: domain.as_str().into() }]
        } else {
            records
        };
        mx::select(domain, records, |name| *name == self.0.hostname, &mut fastrand::Rng::new(), recorder)
    }

    /// Looks up the addresses of all exchanges at once; the order is kept.
    async fn addresses(&self, exchanges: Vec<Exchange>, recorder: &mut Recorder) -> Vec<(Exchange, mx::Found)> {
        let mut under_way = JoinSet::new();
        for (place, exchange) in exchanges.iter().enumerate() {
            let (resolver, name) = (self.clone(), exchange.name.clone());
            let mut own = recorder.fork();
            under_way.spawn(async move { (place, resolver.addresses_of(&name, &mut own).await, own) });
        }
        let mut found = under_way.join_all().await;
        found.sort_by_key(|(place, ..)| *place);
        let with = |(exchange, (_, found, own)): (Exchange, (usize, mx::Found, Recorder))| {
            recorder.append(own);
            (exchange, found)
        };
        exchanges.into_iter().zip(found).map(with).collect()
    }

    async fn addresses_of(&self, name: &Domain, recorder: &mut Recorder) -> mx::Found {
        let wants = |family| self.0.families.contains(&family);
        let (mut for_a, mut for_aaaa) = (recorder.fork(), recorder.fork());
        let a = async {
            match wants(AddressFamily::Ipv4) {
                true => self.query(name, RecordType::A, &mut for_a).await,
                false => Ok(Answer::Empty),
            }
        };
        let aaaa = async {
            match wants(AddressFamily::Ipv6) {
                true => self.query(name, RecordType::AAAA, &mut for_aaaa).await,
                false => Ok(Answer::Empty),
            }
        };
        let (a, aaaa) = tokio::join!(a, aaaa);
        recorder.append(for_a);
        recorder.append(for_aaaa);
        let mut addresses = Vec::new();
        let mut unanswered = None;
        for answer in [aaaa, a] {
            match answer {
                Ok(Answer::Records(lookup)) => addresses.extend(ip_addresses(&lookup)),
                Ok(Answer::Empty | Answer::NoName) => {}
                Err(why) => unanswered = Some(why),
            }
        }
        match unanswered.filter(|_| addresses.is_empty()) {
            Some(why) => {
                recorder.note(|| Step::Unresolved { name: name.to_string(), why: why.to_string() });
                mx::Found::Unanswered(why)
            }
            None => {
                recorder.note(|| Step::Addresses { name: name.to_string(), addresses: addresses.clone() });
                mx::Found::Addresses(addresses)
            }
        }
    }

    /// The addresses of members, of each in its order, a few of each. One whose name is not found is passed over, and
    /// so is one at which a member cannot be.
    async fn members(
        &self,
        steps: &[Arc<Member>],
        domain: &Domain,
        recorder: &mut Recorder,
    ) -> Result<Vec<Hop>, ResolveError> {
        if steps.is_empty() {
            return Err(ResolveError::NoMember { domain: domain.clone() });
        }
        let mut hops = Vec::new();
        // Whoever comes for its mail is not dialled, whatever addresses it states.
        // What others pass on is dialled at the first of them.
        for member in steps.iter().map(Member::first).filter(|member| !member.comes) {
            for address in &member.addresses {
                let found = match (address.host.parse::<IpAddr>(), address.host.parse::<Domain>()) {
                    (Ok(ip), _) => vec![ip],
                    (_, Ok(name)) => match self.addresses_of(&name, recorder).await {
                        mx::Found::Addresses(list) => list,
                        mx::Found::Unanswered(_) => Vec::new(),
                    },
                    _ => Vec::new(),
                };
                let usable = found
                    .into_iter()
                    .map(|ip| SocketAddr::new(ip, address.port))
                    .filter(|at| is_dialled(at.ip(), at.port(), self.0.is_on_loopback))
                    .filter(|at| !self.0.own.answers_at(*at));
                let so_far = hops.iter().filter(|hop: &&Hop| hop.node == Some(member.node)).count();
                let room = mx::ADDRESSES_PER_EXCHANGE_MAX.saturating_sub(so_far);
                hops.extend(usable.take(room).map(|addr| Hop {
                    name: member.to_string().into(),
                    addr,
                    tls: TlsUse::Required,
                    implicit_tls: address.implicit_tls,
                    node: Some(member.node),
                    credentials: None,
                }));
            }
        }
        if hops.is_empty() { Err(ResolveError::NoAddressOfMember { domain: domain.clone() }) } else { Ok(hops) }
    }

    /// The one host of a route. The administrator named it, so loopback is as good as any address.
    async fn host(
        &self,
        next_hop: &NextHop,
        name: &Domain,
        port: u16,
        recorder: &mut Recorder,
    ) -> Result<Vec<Hop>, ResolveError> {
        let rules = AddressRules {
            families: &self.0.families,
            allow_loopback: true,
            is_self: &|ip| self.0.own.answers_at(SocketAddr::new(ip, port)),
        };
        let host = format!("{name}:{port}");
        let found = self.addresses_of(name, recorder).await;
        let why: Box<str> = match &found {
            mx::Found::Unanswered(why) => format!("looking it up failed: {why}").into(),
            mx::Found::Addresses(list) if list.is_empty() => "DNS knows no address of it".into(),
            mx::Found::Addresses(list) if list.iter().any(|ip| (rules.is_self)(*ip)) => "it is this host itself".into(),
            mx::Found::Addresses(_) => "it has no address that mail can be sent to".into(),
        };
        let exchange = Exchange { preference: 0, name: name.clone() };
        let candidates =
            mx::arrange(name, vec![(exchange, found)], &rules, recorder).map_err(|_| configured(host, &why))?;
        Ok(candidates.into_iter().map(|c| next_hop.hop(name.as_str(), SocketAddr::new(c.ip, port))).collect())
    }

    /// Asks one question, unless it failed moments ago.
    async fn query(&self, name: &Domain, wanted: RecordType, recorder: &mut Recorder) -> Result<Answer, Box<str>> {
        let key = (name.clone(), wanted);
        let recent = self.failures().recent(&key, Instant::now()).map(Box::from);
        if let Some(why) = recent {
            recorder.note(|| Step::Remembered { name: name.to_string() });
            return Err(why);
        }
        // 254 and 255 octets fit a Domain but not a DNS message.
        let Ok(dns_name) = Name::from_ascii(format!("{name}.")) else { return Ok(Answer::NoName) };
        let answer = match self.0.dns.lookup(dns_name, wanted).await {
            Ok(lookup) => {
                note_aliases(name, &lookup, recorder);
                let has = lookup.answers().iter().any(|record| record.record_type() == wanted);
                Ok(if has { Answer::Records(lookup) } else { Answer::Empty })
            }
            Err(error) if error.is_nx_domain() => Ok(Answer::NoName),
            Err(error) if error.is_no_records_found() => Ok(Answer::Empty),
            // Our own doing, and over in a moment.
            Err(error @ NetError::Busy) => return Err(describe(&error)),
            Err(error) => Err(describe(&error)),
        };
        match &answer {
            Ok(_) => self.failures().answered(&key),
            Err(why) => self.failures().failed(key, why, Instant::now()),
        }
        answer
    }

    /// Tells a domain without any host from one whose aliases never end, which hickory does not.
    async fn no_mail_host(&self, domain: Domain) -> ResolveError {
        let mut at = domain.clone();
        for _ in 0..ALIASES_MAX {
            let answer = self.query(&at, RecordType::CNAME, &mut Recorder::off()).await;
            let target = match &answer {
                Ok(Answer::Records(lookup)) => lookup.answers().iter().find_map(|record| match &record.data {
                    RData::CNAME(target) => plain(target).parse().ok(),
                    _ => None,
                }),
                _ => None,
            };
            match target {
                Some(target) => at = target,
                None => return ResolveError::NoMailHost { domain },
            }
        }
        ResolveError::AliasLoop { name: domain }
    }

    fn too_late(&self, next_hop: &NextHop) -> ResolveError {
        let why = format!("no answer within {} s", self.0.deadline.as_secs());
        match next_hop.target() {
            Target::Mx(domain) => {
                self.failures().failed((domain.clone(), RecordType::MX), &why, Instant::now());
                ResolveError::Unanswered { name: domain.clone(), why: why.into() }
            }
            Target::Host { name, port } => configured(format!("{name}:{port}"), &why),
            Target::Address(addr) | Target::Literal(addr) => configured(addr, &why),
            Target::Members { domain, .. } => ResolveError::NoAddressOfMember { domain: domain.clone() },
        }
    }

    fn failures(&self) -> std::sync::MutexGuard<'_, Failures<(Domain, RecordType)>> {
        self.0.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").finish_non_exhaustive()
    }
}

fn name_server(addr: &SocketAddr) -> NameServerConfig {
    let mut server = NameServerConfig::udp_and_tcp(addr.ip());
    for connection in &mut server.connections {
        connection.port = addr.port();
    }
    server
}

fn configured(host: impl fmt::Display, why: &str) -> ResolveError {
    ResolveError::ConfiguredHost { host: host.to_string().into(), why: why.into() }
}

fn hop_step(hop: &Hop) -> Step {
    let implicit = if hop.implicit_tls { " from the first octet" } else { "" };
    Step::Hop {
        name: hop.name.to_string(),
        address: hop.addr,
        tls: format!("{}{implicit}", tls_name(hop.tls)),
        user: hop.credentials.as_ref().map(|login| login.user.clone()),
    }
}

fn plain(name: &Name) -> String {
    name.to_ascii().trim_end_matches('.').to_ascii_lowercase()
}

fn mx_records(domain: &Domain, lookup: &Lookup, recorder: &mut Recorder) -> Vec<MxRecord> {
    let record = |data: &RData| match data {
        RData::MX(mx) => Some(MxRecord { preference: mx.preference, exchange: plain(&mx.exchange).into() }),
        _ => None,
    };
    let records: Vec<MxRecord> = lookup.answers().iter().filter_map(|answer| record(&answer.data)).collect();
    recorder.note(|| {
        let show = |record: &MxRecord| format!("{} {}.", record.preference, record.exchange.escape_default());
        Step::Mx { domain: domain.to_string(), records: records.iter().map(show).collect() }
    });
    records
}

fn ip_addresses(lookup: &Lookup) -> impl Iterator<Item = IpAddr> + '_ {
    lookup.answers().iter().filter_map(|record| match &record.data {
        RData::A(a) => Some(IpAddr::V4(a.0)),
        RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
        _ => None,
    })
}

fn note_aliases(name: &Domain, lookup: &Lookup, recorder: &mut Recorder) {
    let mut seen = HashSet::from([name.to_string()]);
    for record in lookup.answers() {
        if let RData::CNAME(target) = &record.data {
            let (name, target) = (plain(&record.name), plain(target));
            if seen.insert(target.clone()) {
                recorder.note(|| Step::Alias { name, target });
            }
        }
    }
}

/// Says what happened in words for a person who reads `queue why`.
fn describe(error: &NetError) -> Box<str> {
    match error {
        NetError::Timeout => "the name server did not answer in time".into(),
        NetError::Dns(DnsError::ResponseCode(code)) => format!("the name server answered {code}").into(),
        NetError::Busy => "too many look-ups are under way".into(),
        NetError::Io(_) | NetError::NoConnections => format!("the name server cannot be reached ({error})").into(),
        other => other.to_string().into(),
    }
}
