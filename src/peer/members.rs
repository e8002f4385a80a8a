//! What an admin does to the mesh and asks of it: found, invite, join, admit, look.

use std::sync::Arc;

use postroad_mesh::card::Card;
use postroad_mesh::directory::Conflict;
use postroad_mesh::invite::{ADDRESSES_MAX, Open};
use postroad_mesh::record::{Reach, Said};
use postroad_mesh::roster::Gone;
use postroad_mesh::statement::{GRANTED_DOMAINS_MAX, Policy, TEXT_OCTETS_MAX, What};
use postroad_mesh::{Caps, Directory, Invitation, NodeId, Roster, SecretKey, Statement};
use postroad_smtp::Domain;
use tracing::info;

use super::{Identity, Peers, View, own, vote};
use crate::admin::Failure;
use crate::admin::mesh::{
    CandidatesView, CardView, GoneView, InviteView, MemberView, MeshRequest, MeshView, ProofView,
};
use crate::tls;

/// The longest time that an invitation is open: a year.
const TTL_MS_MAX: u64 = 31_536_000_000;
/// The most that may join by one invitation.
const USES_MAX: u32 = 10_000;

impl Peers {
    /// Does what an admin asks; returns what is to be shown.
    ///
    /// # Errors
    /// What is wrong, and what to do about it.
    pub async fn perform(&self, request: MeshRequest) -> Result<serde_json::Value, Failure> {
        let shown = |value: Result<serde_json::Value, serde_json::Error>| value.expect("a view is plain JSON");
        match request {
            MeshRequest::Init { label, admit_by, revoke_by, founders } => {
                self.found(label.as_deref(), Policy { admit_by, revoke_by }, &founders).await?;
                Ok(shown(serde_json::to_value(self.mesh_view())))
            }
            MeshRequest::Invite { ttl_ms, uses, caps, serves } => {
                let (caps, serves) = rights(&caps, &serves)?;
                Ok(shown(serde_json::to_value(self.invite(ttl_ms, uses, caps, serves).await?)))
            }
            MeshRequest::Join { token } => {
                let invitation: Invitation =
                    token.parse().map_err(|error: postroad_mesh::invite::InvitationError| {
                        Failure::new(error.to_string(), "ask for it again: postroad mesh invite")
                    })?;
                self.join(&invitation).await?;
                Ok(shown(serde_json::to_value(self.mesh_view())))
            }
            MeshRequest::Card {} => {
                let identity = self.make_key().await?;
                let card = Card { key: identity.key.public() };
                Ok(shown(serde_json::to_value(CardView { card: card.to_string(), node: identity.id().to_string() })))
            }
            MeshRequest::Admit { card, label, caps, serves } => {
                let (caps, serves) = rights(&caps, &serves)?;
                Ok(shown(serde_json::to_value(self.admit_card(&card, label, caps, serves).await?)))
            }
            MeshRequest::Grant { node, caps, serves } => {
                let (caps, serves) = rights(&caps, &serves)?;
                self.grant(&node, caps, serves).await?;
                Ok(shown(serde_json::to_value(self.mesh_view())))
            }
            MeshRequest::Dns {} => Ok(shown(serde_json::to_value(self.dns_view()?))),
            MeshRequest::Candidates {} => {
                self.view().me().ok_or_else(in_no_mesh)?;
                let candidates = self.candidate_views();
                Ok(shown(serde_json::to_value(CandidatesView { candidates })))
            }
            MeshRequest::Map {} => Ok(shown(serde_json::to_value(self.map_view()))),
            MeshRequest::Status {} => Ok(shown(serde_json::to_value(self.mesh_view()))),
            MeshRequest::Revoke { node, reason } => Ok(shown(serde_json::to_value(self.revoke(&node, &reason).await?))),
            MeshRequest::Vote { node } => Ok(shown(serde_json::to_value(self.vote(node.as_deref()).await?))),
            MeshRequest::Refuse { node, lift } => {
                self.refuse(&node, lift).await?;
                Ok(shown(serde_json::to_value(self.mesh_view())))
            }
            MeshRequest::Contain { node, lift } => {
                self.contain(&node, lift).await?;
                Ok(shown(serde_json::to_value(self.mesh_view())))
            }
            MeshRequest::Leave { now: _ } => {
                self.leave().await?;
                Ok(shown(serde_json::to_value(self.mesh_view())))
            }
            MeshRequest::Rotate { finish } => {
                self.rotate(finish).await?;
                Ok(shown(serde_json::to_value(self.mesh_view())))
            }
            MeshRequest::Ping { node } => Ok(shown(serde_json::to_value(self.ping(&node).await?))),
        }
    }

