//! MX answers to an ordered list of addresses (RFC 5321 §5.1, RFC 7505): pure, no DNS.
//!
//! [`select`] turns MX records into the exchanges worth looking up, [`arrange`] turns their
//! addresses into the order of attempts. Neither ever lets this host, or anything no better than
//! it, through, puts a worse exchange before a better one, or exceeds its limits.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use postroad_smtp::Domain;

use super::fault::ResolveError;
use super::recorder::{Drop, Recorder};
use crate::config::AddressFamily;

/// The most exchanges of one domain that are looked up.
pub const EXCHANGES_MAX: usize = 16;
/// The most addresses tried for one domain.
pub const ADDRESSES_MAX: usize = 16;
/// The most addresses tried of one exchange, so that the first cannot crowd out the others.
pub const ADDRESSES_PER_EXCHANGE_MAX: usize = 8;

/// An MX record as answered: the exchange is untrusted text, `""` for the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MxRecord {
    /// Lower is better.
    pub preference: u16,
    /// The host name, without its trailing dot.
    pub exchange: Box<str>,
}

/// An exchange worth looking up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Lower is better.
    pub preference: u16,
    /// The host.
    pub name: Domain,
}

/// What the look-up of one exchange's addresses came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Its addresses; none when the name is known to have none.
    Addresses(Vec<IpAddr>),
    /// Nobody can tell now.
    Unanswered(Box<str>),
}

/// An address to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The exchange it belongs to.
    pub exchange: Exchange,
    /// Where to connect.
    pub ip: IpAddr,
}

/// Which addresses may be tried, and in which order.
pub struct AddressRules<'a> {
    /// The families used, the preferred one first; never empty.
    pub families: &'a [AddressFamily],
    /// Whether loopback addresses out of DNS are used.
    pub allow_loopback: bool,
    /// Whether an address is this host's own.
    pub is_self: &'a (dyn Fn(IpAddr) -> bool + Sync),
}

/// Chooses the exchanges to look up: better preference first, equal ones shuffled, at most
/// [`EXCHANGES_MAX`].
///
/// # Errors
/// A null MX, a set in which this host is the best, and a set without any host name.
pub fn select(
    domain: &Domain,
    records: Vec<MxRecord>,
    is_self: impl Fn(&Domain) -> bool,
    random: &mut fastrand::Rng,
    recorder: &mut Recorder,
) -> Result<Vec<Exchange>, ResolveError> {
    // RFC 7505 §3: a null MX stands alone; beside real exchanges it means nothing.
    if !records.is_empty() && records.iter().all(|record| record.exchange.is_empty()) {
        return Err(ResolveError::NullMx { domain: domain.clone() });
    }
    let mut exchanges = host_names(records, recorder);
    // Shuffled first, then sorted stably: equal preferences keep their random order.
    random.shuffle(&mut exchanges);
    exchanges.sort_by_key(|exchange| exchange.preference);
    let best_self = exchanges.iter().find(|exchange| is_self(&exchange.name)).map(|own| own.preference);
    drop_from(&mut exchanges, best_self, |exchange| exchange, &is_self, recorder);
    let mut seen = HashSet::new();
    exchanges.retain(|exchange| {
        let first = seen.insert(exchange.name.clone());
        if !first {
            recorder.dropped(&exchange.name, Drop::Duplicate);
        }
        first
    });
    for exchange in exchanges.drain(exchanges.len().min(EXCHANGES_MAX)..) {
        recorder.dropped(&exchange.name, Drop::OverLimit);
    }
    match (exchanges.is_empty(), best_self) {
        (false, _) => Ok(exchanges),
        (true, Some(_)) => Err(ResolveError::Loop { domain: domain.clone() }),
        (true, None) => Err(ResolveError::NoMailHost { domain: domain.clone() }),
    }
}

fn host_names(records: Vec<MxRecord>, recorder: &mut Recorder) -> Vec<Exchange> {
    let mut exchanges = Vec::with_capacity(records.len());
    for MxRecord { preference, exchange } in records {
        match exchange.parse() {
            Ok(name) => exchanges.push(Exchange { preference, name }),
            Err(_) => recorder.dropped(exchange.escape_default(), Drop::BadName),
        }
    }
    exchanges
}

/// Drops everything whose preference is not better than `best_self` (RFC 5321 §5.1).
fn drop_from<T>(
    list: &mut Vec<T>,
    best_self: Option<u16>,
    exchange: impl Fn(&T) -> &Exchange,
    is_self: impl Fn(&Domain) -> bool,
    recorder: &mut Recorder,
) {
    let Some(limit) = best_self else { return };
    list.retain(|item| {
        let Exchange { preference, name } = exchange(item);
        if *preference >= limit {
            recorder.dropped(name, if is_self(name) { Drop::IsSelf } else { Drop::NoBetterThanSelf });
        }
        *preference < limit
    });
}

