//! `queue list`, `show`, `why` and `stats`: what only looks.

use super::Stats;
use super::offline::Spool;
use super::screen::{Look, Screen};
use crate::admin::standing::{DestinationView, WaitView};
use crate::admin::view::MessageView;
use crate::admin::{AskError, By, Done, Filter, Id, REMEDY_GONE, Request};
use crate::cli::ask::{At, Trouble, add, split};
use crate::cli::{Context, Failure, exit};
use crate::config::Config;
use crate::telemetry::escaped;

/// Destinations shown on a terminal unless told otherwise.
pub const STATS_SHOWN: u64 = 20;

/// Lists messages; an empty list is an answer, not a failure.
pub fn list(
    at: At<'_>,
    screen: &mut Screen,
    filter: Filter,
    limit: Option<u64>,
    context: &mut Context,
) -> Result<(), Failure> {
    let (mut sum, mut spool) = (Done::default(), None);
    for filter in split(filter) {
        let limit = limit.map(|limit| limit - sum.matched);
        let request = Request::List { filter: filter.clone(), after: None, limit };
        let asked = at.ask(request, |message| screen.message(context.out(), &message));
        let done = match asked {
            Err(Trouble::Ask(AskError::Down(_))) if at.peer.is_none() => {
                let spool = opened(&mut spool, at.config, context)?;
                spool.list(&filter, limit, context, |context, message| screen.message(context.out(), message))?
            }
            asked => asked?,
        };
        add(&mut sum, done);
        if limit.is_some_and(|limit| sum.matched >= limit) {
            break;
        }
    }
    screen.end_messages(context.out())?;
    if screen.look == Look::Table && sum.matched == 0 {
        context.line("no message")?;
    }
    missing(&sum.missing)
}

/// Shows messages with all their recipients.
pub fn show(at: At<'_>, screen: &mut Screen, ids: &[Id], context: &mut Context) -> Result<(), Failure> {
    let mut spool = None;
    each_id(ids, context, |id, context| {
        let asked = at.ask(Request::Show { id }, |message: MessageView| screen.details(context.out(), &message));
        let (Err(Trouble::Ask(AskError::Down(_))), None) = (&asked, at.peer) else { return Ok(asked.map(drop)?) };
        match opened(&mut spool, at.config, context)?.show(id, context) {
            Some(message) => screen.details(context.out(), &message),
            None => missing(&[id]),
        }
    })
}

/// Reads the spool once, the first time it is needed.
fn opened<'s>(spool: &'s mut Option<Spool>, config: &Config, context: &mut Context) -> Result<&'s Spool, Failure> {
    Ok(match spool {
        Some(spool) => spool,
        none => none.insert(Spool::open(config, context)?),
    })
}

/// Says what each part of a message waits for.
pub fn why(at: At<'_>, screen: &Screen, ids: &[Id], context: &mut Context) -> Result<(), Failure> {
    each_id(ids, context, |id, context| {
        let mut waits = Vec::new();
        let done = at.ask(Request::Why { id }, |wait: WaitView| {
            let command = wait.remedy.clone();
            let there = |peer| {
                command.filter(|said| said.starts_with("postroad queue ")).map(|said| format!("{said} --peer {peer}"))
            };
            waits.push(match at.peer {
                Some(peer) => WaitView { remedy: there(peer), ..wait },
                None => wait,
            });
            Ok(())
        })?;
        screen.why(context.out(), done.message.as_deref(), &waits)?;
        match (done.text, screen.look) {
            (Some(text), Look::Table | Look::Plain) => context.line(escaped(&text)),
            _ => Ok(()),
        }
    })
}

/// Shows totals and destinations: on a terminal the first as a table, else all that are asked for.
pub fn stats(at: At<'_>, screen: &Screen, args: &Stats, context: &mut Context) -> Result<(), Failure> {
    let is_table = screen.look == Look::Table;
    let limit = args.limit.or(is_table.then_some(STATS_SHOWN));
    let by = if args.sites { By::Site } else { By::Destination };
    let mut shown = Vec::new();
    let done = at.ask(Request::Stats { by, limit }, |destination: DestinationView| match is_table {
        true => {
            shown.push(destination);
            Ok(())
        }
        false => screen.destination(context.out(), &destination),
    })?;
    end_stats(screen, &shown, done, context)
}

/// Shows the totals, and on a terminal the destinations.
pub fn end_stats(screen: &Screen, shown: &[DestinationView], done: Done, context: &mut Context) -> Result<(), Failure> {
    done.totals.map_or(Ok(()), |totals| screen.totals(context.out(), &totals))?;
    match done.sum {
        Some(sum) if screen.look == Look::Table && sum.destinations > 0 => {
            screen.destinations(context.out(), shown, &sum, done.matched)
        }
        _ => Ok(()),
    }
}

/// Does `one` for each id; the others are done although one fails.
fn each_id(
    ids: &[Id],
    context: &mut Context,
    mut one: impl FnMut(Id, &mut Context) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut result = Ok(());
    for id in ids {
        match one(*id, context) {
            Err(failure) if failure.code() == exit::FAILED && ids.len() > 1 => {
                context.warn(failure.message());
                result = Err(failure);
            }
            other => other?,
        }
    }
    result
}

/// Ids that were named and are not there are a failure, whatever else was found.
pub fn missing(ids: &[Id]) -> Result<(), Failure> {
    let Some(first) = ids.first() else { return Ok(()) };
    let others = if ids.len() > 1 { format!(" and {} others", ids.len() - 1) } else { String::new() };
    Err(Failure::new(exit::FAILED, format!("the queue has no message {first}{others}")).with_remedy(REMEDY_GONE))
}
