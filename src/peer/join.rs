//! How a host becomes a member: both sides of an invitation.
//!
//! The joiner dials the node that the invitation names by id, so TLS tells it whom it speaks with, and
//! proves over that session alone that it knows the secret. The inviter uses the invitation up, signs the
//! admission, has both on disk, and only then says so. All that follows is an ordinary link.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use postroad_mesh::frame::Item;
use postroad_mesh::invite::Proof;
use postroad_mesh::link::{MESSAGE_OCTETS_MAX, Message, STRANGER_OCTETS_MAX};
use postroad_mesh::record::Address;
use postroad_mesh::statement::What;
use postroad_mesh::{Directory, Invitation, NodeId, NodeKey, Roster, Statement};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{info, warn};

use super::dial::{Dialling, Linked};
use super::{Identity, Peers, link, own};
use crate::admin::Failure;
use crate::metrics::Misdeed;
use crate::net::Stream;

/// How long a joiner waits for everything together.
const JOIN_LIMIT: Duration = Duration::from_millis(4_500);
/// How long a stranger may take to say what it wants.
const STRANGER_LIMIT: Duration = Duration::from_secs(10);
/// What somebody hears who was invited and is no member yet.
const MORE_VOICES: &str =
    "this mesh wants more than one voice; when others have said `postroad mesh vote` as well, join again";
/// What a stranger hears otherwise, whatever is wrong: who guesses is to learn nothing.
const NOT_INVITED: &str = "no open invitation fits: it may be used up, ended or mistyped";
/// What somebody hears who was revoked, or has left, or is refused by the inviter.
const ENDED: &str = "its membership was ended; it can come back under another key";

impl Peers {
    /// Takes over a session behind XLINK. `ahead` is what was read behind it already.
    pub async fn serve(&self, stream: Stream, ahead: Vec<u8>, key: NodeKey) {
        let node = key.id();
        if self.is_shut(&node) {
            return;
        }
        if self.view().is_member(&node) {
            if let Some(hold) = self.hold(node, false, false) {
                self.serve_link(stream, ahead, node, hold).await;
            }
            return;
        }
        if let Err(error) = self.serve_stranger(stream, ahead, key).await {
            info!(%node, %error, "a host that is no member asked for a link");
        }
    }

    async fn serve_stranger(&self, mut stream: Stream, ahead: Vec<u8>, key: NodeKey) -> io::Result<()> {
        let node = key.id();
        let first = async {
            let Stream::Tls(tls) = &mut stream else { return Err(io::ErrorKind::InvalidInput.into()) };
            link::read(&mut (&ahead[..]).chain(tls), STRANGER_OCTETS_MAX).await
        };
        let first = timeout(STRANGER_LIMIT, first).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let admitted = match (first, stream.channel_binding()) {
            (Some(Message::Join { proof, label }), Some(binding)) => self.admit(key, &proof, &binding, &label).await,
            _ => Err("it is no member here, and asks for something else than to be let in".to_owned()),
        };
        let Stream::Tls(tls) = &mut stream else { return Err(io::ErrorKind::InvalidInput.into()) };
        match admitted {
            Ok(founding) => {
                link::write(tls, &Message::Admitted { founding }).await?;
                if let Some(hold) = self.hold(node, false, false) {
                    self.serve_link(stream, Vec::new(), node, hold).await;
                }
                Ok(())
            }
            Err(why) => {
                let told = if why == NOT_INVITED { NOT_INVITED } else { why.as_str() };
                link::write(tls, &Message::Refused { why: told.into() }).await?;
                tls.shutdown().await?;
                Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
            }
        }
    }

