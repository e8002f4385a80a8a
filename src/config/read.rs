//! The keys of the file, section by section: name, form, range and default of each. What two
//! sections must agree on is in `check`.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use postroad_smtp::Domain;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::fault::{self, Fault, Kind};
use super::section::{Faults, Section};
use super::settings::*;
use super::value::{self, Read};
use super::{Aliases, Config, aliases, check, destinations, host, journal, mesh, turns};

const STATE_DIR: &str = "/var/lib/postroad";
const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;

/// The places that checks across sections point at.
#[derive(Default)]
pub(super) struct Places {
    pub listen: Vec<(Service, Spanned<SocketAddr>)>,
    pub networks: Vec<Spanned<IpNet>>,
    pub metrics: Option<Range<usize>>,
    pub socket: Option<Range<usize>>,
    pub locals: Vec<Range<usize>>,
    pub routes: Vec<Range<usize>>,
    /// The user, and each domain.
    pub turns: Vec<(Range<usize>, Vec<Range<usize>>)>,
    /// The host, and each domain.
    pub fetches: Vec<(Range<usize>, Vec<Range<usize>>)>,
    pub postmaster: Option<Range<usize>>,
}

/// Reads the whole text.
pub(super) fn read(text: &str, base_dir: &Path) -> Result<Config, Vec<Fault>> {
    let faults = Faults::default();
    let (table, syntax) = DeTable::parse_recoverable(text);
    for fault in syntax {
        let span = fault.span().unwrap_or(0..0);
        faults.add(
            Kind::Syntax,
            span,
            format!("this is not TOML: {}", fault.message()),
            syntax_remedy(fault.message()),
        );
    }
    let (mut config, places) = read_root(Section::root(table.get_ref(), &faults), base_dir, &faults);
    number_lines(&mut config, &places, text);
    let faults = faults.into_inner();
    if faults.is_empty() { Ok(config) } else { Err(faults) }
}

/// Reads only where the agent is, whatever is wrong elsewhere in the text.
pub(super) fn whereabouts(text: &str, base_dir: &Path) -> Config {
    let (table, passed_over) = (DeTable::parse_recoverable(text).0, Faults::default());
    let mut root = Section::root(table.get_ref(), &passed_over);
    let state_dir = root.or("state_dir", PathBuf::from(STATE_DIR), value::path(base_dir));
    let control = control(root.section("control"), base_dir, &state_dir, &mut Places::default());
    Config { state_dir, control, ..Config::default() }
}

/// Fills in the lines, which only whoever has the text knows.
fn number_lines(config: &mut Config, places: &Places, text: &str) {
    let line = |place: &Range<usize>| fault::line_column(text, place.start).0;
    for (local, place) in config.locals.iter_mut().zip(&places.locals) {
        local.line = line(place);
    }
    for (route, place) in config.routes.iter_mut().zip(&places.routes) {
        route.line = line(place);
    }
    for (turn, (place, _)) in config.turns.iter_mut().zip(&places.turns) {
        turn.line = line(place);
    }
    for (fetch, (place, _)) in config.fetches.iter_mut().zip(&places.fetches) {
        fetch.line = line(place);
    }
}

fn syntax_remedy(message: &str) -> &'static str {
    match message {
        text if text.contains("duplicate key") => "keep one of the two",
        text if text.contains("string") => "put texts into double quotes: key = \"text\"",
        _ => "write key = value on a line of its own, below a [section]",
    }
}

