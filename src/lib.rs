//! The agent: every socket, task, clock and setting of Postroad.
