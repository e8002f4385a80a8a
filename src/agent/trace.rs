//! Following a message through the mesh: each member that had it is asked what it knows, and what it says
//! names the next. Questions of others are answered here, to those who may ask.
//!
//! Who may: the member at which the message came into the mesh, the home of a recipient (which sees the
//! recipients of its own domains), and members with the right `trace`. The others hear that they may not.
//!
//! Where a member that took a message over knows nothing of it, or cannot be asked, the thread is taken up again at
//! the homes of the recipients, and at those that send mail out: what is lost on the way is a gap, and no end.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use postroad_mesh::question::{QUESTION_OCTETS_MAX, kind};
use postroad_mesh::{Caps, NodeId};
use postroad_queue::UnixMillis;
use postroad_smtp::Mailbox;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::Agent;
use super::backend::Backend;
use super::words::Words;
use crate::admin::trace::{SilentView, TraceView};
use crate::admin::trace_here;
use crate::admin::view::Time;
use crate::journal::{Key, Question};
use crate::metrics::Misdeed;
use crate::peer::{Answerer, View};

/// The version of question and answer.
const VERSION: u32 = 1;
/// How long a member may take; a person waits.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Members asked for one message, and messages followed for one person, at most.
const NODES_MAX: usize = 16;
const MESSAGES_MAX: usize = 8;
/// Copies of one message that a member tells of, at most.
const COPIES_MAX: usize = 4;
/// How often a member is asked whose word was gone.
const TRIES_MAX: usize = 3;
/// Said of a member that took a message over and knows nothing of it.
const NOTHING_KNOWN: &str = "its journal has nothing of it, and may lack the second before its agent was killed";

/// What a member asks.
#[derive(Serialize, Deserialize)]
struct Asked {
    v: u32,
    /// The message's id in the mesh.
    mesh_id: String,
    /// What makes the question good; without one, it is for that alone.
    #[serde(default)]
    word: Option<String>,
}

/// What a member says.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Told {
    v: u32,
    /// What it knows of the message.
    views: Vec<TraceView>,
    /// It knows something that who asks may not hear.
    is_refused: bool,
    /// The word is not good, or not any more.
    is_stale: bool,
    /// For the next question.
    word: Option<String>,
}

/// Answers other members.
struct Tracer {
    agent: Weak<Agent>,
    words: Words,
}

/// Lets other members ask this host.
pub(super) fn answer(agent: &Arc<Agent>) {
    let tracer = Tracer { agent: Arc::downgrade(agent), words: Words::default() };
    agent.context.peers.answer(kind::TRACE, Arc::new(tracer));
}

impl Answerer for Tracer {
    fn answer(&self, from: NodeId, octets: Vec<u8>) -> Pin<Box<dyn Future<Output = Vec<u8>> + Send + '_>> {
        Box::pin(async move {
            let told = match serde_json::from_slice::<Asked>(&octets) {
                Ok(asked) if asked.v == VERSION => match self.agent.upgrade() {
                    Some(agent) => self.tell_once(agent, from, asked).await,
                    None => Told::default(),
                },
                _ => Told::default(),
            };
            fitting(Told { v: VERSION, ..told })
        })
    }
}

impl Tracer {
    async fn tell_once(&self, agent: Arc<Agent>, from: NodeId, asked: Asked) -> Told {
        let now = agent.context.clock.now().0;
        let is_good = asked.word.is_some_and(|word| self.words.take(&from, &word, now));
        let told = match is_good {
            true => tell(agent, from, asked.mesh_id).await,
            false => Told { is_stale: true, ..Told::default() },
        };
        Told { word: self.words.give(from, now), ..told }
    }
}

async fn tell(agent: Arc<Agent>, from: NodeId, mesh_id: String) -> Told {
    let question = Question { key: Key::Mesh(mesh_id), since: UnixMillis(0), messages_max: COPIES_MAX };
    let (peers, members) = (agent.context.peers.clone(), agent.context.peers.view());
    let found = trace_here(&Arc::new(Backend(agent)), &question).await;
    let mut views = found.map(|(views, _)| views).unwrap_or_default();
    let known = views.len();
    views.retain_mut(|view| allow(&members, &from, view));
    let is_refused = views.len() < known;
    if is_refused {
        peers.report(from, Misdeed::Asked, "what became of a message of others");
    }
    Told { is_refused, views, ..Told::default() }
}

