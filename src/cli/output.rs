//! What commands say, and how they end: text or JSON on standard output, faults with a remedy on
//! standard error, colours only where they are wanted. A closed pipe ends a command in peace.

use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::builder::styling::{AnsiColor, Style};

use super::exit;
use crate::admin::{AskError, Client};
use crate::config::{Config, ConfigErrors};

/// What every command gets beside its arguments.
pub struct Context {
    config_file: Option<PathBuf>,
    json: bool,
    out: Box<dyn Write>,
}

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    message: String,
    remedy: Option<String>,
    config: Option<Box<ConfigErrors>>,
}

impl Failure {
    /// A failure with one of the codes of [`exit`].
    pub fn new(code: u8, message: impl Into<String>) -> Failure {
        Failure { code, message: message.into(), remedy: None, config: None }
    }

    /// Says what to do about it.
    #[must_use]
    pub fn with_remedy(self, remedy: impl Into<String>) -> Failure {
        Failure { remedy: Some(remedy.into()), ..self }
    }

    /// Returns what is wrong.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Returns the exit code.
    pub fn code(&self) -> u8 {
        self.code
    }
}

impl From<ConfigErrors> for Failure {
    fn from(errors: ConfigErrors) -> Failure {
        let count = errors.faults().len();
        let faults = if count == 1 { "one fault".to_owned() } else { format!("{count} faults") };
        let message = format!("{}: {faults}", errors.name());
        Failure { config: Some(Box::new(errors)), ..Failure::new(exit::CONFIG, message) }
    }
}

impl From<io::Error> for Failure {
    /// A fault of standard output. A reader that went away has read enough.
    fn from(fault: io::Error) -> Failure {
        let code = if fault.kind() == ErrorKind::BrokenPipe { 0 } else { exit::FAILED };
        Failure::new(code, format!("standard output: {fault}"))
    }
}

impl Context {
    pub(super) fn new(config_file: Option<PathBuf>, json: bool) -> Context {
        let out = Box::new(io::BufWriter::new(anstream::AutoStream::auto(io::stdout())));
        Context { config_file, json, out }
    }

    /// A context whose output goes to `out`.
    #[cfg(test)]
    pub(super) fn to(out: Box<dyn Write>, config_file: PathBuf, json: bool) -> Context {
        Context { config_file: Some(config_file), json, out }
    }

    /// Reads the configuration.
    ///
    /// # Errors
    /// Exit code 78, with every fault of the file.
    pub fn config(&self) -> Result<Config, Failure> {
        Ok(Config::find(self.config_file.as_deref())?)
    }

    /// Reads the configuration for a command that asks the agent: one that runs by an earlier configuration is
    /// asked although the file has faults now, for in trouble everybody needs its queue.
    ///
    /// # Errors
    /// As [`Context::config`], when no agent runs either.
    pub fn config_to_ask(&mut self) -> Result<Config, Failure> {
        let file = self.config_file.clone();
        let errors = match Config::find(file.as_deref()) {
            Ok(config) => return Ok(config),
            Err(errors) => errors,
        };
        let Some(config) = Config::whereabouts(file.as_deref()) else { return Err(errors.into()) };
        match Client::connect(&config.control.socket) {
            Err(AskError::Down(_)) => return Err(errors.into()),
            Err(_) => {}
            Ok(_) => {
                let name = errors.name();
                self.warn(format_args!(
                    "{name} is faulty now (see `postroad check`); the agent goes by what it read before"
                ));
            }
        }
        Ok(config)
    }

    /// Returns the configuration file that was named.
    pub fn config_file(&self) -> Option<&Path> {
        self.config_file.as_deref()
    }

    /// Returns whether JSON is wanted instead of text.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Returns standard output: buffered, and without colours where they are not wanted.
    pub fn out(&mut self) -> &mut dyn Write {
        &mut self.out
    }

    /// Prints one line.
    ///
    /// # Errors
    /// Standard output does not take it.
    pub fn line(&mut self, text: impl std::fmt::Display) -> Result<(), Failure> {
        Ok(writeln!(self.out, "{text}")?)
    }

    /// Prints a value as JSON on one line.
    ///
    /// # Errors
    /// Standard output does not take it.
    pub fn json(&mut self, value: &impl serde::Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string(value).map_err(io::Error::from)?;
        self.line(text)
    }

    /// Prints the value with `--json`, the text otherwise.
    ///
    /// # Errors
    /// Standard output does not take it.
    pub fn say(&mut self, value: &serde_json::Value, text: impl std::fmt::Display) -> Result<(), Failure> {
        if self.json { self.json(value) } else { self.line(text) }
    }

    /// Says on standard error what the person should know although the command goes on.
    pub fn warn(&mut self, text: impl std::fmt::Display) {
        let style = Style::new().bold().fg_color(Some(AnsiColor::Yellow.into()));
        // There is nobody left to tell when standard error is closed.
        let _ = writeln!(anstream::stderr(), "{style}warning{style:#}: {text}");
    }

    pub(super) fn flush(&mut self) -> Result<(), Failure> {
        Ok(self.out.flush()?)
    }

    /// Prints a failure and returns its exit code.
    pub(super) fn fail(&mut self, failure: &Failure) -> ExitCode {
        let _ = self.out.flush();
        if failure.code != 0 {
            // There is nobody left to tell when standard error is closed.
            let _ = if self.json { write_json(failure) } else { write_text(failure) };
        }
        ExitCode::from(failure.code)
    }
}

fn write_text(failure: &Failure) -> io::Result<()> {
    let mut err = anstream::stderr();
    if let Some(config) = &failure.config {
        writeln!(err, "{}\n", config.styled())?;
    }
    let style = Style::new().bold().fg_color(Some(AnsiColor::Red.into()));
    writeln!(err, "{style}error{style:#}: {}", failure.message)?;
    match &failure.remedy {
        Some(remedy) => writeln!(err, "  help: {remedy}"),
        None => Ok(()),
    }
}

/// `{"error": {"message", "remedy", "faults": […]}}` on standard error.
fn write_json(failure: &Failure) -> io::Result<()> {
    let faults = failure.config.as_deref().map(faults_json);
    let error = serde_json::json!({ "message": failure.message, "remedy": failure.remedy, "faults": faults });
    writeln!(io::stderr(), "{}", serde_json::json!({ "error": error }))
}

/// Every fault of a configuration with its place.
fn faults_json(errors: &ConfigErrors) -> serde_json::Value {
    let one = |fault| {
        let (line, column) = errors.position(fault).unzip();
        serde_json::json!({
            "file": errors.name(), "line": line, "column": column, "message": fault.message, "remedy": fault.remedy
        })
    };
    errors.faults().iter().map(one).collect()
}
