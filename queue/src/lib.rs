//! The durable queue: disk only, no network, no runtime, no clock.

pub mod id;
pub mod item;
pub mod retry;
pub mod schedule;

pub use id::{QueueId, QueueIdError, UnixMillis};
pub use item::{Item, Origin, RecipientState, Report, State};
pub use retry::RetryPolicy;
pub use schedule::Schedule;