/// Returns whether a member may hear of a message, and conceals what it may not.
fn allow(members: &View, from: &NodeId, view: &mut TraceView) -> bool {
    let has_right = members.member(from).is_some_and(|member| member.caps.has(Caps::TRACE));
    let origin: Option<NodeId> = view.mesh.as_ref().and_then(|mesh| mesh.origin.parse().ok());
    if has_right || origin.is_some_and(|origin| members.current(&origin) == members.current(from)) {
        return true;
    }
    let Some(said) = members.record(&members.current(from)).or_else(|| members.record(from)) else { return false };
    let is_its_own = |address: &str| {
        let mailbox: Option<Mailbox> = address.parse().ok();
        mailbox.and_then(|mailbox| mailbox.domain().cloned()).is_some_and(|domain| said.serves.contains(&domain))
    };
    let is_home = view.events.iter().flat_map(|event| &event.recipients).any(|name| is_its_own(name));
    view.conceal(is_its_own);
    is_home
}

/// Returns the answer in as many octets as are sent.
fn fitting(mut told: Told) -> Vec<u8> {
    let octets = |told: &Told| serde_json::to_vec(told).expect("views are plain JSON");
    let whole = octets(&told);
    if whole.len() <= QUESTION_OCTETS_MAX {
        return whole;
    }
    told.views.iter_mut().for_each(TraceView::shorten);
    while octets(&told).len() > QUESTION_OCTETS_MAX && told.views.pop().is_some() {}
    octets(&told)
}

/// Asks the members that had these messages.
pub(super) async fn follow(agent: &Arc<Agent>, views: &[TraceView]) -> (Vec<TraceView>, Vec<SilentView>) {
    let (mut found, mut silent) = (Vec::new(), Vec::new());
    let ids: BTreeSet<&str> = views.iter().filter_map(|view| Some(view.mesh.as_ref()?.id.as_str())).collect();
    // They begin with the time: the newest are followed.
    for id in ids.into_iter().rev().take(MESSAGES_MAX) {
        let own: Vec<&TraceView> = views.iter().filter(|view| is_of(view, id)).collect();
        let (more, unheard) = follow_one(agent, id, &own).await;
        found.extend(more);
        silent.extend(unheard);
    }
    (found, silent)
}

fn is_of(view: &TraceView, id: &str) -> bool {
    view.mesh.as_ref().is_some_and(|mesh| mesh.id == id)
}

async fn follow_one(agent: &Arc<Agent>, id: &str, own: &[&TraceView]) -> (Vec<TraceView>, Vec<SilentView>) {
    let members = agent.context.peers.view();
    let (mut found, mut silent): (Vec<TraceView>, _) = (Vec::new(), Vec::new());
    let mut heard: BTreeSet<NodeId> = members.me().into_iter().collect();
    let mut next: BTreeSet<NodeId> = own.iter().flat_map(|view| named(&members, view)).collect();
    let (mut is_lost, mut is_guess) = (false, false);
    loop {
        next.retain(|node| !heard.contains(node));
        if next.is_empty() && is_lost && !is_guess {
            is_guess = true;
            next = ends(&members, own.iter().copied().chain(&found));
            next.retain(|node| !heard.contains(node));
        }
        if next.is_empty() || heard.len() > NODES_MAX {
            return (found, silent);
        }
        heard.extend(&next);
        let mut asking = JoinSet::new();
        for node in std::mem::take(&mut next) {
            let (agent, id) = (agent.clone(), id.to_owned());
            asking.spawn(async move { (node, ask(&agent, node, id).await) });
        }
        for (node, answer) in asking.join_all().await {
            let at = own.iter().copied().chain(&found).filter_map(|view| handed_over(&members, view, &node)).max();
            let why = match answer {
                Ok(views) if views.is_empty() && at.is_some() => NOTHING_KNOWN.to_owned(),
                Ok(views) => {
                    let views = views.into_iter().filter(|view| is_of(view, id));
                    let views = views.map(|view| TraceView { host: members.label(&node), ..view });
                    found.extend(views.inspect(|view| next.extend(named(&members, view))));
                    continue;
                }
                Err(why) if is_guess && at.is_none() => format!("it may have come there; {why}"),
                Err(why) => why,
            };
            is_lost = true;
            let (host, mesh_id) = (members.label(&node), id.to_owned());
            silent.push(SilentView { host, node: node.to_string(), mesh_id, at, why });
        }
    }
}

