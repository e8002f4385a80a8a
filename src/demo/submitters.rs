//! Four mail clients at once, each in one session with a's submission port: TLS, login, and then
//! letter after letter at an even pace; after half of them they wait until they are told to go on.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch::Receiver;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::DemoError;
use super::ledger::Ledger;
use super::letters::{Letter, SENDER, address, recipient};
use crate::submit::{Login, Server, Session, SubmitError};

const SESSIONS: usize = 4;
/// In which all letters are submitted, so that people can watch.
const SPREAD: Duration = Duration::from_secs(6);

/// Returns the time between two letters.
pub fn pace(letters: usize) -> Duration {
    SPREAD / u32::try_from(letters.max(1)).unwrap_or(u32::MAX)
}

/// Returns how many letters are submitted before the break.
pub fn first_part(letters: usize) -> usize {
    letters / 2
}

/// What the clients share.
struct Round {
    server: Server,
    login: Login,
    ledger: Arc<Mutex<Ledger>>,
    letters: usize,
    next: AtomicUsize,
    begun: Instant,
    /// When the letters after the break may go.
    go_on: Receiver<Option<Instant>>,
    /// Makes the Message-IDs of this run its own.
    run: String,
}

/// Submits so many letters and enters each into the ledger, before and after.
///
/// # Errors
/// The first letter that was not taken.
pub async fn submit_all(
    letters: usize,
    server: Server,
    login: Login,
    ledger: Arc<Mutex<Ledger>>,
    go_on: Receiver<Option<Instant>>,
) -> Result<(), DemoError> {
    let run = format!("{:08x}", fastrand::u32(..));
    let next = AtomicUsize::new(0);
    let round = Arc::new(Round { server, login, ledger, letters, next, begun: Instant::now(), go_on, run });
    let mut clients = JoinSet::new();
    for _ in 0..SESSIONS.min(letters) {
        clients.spawn(client(round.clone()));
    }
    while let Some(ended) = clients.join_next().await {
        ended.map_err(|error| DemoError::System { what: "a task", why: error.to_string() })??;
    }
    Ok(())
}

impl Round {
    /// Returns when a letter is due; waits for that to be known. `None`: there will be no more letters.
    async fn time_of(&self, number: usize) -> Option<Instant> {
        let first = first_part(self.letters);
        let (begun, place) = match number.checked_sub(first) {
            None => (self.begun, number),
            Some(place) => ((*self.go_on.clone().wait_for(Option::is_some).await.ok()?)?, place),
        };
        Some(begun + pace(self.letters) * u32::try_from(place).unwrap_or(u32::MAX))
    }
}

async fn client(round: Arc<Round>) -> Result<(), DemoError> {
    let refused = |number: usize| move |source: SubmitError| DemoError::Submit { number, source };
    let opening = Session::open(&round.server, Some(&round.login), "laptop.field.test", Arc::default());
    let mut session = opening.await.map_err(refused(0))?;
    loop {
        let number = round.next.fetch_add(1, Ordering::Relaxed);
        if number >= round.letters {
            break;
        }
        let Some(time) = round.time_of(number).await else { break };
        sleep_until(time).await;
        let letter = Letter::write(&round.run, number);
        let recipients: Vec<_> = letter.recipients.iter().map(|name| recipient(name)).collect();
        round.ledger.lock().unwrap_or_else(PoisonError::into_inner).offer(&letter);
        let submitted =
            session.submit(Some(&address(SENDER)), &recipients, &letter.content).await.map_err(refused(number))?;
        if let Some((to, reply)) = submitted.refused.into_iter().next() {
            let source = SubmitError::Refused { at: format!("RCPT TO:<{to}>"), reply, transient: false };
            return Err(DemoError::Submit { number, source });
        }
        round.ledger.lock().unwrap_or_else(PoisonError::into_inner).accept(&letter);
    }
    session.close().await;
    Ok(())
}
