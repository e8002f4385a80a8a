//! Look-ups for next hops, over real queries to a name server on loopback: what each kind of
//! answer means for mail, and what hostile DNS cannot do (RFC 5321 §5.1, RFC 7505, RFC 9520).

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use postroad::config::Config;
use postroad::dns_zone::{NameServer, Zone};
use postroad::route::mx::{ADDRESSES_MAX, EXCHANGES_MAX};
use postroad::route::{Found, Hop, NextHop, Recorder, Resolver, Route, Router, Step};
use postroad_smtp::Reply;

/// A router and a resolver that asks one name server.
struct Host {
    router: Router,
    resolver: Resolver,
    server: NameServer,
}

impl Host {
    async fn new(zone: Zone) -> Host {
        Host::with("", zone).await
    }

    async fn with(settings: &str, zone: Zone) -> Host {
        let server = NameServer::start(loopback(), zone).await.expect("loopback has free ports");
        let (router, resolver) = ask(settings, server.addr());
        Host { router, resolver, server }
    }

    /// One that asks nothing again because the answer takes its time on a busy machine.
    async fn patient(zone: Zone) -> Host {
        let server = NameServer::start(loopback(), zone).await.expect("loopback has free ports");
        let (router, resolver) = ask_within("20s", "", server.addr());
        Host { router, resolver, server }
    }

    fn next_hop(&self, path: &str) -> NextHop {
        match self.router.route(&path.parse().expect(path)) {
            Route::Smtp(next_hop) => next_hop,
            other => panic!("{path} is routed to {other:?}"),
        }
    }

    async fn found(&self, path: &str) -> Found {
        self.resolver.resolve(&self.next_hop(path)).await.unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    async fn hops(&self, path: &str) -> Vec<Hop> {
        self.found(path).await.hops
    }

    /// The addresses, in the order of attempts.
    async fn addresses(&self, path: &str) -> Vec<String> {
        self.hops(path).await.iter().map(|hop| hop.addr.to_string()).collect()
    }

    /// The reply that says why there is no hop.
    async fn refusal(&self, path: &str) -> String {
        let error = self.resolver.resolve(&self.next_hop(path)).await.expect_err(path);
        Reply::from(&error).to_string()
    }
}

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().expect("valid")
}

fn ask(settings: &str, server: SocketAddr) -> (Router, Resolver) {
    ask_within("1s", settings, server)
}

fn ask_within(limit: &str, settings: &str, server: SocketAddr) -> (Router, Resolver) {
    let dns = format!("[dns]\nservers = [\"{server}\"]\ntimeout = {limit:?}\n");
    let text = format!("hostname = \"me.test\"\n{settings}\n{dns}");
    let config = Config::from_str(&text, "test", Path::new("/etc")).unwrap_or_else(|faults| panic!("{faults}"));
    (Router::new(&config), Resolver::new(&config).expect("servers are configured"))
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect(text)
}

#[tokio::test]
async fn exchanges_are_tried_by_preference_and_families_in_turn() {
    let zone = Zone::new()
        .mx("d.test", 20, "second.test")
        .mx("d.test", 10, "first.test")
        .address("first.test", ip("192.0.2.1"))
        .address("first.test", ip("2001:db8::1"))
        .address("second.test", ip("192.0.2.2"));
    let host = Host::new(zone).await;
    let hops = host.hops("u@d.test").await;
    let shown: Vec<String> = hops.iter().map(|hop| format!("{} {}", hop.name, hop.addr)).collect();
    assert_eq!(shown, ["first.test [2001:db8::1]:25", "first.test 192.0.2.1:25", "second.test 192.0.2.2:25"]);
    assert!(hops.iter().all(|hop| !hop.implicit_tls && hop.credentials.is_none()));
}

