//! Dialogues with the policy as tables: who says RCPT for whom, and what is answered.

use std::path::Path;

use postroad_smtp::Release;

use super::*;
use crate::config::Service;

pub(super) const CONFIG: &str = r#"
hostname = "mx.example.org"
postmaster = "admin@example.org"
[listen]
smtp = ["0.0.0.0:25", "192.0.2.25:25"]
submission = ["0.0.0.0:587"]
[relay]
networks = ["10.1.0.0/16", "2001:db8:1::/48"]
[[local]]
domain = "example.org"
maildir = "/mail/{user}"
[[local]]
domain = "list.example"
lmtp = "unix:/run/lmtp"
recipients = ["news", "Postmaster"]
[[local]]
domain = "any.example"
lmtp = "unix:/run/lmtp"
recipients = "any"
[[route]]
domain = "intranet"
via = "10.1.0.9"
"#;

/// A file system in which some users have a Maildir.
struct Users(&'static [&'static str]);

impl Directories for Users {
    fn exists(&self, path: &Path) -> std::io::Result<bool> {
        let name = path.to_str().and_then(|path| path.strip_prefix("/mail/")).expect("never outside the template");
        assert!(!name.contains('/') && !name.starts_with('.'), "{name}");
        match name {
            "broken" => Err(std::io::Error::other("unreadable")),
            name => Ok(self.0.contains(&name)),
        }
    }
}

pub(super) fn policy(text: &str) -> Policy {
    let config = Config::from_str(text, "test", Path::new("/")).unwrap_or_else(|faults| panic!("{faults}"));
    Policy::with_directories(Arc::new(config), Box::new(Users(&["alice", "admin", "a+b", "x%y.example"])))
}

pub(super) fn ask(policy: &Policy, peer: &str, user: Option<&str>, recipient: &str) -> String {
    let client = Client { peer: peer.parse().expect(peer), service: Service::Smtp, user, member: None };
    let Ok(forward_path) = recipient.parse::<ForwardPath>() else { return "syntax".to_owned() };
    let sender = "x@sender.example".parse().expect("valid");
    match policy.rcpt(&client, &sender, &forward_path, 0) {
        Ok(Accepted::Local(user)) => format!("local {user}"),
        Ok(Accepted::Redirected(mailbox)) => format!("to {mailbox}"),
        Ok(Accepted::Relay(grant)) => format!("relay {grant:?}"),
        Ok(Accepted::Aliased) => "aliased".to_owned(),
        Err(reply) => reply.to_string().split(' ').take(2).collect::<Vec<_>>().join(" "),
    }
}

#[test]
fn a_stranger_reaches_local_mailboxes_only() {
    let policy = policy(CONFIG);
    for (recipient, want) in [
        ("alice@example.org", "local alice"),
        ("Alice@Example.ORG.", "local alice"),
        ("\"alice\"@example.org", "local alice"),
        ("alice+shop@example.org", "local alice"),
        ("a+b@example.org", "local a+b"),
        ("a+b+c@example.org", "550 5.1.1"),
        ("bob@example.org", "550 5.1.1"),
        ("+alice@example.org", "550 5.1.1"),
        ("broken@example.org", "451 4.3.0"),
        ("\"../etc\"@example.org", "550 5.1.1"),
        ("../etc@example.org", "syntax"),
        ("a/../../b@example.org", "syntax"),
        ("a/b@example.org", "550 5.1.1"),
        ("\".ssh\"@example.org", "550 5.1.1"),
        ("news@list.example", "local news"),
        ("NEWS+x@list.example", "local news"),
        ("other@list.example", "550 5.1.1"),
        ("whoever+x@any.example", "local whoever+x"),
        ("alice@sub.example.org", "550 5.7.1"),
        ("alice@elsewhere.example", "550 5.7.1"),
        ("alice@notexample.org", "550 5.7.1"),
        ("alice@mx.example.org", "550 5.7.1"),
        ("alice@intranet", "550 5.7.1"),
        ("alice@localhost", "550 5.7.1"),
    ] {
        assert_eq!(ask(&policy, "203.0.113.9", None, recipient), want, "{recipient}");
    }
}

