//! Members of one network that find one another by multicast DNS, and what others in it can do about that. Agents as
//! processes of their own, each in a network space of its own, on one bridge.

mod support;

use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use hickory_resolver::proto::op::{Message, MessageType, OpCode, Query};
use hickory_resolver::proto::rr::rdata::{A, SRV};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use serde_json::Value;
use support::agent::{Agent, Builder};
use support::lan::{HERE, Heard, Lan};
use support::mesh::{host, join, mailbox, named, send, status, wait_members};
use support::net::{SOON, wait_until};
use support::note;

const SERVICE: &str = "_smtp-mesh._tcp.local.";

/// A member to be, under a number of the network.
fn builder(lan: &Lan, number: u8, name: &str) -> Builder {
    let builder = lan.host(number, host(name)).set("relay.networks", "[\"198.18.0.0/15\"]");
    let builder = builder.set("timeouts.connect", "\"2s\"").set("mesh.mdns", "true");
    builder.set("mesh.addresses", &format!("[\"{}:2525\"]", lan.address(number)))
}

fn member(agent: &Agent, label: &str) -> Value {
    let status = status(agent);
    let members = status["members"].as_array().expect("a list");
    members.iter().find(|member| member["label"] == label).cloned().unwrap_or_default()
}

fn is_linked(agent: &Agent, label: &str) -> bool {
    ["dialled", "accepted"].iter().any(|link| member(agent, label)["link"] == *link)
}

/// Returns what an agent knows by multicast DNS.
fn candidates(agent: &Agent) -> Vec<Value> {
    let view = agent.json(&["mesh", "candidates", "--json"]);
    let list = view["candidates"].as_array().expect("a list").iter();
    list.filter(|one| one["source"] == "mdns").cloned().collect()
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("a name")
}

fn browse() -> Vec<u8> {
    let mut message = Message::new(0, MessageType::Query, OpCode::Query);
    message.queries.push(Query::query(name(SERVICE), RecordType::PTR));
    message.to_vec().expect("short")
}

/// What somebody says who claims that a node is at an address.
fn claim(node: &str, ip: IpAddr) -> Vec<u8> {
    let IpAddr::V4(ip) = ip else { panic!("an address of IPv4") };
    let (instance, host) = (name(&format!("{node}.{SERVICE}")), name(&format!("{node}.local.")));
    let mut message = Message::response(0, OpCode::Query);
    message.answers.push(Record::from_rdata(instance, 120, RData::SRV(SRV::new(0, 0, 2525, host.clone()))));
    message.answers.push(Record::from_rdata(host, 120, RData::A(A(ip))));
    message.to_vec().expect("short")
}

/// Returns whether a message takes something back.
fn is_goodbye(heard: &Heard) -> bool {
    let message = Message::from_vec(&heard.octets).expect("agents say what is sound");
    !message.answers.is_empty() && message.answers.iter().all(|record| record.ttl == 0)
}

/// Returns an id that is nobody's.
fn nobody(id: &str) -> String {
    id.chars().rev().collect()
}

fn two_members(lan: &Lan) -> (Agent, Agent) {
    let (a, b) = (builder(lan, 1, "a").start(), builder(lan, 2, "b").start());
    join(&a, &b, "b.example");
    wait_members(&[&a, &b], 2 * SOON, |member| member["label"] != "");
    wait_until("they are linked", 2 * SOON, || is_linked(&a, "b") && is_linked(&b, "a"));
    (a, b)
}

/// Returns how many sockets of a kind an agent has that a line of the kernel's list of them is about.
fn sockets(agent: &Agent, list: &str, inode: usize, is_meant: impl Fn(&[&str]) -> bool) -> usize {
    let text = std::fs::read_to_string(format!("/proc/{}/net/{list}", agent.pid())).unwrap_or_default();
    let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let inodes: Vec<String> =
        lines.filter(|line| is_meant(line)).map(|line| format!("socket:[{}]", line[inode])).collect();
    let open = std::fs::read_dir(format!("/proc/{}/fd", agent.pid())).expect("it runs").flatten();
    let links = open.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    links.filter(|link| inodes.iter().any(|inode| link.as_os_str() == inode.as_str())).count()
}

