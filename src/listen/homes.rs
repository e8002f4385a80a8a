//! Which recipients exist at other members of the mesh: asked over the links, remembered for a while.
//!
//! Whoever writes to a mailbox that does not exist hears so at the first host of the mesh, so that no
//! member has to send a notification to a sender who may be forged. What strangers can make this host ask
//! is bounded for each session and each home; a home that does not answer is left alone for a while.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use postroad_mesh::NodeId;
use postroad_mesh::question::kind;
use postroad_mesh::recipient::{Asked, Told};
use postroad_smtp::Mailbox;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::metrics::{Metrics, Recipient};
use crate::peer::{AskError, Peers};

/// How long a home that did not answer is not asked again.
const SILENCE: Duration = Duration::from_secs(30);
/// How long it is remembered that a recipient exists, and that it does not, or that its domain ends elsewhere: that
/// may change any time.
const EXISTS_AGE: Duration = Duration::from_secs(3600);
const UNKNOWN_AGE: Duration = Duration::from_secs(300);
/// The most that is remembered of each kind; the oldest is forgotten for a new one.
pub const REMEMBERED_MAX: usize = 10_000;
/// The most recipients of one session that are asked about.
pub const SESSION_QUESTIONS_MAX: u16 = 50;
/// The most questions that wait for one home at a time, and the most in a [`WINDOW`].
const WAITING_MAX: u16 = 16;
const WINDOW_QUESTIONS_MAX: u16 = 300;
const WINDOW: Duration = Duration::from_secs(10);

/// What is known of a recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It exists.
    Exists,
    /// It does not.
    Unknown,
    /// Its home cannot be asked now, or cannot tell.
    Unsaid,
    /// Nobody was asked: there are too many questions.
    Unasked,
}

/// What the homes said so far.
#[derive(Debug, Default)]
pub struct Homes(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    exists: Remembered,
    unknown: Remembered,
    /// Homes with domains whose mail goes on from there: nobody has to ask these about each recipient.
    onward: Remembered,
    homes: HashMap<NodeId, Home>,
}

/// Names, the oldest first; all of them are kept equally long.
#[derive(Debug, Default)]
struct Remembered {
    until: HashMap<Box<str>, Instant>,
    order: VecDeque<Box<str>>,
}

#[derive(Debug)]
struct Home {
    waiting: u16,
    window: Instant,
    asked: u16,
    silent_until: Option<Instant>,
}

/// Whether a home may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    Ask,
    Silent,
    TooMany,
}

/// Who asks homes; a seam for tests.
trait Line {
    /// Asks whether a recipient exists.
    fn ask(&self, home: NodeId, question: &[u8]) -> impl Future<Output = Result<Vec<u8>, AskError>> + Send;

    /// Returns what a home is called, for people.
    fn label(&self, home: &NodeId) -> String;
}

impl Line for Peers {
    async fn ask(&self, home: NodeId, question: &[u8]) -> Result<Vec<u8>, AskError> {
        Peers::ask(self, home, kind::RECIPIENT, question).await
    }

    fn label(&self, home: &NodeId) -> String {
        self.view().label(home)
    }
}

impl Homes {
    /// Says whether a recipient exists at its homes; takes `limit` at most, for all of them together. `asked`
    /// counts the questions of one session.
    pub async fn look_up(
        &self,
        peers: &Peers,
        metrics: &Metrics,
        homes: &[NodeId],
        mailbox: &Mailbox,
        limit: Duration,
        asked: &mut u16,
    ) -> Known {
        let (name, domain) = (mailbox.to_string(), mailbox.host.to_string());
        let homes = {
            let (state, now) = (self.lock(), Instant::now());
            if let Some(known) = state.recall(&name, now) {
                return known;
            }
            state.without_onward(homes, &domain, now)
        };
        if homes.is_empty() {
            return Known::Unsaid;
        }
        if *asked >= SESSION_QUESTIONS_MAX {
            metrics.mesh.count_recipient(Recipient::Unasked);
            return Known::Unasked;
        }
        let known = self.ask_in_turn(peers, &homes, (&name, &domain), limit, asked).await;
        metrics.mesh.count_recipient(match known {
            Known::Exists => Recipient::Exists,
            Known::Unknown => Recipient::Unknown,
            Known::Unsaid => Recipient::Silent,
            Known::Unasked => Recipient::Unasked,
        });
        self.lock().remember(name, known, Instant::now());
        known
    }

