//! Forward-path to route, and route to hops.
pub mod fault;
pub mod mx;
pub mod recorder;
