//! What the way out does for hosts that come for their mail, and for this one when it goes for its own
//! (RFC 2645, RFC 1985).

use std::sync::Arc;

use postroad_mesh::NodeId;
use postroad_queue::schedule::Selector;
use postroad_smtp::{Domain, Node, Reply, Status};
use tracing::debug;

use super::dispatcher::{Core, Delivery};
use super::jobs::key;
use crate::config::Turn;
use crate::net::Address;
use crate::route::{MESH_PREFIX, NextHop, turn};
use crate::turn::fetch::{Caller, NotReversed, Reversed, Source};
use crate::turn::{Carrier, Guest, Reaching, Turned};

/// Destinations looked at without a pause for others.
pub const LOOKED_AT_ONCE: u32 = 2_000;
const NOT_DESCRIBED: Reply =
    Reply::of(451, Some(Status::new(4, 4, 4)), "nothing is known of this member of the mesh yet");

impl Carrier for Delivery {
    fn waiting(&self, turn: &Turn) -> usize {
        let schedule = self.0.schedule();
        let of = |domain: &Domain| {
            let (ready, deferred) = schedule.waiting(&turn::key(&turn.user, domain));
            ready + deferred
        };
        turn.domains.iter().map(of).sum()
    }

    fn at_work(&self, turn: &Turn) -> usize {
        self.0.turned.count_at_work(turn)
    }

    fn close_idle(&self, guest: &Guest) -> bool {
        let oldest = match guest {
            Guest::Customer(turn) => self.0.turned.take_oldest(&self.0, &turn.user),
            Guest::Member(node) => self.0.callers.take_oldest(node),
        };
        let Some(connection) = oldest else { return false };
        self.0.dismiss(connection);
        true
    }

    fn carry(&self, turned: Turned) {
        self.0.spawn(self.0.clone().carry(turned));
    }

    fn reach<'a>(&'a self, node: &'a NodeId) -> Reaching<'a> {
        Box::pin(self.0.reach(node))
    }

    fn start(&self, node: &Node) -> Option<usize> {
        let core = &self.0;
        // Whoever asks for another attempt wants another look-up, too.
        core.routing.load().resolver.forget_failures();
        let jobs = match node {
            Node::Queue(name) => core.retry(name)?,
            Node::Domain(domain) => core.retry(&core.destination(domain))?,
            Node::Within(domain) => {
                let own = core.destination(domain);
                let mut jobs = 0;
                let mut from = Some(0);
                while let Some(number) = from {
                    let is_meant = |name: &str| *name == *own || is_within(name, domain);
                    let (found, next) = core.schedule().retry_some(number, LOOKED_AT_ONCE, is_meant);
                    (jobs, from) = (jobs + found, next);
                }
                jobs
            }
        };
        core.start_ready();
        Some(jobs)
    }
}

impl Core {
    /// Returns where mail for a domain goes.
    fn destination(&self, domain: &Domain) -> Arc<str> {
        key(&self.routing.load().router.route_of(domain))
    }

    /// Makes what goes to a destination due at once; `None` when who fetches it would have to be here.
    fn retry(&self, destination: &str) -> Option<usize> {
        let mut schedule = self.schedule();
        let is_fetched = [turn::PREFIX, MESH_PREFIX].iter().any(|prefix| destination.starts_with(prefix));
        match schedule.is_held(destination) && is_fetched {
            true => None,
            false => Some(schedule.retry_now(Selector::Destination(destination))),
        }
    }
}

/// Returns whether a destination is a domain within another: of those whose keys name a domain.
fn is_within(destination: &str, parent: &Domain) -> bool {
    let rest = ["mx:", "local:"].iter().find_map(|prefix| destination.strip_prefix(prefix));
    let name = rest.map(|rest| rest.split_once('/').map_or(rest, |(name, _)| name));
    name.and_then(|name| name.parse::<Domain>().ok()).is_some_and(|domain| domain.is_within(parent))
}

impl Caller for Delivery {
    async fn reverse(&self, source: &Source) -> Result<Reversed, NotReversed> {
        let core = &self.0;
        let routing = core.routing.load_full();
        let refused = |remote: Option<Box<str>>, reply: Reply| {
            let remote = remote.unwrap_or_else(|| source.to_string().into());
            NotReversed { remote, reply }
        };
        let (next_hop, domains) = match source {
            Source::Host(fetch) => {
                let credentials = Some(fetch.credentials.clone());
                (NextHop::host(&fetch.host, fetch.port, fetch.tls, credentials), &fetch.domains[..])
            }
            Source::Member { node, .. } => {
                let found = routing.router.members().and_then(|members| members.member(node));
                let member = found.cloned().ok_or_else(|| refused(None, NOT_DESCRIBED))?;
                // Whoever holds its mail has its domains by its record.
                (NextHop::member(member, &routing.config.hostname), &[][..])
            }
        };
        let dialled = core.dial_hop(&routing, &next_hop).await;
        let connection = dialled.map_err(|(remote, reply)| refused(remote, reply))?;
        let (remote, address) = (connection.remote().into(), connection.address().clone());
        let stream = connection.reverse(domains).await.map_err(|reply| refused(Some(remote), reply))?;
        let Address::Tcp(peer) = address else { unreachable!("a host is reached by TCP") };
        if let Err(error) = stream.keep_alive() {
            debug!(host = %source, %error, "the kernel does not ask whether the host is still there");
        }
        Ok(Reversed { stream, peer })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_with_all_below_it_is_what_the_keys_name() {
        let parent: Domain = "example.org".parse().expect("a domain");
        for (key, want) in [
            ("mx:example.org", true),
            ("mx:a.b.example.org/verify/route3", true),
            ("local:mail.example.org", true),
            ("mx:notexample.org", false),
            ("mx:org", false),
            ("host:example.org:25", false),
            ("turn:branch/example.org", false),
            ("hosts:mx.example.org", false),
        ] {
            assert_eq!(is_within(key, &parent), want, "{key}");
        }
    }
}
