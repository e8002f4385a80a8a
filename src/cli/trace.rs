//! `postroad trace`: what became of a message, also when it is gone. Through the agent where one runs;
//! else the journal and the queue are read from disk.
//!
//! Output: a timeline for each message on a terminal; tab-separated lines in a pipe; with `--json` one
//! JSON object for each message. What a stranger wrote is escaped.

mod otlp;

use std::io::Write;
use std::path::{Path, PathBuf};

use postroad_queue::UnixMillis;

use super::ask::{Trouble, ask};
use super::queue::{Look, Spool, age, json, line, now, queued_lines, size};
use super::{Context, Failure, exit};
use crate::admin::trace::{EventView, SearchedView, SilentView, TraceView, question, views};
use crate::admin::view::OriginView;
use crate::admin::{AskError, Request};
use crate::config::{Config, show_duration, show_size};
use crate::journal::{self, Limits};
use crate::peer::view_on_disk;
use crate::telemetry::escaped;

/// Say what became of a message, also of one that is gone
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A message is named by its queue id, its Message-ID, its id in the mesh, or the address of its sender or \
of a recipient. What became of it on other members of a mesh is asked of them, as far as they let this \
host know. How long it is known after it has left the queue, [journal] in the configuration says; 15 days \
unless changed.

Columns in a pipe, separated by tabs: time, host, queue id, what happened, recipients (separated by \
commas), the host that answered or who did it, what was said; in the order of time, whichever host it \
happened at. What is still queued has a line `queued` behind that for each of its destinations, with the \
destination and what it waits for; a member of the mesh that \
cannot be asked has a line `unknown`.

Examples:
  postroad trace 0MCC5RM000007
  postroad trace '<20261122.1234@app.example.org>'
  postroad trace bob@example.com --since 2d
  postroad trace bob@example.com --otlp spans.json       OTLP/JSON, for collectors
  postroad trace bob@example.com --json | jq -r '.events[] | select(.what == \"failed\") | .reply'")]
pub(super) struct Args {
    /// A queue id, a Message-ID, an id in the mesh or an address
    #[arg(value_name = "QUEUE-ID|MESSAGE-ID|MESH-ID|ADDRESS")]
    what: String,
    /// Only messages accepted more recently than this, such as 90m or 2d
    #[arg(long, value_name = "AGE", value_parser = age)]
    since: Option<u64>,
    /// Show at most so many messages, the newest; 20 unless told otherwise
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Append OpenTelemetry spans to this file instead, a trace for each message; - is standard output
    #[arg(long, value_name = "FILE")]
    otlp: Option<PathBuf>,
}

pub(super) fn run(args: Args, context: &mut Context) -> Result<(), Failure> {
    let config = context.config_to_ask()?;
    let (look, now) = (Look::of_output(context.is_json()), now());
    let request = Request::Trace { what: args.what.clone(), since_ms: args.since, limit: args.limit };
    let mut found = Vec::new();
    let asked = ask(&config, &request, |view: TraceView| {
        found.push(view);
        Ok(())
    });
    let searched = match asked {
        Err(Trouble::Ask(AskError::Down(_))) => offline(&config, &args, now, &mut found, context)?,
        asked => asked?.searched.map(|searched| *searched).unwrap_or_default(),
    };
    let told = stories(&found, &searched.silent);
    match &args.otlp {
        Some(file) if !told.is_empty() => export(file, &told, context)?,
        _ => told.iter().try_for_each(|story| show(context.out(), look, story, now))?,
    }
    if found.is_empty() {
        return Err(nothing(&args, &searched, &config));
    }
    if searched.damaged > 0 {
        context.warn(format_args!("{} parts of the journal are damaged and were passed over", searched.damaged));
    }
    match searched.more {
        0 => Ok(()),
        more => {
            context.warn(format_args!("{more} older messages are not shown: see --limit"));
            Ok(())
        }
    }
}

/// Prints timelines as people read them, of what hosts told.
pub(super) fn print(views: &[TraceView], context: &mut Context) -> Result<(), Failure> {
    let now = now();
    stories(views, &[]).iter().try_for_each(|story| show(context.out(), Look::Table, story, now))
}

