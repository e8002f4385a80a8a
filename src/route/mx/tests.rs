//! Tables and properties of the order of attempts.

use proptest::prelude::*;

use super::*;
use crate::route::recorder::Step;

const BOTH: &[AddressFamily] = &[AddressFamily::Ipv6, AddressFamily::Ipv4];

fn domain(text: &str) -> Domain {
    text.parse().expect(text)
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect(text)
}

fn mx(records: &[(u16, &str)]) -> Vec<MxRecord> {
    records
        .iter()
        .map(|(preference, exchange)| MxRecord { preference: *preference, exchange: (*exchange).into() })
        .collect()
}

fn select_from(records: &[(u16, &str)], own: &str, seed: u64) -> Result<Vec<String>, ResolveError> {
    let mut random = fastrand::Rng::with_seed(seed);
    let own = domain(own);
    select(&domain("d.example"), mx(records), |name| *name == own, &mut random, &mut Recorder::off())
        .map(|list| list.into_iter().map(|exchange| exchange.name.to_string()).collect())
}

fn arrange_from(
    exchanges: &[(u16, &str, &[&str])],
    families: &[AddressFamily],
    own: &[&str],
    allow_loopback: bool,
) -> Result<Vec<String>, ResolveError> {
    let exchanges = exchanges
        .iter()
        .map(|(preference, name, addresses)| {
            let found = match addresses {
                ["?"] => Found::Unanswered("timed out".into()),
                list => Found::Addresses(list.iter().map(|text| ip(text)).collect()),
            };
            (Exchange { preference: *preference, name: domain(name) }, found)
        })
        .collect();
    let own: Vec<IpAddr> = own.iter().map(|text| ip(text)).collect();
    let rules = AddressRules { families, allow_loopback, is_self: &|ip| own.contains(&ip) };
    arrange(&domain("d.example"), exchanges, &rules, &mut Recorder::off())
        .map(|list| list.into_iter().map(|candidate| candidate.ip.to_string()).collect())
}

#[test]
fn a_null_mx_counts_only_alone() {
    let null = ResolveError::NullMx { domain: domain("d.example") };
    assert_eq!(select_from(&[(0, "")], "me.example", 1), Err(null.clone()));
    assert_eq!(select_from(&[(0, ""), (10, "")], "me.example", 1), Err(null));
    assert_eq!(select_from(&[(0, ""), (10, "a.example")], "me.example", 1), Ok(vec!["a.example".into()]));
}

#[test]
fn self_and_all_that_is_no_better_are_dropped() {
    let set = [(10, "a.example"), (20, "me.example"), (20, "b.example"), (30, "c.example")];
    for seed in 0..20 {
        assert_eq!(select_from(&set, "me.example", seed), Ok(vec!["a.example".into()]));
    }
    let looping = ResolveError::Loop { domain: domain("d.example") };
    assert_eq!(select_from(&[(5, "ME.example."), (9, "b.example")], "me.example", 1), Err(looping));
}

#[test]
fn equal_preferences_are_shuffled_and_names_listed_twice_keep_the_better_place() {
    let set = [(10, "a.example"), (10, "b.example"), (20, "a.example"), (5, "c.example")];
    let orders: HashSet<Vec<String>> =
        (0..50).map(|seed| select_from(&set, "me.example", seed).expect("there are hosts")).collect();
    assert_eq!(orders.len(), 2, "{orders:?}");
    assert!(orders.iter().all(|order| order[0] == "c.example" && order.len() == 3));
}

#[test]
fn three_hundred_exchanges_are_bounded_and_text_that_is_no_name_is_escaped() {
    let names: Vec<String> = (0..300).map(|n| format!("mx{n}.example")).collect();
    let set: Vec<(u16, &str)> = names.iter().map(|name| (10, name.as_str())).collect();
    assert_eq!(select_from(&set, "me.example", 7).expect("there are hosts").len(), EXCHANGES_MAX);

    let mut recorder = Recorder::on();
    let records = mx(&[(10, "a b\u{1b}"), (10, "-x.example")]);
    let result = select(&domain("d.example"), records, |_| false, &mut fastrand::Rng::with_seed(1), &mut recorder);
    assert_eq!(result, Err(ResolveError::NoMailHost { domain: domain("d.example") }));
    let dropped = |what: &str| Step::Dropped { what: what.into(), why: Drop::BadName };
    assert_eq!(recorder.into_steps(), [dropped("a b\\u{1b}"), dropped("-x.example")]);
}

