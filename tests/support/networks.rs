//! Two networks of one's own, for what loopback does not have: hosts that cannot reach each other, and cables
//! that are pulled out. Needs root and `ip` (iproute2).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};

use super::agent::Builder;

/// Two networks that know nothing of each other, and this host between them, which forwards no packets. What
/// begins in the inner one it passes on as its own, as address translation does.
pub struct Networks {
    id: u32,
    passed: Arc<Mutex<Vec<TcpStream>>>,
}

/// The network that others are in.
pub const OUTER: u8 = 1;
/// The network behind.
pub const INNER: u8 = 2;

impl Networks {
    /// Makes them.
    pub fn make() -> Networks {
        let networks = Networks { id: std::process::id(), passed: Arc::default() };
        for net in [OUTER, INNER] {
            let (space, device) = (networks.space(net), networks.device(net));
            let (here, there) = (networks.address(net, 254), networks.address(net, 1));
            for line in [
                format!("netns add {space}"),
                format!("link add {device} type veth peer name eth0 netns {space}"),
                format!("address add {here}/24 dev {device}"),
                format!("link set {device} up"),
                format!("-n {space} address add {there}/24 dev eth0"),
                format!("-n {space} link set eth0 up"),
                format!("-n {space} link set lo up"),
            ] {
                ip(&line);
            }
        }
        networks
    }

    /// Passes connections from the inner network on to a host of the outer one.
    pub fn translate(&self, to: SocketAddr) {
        let from = SocketAddr::new(self.address(INNER, 254), to.port());
        let listener = TcpListener::bind(from).expect("the address is ours");
        let passed = self.passed.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(to) else { continue };
                for (mut from, mut to) in [(&client, &server), (&server, &client)]
                    .map(|(from, to)| (from.try_clone().expect("a handle"), to.try_clone().expect("a handle")))
                {
                    std::thread::spawn(move || {
                        let _ = io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
                passed.lock().expect("not poisoned").extend([client, server]);
            }
        });
    }

    /// Forgets all connections, as a router that is switched off and on.
    pub fn forget(&self) {
        for stream in self.passed.lock().expect("not poisoned").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Returns the name of one, as `ip -n` takes it.
    pub fn space(&self, net: u8) -> String {
        format!("postroad-{}-{net}", self.id)
    }

    fn device(&self, net: u8) -> String {
        format!("pr{}-{net}", self.id)
    }

    /// Returns the address of a host in one of them; 254 is this host's.
    pub fn address(&self, net: u8, host: u8) -> IpAddr {
        let [.., high, low] = self.id.to_be_bytes();
        // 198.18.0.0/15 is for tests of networks (RFC 2544).
        Ipv4Addr::new(198, 18 + net % 2, high.wrapping_mul(7).wrapping_add(low), host).into()
    }

    /// Puts a host into one of the networks, under this number.
    pub fn host(&self, net: u8, number: u8, builder: Builder) -> Builder {
        builder.at(self.address(net, number)).wrapped(&["ip", "netns", "exec", &self.space(net)])
    }

    /// Lays a cable between the two, with hosts 1 and 2 in each.
    pub fn connect(&self) {
        let (outer, inner) = (self.space(OUTER), self.space(INNER));
        ip(&format!("link add cable netns {outer} type veth peer name cable netns {inner}"));
        for net in [OUTER, INNER] {
            ip(&format!("-n {} address add {}/24 dev eth0", self.space(net), self.address(net, 2)));
        }
        self.plug_in(OUTER);
        self.plug_in(INNER);
    }

    /// Pulls the cable at the inner network: there nobody has a way out any more, in the outer one what is
    /// sent is lost.
    pub fn pull_out(&self) {
        ip(&format!("-n {} link set cable down", self.space(INNER)));
    }

    /// Plugs the cable in.
    pub fn plug_in(&self, net: u8) {
        let (space, other) = (self.space(net), self.address(OUTER + INNER - net, 0));
        ip(&format!("-n {space} link set cable up"));
        ip(&format!("-n {space} route replace {other}/24 dev cable"));
    }
}

impl Drop for Networks {
    fn drop(&mut self) {
        for net in [OUTER, INNER] {
            // What is in it goes with it, its end of the cable too.
            let _ = Command::new("ip").args(["netns", "delete", &self.space(net)]).status();
        }
    }
}

fn ip(line: &str) {
    let output = Command::new("ip").args(line.split(' ')).output().expect("ip, of the package iproute2, is there");
    assert!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
}
