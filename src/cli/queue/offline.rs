//! The queue read from its files: what `list` and `show` fall back to when the agent is down, and
//! `verify`. Nothing is changed there and no lock is taken; only `repair` takes it and changes.
//!
//! Next hops are the router's answers, which need no DNS: the names that the agent would show.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use postroad_queue::{Damage, Item, OpenError, OsFs, Queue, QueueId, Snapshot};

use super::super::explain::members;
use super::now;
use super::screen::{Look, Screen, size};
use crate::admin::view::{LISTED_RECIPIENTS_MAX, MessageView};
use crate::admin::{Done, Entry, Filter, Id, Progress};
use crate::cli::ask::ProgressLine;
use crate::cli::{Context, Failure, exit};
use crate::config::Config;
use crate::route::{Route, Router};

/// Far longer than the agent writes at one record.
const SETTLE_TIME: Duration = Duration::from_secs(2);

/// The queue of an agent that is down, with the router of its configuration.
pub struct Spool {
    snapshot: Snapshot,
    router: Router,
}

impl Spool {
    /// Reads the queue and says on standard error that it does.
    pub fn open(config: &Config, context: &mut Context) -> Result<Spool, Failure> {
        let snapshot = read(config)?;
        let path = queue_dir(config);
        context.warn(format_args!("the agent does not run; this is what {} holds", path.display()));
        for damage in snapshot.damage() {
            context.warn(damage);
        }
        Ok(Spool { snapshot, router: Router::with_members(config, members(config, context)) })
    }

    /// Hands the messages that `filter` selects to `each`, oldest first.
    pub fn list(
        &self,
        filter: &Filter,
        limit: Option<u64>,
        context: &mut Context,
        mut each: impl FnMut(&mut Context, &MessageView) -> Result<(), Failure>,
    ) -> Result<Done, Failure> {
        let (now, mut done) = (now(), Done::default());
        let mut missing: HashSet<Id> = filter.ids.iter().copied().collect();
        for id in self.snapshot.ids() {
            missing.remove(&Id(id));
            if limit.is_some_and(|limit| done.matched >= limit) {
                return Ok(done);
            }
            let Some(entry) = self.entry(id, context) else { continue };
            if let Some(places) = filter.select(&entry, now) {
                done.matched += 1;
                each(context, &MessageView::of(&entry, &places, LISTED_RECIPIENTS_MAX))?;
            }
        }
        done.missing = missing.into_iter().collect();
        done.missing.sort_unstable();
        Ok(done)
    }

    /// Shows a message whole; `None` when the queue does not have it.
    pub fn show(&self, id: Id, context: &mut Context) -> Option<MessageView> {
        self.find(id, context).map(|entry| MessageView::whole(&entry))
    }

    /// Reads a message; `None` when the queue does not have it.
    pub fn find(&self, id: Id, context: &mut Context) -> Option<Entry> {
        let known = self.snapshot.ids().any(|known| known == id.0);
        known.then(|| self.entry(id.0, context)).flatten()
    }

    /// Reads a message; one that is damaged is named on standard error and passed over.
    fn entry(&self, id: QueueId, context: &mut Context) -> Option<Entry> {
        match self.snapshot.load(id) {
            Ok(item) => {
                let (destinations, expires) = (destinations(&self.router, &item), self.router.first_expires(&item));
                Some(Entry { item: Arc::new(item), destinations, expires })
            }
            Err(error) => {
                context.warn(error);
                None
            }
        }
    }
}

/// Reads every record and every content and compares the checksums; works beside a running agent as well.
pub fn verify(config: &Config, screen: &Screen, context: &mut Context) -> Result<(), Failure> {
    let path = queue_dir(config);
    let snapshot = read_whole(&path)?;
    let damage = lasting_damage(&snapshot, &path)?;
    let (messages, octets) = (snapshot.len(), snapshot.content_octets());
    if screen.look == Look::Json {
        context.json(&serde_json::json!({ "messages": messages, "content_octets": octets, "damage": damage }))?;
    } else {
        context.line(format_args!("{messages} messages with {} of content are in order", size(octets)))?;
        damage.iter().try_for_each(|damage| context.line(format_args!("damaged: {damage}")))?;
    }
    match damage.len() {
        0 => Ok(()),
        count => Err(Failure::new(exit::FAILED, format!("{count} places in the queue are not as they were written"))
            .with_remedy(
                "stop the agent, then `postroad queue repair` sets them aside in quarantine/; all else is kept",
            )),
    }
}

