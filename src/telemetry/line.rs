//! An event as one line: collects message, fields and the fields of the spans around it.
//!
//! Text: `2026-11-22T07:09:15.123Z INFO deliver: delivered queue_id=… remote=…`. JSON: one object
//! with `time`, `level`, `target`, `message` and the fields beside them.

use std::fmt::{self, Write};
use std::ops::Range;
use std::sync::Arc;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::escape::{push_escaped, push_quoted, push_value};

/// Room for most lines, and for the values of one.
const LINE_OCTETS: usize = 384;
const TEXTS_OCTETS: usize = 256;

/// How a line is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people: time, level, place, message, `key=value`.
    #[default]
    Text,
    /// For programs: one JSON object.
    Json,
}

/// What a line begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stamp {
    /// The time, in UTC with milliseconds.
    Time,
    /// The level as the journal reads it, `<6>`; the journal knows the time.
    Priority,
}

/// Takes whole lines.
pub type Sink = Arc<dyn Fn(&[u8]) + Send + Sync>;

/// A `tracing` layer that writes a line for each event.
pub struct LineLayer {
    format: Format,
    stamp: Stamp,
    sink: Sink,
}

impl LineLayer {
    /// Writes lines in `format` to `sink`, each with its line end in one call.
    pub fn new(format: Format, stamp: Stamp, sink: Sink) -> LineLayer {
        LineLayer { format, stamp, sink }
    }

    fn line(&self, level: Level, target: &str, fields: &Fields) -> String {
        let mut line = String::with_capacity(LINE_OCTETS);
        if self.stamp == Stamp::Priority {
            line.push_str(priority(level));
        }
        match self.format {
            Format::Text => self.push_text(&mut line, level, target, fields),
            Format::Json => self.push_json(&mut line, level, target, fields),
        }
        line.push('\n');
        line
    }

    fn push_text(&self, line: &mut String, level: Level, target: &str, fields: &Fields) {
        if self.stamp == Stamp::Time {
            write!(line, "{:.3} ", jiff::Timestamp::now()).expect("writing to a string cannot fail");
        }
        let place = target.strip_prefix("postroad::").unwrap_or(target);
        write!(line, "{level} {place}: ").expect("writing to a string cannot fail");
        push_escaped(line, &fields.message, false);
        for (name, value) in &fields.pairs {
            line.push(' ');
            line.push_str(name);
            line.push('=');
            let text = fields.text_of(value);
            if value.is_bare { line.push_str(text) } else { push_value(line, text) }
        }
    }

