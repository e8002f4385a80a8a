//! The members of a mesh as next hops: who serves a domain, who sends mail out, and over whom to get
//! there.
//!
//! Made anew whenever the directory changes. What is decided here does not depend on who can be
//! reached at the moment: mail for one goal keeps its line in the schedule, and whoever connects takes
//! the members in their order, those that answered last first. One thing does: a host that sends mail out does so
//! itself when those that would do it for less cannot be reached.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use postroad_mesh::passage::{ShortId, has_visited_nobody};
use postroad_mesh::path::{Choice, Goal, Health, Map, Need, Step, Through};
use postroad_mesh::record::{Address, Reach, Said};
use postroad_mesh::{NodeId, Passage};
use postroad_queue::{Item, RecipientState, Report};
use postroad_smtp::{Domain, PassageToken};

const DAY_MS: u64 = 86_400_000;
/// The most members that are tried for one message in one attempt.
const STEPS_MAX: usize = 4;

/// The members of the mesh, to this one.
#[derive(Debug)]
pub struct Members {
    me: NodeId,
    map: Map,
    members: BTreeMap<NodeId, Arc<Member>>,
    by_short: BTreeMap<ShortId, NodeId>,
    /// Whether this node may send its mail through others, and not only to them.
    relays: bool,
    sends_out: bool,
    anybody_sends_out: bool,
    records: BTreeMap<NodeId, Said>,
}

/// A member as a next hop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Which one.
    pub node: NodeId,
    /// What it is called.
    pub label: Box<str>,
    /// Where it is reached, the best first.
    pub addresses: Vec<Address>,
    /// Whether nobody dials it: it comes for its mail.
    pub comes: bool,
    /// Members that pass on what it is told, the nearest first, where a message has no other way to it.
    pub through: Vec<Arc<Member>>,
}

/// What is looked at of a message, beside the recipient, where the mesh has more than one way.
#[derive(Clone, Debug, Default)]
pub struct Mail<'a> {
    item: Option<&'a Item>,
    /// The domain of its sender; none of a notification.
    from: Option<&'a Domain>,
    octets: u64,
    /// Read when it is first asked for: most mail is routed without.
    passage: OnceCell<Option<Passage>>,
    /// Members that could not be reached just now.
    down: BTreeSet<NodeId>,
}

/// What the mesh has for a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// These members, the best first; empty when it has to wait until there is one.
    Pass(Vec<Arc<Member>>),
    /// This host sends it out itself.
    Stay,
}

impl Members {
    /// Makes the members out of what they say of themselves. `relays`: this node was admitted with the
    /// right to send mail through others.
    pub fn new(me: NodeId, records: BTreeMap<NodeId, Said>, relays: bool) -> Members {
        let member = |(id, said): (&NodeId, &Said)| {
            let label = if said.label.is_empty() { id.short().into() } else { said.label.clone() };
            let comes = said.reach != Reach::Public;
            (*id, Arc::new(Member { node: *id, label, addresses: said.addresses.clone(), comes, through: Vec::new() }))
        };
        Members {
            me,
            map: Map::new(me, records.iter().map(|(id, said)| (*id, said))),
            members: records.iter().map(member).collect(),
            by_short: records.keys().map(|id| (id.into(), *id)).collect(),
            relays,
            sends_out: records.get(&me).is_some_and(|said| !said.egress.is_empty()),
            anybody_sends_out: records.values().any(|said| !said.egress.is_empty()),
            records,
        }
    }

    /// The same, with ids that members had before: mail on its way may name these.
    pub fn once_called(mut self, renamed: impl Iterator<Item = (NodeId, NodeId)>) -> Members {
        self.by_short.extend(renamed.map(|(before, now)| (ShortId::from(&before), now)));
        self
    }

    /// Returns the members that are reached otherwise than before, or were none.
    pub fn reached_otherwise(&self, before: Option<&Members>) -> impl Iterator<Item = NodeId> {
        let reach = |member: &Member| (member.addresses.clone(), member.comes);
        self.members
            .values()
            .filter(move |now| {
                let before = before.and_then(|before| before.member(&now.node));
                before.is_none_or(|before| reach(before) != reach(now))
            })
            .map(|member| member.node)
    }

