//! Questions to other members and from them. One that cannot be reached is asked through a neighbour, and
//! that one's neighbour at most: hosts that only dial out are reached over the links that they keep.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use postroad_mesh::NodeId;
use postroad_mesh::link::Message;
use postroad_mesh::node::Signature;
use postroad_mesh::question::{Answer, Fault, QUESTION_OCTETS_MAX, Question, VIA_MAX, kind};
use postroad_mesh::record::Reach;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::{Identity, Peers};
use crate::clock::millis;
use crate::metrics::Misdeed;

/// How long a question may take in all, and over one neighbour.
const ASK_LIMIT: Duration = Duration::from_secs(15);
const NEIGHBOUR_LIMIT: Duration = Duration::from_secs(5);
/// Questions of others that are worked on at a time.
pub(super) const ANSWERING_MAX: usize = 64;
/// How long a link that was made for a question is kept for the next one.
const PASSING_LINGER: Duration = Duration::from_secs(30);
/// The most neighbours that are asked whether they know the way.
const NEIGHBOURS_MAX: usize = 8;

/// Answers questions of one kind.
pub trait Answerer: Send + Sync {
    /// Returns the answer to a question of a member; at most [`QUESTION_OCTETS_MAX`] octets of it are sent.
    fn answer(&self, from: NodeId, octets: Vec<u8>) -> Pin<Box<dyn Future<Output = Vec<u8>> + Send + '_>>;
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// This host is in no mesh, or the node is no member.
    #[error("it is no member of the mesh")]
    NoMember,
    /// The question is too long.
    #[error("the question is longer than {QUESTION_OCTETS_MAX} octets")]
    TooLong,
    /// Nobody answered in time.
    #[error("it did not answer in time")]
    Late,
    /// The node, or somebody on the way, said why not.
    #[error("{0}")]
    Fault(#[from] Fault),
    /// The answer was not signed by the node.
    #[error("somebody on the way altered the answer")]
    Forged,
}

type Said = Result<(Box<[u8]>, Signature), Fault>;

impl Peers {
    /// Lets questions of this kind be answered.
    pub fn answer(&self, kind: u8, answerer: Arc<dyn Answerer>) {
        self.0.answerers.rcu(|answerers| {
            let mut answerers = (**answerers).clone();
            answerers.insert(kind, answerer.clone());
            answerers
        });
    }

    /// Asks a member, over the link with it, over one made for it, or through neighbours.
    ///
    /// # Errors
    /// Why there is no answer; none takes longer than 15 seconds.
    pub async fn ask(&self, node: NodeId, kind: u8, octets: &[u8]) -> Result<Vec<u8>, AskError> {
        if octets.len() > QUESTION_OCTETS_MAX {
            return Err(AskError::TooLong);
        }
        let first = self.identity_to(&node).ok_or(AskError::NoMember)?;
        let answered = self.ask_as(&first, node, kind, octets).await;
        // Somebody on the way may have heard of another key than the node itself.
        match (self.identities().find(|other| other.id() != first.id()), &answered) {
            (Some(other), Err(AskError::Fault(Fault::Stranger))) => self.ask_as(&other, node, kind, octets).await,
            _ => answered,
        }
    }

    /// Returns whether a member answers, over the link with it or one made for it; `by`: over the link with that
    /// member, for one that nobody dials. No others are asked, so it costs as little in a large mesh as in a small one.
    pub async fn is_there(&self, node: NodeId, by: Option<NodeId>) -> bool {
        let (view, at) = (self.view(), by.unwrap_or(node));
        let (Some(me), Some(member), Some(identity)) = (view.me(), view.member(&node), self.identity_to(&node)) else {
            return false;
        };
        let question = Question::new(&identity.key, node, self.next_number(), kind::PING, Box::default());
        // As if it had come from afar: whoever has no link with the member passes it on to nobody.
        let via = by.map(|_| vec![me; VIA_MAX]).unwrap_or_default();
        let is_public = view.record(&at).is_some_and(|said| said.reach == Reach::Public);
        let answered = async {
            let is_linked = self.linked().contains(&at) || is_public && self.link_in_passing(at).await;
            if is_linked { self.over(at, Question { via, ..question.clone() }).await } else { Err(Fault::NoWay) }
        };
        let answered = timeout(2 * NEIGHBOUR_LIMIT, answered).await.unwrap_or(Err(Fault::NoWay));
        answered.is_ok_and(|(octets, signature)| question.is_answered(&member.key, &octets, &signature))
    }

    /// Asks under one of this host's keys.
    pub(super) async fn ask_as(
        &self,
        identity: &Identity,
        node: NodeId,
        kind: u8,
        octets: &[u8],
    ) -> Result<Vec<u8>, AskError> {
        let view = self.view();
        let key = view.member(&node).filter(|_| view.me().is_some()).ok_or(AskError::NoMember)?.key;
        let question = Question::new(&identity.key, node, self.next_number(), kind, octets.into());
        let said = timeout(ASK_LIMIT, self.pass(question.clone(), None)).await.map_err(|_| AskError::Late)?;
        let (octets, signature) = said?;
        if question.is_answered(&key, &octets, &signature) { Ok(octets.into()) } else { Err(AskError::Forged) }
    }

