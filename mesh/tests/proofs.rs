//! What DNS says of whose a domain is: what is believed, for how long, and how often it is asked.

use std::collections::{BTreeMap, BTreeSet};

use postroad_mesh::proof::{
    Answer, DOMAINS_PER_MEMBER_MAX, GRACE_MS, IDS_MAX, INTERVAL_MAX_MS, INTERVAL_MIN_MS, Last, Proofs,
    QUESTIONS_PER_HOUR_MAX, Security, Step, UNCONFIRMED_MAX_MS, ids, name, text,
};
use postroad_mesh::{NodeId, SecretKey};
use postroad_smtp::Domain;

const HOUR: u64 = 3_600_000;

fn id(number: u8) -> NodeId {
    SecretKey::from_seed(&[number; 32]).public().id()
}

fn domain(name: &str) -> Domain {
    name.parse().expect("a domain")
}

fn lab() -> Domain {
    domain("lab.example")
}

fn found(numbers: &[u8], security: Security) -> Answer {
    Answer::Found { ids: numbers.iter().map(|number| id(*number)).collect(), ttl_ms: 1_000, security }
}

/// A node that claims a domain, at 0.
fn claimed() -> Proofs {
    let mut proofs = Proofs::new(7);
    proofs.claim(&[(id(1), vec![lab()])].into(), 0);
    proofs
}

/// Lets the next question come, and answers it; returns when that was.
fn answer(proofs: &mut Proofs, from: u64, answer: Answer) -> u64 {
    let mut now = from;
    loop {
        match proofs.poll(now) {
            Step::Ask(asked) => {
                assert_eq!(asked, lab());
                proofs.answered(&asked, answer, now);
                return now;
            }
            Step::Wait(until) => now = until,
        }
    }
}

fn proven(proofs: &Proofs) -> BTreeSet<NodeId> {
    proofs.proven().into_iter().map(|(id, _)| id).collect()
}

#[test]
fn a_text_names_nodes() {
    assert_eq!(name(&lab()), "_smtp-mesh.lab.example");
    assert_eq!(ids(&text(&id(1))), [id(1)].into());
    let two = format!("V=postroad1;id={} ; note=x; id= {};", id(1), id(2).to_string().to_uppercase());
    assert_eq!(ids(&two), [id(1), id(2)].into());
    let many: String = (0..100).map(|number| format!("; id={}", id(number))).collect();
    assert_eq!(ids(&format!("v=postroad1{many}")).len(), IDS_MAX);
    for other in ["", "v=spf1 -all", "v=postroad2; id=x", "v=postroad1", "v=postroad1; id=abc"] {
        assert!(ids(other).is_empty(), "{other}");
    }
    assert!(ids(&format!("id={}; v=postroad1", id(1))).is_empty(), "the version stands first");
}

#[test]
fn an_answer_is_good_for_its_time_within_bounds() {
    let mut proofs = claimed();
    let first = answer(&mut proofs, 0, found(&[1], Security::Unsigned));
    assert!(first < 10_000);
    assert_eq!((proven(&proofs), proofs.last(&lab())), ([id(1)].into(), Last::Found));
    let long = Answer::Found { ids: [id(1)].into(), ttl_ms: u64::MAX / 2, security: Security::Unsigned };
    let second = answer(&mut proofs, first, long);
    assert!((INTERVAL_MIN_MS..INTERVAL_MIN_MS + HOUR).contains(&(second - first)), "{}", second - first);
    let third = answer(&mut proofs, second, Answer::Unclear);
    assert!((INTERVAL_MAX_MS..INTERVAL_MAX_MS + HOUR).contains(&(third - second)), "{}", third - second);
}

#[test]
fn a_claim_that_is_not_proven_is_looked_at_ever_more_rarely() {
    let mut proofs = claimed();
    let mut at = answer(&mut proofs, 0, Answer::Denied { security: Security::Unsigned });
    let mut pauses = Vec::new();
    for _ in 0..7 {
        // It names somebody else.
        let next = answer(&mut proofs, at, Answer::Denied { security: Security::Unsigned });
        pauses.push((next - at) / HOUR);
        at = next;
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 24, 24]);
    proofs.hasten(at);
    assert_eq!(answer(&mut proofs, at, found(&[2], Security::Unsigned)), at, "somebody said that it is mended");
    assert_eq!(proven(&proofs), [id(2)].into(), "and the directory finds that nobody of this id claims it");
}

