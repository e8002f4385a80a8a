//! Hosts become a mesh and learn of one another: agents as processes of their own, with the commands
//! that a person would type.

mod support;

use std::io::Write;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use postroad::tls::NodeTls;
use postroad_mesh::{Invitation, SecretKey};
use serde_json::Value;
use support::agent::{Agent, Builder};
use support::client::Client;
use support::mesh::{key_of, session, status};
use support::net::{SOON, own_address, wait_until};
use support::wire::Wire;
use support::{ahead, skip};

/// How long joining may take a person who waits for it; the test's machine is busy.
const JOIN_LIMIT: Duration = Duration::from_secs(5);
/// How long sessions of a member may go on that is one no more.
const REVOKED_LIMIT: Duration = Duration::from_secs(10);

/// A host that members reach at its own address, with a domain of its own.
fn host(name: &str) -> Builder {
    let builder = Builder::new();
    let (ip, mail) = (builder.ip(), builder.path("mail"));
    let lines = format!("domain = \"{name}.example\"\nmaildir = \"{}/{{user}}\"", mail.display());
    builder
        .set("mesh.label", &format!("{name:?}"))
        .set("mesh.addresses", &format!("[\"{ip}:2525\"]"))
        .table("local", &lines)
}

fn invite(agent: &Agent, words: &[&str]) -> String {
    agent.ok(&[&["mesh", "invite"], words].concat()).trim().to_owned()
}

/// Returns the members that an agent knows, by label, with what they serve.
fn members(agent: &Agent) -> Vec<(String, String)> {
    let status = status(agent);
    let members = status["members"].as_array().expect("a list").iter();
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let serves =
        |member: &Value| member["serves"].as_array().expect("a list").iter().map(text).collect::<Vec<_>>().join(" ");
    let mut members: Vec<_> = members.map(|member| (text(&member["label"]), serves(member))).collect();
    members.sort();
    members
}

fn links(agent: &Agent) -> usize {
    let status = status(agent);
    let members = status["members"].as_array().expect("a list");
    members.iter().filter(|member| ["dialled", "accepted"].contains(&member["link"].as_str().expect("a text"))).count()
}

fn wait_members(agent: &Agent, wanted: &[(&str, &str)]) {
    let mut wanted: Vec<(String, String)> =
        wanted.iter().map(|(label, serves)| ((*label).to_owned(), (*serves).to_owned())).collect();
    wanted.sort();
    wait_until(&format!("the members are {wanted:?}"), SOON, || members(agent) == wanted);
}

#[test]
fn two_commands_make_two_hosts_a_mesh() {
    let (a, b) = (host("a").start(), host("b").start());
    let token = invite(&a, &["--serves", "b.example"]);
    let begun = Instant::now();
    let said = b.ok(&["mesh", "join", &token]);
    assert!(begun.elapsed() < JOIN_LIMIT, "{:?}", begun.elapsed());
    assert!(said.contains("is a member of the mesh a, with a"), "{said}");
    for agent in [&a, &b] {
        wait_members(agent, &[("a", "a.example"), ("b", "b.example")]);
        wait_until("they are linked", SOON, || links(agent) == 1);
    }
    // The invitation was for one.
    let c = host("c").start();
    let refused = c.cli(&["mesh", "join", &token]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("no open invitation fits"), "{said}");
    assert_eq!(members(&a).len(), 2);
}

#[test]
fn a_domain_that_nobody_granted_is_named_with_what_to_do() {
    let (a, b) = (host("a").start(), host("b").start());
    let said = b.ok(&["mesh", "join", &invite(&a, &[])]);
    assert!(said.contains("claimed without a grant, so not used: b.example by b"), "{said}");
    let named = |agent: &Agent| agent.ok(&["mesh", "status"]).contains("so not used: b.example by b");
    wait_until("the others are told as well", SOON, || named(&a));
    wait_members(&a, &[("a", "a.example"), ("b", "")]);
    let node = status(&b)["node"].as_str().expect("an id")[..8].to_owned();
    let remedy = format!("postroad mesh grant {node} --serves b.example");
    assert!(a.ok(&["mesh", "status"]).contains(&remedy));
    let words: Vec<&str> = remedy.split(' ').skip(1).collect();
    assert!(!b.cli(&words).status.success(), "nobody grants itself what it was not granted");
    a.ok(&words);
    for agent in [&a, &b] {
        wait_members(agent, &[("a", "a.example"), ("b", "b.example")]);
        wait_until("nothing is claimed in vain", SOON, || !named(agent));
    }
}

