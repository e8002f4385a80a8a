//! Links with all members, which nobody lists: they cost what each of them would, and however many members there
//! are, mail goes to its home at once.

use std::collections::BTreeSet;

use postroad_mesh::path::{Health, Map, Need, Step};
use postroad_mesh::record::{Link, Reach, Said};
use postroad_mesh::{NodeId, NodeKey, SecretKey, StatementId};
use postroad_smtp::Domain;
use proptest::prelude::*;

fn key(number: usize) -> NodeKey {
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&number.to_be_bytes());
    SecretKey::from_seed(&seed).public()
}

fn id(number: usize) -> NodeId {
    key(number).id()
}

fn domain(name: &str) -> Domain {
    name.parse().expect("a domain")
}

/// A mesh in which node n serves `nN.example`.
#[derive(Debug)]
struct Mesh(Vec<Said>);

impl Mesh {
    fn new(count: usize) -> Mesh {
        let said = |n: usize| Said {
            serves: vec![domain(&format!("n{n}.example"))],
            link_cost: 10,
            ..Said::new(key(n), StatementId::from_octets([0; 32]), 1)
        };
        Mesh((0..count).map(said).collect())
    }

    /// Returns the map of the first.
    fn map(&self) -> Map {
        Map::new(id(0), self.0.iter().map(|said| (said.node.id(), said)))
    }
}

fn to(domain: &Domain) -> Need<'_> {
    Need { to: domain, from: None, octets: 1_000, visited: &[], spread: 7 }
}

/// However many they are: nobody needs a record of all the others to send mail to each at once.
#[test]
fn in_a_large_mesh_mail_goes_to_its_home_at_once() {
    const COUNT: usize = 500;
    let map = Mesh::new(COUNT).map();
    for n in [1, 77, 499] {
        let there = domain(&format!("n{n}.example"));
        let choices = map.choices(&to(&there), &Health::default());
        assert_eq!((choices[0].step, choices[0].cost), (Step::Pass(id(n)), 10));
        assert_eq!((choices.len(), choices[1].cost), (COUNT - 1, 20), "and by every other one, should that fail");
    }
    assert_eq!(map.tree().len(), COUNT - 1);
}

/// Members that list links, or have them with all, or both, in sites, some of which cannot be dialled.
fn mixed(count: usize) -> impl Strategy<Value = Mesh> {
    let listed = prop::collection::vec((0..count, 0..count, 0u16..50), 0..12);
    let about = prop::sample::select(vec![0u16, 0, 5, 10, 40])
        .prop_flat_map(move |cost| (Just(cost), 0usize..3, any::<bool>(), prop::collection::vec(0..count, 0..3)));
    (listed, prop::collection::vec(about, count)).prop_map(move |(listed, about)| {
        let mut mesh = Mesh::new(count);
        for (said, (cost, site, is_public, pickups)) in mesh.0.iter_mut().zip(about) {
            said.link_cost = cost;
            said.site = ["", "hq", "lab"][site].into();
            said.reach = if is_public { Reach::Public } else { Reach::DialsOut };
            said.pickups = pickups.into_iter().map(id).collect();
        }
        for (from, to, cost) in listed {
            mesh.0[from].links.push(Link { to: id(to), cost });
        }
        mesh
    })
}

/// Returns what a link costs, as the records say it.
fn link_cost(mesh: &Mesh, from: usize, to: usize) -> Option<u32> {
    let stated = |from: usize, to: usize| {
        let (one, other) = (&mesh.0[from], &mesh.0[to]);
        let listed = one.links.iter().find(|link| link.to == id(to)).map(|link| u32::from(link.cost).max(1));
        let can_meet = one.reach == Reach::Public || other.reach == Reach::Public;
        let is_near = !one.site.is_empty() && one.site == other.site;
        let with_all = (one.link_cost > 0 && can_meet).then_some(if is_near { 1 } else { u32::from(one.link_cost) });
        listed.or(with_all)
    };
    let can_be_dialled = mesh.0[to].reach == Reach::Public || mesh.0[to].pickups.contains(&id(from));
    stated(to, from)?;
    stated(from, to).filter(|_| from != to && can_be_dialled)
}

/// Returns what each step costs on the way to a node around closed ones, found by looking at every link again and again.
fn costs(mesh: &Mesh, from: usize, end: usize, closed: &[usize]) -> BTreeSet<(u32, Step)> {
    let count = mesh.0.len();
    let mut best: Vec<Option<u32>> = (0..count).map(|n| (n == end).then_some(0)).collect();
    for _ in 0..count {
        for (one, other) in (0..count).flat_map(|one| (0..count).map(move |other| (one, other))) {
            let is_open = one != from && !closed.contains(&one);
            let by = link_cost(mesh, one, other).filter(|_| is_open).and_then(|link| Some(link + best[other]?));
            best[one] = [best[one], by].into_iter().flatten().min();
        }
    }
    let way = |next: usize| Some((link_cost(mesh, from, next)? + best[next]?, Step::Pass(id(next))));
    (0..count).filter(|next| !closed.contains(next)).filter_map(way).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    /// Links that nobody lists are gone along without being written out: they cost what they would cost then.
    #[test]
    fn links_with_all_cost_what_each_of_them_does(mesh in mixed(9), closed in prop::collection::vec(1usize..8, 0..3)) {
        let visited: Vec<NodeId> = closed.iter().map(|n| id(*n)).collect();
        let map = mesh.map();
        let there = domain("n8.example");
        let choices = map.choices(&Need { visited: &visited, ..to(&there) }, &Health::default());
        let found: BTreeSet<(u32, Step)> = choices.iter().map(|choice| (choice.cost, choice.step)).collect();
        prop_assert_eq!(found, costs(&mesh, 0, 8, &closed));
        for (one, other) in (0..9).flat_map(|one| (0..9).map(move |other| (one, other))) {
            prop_assert_eq!(map.has_link(&id(one), &id(other)), link_cost(&mesh, one, other).is_some());
        }
    }
}
