//! Mail that programs of this host hand in: what the sendmail command makes of its input, how it reaches the
//! agent, and where it is kept while no agent runs (docs/decisions/0022-local-mail.md).
//!
//! Everything here is used by both sides: the command, which runs as anybody, and the agent, which believes
//! nothing of what it finds. Knows no other room.

pub mod addresses;
pub mod drop;
pub mod hand_over;
mod header;
pub mod letter;

use std::path::{Path, PathBuf};

/// The most recipients of one message.
pub const RECIPIENTS_MAX: usize = 1000;
/// The longest message, in octets: the command has it in memory. The agent's own limit is below that.
pub const MESSAGE_OCTETS_MAX: u64 = 1 << 30;
/// The longest header section, in octets.
pub const HEADER_OCTETS_MAX: usize = 256 * 1024;

/// The directory that users of this host and the agent share.
#[derive(Clone, Debug)]
pub struct Place(PathBuf);

impl Place {
    /// The one of an agent with this state directory.
    pub fn of(state_dir: &Path) -> Place {
        Place(state_dir.join("local"))
    }

    /// Returns the directory around the others: everybody may pass through it.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Returns the socket that the agent answers on; everybody may connect.
    pub fn socket(&self) -> PathBuf {
        self.0.join("socket")
    }

    /// Returns where mail is put while no agent runs; everybody may put files there, and only the agent
    /// sees which there are.
    pub fn drop_directory(&self) -> PathBuf {
        self.0.join("drop")
    }

    /// Returns where the agent puts what it cannot take.
    pub fn set_aside(&self) -> PathBuf {
        self.0.join("set-aside")
    }
}
