//! What an admin does to queued mail, and what is told of where it stands.
//!
//! A change is durable before it is confirmed, like every other outcome.

use std::collections::BTreeSet;
use std::sync::Arc;

use postroad_queue::schedule::{Census, DestinationStats, Selector, Standing, Totals};
use postroad_queue::{Item, LoadError, QueueId, RecipientState, Report, UnixMillis};
use postroad_smtp::{Recipient, Reply, ReversePath, Status};

use super::attempt::{finish_up, record};
use super::dispatcher::Delivery;
use super::jobs::key;
use crate::journal::{Kind, Note};

/// Jobs or destinations counted without a pause: less than a millisecond's work.
const COUNTED_AT_ONCE: usize = 2_000;

const REMOVED: Reply = Reply::of(550, Some(Status::new(5, 7, 0)), "removed from the queue by the administrator");
const BOUNCED: Reply = Reply::of(550, Some(Status::new(5, 7, 0)), "returned to its sender by the administrator");

impl Delivery {
    /// Holds a message for whoever `by` is: no attempt starts until it is released. Returns whether that is
    /// new.
    ///
    /// # Errors
    /// Says why the change cannot be recorded.
    pub async fn hold(&self, id: QueueId, by: &str) -> Result<bool, String> {
        self.set_held(id, true, by).await
    }

    /// Releases a message that is held. Returns whether it was.
    ///
    /// # Errors
    /// Says why the change cannot be recorded.
    pub async fn release(&self, id: QueueId, by: &str) -> Result<bool, String> {
        self.set_held(id, false, by).await
    }

    async fn set_held(&self, id: QueueId, held: bool, by: &str) -> Result<bool, String> {
        let core = &self.0;
        let Some(active) = found(core.active.get(id))? else { return Ok(false) };
        let mut current = active.current.lock().await;
        if current.is_gone {
            return Ok(false);
        }
        let changed = current.item.state.held != held;
        if changed {
            let mut item = (*current.item).clone();
            item.state.held = held;
            record(core, &item).await?;
            current.item = Arc::new(item);
            let kind = if held { Kind::Held } else { Kind::Released };
            core.journal.note(core.clock.now(), id, kind, &Note { by: Some(by), ..Note::default() });
        }
        if held {
            core.schedule().hold(Selector::Id(id));
        } else {
            core.schedule().release(Selector::Id(id));
            core.start_ready();
        }
        Ok(changed)
    }

    /// Makes recipients of a message due at once, and with them those that have the same next hop.
    /// Returns whether anything waited there.
    ///
    /// # Errors
    /// The queue cannot read the message.
    pub fn retry(&self, id: QueueId, places: &[usize]) -> Result<bool, String> {
        let destinations = match self.0.queue.load(id) {
            // It waits for its sender's time, not for ours.
            Ok(item) if item.held_until(self.0.clock.now()).is_some() => return Ok(false),
            Ok(item) => self.destinations_of(&item),
            // It was delivered meanwhile.
            Err(LoadError::Unknown(_)) => return Ok(false),
            Err(error) => return Err(error.to_string()),
        };
        let destinations: BTreeSet<_> = places.iter().filter_map(|place| destinations.get(*place)).collect();
        // Whoever asks for another attempt wants another look-up, too.
        self.0.routing.load().resolver.forget_failures();
        let jobs: usize = {
            let mut schedule = self.0.schedule();
            destinations.iter().map(|destination| schedule.retry_job(id, destination)).sum()
        };
        self.0.start_ready();
        Ok(jobs > 0)
    }

    /// Takes recipients out of the queue without telling anybody. Returns whether any was pending.
    ///
    /// # Errors
    /// Says why the change cannot be recorded.
    pub async fn remove(&self, id: QueueId, places: &[usize], by: &str) -> Result<bool, String> {
        self.end(id, places, Kind::Removed, by).await
    }

    /// Fails recipients; their senders are told. Returns whether any was pending.
    ///
    /// # Errors
    /// Says why the change cannot be recorded or the notification not be sent.
    pub async fn bounce(&self, id: QueueId, places: &[usize], by: &str) -> Result<bool, String> {
        self.end(id, places, Kind::Bounced, by).await
    }

