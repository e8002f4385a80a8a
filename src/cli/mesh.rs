//! `postroad mesh`: how hosts become one mesh, and what it looks like from here.

mod candidates;
pub(super) mod dns;
mod govern;
mod map;
mod svg;

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::ask::ask;
use super::{Context, Failure};
use crate::admin::Request;
use crate::admin::mesh::{
    CandidatesView, CardView, DnsView, InviteView, MemberView, MeshRequest, MeshView, PingView, VoteView, VotesView,
};
use crate::clock::millis;
use crate::config::{parse_duration, show_duration};
use crate::telemetry::escaped;

/// How many characters of a node id people are shown.
const SHORT_CHARS: usize = 8;

/// Make hosts one mesh, and look at it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  postroad mesh invite                            On a host: makes the mesh when there is none
  postroad mesh join mesh1:mx.example.org:25:…    On another host: two hosts are a mesh
  postroad mesh invite --serves lab.example --ttl 1d --uses 5
  postroad mesh status
  postroad mesh map                               Which way mail goes from here, and what it costs
  postroad mesh grant lab --serves lab.example    What lab was not granted when it was invited
  postroad mesh revoke lab --reason stolen        On two members: lab is a member no more
  postroad mesh card                              With no network between them: on the new host
  postroad mesh admit card1:… --label lab         … and on a member")]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Make a mesh with this host as its first member
    Init {
        /// What the mesh is called; default the name of this host
        #[arg(long)]
        label: Option<String>,
        /// How many independent voices make a member; the same for all the life of the mesh
        #[arg(long, value_name = "N", default_value_t = 1)]
        admit_by: u8,
        /// How many independent voices end a membership
        #[arg(long, value_name = "N", default_value_t = 2)]
        revoke_by: u8,
        /// A host that founds it as well, with a voice of its own: what `postroad mesh card` printed there; may
        /// stand several times
        #[arg(long, value_name = "CARD")]
        with: Vec<String>,
    },
    /// Invite hosts; prints what to say on them. Makes the mesh when there is none
    Invite {
        /// How long the invitation is open
        #[arg(long, default_value = "1h", value_parser = duration)]
        ttl: Duration,
        /// How many hosts may join by it
        #[arg(long, default_value_t = 1)]
        uses: u32,
        #[command(flatten)]
        rights: Rights,
    },
    /// Join a mesh by an invitation
    Join {
        /// What `postroad mesh invite` printed on a member
        token: String,
    },
    /// Print what this host shows of itself to be admitted without an invitation
    Card,
    /// Admit a host by its card; prints what to say on it
    Admit {
        /// What `postroad mesh card` printed there
        card: String,
        /// What the host is called
        #[arg(long)]
        label: Option<String>,
        #[command(flatten)]
        rights: Rights,
    },
    /// Grant a member domains or rights that it was not admitted with
    #[command(after_help = "\
Examples:
  postroad mesh grant lab --serves lab.example
  postroad mesh grant k5x2q7ab --caps trace")]
    Grant {
        /// Its label, its id, or what its id begins with
        node: String,
        /// What it may do besides: relay, admit, trace, queue, custody, with commas between them
        #[arg(long, default_value = "")]
        caps: String,
        /// A domain whose mail it may take, with all below it; may stand several times
        #[arg(long, value_name = "DOMAIN")]
        serves: Vec<String>,
    },
    /// Show the members, the links of this host, and what is not in order
    Status,
    /// Show where members may be found, and how each address did
    #[command(after_help = "\
The addresses of a member stand in the order in which they are tried: from [mesh] peers (configured), as it says of
itself (directory), from the invitation by which this host joined, from SRV records of [mesh] domain (srv). Whoever
answers has to have its key. Addresses without a member are nobody's that is known here, and are not dialled.

Examples:
  postroad mesh candidates
  postroad mesh candidates --json | jq '.candidates[] | select(.failures > 0)'")]
    Candidates,
    /// Print what to publish in DNS: which domains are this host's, and where it is
    #[command(after_help = "\
Lines of a zone file, with comments. The TXT records prove to every member that mail for these domains is for this
host, as a grant does; several hosts of one domain have a record each. With [mesh] domain, SRV records lead members
to this host that do not find it elsewhere.

Examples:
  postroad mesh dns >> example.org.zone
  postroad mesh dns --json | jq -r '.records[] | [.name, .kind, .data] | @tsv'")]
    Dns,
    /// Draw the mesh as mail from here sees it: members, links with their cost, the cheapest ways
    #[command(after_help = "\
