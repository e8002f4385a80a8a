//! Figures: said at once with their bar, kept as CSV, one file for each part.
//!
//! A row holds one figure with date, commit and machine, so that runs can be told apart for ever;
//! plots are drawn from the rows of the last run.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::Bench;

const HEADER: &str = "date,commit,cores,memory_gib,kernel,case,at,metric,value,unit";

/// What a figure has to reach.
#[derive(Clone, Copy, Debug)]
pub enum Bar {
    /// None: it is only said.
    None,
    AtLeast(f64),
    AtMost(f64),
}

/// The figures of one part of one run.
pub struct Results {
    file: PathBuf,
    /// The columns that all rows of a run share.
    run: String,
}

/// One figure as it is read back.
#[derive(Clone, Debug)]
pub struct Row {
    pub run: String,
    pub case: String,
    /// The size that the case was measured at.
    pub at: f64,
    pub metric: String,
    pub value: f64,
}

impl Results {
    /// Begins a part; its rows go to `PART.csv` in the directory.
    pub fn begin(bench: &Bench, part: &str) -> Result<Results> {
        println!("\n{part}");
        let directory = &bench.arguments.out;
        let file = directory.join(format!("{part}.csv"));
        if !file.exists() {
            fs::write(&file, format!("{HEADER}\n")).with_context(|| format!("cannot write {}", file.display()))?;
        }
        let date = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%MZ").to_string();
        // Nobody knows what another program was built from.
        let is_own = bench.arguments.agent == Path::new(env!("CARGO_BIN_EXE_postroad"));
        let commit = if is_own { commit() } else { "another agent".to_owned() };
        Ok(Results { file, run: format!("{date},{commit},{}", machine()) })
    }

    /// Says and keeps one figure.
    pub fn add(&self, case: &str, at: u64, metric: &str, value: f64, unit: &str, bar: Bar) -> Result<()> {
        let verdict = match bar {
            Bar::None => String::new(),
            Bar::AtLeast(least) => format!("  at least {least}: {}", if value >= least { "yes" } else { "NO" }),
            Bar::AtMost(most) => format!("  at most {most}: {}", if value <= most { "yes" } else { "NO" }),
        };
        println!("  {case:<28} {at:>8}  {metric:<32} {:>12} {unit:<8}{verdict}", short(value));
        self.keep(case, at, metric, value, unit)
    }

    /// Keeps one figure of many without saying it.
    pub fn keep(&self, case: &str, at: u64, metric: &str, value: f64, unit: &str) -> Result<()> {
        let mut file = fs::File::options().append(true).open(&self.file)?;
        writeln!(file, "{},{case},{at},{metric},{},{unit}", self.run, short(value))?;
        Ok(())
    }

    /// Says and keeps the median of several measurements, and the least and the most of them.
    pub fn add_all(&self, case: &str, at: u64, metric: &str, values: &[f64], unit: &str, bar: Bar) -> Result<()> {
        self.add(case, at, metric, median(values), unit, bar)?;
        let (least, most) = (values.iter().copied().reduce(f64::min), values.iter().copied().reduce(f64::max));
        self.keep(case, at, &format!("{metric} (min)"), least.unwrap_or(f64::NAN), unit)?;
        self.keep(case, at, &format!("{metric} (max)"), most.unwrap_or(f64::NAN), unit)
    }

    /// Says and keeps quantiles of sorted latencies in microseconds; returns the 99th percentile in
    /// milliseconds.
    pub fn add_latency(&self, case: &str, at: u64, what: &str, sorted: &[u64]) -> Result<f64> {
        self.add(case, at, &format!("{what} samples"), sorted.len() as f64, "", Bar::None)?;
        for (name, share) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
            self.add(case, at, &format!("{what} {name}"), quantile(sorted, share), "ms", Bar::None)?;
        }
        Ok(quantile(sorted, 0.99))
    }
}

/// Returns the middle value.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Returns a quantile of sorted microseconds, in milliseconds.
pub fn quantile(sorted: &[u64], share: f64) -> f64 {
    let at = ((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(at).map_or(f64::NAN, |micros| *micros as f64 / 1e3)
}

/// Microseconds of a duration for each of so many.
pub fn micros_each(time: Duration, count: u64) -> f64 {
    time.as_secs_f64() * 1e6 / count.max(1) as f64
}

/// Reads the rows of the last run of a part; none when it never ran.
pub fn last_run(directory: &Path, part: &str) -> Result<Vec<Row>> {
    let text = fs::read_to_string(directory.join(format!("{part}.csv"))).unwrap_or_default();
    let rows: Vec<Row> = text.lines().skip(1).filter_map(row).collect();
    let Some(run) = rows.last().map(|row| row.run.clone()) else { return Ok(Vec::new()) };
    Ok(rows.into_iter().filter(|row| row.run == run).collect())
}

fn row(line: &str) -> Option<Row> {
    let columns: Vec<&str> = line.split(',').collect();
    let [date, commit, cores, memory, kernel, case, at, metric, value, _unit] = columns[..] else { return None };
    Some(Row {
        run: format!("{date}, {commit}, {cores} cores, {memory} GiB, Linux {kernel}"),
        case: case.to_owned(),
        at: at.parse().ok()?,
        metric: metric.to_owned(),
        value: value.parse().ok()?,
    })
}

/// Four digits that count, without an exponent.
fn short(value: f64) -> String {
    let digits = if value == 0.0 { 0.0 } else { 3.0 - value.abs().log10().floor() };
    let text = format!("{value:.*}", digits.clamp(0.0, 4.0) as usize);
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// The commit that the driver was built from, marked when files were changed since.
fn commit() -> String {
    let git = |words: &[&str]| {
        let output = Command::new("git").arg("-C").arg(env!("CARGO_MANIFEST_DIR")).args(words).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(hash) = git(&["rev-parse", "--short=10", "HEAD"]) else { return "unknown".to_owned() };
    let changed = git(&["status", "--porcelain", "--untracked-files=no", "--", "src", "smtp", "queue"]);
    if changed.is_some_and(|files| !files.is_empty()) { format!("{hash}+") } else { hash }
}

fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, |cores| cores.get());
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib: u64 = memory.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or(0);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{cores},{},{}", (kib as f64 / f64::from(1 << 20)).round(), kernel.trim())
}