#[test]
fn no_trick_makes_it_a_relay() {
    let policy = policy(CONFIG);
    for (recipient, want) in [
        ("victim%elsewhere.example@example.org", "550 5.1.1"),
        ("elsewhere.example!victim@example.org", "550 5.1.1"),
        ("\"victim@elsewhere.example\"@example.org", "550 5.1.1"),
        ("victim@elsewhere.example@example.org", "syntax"),
        ("@example.org:victim@elsewhere.example", "550 5.7.1"),
        ("@example.org,@elsewhere.example:alice@example.org", "local alice"),
        ("victim%elsewhere.example@any.example", "550 5.1.1"),
        ("elsewhere.example!victim@any.example", "550 5.1.1"),
        ("\"victim@elsewhere.example\"@any.example", "550 5.1.1"),
        ("\"|/bin/sh\"@any.example", "550 5.1.1"),
        ("victim%elsewhere.example@[192.0.2.25]", "550 5.7.1"),
        ("victim@[192.0.2.25]", "550 5.7.1"),
        ("victim@[127.0.0.1]", "550 5.7.1"),
        ("victim@[IPv6:::1]", "550 5.7.1"),
        ("victim@[198.51.100.1]", "550 5.7.1"),
        ("victim@elsewhere.example.", "550 5.7.1"),
        ("victim@elsewhere.example%example.org", "syntax"),
        ("x%y.example@example.org", "local x%y.example"),
        ("v\u{ff05}elsewhere.example@example.org", "550 5.1.1"),
        ("v\u{ff20}elsewhere.example@example.org", "550 5.1.1"),
    ] {
        assert_eq!(ask(&policy, "203.0.113.9", None, recipient), want, "{recipient}");
    }
}

#[test]
fn a_network_or_a_login_may_relay_and_nobody_else() {
    let policy = policy(CONFIG);
    for (peer, user, want) in [
        ("10.1.2.3", None, "relay Network"),
        ("::ffff:10.1.2.3", None, "relay Network"),
        ("2001:db8:1:2::3", None, "relay Network"),
        ("10.2.0.1", None, "550 5.7.1"),
        ("127.0.0.1", None, "550 5.7.1"),
        ("2001:db8:2::1", None, "550 5.7.1"),
        ("::10.1.2.3", None, "550 5.7.1"),
        ("203.0.113.9", Some("app"), "relay Login"),
    ] {
        assert_eq!(ask(&policy, peer, user, "v@elsewhere.example"), want, "{peer} {user:?}");
    }
    for (recipient, want) in [
        ("v@elsewhere", "550 5.1.2"),
        ("v@localhost", "550 5.1.2"),
        ("v@intranet", "relay Network"),
        ("a%b@elsewhere.example", "relay Network"),
        ("v@[198.51.100.1]", "relay Network"),
        ("v@[127.0.0.1]", "550 5.1.1"),
        ("v@[0.0.0.0]", "550 5.1.1"),
        ("v@[192.0.2.25]", "550 5.1.1"),
        ("v@[169.254.169.254]", "550 5.1.2"),
        ("v@[IPv6:::1]", "550 5.1.1"),
        ("v@[IPv6:::ffff:127.0.0.1]", "550 5.1.1"),
        ("v@[IPv6:fe80::1]", "550 5.1.2"),
        ("v@[224.0.0.1]", "550 5.1.2"),
        ("bob@example.org", "550 5.1.1"),
    ] {
        assert_eq!(ask(&policy, "10.1.2.3", None, recipient), want, "{recipient}");
    }
}