    /// The first home that can tell does. Each has its share of the time that is left: one that is gone takes
    /// nothing from those behind it.
    async fn ask_in_turn(
        &self,
        peers: &impl Line,
        homes: &[NodeId],
        (name, domain): (&str, &str),
        limit: Duration,
        asked: &mut u16,
    ) -> Known {
        let until = tokio::time::Instant::now() + limit;
        let question = Asked { recipient: name.into() }.to_octets();
        let mut known = Known::Unsaid;
        for (shares, home) in (1..=homes.len() as u32).rev().zip(homes) {
            match self.lock().enter(*home, Instant::now()) {
                Leave::Ask => {}
                Leave::Silent => continue,
                Leave::TooMany => {
                    known = Known::Unasked;
                    continue;
                }
            }
            let _waits = Waits { homes: self, home: *home };
            *asked += 1;
            let share = until.saturating_duration_since(tokio::time::Instant::now()) / shares;
            match timeout(share, peers.ask(*home, &question)).await {
                Ok(Ok(octets)) => {
                    self.answered(peers, home);
                    match Told::from_octets(&octets) {
                        Told::Exists => return Known::Exists,
                        Told::Unknown => return Known::Unknown,
                        Told::Unclear => {}
                        Told::Onward => self.lock().onward.add(domain_at(home, domain), Instant::now(), UNKNOWN_AGE),
                    }
                }
                Ok(Err(error)) => self.unanswered(peers, home, &error),
                Err(_) => self.unanswered(peers, home, &"no answer in time"),
            }
        }
        known
    }

    fn answered(&self, peers: &impl Line, home: &NodeId) {
        let before = self.lock().homes.get_mut(home).and_then(|home| home.silent_until.take());
        if before.is_some() {
            info!(home = peers.label(home), "it says again which recipients exist");
        }
    }

