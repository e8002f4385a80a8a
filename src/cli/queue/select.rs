//! The options that say which messages are meant.

use crate::admin::{Filter, Id};
use crate::config::parse_duration;

/// Conditions; all must hold.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Select {
    /// Queue ids
    #[arg(value_name = "ID")]
    ids: Vec<Id>,
    /// The sender's address; * stands for any text, '<>' is the null sender of notifications
    #[arg(long, value_name = "PATTERN")]
    from: Option<String>,
    /// A recipient's address; * stands for any text
    #[arg(long, value_name = "PATTERN")]
    to: Option<String>,
    /// A recipient's domain; * stands for any text
    #[arg(long, value_name = "PATTERN")]
    domain: Option<String>,
    /// The next hop, as `queue stats` names it; * stands for any text
    #[arg(long, value_name = "PATTERN")]
    destination: Option<String>,
    /// Text in the last reply, such as greylist or 4.7.1
    #[arg(long, value_name = "TEXT")]
    reply: Option<String>,
    /// Accepted longer ago than this, such as 30m, 4h or 2d
    #[arg(long, value_name = "AGE", value_parser = age)]
    older: Option<u64>,
    /// Accepted more recently than this
    #[arg(long, value_name = "AGE", value_parser = age)]
    newer: Option<u64>,
    /// Tried at least so many times
    #[arg(long, value_name = "N")]
    attempts: Option<u32>,
    /// Held by an admin
    #[arg(long)]
    held: bool,
    /// Tried before without success
    #[arg(long)]
    deferred: bool,
    /// All messages
    #[arg(long)]
    all: bool,
}

impl Select {
    /// Returns the filter these options make.
    pub fn filter(self) -> Filter {
        Filter {
            ids: self.ids,
            from: self.from,
            to: self.to,
            domain: self.domain,
            destination: self.destination,
            reply: self.reply,
            older_ms: self.older,
            newer_ms: self.newer,
            attempts: self.attempts,
            held: self.held,
            deferred: self.deferred,
            all: self.all,
        }
    }
}

/// Reads an age such as 90s or 2d, in milliseconds.
///
/// # Errors
/// What to write instead.
pub fn age(text: &str) -> Result<u64, String> {
    let age = parse_duration(text).and_then(|age| u64::try_from(age.as_millis()).ok());
    age.ok_or_else(|| "write numbers with units, for example 90s, 30m, 4h or 2d".to_owned())
}
