//! `postroad mesh map`: the mesh as mail from this host sees it. A drawing on a terminal, tab-separated
//! lines in a pipe, JSON for programs, SVG into a file. The same map gives the same drawing.

use std::collections::BTreeMap;
use std::path::Path;

use clap::builder::styling::{AnsiColor, Style};

use super::svg;
use crate::admin::mesh::{EgressView, MapView, PlaceView};
use crate::cli::queue::Look;
use crate::cli::{Context, Failure, exit};
use crate::telemetry::escaped;

const ME: Style = Style::new().bold();
const OPEN: Style = AnsiColor::Green.on_default();
const WARN: Style = AnsiColor::Yellow.on_default();
const DIM: Style = Style::new().dimmed();

/// Members whose links are shown each with each other.
const MATRIX_MEMBERS_MAX: usize = 12;
/// Characters of a label above a column.
const COLUMN_CHARS: usize = 8;
/// Domains of a member that are named.
const DOMAINS_NAMED: usize = 4;

/// Shows a map.
pub(super) fn show(view: &MapView, svg: Option<&Path>, context: &mut Context) -> Result<(), Failure> {
    if view.node.is_none() {
        let remedy = "make one: postroad mesh invite; or join one: postroad mesh join TOKEN";
        return Err(Failure::new(exit::FAILED, "this host is in no mesh").with_remedy(remedy));
    }
    if let Some(file) = svg {
        return draw_into(file, view, context);
    }
    match Look::of_output(context.is_json()) {
        Look::Json => context.json(view),
        Look::Plain => plain(view).into_iter().try_for_each(|line| context.line(line)),
        Look::Table => drawing(view).into_iter().try_for_each(|line| context.line(line)),
    }
}

fn draw_into(file: &Path, view: &MapView, context: &mut Context) -> Result<(), Failure> {
    let text = svg::drawing(view);
    if file == Path::new("-") {
        return Ok(context.out().write_all(text.as_bytes())?);
    }
    let failed = |error| {
        let remedy = "name a file in a directory that is there and may be written to, or - for standard output";
        Failure::new(exit::FAILED, format!("{}: {error}", file.display())).with_remedy(remedy)
    };
    std::fs::write(file, text).map_err(failed)?;
    let written = serde_json::json!({ "written": file });
    context.say(&written, format_args!("written: {}", file.display()))
}

/// A map with its members by id.
pub(super) struct Atlas<'a> {
    pub view: &'a MapView,
    /// In the order of their labels.
    pub places: Vec<&'a PlaceView>,
    by_node: BTreeMap<&'a str, &'a PlaceView>,
}

