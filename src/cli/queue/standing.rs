//! How `queue why` and `queue stats` look: what a message waits for, with all that was said about it,
//! and how many jobs of which age wait where. What a stranger wrote is escaped before it reaches a
//! terminal.

use std::io::Write;

use postroad_queue::UnixMillis;
use serde::Serialize;

use super::screen::{Look, Screen, json, line, size, soon, span};
use crate::admin::standing::{DestinationView, WaitView};
use crate::admin::view::{MessageView, RecipientStateView, RecipientView, ReportView, TotalsView};
use crate::cli::Failure;
use crate::telemetry::escaped;

/// Recipients named of those to whom the same happened.
const RECIPIENTS_NAMED: usize = 3;
/// The age columns on a terminal: each is so many classes of [`DestinationView::ages`].
const AGE_COLUMNS: [(&str, std::ops::Range<usize>); 6] =
    [("<5m", 0..1), ("<20m", 1..3), ("<80m", 3..5), ("<5h", 5..7), ("<21h", 7..9), ("OLDER", 9..10)];

impl Screen {
    /// Shows what each part of a message waits for.
    pub fn why(&self, out: &mut dyn Write, message: Option<&MessageView>, waits: &[WaitView]) -> Result<(), Failure> {
        if self.look == Look::Json {
            return waits.iter().try_for_each(|wait| json(out, wait));
        }
        let mut lines = Vec::new();
        if let Some(message) = message {
            lines.push(heading(message, self.now));
        }
        waits.iter().for_each(|wait| lines.extend(wait_lines(wait, self.now)));
        if let Some(message) = message {
            lines.extend(settled_lines(message, self.now));
        }
        lines.into_iter().try_for_each(|text| line(out, text))
    }

    /// Shows the totals.
    pub fn totals(&self, out: &mut dyn Write, totals: &TotalsView) -> Result<(), Failure> {
        #[derive(Serialize)]
        struct Totals<'a> {
            totals: &'a TotalsView,
        }
        match self.look {
            Look::Json => self.json(out, &Totals { totals }),
            Look::Plain => self.plain(out, totals_line(totals)),
            Look::Table => line(out, totals_line(totals)),
        }
    }

    /// Shows how a destination stands, where that is not a table.
    pub fn destination(&self, out: &mut dyn Write, destination: &DestinationView) -> Result<(), Failure> {
        match self.look {
            Look::Json => self.json(out, destination),
            _ => self.plain(out, plain_destination(destination, self.now)),
        }
    }

    /// Shows the first destinations as a table under their sum; `all` is the sum over all there are, of
    /// which `matched` are counted apart.
    pub fn destinations(
        &self,
        out: &mut dyn Write,
        shown: &[DestinationView],
        all: &DestinationView,
        matched: u64,
    ) -> Result<(), Failure> {
        let is_bulk = all.lanes[0] + all.lanes[2] > 0;
        let columns = |name: &str, one: &DestinationView| row(name, one, is_bulk, all.held > 0);
        let mut rows = vec![head(is_bulk, all.held > 0), columns("TOTAL", all)];
        rows.extend(shown.iter().map(|one| columns(&name_of(one), one)));
        for (at, text) in aligned(&rows).into_iter().enumerate() {
            line(out, text)?;
            if let Some(way) = at.checked_sub(2).and_then(|at| way(&shown[at], self.now)) {
                line(out, format_args!("  {way}"))?;
            }
        }
        let jobs: u64 = shown.iter().map(|one| one.jobs).sum();
        match matched.saturating_sub(shown.len() as u64) {
            0 => Ok(()),
            more => line(out, format_args!("and {more} more with {} jobs: see --limit", all.jobs.saturating_sub(jobs))),
        }
    }
}

/// Says that a message is queued still and what it waits for; without an agent, when it is due.
pub fn queued_lines(message: &MessageView, waits: &[WaitView], now: UnixMillis) -> Vec<String> {
    let mut lines = vec![heading(message, now)];
    waits.iter().for_each(|wait| lines.extend(wait_lines(wait, now)));
    if waits.is_empty() {
        let is_pending = |one: &&RecipientView| one.state == RecipientStateView::Pending;
        let pending: Vec<RecipientView> = message.recipients.iter().filter(is_pending).cloned().collect();
        for (names, recipient) in groups(&pending) {
            let due =
                recipient.due.map_or(String::new(), |due| format!("; the next attempt is due {}", soon(due.0, now)));
            lines.push(format!("{names}: {}{due}", tries(recipient)));
            lines.extend(said(recipient, now).into_iter().map(|text| format!("  {text}")));
        }
    }
    lines
}

