//! SIGHUP, SIGTERM and the first start: a good file is taken without dropping a session, a bad one
//! is refused and the old one stays.

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use rustix::process::Signal;
use support::agent::{Agent, Builder, POSTROAD, items};
use support::client::{Client, Way};
use support::net::{SOON, own_address, wait_until};
use support::sink::{Behaviour, Phase, Sink};

const CONTENT: &[u8] = b"Subject: reload\r\n\r\nbody\r\n";

fn connect(agent: &Agent) -> Client {
    let mut client = Client::connect(agent.smtp());
    client.ehlo();
    client
}

/// Counts the lines of the log that hold this text.
fn logged(agent: &Agent, text: &str) -> usize {
    agent.log().to_lowercase().lines().filter(|line| line.contains(text)).count()
}

#[test]
fn a_good_file_is_taken_and_no_session_is_dropped() {
    let (old, new) = (Sink::new(), Sink::new());
    let agent = Builder::new().set("limits.recipients", "100").route("*", old.address()).start();
    let mut open = connect(&agent);
    open.expect("MAIL FROM:<a@client.test>", 250);
    agent.edit_config(&old.ip().to_string(), &new.ip().to_string());
    agent.edit_config("mx.test", "renamed.test");
    let before = logged(&agent, "reload");
    agent.signal(Signal::HUP);
    wait_until("the new name is said", SOON, || {
        let mut client = Client::dial(None, agent.smtp()).expect("it listens");
        client.reply().text().contains("renamed.test")
    });
    wait_until("the log says so", SOON, || logged(&agent, "reload") > before);
    open.expect("RCPT TO:<b@away.test>", 250);
    assert_eq!(open.content(CONTENT, Way::Data).code, 250);
    open.quit();
    new.expect(1, SOON);
    assert_eq!(old.count(), 0, "queued mail follows the new route");
}

/// Takes the route that stands last out of the configuration.
fn drop_last_route(agent: &Agent) {
    let text = std::fs::read_to_string(agent.config_path()).expect("readable");
    let route = text.rfind("[[route]]").expect("the route stands last");
    std::fs::write(agent.config_path(), &text[..route]).expect("writable");
    agent.ok(&["reload"]);
}

#[test]
fn queued_mail_leaves_a_route_that_is_gone() {
    let (old, rest) = (Sink::busy(), Sink::new());
    let agent = Builder::new().route("*", rest.address()).route_with("gone.test", old.address(), LASTING).start();
    connect(&agent).deliver("a@client.test", &["b@gone.test"], CONTENT, Way::Data);
    // For an hour.
    agent.wait_deferred(SOON);
    drop_last_route(&agent);
    // It goes on with the pauses of the route that it takes now: they are over.
    rest.expect(1, SOON);
    agent.wait_empty(SOON);
    assert_eq!(old.asked(), 1);
}

#[test]
fn what_was_put_off_is_tried_at_once_where_its_route_leads_elsewhere() {
    let (old, new) = (Sink::busy(), Sink::new());
    let agent = Builder::new().route("*", new.address()).route_with("moved.test", old.address(), LASTING).start();
    connect(&agent).deliver("a@client.test", &["b@moved.test"], CONTENT, Way::Data);
    agent.wait_deferred(SOON);
    agent.edit_config(&old.ip().to_string(), &new.ip().to_string());
    agent.ok(&["reload"]);
    // The pause of an hour was for the host before, and the new one has the same.
    new.expect(1, SOON);
    agent.wait_empty(SOON);
    assert_eq!(old.asked(), 1);
}

#[test]
fn mail_for_a_host_that_was_down_goes_at_once_behind_a_restart_or_a_reload() {
    for is_restart in [true, false] {
        let address = SocketAddr::new(own_address(), 2525);
        let pauses = |builder: Builder| builder.set("queue.retry_first", "\"1h\"").set("queue.retry_max", "\"2h\"");
        let mut agent = pauses(Builder::new().route("*", address)).start();
        connect(&agent).deliver("a@client.test", &["b@away.test"], CONTENT, Way::Data);
        agent.wait_deferred(SOON);
        let away = Sink::start_at(address, Behaviour::default());
        match is_restart {
            true => agent.restart(),
            false => drop(agent.ok(&["reload"])),
        }
        // It waited for the host, which has pauses of its own, not for an hour.
        away.expect(1, SOON);
        agent.wait_empty(SOON);
    }
}

