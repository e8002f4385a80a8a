//! Members that send mail out of the mesh: who does it when those that would do it for less are gone, and who goes on
//! with what a host outside has put off. Agents as processes of their own, with a name server of the test's.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use support::agent::{Agent, Builder};
use support::client::{Client, Way};
use support::dns::{Dns, zone};
use support::mesh::{host, join};
use support::net::{SOON, wait_for, wait_until};
use support::sink::{Message, Sink};

/// A sink that DNS names for world.test.
fn world() -> (Sink, Dns) {
    let sink = Sink::new();
    let dns = Dns::start(zone("world.test", &[(10, "mx.world.test", sink.ip())]));
    (sink, dns)
}

/// A host that sends mail out for this cost.
fn egress(name: &str, cost: u16, dns: &Dns) -> Builder {
    offering(name, &format!("cost = {cost}"), dns)
}

/// A host with this offer to send mail out.
fn offering(name: &str, lines: &str, dns: &Dns) -> Builder {
    host(name).by_dns(dns).table("mesh.egress", lines)
}

fn send(agent: &Agent, from: &str, to: &str) {
    Client::hand_over(agent.smtp(), from, &[to], b"Subject: out\r\n\r\nhello\r\n", Way::Data);
}

/// The hosts of these tests.
const HOSTS: &[&str] = &["a", "b", "c"];

/// Returns the hosts that a message came over, the last one first.
fn over(message: &Message) -> Vec<&'static str> {
    let content = String::from_utf8_lossy(&message.content).into_owned();
    let place = |name: &&'static str| Some((content.find(&format!("by {name}.test"))?, *name));
    let mut found: Vec<_> = HOSTS.iter().filter_map(place).collect();
    found.sort_unstable();
    found.into_iter().map(|(_, name)| name).collect()
}

/// Sends until mail of a host leaves over these, the last one first.
fn wait_over(agent: &Agent, sink: &Sink, wanted: &[&str]) {
    wait_from(agent, sink, "user@client.test", wanted);
}

/// The same with mail of this sender.
fn wait_from(agent: &Agent, sink: &Sink, from: &str, wanted: &[&str]) {
    wait_until(&format!("mail of {from} goes over {wanted:?}"), 6 * SOON, || {
        let sent = sink.count();
        send(agent, from, "user@world.test");
        over(&sink.expect(sent + 1, SOON)[sent]) == wanted
    });
}

/// Returns whether the journal says of mail of a sender that it went another way than by b.
fn is_diverted(agent: &Agent, from: &str) -> bool {
    let told = agent.ok(&["trace", from]);
    let (way, taken) = ("\tdiverted\tuser@world.test\tb (", "\tdelivered\tuser@world.test\t");
    told.find(way).is_some_and(|at| told[at..].contains(")\t4") && told[at..].contains(taken))
}

/// The one in the middle of three would send for less, and everybody knows it: who sends for more waits for it no
/// longer than it takes to find that it is gone.
#[test]
fn who_sends_for_more_does_so_at_once_when_who_sends_for_less_is_gone() {
    let (sink, dns) = world();
    let (a, mut cheap, dear) = (host("a").start(), egress("b", 10, &dns).start(), egress("c", 1000, &dns).start());
    join(&a, &cheap, "b.example");
    join(&a, &dear, "c.example");
    wait_over(&dear, &sink, &["b", "c"]);
    wait_over(&a, &sink, &["b", "a"]);
    let sent = sink.count();
    cheap.kill();
    send(&dear, "user@c.example", "user@world.test");
    assert_eq!(over(&sink.expect(sent + 1, SOON)[sent]), ["c"], "its own mail");
    wait_until("the journal says why", SOON, || is_diverted(&dear, "user@c.example"));
    send(&a, "user@a.example", "user@world.test");
    assert_eq!(over(&sink.expect(sent + 2, SOON)[sent + 1]), ["c", "a"], "that of others");
    wait_until("the journal says why", SOON, || is_diverted(&a, "user@a.example"));
    wait_until("who asks where mail goes is told so", SOON, || {
        // By then it may be tried again.
        send(&dear, "user@c.example", "user@world.test");
        let told = dear.ok(&["explain", "--from", "user@c.example", "user@world.test"]);
        let is_way = told.contains("destination mx:world.test") && told.contains("\n=> relayed to this hop");
        let why = [") cannot be reached at present, other ways come before: 4", "(cannot be reached at present)"];
        is_way && why.iter().all(|why| told.contains(why))
    });
    assert!(!dear.log().contains(" deferred "), "nothing had to wait: {}", dear.log());
    cheap.start();
    wait_over(&dear, &sink, &["b", "c"]);
}

