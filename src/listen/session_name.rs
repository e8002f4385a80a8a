//! Names of sessions: short, never the same twice on a host, in every log line of a session.

use std::sync::atomic::{AtomicU64, Ordering};

use postroad_queue::UnixMillis;

/// Hands out session names.
#[derive(Debug)]
pub struct SessionNames {
    start: u64,
    count: AtomicU64,
}

impl SessionNames {
    /// Names are told apart across restarts by the time of the start.
    pub fn new(now: UnixMillis) -> SessionNames {
        SessionNames { start: now.0 / 1000, count: AtomicU64::new(0) }
    }

    /// Returns the next name.
    pub fn next(&self) -> Box<str> {
        format!("{:x}-{:x}", self.start, self.count.fetch_add(1, Ordering::Relaxed)).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_sessions_share_a_name() {
        let names = SessionNames::new(UnixMillis(1_800_000_000_000));
        assert_ne!(names.next(), names.next());
    }
}
