//! `postroad check`: reads the configuration as the agent would and says what it means.

use std::path::Path;

use postroad_smtp::Domain;
use serde_json::{Value, json};

use super::{Context, Failure, exit, patience};
use crate::config::{
    Accept, CONFIG_FILE_DEFAULT, Config, Fetch, Local, LocalDelivery, Mdns, Pace, Recipients, Route, RouteMatch,
    TlsUse, Turn, show_duration, show_rate, show_size,
};
use crate::policy::users::UsersFile;
use crate::tls::{Identity, ServerTls};

/// Check the configuration and say what it means
///
/// Reads the configuration as the agent would, and every file that it names. Exits with 78 and
/// shows all faults with their lines when it is wrong.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  postroad check
  postroad check --config ./postroad.toml
  postroad check --json | jq .warnings")]
pub(super) struct Args {}

pub(super) fn run(_: Args, context: &mut Context) -> Result<(), Failure> {
    let config = context.config()?;
    let mut warnings = warnings(&config);
    if let Some(files) = &config.tls.files {
        let identity = Identity::Files { certificate: files.certificate.clone(), key: files.key.clone() };
        let tls = ServerTls::load(&identity).map_err(|fault| Failure::new(exit::CONFIG, fault.to_string()))?;
        let file = files.certificate.display();
        warnings.extend(tls.complaints(&config.hostname).iter().map(|what| format!("the certificate {file}: {what}")));
    }
    if context.is_json() {
        return context.json(&as_json(&config, &warnings));
    }
    match context.config_file() {
        Some(file) => context.line(format!("{}: valid", file.display()))?,
        None if Path::new(CONFIG_FILE_DEFAULT).exists() => {
            context.line(format_args!("{CONFIG_FILE_DEFAULT}: valid"))?
        }
        None => context.line(format_args!("{CONFIG_FILE_DEFAULT} does not exist: these are the defaults"))?,
    }
    for (name, text) in summary(&config) {
        context.line(format_args!("  {name:<12} {text}"))?;
    }
    for warning in warnings {
        context.warn(warning);
    }
    Ok(())
}

fn summary(config: &Config) -> Vec<(&'static str, String)> {
    let list = |items: Vec<String>| if items.is_empty() { "nobody".to_owned() } else { items.join(", ") };
    let listens = config.listen.all().map(|(service, address)| format!("{address} ({})", service.as_str())).collect();
    let networks = config.relay.networks.iter().map(ToString::to_string).collect();
    let mut lines = vec![
        ("hostname", config.hostname.to_string()),
        ("listens on", list(listens).replace("nobody", "nothing")),
        ("relays for", format!("{}; and whoever logs in", list(networks))),
    ];
    lines.extend(config.locals.iter().map(|local| ("local", show_local(local))));
    for route in &config.routes {
        lines.push(("route", show_route(route)));
        if route.patience != config.queue.patience() {
            lines.push(("", patience::words(&route.patience, config.queue.expire)));
        }
        if route.pace != config.outbound.pace {
            lines.push(("", pace_words(&route.pace)));
        }
    }
    for turn in &config.turns {
        let domains = turn.domains.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let stays = if turn.keep { ", over a connection that stays open" } else { "" };
        lines.push(("kept for", format!("{}: {domains}{stays}", turn.user)));
        if turn.patience != config.queue.patience() {
            lines.push(("", patience::words(&turn.patience, config.queue.expire)));
        }
    }
    lines.extend(config.fetches.iter().map(|fetch| ("fetches from", show_fetch(fetch))));
    if !config.routes.iter().any(|route| route.matches == RouteMatch::Any) {
        lines.push(("other mail", "goes where DNS says (MX)".to_owned()));
    }
    if let Some(file) = config.aliases.file() {
        lines.push(("aliases", format!("{} names in {}", config.aliases.len(), file.display())));
    }
    if let Some(postmaster) = config.postmaster() {
        lines.push(("postmaster", postmaster.to_string()));
    }
    lines.push(("messages", format!("up to {}", show_size(config.limits.message_octets_max))));
    lines.push(("to each site", pace_words(&config.outbound.pace)));
    lines.push(("retries", patience::words(&config.queue.patience(), config.queue.expire)));
    lines.push(("state", config.state_dir.display().to_string()));
    match &config.mesh.mdns {
        Mdns::Off => {}
        Mdns::All => lines.push(("mesh", "speaks multicast DNS at all interfaces".to_owned())),
        Mdns::On(names) => lines.push(("mesh", format!("speaks multicast DNS at {}", names.join(", ")))),
    }
    if let Some(metrics) = config.metrics.listen {
        lines.push(("metrics", format!("http://{metrics}/metrics")));
    }
    lines
}

fn pace_words(pace: &Pace) -> String {
    let messages = pace.messages.map(|rate| format!(", {} messages", show_rate(rate, |count| count.to_string())));
    let octets = pace.octets.map(|rate| format!(", {}", show_rate(rate, show_size)));
    let (messages, octets) = (messages.unwrap_or_default(), octets.unwrap_or_default());
    format!("up to {} connections{messages}{octets}", pace.connections_max)
}

fn show_local(local: &Local) -> String {
    let target = match &local.delivery {
        LocalDelivery::Maildir(template) => template.as_str().to_owned(),
        LocalDelivery::Lmtp(address) => format!("LMTP {address}"),
    };
    let who = match &local.recipients {
        Recipients::Directories => "users with a directory".to_owned(),
        Recipients::Listed(names) if names.len() == 1 => "1 recipient".to_owned(),
        Recipients::Listed(names) => format!("{} recipients", names.len()),
        Recipients::Any => "any recipient".to_owned(),
    };
    format!("{} -> {target} ({who})", local.domain)
}

