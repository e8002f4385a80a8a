//! How the directory spreads: a machine that says with whom to speak, and what.
//!
//! A node keeps sessions with a few others, dialled at random among those that can be dialled. What is
//! new is passed on at once to all of them but the one it came from. Now and then the node compares all it knows
//! with one of them in turn, so that what was missed is found: one short frame each way
//! when nothing is. The cost does not depend on the number of members.
//!
//! The shell opens sessions, carries frames, and calls [`Spread::poll`] until it is told to wait.
//! Times are milliseconds of a clock that never goes back; chance comes from a seed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use postroad_smtp::Domain;

use crate::chance::Chance;
use crate::difference::{Range, Said, begin, compare};
use crate::directory::{Directory, RecordRefused, Taken};
use crate::frame::{ASKED_MAX, FRAME_OCTETS_MAX, Frame, ITEMS_MAX, Item, ShortId};
use crate::node::NodeId;
use crate::record::{Reach, Record};
use crate::roster::MergeError;
use crate::statement::{Statement, StatementId};

/// How many sessions a node dials and keeps.
pub const DIALLED: usize = 3;
/// The most sessions a node keeps; the newest beyond them hears what it asks for, and no more.
pub const SESSIONS_MAX: usize = 32;
/// The octets of the items of one frame, as far as there is more than one.
const GIVEN_OCTETS_MAX: usize = FRAME_OCTETS_MAX / 2;
/// How long a node that could not be dialled is left alone at first; it doubles up to an hour.
const REDIAL_MS: u64 = 5_000;
const REDIAL_MAX_MS: u64 = 3_600_000;

/// How often a node compares what it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Every minute.
    Lan,
    /// Every five minutes.
    Wan,
    /// Every quarter of an hour.
    Quiet,
    /// Never by itself: only over sessions that are opened for mail.
    Metered,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Open a session with this node, then call [`Spread::opened`] or [`Spread::failed`].
    Dial(NodeId),
    /// Send this over the session with this node.
    Send(NodeId, Frame),
    /// Nothing until this time, unless something happens.
    Wait(u64),
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Spread {
    me: NodeId,
    directory: Directory,
    profile: Profile,
    chance: Chance,
    sessions: BTreeMap<NodeId, Session>,
    dialling: BTreeSet<NodeId>,
    unreachable: BTreeMap<NodeId, Failures>,
    outbox: VecDeque<(NodeId, Frame)>,
    next_compare: u64,
    /// Of the sessions, the one that was compared with last.
    compared: Option<NodeId>,
    refused: u64,
    faults: BTreeMap<Fault, u64>,
}

/// What is wrong with what a member passes on: no honest one would have taken it in itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// It is damaged, or its signature is not by whom it says.
    Unsound,
    /// It was said in another mesh.
    OtherMesh,
}

#[derive(Clone, Debug)]
struct Session {
    dialled: bool,
    /// The nodes that either side wants left out of comparisons.
    without: BTreeSet<ShortId>,
}

#[derive(Clone, Copy, Debug)]
struct Failures {
    count: u32,
    until: u64,
}

impl Spread {
    /// Begins with what is known, at `now`.
    pub fn new(me: NodeId, directory: Directory, profile: Profile, seed: u64, now: u64) -> Spread {
        let mut spread = Spread {
            me,
            directory,
            profile,
            chance: Chance::new(seed),
            sessions: BTreeMap::new(),
            dialling: BTreeSet::new(),
            unreachable: BTreeMap::new(),
            outbox: VecDeque::new(),
            next_compare: 0,
            compared: None,
            refused: 0,
            faults: BTreeMap::new(),
        };
        spread.next_compare = now.saturating_add(spread.jittered(spread.profile.interval_ms()));
        spread
    }

    /// Returns what is known.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Takes another node for this one: it has a new key.
    pub fn go_on_as(&mut self, me: NodeId) {
        self.me = me;
    }

    /// Notes which domains DNS proves to be whose; returns whether it is something else than before.
    pub fn set_proofs(&mut self, proofs: BTreeSet<(NodeId, Domain)>) -> bool {
        self.directory.set_proofs(proofs)
    }

