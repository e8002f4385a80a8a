//! Reads dialogues: `.smtp` files in the C:/S: notation of the RFCs. The format is described in
//! README.md beside this file. Included by every test that plays them.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// One dialogue.
#[derive(Debug)]
pub struct Script {
    pub path: PathBuf,
    pub setup: Setup,
    pub steps: Vec<Step>,
}

/// What stands before the first line of the dialogue.
#[derive(Debug, Default)]
pub struct Setup {
    pub hostname: Option<String>,
    pub service: Option<String>,
    pub tls: bool,
    pub starttls: bool,
    pub auth: bool,
    pub require_auth: bool,
    pub release: bool,
    pub link: bool,
    pub atrn: bool,
    pub etrn: bool,
    pub keep: bool,
    /// What challenges of CRAM-MD5 are made of.
    pub cram: Option<String>,
    pub mesh: bool,
    pub live: bool,
    /// What is sent together arrives together, or the dialogue says something else.
    pub whole: bool,
    pub users: Vec<(String, String)>,
    pub limits: Vec<(String, u64)>,
    pub verdicts: Vec<Refusal>,
}

/// A decision of the policy.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// `connect`, `helo`, `mail`, `rcpt`, `content`, `turn`, `start`, `via` or `stored`.
    pub question: String,
    /// What it is about, as on the wire; empty where the question has no subject.
    pub subject: String,
    pub code: u16,
    pub status: Option<(u8, u16, u16)>,
    pub text: String,
    pub close: bool,
}

/// One thing that happens, and the line of the file that says so.
#[derive(Debug)]
pub struct Step {
    pub line: usize,
    pub event: Event,
}

#[derive(Clone, Debug)]
pub enum Event {
    Client(Vec<u8>),
    /// The next line of the server, `...` at the end for anything.
    Server(String),
    /// The next reply of the server, by its code.
    Reply(u16),
    /// Whether a line of the last reply has the keyword.
    Keyword(String, bool),
    Closed,
    /// The peer is the server from now on.
    Turned,
    Handshake,
    /// The connection was handed over, with these octets behind XLINK.
    Linked(Vec<u8>),
    Time(Duration),
    Drain,
    Eof,
    /// An envelope, paths in their brackets, and the content if the script says it.
    Stored {
        envelope: String,
        content: Option<Vec<u8>>,
    },
}

impl Script {
    /// Reads all dialogues below a directory, in order of their paths.
    pub fn all(dir: &Path) -> Vec<Script> {
        let mut paths = Vec::new();
        collect(dir, &mut paths);
        paths.sort();
        paths.into_iter().map(|path| Script::read(&path)).collect()
    }

    /// Reads one dialogue.
    ///
    /// # Panics
    /// With file and line, when it is malformed.
    pub fn read(path: &Path) -> Script {
        let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(text.starts_with("# "), "{}: the first line says what the dialogue shows", path.display());
        let mut script = Script { path: path.to_owned(), setup: Setup::default(), steps: Vec::new() };
        for (i, line) in text.lines().enumerate() {
            let good = script.read_line(i + 1, line);
            good.unwrap_or_else(|| panic!("{}:{}: cannot read {line:?}", path.display(), i + 1));
        }
        script
    }

    /// Returns whether everything the client says may be sent at once.
    pub fn can_pipeline(&self) -> bool {
        let waits = |step: &Step| matches!(step.event, Event::Handshake | Event::Time(_) | Event::Drain | Event::Eof);
        !self.setup.whole && !self.steps.iter().any(waits)
    }

    fn read_line(&mut self, number: usize, line: &str) -> Option<()> {
        if line.trim().is_empty() || line.starts_with('#') {
            return Some(());
        }
        if let Some(text) = line.strip_prefix('|') {
            let Some(Step { event: Event::Stored { content, .. }, .. }) = self.steps.last_mut() else { return None };
            let content = content.get_or_insert_default();
            content.extend(unescape(text.strip_prefix(' ').unwrap_or(text))?);
            content.extend(b"\r\n");
            return Some(());
        }
        if self.steps.is_empty() && self.setup.read_line(line).is_some() {
            return Some(());
        }
        let event = read_event(line)?;
        match (&event, self.steps.last_mut()) {
            (Event::Client(more), Some(Step { event: Event::Client(octets), .. })) => octets.extend(more),
            _ => self.steps.push(Step { line: number, event }),
        }
        Some(())
    }
}

