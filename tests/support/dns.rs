//! A name server for one test.

use std::net::{IpAddr, SocketAddr};

use postroad::dns_zone::{NameServer, Zone};
use tokio::runtime::Runtime;

/// A running name server; it stops when it is dropped.
pub struct Dns {
    address: SocketAddr,
    server: Option<NameServer>,
    runtime: Runtime,
}

impl Dns {
    /// Serves `zone` on a free port of 127.0.0.1.
    pub fn start(zone: Zone) -> Dns {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime can be built");
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let server = runtime.block_on(NameServer::start(any, zone)).expect("a port is free");
        Dns { address: server.addr(), server: Some(server), runtime }
    }

    /// Serves another zone from here on.
    pub fn set(&self, zone: Zone) {
        self.server.as_ref().expect("it runs").set_zone(zone);
    }

    /// Returns how many queries it was asked so far.
    pub fn queries(&self) -> u64 {
        self.server.as_ref().expect("it runs").queries()
    }

    /// Returns the value of `dns.servers`.
    pub fn servers(&self) -> String {
        format!("[\"{}\"]", self.address)
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        let _guard = self.runtime.enter();
        self.server = None;
    }
}

/// Returns a zone in which `domain` has these exchanges by preference, each with its address.
pub fn zone(domain: &str, exchanges: &[(u16, &str, IpAddr)]) -> Zone {
    exchanges
        .iter()
        .fold(Zone::new(), |zone, (preference, name, ip)| zone.mx(domain, *preference, name).address(name, *ip))
}