    /// Returns this node.
    pub fn me(&self) -> NodeId {
        self.me
    }

    /// Returns whether mail takes the same ways as with others: then nothing has to be routed anew.
    pub fn is_same(&self, other: &Members) -> bool {
        let ways = |members: &Members| {
            let said = |said: &Said| Said { sequence: 0, ..said.clone() };
            let records: Vec<(NodeId, Said)> = members.records.iter().map(|(id, one)| (*id, said(one))).collect();
            (members.me, members.relays, records)
        };
        ways(self) == ways(other)
    }

    /// Returns whether this node sends mail of members out of the mesh.
    pub fn sends_out(&self) -> bool {
        self.sends_out
    }

    /// Returns the nodes that serve a domain.
    pub fn homes(&self, domain: &Domain) -> Vec<NodeId> {
        self.map.homes(domain).to_vec()
    }

    /// Returns whether mail for a domain ends at one node alone, with nobody who would hold it meanwhile.
    pub fn has_one_end(&self, domain: &Domain) -> bool {
        matches!(self.map.homes(domain), [home] if self.records[home].pickups.is_empty())
    }

    /// Returns whether it depends on the sender which member sends mail out: some say for whom they may speak.
    pub fn minds_sender(&self) -> bool {
        self.records.values().flat_map(|said| &said.egress).any(|offer| !offer.from.is_empty())
    }

    /// Returns whether a member that sends mail out may do so for this sender, as far as it says.
    fn speaks_for(&self, node: &NodeId, from: &Domain) -> bool {
        let offers = self.records.get(node).into_iter().flat_map(|said| &said.egress);
        offers.flat_map(|offer| &offer.from).any(|domain| from.is_within(domain))
    }

    /// Returns a member as a next hop.
    pub fn member(&self, node: &NodeId) -> Option<&Arc<Member>> {
        self.members.get(node)
    }

    /// Returns whether a member comes for its mail, which nobody can dial.
    pub fn comes(&self, node: &NodeId) -> bool {
        self.member(node).is_some_and(|member| member.comes)
    }

    /// Returns what a member is called.
    pub fn label(&self, node: &NodeId) -> String {
        self.members.get(node).map_or_else(|| node.short(), |member| member.label.to_string())
    }

    /// Returns whether this node holds mail for the home of a domain.
    pub fn holds(&self, domain: &Domain) -> bool {
        self.holds_ms(domain).is_some()
    }

    /// Returns for how long it does, in milliseconds.
    pub fn holds_ms(&self, domain: &Domain) -> Option<u64> {
        let days = self.records.get(&self.me).map(|said| said.holds_days).filter(|days| *days > 0)?;
        let names_me = |home: &NodeId| self.records.get(home).is_some_and(|said| said.pickups.contains(&self.me));
        self.map.homes(domain).iter().any(names_me).then_some(u64::from(days) * DAY_MS)
    }

    /// Returns the way to the home of a domain, where a member serves it.
    pub fn to_home(&self, domain: &Domain, mail: &Mail<'_>) -> Option<(Way, Vec<Choice>)> {
        (!self.map.homes(domain).is_empty()).then(|| self.way(domain, mail))
    }

    /// Returns the way out of the mesh for a domain that no member serves, where any sends mail out.
    pub fn to_egress(&self, domain: &Domain, mail: &Mail<'_>) -> Option<(Way, Vec<Choice>)> {
        (self.anybody_sends_out && (self.relays || self.sends_out)).then(|| self.way(domain, mail))
    }

