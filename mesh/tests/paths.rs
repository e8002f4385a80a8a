//! Which way messages go: stories of small meshes, and random ones in which maps are old and wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use postroad_mesh::path::{Choice, Goal, Health, Map, Need, Step, THROUGH_MAX, Through, VISITED_MAX};
use postroad_mesh::record::{Egress, Link, Reach, Said};
use postroad_mesh::{NodeId, NodeKey, SecretKey, StatementId};
use postroad_smtp::Domain;
use proptest::prelude::*;

static KEYS: LazyLock<Vec<NodeKey>> =
    LazyLock::new(|| (0..20).map(|n| SecretKey::from_seed(&[n; 32]).public()).collect());

fn id(number: usize) -> NodeId {
    KEYS[number].id()
}

fn domain(name: &str) -> Domain {
    name.parse().expect("a domain")
}

/// A mesh in which node n serves `nN.example`; links are (from, to, cost), stated by both ends.
struct Mesh(Vec<Said>);

impl Mesh {
    fn new(count: usize, links: &[(usize, usize, u16)]) -> Mesh {
        let said = |n: usize| Said {
            serves: vec![domain(&format!("n{n}.example"))],
            links: links
                .iter()
                .filter_map(|(a, b, cost)| match (*a == n, *b == n) {
                    (true, false) => Some(Link { to: id(*b), cost: *cost }),
                    (false, true) => Some(Link { to: id(*a), cost: *cost }),
                    _ => None,
                })
                .collect(),
            ..Said::new(KEYS[n], StatementId::from_octets([0; 32]), 1)
        };
        Mesh((0..count).map(said).collect())
    }

    fn map(&self, me: usize) -> Map {
        Map::new(id(me), self.0.iter().map(|said| (said.node.id(), said)))
    }
}

fn to(domain: &Domain) -> Need<'_> {
    Need { to: domain, from: None, octets: 1_000, visited: &[], spread: 7 }
}

fn steps(choices: &[Choice]) -> Vec<Step> {
    choices.iter().map(|choice| choice.step).collect()
}

#[test]
fn mail_goes_the_cheapest_way_and_around_what_is_down() {
    let mesh = Mesh::new(4, &[(0, 1, 10), (1, 3, 10), (0, 2, 10), (2, 3, 15), (0, 3, 50)]);
    let there = domain("n3.example");
    let mut health = Health::default();
    let choices = mesh.map(0).choices(&to(&there), &health);
    assert_eq!(steps(&choices), [Step::Pass(id(1)), Step::Pass(id(2)), Step::Pass(id(3))]);
    assert_eq!(choices[0], Choice { step: Step::Pass(id(1)), goal: Goal::Home(id(3)), cost: 20 });
    health.down.insert(id(1));
    assert_eq!(steps(&mesh.map(0).choices(&to(&there), &health)), [Step::Pass(id(2)), Step::Pass(id(3))]);
    health.penalties.insert(id(2), 100);
    assert_eq!(steps(&mesh.map(0).choices(&to(&there), &health)), [Step::Pass(id(3)), Step::Pass(id(2))]);
    assert_eq!(steps(&mesh.map(3).choices(&to(&there), &health)), [Step::Stay]);
}

#[test]
fn a_domain_below_a_served_one_belongs_to_it() {
    let mesh = Mesh::new(2, &[(0, 1, 10)]);
    assert_eq!(mesh.map(0).homes(&domain("lists.n1.example")), [id(1)]);
    assert!(mesh.map(0).homes(&domain("example")).is_empty());
}