/// Orders the addresses of exchanges that [`select`] chose, keeping the order of the exchanges:
/// families alternate within each, at most [`ADDRESSES_MAX`] in all.
///
/// # Errors
/// Why nothing is left: nobody could tell now, this host is the best exchange, no address at all,
/// or none that mail may be sent to.
pub fn arrange(
    domain: &Domain,
    mut exchanges: Vec<(Exchange, Found)>,
    rules: &AddressRules<'_>,
    recorder: &mut Recorder,
) -> Result<Vec<Candidate>, ResolveError> {
    let own: HashSet<Domain> = exchanges
        .iter()
        .filter(|(_, found)| has_own(found, rules))
        .map(|(exchange, _)| exchange.name.clone())
        .collect();
    let preferences = exchanges.iter().filter(|(exchange, _)| own.contains(&exchange.name));
    let best_self = preferences.map(|(exchange, _)| exchange.preference).min();
    drop_from(&mut exchanges, best_self, |(exchange, _)| exchange, |name| own.contains(name), recorder);

    let mut candidates: Vec<Candidate> = Vec::new();
    let mut unanswered = None;
    let mut refused = false;
    for (exchange, found) in exchanges {
        match found {
            Found::Unanswered(why) => unanswered = unanswered.or(Some((exchange.name, why))),
            Found::Addresses(addresses) => {
                let (usable, all) = usable(addresses, rules, recorder);
                refused |= !all;
                for ip in interleave(usable, rules.families) {
                    offer(&mut candidates, &exchange, ip, recorder);
                }
            }
        }
    }
    if !candidates.is_empty() {
        return Ok(candidates);
    }
    let domain = domain.clone();
    Err(match unanswered {
        Some((name, why)) => ResolveError::Unanswered { name, why },
        None if best_self.is_some() => ResolveError::Loop { domain },
        None if refused => ResolveError::NoUsableAddress { domain },
        None => ResolveError::NoMailHost { domain },
    })
}

/// Whether the host is this one. An address that is refused anyway says nothing: a loopback address
/// in a stranger's DNS is a trap or a mistake, not this host's place among the exchanges.
fn has_own(found: &Found, rules: &AddressRules<'_>) -> bool {
    let is_own = |ip: &IpAddr| refusal(*ip, rules.allow_loopback).is_none() && (rules.is_self)(ip.to_canonical());
    matches!(found, Found::Addresses(list) if list.iter().any(is_own))
}

/// Returns the addresses that may be tried and whether those are all.
fn usable(addresses: Vec<IpAddr>, rules: &AddressRules<'_>, recorder: &mut Recorder) -> (Vec<IpAddr>, bool) {
    let before = addresses.len();
    let mut usable = Vec::with_capacity(before.min(ADDRESSES_PER_EXCHANGE_MAX));
    for ip in addresses {
        match refusal(ip, rules.allow_loopback) {
            Some(why) => recorder.dropped(ip, why),
            None => usable.push(ip.to_canonical()),
        }
    }
    let all = usable.len() == before;
    (usable, all)
}

/// Returns why mail is not sent to an address that a stranger's DNS (or address literal) names,
/// or `None` when it may be. Private networks are allowed: sites resolve their own names to them.
pub fn refusal(ip: IpAddr, allow_loopback: bool) -> Option<Drop> {
    match ip.to_canonical() {
        ip if ip.is_loopback() => (!allow_loopback).then_some(Drop::Loopback),
        IpAddr::V4(ip) => is_nobodys_v4(ip).then_some(Drop::Unusable),
        IpAddr::V6(ip) => is_nobodys_v6(ip).then_some(Drop::Unusable),
    }
}

/// 0.0.0.0/8, link-local, multicast, reserved and broadcast.
fn is_nobodys_v4(ip: Ipv4Addr) -> bool {
    ip.octets()[0] == 0 || ip.is_link_local() || ip.octets()[0] >= 224
}

/// Unspecified, link-local, multicast, and the deprecated `::a.b.c.d`.
fn is_nobodys_v6(ip: Ipv6Addr) -> bool {
    ip.segments()[..6] == [0; 6] || ip.is_unicast_link_local() || ip.is_multicast()
}

fn family_of(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv6() { AddressFamily::Ipv6 } else { AddressFamily::Ipv4 }
}

/// Alternates between the families in the order given; within a family the order is kept.
fn interleave(addresses: Vec<IpAddr>, families: &[AddressFamily]) -> Vec<IpAddr> {
    let of =
        |family: &AddressFamily| addresses.iter().copied().filter(|ip| family_of(*ip) == *family).collect::<Vec<_>>();
    let columns: Vec<Vec<IpAddr>> = families.iter().map(of).collect();
    let rows = columns.iter().map(Vec::len).max().unwrap_or(0);
    (0..rows).flat_map(|row| columns.iter().filter_map(move |column| column.get(row).copied())).collect()
}

/// Adds an address unless it is there already or a limit is reached.
fn offer(candidates: &mut Vec<Candidate>, exchange: &Exchange, ip: IpAddr, recorder: &mut Recorder) {
    let of_exchange = candidates.iter().filter(|candidate| candidate.exchange.name == exchange.name).count();
    if candidates.iter().any(|candidate| candidate.ip == ip) {
        recorder.dropped(ip, Drop::Duplicate);
    } else if candidates.len() >= ADDRESSES_MAX || of_exchange >= ADDRESSES_PER_EXCHANGE_MAX {
        recorder.dropped(ip, Drop::OverLimit);
    } else {
        candidates.push(Candidate { exchange: exchange.clone(), ip });
    }
}

#[cfg(test)]
mod tests;