#[tokio::test]
async fn domains_with_the_same_exchanges_are_one_site() {
    let zone = Zone::new()
        .mx("a.test", 10, "one.test")
        .mx("a.test", 10, "two.test")
        .mx("a.test", 20, "three.test")
        .mx("b.test", 1, "two.test")
        .mx("b.test", 1, "one.test")
        .mx("b.test", 2, "three.test")
        .mx("order.test", 10, "three.test")
        .mx("order.test", 20, "one.test")
        .mx("order.test", 20, "two.test")
        .mx("verified.test", 10, "one.test")
        .mx("verified.test", 10, "two.test")
        .mx("verified.test", 20, "three.test")
        .mx("slow.test", 10, "one.test")
        .mx("slow.test", 10, "two.test")
        .mx("slow.test", 20, "three.test")
        .address("one.test", ip("192.0.2.1"))
        .address("two.test", ip("192.0.2.2"))
        .address("three.test", ip("192.0.2.3"));
    let settings = "[[route]]\ndomain = \"verified.test\"\nvia = \"mx\"\ntls = \"verify\"\n\
                    [[route]]\ndomain = \"slow.test\"\nvia = \"mx\"\nmessage_rate = \"5/s\"\n";
    let host = Host::with(settings, zone).await;
    for (path, site) in [
        ("u@a.test", "hosts:one.test,two.test;three.test"),
        ("u@b.test", "hosts:one.test,two.test;three.test"),
        ("u@order.test", "hosts:three.test;one.test,two.test"),
        ("u@verified.test", "hosts:one.test,two.test;three.test/verify"),
        ("u@slow.test", "hosts:one.test,two.test;three.test/route2"),
        ("u@one.test", "hosts:one.test"),
        ("u@[192.0.2.9]", "host:192.0.2.9:25"),
    ] {
        assert_eq!(&*host.found(path).await.site, site, "{path}");
    }
}

#[tokio::test]
async fn answers_are_cached() {
    let zone = Zone::new().mx("d.test", 10, "a.test").address("a.test", ip("192.0.2.1"));
    let host = Host::new(zone).await;
    host.hops("u@d.test").await;
    let asked = host.server.queries();
    for _ in 0..10 {
        host.hops("u@d.test").await;
    }
    assert_eq!(host.server.queries(), asked);
}

#[tokio::test]
async fn what_dns_knows_for_certain_is_permanent() {
    let zone = Zone::new()
        .null_mx("null.test")
        .mx("unreal.test", 10, "nowhere.test")
        .alias("dead-alias.test", "nowhere.test")
        .mx("zero.test", 10, "zero-host.test")
        .address("zero-host.test", ip("0.0.0.0"))
        .mx("text.test", 10, "192.0.2.1")
        .address("below.empty.test", ip("192.0.2.1"));
    let host = Host::new(zone).await;
    for (domain, reply) in [
        ("null.test", "556 5.1.10"),
        ("nowhere.test", "550 5.1.2"),
        ("dead-alias.test", "550 5.1.2"),
        ("unreal.test", "550 5.4.4"),
        ("empty.test", "550 5.4.4"),
        ("zero.test", "550 5.4.4"),
        ("text.test", "550 5.4.4"),
    ] {
        let refusal = host.refusal(&format!("u@{domain}")).await;
        assert!(refusal.starts_with(reply), "{domain}: {refusal}");
    }
}

#[tokio::test]
async fn a_domain_without_mx_is_its_own_exchange() {
    let zone = Zone::new().address("plain.test", ip("192.0.2.7"));
    assert_eq!(Host::new(zone).await.addresses("u@plain.test").await, ["192.0.2.7:25"]);
}

#[tokio::test]
async fn aliases_are_followed_for_domains_and_for_exchanges() {
    let zone = Zone::new()
        .alias("one.test", "two.test")
        .alias("two.test", "three.test")
        .mx("three.test", 10, "mx-alias.test")
        .alias("mx-alias.test", "real.test")
        .address("real.test", ip("192.0.2.8"))
        .alias("www.test", "real.test");
    let host = Host::new(zone).await;
    assert_eq!(host.addresses("u@one.test").await, ["192.0.2.8:25"]);
    assert_eq!(host.addresses("u@www.test").await, ["192.0.2.8:25"]);
}

#[tokio::test]
async fn aliases_without_end_are_transient_and_bounded() {
    let mut zone = Zone::new().alias("self.test", "self.test").alias("a.test", "b.test").alias("b.test", "a.test");
    for n in 0..150 {
        zone = zone.alias(&format!("c{n}.test"), &format!("c{}.test", n + 1));
    }
    let host = Host::new(zone.address("c150.test", ip("192.0.2.9"))).await;
    for domain in ["self.test", "a.test", "c0.test"] {
        let refusal = host.refusal(&format!("u@{domain}")).await;
        assert!(refusal.starts_with("451 4.4.3"), "{domain}: {refusal}");
    }
    assert!(host.server.queries() < 120, "{} queries", host.server.queries());
}

#[tokio::test]
async fn three_hundred_exchanges_come_over_tcp_and_are_bounded() {
    let mut zone = Zone::new();
    for n in 0..300u16 {
        let name = format!("exchange-with-a-long-name-{n}.test");
        zone = zone.mx("bomb.test", n / 100, &name).address(&name, ip(&format!("192.0.2.{}", n % 250)));
    }
    let host = Host::patient(zone).await;
    let addresses = host.addresses("u@bomb.test").await;
    assert!(!addresses.is_empty() && addresses.len() <= ADDRESSES_MAX);
    assert_eq!(host.server.queries_over_tcp(), 1);
    // Two queries for MX, the second over TCP, and A and AAAA of the exchanges chosen.
    let asked = host.server.queries();
    assert!((3..=2 + 2 * EXCHANGES_MAX as u64).contains(&asked), "{asked} queries");
}

