//! What the control socket needs of the agent behind it: to be implemented where queue, dispatcher
//! and configuration meet, and by tests.

use std::future::Future;
use std::io;
use std::sync::Arc;

use postroad_queue::schedule::{DestinationStats, Standing};
use postroad_queue::{Item, QueueId, UnixMillis};

use super::filter::Filter;
use super::mesh::MeshRequest;
use super::request::{Action, Done, Failure, Request};
use super::trace::{SilentView, TraceView};
use super::view::{StatusView, TotalsView};
use crate::journal::{Found, Question};

/// A message of the queue, with where each recipient goes.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The message.
    pub item: Arc<Item>,
    /// The next hop's key of each recipient, in the envelope's order; empty when nobody knows.
    pub destinations: Vec<Arc<str>>,
    /// When the first of its pending recipients is given up.
    pub expires: UnixMillis,
}

/// A message to be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Which.
    pub id: QueueId,
    /// The places of its recipients that are meant. Hold and release concern the whole message.
    pub recipients: Vec<usize>,
}

/// The agent, as its admin sees it.
pub trait AdminBackend: Send + Sync + 'static {
    /// Returns the time that the queue's times are compared with.
    fn now(&self) -> UnixMillis;

    /// Returns how many messages there are.
    fn len(&self) -> usize;

    /// Returns whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns up to `limit` ids behind `after`, ascending.
    fn ids(&self, after: Option<QueueId>, limit: usize) -> Vec<QueueId>;

    /// Reads a message, or `None` when it is gone. May read the disk: called where blocking is
    /// allowed.
    fn entry(&self, id: QueueId) -> Option<Entry>;

    /// Reads messages, in their order, each as it is asked for. Left out are those that are gone, and some
    /// that the filter does not select. May read the disk, as [`AdminBackend::entry`].
    fn entries<'a>(&'a self, ids: &'a [QueueId], filter: &'a Filter) -> impl Iterator<Item = Entry> + 'a;

    /// Returns what each job of a message waits for.
    fn standings(&self, id: QueueId) -> impl Future<Output = Vec<Standing>> + Send;

    /// Returns past which members of the mesh a message goes to a destination because they cannot be reached, and what
    /// was said of these; nobody where there is no mesh.
    fn passed_by(&self, _: &Entry, _: &str) -> Vec<String> {
        Vec::new()
    }

    /// Returns until when a destination is left alone that cannot be reached, and what was said last.
    fn outage(&self, destination: &str) -> Option<(UnixMillis, Arc<str>)>;

    /// Returns how every destination stands.
    fn destinations(&self) -> impl Future<Output = Vec<DestinationStats>> + Send;

    /// Returns the queue's totals.
    fn totals(&self) -> impl Future<Output = TotalsView> + Send;

    /// Returns how the agent is.
    fn status(&self) -> impl Future<Output = StatusView> + Send;

    /// Returns the name of this host.
    fn host(&self) -> String;

    /// Returns what the members of the mesh call this host; none outside of one.
    fn label(&self) -> Option<String>;

    /// Searches the journal; none when it is off. Reads the disk: called where blocking is allowed.
    ///
    /// # Errors
    /// The journal cannot be read.
    fn search(&self, question: &Question) -> Option<io::Result<Found>>;

    /// Returns what other members of the mesh know of these messages, and who of those that had them
    /// did not say.
    fn follow(&self, views: &[TraceView]) -> impl Future<Output = (Vec<TraceView>, Vec<SilentView>)> + Send;

    /// Does `action` to the targets for whoever `by` is, durably, and returns for each whether that changed anything,
    /// in their order, or the words for why it could not be done.
    fn act(
        &self,
        action: Action,
        targets: Vec<Target>,
        by: Arc<str>,
    ) -> impl Future<Output = Vec<Result<bool, String>>> + Send;

    /// Does something to the mesh, or asks something of it; returns the view to be shown.
    fn mesh(&self, request: MeshRequest) -> impl Future<Output = Result<serde_json::Value, Failure>> + Send;

    /// Asks another member of the mesh about its queue, or to change it; returns its items and its end.
    fn ask_peer(
        &self,
        node: &str,
        request: Request,
    ) -> impl Future<Output = Result<(Vec<serde_json::Value>, Done), Failure>> + Send;

    /// Reads the configuration again and uses it if it is valid. Returns a sentence for people.
    fn reload(&self) -> impl Future<Output = Result<String, Failure>> + Send;
}
