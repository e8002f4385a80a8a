//! A small name server over names kept in memory, for `postroad demo` and the tests.
//!
//! It answers as a recursive server would: it follows aliases inside its zone, gives an SOA with
//! every denial so that resolvers may cache it, and truncates over UDP so that they come back over
//! TCP. Single names can be told to fail. It serves loopback only and knows nothing of the world.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use hickory_server::net::runtime::Time;
use hickory_server::net::xfer::Protocol;
use hickory_server::proto::op::{Header, HeaderCounts, MessageType, Metadata, OpCode, ResponseCode};
use hickory_server::proto::rr::rdata::{CNAME, MX, SOA, SRV, TXT};
use hickory_server::proto::rr::{Name, RData, Record, RecordType};
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use tokio::net::{TcpListener, UdpSocket};

/// How many aliases one answer follows.
const ALIASES_MAX: usize = 8;
/// How long resolvers may keep an answer, in seconds.
const TTL_SECONDS: u32 = 60;
/// How long a TCP connection may stay idle.
const TCP_IDLE: Duration = Duration::from_secs(5);
/// How often a free port is looked for that UDP and TCP can share.
const PORT_TRIES_MAX: usize = 16;

/// What a name server knows. Names are written without a trailing dot.
#[derive(Clone, Debug, Default)]
pub struct Zone {
    names: BTreeMap<String, Vec<RData>>,
    faults: BTreeMap<String, Fault>,
    signed: BTreeSet<String>,
}

/// How a name fails instead of being answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    ServFail,
    Refused,
    Silence,
}

/// A running name server; it stops when it is dropped.
pub struct NameServer {
    addr: SocketAddr,
    asked: Arc<Asked>,
    zone: Arc<ArcSwap<Zone>>,
    server: hickory_server::Server<Answers>,
}

impl Zone {
    /// A zone in which no name exists.
    pub fn new() -> Zone {
        Zone::default()
    }

    /// Adds an MX record.
    ///
    /// # Panics
    /// When a name is none that DNS can carry; so do all methods that take one.
    pub fn mx(self, domain: &str, preference: u16, exchange: &str) -> Zone {
        self.add(domain, RData::MX(MX::new(preference, name_of(exchange))))
    }

    /// Adds a null MX (RFC 7505): the domain takes no mail.
    pub fn null_mx(self, domain: &str) -> Zone {
        self.add(domain, RData::MX(MX::new(0, Name::root())))
    }

    /// Adds an A or AAAA record.
    pub fn address(self, name: &str, ip: IpAddr) -> Zone {
        self.add(name, RData::from(ip))
    }

    /// Adds a CNAME record.
    pub fn alias(self, name: &str, target: &str) -> Zone {
        self.add(name, RData::CNAME(CNAME(name_of(target))))
    }

    /// Adds a TXT record.
    pub fn text(self, name: &str, text: &str) -> Zone {
        self.add(name, RData::TXT(TXT::new(vec![text.to_owned()])))
    }

    /// Adds an SRV record.
    pub fn service(self, name: &str, priority: u16, port: u16, target: &str) -> Zone {
        self.add(name, RData::SRV(SRV::new(priority, 0, port, name_of(target))))
    }

    /// Lets every answer about this name be marked as one whose signatures were checked.
    pub fn signed(mut self, name: &str) -> Zone {
        self.signed.insert(name.to_ascii_lowercase());
        self
    }

    /// Lets every query for this name be answered with SERVFAIL.
    pub fn servfail(self, name: &str) -> Zone {
        self.fault(name, Fault::ServFail)
    }

    /// Lets every query for this name be refused.
    pub fn refused(self, name: &str) -> Zone {
        self.fault(name, Fault::Refused)
    }

    /// Lets every query for this name go unanswered.
    pub fn silent(self, name: &str) -> Zone {
        self.fault(name, Fault::Silence)
    }

    fn add(mut self, name: &str, data: RData) -> Zone {
        self.names.entry(name.to_ascii_lowercase()).or_default().push(data);
        self
    }

    fn fault(mut self, name: &str, fault: Fault) -> Zone {
        self.faults.insert(name.to_ascii_lowercase(), fault);
        self
    }

    /// Returns the records that answer a query, aliases included, and the response code.
    fn answer(&self, name: &str, wanted: RecordType) -> (ResponseCode, Vec<Record>) {
        let mut answers = Vec::new();
        let mut at = name.to_string();
        for _ in 0..=ALIASES_MAX {
            let Some(records) = self.names.get(&at) else {
                let code = if self.has_below(&at) { ResponseCode::NoError } else { ResponseCode::NXDomain };
                return (code, answers);
            };
            let record = |data: &RData| Record::from_rdata(name_of(&at), TTL_SECONDS, data.clone());
            answers.extend(records.iter().filter(|data| data.record_type() == wanted).map(record));
            let alias = records.iter().find_map(|data| match data {
                RData::CNAME(CNAME(target)) if wanted != RecordType::CNAME => Some((data, target)),
                _ => None,
            });
            let Some((data, target)) = alias else { break };
            answers.push(record(data));
            at = plain(target);
        }
        (ResponseCode::NoError, answers)
    }