#[tokio::test]
async fn failures_are_transient_and_not_repeated_at_once() {
    let zone = Zone::new()
        .servfail("sick.test")
        .refused("lame.test")
        .mx("half.test", 10, "sick-host.test")
        .servfail("sick-host.test");
    let host = Host::new(zone).await;
    for domain in ["sick.test", "lame.test", "half.test"] {
        let path = format!("u@{domain}");
        let refusal = host.refusal(&path).await;
        assert!(refusal.starts_with("451 4.4.3"), "{domain}: {refusal}");
        let asked = host.server.queries();
        assert_eq!(host.refusal(&path).await, refusal);
        assert_eq!(host.server.queries(), asked, "{domain} is asked again");
    }
    let asked = host.server.queries();
    host.resolver.forget_failures();
    host.refusal("u@sick.test").await;
    assert!(host.server.queries() > asked);
}

#[tokio::test]
async fn the_other_exchanges_are_used_while_one_cannot_be_looked_up() {
    let zone = Zone::new()
        .mx("d.test", 10, "sick-host.test")
        .servfail("sick-host.test")
        .mx("d.test", 20, "well.test")
        .address("well.test", ip("192.0.2.3"));
    assert_eq!(Host::new(zone).await.addresses("u@d.test").await, ["192.0.2.3:25"]);
}

