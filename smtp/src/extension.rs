//! What EHLO lists, both ways (RFC 5321 §4.1.1.1).
//!
//! [`Offer`] writes our list; [`Offered`] reads a peer's. A keyword that is not understood is
//! passed over, and a malformed one counts as absent.

use std::io::Write;

use crate::parameter::number;
use crate::release::ReleaseLimit;
use crate::sasl::Mechanism;

/// The version of what members of a mesh say to each other in SMTP. Behind `XMESH` stand all that a
/// host understands.
const MESH_VERSION: &str = "1";

/// What this host offers at one moment of a session.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is one keyword of the list")]
pub struct Offer {
    /// The largest message, in octets (SIZE, RFC 1870).
    pub message_octets_max: u64,
    /// Whether STARTTLS is possible now.
    pub starttls: bool,
    /// Whether AUTH is possible now.
    pub auth: bool,
    /// FUTURERELEASE (RFC 4865), where it is offered.
    pub release: Option<ReleaseLimit>,
    /// Whether CRAM-MD5 is among the mechanisms, where there are any.
    pub cram: bool,
    /// Whether ATRN (RFC 2645) is known here. It is listed before the login: clients look once.
    pub turn: bool,
    /// Whether ETRN (RFC 1985) is possible now.
    pub start: bool,
    /// Whether the session may stay open without work.
    pub keep: bool,
    /// XMESH: whether the client is a member of this host's mesh.
    pub mesh: bool,
}

impl Offer {
    /// Appends the whole reply to EHLO or LHLO, greeting line included.
    pub fn write_to(&self, hostname: &str, out: &mut Vec<u8>) {
        // Writing to a Vec cannot fail.
        let _ = write!(out, "250-{hostname}\r\n250-PIPELINING\r\n250-SIZE {}\r\n", self.message_octets_max);
        if self.starttls {
            out.extend_from_slice(b"250-STARTTLS\r\n");
        }
        if self.auth {
            out.extend_from_slice(if self.cram {
                b"250-AUTH PLAIN LOGIN CRAM-MD5\r\n"
            } else {
                b"250-AUTH PLAIN LOGIN\r\n"
            });
        }
        if self.turn {
            out.extend_from_slice(b"250-ATRN\r\n");
        }
        if self.start {
            out.extend_from_slice(b"250-ETRN\r\n");
        }
        if self.keep {
            out.extend_from_slice(b"250-XKEEP\r\n");
        }
        if let Some(limit) = self.release {
            let _ = write!(out, "250-FUTURERELEASE {limit}\r\n");
        }
        if self.mesh {
            let _ = write!(out, "250-XMESH {MESH_VERSION}\r\n");
        }
        out.extend_from_slice(
            b"250-ENHANCEDSTATUSCODES\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-DSN\r\n250-DELIVERBY\r\n\
              250-MT-PRIORITY\r\n250 CHUNKING\r\n",
        );
    }
}

/// What a peer offers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each is one keyword of the list")]
pub struct Offered {
    /// PIPELINING (RFC 2920).
    pub pipelining: bool,
    /// CHUNKING (RFC 3030).
    pub chunking: bool,
    /// 8BITMIME (RFC 6152).
    pub eight_bit_mime: bool,
    /// SMTPUTF8 (RFC 6531).
    pub smtputf8: bool,
    /// DSN (RFC 3461).
    pub dsn: bool,
    /// DELIVERBY (RFC 2852): the value is the shortest by-time it takes, in seconds; 0 when it
    /// does not say.
    pub deliver_by: Option<u32>,
    /// MT-PRIORITY (RFC 6710); the name of a policy behind it tells us nothing.
    pub mt_priority: bool,
    /// STARTTLS (RFC 3207).
    pub starttls: bool,
    /// ATRN (RFC 2645).
    pub turn: bool,
    /// XKEEP: the session may stay open without work.
    pub keep: bool,
    /// SIZE (RFC 1870): the outer value says whether it was listed, the inner one the limit in
    /// octets when there is one.
    pub size: Option<Option<u64>>,
    /// XMESH, in a version that is understood here.
    pub mesh: bool,
    /// AUTH PLAIN.
    pub auth_plain: bool,
    /// AUTH LOGIN.
    pub auth_login: bool,
}

impl Offered {
    /// Reads the text of a reply to EHLO or LHLO: its first line is the greeting.
    pub fn parse(text: &str) -> Offered {
        let mut offered = Offered::default();
        for line in text.split('\n').skip(1) {
            offered.read_line(line);
        }
        offered
    }