#[test]
fn the_map_shows_the_ways_that_mail_goes() {
    // The ends cannot be dialled, so that all goes through the one in the middle.
    let end = |name| host(name).set("mesh.reach", "\"dials-out\"");
    let (a, b, c) = (end("a").start(), host("b").start(), end("c").set("mesh.egress", "true").start());
    for (agent, domain) in [(&a, "a.example"), (&c, "c.example")] {
        agent.ok(&["mesh", "join", &invite(&b, &["--serves", domain])]);
    }
    let map = || a.ok(&["mesh", "map"]);
    let lines = |kind: &str| {
        let map = map();
        let lines = map.lines().filter(|line| line.starts_with(kind)).map(str::to_owned);
        lines.collect::<Vec<_>>()
    };
    wait_until("the whole mesh is known", SOON, || lines("link\t").len() == 2 && map().contains("to all at 10"));
    let links = lines("link\t");
    assert!(
        links[0] == "link\ta\tb\t10\t10\topen\tused" && links[1].starts_with("link\tb\tc\t10\t10\tstated"),
        "{links:?}"
    );
    let nodes = lines("node\t");
    assert!(nodes[2].contains("\tdials-out\t20\tb>c\tc.example\tto all at 10\t"), "{nodes:?}");
    let map = a.json(&["mesh", "map", "--json"]);
    assert_eq!(map["nodes"].as_array().map(Vec::len), Some(3), "{map}");
    let file = a.path("mesh.svg");
    a.ok(&["mesh", "map", "--svg", file.to_str().expect("UTF-8")]);
    let drawn = std::fs::read_to_string(file).expect("it is written");
    assert!(drawn.starts_with("<svg ") && drawn.contains("serves c.example"), "{drawn}");
    let alone = host("d").start();
    assert_eq!(alone.cli(&["mesh", "map"]).status.code(), Some(1));
}

#[test]
fn three_hosts_learn_of_one_another_through_one() {
    let (a, b, c) = (host("a").start(), host("b").start(), host("c").start());
    for (agent, domain) in [(&b, "b.example"), (&c, "c.example")] {
        agent.ok(&["mesh", "join", &invite(&a, &["--serves", domain])]);
    }
    for agent in [&a, &b, &c] {
        wait_members(agent, &[("a", "a.example"), ("b", "b.example"), ("c", "c.example")]);
        wait_until("everybody has a link with both others", SOON, || links(agent) == 2);
    }
}

#[test]
fn a_restart_keeps_the_membership_and_finds_the_others() {
    let (mut a, mut b) = (host("a").start(), host("b").start());
    b.ok(&["mesh", "join", &invite(&a, &["--serves", "b.example"])]);
    wait_members(&a, &[("a", "a.example"), ("b", "b.example")]);
    let node = status(&b)["node"].clone();
    b.restart();
    assert_eq!(status(&b)["node"], node);
    wait_members(&b, &[("a", "a.example"), ("b", "b.example")]);
    wait_until("they are linked again", SOON, || links(&a) == 1 && links(&b) == 1);
    // What a statement says is on disk before anybody hears it: killed, it is known as well.
    let token = invite(&a, &["--uses", "2"]);
    a.kill();
    a.start();
    wait_members(&a, &[("a", "a.example"), ("b", "b.example")]);
    let c = host("c").start();
    c.ok(&["mesh", "join", &token]);
}

