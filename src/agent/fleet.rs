//! The queues of other members: looking into them and steering them from here, and answering those who
//! do so with this one (docs/decisions/0017-queues-of-others.md).
//!
//! Each question carries a word that is good once ([`Words`]). Who may look: members
//! with the right `queue` and those that `[mesh] readers` names; who may change something: those that
//! `[mesh] operators` names, and nobody else. Both by their whole id: labels are what members say.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};

use postroad_mesh::question::{QUESTION_OCTETS_MAX, kind};
use postroad_mesh::{Caps, NodeId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::Agent;
use super::backend::Backend;
use super::words::Words;
use crate::admin::{Done, Failure, Id, Line, Request, Stop, perform};
use crate::metrics::Misdeed;
use crate::peer::{Answerer, AskError};
use crate::telemetry::escaped;

/// The version of question and answer.
const VERSION: u32 = 1;
/// Octets of items in one answer; what is around them takes the rest.
const ITEMS_OCTETS_MAX: usize = 48 * 1024;
/// Messages changed by one question, which must be done before its asker gives up.
const ACT_MESSAGES_MAX: u64 = 1000;
/// Destinations told at most.
const DESTINATIONS_MAX: u64 = 100;
/// How often something is asked whose word was gone.
const TRIES_MAX: usize = 3;

/// What a member asks; without a request, for a word.
#[derive(Serialize, Deserialize)]
struct Asked {
    v: u32,
    #[serde(default)]
    word: Option<String>,
    #[serde(default)]
    request: Option<Request>,
}

/// What a member says.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Told {
    v: u32,
    /// For the next question.
    word: Option<String>,
    answer: Option<Answer>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answer {
    Done {
        items: Vec<Value>,
        done: Box<Done>,
    },
    Refused(Failure),
    /// The word is not good, or not any more: nothing was done now.
    Stale,
}

/// Answers other members.
struct Steward {
    agent: Weak<Agent>,
    words: Words,
}

/// Lets other members ask this host.
pub(super) fn answer(agent: &Arc<Agent>) {
    let steward = Steward { agent: Arc::downgrade(agent), words: Words::default() };
    agent.context.peers.answer(kind::QUEUE, Arc::new(steward));
}

impl Answerer for Steward {
    fn answer(&self, from: NodeId, octets: Vec<u8>) -> Pin<Box<dyn Future<Output = Vec<u8>> + Send + '_>> {
        Box::pin(async move {
            let told = match (serde_json::from_slice::<Asked>(&octets), self.agent.upgrade()) {
                (Ok(asked), Some(agent)) if asked.v == VERSION => self.tell(agent, from, asked).await,
                _ => Told { answer: Some(refused("it does not understand the question", "")), ..Told::default() },
            };
            fitting(Told { v: VERSION, ..told })
        })
    }
}

impl Steward {
    async fn tell(&self, agent: Arc<Agent>, from: NodeId, asked: Asked) -> Told {
        let (may_read, may_act) = rights(&agent, &from);
        if !may_read {
            agent.context.peers.report(from, Misdeed::Asked, "what is in the queue of this host");
            let remedy = format!(
                "there: [mesh] readers = [\"{from}\"] and `postroad reload`; or on one that may admit: \
                 postroad mesh grant {} --caps queue",
                from.short()
            );
            let answer = Some(refused("it does not let this host look into its queue", &remedy));
            return Told { answer, ..Told::default() };
        }
        let now = agent.context.clock.now().0;
        let is_good = asked.word.is_some_and(|word| self.words.take(&from, &word, now));
        let answer = match asked.request {
            None => None,
            Some(_) if !is_good => Some(Answer::Stale),
            Some(request) if is_change(&request) && !may_act => {
                agent.context.peers.report(from, Misdeed::Asked, "to change the queue of this host");
                let remedy = format!("there: [mesh] operators = [\"{from}\"], and `postroad reload`");
                Some(refused("it does not let this host steer its queue", &remedy))
            }
            Some(request) => Some(work(agent, from, request).await),
        };
        Told { v: VERSION, word: self.words.give(from, now), answer }
    }
}

/// Returns whether a member may look into the queue of this host, and whether it may change something.
fn rights(agent: &Agent, from: &NodeId) -> (bool, bool) {
    let config = agent.config.load();
    let may_act = config.mesh.operators.contains(from);
    let has_right = agent.context.peers.view().member(from).is_some_and(|member| member.caps.has(Caps::QUEUE));
    (may_act || has_right || config.mesh.readers.contains(from), may_act)
}

fn is_change(request: &Request) -> bool {
    matches!(request, Request::Act { dry_run: false, .. })
}

/// Returns the request in a size that an answer holds; `None`: it is none about the queue.
fn bounded(request: Request) -> Option<Request> {
    let at_most = |limit: Option<u64>, most: u64| Some(limit.map_or(most, |limit| limit.min(most)));
    match request {
        Request::List { .. } | Request::Show { .. } | Request::Why { .. } => Some(request),
        Request::Stats { by, limit } => Some(Request::Stats { by, limit: at_most(limit, DESTINATIONS_MAX) }),
        Request::Act { action, filter, dry_run, limit } => {
            Some(Request::Act { action, filter, dry_run, limit: at_most(limit, ACT_MESSAGES_MAX) })
        }
        _ => None,
    }
}

