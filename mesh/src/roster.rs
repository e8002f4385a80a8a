//! Who is a member: a set of statements that only grows, merged by union, and one way to read it.
//!
//! Two nodes with the same statements have the same members, in whatever order these came. How it
//! is read, in stages, so that nothing depends on itself:
//!
//! 1. *Guests*: the founders, and whoever enough voices of guests with the right to do so admitted.
//!    A node admits nobody with rights that it has not. Revocations count for nothing here.
//! 2. *Revoked*: guests whom enough voices of other guests revoked, and who retired.
//! 3. *Members*: guests not revoked whose admission stands. What a revoked node stated stands up to
//!    the statement that enough of the voices named; what it says behind that, dated back or not, is void.
//!
//! Voices are counted as `voices` says: whoever controls one node has one, however many it let in, and
//! however many keys it went on under (`succession`).
//! Who was revoked stays so: the node may come back under another key. Statements by nobody's guest
//! are not taken in.

use std::collections::{BTreeMap, BTreeSet};

use crate::caps::Caps;
use crate::node::{NodeId, NodeKey};
use crate::statement::{Head, MeshId, Policy, Statement, StatementId, What};
use crate::succession::{Lines, Rotation, heirs};
use crate::voices::Sponsors;
use postroad_smtp::Domain;

/// The most statements kept that claim the same place in their signer's chain. One is right; two
/// prove that the signer says different things to different nodes.
const STATEMENTS_PER_PLACE_MAX: usize = 2;

/// All statements of one mesh, and what they come to.
#[derive(Clone, Debug)]
pub struct Roster {
    mesh: MeshId,
    founder: NodeKey,
    /// Who founded it as well.
    founders: Vec<NodeKey>,
    policy: Policy,
    statements: BTreeMap<StatementId, Statement>,
    /// Whose statements are taken in: all guests, and those who were guests but that two of the voices for
    /// them turned out to be one node's.
    heard: BTreeSet<NodeId>,
    members: BTreeMap<NodeId, Member>,
    gone: BTreeMap<NodeId, Gone>,
    /// Of keys that were given up, those under which their nodes go on.
    heirs: BTreeMap<NodeId, NodeId>,
}

/// A member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its key.
    pub key: NodeKey,
    /// What it may do.
    pub caps: Caps,
    /// The domains granted with its admission, and by whom.
    pub serves: BTreeMap<Domain, BTreeSet<NodeId>>,
    /// Its name, for people: that of its first admission.
    pub label: Box<str>,
    /// The nodes that admitted it, or the one that goes on as it.
    pub sponsors: BTreeSet<NodeId>,
}

/// A node that was a guest and is no member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gone {
    /// Others revoked it.
    Revoked {
        /// They.
        by: BTreeSet<NodeId>,
        /// Why, in the words of one of them.
        reason: Box<str>,
    },
    /// It left.
    Retired,
    /// Its admission is by a node that was revoked before.
    Unsponsored,
}

/// Why a statement is not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// It is about another mesh.
    #[error("the statement is of another mesh")]
    OtherMesh,
    /// It was made by a node that nobody admitted, as far as is known here.
    #[error("the statement is by a node that nobody admitted")]
    Stranger,
    /// Its signer made others for the same place already.
    #[error("the signer made other statements for the same place")]
    Surplus,
    /// Not a statement that founds a mesh.
    #[error("the statement founds no mesh")]
    FoundsNothing,
}

#[derive(Clone, Debug)]
pub(crate) struct Guest {
    key: NodeKey,
    pub(crate) caps: Caps,
}

impl Roster {
    /// Begins the roster of a mesh with the statement that founds it.
    ///
    /// # Errors
    ///
    /// When the statement founds nothing.
    pub fn new(founding: Statement) -> Result<Roster, MergeError> {
        let What::Found { policy, founders, .. } = founding.what() else { return Err(MergeError::FoundsNothing) };
        let mut roster = Roster {
            mesh: founding.id(),
            founder: *founding.by(),
            founders: founders.clone(),
            policy: *policy,
            statements: BTreeMap::new(),
            heard: BTreeSet::new(),
            members: BTreeMap::new(),
            gone: BTreeMap::new(),
            heirs: BTreeMap::new(),
        };
        roster.statements.insert(founding.id(), founding);
        roster.read();
        Ok(roster)
    }