    /// Compares as often as this from the next time on.
    pub fn set_profile(&mut self, profile: Profile) {
        self.profile = profile;
    }

    /// Returns how many statements and records were not taken in because something is wrong with them.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Takes what was wrong with what [`Spread::received`] got since this was asked last, and how often.
    pub fn take_faults(&mut self) -> BTreeMap<Fault, u64> {
        std::mem::take(&mut self.faults)
    }

    /// Notes that a session with a member is open. The side that dialled it compares at once.
    pub fn opened(&mut self, node: NodeId, dialled: bool, now: u64) {
        self.dialling.remove(&node);
        if self.sessions.len() < SESSIONS_MAX {
            self.sessions.insert(node, Session { dialled, without: BTreeSet::new() });
            if dialled {
                self.begin(node, now);
            }
        }
    }

    /// Notes that a node could not be dialled.
    pub fn failed(&mut self, node: NodeId, now: u64) {
        self.dialling.remove(&node);
        let count = self.unreachable.get(&node).map_or(0, |failures| failures.count);
        let pause = (REDIAL_MS << count.min(16)).min(REDIAL_MAX_MS);
        let until = now + self.jittered(pause);
        self.unreachable.insert(node, Failures { count: count + 1, until });
    }

    /// Returns the nodes that could not be dialled and have not spoken since.
    pub fn missed(&self) -> BTreeSet<NodeId> {
        let is_missed = |id: &&NodeId| {
            !self.sessions.contains_key(*id) && !self.is_given_up(id) && self.directory.records().contains_key(*id)
        };
        self.unreachable.keys().filter(is_missed).copied().collect()
    }

    /// Notes that a node that could not be dialled may be somewhere else now: it may be dialled at once.
    pub fn hasten(&mut self, node: &NodeId, now: u64) {
        if let Some(failures) = self.unreachable.get_mut(node) {
            failures.until = failures.until.min(now);
        }
    }

    /// Notes that a session is over.
    pub fn closed(&mut self, node: NodeId) {
        self.sessions.remove(&node);
        self.outbox.retain(|(to, _)| *to != node);
    }

    /// Takes in what this node itself has to say, and passes it on.
    pub fn publish(&mut self, items: Vec<Item>, now: u64) {
        self.take(items, None, now);
    }

    /// Takes in what a member said.
    pub fn received(&mut self, from: NodeId, frame: Frame, now: u64) {
        // Not before it speaks: a node that takes the call and hangs up is left alone ever longer.
        self.unreachable.remove(&from);
        match frame {
            Frame::Give(items) => self.take(items, Some(from), now),
            Frame::Ask(keys) => {
                let wanted: BTreeSet<_> = keys.into_iter().take(ASKED_MAX).collect();
                let items = self.items(&wanted);
                self.give(from, items);
            }
            Frame::Compare { without, ranges } => {
                let session = self.sessions.get(&from).filter(|_| !is_beginning(&ranges));
                let mut agreed = session.map_or_else(|| self.restless(now), |session| session.without.clone());
                agreed.extend(without.iter().copied());
                // Beyond the sessions that are kept, whoever asks is answered, too: it may have just joined.
                if let Some(session) = self.sessions.get_mut(&from) {
                    session.without.clone_from(&agreed);
                }
                if agreed != without {
                    // The other side left out less: what it says cannot be compared.
                    return self.compare_without(from, agreed);
                }
                let keys = self.directory.keys(&self.members(&without));
                let comparison = compare(&keys, &ranges);
                let items = self.items(&comparison.to_give.into_iter().collect());
                self.give(from, items);
                for keys in comparison.to_ask.chunks(ASKED_MAX) {
                    self.outbox.push_back((from, Frame::Ask(keys.to_vec())));
                }
                if !comparison.answer.is_empty() {
                    self.outbox.push_back((from, Frame::Compare { without, ranges: comparison.answer }));
                }
            }
        }
    }

