//! Mail that this host fetches: the server's half over a connection that it opened itself (RFC 2645).
//!
//! Whoever is at the other end, only mail for local domains is taken from it ([`Service::Fetch`]); from a
//! member of the mesh, what it might have sent over a connection of its own.

use std::sync::Arc;
use std::time::Duration;

use postroad_smtp::server;
use tokio::sync::watch;

use super::Context;
use super::connection::{self, Arrival};
use crate::config::Service;
use crate::turn::fetch::{Host, Reversed};

/// How long a connection that stays open may be silent: the other side says something every few
/// minutes, and one that is gone is not waited for much longer.
const KEPT_SILENCE_MAX: Duration = Duration::from_secs(10 * 60);

impl Host for Arc<Context> {
    async fn serve(&self, reversed: Reversed, keep: bool, stop: watch::Receiver<bool>) {
        let Reversed { stream, peer } = reversed;
        let config = self.config.load_full();
        let common = Context::session_config(&config, Service::Fetch);
        let settings = match keep {
            true => Arc::new(server::Config {
                keep,
                // What keeps the connection open is no reason to close it.
                limits: server::Limits { idle_commands_max: u32::MAX, ..common.limits.clone() },
                timeouts: server::Timeouts {
                    command: common.timeouts.command.max(KEPT_SILENCE_MAX),
                    ..common.timeouts.clone()
                },
                ..(*common).clone()
            }),
            false => common,
        };
        let permit = self.admit(peer);
        let name = self.names.next();
        let arrival = Arrival { stream, peer, service: Service::Fetch, settings, permit, name, owner: None };
        connection::serve(Box::new(arrival), self.clone(), stop).await;
    }
}
