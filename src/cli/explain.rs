//! `postroad explain`: where mail for an address would go now, and why. The router and the resolver
//! themselves answer, with a recorder; nothing is sent but DNS queries.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use postroad_mesh::NodeId;
use postroad_smtp::{ForwardPath, Host, Reply, Severity};
use serde::Serialize;

use super::ask::ask;
use super::mesh::dns;
use super::{Context, Failure, exit, patience};
use crate::admin::Request;
use crate::admin::mesh::{MemberView, MeshRequest, MeshView};
use crate::agent::members_on_disk;
use crate::config::{Config, parse_size};
use crate::peer::view_on_disk;
use crate::policy::mailboxes::{self, OsDirectories};
use crate::policy::{aliases, replies, rules};
use crate::route::{LocalHop, Mail, Members, NextHop, Recorder, Resolver, Route, Router, Step};
use crate::telemetry::escaped;

/// Say where mail for an address would go now, and why
///
/// Shows the route that matches with its line in the configuration, or the ways through the mesh, the MX records and addresses
/// DNS knows, what is left out of them and why, and the hops in the order of attempts with their
/// TLS policy. Asks the agent which members of the mesh it cannot reach at present, and DNS as the agent would, from an
/// empty cache, and connects to nobody. Exits with 1 when mail would be refused or returned, with 75 when it would wait.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  postroad explain user@example.org
  postroad explain a@example.org b@example.net postmaster
  postroad explain --from app@example.com user@example.org    Where members of a mesh send it out may depend on this
  postroad explain --json user@example.org | jq .outcome")]
pub(super) struct Args {
    /// An address, `postmaster`, or a domain (its postmaster is asked about)
    #[arg(required = true, value_name = "ADDRESS")]
    addresses: Vec<String>,
    /// As mail of this sender, an address or a domain; else as a notification, which is nobody's
    #[arg(long, value_name = "ADDRESS")]
    from: Option<String>,
    /// As a message of this size, such as 20MB
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "0")]
    size: u64,
}

fn size(text: &str) -> Result<u64, String> {
    parse_size(text).ok_or_else(|| "write a number of octets, or one with kB, MB or GB behind it".to_owned())
}

/// What became of one address.
#[derive(Debug, Serialize)]
struct Explanation {
    address: String,
    /// The mailbox that the address stands for, where it is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    redirected_to: Option<String>,
    steps: Vec<Step>,
    /// Whether members of the mesh send it out.
    #[serde(skip)]
    leaves_mesh: bool,
    outcome: Outcome,
    /// How often and how long it is tried, where it is not refused at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    patience: Option<Patience>,
    /// What else there is to know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
}

/// For programs and for people.
#[derive(Debug, Serialize)]
struct Patience {
    #[serde(flatten)]
    settings: serde_json::Value,
    #[serde(skip)]
    words: String,
}

#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Outcome {
    /// Into a mailbox of this host.
    Delivered { destination: String, mailbox: String },
    /// To the first of these that takes it.
    Relayed { destination: String, hops: usize },
    /// Until this user or member of the mesh comes for it.
    Kept { destination: String, user: String },
    /// Not at present.
    Waits { reply: String },
    /// Never.
    Fails { reply: String },
}

pub(super) fn run(args: Args, context: &mut Context) -> Result<(), Failure> {
    let paths = args.addresses.iter().map(|text| parse(text)).collect::<Result<Vec<_>, _>>()?;
    let from = args.from.as_deref().map(parse).transpose()?;
    let config = context.config()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let router = Router::with_members(&config, members(&config, context));
    let down = router.members().map(|_| members_down(&config)).unwrap_or_default();
    let mail =
        Mail::like(from.as_ref().and_then(ForwardPath::domain), args.size).without(down.keys().copied().collect());
    let mut worst = None;
    for path in behind_aliases(paths, &config, &router, context)? {
        let mut explanation = runtime.block_on(explain((&config, &router), &path, &mail));
        explanation.notes.extend(claimed_in_vain(&config, &path));
        let around: Vec<String> =
            down.iter().filter_map(|(node, said)| explanation.around(&router, node, said)).collect();
        explanation.notes.extend(around);
        if from.is_none() && explanation.leaves_mesh && router.members().is_some_and(|members| members.minds_sender()) {
            explanation.notes.push("which member sends it out depends on its sender: see --from".to_owned());
        }
        if context.is_json() {
            context.json(&explanation)?;
        } else {
            context.line(&explanation)?;
        }
        worst = worst.max(explanation.outcome.severity());
    }
    match worst {
        None => Ok(()),
        Some(Trouble::Waits) => Err(Failure::new(exit::TRY_LATER, "mail would wait: no hop can be found at present")),
        Some(Trouble::Fails) => Err(Failure::new(exit::FAILED, "mail would be refused or returned")),
    }
}

