//! The client and the server machine, face to face in memory: any envelope, any content, any
//! chunking, with and without PIPELINING and CHUNKING, SMTP and LMTP. What arrives is what was sent.

mod shell;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use postroad_smtp::client::{self, Action, Answer, Protocol, TlsNeed, Transaction};
use postroad_smtp::server::{self, Question, Service, TlsFacts, Verdict};
use postroad_smtp::{
    ByMode, DeliverBy, Input, MailParams, Notify, OriginalRecipient, Priority, Recipient, Reply, Ret, Status,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use shell::{Policy, Shell};

/// How one conversation is held.
#[derive(Clone, Debug)]
struct Manner {
    lmtp: bool,
    pipelining: bool,
    chunking: bool,
    starttls: bool,
    auth: bool,
    to_server: usize,
    to_client: usize,
    piece: usize,
}

/// Refuses recipients whose local-part begins with `no`.
struct Picky;

impl Policy for Picky {
    fn decide(&mut self, question: &Question<'_>) -> Verdict {
        match question {
            Question::Rcpt { recipient, .. } if is_refused(recipient) => {
                Verdict::Refuse(Reply::of(550, Some(Status::new(5, 1, 1)), "no such user"))
            }
            Question::Auth(credentials) => Verdict::Authenticated(credentials.user.clone()),
            _ => Verdict::Accept,
        }
    }

    fn stored(&mut self) -> Reply {
        Reply::of(250, Some(Status::new(2, 0, 0)), "queued")
    }
}

fn is_refused(recipient: &Recipient) -> bool {
    recipient.forward_path.mailbox().is_some_and(|mailbox| mailbox.local_part.as_str().starts_with("no"))
}

struct Pair {
    manner: Manner,
    client: client::Session,
    input: Input,
    server: Shell,
    wire: VecDeque<u8>,
    now: Instant,
    round_trips: usize,
}

impl Pair {
    fn new(manner: &Manner) -> Pair {
        let now = Instant::now();
        let mut config = server::Config::relay("mx.example.org".parse().expect("valid"));
        config.service = if manner.lmtp { Service::Lmtp } else { Service::Relay };
        config.offer_starttls = manner.starttls;
        config.auth = server::AuthOffer::OverTls;
        config.require_auth = manner.auth && manner.starttls;
        let mut client = client::Config::new("client.example");
        client.protocol = if manner.lmtp { Protocol::Lmtp } else { Protocol::Smtp };
        client.tls = if manner.starttls { TlsNeed::Required } else { TlsNeed::Opportunistic };
        if config.require_auth {
            client.auth = Some(postroad_smtp::sasl::Credentials::new("alice", "secret").expect("valid"));
        }
        Pair {
            manner: manner.clone(),
            client: client::Session::new(client, false, now),
            input: Input::new(),
            server: {
                let mut server = Shell::new(Arc::new(config), None, Box::new(Picky));
                server.offer_mesh();
                server
            },
            wire: VecDeque::new(),
            now,
            round_trips: 0,
        }
    }

    /// Runs until the client wants the shell's decision.
    fn run(&mut self) -> Action {
        loop {
            match self.client.poll(&mut self.input, self.now) {
                Action::Read { .. } => self.exchange(),
                Action::StartTls => {
                    self.flush();
                    assert!(self.server.waits_for_tls(), "both start TLS at the same place");
                    self.server.handshake(TlsFacts { version: "TLSv1.3".into(), cipher: "x".into() });
                    self.client.handle_tls(self.now);
                }
                action => return action,
            }
        }
    }

    fn flush(&mut self) {
        let octets = std::mem::take(self.client.output());
        octets.chunks(self.manner.to_server).for_each(|piece| self.server.receive(piece));
    }

    fn exchange(&mut self) {
        self.flush();
        let mut said = String::from_utf8(self.server.take_transcript()).expect("replies are text");
        if !self.manner.pipelining {
            said = said.replace("250-PIPELINING", "250-X-NOTHING");
        }
        if !self.manner.chunking {
            said = said.replace("250 CHUNKING", "250 X-NONE");
        }
        self.round_trips += usize::from(!said.is_empty());
        self.wire.extend(said.bytes());
        let size = self.manner.to_client.min(self.wire.len());
        assert!(size > 0, "the client waits and the server has nothing to say");
        let piece: Vec<u8> = self.wire.drain(..size).collect();
        self.input.extend(&piece);
    }

    fn send(&mut self, transaction: &Transaction, content: &[u8]) -> Vec<Answer> {
        assert!(matches!(self.run(), Action::Ready));
        self.client.begin(transaction.clone(), self.now);
        let mut pieces = content.chunks(self.manner.piece);
        loop {
            match self.run() {
                Action::WantContent => match pieces.next() {
                    Some(piece) => {
                        self.client.content(piece);
                        self.flush();
                    }
                    None => self.client.content_end(self.now),
                },
                Action::Done(answers) => return answers,
                other => panic!("{other:?}"),
            }
        }
    }

    fn quit(mut self) -> Shell {
        assert!(matches!(self.run(), Action::Ready));
        self.client.quit(self.now);
        assert!(matches!(self.run(), Action::Closed));
        assert!(self.server.is_closed());
        self.server
    }
}

fn manner() -> impl Strategy<Value = Manner> {
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let sizes = (1usize..200, 1usize..200, 1usize..200);
    (flags, sizes).prop_map(|((lmtp, pipelining, chunking, starttls, auth), (to_server, to_client, piece))| Manner {
        lmtp,
        pipelining,
        chunking,
        starttls,
        auth,
        to_server,
        to_client,
        piece,
    })
}

fn content() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        Just(String::new()),
        Just(".".to_owned()),
        Just("..".to_owned()),
        Just("QUIT".to_owned()),
        "\\.{0,3}[ -~ü\u{1}\u{7f}]{0,90}",
    ];
    (vec(line, 0..30), any::<bool>()).prop_map(|(lines, ended)| {
        let mut text = lines.join("\r\n");
        if ended {
            text.push_str("\r\n");
        }
        text.into_bytes()
    })
}

