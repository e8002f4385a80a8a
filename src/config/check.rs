//! What sections must agree on, and what is allowed but probably not meant. Opens the TLS files for
//! reading; changes nothing.

use std::collections::HashMap;
use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use postroad_smtp::Host;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use toml::Spanned;

use super::read::Places;
use super::section::Faults;
use super::settings::*;
use super::value::show_duration;
use super::{Config, RouteMatch, Via, turns};

/// The longest path of a socket in the file system, in octets (unix(7), without the final NUL).
const SOCKET_PATH_OCTETS_MAX: usize = 107;

/// The longest PEM file read, in octets.
const PEM_OCTETS_MAX: u64 = 1 << 20;

/// Checks what sections must agree on and returns the warnings.
pub(super) fn check(config: &Config, places: &Places, faults: &Faults) -> Vec<String> {
    listen_twice(places, faults);
    open_relay(config, places, faults);
    metrics(config, places, faults);
    socket_path(config, places, faults);
    locals(config, places, faults);
    routes(config, places, faults);
    turns::check(config, places, faults);
    postmaster(config, places, faults);
    warnings(config)
}

fn listen_twice(places: &Places, faults: &Faults) {
    let mut seen: HashMap<SocketAddr, Service> = HashMap::new();
    for (service, place) in &places.listen {
        let address = *place.get_ref();
        if address.port() == 0 {
            continue;
        }
        if let Some(first) = seen.insert(address, *service) {
            let message = format!("{address} is listened on twice: it is already in `{}`", first.as_str());
            faults.conflict(
                place.span(),
                message,
                "give each service its own port: 25, 587 (submission), 465 (submissions)",
            );
        }
    }
}

/// Never an open relay: nobody means "the whole Internet" when writing a network to relay for.
fn open_relay(config: &Config, places: &Places, faults: &Faults) {
    if config.listen.is_loopback_only() {
        return;
    }
    let mut v4_addresses = 0u64;
    for place in &places.networks {
        let network = place.get_ref();
        let is_wide_open = is_wide_open(network);
        v4_addresses += match network {
            IpNet::V4(net) if !is_wide_open => 1 << (32 - u32::from(net.prefix_len())),
            _ => 0,
        };
        if is_wide_open || v4_addresses > 1 << 31 {
            let message = format!("relaying for {network} while listening beyond loopback would be an open relay");
            let remedy = "name your own networks only, let others log in through `listen.submission`, \
                          or listen on 127.0.0.1 and ::1";
            faults.conflict(place.span(), message, remedy);
        }
    }
}

/// Wider than any one site: the widest there are is 10.0.0.0/8, unique local fc00::/7 and
/// link-local fe80::/10.
fn is_wide_open(network: &IpNet) -> bool {
    match network {
        IpNet::V4(net) => net.prefix_len() < 8,
        IpNet::V6(net) => {
            let first = net.network().segments()[0];
            let is_local = (first & 0xFE00 == 0xFC00 && net.prefix_len() >= 7)
                || (first & 0xFFC0 == 0xFE80 && net.prefix_len() >= 10);
            net.prefix_len() < 16 && !is_local
        }
    }
}

fn metrics(config: &Config, places: &Places, faults: &Faults) {
    let (Some(address), Some(place)) = (config.metrics.listen, &places.metrics) else { return };
    if !address.ip().to_canonical().is_loopback() && config.metrics.allow.is_empty() {
        let message = format!("metrics on {address} could be read by other hosts");
        let remedy = "listen on 127.0.0.1, or say who may read them: allow = [\"192.0.2.0/24\"]";
        faults.conflict(place.clone(), message, remedy);
    }
    if address.port() != 0 && config.listen.all().any(|(_, other)| other == address) {
        faults.conflict(
            place.clone(),
            format!("{address} is already listened on for mail"),
            "choose another port, such as 9025",
        );
    }
}

fn socket_path(config: &Config, places: &Places, faults: &Faults) {
    let octets = config.control.socket.as_os_str().len();
    if octets > SOCKET_PATH_OCTETS_MAX {
        let message =
            format!("the path of the control socket has {octets} octets; the system allows {SOCKET_PATH_OCTETS_MAX}");
        let remedy = "write a shorter path: [control] socket = \"/run/postroad/control.sock\"";
        faults.conflict(places.socket.clone().unwrap_or(0..0), message, remedy);
    }
}

fn locals(config: &Config, places: &Places, faults: &Faults) {
    for (at, local) in config.locals.iter().enumerate() {
        if config.locals[..at].iter().any(|other| other.domain == local.domain) {
            let message = format!("the local domain {} stands here a second time", local.domain);
            faults.conflict(places.locals[at].clone(), message, "keep one [[local]] for each domain");
        }
        if let LocalDelivery::Lmtp(LmtpAddress::Tcp(address)) = &local.delivery
            && config.listen.all().any(|(_, own)| own == *address)
        {
            let message = format!("`lmtp` of {} is this agent's own address {address}: mail would loop", local.domain);
            faults.conflict(places.locals[at].clone(), message, "name the address of the LMTP server");
        }
    }
}

