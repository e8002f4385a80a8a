//! One TOML value -> one setting: each reader checks type, form and range, and says what to write
//! instead. No reader looks at another value or at the file system.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use postroad_smtp::{Domain, Host, Mailbox};
use toml::de::DeValue;

use super::settings::Rate;

/// The periods of a rate.
const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);

/// What a reader has to say about a value that it refuses.
pub(super) struct Complaint {
    pub message: String,
    pub remedy: String,
}

pub(super) type Read<T> = Result<T, Complaint>;

/// Refuses a value.
pub(super) fn refuse<T>(message: impl Into<String>, remedy: impl Into<String>) -> Read<T> {
    Err(Complaint { message: message.into(), remedy: remedy.into() })
}

fn wrong_type<T>(value: &DeValue<'_>, wanted: &str, sample: &str) -> Read<T> {
    let article = if value.type_str().starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    refuse(format!("expected {wanted}, found {article} {}", value.type_str()), format!("write for example {sample}"))
}

fn string<'v>(value: &'v DeValue<'_>, wanted: &str, sample: &str) -> Read<&'v str> {
    match value.as_str() {
        Some(text) => Ok(text),
        None => wrong_type(value, wanted, sample),
    }
}

/// `true` or `false`.
pub(super) fn boolean(value: &DeValue<'_>) -> Read<bool> {
    match value.as_bool() {
        Some(value) => Ok(value),
        None => wrong_type(value, "true or false", "true, without quotes"),
    }
}

/// A whole number within a range.
pub(super) fn integer(range: RangeInclusive<u64>) -> impl Fn(&DeValue<'_>) -> Read<u64> {
    move |value| {
        let Some(number) = value.as_integer() else {
            return wrong_type(value, "a whole number", &format!("{}, without quotes", range.start()));
        };
        match u64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) if range.contains(&number) => Ok(number),
            _ => refuse(format!("{number} is out of range"), between(range.start(), range.end())),
        }
    }
}

/// A number that may have a fraction, within a range.
pub(super) fn float(range: RangeInclusive<f64>) -> impl Fn(&DeValue<'_>) -> Read<f64> {
    move |value| {
        let text = match value {
            DeValue::Float(number) => number.as_str(),
            DeValue::Integer(number) if number.radix() == 10 => number.as_str(),
            other => return wrong_type(other, "a number", "2.0"),
        };
        match text.parse::<f64>() {
            Ok(number) if range.contains(&number) => Ok(number),
            _ => refuse(format!("{text} is out of range"), between(range.start(), range.end())),
        }
    }
}

fn between(low: impl std::fmt::Display, high: impl std::fmt::Display) -> String {
    format!("choose a value from {low} to {high}")
}

/// One of a few names.
pub(super) fn choice<T: Copy>(names: &'static [(&'static str, T)]) -> impl Fn(&DeValue<'_>) -> Read<T> {
    move |value| {
        let all = names.iter().map(|(name, _)| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
        let text =
            string(value, "a name in quotes", &names.first().map_or(String::new(), |(name, _)| format!("\"{name}\"")))?;
        match names.iter().find(|(name, _)| *name == text) {
            Some((_, choice)) => Ok(*choice),
            None => {
                let near = nearest(text, names.iter().map(|(name, _)| *name));
                let near = near.map(|near| format!("did you mean \"{near}\"? ")).unwrap_or_default();
                refuse(format!("\"{text}\" is none of the possible values"), format!("{near}possible values: {all}"))
            }
        }
    }
}

/// Returns the candidate that a person most likely meant.
pub(super) fn nearest<'c>(text: &str, candidates: impl Iterator<Item = &'c str>) -> Option<&'c str> {
    let text: String = text.chars().take(64).collect();
    let score = |name: &&str| (strsim::jaro_winkler(&text, name) * 1000.0) as u32;
    candidates.map(|name| (score(&name), name)).filter(|(score, _)| *score >= 800).max().map(|(_, name)| name)
}