    /// Returns what to do at `now`.
    pub fn poll(&mut self, now: u64) -> Action {
        if now >= self.next_compare && self.profile != Profile::Metered {
            self.next_compare = now + self.jittered(self.profile.interval_ms());
            if let Some(node) = self.next_to_compare() {
                self.begin(node, now);
            }
        }
        if let Some((to, frame)) = self.outbox.pop_front() {
            return Action::Send(to, frame);
        }
        match self.next_to_dial(now) {
            Ok(Some(node)) => {
                self.dialling.insert(node);
                Action::Dial(node)
            }
            Ok(None) => Action::Wait(self.next_compare),
            Err(until) => Action::Wait(self.next_compare.min(until)),
        }
    }

    fn begin(&mut self, node: NodeId, now: u64) {
        let restless = self.restless(now);
        if let Some(session) = self.sessions.get_mut(&node) {
            session.without.clone_from(&restless);
            self.compare_without(node, restless);
        }
    }

    fn compare_without(&mut self, node: NodeId, without: BTreeSet<ShortId>) {
        let keys = self.directory.keys(&self.members(&without));
        self.outbox.push_back((node, Frame::Compare { without, ranges: begin(&keys) }));
    }

    fn restless(&self, now: u64) -> BTreeSet<ShortId> {
        self.directory.restless(now).iter().map(short).collect()
    }

    fn members(&self, short_ids: &BTreeSet<ShortId>) -> BTreeSet<NodeId> {
        self.directory.records().keys().filter(|id| short_ids.contains(&short(id))).copied().collect()
    }

    /// Takes items in; what is new goes to all sessions but the one it came from.
    fn take(&mut self, items: Vec<Item>, from: Option<NodeId>, now: u64) {
        let mut new = Vec::new();
        let mut statements = Vec::new();
        let mut records = Vec::new();
        for item in items.into_iter().take(ITEMS_MAX) {
            // Several pass the same on, and to verify it costs more than all the rest.
            if self.is_known(&item) {
                continue;
            }
            match item {
                Item::Statement(octets) => statements.extend(self.sound(Statement::from_octets(&octets).ok())),
                Item::Record(octets) => records.extend(self.sound(Record::from_octets(&octets).ok())),
            }
        }
        let merged = self.directory.take_statements(statements.clone());
        self.refused += merged.refused.len() as u64;
        let replayed = merged.refused.iter().filter(|(_, error)| *error == MergeError::OtherMesh).count() as u64;
        self.fault(Fault::OtherMesh, replayed);
        // By guests of whom the next frame tells, when all is told to one who knows nothing yet: what is
        // lacking is asked for again. Each time something was learned, so it ends.
        let is_early = merged.refused.iter().any(|(_, error)| *error == MergeError::Stranger);
        let is_early = is_early && !merged.taken.is_empty();
        if let Some((from, session)) = from.filter(|_| is_early).and_then(|from| self.sessions.get_key_value(&from)) {
            self.compare_without(*from, session.without.clone());
        }
        let is_new = |statement: &&Statement| merged.taken.contains(&statement.id());
        new.extend(statements.iter().filter(is_new).map(|statement| Item::Statement(statement.to_octets().into())));
        for (record, taken) in records.iter().zip(self.directory.take_records(records.clone(), now)) {
            match taken {
                Ok(Taken::New) => new.push(Item::Record(record.to_octets().into())),
                Ok(Taken::Known | Taken::TooSoon { .. }) => {}
                Err(RecordRefused::OtherMesh) => {
                    self.refused += 1;
                    self.fault(Fault::OtherMesh, 1);
                }
                Err(RecordRefused::Stranger) => self.refused += 1,
            }
        }
        let others: Vec<NodeId> = self.sessions.keys().filter(|node| Some(**node) != from).copied().collect();
        for node in others {
            self.give(node, new.clone());
        }
    }

    /// Returns whether this is known to the last octet.
    fn is_known(&self, item: &Item) -> bool {
        let Some(key) = item.key() else { return false };
        match item {
            Item::Statement(octets) => {
                let known = self.directory.roster().statements().get(&StatementId::from_octets(key));
                known.is_some_and(|known| *known.to_octets() == **octets)
            }
            Item::Record(octets) => {
                let known = self.directory.records().values().find(|known| *known.fingerprint() == key);
                known.is_some_and(|known| *known.to_octets() == **octets)
            }
        }
    }

