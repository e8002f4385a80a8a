//! Line charts as SVG: a few lines of text each, legible on light and on dark ground.
//!
//! Written here because the crates for it know no dark mode and bring more code than all of this
//! bench.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::results::{Row, last_run};

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
/// Of the plotting area: left, top, right, bottom.
const AREA: [f64; 4] = [80.0, 60.0, 730.0, 340.0];

/// Longer lines are drawn without a mark at each point.
const POINTS_MARKED_MAX: usize = 30;

const STYLE: &str = "<style>
text { font: 13px sans-serif; fill: #222 } .title { font-size: 16px; font-weight: bold } .remark { font-size: 11px }
.axis { stroke: #222; fill: none } .grid { stroke: #888; stroke-opacity: .4; stroke-width: .5 } .band { fill: #888; fill-opacity: .2 } .ground { fill: #fff }
polyline { fill: none; stroke-width: 2 } .s0 { stroke: #0b62c4; fill: #0b62c4 } .s1 { stroke: #c05a00; fill: #c05a00 }
@media (prefers-color-scheme: dark) {
  text { fill: #ddd } .axis { stroke: #ddd } .ground { fill: #111 }
  .s0 { stroke: #6db3ff; fill: #6db3ff } .s1 { stroke: #ffa04d; fill: #ffa04d }
}
polyline.s0, polyline.s1 { fill: none }
</style>";

/// One chart.
pub struct Chart {
    pub file: PathBuf,
    pub title: String,
    pub x_label: String,
    pub y_label: String,
    pub is_x_logarithmic: bool,
    /// Between which values everything should lie.
    pub band: Option<(f64, f64)>,
    pub series: Vec<Series>,
    /// How, when and where, in small print.
    pub remarks: [String; 2],
}

/// One line: x, y, and the least and most y that was measured.
pub struct Series {
    pub name: String,
    pub points: Vec<(f64, f64, f64, f64)>,
}

impl Series {
    /// Takes the points of one case and metric out of a run.
    pub fn of(rows: &[Row], case: &str, metric: &str) -> Series {
        let value = |at: f64, metric: &str| {
            rows.iter().find(|row| row.case == case && row.at == at && row.metric == metric).map(|row| row.value)
        };
        let mine = rows.iter().filter(|row| row.case == case && row.metric == metric);
        let point = |row: &Row| {
            let bound = |name: &str| value(row.at, &format!("{metric} ({name})")).unwrap_or(row.value);
            (row.at, row.value, bound("min"), bound("max"))
        };
        Series { name: case.to_owned(), points: mine.map(point).collect() }
    }
}

/// Draws the rate and the processor time of a part, in which the first case should stay within 20 % of the
/// mean of the second.
pub fn ratio_charts(directory: &Path, part: &str, x_label: &str, cases: [&str; 2], titles: [&str; 2]) -> Result<()> {
    let rows = last_run(directory, part)?;
    let measures = [("rate", "relayed", "messages relayed a second"), ("cpu", "CPU of the agent", "µs CPU a message")];
    for ((name, metric, y_label), title) in measures.into_iter().zip(titles) {
        let series = cases.map(|case| Series::of(&rows, case, metric));
        let reference: Vec<f64> = series[1].points.iter().map(|point| point.1).collect();
        let mean = reference.iter().sum::<f64>() / reference.len().max(1) as f64;
        let chart = Chart {
            file: directory.join(format!("{part}-{name}.svg")),
            title: title.to_owned(),
            x_label: x_label.to_owned(),
            y_label: y_label.to_owned(),
            is_x_logarithmic: true,
            band: Some((mean * 0.8, mean * 1.2)),
            series: series.into(),
            remarks: Default::default(),
        };
        chart.draw(&rows)?;
    }
    Ok(())
}

impl Chart {
    /// Writes the chart; nothing when there is nothing to show.
    pub fn draw(mut self, rows: &[Row]) -> Result<()> {
        let Some(row) = rows.first() else { return Ok(()) };
        if self.series.iter().all(|series| series.points.is_empty()) {
            return Ok(());
        }
        let stem = self.file.file_stem().unwrap_or_default().to_string_lossy();
        let part = stem.split('-').next().unwrap_or_default();
        self.remarks[0] = format!("cargo bench --bench scale -- {part}: {}", row.run);
        if self.band.is_some() {
            self.remarks[1] = "Whiskers: least and most of all rounds. Grey: ±20 % of the reference.".to_owned();
        }
        fs::write(&self.file, self.text()).with_context(|| format!("cannot write {}", self.file.display()))
    }

    fn text(&self) -> String {
        let title = &self.title;
        let head = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\">"
        );
        let ground = format!("<rect class=\"ground\" width=\"{WIDTH}\" height=\"{HEIGHT}\"/>");
        let mut lines = vec![head, STYLE.to_owned(), ground];
        lines.extend(self.grid());
        for (n, series) in self.series.iter().enumerate() {
            lines.extend(self.line(n, series));
        }
        lines.extend(self.words());
        lines.push("</svg>\n".to_owned());
        lines.join("\n")
    }

    fn grid(&self) -> Vec<String> {
        let [left, top, right, bottom] = AREA;
        let (width, beside, below) = (right - left, left - 8.0, bottom + 18.0);
        let mut out = Vec::new();
        if let Some((low, high)) = self.band {
            let high = self.y(high.min(self.y_max()));
            let height = self.y(low) - high;
            out.push(format!(
                "<rect class=\"band\" x=\"{left}\" y=\"{high:.1}\" width=\"{width}\" height=\"{height:.1}\"/>"
            ));
        }
        for tick in 0..=5 {
            let value = self.y_max() * f64::from(tick) / 5.0;
            let (at, number) = (self.y(value), grouped(value));
            out.push(format!("<path class=\"grid\" d=\"M{left} {at:.1}H{right}\"/>"));
            out.push(format!("<text x=\"{beside}\" y=\"{:.1}\" text-anchor=\"end\">{number}</text>", at + 4.0));
        }
        for value in self.x_ticks() {
            let (at, number) = (self.x(value), grouped(value));
            out.push(format!("<path class=\"grid\" d=\"M{at:.1} {top}V{bottom}\"/>"));
            out.push(format!("<text x=\"{at:.1}\" y=\"{below}\" text-anchor=\"middle\">{number}</text>"));
        }
        out.push(format!("<path class=\"axis\" d=\"M{left} {top}V{bottom}H{right}\"/>"));
        out
    }

    fn line(&self, n: usize, series: &Series) -> Vec<String> {
        let at = |point: &(f64, f64, f64, f64)| format!("{:.1},{:.1}", self.x(point.0), self.y(point.1));
        let points: Vec<String> = series.points.iter().map(at).collect();
        let mut out = vec![format!("<polyline class=\"s{n}\" points=\"{}\"/>", points.join(" "))];
        let few = series.points.iter().filter(|_| series.points.len() <= POINTS_MARKED_MAX);
        for (at, value, least, most) in few {
            let (x, y, least, most) = (self.x(*at), self.y(*value), self.y(*least), self.y(*most));
            out.push(format!("<circle class=\"s{n}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"/>"));
            out.push(format!("<path class=\"s{n}\" d=\"M{x:.1} {least:.1}V{most:.1}\"/>"));
        }
        let left = AREA[0] + 10.0 + 230.0 * n as f64;
        out.push(format!("<rect class=\"s{n}\" x=\"{left}\" y=\"38\" width=\"14\" height=\"4\"/>"));
        out.push(format!("<text x=\"{}\" y=\"45\">{}</text>", left + 20.0, series.name));
        out
    }

    fn words(&self) -> Vec<String> {
        let [left, top, right, bottom] = AREA;
        let (middle, center, below) = ((left + right) / 2.0, (top + bottom) / 2.0, bottom + 40.0);
        let (title, x, y) = (&self.title, &self.x_label, &self.y_label);
        let turned = format!("transform=\"rotate(-90 18 {center})\" x=\"18\" y=\"{center}\"");
        let mut out = vec![
            format!("<text class=\"title\" x=\"{left}\" y=\"26\">{title}</text>"),
            format!("<text x=\"{middle}\" y=\"{below}\" text-anchor=\"middle\">{x}</text>"),
            format!("<text {turned} text-anchor=\"middle\">{y}</text>"),
        ];
        for (n, remark) in self.remarks.iter().enumerate() {
            let at = HEIGHT - 20.0 + 14.0 * n as f64;
            out.push(format!("<text class=\"remark\" x=\"20\" y=\"{at}\">{remark}</text>"));
        }
        out
    }

    fn x(&self, value: f64) -> f64 {
        let (least, most) = self.x_range();
        AREA[0] + (AREA[2] - AREA[0]) * (self.scale(value) - least) / (most - least)
    }

    fn y(&self, value: f64) -> f64 {
        AREA[3] - (AREA[3] - AREA[1]) * value / self.y_max()
    }

    fn points(&self) -> impl Iterator<Item = &(f64, f64, f64, f64)> {
        self.series.iter().flat_map(|series| &series.points)
    }

    fn scale(&self, x: f64) -> f64 {
        if self.is_x_logarithmic { x.max(1.0).log10() } else { x }
    }

    fn x_range(&self) -> (f64, f64) {
        let all = || self.points().map(|point| self.scale(point.0));
        let (least, most) = (all().fold(f64::INFINITY, f64::min), all().fold(0.0, f64::max));
        let least = if self.is_x_logarithmic { least } else { 0.0 };
        (least, most.max(least + 1.0))
    }

    fn y_max(&self) -> f64 {
        round_up(self.points().map(|point| point.3).fold(0.0, f64::max) * 1.1)
    }

    fn x_ticks(&self) -> Vec<f64> {
        if !self.is_x_logarithmic {
            let step = round_up(self.x_range().1) / 5.0;
            return (0..=5).map(|tick| step * f64::from(tick)).filter(|x| *x <= self.x_range().1).collect();
        }
        let mut ticks: Vec<f64> = self.points().map(|point| point.0).collect();
        ticks.sort_by(f64::total_cmp);
        ticks.dedup();
        ticks
    }
}

/// The next of 1, 2, 2.5, 5, 10 times a power of ten.
fn round_up(value: f64) -> f64 {
    let power = 10f64.powf(value.max(1e-9).log10().floor());
    let factor = [1.0, 2.0, 2.5, 5.0].into_iter().find(|factor| factor * power >= value).unwrap_or(10.0);
    factor * power
}

/// A number with its thousands apart.
fn grouped(value: f64) -> String {
    if value < 10.0 && value.fract() > 0.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