#[test]
fn mail_that_is_being_handed_over_stays_with_the_old_route() {
    let (old, rest) = (Sink::new(), Sink::new());
    old.behave(|sink| sink.slow_at = Some((Phase::Content, Duration::from_secs(3))));
    let agent = Builder::new().route("*", rest.address()).route_with("gone.test", old.address(), LASTING).start();
    connect(&agent).deliver("a@client.test", &["b@gone.test"], CONTENT, Way::Data);
    wait_until("it is being handed over", SOON, || old.asked() == 1);
    drop_last_route(&agent);
    // It fails when the message is gone already.
    agent.cli(&["queue", "retry", "--all"]);
    agent.wait_empty(SOON);
    assert_eq!((old.count(), rest.count()), (1, 0), "the second attempt waits for the first and finds nothing to do");
}

const LASTING: &str = "tls = \"never\"\nretry_first = \"1h\"\nretry_max = \"2h\"";

#[test]
fn each_route_has_its_own_pauses_and_shorter_ones_hold_for_what_waits() {
    let (often, seldom) = (Sink::busy(), Sink::busy());
    let agent = Builder::new()
        .route("often.test", often.address())
        .route_with("seldom.test", seldom.address(), LASTING)
        .start();
    for to in ["b@often.test", "b@seldom.test"] {
        connect(&agent).deliver("a@client.test", &[to], CONTENT, Way::Data);
    }
    wait_until("the one is tried every second", SOON, || often.asked() >= 3 && seldom.asked() > 0);
    assert_eq!(seldom.asked(), 1, "and the other once an hour");
    agent.edit_config("retry_first = \"1h\"", "retry_first = \"1s\"");
    agent.edit_config("retry_max = \"2h\"", "retry_max = \"1s\"");
    for sink in [&often, &seldom] {
        sink.behave(|sink| *sink = Behaviour::default());
    }
    agent.ok(&["reload"]);
    seldom.expect(1, SOON);
    agent.wait_empty(SOON);
}

#[test]
fn a_next_hop_that_is_down_is_probed_as_often_as_its_route_says() {
    let (often, seldom) = (Sink::new(), Sink::new());
    let agent = Builder::new()
        .route("often.test", often.address())
        .route_with("seldom.test", seldom.address(), LASTING)
        .start();
    often.close();
    seldom.close();
    for to in ["b@often.test", "b@seldom.test"] {
        connect(&agent).deliver("a@client.test", &[to], CONTENT, Way::Data);
    }
    let failures = |sink: &Sink| {
        let stats = items(&agent.ok(&["queue", "stats", "--json"]));
        let is_it = |one: &&serde_json::Value| {
            one["destination"].as_str().is_some_and(|name| name.contains(&sink.ip().to_string()))
        };
        stats.iter().find(is_it).and_then(|one| one["failures"].as_u64()).unwrap_or(0)
    };
    wait_until("the one is probed every second", SOON, || failures(&often) >= 3 && failures(&seldom) > 0);
    assert_eq!(failures(&seldom), 1, "and the other once an hour");
}

#[test]
fn a_bad_file_is_refused_and_the_old_one_stays() {
    let sink = Sink::new();
    let agent = Builder::new().route("*", sink.address()).start();
    agent.edit_config("hostname = \"mx.test\"", "hostnam = \"other.test\"");
    agent.signal(Signal::HUP);
    wait_until("the log says why", SOON, || logged(&agent, "hostnam") > 0);
    let output = agent.cli(&["check"]);
    assert_eq!(output.status.code(), Some(78));
    let mut client = Client::dial(None, agent.smtp()).expect("it listens");
    assert!(client.reply().text().contains("mx.test"));
    client.ehlo();
    assert_eq!(client.deliver("a@client.test", &["b@away.test"], CONTENT, Way::Data).code, 250);
    sink.expect(1, SOON);
}

