//! What a request does: walks over the queue page by page, so that a queue of a million messages
//! is never in memory, and sends what it finds as it finds it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use postroad_queue::QueueId;
use postroad_queue::schedule::{DestinationStats, Standing};
use serde::Serialize;
use tokio::sync::mpsc::Sender;
use tokio::time::Instant;

use super::backend::{AdminBackend, Entry, Target};
use super::filter::Filter;
use super::request::{Action, By, Done, Failure, Id, Line, Progress, Request};
use super::standing::{DestinationView, WaitView};
use super::trace::{self, SearchedView, TraceView};
use super::view::{ActOutcome, ActView, LISTED_RECIPIENTS_MAX, MessageView};
use crate::journal::Question;

/// Messages selected at a time; also how many are changed with one sync.
const PAGE_MESSAGES: usize = 256;
/// Messages looked at in one go where few are selected: to look at them takes some ten milliseconds.
const LOOK_MESSAGES_MAX: usize = 64 << 10;
/// What to do where a message is asked for that is not queued.
pub const REMEDY_GONE: &str = "it may have left the queue: `postroad trace` with its id says what became of it";
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// Why the work ended early.
#[derive(Debug)]
pub enum Stop {
    /// The client went away: nobody hears an answer.
    Gone,
    /// The client is to hear this.
    Failed(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Stop {
        Stop::Failed(failure)
    }
}

/// Does what `request` asks for whoever `by` is and sends items and progress to `lines`.
///
/// # Errors
/// What the client is to hear, or that it went away.
pub async fn perform<B: AdminBackend>(
    backend: Arc<B>,
    request: Request,
    by: Arc<str>,
    lines: Sender<Line>,
) -> Result<Done, Stop> {
    let work = Work { backend, by, lines };
    match request {
        Request::Ping {} => Ok(Done::default()),
        Request::Status {} => {
            work.item(&work.backend.status().await).await?;
            Ok(Done::default())
        }
        Request::Reload {} => Ok(Done { text: Some(work.backend.reload().await?), ..Done::default() }),
        Request::Mesh { request } => {
            work.item(&work.backend.mesh(request).await?).await?;
            Ok(Done::default())
        }
        Request::Peer { node, request } => work.peer(&node, *request).await,
        Request::List { filter, after, limit } => work.list(filter, after, limit).await,
        Request::Show { id } => work.show(id).await,
        Request::Why { id } => work.why(id).await,
        Request::Trace { what, since_ms, limit } => work.trace(&what, since_ms, limit).await,
        Request::Stats { by, limit } => work.stats(by, limit).await,
        Request::Act { action, filter, dry_run, limit } => work.act(action, filter, dry_run, limit).await,
    }
}

struct Work<B> {
    backend: Arc<B>,
    /// Who asks.
    by: Arc<str>,
    lines: Sender<Line>,
}

/// A message that a filter selects, with the places of the recipients selected.
type Selected = (Entry, Vec<usize>);

impl<B: AdminBackend> Work<B> {
    async fn list(&self, filter: Filter, after: Option<Id>, limit: Option<u64>) -> Result<Done, Stop> {
        let mut walk = Walk::new(filter, after, limit);
        let mut done = Done::default();
        while let Some(page) = self.page(&mut walk).await? {
            for (entry, places) in page {
                let view = MessageView::of(&entry, &places, LISTED_RECIPIENTS_MAX);
                self.item(&self.with_outages(view)).await?;
                done.matched += 1;
            }
        }
        Ok(walk.finish(done))
    }

    /// Hands on what another member says, page by page.
    async fn peer(&self, node: &str, mut request: Request) -> Result<Done, Stop> {
        let mut sum = Done::default();
        loop {
            let (items, done) = self.backend.ask_peer(node, request.clone()).await?;
            for item in items {
                self.send(Line::Item(item)).await?;
            }
            let (matched, missing) = (sum.matched + done.matched, [sum.missing, done.missing.clone()].concat());
            let page = done.matched;
            sum = Done { matched, missing, ..done };
            let Request::List { after, limit, .. } = &mut request else { return Ok(sum) };
            if let Some(limit) = limit {
                *limit = limit.saturating_sub(page);
            }
            // A member that leads nowhere is not followed.
            let is_onward = |next: &Id| after.is_none_or(|after| *next > after);
            let next = sum.next.filter(is_onward).filter(|_| *limit != Some(0));
            match next {
                Some(next) => *after = Some(next),
                None => return Ok(sum),
            }
        }
    }

