//! Which way mail takes with a mesh beside the rules of the configuration.

use std::path::Path;

use postroad_mesh::record::{Egress, Link, Reach};
use postroad_mesh::{MeshMessageId, SecretKey, StatementId};
use postroad_queue::UnixMillis;

use super::super::{Recorder, Route, Router, Step as Noted};
use super::*;
use crate::config::Config;

const CONFIG: &str = r#"
hostname = "a.example"
[[local]]
domain = "a.example"
maildir = "/m/{user}"
[[route]]
domain = "partner.example"
via = "[192.0.2.9]:25"
[[route]]
domain = ".lab.example"
via = "[192.0.2.8]:25"
"#;
const SMARTHOST: &str = "[[route]]\ndomain = \"*\"\nvia = \"[192.0.2.7]:25\"\n";

fn key(name: u8) -> SecretKey {
    SecretKey::from_seed(&[name; 32])
}

fn node(name: u8) -> NodeId {
    key(name).public().id()
}

/// A node with links to others, each of cost 10.
fn said(name: u8, serves: &[&str], links: &[u8]) -> Said {
    Said {
        node: key(name).public(),
        mesh: StatementId::from_octets([0; 32]),
        sequence: u64::from(name),
        label: format!("{}", char::from(name)).into(),
        site: "".into(),
        addresses: vec!["127.0.0.1:25".parse().expect("an address")],
        reach: Reach::Public,
        serves: serves.iter().map(|domain| domain.parse().expect("a domain")).collect(),
        egress: Vec::new(),
        pickups: Vec::new(),
        holds_days: 0,
        links: links.iter().map(|to| Link { to: node(*to), cost: 10 }).collect(),
        link_cost: 0,
    }
}

fn out() -> Vec<Egress> {
    vec![Egress { cost: 10, ..Egress::default() }]
}

/// Four in a line, a to d.
fn line() -> Vec<Said> {
    vec![
        said(b'a', &["a.example"], b"b"),
        said(b'b', &["b.example", "partner.example", "lab.example"], b"ac"),
        said(b'c', &["c.example", "example"], b"bd"),
        said(b'd', &["d.example"], b"c"),
    ]
}

fn members(all: Vec<Said>, relays: bool) -> Members {
    Members::new(node(b'a'), all.into_iter().map(|said| (said.node.id(), said)).collect(), relays)
}

fn router(text: &str, all: Vec<Said>, relays: bool) -> Router {
    let config = Config::from_str(text, "test", Path::new("/etc")).unwrap_or_else(|faults| panic!("{faults}"));
    Router::with_members(&config, Some(Arc::new(members(all, relays))))
}

/// Shows the members by their labels.
fn shown(router: &Router, path: &str, mail: &Mail<'_>) -> String {
    match router.route_mail(&path.parse().expect(path), mail) {
        Route::Local(hop) => hop.key().to_string(),
        Route::Smtp(hop) => match hop.target() {
            super::super::Target::Members { steps, .. } => {
                let labels: Vec<&str> = steps.iter().map(|step| &*step.label).collect();
                format!("mesh:{}", labels.join(","))
            }
            _ => hop.key().to_string(),
        },
        Route::Turn(hop) => hop.user().to_owned(),
        Route::Refused(reply) => reply.to_string(),
    }
}

#[test]
fn local_domains_and_named_routes_come_before_homes_and_homes_before_the_rest() {
    let router = router(CONFIG, line(), true);
    for (path, want) in [
        ("u@a.example", "local:a.example"),
        ("u@b.example", "mesh:b"),
        ("u@partner.example", "host:192.0.2.9:25"),
        ("u@x.lab.example", "host:192.0.2.8:25"),
        ("u@lab.example", "mesh:b"),
        ("u@c.example", "mesh:b"),
        ("u@d.example", "mesh:b"),
        ("u@elsewhere.example", "mesh:b"),
        ("u@elsewhere.test", "mx:elsewhere.test"),
        ("u@[192.0.2.1]", "host:192.0.2.1:25"),
        ("postmaster@a.example", "local:a.example"),
    ] {
        assert_eq!(shown(&router, path, &Mail::default()), want, "{path}");
    }
    assert!(router.has_home(&"x.b.example".parse().expect("valid")));
    assert!(!router.has_home(&"elsewhere.test".parse().expect("valid")));
}

