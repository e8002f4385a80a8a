//! DNS as a witness of whose a domain is: what a TXT record says, when to ask for it, and for how long what was
//! heard is good. DNS is asked elsewhere; answers come in, with the time.
//!
//! Whoever controls a domain names the nodes that serve it: `_smtp-mesh.<domain>` has a TXT record
//! `v=postroad1; id=<node id>`, with several `id` or several records for several nodes (underscored as RFC 8552
//! has it). Each node asks by itself and believes nobody else's answer.
//!
//! What was proven outlives name servers that do not answer for [`UNCONFIRMED_MAX_MS`], and a denial for
//! [`GRACE_MS`]. Questions cost at most [`QUESTIONS_PER_HOUR_MAX`] an hour, whatever members claim.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use minicbor::bytes::ByteArray;
use minicbor::{Decode, Encode};
use postroad_smtp::Domain;

use crate::archive::ArchiveError;
use crate::chance::Chance;
use crate::node::NodeId;
use crate::wire::{NOT_CBOR, few};

/// The label below which a domain names its nodes.
const LABEL: &str = "_smtp-mesh";
/// The most nodes of one domain.
pub const IDS_MAX: usize = 16;
/// The most domains of one member that DNS is asked about, the first in its record.
pub const DOMAINS_PER_MEMBER_MAX: usize = 16;
/// The most domains that are known at all.
pub const DOMAINS_MAX: usize = 4_096;
/// The most questions in an hour; half of them may come at once.
pub const QUESTIONS_PER_HOUR_MAX: u64 = 120;
/// The shortest and the longest time between two questions about a domain, as far as the time to live of an
/// answer has no say.
pub const INTERVAL_MIN_MS: u64 = HOUR_MS;
/// See [`INTERVAL_MIN_MS`].
pub const INTERVAL_MAX_MS: u64 = 24 * HOUR_MS;
/// How long a proof stands after DNS has first denied it; it goes with the next denial behind that.
pub const GRACE_MS: u64 = HOUR_MS;
/// How long a proof stands that DNS has not confirmed, because it gave no answer.
pub const UNCONFIRMED_MAX_MS: u64 = 7 * 24 * HOUR_MS;
/// The first question about a claim waits up to so long: not all members ask in one moment.
const FIRST_JITTER_MS: u64 = 2_000;
const HOUR_MS: u64 = 3_600_000;
/// What the text of a record begins with.
const VERSION_TAG: &str = "v=postroad1";
/// The most nodes of one domain with those whose proof was denied a moment ago.
const KEPT_MAX: usize = 2 * IDS_MAX;
/// The format of [`Proofs::to_octets`].
const VERSION: u8 = 1;

/// What DNS said of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// There are such records; they name these nodes.
    Found {
        /// The nodes.
        ids: BTreeSet<NodeId>,
        /// For how long the answer is good.
        ttl_ms: u64,
        /// Who vouches for it.
        security: Security,
    },
    /// There are none.
    Denied {
        /// Who vouches for it.
        security: Security,
    },
    /// Nobody can tell now.
    Unclear,
}

/// What stands behind an answer of DNS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    /// Nothing: the domain is not signed, as far as can be seen.
    Unsigned,
    /// The name server checked the signatures of DNSSEC.
    Authentic,
    /// It is signed, and the name server did not check it: it is as good as no answer.
    Unchecked,
}

/// What came of the last question about a domain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Last {
    /// None was asked yet.
    #[default]
    Unasked,
    /// Records name nodes.
    Found,
    /// There are no such records.
    Denied,
    /// Nobody answered.
    Unclear,
    /// The domain is signed, and the answer was not checked.
    Unchecked,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Ask for the TXT records of [`name`] of this domain, then call [`Proofs::answered`].
    Ask(Domain),
    /// Nothing until this time.
    Wait(u64),
}

/// What DNS said of the domains that members claim. Times are milliseconds since the Unix epoch.
#[derive(Clone, Debug, Default)]
pub struct Proofs {
    domains: BTreeMap<Domain, Standing>,
    chance: Chance,
    /// When no question counts any more.
    spent_until: u64,
}

