//! What changes while this host is in a mesh, behind one lock that is held for moments: the machine that
//! spreads the directory, the links, and what this host alone decided.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use postroad_mesh::archive::Own;
use postroad_mesh::candidate::Candidates;
use postroad_mesh::difference::Keys;
use postroad_mesh::frame::Item;
use postroad_mesh::link::Message;
use postroad_mesh::proof::Step;
use postroad_mesh::record::Said;
use postroad_mesh::spread::{Action, Profile, Spread};
use postroad_mesh::statement::{StatementError, What};
use postroad_mesh::{Directory, NodeId, Proofs, Record, Statement};
use postroad_smtp::Domain;
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::{Identity, View, own};
use crate::admin::Failure;
use crate::config::Config;

/// Messages that wait for a slow node; one that is slower is cut off.
const OUTBOUND_MAX: usize = 256;
/// A link that ended sooner counts as one that could not be made.
const SHORT_MS: u64 = 10_000;

/// A host in a mesh.
pub(super) struct State {
    pub identity: Arc<Identity>,
    pub spread: Spread,
    pub own: Own,
    /// What DNS says of domains that members claim without a grant.
    pub proofs: Proofs,
    /// Where members may be found beside what they state.
    pub candidates: Candidates,
    /// Targets of SRV records that name no member.
    pub strange: Vec<String>,
    /// The directory whose claims these are about.
    claimed: Option<Arc<Keys>>,
    links: BTreeMap<NodeId, Held>,
    /// Counts links.
    numbers: u64,
    view: Arc<View>,
    /// What does not fit a record: it was said so once.
    unsaid: Option<Said>,
    /// What the view shows.
    shown: Option<Arc<Keys>>,
    /// The refusals that the view shows.
    shown_refused: Vec<NodeId>,
}

/// A link. Without its sender the task that serves it ends.
struct Held {
    number: u64,
    dialled: bool,
    /// Made for questions and not kept: when the last one was asked.
    passing: Option<u64>,
    since: u64,
    outbound: mpsc::Sender<Message>,
}

/// The right to serve a link.
pub(super) struct Hold {
    pub number: u64,
    pub outbound: mpsc::Receiver<Message>,
}

/// What is to be done outside the lock.
#[derive(Default)]
pub(super) struct Turn {
    /// When to take the next turn, unless something happens.
    pub wake: Option<u64>,
    pub dial: Vec<NodeId>,
    /// Domains that DNS is to be asked about.
    pub look_up: Vec<Domain>,
    /// There is another view.
    pub view: Option<Arc<View>>,
}

impl State {
    pub fn new(
        identity: Arc<Identity>,
        directory: Directory,
        (own, proofs): (Own, Proofs),
        profile: Profile,
        seed: u64,
        now: u64,
    ) -> State {
        let spread = Spread::new(identity.id(), directory, profile, seed, now);
        State {
            identity,
            spread,
            own,
            proofs,
            candidates: Candidates::new(seed),
            strange: Vec::new(),
            claimed: None,
            links: BTreeMap::new(),
            numbers: 0,
            view: Arc::default(),
            unsaid: None,
            shown: None,
            shown_refused: Vec::new(),
        }
    }

    /// Does what is due at `now`.
    pub fn turn(&mut self, config: &Config, now: u64) -> Turn {
        let mut turn = Turn { view: self.view(), ..Turn::default() };
        let publish = self.publish_own(config, now);
        let witness = self.poll_proofs(&mut turn.look_up, now);
        turn.view = self.view().or(turn.view);
        let wake = loop {
            match self.spread.poll(now) {
                Action::Send(node, frame) => {
                    self.send(&node, Message::Spread(frame));
                }
                Action::Dial(node) => turn.dial.push(node),
                Action::Wait(until) => break until,
            }
        };
        turn.wake = Some(publish.err().map_or(wake, |at| wake.min(at)).min(witness));
        turn
    }

