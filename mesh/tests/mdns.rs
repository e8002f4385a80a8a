//! Multicast DNS between members of one network: what is found, what is said, and that nobody has a host say more. Simulated:
//! each message reaches all others a millisecond later.

#[path = "../../fuzz/mesh_targets.rs"]
#[allow(dead_code, reason = "some of them are for the corpus")]
mod targets;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::{A, PTR, SRV};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use postroad_mesh::NodeId;
use postroad_mesh::mdns::{
    ASK_INTERVAL_MS, Action, Family, Interface, Mdns, Network, Offer, PAUSE_MS, PORT, STRANGERS_MAX, Way,
};
use proptest::prelude::*;

const WAY: Way = Way { interface: 2, family: Family::V4 };
const SERVICE: &str = "_smtp-mesh._tcp.local.";
/// IP and UDP.
const HEADER_OCTETS: usize = 28;

fn id(number: u8) -> NodeId {
    NodeId::from_octets([number; 32])
}

fn ip(number: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, number).into()
}

fn at(number: u8) -> SocketAddr {
    SocketAddr::new(ip(number), PORT)
}

fn interface(number: u8) -> Interface {
    Interface {
        index: WAY.interface,
        families: [Family::V4].into(),
        networks: vec![Network { ip: ip(number), prefix: 24 }],
        offer: Some(Offer { port: 25, addresses: vec![ip(number)] }),
    }
}

fn host(number: u8) -> Mdns {
    let mut host = Mdns::new(number.into());
    host.set(vec![id(number)], vec![interface(number)], 0);
    host
}

/// Everybody below 200 is a member.
fn member(node: &NodeId) -> Option<NodeId> {
    (node.octets()[0] < 200).then_some(*node)
}

fn hear(host: &mut Mdns, from: SocketAddr, octets: &[u8], now: u64) -> Vec<NodeId> {
    host.received(WAY, from, octets, member, now)
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("a name")
}

fn question(text: &str, kind: RecordType, known: Vec<Record>, is_truncated: bool) -> Vec<u8> {
    let mut message = Message::new(0, MessageType::Query, OpCode::Query);
    message.metadata.truncation = is_truncated;
    if !text.is_empty() {
        message.queries.push(Query::query(name(text), kind));
    }
    message.answers = known;
    message.to_vec().expect("short")
}

fn browse() -> Vec<u8> {
    question(SERVICE, RecordType::PTR, Vec::new(), false)
}

/// What a host says that is somewhere.
fn announcement(node: &NodeId, addresses: &[&str], ttl: u32) -> Vec<u8> {
    let mut message = Message::response(0, OpCode::Query);
    let host = name(&format!("{node}.local."));
    let srv = RData::SRV(SRV::new(0, 0, 25, host.clone()));
    message.answers.push(Record::from_rdata(name(&format!("{node}.{SERVICE}")), ttl, srv));
    for address in addresses {
        let data = RData::A(A(address.parse().expect("an address")));
        message.answers.push(Record::from_rdata(host.clone(), ttl, data));
    }
    message.to_vec().expect("short")
}

fn pointer(node: &NodeId, ttl: u32) -> Record {
    Record::from_rdata(name(SERVICE), ttl, RData::PTR(PTR(name(&format!("{node}.{SERVICE}")))))
}

fn shown(host: &Mdns, now: u64) -> Vec<String> {
    host.places(now).iter().map(|(node, address)| format!("{} {address}", node.octets()[0])).collect()
}

/// Returns when a host says something until `end`, and what.
fn said(host: &mut Mdns, mut now: u64, end: u64) -> Vec<(u64, Message)> {
    let mut said = Vec::new();
    while now < end {
        match host.poll(now) {
            Action::Send(_, octets) => said.push((now, Message::from_vec(&octets).expect("sound"))),
            Action::Wait(Some(at)) => now = at.max(now + 1),
            Action::Wait(None) => break,
        }
    }
    said
}

fn is_answer((_, message): &&(u64, Message)) -> bool {
    message.metadata.message_type == MessageType::Response
}

/// A network.
struct Lan {
    hosts: Vec<(u8, Mdns)>,
    now: u64,
    messages: usize,
    octets: usize,
}

impl Lan {
    fn new(numbers: impl Iterator<Item = u8>) -> Lan {
        Lan { hosts: numbers.map(|number| (number, host(number))).collect(), now: 0, messages: 0, octets: 0 }
    }

