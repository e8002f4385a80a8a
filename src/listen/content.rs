//! The way of a message's content from the session into the queue.
//!
//! Puts our trace field on top, completes the header section of submitted messages (RFC 6409 §8)
//! and counts hops, all while the content streams: no more than the header section of a submitted
//! message is ever held in memory.

use postroad_mesh::MeshMessageId;
use postroad_mesh::passage::Naming;
use postroad_queue::{Committed, Draft, Origin, UnixMillis};
use postroad_smtp::trace::HeaderScanner;
use postroad_smtp::{Envelope, Reply, Status};
use tokio::sync::oneshot;

use super::completion::Completion;

/// Where a message goes when it was accepted, and for how long it is tried.
#[derive(Debug)]
pub struct Terms {
    /// When it arrived.
    pub now: UnixMillis,
    /// When we give up.
    pub expires: UnixMillis,
    /// Received fields that it may have before it counts as looping.
    pub hops_max: u32,
    /// Whether it waits until an admin releases it.
    pub hold: bool,
}

/// Content on its way into the queue. Dropping it discards what was written.
pub struct Intake {
    draft: Draft,
    scanner: HeaderScanner,
    completion: Option<Completion>,
    naming: Option<Naming>,
    fault: Option<Reply>,
}

impl Intake {
    /// Begins with `trace`, the Received field; a submitted message brings its `completion`, and one
    /// that comes into a mesh here its `naming`.
    pub fn begin(draft: Draft, trace: &str, completion: Option<Completion>, naming: Option<Naming>) -> Intake {
        let mut intake = Intake { draft, scanner: HeaderScanner::default(), completion, naming, fault: None };
        intake.write(trace.as_bytes());
        intake
    }

    /// Takes the next piece of the content. What goes wrong is told at the end: the octets still
    /// to come have to be read anyway.
    pub fn append(&mut self, piece: &[u8]) {
        if let Some(naming) = &mut self.naming {
            naming.add(piece);
        }
        let Some(completion) = &mut self.completion else { return self.take(piece) };
        if let Some(header) = completion.push(piece) {
            self.completion = None;
            self.take(&header);
        }
    }

    fn take(&mut self, octets: &[u8]) {
        self.scanner.scan(octets);
        self.write(octets);
    }

    fn write(&mut self, octets: &[u8]) {
        if self.fault.is_none()
            && let Err(error) = self.draft.append(octets)
        {
            self.fault = Some(Reply::from(&error));
        }
    }

    /// Names the message in the mesh, where this began with a naming: by what was received. Of two that
    /// are alike each has a name of its own that came without a Message-ID, or `again`.
    pub fn name(&self, accepted: UnixMillis, again: bool) -> Option<MeshMessageId> {
        let naming = self.naming.as_ref()?;
        let id = self.draft.id().to_string();
        let message_id = self.scanner.message_id();
        // What this host added has the queue id in it.
        let is_received = !message_id.is_empty() && memchr::memmem::find(message_id, id.as_bytes()).is_none();
        let own = if is_received && !again { "" } else { &id };
        Some(naming.finish(accepted.0, own))
    }

    /// Hands the message to the queue and returns when it is on stable storage, with what its header
    /// section says.
    ///
    /// # Errors
    /// The reply that refuses the message: too many hops, no room, a failed disk.
    pub async fn commit(
        mut self,
        envelope: Envelope,
        origin: Origin,
        terms: &Terms,
    ) -> Result<(Committed, HeaderScanner), Reply> {
        if let Some(completion) = self.completion.take() {
            let header = completion.finish();
            self.take(&header);
        }
        if self.scanner.hops() >= terms.hops_max {
            return Err(Reply::of(554, Some(Status::new(5, 4, 6)), "Too many hops: this message is looping"));
        }
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        if terms.hold {
            self.draft.hold();
        }
        let (tell, told) = oneshot::channel();
        let done = move |result| {
            // A session that is gone does not hear of it; the message stays accepted.
            let _ = tell.send(result);
        };
        self.draft.commit(envelope, origin, terms.expires, terms.now, Box::new(done));
        match told.await {
            Ok(Ok(committed)) => Ok((committed, self.scanner)),
            Ok(Err(error)) => Err(Reply::from(&error)),
            Err(_) => Err(Reply::of(451, Some(Status::new(4, 3, 2)), "The queue is shutting down; try again later")),
        }
    }
}
