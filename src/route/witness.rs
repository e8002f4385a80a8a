//! DNS as a witness for the mesh: records with what vouches for them, so that nobody mistakes what is said of a signed
//! domain for what it says.
//!
//! Asked over TCP, which nobody forges from afar, at the servers of `[dns]`, with the bits that let a name server say
//! that it checked the signatures (RFC 6840 §5.7, RFC 3225). Nothing is cached: whoever asks knows how often he may.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::proto::op::{Edns, Message, Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::system_conf::read_system_conf;
use postroad_mesh::proof::Security;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::config::Dns;

/// The most records of one answer that are looked at.
const RECORDS_MAX: usize = 64;
/// The most servers that are asked one after the other.
const SERVERS_MAX: usize = 3;
/// The most addresses of one host.
const ADDRESSES_MAX: usize = 4;

/// Asks the name servers.
#[derive(Clone, Debug)]
pub struct Witness {
    servers: Vec<SocketAddr>,
    timeout: Duration,
}

/// What a name server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard<T> {
    /// These records.
    Records {
        /// What stands in them.
        records: Vec<T>,
        /// The shortest time to live of them.
        ttl: Duration,
        /// What vouches for them.
        security: Security,
    },
    /// There are none of this kind.
    Nothing(Security),
    /// Nobody can tell now.
    Unclear(String),
}

/// An SRV record (RFC 2782).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The host, in lower case, without its trailing dot.
    pub target: String,
    /// The port.
    pub port: u16,
    /// Lower is better.
    pub priority: u16,
}

impl Witness {
    /// Asks as the configuration says; nobody yet.
    pub fn new(dns: &Dns) -> Witness {
        let of_system = || {
            let (config, _) = read_system_conf().ok()?;
            let port = |server: &hickory_resolver::config::NameServerConfig| {
                server.connections.first().map_or(53, |connection| connection.port)
            };
            Some(config.name_servers().iter().map(|server| SocketAddr::new(server.ip, port(server))).collect())
        };
        let servers = if dns.servers.is_empty() { of_system().unwrap_or_default() } else { dns.servers.clone() };
        Witness { servers, timeout: dns.timeout }
    }

    /// Returns the texts of the TXT records of a name, the strings of each as one.
    pub async fn texts(&self, name: &str) -> Heard<String> {
        let text = |data: &RData| match data {
            RData::TXT(txt) => Some(String::from_utf8_lossy(&txt.txt_data.concat()).into_owned()),
            _ => None,
        };
        self.ask(name, RecordType::TXT, text).await
    }

    /// Returns the SRV records of a name, the best first.
    pub async fn services(&self, name: &str) -> Heard<Service> {
        let service = |data: &RData| match data {
            RData::SRV(srv) => Some(Service {
                target: srv.target.to_ascii().trim_end_matches('.').to_ascii_lowercase(),
                port: srv.port,
                priority: srv.priority,
            }),
            _ => None,
        };
        let mut heard = self.ask(name, RecordType::SRV, service).await;
        if let Heard::Records { records, .. } = &mut heard {
            records.sort_by_key(|service| service.priority);
        }
        heard
    }

    /// Returns the addresses of a host; none when nobody can tell.
    pub async fn addresses(&self, host: &str) -> Vec<IpAddr> {
        let address = |data: &RData| match data {
            RData::A(a) => Some(IpAddr::V4(a.0)),
            RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
            _ => None,
        };
        let (a, aaaa) = tokio::join!(self.ask(host, RecordType::A, address), self.ask(host, RecordType::AAAA, address));
        let records = |heard| if let Heard::Records { records, .. } = heard { records } else { Vec::new() };
        records(a).into_iter().take(ADDRESSES_MAX).chain(records(aaaa).into_iter().take(ADDRESSES_MAX)).collect()
    }

    async fn ask<T>(&self, name: &str, wanted: RecordType, read: impl Fn(&RData) -> Option<T>) -> Heard<T> {
        // A longer name than DNS can carry is nobody's.
        let Ok(name) = Name::from_ascii(format!("{name}.")) else { return Heard::Nothing(Security::Unsigned) };
        let mut why = "no name server is configured".to_owned();
        for server in self.servers.iter().take(SERVERS_MAX) {
            match timeout(self.timeout, exchange(*server, &name, wanted)).await {
                Ok(Ok(message)) => match heard(&message, wanted, &read) {
                    Heard::Unclear(said) => why = said,
                    clear => return clear,
                },
                Ok(Err(error)) => why = format!("the name server cannot be asked over TCP: {error}"),
                Err(_) => "the name server did not answer in time".clone_into(&mut why),
            }
        }
        Heard::Unclear(why)
    }
}

