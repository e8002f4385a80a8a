//! Clients that send without a pause, whatever happens to the agent, and keep a ledger.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::agent::Agent;
use super::client::Client;
use super::ledger::{Balance, Ledger};
use super::net::{SOON, wait_until};
use super::note;
use super::sink::Sink;

/// How many there are.
const CLIENTS: usize = 6;
/// How long the agent may take to deliver what it holds in the end.
const DRAIN_LIMIT: Duration = Duration::from_secs(120);

/// What the clients share.
pub struct Load {
    /// What was acknowledged.
    pub ledger: Ledger,
    next: AtomicU64,
    over: AtomicBool,
    to: SocketAddr,
}

impl Load {
    /// Runs clients while `work` goes on, then lets the queue empty itself and compares: nothing may
    /// be missing or altered.
    pub fn during(agent: &mut Agent, sink: &Sink, work: impl FnOnce(&mut Agent, &Load)) -> Balance {
        let load =
            Load { ledger: Ledger::default(), next: AtomicU64::new(1), over: AtomicBool::new(false), to: agent.smtp() };
        std::thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| load.client());
            }
            // A failure here must not leave the clients running.
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(agent, &load)));
            load.over.store(true, Ordering::SeqCst);
            done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        });
        agent.wait_empty(DRAIN_LIMIT);
        load.ledger.collect(sink);
        let balance = load.ledger.balance();
        note(format_args!("accepted {}, delivered once more {}", balance.accepted, balance.duplicates));
        balance.assert_even();
        assert!(balance.accepted > 0, "the clients were heard");
        balance
    }

    /// Waits until mail is accepted that was not before.
    pub fn wait_accepted(&self) {
        let before = self.ledger.count();
        wait_until("mail is accepted again", SOON, || self.ledger.count() > before);
    }

    /// Sends messages until the load is over; connects again whenever the agent comes back.
    fn client(&self) {
        while !self.over.load(Ordering::SeqCst) {
            match Client::dial(None, self.to) {
                // The session ends when the agent does.
                Ok(client) => drop(self.session(client)),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    fn session(&self, mut client: Client) -> std::io::Result<()> {
        client.set_timeout(Duration::from_secs(20));
        client.try_reply()?;
        client.try_send("EHLO client.test\r\n")?;
        client.try_reply()?;
        while !self.over.load(Ordering::SeqCst) {
            self.message(&mut client)?;
        }
        Ok(())
    }

    /// Sends one message by BDAT in one write and notes what is known of it. Every 20th is larger
    /// than what the queue keeps beside its envelope.
    fn message(&self, client: &mut Client) -> std::io::Result<()> {
        let number = self.next.fetch_add(1, Ordering::SeqCst);
        let octets = if number.is_multiple_of(20) { 400_000 } else { 2_000 + number as usize % 3000 };
        let content = Ledger::content(number, octets);
        let mut request = b"MAIL FROM:<sender@client.test>\r\nRCPT TO:<user@sink.test>\r\n".to_vec();
        request.extend_from_slice(format!("BDAT {} LAST\r\n", content.len()).as_bytes());
        request.extend_from_slice(&content);
        // Until the reply is read nobody knows; this note comes first so that nothing is missed.
        self.ledger.unknown(number);
        client.try_send(request)?;
        client.try_reply()?;
        client.try_reply()?;
        if client.try_reply()?.code == 250 {
            self.ledger.accept(number, &content);
        } else {
            client.try_send("RSET\r\n")?;
            client.try_reply()?;
        }
        Ok(())
    }
}
