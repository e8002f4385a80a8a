//! Delivery to members of the mesh: over the next one at once when one cannot take a message, and over
//! the same one again when only its reply was lost.
//!
//! A member remembers what it took, so asking it again delivers nothing twice; asking another one might.
//! Sessions are kept for each member, whichever messages they were opened for. A member that comes for its
//! mail has opened them itself ([`Callers`](super::callers::Callers)). What can only go back the way it came goes
//! through members that pass octets on ([`through`](super::through)).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use postroad_mesh::passage::Naming;
use postroad_mesh::{MeshMessageId, NodeId, Passage};
use postroad_queue::Item;
use postroad_queue::schedule::Attempt;
use postroad_smtp::{PassageToken, Reply};
use tracing::{debug, info};

use super::attempt::{Ended, Task};
use super::dispatcher::{Core, Routing};
use super::jobs::key;
use super::outcome::Outcome;
use super::remote::{Lane, Result, Sent, refused};
use super::transport::{Connection, Nodes};
use crate::route::{Hop, Mail, Member, NextHop, ResolveError};

/// How long a member that could not be reached is tried after the others only.
const DOWN: Duration = Duration::from_secs(15);
/// How often a member is asked again whose reply was lost.
const REPEATS_MAX: usize = 5;

/// Which members could not be reached lately, by this host's own sessions.
#[derive(Default)]
pub struct Links {
    down: Mutex<HashMap<NodeId, Down>>,
}

/// A member that could not be reached.
#[derive(Clone)]
struct Down {
    /// Until when it is tried after the others only.
    until: Instant,
    /// What was said of it.
    said: Arc<str>,
}

impl Links {
    /// Returns the members in the order in which they are tried: those that are down come last. Once
    /// in a while one of those is tried at its place, by one message alone.
    fn in_order(&self, steps: &[Arc<Member>]) -> Vec<Arc<Member>> {
        let (now, mut down) = (Instant::now(), self.lock());
        let mut is_down = |node: &NodeId| match down.get_mut(node) {
            Some(down) if down.until > now => true,
            Some(down) => {
                down.until = now + DOWN;
                false
            }
            None => false,
        };
        let (last, first): (Vec<_>, Vec<_>) = steps.iter().cloned().partition(|step| is_down(&step.node));
        first.into_iter().chain(last).collect()
    }

    /// Returns the members that could not be reached just now.
    pub fn down(&self) -> BTreeSet<NodeId> {
        let down = self.lock();
        if down.is_empty() {
            return BTreeSet::new();
        }
        let now = Instant::now();
        down.iter().filter(|(_, down)| down.until > now).map(|(node, _)| *node).collect()
    }

    /// Returns what was said of a member when it could not be reached, while it is tried after the others.
    pub fn said(&self, node: &NodeId) -> Option<Arc<str>> {
        self.lock().get(node).filter(|down| down.until > Instant::now()).map(|down| down.said.clone())
    }

    /// Takes in how it went with a member.
    pub fn note(&self, member: &Member, ended: &Ended) {
        if let Ended::Unreachable(said) | Ended::Silent(said) = ended {
            let down = Down { until: Instant::now() + DOWN, said: said.clone() };
            if self.lock().insert(member.node, down).is_none() {
                info!(%member, %said, "a member of the mesh cannot be reached; others are tried first");
            }
        } else if self.lock().remove(&member.node).is_some() {
            info!(%member, "a member of the mesh is reached again");
        }
    }

    /// A member is there again: it is tried at its place.
    pub fn forget(&self, node: &NodeId) {
        self.lock().remove(node);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<NodeId, Down>> {
        self.down.lock().expect("nothing panics while it holds the links")
    }
}

/// What the members tried so far came to.
#[derive(Default)]
struct Tally {
    outcomes: BTreeMap<usize, Outcome>,
    ended: Option<Ended>,
}

impl Connection {
    /// Returns whether the host is a member of the mesh, by its key.
    pub fn is_member(&self) -> bool {
        self.target.nodes.is_some()
    }

    /// Returns which nodes it is between; `None`: the host is no member.
    pub fn nodes(&self) -> Option<Nodes> {
        self.target.nodes
    }

