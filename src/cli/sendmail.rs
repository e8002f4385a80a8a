//! `postroad sendmail`, and what the program does under the names `sendmail`, `mailq` and `newaliases`: the way in for the
//! programs of a host that know nothing of SMTP.
//!
//! Runs as whoever calls it, with no right that they do not have. It starts no program, and of the environment it looks
//! at LOGNAME alone, for users that are not in /etc/passwd. What the agent says becomes the exit code and the words on standard error.
//! Where no agent answers, or it cannot take the message now, the message is put into the drop directory.

mod options;

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;

use clap::{CommandFactory as _, Parser as _};
use postroad_smtp::client::Answer;
use postroad_smtp::{Reply, Status};

use super::ask::ask;
use super::{Cli, Context, Failure, dispatch, exit};
use crate::admin::view::ActView;
use crate::admin::{Action, AskError, Client, Filter, Request};
use crate::config::Config;
use crate::local::hand_over::{HandOverError, hand_over};
use crate::local::letter::{LetterError, Order, Slip, compose};
use crate::local::{Place, drop};
use crate::telemetry::escaped;
use options::{Mode, Options};

/// Codes of sysexits.h beside those of [`exit`].
mod sysexits {
    pub const USAGE: u8 = 64;
    pub const DATA_ERROR: u8 = 65;
    pub const NO_USER: u8 = 67;
    pub const NO_HOST: u8 = 68;
    pub const UNAVAILABLE: u8 = 69;
    pub const SOFTWARE: u8 = 70;
    pub const CANNOT_CREATE: u8 = 73;
    pub const IO_ERROR: u8 = 74;
    pub const NO_PERMISSION: u8 = 77;
}

/// Where the state directory is when no file says otherwise, or this user may not read it.
const STATE_DIR_DEFAULT: &str = "/var/lib/postroad";
const PASSWD_OCTETS_MAX: u64 = 4 << 20;
const LOGIN_OCTETS_MAX: usize = 64;

/// Take mail from a program of this host, as every MTA's sendmail does
///
/// The message is read from standard input. It is also what the program does when it is called
/// under the name sendmail; as mailq it shows what waits, as newaliases it has the aliases read.
#[derive(Debug, clap::Args)]
#[command(
    disable_help_flag = true,
    after_help = "\
Options, as sendmail has them:
  -t           Add the recipients of To, Cc and Bcc
  -i, -oi      A line with a lone dot does not end the message
  -f ADDRESS   Who hears of failures, as does -r; '' and '<>': nobody
  -F NAME      The name in a From field that has to be added
  -N LIST      When to notify: never, or of success, failure, delay
  -R WHAT      What of the message a notification returns: full or hdrs
  -V ID        The name of the message in notifications
  -C FILE      The configuration
  -v           Say what became of it
  -bp          Show what waits (mailq); -q: try it again now; -bm: the default
  -bi, -I      Check the aliases and have the agent read them (newaliases)
  --           What follows are recipients
-B -h -L -m -n -O -o -p -U -e -c -x and -G are taken and change nothing; -bs, -bd, -X and others are refused.

An address without a domain is one of this host. While no agent runs the message is kept in the drop
directory, and the next agent takes it.

Exit codes, of sysexits.h:
   0  taken: it is on stable storage
  64  wrong arguments        65  the message or an address is malformed
  67  no such mailbox        68  no such domain        69  refused
  73  no drop directory      74  standard input        75  not now: try again later
  77  not allowed            78  the configuration is not there

Examples:
  printf 'Subject: disk\\n\\nfull\\n' | postroad sendmail root
  postroad sendmail -t -i < message.eml
  postroad sendmail -f '' -- bob@example.org < notice.eml
  ln -s postroad /usr/bin/mailq; ln -s ../bin/postroad /usr/sbin/sendmail"
)]
pub(super) struct Args {
    /// Options and recipients
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTION|RECIPIENT")]
    words: Vec<OsString>,
}