/// Appends a line for each message: collectors follow a file that grows.
fn export(file: &Path, told: &[Story<'_>], context: &mut Context) -> Result<(), Failure> {
    let lines: String = told.iter().map(|story| format!("{}\n", otlp::request(&story.views))).collect();
    if file == Path::new("-") {
        return Ok(context.out().write_all(lines.as_bytes())?);
    }
    let opened = std::fs::OpenOptions::new().create(true).append(true).open(file);
    let written = opened.and_then(|mut file| file.write_all(lines.as_bytes()));
    written.map_err(|error| Failure::new(exit::FAILED, format!("{}: {error}", file.display())))?;
    let messages = told.len();
    let value = serde_json::json!({ "appended": file, "messages": messages });
    context.say(
        &value,
        format_args!("appended to {}: {messages} message{}", file.display(), if messages == 1 { "" } else { "s" }),
    )
}

/// Reads journal and queue from disk.
fn offline(
    config: &Config,
    args: &Args,
    now: UnixMillis,
    found: &mut Vec<TraceView>,
    context: &mut Context,
) -> Result<SearchedView, Failure> {
    let host = config.hostname.as_str();
    let dir = journal::directory(&config.state_dir);
    let question = question(&args.what, now, args.since, args.limit);
    let unreadable = |error: std::io::Error| {
        Failure::new(exit::TRY_LATER, format!("the journal {} cannot be read: {error}", dir.display()))
            .with_remedy("run it as root or as the agent's user")
    };
    let searching = Limits::of(&config.journal).map(|limits| journal::search(&dir, limits, now, &question));
    let answer = searching.transpose().map_err(unreadable)?;
    // As the other members name it; where that cannot be read, by its own name.
    let members = view_on_disk(&config.state_dir).unwrap_or_default();
    let label = members.me().map_or_else(|| host.to_owned(), |me| members.label(&me));
    let searched = SearchedView::of(&label, answer.as_ref());
    *found = views(host, &question, answer.unwrap_or_default());
    let spool = Spool::open(config, context)?;
    for view in &mut *found {
        view.host.clone_from(&label);
        if let Some(entry) = spool.find(view.id, context) {
            view.add_queued(&entry, Vec::new());
        }
    }
    found.retain(|view| !view.is_empty());
    Ok(searched)
}

/// Says where was searched, so that it is clear what the answer is worth.
fn nothing(args: &Args, searched: &SearchedView, config: &Config) -> Failure {
    let what = escaped(&args.what);
    if !searched.is_on {
        return Failure::new(exit::FAILED, format!("nothing is known of {what}: the journal is off"))
            .with_remedy("see [journal] in the configuration, and `postroad queue list` for what is queued");
    }
    let host = escaped(&searched.host);
    let reach = match searched.reaches {
        None => format!("the journal of {host} is empty"),
        Some(time) => {
            format!("the journal of {host} was searched, which reaches back to {time} ({})", size(searched.octets))
        }
    };
    let (octets, age) = (show_size(config.journal.octets_max), show_duration(config.journal.age));
    Failure::new(exit::FAILED, format!("nothing is known of {what}: {reach}")).with_remedy(format!(
        "it keeps at most {octets} and {age}; what is queued is found by `postroad queue list --to` or --from"
    ))
}

/// What happened to one message, on all hosts that told of it.
struct Story<'a> {
    views: Vec<&'a TraceView>,
    silent: Vec<&'a SilentView>,
}

impl<'a> Story<'a> {
    /// Returns what happened on all hosts, in the order of time.
    fn events(&self) -> Vec<(&'a TraceView, &'a EventView)> {
        let mut events: Vec<_> =
            self.views.iter().flat_map(|view| view.events.iter().map(|event| (*view, event))).collect();
        events.sort_by_key(|(_, event)| event.at);
        events
    }
}

/// Puts together what several hosts of the mesh say of the same message, in the order in which the
/// messages came.
fn stories<'a>(views: &'a [TraceView], silent: &'a [SilentView]) -> Vec<Story<'a>> {
    let mut stories: Vec<Story<'a>> = Vec::new();
    for view in views {
        let id = view.mesh.as_ref().map(|mesh| &mesh.id);
        let is_same = |other: &&TraceView| id.is_some() && other.mesh.as_ref().map(|mesh| &mesh.id) == id;
        match stories.iter_mut().find(|story| story.views.iter().any(is_same)) {
            Some(story) => story.views.push(view),
            None => {
                let silent = silent.iter().filter(|one| Some(&one.mesh_id) == id).collect();
                stories.push(Story { views: vec![view], silent });
            }
        }
    }
    let first = |view: &&TraceView| view.events.first().map(|event| event.at);
    stories.iter_mut().for_each(|story| story.views.sort_by_key(first));
    stories
}

