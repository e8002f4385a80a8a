//! Question -> verdict: who may relay, which recipients exist, credentials and limits. Pure over
//! configuration and the facts of a session wherever that is possible; never reads a socket.

pub mod mailboxes;