#[test]
fn without_the_setting_nothing_listens_to_the_network() {
    let groups = |agent: &Agent| {
        let is_mdns = |line: &[&str]| line.get(1).is_some_and(|local| local.ends_with(":14E9"));
        sockets(agent, "udp", 9, is_mdns) + sockets(agent, "udp6", 9, is_mdns)
    };
    // Who watches interfaces is told of links and addresses.
    let watches = |agent: &Agent| sockets(agent, "netlink", 9, |line| line.get(3) == Some(&"00000111"));
    let off = host("a").start();
    off.ok(&["mesh", "init"]);
    // Loopback leads to nobody: interfaces are watched for one of that name that does.
    let on = host("b").set("mesh.mdns", "[\"lo\"]").start();
    assert_eq!(watches(&on), 0, "in no mesh");
    on.ok(&["mesh", "init"]);
    wait_until("interfaces are watched", SOON, || watches(&on) == 1);
    assert_eq!((watches(&off), groups(&off), groups(&on)), (0, 0, 0));
    on.edit_config("mdns = [\"lo\"]", "mdns = false");
    on.ok(&["reload"]);
    wait_until("no longer", SOON, || watches(&on) == 0);
}

#[test]
#[ignore = "needs root and ip (iproute2) for a network of its own; .ci/run has a step for it"]
fn members_that_both_moved_find_one_another_without_dns_and_mail_flows() {
    let lan = Lan::make(2);
    let (mut a, mut b) = two_members(&lan);
    a.stop();
    b.stop();
    for (agent, host) in [(&mut a, 1), (&mut b, 2)] {
        lan.number_host(host, host + 10);
        agent.move_to(lan.address(host + 10));
    }
    let group = lan.group();
    let began = Instant::now();
    a.start();
    b.start();
    wait_until("they are linked", 6 * SOON, || is_linked(&a, "b") && is_linked(&b, "a"));
    let took = began.elapsed();
    // Where it is it has said itself by now.
    assert!([&a, &b].iter().any(|agent| agent.log().contains("source=mdns")), "it was by multicast DNS");
    for (agent, to, number) in [(&a, "b", 12), (&b, "a", 11)] {
        let address = format!("{}:2525", lan.address(number));
        wait_until("it says where it is", SOON, || {
            member(agent, to)["addresses"].as_array().is_some_and(|list| list.iter().any(|one| *one == *address))
        });
        send(agent, &format!("user@{to}.example"));
    }
    wait_until("mail is in both mailboxes", 3 * SOON, || mailbox(&a).len() == 1 && mailbox(&b).len() == 1);
    let said = |host: u8| group.heard_of(&[lan.address(host + 10), lan.link_local(host)]);
    note(format_args!("linked {took:?} after their start; {} and {} messages", said(1).len(), said(2).len()));
    // By each family: two announcements, two questions, answers to those of the other.
    assert!(
        (1..=16).contains(&said(1).len()) && (1..=16).contains(&said(2).len()),
        "{} {}",
        said(1).len(),
        said(2).len()
    );
    a.stop();
    wait_until("it takes back what it said", SOON, || said(1).iter().any(is_goodbye));
    assert!(!said(2).iter().any(is_goodbye));
}

