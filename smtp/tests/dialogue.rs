//! Plays every dialogue below tests/dialogue against the server session: as written, octet by
//! octet, in odd pieces, and with the client's half sent at once. The outcome must be the same.

#[path = "../../tests/dialogue/script.rs"]
mod script;
mod shell;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use postroad_smtp::server::{AuthOffer, Config, Question, Service, TlsFacts, Verdict};
use postroad_smtp::{Code, ReleaseLimit, Reply, Status};
use script::{Event, Refusal, Script, Setup};
use shell::{Policy, Shell};

fn dialogues() -> Vec<Script> {
    Script::all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/dialogue"))
}

#[test]
fn every_dialogue_holds_as_written() {
    let scripts = dialogues();
    assert!(scripts.len() > 40, "the dialogues are found: {}", scripts.len());
    scripts.iter().for_each(|script| play(script, usize::MAX));
}

#[test]
fn every_dialogue_holds_octet_by_octet() {
    dialogues().iter().filter(|script| !script.setup.whole).for_each(|script| play(script, 1));
}

#[test]
fn every_dialogue_holds_in_odd_pieces() {
    for script in dialogues().iter().filter(|script| !script.setup.whole) {
        [2, 3, 5, 7, 64, 1000].into_iter().for_each(|size| play(script, size));
    }
}

#[test]
fn every_dialogue_holds_when_the_client_does_not_wait() {
    for script in dialogues().iter().filter(|script| script.can_pipeline()) {
        for size in [usize::MAX, 1, 11] {
            let mut player = Player::new(script);
            let all: Vec<u8> = script.steps.iter().flat_map(|step| client_octets(&step.event)).copied().collect();
            player.send(&all, size);
            for step in &script.steps {
                if !matches!(step.event, Event::Client(_)) {
                    player.perform(step.line, &step.event, size);
                }
            }
            player.finish();
        }
    }
}

fn client_octets(event: &Event) -> &[u8] {
    match event {
        Event::Client(octets) => octets,
        _ => &[],
    }
}

fn play(script: &Script, size: usize) {
    let mut player = Player::new(script);
    script.steps.iter().for_each(|step| player.perform(step.line, &step.event, size));
    player.finish();
}

/// One performance of one dialogue.
struct Player<'a> {
    script: &'a Script,
    shell: Shell,
    /// How much of the shell's transcript was compared.
    heard: usize,
    last_reply: String,
    stored: usize,
    closed: bool,
    turned: bool,
}

impl<'a> Player<'a> {
    fn new(script: &'a Script) -> Player<'a> {
        let tls = script.setup.tls.then(tls_facts);
        let mut shell = Shell::new(config(&script.setup), tls, Box::new(ScriptPolicy::new(&script.setup)));
        if script.setup.release {
            shell.offer_release(RELEASE_LIMIT);
        }
        if script.setup.link {
            shell.offer_link();
        }
        if script.setup.etrn {
            shell.offer_start();
        }
        if let Some(seed) = &script.setup.cram {
            shell.offer_cram(seed);
        }
        if script.setup.mesh {
            shell.offer_mesh();
        }
        if script.setup.mesh && script.setup.atrn {
            shell.offer_turn();
        }
        Player { script, shell, heard: 0, last_reply: String::new(), stored: 0, closed: false, turned: false }
    }

    fn send(&mut self, octets: &[u8], size: usize) {
        octets.chunks(size).for_each(|piece| self.shell.receive(piece));
    }

    fn perform(&mut self, line: usize, event: &Event, size: usize) {
        match event {
            Event::Client(octets) => self.send(octets, size),
            Event::Server(want) => self.expect_line(line, want),
            Event::Reply(code) => self.expect_reply(line, *code),
            Event::Keyword(keyword, wanted) => {
                let found = self.last_reply.contains(keyword.as_str());
                assert!(found == *wanted, "{}", self.at(line, &format!("{keyword} in {:?}", self.last_reply)));
            }
            Event::Closed => {
                assert!(self.shell.is_closed(), "{}", self.at(line, "the connection is open"));
                self.closed = true;
            }
            Event::Turned => {
                assert!(self.shell.is_turned(), "{}", self.at(line, "the connection is not handed over"));
                self.turned = true;
            }
            Event::Handshake => self.shell.handshake(tls_facts()),
            Event::Linked(frames) => {
                let got = self.shell.frames().map(<[u8]>::to_vec);
                assert_eq!(got.as_ref(), Some(frames), "{}", self.at(line, "what stands behind XLINK"));
            }
            Event::Time(time) => self.shell.pass(*time),
            Event::Drain => self.shell.drain(),
            Event::Eof => self.shell.eof(),
            Event::Stored { envelope, content } => self.expect_stored(line, envelope, content.as_deref()),
        }
    }

    fn at(&self, line: usize, what: &str) -> String {
        format!("{}:{line}: {what}\n{}", self.script.path.display(), String::from_utf8_lossy(self.shell.transcript()))
    }

    fn next_line(&mut self, line: usize) -> String {
        let rest = &self.shell.transcript()[self.heard..];
        let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") else {
            panic!("{}", self.at(line, "the server says nothing"));
        };
        let text = String::from_utf8_lossy(&rest[..end]).into_owned();
        self.heard += end + 2;
        text
    }

