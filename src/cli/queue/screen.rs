//! How messages look: a table for a terminal, tab-separated lines for a pipe, JSON
//! lines for a program. What a stranger wrote is escaped before it reaches a terminal.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, presets};
use postroad_queue::UnixMillis;
use serde::Serialize;

use crate::admin::view::{ActView, MessageState, MessageView, RecipientStateView, RecipientView};
use crate::cli::Failure;
use crate::telemetry::escaped;

/// Rows drawn at a time: a long list appears as it is read, and is never in memory.
const TABLE_ROWS: usize = 200;
/// On a narrower terminal recipients and reply stand below their message, each on a line of its own: an address
/// that is broken over two lines can neither be read nor copied.
const ONE_LINE_COLUMNS_MIN: u16 = 120;
/// The columns that do: the last.
const BELOW: usize = 2;
/// Recipients named in a list.
const RECIPIENTS_NAMED: usize = 3;

/// How output is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// For people.
    Table,
    /// For `cut` and `awk`.
    Plain,
    /// For programs.
    Json,
}

impl Look {
    /// Returns what suits standard output, and `--json`.
    pub fn of_output(json: bool) -> Look {
        match json {
            true => Look::Json,
            false if io::stdout().is_terminal() => Look::Table,
            false => Look::Plain,
        }
    }
}

/// What is printed on, with the rows not yet drawn.
#[derive(Debug)]
pub struct Screen {
    /// How output is wanted.
    pub look: Look,
    pub(super) now: UnixMillis,
    /// The member of the mesh that is told of, where there are several.
    pub(super) node: Option<String>,
    /// Columns of the terminal; found out by itself when `None`.
    width: Option<u16>,
    rows: Vec<Vec<String>>,
    drawn: bool,
}

const NODE_MESSAGE_HEAD: &[&str] = &["NODE", "ID", "AGE", "SIZE", "STATE", "TRIES", "NEXT", "FROM", "TO", "LAST REPLY"];
const MESSAGE_HEAD: &[&str] = &["ID", "AGE", "SIZE", "STATE", "TRIES", "NEXT", "FROM", "TO", "LAST REPLY"];

/// Columns that give way on a narrow terminal.
const FLEXIBLE: &[&str] = &["FROM", "TO", "LAST REPLY"];
const NUMBERS: &[&str] = &["SIZE", "TRIES"];

impl Screen {
    /// A screen for standard output.
    pub fn new(json: bool, now: UnixMillis) -> Screen {
        Screen::with_look(Look::of_output(json), now, None)
    }

    /// A screen that looks as told.
    pub fn with_look(look: Look, now: UnixMillis, width: Option<u16>) -> Screen {
        Screen { look, now, node: None, width, rows: Vec::new(), drawn: false }
    }

    /// Shows a message in a list.
    pub fn message(&mut self, out: &mut dyn Write, message: &MessageView) -> Result<(), Failure> {
        match self.look {
            Look::Json => self.json(out, message),
            Look::Plain => self.plain(out, plain_message(message)),
            Look::Table => self.row(out, message_row(message, self.now)),
        }
    }

    /// Shows what was done to a message.
    pub fn acted(&mut self, out: &mut dyn Write, act: &ActView) -> Result<(), Failure> {
        match self.look {
            Look::Json => json(out, act),
            Look::Plain => {
                let outcome = serde_json::to_value(act.outcome).expect("an outcome is a word");
                line(out, format_args!("{}\t{}", act.message.id, outcome.as_str().unwrap_or_default()))
            }
            Look::Table => self.row(out, message_row(&act.message, self.now)),
        }
    }

    /// Shows a message with all its recipients.
    pub fn details(&mut self, out: &mut dyn Write, message: &MessageView) -> Result<(), Failure> {
        match self.look {
            Look::Json => json(out, message),
            _ => details(message, self.now).into_iter().try_for_each(|text| line(out, text)),
        }
    }

    /// Prints a value, with the member that it is of where there are several.
    pub(super) fn json(&self, out: &mut dyn Write, value: &impl Serialize) -> Result<(), Failure> {
        let Some(node) = &self.node else { return json(out, value) };
        let mut value = serde_json::to_value(value).expect("a view is plain JSON");
        if let Some(fields) = value.as_object_mut() {
            fields.insert("node".to_owned(), node.as_str().into());
        }
        json(out, &value)
    }

    /// Prints a line for a pipe, behind the member that it is of where there are several.
    pub(super) fn plain(&self, out: &mut dyn Write, text: impl std::fmt::Display) -> Result<(), Failure> {
        match &self.node {
            Some(node) => line(out, format_args!("{}\t{text}", escaped(node))),
            None => line(out, text),
        }
    }