/// Returns the arguments of this command when the program was called by a name that every MTA has.
pub(super) fn by_name(arguments: &[OsString]) -> Option<Args> {
    let (name, words) = arguments.split_first()?;
    let mode = match Path::new(name).file_name().and_then(OsStr::to_str)? {
        "sendmail" => None,
        "mailq" => Some("-bp".into()),
        "newaliases" => Some("-bi".into()),
        _ => return None,
    };
    Some(Args { words: mode.into_iter().chain(words.iter().cloned()).collect() })
}

pub(super) fn run(args: Args, context: &mut Context) -> Result<(), Failure> {
    let usage = |fault| Failure::new(sysexits::USAGE, fault).with_remedy("see `postroad sendmail --help`");
    let options = options::read(args.words).map_err(usage)?;
    let file = options.config.clone().or_else(|| context.config_file().map(Path::to_owned));
    match options.mode {
        Mode::Help => {
            let mut cli = Cli::command();
            let help = cli.find_subcommand_mut("sendmail").map(|command| command.render_long_help().to_string());
            context.line(help.unwrap_or_default().trim_end())
        }
        Mode::Aliases => {
            let config = Context::new(file, false).config()?;
            match Client::connect(&config.control.socket) {
                // An agent that starts reads them.
                Err(AskError::Down(_)) => Ok(()),
                _ => Ok(ask(&config, &Request::Reload {}, |_: serde_json::Value| Ok(())).map(drop)?),
            }
        }
        Mode::Smtp => Err(Failure::new(sysexits::UNAVAILABLE, "-bs is not done")
            .with_remedy("speak SMTP with the agent itself, at 127.0.0.1:25")),
        Mode::Deliver => deliver(options, file.as_deref(), context),
        Mode::List => {
            let mut context = Context::new(file, context.is_json());
            let list = Cli::parse_from(["postroad", "queue", "list"]);
            dispatch(list.command, &mut context).and_then(|()| context.flush())
        }
        Mode::Retry => {
            let config = Context::new(file, false).config_to_ask()?;
            let all = Filter { all: true, ..Filter::default() };
            let request = Request::Act { action: Action::Retry, filter: all, dry_run: false, limit: None };
            Ok(ask(&config, &request, |_: ActView| Ok(())).map(drop)?)
        }
    }
}

fn deliver(options: Options, file: Option<&Path>, context: &mut Context) -> Result<(), Failure> {
    let place = place(file)?;
    let user = login_name();
    let slip = Slip {
        from: options.from.unwrap_or_else(|| Some(user.clone())),
        user,
        name: options.name,
        to: options.recipients,
        notify: options.notify,
        headers_only: options.headers_only,
        envid: options.envid,
        ..Slip::default()
    };
    let order = Order { slip, from_header: options.from_header, dots_are_text: options.dots_are_text };
    let mut letter = compose(&mut io::stdin().lock(), order).map_err(|error| not_composed(&error))?;
    let mut say = |text: String| if options.verbose { context.line(escaped(&text)) } else { Ok(()) };
    let answers = match UnixStream::connect(place.socket()) {
        Ok(stream) => hand_over(stream, &letter.slip, &mut &*letter.content),
        Err(_) => Err(postroad_smtp::client::Failure::Lost.into()),
    };
    let refused = match answers {
        Ok(answers) => {
            for (address, answer) in letter.slip.to.iter().zip(&answers) {
                say(format!("{address}: {}", answer.reply()))?;
            }
            sort(&mut letter.slip, answers)
        }
        Err(HandOverError::Session(failure)) => {
            say(format!("the agent does not answer: {failure}"))?;
            Vec::new()
        }
        Err(error) => return Err(Failure::new(sysexits::SOFTWARE, error.to_string())),
    };
    if !letter.slip.to.is_empty() {
        drop::put(&place.drop_directory(), &letter).map_err(|error| not_kept(&error, &place))?;
        // One that has come up by now looks there.
        let _ = UnixStream::connect(place.socket());
        say("kept until the agent takes it".to_owned())?;
    }
    if refused.is_empty() { Ok(()) } else { Err(refusal(&refused)) }
}

