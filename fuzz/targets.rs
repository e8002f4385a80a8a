//! What is fuzzed: each function takes any octets and panics when a promise is broken. The fuzz
//! binaries call them, and `smtp/tests/corpus.rs` replays the committed corpus through them.

use std::sync::Arc;
use std::time::Instant;

use postroad_smtp::Input;
use postroad_smtp::client::ReplyReader;
use postroad_smtp::command::Command;
use postroad_smtp::data::{ContentDecoder, DotStuffer, Event};
use postroad_smtp::server::{Action, AuthOffer, Config, Session, TlsFacts, Verdict};

/// Any line is a command or an error with a reply.
pub fn command(octets: &[u8]) {
    match Command::parse(octets) {
        Ok(Command::Mail(mail)) => {
            assert!(mail.params.smtputf8 || mail.reverse_path.is_ascii());
            check_one_line(&mail.reverse_path.to_string());
        }
        Ok(Command::Rcpt(recipient)) => check_one_line(&recipient.forward_path.to_string()),
        Ok(_) => {}
        Err(error) => assert!(error.reply().code.get() >= 500),
    }
}

fn check_one_line(text: &str) {
    assert!(!text.chars().any(char::is_control), "{text:?}");
}

/// Any octets are replies or an error, and the split does not matter.
pub fn reply(octets: &[u8]) {
    let read = |size: usize| {
        let (mut reader, mut input, mut replies) = (ReplyReader::new(), Input::new(), Vec::new());
        for piece in octets.chunks(size) {
            input.extend(piece);
            loop {
                match reader.next(&mut input) {
                    Ok(Some(reply)) => replies.push(reply),
                    Ok(None) => break,
                    Err(error) => return (replies, Some(error)),
                }
            }
        }
        (replies, None)
    };
    let whole = read(usize::MAX);
    assert_eq!(read(1), whole);
    for reply in &whole.0 {
        assert!(!reply.text.chars().any(|c| c.is_control() && c != '\n'), "{reply:?}");
    }
}

/// Content is decoded the same in every chunking, and comes back from the stuffer.
pub fn data(octets: &[u8]) {
    let whole = decode(octets, usize::MAX);
    for size in [1, 2, 7] {
        let (content, end) = decode(octets, size);
        assert_eq!(end, whole.1);
        if !matches!(end, Event::Fault(_)) {
            assert_eq!(content, whole.0);
        }
    }
    let (mut stuffer, mut wire) = (DotStuffer::new(), Vec::new());
    if octets.chunks(3).all(|piece| stuffer.stuff(piece, &mut wire).is_ok()) && stuffer.finish(&mut wire).is_ok() {
        let (content, end) = decode(&wire, 5);
        assert_eq!(end, Event::End);
        assert!(content == octets || content == [octets, b"\r\n"].concat());
    }
}

fn decode(octets: &[u8], size: usize) -> (Vec<u8>, Event) {
    let (mut decoder, mut content) = (ContentDecoder::new(), Vec::new());
    for piece in octets.chunks(size) {
        let mut rest = piece;
        loop {
            let decoded = decoder.decode(rest);
            match decoded.event {
                Event::Content(range) => content.extend_from_slice(&rest[range]),
                Event::More => break,
                end => return (content, end),
            }
            rest = &rest[decoded.consumed..];
        }
    }
    (content, Event::More)
}

/// A session takes any octets, keeps its side about drafts, and says the same in every chunking.
pub fn session(octets: &[u8]) {
    let whole = converse(octets, usize::MAX);
    assert_eq!(converse(octets, 1), whole);
    assert_eq!(converse(octets, 13), whole);
}

fn converse(octets: &[u8], size: usize) -> (Vec<u8>, Vec<Vec<u8>>) {
    let mut config = Config::relay("mx.example.org".parse().expect("valid"));
    config.auth = AuthOffer::OverTls;
    config.limits.message_octets_max = 200;
    let tls = TlsFacts { version: "x".into(), cipher: "x".into() };
    let now = Instant::now();
    let (mut session, mut input) = (Session::new(Arc::new(config), Some(tls), now), Input::new());
    let (mut said, mut draft, mut stored) = (Vec::new(), Vec::new(), Vec::new());
    let mut pieces = octets.chunks(size);
    loop {
        match session.poll(&mut input, now) {
            Action::Ask(_) => session.handle_verdict(Verdict::Accept),
            Action::Body(piece) => draft.extend_from_slice(piece),
            Action::Commit(envelope) => {
                assert!(!envelope.recipients().is_empty());
                stored.push(std::mem::take(&mut draft));
                session.handle_stored(postroad_smtp::Reply::of(250, None, "queued"));
            }
            Action::Discard => draft.clear(),
            Action::Flush => said.append(session.output()),
            Action::StartTls => unreachable!("TLS is active from the beginning"),
            Action::Link | Action::HandOver => unreachable!("neither is offered"),
            Action::Read { .. } => {
                said.append(session.output());
                match pieces.next() {
                    Some(piece) => input.extend(piece),
                    None => session.handle_eof(),
                }
            }
            Action::Close => {
                said.append(session.output());
                return (said, stored);
            }
        }
    }
}