#[derive(Clone, Debug, Default)]
struct Standing {
    is_claimed: bool,
    is_asked: bool,
    ids: BTreeMap<NodeId, Proof>,
    /// DNSSEC vouched for it once: nothing less counts from then on.
    is_signed: bool,
    last: Last,
    /// Questions in a row that proved nothing.
    in_vain: u32,
    next: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Proof {
    confirmed: u64,
    denied: Option<u64>,
}

#[derive(Encode, Decode)]
#[cbor(map)]
struct Wire {
    #[n(0)]
    version: u8,
    #[n(1)]
    domains: Vec<WireStanding>,
}

#[derive(Encode, Decode)]
#[cbor(map)]
struct WireStanding {
    #[n(0)]
    domain: String,
    #[n(1)]
    is_signed: bool,
    #[n(2)]
    next: u64,
    #[n(3)]
    ids: Vec<(ByteArray<32>, u64, Option<u64>)>,
}

/// Returns the name whose TXT records say which nodes serve a domain.
pub fn name(domain: &impl Display) -> String {
    format!("{LABEL}.{domain}")
}

/// Returns the text that names a node.
pub fn text(node: &impl Display) -> String {
    format!("{VERSION_TAG}; id={node}")
}

/// Returns the nodes that a text names; none when it is about something else or of another version. Tags of later
/// releases are passed over.
pub fn ids(text: &str) -> BTreeSet<NodeId> {
    let mut tags = text.split(';').map(str::trim);
    if tags.next().is_none_or(|first| !first.eq_ignore_ascii_case(VERSION_TAG)) {
        return BTreeSet::new();
    }
    let id = |tag: &str| tag.strip_prefix("id=")?.trim().to_ascii_lowercase().parse().ok();
    tags.filter_map(id).take(IDS_MAX).collect()
}

impl Proofs {
    /// Begins with nothing; chance comes from a seed.
    pub fn new(seed: u64) -> Proofs {
        Proofs { chance: Chance::new(seed), ..Proofs::default() }
    }

    /// Says what members claim that nobody granted them; what is claimed no more is forgotten.
    pub fn claim(&mut self, claims: &BTreeMap<NodeId, Vec<Domain>>, now: u64) {
        let claimed: BTreeSet<&Domain> =
            claims.values().flat_map(|domains| domains.iter().take(DOMAINS_PER_MEMBER_MAX)).collect();
        self.domains.retain(|domain, _| claimed.contains(domain));
        for domain in claimed {
            if self.domains.len() >= DOMAINS_MAX && !self.domains.contains_key(domain) {
                break;
            }
            let next = now + self.chance.below(FIRST_JITTER_MS);
            let first = || Standing { next, ..Standing::default() };
            self.domains.entry(domain.clone()).or_insert_with(first).is_claimed = true;
        }
    }

    /// Asks about everything again soon: somebody may have mended it.
    pub fn hasten(&mut self, now: u64) {
        for standing in self.domains.values_mut() {
            (standing.next, standing.in_vain) = (standing.next.min(now), 0);
        }
    }

    /// Returns what to do at `now`.
    pub fn poll(&mut self, now: u64) -> Step {
        self.domains.values_mut().for_each(|standing| standing.ids.retain(|_, proof| !proof.is_stale(now)));
        let open = self.domains.iter_mut().filter(|(_, standing)| standing.is_claimed && !standing.is_asked);
        let Some((domain, standing)) = open.min_by_key(|(_, standing)| standing.next) else {
            return Step::Wait(u64::MAX);
        };
        let at = standing.next.max(self.spent_until.saturating_sub(HOUR_MS / 2));
        if at > now {
            return Step::Wait(at);
        }
        self.spent_until = self.spent_until.max(now) + HOUR_MS / QUESTIONS_PER_HOUR_MAX;
        standing.is_asked = true;
        Step::Ask(domain.clone())
    }

    /// Takes in what DNS said of a domain; returns whether the disk is to hear of it.
    pub fn answered(&mut self, domain: &Domain, answer: Answer, now: u64) -> bool {
        let jitter = self.chance.below(HOUR_MS / 4);
        let Some(standing) = self.domains.get_mut(domain) else { return false };
        let before = standing.ids.clone();
        let pause = standing.take(answer, now);
        standing.is_asked = false;
        standing.next = now + pause.clamp(INTERVAL_MIN_MS, INTERVAL_MAX_MS) + jitter;
        standing.ids != before
    }

