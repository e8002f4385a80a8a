//! How a membership ends or goes on otherwise: voices against a node, refusal by this host alone, leaving,
//! and going on under a new key.

use std::time::{Duration, Instant};

use postroad_mesh::question::kind;
use postroad_mesh::statement::What;
use postroad_mesh::{NodeId, SecretKey, Statement};
use tokio::time::sleep;
use tracing::{info, warn};

use super::members::{check_text, in_no_mesh};
use super::{Peers, join};
use crate::admin::Failure;
use crate::admin::mesh::{PingView, VoteView};
use crate::clock::millis;
use crate::tls;

/// How long the others are given to hear a farewell over the links there are.
const FAREWELL: Duration = Duration::from_millis(500);

impl Peers {
    /// Raises this host's voice against a node; with enough voices its sessions end at once everywhere.
    pub(super) async fn revoke(&self, name: &str, reason: &str) -> Result<VoteView, Failure> {
        check_text(reason)?;
        let view = self.view();
        let me = view.me().ok_or_else(in_no_mesh)?;
        let node = self.named(name)?;
        if node == me {
            return Err(Failure::new("this is the host itself", "to end its membership: postroad mesh leave"));
        }
        let label = view.label(&node);
        let _alone = self.0.deciding.lock().await;
        let (upto, voices_needed) = {
            let guard = self.state();
            let roster = guard.as_ref().ok_or_else(in_no_mesh)?.spread.directory().roster();
            // Whom it let in until now stays.
            let made = roster.statements().values().filter(|statement| statement.by_id() == node);
            let last = made.max_by_key(|statement| statement.head().sequence);
            (last.map(Statement::id), roster.policy().revoke_by)
        };
        self.state_durably(What::Revoke { node, upto, reason: reason.into() }).await?;
        let is_revoked = self.view().roster().is_some_and(|roster| roster.member(&node).is_none());
        warn!(%node, label, reason, is_revoked, "this host speaks against a member");
        Ok(VoteView { node: node.to_string(), label, is_revoked, voices_needed })
    }

    /// Takes a node for no member here, or for one again.
    pub(super) async fn refuse(&self, name: &str, lift: bool) -> Result<(), Failure> {
        self.view().me().ok_or_else(in_no_mesh)?;
        let node = self.named(name)?;
        let _alone = self.0.deciding.lock().await;
        let own = {
            let guard = self.state();
            let mut own = guard.as_ref().ok_or_else(in_no_mesh)?.own.clone();
            own.refused.retain(|refused| *refused != node);
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
            self.state_durably(What::Retire).await?;
            sleep(FAREWELL).await;
        }
        self.on_disk(|files| files.forget()).await?;
        *self.state() = None;
        self.0.identity.store(None);
        self.0.parts.tls.set_nodes(Vec::new());
        self.show(Some(std::sync::Arc::default()));
        info!("left the mesh");
        Ok(())
    }

    /// Goes on under a new key: the old one says so, and that it is done with. On disk first, the next key
    /// before anything is said of it.
    pub(super) async fn rotate(&self) -> Result<(), Failure> {
        let _alone = self.0.deciding.lock().await;
        self.view().me().ok_or_else(in_no_mesh)?;
        let failed = |error: rustls::Error| Failure::new(format!("cannot make a key: {error}"), "");
        let next = SecretKey::from_seed(&tls::random().map_err(failed)?);
        let der = next.to_pkcs8();
        self.on_disk(move |files| files.put_next_key(&der)).await?;
        let (items, directory) = {
            let guard = self.state();
            let state = guard.as_ref().ok_or_else(in_no_mesh)?;
            let mut head = state.spread.directory().roster().next_head(&state.identity.id(), self.now());
            let rotate = Statement::rotate(&state.identity.key, &next, head);
            (head.sequence, head.previous) = (head.sequence + 1, Some(rotate.id()));
            let retire = Statement::new(&state.identity.key, head, What::Retire);
            let mut directory = state.spread.directory().clone();
            directory.take_statements([rotate.clone(), retire.clone()]);
            (vec![join::item(&rotate), join::item(&retire)], directory)
        };
        let known = postroad_mesh::archive::write(&directory);
        self.on_disk(move |files| files.put_known(&known).and_then(|()| files.take_next_key())).await?;
        if let Some(state) = self.state().as_mut() {
            state.publish(items, self.now());
        }
        self.0.wake.notify_one();
        sleep(FAREWELL).await;
        let identity = self.use_identity(next).map_err(failed)?;
        info!(node = %identity.id(), "goes on under a new key");
        self.take_part(directory).await
    }

    /// Asks a member whether it is there.
    pub(super) async fn ping(&self, name: &str) -> Result<PingView, Failure> {
        self.view().me().ok_or_else(in_no_mesh)?;
        let node = self.named(name)?;
        let (label, begun) = (self.view().label(&node), Instant::now());
        match self.ask(node, kind::PING, b"").await {
            Ok(_) => Ok(PingView { node: node.to_string(), label, ms: millis(begun.elapsed()) }),
            Err(error) => {
                let remedy = "`postroad mesh status` shows the links, here and there";
                Err(Failure::new(format!("{label} does not answer: {error}"), remedy))
            }
        }
    }

    pub(super) fn named(&self, name: &str) -> Result<NodeId, Failure> {
        self.view()
            .find(name)
            .map_err(|error| Failure::new(error.to_string(), "the names are in `postroad mesh status`"))
    }
}
