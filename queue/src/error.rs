//! What can go wrong with the queue, one enum per operation, and what a client hears of it.
//!
//! The conversion to a [`Reply`] stands beside each enum and nowhere else.

use std::io;
use std::sync::Arc;

use postroad_smtp::{Reply, Status};

use crate::id::QueueId;

const FULL: Reply = Reply::of(452, Some(Status::new(4, 3, 1)), "Insufficient system storage, please try again later");
const FAULT: Reply = Reply::of(451, Some(Status::new(4, 3, 0)), "Local storage error, please try again later");
const STOPPING: Reply = Reply::of(451, Some(Status::new(4, 3, 2)), "Shutting down, please try again later");
const TOO_LARGE: Reply = Reply::of(552, Some(Status::new(5, 3, 4)), "Envelope exceeds fixed maximum size");

/// Why the queue cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another agent has it.
    #[error("{place} is in use by {holder}: stop that agent, or give this one a state_dir of its own")]
    Locked {
        /// The directory of the queue.
        place: String,
        /// Who holds the lock, as the lock file says.
        holder: String,
    },
    /// The directory belongs to somebody else.
    #[error(
        "{place} belongs to user {owner}, but this agent runs as user {user}: change its owner or run as that user"
    )]
    Owner {
        /// The directory of the queue.
        place: String,
        /// Its owner.
        owner: u32,
        /// Who we are.
        user: u32,
    },
    /// A later release wrote it.
    #[error("{place} has format version {found}, this release reads up to {known}: run the release that wrote it")]
    Version {
        /// The file.
        place: String,
        /// Its version.
        found: u16,
        /// The newest version that this release reads.
        known: u16,
    },
    /// The disk refuses.
    #[error("cannot {action} {place}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        place: String,
        /// What the system says.
        source: io::Error,
    },
}

/// Why no draft is to be had now.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DraftError {
    /// Less is free than the reserve.
    #[error(
        "only {free_octets} octets are free on the disk of the queue and {reserve_octets} are kept in reserve: free some space"
    )]
    Full {
        /// Free now.
        free_octets: u64,
        /// The reserve.
        reserve_octets: u64,
    },
    /// The disk failed earlier.
    #[error("the queue takes no mail since its disk failed ({0}): mend the disk, then restart the agent")]
    Poisoned(Arc<str>),
    /// The queue is stopping.
    #[error("the queue is stopping")]
    Stopped,
}

/// Why content cannot be added to a draft.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// The disk is full.
    #[error("the disk of the queue is full: free some space")]
    Full,
    /// The content file cannot be written.
    #[error("cannot write content/{id}: {source}")]
    Io {
        /// The draft.
        id: QueueId,
        /// What the system says.
        source: io::Error,
    },
    /// An earlier piece could not be written: the draft is void.
    #[error("an earlier part of this message could not be written")]
    Void,
}

/// Why a message was not committed. Nothing of it is kept.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CommitError {
    /// The disk is full.
    #[error("the disk of the queue is full: free some space")]
    Full,
    /// The disk failed, now or earlier.
    #[error("the queue takes no mail since its disk failed ({0}): mend the disk, then restart the agent")]
    Poisoned(Arc<str>),
    /// The envelope takes more octets than a record may have.
    #[error("the envelope takes {octets} octets, at most {max} can be stored: send to fewer recipients at once")]
    TooLarge {
        /// Its octets.
        octets: usize,
        /// The most there may be.
        max: usize,
    },
    /// No file could be made for want of descriptors.
    #[error("no file descriptors are left: raise the limit (LimitNOFILE=)")]
    NoDescriptors,
    /// A part of the content could not be written.
    #[error("a part of this message could not be written")]
    Void,
    /// The queue was stopped.
    #[error("the queue is stopping")]
    Stopped,
}

/// Why a message cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It is not in the queue, or no longer.
    #[error("there is no message {0} in the queue")]
    Unknown(QueueId),
    /// What is on disk is not what was written.
    #[error("message {id} is damaged on disk ({place}: {what}): see the log for where it was saved")]
    Damaged {
        /// The message.
        id: QueueId,
        /// The file.
        place: String,
        /// What is wrong.
        what: &'static str,
    },
    /// The disk failed earlier, so that an outcome could not be recorded.
    #[error("deliveries stopped since the disk of the queue failed ({0}): mend the disk, then restart the agent")]
    Poisoned(Arc<str>),
    /// The disk refuses to read.
    #[error("cannot read message {id} from {place}: {source}")]
    Io {
        /// The message.
        id: QueueId,
        /// The file.
        place: String,
        /// What the system says.
        source: io::Error,
    },
}

