//! Whatever arrives, nothing panics, nothing grows, and how it was split does not matter.

mod shell;

use std::sync::Arc;
use std::time::Instant;

use postroad_smtp::client::{self, Protocol, TlsNeed, Transaction};
use postroad_smtp::command::Command;
use postroad_smtp::server::{AuthOffer, Config, Question, Session, TlsFacts, Verdict};
use postroad_smtp::{Input, MailParams, Recipient, Reply, Status};
use proptest::collection::vec;
use proptest::prelude::*;
use shell::{Message, Policy, Shell};

/// Accepts everything but guessed passwords.
struct Anything;

impl Policy for Anything {
    fn decide(&mut self, question: &Question<'_>) -> Verdict {
        match question {
            Question::Auth(_) | Question::Cram(_) => Verdict::Refuse(Reply::of(535, Some(Status::new(5, 7, 8)), "no")),
            _ => Verdict::Accept,
        }
    }

    fn stored(&mut self) -> Reply {
        Reply::of(250, Some(Status::new(2, 0, 0)), "queued")
    }
}

/// Fragments from which sessions, good and bad, grow quickly.
fn client_fragment() -> impl Strategy<Value = Vec<u8>> {
    let text = prop::sample::select(vec![
        "EHLO a.example\r\n",
        "HELO a\r\n",
        "MAIL FROM:<a@b>\r\n",
        "MAIL FROM:<é@b> SMTPUTF8 SIZE=5 BODY=8BITMIME RET=FULL ENVID=a+2B\r\n",
        "RCPT TO:<c@d>\r\n",
        "RCPT TO:<\"x > y\"@d> NOTIFY=DELAY ORCPT=rfc822;a\r\n",
        "DATA\r\n",
        "BDAT 7\r\n",
        "BDAT 3 LAST\r\n",
        "BDAT 0 LAST\r\n",
        "RSET\r\n",
        "NOOP\r\n",
        "AUTH PLAIN AGEAYg==\r\n",
        "AUTH LOGIN\r\n",
        "STARTTLS\r\n",
        "*\r\n",
        ".\r\n",
        "..\r\n",
        "\r\n",
        "x\r\n",
        "Received: x\r\n",
        "hello .\r\n",
        "\r",
        "\n",
        ".",
        "\0",
    ]);
    prop_oneof![
        20 => text.prop_map(|text| text.as_bytes().to_vec()),
        1 => vec(any::<u8>(), 0..20),
        1 => (1usize..6000).prop_map(|n| vec![b'x'; n]),
    ]
}

fn conversation() -> impl Strategy<Value = Vec<u8>> {
    let start = prop::sample::select(vec![
        "",
        "EHLO a\r\n",
        "EHLO a\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n",
        "EHLO a\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n",
    ]);
    (start, vec(client_fragment(), 0..30)).prop_map(|(start, more)| [start.as_bytes(), &more.concat()].concat())
}

fn server_config() -> Arc<Config> {
    let mut config = Config::relay("mx.example.org".parse().expect("valid"));
    config.auth = AuthOffer::OverTls;
    config.limits.message_octets_max = 4000;
    config.limits.errors_max = 10;
    Arc::new(config)
}

