//! States as they were recorded last, of messages with many recipients, so that what is recorded next
//! can be written as a change.
//!
//! Bounded by recipients; what is not here is written whole.

use std::collections::{HashMap, VecDeque};

use crate::answers::Answers;
use crate::change;
use crate::codec::encode_state;
use crate::committer::{Op, PendingState};
use crate::error::RecordError;
use crate::history::History;
use crate::id::QueueId;
use crate::index::Entry;
use crate::item::{RecipientState, State};
use crate::record::META_OCTETS_MAX;
use crate::spool::{Spool, lock};

/// From so many recipients on, states are written as changes.
pub(crate) const RECIPIENTS_MIN: usize = 8;
/// The most recipients whose states are kept.
const RECIPIENTS_MAX: usize = 100_000;

/// The states recorded last.
#[derive(Default)]
pub(crate) struct Recorded {
    states: HashMap<QueueId, State>,
    order: VecDeque<QueueId>,
    recipients: usize,
}

impl Recorded {
    /// Makes what is written of a state: all of it, or what differs from the one recorded before while
    /// all such differences together are shorter than the whole.
    pub(crate) fn encode(&self, id: QueueId, entry: &Entry, pending: &mut PendingState) -> Result<(), RecordError> {
        let Some(state) = &mut pending.state else { return Ok(()) };
        let old = self.states.get(&id).filter(|old| old.recipients.len() == state.recipients.len());
        let whole = entry.state.map_or(0, |(_, octets)| octets as usize);
        let changes: usize = entry.changes.iter().map(|(_, octets)| *octets as usize).sum();
        if let Some(old) = old
            && changes < whole
        {
            let mut meta = Vec::with_capacity(256);
            change::encode(old, state, &mut meta);
            if meta.len() < whole {
                (pending.meta, pending.is_change) = (meta, true);
                return Ok(());
            }
        }
        (pending.meta, pending.is_change) = (encode_whole(state)?, false);
        Ok(())
    }

    /// Keeps the state of a message that was just recorded.
    pub(crate) fn keep(&mut self, id: QueueId, state: State) {
        self.recipients += state.recipients.len();
        match self.states.insert(id, state) {
            Some(old) => self.recipients -= old.recipients.len(),
            None => self.order.push_back(id),
        }
        while self.recipients > RECIPIENTS_MAX {
            let Some(oldest) = self.order.pop_front() else { return };
            self.forget(oldest);
        }
    }

    /// Forgets a message.
    pub(crate) fn forget(&mut self, id: QueueId) {
        if let Some(old) = self.states.remove(&id) {
            self.recipients -= old.recipients.len();
        }
    }

    /// Forgets everything and gives the memory back.
    pub(crate) fn clear(&mut self) {
        *self = Recorded::default();
    }
}

/// Makes what is written of states; drops those of messages retired since they were handed in.
pub(crate) fn still_known(spool: &Spool, ops: VecDeque<Op>, answers: &mut Answers) -> VecDeque<Op> {
    if !ops.iter().any(|op| matches!(op, Op::State(..))) {
        return ops;
    }
    let index = lock(&spool.index);
    let recorded = lock(&spool.recorded);
    let mut known = VecDeque::with_capacity(ops.len());
    for op in ops {
        let Op::State(id, mut state) = op else {
            known.push_back(op);
            continue;
        };
        let entry = index.get(id).ok_or(RecordError::Unknown(id));
        match entry.and_then(|entry| recorded.encode(id, &entry, &mut state)) {
            Ok(()) => known.push_back(Op::State(id, state)),
            Err(e) => answers.states.extend(state.done.into_iter().map(|done| (done, Err(e.clone())))),
        }
    }
    known
}

/// Makes a State record's metadata. Where that would be longer than a record may be, what next hops
/// said is left out.
pub(crate) fn encode_whole(state: &State) -> Result<Vec<u8>, RecordError> {
    let mut meta = Vec::with_capacity(64);
    encode_state(state, &mut meta);
    if meta.len() > META_OCTETS_MAX {
        meta.clear();
        encode_state(&without_words(state.clone()), &mut meta);
    }
    if meta.len() > META_OCTETS_MAX {
        return Err(RecordError::TooLarge { octets: meta.len(), max: META_OCTETS_MAX });
    }
    Ok(meta)
}

fn without_words(mut state: State) -> State {
    for recipient in &mut state.recipients {
        let report = match recipient {
            RecipientState::Pending { last, earlier, .. } => {
                *earlier = History::default();
                last.as_mut()
            }
            RecipientState::Delivered { report, .. } | RecipientState::Failed { report, .. } => Some(report),
        };
        if let Some(report) = report {
            (report.remote, report.reply.text) = (None, "".into());
        }
    }
    state
}

#[cfg(test)]
mod tests {
    use postroad_smtp::Reply;

    use super::*;
    use crate::id::UnixMillis;
    use crate::item::Report;

    #[test]
    fn a_state_too_long_for_a_record_loses_its_words_and_no_recipient() {
        let mut state = State::fresh(40_000, UnixMillis(1), UnixMillis(9));
        let report =
            Report { at: UnixMillis(3), remote: None, reply: Reply::of(451, None, "").with_text(&"later".repeat(100)) };
        state.recipients.fill(RecipientState::Pending {
            attempts: 1,
            due: UnixMillis(5),
            last: Some(report),
            earlier: History::default(),
        });
        let meta = encode_whole(&state).expect("it fits");
        let read = crate::codec::decode_state(&meta).expect("sound");
        assert!(meta.len() < 4 << 20 && read == without_words(state), "{} octets", meta.len());
        let state = State::fresh(1_200_000, UnixMillis(1), UnixMillis(9));
        assert!(matches!(encode_whole(&state), Err(RecordError::TooLarge { .. })));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut recorded = Recorded::default();
        for n in 0..30u64 {
            recorded.keep(QueueId::from_u64(n), State::fresh(10_000, UnixMillis(1), UnixMillis(9)));
        }
        assert_eq!((recorded.states.len(), recorded.recipients), (10, RECIPIENTS_MAX));
        assert!(recorded.states.contains_key(&QueueId::from_u64(29)));
        (0..30).for_each(|n| recorded.forget(QueueId::from_u64(n)));
        assert_eq!((recorded.states.len(), recorded.recipients), (0, 0));
    }
}