    fn run(&mut self, until: u64) {
        while self.now < until {
            let mut next = until;
            let mut sent = Vec::new();
            for (number, host) in &mut self.hosts {
                loop {
                    match host.poll(self.now) {
                        Action::Send(_, octets) => sent.push((*number, octets)),
                        Action::Wait(at) => {
                            next = next.min(at.unwrap_or(until));
                            break;
                        }
                    }
                }
            }
            self.now = if sent.is_empty() { next.max(self.now + 1) } else { self.now + 1 };
            for (number, octets) in sent {
                self.messages += 1;
                self.octets += octets.len() + HEADER_OCTETS;
                for (other, host) in self.hosts.iter_mut().filter(|(other, _)| *other != number) {
                    assert_ne!(*other, number);
                    hear(host, at(number), &octets, self.now);
                }
            }
        }
    }
}

#[test]
fn members_of_a_network_find_one_another_and_are_silent_then() {
    let mut lan = Lan::new(1..=1);
    lan.run(10_000);
    lan.hosts.push((2, Mdns::new(2)));
    lan.hosts[1].1.set(vec![id(2)], vec![interface(2)], lan.now);
    lan.run(20_000);
    assert_eq!(shown(&lan.hosts[0].1, lan.now), ["2 10.0.0.2:25"]);
    assert_eq!(shown(&lan.hosts[1].1, lan.now), ["1 10.0.0.1:25"]);
    // Each: two announcements and one question; and one answer.
    assert_eq!(lan.messages, 7);
    lan.run(24 * ASK_INTERVAL_MS);
    assert_eq!(lan.messages, 7);
    assert!(lan.hosts.iter_mut().all(|(_, host)| host.poll(lan.now) == Action::Wait(None)));
    assert!(shown(&lan.hosts[0].1, lan.now).is_empty(), "nothing is remembered for ever");
}

#[test]
fn who_is_missed_is_asked_for_once_an_hour_and_answers_alone() {
    let mut lan = Lan::new(1..=100);
    lan.run(600_000);
    assert_eq!(lan.hosts[0].1.places(lan.now).len(), 99);
    let begin = lan.octets;
    // All miss one that is not there.
    lan.hosts.iter_mut().for_each(|(_, host)| host.seek([id(150)].into()));
    for hour in 1..=3 {
        let (messages, octets) = (lan.messages, lan.octets);
        lan.run(600_000 + hour * ASK_INTERVAL_MS);
        assert!(lan.messages - messages <= 100, "{} messages in an hour", lan.messages - messages);
        assert!(lan.octets - octets <= 30_000, "{} octets in an hour", lan.octets - octets);
    }
    assert!(lan.octets > begin, "it is asked for");
    lan.hosts.push((150, Mdns::new(150)));
    lan.hosts[100].1.set(vec![id(150)], vec![interface(150)], lan.now);
    lan.run(lan.now + 5_000);
    let is_found = |host: &Mdns| host.places(lan.now).iter().any(|(node, _)| *node == id(150));
    assert!(lan.hosts[..100].iter().all(|(_, host)| is_found(host)), "its announcement is enough");
}

#[test]
fn a_flood_of_questions_is_answered_once_a_second() {
    let mut host = host(1);
    let mut times = Vec::new();
    for now in 0..60_000 {
        hear(&mut host, at(9), &browse(), now);
        while let Action::Send(_, octets) = host.poll(now) {
            assert!(octets.len() < 1_400, "{} octets", octets.len());
            times.push(now);
        }
    }
    assert!((55..=60).contains(&times.len()), "{} in a minute", times.len());
    assert!(times.windows(2).all(|pair| pair[1] - pair[0] >= PAUSE_MS), "{times:?}");
}