    /// Lets in who proves that it was invited; returns the statement that founded the mesh.
    async fn admit(&self, key: NodeKey, proof: &Proof, binding: &[u8; 32], label: &str) -> Result<Box<[u8]>, String> {
        let _alone = self.0.deciding.lock().await;
        let now = self.now();
        let node = key.id();
        let (open, own) = {
            let mut guard = self.state();
            let state = guard.as_mut().ok_or(NOT_INVITED)?;
            if state.spread.directory().roster().gone().contains_key(&node) || state.own.refused.contains(&node) {
                return Err(ENDED.to_owned());
            }
            if state.spread.directory().roster().has_spoken_for(&state.identity.id(), &key) {
                return Err(MORE_VOICES.to_owned());
            }
            // One that was given out under the key before is good for as long as that key is.
            let mut redeem =
                |me: Arc<Identity>| state.own.invitations.redeem(proof, binding, &node, &me.id(), now).ok();
            let open = self.identities().find_map(&mut redeem);
            (open, state.own.clone())
        };
        let Some(open) = open else {
            self.report_stranger(Misdeed::Join, &format!("{} as {label:?}", node.short()));
            return Err(NOT_INVITED.to_owned());
        };
        let kept = self.on_disk(move |files| files.put_own(&own)).await;
        kept.map_err(|error| error.to_string())?;
        let what = What::Admit { node: key, caps: open.caps, serves: open.serves, label: label.into() };
        self.state_durably(what).await.map_err(|failure| failure.message)?;
        if !self.view().is_member(&node) {
            return Err(MORE_VOICES.to_owned());
        }
        info!(%node, label, caps = %open.caps, "let in by an invitation");
        self.founding().ok_or_else(|| NOT_INVITED.to_owned())
    }

    /// Returns the statement that founded the mesh, as octets.
    pub(super) fn founding(&self) -> Option<Box<[u8]>> {
        let guard = self.state();
        let roster = guard.as_ref()?.spread.directory().roster();
        roster.statements().get(&roster.mesh()).map(|founding| founding.to_octets().into())
    }

    /// Joins the mesh that an invitation is for.
    pub(super) async fn join(&self, invitation: &Invitation) -> Result<(), Failure> {
        let _one_at_a_time = self.0.joining.lock().await;
        let until = Instant::now() + JOIN_LIMIT;
        self.check_free()?;
        let identity = self.make_key().await?;
        let addresses: Vec<_> = invitation.addresses.iter().filter_map(|address| address.parse().ok()).collect();
        let late = || {
            let message = format!(
                "{} did not answer within {} seconds",
                invitation.addresses.join(", "),
                JOIN_LIMIT.as_secs_f32()
            );
            Failure::new(message, "see that the port is open between the two hosts, then try again")
        };
        let Linked { mut stream, ahead } = self.dial_inviter(invitation, &addresses, until).await?;
        let lost = |error: io::Error| Failure::new(format!("the inviter broke off: {error}"), "try again");
        let binding = stream.channel_binding().ok_or_else(|| lost(io::ErrorKind::Unsupported.into()))?;
        let proof = invitation.prove(&binding, &identity.id());
        let label = own::label(&self.config()).into();
        let answered = timeout_at(until, ask_to_join(&mut stream, &ahead, &Message::Join { proof, label })).await;
        let founding = match answered.map_err(|_| late())?.map_err(lost)? {
            Message::Admitted { founding } => founding,
            Message::Refused { why } => {
                let inviter = invitation.inviter.short();
                return Err(Failure::new(format!("the inviter ({inviter}…) refuses: {why}"), after_refusal(&why)));
            }
            _ => return Err(lost(io::ErrorKind::UnexpectedEof.into())),
        };
        self.begin(&founding).await?;
        self.note_invitation(invitation.inviter, &addresses);
        self.link_as_member(stream, invitation.inviter);
        self.until_member(until, &invitation.inviter).await?;
        // Whoever is told that it is a member stays one, whatever happens next.
        self.keep().await
    }

    /// Opens a session with the inviter. Each of its addresses has its share of the time that is left: one that leads
    /// nowhere takes nothing from those behind it.
    async fn dial_inviter(
        &self,
        invitation: &Invitation,
        addresses: &[Address],
        until: Instant,
    ) -> Result<Linked, Failure> {
        let (mut dialling, mut faults) = (Dialling::new(&self.config()), Vec::new());
        for (shares, address) in (1..=addresses.len() as u32).rev().zip(addresses) {
            let share = until.saturating_duration_since(Instant::now()) / shares;
            let dialled = self.dial(&invitation.inviter, std::slice::from_ref(address), &mut dialling);
            let late = |_| Err(io::Error::new(io::ErrorKind::TimedOut, format!("{address}: no answer in time")));
            match timeout(share, dialled).await.unwrap_or_else(late) {
                Ok(linked) => return Ok(linked),
                Err(error) => faults.push(error),
            }
        }
        Err(unreachable_inviter(invitation, &faults))
    }

