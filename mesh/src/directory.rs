//! What a node knows of the mesh: the roster, the members' records, and which domains are whose.
//!
//! Records spread like statements, by comparison of sets (`difference`) and by being passed on when
//! they are new. A node may publish now and then, not all the time: one that does is heard at its pace
//! and left out of comparisons meanwhile, so that its noise costs nobody else.
//!
//! A domain is a node's when its admission grants it or DNS proves it (`proof`); DNS counts like a sponsor. When
//! two claim one domain and neither was let in by the other or by the same sponsor, whoever had it keeps it;
//! where nobody had it, only those have it whom DNS names. Who has none of it is reported as a [`Conflict`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use postroad_smtp::Domain;

use crate::difference::Keys;
use crate::node::NodeId;
use crate::record::{Record, Said};
use crate::roster::{Merged, Roster};
use crate::statement::Statement;

/// How many records of a node are taken in at once.
pub const RECORDS_AT_ONCE: u64 = 3;
/// After these, one in so much time, in milliseconds.
pub const RECORD_INTERVAL_MS: u64 = 600_000;
/// What each record that comes too soon adds to the pause of its node, and the longest pause.
const SHOUT_MS: u64 = 60_000;
const PAUSE_MAX_MS: u64 = 86_400_000;

/// The roster, the records, and what they come to. Times are milliseconds of a clock that never
/// goes back.
#[derive(Clone, Debug)]
pub struct Directory {
    roster: Arc<Roster>,
    records: BTreeMap<NodeId, Arc<Record>>,
    /// Of all statements and records.
    keys: Arc<Keys>,
    paces: BTreeMap<NodeId, Pace>,
    proofs: BTreeSet<(NodeId, Domain)>,
    owners: BTreeMap<Domain, BTreeSet<NodeId>>,
    conflicts: BTreeSet<Conflict>,
}

/// Two nodes claim one domain, and nothing says that they may share it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conflict {
    /// The domain.
    pub domain: Domain,
    /// The node whose claim does not count.
    pub node: NodeId,
}

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It is new: pass it on.
    New,
    /// It is known, or a later one is.
    Known,
    /// Its node publishes too often; it counts when it comes again, at this time or later.
    TooSoon {
        /// When.
        at: u64,
    },
}

/// Why a record is not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordRefused {
    /// It speaks in another mesh.
    #[error("the record is of another mesh")]
    OtherMesh,
    /// Its node is no member, as far as is known here.
    #[error("the record is of a node that is no member")]
    Stranger,
}

/// When a node may be heard again: a bucket that holds [`RECORDS_AT_ONCE`].
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    full_at: u64,
    /// The last record that came was not taken in.
    is_behind: bool,
}

impl Directory {
    /// Begins with a roster.
    pub fn new(roster: Roster) -> Directory {
        let mut directory = Directory {
            roster: Arc::new(roster),
            records: BTreeMap::new(),
            keys: Arc::default(),
            paces: BTreeMap::new(),
            proofs: BTreeSet::new(),
            owners: BTreeMap::new(),
            conflicts: BTreeSet::new(),
        };
        directory.settle();
        directory
    }

    /// Takes statements in; records of nodes that are members no more go.
    pub fn take_statements(&mut self, statements: impl IntoIterator<Item = Statement>) -> Merged {
        let merged = Arc::make_mut(&mut self.roster).merge(statements);
        if !merged.taken.is_empty() {
            let members = self.roster.members();
            self.records.retain(|id, _| members.contains_key(id));
            self.paces.retain(|id, _| members.contains_key(id));
            self.settle();
        }
        merged
    }

    /// Takes records in, at `now`; says of each what became of it. Of claims that come together none
    /// comes first: a node that learns of the mesh takes all it is told as one.
    pub fn take_records(
        &mut self,
        records: impl IntoIterator<Item = Record>,
        now: u64,
    ) -> Vec<Result<Taken, RecordRefused>> {
        let taken: Vec<_> = records.into_iter().map(|record| self.take_record(record, now)).collect();
        if taken.contains(&Ok(Taken::New)) {
            self.settle();
        }
        taken
    }

