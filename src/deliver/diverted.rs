//! Mail that takes another way than the one for less, because members of the mesh on that one cannot be reached: which
//! ones these are, for the journal and for whoever asks. It decides nothing; the ways are those of the router.

use std::collections::BTreeMap;
use std::sync::Arc;

use postroad_mesh::NodeId;
use postroad_queue::{Item, RecipientState};

use super::attempt::Task;
use super::dispatcher::{Core, Delivery, Routing};
use super::jobs::key;
use super::outcome::Outcome;
use crate::journal::{Kind, Note};
use crate::route::{Member, Members, Route};

/// Members that are passed by, each with the places of the recipients that would go there.
type Passed = BTreeMap<NodeId, Vec<usize>>;

/// Notes in the journal, in front of what came of an attempt, past whom it went and what was said of these.
pub fn note(core: &Core, task: &Task<'_>, route: &Route, outcomes: &[(usize, Outcome)]) {
    let (Some((_, first)), Some(members), true) =
        (outcomes.first(), task.routing.router.members(), core.journal.is_on())
    else {
        return;
    };
    for (node, places) in &passed_by(core, task.routing, task.item, &task.places, &key(route)) {
        let is_all = places.len() == task.item.envelope.recipients().len();
        let (remote, said) = (name(members, node), core.links.said(node));
        let places = if is_all { &[][..] } else { places };
        let note = Note { places, remote: Some(&remote), said: said.as_deref(), ..Note::default() };
        core.journal.note(first.report().at, task.item.id, Kind::Diverted, &note);
    }
}

impl Delivery {
    /// Returns the members that mail could not be handed to just now, by their ids, and what was said of each.
    pub fn members_down(&self) -> BTreeMap<String, String> {
        let links = &self.0.links;
        let said = |node: NodeId| Some((node.to_string(), links.said(&node)?.to_string()));
        links.down().into_iter().filter_map(said).collect()
    }

    /// Returns past whom the pending recipients of a message go that have this destination, and what was said of
    /// these: `hub (k5x2q7ab): 451 4.4.1 …`.
    pub fn passed_by(&self, item: &Item, destination: &str) -> Vec<String> {
        let (core, routing) = (&self.0, self.0.routing.load());
        let Some(members) = routing.router.members() else { return Vec::new() };
        let is_pending = |place: &usize| matches!(item.state.recipients[*place], RecipientState::Pending { .. });
        let mail = core.mail(&routing, item);
        let goes_there = |place: &usize| {
            *key(&routing.router.route_mail(&item.envelope.recipients()[*place].forward_path, &mail)) == *destination
        };
        let places: Vec<usize> = (0..item.state.recipients.len()).filter(is_pending).filter(goes_there).collect();
        let said = |node: &NodeId| core.links.said(node).map_or(String::new(), |said| format!(": {said}"));
        let passed = passed_by(core, &routing, item, &places, destination);
        passed.keys().map(|node| format!("{}{}", name(members, node), said(node))).collect()
    }
}

/// Returns the members that these recipients, who have this destination now, would go by if none were down.
fn passed_by(core: &Core, routing: &Routing, item: &Item, places: &[usize], destination: &str) -> Passed {
    let (mut passed, down) = (Passed::new(), core.links.down());
    if down.is_empty() {
        return passed;
    }
    let is_down = |member: &&Arc<Member>| down.contains(&member.node);
    let mail = routing.router.mail(item);
    for place in places {
        let route = routing.router.route_mail(&item.envelope.recipients()[*place].forward_path, &mail);
        let Route::Smtp(best) = route else { continue };
        // Where the next hop is the same and all of them are down, they are tried all the same.
        if **best.key() != *destination || !best.members().iter().all(|member| is_down(&member)) {
            let before = best.members().iter().take_while(is_down);
            before.for_each(|member| passed.entry(member.node).or_default().push(*place));
        }
    }
    passed
}

fn name(members: &Members, node: &NodeId) -> String {
    format!("{} ({})", members.label(node), node.short())
}

#[cfg(test)]
mod tests {
    use postroad_mesh::record::{Egress, Reach, Said};
    use postroad_mesh::{SecretKey, StatementId};
    use postroad_queue::{Origin, QueueId, State, UnixMillis};
    use postroad_smtp::{Envelope, Recipient};

    use super::super::attempt::Ended;
    use super::super::scenario::Agent;
    use super::*;

    fn node(name: u8) -> NodeId {
        SecretKey::from_seed(&[name; 32]).public().id()
    }

    /// Members on one network; those with a cost send mail out.
    fn members(costs: &[(u8, Option<u16>)]) -> Members {
        let said = |(name, cost): &(u8, Option<u16>)| {
            let public = SecretKey::from_seed(&[*name; 32]).public();
            let said = Said {
                label: char::from(*name).to_string().into(),
                addresses: vec!["127.0.0.1:9".parse().expect("an address")],
                reach: Reach::Public,
                egress: cost.iter().map(|cost| Egress { cost: *cost, ..Egress::default() }).collect(),
                link_cost: 10,
                ..Said::new(public, StatementId::from_octets([0; 32]), 1)
            };
            (node(*name), said)
        };
        Members::new(node(b'a'), costs.iter().map(said).collect(), true)
    }

    fn item(to: &str) -> Item {
        let to = vec![Recipient::new(to.parse().expect("a path"))];
        let envelope = Envelope::new("u@a.example".parse().expect("a path"), Default::default(), to).expect("one");
        let state = State::fresh(1, UnixMillis(5), UnixMillis(9));
        let origin = Origin::default();
        Item { id: QueueId::from_u64(1), arrived: UnixMillis(5), envelope, origin, content_octets: 1, state }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_asks_hears_past_whom_mail_goes_while_members_are_down() {
        let agent = Agent::start("hostname = \"a.example\"\n");
        let (core, item) = (&agent.delivery.0, item("u@world.test"));
        let set = |costs: &[(u8, Option<u16>)]| agent.delivery.set_members(Some(Arc::new(members(costs))));
        let passed = |destination: &str| agent.delivery.passed_by(&item, destination);
        let fail = |name: u8, said: &str| {
            let routing = core.routing.load();
            let member = routing.router.members().and_then(|members| members.member(&node(name))).expect("a member");
            core.links.note(member, &Ended::Silent(said.into()));
        };
        // So much more that it is not shared.
        set(&[(b'a', Some(1000)), (b'b', Some(10)), (b'c', None)]);
        assert_eq!(passed("mx:world.test"), [""; 0], "nobody is down");
        fail(b'b', "451 4.4.1 no answer");
        let b = format!("b ({}): 451 4.4.1 no answer", node(b'b').short());
        assert_eq!(passed("mx:world.test").join(" "), b, "this host sends it out itself");
        assert_eq!(passed("mx:other.test"), [""; 0], "nothing of it goes there");
        // Where this host sends nothing out, the next member is tried.
        set(&[(b'a', None), (b'b', Some(10)), (b'c', Some(1000))]);
        let mesh = agent.delivery.destinations_of(&item).remove(0);
        assert_eq!(passed(&mesh).join(" "), b, "{mesh}");
        fail(b'c', "451 4.4.1 refused");
        assert_eq!(passed(&mesh), [""; 0], "it waits for all of them: that is no other way");
    }
}
