//! Who is a member, told as stories, and the same in whatever order the statements come.

use postroad_mesh::roster::{Gone, MergeError, Roster};
use postroad_mesh::statement::{Head, Policy, SEQUENCE_MAX, Statement, StatementError, StatementId, What};
use postroad_mesh::{Caps, NodeId, SecretKey};
use proptest::prelude::*;

/// A mesh with its keys: `a` founds it.
struct Mesh {
    roster: Roster,
    keys: Vec<SecretKey>,
}

const MEMBER: Caps = Caps::RELAY;
const A: usize = 0;
const B: usize = 1;
const C: usize = 2;
const D: usize = 3;
const ROGUE: usize = 4;

impl Mesh {
    fn founded(policy: Policy) -> Mesh {
        let keys: Vec<SecretKey> = (0..12).map(|n| SecretKey::from_seed(&[n; 32])).collect();
        let founding = Statement::found(&keys[A], policy, "lab", 1);
        Mesh { roster: Roster::new(founding).expect("it founds a mesh"), keys }
    }

    /// Founded by a, who admitted b, c, d and the rogue, all with the right to admit.
    fn of_five() -> Mesh {
        let mut mesh = Mesh::founded(Policy::DEFAULT);
        for node in [B, C, D, ROGUE] {
            mesh.admits(A, node, MEMBER.and(Caps::ADMIT));
        }
        mesh
    }

    fn id(&self, node: usize) -> NodeId {
        self.keys[node].public().id()
    }

    fn says(&mut self, by: usize, what: What) -> StatementId {
        let head = self.roster.next_head(&self.id(by), 2);
        self.says_at(by, head, what)
    }

    fn says_at(&mut self, by: usize, head: Head, what: What) -> StatementId {
        let statement = Statement::new(&self.keys[by], head, what);
        let id = statement.id();
        let merged = self.roster.merge([statement]);
        assert_eq!((merged.taken, merged.refused), (vec![id], vec![]));
        id
    }

    fn admission(&self, node: usize, caps: Caps) -> What {
        let serves = vec![format!("n{node}.example").parse().expect("a domain")];
        What::Admit { node: self.keys[node].public(), caps, serves, label: format!("node {node}").into() }
    }

    fn admits(&mut self, by: usize, node: usize, caps: Caps) -> StatementId {
        let what = self.admission(node, caps);
        self.says(by, what)
    }

    fn revokes(&mut self, by: usize, node: usize, upto: Option<StatementId>) {
        let what = What::Revoke { node: self.id(node), upto, reason: "it sends spam".into() };
        self.says(by, what);
    }

    fn rotates(&mut self, by: usize, to: usize) {
        let head = self.roster.next_head(&self.id(by), 2);
        let rotation = Statement::rotate(&self.keys[by], &self.keys[to], head);
        assert_eq!(self.roster.merge([rotation]).taken.len(), 1);
    }

    fn has(&self, node: usize) -> bool {
        self.roster.member(&self.id(node)).is_some()
    }
}

#[test]
fn a_member_admits_and_grants_no_more_than_it_has() {
    let mut mesh = Mesh::founded(Policy::DEFAULT);
    assert_eq!(mesh.roster.member(&mesh.id(A)).expect("the founder").caps, Caps::ALL);
    mesh.admits(A, B, MEMBER.and(Caps::ADMIT));
    mesh.admits(B, C, Caps::ALL);
    let c = mesh.roster.member(&mesh.id(C)).expect("admitted").clone();
    assert_eq!((c.caps, &*c.label), (MEMBER.and(Caps::ADMIT), "node 2"));
    assert_eq!(c.serves[&"n2.example".parse().expect("a domain")], [mesh.id(B)].into());
    assert_eq!(c.sponsors, [mesh.id(B)].into());

    mesh.admits(A, D, MEMBER);
    mesh.admits(D, 5, MEMBER);
    assert!(!mesh.has(5), "d has no right to admit");
    assert!(mesh.roster.gone().is_empty());
}

