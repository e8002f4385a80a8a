//! The command line: arguments, exit codes and printing. The only place that prints.
//!
//! A command is a file with an `Args` struct and `run(Args, &mut Context)`, and one line in
//! `Command` and in `dispatch`. What it has to say goes through [`Context`], which knows about
//! `--json`, colours and closed pipes.

mod agent;
mod ask;
mod check;
mod demo;
mod docs;
mod explain;
mod mesh;
mod output;
mod patience;
mod queue;
mod run;
mod send;
mod sendmail;
mod trace;
mod user;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

pub use output::{Context, Failure};

/// Exit codes, as in `--help`. They are those of sysexits.h where there is one.
pub mod exit {
    /// The command could not do what it was asked.
    pub const FAILED: u8 = 1;
    /// The arguments are wrong (by clap).
    pub const USAGE: u8 = 2;
    /// A server does not answer (EX_UNAVAILABLE).
    pub const UNAVAILABLE: u8 = 69;
    /// The agent is down, or later it may work (EX_TEMPFAIL).
    pub const TRY_LATER: u8 = 75;
    /// The configuration is wrong (EX_CONFIG).
    pub const CONFIG: u8 = 78;
}

const EXAMPLES: &str = "\
Examples:
  postroad run                                Serve mail in the foreground
  postroad check                              Is the configuration right, and what does it mean?
  postroad user add app --address app@example.org
  postroad queue list                         What waits, and why?
  postroad queue retry --domain example.com
  postroad trace bob@example.com              What became of his mail?
  postroad mesh invite                        Make this host and others one mesh
  postroad send --to bob@example.org          Try a server
  postroad demo                               See it work on this machine
  POSTROAD_CONFIG=./postroad.toml postroad check --json

Exit codes:
   0  done
   1  could not do what was asked
   2  wrong arguments
  69  a server does not answer
  75  the agent does not run, or not possible now: try again later
  78  the configuration is wrong";

/// A mail relay mesh: every host runs the same agent.
#[derive(Debug, Parser)]
#[command(name = "postroad", version, after_help = EXAMPLES, disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Debug, clap::Args)]
struct Common {
    /// The configuration; without it /etc/postroad/postroad.toml, which need not exist
    #[arg(long, global = true, env = "POSTROAD_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON for programs instead of text for people
    #[arg(long, global = true)]
    json: bool,
}

/// The arguments when the command is `run`: an agent that starts need not hear of all the others, which
/// it would keep in memory for as long as it runs.
#[derive(Debug, Parser)]
struct Agent {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Only,
}

#[derive(Debug, Subcommand)]
enum Only {
    Run(run::Args),
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Args),
    Check(check::Args),
    Explain(explain::Args),
    User(user::Args),
    Queue(queue::Args),
    Trace(trace::Args),
    Mesh(mesh::Args),
    Status(agent::Status),
    Reload(agent::Reload),
    Send(send::Args),
    Sendmail(sendmail::Args),
    Demo(demo::Args),
    Completions(docs::Completions),
    Man(docs::Man),
}

fn dispatch(command: Command, context: &mut Context) -> Result<(), Failure> {
    match command {
        Command::Run(args) => run::run(args, context),
        Command::Check(args) => check::run(args, context),
        Command::Explain(args) => explain::run(args, context),
        Command::User(args) => user::run(args, context),
        Command::Queue(args) => queue::run(args, context),
        Command::Trace(args) => trace::run(args, context),
        Command::Mesh(args) => mesh::run(args, context),
        Command::Status(args) => agent::status(args, context),
        Command::Reload(args) => agent::reload(args, context),
        Command::Send(args) => send::run(args, context),
        Command::Sendmail(args) => sendmail::run(args, context),
        Command::Demo(args) => demo::run(args, context),
        Command::Completions(args) => docs::completions(args, context, Cli::command()),
        Command::Man(args) => docs::man(args, context, Cli::command()),
    }
}

/// Runs the command that the arguments name and returns its exit code.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let Cli { common, command } = match sendmail::by_name(&arguments) {
        Some(args) => Cli { common: Common { config: None, json: false }, command: Command::Sendmail(args) },
        None => parse_run(&arguments).unwrap_or_else(|| Cli::parse_from(&arguments)),
    };
    let mut context = Context::new(common.config, common.json);
    let result = dispatch(command, &mut context).and_then(|()| context.flush());
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => context.fail(&failure),
    }
}

/// Reads the arguments of `run`; none of any other command, and where something is to be said about them.
fn parse_run(arguments: &[OsString]) -> Option<Cli> {
    let is_run = arguments.iter().any(|argument| argument == "run");
    let Agent { common, command: Only::Run(args) } = is_run.then(|| Agent::try_parse_from(arguments).ok()).flatten()?;
    Some(Cli { common, command: Command::Run(args) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_started_by_the_same_arguments_as_all_commands() {
        for (line, is_quick) in [
            ("postroad run", true),
            ("postroad --config x run", true),
            ("postroad run --config x --json", true),
            ("postroad --config=run --json run", true),
            ("postroad run --help", false),
            ("postroad run x", false),
            ("postroad --config run check", false),
            ("postroad check", false),
        ] {
            let arguments: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            let quick = parse_run(&arguments);
            assert_eq!(quick.is_some(), is_quick, "{line}");
            if let Some(quick) = quick {
                let full = Cli::try_parse_from(&arguments).expect("it is right");
                assert_eq!(format!("{quick:?}"), format!("{full:?}"), "{line}");
            }
        }
    }

    #[test]
    fn the_arguments_are_consistent_and_every_command_has_examples() {
        let command = Cli::command();
        command.clone().debug_assert();
        for command in command.get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example"), "{} has no examples", command.get_name());
        }
    }
}
