//! The settings, section by section as in the file, with their defaults. Durations and sizes have
//! been checked against the ranges named at each field in `read`.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use postroad_smtp::Domain;

use super::UserName;

/// What a listener serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Service {
    /// Mail from other hosts (RFC 5321), STARTTLS offered.
    Smtp,
    /// Mail from this site's people and programs (RFC 6409), STARTTLS offered, login needed.
    Submission,
    /// The same with TLS from the first octet (RFC 8314).
    Submissions,
    /// What [`Service::Smtp`] serves, with TLS from the first octet: for members of the mesh.
    Mesh,
    /// No listener: mail for this site's domains that this host fetches over connections that it opened
    /// itself (RFC 2645).
    Fetch,
    /// No listener of `[listen]`: mail that programs of this host hand in by the sendmail command.
    Local,
}

/// `[listen]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Default `127.0.0.1:25` and `[::1]:25`.
    pub smtp: Vec<SocketAddr>,
    /// Default none; the usual port is 587.
    pub submission: Vec<SocketAddr>,
    /// Default none; the usual port is 465.
    pub submissions: Vec<SocketAddr>,
    /// `[mesh] listen`; default none.
    pub mesh: Vec<SocketAddr>,
}

/// `[tls]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Certificate chain and key, both PEM; `None`: a self-signed one in `state_dir/tls/`.
    pub files: Option<TlsFiles>,
}

/// Two files that belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate and the chain above it.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// `[relay]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relay {
    /// Who may relay without a login; default the loopback networks.
    pub networks: Vec<IpNet>,
}

/// `[users]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Users {
    /// Names, password hashes and addresses; default `state_dir/users`. Need not exist.
    pub file: PathBuf,
}

/// `[dns]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dns {
    /// Empty: the system's.
    pub servers: Vec<SocketAddr>,
    /// For one answer of one server; default 5 s.
    pub timeout: Duration,
}

/// How a next hop is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TlsUse {
    /// No TLS.
    Never,
    /// TLS when offered, with any certificate; plaintext otherwise.
    Opportunistic,
    /// TLS with any certificate, or no delivery.
    Required,
    /// TLS with a certificate that names the next hop and that the system trusts, or no delivery.
    Verify,
}

/// A kind of IP address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AddressFamily {
    /// A records.
    Ipv4,
    /// AAAA records.
    Ipv6,
}

/// `[outbound]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outbound {
    /// The port of hosts found through DNS; default 25.
    pub port: u16,
    /// In the order in which they are tried; never empty.
    pub address_families: Vec<AddressFamily>,
    /// What each site may be sent; a route may say otherwise.
    pub pace: Pace,
    /// Default 500.
    pub connections_max: u32,
    /// How long a connection without work is kept; default 10 s.
    pub idle: Duration,
    /// Connections without work that are kept, at most; default 1,000.
    pub idle_max: u32,
    /// Messages that one connection carries, at most; default 1000.
    pub connection_uses_max: u32,
    /// Default opportunistic.
    pub tls: TlsUse,
    /// The name said in EHLO; `None`: the hostname.
    pub helo: Option<Domain>,
    /// Whether loopback addresses that DNS names are used; default false: a stranger's MX could
    /// point at services of this host that trust it.
    pub allow_loopback: bool,
}

/// What a site may be sent: `connections_per_destination`, `message_rate` and `data_rate`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Connections at a time; default 20.
    pub connections_max: u32,
    /// Messages in a time; default as many as it takes.
    pub messages: Option<Rate>,
    /// Octets of content in a time; default as many as it takes.
    pub octets: Option<Rate>,
}

/// So many in a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// At least 1.
    pub count: u64,
    /// At least a second.
    pub period: Duration,
}

/// `[queue]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Queue {
    /// When undeliverable mail goes back; default 5 days.
    pub expire: Duration,
    /// When the sender hears of a delay; `None` ("0s"): never. Default 4 hours.
    pub delay_notice: Option<Duration>,
    /// Free space below which no mail is accepted, in octets; default 256 MB.
    pub reserve_octets: u64,
    /// Default 5 minutes, doubling up to 4 hours.
    pub retry: Retry,
    /// How far ahead a submission may name its release (RFC 4865); `None` ("0s"): not at all.
    /// Default 30 days.
    pub future_release_max: Option<Duration>,
    /// New mail waits until it is released; default false.
    pub hold: bool,
}

/// The pauses between attempts: `retry_first`, `retry_factor` and `retry_max`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Retry {
    /// After the first attempt.
    pub first: Duration,
    /// What each pause is to the one before; 1.0 to 10.0.
    pub factor: f64,
    /// The longest; at least `first`.
    pub max: Duration,
}

/// How often and how long mail for a recipient is tried.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Patience {
    /// The pauses between attempts.
    pub retry: Retry,
    /// How long after its arrival it is given up; `None`: after the `queue.expire` that it was accepted under.
    pub expire: Option<Duration>,
    /// When the sender hears of a delay; `None`: never.
    pub delay_notice: Option<Duration>,
}

/// `[limits]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The content of one message, in octets; default 50 MB.
    pub message_octets_max: u64,
    /// Of one message; default 1000, at least the 100 of RFC 5321 §4.5.3.1.8.
    pub recipients_max: u32,
    /// Incoming at a time; default 1000.
    pub sessions_max: u32,
    /// Incoming at a time from one IPv4 address or one IPv6 /64; default 50.
    pub sessions_per_address_max: u32,
    /// Received fields of one message; default 50.
    pub hops_max: u32,
    /// Refused commands of one session; default 20.
    pub errors_max: u32,
    /// Failed logins of one IPv4 address or one IPv6 /64 in ten minutes; default 10.
    pub auth_failures_max: u32,
    /// What the agent may have, in octets; `None`: half of what its control group or the host has.
    pub memory_octets: Option<u64>,
}