    fn way(&self, domain: &Domain, mail: &Mail<'_>) -> (Way, Vec<Choice>) {
        if self.map.homes(domain) == [self.me] {
            // It is where it is to get to, whichever way it came.
            return (Way::Stay, vec![Choice { step: Step::Stay, goal: Goal::Home(self.me), cost: 0 }]);
        }
        let passage = mail.passage();
        if passage.is_some_and(Passage::is_at_its_end) {
            return (Way::Pass(Vec::new()), Vec::new());
        }
        let known = |short| self.by_short.get(short).copied();
        let visited: Vec<NodeId> = passage.iter().flat_map(|passage| passage.visited()).filter_map(known).collect();
        let need = Need { to: domain, from: mail.from, octets: mail.octets, visited: &visited, spread: mail.spread() };
        let choices = self.choices(&need);
        if choices.is_empty() {
            return (Way::Pass(self.through(&need)), choices);
        }
        let ends_here = |choice: &Choice| choice.step == Step::Stay && !matches!(choice.goal, Goal::Pickup { .. });
        let before = choices.iter().position(ends_here).map_or(&choices[..], |own| &choices[..own]);
        if before.len() < choices.len()
            && (before.iter().all(|choice| mail.is_cut_off(choice)) || mail.is_put_off(domain))
        {
            return (Way::Stay, choices);
        }
        let next = |choice: &Choice| match choice.step {
            Step::Pass(node) => self.members.get(&node).cloned(),
            // It is held here until one of the others takes it.
            Step::Stay => None,
        };
        (Way::Pass(before.iter().filter_map(next).take(STEPS_MAX).collect()), choices)
    }

    /// Returns the members that can be got at only through others, for a message that has no other way.
    fn through(&self, need: &Need<'_>) -> Vec<Arc<Member>> {
        // Who passes octets on asks for the same right.
        let ways = if self.relays { self.map.through(need) } else { Vec::new() };
        let step = |way: Through| {
            let through = way.by.iter().map(|node| self.members.get(node).cloned()).collect::<Option<_>>()?;
            let next = self.members.get(&way.next)?;
            Some(Arc::new(Member { through, comes: false, ..Member::clone(next) }))
        };
        ways.into_iter().filter_map(step).take(STEPS_MAX).collect()
    }

    fn choices(&self, need: &Need<'_>) -> Vec<Choice> {
        let mut choices = self.map.choices(need, &Health::default());
        // Who may not send through others goes to the home itself, or to whoever holds its mail.
        choices.retain(|choice| match (choice.step, choice.goal) {
            _ if self.relays => true,
            (Step::Stay, _) => true,
            (Step::Pass(next), Goal::Home(end) | Goal::Pickup { at: end, .. }) => next == end,
            (Step::Pass(_), Goal::Egress(_)) => false,
        });
        if choices.iter().any(|choice| choice.step == Step::Stay) {
            self.keep_to_pickups(&mut choices, need.to);
        }
        if need.visited.is_empty() { choices } else { self.without_second_detour(choices, need.visited) }
    }

    /// What is held here for homes that come for it goes to nobody but those and who else holds it: that is
    /// where they come. One of these may be connected to the home while this node is not.
    fn keep_to_pickups(&self, choices: &mut Vec<Choice>, domain: &Domain) {
        let homes = self.map.homes(domain);
        if homes.is_empty() || !homes.iter().all(|home| self.comes(home)) {
            return;
        }
        let holds = |node: &NodeId| homes.iter().any(|home| self.records[home].pickups.contains(node));
        choices.retain(|choice| match &choice.step {
            Step::Stay => true,
            Step::Pass(next) => homes.contains(next) || holds(next),
        });
    }

    /// A message that was next to its goal and came here instead is on a detour already: from here it
    /// goes to the goal, if there is a link, and wanders no further. Without this, mail for a home that
    /// is down would be passed from neighbour to neighbour.
    fn without_second_detour(&self, choices: Vec<Choice>, visited: &[NodeId]) -> Vec<Choice> {
        let is_detour = |goal: &NodeId| visited.iter().any(|node| self.map.has_link(node, goal));
        let is_far = |choice: &Choice| {
            let goal = choice.goal.node();
            is_detour(&goal)
                && choice.step != Step::Pass(goal)
                && choice.step != Step::Stay
                && self.map.has_link(&self.me, &goal)
        };
        choices.into_iter().filter(|choice| !is_far(choice)).collect()
    }
}

