//! What a node knows of the mesh: whose records count, how often, and which domain is whose.

use std::collections::BTreeSet;

use postroad_mesh::archive;
use postroad_mesh::directory::{Conflict, Directory, RECORD_INTERVAL_MS, RECORDS_AT_ONCE, RecordRefused, Taken};
use postroad_mesh::record::{Record, Said};
use postroad_mesh::roster::Roster;
use postroad_mesh::statement::{Policy, Statement, What};
use postroad_mesh::{Caps, NodeId, SecretKey, StatementId};
use postroad_smtp::Domain;

fn key(number: u8) -> SecretKey {
    SecretKey::from_seed(&[number; 32])
}

fn id(number: u8) -> NodeId {
    key(number).public().id()
}

fn domain(name: &str) -> Domain {
    name.parse().expect("a domain")
}

fn mesh() -> Directory {
    let founding = Statement::found(&key(0), Policy::DEFAULT, "lab", 0);
    Directory::new(Roster::new(founding).expect("it founds"))
}

fn admit(directory: &mut Directory, by: u8, node: u8, serves: &[&str]) {
    let head = directory.roster().next_head(&id(by), 0);
    let serves = serves.iter().map(|name| domain(name)).collect();
    let what = What::Admit { node: key(node).public(), caps: Caps::ALL, serves, label: "".into() };
    assert!(directory.take_statements([Statement::new(&key(by), head, what)]).refused.is_empty());
}

fn record(directory: &Directory, node: u8, sequence: u64, serves: &[&str]) -> Record {
    let serves = serves.iter().map(|name| domain(name)).collect();
    let said = Said { serves, ..Said::new(key(node).public(), directory.roster().mesh(), sequence) };
    Record::sign(&key(node), &said).expect("within the limits")
}

fn take(directory: &mut Directory, record: Record, now: u64) -> Result<Taken, RecordRefused> {
    directory.take_records([record], now).remove(0)
}

fn says(directory: &mut Directory, node: u8, serves: &[&str]) {
    let record = record(directory, node, 1, serves);
    assert_eq!(take(directory, record, 0), Ok(Taken::New));
}

fn owners(directory: &Directory, name: &str) -> BTreeSet<NodeId> {
    let described = directory.described();
    described.into_iter().filter(|(_, said)| said.serves.contains(&domain(name))).map(|(id, _)| id).collect()
}

#[test]
fn only_members_are_heard_and_the_latest_counts() {
    let mut mesh = mesh();
    let early = record(&mesh, 1, 1, &[]);
    assert_eq!(take(&mut mesh, early.clone(), 0), Err(RecordRefused::Stranger));
    admit(&mut mesh, 0, 1, &[]);
    let later = record(&mesh, 1, 2, &[]);
    assert_eq!(take(&mut mesh, later.clone(), 0), Ok(Taken::New));
    assert_eq!(take(&mut mesh, later, 0), Ok(Taken::Known));
    assert_eq!(take(&mut mesh, early, 0), Ok(Taken::Known));
    let said = Said::new(key(1).public(), StatementId::from_octets([9; 32]), 3);
    let foreign = Record::sign(&key(1), &said).expect("ok");
    assert_eq!(take(&mut mesh, foreign, 0), Err(RecordRefused::OtherMesh));

    let head = mesh.roster().next_head(&id(1), 0);
    mesh.take_statements([Statement::new(&key(1), head, What::Retire)]);
    assert!(mesh.records().is_empty(), "who left has no record");
}

#[test]
fn who_publishes_all_the_time_is_heard_now_and_then() {
    let mut mesh = mesh();
    admit(&mut mesh, 0, 1, &[]);
    admit(&mut mesh, 0, 2, &[]);
    says(&mut mesh, 2, &[]);
    // What it may say at once is all known: nothing is left out.
    let mut known = mesh.clone();
    for change in 0..RECORDS_AT_ONCE {
        let record = record(&known, 1, change + 1, &[]);
        assert_eq!(take(&mut known, record, 0), Ok(Taken::New));
    }
    assert!(known.restless(0).is_empty());
    let mut heard = 0;
    // Once a second, for an hour.
    for second in 0..3_600 {
        let record = record(&mesh, 1, second + 1, &[]);
        heard += u64::from(take(&mut mesh, record, second * 1_000) == Ok(Taken::New));
    }
    assert_eq!(heard, RECORDS_AT_ONCE);
    let now = 3_600_000;
    assert_eq!(mesh.restless(now), [id(1)].into());
    assert_eq!(mesh.keys(&mesh.restless(now)).len(), mesh.keys(&BTreeSet::new()).len() - 1);
    let next = record(&mesh, 1, 1_000_000, &[]);
    let Ok(Taken::TooSoon { at }) = take(&mut mesh, next.clone(), now) else { panic!("it is restless") };
    assert_eq!(at, now + 86_400_000, "the longest pause");
    assert_eq!(take(&mut mesh, next, at), Ok(Taken::New));
}

#[test]
fn who_publishes_now_and_then_is_always_heard() {
    let mut mesh = mesh();
    admit(&mut mesh, 0, 1, &[]);
    for change in 0..100 {
        let record = record(&mesh, 1, change + 1, &[]);
        assert_eq!(take(&mut mesh, record, change * RECORD_INTERVAL_MS), Ok(Taken::New));
    }
    assert!(mesh.restless(100 * RECORD_INTERVAL_MS).is_empty());
}