#[test]
fn mail_leaves_where_a_member_offers_that_and_not_beside_it() {
    let mut all = line();
    all[2].egress = out();
    let through_c = all.clone();
    let with =
        |config: &str, relays| shown(&router(config, through_c.clone(), relays), "u@world.test", &Mail::default());
    assert_eq!(with(CONFIG, true), "mesh:b");
    assert_eq!(with(CONFIG, false), "mx:world.test", "who may not relay sends as ever");
    assert_eq!(
        with(&format!("{CONFIG}{SMARTHOST}"), true),
        "host:192.0.2.7:25",
        "the smarthost was said to be the way"
    );
    all[0].egress = out();
    assert_eq!(shown(&router(CONFIG, all.clone(), true), "u@world.test", &Mail::default()), "mx:world.test");
    // The only way out is cut off: direct mail would leave from where it must not.
    all[0].egress.clear();
    all[2].links.clear();
    assert_eq!(shown(&router(CONFIG, all, true), "u@world.test", &Mail::default()), "mesh:");
}

#[test]
fn who_sends_mail_out_does_so_itself_when_nobody_else_is_left_or_it_was_told_to_come_again() {
    let mut all: Vec<Said> = (b'a'..=b'd').map(|name| Said { link_cost: 10, ..said(name, &[], b"") }).collect();
    all[0].egress = vec![Egress { cost: 100, ..Egress::default() }];
    (all[1].egress, all[2].egress) = (out(), vec![Egress { cost: 500, ..Egress::default() }]);
    let router = router(CONFIG, all, true);
    let item = put_off("u@world.test", None);
    let shown = |mail: Mail<'_>| shown(&router, "u@world.test", &mail);
    // To b, or to b by way of others; never beyond what this host costs itself.
    assert!(shown(Mail::of(&item)).starts_with("mesh:b,"), "{}", shown(Mail::of(&item)));
    assert!(shown(Mail::of(&item).without([node(b'd')].into())).starts_with("mesh:b,"));
    assert_eq!(shown(Mail::of(&item).without([node(b'b')].into())), "mx:world.test", "whoever leads to b");
    let (outside, member) = ("mx.world.test [192.0.2.1:25]", "b (k5x2q7ab) [192.0.2.2:25]");
    for (to, remote, status, want) in [
        ("u@world.test", outside, Some((7, 1)), "mx:"),
        ("u@world.test", outside, None, "mx:"),
        // The connection failed, a member said it, another domain said it.
        ("u@world.test", outside, Some((4, 1)), "mesh:b,"),
        ("u@world.test", member, Some((7, 28)), "mesh:b,"),
        ("u@other.test", outside, Some((7, 1)), "mesh:b,"),
    ] {
        let status = status.map(|(subject, detail)| postroad_smtp::Status::new(4, subject, detail));
        let item = put_off(to, Some((remote, postroad_smtp::Reply::of(451, status, "come again"))));
        assert!(shown(Mail::of(&item)).starts_with(want), "{to} {status:?}: {}", shown(Mail::of(&item)));
    }
}

/// A message for one recipient that was told to come again, or not tried yet.
fn put_off(to: &str, last: Option<(&str, postroad_smtp::Reply)>) -> Item {
    let recipients = vec![postroad_smtp::Recipient::new(to.parse().expect("valid"))];
    let envelope = postroad_smtp::Envelope::new("".parse().expect("null"), Default::default(), recipients);
    let mut state = postroad_queue::State::fresh(1, UnixMillis(0), UnixMillis(5 * DAY_MS));
    if let (Some((remote, reply)), postroad_queue::RecipientState::Pending { last, .. }) =
        (last, &mut state.recipients[0])
    {
        *last = Some(postroad_queue::Report { at: UnixMillis(1), remote: Some(remote.into()), reply });
    }
    let (id, origin) = (postroad_queue::QueueId::from_u64(1), postroad_queue::Origin::default());
    Item { id, arrived: UnixMillis(0), envelope: envelope.expect("one"), origin, content_octets: 1, state }
}