#[test]
fn whoever_lists_no_links_has_one_with_all_that_can_be_dialled() {
    let mut mesh = Mesh::new(4, &[]);
    for (n, site) in ["hq", "hq", "lab", "lab"].into_iter().enumerate() {
        mesh.0[n].site = site.into();
        mesh.0[n].link_cost = 10;
    }
    (mesh.0[2].reach, mesh.0[3].reach) = (Reach::DialsOut, Reach::DialsOut);
    (mesh.0[2].pickups, mesh.0[3].pickups) = (vec![id(0), id(1)], vec![id(0), id(1)]);
    let costs = |mesh: &Mesh, from: usize, to: &str| -> Vec<(Step, u32)> {
        let choices = mesh.map(from).choices(&self::to(&domain(to)), &Health::default());
        choices.iter().map(|choice| (choice.step, choice.cost)).collect()
    };
    assert_eq!(costs(&mesh, 0, "n1.example")[0], (Step::Pass(id(1)), 1));
    assert_eq!(costs(&mesh, 0, "n2.example")[0], (Step::Pass(id(2)), 10));
    // Neither of the two can dial the other: their mail goes by one that both can dial.
    assert_eq!(costs(&mesh, 2, "n3.example").iter().map(|(_, cost)| *cost).collect::<Vec<_>>(), [20, 20]);
    // A cost that is stated for one counts for that one.
    mesh.0[0].links.push(Link { to: id(2), cost: 50 });
    assert_eq!(costs(&mesh, 0, "n2.example")[0], (Step::Pass(id(1)), 11));
    // Whoever states none has none.
    mesh.0[1].link_cost = 0;
    assert_eq!(costs(&mesh, 0, "n1.example"), []);
}

#[test]
fn a_link_that_one_end_denies_is_none() {
    let mut mesh = Mesh::new(2, &[(0, 1, 10)]);
    mesh.0[1].links.clear();
    assert!(mesh.map(0).choices(&to(&domain("n1.example")), &Health::default()).is_empty());
}

#[test]
fn mail_for_the_world_leaves_where_its_sender_may_speak() {
    let mut mesh = Mesh::new(3, &[(0, 1, 10), (0, 2, 10)]);
    mesh.0[1].egress = vec![Egress { cost: 5, ..Egress::default() }];
    mesh.0[2].egress =
        vec![Egress { cost: 50, from: vec![domain("n0.example")], octets_max: 2_000, ..Egress::default() }];
    let (world, sender) = (domain("elsewhere.example"), domain("n0.example"));
    let need = Need { from: Some(&sender), ..to(&world) };
    let goals =
        |need: &Need<'_>| mesh.map(0).choices(need, &Health::default()).iter().map(|c| c.goal).collect::<Vec<_>>();
    assert_eq!(goals(&need), [Goal::Egress(id(2)), Goal::Egress(id(1))]);
    assert_eq!(goals(&Need { octets: 3_000, ..need }), [Goal::Egress(id(1))]);
    assert_eq!(goals(&to(&world)), [Goal::Egress(id(1)), Goal::Egress(id(2))], "a notification has no sender");
    // An offer for some domains is none for the others.
    mesh.0[1].egress[0].to = vec![domain("partner.example")];
    let goals = |to_whom: &str| {
        let to_whom = domain(to_whom);
        mesh.map(0).choices(&to(&to_whom), &Health::default()).iter().map(|c| c.goal).collect::<Vec<_>>()
    };
    assert_eq!(goals("elsewhere.example"), [Goal::Egress(id(2))]);
    assert_eq!(goals("mx.partner.example"), [Goal::Egress(id(1)), Goal::Egress(id(2))]);
}

#[test]
fn equal_ways_out_share_the_load_and_copies_meet() {
    let mut mesh = Mesh::new(3, &[(0, 1, 100), (0, 2, 105)]);
    for node in [1, 2] {
        mesh.0[node].egress = vec![Egress::default()];
    }
    let world = domain("elsewhere.example");
    let first = |spread: u64| mesh.map(0).choices(&Need { spread, ..to(&world) }, &Health::default())[0].goal;
    let ways: BTreeMap<Goal, usize> = (0..1_000).fold(BTreeMap::new(), |mut ways, spread| {
        *ways.entry(first(spread)).or_default() += 1;
        ways
    });
    assert!(ways.values().all(|count| (400..600).contains(count)), "{ways:?}");
    assert_eq!(first(7), first(7));
}

