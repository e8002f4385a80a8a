//! The language of mail: values whose grammar was checked, and the SMTP client and server as state
//! machines. No socket, no clock, no runtime: octets and instants come in as arguments.

pub mod domain;
pub mod envelope;
pub mod mailbox;
pub mod path;
pub mod reply;

pub use domain::{Domain, Host};
pub use envelope::{Envelope, MailParams, Notify, OriginalRecipient, Recipient, Ret};
pub use mailbox::{LocalPart, Mailbox};
pub use path::{ForwardPath, ReversePath};
pub use reply::{Code, Reply, Severity, Status};