/// Leaves those recipients that are to be tried again, and returns those that are refused.
fn sort(slip: &mut Slip, answers: Vec<Answer>) -> Vec<(String, Reply)> {
    let mut refused = Vec::new();
    let to = std::mem::take(&mut slip.to);
    for (address, answer) in to.into_iter().zip(answers) {
        match answer {
            Answer::Accepted(_) => {}
            Answer::Permanent(reply) => refused.push((address, reply)),
            Answer::Transient(_) | Answer::Unknown(_) => slip.to.push(address),
        }
    }
    refused
}

/// The place of the agent whose configuration is meant. Users may not read the usual one, and need not.
fn place(file: Option<&Path>) -> Result<Place, Failure> {
    match (Config::whereabouts(file), file) {
        (Some(config), _) => Ok(Place::of(&config.state_dir)),
        (None, None) => Ok(Place::of(Path::new(STATE_DIR_DEFAULT))),
        (None, Some(file)) => {
            Err(Failure::new(exit::CONFIG, format!("the configuration {} cannot be read", file.display()))
                .with_remedy("check the name, or leave it out"))
        }
    }
}

/// Returns the name of the user who runs this.
fn login_name() -> String {
    let uid = rustix::process::getuid().as_raw();
    let mut passwd = String::new();
    if let Ok(file) = std::fs::File::open("/etc/passwd") {
        // A file that is no text names nobody.
        let _ = io::Read::read_to_string(&mut io::Read::take(file, PASSWD_OCTETS_MAX), &mut passwd);
    }
    let is_name = |name: &str| {
        let plain = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
        !name.is_empty() && name.len() <= LOGIN_OCTETS_MAX && name.bytes().all(plain) && !name.starts_with(['.', '-'])
    };
    let named = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid.to_string()).then(|| name.to_owned())
    });
    let named = named.or_else(|| std::env::var("LOGNAME").ok());
    named.filter(|name| is_name(name)).unwrap_or_else(|| format!("uid-{uid}"))
}

fn not_composed(error: &LetterError) -> Failure {
    let code = match error {
        LetterError::Input(_) => sysexits::IO_ERROR,
        LetterError::NoRecipients => sysexits::USAGE,
        _ => sysexits::DATA_ERROR,
    };
    Failure::new(code, error.to_string())
}

fn not_kept(error: &io::Error, place: &Place) -> Failure {
    let directory = place.drop_directory();
    let message = format!("the agent cannot take the message now, nor can {} keep it: {error}", directory.display());
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => {
            Failure::new(sysexits::CANNOT_CREATE, message).with_remedy("start the agent once: it makes the directory")
        }
        _ => Failure::new(exit::TRY_LATER, message).with_remedy("send it again later"),
    }
}

/// Says who is refused; the first one decides the code.
fn refusal(refused: &[(String, Reply)]) -> Failure {
    let lines: Vec<String> = refused.iter().map(|(address, reply)| escaped(&format!("{address}: {reply}"))).collect();
    Failure::new(code(&refused[0].1), lines.join("\n"))
}

/// Returns what sysexits.h has for a refusal.
fn code(reply: &Reply) -> u8 {
    let (user, host) = ([(1, 1), (1, 3), (1, 6), (2, 1)], [(1, 2), (1, 10), (4, 4)]);
    match reply.status.map(|Status { subject, detail, .. }| (subject, detail)) {
        Some(what) if user.contains(&what) => sysexits::NO_USER,
        Some(what) if host.contains(&what) => sysexits::NO_HOST,
        Some((7, _)) => sysexits::NO_PERMISSION,
        Some((5 | 6, _) | (3, 4) | (2, 3)) => sysexits::DATA_ERROR,
        _ => sysexits::UNAVAILABLE,
    }
}
