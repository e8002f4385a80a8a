//! `queue cat`: a message as it lies on disk. Nothing is asked of the agent, and nothing changed.

use std::io::{self, BufRead as _, BufReader, Read as _};

use postroad_queue::{ContentStream, LoadError};

use super::list::missing;
use super::offline::read;
use super::screen::Look;
use crate::admin::Id;
use crate::cli::{Context, Failure, exit};
use crate::config::Config;
use crate::telemetry::escaped;

/// The longest piece of a line that is shown at once.
const PIECE_OCTETS_MAX: u64 = 64 * 1024;

/// Prints the content of messages: octet for octet, on a terminal with all escaped that it would obey.
pub fn cat(config: &Config, look: Look, ids: &[Id], context: &mut Context) -> Result<(), Failure> {
    if look == Look::Json {
        return Err(Failure::new(exit::USAGE, "a message is no JSON")
            .with_remedy("leave --json out; `queue show --json` tells all about a message but its content"));
    }
    let snapshot = read(config)?;
    for id in ids {
        let content = match snapshot.content(id.0) {
            Ok(content) => content.stream(),
            Err(LoadError::Unknown(_)) => return missing(&[*id]),
            Err(error) => return Err(Failure::new(exit::FAILED, error.to_string())),
        };
        match look {
            Look::Table => show(content, context),
            // What prints texts would take out what looks like colours.
            _ => io::copy(&mut BufReader::new(content), &mut io::stdout().lock()).map(drop),
        }
        .map_err(|error| broken(*id, error))?;
    }
    Ok(())
}

fn show(content: ContentStream, context: &mut Context) -> io::Result<()> {
    let (mut reader, mut line) = (BufReader::new(content), Vec::new());
    while reader.by_ref().take(PIECE_OCTETS_MAX).read_until(b'\n', &mut line)? > 0 {
        let text = line.strip_suffix(b"\n").map_or(&*line, |text| text.strip_suffix(b"\r").unwrap_or(text));
        writeln!(context.out(), "{}", escaped(&String::from_utf8_lossy(text)))?;
        line.clear();
    }
    Ok(())
}

/// A reader that went away has read enough; all else is said with the message that it is about.
fn broken(id: Id, error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::from(error),
        _ => Failure::new(exit::FAILED, format!("{id} cannot be printed: {error}"))
            .with_remedy("`postroad queue verify` says whether it is damaged"),
    }
}
