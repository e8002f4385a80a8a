//! The client session where a connection is reversed (RFC 2645), leads to another member, or is kept open without work.

use std::time::{Duration, Instant};

use postroad_smtp::Input;
use postroad_smtp::client::{Action, Config, Failure, Session, TlsNeed};

/// A client that is ready, and a test that plays the server.
struct Server {
    client: Session,
    input: Input,
    now: Instant,
}

impl Server {
    fn ready() -> Server {
        let now = Instant::now();
        let config = Config { tls: TlsNeed::Never, ..Config::new("client.example") };
        let mut server = Server { client: Session::new(config, false, now), input: Input::new(), now };
        server.says("220 mx\r\n");
        assert_eq!(server.hears(), "EHLO client.example\r\n");
        server.says("250-mx\r\n250-XKEEP\r\n250 ATRN\r\n");
        assert!(matches!(server.poll(), Action::Ready));
        assert!(server.client.offered().turn && server.client.offered().keep);
        server
    }

    fn poll(&mut self) -> Action {
        self.client.poll(&mut self.input, self.now)
    }

    fn says(&mut self, text: &str) {
        assert!(matches!(self.poll(), Action::Read { .. }));
        self.input.extend(text.as_bytes());
    }

    fn hears(&mut self) -> String {
        assert!(matches!(self.poll(), Action::Read { .. }));
        String::from_utf8(std::mem::take(self.client.output())).expect("text")
    }

    fn failed(&mut self) -> Failure {
        match self.poll() {
            Action::Failed(failure) => failure,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_turned_connection_is_handed_over_and_a_refusal_leaves_it_as_it_was() {
    let domains = |names: &[&str]| names.iter().map(|name| name.parse().expect("a domain")).collect::<Vec<_>>();
    let mut server = Server::ready();
    server.client.turn(&domains(&["a.example", "b.example"]), server.now);
    assert_eq!(server.hears(), "ATRN a.example,b.example\r\n");
    server.says("453 4.2.0 no mail\r\n");
    assert!(matches!(server.poll(), Action::NotTurned(reply) if reply.code.get() == 453));
    assert!(matches!(server.poll(), Action::Ready));
    server.client.turn(&[], server.now);
    assert_eq!(server.hears(), "ATRN\r\n");
    server.says("250 now\r\n");
    assert!(matches!(server.poll(), Action::HandOver));
    // Whatever is asked of it now, it says nothing more.
    server.client.quit(server.now);
    server.client.noop(server.now);
    assert!(matches!(server.poll(), Action::HandOver) && server.client.output().is_empty());
}

#[test]
fn who_passes_octets_on_is_handed_over_and_a_refusal_leaves_it_as_it_was() {
    let mut server = Server::ready();
    server.client.through("aaaa2222", server.now);
    assert_eq!(server.hears(), "XVIA aaaa2222\r\n");
    server.says("451 4.4.1 not now\r\n");
    assert!(matches!(server.poll(), Action::NotTurned(reply) if reply.code.get() == 451));
    assert!(matches!(server.poll(), Action::Ready));
    server.client.through("aaaa2222", server.now);
    server.hears();
    server.says("220 now\r\n");
    assert!(matches!(server.poll(), Action::HandOver));
}

#[test]
fn a_turn_takes_its_time_and_nothing_stands_behind_its_reply() {
    let mut server = Server::ready();
    server.client.turn(&[], server.now);
    let Action::Read { until } = server.poll() else { panic!("a reply is due") };
    assert!(until - server.now >= Duration::from_secs(600), "RFC 2645 §5.2.1");
    server.says("250 now\r\nEHLO early\r\n");
    assert_eq!(server.failed(), Failure::TurnedEarly);
}

#[test]
fn a_session_without_work_says_noop_and_is_ready_again() {
    let mut server = Server::ready();
    for reply in ["250 ok\r\n", "250 2.0.0 ok\r\n"] {
        server.client.noop(server.now);
        assert_eq!(server.hears(), "NOOP\r\n");
        server.says(reply);
        assert!(matches!(server.poll(), Action::Ready));
    }
    server.client.noop(server.now);
    assert_eq!(server.hears(), "NOOP\r\n");
    server.says("500 what\r\n");
    assert!(matches!(server.failed(), Failure::Unexpected(_)));
}