fn tries(recipient: &RecipientView) -> String {
    match recipient.attempts {
        None | Some(0) => "not tried yet".to_owned(),
        Some(1) => "tried once".to_owned(),
        Some(tries) => format!("tried {tries} times"),
    }
}

fn heading(message: &MessageView, now: UnixMillis) -> String {
    let (from, age) = (escaped(&message.from), span(now.since(message.arrived.0)));
    let given_up = match message.recipients_pending {
        0 => String::new(),
        _ => format!(", given up {}", soon(message.expires.0, now)),
    };
    let (pending, all) = (message.recipients_pending, message.recipients_total);
    format!("{} from {from}, accepted {age} ago{given_up}; {pending} of {all} recipients wait", message.id)
}

fn wait_lines(wait: &WaitView, now: UnixMillis) -> Vec<String> {
    let destination = escaped(&wait.destination);
    let site = match wait.site.as_str() {
        "" => String::new(),
        site if site == wait.destination => String::new(),
        site => format!(" at {}", escaped(site)),
    };
    let lane = if wait.lane == "normal" { String::new() } else { format!(" ({} mail)", escaped(&wait.lane)) };
    let until = wait.until.map_or(String::new(), |until| format!(" ({})", soon(until.0, now)));
    let mut lines = vec![format!("{destination}{site}{lane}{until}: {}", escaped(&wait.text))];
    let passed = wait.passed_by.iter();
    lines.extend(
        passed.map(|member| format!("  another way is taken, a member cannot be reached: {}", escaped(member))),
    );
    if let Some(remedy) = &wait.remedy {
        lines.push(format!("  change it by: {}", escaped(remedy)));
    }
    for (names, recipient) in groups(&wait.recipients) {
        lines.push(format!("  {names}: {}", tries(recipient)));
        lines.extend(said(recipient, now).into_iter().map(|text| format!("    {text}")));
    }
    lines
}

/// Names together those to whom the same happened.
fn groups(recipients: &[RecipientView]) -> Vec<(String, &RecipientView)> {
    let mut groups: Vec<(Vec<&str>, &RecipientView)> = Vec::new();
    let words = |one: &RecipientView| one.last.as_ref().map(|last| last.reply.clone());
    for one in recipients {
        let same = |other: &RecipientView| {
            (other.state, other.attempts, words(other)) == (one.state, one.attempts, words(one))
        };
        match groups.iter_mut().find(|(_, first)| same(first)) {
            Some((names, _)) => names.push(&one.to),
            None => groups.push((vec![&one.to], one)),
        }
    }
    groups.into_iter().map(|(names, first)| (named(&names), first)).collect()
}

