//! The agent: every socket, task, clock and setting of Postroad.

pub mod config;
pub mod deliver;
pub mod dns_zone;
pub mod policy;
pub mod route;
pub mod tls;
