//! Recipients that stand for others (RFC 5321 §3.9.1): which they are, and the envelope that a message has behind
//! them. It is changed once, before the commit: the queue, its retries and its notifications know of the addresses
//! that mail goes to, and the reverse-path stays.

use std::collections::HashSet;

use postroad_smtp::envelope::DSN_VALUE_OCTETS_MAX;
use postroad_smtp::{Envelope, ForwardPath, Host, LocalPart, Mailbox, OriginalRecipient, Recipient, Reply};

use super::replies;
use crate::config::Config;
use crate::route::Router;

/// Recipients of one message behind all aliases.
const RECIPIENTS_MAX: usize = 10_000;

/// Returns what a recipient stands for, and the line of the aliases file that says so.
pub fn of(config: &Config, router: &Router, forward_path: &ForwardPath) -> Option<(usize, Vec<Mailbox>)> {
    if config.aliases.is_empty() {
        return None;
    }
    let (target, postmaster) = (router.target(forward_path), postmaster());
    let (local_part, domain) = match target.mailbox() {
        Some(mailbox) => (&mailbox.local_part, mailbox.domain()?),
        None => (&postmaster, &config.hostname),
    };
    let is_own = *domain == config.hostname || config.local(domain).is_some();
    if is_own { config.aliases.expand(local_part, domain) } else { None }
}

/// Returns whether mail for an address, as the router has it, is taken from everybody: that of local domains, and
/// that of the postmaster (RFC 5321 §4.5.1).
pub fn is_for_everybody(config: &Config, target: &ForwardPath) -> bool {
    let Some(mailbox) = target.mailbox() else { return true };
    let is_postmaster = mailbox.local_part.as_str().eq_ignore_ascii_case("postmaster");
    mailbox
        .domain()
        .is_some_and(|domain| config.local(domain).is_some() || (is_postmaster && *domain == config.hostname))
}

fn postmaster() -> LocalPart {
    "postmaster".parse().expect("postmaster is a local-part")
}

/// Returns an envelope with the addresses that its recipients stand for, each once. Each has the wishes of the
/// recipient that it stands in for, and ORCPT says who that was (RFC 3461 §5.2.7).
///
/// # Errors
/// The reply that refuses the message: too many recipients.
pub fn expand(config: &Config, router: &Router, envelope: Envelope) -> Result<Envelope, Reply> {
    let aliases: Vec<_> = envelope.recipients().iter().map(|to| of(config, router, &to.forward_path)).collect();
    if aliases.iter().all(Option::is_none) {
        return Ok(envelope);
    }
    let named = || envelope.recipients().iter().zip(&aliases);
    let mut seen: HashSet<ForwardPath> =
        named().filter(|(_, alias)| alias.is_none()).map(|(to, _)| to.forward_path.clone()).collect();
    let mut recipients = Vec::new();
    for (recipient, alias) in named() {
        let Some((_, mailboxes)) = alias else {
            recipients.push(recipient.clone());
            continue;
        };
        for mailbox in mailboxes {
            let forward_path = ForwardPath::Mailbox(mailbox.clone());
            if seen.insert(forward_path.clone()) {
                let original = recipient.original.clone().or_else(|| original(&recipient.forward_path));
                recipients.push(Recipient { forward_path, notify: recipient.notify, original });
            }
        }
        if recipients.len() > RECIPIENTS_MAX {
            return Err(replies::TOO_MANY_BEHIND_ALIASES);
        }
    }
    let Envelope { reverse_path, params, .. } = envelope;
    Ok(Envelope::new(reverse_path, params, recipients).expect("a name stands for somebody"))
}