/// A member without the right to admit that admits itself once more, with a domain.
#[test]
fn who_may_not_admit_grants_no_domain_either() {
    let mut mesh = Mesh::founded(Policy::DEFAULT);
    mesh.admits(A, D, MEMBER);
    let before = mesh.roster.member(&mesh.id(D)).expect("admitted").clone();
    let serves = vec!["bank.example".parse().expect("a domain")];
    let what = What::Admit { node: mesh.keys[D].public(), caps: Caps::ALL, serves, label: "bank".into() };
    mesh.says(D, what);
    assert_eq!(mesh.roster.member(&mesh.id(D)), Some(&before));
}

#[test]
fn strangers_say_nothing() {
    let mut mesh = Mesh::of_five();
    let head = mesh.roster.next_head(&mesh.id(7), 2);
    let statement = Statement::new(&mesh.keys[7], head, mesh.admission(8, MEMBER));
    let id = statement.id();
    assert_eq!(mesh.roster.merge([statement.clone()]).refused, vec![(id, MergeError::Stranger)]);

    let other = Mesh::founded(Policy { admit_by: 2, ..Policy::DEFAULT });
    let head = other.roster.next_head(&other.id(A), 2);
    let foreign = Statement::new(&other.keys[A], head, other.admission(B, MEMBER));
    assert_eq!(mesh.roster.merge([foreign.clone()]).refused, vec![(foreign.id(), MergeError::OtherMesh)]);
    assert_eq!(Roster::new(statement).err(), Some(MergeError::FoundsNothing));
}

#[test]
fn one_member_revokes_nobody_and_two_do() {
    let mut mesh = Mesh::of_five();
    mesh.revokes(ROGUE, B, None);
    assert!(mesh.has(B));
    mesh.revokes(C, ROGUE, None);
    assert!(mesh.has(ROGUE));
    mesh.revokes(D, ROGUE, None);
    assert!(!mesh.has(ROGUE));
    let by = [mesh.id(C), mesh.id(D)].into();
    let gone = mesh.roster.gone()[&mesh.id(ROGUE)].clone();
    assert_eq!(gone, Gone::Revoked { by, reason: "it sends spam".into() });
    assert!(mesh.has(B), "what the rogue said of b counts as one voice still");
}

#[test]
fn a_rogue_has_one_voice_however_many_it_lets_in() {
    let mut mesh = Mesh::of_five();
    for guest in 5..10 {
        mesh.admits(ROGUE, guest, MEMBER);
        mesh.revokes(guest, B, None);
    }
    mesh.revokes(ROGUE, B, None);
    assert!(mesh.has(B));
    mesh.revokes(C, B, None);
    assert!(!mesh.has(B), "with c it is two");
}

#[test]
fn whom_a_rogue_let_in_before_stays_and_later_ones_do_not() {
    let mut mesh = Mesh::of_five();
    let first = mesh.admits(ROGUE, 5, MEMBER);
    mesh.revokes(C, ROGUE, Some(first));
    mesh.admits(ROGUE, 6, MEMBER);
    mesh.revokes(D, ROGUE, Some(first));
    assert!(mesh.has(5));
    assert!(!mesh.has(6));
    assert_eq!(mesh.roster.gone()[&mesh.id(6)], Gone::Unsponsored);

    // Dated back into its chain, it is void as well.
    let backdated = Head { mesh: Some(mesh.roster.mesh()), sequence: 0, previous: None, at: 0 };
    let what = mesh.admission(7, MEMBER);
    mesh.says_at(ROGUE, backdated, what);
    assert!(!mesh.has(7));
    assert_eq!(mesh.roster.double_tongued(), [mesh.id(ROGUE)].into());
}

#[test]
fn a_third_tongue_is_not_listened_to_unless_it_is_vouched_for() {
    let mut mesh = Mesh::of_five();
    let head = mesh.roster.next_head(&mesh.id(ROGUE), 2);
    for guest in [5, 6] {
        let what = mesh.admission(guest, MEMBER);
        mesh.says_at(ROGUE, head, what);
    }
    let third = Statement::new(&mesh.keys[ROGUE], head, mesh.admission(7, MEMBER));
    assert_eq!(mesh.roster.merge([third.clone()]).refused, vec![(third.id(), MergeError::Surplus)]);
    mesh.revokes(C, ROGUE, Some(third.id()));
    mesh.revokes(D, ROGUE, Some(third.id()));
    assert_eq!(mesh.roster.merge([third.clone()]).taken, vec![third.id()]);
    assert!(mesh.has(7) && !mesh.has(5) && !mesh.has(6));
}

