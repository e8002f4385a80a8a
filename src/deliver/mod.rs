//! The way out: which message goes where and when, over which connection, and what came of it.
//!
//! [`Delivery`] owns the schedule. New mail is heard of from the queue alone, so `deliver` and
//! `listen` never name each other. Every outcome is recorded in the queue before anyone acts on
//! it; notifications are committed before the message they are about is retired.

mod active;
mod admin;
mod admission;
mod attempt;
mod awaited;
mod callers;
mod carrier;
mod dispatcher;
mod diverted;
mod jobs;
pub mod local;
mod local_mail;
mod members;
mod note;
mod notify;
mod open;
pub mod outcome;
mod patience;
mod pool;
mod remote;
#[cfg(test)]
mod scenario;
mod sweep;
mod takeover;
mod through;
pub mod transport;
mod turned;
mod worker;

pub use dispatcher::{Delivery, Parts, Routing};