/// Puts aside what is damaged, or only says what that would be.
pub fn repair(config: &Config, screen: &Screen, dry_run: bool, context: &mut Context) -> Result<(), Failure> {
    let path = queue_dir(config);
    let (messages, damage) = if dry_run {
        let snapshot = read_whole(&path)?;
        (snapshot.len(), snapshot.damage().to_vec())
    } else {
        is_ours(&path)?;
        let fs = OsFs::open(&path).map_err(|error| unreadable(&error))?;
        let report = Queue::repair(&fs).map_err(|error| unreadable(&error))?;
        (report.messages, report.damage)
    };
    let damage: Vec<String> = damage.iter().map(ToString::to_string).collect();
    if screen.look == Look::Json {
        return context.json(&serde_json::json!({ "messages": messages, "dry_run": dry_run, "damage": damage }));
    }
    damage.iter().try_for_each(|damage| context.line(format_args!("damaged: {damage}")))?;
    let done = if dry_run { "would be put aside" } else { "put aside" };
    context.line(format_args!("{} places {done}; {messages} messages are in order", damage.len()))
}

/// What is written as root the agent could not read.
fn is_ours(path: &Path) -> Result<(), Failure> {
    let owner = std::fs::metadata(path).map_or(0, |metadata| metadata.uid());
    if owner == rustix::process::geteuid().as_raw() || !path.exists() {
        return Ok(());
    }
    let message = format!("{} belongs to the user with the number {owner}", path.display());
    Err(Failure::new(exit::FAILED, message).with_remedy("run it as that user: sudo -u postroad postroad queue repair"))
}

/// Returns the damage that is there twice. What the agent is writing looks like something that a crash
/// cut off, and what it removes like something lost: by the second look it is whole, or gone.
fn lasting_damage(snapshot: &Snapshot, path: &Path) -> Result<Vec<String>, Failure> {
    if snapshot.damage().is_empty() {
        return Ok(Vec::new());
    }
    std::thread::sleep(SETTLE_TIME);
    let again = read_whole(path)?;
    let lasts = |damage: &&Damage| {
        again.damage().iter().any(|other| (&other.place, other.from) == (&damage.place, damage.from))
    };
    Ok(snapshot.damage().iter().filter(lasts).map(ToString::to_string).collect())
}

fn read_whole(path: &Path) -> Result<Snapshot, Failure> {
    let mut line = ProgressLine::octets();
    Snapshot::read_whole(path, &mut |seen, total| line.show(Progress { seen, total })).map_err(|e| unreadable(&e))
}

/// Reads what is queued.
pub(super) fn read(config: &Config) -> Result<Snapshot, Failure> {
    Snapshot::read(&queue_dir(config)).map_err(|error| unreadable(&error))
}

fn unreadable(error: &OpenError) -> Failure {
    Failure::new(exit::TRY_LATER, format!("the queue cannot be read: {error}"))
        .with_remedy("run it as root or as the agent's user; start the agent once if it never ran")
}

/// Where the queue of an agent lies.
fn queue_dir(config: &Config) -> PathBuf {
    config.state_dir.join("queue")
}

fn destinations(router: &Router, item: &Item) -> Vec<Arc<str>> {
    let key = |route| match route {
        Route::Local(local) => local.key().clone(),
        Route::Smtp(hop) => hop.key().clone(),
        Route::Turn(hop) => hop.key().clone(),
        Route::Refused(_) => "refused".into(),
    };
    let mail = router.mail(item);
    item.envelope.recipients().iter().map(|to| key(router.route_mail(&to.forward_path, &mail))).collect()
}
