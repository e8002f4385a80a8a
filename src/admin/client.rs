//! The client's half of the control socket, blocking: the command line is one thread.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::request::{Done, Failure, Line, Progress, Request};

/// The longest line taken: a message with very many recipients, each with its last reply.
const LINE_OCTETS_MAX: u64 = 256 << 20;
/// The agent shows progress far more often.
const ANSWER_SECONDS_MAX: u64 = 120;

/// A connection to the agent, for one request.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody answers at the socket.
    #[error("the agent does not run (nobody answers on {path})", path = .0.display())]
    Down(PathBuf),
    /// The socket is not ours to use.
    #[error("no permission to use {path}: run it as root or as the agent's user", path = .0.display())]
    Permission(PathBuf),
    /// The agent cannot do it.
    #[error("{0}")]
    Refused(#[from] Failure),
    /// The connection broke.
    #[error("the agent broke off its answer: {0}")]
    Broken(#[from] io::Error),
    /// The answer cannot be understood.
    #[error("the agent's answer cannot be read ({0}): it may be of another version")]
    Malformed(#[from] serde_json::Error),
}

impl Client {
    /// Connects to the agent whose socket is at `path`.
    ///
    /// # Errors
    /// [`AskError::Down`] when none runs there.
    pub fn connect(path: &Path) -> Result<Client, AskError> {
        let stream = UnixStream::connect(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => AskError::Down(path.to_owned()),
            io::ErrorKind::PermissionDenied => AskError::Permission(path.to_owned()),
            _ => AskError::Broken(error),
        })?;
        stream.set_read_timeout(Some(Duration::from_secs(ANSWER_SECONDS_MAX)))?;
        stream.set_write_timeout(Some(Duration::from_secs(ANSWER_SECONDS_MAX)))?;
        Ok(Client { stream })
    }

    /// Asks, and hands each item and each sign of progress to `each` as it comes. An error of
    /// `each` ends the request.
    ///
    /// # Errors
    /// Those of the agent, the connection and `each`.
    pub fn ask<T, E>(self, request: &Request, mut each: impl FnMut(News<T>) -> Result<(), E>) -> Result<Done, E>
    where
        T: DeserializeOwned,
        E: From<AskError>,
    {
        let lost = |error: io::Error| E::from(AskError::Broken(error));
        (&self.stream).write_all(&request.to_line()).map_err(lost)?;
        let mut reader = BufReader::new(&self.stream);
        let mut line = Vec::new();
        loop {
            line.clear();
            reader.by_ref().take(LINE_OCTETS_MAX).read_until(b'\n', &mut line).map_err(lost)?;
            if !line.ends_with(b"\n") {
                return Err(lost(io::ErrorKind::UnexpectedEof.into()));
            }
            let malformed = |error: serde_json::Error| E::from(AskError::Malformed(error));
            match serde_json::from_slice(&line).map_err(malformed)? {
                Line::Item(item) => each(News::Item(serde_json::from_value(item).map_err(malformed)?))?,
                Line::Progress(progress) => each(News::Progress(progress))?,
                Line::Done(done) => return Ok(done),
                Line::Error(failure) => return Err(AskError::Refused(failure).into()),
            }
        }
    }
}

/// What comes before the end of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum News<T> {
    /// One of what was asked for.
    Item(T),
    /// The work goes on.
    Progress(Progress),
}
