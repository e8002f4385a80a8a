//! What is fuzzed of the queue: opening it on whatever its files hold. The fuzz binary calls it, and
//! `queue/tests/corpus.rs` replays the committed corpus through it.

use std::io::IoSlice;
use std::sync::Arc;

use postroad_queue::fs::{Dir, Fs};
use postroad_queue::{LoadError, Options, Queue};
use sim::{Plan, SimFs};

#[path = "../queue/tests/sim/mod.rs"]
mod sim;

/// Files as one input: of each the directory (its place in this list), a serial number, the count of octets
/// in two octets, and these.
const DIRS: [Dir; 3] = [Dir::Log, Dir::Content, Dir::Summary];

/// A queue opens on any files, or says why not; what is found reads whole or is called damaged. So it is when
/// all checksums hold: what stands behind them is looked at as well.
pub fn queue(octets: &[u8]) {
    open(octets, false);
    open(octets, true);
}

fn open(octets: &[u8], mended: bool) {
    let fs = Arc::new(SimFs::new(Plan::Well));
    put_files(&fs, octets, mended);
    let Ok((queue, report)) = Queue::open(fs.clone(), options()) else { return };
    for damage in &report.damage {
        assert!(damage.from <= damage.to, "{damage:?}");
    }
    for id in queue.ids(None, 100) {
        let whole = queue.load(id).and_then(|_| queue.content(id));
        match whole {
            Ok(mut reader) => {
                assert!(reader.octets() <= octets.len() as u64, "{id} is larger than its file");
                let mut content = vec![0; reader.octets() as usize];
                let _damage_shows_here = reader.read_at(0, &mut content);
            }
            Err(LoadError::Damaged { .. }) => drop(queue.quarantine(id)),
            Err(error) => panic!("{id}: {error}"),
        }
    }
    queue.flush();
    drop(queue);
    let (queue, _) = Queue::open(fs, options()).expect("it opened before");
    queue.flush();
}

pub fn options() -> Options {
    Options { segment_octets: 4096, inline_octets_max: 400, reserve_octets: 0, ..Options::default() }
}

fn put_files(fs: &SimFs, octets: &[u8], mended: bool) {
    let mut rest = octets;
    while let Some(([dir, serial, high, low], behind)) = rest.split_first_chunk() {
        let count = usize::from(u16::from_be_bytes([*high, *low])).min(behind.len());
        let (octets, behind) = behind.split_at(count);
        rest = behind;
        let dir = DIRS[usize::from(*dir) % DIRS.len()];
        // One name may stand twice.
        let Ok(file) = fs.create(dir, &name(dir, *serial)) else { continue };
        let mut octets = octets.to_vec();
        if mended {
            mend(&mut octets, dir);
        }
        file.write_at(0, &mut [IoSlice::new(&octets)]).expect("the disk is well");
    }
}

fn name(dir: Dir, serial: u8) -> String {
    match dir {
        Dir::Log => format!("{serial:08x}.seg"),
        Dir::Summary => format!("{serial:08x}.sum"),
        // The large message of the samples.
        _ => format!("1MCC5RM0000{serial:02X}"),
    }
}

/// Makes all checksums right (docs/queue-format.md).
fn mend(octets: &mut [u8], dir: Dir) {
    let u32_at = |octets: &[u8], at: usize| Some(u32::from_le_bytes(*octets.get(at..)?.first_chunk()?) as usize);
    for at in (0..octets.len().saturating_sub(63)).step_by(64) {
        let (header, behind) = octets[at..].split_at_mut(64);
        if dir == Dir::Summary && at == 0 {
            let body = behind.len().min(u32_at(header, 40).unwrap_or(0));
            header[48..52].copy_from_slice(&crc(&behind[..body]));
        } else if dir == Dir::Log && header.starts_with(b"PRec") {
            let metadata = behind.len().min(u32_at(header, 32).unwrap_or(0));
            let content = (behind.len() - metadata).min(u32_at(header, 40).unwrap_or(0));
            header[36..40].copy_from_slice(&crc(&behind[..metadata]));
            header[48..52].copy_from_slice(&crc(&behind[metadata..metadata + content]));
        } else if at > 0 {
            continue;
        }
        let sum = crc(&header[..60]);
        header[60..].copy_from_slice(&sum);
    }
}

fn crc(octets: &[u8]) -> [u8; 4] {
    crc32fast::hash(octets).to_le_bytes()
}