    /// Finds which domains DNS is to be asked about now, and takes over what it proves; returns when to look again.
    fn poll_proofs(&mut self, look_up: &mut Vec<Domain>, now: u64) -> u64 {
        let keys = self.spread.directory().keys(&BTreeSet::new());
        if self.claimed.as_ref().is_none_or(|claimed| !Arc::ptr_eq(claimed, &keys)) {
            self.proofs.claim(&self.spread.directory().not_granted(), now);
            self.claimed = Some(keys);
        }
        let again = loop {
            match self.proofs.poll(now) {
                Step::Ask(domain) => look_up.push(domain),
                Step::Wait(at) => break at,
            }
        };
        self.spread.set_proofs(self.proofs.proven());
        again
    }

    /// Signs a statement, behind those that this host made before under that key.
    ///
    /// # Errors
    /// What keeps it from being stated.
    pub fn state(&self, by: &Identity, what: What, now: u64) -> Result<Statement, Failure> {
        let head = self.spread.directory().roster().next_head(&by.id(), now);
        Statement::try_new(&by.key, head, what).map_err(|error| {
            let remedy = match error {
                StatementError::Spent => "go on under another key: postroad mesh rotate",
                _ => "say it in parts: fewer domains at a time",
            };
            Failure::new(format!("this cannot be stated: {error}"), remedy)
        })
    }

    /// Goes on under another key; the links stay.
    pub fn go_on_as(&mut self, identity: Arc<Identity>) {
        self.spread.go_on_as(identity.id());
        self.identity = identity;
        // Another node is shown as this host, whatever is known of the others.
        self.shown = None;
    }

    /// Takes statements and records in that this host made, and passes them on.
    pub fn publish(&mut self, items: Vec<Item>, now: u64) {
        self.spread.publish(items, now);
    }

    /// Returns the view, if it is another one than before; links with those who are no members in it end.
    pub fn view(&mut self) -> Option<Arc<View>> {
        let keys = self.spread.directory().keys(&BTreeSet::new());
        let is_shown = self.shown.as_ref().is_some_and(|shown| Arc::ptr_eq(shown, &keys));
        if is_shown && self.shown_refused == self.own.refused && self.view.contained() == self.own.contained {
            return None;
        }
        self.shown = Some(keys);
        self.shown_refused.clone_from(&self.own.refused);
        let refused = self.own.refused.iter().copied().collect();
        let view = View::new(self.identity.id(), self.spread.directory(), refused);
        let view = Arc::new(view.containing(self.own.contained.clone()));
        let before = std::mem::replace(&mut self.view, view.clone());
        // Who joins is told of the others in parts: the one it joined with may come behind those let in earlier.
        let is_told = |node: &NodeId| view.me().is_some() || before.is_member(node);
        let is_gone = |node: &&NodeId| !view.is_member(node) && is_told(node);
        let gone: Vec<NodeId> = self.links.keys().filter(is_gone).copied().collect();
        for node in gone {
            info!(%node, "link closed: it is no member any more");
            self.links.remove(&node);
            self.spread.closed(node);
        }
        Some(view)
    }

    /// Publishes what this host says of itself, where it is news and the others would hear it; `Err`:
    /// when they will.
    fn publish_own(&mut self, config: &Config, now: u64) -> Result<(), u64> {
        let (me, directory) = (self.identity.id(), self.spread.directory());
        if directory.roster().member(&me).is_none() {
            return Ok(());
        }
        let last = directory.records().get(&me).map(|record| record.said());
        let key = self.identity.key.public();
        let mut said = own::said(config, key, directory.roster().mesh(), &self.view);
        said.sequence = last.map_or(0, |last| last.sequence);
        if last == Some(&said) || self.unsaid.as_ref() == Some(&said) {
            return Ok(());
        }
        let at = directory.next_record_at(&me, now);
        if at > now {
            return Err(at);
        }
        // The time makes a record of a host whose disk was put back from a backup a later one.
        let sequence = now.max(said.sequence + 1);
        match Record::sign(&self.identity.key, &Said { sequence, ..said.clone() }) {
            Ok(record) => self.spread.publish(vec![Item::Record(record.to_octets().into())], now),
            Err(error) => {
                warn!(%error, "[mesh] says more than a record holds: members are told nothing of it");
                self.unsaid = Some(said);
            }
        }
        Ok(())
    }

