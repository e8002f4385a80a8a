//! Hands a letter to the agent: SMTP over a socket of this host, by the client's half of a session. The
//! command does so over the agent's socket, and the agent itself, for what was left in the drop directory,
//! over a pair of its own; one way in, and one set of rules.
//!
//! Blocking: the command has nothing else to do, and the agent does it on a thread for such work.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use postroad_smtp::client::{Action, Answer, Config, Failure, Session, Timeouts, TlsNeed, Transaction};
use postroad_smtp::line::Input;
use postroad_smtp::mailbox::MailboxError;
use postroad_smtp::{Domain, MailParams, Notify, Recipient, Ret, ReversePath};

use super::letter::{self, Slip};
use super::{HEADER_OCTETS_MAX, header};

/// Octets handed over at a time.
const PIECE_OCTETS: usize = 64 * 1024;
/// The longest greeting that is looked at, in octets (RFC 5321 §4.5.3.1.5).
const GREETING_OCTETS_MAX: usize = 512;
/// How long the agent may take to greet and to answer a command: it is on this host, and where it hangs there
/// is another way.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// Why nobody knows what the agent makes of a letter.
#[derive(Debug, thiserror::Error)]
pub enum HandOverError {
    /// The agent is not there or does not answer.
    #[error(transparent)]
    Session(#[from] Failure),
    /// An address that is none.
    #[error("{address:?} is no address: {why}")]
    Address {
        /// What stands there.
        address: String,
        /// What is wrong with it.
        why: MailboxError,
    },
    /// The letter cannot be read.
    #[error("it cannot be read: {0}")]
    Unreadable(io::Error),
    /// Its header section is too long, or its lengths are not those of its content.
    #[error("its lengths are wrong")]
    Lengths,
}

/// Hands a letter over; one answer for each recipient of the slip, in order. `content` gives as many octets
/// as the slip says.
///
/// # Errors
/// Nothing is known; a letter handed over again may then arrive twice.
pub fn hand_over(stream: UnixStream, slip: &Slip, content: &mut dyn Read) -> Result<Vec<Answer>, HandOverError> {
    if slip.header_octets > (HEADER_OCTETS_MAX + 2) as u64 || slip.header_octets > slip.octets {
        return Err(HandOverError::Lengths);
    }
    let mut section = vec![0; slip.header_octets as usize];
    content.read_exact(&mut section).map_err(HandOverError::Unreadable)?;
    let mut wire = Wire::greeted(stream)?;
    let host = wire.host()?;
    let section = header::completed(&section, slip, &host);
    let text_octets = slip.octets - slip.header_octets;
    let transaction = transaction(slip, &host, section.len() as u64 + text_octets)?;
    let mut config = Config::new(host.as_str());
    config.tls = TlsNeed::Never;
    config.timeouts = Timeouts { greeting: ANSWER_LIMIT, command: ANSWER_LIMIT, data: ANSWER_LIMIT, ..config.timeouts };
    let mut session = Session::new(config, false, Instant::now());
    let mut transaction = Some(transaction);
    loop {
        match session.poll(&mut wire.input, Instant::now()) {
            Action::Read { until } => wire.exchange(&mut session, until),
            Action::Ready => match transaction.take() {
                Some(transaction) => session.begin(transaction, Instant::now()),
                None => return Err(Failure::Lost.into()),
            },
            Action::WantContent => {
                let text = &mut content.take(text_octets);
                send_content(&mut session, &mut wire, &section, text).map_err(HandOverError::Unreadable)?;
            }
            Action::Done(answers) => {
                // What the agent makes of it no longer matters.
                session.quit(Instant::now());
                let _ = wire.stream.write_all(session.output());
                return Ok(answers);
            }
            Action::Failed(failure) => return Err(failure.into()),
            Action::Closed | Action::StartTls | Action::HandOver | Action::NotTurned(_) => {
                return Err(Failure::Lost.into());
            }
        }
    }
}

/// The stream, and what was read of it.
struct Wire {
    stream: UnixStream,
    input: Input,
}

impl Wire {
    /// Reads the first line: it has the name of the host, which completes addresses.
    fn greeted(stream: UnixStream) -> Result<Wire, HandOverError> {
        let limit = Some(ANSWER_LIMIT);
        let limited = stream.set_read_timeout(limit).and_then(|()| stream.set_write_timeout(limit));
        limited.map_err(|_| Failure::Lost)?;
        let mut wire = Wire { stream, input: Input::new() };
        while !wire.input.unread().contains(&b'\n') && wire.input.len() < GREETING_OCTETS_MAX {
            match wire.fill() {
                Ok(0) => return Err(Failure::Lost.into()),
                Ok(_) => {}
                Err(error) => return Err(failure(&error).into()),
            }
        }
        Ok(wire)
    }