    /// Returns whether the host, a member of the mesh, takes this one for a member, too.
    pub fn knows_us(&self) -> bool {
        self.session.offered().mesh
    }
}

impl Lane {
    /// Tries to deliver to the first of these members that takes the message.
    pub(super) async fn deliver_to_members(
        &mut self,
        core: &Core,
        attempt: &mut Attempt,
        task: &Task<'_>,
        (next_hop, steps): (&NextHop, &[Arc<Member>]),
    ) -> Result {
        if !core.relocate(attempt, next_hop.key()) {
            return (Vec::new(), Ended::Elsewhere);
        }
        let has_own_way = sends_itself(core, task, next_hop);
        let (mut tally, mut hops) = (Tally::default(), None);
        let mut rest = Task { item: task.item, places: task.places.clone(), routing: task.routing, next: None };
        for member in core.links.in_order(steps) {
            let Some(sent) = self.over_member(core, &rest, &member, (next_hop, has_own_way), &mut hops).await else {
                // It waits for the member, unless another one was asked before.
                return tally
                    .ended
                    .map_or((Vec::new(), Ended::Elsewhere), |ended| (tally.outcomes.into_iter().collect(), ended));
            };
            if (!member.comes || has_own_way) && member.through.is_empty() {
                core.links.note(&member, &sent.ended);
            }
            core.note_member(&member, &sent.ended, next_hop.key());
            tally.add(sent);
            // Others might lead to the same one that is gone.
            if has_own_way && tally.is_silent() && goes_elsewhere(task, next_hop, core.links.down()) {
                return (Vec::new(), Ended::Elsewhere);
            }
            rest.places.retain(|place| tally.is_open(*place));
            if rest.places.is_empty() {
                break;
            }
            debug!(queue_id = %task.item.id, %member, recipients = rest.places.len(), "not taken; on to the next member");
        }
        match tally.ended {
            Some(ended) => (tally.outcomes.into_iter().collect(), ended),
            // The list is empty; the resolver says why.
            None => match task.routing.resolver.resolve(next_hop).await {
                Ok(_) => (Vec::new(), Ended::Elsewhere),
                Err(error) => refused(core, task, None, Reply::from(&error)).into(),
            },
        }
    }

    /// Sends to one member, again while only its replies are lost. `None`: nobody was asked.
    async fn over_member(
        &mut self,
        core: &Core,
        task: &Task<'_>,
        member: &Member,
        (next_hop, has_own_way): (&NextHop, bool),
        hops: &mut Option<std::result::Result<Vec<Hop>, ResolveError>>,
    ) -> Option<Sent> {
        self.go_to(core, &site_of(member));
        let mut tally = Tally::default();
        let mut part = Task { item: task.item, places: task.places.clone(), routing: task.routing, next: None };
        for _ in 0..=REPEATS_MAX {
            let kept = match member.comes {
                _ if !member.through.is_empty() => Some(self.over_others(core, &part, member).await),
                true => {
                    let waits = next_hop.members().len() == 1 && !has_own_way;
                    self.over_caller(core, &part, (&member.node, next_hop.key(), waits)).await
                }
                false => self.over_kept(core, &part).await,
            };
            let sent = match kept {
                Some(sent) => sent,
                None if member.comes => break,
                None => {
                    let resolver = &task.routing.resolver;
                    if hops.is_none() {
                        *hops = Some(resolver.resolve(next_hop).await.map(|found| found.hops));
                    }
                    match hops.as_ref().expect("just found") {
                        Ok(all) => {
                            let own = all.iter().filter(|hop| hop.node == Some(member.node)).cloned().collect();
                            self.over_hops(core, &part, own).await
                        }
                        Err(error) => refused(core, &part, None, Reply::from(error)),
                    }
                }
            };
            let unknown = sent.unknown.clone();
            tally.add(sent);
            if unknown.is_empty() {
                break;
            }
            info!(queue_id = %task.item.id, %member, recipients = unknown.len(), "the reply was lost; asking again");
            part.places = unknown;
        }
        let ended = tally.ended?;
        Some(Sent { outcomes: tally.outcomes.into_iter().collect(), unknown: Vec::new(), ended })
    }
}

impl Tally {
    /// Takes in what one try came to. What a host said tells more than that the next one is not there.
    fn add(&mut self, sent: Sent) {
        let is_silent = is_silent(&sent.ended);
        for (place, outcome) in sent.outcomes {
            if !(is_silent && self.outcomes.contains_key(&place)) {
                self.outcomes.insert(place, outcome);
            }
        }
        let rank = |ended: &Ended| match ended {
            Ended::Answered | Ended::Elsewhere => 0,
            Ended::Throttled(_) | Ended::Stale(_) => 1,
            Ended::Unreachable(_) => 2,
            Ended::Silent(_) => 3,
        };
        if self.ended.as_ref().is_none_or(|so_far| rank(&sent.ended) < rank(so_far)) {
            self.ended = Some(sent.ended);
        }
    }

    /// Returns whether nobody was heard.
    fn is_silent(&self) -> bool {
        self.ended.as_ref().is_some_and(is_silent)
    }

