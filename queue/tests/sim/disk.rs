//! The state of a simulated disk: what is there, what of it is durable, and what a crash may make of it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;

use postroad_queue::fs::Dir;

use super::{Look, Op, Plan, Survives};

const SECTOR: u64 = 512;

thread_local! {
    static PHASE: Cell<&'static str> = const { Cell::new("") };
    static BESIDE: RefCell<Option<Box<dyn FnMut()>>> = const { RefCell::new(None) };
}

/// Names what goes on in this thread while a file is synced: called before the disk has taken what was
/// written, and once more behind that.
pub fn while_syncing(act: Option<Box<dyn FnMut()>>) {
    BESIDE.set(act);
}

pub(super) fn beside() {
    if let Some(mut act) = BESIDE.take() {
        act();
        BESIDE.set(Some(act));
    }
}

/// Says what the queue is about to do in this thread, for [`SimFs::steps`].
pub fn phase(name: &'static str) {
    PHASE.set(name);
}

/// Names the records in what is written to the log, one letter each.
pub(super) fn kinds(data: &[u8]) -> String {
    let heads = data.chunks(64).filter(|chunk| chunk.len() == 64);
    heads
        .filter_map(|head| match (&head[..4], &head[..8], head[4]) {
            (_, b"PRoadSeg", _) => Some('H'),
            (b"PRec", _, 1) => Some(if head[5] & 1 == 1 { 'L' } else { 'M' }),
            (b"PRec", _, 2) => Some('S'),
            (b"PRec", _, 3) => Some('R'),
            (b"PRec", _, 4) => Some('V'),
            (b"PRec", _, 5) => Some('C'),
            _ => None,
        })
        .collect()
}

#[derive(Clone)]
pub(super) enum Change {
    Write(u64, Vec<u8>),
    SetOctets(u64),
}

#[derive(Clone)]
pub(super) enum NameChange {
    Add(Dir, String, usize),
    Remove(Dir, String),
    Move((Dir, String), (Dir, String), usize),
}

#[derive(Clone, Default)]
pub(super) struct Inode {
    pub(super) dir: Option<Dir>,
    pub(super) current: Vec<u8>,
    pub(super) durable: Vec<u8>,
    pub(super) unsynced: Vec<Change>,
    /// How many of `unsynced` a failed sync was about: a later one does not write them.
    pub(super) forgotten: usize,
}

pub(super) type Names = BTreeMap<(Dir, String), usize>;

#[derive(Clone, Default)]
pub(super) struct Disk {
    pub(super) inodes: Vec<Inode>,
    pub(super) names: Names,
    pub(super) durable_names: Names,
    pub(super) unsynced_names: Vec<NameChange>,
    pub(super) trace: Vec<Op>,
    /// The same, with what the queue was about and which records were written.
    pub(super) steps: Vec<String>,
    pub(super) looks: Vec<Look>,
    pub(super) off: bool,
    pub(super) last_write: Option<(usize, usize)>,
}

pub(super) enum Fate {
    Good,
    /// Done in part or whole, perhaps, and then power fails or the disk refuses.
    Bad(io::Error),
}

pub(super) fn change_octets(octets: &mut Vec<u8>, change: &Change) {
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

pub(super) fn change_names(names: &mut Names, change: &NameChange) {
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
pub(super) fn sectors(change: &Change) -> Vec<Change> {
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

pub(super) struct Random(u64);

impl Random {
    fn flip(&mut self) -> bool {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 62 & 1 == 1
    }
}

impl Disk {
    pub(super) fn operation(&mut self, plan: Plan, op: Op) -> Fate {
        let k = self.trace.len();
        self.trace.push(op);
        self.steps.push(format!("{}: {op:?}", PHASE.get()));
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
            Plan::Short(at) if at == k => Fate::Bad(io::Error::from_raw_os_error(28)),
            Plan::NoDescriptors(from, to) if matches!(op, Op::Create(_)) && (from..to).contains(&k) => {
                Fate::Bad(io::Error::from_raw_os_error(24))
            }
            _ => Fate::Good,
        }
    }

    pub(super) fn look(&mut self, plan: Plan, look: Look) -> io::Result<()> {
        let k = self.looks.len();
        self.looks.push(look);
        match plan {
            Plan::Unreadable(from, to) if (from..to).contains(&k) => Err(io::Error::from_raw_os_error(5)),
            _ => Ok(()),
        }
    }

    pub(super) fn change_names(&mut self, change: NameChange) {
        change_names(&mut self.names, &change);
        self.unsynced_names.push(change);
    }

    pub(super) fn change(&mut self, inode: usize, change: Change) {
        let file = &mut self.inodes[inode];
        change_octets(&mut file.current, &change);
        if matches!(change, Change::Write(..)) {
            self.last_write = Some((inode, file.unsynced.len()));
        }
        file.unsynced.push(change);
    }

    pub(super) fn after_crash(&self, survives: Survives) -> Disk {
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
            *inode = Inode { dir: inode.dir, current: octets.clone(), durable: octets, ..Inode::default() };
        }
        Disk { inodes, names: names.clone(), durable_names: names, ..Disk::default() }
    }
}
