//! Every reply the server makes itself, in one table: a change here is a change on the wire.

use std::fmt::Write;

use postroad_smtp::command::CommandError;
use postroad_smtp::domain::DomainError;
use postroad_smtp::mailbox::MailboxError;
use postroad_smtp::server::REPLIES;

const GOLDEN: &str = include_str!("replies.txt");

fn table() -> String {
    let mut table = String::new();
    for (name, reply) in REPLIES {
        writeln!(table, "{name:<22} {reply}").expect("a string takes everything");
    }
    for error in command_errors() {
        let end = if error.is_fatal() { " (and closes)" } else { "" };
        let name = format!("{error:?}");
        writeln!(table, "CommandError::{name:<22} {}{end}", error.reply()).expect("a string takes everything");
    }
    table
}

/// One of each; the match below makes the compiler ask for new ones.
fn command_errors() -> Vec<CommandError> {
    use CommandError as E;
    let all = vec![
        E::LineEnd,
        E::TooLong,
        E::Control,
        E::NotUtf8,
        E::Unknown,
        E::NotImplemented,
        E::ArgumentMissing,
        E::ArgumentUnexpected,
        E::HeloName,
        E::MailSyntax,
        E::RcptSyntax,
        E::ReversePath(MailboxError::LocalPart),
        E::ForwardPath(MailboxError::Host(DomainError::TooLong)),
        E::NeedsSmtpUtf8,
        E::ParameterSyntax,
        E::ParameterUnknown,
        E::ParameterDuplicate,
        E::Size,
        E::Body,
        E::SmtpUtf8,
        E::Ret,
        E::EnvId,
        E::AuthParameter,
        E::Priority,
        E::DeliverBy,
        E::HoldFor,
        E::HoldUntil,
        E::HeldTwice,
        E::Passage,
        E::Notify,
        E::OriginalRecipient,
        E::Bdat,
        E::Atrn,
        E::Etrn,
        E::Via,
    ];
    for error in &all {
        match error {
            E::LineEnd | E::TooLong | E::Control | E::NotUtf8 | E::Unknown | E::NotImplemented => {}
            E::ArgumentMissing | E::ArgumentUnexpected | E::HeloName | E::MailSyntax | E::RcptSyntax => {}
            E::ReversePath(_) | E::ForwardPath(_) | E::NeedsSmtpUtf8 | E::ParameterSyntax => {}
            E::ParameterUnknown | E::ParameterDuplicate | E::Size | E::Body | E::SmtpUtf8 | E::Ret => {}
            E::EnvId | E::AuthParameter | E::Priority | E::Notify | E::OriginalRecipient => {}
            E::DeliverBy | E::HoldFor | E::HoldUntil | E::HeldTwice | E::Passage | E::Bdat => {}
            E::Atrn | E::Etrn | E::Via => {}
        }
    }
    all
}

#[test]
fn the_table_of_replies_is_as_agreed() {
    let table = table();
    assert!(table == GOLDEN, "replies.txt says something else; if this is meant, it becomes:\n{table}");
}

#[test]
fn a_status_agrees_with_its_code() {
    for (name, reply) in REPLIES {
        if let Some(status) = reply.status {
            assert_eq!(u16::from(status.class), reply.code.get() / 100, "{name}");
        }
        assert!(reply.text.is_ascii() && !reply.text.contains('\n'), "{name}");
    }
}
