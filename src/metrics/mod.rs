//! What an operator watches: counters, gauges and histograms, as a value that each agent has its
//! own of (tests run several agents in one process).
//!
//! Labels are closed sets: nothing a peer sends becomes a label, so their number is bounded.

mod http;
mod labels;
mod mesh;
mod turn;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry, Unit};

pub use http::serve;
pub use labels::{Direction, DsnKind, Handshake, Misdeed, Recipient, Refusal, Service, Transport, Turn};
pub use mesh::MeshMetrics;
pub use turn::TurnMetrics;

use labels::{DirectionLabel, DsnLabel, HandshakeLabel, RefusalLabel, ServiceLabel, TransportLabel};

/// The metrics of one agent. Each is safe to change from any thread.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Messages accepted: committed to the queue.
    pub accepted: Counter,
    /// Octets of content accepted.
    pub accepted_octets: Counter,
    refused: Family<RefusalLabel, Counter>,
    delivered: Family<TransportLabel, Counter>,
    deferred: Family<TransportLabel, Counter>,
    failed: Family<TransportLabel, Counter>,
    notifications: Family<DsnLabel, Counter>,
    sessions: Family<ServiceLabel, Counter>,
    sessions_open: Family<ServiceLabel, Gauge>,
    handshakes: Family<HandshakeLabel, Counter>,
    plaintext: Family<DirectionLabel, Counter>,
    /// Connections to next hops open now.
    pub connections_open: Gauge,
    /// Of these, connections without work, kept for the next message.
    pub connections_idle: Gauge,
    /// Kept connections that were used again.
    pub connections_reused: Counter,
    /// Connections that customers reverse, and those of this host as a customer.
    pub turn: TurnMetrics,
    /// Connections to next hops that could not be made.
    pub connections_failed: Counter,
    /// Logins that succeeded.
    pub logins: Counter,
    /// Logins refused: unknown user or wrong password.
    pub logins_failed: Counter,
    /// Messages in the queue.
    pub queue_messages: Gauge,
    /// Messages in the queue that an admin holds.
    pub queue_held: Gauge,
    /// Jobs that wait for their next attempt.
    pub queue_deferred: Gauge,
    /// Octets of content in the queue.
    pub queue_octets: Gauge,
    /// Octets the queue takes on disk.
    pub queue_disk_octets: Gauge,
    /// Octets free on its disk.
    pub queue_disk_free_octets: Gauge,
    /// 1 while new mail is refused for lack of disk space.
    pub queue_disk_short: Gauge,
    /// 1 when a failed write or sync has stopped acceptance.
    pub queue_stopped: Gauge,
    /// Events that the journal has dropped.
    pub journal_dropped: Counter,
    /// Octets of memory used.
    pub memory_octets: Gauge,
    /// Octets of memory that may be used.
    pub memory_limit_octets: Gauge,
    /// 1 while new mail is refused for lack of memory.
    pub memory_short: Gauge,
    /// The mesh.
    pub mesh: MeshMetrics,
    commit_batch: Histogram,
    commit_seconds: Histogram,
    delivery_seconds: Histogram,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

