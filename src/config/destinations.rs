//! `[[local]]` and `[[route]]`: where mail goes that does not go where DNS says.

use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::DeValue;

use super::fault::Kind;
use super::read::{Places, TLS_USES, pace, patience, plain};
use super::route::{Accept, Route, RouteCredentials, RouteMatch, Via};
use super::section::{Faults, Section};
use super::settings::*;
use super::value::{self, Read, refuse};

/// One `[[local]]`; `None` is a fault.
pub(super) fn local(mut s: Section<'_>, base_dir: &Path, places: &mut Places, faults: &Faults) -> Option<Local> {
    let header = s.span();
    let known = s.holds("domain");
    let domain = s.get("domain", value::domain);
    if !known {
        faults.conflict(header.clone(), "a [[local]] without a domain", "add domain = \"example.org\"");
    }
    let maildir = s.get("maildir", maildir_template(base_dir));
    let lmtp = s.get("lmtp", lmtp_address(base_dir));
    let recipients = recipients(&mut s, "recipients", faults);
    let refused = (s.holds("maildir") && maildir.is_none()) || (s.holds("lmtp") && lmtp.is_none());
    s.finish();
    let delivery = match (maildir, lmtp) {
        _ if refused => None,
        (Some(maildir), None) => Some(LocalDelivery::Maildir(maildir.into_inner())),
        (None, Some(lmtp)) => Some(LocalDelivery::Lmtp(lmtp.into_inner())),
        (Some(_), Some(lmtp)) => {
            faults.conflict(lmtp.span(), "`maildir` and `lmtp` for one domain", "keep one of the two");
            None
        }
        (None, None) => {
            let remedy = "add maildir = \"/var/mail/example.org/{user}\" or lmtp = \"unix:/run/dovecot/lmtp\"";
            faults.conflict(header.clone(), "a [[local]] that does not say where its mail goes", remedy);
            None
        }
    };
    let (domain, delivery) = (domain?, delivery?);
    let recipients = existing(recipients, &delivery, &header, faults)?;
    places.locals.push(domain.span());
    Some(Local { domain: domain.into_inner(), delivery, recipients, line: 0 })
}

/// Reads a list of local-parts or the word "any"; the outer `None` is a fault.
fn recipients(s: &mut Section<'_>, key: &'static str, faults: &Faults) -> Option<Option<Spanned<Accept>>> {
    if !s.holds(key) {
        s.get(key, value::local_name);
        return Some(None);
    }
    let is_text = s.get(key, |found| Ok(found.as_str().map(str::to_owned)))?;
    let Some(word) = is_text.get_ref() else {
        let list = s.list(key, value::local_name)?;
        let span = list.span();
        let mut names = plain(list);
        names.sort();
        names.dedup();
        return Some(Some(Spanned::new(span, Accept::Listed(names))));
    };
    if word != "any" {
        faults.add(
            Kind::Value,
            is_text.span(),
            format!("`{key}`: \"{word}\" is neither a list nor \"any\""),
            format!("write {key} = [\"{word}\"]"),
        );
        return None;
    }
    Some(Some(Spanned::new(is_text.span(), Accept::Any)))
}

/// Which recipients exist, given where their mail goes.
fn existing(
    stated: Option<Option<Spanned<Accept>>>,
    delivery: &LocalDelivery,
    header: &Range<usize>,
    faults: &Faults,
) -> Option<Recipients> {
    match (stated?, delivery) {
        (None, LocalDelivery::Maildir(_)) => Some(Recipients::Directories),
        (None, LocalDelivery::Lmtp(_)) => {
            let remedy = "add recipients = [\"alice\", \"bob\"], or recipients = \"any\" to leave it to the LMTP server, \
                          which turns every mistyped address into a notification to its sender";
            faults.conflict(header.clone(), "an LMTP domain that does not say which recipients exist", remedy);
            None
        }
        (Some(stated), LocalDelivery::Maildir(_)) if *stated.get_ref() == Accept::Any => {
            let remedy = "take it out: every user with a directory exists; or list the names";
            faults.conflict(stated.span(), "recipients = \"any\" would make a Maildir for every invented name", remedy);
            None
        }
        (Some(stated), _) => Some(match stated.into_inner() {
            Accept::Listed(names) => Recipients::Listed(names),
            Accept::Any => Recipients::Any,
        }),
    }
}

fn maildir_template(base_dir: &Path) -> impl Fn(&DeValue<'_>) -> Read<MaildirTemplate> {
    move |found| {
        let path = value::path(base_dir)(found)?;
        let text = path.to_string_lossy().into_owned();
        if !text.contains("{user}") {
            return refuse("the path has no {user} in it", "write for example \"/var/mail/example.org/{user}\"");
        }
        if text.contains(char::is_control) || text.split('/').any(|name| matches!(name, "." | "..")) {
            return refuse("the path holds `.`, `..` or a control character", "write the plain path");
        }
        if text.replace("{user}", "").contains(['{', '}']) {
            return refuse("the path has braces beside {user}", "{user} is the only thing that is filled in");
        }
        Ok(MaildirTemplate(text))
    }
}

fn lmtp_address(base_dir: &Path) -> impl Fn(&DeValue<'_>) -> Read<LmtpAddress> {
    move |found| {
        let Some(text) = found.as_str() else {
            return refuse(
                format!("expected an address, found {}", found.type_str()),
                "write \"unix:/run/dovecot/lmtp\"",
            );
        };
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty() && !path.contains('\0')) {
            return Ok(LmtpAddress::Unix(base_dir.join(path)));
        }
        text.parse().map(LmtpAddress::Tcp).or_else(|_| {
            refuse(format!("\"{text}\" is no LMTP address"), "write \"unix:/run/dovecot/lmtp\" or \"127.0.0.1:24\"")
        })
    }
}