fn show_route(route: &Route) -> String {
    let user = route.credentials.as_ref().map(|login| format!(", as {}", login.user)).unwrap_or_default();
    let from = route.accept.as_ref().map(|accept| format!(", from everybody: {accept}")).unwrap_or_default();
    format!("{} -> {} (TLS {}{user}){from}", route.matches, route.via, tls_name(route.tls))
}

fn show_fetch(fetch: &Fetch) -> String {
    let Fetch { host, port, credentials, .. } = fetch;
    let domains = fetch.domains.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let what = if domains.is_empty() { "all its mail".to_owned() } else { domains };
    let stays = if fetch.keep { ", and stays connected" } else { "" };
    format!(
        "{host}:{port} (TLS {}, as {}): {what}, every {}{stays}",
        tls_name(fetch.tls),
        credentials.user,
        show_duration(fetch.every)
    )
}

fn tls_name(tls: TlsUse) -> &'static str {
    match tls {
        TlsUse::Never => "never",
        TlsUse::Opportunistic => "opportunistic",
        TlsUse::Required => "required",
        TlsUse::Verify => "verify",
    }
}

/// What the configuration itself warns of, and what is wrong with the files it names.
fn warnings(config: &Config) -> Vec<String> {
    let mut out = config.warnings.clone();
    users_warnings(config, &mut out);
    for route in &config.routes {
        let Some(login) = &route.credentials else { continue };
        if let Err(fault) = std::fs::File::open(&login.password_file) {
            let file = login.password_file.display();
            out.push(format!("the password file {file} of the route for {} cannot be read: {fault}", route.matches));
        }
    }
    let secrets = config.turns.iter().filter_map(|turn| Some(("[[turn]]", turn.secret_file.as_ref()?)));
    let passwords = config.fetches.iter().map(|fetch| ("[[fetch]]", &fetch.credentials.password_file));
    for (section, file) in secrets.chain(passwords) {
        if let Err(fault) = std::fs::File::open(file) {
            out.push(format!("the file {} of a {section} cannot be read: {fault}", file.display()));
        }
    }
    for local in &config.locals {
        if let LocalDelivery::Maildir(template) = &local.delivery {
            let fixed = template.as_str().split("{user}").next().unwrap_or_default();
            let parent = fixed.rfind('/').map_or("/", |at| &fixed[..=at]);
            if !Path::new(parent).is_dir() {
                out.push(format!("no directory {parent}: mail for {} cannot be delivered", local.domain));
            }
        }
    }
    out
}

fn users_warnings(config: &Config, out: &mut Vec<String>) {
    let file = UsersFile::new(config.users.file.clone());
    let submission = config.listen.all().any(|(service, _)| service.needs_login());
    match file.read() {
        Ok(list) => {
            out.extend(list.faults().iter().map(|fault| format!("{}, {fault}", file.path().display())));
            if submission && list.users().is_empty() {
                out.push("nobody can log in to submit mail: add users with `postroad user add`".to_owned());
            }
        }
        Err(fault) => out.push(fault.to_string()),
    }
    if file.is_exposed() {
        let path = file.path().display();
        out.push(format!("{path}: others can read the password hashes; run `chmod 600 {path}`"));
    }
}

fn as_json(config: &Config, warnings: &[String]) -> Value {
    let listen =
        config.listen.all().map(|(service, address)| json!({ "service": service.as_str(), "address": address }));
    let local = |local: &Local| json!({ "domain": local.domain.as_str(), "text": show_local(local) });
    let expire = config.queue.expire;
    let route = |route: &Route| {
        let patience = patience::as_json(&route.patience, expire);
        let (domain, via) = (route.matches.to_string(), route.via.to_string());
        let accept = match &route.accept {
            None => Value::Null,
            Some(Accept::Listed(names)) => json!(names),
            Some(Accept::Any) => json!("any"),
        };
        json!({ "domain": domain, "via": via, "accept": accept, "tls": tls_name(route.tls), "patience": patience })
    };
    let names = |domains: &[Domain]| domains.iter().map(ToString::to_string).collect::<Vec<_>>();
    let turn = |turn: &Turn| {
        let patience = patience::as_json(&turn.patience, expire);
        json!({ "user": turn.user, "domains": names(&turn.domains), "keep": turn.keep, "patience": patience })
    };
    let fetch = |fetch: &Fetch| {
        let (host, port, user) = (fetch.host.to_string(), fetch.port, &fetch.credentials.user);
        json!({ "host": host, "port": port, "user": user, "domains": names(&fetch.domains), "keep": fetch.keep })
    };
    json!({
        "valid": true,
        "hostname": config.hostname.as_str(),
        "state_dir": config.state_dir,
        "listen": listen.collect::<Vec<_>>(),
        "relay_networks": config.relay.networks.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "local": config.locals.iter().map(local).collect::<Vec<_>>(),
        "routes": config.routes.iter().map(route).collect::<Vec<_>>(),
        "aliases": config.aliases.file().map(|file| json!({ "file": file, "names": config.aliases.len() })),
        "turns": config.turns.iter().map(turn).collect::<Vec<_>>(),
        "fetches": config.fetches.iter().map(fetch).collect::<Vec<_>>(),
        "patience": patience::as_json(&config.queue.patience(), expire),
        "warnings": warnings,
    })
}
