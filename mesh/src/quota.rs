//! How much mail a member may hand over, of mail for outside the mesh and of all, and when it is to be contained.
//!
//! Each member has an account; so has each origin behind it, as the member names it, with half as
//! much: nobody behind a hub takes all of what the hub may send, and whoever lies about an origin spends its
//! own. What was used runs off evenly within an hour. Notices (from nobody, or urgent) have a tenth beside
//! that, which containment leaves alone. Times are milliseconds of a clock that never goes back.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use crate::node::{NodeId, sha256};

const HOUR_MS: u64 = 3_600_000;
/// The part of the quota that an origin behind another member has.
const ORIGIN_SHARE: f64 = 0.5;
/// The part of the quota that notices have beside it.
const NOTICES_SHARE: f64 = 0.1;
/// The part of the quota that a contained member has.
const CONTAINED_SHARE: f64 = 0.01;
/// How long a domain is not new to a member, and the most that are remembered of one.
const DOMAIN_AGE_MS: u64 = 7 * 24 * HOUR_MS;
const DOMAINS_MAX: usize = 5_000;
/// The most accounts. For a new one the member that has most gives up the one that was quiet longest: whoever
/// names many origins closes its own accounts, and nobody else's.
const ACCOUNTS_MAX: usize = 1_000;
/// A member is contained when, within an hour, so many recipients outside refused its mail for good, and
/// these are at least so many of a hundred that answered.
pub const REFUSED_MIN: u32 = 50;
/// See [`REFUSED_MIN`].
pub const REFUSED_PERCENT: u32 = 25;

/// What a member may hand over in an hour of mail that leaves the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Messages.
    pub messages: u64,
    /// Octets of content.
    pub octets: u64,
    /// Recipients.
    pub recipients: u64,
    /// Domains that it has not written to within a week.
    pub new_domains: u64,
    /// Messages, those that stay in the mesh with them.
    pub all_messages: u64,
    /// Octets of content of these, and of what is passed on unread.
    pub all_octets: u64,
}

/// Which way mail came: over whom, and from where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Way {
    /// The member that handed it over, as its key proves.
    pub from: NodeId,
    /// Where it came into the mesh, as that member says.
    pub origin: NodeId,
}

/// What there was too much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// Messages.
    Messages,
    /// Octets of content.
    Octets,
    /// Recipients.
    Recipients,
    /// Domains it never wrote to.
    NewDomains,
}

/// A recipient outside the mesh.
#[derive(Clone, Copy, Debug)]
pub struct Foreign<'a> {
    /// The domain, or an address literal.
    pub domain: &'a str,
    /// Whether it is the first one of its message.
    pub is_first: bool,
    /// Whether it is from nobody, or urgent.
    pub is_notice: bool,
    /// Whether the member is contained.
    pub is_contained: bool,
}

/// What members used of their quotas.
#[derive(Clone, Debug, Default)]
pub struct Accounts(HashMap<(NodeId, Option<NodeId>), Account>);

