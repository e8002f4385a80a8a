//! What one host cannot decide alone: how many voices it takes, what lacks some, and adding one's own.

use postroad_mesh::card::Card;
use postroad_mesh::node::NodeKey;
use postroad_mesh::pending::Pending;
use postroad_mesh::statement::{FOUNDERS_MAX, Policy, What};
use tracing::info;

use super::members::{in_no_mesh, names};
use super::{Identity, Peers, View};
use crate::admin::Failure;
use crate::admin::mesh::{OpenVoteView, PolicyView, VotesView};
use crate::tls;

/// Reads the cards of those who found a mesh with this host, which are enough to ever admit anybody.
pub(super) fn founders(me: &Identity, policy: Policy, cards: &[String]) -> Result<Vec<NodeKey>, Failure> {
    if policy.admit_by == 0 || policy.revoke_by == 0 {
        return Err(Failure::new("a decision takes one voice at least", "for example: --admit-by 1 --revoke-by 2"));
    }
    let mut founders: Vec<NodeKey> = Vec::new();
    for card in cards {
        let card: Card = card.parse().map_err(|error: postroad_mesh::card::CardError| {
            Failure::new(error.to_string(), "ask for it again: postroad mesh card")
        })?;
        if card.key == me.key.public() || founders.contains(&card.key) {
            let message = format!("the card of {} stands twice", card.key.id().short());
            return Err(Failure::new(message, "this host founds it anyway; name each of the others once"));
        }
        founders.push(card.key);
    }
    if founders.len() > FOUNDERS_MAX {
        return Err(Failure::new(format!("{FOUNDERS_MAX} others found a mesh at most"), "invite the rest"));
    }
    if usize::from(policy.admit_by) > founders.len() + 1 {
        let message = format!(
            "{} voices are to admit, and {} found the mesh: it could never grow",
            policy.admit_by,
            founders.len() + 1
        );
        return Err(Failure::new(message, "name further founders: --with CARD, from `postroad mesh card` there"));
    }
    Ok(founders)
}

pub(super) fn policy_view(policy: Policy) -> PolicyView {
    PolicyView { admit_by: policy.admit_by, revoke_by: policy.revoke_by, hash: policy.hash() }
}

impl Peers {
    /// Adds this host's voice to what is said of a node; with none only shows what lacks voices.
    pub(super) async fn vote(&self, name: Option<&str>) -> Result<VotesView, Failure> {
        let done = match name {
            Some(name) => Some(self.add_voice(name).await?),
            None => None,
        };
        let view = self.view();
        let roster = view.roster().ok_or_else(in_no_mesh)?;
        Ok(VotesView { done, open: roster.pending().iter().map(|pending| shown(&view, pending)).collect() })
    }

    async fn add_voice(&self, name: &str) -> Result<String, Failure> {
        let view = self.view();
        let me = view.me().ok_or_else(in_no_mesh)?;
        let pending = view.roster().ok_or_else(in_no_mesh)?.pending();
        let wanted = name.to_lowercase();
        let is_meant = |pending: &&Pending| {
            shown(&view, pending).label.to_lowercase() == wanted || pending.node.to_string().starts_with(&wanted)
        };
        let meant: Vec<&Pending> = pending.iter().filter(is_meant).filter(|_| !wanted.is_empty()).collect();
        let [meant] = meant.as_slice() else {
            let message = match meant.is_empty() {
                true => format!("nothing about {name} lacks voices"),
                false => format!("{name:?} may be any of {}", meant.len()),
            };
            return Err(Failure::new(message, "`postroad mesh vote` shows what does"));
        };
        if meant.by.contains(&me) {
            let message = format!("this host has spoken for that already; it takes {} voices", meant.needed);
            return Err(Failure::new(message, "say it on other members"));
        }
        let label = shown(&view, meant).label;
        if let What::Revoke { reason, .. } = &meant.what {
            let voted = self.revoke(&meant.node.to_string(), reason).await?;
            return Ok(match voted.is_revoked {
                true => format!("{label} is a member no more"),
                false => format!("this host speaks against {label} as well"),
            });
        }
        let What::Admit { caps, .. } = &meant.what else { unreachable!("nothing else lacks voices") };
        self.check_may_admit(*caps)?;
        let _alone = self.0.deciding.lock().await;
        self.state_durably(meant.what.clone()).await?;
        info!(node = %meant.node, "this host speaks for a new member");
        if !self.view().is_member(&meant.node) {
            return Ok(format!("this host speaks for {label} as well"));
        }
        // Any member tells it which mesh it is a member of; the secret is not asked for.
        let token = tls::random().ok().and_then(|secret| self.token(secret).ok());
        let join = token.map(|token| format!("; say there: postroad mesh join {token}")).unwrap_or_default();
        Ok(format!("{label} is a member{join}"))
    }
}

fn shown(view: &View, pending: &Pending) -> OpenVoteView {
    let (what, label, detail) = match &pending.what {
        What::Admit { caps, serves, label, .. } => {
            let label = if label.is_empty() { pending.node.short() } else { label.to_string() };
            ("admit", label, format!("{caps} {}", names(serves).join(" ")).trim_end().to_owned())
        }
        What::Revoke { reason, .. } => ("revoke", view.label(&pending.node), reason.to_string()),
        _ => unreachable!("nothing else lacks voices"),
    };
    OpenVoteView {
        node: pending.node.to_string(),
        label,
        what: what.to_owned(),
        detail,
        by: pending.by.iter().map(|node| view.label(node)).collect(),
        voices: pending.voices,
        needed: pending.needed,
        is_said: view.me().is_some_and(|me| pending.by.contains(&me)),
    }
}