    /// Takes statements in, in any order. Returns those that are new, and what is wrong with those
    /// that were not taken; statements known already are neither.
    pub fn merge(&mut self, statements: impl IntoIterator<Item = Statement>) -> Merged {
        let mut merged = Merged::default();
        let mut waiting: Vec<Statement> =
            statements.into_iter().filter(|statement| !self.statements.contains_key(&statement.id())).collect();
        // One of them may be by a guest whom another of them admits, so what was refused is asked again.
        loop {
            let before = merged.taken.len();
            waiting.retain(|statement| {
                let fits = self.check(statement).is_ok();
                if fits {
                    merged.taken.push(statement.id());
                    self.statements.insert(statement.id(), statement.clone());
                }
                !fits
            });
            if merged.taken.len() == before {
                break;
            }
            self.read();
        }
        let fault = |statement: &Statement| self.check(statement).err().map(|error| (statement.id(), error));
        merged.refused = waiting.iter().filter_map(fault).collect();
        merged
    }

    /// Returns the mesh.
    pub fn mesh(&self) -> MeshId {
        self.mesh
    }

    /// Returns how its members decide.
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// Returns the members.
    pub fn members(&self) -> &BTreeMap<NodeId, Member> {
        &self.members
    }

    /// Returns a member.
    pub fn member(&self, id: &NodeId) -> Option<&Member> {
        self.members.get(id)
    }

    /// Returns the nodes that were members once, or would be but for a revocation, and why they are not.
    pub fn gone(&self) -> &BTreeMap<NodeId, Gone> {
        &self.gone
    }

    /// Returns the member that goes on as this node, where it gave its key up. Until the old key is retired
    /// too, both are members, and one node.
    pub fn successor(&self, id: &NodeId) -> Option<NodeId> {
        self.heirs.get(id).copied()
    }

    /// Returns the keys that a member had before.
    pub fn earlier(&self, id: &NodeId) -> impl Iterator<Item = NodeId> {
        self.heirs.iter().filter(move |(_, heir)| *heir == id).map(|(earlier, _)| *earlier)
    }

    /// Returns every statement.
    pub fn statements(&self) -> &BTreeMap<StatementId, Statement> {
        &self.statements
    }

    /// Returns whether a node has stated that another one is to be a member, whatever came of it.
    pub fn has_spoken_for(&self, by: &NodeId, node: &NodeKey) -> bool {
        self.chain_of(by).any(|statement| matches!(statement.what(), What::Admit { node: key, .. } if key == node))
    }

    /// Returns what the next statement of a node is to say of itself.
    pub fn next_head(&self, by: &NodeId, at: u64) -> Head {
        let last = self.chain_of(by).max_by_key(|statement| statement.head().sequence);
        Head {
            mesh: Some(self.mesh),
            sequence: last.map_or(0, |last| last.head().sequence + 1),
            previous: last.map(Statement::id),
            at,
        }
    }

    /// Returns the nodes that made two statements for one place in their chain: they say different
    /// things to different nodes.
    pub fn double_tongued(&self) -> BTreeSet<NodeId> {
        let mut places = BTreeSet::new();
        let signers = self.statements.values().map(|statement| (statement.by_id(), statement.head().sequence));
        signers.filter(|place| !places.insert(*place)).map(|(by, _)| by).collect()
    }

    fn chain_of(&self, by: &NodeId) -> impl Iterator<Item = &Statement> {
        self.statements.values().filter(move |statement| statement.by_id() == *by)
    }

    fn check(&self, statement: &Statement) -> Result<(), MergeError> {
        if statement.head().mesh != Some(self.mesh) {
            return Err(MergeError::OtherMesh);
        }
        let by = statement.by_id();
        if !self.heard.contains(&by) {
            return Err(MergeError::Stranger);
        }
        let same_place = self.chain_of(&by).filter(|other| other.head().sequence == statement.head().sequence);
        if same_place.count() >= STATEMENTS_PER_PLACE_MAX && !self.is_named(statement) {
            return Err(MergeError::Surplus);
        }
        Ok(())
    }

    /// Returns whether a revocation says that this statement of its node is to stand: such ones are
    /// always taken in, whatever else that node signed for their place.
    fn is_named(&self, statement: &Statement) -> bool {
        let by = statement.by_id();
        let revocations = self.statements.values().filter_map(|revocation| match revocation.what() {
            What::Revoke { node, upto: Some(upto), .. } if *node == by => Some(*upto),
            _ => None,
        });
        revocations.into_iter().any(|upto| self.ancestry(upto).contains(&statement.id()))
    }

    /// Returns a statement's name and those of all before it in its chain, as far as they are known.
    fn ancestry(&self, last: StatementId) -> BTreeSet<StatementId> {
        let mut found = BTreeSet::new();
        let mut next = Some(last);
        while let Some(id) = next.filter(|id| found.insert(*id)) {
            next = self.statements.get(&id).and_then(|statement| statement.head().previous);
        }
        found
    }

