//! Messages: the committed corpus, the samples of old mail clients in cargo's registry, and what is
//! better generated than stored.

use std::path::{Path, PathBuf};

/// A message to send.
#[derive(Clone, Debug)]
pub struct Sample {
    /// For people.
    pub name: String,
    /// The octets.
    pub content: Vec<u8>,
}

impl Sample {
    /// Returns whether it may be sent as it is: no NUL, no bare CR or LF.
    pub fn is_sendable(&self) -> bool {
        let content = &self.content;
        let at = |place: usize| content.get(place).copied();
        content.iter().enumerate().all(|(place, octet)| match octet {
            0 => false,
            b'\r' => at(place + 1) == Some(b'\n'),
            b'\n' => place > 0 && at(place - 1) == Some(b'\r'),
            _ => true,
        })
    }
}

/// Returns every message of `tests/corpus`.
pub fn committed() -> Vec<Sample> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut samples = Vec::new();
    for directory in sorted(&root).into_iter().filter(|path| path.is_dir()) {
        samples.extend(read(&directory, false));
    }
    assert!(samples.len() > 90, "only {} messages found", samples.len());
    samples
}

/// Returns the samples of old mail clients that the crate mail-parser carries, from cargo's
/// registry; none when it is not there.
pub fn from_registry() -> Vec<Sample> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    let Some(sources) = home.map(|home| home.join("registry/src")).filter(|path| path.is_dir()) else {
        return Vec::new();
    };
    let legacy = "mail-parser-0.11.9/resources/eml/legacy";
    let directory = sorted(&sources).into_iter().map(|index| index.join(legacy)).find(|path| path.is_dir());
    directory.map_or(Vec::new(), |directory| read(&directory, true))
}

fn read(directory: &Path, normalise: bool) -> Vec<Sample> {
    let messages = sorted(directory).into_iter().filter(|path| path.extension().is_some_and(|name| name == "eml"));
    let sample = |path: PathBuf| {
        let content = std::fs::read(&path).expect("readable");
        let parts: Vec<_> = path.iter().rev().take(2).map(|part| part.to_string_lossy().into_owned()).collect();
        Sample { name: format!("{}/{}", parts[1], parts[0]), content: if normalise { crlf(&content) } else { content } }
    };
    messages.map(sample).collect()
}

fn sorted(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("readable").path()).collect();
    paths.sort();
    paths
}

/// Makes every LF a CRLF.
fn crlf(content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len() + content.len() / 32);
    for (at, octet) in content.iter().enumerate() {
        if *octet == b'\n' && (at == 0 || content[at - 1] != b'\r') {
            out.push(b'\r');
        }
        out.push(*octet);
    }
    out
}

const HEADER: &str = "From: <a@client.test>\r\nTo: <b@sink.test>\r\nSubject: generated\r\n\r\n";

/// Returns messages that test one thing each.
pub fn generated() -> Vec<Sample> {
    let sample = |name: &str, content: Vec<u8>| Sample { name: format!("generated/{name}"), content };
    let with_body = |body: &[u8]| [HEADER.as_bytes(), body].concat();
    let every_octet: Vec<u8> = (1..=255).filter(|octet| !b"\r\n".contains(octet)).collect();
    vec![
        sample("empty body", HEADER.into()),
        sample("header only", HEADER.trim_end().as_bytes().iter().copied().chain(*b"\r\n").collect()),
        sample("nothing but a line end", b"\r\n".to_vec()),
        sample("no header", b"\r\nonly a body\r\n".to_vec()),
        sample("no field at all", b"this is no header field\r\nneither is this\r\n".to_vec()),
        sample("a body of dots", with_body(&b".\r\n..\r\n...\r\n.a\r\n\r\n.\r\n".repeat(100))),
        sample("a dot first", b".\r\n".to_vec()),
        sample("dots first", b"..\r\n".to_vec()),
        sample("lines of 998", with_body(&[&[b'x'; 998][..], b"\r\n"].concat().repeat(20))),
        sample("a line of 100,000", with_body(&[&[b'y'; 100_000][..], b"\r\n"].concat())),
        sample("eight bits", with_body(&[&every_octet, &b"\r\n"[..]].concat().repeat(10))),
        sample("8-bit header", b"Subject: gr\xfc\xdfe\r\nTo: <b@sink.test>\r\n\r\nText\r\n".to_vec()),
        sample("UTF-8 header", "Subject: grüße 試験\r\nTo: <b@sink.test>\r\n\r\nText\r\n".into()),
        sample("empty lines", with_body(&b"\r\n".repeat(1000))),
        sample("many fields", [&b"X-Field: value\r\n".repeat(2000), &b"\r\nbody\r\n"[..]].concat()),
        sample("a long field", with_folds()),
        sample("exactly 64 KiB", exactly(65_536)),
        sample("exactly 256 KiB", exactly(262_144)),
        sample("256 KiB and one", exactly(262_145)),
        sample("1 MiB of text", attachment(1 << 20)),
    ]
}

fn with_folds() -> Vec<u8> {
    let mut content = b"References: ".to_vec();
    (0..3000).for_each(|n| content.extend_from_slice(format!("<{n}@client.test>\r\n ").as_bytes()));
    content.extend_from_slice(b"<end@client.test>\r\n\r\nbody\r\n");
    content
}

/// Returns a message of exactly so many octets.
pub fn exactly(octets: usize) -> Vec<u8> {
    let mut content = HEADER.as_bytes().to_vec();
    while content.len() + 100 < octets {
        content.extend_from_slice(&[b'z'; 70]);
        content.extend_from_slice(b"\r\n");
    }
    let left = octets - content.len() - 2;
    content.extend(std::iter::repeat_n(b'e', left));
    content.extend_from_slice(b"\r\n");
    content
}

/// Returns a message with a base64 attachment of about so many octets.
pub fn attachment(octets: usize) -> Vec<u8> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut content = b"From: <a@client.test>\r\nTo: <b@sink.test>\r\nSubject: attachment\r\n\
        MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=edge\r\n\r\n--edge\r\n\
        Content-Type: application/octet-stream\r\nContent-Transfer-Encoding: base64\r\n\r\n"
        .to_vec();
    let mut random = fastrand::Rng::with_seed(7);
    let mut line = [0; 78];
    line[76..].copy_from_slice(b"\r\n");
    while content.len() < octets {
        let mut bits = [0; 76];
        random.fill(&mut bits);
        line.iter_mut().zip(bits).take(76).for_each(|(place, bits)| *place = ALPHABET[usize::from(bits & 63)]);
        content.extend_from_slice(&line);
    }
    content.extend_from_slice(b"--edge--\r\n");
    content
}
