//! The house rules that a compiler cannot check: which room may know which, what the library
//! crates never touch, how files begin and how long they may be, and that dependencies have reasons.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The longest file, in lines.
const FILE_LINES_MAX: usize = 500;
/// The longest function, in lines from its signature to its closing brace.
const FUNCTION_LINES_MAX: usize = 70;

/// The rooms of the agent and those that each may name. `agent` and `cli` may name every room, and
/// no room but `main` names them; a room that is not listed here fails the test until its arrows
/// were decided.
const ARROWS: &[(&str, &[&str])] = &[
    ("admin", &["config", "journal", "telemetry"]),
    ("clock", &[]),
    ("config", &[]),
    (
        "deliver",
        &[
            "admin", "clock", "config", "dsn", "journal", "memory", "metrics", "net", "peer", "policy", "route", "tls",
            "turn",
        ],
    ),
    ("dns_zone", &[]),
    ("dsn", &[]),
    ("history", &[]),
    ("journal", &["clock", "config", "metrics"]),
    (
        "listen",
        &[
            "clock", "config", "history", "journal", "local", "memory", "metrics", "net", "peer", "policy", "tls",
            "turn",
        ],
    ),
    ("local", &[]),
    ("memory", &["clock"]),
    ("metrics", &["config"]),
    ("net", &["tls"]),
    ("peer", &["admin", "clock", "config", "metrics", "net", "route", "tls"]),
    ("policy", &["config", "route"]),
    ("route", &["config"]),
    ("submit", &["tls"]),
    ("systemd", &[]),
    ("telemetry", &["config"]),
    ("tls", &["config"]),
    ("turn", &["config", "metrics", "net"]),
];

/// Rooms that may name every other.
const ROOTS: &[&str] = &["agent", "cli", "demo", "main", "lib"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Returns all Rust files below a directory of the project, with their path from the root.
fn sources(directory: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    collect(&root().join(directory), &mut found);
    found.sort();
    found
}

fn collect(directory: &Path, found: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten() {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target" && name != "corpus") {
                collect(&path, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root()).expect("below the root").display().to_string();
            found.push((name, std::fs::read_to_string(&path).expect("UTF-8")));
        }
    }
}

fn all_sources() -> Vec<(String, String)> {
    ["src", "smtp", "queue", "mesh", "tests", "benches", "fuzz"].iter().flat_map(|name| sources(name)).collect()
}

/// Fails with every fault at once.
fn assert_none(faults: &[String]) {
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

/// Returns the lines of a file before its unit tests; whole files of tests are all test.
fn without_tests(text: &str) -> &str {
    text.find("#[cfg(test)]\nmod ").map_or(text, |end| &text[..end])
}

fn is_test_file(name: &str) -> bool {
    let stem = name.trim_end_matches(".rs");
    name.contains("/tests/") || name.starts_with("tests/") || stem.ends_with("tests") || stem.ends_with("/testing")
}

fn room_of(name: &str) -> &str {
    let inside = name.strip_prefix("src/").expect("a file of the agent");
    inside.split('/').next().expect("a path has parts").trim_end_matches(".rs")
}

/// Returns the rooms a text names by `crate::room`, also inside `use crate::{a, b::c}`.
fn rooms_named(text: &str) -> BTreeSet<String> {
    let mut rooms = BTreeSet::new();
    let code: String = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut word = String::new();
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => rooms.extend(first_word(&std::mem::take(&mut word))),
                    _ => {}
                }
                word.push(c);
            }
            rooms.extend(first_word(&word));
        } else {
            rooms.extend(first_word(rest));
        }
    }
    rooms
}

fn first_word(text: &str) -> Option<String> {
    let text = text.trim_start_matches([',', ' ', '\n']);
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len());
    (end > 0).then(|| text[..end].to_owned())
}

#[test]
fn the_arrows_between_rooms_are_those_of_the_table() {
    let arrows: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    let mut faults = Vec::new();
    for (name, text) in sources("src") {
        let room = room_of(&name);
        if is_test_file(&name) || ROOTS.contains(&room) {
            continue;
        }
        let Some(allowed) = arrows.get(room) else {
            faults.push(format!("{name}: the room {room:?} is not in the table of tests/tidy.rs"));
            continue;
        };
        for named in rooms_named(without_tests(&text)) {
            let is_room = arrows.contains_key(named.as_str()) || ROOTS.contains(&named.as_str());
            if is_room && named != room && !allowed.contains(&named.as_str()) {
                faults.push(format!("{name}: {room} may not name {named}"));
            }
        }
    }
    assert_none(&faults);
}