#[derive(Clone, Debug, Default)]
struct Account {
    mail: Used,
    notices: Used,
    /// All that it hands over, wherever it goes.
    all: Used,
    domains: BTreeMap<[u8; 8], u64>,
    outcomes: Outcomes,
    /// How often it was told to come again within the hour of `outcomes`.
    over: u64,
    last: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Used {
    messages: f64,
    octets: f64,
    recipients: f64,
    new_domains: f64,
    at: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Outcomes {
    since: u64,
    delivered: u32,
    refused: u32,
}

impl Quota {
    /// Returns what holds for all mail as what holds for the mail that leaves the mesh.
    fn of_all(&self) -> Quota {
        Quota { messages: self.all_messages, octets: self.all_octets, ..*self }
    }
}

impl Accounts {
    /// Counts a recipient for whoever handed it over, or says what there is too much of: then nothing is
    /// counted.
    ///
    /// # Errors
    /// What is over its quota.
    pub fn recipient(&mut self, way: Way, mail: Foreign<'_>, quota: &Quota, now: u64) -> Result<(), Over> {
        let parts = parts(way);
        let over = parts.iter().find_map(|(name, share)| self.account(*name, now).has_room(mail, quota, *share).err());
        for (name, _) in parts {
            match over {
                None => self.account(name, now).add(mail, now),
                Some(_) => self.account(name, now).over += 1,
            }
        }
        over.map_or(Ok(()), Err)
    }

    /// Counts a message of a member, wherever it goes, or says what there is too much of. Notices have a tenth beside
    /// the quota, which comes last: a member that is slowed down can say so.
    ///
    /// # Errors
    /// What is over its quota.
    pub fn message(&mut self, from: NodeId, is_notice: bool, quota: &Quota, now: u64) -> Result<(), Over> {
        let quota = quota.of_all();
        let account = self.account((from, None), now);
        account.all.run_off(&quota, 1.0, now);
        let share = if is_notice { 1.0 + NOTICES_SHARE } else { 1.0 };
        let over = match () {
            () if account.all.messages + 1.0 > quota.messages as f64 * share => Over::Messages,
            () if account.all.octets >= quota.octets as f64 * share => Over::Octets,
            () => {
                account.all.messages += 1.0;
                return Ok(());
            }
        };
        account.over += 1;
        Err(over)
    }

    /// Decides whether octets may be passed on for a member, which count with those of its messages.
    ///
    /// # Errors
    /// It has handed over too many.
    pub fn passage(&mut self, from: NodeId, quota: &Quota, now: u64) -> Result<(), Over> {
        let account = self.account((from, None), now);
        account.all.run_off(&quota.of_all(), 1.0, now);
        if account.all.octets < quota.all_octets as f64 {
            return Ok(());
        }
        account.over += 1;
        Err(Over::Octets)
    }

    /// Counts octets of a member: of a message that [`Accounts::message`] counted, or of what is passed on. Returns
    /// whether it is within its quota still.
    pub fn all_octets(&mut self, from: NodeId, octets: u64, quota: &Quota, now: u64) -> bool {
        let account = self.account((from, None), now);
        // What went on for hours is not forgiven for the hours before it.
        account.all.run_off(&quota.of_all(), 1.0, now);
        account.all.octets += octets as f64;
        account.all.octets < quota.all_octets as f64
    }

    /// Counts the octets of a message that was taken and leaves the mesh; its recipients were counted before.
    pub fn octets(&mut self, way: Way, mail: Foreign<'_>, octets: u64, quota: &Quota, now: u64) {
        for (name, share) in parts(way) {
            let used = self.account(name, now).used(mail.is_notice);
            used.run_off(quota, mail.part_of(share), now);
            used.octets += octets as f64;
        }
    }

    /// Counts what recipients outside said to mail of this way, within the hour; `Some`: there are so many
    /// refusals that it is to be contained, in words.
    pub fn outcomes(&mut self, way: Way, delivered: u32, refused: u32, now: u64) -> Option<String> {
        let name = (way.from, Some(way.origin).filter(|origin| *origin != way.from));
        let outcomes = &mut self.account(name, now).outcomes;
        outcomes.delivered = outcomes.delivered.saturating_add(delivered);
        outcomes.refused = outcomes.refused.saturating_add(refused);
        let answered = u64::from(outcomes.delivered) + u64::from(outcomes.refused);
        let is_too_many = outcomes.refused >= REFUSED_MIN
            && u64::from(outcomes.refused) * 100 >= answered * u64::from(REFUSED_PERCENT);
        is_too_many.then(|| {
            let said = format!("{} of {answered} recipients outside refused its mail within an hour", outcomes.refused);
            *outcomes = Outcomes { since: now, ..Outcomes::default() };
            said
        })
    }

    /// Returns the members that were told to come again within the last hour or two, and how often.
    pub fn over(&self) -> BTreeMap<NodeId, u64> {
        let own = self.0.iter().filter(|((_, origin), account)| origin.is_none() && account.over > 0);
        own.map(|((from, _), account)| (*from, account.over)).collect()
    }

    fn account(&mut self, name: (NodeId, Option<NodeId>), now: u64) -> &mut Account {
        if self.0.len() >= ACCOUNTS_MAX && !self.0.contains_key(&name) {
            self.close_one();
        }
        let account = self.0.entry(name).or_default();
        account.last = now;
        if now.saturating_sub(account.outcomes.since) >= HOUR_MS {
            account.outcomes = Outcomes { since: now, ..Outcomes::default() };
            account.over = 0;
        }
        account
    }

    /// Closes the account that was quiet longest of the member that has most: its own one last.
    fn close_one(&mut self) {
        let mut counts: HashMap<NodeId, usize> = HashMap::new();
        self.0.keys().for_each(|(from, _)| *counts.entry(*from).or_default() += 1);
        let most = counts.values().copied().max().unwrap_or_default();
        let of_most = self.0.iter().filter(|((from, _), _)| counts[from] == most);
        let quiet = of_most.min_by_key(|((_, origin), account)| (most > 1 && origin.is_none(), account.last));
        if let Some(name) = quiet.map(|(name, _)| *name) {
            self.0.remove(&name);
        }
    }
}

impl Foreign<'_> {
    /// Returns which part of the quota it has of a share.
    fn part_of(&self, share: f64) -> f64 {
        match (self.is_notice, self.is_contained) {
            (true, _) => share * NOTICES_SHARE,
            (false, true) => share * CONTAINED_SHARE,
            (false, false) => share,
        }
    }
}

/// Returns the accounts that mail of a way is charged to, each with its part of the quota.
fn parts(way: Way) -> Vec<((NodeId, Option<NodeId>), f64)> {
    let own = ((way.from, None), 1.0);
    match way.origin == way.from {
        true => vec![own],
        false => vec![own, ((way.from, Some(way.origin)), ORIGIN_SHARE)],
    }
}

impl Account {
    fn used(&mut self, is_notice: bool) -> &mut Used {
        if is_notice { &mut self.notices } else { &mut self.mail }
    }

