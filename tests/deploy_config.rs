//! The example configuration that is shipped: valid as it is, and its comments tell the truth.

use std::path::Path;

use postroad::config::Config;

const EXAMPLE: &str = include_str!("../deploy/postroad.toml");
const BASE: &str = "/etc/postroad";

fn read(text: &str) -> Config {
    Config::from_str(text, "deploy/postroad.toml", Path::new(BASE)).unwrap_or_else(|faults| panic!("{faults}"))
}

/// Returns the lines that are commented out, outside the examples.
fn uncommented(keep_examples: bool) -> String {
    let mut example = false;
    let mut out = String::new();
    for line in EXAMPLE.lines() {
        let comment = line.strip_prefix("# ");
        let setting = comment.filter(|text| text.starts_with("[[") || text.split_once(" = ").is_some_and(is_key));
        match setting {
            Some(setting) if keep_examples || !example => out.push_str(setting),
            Some(_) => {}
            None if line.starts_with('#') => {
                let starts = line.contains("Example");
                // A comment that explains the next setting ends the examples before it.
                example = starts || (example && line == "#");
            }
            None => {
                out.push_str(line);
                example = false;
            }
        }
        out.push('\n');
    }
    out
}

fn is_key((key, _): (&str, &str)) -> bool {
    key.bytes().all(|c| c.is_ascii_lowercase() || c == b'_')
}

#[test]
fn as_shipped_it_is_the_empty_configuration() {
    assert_eq!(read(EXAMPLE), Config::default());
}

#[test]
fn what_is_called_a_default_is_the_default() {
    let text = uncommented(false);
    assert!(text.matches(" = ").count() > 30, "{text}");
    let mut read = read(&text);
    read.hostname = Config::default().hostname;
    read.warnings = Config::default().warnings;
    assert_eq!(read, Config::default());
}

#[test]
fn the_examples_are_valid_together() {
    let text = uncommented(true);
    // Files that are not there, and a default beside the tables that may stand in its place.
    let left_out = ["certificate", "key", "egress", "aliases"];
    let text: String = text
        .lines()
        .filter(|line| !left_out.iter().any(|key| line.starts_with(&format!("{key} ="))))
        .flat_map(|line| [line, "\n"])
        .collect();
    let config = read(&text);
    assert_eq!((config.locals.len(), config.routes.len()), (2, 2));
    assert_eq!((config.turns.len(), config.fetches.len()), (1, 1));
    assert_eq!((config.listen.all().count(), config.mesh.egress.len()), (8, 1));
    assert!(config.metrics.listen.is_some() && config.postmaster.is_some());
}

#[test]
fn no_key_is_missing_in_it() {
    let sections = ["", "[listen]", "[tls]", "[relay]", "[users]", "[dns]", "[outbound]", "[queue]", "[limits]"];
    let sections = sections.iter().chain(&[
        "[timeouts]",
        "[log]",
        "[metrics]",
        "[control]",
        "[mesh]",
        "[mesh.quota]",
        "[[mesh.egress]]",
        "[[local]]",
        "[[route]]",
        "[[turn]]",
        "[[fetch]]",
    ]);
    for section in sections {
        let faults = Config::from_str(&format!("{section}\nqqqq = 1\n"), "t", Path::new(BASE)).expect_err("unknown");
        let remedy = faults.faults().iter().find_map(|fault| fault.remedy.strip_prefix("possible keys: "));
        for key in remedy.expect("an unknown key is answered with the known ones").split(", ") {
            let place =
                [format!("# {key} = "), format!("\n[{key}]"), format!("\n[mesh.{key}]"), format!("# [[{key}]]")];
            let optional = key == "tls" && *section == "[[route]]";
            assert!(optional || place.iter().any(|place| EXAMPLE.contains(place)), "{section} {key}");
        }
    }
}