    fn take_record(&mut self, record: Record, now: u64) -> Result<Taken, RecordRefused> {
        let id = record.id();
        if record.said().mesh != self.roster.mesh() {
            return Err(RecordRefused::OtherMesh);
        }
        if self.roster.member(&id).is_none() {
            return Err(RecordRefused::Stranger);
        }
        if self.records.get(&id).is_some_and(|known| !record.supersedes(known)) {
            return Ok(Taken::Known);
        }
        if let Err(at) = self.paces.entry(id).or_default().step(now) {
            return Ok(Taken::TooSoon { at });
        }
        self.records.insert(id, Arc::new(record));
        Ok(Taken::New)
    }

    /// Notes which domains DNS proves to be whose; replaces what was noted before. Returns whether it is
    /// something else.
    pub fn set_proofs(&mut self, proofs: BTreeSet<(NodeId, Domain)>) -> bool {
        let is_new = self.proofs != proofs;
        if is_new {
            self.proofs = proofs;
            self.settle();
        }
        is_new
    }

    /// The same before any record is known.
    pub(crate) fn take_proofs(&mut self, proofs: BTreeSet<(NodeId, Domain)>) {
        self.proofs = proofs;
    }

    /// Says whose a domain was, before any record is known.
    pub(crate) fn remember(&mut self, domain: Domain, owners: BTreeSet<NodeId>) {
        self.owners.insert(domain, owners);
    }

    /// Returns whose the domains are.
    pub fn owners(&self) -> &BTreeMap<Domain, BTreeSet<NodeId>> {
        &self.owners
    }

    /// Returns the roster.
    pub fn roster(&self) -> &Roster {
        &self.roster
    }

    /// Returns the roster, to be kept while the directory goes on.
    pub fn shared_roster(&self) -> Arc<Roster> {
        self.roster.clone()
    }

    /// Returns the members' records.
    pub fn records(&self) -> &BTreeMap<NodeId, Arc<Record>> {
        &self.records
    }

    /// Returns the claims that do not count.
    pub fn conflicts(&self) -> &BTreeSet<Conflict> {
        &self.conflicts
    }

    /// Returns the domains that members claim although nobody granted them and DNS does not prove
    /// them: they are nobody's for it.
    pub fn unfounded(&self) -> BTreeMap<NodeId, Vec<Domain>> {
        self.claims(|id, domain| !self.is_granted(id, domain) && !self.is_proven(id, domain))
    }

    /// Returns the domains that members claim although nobody granted them, whether DNS proves them or not.
    pub fn not_granted(&self) -> BTreeMap<NodeId, Vec<Domain>> {
        self.claims(|id, domain| !self.is_granted(id, domain))
    }

    /// Returns whether DNS names a node for a domain, or one that goes on as it.
    pub fn is_proven(&self, node: &NodeId, domain: &Domain) -> bool {
        std::iter::once(*node).chain(self.roster.earlier(node)).any(|id| self.proofs.contains(&(id, domain.clone())))
    }

    fn claims(&self, is_wanted: impl Fn(&NodeId, &Domain) -> bool) -> BTreeMap<NodeId, Vec<Domain>> {
        let of = |(id, record): (&NodeId, &Arc<Record>)| {
            let claimed = record.said().serves.iter().filter(|domain| is_wanted(id, domain)).cloned();
            (*id, claimed.collect::<Vec<_>>())
        };
        self.records.iter().map(of).filter(|(_, claimed)| !claimed.is_empty()).collect()
    }

    fn is_granted(&self, node: &NodeId, domain: &Domain) -> bool {
        !self.sponsors(node, domain).is_empty()
    }

    /// Returns what each member says of itself, with the domains that are its own, for a map.
    pub fn described(&self) -> BTreeMap<NodeId, Said> {
        let own = |id: &NodeId, record: &Arc<Record>| {
            let mut said = record.said().clone();
            said.serves.retain(|domain| self.owners.get(domain).is_some_and(|owners| owners.contains(id)));
            said
        };
        self.records.iter().map(|(id, record)| (*id, own(id, record))).collect()
    }

    /// Returns the nodes that publish more often than they are heard, at `now`: something of theirs was not
    /// taken in.
    pub fn restless(&self, now: u64) -> BTreeSet<NodeId> {
        self.paces.iter().filter(|(_, pace)| pace.is_behind && pace.is_spent(now)).map(|(id, _)| *id).collect()
    }

    /// Returns from when on a record of this node is taken in, as far as its pace goes: `now`, or later.
    pub fn next_record_at(&self, node: &NodeId, now: u64) -> u64 {
        self.paces.get(node).map_or(now, |pace| pace.next_at(now))
    }