#[test]
fn who_may_not_relay_reaches_its_neighbours_alone() {
    let router = router(CONFIG, line(), false);
    assert_eq!(shown(&router, "u@b.example", &Mail::default()), "mesh:b");
    assert_eq!(shown(&router, "u@c.example", &Mail::default()), "mesh:");
}

#[test]
fn no_node_is_visited_twice_and_none_beyond_the_limit() {
    let mut all = line();
    // A second way: a-e-d.
    all[0].links.push(Link { to: node(b'e'), cost: 10 });
    all[3].links.push(Link { to: node(b'e'), cost: 10 });
    all.push(said(b'e', &[], b"ad"));
    let router = router(CONFIG, all, true);
    let fresh = Passage::new(MeshMessageId::new(1, &[]), node(b'z'));
    let mail = |nodes: &[u8]| {
        let passage = nodes.iter().fold(fresh.clone(), |passage, n| passage.by_way_of(&node(*n)).expect("room"));
        Mail { passage: Some(passage).into(), ..Mail::default() }
    };
    assert_eq!(shown(&router, "u@d.example", &mail(b"")), "mesh:e,b");
    assert_eq!(shown(&router, "u@d.example", &mail(b"e")), "mesh:b");
    // Through e to d, and else through b to c: neither of those takes it again.
    assert_eq!(shown(&router, "u@d.example", &mail(b"eb")), "mesh:d,c");
    assert_eq!(shown(&router, "u@d.example", &mail(b"ebcd")), "mesh:");
    assert_eq!(shown(&router, "u@d.example", &mail(b"123456789xyz")), "mesh:");
}

#[test]
fn mail_is_shared_among_homes_and_goes_to_the_only_one_whatever_it_is() {
    let all: Vec<Said> = (b'a'..=b'd').map(|name| Said { link_cost: 10, ..said(name, &[], b"") }).collect();
    let mut all = all;
    for (home, domains) in [(1, &["b.example", "both.example"][..]), (2, &["both.example"])] {
        all[home].serves = domains.iter().map(|domain| domain.parse().expect("valid")).collect();
    }
    let router = router(CONFIG, all, true);
    let firsts = |path: &str| {
        let mail = |n: u8| Passage::new(MeshMessageId::new(1, &[&[n]]), node(b'a'));
        let first = |n| shown(&router, path, &Mail { passage: Some(mail(n)).into(), ..Mail::default() });
        (0..40).map(|n| first(n)[..6].to_owned()).collect::<std::collections::BTreeSet<String>>()
    };
    assert_eq!(firsts("u@both.example").into_iter().collect::<Vec<_>>(), ["mesh:b", "mesh:c"]);
    assert_eq!(firsts("u@b.example").into_iter().collect::<Vec<_>>(), ["mesh:b"]);
    assert_eq!(firsts("u@below.b.example").into_iter().collect::<Vec<_>>(), ["mesh:b"]);
}

#[test]
fn mail_for_a_home_that_is_down_makes_one_detour_and_waits() {
    let all: Vec<Said> = (b'a'..=b'e').map(|name| Said { link_cost: 10, ..said(name, &[], b"") }).collect();
    let mut all = all;
    all[1].serves = vec!["b.example".parse().expect("valid")];
    let router = router(CONFIG, all, true);
    let fresh = Passage::new(MeshMessageId::new(1, &[]), node(b'c'));
    assert!(shown(&router, "u@b.example", &Mail::default()).starts_with("mesh:b,"));
    let from_c = Mail { passage: fresh.by_way_of(&node(b'c')).ok().into(), ..Mail::default() };
    assert_eq!(shown(&router, "u@b.example", &from_c), "mesh:b");
}

#[test]
fn what_is_carried_for_members_is_what_this_host_offers() {
    let carries = |router: &Router, domain: &str| router.carries_for_members(&domain.parse().expect("valid"));
    let inside = router(&format!("{CONFIG}{SMARTHOST}"), line(), true);
    for (domain, want) in [("d.example", true), ("partner.example", true), ("world.test", false)] {
        assert_eq!(carries(&inside, domain), want, "{domain}");
    }
    let mut all = line();
    all[0].egress = out();
    assert!(carries(&router(CONFIG, all, true), "world.test"));
    assert!(!carries(&Router::new(&Config::from_str(CONFIG, "test", Path::new("/")).expect("valid")), "b.example"));
}

