//! Reading very many messages one after the other: what lies side by side on disk is read at once.
//!
//! Messages taken by ascending id lie nearly in order, and so do their states: a few windows that move
//! forward serve most reads. What is read this way may be older than the index by a moment, so whoever
//! finds something wrong reads it again without a window.

use std::cell::RefCell;
use std::io;

use crate::read::{ReadSegment, SegmentReader};

/// A reader of segments with windows.
pub(crate) struct Ahead<'a> {
    read: Box<SegmentReader<'a>>,
    windows: RefCell<Vec<Window>>,
}

/// A part of a segment.
#[derive(Default)]
struct Window {
    segment: u32,
    start: u64,
    /// Octets read; the buffer may be longer, so that it is not cleared each time it is filled.
    len: usize,
    buffer: Vec<u8>,
}

/// Streams followed at once: messages, states and changes, and one that wanders.
const WINDOWS: usize = 4;
const WINDOW_OCTETS: usize = 256 << 10;
/// Whatever comes this close behind a window goes on with it.
const GAP_OCTETS: u64 = 16 << 10;
/// What is read where nothing is followed yet.
const FIRST_OCTETS: usize = 8 << 10;

impl<'a> Ahead<'a> {
    /// Makes one of what reads without windows.
    pub(crate) fn new(read: impl Fn(u32, u64, &mut [u8]) -> io::Result<usize> + 'a) -> Ahead<'a> {
        Ahead { read: Box::new(read), windows: RefCell::default() }
    }

    /// Reads from `offset` of a segment until the buffer is full or the segment ends.
    pub(crate) fn read(&self, segment: u32, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut windows = self.windows.borrow_mut();
        let near = windows.iter().position(|window| window.is_near(segment, offset));
        let mut window = match near {
            Some(at) => windows.remove(at),
            None if windows.len() < WINDOWS => Window::default(),
            None => windows.remove(0),
        };
        let result = match window.get(segment, offset, buffer.len()) {
            Some(octets) => {
                buffer.copy_from_slice(octets);
                Ok(buffer.len())
            }
            None => {
                let octets = if near.is_some() { WINDOW_OCTETS } else { FIRST_OCTETS };
                window.fill(&*self.read, segment, offset, octets.max(buffer.len())).map(|()| {
                    let count = window.len.min(buffer.len());
                    buffer[..count].copy_from_slice(&window.buffer[..count]);
                    count
                })
            }
        };
        // Used last: the first to be taken for something else is the one not used for longest.
        windows.push(window);
        result
    }
}

impl Window {
    fn end(&self) -> u64 {
        self.start + self.len as u64
    }

    fn is_near(&self, segment: u32, offset: u64) -> bool {
        self.segment == segment && offset >= self.start && offset <= self.end() + GAP_OCTETS
    }

    fn get(&self, segment: u32, offset: u64, count: usize) -> Option<&[u8]> {
        let from = usize::try_from(offset.checked_sub(self.start)?).ok()?;
        let octets = self.buffer[..self.len].get(from..from.checked_add(count)?)?;
        (self.segment == segment).then_some(octets)
    }

    fn fill(&mut self, read: ReadSegment<'_>, segment: u32, offset: u64, octets: usize) -> io::Result<()> {
        (self.segment, self.start, self.len) = (segment, offset, 0);
        self.buffer.resize(self.buffer.len().max(octets), 0);
        self.len = read(segment, offset, &mut self.buffer[..octets])?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_what_is_there_in_few_reads() {
        let segments: Vec<Vec<u8>> =
            (0..3).map(|n| (0..1_000_000u32).map(|i| (i * 7 + i / 251 + n) as u8).collect()).collect();
        let reads = RefCell::new(0);
        let read = |segment: u32, offset: u64, buffer: &mut [u8]| {
            *reads.borrow_mut() += 1;
            let all = &segments[segment as usize];
            let from = all.len().min(offset as usize);
            let count = buffer.len().min(all.len() - from);
            buffer[..count].copy_from_slice(&all[from..from + count]);
            Ok(count)
        };
        let ahead = Ahead::new(read);
        let check = |segment: u32, offset: u64, count: usize| {
            let mut buffer = vec![0; count];
            let n = ahead.read(segment, offset, &mut buffer).expect("no error");
            let all = &segments[segment as usize];
            assert_eq!(buffer[..n], all[all.len().min(offset as usize)..all.len().min(offset as usize + count)]);
        };
        // Two streams side by side, and something now and then from elsewhere.
        for offset in (0..999_000).step_by(1300) {
            check(0, offset, 300);
            check(1, offset / 5, 200);
            if offset % 13_000 == 0 {
                check(2, 999_000 - offset / 2, 5000);
            }
        }
        check(0, 999_990, 50);
        check(0, 2_000_000, 50);
        check(0, 0, 600_000);
        assert!(*reads.borrow() < 110, "{} reads", reads.borrow());
    }
}
