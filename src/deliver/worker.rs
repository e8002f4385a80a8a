//! A worker: takes one attempt after the other for one site, over one connection while it lasts.
//!
//! Where the peer takes the envelope of the next message behind the content of the one before, a worker
//! begins the next attempt early; it takes no session of its own (`postroad_queue::schedule`). To
//! sites that answer swiftly a burst goes over few connections: that costs the last of it
//! milliseconds, and both ends less work. What waits behind an attempt that takes long goes elsewhere.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use postroad_queue::schedule::{Attempt, Finish};
use tokio::time::{Sleep, sleep};

use super::attempt::Begun;
use super::dispatcher::Core;
use super::remote::Lane;
use crate::memory::Level;

/// Messages of a burst that one connection takes.
const BURST_MAX: usize = 4;
/// A site whose last message took no longer answers swiftly.
const SWIFT: Duration = Duration::from_millis(10);
/// A site whose last message took longer is sent no envelope ahead: it would wait there.
const AHEAD_LIMIT: Duration = Duration::from_secs(1);
/// So long what has not begun waits behind others.
const PATIENCE: Duration = Duration::from_millis(100);

/// Takes one attempt after the other for one site.
pub struct Worker {
    core: Arc<Core>,
    /// The attempt that is owed to the schedule; given back even when the worker panics.
    attempt: Option<Attempt>,
    /// What goes behind it; owed as well.
    behind: VecDeque<Attempt>,
    /// When what has not begun of it goes elsewhere. One timer for all of a burst: each costs a wake-up.
    patience: Option<Pin<Box<Sleep>>>,
    lane: Lane,
}

impl Worker {
    /// Begins with this attempt, and with a few more behind it where the site answers swiftly.
    pub fn new(core: Arc<Core>, attempt: Attempt) -> Worker {
        let lane = Lane::new(attempt.site().clone());
        let mut worker = Worker { core, attempt: Some(attempt), behind: VecDeque::new(), patience: None, lane };
        if worker.core.pool.pace_ahead(worker.lane.site()).is_some_and(|took| took <= SWIFT) {
            worker.take_behind(BURST_MAX - 1);
        }
        worker
    }

    /// Works until nothing is ready for the site.
    pub async fn run(mut self) {
        let core = self.core.clone();
        let mut begun = None;
        while let Some(attempt) = &self.attempt {
            let this = match begun.take() {
                Some(begun) => Ok(begun),
                None => Begun::new(&core, attempt).await,
            };
            let finish = match this {
                Ok(this) => {
                    begun = self.begin_next(&core).await;
                    self.work(this, begun.as_ref()).await
                }
                Err(finish) => finish,
            };
            let is_last = matches!(
                finish,
                Finish::Throttled { .. } | Finish::DestinationFailed { .. } | Finish::Silent { .. } | Finish::Returned
            );
            if is_last {
                self.give_back(begun.take()).await;
            } else if core.is_draining() {
                return_all(&core, self.behind.drain(usize::from(begun.is_some())..));
            }
            self.finish(finish);
        }
        std::mem::replace(&mut self.lane, Lane::new("".into())).end(&core).await;
    }

    /// Makes the attempt, with the envelope of the next one behind it.
    async fn work(&mut self, this: Begun<'_>, next: Option<&Begun<'_>>) -> Finish {
        let Worker { core, attempt: Some(attempt), behind, patience, lane } = &mut *self else {
            unreachable!("what has begun is an attempt")
        };
        let has_begun = usize::from(next.is_some());
        let next = next.map(|next| next.task(None));
        let task = this.task(next.as_ref());
        let mut work = std::pin::pin!(this.make(lane, attempt, &task));
        if behind.len() > has_begun {
            let patience = patience.get_or_insert_with(|| Box::pin(sleep(PATIENCE)));
            tokio::select! {
                biased;
                finish = &mut work => return finish,
                () = patience => {}
            }
            return_all(core, behind.drain(has_begun..));
            core.start_ready();
        }
        work.await
    }

    /// Gives back what is behind an attempt that was the last of its connection.
    async fn give_back(&mut self, begun: Option<Begun<'_>>) {
        if let Some(begun) = begun {
            let finish = begun.give_back().await;
            let attempt = self.behind.pop_front().expect("what has begun is behind the attempt");
            self.core.schedule().finished(attempt, finish, self.core.clock.now());
        }
        return_all(&self.core, self.behind.drain(..));
    }

    /// Begins what goes behind the attempt, where it goes to the same destination.
    async fn begin_next<'a>(&mut self, core: &'a Arc<Core>) -> Option<Begun<'a>> {
        loop {
            let destination = self.attempt.as_ref()?.destination();
            let next = self.behind.front().filter(|next| next.destination() == destination)?;
            match Begun::new(core, next).await {
                Ok(begun) => return Some(begun),
                Err(finish) => {
                    let next = self.behind.pop_front()?;
                    core.schedule().finished(next, finish, core.clock.now());
                }
            }
        }
    }

    /// Gives the attempt back and turns to the next one: what is behind it, or what is ready now.
    fn finish(&mut self, finish: Finish) {
        let Some(attempt) = self.attempt.take() else { return };
        let (core, now) = (&self.core, self.core.clock.now());
        let site = attempt.site().clone();
        {
            let mut schedule = core.schedule();
            schedule.finished(attempt, finish, now);
            self.attempt = match self.behind.pop_front() {
                Some(mut next) => {
                    schedule.take_up(&mut next);
                    Some(next)
                }
                None if core.is_draining() => None,
                None => schedule.next_for(&site, now),
            };
        }
        if self.behind.is_empty() && self.lane.pace_ahead().is_some_and(|took| took <= AHEAD_LIMIT) {
            self.take_behind(1);
        }
        // What has finished may have made room for others.
        self.core.start_ready();
    }

    /// Takes at most so many attempts that are to go behind the others.
    fn take_behind(&mut self, max: usize) {
        self.patience = None;
        let core = &self.core;
        let Some(attempt) = &self.attempt else { return };
        if core.is_draining() || core.memory.level() == Level::Full {
            return;
        }
        let now = core.clock.now();
        let mut schedule = core.schedule();
        while self.behind.len() < max
            && let Some(next) = schedule.next_behind(self.behind.back().unwrap_or(attempt), now)
        {
            self.behind.push_back(next);
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        for attempt in self.attempt.take().into_iter().chain(self.behind.drain(..)) {
            self.core.cut_off(attempt);
        }
        self.core.worker_ended();
    }
}

/// Gives back what has not begun: others may start it.
fn return_all(core: &Core, attempts: impl Iterator<Item = Attempt>) {
    attempts.for_each(|attempt| core.schedule().finished(attempt, Finish::Returned, core.clock.now()));
}

#[cfg(test)]
mod tests;