#[test]
fn both_groups_of_a_network_share_its_limit_and_networks_have_one_each() {
    let mut host = Mdns::new(1);
    let both = |index| Interface { index, families: [Family::V4, Family::V6].into(), ..interface(1) };
    host.set(vec![id(1)], vec![both(2), both(3)], 0);
    let mut sent: Vec<(u64, Way)> = Vec::new();
    for now in 0..30_000 {
        for interface in [2, 3] {
            for family in [Family::V4, Family::V6] {
                host.received(Way { interface, family }, at(9), &browse(), member, now);
            }
        }
        while let Action::Send(way, _) = host.poll(now) {
            sent.push((now, way));
        }
    }
    for interface in [2, 3] {
        let of: Vec<_> = sent.iter().filter(|(_, way)| way.interface == interface).collect();
        assert!(of.windows(2).all(|pair| pair[1].0 - pair[0].0 >= PAUSE_MS));
        for family in [Family::V4, Family::V6] {
            assert!(of.iter().filter(|(_, way)| way.family == family).count() >= 12, "neither starves the other");
        }
    }
    // An interface that comes and goes has no more.
    for now in 30_000..40_000 {
        host.set(vec![id(1)], Vec::new(), now);
        host.set(vec![id(1)], vec![both(2)], now);
        while let Action::Send(way, _) = host.poll(now) {
            sent.push((now, way));
        }
    }
    let of: Vec<_> = sent.iter().filter(|(_, way)| way.interface == 2).collect();
    assert!(of.windows(2).all(|pair| pair[1].0 - pair[0].0 >= PAUSE_MS));
}

#[test]
fn a_missed_member_is_asked_for_by_name_and_no_oftener_than_once_an_hour() {
    let mut host = host(1);
    let first = said(&mut host, 0, 60_000);
    assert_eq!(first.iter().filter(is_answer).count(), 2, "announced twice");
    let asked: Vec<_> = first.iter().filter(|one| !is_answer(one)).collect();
    assert!(asked.len() == 1 && asked[0].1.queries[0].query_type == RecordType::PTR);
    host.seek([id(7)].into());
    let day = said(&mut host, 60_000, 24 * ASK_INTERVAL_MS);
    assert!((18..=24).contains(&day.len()), "{} times in a day", day.len());
    for (_, message) in &day {
        assert_eq!(message.queries, [Query::query(name(&format!("{}.{SERVICE}", id(7))), RecordType::SRV)]);
    }
    assert!(day.windows(2).all(|pair| pair[1].0 - pair[0].0 >= ASK_INTERVAL_MS - 101));
    host.seek((10..40).map(id).collect());
    let many = said(&mut host, 25 * ASK_INTERVAL_MS, 26 * ASK_INTERVAL_MS);
    assert!(many.len() == 1 && many[0].1.queries == [Query::query(name(SERVICE), RecordType::PTR)]);
    host.seek(BTreeSet::new());
    assert_eq!(host.poll(27 * ASK_INTERVAL_MS), Action::Wait(None));
}

#[test]
fn a_group_that_comes_a_moment_later_is_asked_as_well() {
    for (later, asked) in [(5_000, 1), (20_000, 0)] {
        let mut host = host(1);
        said(&mut host, 0, later);
        host.set(vec![id(1)], vec![Interface { families: [Family::V4, Family::V6].into(), ..interface(1) }], later);
        let said = said(&mut host, later, 60_000);
        assert_eq!(said.iter().filter(|one| !is_answer(one)).count(), asked, "{later}");
        assert_eq!(said.iter().filter(is_answer).count(), 2, "it is announced there anyhow");
    }
}

#[test]
fn answers_come_with_a_delay_and_not_for_what_is_known() {
    let mut delays = BTreeSet::new();
    for seed in 0..200 {
        let mut host = Mdns::new(seed);
        host.set(vec![id(1)], vec![interface(1)], 0);
        said(&mut host, 0, 10_000);
        hear(&mut host, at(9), &browse(), 20_000);
        let answers = said(&mut host, 20_000, 30_000);
        assert_eq!(answers.len(), 1);
        delays.insert(answers[0].0 - 20_000);
        assert!(
            answers[0]
                .1
                .answers
                .iter()
                .any(|record| record.record_type() == RecordType::SRV && record.mdns_cache_flush)
        );
        let known = question(SERVICE, RecordType::PTR, vec![pointer(&id(1), 2_250)], false);
        hear(&mut host, at(9), &known, 40_000);
        assert!(said(&mut host, 40_000, 50_000).is_empty(), "known for long enough");
        let known = question(SERVICE, RecordType::PTR, vec![pointer(&id(1), 2_000)], false);
        hear(&mut host, at(9), &known, 60_000);
        assert_eq!(said(&mut host, 60_000, 70_000).len(), 1, "about to be forgotten");
        let direct = question(&format!("{}.{SERVICE}", id(1)), RecordType::SRV, Vec::new(), false);
        hear(&mut host, at(9), &direct, 80_000);
        assert_eq!(said(&mut host, 80_000, 90_000)[0].0, 80_000, "nobody else can answer");
        for other in [format!("{}.{SERVICE}", id(2)), "_ipp._tcp.local.".to_owned(), "local.".to_owned()] {
            hear(&mut host, at(9), &question(&other, RecordType::ANY, Vec::new(), false), 100_000);
        }
        assert!(said(&mut host, 100_000, 110_000).is_empty(), "not its business");
    }
    assert!(delays.len() > 30 && delays.first() >= Some(&20) && delays.last() <= Some(&120), "{delays:?}");
}

