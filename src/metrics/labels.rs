//! The labels of the metrics: closed sets, each with the names that dashboards and alerts use.

use std::fmt::{self, Write};

use postroad_smtp::Reply;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

/// Declares a label's values with their names.
macro_rules! label {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$variant_doc])* $variant),+
        }

        impl $name {
            /// Every value.
            pub const ALL: [$name; [$($text),+].len()] = [$($name::$variant),+];

            /// Returns the value's name in the metrics.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $($name::$variant => $text),+
                }
            }
        }

        impl EncodeLabelValue for $name {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
                encoder.write_str(self.as_str())
            }
        }
    };
}

label! {
    /// Why something was refused.
    Refusal {
        /// Relaying denied, sender not the login's, authentication required.
        Relay = "relay",
        /// No such mailbox here.
        UnknownRecipient = "unknown_recipient",
        /// Wrong credentials or none where they are needed.
        Auth = "auth",
        /// Larger than we take.
        Size = "size",
        /// Bare line ends, NUL, too many hops.
        Content = "content",
        /// A fault of syntax or sequence.
        Protocol = "protocol",
        /// Too many sessions, recipients, errors.
        Limit = "limit",
        /// No space, or the queue has stopped.
        Storage = "storage",
        /// Too little memory.
        Memory = "memory",
        /// All else.
        Other = "other",
    }
}

label! {
    /// How mail leaves the queue.
    Transport {
        /// To another host by SMTP.
        Smtp = "smtp",
        /// To a mail store by LMTP.
        Lmtp = "lmtp",
        /// Into a Maildir of this host.
        Maildir = "maildir",
        /// No transport was asked: no route, or it expired.
        None = "none",
    }
}

label! {
    /// What a notification tells (RFC 3464 §2.3.3).
    DsnKind {
        /// `Action: failed`.
        Failure = "failure",
        /// `Action: delayed`.
        Delay = "delay",
        /// `Action: delivered` or `relayed`.
        Success = "success",
    }
}

label! {
    /// What a session came for.
    Service {
        /// Port 25.
        Relay = "relay",
        /// Ports 587 and 465.
        Submission = "submission",
    }
}

label! {
    /// Who began the session.
    Direction {
        /// A client of ours.
        In = "in",
        /// We.
        Out = "out",
    }
}

label! {
    /// How a TLS handshake ended.
    Handshake {
        /// The session is secure.
        Done = "done",
        /// It failed.
        Failed = "failed",
    }
}

label! {
    /// What became of an ATRN.
    Turn {
        /// The connection was reversed.
        Done = "done",
        /// Nothing was waiting.
        NoMail = "no_mail",
        /// Refused, or the other host was not reached.
        Failed = "failed",
    }
}

label! {
    /// What a home in the mesh said of a recipient.
    Recipient {
        /// It exists.
        Exists = "exists",
        /// It does not.
        Unknown = "unknown",
        /// The home cannot tell, or did not answer.
        Silent = "silent",
        /// It was not asked: too much is asked already.
        Unasked = "unasked",
    }
}

label! {
    /// What a member of the mesh tried that it may not.
    #[derive(PartialOrd, Ord)]
    Misdeed {
        /// It passed on a statement or record that is forged or damaged.
        Unsound = "unsound",
        /// It passed on what was said in another mesh.
        OtherMesh = "other_mesh",
        /// It handed over mail in another member's name.
        Origin = "origin",
        /// It said more over its link than a member has to say.
        Flood = "flood",
        /// It asked something in another member's name, or passed such a question on.
        Question = "question",
        /// It asked what it may not be told.
        Asked = "asked",
        /// It asked to be let in with what fits no invitation.
        Join = "join",
        /// It asked for octets to be passed to who is no member, or for more sessions of that than it may.
        Through = "through",
        /// It handed over more than its quota.
        OverQuota = "over_quota",
    }
}

impl Refusal {
    /// Returns the reason behind one of our own replies, read from its enhanced status.
    pub fn of(reply: &Reply) -> Refusal {
        let Some(status) = reply.status else { return Refusal::Other };
        match (status.subject, status.detail) {
            (1, 1..=3) | (1, 10) | (2, 1) => Refusal::UnknownRecipient,
            (3, 4) | (2, 3) => Refusal::Size,
            (3, 1) if matches!(reply.code.get(), 421 | 451) => Refusal::Memory,
            (3, _) => Refusal::Storage,
            (5, 3) | (4, 5) | (7, 28) => Refusal::Limit,
            (5, _) => Refusal::Protocol,
            (6, _) | (4, 6) => Refusal::Content,
            (7, 0 | 8 | 9 | 11) => Refusal::Auth,
            (7, _) => Refusal::Relay,
            _ => Refusal::Other,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RefusalLabel {
    pub reason: Refusal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct TransportLabel {
    pub transport: Transport,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct DsnLabel {
    pub kind: DsnKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ServiceLabel {
    pub service: Service,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct DirectionLabel {
    pub direction: Direction,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct TurnLabel {
    pub outcome: Turn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct MisdeedLabel {
    pub what: Misdeed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RecipientLabel {
    pub answer: Recipient,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct HandshakeLabel {
    pub direction: Direction,
    pub outcome: Handshake,
}

#[cfg(test)]
mod tests {
    use super::*;
    use postroad_smtp::Status;

    #[test]
    fn the_reason_is_read_from_the_status() {
        let reason = |class, subject, detail| {
            let code = if class == 4 { 450 } else { 550 };
            Refusal::of(&Reply::of(code, Some(Status::new(class, subject, detail)), "no"))
        };
        assert_eq!(reason(5, 1, 1), Refusal::UnknownRecipient);
        assert_eq!(reason(5, 7, 1), Refusal::Relay);
        assert_eq!(reason(5, 7, 8), Refusal::Auth);
        assert_eq!(reason(5, 3, 4), Refusal::Size);
        assert_eq!(reason(4, 3, 1), Refusal::Storage);
        assert_eq!(reason(4, 5, 3), Refusal::Limit);
        assert_eq!(reason(5, 5, 4), Refusal::Protocol);
        assert_eq!(reason(5, 6, 0), Refusal::Content);
        assert_eq!(Refusal::of(&Reply::of(451, Some(Status::new(4, 3, 1)), "no")), Refusal::Memory);
        assert_eq!(Refusal::of(&Reply::of(550, None, "no")), Refusal::Other);
    }
}