    /// Keeps what the inviter said of the mesh, and takes part in it from here on.
    async fn begin(&self, founding: &[u8]) -> Result<(), Failure> {
        let wrong = |error: &dyn std::fmt::Display| {
            Failure::new(format!("the inviter says what founds no mesh: {error}"), "it may run another release")
        };
        let founding = Statement::from_octets(founding).map_err(|error| wrong(&error))?;
        let roster = Roster::new(founding).map_err(|error| wrong(&error))?;
        let _alone = self.0.deciding.lock().await;
        if self.view().mesh() == Some(roster.mesh()) {
            return Ok(());
        }
        self.take_part(Directory::new(roster)).await
    }

    fn link_as_member(&self, stream: Stream, node: NodeId) {
        let peers = self.clone();
        if let Some(hold) = self.hold(node, true, false) {
            tokio::spawn(async move { peers.serve_link(stream, Vec::new(), node, hold).await });
        }
    }

    /// Waits until the inviter has told that this host is a member.
    async fn until_member(&self, until: Instant, inviter: &NodeId) -> Result<(), Failure> {
        let mut changed = self.changed();
        let told = async {
            loop {
                let view = self.view();
                if view.me().is_some() && view.record(inviter).is_some() {
                    return;
                }
                if changed.changed().await.is_err() {
                    return;
                }
            }
        };
        timeout_at(until, told).await.map_err(|_| {
            let message = "the inviter let this host in, but has not told it all of the mesh yet";
            Failure::new(message, "`postroad mesh status` shows when it has")
        })
    }

    /// A host is in one mesh.
    fn check_free(&self) -> Result<(), Failure> {
        let view = self.view();
        if view.me().is_none() {
            return Ok(());
        }
        let message = format!("this host is a member of a mesh already, with {} members", view.members().count());
        Err(Failure::new(message, "to change to another mesh, leave this one first: postroad mesh leave"))
    }
}

/// Asks, and returns the answer; what else the inviter says meanwhile is said again later.
async fn ask_to_join(stream: &mut Stream, ahead: &[u8], join: &Message) -> io::Result<Message> {
    let Stream::Tls(tls) = stream else { return Err(io::ErrorKind::InvalidInput.into()) };
    link::write(tls, join).await?;
    let mut reader = ahead.chain(tls);
    while let Some(message) = link::read(&mut reader, MESSAGE_OCTETS_MAX).await? {
        match message {
            Message::Admitted { .. } | Message::Refused { .. } => return Ok(message),
            other => warn!(?other, "before the answer to Join; passed over"),
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

/// Says what became of each address, and what to do about the one that tells most.
fn unreachable_inviter(invitation: &Invitation, faults: &[io::Error]) -> Failure {
    let inviter = invitation.inviter.short();
    let text = faults.iter().map(io::Error::to_string).collect::<Vec<_>>().join("; ");
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if faults.iter().any(|fault| fault.kind() == io::ErrorKind::InvalidData) || has(&["alert", "ertificate"]) {
        let message = format!("whoever answers is not the node that invited ({inviter}…): {text}");
        return Failure::new(message, "somebody stands in between, or the address leads to another host");
    }
    let message = format!("the inviter ({inviter}…) cannot be reached: {text}");
    let remedy = if has(&["it said"]) {
        "a program answers there that takes no members: see that the port is one of [listen] smtp or [mesh] listen on the inviter"
    } else if has(&["lookup"]) {
        "see that DNS knows the name; or let the inviter set [mesh] addresses to what leads to it, and invite anew"
    } else {
        "see that its agent runs and the port is open between the two hosts"
    };
    Failure::new(message, remedy)
}

/// Says what to do about a refusal.
fn after_refusal(why: &str) -> &'static str {
    match why {
        MORE_VOICES => "this invitation stays good for it",
        ENDED => "forget the key here first: postroad mesh leave; then join by a new invitation",
        _ => "ask there for a new one: postroad mesh invite",
    }
}

/// A statement as members pass it on.
pub(super) fn item(statement: &Statement) -> Item {
    Item::Statement(statement.to_octets().into())
}
