//! `queue list`, `show`, `why` and `stats`: what only looks.

use super::offline::Spool;
use super::screen::{Look, Screen};
use crate::admin::view::{DestinationView, MessageView, WaitView};
use crate::admin::{AskError, Done, Filter, Id, Request};
use crate::cli::ask::{Trouble, add, ask, split};
use crate::cli::{Context, Failure, exit};
use crate::config::Config;

/// Lists messages; an empty list is an answer, not a failure.
pub fn list(
    config: &Config,
    screen: &mut Screen,
    filter: Filter,
    limit: Option<u64>,
    context: &mut Context,
) -> Result<(), Failure> {
    let (mut sum, mut spool) = (Done::default(), None);
    for filter in split(filter) {
        let limit = limit.map(|limit| limit - sum.matched);
        let request = Request::List { filter: filter.clone(), after: None, limit };
        let asked = ask(config, &request, |message| screen.message(context.out(), &message));
        let done = match asked {
            Err(Trouble::Ask(AskError::Down(_))) => {
                let spool = opened(&mut spool, config, context)?;
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
pub fn show(config: &Config, screen: &mut Screen, ids: &[Id], context: &mut Context) -> Result<(), Failure> {
    let mut spool = None;
    each_id(ids, context, |id, context| {
        let asked = ask(config, &Request::Show { id }, |message: MessageView| screen.details(context.out(), &message));
        let Err(Trouble::Ask(AskError::Down(_))) = asked else { return Ok(asked.map(drop)?) };
        match opened(&mut spool, config, context)?.show(id, context) {
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
pub fn why(config: &Config, screen: &mut Screen, ids: &[Id], context: &mut Context) -> Result<(), Failure> {
    each_id(ids, context, |id, context| {
        if ids.len() > 1 && screen.look != Look::Json {
            context.line(id)?;
        }
        let done = ask(config, &Request::Why { id }, |wait: WaitView| screen.wait(context.out(), &wait))?;
        match (done.text, screen.look) {
            (Some(text), Look::Table | Look::Plain) => context.line(text),
            _ => Ok(()),
        }
    })
}

/// Shows totals and destinations.
pub fn stats(config: &Config, screen: &mut Screen, context: &mut Context) -> Result<(), Failure> {
    let done = ask(config, &Request::Stats {}, |destination: DestinationView| {
        screen.destination(context.out(), &destination)
    })?;
    screen.end_destinations(context.out())?;
    done.totals.map_or(Ok(()), |totals| screen.totals(context.out(), &totals))
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
    Err(Failure::new(exit::FAILED, format!("the queue has no message {first}{others}"))
        .with_remedy("it may have been delivered since: the log tells, under its queue id"))
}