fn read_root(mut root: Section<'_>, base_dir: &Path, faults: &Faults) -> (Config, Places) {
    let mut places = Places::default();
    let path = || value::path(base_dir);
    let state_dir = root.or("state_dir", PathBuf::from(STATE_DIR), path());
    let hostname = root.get("hostname", value::domain).map(Spanned::into_inner);
    let postmaster = root.get("postmaster", value::mailbox);
    places.postmaster = postmaster.as_ref().map(Spanned::span);
    let aliases = root.get("aliases", path());
    let mut listen = listen(root.section("listen"), &mut places);
    let mut mesh_section = root.section("mesh");
    listen.mesh = addresses(&mut mesh_section, "listen", Service::Mesh, &mut places).unwrap_or_default();
    let tls = tls(root.section("tls"), base_dir, faults);
    let relay = relay(root.section("relay"), &mut places);
    let users = users(root.section("users"), base_dir, &state_dir);
    let dns = dns(root.section("dns"));
    let outbound = outbound(root.section("outbound"), faults);
    let queue = queue(root.section("queue"), faults);
    let mut config = Config {
        hostname: hostname.unwrap_or_else(host::system_name),
        postmaster: postmaster.map(Spanned::into_inner),
        aliases: Aliases::default(),
        listen,
        tls,
        relay,
        users,
        dns,
        journal: journal::journal(root.section("journal"), faults),
        limits: limits(root.section("limits")),
        timeouts: timeouts(root.section("timeouts")),
        log: log(root.section("log")),
        metrics: metrics(root.section("metrics"), &mut places),
        mesh: mesh::mesh(mesh_section, faults),
        control: control(root.section("control"), base_dir, &state_dir, &mut places),
        locals: root
            .sections("local")
            .into_iter()
            .filter_map(|s| destinations::local(s, base_dir, &mut places, faults))
            .collect(),
        routes: root
            .sections("route")
            .into_iter()
            .filter_map(|s| destinations::route(s, base_dir, (&outbound, &queue), &mut places, faults))
            .collect(),
        turns: root
            .sections("turn")
            .into_iter()
            .filter_map(|s| turns::turn(s, base_dir, &queue, &mut places, faults))
            .collect(),
        fetches: root
            .sections("fetch")
            .into_iter()
            .filter_map(|s| turns::fetch(s, base_dir, &mut places, faults))
            .collect(),
        outbound,
        queue,
        state_dir,
        warnings: Vec::new(),
        checked: (),
    };
    root.finish();
    config.aliases = aliases.map_or(Aliases::default(), |file| read_aliases(&file, &config, faults));
    config.warnings = check::check(&config, &places, faults);
    (config, places)
}

/// Reads the file; what is wrong with it is said with its own place, at the key that names it.
fn read_aliases(file: &Spanned<PathBuf>, config: &Config, faults: &Faults) -> Aliases {
    let is_own = |domain: &Domain| *domain == config.hostname || config.local(domain).is_some();
    let found = aliases::read(file.get_ref(), &is_own);
    found.unwrap_or_else(|found| {
        for aliases::AliasFault { line, column, message, remedy } in found {
            let message = format!("{}:{line}:{column}: {message}", file.get_ref().display());
            faults.conflict(file.span(), message, remedy);
        }
        Aliases::default()
    })
}

pub(super) fn plain<T>(list: Spanned<Vec<Spanned<T>>>) -> Vec<T> {
    list.into_inner().into_iter().map(Spanned::into_inner).collect()
}

fn listen(mut s: Section<'_>, places: &mut Places) -> Listen {
    let loopback = vec![(Ipv4Addr::LOCALHOST, 25).into(), (Ipv6Addr::LOCALHOST, 25).into()];
    let mut read = |service: Service, default| addresses(&mut s, service.as_str(), service, places).unwrap_or(default);
    let listen = Listen {
        smtp: read(Service::Smtp, loopback),
        submission: read(Service::Submission, Vec::new()),
        submissions: read(Service::Submissions, Vec::new()),
        mesh: Vec::new(),
    };
    s.finish();
    listen
}

/// Where a service listens.
fn addresses(s: &mut Section<'_>, key: &'static str, service: Service, places: &mut Places) -> Option<Vec<SocketAddr>> {
    let list = s.list(key, value::listen_address)?;
    let place = |item: &Spanned<SocketAddr>| (service, Spanned::new(item.span(), *item.get_ref()));
    places.listen.extend(list.get_ref().iter().map(place));
    Some(plain(list))
}

fn tls(mut s: Section<'_>, base_dir: &Path, faults: &Faults) -> Tls {
    let files = [s.get("certificate", value::path(base_dir)), s.get("key", value::path(base_dir))];
    let missing = |found: &Spanned<PathBuf>, what: &str, key: &str| {
        let message = format!("a {what} alone is of no use: the key `{key}` is missing");
        faults.conflict(found.span(), message, format!("add {key} = \"…\" to [tls], or take this one out"));
    };
    let files = match files {
        [Some(certificate), Some(key)] => {
            check::pem_file(&certificate, "certificate", faults);
            check::pem_file(&key, "private key", faults);
            Some(TlsFiles { certificate: certificate.into_inner(), key: key.into_inner() })
        }
        [Some(found), None] if !s.holds("key") => {
            missing(&found, "certificate", "key");
            None
        }
        [None, Some(found)] if !s.holds("certificate") => {
            missing(&found, "private key", "certificate");
            None
        }
        _ => None,
    };
    s.finish();
    Tls { files }
}

fn relay(mut s: Section<'_>, places: &mut Places) -> Relay {
    let loopback = || ["127.0.0.0/8", "::1/128"].map(|net| net.parse().expect("a constant network")).to_vec();
    let networks = match s.list("networks", value::network) {
        Some(list) => {
            places.networks = list.get_ref().iter().map(|n| Spanned::new(n.span(), *n.get_ref())).collect();
            plain(list)
        }
        None => loopback(),
    };
    s.finish();
    Relay { networks }
}

