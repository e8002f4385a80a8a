//! Members that could not be reached and that mail waits for. Their mail is tried as soon as they are there again,
//! not when its pause is over: a new link with one shows it, or its answer to a question that is asked now and then.
//!
//! How often is asked depends neither on how many are away nor on how much waits for them, and a host for which nothing
//! waits asks nobody. Who answers and takes no mail is asked ever more rarely. Members that come for their mail need
//! none of this ([`Callers`](super::callers::Callers)), but where others pass octets on to them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use postroad_mesh::NodeId;
use postroad_mesh::spread::Profile;
use tokio::sync::Notify;
use tokio::time::sleep_until;
use tracing::info;

use super::attempt::Ended;
use super::dispatcher::Core;
use crate::route::Member;

/// How long a member is left alone before it is asked whether it is there; it doubles.
const PAUSE: Duration = Duration::from_secs(15);
const PAUSE_MAX: Duration = Duration::from_secs(120);
/// The same of one that answers and takes no mail.
const VAIN_PAUSE_MAX: Duration = Duration::from_secs(3600);
/// The time between two questions, whomever they are for.
const GAP: Duration = Duration::from_secs(30);

/// Members that mail waits for.
#[derive(Default)]
pub struct Awaited {
    all: Mutex<All>,
    /// There is one more.
    changed: Notify,
}

#[derive(Default)]
struct All {
    members: BTreeMap<NodeId, Wait>,
    /// When somebody may be asked again.
    free_at: Option<Instant>,
}

/// What is known of one of them.
struct Wait {
    /// Where mail waits for it.
    destination: Arc<str>,
    /// Who is asked for it, where that one would pass octets on to it.
    by: Option<NodeId>,
    /// The link with it when it was not reached: a later one shows that it is back.
    link: Option<u64>,
    pause: Duration,
    ask_at: Instant,
    /// It was there, and its mail is being tried.
    is_back: bool,
    /// How often that was in vain.
    in_vain: u32,
}

impl Awaited {
    /// Notes that a member was not reached.
    fn note_away(&self, node: NodeId, by: Option<NodeId>, destination: &Arc<str>, link: Option<u64>, now: Instant) {
        let mut all = self.lock();
        let wait = all.members.entry(node).or_insert_with(|| Wait {
            destination: destination.clone(),
            by,
            link,
            pause: PAUSE,
            ask_at: now + PAUSE,
            is_back: false,
            in_vain: 0,
        });
        (wait.destination, wait.by, wait.link) = (destination.clone(), by, link);
        if std::mem::take(&mut wait.is_back) {
            wait.in_vain += 1;
            wait.ask_at = now + (PAUSE * 2_u32.pow(wait.in_vain.min(16))).min(VAIN_PAUSE_MAX);
        }
        drop(all);
        self.changed.notify_one();
    }

    /// Notes that a member was reached.
    fn note_reached(&self, node: &NodeId) {
        self.lock().members.remove(node);
    }

    /// Returns when somebody is to be asked; `None`: nobody is waited for.
    fn ask_at(&self) -> Option<Instant> {
        let all = self.lock();
        let first = all.members.values().map(|wait| wait.ask_at).min()?;
        Some(all.free_at.map_or(first, |free_at| first.max(free_at)))
    }

    /// Returns who is to be asked now, if anybody, over whom, and where mail waits for it; it is not asked again for
    /// a while.
    fn ask(&self, now: Instant) -> Option<(NodeId, Option<NodeId>, Arc<str>)> {
        let mut all = self.lock();
        if all.free_at.is_some_and(|free_at| now < free_at) {
            return None;
        }
        let (node, wait) = all.members.iter_mut().min_by_key(|(_, wait)| wait.ask_at)?;
        if now < wait.ask_at {
            return None;
        }
        wait.ask_at = now + wait.pause;
        wait.pause = (wait.pause * 2).min(PAUSE_MAX);
        let asked = (*node, wait.by, wait.destination.clone());
        all.free_at = Some(now + GAP);
        Some(asked)
    }

    /// Notes that a member is there. Returns whether it was waited for.
    fn note_back(&self, node: &NodeId, link: Option<u64>) -> bool {
        let mut all = self.lock();
        let Some(wait) = all.members.get_mut(node) else { return false };
        wait.is_back = true;
        wait.link = link.max(wait.link);
        true
    }

    /// Notes that a member did not answer: it is away, and not only unwilling.
    fn note_silent(&self, node: &NodeId) {
        if let Some(wait) = self.lock().members.get_mut(node) {
            wait.in_vain = 0;
        }
    }

    /// Returns those that there is a link with which is later than when they were not reached.
    fn linked(&self, link_with: impl Fn(&NodeId) -> Option<u64>) -> Vec<NodeId> {
        let all = self.lock();
        let is_new = |(node, wait): &(&NodeId, &Wait)| link_with(node).is_some_and(|now| Some(now) > wait.link);
        all.members.iter().filter(is_new).map(|(node, _)| *node).collect()
    }

