//! The one table of what the policy says on the wire. Texts name the remedy, since the person who
//! reads them in a notification is often the one who can apply it.

use postroad_smtp::{Reply, Status};

const fn reply(code: u16, class: u8, subject: u16, detail: u16, text: &'static str) -> Reply {
    Reply::of(code, Some(Status::new(class, subject, detail)), text)
}

/// Too many sessions of one address.
pub const TOO_MANY_SESSIONS_OF_ADDRESS: Reply =
    reply(421, 4, 7, 0, "too many sessions from your address; close some or try again later");

/// Too many sessions altogether.
pub const TOO_MANY_SESSIONS: Reply = reply(421, 4, 3, 2, "too many sessions; try again later");

/// A login is needed first (RFC 4954 §6).
pub const LOGIN_NEEDED: Reply = reply(530, 5, 7, 0, "log in first: mail enters this port with AUTH only");

/// Name or password is wrong (RFC 4954 §6).
pub const WRONG_CREDENTIALS: Reply = reply(535, 5, 7, 8, "user name or password is wrong");

/// Too many wrong passwords.
pub const TOO_MANY_LOGIN_FAILURES: Reply =
    reply(454, 4, 7, 0, "too many failed logins from your address; try again in ten minutes");

/// The verification could not be done now.
pub const TOO_BUSY_FOR_LOGIN: Reply = reply(454, 4, 7, 0, "too many logins at once; try again later");

/// The user was removed during the session.
pub const LOGIN_GONE: Reply = reply(550, 5, 7, 1, "your login is no longer valid; ask the admin for a new one");

/// A sender address that does not belong to the login.
pub const NOT_YOUR_ADDRESS: Reply = reply(
    550,
    5,
    7,
    1,
    "this sender address does not belong to your login; use your own, or have the admin add it to the users file",
);

/// The null reverse-path with several recipients, from a login.
pub const NULL_FOR_ONE_ONLY: Reply =
    reply(550, 5, 7, 1, "a message from <> goes to one recipient; write your address as the sender");

/// A by-time that ends before the release.
pub const LATE_BEFORE_RELEASE: Reply =
    reply(501, 5, 5, 4, "the time for the delivery (BY) ends before the message is released (HOLDFOR, HOLDUNTIL)");

/// A stranger and a recipient elsewhere.
pub const RELAY_DENIED: Reply = reply(
    550,
    5,
    7,
    1,
    "relay access denied: log in first, or have the admin of this host add your address to relay.networks",
);

/// A member of the mesh whose mail this host would have to send where it does not send members' mail.
/// Members may see the mesh differently for a while, so nothing is final.
pub const NOT_CARRIED: Reply = reply(451, 4, 4, 4, "this host sends no mail of members there: see egress in [mesh]");

/// A member of the mesh that was admitted without the right to relay.
pub const MEMBER_MAY_NOT_RELAY: Reply = reply(
    451,
    4,
    7,
    1,
    "this member may send here only what this host serves or holds; have it admitted again with the right to relay",
);

/// Names that stand for so many addresses that one message would be for more than there may be.
pub const TOO_MANY_BEHIND_ALIASES: Reply =
    reply(552, 5, 5, 3, "the names stand for too many addresses together; send it to some of them at a time");

/// A local domain without that mailbox.
pub const NO_SUCH_MAILBOX: Reply = reply(550, 5, 1, 1, "no mailbox of this name here; check the spelling");

/// A domain of another member of the mesh, which has no such mailbox. The home said so itself.
pub const NO_SUCH_MAILBOX_AT_HOME: Reply =
    reply(550, 5, 1, 1, "the host of this domain has no mailbox of this name; check the spelling");

/// A domain that this host passes on, for which its route names no such mailbox.
pub const NO_SUCH_MAILBOX_BEHIND: Reply =
    reply(550, 5, 1, 1, "this domain has no mailbox of this name; check the spelling");

/// Recipients at other members that would have to be asked about, from somebody who may not relay.
pub const TOO_MANY_TO_ASK: Reply =
    reply(451, 4, 3, 2, "too many recipients are being looked up at their home now; try again later");

/// `<Postmaster>` on a host where nobody has that duty.
pub const NO_POSTMASTER: Reply =
    reply(550, 5, 1, 1, "nobody reads postmaster mail here; the admin may set `postmaster` in the configuration");

/// The user directory could not be looked at.
pub const LOOKUP_FAILED: Reply = reply(451, 4, 3, 0, "the mailbox cannot be looked up now; try again later");

/// A domain without a dot.
pub const DOMAIN_INCOMPLETE: Reply =
    reply(550, 5, 1, 2, "the recipient's domain is incomplete; write it in full, such as user@example.org");

/// ATRN of a login for which nothing is kept.
pub const NOTHING_KEPT: Reply = reply(450, 4, 7, 1, "no mail is kept for your login; ask the admin of this host");

/// ATRN for a domain of somebody else. None of the others is sent either (RFC 2645 §5.2.1).
pub const NOT_YOUR_DOMAIN: Reply =
    reply(450, 4, 7, 1, "not every domain that you named is kept for your login; name yours, or none for all of them");

/// ATRN of a node that no record says of that it cannot be dialled.
pub const NOT_HELD_FOR_YOU: Reply =
    reply(450, 4, 7, 1, "this host knows of no member with your key that dials out; see reach in [mesh]");

/// ATRN of a member for one domain: what goes to a node is no matter of domains.
pub const MEMBERS_NAME_NO_DOMAIN: Reply =
    reply(450, 4, 7, 1, "a member of the mesh gets all that goes to it and nothing else; say ATRN alone");

/// ETRN of somebody who may not relay.
pub const NODE_NOT_ALLOWED: Reply =
    reply(459, 4, 7, 1, "node not allowed: only who may relay has what waits tried at once");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn class_and_code_agree_and_lines_are_short() {
        for reply in [
            TOO_MANY_SESSIONS_OF_ADDRESS,
            TOO_MANY_SESSIONS,
            LOGIN_NEEDED,
            WRONG_CREDENTIALS,
            TOO_MANY_LOGIN_FAILURES,
            TOO_BUSY_FOR_LOGIN,
            LOGIN_GONE,
            NOT_YOUR_ADDRESS,
            LATE_BEFORE_RELEASE,
            NULL_FOR_ONE_ONLY,
            RELAY_DENIED,
            TOO_MANY_BEHIND_ALIASES,
            NO_SUCH_MAILBOX,
            NO_SUCH_MAILBOX_AT_HOME,
            NO_SUCH_MAILBOX_BEHIND,
            TOO_MANY_TO_ASK,
            NO_POSTMASTER,
            LOOKUP_FAILED,
            DOMAIN_INCOMPLETE,
            NOTHING_KEPT,
            NOT_YOUR_DOMAIN,
            NOT_HELD_FOR_YOU,
            MEMBERS_NAME_NO_DOMAIN,
            NODE_NOT_ALLOWED,
        ] {
            let status = reply.status.expect("every one has a status");
            assert_eq!(u16::from(status.class), reply.code.get() / 100, "{reply}");
            assert!(reply.to_string().len() < 500, "{reply}");
        }
    }
}