fn original(forward_path: &ForwardPath) -> Option<OriginalRecipient> {
    let mailbox = forward_path.mailbox().filter(|mailbox| matches!(mailbox.host, Host::Domain(_)))?;
    let (address, addr_type) = (mailbox.to_string(), if mailbox.is_ascii() { "rfc822" } else { "utf-8" });
    let fits = address.len() <= DSN_VALUE_OCTETS_MAX;
    fits.then(|| OriginalRecipient { addr_type: addr_type.into(), address: address.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Service;
    use crate::policy::mailboxes::OsDirectories;
    use crate::policy::rules::{self, Accepted, Client};
    use postroad_smtp::{MailParams, Notify, ReversePath};

    fn with(aliases: &str, test: impl FnOnce(&Config, &Router)) {
        let directory = tempfile::tempdir().expect("scratch");
        std::fs::write(directory.path().join("aliases"), aliases).expect("written");
        let text = "hostname = \"mx.example\"\naliases = \"aliases\"\n[relay]\nnetworks = [\"10.0.0.0/8\"]\n\
                    [[local]]\ndomain = \"local.example\"\nmaildir = \"mail/{user}\"\nrecipients = [\"alice\"]";
        let config = Config::from_str(text, "test", directory.path()).unwrap_or_else(|faults| panic!("{faults}"));
        test(&config, &Router::new(&config));
    }

    #[test]
    fn strangers_write_to_names_of_local_domains_and_to_the_postmaster_alone() {
        with("root: a@x.example\npostmaster: root\n", |config, router| {
            let verdict = |peer: &str, to: &str| {
                let peer = peer.parse().expect("an address");
                let client = Client { peer, service: Service::Smtp, user: None, member: None };
                let (from, to) = ("b@x.example".parse().expect("a path"), to.parse().expect("a path"));
                rules::rcpt((config, router), &OsDirectories, &client, &from, &to, 0)
            };
            for (to, stranger, neighbour) in [
                ("root@mx.example", Err(replies::RELAY_DENIED), Ok(Accepted::Aliased)),
                ("ROOT+x@local.example", Ok(Accepted::Aliased), Ok(Accepted::Aliased)),
                ("postmaster", Ok(Accepted::Aliased), Ok(Accepted::Aliased)),
                ("postmaster@mx.example", Ok(Accepted::Aliased), Ok(Accepted::Aliased)),
                ("nobody@local.example", Err(replies::NO_SUCH_MAILBOX), Err(replies::NO_SUCH_MAILBOX)),
                ("root@x.example", Err(replies::RELAY_DENIED), Ok(Accepted::Relay(rules::RelayGrant::Network))),
            ] {
                assert_eq!((verdict("192.0.2.1", to), verdict("10.0.0.1", to)), (stranger, neighbour), "{to}");
            }
        });
    }

    #[test]
    fn each_address_behind_a_name_gets_one_copy_and_knows_whom_it_stands_for() {
        with("root: a@x.example, alice\nops: root, b@x.example\n", |config, router| {
            let to = |address: &str| Recipient::new(address.parse().expect("a path"));
            let wish = Recipient { notify: Some(Notify::NEVER), ..to("ops@local.example") };
            let recipients = vec![wish, to("b@x.example"), to("root@local.example"), to("c@x.example")];
            let from: ReversePath = "s@x.example".parse().expect("a path");
            let envelope = Envelope::new(from.clone(), MailParams::default(), recipients).expect("not empty");
            let expanded = expand(config, router, envelope).expect("few");
            assert_eq!(expanded.reverse_path, from);
            let shown: Vec<_> = expanded
                .recipients()
                .iter()
                .map(|to| (to.forward_path.to_string(), to.notify, to.original.as_ref().map(|to| &*to.address)))
                .collect();
            let (never, ops) = (Some(Notify::NEVER), Some("ops@local.example"));
            assert_eq!(
                shown,
                [
                    ("<alice@local.example>".to_owned(), never, ops),
                    ("<a@x.example>".to_owned(), never, ops),
                    ("<b@x.example>".to_owned(), None, None),
                    ("<c@x.example>".to_owned(), None, None),
                ]
            );
        });
    }

    #[test]
    fn names_do_not_make_a_flood() {
        let lists: String = (0..20)
            .map(|n| {
                let targets: Vec<String> = (0..1000).map(|m| format!("u{m}@x{n}.example")).collect();
                format!("list{n}: {}\n", targets.join(","))
            })
            .collect();
        with(&lists, |config, router| {
            let to = |n| Recipient::new(format!("list{n}@local.example").parse().expect("a path"));
            let envelope = |count| {
                Envelope::new(ReversePath::Null, MailParams::default(), (0..count).map(to).collect()).expect("some")
            };
            assert_eq!(expand(config, router, envelope(10)).map(|all| all.recipients().len()), Ok(10_000));
            assert_eq!(expand(config, router, envelope(20)).map(|_| ()), Err(replies::TOO_MANY_BEHIND_ALIASES));
        });
    }
}