On a terminal a drawing: each member stands below the one before it on the cheapest way from here, behind the
cost of the link between them; a double line is a link that is open now. Then the costs of all links, from the
member of the line to the member of the column.

Columns in a pipe, separated by tabs: `node`, label, id, site, reach, cost of the way there, the members on it
(separated by >), its domains (by commas), where it sends mail out to, domains it claims in vain;
`link`, label of one end, of the other, cost, cost back, `open` or `stated`, `used` on a cheapest way or `-`.

Examples:
  postroad mesh map
  postroad mesh map --svg mesh.svg                A drawing for a page or a report
  postroad mesh map --json | jq '.nodes[] | {label, cost}'")]
    Map {
        /// Write a drawing to this file instead, readable on light and dark ground; - is standard output
        #[arg(long, value_name = "FILE")]
        svg: Option<PathBuf>,
    },
    /// Say that a node is to be a member no more; with enough voices its sessions end everywhere
    Revoke {
        /// Its label, its id, or what its id begins with
        node: String,
        /// Why, for the others
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Take a node for no member on this host, whatever the others say
    Refuse {
        /// Its label, its id, or what its id begins with
        node: String,
        /// Take it for a member again
        #[arg(long)]
        lift: bool,
    },
    /// Show which admissions and revocations lack voices, or add this host's voice to one
    #[command(after_help = "\
Examples:
  postroad mesh vote          What lacks voices, and who spoke for it
  postroad mesh vote lab      This host agrees")]
    Vote {
        /// Whom it is about: a label, an id, or what an id begins with
        node: Option<String>,
    },
    /// Let of a member's mail only a trickle leave the mesh here; within the mesh it goes on
    Contain {
        /// Its label, its id, or what its id begins with
        node: String,
        /// Let its mail leave again
        #[arg(long)]
        lift: bool,
    },
    /// Go on under a new key, as a habit or when somebody may have read the old one
    #[command(after_help = "\
Both keys are good until every member has heard of the new one, and no longer than [mesh] old_key says; `postroad
mesh status` shows who has not heard. Nobody has to wait for it.

Examples:
  postroad mesh rotate
  postroad mesh rotate --finish   Somebody has the old key: it is worth nothing from now on")]
    Rotate {
        /// Give the old key up now, whoever has not heard of the new one
        #[arg(long)]
        finish: bool,
    },
    /// Leave the mesh and forget it, when no mail waits here for its members
    Leave {
        /// Although mail waits for members: it goes on as that of a host in no mesh does
        #[arg(long)]
        now: bool,
    },
    /// Ask a member whether it is there, through others where no link leads
    Ping {
        /// Its label, its id, or what its id begins with
        node: String,
    },
}

#[derive(Debug, clap::Args)]
struct Rights {
    /// What they may do: relay, admit, trace, queue, custody, with commas between them
    #[arg(long, default_value = "relay")]
    caps: String,
    /// A domain whose mail they may take, with all below it; may stand several times
    #[arg(long, value_name = "DOMAIN")]
    serves: Vec<String>,
}

pub(super) fn run(args: Args, context: &mut Context) -> Result<(), Failure> {
    match args.action {
        Action::Init { label, admit_by, revoke_by, with } => {
            let view: MeshView = request(context, MeshRequest::Init { label, admit_by, revoke_by, founders: with })?;
            print(context, &view, |view| [vec![summary(view)], govern::policy(view)].concat())
        }
        Action::Invite { ttl, uses, rights } => {
            let Rights { caps, serves } = rights;
            let view = request(context, MeshRequest::Invite { ttl_ms: millis(ttl), uses, caps, serves })?;
            let hosts = if uses == 1 { "one host".to_owned() } else { format!("{uses} hosts") };
            let open = format!("open for {hosts} within {}", show_duration(ttl));
            print_token(context, &view, &open)
        }
        Action::Join { token } => {
            let view: MeshView = request(context, MeshRequest::Join { token })?;
            print(context, &view, |view| [vec![summary(view)], dns::claimed_in_vain(view)].concat())
        }
        Action::Card => {
            let view: CardView = request(context, MeshRequest::Card {})?;
            print(context, &view, |view| vec![view.card.clone()])
        }
        Action::Admit { card, label, rights } => {
            let Rights { caps, serves } = rights;
            let view = request(context, MeshRequest::Admit { card, label, caps, serves })?;
            print_token(context, &view, "the host is a member; this tells it so")
        }
        Action::Grant { node, caps, serves } => {
            let view: MeshView = request(context, MeshRequest::Grant { node, caps, serves })?;
            print(context, &view, status)
        }
        Action::Status => {
            let view: MeshView = request(context, MeshRequest::Status {})?;
            print(context, &view, status)
        }
        Action::Dns => {
            let view: DnsView = request(context, MeshRequest::Dns {})?;
            print(context, &view, dns::zone)
        }
        Action::Candidates => {
            let view: CandidatesView = request(context, MeshRequest::Candidates {})?;
            print(context, &view, candidates::table)
        }
        Action::Map { svg } => map::show(&request(context, MeshRequest::Map {})?, svg.as_deref(), context),
        other => run_parting(other, context),
    }
}

