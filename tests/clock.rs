//! A host whose clock was wrong, or that was away for weeks: mail that waits is tried and not returned for
//! that, and what comes later is retried, told of and given up in its time.

mod support;

use std::time::Duration;

use support::agent::{Agent, Builder};
use support::client::{Client, Way};
use support::net::{SOON, wait_until};
use support::sink::{Behaviour, Phase, Sink};
use support::{ahead, skip};

const CONTENT: &[u8] = b"From: <a@client.test>\r\nSubject: clock\r\n\r\nbody\r\n";

fn send(agent: &Agent, to: &str) {
    Client::hand_over(agent.smtp(), "a@client.test", &[to], CONTENT, Way::Data);
}

/// An agent whose notifications go to the first sink and everything else to the second, tried once an hour.
fn between(home: &Sink, away: &Sink) -> Builder {
    Builder::new()
        .route("client.test", home.address())
        .route_with("*", away.address(), "tls = \"never\"\nretry_first = \"1h\"\nretry_max = \"1h\"")
        .set("queue.delay_notice", "\"1s\"")
}

#[test]
fn a_clock_that_was_a_year_ahead_hides_the_age_of_no_mail() {
    let Some(year) = ahead("+1y") else { return skip("libfaketime is not installed") };
    let (home, away) = (Sink::new(), Sink::busy());
    let mut agent = between(&home, &away).build();
    agent.wrap(year);
    agent.start();
    send(&agent, "then@away.test");
    home.expect(1, SOON);
    assert!(agent.stop().success());
    home.forget();
    agent.run_bare();
    agent.start();
    // Its id stands behind the one of a year ahead.
    send(&agent, "now@away.test");
    let notice = home.expect(1, SOON).remove(0);
    let notice = String::from_utf8_lossy(&notice.content).into_owned();
    assert!(notice.contains("Action: delayed") && notice.contains("now@away.test"), "{notice}");
}

#[test]
fn a_clock_that_was_a_year_ahead_puts_nothing_off_for_a_year() {
    let Some(year) = ahead("+1y") else { return skip("libfaketime is not installed") };
    let (home, away) = (Sink::new(), Sink::busy());
    let mut agent = between(&home, &away).build();
    agent.edit_config("retry_first = \"1h\"", "retry_first = \"1s\"");
    agent.edit_config("retry_max = \"1h\"", "retry_max = \"1s\"");
    agent.wrap(year);
    agent.start();
    send(&agent, "then@away.test");
    wait_until("it was put off", SOON, || away.asked() >= 1);
    assert!(agent.stop().success());
    agent.run_bare();
    away.behave(|sink| *sink = Behaviour::default());
    agent.start();
    away.expect(1, SOON);
    agent.wait_empty(SOON);
}

#[test]
fn mail_is_tried_before_it_is_given_up_by_a_host_that_was_away_for_weeks() {
    const MESSAGES: usize = 4;
    let Some(weeks) = ahead("+30d") else { return skip("libfaketime is not installed") };
    let (home, away) = (Sink::new(), Sink::busy());
    let mut agent = between(&home, &away).set("outbound.connections_per_destination", "1").start();
    (0..MESSAGES).for_each(|n| send(&agent, &format!("b{n}@away.test")));
    wait_until("all were put off", SOON, || away.asked() >= MESSAGES);
    home.expect(MESSAGES, SOON);
    assert!(agent.stop().success());
    home.forget();
    // One after the other, so that the last waits for its turn when the age of all is looked at.
    let slow = Some((Phase::Content, Duration::from_secs(2)));
    away.behave(|sink| *sink = Behaviour { slow_at: slow, ..Behaviour::default() });
    agent.wrap(weeks);
    agent.start();
    away.expect(MESSAGES, 2 * SOON);
    agent.wait_empty(SOON);
    assert_eq!(home.count(), 0, "nobody hears that mail is returned, or late");
}
