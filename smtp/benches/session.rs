//! What the machines cost: one message of 10 KB through the server session, and through the client
//! session, in processor time. The target is under 15 µs each.

#![allow(clippy::print_stdout, reason = "a benchmark reports to its caller")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use postroad_smtp::client::{self, TlsNeed, Transaction};
use postroad_smtp::server::{Action, Config, Session, Verdict};
use postroad_smtp::trace::HeaderScanner;
use postroad_smtp::{Input, MailParams, Recipient, Reply, Status};

const ROUNDS: u32 = 50_000;

fn main() {
    let content = content();
    let data = [
        b"MAIL FROM:<alice@example.org> SIZE=10240 BODY=8BITMIME\r\nRCPT TO:<bob@example.com>\r\nDATA\r\n",
        &content[..],
        b".\r\n",
    ];
    let chunk = format!(
        "MAIL FROM:<alice@example.org> SIZE=10240\r\nRCPT TO:<bob@example.com>\r\nBDAT {} LAST\r\n",
        content.len()
    );
    report("server, DATA", || serve(&data.concat()));
    report("server, BDAT", || serve(&[chunk.as_bytes(), &content].concat()));
    report("client, DATA", || send(&content, "250-mx\r\n250 PIPELINING\r\n"));
    report("client, BDAT", || send(&content, "250-mx\r\n250-PIPELINING\r\n250 CHUNKING\r\n"));
}

/// A header and lines of 76 octets, a few of them with a dot in front: 10 KB.
fn content() -> Vec<u8> {
    let mut content = b"Received: by a.example; x\r\nFrom: a@example.org\r\nSubject: a message\r\n\r\n".to_vec();
    while content.len() < 10_240 {
        let dot = if content.len().is_multiple_of(17) { ".." } else { "xx" };
        content.extend_from_slice(dot.as_bytes());
        content.extend_from_slice(&[b'y'; 74]);
        content.extend_from_slice(b"\r\n");
    }
    content
}

/// Returns the processor time of this process, which other load on the machine does not stretch.
fn processor_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/self/schedstat").expect("Linux with scheduler statistics");
    let nanoseconds = text.split(' ').next().and_then(|word| word.parse::<f64>().ok());
    nanoseconds.expect("it begins with a number") / 1e9
}

fn report(name: &str, run: impl FnOnce() -> f64) {
    println!("{name}: {:.2} µs a message", run());
}

/// Serves the same transaction again and again, read in pieces of 16 KiB; returns µs a message.
fn serve(wire: &[u8]) -> f64 {
    let now = Instant::now();
    let config = Arc::new(Config::relay("mx.example.org".parse().expect("valid")));
    let (mut session, mut input) = (Session::new(config, None, now), Input::new());
    input.extend(b"EHLO client.example\r\n");
    drive(&mut session, &mut input, now);
    let started = processor_seconds();
    for _ in 0..ROUNDS {
        for piece in wire.chunks(16_384) {
            input.extend(piece);
            drive(&mut session, &mut input, now);
        }
    }
    (processor_seconds() - started) * 1e6 / f64::from(ROUNDS)
}

fn drive(session: &mut Session, input: &mut Input, now: Instant) {
    let mut scanner = HeaderScanner::new();
    let mut octets = 0;
    loop {
        match session.poll(input, now) {
            Action::Ask(_) => session.handle_verdict(Verdict::Accept),
            Action::Body(piece) => {
                scanner.scan(piece);
                octets += piece.len();
            }
            Action::Commit(envelope) => {
                black_box((envelope, octets, scanner.hops()));
                session.handle_stored(Reply::of(250, Some(Status::new(2, 0, 0)), "queued"));
            }
            Action::Read { .. } => return session.output().clear(),
            other => panic!("{other:?}"),
        }
    }
}

/// Sends the same transaction again and again; returns µs a message.
fn send(content: &[u8], ehlo: &str) -> f64 {
    let now = Instant::now();
    let mut config = client::Config::new("client.example");
    config.tls = TlsNeed::Never;
    let (mut session, mut input) = (client::Session::new(config, false, now), Input::new());
    input.extend(b"220 mx\r\n");
    input.extend(ehlo.as_bytes());
    let transaction = Transaction {
        reverse_path: "alice@example.org".parse().expect("valid"),
        params: MailParams::default(),
        recipients: vec![Recipient::new("bob@example.com".parse().expect("valid"))],
        content_octets: content.len() as u64,
        needs_smtputf8: false,
    };
    let (envelope, last): (&[u8], &[u8]) = if ehlo.contains("CHUNKING") {
        (b"", b"250 2.1.0 ok\r\n250 2.1.5 ok\r\n250 2.0.0 queued\r\n")
    } else {
        (b"250 2.1.0 ok\r\n250 2.1.5 ok\r\n354 go\r\n", b"250 2.0.0 queued\r\n")
    };
    let mut replies = envelope;
    let started = processor_seconds();
    let mut sent = 0;
    loop {
        match session.poll(&mut input, now) {
            client::Action::Ready if sent == ROUNDS => break,
            client::Action::Ready => {
                sent += 1;
                replies = envelope;
                session.begin(transaction.clone(), now);
                black_box(session.output()).clear();
            }
            client::Action::WantContent => {
                session.content(content);
                session.content_end(now);
                replies = last;
                black_box(session.output()).clear();
            }
            client::Action::Done(answers) => drop(black_box(answers)),
            client::Action::Read { .. } => input.extend(replies),
            other => panic!("{other:?}"),
        }
    }
    (processor_seconds() - started) * 1e6 / f64::from(ROUNDS)
}
