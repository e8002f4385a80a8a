//! The agent's clock: wall time anchored once at start and carried on by the monotonic clock.
//!
//! A wall clock that is set back or years ahead while the agent runs neither expires the queue nor
//! stalls it. Everything that asks for the time takes it from here, so a test can bring its own.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use postroad_queue::UnixMillis;

/// Tells the time; copies tell the same time.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    wall: UnixMillis,
    anchor: Instant,
}

impl Clock {
    /// Reads the wall clock once.
    pub fn start() -> Clock {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Clock { wall: UnixMillis(millis(wall)), anchor: Instant::now() }
    }

    /// Returns the time as the queue counts it.
    pub fn now(&self) -> UnixMillis {
        self.wall.plus(millis(self.anchor.elapsed()))
    }

    /// Returns when `at` comes, on the monotonic clock; now when it has passed.
    pub fn instant(&self, at: UnixMillis) -> Instant {
        Instant::now() + Duration::from_millis(at.since(self.now()))
    }
}

/// Returns whole milliseconds, at most `u64::MAX`.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