    fn push_json(&self, line: &mut String, level: Level, target: &str, fields: &Fields) {
        let now = jiff::Timestamp::now();
        write!(line, r#"{{"time":"{now:.3}","level":"{level}","target":"#).expect("writing to a string cannot fail");
        push_quoted(line, target);
        line.push_str(r#","message":"#);
        push_quoted(line, &fields.message);
        for (name, value) in &fields.pairs {
            line.push(',');
            push_quoted(line, name);
            line.push(':');
            let text = fields.text_of(value);
            if value.is_bare { line.push_str(text) } else { push_quoted(line, text) }
        }
        line.push('}');
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for LineLayer {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        span.extensions_mut().insert(fields);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(fields) = span.extensions_mut().get_mut::<Fields>() {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let metadata = event.metadata();
        let mut fields = Fields { pairs: Vec::with_capacity(metadata.fields().len()), ..Fields::default() };
        event.record(&mut fields);
        // The nearest wins when two speak of the same field.
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(around) = span.extensions().get::<Fields>() {
                fields.add_missing(around);
            }
        }
        (self.sink)(self.line(*metadata.level(), metadata.target(), &fields).as_bytes());
    }
}

/// The message and the fields of an event or span, in the order they were written. Their texts stand
/// behind one another: a line costs few allocations.
#[derive(Debug, Default)]
struct Fields {
    message: String,
    pairs: Vec<(&'static str, Value)>,
    texts: String,
}

/// Where a value stands among the texts.
#[derive(Clone, Debug)]
struct Value {
    place: Range<usize>,
    /// It is a number or a boolean, the same in both formats. Else it is somebody's text, which is escaped
    /// when it is written.
    is_bare: bool,
}

impl Fields {
    fn set(&mut self, field: &Field, is_bare: bool, value: fmt::Arguments<'_>) {
        if field.name() == "message" {
            self.message.clear();
            return self.message.write_fmt(value).expect("writing to a string cannot fail");
        }
        // Where in a library's source a record was made: of use to nobody but who builds it.
        if ["log.module_path", "log.file", "log.line"].contains(&field.name()) {
            return;
        }
        let value = self.put(is_bare, value);
        match self.pairs.iter_mut().find(|(name, _)| *name == field.name()) {
            Some((_, old)) => *old = value,
            None => self.pairs.push((field.name(), value)),
        }
    }

    fn put(&mut self, is_bare: bool, value: fmt::Arguments<'_>) -> Value {
        if self.texts.capacity() == 0 {
            self.texts.reserve(TEXTS_OCTETS);
        }
        let start = self.texts.len();
        self.texts.write_fmt(value).expect("writing to a string cannot fail");
        Value { place: start..self.texts.len(), is_bare }
    }

    fn text_of(&self, value: &Value) -> &str {
        &self.texts[value.place.clone()]
    }

    fn add_missing(&mut self, around: &Fields) {
        for (name, value) in &around.pairs {
            if !self.pairs.iter().any(|(present, _)| present == name) {
                let value = self.put(value.is_bare, format_args!("{}", around.text_of(value)));
                self.pairs.push((name, value));
            }
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field, false, format_args!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, false, format_args!("{value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, true, format_args!("{value}"));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, true, format_args!("{value}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, true, format_args!("{value}"));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON knows no infinity and no NaN.
        self.set(field, value.is_finite(), format_args!("{value}"));
    }
}

/// sd-daemon(3): the levels of syslog.
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "<3>",
        Level::WARN => "<4>",
        Level::INFO => "<6>",
        _ => "<7>",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use tracing::{info, info_span, warn};
    use tracing_subscriber::layer::SubscriberExt;

    fn lines(format: Format, stamp: Stamp, act: impl FnOnce()) -> Vec<String> {
        let written = Arc::new(Mutex::new(Vec::new()));
        let copy = written.clone();
        let sink: Sink = Arc::new(move |line: &[u8]| {
            copy.lock().expect("no panic").push(String::from_utf8(line.to_vec()).expect("UTF-8"));
        });
        let subscriber = tracing_subscriber::registry().with(LineLayer::new(format, stamp, sink));
        tracing::subscriber::with_default(subscriber, act);
        Arc::try_unwrap(written).expect("the layer is gone").into_inner().expect("no panic")
    }

    #[test]
    fn a_line_carries_the_ids_of_the_spans_around_it() {
        let act = || {
            let _session = info_span!("session", session = "S1", peer = %"192.0.2.1").entered();
            let message = info_span!("message", queue_id = tracing::field::Empty);
            let _message = message.enter();
            message.record("queue_id", "0ABC");
            info!(octets = 12, tls = true, "accepted");
        };
        let lines = lines(Format::Text, Stamp::Priority, act);
        let want =
            "<6>INFO telemetry::line::tests: accepted octets=12 tls=true queue_id=0ABC session=S1 peer=192.0.2.1\n";
        assert_eq!(lines, [want]);
    }

    #[test]
    fn a_peer_cannot_forge_a_line_or_move_the_cursor() {
        let evil = "x\r\n2026-11-22T00:00:00Z INFO forged: \u{1b}[2J\u{9b}1A\u{2028}\"\\";
        for format in [Format::Text, Format::Json] {
            let lines = lines(format, Stamp::Time, || warn!(helo = evil, debug = ?evil, "said {evil}"));
            assert_eq!(lines.len(), 1);
            let line = lines[0].strip_suffix('\n').expect("one line end, at the end");
            assert!(!line.contains(|c: char| c.is_control() || c == '\u{2028}'), "{line:?}");
        }
    }

    #[test]
    fn json_reads_back() {
        let lines =
            lines(Format::Json, Stamp::Time, || info!(reply = "250 \"ok\"\n", ratio = f64::NAN, n = -1, "done\t."));
        let value: serde_json::Value = serde_json::from_str(&lines[0]).expect("JSON");
        assert_eq!(value["message"], "done\t.");
        assert_eq!(value["reply"], "250 \"ok\"\n");
        assert_eq!(value["ratio"], "NaN");
        assert_eq!(value["n"], -1);
        assert_eq!(value["level"], "INFO");
        value["time"].as_str().expect("text").parse::<jiff::Timestamp>().expect("RFC 3339");
    }
}