fn show(out: &mut dyn Write, look: Look, story: &Story<'_>, now: UnixMillis) -> Result<(), Failure> {
    match look {
        Look::Json => story.views.iter().try_for_each(|view| json(out, view)),
        Look::Plain => {
            story.events().into_iter().try_for_each(|(view, event)| line(out, plain_event(view, event)))?;
            story.views.iter().flat_map(|view| plain_queued(view)).try_for_each(|text| line(out, text))?;
            story.silent.iter().try_for_each(|silent| line(out, plain_silence(silent)))
        }
        Look::Table => timeline(story, now).into_iter().try_for_each(|text| line(out, text)),
    }
}

/// One timeline over all hosts; which one is said where there are several.
fn timeline(story: &Story<'_>, now: UnixMillis) -> Vec<String> {
    let is_one_host = story.views.len() == 1 && story.silent.is_empty();
    let mut lines: Vec<String> = story.views.iter().map(|view| heading(view)).collect();
    let names = story.views.iter().map(|view| escaped(&view.host).chars().count());
    let width = names.max().unwrap_or(0);
    for (view, event) in story.events() {
        let host = if is_one_host { String::new() } else { format!("{:<width$}  ", escaped(&view.host)) };
        lines.push(format!("  {}  {host}{}", event.at, event_words(view, event)));
    }
    let more: u64 = story.views.iter().map(|view| view.events_more).sum();
    if more > 0 {
        lines.push(format!("  and {more} more"));
    }
    lines.extend(story.silent.iter().map(|silent| silence(silent)));
    for view in &story.views {
        let Some(queued) = &view.queued else { continue };
        lines.push(format!("still queued at {}:", escaped(&view.host)));
        lines.extend(queued_lines(queued, &view.waits, now).into_iter().map(|text| format!("  {text}")));
    }
    lines
}

/// Says of a host that had the message, and cannot be asked, what was known last.
fn silence(silent: &SilentView) -> String {
    let last = silent.at.map_or(String::new(), |at| format!(" last known: handed over to it at {at};"));
    format!("  {}:{last} what came of it there is not known: {}", escaped(&silent.host), escaped(&silent.why))
}

fn plain_silence(silent: &SilentView) -> String {
    let at = silent.at.map_or("-".to_owned(), |at| at.to_string());
    format!("{at}\t{}\t-\tunknown\t-\t-\t{}", escaped(&silent.host), escaped(&silent.why))
}

fn heading(view: &TraceView) -> String {
    let from = view.from.as_deref().map_or(String::new(), |from| format!(" from {}", escaped(from)));
    let id = view.message_id.as_deref().map_or(String::new(), |id| format!(", Message-ID <{}>", escaped(id)));
    let mesh = view.mesh.as_ref().map_or(String::new(), |mesh| format!(", {} in the mesh", escaped(&mesh.id)));
    let octets = view.size.map_or(String::new(), |octets| format!(", {}", size(octets)));
    format!("{} at {}{from}{octets}{id}{mesh}", view.id, escaped(&view.host))
}

fn event_words(view: &TraceView, event: &EventView) -> String {
    let who = names(event);
    let whom = if who.is_empty() { String::new() } else { format!(" {who}") };
    let said = said(event);
    let by = event.by.as_deref().map_or(String::new(), |by| format!(" by {}", escaped(by)));
    match event.what.as_str() {
        "accepted" => format!("accepted{}, for {who}", view.origin.as_ref().map(whence).unwrap_or_default()),
        "expired" => format!("given up, its time is over:{whom}"),
        "held" => format!("held{by}: no attempt until it is released"),
        "released" => format!("released{by}"),
        "removed" => format!("removed{by}, nobody is told:{whom}"),
        "bounced" => format!("returned to its sender{by}:{whom}"),
        "notified" => notified(event),
        "retired" => "left the queue".to_owned(),
        "diverted" => {
            let member = escaped(event.remote.as_deref().unwrap_or("a member of the mesh"));
            let said = event.reply.as_deref().map_or(String::new(), |said| format!(": {}", escaped(said)));
            format!("another way for {who}: {member} cannot be reached{said}")
        }
        "set_aside" => {
            format!("found damaged and set aside as {}", escaped(event.place.as_deref().unwrap_or_default()))
        }
        what => format!("{}{whom}{said}", escaped(what)),
    }
}