    /// Returns the key of this host, made when there is none.
    pub(super) async fn make_key(&self) -> Result<Arc<Identity>, Failure> {
        if let Some(identity) = self.0.identity.load_full() {
            return Ok(identity);
        }
        let failed = |error: rustls::Error| Failure::new(format!("cannot make a key: {error}"), "");
        let key = SecretKey::from_seed(&tls::random().map_err(failed)?);
        let kept = key.to_pkcs8();
        self.on_disk(move |files| files.put_key(&kept)).await?;
        let identity = self.use_identity(key).map_err(failed)?;
        info!(node = %identity.id(), "made the key of this node");
        Ok(identity)
    }

    /// Founds a mesh with this host as its first member.
    async fn found(&self, label: Option<&str>, policy: Policy, founders: &[String]) -> Result<(), Failure> {
        let _alone = self.0.deciding.lock().await;
        if self.view().me().is_some() {
            return Err(Failure::new("this host is a member of a mesh already", "see it: postroad mesh status"));
        }
        let config = self.config();
        let label = label.unwrap_or_else(|| own::label(&config));
        check_text(label)?;
        let identity = self.make_key().await?;
        let founders = vote::founders(&identity, policy, founders)?;
        let founding = Statement::found_with(&identity.key, founders, policy, label, self.now());
        let roster = Roster::new(founding).expect("a founding statement founds");
        info!(mesh = %roster.mesh(), "a mesh was founded");
        self.take_part(Directory::new(roster)).await
    }

    async fn invite(&self, ttl_ms: u64, uses: u32, caps: Caps, serves: Vec<Domain>) -> Result<InviteView, Failure> {
        if ttl_ms == 0 || ttl_ms > TTL_MS_MAX || uses == 0 || uses > USES_MAX {
            let message = format!("an invitation is open for a year at most, for 1 to {USES_MAX} hosts");
            return Err(Failure::new(message, "for example: postroad mesh invite --ttl 1h --uses 1"));
        }
        let is_founded = self.view().me().is_none();
        if is_founded {
            self.found(None, Policy::DEFAULT, &[]).await?;
        }
        self.check_may_admit(caps)?;
        let secret = tls::random().map_err(|error| Failure::new(error.to_string(), ""))?;
        let _alone = self.0.deciding.lock().await;
        let until = self.now() + ttl_ms;
        let own = {
            let mut guard = self.state();
            let state = guard.as_mut().ok_or_else(in_no_mesh)?;
            state.own.invitations.add(Open { secret, until, uses, caps, serves }, self.now());
            state.own.clone()
        };
        self.on_disk(move |files| files.put_own(&own)).await?;
        let token = self.token(secret)?;
        Ok(InviteView { token, is_founded, until_ms: until, uses, caps: caps.to_string() })
    }

    /// Returns the text that leads a joiner here.
    pub(super) fn token(&self, secret: [u8; 16]) -> Result<String, Failure> {
        let inviter = self.me().ok_or_else(in_no_mesh)?;
        let addresses = own::addresses(&self.config());
        let addresses: Vec<Box<str>> =
            addresses.iter().take(ADDRESSES_MAX).map(|address| address.to_string().into()).collect();
        if addresses.is_empty() || self.config().mesh.reach != Reach::Public {
            let message = "nobody could reach this host to join: it has no address that others can dial";
            return Err(Failure::new(message, "invite from a host that can be dialled, or set [mesh] addresses"));
        }
        Ok(Invitation { addresses, inviter, secret }.to_string())
    }

    /// Admits a host by its card; the token says to it which mesh it is a member of.
    async fn admit_card(
        &self,
        card: &str,
        label: Option<String>,
        caps: Caps,
        serves: Vec<Domain>,
    ) -> Result<InviteView, Failure> {
        let wrong = |error: postroad_mesh::card::CardError| {
            Failure::new(error.to_string(), "ask for it again: postroad mesh card")
        };
        let card: Card = card.parse().map_err(wrong)?;
        let label = label.unwrap_or_default();
        check_text(&label)?;
        self.check_may_admit(caps)?;
        let node = card.key.id();
        if self.view().roster().is_some_and(|roster| roster.gone().contains_key(&node)) {
            let message = format!("the membership of {} was ended", node.short());
            return Err(Failure::new(message, "it can come back under another key"));
        }
        let token = self.token(tls::random().map_err(|error| Failure::new(error.to_string(), ""))?)?;
        let _alone = self.0.deciding.lock().await;
        let what = What::Admit { node: card.key, caps, serves, label: label.into() };
        self.state_durably(what).await?;
        info!(%node, %caps, "admitted by its card");
        Ok(InviteView { token, is_founded: false, until_ms: 0, uses: 0, caps: caps.to_string() })
    }

