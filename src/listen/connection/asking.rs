//! The shell's answers to what the machine cannot decide itself: the policy says who may do what, and the
//! queue opens a draft with our trace field on top.

use postroad_smtp::server::{Facts, Question, Verdict};
use postroad_smtp::trace::{Received, With};
use postroad_smtp::{ForwardPath, Reply, ReversePath};
use tracing::field::display;
use tracing::info;

use super::super::Context;
use super::super::completion::{Completion, Missing};
use super::super::content::Intake;
use super::super::passing;
use super::{Peer, Transaction};
use crate::metrics::Refusal;
use crate::policy::{Accepted, Client};

/// Whose mail a question is about, as far as it says so.
pub(super) type Parties<'a> = (Option<&'a ReversePath>, Option<&'a ForwardPath>);

/// Where questions are answered from.
pub(super) struct Asking<'a> {
    pub(super) context: &'a Context,
    pub(super) name: &'a str,
    pub(super) facts: &'a Facts,
}

impl Asking<'_> {
    /// Answers the machine's question: the queue where a draft is needed, the policy otherwise.
    pub(super) async fn decide(
        &self,
        peer: &mut Peer,
        transaction: &mut Transaction,
        question: Question<'_>,
    ) -> Verdict {
        let policy = &self.context.policy;
        let member = passing::member(self.context, peer.node.as_deref());
        let client = Client { peer: peer.ip, service: peer.service, user: self.facts.user.as_deref(), member };
        let (what, parties) = (question_name(&question), parties(&question));
        let now = self.context.clock.now();
        let answer = match question {
            Question::Connect => peer.permit.as_ref().map(drop).map_err(Clone::clone),
            Question::Turn(_) | Question::Via(_) => unreachable!("they are asked of `turn` and `through`"),
            Question::Helo(_) => Ok(()),
            Question::Mail { reverse_path, params, .. } => {
                let admitted = self.context.memory.admit_mail();
                let allowed = admitted.and_then(|()| policy.mail(&client, reverse_path, params, now));
                match allowed
                    .and_then(|()| passing::read_from(self.context, peer.node.as_deref(), params.passage.as_ref()))
                {
                    Ok(passage) => {
                        let priority = policy.priority(&client, params.priority);
                        *transaction = Transaction::begin(now, reverse_path, params.smtputf8, priority);
                        transaction.passage = passage;
                        match self.pace(peer, transaction) {
                            Ok(()) if priority != params.priority => return Verdict::AcceptUnprivileged,
                            paced => paced,
                        }
                    }
                    Err(reply) => Err(reply),
                }
            }
            Question::Rcpt { reverse_path, recipient, accepted } => {
                let exists = match policy.rcpt(&client, reverse_path, &recipient.forward_path, accepted) {
                    // Who cannot be told now hears of it later: delivery decides as much.
                    Err(_) if peer.is_gone() => Ok(()),
                    Ok(Accepted::Relay(grant)) if member.is_none() && !peer.is_gone() => {
                        self.exists_at_home(&mut peer.asked, grant, &recipient.forward_path).await
                    }
                    Ok(Accepted::Relay(_)) => self.charge(peer, transaction, &recipient.forward_path),
                    allowed => allowed.map(drop),
                };
                exists.map(|()| transaction.add(self.context, recipient, accepted))
            }
            Question::Content => self.open_draft(peer, transaction),
            Question::Auth(credentials) => {
                let login = policy.authenticate(peer.ip, &credentials.user, &credentials.password);
                match self.logged_in(Box::pin(login).await) {
                    Ok(verdict) => return verdict,
                    Err(reply) => Err(reply),
                }
            }
            Question::Cram(response) => {
                let login = policy.authenticate_cram(peer.ip, response);
                match self.logged_in(Box::pin(login).await) {
                    Ok(verdict) => return verdict,
                    Err(reply) => Err(reply),
                }
            }
            Question::Start(node) => match policy.start(&client).map(|()| self.context.turn.start(node)) {
                Ok(reply) if reply.is_positive() => return Verdict::Answer(reply),
                Ok(reply) | Err(reply) => Err(reply),
            },
        };
        match answer {
            Ok(()) => Verdict::Accept,
            Err(reply) => self.refuse(peer, what, parties, reply),
        }
    }

    /// Refuses what was asked, and says in the log whose it was: that is what is searched for when somebody
    /// complains.
    pub(super) fn refuse(&self, peer: &Peer, what: &str, (from, to): Parties<'_>, reply: Reply) -> Verdict {
        let (helo, user) = (self.facts.helo.as_deref(), self.facts.user.as_deref());
        let (from, to, uid) = (from.map(display), to.map(display), peer.owner.map(|owner| owner.uid));
        info!(session = %self.name, peer = %peer.ip, helo, user, uid, what, from, to, %reply, "refused");
        self.context.metrics.count_refusal(Refusal::of(&reply));
        if reply.code.get() == 421 { Verdict::Close(reply) } else { Verdict::Refuse(reply) }
    }

    /// Opens a draft with our trace field on top.
    fn open_draft(&self, peer: &Peer, transaction: &mut Transaction) -> Result<(), Reply> {
        self.context.memory.admit_content()?;
        let now = self.context.clock.now();
        let draft = self.context.queue.draft(now).map_err(|error| self.context.no_draft(&error))?;
        self.context.has_room();
        let config = self.context.config.load();
        let id = draft.id().to_string();
        let mid = transaction.passage.as_ref().map(|passage| passage.message.to_string());
        let keyword = with(self.facts, transaction.smtputf8).keyword();
        let received = Received {
            // Where a program of this host hands it in there is no host that it is from.
            helo: peer.owner.is_none().then(|| self.facts.helo.as_deref().unwrap_or("unknown")),
            peer: peer.owner.is_none().then_some(peer.ip),
            by: &config.hostname,
            with: peer.owner.map_or(keyword, |_| "local"),
            uid: peer.owner.map(|owner| owner.uid),
            tls: self.facts.tls.as_ref(),
            id: &id,
            mesh_id: mid.as_deref(),
            recipient: transaction.recipient.as_ref(),
            priority: transaction.priority,
            unix_ms: now.0,
        };
        let completion = peer.service.is_submission().then(|| {
            Completion::new(Missing {
                date: now,
                message_id: format!("{id}@{}", config.hostname),
                from: transaction.reverse_path.clone(),
            })
        });
        let naming = match transaction.passage {
            Some(_) => None,
            None => passing::naming(self.context, transaction.reverse_path.as_deref().unwrap_or_default()),
        };
        transaction.intake = Some(Box::new(Intake::begin(draft, &received.to_string(), completion, naming)));
        Ok(())
    }
}

fn parties<'a>(question: &Question<'a>) -> Parties<'a> {
    match question {
        Question::Mail { reverse_path, .. } => (Some(*reverse_path), None),
        Question::Rcpt { reverse_path, recipient, .. } => (Some(*reverse_path), Some(&recipient.forward_path)),
        _ => (None, None),
    }
}

fn question_name(question: &Question<'_>) -> &'static str {
    match question {
        Question::Connect => "connect",
        Question::Helo(_) => "helo",
        Question::Mail { .. } => "mail",
        Question::Rcpt { .. } => "rcpt",
        Question::Content => "content",
        Question::Auth(_) | Question::Cram(_) => "auth",
        Question::Turn(_) => "turn",
        Question::Start(_) => "start",
        Question::Via(_) => "through",
    }
}

pub(super) fn with(facts: &Facts, smtputf8: bool) -> With {
    With { lmtp: false, esmtp: facts.esmtp, tls: facts.tls.is_some(), authenticated: facts.user.is_some(), smtputf8 }
}