    fn unanswered(&self, peers: &impl Line, home: &NodeId, why: &dyn std::fmt::Display) {
        let until = Instant::now() + SILENCE;
        let before = self.lock().homes.get_mut(home).and_then(|home| home.silent_until.replace(until));
        if before.is_none() {
            let home = peers.label(home);
            warn!(home, %why, "a member does not say which recipients exist; mail for it is taken unasked");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn recall(&self, name: &str, now: Instant) -> Option<Known> {
        match (self.exists.has(name, now), self.unknown.has(name, now)) {
            (true, _) => Some(Known::Exists),
            (_, true) => Some(Known::Unknown),
            _ => None,
        }
    }

    /// Returns those homes that have not said lately that the domain's mail goes on from there.
    fn without_onward(&self, homes: &[NodeId], domain: &str, now: Instant) -> Vec<NodeId> {
        homes.iter().filter(|home| !self.onward.has(&domain_at(home, domain), now)).copied().collect()
    }

    fn remember(&mut self, name: String, known: Known, now: Instant) {
        match known {
            Known::Exists => self.exists.add(name, now, EXISTS_AGE),
            Known::Unknown => self.unknown.add(name, now, UNKNOWN_AGE),
            Known::Unsaid | Known::Unasked => {}
        }
    }

    fn enter(&mut self, node: NodeId, now: Instant) -> Leave {
        // Members come and go; those with nothing to remember are forgotten.
        self.homes.retain(|id, home| *id == node || home.is_in_use(now));
        let home = self.homes.entry(node).or_insert(Home { waiting: 0, window: now, asked: 0, silent_until: None });
        if now.saturating_duration_since(home.window) >= WINDOW {
            (home.window, home.asked) = (now, 0);
        }
        if home.silent_until.is_some_and(|until| now < until) {
            return Leave::Silent;
        }
        if home.waiting >= WAITING_MAX || home.asked >= WINDOW_QUESTIONS_MAX {
            return Leave::TooMany;
        }
        home.waiting += 1;
        home.asked += 1;
        Leave::Ask
    }
}

impl Home {
    fn is_in_use(&self, now: Instant) -> bool {
        let is_silent = self.silent_until.is_some_and(|until| now < until + SILENCE);
        self.waiting > 0 || is_silent || now.saturating_duration_since(self.window) < WINDOW
    }
}

impl Remembered {
    fn has(&self, name: &str, now: Instant) -> bool {
        self.until.get(name).is_some_and(|until| now < *until)
    }

    fn add(&mut self, name: String, now: Instant, age: Duration) {
        // Two sessions may have asked at the same time.
        if let Some(until) = self.until.get_mut(name.as_str()) {
            *until = now + age;
            return;
        }
        let is_over = |name: &str| self.until.get(name).is_none_or(|until| *until <= now);
        let over = self.order.iter().take_while(|name| is_over(name)).count();
        let surplus = (self.order.len() + 1).saturating_sub(REMEMBERED_MAX);
        for name in self.order.drain(..over.max(surplus)) {
            self.until.remove(&name);
        }
        let name: Box<str> = name.into();
        self.until.insert(name.clone(), now + age);
        self.order.push_back(name);
    }
}

fn domain_at(home: &NodeId, domain: &str) -> String {
    format!("{home} {domain}")
}

/// A question that a home has not answered yet.
struct Waits<'a> {
    homes: &'a Homes,
    home: NodeId,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        if let Some(home) = self.homes.lock().homes.get_mut(&self.home) {
            home.waiting -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: u8) -> NodeId {
        NodeId::from_octets([n; 32])
    }

    #[test]
    fn answers_are_forgotten_after_their_time() {
        let (mut state, start) = (State::default(), Instant::now());
        state.remember("a@x".into(), Known::Exists, start);
        state.remember("b@x".into(), Known::Unknown, start);
        state.remember("c@x".into(), Known::Unsaid, start);
        let recall = |state: &State, name, age| state.recall(name, start + age);
        assert_eq!(recall(&state, "a@x", EXISTS_AGE / 2), Some(Known::Exists));
        assert_eq!(recall(&state, "a@x", EXISTS_AGE), None);
        assert_eq!(recall(&state, "b@x", UNKNOWN_AGE / 2), Some(Known::Unknown));
        assert_eq!(recall(&state, "b@x", UNKNOWN_AGE), None, "it may be made any time");
        assert_eq!(recall(&state, "c@x", Duration::ZERO), None);
        // What was made meanwhile is believed over what was remembered.
        state.remember("b@x".into(), Known::Exists, start);
        assert_eq!(recall(&state, "b@x", Duration::ZERO), Some(Known::Exists));
    }

    #[test]
    fn who_passes_mail_on_is_not_asked_about_each_recipient() {
        let (mut state, start) = (State::default(), Instant::now());
        let asked = |state: &State, domain, age| state.without_onward(&[node(1), node(2)], domain, start + age);
        assert_eq!(asked(&state, "x", Duration::ZERO), [node(1), node(2)]);
        state.onward.add(domain_at(&node(1), "x"), start, UNKNOWN_AGE);
        assert_eq!(asked(&state, "x", UNKNOWN_AGE / 2), [node(2)], "the others are asked still");
        assert_eq!(asked(&state, "y", UNKNOWN_AGE / 2), [node(1), node(2)], "other domains are not concerned");
        assert_eq!(asked(&state, "x", UNKNOWN_AGE), [node(1), node(2)], "it may have come to end there");
    }

    #[test]
    fn a_dictionary_takes_no_more_memory_than_this() {
        let (mut state, start) = (State::default(), Instant::now());
        for n in 0..REMEMBERED_MAX + 50 {
            state.remember(format!("{n}@x"), Known::Unknown, start);
            state.remember(format!("{n}@x"), Known::Unknown, start);
        }
        assert_eq!((state.unknown.until.len(), state.unknown.order.len()), (REMEMBERED_MAX, REMEMBERED_MAX));
        assert_eq!(state.recall("49@x", start), None, "the oldest is forgotten");
        assert_eq!(state.recall("50@x", start), Some(Known::Unknown));
        state.remember("new@x".into(), Known::Unknown, start + UNKNOWN_AGE);
        assert_eq!((state.unknown.until.len(), state.unknown.order.len()), (1, 1), "all the others are over");
    }

    #[test]
    fn a_home_is_asked_so_often_and_no_more() {
        let (mut state, start) = (State::default(), Instant::now());
        let taken = (0..100).filter(|_| state.enter(node(1), start) == Leave::Ask).count();
        assert_eq!(taken, usize::from(WAITING_MAX), "so many at a time");
        assert_eq!(state.enter(node(2), start), Leave::Ask, "others are not concerned");
        let mut asked = WAITING_MAX;
        loop {
            state.homes.get_mut(&node(1)).expect("known").waiting = 0;
            match state.enter(node(1), start) {
                Leave::Ask => asked += 1,
                left => break assert_eq!((left, asked), (Leave::TooMany, WINDOW_QUESTIONS_MAX)),
            }
        }
        assert_eq!(state.enter(node(1), start + WINDOW), Leave::Ask);
    }

    /// Homes of which some never answer, and what the others say.
    struct Mesh {
        gone: Vec<NodeId>,
        says: Told,
    }

    impl Line for Mesh {
        async fn ask(&self, home: NodeId, _: &[u8]) -> Result<Vec<u8>, AskError> {
            match self.gone.contains(&home) {
                true => std::future::pending().await,
                false => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    Ok(self.says.to_octets())
                }
            }
        }

        fn label(&self, _: &NodeId) -> String {
            String::new()
        }
    }