    /// Returns which domain is whose, as far as DNS says so.
    pub fn proven(&self) -> BTreeSet<(NodeId, Domain)> {
        let of = |(domain, standing): (&Domain, &Standing)| {
            standing.ids.keys().map(|id| (*id, domain.clone())).collect::<Vec<_>>()
        };
        self.domains.iter().flat_map(of).collect()
    }

    /// Returns what came of the last question about a domain.
    pub fn last(&self, domain: &Domain) -> Last {
        self.domains.get(domain).map_or(Last::Unasked, |standing| standing.last)
    }

    /// Returns what is proven as octets, for the disk.
    pub fn to_octets(&self) -> Vec<u8> {
        let proof = |(id, proof): (&NodeId, &Proof)| ((*id.octets()).into(), proof.confirmed, proof.denied);
        let standing = |(domain, standing): (&Domain, &Standing)| WireStanding {
            domain: domain.to_string(),
            is_signed: standing.is_signed,
            next: standing.next,
            ids: standing.ids.iter().map(proof).collect(),
        };
        let proven = self.domains.iter().filter(|(_, standing)| !standing.ids.is_empty());
        let wire = Wire { version: VERSION, domains: proven.map(standing).collect() };
        minicbor::to_vec(wire).expect("memory takes what is written")
    }

    /// Reads what [`Proofs::to_octets`] wrote.
    ///
    /// # Errors
    /// When it is damaged or of another version.
    pub fn from_octets(octets: &[u8], seed: u64) -> Result<Proofs, ArchiveError> {
        crate::archive::check_version(octets, VERSION)?;
        let wire: Wire = minicbor::decode(octets).map_err(|_| NOT_CBOR)?;
        let mut proofs = Proofs::new(seed);
        for WireStanding { domain, is_signed, next, ids } in few(wire.domains, DOMAINS_MAX)? {
            let domain = domain.parse().map_err(|_| "a domain that is none")?;
            let proof = |(id, confirmed, denied): (ByteArray<32>, u64, Option<u64>)| {
                (NodeId::from_octets(*id), Proof { confirmed, denied })
            };
            let ids = few(ids, KEPT_MAX)?.into_iter().map(proof).collect();
            proofs.domains.insert(domain, Standing { is_signed, next, ids, ..Standing::default() });
        }
        Ok(proofs)
    }
}

impl Standing {
    /// Takes an answer in; returns how long to wait for the next question.
    fn take(&mut self, answer: Answer, now: u64) -> u64 {
        let (ids, ttl_ms, security) = match answer {
            Answer::Found { ids, ttl_ms, security } => (ids, ttl_ms, security),
            Answer::Denied { security } => (BTreeSet::new(), 0, security),
            Answer::Unclear => {
                self.last = Last::Unclear;
                return INTERVAL_MIN_MS;
            }
        };
        // Whoever is in between takes signatures away sooner than that a domain gives them up; one that did
        // begins anew when its proofs were not confirmed for long enough.
        let is_less = security == Security::Unsigned && self.is_signed && !self.ids.is_empty();
        if security == Security::Unchecked || is_less {
            self.last = Last::Unchecked;
            return INTERVAL_MIN_MS;
        }
        self.is_signed = security == Security::Authentic;
        self.last = if ids.is_empty() { Last::Denied } else { Last::Found };
        for proof in self.ids.iter_mut().filter(|(id, _)| !ids.contains(id)).map(|(_, proof)| proof) {
            proof.denied.get_or_insert(now);
        }
        let is_over = |proof: &Proof| proof.denied.is_some_and(|since| now.saturating_sub(since) >= GRACE_MS);
        self.ids.retain(|_, proof| !is_over(proof));
        let found = ids.into_iter().take(IDS_MAX).map(|id| (id, Proof { confirmed: now, denied: None }));
        self.ids.extend(found);
        if self.ids.len() > KEPT_MAX {
            self.ids.retain(|_, proof| proof.denied.is_none());
        }
        if self.ids.is_empty() {
            self.in_vain = (self.in_vain + 1).min(8);
            return INTERVAL_MIN_MS << (self.in_vain - 1);
        }
        self.in_vain = 0;
        if self.ids.values().any(|proof| proof.denied.is_some()) { GRACE_MS } else { ttl_ms }
    }
}

impl Proof {
    fn is_stale(&self, now: u64) -> bool {
        now.saturating_sub(self.confirmed) >= UNCONFIRMED_MAX_MS
    }
}
