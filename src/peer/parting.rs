//! How a membership ends: voices against a node, refusal by this host alone, leaving.

use std::time::{Duration, Instant};

use postroad_mesh::question::kind;
use postroad_mesh::record::Reach;
use postroad_mesh::statement::What;
use postroad_mesh::{NodeId, Statement};
use tokio::time::sleep;
use tracing::{info, warn};

use super::Peers;
use super::members::{check_text, in_no_mesh};
use crate::admin::Failure;
use crate::admin::mesh::{PingView, VoteView};
use crate::clock::millis;

/// How long the others are given to hear a farewell over the links there are.
const FAREWELL: Duration = Duration::from_millis(500);

impl Peers {
    /// Raises this host's voice against a node; with enough voices its sessions end at once everywhere.
    pub(super) async fn revoke(&self, name: &str, reason: &str) -> Result<VoteView, Failure> {
        check_text(reason)?;
        let view = self.view();
        view.me().ok_or_else(in_no_mesh)?;
        let node = self.named_other(name, "to end its membership: postroad mesh leave")?;
        let label = view.label(&node);
        let _alone = self.0.deciding.lock().await;
        let voices_needed = view.roster().map_or(1, |roster| roster.policy().revoke_by);
        // Under a key that it is giving up it would be a member still.
        for key in view.names(&node) {
            let upto = {
                let guard = self.state();
                let roster = guard.as_ref().ok_or_else(in_no_mesh)?.spread.directory().roster();
                if roster.member(&key).is_none() {
                    continue;
                }
                // Whom it let in until now stays.
                let made = roster.statements().values().filter(|statement| statement.by_id() == key);
                made.max_by_key(|statement| statement.head().sequence).map(Statement::id)
            };
            self.state_durably(What::Revoke { node: key, upto, reason: reason.into() }).await?;
        }
        let is_revoked = self.view().roster().is_some_and(|roster| roster.member(&node).is_none());
        warn!(%node, label, reason, is_revoked, "this host speaks against a member");
        Ok(VoteView { node: node.to_string(), label, is_revoked, voices_needed })
    }

    /// Takes a node for no member here, or for one again.
    pub(super) async fn refuse(&self, name: &str, lift: bool) -> Result<(), Failure> {
        let view = self.view();
        view.me().ok_or_else(in_no_mesh)?;
        let node = self.named_other(name, "to end its membership: postroad mesh leave")?;
        let _alone = self.0.deciding.lock().await;
        let own = {
            let guard = self.state();
            let mut own = guard.as_ref().ok_or_else(in_no_mesh)?.own.clone();
            own.refused.retain(|refused| view.current(refused) != node);
            if !lift {
                own.refused.push(node);
            }
            own
        };
        let kept = own.clone();
        self.on_disk(move |files| files.put_own(&kept)).await?;
        let view = self.state().as_mut().and_then(|state| {
            state.own.refused = own.refused;
            state.view()
        });
        warn!(%node, lift, "this host refuses a member by itself");
        self.show(view);
        self.0.wake.notify_one();
        Ok(())
    }

    /// Leaves the mesh and forgets it, key included.
    pub(super) async fn leave(&self) -> Result<(), Failure> {
        let _alone = self.0.deciding.lock().await;
        if self.state().is_none() {
            return Err(in_no_mesh());
        }
        if self.view().me().is_some() {
            self.retire_earlier().await?;
            self.state_durably(What::Retire).await?;
            sleep(FAREWELL).await;
        }
        self.on_disk(|files| files.forget()).await?;
        *self.state() = None;
        self.0.identity.store(None);
        self.answer_to_names();
        self.show(Some(std::sync::Arc::default()));
        info!("left the mesh");
        Ok(())
    }

    /// Asks a member whether it is there.
    pub(super) async fn ping(&self, name: &str) -> Result<PingView, Failure> {
        self.view().me().ok_or_else(in_no_mesh)?;
        let node = self.named(name)?;
        let (label, begun) = (self.view().label(&node), Instant::now());
        match self.ask(node, kind::PING, b"").await {
            Ok(_) => Ok(PingView { node: node.to_string(), label, ms: millis(begun.elapsed()) }),
            Err(error) => {
                let can_be_dialled = self.view().record(&node).is_none_or(|said| said.reach == Reach::Public);
                let remedy = match can_be_dialled {
                    true => {
                        "see that its agent runs; `postroad mesh candidates` shows where it was dialled, with what success"
                    }
                    false => "nobody dials it: see that its agent runs and reaches the members that it dials",
                };
                Err(Failure::new(format!("{label} does not answer: {error}"), remedy))
            }
        }
    }

    /// Returns a member other than this host.
    pub(super) fn named_other(&self, name: &str, remedy: &str) -> Result<NodeId, Failure> {
        let node = self.named(name)?;
        match self.view().me() == Some(node) {
            true => Err(Failure::new(format!("{name} is this host itself"), remedy)),
            false => Ok(node),
        }
    }

    pub(super) fn named(&self, name: &str) -> Result<NodeId, Failure> {
        self.view()
            .find(name)
            .map_err(|error| Failure::new(error.to_string(), "the names are in `postroad mesh status`"))
    }
}
