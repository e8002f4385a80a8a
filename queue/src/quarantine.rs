//! Setting aside: what is left of something damaged is copied to `quarantine/` and synced before it
//! is changed in its place. A message found damaged while the queue runs then leaves the queue.

use std::io::{self, IoSlice};
use std::sync::Arc;

use crate::error::LoadError;
use crate::fs::{Access, Dir, Fs, FsFile, read_full};
use crate::id::QueueId;
use crate::index::Entry;
use crate::item::State;
use crate::record::{segment_name, span};
use crate::spool::{Queue, Spool, lock};

/// What became of a damaged message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAside {
    /// Where what was damaged lies now, relative to the queue's directory.
    pub place: String,
    /// Whether only its state was damaged, so that it stays in the queue as it was earlier: some
    /// recipients may get it again.
    pub stays: bool,
}

impl Queue {
    /// Sets a damaged message aside: copies its record and its content as they are into
    /// `quarantine/`, synced, and retires it. Where only its state is damaged it stays, in the newest
    /// state that can be read. For when [`Queue::load`] or reading its content says that it is damaged.
    pub fn quarantine(&self, id: QueueId) -> Result<SetAside, LoadError> {
        let spool = &*self.0;
        spool.check_poison().map_err(LoadError::Poisoned)?;
        let entry = lock(&spool.index).get(id).ok_or(LoadError::Unknown(id))?;
        let failed = |source| LoadError::Io { id, place: "quarantine".into(), source };
        if let Some(state) = salvage(spool, id, &entry) {
            let place = set_states_aside(spool, &entry).map_err(failed)?;
            let mut index = lock(&spool.index);
            lock(&spool.recorded).forget(id);
            index.forget_states(id);
            drop(index);
            self.record(id, state, |_| ());
            return Ok(SetAside { place, stays: true });
        }
        let place = set_aside(spool, id, &entry).map_err(failed)?;
        self.retire(id);
        Ok(SetAside { place, stays: false })
    }
}

/// Returns the newest state that can be read of a message that is sound but for its states. `None`
/// when they are sound, too, or when more than they is not.
fn salvage(spool: &Spool, id: QueueId, entry: &Entry) -> Option<State> {
    if !matches!(spool.read_item(id, entry), Err(LoadError::Damaged { .. })) {
        return None;
    }
    let mut sound = Entry { state: None, changes: Vec::new(), ..entry.clone() };
    let mut state = spool.read_item(id, &sound).ok()?.state;
    for (place, octets) in entry.states() {
        let mut tried = sound.clone();
        if entry.state == Some((place, octets)) {
            tried.state = entry.state;
        } else {
            tried.changes.push((place, octets));
        }
        if let Ok(item) = spool.read_item(id, &tried) {
            (sound, state) = (tried, item.state);
        }
    }
    Some(state)
}

fn set_states_aside(spool: &Spool, entry: &Entry) -> io::Result<String> {
    let mut place = None;
    for (at, octets) in entry.states() {
        let name = segment_name(at.segment);
        let saved = save(&*spool.fs, (Dir::Log, &name), at.offset(), at.offset() + span(octets, 0))?;
        place = place.or(saved);
    }
    spool.fs.sync_dir(Dir::Quarantine)?;
    Ok(place.unwrap_or_else(|| "quarantine".into()))
}

fn set_aside(spool: &Spool, id: QueueId, entry: &Entry) -> io::Result<String> {
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
    if let Err(e) = copy(&*source, from, to, &*file) {
        // Half a copy helps nobody, least of all on a full disk.
        let _ = fs.remove(Dir::Quarantine, &saved);
        return Err(e);
    }
    Ok(Some(format!("quarantine/{saved}")))
}

fn copy(source: &dyn FsFile, from: u64, to: u64, file: &dyn FsFile) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    let mut at = from;
    while at < to {
        let count = (to - at).min(buffer.len() as u64) as usize;
        let piece = &mut buffer[..count];
        if read_full(source, at, piece).is_err() {
            read_blocks(source, at, piece);
        }
        file.write_at(at - from, &mut [IoSlice::new(piece)])?;
        at += count as u64;
    }
    file.sync()
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