#[test]
fn the_two_halves_meet_in_the_queue_alone() {
    let allowed = |room: &str| ARROWS.iter().find(|(name, _)| *name == room).expect("it is in the table").1;
    assert!(!allowed("listen").contains(&"deliver") && !allowed("deliver").contains(&"listen"));
}

#[test]
fn the_library_crates_have_no_sockets_no_runtime_and_no_clock() {
    const FORBIDDEN: &[&str] = &[
        "Instant::now",
        "SystemTime::now",
        "Timestamp::now",
        "Zoned::now",
        "std::net::Tcp",
        "std::net::Udp",
        "TcpStream",
        "UdpSocket",
        "UnixStream",
        "tokio",
        "thread::sleep",
    ];
    let mut faults = Vec::new();
    for (name, text) in ["smtp/src", "queue/src", "mesh/src"].iter().flat_map(|directory| sources(directory)) {
        if is_test_file(&name) {
            continue;
        }
        for (number, line) in without_tests(&text).lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let found = FORBIDDEN.iter().filter(|word| code.contains(**word));
            faults.extend(found.map(|word| format!("{name}:{}: {word}", number + 1)));
        }
    }
    for manifest in ["smtp/Cargo.toml", "queue/Cargo.toml", "mesh/Cargo.toml"] {
        let text = std::fs::read_to_string(root().join(manifest)).expect("readable");
        let dependencies = text.split("[dev-dependencies]").next().expect("split gives one part");
        faults.extend(dependencies.contains("tokio").then(|| format!("{manifest}: tokio")));
    }
    assert_none(&faults);
}

#[test]
fn every_file_begins_with_its_contract_and_is_not_too_long() {
    let mut faults = Vec::new();
    for (name, text) in all_sources() {
        if !text.starts_with("//! ") {
            faults.push(format!("{name}: does not begin with //!"));
        }
        let lines = text.lines().count();
        if lines > FILE_LINES_MAX {
            faults.push(format!("{name}: {lines} lines, at most {FILE_LINES_MAX}"));
        }
    }
    assert_none(&faults);
}

/// Relies on rustfmt: a function's closing brace stands in the column of its signature.
#[test]
fn every_function_fits_a_screen() {
    let mut faults = Vec::new();
    for (name, text) in all_sources() {
        let lines: Vec<&str> = text.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let indent = line.len() - line.trim_start().len();
            if !is_signature(line.trim_start()) || line.ends_with('}') || line.ends_with(';') {
                continue;
            }
            let closing = format!("{}}}", " ".repeat(indent));
            let end = lines[at..].iter().position(|line| *line == closing).unwrap_or(0);
            if end + 1 > FUNCTION_LINES_MAX {
                faults.push(format!("{name}:{}: {} lines, at most {FUNCTION_LINES_MAX}", at + 1, end + 1));
            }
        }
    }
    assert_none(&faults);
}

fn is_signature(line: &str) -> bool {
    let modifiers = ["pub(crate) ", "pub(super) ", "pub(in ", "pub ", "const ", "async ", "unsafe "];
    let mut rest = line;
    while let Some(found) = modifiers.iter().find_map(|word| rest.strip_prefix(word)) {
        rest = found;
    }
    rest.starts_with("fn ")
}

/// A comment stands above each dependency, or above the group it belongs to.
#[test]
fn every_dependency_has_its_reason() {
    let mut faults = Vec::new();
    for manifest in ["Cargo.toml", "smtp/Cargo.toml", "queue/Cargo.toml"] {
        let text = std::fs::read_to_string(root().join(manifest)).expect("readable");
        let (mut in_dependencies, mut reason) = (false, false);
        for (number, line) in text.lines().enumerate() {
            if line.starts_with('[') {
                in_dependencies = line.ends_with("dependencies]");
                reason = false;
            } else if line.starts_with('#') {
                reason = true;
            } else if line.trim().is_empty() {
                reason = false;
            } else if in_dependencies && !reason && !line.contains("workspace = true") && line.contains(" = ") {
                let inside = line.contains("path = ") || line.starts_with(' ');
                if !inside {
                    faults.push(format!("{manifest}:{}: {line}", number + 1));
                }
            }
        }
    }
    assert_none(&faults);
}

/// What is put off is an issue, not a comment; and output goes through the command line's room.
#[test]
fn nothing_is_left_for_later_in_comments() {
    const MARKS: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")];
    let mut faults = Vec::new();
    for (name, text) in all_sources() {
        for (number, line) in text.lines().enumerate() {
            let found = MARKS.iter().filter(|mark| line.contains(**mark));
            faults.extend(found.map(|mark| format!("{name}:{}: {mark}", number + 1)));
        }
    }
    assert_none(&faults);
}
