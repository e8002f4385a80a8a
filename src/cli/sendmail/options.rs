//! The arguments of the sendmail command, in the form that callers have used for forty years: one letter
//! behind a dash, letters without a value together, a value in the same word or the next.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::local::letter::Wish;

/// Options that have a value and change nothing here.
const WITH_VALUE: &[char] = &['B', 'h', 'L', 'O', 'o', 'p', 'U', 'e'];
/// Options that have none and change nothing.
const WITHOUT_VALUE: &[char] = &['m', 'n', 'c', 'x', 'G'];
/// RFC 3461 §4.4.
const ENVID_OCTETS_MAX: usize = 100;

/// What is to be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Take a message.
    #[default]
    Deliver,
    /// Show the queue.
    List,
    /// Try what waits again.
    Retry,
    /// Have the aliases read.
    Aliases,
    /// Speak SMTP with whoever calls.
    Smtp,
    /// Say what there is.
    Help,
}

/// What the arguments say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub mode: Mode,
    pub from_header: bool,
    pub dots_are_text: bool,
    /// The reverse-path where one is named; none in it: the null one.
    pub from: Option<Option<String>>,
    pub name: Option<String>,
    pub notify: Option<Wish>,
    pub headers_only: Option<bool>,
    pub envid: Option<String>,
    pub verbose: bool,
    pub config: Option<PathBuf>,
    pub recipients: Vec<String>,
}

/// Reads the arguments.
///
/// # Errors
/// What is wrong with them.
pub fn read(words: Vec<OsString>) -> Result<Options, String> {
    let mut options = Options::default();
    let mut words = words.into_iter();
    let mut only_recipients = false;
    while let Some(word) = words.next() {
        let word = text(word)?;
        match word.strip_prefix('-') {
            Some(letters) if !only_recipients && !letters.is_empty() => match letters {
                "-" => only_recipients = true,
                "-help" => options.mode = Mode::Help,
                long if long.starts_with('-') => return Err(format!("there is no option {word:?}")),
                letters => read_letters(letters, &mut words, &mut options)?,
            },
            _ => options.recipients.push(word),
        }
    }
    Ok(options)
}

fn text(word: OsString) -> Result<String, String> {
    word.into_string().map_err(|word| format!("{word:?} is no text in UTF-8"))
}

fn read_letters(
    letters: &str,
    words: &mut impl Iterator<Item = OsString>,
    options: &mut Options,
) -> Result<(), String> {
    let mut rest = letters.chars();
    while let Some(letter) = rest.next() {
        match letter {
            't' => options.from_header = true,
            'i' => options.dots_are_text = true,
            'v' => options.verbose = true,
            'I' => options.mode = Mode::Aliases,
            'b' => return read_mode(rest.as_str(), options),
            'q' if rest.as_str().is_empty() => options.mode = Mode::Retry,
            'q' => return Err(format!("-q{} is not done: the agent tries again by itself", rest.as_str())),
            letter if WITHOUT_VALUE.contains(&letter) => {}
            letter => {
                let needs_value = WITH_VALUE.contains(&letter) || "frFNRVCX".contains(letter);
                if !needs_value {
                    return Err(format!("there is no option -{letter}"));
                }
                let value = match rest.as_str() {
                    "" => text(words.next().ok_or_else(|| format!("behind -{letter} stands what it means"))?)?,
                    value => value.to_owned(),
                };
                return read_value(letter, value, options);
            }
        }
    }
    Ok(())
}

fn read_mode(mode: &str, options: &mut Options) -> Result<(), String> {
    match mode {
        "m" => {}
        "p" => options.mode = Mode::List,
        "i" => options.mode = Mode::Aliases,
        "s" => options.mode = Mode::Smtp,
        other => return Err(format!("-b{other} is not done: the agent is started by `postroad run`")),
    }
    Ok(())
}

