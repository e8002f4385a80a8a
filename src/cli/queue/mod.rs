//! `postroad queue`: reads and steers the queue, through the agent where one runs. `list` and
//! `show` read the queue's files themselves when none does, and say so.
//!
//! Output: a table on a terminal; tab-separated lines without a head in a pipe; with `--json` one
//! JSON object a line (JSON Lines: a queue of a million messages streams).

mod act;
mod content;
mod everywhere;
mod list;
mod offline;
mod screen;
mod select;
mod standing;

use std::time::{SystemTime, UNIX_EPOCH};

use postroad_queue::UnixMillis;

use super::ask::At;
use super::{Context, Failure, exit};
use crate::admin::{Action, Id};
use act::Act;
pub(super) use offline::Spool;
use screen::Screen;
pub(super) use screen::{Look, json, line, size};
use select::Select;
pub(super) use select::age;
pub(super) use standing::queued_lines;

/// Inspect and steer the queue
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  postroad queue list                              What waits, oldest first
  postroad queue list --domain dead.example --attempts 3
  postroad queue list --json | jq -r .id
  postroad queue why 0MCC5RM000007                 Why is it still here?
  postroad queue cat 0MCC5RM000007 | less          What does it say?
  postroad queue retry --domain example.com        The other side is back
  postroad queue bounce --domain dead.example --dry-run
  postroad queue remove --from '*@app.example.org' --older 2d --yes
  postroad queue list --mesh                       What waits on every member of the mesh
  postroad queue retry --peer lab --domain example.com

A filter on recipients (--to, --domain, --destination, --attempts, --deferred, --reply) selects \
pending recipients; retry, remove and bounce concern those alone, hold and release the whole \
message. With --peer the queue of another member of the mesh is meant, as far as that one lets this \
host; with --mesh those of all: the member comes first in each line, and one that does not tell is \
named on standard error (exit code 1).")]
pub(super) struct Args {
    /// The queue of this member of the mesh: its label, its id, or what its id begins with
    #[arg(long, global = true, value_name = "NAME", conflicts_with = "mesh")]
    peer: Option<String>,
    /// The queues of all members of the mesh: for list and stats
    #[arg(long, global = true)]
    mesh: bool,
    #[command(subcommand)]
    action: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List messages, oldest first; also when the agent is down
    #[command(after_help = "\
Columns in a pipe, separated by tabs: id, time accepted, octets, state, most attempts, next attempt, \
sender, recipients (separated by commas), last reply.

Examples:
  postroad queue list --deferred
  postroad queue list --from '<>' --limit 20       Notifications
  postroad queue list --reply greylist | cut -f1")]
    List(ListArgs),
    /// Show messages with all their recipients; also when the agent is down
    #[command(after_help = "Example:\n  postroad queue show 0MCC5RM000007")]
    Show(Ids),
    /// Say why a message is still here: what each part waits for, and all that was said about it
    #[command(after_help = "Example:\n  postroad queue why 0MCC5RM000007")]
    Why(Ids),
    /// Print a message as it is queued, header and all; also when the agent is down
    #[command(after_help = "\
In a pipe it is printed octet for octet, on a terminal without what a terminal would obey.

Examples:
  postroad queue cat 0MCC5RM000007 | less
  postroad queue cat 0MCC5RM000007 > message.eml")]
    Cat(Ids),
    /// Hold messages: no attempt until they are released
    #[command(
        after_help = "Examples:\n  postroad queue hold 0MCC5RM000007\n  postroad queue hold --from '*@shop.example' --dry-run"
    )]
    Hold(Act),
    /// Release held messages
    #[command(after_help = "Example:\n  postroad queue release --held --to '*@example.com'")]
    Release(Act),
    /// Try again now
    #[command(after_help = "Example:\n  postroad queue retry --domain example.com")]
    Retry(Act),
    /// Give up without telling the sender
    #[command(
        visible_alias = "delete",
        after_help = "Example:\n  postroad queue remove --from '*@app.example.org' --older 2d"
    )]
    Remove(Act),
    /// Give up and return a notification to the sender
    #[command(after_help = "Example:\n  postroad queue bounce --domain dead.example --dry-run")]
    Bounce(Act),
    /// Show how many jobs of which age wait where, the deepest first
    #[command(after_help = "\
