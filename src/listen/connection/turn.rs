//! What a session offers to customers and members who come for their mail (RFC 2645), and to those who
//! have what waits tried now (RFC 1985).

use postroad_smtp::server::Verdict;
use postroad_smtp::{Domain, Reply};
use tracing::info;

use super::{Asking, Connection, Peer};
use crate::config::Service;
use crate::listen::Context;
use crate::metrics;
use crate::net::Stream;
use crate::policy::{self, Authenticated, Client};
use crate::turn::{Grant, Guest, NO_MAIL, Turned};

impl Connection {
    /// Hands the connection to whoever carries mail over it.
    pub(super) fn hand_over(self, stream: Stream) {
        let Connection { context, peer, name, grant, .. } = self;
        if let Some(grant) = grant {
            info!(session = %name, peer = %peer.ip, user = grant.guest.name(), "connection reversed");
            // Its place among the sessions is free again; among those of the guest it has another.
            context.turn.carry(Turned { stream, peer: peer.ip, grant: *grant });
        }
    }

    /// Offers what depends on who is there: ETRN to those who may relay from where they are, and
    /// CRAM-MD5 where somebody has a secret.
    pub(super) fn offer_turn(&mut self) {
        let Context { policy, config, .. } = &*self.context;
        let service = self.peer.service;
        if service == Service::Smtp
            && policy.start(&Client { peer: self.peer.ip, service, user: None, member: None }).is_ok()
        {
            self.session.offer_start();
        }
        if service.needs_login() && config.load().turns.iter().any(|turn| turn.secret_file.is_some()) {
            self.session.offer_cram(&policy::challenge_seed());
        }
    }
}

impl Asking<'_> {
    /// Says what follows from a login, whatever its mechanism.
    pub(super) fn logged_in(&self, login: Result<Authenticated, Reply>) -> Result<Verdict, Reply> {
        let metrics = &self.context.metrics;
        match login {
            Ok(authenticated) => {
                info!(session = %self.name, user = authenticated.user(), "logged in");
                metrics.logins.inc();
                Ok(Verdict::Authenticated(authenticated.user().into()))
            }
            Err(reply) => {
                metrics.logins_failed.inc();
                Err(reply)
            }
        }
    }

    /// Answers ATRN: the policy says who may, and what waits says whether there is reason.
    pub(super) fn turn(&self, peer: &Peer, grant: &mut Option<Box<Grant>>, domains: &[Domain]) -> Verdict {
        let Context { policy, metrics, turn, .. } = self.context;
        let found = match (self.facts.user.as_deref(), peer.node.as_deref()) {
            (None, Some(node)) => policy.turn_member(node, domains).map(|()| Guest::Member(*node)),
            (user, _) => policy.turn(user, domains).map(Guest::Customer),
        };
        let (outcome, verdict) = match found.and_then(|guest| turn.admit(guest)) {
            Ok(admitted) => {
                *grant = Some(Box::new(admitted));
                (metrics::Turn::Done, Verdict::Accept)
            }
            Err(reply) if reply == NO_MAIL => (metrics::Turn::NoMail, Verdict::Refuse(reply)),
            Err(reply) => (metrics::Turn::Failed, self.refuse(peer, "turn", (None, None), reply)),
        };
        metrics.turn.count_turn(outcome);
        verdict
    }
}
