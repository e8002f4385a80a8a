//! Delivery: from the queue to a next hop or a mailbox of this host.

pub mod local;