/// Asks one server one question (RFC 7766).
async fn exchange(server: SocketAddr, name: &Name, wanted: RecordType) -> io::Result<Message> {
    let mut message = Message::query();
    message.queries.push(Query::query(name.clone(), wanted));
    message.metadata.recursion_desired = true;
    message.metadata.authentic_data = true;
    let mut edns = Edns::new();
    edns.set_max_payload(u16::MAX).set_dnssec_ok(true);
    message.edns = Some(edns);
    let octets = message.to_vec().map_err(io::Error::other)?;
    let length = u16::try_from(octets.len()).map_err(io::Error::other)?;
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(&[&length.to_be_bytes(), &octets[..]].concat()).await?;
    let mut answer = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut answer).await?;
    let said = Message::from_vec(&answer).map_err(io::Error::other)?;
    if said.metadata.id != message.metadata.id || said.queries != message.queries {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it answers another question"));
    }
    Ok(said)
}

fn heard<T>(message: &Message, wanted: RecordType, read: impl Fn(&RData) -> Option<T>) -> Heard<T> {
    let is_signature = |record: &hickory_resolver::proto::rr::Record| record.record_type() == RecordType::RRSIG;
    let security = match message.metadata.authentic_data {
        true => Security::Authentic,
        false if message.answers.iter().chain(&message.authorities).any(is_signature) => Security::Unchecked,
        false => Security::Unsigned,
    };
    match message.metadata.response_code {
        ResponseCode::NoError => {}
        ResponseCode::NXDomain => return Heard::Nothing(security),
        code => return Heard::Unclear(format!("the name server answered {code}")),
    }
    let wanted = message.answers.iter().filter(|record| record.record_type() == wanted).take(RECORDS_MAX);
    let read: Vec<(T, u32)> = wanted.filter_map(|record| Some((read(&record.data)?, record.ttl))).collect();
    let Some(ttl) = read.iter().map(|(_, ttl)| *ttl).min() else { return Heard::Nothing(security) };
    let records = read.into_iter().map(|(record, _)| record).collect();
    Heard::Records { records, ttl: Duration::from_secs(ttl.into()), security }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns_zone::{NameServer, Zone};

    async fn witness(zone: Zone) -> (Witness, NameServer) {
        let server = NameServer::start(([127, 0, 0, 1], 0).into(), zone).await.expect("a port is free");
        let dns = Dns { servers: vec![server.addr()], timeout: Duration::from_secs(20) };
        (Witness::new(&dns), server)
    }

    #[tokio::test]
    async fn records_come_with_what_vouches_for_them() {
        let zone = Zone::new()
            .text("a.test", "one")
            .text("a.test", "two")
            .text("s.test", "three")
            .signed("s.test")
            .alias("c.test", "a.test")
            .servfail("broken.test");
        let (witness, _server) = witness(zone).await;
        let heard = |records: &[&str], security| Heard::Records {
            records: records.iter().map(|text| (*text).to_owned()).collect(),
            ttl: Duration::from_secs(60),
            security,
        };
        assert_eq!(witness.texts("a.test").await, heard(&["one", "two"], Security::Unsigned));
        assert_eq!(witness.texts("c.test").await, heard(&["one", "two"], Security::Unsigned));
        assert_eq!(witness.texts("s.test").await, heard(&["three"], Security::Authentic));
        assert_eq!(witness.texts("nobody.test").await, Heard::Nothing(Security::Unsigned));
        assert!(matches!(witness.texts("broken.test").await, Heard::Unclear(_)));
        let long = format!("{}.test", "a".repeat(70));
        assert_eq!(witness.texts(&long).await, Heard::Nothing(Security::Unsigned));
        let nobody = Witness { servers: Vec::new(), timeout: Duration::from_secs(1) };
        assert!(matches!(nobody.texts("a.test").await, Heard::Unclear(_)));
    }

    #[tokio::test]
    async fn services_come_the_best_first_and_hosts_have_addresses() {
        let zone = Zone::new()
            .service("_s._tcp.test", 20, 25, "B.test")
            .service("_s._tcp.test", 10, 2525, "a.test")
            .address("a.test", "192.0.2.1".parse().expect("valid"))
            .address("a.test", "2001:db8::1".parse().expect("valid"));
        let (witness, _server) = witness(zone).await;
        let Heard::Records { records, .. } = witness.services("_s._tcp.test").await else { panic!("there are two") };
        let shown: Vec<String> = records.iter().map(|one| format!("{}:{}", one.target, one.port)).collect();
        assert_eq!(shown, ["a.test:2525", "b.test:25"]);
        let addresses: Vec<String> = witness.addresses("a.test").await.iter().map(IpAddr::to_string).collect();
        assert_eq!(addresses, ["192.0.2.1", "2001:db8::1"]);
        assert!(witness.addresses("b.test").await.is_empty());
    }
}