    fn sound<T>(&mut self, item: Option<T>) -> Option<T> {
        self.refused += u64::from(item.is_none());
        self.fault(Fault::Unsound, u64::from(item.is_none()));
        item
    }

    fn fault(&mut self, fault: Fault, times: u64) {
        if times > 0 {
            *self.faults.entry(fault).or_default() += times;
        }
    }

    /// Gives items in few frames: a shell has room for so many that wait for one node.
    fn give(&mut self, to: NodeId, items: Vec<Item>) {
        let (mut frame, mut octets) = (Vec::new(), 0);
        for item in items {
            let more = item.octets().len();
            if frame.len() >= ITEMS_MAX || octets > 0 && octets + more > GIVEN_OCTETS_MAX {
                self.outbox.push_back((to, Frame::Give(std::mem::take(&mut frame))));
                octets = 0;
            }
            octets += more;
            frame.push(item);
        }
        if !frame.is_empty() {
            self.outbox.push_back((to, Frame::Give(frame)));
        }
    }

    fn items(&self, wanted: &BTreeSet<[u8; 32]>) -> Vec<Item> {
        let statements = self.directory.roster().statements().values();
        let statements = statements.filter(|statement| wanted.contains(statement.id().octets()));
        let records = self.directory.records().values().filter(|record| wanted.contains(record.fingerprint()));
        let statements = statements.map(|statement| Item::Statement(statement.to_octets().into()));
        statements.chain(records.map(|record| Item::Record(record.to_octets().into()))).collect()
    }

    /// Returns the session whose turn it is.
    fn next_to_compare(&mut self) -> Option<NodeId> {
        let behind =
            self.compared.and_then(|last| self.sessions.range(last..).map(|(id, _)| *id).find(|id| *id != last));
        self.compared = behind.or_else(|| self.sessions.keys().next().copied());
        self.compared
    }

    /// Returns whom to dial now, if anybody; `Err`: when somebody can be dialled again.
    fn next_to_dial(&mut self, now: u64) -> Result<Option<NodeId>, u64> {
        let dialled = self.sessions.values().filter(|session| session.dialled).count() + self.dialling.len();
        if dialled >= DIALLED || self.profile == Profile::Metered {
            return Ok(None);
        }
        let is_candidate = |(id, record): &(&NodeId, &Arc<Record>)| {
            **id != self.me
                && record.said().reach == Reach::Public
                && !self.is_given_up(id)
                && !self.sessions.contains_key(id)
                && !self.dialling.contains(id)
        };
        let candidates: Vec<NodeId> = self.directory.records().iter().filter(is_candidate).map(|(id, _)| *id).collect();
        let resting =
            |id: &NodeId| self.unreachable.get(id).map(|failures| failures.until).filter(|until| *until > now);
        let ready: Vec<NodeId> = candidates.iter().filter(|id| resting(id).is_none()).copied().collect();
        if ready.is_empty() {
            return candidates.iter().filter_map(resting).min().map_or(Ok(None), Err);
        }
        let place = self.chance.below(ready.len() as u64) as usize;
        Ok(Some(ready[place]))
    }

    /// Returns whether a node goes on under a key that it has said more of itself with.
    fn is_given_up(&self, id: &NodeId) -> bool {
        let heir = self.directory.roster().successor(id);
        heir.is_some_and(|heir| self.directory.records().contains_key(&heir))
    }

    /// Returns three quarters to five quarters of a time.
    fn jittered(&mut self, ms: u64) -> u64 {
        ms / 4 * 3 + self.chance.below(ms / 2 + 1)
    }
}

impl Profile {
    /// Returns the mean time between comparisons, in milliseconds.
    pub fn interval_ms(self) -> u64 {
        match self {
            Profile::Lan => 60_000,
            Profile::Wan => 300_000,
            Profile::Quiet => 900_000,
            Profile::Metered => u64::MAX / 4,
        }
    }
}

/// Returns whether a comparison begins with these.
fn is_beginning(ranges: &[Range]) -> bool {
    matches!(ranges, [Range { end: None, said: Said::Sum(_) }])
}

fn short(id: &NodeId) -> ShortId {
    *id.octets().first_chunk().expect("an id is longer")
}
