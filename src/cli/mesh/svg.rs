//! The map of a mesh as SVG: one file that needs no other, has no scripts, and is readable on light and on
//! dark ground. Members stand on an ellipse, this host on top, those of a site beside each other.

use std::f64::consts::TAU;
use std::fmt::Write as _;

use super::map::{Atlas, egress, serves};
use crate::admin::mesh::{LinkView, MapView, PlaceView};
use crate::telemetry::escaped;

/// A member's box, in pixels.
const BOX: (i64, i64) = (208, 66);
const MARGIN: i64 = 24;
/// Characters of a line in a box.
const LINE_CHARS: usize = 32;
/// Links whose cost is written on them, off the cheapest ways; with more it is in their titles alone.
const COSTS_WRITTEN_MAX: usize = 24;

const STYLE: &str = "\
.ground{fill:#fff}.box{fill:#f6f8fa;stroke:#57606a}.me{fill:#ddf4ff;stroke:#0969da;stroke-width:2}
.lost{stroke:#9a6700;stroke-dasharray:4 3}.link{stroke:#afb8c1;stroke-width:1}.used{stroke:#0969da;stroke-width:2.5}
.stated{stroke-dasharray:6 4}.chip{fill:#fff}
text{font:12px system-ui,sans-serif;fill:#57606a;text-anchor:middle}.name{font-weight:600;font-size:14px;fill:#1f2328}
.head{font-size:15px;text-anchor:start;fill:#1f2328}.cost{font-size:11px}
@media(prefers-color-scheme:dark){.ground,.chip{fill:#0d1117}.box{fill:#161b22;stroke:#8b949e}
.me{fill:#0c2d6b;stroke:#58a6ff}.lost{stroke:#d29922}.link{stroke:#484f58}.used{stroke:#58a6ff}
text{fill:#8b949e}.name,.head{fill:#e6edf3}}";

/// Draws a map.
pub(super) fn drawing(view: &MapView) -> String {
    let atlas = Atlas::new(view);
    let placed = placed(&atlas);
    let edge = |of: fn(&(i64, i64)) -> i64| {
        let all = || placed.iter().map(|(_, at)| of(at));
        (all().min().unwrap_or_default(), all().max().unwrap_or_default())
    };
    let ((left, right), (top, bottom)) = (edge(|at| at.0), edge(|at| at.1));
    let (x, y) = (left - BOX.0 / 2 - MARGIN, top - BOX.1 / 2 - 2 * MARGIN);
    let (width, height) = (right - left + BOX.0 + 2 * MARGIN, bottom - top + BOX.1 + 4 * MARGIN);
    let mut out = String::new();
    let mut line = |args: std::fmt::Arguments<'_>| writeln!(out, "{args}").expect("a string takes all");
    line(format_args!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"{x} {y} {width} {height}\" width=\"{width}\" \
         height=\"{height}\" role=\"img\">"
    ));
    let title = format!("{} as {} sees it", view.label, atlas.label(view.node.as_deref().unwrap_or_default()));
    let title = text(&title);
    line(format_args!("<title>{title}</title>\n<style>{STYLE}</style>"));
    line(format_args!("<rect class=\"ground\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\"/>"));
    line(format_args!("<text class=\"head\" x=\"{}\" y=\"{}\">{title}</text>", x + MARGIN, y + MARGIN));
    let place = |node: &str| placed.iter().find(|(place, _)| place.node == node).map(|(_, at)| *at);
    let mut links: Vec<&LinkView> = view.links.iter().collect();
    // Those of the cheapest ways are drawn over the others.
    links.sort_by_key(|link| (link.is_used, atlas.label(&link.a), atlas.label(&link.b)));
    let is_crowded = links.iter().filter(|link| !link.is_used).count() > COSTS_WRITTEN_MAX;
    for link in &links {
        if let (Some(a), Some(b)) = (place(&link.a), place(&link.b)) {
            line(format_args!("{}", drawn_link(&atlas, link, a, b, link.is_used || !is_crowded)));
        }
    }
    for (place, at) in &placed {
        line(format_args!("{}", drawn_member(&atlas, place, *at)));
    }
    let legend = "thick: on a cheapest way from this host; solid: open now; dashed: stated by both ends";
    line(format_args!(
        "<text class=\"cost\" x=\"{}\" y=\"{}\">{legend}</text>",
        x + width / 2,
        y + height - MARGIN / 2
    ));
    out + "</svg>\n"
}

/// Returns the members with the middle of each one's box.
fn placed<'a>(atlas: &Atlas<'a>) -> Vec<(&'a PlaceView, (i64, i64))> {
    let mut places = atlas.places.clone();
    places.sort_by_key(|place| (&place.site, &place.label, &place.node));
    let me = places.iter().position(|place| atlas.is_me(place)).unwrap_or_default();
    places.rotate_left(me);
    let count = places.len() as f64;
    let (rx, ry) = if places.len() > 1 { ((44.0 * count).max(230.0), (32.0 * count).max(150.0)) } else { (0.0, 0.0) };
    let at = |number: usize| {
        let turn = number as f64 / count * TAU;
        ((rx * turn.sin()).round() as i64, (-ry * turn.cos()).round() as i64)
    };
    places.into_iter().enumerate().map(|(number, place)| (place, at(number))).collect()
}

fn drawn_link(atlas: &Atlas<'_>, link: &LinkView, a: (i64, i64), b: (i64, i64), is_written: bool) -> String {
    let used = if link.is_used { " used" } else { "" };
    let stated = if link.state == "open" { "" } else { " stated" };
    let cost = match link.cost == link.cost_back {
        true => link.cost.to_string(),
        false => format!("{}/{}", link.cost, link.cost_back),
    };
    let (from, to) = (text(&atlas.label(&link.a)), text(&atlas.label(&link.b)));
    let mut drawn = format!(
        "<line class=\"link{used}{stated}\" x1=\"{}\" y1=\"{}\" x2=\"{}\" y2=\"{}\"><title>{from} - {to}: {cost}, {}</title></line>",
        a.0,
        a.1,
        b.0,
        b.1,
        text(&link.state)
    );
    if is_written {
        let (x, y, width) = ((a.0 + b.0) / 2, (a.1 + b.1) / 2, 8 * cost.len() as i64 + 8);
        write!(
            drawn,
            "\n<rect class=\"chip\" x=\"{}\" y=\"{}\" width=\"{width}\" height=\"16\" rx=\"8\"/>\
             <text class=\"cost\" x=\"{x}\" y=\"{}\">{cost}</text>",
            x - width / 2,
            y - 8,
            y + 4
        )
        .expect("a string takes all");
    }
    drawn
}

fn drawn_member(atlas: &Atlas<'_>, place: &PlaceView, (x, y): (i64, i64)) -> String {
    let is_me = atlas.is_me(place);
    let kind = match (is_me, place.path.is_empty()) {
        (true, _) => "box me",
        (false, true) => "box lost",
        (false, false) => "box",
    };
    let name = match place.site.as_str() {
        "" => place.label.clone(),
        site => format!("{} ({site})", place.label),
    };
    let cost = place.cost.map(|cost| format!("{cost} from here"));
    let out: Vec<String> = place.egress.iter().map(|offer| format!("out {}", egress(offer))).collect();
    let role: Vec<String> = cost.into_iter().chain(out).collect();
    let first = serves(place).unwrap_or_else(|| "serves no domain".to_owned());
    let lines = [("name", name, -12), ("", first, 8), ("", role.join("; "), 25)];
    let mut drawn = format!(
        "<rect class=\"{kind}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" rx=\"8\"/>",
        x - BOX.0 / 2,
        y - BOX.1 / 2,
        BOX.0,
        BOX.1
    );
    for (class, words, below) in lines.iter().filter(|(_, words, _)| !words.is_empty()) {
        let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
        write!(drawn, "\n<text{class} x=\"{x}\" y=\"{}\">{}</text>", y + below, cut(words))
            .expect("a string takes all");
    }
    drawn
}

fn cut(words: &str) -> String {
    match words.chars().count() > LINE_CHARS {
        true => text(&(words.chars().take(LINE_CHARS - 1).collect::<String>() + "…")),
        false => text(words),
    }
}

/// Returns what others wrote as text of an XML document.
fn text(words: &str) -> String {
    let words = escaped(words);
    let mut out = String::with_capacity(words.len());
    for c in words.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            other => out.push(other),
        }
    }
    out
}
