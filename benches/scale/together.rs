//! Which functions run when an agent starts, rests and relays, as valgrind sees them: `link/together.ld`, by which the
//! linker puts them together (decision 23). Measures nothing and compares nothing; it has to be asked for.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::Bench;
use crate::agent::{Agent, Route};
use crate::load::{Load, Mail};
use crate::relay;
use crate::sink::{Manner, Sink, Tally};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/link/together.ld");
/// What is called as often as this many messages are relayed is called for each of them, or nearly.
const MESSAGES: u64 = 400;
/// Long enough for what a start leaves to do later.
const REST: Duration = Duration::from_secs(10);
/// Of the code that a name without its hash stands for, at least one octet in so many runs.
const RUNS_OF: u64 = 2;

/// What was seen of the functions of the agent, by name.
struct Seen {
    /// How often each that ran was called.
    calls: HashMap<String, u64>,
    /// The octets of all there are.
    octets: HashMap<String, u64>,
}

pub fn write(bench: &Bench) -> Result<()> {
    let profile = bench.scratch.path().join("callgrind.out");
    run(bench, &profile)?;
    let seen = Seen { calls: calls(&fs::read_to_string(&profile)?), octets: octets(&bench.arguments.agent)? };
    let (relay, rest): (Vec<_>, Vec<_>) = seen.ran().partition(|name| seen.calls[*name] >= MESSAGES / 2);
    let relay = seen.patterns(relay);
    let rest: BTreeSet<String> = seen.patterns(rest).difference(&relay).cloned().collect();
    println!("  {} functions of the relay, {} of starts, rest and ends, in {SCRIPT}", relay.len(), rest.len());
    fs::write(SCRIPT, script(&relay, &rest)?).with_context(|| format!("cannot write {SCRIPT}"))
}

/// Has an agent start, rest, relay, rest and stop.
fn run(bench: &Bench, profile: &Path) -> Result<()> {
    let out = format!("--callgrind-out-file={}", profile.display());
    let wrapper = ["valgrind", "--tool=callgrind", "--demangle=no", &out].map(str::to_owned);
    let tally = Arc::new(Tally::default());
    let sink = Sink::start(bench.runtime.handle(), bench.address(), Manner::Take, &tally)?;
    let routes: [Route; 1] = [("*".into(), sink.address)];
    let mut agent = Agent::start_under(bench, "together", &routes, "", &wrapper).context("is valgrind installed?")?;
    std::thread::sleep(REST);
    let mail: Mail = Arc::new(|_, micros| ("s@sender.test".into(), format!("b{micros}@live.test")));
    for pipelining in [false, true] {
        let load = Load { pipelining, octets: 10 * 1024, ..relay::load(bench, &agent, MESSAGES, mail.clone()) };
        bench.runtime.block_on(bench.runtime.spawn(load.send()))??;
    }
    tally.wait(2 * MESSAGES, crate::agent::SOON)?;
    std::thread::sleep(REST);
    agent.stop()
}

/// Reads how often each function was called out of callgrind's format: `cfn=(ID) NAME`, where the name stands
/// once for each id, with `calls=COUNT …` behind it.
fn calls(profile: &str) -> HashMap<String, u64> {
    let (mut names, mut calls, mut called) = (HashMap::new(), HashMap::new(), None);
    for line in profile.lines() {
        if let Some(count) = line.strip_prefix("calls=") {
            let count = count.split(' ').next().and_then(|count| count.parse().ok()).unwrap_or(0);
            *calls.entry(called.take()).or_insert(0) += count;
        } else if let Some(which) = line.strip_prefix("cfn=").or(line.strip_prefix("fn=")) {
            let (id, name) = which.split_once(' ').unwrap_or((which, ""));
            if !name.is_empty() {
                // Behind a tick stands how deep a function calls itself.
                let name = name.split('\'').next().unwrap_or(name);
                names.insert(id.to_owned(), name.to_owned());
            }
            calls.entry(Some(id.to_owned())).or_insert(0);
            called = Some(id.to_owned());
        }
    }
    let mut by_name = HashMap::new();
    for (id, count) in calls {
        if let Some(name) = id.and_then(|id| names.get(&id)) {
            *by_name.entry(name.clone()).or_insert(0) += count;
        }
    }
    by_name
}

/// Asks nm for the functions of a program.
fn octets(program: &Path) -> Result<HashMap<String, u64>> {
    let said = Command::new("nm").arg("-S").arg(program).output().context("cannot run nm; is binutils installed?")?;
    let of = |line: &str| match *line.split(' ').collect::<Vec<_>>() {
        [_, octets, "t" | "T" | "w" | "W", name] => Some((name.to_owned(), u64::from_str_radix(octets, 16).ok()?)),
        _ => None,
    };
    let octets: HashMap<_, _> = String::from_utf8_lossy(&said.stdout).lines().filter_map(of).collect();
    if octets.is_empty() {
        bail!("{} names no functions; it is to be stripped of debug information at most", program.display());
    }
    Ok(octets)
}

impl Seen {
    /// The functions of the program that ran; those of libraries are none of them.
    fn ran(&self) -> impl Iterator<Item = &str> {
        self.calls.keys().map(String::as_str).filter(|name| self.octets.contains_key(*name))
    }

    /// What selects functions in the linker's script. A name goes without its hash, which is another one with the next
    /// compiler, unless it stands for a lot that does not run then: each instance of a generic function has the same.
    fn patterns(&self, names: Vec<&str>) -> BTreeSet<String> {
        let mut all = BTreeMap::<&str, u64>::new();
        self.octets.iter().for_each(|(name, octets)| *all.entry(stem(name)).or_insert(0) += octets);
        let mut runs = BTreeMap::<&str, u64>::new();
        self.ran().for_each(|name| *runs.entry(stem(name)).or_insert(0) += self.octets[name]);
        let pattern = |name: &str| match stem(name) {
            stem if stem.len() < name.len() && runs[stem] * RUNS_OF >= all[stem] => format!("{stem}*"),
            _ => name.to_owned(),
        };
        names.into_iter().map(pattern).collect()
    }
}

/// Returns a mangled name up to its hash, `17h` and sixteen digits with an E behind them.
fn stem(name: &str) -> &str {
    const HASH: usize = "17h".len() + 16 + "E".len();
    let at = name.len().saturating_sub(HASH);
    match name.get(at..) {
        Some(hash) if name.starts_with("_ZN") && hash.starts_with("17h") => &name[..at + "17h".len()],
        _ => name,
    }
}

fn script(relay: &BTreeSet<String>, rest: &BTreeSet<String>) -> Result<String> {
    let mut text = "/* Functions that run together stand together: decision 23.\n   \
                    Written by `cargo bench --bench scale -- together`; a name that is in no program selects nothing. */\n\
                    SECTIONS\n{\n"
        .to_owned();
    for (section, names) in [(".text.relay", relay), (".text.start", rest)] {
        writeln!(text, "    {section} :\n    {{")?;
        names.iter().try_for_each(|name| writeln!(text, "        *(.text.{name})"))?;
        writeln!(text, "    }}")?;
    }
    Ok(text + "}\nINSERT BEFORE .text;\n")
}
