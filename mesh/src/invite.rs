//! Invitations: how a host that nobody knows becomes a member with one command.
//!
//! The text of an invitation names the inviter by its node id, so the joiner trusts no address, and
//! carries a secret of 128 bits. Over the TLS session with exactly that node the joiner proves that it
//! knows the secret, bound to this session (RFC 9266, `tls-exporter`) and to both keys: a proxy in between
//! has another session, and what it overheard is worth nothing in it.
//!
//! The inviter keeps what it invited in [`Invitations`]: how often, until when, with which rights.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;
use postroad_smtp::Domain;

use crate::caps::Caps;
use crate::node::{NodeId, base32, from_base32, sha256};
use crate::record::Address;

/// Octets of the secret.
pub const SECRET_OCTETS: usize = 16;
/// The most addresses in an invitation.
pub const ADDRESSES_MAX: usize = 8;
/// The most invitations open at a time at one node.
pub const INVITATIONS_MAX: usize = 1_000;
/// What an invitation begins with, its format version included.
const PREFIX: &str = "mesh1:";

/// An invitation as it is handed over, by whatever means people trust.
#[derive(Clone, PartialEq, Eq)]
pub struct Invitation {
    /// Where the inviter is reached, as an [`Address`] is written; at least one.
    pub addresses: Vec<Box<str>>,
    /// Who invites.
    pub inviter: NodeId,
    /// What proves that one was invited.
    pub secret: [u8; SECRET_OCTETS],
}

/// The text is no invitation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvitationError {
    /// Something else.
    #[error("an invitation begins with {PREFIX}")]
    Prefix,
    /// Part of it was lost on the way.
    #[error("the invitation is cut short or mistyped; copy it whole, on one line")]
    Form,
    /// No address of the form `host:port`.
    #[error("the invitation names no address")]
    Address,
}

/// What a joiner shows: that it knows the secret, in this session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof([u8; 32]);

/// The invitations that a node has given out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Invitations {
    open: Vec<Open>,
}

/// One of them.
#[derive(Clone, PartialEq, Eq)]
pub struct Open {
    /// What the joiner has to know.
    pub secret: [u8; SECRET_OCTETS],
    /// When it ends, in milliseconds since the Unix epoch.
    pub until: u64,
    /// How many may still join by it.
    pub uses: u32,
    /// What they may do.
    pub caps: Caps,
    /// The domains whose mail they may take.
    pub serves: Vec<Domain>,
}

/// Why somebody is not let in. Who asks is told one thing for all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no open invitation for this proof: it may be used up, ended or mistyped")]
pub struct NotInvited;

impl Invitation {
    /// Returns the proof for a session with the inviter.
    pub fn prove(&self, exporter: &[u8; 32], joiner: &NodeId) -> Proof {
        Proof(*prove(&self.secret, exporter, joiner, &self.inviter).as_ref().first_chunk().expect("32 octets"))
    }
}

/// What the secret vouches for: this session, between these two.
fn prove(secret: &[u8], exporter: &[u8; 32], joiner: &NodeId, inviter: &NodeId) -> hmac::Tag {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let said = [b"postroad mesh 1 join\0", &exporter[..], joiner.octets(), inviter.octets()].concat();
    hmac::sign(&key, &said)
}

impl Proof {
    /// Takes a proof from its octets.
    pub fn from_octets(octets: [u8; 32]) -> Proof {
        Proof(octets)
    }

    /// Returns the octets.
    pub fn octets(&self) -> &[u8; 32] {
        &self.0
    }
}

impl Invitations {
    /// Takes a new one in; those that have ended by `now` go. The oldest goes when there are too many.
    pub fn add(&mut self, open: Open, now: u64) {
        self.open.retain(|open| open.uses > 0 && now < open.until);
        if self.open.len() >= INVITATIONS_MAX {
            self.open.remove(0);
        }
        self.open.push(open);
    }

    /// Uses up one invitation for a proof and returns it.
    ///
    /// # Errors
    ///
    /// When none that is open at `now` fits.
    pub fn redeem(
        &mut self,
        proof: &Proof,
        exporter: &[u8; 32],
        joiner: &NodeId,
        inviter: &NodeId,
        now: u64,
    ) -> Result<Open, NotInvited> {
        let fits = |open: &&mut Open| {
            let expected = prove(&open.secret, exporter, joiner, inviter);
            open.uses > 0 && now < open.until && verify_slices_are_equal(expected.as_ref(), &proof.0).is_ok()
        };
        let open = self.open.iter_mut().find(fits).ok_or(NotInvited)?;
        open.uses -= 1;
        let used = open.clone();
        self.open.retain(|open| open.uses > 0 && now < open.until);
        Ok(used)
    }

    /// Returns what is open, the oldest first.
    pub fn open(&self) -> &[Open] {
        &self.open
    }
}

impl FromStr for Invitation {
    type Err = InvitationError;

    fn from_str(text: &str) -> Result<Invitation, InvitationError> {
        let rest = text.trim().strip_prefix(PREFIX).ok_or(InvitationError::Prefix)?;
        // Addresses may have colons in them, ids and secrets have none.
        let mut parts = rest.rsplitn(3, ':');
        let mut next = || parts.next().ok_or(InvitationError::Form);
        let (secret, inviter, addresses) = (next()?, next()?, next()?);
        let inviter = inviter.parse().map_err(|_| InvitationError::Form)?;
        let octets = from_base32(secret).ok_or(InvitationError::Form)?;
        let (secret, check) = octets.split_first_chunk().ok_or(InvitationError::Form)?;
        let addresses: Vec<Box<str>> = addresses.split(',').map(Box::from).collect();
        if addresses.len() > ADDRESSES_MAX || !addresses.iter().all(|address| address.parse::<Address>().is_ok()) {
            return Err(InvitationError::Address);
        }
        let invitation = Invitation { addresses, inviter, secret: *secret };
        if check != invitation.check() {
            return Err(InvitationError::Form);
        }
        Ok(invitation)
    }
}