/// Shows what addresses stand for, and returns all that mail goes to.
fn behind_aliases(
    paths: Vec<ForwardPath>,
    config: &Config,
    router: &Router,
    context: &mut Context,
) -> Result<Vec<ForwardPath>, Failure> {
    let mut found = Vec::new();
    for path in paths {
        let Some((line, mailboxes)) = aliases::of(config, router, &path) else {
            found.push(path);
            continue;
        };
        let file = config.aliases.file().map(|file| file.display().to_string()).unwrap_or_default();
        let names: Vec<String> = mailboxes.iter().map(ToString::to_string).collect();
        let json = serde_json::json!({ "address": path.to_string(), "alias_of": names, "file": file, "line": line });
        context.say(&json, format_args!("{path} stands for {} ({file}, line {line})", names.join(", ")))?;
        found.extend(mailboxes.into_iter().map(ForwardPath::Mailbox));
    }
    Ok(found)
}

/// Returns the members of the mesh as the agent's files have them, which another user may not read.
pub(super) fn members(config: &Config, context: &mut Context) -> Option<Arc<Members>> {
    members_on_disk(config).unwrap_or_else(|error| {
        context.warn(format_args!("the mesh is left out: {error}"));
        None
    })
}

/// Returns the members that the agent could not reach just now, and what was said of each; none where no agent runs
/// that says so.
fn members_down(config: &Config) -> BTreeMap<NodeId, String> {
    let mut down = BTreeMap::new();
    let asked = ask(config, &Request::Mesh { request: MeshRequest::Status {} }, |view: MeshView| {
        let said = |member: MemberView| Some((member.node.parse().ok()?, member.down?));
        down.extend(view.members.into_iter().filter_map(said));
        Ok(())
    });
    // Without it the ways are those of a mesh whose members are all there, as ever.
    drop(asked);
    down
}

