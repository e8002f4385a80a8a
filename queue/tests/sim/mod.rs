//! A disk in memory that tells what was synced from what was not, stops or fails at a chosen
//! operation, and shows every state a crash may leave.
//!
//! A write is durable after a sync of its file, a name after a sync of its directory. What is not may
//! be lost, kept, torn between sectors of 512 octets, or kept in part and out of order.

// Each test program that includes this file uses another part of it.
#![allow(dead_code)]

use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard};

use postroad_queue::fs::{Access, Dir, Fs, FsFile};

pub mod disk;

use disk::{Change, Disk, Fate, Inode, NameChange, beside, change_names, change_octets, kinds, sectors};

const FREE_OCTETS: u64 = 1 << 40;

/// An operation that changes the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Create(Dir),
    Rename,
    Remove(Dir),
    Write(Dir),
    Allocate(Dir),
    SetOctets(Dir),
    Sync(Dir),
    SyncDir(Dir),
}

/// An operation that only looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    List(Dir),
    Open(Dir),
    Octets(Dir),
    Read(Dir),
}

/// What goes wrong, and at which operation, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    Well,
    /// Power fails during this operation; everything later fails too.
    Stop(usize),
    /// This operation alone fails with an input/output error. What a failed sync was to make durable
    /// never will be: the system forgets that it was not written.
    Broken(usize),
    /// The same for lack of space, whatever the operation: a sync may be the first to find no room.
    Short(usize),
    /// Operations that only look fail with an input/output error from this one, counted by
    /// themselves, up to that one.
    Unreadable(usize, usize),
    /// Operations that take space fail from this one up to that one.
    Full(usize, usize),
    /// No file can be made from this operation up to that one.
    NoDescriptors(usize, usize),
}

/// What of the unsynced writes and names survives a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survives {
    Nothing,
    Everything,
    /// All names, but no write.
    Names,
    /// All writes, but no name.
    Writes,
    /// All, but of the last write only the first sectors.
    First(usize),
    /// All, but of the last write this sector is missing.
    AllBut(usize),
    /// Any subset, chosen by a seed.
    Some(u64),
}

/// The simulated disk.
pub struct SimFs {
    disk: Arc<Mutex<Disk>>,
    plan: Plan,
}

struct SimFile {
    disk: Arc<Mutex<Disk>>,
    plan: Plan,
    inode: usize,
}

fn lock(disk: &Mutex<Disk>) -> MutexGuard<'_, Disk> {
    disk.lock().expect("no test panics while it holds the disk")
}

impl SimFs {
    /// An empty disk.
    pub fn new(plan: Plan) -> SimFs {
        SimFs { disk: Arc::default(), plan }
    }

    /// The disk as it is after a crash.
    pub fn crashed(&self, survives: Survives, plan: Plan) -> SimFs {
        SimFs { disk: Arc::new(Mutex::new(lock(&self.disk).after_crash(survives))), plan }
    }

    /// The same disk under another process: nothing is lost, nothing is synced.
    pub fn restarted(&self, plan: Plan) -> SimFs {
        let (trace, steps, looks) = Default::default();
        let disk = Disk { trace, steps, looks, off: false, ..lock(&self.disk).clone() };
        SimFs { disk: Arc::new(Mutex::new(disk)), plan }
    }

    /// The operations so far.
    pub fn trace(&self) -> Vec<Op> {
        lock(&self.disk).trace.clone()
    }

    /// The same, each with what the queue was about and which records were written: `H` a segment's
    /// header, `M` and `L` messages with their content beside and apart, `S` states, `C` changes, `R` retirements,
    /// `V` a void.
    pub fn steps(&self) -> Vec<String> {
        lock(&self.disk).steps.clone()
    }

    /// The operations so far that only look.
    pub fn looks(&self) -> Vec<Look> {
        lock(&self.disk).looks.clone()
    }

    /// Over how many sectors the last write is spread, if it is not synced.
    pub fn last_write_sectors(&self) -> usize {
        let disk = lock(&self.disk);
        let change = disk.last_write.and_then(|(inode, j)| disk.inodes[inode].unsynced.get(j).cloned());
        change.map_or(0, |change| sectors(&change).len())
    }

