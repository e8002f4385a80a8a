//! `postroad user`: the users who may submit mail. Changes the users file itself; a running agent
//! sees the change at the next login.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::path::PathBuf;

use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr};
use serde_json::json;

use super::{Context, Failure, exit};
use crate::policy::users::{EditError, SenderRule, User, UsersFile, password};

/// Manage the users who may submit mail
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  postroad user add alice@example.org              Asks for the password
  postroad user add app --address @example.org < password.txt
  postroad user add alice@example.org --replace    A new password
  postroad user list --json
  postroad user check alice@example.org
  postroad user remove app")]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
    /// The users file; without it the one of the configuration
    #[arg(long, global = true, value_name = "FILE")]
    file: Option<PathBuf>,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Add a user; the password is asked for, or read from standard input
    Add {
        /// The name said at login, such as alice@example.org
        name: String,
        /// Whom the user may send as: user@example.org, @example.org or *; may stand several
        /// times. Without it: the name, when that is an address
        #[arg(long = "address", value_name = "ADDRESS")]
        addresses: Vec<SenderRule>,
        /// Replace a user who exists already, and keep the addresses unless others are given
        #[arg(long)]
        replace: bool,
    },
    /// List the users and whom they may send as
    List,
    /// Remove a user
    Remove {
        /// The name
        name: String,
    },
    /// Check a password; exits with 1 when it is wrong
    Check {
        /// The name
        name: String,
    },
}

pub(super) fn run(args: Args, context: &mut Context) -> Result<(), Failure> {
    let path = match args.file {
        Some(path) => path,
        None => context.config()?.users.file,
    };
    let file = UsersFile::new(path);
    match args.action {
        Action::Add { name, addresses, replace } => add(&file, &name, addresses, replace, context),
        Action::List => list(&file, context),
        Action::Remove { name } => {
            file.remove(&name).map_err(edit_failure)?;
            let name = name.to_lowercase();
            context.say(&json!({ "removed": name }), format_args!("removed {name}"))
        }
        Action::Check { name } => check(&file, &name, context),
    }
}

fn add(
    file: &UsersFile,
    name: &str,
    addresses: Vec<SenderRule>,
    replace: bool,
    context: &mut Context,
) -> Result<(), Failure> {
    let name = User::check_name(name).map_err(|fault| Failure::new(exit::FAILED, fault))?;
    let users = file.read().map_err(edit_failure)?;
    let old = users.get(&name);
    if old.is_some() && !replace {
        let failure = Failure::new(exit::FAILED, format!("there is already a user \"{name}\""));
        return Err(failure.with_remedy("add --replace to set another password, or choose another name"));
    }
    let senders = match (addresses, old, name.parse::<SenderRule>()) {
        (given, _, _) if !given.is_empty() => given,
        (_, Some(old), _) => old.senders.clone(),
        (_, None, Ok(own)) if own != SenderRule::Any => vec![own],
        _ => {
            let failure = Failure::new(exit::FAILED, format!("\"{name}\" is no address, so it cannot send as itself"));
            return Err(failure.with_remedy(format!("say whom it may send as: --address {name}@example.org")));
        }
    };
    let hash = password::hash(&read_password(&name, true)?).map_err(|fault| Failure::new(exit::FAILED, fault))?;
    let had = file.put(&User { name: name.clone(), hash, senders: senders.clone() }).map_err(edit_failure)?;
    let verb = if had { "replaced" } else { "added" };
    let senders = senders.iter().map(ToString::to_string).collect::<Vec<_>>();
    let text = format!("{verb} {name}, who may send as {}", senders.join(", "));
    context.say(&json!({ verb: name, "addresses": senders }), text)
}

fn list(file: &UsersFile, context: &mut Context) -> Result<(), Failure> {
    let users = file.read().map_err(edit_failure)?;
    for fault in users.faults() {
        context.warn(format_args!("{}, {fault}", file.path().display()));
    }
    let senders = |user: &User| user.senders.iter().map(ToString::to_string).collect::<Vec<_>>();
    if context.is_json() {
        let all = users.users().iter().map(|user| json!({ "name": user.name, "addresses": senders(user) }));
        return context.json(&all.collect::<Vec<_>>());
    }
    let width = users.users().iter().map(|user| user.name.chars().count()).max().unwrap_or(0);
    for user in users.users() {
        context.line(format_args!("{:<width$}  {}", user.name, senders(user).join(", ")))?;
    }
    Ok(())
}

