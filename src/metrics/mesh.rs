//! What is counted of the mesh: its members, its links, and what is asked over them.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::labels::RecipientLabel;
use super::{Recipient, add};

/// The mesh, as this member of it has it.
#[derive(Debug)]
pub struct MeshMetrics {
    /// Members, this host with them; 0 in none.
    pub members: Gauge,
    /// Links with other members.
    pub links: Gauge,
    /// Members that are connected to be pushed their mail.
    pub callers: Gauge,
    recipients: Family<RecipientLabel, Counter>,
}

impl MeshMetrics {
    pub(super) fn new(to: &mut Registry) -> MeshMetrics {
        let metrics = MeshMetrics {
            members: add(to, "mesh_members", "Members of the mesh as known here", Gauge::default()),
            links: add(to, "mesh_links", "Links with other members", Gauge::default()),
            callers: add(to, "mesh_callers", "Members that are connected to be pushed their mail", Gauge::default()),
            recipients: add(
                to,
                "mesh_recipients",
                "Recipients looked up at their home in the mesh, by what it said",
                Family::default(),
            ),
        };
        for answer in Recipient::ALL {
            metrics.recipients.get_or_create_owned(&RecipientLabel { answer });
        }
        metrics
    }

    /// Counts a recipient that was not known, by what its home said.
    pub fn count_recipient(&self, answer: Recipient) {
        self.recipients.get_or_create(&RecipientLabel { answer }).inc();
    }
}