/// Does what a member may ask for. A change is made to its end, whatever fits the answer.
async fn work(agent: Arc<Agent>, from: NodeId, request: Request) -> Answer {
    let Some(request) = bounded(request) else {
        return refused("only its queue can be asked about", "say the command on that host");
    };
    let by = format!("{} ({})", agent.context.peers.view().label(&from), from.short());
    if let Request::Act { action, dry_run: false, .. } = &request {
        info!(%from, by, action = action.as_str(), "a member steers the queue");
    }
    let is_list = matches!(request, Request::List { .. });
    // Their end says what all of it comes to.
    let may_be_cut = matches!(request, Request::Act { .. } | Request::Stats { .. });
    let (sender, mut lines) = mpsc::channel(1);
    let working = tokio::spawn(perform(Arc::new(Backend(agent)), request, by.into(), sender));
    let (mut items, mut octets) = (Vec::new(), 0);
    while let Some(line) = lines.recv().await {
        let Line::Item(item) = line else { continue };
        octets += item.to_string().len();
        if octets <= ITEMS_OCTETS_MAX {
            items.push(item);
        } else if is_list && !items.is_empty() {
            // The next page begins behind what fits.
            let next = items.last().and_then(|item: &Value| item["id"].as_str()?.parse::<Id>().ok());
            let done = Done { matched: items.len() as u64, next, ..Done::default() };
            return Answer::Done { items, done: Box::new(done) };
        }
    }
    match working.await {
        Ok(Ok(done)) if octets > ITEMS_OCTETS_MAX && !may_be_cut => too_long(done.changed),
        Ok(Ok(done)) => Answer::Done { items, done: Box::new(done) },
        Ok(Err(Stop::Failed(failure))) => Answer::Refused(failure),
        Ok(Err(Stop::Gone)) | Err(_) => refused("it failed at it", "its log says why"),
    }
}

fn too_long(changed: u64) -> Answer {
    let done = if changed > 0 { format!("; it changed {changed} messages") } else { String::new() };
    refused(&format!("what it has to say is longer than an answer may be{done}"), "look on that host")
}

fn refused(message: &str, remedy: &str) -> Answer {
    Answer::Refused(Failure::new(message, remedy))
}

/// Returns the answer in as many octets as are sent.
fn fitting(told: Told) -> Vec<u8> {
    let octets = |told: &Told| serde_json::to_vec(told).expect("views are plain JSON");
    let whole = octets(&told);
    if whole.len() <= QUESTION_OCTETS_MAX {
        return whole;
    }
    let changed = if let Some(Answer::Done { done, .. }) = &told.answer { done.changed } else { 0 };
    octets(&Told { answer: Some(too_long(changed)), ..told })
}

/// Asks another member about its queue, or to change it.
pub(super) async fn ask(agent: &Agent, name: &str, request: Request) -> Result<(Vec<Value>, Done), Failure> {
    let view = agent.context.peers.view();
    let me = view.me().ok_or_else(|| Failure::new("this host is in no mesh", "leave --peer out"))?;
    let names = "the names are in `postroad mesh status`";
    let node = view.find(name).map_err(|error| Failure::new(error.to_string(), names))?;
    if node == me {
        return Err(Failure::new(format!("{name} is this host itself"), "leave --peer out"));
    }
    let label = escaped(&view.label(&node));
    let silent = |error: String| {
        Failure::new(format!("{label} does not answer: {error}"), "`postroad mesh ping` and `status` tell more")
    };
    let mut word = None;
    for _ in 0..TRIES_MAX {
        // The first is for a word alone.
        let asked = Asked { v: VERSION, request: word.is_some().then(|| request.clone()), word };
        let may_be_done = asked.request.as_ref().is_some_and(is_change);
        let told = match put(agent, node, &asked).await {
            Ok(told) => told,
            Err(error) if may_be_done => {
                warn!(%node, error, "it is not known whether a member did what it was asked");
                return Err(unknown(&label, &error));
            }
            Err(error) => return Err(silent(error)),
        };
        match told.answer {
            Some(Answer::Done { items, done }) => return Ok((items, *done)),
            Some(Answer::Refused(failure)) => {
                return Err(Failure::new(format!("{label}: {}", escaped(&failure.message)), escaped(&failure.remedy)));
            }
            // It may have come there twice, by two ways.
            Some(Answer::Stale) if may_be_done => return Err(unknown(&label, "the question came late, or twice")),
            Some(Answer::Stale) | None => word = told.word,
        }
    }
    Err(silent("it takes no question".to_owned()))
}

fn unknown(label: &str, why: &str) -> Failure {
    let message = format!("it is not known whether {label} did it: {why}");
    Failure::new(message, format!("look first: postroad queue list --peer {label}"))
}

async fn put(agent: &Agent, node: NodeId, asked: &Asked) -> Result<Told, String> {
    let octets = serde_json::to_vec(asked).expect("a question is plain JSON");
    let answer = agent.context.peers.ask(node, kind::QUEUE, &octets).await;
    let octets = answer.map_err(|error: AskError| error.to_string())?;
    serde_json::from_slice(&octets).map_err(|error| format!("its answer cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_matter_of_the_queue_is_not_done_and_much_is_cut() {
        for other in
            [Request::Reload {}, Request::Status {}, Request::Trace { what: "x".into(), since_ms: None, limit: None }]
        {
            assert_eq!(bounded(other), None);
        }
        let act = |limit, dry_run| Request::Act {
            action: crate::admin::Action::Remove,
            filter: crate::admin::Filter::default(),
            dry_run,
            limit,
        };
        assert_eq!(bounded(act(None, false)), Some(act(Some(ACT_MESSAGES_MAX), false)));
        assert_eq!(bounded(act(Some(2), false)), Some(act(Some(2), false)));
        assert!(is_change(&act(None, false)) && !is_change(&act(None, true)));
        let items = vec![Value::from("x".repeat(QUESTION_OCTETS_MAX))];
        let told = Told { v: VERSION, word: None, answer: Some(Answer::Done { items, done: Box::default() }) };
        assert!(fitting(told).len() < 1000);
    }
}