    /// Returns the name in the greeting.
    fn host(&self) -> Result<Domain, HandOverError> {
        let text = String::from_utf8_lossy(self.input.unread());
        let host = text.split([' ', '\r', '\n']).nth(1).and_then(|name| name.parse().ok());
        // Without one it is a refusal, which has to be read first.
        Ok(host.unwrap_or_else(|| "localhost".parse().expect("localhost is a domain")))
    }

    fn fill(&mut self) -> io::Result<usize> {
        let mut octets = [0; 4096];
        let n = self.stream.read(&mut octets)?;
        self.input.extend(&octets[..n]);
        Ok(n)
    }

    /// Writes what waits and reads what comes.
    fn exchange(&mut self, session: &mut Session, until: Instant) {
        // A fault is not the end yet: what the agent said before it is read first.
        let _ = self.stream.write_all(session.output());
        session.output().clear();
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        match self.stream.set_read_timeout(Some(left)).and_then(|()| self.fill()) {
            Ok(0) => session.handle_eof(),
            Ok(_) => {}
            Err(error) if failure(&error) == Failure::TimedOut => session.handle_timeout(),
            Err(_) => session.handle_eof(),
        }
    }
}

fn failure(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Failure::TimedOut,
        _ => Failure::Lost,
    }
}

/// Gives the session the content. Where the agent takes no more of it, what it says next is the answer.
fn send_content(session: &mut Session, wire: &mut Wire, section: &[u8], text: &mut dyn Read) -> io::Result<()> {
    session.content(section);
    let mut piece = vec![0; PIECE_OCTETS];
    loop {
        let n = text.read(&mut piece)?;
        if n == 0 {
            break;
        }
        session.content(&piece[..n]);
        if wire.stream.write_all(session.output()).is_err() {
            session.output().clear();
            session.content_abort();
            return Ok(());
        }
        session.output().clear();
    }
    session.content_end(Instant::now());
    Ok(())
}

fn transaction(slip: &Slip, host: &Domain, content_octets: u64) -> Result<Transaction, HandOverError> {
    let malformed = |address: &str, why| HandOverError::Address { address: address.to_owned(), why };
    let reverse_path: ReversePath =
        letter::reverse_path(slip, host).map_err(|why| malformed(slip.from.as_deref().unwrap_or_default(), why))?;
    let notify = slip.notify.map(|wish| Notify { success: wish.success, failure: wish.failure, delay: wish.delay });
    let mut recipients = Vec::with_capacity(slip.to.len());
    for address in &slip.to {
        let forward_path = letter::forward_path(address, host).map_err(|why| malformed(address, why))?;
        recipients.push(Recipient { notify, ..Recipient::new(forward_path) });
    }
    let ret = slip.headers_only.map(|headers| if headers { Ret::Headers } else { Ret::Full });
    let envid = slip.envid.as_deref().map(Into::into);
    let params = MailParams { eight_bit: slip.eight_bit, ret, envid, ..MailParams::default() };
    Ok(Transaction { reverse_path, params, recipients, content_octets, needs_smtputf8: false })
}
