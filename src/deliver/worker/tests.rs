//! Workers with several messages for peers that leave or fall silent in the middle.

use postroad_queue::schedule::Selector;
use postroad_queue::{QueueId, RecipientState};

use super::super::scenario::{Agent, Heard, Peer, Say};

/// An agent whose mail all goes to a peer that has taken one message, and more that are let go at once;
/// returns what was heard and the messages after the first.
async fn after_one(
    messages: usize,
    outbound: &str,
    script: impl Fn(&Heard<'_>) -> Option<Say> + Send + Sync + 'static,
) -> (Agent, Peer, Vec<QueueId>) {
    let (peer, port) = Peer::start(script).await;
    let route = format!("[[route]]\ndomain = \"*\"\nvia = \"127.0.0.1:{port}\"\n");
    let agent = Agent::start(&format!("hostname = \"mx.home.example\"\n[outbound]\n{outbound}\n{route}"));
    let first = agent.put(&["x@example.org"], b"x\r\n").await;
    agent.wait_delivered(first).await;
    agent.wait_pooled().await;
    let core = &agent.delivery.0;
    core.schedule().hold(Selector::All);
    let mut ids = Vec::new();
    for _ in 0..messages {
        ids.push(agent.put(&["y@example.org"], b"y\r\n").await);
    }
    core.schedule().release(Selector::All);
    core.start_ready();
    (agent, peer, ids)
}

/// Returns how often each recipient of these messages was tried; of those that are delivered, nothing.
fn attempts(agent: &Agent, ids: &[QueueId]) -> Vec<u32> {
    let waiting = ids.iter().filter_map(|id| agent.queue.load(*id).ok());
    let tried = |state: &RecipientState| match state {
        RecipientState::Pending { attempts, .. } => *attempts,
        other => panic!("{other:?}"),
    };
    waiting.map(|item| tried(&item.state.recipients[0])).collect()
}

async fn wait_for_attempts(agent: &Agent, ids: &[QueueId], want: impl Fn(&[u32]) -> bool) {
    let look = async {
        while !want(&attempts(agent, ids)) {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    let waited = tokio::time::timeout(std::time::Duration::from_secs(20), look).await;
    waited.unwrap_or_else(|_| panic!("{:?}", attempts(agent, ids)));
}

#[tokio::test(flavor = "multi_thread")]
async fn several_messages_go_over_one_connection_one_behind_the_other() {
    let (agent, peer, ids) = after_one(6, "connections_per_destination = 1", |_| None).await;
    wait_for_attempts(&agent, &ids, <[u32]>::is_empty).await;
    assert_eq!(peer.heard("EHLO").len(), 1);
    let said: Vec<String> = peer.heard("").into_iter().map(|(_, line)| line).skip(1).collect();
    let begins = |line: &String| line.split(' ').next().unwrap_or_default().to_owned();
    let verbs: Vec<String> = said.iter().map(begins).collect();
    assert_eq!(verbs, ["MAIL", "RCPT", "DATA", "."].repeat(7));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_leaves_behind_one_message_costs_the_next_nothing() {
    let (agent, peer, ids) = after_one(3, "connections_per_destination = 1", |heard| {
        let leaves = heard.connection == 0 && heard.mails == 2 && heard.line == ".";
        leaves.then(|| Say::Last("250 taken".to_owned()))
    })
    .await;
    wait_for_attempts(&agent, &ids, <[u32]>::is_empty).await;
    assert_eq!((peer.heard("EHLO").len(), peer.heard(".").len()), (2, 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_refuses_one_message_and_leaves_was_not_asked_for_the_next() {
    let (agent, peer, ids) = after_one(3, "", |heard| {
        let leaves = heard.connection == 0 && heard.mails == 2 && heard.line == ".";
        leaves.then(|| Say::Last("421 4.3.2 closing".to_owned()))
    })
    .await;
    wait_for_attempts(&agent, &ids, |attempts| attempts == [1]).await;
    assert_eq!(peer.heard(".").len(), 4, "each was sent once");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_behind_a_peer_that_falls_silent_goes_elsewhere() {
    let (agent, _peer, ids) = after_one(4, "", |heard| {
        let is_silent = heard.connection == 0 && heard.mails == 2 && heard.line == ".";
        is_silent.then(|| Say::Silence("250-wait".to_owned()))
    })
    .await;
    // One waits for its answer, another for the session that its envelope was sent over.
    wait_for_attempts(&agent, &ids, |attempts| attempts.len() <= 2).await;
}
