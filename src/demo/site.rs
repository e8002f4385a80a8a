//! Where the demo runs: a directory, three loopback addresses and ports above 1024 that are free,
//! and the configuration file of each agent. Takes nothing that is in use and leaves no port open.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use super::letters::{DESTINATION, SENDER};

/// Where mail for [`SENDER`] goes: agent a.
pub const SENDER_DOMAIN: &str = "field.test";

/// SMTP ports that are tried, `PORT_STEP` apart.
const PORT_FIRST: u16 = 2525;
const PORT_STEP: u16 = 100;
const PORT_TRIES_MAX: u16 = 20;

/// One of the three hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// Takes submissions, and makes the mesh.
    A,
    /// Relays: the cheap way from a to c.
    B,
    /// Delivers: the home of the letters' domain.
    C,
}

/// What is where.
#[derive(Clone, Debug)]
pub struct Site {
    /// Everything the demo writes lies below it.
    pub dir: PathBuf,
    ips: [IpAddr; 3],
    ports: Ports,
}

#[derive(Clone, Copy, Debug)]
struct Ports {
    smtp: [u16; 3],
    submission: u16,
    submissions: u16,
    metrics: u16,
    claim: u16,
}

/// The port by which demos know of each other; nobody is served on it.
#[derive(Debug)]
pub struct Claim(#[expect(dead_code, reason = "it is held, not used")] TcpListener);

/// What the link costs that leads around b; by way of b it is 11.
pub const LONG_WAY_COST: u16 = 40;

impl Host {
    /// All of them, in the order of the mail's way.
    pub const ALL: [Host; 3] = [Host::A, Host::B, Host::C];

    /// Returns its short name.
    pub const fn letter(self) -> &'static str {
        ["a", "b", "c"][self as usize]
    }

    /// Returns its full name.
    pub const fn hostname(self) -> &'static str {
        ["a.demo.test", "b.demo.test", "c.demo.test"][self as usize]
    }
}

impl Site {
    /// Finds addresses and ports for a demo in `dir`; `None` when everything is taken. They are ours
    /// as long as the claim is kept: another demo then takes others.
    pub fn find(dir: PathBuf) -> Option<(Site, Claim)> {
        let own = [11, 12, 13].map(|last| IpAddr::V4(Ipv4Addr::new(127, 0, 0, last)));
        // Linux has the whole network on its loopback interface, others only one address of it.
        let can_bind = own.iter().all(|ip| TcpListener::bind((*ip, 0)).is_ok());
        let ips = if can_bind { own } else { [IpAddr::V4(Ipv4Addr::LOCALHOST); 3] };
        let bases = (0..PORT_TRIES_MAX).map(|number| PORT_FIRST + number * PORT_STEP);
        let mut sites = bases.map(|base| Site { dir: dir.clone(), ips, ports: Ports::from(base, can_bind) });
        sites.find_map(|site| {
            let claim = TcpListener::bind((site.ips[0], site.ports.claim)).ok()?;
            site.is_free().then_some((site, Claim(claim)))
        })
    }

    fn is_free(&self) -> bool {
        let metrics = SocketAddr::new(self.ips[0], self.ports.metrics);
        let mut all: Vec<SocketAddr> = Host::ALL.iter().map(|host| self.smtp(*host)).collect();
        all.extend([self.submission(), self.submissions(), metrics]);
        let bound: Vec<_> = all.iter().map(TcpListener::bind).collect();
        bound.iter().all(Result::is_ok)
    }

    /// Returns where a host takes mail from others.
    pub fn smtp(&self, host: Host) -> SocketAddr {
        SocketAddr::new(self.ips[host as usize], self.ports.smtp[host as usize])
    }

    /// Returns where a takes mail from its users, with STARTTLS.
    pub fn submission(&self) -> SocketAddr {
        SocketAddr::new(self.ips[0], self.ports.submission)
    }

    /// Returns where a takes mail from its users, with TLS from the first octet.
    pub fn submissions(&self) -> SocketAddr {
        SocketAddr::new(self.ips[0], self.ports.submissions)
    }

    /// Returns where b shows its metrics.
    pub fn metrics(&self) -> SocketAddr {
        SocketAddr::new(self.ips[1], self.ports.metrics)
    }

    /// Returns the directory of a host.
    pub fn host_dir(&self, host: Host) -> PathBuf {
        self.dir.join(host.letter())
    }

    /// Returns the configuration file of a host.
    pub fn config_file(&self, host: Host) -> PathBuf {
        self.host_dir(host).join("postroad.toml")
    }

    /// Returns the state directory of a host.
    pub fn state_dir(&self, host: Host) -> PathBuf {
        self.host_dir(host).join("state")
    }

    /// Returns the control socket of a host.
    pub fn control(&self, host: Host) -> PathBuf {
        self.state_dir(host).join("control.sock")
    }

    /// Returns the log of a host.
    pub fn log(&self, host: Host) -> PathBuf {
        self.host_dir(host).join("log")
    }