#[test]
fn who_has_more_to_say_of_what_it_knows_is_waited_for() {
    let more = |known: Vec<Record>| question("", RecordType::PTR, known, false);
    let begin = question(SERVICE, RecordType::PTR, vec![pointer(&id(5), 4_500)], true);
    let mut host = host(1);
    said(&mut host, 0, 10_000);
    hear(&mut host, at(9), &begin, 20_000);
    assert!(said(&mut host, 20_000, 20_400).is_empty());
    hear(&mut host, at(8), &more(vec![pointer(&id(1), 4_500)]), 20_100);
    hear(&mut host, at(9), &more(vec![pointer(&id(6), 4_500)]), 20_100);
    assert_eq!(said(&mut host, 20_100, 21_000).len(), 1, "neither said that it knows this one");
    hear(&mut host, at(9), &begin, 30_000);
    hear(&mut host, at(9), &more(vec![pointer(&id(1), 4_500)]), 30_100);
    assert!(said(&mut host, 30_100, 31_000).is_empty());
}

#[test]
fn a_question_that_somebody_asks_just_now_is_not_repeated() {
    let mut host = host(1);
    host.poll(0);
    hear(&mut host, at(9), &browse(), 1);
    assert!(said(&mut host, 1, 60_000).iter().all(|(_, message)| message.queries.is_empty()));
}

#[test]
fn only_what_comes_from_this_network_and_leads_there_is_taken() {
    let mut host = host(1);
    let good = announcement(&id(7), &["10.0.0.7"], 120);
    for from in ["192.0.2.7:5353", "10.0.1.7:5353", "10.0.0.7:5354", "[fe80::7]:5354"] {
        hear(&mut host, from.parse().expect("an address"), &good, 0);
        assert!(host.places(1).is_empty(), "{from}");
    }
    // Nowhere, itself, another network, this host.
    let bad = ["0.0.0.0", "127.0.0.1", "224.0.0.251", "255.255.255.255", "192.0.2.9", "10.0.0.1"];
    for address in bad {
        hear(&mut host, at(7), &announcement(&id(7), &[address], 120), 0);
        assert!(host.places(1).is_empty(), "{address}");
    }
    hear(&mut host, at(7), &announcement(&id(1), &["10.0.0.7"], 120), 0);
    assert!(host.places(1).is_empty(), "nobody tells it where it is itself");
    hear(&mut host, at(7), &good, 0);
    assert_eq!(shown(&host, 1), ["7 10.0.0.7:25"]);
    assert!(shown(&host, 120_001).is_empty(), "for as long as it says");
}