    fn lock(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Core {
    /// Notes what came of an attempt over a member, for mail of a destination.
    pub fn note_member(&self, member: &Member, ended: &Ended, destination: &Arc<str>) {
        let by = match member.through.as_slice() {
            [] if member.comes => return,
            [] => None,
            [one] => Some(one.node),
            // Nobody here knows whether those behind the first one are there.
            _ => return,
        };
        match ended {
            Ended::Unreachable(_) | Ended::Silent(_) | Ended::Throttled(_) => {
                let link = self.peers.link_with(&member.node);
                self.awaited.note_away(member.node, by, destination, link, Instant::now());
            }
            Ended::Answered | Ended::Elsewhere | Ended::Stale(_) => self.awaited.note_reached(&member.node),
        }
    }

    /// Waits for members that mail waits for, until the agent drains.
    pub async fn await_members(self: Arc<Core>) {
        let mut opened = self.peers.opened();
        while !self.is_draining() {
            let asking = async {
                match self.awaited.ask_at() {
                    Some(at) => sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = asking => self.ask_one(),
                () = self.awaited.changed.notified() => {}
                Ok(()) = opened.changed() => {
                    for node in self.awaited.linked(|node| self.peers.link_with(node)) {
                        self.is_back(&node);
                    }
                }
            }
        }
    }

    /// Asks the one whose turn it is whether it is there. A host that pays for what it says asks nobody.
    fn ask_one(self: &Arc<Core>) {
        let Some((node, by, destination)) = self.awaited.ask(Instant::now()) else { return };
        let waits = self.schedule().waiting(&destination) != (0, 0);
        if !waits || !self.peers.view().is_member(&node) {
            self.awaited.note_reached(&node);
            return;
        }
        if self.routing.load().config.mesh.profile == Profile::Metered {
            return;
        }
        let core = self.clone();
        self.spawn(async move {
            match core.peers.is_there(node, by).await {
                true => core.is_back(&node),
                false => core.awaited.note_silent(&node),
            }
        });
    }

    /// A member is there again: its mail is tried now.
    fn is_back(self: &Arc<Core>, node: &NodeId) {
        if self.awaited.note_back(node, self.peers.link_with(node)) {
            info!(member = %self.peers.view().label(node), "a member that mail waits for is there again");
            self.links.forget(node);
            self.make_due(node);
            self.start_ready();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: u8) -> NodeId {
        NodeId::from_octets([n; 32])
    }

    /// Asks for so long, as the shell does; returns after how many seconds whom.
    fn asked(awaited: &Awaited, from: Instant, seconds: u64) -> Vec<(u64, u8)> {
        let at = |second| from + Duration::from_secs(second);
        let asked = |second| awaited.ask(at(second)).map(|(node, ..)| (second, node.octets()[0]));
        (0..seconds).filter_map(asked).collect()
    }

    #[test]
    fn who_is_away_is_asked_ever_more_rarely_and_not_for_ever_so() {
        let (awaited, now) = (Awaited::default(), Instant::now());
        assert_eq!((awaited.ask_at(), asked(&awaited, now, 999)), (None, Vec::new()));
        awaited.note_away(node(1), None, &"mesh:1".into(), None, now);
        assert_eq!(awaited.ask_at(), Some(now + PAUSE));
        let seconds: Vec<u64> = asked(&awaited, now, 600).into_iter().map(|(second, _)| second).collect();
        assert_eq!(seconds, [15, 45, 75, 135, 255, 375, 495]);
        awaited.note_reached(&node(1));
        assert_eq!(awaited.ask_at(), None);
    }

    #[test]
    fn however_many_are_away_no_more_is_asked() {
        let (awaited, now) = (Awaited::default(), Instant::now());
        (0..100).for_each(|n| awaited.note_away(node(n), None, &"mesh:1".into(), None, now));
        let asked = asked(&awaited, now, 3600);
        assert!(asked.len() <= 120, "{} an hour", asked.len());
        let mut each: Vec<u8> = asked.iter().map(|(_, node)| *node).collect();
        each.sort_unstable();
        each.dedup();
        assert_eq!(each.len(), 100, "each has its turn");
    }

    #[test]
    fn who_answers_and_takes_no_mail_is_tried_ever_more_rarely() {
        let (awaited, begun) = (Awaited::default(), Instant::now());
        let away = |at| awaited.note_away(node(1), None, &"mesh:1".into(), None, at);
        away(begun);
        let mut tried = 0;
        for second in 0..24 * 3600 {
            let now = begun + Duration::from_secs(second);
            if awaited.ask(now).is_some() {
                assert!(awaited.note_back(&node(1), None));
                tried += 1;
                away(now);
            }
        }
        assert!((20..40).contains(&tried), "{tried} times a day");
    }

    #[test]
    fn a_link_counts_when_it_is_later() {
        let (awaited, now) = (Awaited::default(), Instant::now());
        awaited.note_away(node(1), None, &"mesh:1".into(), Some(7), now);
        awaited.note_away(node(2), None, &"mesh:2".into(), None, now);
        assert_eq!(awaited.linked(|_| Some(7)), [node(2)], "one may not have noticed yet that it is dead");
        assert_eq!(awaited.linked(|_| None), []);
        assert_eq!(awaited.linked(|_| Some(8)), [node(1), node(2)]);
        assert!(awaited.note_back(&node(1), Some(8)) && !awaited.note_back(&node(3), Some(8)));
        assert_eq!(awaited.linked(|_| Some(8)), [node(2)], "its mail is being tried");
    }
}