    fn has_room(&mut self, mail: Foreign<'_>, quota: &Quota, share: f64) -> Result<(), Over> {
        let now = self.last;
        let share = mail.part_of(share);
        let is_new = self.is_new(mail.domain, now);
        let used = self.used(mail.is_notice);
        used.run_off(quota, share, now);
        // However small the part, one of each is in it.
        let is_full = |used: f64, quota: u64| used + 1.0 > (quota as f64 * share).max(1.0);
        match () {
            () if mail.is_first && is_full(used.messages, quota.messages) => Err(Over::Messages),
            () if used.octets >= quota.octets as f64 * share => Err(Over::Octets),
            () if is_full(used.recipients, quota.recipients) => Err(Over::Recipients),
            () if is_new && is_full(used.new_domains, quota.new_domains) => Err(Over::NewDomains),
            () => Ok(()),
        }
    }

    fn add(&mut self, mail: Foreign<'_>, now: u64) {
        let is_new = self.is_new(mail.domain, now);
        if is_new && self.domains.len() >= DOMAINS_MAX {
            let oldest = self.domains.iter().min_by_key(|(_, at)| **at).map(|(name, _)| *name);
            oldest.and_then(|oldest| self.domains.remove(&oldest));
        }
        self.domains.insert(short(mail.domain), now);
        let used = self.used(mail.is_notice);
        used.messages += f64::from(u8::from(mail.is_first));
        used.recipients += 1.0;
        used.new_domains += f64::from(u8::from(is_new));
    }

    fn is_new(&self, domain: &str, now: u64) -> bool {
        self.domains.get(&short(domain)).is_none_or(|at| now.saturating_sub(*at) >= DOMAIN_AGE_MS)
    }
}

impl Used {
    fn run_off(&mut self, quota: &Quota, share: f64, now: u64) {
        let part = now.saturating_sub(self.at) as f64 / HOUR_MS as f64 * share;
        let off = |used: f64, quota: u64| (used - quota as f64 * part).max(0.0);
        *self = Used {
            messages: off(self.messages, quota.messages),
            octets: off(self.octets, quota.octets),
            recipients: off(self.recipients, quota.recipients),
            new_domains: off(self.new_domains, quota.new_domains),
            at: now,
        };
    }
}

impl fmt::Display for Over {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Over::Messages => "messages",
            Over::Octets => "data",
            Over::Recipients => "recipients",
            Over::NewDomains => "new_domains",
        })
    }
}