/// A host outside that has put a message off knows who came with it (greylisting).
#[test]
fn who_was_told_to_come_again_is_the_one_that_comes() {
    let (sink, dns) = world();
    let is_over = Arc::new(AtomicBool::new(false));
    let over_yet = is_over.clone();
    sink.behave(|sink| {
        sink.rcpt = Arc::new(move |to, _| match to.contains("grey") && !over_yet.load(Ordering::SeqCst) {
            true => "451 4.7.1 Greylisted, come again".into(),
            false => "250 2.1.5 Ok".into(),
        });
    });
    let (mut cheap, dear) = (egress("b", 10, &dns).start(), egress("c", 100, &dns).start());
    join(&dear, &cheap, "b.example");
    wait_over(&dear, &sink, &["b", "c"]);
    cheap.kill();
    send(&dear, "user@c.example", "grey@world.test");
    wait_until("it is put off", SOON, || dear.log().contains("451 4.7.1 Greylisted"));
    cheap.start();
    // What comes now goes by the other one, and has nothing to wait for.
    wait_over(&dear, &sink, &["b", "c"]);
    wait_until("nothing waits but what was put off", SOON, || dear.queued() == 1);
    is_over.store(true, Ordering::SeqCst);
    dear.wait_empty(2 * SOON);
    let came = sink.messages().into_iter().find(|message| message.recipients == ["grey@world.test"]);
    assert_eq!(over(&came.expect("it has come")), ["c"]);
}

/// What a domain's SPF record says decides where its mail leaves, whatever that costs, and whoever asks is told what is
/// done.
#[test]
fn mail_leaves_where_it_may_be_sent_for_its_sender() {
    let (sink, dns) = world();
    let egress =
        |name: &str, cost: u16, from: &str| offering(name, &format!("cost = {cost}\nfrom = [{from:?}]"), &dns).start();
    let (a, b, c) = (host("a").start(), egress("b", 500, "b.example"), egress("c", 10, "shop.test"));
    join(&a, &b, "b.example");
    join(&a, &c, "c.example");
    for (from, by, cost) in
        [("user@b.example", "b", 510), ("user@news.shop.test", "c", 20), ("user@elsewhere.test", "c", 1020)]
    {
        wait_from(&a, &sink, from, &[by, "a"]);
        // What the agent knows is on disk a moment later.
        let told = wait_for("who asks is told of both", SOON, || {
            let told = a.ok(&["explain", "--from", from, "user@world.test"]);
            Some(told).filter(|told| told.contains("; or "))
        });
        let (first, _) = told.split_once("; or ").expect("there is another way");
        assert!(first.contains(&format!("by the mesh: {by} (")), "{told}");
        assert!(first.contains(&format!("out at {by} (")) && first.contains(&format!("cost {cost}")), "{told}");
        let is_doubtful = first.ends_with("(it does not say that it may send for elsewhere.test)");
        assert_eq!(is_doubtful, cost > 1000, "{told}");
        assert!(!told.contains("see --from"), "{told}");
    }
    let told = a.ok(&["explain", "user@world.test"]);
    assert!(told.contains("out at c (") && told.contains("depends on its sender: see --from"), "{told}");
    let home = a.ok(&["explain", "user@b.example"]);
    assert!(!home.contains("--from"), "its home is its home: {home}");
}