    /// Grants a member what it was not granted when it was let in.
    async fn grant(&self, name: &str, caps: Caps, serves: Vec<Domain>) -> Result<(), Failure> {
        self.check_may_admit(caps)?;
        let node = self.named(name)?;
        if caps == Caps::NONE && serves.is_empty() {
            return Err(Failure::new("nothing is granted", "for example: --serves lab.example, or --caps trace"));
        }
        let gone = || Failure::new(format!("{name} is no member any more"), "see `postroad mesh status`");
        let key = self.view().member(&node).ok_or_else(gone)?.key;
        let _alone = self.0.deciding.lock().await;
        self.state_durably(What::Admit { node: key, caps, serves, label: "".into() }).await?;
        info!(%node, %caps, "granted");
        Ok(())
    }

    pub(super) fn check_may_admit(&self, caps: Caps) -> Result<(), Failure> {
        let view = self.view();
        let me = view.me().ok_or_else(in_no_mesh)?;
        let mine = view.member(&me).map(|member| member.caps).unwrap_or_default();
        if !mine.has(Caps::ADMIT) {
            let remedy = "invite from a host that may, or have this one admitted again with --caps admit";
            return Err(Failure::new("this host may not admit others", remedy));
        }
        if !mine.has(caps) {
            let message = format!("this host has the rights {mine} and can grant no others");
            return Err(Failure::new(message, "name some of these with --caps"));
        }
        Ok(())
    }

    /// Returns the mesh as it is shown to people.
    pub(super) fn mesh_view(&self) -> MeshView {
        let view = self.view();
        let now = self.now();
        let (links, open, refused_items) = match self.state().as_ref() {
            Some(state) => {
                let open = state.own.invitations.open().iter().filter(|open| now < open.until && open.uses > 0);
                (state.links(), open.count() as u64, state.spread.refused())
            }
            None => Default::default(),
        };
        let link = |node: &NodeId| links.get(node).map(|dialled| if *dialled { "dialled" } else { "accepted" });
        let proofs = self.proof_views();
        let is_proven = |node: &NodeId, domain: &Domain| {
            let is_it = |proof: &&ProofView| proof.node == node.to_string() && proof.domain == domain.to_string();
            proofs.iter().find(is_it).is_some_and(|proof| proof.is_proven)
        };
        let claims = |node: &NodeId| match view.me() == Some(*node) {
            // What the others are about to hear.
            true => {
                let mut claims = own::not_granted(&self.config(), node, &view);
                claims.retain(|domain| !is_proven(node, domain));
                claims.into_iter().collect()
            }
            false => view.unfounded(node).to_vec(),
        };
        let is_shown = |roster: &Roster, node: &NodeId| roster.successor(node).is_none();
        let members = view
            .roster()
            .into_iter()
            .flat_map(|roster| roster.members().keys().filter(move |node| is_shown(roster, node)));
        let gone = view
            .roster()
            .into_iter()
            .flat_map(|roster| roster.gone().iter().filter(move |(node, _)| is_shown(roster, node)));
        let contradicting = view.roster().into_iter().flat_map(|roster| roster.double_tongued());
        MeshView {
            node: self.0.identity.load().as_ref().map(|identity| identity.id().to_string()),
            mesh: view.mesh().map(|mesh| mesh.to_string()),
            label: label(&view),
            is_member: view.me().is_some(),
            members: members.map(|node| member_view(&view, node, link(node), names(&claims(node)))).collect(),
            gone: gone.map(|(node, gone)| gone_view(node, gone)).collect(),
            conflicts: self.conflicts(),
            proofs,
            contradicting: contradicting.map(|node| view.label(&node)).collect(),
            open_invitations: open,
            refused_items,
            contained: self.contained_views(),
            over_quota: self.over_views(),
            misdeeds: self.misdeed_views(),
            rotation: self.rotation_view(),
            policy: view.roster().map(|roster| vote::policy_view(roster.policy())),
            open_votes: view.roster().map_or(0, |roster| roster.pending().len() as u64),
        }
    }

