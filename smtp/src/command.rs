//! One command line and what it says (RFC 5321 §4.1; parameters: RFC 1870, 2852, 3030, 3461, 4865, 4954,
//! 6152, 6531, 6710; ETRN: RFC 1985; ATRN: RFC 2645).
//!
//! Strict where a guess could make two hosts disagree, and tolerant in two places only, both
//! common in real clients and harmless: one space after `FROM:` and `TO:`, and spaces at the end
//! of a line (RFC 5321 §4.1.1). If you hold a [`Command`], everything in it was checked.

use std::str::FromStr;

use crate::domain::Domain;
use crate::envelope::{MailParams, Recipient};
use crate::mailbox::MailboxError;
use crate::node::Node;
use crate::parameter;
use crate::path::{ForwardPath, ReversePath};
use crate::reply::{Reply, Status};

/// The longest command line, its CR LF included. RFC 5321 §4.5.3.1.4 asks for 512 and more for
/// each extension; two long paths in UTF-8 and DSN parameters fit.
pub const COMMAND_OCTETS_MAX: usize = 4096;

/// The longest AUTH line, its CR LF included (RFC 4954 §4).
pub const AUTH_OCTETS_MAX: usize = 12_288;

/// A command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// `EHLO name`. The name is printable and without spaces, and nothing more is known of it.
    Ehlo(&'a str),
    /// `HELO name`.
    Helo(&'a str),
    /// `LHLO name` (RFC 2033).
    Lhlo(&'a str),
    /// `MAIL FROM:<reverse-path> parameters`.
    Mail(Box<Mail>),
    /// `RCPT TO:<forward-path> parameters`.
    Rcpt(Box<Recipient>),
    /// `DATA`.
    Data,
    /// `BDAT octets [LAST]` (RFC 3030).
    Bdat {
        /// How many octets follow the line.
        octets: u64,
        /// Whether they are the last of the message.
        last: bool,
    },
    /// `RSET`.
    Rset,
    /// `NOOP [anything]`.
    Noop,
    /// `QUIT`.
    Quit,
    /// `VRFY`: the argument is not looked at.
    Vrfy,
    /// `HELP`: the argument is not looked at.
    Help,
    /// `STARTTLS` (RFC 3207).
    StartTls,
    /// `AUTH mechanism [initial-response]` (RFC 4954).
    Auth {
        /// The name of the mechanism, as it was written.
        mechanism: &'a str,
        /// The initial response in base64, or `=` for an empty one.
        initial: Option<&'a str>,
    },
    /// `XLINK version`: what follows are no commands but frames between hosts that know each other.
    /// Whoever does not offer it answers as to an unknown command, whatever stands behind the verb.
    XLink(&'a str),
    /// `XVIA node`: what follows are octets between the client and this member of its mesh. Whoever does not
    /// offer it answers as to an unknown command, whatever stands behind the verb.
    XVia(&'a str),
    /// `ATRN [domain,domain…]` (RFC 2645): no domain means all that are the user's.
    Atrn(Vec<Domain>),
    /// `ETRN node` (RFC 1985).
    Etrn(Node),
}

/// What MAIL says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mail {
    /// Who hears of failures.
    pub reverse_path: ReversePath,
    /// The parameters that travel on.
    pub params: MailParams,
    /// SIZE: how many octets the client announces (RFC 1870).
    pub size: Option<u64>,
}

/// Why a line is no command. [`CommandError::reply`] is the one place that says it on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message says what it means")]
pub enum CommandError {
    #[error("a line ends with CR LF, not with LF alone")]
    LineEnd,
    #[error("the line is too long")]
    TooLong,
    #[error("a control character in a command")]
    Control,
    #[error("a command is ASCII or UTF-8")]
    NotUtf8,
    #[error("no such command")]
    Unknown,
    #[error("this command is not implemented")]
    NotImplemented,
    #[error("this command needs an argument")]
    ArgumentMissing,
    #[error("this command takes no argument")]
    ArgumentUnexpected,
    #[error("a host name is printable, at most 255 octets long and has no spaces")]
    HeloName,
    #[error("the syntax is MAIL FROM:<reverse-path> [parameters]")]
    MailSyntax,
    #[error("the syntax is RCPT TO:<forward-path> [parameters]")]
    RcptSyntax,
    #[error("reverse-path: {0}")]
    ReversePath(MailboxError),
    #[error("forward-path: {0}")]
    ForwardPath(MailboxError),
    #[error("a non-ASCII address needs SMTPUTF8")]
    NeedsSmtpUtf8,
    #[error("parameters are KEYWORD or KEYWORD=value, each behind one space")]
    ParameterSyntax,
    #[error("unknown parameter")]
    ParameterUnknown,
    #[error("a parameter stands twice")]
    ParameterDuplicate,
    #[error("SIZE is a number of octets")]
    Size,
    #[error("BODY is 7BIT or 8BITMIME")]
    Body,
    #[error("SMTPUTF8 has no value")]
    SmtpUtf8,
    #[error("RET is FULL or HDRS")]
    Ret,
    #[error("ENVID is printable ASCII in xtext")]
    EnvId,
    #[error("AUTH is a mailbox in xtext or <>")]
    AuthParameter,
    #[error("MT-PRIORITY is a whole number from -9 to 9")]
    Priority,
    #[error("BY is seconds;N or seconds;R, with T behind it or not, and above 0 with R")]
    DeliverBy,
    #[error("HOLDFOR is seconds, at most nine digits")]
    HoldFor,
    #[error("HOLDUNTIL is a date and time such as 2027-01-15T08:00:00Z")]
    HoldUntil,
    #[error("a message has one HOLDFOR or one HOLDUNTIL")]
    HeldTwice,
    #[error("XMESH is the passage of a message through the mesh")]
    Passage,
    #[error("NOTIFY is NEVER or a list of SUCCESS, FAILURE, DELAY")]
    Notify,
    #[error("ORCPT is an address type and a printable address in xtext")]
    OriginalRecipient,
    #[error("the syntax is BDAT octets [LAST]")]
    Bdat,
    #[error("the syntax is ATRN or ATRN domain,domain")]
    Atrn,
    #[error("the syntax is ETRN domain, ETRN @domain or ETRN #queue")]
    Etrn,
    #[error("the syntax is XVIA node, which is small letters and digits")]
    Via,
}

impl CommandError {
    /// Returns what the client hears.
    pub fn reply(&self) -> Reply {
        use CommandError as E;
        let (code, subject, detail) = match self {
            E::LineEnd | E::TooLong | E::Control | E::NotUtf8 | E::Unknown => (500, 5, 2),
            E::NotImplemented => (502, 5, 1),
            E::ReversePath(_) => (501, 1, 7),
            E::ForwardPath(_) => (501, 1, 3),
            E::NeedsSmtpUtf8 => (553, 6, 7),
            E::ParameterUnknown => (555, 5, 4),
            _ => (501, 5, 4),
        };
        Reply::of(code, Some(Status::new(5, subject, detail)), "").with_text(&self.to_string())
    }

    /// Returns whether the session cannot go on: behind a BDAT without a size nobody knows where
    /// commands begin again.
    pub fn is_fatal(&self) -> bool {
        *self == CommandError::Bdat
    }
}

impl From<CommandError> for Reply {
    fn from(error: CommandError) -> Reply {
        error.reply()
    }
}

impl<'a> Command<'a> {
    /// Reads a line, given without its CR LF.
    ///
    /// # Errors
    /// What is wrong with the line.
    pub fn parse(line: &'a [u8]) -> Result<Command<'a>, CommandError> {
        if line.iter().any(u8::is_ascii_control) {
            return Err(CommandError::Control);
        }
        let text = std::str::from_utf8(line).map_err(|_| CommandError::NotUtf8)?.trim_end_matches(' ');
        let (verb, argument) = match text.split_once(' ') {
            Some((verb, argument)) => (verb, Some(argument)),
            None => (text, None),
        };
        let mut upper = [0; 8];
        let upper = upper.get_mut(..verb.len()).ok_or(CommandError::Unknown)?;
        upper.copy_from_slice(verb.as_bytes());
        upper.make_ascii_uppercase();
        match &*upper {
            b"MAIL" => parse_mail(argument).map(|mail| Command::Mail(Box::new(mail))),
            b"RCPT" => parse_rcpt(argument).map(|recipient| Command::Rcpt(Box::new(recipient))),
            b"EHLO" => parse_name(argument).map(Command::Ehlo),
            b"HELO" => parse_name(argument).map(Command::Helo),
            b"LHLO" => parse_name(argument).map(Command::Lhlo),
            b"BDAT" => parse_bdat(argument),
            b"AUTH" => parse_auth(argument),
            b"ATRN" => parse_atrn(argument),
            b"ETRN" => argument.and_then(|node| node.parse().ok()).map(Command::Etrn).ok_or(CommandError::Etrn),
            b"DATA" => alone(argument, Command::Data),
            b"RSET" => alone(argument, Command::Rset),
            b"QUIT" => alone(argument, Command::Quit),
            b"STARTTLS" => alone(argument, Command::StartTls),
            b"NOOP" => Ok(Command::Noop),
            b"XLINK" => Ok(Command::XLink(argument.unwrap_or_default())),
            b"XVIA" => Ok(Command::XVia(argument.unwrap_or_default())),
            b"HELP" => Ok(Command::Help),
            b"VRFY" => argument.map(|_| Command::Vrfy).ok_or(CommandError::ArgumentMissing),
            b"EXPN" | b"TURN" | b"SEND" | b"SOML" | b"SAML" => Err(CommandError::NotImplemented),
            _ => Err(CommandError::Unknown),
        }
    }
}

fn alone<'a>(argument: Option<&str>, command: Command<'a>) -> Result<Command<'a>, CommandError> {
    if argument.is_none() { Ok(command) } else { Err(CommandError::ArgumentUnexpected) }
}

/// Real clients say almost anything here, and RFC 5321 §4.1.4 forbids to refuse mail for it.
fn parse_name(argument: Option<&str>) -> Result<&str, CommandError> {
    let name = argument.ok_or(CommandError::ArgumentMissing)?;
    let good = name.len() <= 255 && !name.chars().any(|c| c.is_control() || c.is_whitespace());
    if good { Ok(name) } else { Err(CommandError::HeloName) }
}

fn parse_mail(argument: Option<&str>) -> Result<Mail, CommandError> {
    let (path, parameters) = split_path(argument, "FROM:").ok_or(CommandError::MailSyntax)?;
    let reverse_path = ReversePath::from_str(path).map_err(CommandError::ReversePath)?;
    let (params, size) = parameter::parse_mail(parameters)?;
    if !params.smtputf8 && !reverse_path.is_ascii() {
        return Err(CommandError::NeedsSmtpUtf8);
    }
    Ok(Mail { reverse_path, params, size })
}

fn parse_rcpt(argument: Option<&str>) -> Result<Recipient, CommandError> {
    let (path, parameters) = split_path(argument, "TO:").ok_or(CommandError::RcptSyntax)?;
    let forward_path = ForwardPath::from_str(path).map_err(CommandError::ForwardPath)?;
    parameter::parse_rcpt(forward_path, parameters)
}

/// Splits `FROM:<path> parameters` at the bracket that closes the path: the first one outside a
/// quoted-string. The parameters come back with the space before them, or empty.
fn split_path<'a>(argument: Option<&'a str>, label: &str) -> Option<(&'a str, &'a str)> {
    let argument = argument?;
    let (start, rest) = (argument.get(..label.len())?, &argument[label.len()..]);
    if !start.eq_ignore_ascii_case(label) {
        return None;
    }
    let path = rest.strip_prefix(' ').unwrap_or(rest).strip_prefix('<')?;
    let (mut quoted, mut escaped) = (false, false);
    for (i, c) in path.bytes().enumerate() {
        match c {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'>' if !quoted => return Some((&path[..i], &path[i + 1..])),
            _ => {}
        }
    }
    None
}

fn parse_bdat<'a>(argument: Option<&str>) -> Result<Command<'a>, CommandError> {
    let argument = argument.ok_or(CommandError::Bdat)?;
    let (octets, last) = match argument.split_once(' ') {
        None => (argument, false),
        Some((octets, last)) if last.eq_ignore_ascii_case("LAST") => (octets, true),
        Some(_) => return Err(CommandError::Bdat),
    };
    let octets = parameter::number(octets).ok_or(CommandError::Bdat)?;
    Ok(Command::Bdat { octets, last })
}

fn parse_auth(argument: Option<&str>) -> Result<Command<'_>, CommandError> {
    let argument = argument.ok_or(CommandError::ArgumentMissing)?;
    match argument.split_once(' ') {
        None => Ok(Command::Auth { mechanism: argument, initial: None }),
        Some((_, initial)) if initial.contains(' ') => Err(CommandError::ArgumentUnexpected),
        Some((mechanism, initial)) => Ok(Command::Auth { mechanism, initial: Some(initial) }),
    }
}

