//! The dialogues of tests/dialogue against a whole agent, over TCP and TLS.
//!
//! A dialogue is played when a configuration exists in which the agent should behave as it says.
//! Those that need a clock of their own, or a policy that decides otherwise than ours, are played
//! against the machine alone (`smtp/tests/dialogue.rs`); how many stay out is fixed below.

#[allow(dead_code, reason = "the fake clock and the policies are for the machine alone")]
#[path = "dialogue/script.rs"]
mod script;
mod support;

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use rustix::process::Signal;
use script::{Event, Script, Setup};
use support::agent::{Agent, Builder};
use support::client::Client;
use support::net::SOON;
use support::sink::{Message, Sink};
use support::users;

/// Dialogues at a time.
const PLAYERS: usize = 4;
/// At least so many dialogues are played live.
const LIVE_MIN: usize = 55;
/// Who reads the mail for <Postmaster>.
const POSTMASTER: &str = "postmaster@sink.test";

#[test]
fn every_dialogue_that_can_be_live_holds() {
    let scripts = Script::all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dialogue"));
    let (live, others): (Vec<&Script>, Vec<&Script>) = scripts.iter().partition(|script| obstacle(script).is_none());
    for script in &others {
        let why = obstacle(script).expect("that is why it is among the others");
        support::note(format_args!("not live: {}: {why}", script.path.display()));
    }
    assert!(live.len() >= LIVE_MIN, "only {} of {} dialogues are live", live.len(), scripts.len());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..PLAYERS {
            scope.spawn(|| {
                while let Some(script) = live.get(next.fetch_add(1, Ordering::SeqCst)) {
                    play(script);
                }
            });
        }
    });
}

/// Says why a dialogue cannot be live.
fn obstacle(script: &Script) -> Option<&'static str> {
    let Setup { service, tls, starttls, auth, require_auth, verdicts, limits, .. } = &script.setup;
    let Setup { atrn, etrn, keep, cram, .. } = &script.setup;
    let submission = service.as_deref() == Some("submission");
    if service.as_deref() == Some("lmtp") {
        Some("the agent serves no LMTP")
    } else if *atrn || *etrn || *keep || cram.is_some() {
        Some("the agent offers that to whom its configuration names")
    } else if script
        .steps
        .iter()
        .any(|step| matches!(&step.event, Event::Client(octets) if octets.starts_with(b"ETRN")))
    {
        Some("the agent offers ETRN to this host, and says what waits")
    } else if !verdicts.is_empty() {
        Some("our policy decides otherwise")
    } else if script.steps.iter().any(|step| matches!(step.event, Event::Time(_))) {
        Some("nobody waits so long")
    } else if (*auth || *tls) && !submission {
        Some("port 25 has no AUTH and no implicit TLS")
    } else if submission && !require_auth {
        Some("submission always needs a login")
    } else if limits.iter().any(|limit| setting(limit).is_none()) {
        Some("the limit is no setting or out of its range")
    } else if !starttls && script.steps.iter().any(|step| is_about_starttls(&step.event)) {
        Some("the agent always offers STARTTLS")
    } else {
        None
    }
}

fn is_about_starttls(event: &Event) -> bool {
    match event {
        Event::Client(octets) => octets.starts_with(b"STARTTLS"),
        Event::Keyword(keyword, _) => keyword == "STARTTLS",
        _ => false,
    }
}

/// Returns the configuration key of a limit and its value.
fn setting((name, value): &(String, u64)) -> Option<(&'static str, String)> {
    match name.as_str() {
        "errors" if (1..=1000).contains(value) => Some(("limits.errors", value.to_string())),
        "recipients" if *value >= 100 => Some(("limits.recipients", value.to_string())),
        "message_octets" if *value >= 65_536 => Some(("limits.message_size", format!("\"{value}B\""))),
        _ => None,
    }
}

/// One performance.
struct Player<'a> {
    script: &'a Script,
    agent: Agent,
    client: Client,
    sink: Sink,
    last_reply: String,
    /// Envelope and content of what must have arrived in the end.
    stored: Vec<(String, Option<Vec<u8>>)>,
    closed: bool,
}

fn play(script: &Script) {
    let mut player = Player::new(script);
    script.steps.iter().for_each(|step| player.perform(step.line, &step.event));
    player.finish();
}