fn users(mut s: Section<'_>, base_dir: &Path, state_dir: &Path) -> Users {
    let users = Users { file: s.or("file", state_dir.join("users"), value::path(base_dir)) };
    s.finish();
    users
}

fn dns(mut s: Section<'_>) -> Dns {
    let dns = Dns {
        servers: s.list("servers", value::server_address(53)).map(plain).unwrap_or_default(),
        timeout: s.or("timeout", Duration::from_secs(5), seconds(1..=60)),
    };
    s.finish();
    dns
}

pub(super) fn seconds(range: RangeInclusive<u64>) -> impl Fn(&DeValue<'_>) -> Read<Duration> {
    value::duration(Duration::from_secs(*range.start())..=Duration::from_secs(*range.end()))
}

/// A whole number that fits 32 bits.
pub(super) fn count(range: RangeInclusive<u32>) -> impl Fn(&DeValue<'_>) -> Read<u32> {
    let read = value::integer(u64::from(*range.start())..=u64::from(*range.end()));
    move |found| read(found).map(|number| u32::try_from(number).expect("the range fits 32 bits"))
}

pub(super) fn port(found: &DeValue<'_>) -> Read<u16> {
    value::integer(1..=65535)(found).map(|number| u16::try_from(number).expect("the range fits 16 bits"))
}

pub(super) const TLS_USES: &[(&str, TlsUse)] = &[
    ("opportunistic", TlsUse::Opportunistic),
    ("required", TlsUse::Required),
    ("verify", TlsUse::Verify),
    ("never", TlsUse::Never),
];

fn outbound(mut s: Section<'_>, faults: &Faults) -> Outbound {
    const FAMILIES: &[(&str, AddressFamily)] = &[("ipv6", AddressFamily::Ipv6), ("ipv4", AddressFamily::Ipv4)];
    let families = s.list("address_families", value::choice(FAMILIES));
    if let Some(list) = families.as_ref().filter(|_| s.holds_empty_list("address_families")) {
        faults.conflict(
            list.span(),
            "`address_families` is empty: nothing could be delivered",
            "name \"ipv4\", \"ipv6\" or both",
        );
    }
    let outbound = Outbound {
        port: s.or("port", 25, port),
        address_families: families.map_or_else(|| vec![AddressFamily::Ipv6, AddressFamily::Ipv4], plain),
        pace: pace(&mut s, Pace { connections_max: 20, messages: None, octets: None }),
        connections_max: s.or("connections_max", 500, count(1..=100_000)),
        idle: s.or("idle", Duration::from_secs(10), seconds(0..=300)),
        idle_max: s.or("idle_max", 1_000, count(0..=10_000)),
        connection_uses_max: s.or("connection_uses", 1000, count(1..=1_000_000)),
        tls: s.or("tls", TlsUse::Opportunistic, value::choice(TLS_USES)),
        helo: s.get("helo", value::domain).map(Spanned::into_inner),
        allow_loopback: s.or("allow_loopback", false, value::boolean),
    };
    s.finish();
    outbound
}

const EXPIRE_DEFAULT: Duration = Duration::from_secs(5 * DAY);
const PATIENCE_DEFAULT: Patience = Patience {
    retry: Retry { first: Duration::from_secs(300), factor: 2.0, max: Duration::from_secs(4 * HOUR) },
    expire: None,
    delay_notice: Some(Duration::from_secs(4 * HOUR)),
};

/// What a site may be sent; what is not said is as in `default`.
pub(super) fn pace(s: &mut Section<'_>, default: Pace) -> Pace {
    Pace {
        connections_max: s.or("connections_per_destination", default.connections_max, count(1..=10_000)),
        messages: s.get("message_rate", value::message_rate).map(Spanned::into_inner).or(default.messages),
        octets: s.get("data_rate", value::data_rate).map(Spanned::into_inner).or(default.octets),
    }
}

fn queue(mut s: Section<'_>, faults: &Faults) -> Queue {
    let Patience { retry, expire, delay_notice } = patience(&mut s, PATIENCE_DEFAULT, faults);
    let future_release_max = s.or("future_release_max", Duration::from_secs(30 * DAY), seconds(0..=365 * DAY));
    let queue = Queue {
        expire: expire.unwrap_or(EXPIRE_DEFAULT),
        delay_notice,
        reserve_octets: s.or("reserve", 256_000_000, value::size(0..=1 << 50)),
        retry,
        future_release_max: Some(future_release_max).filter(|max| !max.is_zero()),
        hold: s.or("hold", false, value::boolean),
    };
    s.finish();
    queue
}

