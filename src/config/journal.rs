//! `[journal]`: how much is kept of what happened to messages.

use std::time::Duration;

use toml::Spanned;

use super::read::seconds;
use super::section::{Faults, Section};
use super::value;

const DAY: u64 = 24 * 3600;
/// Events come in batches of up to 4 MiB; less room than a few of them holds no time to speak of.
const OCTETS_MIN: u64 = 16 << 20;

/// `[journal]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Journal {
    /// All of it, in octets; default 256 MiB, 0: none.
    pub octets_max: u64,
    /// How long events are kept; default 15 days, 0: none.
    pub age: Duration,
}

impl Journal {
    /// Returns whether events are kept.
    pub fn is_on(&self) -> bool {
        self.octets_max > 0 && !self.age.is_zero()
    }
}

pub(super) fn journal(mut s: Section<'_>, faults: &Faults) -> Journal {
    let size_max = s.get("size_max", value::size(0..=1 << 40));
    if let Some(found) = size_max.as_ref().filter(|found| (1..OCTETS_MIN).contains(found.get_ref())) {
        let message = "`size_max` is too little for a journal";
        faults.conflict(found.span(), message, "write at least \"16MiB\", or \"0B\" for no journal");
    }
    let journal = Journal {
        octets_max: size_max.map_or(256 << 20, Spanned::into_inner),
        age: s.or("age", Duration::from_secs(15 * DAY), seconds(0..=365 * DAY)),
    };
    s.finish();
    journal
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::Config;

    #[test]
    fn a_journal_is_off_or_large_enough() {
        let read = |text: &str| Config::from_str(&format!("[journal]\n{text}"), "test", Path::new("/"));
        let is_on = |text| read(text).map(|config| config.journal.is_on()).map_err(|faults| faults.to_string());
        assert_eq!(is_on(""), Ok(true));
        assert_eq!(is_on("size_max = \"16MiB\""), Ok(true));
        assert_eq!(is_on("size_max = \"0B\""), Ok(false));
        assert_eq!(is_on("age = \"0s\""), Ok(false));
        let fault = is_on("size_max = \"1MB\"").expect_err("too little");
        assert!(fault.contains("too little") && fault.contains("16MiB"), "{fault}");
    }
}