#[test]
#[ignore = "needs root and ip (iproute2) for a network of its own; .ci/run has a step for it"]
fn who_claims_to_be_a_member_is_dialled_in_vain_and_gets_nothing() {
    let lan = Lan::make(3);
    let (a, mut b) = two_members(&lan);
    // An honest host that is no member, and whose address somebody gives out as that of one.
    let stranger = lan.host(3, named("c")).start();
    let id = member(&a, "b")["node"].as_str().expect("a text").to_owned();
    b.stop();
    let group = lan.group();
    wait_until("it is missed", 3 * SOON, || a.log().contains("cannot link") || !is_linked(&a, "b"));
    send(&a, "user@b.example");
    let address = format!("{}:2525", lan.address(3));
    let state = || candidates(&a).into_iter().find(|one| one["address"] == *address);
    // What was not sent to all is not read.
    group.say_to(lan.address(1), &claim(&nobody(&id), lan.address(HERE)));
    wait_until("it is dialled once", 6 * SOON, || {
        group.say(&claim(&id, lan.address(3)));
        std::thread::sleep(Duration::from_millis(200));
        state().is_some_and(|one| one["failures"].as_u64() >= Some(1))
    });
    let one = state().expect("it is known");
    assert!(candidates(&a).iter().all(|one| !one["node"].is_null()), "{:?}", candidates(&a));
    assert!(one["is_reached"] == false && one["wait_ms"].as_u64() > Some(0), "{one}");
    assert!(!is_linked(&a, "b") && a.queued() == 1);
    assert_eq!((stranger.queued(), status(&stranger)["is_member"].as_bool()), (0, Some(false)));
    // Another that nobody knows is shown, and not dialled.
    let nobody = nobody(&id);
    wait_until("it is shown", SOON, || {
        group.say(&claim(&nobody, lan.address(HERE)));
        candidates(&a)
            .iter()
            .any(|one| one["node"].is_null() && one["address"].as_str().is_some_and(|text| text.contains(&nobody)))
    });
    b.start();
    wait_until("the true one gets its mail", 6 * SOON, || mailbox(&b).len() == 1);
    assert_eq!(stranger.queued(), 0);
}

#[test]
#[ignore = "needs root and ip (iproute2) for a network of its own; .ci/run has a step for it"]
fn a_flood_of_questions_makes_a_member_say_one_message_a_second() {
    const QUERIES: u32 = 10_000;
    let lan = Lan::make(2);
    let (a, _b) = two_members(&lan);
    let group = lan.group();
    let addresses = [lan.address(1), lan.link_local(1)];
    // What they say at their start they have said.
    let quiet = Duration::from_secs(4);
    let mut last = (Instant::now(), 0);
    wait_until("it is silent", 3 * SOON, || {
        let count = group.heard_of(&addresses).len();
        if count != last.1 {
            last = (Instant::now(), count);
        }
        last.0.elapsed() >= quiet
    });
    let before = group.heard_of(&addresses).len();
    let began = Instant::now();
    for count in 1..=QUERIES {
        group.say(&browse());
        let due = Duration::from_millis(count.into());
        std::thread::sleep(due.saturating_sub(began.elapsed()));
    }
    // What it still says of it.
    std::thread::sleep(Duration::from_secs(2));
    let (said, took) = (group.heard_of(&addresses).len() - before, began.elapsed());
    note(format_args!("{QUERIES} questions within {took:?}: {said} messages"));
    assert!(said >= 1 && said as u64 <= took.as_secs() + 2, "{said} messages within {took:?}");
    assert!(is_linked(&a, "b"));
    // By the other family it answers as well.
    let said = group.heard_of(&addresses[1..]).len();
    group.say_by_v6(&browse());
    wait_until("it answers by IPv6", SOON, || group.heard_of(&addresses[1..]).len() > said);
}

#[test]
#[ignore = "needs root and ip (iproute2) for a network of its own; .ci/run has a step for it"]
fn a_port_that_somebody_keeps_for_itself_is_said_and_all_else_goes_on() {
    const KEEP: &str = "import socket, sys
kept = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
kept.bind((\"\", 5353))
print(\"kept\", flush=True)
sys.stdin.read()";
    let lan = Lan::make(2);
    let mut keeper = lan.run(1, &["python3", "-c", KEEP]);
    let mut said = String::new();
    BufReader::new(keeper.stdout.take().expect("a pipe")).read_line(&mut said).expect("it says so");
    assert_eq!(said, "kept\n");
    let (a, _b) = two_members(&lan);
    wait_until("it is said", SOON, || a.log().contains("no multicast DNS here"));
    assert!(a.log().contains("let what has UDP port 5353 share it"), "{}", a.log());
    assert!(!a.log().contains("multicast DNS is spoken interface=eth0 family=V4"), "{}", a.log());
    drop(keeper.stdin.take());
    keeper.wait().expect("it is a child");
    // Tried again when something changes at the interface.
    wait_until("it is spoken", 3 * SOON, || {
        lan.replug(1);
        std::thread::sleep(Duration::from_millis(500));
        a.log().contains("multicast DNS is spoken interface=eth0 family=V4")
    });
}