fn short(domain: &str) -> [u8; 8] {
    *sha256(&[domain.as_bytes()]).first_chunk().expect("a hash is longer")
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUOTA: Quota =
        Quota { messages: 100, octets: 1_000, recipients: 200, new_domains: 20, all_messages: 300, all_octets: 9_000 };
    const MAIL: Foreign<'_> = Foreign { domain: "x.example", is_first: true, is_notice: false, is_contained: false };

    fn node(n: u8) -> NodeId {
        NodeId::from_octets([n; 32])
    }

    fn way(from: u8, origin: u8) -> Way {
        Way { from: node(from), origin: node(origin) }
    }

    fn taken(accounts: &mut Accounts, way: Way, mail: Foreign<'_>, now: u64) -> usize {
        (0..1_000).take_while(|_| accounts.recipient(way, mail, &QUOTA, now).is_ok()).count()
    }

    #[test]
    fn what_was_used_runs_off_within_an_hour() {
        let mut accounts = Accounts::default();
        assert_eq!(taken(&mut accounts, way(1, 1), MAIL, 0), 100);
        assert_eq!(accounts.recipient(way(1, 1), MAIL, &QUOTA, 0), Err(Over::Messages));
        assert_eq!(accounts.over(), BTreeMap::from([(node(1), 2)]));
        assert_eq!(taken(&mut accounts, way(1, 1), MAIL, HOUR_MS / 4), 25);
        assert_eq!(taken(&mut accounts, way(1, 1), MAIL, 9 * HOUR_MS), 100);
        assert_eq!(taken(&mut accounts, way(2, 2), MAIL, 0), 100, "others are not concerned");
    }

    #[test]
    fn recipients_octets_and_new_domains_are_counted() {
        let mut accounts = Accounts::default();
        let more = Foreign { is_first: false, ..MAIL };
        assert_eq!(taken(&mut accounts, way(1, 1), more, 0), 200);
        assert_eq!(accounts.recipient(way(1, 1), more, &QUOTA, 0), Err(Over::Recipients));
        accounts.octets(way(2, 2), MAIL, 1_000, &QUOTA, 0);
        assert_eq!(accounts.recipient(way(2, 2), MAIL, &QUOTA, 0), Err(Over::Octets));
        // What came last is not forgiven for the time before it.
        accounts.octets(way(4, 4), MAIL, 10, &QUOTA, 0);
        accounts.octets(way(4, 4), MAIL, 1_000, &QUOTA, HOUR_MS);
        assert_eq!(accounts.recipient(way(4, 4), MAIL, &QUOTA, HOUR_MS), Err(Over::Octets));
        assert_eq!(accounts.recipient(way(4, 4), MAIL, &QUOTA, HOUR_MS + HOUR_MS / 100), Ok(()));
        let names: Vec<String> = (0..30).map(|n| format!("{n}.example")).collect();
        let mut to = |n: usize, now| accounts.recipient(way(3, 3), Foreign { domain: &names[n], ..MAIL }, &QUOTA, now);
        assert!((0..20).all(|n| to(n, 0).is_ok()));
        assert_eq!(to(20, 0), Err(Over::NewDomains));
        assert_eq!(to(7, 0), Ok(()), "it wrote there before");
        assert_eq!(to(20, HOUR_MS), Ok(()));
    }

    #[test]
    fn all_mail_is_counted_and_notices_come_last() {
        let mut accounts = Accounts::default();
        let mut taken = |n: u8, is_notice, now| {
            (0..1_000).take_while(|_| accounts.message(node(n), is_notice, &QUOTA, now).is_ok()).count()
        };
        assert_eq!(taken(1, false, 0), 300);
        assert_eq!(taken(1, true, 0), 30);
        assert_eq!((taken(1, true, 0), taken(2, false, 0)), (0, 300), "others are not concerned");
        assert_eq!(taken(1, false, HOUR_MS / 2), 120);
        assert!(accounts.all_octets(node(3), 8_999, &QUOTA, 0) && !accounts.all_octets(node(3), 1, &QUOTA, 0));
        assert_eq!(accounts.message(node(3), false, &QUOTA, 0), Err(Over::Octets));
        assert_eq!(accounts.message(node(3), true, &QUOTA, 0), Ok(()));
        assert_eq!(accounts.over()[&node(3)], 1);
        assert_eq!(accounts.message(node(3), false, &QUOTA, HOUR_MS), Ok(()));
    }

    #[test]
    fn what_is_passed_on_counts_with_messages_and_as_it_goes() {
        let mut accounts = Accounts::default();
        assert_eq!(accounts.passage(node(1), &QUOTA, 0), Ok(()));
        // For three hours, a third more than runs off.
        for part in 0..30 {
            accounts.all_octets(node(1), 1_200, &QUOTA, part * HOUR_MS / 10);
        }
        let end = 29 * HOUR_MS / 10;
        assert_eq!(accounts.passage(node(1), &QUOTA, end), Err(Over::Octets));
        assert_eq!(accounts.message(node(1), false, &QUOTA, end), Err(Over::Octets), "it is one quota");
        assert_eq!((accounts.over()[&node(1)], accounts.passage(node(2), &QUOTA, end)), (2, Ok(())));
        assert_eq!(accounts.passage(node(1), &QUOTA, end + HOUR_MS / 4), Ok(()));
        accounts.all_octets(node(1), 9_000, &QUOTA, end + 9 * HOUR_MS);
        assert_eq!(accounts.passage(node(1), &QUOTA, end + 9 * HOUR_MS), Err(Over::Octets));
    }

    #[test]
    fn an_origin_behind_a_hub_has_half_and_a_lie_about_it_costs_who_lies() {
        let mut accounts = Accounts::default();
        assert_eq!(taken(&mut accounts, way(1, 2), MAIL, 0), 50);
        assert_eq!(taken(&mut accounts, way(1, 3), MAIL, 0), 50, "the hub has as much for others");
        assert_eq!(taken(&mut accounts, way(1, 4), MAIL, 0), 0, "and no more in all");
        assert_eq!(taken(&mut accounts, way(2, 2), MAIL, 0), 100, "who was named loses nothing");
    }

    #[test]
    fn who_is_contained_has_a_trickle_and_its_notices() {
        let mut accounts = Accounts::default();
        let contained = Foreign { is_contained: true, ..MAIL };
        assert_eq!(taken(&mut accounts, way(1, 1), contained, 0), 1);
        assert_eq!(taken(&mut accounts, way(1, 1), Foreign { is_notice: true, ..contained }, 0), 10);
        assert_eq!(taken(&mut accounts, way(1, 1), contained, HOUR_MS), 1);
    }

    #[test]
    fn many_refusals_contain_and_a_few_do_not() {
        let mut accounts = Accounts::default();
        assert_eq!(accounts.outcomes(way(1, 1), 1_000, REFUSED_MIN, 0), None, "five in a hundred");
        assert_eq!(accounts.outcomes(way(2, 2), 0, REFUSED_MIN - 1, 0), None);
        assert_eq!(accounts.outcomes(way(2, 2), 0, 1, HOUR_MS), None, "another hour");
        let why = accounts.outcomes(way(2, 2), 3, REFUSED_MIN, HOUR_MS).expect("most refuse");
        assert_eq!(why, "51 of 54 recipients outside refused its mail within an hour");
        assert_eq!(accounts.outcomes(way(2, 2), 0, 1, HOUR_MS), None, "said once");
        assert!(accounts.outcomes(way(1, 3), 0, REFUSED_MIN, 0).is_some(), "one behind a hub");
    }

    #[test]
    fn the_accounts_are_bounded() {
        let mut accounts = Accounts::default();
        for n in 0..ACCOUNTS_MAX as u64 + 9 {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&n.to_be_bytes());
            let from = NodeId::from_octets(id);
            accounts.recipient(Way { from, origin: from }, MAIL, &QUOTA, n).expect("room");
        }
        assert_eq!(accounts.0.len(), ACCOUNTS_MAX);
        let mut account = Account::default();
        for n in 0..DOMAINS_MAX as u64 + 9 {
            account.add(Foreign { domain: &n.to_string(), ..MAIL }, n);
        }
        assert_eq!(account.domains.len(), DOMAINS_MAX);
    }

    #[test]
    fn who_names_many_origins_closes_no_account_of_another() {
        let mut accounts = Accounts::default();
        assert_eq!(taken(&mut accounts, way(1, 1), MAIL, 0), 100);
        assert_eq!(taken(&mut accounts, way(2, 3), MAIL, 0), 50);
        for n in 0..2 * ACCOUNTS_MAX as u64 {
            let mut id = [7; 32];
            id[..8].copy_from_slice(&n.to_be_bytes());
            // That it is over its quota itself keeps it from naming none.
            let _ = accounts.recipient(Way { from: node(9), origin: NodeId::from_octets(id) }, MAIL, &QUOTA, 1);
        }
        assert_eq!(accounts.0.len(), ACCOUNTS_MAX);
        assert_eq!(taken(&mut accounts, way(1, 1), MAIL, 1), 0, "it is over its quota still");
        assert_eq!(taken(&mut accounts, way(2, 3), MAIL, 1), 0);
        assert_eq!(taken(&mut accounts, way(9, 9), MAIL, 1), 0);
    }
}
