//! The documents tell the truth about the tree: every test they name exists, and every link leads
//! somewhere.

use std::path::Path;

const DOCUMENTS: &[&str] = &[
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CHANGELOG.md",
    "docs/glossary.md",
    "docs/journal-format.md",
    "docs/operations.md",
    "docs/performance.md",
    "docs/rfc.md",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Returns what stands between backticks, outside of code blocks.
fn quoted(text: &str) -> Vec<&str> {
    text.split("```").step_by(2).flat_map(|prose| prose.split('`').skip(1).step_by(2)).collect()
}

#[test]
fn every_test_that_is_named_exists() {
    let mut named = 0;
    for document in DOCUMENTS {
        let text = read(document);
        for (file, test) in quoted(&text).into_iter().filter_map(|words| words.split_once(".rs: ")) {
            let source = read(&format!("{file}.rs"));
            assert!(source.contains(&format!("fn {test}(")), "{document}: {file}.rs has no test {test}");
            named += 1;
        }
    }
    assert!(named > 20, "found {named} names only: was their form changed?");
}

#[test]
fn every_link_and_every_file_that_is_named_leads_somewhere() {
    for document in DOCUMENTS {
        let text = read(document);
        let base = root().join(document).parent().expect("a file has a directory").to_owned();
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.contains("://") && !link.starts_with('#')) {
            let path = base.join(link.split('#').next().unwrap_or(link));
            assert!(path.exists(), "{document}: {link}");
        }
        let is_ours = |words: &&str| {
            let first = words.split('/').next().unwrap_or_default();
            ["tests", "smtp", "queue", "src", "docs", "deploy", "benches"].contains(&first) && words.contains('/')
        };
        let plain = |words: &&str| !words.contains([' ', '*', '<', ':', '{']);
        for file in quoted(&text).into_iter().filter(is_ours).filter(plain) {
            let stem = root().join(file);
            assert!(stem.exists() || stem.with_extension("smtp").exists(), "{document}: {file}");
        }
    }
}
