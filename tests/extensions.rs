//! What a sender asks of the way its mail takes: MT-PRIORITY (RFC 6710). From MAIL through the queue to
//! hosts that offer it and to hosts that do not.

mod support;

use std::net::{IpAddr, Ipv4Addr};

use support::agent::{Agent, Builder};
use support::client::{Client, Way};
use support::net::SOON;
use support::sink::{Behaviour, Message, Sink};

const CONTENT: &[u8] = b"From: <a@client.test>\r\nSubject: extensions\r\n\r\nbody\r\n";

/// Where strangers come from: no relay network holds it.
const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 200, 0, 1));

/// A sink that offers all that is asked for here.
fn knowing() -> Sink {
    Sink::start(Behaviour { mt_priority: true, ..Behaviour::default() })
}

/// Sends a message and returns its queue id.
fn send(client: &mut Client, parameters: &str, to: &str) -> String {
    client.envelope(&format!("MAIL FROM:<a@client.test>{parameters}"), &[to]);
    let reply = client.content(CONTENT, Way::Bdat(1000));
    assert_eq!(reply.code, 250, "{}", reply.text());
    reply.queue_id()
}

fn connect(agent: &Agent) -> Client {
    let mut client = Client::connect(agent.smtp());
    client.ehlo();
    client
}

/// Returns the value of a parameter that came with MAIL.
fn parameter<'a>(message: &'a Message, keyword: &str) -> Option<&'a str> {
    message.mail_parameters.split(' ').find_map(|word| word.strip_prefix(keyword)?.strip_prefix('='))
}

fn trace_of(message: &Message) -> String {
    let field = &message.content[..message.content.len() - message.relayed().len()];
    String::from_utf8_lossy(field).replace("\r\n", "")
}

#[test]
fn a_priority_travels_with_the_message_where_it_is_understood() {
    let (knowing, plain) = (knowing(), Sink::new());
    let builder = Builder::new().route("knows.test", knowing.address()).route("plain.test", plain.address());
    let agent = builder.start();
    let mut client = connect(&agent);
    for number in ["6", "-2", "0"] {
        let asked = format!(" MT-PRIORITY={number}");
        send(&mut client, &asked, "b@knows.test");
        let message = knowing.expect(1, SOON).remove(0);
        assert_eq!(parameter(&message, "MT-PRIORITY"), Some(number));
        assert!(trace_of(&message).contains(&format!(" PRIORITY {number};")), "{}", trace_of(&message));
        knowing.forget();
        send(&mut client, &asked, "b@plain.test");
        assert_eq!(parameter(&plain.expect(1, SOON)[0], "MT-PRIORITY"), None);
        plain.forget();
    }
    send(&mut client, "", "b@knows.test");
    let message = knowing.expect(1, SOON).remove(0);
    assert!(parameter(&message, "MT-PRIORITY").is_none() && !trace_of(&message).contains("PRIORITY"));
    assert_eq!((knowing.complaints(), plain.complaints()), (vec![], vec![]));
}

#[test]
fn a_stranger_may_stand_back_and_not_go_first() {
    let store = Sink::start(Behaviour { lmtp: true, mt_priority: true, ..Behaviour::default() });
    let lmtp = format!("domain = \"local.test\"\nlmtp = \"{}\"\nrecipients = \"any\"", store.address());
    let agent = Builder::new().set("relay.networks", "[\"127.0.0.1/32\"]").table("local", &lmtp).start();
    let mut client = Client::connect_from(STRANGER, agent.smtp());
    assert!(client.ehlo().offers("MT-PRIORITY"));
    let reply = client.expect("MAIL FROM:<a@client.test> MT-PRIORITY=9", 250);
    assert!(reply.text().contains("2.3.6 0 is the priority"), "{}", reply.text());
    client.expect("RCPT TO:<b@local.test>", 250);
    assert_eq!(client.content(CONTENT, Way::Data).code, 250);
    let message = store.expect(1, SOON).remove(0);
    assert_eq!(parameter(&message, "MT-PRIORITY"), Some("0"));
    assert!(trace_of(&message).contains(" PRIORITY 0;"), "{}", trace_of(&message));
    store.forget();
    send(&mut client, " MT-PRIORITY=-9", "b@local.test");
    assert_eq!(parameter(&store.expect(1, SOON)[0], "MT-PRIORITY"), Some("-9"));
}

#[test]
fn the_priority_chooses_the_lane() {
    let agent = Builder::new().set("queue.hold", "true").start();
    let mut client = connect(&agent);
    for (parameter, lane) in [
        ("", "normal"),
        (" MT-PRIORITY=-1", "bulk"),
        (" MT-PRIORITY=0", "normal"),
        (" MT-PRIORITY=3", "normal"),
        (" MT-PRIORITY=4", "urgent"),
    ] {
        let id = send(&mut client, parameter, "b@away.test");
        let why = agent.ok(&["queue", "why", "--json", &id]);
        assert!(why.contains(&format!("\"lane\":\"{lane}\"")), "{parameter}: {why}");
    }
    let id = send(&mut client, " MT-PRIORITY=4", "b@away.test");
    assert!(agent.ok(&["queue", "show", &id]).contains("priority   4"));
}