#[test]
fn nobody_takes_back_what_somebody_else_said() {
    let mut host = host(1);
    hear(&mut host, at(7), &announcement(&id(7), &["10.0.0.7"], 4_500), 0);
    hear(&mut host, at(9), &announcement(&id(7), &["10.0.0.7"], 0), 1);
    hear(&mut host, at(9), &announcement(&id(7), &["10.0.0.9", "10.0.0.10"], 4_500), 2);
    assert_eq!(shown(&host, 3), ["7 10.0.0.7:25", "7 10.0.0.9:25", "7 10.0.0.10:25"]);
    hear(&mut host, at(9), &announcement(&id(7), &["10.0.0.11"], 4_500), 4);
    assert_eq!(shown(&host, 5), ["7 10.0.0.7:25", "7 10.0.0.11:25"], "its own it replaces");
    hear(&mut host, at(7), &announcement(&id(7), &[], 0), 6);
    assert_eq!(shown(&host, 7), ["7 10.0.0.11:25"], "and takes back");
    let many: Vec<String> = (20..90).map(|n| format!("10.0.0.{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    for from in 20..90 {
        hear(&mut host, at(from), &announcement(&id(7), &many, 4_500), 8);
    }
    assert_eq!(host.places(9).len(), 8);
}

#[test]
fn news_of_a_missed_member_is_worth_a_dial_now_and_then() {
    let mut host = host(1);
    assert!(hear(&mut host, at(7), &announcement(&id(7), &["10.0.0.7"], 120), 0).is_empty(), "it is not missed");
    host.seek([id(7)].into());
    assert!(hear(&mut host, at(7), &announcement(&id(7), &["10.0.0.7"], 120), 1).is_empty(), "it is no news");
    let mut dials = 0;
    for second in 0..3_600_u64 {
        let address = format!("10.0.0.{}", second % 200 + 10);
        dials += hear(&mut host, at(9), &announcement(&id(7), &[&address], 4_500), second * 1_000).len();
    }
    assert_eq!(dials, 12);
}

#[test]
fn who_is_no_member_is_shown_and_there_is_room_for_few() {
    let mut host = host(1);
    for number in 200..=255 {
        hear(&mut host, at(9), &announcement(&id(number), &["10.0.0.9"], 120), 0);
    }
    assert!(host.places(1).is_empty());
    let strangers = host.strangers(1);
    assert_eq!(strangers.len(), STRANGERS_MAX);
    assert_eq!(*strangers.last().expect("some"), format!("{}: 10.0.0.9:25", id(255)));
    assert!(host.strangers(120_001).is_empty());
}

#[test]
fn what_was_announced_is_taken_back_at_the_end_and_anew_when_it_changes() {
    let mut silent = host(1);
    assert!(silent.goodbye().is_empty(), "nobody has heard of it");
    let (mut one, mut other) = (host(1), host(2));
    let (first, announced) =
        said(&mut one, 0, 10_000).into_iter().find(|(_, m)| !m.answers.is_empty()).expect("it does");
    hear(&mut other, at(1), &announced.to_vec().expect("sound"), first);
    assert_eq!(shown(&other, 10_000), ["1 10.0.0.1:25"]);
    one.set(vec![id(1)], vec![interface(1)], 10_000);
    assert!(said(&mut one, 10_000, 20_000).is_empty(), "it is the same");
    one.set(vec![id(1)], vec![interface(3)], 20_000);
    let again = said(&mut one, 20_000, 30_000);
    assert_eq!(again.len(), 2);
    hear(&mut other, at(1), &again[0].1.to_vec().expect("sound"), 20_000);
    assert_eq!(shown(&other, 20_001), ["1 10.0.0.3:25"]);
    let goodbye = one.goodbye();
    assert_eq!(goodbye.len(), 1);
    hear(&mut other, at(1), &goodbye[0].1, 30_000);
    assert!(shown(&other, 30_001).is_empty());
    assert_eq!(one.poll(40_000), Action::Wait(None));
}

#[test]
fn a_host_that_cannot_be_dialled_asks_and_announces_nothing() {
    let mut host = Mdns::new(1);
    host.set(vec![id(1)], vec![Interface { offer: None, ..interface(1) }], 0);
    hear(&mut host, at(9), &browse(), 200);
    let said = said(&mut host, 0, 60_000);
    assert!(said.iter().all(|one| !is_answer(&one)), "{said:?}");
    assert!(host.goodbye().is_empty());
}

proptest! {
    /// Whatever is sent in a network: nothing is said oftener, and nothing grows.
    #[test]
    fn whatever_is_heard_is_borne(
        messages in proptest::collection::vec((any::<u8>(), 0_u64..3_000, prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..600),
            (any::<u8>(), proptest::collection::vec((any::<usize>(), any::<u8>()), 0..4)).prop_map(|(number, changes)| {
                let mut octets = match number % 3 {
                    0 => browse(),
                    1 => announcement(&id(number), &["10.0.0.9", "10.0.0.8"], u32::from(number)),
                    _ => question(SERVICE, RecordType::PTR, vec![pointer(&id(1), 4_500)], number % 2 == 0),
                };
                for (place, octet) in changes {
                    let place = place % octets.len();
                    octets[place] = octet;
                }
                octets
            }),
        ]), 0..60),
    ) {
        let octets: Vec<u8> = messages.into_iter().flat_map(|(from, wait, octets)| targets::mdns_step(from, wait, &octets)).collect();
        targets::mdns(&octets);
    }
}
