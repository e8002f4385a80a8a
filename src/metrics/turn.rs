//! What is counted of connections that are reversed (RFC 2645), on either side.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::labels::TurnLabel;
use super::{Open, Turn, add};

/// Connections that customers reverse, and those of this host as a customer.
#[derive(Debug)]
pub struct TurnMetrics {
    turns: Family<TurnLabel, Counter>,
    turned: Gauge,
    fetches: Family<TurnLabel, Counter>,
    fetching: Gauge,
}

impl TurnMetrics {
    pub(super) fn new(to: &mut Registry) -> TurnMetrics {
        let metrics = TurnMetrics {
            turns: add(to, "turns", "Requests of customers and members to reverse the connection", Family::default()),
            turned: add(
                to,
                "connections_turned",
                "Connections reversed by customers and members and open",
                Gauge::default(),
            ),
            fetches: add(to, "fetches", "Requests to other hosts to reverse the connection", Family::default()),
            fetching: add(to, "connections_fetching", "Connections over which mail is fetched", Gauge::default()),
        };
        for outcome in Turn::ALL {
            metrics.turns.get_or_create_owned(&TurnLabel { outcome });
            metrics.fetches.get_or_create_owned(&TurnLabel { outcome });
        }
        metrics
    }

    /// Counts what became of an ATRN of a customer.
    pub fn count_turn(&self, outcome: Turn) {
        self.turns.get_or_create(&TurnLabel { outcome }).inc();
    }

    /// Counts what became of an ATRN of this host.
    pub fn count_fetch(&self, outcome: Turn) {
        self.fetches.get_or_create(&TurnLabel { outcome }).inc();
    }

    /// Counts a connection reversed by a customer as open until the value returned is dropped.
    pub fn open_turned(&self) -> Open {
        Open::new(self.turned.clone())
    }

    /// Counts a connection over which mail is fetched as open until the value returned is dropped.
    pub fn open_fetch(&self) -> Open {
        Open::new(self.fetching.clone())
    }
}