#[test]
fn the_postmaster_can_always_be_reached() {
    let set = policy(CONFIG);
    for (recipient, want) in [
        ("Postmaster", "to admin@example.org"),
        ("postmaster@example.org", "to admin@example.org"),
        ("\"postmaster\"@any.example", "to admin@example.org"),
        ("postmaster@mx.example.org", "to admin@example.org"),
        ("postmaster@[192.0.2.25]", "to admin@example.org"),
        ("POSTMASTER@list.example", "local postmaster"),
        ("postmaster@elsewhere.example", "550 5.7.1"),
    ] {
        assert_eq!(ask(&set, "203.0.113.9", None, recipient), want, "{recipient}");
    }
    let unset = policy(&CONFIG.replace("postmaster = \"admin@example.org\"", ""));
    for (recipient, want) in [
        ("Postmaster", "to postmaster@example.org"),
        ("postmaster@mx.example.org", "to postmaster@example.org"),
        ("postmaster@example.org", "local postmaster"),
        ("postmaster@any.example", "local postmaster"),
    ] {
        assert_eq!(ask(&unset, "203.0.113.9", None, recipient), want, "{recipient}");
    }
    assert_eq!(ask(&policy(""), "203.0.113.9", None, "Postmaster"), "550 5.1.1");
    // Whoever names a mailbox for the postmaster means it, with or without a directory.
    for (name, want) in [("new", "to new@example.org"), ("broken", "451 4.3.0"), ("a/b", "550 5.1.1")] {
        let named = policy(&CONFIG.replace("admin@example.org", &format!("{name}@example.org")));
        assert_eq!(ask(&named, "203.0.113.9", None, "Postmaster"), want, "{name}");
    }
}

#[test]
fn a_short_host_name_goes_only_to_the_host_that_takes_everything() {
    let hub = "hostname = \"web1\"\n[[route]]\ndomain = \"*\"\nvia = \"hub.example.org\"";
    assert_eq!(ask(&policy(hub), "127.0.0.1", None, "root@web1"), "relay Network");
    assert_eq!(ask(&policy(hub), "127.0.0.1", None, "root@web2"), "550 5.1.2");
    assert_eq!(ask(&policy("hostname = \"web1\""), "127.0.0.1", None, "root@web1"), "550 5.1.2");
}

/// A policy with the user `app` (password `right`), who may send as `app@example.org`.
fn with_user(directory: &Path) -> Policy {
    let hash = users::password::hash("right").expect("hashed");
    std::fs::write(directory.join("users"), format!("app:{hash}:app@example.org\n")).expect("written");
    let text =
        format!("state_dir = {:?}\n[limits]\nauth_failures = 3\n[listen]\nsubmission = [\"127.0.0.1:587\"]", directory);
    policy(&text)
}

#[test]
fn submission_needs_a_login_and_its_own_sender() {
    let directory = tempfile::tempdir().expect("scratch");
    let policy = with_user(directory.path());
    let peer = "127.0.0.1".parse().expect("valid");
    for (service, user, sender, want) in [
        (Service::Smtp, None, "x@sender.example", None),
        (Service::Smtp, None, "", None),
        (Service::Submission, None, "app@example.org", Some("530 5.7.0")),
        (Service::Submissions, None, "", Some("530 5.7.0")),
        (Service::Submission, Some("app"), "app@example.org", None),
        (Service::Submission, Some("app"), "APP+1@example.org", None),
        (Service::Submission, Some("app"), "", None),
        (Service::Submission, Some("app"), "ceo@example.org", Some("550 5.7.1")),
        (Service::Smtp, Some("app"), "ceo@example.org", Some("550 5.7.1")),
        (Service::Submission, Some("gone"), "app@example.org", Some("550 5.7.1")),
    ] {
        let client = Client { peer, service, user, member: None };
        let (params, now) = (MailParams::default(), UnixMillis(0));
        let got =
            policy.mail(&client, &sender.parse().expect(sender), &params, now).err().map(|reply| reply.to_string());
        assert_eq!(got.as_deref().map(|reply| &reply[..9]), want, "{service:?} {user:?} {sender}");
    }
}

#[test]
fn the_null_reverse_path_of_a_login_goes_to_one_recipient() {
    let policy = policy(CONFIG);
    let peer = "203.0.113.9".parse().expect("valid");
    let to = |user, accepted| {
        let client = Client { peer, service: Service::Smtp, user, member: None };
        let forward_path = "alice@example.org".parse().expect("valid");
        policy.rcpt(&client, &ReversePath::Null, &forward_path, accepted).err()
    };
    assert_eq!(to(Some("app"), 0), None);
    assert_eq!(to(Some("app"), 1), Some(replies::NULL_FOR_ONE_ONLY));
    assert_eq!(to(None, 1), None, "notifications of other hosts may have several");
}

