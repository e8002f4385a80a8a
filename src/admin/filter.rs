//! Which messages an admin means, and which of their recipients.
//!
//! All conditions must hold. Some speak of the message (ids, sender, age, hold), some of a
//! recipient still pending (address, domain, destination, attempts, last reply); a message is
//! selected when at least one pending recipient fulfils all of the latter, and only those
//! recipients are: bouncing what waits for a dead domain leaves a message's other recipients alone.

use postroad_queue::{Item, RecipientState, UnixMillis, Words};
use postroad_smtp::{ForwardPath, Recipient, ReversePath};
use serde::{Deserialize, Serialize};

use super::backend::Entry;
use super::request::Id;

/// The conditions; the default selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// One of these messages; any when empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<Id>,
    /// The reverse-path, `*` for any text; `<>` is the null one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The recipient's address, `*` for any text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// The recipient's domain, `*` for any text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// The next hop's key, or the part behind its first colon; `*` for any text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
    /// Text anywhere in the last reply, in any case of letters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply: Option<String>,
    /// Accepted at least so long ago, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub older_ms: Option<u64>,
    /// Accepted at most so long ago, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub newer_ms: Option<u64>,
    /// At least so many attempts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// Held.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub held: bool,
    /// Tried before, without success.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub deferred: bool,
    /// Every message: said on purpose where no other condition is.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
}

impl Filter {
    /// Returns whether no condition is set, so that everything is selected.
    pub fn is_unconditional(&self) -> bool {
        Filter { all: false, ..self.clone() } == Filter::default()
    }

    /// Returns text that every message selected has in it.
    pub fn words(&self) -> Words {
        // A null reverse-path is recorded as nothing.
        let from = self.from.as_deref().filter(|glob| !glob.contains(['<', '>']));
        let domain = self.domain.as_deref().map(|glob| glob.trim_end_matches('.'));
        let globs = [from, self.to.as_deref(), domain];
        Words::new(globs.into_iter().flatten().flat_map(|glob| glob.split('*')))
    }

    /// Returns the places of the recipients selected, in the envelope's order, or `None` when the
    /// message is not. A message without pending recipients is selected by conditions on the
    /// message alone, with an empty list.
    pub fn select(&self, entry: &Entry, now: UnixMillis) -> Option<Vec<usize>> {
        let item = &*entry.item;
        if !self.selects_message(item, now) {
            return None;
        }
        let recipients = item.envelope.recipients().iter().zip(&item.state.recipients).enumerate();
        let pending = recipients.filter(|(_, (_, state))| matches!(state, RecipientState::Pending { .. }));
        let selected: Vec<usize> = pending
            .filter(|(place, (recipient, state))| {
                let destination = entry.destinations.get(*place).map(|key| &**key);
                self.selects_recipient(recipient, state, destination)
            })
            .map(|(place, _)| place)
            .collect();
        (!selected.is_empty() || !self.asks_of_recipients()).then_some(selected)
    }

    /// Returns whether the conditions on the message itself hold.
    pub fn selects_message(&self, item: &Item, now: UnixMillis) -> bool {
        let age_ms = now.since(item.arrived);
        (self.ids.is_empty() || self.ids.contains(&Id(item.id)))
            && self.from.as_ref().is_none_or(|glob| matches(glob, &sender(&item.envelope.reverse_path)))
            && self.older_ms.is_none_or(|least| age_ms >= least)
            && self.newer_ms.is_none_or(|most| age_ms <= most)
            && (!self.held || item.state.held)
    }

    fn asks_of_recipients(&self) -> bool {
        let text = [&self.to, &self.domain, &self.destination, &self.reply];
        text.iter().any(|condition| condition.is_some()) || self.attempts.is_some() || self.deferred
    }

    fn selects_recipient(&self, recipient: &Recipient, state: &RecipientState, destination: Option<&str>) -> bool {
        let RecipientState::Pending { attempts, last, .. } = state else { return false };
        let path = &recipient.forward_path;
        self.to.as_ref().is_none_or(|glob| matches(glob, &address(path)))
            && self.domain.as_ref().is_none_or(|glob| matches(glob.trim_end_matches('.'), &domain(path)))
            && self.destination.as_ref().is_none_or(|glob| destination.is_some_and(|key| matches_key(glob, key)))
            && self.attempts.is_none_or(|least| *attempts >= least)
            && (!self.deferred || *attempts > 0)
            && self.reply.as_ref().is_none_or(|text| {
                let wanted = text.to_lowercase();
                last.as_ref().is_some_and(|report| report.reply.to_string().to_lowercase().contains(&wanted))
            })
    }
}

/// Returns the reverse-path as it is shown and compared: without brackets, `<>` when null.
pub fn sender(path: &ReversePath) -> String {
    path.mailbox().map_or("<>".to_owned(), ToString::to_string)
}

/// Returns the forward-path as it is shown and compared: without brackets.
pub fn address(path: &ForwardPath) -> String {
    path.mailbox().map_or("postmaster".to_owned(), ToString::to_string)
}

fn domain(path: &ForwardPath) -> String {
    path.mailbox().map_or(String::new(), |mailbox| mailbox.host.to_string())
}

fn matches_key(glob: &str, key: &str) -> bool {
    matches(glob, key) || key.split_once(':').is_some_and(|(_, name)| matches(glob, name))
}

/// Whether `text` is `glob`, where `*` stands for any text; in any case of letters.
fn matches(glob: &str, text: &str) -> bool {
    let (glob, text) = (glob.to_lowercase(), text.to_lowercase());
    let mut parts = glob.split('*');
    let first = parts.next().expect("split gives at least one part");
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