fn recipient() -> impl Strategy<Value = Recipient> {
    let path = prop_oneof![
        Just("bob@example.org"),
        Just("nobody@example.org"),
        Just("\"a > \\\" b\"@example.org"),
        Just("u@[IPv6:2001:db8::1]"),
        Just("jürgen@bücher.example"),
        Just("Postmaster"),
    ];
    let notify = option::of((any::<bool>(), any::<bool>(), any::<bool>()));
    let original = option::of(prop_oneof![("rfc822", "[ -~]{1,40}"), ("utf-8", "[ -~ü用]{1,40}"),]);
    (path, notify, original).prop_map(|(path, notify, original)| Recipient {
        forward_path: path.parse().expect("valid"),
        notify: notify.map(|(success, failure, delay)| Notify { success, failure, delay }),
        original: original
            .map(|(addr_type, address)| OriginalRecipient { addr_type: addr_type.into(), address: address.into() }),
    })
}

fn by() -> impl Strategy<Value = DeliverBy> {
    let time = prop_oneof![
        (-999_999_999..=999_999_999).prop_map(|seconds| (seconds, ByMode::Notify)),
        (1..=999_999_999).prop_map(|seconds| (seconds, ByMode::Return)),
    ];
    (time, any::<bool>()).prop_map(|((seconds, mode), trace)| DeliverBy { seconds, mode, trace })
}

fn transaction() -> impl Strategy<Value = (Transaction, Vec<u8>)> {
    let reverse_path =
        prop_oneof![Just(""), Just("alice@example.org"), Just("\"a b\"@example.org"), Just("é@e.example")];
    let ret = option::of(prop_oneof![Just(Ret::Full), Just(Ret::Headers)]);
    let params = (
        any::<bool>(),
        ret,
        option::of("[ -~]{1,40}"),
        option::of(-9..=9i8),
        option::of(by()),
        option::of("[a-z0-9:,]{1,320}"),
    );
    (reverse_path, params, vec(recipient(), 1..6), content()).prop_map(
        |(reverse_path, (eight_bit, ret, envid, priority, deliver_by, passage), recipients, content)| {
            let reverse_path: postroad_smtp::ReversePath = reverse_path.parse().expect("valid");
            let smtputf8 = !reverse_path.is_ascii() || recipients.iter().any(|r| !r.forward_path.is_ascii());
            let priority = priority.and_then(Priority::new);
            let params = MailParams {
                eight_bit,
                smtputf8,
                ret,
                envid: envid.map(Into::into),
                priority,
                deliver_by,
                release: None,
                passage: passage.and_then(|passage| passage.parse().ok()),
            };
            let content_octets = content.len() as u64;
            (Transaction { reverse_path, params, recipients, content_octets, needs_smtputf8: false }, content)
        },
    )
}

