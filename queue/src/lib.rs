//! The durable queue: disk only, no network, no runtime, no clock.
//!
//! # State of a message on disk
//!
//! `+` is there and synced, `?` may be there, `-` is not there. A message is known by its *Message
//! record* in a segment `log/SEQUENCE.seg`; content above [`Options::inline_octets_max`] lies in a
//! file `content/ID`, smaller content inside the record. The newest *State record* says how far the
//! recipients are, with the *Change records* behind it; a *Retired record* ends the message. In the
//! table State stands for both.
//!
//! | state     | content/ID | Message | State | Retired | after a crash it is                    |
//! |-----------|------------|---------|-------|---------|----------------------------------------|
//! | draft     | `?`        | `-`     | `-`   | `-`     | gone; a leftover content file is removed |
//! | writing   | `+`        | `?`     | `-`   | `-`     | gone or committed, never in between    |
//! | committed | `+`        | `+`     | `-`   | `-`     | there, every recipient pending         |
//! | recorded  | `+`        | `+`     | `+`   | `-`     | there, as last recorded                |
//! | recording | `+`        | `+`     | `?`   | `-`     | there, before or after that record     |
//! | retired   | `+`        | `+`     | `?`   | `?`     | gone, or there as last recorded        |
//! | released  | `-`        | `-`     | `-`   | `+`     | gone                                   |
//!
//! (`content/ID` stands for large messages only; `+` in that column means "where there is one".)
//!
//! * draft → writing: [`Draft::commit`] hands the draft over; its content file is synced (beside the
//!   committer, so that small messages do not wait for it), then the directory `content/`, then the
//!   Message record is written.
//! * writing → committed: one sync of the active segment for the whole batch. **Commit point**: only
//!   behind it is a [`Committed`] made, and the 250 needs one.
//! * committed → recorded: [`Queue::record`] writes a State record, or a Change record of what differs
//!   from the state before where there are many recipients; one sync for the batch, then its callback. **Commit point** of an outcome: nobody acts on it before.
//! * any → retired: [`Queue::retire`] drops the message from the index and writes the Retired record at
//!   once, in its caller's thread and beside a sync that is going on; where the end of the segment leaves no
//!   room, with the next batch. It has no sync of its own. Power that fails before one may bring the message
//!   back as it was last recorded: **it may be delivered again, it is never lost**. What is written
//!   survives the end of the process alone.
//! * retired → released: `content/ID` is removed once the Retired record is synced. A segment is
//!   removed when no record in it is needed: no Message and no newest State of a message whose Retired
//!   record is not synced, and no Retired record for a Message in a segment that still exists (those
//!   are copied forward first, synced).
//! * A segment mostly dead is compacted: its live messages are written again, each with its newest
//!   state, synced, and then the segment is removed. Two copies of one message with one id are one
//!   message; the later one counts.
//!
//! The file of a removed segment may become another one: it is renamed and the directory synced before it
//! is written, its new header is synced before it has its new name, and nobody reads it any more.
//!
//! A sealed segment has a *summary* `summary/SEQUENCE.sum` of what stands in it, so that opening need not
//! read it. It is written behind the sync of its segment, never synced, and never needed: whatever a crash
//! leaves of it, the segment is read where the summary is not whole.
//!
//! A new segment's directory entry is synced before its first record is; a batch never spans two
//! segments without a sync between them, so only the newest segment can be torn.
//!
//! # What may be repeated
//!
//! What was delivered but not yet recorded, when the process ends or power fails; what was retired but
//! not yet synced, when power fails. What was written for a sender that never heard 250 may be there as
//! well: it was submitted, and the sender will submit it again.
//!
//! # Failure
//!
//! *Disk full* (or below [`Options::reserve_octets`]) refuses with 452 and harms nothing. *Any other
//! failed write or sync of the log* poisons the queue until it is opened again: drafts, commits and
//! records are refused with an error that says why, [`Queue::content`] is refused too, so that
//! deliveries whose outcome could not be recorded stop; [`Queue::ids`] and [`Queue::load`] go on for
//! people to look. A failed sync is never tried again. *Damage* found when opening is copied to
//! `quarantine/` and reported; damage found when reading is an error of that message alone
//! ([`LoadError::Damaged`]), which [`Queue::quarantine`] then sets aside. A message of which only a
//! state is damaged goes on from the newest one that can be read. *What cannot be read* when opening,
//! and damage that a full disk has no room to save, is reported and stays where it is: the next open
//! may do better.
//!
//! The format is described in `docs/queue-format.md`.

mod ahead;
mod answers;
mod cache;
mod change;
mod codec;
mod committer;
mod content;
mod draft;
mod entries;
mod error;
pub mod fs;
mod gather;
mod history;
pub mod id;
mod inbox;
mod index;
pub mod item;
mod log;
mod quarantine;
mod read;
mod record;
mod recorded;
mod recovery;
mod retirement;
pub mod retry;
mod scan;
pub mod schedule;
mod snapshot;
mod spool;
mod summary;
mod syncers;
mod tail;
mod tidy;
mod walk;
mod words;

pub use answers::Listener;
pub use committer::Committer;
pub use content::{ContentReader, ContentStream};
pub use draft::{Committed, Draft};
pub use error::{AppendError, CommitError, DraftError, LoadError, OpenError, RecordError};
pub use fs::{Fs, OsFs};
pub use history::{History, Said};
pub use id::{QueueId, QueueIdError, UnixMillis};
pub use item::{Item, Origin, RecipientState, Report, State};
pub use quarantine::SetAside;
pub use recovery::{Damage, RecoveryReport};
pub use retry::RetryPolicy;
pub use schedule::Schedule;
pub use snapshot::Snapshot;
pub use spool::{Options, Queue, Room};
pub use words::Words;
