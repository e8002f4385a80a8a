//! The aliases file: names of this host that stand for other addresses, in the form that every sendmail reads
//! (`root: admin@example.org`).
//!
//! Read whole with the configuration, and expanded then: a loop, a name that stands twice and a list that grows
//! without bound are faults of the file, with their place, and never of a message. Programs, files and lists in
//! other files are refused: no program is ever started for mail, and nothing is written where a line says.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use postroad_smtp::{Domain, Host, LocalPart, Mailbox};

use super::fault;
use super::user_name::SUBADDRESS_SEPARATOR;

/// The longest aliases file read, in octets.
const FILE_OCTETS_MAX: u64 = 1 << 20;
/// Names that one name stands for, in the end.
const TARGETS_MAX: usize = 1000;
/// Names that lead to one another.
const DEPTH_MAX: usize = 10;
/// Faults shown of one file.
const FAULTS_MAX: usize = 20;

/// What names stand for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Aliases {
    file: Option<PathBuf>,
    names: HashMap<String, Alias>,
}

/// What one name stands for, in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Alias {
    line: usize,
    targets: Vec<Target>,
}

/// One of those that a name stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    /// A mailbox of the domain that was written to.
    Here(LocalPart),
    /// Another address.
    At(Mailbox),
}

/// What is wrong, and where; both from 1, the column in characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AliasFault {
    pub line: usize,
    pub column: usize,
    pub message: String,
    pub remedy: String,
}

impl Aliases {
    /// Returns the file they come from.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Returns how many names there are.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Returns what a name at a domain stands for, each once, and the line that says so; `None`: itself. A
    /// name with a tag (`root+cron`) is that without it, unless the file has it.
    pub fn expand(&self, local_part: &LocalPart, domain: &Domain) -> Option<(usize, Vec<Mailbox>)> {
        let name = local_part.unquoted().to_lowercase();
        let untagged = || self.names.get(name.split_once(SUBADDRESS_SEPARATOR)?.0);
        let alias = self.names.get(&name).or_else(untagged)?;
        let mailbox = |target: &Target| match target {
            Target::Here(local_part) => Mailbox { local_part: local_part.clone(), host: Host::Domain(domain.clone()) },
            Target::At(mailbox) => mailbox.clone(),
        };
        Some((alias.line, alias.targets.iter().map(mailbox).collect()))
    }
}

/// Reads a file for a host whose own domains are these.
///
/// # Errors
/// Every fault of it, or that it cannot be read, at its first line.
pub(super) fn read(path: &Path, is_own: &dyn Fn(&Domain) -> bool) -> Result<Aliases, Vec<AliasFault>> {
    let unreadable = |why: String| {
        let remedy = "check the path, and that the agent's user may read it".to_owned();
        vec![AliasFault { line: 1, column: 1, message: format!("it cannot be read: {why}"), remedy }]
    };
    let text = read_text(path).map_err(|error| unreadable(error.to_string()))?;
    let mut faults = Vec::new();
    let entries = parse(&text, &mut faults);
    let names = resolve(&entries, is_own, &text, &mut faults);
    faults.sort_by_key(|fault| (fault.line, fault.column));
    faults.truncate(FAULTS_MAX);
    if faults.is_empty() { Ok(Aliases { file: Some(path.to_owned()), names }) } else { Err(faults) }
}

fn read_text(path: &Path) -> std::io::Result<String> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(std::io::Error::other("it is no regular file"));
    }
    let mut text = String::new();
    let octets = std::fs::File::open(path)?.take(FILE_OCTETS_MAX + 1).read_to_string(&mut text)?;
    if octets as u64 > FILE_OCTETS_MAX {
        return Err(std::io::Error::other("it is longer than 1 MiB"));
    }
    Ok(text)
}

/// A name and what its line says that it stands for.
struct Entry<'t> {
    name: String,
    /// Where it stands.
    at: usize,
    targets: Vec<Word<'t>>,
}

/// A piece of the text, without quotes, and where it stands.
struct Word<'t> {
    text: &'t str,
    at: usize,
    /// It has a backslash in front: it is no alias again.
    is_last: bool,
}