/// Says which members would have mail for this domain, if somebody granted it to them.
fn claimed_in_vain(config: &Config, path: &ForwardPath) -> Vec<String> {
    // Who may not read the files was told so.
    let Ok(view) = view_on_disk(&config.state_dir) else { return Vec::new() };
    let Some(Host::Domain(domain)) = path.mailbox().map(|mailbox| &mailbox.host) else { return Vec::new() };
    let claims = |node: &&NodeId| view.unfounded(node).contains(domain);
    let note = |node: &NodeId| {
        let (label, short, name) = (escaped(&view.label(node)), node.short(), domain.to_string());
        let record = dns::record(&name, &node.to_string());
        format!(
            "{label} claims {name} without a grant: postroad mesh grant {short} --serves {name}; or in DNS: {record}"
        )
    };
    view.records().keys().filter(claims).map(note).collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Trouble {
    Waits,
    Fails,
}

/// Reads an address; a bare domain stands for its postmaster.
fn parse(text: &str) -> Result<ForwardPath, Failure> {
    let trimmed = text.strip_prefix('<').and_then(|rest| rest.strip_suffix('>')).unwrap_or(text);
    let is_domain = !trimmed.contains('@') && trimmed.contains('.');
    let path = if is_domain { format!("postmaster@{trimmed}").parse() } else { trimmed.parse() };
    path.map_err(|fault| {
        Failure::new(exit::USAGE, format!("\"{}\" is no address: {fault}", text.escape_debug()))
            .with_remedy("write user@example.org, or only the domain")
    })
}

async fn explain((config, router): (&Config, &Router), path: &ForwardPath, mail: &Mail<'_>) -> Explanation {
    let mut recorder = Recorder::on();
    let target = router.target(path).into_owned();
    let route = router.decide(path, mail, &mut recorder);
    let patience = (!matches!(route, Route::Refused(_))).then(|| patience_of(config, router, path));
    let outcome = match route {
        Route::Local(hop) => local(config, &hop, &target, target != *path),
        Route::Smtp(_) if !rules::exists_behind(router, &target) => Outcome::of(&replies::NO_SUCH_MAILBOX_BEHIND),
        Route::Smtp(next_hop) => relayed(config, &next_hop, &mut recorder).await,
        Route::Turn(hop) => Outcome::Kept { destination: hop.key().to_string(), user: hop.user().to_owned() },
        Route::Refused(reply) => Outcome::of(&reply),
    };
    let accept = target.domain().and_then(|domain| router.accepts(domain));
    let from_everybody = |accept| format!("taken from everybody: {accept}");
    let redirected_to = (target != *path).then(|| target.to_string());
    Explanation {
        address: path.to_string(),
        redirected_to,
        leaves_mesh: target.domain().is_some_and(|domain| !router.has_home(domain)) && recorder.has_ways(),
        steps: recorder.into_steps(),
        outcome,
        patience,
        notes: accept.map(from_everybody).into_iter().collect(),
    }
}

fn patience_of(config: &Config, router: &Router, path: &ForwardPath) -> Patience {
    let (found, expire) = (router.patience(path), config.queue.expire);
    Patience { settings: patience::as_json(found, expire), words: patience::words(found, expire) }
}

fn local(config: &Config, hop: &LocalHop, target: &ForwardPath, for_postmaster: bool) -> Outcome {
    let (Some(local), Some(mailbox)) = (config.local(hop.domain()), target.mailbox()) else {
        return Outcome::Fails { reply: "the domain is not local any more".into() };
    };
    match mailboxes::resolve(local, &mailbox.local_part, for_postmaster, &OsDirectories) {
        Ok(Some(user)) => Outcome::Delivered { destination: hop.key().to_string(), mailbox: user.as_str().into() },
        Ok(None) => {
            Outcome::Fails { reply: format!("{} has no mailbox {}", hop.domain(), mailbox.local_part.as_str()) }
        }
        Err(fault) => Outcome::Waits { reply: format!("the mailbox cannot be looked up: {fault}") },
    }
}

async fn relayed(config: &Config, next_hop: &NextHop, recorder: &mut Recorder) -> Outcome {
    if let Some(member) = next_hop.members().first().filter(|member| member.comes) {
        return Outcome::Kept { destination: next_hop.key().to_string(), user: member.to_string() };
    }
    let resolver = match Resolver::new(config) {
        Ok(resolver) => resolver,
        Err(fault) => return Outcome::Waits { reply: fault.to_string() },
    };
    match resolver.resolve_recorded(next_hop, recorder).await {
        Ok(found) => Outcome::Relayed { destination: next_hop.key().to_string(), hops: found.hops.len() },
        Err(error) => Outcome::of(&Reply::from(&error)),
    }
}

impl Explanation {
    /// Says that a member cannot be reached, where it is on a way.
    fn around(&self, router: &Router, node: &NodeId, said: &str) -> Option<String> {
        let name = format!("{} ({})", router.members()?.label(node), node.short());
        let ways = self.steps.iter().filter_map(|step| match step {
            Step::Mesh { choices } => Some(choices),
            _ => None,
        });
        ways.flatten().any(|way| way.contains(&name)).then(|| {
            let (name, said) = (escaped(&name), escaped(said));
            format!("{name} cannot be reached at present, other ways come before: {said}")
        })
    }
}

impl Outcome {
    fn of(reply: &Reply) -> Outcome {
        let text = reply.to_string();
        match reply.severity() {
            Severity::Transient => Outcome::Waits { reply: text },
            _ => Outcome::Fails { reply: text },
        }
    }

    fn severity(&self) -> Option<Trouble> {
        match self {
            Outcome::Delivered { .. } | Outcome::Relayed { .. } | Outcome::Kept { .. } => None,
            Outcome::Waits { .. } => Some(Trouble::Waits),
            Outcome::Fails { .. } => Some(Trouble::Fails),
        }
    }
}

impl fmt::Display for Explanation {
    /// The address, a line for each step, and what comes of it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.address)?;
        if let Some(target) = &self.redirected_to {
            write!(f, " goes to {target}")?;
        }
        for step in &self.steps {
            write!(f, "\n  {step}")?;
        }
        if let Some(patience) = &self.patience {
            write!(f, "\n  {}", patience.words)?;
        }
        for note in &self.notes {
            write!(f, "\n  {note}")?;
        }
        match &self.outcome {
            Outcome::Delivered { mailbox, .. } => write!(f, "\n=> delivered into the mailbox {mailbox}"),
            Outcome::Relayed { hops: 1, .. } => f.write_str("\n=> relayed to this hop"),
            Outcome::Relayed { hops, .. } => write!(f, "\n=> relayed to the first of these {hops} hops that takes it"),
            Outcome::Kept { user, .. } => write!(f, "\n=> waits until {user} fetches it"),
            Outcome::Waits { reply } => write!(f, "\n=> waits and is tried again: {reply}"),
            Outcome::Fails { reply } => write!(f, "\n=> refused or returned: {reply}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn explained(settings: &str, address: &str) -> String {
        let config = Config::from_str(settings, "test", Path::new("/etc")).unwrap_or_else(|faults| panic!("{faults}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let path = parse(address).expect("an address");
        runtime.block_on(explain((&config, &Router::new(&config)), &path, &Mail::default())).to_string()
    }

    const SETTINGS: &str = r#"
hostname = "me.example"
postmaster = "alice@home.example"
[[local]]
domain = "home.example"
lmtp = "unix:/run/lmtp"
recipients = ["alice"]
[[route]]
domain = "corp.example"
via = "[192.0.2.9]:2525"
tls = "required"
retry_first = "10m"
retry_max = "10m"
expire = "2d"
[[route]]
domain = "backup.example"
via = "[192.0.2.9]:25"
accept = ["sales"]
"#;

    #[test]
    fn text_says_which_line_decides_and_what_comes_of_it() {
        for (address, want) in [
            (
                "u@corp.example",
                "<u@corp.example>\n  \
                 route \"corp.example\" matches: via [192.0.2.9]:2525 (TLS required) (configuration line 9)\n  \
                 destination host:192.0.2.9:2525/required/route1\n  \
                 hop [192.0.2.9] 192.0.2.9:2525, TLS required\n  \
                 what is put off is tried again every 10m; the sender hears of it after 4h; it is returned after 2d\n=> relayed to this hop",
            ),
            (
                "postmaster",
                "<Postmaster> goes to <alice@home.example>\n  \
                 home.example is delivered on this host (configuration line 5)\n  \
                 destination local:home.example\n  \
                 what is put off is tried again after 5m, 10m and so on up to 4h; the sender hears of it after 4h; \
                 it is returned after 5d\n=> delivered into the mailbox alice",
            ),
            (
                "<bob@home.example>",
                "<bob@home.example>\n  \
                 home.example is delivered on this host (configuration line 5)\n  \
                 destination local:home.example\n  \
                 what is put off is tried again after 5m, 10m and so on up to 4h; the sender hears of it after 4h; \
                 it is returned after 5d\n=> refused or returned: home.example has no mailbox bob",
            ),
            (
                "sales@backup.example",
                "<sales@backup.example>\n  \
                 route \"backup.example\" matches: via [192.0.2.9]:25 (TLS opportunistic) (configuration line 16)\n  \
                 destination host:192.0.2.9:25\n  \
                 hop [192.0.2.9] 192.0.2.9:25, TLS opportunistic\n  \
                 what is put off is tried again after 5m, 10m and so on up to 4h; the sender hears of it after 4h; \
                 it is returned after 5d\n  \
                 taken from everybody: 1 recipient\n=> relayed to this hop",
            ),
            (
                "bob@backup.example",
                "<bob@backup.example>\n  \
                 route \"backup.example\" matches: via [192.0.2.9]:25 (TLS opportunistic) (configuration line 16)\n  \
                 destination host:192.0.2.9:25\n  \
                 what is put off is tried again after 5m, 10m and so on up to 4h; the sender hears of it after 4h; \
                 it is returned after 5d\n  \
                 taken from everybody: 1 recipient\n\
                 => refused or returned: 550 5.1.1 this domain has no mailbox of this name; check the spelling",
            ),
        ] {
            assert_eq!(explained(SETTINGS, address), want, "{address}");
        }
    }

    #[test]
    fn a_bare_domain_stands_for_its_postmaster_and_nonsense_is_named() {
        assert_eq!(parse("corp.example").expect("a domain").to_string(), "<postmaster@corp.example>");
        for text in ["", "nobody", "a@", "a b@c.example", "a@b\u{1b}[2J"] {
            assert_eq!(parse(text).expect_err(text).code(), exit::USAGE, "{text}");
        }
    }
}
