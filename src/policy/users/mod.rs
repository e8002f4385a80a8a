//! The users who may submit: a text file, one user a line, `name:password hash:addresses`.
//!
//! A line that is wrong is reported and skipped, and never lets anybody in. Passwords are kept as
//! argon2id hashes (RFC 9106) only.

mod file;
mod list;
pub mod password;
mod store;

pub use file::{EditError, UsersFile};
pub use list::{LineFault, SenderRule, User, UserList};
pub use store::UserStore;
