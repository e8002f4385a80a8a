//! Octets of one connection into another and back, unread. Both end when one does.

use std::io;
use std::time::{Duration, Instant};

use postroad_smtp::line::Input;

use super::{Stream, Timer};

/// How long a side may take to take what the other one said.
const WRITE_LIMIT: Duration = Duration::from_secs(60);

/// For how long octets are passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// How long nothing may be said either way.
    pub idle: Duration,
    /// How long at all.
    pub total: Duration,
}

impl Stream {
    /// Passes octets between two connections until one of them ends, nothing is said for so long, the time
    /// is over, or there were too many; then closes both. What one side does not take holds up the other. `counted`
    /// hears how many octets have passed, as they pass, both ways, and says whether more may.
    ///
    /// # Errors
    /// `TimedOut`, `QuotaExceeded`, or what a connection says.
    pub async fn splice(
        mut self,
        mut other: Stream,
        bounds: Bounds,
        mut counted: impl FnMut(u64) -> bool,
    ) -> io::Result<()> {
        let ends = Instant::now() + bounds.total;
        let (mut there, mut back) = (Input::new(), Input::new());
        let (mut timer, mut other_timer) = (Timer::default(), Timer::default());
        let ended = loop {
            let now = Instant::now();
            if now >= ends {
                break Err(io::Error::new(io::ErrorKind::TimedOut, "octets were passed on for long enough"));
            }
            let until = ends.min(now + bounds.idle);
            let passed = tokio::select! {
                read = self.fill(&mut there, &mut timer, until) => pass(read, &mut there, &mut other).await,
                read = other.fill(&mut back, &mut other_timer, until) => pass(read, &mut back, &mut self).await,
            };
            match passed {
                Ok(0) => break Ok(()),
                Ok(octets) if counted(octets as u64) => {}
                Ok(_) => break Err(io::Error::new(io::ErrorKind::QuotaExceeded, "more octets than may be passed on")),
                Err(error) => break Err(error),
            }
        };
        tokio::join!(self.close_idle(), other.close_idle());
        ended
    }
}

async fn pass(read: io::Result<usize>, input: &mut Input, to: &mut Stream) -> io::Result<usize> {
    let count = read?;
    let mut octets = input.unread().to_vec();
    *input = Input::new();
    to.flush(&mut octets, Instant::now() + WRITE_LIMIT).await?;
    Ok(count)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixStream;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn ends() -> (UnixStream, UnixStream, Stream, Stream) {
        let ((near, left), (right, far)) =
            (UnixStream::pair().expect("two ends"), UnixStream::pair().expect("two ends"));
        (near, far, Stream::Unix(left), Stream::Unix(right))
    }

    #[tokio::test]
    async fn octets_pass_both_ways_until_one_side_ends() {
        let (mut near, mut far, left, right) = ends();
        let passed = Arc::new(AtomicU64::new(0));
        let count = passed.clone();
        let counted = move |octets| {
            count.fetch_add(octets, Ordering::SeqCst);
            true
        };
        let passing = tokio::spawn(left.splice(right, Bounds { idle: LONG, total: LONG }, counted));
        let many = vec![b'x'; 300_000];
        let (sent, mut taken) = (many.clone(), vec![0; many.len()]);
        let (write, read) = tokio::join!(near.write_all(&sent), far.read_exact(&mut taken));
        assert!(write.is_ok() && read.is_ok() && taken == many);
        far.write_all(b"back").await.expect("open");
        let mut back = [0; 4];
        near.read_exact(&mut back).await.expect("open");
        assert_eq!(&back, b"back");
        drop(far);
        assert_eq!(near.read(&mut back).await.expect("closed in order"), 0);
        passing.await.expect("no panic").expect("an end like any other");
        assert_eq!(passed.load(Ordering::SeqCst), 300_004, "both ways");
    }

    #[tokio::test]
    async fn who_says_nothing_or_goes_on_for_ever_is_cut() {
        const SHORT: Duration = Duration::from_millis(50);
        let timed_out = |ended: io::Result<()>| ended.map_err(|error| error.kind()) == Err(io::ErrorKind::TimedOut);
        let (_near, _far, left, right) = ends();
        assert!(timed_out(left.splice(right, Bounds { idle: SHORT, total: LONG }, |_| true).await));
        let (mut near, mut far, left, right) = ends();
        let talk = async {
            let mut octet = [0];
            loop {
                near.write_all(b"x").await?;
                far.read_exact(&mut octet).await?;
            }
        };
        let passing = tokio::spawn(left.splice(right, Bounds { idle: LONG, total: SHORT }, |_| true));
        let talked: io::Result<()> = talk.await;
        assert!(talked.is_err() && timed_out(passing.await.expect("no panic")));
    }
}