    fn expect_line(&mut self, line: usize, want: &str) {
        let got = self.next_line(line);
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

    fn expect_stored(&mut self, line: usize, envelope: &str, content: Option<&[u8]>) {
        let Some(message) = self.shell.stored().get(self.stored) else {
            panic!("{}", self.at(line, "nothing was stored"));
        };
        assert_eq!(message.envelope_text(), envelope, "{}", self.at(line, "the envelope"));
        if let Some(content) = content {
            let (got, want) = (String::from_utf8_lossy(&message.content), String::from_utf8_lossy(content));
            assert_eq!(got, want, "{}", self.at(line, "the content"));
        }
        self.stored += 1;
    }

    fn finish(self) {
        let rest = String::from_utf8_lossy(&self.shell.transcript()[self.heard..]).into_owned();
        assert!(rest.is_empty(), "{}", self.at(0, &format!("the server also says {rest:?}")));
        assert_eq!(self.shell.is_closed(), self.closed, "{}", self.at(0, "closed at the end"));
        assert_eq!(self.shell.is_turned(), self.turned, "{}", self.at(0, "handed over at the end"));
        assert_eq!(self.shell.stored().len(), self.stored, "{}", self.at(0, "messages stored"));
    }
}

fn tls_facts() -> TlsFacts {
    TlsFacts { version: "TLSv1.3".into(), cipher: "TLS13_AES_256_GCM_SHA384".into() }
}

/// HMAC-MD5 of `<1.seed@mx.example.org>` keyed with `tanstaaftanstaaf`.
const CRAM_DIGEST: [u8; 16] =
    [0x18, 0x42, 0xae, 0x11, 0x48, 0x58, 0x9b, 0x88, 0x0e, 0xeb, 0x48, 0xd5, 0x89, 0x88, 0x25, 0xad];

/// As an agent offers it by default, on 15 January 2027.
const RELEASE_LIMIT: ReleaseLimit = ReleaseLimit { seconds_max: 2_592_000, unix_ms_max: 1_802_592_000_000 };

fn config(setup: &Setup) -> Arc<Config> {
    let hostname = setup.hostname.as_deref().unwrap_or("mx.example.org");
    let mut config = Config::relay(hostname.parse().expect("a domain"));
    config.service = match setup.service.as_deref() {
        None | Some("relay") => Service::Relay,
        Some("submission") => Service::Submission,
        Some("lmtp") => Service::Lmtp,
        Some(other) => panic!("service {other}"),
    };
    config.offer_starttls = setup.starttls;
    config.auth = if setup.auth { AuthOffer::OverTls } else { AuthOffer::Never };
    config.require_auth = setup.require_auth;
    config.turn = setup.atrn && !setup.mesh;
    config.keep = setup.keep;
    config.timeouts.message = Duration::from_secs(30 * 60);
    for (name, value) in &setup.limits {
        let number = u32::try_from(*value).unwrap_or(u32::MAX);
        let limits = &mut config.limits;
        match name.as_str() {
            "message_octets" => limits.message_octets_max = *value,
            "recipients" => limits.recipients_max = number as usize,
            "errors" => limits.errors_max = number,
            "refusals" => limits.refusals_max = number,
            "idle_commands" => limits.idle_commands_max = number,
            "auth_failures" => limits.auth_failures_max = number,
            other => panic!("limit {other}"),
        }
    }
    Arc::new(config)
}

/// Decides as the script's `verdict` and `user` lines say.
struct ScriptPolicy {
    users: Vec<(String, String)>,
    refusals: Vec<Refusal>,
}

impl ScriptPolicy {
    fn new(setup: &Setup) -> ScriptPolicy {
        ScriptPolicy { users: setup.users.clone(), refusals: setup.verdicts.clone() }
    }

