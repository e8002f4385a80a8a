//! A recipient that was accepted so far: whether it exists where its mail ends, and what it costs here.

use postroad_smtp::{ForwardPath, Recipient, Reply};
use tracing::debug;

use super::super::Context;
use super::super::homes::Known;
use super::super::passing;
use super::{Asking, Peer, Transaction};
use crate::memory::{self, Held};
use crate::peer::Outside;
use crate::policy::{RelayGrant, replies};

/// From this priority on a message is a notice that no quota of mail holds up (RFC 6710).
const URGENT_MIN: i8 = 4;

impl Asking<'_> {
    /// Asks the home of a recipient whether it exists, where that is another member of the mesh. Members
    /// that pass mail on were told by whoever took it in. What nobody can say now is accepted: it waits
    /// in the mesh for its home, which is what the mesh is for.
    ///
    /// # Errors
    /// The reply that refuses it: there is no such mailbox, or somebody who may not relay wants to know of
    /// too many.
    pub(super) async fn exists_at_home(
        &self,
        asked: &mut u16,
        grant: RelayGrant,
        forward_path: &ForwardPath,
    ) -> Result<(), Reply> {
        let homes = self.context.policy.homes(forward_path);
        let Some(mailbox) = forward_path.mailbox().filter(|_| !homes.is_empty()) else { return Ok(()) };
        let Context { peers, metrics, .. } = self.context;
        let limit = self.context.config.load().timeouts.mailbox;
        // Boxed: every session would carry room for it.
        let known = Box::pin(self.context.homes.look_up(peers, metrics, &homes, mailbox, limit, asked)).await;
        debug!(session = %self.name, to = %mailbox, ?known, "looked up at its home");
        match known {
            Known::Exists | Known::Unsaid => Ok(()),
            Known::Unknown => Err(replies::NO_SUCH_MAILBOX_AT_HOME),
            // A client that may relay hears of it in a notification, as ever; a stranger's sender is forged.
            Known::Unasked if grant == RelayGrant::Exchange => Err(replies::TOO_MANY_TO_ASK),
            Known::Unasked => Ok(()),
        }
    }
}

impl Asking<'_> {
    /// Counts a message for the member that hands it over.
    ///
    /// # Errors
    /// The reply that puts it off: the member has handed over as much as it may.
    pub(super) fn pace(&self, peer: &Peer, transaction: &Transaction) -> Result<(), Reply> {
        match peer.node.as_deref().filter(|node| self.context.peers.view().is_member(node)) {
            Some(node) => self.context.peers.pace(*node, transaction.is_notice()).map_err(passing::over_pace),
            None => Ok(()),
        }
    }

    /// Counts a recipient outside the mesh for the member that hands its mail over.
    ///
    /// # Errors
    /// The reply that puts it off: the member has handed over as much as it may.
    pub(super) fn charge(
        &self,
        peer: &Peer,
        transaction: &mut Transaction,
        forward_path: &ForwardPath,
    ) -> Result<(), Reply> {
        let Some(node) = peer.node.as_deref().filter(|_| self.context.policy.leaves_mesh(forward_path)) else {
            return Ok(());
        };
        let outside = Outside {
            way: passing::way(*node, transaction.passage.as_deref()),
            domain: &forward_path.mailbox().map(|mailbox| mailbox.host.to_string()).unwrap_or_default(),
            is_first: transaction.outside.is_none(),
            is_notice: transaction.is_notice(),
        };
        self.context.peers.charge(&outside).map_err(passing::over_quota)?;
        transaction.outside = Some(Box::new(outside.way));
        Ok(())
    }
}

impl Transaction {
    /// Returns whether its message is from nobody, or urgent.
    pub(super) fn is_notice(&self) -> bool {
        self.reverse_path.is_none() || self.priority.is_some_and(|priority| priority.get() >= URGENT_MIN)
    }

    /// Takes note of a recipient, behind so many others.
    pub(super) fn add(&mut self, context: &Context, recipient: &Recipient, before: usize) {
        self.recipient = (before == 0).then(|| recipient.forward_path.clone());
        let octets = memory::recipient_octets(recipient);
        match &mut self.envelope {
            Some(envelope) => envelope.add(octets),
            none => *none = Some(Held::new(context.memory.clone(), octets)),
        }
    }
}