impl<'a> Atlas<'a> {
    pub fn new(view: &'a MapView) -> Atlas<'a> {
        let mut places: Vec<&PlaceView> = view.nodes.iter().collect();
        places.sort_by_key(|place| (&place.label, &place.node));
        Atlas { view, places, by_node: view.nodes.iter().map(|place| (place.node.as_str(), place)).collect() }
    }

    pub fn is_me(&self, place: &PlaceView) -> bool {
        self.view.node.as_ref() == Some(&place.node)
    }

    /// Returns what a member is called, for people.
    pub fn label(&self, node: &str) -> String {
        self.by_node.get(node).map_or_else(|| super::short(node), |place| escaped(&place.label))
    }

    /// Returns what a link costs from one member to the other, and whether it is open.
    fn link(&self, from: &str, to: &str) -> Option<(u32, bool)> {
        let ends = |a: &str, b: &str| (a == from && b == to) || (b == from && a == to);
        let link = self.view.links.iter().find(|link| ends(&link.a, &link.b))?;
        Some((if link.a == from { link.cost } else { link.cost_back }, link.state == "open"))
    }

    /// Returns the member before one on the cheapest way there.
    fn before(&self, place: &'a PlaceView) -> Option<&'a str> {
        match place.path.as_slice() {
            [.., before, _] => Some(before),
            [_] => self.view.node.as_deref(),
            [] => None,
        }
    }
}

fn drawing(view: &MapView) -> Vec<String> {
    let atlas = Atlas::new(view);
    let me = view.node.as_deref().unwrap_or_default();
    let count = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let mut lines = vec![
        format!(
            "{} as {} sees it: {}, {}",
            escaped(&view.label),
            atlas.label(me),
            count(view.nodes.len(), "member"),
            count(view.links.len(), "link")
        ),
        String::new(),
    ];
    lines.extend(atlas.places.iter().find(|place| atlas.is_me(place)).map(|place| member(&atlas, place)));
    branches(&atlas, me, "", &mut lines);
    for place in atlas.places.iter().filter(|place| place.path.is_empty() && !atlas.is_me(place)) {
        lines.push(format!("{WARN}no way leads to{WARN:#} {}", member(&atlas, place)));
    }
    lines.extend(matrix(&atlas));
    lines
}

/// Draws what lies behind a member on the cheapest ways.
fn branches(atlas: &Atlas<'_>, before: &str, indent: &str, lines: &mut Vec<String>) {
    let mut behind: Vec<&&PlaceView> =
        atlas.places.iter().filter(|place| atlas.before(place) == Some(before)).collect();
    behind.sort_by_key(|place| place.cost);
    for (at, place) in behind.iter().enumerate() {
        let is_last = at + 1 == behind.len();
        let (cost, is_open) = atlas.link(before, &place.node).unwrap_or_default();
        let (style, line) = if is_open { (OPEN, "══") } else { (Style::new(), "──") };
        let corner = if is_last { '└' } else { '├' };
        lines.push(format!("{indent}{corner}{style}{line} {cost} {line}{style:#} {}", member(atlas, place)));
        let indent = format!("{indent}{}", if is_last { "    " } else { "│   " });
        branches(atlas, &place.node, &indent, lines);
    }
}

/// Says what a member is.
fn member(atlas: &Atlas<'_>, place: &PlaceView) -> String {
    let mut said = Vec::new();
    if atlas.is_me(place) {
        said.push("this host".to_owned());
    }
    if !place.site.is_empty() {
        said.push(format!("in {}", escaped(&place.site)));
    }
    match place.reach.as_str() {
        "dials-out" => said.push("only dials out".to_owned()),
        "windows" => said.push("is there now and then".to_owned()),
        "unknown" => said.push("has not said anything yet".to_owned()),
        _ => {}
    }
    said.extend(serves(place));
    said.extend(place.egress.iter().map(|offer| format!("sends out {}", egress(offer))));
    if place.holds_days > 0 {
        said.push(format!("holds mail for others up to {} d", place.holds_days));
    }
    if !place.pickups.is_empty() {
        let names: Vec<String> = place.pickups.iter().map(|node| atlas.label(node)).collect();
        said.push(format!("is held for by {}", names.join(" ")));
    }
    if place.path.len() > 1 {
        said.push(format!("{} in all", place.cost.unwrap_or_default()));
    }
    let style = if atlas.is_me(place) { ME } else { Style::new() };
    let mut text = format!("{style}{}{style:#}", escaped(&place.label));
    if !said.is_empty() {
        text += &format!("  {DIM}{}{DIM:#}", said.join(", "));
    }
    if !place.claims.is_empty() {
        text += &format!("  {WARN}claims {} in vain{WARN:#}", few(&place.claims));
    }
    text
}

/// Says what a member serves, if anything.
pub(super) fn serves(place: &PlaceView) -> Option<String> {
    (!place.serves.is_empty()).then(|| format!("serves {}", few(&place.serves)))
}

/// Says where an offer leads, and what it costs.
pub(super) fn egress(offer: &EgressView) -> String {
    let to = if offer.to.is_empty() { "to all".to_owned() } else { format!("to {}", few(&offer.to)) };
    let from = if offer.from.is_empty() { String::new() } else { format!(" for {}", few(&offer.from)) };
    format!("{to}{from} at {}", offer.cost)
}

fn few(domains: &[String]) -> String {
    let named: Vec<String> = domains.iter().take(DOMAINS_NAMED).map(|domain| escaped(domain)).collect();
    let others = domains.len() - named.len();
    if others == 0 { named.join(" ") } else { format!("{} +{others}", named.join(" ")) }
}

/// Shows what each link costs, from the member of the line to that of the column; of few members.
fn matrix(atlas: &Atlas<'_>) -> Vec<String> {
    let places = &atlas.places;
    if places.len() < 3 {
        return Vec::new();
    }
    if places.len() > MATRIX_MEMBERS_MAX {
        let others = atlas.view.links.iter().filter(|link| !link.is_used).count();
        return vec![String::new(), format!("{DIM}{others} links more are on no cheapest way: see --json{DIM:#}")];
    }
    let name = |place: &PlaceView| escaped(&place.label).chars().take(COLUMN_CHARS).collect::<String>();
    let widths: Vec<usize> = places.iter().map(|place| name(place).chars().count().max(5)).collect();
    let left = widths.iter().copied().max().unwrap_or_default();
    let head: String = places.iter().zip(&widths).map(|(place, width)| format!("  {:>width$}", name(place))).collect();
    let mut lines = vec![String::new(), format!("{DIM}{:left$}{head}{DIM:#}", "cost")];
    for from in places {
        let mut line = format!("{DIM}{:left$}{DIM:#}", name(from));
        for (to, width) in places.iter().zip(&widths) {
            let (style, cell) = match atlas.link(&from.node, &to.node) {
                Some((cost, true)) => (OPEN, format!("═ {cost}")),
                Some((cost, false)) => (Style::new(), cost.to_string()),
                None => (DIM, "·".to_owned()),
            };
            line += &format!("  {style}{cell:>width$}{style:#}");
        }
        lines.push(line);
    }
    lines.extend([
        String::new(),
        format!("{DIM}═ open now, to or from this host; · no link that both ends state{DIM:#}"),
    ]);
    lines
}

fn plain(view: &MapView) -> Vec<String> {
    let atlas = Atlas::new(view);
    let list = |texts: &[String]| match texts.is_empty() {
        true => "-".to_owned(),
        false => texts.iter().map(|text| escaped(text)).collect::<Vec<_>>().join(","),
    };
    let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    let node = |place: &&PlaceView| {
        let path: Vec<String> = place.path.iter().map(|node| atlas.label(node)).collect();
        let egress: Vec<String> = place.egress.iter().map(egress).collect();
        let cost = if atlas.is_me(place) { Some(0) } else { place.cost };
        let columns = [
            "node".to_owned(),
            escaped(&place.label),
            place.node.clone(),
            or_dash(escaped(&place.site)),
            place.reach.clone(),
            cost.map_or("-".to_owned(), |cost| cost.to_string()),
            or_dash(path.join(">")),
            list(&place.serves),
            list(&egress),
            list(&place.claims),
        ];
        columns.join("\t")
    };
    let mut links: Vec<[String; 7]> = view
        .links
        .iter()
        .map(|link| {
            let used = if link.is_used { "used" } else { "-" };
            let (a, b) = (atlas.label(&link.a), atlas.label(&link.b));
            let (from, to, costs) =
                if a <= b { (a, b, [link.cost, link.cost_back]) } else { (b, a, [link.cost_back, link.cost]) };
            let [cost, back] = costs.map(|cost| cost.to_string());
            ["link".to_owned(), from, to, cost, back, link.state.clone(), used.to_owned()]
        })
        .collect();
    links.sort();
    atlas.places.iter().map(node).chain(links.iter().map(|columns| columns.join("\t"))).collect()
}

#[cfg(test)]
#[path = "map_tests.rs"]
mod tests;
