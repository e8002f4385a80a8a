//! What members say by multicast DNS, as octets: announcements and questions, and what is read of those of others.
//! The messages are coded by hickory-proto; nothing here parses. RFC 6762 (the wire), RFC 6763 (services).

use std::net::IpAddr;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::Offer;
use crate::candidate::SERVICE;
use crate::node::NodeId;

/// How long others may remember what is announced, in seconds (RFC 6762 §10: 75 minutes). Also of addresses: the next
/// announcement replaces them, and a false one costs a dial.
pub const TTL_S: u32 = 4_500;
/// The largest message that is read, in octets (RFC 6762 §17).
pub const MESSAGE_OCTETS_MAX: usize = 9_000;
/// The most records and questions of one message that are looked at.
const RECORDS_MAX: usize = 64;

/// What another host said.
#[derive(Clone, Debug)]
pub(super) enum Said {
    /// It asks.
    Query(Asked),
    /// It says where instances of the service are.
    Places(Vec<Place>),
}

/// Questions, with what who asks knows already.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub questions: Vec<Query>,
    pub known: Vec<Record>,
    /// More that it knows is in the next message (RFC 6762 §7.2).
    pub is_truncated: bool,
}

/// Where an instance is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The first label of its name.
    pub label: String,
    pub port: u16,
    pub addresses: Vec<IpAddr>,
    /// How long that is good, in seconds; 0: no longer.
    pub ttl_s: u32,
}

/// Reads a message; `None`: it is none, or nothing for a member.
pub(super) fn read(octets: &[u8]) -> Option<Said> {
    if octets.len() > MESSAGE_OCTETS_MAX {
        return None;
    }
    let message = Message::from_vec(octets).ok()?;
    // RFC 6762 §18.3, §18.11.
    if message.metadata.op_code != OpCode::Query || message.metadata.response_code != ResponseCode::NoError {
        return None;
    }
    match message.metadata.message_type {
        MessageType::Query => Some(Said::Query(Asked {
            is_truncated: message.metadata.truncation,
            questions: message.queries.into_iter().take(RECORDS_MAX).collect(),
            known: message.answers.into_iter().take(RECORDS_MAX).collect(),
        })),
        MessageType::Response => Some(Said::Places(places(&message))),
    }
}

/// Returns where a response says that instances are: whoever announces one puts its addresses beside it (RFC 6763 §12).
fn places(message: &Message) -> Vec<Place> {
    let service = service();
    let records = || message.answers.iter().chain(&message.additionals).take(RECORDS_MAX);
    let place = |record: &Record| {
        let RData::SRV(srv) = &record.data else { return None };
        if record.name.base_name() != service {
            return None;
        }
        let label = String::from_utf8_lossy(record.name.iter().next()?).to_ascii_lowercase();
        let address = |of: &Record| match &of.data {
            RData::A(a) if of.name == srv.target => Some((IpAddr::V4(a.0), of.ttl)),
            RData::AAAA(aaaa) if of.name == srv.target => Some((IpAddr::V6(aaaa.0), of.ttl)),
            _ => None,
        };
        let found: Vec<(IpAddr, u32)> = records().filter_map(address).collect();
        let ttl_s = found.iter().map(|(_, ttl)| *ttl).chain([record.ttl]).min()?;
        Some(Place { label, port: srv.port, addresses: found.into_iter().map(|(ip, _)| ip).collect(), ttl_s })
    };
    records().filter_map(place).collect()
}

/// Returns the records that say where a host is under each of its ids.
pub(super) fn records(ids: &[NodeId], offer: &Offer, ttl_s: u32) -> Vec<Record> {
    let shared = |name: Name, data: RData| Record::from_rdata(name, ttl_s, data);
    let unique = |name: Name, data: RData| {
        let mut record = Record::from_rdata(name, ttl_s, data);
        // What others remember of this host's before is no more (RFC 6762 §10.2).
        record.mdns_cache_flush = true;
        record
    };
    let mut records = Vec::new();
    for id in ids {
        let (instance, host) = (instance(id), name(&format!("{id}.local.")));
        records.push(shared(service(), RData::PTR(PTR(instance.clone()))));
        records.push(unique(instance.clone(), RData::SRV(SRV::new(0, 0, offer.port, host.clone()))));
        // A TXT record is asked for even where it has nothing to say (RFC 6763 §6.1).
        records.push(unique(instance, RData::TXT(TXT::new(vec![String::new()]))));
        for ip in &offer.addresses {
            let data = match ip {
                IpAddr::V4(ip) => RData::A(A(*ip)),
                IpAddr::V6(ip) => RData::AAAA(AAAA(*ip)),
            };
            records.push(unique(host.clone(), data));
        }
    }
    records
}

/// Returns the message that announces them, or with a time of 0 takes them back (RFC 6762 §8.3, §10.1).
pub(super) fn announcement(ids: &[NodeId], offer: &Offer, ttl_s: u32) -> Vec<u8> {
    let mut message = Message::response(0, OpCode::Query);
    message.metadata.authoritative = true;
    message.answers = records(ids, offer, ttl_s);
    message.to_vec().expect("a few records of bounded length fit a message")
}

/// Returns the question for all instances there are.
pub(super) fn browse() -> Query {
    Query::query(service(), RecordType::PTR)
}

/// Returns the question where an instance is.
pub(super) fn resolve(id: &NodeId) -> Query {
    Query::query(instance(id), RecordType::SRV)
}

/// Returns the message that asks.
pub(super) fn query(questions: Vec<Query>) -> Vec<u8> {
    let mut message = Message::new(0, MessageType::Query, OpCode::Query);
    message.queries = questions;
    message.to_vec().expect("a few questions of bounded length fit a message")
}

/// Returns whether a record answers a question (RFC 6762 §6).
pub(super) fn answers(record: &Record, question: &Query) -> bool {
    let is_class = matches!(question.query_class, DNSClass::IN | DNSClass::ANY);
    let is_type = question.query_type == RecordType::ANY || question.query_type == record.record_type();
    is_class && is_type && question.name == record.name
}

/// Returns whether who asks knows a record long enough (RFC 6762 §7.1).
pub(super) fn is_known(record: &Record, known: &[Record]) -> bool {
    let is_it = |one: &&Record| one.name == record.name && one.data == record.data;
    known.iter().filter(is_it).any(|one| one.ttl >= record.ttl / 2)
}

fn service() -> Name {
    name(&format!("{SERVICE}.local."))
}

fn instance(id: &NodeId) -> Name {
    name(&format!("{id}.{SERVICE}.local."))
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("ids and the service are short labels of letters and digits")
}
