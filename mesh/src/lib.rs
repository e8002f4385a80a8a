//! The mesh: who is a member, and what members know of one another. Values and state machines without
//! IO: no socket, no clock, no disk, no randomness. Octets, instants and seeds come in as arguments.
//!
//! * [`node`]: a node is its key; [`statement`]: what nodes sign about members.
//! * [`roster`]: all statements together decide who is a member, the same at every node that has
//!   the same statements, in whatever order they came.

pub mod archive;
pub mod candidate;
pub mod caps;
pub mod card;
mod chance;
pub mod difference;
pub mod directory;
pub mod frame;
pub mod history;
pub mod invite;
pub mod link;
pub mod mdns;
pub mod node;
pub mod passage;
pub mod path;
pub mod pending;
pub mod proof;
pub mod question;
pub mod quota;
pub mod recipient;
pub mod record;
pub mod roster;
pub mod spread;
pub mod statement;
mod succession;
mod voices;
mod wire;

pub use caps::Caps;
pub use directory::Directory;
pub use history::MeshMessageId;
pub use invite::Invitation;
pub use node::{NodeId, NodeKey, SecretKey};
pub use passage::Passage;
pub use proof::Proofs;
pub use record::Record;
pub use roster::Roster;
pub use statement::{MeshId, Statement, StatementId};