#[tokio::test]
async fn guessing_ends_after_a_few_failures() {
    let directory = tempfile::tempdir().expect("scratch");
    let policy = with_user(directory.path());
    let (home, attacker) = ("192.0.2.1".parse().expect("valid"), "203.0.113.9".parse().expect("valid"));
    for _ in 0..5 {
        assert_eq!(policy.authenticate(home, "App", "right").await.expect("right").user(), "app");
    }
    for (user, password) in [("app", "wrong"), ("nobody", "right"), ("app", "")] {
        assert_eq!(policy.authenticate(attacker, user, password).await, Err(replies::WRONG_CREDENTIALS), "{user}");
    }
    assert_eq!(policy.authenticate(attacker, "app", "right").await, Err(replies::TOO_MANY_LOGIN_FAILURES));
    assert!(policy.authenticate(home, "app", "right").await.is_ok(), "others are not locked out");
}

#[test]
fn strangers_are_told_the_remedy() {
    let client =
        Client { peer: "203.0.113.9".parse().expect("valid"), service: Service::Smtp, user: None, member: None };
    let forward_path = "v@elsewhere.example".parse().expect("valid");
    let sender = "x@sender.example".parse().expect("valid");
    let reply = policy(CONFIG).rcpt(&client, &sender, &forward_path, 0).expect_err("refused");
    let want = "550 5.7.1 relay access denied: log in first, or have the admin of this host add your address to \
                relay.networks";
    assert_eq!(reply.to_string(), want);
}

#[test]
fn only_who_may_relay_may_go_before_others() {
    let policy = policy(CONFIG);
    for (peer, service, user, want) in [
        ("203.0.113.9", Service::Smtp, None, 0),
        ("10.1.2.3", Service::Smtp, None, 5),
        ("203.0.113.9", Service::Submission, Some("alice@example.org"), 5),
    ] {
        let client = Client { peer: peer.parse().expect("an address"), service, user, member: None };
        let given = |asked: i8| policy.priority(&client, Priority::new(asked)).map(Priority::get);
        assert_eq!(given(5), Some(want), "{peer} {user:?}");
        assert_eq!((given(0), given(-9)), (Some(0), Some(-9)), "to stand back is anybody's right");
        assert_eq!(policy.priority(&client, None), None);
    }
}

#[test]
fn nothing_is_late_before_it_is_released() {
    let now = UnixMillis(1_800_000_000_000);
    let ask = |by: &str, release: Option<Release>| {
        let params = MailParams { deliver_by: by.parse().ok(), release, ..MailParams::default() };
        rules::times(&params, now).is_ok()
    };
    let until = |ms: u64| Some(Release::At(now.0 + ms));
    assert!(ask("", Some(Release::After(60))) && ask("60;R", None) && ask("-60;N", None));
    assert!(ask("61;R", Some(Release::After(60))) && !ask("60;R", Some(Release::After(60))));
    assert!(ask("61;N", until(60_999)) && !ask("61;N", until(61_000)) && !ask("-5;N", until(1)));
    assert!(ask("1;R", Some(Release::At(0))) && ask("1;R", Some(Release::After(0))), "at once");
}