    /// Reads all statements anew.
    fn read(&mut self) {
        let lines = self.lines();
        let (guests, sponsors) = self.read_guests(&lines);
        // Statements are taken in whatever rotations come later: who is heard only grows.
        self.heard = match self.policy.admit_by > 1 && !lines.is_empty() {
            true => self.read_guests(&Lines::default()).0.into_keys().collect(),
            false => guests.keys().copied().collect(),
        };
        let revoked = self.read_revoked(&guests, &sponsors, &lines);
        self.members = self.read_members(&guests, &revoked);
        let stands = |rotation: &Statement| {
            let by = rotation.by_id();
            guests.contains_key(&by) && revoked.get(&by).is_none_or(|by| by.stands.contains(&rotation.id()))
        };
        self.heirs = heirs(self.rotations(stands), |node| self.members.contains_key(node));
        self.gone = guests
            .keys()
            .filter(|id| !self.members.contains_key(id))
            .map(|id| (*id, revoked.get(id).map_or(Gone::Unsponsored, |revoked| revoked.gone.clone())))
            .collect();
    }

    /// Returns which keys are one node's.
    pub(crate) fn lines(&self) -> Lines {
        Lines::new(self.rotations(|_| true), self.founder.id())
    }

    pub(crate) fn founder(&self) -> NodeId {
        self.founder.id()
    }

    fn rotations(&self, counts: impl Fn(&Statement) -> bool) -> impl Iterator<Item = Rotation> {
        self.statements.values().filter(move |statement| counts(statement)).filter_map(|statement| {
            let What::Rotate { to } = statement.what() else { return None };
            Some((statement.by_id(), statement.head().sequence, to.id()))
        })
    }

    /// Stage 1.
    pub(crate) fn read_guests(&self, lines: &Lines) -> (BTreeMap<NodeId, Guest>, Sponsors) {
        let founder = self.founder.id();
        let mut guests = BTreeMap::from([(founder, Guest { key: self.founder, caps: Caps::ALL })]);
        let mut sponsors = Sponsors::default();
        for key in &self.founders {
            guests.insert(key.id(), Guest { key: *key, caps: Caps::ALL });
            sponsors.add(founder, key.id());
        }
        let mut grown = true;
        while grown {
            grown = false;
            for (node, grants) in self.grants() {
                let by_guests: Vec<(NodeId, Caps)> = grants
                    .iter()
                    .filter_map(|grant| Some((grant.by, grant.caps(guests.get(&grant.by)?.caps)?)))
                    .collect();
                let signers: BTreeSet<NodeId> = by_guests.iter().map(|(by, _)| *by).collect();
                let is_heir = grants.iter().any(|grant| grant.is_rotation && signers.contains(&grant.by));
                let needed = self.policy.admit_by;
                // A path leads to every guest, so any of them is one voice.
                let is_enough = !signers.is_empty()
                    && (needed == 1 || is_heir || sponsors.voices_of(founder, &signers, lines, needed) >= needed);
                if !is_enough {
                    continue;
                }
                for by in signers {
                    grown |= sponsors.add(by, node.id());
                }
                let caps = by_guests.iter().fold(Caps::NONE, |all, (_, caps)| all.and(*caps));
                let guest = guests.entry(node.id()).or_insert(Guest { key: node, caps: Caps::NONE });
                grown |= !guest.caps.has(caps);
                guest.caps = guest.caps.and(caps);
            }
        }
        (guests, sponsors)
    }

