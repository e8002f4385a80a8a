//! What requests do to a queue, and what their answers hold.

use tokio::sync::mpsc;

use super::*;
use crate::admin::testing::{Memory, entry};

async fn ask(backend: &Arc<Memory>, request: Request) -> (Vec<serde_json::Value>, Result<Done, Stop>) {
    let (sender, mut lines) = mpsc::channel(4);
    let work = tokio::spawn(perform(backend.clone(), request, "uid 0".into(), sender));
    let mut items = Vec::new();
    while let Some(line) = lines.recv().await {
        if let Line::Item(item) = line {
            items.push(item);
        }
    }
    (items, work.await.expect("no panic"))
}

fn list(filter: Filter, after: Option<Id>, limit: Option<u64>) -> Request {
    Request::List { filter, after, limit }
}

fn ids(items: &[serde_json::Value]) -> Vec<u64> {
    let id = |item: &serde_json::Value| item["id"].as_str().expect("an id").parse::<Id>().expect("an id").0.to_u64();
    items.iter().map(id).collect()
}

#[tokio::test]
async fn pages_together_are_the_whole_list() {
    let entries = (1..=1000).map(|n| entry(n, 1, "a@b.example", &[("c@d.example", (n % 2) as u32)])).collect();
    let backend = Arc::new(Memory { entries, acts: Default::default() });
    let filter = Filter { deferred: true, ..Filter::default() };
    let (whole, done) = ask(&backend, list(filter.clone(), None, None)).await;
    let done = done.expect("ok");
    assert_eq!((whole.len(), done.matched, done.next), (500, 500, None));
    let (mut pages, mut after) = (Vec::new(), None);
    loop {
        let (items, done) = ask(&backend, list(filter.clone(), after, Some(120))).await;
        pages.extend(items);
        after = done.expect("ok").next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(ids(&pages), ids(&whole));
}

#[tokio::test]
async fn ids_that_are_not_there_are_named() {
    let backend = Arc::new(Memory::sample());
    let filter = Filter { ids: [3, 9, 1, 3].map(|n| Id(QueueId::from_u64(n))).to_vec(), ..Filter::default() };
    let (items, done) = ask(&backend, list(filter.clone(), None, None)).await;
    assert_eq!(ids(&items), [1, 3]);
    assert_eq!(done.expect("ok").missing, [Id(QueueId::from_u64(9))]);
    let (items, done) = ask(&backend, list(filter, None, Some(2))).await;
    assert_eq!(ids(&items), [1, 3]);
    assert_eq!(done.expect("ok").missing, [], "nobody has looked for it yet");
}

#[tokio::test]
async fn the_few_among_very_many_are_found_in_few_pages() {
    let last = 100 * PAGE_MESSAGES as u64;
    let entries = (1..=last).map(|n| entry(n, 1, "a@b.example", &[("c@d.example", u32::from(n == last))])).collect();
    let backend = Arc::new(Memory { entries, acts: Default::default() });
    let filter = Filter { deferred: true, ..Filter::default() };
    let mut walk = Walk::new(filter.clone(), None, None);
    let mut pages = 0;
    while let Some(looked_at) = walk.next_ids(&*backend) {
        walk.turn(&read_page(&*backend, &filter, &looked_at, false, walk.left));
        pages += 1;
    }
    assert_eq!((walk.seen, pages), (last, 7));
    // Where all are selected no more of them are held than before.
    let (all, most) = (Filter::default(), LOOK_MESSAGES_MAX.min(backend.entries.len()));
    let looked_at = backend.ids(None, most);
    assert_eq!(read_page(&*backend, &all, &looked_at, false, u64::MAX).selected.len(), PAGE_MESSAGES);
}

#[tokio::test]
async fn an_action_without_a_condition_must_say_all() {
    let backend = Arc::new(Memory::sample());
    let act = |all, dry_run| Request::Act {
        action: Action::Remove,
        filter: Filter { all, ..Filter::default() },
        dry_run,
        limit: None,
    };
    let (_, refused) = ask(&backend, act(false, false)).await;
    assert!(matches!(refused, Err(Stop::Failed(_))), "{refused:?}");
    let (items, done) = ask(&backend, act(true, true)).await;
    assert_eq!((items.len(), done.expect("ok").changed), (3, 0));
    assert!(items.iter().all(|item| item["outcome"] == "would_change"));
    assert!(backend.acts.lock().expect("no panic").is_empty());
    let (_, done) = ask(&backend, act(true, false)).await;
    assert_eq!(done.expect("ok").changed, 3);
    assert_eq!(backend.acts.lock().expect("no panic").len(), 3);
}

#[tokio::test]
async fn an_action_concerns_the_selected_recipients_alone() {
    let backend = Arc::new(Memory::sample());
    let filter = Filter { domain: Some("dead.example".into()), ..Filter::default() };
    let (items, _) = ask(&backend, Request::Act { action: Action::Bounce, filter, dry_run: false, limit: None }).await;
    assert_eq!(items[0]["recipients"][0]["to"], "ops@dead.example");
    let acts = backend.acts.lock().expect("no panic");
    assert_eq!(*acts, [(Action::Bounce, Target { id: QueueId::from_u64(1), recipients: vec![0] })]);
}

#[tokio::test]
async fn holding_what_is_held_changes_nothing() {
    let backend = Arc::new(Memory::sample());
    let filter = Filter { all: true, ..Filter::default() };
    let (items, done) = ask(&backend, Request::Act { action: Action::Hold, filter, dry_run: false, limit: None }).await;
    let done = done.expect("ok");
    assert_eq!((done.matched, done.changed, done.failed), (3, 2, 0));
    assert_eq!(items[1]["outcome"], "unchanged");
}

#[tokio::test]
async fn why_tells_what_each_part_waits_for() {
    let backend = Arc::new(Memory::sample());
    let (items, done) = ask(&backend, Request::Why { id: Id(QueueId::from_u64(1)) }).await;
    assert_eq!(done.expect("ok").matched, 2);
    assert_eq!((&items[0]["destination"], &items[0]["reason"]), (&"mx:dead.example".into(), &"deferred".into()));
    assert_eq!(items[0]["recipients"][0]["last"]["reply"], "450 4.2.0 Greylisted, come back later");
    assert_eq!(items[1]["recipients"][0]["to"], "log@example.com");
    let (_, gone) = ask(&backend, Request::Why { id: Id(QueueId::from_u64(99)) }).await;
    let Err(Stop::Failed(failure)) = gone else { panic!("{gone:?}") };
    assert_eq!(failure.message, "the queue has no message 0000000000033");
}

#[tokio::test]
async fn a_client_that_goes_away_ends_the_work() {
    let entries = (1..=1000).map(|n| entry(n, 1, "a@b.example", &[("c@d.example", 0)])).collect();
    let backend = Arc::new(Memory { entries, acts: Default::default() });
    let (sender, lines) = mpsc::channel(4);
    drop(lines);
    let filter = Filter { all: true, ..Filter::default() };
    let request = Request::Act { action: Action::Remove, filter, dry_run: false, limit: None };
    assert!(matches!(perform(backend.clone(), request, "uid 0".into(), sender).await, Err(Stop::Gone)));
    assert!(backend.acts.lock().expect("no panic").len() <= PAGE_MESSAGES);
}