/// How a membership ends or goes on otherwise.
fn run_parting(action: Action, context: &mut Context) -> Result<(), Failure> {
    match action {
        Action::Revoke { node, reason } => {
            let view: VoteView = request(context, MeshRequest::Revoke { node, reason })?;
            print(context, &view, |view| vec![vote(view)])
        }
        Action::Vote { node } => {
            let view: VotesView = request(context, MeshRequest::Vote { node })?;
            print(context, &view, govern::votes)
        }
        Action::Refuse { node, lift } => {
            let view: MeshView = request(context, MeshRequest::Refuse { node, lift })?;
            print(context, &view, status)
        }
        Action::Contain { node, lift } => {
            let view: MeshView = request(context, MeshRequest::Contain { node, lift })?;
            print(context, &view, status)
        }
        Action::Rotate { finish } => {
            let view: MeshView = request(context, MeshRequest::Rotate { finish })?;
            print(context, &view, |view| [vec![summary(view)], govern::changing(view)].concat())
        }
        Action::Leave { now } => {
            let view: MeshView = request(context, MeshRequest::Leave { now })?;
            print(context, &view, |_| vec!["this host has left the mesh and forgotten it".to_owned()])
        }
        Action::Ping { node } => {
            let view: PingView = request(context, MeshRequest::Ping { node })?;
            print(context, &view, |view| vec![format!("{} answers, in {} ms", escaped(&view.label), view.ms)])
        }
        _ => unreachable!("the others make and show members"),
    }
}

fn vote(view: &VoteView) -> String {
    let (label, node) = (escaped(&view.label), short(&view.node));
    if view.is_revoked {
        return format!("{label} ({node}) is a member no more");
    }
    format!(
        "this host speaks against {label} ({node}); it takes {} independent voices. Say on another member:\n\n  \
         postroad mesh revoke {node}\n\nUntil then it can be kept out here: postroad mesh refuse {node}",
        view.voices_needed
    )
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "write a number and s, m, h or d, as in 1h".to_owned())
}

/// Asks the agent; the answer is one item.
fn request<T: DeserializeOwned>(context: &mut Context, request: MeshRequest) -> Result<T, Failure> {
    let config = context.config_to_ask()?;
    let mut answer = None;
    ask(&config, &Request::Mesh { request }, |item| {
        answer = Some(item);
        Ok(())
    })?;
    answer.ok_or_else(|| Failure::new(super::exit::FAILED, "the agent did not answer: it may be of another version"))
}

fn print<T: Serialize>(context: &mut Context, view: &T, lines: impl Fn(&T) -> Vec<String>) -> Result<(), Failure> {
    match context.is_json() {
        true => context.json(view),
        false => lines(view).into_iter().try_for_each(|line| context.line(line)),
    }
}

/// In a pipe the token alone, so that a script hands it on as it is.
fn print_token(context: &mut Context, view: &InviteView, open: &str) -> Result<(), Failure> {
    if context.is_json() {
        return context.json(view);
    }
    if !std::io::stdout().is_terminal() {
        return context.line(escaped(&view.token));
    }
    if view.is_founded {
        context.line("a mesh was made, with this host as its first member")?;
    }
    context.line(format_args!("say on the other host ({open}):\n\n  postroad mesh join {}\n", escaped(&view.token)))
}

/// What came of it, in a line.
fn summary(view: &MeshView) -> String {
    let label = escaped(view.label.as_deref().unwrap_or("?"));
    let node = view.node.as_deref().map(short).unwrap_or_default();
    let others = view.members.iter().filter(|member| member.link != "self");
    let names: Vec<String> = others.take(5).map(|member| escaped(&member.label)).collect();
    let count = view.members.len();
    match count {
        0 => "this host is in no mesh".to_owned(),
        1 => format!("{node} is the first member of the mesh {label}"),
        _ if count > names.len() + 1 => {
            format!(
                "{node} is a member of the mesh {label}, with {} and {} others",
                names.join(", "),
                count - 1 - names.len()
            )
        }
        _ => format!("{node} is a member of the mesh {label}, with {}", names.join(", ")),
    }
}