/// `[timeouts]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Server: for the next command; default 5 minutes (RFC 5321 §4.5.3.2.7).
    pub command: Duration,
    /// Both sides: for the next piece of content; default 3 minutes (§4.5.3.2.5).
    pub data: Duration,
    /// Client: for the TCP connection; default 30 s.
    pub connect: Duration,
    /// Client: for greeting and replies to EHLO, MAIL, RCPT; default 5 minutes (§4.5.3.2.1 to 3).
    pub reply: Duration,
    /// Client: for the 354 after DATA; default 2 minutes (§4.5.3.2.4).
    pub data_start: Duration,
    /// Client: for the reply after the content; default 10 minutes (§4.5.3.2.6).
    pub data_end: Duration,
    /// For a member of the mesh to say whether a mailbox exists, while a client waits at RCPT; default 2 s.
    pub mailbox: Duration,
    /// At a stop or restart: for running sessions and attempts to end; default 30 s.
    pub drain: Duration,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// Faults of this host only.
    Error,
    /// And what someone should look at.
    Warn,
    /// And every message's way.
    Info,
    /// And every session's dialogue.
    Debug,
    /// And everything else.
    Trace,
}

/// `[log]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Default text.
    pub format: LogFormat,
    /// Default info.
    pub level: LogLevel,
}

/// `[metrics]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Default none: no metrics are served.
    pub listen: Option<SocketAddr>,
    /// Who may read them beside this host itself; default nobody.
    pub allow: Vec<IpNet>,
}

/// `[control]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// Default `state_dir/control.sock`.
    pub socket: PathBuf,
}

/// `[[local]]`: a domain whose mail ends here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// Unique among the locals.
    pub domain: Domain,
    /// Where its mail goes.
    pub delivery: LocalDelivery,
    /// Which local-parts exist.
    pub recipients: Recipients,
    /// The line of the file that names its domain.
    pub line: usize,
}

/// Where local mail goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalDelivery {
    /// A Maildir for each user.
    Maildir(MaildirTemplate),
    /// An LMTP server (RFC 2033).
    Lmtp(LmtpAddress),
}

/// A path with `{user}` in it: the directory of one user's Maildir.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MaildirTemplate(pub(super) String);

/// Where an LMTP server listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LmtpAddress {
    /// A socket in the file system.
    Unix(PathBuf),
    /// An address and port.
    Tcp(SocketAddr),
}

/// Which local-parts of a local domain exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recipients {
    /// Those with a directory (Maildir only).
    Directories,
    /// These, in lower case without quotes, sorted.
    Listed(Vec<String>),
    /// The LMTP server decides.
    Any,
}

impl Listen {
    /// Returns every address with what it serves.
    pub fn all(&self) -> impl Iterator<Item = (Service, SocketAddr)> + '_ {
        let with = |service| move |address: &SocketAddr| (service, *address);
        let submission = self.submission.iter().map(with(Service::Submission));
        let submissions = self.submissions.iter().map(with(Service::Submissions));
        let mesh = self.mesh.iter().map(with(Service::Mesh));
        self.smtp.iter().map(with(Service::Smtp)).chain(submission).chain(submissions).chain(mesh)
    }

    /// Returns whether only this host itself can connect.
    pub fn is_loopback_only(&self) -> bool {
        self.all().all(|(_, address)| address.ip().to_canonical().is_loopback())
    }
}

impl Service {
    /// Returns the key of `[listen]`, or the section that brings the mail here.
    pub fn as_str(self) -> &'static str {
        match self {
            Service::Smtp => "smtp",
            Service::Submission => "submission",
            Service::Submissions => "submissions",
            Service::Mesh => "mesh",
            Service::Fetch => "fetch",
            Service::Local => "local",
        }
    }

    /// Returns whether TLS begins with the first octet.
    pub fn is_implicit_tls(self) -> bool {
        matches!(self, Service::Submissions | Service::Mesh)
    }

    /// Returns whether mail comes from its authors (RFC 6409): what it lacks is added.
    pub fn is_submission(self) -> bool {
        self.needs_login() || self == Service::Local
    }

    /// Returns whether a login is needed before anything else.
    pub fn needs_login(self) -> bool {
        matches!(self, Service::Submission | Service::Submissions)
    }
}

impl Queue {
    /// Returns how often and how long mail is tried where no route says otherwise.
    pub fn patience(&self) -> Patience {
        Patience { retry: self.retry, expire: None, delay_notice: self.delay_notice }
    }
}

impl Relay {
    /// Returns whether this address may relay without a login.
    pub fn allows(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.networks.iter().any(|network| network.contains(&peer))
    }
}

impl Metrics {
    /// Returns whether this address may read the metrics.
    pub fn allows(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        peer.is_loopback() || self.allow.iter().any(|network| network.contains(&peer))
    }
}

impl MaildirTemplate {
    /// Returns the directory of a user. Only a [`UserName`] can be put into it, which never leads
    /// out of the template.
    pub fn directory(&self, user: &UserName) -> PathBuf {
        PathBuf::from(self.0.replace("{user}", user.as_str()))
    }

    /// Returns the template as written, made absolute.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for LmtpAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            LmtpAddress::Unix(path) => write!(f, "unix:{}", path.display()),
            LmtpAddress::Tcp(address) => address.fmt(f),
        }
    }
}
