//! What is counted of the mesh: its members, its links, and what is asked over them.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::labels::{MisdeedLabel, RecipientLabel};
use super::{Misdeed, Open, Recipient, add};

/// The mesh, as this member of it has it.
#[derive(Debug)]
pub struct MeshMetrics {
    /// Members, this host with them; 0 in none.
    pub members: Gauge,
    /// Links with other members.
    pub links: Gauge,
    /// Members that are connected to be pushed their mail.
    pub callers: Gauge,
    /// Members whose mail leaves the mesh here as a trickle.
    pub contained: Gauge,
    through: Gauge,
    recipients: Family<RecipientLabel, Counter>,
    misdeeds: Family<MisdeedLabel, Counter>,
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
            contained: add(to, "mesh_contained", "Members whose mail leaves here as a trickle", Gauge::default()),
            through: add(to, "mesh_through", "Sessions of members that are passed on here to others", Gauge::default()),
            misdeeds: add(to, "mesh_misdeeds", "What members tried that they may not", Family::default()),
        };
        for what in Misdeed::ALL {
            metrics.misdeeds.get_or_create_owned(&MisdeedLabel { what });
        }
        for answer in Recipient::ALL {
            metrics.recipients.get_or_create_owned(&RecipientLabel { answer });
        }
        metrics
    }

    /// Counts a session that is passed on as open until the value returned is dropped.
    pub fn open_through(&self) -> Open {
        Open::new(self.through.clone())
    }

    /// Counts what a member tried.
    pub fn count_misdeed(&self, what: Misdeed, times: u64) {
        self.misdeeds.get_or_create(&MisdeedLabel { what }).inc_by(times);
    }

    /// Counts a recipient that was not known, by what its home said.
    pub fn count_recipient(&self, answer: Recipient) {
        self.recipients.get_or_create(&RecipientLabel { answer }).inc();
    }
}