#[test]
fn a_home_that_sleeps_has_its_mail_held() {
    let mut mesh = Mesh::new(3, &[(0, 1, 10), (1, 2, 10)]);
    mesh.0[2].pickups = vec![id(1)];
    let there = domain("n2.example");
    let choices = mesh.map(1).choices(&to(&there), &Health::default());
    assert_eq!(steps(&choices), [Step::Pass(id(2))], "who does not hold is no pick-up");
    mesh.0[1].holds_days = 14;
    let asleep = Health { down: [id(2)].into(), ..Health::default() };
    let choices = mesh.map(1).choices(&to(&there), &asleep);
    assert_eq!(choices[0].step, Step::Stay);
    assert_eq!(choices[0].goal, Goal::Pickup { at: id(1), home: id(2) });
}

#[test]
fn mail_for_a_node_that_dials_out_goes_by_those_that_it_dials() {
    // All can be dialled by all, but for the last, which dials two of them.
    let mut mesh = Mesh::new(5, &[]);
    mesh.0.iter_mut().for_each(|said| said.link_cost = 10);
    (mesh.0[4].reach, mesh.0[4].pickups) = (Reach::DialsOut, vec![id(1), id(2)]);
    let there = domain("n4.example");
    let ways = |from: usize, visited: &[NodeId]| -> Vec<(Step, u32)> {
        let choices = mesh.map(from).choices(&Need { visited, ..to(&there) }, &Health::default());
        choices.iter().map(|choice| (choice.step, choice.cost)).collect()
    };
    let (mut first, mut second) = (Step::Pass(id(1)), Step::Pass(id(2)));
    if second < first {
        (first, second) = (second, first);
    }
    assert_eq!(ways(0, &[]), [(first, 20), (second, 20), (Step::Pass(id(3)), 30)]);
    assert_eq!(ways(1, &[])[0], (Step::Pass(id(4)), 10));
    assert_eq!(ways(1, &[id(0), id(2), id(3)]), [(Step::Pass(id(4)), 10)]);
    assert_eq!(ways(3, &[id(1), id(2)]), [], "it does not dial this one");
    // What it sends itself goes to whomever it dials.
    let choices = mesh.map(4).choices(&to(&domain("n3.example")), &Health::default());
    assert_eq!((choices[0].step, choices[0].cost), (Step::Pass(id(3)), 10));
    let map = mesh.map(0);
    assert!(map.has_link(&id(1), &id(4)) && map.has_link(&id(4), &id(3)) && !map.has_link(&id(3), &id(4)));
}

#[test]
fn who_dials_out_may_stand_in_the_middle_of_a_way() {
    // 0 reaches 3, which leaves mail with 1; 2 takes it from there.
    let mut mesh = Mesh::new(4, &[(0, 3, 10), (3, 1, 10), (1, 2, 10)]);
    (mesh.0[3].reach, mesh.0[3].pickups) = (Reach::DialsOut, vec![id(0)]);
    let choices = mesh.map(0).choices(&to(&domain("n2.example")), &Health::default());
    assert_eq!((choices[0].step, choices[0].cost), (Step::Pass(id(3)), 30));
    assert_eq!(mesh.map(2).choices(&to(&domain("n0.example")), &Health::default()), [], "1 cannot dial 3");
}

