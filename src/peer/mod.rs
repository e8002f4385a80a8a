//! The mesh as this host takes part in it: its key, whom it knows, and how members reach one another.
//!
//! Other rooms hold a [`Peers`]. It answers from memory at once, and keeps answering from what was known
//! last whatever becomes of the links. Who is a member the crate `postroad-mesh` decides; this room has the
//! files, the sockets and the clock. A host that is in no mesh has no key, and nothing here wakes up.

mod candidates;
mod conduct;
mod dial;
mod driver;
mod files;
mod interfaces;
mod join;
mod link;
mod map;
mod mdns;
mod members;
mod own;
mod parting;
mod proofs;
mod questions;
mod rotation;
mod state;
mod view;
mod vote;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::{ArcSwap, ArcSwapOption};
use postroad_mesh::link::Message;
use postroad_mesh::node::Signature;
use postroad_mesh::question::Fault;
use postroad_mesh::{NodeId, SecretKey};
use tokio::sync::{Notify, Semaphore, oneshot, watch};
use tokio_rustls::TlsConnector;

use crate::clock::Clock;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::tls::{self, NodeTls, ServerTls};
use conduct::Conduct;
pub use conduct::Outside;
pub use files::FileError;
use files::Files;
pub use questions::{Answerer, AskError};
use state::{Hold, State};
pub use view::{NodeNameError, View};

/// The mesh, as the other rooms see it. Clones are the same.
#[derive(Clone)]
pub struct Peers(Arc<Shared>);

/// What the mesh needs of the agent.
pub struct Parts {
    /// Settings.
    pub config: Arc<ArcSwap<Config>>,
    /// What answers in the name of this node.
    pub tls: ServerTls,
    /// The time.
    pub clock: Clock,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// Why this host cannot be what it is in the mesh.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// TLS.
    #[error("the key of this node cannot be used for TLS: {0}")]
    Tls(#[from] rustls::Error),
}

type Answers = HashMap<u64, (NodeId, oneshot::Sender<Result<(Box<[u8]>, Signature), Fault>>)>;

struct Shared {
    parts: Parts,
    files: Files,
    identity: ArcSwapOption<Identity>,
    /// Who this host was before it changed its key, until everybody has heard.
    earlier: ArcSwapOption<Identity>,
    /// Who has.
    heard: Mutex<BTreeSet<NodeId>>,
    /// There is a new link, maybe with somebody who has not heard.
    met: Notify,
    /// `None` in no mesh.
    state: Mutex<Option<State>>,
    view: ArcSwap<View>,
    /// Counts the views.
    changed: watch::Sender<u64>,
    /// Counts the links that were opened.
    opened: watch::Sender<u64>,
    /// Something happened that the driver has to look at.
    wake: Notify,
    /// What is known is about to be kept on disk.
    keeping: AtomicBool,
    /// Held by whoever changes what this host states or decides, until that is on disk.
    deciding: tokio::sync::Mutex<()>,
    joining: tokio::sync::Mutex<()>,
    numbers: AtomicU64,
    waiting: Mutex<Answers>,
    answering: Arc<Semaphore>,
    /// Held by whoever opens a link for a question.
    linking: Mutex<HashMap<NodeId, Arc<tokio::sync::Mutex<()>>>>,
    answerers: ArcSwap<BTreeMap<u8, Arc<dyn Answerer>>>,
    conduct: Mutex<Conduct>,
    /// `None`: multicast DNS is not spoken.
    lan: Mutex<Option<Box<mdns::Lan>>>,
    /// The agent stops.
    is_parting: AtomicBool,
}

/// Who this host is.
pub(crate) struct Identity {
    key: SecretKey,
    tls: NodeTls,
}

/// Returns the mesh as the files of an agent have it, whether it runs or not: for those who ask which way
/// mail would go.
///
/// # Errors
/// A file cannot be read, or is damaged.
pub fn view_on_disk(state_dir: &Path) -> Result<View, FileError> {
    let files = Files::new(state_dir);
    let (Some(key), Some(directory)) = (files.key()?, files.known(0)?) else { return Ok(View::default()) };
    Ok(View::new(key.public().id(), &directory, files.own()?.refused.into_iter().collect()))
}

impl Peers {
    /// Reads what is on disk, and from then on answers those who ask for this node by its key.
    ///
    /// # Errors
    /// A file cannot be read, or is damaged: a host that forgot its mesh would send mail elsewhere.
    pub fn open(parts: Parts) -> Result<Peers, PeerError> {
        let files = Files::new(&parts.config.load().state_dir);
        // Chance enough to tell the questions of one run from those of another.
        let numbers = u64::from_be_bytes(tls::random()?) >> 1;
        let peers = Peers(Arc::new(Shared {
            parts,
            files,
            identity: ArcSwapOption::empty(),
            earlier: ArcSwapOption::empty(),
            heard: Mutex::default(),
            met: Notify::new(),
            state: Mutex::new(None),
            view: ArcSwap::default(),
            changed: watch::Sender::new(0),
            opened: watch::Sender::new(0),
            wake: Notify::new(),
            keeping: AtomicBool::new(false),
            deciding: tokio::sync::Mutex::new(()),
            joining: tokio::sync::Mutex::new(()),
            numbers: AtomicU64::new(numbers),
            waiting: Mutex::default(),
            answering: Arc::new(Semaphore::new(questions::ANSWERING_MAX)),
            linking: Mutex::default(),
            answerers: ArcSwap::default(),
            conduct: Mutex::default(),
            lan: Mutex::default(),
            is_parting: AtomicBool::new(false),
        }));
        peers.reopen()?;
        Ok(peers)
    }