    async fn act(&self, action: Action, filter: Filter, dry_run: bool, limit: Option<u64>) -> Result<Done, Stop> {
        if filter.is_unconditional() && !filter.all {
            let message = format!("nothing says which messages to {}", action.as_str());
            return Err(Failure::new(message, "name ids or a filter, or say --all").into());
        }
        let mut walk = Walk::new(filter, None, limit);
        let mut done = Done::default();
        while let Some(page) = self.page(&mut walk).await? {
            let outcomes =
                if dry_run { vec![Ok(ActOutcome::WouldChange); page.len()] } else { self.apply(action, &page).await };
            for ((entry, places), outcome) in page.iter().zip(outcomes) {
                done.matched += 1;
                done.changed += u64::from(outcome == Ok(ActOutcome::Changed));
                done.failed += u64::from(outcome.is_err());
                self.item(&act_view(entry, places, outcome)).await?;
            }
        }
        Ok(walk.finish(done))
    }

    async fn apply(&self, action: Action, page: &[Selected]) -> Vec<Result<ActOutcome, String>> {
        let target = |(entry, places): &Selected| Target { id: entry.item.id, recipients: places.clone() };
        let outcomes = self.backend.act(action, page.iter().map(target).collect(), self.by.clone()).await;
        let word = |changed| if changed { ActOutcome::Changed } else { ActOutcome::Unchanged };
        outcomes.into_iter().map(|outcome| outcome.map(word)).collect()
    }

    async fn show(&self, id: Id) -> Result<Done, Stop> {
        self.item(&self.with_outages(MessageView::whole(&self.entry(id).await?))).await?;
        Ok(Done { matched: 1, ..Done::default() })
    }

    fn with_outages(&self, view: MessageView) -> MessageView {
        view.with_outages(|destination| self.backend.outage(destination))
    }

    async fn why(&self, id: Id) -> Result<Done, Stop> {
        let entry = self.entry(id).await?;
        let waits = waits(&*self.backend, &entry).await;
        for wait in &waits {
            self.item(wait).await?;
        }
        let waits_for_nothing = "no delivery is left to make: it ends once its notifications are queued".to_owned();
        let text = waits.is_empty().then_some(waits_for_nothing);
        let message = Some(Box::new(MessageView::whole(&entry)));
        Ok(Done { matched: waits.len() as u64, text, message, ..Done::default() })
    }

    async fn trace(&self, what: &str, since_ms: Option<u64>, limit: Option<u64>) -> Result<Done, Stop> {
        let question = trace::question(what, self.backend.now(), since_ms, limit);
        let (mut views, mut searched) = trace_here(&self.backend, &question).await?;
        let (elsewhere, silent) = self.backend.follow(&views).await;
        views.extend(elsewhere);
        searched.silent = silent;
        for view in &views {
            self.item(view).await?;
        }
        Ok(Done { matched: views.len() as u64, searched: Some(Box::new(searched)), ..Done::default() })
    }

    async fn stats(&self, by: By, limit: Option<u64>) -> Result<Done, Stop> {
        let stats = self.backend.destinations().await;
        let totals = self.backend.totals().await;
        // Of very many destinations, putting in order takes a while.
        let (views, sum) = blocking(move || ranked(&stats, by)).await?;
        let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        for view in views.iter().take(limit) {
            self.item(view).await?;
        }
        let sum = Some(Box::new(sum));
        Ok(Done { matched: views.len() as u64, totals: Some(totals), sum, ..Done::default() })
    }

    async fn entry(&self, id: Id) -> Result<Entry, Stop> {
        let backend = self.backend.clone();
        let entry = blocking(move || backend.entry(id.0)).await?;
        entry.ok_or_else(|| Failure::new(format!("the queue has no message {id}"), REMEDY_GONE).into())
    }