    /// Returns all admissions and rotations, by the node they are for.
    fn grants(&self) -> BTreeMap<NodeKey, Vec<Grant<'_>>> {
        let mut grants: BTreeMap<NodeKey, Vec<Grant<'_>>> = BTreeMap::new();
        for statement in self.statements.values() {
            let (node, caps, is_rotation) = match statement.what() {
                What::Admit { node, caps, .. } => (node, *caps, false),
                What::Rotate { to } => (to, Caps::ALL, true),
                _ => continue,
            };
            grants.entry(*node).or_default().push(Grant {
                statement,
                by: statement.by_id(),
                granted: caps,
                is_rotation,
            });
        }
        grants
    }

    /// Stage 2.
    fn read_revoked(
        &self,
        guests: &BTreeMap<NodeId, Guest>,
        sponsors: &Sponsors,
        lines: &Lines,
    ) -> BTreeMap<NodeId, Revoked> {
        let mut votes: BTreeMap<NodeId, Vec<Vote<'_>>> = BTreeMap::new();
        let mut revoked = BTreeMap::new();
        for statement in self.statements.values() {
            let by = statement.by_id();
            match statement.what() {
                What::Revoke { node, upto, reason } if guests.contains_key(node) && *node != by => {
                    votes.entry(*node).or_default().push(Vote { by, upto: *upto, reason });
                }
                What::Retire => {
                    let stands = self.chain_of(&by).map(Statement::id).collect();
                    revoked.insert(by, Revoked { gone: Gone::Retired, stands });
                }
                _ => {}
            }
        }
        let (founder, needed) = (self.founder.id(), self.policy.revoke_by);
        let enough = |by: &BTreeSet<NodeId>| sponsors.voices_of(founder, by, lines, needed) >= needed;
        for (node, votes) in votes {
            let by: BTreeSet<NodeId> = votes.iter().map(|vote| vote.by).collect();
            if !enough(&by) {
                continue;
            }
            let named: Vec<(NodeId, BTreeSet<StatementId>)> =
                votes.iter().filter_map(|vote| Some((vote.by, self.ancestry(vote.upto?)))).collect();
            let vouched = |id: &StatementId| {
                enough(&named.iter().filter(|(_, ids)| ids.contains(id)).map(|(by, _)| *by).collect())
            };
            let stands = self.chain_of(&node).map(Statement::id).filter(vouched).collect();
            let reason = votes.first().map(|vote| vote.reason.into()).unwrap_or_default();
            revoked.insert(node, Revoked { gone: Gone::Revoked { by, reason }, stands });
        }
        revoked
    }

    /// Stage 3.
    fn read_members(
        &self,
        guests: &BTreeMap<NodeId, Guest>,
        revoked: &BTreeMap<NodeId, Revoked>,
    ) -> BTreeMap<NodeId, Member> {
        let stands = |grant: &&Grant<'_>| {
            // By whom it is nobody's to give, it is worth nothing: no caps, and no domains.
            guests.get(&grant.by).is_some_and(|signer| grant.caps(signer.caps).is_some())
                && revoked.get(&grant.by).is_none_or(|revoked| revoked.stands.contains(&grant.statement.id()))
        };
        let mut members = BTreeMap::new();
        let grants = self.grants();
        for (id, guest) in guests.iter().filter(|(id, _)| !revoked.contains_key(id)) {
            let standing: Vec<&Grant<'_>> = grants.get(&guest.key).into_iter().flatten().filter(stands).collect();
            let founded = guest.key == self.founder || self.founders.contains(&guest.key);
            if !founded && standing.is_empty() {
                continue;
            }
            let mut member = Member {
                key: guest.key,
                caps: if founded { Caps::ALL } else { Caps::NONE },
                serves: BTreeMap::new(),
                label: Box::default(),
                sponsors: BTreeSet::new(),
            };
            for grant in standing {
                member.caps = member.caps.and(grant.granted.limited_to(guests[&grant.by].caps));
                member.sponsors.insert(grant.by);
            }
            // What was granted to a node is also that of the key that it goes on under.
            let mut line = vec![guest.key];
            let mut at = 0;
            while let Some(key) = line.get(at).copied() {
                at += 1;
                for grant in grants.get(&key).into_iter().flatten().filter(stands) {
                    member.take(grant);
                    if grant.is_rotation && !line.contains(grant.statement.by()) {
                        line.push(*grant.statement.by());
                    }
                }
            }
            members.insert(*id, member);
        }
        members
    }
}

impl Member {
    /// Takes the name and the domains of an admission.
    fn take(&mut self, grant: &Grant<'_>) {
        let What::Admit { serves, label, .. } = grant.statement.what() else { return };
        for domain in serves {
            self.serves.entry(domain.clone()).or_default().insert(grant.by);
        }
        if self.label.is_empty() {
            self.label = label.clone();
        }
    }
}

/// What a merge came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    /// The statements that are new.
    pub taken: Vec<StatementId>,
    /// Those that were not taken, and why.
    pub refused: Vec<(StatementId, MergeError)>,
}

/// An admission, or a rotation, which admits the next key.
struct Grant<'a> {
    statement: &'a Statement,
    by: NodeId,
    granted: Caps,
    is_rotation: bool,
}

struct Vote<'a> {
    by: NodeId,
    upto: Option<StatementId>,
    reason: &'a str,
}

struct Revoked {
    gone: Gone,
    /// The statements of the node that stand all the same.
    stands: BTreeSet<StatementId>,
}

impl Grant<'_> {
    /// Returns what the grant is worth from a signer with these rights; `None`: nothing.
    fn caps(&self, signer: Caps) -> Option<Caps> {
        (self.is_rotation || signer.has(Caps::ADMIT)).then(|| self.granted.limited_to(signer))
    }
}