/// A length of time such as "5m" or "1h30m", within a range.
pub(super) fn duration(range: RangeInclusive<Duration>) -> impl Fn(&DeValue<'_>) -> Read<Duration> {
    move |value| {
        let text = string(value, "a duration in quotes", "\"30s\", \"5m\", \"4h\" or \"5d\"")?;
        let Some(duration) = parse_duration(text) else {
            return refuse(
                format!("\"{text}\" is no duration"),
                "write numbers with units ms, s, m, h, d or w, for example \"90s\" or \"1h30m\"",
            );
        };
        if !range.contains(&duration) {
            let limits = between(show_duration(*range.start()), show_duration(*range.end()));
            return refuse(format!("\"{text}\" is out of range"), limits);
        }
        Ok(duration)
    }
}

/// Reads a duration as people write it: numbers with units, `1h30m`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut total_ms: u64 = 0;
    let mut rest = text.trim();
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let count: u64 = rest[..digits].parse().ok()?;
        let tail = rest[digits..].trim_start();
        let letters = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
        let unit_ms: u64 = match &tail[..letters] {
            "ms" => 1,
            "s" => 1000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "w" => 604_800_000,
            _ => return None,
        };
        total_ms = total_ms.checked_add(count.checked_mul(unit_ms)?)?;
        rest = tail[letters..].trim_start();
    }
    (!text.trim().is_empty()).then_some(Duration::from_millis(total_ms))
}

/// Writes a duration the way the file does: in the largest unit that fits without a rest.
pub fn show_duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    let units = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
    let fits = units.iter().find(|(_, unit)| ms >= *unit && ms.is_multiple_of(*unit));
    fits.map_or_else(|| "0s".to_owned(), |(name, unit)| format!("{}{name}", ms / unit))
}

/// A number of octets such as "50MB" or "32MiB", within a range.
pub(super) fn size(range: RangeInclusive<u64>) -> impl Fn(&DeValue<'_>) -> Read<u64> {
    move |value| {
        let text = match value {
            DeValue::Integer(number) if number.radix() == 10 => number.as_str(),
            other => string(other, "a size in quotes", "\"50MB\"")?,
        };
        match parse_size(text) {
            None => refuse(format!("\"{text}\" is no size"), "write a number with a unit: kB, MB, GB, KiB, MiB or GiB"),
            Some(octets) if !range.contains(&octets) => {
                let limits = between(show_size(*range.start()), show_size(*range.end()));
                refuse(format!("\"{text}\" is out of range"), limits)
            }
            Some(octets) => Ok(octets),
        }
    }
}

/// A number of messages in a time such as "100/min" or "5/s".
pub(super) fn message_rate(value: &DeValue<'_>) -> Read<Rate> {
    let text = string(value, "a rate in quotes", "\"100/min\"")?;
    match parse_rate(text, |count| count.parse().ok()) {
        Some(rate) => Ok(rate),
        None => refuse(format!("\"{text}\" is no rate"), "write messages and a time: \"5/s\", \"100/min\", \"2000/h\""),
    }
}

/// A number of octets in a time such as "2MB/s".
pub(super) fn data_rate(value: &DeValue<'_>) -> Read<Rate> {
    let text = string(value, "a rate in quotes", "\"2MB/s\"")?;
    match parse_rate(text, parse_size) {
        Some(rate) => Ok(rate),
        None => refuse(format!("\"{text}\" is no rate"), "write a size and a time: \"2MB/s\", \"1GB/h\""),
    }
}

/// Reads `COUNT/TIME`; the time is a unit, or a number of it. Neither is 0.
fn parse_rate(text: &str, count: impl Fn(&str) -> Option<u64>) -> Option<Rate> {
    let (amount, time) = text.split_once('/')?;
    let time = time.trim();
    let time = if time.starts_with(|c: char| c.is_ascii_digit()) { time.to_owned() } else { format!("1{time}") };
    let rate = Rate { count: count(amount.trim())?, period: parse_duration(&time)? };
    (rate.count > 0 && (SECOND..=DAY).contains(&rate.period)).then_some(rate)
}

/// Writes a rate the way the file does.
pub fn show_rate(rate: Rate, show_count: impl Fn(u64) -> String) -> String {
    let period = show_duration(rate.period);
    let unit = match period.strip_prefix('1').filter(|rest| !rest.starts_with(|c: char| c.is_ascii_digit())) {
        Some("m") => "min",
        Some(unit) => unit,
        None => &period,
    };
    format!("{}/{unit}", show_count(rate.count))
}

