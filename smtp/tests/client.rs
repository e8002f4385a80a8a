//! The client session against servers that refuse, lie, stop in the middle and inject.

mod server;

use std::time::{Duration, Instant};

use postroad_smtp::client::{Action, Config, Failure, Protocol, ReplyError, Session, TlsNeed, Transaction};
use postroad_smtp::sasl::Credentials;
use postroad_smtp::{Input, Status};
use server::{EHLO_ALL, EHLO_PIPELINING, Server, config, shown, transaction};

#[test]
fn a_server_that_refuses_at_the_door() {
    let mut server = Server::new(config());
    server.says("554-no\r\n554 mail here\r\n");
    let failure = server.failed();
    assert_eq!(failure.reply().text, "no\nmail here");
    assert!(matches!(failure, Failure::Greeting(_)));

    let mut server = Server::new(config());
    server.says("421 4.3.2 busy\r\n");
    assert!(matches!(server.failed(), Failure::Ended(_)));
}

#[test]
fn a_server_without_ehlo_is_asked_with_helo() {
    let mut server = Server::new(config());
    server.says("220 old\r\n");
    server.hears();
    server.says("500 what?\r\n");
    assert_eq!(server.hears(), "HELO client.example\r\n");
    server.says("250 old\r\n");
    assert!(matches!(server.poll(), Action::Ready));
    server.begin(&["b@c"], "x\r\n");
    assert_eq!(server.hears(), "MAIL FROM:<a@example.org>\r\n");
}

#[test]
fn tls_is_used_where_it_works_and_needed_where_required() {
    let starttls = "250-mx\r\n250 STARTTLS\r\n";
    for (tls, ehlo, reply, want) in [
        (TlsNeed::Required, "250 mx\r\n", "", Some(Failure::TlsNotOffered)),
        (TlsNeed::Required, starttls, "220 go\r\n250 injected\r\n", Some(Failure::TlsInjected)),
        (TlsNeed::Opportunistic, starttls, "220 go\r\n2", Some(Failure::TlsInjected)),
        (TlsNeed::Opportunistic, starttls, "454 not now\r\n", None),
        (TlsNeed::Never, starttls, "", None),
    ] {
        let mut server = Server::new(Config { tls, ..config() });
        server.says("220 mx\r\n");
        server.hears();
        server.says(ehlo);
        if !reply.is_empty() {
            assert_eq!(server.hears(), "STARTTLS\r\n");
            server.says(reply);
        }
        match want {
            Some(failure) => assert_eq!(server.failed(), failure),
            None => assert!(matches!(server.poll(), Action::Ready), "{tls:?} {reply}"),
        }
    }
}

#[test]
fn what_was_offered_before_tls_is_forgotten() {
    let mut server = Server::new(Config { tls: TlsNeed::Required, ..config() });
    server.says("220 mx\r\n");
    server.hears();
    server.says("250-mx\r\n250-CHUNKING\r\n250 STARTTLS\r\n");
    server.hears();
    server.says("220 go\r\n");
    assert!(matches!(server.poll(), Action::StartTls));
    server.client.handle_tls(server.now);
    assert!(server.client.is_secure() && !server.client.offered().chunking);
    assert_eq!(server.hears(), "EHLO client.example\r\n");
    server.says("250 mx\r\n");
    assert!(matches!(server.poll(), Action::Ready));
}

#[test]
fn a_password_travels_under_tls_only() {
    let auth = Some(Credentials::new("alice", "secret").expect("valid"));
    let mut server = Server::new(Config { auth: auth.clone(), ..config() });
    server.says("220 mx\r\n");
    server.hears();
    server.says("250-mx\r\n250 AUTH PLAIN LOGIN\r\n");
    assert_eq!(server.failed(), Failure::AuthNeedsTls);

    for (offer, lines) in [
        ("PLAIN LOGIN", &["AUTH PLAIN AGFsaWNlAHNlY3JldA==\r\n"][..]),
        ("LOGIN", &["AUTH LOGIN\r\n", "YWxpY2U=\r\n", "c2VjcmV0\r\n"][..]),
    ] {
        let now = Instant::now();
        let client = Session::new(Config { auth: auth.clone(), ..config() }, true, now);
        let mut server = Server { client, input: Input::new(), now };
        server.says("220 mx\r\n");
        server.hears();
        server.says(&format!("250-mx\r\n250 AUTH {offer}\r\n"));
        for (i, line) in lines.iter().enumerate() {
            assert_eq!(server.hears(), *line);
            server.says(if i + 1 < lines.len() { "334 x\r\n" } else { "535 5.7.8 no\r\n" });
        }
        assert!(matches!(server.failed(), Failure::Auth(reply) if reply.code.get() == 535));
    }
}

