//! What was said at earlier attempts: each reply once, with how often and when. Bounded: the first and
//! the last few are kept, since a reply that changes with every attempt (times, session ids) must
//! not make a message grow.

use crate::id::UnixMillis;
use crate::item::Report;

/// Replies kept.
const SAID_MAX: usize = 6;
/// Octets kept of a reply's text.
const TEXT_OCTETS_MAX: usize = 512;

/// What was said before the last report, the first to be said first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History(pub(crate) Vec<Said>);

/// A reply that was given once or several times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// It, as it was given first.
    pub report: Report,
    /// How often it was given.
    pub times: u32,
    /// When it was given last.
    pub until: UnixMillis,
}

impl History {
    /// Adds what was said after all that is there.
    pub fn add(&mut self, mut report: Report) {
        let end = report.reply.text.floor_char_boundary(TEXT_OCTETS_MAX);
        if end < report.reply.text.len() {
            report.reply.text = report.reply.text[..end].to_owned().into();
        }
        if let Some(said) = self.0.iter_mut().find(|said| said.report.reply == report.reply) {
            said.times = said.times.saturating_add(1);
            said.until = said.until.max(report.at);
            return;
        }
        if self.0.len() >= SAID_MAX {
            // How it began stays.
            let later = self.0.iter().enumerate().skip(1);
            if let Some((stale, _)) = later.min_by_key(|(_, said)| said.until) {
                self.0.remove(stale);
            }
        }
        self.0.push(Said { until: report.at, report, times: 1 });
    }

    /// Returns what was said, the first to be said first.
    pub fn said(&self) -> &[Said] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use postroad_smtp::Reply;

    use super::*;

    fn report(at: u64, text: &str) -> Report {
        Report { at: UnixMillis(at), remote: None, reply: Reply::of(451, None, "").with_text(text) }
    }

    fn shown(history: &History) -> Vec<(String, u32, u64)> {
        history.said().iter().map(|said| (said.report.reply.text.to_string(), said.times, said.until.0)).collect()
    }

    #[test]
    fn what_is_repeated_is_kept_once() {
        let mut history = History::default();
        for (at, text) in [(1, "greylisted"), (2, "busy"), (3, "greylisted"), (4, "busy"), (5, "busy")] {
            history.add(report(at, text));
        }
        assert_eq!(shown(&history), [("greylisted".to_owned(), 2, 3), ("busy".to_owned(), 3, 5)]);
    }

    #[test]
    fn the_first_and_the_last_few_are_kept_and_none_is_long() {
        let mut history = History::default();
        for at in 0..1000 {
            history.add(report(at, &format!("try {at}")));
        }
        let texts: Vec<String> = shown(&history).into_iter().map(|(text, ..)| text).collect();
        assert_eq!(texts, ["try 0", "try 995", "try 996", "try 997", "try 998", "try 999"]);
        let mut history = History::default();
        history.add(report(1, &"\u{e9}".repeat(5000)));
        assert_eq!(history.said()[0].report.reply.text.len(), TEXT_OCTETS_MAX);
    }
}