    /// Returns the next messages selected, perhaps none of this page; `None` at the end.
    async fn page(&self, walk: &mut Walk) -> Result<Option<Vec<Selected>>, Stop> {
        let Some(ids) = walk.next_ids(&*self.backend) else { return Ok(None) };
        self.progress(walk).await?;
        let (backend, filter, limit) = (self.backend.clone(), walk.filter.clone(), walk.left);
        let is_named = walk.named.is_some();
        let read = blocking(move || read_page(&*backend, &filter, &ids, is_named, limit)).await?;
        walk.turn(&read);
        Ok(Some(read.selected))
    }

    async fn progress(&self, walk: &mut Walk) -> Result<(), Stop> {
        if walk.told.elapsed() < PROGRESS_INTERVAL {
            return Ok(());
        }
        walk.told = Instant::now();
        let total = self.backend.len().max(walk.seen as usize) as u64;
        self.send(Line::Progress(Progress { seen: walk.seen, total })).await
    }

    async fn item(&self, item: &impl Serialize) -> Result<(), Stop> {
        self.send(Line::Item(serde_json::to_value(item).expect("a view is plain JSON"))).await
    }

    async fn send(&self, line: Line) -> Result<(), Stop> {
        self.lines.send(line).await.map_err(|_| Stop::Gone)
    }
}

/// Returns what is known here of the messages that a question means.
///
/// # Errors
/// The journal cannot be read.
pub async fn trace_here<B: AdminBackend>(
    backend: &Arc<B>,
    question: &Question,
) -> Result<(Vec<TraceView>, SearchedView), Failure> {
    let (searching, asked) = (backend.clone(), question.clone());
    let lost = |_| Failure::new("the agent could not finish the request", "its log says why");
    let found = tokio::task::spawn_blocking(move || searching.search(&asked)).await.map_err(lost)?.transpose();
    let found = found.map_err(|error| Failure::new(format!("the journal cannot be read: {error}"), ""))?;
    let (host, label) = (backend.host(), backend.label());
    // As all other members are named.
    let searched = SearchedView::of(label.as_deref().unwrap_or(&host), found.as_ref());
    let mut views = trace::views(&host, question, found.unwrap_or_default());
    for view in &mut views {
        view.host = label.clone().unwrap_or_else(|| host.clone());
        let (reading, id) = (backend.clone(), view.id.0);
        if let Some(entry) = tokio::task::spawn_blocking(move || reading.entry(id)).await.map_err(lost)? {
            view.add_queued(&entry, waits(&**backend, &entry).await);
        }
    }
    views.retain(|view| !view.is_empty());
    Ok((views, searched))
}

async fn waits<B: AdminBackend>(backend: &B, entry: &Entry) -> Vec<WaitView> {
    let standings = backend.standings(entry.item.id).await;
    let is_memory_full = backend.status().await.memory.state == "full";
    let view = |standing: &Standing| {
        let passed_by = backend.passed_by(entry, &standing.destination);
        WaitView { passed_by, ..WaitView::of(entry, standing, is_memory_full) }
    };
    standings.iter().map(view).collect()
}

async fn blocking<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> Result<T, Stop> {
    let lost = |_| Stop::Failed(Failure::new("the agent could not finish the request", "its log says why"));
    tokio::task::spawn_blocking(job).await.map_err(lost)
}

/// Returns what is counted together, the deepest first, and the sum of all.
fn ranked(stats: &[DestinationStats], by: By) -> (Vec<DestinationView>, DestinationView) {
    let mut views: Vec<DestinationView> = Vec::with_capacity(stats.len());
    let mut sum = DestinationView::default();
    let mut sites: HashMap<Arc<str>, usize> = HashMap::new();
    for one in stats {
        let view = DestinationView::of(one);
        sum.add(&view);
        let place = match by {
            By::Destination => views.len(),
            By::Site => *sites.entry(one.site.clone()).or_insert(views.len()),
        };
        match views.get_mut(place) {
            Some(same) => same.add(&view),
            None if by == By::Site => views.push(DestinationView { destination: view.site.clone(), ..view }),
            None => views.push(view),
        }
    }
    views.sort_by(|a, b| (b.jobs, &a.destination).cmp(&(a.jobs, &b.destination)));
    (views, sum)
}

fn act_view(entry: &Entry, places: &[usize], outcome: Result<ActOutcome, String>) -> ActView {
    let (outcome, error) = match outcome {
        Ok(outcome) => (outcome, None),
        Err(error) => (ActOutcome::Failed, Some(error)),
    };
    ActView { message: MessageView::of(entry, places, LISTED_RECIPIENTS_MAX), outcome, error }
}

/// A walk over the messages that a filter selects.
struct Walk {
    filter: Arc<Filter>,
    /// The named ids still to look at, ascending, when the filter names ids.
    named: Option<std::vec::IntoIter<QueueId>>,
    after: Option<QueueId>,
    /// How many messages to look at next. Reading is the cheaper the more lie side by side.
    look: usize,
    /// How many more may be selected.
    left: u64,
    seen: u64,
    missing: Vec<Id>,
    told: Instant,
}

impl Walk {
    fn new(filter: Filter, after: Option<Id>, limit: Option<u64>) -> Walk {
        let mut named: Vec<QueueId> = filter.ids.iter().map(|id| id.0).collect();
        named.sort_unstable();
        named.dedup();
        named.retain(|id| after.is_none_or(|after| *id > after.0));
        Walk {
            named: (!filter.ids.is_empty()).then(|| named.into_iter()),
            // The ids walked over are those named: the condition need not be asked again.
            filter: Arc::new(Filter { ids: Vec::new(), ..filter }),
            after: after.map(|id| id.0),
            look: PAGE_MESSAGES,
            left: limit.unwrap_or(u64::MAX),
            seen: 0,
            missing: Vec::new(),
            told: Instant::now(),
        }
    }