/// Reads a number of octets, as in `25MB` or `512KiB`.
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let count: u64 = text[..digits].parse().ok()?;
    let unit = match text[digits..].trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "t" | "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return None,
    };
    count.checked_mul(unit)
}

/// Writes a number of octets in the largest decimal unit that fits without a rest.
pub fn show_size(octets: u64) -> String {
    let decimal = [("TB", 1_000_000_000_000), ("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1000)];
    let binary = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let units = [decimal.as_slice(), &binary].concat();
    let fits = units.iter().find(|(_, unit)| octets >= *unit && octets.is_multiple_of(*unit));
    fits.map_or_else(|| format!("{octets} octets"), |(name, unit)| format!("{} {name}", octets / unit))
}

/// A domain name.
pub(super) fn domain(value: &DeValue<'_>) -> Read<Domain> {
    let text = string(value, "a domain name in quotes", "\"example.org\"")?;
    text.parse().or_else(|fault| {
        refuse(format!("\"{text}\" is no domain name: {fault}"), "write a name such as \"mail.example.org\"")
    })
}

/// A mailbox.
pub(super) fn mailbox(value: &DeValue<'_>) -> Read<Mailbox> {
    let text = string(value, "an address in quotes", "\"admin@example.org\"")?;
    text.parse().or_else(|fault| {
        refuse(format!("\"{text}\" is no mail address: {fault}"), "write an address such as \"admin@example.org\"")
    })
}

/// The name of a mailbox within a local domain, or its whole address.
pub(super) fn local_name(value: &DeValue<'_>) -> Read<String> {
    let text = string(value, "a local-part in quotes", "\"alice\"")?;
    if text.contains('@') {
        return refuse(format!("\"{text}\" has an @"), "write only the part before it: the domain stands above");
    }
    let Ok(local_part) = text.parse::<postroad_smtp::LocalPart>() else {
        return refuse(format!("\"{text}\" is no local-part"), "write the part of an address before the @");
    };
    Ok(local_part.unquoted().to_lowercase())
}

/// A file-system path; `base` is where relative ones start.
pub(super) fn path(base: &std::path::Path) -> impl Fn(&DeValue<'_>) -> Read<PathBuf> {
    move |value| {
        let text = string(value, "a path in quotes", "\"/var/lib/postroad\"")?;
        if text.is_empty() || text.contains('\0') {
            return refuse("the path is empty or contains NUL", "write a path such as \"/var/lib/postroad\"");
        }
        Ok(base.join(text))
    }
}

/// An IP address and a port to listen on.
pub(super) fn listen_address(value: &DeValue<'_>) -> Read<SocketAddr> {
    let text = string(value, "an address and a port in quotes", "\"127.0.0.1:25\"")?;
    match text.parse::<SocketAddr>() {
        Ok(address) => Ok(address),
        Err(_) => refuse(
            format!("\"{text}\" is no IP address with a port"),
            "write \"127.0.0.1:25\", \"[::1]:25\", or \"0.0.0.0:25\" and \"[::]:25\" for every address of this host",
        ),
    }
}

/// An IP address, with a port unless it is `port_default`.
pub(super) fn server_address(port_default: u16) -> impl Fn(&DeValue<'_>) -> Read<SocketAddr> {
    move |value| {
        let text = string(value, "an address in quotes", "\"192.0.2.53\"")?;
        let bare = || text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, port_default));
        text.parse::<SocketAddr>().or_else(|_| bare()).or_else(|_| {
            refuse(
                format!("\"{text}\" is no IP address"),
                "write \"192.0.2.53\", \"192.0.2.53:5353\" or \"[2001:db8::1]:53\"",
            )
        })
    }
}