/// Asks a member; the first question is for a word alone.
async fn ask(agent: &Agent, node: NodeId, mesh_id: String) -> Result<Vec<TraceView>, String> {
    let mut asked = Asked { v: VERSION, mesh_id, word: None };
    let until = Instant::now() + ANSWER_LIMIT;
    for _ in 0..TRIES_MAX {
        let octets = serde_json::to_vec(&asked).expect("a question is plain JSON");
        let octets = match timeout_at(until, agent.context.peers.ask(node, kind::TRACE, &octets)).await {
            Ok(answer) => answer.map_err(|error| error.to_string())?,
            Err(_) => return Err("it did not answer in time".to_owned()),
        };
        match serde_json::from_slice::<Told>(&octets) {
            // It may have come there twice, by two ways.
            Ok(told) if told.is_stale => asked.word = told.word,
            Ok(told) if told.is_refused && told.views.is_empty() => {
                return Err("it does not tell this host, which has no right `trace` there".to_owned());
            }
            Ok(told) => return Ok(told.views),
            Err(error) => return Err(format!("its answer cannot be read: {error}")),
        }
    }
    Err("it takes no question".to_owned())
}

/// Returns the members at which a message may have come to its end: the homes of its recipients and those that hold
/// mail for these, and for other recipients whoever sends mail out.
fn ends<'a>(members: &View, views: impl Iterator<Item = &'a TraceView>) -> BTreeSet<NodeId> {
    let names: BTreeSet<&String> = views.flat_map(|view| &view.events).flat_map(|event| &event.recipients).collect();
    let domains = names.into_iter().filter_map(|name| name.parse::<Mailbox>().ok()?.domain().cloned());
    let mut ends = BTreeSet::new();
    for domain in domains.collect::<BTreeSet<_>>() {
        let homes = members.map().map(|map| map.homes(&domain)).unwrap_or_default();
        if homes.is_empty() {
            let senders = members.records().iter().filter(|(_, said)| !said.egress.is_empty());
            ends.extend(senders.map(|(node, _)| *node));
        }
        let pickups = homes.iter().filter_map(|home| members.record(home)).flat_map(|said| &said.pickups);
        ends.extend(pickups.chain(homes));
    }
    ends.into_iter().take(NODES_MAX).collect()
}

/// Returns the members that a view names: where the message came in, where it was before, and to whom
/// it was handed over.
fn named(members: &View, view: &TraceView) -> Vec<NodeId> {
    let before = view.mesh.iter().flat_map(|mesh| mesh.visited.iter().chain([&mesh.origin]));
    let after = view.events.iter().filter(|event| event.what == "delivered");
    let after = after.filter_map(|event| short_id(event.remote.as_deref()?));
    let names = before.map(String::as_str).chain(after);
    names.filter_map(|name| members.find(name).ok()).collect()
}

/// Returns when a message was handed over to a node.
fn handed_over(members: &View, view: &TraceView, node: &NodeId) -> Option<Time> {
    let is_there = |remote: &str| short_id(remote).and_then(|name| members.find(name).ok()) == Some(*node);
    let events = view.events.iter().filter(|event| event.what == "delivered");
    events.filter(|event| event.remote.as_deref().is_some_and(is_there)).map(|event| event.at).max()
}

/// Returns the short id in the name of a member, `label (id) [address]`. No name of another host has a
/// parenthesis.
fn short_id(remote: &str) -> Option<&str> {
    let (_, behind) = remote.rsplit_once(" (")?;
    Some(behind.split_once(')')?.0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_member_is_known_by_its_short_id() {
        assert_eq!(short_id("hub (k5x2q7ab) [192.0.2.1]"), Some("k5x2q7ab"));
        assert_eq!(short_id("mx.example.com [192.0.2.1]"), None);
    }

    #[test]
    fn an_answer_fits_however_much_there_is_to_tell() {
        let at = Time(UnixMillis(1_800_000_000_000));
        let event =
            json!({ "at": at, "what": "deferred", "recipients": [], "recipients_total": 0, "reply": "x".repeat(200) });
        let view = json!({ "id": "0000000000001", "host": "a", "events": vec![event; 2000] });
        let view: TraceView = serde_json::from_value(view).expect("a view");
        let octets = fitting(Told { v: VERSION, views: vec![view; 3], ..Told::default() });
        assert!(octets.len() <= QUESTION_OCTETS_MAX);
        let told: Told = serde_json::from_slice(&octets).expect("JSON");
        assert_eq!((told.views.len(), told.views[0].events.len(), told.views[0].events_more), (3, 20, 1980));
    }
}