fn fault(text: &str, at: usize, message: String, remedy: &str) -> AliasFault {
    let (line, column) = fault::line_column(text, at);
    AliasFault { line, column, message, remedy: remedy.to_owned() }
}

/// Reads the lines: `name: target, target`, comments, and lines that go on with a blank in front.
fn parse<'t>(text: &'t str, faults: &mut Vec<AliasFault>) -> Vec<Entry<'t>> {
    let (mut entries, mut at): (Vec<Entry<'t>>, _) = (Vec::new(), 0);
    for line in text.split_inclusive('\n') {
        let start = at;
        at += line.len();
        let content = line.trim_end();
        if content.trim_start().is_empty() || content.trim_start().starts_with('#') {
            continue;
        }
        if content.starts_with([' ', '\t']) {
            match entries.last_mut() {
                Some(entry) => entry.targets.extend(words(content, start)),
                None => faults.push(fault(
                    text,
                    start,
                    "this line goes on with none before it".into(),
                    "write name: address at the beginning of the line",
                )),
            }
            continue;
        }
        let colon = quoted_end(content, ':');
        let name = content[..colon].trim();
        let name = name.strip_prefix('"').and_then(|name| name.strip_suffix('"')).unwrap_or(name);
        if colon == content.len() {
            let message = format!("there is no colon behind {:?}", shown(name));
            faults.push(fault(text, start, message, "write name: address"));
        } else if name.is_empty() || name.contains('@') {
            let message = format!("{:?} is no name of this host", shown(name));
            faults.push(fault(text, start, message, "write the part before the @ alone"));
        } else {
            let targets = words(&content[colon + 1..], start + colon + 1).collect();
            entries.push(Entry { name: name.to_lowercase(), at: start, targets });
        }
    }
    entries
}

fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

/// Returns the place of the first such character outside of quotes, or the end.
fn quoted_end(text: &str, wanted: char) -> usize {
    let mut is_quoted = false;
    let found = text.char_indices().find(|(_, c)| {
        is_quoted ^= *c == '"';
        *c == wanted && !is_quoted
    });
    found.map_or(text.len(), |(at, _)| at)
}

/// Cuts a list at its commas.
fn words(list: &str, start: usize) -> impl Iterator<Item = Word<'_>> {
    let mut rest = Some(list);
    let mut at = start;
    std::iter::from_fn(move || {
        let text = rest?;
        let end = quoted_end(text, ',');
        let word = text[..end].trim_start();
        let place = at + (end - word.len());
        at += end + 1;
        rest = text.get(end + 1..);
        let word = word.trim_end();
        let is_last = word.starts_with('\\');
        Some(Word { text: word.strip_prefix('\\').unwrap_or(word), at: place, is_last })
    })
    .filter(|word| !word.text.is_empty())
}