    /// Returns which node this host is; `None` while it is in no mesh.
    pub fn me(&self) -> Option<NodeId> {
        self.view().me()
    }

    /// Returns what is known of the mesh now.
    pub fn view(&self) -> Arc<View> {
        self.0.view.load_full()
    }

    /// Returns what tells when there is another view.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// Returns which node this host is to another one ([`Peers::me_to`]), and what connects as that: a session
    /// under [`tls::node::server_name`] is with the other node and with nobody else. `None`: this host has no key.
    pub fn connector(&self, node: &NodeId) -> Option<(NodeId, TlsConnector)> {
        let identity = self.identity_to(node)?;
        Some((identity.id(), identity.tls.connector().clone()))
    }

    /// Looks at the configuration again: what this host says of itself may be something else now.
    pub fn reload(&self) {
        let profile = self.config().mesh.profile;
        if let Some(state) = self.state().as_mut() {
            state.spread.set_profile(profile);
            state.proofs.hasten(self.now());
        }
        self.0.wake.notify_one();
    }

    /// Returns what tells when there is a new link.
    pub fn opened(&self) -> watch::Receiver<u64> {
        self.0.opened.subscribe()
    }

    /// Returns the number of the link with a member, if there is one: a later link has a higher one.
    pub fn link_with(&self, node: &NodeId) -> Option<u64> {
        let names = self.view().names(node);
        self.state().as_ref().and_then(|state| names.iter().find_map(|name| state.link_with(name)))
    }

    /// Returns how many links are open.
    pub fn link_count(&self) -> usize {
        self.state().as_ref().map_or(0, |state| state.links().len())
    }

    fn config(&self) -> Arc<Config> {
        self.0.parts.config.load_full()
    }

    /// Returns the time, in milliseconds, of a clock that never goes back.
    fn now(&self) -> u64 {
        self.0.parts.clock.now().0
    }

    fn next_number(&self) -> u64 {
        self.0.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// What somebody left behind who panicked is replaced by the driver.
    fn state(&self) -> MutexGuard<'_, Option<State>> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> MutexGuard<'_, Answers> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn conduct(&self) -> MutexGuard<'_, Conduct> {
        self.0.conduct.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn those_who_heard(&self) -> MutexGuard<'_, BTreeSet<NodeId>> {
        self.0.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn use_identity(&self, key: SecretKey) -> Result<Arc<Identity>, rustls::Error> {
        let identity = Arc::new(Identity::new(key)?);
        self.0.identity.store(Some(identity.clone()));
        self.answer_to_names();
        Ok(identity)
    }

    /// Answers those who ask for this host by its key, and by the one that it had before.
    fn answer_to_names(&self) {
        self.0.parts.tls.set_nodes(self.identities().map(|identity| identity.tls.clone()).collect());
    }

    /// Returns who this host is, and who it was before while somebody may not have heard: two at most.
    fn identities(&self) -> impl Iterator<Item = Arc<Identity>> {
        [self.0.identity.load_full(), self.0.earlier.load_full()].into_iter().flatten()
    }

    /// Asks for the right to serve a link; `None`: there is a better one.
    fn hold(&self, node: NodeId, dialled: bool, passing: bool) -> Option<Hold> {
        let now = self.now();
        let me = self.me_to(&node)?;
        let hold = self.state().as_mut().and_then(|state| state.hold(me, node, dialled, passing, now));
        self.0.wake.notify_one();
        if self.0.earlier.load().is_some() && !self.those_who_heard().contains(&node) {
            self.0.met.notify_one();
        }
        if hold.is_some() {
            self.0.opened.send_modify(|count| *count += 1);
        }
        hold
    }

    fn link_ended(&self, node: NodeId, number: u64) {
        let now = self.now();
        if let Some(state) = self.state().as_mut() {
            state.ended(node, number, now);
        }
        // Whoever waits for an answer of it waits in vain.
        self.waiting().retain(|_, (asked, _)| *asked != node);
        self.0.wake.notify_one();
    }

    /// Takes in a message of a link.
    fn heard(&self, node: NodeId, message: Message) {
        match message {
            Message::Spread(frame) => {
                let now = self.now();
                let faults = self.state().as_mut().map(|state| {
                    state.spread.received(node, frame, now);
                    state.spread.take_faults()
                });
                self.report_faults(node, faults.unwrap_or_default());
                self.0.wake.notify_one();
            }
            Message::Ask(question) => self.asked(node, question),
            Message::Answer(answer) => self.answered(node, answer),
            // A host that was admitted by its card asks what it is a member of.
            Message::Join { .. } => {
                if let Some(founding) = self.founding() {
                    self.send(&node, Message::Admitted { founding });
                }
            }
            Message::Refused { why } => tracing::warn!(%node, %why, "a member refuses the link"),
            Message::Admitted { .. } | Message::Unknown(_) => {}
        }
    }

    /// Sends a message over a link; returns whether there is one.
    fn send(&self, node: &NodeId, message: Message) -> bool {
        self.state().as_mut().is_some_and(|state| state.send(node, message))
    }
}

impl Identity {
    fn new(key: SecretKey) -> Result<Identity, rustls::Error> {
        Ok(Identity { tls: NodeTls::new(&key)?, key })
    }

    fn id(&self) -> NodeId {
        self.tls.id()
    }
}

#[cfg(test)]
mod tests;
