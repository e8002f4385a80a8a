//! Sessions with servers that say what a script tells them.

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

use super::*;

/// Answers each command that starts with the first word by the second; returns what it read.
async fn serve(script: Vec<(&'static str, &'static str)>) -> (Server, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let heard = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("a client");
        let (read, mut write) = stream.into_split();
        let (mut lines, mut heard) = (BufReader::new(read), String::new());
        write.write_all(b"220 test ESMTP\r\n").await.expect("sent");
        loop {
            let mut line = String::new();
            if lines.read_line(&mut line).await.unwrap_or(0) == 0 {
                return heard;
            }
            heard.push_str(&line);
            if let Some((_, answer)) = script.iter().find(|(command, _)| line.starts_with(command)) {
                write.write_all(answer.as_bytes()).await.expect("sent");
            }
        }
    });
    let server = Server { host: "127.0.0.1".to_owned(), port, security: Security::Offered, trust: Trust::Any };
    (server, heard)
}

const PLAIN: [(&str, &str); 6] = [
    ("EHLO", "250-test\r\n250 8BITMIME\r\n"),
    ("MAIL", "250 ok\r\n"),
    ("RCPT TO:<bad", "550 5.1.1 no such user\r\n"),
    ("RCPT", "250 ok\r\n"),
    ("DATA", "354 go\r\n"),
    (".\r\n", "250 2.0.0 queued as 7\r\n"),
];

fn address(text: &str) -> Address {
    text.parse().expect("an address")
}

#[tokio::test]
async fn content_arrives_as_it_was_and_a_refused_recipient_does_not_stop_it() {
    let (server, heard) = serve(PLAIN.to_vec()).await;
    let mut session = Session::open(&server, None, "client.test", Arc::default()).await.expect("a session");
    let recipients = [address("bad@x.test"), address("good@x.test")];
    let submitted = session.submit(Some(&address("me@x.test")), &recipients, b"A: b\r\n\r\n.\r\n..\r\nend\r\n").await;
    let submitted = submitted.expect("taken");
    assert_eq!(submitted.reply, "250 2.0.0 queued as 7");
    assert_eq!(submitted.refused, [(address("bad@x.test"), "550 5.1.1 no such user".to_owned())]);
    drop(session);
    let heard = heard.await.expect("no panic");
    assert!(heard.ends_with("DATA\r\nA: b\r\n\r\n..\r\n...\r\nend\r\n.\r\n"), "{heard}");
}

#[tokio::test]
async fn when_all_are_refused_there_is_no_data() {
    let (server, heard) = serve([&PLAIN[..], &[("RSET", "250 ok\r\n")]].concat()).await;
    let mut session = Session::open(&server, None, "client.test", Arc::default()).await.expect("a session");
    let error = session.submit(None, &[address("bad@x.test")], b"A: b\r\n\r\n").await.expect_err("refused");
    assert_eq!(error.to_string(), "RCPT TO:<bad@x.test>: 550 5.1.1 no such user");
    assert!(matches!(error, SubmitError::Refused { transient: false, .. }));
    drop(session);
    assert!(!heard.await.expect("no panic").contains("DATA"));
}

#[tokio::test]
async fn a_password_is_never_said_in_the_clear() {
    let (server, heard) = serve(vec![("EHLO", "250-test\r\n250 AUTH PLAIN LOGIN\r\n")]).await;
    let login = Login { user: "me".to_owned(), password: "secret".to_owned() };
    let error = Session::open(&server, Some(&login), "client.test", Arc::default()).await.err().expect("no session");
    assert!(matches!(error, SubmitError::LoginInTheClear { .. }), "{error}");
    assert!(!heard.await.expect("no panic").contains("AUTH"));
}

#[tokio::test]
async fn tls_that_is_wanted_and_not_offered_ends_the_session() {
    let (server, _) = serve(PLAIN.to_vec()).await;
    let server = Server { security: Security::StartTls, ..server };
    let error = Session::open(&server, None, "client.test", Arc::default()).await.err().expect("no session");
    assert!(matches!(error, SubmitError::NoTls { .. }), "{error}");
}

/// CVE-2011-0411 from the server's side: replies planted in the clear behind the 220.
#[tokio::test]
async fn replies_planted_behind_starttls_are_not_taken_for_secured_ones() {
    let planted = "220 go\r\n250-evil\r\n250 AUTH PLAIN\r\n";
    let (server, heard) = serve(vec![("EHLO", "250-test\r\n250 STARTTLS\r\n"), ("STARTTLS", planted)]).await;
    let login = Login { user: "me".to_owned(), password: "secret".to_owned() };
    let error = Session::open(&server, Some(&login), "client.test", Arc::default()).await.err().expect("no session");
    assert!(matches!(error, SubmitError::Handshake { .. }), "{error}");
    heard.abort();
}

#[tokio::test]
async fn nobody_listening_is_said_with_host_and_port() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    drop(listener);
    let server = Server { host: "127.0.0.1".to_owned(), port, security: Security::None, trust: Trust::Any };
    let error = Session::open(&server, None, "client.test", Arc::default()).await.err().expect("no session");
    assert!(error.to_string().starts_with(&format!("cannot connect to 127.0.0.1:{port}: ")), "{error}");
}