#[test]
fn the_whole_transaction_goes_in_one_write() {
    let mut server = Server::ready(EHLO_ALL);
    server.begin(&["b@c", "d@e"], "x\r\n");
    assert_eq!(server.hears(), "MAIL FROM:<a@example.org> SIZE=3\r\nRCPT TO:<b@c>\r\nRCPT TO:<d@e>\r\nBDAT 3 LAST\r\n");
    server.gives("x\r\n");
    assert_eq!(server.hears(), "x\r\n");
    server.says("250 ok\r\n250 ok\r\n550 5.1.1 no\r\n250 2.0.0 id 7\r\n");
    assert_eq!(shown(&server.done()), "A250 P550");
    assert!(matches!(server.poll(), Action::Ready));
}

#[test]
fn a_refused_transaction_is_reset_without_waiting() {
    let mut server = Server::ready(EHLO_PIPELINING);
    server.begin(&["b@c", "d@e"], "x\r\n");
    server.hears();
    server.says("250 ok\r\n550 no\r\n450 later\r\n554 none\r\n");
    assert_eq!(shown(&server.done()), "P550 T450");
    assert!(matches!(server.poll(), Action::Ready));
    server.begin(&["f@g"], "x\r\n");
    assert_eq!(server.hears(), "RSET\r\nMAIL FROM:<a@example.org>\r\nRCPT TO:<f@g>\r\nDATA\r\n");
    server.says("250 reset\r\n250 ok\r\n250 ok\r\n354 go\r\n");
    server.gives("..x");
    assert_eq!(server.hears(), "...x\r\n.\r\n");
    server.says("250 ok\r\n");
    assert_eq!(shown(&server.done()), "A250");
}

#[test]
fn content_nobody_wants_is_an_empty_message() {
    let mut server = Server::ready(EHLO_PIPELINING);
    server.begin(&["b@c"], "x\r\n");
    server.hears();
    server.says("250 ok\r\n550 no\r\n354 go\r\n");
    assert_eq!(server.hears(), ".\r\n");
    server.says("554 no recipients\r\n");
    assert_eq!(shown(&server.done()), "P550");
    assert!(matches!(server.poll(), Action::Ready));
    assert!(server.client.output().is_empty(), "nothing is left to reset");
}

#[test]
fn a_refused_sender_has_no_recipients_whatever_the_server_says() {
    let mut server = Server::ready(EHLO_PIPELINING);
    server.begin(&["b@c"], "x\r\n");
    server.hears();
    server.says("550 no\r\n250 ok\r\n354 go\r\n");
    assert_eq!(server.hears(), ".\r\n");
    server.says("250 ok\r\n");
    assert_eq!(shown(&server.done()), "P550");
}

#[test]
fn the_envelope_goes_in_windows() {
    let recipients = vec!["b@c"; 150];
    for (ehlo, last) in [(EHLO_PIPELINING, "DATA\r\n"), (EHLO_ALL, "BDAT 3 LAST\r\n")] {
        let mut server = Server::ready(ehlo);
        server.begin(&recipients, "x\r\n");
        assert_eq!(server.hears().lines().count(), 100);
        server.says(&"250 ok\r\n".repeat(99));
        assert_eq!(server.hears(), "");
        server.says("250 ok\r\n");
        let rest = server.hears();
        assert_eq!(rest.lines().count(), 52);
        assert!(rest.ends_with(last), "{rest}");
    }
}

#[test]
fn a_refused_sender_answers_for_all() {
    let mut server = Server::ready(EHLO_ALL);
    server.begin(&["b@c", "d@e"], "x\r\n");
    server.hears();
    server.gives("x\r\n");
    server.says("452 4.3.1 full\r\n503 a\r\n503 b\r\n503 c\r\n");
    assert_eq!(shown(&server.done()), "T452 T452");
    assert!(matches!(server.poll(), Action::Ready));
    assert_eq!(*server.client.output(), b"x\r\n", "no transaction is open that could be reset");
}

#[test]
fn answers_survive_the_end_of_the_session() {
    // 421 in place of a recipient's reply.
    let mut server = Server::ready(EHLO_PIPELINING);
    server.begin(&["b@c", "d@e", "f@g"], "x\r\n");
    server.hears();
    server.says("250 ok\r\n550 no\r\n421 4.3.2 bye\r\n");
    assert_eq!(shown(&server.done()), "P550 T421 T421");
    assert!(matches!(server.failed(), Failure::Ended(_)));

    // The connection ends before the content is complete.
    let mut server = Server::ready(EHLO_PIPELINING);
    server.begin(&["b@c", "d@e"], "x\r\n");
    server.hears();
    server.says("250 ok\r\n250 ok\r\n550 no\r\n354 go\r\n");
    assert!(matches!(server.poll(), Action::WantContent));
    server.client.handle_eof();
    assert_eq!(shown(&server.done()), "T451 P550");
    assert_eq!(server.failed(), Failure::Lost);
}