impl<'a> Player<'a> {
    fn new(script: &'a Script) -> Player<'a> {
        let setup = &script.setup;
        let sink = Sink::new();
        let hostname = setup.hostname.as_deref().unwrap_or("mx.example.org");
        let mut builder =
            Builder::new().set("hostname", &format!("{hostname:?}")).set("users.file", "\"users\"").submission();
        builder = builder.set("postmaster", &format!("\"{POSTMASTER}\""));
        for limit in &setup.limits {
            let (key, value) = setting(limit).expect("checked as an obstacle");
            builder = builder.set(key, &value);
        }
        let lines = setup.users.iter().map(|(name, password)| users::line(name, password, "*"));
        std::fs::write(builder.path("users"), lines.collect::<String>()).expect("writable");
        let agent = builder.route("*", sink.address()).start();
        let address = match setup.service.as_deref() {
            Some("submission") if setup.tls => agent.submissions(),
            Some("submission") => agent.submission(),
            _ => agent.smtp(),
        };
        let mut client = Client::dial(None, address).expect("the agent listens");
        if setup.tls {
            client.wire().connect_tls().expect("the TLS handshake succeeds");
        }
        Player { script, agent, client, sink, last_reply: String::new(), stored: Vec::new(), closed: false }
    }

    fn at(&self, line: usize, what: &str) -> String {
        format!("{}:{line}: {what}", self.script.path.display())
    }

    fn perform(&mut self, line: usize, event: &Event) {
        match event {
            // A server that has closed already reads no more; what it said is compared behind.
            Event::Client(octets) => drop(self.client.try_send(octets)),
            Event::Server(want) => self.expect_line(line, want),
            Event::Reply(code) => self.expect_reply(line, *code),
            Event::Keyword(keyword, wanted) => {
                let found = self.last_reply.contains(keyword.as_str());
                assert!(found == *wanted, "{}", self.at(line, &format!("{keyword} in {:?}", self.last_reply)));
            }
            Event::Closed => {
                let rest = self.client.wire().rest();
                assert!(
                    rest.is_empty(),
                    "{}",
                    self.at(line, &format!("also said {:?}", rest.escape_ascii().to_string()))
                );
                self.closed = true;
            }
            Event::Handshake => {
                let done = self.client.wire().connect_tls();
                assert!(done.is_ok(), "{}", self.at(line, &format!("{done:?}")));
            }
            Event::Time(_) | Event::Linked(_) | Event::Turned => unreachable!("such dialogues are not live"),
            Event::Drain => {
                self.agent.signal(Signal::TERM);
                // What the client says next comes behind the signal.
                self.agent.wait_logged("draining");
            }
            Event::Eof => self.client.wire().shutdown_write(),
            Event::Stored { envelope, content } => {
                let envelope = envelope.replace("<Postmaster>", &format!("<{POSTMASTER}>"));
                self.stored.push((envelope, content.clone()));
            }
        }
    }

    fn next_line(&mut self, line: usize) -> String {
        match self.client.wire().line() {
            Ok(Some(text)) => String::from_utf8_lossy(&text).into_owned(),
            other => panic!("{}", self.at(line, &format!("the server says nothing: {other:?}"))),
        }
    }

    fn expect_line(&mut self, line: usize, want: &str) {
        let got = self.next_line(line);
        // The agent names the queue id there.
        let want = want.replace("250 2.0.0 queued", "250 2.0.0 ...");
        let good = match want.strip_suffix("...") {
            Some(start) => got.starts_with(start),
            None => got == want,
        };
        assert!(good, "{}", self.at(line, &format!("want {want:?}, got {got:?}")));
    }

    fn expect_reply(&mut self, line: usize, code: u16) {
        self.last_reply.clear();
        loop {
            let got = self.next_line(line);
            assert!(got.starts_with(&code.to_string()), "{}", self.at(line, &format!("want {code}, got {got:?}")));
            self.last_reply += &got;
            self.last_reply.push('\n');
            if got.as_bytes().get(3) != Some(&b'-') {
                break;
            }
        }
    }

    fn finish(mut self) {
        if !self.closed {
            let rest = self.client.wire().buffered();
            assert_eq!(rest, 0, "{}", self.at(0, "the server says more"));
        }
        let drained = self.script.steps.iter().any(|step| matches!(step.event, Event::Drain));
        if drained {
            self.agent.wait_end(SOON);
            self.agent.start();
        }
        self.agent.wait_empty(SOON);
        let mut wanted = std::mem::take(&mut self.stored);
        // Mail arrives in any order: one whose content nobody says is not to take the place of one that is said.
        wanted.sort_by_key(|(_, content)| content.is_none());
        let arrived = merged(&self.sink.messages());
        assert_eq!(arrived.len(), wanted.len(), "{}: {arrived:?}", self.at(0, "messages stored"));
        for (envelope, content) in arrived {
            let found = wanted.iter().position(|(want, octets)| {
                *want == envelope && octets.as_ref().is_none_or(|octets| *octets == content)
            });
            let text = String::from_utf8_lossy(&content).into_owned();
            let found =
                found.unwrap_or_else(|| panic!("{}", self.at(0, &format!("stored {envelope}\n{text}\n{wanted:?}"))));
            wanted.remove(found);
        }
    }
}

/// Returns what arrived, envelope as in a `stored` line and content without our trace field.
fn merged(messages: &[Message]) -> Vec<(String, Vec<u8>)> {
    let envelope = |message: &Message| {
        let recipients: String = message.recipients.iter().map(|path| format!(" <{path}>")).collect();
        format!("<{}>{recipients}", message.reverse_path)
    };
    messages.iter().map(|message| (envelope(message), message.relayed().to_vec())).collect()
}

/// A client that is slow to read does not keep an agent from saying good-bye. It waits for minutes for a client that
/// says nothing.
#[test]
fn garbage_is_answered_and_closed_soon() {
    let agent = Builder::new().start();
    for garbage in
        [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", &[b'A'; 1 << 20]]
    {
        let mut client = Client::dial(None, agent.smtp()).expect("the agent listens");
        let begin = Instant::now();
        // It may close before all is sent.
        drop(client.try_send(garbage));
        client.wire().rest();
        assert!(begin.elapsed() < SOON, "{:?}", &garbage[..8]);
    }
    assert_eq!(agent.queued(), 0);
}
