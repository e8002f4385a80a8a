//! What became of recipients, for the journal: those to whom the same happened stand in one event.

use std::time::Duration;

use postroad_queue::{Item, RecipientState};

use super::dispatcher::Core;
use super::outcome::Outcome;
use crate::clock::millis;
use crate::journal::{Kind, Note};
use crate::route::{Route, Target};

/// Notes what an attempt came to for each of its recipients.
pub fn outcomes(core: &Core, item: &Item, outcomes: &[(usize, Outcome)], took: Duration) {
    if !core.journal.is_on() {
        return;
    }
    let took_ms = Some(u32::try_from(millis(took)).unwrap_or(u32::MAX));
    for group in outcomes.chunk_by(|(_, one), (_, next)| is_same(one, next)) {
        let Some((_, outcome)) = group.first() else { continue };
        let kind = match outcome {
            Outcome::Delivered { .. } => Kind::Delivered,
            Outcome::Deferred(_) => Kind::Deferred,
            Outcome::Failed(_) => Kind::Failed,
        };
        let is_all = group.len() == item.envelope.recipients().len();
        let places: Vec<usize> = if is_all { Vec::new() } else { group.iter().map(|(place, _)| *place).collect() };
        let report = outcome.report();
        let (remote, reply) = (report.remote.as_deref(), Some(&report.reply));
        let note = Note { places: &places, remote, reply, took_ms, ..Note::default() };
        core.journal.note(report.at, item.id, kind, &note);
    }
}

/// Tells the mesh what hosts outside said to mail that came through it.
pub fn outside(core: &Core, item: &Item, route: &Route, outcomes: &[(usize, Outcome)]) {
    if !matches!(route, Route::Smtp(hop) if !matches!(hop.target(), Target::Members { .. })) {
        return;
    }
    let Some(passage) = item.envelope.params.passage.as_ref().and_then(|token| token.as_str().parse().ok()) else {
        return;
    };
    let count = |is: fn(&Outcome) -> bool| {
        u32::try_from(outcomes.iter().filter(|(_, one)| is(one)).count()).unwrap_or(u32::MAX)
    };
    let delivered = count(|outcome| matches!(outcome, Outcome::Delivered { .. }));
    let refused = count(|outcome| matches!(outcome, Outcome::Failed(_)));
    core.peers.note_outside(&passage, delivered, refused);
}

fn is_same(one: &Outcome, other: &Outcome) -> bool {
    let (a, b) = (one.report(), other.report());
    std::mem::discriminant(one) == std::mem::discriminant(other) && a.remote == b.remote && a.reply == b.reply
}

/// Notes which of these recipients were given up: their time was over when the last answer was still
/// a transient one.
pub fn expired(core: &Core, item: &Item, mut places: Vec<usize>) {
    places.retain(|place| matches!(item.state.recipients[*place], RecipientState::Failed { .. }));
    if !places.is_empty() {
        core.journal.note(core.clock.now(), item.id, Kind::Expired, &Note { places: &places, ..Note::default() });
    }
}

#[cfg(test)]
mod tests {
    use postroad_queue::{Report, UnixMillis};
    use postroad_smtp::Reply;

    use super::*;

    #[test]
    fn the_same_answer_at_another_moment_is_the_same() {
        let report = |at: u64, code| Report { at: UnixMillis(at), remote: None, reply: Reply::of(code, None, "so") };
        assert!(is_same(&Outcome::Deferred(report(1, 451)), &Outcome::Deferred(report(2, 451))));
        assert!(!is_same(&Outcome::Deferred(report(1, 451)), &Outcome::Deferred(report(1, 452))));
        assert!(!is_same(&Outcome::Deferred(report(1, 550)), &Outcome::Failed(report(1, 550))));
    }
}