/// What was used up is so on disk before whoever used it hears of it.
#[test]
fn an_invitation_that_was_used_is_worth_nothing_when_the_inviter_was_killed() {
    let (mut a, mut b, c) = (host("a").start(), host("b").start(), host("c").start());
    let token = invite(&a, &[]);
    b.ok(&["mesh", "join", &token]);
    a.kill();
    a.start();
    let refused = c.cli(&["mesh", "join", &token]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("no open invitation fits"), "{said}");
    assert_eq!(members(&a).len(), 2);
    // As is what it states, with nobody there who would tell it again.
    b.kill();
    a.ok(&["mesh", "grant", "b", "--caps", "trace"]);
    a.kill();
    a.start();
    let status = status(&a);
    let mut all = status["members"].as_array().expect("a list").iter();
    assert!(all.any(|member| member["label"] == "b" && member["caps"] == "relay,trace"), "{status}");
}

#[test]
fn an_invitation_ends_when_its_time_is_over() {
    let (a, b) = (host("a").start(), host("b").start());
    let open = || status(&a)["open_invitations"].as_u64().expect("a number");
    let (short, long) = (invite(&a, &["--ttl", "2s"]), invite(&a, &["--ttl", "1h"]));
    wait_until("the first one has ended", SOON, || open() == 1);
    let refused = b.cli(&["mesh", "join", &short]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no open invitation fits"), "{refused:?}");
    b.ok(&["mesh", "join", &long]);
}

/// Nobody dials it: what it does not know itself it does not hear.
#[test]
fn a_host_that_is_killed_as_soon_as_it_has_joined_is_a_member() {
    let (a, mut b) = (host("a").start(), host("b").set("mesh.reach", "\"dials-out\"").start());
    b.ok(&["mesh", "join", &invite(&a, &["--serves", "b.example"])]);
    b.kill();
    b.start();
    wait_members(&b, &[("a", "a.example"), ("b", "b.example")]);
    wait_until("they are linked again", SOON, || links(&a) == 1 && links(&b) == 1);
}

/// Where port 25 is blocked: TLS from the first octet on a port of its own, and no other address.
#[test]
fn a_port_with_tls_at_once_is_enough() {
    let builder = host("a");
    let ip = builder.ip();
    let a = builder
        .set("mesh.listen", &format!("[\"{ip}:4465\"]"))
        .set("mesh.addresses", &format!("[\"{ip}:4465/tls\"]"))
        .start();
    let b = host("b").start();
    b.ok(&["mesh", "join", &invite(&a, &["--serves", "b.example"])]);
    wait_members(&b, &[("a", "a.example"), ("b", "b.example")]);
    // Whoever does not ask for the node is served as by any host.
    let mut client = Client::connect_tls((ip, 4465).into());
    client.ehlo();
    client.expect("XLINK 1", 500);
}

#[test]
fn what_is_said_otherwise_is_heard_after_a_reload() {
    let (a, b) = (host("a").start(), host("b").start());
    b.ok(&["mesh", "join", &invite(&a, &["--serves", "b.example"])]);
    wait_members(&a, &[("a", "a.example"), ("b", "b.example")]);
    let text = std::fs::read_to_string(b.config_path()).expect("readable");
    let text = text.replace("label = \"b\"", "label = \"bee\"\nserves = [\"b.example\", \"lists.b.example\"]");
    std::fs::write(b.config_path(), text).expect("writable");
    b.ok(&["reload"]);
    wait_members(&a, &[("a", "a.example"), ("bee", "b.example lists.b.example")]);
}

#[test]
fn a_host_is_admitted_by_its_card() {
    let (a, b) = (host("a").start(), host("b").start());
    a.ok(&["mesh", "init", "--label", "ours"]);
    let card = b.ok(&["mesh", "card"]);
    let token = a.ok(&["mesh", "admit", card.trim(), "--label", "b", "--serves", "b.example"]);
    let said = b.ok(&["mesh", "join", token.trim()]);
    assert!(said.contains("the mesh ours"), "{said}");
    wait_members(&a, &[("a", "a.example"), ("b", "b.example")]);
    // What leads to the mesh lets nobody else in.
    let c = host("c").start();
    assert!(!c.cli(&["mesh", "join", token.trim()]).status.success());
}

/// The first address takes the connection and never says anything.
#[test]
fn an_address_that_leads_nowhere_keeps_nobody_from_joining() {
    let (a, b) = (host("a").start(), host("b").start());
    let silent = TcpListener::bind((own_address(), 0)).expect("a port is free");
    let good: Invitation = invite(&a, &["--serves", "b.example"]).parse().expect("an invitation");
    let first: Box<str> = silent.local_addr().expect("it is bound").to_string().into();
    let addresses = std::iter::once(first).chain(good.addresses.clone()).collect();
    b.ok(&["mesh", "join", &Invitation { addresses, ..good }.to_string()]);
    wait_members(&a, &[("a", "a.example"), ("b", "b.example")]);
}

#[test]
fn faults_name_the_remedy() {
    let (a, b) = (host("a").start(), host("b").start());
    let fails = |agent: &Agent, words: &[&str], what: &str| {
        let output = agent.cli(words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(what) && said.contains("help:"), "{words:?}: {said}");
    };
    fails(&a, &["mesh", "join", "nonsense"], "an invitation begins with mesh1:");
    let token = invite(&a, &[]);
    fails(&b, &["mesh", "join", &token[..token.len() - 3]], "cut short or mistyped");
    fails(&a, &["mesh", "invite", "--caps", "root"], "is none of relay");
    fails(&a, &["mesh", "invite", "--serves", "no domain"], "is no domain");
    fails(&a, &["mesh", "init"], "a member of a mesh already");
    fails(&a, &["mesh", "join", &token], "a member of a mesh already");
    for words in [&["mesh", "refuse", "a"], &["mesh", "contain", "a"], &["mesh", "revoke", "a"]] {
        fails(&a, words, "a is this host itself");
    }
    fails(&a, &["mesh", "map", "--svg", "/nowhere/mesh.svg"], "/nowhere/mesh.svg: ");
    let at = |addresses: &[&str]| {
        let good: Invitation = token.parse().expect("an invitation");
        Invitation { addresses: addresses.iter().map(|address| (*address).into()).collect(), ..good }.to_string()
    };
    // Nobody listens, DNS knows no such name, it is a program of another kind, it is another node.
    let (other, node) = (TcpListener::bind((own_address(), 0)).expect("a port is free"), host("n").start());
    let (strange, another) = (other.local_addr().expect("it is bound").to_string(), node.smtp().to_string());
    std::thread::spawn(move || {
        other.incoming().flatten().for_each(|mut stream| drop(stream.write_all(b"SSH-2.0-OpenSSH_10.0\r\n")));
    });
    invite(&node, &[]);
    fails(&b, &["mesh", "join", &at(&["127.0.0.1:9", "no.invalid:25"])], "127.0.0.1:9: Connection refused");
    fails(&b, &["mesh", "join", &at(&["127.0.0.1:9", "no.invalid:25"])], "no.invalid:25: ");
    fails(&b, &["mesh", "join", &at(&["no.invalid:25"])], "let the inviter set [mesh] addresses");
    fails(&b, &["mesh", "join", &at(&[&strange])], "a program answers there that takes no members");
    fails(&b, &["mesh", "join", &at(&[&another])], "whoever answers is not the node that invited");
    b.ok(&["mesh", "join", &token]);
    fails(&b, &["mesh", "invite"], "may not admit others");
    let c = host("c").build();
    let output = c.cli(&["mesh", "status"]);
    assert_eq!(output.status.code(), Some(75), "{output:?}");
}

/// With STARTTLS and any certificate, as every ordinary host comes.
#[test]
fn an_ordinary_host_sees_nothing_of_the_mesh() {
    let a = host("a").start();
    invite(&a, &[]);
    let mut client = Client::connect(a.smtp());
    let plain = client.ehlo();
    assert!(!plain.lines.iter().any(|line| line.starts_with('X')), "{plain:?}");
    client.expect("XLINK 1", 500);
    let secure = client.starttls();
    assert!(!secure.lines.iter().any(|line| line.starts_with('X')), "{secure:?}");
    client.expect("XLINK 1", 500);
    client.expect("MAIL FROM:<x@y.example> XMESH=1", 555);
}

fn three() -> [Agent; 3] {
    let [a, b, c] = ["a", "b", "c"].map(|name| host(name).start());
    for (agent, domain) in [(&b, "b.example"), (&c, "c.example")] {
        agent.ok(&["mesh", "join", &invite(&a, &["--serves", domain])]);
    }
    for agent in [&a, &b, &c] {
        wait_members(agent, &[("a", "a.example"), ("b", "b.example"), ("c", "c.example")]);
        wait_until("everybody has a link with both others", SOON, || links(agent) == 2);
    }
    [a, b, c]
}

#[test]
fn who_is_revoked_loses_its_sessions_at_once() {
    let [a, b, mut c] = three();
    let mut session = session(&key_of(&c), &a);
    session.ehlo();
    let said = a.ok(&["mesh", "revoke", "c", "--reason", "stolen"]);
    assert!(said.contains("it takes 2 independent voices"), "{said}");
    assert_eq!(members(&a).len(), 3, "one voice is not enough");
    session.expect("NOOP", 250);
    let said = b.ok(&["mesh", "revoke", "c", "--reason", "stolen"]);
    assert!(said.contains("is a member no more"), "{said}");
    let begun = Instant::now();
    assert_eq!(session.wire().rest(), b"", "the session ends without a word");
    for agent in [&a, &b] {
        wait_members(agent, &[("a", "a.example"), ("b", "b.example")]);
        wait_until("the links with it are closed", SOON, || links(agent) == 1);
        assert_eq!(status(agent)["gone"].as_array().expect("a list").len(), 1);
    }
    // By itself the session would wait for minutes for what is said next.
    assert!(begun.elapsed() < REVOKED_LIMIT, "{:?}", begun.elapsed());
    // It does not come back with that key, invited or not, restarted or not.
    c.restart();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!((links(&a), members(&a).len()), (1, 2));
    c.cli(&["mesh", "join", &invite(&a, &[])]);
    assert_eq!(members(&a).len(), 2);
    // Once it has forgotten that key, it may.
    c.ok(&["mesh", "leave"]);
    c.ok(&["mesh", "join", &invite(&a, &["--serves", "c.example"])]);
    wait_members(&b, &[("a", "a.example"), ("b", "b.example"), ("c", "c.example")]);
}

#[test]
fn a_host_refuses_whom_it_wants_and_leaves_when_it_wants() {
    let [a, mut b, c] = three();
    let mut session = session(&key_of(&c), &b);
    session.ehlo();
    b.ok(&["mesh", "refuse", "c"]);
    assert_eq!(session.wire().rest(), b"");
    wait_until("only b has no link with it", SOON, || (links(&a), links(&b), links(&c)) == (2, 1, 1));
    let home = |agent: &Agent| {
        String::from_utf8_lossy(&agent.cli(&["explain", "user@c.example"]).stdout).contains("to the home c (")
    };
    assert!(home(&a) && !home(&b), "what is for it does not go to it from there, by whatever way");
    b.restart();
    wait_until("it is so still", SOON, || (links(&a), links(&b), links(&c)) == (2, 1, 1));
    assert!(!home(&b));
    b.ok(&["mesh", "refuse", "c", "--lift"]);
    c.ok(&["mesh", "leave"]);
    assert_eq!(status(&c)["node"], Value::Null);
    for agent in [&a, &b] {
        wait_members(agent, &[("a", "a.example"), ("b", "b.example")]);
    }
    assert_eq!(status(&a)["gone"][0]["why"], "left");
}

/// Neither of the two can be dialled: their question and its answer pass through the third.
#[test]
fn hosts_that_only_dial_out_are_asked_through_a_neighbour() {
    let mut a = host("a").start();
    let [b, mut c] = ["b", "c"].map(|name| host(name).set("mesh.reach", "\"dials-out\"").start());
    for agent in [&b, &c] {
        agent.ok(&["mesh", "join", &invite(&a, &[])]);
    }
    wait_until("both know each other", SOON, || members(&b).len() == 3 && members(&c).len() == 3);
    wait_until("both have said how they are reached", SOON, || {
        let status = status(&b);
        let members = status["members"].as_array().expect("a list");
        members.iter().filter(|member| member["reach"] == "dials-out").count() == 2
    });
    wait_until("each has its link", SOON, || (links(&b), links(&c), links(&a)) == (1, 1, 2));
    for (agent, other) in [(&b, "c"), (&c, "b"), (&b, "a"), (&a, "c")] {
        let said = agent.ok(&["mesh", "ping", other]);
        assert!(said.contains("answers"), "{said}");
    }
    let failed = b.cli(&["mesh", "ping", "nobody"]);
    assert!(String::from_utf8_lossy(&failed.stderr).contains("no member of the mesh is called"), "{failed:?}");
    // Who is gone is not dialled, or was in vain: each has a remedy of its own.
    c.kill();
    a.kill();
    for (other, remedy) in [("c", "nobody dials it: see that"), ("a", "`postroad mesh candidates` shows")] {
        let failed = b.cli(&["mesh", "ping", other]);
        let said = String::from_utf8_lossy(&failed.stderr).into_owned();
        assert!(said.contains(&format!("{other} does not answer: ")) && said.contains(remedy), "{said}");
    }
}

/// Stands between two hosts and ends TLS on the way, with a key of its own.
fn stand_between() -> std::net::SocketAddr {
    let listener = TcpListener::bind((own_address(), 2525)).expect("the address is ours");
    let address = listener.local_addr().expect("bound");
    let tls = NodeTls::new(&SecretKey::from_seed(&[66; 32])).expect("a key");
    std::thread::spawn(move || {
        for tcp in listener.incoming().flatten() {
            let mut wire = Wire::from(tcp);
            wire.set_timeout(SOON);
            let mut answer = || {
                wire.send(b"220 mx.test ESMTP\r\n")?;
                wire.line()?;
                wire.send(b"250 mx.test\r\n")?;
                wire.line()?;
                wire.send(b"220 go\r\n")?;
                wire.accept_tls(tls.server().clone())?;
                wire.line()
            };
            // Who notices hangs up.
            assert!(!matches!(answer(), Ok(Some(_))), "somebody speaks with whoever stands between");
        }
    });
    address
}

#[test]
fn nobody_joins_who_was_not_invited() {
    let (a, b) = (host("a").start(), host("b").start());
    let token: Invitation = invite(&a, &["--uses", "9"]).parse().expect("an invitation");
    let fails = |invitation: &Invitation, what: &str| {
        let output = b.cli(&["mesh", "join", &invitation.to_string()]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && said.contains(what), "{invitation:?}: {said}");
    };
    for guess in 0..20 {
        let mut secret = token.secret;
        secret[guess % 16] ^= 1 << (guess % 8);
        fails(&Invitation { secret, ..token.clone() }, "no open invitation fits");
    }
    let stranger = SecretKey::from_seed(&[9; 32]).public().id();
    fails(&Invitation { inviter: stranger, ..token.clone() }, "is not the node that invited");
    let between = stand_between().to_string();
    fails(&Invitation { addresses: vec![between.into()], ..token.clone() }, "is not the node that invited");
    assert_eq!(members(&a).len(), 1);
    b.ok(&["mesh", "join", &token.to_string()]);
}

/// Nothing between members has a date: certificates would have run out.
#[test]
fn a_clock_eleven_years_ahead_joins_and_stays() {
    let Some(ahead) = ahead("+11y") else { return skip("libfaketime is not installed") };
    let a = host("a").start();
    let mut b = host("b").build();
    b.wrap(ahead);
    b.start();
    b.ok(&["mesh", "join", &invite(&a, &["--serves", "b.example"])]);
    b.restart();
    for agent in [&a, &b] {
        wait_members(agent, &[("a", "a.example"), ("b", "b.example")]);
        wait_until("they are linked", SOON, || links(agent) == 1);
    }
}
