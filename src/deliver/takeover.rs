//! A customer whose connection died without a word dials anew, and the delivery on the old one waits for a
//! reply that never comes, and with it all its mail.
//!
//! Who comes again is the sign to look: an earlier connection for the same mail that is at work and on which
//! nothing moves for some seconds from then on is cut. What was on its way over a connection that is lost goes over
//! the new one at once. One on which something moves is left alone.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::sleep;
use tracing::info;

use crate::net::Cut;

/// How long nothing has to move on the earlier connection: a customer that looks through what it gets may
/// take some seconds.
pub const SILENCE: Duration = Duration::from_secs(10);

/// What is known of a connection from outside, whoever uses it.
#[derive(Debug)]
pub struct Pulse {
    /// The destinations whose mail it carries.
    keys: Vec<Arc<str>>,
    cut: Option<Cut>,
    /// Counts what was read and what was written.
    beats: AtomicU64,
    has_follower: AtomicBool,
}

/// An earlier connection, and how often something had moved on it when somebody came anew.
pub struct Earlier {
    pulse: Weak<Pulse>,
    beats: u64,
}

impl Pulse {
    /// Begins to listen to a connection; without what cuts it, it is left alone.
    pub fn new(keys: impl Iterator<Item = Arc<str>>, cut: Option<Cut>) -> Arc<Pulse> {
        let (beats, has_follower) = (AtomicU64::new(0), AtomicBool::new(false));
        Arc::new(Pulse { keys: keys.collect(), cut, beats, has_follower })
    }

    /// Something was read or written.
    pub fn beat(&self) {
        self.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns whether its customer came anew while it was at work.
    pub fn has_follower(&self) -> bool {
        self.has_follower.load(Ordering::Acquire)
    }

    /// Returns whether it carries mail that the other one carries, too.
    pub fn shares(&self, other: &Pulse) -> bool {
        self.keys.iter().any(|key| other.keys.contains(key))
    }

    /// Its customer has come anew: remembers how it is now.
    pub fn follow(self: &Arc<Pulse>) -> Earlier {
        self.has_follower.store(true, Ordering::Release);
        Earlier { pulse: Arc::downgrade(self), beats: self.beats.load(Ordering::Relaxed) }
    }
}

/// Cuts those of the earlier connections on which nothing moves.
pub async fn take_over(user: String, earlier: Vec<Earlier>) {
    sleep(SILENCE).await;
    for Earlier { pulse, beats } in earlier {
        let Some(pulse) = pulse.upgrade().filter(|pulse| pulse.beats.load(Ordering::Relaxed) == beats) else {
            continue;
        };
        if let Some(cut) = &pulse.cut {
            info!(user, "it came anew, and its earlier connection is silent: that one is cut");
            cut.now();
        }
    }
}