#[test]
fn a_reload_by_command_says_what_came_of_it() {
    let sink = Sink::new();
    let agent = Builder::new().route("*", sink.address()).start();
    agent.edit_config("mx.test", "renamed.test");
    agent.ok(&["reload"]);
    assert_eq!(agent.json(&["status", "--json"])["hostname"], "renamed.test");
    agent.edit_config(":2525", ":2526");
    let output = agent.cli(&["reload"]);
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(text.contains("listen.smtp"), "a change that needs a restart is named: {text}");
}

#[test]
fn a_stop_lets_open_transactions_finish_and_turns_others_away() {
    let sink = Sink::new();
    let mut agent = Builder::new().route("*", sink.address()).set("timeouts.drain", "\"60s\"").start();
    let mut busy = connect(&agent);
    busy.envelope("MAIL FROM:<a@client.test>", &["b@away.test"]);
    busy.expect("DATA", 354);
    busy.send("Subject: x\r\n\r\n");
    let mut idle = connect(&agent);
    agent.signal(Signal::TERM);
    assert_eq!(idle.reply().code, 421, "an idle session is told");
    wait_until("new sessions are refused", SOON, || match Client::dial(None, agent.smtp()) {
        Ok(mut client) => client.try_reply().map_or(true, |reply| reply.code == 421),
        Err(_) => true,
    });
    busy.send("body\r\n.\r\n");
    assert_eq!(busy.reply().code, 250, "an open transaction finishes");
    let status = agent.wait_end(SOON);
    assert!(status.success(), "{status}");
    agent.start();
    sink.expect(1, SOON);
    agent.wait_empty(SOON);
}

#[test]
fn a_session_that_says_nothing_does_not_keep_the_agent() {
    let mut agent = Builder::new().set("timeouts.drain", "\"1s\"").start();
    let mut busy = connect(&agent);
    busy.envelope("MAIL FROM:<a@client.test>", &["b@away.test"]);
    busy.expect("DATA", 354);
    agent.signal(Signal::TERM);
    assert!(agent.wait_end(SOON).success());
}

#[test]
fn a_second_agent_on_the_same_state_is_refused() {
    let agent = Builder::new().start();
    let output = std::process::Command::new(POSTROAD)
        .arg("--config")
        .arg(agent.config_path())
        .arg("run")
        .output()
        .expect("the binary runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && !text.is_empty(), "{text}");
    assert_eq!(agent.queued(), 0, "the first one goes on");
}

#[test]
fn logs_are_json_when_asked_for_and_carry_the_ids() {
    let sink = Sink::new();
    let agent = Builder::new().set("log.format", "\"json\"").route("*", sink.address()).start();
    let id = connect(&agent).deliver("a@client.test", &["b@away.test"], CONTENT, Way::Data).queue_id();
    agent.wait_empty(SOON);
    // Accepted and delivered.
    agent.wait_logged_times(&id, 2);
    let log = agent.log();
    let lines: Vec<serde_json::Value> =
        log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect();
    let of_message = lines.iter().filter(|line| line.to_string().contains(&id)).count();
    assert!(of_message >= 2, "accepted and delivered are told of {id}: {log}");
}

#[test]
fn metrics_are_served_on_their_port() {
    let sink = Sink::new();
    let builder = Builder::new().route("*", sink.address());
    let address = std::net::SocketAddr::new(builder.ip(), 9025);
    let agent = builder.set("metrics.listen", &format!("\"{address}\"")).start();
    connect(&agent).deliver("a@client.test", &["b@away.test"], CONTENT, Way::Data);
    agent.wait_empty(SOON);
    let mut client = Client::dial(None, address).expect("metrics are served");
    client.send(format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"));
    let text = String::from_utf8_lossy(&client.wire().rest()).into_owned();
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    assert!(text.contains("# TYPE postroad_") && text.contains("# EOF"), "{text}");
}
