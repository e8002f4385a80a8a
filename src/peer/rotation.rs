//! How this host goes on under another key, without a moment in which somebody cannot reach it: from when it
//! says so both keys are its own, and each member is spoken to under the one that it knows.
//!
//! Whoever answers a question asked under the new key has heard of it. When all have, or after a time that the
//! configuration sets, the old key is retired and forgotten. A restart in the middle goes on where it was.

use std::sync::Arc;
use std::time::Duration;

use postroad_mesh::question::kind;
use postroad_mesh::statement::What;
use postroad_mesh::{NodeId, SecretKey, Statement};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::{error, info};

use super::members::in_no_mesh;
use super::{Identity, Peers, join};
use crate::admin::Failure;
use crate::admin::mesh::RotationView;
use crate::clock::millis;
use crate::tls;

/// How long those who have not heard are left alone before they are asked again; it doubles.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(600);
/// How long sessions under the old key may go on when everybody has heard.
const GRACE: Duration = Duration::from_secs(10);

impl Peers {
    /// Goes on under a new key; `finish`: gives the old one up now, whoever has not heard. The next key is on disk
    /// before anything is said of it.
    pub(super) async fn rotate(&self, finish: bool) -> Result<(), Failure> {
        let _alone = self.0.deciding.lock().await;
        self.view().me().ok_or_else(in_no_mesh)?;
        let is_under_way = self.0.earlier.load().is_some();
        if finish && is_under_way {
            return self.retire_earlier().await;
        }
        if finish {
            return Err(Failure::new("no change of key is under way", "begin one: postroad mesh rotate"));
        }
        if is_under_way {
            let remedy = "`postroad mesh status` shows who has not heard; without them: postroad mesh rotate --finish";
            return Err(Failure::new("a change of key is under way already", remedy));
        }
        let failed = |error: rustls::Error| Failure::new(format!("cannot make a key: {error}"), "");
        let next = SecretKey::from_seed(&tls::random().map_err(failed)?);
        let der = next.to_pkcs8();
        self.on_disk(move |files| files.put_next_key(&der)).await?;
        let (rotation, known) = {
            let guard = self.state();
            let state = guard.as_ref().ok_or_else(in_no_mesh)?;
            let head = state.spread.directory().roster().next_head(&state.identity.id(), self.now());
            let rotation = Statement::rotate(&state.identity.key, &next, head);
            let known = state.known_with(Some(&rotation));
            (rotation, known)
        };
        self.on_disk(move |files| files.put_known(&known).and_then(|()| files.take_next_key())).await?;
        self.0.earlier.store(self.0.identity.load_full());
        let identity = self.use_identity(next).map_err(failed)?;
        info!(node = %identity.id(), "goes on under a new key; the old one is good until everybody has heard");
        let now = self.now();
        let view = self.state().as_mut().and_then(|state| {
            state.publish(vec![join::item(&rotation)], now);
            state.go_on_as(identity);
            state.view()
        });
        self.show(view);
        self.0.wake.notify_one();
        self.begin_overlap();
        Ok(())
    }

    /// Sees to it that the old key is given up in the end, if there is one.
    pub(super) fn begin_overlap(&self) {
        if self.0.earlier.load().is_some() {
            let peers = self.clone();
            tokio::spawn(async move { peers.overlap().await });
        }
    }

    async fn overlap(self) {
        let mut pause = PAUSE;
        loop {
            while !self.is_overlap_over() {
                let met = async {
                    self.0.met.notified().await;
                    sleep(PAUSE).await;
                };
                let unheard = self.unheard();
                let before = unheard.len();
                self.tell(unheard).await;
                let left = self.unheard().len();
                pause = if left < before { PAUSE } else { (pause * 2).min(PAUSE_MAX) };
                if left == 0 {
                    break;
                }
                tokio::select! {
                    () = sleep(pause) => {}
                    () = met => pause = PAUSE,
                }
            }
            sleep(GRACE).await;
            let _alone = self.0.deciding.lock().await;
            // Somebody may have come, or finished it by hand.
            if self.is_overlap_over() {
                match self.retire_earlier().await {
                    Ok(()) => return,
                    Err(failure) => error!(%failure, "the old key of this host cannot be given up yet"),
                }
            }
        }
    }

    fn is_overlap_over(&self) -> bool {
        self.overlap_ends().is_none_or(|until| self.now() >= until) || self.unheard().is_empty()
    }

    /// Asks members under the new key, and notes who answers.
    async fn tell(&self, nodes: Vec<NodeId>) {
        let Some(identity) = self.0.identity.load_full() else { return };
        let mut asking = JoinSet::new();
        for node in nodes {
            let (peers, identity) = (self.clone(), identity.clone());
            asking.spawn(async move { (node, peers.ask_as(&identity, node, kind::PING, b"").await) });
        }
        while let Some(answered) = asking.join_next().await {
            if let Ok((node, Ok(_))) = answered {
                self.those_who_heard().insert(node);
            }
        }
    }

    /// Returns the members that have not said yet that they know the new key.
    fn unheard(&self) -> Vec<NodeId> {
        let (view, heard) = (self.view(), self.those_who_heard());
        let others = view.members().map(|(id, _)| *id).filter(|id| Some(*id) != view.me());
        others.filter(|id| !heard.contains(id)).collect()
    }

    /// Returns when the old key is given up at the latest; `None`: there is none.
    fn overlap_ends(&self) -> Option<u64> {
        let earlier = self.0.earlier.load_full()?.id();
        let view = self.view();
        let of_rotation =
            |statement: &&Statement| statement.by_id() == earlier && matches!(statement.what(), What::Rotate { .. });
        let begun = view.roster()?.statements().values().filter(of_rotation).map(|statement| statement.head().at).max();
        Some(begun.unwrap_or(0).saturating_add(millis(self.config().mesh.old_key)))
    }

    /// Gives the old key up. The caller holds `deciding`.
    pub(super) async fn retire_earlier(&self) -> Result<(), Failure> {
        let Some(earlier) = self.0.earlier.load_full() else { return Ok(()) };
        self.state_durably_as(&earlier, What::Retire).await?;
        self.on_disk(|files| files.forget_old_key()).await?;
        self.0.earlier.store(None);
        self.those_who_heard().clear();
        self.answer_to_names();
        info!(node = %earlier.id(), "the old key is given up");
        Ok(())
    }

    /// Returns who this host is to a member: until that one has heard of a new key, who it was.
    pub(super) fn identity_to(&self, node: &NodeId) -> Option<Arc<Identity>> {
        match self.0.earlier.load_full() {
            Some(earlier) if !self.those_who_heard().contains(&self.view().current(node)) => Some(earlier),
            _ => self.0.identity.load_full(),
        }
    }

    /// Returns which node this host is to a member.
    pub fn me_to(&self, node: &NodeId) -> Option<NodeId> {
        self.identity_to(node).map(|identity| identity.id())
    }

    /// Returns this host as a node that it is, or was until everybody has heard.
    pub(super) fn identity_of(&self, node: &NodeId) -> Option<Arc<Identity>> {
        self.identities().find(|identity| identity.id() == *node)
    }

    pub(super) fn rotation_view(&self) -> Option<RotationView> {
        let earlier = self.0.earlier.load_full()?.id();
        let view = self.view();
        Some(RotationView {
            earlier: earlier.to_string(),
            until_ms: self.overlap_ends()?,
            unheard: self.unheard().iter().map(|node| view.label(node)).collect(),
        })
    }
}