#[test]
fn mail_is_held_for_a_home_that_names_this_host() {
    let mut all = line();
    let holds = |all: &[Said]| members(all.to_vec(), true).holds(&"x.d.example".parse().expect("valid"));
    all[3].pickups.push(node(b'a'));
    assert!(!holds(&all), "this host holds for nobody");
    all[0].holds_days = 10;
    assert!(holds(&all));
    let item = |to: &str| put_off(to, None);
    let holding = router(CONFIG, all.clone(), true);
    assert_eq!(holding.expires(&item("u@d.example"), 0), UnixMillis(10 * DAY_MS));
    assert_eq!(holding.expires(&item("u@b.example"), 0), UnixMillis(5 * DAY_MS));
    // It stays here until its home can be reached.
    all[2].links.clear();
    assert_eq!(shown(&router(CONFIG, all, true), "u@d.example", &Mail::default()), "mesh:");
}

#[test]
fn mail_for_a_home_that_comes_for_it_goes_to_those_that_hold_it() {
    let mut all: Vec<Said> = (b'a'..=b'e').map(|name| Said { link_cost: 10, ..said(name, &[], b"") }).collect();
    all[4].serves = vec!["e.example".parse().expect("valid")];
    (all[4].reach, all[4].pickups) = (Reach::DialsOut, vec![node(b'a'), node(b'c')]);
    let shown = |all: &[Said]| shown(&router(CONFIG, all.to_vec(), true), "u@e.example", &Mail::default());
    // Who is dialled by it and does not hold its mail keeps it as any other: another way may be found.
    assert_eq!(shown(&all).split(',').count(), 4, "{}", shown(&all));
    (all[0].holds_days, all[2].holds_days) = (14, 14);
    assert_eq!(shown(&all), "mesh:e,c");
    all[4].pickups = vec![node(b'a')];
    assert_eq!(shown(&all), "mesh:e", "it waits here for nobody else");
    all[4].pickups = vec![node(b'b'), node(b'c')];
    assert!(shown(&all).ends_with("c,b,d") || shown(&all).ends_with("b,c,d"), "{}", shown(&all));
    // A domain with another home that can be dialled goes on as ever.
    all[4].pickups = vec![node(b'a')];
    all[3].serves = all[4].serves.clone();
    assert!(shown(&all).contains("d") && shown(&all).contains("b"), "{}", shown(&all));
    let members = members(all, true);
    assert!(members.comes(&node(b'e')) && !members.comes(&node(b'd')) && !members.comes(&node(b'z')));
}

#[test]
fn a_destination_tells_to_whom_it_leads() {
    let hop = |names: &[u8]| {
        let all = members((b'a'..=b'e').map(|name| said(name, &[], b"")).collect(), true);
        let steps = names.iter().map(|name| all.member(&node(*name)).expect("a member").clone()).collect();
        let target = super::super::Target::Members { steps, domain: "x.example".parse().expect("valid") };
        super::super::NextHop::new(target, crate::config::TlsUse::Required, None, 0)
    };
    let leads = |key: &str, name: u8| super::super::leads_to(key, &node(name));
    assert!(leads(hop(b"ab").key(), b'a') && leads(hop(b"ab").key(), b'b') && !leads(hop(b"ab").key(), b'c'));
    assert!(!leads(hop(b"").key(), b'a') && !leads("mx:a.example", b'a'));
}

#[test]
fn a_record_that_says_nothing_new_changes_no_way() {
    let (one, mut all) = (members(line(), true), line());
    all[1].sequence += 1;
    assert!(one.is_same(&members(all.clone(), true)));
    assert!(!one.is_same(&members(all.clone(), false)));
    all[1].links[0].cost = 11;
    assert!(!one.is_same(&members(all, true)));
}

#[test]
fn the_recorder_shows_the_choices() {
    let mut recorder = Recorder::on();
    router(CONFIG, line(), true).route_recorded(&"u@c.example".parse().expect("valid"), &mut recorder);
    let steps: Vec<String> = recorder.into_steps().iter().map(Noted::to_string).collect();
    let (b, c) = (node(b'b').short(), node(b'c').short());
    assert_eq!(steps[0], format!("by the mesh: b ({b}), to the home c ({c}), cost 20"));
    assert_eq!(steps[1], format!("destination mesh:{}", ShortId::from(&node(b'b'))));
}