fn read_value(letter: char, value: String, options: &mut Options) -> Result<(), String> {
    match letter {
        'f' | 'r' => {
            let address = value.trim().trim_start_matches('<').trim_end_matches('>');
            options.from = Some((!address.is_empty()).then(|| address.to_owned()));
        }
        'F' => options.name = Some(value),
        'N' => options.notify = Some(notify(&value)?),
        'R' if value.eq_ignore_ascii_case("full") => options.headers_only = Some(false),
        'R' if value.eq_ignore_ascii_case("hdrs") => options.headers_only = Some(true),
        'R' => return Err("-R is full or hdrs".to_owned()),
        'V' if value.len() <= ENVID_OCTETS_MAX && value.bytes().all(|c| c.is_ascii_graphic()) => {
            options.envid = Some(value);
        }
        'V' => return Err(format!("-V has up to {ENVID_OCTETS_MAX} letters, digits and signs")),
        'C' => options.config = Some(value.into()),
        'X' => return Err("-X is not done: it writes what passes into a file of anybody's choice".to_owned()),
        'o' if value == "i" || value.eq_ignore_ascii_case("IgnoreDots") => options.dots_are_text = true,
        'O' if value.to_ascii_lowercase().replace(' ', "") == "ignoredots=true" => options.dots_are_text = true,
        _ => {}
    }
    Ok(())
}

fn notify(value: &str) -> Result<Wish, String> {
    let mut wish = Wish::default();
    if value.eq_ignore_ascii_case("never") {
        return Ok(wish);
    }
    for word in value.split(',') {
        match word.trim().to_ascii_lowercase().as_str() {
            "success" => wish.success = true,
            "failure" => wish.failure = true,
            "delay" => wish.delay = true,
            _ => return Err("-N is never, or some of success,failure,delay".to_owned()),
        }
    }
    Ok(wish)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(line: &str) -> Result<Options, String> {
        read(line.split(' ').map(|word| if word == "''" { OsString::new() } else { word.into() }).collect())
    }

    #[test]
    fn the_ways_of_callers_are_understood() {
        let to = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let plain = Options { recipients: to(&["root"]), ..Options::default() };
        let header = Options { from_header: true, dots_are_text: true, ..Options::default() };
        let sender = |from: &str| Some((!from.is_empty()).then(|| from.to_owned()));
        for (line, want) in [
            // cron, mdadm, sudo, smartd, git, php, mutt.
            (
                "-i -FCronDaemon -B8BITMIME -oem root",
                Options { name: Some("CronDaemon".into()), dots_are_text: true, ..plain.clone() },
            ),
            ("-t", Options { from_header: true, ..Options::default() }),
            ("-t -i", header.clone()),
            ("-ti", header.clone()),
            ("-t -oi -oem -odb", header.clone()),
            (
                "-oem -oi -f u@h.example -- root",
                Options { from: sender("u@h.example"), dots_are_text: true, ..plain.clone() },
            ),
            ("-O IgnoreDots=true root -f ''", Options { from: sender(""), dots_are_text: true, ..plain.clone() }),
            ("-f<> root", Options { from: sender(""), ..plain.clone() }),
            ("-r u -bm -v root", Options { from: sender("u"), verbose: true, ..plain.clone() }),
            (
                "-N success,delay -R hdrs -V x1 root",
                Options {
                    notify: Some(Wish { success: true, failure: false, delay: true }),
                    headers_only: Some(true),
                    envid: Some("x1".into()),
                    ..plain.clone()
                },
            ),
            ("-- -t root", Options { recipients: to(&["-t", "root"]), ..Options::default() }),
            ("-bp", Options { mode: Mode::List, ..Options::default() }),
            ("-q", Options { mode: Mode::Retry, ..Options::default() }),
        ] {
            assert_eq!(options(line), Ok(want), "{line}");
        }
    }

    #[test]
    fn what_is_not_done_is_said() {
        for (line, want) in [
            ("-Z", "no option -Z"),
            ("-tZ root", "no option -Z"),
            ("--version", "no option"),
            ("-f", "behind -f"),
            ("-X log", "-X is not done"),
            ("-bd -q30m", "-bd is not done"),
            ("-N sometimes", "-N is"),
            ("-V a\u{1}b", "-V has"),
        ] {
            let fault = options(line).expect_err(line);
            assert!(fault.contains(want), "{line}: {fault}");
        }
    }
}