#[test]
fn a_node_leaves_and_goes_on_under_another_key() {
    let mut mesh = Mesh::of_five();
    let admitted = mesh.admits(B, 5, MEMBER);
    mesh.rotates(B, 6);
    assert!(mesh.has(B) && mesh.has(6), "both are valid until the old one retires");
    let goes_on =
        |mesh: &Mesh| (mesh.roster.successor(&mesh.id(B)), mesh.roster.earlier(&mesh.id(6)).collect::<Vec<_>>());
    assert_eq!(goes_on(&mesh), (Some(mesh.id(6)), vec![mesh.id(B)]));
    mesh.says(B, What::Retire);
    assert!(!mesh.has(B) && mesh.has(6));
    assert_eq!(goes_on(&mesh), (Some(mesh.id(6)), vec![mesh.id(B)]), "mail on its way may name the old one still");
    let heir = mesh.roster.member(&mesh.id(6)).expect("it goes on");
    assert_eq!(heir.caps, MEMBER.and(Caps::ADMIT));
    assert!(heir.serves.contains_key(&"n1.example".parse().expect("a domain")), "with what was granted to it");
    assert_eq!(&*heir.label, "node 1");
    assert!(mesh.has(5), "{admitted} stands");
    assert_eq!(mesh.roster.gone()[&mesh.id(B)], Gone::Retired);
}

/// It changes its key, has the new one granted something by another member, and speaks as both.
#[test]
fn a_key_that_has_said_all_that_it_may_is_given_up_and_fails_at_nothing() {
    let mut mesh = Mesh::of_five();
    let head = mesh.roster.next_head(&mesh.id(A), 2);
    let what = mesh.admission(5, MEMBER);
    mesh.says_at(A, Head { sequence: SEQUENCE_MAX - 2, ..head }, what);
    let next = mesh.roster.next_head(&mesh.id(A), 3);
    assert_eq!(Statement::try_new(&mesh.keys[A], next, mesh.admission(6, MEMBER)), Err(StatementError::Spent));
    let rotation = Statement::rotate(&mesh.keys[A], &mesh.keys[7], next);
    assert_eq!(mesh.roster.merge([rotation]).refused, vec![]);
    mesh.says(A, What::Retire);
    let is_member = |node| mesh.roster.member(&mesh.id(node)).is_some();
    assert!(is_member(7) && !is_member(A));
}

#[test]
fn what_is_longer_than_a_statement_may_be_is_not_stated() {
    let mesh = Mesh::of_five();
    let name = |n: usize| format!("{n}.{}.example", ["x"; 120].join(".")).parse().expect("a domain");
    let What::Admit { node, caps, label, .. } = mesh.admission(5, MEMBER) else { panic!("an admission") };
    let what = What::Admit { node, caps, label, serves: (0..32).map(name).collect() };
    let head = mesh.roster.next_head(&mesh.id(A), 2);
    assert_eq!(Statement::try_new(&mesh.keys[A], head, what), Err(StatementError::TooLong));
}

#[test]
fn a_node_with_two_keys_has_one_voice() {
    let mut mesh = Mesh::of_five();
    mesh.rotates(ROGUE, 6);
    mesh.admits(C, 6, MEMBER);
    mesh.revokes(ROGUE, B, None);
    mesh.revokes(6, B, None);
    assert!(mesh.has(B), "two keys of one node");
    mesh.revokes(D, B, None);
    assert!(!mesh.has(B));
    // The founder is one as well.
    let mut mesh = Mesh::of_five();
    mesh.rotates(A, 6);
    mesh.admits(C, 6, MEMBER);
    mesh.revokes(A, B, None);
    mesh.revokes(6, B, None);
    assert!(mesh.has(B));
}

/// What was stolen is revoked, and what the thief said since is void: he goes on under no other key.
#[test]
fn who_is_revoked_does_not_go_on_under_another_key() {
    let mut mesh = Mesh::of_five();
    let last = mesh.roster.next_head(&mesh.id(ROGUE), 2).previous;
    mesh.revokes(C, ROGUE, last);
    mesh.rotates(ROGUE, 6);
    mesh.revokes(D, ROGUE, last);
    assert!(!mesh.has(ROGUE) && !mesh.has(6));
    assert_eq!(mesh.roster.successor(&mesh.id(ROGUE)), None);
}