fn notified(event: &EventView) -> String {
    let kind = match event.kind.as_deref() {
        Some("delay") => "that it is late",
        Some("success") => "of its delivery",
        _ => "of its failure",
    };
    let id = event.notification.map_or(String::new(), |id| format!(" by {id}"));
    format!("sender told{id} {kind}: {}", names(event))
}

/// Says what was answered, by whom, and how long it took.
fn said(event: &EventView) -> String {
    let Some(reply) = &event.reply else { return String::new() };
    let mut facts: Vec<String> = event.remote.iter().map(|remote| escaped(remote)).collect();
    facts.extend(event.ms.map(|ms| format!("{ms} ms")));
    let facts = if facts.is_empty() { String::new() } else { format!(" ({})", facts.join(", ")) };
    format!(": {}{facts}", escaped(reply))
}

fn whence(origin: &OriginView) -> String {
    let text = |text: &Option<String>, before: &str| {
        text.as_deref().map_or(String::new(), |text| format!("{before}{}", escaped(text)))
    };
    if origin.protocol == "dsn" {
        return " from this host itself".to_owned();
    }
    let (user, peer, helo) =
        (text(&origin.user, " from user "), text(&origin.peer, " from "), text(&origin.helo, ", "));
    let peer = if user.is_empty() { peer } else { peer.replacen(" from ", " at ", 1) };
    format!("{user}{peer} ({}{helo}, session {})", escaped(&origin.protocol), escaped(&origin.session))
}

fn names(event: &EventView) -> String {
    let named: Vec<String> = event.recipients.iter().map(|name| escaped(name)).collect();
    match event.recipients_total.saturating_sub(named.len() as u64) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

/// Returns an event as columns separated by tabs.
fn plain_event(view: &TraceView, event: &EventView) -> String {
    let (host, id) = (escaped(&view.host), view.id);
    let who: Vec<String> = event.recipients.iter().map(|name| escaped(name)).collect();
    let by = event.remote.as_ref().or(event.by.as_ref()).map_or("-".to_owned(), |by| escaped(by));
    let other = event.notification.map(|id| id.to_string());
    let said = event.reply.as_deref().or(event.place.as_deref()).map(escaped).or(other);
    let (what, said) = (escaped(&event.what), said.unwrap_or_else(|| "-".to_owned()));
    format!("{}\t{host}\t{id}\t{what}\t{}\t{by}\t{said}", event.at, dash(who.join(",")))
}

/// Returns such a line for each destination that a message waits for.
fn plain_queued(view: &TraceView) -> Vec<String> {
    let (host, id) = (escaped(&view.host), view.id);
    let mut lines = Vec::new();
    let Some(queued) = &view.queued else { return lines };
    let due = |to: &crate::admin::view::RecipientView| to.due.map_or("-".to_owned(), |due| due.to_string());
    for wait in &view.waits {
        let who: Vec<String> = wait.recipients.iter().map(|to| escaped(&to.to)).collect();
        let (until, destination) = (wait.until.map_or("-".to_owned(), |at| at.to_string()), escaped(&wait.destination));
        let (who, text) = (dash(who.join(",")), escaped(&wait.text));
        lines.push(format!("{until}\t{host}\t{id}\tqueued\t{who}\t{destination}\t{text}"));
    }
    if view.waits.is_empty() {
        for to in queued.recipients.iter().filter(|to| to.due.is_some()) {
            let last = to.last.as_ref().map_or("-".to_owned(), |last| escaped(&last.reply));
            let destination = to.destination.as_deref().map_or("-".to_owned(), escaped);
            lines.push(format!("{}\t{host}\t{id}\tqueued\t{}\t{destination}\t{last}", due(to), escaped(&to.to)));
        }
    }
    lines
}

fn dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}

#[cfg(test)]
#[path = "trace_tests.rs"]
mod tests;
