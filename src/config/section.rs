//! Walking a TOML table: every key is asked for once, what nobody asked for is unknown, and all
//! faults are collected with their place.

use std::cell::RefCell;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::fault::{Fault, Kind};
use super::value::{self, Complaint, Read};

/// Where faults go.
#[derive(Default)]
pub(super) struct Faults(RefCell<Vec<Fault>>);

/// One table of the file, perhaps absent.
pub(super) struct Section<'t> {
    name: &'static str,
    table: Option<&'t DeTable<'t>>,
    span: Range<usize>,
    asked: Vec<&'static str>,
    faults: &'t Faults,
}

impl Faults {
    /// Adds a fault.
    pub fn add(&self, kind: Kind, span: Range<usize>, message: impl Into<String>, remedy: impl Into<String>) {
        self.0.borrow_mut().push(Fault { message: message.into(), remedy: remedy.into(), span: Some(span), kind });
    }

    /// Adds a fault of two values that do not go together.
    pub fn conflict(&self, span: Range<usize>, message: impl Into<String>, remedy: impl Into<String>) {
        self.add(Kind::Conflict, span, message, remedy);
    }

    /// Returns everything that was added.
    pub fn into_inner(self) -> Vec<Fault> {
        self.0.into_inner()
    }
}

impl<'t> Section<'t> {
    /// The whole file.
    pub fn root(table: &'t DeTable<'t>, faults: &'t Faults) -> Section<'t> {
        Section { name: "", table: Some(table), span: 0..0, asked: Vec::new(), faults }
    }

    /// Returns the table under a key.
    pub fn section(&mut self, key: &'static str) -> Section<'t> {
        let found = self.ask(key);
        let table = found.and_then(|found| match found.get_ref() {
            DeValue::Table(table) => Some(table),
            other => {
                let message = format!("`{key}` is a table, found {}", other.type_str());
                self.faults.add(Kind::Value, found.span(), message, format!("write a line [{key}] and its keys below"));
                None
            }
        });
        let span = found.map_or(0..0, Spanned::span);
        Section { name: key, table, span, asked: Vec::new(), faults: self.faults }
    }

    /// Returns the tables of `[[key]]`, in their order.
    pub fn sections(&mut self, key: &'static str) -> Vec<Section<'t>> {
        let Some(found) = self.ask(key) else { return Vec::new() };
        let remedy = format!("write a line [[{key}]] and its keys below, once for each");
        let DeValue::Array(array) = found.get_ref() else {
            let message = format!("`{key}` may stand several times and needs two brackets");
            self.faults.add(Kind::Value, found.span(), message, remedy);
            return Vec::new();
        };
        let table = |item: &'t Spanned<DeValue<'t>>| match item.get_ref() {
            DeValue::Table(table) => Some(Section {
                name: key,
                table: Some(table),
                span: item.span(),
                asked: Vec::new(),
                faults: self.faults,
            }),
            other => {
                let message = format!("`{key}` holds tables, found {}", other.type_str());
                self.faults.add(Kind::Value, item.span(), message, remedy.as_str());
                None
            }
        };
        items(array).filter_map(table).collect()
    }

    /// Returns where the table's header stands.
    pub fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// Reads a value and keeps its place; `None` when absent or refused.
    pub fn get<T>(&mut self, key: &'static str, read: impl Fn(&DeValue<'_>) -> Read<T>) -> Option<Spanned<T>> {
        let found = self.ask(key)?;
        self.read(key, found, &read)
    }

    /// Reads a value, or takes the default when it is absent (or refused, which is a fault).
    pub fn or<T>(&mut self, key: &'static str, default: T, read: impl Fn(&DeValue<'_>) -> Read<T>) -> T {
        self.get(key, read).map_or(default, Spanned::into_inner)
    }

    /// Reads a list; each refused item is a fault of its own.
    pub fn list<T>(
        &mut self,
        key: &'static str,
        read: impl Fn(&DeValue<'_>) -> Read<T>,
    ) -> Option<Spanned<Vec<Spanned<T>>>> {
        let found = self.ask(key)?;
        let DeValue::Array(array) = found.get_ref() else {
            let message = format!("`{key}` is a list, found {}", found.get_ref().type_str());
            let sample = found.get_ref().as_str().map_or("…".to_owned(), |text| format!("{text:?}"));
            self.faults.add(Kind::Value, found.span(), message, format!("write {key} = [{sample}]"));
            return None;
        };
        let read_all: Vec<_> = items(array).filter_map(|item| self.read(key, item, &read)).collect();
        Some(Spanned::new(found.span(), read_all))
    }

    /// Returns whether a key stands in the table, without asking for it.
    pub fn holds(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
    }

    /// Returns whether the file has an empty list under a key, without asking for it.
    pub fn holds_empty_list(&self, key: &str) -> bool {
        let found = self.table.and_then(|table| table.get(key));
        found.is_some_and(|found| found.get_ref().as_array().is_some_and(|array| array.is_empty()))
    }

    /// Returns whether the file has `true` or `false` under a key, without asking for it.
    pub fn holds_boolean(&self, key: &str) -> bool {
        let found = self.table.and_then(|table| table.get(key));
        found.is_some_and(|found| found.get_ref().as_bool().is_some())
    }

    /// Reports the keys that nobody asked for.
    pub fn finish(self) {
        let Some(table) = self.table else { return };
        for (key, _) in table.iter().filter(|(key, _)| !self.asked.contains(&key.get_ref().as_ref())) {
            let place = if self.name.is_empty() { "the top level".to_owned() } else { format!("[{}]", self.name) };
            let remedy = match value::nearest(key.get_ref(), self.asked.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("possible keys: {}", self.asked.join(", ")),
            };
            self.faults.add(Kind::Value, key.span(), format!("`{}` is no key of {place}", key.get_ref()), remedy);
        }
    }

    fn ask(&mut self, key: &'static str) -> Option<&'t Spanned<DeValue<'t>>> {
        self.asked.push(key);
        self.table?.get(key)
    }

    fn read<T>(
        &self,
        key: &str,
        found: &Spanned<DeValue<'_>>,
        read: &impl Fn(&DeValue<'_>) -> Read<T>,
    ) -> Option<Spanned<T>> {
        match read(found.get_ref()) {
            Ok(value) => Some(Spanned::new(found.span(), value)),
            Err(Complaint { message, remedy }) => {
                self.faults.add(Kind::Value, found.span(), format!("`{key}`: {message}"), remedy);
                None
            }
        }
    }
}

fn items<'t>(array: &'t DeArray<'t>) -> impl Iterator<Item = &'t Spanned<DeValue<'t>>> {
    array.iter()
}