    fn conflicts(&self) -> Vec<String> {
        let view = self.view();
        let guard = self.state();
        let Some(directory) = guard.as_ref().map(|state| state.spread.directory()) else { return Vec::new() };
        let show = |conflict: &Conflict| {
            let owners = directory.owners().get(&conflict.domain).into_iter().flatten();
            let owners: Vec<String> = owners.map(|node| view.label(node)).collect();
            let whose =
                if owners.is_empty() { "nobody has it".to_owned() } else { format!("{} has it", owners.join(", ")) };
            format!("{} by {}, {whose}", conflict.domain, view.label(&conflict.node))
        };
        directory.conflicts().iter().map(show).collect()
    }
}

/// Returns what the founder called the mesh.
pub(super) fn label(view: &View) -> Option<String> {
    let roster = view.roster()?;
    match roster.statements().get(&roster.mesh())?.what() {
        What::Found { label, .. } => Some(label.to_string()),
        _ => None,
    }
}

fn member_view(view: &View, node: &NodeId, link: Option<&str>, claims: Vec<String>) -> MemberView {
    let said = view.record(node);
    let member = view.roster().and_then(|roster| roster.member(node));
    MemberView {
        node: node.to_string(),
        label: view.label(node),
        site: said.map(|said| said.site.to_string()).unwrap_or_default(),
        addresses: said.map(|said| said.addresses.iter().map(ToString::to_string).collect()).unwrap_or_default(),
        serves: said.map(|said| names(&said.serves)).unwrap_or_default(),
        caps: member.map(|member| member.caps.to_string()).unwrap_or_default(),
        reach: reach(said).to_owned(),
        link: if view.me() == Some(*node) { "self" } else { link.unwrap_or("none") }.to_owned(),
        is_refused: view.refused().contains(node),
        earlier: view.earlier_members(node).map(|earlier| earlier.to_string()).collect(),
        claims,
        ..MemberView::default()
    }
}

/// Returns how a member is reached, in a word.
pub(super) fn reach(said: Option<&Said>) -> &'static str {
    match said.map(|said| said.reach) {
        Some(Reach::Public) => "public",
        Some(Reach::DialsOut) => "dials-out",
        Some(Reach::Windows) => "windows",
        None => "unknown",
    }
}

pub(super) fn names(domains: &[Domain]) -> Vec<String> {
    domains.iter().map(Domain::to_string).collect()
}

fn gone_view(node: &NodeId, gone: &Gone) -> GoneView {
    let why = match gone {
        Gone::Revoked { by, reason } => {
            let by: Vec<String> = by.iter().map(NodeId::short).collect();
            format!("revoked by {}: {reason}", by.join(", "))
        }
        Gone::Retired => "left".to_owned(),
        Gone::Unsponsored => "admitted by a node that was revoked before".to_owned(),
    };
    GoneView { node: node.to_string(), why }
}

pub(super) fn in_no_mesh() -> Failure {
    Failure::new("this host is in no mesh", "make one: postroad mesh invite; or join one: postroad mesh join TOKEN")
}

fn rights(caps: &str, serves: &[String]) -> Result<(Caps, Vec<Domain>), Failure> {
    let caps = caps.parse().map_err(|error: postroad_mesh::caps::CapsError| {
        Failure::new(error.to_string(), "for example: --caps relay,trace")
    })?;
    if serves.len() > GRANTED_DOMAINS_MAX {
        let message = format!("one admission grants {GRANTED_DOMAINS_MAX} domains at most");
        return Err(Failure::new(message, "name the domain above them: it stands for all below it"));
    }
    let domain = |name: &String| {
        name.parse().map_err(|_| Failure::new(format!("{name:?} is no domain"), "for example: --serves lab.example"))
    };
    Ok((caps, serves.iter().map(domain).collect::<Result<_, _>>()?))
}

pub(super) fn check_text(text: &str) -> Result<(), Failure> {
    if text.len() > TEXT_OCTETS_MAX || text.chars().any(char::is_control) {
        let message = format!("{text:?} is longer than {TEXT_OCTETS_MAX} octets or has control characters");
        return Err(Failure::new(message, "choose a shorter one"));
    }
    Ok(())
}
