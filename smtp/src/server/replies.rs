//! Every fixed reply the server session sends; `tests/replies.rs` prints the table.
//!
//! Replies to malformed commands are in [`CommandError::reply`](crate::command::CommandError::reply),
//! refusals come from the shell's verdicts.

use crate::reply::{Reply, Status};

macro_rules! replies {
    ($($name:ident: $code:literal $(($class:literal, $subject:literal, $detail:literal))? $text:literal;)*) => {
        $(pub(super) static $name: Reply = Reply::of($code, replies!(@status $($class, $subject, $detail)?), $text);)*
        /// All of them with their names, for the golden test.
        pub static ALL: &[(&str, &Reply)] = &[$((stringify!($name), &$name)),*];
    };
    (@status) => { None };
    (@status $class:literal, $subject:literal, $detail:literal) => { Some(Status::new($class, $subject, $detail)) };
}

replies! {
    HELP: 214 (2, 0, 0) "see RFC 5321";
    STARTTLS_READY: 220 (2, 0, 0) "ready to start TLS";
    THROUGH: 220 (2, 0, 0) "octets pass from here on, TLS first";
    BYE: 221 (2, 0, 0) "bye";
    AUTHENTICATED: 235 (2, 7, 0) "authentication succeeded";
    OK: 250 (2, 0, 0) "ok";
    SENDER_OK: 250 (2, 1, 0) "sender ok";
    PRIORITY_LOWERED: 250 (2, 3, 6) "0 is the priority of this message; a higher one needs a login or a known network";
    RECIPIENT_OK: 250 (2, 1, 5) "recipient ok";
    LINKED: 250 (2, 0, 0) "frames from here on";
    CHUNK_OK: 250 (2, 0, 0) "chunk received";
    TURNING: 250 (2, 0, 0) "ok, now reversing the connection";
    CANNOT_VERIFY: 252 (2, 1, 5) "not verified; send some mail";
    SEND_CONTENT: 354 "end data with <CR><LF>.<CR><LF>";
    SHUTTING_DOWN: 421 (4, 3, 2) "shutting down, try again later";
    TIMED_OUT: 421 (4, 4, 2) "timed out waiting for the client";
    TOO_MANY_ERRORS: 421 (4, 7, 0) "too many errors";
    TOO_MANY_REFUSALS: 421 (4, 7, 0) "too many refusals";
    TOO_MANY_COMMANDS: 421 (4, 7, 0) "too many commands without a message";
    TOO_MANY_RECIPIENTS: 452 (4, 5, 3) "too many recipients; send the others in another transaction";
    AUTH_UNDECIDED: 454 (4, 7, 0) "authentication is not possible now";
    ENDLESS_LINE: 500 (5, 5, 2) "the line does not end";
    AUTH_TOO_LONG: 500 (5, 5, 6) "the authentication line is too long";
    AUTH_CANCELLED: 501 (5, 7, 0) "authentication cancelled";
    AUTH_MALFORMED: 501 (5, 5, 2) "malformed authentication response";
    WRONG_HELLO: 500 (5, 5, 1) "this greeting belongs to another protocol";
    NOT_OFFERED: 502 (5, 5, 1) "this command is not offered here";
    HELLO_FIRST: 503 (5, 5, 1) "send EHLO or HELO first";
    MAIL_FIRST: 503 (5, 5, 1) "send MAIL first";
    RCPT_FIRST: 503 (5, 5, 1) "send RCPT first";
    NESTED_MAIL: 503 (5, 5, 1) "a transaction is open already; send RSET to abandon it";
    AMID_CHUNKS: 503 (5, 5, 1) "the message continues with BDAT; send RSET to abandon it";
    AMID_TRANSACTION: 503 (5, 5, 1) "not possible in a transaction";
    ALREADY_TLS: 503 (5, 5, 1) "TLS is active already";
    ALREADY_AUTHENTICATED: 503 (5, 5, 1) "authenticated already";
    AUTH_MECHANISM: 504 (5, 5, 4) "unknown authentication mechanism; PLAIN and LOGIN are offered";
    LINK_VERSION: 504 (5, 5, 4) "links of version 1 are spoken here";
    AUTH_FIRST: 530 (5, 7, 0) "authentication required";
    TLS_FIRST: 530 (5, 7, 0) "send STARTTLS first";
    AUTH_FOREIGN: 535 (5, 7, 8) "acting for another user is not allowed";
    AUTH_NEEDS_TLS: 538 (5, 7, 11) "authentication needs TLS; send STARTTLS first";
    TOO_LARGE: 552 (5, 3, 4) "the message is larger than this host accepts";
    HELD_TOO_LONG: 554 (5, 5, 4) "the release lies further ahead than this host offers with FUTURERELEASE";
    NO_RECIPIENTS: 554 (5, 5, 1) "no valid recipients";
    NOT_SMTP: 554 (5, 5, 1) "this is an SMTP server";
    INJECTED: 554 (5, 5, 1) "octets behind STARTTLS before TLS began";
    TURNED_EARLY: 554 (5, 5, 1) "octets behind ATRN before it was answered";
    THROUGH_EARLY: 554 (5, 5, 1) "octets behind XVIA before it was answered";
    BAD_CONTENT: 554 (5, 6, 0) "the message has a bare CR, a bare LF or a NUL; lines end with CR LF";
}