#[test]
fn a_denial_ends_a_proof_after_a_grace() {
    let denied = || Answer::Denied { security: Security::Unsigned };
    for gone in [denied(), found(&[2], Security::Unsigned)] {
        let mut proofs = claimed();
        let at = answer(&mut proofs, 0, found(&[1], Security::Unsigned));
        let first = answer(&mut proofs, at, gone.clone());
        assert!(proven(&proofs).contains(&id(1)), "it may be a mistake");
        let second = answer(&mut proofs, first, gone);
        assert!(second - first >= GRACE_MS && !proven(&proofs).contains(&id(1)));
    }
    let mut proofs = claimed();
    let at = answer(&mut proofs, 0, found(&[1], Security::Unsigned));
    let at = answer(&mut proofs, at, denied());
    let at = answer(&mut proofs, at, found(&[1], Security::Unsigned));
    answer(&mut proofs, at, denied());
    assert_eq!(proven(&proofs), [id(1)].into(), "it was mended in between");
}

#[test]
fn a_name_server_that_does_not_answer_ends_nothing_for_long() {
    let mut proofs = claimed();
    let confirmed = answer(&mut proofs, 0, found(&[1], Security::Unsigned));
    let mut at = confirmed;
    while at + 2 * HOUR < confirmed + UNCONFIRMED_MAX_MS {
        at = answer(&mut proofs, at, Answer::Unclear);
        assert_eq!((proven(&proofs), proofs.last(&lab())), ([id(1)].into(), Last::Unclear));
    }
    proofs.poll(confirmed + UNCONFIRMED_MAX_MS);
    assert!(proven(&proofs).is_empty());
}

#[test]
fn of_a_signed_domain_only_checked_answers_count() {
    let mut proofs = claimed();
    let at = answer(&mut proofs, 0, found(&[1], Security::Unchecked));
    assert_eq!((proven(&proofs), proofs.last(&lab())), (BTreeSet::new(), Last::Unchecked));
    let at = answer(&mut proofs, at, found(&[1], Security::Authentic));
    // Somebody between takes the signatures away, and says something else.
    let at = answer(&mut proofs, at, found(&[2], Security::Unsigned));
    let at = answer(&mut proofs, at, Answer::Denied { security: Security::Unsigned });
    assert_eq!((proven(&proofs), proofs.last(&lab())), ([id(1)].into(), Last::Unchecked));
    let octets = proofs.to_octets();
    let mut again = Proofs::from_octets(&octets, 1).expect("as it was written");
    again.claim(&[(id(1), vec![lab()])].into(), at);
    let at = answer(&mut again, at, found(&[2], Security::Unsigned));
    assert_eq!(proven(&again), [id(1)].into());
    let at = answer(&mut again, at, Answer::Denied { security: Security::Authentic });
    answer(&mut again, at, Answer::Denied { security: Security::Authentic });
    assert!(proven(&again).is_empty());
}

#[test]
fn whatever_is_claimed_questions_have_a_limit() {
    let mut proofs = Proofs::new(7);
    let of = |member: u8| (0..64).map(|n| domain(&format!("d{n}.m{member}.example"))).collect::<Vec<_>>();
    let claims: BTreeMap<NodeId, Vec<Domain>> = (0..100).map(|member| (id(member), of(member))).collect();
    proofs.claim(&claims, 0);
    let (mut now, mut asked, mut seen) = (0, 0, BTreeSet::new());
    while now < HOUR {
        match proofs.poll(now) {
            Step::Ask(domain) => {
                proofs.answered(&domain, Answer::Unclear, now);
                seen.insert(domain);
                asked += 1;
            }
            Step::Wait(until) => {
                now = until;
                // As soon as all have had their first turn, somebody keeps saying that all is mended.
                if seen.len() as u64 > QUESTIONS_PER_HOUR_MAX {
                    proofs.hasten(now);
                }
            }
        }
    }
    // Half of them came at once.
    assert!(asked <= QUESTIONS_PER_HOUR_MAX * 3 / 2 + 1, "{asked}");
    assert!(seen.len() as u64 > QUESTIONS_PER_HOUR_MAX);
    let mut one = Proofs::new(1);
    one.claim(&[(id(1), of(1))].into(), 0);
    let mut count = 0;
    while let Step::Ask(domain) = one.poll(5_000) {
        one.answered(&domain, Answer::Unclear, 5_000);
        count += 1;
    }
    assert_eq!(count, DOMAINS_PER_MEMBER_MAX);
}

#[test]
fn what_is_proven_reads_back_and_what_is_claimed_no_more_is_forgotten() {
    let mut proofs = claimed();
    let at = answer(&mut proofs, 0, found(&[1, 2], Security::Unsigned));
    let octets = proofs.to_octets();
    let mut again = Proofs::from_octets(&octets, 1).expect("as it was written");
    assert_eq!((proven(&again), again.to_octets()), ([id(1), id(2)].into(), octets.clone()));
    assert!(matches!(again.poll(u64::MAX / 2), Step::Wait(_)), "nobody claims it");
    for cut in 0..octets.len() {
        assert!(Proofs::from_octets(&octets[..cut], 1).is_err());
    }
    again.claim(&BTreeMap::new(), at);
    assert!(again.proven().is_empty());
}
