//! The interfaces of this host with their addresses, as the kernel tells of them, and when they change: nothing looks
//! now and then. rtnetlink(7); what is read comes from the kernel alone.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;

use postroad_mesh::mdns::Network;
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with};
use tokio::net::UnixDatagram;

/// Links, and addresses of IPv4 and of IPv6: RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR.
const GROUPS: u32 = 0x1 | 0x10 | 0x100;
/// As much as the kernel says at once.
const BUFFER_OCTETS: usize = 32_768;
/// The most pieces of one list.
const PIECES_MAX: usize = 1_024;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
/// NLM_F_REQUEST and NLM_F_DUMP.
const LIST: u16 = 0x301;
const HEADER_OCTETS: usize = 16;
const IFLA_IFNAME: u16 = 3;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
/// IFF_UP and IFF_RUNNING: something is at the other end of the cable.
const IS_UP: u32 = 0x1 | 0x40;
const IFF_LOOPBACK: u32 = 0x8;
const IFF_POINTOPOINT: u32 = 0x10;
const IFF_MULTICAST: u32 = 0x1000;
/// IFA_F_DADFAILED and IFA_F_TENTATIVE: not usable, or not yet.
const IS_UNUSABLE: u32 = 0x08 | 0x40;
/// IFA_F_TEMPORARY and IFA_F_DEPRECATED: gone tomorrow.
const IS_PASSING: u32 = 0x01 | 0x20;

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub index: u32,
    pub name: String,
    /// Its addresses.
    pub networks: Vec<Network>,
    /// Those of them that are to stay.
    pub lasting: Vec<IpAddr>,
    flags: u32,
}

impl Found {
    /// Returns whether it is up and leads to more hosts than one.
    pub fn is_shared(&self) -> bool {
        self.is_usable() && self.flags & IFF_POINTOPOINT == 0
    }

    /// Returns whether it is up, leads to other hosts and carries multicast.
    pub fn is_usable(&self) -> bool {
        self.flags & IS_UP == IS_UP && self.flags & IFF_MULTICAST != 0 && self.flags & IFF_LOOPBACK == 0
    }
}

/// Tells when something changes.
pub(super) struct Watch(UnixDatagram);

impl Watch {
    /// Watches from here on.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn open() -> io::Result<Watch> {
        let socket = netlink(GROUPS, SocketFlags::NONBLOCK)?;
        // The runtime reads any socket of datagrams as one of these.
        Ok(Watch(UnixDatagram::from_std(socket.into())?))
    }

    /// Waits for a change; several that come together are one.
    ///
    /// # Errors
    /// What the operating system says.
    pub async fn changed(&self) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER_OCTETS];
        let mut seen = self.0.recv(&mut buffer).await;
        loop {
            match seen {
                Ok(_) => {}
                // More came than it had room for: the list is asked for anyhow.
                Err(error) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
            seen = self.0.try_recv(&mut buffer);
        }
    }
}

/// Returns the interfaces that there are now.
///
/// # Errors
/// What the operating system says.
pub(super) fn list() -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    ask(RTM_GETLINK, &mut found)?;
    ask(RTM_GETADDR, &mut found)?;
    Ok(found)
}

fn netlink(groups: u32, flags: SocketFlags) -> io::Result<OwnedFd> {
    let flags = flags | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    Ok(socket)
}

/// Asks for a list, which the kernel has ready when it is read.
fn ask(what: u16, found: &mut Vec<Found>) -> io::Result<()> {
    let socket = netlink(0, SocketFlags::empty())?;
    // The header, and as much behind it as either kind has.
    let mut request = [0; HEADER_OCTETS + 16];
    request[..4].copy_from_slice(&(HEADER_OCTETS as u32 + 16).to_ne_bytes());
    request[4..6].copy_from_slice(&what.to_ne_bytes());
    request[6..8].copy_from_slice(&LIST.to_ne_bytes());
    send(&socket, &request, SendFlags::empty())?;
    let mut buffer = vec![0; BUFFER_OCTETS];
    for _ in 0..PIECES_MAX {
        let (length, _) = recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        if take(&buffer[..length], found)? {
            return Ok(());
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "a list of interfaces without an end"))
}