    fn head(&self) -> &'static [&'static str] {
        if self.node.is_some() { NODE_MESSAGE_HEAD } else { MESSAGE_HEAD }
    }

    fn row(&mut self, out: &mut dyn Write, row: Vec<String>) -> Result<(), Failure> {
        let node = self.node.iter().map(|node| escaped(node));
        self.rows.push(node.chain(row).collect());
        if self.rows.len() >= TABLE_ROWS { self.draw(out, self.head()) } else { Ok(()) }
    }

    /// Draws the messages that wait to be drawn.
    pub fn end_messages(&mut self, out: &mut dyn Write) -> Result<(), Failure> {
        self.draw(out, self.head())
    }

    fn draw(&mut self, out: &mut dyn Write, head: &[&str]) -> Result<(), Failure> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        let width = self.width.or_else(|| table.width());
        let is_narrow = width.is_some_and(|width| width < ONE_LINE_COLUMNS_MIN);
        let mut rows = std::mem::take(&mut self.rows);
        let columns = head.len() - if is_narrow { BELOW } else { 0 };
        let below: Vec<Vec<String>> = rows.iter_mut().map(|row| row.split_off(columns)).collect();
        if let Some(width) = width.filter(|_| !is_narrow) {
            table.set_width(width).set_content_arrangement(ContentArrangement::Dynamic);
        }
        let has_head = !std::mem::replace(&mut self.drawn, true);
        if has_head {
            table.set_header(head[..columns].to_vec());
        }
        table.add_rows(rows);
        for (at, column) in table.column_iter_mut().enumerate() {
            column.set_padding((0, 1));
            // An id that is broken over two lines cannot be copied.
            if !FLEXIBLE.contains(&head[at]) {
                column.set_constraint(ColumnConstraint::ContentWidth);
            }
            if NUMBERS.contains(&head[at]) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        if !is_narrow {
            return line(out, table.trim_fmt());
        }
        let mut lines = table.lines();
        if has_head && let Some(head) = lines.next() {
            line(out, head.trim_end())?;
        }
        for (row, below) in lines.zip(below) {
            line(out, row.trim_end())?;
            below.iter().filter(|text| !text.is_empty()).try_for_each(|text| line(out, format_args!("    {text}")))?;
        }
        Ok(())
    }
}

pub fn line(out: &mut dyn Write, text: impl std::fmt::Display) -> Result<(), Failure> {
    Ok(writeln!(out, "{text}")?)
}

pub fn json(out: &mut dyn Write, value: &impl Serialize) -> Result<(), Failure> {
    line(out, serde_json::to_string(value).expect("a view is plain JSON"))
}

fn message_row(message: &MessageView, now: UnixMillis) -> Vec<String> {
    vec![
        message.id.to_string(),
        span(now.since(message.arrived.0)),
        size(message.size),
        state(message.state).to_owned(),
        most_attempts(message).to_string(),
        next(message, now),
        escaped(&message.from),
        named_recipients(message),
        last_reply(message).unwrap_or_default(),
    ]
}

fn plain_message(message: &MessageView) -> String {
    let due = message.recipients.iter().filter_map(RecipientView::next).min();
    let to: Vec<String> = message.recipients.iter().map(|recipient| escaped(&recipient.to)).collect();
    let columns = [
        message.id.to_string(),
        message.arrived.to_string(),
        message.size.to_string(),
        state(message.state).to_owned(),
        most_attempts(message).to_string(),
        due.map_or("-".to_owned(), |due| due.to_string()),
        escaped(&message.from),
        if to.is_empty() { "-".to_owned() } else { to.join(",") },
        last_reply(message).unwrap_or_else(|| "-".to_owned()),
    ];
    columns.join("\t")
}

fn details(message: &MessageView, now: UnixMillis) -> Vec<String> {
    let mut lines = vec![format!("{}  {}", message.id, state(message.state))];
    let mut pair = |name: &str, value: String| lines.push(format!("  {name:<10} {value}"));
    pair("from", escaped(&message.from));
    pair("accepted", format!("{} ({} ago)", message.arrived, span(now.since(message.arrived.0))));
    pair("expires", format!("{} ({})", message.expires, soon(message.expires.0, now)));
    pair("size", format!("{} octets", message.size));
    pair("origin", origin(message));
    if let Some(envid) = &message.envid {
        pair("envid", escaped(envid));
    }
    if let Some(priority) = message.priority {
        pair("priority", priority.to_string());
    }
    if let Some(release) = message.release {
        pair("release", format!("{release} ({})", soon(release.0, now)));
    }
    if let Some(by) = message.deliver_by {
        pair("deliver by", format!("{by} ({})", soon(by.0, now)));
    }
    if let Some(mid) = &message.mid {
        pair("mid", escaped(mid));
    }
    pair("recipients", format!("{}, {} of them pending", message.recipients_total, message.recipients_pending));
    lines.extend(message.recipients.iter().map(|recipient| recipient_line(recipient, now)));
    lines
}

