//! The control socket: everything the command line can ask of a running agent.
//!
//! A unix socket of mode 0600; the peer must be root or the agent's own user. A connection carries
//! one request, a line of JSON of at most 64 KiB such as `{"v":1,"op":"queue.list","filter":{}}`.
//! The answer is a stream of lines: any number of `{"item":{…}}` and `{"progress":{…}}`, then one
//! `{"done":{…}}` or `{"error":{"message":…,"remedy":…}}`. Nothing is sent before the request, and
//! a client that goes away ends the work where it stands.
//!
//! What the words of a request do is the [`backend::AdminBackend`]'s matter; which messages a
//! filter means, how they are shown and how they travel is decided here, the same for an agent
//! that runs and for a queue read from disk.

pub mod backend;
pub mod client;
pub mod filter;
pub mod mesh;
pub mod request;
pub mod server;
pub mod standing;
#[cfg(test)]
pub mod testing;
pub mod trace;
pub mod view;
mod work;

pub use backend::{AdminBackend, Entry, Target};
pub use client::{AskError, Client, News};
pub use filter::Filter;
pub use request::{Action, By, Done, Failure, Id, Line, Progress, Request};
pub use server::{BindError, ControlSocket};
pub use work::{REMEDY_GONE, Stop, perform, trace_here};