    /// Takes a question that came over the link with `from`, and answers it there.
    pub(super) fn asked(&self, from: NodeId, question: Question) {
        let number = question.number;
        // Nothing forged is passed on, so whoever passes it on here is who is to be reported.
        if self.view().member(&question.from).is_some_and(|asker| !question.is_from(&asker.key)) {
            self.report(from, Misdeed::Question, &format!("in the name of {}", question.from.short()));
            self.send(&from, Message::Answer(Answer { number, said: Err(Fault::Stranger) }));
            return;
        }
        let Ok(turn) = self.0.answering.clone().try_acquire_owned() else {
            self.send(&from, Message::Answer(Answer { number, said: Err(Fault::Busy) }));
            return;
        };
        let peers = self.clone();
        tokio::spawn(async move {
            let _held_while_it_is_answered = turn;
            let said = timeout(ASK_LIMIT, peers.pass(question, Some(from))).await.unwrap_or(Err(Fault::NoWay));
            peers.send(&from, Message::Answer(Answer { number, said }));
        });
    }

    /// Takes an answer that came over the link with `from`.
    pub(super) fn answered(&self, from: NodeId, answer: Answer) {
        let mut waiting = self.waiting();
        // Numbers are easily guessed; only the node that was asked answers.
        if waiting.get(&answer.number).is_some_and(|(node, _)| *node == from)
            && let Some((_, waiter)) = waiting.remove(&answer.number)
        {
            // Whoever asked may have given up.
            let _ = waiter.send(answer.said);
        }
    }

    /// Answers a question, or gets it answered.
    async fn pass(&self, question: Question, from: Option<NodeId>) -> Said {
        let view = self.view();
        let me = view.me().ok_or(Fault::Stranger)?;
        if let Some(identity) = self.identity_of(&question.to) {
            return self.answer_here(&identity, &question).await;
        }
        if !view.is_member(&question.from) || !view.is_member(&question.to) {
            return Err(Fault::Stranger);
        }
        let to = question.to;
        let is_public = view.record(&to).is_some_and(|said| said.reach == Reach::Public);
        if self.linked().contains(&to) || is_public && self.link_in_passing(to).await {
            return self.over(to, question).await;
        }
        if question.via.len() >= VIA_MAX {
            return Err(Fault::NoWay);
        }
        let mut question = question;
        question.via.push(me);
        let is_new = |node: &NodeId| Some(*node) != from && *node != question.from && !question.via.contains(node);
        let neighbours: Vec<NodeId> = self.linked().into_iter().filter(is_new).take(NEIGHBOURS_MAX).collect();
        for neighbour in neighbours {
            match timeout(NEIGHBOUR_LIMIT, self.over(neighbour, question.clone())).await {
                Ok(Err(Fault::NoWay | Fault::Busy)) | Err(_) => {}
                Ok(said) => return said,
            }
        }
        Err(Fault::NoWay)
    }

    fn linked(&self) -> Vec<NodeId> {
        self.state().as_ref().map(|state| state.links().into_keys().collect()).unwrap_or_default()
    }

    /// Opens a link for questions; returns whether there is one. Of those who want one at the same time
    /// the first opens it for all.
    async fn link_in_passing(&self, node: NodeId) -> bool {
        let turn = {
            let mut linking = self.0.linking.lock().unwrap_or_else(PoisonError::into_inner);
            linking.retain(|_, turn| Arc::strong_count(turn) > 1);
            linking.entry(node).or_default().clone()
        };
        let _alone = turn.lock().await;
        if self.linked().contains(&node) {
            return true;
        }
        let is_open = matches!(timeout(NEIGHBOUR_LIMIT, self.link_to(node, true)).await, Ok(Ok(())));
        if is_open {
            let peers = self.clone();
            tokio::spawn(async move { peers.end_when_idle(node).await });
        }
        is_open
    }

    async fn end_when_idle(&self, node: NodeId) {
        let is_over = |peers: &Peers| {
            let idle_since = peers.now().saturating_sub(millis(PASSING_LINGER));
            peers.state().as_mut().is_none_or(|state| state.end_passing(&node, idle_since))
        };
        while !is_over(self) {
            sleep(PASSING_LINGER).await;
        }
    }

    /// Asks over the link with a node.
    async fn over(&self, node: NodeId, question: Question) -> Said {
        let number = self.next_number();
        let (waiter, answer) = oneshot::channel();
        self.waiting().insert(number, (node, waiter));
        let _forgotten_at_the_end = Waiting(self, number);
        let now = self.now();
        if let Some(state) = self.state().as_mut() {
            state.note_question(&node, now);
        }
        if !self.send(&node, Message::Ask(Question { number, ..question })) {
            return Err(Fault::NoWay);
        }
        answer.await.unwrap_or(Err(Fault::NoWay))
    }

    async fn answer_here(&self, identity: &Identity, question: &Question) -> Said {
        let view = self.view();
        let asker = view.member(&question.from).ok_or(Fault::Stranger)?;
        if !question.is_from(&asker.key) {
            return Err(Fault::Stranger);
        }
        let mut octets = match (question.kind, self.0.answerers.load().get(&question.kind)) {
            (kind::PING, _) => Vec::new(),
            (_, Some(answerer)) => answerer.clone().answer(question.from, question.octets.to_vec()).await,
            (_, None) => return Err(Fault::NotAsked),
        };
        octets.truncate(QUESTION_OCTETS_MAX);
        question.answer(&identity.key, octets.into()).said
    }
}

/// A question that was asked and waits for its answer.
struct Waiting<'a>(&'a Peers, u64);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting().remove(&self.1);
    }
}