impl Metrics {
    /// Makes the metrics of one agent, all zero.
    pub fn new() -> Metrics {
        let mut to = Registry::with_prefix("postroad");
        let metrics = Metrics {
            accepted: add(&mut to, "accepted_messages", "Messages committed to the queue", Counter::default()),
            accepted_octets: add(&mut to, "accepted_content_bytes", "Octets of content accepted", Counter::default()),
            refused: add(&mut to, "refused", "Commands and messages refused, by reason", Family::default()),
            delivered: add(&mut to, "delivered_recipients", "Recipients delivered or handed on", Family::default()),
            deferred: add(
                &mut to,
                "deferred_attempts",
                "Attempts that ended with a transient failure",
                Family::default(),
            ),
            failed: add(
                &mut to,
                "failed_recipients",
                "Recipients given up: refused for good or expired",
                Family::default(),
            ),
            notifications: add(&mut to, "notifications", "Delivery status notifications made", Family::default()),
            sessions: add(&mut to, "sessions", "Sessions accepted", Family::default()),
            sessions_open: add(&mut to, "sessions_open", "Sessions open now", Family::default()),
            handshakes: add(&mut to, "tls_handshakes", "TLS handshakes", Family::default()),
            plaintext: add(&mut to, "plaintext_transactions", "Messages passed without TLS", Family::default()),
            connections_open: add(&mut to, "connections_open", "Connections to next hops open now", Gauge::default()),
            connections_idle: add(&mut to, "connections_idle", "Kept connections without work", Gauge::default()),
            connections_reused: add(&mut to, "connections_reused", "Kept connections used again", Counter::default()),
            turn: TurnMetrics::new(&mut to),
            connections_failed: add(&mut to, "connections_failed", "Connections that failed", Counter::default()),
            logins: add(&mut to, "logins", "Logins that succeeded", Counter::default()),
            logins_failed: add(&mut to, "logins_failed", "Logins refused", Counter::default()),
            queue_messages: add(&mut to, "queue_messages", "Messages in the queue", Gauge::default()),
            queue_held: add(&mut to, "queue_held_messages", "Messages that an admin holds", Gauge::default()),
            queue_deferred: add(&mut to, "queue_deferred_jobs", "Jobs put off for another attempt", Gauge::default()),
            queue_octets: add(&mut to, "queue_content_bytes", "Octets of content in the queue", Gauge::default()),
            queue_disk_octets: add(&mut to, "queue_disk_bytes", "Octets the queue takes on disk", Gauge::default()),
            queue_disk_free_octets: add(&mut to, "queue_disk_free_bytes", "Octets free on its disk", Gauge::default()),
            queue_disk_short: add(
                &mut to,
                "queue_disk_short",
                "1 while mail is refused for its lack",
                Gauge::default(),
            ),
            queue_stopped: add(&mut to, "queue_stopped", "1 when a failed write ended acceptance", Gauge::default()),
            journal_dropped: add(&mut to, "journal_dropped_events", "Events not kept: no disk", Counter::default()),
            memory_octets: add(&mut to, "memory_bytes", "Octets of memory used", Gauge::default()),
            memory_limit_octets: add(&mut to, "memory_limit_bytes", "Octets of memory allowed", Gauge::default()),
            memory_short: add(&mut to, "memory_short", "1 while mail is refused for lack of it", Gauge::default()),
            mesh: MeshMetrics::new(&mut to),
            commit_batch: add(
                &mut to,
                "commit_batch_messages",
                "Messages committed by one sync",
                histogram(1.0, 2.0, 12),
            ),
            commit_seconds: seconds(
                &mut to,
                "commit",
                "From the end of the content to stable storage",
                histogram(0.0001, 2.0, 16),
            ),
            delivery_seconds: seconds(&mut to, "delivery", "From acceptance to delivery", histogram(0.01, 4.0, 14)),
            registry: to,
        };
        metrics.show_zeros();
        metrics
    }

    /// Counts a refusal by what we replied.
    pub fn count_refusal(&self, reason: Refusal) {
        self.refused.get_or_create(&RefusalLabel { reason }).inc();
    }

    /// Counts recipients delivered; `age_seconds` is how long the message was here.
    pub fn count_delivered(&self, transport: Transport, recipients: u64, age_seconds: f64) {
        self.delivered.get_or_create(&TransportLabel { transport }).inc_by(recipients);
        self.delivery_seconds.observe(age_seconds);
    }

    /// Counts recipients to be tried again.
    pub fn count_deferred(&self, transport: Transport, recipients: u64) {
        self.deferred.get_or_create(&TransportLabel { transport }).inc_by(recipients);
    }

    /// Counts recipients given up.
    pub fn count_failed(&self, transport: Transport, recipients: u64) {
        self.failed.get_or_create(&TransportLabel { transport }).inc_by(recipients);
    }

    /// Counts a notification made.
    pub fn count_notification(&self, kind: DsnKind) {
        self.notifications.get_or_create(&DsnLabel { kind }).inc();
    }