impl<'a> Mail<'a> {
    /// Looks at a message in the queue.
    pub fn of(item: &'a Item) -> Mail<'a> {
        let from = item.envelope.reverse_path.mailbox().and_then(|mailbox| mailbox.domain());
        Mail { item: Some(item), from, octets: item.content_octets, ..Mail::default() }
    }

    /// Looks at a message that is not there, of so many octets from this domain.
    pub fn like(from: Option<&'a Domain>, octets: u64) -> Mail<'a> {
        Mail { from, octets, ..Mail::default() }
    }

    /// The same while these members cannot be reached.
    pub fn without(self, down: BTreeSet<NodeId>) -> Mail<'a> {
        Mail { down, ..self }
    }

    /// Returns whether a choice leads to, or by, a member that cannot be reached.
    fn is_cut_off(&self, choice: &Choice) -> bool {
        let is_down = |node: &NodeId| self.down.contains(node);
        is_down(&choice.goal.node()) || matches!(&choice.step, Step::Pass(next) if is_down(next))
    }

    /// Returns whether a host outside the mesh told this one to come again with it: that is who has to come. Another
    /// one would have to wait as long (greylisting).
    fn is_put_off(&self, domain: &Domain) -> bool {
        let Some(item) = self.item else { return false };
        let all = item.envelope.recipients().iter().zip(&item.state.recipients);
        all.filter(|(to, _)| to.forward_path.domain() == Some(domain)).any(|(_, state)| match state {
            RecipientState::Pending { last: Some(report), .. } => is_said_outside(report),
            _ => false,
        })
    }

    /// Returns whether it was at no other member yet.
    pub(super) fn comes_in_here(&self) -> bool {
        match self.passage.get() {
            Some(known) => known.as_ref().is_none_or(|passage| passage.visited().is_empty()),
            None => self.token().is_none_or(has_visited_nobody),
        }
    }

    fn token(&self) -> Option<&'a PassageToken> {
        self.item.and_then(|item| item.envelope.params.passage.as_ref())
    }

    fn passage(&self) -> Option<&Passage> {
        self.passage.get_or_init(|| self.token()?.as_str().parse().ok()).as_ref()
    }

    fn spread(&self) -> u64 {
        let by_id = || self.item.map_or(0, |item| item.id.to_u64());
        self.passage().map_or_else(by_id, |passage| passage.message.spread())
    }
}

impl Member {
    /// Returns who is connected to: the member itself, or the first of those that pass its octets on.
    pub(super) fn first(member: &Arc<Member>) -> &Arc<Member> {
        member.through.first().unwrap_or(member)
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.label, self.node.short())?;
        let mut word = " through ";
        for member in &self.through {
            write!(f, "{word}{member}")?;
            word = ", ";
        }
        Ok(())
    }
}

/// Returns whether a host that is no member said this, and not this host of a connection that failed (X.4.X, RFC 3463
/// §3.5). Only the name of a member has a parenthesis.
fn is_said_outside(report: &Report) -> bool {
    const NETWORK: u16 = 4;
    let is_of_network = report.reply.status.is_some_and(|status| status.subject == NETWORK);
    !is_of_network && report.remote.as_deref().is_some_and(|remote| !remote.contains(" ("))
}

/// Says a choice for mail to people: `hub (k5x2q7ab), to the home lab (7luypcad), cost 20`.
pub(super) fn describe(members: &Members, choice: &Choice, mail: &Mail<'_>) -> String {
    let name = |node: &NodeId| format!("{} ({})", members.label(node), node.short());
    let step = match &choice.step {
        Step::Stay => "this host".to_owned(),
        Step::Pass(node) => name(node),
    };
    let goal = match &choice.goal {
        Goal::Home(node) => format!("to the home {}", name(node)),
        Goal::Pickup { at, home } => format!("to {}, which holds mail for {}", name(at), name(home)),
        Goal::Egress(node) => format!("out at {}", name(node)),
    };
    let said = match (&choice.goal, mail.from) {
        (Goal::Egress(node), Some(from)) if members.minds_sender() && !members.speaks_for(node, from) => {
            format!(" (it does not say that it may send for {from})")
        }
        _ => String::new(),
    };
    let is_cut_off = if mail.is_cut_off(choice) { " (cannot be reached at present)" } else { "" };
    format!("{step}, {goal}, cost {}{said}{is_cut_off}", choice.cost)
}

#[cfg(test)]
#[path = "members_tests.rs"]
mod tests;