    /// Returns the keys of all statements, and of all records but those of `without`: both sides of
    /// a comparison leave out the nodes that are restless at either.
    pub fn keys(&self, without: &BTreeSet<NodeId>) -> Arc<Keys> {
        if without.is_empty() { self.keys.clone() } else { Arc::new(self.keys_but(without)) }
    }

    fn keys_but(&self, without: &BTreeSet<NodeId>) -> Keys {
        let statements = self.roster.statements().keys().map(|id| *id.octets());
        let records = self.records.iter().filter(|(id, _)| !without.contains(id));
        statements.chain(records.map(|(_, record)| *record.fingerprint())).collect()
    }

    /// Says anew what all comes to: the keys, and which domain is whose.
    fn settle(&mut self) {
        self.keys = Arc::new(self.keys_but(&BTreeSet::new()));
        let mut claims: BTreeMap<Domain, BTreeSet<NodeId>> = BTreeMap::new();
        for (id, record) in &self.records {
            for domain in &record.said().serves {
                if self.is_proven(id, domain) || self.is_granted(id, domain) {
                    claims.entry(domain.clone()).or_default().insert(*id);
                }
            }
        }
        self.conflicts.clear();
        let mut owners = BTreeMap::new();
        for (domain, claimants) in claims {
            let before = self.owners.remove(&domain).unwrap_or_default();
            let own = self.owners_of(&domain, &claimants, &before);
            let others = claimants.difference(&own).map(|node| Conflict { domain: domain.clone(), node: *node });
            self.conflicts.extend(others);
            owners.insert(domain, own);
        }
        self.owners = owners;
    }

    /// Returns which of the claimants have a domain: those that had it and whom they may share it
    /// with; where nobody had it, all of them, or those that DNS names.
    fn owners_of(&self, domain: &Domain, claimants: &BTreeSet<NodeId>, before: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
        let incumbents: BTreeSet<NodeId> = claimants.intersection(before).copied().collect();
        let may_join =
            |node: &NodeId, others: &BTreeSet<NodeId>| others.iter().all(|other| self.may_share(node, other, domain));
        if incumbents.is_empty() {
            let all_agree = claimants.iter().all(|node| may_join(node, claimants));
            return if all_agree {
                claimants.clone()
            } else {
                claimants.iter().filter(|node| self.is_proven(node, domain)).copied().collect()
            };
        }
        let newcomers = claimants.difference(&incumbents).filter(|node| may_join(node, &incumbents)).copied();
        let newcomers: Vec<NodeId> = newcomers.collect();
        incumbents.into_iter().chain(newcomers).collect()
    }

    /// Returns who granted a domain, or one above it, to a node.
    fn sponsors(&self, node: &NodeId, domain: &Domain) -> BTreeSet<NodeId> {
        let granted = self.roster.member(node).into_iter().flat_map(|member| &member.serves);
        granted.filter(|(granted, _)| domain.is_within(granted)).flat_map(|(_, by)| by).copied().collect()
    }

    /// Returns whether two nodes may both have a domain: one granted it to the other, or somebody, or DNS, to both.
    fn may_share(&self, one: &NodeId, other: &NodeId, domain: &Domain) -> bool {
        let (ones, others) = (self.sponsors(one, domain), self.sponsors(other, domain));
        let by_dns = self.is_proven(one, domain) && self.is_proven(other, domain);
        one == other || by_dns || ones.contains(other) || others.contains(one) || !ones.is_disjoint(&others)
    }
}

impl Pace {
    /// Takes one out, or says when one can be taken: the later, the more often it was asked.
    fn step(&mut self, now: u64) -> Result<(), u64> {
        if self.is_spent(now) {
            self.is_behind = true;
            let behind = (RECORDS_AT_ONCE - 1) * RECORD_INTERVAL_MS;
            self.full_at = (self.full_at + SHOUT_MS).min(now + PAUSE_MAX_MS + behind);
            return Err(self.full_at - behind);
        }
        self.full_at = self.full_at.max(now) + RECORD_INTERVAL_MS;
        self.is_behind = false;
        Ok(())
    }

    fn next_at(&self, now: u64) -> u64 {
        now.max(self.full_at.saturating_sub((RECORDS_AT_ONCE - 1) * RECORD_INTERVAL_MS))
    }

    fn is_spent(&self, now: u64) -> bool {
        self.full_at > now + (RECORDS_AT_ONCE - 1) * RECORD_INTERVAL_MS
    }
}