/// A star around b, with c and d behind it: what is at c and has been at a and b goes through b.
#[test]
fn mail_that_can_only_go_back_goes_through_whom_it_visited() {
    let star = || {
        vec![
            said(b'a', &["a.example"], b"b"),
            said(b'b', &["b.example"], b"acd"),
            said(b'c', &["c.example"], b"b"),
            said(b'd', &["d.example"], b"b"),
        ]
    };
    let members = |relays| {
        let records = star().into_iter().map(|said| (said.node.id(), said)).collect();
        Members::new(node(b'c'), records, relays)
    };
    let begun = Passage::new(MeshMessageId::new(1, &[b"x"]), node(b'a'));
    let passage =
        ["a", "b"].iter().fold(begun, |so_far, name| so_far.by_way_of(&node(name.as_bytes()[0])).expect("room"));
    let mail = Mail { passage: Some(passage).into(), ..Mail::default() };
    let domain: Domain = "d.example".parse().expect("a domain");
    let Some((Way::Pass(steps), choices)) = members(true).to_home(&domain, &mail) else { panic!("it has a home") };
    assert!(choices.is_empty() && steps.len() == 1, "{steps:?}");
    assert_eq!((steps[0].node, steps[0].through[0].node), (node(b'd'), node(b'b')));
    let (b, d) = (node(b'b'), node(b'd'));
    assert_eq!(steps[0].to_string(), format!("d ({}) through b ({})", d.short(), b.short()));
    let hop = super::super::NextHop::member(steps[0].clone(), &domain);
    assert_eq!(**hop.key(), format!("mesh:{}<{}", ShortId::from(&d), ShortId::from(&b)));
    let leads_to = |name: u8| super::super::leads_to(hop.key(), &node(name));
    assert!(leads_to(b'd') && leads_to(b'b') && !leads_to(b'a'));
    // Whoever may not send through others may not do this either.
    let Some((Way::Pass(steps), _)) = members(false).to_home(&domain, &mail) else { panic!("it has a home") };
    assert_eq!(steps, []);
    // And nobody does it who has another way.
    let Some((Way::Pass(steps), _)) = members(true).to_home(&domain, &Mail::default()) else { panic!("it has a home") };
    assert_eq!((steps[0].node, steps[0].through.len()), (b, 0));
}

#[tokio::test]
async fn no_member_has_this_host_dial_itself() {
    let dialled = async |own: &str, stated: &[&str]| {
        let text =
            format!("hostname = \"a.example\"\n[dns]\nservers = [\"127.0.0.1:9\"]\n[mesh]\naddresses = [{own:?}]");
        let config = Config::from_str(&text, "test", Path::new("/")).unwrap_or_else(|faults| panic!("{faults}"));
        let addresses = stated.iter().map(|text| text.parse().expect("an address")).collect();
        let member = Member { node: node(b'b'), label: "b".into(), addresses, comes: false, through: Vec::new() };
        let hop = super::super::NextHop::member(Arc::new(member), &config.hostname);
        let found = super::super::Resolver::new(&config).expect("it asks nobody yet").resolve(&hop).await;
        found.map_or(Vec::new(), |found| found.hops.iter().map(|hop| hop.addr.to_string()).collect())
    };
    // Where nobody of this host listens.
    let stated = ["127.0.0.1:26", "[::1]:26", "[::ffff:127.0.0.1]:26", "0.0.0.0:26", "10.0.0.2:0", "10.0.0.2:2525"];
    assert_eq!(dialled("192.0.2.1:25", &stated).await, ["10.0.0.2:2525"]);
    assert_eq!(dialled("a.example:25", &stated[..4]).await, [""; 0]);
    let on_one_machine = ["127.0.0.1:26", "[::1]:26", "[::ffff:127.0.0.1]:26", "10.0.0.2:2525"];
    assert_eq!(dialled("127.0.0.9:2525", &stated).await, on_one_machine);
}
