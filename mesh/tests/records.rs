//! Records: they come back as they went, keep their limits, and fields of later releases travel on.

use postroad_mesh::node::Purpose;
use postroad_mesh::record::{Address, Egress, LINKS_MAX, Link, Reach, Record, RecordError, Said};
use postroad_mesh::{NodeId, SecretKey, StatementId};
use proptest::prelude::*;

fn key(number: u8) -> SecretKey {
    SecretKey::from_seed(&[number; 32])
}

fn said(sequence: u64) -> Said {
    Said::new(key(1).public(), StatementId::from_octets([3; 32]), sequence)
}

fn full(sequence: u64, links: usize) -> Said {
    let domain = |name: &str| name.parse().expect("a domain");
    Said {
        label: "hq-1".into(),
        site: "hq".into(),
        addresses: vec![
            Address { host: "mx.example.org".into(), port: 25, implicit_tls: false },
            Address { host: "2001:db8::1".into(), port: 443, implicit_tls: true },
        ],
        reach: Reach::Windows,
        serves: vec![domain("example.org"), domain("lab.example")],
        egress: vec![Egress { from: vec![domain("example.org")], cost: 10, ..Egress::default() }],
        pickups: vec![key(2).public().id()],
        holds_days: 14,
        links: (0..links).map(|n| Link { to: NodeId::from_octets([n as u8; 32]), cost: 20 }).collect(),
        link_cost: 30,
        ..said(sequence)
    }
}

#[test]
fn what_was_said_is_read() {
    let record = Record::sign(&key(1), &full(7, 3)).expect("within the limits");
    assert_eq!(*record.said(), full(7, 3));
    assert_eq!(record.id(), key(1).public().id());
    let back = Record::from_octets(&record.to_octets()).expect("sound");
    assert_eq!(back, record);
    assert!(record.to_octets().len() < 450, "{} octets", record.to_octets().len());
}

#[test]
fn addresses_are_written_as_they_are_read() {
    for text in ["mx.example.org:25", "192.0.2.1:2525", "[2001:db8::1]:4465/tls", "mx.example.org:4465/tls"] {
        assert_eq!(text.parse::<Address>().expect(text).to_string(), text);
    }
    for text in ["", "mx.example.org", "mx.example.org:70000", ":25", "2001:db8::1:25", "[mx.example]:25", "a b:25"] {
        assert!(text.parse::<Address>().is_err(), "{text}");
    }
}

#[test]
fn nobody_speaks_for_another() {
    assert_eq!(Record::sign(&key(2), &said(1)), Err(RecordError::Signature));
    let record = Record::sign(&key(1), &said(1)).expect("sound");
    let as_statement = key(1).sign(Purpose::Statement, &record.to_octets());
    assert!(Record::read(&record.to_octets(), as_statement).is_err());
}

#[test]
fn limits_are_kept() {
    assert!(Record::sign(&key(1), &full(1, LINKS_MAX)).is_ok());
    assert_eq!(Record::sign(&key(1), &full(1, LINKS_MAX + 1)), Err(RecordError::Malformed("a list is too long")));
    let said = Said { label: "a\nb".into(), ..said(1) };
    assert!(matches!(Record::sign(&key(1), &said), Err(RecordError::Malformed(_))));
}

#[test]
fn the_later_one_counts_and_all_choose_alike() {
    let (one, two) = (Record::sign(&key(1), &said(1)).expect("ok"), Record::sign(&key(1), &said(2)).expect("ok"));
    let other = Record::sign(&key(1), &Said { label: "x".into(), ..said(2) }).expect("ok");
    assert!(two.supersedes(&one) && !one.supersedes(&two) && !one.supersedes(&one));
    assert_ne!(two.supersedes(&other), other.supersedes(&two));
}

/// A later release adds fields: this one skips them, and what it passes on is as it was signed.
#[test]
fn fields_of_later_releases_travel_on() {
    let record = Record::sign(&key(1), &full(7, 0)).expect("ok");
    let whole = record.to_octets();
    let mut decoder = minicbor::Decoder::new(&whole);
    let _ = decoder.array();
    let mut octets = decoder.bytes().expect("the signed part").to_vec();
    // One more entry in the map: 23 → true.
    assert_eq!(octets[0] & 0xe0, 0xa0);
    octets[0] += 1;
    octets.extend([23, 0xf5]);
    let later = Record::read(&octets, key(1).sign(Purpose::Record, &octets)).expect("read all the same");
    assert_eq!(later.said(), record.said());
    assert_eq!(Record::from_octets(&later.to_octets()).expect("sound"), later);
    assert_ne!(later.fingerprint(), record.fingerprint());
}

proptest! {
    #[test]
    fn an_altered_record_is_refused(at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut octets = Record::sign(&key(1), &full(7, 5)).expect("ok").to_octets();
        let at = at.index(octets.len());
        octets[at] ^= 1 << bit;
        prop_assert!(Record::from_octets(&octets).is_err());
    }

    #[test]
    fn garbage_is_no_record(octets in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Record::from_octets(&octets).is_err());
    }
}