/// Why a state was not recorded. The state recorded before stands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The message is not in the queue, or no longer.
    #[error("there is no message {0} in the queue")]
    Unknown(QueueId),
    /// The state takes more octets than a record may have.
    #[error("the state of the message takes {octets} octets, at most {max} can be stored")]
    TooLarge {
        /// Its octets.
        octets: usize,
        /// The most there may be.
        max: usize,
    },
    /// The disk is full, the reserve used up.
    #[error("the disk of the queue is full: free some space")]
    Full,
    /// No file could be made for want of descriptors.
    #[error("no file descriptors are left: raise the limit (LimitNOFILE=)")]
    NoDescriptors,
    /// The disk failed, now or earlier.
    #[error("nothing can be recorded since the disk of the queue failed ({0}): mend the disk, then restart the agent")]
    Poisoned(Arc<str>),
    /// The queue was stopped.
    #[error("the queue is stopping")]
    Stopped,
}

impl From<&DraftError> for Reply {
    fn from(error: &DraftError) -> Reply {
        match error {
            DraftError::Full { .. } => FULL,
            DraftError::Poisoned(_) => FAULT,
            DraftError::Stopped => STOPPING,
        }
    }
}

impl From<&AppendError> for Reply {
    fn from(error: &AppendError) -> Reply {
        match error {
            AppendError::Full => FULL,
            AppendError::Io { .. } | AppendError::Void => FAULT,
        }
    }
}

impl From<&CommitError> for Reply {
    fn from(error: &CommitError) -> Reply {
        match error {
            CommitError::Full => FULL,
            CommitError::Poisoned(_) | CommitError::NoDescriptors | CommitError::Void => FAULT,
            CommitError::TooLarge { .. } => TOO_LARGE,
            CommitError::Stopped => STOPPING,
        }
    }
}

impl From<&LoadError> for Reply {
    /// What stands as the outcome of an attempt whose message could not be read: always transient,
    /// a person must look.
    fn from(_: &LoadError) -> Reply {
        FAULT
    }
}

/// Returns whether the disk is full rather than broken.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Returns whether there are no descriptors left, for us or on this host.
pub(crate) fn is_out_of_descriptors(error: &io::Error) -> bool {
    let errno = rustix::io::Errno::from_io_error(error);
    matches!(errno, Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_its_reply() {
        let why: Arc<str> = "sync failed".into();
        let id = QueueId::from_u64(1);
        let io = || io::Error::other("x");
        let table: Vec<(Reply, &str)> = vec![
            (
                (&DraftError::Full { free_octets: 1, reserve_octets: 2 }).into(),
                "452 4.3.1 Insufficient system storage, please try again later",
            ),
            ((&DraftError::Poisoned(why.clone())).into(), "451 4.3.0 Local storage error, please try again later"),
            ((&DraftError::Stopped).into(), "451 4.3.2 Shutting down, please try again later"),
            ((&AppendError::Full).into(), "452 4.3.1 Insufficient system storage, please try again later"),
            ((&AppendError::Io { id, source: io() }).into(), "451 4.3.0 Local storage error, please try again later"),
            ((&AppendError::Void).into(), "451 4.3.0 Local storage error, please try again later"),
            ((&CommitError::Full).into(), "452 4.3.1 Insufficient system storage, please try again later"),
            ((&CommitError::Poisoned(why)).into(), "451 4.3.0 Local storage error, please try again later"),
            ((&CommitError::NoDescriptors).into(), "451 4.3.0 Local storage error, please try again later"),
            ((&CommitError::Void).into(), "451 4.3.0 Local storage error, please try again later"),
            ((&CommitError::TooLarge { octets: 2, max: 1 }).into(), "552 5.3.4 Envelope exceeds fixed maximum size"),
            ((&CommitError::Stopped).into(), "451 4.3.2 Shutting down, please try again later"),
            ((&LoadError::Unknown(id)).into(), "451 4.3.0 Local storage error, please try again later"),
        ];
        for (reply, text) in table {
            assert_eq!(reply.to_string(), text);
        }
    }
}