#[test]
fn families_alternate_and_the_preferred_one_is_first() {
    let set: &[(u16, &str, &[&str])] = &[
        (10, "a.example", &["192.0.2.1", "192.0.2.2", "2001:db8::1"]),
        (20, "b.example", &["2001:db8::2", "192.0.2.3"]),
    ];
    let six_first = ["2001:db8::1", "192.0.2.1", "192.0.2.2", "2001:db8::2", "192.0.2.3"];
    assert_eq!(arrange_from(set, BOTH, &[], false).expect("addresses"), six_first);
    let four_first = ["192.0.2.1", "2001:db8::1", "192.0.2.2", "192.0.2.3", "2001:db8::2"];
    assert_eq!(
        arrange_from(set, &[AddressFamily::Ipv4, AddressFamily::Ipv6], &[], false).expect("addresses"),
        four_first
    );
    assert_eq!(
        arrange_from(set, &[AddressFamily::Ipv6], &[], false).expect("addresses"),
        ["2001:db8::1", "2001:db8::2"]
    );
}

#[test]
fn self_is_known_by_address_too_even_mapped_into_ipv6() {
    let set: &[(u16, &str, &[&str])] = &[
        (10, "a.example", &["192.0.2.1"]),
        (20, "alias-of-me.example", &["::ffff:192.0.2.9", "192.0.2.2"]),
        (20, "b.example", &["192.0.2.3"]),
        (30, "c.example", &["192.0.2.4"]),
    ];
    assert_eq!(arrange_from(set, BOTH, &["192.0.2.9"], false).expect("addresses"), ["192.0.2.1"]);
    let looping = Err(ResolveError::Loop { domain: domain("d.example") });
    assert_eq!(arrange_from(&set[1..], BOTH, &["192.0.2.9"], false), looping);
}

#[test]
fn addresses_that_are_nobodys_are_never_tried() {
    for text in [
        "0.0.0.0",
        "0.1.2.3",
        "224.0.0.1",
        "255.255.255.255",
        "240.0.0.1",
        "169.254.1.1",
        "::",
        "fe80::1",
        "ff02::1",
        "::ffff:0.0.0.0",
        "::192.0.2.1",
    ] {
        assert_eq!(refusal(ip(text), true), Some(Drop::Unusable), "{text}");
    }
    for text in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
        assert_eq!((refusal(ip(text), false), refusal(ip(text), true)), (Some(Drop::Loopback), None), "{text}");
    }
    for text in ["10.0.0.1", "192.168.1.1", "fd00::1", "192.0.2.1", "2001:db8::1"] {
        assert_eq!(refusal(ip(text), false), None, "{text}");
    }
    let set: &[(u16, &str, &[&str])] = &[(10, "a.example", &["127.0.0.1", "0.0.0.0"])];
    let none = Err(ResolveError::NoUsableAddress { domain: domain("d.example") });
    assert_eq!(arrange_from(set, BOTH, &[], false), none);
    assert_eq!(arrange_from(set, BOTH, &[], true).expect("allowed"), ["127.0.0.1"]);
    // A trap beside a real exchange does not count as this host, which would drop them both.
    let set: &[(u16, &str, &[&str])] = &[(10, "trap.example", &["127.0.0.1"]), (10, "real.example", &["192.0.2.1"])];
    assert_eq!(arrange_from(set, BOTH, &["127.0.0.1"], false).expect("the real one"), ["192.0.2.1"]);
}