/// A network, or one address as the network that holds only itself.
pub(super) fn network(value: &DeValue<'_>) -> Read<IpNet> {
    let text = string(value, "a network in quotes", "\"192.0.2.0/24\"")?;
    let parsed = match text.contains('/') {
        true => text.parse::<IpNet>().ok(),
        false => text.parse::<IpAddr>().ok().map(IpNet::from),
    };
    let Some(net) = parsed else {
        return refuse(format!("\"{text}\" is no network"), "write \"192.0.2.0/24\", \"2001:db8::/32\" or one address");
    };
    if net.addr() != net.network() {
        return refuse(
            format!("\"{text}\" has bits set beyond its prefix"),
            format!("write \"{}\" for the network, or \"{}\" for the one address", net.trunc(), net.addr()),
        );
    }
    Ok(unmapped(net))
}

/// `::ffff:a.b.c.d/96+n` is the IPv4 network `a.b.c.d/n`: peers are compared in that form.
fn unmapped(net: IpNet) -> IpNet {
    let IpNet::V6(v6) = net else { return net };
    match (v6.addr().to_ipv4_mapped(), v6.prefix_len().checked_sub(96)) {
        (Some(v4), Some(prefix)) => Ipv4Net::new(v4, prefix).map_or(net, IpNet::V4),
        _ => net,
    }
}

/// Splits `host:port` or `host`; the host is a name, an address literal, or a bare IPv4 address.
pub(super) fn host_port(text: &str) -> Option<(Host, Option<u16>)> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some((Host::Literal(ip), None));
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port.parse().ok().filter(|port| *port != 0)?)),
        _ => (text, None),
    };
    let bracketed = host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']'));
    if let Ok(ip) = bracketed.unwrap_or(host).parse::<IpAddr>() {
        return Some((Host::Literal(ip), port));
    }
    Some((host.parse().ok()?, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_read_as_people_write_them() {
        let table = [("5m", 300_000), ("1h30m", 5_400_000), ("250ms", 250), ("5 d", 432_000_000), ("1w", 604_800_000)];
        for (text, ms) in table {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", " ", "5", "m", "5x", "-5m", "1.5h", "99999999999999999999s", "18446744073709551615d", "5m 3"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
        for (text, octets) in [("50MB", 50_000_000), ("32 MiB", 32 << 20), ("7", 7), ("1kb", 1000)] {
            assert_eq!(parse_size(text), Some(octets), "{text}");
        }
        for text in ["", "MB", "-1", "5 parsecs", "18446744073709551615k"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
        for (text, count, seconds) in
            [("100/min", 100, 60), ("5 / s", 5, 1), ("2000/h", 2_000, 3_600), ("3/10s", 3, 10)]
        {
            let rate = Rate { count, period: Duration::from_secs(seconds) };
            assert_eq!(parse_rate(text, |count| count.parse().ok()), Some(rate), "{text}");
            assert_eq!(show_rate(rate, |count| count.to_string()), text.replace(' ', ""));
        }
        assert_eq!(parse_rate("2MB/s", parse_size), Some(Rate { count: 2_000_000, period: SECOND }));
        for text in ["", "5", "5/", "/s", "0/s", "5/0s", "5/ms", "5/2d", "-1/s", "5/s/s"] {
            assert_eq!(parse_rate(text, parse_size), None, "{text}");
        }
        assert_eq!(
            (show_duration(Duration::from_secs(5400)).as_str(), show_size(50_000_000).as_str()),
            ("90m", "50 MB")
        );
    }

    #[test]
    fn a_next_hop_is_a_name_or_an_address_with_or_without_port() {
        let show = |text| host_port(text).map(|(host, port)| format!("{host} {port:?}"));
        for (text, want) in [
            ("smtp.isp.example:587", "smtp.isp.example Some(587)"),
            ("smtp.isp.example", "smtp.isp.example None"),
            ("[192.0.2.1]:25", "[192.0.2.1] Some(25)"),
            ("[2001:db8::1]:25", "[IPv6:2001:db8::1] Some(25)"),
            ("[IPv6:2001:db8::1]", "[IPv6:2001:db8::1] None"),
            ("192.0.2.1:2525", "[192.0.2.1] Some(2525)"),
            ("::1", "[IPv6:::1] None"),
        ] {
            assert_eq!(show(text).as_deref(), Some(want), "{text}");
        }
        for text in ["", ":25", "a b:25", "host:0", "host:66000", "host:port", "[192.0.2.1", "http://x"] {
            assert_eq!(show(text), None, "{text}");
        }
    }
}