A job is a message on its way to one destination. READY jobs are due, ACTIVE ones being delivered; the \
columns behind count by the age of the message. Below a destination stands why nothing more goes there.

Columns in a pipe, separated by tabs: destination, jobs, ready, deferred, held, active, sessions allowed, \
waiting jobs of the lanes urgent, normal and bulk, jobs below 5, 10, 20, 40, 80, 160, 320, 640 and 1280 \
minutes and older, the oldest message, the way.

Examples:
  postroad queue stats
  postroad queue stats --sites --limit 50          Domains with the same hosts together
  postroad queue stats --json | jq -r 'select(.closed_until) | .destination'")]
    Stats(Stats),
    /// Read every message on disk and compare the checksums; the agent may run meanwhile
    #[command(after_help = "Example:\n  postroad queue verify")]
    Verify,
    /// Put aside what is damaged on disk and keep everything else; the agent must not run
    #[command(after_help = "\
Reads every record and every content. What is not as it was written goes to quarantine/ in the queue's \
directory, as it was; a message that is lost by it is named. A start of the agent does the same for what \
it finds, but it does not read everything.

Examples:
  postroad queue repair --dry-run                  What would be put aside?
  systemctl stop postroad && sudo -u postroad postroad queue repair")]
    Repair {
        /// Only say what would be put aside
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    #[command(flatten)]
    select: Select,
    /// Show at most so many messages
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
}

#[derive(Debug, clap::Args)]
struct Stats {
    /// Count what goes to the same hosts together, whatever the domain
    #[arg(long)]
    sites: bool,
    /// Show at most so many; on a terminal 20 unless told otherwise
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
}

#[derive(Debug, clap::Args)]
struct Ids {
    /// Queue ids
    #[arg(required = true, value_name = "ID")]
    ids: Vec<Id>,
}

pub(super) fn run(args: Args, context: &mut Context) -> Result<(), Failure> {
    let config = context.config_to_ask()?;
    let mut screen = Screen::new(context.is_json(), now());
    let at = At { config: &config, peer: args.peer.as_deref() };
    match args.action {
        Command::List(list) if args.mesh => {
            everywhere::list(&config, &mut screen, &list.select.filter(), list.limit, context)
        }
        Command::Stats(stats) if args.mesh => everywhere::stats(&config, &mut screen, &stats, context),
        _ if args.mesh => Err(Failure::new(exit::USAGE, "--mesh is for `queue list` and `queue stats`")
            .with_remedy("name the member whose queue is meant: --peer NAME")),
        Command::List(args) => list::list(at, &mut screen, args.select.filter(), args.limit, context),
        Command::Show(args) => list::show(at, &mut screen, &args.ids, context),
        Command::Why(args) => list::why(at, &screen, &args.ids, context),
        Command::Cat(_) | Command::Verify | Command::Repair { .. } if at.peer.is_some() => {
            let message = "cat, verify and repair read the disk of this host";
            Err(Failure::new(exit::USAGE, message).with_remedy("say it on the other one"))
        }
        Command::Cat(args) => content::cat(&config, screen.look, &args.ids, context),
        Command::Verify => offline::verify(&config, &screen, context),
        Command::Repair { dry_run } => offline::repair(&config, &screen, dry_run, context),
        Command::Stats(args) => list::stats(at, &screen, &args, context),
        Command::Hold(args) => act::act(at, &mut screen, Action::Hold, args, context),
        Command::Release(args) => act::act(at, &mut screen, Action::Release, args, context),
        Command::Retry(args) => act::act(at, &mut screen, Action::Retry, args, context),
        Command::Remove(args) => act::act(at, &mut screen, Action::Remove, args, context),
        Command::Bounce(args) => act::act(at, &mut screen, Action::Bounce, args, context),
    }
}

/// Ages are shown against this host's clock: the agent's is the same, and its own goes no faster.
pub(super) fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
