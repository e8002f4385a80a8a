//! What DNS says to members of a mesh: whose a domain is, and where a member is found that nobody reaches. Agents as
//! processes of their own, with a name server of the test's.

mod support;

use std::net::TcpStream;

use postroad::dns_zone::Zone;
use serde_json::Value;
use support::agent::Agent;
use support::dns::Dns;
use support::mesh::{host, join_with, send, status};
use support::net::{SOON, own_address, wait_until};
use support::{ahead, skip};

/// Returns what a member is known as by an agent.
fn member(agent: &Agent, label: &str) -> Value {
    let status = status(agent);
    let members = status["members"].as_array().expect("a list");
    members.iter().find(|member| member["label"] == label).cloned().unwrap_or_default()
}

/// Returns which way mail for an address goes, also where it goes nowhere.
fn explained(agent: &Agent, address: &str) -> String {
    String::from_utf8(agent.cli(&["explain", address]).stdout).expect("UTF-8")
}

fn id(agent: &Agent) -> String {
    status(agent)["node"].as_str().expect("a text").to_owned()
}

fn has(value: &Value, text: &str) -> bool {
    value.as_array().is_some_and(|list| list.iter().any(|item| item == text))
}

/// Returns what DNS said last to an agent of a domain that a member claims, and whether that is proven.
fn proof(agent: &Agent, label: &str, domain: &str) -> (String, bool) {
    let status = status(agent);
    let proofs = status["proofs"].as_array().expect("a list");
    let found = proofs.iter().find(|proof| proof["label"] == label && proof["domain"] == domain);
    found.map_or_else(Default::default, |proof| {
        (proof["dns"].as_str().expect("a text").to_owned(), proof["is_proven"] == true)
    })
}

fn mails(agent: &Agent) -> usize {
    std::fs::read_dir(agent.path("mail/user/new")).expect("a Maildir").count()
}

#[test]
fn a_domain_that_dns_proves_is_routed_to_until_the_record_is_gone() {
    let dns = Dns::start(Zone::new());
    let mut a = host("a").by_dns(&dns).start();
    let b = host("b").by_dns(&dns).start();
    let c = host("c").by_dns(&dns).set("mesh.serves", "[\"b.example\"]").start();
    join_with(&a, &b, &[]);
    join_with(&a, &c, &[]);
    for label in ["b", "c"] {
        wait_until("DNS was asked", SOON, || proof(&a, label, "b.example") == ("denied".to_owned(), false));
    }
    let record = format!("_smtp-mesh.b.example. IN TXT \"v=postroad1; id={}\"", id(&b));
    let said = explained(&a, "user@b.example");
    assert!(said.contains(&record), "{said}");
    assert!(a.ok(&["mesh", "dns"]).contains("a.example"));
    let published = b.ok(&["mesh", "dns"]);
    let text = published.lines().find(|line| !line.starts_with(';')).and_then(|line| line.split('\t').nth(3));
    let text = text.expect("a record").trim_matches('"');

    // Of the two only the one that DNS names has it.
    dns.set(Zone::new().text("_smtp-mesh.b.example", text));
    a.ok(&["reload"]);
    wait_until("it is proven", SOON, || has(&member(&a, "b")["serves"], "b.example"));
    assert!(has(&member(&a, "c")["claims"], "b.example"), "{}", member(&a, "c"));
    assert_eq!(proof(&a, "c", "b.example"), ("found".to_owned(), false));
    wait_until("mail goes there", SOON, || {
        let log = a.log();
        log.rsplit("DNS proves whose").next().is_some_and(|behind| behind.contains("mail is routed anew"))
    });
    assert!(explained(&a, "user@b.example").contains("to the home b ("));
    send(&a, "user@b.example");
    wait_until("it is in the mailbox", SOON, || mails(&b) == 1);
    assert_eq!(mails(&c), 0);

    // A name server that is gone takes nothing back, and neither does a restart.
    dns.set(Zone::new().silent("_smtp-mesh.b.example"));
    a.restart();
    a.ok(&["reload"]);
    wait_until("nobody answers", SOON, || proof(&a, "b", "b.example") == ("unclear".to_owned(), true));
    send(&a, "user@b.example");
    wait_until("it is in the mailbox", SOON, || mails(&b) == 2);

    // A record that is gone is believed an hour later.
    dns.set(Zone::new());
    a.ok(&["reload"]);
    wait_until("DNS denies it", SOON, || proof(&a, "b", "b.example") == ("denied".to_owned(), true));
    let Some(later) = ahead("+3h") else { return skip("libfaketime is not installed") };
    a.wrap(later);
    a.restart();
    wait_until("it is no more", SOON, || proof(&a, "b", "b.example") == ("denied".to_owned(), false));
    assert!(has(&member(&a, "b")["claims"], "b.example"));
    wait_until("mail goes elsewhere", SOON, || !explained(&a, "user@b.example").contains("to the home b ("));
}