#[test]
fn a_reply_in_the_middle_of_the_content_is_the_answer() {
    for (reply, want) in [("552 5.3.4 too large\r\n", "P552"), ("421 4.3.2 bye\r\n", "T421"), ("250 ok\r\n", "T451")] {
        let mut server = Server::ready(EHLO_PIPELINING);
        server.begin(&["b@c"], "x\r\n");
        server.hears();
        server.says("250 ok\r\n250 ok\r\n354 go\r\n");
        assert!(matches!(server.poll(), Action::WantContent));
        server.client.content(b"x\r\n");
        server.says(reply);
        assert_eq!(shown(&server.done()), want);
        assert!(matches!(server.failed(), Failure::Ended(_) | Failure::Unexpected(_)));
    }
}

#[test]
fn behind_the_content_nobody_knows() {
    for ends in [Session::handle_eof as fn(&mut Session), Session::handle_timeout] {
        let mut server = Server::ready(EHLO_PIPELINING);
        server.begin(&["b@c", "d@e"], "x\r\n");
        server.hears();
        server.says("250 ok\r\n250 ok\r\n550 no\r\n354 go\r\n");
        server.gives("x\r\n");
        server.hears();
        ends(&mut server.client);
        let answers = server.done();
        assert_eq!(shown(&answers), "U451 P550");
        assert_eq!(answers[0].reply().status, Some(Status::new(4, 4, 2)));
    }
    // 421 in place of an earlier reply says that the content was never looked at.
    let mut server = Server::ready(EHLO_ALL);
    server.begin(&["b@c"], "x\r\n");
    server.gives("x\r\n");
    server.hears();
    server.says("250 ok\r\n421 4.3.2 bye\r\n");
    assert_eq!(shown(&server.done()), "T421");
    // 421 as the reply to the content is an answer.
    let mut server = Server::ready(EHLO_ALL);
    server.begin(&["b@c"], "x\r\n");
    server.gives("x\r\n");
    server.hears();
    server.says("250 ok\r\n250 ok\r\n421 4.3.2 bye\r\n");
    assert_eq!(shown(&server.done()), "T421");
    assert!(matches!(server.failed(), Failure::Ended(_)));
}

#[test]
fn lmtp_answers_for_each_recipient() {
    let mut server = Server::new(Config { protocol: Protocol::Lmtp, ..config() });
    server.says("220 mx LMTP\r\n");
    assert_eq!(server.hears(), "LHLO client.example\r\n");
    server.says(EHLO_PIPELINING);
    assert!(matches!(server.poll(), Action::Ready));
    server.begin(&["b@c", "d@e", "f@g", "h@i"], "x\r\n");
    server.hears();
    server.says("250 ok\r\n250 ok\r\n550 no\r\n250 ok\r\n250 ok\r\n354 go\r\n");
    server.gives("x\r\n");
    server.hears();
    server.says("250 ok\r\n452 4.2.2 full\r\n");
    assert!(matches!(server.poll(), Action::Read { .. }));
    server.client.handle_eof();
    assert_eq!(shown(&server.done()), "A250 P550 T452 U451");
}

#[test]
fn what_cannot_be_taken_there_is_not_tried() {
    let mut server = Server::ready(EHLO_ALL);
    server.begin(&["b@c"], &"x".repeat(1001));
    let answers = server.done();
    assert_eq!(shown(&answers), "P552");
    assert!(server.client.is_ours(answers[0].reply()), "the peer was not asked");
    server.begin(&["b@c", "jürgen@c"], "x");
    assert_eq!(shown(&server.done()), "P550 P550");
    let header = Transaction { needs_smtputf8: true, ..transaction(&["b@c"], "x") };
    server.client.begin(header, server.now);
    assert_eq!(server.done()[0].reply().status, Some(Status::new(5, 6, 7)));
    assert!(matches!(server.poll(), Action::Ready));
    assert!(server.client.output().is_empty());
}

#[test]
fn faulty_content_cuts_the_connection() {
    for (ehlo, announced, content, want) in [
        (EHLO_ALL, "a\nb", "a\nb", "P554"),
        (EHLO_PIPELINING, "a\rb", "a\rb", "P554"),
        (EHLO_ALL, "abc", "ab", "T451"),
        (EHLO_ALL, "ab", "abc", "T451"),
    ] {
        let mut server = Server::ready(ehlo);
        server.begin(&["b@c"], announced);
        server.hears();
        if ehlo == EHLO_PIPELINING {
            server.says("250 ok\r\n250 ok\r\n354 go\r\n");
        }
        server.gives(content);
        assert_eq!(shown(&server.done()), want, "{content:?}");
        assert!(matches!(server.failed(), Failure::Content(_)));
        assert!(server.client.output().is_empty());
    }
}