    fn next_ids(&mut self, backend: &impl AdminBackend) -> Option<Vec<QueueId>> {
        if self.left == 0 {
            return None;
        }
        let ids = match &mut self.named {
            Some(named) => named.take(PAGE_MESSAGES).collect(),
            None => backend.ids(self.after, self.look),
        };
        (!ids.is_empty()).then_some(ids)
    }

    fn turn(&mut self, page: &Page) {
        self.look = if page.is_full { PAGE_MESSAGES } else { LOOK_MESSAGES_MAX.min(self.look * 2) };
        self.seen += page.seen;
        self.left -= page.selected.len() as u64;
        self.after = page.last.or(self.after);
        if self.named.is_some() {
            self.missing.extend(page.missing.iter().map(|id| Id(*id)));
        }
    }

    fn finish(self, done: Done) -> Done {
        let next = (self.left == 0).then_some(self.after).flatten().map(Id);
        Done { next, missing: self.missing, ..done }
    }
}

struct Page {
    selected: Vec<Selected>,
    /// Whether there was no room for more.
    is_full: bool,
    seen: u64,
    last: Option<QueueId>,
    missing: Vec<QueueId>,
}

/// Reads messages until a page is full of those selected, or all were looked at. Of ids that were named it is
/// said which are gone; of all others only those need be read that the filter may select.
fn read_page(backend: &impl AdminBackend, filter: &Filter, ids: &[QueueId], is_named: bool, limit: u64) -> Page {
    let (now, any) = (backend.now(), Filter::default());
    let room = usize::try_from(limit).map_or(PAGE_MESSAGES, |limit| limit.min(PAGE_MESSAGES));
    let mut found = Vec::new();
    let select = |entry: Entry| {
        found.push(entry.item.id);
        filter.select(&entry, now).map(|places| (entry, places))
    };
    let entries = backend.entries(ids, if is_named { &any } else { filter });
    let selected: Vec<Selected> = entries.filter_map(select).take(room).collect();
    let is_full = selected.len() == room;
    let last = if is_full { selected.last().map(|(entry, _)| entry.item.id) } else { ids.last().copied() };
    let looked_at = &ids[..ids.partition_point(|id| Some(*id) <= last)];
    let gone = |id: &&QueueId| is_named && found.binary_search(id).is_err();
    let missing = looked_at.iter().filter(gone).copied().collect();
    let seen = looked_at.len() as u64;
    Page { selected, is_full, seen, last, missing }
}

#[cfg(test)]
#[path = "work_tests.rs"]
mod tests;
