//! `queue hold`, `release`, `retry`, `remove` and `bounce`: what changes messages.

use std::io::{self, BufRead, IsTerminal, Write};

use super::list::missing;
use super::screen::{Look, Screen};
use super::select::Select;
use crate::admin::view::ActView;
use crate::admin::{Action, Done, Filter, Request};
use crate::cli::ask::{At, add, split};
use crate::cli::{Context, Failure, exit};
use crate::telemetry::escaped;

/// Which messages, and how.
#[derive(Debug, clap::Args)]
pub struct Act {
    #[command(flatten)]
    select: Select,
    /// Only show what would be changed
    #[arg(long)]
    dry_run: bool,
    /// Do not ask before removing or bouncing several messages
    #[arg(long, short)]
    yes: bool,
    /// Change at most so many messages
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
}

/// Does `action` to the messages selected.
pub fn act(at: At<'_>, screen: &mut Screen, action: Action, args: Act, context: &mut Context) -> Result<(), Failure> {
    let Act { select, dry_run, yes, limit } = args;
    let filter = select.filter();
    if action.is_final() && !dry_run && !yes && io::stdin().is_terminal() {
        let count = each(at, action, &filter, true, limit, |_| Ok(()))?.matched;
        if count > 1 && !confirmed(action, count)? {
            return Err(Failure::new(exit::FAILED, "nothing was changed"));
        }
    }
    let done = each(at, action, &filter, dry_run, limit, |act| show(screen, context, &act, dry_run))?;
    screen.end_messages(context.out())?;
    if let (Some(_), Some(peer), None) = (done.next, at.peer, limit) {
        context.warn(format_args!("{peer} does so many at a time: say it again for the others"));
    }
    if screen.look == Look::Table {
        context.line(summary(action, &done, dry_run))?;
    }
    match (done.matched, done.failed) {
        _ if !done.missing.is_empty() => missing(&done.missing),
        (0, _) => Err(Failure::new(exit::FAILED, "no message matches").with_remedy("see `postroad queue list`")),
        (_, 0) => Ok(()),
        (_, failed) => Err(Failure::new(exit::FAILED, format!("{failed} messages could not be changed"))),
    }
}

fn each(
    at: At<'_>,
    action: Action,
    filter: &Filter,
    dry_run: bool,
    limit: Option<u64>,
    mut show: impl FnMut(ActView) -> Result<(), Failure>,
) -> Result<Done, Failure> {
    let mut sum = Done::default();
    for filter in split(filter.clone()) {
        let limit = limit.map(|limit| limit - sum.matched);
        let request = Request::Act { action, filter, dry_run, limit };
        add(&mut sum, at.ask(request, &mut show)?);
        if limit.is_some_and(|limit| sum.matched >= limit) {
            break;
        }
    }
    Ok(sum)
}

/// On a terminal the summary is enough, but for a dry run and for what failed.
fn show(screen: &mut Screen, context: &mut Context, act: &ActView, dry_run: bool) -> Result<(), Failure> {
    if let Some(error) = &act.error {
        context.warn(format_args!("{}: {}", act.message.id, escaped(error)));
    }
    if screen.look != Look::Table || dry_run { screen.acted(context.out(), act) } else { Ok(()) }
}

fn confirmed(action: Action, count: u64) -> Result<bool, Failure> {
    let what = match action {
        Action::Remove => "Remove the recipients selected of",
        _ => "Bounce the recipients selected of",
    };
    let mut err = io::stderr();
    write!(err, "{what} {count} messages? This cannot be undone. [y/N] ").and_then(|()| err.flush())?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

fn summary(action: Action, done: &Done, dry_run: bool) -> String {
    let messages = |count: u64| if count == 1 { "1 message".to_owned() } else { format!("{count} messages") };
    if dry_run {
        return format!("{} would be {}", messages(done.matched), action.past());
    }
    let unchanged = done.matched - done.changed - done.failed;
    let mut text = format!("{} {}", messages(done.changed), action.past());
    if unchanged > 0 {
        text += &format!(", {unchanged} as before");
    }
    if done.failed > 0 {
        text += &format!(", {} failed", done.failed);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_says_what_was_changed() {
        let done = Done { matched: 5, changed: 3, failed: 1, ..Done::default() };
        assert_eq!(summary(Action::Hold, &done, false), "3 messages held, 1 as before, 1 failed");
        assert_eq!(
            summary(Action::Bounce, &Done { matched: 1, ..Done::default() }, true),
            "1 message would be bounced"
        );
    }
}