    /// The files of a directory and what is in them.
    pub fn files(&self, dir: Dir) -> Vec<(String, Vec<u8>)> {
        let disk = lock(&self.disk);
        let of_dir = disk.names.iter().filter(|((d, _), _)| *d == dir);
        of_dir.map(|((_, name), inode)| (name.clone(), disk.inodes[*inode].current.clone())).collect()
    }

    /// Turns one bit of a file over.
    pub fn flip(&self, dir: Dir, name: &str, bit: usize) {
        let mut disk = lock(&self.disk);
        let inode = disk.names[&(dir, name.to_owned())];
        let file = &mut disk.inodes[inode];
        file.current[bit / 8] ^= 1 << (bit % 8);
        file.durable = file.current.clone();
    }

    fn file(&self, inode: usize) -> Arc<dyn FsFile> {
        Arc::new(SimFile { disk: self.disk.clone(), plan: self.plan, inode })
    }
}

impl Fs for SimFs {
    fn place(&self) -> String {
        "/sim".into()
    }

    fn list(&self, dir: Dir) -> io::Result<Vec<String>> {
        lock(&self.disk).look(self.plan, Look::List(dir))?;
        Ok(self.files(dir).into_iter().map(|(name, _)| name).collect())
    }

    fn create(&self, dir: Dir, name: &str) -> io::Result<Arc<dyn FsFile>> {
        let mut disk = lock(&self.disk);
        let full = matches!(self.plan, Plan::Full(..) | Plan::Short(_) | Plan::NoDescriptors(..));
        let fate = disk.operation(self.plan, Op::Create(dir));
        if disk.names.contains_key(&(dir, name.to_owned())) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if let (Fate::Bad(e), true) = (&fate, full) {
            return Err(io::Error::from_raw_os_error(e.raw_os_error().unwrap_or(5)));
        }
        let inode = disk.inodes.len();
        disk.inodes.push(Inode { dir: Some(dir), ..Inode::default() });
        disk.change_names(NameChange::Add(dir, name.to_owned(), inode));
        match fate {
            Fate::Good => Ok(self.file(inode)),
            Fate::Bad(e) => Err(e),
        }
    }

    fn open(&self, dir: Dir, name: &str, _: Access) -> io::Result<Arc<dyn FsFile>> {
        let mut disk = lock(&self.disk);
        disk.look(self.plan, Look::Open(dir))?;
        let inode = disk.names.get(&(dir, name.to_owned())).copied();
        inode.map(|inode| self.file(inode)).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn rename(&self, from: (Dir, &str), to: (Dir, &str)) -> io::Result<()> {
        let mut disk = lock(&self.disk);
        let fate = disk.operation(self.plan, Op::Rename);
        let (from, to) = ((from.0, from.1.to_owned()), (to.0, to.1.to_owned()));
        let inode = *disk.names.get(&from).ok_or(io::ErrorKind::NotFound)?;
        disk.change_names(NameChange::Move(from, to, inode));
        fate.result()
    }

    fn remove(&self, dir: Dir, name: &str) -> io::Result<()> {
        let mut disk = lock(&self.disk);
        let fate = disk.operation(self.plan, Op::Remove(dir));
        if !disk.names.contains_key(&(dir, name.to_owned())) {
            return Err(io::ErrorKind::NotFound.into());
        }
        disk.change_names(NameChange::Remove(dir, name.to_owned()));
        fate.result()
    }

    fn sync_dir(&self, dir: Dir) -> io::Result<()> {
        let mut disk = lock(&self.disk);
        disk.operation(self.plan, Op::SyncDir(dir)).result()?;
        let touches = |change: &NameChange| match change {
            NameChange::Add(d, ..) | NameChange::Remove(d, _) => *d == dir,
            NameChange::Move(from, to, _) => from.0 == dir || to.0 == dir,
        };
        let (now, later) = std::mem::take(&mut disk.unsynced_names).into_iter().partition(touches);
        disk.unsynced_names = later;
        let now: Vec<NameChange> = now;
        now.iter().for_each(|change| change_names(&mut disk.durable_names, change));
        Ok(())
    }

    fn free_octets(&self) -> io::Result<u64> {
        Ok(FREE_OCTETS)
    }
}

impl Fate {
    fn result(self) -> io::Result<()> {
        match self {
            Fate::Good => Ok(()),
            Fate::Bad(e) => Err(e),
        }
    }
}

impl SimFile {
    fn look(&self, look: fn(Dir) -> Look) -> io::Result<MutexGuard<'_, Disk>> {
        let mut disk = lock(&self.disk);
        let dir = disk.inodes[self.inode].dir.expect("every file was created somewhere");
        disk.look(self.plan, look(dir))?;
        Ok(disk)
    }