    /// Returns the directory of c's mailboxes.
    pub fn mailboxes(&self) -> PathBuf {
        self.host_dir(Host::C).join("mail")
    }

    /// Returns the directory of a's mailboxes, where notifications for the sender end.
    pub fn sender_mailboxes(&self) -> PathBuf {
        self.host_dir(Host::A).join("mail")
    }

    /// Writes the configuration of a host as a person would: only what differs from the defaults.
    pub fn config_text(&self, host: Host, dns: SocketAddr) -> String {
        let mut text = format!("# Agent {} of `postroad demo`.\n", host.letter());
        let mut line = |args: std::fmt::Arguments<'_>| writeln!(text, "{args}").expect("a string takes all");
        line(format_args!("hostname = \"{}\"\nstate_dir = \"state\"\n\n[listen]", host.hostname()));
        line(format_args!("smtp = [\"{}\"]", self.smtp(host)));
        if host == Host::A {
            line(format_args!("submission = [\"{}\"]\nsubmissions = [\"{}\"]", self.submission(), self.submissions()));
        }
        let site = if host == Host::C { "office" } else { "field" };
        line(format_args!(
            "\n[mesh]\nlabel = \"{}\"\nsite = \"{site}\"  # a link within a site costs 1",
            host.letter()
        ));
        line(format_args!("addresses = [\"{}\"]", self.smtp(host)));
        if host == Host::A {
            line(format_args!("link_cost = {LONG_WAY_COST}  # to other sites; 10 for those who say nothing"));
        }
        line(format_args!("\n[dns]\nservers = [\"{dns}\"]  # knows nobody: nothing leaves this machine"));
        line(format_args!(
            "\n[queue]\nretry_first = \"1s\"  # 5m outside this demo\nretry_max = \"2s\"\nreserve = \"16MB\""
        ));
        if host == Host::B {
            line(format_args!("\n[metrics]\nlisten = \"{}\"", self.metrics()));
        }
        let local = match host {
            Host::A => Some(SENDER_DOMAIN),
            Host::B => None,
            Host::C => Some(DESTINATION),
        };
        if let Some(domain) = local {
            line(format_args!("\n[[local]]\ndomain = \"{domain}\"\nmaildir = \"mail/{{user}}\""));
        }
        text
    }

    /// Makes the directories and files of a host. Mailboxes exist because their directories do.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn write(&self, host: Host, dns: SocketAddr) -> std::io::Result<()> {
        std::fs::create_dir_all(self.host_dir(host))?;
        let mailboxes: Vec<PathBuf> = match host {
            Host::A => vec![self.sender_mailboxes().join(local_part(SENDER))],
            Host::B => Vec::new(),
            Host::C => super::letters::MAILBOXES.iter().map(|name| self.mailboxes().join(name)).collect(),
        };
        mailboxes.iter().try_for_each(std::fs::create_dir_all)?;
        std::fs::write(self.config_file(host), self.config_text(host, dns))
    }
}

fn local_part(address: &str) -> &Path {
    Path::new(address.split('@').next().unwrap_or(address))
}

impl Ports {
    /// Ports around `base`; each host has the same where each has its own address.
    fn from(base: u16, own_addresses: bool) -> Ports {
        let smtp = if own_addresses { [base; 3] } else { [base, base + 1, base + 2] };
        Ports { smtp, submission: base + 62, submissions: base - 60, metrics: base + 65, claim: base + 70 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn sites() -> [Site; 2] {
        let site = |ips, own| Site { dir: "/tmp/demo".into(), ips, ports: Ports::from(2525, own) };
        let own = [11, 12, 13].map(|last| IpAddr::V4(Ipv4Addr::new(127, 0, 0, last)));
        [site(own, true), site([IpAddr::V4(Ipv4Addr::LOCALHOST); 3], false)]
    }

    #[test]
    fn every_configuration_is_valid_and_without_warnings() {
        let dns = ([127, 0, 0, 1], 5301).into();
        for site in sites() {
            for host in Host::ALL {
                let text = site.config_text(host, dns);
                let config =
                    Config::from_str(&text, "demo", &site.host_dir(host)).unwrap_or_else(|e| panic!("{e}\n{text}"));
                assert_eq!(config.control.socket, site.control(host));
                assert!(config.listen.is_loopback_only());
                assert_eq!(config.warnings, Vec::<String>::new(), "{text}");
            }
        }
    }

    #[test]
    fn ports_in_use_are_passed_over() {
        let (first, claim) = Site::find("/tmp/demo".into()).expect("free ports");
        let (second, _claim) = Site::find("/tmp/demo".into()).expect("free ports");
        assert_ne!(first.smtp(Host::B), second.smtp(Host::B), "it is claimed");
        let _taken = TcpListener::bind(first.smtp(Host::B)).expect("it was free");
        drop(claim);
        let (third, _claim) = Site::find("/tmp/demo".into()).expect("free ports");
        assert_ne!(first.smtp(Host::B), third.smtp(Host::B), "it is in use");
    }
}
