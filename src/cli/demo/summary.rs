//! What the demo says at its end: the ledger, the way of one message, and what to try by hand.

use std::path::{Path, PathBuf};

use clap::builder::styling::{AnsiColor, Style};

use crate::admin::trace::TraceView;
use crate::cli::{Context, Failure, trace};
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
    context.line(row("delivered twice", tally.duplicates, "c knows again what b repeats after its restart"))?;
    context.line(row("went around b", tally.around, "copies, straight from a while b was dead"))?;
    context.line(format_args!("\n  {:.1} s", outcome.took.as_secs_f64()))?;
    for (id, mailbox) in outcome.missing.iter().take(LOST_SHOWN) {
        context.line(format_args!("  {BAD}lost{BAD:#} <{id}> to {mailbox}"))?;
    }
    for path in tally.altered.iter().take(LOST_SHOWN) {
        context.line(format_args!("  {BAD}altered{BAD:#} {}", path.display()))?;
    }
    Ok(())
}

/// Prints what all hosts tell of one letter that went over all of them.
pub(super) fn trace(id: &str, views: &[TraceView], context: &mut Context) -> Result<(), Failure> {
    if views.is_empty() {
        return Ok(());
    }
    context.line(format_args!("\n{HEAD}One letter over all hosts{HEAD:#}: postroad trace '<{id}>' at a\n"))?;
    trace::print(views, context)
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
        ("the mesh", format!("{program} --config {} mesh status", config(Host::A).display())),
        ("", format!("{program} --config {} mesh map", config(Host::A).display())),
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
