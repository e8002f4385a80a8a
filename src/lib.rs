//! The agent: every socket, task, clock and setting of Postroad.

pub mod admin;
pub mod agent;
pub mod cli;
pub mod clock;
pub mod config;
pub mod deliver;
pub mod demo;
pub mod dns_zone;
pub mod dsn;
pub mod history;
pub mod journal;
pub mod listen;
pub mod local;
pub mod memory;
pub mod metrics;
pub mod net;
pub mod peer;
pub mod policy;
pub mod route;
pub mod submit;
pub mod systemd;
pub mod telemetry;
pub mod tls;
pub mod turn;