    fn is_open(&self, place: usize) -> bool {
        matches!(self.outcomes.get(&place), None | Some(Outcome::Deferred(_)))
    }
}

fn is_silent(ended: &Ended) -> bool {
    matches!(ended, Ended::Unreachable(_) | Ended::Silent(_))
}

/// Returns whether this host sends the mail of a task out itself when none of the members can be reached that would do
/// it for less: then it waits for none of them.
fn sends_itself(core: &Core, task: &Task<'_>, next_hop: &NextHop) -> bool {
    let Routing { router, .. } = task.routing;
    let has_home = |place: &usize| {
        let domain = task.item.envelope.recipients()[*place].forward_path.domain();
        domain.is_some_and(|domain| router.has_home(domain))
    };
    // Most mail between members goes to its home, and nobody sends that out.
    if !router.members().is_some_and(|members| members.sends_out()) || task.places.iter().any(has_home) {
        return false;
    }
    let steps = next_hop.members().iter().map(|member| member.node);
    goes_elsewhere(task, next_hop, core.links.down().into_iter().chain(steps).collect())
}

/// Returns whether the mail of a task has another destination than this one while these members cannot be reached.
fn goes_elsewhere(task: &Task<'_>, next_hop: &NextHop, down: BTreeSet<NodeId>) -> bool {
    let Routing { router, .. } = task.routing;
    let (mail, recipients) = (router.mail(task.item).without(down), task.item.envelope.recipients());
    let route = |place: &usize| router.route_mail(&recipients[*place].forward_path, &mail);
    task.places.iter().all(|place| key(&route(place)) != *next_hop.key())
}

impl Core {
    /// Returns what is looked at of a message to find its way now.
    pub fn mail<'a>(&self, routing: &Routing, item: &'a Item) -> Mail<'a> {
        routing.router.mail(item).without(self.links.down())
    }
}

/// Returns what names the connections with a member, by the members that pass on what is said over them.
fn site_of(member: &Member) -> Arc<str> {
    let through = member.through.iter().rev().map(|one| format!("<{}", one.node)).collect::<String>();
    format!("member:{}{through}", member.node).into()
}

/// Returns the passage of a message as the next member, to which this host is `me`, is to hear of it. One that
/// did not come through the mesh (a notification, mail from before there was one) is named here, the same at
/// every attempt.
pub fn onward(task: &Task<'_>, me: NodeId) -> Option<PassageToken> {
    let item = task.item;
    let known: Option<Passage> = item.envelope.params.passage.as_ref().and_then(|token| token.as_str().parse().ok());
    let passage = match known {
        // It came into the mesh here, maybe when this host had another key.
        Some(known) if known.visited().is_empty() => Passage::new(known.message, me),
        Some(known) => known,
        None => Passage::new(own_name(task.routing.router.members()?.me(), item), me),
    };
    passage.by_way_of(&me).ok().map(|passage| passage.token())
}

/// Names a message that did not come through the mesh, the same at every attempt: by it the next member knows a repeat.
fn own_name(me: NodeId, item: &Item) -> MeshMessageId {
    Naming::new("").finish(item.arrived.0, &format!("{me} {}", item.id))
}

#[cfg(test)]
mod tests {
    use postroad_mesh::record::{Reach, Said};
    use postroad_mesh::{SecretKey, StatementId};
    use postroad_queue::{Origin, QueueId, State, UnixMillis};
    use postroad_smtp::{Envelope, Recipient};

    use super::*;
    use crate::route::Members;

    fn node(n: u8) -> NodeId {
        SecretKey::from_seed(&[n; 32]).public().id()
    }

    #[test]
    fn what_this_host_says_itself_has_one_name_however_often_it_is_sent() {
        let item = |id| {
            let to = vec![Recipient::new("b@b.example".parse().expect("a path"))];
            let envelope = Envelope::new("".parse().expect("null"), Default::default(), to).expect("one");
            let (arrived, state) = (UnixMillis(5), State::fresh(1, UnixMillis(5), UnixMillis(9)));
            Item { id: QueueId::from_u64(id), arrived, envelope, origin: Origin::default(), content_octets: 1, state }
        };
        let first = own_name(node(1), &item(7));
        assert_eq!(own_name(node(1), &item(7)), first);
        assert_ne!(own_name(node(1), &item(8)), first);
        assert_ne!(own_name(node(2), &item(7)), first);
    }

    #[test]
    fn who_could_not_be_reached_is_tried_last_for_a_while() {
        let said = |n: u8| Said {
            reach: Reach::Public,
            ..Said::new(SecretKey::from_seed(&[n; 32]).public(), StatementId::from_octets([0; 32]), 1)
        };
        let members = Members::new(node(0), (0..4).map(|n| (node(n), said(n))).collect(), true);
        let steps: Vec<Arc<Member>> = (1..4).map(|n| members.member(&node(n)).expect("it is one").clone()).collect();
        let links = Links::default();
        let order = |links: &Links| links.in_order(&steps).iter().map(|step| step.node).collect::<Vec<_>>();
        assert_eq!(order(&links), [node(1), node(2), node(3)]);
        links.note(&steps[0], &Ended::Silent("no answer".into()));
        assert_eq!(order(&links), [node(2), node(3), node(1)]);
        assert_eq!(links.down(), [node(1)].into());
        assert_eq!((links.said(&node(1)).as_deref(), links.said(&node(2))), (Some("no answer"), None));
        links.note(&steps[1], &Ended::Unreachable("refused".into()));
        assert_eq!(order(&links), [node(3), node(1), node(2)]);
        // It said something, if only that it takes nothing now.
        links.note(&steps[0], &Ended::Answered);
        assert_eq!(order(&links), [node(1), node(3), node(2)]);
        links.forget(&node(2));
        assert_eq!((order(&links), links.down()), (vec![node(1), node(2), node(3)], BTreeSet::new()));
    }
}
