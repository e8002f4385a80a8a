//! What one listener's sessions are told: names, offers, limits and time-outs.

use std::time::Duration;

use crate::domain::Domain;

/// The settings of a server session; one value serves all sessions of a listener.
#[derive(Clone, Debug)]
pub struct Config {
    /// The name this host greets with.
    pub hostname: Domain,
    /// What the listener is for.
    pub service: Service,
    /// Whether STARTTLS is offered to sessions without TLS.
    pub offer_starttls: bool,
    /// When AUTH is offered.
    pub auth: AuthOffer,
    /// Whether MAIL needs an authenticated user.
    pub require_auth: bool,
    /// Whether ATRN (RFC 2645) is offered to sessions under TLS. Only an authenticated user may say it, or who
    /// has proved otherwise who it is ([`Session::offer_turn`](super::Session::offer_turn)).
    pub turn: bool,
    /// Whether the peer may keep the session open without work: what EHLO says with XKEEP.
    pub keep: bool,
    /// What a session may use.
    pub limits: Limits,
    /// How long a session may take.
    pub timeouts: Timeouts,
}

/// What a listener is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Mail from other hosts (RFC 5321).
    Relay,
    /// Mail from its authors (RFC 6409).
    Submission,
    /// Local delivery (RFC 2033): LHLO, and one reply per recipient behind the content.
    Lmtp,
}

/// When AUTH is offered. There is no offer without TLS: no password travels in the clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthOffer {
    /// Never.
    Never,
    /// In sessions under TLS.
    OverTls,
}

/// The edges of a session.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The largest message, in octets (SIZE, RFC 1870).
    pub message_octets_max: u64,
    /// Recipients of one message (RFC 5321 §4.5.3.1.8 asks for 100 at least).
    pub recipients_max: usize,
    /// Protocol errors in one session; the next one ends it with 421.
    pub errors_max: u32,
    /// Refused recipients, senders and messages in one session; the next one ends it with 421.
    pub refusals_max: u32,
    /// Commands that bring no message forward (NOOP, RSET, EHLO, VRFY…) since the last message.
    pub idle_commands_max: u32,
    /// Failed authentications in one session.
    pub auth_failures_max: u32,
}

/// How long a session may take (RFC 5321 §4.5.3.2.7).
#[derive(Clone, Debug)]
pub struct Timeouts {
    /// For the next complete command.
    pub command: Duration,
    /// For the next octets of content.
    pub content: Duration,
    /// For all of a message's content.
    pub message: Duration,
}

impl Config {
    /// Settings for mail from other hosts, with the defaults below, without TLS and AUTH.
    pub fn relay(hostname: Domain) -> Config {
        Config {
            hostname,
            service: Service::Relay,
            offer_starttls: false,
            auth: AuthOffer::Never,
            require_auth: false,
            turn: false,
            keep: false,
            limits: Limits::default(),
            timeouts: Timeouts::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            message_octets_max: 50_000_000,
            recipients_max: 1000,
            errors_max: 20,
            refusals_max: 100,
            idle_commands_max: 100,
            auth_failures_max: 3,
        }
    }
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            command: Duration::from_secs(5 * 60),
            content: Duration::from_secs(3 * 60),
            message: Duration::from_secs(60 * 60),
        }
    }
}