/// One `[[route]]`; `None` is a fault.
pub(super) fn route(
    mut s: Section<'_>,
    base_dir: &Path,
    (outbound, queue): (&Outbound, &Queue),
    places: &mut Places,
    faults: &Faults,
) -> Option<Route> {
    let header = s.span();
    for key in ["domain", "via"] {
        if !s.holds(key) {
            let remedy = "a route says domain = \"example.org\" and via = \"smtp.isp.example:587\" (or \"mx\")";
            faults.conflict(header.clone(), format!("a [[route]] without `{key}`"), remedy);
        }
    }
    let matches = s.get("domain", route_match);
    let accept = accept(&mut s, &matches, faults);
    let via = s.get("via", via(outbound.port));
    let tls = s.get("tls", value::choice(TLS_USES));
    let user = s.get("user", login_name);
    let password_file = s.get("password_file", value::path(base_dir));
    let credentials = credentials(user, password_file, &via, &tls, &s, faults);
    let patience = patience(&mut s, queue.patience(), faults);
    let pace = pace(&mut s, outbound.pace);
    s.finish();
    let tls_default = if credentials.is_some() { TlsUse::Verify } else { outbound.tls };
    let (matches, via) = (matches?, via?);
    places.routes.push(matches.span());
    let tls = tls.map_or(tls_default, Spanned::into_inner);
    let (matches, via) = (matches.into_inner(), via.into_inner());
    Some(Route { matches, via, accept, tls, credentials, patience, pace, line: 0 })
}

/// Reads `accept`. Never an open relay: each domain that strangers may write to is named, or one above it that
/// belongs to somebody.
fn accept(s: &mut Section<'_>, matches: &Option<Spanned<RouteMatch>>, faults: &Faults) -> Option<Accept> {
    let accept = recipients(s, "accept", faults).flatten()?;
    let whole = match matches.as_ref()?.get_ref() {
        RouteMatch::Any => Some("the whole world"),
        RouteMatch::Below(parent) if !parent.as_str().contains('.') => Some("a whole top-level domain"),
        RouteMatch::Below(_) | RouteMatch::Domain(_) => None,
    };
    if let Some(whole) = whole {
        let message = format!("`accept` would take mail for {whole} from everybody: an open relay");
        let remedy = "add a [[route]] with `accept` for each of your domains: domain = \"example.org\", or \
                      \".example.org\" for those below it";
        faults.conflict(accept.span(), message, remedy);
    }
    Some(accept.into_inner())
}

fn route_match(found: &DeValue<'_>) -> Read<RouteMatch> {
    match found.as_str() {
        Some("*") => Ok(RouteMatch::Any),
        Some(text) if text.starts_with("*.") => refuse(
            format!("\"{text}\" has a star before a dot"),
            format!("write \"{}\" for every domain below it", &text[1..]),
        ),
        Some(text) => match text.strip_prefix('.') {
            Some(parent) => match parent.parse() {
                Ok(parent) => Ok(RouteMatch::Below(parent)),
                Err(fault) => refuse(format!("\"{text}\" is no domain: {fault}"), "write \".corp.example\""),
            },
            None => value::domain(found).map(RouteMatch::Domain),
        },
        None => value::domain(found).map(RouteMatch::Domain),
    }
}

fn via(port_default: u16) -> impl Fn(&DeValue<'_>) -> Read<Via> {
    move |found| {
        let text = found.as_str().unwrap_or_default();
        if text.eq_ignore_ascii_case("mx") {
            return Ok(Via::Mx);
        }
        match value::host_port(text) {
            Some((host, port)) => Ok(Via::Host { host, port: port.unwrap_or(port_default) }),
            None => refuse(
                format!("\"{text}\" is no next hop"),
                "write \"smtp.isp.example:587\", \"[192.0.2.1]:25\", or \"mx\" for what DNS says",
            ),
        }
    }
}

pub(super) fn login_name(found: &DeValue<'_>) -> Read<String> {
    match found.as_str() {
        Some(text) if !text.is_empty() && !text.contains(char::is_control) => Ok(text.to_owned()),
        _ => refuse("expected a user name in quotes", "write for example \"relay@isp.example\""),
    }
}

/// Checks the login for a next hop; `None` when there is none or it is refused.
fn credentials(
    user: Option<Spanned<String>>,
    password_file: Option<Spanned<PathBuf>>,
    via: &Option<Spanned<Via>>,
    tls: &Option<Spanned<TlsUse>>,
    section: &Section<'_>,
    faults: &Faults,
) -> Option<RouteCredentials> {
    let (user, password_file) = match (user, password_file) {
        (Some(user), Some(password_file)) => (user, password_file),
        (Some(user), None) if !section.holds("password_file") => {
            faults.conflict(user.span(), "`user` without a password", "add password_file = \"isp.password\"");
            return None;
        }
        (None, Some(file)) if !section.holds("user") => {
            faults.conflict(file.span(), "`password_file` without a user", "add user = \"relay@isp.example\"");
            return None;
        }
        _ => return None,
    };
    if via.as_ref().is_some_and(|via| *via.get_ref() == Via::Mx) {
        let remedy = "name the host that knows the password: via = \"smtp.isp.example:587\"";
        faults.conflict(user.span(), "a login for whatever host DNS names would give the password away", remedy);
    }
    if let Some(tls) = tls.as_ref().filter(|tls| matches!(tls.get_ref(), TlsUse::Never | TlsUse::Opportunistic)) {
        let remedy = "write tls = \"verify\" (or \"required\"), or take `user` out";
        faults.conflict(tls.span(), "the password could be sent without encryption", remedy);
    }
    Some(RouteCredentials { user: user.into_inner(), password_file: password_file.into_inner() })
}