#[test]
fn what_went_astray_goes_through_whom_it_visited() {
    // 0 - 1 - 2, with the home 4 behind 1 by way of 3: at 2 the only way leads back through 1.
    let mesh = Mesh::new(5, &[(0, 1, 10), (1, 2, 10), (1, 3, 10), (3, 4, 10)]);
    let (there, visited) = (domain("n4.example"), [id(0), id(1)]);
    let need = Need { visited: &visited, ..to(&there) };
    assert_eq!(mesh.map(2).choices(&need, &Health::default()), []);
    let way = Through { by: vec![id(1)], next: id(3), goal: Goal::Home(id(4)), cost: 30 };
    assert_eq!(mesh.map(2).through(&need), [way]);
    // It was with 3, too: through both, to the home itself.
    let way = Through { by: vec![id(1), id(3)], next: id(4), goal: Goal::Home(id(4)), cost: 30 };
    assert_eq!(mesh.map(2).through(&Need { visited: &[id(0), id(1), id(3)], ..to(&there) }), [way]);
    assert_eq!(mesh.map(2).through(&Need { visited: &[id(0), id(1), id(4)], ..to(&there) }), [], "it was at its home");
    let many = [id(1); VISITED_MAX];
    assert_eq!(mesh.map(2).through(&Need { visited: &many, ..to(&there) }), [], "it may visit no more");
}

#[test]
fn octets_pass_through_so_many_members_and_no_more() {
    let row: Vec<_> = (0..THROUGH_MAX + 2).map(|n| (n, n + 1, 1)).collect();
    let mesh = Mesh::new(THROUGH_MAX + 3, &row);
    let ways = |end: usize| {
        let visited: Vec<NodeId> = (1..end).map(id).collect();
        mesh.map(0).through(&Need { visited: &visited, ..to(&domain(&format!("n{end}.example"))) }).len()
    };
    assert_eq!((ways(2), ways(THROUGH_MAX + 1), ways(THROUGH_MAX + 2)), (1, 1, 0));
}

#[test]
fn a_member_that_dials_out_is_reached_through_whom_it_dials() {
    let mut mesh = Mesh::new(4, &[(0, 1, 10), (1, 2, 10), (1, 3, 10), (0, 3, 10)]);
    (mesh.0[3].reach, mesh.0[3].pickups) = (Reach::DialsOut, vec![id(1)]);
    let (there, visited) = (domain("n3.example"), [id(1)]);
    let need = Need { visited: &visited, ..to(&there) };
    assert_eq!(mesh.map(2).through(&need).iter().map(|way| way.next).collect::<Vec<_>>(), [id(3)]);
    mesh.0[3].pickups = vec![id(0)];
    let way = mesh.map(2).through(&need).remove(0);
    assert_eq!((way.by, way.next), (vec![id(1)], id(0)));
}

/// Sends a message from node to node as each one's own map says; what a node cannot pass on waits.
fn travel(maps: &[Map], from: usize, there: &Domain) -> (Vec<usize>, bool) {
    let number: BTreeMap<NodeId, usize> = (0..maps.len()).map(|n| (id(n), n)).collect();
    let (mut at, mut visited, mut went) = (from, Vec::new(), vec![from]);
    loop {
        let need = Need { visited: &visited, ..to(there) };
        match maps[at].choices(&need, &Health::default()).first().map(|choice| choice.step) {
            Some(Step::Stay) => return (went, true),
            Some(Step::Pass(next)) => {
                visited.push(id(at));
                at = number[&next];
                went.push(at);
            }
            None => return (went, false),
        }
    }
}