#[test]
fn content_that_cannot_be_read_is_our_own_fault() {
    for (ehlo, replies, want) in [
        (EHLO_PIPELINING, "250 ok\r\n550 no\r\n250 ok\r\n354 go\r\n", "P550 T451"),
        (EHLO_ALL, "250 ok\r\n550 no\r\n", "P550 T451"),
    ] {
        let mut server = Server::ready(ehlo);
        server.begin(&["b@c", "d@e"], "abc");
        server.hears();
        server.says(replies);
        assert!(matches!(server.poll(), Action::WantContent));
        server.client.content(b"ab");
        server.client.content_abort();
        let answers = server.done();
        assert_eq!(shown(&answers), want);
        assert_eq!(answers[1].reply().status, Some(Status::new(4, 3, 0)));
        assert!(matches!(server.failed(), Failure::Content(_)));
        assert!(server.client.output().is_empty(), "the peer must not take half a message for the whole");
    }
}

#[test]
fn a_session_says_while_the_reply_to_a_reset_is_due() {
    for ehlo in ["250 mx\r\n", EHLO_PIPELINING] {
        let mut server = Server::ready(ehlo);
        assert!(!server.client.awaits_reset());
        server.begin(&["b@c"], "x\r\n");
        for reply in ["250 ok\r\n", "550 no\r\n"] {
            server.hears();
            server.says(reply);
        }
        if ehlo == EHLO_PIPELINING {
            server.says("554 none\r\n");
        }
        assert_eq!(shown(&server.done()), "P550");
        assert!(server.client.awaits_reset(), "{ehlo}");
        assert!(matches!(server.poll(), Action::Read { .. } | Action::Ready));
        assert_eq!(*server.client.output(), b"RSET\r\n");
        server.says("250 reset\r\n");
        assert!(matches!(server.poll(), Action::Ready));
        assert!(!server.client.awaits_reset(), "{ehlo}");
    }
}

#[test]
fn what_nobody_asked_for_ends_the_session() {
    let mut server = Server::ready(EHLO_ALL);
    server.says("250 surprise\r\n");
    assert!(matches!(server.failed(), Failure::Unexpected(_)));
    let mut server = Server::ready(EHLO_ALL);
    server.says("421 4.4.2 idle too long\r\n");
    assert!(matches!(server.failed(), Failure::Ended(_)));
    let mut server = Server::ready(EHLO_ALL);
    server.begin(&["b@c"], "x\r\n");
    server.hears();
    server.gives("x\r\n");
    server.says("HTTP/1.1 400 Bad Request\r\n");
    assert_eq!(shown(&server.done()), "U451");
    assert_eq!(server.failed(), Failure::Protocol(ReplyError::Malformed));
}

#[test]
fn octets_that_make_no_reply_buy_no_time() {
    let mut server = Server::new(config());
    let Action::Read { until } = server.poll() else { panic!("it waits for the greeting") };
    server.now += Duration::from_secs(60);
    server.says("220-a\r\n220");
    assert!(matches!(server.poll(), Action::Read { until: again } if again == until));
    server.client.handle_timeout();
    assert_eq!(server.failed(), Failure::TimedOut);
}

#[test]
fn each_reply_has_its_own_time_although_the_content_went_first() {
    let mut server = Server::ready(EHLO_ALL);
    let timeouts = config().timeouts;
    server.begin(&["b@c"], "x\r\n");
    server.gives("x\r\n");
    let waits = |server: &mut Server| match server.poll() {
        Action::Read { until } => until - server.now,
        other => panic!("{other:?}"),
    };
    assert_eq!(waits(&mut server), timeouts.command, "for the reply to MAIL");
    server.says("250 ok\r\n250 ok\r\n");
    assert_eq!(waits(&mut server), timeouts.final_reply, "for the reply to the content");
}

#[test]
fn quit_ends_well_in_any_case() {
    for reply in ["221 bye\r\n", "421 bye\r\n", "500 what\r\n"] {
        let mut server = Server::ready(EHLO_ALL);
        server.client.quit(server.now);
        assert_eq!(server.hears(), "QUIT\r\n");
        server.says(reply);
        assert!(matches!(server.poll(), Action::Closed));
    }
    let mut server = Server::ready(EHLO_ALL);
    server.client.quit(server.now);
    server.client.handle_eof();
    assert!(matches!(server.poll(), Action::Closed));
}
