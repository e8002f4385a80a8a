//! What the operating system and its users tell the agent.

use std::io;

use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGHUP: read the configuration again.
    Reload,
    /// SIGTERM or SIGINT: drain and end; the second time, end at once.
    Stop,
}

/// The signals that the agent hears.
pub struct Signals {
    hup: Stream,
    term: Stream,
    int: Stream,
}

impl Signals {
    /// Begins to listen.
    ///
    /// # Errors
    /// The operating system refuses.
    pub fn new() -> io::Result<Signals> {
        Ok(Signals {
            hup: signal(SignalKind::hangup())?,
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.hup.recv() => Signal::Reload,
            _ = self.term.recv() => Signal::Stop,
            _ = self.int.recv() => Signal::Stop,
        }
    }

    /// Waits until it is told to stop; while it drains there is nothing to reload.
    pub async fn stopped(&mut self) {
        while self.next().await != Signal::Stop {}
    }
}
