//! Text -> [`Config`]: TOML, every key optional, an empty file valid and safe.
//!
//! An invalid `Config` cannot be built: outside this room there is no other way to one than
//! [`Config::load`] and [`Config::from_str`], and both return every fault of the file with line,
//! column and remedy. Reading never changes anything and never asks the network.

mod aliases;
mod check;
mod destinations;
mod fault;
mod host;
mod journal;
mod mesh;
mod read;
mod route;
mod section;
mod settings;
mod turns;
mod user_name;
mod value;

use std::io::Read as _;
use std::path::{Path, PathBuf};

use postroad_smtp::{Domain, Host, Mailbox};

pub use aliases::Aliases;
pub use fault::{ConfigErrors, Fault};
pub use journal::Journal;
pub use mesh::{LINK_COST_DEFAULT, Mdns, Mesh};
pub use route::{Accept, Route, RouteCredentials, RouteMatch, Via};
pub use settings::*;
pub use turns::{Fetch, Turn};
pub use user_name::{SUBADDRESS_SEPARATOR, USER_NAME_OCTETS_MAX, UserName};
pub use value::{parse_duration, parse_size, show_duration, show_rate, show_size};

/// Where the configuration is when nobody says otherwise.
pub const CONFIG_FILE_DEFAULT: &str = "/etc/postroad/postroad.toml";

/// The longest configuration read, in octets.
pub const CONFIG_OCTETS_MAX: u64 = 4 << 20;

/// Every setting of the agent.
#[expect(clippy::manual_non_exhaustive, reason = "no other room of this crate may build one either")]
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The name said in greetings, EHLO and Received; default the system's.
    pub hostname: Domain,
    /// Where postmaster mail goes: that of this host, and of local domains that do not list a
    /// postmaster. Default: each local domain's own, and the first one's for this host.
    pub postmaster: Option<Mailbox>,
    /// The directory of queue, keys and users; default /var/lib/postroad.
    pub state_dir: PathBuf,
    /// `aliases`: names of this host and of local domains that stand for other addresses; default none.
    pub aliases: Aliases,
    /// `[listen]`
    pub listen: Listen,
    /// `[tls]`
    pub tls: Tls,
    /// `[relay]`
    pub relay: Relay,
    /// `[users]`
    pub users: Users,
    /// `[dns]`
    pub dns: Dns,
    /// `[outbound]`
    pub outbound: Outbound,
    /// `[queue]`
    pub queue: Queue,
    /// `[journal]`
    pub journal: Journal,
    /// `[limits]`
    pub limits: Limits,
    /// `[timeouts]`
    pub timeouts: Timeouts,
    /// `[log]`
    pub log: Log,
    /// `[metrics]`
    pub metrics: Metrics,
    /// `[control]`
    pub control: Control,
    /// `[mesh]`
    pub mesh: Mesh,
    /// `[[local]]`, in the order of the file; no domain twice.
    pub locals: Vec<Local>,
    /// `[[route]]`, in the order of the file; no pattern twice.
    pub routes: Vec<Route>,
    /// `[[turn]]`, in the order of the file; no user and no domain twice.
    pub turns: Vec<Turn>,
    /// `[[fetch]]`, in the order of the file.
    pub fetches: Vec<Fetch>,
    /// What is allowed but probably not meant, for `check` and the log.
    pub warnings: Vec<String>,
    /// Keeps others from building one without the checks.
    checked: (),
}

impl Default for Config {
    /// The configuration of an empty file.
    fn default() -> Config {
        Config::from_str("", CONFIG_FILE_DEFAULT, Path::new("/etc/postroad")).expect("an empty file is valid")
    }
}

impl Config {
    /// Reads the file named, or [`CONFIG_FILE_DEFAULT`], which need not exist.
    ///
    /// # Errors
    /// The file cannot be read or is invalid.
    pub fn find(named: Option<&Path>) -> Result<Config, ConfigErrors> {
        let default = Path::new(CONFIG_FILE_DEFAULT);
        match named {
            Some(path) => Config::load(path),
            None if matches!(default.try_exists(), Ok(false)) => Ok(Config::default()),
            None => Config::load(default),
        }
    }