/// Reads the keys that a route and `[queue]` have in common.
pub(super) fn patience(s: &mut Section<'_>, default: Patience, faults: &Faults) -> Patience {
    let expire = s.get("expire", seconds(60..=365 * DAY)).map(Spanned::into_inner);
    let notice = s.get("delay_notice", seconds(0..=30 * DAY)).map(Spanned::into_inner);
    Patience {
        retry: retry(s, default.retry, faults),
        expire: expire.or(default.expire),
        delay_notice: notice.map_or(default.delay_notice, |notice| Some(notice).filter(|notice| !notice.is_zero())),
    }
}

fn retry(s: &mut Section<'_>, default: Retry, faults: &Faults) -> Retry {
    let first = s.get("retry_first", seconds(1..=DAY));
    let max = s.get("retry_max", seconds(1..=7 * DAY));
    let place = max.as_ref().map(Spanned::span).or(first.as_ref().map(Spanned::span));
    let retry = Retry {
        first: first.map_or(default.first, Spanned::into_inner),
        factor: s.or("retry_factor", default.factor, value::float(1.0..=10.0)),
        max: max.map_or(default.max, Spanned::into_inner),
    };
    if let Some(place) = place.filter(|_| retry.max < retry.first) {
        let (first, max) = (value::show_duration(retry.first), value::show_duration(retry.max));
        let message = format!("`retry_max` ({max}) is shorter than `retry_first` ({first})");
        faults.conflict(place, message, format!("make `retry_max` at least \"{first}\""));
    }
    retry
}

fn limits(mut s: Section<'_>) -> Limits {
    let limits = Limits {
        message_octets_max: s.or("message_size", 50_000_000, value::size(65_536..=1 << 40)),
        recipients_max: s.or("recipients", 1000, count(100..=100_000)),
        sessions_max: s.or("sessions", 1000, count(1..=1_000_000)),
        sessions_per_address_max: s.or("sessions_per_address", 50, count(1..=1_000_000)),
        hops_max: s.or("hops", 50, count(5..=1000)),
        errors_max: s.or("errors", 20, count(1..=1000)),
        auth_failures_max: s.or("auth_failures", 10, count(1..=10_000)),
        memory_octets: s.get("memory", value::size(32 << 20..=1 << 50)).map(Spanned::into_inner),
    };
    s.finish();
    limits
}

fn timeouts(mut s: Section<'_>) -> Timeouts {
    let mut read = |key, default, range| s.or(key, Duration::from_secs(default), seconds(range));
    let timeouts = Timeouts {
        command: read("command", 300, 1..=HOUR),
        data: read("data", 180, 1..=HOUR),
        connect: read("connect", 30, 1..=600),
        reply: read("reply", 300, 1..=HOUR),
        data_start: read("data_start", 120, 1..=HOUR),
        data_end: read("data_end", 600, 1..=HOUR),
        mailbox: read("mailbox", 2, 1..=60),
        drain: read("drain", 30, 0..=HOUR),
    };
    s.finish();
    timeouts
}

fn log(mut s: Section<'_>) -> Log {
    const FORMATS: &[(&str, LogFormat)] = &[("text", LogFormat::Text), ("json", LogFormat::Json)];
    const LEVELS: &[(&str, LogLevel)] = &[
        ("error", LogLevel::Error),
        ("warn", LogLevel::Warn),
        ("info", LogLevel::Info),
        ("debug", LogLevel::Debug),
        ("trace", LogLevel::Trace),
    ];
    let log = Log {
        format: s.or("format", LogFormat::Text, value::choice(FORMATS)),
        level: s.or("level", LogLevel::Info, value::choice(LEVELS)),
    };
    s.finish();
    log
}

fn metrics(mut s: Section<'_>, places: &mut Places) -> Metrics {
    let listen = s.get("listen", value::listen_address);
    places.metrics = listen.as_ref().map(Spanned::span);
    let allow = s.list("allow", value::network).map(plain).unwrap_or_default();
    s.finish();
    Metrics { listen: listen.map(Spanned::into_inner), allow }
}

fn control(mut s: Section<'_>, base_dir: &Path, state_dir: &Path, places: &mut Places) -> Control {
    let socket = s.get("socket", value::path(base_dir));
    places.socket = socket.as_ref().map(Spanned::span);
    s.finish();
    Control { socket: socket.map_or_else(|| state_dir.join("control.sock"), Spanned::into_inner) }
}
