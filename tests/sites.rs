//! Domains whose mail the same hosts take: they share connections, sessions and outages, over real
//! DNS and SMTP; a domain that moves is followed.

mod support;

use std::time::Duration;

use postroad::dns_zone::Zone;
use support::agent::{Agent, Builder};
use support::client::{Client, Way};
use support::dns::Dns;
use support::net::{SOON, wait_until};
use support::sink::Sink;

const DOMAINS: usize = 12;

fn send(agent: &Agent, to: &str) {
    Client::hand_over(agent.smtp(), "a@client.test", &[to], b"Subject: sites\r\n\r\nx\r\n", Way::Data);
}

/// A zone in which one host takes the mail of all domains.
fn zone(sink: &Sink) -> Zone {
    let zone = Zone::new().address("mx.shared.test", sink.ip());
    (0..DOMAINS).fold(zone, |zone, n| zone.mx(&format!("d{n}.test"), 10 + n as u16, "mx.shared.test"))
}

#[test]
fn domains_with_the_same_hosts_share_one_connection() {
    let sink = Sink::new();
    let dns = Dns::start(zone(&sink));
    let agent = Builder::new().by_dns(&dns).start();
    for n in 0..DOMAINS {
        send(&agent, &format!("b@d{n}.test"));
        sink.expect(n + 1, SOON);
        agent.wait_empty(SOON);
    }
    // The first may still hold its connection when the second comes.
    assert!(sink.sessions() <= 2, "{} sessions for {DOMAINS} messages", sink.sessions());
}

#[test]
fn a_route_with_another_policy_has_connections_of_its_own() {
    let sink = Sink::new();
    let dns = Dns::start(zone(&sink));
    let route = |n: usize, terms: &str| format!("domain = \"d{n}.test\"\nvia = \"mx\"\n{terms}");
    let agent = Builder::new()
        .by_dns(&dns)
        .set("outbound.tls", "\"opportunistic\"")
        .table("route", &route(1, "tls = \"never\""))
        .table("route", &route(2, "message_rate = \"1000/s\""))
        .start();
    for n in 0..3 {
        send(&agent, &format!("b@d{n}.test"));
        sink.expect(n + 1, SOON);
    }
    assert_eq!(sink.sessions(), 3);
}

#[test]
fn one_outage_for_all_domains_of_a_site_and_all_mail_when_it_is_over() {
    let sink = Sink::new();
    sink.behave(|sink| sink.greeting = "421 4.3.2 Too busy".into());
    let dns = Dns::start(zone(&sink));
    let agent = Builder::new().by_dns(&dns).start();
    (0..DOMAINS).for_each(|n| send(&agent, &format!("b@d{n}.test")));
    wait_until("all know that the site is closed", SOON, || {
        let stats = agent.ok(&["queue", "stats", "--json"]);
        stats.matches("Too busy").count() >= DOMAINS
    });
    let refused = sink.sessions();
    assert!(refused < DOMAINS, "{refused} sessions refused for {DOMAINS} domains");
    sink.behave(|sink| sink.greeting = "220 back".into());
    sink.expect(DOMAINS, Duration::from_secs(30));
    agent.wait_empty(SOON);
}

#[test]
fn a_rate_holds_for_a_route() {
    let sink = Sink::new();
    let agent = Builder::new().route_with("slow.test", sink.address(), "message_rate = \"5/s\"").start();
    let begun = std::time::Instant::now();
    (0..8).for_each(|n| send(&agent, &format!("b{n}@slow.test")));
    sink.expect(8, Duration::from_secs(20));
    assert!(begun.elapsed() >= Duration::from_millis(1_300), "{:?}", begun.elapsed());
}

#[test]
fn a_rate_of_octets_holds_for_a_route() {
    let sink = Sink::new();
    let agent = Builder::new().route_with("slow.test", sink.address(), "data_rate = \"20KB/s\"").start();
    let mut client = Client::connect(agent.smtp());
    client.ehlo();
    let content = [&b"Subject: rate\r\n\r\n"[..], &b"0123456789\r\n".repeat(400)].concat();
    let begun = std::time::Instant::now();
    for n in 0..8 {
        let reply = client.deliver("a@client.test", &[&format!("b{n}@slow.test")], &content, Way::Data);
        assert_eq!(reply.code, 250, "{}", reply.text());
    }
    sink.expect(8, Duration::from_secs(20));
    // Seven pauses of a quarter of a second, the last of which may be shorter.
    assert!(begun.elapsed() >= Duration::from_millis(1_300), "{:?}", begun.elapsed());
}

#[test]
fn trouble_with_dns_closes_a_domain_and_not_its_hosts() {
    let sink = Sink::new();
    let zone = zone(&sink).servfail("broken.test");
    let dns = Dns::start(zone);
    let agent = Builder::new().by_dns(&dns).start();
    send(&agent, "b@broken.test");
    send(&agent, "b@d0.test");
    sink.expect(1, SOON);
    wait_until("one is left", SOON, || agent.queued() == 1);
    assert!(sink.commands().iter().any(|line| line.contains("d0.test")));
}