    #[tokio::test]
    async fn a_home_that_is_gone_takes_no_time_from_the_others() {
        let (homes, mesh, limit) =
            (Homes::default(), Mesh { gone: vec![node(1)], says: Told::Unknown }, Duration::from_secs(2));
        let (all, mut asked) = ([node(1), node(2)], 0);
        let known = homes.ask_in_turn(&mesh, &all, ("a@x", "x"), limit, &mut asked).await;
        assert_eq!((known, asked), (Known::Unknown, 2));
        assert!(homes.lock().homes[&node(1)].silent_until.is_some());
        assert!(homes.lock().homes[&node(2)].silent_until.is_none(), "it was not asked in vain");
    }

    /// Whoever cannot tell has not said that it is not there.
    #[tokio::test]
    async fn only_a_home_that_says_so_has_no_such_mailbox() {
        for (says, want) in [
            (Told::Exists, Known::Exists),
            (Told::Unknown, Known::Unknown),
            (Told::Unclear, Known::Unsaid),
            (Told::Onward, Known::Unsaid),
        ] {
            let (homes, mesh) = (Homes::default(), Mesh { gone: Vec::new(), says });
            let known = homes.ask_in_turn(&mesh, &[node(1)], ("a@x", "x"), Duration::from_secs(60), &mut 0).await;
            assert_eq!(known, want, "{says:?}");
            let asked_again = homes.lock().without_onward(&[node(1)], "x", Instant::now());
            assert_eq!(asked_again.is_empty(), says == Told::Onward, "{says:?}");
        }
    }

    #[test]
    fn a_silent_home_is_left_alone_for_a_while() {
        let (homes, start) = (Homes::default(), Instant::now());
        assert_eq!(homes.lock().enter(node(1), start), Leave::Ask);
        drop(Waits { homes: &homes, home: node(1) });
        homes.lock().homes.get_mut(&node(1)).expect("known").silent_until = Some(start + SILENCE);
        assert_eq!(homes.lock().enter(node(1), start), Leave::Silent);
        assert_eq!(homes.lock().enter(node(1), start + SILENCE), Leave::Ask);
        assert_eq!(homes.lock().enter(node(2), start + 3 * SILENCE), Leave::Ask);
        assert_eq!(homes.lock().homes.len(), 2, "the question still waits");
        drop(Waits { homes: &homes, home: node(1) });
        drop(Waits { homes: &homes, home: node(2) });
        homes.lock().enter(node(3), start + 9 * SILENCE);
        assert_eq!(homes.lock().homes.len(), 1);
    }
}