fn named(names: &[&str]) -> String {
    let first: Vec<String> = names.iter().take(RECIPIENTS_NAMED).map(|name| escaped(name)).collect();
    match names.len() - first.len() {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

/// Says what was said to a recipient, the last last.
fn said(recipient: &RecipientView, now: UnixMillis) -> Vec<String> {
    let Some(last) = &recipient.last else { return Vec::new() };
    let ago = |at: UnixMillis| format!("{} ago", span(now.since(at)));
    let mut lines = Vec::new();
    let (mut first, mut times) = (last.at.0, 1);
    for said in &recipient.earlier {
        if said.report.reply == last.reply {
            (first, times) = (said.report.at.0, said.times + 1);
            continue;
        }
        let when = match said.times {
            1 => ago(said.until.0),
            times => format!("{times} times, {} to {}", ago(said.report.at.0), ago(said.until.0)),
        };
        lines.push(reply_line(&said.report, &when));
    }
    let when = if times == 1 {
        ago(last.at.0)
    } else {
        format!("{times} times since {}, last {}", ago(first), ago(last.at.0))
    };
    lines.push(reply_line(last, &when));
    lines
}

fn reply_line(report: &ReportView, when: &str) -> String {
    let remote = report.remote.as_deref().map_or(String::new(), |remote| format!("{}, ", escaped(remote)));
    format!("{} ({remote}{when})", escaped(&report.reply))
}

/// Says what has become of those who wait for nothing any more.
fn settled_lines(message: &MessageView, now: UnixMillis) -> Vec<String> {
    let settled: Vec<RecipientView> =
        message.recipients.iter().filter(|one| one.state != RecipientStateView::Pending).cloned().collect();
    let mut lines = Vec::new();
    for (names, recipient) in groups(&settled) {
        let state = if recipient.state == RecipientStateView::Delivered { "delivered" } else { "failed" };
        lines.push(format!("{state}: {names}"));
        lines.extend(said(recipient, now).into_iter().map(|text| format!("    {text}")));
    }
    lines
}

fn totals_line(totals: &TotalsView) -> String {
    let ready = totals.jobs.saturating_sub(totals.deferred + totals.held_jobs + totals.in_flight);
    let held = if totals.held { "; all of it is held" } else { "" };
    format!(
        "{} messages ({}), {} jobs: {ready} ready, {} deferred, {} held, {} being delivered; {} on disk{held}",
        totals.messages,
        size(totals.content_octets),
        totals.jobs,
        totals.deferred,
        totals.held_jobs,
        totals.in_flight,
        size(totals.disk_octets),
    )
}

fn name_of(one: &DestinationView) -> String {
    match one.destinations {
        0 | 1 => escaped(&one.destination),
        several => format!("{} ({several} destinations)", escaped(&one.destination)),
    }
}

fn head(has_lanes: bool, has_held: bool) -> Vec<String> {
    let mut names = vec!["DESTINATION", "JOBS", "READY", "ACTIVE"];
    names.extend(has_held.then_some("HELD"));
    names.extend(has_lanes.then_some(["URGENT", "BULK"]).into_iter().flatten());
    names.extend(AGE_COLUMNS.iter().map(|(name, _)| *name));
    names.into_iter().map(str::to_owned).collect()
}

fn row(name: &str, one: &DestinationView, has_lanes: bool, has_held: bool) -> Vec<String> {
    let mut numbers = vec![one.jobs, one.ready, one.in_flight];
    numbers.extend(has_held.then_some(one.held));
    numbers.extend(has_lanes.then_some([one.lanes[0], one.lanes[2]]).into_iter().flatten());
    numbers.extend(AGE_COLUMNS.iter().map(|(_, classes)| one.ages[classes.clone()].iter().sum::<u64>()));
    [name.to_owned()].into_iter().chain(numbers.iter().map(ToString::to_string)).collect()
}

/// Lays rows out in columns: the first to the left, numbers to the right.
fn aligned(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |at: usize| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let lay = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate().map(|(at, (cell, width))| match at {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        cells.collect::<Vec<_>>().join("  ")
    };
    rows.iter().map(lay).collect()
}

/// Says why no more goes to a destination at present; nothing when the way is open.
fn way(one: &DestinationView, now: UnixMillis) -> Option<String> {
    if one.is_held {
        return Some("held".to_owned());
    }
    if let Some(until) = one.closed_until {
        let said = one.said.as_deref().map(escaped).unwrap_or_default();
        let times = if one.failures == 1 { "once".to_owned() } else { format!("{} times", one.failures) };
        return Some(format!("cannot be reached ({times}), tried again {}: {said}", soon(until.0, now)));
    }
    if one.ready == 0 {
        return None;
    }
    if let Some(until) = one.paced_until {
        return Some(format!("its rate allows one more {}", soon(until.0, now)));
    }
    let is_busy = one.in_flight >= u64::from(one.window);
    is_busy.then(|| format!("all of its {} sessions are in use", one.window))
}

/// One line of columns separated by tabs: as on a terminal, with every class of age and the way.
fn plain_destination(one: &DestinationView, now: UnixMillis) -> String {
    let mut columns = vec![escaped(&one.destination)];
    let counts = [one.jobs, one.ready, one.deferred, one.held, one.in_flight, u64::from(one.window)];
    columns.extend(counts.iter().chain(&one.lanes).chain(&one.ages).map(ToString::to_string));
    columns.push(one.oldest.map_or("-".to_owned(), |id| id.to_string()));
    columns.push(way(one, now).unwrap_or_else(|| "open".to_owned()));
    columns.join("\t")
}

#[cfg(test)]
#[path = "standing_tests.rs"]
mod tests;