/// Takes in a piece of a list; returns whether it was the last one.
fn take(mut octets: &[u8], found: &mut Vec<Found>) -> io::Result<bool> {
    while let Some(length) = u32_at(octets, 0).map(|length| length as usize) {
        let (Some(kind), Some(body)) = (u16_at(octets, 4), octets.get(HEADER_OCTETS..length)) else { break };
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let code = u32_at(body, 0).unwrap_or(0).cast_signed();
                return Err(io::Error::from_raw_os_error(code.saturating_neg()));
            }
            RTM_NEWLINK => found.extend(link(body)),
            RTM_NEWADDR => note_address(body, found),
            _ => {}
        }
        octets = octets.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// Reads a `struct ifinfomsg` and what is behind it.
fn link(body: &[u8]) -> Option<Found> {
    let (index, flags) = (u32_at(body, 4)?, u32_at(body, 8)?);
    let name = attributes(body.get(16..)?).find(|(kind, _)| *kind == IFLA_IFNAME)?.1;
    let name = String::from_utf8_lossy(name).trim_end_matches('\0').to_owned();
    Some(Found { index, name, flags, ..Found::default() })
}

/// Reads a `struct ifaddrmsg` and what is behind it.
fn note_address(body: &[u8], found: &mut [Found]) {
    let (Some([_, prefix, flags, ..]), Some(index), Some(rest)) = (body.get(..4), u32_at(body, 4), body.get(8..))
    else {
        return;
    };
    let find = |wanted: u16| attributes(rest).find(|(kind, _)| *kind == wanted).map(|(_, octets)| octets);
    let flags = find(IFA_FLAGS).and_then(|octets| u32_at(octets, 0)).unwrap_or((*flags).into());
    // Where there are two, the other one is whom a tunnel leads to.
    let Some(ip) = find(IFA_LOCAL).or_else(|| find(IFA_ADDRESS)).and_then(ip) else { return };
    let Some(one) = found.iter_mut().find(|one| one.index == index) else { return };
    if flags & IS_UNUSABLE == 0 {
        one.networks.push(Network { ip, prefix: *prefix });
        if flags & IS_PASSING == 0 {
            one.lasting.push(ip);
        }
    }
}

/// Returns each `struct rtattr` with its octets.
fn attributes(mut octets: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (length, kind) = (usize::from(u16_at(octets, 0)?), u16_at(octets, 2)?);
        let body = octets.get(4..length)?;
        octets = octets.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

fn ip(octets: &[u8]) -> Option<IpAddr> {
    match octets.len() {
        4 => Some(Ipv4Addr::from(*octets.first_chunk::<4>()?).into()),
        _ => Some(Ipv6Addr::from(*octets.first_chunk::<16>()?).into()),
    }
}

fn u16_at(octets: &[u8], at: usize) -> Option<u16> {
    octets.get(at..)?.first_chunk().map(|octets| u16::from_ne_bytes(*octets))
}

fn u32_at(octets: &[u8], at: usize) -> Option<u32> {
    octets.get(at..)?.first_chunk().map(|octets| u32::from_ne_bytes(*octets))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_there_with_its_address_and_is_not_shared() {
        let found = list().expect("the kernel tells");
        let loopback = found.iter().find(|one| one.name == "lo").expect("every host has it");
        let ip = IpAddr::from(Ipv4Addr::LOCALHOST);
        assert!(loopback.networks.contains(&Network { ip, prefix: 8 }) && loopback.lasting.contains(&ip), "{found:?}");
        assert!(!loopback.is_usable() && !loopback.is_shared());
        assert!(found.iter().all(|one| one.index > 0 && !one.name.is_empty()), "{found:?}");
    }

    #[test]
    fn what_is_cut_off_or_lies_about_its_length_is_passed_over() {
        let mut found = Vec::new();
        let mut message = [0; 64];
        for (length, kind) in [(0_u32, RTM_NEWLINK), (8, RTM_NEWADDR), (64, RTM_NEWADDR), (u32::MAX, RTM_NEWLINK)] {
            message[..4].copy_from_slice(&length.to_ne_bytes());
            message[4..6].copy_from_slice(&kind.to_ne_bytes());
            for end in 0..message.len() {
                assert!(matches!(take(&message[..end], &mut found), Ok(false)), "{length} {kind}");
            }
        }
        assert!(found.is_empty());
    }
}
