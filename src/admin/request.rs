//! The words of the control socket: requests, and the lines of an answer. Shared by server and
//! command line, so that they cannot disagree.
//!
//! A field that is not known is refused, never read over: a filter that an older agent does not
//! understand must not become a wider one.

use std::fmt;
use std::str::FromStr;

use postroad_queue::{QueueId, QueueIdError};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::filter::Filter;
use super::mesh::MeshRequest;
use super::standing::DestinationView;
use super::trace::SearchedView;
use super::view::{MessageView, TotalsView};

/// The version of the protocol; a request of another one is refused.
pub const VERSION: u64 = 1;

/// The longest request, in octets, its line end included.
pub const REQUEST_OCTETS_MAX: usize = 64 * 1024;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", deny_unknown_fields)]
pub enum Request {
    /// Whether somebody answers.
    #[serde(rename = "ping")]
    Ping {},
    /// How the agent is.
    #[serde(rename = "status")]
    Status {},
    /// Read the configuration again.
    #[serde(rename = "reload")]
    Reload {},
    /// Something of the mesh. The item is a view of [`mesh`](super::mesh).
    #[serde(rename = "mesh")]
    Mesh {
        /// What.
        request: MeshRequest,
    },
    /// A request about the queue of another member of the mesh. Items and end are those of that request.
    #[serde(rename = "peer")]
    Peer {
        /// Its label, its id, or what its id begins with.
        node: String,
        /// One of those that begin with `queue.`.
        request: Box<Request>,
    },
    /// The messages that a filter selects, oldest first.
    #[serde(rename = "queue.list")]
    List {
        /// Which.
        #[serde(default)]
        filter: Filter,
        /// Only those behind this one: the `next` of the page before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<Id>,
        /// At most so many.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limit: Option<u64>,
    },
    /// One message with all its recipients.
    #[serde(rename = "queue.show")]
    Show {
        /// Which.
        id: Id,
    },
    /// What each part of a message waits for.
    #[serde(rename = "queue.why")]
    Why {
        /// Which.
        id: Id,
    },
    /// What became of messages, also of those that are gone.
    #[serde(rename = "trace")]
    Trace {
        /// A queue id, a Message-ID or an address.
        what: String,
        /// Only those accepted at most so long ago, in milliseconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        since_ms: Option<u64>,
        /// At most so many, the newest.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limit: Option<u64>,
    },
    /// Totals, and how each destination stands, those with most jobs first.
    #[serde(rename = "queue.stats")]
    Stats {
        /// What is counted together.
        #[serde(default)]
        by: By,
        /// At most so many.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limit: Option<u64>,
    },
    /// Changes the messages that a filter selects.
    #[serde(rename = "queue.act")]
    Act {
        /// How.
        action: Action,
        /// Which; an empty filter must say `all`.
        filter: Filter,
        /// Only say what would be changed.
        #[serde(default)]
        dry_run: bool,
        /// At most so many.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limit: Option<u64>,
    },
}

/// What `queue.stats` counts together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// What goes to one destination.
    #[default]
    Destination,
    /// What goes to one host or set of hosts, whatever the domain.
    Site,
}

/// What can be done to messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// No attempt until released. Holds the whole message.
    Hold,
    /// Ends a hold. Releases the whole message.
    Release,
    /// The selected recipients are due now.
    Retry,
    /// The selected recipients are given up without a notification.
    Remove,
    /// The selected recipients are given up and the sender is notified.
    Bounce,
}

/// A line of an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Line {
    /// One of what was asked for; its shape depends on the request (see `view`).
    Item(serde_json::Value),
    /// The work goes on.
    Progress(Progress),
    /// The work is done; the last line.
    Done(Done),
    /// It could not be done; the last line.
    Error(Failure),
}

/// How far long work is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Messages looked at.
    pub seen: u64,
    /// Messages to look at, as far as known.
    pub total: u64,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Done {
    /// Messages or destinations that matched.
    pub matched: u64,
    /// Messages that are now otherwise than before.
    pub changed: u64,
    /// Messages that should have been changed and could not be; their items say why.
    pub failed: u64,
    /// Where the next page begins, when the limit cut this one off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<Id>,
    /// Ids asked for that the queue does not have.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<Id>,
    /// The totals of `queue.stats`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub totals: Option<TotalsView>,
    /// The sum over all destinations of `queue.stats`, also those that were not shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sum: Option<Box<DestinationView>>,
    /// The message of `queue.why`, with all its recipients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<Box<MessageView>>,
    /// What `trace` has searched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub searched: Option<Box<SearchedView>>,
    /// A sentence for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// Why something cannot be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What is wrong, naming thing and place.
    pub message: String,
    /// What to do about it; may be empty.
    #[serde(default)]
    pub remedy: String,
}

