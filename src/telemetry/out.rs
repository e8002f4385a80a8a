//! Lines on their way to standard error: written together where a thread has more to do first.
//!
//! A thread of the runtime calls [`flush`] whenever it is about to sleep, so a line waits no longer
//! than those threads are busy, and never behind a full buffer. Other threads write at once.

use std::cell::Cell;
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

/// So many octets wait at most.
const WAITING_OCTETS_MAX: usize = 8 * 1024;

static WAITING: Waiting = Waiting(Mutex::new(Vec::new()));

thread_local! {
    /// This thread flushes before it sleeps: it did so before.
    static FLUSHES: Cell<bool> = const { Cell::new(false) };
}

/// Takes a line with its end.
pub(super) fn write(line: &[u8]) {
    WAITING.write(line, &mut io::stderr());
}

/// Writes what waits. Threads of the runtime call it before they sleep, and the last one at the end.
pub fn flush() {
    WAITING.flush(&mut io::stderr());
}

/// Lines not yet written.
struct Waiting(Mutex<Vec<u8>>);

impl Waiting {
    fn write(&self, line: &[u8], to: &mut impl Write) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.extend_from_slice(line);
        if !FLUSHES.get() || lines.len() >= WAITING_OCTETS_MAX {
            write_out(&mut lines, to);
        }
    }

    fn flush(&self, to: &mut impl Write) {
        FLUSHES.set(true);
        write_out(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner), to);
    }
}

/// A log that cannot be written has nowhere to be reported; mail goes on without it.
fn write_out(lines: &mut Vec<u8>, to: &mut impl Write) {
    if !lines.is_empty() {
        let _ = to.write_all(lines);
        lines.clear();
        lines.shrink_to(WAITING_OCTETS_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keeps each write apart.
    #[derive(Default)]
    struct Writes(Vec<Vec<u8>>);

    impl Write for Writes {
        fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
            self.0.push(octets.to_vec());
            Ok(octets.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_thread_that_flushes_before_it_sleeps_writes_its_lines_together() {
        let (waiting, mut to) = (Waiting(Mutex::default()), Writes::default());
        FLUSHES.set(false);
        waiting.write(b"one\n", &mut to);
        assert_eq!(to.0, [b"one\n"], "nobody is known to come back for it");
        waiting.flush(&mut to);
        waiting.write(b"two\n", &mut to);
        waiting.write(b"three\n", &mut to);
        assert_eq!(to.0.len(), 1);
        waiting.flush(&mut to);
        waiting.flush(&mut to);
        assert_eq!(to.0[1..], [b"two\nthree\n"]);
        waiting.write(&[b'x'; WAITING_OCTETS_MAX], &mut to);
        assert_eq!(to.0.len(), 3, "so many do not wait");
    }

    #[test]
    fn a_thread_that_writes_at_once_leaves_no_line_behind() {
        let (waiting, mut to) = (Waiting(Mutex::default()), Writes::default());
        waiting.flush(&mut to);
        waiting.write(b"one\n", &mut to);
        std::thread::scope(|scope| {
            scope.spawn(|| waiting.write(b"two\n", &mut to));
        });
        assert_eq!(to.0, [b"one\ntwo\n"]);
    }
}