    /// Reads a file. Relative paths in it start at its directory.
    ///
    /// # Errors
    /// The file cannot be read or is invalid.
    pub fn load(path: &Path) -> Result<Config, ConfigErrors> {
        let (name, base_dir, text) = file(path)?;
        Config::from_str(&text, &name, &base_dir)
    }

    /// Returns where the agent of a faulty file is: a configuration that has its state directory and control
    /// socket and nothing else of it. `None` when the file cannot be read.
    pub fn whereabouts(named: Option<&Path>) -> Option<Config> {
        let (_, base_dir, text) = file(named.unwrap_or(Path::new(CONFIG_FILE_DEFAULT))).ok()?;
        Some(read::whereabouts(&text, &base_dir))
    }

    /// Reads a text. `name` is shown in faults; relative paths start at `base_dir`.
    ///
    /// # Errors
    /// Every fault of the text.
    pub fn from_str(text: &str, name: &str, base_dir: &Path) -> Result<Config, ConfigErrors> {
        read::read(text, base_dir).map_err(|faults| ConfigErrors::new(name, text, faults))
    }

    /// Returns the settings of a local domain, or `None` when its mail goes elsewhere.
    pub fn local(&self, domain: &Domain) -> Option<&Local> {
        self.locals.iter().find(|local| local.domain == *domain)
    }

    /// Returns the route for a domain that is not local: the most specific that matches, or `None`
    /// when DNS decides.
    pub fn route(&self, domain: &Domain) -> Option<&Route> {
        let rank = |route: &&Route| match &route.matches {
            RouteMatch::Domain(_) => usize::MAX,
            RouteMatch::Below(parent) => parent.as_str().len(),
            RouteMatch::Any => 0,
        };
        self.routes.iter().filter(|route| route.matches.matches(domain)).max_by_key(rank)
    }

    /// Returns what is kept for a user who fetches mail.
    pub fn turn(&self, user: &str) -> Option<&Turn> {
        self.turns.iter().find(|turn| turn.user == user)
    }

    /// Returns the name said in EHLO.
    pub fn helo(&self) -> &Domain {
        self.outbound.helo.as_ref().unwrap_or(&self.hostname)
    }

    /// Returns where mail for the postmaster of this host goes, or `None` when nobody was named and
    /// there is no local domain.
    pub fn postmaster(&self) -> Option<Mailbox> {
        let first = || {
            let host = Host::Domain(self.locals.first()?.domain.clone());
            Some(Mailbox { local_part: "postmaster".parse().expect("postmaster is a local-part"), host })
        };
        self.postmaster.clone().or_else(first)
    }

    /// Returns the keys that differ from `old` and only take effect at a restart.
    pub fn changes_needing_restart(&self, old: &Config) -> Vec<&'static str> {
        let changed = [
            ("state_dir", self.state_dir != old.state_dir),
            ("listen.smtp", self.listen.smtp != old.listen.smtp),
            ("listen.submission", self.listen.submission != old.listen.submission),
            ("listen.submissions", self.listen.submissions != old.listen.submissions),
            ("mesh.listen", self.listen.mesh != old.listen.mesh),
            ("queue.reserve", self.queue.reserve_octets != old.queue.reserve_octets),
            ("journal.size_max", self.journal.octets_max != old.journal.octets_max),
            ("journal.age", self.journal.age != old.journal.age),
            ("log.format", self.log.format != old.log.format),
            ("metrics.listen", self.metrics.listen != old.metrics.listen),
            ("control.socket", self.control.socket != old.control.socket),
        ];
        changed.into_iter().filter(|(_, changed)| *changed).map(|(key, _)| key).collect()
    }
}

