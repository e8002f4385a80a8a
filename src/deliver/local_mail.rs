//! Mail that ends on this host: into Maildirs, or handed to a mail store by LMTP (RFC 2033).
//!
//! Which mailbox a local-part means is the policy's rule, asked again here: a user may have left
//! since the mail was accepted.

use std::sync::Arc;

use postroad_queue::Report;
use postroad_smtp::client::{self, Protocol, TlsNeed};
use postroad_smtp::{Domain, ForwardPath, LocalPart, Reply};
use tracing::warn;

use super::attempt::{Ended, Task};
use super::dispatcher::Core;
use super::local::{Deliver, Maildir};
use super::open::session;
use super::outcome::Outcome;
use super::remote::{Lane, Result, unreadable};
use super::transport::Target;
use crate::config::{Config, LmtpAddress, Local, LocalDelivery, MaildirTemplate, UserName};
use crate::net::Address;
use crate::policy::mailboxes::{self, Directories, OsDirectories};
use crate::policy::replies;
use crate::route::LocalHop;

/// Delivers to the mailboxes of a local domain.
pub async fn deliver(core: &Core, lane: &mut Lane, task: &Task<'_>, hop: &LocalHop) -> Result {
    let config = &task.routing.config;
    let Some(local) = config.local(hop.domain()) else {
        // The router and the settings are swapped as one.
        unreachable!("a local hop names a local domain");
    };
    match &local.delivery {
        LocalDelivery::Maildir(template) => (to_maildirs(core, task, local, template).await, Ended::Answered),
        LocalDelivery::Lmtp(address) => lane.deliver_to(core, task, vec![lmtp_target(core, config, address)]).await,
    }
}

async fn to_maildirs(core: &Core, task: &Task<'_>, local: &Local, template: &MaildirTemplate) -> Vec<(usize, Outcome)> {
    let maildir = Maildir::new(template, task.routing.config.hostname.as_str());
    let mut outcomes = Vec::with_capacity(task.places.len());
    for place in &task.places {
        let outcome = match user(task, &local.domain, *place).await {
            Ok(user) => to_maildir(core, task, &maildir, user, *place).await,
            Err(reply) => Err(reply),
        };
        let at = core.clock.now();
        outcomes.push((
            *place,
            match outcome {
                Ok(reply) => {
                    let report = Report { at, remote: None, reply };
                    Outcome::Delivered { report, carries_notify: false, ends_by_time: false }
                }
                Err(reply) if reply.severity() == postroad_smtp::Severity::Permanent => {
                    Outcome::Failed(Report { at, remote: None, reply })
                }
                Err(reply) => Outcome::Deferred(Report { at, remote: None, reply }),
            },
        ));
    }
    outcomes
}

/// Returns whose mailbox a recipient means.
async fn user(task: &Task<'_>, domain: &Domain, place: usize) -> std::result::Result<UserName, Reply> {
    let forward_path = &task.item.envelope.recipients()[place].forward_path;
    let target = task.routing.router.target(forward_path);
    let ForwardPath::Mailbox(mailbox) = target.as_ref() else { return Err(replies::NO_POSTMASTER) };
    let for_postmaster = *target != *forward_path;
    let asked = (domain.clone(), mailbox.local_part.clone(), for_postmaster);
    look_up(Arc::clone(&task.routing.config), asked, OsDirectories).await
}

/// Asks the policy's rule on a thread that may block: a file system may take its time.
async fn look_up(
    config: Arc<Config>,
    (domain, local_part, for_postmaster): (Domain, LocalPart, bool),
    directories: impl Directories + 'static,
) -> std::result::Result<UserName, Reply> {
    let found = tokio::task::spawn_blocking(move || match config.local(&domain) {
        Some(local) => mailboxes::resolve(local, &local_part, for_postmaster, &directories),
        None => Ok(None),
    });
    match found.await {
        Ok(Ok(user)) => user.ok_or(replies::NO_SUCH_MAILBOX),
        Ok(Err(fault)) => {
            warn!(%fault, "a mailbox cannot be looked up");
            Err(replies::LOOKUP_FAILED)
        }
        Err(_) => Err(replies::LOOKUP_FAILED),
    }
}

async fn to_maildir(
    core: &Core,
    task: &Task<'_>,
    maildir: &Maildir,
    user: UserName,
    place: usize,
) -> std::result::Result<Reply, Reply> {
    let reader = core.queue.content(task.item.id).map_err(|error| unreadable(task, &error))?;
    let (maildir, item) = (maildir.clone(), Arc::clone(task.item));
    let maybe_repeat = item.id <= core.last_of_earlier_run || task.tried_before(place);
    let delivered = core.local.run(move || {
        let deliver = Deliver {
            id: item.id,
            arrived: item.arrived,
            reverse_path: &item.envelope.reverse_path,
            user: &user,
            forward_path: &item.envelope.recipients()[place].forward_path,
            place,
            maybe_repeat,
        };
        maildir.deliver(&deliver, &mut reader.stream())
    });
    match delivered.await {
        Ok(delivered) => Ok(Reply::from(&delivered)),
        Err(error) => Err(Reply::from(&error)),
    }
}

fn lmtp_target(core: &Core, config: &Config, address: &LmtpAddress) -> Target {
    let address = match address {
        LmtpAddress::Unix(path) => Address::Unix(path.clone()),
        LmtpAddress::Tcp(address) => Address::Tcp(*address),
    };
    Target {
        name: "lmtp".into(),
        address,
        session: client::Config { protocol: Protocol::Lmtp, ..session(config, TlsNeed::Never, None) },
        implicit_tls: false,
        tls: core.tls.any_certificate().clone(),
        nodes: None,
        connect_limit: config.timeouts.connect,
    }
}

#[cfg(test)]
mod tests;