fn collect(dir: &Path, paths: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    for entry in entries {
        let path = entry.expect("a readable directory").path();
        if path.is_dir() {
            collect(&path, paths);
        } else if path.extension().is_some_and(|extension| extension == "smtp") {
            paths.push(path);
        }
    }
}

impl Setup {
    fn read_line(&mut self, line: &str) -> Option<()> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "hostname" => self.hostname = Some(rest.to_owned()),
            "service" => self.service = Some(rest.to_owned()),
            "tls" => self.tls = true,
            "starttls" => self.starttls = true,
            "auth" => self.auth = true,
            "require-auth" => self.require_auth = true,
            "release" => self.release = true,
            "link" => self.link = true,
            "atrn" => self.atrn = true,
            "etrn" => self.etrn = true,
            "keep" => self.keep = true,
            "cram" => self.cram = Some(rest.to_owned()),
            "mesh" => self.mesh = true,
            "live" => self.live = true,
            "whole" => self.whole = true,
            "user" => {
                let (name, password) = rest.split_once(' ')?;
                self.users.push((name.to_owned(), password.to_owned()));
            }
            "limit" => {
                let (name, value) = rest.split_once('=')?;
                self.limits.push((name.to_owned(), value.parse().ok()?));
            }
            "verdict" => self.verdicts.push(read_refusal(rest, false)?),
            "verdict!" => self.verdicts.push(read_refusal(rest, true)?),
            _ => return None,
        }
        Some(())
    }
}

fn read_refusal(text: &str, close: bool) -> Option<Refusal> {
    let (question, rest) = text.split_once(' ')?;
    let has_subject = matches!(question, "helo" | "mail" | "rcpt" | "turn" | "start" | "via");
    let (subject, rest) = if has_subject { rest.split_once(' ')? } else { ("", rest) };
    let (code, rest) = rest.split_once(' ')?;
    let (status, text) = match rest.split_once(' ') {
        Some((word, text)) if read_status(word).is_some() => (read_status(word), text),
        _ => (None, rest),
    };
    let (question, subject, text) = (question.to_owned(), subject.to_owned(), text.to_owned());
    Some(Refusal { question, subject, code: code.parse().ok()?, status, text, close })
}

fn read_status(word: &str) -> Option<(u8, u16, u16)> {
    let mut parts = word.split('.');
    let status = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    parts.next().is_none().then_some(status)
}

fn read_event(line: &str) -> Option<Event> {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    Some(match word {
        "S:" => Event::Server(rest.to_owned()),
        "S*:" => Event::Reply(rest.parse().ok()?),
        "S+" => Event::Keyword(rest.to_owned(), true),
        "S-" => Event::Keyword(rest.to_owned(), false),
        "closed" => Event::Closed,
        "turned" => Event::Turned,
        "handshake" => Event::Handshake,
        "linked" => Event::Linked(unescape(rest)?),
        "drain" => Event::Drain,
        "eof" => Event::Eof,
        "time" => Event::Time(read_time(rest)?),
        "stored" => Event::Stored { envelope: rest.to_owned(), content: None },
        _ => Event::Client(read_client(word, rest)?),
    })
}

/// `C:`, `C!`, and both with a count.
fn read_client(word: &str, rest: &str) -> Option<Vec<u8>> {
    let (word, raw) = match word.strip_suffix('!') {
        Some(word) => (word, true),
        None => (word.strip_suffix(':')?, false),
    };
    let count = match word.strip_prefix('C')? {
        "" => 1,
        count => count.strip_prefix('*')?.parse::<usize>().ok()?,
    };
    let mut octets = unescape(rest)?;
    if !raw {
        octets.extend(b"\r\n");
    }
    Some(octets.repeat(count))
}

fn read_time(text: &str) -> Option<Duration> {
    let text = text.strip_prefix('+')?;
    let (digits, unit) = text.split_at(text.len().checked_sub(1)?);
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return None,
    };
    Some(Duration::from_secs(digits.parse::<u64>().ok()? * seconds))
}

fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let mut octets = text.bytes();
    while let Some(c) = octets.next() {
        if c != b'\\' {
            out.push(c);
            continue;
        }
        out.push(match octets.next()? {
            b'r' => b'\r',
            b'n' => b'\n',
            b't' => b'\t',
            b'0' => 0,
            b'\\' => b'\\',
            b'x' => {
                let hex = [octets.next()?, octets.next()?];
                u8::from_str_radix(std::str::from_utf8(&hex).ok()?, 16).ok()?
            }
            _ => return None,
        });
    }
    Some(out)
}