fn routes(config: &Config, places: &Places, faults: &Faults) {
    for (at, route) in config.routes.iter().enumerate() {
        let place = || places.routes[at].clone();
        if config.routes[..at].iter().any(|other| other.matches == route.matches) {
            let message = format!("there is already a route for {}", route.matches);
            faults.conflict(place(), message, "keep one [[route]] for each domain");
        }
        if let RouteMatch::Domain(domain) = &route.matches
            && config.local(domain).is_some()
        {
            let message = format!("{domain} is local: a route for it would never be taken");
            faults.conflict(place(), message, "keep the [[local]] or the [[route]]");
        }
        if let Via::Host { host: Host::Literal(ip), port } = &route.via
            && config.listen.all().any(|(_, own)| own == SocketAddr::new(*ip, *port))
        {
            let message = format!("the route for {} leads back to this agent: mail would loop", route.matches);
            faults.conflict(place(), message, "name the next hop's address");
        }
    }
}

fn postmaster(config: &Config, places: &Places, faults: &Faults) {
    let (Some(mailbox), Some(place)) = (&config.postmaster, &places.postmaster) else { return };
    if mailbox.domain().is_none_or(|domain| *domain == config.hostname && config.local(domain).is_none()) {
        let message = format!("`postmaster`: {mailbox} names this host itself, where it has no mailbox");
        faults.conflict(place.clone(), message, "name an address that somebody reads");
    }
}

/// Checks that a file can be read and holds what it should.
pub(super) fn pem_file(path: &Spanned<PathBuf>, what: &str, faults: &Faults) {
    let place: Range<usize> = path.span();
    let name = path.get_ref().display();
    let octets = match read_regular(path.get_ref()) {
        Ok(octets) => octets,
        Err(fault) => {
            let remedy = "check the path, and that the agent's user may read the file";
            return faults.conflict(place, format!("the {what} {name} cannot be read: {fault}"), remedy);
        }
    };
    let good = match what {
        "certificate" => CertificateDer::pem_slice_iter(&octets).next().is_some_and(|first| first.is_ok()),
        _ => PrivateKeyDer::from_pem_slice(&octets).is_ok(),
    };
    if !good {
        faults.conflict(place, format!("{name} holds no {what}"), "name a PEM file (-----BEGIN …-----) with one");
    }
}

fn read_regular(path: &std::path::Path) -> std::io::Result<Vec<u8>> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(std::io::Error::other("it is no regular file"));
    }
    let mut octets = Vec::new();
    std::fs::File::open(path)?.take(PEM_OCTETS_MAX).read_to_end(&mut octets)?;
    Ok(octets)
}

fn warnings(config: &Config) -> Vec<String> {
    let mut out = Vec::new();
    if config.hostname.as_str().parse::<IpAddr>().is_ok() {
        let ip = &config.hostname;
        out.push(format!(
            "the hostname {ip} is an address; many hosts refuse mail from it: set the name that DNS has for it"
        ));
    }
    if !config.hostname.as_str().contains('.') {
        let name = &config.hostname;
        out.push(format!(
            "the hostname \"{name}\" has no domain; many hosts refuse mail from it: set hostname = \"{name}.example.org\""
        ));
    }
    for local in &config.locals {
        if let LocalDelivery::Lmtp(LmtpAddress::Tcp(address)) = &local.delivery
            && !address.ip().to_canonical().is_loopback()
        {
            out.push(format!("mail for {} crosses the network to {address} without encryption (LMTP)", local.domain));
        }
    }
    if config.queue.hold {
        out.push("queue.hold is on: new mail waits until it is released".to_owned());
    }
    let is_too_late = |notice: Option<Duration>, expire| notice.is_some_and(|notice| notice >= expire);
    if is_too_late(config.queue.delay_notice, config.queue.expire) {
        out.push("queue.delay_notice is not before queue.expire: nobody will hear of a delay".to_owned());
    }
    for route in &config.routes {
        let Some(expire) = route.patience.expire.filter(|expire| is_too_late(route.patience.delay_notice, *expire))
        else {
            continue;
        };
        let (name, expire) = (&route.matches, show_duration(expire));
        out.push(format!(
            "the route for {name} gives up after {expire}, before its delay_notice: nobody will hear of a delay; set delay_notice in it"
        ));
    }
    turns::warnings(config, &mut out);
    if config.listen.all().next().is_none() {
        out.push("no listener: mail enters through the command line only".to_owned());
    }
    out
}
