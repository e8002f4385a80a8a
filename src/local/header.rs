//! Header sections of local mail: cut into fields, and completed when the name of the host is known.
//!
//! Addresses without a domain get the host's name (as RFC 6409 §8 allows), since nobody elsewhere knows who
//! `root` is; a From field is added where there is none. All other octets stay.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use postroad_smtp::Domain;

use super::addresses::{self, Found};
use super::letter::Slip;

/// Fields whose addresses are completed.
const ADDRESS_FIELDS: &[&str] = &[
    "from",
    "sender",
    "reply-to",
    "to",
    "cc",
    "resent-from",
    "resent-sender",
    "resent-reply-to",
    "resent-to",
    "resent-cc",
];
/// Octets of a name in one encoded word: 75 characters with what is around it (RFC 2047 §2).
const ENCODED_OCTETS_MAX: usize = 45;

/// A field of the header section, with its line ends.
pub(super) struct Field {
    /// In lower case.
    pub name: String,
    pub octets: Vec<u8>,
}

impl Field {
    /// Begins a field with a line that is one.
    pub fn begin(line: Vec<u8>) -> Result<Field, Vec<u8>> {
        let Some(colon) = memchr::memchr(b':', &line) else { return Err(line) };
        let name = line[..colon].trim_ascii_end();
        let is_name = !name.is_empty() && name.iter().all(u8::is_ascii_graphic);
        match is_name {
            true => Ok(Field { name: String::from_utf8_lossy(name).to_ascii_lowercase(), octets: line }),
            false => Err(line),
        }
    }

    /// Returns the place of what stands behind the colon.
    pub fn value(&self) -> usize {
        memchr::memchr(b':', &self.octets).map_or(0, |colon| colon + 1)
    }
}

/// Cuts a header section whose lines end with CR LF into its fields.
pub(super) fn fields(section: &[u8]) -> Vec<Field> {
    let mut fields: Vec<Field> = Vec::new();
    for line in section.split_inclusive(|c| *c == b'\n') {
        match fields.last_mut() {
            Some(field) if line.starts_with(b" ") || line.starts_with(b"\t") => field.octets.extend_from_slice(line),
            // What is none is left out: this section was made by `letter`, unless somebody else made it up.
            _ => fields.extend(Field::begin(line.to_vec()).ok()),
        }
    }
    fields
}

/// Returns a header section, its empty line included, as it leaves a host of this name.
pub(super) fn completed(section: &[u8], slip: &Slip, host: &Domain) -> Vec<u8> {
    let fields = fields(section);
    let mut out = Vec::with_capacity(section.len() + 256);
    if !fields.iter().any(|field| field.name == "from") {
        let from = slip.from.as_deref().unwrap_or(&slip.user);
        let address = qualified(from, host);
        match slip.name.as_deref().filter(|name| !name.is_empty()) {
            Some(name) => out.extend_from_slice(format!("From: {} <{address}>\r\n", phrase(name)).as_bytes()),
            None => out.extend_from_slice(format!("From: {address}\r\n").as_bytes()),
        }
    }
    for field in fields {
        match ADDRESS_FIELDS.contains(&&*field.name) {
            true => push_qualified(&field, host, &mut out),
            false => out.extend_from_slice(&field.octets),
        }
    }
    out.extend_from_slice(b"\r\n");
    out
}

/// Returns an address with its domain: this host's where it has none.
pub(super) fn qualified(address: &str, host: &Domain) -> String {
    if address.contains('@') { address.to_owned() } else { format!("{address}@{host}") }
}

fn push_qualified(field: &Field, host: &Domain, out: &mut Vec<u8>) {
    let (start, mut done) = (field.value(), 0);
    for found in addresses::find(&field.octets[start..]) {
        if let Found::Address(range) = found
            && !field.octets[start + range.start..start + range.end].contains(&b'@')
        {
            out.extend_from_slice(&field.octets[done..start + range.end]);
            out.extend_from_slice(format!("@{host}").as_bytes());
            done = start + range.end;
        }
    }
    out.extend_from_slice(&field.octets[done..]);
}

/// Writes a name as RFC 5322 §3.2.5 has it: quoted, or in encoded words.
fn phrase(name: &str) -> String {
    let clean: String = name.chars().filter(|c| !c.is_control()).collect();
    if clean.is_ascii() {
        return format!("\"{}\"", clean.replace('\\', "\\\\").replace('"', "\\\""));
    }
    let mut words: Vec<String> = vec![String::new()];
    for c in clean.chars() {
        match words.last_mut() {
            Some(word) if word.len() + c.len_utf8() <= ENCODED_OCTETS_MAX => word.push(c),
            _ => words.push(c.to_string()),
        }
    }
    let encoded = words.iter().map(|word| format!("=?utf-8?B?{}?=", STANDARD.encode(word)));
    encoded.collect::<Vec<_>>().join("\r\n ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(section: &str, name: Option<&str>) -> String {
        let slip = Slip { user: "bob".into(), from: None, name: name.map(Into::into), ..Slip::default() };
        let host = "host.example".parse().expect("a domain");
        String::from_utf8(completed(section.as_bytes(), &slip, &host)).expect("text")
    }

    #[test]
    fn addresses_get_the_name_of_the_host_where_they_have_none() {
        let cron = "From: root (Cron Daemon)\r\nTo: root,\r\n a@b.example, \"X\" <joe>\r\nSubject: root: x, y\r\n\r\n";
        let want = "From: root@host.example (Cron Daemon)\r\nTo: root@host.example,\r\n a@b.example, \
                    \"X\" <joe@host.example>\r\nSubject: root: x, y\r\n\r\n";
        assert_eq!(complete(cron, Some("ignored")), want);
    }

    #[test]
    fn who_says_not_whom_it_is_from_is_named() {
        for (name, want) in [
            (None, "From: bob@host.example\r\n\r\n"),
            (Some("B. \"O\" Ob\r\nBcc: x"), "From: \"B. \\\"O\\\" ObBcc: x\" <bob@host.example>\r\n\r\n"),
            (Some("Bö"), "From: =?utf-8?B?QsO2?= <bob@host.example>\r\n\r\n"),
        ] {
            assert_eq!(complete("\r\n", name), want);
        }
    }
}
