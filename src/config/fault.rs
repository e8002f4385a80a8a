//! What is wrong with a configuration, as shown to the person who wrote it: file, line, column, the
//! line itself and what to write instead. All faults of a file are collected before any is shown.

use std::fmt;
use std::ops::Range;

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

/// Why a configuration was refused: at least one fault, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    name: String,
    text: String,
    faults: Vec<Fault>,
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What is wrong, naming the thing.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
    /// The octets of the text it is about; `None` when the file could not be read at all.
    pub span: Option<Range<usize>>,
    pub(super) kind: Kind,
}

/// How a fault was found, which decides whether it is worth showing beside syntax errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The text is no TOML.
    Syntax,
    /// A key or value is wrong by itself.
    Value,
    /// Two values do not go together, or one is missing.
    Conflict,
}

impl ConfigErrors {
    /// Keeps the faults worth showing: what a syntax error may have caused is dropped.
    pub(super) fn new(name: &str, text: &str, mut faults: Vec<Fault>) -> ConfigErrors {
        let line = |fault: &Fault| fault.span.as_ref().map(|span| line_column(text, span.start).0);
        let torn: Vec<_> = faults.iter().filter(|fault| fault.kind == Kind::Syntax).map(line).collect();
        faults.retain(|fault| match fault.kind {
            Kind::Syntax => true,
            Kind::Value => !torn.contains(&line(fault)),
            Kind::Conflict => torn.is_empty(),
        });
        faults.sort_by_key(|fault| fault.span.as_ref().map(|span| (span.start, span.end)));
        faults.dedup();
        ConfigErrors { name: name.to_owned(), text: text.to_owned(), faults }
    }

    /// The one fault of a file that could not be read.
    pub(super) fn unreadable(name: &str, message: String, remedy: String) -> ConfigErrors {
        let fault = Fault { message, remedy, span: None, kind: Kind::Syntax };
        ConfigErrors { name: name.to_owned(), text: String::new(), faults: vec![fault] }
    }

    /// Returns the file's name as it was given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the faults, in the order of the file; never empty.
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }

    /// Returns line and column of a fault, both from 1, the column in characters.
    pub fn position(&self, fault: &Fault) -> Option<(usize, usize)> {
        fault.span.as_ref().map(|span| line_column(&self.text, span.start))
    }

    /// Returns the text for a terminal, in colour.
    pub fn styled(&self) -> String {
        self.render(&Renderer::styled())
    }

    fn render(&self, renderer: &Renderer) -> String {
        let renderer = renderer.clone().decor_style(DecorStyle::Ascii);
        let blocks: Vec<_> = self.faults.iter().map(|fault| self.render_one(fault, &renderer)).collect();
        blocks.join("\n\n")
    }

    fn render_one(&self, fault: &Fault, renderer: &Renderer) -> String {
        let title = Level::ERROR.primary_title(fault.message.as_str());
        let group = match &fault.span {
            Some(span) => title.element(
                Snippet::source(self.text.as_str())
                    .path(self.name.as_str())
                    .annotation(AnnotationKind::Primary.span(span.clone())),
            ),
            None => title.element(annotate_snippets::Origin::path(self.name.as_str())),
        };
        let group =
            if fault.remedy.is_empty() { group } else { group.element(Level::HELP.message(fault.remedy.as_str())) };
        renderer.render(&[group])
    }
}

impl fmt::Display for ConfigErrors {
    /// Writes every fault with its line, without colour.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(&Renderer::plain()))
    }
}

impl std::error::Error for ConfigErrors {}

/// Returns line and column, from 1, of an offset; an offset inside a character counts as its start.
pub(super) fn line_column(text: &str, offset: usize) -> (usize, usize) {
    let before = &text.as_bytes()[..offset.min(text.len())];
    let start = before.iter().rposition(|c| *c == b'\n').map_or(0, |at| at + 1);
    let line = before.iter().filter(|c| **c == b'\n').count() + 1;
    let is_start = |c: &&u8| (**c & 0xC0) != 0x80;
    (line, before[start..].iter().filter(is_start).count() + 1)
}
