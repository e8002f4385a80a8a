//! Change records: what became other than in the state of a message that was recorded before.
//!
//! A message with a thousand recipients at a thousand destinations is recorded a thousand times.
//! Writing every recipient each time would be a million; a change has only those that differ. What it
//! says of a recipient holds whatever was said before, so changes are applied in the order in which
//! they stand, and one that is lost leaves its recipients as they were: tried again, never forgotten.

use crate::codec::{CodecError, Fields, array, decode_state, encode_state, get_progress, nest, put, put_progress};
use crate::item::State;

/// A recipient that changed: its place and its progress. A reader of states passes over it.
const CHANGED: u8 = 64;
/// Its place in the envelope, among the fields of its progress, whose own tags are far lower.
const PLACE: u8 = 64;

/// Appends the metadata of a Change record: what of `new` differs from `old`, which has as many
/// recipients. `new` is as before when it returns.
pub(crate) fn encode(old: &State, new: &mut State, out: &mut Vec<u8>) {
    let recipients = std::mem::take(&mut new.recipients);
    encode_state(new, out);
    for (place, (old, new)) in (0u32..).zip(old.recipients.iter().zip(&recipients)) {
        if old != new {
            nest(out, CHANGED, |out| {
                put(out, PLACE, &place.to_le_bytes());
                put_progress(out, new);
            });
        }
    }
    new.recipients = recipients;
}

/// Brings a state up to what a Change record says.
pub(crate) fn apply(state: &mut State, meta: &[u8]) -> Result<(), CodecError> {
    let mut recipients = std::mem::take(&mut state.recipients);
    *state = decode_state(meta)?;
    for field in Fields(meta) {
        let (CHANGED, value) = field? else { continue };
        let place = Fields(value).flatten().find(|(tag, _)| *tag == PLACE).ok_or(CodecError("a place"))?.1;
        let place = u32::from_le_bytes(array(place)?) as usize;
        *recipients.get_mut(place).ok_or(CodecError("the place of a recipient"))? = get_progress(value)?;
    }
    state.recipients = recipients;
    Ok(())
}

#[cfg(test)]
mod tests {
    use postroad_smtp::Reply;

    use super::*;
    use crate::id::UnixMillis;
    use crate::item::{RecipientState, Report};

    #[test]
    fn a_change_says_what_differs_and_nothing_else() {
        let old = State::fresh(1000, UnixMillis(1), UnixMillis(9));
        let report = Report { at: UnixMillis(3), remote: None, reply: Reply::of(250, None, "ok") };
        let mut new = State { held: true, expires: UnixMillis(10), ..old.clone() };
        new.recipients[0] = RecipientState::Delivered { report: report.clone(), notified: true };
        new.recipients[999] = RecipientState::Failed { report, notified: false };
        let (mut meta, given) = (Vec::new(), new.clone());
        encode(&old, &mut new, &mut meta);
        assert_eq!(new, given);
        assert!(meta.len() < 150, "{} octets", meta.len());
        let mut state = old.clone();
        apply(&mut state, &meta).expect("sound");
        assert_eq!(state, new);
        apply(&mut state, &meta).expect("sound");
        assert_eq!(state, new, "twice is as good as once");
        assert!(apply(&mut State::fresh(999, UnixMillis(1), UnixMillis(9)), &meta).is_err());
        for end in 0..meta.len() {
            let _ = apply(&mut old.clone(), &meta[..end]);
        }
    }
}