#[test]
fn a_domain_belongs_to_whom_it_was_granted() {
    let mut mesh = mesh();
    admit(&mut mesh, 0, 1, &["lab.example"]);
    says(&mut mesh, 1, &["lab.example", "www.lab.example", "bank.example"]);
    assert_eq!(owners(&mesh, "lab.example"), [id(1)].into());
    assert_eq!(owners(&mesh, "www.lab.example"), [id(1)].into());
    assert!(owners(&mesh, "bank.example").is_empty(), "nobody granted it");
    mesh.set_proofs([(id(1), domain("bank.example"))].into());
    assert_eq!(owners(&mesh, "bank.example"), [id(1)].into());
}

#[test]
fn who_has_a_domain_keeps_it_against_another_sponsors_guest() {
    let mut mesh = mesh();
    admit(&mut mesh, 0, 1, &["lab.example"]);
    admit(&mut mesh, 0, 2, &[]);
    says(&mut mesh, 1, &["lab.example"]);
    admit(&mut mesh, 2, 3, &["lab.example"]);
    says(&mut mesh, 3, &["lab.example"]);
    assert_eq!(owners(&mesh, "lab.example"), [id(1)].into());
    assert_eq!(mesh.conflicts(), &[Conflict { domain: domain("lab.example"), node: id(3) }].into());
    // One who has it lets another in.
    admit(&mut mesh, 1, 4, &["lab.example"]);
    says(&mut mesh, 4, &["lab.example"]);
    assert_eq!(owners(&mesh, "lab.example"), [id(1), id(4)].into());
    // DNS takes it from nobody; whom it names together may share it.
    mesh.set_proofs([(id(3), domain("lab.example"))].into());
    assert_eq!(owners(&mesh, "lab.example"), [id(1), id(4)].into());
    assert_eq!(mesh.conflicts(), &[Conflict { domain: domain("lab.example"), node: id(3) }].into());
    mesh.set_proofs([1, 3, 4].map(|node| (id(node), domain("lab.example"))).into());
    assert_eq!(owners(&mesh, "lab.example"), [id(1), id(3), id(4)].into());
    assert!(mesh.conflicts().is_empty());
}

#[test]
fn who_has_a_domain_keeps_it_over_a_restart() {
    let mut mesh = mesh();
    admit(&mut mesh, 0, 1, &["lab.example"]);
    admit(&mut mesh, 0, 2, &[]);
    admit(&mut mesh, 2, 3, &["lab.example"]);
    says(&mut mesh, 1, &["lab.example"]);
    says(&mut mesh, 3, &["lab.example"]);
    says(&mut mesh, 2, &["lab.example"]);
    let proofs = BTreeSet::from([(id(2), domain("lab.example"))]);
    mesh.set_proofs(proofs.clone());
    let again = archive::read(&archive::write(&mesh), proofs, 9).expect("as it was written");
    assert_eq!(owners(&again, "lab.example"), [id(1)].into());
    assert_eq!((again.conflicts(), again.conflicts().len()), (mesh.conflicts(), 2));
}

#[test]
fn what_dns_says_of_a_key_is_said_of_the_one_that_follows_it() {
    let mut mesh = mesh();
    admit(&mut mesh, 0, 1, &[]);
    admit(&mut mesh, 0, 3, &[]);
    mesh.set_proofs([(id(1), domain("lab.example"))].into());
    let head = mesh.roster().next_head(&id(1), 0);
    assert!(mesh.take_statements([Statement::rotate(&key(1), &key(2), head)]).refused.is_empty());
    says(&mut mesh, 2, &["lab.example"]);
    says(&mut mesh, 3, &["lab.example"]);
    assert_eq!(owners(&mesh, "lab.example"), [id(2)].into());
    assert_eq!(mesh.unfounded().into_keys().collect::<Vec<_>>(), [id(3)]);
    assert!(mesh.not_granted().contains_key(&id(2)));
}

#[test]
fn of_two_claims_that_come_together_neither_counts_unless_it_is_proven() {
    let mut mesh = mesh();
    admit(&mut mesh, 0, 1, &[]);
    admit(&mut mesh, 0, 2, &["lab.example"]);
    admit(&mut mesh, 1, 3, &["lab.example"]);
    let both = [record(&mesh, 2, 1, &["lab.example"]), record(&mesh, 3, 1, &["lab.example"])];
    let mut told_one_by_one = mesh.clone();
    mesh.take_records(both.clone(), 0);
    assert!(owners(&mesh, "lab.example").is_empty());
    assert_eq!(mesh.conflicts().len(), 2);
    mesh.set_proofs([(id(3), domain("lab.example"))].into());
    assert_eq!(owners(&mesh, "lab.example"), [id(3)].into());

    for record in both {
        take(&mut told_one_by_one, record, 0).expect("of a member");
    }
    assert_eq!(owners(&told_one_by_one, "lab.example"), [id(2)].into(), "the one that came first has it");
}

#[test]
fn what_is_claimed_without_a_grant_is_known_until_it_is_granted() {
    let mut mesh = mesh();
    admit(&mut mesh, 0, 1, &["lab.example"]);
    says(&mut mesh, 1, &["lab.example", "a.lab.example", "bank.example"]);
    assert_eq!(mesh.unfounded().into_iter().collect::<Vec<_>>(), [(id(1), vec![domain("bank.example")])]);
    assert!(owners(&mesh, "bank.example").is_empty());
    mesh.set_proofs([(id(1), domain("bank.example"))].into());
    assert!(mesh.unfounded().is_empty());
    mesh.set_proofs(BTreeSet::new());
    admit(&mut mesh, 0, 1, &["bank.example"]);
    assert!(mesh.unfounded().is_empty());
    assert_eq!(owners(&mesh, "bank.example"), [id(1)].into());
}
