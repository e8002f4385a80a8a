//! Which addresses are this host's own, so that mail is not sent in circles (RFC 5321 §5.1).
//!
//! The listeners say it. One that listens on every address of the host is compared by asking the
//! kernel whether the address is of this host; no packet is sent.

use std::net::{IpAddr, SocketAddr, UdpSocket};

/// The addresses at which this host itself would answer.
#[derive(Clone, Debug)]
pub struct OwnAddresses {
    listeners: Vec<SocketAddr>,
    is_of_host: fn(IpAddr) -> bool,
}

impl OwnAddresses {
    /// The addresses of these listeners.
    pub fn new(listeners: Vec<SocketAddr>) -> OwnAddresses {
        OwnAddresses { listeners, is_of_host }
    }

    /// Returns whether connecting there would reach a listener of this host.
    pub fn answers_at(&self, addr: SocketAddr) -> bool {
        self.listeners.iter().any(|listener| listener.port() == addr.port() && self.covers(listener.ip(), addr.ip()))
    }

    /// Returns whether one of the listeners has this address, at whatever port.
    pub fn has(&self, ip: IpAddr) -> bool {
        self.listeners.iter().any(|listener| self.covers(listener.ip(), ip))
    }

    fn covers(&self, listener: IpAddr, ip: IpAddr) -> bool {
        let (listener, ip) = (listener.to_canonical(), ip.to_canonical());
        listener == ip || (listener.is_unspecified() && (listener.is_ipv6() || ip.is_ipv4()) && (self.is_of_host)(ip))
    }
}

/// A socket can be bound to the addresses of the host and to no others.
fn is_of_host(ip: IpAddr) -> bool {
    !ip.is_unspecified() && !ip.is_multicast() && UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().expect(text)
    }

    #[test]
    fn listeners_are_own_at_their_port() {
        let own = OwnAddresses::new(vec![addr("127.0.0.2:25"), addr("[::ffff:192.0.2.1]:25")]);
        assert!(own.answers_at(addr("127.0.0.2:25")) && own.answers_at(addr("192.0.2.1:25")));
        assert!(!own.answers_at(addr("127.0.0.2:587")) && own.has("127.0.0.2".parse().expect("valid")));
        assert!(!own.answers_at(addr("127.0.0.3:25")));
    }

    #[test]
    fn a_wildcard_covers_what_the_kernel_says() {
        let own =
            OwnAddresses { listeners: vec![addr("0.0.0.0:25")], is_of_host: |ip| ip == IpAddr::from([192, 0, 2, 7]) };
        assert!(own.answers_at(addr("192.0.2.7:25")) && !own.answers_at(addr("192.0.2.8:25")));
        assert!(!own.answers_at(addr("[2001:db8::1]:25")));
        assert!(is_of_host(IpAddr::from([127, 0, 0, 1])) && !is_of_host(IpAddr::from([192, 0, 2, 1])));
    }
}