    async fn end(&self, id: QueueId, places: &[usize], kind: Kind, by: &str) -> Result<bool, String> {
        let (reply, notify) = if kind == Kind::Bounced { (&BOUNCED, true) } else { (&REMOVED, false) };
        let core = &self.0;
        let Some(active) = found(core.active.get(id))? else { return Ok(false) };
        let mut current = active.current.lock().await;
        let mut item = (*current.item).clone();
        let nobody = !notify || item.envelope.reverse_path == ReversePath::Null;
        let report = Report { at: core.clock.now(), remote: None, reply: reply.clone() };
        let mut changed = Vec::new();
        for place in places {
            let wanted = item.envelope.recipients().get(*place).is_some_and(|recipient| recipient.wants().failure);
            if let Some(state @ RecipientState::Pending { .. }) = item.state.recipients.get_mut(*place) {
                *state = RecipientState::Failed { report: report.clone(), notified: nobody || !wanted };
                changed.push(*place);
            }
        }
        if changed.is_empty() || current.is_gone {
            return Ok(false);
        }
        record(core, &item).await?;
        current.item = Arc::new(item);
        core.journal.note(report.at, id, kind, &Note { places: &changed, by: Some(by), ..Note::default() });
        let routing = core.routing.load_full();
        finish_up(core, &mut current, &routing).await?;
        if current.is_gone {
            core.schedule().remove(id);
        }
        Ok(true)
    }

    /// Returns the destination of each recipient of a message.
    pub fn destinations_of(&self, item: &Item) -> Vec<Arc<str>> {
        let routing = self.0.routing.load();
        let (recipients, mail) = (item.envelope.recipients().iter(), self.0.mail(&routing, item));
        let route = |recipient: &Recipient| routing.router.route_mail(&recipient.forward_path, &mail);
        recipients.map(|recipient| key(&route(recipient))).collect()
    }

    /// Returns when the first of a message's pending recipients is given up.
    pub fn expires(&self, item: &Item) -> UnixMillis {
        self.0.routing.load().router.first_expires(item)
    }

    /// Returns what each job of a message waits for.
    pub fn standings(&self, id: QueueId) -> Vec<Standing> {
        self.0.schedule().describe(id, self.0.clock.now())
    }

    /// Returns until when a destination is left alone that cannot be reached, and what was said last.
    pub fn outage(&self, destination: &str) -> Option<(UnixMillis, Arc<str>)> {
        self.0.schedule().outage(destination)
    }

    /// Returns how every destination stands. Counts in pieces, so that mail flows meanwhile.
    pub async fn destinations(&self) -> Vec<DestinationStats> {
        let (mut census, now) = (Census::default(), self.0.clock.now());
        while self.0.schedule().count(&mut census, now, COUNTED_AT_ONCE) {
            tokio::task::yield_now().await;
        }
        census.into_stats()
    }

    /// Returns how many connections wait for the next message.
    pub fn idle_connections(&self) -> usize {
        self.0.pool.len()
    }

    /// Returns the schedule in numbers.
    pub fn totals(&self) -> Totals {
        self.0.schedule().totals()
    }
}

fn found<T>(result: Result<T, LoadError>) -> Result<Option<T>, String> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(LoadError::Unknown(_)) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use postroad_smtp::{Envelope, MailParams};

    use super::super::scenario::Agent;
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn whoever_was_told_that_a_message_is_taken_finds_it_in_the_schedule() {
        let agent = Agent::start("hostname = \"mx.home.example\"\n");
        let to = vec![Recipient::new("x@example.org".parse().expect("a path"))];
        let sender = "a@sender.example".parse().expect("a path");
        let envelope = Envelope::new(sender, MailParams::default(), to).expect("recipients");
        let (delivery, now) = (agent.delivery.clone(), agent.delivery.0.clock.now());
        let (tell, told) = tokio::sync::oneshot::channel();
        let draft = agent.queue.draft(now).expect("room");
        let expires = now.plus(crate::clock::millis(Duration::from_secs(3600)));
        // At the very moment of the answer, and nothing goes on before it ends.
        draft.commit(envelope, Default::default(), expires, now, move |result| {
            let id = result.expect("committed").id();
            let _ = tell.send((delivery.standings(id).len(), delivery.totals().jobs));
        });
        assert_eq!(told.await.expect("told"), (1, 1), "queue why, stats and status say where it stands");
    }
}