#[test]
fn a_customer_fetches_its_own_domains_and_anybody_may_write_to_them() {
    let text = "\n[[turn]]\nuser = \"Branch\"\ndomains = [\"branch.example\", \"second.example\"]\n";
    let policy = policy(&(CONFIG.to_owned() + text));
    let turn = |user, domains: &[&str]| {
        let domains: Vec<_> = domains.iter().map(|name| name.parse().expect("a domain")).collect();
        policy
            .turn(user, &domains)
            .map(|turn| turn.domains.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
    };
    assert_eq!(turn(Some("branch"), &[]).as_deref(), Ok("branch.example second.example"));
    assert_eq!(turn(Some("branch"), &["second.example"]).as_deref(), Ok("second.example"));
    assert_eq!(turn(Some("branch"), &["second.example", "example.org"]), Err(replies::NOT_YOUR_DOMAIN));
    assert_eq!(turn(Some("alice"), &["branch.example"]), Err(replies::NOTHING_KEPT));
    assert_eq!(turn(None, &[]), Err(replies::NOTHING_KEPT));
    for (recipient, want) in [
        ("whoever@branch.example", "relay Kept"),
        ("whoever@sub.branch.example", "550 5.7.1"),
        ("\"x@elsewhere.example\"@branch.example", "relay Kept"),
    ] {
        assert_eq!(ask(&policy, "203.0.113.9", None, recipient), want, "{recipient}");
    }
}

/// Whoever is at the other end of a connection that this host opened to fetch its mail.
#[test]
fn what_is_fetched_is_for_local_mailboxes_wherever_it_comes_from() {
    let text = "\n[[turn]]\nuser = \"branch\"\ndomains = [\"branch.example\"]\n";
    let policy = policy(&(CONFIG.to_owned() + text));
    let sender = "x@sender.example".parse().expect("valid");
    for (recipient, want) in [
        ("alice@example.org", Ok(())),
        ("bob@example.org", Err(replies::NO_SUCH_MAILBOX)),
        ("v@elsewhere.example", Err(replies::RELAY_DENIED)),
        ("v@branch.example", Err(replies::RELAY_DENIED)),
        ("v@[198.51.100.1]", Err(replies::RELAY_DENIED)),
    ] {
        let client =
            Client { peer: "10.1.2.3".parse().expect("valid"), service: Service::Fetch, user: None, member: None };
        let got = policy.rcpt(&client, &sender, &recipient.parse().expect(recipient), 0).map(drop);
        assert_eq!(got, want, "{recipient}");
    }
}

#[test]
fn who_may_relay_may_have_what_waits_tried_and_so_may_this_host() {
    let policy = policy(CONFIG);
    for (peer, service, user, want) in [
        ("10.1.2.3", Service::Smtp, None, true),
        ("127.0.0.1", Service::Smtp, None, true),
        ("203.0.113.9", Service::Submission, Some("alice"), true),
        ("203.0.113.9", Service::Smtp, None, false),
        ("127.0.0.1", Service::Fetch, None, false),
    ] {
        let client = Client { peer: peer.parse().expect("an address"), service, user, member: None };
        assert_eq!(policy.start(&client).is_ok(), want, "{peer} {user:?}");
    }
}

fn node(n: u8) -> postroad_mesh::NodeKey {
    postroad_mesh::SecretKey::from_seed(&[n; 32]).public()
}

/// A mesh of three: this host, one that dials it, and one that is dialled.
pub(super) fn mesh() -> Arc<Members> {
    use std::collections::BTreeMap;

    use postroad_mesh::StatementId;
    use postroad_mesh::record::{Link, Reach, Said};

    let said = |n: u8, serves: &[&str], other: u8| Said {
        node: node(n),
        mesh: StatementId::from_octets([0; 32]),
        sequence: 1,
        label: "".into(),
        site: "".into(),
        addresses: Vec::new(),
        reach: Reach::Public,
        serves: serves.iter().map(|domain| domain.parse().expect("valid")).collect(),
        egress: Vec::new(),
        pickups: Vec::new(),
        holds_days: 3,
        links: vec![Link { to: node(other).id(), cost: 10 }],
        link_cost: 0,
    };
    let away = Said { pickups: vec![node(1).id()], reach: Reach::DialsOut, ..said(2, &["away.example"], 1) };
    let members = [said(1, &["example.org"], 2), away, said(3, &["other.example"], 1)];
    let records: BTreeMap<_, _> = members.into_iter().map(|said| (said.node.id(), said)).collect();
    Arc::new(Members::new(node(1).id(), records, true))
}

#[test]
fn members_send_through_this_host_as_far_as_they_were_admitted() {
    use postroad_mesh::Caps;

    let members = mesh();
    let [policy, exchange] = [CONFIG, &format!("{CONFIG}[mesh]\nmx = true")].map(policy);
    [&policy, &exchange].into_iter().for_each(|policy| policy.set_members(Some(members.clone())));
    let ask_at = |policy: &Policy, member: Option<Caps>, recipient: &str| {
        let peer = "203.0.113.9".parse().expect("valid");
        let client = Client { peer, service: Service::Smtp, user: None, member };
        let sender = "x@sender.example".parse().expect("valid");
        match policy.rcpt(&client, &sender, &recipient.parse().expect(recipient), 0) {
            Ok(Accepted::Relay(grant)) => format!("relay {grant:?}"),
            Ok(_) => "here".to_owned(),
            Err(reply) => reply.to_string().split(' ').take(2).collect::<Vec<_>>().join(" "),
        }
    };
    let ask = |member, recipient| ask_at(&policy, member, recipient);
    for (recipient, relay, plain, stranger, at_exchange) in [
        ("alice@example.org", "here", "here", "here", "here"),
        ("bob@away.example", "relay Member", "relay Member", "550 5.7.1", "relay Exchange"),
        ("bob@other.example", "relay Member", "451 4.7.1", "550 5.7.1", "relay Exchange"),
        ("bob@intranet", "relay Member", "451 4.7.1", "550 5.7.1", "550 5.7.1"),
        ("bob@world.example", "451 4.4.4", "451 4.7.1", "550 5.7.1", "550 5.7.1"),
        ("bob@[192.0.2.77]", "451 4.4.4", "451 4.7.1", "550 5.7.1", "550 5.7.1"),
    ] {
        assert_eq!(ask_at(&exchange, None, recipient), at_exchange, "{recipient}");
        assert_eq!(ask(Some(Caps::RELAY), recipient), relay, "{recipient}");
        assert_eq!(ask(Some(Caps::NONE), recipient), plain, "{recipient}");
        assert_eq!(ask(None, recipient), stranger, "{recipient}");
    }
}

#[test]
fn a_member_that_cannot_be_dialled_has_connections_reversed_and_reverses_them() {
    use postroad_mesh::Caps;

    let policy = policy(CONFIG);
    policy.set_members(Some(mesh()));
    // Over a connection that this host has reversed, a member may do what it may elsewhere, and its address is nothing.
    let text = CONFIG.replace("10.1.0.0/16", "127.0.0.0/8");
    let (config, service) = (Config::from_str(&text, "test", Path::new("/")).expect("valid"), Service::Fetch);
    let fetched = |peer: &str, member: Option<Caps>| {
        let client = Client { peer: peer.parse().expect("valid"), service, user: None, member };
        rules::relay_grant(&config, &client)
    };
    assert_eq!(fetched("127.0.0.1", None), None);
    assert_eq!(fetched("127.0.0.1", Some(Caps::NONE)), None);
    assert_eq!(fetched("127.0.0.1", Some(Caps::RELAY)), Some(RelayGrant::Member));
    // Who cannot be dialled has the connection reversed, for all that goes to it.
    let turn = |n: u8, domains: &[&str]| {
        let domains: Vec<Domain> = domains.iter().map(|name| name.parse().expect("valid")).collect();
        policy.turn_member(&node(n).id(), &domains)
    };
    assert_eq!(turn(2, &[]), Ok(()));
    assert_eq!(turn(2, &["away.example"]), Err(replies::MEMBERS_NAME_NO_DOMAIN));
    assert_eq!(turn(2, &["other.example"]), Err(replies::MEMBERS_NAME_NO_DOMAIN));
    assert_eq!(turn(3, &[]), Err(replies::NOT_HELD_FOR_YOU), "it is dialled");
    assert_eq!(turn(4, &[]), Err(replies::NOT_HELD_FOR_YOU), "it is no member");
    policy.set_members(None);
    assert_eq!(turn(2, &[]), Err(replies::NOT_HELD_FOR_YOU), "there is no mesh any more");
}
