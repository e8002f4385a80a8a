//! How many connections each customer or member has.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Connections by user; a user without any takes no memory.
#[derive(Debug, Default)]
pub(super) struct Places(Mutex<HashMap<Box<str>, u32>>);

/// One connection, for as long as it is kept.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    user: Box<str>,
}

impl Places {
    /// Counts one more of a user, unless it has `max`, or all together have `total_max` where that is bounded.
    pub fn enter(self: &Arc<Places>, user: &str, max: u32, total_max: Option<usize>) -> Option<Place> {
        let mut counts = self.lock();
        if total_max.is_some_and(|max| total(&counts) >= max) {
            return None;
        }
        let count = counts.entry(user.into()).or_default();
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(Place { places: self.clone(), user: user.into() })
    }

    /// Returns how many there are.
    pub fn count(&self) -> usize {
        total(&self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Box<str>, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn total(counts: &HashMap<Box<str>, u32>) -> usize {
    counts.values().map(|count| *count as usize).sum()
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.places.lock();
        if let Some(count) = counts.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.user);
            }
        }
    }
}
