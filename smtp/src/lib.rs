//! The language of mail: values whose grammar was checked, and the SMTP client and server as state
//! machines. No socket, no clock, no runtime: octets and instants come in as arguments.

pub mod client;
pub mod command;
pub mod data;
pub mod deliver_by;
pub mod domain;
pub mod envelope;
pub mod extension;
pub mod line;
pub mod mailbox;
pub mod node;
mod parameter;
pub mod passage;
pub mod path;
pub mod priority;
pub mod release;
pub mod reply;
pub mod sasl;
pub mod server;
pub mod trace;
pub mod xtext;

pub use deliver_by::{ByMode, DeliverBy};
pub use domain::{Domain, Host};
pub use envelope::{Envelope, MailParams, Notify, OriginalRecipient, Recipient, Ret};
pub use line::Input;
pub use mailbox::{LocalPart, Mailbox};
pub use node::Node;
pub use passage::PassageToken;
pub use path::{ForwardPath, ReversePath};
pub use priority::Priority;
pub use release::{Release, ReleaseLimit};
pub use reply::{Code, Reply, Severity, Status};