#[tokio::test]
async fn silence_ends_at_the_deadline() {
    let zone = Zone::new().silent("silent.test").mx("d.test", 10, "quiet.test").silent("quiet.test");
    let host = Host::new(zone).await;
    let start = Instant::now();
    for domain in ["silent.test", "d.test"] {
        let refusal = host.refusal(&format!("u@{domain}")).await;
        assert!(refusal.starts_with("451 4.4.3"), "{domain}: {refusal}");
    }
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_name_server_that_is_gone_is_transient() {
    let host = Host::new(Zone::new().address("d.test", ip("192.0.2.1"))).await;
    let Host { router, resolver, server } = host;
    let addr = server.addr();
    drop(server);
    let gone = std::net::UdpSocket::bind(addr).is_ok();
    let Route::Smtp(next_hop) = router.route(&"u@d.test".parse().expect("valid")) else { panic!("not by MX") };
    let error = resolver.resolve(&next_hop).await.expect_err("nobody answers");
    assert!(Reply::from(&error).to_string().starts_with("451 4.4.3"), "{error} (port free: {gone})");
}

#[tokio::test]
async fn mail_is_never_sent_to_this_host_or_behind_it() {
    let settings = "[listen]\nsmtp = [\"192.0.2.50:25\"]";
    let zone = Zone::new()
        .mx("backup.test", 10, "primary.test")
        .mx("backup.test", 20, "alias-of-me.test")
        .mx("backup.test", 30, "worse.test")
        .address("primary.test", ip("192.0.2.1"))
        .address("alias-of-me.test", ip("192.0.2.50"))
        .address("worse.test", ip("192.0.2.2"))
        .mx("named.test", 10, "me.test")
        .mx("named.test", 20, "worse.test")
        .address("mine.test", ip("192.0.2.50"));
    let host = Host::with(settings, zone).await;
    assert_eq!(host.addresses("u@backup.test").await, ["192.0.2.1:25"]);
    for domain in ["named.test", "mine.test", "me.test"] {
        let refusal = host.refusal(&format!("u@{domain}")).await;
        let want = if domain == "me.test" { "550 5.1.2" } else { "554 5.4.6" };
        assert!(refusal.starts_with(want), "{domain}: {refusal}");
    }
}

#[tokio::test]
async fn a_strangers_mx_does_not_reach_services_on_loopback() {
    let zone = || {
        Zone::new()
            .mx("evil.test", 10, "inside.test")
            .address("inside.test", ip("127.0.0.9"))
            .address("inside.test", ip("::ffff:127.0.0.1"))
    };
    let refusal = Host::new(zone()).await.refusal("u@evil.test").await;
    assert!(refusal.starts_with("550 5.4.4"), "{refusal}");
    let refusal = Host::new(zone()).await.refusal("u@localhost").await;
    assert!(refusal.starts_with("550 5.4.4"), "{refusal}");
    let settings = "[listen]\nsmtp = [\"127.0.0.2:2525\"]\n[outbound]\nport = 2525\nallow_loopback = true\n\
                    address_families = [\"ipv4\"]";
    assert_eq!(Host::with(settings, zone()).await.addresses("u@evil.test").await, ["127.0.0.9:2525"]);
}

const SMARTHOST: &str = "[listen]\nsmtp = [\"192.0.2.50:587\"]\n[[route]]\ndomain = \"*\"\nvia = \"isp.test:587\"\n\
                         user = \"alice\"\npassword_file = \"p\"";

#[tokio::test]
async fn a_smarthost_is_looked_up_without_mx() {
    let zone = Zone::new().mx("isp.test", 10, "other.test").address("isp.test", ip("127.0.0.9"));
    let hops = Host::with(SMARTHOST, zone).await.hops("u@anywhere.test").await;
    let shown: Vec<String> = hops.iter().map(|hop| format!("{} {} {:?}", hop.name, hop.addr, hop.tls)).collect();
    assert_eq!(shown, ["isp.test 127.0.0.9:587 Verify"]);
    assert_eq!(hops[0].credentials.as_ref().map(|login| login.user.as_str()), Some("alice"));
}

#[tokio::test]
async fn whatever_dns_says_of_a_smarthost_mail_waits() {
    for (zone, why) in [
        (Zone::new(), "DNS knows no address"),
        (Zone::new().servfail("isp.test"), "looking it up failed"),
        (Zone::new().address("isp.test", ip("192.0.2.50")), "it is this host itself"),
        (Zone::new().address("isp.test", ip("0.0.0.0")), "no address that mail can be sent to"),
    ] {
        let refusal = Host::with(SMARTHOST, zone).await.refusal("u@anywhere.test").await;
        assert!(refusal.starts_with("451 4.4.4") && refusal.contains(why), "{refusal}");
    }
}

#[tokio::test]
async fn an_address_needs_no_name_server() {
    let settings = "[[route]]\ndomain = \"corp.test\"\nvia = \"[127.0.0.9]:465\"\ntls = \"required\"";
    let host = Host::with(settings, Zone::new()).await;
    let hops = host.hops("u@corp.test").await;
    assert_eq!(
        (&*hops[0].name, hops[0].addr.to_string(), hops[0].implicit_tls),
        ("[127.0.0.9]", "127.0.0.9:465".into(), true)
    );
    assert_eq!(host.addresses("u@[192.0.2.1]").await, ["192.0.2.1:25"]);
    assert_eq!(host.server.queries(), 0);
}

#[tokio::test]
async fn servers_with_different_views_live_in_one_process() {
    let inside = Host::new(Zone::new().address("d.test", ip("10.0.0.1"))).await;
    let outside = Host::new(Zone::new().address("d.test", ip("192.0.2.1"))).await;
    assert_eq!(inside.addresses("u@d.test").await, ["10.0.0.1:25"]);
    assert_eq!(outside.addresses("u@d.test").await, ["192.0.2.1:25"]);
}

#[tokio::test]
async fn the_recorder_tells_the_whole_way() {
    let zone = Zone::new()
        .alias("d.test", "real.test")
        .mx("real.test", 10, "first.test")
        .mx("real.test", 20, "me.test")
        .mx("real.test", 30, "worse.test")
        .address("first.test", ip("192.0.2.1"))
        .address("first.test", ip("127.0.0.1"));
    let settings = "[[route]]\ndomain = \"d.test\"\nvia = \"mx\"\ntls = \"required\"";
    let host = Host::with(settings, zone).await;
    let mut recorder = Recorder::on();
    let route = host.router.route_recorded(&"u@d.test".parse().expect("valid"), &mut recorder);
    let Route::Smtp(next_hop) = route else { panic!("not by MX") };
    host.resolver.resolve_recorded(&next_hop, &mut recorder).await.expect("one hop is left");
    let steps: Vec<String> = recorder.into_steps().iter().map(Step::to_string).collect();
    assert_eq!(
        steps,
        [
            "route \"d.test\" matches: via mx (TLS required) (configuration line 3)",
            "destination mx:d.test/required",
            "d.test is an alias of real.test",
            "d.test MX 10 first.test., 20 me.test., 30 worse.test.",
            "me.test dropped: it is this host",
            "worse.test dropped: no better than this host, mail would come back",
            "first.test has 192.0.2.1, 127.0.0.1",
            "127.0.0.1 dropped: a loopback address out of DNS (see outbound.allow_loopback)",
            "hop first.test 192.0.2.1:25, TLS required",
        ]
    );
}
