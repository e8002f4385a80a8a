//! The drawings as they are: a change of them is a change of these.

use super::*;
use crate::admin::mesh::LinkView;

fn place(label: &str, path: &[&str], cost: u32) -> PlaceView {
    let id = |label: &str| format!("{label}-id");
    PlaceView {
        node: id(label),
        label: label.into(),
        reach: "public".into(),
        serves: vec![format!("{label}.example")],
        path: path.iter().map(|label| id(label)).collect(),
        cost: (!path.is_empty()).then_some(cost),
        ..PlaceView::default()
    }
}

fn link(a: &str, b: &str, costs: [u32; 2], state: &str, is_used: bool) -> LinkView {
    let [cost, cost_back] = costs;
    LinkView { a: format!("{a}-id"), b: format!("{b}-id"), cost, cost_back, state: state.into(), is_used }
}

fn map() -> MapView {
    let everywhere = EgressView { cost: 10, ..EgressView::default() };
    MapView {
        label: "ours".into(),
        node: Some("hq-id".into()),
        nodes: vec![
            PlaceView { site: "cellar".into(), egress: vec![everywhere], ..place("hq", &[], 0) },
            PlaceView { site: "cellar".into(), holds_days: 5, ..place("lab", &["lab"], 1) },
            PlaceView {
                reach: "dials-out".into(),
                pickups: vec!["lab-id".into()],
                ..place("attic", &["lab", "attic"], 11)
            },
            PlaceView { claims: vec!["bank.example".into()], ..place("branch", &["branch"], 40) },
            PlaceView { reach: "unknown".into(), serves: Vec::new(), ..place("<roof>", &[], 0) },
        ],
        links: vec![
            link("hq", "lab", [1, 1], "open", true),
            link("lab", "attic", [10, 20], "stated", true),
            link("branch", "hq", [10, 40], "open", true),
            link("branch", "lab", [10, 10], "stated", false),
        ],
    }
}

fn bare(lines: &[String]) -> String {
    let text = lines.iter().map(|line| anstream::adapter::strip_str(line).to_string()).collect::<Vec<_>>().join("\n");
    text + "\n"
}

#[test]
fn a_drawing_for_a_terminal() {
    let want = "\
ours as hq sees it: 5 members, 4 links

hq  this host, in cellar, serves hq.example, sends out to all at 10
├══ 1 ══ lab  in cellar, serves lab.example, holds mail for others up to 5 d
│   └── 10 ── attic  only dials out, serves attic.example, is held for by lab, 11 in all
└══ 40 ══ branch  serves branch.example  claims bank.example in vain
no way leads to <roof>  has not said anything yet

cost    <roof>  attic  branch     hq    lab
<roof>       ·      ·       ·      ·      ·
attic        ·      ·       ·      ·     20
branch       ·      ·       ·   ═ 10     10
hq           ·      ·    ═ 40      ·    ═ 1
lab          ·     10      10    ═ 1      ·

═ open now, to or from this host; · no link that both ends state
";
    assert_eq!(bare(&drawing(&map())), want);
}

#[test]
fn lines_for_a_pipe() {
    let want = "\
node\t<roof>\t<roof>-id\t-\tunknown\t-\t-\t-\t-\t-
node\tattic\tattic-id\t-\tdials-out\t11\tlab>attic\tattic.example\t-\t-
node\tbranch\tbranch-id\t-\tpublic\t40\tbranch\tbranch.example\t-\tbank.example
node\thq\thq-id\tcellar\tpublic\t0\t-\thq.example\tto all at 10\t-
node\tlab\tlab-id\tcellar\tpublic\t1\tlab\tlab.example\t-\t-
link\tattic\tlab\t20\t10\tstated\tused
link\tbranch\thq\t10\t40\topen\tused
link\tbranch\tlab\t10\t10\tstated\t-
link\thq\tlab\t1\t1\topen\tused
";
    assert_eq!(bare(&plain(&map())), want);
}

#[test]
fn many_members_are_drawn_without_their_links() {
    let mut view = map();
    view.nodes.extend((0..20).map(|n| place(&format!("n{n:02}"), &[], 0)));
    let drawn = bare(&drawing(&view));
    assert!(drawn.ends_with("\n1 links more are on no cheapest way: see --json\n"), "{drawn}");
}

#[test]
fn the_order_in_which_members_are_told_does_not_matter() {
    let mut turned = map();
    turned.nodes.reverse();
    turned.links.reverse();
    assert_eq!(drawing(&turned), drawing(&map()));
    assert_eq!(plain(&turned), plain(&map()));
    assert_eq!(svg::drawing(&turned), svg::drawing(&map()));
}

#[test]
fn a_drawing_for_a_page() {
    let drawn = svg::drawing(&map());
    assert_eq!(drawn, include_str!("map_golden.svg"), "{drawn}");
    assert!(!drawn.contains("<script") && !drawn.contains("href") && drawn.contains("&lt;roof&gt;"));
    assert!(drawn.contains("prefers-color-scheme:dark"));
    let alone = MapView { nodes: vec![place("hq", &[], 0)], links: Vec::new(), ..map() };
    assert!(svg::drawing(&alone).contains(">hq<"));
}