    /// Takes a link with a node to which this host is `me`; `None`: there is one already that both ends prefer.
    /// Nor is there one with who is no member any more; a host that joins knows nobody yet.
    pub fn hold(&mut self, me: NodeId, node: NodeId, dialled: bool, passing: bool, now: u64) -> Option<Hold> {
        if self.view.me().is_some() && !self.view.is_member(&node) {
            self.spread.failed(node, now);
            return None;
        }
        if let Some(held) = self.links.get(&node) {
            // Both ends keep the one that the smaller id dialled; of two alike, the later one.
            let prefers_dialled = me < node;
            if held.dialled != dialled && held.dialled == prefers_dialled {
                self.spread.opened(node, held.dialled, now);
                return None;
            }
            self.spread.closed(node);
        }
        self.numbers += 1;
        let (outbound, receiver) = mpsc::channel(OUTBOUND_MAX);
        self.links.insert(
            node,
            Held { number: self.numbers, dialled, passing: passing.then_some(now), since: now, outbound },
        );
        if !passing {
            self.spread.opened(node, dialled, now);
        }
        Some(Hold { number: self.numbers, outbound: receiver })
    }

    /// Notes that a link has ended.
    pub fn ended(&mut self, node: NodeId, number: u64, now: u64) {
        if let Some(held) = self.links.get(&node).filter(|held| held.number == number) {
            let is_failure = held.dialled && held.passing.is_none() && now.saturating_sub(held.since) < SHORT_MS;
            self.links.remove(&node);
            self.spread.closed(node);
            if is_failure {
                self.spread.failed(node, now);
            }
        }
    }

    /// Notes that a question goes over a link.
    pub fn note_question(&mut self, node: &NodeId, now: u64) {
        if let Some(at) = self.links.get_mut(node).and_then(|held| held.passing.as_mut()) {
            *at = now;
        }
    }

    /// Ends a link that was made for questions, if none was asked since; returns whether there is none
    /// any more.
    pub fn end_passing(&mut self, node: &NodeId, since: u64) -> bool {
        let last = self.links.get(node).and_then(|held| held.passing);
        let is_over = last.is_none_or(|last| last <= since);
        if last.is_some() && is_over {
            self.links.remove(node);
        }
        is_over
    }

    /// Sends a message over a link; returns whether there is one. A node that is too slow to take it
    /// loses the link.
    pub fn send(&mut self, node: &NodeId, message: Message) -> bool {
        let Some(held) = self.links.get(node) else { return false };
        let is_taken = held.outbound.try_send(message).is_ok();
        if !is_taken {
            self.links.remove(node);
            self.spread.closed(*node);
        }
        is_taken
    }

    /// Returns the nodes that there is a link with, and whether this host dialled it.
    pub fn links(&self) -> BTreeMap<NodeId, bool> {
        self.links.iter().map(|(node, held)| (*node, held.dialled)).collect()
    }

    /// Returns the number of the link with a node.
    pub fn link_with(&self, node: &NodeId) -> Option<u64> {
        self.links.get(node).map(|held| held.number)
    }

    /// Returns the octets of the file of what is known, with a statement that is not known yet.
    pub fn known_with(&self, statement: Option<&Statement>) -> Vec<u8> {
        let directory = self.spread.directory();
        match statement {
            None => postroad_mesh::archive::write(directory),
            Some(statement) => {
                let mut directory = directory.clone();
                directory.take_statements([statement.clone()]);
                postroad_mesh::archive::write(&directory)
            }
        }
    }
}