/// Everything the server says and stores when `octets` arrive in these pieces.
fn outcome(octets: &[u8], sizes: &[usize]) -> (String, Vec<Message>, bool) {
    let tls = TlsFacts { version: "x".into(), cipher: "x".into() };
    let mut shell = Shell::new(server_config(), Some(tls), Box::new(Anything));
    let mut rest = octets;
    let mut sizes = sizes.iter().cycle();
    while !rest.is_empty() {
        let size = sizes.next().map_or(rest.len(), |size| (*size).min(rest.len()));
        shell.receive(&rest[..size]);
        rest = &rest[size..];
    }
    shell.eof();
    (
        String::from_utf8(shell.transcript().to_vec()).expect("replies are text"),
        shell.stored().to_vec(),
        shell.is_closed(),
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn the_split_does_not_matter_to_the_server(octets in conversation(), sizes in vec(1usize..40, 1..8)) {
        let whole = outcome(&octets, &[]);
        prop_assert_eq!(&outcome(&octets, &sizes), &whole);
        prop_assert_eq!(&outcome(&octets, &[1]), &whole);
    }

    #[test]
    fn replies_are_lines_and_echo_no_control(octets in conversation()) {
        let (said, stored, closed) = outcome(&octets, &[]);
        prop_assert!(closed);
        for line in said.split_terminator("\r\n") {
            prop_assert!(line.len() < 512, "{line:?}");
            prop_assert!(line.bytes().take(3).all(|c| c.is_ascii_digit()), "{line:?}");
            prop_assert!(!line.chars().any(char::is_control), "{line:?}");
        }
        for message in stored {
            let text = String::from_utf8_lossy(&message.content).replace("\r\n", "");
            prop_assert!(!text.contains(['\r', '\n', '\0']), "{text:?}");
        }
    }

    #[test]
    fn any_octets_are_a_command_or_an_error(line in vec(any::<u8>(), 0..80), verb in "(MAIL FROM:<|RCPT TO:<|BDAT |AUTH |EHLO )?") {
        let line = [verb.as_bytes(), &line].concat();
        if let Err(error) = Command::parse(&line) {
            prop_assert!(error.reply().code.get() >= 500);
        }
    }

    #[test]
    fn any_server_leaves_every_recipient_answered(
        fragments in vec(server_fragment(), 0..20),
        sizes in vec(1usize..50, 1..5),
        lmtp in any::<bool>(),
        recipients in 1usize..4,
    ) {
        let (begun, done) = client_outcome(&fragments.concat(), &sizes, lmtp, recipients);
        prop_assert_eq!(done.len(), usize::from(begun), "one set of answers for one transaction");
        prop_assert!(done.iter().all(|answers| answers.len() == recipients));
    }
}

fn server_fragment() -> impl Strategy<Value = Vec<u8>> {
    let text = prop::sample::select(vec![
        "220 mx\r\n",
        "250-mx\r\n250-PIPELINING\r\n250 CHUNKING\r\n",
        "250-mx\r\n250 PIPELINING\r\n",
        "250 ok\r\n",
        "250 2.0.0 ok\r\n",
        "354 go\r\n",
        "421 bye\r\n",
        "450 later\r\n",
        "550-no\r\n550 no\r\n",
        "250-",
        "999\r\n",
        "\r\n",
    ]);
    prop_oneof![20 => text.prop_map(|text| text.as_bytes().to_vec()), 1 => vec(any::<u8>(), 0..20)]
}

/// Runs one transaction against a server that says exactly `octets`, whatever the client says.
/// Returns whether it began, and the answers it got.
fn client_outcome(octets: &[u8], sizes: &[usize], lmtp: bool, recipients: usize) -> (bool, Vec<Vec<client::Answer>>) {
    let now = Instant::now();
    let mut config = client::Config::new("client.example");
    config.protocol = if lmtp { Protocol::Lmtp } else { Protocol::Smtp };
    config.tls = TlsNeed::Never;
    let (mut session, mut input) = (client::Session::new(config, false, now), Input::new());
    let content = b"x\r\n.\r\n";
    let recipient = Recipient::new("b@c".parse().expect("valid"));
    let transaction = Transaction {
        reverse_path: "a@b".parse().expect("valid"),
        params: MailParams::default(),
        recipients: vec![recipient; recipients],
        content_octets: content.len() as u64,
        needs_smtputf8: false,
    };
    let (mut rest, mut sizes, mut done, mut begun) = (octets, sizes.iter().cycle(), Vec::new(), false);
    for _ in 0..10_000 {
        match session.poll(&mut input, now) {
            client::Action::Read { .. } if rest.is_empty() => session.handle_eof(),
            client::Action::Read { .. } => {
                let size = sizes.next().map_or(rest.len(), |size| (*size).min(rest.len()));
                input.extend(&rest[..size]);
                rest = &rest[size..];
            }
            client::Action::Ready if begun => return (begun, done),
            client::Action::Ready => {
                begun = true;
                session.begin(transaction.clone(), now);
            }
            client::Action::WantContent => {
                session.content(content);
                session.content_end(now);
            }
            client::Action::Done(answers) => done.push(answers),
            client::Action::Failed(_) | client::Action::Closed => return (begun, done),
            client::Action::StartTls | client::Action::HandOver | client::Action::NotTurned(_) => {
                unreachable!("neither TLS nor a turn is ever wanted")
            }
        }
    }
    panic!("the session does not end");
}

#[test]
fn an_idle_session_is_small() {
    assert!(size_of::<Session>() <= 256, "{}", size_of::<Session>());
    assert!(size_of::<Input>() <= 64, "{}", size_of::<Input>());
    assert!(size_of::<client::Session>() <= 700, "{}", size_of::<client::Session>());
}

#[test]
fn pipelined_commands_cannot_fill_memory_with_replies() {
    let mut config = Config::relay("mx.example.org".parse().expect("valid"));
    config.limits.idle_commands_max = u32::MAX;
    let mut shell = Shell::new(Arc::new(config), None, Box::new(Anything));
    shell.receive("EHLO x\r\n".repeat(10_000).as_bytes());
    assert!(shell.flushed_octets_max() < 17_000, "{}", shell.flushed_octets_max());
}