#[test]
fn nobody_rotates_to_a_key_that_does_not_consent() {
    let mesh = Mesh::of_five();
    let head = mesh.roster.next_head(&mesh.id(B), 2);
    let mut octets = Statement::rotate(&mesh.keys[B], &mesh.keys[6], head).octets().to_vec();
    let stolen = mesh.keys[7].public();
    let at = octets.windows(32).position(|window| window == mesh.keys[6].public().octets()).expect("it is named");
    octets[at..at + 32].copy_from_slice(stolen.octets());
    let signature = mesh.keys[B].sign(postroad_mesh::node::Purpose::Statement, &octets);
    assert!(Statement::read(&octets, signature).is_err());
}

#[test]
fn a_policy_of_two_wants_two_sponsors() {
    let mut mesh = Mesh::founded(Policy { admit_by: 2, revoke_by: 2 });
    mesh.admits(A, B, Caps::ALL);
    assert!(!mesh.has(B), "a mesh of one whose policy asks for two never grows");
    let mut mesh = Mesh::of_five();
    mesh.admits(B, 5, MEMBER);
    mesh.admits(C, 5, MEMBER);
    assert_eq!(mesh.roster.member(&mesh.id(5)).expect("admitted").sponsors.len(), 2);
}

/// Three found a mesh together, so that a policy of two voices has somebody to go by.
#[test]
fn founders_have_a_voice_each_and_what_lacks_voices_is_named() {
    let keys: Vec<SecretKey> = (0..12).map(|n| SecretKey::from_seed(&[n; 32])).collect();
    let others = vec![keys[B].public(), keys[C].public()];
    let policy = Policy { admit_by: 2, revoke_by: 3 };
    let founding = Statement::found_with(&keys[A], others.clone(), policy, "lab", 1);
    assert_eq!(Statement::from_octets(&founding.to_octets()).expect("sound"), founding);
    let mut mesh = Mesh { roster: Roster::new(founding).expect("it founds"), keys };
    assert!([A, B, C].iter().all(|node| mesh.roster.member(&mesh.id(*node)).expect("a founder").caps == Caps::ALL));
    mesh.admits(B, D, MEMBER);
    assert!(!mesh.has(D));
    let pending = mesh.roster.pending();
    assert_eq!((pending.len(), pending[0].node, pending[0].voices, pending[0].needed), (1, mesh.id(D), 1, 2));
    assert_eq!(pending[0].by, [mesh.id(B)].into());
    mesh.says(C, pending[0].what.clone());
    assert!(mesh.has(D) && mesh.roster.pending().is_empty());
    for by in [A, B] {
        mesh.revokes(by, C, None);
    }
    let pending = mesh.roster.pending();
    assert_eq!((pending.len(), pending[0].voices, pending[0].needed), (1, 2, 3));
    assert!(mesh.has(C), "a founder, too, is revoked by three");
    mesh.revokes(D, C, None);
    assert!(!mesh.has(C) && mesh.roster.pending().is_empty());
    let twice =
        std::panic::catch_unwind(|| Statement::found_with(&SecretKey::from_seed(&[1; 32]), others, policy, "lab", 1));
    assert!(twice.is_err(), "nobody founds it twice over");
}

/// What founded the first meshes reads as it did, and is still written so.
#[test]
fn a_founding_statement_of_version_1_is_what_it_was() {
    let founding = Statement::found(&SecretKey::from_seed(&[7; 32]), Policy::DEFAULT, "ours", 1_800_000_000_000);
    let sample = include_bytes!("samples/found-1");
    assert_eq!(founding.to_octets(), sample);
    let read = Statement::from_octets(sample).expect("sound");
    assert!(matches!(read.what(), What::Found { policy: Policy::DEFAULT, founders, .. } if founders.is_empty()));
}

/// What somebody might say, with numbers for nodes.
#[derive(Clone, Debug)]
enum Said {
    Admits(usize, usize, u32),
    Revokes(usize, usize, bool),
    Retires(usize),
    Rotates(usize, usize),
}

