//! Setting aside: what is left of something damaged is copied to `quarantine/` and synced before it
//! is changed in its place. A message found damaged while the queue runs then leaves the queue.

use std::io::{self, IoSlice};
use std::sync::Arc;

use crate::error::LoadError;
use crate::fs::{Access, Dir, Fs, FsFile, read_full};
use crate::id::QueueId;
use crate::index::Entry;
use crate::record::{segment_name, span};
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

/// Copies octets of a file into a new file in `quarantine/`; returns its name. What cannot be read
/// becomes zeros. Nothing is made for a region beyond the end of the file.
pub(crate) fn save(fs: &dyn Fs, (dir, name): (Dir, &str), from: u64, to: u64) -> io::Result<Option<String>> {
    let source = fs.open(dir, name, Access::Read)?;
    let to = to.min(source.octets()?);
    if from >= to {
        return Ok(None);
    }
    let (saved, file) = create_new(fs, &format!("{dir}.{name}.{from:08x}"))?;
    let mut buffer = vec![0; 64 << 10];
    let mut at = from;
    while at < to {
        let count = (to - at).min(buffer.len() as u64) as usize;
        let piece = &mut buffer[..count];
        if read_full(&*source, at, piece).is_err() {
            read_blocks(&*source, at, piece);
        }
        file.write_at(at - from, &mut [IoSlice::new(piece)])?;
        at += count as u64;
    }
    file.sync()?;
    Ok(Some(format!("quarantine/{saved}")))
}

/// Reads what can be read of a range, block by block; the rest becomes zeros.
fn read_blocks(source: &dyn FsFile, at: u64, piece: &mut [u8]) {
    for (i, block) in piece.chunks_mut(4096).enumerate() {
        if read_full(source, at + i as u64 * 4096, block).is_err() {
            block.fill(0);
        }
    }
}

/// Makes a file in `quarantine/`, under another name where there is one already.
fn create_new(fs: &dyn Fs, name: &str) -> io::Result<(String, Arc<dyn FsFile>)> {
    let mut candidate = name.to_owned();
    for n in 1.. {
        match fs.create(Dir::Quarantine, &candidate) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => candidate = format!("{name}.{n}"),
            result => return result.map(|file| (candidate, file)),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}
