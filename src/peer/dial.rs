//! Opening a link: to an address of a node, through TLS that nobody but that node can answer, to XLINK.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use postroad_mesh::NodeId;
use postroad_mesh::candidate::{is_dialled, is_on_loopback};
use postroad_mesh::record::Address;
use postroad_smtp::line::{Input, Line};
use tokio::net::lookup_host;
use tokio::time::timeout;
use tracing::debug;

use super::Peers;
use crate::config::Config;
use crate::metrics::{Direction, Handshake};
use crate::net::{self, Stream, Timer};
use crate::tls::node::server_name;

/// How long one address may take, from the connection to the answer to XLINK.
const ADDRESS_LIMIT: Duration = Duration::from_secs(10);
/// The longest line of a reply (RFC 5321 §4.5.3.1.5), with room for those who write longer ones.
const REPLY_OCTETS_MAX: usize = 4096;
/// The most lines of a reply.
const REPLY_LINES_MAX: usize = 100;
/// The most addresses of one host name that are tried.
const HOST_ADDRESSES_MAX: usize = 8;
/// The most addresses that are dialled for one link, whatever names of a node lead to.
pub(super) const DIALLED_MAX: usize = 16;

/// What may be dialled for one link.
pub(super) struct Dialling {
    /// Whether people of this host named the address: any goes. What a member or DNS says is looked at.
    pub is_believed: bool,
    is_on_loopback: bool,
    left: usize,
}

impl Dialling {
    /// Begins a link.
    pub(super) fn new(config: &Config) -> Dialling {
        let is_on_loopback = is_on_loopback(&config.mesh.addresses);
        Dialling { is_believed: true, is_on_loopback, left: DIALLED_MAX }
    }

    /// Returns whether this one is dialled, and counts it.
    fn take(&mut self, address: SocketAddr) -> bool {
        let is_taken = self.is_believed || is_dialled(address.ip(), address.port(), self.is_on_loopback);
        let is_taken = is_taken && self.left > 0;
        self.left -= usize::from(is_taken);
        is_taken
    }
}

/// A session that has become a link.
pub(super) struct Linked {
    pub stream: Stream,
    /// What was read behind the answer to XLINK.
    pub ahead: Vec<u8>,
}

impl Peers {
    /// Opens a link with a node at one of these addresses.
    ///
    /// # Errors
    /// What the last of them said.
    pub(super) async fn dial(
        &self,
        node: &NodeId,
        addresses: &[Address],
        dialling: &mut Dialling,
    ) -> io::Result<Linked> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "no address of it is known");
        for address in addresses {
            match self.dial_address(node, address, dialling).await {
                Ok(linked) => return Ok(linked),
                Err(error) => {
                    debug!(%node, %address, %error, "cannot open a link");
                    last = io::Error::new(error.kind(), format!("{address}: {error}"));
                }
            }
        }
        Err(last)
    }

    async fn dial_address(&self, node: &NodeId, address: &Address, dialling: &mut Dialling) -> io::Result<Linked> {
        let open = async {
            let found = lookup_host((&*address.host, address.port)).await?;
            let mut last = io::Error::new(io::ErrorKind::NotFound, "it has no address that is dialled");
            for found in found.filter(|found| dialling.take(*found)).take(HOST_ADDRESSES_MAX) {
                match self.open_link(node, found, address.implicit_tls).await {
                    Ok(linked) => return Ok(linked),
                    Err(error) => last = error,
                }
            }
            Err(last)
        };
        let late = || io::Error::new(io::ErrorKind::TimedOut, "no answer in time");
        timeout(ADDRESS_LIMIT, open).await.map_err(|_| late())?
    }

    async fn open_link(&self, node: &NodeId, address: SocketAddr, implicit_tls: bool) -> io::Result<Linked> {
        let no_key = || io::Error::new(io::ErrorKind::NotFound, "this host has no key");
        let (_, connector) = self.connector(node).ok_or_else(no_key)?;
        let hostname = self.config().helo().to_string();
        let mut talk =
            Talk { stream: Stream::connect(&net::Address::Tcp(address), ADDRESS_LIMIT).await?, input: Input::new() };
        if !implicit_tls {
            talk.hear(220).await?;
            talk.say(&format!("EHLO {hostname}"), 250).await?;
            talk.say("STARTTLS", 220).await?;
            if !talk.input.is_empty() {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "octets behind STARTTLS before TLS began"));
            }
        }
        let secured = talk.stream.connect_tls(&connector, server_name(node), ADDRESS_LIMIT).await;
        let outcome = if secured.is_ok() { Handshake::Done } else { Handshake::Failed };
        self.0.parts.metrics.count_handshake(Direction::Out, outcome);
        talk.stream = secured?;
        if implicit_tls {
            talk.hear(220).await?;
        }
        talk.say("XLINK 1", 250).await?;
        Ok(Linked { ahead: talk.input.unread().to_vec(), stream: talk.stream })
    }
}

/// The few words of SMTP before a link.
struct Talk {
    stream: Stream,
    input: Input,
}

impl Talk {
    async fn say(&mut self, command: &str, expected: u16) -> io::Result<()> {
        let mut line = format!("{command}\r\n").into_bytes();
        self.stream.flush(&mut line, Instant::now() + ADDRESS_LIMIT).await?;
        self.hear(expected).await
    }

    async fn hear(&mut self, expected: u16) -> io::Result<()> {
        for _ in 0..REPLY_LINES_MAX {
            let line = self.line().await?;
            let is_last = line.get(3) != Some(&b'-');
            if line.get(..3) != Some(expected.to_string().as_bytes()) {
                let said = String::from_utf8_lossy(&line).into_owned();
                return Err(io::Error::new(io::ErrorKind::ConnectionRefused, format!("it said {said:?}")));
            }
            if is_last {
                return Ok(());
            }
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "a reply without an end"))
    }

    async fn line(&mut self) -> io::Result<Vec<u8>> {
        loop {
            match self.input.take_line(REPLY_OCTETS_MAX) {
                Line::Complete(line) => return Ok(line.to_vec()),
                Line::Incomplete => {}
                _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "this is no SMTP server")),
            }
            let until = Instant::now() + ADDRESS_LIMIT;
            if self.stream.fill(&mut self.input, &mut Timer::default(), until).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn what_others_say_is_dialled_within_bounds_and_what_people_of_this_host_say_as_it_is() {
        let config = Config::from_str("[mesh]\naddresses = [\"192.0.2.1:25\"]", "test", Path::new("/"));
        let mut dialling = Dialling::new(&config.unwrap_or_else(|faults| panic!("{faults}")));
        let at = |text: &str| text.parse().expect("an address");
        assert!(dialling.take(at("127.0.0.1:25")));
        dialling.is_believed = false;
        assert!(!dialling.take(at("127.0.0.1:25")) && dialling.take(at("10.0.0.2:25")));
        let taken = (0..100).filter(|_| dialling.take(at("10.0.0.2:25"))).count();
        assert_eq!(taken, DIALLED_MAX - 2);
    }
}
