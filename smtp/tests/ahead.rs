//! The envelope of the next message behind the content of the one before (RFC 2920 §3.1).

mod server;

use postroad_smtp::client::Action;
use server::{EHLO_ALL, EHLO_PIPELINING, Server, shown, transaction};

#[test]
fn the_next_envelope_goes_behind_the_content() {
    let mut server = Server::ready(EHLO_PIPELINING);
    server.begin(&["b@c"], "one\r\n");
    assert_eq!(server.hears(), "MAIL FROM:<a@example.org>\r\nRCPT TO:<b@c>\r\nDATA\r\n");
    assert!(!server.client.begin_ahead(transaction(&["d@e"], "")), "there is no content yet to go behind");
    server.says("250 a\r\n250 b\r\n354 go\r\n");
    server.gives("one\r\n");
    assert!(server.client.begin_ahead(transaction(&["d@e", "f@g"], "two\r\n")));
    assert!(!server.client.begin_ahead(transaction(&["h@i"], "")), "one is ahead");
    let second = "MAIL FROM:<a@example.org>\r\nRCPT TO:<d@e>\r\nRCPT TO:<f@g>\r\nDATA\r\n";
    assert_eq!(server.hears(), format!("one\r\n.\r\n{second}"));
    // What comes of one is not what comes of the other, however the replies arrive.
    server.says("451 4.3.0 not now\r\n250 a\r\n550 5.1.1 nobody\r\n250 f\r\n354 go\r\n");
    assert_eq!(shown(&server.done()), "T451");
    assert!(matches!(server.poll(), Action::Ready) && server.client.is_ahead());
    server.begin(&["x@y"], "");
    assert_eq!(shown(&server.done()), "T451", "the connection is for that message alone");
    server.client.quit(server.now);
    assert!(server.client.output().is_empty(), "QUIT would be content");
    assert!(server.client.go_on(server.now));
    server.gives("two\r\n");
    assert_eq!(server.hears(), "two\r\n.\r\n");
    server.says("250 taken\r\n");
    assert_eq!(shown(&server.done()), "P550 A250");
    assert!(matches!(server.poll(), Action::Ready) && !server.client.go_on(server.now));
}

#[test]
fn a_session_that_ends_says_nothing_of_what_was_sent_ahead() {
    for (last_words, want) in [("421 4.3.2 closing\r\n", "T421"), ("250 taken\r\n", "A250"), ("", "U451")] {
        let mut server = Server::ready(EHLO_PIPELINING);
        server.begin(&["b@c"], "one\r\n");
        server.hears();
        server.says("250 a\r\n250 b\r\n354 go\r\n");
        server.gives("one\r\n");
        assert!(server.client.begin_ahead(transaction(&["d@e"], "two\r\n")));
        server.hears();
        server.says(last_words);
        if last_words.is_empty() {
            server.client.handle_eof();
        }
        assert_eq!(shown(&server.done()), want);
        server.client.handle_eof();
        assert!(!server.client.go_on(server.now), "nobody has tried it");
    }
}

#[test]
fn nothing_goes_ahead_where_it_may_not() {
    let many: Vec<String> = (0..99).map(|n| format!("b{n}@c")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    for (ehlo, next) in [("250 mx\r\n", &["d@e"][..]), (EHLO_ALL, &["d@e"]), (EHLO_PIPELINING, &many)] {
        let mut server = Server::ready(ehlo);
        server.begin(&["b@c"], "one\r\n");
        while !matches!(server.poll(), Action::WantContent) {
            let said = server.hears();
            let replies = if said.starts_with("DATA") || said.contains("\r\nDATA") { "354 go\r\n" } else { "" };
            let before = said.matches("\r\n").count() - usize::from(!replies.is_empty());
            server.says(&format!("{}{replies}", "250 ok\r\n".repeat(before)));
        }
        server.gives("one\r\n");
        assert!(!server.client.begin_ahead(transaction(next, "")), "{ehlo}");
    }
}