fn said() -> impl Strategy<Value = Said> {
    let node = || 0usize..12;
    prop_oneof![
        5 => (node(), node(), 0u32..32).prop_map(|(by, node, caps)| Said::Admits(by, node, caps | Caps::ADMIT.bits())),
        3 => (node(), node(), any::<bool>()).prop_map(|(by, node, upto)| Said::Revokes(by, node, upto)),
        1 => node().prop_map(Said::Retires),
        2 => (node(), 8usize..12).prop_map(|(by, to)| Said::Rotates(by, to)),
    ]
}

/// Lets everybody speak in turn; who is nobody's guest yet is not heard.
fn tell(story: &[Said], policy: Policy) -> Mesh {
    let mut mesh = Mesh::founded(policy);
    if policy != Policy::DEFAULT {
        let others = [B, C, D].map(|node| mesh.keys[node].public()).to_vec();
        let founding = Statement::found_with(&mesh.keys[A], others, policy, "lab", 1);
        mesh.roster = Roster::new(founding).expect("it founds");
    }
    for said in story {
        let by = match said {
            Said::Admits(by, ..) | Said::Revokes(by, ..) | Said::Retires(by) | Said::Rotates(by, _) => *by,
        };
        let head = mesh.roster.next_head(&mesh.id(by), 2);
        let statement = match said {
            Said::Rotates(_, to) => Statement::rotate(&mesh.keys[by], &mesh.keys[*to], head),
            Said::Retires(_) => Statement::new(&mesh.keys[by], head, What::Retire),
            Said::Admits(_, node, caps) => {
                Statement::new(&mesh.keys[by], head, mesh.admission(*node, Caps::from_bits(*caps)))
            }
            Said::Revokes(_, node, upto) => {
                let upto = upto.then(|| mesh.roster.next_head(&mesh.id(*node), 2).previous).flatten();
                let what = What::Revoke { node: mesh.id(*node), upto, reason: "".into() };
                Statement::new(&mesh.keys[by], head, what)
            }
        };
        mesh.roster.merge([statement]);
    }
    mesh
}

proptest! {
    #[test]
    fn the_order_of_statements_does_not_matter(
        story in prop::collection::vec(said(), 0..24),
        seed in any::<u64>(),
        cut in any::<prop::sample::Index>(),
        admit_by in 1u8..4,
    ) {
        let told = tell(&story, Policy { admit_by, ..Policy::DEFAULT }).roster;
        let mut statements: Vec<Statement> = told.statements().values().cloned().collect();
        let founding = statements.iter().position(|s| s.head().mesh.is_none()).expect("there is one");
        let mut other = Roster::new(statements.swap_remove(founding)).expect("it founds");
        // A shuffle by a generator small enough to write here.
        let mut state = seed | 1;
        for i in (1..statements.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            statements.swap(i, (state >> 33) as usize % (i + 1));
        }
        let all = statements.clone();
        let later = statements.split_off(if statements.is_empty() { 0 } else { cut.index(statements.len()) });
        other.merge(statements);
        other.merge(later);
        // What came before its signer was known is offered again, as peers do.
        other.merge(all);
        prop_assert_eq!(other.members(), told.members());
        prop_assert_eq!(other.gone(), told.gone());
        prop_assert_eq!(other.pending(), told.pending());
        for (id, earlier) in told.members().keys().map(|id| (id, told.earlier(id).collect::<Vec<_>>())) {
            prop_assert_eq!(other.earlier(id).collect::<Vec<_>>(), earlier);
        }
        prop_assert_eq!(other.statements().len(), told.statements().len());
    }

    #[test]
    fn statements_come_back_as_they_went(story in prop::collection::vec(said(), 0..12)) {
        for statement in tell(&story, Policy::DEFAULT).roster.statements().values() {
            prop_assert_eq!(&Statement::from_octets(&statement.to_octets()).expect("sound"), statement);
        }
    }

    #[test]
    fn an_altered_statement_is_refused(at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mesh = Mesh::of_five();
        let statement = mesh.roster.statements().values().last().expect("there are some");
        let mut octets = statement.to_octets();
        let at = at.index(octets.len());
        octets[at] ^= 1 << bit;
        prop_assert!(Statement::from_octets(&octets).is_err());
    }

    #[test]
    fn garbage_is_no_statement(octets in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Statement::from_octets(&octets).is_err());
    }
}
