//! Domains whose mail passes through: who may write to them, and that nobody gets further by them.

use super::tests::{CONFIG, ask, mesh, policy};
use super::*;
use crate::config::Service;

const ROUTES: &str = r#"
[[route]]
domain = "backup.example"
via = "mx"
accept = ["sales", "Alice"]
[[route]]
domain = ".inner.example"
via = "10.1.0.9"
accept = "any"
[[route]]
domain = "out.inner.example"
via = "mx"
[[local]]
domain = "home.inner.example"
lmtp = "unix:/run/lmtp"
recipients = ["news"]
[[turn]]
user = "branch"
domains = ["kept.inner.example"]
"#;

#[test]
fn everybody_writes_to_domains_that_pass_through_and_no_further() {
    let policy = policy(&(CONFIG.to_owned() + ROUTES));
    let to_all = |answer| [answer; 3];
    let passed = ["relay Route", "relay Network", "relay Login"];
    let denied = ["550 5.7.1", "relay Network", "relay Login"];
    for (recipient, want) in [
        ("alice@backup.example", passed),
        ("\"ALICE\"+x@BACKUP.example", to_all("syntax")),
        ("Alice+x@BACKUP.example.", passed),
        ("Postmaster@backup.example", passed),
        ("bob@backup.example", to_all("550 5.1.1")),
        ("alice@sub.backup.example", denied),
        ("alice@xbackup.example", denied),
        ("whoever@a.inner.example", passed),
        ("whoever@b.a.inner.example", passed),
        ("whoever@inner.example", denied),
        ("whoever@out.inner.example", denied),
        ("whoever@below.out.inner.example", passed),
        ("news@home.inner.example", to_all("local news")),
        ("whoever@home.inner.example", to_all("550 5.1.1")),
        ("whoever@kept.inner.example", to_all("relay Kept")),
        ("v@elsewhere.example", denied),
        ("v%elsewhere.example@a.inner.example", to_all("550 5.1.1")),
        ("elsewhere.example!v@a.inner.example", to_all("550 5.1.1")),
        ("\"v@elsewhere.example\"@a.inner.example", to_all("550 5.1.1")),
        ("\"|/bin/sh\"@a.inner.example", to_all("550 5.1.1")),
        ("v%elsewhere.example@backup.example", to_all("550 5.1.1")),
        ("\"alice@elsewhere.example\"@backup.example", to_all("550 5.1.1")),
        ("@a.inner.example:v@elsewhere.example", denied),
        ("@elsewhere.example:alice@backup.example", passed),
        ("whoever@[10.1.0.9]", denied),
    ] {
        let peers = [("203.0.113.9", None), ("10.1.2.3", None), ("203.0.113.9", Some("app"))];
        assert_eq!(peers.map(|(peer, user)| ask(&policy, peer, user, recipient)), want, "{recipient}");
    }
}

#[test]
fn only_listeners_for_other_hosts_take_it() {
    use postroad_mesh::Caps;

    let policy = policy(&(CONFIG.to_owned() + ROUTES));
    policy.set_members(Some(mesh()));
    let route = Ok(Accepted::Relay(RelayGrant::Route));
    for (service, member, want) in [
        (Service::Smtp, None, route.clone()),
        (Service::Smtp, Some(Caps::NONE), route.clone()),
        (Service::Mesh, Some(Caps::NONE), route),
        (Service::Smtp, Some(Caps::RELAY), Ok(Accepted::Relay(RelayGrant::Member))),
        (Service::Submission, None, Err(replies::LOGIN_NEEDED)),
        (Service::Submissions, None, Err(replies::LOGIN_NEEDED)),
        (Service::Fetch, None, Err(replies::RELAY_DENIED)),
        (Service::Fetch, Some(Caps::NONE), Err(replies::MEMBER_MAY_NOT_RELAY)),
    ] {
        let client = Client { peer: "203.0.113.9".parse().expect("valid"), service, user: None, member };
        let (sender, recipient) = ("x@sender.example".parse(), "alice@backup.example".parse());
        let got = policy.rcpt(&client, &sender.expect("valid"), &recipient.expect("valid"), 0);
        assert_eq!(got, want, "{service:?} {member:?}");
    }
}
