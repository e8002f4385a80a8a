//! The agent as the control socket sees it.

use std::io;
use std::path::Path;
use std::sync::Arc;

use postroad_queue::schedule::{DestinationStats, Standing};
use postroad_queue::{Item, QueueId, UnixMillis};

use super::{Agent, fleet, trace};
use crate::admin::mesh::{MeshRequest, MeshView};
use crate::admin::trace::{SilentView, TraceView};
use crate::admin::view::{DiskView, MemoryView, StatusView, Time, TotalsView};
use crate::admin::{Action, AdminBackend, Done, Entry, Failure, Filter, Request, Target};
use crate::config::CONFIG_FILE_DEFAULT;
use crate::journal::{Found, Question};
use crate::route::MESH_PREFIX;

/// Answers the control socket.
pub struct Backend(pub Arc<Agent>);

impl AdminBackend for Backend {
    fn now(&self) -> UnixMillis {
        self.0.context.clock.now()
    }

    fn len(&self) -> usize {
        self.0.queue.len()
    }

    fn ids(&self, after: Option<QueueId>, limit: usize) -> Vec<QueueId> {
        self.0.queue.ids(after, limit)
    }

    fn entry(&self, id: QueueId) -> Option<Entry> {
        self.0.queue.load(id).ok().map(|item| self.entry_of(item))
    }

    fn entries<'a>(&'a self, ids: &'a [QueueId], filter: &'a Filter) -> impl Iterator<Item = Entry> + 'a {
        let now = self.now();
        let found = self.0.queue.load_many_with(ids, filter.words());
        let items = found.filter_map(|(_, item)| item.ok()).filter(move |item| filter.selects_message(item, now));
        items.map(|item| self.entry_of(item))
    }

    async fn standings(&self, id: QueueId) -> Vec<Standing> {
        self.0.delivery.standings(id)
    }

    fn passed_by(&self, entry: &Entry, destination: &str) -> Vec<String> {
        self.0.delivery.passed_by(&entry.item, destination)
    }

    fn outage(&self, destination: &str) -> Option<(UnixMillis, Arc<str>)> {
        self.0.delivery.outage(destination)
    }

    async fn destinations(&self) -> Vec<DestinationStats> {
        self.0.delivery.destinations().await
    }

    async fn totals(&self) -> TotalsView {
        self.totals_now()
    }

    async fn status(&self) -> StatusView {
        let agent = &self.0;
        let draining = *agent.context.drain.borrow();
        let stopped = agent.queue.poisoned();
        let state = match (&stopped, draining) {
            (Some(_), _) => "stopped",
            (None, true) => "draining",
            (None, false) => "serving",
        };
        StatusView {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            hostname: agent.config.load().hostname.to_string(),
            state: state.to_owned(),
            stopped: stopped.map(|why| why.to_string()),
            since: Some(Time(agent.started)),
            sessions: u64::from(agent.context.policy.session_count()),
            listeners: agent.listeners.clone(),
            config: agent.path.as_deref().unwrap_or(Path::new(CONFIG_FILE_DEFAULT)).display().to_string(),
            queue: self.totals_now(),
            memory: self.memory_now(),
            disk: self.disk_now(),
        }
    }

    fn host(&self) -> String {
        self.0.config.load().hostname.to_string()
    }

    fn label(&self) -> Option<String> {
        let members = self.0.context.peers.view();
        members.me().map(|me| members.label(&me))
    }

    fn search(&self, question: &Question) -> Option<io::Result<Found>> {
        let journal = &self.0.context.journal;
        journal.is_on().then(|| journal.search(question))
    }

    async fn follow(&self, views: &[TraceView]) -> (Vec<TraceView>, Vec<SilentView>) {
        trace::follow(&self.0, views).await
    }

    async fn act(&self, action: Action, targets: Vec<Target>, by: Arc<str>) -> Vec<Result<bool, String>> {
        let mut running = Vec::with_capacity(targets.len());
        for target in targets {
            let (delivery, by) = (self.0.delivery.clone(), by.clone());
            // Side by side, so that their records share a sync.
            running.push(tokio::spawn(async move {
                match action {
                    Action::Hold => delivery.hold(target.id, &by).await,
                    Action::Release => delivery.release(target.id, &by).await,
                    Action::Retry => delivery.retry(target.id, &target.recipients),
                    Action::Remove => delivery.remove(target.id, &target.recipients, &by).await,
                    Action::Bounce => delivery.bounce(target.id, &target.recipients, &by).await,
                }
            }));
        }
        let mut results = Vec::with_capacity(running.len());
        for one in running {
            results.push(one.await.unwrap_or_else(|fault| Err(fault.to_string())));
        }
        results
    }

    async fn mesh(&self, request: MeshRequest) -> Result<serde_json::Value, Failure> {
        if let MeshRequest::Leave { now: false } = request {
            self.check_may_leave().await?;
        }
        let shows_all = matches!(request, MeshRequest::Status {} | MeshRequest::Refuse { .. });
        let answer = self.0.context.peers.perform(request).await?;
        if !shows_all {
            return Ok(answer);
        }
        let wrong = |error: serde_json::Error| Failure::new(error.to_string(), "");
        let mut view: MeshView = serde_json::from_value(answer).map_err(wrong)?;
        self.0.add_pushes(&mut view);
        serde_json::to_value(view).map_err(wrong)
    }

    async fn ask_peer(&self, node: &str, request: Request) -> Result<(Vec<serde_json::Value>, Done), Failure> {
        fleet::ask(&self.0, node, request).await
    }

    async fn reload(&self) -> Result<String, Failure> {
        self.0.reload().await
    }
}