impl Failure {
    /// Builds a failure; `remedy` may be empty.
    pub fn new(message: impl Into<String>, remedy: impl Into<String>) -> Failure {
        Failure { message: message.into(), remedy: remedy.into() }
    }
}

impl Request {
    /// Reads a request from its line.
    ///
    /// # Errors
    /// The words for the client.
    pub fn parse(line: &[u8]) -> Result<Request, Failure> {
        let malformed = |error: serde_json::Error| {
            Failure::new(format!("the request cannot be read: {error}"), "use the `postroad` command of this version")
        };
        let mut fields: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(line).map_err(malformed)?;
        match fields.remove("v").and_then(|version| version.as_u64()) {
            Some(VERSION) => serde_json::from_value(fields.into()).map_err(malformed),
            other => {
                let asked = other.map_or("none".to_owned(), |version| version.to_string());
                let message = format!("this agent speaks version {VERSION} of the control protocol, asked was {asked}");
                Err(Failure::new(message, "use the `postroad` command of the version that runs, or restart the agent"))
            }
        }
    }

    /// Returns the request as its line.
    pub fn to_line(&self) -> Vec<u8> {
        let mut value = serde_json::to_value(self).expect("a request is plain JSON");
        let fields = value.as_object_mut().expect("a request is a tagged object");
        fields.insert("v".to_owned(), VERSION.into());
        let mut line = value.to_string().into_bytes();
        line.push(b'\n');
        line
    }
}

impl Action {
    /// Returns the word of the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Action::Hold => "hold",
            Action::Release => "release",
            Action::Retry => "retry",
            Action::Remove => "remove",
            Action::Bounce => "bounce",
        }
    }

    /// Returns the word for what was done.
    pub const fn past(self) -> &'static str {
        match self {
            Action::Hold => "held",
            Action::Release => "released",
            Action::Retry => "made due",
            Action::Remove => "removed",
            Action::Bounce => "bounced",
        }
    }

    /// Returns whether it cannot be taken back.
    pub const fn is_final(self) -> bool {
        matches!(self, Action::Remove | Action::Bounce)
    }
}

/// A queue id as text in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub QueueId);

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Id {
    type Err = QueueIdError;

    fn from_str(text: &str) -> Result<Id, QueueIdError> {
        text.parse().map(Id)
    }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Id, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> Id {
        Id(QueueId::from_u64(7))
    }

    #[test]
    fn requests_read_back() {
        let filter = Filter { ids: vec![id()], older_ms: Some(3_600_000), held: true, ..Filter::default() };
        for request in [
            Request::Ping {},
            Request::Reload {},
            Request::List { filter: filter.clone(), after: Some(id()), limit: Some(5) },
            Request::Show { id: id() },
            Request::Peer { node: "lab".to_owned(), request: Box::new(Request::Show { id: id() }) },
            Request::Stats { by: By::Site, limit: Some(20) },
            Request::Trace { what: "<1.2@app.example>".to_owned(), since_ms: Some(7), limit: None },
            Request::Act { action: Action::Bounce, filter, dry_run: true, limit: None },
        ] {
            let line = request.to_line();
            assert_eq!(line.iter().filter(|c| **c == b'\n').count(), 1);
            assert_eq!(Request::parse(&line), Ok(request));
        }
        let short = br#"{"v":1,"op":"queue.list"}"#;
        assert_eq!(Request::parse(short), Ok(Request::List { filter: Filter::default(), after: None, limit: None }));
    }

    #[test]
    fn what_is_not_understood_is_refused_and_never_read_over() {
        for line in [
            &b""[..],
            b"null",
            b"[]",
            b"{}",
            b"\xff\xfe",
            br#"{"v":1}"#,
            br#"{"v":1,"op":"queue.erase"}"#,
            br#"{"v":1,"op":"ping","extra":1}"#,
            br#"{"v":1,"op":"queue.act","action":"remove","filter":{"frm":"a@b"}}"#,
            br#"{"v":1,"op":"queue.act","action":"remove"}"#,
            br#"{"v":1,"op":"queue.show","id":"nonsense"}"#,
        ] {
            assert!(Request::parse(line).is_err(), "{}", String::from_utf8_lossy(line));
        }
        let error = Request::parse(br#"{"v":2,"op":"ping"}"#).expect_err("another version");
        assert!(error.message.contains("version 1") && error.message.contains("asked was 2"), "{error}");
        let nested = [&br#"{"v":1,"op":"#[..], &b"[".repeat(30_000), &b"]".repeat(30_000), b"}"].concat();
        assert!(Request::parse(&nested).is_err());
    }
}
