//! Delivery that ends on this host: Maildir folders, written by blocking code on the runtime's
//! blocking threads, so many at a time.
//!
//! LMTP is no business of this room: it is spoken by `smtp::client` like any other next hop.

mod folder;
mod line_ends;
pub mod maildir;

use std::sync::Arc;

use tokio::sync::Semaphore;

pub use maildir::{Deliver, DeliverError, Delivered, Maildir};

/// Runs blocking deliveries beside the runtime, at most so many at a time; the others wait.
#[derive(Clone, Debug)]
pub struct BlockingLimit {
    permits: Arc<Semaphore>,
}

impl BlockingLimit {
    /// Allows `deliveries_max` deliveries at a time, at least one.
    pub fn new(deliveries_max: usize) -> BlockingLimit {
        BlockingLimit { permits: Arc::new(Semaphore::new(deliveries_max.clamp(1, Semaphore::MAX_PERMITS))) }
    }

    /// Runs `job` as soon as a place is free.
    ///
    /// # Errors
    /// Those of the job; [`DeliverError::Interrupted`] when it panicked or the runtime ends.
    pub async fn run<F>(&self, job: F) -> Result<Delivered, DeliverError>
    where
        F: FnOnce() -> Result<Delivered, DeliverError> + Send + 'static,
    {
        let permit = self.permits.clone().acquire_owned().await.map_err(|_| DeliverError::Interrupted)?;
        let task = tokio::task::spawn_blocking(move || {
            let _held_while_it_runs = permit;
            job()
        });
        task.await.unwrap_or(Err(DeliverError::Interrupted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panicking_delivery_is_a_transient_failure_and_frees_its_place() {
        let limit = BlockingLimit::new(1);
        let lost = limit.run(|| panic!("a fault of the test's own")).await;
        assert!(matches!(lost, Err(DeliverError::Interrupted)), "{lost:?}");
        let next = limit.run(|| Ok(Delivered { name: "x".to_owned(), already: false })).await;
        assert!(next.is_ok(), "{next:?}");
    }
}
