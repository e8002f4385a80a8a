//! A disk in memory that tells what was synced from what was not, stops or fails at a chosen
//! operation, and shows every state a crash may leave.
//!
//! A write is durable after a sync of its file, a name after a sync of its directory. What is not may
//! be lost, kept, torn between sectors of 512 octets, or kept in part and out of order.

// Each test program that includes this file uses another part of it.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard};

use postroad_queue::fs::{Access, Dir, Fs, FsFile};

const SECTOR: u64 = 512;
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

/// What goes wrong, and at which operation, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    Well,
    /// Power fails during this operation; everything later fails too.
    Stop(usize),
    /// This operation alone fails with an input/output error.
    Broken(usize),
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

#[derive(Clone)]
enum Change {
    Write(u64, Vec<u8>),
    SetOctets(u64),
}

#[derive(Clone)]
enum NameChange {
    Add(Dir, String, usize),
    Remove(Dir, String),
    Move((Dir, String), (Dir, String), usize),
}

#[derive(Clone, Default)]
struct Inode {
    dir: Option<Dir>,
    current: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Change>,
}

type Names = BTreeMap<(Dir, String), usize>;

#[derive(Clone, Default)]
struct Disk {
    inodes: Vec<Inode>,
    names: Names,
    durable_names: Names,
    unsynced_names: Vec<NameChange>,
    trace: Vec<Op>,
    off: bool,
    last_write: Option<(usize, usize)>,
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

enum Fate {
    Good,
    /// Done in part or whole, perhaps, and then power fails or the disk refuses.
    Bad(io::Error),
}

fn change_octets(octets: &mut Vec<u8>, change: &Change) {
    match change {
        Change::SetOctets(n) => octets.resize(*n as usize, 0),
        Change::Write(at, data) => {
            let end = *at as usize + data.len();
            if octets.len() < end {
                octets.resize(end, 0);
            }
            octets[*at as usize..end].copy_from_slice(data);
        }
    }
}

fn change_names(names: &mut Names, change: &NameChange) {
    match change.clone() {
        NameChange::Add(dir, name, inode) => drop(names.insert((dir, name), inode)),
        NameChange::Remove(dir, name) => drop(names.remove(&(dir, name))),
        NameChange::Move(from, to, inode) => {
            names.remove(&from);
            names.insert(to, inode);
        }
    }
}

/// A write cut into what one sector holds of it.
fn sectors(change: &Change) -> Vec<Change> {
    let Change::Write(at, data) = change else { return vec![change.clone()] };
    let (mut pieces, mut from) = (Vec::new(), 0);
    while from < data.len() {
        let start = at + from as u64;
        let to = data.len().min(from + (SECTOR - start % SECTOR) as usize);
        pieces.push(Change::Write(start, data[from..to].to_vec()));
        from = to;
    }
    pieces
}

struct Random(u64);

impl Random {
    fn flip(&mut self) -> bool {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 62 & 1 == 1
    }
}

impl Disk {
    fn operation(&mut self, plan: Plan, op: Op) -> Fate {
        let k = self.trace.len();
        self.trace.push(op);
        let takes_space = matches!(op, Op::Create(_) | Op::Write(_) | Op::Allocate(_));
        match plan {
            _ if self.off => Fate::Bad(io::Error::other("power is off")),
            Plan::Stop(at) if at == k => {
                self.off = true;
                Fate::Bad(io::Error::other("power fails"))
            }
            Plan::Broken(at) if at == k => Fate::Bad(io::Error::from_raw_os_error(5)),
            Plan::Full(from, to) if takes_space && (from..to).contains(&k) => {
                Fate::Bad(io::Error::from_raw_os_error(28))
            }
            Plan::NoDescriptors(from, to) if matches!(op, Op::Create(_)) && (from..to).contains(&k) => {
                Fate::Bad(io::Error::from_raw_os_error(24))
            }
            _ => Fate::Good,
        }
    }

    fn change_names(&mut self, change: NameChange) {
        change_names(&mut self.names, &change);
        self.unsynced_names.push(change);
    }

