//! What each condition selects, alone and together.

use proptest::prelude::*;

use super::*;
use crate::admin::testing::{HOUR_MS, NOW, entry, held};

fn two_domains() -> Entry {
    entry(5, 30, "Cron@app.example.org", &[("ops@dead.example", 7), ("log@example.com", 0)])
}

fn places(filter: Filter) -> Option<Vec<usize>> {
    filter.select(&two_domains(), NOW)
}

fn text(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[test]
fn conditions_on_the_message_select_all_its_pending_recipients() {
    let all = Some(vec![0, 1]);
    assert_eq!(places(Filter::default()), all);
    assert_eq!(places(Filter { ids: vec![Id(two_domains().item.id)], ..Filter::default() }), all);
    assert_eq!(places(Filter { ids: vec!["0000000000009".parse().expect("an id")], ..Filter::default() }), None);
    assert_eq!(places(Filter { from: text("cron@APP.example.org"), ..Filter::default() }), all);
    assert_eq!(places(Filter { from: text("*@app.*"), ..Filter::default() }), all);
    assert_eq!(places(Filter { from: text("<>"), ..Filter::default() }), None);
    assert_eq!(places(Filter { older_ms: Some(30 * HOUR_MS), ..Filter::default() }), all);
    assert_eq!(places(Filter { older_ms: Some(31 * HOUR_MS), ..Filter::default() }), None);
    assert_eq!(places(Filter { newer_ms: Some(29 * HOUR_MS), ..Filter::default() }), None);
    assert_eq!(places(Filter { held: true, ..Filter::default() }), None);
    assert!(Filter { held: true, ..Filter::default() }.select(&held(two_domains()), NOW).is_some());
    let bounce = entry(6, 1, "", &[("a@b.example", 0)]);
    assert!(Filter { from: text("<>"), ..Filter::default() }.select(&bounce, NOW).is_some());
}

#[test]
fn conditions_on_recipients_select_those_alone() {
    for filter in [
        Filter { to: text("ops@*"), ..Filter::default() },
        Filter { domain: text("DEAD.example."), ..Filter::default() },
        Filter { destination: text("mx:dead.example"), ..Filter::default() },
        Filter { destination: text("dead.*"), ..Filter::default() },
        Filter { attempts: Some(7), ..Filter::default() },
        Filter { deferred: true, ..Filter::default() },
        Filter { reply: text("GREYLISTED"), ..Filter::default() },
        Filter { reply: text("450 4.2.0"), ..Filter::default() },
    ] {
        assert_eq!(places(filter.clone()), Some(vec![0]), "{filter:?}");
    }
    // Both conditions must hold of the same recipient.
    assert_eq!(places(Filter { domain: text("example.com"), attempts: Some(1), ..Filter::default() }), None);
    assert_eq!(places(Filter { domain: text("example"), ..Filter::default() }), None);
}

#[test]
fn settled_recipients_are_never_selected() {
    let mut entry = two_domains();
    let report = match &entry.item.state.recipients[0] {
        RecipientState::Pending { last: Some(report), .. } => report.clone(),
        _ => unreachable!("the first recipient was tried"),
    };
    for state in &mut std::sync::Arc::make_mut(&mut entry.item).state.recipients {
        *state = RecipientState::Failed { report: report.clone(), notified: false };
    }
    assert_eq!(Filter::default().select(&entry, NOW), Some(vec![]));
    assert_eq!(Filter { to: text("*"), ..Filter::default() }.select(&entry, NOW), None);
}

#[test]
fn only_a_filter_without_conditions_is_unconditional() {
    assert!(Filter::default().is_unconditional());
    assert!(Filter { all: true, ..Filter::default() }.is_unconditional());
    assert!(!Filter { held: true, all: true, ..Filter::default() }.is_unconditional());
}

#[test]
fn a_star_stands_for_any_text() {
    for (glob, subject, want) in [
        ("", "", true),
        ("", "a", false),
        ("*", "", true),
        ("a*", "abc", true),
        ("*c", "abc", true),
        ("a*c", "abc", true),
        ("a*c", "ab", false),
        ("ab*ba", "aba", false),
        ("*b*b*", "abab", true),
        ("**", "x", true),
        ("a", "ab", false),
    ] {
        assert_eq!(matches(glob, subject), want, "{glob:?} {subject:?}");
    }
}

/// The plain definition of `*`, by trying every split.
fn matches_slowly(glob: &[u8], text: &[u8]) -> bool {
    match glob.split_first() {
        None => text.is_empty(),
        Some((b'*', rest)) => (0..=text.len()).any(|at| matches_slowly(rest, &text[at..])),
        Some((c, rest)) => text.first() == Some(c) && matches_slowly(rest, &text[1..]),
    }
}

fn any_filter() -> impl Strategy<Value = Filter> {
    let globs = || proptest::option::of(prop_oneof![Just("*".to_owned()), "[a-z*@.]{0,6}".prop_map(|glob| glob)]);
    (globs(), globs(), globs(), globs(), proptest::option::of(0u32..9), any::<(bool, bool)>(), 0u64..60).prop_map(
        |(from, to, domain, destination, attempts, (held, deferred), hours)| Filter {
            from,
            to,
            domain,
            destination,
            attempts,
            held,
            deferred,
            older_ms: (hours % 2 == 0).then_some(hours * HOUR_MS),
            ..Filter::default()
        },
    )
}

proptest! {
    #[test]
    fn the_fast_match_is_the_plain_one(glob in "[ab*]{0,8}", text in "[ab]{0,10}") {
        prop_assert_eq!(matches(&glob, &text), matches_slowly(glob.as_bytes(), text.as_bytes()));
    }

    #[test]
    fn another_condition_never_selects_more(a in any_filter(), b in any_filter()) {
        let both = Filter {
            to: a.to.clone(),
            domain: a.domain.clone().or(b.domain.clone()),
            from: a.from.clone().or(b.from.clone()),
            destination: a.destination.clone().or(b.destination.clone()),
            attempts: a.attempts.max(b.attempts),
            held: a.held || b.held,
            deferred: a.deferred || b.deferred,
            older_ms: a.older_ms.max(b.older_ms),
            ..Filter::default()
        };
        for entry in [two_domains(), held(two_domains())] {
            let wide = a.select(&entry, NOW);
            if let Some(narrow) = both.select(&entry, NOW) {
                let wide = wide.expect("the wider filter selects the message too");
                prop_assert!(narrow.iter().all(|place| wide.contains(place)), "{narrow:?} {wide:?}");
            }
        }
    }

    #[test]
    fn a_filter_survives_the_socket(filter in any_filter()) {
        let text = serde_json::to_string(&filter).expect("JSON");
        prop_assert_eq!(serde_json::from_str::<Filter>(&text).expect("read back"), filter);
    }
}