    fn begin(&self, op: fn(Dir) -> Op) -> (MutexGuard<'_, Disk>, Fate) {
        let mut disk = lock(&self.disk);
        let dir = disk.inodes[self.inode].dir.expect("every file was created somewhere");
        let fate = disk.operation(self.plan, op(dir));
        (disk, fate)
    }
}

impl FsFile for SimFile {
    fn octets(&self) -> io::Result<u64> {
        let disk = self.look(Look::Octets)?;
        Ok(disk.inodes[self.inode].current.len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let disk = self.look(Look::Read)?;
        let octets = &disk.inodes[self.inode].current;
        let from = octets.len().min(offset as usize);
        let count = buffer.len().min(octets.len() - from);
        buffer[..count].copy_from_slice(&octets[from..from + count]);
        Ok(count)
    }

    fn write_at(&self, offset: u64, pieces: &mut [IoSlice<'_>]) -> io::Result<()> {
        let mut data: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
        let (mut disk, fate) = self.begin(Op::Write);
        let kinds = if disk.inodes[self.inode].dir == Some(Dir::Log) { kinds(&data) } else { String::new() };
        if let Some(step) = disk.steps.last_mut() {
            *step = format!("{step} {kinds}").trim_end().to_owned();
        }
        if matches!((&fate, self.plan), (Fate::Bad(_), Plan::Full(..) | Plan::Short(_) | Plan::Broken(_))) {
            data.truncate(data.len() * 2 / 3);
        }
        if !disk.off || matches!(self.plan, Plan::Stop(k) if k + 1 == disk.trace.len()) {
            disk.change(self.inode, Change::Write(offset, data));
        }
        fate.result()
    }

    fn allocate(&self, octets: u64) -> io::Result<()> {
        let (mut disk, fate) = self.begin(Op::Allocate);
        fate.result()?;
        if octets > disk.inodes[self.inode].current.len() as u64 {
            disk.change(self.inode, Change::SetOctets(octets));
        }
        Ok(())
    }

    fn set_octets(&self, octets: u64) -> io::Result<()> {
        let (mut disk, fate) = self.begin(Op::SetOctets);
        if !matches!((&fate, self.plan), (Fate::Bad(_), Plan::Broken(_) | Plan::Short(_))) {
            disk.change(self.inode, Change::SetOctets(octets));
        }
        fate.result()
    }

    fn start_writeback(&self, _: u64, _: u64) {}

    fn sync(&self) -> io::Result<()> {
        let fate = self.begin(Op::Sync).1;
        beside();
        let result = self.end_sync(fate);
        beside();
        result
    }
}

impl SimFile {
    fn end_sync(&self, fate: Fate) -> io::Result<()> {
        let mut disk = lock(&self.disk);
        let file = &mut disk.inodes[self.inode];
        if let Err(e) = fate.result() {
            file.forgotten = file.unsynced.len();
            return Err(e);
        }
        let kept = file.unsynced.drain(..).skip(std::mem::take(&mut file.forgotten)).collect::<Vec<_>>();
        kept.iter().for_each(|change| change_octets(&mut file.durable, change));
        if disk.last_write.is_some_and(|(inode, _)| inode == self.inode) {
            disk.last_write = None;
        }
        Ok(())
    }
}
