//! Logs: one event, one line, on standard error, as text or as JSON.
//!
//! Whatever a peer sends, it cannot add a line or move a cursor: every control character of a
//! message or field is escaped. By convention `queue_id` names a message and `session` a session,
//! as fields of the event or of a span around it; a line carries those of all spans around it.

mod escape;
mod line;
mod out;

use std::fmt;
use std::io;
use std::sync::Arc;

use tracing_subscriber::filter::{ParseError, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::Registry;
use tracing_subscriber::reload;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

pub use escape::escaped;
pub use line::{Format, LineLayer, Stamp};
pub use out::flush;

/// The environment variable that overrides the configured level, for instance `debug` or
/// `info,postroad::deliver=trace`.
pub const LEVEL_VARIABLE: &str = "POSTROAD_LOG";

/// The running log. Keep it to change the level.
#[derive(Clone, Debug)]
pub struct Logs {
    filter: reload::Handle<Targets, Registry>,
    /// The environment's level, which no configuration overrides.
    forced: Option<Box<str>>,
}

/// Why the log cannot be as asked.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The level is none.
    #[error("`{level}` is no log level: say error, warn, info, debug or trace, or module=level,… ({source})")]
    Level {
        /// What was asked for.
        level: String,
        /// What is wrong with it.
        source: ParseError,
    },
    /// A log was started before.
    #[error("the log was already started: {0}")]
    Started(#[from] TryInitError),
    /// The log has ended.
    #[error("the log has ended: {0}")]
    Ended(#[from] reload::Error),
}

/// Starts the log of this process on standard error. `level` is the configuration's; the variable
/// [`LEVEL_VARIABLE`] overrides it.
///
/// # Errors
/// When the level is none, or a log was started before.
pub fn start(format: Format, level: &str) -> Result<Logs, LogError> {
    let forced = std::env::var(LEVEL_VARIABLE).ok().filter(|level| !level.is_empty()).map(Into::into);
    let stamp = if goes_to_the_journal() { Stamp::Priority } else { Stamp::Time };
    let (filter, handle) = reload::Layer::new(parse(forced.as_deref().unwrap_or(level))?);
    let lines = LineLayer::new(format, stamp, Arc::new(out::write));
    tracing_subscriber::registry().with(filter).with(lines).try_init()?;
    Ok(Logs { filter: handle, forced })
}

impl Logs {
    /// Changes the level to the configuration's new one, unless the environment overrides it.
    ///
    /// # Errors
    /// When it is none; the old level stays.
    pub fn set_level(&self, level: &str) -> Result<(), LogError> {
        let wanted = parse(level)?;
        match self.forced {
            Some(_) => Ok(()),
            None => Ok(self.filter.reload(wanted)?),
        }
    }
}

fn parse(level: &str) -> Result<Targets, LogError> {
    // What libraries warn of any stranger can make them say, in words for programmers.
    let level = match level.trim() {
        own @ ("error" | "warn" | "info") => &format!("error,postroad={own}"),
        level => level,
    };
    // An empty directive would stand for everything.
    let directives: Vec<&str> = level.split(',').map(str::trim).filter(|one| !one.is_empty()).collect();
    directives.join(",").parse().map_err(|source| LogError::Level { level: level.to_owned(), source })
}

/// Whether standard error is the journal's socket (systemd.exec(5), `$JOURNAL_STREAM`), which
/// stamps the time itself and reads the level from a prefix (sd-daemon(3)).
fn goes_to_the_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(stat) = rustix::fs::fstat(io::stderr()) else { return false };
    stream == format!("{}:{}", stat.st_dev, stat.st_ino)
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Text => "text",
            Format::Json => "json",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_heard_when_they_fail_and_whenever_somebody_debugs() {
        let is_heard =
            |level: &str, target: &str| parse(level).expect("a level").would_enable(target, &tracing::Level::WARN);
        assert!(is_heard("info", "postroad::listen") && !is_heard("info", "rustls::msgs::handshake"));
        assert!(!is_heard("error", "postroad::listen"));
        assert!(is_heard("debug", "rustls::msgs::handshake") && is_heard("info,rustls=warn", "rustls::msgs"));
    }

    #[test]
    fn a_level_that_is_none_is_refused_with_what_to_say_instead() {
        assert!(parse("info").is_ok() && parse("info,postroad::deliver=trace").is_ok());
        let error = parse("postroad=loud").expect_err("no level").to_string();
        assert!(error.starts_with("`postroad=loud` is no log level: say error, warn, info"), "{error}");
    }
}
