//! `queue list` and `queue stats` over all members of a mesh. Members are asked beside each other; one that
//! does not tell is named with the reason, and the others are shown all the same.

use super::Stats;
use super::list::{STATS_SHOWN, end_stats};
use super::screen::{Look, Screen, line};
use crate::admin::mesh::{MeshRequest, MeshView};
use crate::admin::standing::DestinationView;
use crate::admin::view::MessageView;
use crate::admin::{By, Done, Filter, Request};
use crate::cli::ask::{At, add, ask, split};
use crate::cli::{Context, Failure, exit};
use crate::config::Config;
use crate::telemetry::escaped;

/// Members asked at a time.
const ASKED_MAX: usize = 8;
/// Messages of a member that are listed unless told otherwise: all are in memory until they are shown.
const LISTED_MAX: u64 = 1000;

/// What one member said, under the name that it is shown by.
type Told<T> = (String, Result<T, Failure>);

/// Lists the messages of all members.
pub fn list(
    config: &Config,
    screen: &mut Screen,
    filter: &Filter,
    limit: Option<u64>,
    context: &mut Context,
) -> Result<(), Failure> {
    let told = gather(config, |at| {
        let (mut messages, mut sum) = (Vec::new(), Done::default());
        for filter in split(filter.clone()) {
            let left = limit.unwrap_or(LISTED_MAX).saturating_sub(sum.matched);
            let done = at.ask(Request::List { filter, after: None, limit: Some(left) }, |message: MessageView| {
                messages.push(message);
                Ok(())
            })?;
            add(&mut sum, done);
        }
        Ok((messages, sum))
    })?;
    let (mut count, mut silent) = (0, Vec::new());
    for (name, told) in told {
        screen.node = Some(name.clone());
        match told {
            Ok((messages, done)) => {
                count += messages.len();
                messages.iter().try_for_each(|message| screen.message(context.out(), message))?;
                if done.next.is_some() && limit.is_none() {
                    context.warn(format_args!("{name} has more than {LISTED_MAX}: see --peer, --limit"));
                }
            }
            Err(failure) => silent.push((name, failure)),
        }
    }
    screen.end_messages(context.out())?;
    if screen.look == Look::Table && count == 0 {
        context.line("no message")?;
    }
    finish(&silent, context)
}

/// Shows how the destinations of all members stand.
pub fn stats(config: &Config, screen: &mut Screen, args: &Stats, context: &mut Context) -> Result<(), Failure> {
    let is_table = screen.look == Look::Table;
    let limit = args.limit.or(is_table.then_some(STATS_SHOWN));
    let by = if args.sites { By::Site } else { By::Destination };
    let told = gather(config, |at| {
        let mut shown: Vec<DestinationView> = Vec::new();
        let done = at.ask(Request::Stats { by, limit }, |destination| {
            shown.push(destination);
            Ok(())
        })?;
        Ok((shown, done))
    })?;
    let mut silent = Vec::new();
    for (name, told) in told {
        screen.node = Some(name.clone());
        match told {
            Ok((shown, done)) if is_table => {
                line(context.out(), format_args!("{name}:"))?;
                end_stats(screen, &shown, done, context)?;
            }
            Ok((shown, done)) => {
                shown.iter().try_for_each(|one| screen.destination(context.out(), one))?;
                end_stats(screen, &shown, done, context)?;
            }
            Err(failure) => silent.push((name, failure)),
        }
    }
    finish(&silent, context)
}

/// Asks every member, this host with them; in the order of their names.
fn gather<T: Send>(
    config: &Config,
    job: impl Fn(At<'_>) -> Result<T, Failure> + Sync,
) -> Result<Vec<Told<T>>, Failure> {
    let mut members: Vec<(String, Option<String>)> = Vec::new();
    ask(config, &Request::Mesh { request: MeshRequest::Status {} }, |view: MeshView| {
        for member in view.members.into_iter().filter(|member| !member.is_refused) {
            let peer = (member.link != "self").then_some(member.node);
            members.push((escaped(&member.label), peer));
        }
        Ok(())
    })?;
    if members.is_empty() {
        let remedy = "leave --mesh out, or make one: postroad mesh invite";
        return Err(Failure::new(exit::FAILED, "this host is in no mesh").with_remedy(remedy));
    }
    members.sort();
    let mut told = Vec::with_capacity(members.len());
    for part in members.chunks(ASKED_MAX) {
        std::thread::scope(|scope| {
            let job = &job;
            let asking: Vec<_> =
                part.iter().map(|(_, peer)| scope.spawn(move || job(At { config, peer: peer.as_deref() }))).collect();
            for ((name, _), answer) in part.iter().zip(asking) {
                let failed = |_| Err(Failure::new(exit::FAILED, "the command failed at it"));
                told.push((name.clone(), answer.join().unwrap_or_else(failed)));
            }
        });
    }
    Ok(told)
}

/// Names who did not tell.
fn finish(silent: &[(String, Failure)], context: &mut Context) -> Result<(), Failure> {
    for (name, failure) in silent {
        // What a member says begins with its name.
        let said = failure
            .message()
            .strip_prefix(name.as_str())
            .map_or(failure.message(), |said| said.trim_start_matches(':'));
        context.warn(format_args!("{name}: {}", escaped(said.trim_start())));
    }
    match silent.len() {
        0 => Ok(()),
        1 => Err(Failure::new(exit::FAILED, "one member did not tell")),
        several => Err(Failure::new(exit::FAILED, format!("{several} members did not tell"))),
    }
}