/// SplitMix64.
fn random(seed: &mut u64, below: usize) -> usize {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*seed ^ (*seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((mixed ^ (mixed >> 31)) % below as u64) as usize
}

/// Returns where a way along these links leads from a node.
fn reached(links: &[(usize, usize, u16)], from: usize) -> BTreeSet<usize> {
    let mut reached = BTreeSet::from([from]);
    for _ in 0..links.len() {
        let met = |(a, b, _): &&(usize, usize, u16)| reached.contains(a) || reached.contains(b);
        let more: Vec<usize> = links.iter().filter(met).flat_map(|(a, b, _)| [*a, *b]).collect();
        reached.extend(more);
    }
    reached
}

/// A mesh in which each node's map lacks links that there are and has others that are gone.
struct Stale {
    truth: Vec<Map>,
    maps: Vec<Map>,
    links: Vec<(usize, usize, u16)>,
}

/// What became of a message in such a mesh.
struct Trip {
    went: Vec<usize>,
    /// Whether it got there before the maps were true.
    at_once: bool,
    /// Of each passage through members that took no responsibility, how many these were.
    through: Vec<usize>,
}

impl Stale {
    const NODES: usize = 12;

    fn new(seed: u64) -> Stale {
        let mut chance = seed;
        let any = |chance: &mut u64, count: usize| -> Vec<(usize, usize, u16)> {
            let node = |chance: &mut u64| random(chance, Stale::NODES);
            let links = (0..count).map(|_| (node(chance), node(chance), 1 + random(chance, 50) as u16));
            links.filter(|(a, b, _)| a != b).collect()
        };
        let count = 8 + random(&mut chance, 24);
        let links = any(&mut chance, count);
        let truth = (0..Stale::NODES).map(|n| Mesh::new(Stale::NODES, &links).map(n)).collect();
        let mut stale = |n: usize| {
            let mut links: Vec<_> = links.iter().filter(|_| random(&mut chance, 5) > 0).copied().collect();
            links.extend(any(&mut chance, 4));
            Mesh::new(Stale::NODES, &links).map(n)
        };
        let maps = (0..Stale::NODES).map(&mut stale).collect();
        Stale { truth, maps, links }
    }

    /// Sends a message from the first node to the last. Where a link fails the next way is tried; what finds none
    /// waits until the maps are true, and what finds none even then goes through members that it has visited.
    fn send(&self, seed: u64) -> Trip {
        let there = domain("n11.example");
        let number = |node: &NodeId| (0..Stale::NODES).find(|n| id(*n) == *node).expect("it is a member");
        let mut trip = Trip { went: vec![0], at_once: true, through: Vec::new() };
        loop {
            let at = *trip.went.last().expect("it began somewhere");
            if at == Stale::NODES - 1 {
                return trip;
            }
            let visited: Vec<NodeId> = trip.went[..trip.went.len() - 1].iter().map(|n| id(*n)).collect();
            let need = Need { visited: &visited, ..to(&there) };
            let map = if trip.at_once { &self.maps[at] } else { &self.truth[at] };
            let choices = map.choices(&need, &Health::default());
            let passes = |choice: &Choice| match choice.step {
                Step::Pass(next) => self.truth[at].has_link(&id(at), &next).then_some(next),
                Step::Stay => None,
            };
            let next = match choices.iter().find_map(passes) {
                Some(next) => number(&next),
                None if trip.at_once => {
                    trip.at_once = false;
                    continue;
                }
                None => {
                    let Some(way) = map.through(&need).into_iter().next() else { return trip };
                    self.check(&way, at, &visited);
                    trip.through.push(way.by.len());
                    number(&way.next)
                }
            };
            assert!(!trip.went.contains(&next), "seed {seed}: {:?} and again {next}", trip.went);
            trip.went.push(next);
        }
    }

    /// A passage leads along links, through no more members than it may, and ends at one from which there is a
    /// way of the ordinary kind.
    fn check(&self, way: &Through, at: usize, visited: &[NodeId]) {
        let legs: Vec<NodeId> = [id(at)].into_iter().chain(way.by.iter().copied()).chain([way.next]).collect();
        assert!(legs.windows(2).all(|leg| self.truth[0].has_link(&leg[0], &leg[1])), "{way:?}");
        assert!(
            (1..=THROUGH_MAX).contains(&way.by.len()) && way.by.iter().any(|pipe| visited.contains(pipe)),
            "{way:?}"
        );
        let there = domain("n11.example");
        let next = self.truth.iter().zip(0..).find(|(_, n)| id(*n) == way.next).expect("a member").0;
        let visited: Vec<NodeId> = visited.iter().copied().chain([id(at)]).collect();
        assert!(!next.choices(&Need { visited: &visited, ..to(&there) }, &Health::default()).is_empty(), "{way:?}");
    }
}

/// However stale and contradictory the maps are: where there is a way the message arrives, and no node is visited
/// twice.
#[test]
#[allow(clippy::print_stdout, reason = "what was measured is for people to see")]
fn a_thousand_meshes_with_stale_maps_deliver_and_visit_nobody_twice() {
    let (mut possible, mut at_once, mut through) = (0, 0, Vec::new());
    for seed in 0..1_000 {
        let mesh = Stale::new(seed);
        let trip = mesh.send(seed);
        let is_there = trip.went.last() == Some(&(Stale::NODES - 1));
        let has_way = reached(&mesh.links, 0).contains(&(Stale::NODES - 1));
        assert_eq!(is_there, has_way, "seed {seed}: {:?}", trip.went);
        possible += usize::from(has_way);
        at_once += usize::from(is_there && trip.at_once);
        through.extend(trip.through);
    }
    println!("of 1000 meshes {possible} have a way, and all of these deliver: {at_once} at once");
    let longest = through.iter().max();
    println!("{} messages went through members they had visited, at most {longest:?} in a row", through.len());
    assert!(possible > 700 && !through.is_empty(), "{possible}, {through:?}");
}

fn links(count: usize) -> impl Strategy<Value = Vec<(usize, usize, u16)>> {
    prop::collection::vec((0..count, 0..count, 1u16..50), 0..24)
        .prop_map(|links| links.into_iter().filter(|(a, b, _)| a != b).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    /// With one map for all, a message arrives whenever there is a way of permitted length, and
    /// the way costs what the first node said.
    #[test]
    fn with_true_maps_mail_arrives(links in links(8)) {
        let mesh = Mesh::new(8, &links);
        let maps: Vec<Map> = (0..8).map(|n| mesh.map(n)).collect();
        let there = domain("n7.example");
        let reached = reached(&links, 7);
        for from in 0..8 {
            let (went, arrived) = travel(&maps, from, &there);
            prop_assert_eq!(arrived, reached.contains(&from), "{:?}", went);
        }
    }

    /// The ways that are drawn are those that mail goes: they cost the same, and lead along links.
    #[test]
    fn the_tree_of_cheapest_ways_is_what_mail_goes_by(links in links(8)) {
        let map = Mesh::new(8, &links).map(0);
        let tree = map.tree();
        let costs: BTreeMap<(NodeId, NodeId), u32> =
            map.links().into_iter().flat_map(|(a, b, [to, back])| [((a, b), to), ((b, a), back)]).collect();
        for n in 1..8 {
            let there = domain(&format!("n{n}.example"));
            let best = map.choices(&to(&there), &Health::default()).first().map(|choice| choice.cost);
            prop_assert_eq!(tree.get(&id(n)).map(|(cost, _)| *cost), best);
            if let Some((cost, before)) = tree.get(&id(n)) {
                let sooner = if *before == id(0) { 0 } else { tree[before].0 };
                prop_assert_eq!(sooner + costs[&(*before, id(n))], *cost);
            }
        }
    }

    /// Each node has a map of its own, which may be wrong in any way: still no node is visited twice.
    #[test]
    fn with_false_maps_no_node_is_visited_twice(views in prop::collection::vec(links(14), 14), from in 0usize..14) {
        let maps: Vec<Map> = views.iter().enumerate().map(|(n, links)| Mesh::new(14, links).map(n)).collect();
        let (went, _) = travel(&maps, from, &domain("n13.example"));
        let different: BTreeSet<usize> = went.iter().copied().collect();
        prop_assert_eq!(different.len(), went.len(), "{:?}", went);
        prop_assert!(went.len() <= VISITED_MAX + 1);
    }
}