#[test]
fn srv_records_lead_to_a_member_that_moved() {
    let dns = Dns::start(Zone::new());
    // Nobody can dial it, so that it has to find the other by itself.
    let mut a = host("a").by_dns(&dns).set("mesh.reach", "\"dials-out\"").set("mesh.domain", "\"mesh.test\"").start();
    let mut b = host("b").start();
    join_with(&b, &a, &["--serves", "a.example"]);
    wait_until("they are linked", SOON, || member(&a, "b")["link"] == "dialled");
    assert_eq!(dns.queries(), 0, "what the directory says is enough");
    wait_until("it is on disk", SOON, || explained(&a, "user@b.example").contains("to the home b ("));

    a.stop();
    b.stop();
    let (old, new, dead) = (b.smtp().ip().to_string(), own_address(), own_address());
    b.edit_config(&format!("{old}:2525"), &format!("{new}:2525"));
    b.spawn();
    wait_until("it is there again", 3 * SOON, || TcpStream::connect((new, 2525)).is_ok());
    let target = format!("{}.mesh.test", id(&b));
    let zone = Zone::new()
        .service("_smtp-mesh._tcp.mesh.test", 0, 2525, &target)
        .service("_smtp-mesh._tcp.mesh.test", 0, 2525, "mx.mesh.test")
        .address(&target, dead)
        .address(&target, new);
    dns.set(zone);
    let asked = dns.queries();
    a.start();
    wait_until("it is found", 3 * SOON, || member(&a, "b")["link"] == "dialled");
    wait_until("it says where it is", SOON, || has(&member(&a, "b")["addresses"], &format!("{new}:2525")));
    let candidates = a.json(&["mesh", "candidates", "--json"]);
    let find = |address: String| {
        let list = candidates["candidates"].as_array().expect("a list").iter();
        list.filter(|one| one["address"] == address.as_str()).cloned().collect::<Vec<_>>()
    };
    let false_one = find(format!("{dead}:2525"));
    assert!(false_one.len() == 1 && false_one[0]["source"] == "srv", "{candidates}");
    assert!(false_one[0]["failures"] == 1 && false_one[0]["wait_ms"].as_u64().is_some_and(|ms| ms > 0), "{candidates}");
    assert!(find("mx.mesh.test:2525".to_owned())[0]["node"].is_null(), "{candidates}");
    assert_eq!(dns.queries() - asked, 3, "SRV, A, AAAA");
    // Mail follows.
    wait_until("mail goes there", SOON, || explained(&a, "user@b.example").contains(&new.to_string()));
    send(&a, "user@b.example");
    wait_until("it is in the mailbox", SOON, || mails(&b) == 1);
    assert!(b.ok(&["mesh", "dns"]).lines().all(|line| !line.contains("SRV")), "it knows of no name of the mesh");
    let published = a.ok(&["mesh", "dns"]);
    let wanted = format!("{}.mesh.test.\tIN\tA\t{}", id(&a), a.smtp().ip());
    assert!(published.contains("IN\tSRV\t0 0 2525 ") && published.contains(&wanted), "{published}");
}