fn check(file: &UsersFile, name: &str, context: &mut Context) -> Result<(), Failure> {
    let users = file.read().map_err(edit_failure)?;
    let Some(user) = users.get(name) else { return Err(edit_failure(EditError::Unknown(name.to_owned()))) };
    if !password::verify(&user.hash, &read_password(name, false)?) {
        let remedy = format!("set another one: postroad user add {name} --replace");
        return Err(Failure::new(exit::FAILED, "the password is wrong").with_remedy(remedy));
    }
    context.say(&json!({ "right": true }), "the password is right")
}

fn edit_failure(fault: EditError) -> Failure {
    match &fault {
        EditError::Busy(_) => Failure::new(exit::TRY_LATER, fault.to_string()),
        EditError::Io { fault: why, .. } if why.kind() == io::ErrorKind::NotFound => {
            let remedy = "make its directory first (starting the agent once does), or name another file with --file";
            Failure::new(exit::FAILED, fault.to_string()).with_remedy(remedy)
        }
        EditError::Io { fault: why, .. } if why.kind() == io::ErrorKind::StorageFull => {
            Failure::new(exit::TRY_LATER, fault.to_string()).with_remedy("free some space on that disk")
        }
        EditError::Io { .. } => {
            let remedy = "run the command as the agent's user or as root";
            Failure::new(exit::FAILED, fault.to_string()).with_remedy(remedy)
        }
        EditError::Unknown(_) => Failure::new(exit::FAILED, fault.to_string()),
    }
}

/// Asks for a password on the terminal, twice if it is a new one; or takes the first line of
/// standard input.
fn read_password(name: &str, is_new: bool) -> Result<String, Failure> {
    let failed = |fault: io::Error| {
        Failure::new(exit::FAILED, format!("the password cannot be read: {fault}"))
            .with_remedy("type it on a terminal, or give it on standard input, on one line")
    };
    if !io::stdin().is_terminal() {
        return first_line(io::stdin().lock()).map_err(failed);
    }
    let first = prompt(&format!("Password of {name}: ")).map_err(failed)?;
    if is_new && prompt("Once more: ").map_err(failed)? != first {
        return Err(Failure::new(exit::FAILED, "the two passwords differ").with_remedy("try again"));
    }
    Ok(first)
}

fn first_line(input: impl io::BufRead) -> io::Result<String> {
    let mut line = String::new();
    input.take(password::PASSWORD_OCTETS_MAX as u64 + 2).read_line(&mut line)?;
    let line = line.strip_suffix('\n').unwrap_or(&line);
    let line = line.strip_suffix('\r').unwrap_or(line);
    match line.contains(char::is_control) {
        true => Err(io::Error::other("it has control characters in it")),
        false => Ok(line.to_owned()),
    }
}

/// Reads a line from the terminal without showing it.
pub(super) fn prompt(text: &str) -> io::Result<String> {
    const INTERRUPT: u8 = 3;
    let mut terminal = OpenOptions::new().read(true).write(true).open("/dev/tty")?;
    terminal.write_all(text.as_bytes())?;
    let hidden = Hidden::new(&terminal, INTERRUPT)?;
    // A terminal hands out one line, or what came before the interrupt, at a time.
    let mut line = vec![0; password::PASSWORD_OCTETS_MAX + 2];
    let read = (&terminal).read(&mut line);
    drop(hidden);
    line.truncate(read?);
    terminal.write_all(b"\n")?;
    if line.contains(&INTERRUPT) {
        return Err(io::Error::from(io::ErrorKind::Interrupted));
    }
    first_line(line.as_slice())
}

/// A terminal that does not show what is typed. Ctrl-C ends the line instead of the program, so
/// that the terminal is never left like this.
struct Hidden<'t> {
    terminal: &'t File,
    before: Termios,
}

impl Hidden<'_> {
    fn new(terminal: &File, interrupt: u8) -> io::Result<Hidden<'_>> {
        let before = tcgetattr(terminal)?;
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO | LocalModes::ISIG);
        hidden.local_modes.insert(LocalModes::ICANON);
        hidden.special_codes[SpecialCodeIndex::VEOL] = interrupt;
        tcsetattr(terminal, OptionalActions::Flush, &hidden)?;
        Ok(Hidden { terminal, before })
    }
}

impl Drop for Hidden<'_> {
    fn drop(&mut self) {
        // Nothing better can be done when the terminal is gone.
        let _ = tcsetattr(self.terminal, OptionalActions::Flush, &self.before);
    }
}