fn origin(message: &MessageView) -> String {
    let origin = &message.origin;
    let mut text = escaped(&origin.protocol);
    for (word, value) in [("from", &origin.peer), ("as", &origin.helo), ("login", &origin.user)] {
        if let Some(value) = value {
            text += &format!(" {word} {}", escaped(value));
        }
    }
    match origin.session.as_str() {
        "" => text,
        session => format!("{text} session {}", escaped(session)),
    }
}

fn recipient_line(recipient: &RecipientView, now: UnixMillis) -> String {
    let to = escaped(&recipient.to);
    let how = match (recipient.state, recipient.attempts, recipient.next()) {
        (RecipientStateView::Pending, Some(0), _) => "not tried yet".to_owned(),
        (RecipientStateView::Pending, tries, due) => {
            let next = due.map_or("-".to_owned(), |due| soon(due.0, now));
            format!("tries: {}, next {next}", tries.unwrap_or_default())
        }
        (RecipientStateView::Delivered, ..) => "delivered".to_owned(),
        (RecipientStateView::Failed, ..) => "failed".to_owned(),
    };
    let Some(last) = &recipient.last else {
        let outage = recipient.outage.as_ref();
        let why =
            outage.map(|outage| format!(", tried again {}: {}", soon(outage.until.0, now), escaped(&outage.said)));
        return format!(
            "  {to}: {how}{}",
            why.map(|why| format!("; its next hop cannot be reached{why}")).unwrap_or_default()
        );
    };
    let remote = last.remote.as_deref().map_or(String::new(), |remote| format!("{} said ", escaped(remote)));
    format!("  {to}: {how}\n    {} {remote}{}", last.at, escaped(&last.reply))
}

fn named_recipients(message: &MessageView) -> String {
    let named: Vec<String> = message.recipients.iter().take(RECIPIENTS_NAMED).map(|to| escaped(&to.to)).collect();
    let others = message.recipients_pending.max(named.len() as u64) - named.len() as u64;
    let text = named.join(", ");
    if others == 0 { text } else { format!("{text} +{others}") }
}

fn most_attempts(message: &MessageView) -> u32 {
    message.recipients.iter().filter_map(|recipient| recipient.attempts).max().unwrap_or(0)
}

fn last_reply(message: &MessageView) -> Option<String> {
    let reports = message.recipients.iter().filter_map(|recipient| recipient.last.as_ref());
    let said = reports.max_by_key(|report| report.at).map(|report| &report.reply);
    // Who waits behind others for a next hop that is down has heard nothing itself.
    let outage = || message.recipients.iter().find_map(|recipient| Some(&recipient.outage.as_ref()?.said));
    said.or_else(outage).map(|said| escaped(said))
}

fn next(message: &MessageView, now: UnixMillis) -> String {
    let due = message.recipients.iter().filter_map(RecipientView::next).min();
    match (message.state, due) {
        (MessageState::Held | MessageState::Settled, _) | (_, None) => "-".to_owned(),
        (_, Some(due)) => soon(due.0, now),
    }
}

fn state(state: MessageState) -> &'static str {
    match state {
        MessageState::Held => "held",
        MessageState::Queued => "queued",
        MessageState::Deferred => "deferred",
        MessageState::Settled => "settled",
    }
}

pub(super) fn soon(at: UnixMillis, now: UnixMillis) -> String {
    if at <= now { "now".to_owned() } else { format!("in {}", span(at.since(now))) }
}

/// A time span in its largest unit.
pub(super) fn span(millis: u64) -> String {
    let seconds = Duration::from_millis(millis).as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Octets in their largest unit.
pub fn size(octets: u64) -> String {
    let units = [("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1000)];
    match units.iter().find(|(_, unit)| octets >= *unit) {
        Some((name, unit)) => format!("{:.1} {name}", octets as f64 / *unit as f64),
        None => format!("{octets} B"),
    }
}

#[cfg(test)]
#[path = "screen_tests.rs"]
mod tests;