impl Invitation {
    /// Four octets that tell a mistyped invitation from one that is used up.
    fn check(&self) -> [u8; 4] {
        let sum = sha256(&[self.addresses.join(",").as_bytes(), self.inviter.octets(), &self.secret]);
        *sum.first_chunk().expect("a hash is longer")
    }
}

impl fmt::Display for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secret = base32(&[&self.secret[..], &self.check()].concat());
        write!(f, "{PREFIX}{}:{}:{secret}", self.addresses.join(","), self.inviter)
    }
}

impl fmt::Debug for Invitation {
    /// Without the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Invitation by {:?} at {:?}", self.inviter, self.addresses)
    }
}

impl fmt::Debug for Open {
    /// Without the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Open {{ until: {}, uses: {}, caps: {:?}, serves: {:?} }}",
            self.until, self.uses, self.caps, self.serves
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOUR: u64 = 3_600_000;

    fn node(number: u8) -> NodeId {
        NodeId::from_octets([number; 32])
    }

    fn invitation() -> Invitation {
        Invitation {
            addresses: vec!["a.example:25".into(), "[2001:db8::1]:2525".into()],
            inviter: node(1),
            secret: [7; 16],
        }
    }

    fn invitations(uses: u32) -> Invitations {
        let mut invitations = Invitations::default();
        invitations.add(Open { secret: [7; 16], until: HOUR, uses, caps: Caps::RELAY, serves: Vec::new() }, 0);
        invitations
    }

    #[test]
    fn whoever_knows_the_secret_joins_as_often_as_it_says() {
        let (mut invitations, session) = (invitations(2), [9; 32]);
        for joiner in [node(2), node(3)] {
            let proof = invitation().prove(&session, &joiner);
            assert_eq!(invitations.redeem(&proof, &session, &joiner, &node(1), 5).expect("open").caps, Caps::RELAY);
        }
        let proof = invitation().prove(&session, &node(4));
        assert_eq!(invitations.redeem(&proof, &session, &node(4), &node(1), 5), Err(NotInvited));
        assert!(invitations.open().is_empty());
    }

    #[test]
    fn a_proof_is_worth_nothing_elsewhere() {
        let proof = invitation().prove(&[9; 32], &node(2));
        let refuses = |exporter: [u8; 32], joiner, inviter, now| {
            invitations(1).redeem(&proof, &exporter, &joiner, &inviter, now) == Err(NotInvited)
        };
        assert!(!refuses([9; 32], node(2), node(1), 0));
        assert!(refuses([8; 32], node(2), node(1), 0), "in another session");
        assert!(refuses([9; 32], node(3), node(1), 0), "by another node");
        assert!(refuses([9; 32], node(2), node(3), 0), "at another node");
        assert!(refuses([9; 32], node(2), node(1), HOUR), "too late");
    }

    /// A thousand of each: the secret guessed, what was overheard in another session or a session with whoever stands
    /// in between, said by another node, meant for another inviter, and a proof that was good, with an octet altered.
    #[test]
    fn of_a_thousand_attempts_of_each_kind_none_fits() {
        let mut invitations = invitations(9);
        let good = invitation().prove(&[9; 32], &node(2));
        for attempt in 0..1_000u16 {
            let wrong = sha256(&[&attempt.to_be_bytes()]);
            let guessed = Invitation { secret: *wrong.first_chunk().expect("a hash is longer"), ..invitation() };
            let elsewhere = Invitation { inviter: NodeId::from_octets(wrong), ..invitation() };
            let mut altered = *good.octets();
            altered[usize::from(attempt) % 32] ^= (attempt % 255 + 1) as u8;
            let proofs = [
                guessed.prove(&[9; 32], &node(2)),
                invitation().prove(&wrong, &node(2)),
                invitation().prove(&[9; 32], &NodeId::from_octets(wrong)),
                elsewhere.prove(&[9; 32], &node(2)),
                Proof::from_octets(altered),
            ];
            for proof in proofs {
                assert_eq!(invitations.redeem(&proof, &[9; 32], &node(2), &node(1), 5), Err(NotInvited));
            }
            // The good one, said again by whoever heard it: in its own session, by its own key.
            assert_eq!(invitations.redeem(&good, &wrong, &node(2), &node(1), 5), Err(NotInvited));
            assert_eq!(invitations.redeem(&good, &[9; 32], &NodeId::from_octets(wrong), &node(1), 5), Err(NotInvited));
        }
        assert_eq!(invitations.open()[0].uses, 9);
        assert!(invitations.redeem(&good, &[9; 32], &node(2), &node(1), 5).is_ok());
    }

    #[test]
    fn the_text_says_what_is_wrong_with_it() {
        let text = invitation().to_string();
        assert_eq!(text.parse(), Ok(invitation()));
        assert_eq!("mash1:x".parse::<Invitation>(), Err(InvitationError::Prefix));
        assert_eq!(text[..text.len() - 3].parse::<Invitation>(), Err(InvitationError::Form));
        assert_eq!(text.replace("a.example:25", "a.example:26").parse::<Invitation>(), Err(InvitationError::Form));
        assert_eq!(text.replace("a.example:25", "a.example").parse::<Invitation>(), Err(InvitationError::Address));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_stumble(text in "mesh1:[a-z0-9:,.]{0,120}") {
            prop_assert!(text.parse::<Invitation>().is_err());
        }
    }
}
