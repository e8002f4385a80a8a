//! Loopback addresses that nobody else uses, and waiting with an end.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long anything that should happen at once may take on a busy machine.
pub const SOON: Duration = Duration::from_secs(20);
/// The most that one look at what is waited for counts.
const STANDSTILL: Duration = Duration::from_secs(2);

static NEXT: AtomicU32 = AtomicU32::new(1);

/// The addresses of this process, 127.x.y.0/24 out of 127.64.0.0/10, and the listener at the last of them that
/// keeps other processes off: ids of processes that live at the same time may have the same low bits.
static OWN: LazyLock<([u8; 3], TcpListener)> = LazyLock::new(|| {
    let first = std::process::id() % NETS;
    let mut nets = (0..NETS).map(|more| (first + more) % NETS).map(|net| [127, 64 + (net >> 8) as u8, net as u8]);
    let taken = nets.find_map(|net| Some((net, TcpListener::bind((address(net, LAST), 2525)).ok()?)));
    taken.expect("one of so many is free")
});

/// How many such networks there are, and the number of the address that marks one as taken.
const NETS: u32 = 64 << 8;
const LAST: u8 = 255;

fn address([a, b, c]: [u8; 3], number: u8) -> Ipv4Addr {
    Ipv4Addr::new(a, b, c, number)
}

/// Returns a loopback address that no other test uses.
pub fn own_address() -> IpAddr {
    loop {
        let count = NEXT.fetch_add(1, Ordering::Relaxed);
        assert!(count < u32::from(LAST), "a test file needs fewer than 255 addresses");
        let ip = address(OWN.0, count as u8);
        // An agent may have outlived a test that was killed. Connecting tells, and leaves no listener behind in
        // a child that is just being started.
        if TcpStream::connect(SocketAddr::from((ip, 2525))).is_err() {
            return ip.into();
        }
    }
}

/// Waits until `done` gives a value. Where everything on the machine stands still for a while, that counts as
/// [`STANDSTILL`]: what was waited for had no more time either.
///
/// # Panics
/// When it does not within `limit`; `what` says what was waited for.
pub fn wait_for<T>(what: &str, limit: Duration, mut done: impl FnMut() -> Option<T>) -> T {
    let mut spent = Duration::ZERO;
    loop {
        let begun = Instant::now();
        if let Some(value) = done() {
            return value;
        }
        assert!(spent < limit, "waited {limit:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
        spent += begun.elapsed().min(STANDSTILL);
    }
}

/// Waits until `done` holds.
///
/// # Panics
/// As [`wait_for`].
pub fn wait_until(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    wait_for(what, limit, || done().then_some(()));
}