fn status(view: &MeshView) -> Vec<String> {
    let mut lines = vec![match (&view.mesh, view.is_member) {
        (None, _) => {
            return vec![
                "this host is in no mesh".to_owned(),
                "  make one: postroad mesh invite; or join one: postroad mesh join TOKEN".to_owned(),
            ];
        }
        (Some(_), true) => summary(view),
        (Some(_), false) => "this host is no member of the mesh that it knows".to_owned(),
    }];
    lines.extend(table(&view.members).lines().map(str::to_owned));
    for member in &view.members {
        let said = member.down.iter();
        lines.extend(said.map(|said| format!("cannot be reached: {}: {}", escaped(&member.label), escaped(said))));
    }
    lines.extend(govern::policy(view));
    lines.extend(govern::changing(view));
    for gone in &view.gone {
        lines.push(format!("gone: {} ({})", short(&gone.node), escaped(&gone.why)));
    }
    lines.extend(dns::proven(view));
    lines.extend(dns::claimed_in_vain(view));
    for conflict in &view.conflicts {
        lines.push(format!("claimed against another member: {}", escaped(conflict)));
    }
    for node in &view.contradicting {
        lines.push(format!("says different things to different members: {}", escaped(node)));
    }
    lines.extend(govern::conduct(view));
    if view.open_invitations > 0 {
        lines.push(format!("invitations open here: {}", view.open_invitations));
    }
    lines
}

fn table(members: &[MemberView]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["MEMBER", "NODE", "LINK", "PUSHED", "REACH", "SITE", "MAY", "SERVES"]);
    for member in members {
        let link = if member.is_refused { "refused" } else { &member.link };
        table.add_row([
            escaped(&member.label),
            short(&member.node),
            escaped(link),
            pushed(member),
            escaped(&member.reach),
            escaped(&member.site),
            escaped(&member.caps),
            escaped(&member.serves.join(" ")),
        ]);
    }
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// Says which way mail is pushed over connections that the other end keeps open for it.
fn pushed(member: &MemberView) -> String {
    match (member.connections, member.pushes) {
        (0, false) => String::new(),
        (0, true) => "to here".to_owned(),
        (connections, false) => format!("from here, {connections}"),
        (connections, true) => format!("both ways, {connections}"),
    }
}

fn short(node: &str) -> String {
    node.chars().take(SHORT_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_for_people() {
        let member = |label: &str, link: &str, serves: &[&str]| MemberView {
            node: format!("{label}abcdefghijk"),
            label: label.into(),
            caps: "relay".into(),
            reach: "public".into(),
            link: link.into(),
            serves: serves.iter().map(|domain| (*domain).to_owned()).collect(),
            ..MemberView::default()
        };
        let lab = MemberView {
            claims: vec!["d.example".into()],
            connections: 2,
            down: Some("451 4.4.1 no answer".into()),
            ..member("lab", "accepted", &["b.example", "c.example"])
        };
        let view = MeshView {
            node: Some("hqabcdefghijk".into()),
            mesh: Some("m".into()),
            label: Some("ours".into()),
            is_member: true,
            members: vec![member("hq", "self", &["a.example"]), lab],
            conflicts: vec!["a.example by lab, hq has it".into()],
            open_invitations: 1,
            ..MeshView::default()
        };
        let want = "\
hqabcdef is a member of the mesh ours, with lab
 MEMBER  NODE      LINK      PUSHED        REACH   SITE  MAY    SERVES
 hq      hqabcdef  self                    public        relay  a.example
 lab     lababcde  accepted  from here, 2  public        relay  b.example c.example
cannot be reached: lab: 451 4.4.1 no answer
claimed without a grant, so not used: d.example by lab
  on a member that may admit: postroad mesh grant lababcde --serves d.example
  or in DNS: _smtp-mesh.d.example. IN TXT \"v=postroad1; id=lababcdefghijk\"
claimed against another member: a.example by lab, hq has it
invitations open here: 1";
        assert_eq!(status(&view).join("\n"), want);
        assert_eq!(status(&MeshView::default())[0], "this host is in no mesh");
    }
}