fn parse_atrn<'a>(argument: Option<&str>) -> Result<Command<'a>, CommandError> {
    let domains = argument.into_iter().flat_map(|list| list.split(','));
    let domains = domains.map(|domain| domain.trim().parse()).collect::<Result<Vec<Domain>, _>>();
    domains.map(Command::Atrn).map_err(|_| CommandError::Atrn)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Command<'_>, CommandError> {
        Command::parse(line.as_bytes())
    }

    #[test]
    fn verbs_know_no_case_and_no_trailing_space() {
        for (line, want) in [("data", Command::Data), ("RsEt  ", Command::Rset), ("noop any thing", Command::Noop)] {
            assert_eq!(parse(line), Ok(want), "{line}");
        }
        for line in ["", "DATAX", "MAILFROM:<a@b>", " DATA", "STARTTLSX", "DATA\u{e4}", "EHLO\u{e4}\u{e4}\u{e4}"] {
            assert_eq!(parse(line), Err(CommandError::Unknown), "{line}");
        }
        assert_eq!(parse("DATA now"), Err(CommandError::ArgumentUnexpected));
        assert_eq!(Command::parse(b"RSET\0"), Err(CommandError::Control));
        assert_eq!(Command::parse(b"RS\rET"), Err(CommandError::Control));
        assert_eq!(Command::parse(b"NOOP \xff"), Err(CommandError::NotUtf8));
    }

    #[test]
    fn a_path_ends_at_the_first_bracket_outside_quotes() {
        for path in ["", "a@b", "\"a>b\"@c", "\"a\\\">b\"@c"] {
            let line = format!("MAIL FROM:<{path}> SIZE=3");
            let Ok(Command::Mail(mail)) = parse(&line) else { panic!("{line} is refused") };
            assert_eq!((mail.reverse_path.to_string(), mail.size), (format!("<{path}>"), Some(3)));
        }
        for line in
            ["MAIL", "MAIL a@b", "MAIL FROM:a@b", "MAIL FROM:<a@b", "MAIL FROM:  <a@b>", "MAIL TO:<a@b>", "MAIL FROM"]
        {
            assert_eq!(parse(line), Err(CommandError::MailSyntax), "{line}");
        }
        assert!(matches!(parse("mail from: <a@b>"), Ok(Command::Mail(_))));
        for line in
            ["MAIL FROM:<a@b>SIZE=3", "MAIL FROM:<a@b>  SIZE=3", "MAIL FROM:<a@b> =3", "MAIL FROM:<a@b> SIZE=3=4"]
        {
            assert_eq!(parse(line), Err(CommandError::ParameterSyntax), "{line}");
        }
    }

    #[test]
    fn a_chunk_size_is_digits_only() {
        assert_eq!(parse("BDAT 0 LAST"), Ok(Command::Bdat { octets: 0, last: true }));
        assert_eq!(parse("bdat 18446744073709551615"), Ok(Command::Bdat { octets: u64::MAX, last: false }));
        for size in ["", "-1", "+1", "0x10", "1e3", "1 LAST x", "1 FIRST", "18446744073709551616", "٣", "1,000", " 1"]
        {
            assert_eq!(parse(&format!("BDAT {size}")), Err(CommandError::Bdat), "{size}");
        }
    }

    #[test]
    fn turning_names_domains_or_none() {
        let domains = |line: &str| match parse(line) {
            Ok(Command::Atrn(domains)) => Some(domains.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")),
            _ => None,
        };
        for (line, want) in [
            ("ATRN", Some("")),
            ("atrn Branch.Example", Some("branch.example")),
            ("ATRN a.example,b.example, c.example", Some("a.example b.example c.example")),
            ("ATRN ,", None),
            ("ATRN a.example,", None),
            ("ATRN a.example b.example", None),
            ("ATRN @a.example", None),
        ] {
            assert_eq!(domains(line).as_deref(), want, "{line}");
        }
        for line in ["ETRN", "ETRN ", "ETRN @", "ETRN #", "ETRN a b", "ETRN a..b"] {
            assert_eq!(parse(line), Err(CommandError::Etrn), "{line}");
        }
    }

    #[test]
    fn non_ascii_needs_the_parameter() {
        assert_eq!(parse("MAIL FROM:<jürgen@example.org>"), Err(CommandError::NeedsSmtpUtf8));
        assert!(parse("MAIL FROM:<jürgen@example.org> SMTPUTF8").is_ok());
        assert_eq!(parse("EHLO a b"), Err(CommandError::HeloName));
        assert_eq!(parse("EHLO"), Err(CommandError::ArgumentMissing));
    }
}