/// What is stored: DATA ends every last line, BDAT leaves it as it was.
fn as_stored(content: &[u8], chunking: bool) -> Vec<u8> {
    let mut content = content.to_vec();
    if !chunking && !content.is_empty() && !content.ends_with(b"\r\n") {
        content.extend_from_slice(b"\r\n");
    }
    content
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn what_arrives_is_what_was_sent(manner in manner(), mails in vec(transaction(), 1..4)) {
        let mut pair = Pair::new(&manner);
        for (transaction, content) in &mails {
            let answers = pair.send(transaction, content);
            prop_assert_eq!(answers.len(), transaction.recipients.len());
            for (recipient, answer) in transaction.recipients.iter().zip(&answers) {
                let good = match answer {
                    Answer::Accepted(_) => !is_refused(recipient),
                    Answer::Permanent(reply) => is_refused(recipient) && reply.code.get() == 550,
                    _ => false,
                };
                prop_assert!(good, "{recipient:?} {answer:?}");
            }
        }
        let server = pair.quit();
        let mut stored = server.stored().iter();
        for (transaction, content) in &mails {
            let accepted: Vec<_> = transaction.recipients.iter().filter(|r| !is_refused(r)).cloned().collect();
            if accepted.is_empty() {
                continue;
            }
            let message = stored.next().expect("it was accepted");
            prop_assert_eq!(&message.envelope.reverse_path, &transaction.reverse_path);
            prop_assert_eq!(&message.envelope.params, &transaction.params);
            prop_assert_eq!(message.envelope.recipients(), &accepted[..]);
            prop_assert_eq!(&message.content, &as_stored(content, manner.chunking));
        }
        prop_assert!(stored.next().is_none());
    }
}

fn mail_to(count: usize, content: &[u8]) -> Transaction {
    let recipient = |i| Recipient::new(format!("u{i}@example.org").parse().expect("valid"));
    Transaction {
        reverse_path: "a@example.org".parse().expect("valid"),
        params: MailParams::default(),
        recipients: (0..count).map(recipient).collect(),
        content_octets: content.len() as u64,
        needs_smtputf8: false,
    }
}

fn plain() -> Manner {
    Manner {
        lmtp: false,
        pipelining: true,
        chunking: true,
        starttls: false,
        auth: false,
        to_server: usize::MAX,
        to_client: usize::MAX,
        piece: usize::MAX,
    }
}

#[test]
fn a_message_takes_as_few_round_trips_as_the_peer_allows() {
    let content = b"Subject: x\r\n\r\nx\r\n";
    for (pipelining, chunking, want) in [(true, true, 1), (true, false, 2), (false, true, 5), (false, false, 6)] {
        let mut pair = Pair::new(&Manner { pipelining, chunking, ..plain() });
        assert!(matches!(pair.run(), Action::Ready));
        let before = pair.round_trips;
        pair.send(&mail_to(3, content), content);
        assert_eq!(pair.round_trips - before, want, "pipelining {pipelining}, chunking {chunking}");
    }
}

#[test]
fn a_thousand_recipients_go_in_windows() {
    let content = b"x\r\n";
    for chunking in [true, false] {
        let mut pair = Pair::new(&Manner { chunking, ..plain() });
        let answers = pair.send(&mail_to(1000, content), content);
        assert!(answers.iter().all(|answer| matches!(answer, Answer::Accepted(_))));
        assert_eq!(pair.quit().stored()[0].envelope.recipients().len(), 1000);
    }
}

#[test]
fn large_content_waits_for_the_recipients() {
    let content = b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd\r\n".repeat(1 << 15);
    let mut pair = Pair::new(&plain());
    let nobody = Recipient::new("nobody@example.org".parse().expect("valid"));
    let refused = Transaction { recipients: vec![nobody], ..mail_to(1, &content) };
    assert!(matches!(pair.run(), Action::Ready));
    pair.client.begin(refused, pair.now);
    assert!(matches!(pair.run(), Action::Done(_)), "no content is asked for");
    assert!(matches!(pair.send(&mail_to(1, &content), &content)[..], [Answer::Accepted(_)]));
    assert_eq!(pair.quit().stored()[0].content, content);
}
