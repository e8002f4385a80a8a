//! Why a next hop has no hops, and what that means on the wire: the one table.

use postroad_smtp::{Domain, Reply, Status};

/// Why no hop was found. Permanent and transient are told apart by the [`Reply`] made of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// The domain says it takes no mail (RFC 7505).
    #[error("{domain} does not accept mail (null MX)")]
    NullMx {
        /// The recipient's domain.
        domain: Domain,
    },
    /// DNS knows for certain that there is no such domain.
    #[error("{domain} does not exist")]
    NoSuchDomain {
        /// The recipient's domain.
        domain: Domain,
    },
    /// The domain exists but names no host for mail.
    #[error("no host for mail to {domain}: neither MX nor address records lead to an address")]
    NoMailHost {
        /// The recipient's domain.
        domain: Domain,
    },
    /// All addresses are loopback, unspecified or otherwise nobody's.
    #[error("the hosts for mail to {domain} have only addresses that mail cannot be sent to")]
    NoUsableAddress {
        /// The recipient's domain.
        domain: Domain,
    },
    /// The best exchange is this host, which does not take mail for the domain (RFC 5321 §5.1).
    #[error("mail for {domain} loops back to this host: its MX points here, but the domain is not local")]
    Loop {
        /// The recipient's domain.
        domain: Domain,
    },
    /// Nobody can tell now: SERVFAIL, timeout, no name server.
    #[error("looking up {name} failed: {why}")]
    Unanswered {
        /// The name whose look-up failed.
        name: Domain,
        /// What happened.
        why: Box<str>,
    },
    /// The aliases of a name never end.
    #[error("{name} is an alias that leads nowhere: its CNAME records form a loop or a long chain")]
    AliasLoop {
        /// The name asked for.
        name: Domain,
    },
    /// No member of the mesh can take it on.
    #[error("no member of the mesh has a way for mail to {domain} now")]
    NoMember {
        /// The recipient's domain.
        domain: Domain,
    },
    /// The members of the mesh that could take it have no address that this host could connect to.
    #[error("no address is known of the members of the mesh that take mail for {domain}")]
    NoAddressOfMember {
        /// The recipient's domain.
        domain: Domain,
    },
    /// A host named in the configuration is not found. Whatever DNS says of it, the fault is ours:
    /// mail waits until the route is mended.
    #[error("the next hop {host} of the configured route is not usable: {why}")]
    ConfiguredHost {
        /// The host as configured.
        host: Box<str>,
        /// What happened.
        why: Box<str>,
    },
}

impl From<&ResolveError> for Reply {
    fn from(error: &ResolveError) -> Reply {
        let reply = |code, class, subject, detail| {
            Reply::of(code, Some(Status::new(class, subject, detail)), "").with_text(&error.to_string())
        };
        match error {
            ResolveError::NullMx { .. } => reply(556, 5, 1, 10),
            ResolveError::NoSuchDomain { .. } => reply(550, 5, 1, 2),
            ResolveError::NoMailHost { .. } | ResolveError::NoUsableAddress { .. } => reply(550, 5, 4, 4),
            ResolveError::Loop { .. } => reply(554, 5, 4, 6),
            ResolveError::Unanswered { .. } | ResolveError::AliasLoop { .. } => reply(451, 4, 4, 3),
            ResolveError::ConfiguredHost { .. }
            | ResolveError::NoMember { .. }
            | ResolveError::NoAddressOfMember { .. } => reply(451, 4, 4, 4),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_replies() {
        let domain = || "d.example".parse::<Domain>().expect("valid");
        let table = [
            (ResolveError::NullMx { domain: domain() }, "556 5.1.10 d.example does not accept mail (null MX)"),
            (ResolveError::NoSuchDomain { domain: domain() }, "550 5.1.2 d.example does not exist"),
            (
                ResolveError::NoMailHost { domain: domain() },
                "550 5.4.4 no host for mail to d.example: neither MX nor address records lead to an address",
            ),
            (
                ResolveError::NoUsableAddress { domain: domain() },
                "550 5.4.4 the hosts for mail to d.example have only addresses that mail cannot be sent to",
            ),
            (
                ResolveError::Loop { domain: domain() },
                "554 5.4.6 mail for d.example loops back to this host: its MX points here, but the domain is not local",
            ),
            (
                ResolveError::Unanswered { name: domain(), why: "timed out".into() },
                "451 4.4.3 looking up d.example failed: timed out",
            ),
            (
                ResolveError::AliasLoop { name: domain() },
                "451 4.4.3 d.example is an alias that leads nowhere: its CNAME records form a loop or a long chain",
            ),
            (
                ResolveError::ConfiguredHost { host: "mx.example:587".into(), why: "no such host".into() },
                "451 4.4.4 the next hop mx.example:587 of the configured route is not usable: no such host",
            ),
            (
                ResolveError::NoMember { domain: domain() },
                "451 4.4.4 no member of the mesh has a way for mail to d.example now",
            ),
            (
                ResolveError::NoAddressOfMember { domain: domain() },
                "451 4.4.4 no address is known of the members of the mesh that take mail for d.example",
            ),
        ];
        for (error, text) in table {
            assert_eq!(Reply::from(&error).to_string(), text);
        }
    }
}
