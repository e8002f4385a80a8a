//! What the demo says at its end: the ledger, the way of one message, and what to try by hand.

use std::path::{Path, PathBuf};

use clap::builder::styling::{AnsiColor, Style};

use crate::cli::{Context, Failure};
use crate::demo::letters::{DESTINATION, MAILBOXES, SENDER};
use crate::demo::site::Host;
use crate::demo::{Demo, Outcome};

const GOOD: Style = Style::new().bold().fg_color(Some(clap::builder::styling::Color::Ansi(AnsiColor::Green)));
const BAD: Style = Style::new().bold().fg_color(Some(clap::builder::styling::Color::Ansi(AnsiColor::Red)));
const HEAD: Style = Style::new().bold();

/// How many lost copies are named.
const LOST_SHOWN: usize = 10;

/// Prints the books.
pub(super) fn ledger(outcome: &Outcome, context: &mut Context) -> Result<(), Failure> {
    let tally = &outcome.tally;
    let (style, verdict) = match outcome.is_balanced {
        true => (GOOD, "The ledger balances: everything accepted was delivered, octet for octet"),
        false => (BAD, "The ledger does not balance"),
    };
    context.line(format_args!("\n{style}{verdict}{style:#}\n"))?;
    let row = |name: &str, count: u64, note: &str| format!("  {name:<16}{count:>6}  {note}").trim_end().to_owned();
    context.line(row("accepted by a", tally.letters, "letters, each with a 250"))?;
    context.line(row("owed", tally.owed, "copies: one for each recipient"))?;
    context.line(row("delivered by c", tally.delivered, "copies, compared with what was submitted"))?;
    context.line(row("lost", outcome.missing.len() as u64, ""))?;
    context.line(row("altered", tally.altered.len() as u64, ""))?;
    let twice = if tally.duplicates == 0 { "" } else { "c had taken them, but b was killed before it heard the 250" };
    context.line(row("delivered twice", tally.duplicates, twice))?;
    context.line(format_args!("\n  {:.1} s", outcome.took.as_secs_f64()))?;
    for (id, mailbox) in outcome.missing.iter().take(LOST_SHOWN) {
        context.line(format_args!("  {BAD}lost{BAD:#} <{id}> to {mailbox}"))?;
    }
    for path in tally.altered.iter().take(LOST_SHOWN) {
        context.line(format_args!("  {BAD}altered{BAD:#} {}", path.display()))?;
    }
    Ok(())
}

/// Prints the way of one message as its trace fields tell it.
pub(super) fn way(outcome: &Outcome, context: &mut Context) -> Result<(), Failure> {
    let Some(way) = &outcome.way else { return Ok(()) };
    context.line(format_args!("\n{HEAD}The way of one letter{HEAD:#} ({}), from its Received fields\n", way.kind))?;
    for hop in &way.hops {
        context.line(format_args!("  {}", hop_line(hop)))?;
    }
    context.line(format_args!("  {}", way.file.display()))
}

/// `by a.demo.test with ESMTPSA TLSv1.3 id …`: the clauses that a person looks for.
fn hop_line(field: &str) -> String {
    let (clauses, date) = field.rsplit_once(';').unwrap_or((field, ""));
    let words: Vec<&str> = clauses.split_whitespace().collect();
    let after = |name: &str| {
        let at = words.iter().position(|word| *word == name)?;
        words.get(at + 1).copied()
    };
    let tls =
        words.iter().find_map(|word| word.strip_prefix("(TLS")).map_or("no TLS".to_owned(), |tls| format!("TLS{tls}"));
    let from = after("from").unwrap_or("itself");
    let [by, with, id] = ["by", "with", "id"].map(|name| after(name).unwrap_or("?"));
    let time = date.split_whitespace().find(|word| word.contains(':')).unwrap_or("?");
    format!("{time}  {by}  {with:<11} {tls}  id {id}  from {from}")
}

/// Prints how to go on by hand.
pub(super) fn what_next(demo: &Demo, context: &mut Context) -> Result<(), Failure> {
    let (site, login) = (&demo.site, &demo.login);
    let program = program();
    let program = program.display();
    let (submission, submissions) = (site.submission(), site.submissions());
    let config = |host: Host| site.config_file(host);
    let others = MAILBOXES[1..].iter().map(|name| format!("{name}@{DESTINATION}")).collect::<Vec<_>>().join(", ");
    let to = format!("{}@{DESTINATION}", MAILBOXES[0]);
    let dir = site.dir.display();
    let password = &login.password;
    let rows = [
        (
            "mail client",
            format!(
                "server {}, port {} with STARTTLS or {} with TLS",
                submission.ip(),
                submission.port(),
                submissions.port()
            ),
        ),
        ("", format!("user {SENDER}, password {password}")),
        ("", format!("write to {to}, {others}")),
        ("swaks", format!("swaks --server {submission} -tls --from {SENDER} --to {to} \\")),
        ("", format!("      --auth-user {SENDER} --auth-password {password}")),
        ("postroad send", format!("echo hello | POSTROAD_PASSWORD={password} \\")),
        ("", format!("      {program} send --server {submission} --user {SENDER} --to {to}")),
        ("what arrived", format!("ls {}", site.mailboxes().join(MAILBOXES[0]).join("new").display())),
        ("queues", format!("{program} --config {} queue list", config(Host::B).display())),
        ("", format!("{program} --config {} queue stats", config(Host::B).display())),
        ("a route", format!("{program} --config {} explain {to}", config(Host::A).display())),
        ("a bounce", format!("send to nobody@{DESTINATION}, then look into {}", site.sender_mailboxes().display())),
        ("metrics of b", format!("curl -s http://{}/metrics", site.metrics())),
        ("logs", format!("tail -f {dir}/?/log")),
    ];
    context.line(format_args!("\n{HEAD}All three agents stay up.{HEAD:#} Try in another terminal:\n"))?;
    for (name, text) in rows {
        context.line(format_args!("  {name:<14} {text}"))?;
    }
    let kept = if demo.is_kept() { "keeps" } else { "removes" };
    context.line(format_args!("\nCtrl-C ends the agents and {kept} {dir}."))
}

/// This program as a person would write it here.
fn program() -> PathBuf {
    let Ok(path) = std::env::current_exe() else { return PathBuf::from("postroad") };
    let here = std::env::current_dir().ok();
    let relative = here.and_then(|here| path.strip_prefix(here).ok().map(Path::to_owned));
    match relative {
        Some(name) if name.components().count() == 1 => Path::new(".").join(name),
        Some(relative) => relative,
        None => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hop_shows_what_people_look_for() {
        let field = "from a.demo.test ([127.0.0.1]) by b.demo.test with ESMTPS (TLSv1.3 TLS_AES_256_GCM_SHA384) \
                     id 0MCC5RM000007 for <alice@office.test>; Sun, 22 Nov 2026 07:09:15 +0000";
        let line = hop_line(field);
        assert_eq!(line, "07:09:15  b.demo.test  ESMTPS      TLSv1.3  id 0MCC5RM000007  from a.demo.test");
        assert!(hop_line("garbage").contains('?'));
    }
}
