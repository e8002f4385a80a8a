//! What the router and the resolver did and why, for `postroad explain` and the log.
//!
//! The code that decides is the code that records: a [`Recorder`] is passed along and is either
//! on or off. It never influences a decision.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

/// Collects [`Step`]s, or nothing at all when it is off.
#[derive(Debug, Default)]
pub struct Recorder(Option<Vec<Step>>);

/// One decision on the way from an address to hops.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    /// The domain is one of this host's own.
    Local {
        /// The local domain.
        domain: String,
        /// The line of the configuration its `[[local]]` entry names it on.
        line: usize,
    },
    /// A `[[route]]` entry matches.
    Rule {
        /// Its `domain`, as configured.
        pattern: String,
        /// Its `via`, as configured.
        via: String,
        /// The line of the configuration the entry names it on.
        line: usize,
    },
    /// The mail waits until its customer fetches it.
    Turn {
        /// Who does.
        user: String,
        /// The line of the configuration its `[[turn]]` entry names it on.
        line: usize,
    },
    /// Members of the mesh take it, or this host sends it out itself.
    Mesh {
        /// The ways, the best first; none when it has to wait for one.
        choices: Vec<String>,
    },
    /// No `[[route]]` entry matches: mail goes where MX says.
    NoRule,
    /// The address is refused before any look-up.
    Refused {
        /// What the client hears.
        reply: String,
    },
    /// Where attempts are grouped: all mail with one key shares connections and back-off.
    Destination {
        /// The key of the next hop.
        key: String,
    },
    /// The look-up failed moments ago and is not repeated yet (RFC 9520).
    Remembered {
        /// The name looked up.
        name: String,
    },
    /// The answer to the MX look-up.
    Mx {
        /// The domain asked for.
        domain: String,
        /// `preference exchange`, as answered.
        records: Vec<String>,
    },
    /// There is no MX record: the domain itself is the exchange (RFC 5321 §5.1).
    ImplicitMx {
        /// The domain.
        domain: String,
    },
    /// A CNAME was followed.
    Alias {
        /// The name asked for.
        name: String,
        /// What it stands for.
        target: String,
    },
    /// The addresses of a host.
    Addresses {
        /// The host.
        name: String,
        /// Its addresses, as answered.
        addresses: Vec<IpAddr>,
    },
    /// A host without usable answer.
    Unresolved {
        /// The host.
        name: String,
        /// Why.
        why: String,
    },
    /// Something was left out.
    Dropped {
        /// The exchange or address.
        what: String,
        /// Why.
        why: Drop,
    },
    /// A hop, in the order of attempts.
    Hop {
        /// The host.
        name: String,
        /// Where it listens.
        address: SocketAddr,
        /// The TLS policy.
        tls: String,
        /// The user this host authenticates as.
        user: Option<String>,
    },
    /// The look-up yields no hop.
    Failed {
        /// What the sender would hear.
        reply: String,
    },
}

/// Why an exchange or an address is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Drop {
    /// It is this host.
    IsSelf,
    /// Its preference is no better than that of this host: mail would come back (RFC 5321 §5.1).
    NoBetterThanSelf,
    /// The same host or address stands earlier in the list.
    Duplicate,
    /// Not a host name.
    BadName,
    /// Beyond the number looked up or tried.
    OverLimit,
    /// A loopback address that came out of public DNS.
    Loopback,
    /// An address that is no host's: unspecified, multicast, link-local, reserved.
    Unusable,
}

impl Recorder {
    /// A recorder that keeps nothing.
    pub fn off() -> Recorder {
        Recorder(None)
    }

    /// Returns whether anything is collected.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// A recorder that keeps every step.
    pub fn on() -> Recorder {
        Recorder(Some(Vec::new()))
    }

    /// Keeps a step; `step` is only built when the recorder is on.
    pub fn note(&mut self, step: impl FnOnce() -> Step) {
        if let Some(steps) = &mut self.0 {
            steps.push(step());
        }
    }

    /// Returns whether a way through the mesh was noted.
    pub fn has_ways(&self) -> bool {
        self.0.iter().flatten().any(|step| matches!(step, Step::Mesh { choices } if !choices.is_empty()))
    }

    /// Returns an empty recorder that is on when this one is, for steps taken at the same time.
    pub(super) fn fork(&self) -> Recorder {
        Recorder(self.0.as_ref().map(|_| Vec::new()))
    }

    /// Adds the steps of a fork.
    pub(super) fn append(&mut self, fork: Recorder) {
        if let (Some(steps), Some(more)) = (&mut self.0, fork.0) {
            steps.extend(more);
        }
    }

    /// Notes that something is left out.
    pub(super) fn dropped(&mut self, what: impl fmt::Display, why: Drop) {
        self.note(|| Step::Dropped { what: what.to_string(), why });
    }

    /// Returns the steps in the order they were taken.
    pub fn into_steps(self) -> Vec<Step> {
        self.0.unwrap_or_default()
    }
}

impl fmt::Display for Drop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Drop::IsSelf => "it is this host",
            Drop::NoBetterThanSelf => "no better than this host, mail would come back",
            Drop::Duplicate => "already in the list",
            Drop::BadName => "not a host name",
            Drop::OverLimit => "beyond the limit",
            Drop::Loopback => "a loopback address out of DNS (see outbound.allow_loopback)",
            Drop::Unusable => "not an address mail can be sent to",
        })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Local { domain, line } => write!(f, "{domain} is delivered on this host (configuration line {line})"),
            Step::Rule { pattern, via, line } => {
                write!(f, "route \"{pattern}\" matches: via {via} (configuration line {line})")
            }
            Step::Turn { user, line } => write!(f, "waits for {user} to fetch it (configuration line {line})"),
            Step::Mesh { choices } if choices.is_empty() => {
                f.write_str("no way through the mesh is known: mail waits for one")
            }
            Step::Mesh { choices } => write!(f, "by the mesh: {}", choices.join("; or ")),
            Step::NoRule => f.write_str("no route matches: the next hop is found by MX"),
            Step::Refused { reply } => write!(f, "refused: {reply}"),
            Step::Destination { key } => write!(f, "destination {key}"),
            Step::Remembered { name } => write!(f, "{name}: the last look-up failed, not asked again yet"),
            Step::Mx { domain, records } => write!(f, "{domain} MX {}", records.join(", ")),
            Step::ImplicitMx { domain } => write!(f, "{domain} has no MX: its own address is used"),
            Step::Alias { name, target } => write!(f, "{name} is an alias of {target}"),
            Step::Addresses { name, addresses } if addresses.is_empty() => write!(f, "{name} has no address"),
            Step::Addresses { name, addresses } => {
                let list: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
                write!(f, "{name} has {}", list.join(", "))
            }
            Step::Unresolved { name, why } => write!(f, "{name}: {why}"),
            Step::Dropped { what, why } => write!(f, "{what} dropped: {why}"),
            Step::Hop { name, address, tls, user } => {
                write!(f, "hop {name} {address}, TLS {tls}")?;
                user.as_ref().map_or(Ok(()), |user| write!(f, ", as {user}"))
            }
            Step::Failed { reply } => write!(f, "no hop: {reply}"),
        }
    }
}
