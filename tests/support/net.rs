//! Loopback addresses that nobody else uses, and waiting with an end.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long anything that should happen at once may take on a busy machine.
pub const SOON: Duration = Duration::from_secs(20);

static NEXT: AtomicU32 = AtomicU32::new(1);

/// Returns a loopback address that no other test uses: 127.64.0.0/10 by process and count.
pub fn own_address() -> IpAddr {
    let process = std::process::id();
    loop {
        let count = NEXT.fetch_add(1, Ordering::Relaxed);
        assert!(count < 255, "a test file needs fewer than 255 addresses");
        let ip = Ipv4Addr::new(127, 64 + (process >> 8) as u8 % 64, process as u8, count as u8);
        // Another process with the same low bits of its id may have taken it. Connecting tells, and
        // leaves no listener behind in a child that is just being started.
        if TcpStream::connect(SocketAddr::from((ip, 2525))).is_err() {
            return ip.into();
        }
    }
}

/// Waits until `done` gives a value.
///
/// # Panics
/// When it does not within `limit`; `what` says what was waited for.
pub fn wait_for<T>(what: &str, limit: Duration, mut done: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(Instant::now() < end, "waited {limit:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until `done` holds.
///
/// # Panics
/// As [`wait_for`].
pub fn wait_until(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    wait_for(what, limit, || done().then_some(()));
}
