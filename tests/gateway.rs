//! Domains whose mail passes through: a gateway in front of another SMTP server, and a backup MX.

mod support;

use std::net::{IpAddr, Ipv4Addr};

use support::agent::{Agent, Builder};
use support::client::{Client, Way};
use support::dns::{self, Dns};
use support::net::SOON;
use support::sink::{Behaviour, Sink};

const CONTENT: &[u8] = b"From: <x@away.test>\r\nSubject: x\r\n\r\nbody\r\n";

/// Where strangers come from: no relay network holds it.
const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 200, 0, 1));

fn builder() -> Builder {
    Builder::new().set("relay.networks", "[\"127.0.0.1/32\"]")
}

fn stranger(agent: &Agent) -> Client {
    let mut client = Client::connect_from(STRANGER, agent.smtp());
    client.ehlo();
    client
}

/// A gateway: two domains to the host behind it, everything else to a host that gets nothing from strangers.
fn gateway(behind: &Sink, world: &Sink) -> Agent {
    builder()
        .route_with("listed.test", behind.address(), "tls = \"never\"\naccept = [\"alice\"]")
        .route_with(".any.test", behind.address(), "tls = \"never\"\naccept = \"any\"")
        .route("*", world.address())
        .start()
}

#[test]
fn strangers_write_to_domains_behind_this_host_and_the_next_hop_has_it() {
    let (behind, world) = (Sink::new(), Sink::new());
    let agent = gateway(&behind, &world);
    let mut client = stranger(&agent);
    let to = ["alice@listed.test", "whoever@sub.any.test"];
    assert_eq!(client.deliver("x@away.test", &to, CONTENT, Way::Data).code, 250);
    // A notification of another host.
    assert_eq!(client.deliver("", &["Postmaster@listed.test"], CONTENT, Way::Data).code, 250);
    client.expect("MAIL FROM:<x@away.test>", 250);
    for (recipient, status) in [("bob@listed.test", "5.1.1"), ("alice@any.test", "5.7.1"), ("user@away.test", "5.7.1")]
    {
        let reply = client.expect(&format!("RCPT TO:<{recipient}>"), 550);
        assert!(reply.text().contains(status), "{recipient}: {}", reply.text());
    }
    client.quit();
    // Who may relay hears of a recipient that is none, too, and may write to the world as ever.
    let mut network = Client::connect(agent.smtp());
    network.ehlo();
    network.expect("MAIL FROM:<x@here.test>", 250);
    network.expect("RCPT TO:<bob@listed.test>", 550);
    network.expect("RSET", 250);
    assert_eq!(network.deliver("x@here.test", &["user@away.test"], CONTENT, Way::Data).code, 250);
    network.quit();
    agent.wait_empty(SOON);
    let mut arrived: Vec<String> = behind.messages().into_iter().flat_map(|message| message.recipients).collect();
    arrived.sort();
    assert_eq!(arrived, ["Postmaster@listed.test", "alice@listed.test", "whoever@sub.any.test"]);
    assert_eq!(world.messages().len(), 1);
}

/// What the host behind might do with a name is no matter: such names are not passed on.
#[test]
fn no_trick_leads_through_a_gateway() {
    let (behind, world) = (Sink::new(), Sink::new());
    let agent = gateway(&behind, &world);
    for sender in ["<x@away.test>", "<>", "<alice@listed.test>"] {
        for trick in [
            "<user@away.test>",
            "<user@away.test.>",
            "<user@any.test>",
            "<user@listed.test.away.test>",
            "<user@xlisted.test>",
            "<@sub.any.test:user@away.test>",
            "<@listed.test,@away.test:user@away.test>",
            "<user%away.test@sub.any.test>",
            "<\"user%away.test\"@sub.any.test>",
            "<\"user@away.test\"@sub.any.test>",
            "<away.test!user@sub.any.test>",
            "<\"away.test!user\"@sub.any.test>",
            "<\"|user\"@sub.any.test>",
            "<user%away.test@listed.test>",
            "<\"alice@away.test\"@listed.test>",
            "<alice@away.test@listed.test>",
            "<user%away.test@[127.0.0.1]>",
            "<user@[192.0.2.1]>",
        ] {
            let mut client = stranger(&agent);
            client.expect(&format!("MAIL FROM:{sender}"), 250);
            let reply = client.say(&format!("RCPT TO:{trick}"));
            assert!((500..600).contains(&reply.code), "{sender} to {trick}: {}", reply.text());
        }
    }
    agent.wait_empty(SOON);
    assert_eq!((behind.commands(), world.commands()), (Vec::new(), Vec::new()));
}

/// RFC 5321 §5.1: mail goes to better exchanges than this host only, and waits while these are away.
#[test]
fn a_backup_mx_keeps_mail_until_a_better_exchange_takes_it() {
    let (primary, worse) = (Sink::start(Behaviour::default()), Sink::new());
    primary.behave(|behaviour| behaviour.greeting = "421 not now".into());
    let builder = builder();
    let dns = Dns::start(dns::zone(
        "backed.test",
        &[(10, "primary.test", primary.ip()), (20, "mx.test", builder.ip()), (30, "worse.test", worse.ip())],
    ));
    let agent = builder.by_dns(&dns).table("route", "domain = \"backed.test\"\nvia = \"mx\"\naccept = \"any\"").start();
    let mut client = stranger(&agent);
    assert_eq!(client.deliver("x@away.test", &["alice@backed.test"], CONTENT, Way::Data).code, 250);
    client.expect("MAIL FROM:<x@away.test>", 250);
    client.expect("RCPT TO:<user@away.test>", 550);
    client.quit();
    support::net::wait_until("the primary was tried", SOON, || primary.sessions() > 0);
    assert_eq!(agent.queued(), 1);
    primary.behave(|behaviour| behaviour.greeting = Behaviour::default().greeting);
    let messages = primary.expect(1, SOON);
    assert_eq!(messages[0].recipients, ["alice@backed.test"]);
    agent.wait_empty(SOON);
    // Once, over this host: it has not sent it to itself in between.
    let received = messages[0].content.windows(9).filter(|octets| octets.eq_ignore_ascii_case(b"received:")).count();
    assert_eq!((received, worse.sessions()), (1, 0));
}