    /// Returns whether the name is an empty non-terminal (RFC 8020): it exists without records.
    fn has_below(&self, name: &str) -> bool {
        self.names.keys().any(|known| known.strip_suffix(name).is_some_and(|rest| rest.ends_with('.')))
    }
}

fn name_of(text: &str) -> Name {
    Name::from_ascii(format!("{text}.")).expect("zones are written by us, with names that DNS can carry")
}

fn plain(name: &Name) -> String {
    name.to_ascii().trim_end_matches('.').to_ascii_lowercase()
}

impl NameServer {
    /// Starts to serve `zone` on UDP and TCP at `addr`; with port 0 a port is found that is free
    /// on both.
    pub async fn start(addr: SocketAddr, zone: Zone) -> io::Result<NameServer> {
        let (udp, tcp) = bind_both(addr).await?;
        let addr = udp.local_addr()?;
        let (asked, zone) = (Arc::<Asked>::default(), Arc::new(ArcSwap::from_pointee(zone)));
        let mut server = hickory_server::Server::new(Answers { zone: zone.clone(), asked: asked.clone() });
        server.register_socket(udp);
        server.register_listener(tcp, TCP_IDLE, 4096);
        Ok(NameServer { addr, asked, zone, server })
    }

    /// Returns where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves another zone from here on.
    pub fn set_zone(&self, zone: Zone) {
        self.zone.store(Arc::new(zone));
    }

    /// Returns how many queries it was asked so far, over UDP and TCP.
    pub fn queries(&self) -> u64 {
        self.asked.udp.load(Ordering::Relaxed) + self.queries_over_tcp()
    }

    /// Returns how many of them came over TCP.
    pub fn queries_over_tcp(&self) -> u64 {
        self.asked.tcp.load(Ordering::Relaxed)
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.server.shutdown_token().cancel();
    }
}

async fn bind_both(addr: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    for _ in 1..PORT_TRIES_MAX {
        let udp = UdpSocket::bind(addr).await?;
        match TcpListener::bind(udp.local_addr()?).await {
            Ok(tcp) => return Ok((udp, tcp)),
            Err(_) if addr.port() == 0 => continue,
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(io::ErrorKind::AddrInUse, "found no port that is free on both UDP and TCP"))
}

struct Answers {
    zone: Arc<ArcSwap<Zone>>,
    asked: Arc<Asked>,
}

#[derive(Default)]
struct Asked {
    udp: AtomicU64,
    tcp: AtomicU64,
}

#[async_trait::async_trait]
impl RequestHandler for Answers {
    async fn handle_request<R: ResponseHandler, T: Time>(&self, request: &Request, mut out: R) -> ResponseInfo {
        let asked = if request.protocol() == Protocol::Udp { &self.asked.udp } else { &self.asked.tcp };
        asked.fetch_add(1, Ordering::Relaxed);
        let metadata = Metadata::response_from_request(&request.metadata);
        let failed = ResponseInfo::from(Header { metadata, counts: HeaderCounts::default() });
        let Ok(info) = request.request_info() else { return failed };
        let name = plain(&Name::from(info.query.name()));
        let zone = self.zone.load_full();
        let (code, answers) = match zone.faults.get(&name) {
            Some(Fault::Silence) => return failed,
            Some(Fault::ServFail) => (ResponseCode::ServFail, Vec::new()),
            Some(Fault::Refused) => (ResponseCode::Refused, Vec::new()),
            None => zone.answer(&name, info.query.query_type()),
        };
        let denial = answers.iter().all(|answer| answer.record_type() != info.query.query_type());
        let soa = (denial && matches!(code, ResponseCode::NoError | ResponseCode::NXDomain)).then(denial_soa);
        let mut metadata = metadata;
        metadata.message_type = MessageType::Response;
        metadata.op_code = OpCode::Query;
        metadata.recursion_available = true;
        metadata.response_code = code;
        metadata.authentic_data = zone.signed.contains(&name);
        let response = MessageResponseBuilder::from_message_request(request).build(metadata, &answers, [], &soa, []);
        out.send_response(response).await.unwrap_or(failed)
    }
}

fn denial_soa() -> Record {
    let soa = SOA::new(Name::root(), Name::root(), 1, 3600, 600, 86_400, TTL_SECONDS);
    Record::from_rdata(Name::root(), TTL_SECONDS, RData::SOA(soa))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_follows_aliases_and_stops_in_a_loop() {
        let zone = Zone::new()
            .alias("a.test", "b.test")
            .address("b.test", "127.0.0.9".parse().expect("valid"))
            .alias("l.test", "l.test");
        let (code, answers) = zone.answer("a.test", RecordType::A);
        assert_eq!((code, answers.len()), (ResponseCode::NoError, 2));
        assert_eq!(zone.answer("l.test", RecordType::A).1.len(), ALIASES_MAX + 1);
    }

    #[test]
    fn a_name_exists_when_something_lies_below_it() {
        let zone = Zone::new().address("x.y.test", "127.0.0.9".parse().expect("valid"));
        assert_eq!(zone.answer("y.test", RecordType::MX).0, ResponseCode::NoError);
        assert_eq!(zone.answer("z.test", RecordType::MX).0, ResponseCode::NXDomain);
    }
}
