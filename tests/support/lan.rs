//! A network of one's own with several hosts on a bridge and this process among them, for what is sent to all. Needs root
//! and `ip` (iproute2).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use postroad_mesh::mdns::{MESSAGE_OCTETS_MAX, PORT};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, Socket, Type};

use super::agent::Builder;

const GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);
/// This process.
pub const HERE: u8 = 254;

static NEXT: AtomicU32 = AtomicU32::new(1);

/// A bridge in a space of its own, with a host in each of some more.
pub struct Lan {
    name: String,
    number: u32,
    hosts: u8,
}

/// What is said to the group of multicast DNS, as this process hears it, and where it speaks itself.
pub struct Group {
    v4: UdpSocket,
    v6: UdpSocket,
    index: u32,
    heard: Arc<Mutex<Vec<Heard>>>,
}

/// A message.
#[derive(Clone, Debug)]
pub struct Heard {
    /// Who said it.
    pub from: IpAddr,
    /// What.
    pub octets: Vec<u8>,
}

impl Lan {
    /// Makes one with so many hosts, each under its number.
    pub fn make(hosts: u8) -> Lan {
        let number = std::process::id() * 4 + NEXT.fetch_add(1, Ordering::Relaxed);
        let lan = Lan { name: format!("postroad-lan-{number}"), number, hosts };
        let (switch, device) = (lan.space(0), lan.device());
        ip(&format!("netns add {switch}"));
        ip(&format!("-n {switch} link add br0 type bridge mcast_snooping 0"));
        ip(&format!("-n {switch} link set br0 up"));
        ip(&format!("link add {device} type veth peer name h0 netns {switch}"));
        ip(&format!("address add {}/24 dev {device}", lan.address(HERE)));
        ip(&format!("link set {device} up"));
        for host in 1..=hosts {
            let space = lan.space(host);
            ip(&format!("netns add {space}"));
            ip(&format!("link add eth0 netns {space} type veth peer name h{host} netns {switch}"));
            ip(&format!("-n {space} link set lo up"));
            ip(&format!("-n {space} link set eth0 up"));
            lan.number_host(host, host);
        }
        for host in 0..=hosts {
            ip(&format!("-n {switch} link set h{host} master br0 up"));
        }
        lan
    }

    /// Gives a host the address under another number, and no other of IPv4.
    pub fn number_host(&self, host: u8, number: u8) {
        ip(&format!("-n {} -4 address flush dev eth0", self.space(host)));
        ip(&format!("-n {} address add {}/24 dev eth0", self.space(host), self.address(number)));
    }

    /// Returns the address under a number.
    pub fn address(&self, number: u8) -> IpAddr {
        let [.., high, low] = self.number.to_be_bytes();
        // 198.18.0.0/15 is for tests of networks (RFC 2544).
        Ipv4Addr::new(198, 18 + (high & 1), low, number).into()
    }

    /// Puts a host into it, under its number.
    pub fn host(&self, number: u8, builder: Builder) -> Builder {
        builder.at(self.address(number)).wrapped(&["ip", "netns", "exec", &self.space(number)])
    }

    /// Takes part in the group from here on.
    pub fn group(&self) -> Group {
        let device = self.device();
        let index = std::fs::read_to_string(format!("/sys/class/net/{device}/ifindex")).expect("it is there");
        let index: u32 = index.trim().parse().expect("a number");
        let heard = Arc::<Mutex<Vec<Heard>>>::default();
        let v4 = open(&device, SocketAddr::new(GROUP_V4.into(), PORT), |socket| {
            socket.join_multicast_v4_n(&GROUP_V4, &InterfaceIndexOrAddress::Index(index))?;
            socket.set_multicast_ttl_v4(255)
        });
        let v6 = open(&device, SocketAddrV6::new(GROUP_V6, PORT, 0, index).into(), |socket| {
            socket.join_multicast_v6(&GROUP_V6, index)?;
            socket.set_multicast_if_v6(index)
        });
        for socket in [&v4, &v6].map(|socket| socket.try_clone().expect("a handle")) {
            let heard = heard.clone();
            std::thread::spawn(move || {
                let mut octets = vec![0; MESSAGE_OCTETS_MAX];
                while let Ok((length, from)) = socket.recv_from(&mut octets) {
                    let one = Heard { from: from.ip(), octets: octets[..length].to_vec() };
                    heard.lock().expect("not poisoned").push(one);
                }
            });
        }
        Group { v4, v6, index, heard }
    }

    /// Returns the address of IPv6 that a host has by itself.
    pub fn link_local(&self, host: u8) -> IpAddr {
        let words = ["-n", &self.space(host), "-6", "-o", "address", "show", "dev", "eth0", "scope", "link"];
        let output = Command::new("ip").args(words).output().expect("ip is there");
        let text = String::from_utf8(output.stdout).expect("ASCII");
        let address = text.split_whitespace().find_map(|word| word.strip_suffix("/64"));
        address.expect("it has one").parse().expect("an address")
    }

    /// Starts a program at a host; it ends when it is told to by its standard input.
    pub fn run(&self, host: u8, words: &[&str]) -> Child {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.space(host)]).args(words).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.spawn().expect("ip is there")
    }

    /// Pulls the cable of a host, and plugs it in.
    pub fn replug(&self, host: u8) {
        for state in ["down", "up"] {
            ip(&format!("-n {} link set h{host} {state}", self.space(0)));
        }
    }

    fn space(&self, host: u8) -> String {
        format!("{}-{host}", self.name)
    }

    fn device(&self) -> String {
        format!("prl{:x}", self.number)
    }
}

impl Group {
    /// Says something to all.
    pub fn say(&self, octets: &[u8]) {
        self.v4.send_to(octets, (GROUP_V4, PORT)).expect("the network is there");
    }

    /// Says something to all by IPv6.
    pub fn say_by_v6(&self, octets: &[u8]) {
        self.v6.send_to(octets, SocketAddrV6::new(GROUP_V6, PORT, 0, self.index)).expect("the network is there");
    }

    /// Says something to one host, from the same port.
    pub fn say_to(&self, ip: IpAddr, octets: &[u8]) {
        self.v4.send_to(octets, (ip, PORT)).expect("the network is there");
    }

    /// Returns what was heard so far of hosts with these addresses.
    pub fn heard_of(&self, addresses: &[IpAddr]) -> Vec<Heard> {
        let heard = self.heard.lock().expect("not poisoned");
        heard.iter().filter(|one| addresses.contains(&one.from)).cloned().collect()
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        for host in 0..=self.hosts {
            // What is in it goes with it, its end of the cable too.
            let _ = Command::new("ip").args(["netns", "delete", &self.space(host)]).status();
        }
    }
}

fn open(device: &str, group: SocketAddr, join: impl Fn(&Socket) -> std::io::Result<()>) -> UdpSocket {
    let open = || {
        let socket = Socket::new(Domain::for_address(group), Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.bind_device(Some(device.as_bytes()))?;
        join(&socket)?;
        socket.bind(&group.into())?;
        Ok::<UdpSocket, std::io::Error>(socket.into())
    };
    open().expect("a socket of the group")
}

fn ip(line: &str) {
    let output = Command::new("ip").args(line.split(' ')).output().expect("ip, of the package iproute2, is there");
    assert!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
}