/// Reads a file. Returns its name as it was given, the directory it is in, and its text.
fn file(path: &Path) -> Result<(String, PathBuf, String), ConfigErrors> {
    let name = path.display().to_string();
    let unreadable = |fault: &dyn std::fmt::Display, remedy: &str| {
        ConfigErrors::unreadable(&name, format!("the configuration cannot be read: {fault}"), remedy.to_owned())
    };
    let path = std::path::absolute(path).map_err(|fault| unreadable(&fault, "name a file"))?;
    let file = std::fs::File::open(&path)
        .map_err(|fault| unreadable(&fault, "check the name, or read it as a user who may"))?;
    let mut octets = Vec::new();
    file.take(CONFIG_OCTETS_MAX + 1)
        .read_to_end(&mut octets)
        .map_err(|fault| unreadable(&fault, "name a regular file"))?;
    if octets.len() as u64 > CONFIG_OCTETS_MAX {
        return Err(unreadable(&"it is longer than 4 MiB", "name a configuration file"));
    }
    match String::from_utf8(octets) {
        Ok(text) => Ok((name, path.parent().unwrap_or(Path::new("/")).to_owned(), text)),
        Err(fault) => {
            let before = String::from_utf8_lossy(&fault.as_bytes()[..fault.utf8_error().valid_up_to()]).into_owned();
            let (line, column) = fault::line_column(&before, before.len());
            let what = format!("line {line}, column {column} is no UTF-8");
            Err(unreadable(&what, "save the file with the encoding UTF-8"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::from_str(text, "test", Path::new("/etc/postroad")).unwrap_or_else(|faults| panic!("{faults}"))
    }

    #[test]
    fn an_empty_file_is_safe() {
        let config = Config::default();
        assert!(config.listen.is_loopback_only() && config.listen.all().count() == 2);
        assert!(config.relay.allows("127.0.0.9".parse().expect("valid")));
        assert!(config.relay.allows("::ffff:127.0.0.1".parse().expect("valid")));
        for stranger in ["192.0.2.1", "10.0.0.1", "::2", "fe80::1", "::ffff:192.0.2.1"] {
            assert!(!config.relay.allows(stranger.parse().expect("valid")), "{stranger}");
        }
        assert_eq!(config.control.socket, Path::new("/var/lib/postroad/control.sock"));
        assert_eq!(config.users.file, Path::new("/var/lib/postroad/users"));
        assert_eq!((config.metrics.listen, config.postmaster(), config.queue.hold), (None, None, false));
    }

    #[test]
    fn relative_paths_start_at_the_file() {
        let config = config("state_dir = \"/srv/mail\"\n[users]\nfile = \"users\"");
        assert_eq!(config.users.file, Path::new("/etc/postroad/users"));
        assert_eq!(config.control.socket, Path::new("/srv/mail/control.sock"));
    }

    #[test]
    fn the_most_specific_route_is_taken() {
        let route = |domain: &str, via: &str| format!("[[route]]\ndomain = \"{domain}\"\nvia = \"{via}\"\n");
        let text = [("*", "a"), (".example", "b"), (".corp.example", "c"), ("corp.example", "mx")];
        let config = config(&text.map(|(domain, via)| route(domain, via)).concat());
        for (domain, via) in [
            ("corp.example", "mx"),
            ("x.corp.example", "c:25"),
            ("y.x.corp.example", "c:25"),
            ("other.example", "b:25"),
            ("notcorp.example", "b:25"),
            ("example", "a:25"),
            ("example.org", "a:25"),
        ] {
            let found = config.route(&domain.parse().expect("valid")).expect("the star takes all");
            assert_eq!(found.via.to_string(), via, "{domain}");
        }
    }

    #[test]
    fn a_login_is_only_ever_said_to_a_verified_host() {
        let text = "[[route]]\ndomain = \"*\"\nvia = \"isp.example:465\"\nuser = \"u\"\npassword_file = \"p\"";
        let route = &config(text).routes[0];
        assert_eq!((route.tls, route.via.is_implicit_tls()), (TlsUse::Verify, true));
    }

    #[test]
    fn wide_networks_are_refused_only_where_strangers_can_connect() {
        let text =
            |listen: &str, network: &str| format!("[listen]\nsmtp = [\"{listen}\"]\n[relay]\nnetworks = [{network}]");
        let read = |text: &str| Config::from_str(text, "test", Path::new("/"));
        let halves = "\"0.0.0.0/1\", \"128.0.0.0/1\"";
        let eighths = (0..=255).map(|n| format!("\"{n}.0.0.0/8\"")).collect::<Vec<_>>().join(",");
        for network in ["\"0.0.0.0/0\"", "\"::/0\"", "\"2000::/3\"", "\"::ffff:0:0/96\"", halves, &eighths] {
            assert!(read(&text("0.0.0.0:25", network)).is_err(), "{network}");
            assert!(read(&text("[::]:25", network)).is_err(), "{network}");
            assert!(read(&text("[::ffff:127.0.0.1]:25", network)).is_ok(), "{network}");
        }
        for network in ["\"10.0.0.0/8\"", "\"fc00::/7\"", "\"fe80::/10\"", "\"2001:db8::/32\""] {
            assert!(read(&text("0.0.0.0:25", network)).is_ok(), "{network}");
        }
    }

    #[test]
    fn only_domains_of_somebody_are_accepted_from_everybody() {
        let text =
            |domain: &str, accept: &str| format!("[[route]]\ndomain = \"{domain}\"\nvia = \"mx\"\naccept = {accept}");
        let read = |text: &str| Config::from_str(text, "test", Path::new("/"));
        for domain in ["*", ".org", ".localdomain"] {
            for accept in ["\"any\"", "[\"alice\"]", "[]"] {
                let faults = read(&text(domain, accept)).expect_err(domain).to_string();
                assert!(faults.contains("an open relay"), "{faults}");
            }
        }
        let listed = |names: &[&str]| Accept::Listed(names.iter().map(|name| (*name).to_owned()).collect());
        for (accept, want) in
            [("\"any\"", Accept::Any), ("[\"Bob\", \"al\", \"bob\"]", listed(&["al", "bob"])), ("[]", listed(&[]))]
        {
            for domain in ["intranet", "example.org", ".example.org"] {
                assert_eq!(config(&text(domain, accept)).routes[0].accept, Some(want.clone()), "{domain} {accept}");
            }
        }
        for accept in ["true", "\"all\"", "[1]", "[\"a@example.org\"]"] {
            assert!(read(&text("example.org", accept)).is_err(), "{accept}");
        }
    }

    #[test]
    fn a_reload_names_what_it_cannot_change() {
        let old = Config::default();
        let new = config("state_dir = \"/srv\"\n[listen]\nsubmission = [\"127.0.0.1:587\"]\n[queue]\nhold = true");
        assert_eq!(new.changes_needing_restart(&old), ["state_dir", "listen.submission", "control.socket"]);
        assert!(old.changes_needing_restart(&old).is_empty());
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics_the_reader(text in "\\PC{0,200}") {
            let _ = Config::from_str(&text, "t", Path::new("/")).map_err(|faults| (faults.to_string(), faults.styled()));
        }

        /// Keys that exist with values that do not fit them.
        #[test]
        fn no_value_panics_the_reader(
            section in "(|\\[(listen|tls|relay|users|dns|outbound|queue|journal|limits|timeouts|log|metrics|control|mesh)\\]|\\[\\[(local|route|turn|fetch)\\]\\])",
            lines in proptest::collection::vec((
                "(hostname|postmaster|smtp|certificate|networks|servers|timeout|port|tls|helo|expire|reserve|retry_max|\
                  retry_factor|delay_notice|size_max|age|message_size|hops|socket|domain|maildir|lmtp|recipients|via|user|address_families|\
                  accept|addresses|label|reach|egress|serves|pickups|holds|domains|keep|keepalive|every|secret_file|connections)",
                "([-0-9.einfax]{1,8}|\"[^\"]{0,20}\"|\\[(\"[^\"]{0,12}\",){0,3}\\]|\\{a=1\\}|true|1979-05-27)",
            ), 0..6),
        ) {
            let lines = lines.iter().map(|(key, value)| format!("{key} = {value}\n")).collect::<String>();
            let text = format!("{section}\n{lines}");
            let _ = Config::from_str(&text, "t", Path::new("/")).map_err(|faults| (faults.to_string(), faults.styled()));
        }
    }
}