    fn change(&mut self, inode: usize, change: Change) {
        let file = &mut self.inodes[inode];
        change_octets(&mut file.current, &change);
        if matches!(change, Change::Write(..)) {
            self.last_write = Some((inode, file.unsynced.len()));
        }
        file.unsynced.push(change);
    }

    fn after_crash(&self, survives: Survives) -> Disk {
        let mut random = Random(if let Survives::Some(seed) = survives {
            (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        } else {
            0
        });
        let mut names = self.durable_names.clone();
        for change in &self.unsynced_names {
            let keep = match survives {
                Survives::Nothing | Survives::Writes => false,
                Survives::Some(_) => random.flip(),
                _ => true,
            };
            if keep {
                change_names(&mut names, change);
            }
        }
        let mut inodes = self.inodes.clone();
        for (i, inode) in inodes.iter_mut().enumerate() {
            let mut octets = std::mem::take(&mut inode.durable);
            for (j, change) in inode.unsynced.iter().enumerate() {
                let last = self.last_write == Some((i, j));
                for (n, piece) in sectors(change).iter().enumerate() {
                    let keep = match survives {
                        Survives::Nothing | Survives::Names => false,
                        Survives::Everything | Survives::Writes => true,
                        Survives::First(count) => !last || n < count,
                        Survives::AllBut(missing) => !last || n != missing,
                        Survives::Some(_) => random.flip(),
                    };
                    if keep {
                        change_octets(&mut octets, piece);
                    }
                }
            }
            *inode = Inode { dir: inode.dir, current: octets.clone(), durable: octets, unsynced: Vec::new() };
        }
        Disk { inodes, names: names.clone(), durable_names: names, ..Disk::default() }
    }
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
        let disk = Disk { trace: Vec::new(), off: false, ..lock(&self.disk).clone() };
        SimFs { disk: Arc::new(Mutex::new(disk)), plan }
    }

    /// The operations so far.
    pub fn trace(&self) -> Vec<Op> {
        lock(&self.disk).trace.clone()
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
        Ok(self.files(dir).into_iter().map(|(name, _)| name).collect())
    }

    fn create(&self, dir: Dir, name: &str) -> io::Result<Arc<dyn FsFile>> {
        let mut disk = lock(&self.disk);
        let full = matches!(self.plan, Plan::Full(..) | Plan::NoDescriptors(..));
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
        let disk = lock(&self.disk);
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
    fn begin(&self, op: fn(Dir) -> Op) -> (MutexGuard<'_, Disk>, Fate) {
        let mut disk = lock(&self.disk);
        let dir = disk.inodes[self.inode].dir.expect("every file was created somewhere");
        let fate = disk.operation(self.plan, op(dir));
        (disk, fate)
    }
}

impl FsFile for SimFile {
    fn octets(&self) -> io::Result<u64> {
        Ok(lock(&self.disk).inodes[self.inode].current.len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let disk = lock(&self.disk);
        let octets = &disk.inodes[self.inode].current;
        let from = octets.len().min(offset as usize);
        let count = buffer.len().min(octets.len() - from);
        buffer[..count].copy_from_slice(&octets[from..from + count]);
        Ok(count)
    }

    fn write_at(&self, offset: u64, pieces: &mut [IoSlice<'_>]) -> io::Result<()> {
        let mut data: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
        let (mut disk, fate) = self.begin(Op::Write);
        if matches!((&fate, self.plan), (Fate::Bad(_), Plan::Full(..) | Plan::Broken(_))) {
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
        if !matches!((&fate, self.plan), (Fate::Bad(_), Plan::Broken(_))) {
            disk.change(self.inode, Change::SetOctets(octets));
        }
        fate.result()
    }

    fn start_writeback(&self, _: u64, _: u64) {}

    fn sync(&self) -> io::Result<()> {
        let (mut disk, fate) = self.begin(Op::Sync);
        fate.result()?;
        let file = &mut disk.inodes[self.inode];
        file.durable = file.current.clone();
        file.unsynced.clear();
        if disk.last_write.is_some_and(|(inode, _)| inode == self.inode) {
            disk.last_write = None;
        }
        Ok(())
    }
}
