//! Multicast DNS between members of one network, where `[mesh] mdns` asks for it: the sockets of the machine in
//! `postroad_mesh::mdns`. Without that setting, and of a host in no mesh, there is no socket, no task and no wake-up.
//!
//! Each interface has a socket for each family. It is bound to the group, so that nothing that was sent to this host
//! alone, from wherever, is ever read (RFC 6762 §11), and to its interface; the port is shared with others on this host.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use postroad_mesh::NodeId;
use postroad_mesh::mdns::{Action, Family, INTERFACES_MAX, Interface, MESSAGE_OCTETS_MAX, Mdns, Offer, PORT, Way};
use postroad_mesh::record::{Address, Reach};
use postroad_queue::UnixMillis;
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, SockRef, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};
use tracing::{debug, info, warn};

use super::Peers;
use super::interfaces::{self, Found, Watch};
use crate::config::{Config, Mdns as Setting};

const GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);
/// The pause after a socket failed.
const FAILED_PAUSE: Duration = Duration::from_secs(1);

/// The machine with its sockets.
pub(super) struct Lan {
    machine: Mdns,
    sockets: BTreeMap<Way, Open>,
    /// What could not be opened: it was said so once.
    refused: BTreeSet<Way>,
    settings: Settings,
    /// When the task wakes.
    wake: Option<u64>,
    /// The task has to look again.
    changed: Arc<Notify>,
    _task: JoinSet<()>,
}

/// What it depends on beside the interfaces.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Settings {
    mdns: Setting,
    /// Where SMTP listens; nothing, where this host says that nobody can dial it.
    listens: Vec<SocketAddr>,
    ids: Vec<NodeId>,
}

struct Open {
    socket: Arc<UdpSocket>,
    _reader: JoinSet<()>,
}

impl Peers {
    /// Begins, goes on with or ends multicast DNS, as the configuration has it now.
    pub(super) fn tend_mdns(&self) {
        let config = self.config();
        let is_wanted = config.mesh.mdns != Setting::Off && self.me().is_some();
        if !is_wanted {
            return self.end_mdns();
        }
        let view = self.view();
        let missed = self.state().as_ref().map(|state| state.spread.missed()).unwrap_or_default();
        let missed = missed.into_iter().filter(|node| view.is_member(node)).collect();
        let settings = self.mdns_settings(&config);
        if self.0.is_parting.load(Ordering::Relaxed) {
            return;
        }
        let mut lan = self.lan();
        let lan = lan.get_or_insert_with(|| Box::new(self.begin_mdns(settings.clone())));
        lan.machine.seek(missed);
        if lan.settings != settings {
            lan.settings = settings;
            lan.changed.notify_one();
        } else if lan.speak(self.now()) {
            lan.changed.notify_one();
        }
    }

    /// Takes back what was announced, at a stop, and says nothing more.
    pub fn part_from_network(&self) {
        self.0.is_parting.store(true, Ordering::Relaxed);
        self.end_mdns();
    }

    fn end_mdns(&self) {
        let Some(mut lan) = self.lan().take() else { return };
        for (way, octets) in lan.machine.goodbye() {
            lan.send(way, &octets);
        }
    }

    /// Returns where multicast DNS says that members are.
    pub(super) fn mdns_places(&self) -> Vec<(NodeId, Address)> {
        let now = self.now();
        self.lan().as_ref().map(|lan| lan.machine.places(now)).unwrap_or_default()
    }

    /// Returns what it says of who is no member, for people.
    pub(super) fn mdns_strangers(&self) -> Vec<String> {
        let now = self.now();
        self.lan().as_ref().map(|lan| lan.machine.strangers(now)).unwrap_or_default()
    }

    fn lan(&self) -> MutexGuard<'_, Option<Box<Lan>>> {
        self.0.lan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mdns_settings(&self, config: &Config) -> Settings {
        let view = self.view();
        let ids = self.identities().map(|identity| identity.id()).filter(|id| view.is_member(id)).collect();
        let is_dialled = config.mesh.reach == Reach::Public;
        let listens = if is_dialled { config.listen.smtp.clone() } else { Vec::new() };
        Settings { mdns: config.mesh.mdns.clone(), listens, ids }
    }

    fn begin_mdns(&self, settings: Settings) -> Lan {
        let changed = Arc::new(Notify::new());
        let mut task = JoinSet::new();
        task.spawn(self.clone().follow_network(changed.clone()));
        Lan {
            machine: Mdns::new(fastrand::u64(..)),
            sockets: BTreeMap::new(),
            refused: BTreeSet::new(),
            settings,
            wake: None,
            changed,
            _task: task,
        }
    }