impl Backend {
    fn entry_of(&self, item: Arc<Item>) -> Entry {
        let (destinations, expires) = (self.0.delivery.destinations_of(&item), self.0.delivery.expires(&item));
        Entry { item, destinations, expires }
    }

    /// Mail that goes by the mesh may have no other way: nobody else knows the domains of its members.
    async fn check_may_leave(&self) -> Result<(), Failure> {
        let destinations = self.0.delivery.destinations().await;
        let by_mesh = destinations.iter().filter(|one| one.destination.starts_with(MESH_PREFIX));
        let jobs = |one: &DestinationStats| {
            one.ready.iter().sum::<usize>() + one.deferred.iter().sum::<usize>() + one.held + one.in_flight
        };
        match by_mesh.map(jobs).sum::<usize>() {
            0 => Ok(()),
            waiting => {
                let noun = if waiting == 1 { "message waits" } else { "messages wait" };
                let remedy = "`postroad queue stats` shows which; when they are gone, leave. They go by DNS, or back, \
                              after: postroad mesh leave --now";
                Err(Failure::new(format!("{waiting} {noun} here for members of the mesh"), remedy))
            }
        }
    }

    fn memory_now(&self) -> MemoryView {
        let memory = &self.0.context.memory;
        MemoryView {
            state: memory.level().as_str().to_owned(),
            used_octets: memory.used(),
            limit_octets: memory.limit(),
            draft_octets: self.0.queue.draft_octets() as u64,
        }
    }

    fn disk_now(&self) -> DiskView {
        let room = self.0.queue.room();
        let state = if room.is_short() { "short" } else { "ample" };
        DiskView { state: state.to_owned(), free_octets: room.free_octets, reserve_octets: room.reserve_octets }
    }

    fn totals_now(&self) -> TotalsView {
        let totals = self.0.delivery.totals();
        TotalsView {
            messages: self.0.queue.len() as u64,
            content_octets: self.0.queue.content_octets(),
            disk_octets: self.0.queue.disk_octets(),
            jobs: totals.jobs as u64,
            deferred: totals.deferred as u64,
            held_jobs: totals.held as u64,
            in_flight: totals.in_flight as u64,
            held: totals.is_held,
        }
    }
}