#[test]
fn what_nobody_can_tell_now_is_never_permanent() {
    let unanswered = Err(ResolveError::Unanswered { name: domain("a.example"), why: "timed out".into() });
    assert_eq!(arrange_from(&[(10, "a.example", &["?"]), (20, "b.example", &[])], BOTH, &[], false), unanswered);
    // The better exchange may answer later, so mail does not bounce as a loop either.
    assert_eq!(
        arrange_from(&[(10, "a.example", &["?"]), (20, "me.example", &["192.0.2.9"])], BOTH, &["192.0.2.9"], false),
        unanswered
    );
    let none = Err(ResolveError::NoMailHost { domain: domain("d.example") });
    assert_eq!(arrange_from(&[(10, "a.example", &[])], BOTH, &[], false), none);
}

#[test]
fn one_exchange_cannot_crowd_out_the_others() {
    let many: Vec<String> = (0..60).map(|n| format!("192.0.2.{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let set: &[(u16, &str, &[&str])] = &[(10, "a.example", &many), (20, "b.example", &["198.51.100.1"])];
    let order = arrange_from(set, BOTH, &[], false).expect("addresses");
    assert_eq!((order.len(), order.last().map(String::as_str)), (ADDRESSES_PER_EXCHANGE_MAX + 1, Some("198.51.100.1")));
}

fn any_ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (prop::sample::select(vec![10u8, 127, 224, 0]), any::<u8>()).prop_map(|(net, n)| IpAddr::from([net, 0, 0, n])),
        (0u16..40).prop_map(|n| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, n])),
    ]
}

fn any_set() -> impl Strategy<Value = Vec<(u16, u8, Option<Vec<IpAddr>>)>> {
    let found = prop::option::weighted(0.9, prop::collection::vec(any_ip(), 0..20));
    prop::collection::vec((0u16..5, 0u8..40, found), 0..60)
}

proptest! {
    #[test]
    fn never_self_never_worse_before_better_always_bounded(
        set in any_set(), own_name in 0u8..40, own_ip in any_ip(), seed in any::<u64>(), loopback in any::<bool>(),
    ) {
        let name = |n: u8| format!("mx{n}.example");
        let records: Vec<MxRecord> =
            set.iter().map(|(preference, n, _)| MxRecord { preference: *preference, exchange: name(*n).into() }).collect();
        let own = domain(&name(own_name));
        let limit = set.iter().filter(|(_, n, _)| *n == own_name).map(|(preference, _, _)| *preference).min();
        let mut random = fastrand::Rng::with_seed(seed);
        let mut off = Recorder::off();
        let target = domain("d.example");
        let Ok(chosen) = select(&target, records, |name| *name == own, &mut random, &mut off) else { return Ok(()) };
        prop_assert!(chosen.len() <= EXCHANGES_MAX);
        prop_assert!(chosen.iter().all(|e| e.name != own && limit.is_none_or(|limit| e.preference < limit)));
        prop_assert!(chosen.is_sorted_by_key(|e| e.preference));

        let found: Vec<(Exchange, Found)> = chosen.into_iter().map(|exchange| {
            let of = set.iter().find(|(_, n, _)| name(*n) == exchange.name.as_str()).and_then(|(_, _, list)| list.clone());
            (exchange, of.map_or(Found::Unanswered("x".into()), Found::Addresses))
        }).collect();
        let usable = refusal(own_ip, loopback).is_none();
        let has_own = |f: &Found| usable && matches!(f, Found::Addresses(list) if list.contains(&own_ip));
        let limit = found.iter().filter(|(_, f)| has_own(f)).map(|(e, _)| e.preference).min();
        let rules = AddressRules { families: BOTH, allow_loopback: loopback, is_self: &|ip| ip == own_ip };
        let Ok(order) = arrange(&target, found, &rules, &mut off) else { return Ok(()) };
        prop_assert!(!order.is_empty() && order.len() <= ADDRESSES_MAX);
        prop_assert!(order.iter().all(|c| c.ip != own_ip && refusal(c.ip, loopback).is_none()));
        prop_assert!(order.iter().all(|c| limit.is_none_or(|limit| c.exchange.preference < limit)));
        prop_assert!(order.is_sorted_by_key(|c| c.exchange.preference));
        let distinct: HashSet<IpAddr> = order.iter().map(|c| c.ip).collect();
        prop_assert_eq!(distinct.len(), order.len());
    }
}