/// Follows every name to those that it stands for in the end.
fn resolve(
    entries: &[Entry<'_>],
    is_own: &dyn Fn(&Domain) -> bool,
    text: &str,
    faults: &mut Vec<AliasFault>,
) -> HashMap<String, Alias> {
    let mut by_name: HashMap<&str, (usize, Vec<Next>)> = HashMap::new();
    for entry in entries {
        let mut targets = Vec::new();
        for word in &entry.targets {
            match next(word, is_own) {
                Ok(next) => targets.push(next),
                Err((message, remedy)) => faults.push(fault(text, word.at, message, remedy)),
            }
        }
        if entry.targets.is_empty() {
            let message = format!("{} stands for nobody", shown(&entry.name));
            faults.push(fault(text, entry.at, message, "write name: address, or take the line out"));
        }
        if let Some((first, _)) = by_name.insert(&entry.name, (entry.at, targets)) {
            let (line, _) = fault::line_column(text, first);
            let message = format!("{} stands here a second time, first in line {line}", shown(&entry.name));
            faults.push(fault(text, entry.at, message, "keep one line for each name, with all its addresses"));
        }
    }
    let mut names = HashMap::new();
    for (name, (at, _)) in &by_name {
        let mut found = BTreeSet::new();
        match follow(name, &by_name, &mut Way::default(), &mut found) {
            Ok(()) => {
                let line = fault::line_column(text, *at).0;
                names.insert((*name).to_owned(), Alias { line, targets: found.into_iter().collect() });
            }
            Err(what) => {
                let message = format!("{}: {what}", shown(name));
                faults.push(fault(text, *at, message, "let each name lead to addresses in the end"));
            }
        }
    }
    names
}

/// What a word says.
enum Next {
    /// A name of this host, perhaps an alias; in which of its domains, where the word says so.
    Name(LocalPart, Option<Domain>),
    /// The end of the way.
    End(Target),
}

fn next(word: &Word<'_>, is_own: &dyn Fn(&Domain) -> bool) -> Result<Next, (String, &'static str)> {
    let bare = word.text.trim_start_matches('"');
    let refusal = match bare.chars().next() {
        Some('|') => Some(("a program", "mail is never handed to a program; let a job read a Maildir")),
        Some('/') => {
            Some(("a file", "mail is never written into a file that a line names; use a [[local]] with a maildir"))
        }
        Some(':') => {
            Some(("a list in another file", "write the addresses here, or hand the list to a list server by LMTP"))
        }
        _ => None,
    };
    if let Some((what, remedy)) = refusal {
        return Err((format!("{:?} is {what}", shown(word.text)), remedy));
    }
    let malformed = |why: &dyn std::fmt::Display| {
        (format!("{:?} is no address: {why}", shown(word.text)), "write a name of this host or user@example.org")
    };
    if !word.text.contains('@') {
        let local_part: LocalPart = word.text.parse().map_err(|why| malformed(&why))?;
        return Ok(if word.is_last { Next::End(Target::Here(local_part)) } else { Next::Name(local_part, None) });
    }
    let mailbox: Mailbox = word.text.parse().map_err(|why| malformed(&why))?;
    match mailbox.domain().filter(|domain| is_own(domain) && !word.is_last) {
        Some(domain) => Ok(Next::Name(mailbox.local_part.clone(), Some(domain.clone()))),
        None => Ok(Next::End(Target::At(mailbox))),
    }
}

/// The names that were followed for one name.
#[derive(Default)]
struct Way<'n> {
    /// Those that led here.
    path: Vec<&'n str>,
    /// Those that are done: nothing is followed twice.
    done: HashSet<&'n str>,
}