    fn refusal(&self, question: &str, subject: &str) -> Option<&Refusal> {
        self.refusals.iter().find(|refusal| refusal.question == question && refusal.subject == subject)
    }
}

impl Policy for ScriptPolicy {
    fn decide(&mut self, question: &Question<'_>) -> Verdict {
        let (name, subject) = match question {
            Question::Connect => ("connect", String::new()),
            Question::Helo(helo) => ("helo", (*helo).to_owned()),
            Question::Mail { reverse_path, .. } => ("mail", reverse_path.to_string()),
            Question::Rcpt { recipient, .. } => ("rcpt", recipient.forward_path.to_string()),
            Question::Content => ("content", String::new()),
            Question::Turn([]) => ("turn", "*".to_owned()),
            Question::Turn(domains) => ("turn", domains.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")),
            Question::Start(node) => ("start", node.to_string()),
            Question::Via(node) => ("via", (*node).to_owned()),
            // RFC 2195 §2: the secret of its example, and what it comes to for our first challenge.
            Question::Cram(response) => {
                return match response.digest == CRAM_DIGEST && &*response.challenge == "<1.seed@mx.example.org>" {
                    true => Verdict::Authenticated(response.user.clone()),
                    false => Verdict::Refuse(Reply::of(535, Some(Status::new(5, 7, 8)), "wrong credentials")),
                };
            }
            Question::Auth(credentials) => {
                let right = |(name, password): &(String, String)| {
                    **name == *credentials.user && **password == *credentials.password
                };
                return match self.users.iter().any(right) {
                    true => Verdict::Authenticated(credentials.user.clone()),
                    false => Verdict::Refuse(Reply::of(535, Some(Status::new(5, 7, 8)), "wrong credentials")),
                };
            }
        };
        match self.refusal(name, &subject) {
            None => Verdict::Accept,
            Some(refusal) if name == "start" && refusal.code < 300 => Verdict::Answer(reply(refusal)),
            Some(refusal) if refusal.code == 250 => Verdict::AcceptUnprivileged,
            Some(refusal) if refusal.close => Verdict::Close(reply(refusal)),
            Some(refusal) => Verdict::Refuse(reply(refusal)),
        }
    }

    fn stored(&mut self) -> Reply {
        match self.refusal("stored", "") {
            Some(refusal) => reply(refusal),
            None => Reply::of(250, Some(Status::new(2, 0, 0)), "queued"),
        }
    }
}

fn reply(refusal: &Refusal) -> Reply {
    let code = Code::new(refusal.code).expect("a reply code");
    let status = refusal.status.map(|(class, subject, detail)| Status::new(class, subject, detail));
    Reply { code, status, text: refusal.text.clone().into() }
}