    fn read_line(&mut self, line: &str) {
        let mut words = line.split_ascii_whitespace();
        let Some(keyword) = words.next() else { return };
        // RFC 5321 §4.1.1.1 has keywords in any case; `AUTH=` is how old servers wrote AUTH.
        let keyword = keyword.to_ascii_uppercase();
        match keyword.as_str() {
            "PIPELINING" => self.pipelining = true,
            "CHUNKING" => self.chunking = true,
            "8BITMIME" => self.eight_bit_mime = true,
            "SMTPUTF8" => self.smtputf8 = true,
            "DSN" => self.dsn = true,
            "DELIVERBY" => {
                let seconds = words.next().and_then(number).and_then(|seconds| seconds.try_into().ok());
                self.deliver_by = Some(seconds.unwrap_or(0));
            }
            "MT-PRIORITY" => self.mt_priority = true,
            "STARTTLS" => self.starttls = true,
            "ATRN" => self.turn = true,
            "XKEEP" => self.keep = true,
            "SIZE" => self.size = Some(words.next().and_then(number).filter(|octets| *octets > 0)),
            "XMESH" => self.mesh = words.any(|version| version == MESH_VERSION),
            "AUTH" => words.for_each(|name| self.read_mechanism(name)),
            other => {
                if let Some(first) = other.strip_prefix("AUTH=") {
                    std::iter::once(first).chain(words).for_each(|name| self.read_mechanism(name));
                }
            }
        }
    }

    fn read_mechanism(&mut self, name: &str) {
        match Mechanism::named(name) {
            Some(Mechanism::Plain) => self.auth_plain = true,
            Some(Mechanism::Login) => self.auth_login = true,
            Some(Mechanism::CramMd5) | None => {}
        }
    }

    /// Returns the mechanism to use: PLAIN before LOGIN.
    pub fn mechanism(&self) -> Option<Mechanism> {
        match (self.auth_plain, self.auth_login) {
            (true, _) => Some(Mechanism::Plain),
            (_, true) => Some(Mechanism::Login),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_list_is_one_reply() {
        let mut out = Vec::new();
        let release = Some(ReleaseLimit { seconds_max: 60, unix_ms_max: 1_800_000_000_000 });
        let offer = Offer {
            message_octets_max: 1000,
            starttls: true,
            auth: true,
            release,
            cram: true,
            turn: true,
            start: true,
            keep: true,
            mesh: true,
        };
        offer.write_to("mx.example.org", &mut out);
        assert_eq!(
            String::from_utf8_lossy(&out),
            "250-mx.example.org\r\n250-PIPELINING\r\n250-SIZE 1000\r\n250-STARTTLS\r\n250-AUTH PLAIN LOGIN CRAM-MD5\r\n\
             250-ATRN\r\n250-ETRN\r\n250-XKEEP\r\n250-FUTURERELEASE 60 2027-01-15T08:00:00Z\r\n250-XMESH 1\r\n250-ENHANCEDSTATUSCODES\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-DSN\r\n250-DELIVERBY\r\n\
             250-MT-PRIORITY\r\n250 CHUNKING\r\n"
        );
    }

    #[test]
    fn a_peers_list_is_read_in_any_case_and_order() {
        let offered = Offered::parse(
            "PIPELINING greets\nsize 1000\nX-FOO a b\nauth LOGIN plain GSSAPI\nDsn\n\nStartTLS\nMT-Priority MIXER\nDeliverBy 240",
        );
        let want = Offered {
            size: Some(Some(1000)),
            auth_plain: true,
            auth_login: true,
            dsn: true,
            starttls: true,
            mt_priority: true,
            deliver_by: Some(240),
            ..Offered::default()
        };
        assert_eq!(offered, want);
        assert_eq!(Offered::parse("x\nSIZE 0").size, Some(None));
        assert_eq!(Offered::parse("x\nSIZE -3").size, Some(None));
        assert_eq!(Offered::parse("x\nDELIVERBY").deliver_by, Some(0));
        for (list, want) in [("XMESH 1", true), ("xmesh 2 1 later", true), ("XMESH", false), ("XMESH 2", false)] {
            assert_eq!(Offered::parse(&format!("x\n{list}")).mesh, want, "{list}");
        }
        assert_eq!(Offered::parse("x\nAUTH=LOGIN").mechanism(), Some(Mechanism::Login));
    }
}
