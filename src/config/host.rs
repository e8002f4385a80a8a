//! The name of this host, for configurations that do not say it. Asks the kernel and `/etc/hosts`,
//! never the network.

use std::net::IpAddr;

use postroad_smtp::Domain;

/// Returns the system's name: with its domain where the system knows one; `localhost` when the
/// system's name is no domain name at all.
pub(super) fn system_name() -> Domain {
    let uname = rustix::system::uname();
    let node = uname.nodename().to_string_lossy();
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    full_name(&node, &hosts).unwrap_or_else(|| "localhost".parse().expect("localhost is a domain name"))
}

fn full_name(node: &str, hosts: &str) -> Option<Domain> {
    let short: Domain = node.parse().ok()?;
    if node.contains('.') {
        return Some(short);
    }
    let names = hosts.lines().filter_map(|line| {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        words.next()?.parse::<IpAddr>().ok()?;
        Some(words.collect::<Vec<_>>())
    });
    let full = names.flat_map(|names| {
        let prefix = format!("{}.", short.as_str());
        let named = names.iter().any(|name| name.eq_ignore_ascii_case(node));
        names.into_iter().filter(move |name| named && name.to_ascii_lowercase().starts_with(&prefix))
    });
    full.filter_map(|name| name.parse().ok()).next().or(Some(short))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_full_name_stands_in_etc_hosts() {
        let hosts = "127.0.0.1 localhost\n127.0.1.1 web1.corp.example web1 # x\n";
        for (node, want) in
            [("web1", "web1.corp.example"), ("web2", "web2"), ("a.b", "a.b"), ("localhost", "localhost")]
        {
            assert_eq!(full_name(node, hosts).map(|name| name.to_string()).as_deref(), Some(want));
        }
        assert_eq!(full_name("(none)", hosts), None);
    }
}
