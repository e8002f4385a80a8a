//! Setting aside a message found damaged while the queue runs: what is left of it goes to
//! `quarantine/`, then it leaves the queue.

use std::io;

use crate::error::LoadError;
use crate::fs::Dir;
use crate::id::QueueId;
use crate::index::Entry;
use crate::record::{segment_name, span};
use crate::recovery::save;
use crate::spool::{Queue, Spool, lock};

impl Queue {
    /// Sets a damaged message aside: copies its record and its content as they are into
    /// `quarantine/`, synced, and retires it. Returns where it was saved, relative to the queue's
    /// directory. For when [`Queue::load`] or reading its content says that it is damaged.
    pub fn quarantine(&self, id: QueueId) -> Result<String, LoadError> {
        self.0.check_poison().map_err(LoadError::Poisoned)?;
        let entry = lock(&self.0.index).entries.get(&id).copied().ok_or(LoadError::Unknown(id))?;
        let failed = |source| LoadError::Io { id, place: "quarantine".into(), source };
        let saved = set_aside(&self.0, id, entry).map_err(failed)?;
        self.retire(id);
        Ok(saved)
    }
}

fn set_aside(spool: &Spool, id: QueueId, entry: Entry) -> io::Result<String> {
    let inline = if entry.spilled { 0 } else { entry.content_octets };
    let from = entry.message.offset();
    let to = from + span(entry.meta_octets, inline);
    let saved = save(&*spool.fs, (Dir::Log, &segment_name(entry.message.segment)), from, to)?;
    if entry.spilled {
        // Copied, not moved: until the retirement is synced the message may still come back.
        match save(&*spool.fs, (Dir::Content, &id.to_string()), 0, u64::MAX) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    spool.fs.sync_dir(Dir::Quarantine)?;
    Ok(saved.unwrap_or_else(|| "quarantine".into()))
}