/// Collects what a name stands for in the end. A name that stands for itself among others is a mailbox.
fn follow<'n>(
    name: &'n str,
    by_name: &'n HashMap<&str, (usize, Vec<Next>)>,
    way: &mut Way<'n>,
    found: &mut BTreeSet<Target>,
) -> Result<(), String> {
    let Some((_, targets)) = by_name.get(name).filter(|_| !way.done.contains(name)) else { return Ok(()) };
    if way.path.len() >= DEPTH_MAX {
        return Err(format!("more than {DEPTH_MAX} names lead to one another"));
    }
    way.path.push(name);
    for target in targets {
        match target {
            Next::End(target) => drop(found.insert(target.clone())),
            Next::Name(local_part, domain) => {
                let key = local_part.unquoted().to_lowercase();
                match by_name.get_key_value(&*key) {
                    Some((key, _)) if *key != name => {
                        if way.path.contains(key) {
                            return Err(format!("it leads back to {}", shown(key)));
                        }
                        follow(key, by_name, way, found)?;
                    }
                    _ => drop(found.insert(match domain {
                        Some(domain) => {
                            let (local_part, host) = (local_part.clone(), Host::Domain(domain.clone()));
                            Target::At(Mailbox { local_part, host })
                        }
                        None => Target::Here(local_part.clone()),
                    })),
                }
            }
        }
        if found.len() > TARGETS_MAX {
            return Err(format!("it stands for more than {TARGETS_MAX} addresses"));
        }
    }
    way.path.pop();
    way.done.insert(name);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aliases(text: &str) -> Result<Aliases, Vec<AliasFault>> {
        let directory = tempfile::tempdir().expect("scratch");
        let path = directory.path().join("aliases");
        std::fs::write(&path, text).expect("written");
        read(&path, &|domain| domain.as_str() == "host.example")
    }

    fn expanded(text: &str, name: &str) -> Option<Vec<String>> {
        let aliases = aliases(text).unwrap_or_else(|faults| panic!("{faults:?}"));
        let domain = "local.example".parse().expect("a domain");
        let (_, targets) = aliases.expand(&name.parse().expect("a name"), &domain)?;
        Some(targets.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_name_stands_for_others() {
        let text = "# See man 5 aliases\nmailer-daemon: postmaster\npostmaster: root\n\nRoot:\tadmin@example.org,\n  bob\n\
                    # between\n\t\"c d\"@example.org, bob\nbob: bob, b@example.net\n\"x y\": root@host.example\n\
                    kept: \\kept, \\root\n";
        let root = ["bob@local.example", "\"c d\"@example.org", "admin@example.org", "b@example.net"];
        for (name, want) in [
            ("root", Some(&root[..])),
            ("ROOT", Some(&root)),
            ("root+cron", Some(&root)),
            ("mailer-daemon", Some(&root)),
            ("\"x y\"", Some(&root)),
            ("bob", Some(&["bob@local.example", "b@example.net"])),
            ("kept", Some(&["kept@local.example", "root@local.example"])),
            ("alice", None),
            ("rooted", None),
        ] {
            let mut found = expanded(text, name);
            if let Some(found) = &mut found {
                found.sort();
            }
            let want = want.map(|want| {
                let mut want: Vec<String> = want.iter().map(ToString::to_string).collect();
                want.sort();
                want
            });
            assert_eq!(found, want, "{name}");
        }
    }

    #[test]
    fn every_fault_has_its_place() {
        for (text, line, column, said) in [
            ("root: |/bin/sh", 1, 7, "is a program"),
            ("root: a,\n  \"|sh -c x, y\"", 2, 3, "is a program"),
            ("root: a, /dev/null", 1, 10, "is a file"),
            ("\nlist: :include:/etc/list", 2, 7, "is a list in another file"),
            ("root", 1, 1, "no colon"),
            ("root:", 1, 1, "stands for nobody"),
            ("  root: x", 1, 1, "goes on with none"),
            ("root@example.org: x", 1, 1, "no name of this host"),
            ("root: a b", 1, 7, "is no address"),
            ("root: é@@x", 1, 7, "is no address"),
            ("é: x, |y", 1, 7, "is a program"),
            ("a: x\nA: y", 2, 1, "a second time, first in line 1"),
            ("a: b\nb: c, x\nc: a", 1, 1, "it leads back to a"),
            ("a: b\nb: a@host.example", 1, 1, "it leads back to a"),
        ] {
            let faults = aliases(text).expect_err(text);
            let found = faults.iter().find(|fault| fault.message.contains(said));
            let found = found.unwrap_or_else(|| panic!("{text}: {faults:?}"));
            assert_eq!((found.line, found.column), (line, column), "{text}");
        }
        let deep: String = (0..20).map(|n| format!("a{n}: a{}\n", n + 1)).collect();
        let wide = format!("a: {}", (0..=TARGETS_MAX).map(|n| format!("b{n},")).collect::<String>());
        let cross: String = (0..9).map(|n| format!("c{n}: c{}, c{}\nd{n}: c{n}\n", n + 1, n + 2)).collect();
        for (text, said) in [(&deep, "more than 10 names"), (&wide, "more than 1000 addresses")] {
            let faults = aliases(text).expect_err("too much");
            assert!(faults.iter().any(|fault| fault.message.contains(said)), "{faults:?}");
        }
        assert!(aliases(&cross).is_ok(), "ways that meet again are no loop");
        assert!(read(Path::new("/nonexistent"), &|_| false).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics_the_reader(text in "[ab:,\\\\ \\n\\t#\"|@é]{0,60}") {
            let _ = aliases(&text);
        }
    }
}