    /// Looks at the interfaces when they change, and speaks when it is time.
    async fn follow_network(self, changed: Arc<Notify>) {
        let watch = match Watch::open() {
            Ok(watch) => watch,
            Err(error) => {
                let remedy =
                    "restart the agent when interfaces change; under systemd, RestrictAddressFamilies needs AF_NETLINK";
                return warn!(%error, remedy, "multicast DNS is off: interfaces cannot be watched");
            }
        };
        let mut settings = None;
        loop {
            let wake = self.turn_mdns(&mut settings);
            let due = async {
                match wake {
                    Some(at) => sleep_until(self.0.parts.clock.instant(UnixMillis(at)).into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => {}
                () = changed.notified() => {}
                seen = watch.changed() => {
                    if let Err(error) = seen {
                        warn!(%error, "interfaces cannot be watched for a moment");
                        sleep(FAILED_PAUSE).await;
                    }
                    settings = None;
                }
            }
        }
    }

    /// Looks at the interfaces, if the settings are not those that they were looked at with; says what is due. Returns
    /// when to look again.
    fn turn_mdns(&self, seen: &mut Option<Settings>) -> Option<u64> {
        let mut guard = self.lan();
        let lan = guard.as_mut()?;
        if seen.as_ref() != Some(&lan.settings) {
            *seen = Some(lan.settings.clone());
            match interfaces::list() {
                Ok(found) => lan.use_interfaces(self, found),
                Err(error) => warn!(%error, "the interfaces of this host cannot be listed for multicast DNS"),
            }
        }
        lan.speak(self.now());
        lan.wake
    }

    async fn listen_to_group(self, way: Way, socket: Arc<UdpSocket>) {
        let mut octets = vec![0; MESSAGE_OCTETS_MAX];
        loop {
            match socket.recv_from(&mut octets).await {
                Ok((length, from)) => self.heard_in_network(way, from, &octets[..length]),
                Err(error) => {
                    debug!(?way, %error, "cannot read from the group of multicast DNS");
                    sleep(FAILED_PAUSE).await;
                }
            }
        }
    }

    fn heard_in_network(&self, way: Way, from: SocketAddr, octets: &[u8]) {
        let (view, now) = (self.view(), self.now());
        let member = |node: &NodeId| Some(view.current(node)).filter(|node| view.is_member(node));
        let news = match self.lan().as_mut() {
            Some(lan) => {
                let news = lan.machine.received(way, from, octets, member, now);
                if lan.speak(now) {
                    lan.changed.notify_one();
                }
                news
            }
            None => return,
        };
        for node in news {
            info!(%node, from = %from.ip(), "multicast DNS says where a member is that was not found");
            if let Some(state) = self.state().as_mut() {
                state.spread.hasten(&node, now);
            }
            self.0.wake.notify_one();
        }
    }
}

impl Lan {
    /// Opens and closes sockets such that there is one for each way.
    fn use_interfaces(&mut self, peers: &Peers, found: Vec<Found>) {
        let mut interfaces = Vec::new();
        let mut ways = BTreeSet::new();
        let chosen: Vec<Found> =
            found.into_iter().filter(|one| is_chosen(&self.settings.mdns, one)).take(INTERFACES_MAX).collect();
        for one in chosen {
            let has = |family| one.networks.iter().any(|network| family_of(network.ip) == family);
            let families: Vec<Family> = [Family::V4, Family::V6].into_iter().filter(|family| has(*family)).collect();
            let way = |family| Way { interface: one.index, family };
            ways.extend(families.iter().map(|family| way(*family)));
            let families = families.into_iter().filter(|family| self.is_open(peers, way(*family), &one.name)).collect();
            let offer = offer(&self.settings.listens, &one.lasting);
            interfaces.push(Interface { index: one.index, families, networks: one.networks, offer });
        }
        self.sockets.retain(|way, _| ways.contains(way));
        self.refused.retain(|way| ways.contains(way));
        self.machine.set(self.settings.ids.clone(), interfaces, peers.now());
    }

    /// Returns whether there is a socket for a way, after opening one where it can be.
    fn is_open(&mut self, peers: &Peers, way: Way, name: &str) -> bool {
        if self.sockets.contains_key(&way) {
            return true;
        }
        match open(way, name) {
            Ok(socket) => {
                let socket = Arc::new(socket);
                let mut reader = JoinSet::new();
                reader.spawn(peers.clone().listen_to_group(way, socket.clone()));
                info!(interface = name, family = ?way.family, "multicast DNS is spoken");
                self.sockets.insert(way, Open { socket, _reader: reader });
                true
            }
            Err(error) => {
                if self.refused.insert(way) {
                    let remedy = remedy(&error);
                    warn!(interface = name, family = ?way.family, %error, remedy, "no multicast DNS here; all else goes on");
                }
                false
            }
        }
    }

    /// Says what is due; returns whether the task has to wake at another time than it means to.
    fn speak(&mut self, now: u64) -> bool {
        let wake = loop {
            match self.machine.poll(now) {
                Action::Send(way, octets) => self.send(way, &octets),
                Action::Wait(at) => break at,
            }
        };
        std::mem::replace(&mut self.wake, wake) != wake
    }

    fn send(&self, way: Way, octets: &[u8]) {
        let Some(open) = self.sockets.get(&way) else { return };
        // What cannot be sent now is lost, as it may be on the wire.
        match SockRef::from(&*open.socket).send_to(octets, &group(way).into()) {
            Ok(_) => debug!(?way, octets = octets.len(), "said by multicast DNS"),
            Err(error) => debug!(?way, %error, "cannot say anything by multicast DNS"),
        }
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "let what has UDP port 5353 share it, or leave the interface out of [mesh] mdns",
        io::ErrorKind::PermissionDenied => "a kernel before 5.7 asks for CAP_NET_RAW; else set [mesh] mdns = false",
        _ => "leave the interface out of [mesh] mdns",
    }
}

fn is_chosen(setting: &Setting, found: &Found) -> bool {
    match setting {
        Setting::Off => false,
        Setting::All => found.is_shared(),
        Setting::On(names) => found.is_usable() && names.iter().any(|name| **name == *found.name),
    }
}

fn family_of(ip: IpAddr) -> Family {
    if ip.is_ipv4() { Family::V4 } else { Family::V6 }
}

/// Returns where members reach this host by an interface: the first port of SMTP that is reached there, with STARTTLS, as in
/// SRV records. Ports with TLS at once are for the directory to say.
fn offer(listens: &[SocketAddr], lasting: &[IpAddr]) -> Option<Offer> {
    let is_link_local = |ip: &IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    let takes = |listens: &SocketAddr, ip: &IpAddr| {
        let is_any = listens.ip().is_unspecified() && listens.is_ipv4() == ip.is_ipv4();
        (is_any || listens.ip() == *ip) && !is_link_local(ip)
    };
    let port = listens.iter().find(|listens| lasting.iter().any(|ip| takes(listens, ip)))?.port();
    let is_reached = |ip: &&IpAddr| listens.iter().any(|listens| listens.port() == port && takes(listens, ip));
    let mut addresses: Vec<IpAddr> = lasting.iter().filter(is_reached).copied().collect();
    addresses.sort_by_key(IpAddr::is_ipv6);
    Some(Offer { port, addresses })
}

fn group(way: Way) -> SocketAddr {
    match way.family {
        Family::V4 => SocketAddr::new(GROUP_V4.into(), PORT),
        Family::V6 => SocketAddrV6::new(GROUP_V6, PORT, 0, way.interface).into(),
    }
}

fn open(way: Way, name: &str) -> io::Result<UdpSocket> {
    let domain = if way.family == Family::V4 { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    // Beside avahi or systemd-resolved.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind_device(Some(name.as_bytes()))?;
    // RFC 6762 §11: 255. It hears itself on no interface, and knows nobody else on this host.
    match way.family {
        Family::V4 => {
            socket.set_multicast_ttl_v4(255)?;
            socket.set_multicast_loop_v4(false)?;
            socket.join_multicast_v4_n(&GROUP_V4, &InterfaceIndexOrAddress::Index(way.interface))?;
        }
        Family::V6 => {
            socket.set_only_v6(true)?;
            socket.set_multicast_hops_v6(255)?;
            socket.set_multicast_loop_v6(false)?;
            socket.join_multicast_v6(&GROUP_V6, way.interface)?;
            socket.set_multicast_if_v6(way.interface)?;
        }
    }
    socket.bind(&group(way).into())?;
    UdpSocket::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_where_smtp_is_reached_are_said() {
        let offered = |listens: &[&str], lasting: &[&str]| {
            let listens: Vec<SocketAddr> = listens.iter().map(|text| text.parse().expect("an address")).collect();
            let lasting: Vec<IpAddr> = lasting.iter().map(|text| text.parse().expect("an address")).collect();
            let said = offer(&listens, &lasting)?;
            Some((said.port, said.addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" ")))
        };
        let all = ["fe80::1", "2001:db8::1", "192.0.2.1", "192.0.2.2"];
        assert_eq!(offered(&["127.0.0.1:25", "[::1]:25"], &all), None);
        assert_eq!(offered(&[], &all), None);
        assert_eq!(offered(&["[::]:25"], &["fe80::1"]), None);
        let both = ["0.0.0.0:2525", "[::]:2525"];
        assert_eq!(offered(&both, &all), Some((2525, "192.0.2.1 192.0.2.2 2001:db8::1".into())));
        assert_eq!(offered(&["198.51.100.1:25", "192.0.2.2:26", "[::]:27"], &all), Some((26, "192.0.2.2".into())));
    }

    #[tokio::test]
    async fn two_share_the_port() {
        let loopback = interfaces::list().expect("the kernel tells").into_iter().find(|one| one.name == "lo");
        let way = Way { interface: loopback.expect("every host has it").index, family: Family::V4 };
        let first = open(way, "lo").expect("it is free, or shared");
        let second = open(way, "lo").expect("it is shared");
        assert_eq!(first.local_addr().expect("bound"), second.local_addr().expect("bound"));
    }
}