    /// Counts a session as open until the value returned is dropped.
    pub fn open_session(&self, service: Service) -> Open {
        self.sessions.get_or_create(&ServiceLabel { service }).inc();
        Open::new(self.sessions_open.get_or_create_owned(&ServiceLabel { service }))
    }

    /// Counts a connection to a next hop as open until the value returned is dropped.
    pub fn open_connection(&self) -> Open {
        Open::new(self.connections_open.clone())
    }

    /// Counts a TLS handshake.
    pub fn count_handshake(&self, direction: Direction, outcome: Handshake) {
        self.handshakes.get_or_create(&HandshakeLabel { direction, outcome }).inc();
    }

    /// Counts a message that passed without TLS.
    pub fn count_plaintext(&self, direction: Direction) {
        self.plaintext.get_or_create(&DirectionLabel { direction }).inc();
    }

    /// Notes how many messages one sync committed.
    pub fn observe_batch(&self, messages: usize) {
        self.commit_batch.observe(messages as f64);
    }

    /// Notes how long a message waited for stable storage.
    pub fn observe_commit(&self, seconds: f64) {
        self.commit_seconds.observe(seconds);
    }

    /// Returns all metrics in the OpenMetrics text format.
    pub fn text(&self) -> String {
        let mut text = String::with_capacity(16 * 1024);
        encode(&mut text, &self.registry).expect("writing to a string cannot fail");
        text
    }

    /// Makes every label known, so that a counter starts at 0 and not at its first event (rates
    /// would miss it).
    fn show_zeros(&self) {
        for reason in Refusal::ALL {
            self.refused.get_or_create_owned(&RefusalLabel { reason });
        }
        for transport in Transport::ALL {
            for family in [&self.delivered, &self.deferred, &self.failed] {
                family.get_or_create_owned(&TransportLabel { transport });
            }
        }
        for kind in DsnKind::ALL {
            self.notifications.get_or_create_owned(&DsnLabel { kind });
        }
        for service in Service::ALL {
            self.sessions.get_or_create_owned(&ServiceLabel { service });
            self.sessions_open.get_or_create_owned(&ServiceLabel { service });
        }
        for direction in Direction::ALL {
            self.plaintext.get_or_create_owned(&DirectionLabel { direction });
            for outcome in Handshake::ALL {
                self.handshakes.get_or_create_owned(&HandshakeLabel { direction, outcome });
            }
        }
    }
}

/// Something counted as open for as long as this value lives.
#[derive(Debug)]
pub struct Open(Gauge);

impl Open {
    fn new(gauge: Gauge) -> Open {
        gauge.inc();
        Open(gauge)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn add<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

fn seconds(registry: &mut Registry, name: &str, help: &str, metric: Histogram) -> Histogram {
    registry.register_with_unit(name, help, Unit::Seconds, metric.clone());
    metric
}

fn histogram(first: f64, factor: f64, buckets: u16) -> Histogram {
    Histogram::new(exponential_buckets(first, factor, buckets))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_is_in_the_text() {
        let metrics = Metrics::new();
        metrics.accepted.inc();
        metrics.count_refusal(Refusal::Relay);
        metrics.count_delivered(Transport::Maildir, 2, 0.5);
        metrics.observe_batch(20);
        metrics.observe_commit(0.003);
        let session = metrics.open_session(Service::Submission);
        let text = metrics.text();
        for line in [
            "postroad_accepted_messages_total 1",
            "postroad_refused_total{reason=\"relay\"} 1",
            "postroad_refused_total{reason=\"unknown_recipient\"} 0",
            "postroad_delivered_recipients_total{transport=\"maildir\"} 2",
            "postroad_sessions_open{service=\"submission\"} 1",
            "postroad_commit_seconds_count 1",
            "# EOF",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} is missing from\n{text}");
        }
        drop(session);
        assert!(metrics.text().contains("postroad_sessions_open{service=\"submission\"} 0\n"));
    }

    #[test]
    fn two_agents_of_one_process_count_apart() {
        let (a, b) = (Metrics::new(), Metrics::new());
        a.accepted.inc();
        assert_eq!((a.accepted.get(), b.accepted.get()), (1, 0));
    }
}
