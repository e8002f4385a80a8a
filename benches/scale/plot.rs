//! Line charts as SVG: a few lines of text each, legible on light and on dark ground.
//!
//! Written here because the crates for it know no dark mode and bring more code than all of this
//! bench.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::results::Row;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
/// Of the plotting area: left, top, right, bottom.
const AREA: [f64; 4] = [80.0, 60.0, 730.0, 340.0];

const STYLE: &str = "<style>
text { font: 13px sans-serif; fill: #222 } .title { font-size: 16px; font-weight: bold } .remark { font-size: 11px }
.axis { stroke: #222 } .grid { stroke: #8886; stroke-width: .5 } .band { fill: #8883 } .ground { fill: #fff }
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
    /// Where and when, in small print.
    pub remark: String,
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

/// Draws charts whose first line should stay within 20 % of the second one's mean.
pub fn ratio_charts<const N: usize>(rows: &[Row], charts: [(Chart, Vec<Series>); N]) -> Result<()> {
    for (mut chart, series) in charts {
        let reference: Vec<f64> = series.last().iter().flat_map(|one| one.points.iter().map(|point| point.1)).collect();
        let mean = reference.iter().sum::<f64>() / reference.len().max(1) as f64;
        chart.band = Some((mean * 0.8, mean * 1.2));
        chart.series = series;
        chart.draw(rows)?;
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
        self.remark = match self.band {
            Some(_) => format!("{}; whiskers: least and most; grey: ±20 % of the reference", row.run),
            None => row.run.clone(),
        };
        fs::write(&self.file, self.text()).with_context(|| format!("cannot write {}", self.file.display()))
    }

    fn text(&self) -> String {
        let [left, top, right, bottom] = AREA;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{0}\">\n\
             {STYLE}\n<rect class=\"ground\" width=\"{WIDTH}\" height=\"{HEIGHT}\"/>\n<text class=\"title\" x=\"{left}\" y=\"26\">{0}</text>\n",
            self.title
        );
        let (x_range, y_max) = (self.x_range(), self.y_max());
        let x = |value: f64| left + (right - left) * (self.scale(value) - x_range.0) / (x_range.1 - x_range.0);
        let y = |value: f64| bottom - (bottom - top) * value / y_max;
        let mut line = |text: String| svg.extend([text.as_str(), "\n"]);
        if let Some((low, high)) = self.band {
            let (high, low) = (y(high.min(y_max)), y(low));
            line(format!(
                "<rect class=\"band\" x=\"{left}\" y=\"{high:.1}\" width=\"{}\" height=\"{:.1}\"/>",
                right - left,
                low - high
            ));
        }
        for tick in 0..=5 {
            let value = y_max * f64::from(tick) / 5.0;
            let at = y(value);
            line(format!("<line class=\"grid\" x1=\"{left}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>"));
            line(format!(
                "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                left - 8.0,
                at + 4.0,
                grouped(value)
            ));
        }
        for value in self.x_ticks() {
            let at = x(value);
            line(format!("<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{top}\" y2=\"{bottom}\"/>"));
            line(format!(
                "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                bottom + 18.0,
                grouped(value)
            ));
        }
        line(format!("<path class=\"axis\" fill=\"none\" d=\"M{left} {top}V{bottom}H{right}\"/>"));
        for (n, series) in self.series.iter().enumerate() {
            let points: Vec<String> =
                series.points.iter().map(|point| format!("{:.1},{:.1}", x(point.0), y(point.1))).collect();
            line(format!("<polyline class=\"s{n}\" points=\"{}\"/>", points.join(" ")));
            let is_dotted = series.points.len() <= 30;
            for (at, value, least, most) in series.points.iter().filter(|_| is_dotted) {
                let (at, value, least, most) = (x(*at), y(*value), y(*least), y(*most));
                line(format!("<circle class=\"s{n}\" cx=\"{at:.1}\" cy=\"{value:.1}\" r=\"3\"/>"));
                line(format!(
                    "<line class=\"s{n}\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{least:.1}\" y2=\"{most:.1}\"/>"
                ));
            }
            let (at, name) = (left + 10.0 + 230.0 * n as f64, &series.name);
            line(format!(
                "<rect class=\"s{n}\" x=\"{at}\" y=\"38\" width=\"14\" height=\"4\"/><text x=\"{}\" y=\"45\">{name}</text>",
                at + 20.0
            ));
        }
        let (middle, center) = ((left + right) / 2.0, (top + bottom) / 2.0);
        line(format!("<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">{}</text>", bottom + 40.0, self.x_label));
        line(format!(
            "<text transform=\"rotate(-90 18 {center})\" x=\"18\" y=\"{center}\" text-anchor=\"middle\">{}</text>",
            self.y_label
        ));
        line(format!("<text class=\"remark\" x=\"{left}\" y=\"{}\">{}</text>\n</svg>", HEIGHT - 12.0, self.remark));
        svg
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
