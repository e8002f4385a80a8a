//! The commands of a transaction as they go on the wire. A parameter is written only where its
//! extension was offered.

use std::io::Write;

use super::Transaction;
use crate::envelope::Recipient;
use crate::extension::Offered;
use crate::parameter;

/// Returns whether a message can only travel with SMTPUTF8.
pub(super) fn needs_smtputf8(transaction: &Transaction) -> bool {
    transaction.needs_smtputf8
        || !transaction.reverse_path.is_ascii()
        || transaction.recipients.iter().any(|recipient| !recipient.forward_path.is_ascii())
}

/// Returns whether SMTPUTF8 is said: when it is needed, and when the sender said it and it may be.
fn says_smtputf8(transaction: &Transaction, offered: &Offered) -> bool {
    offered.smtputf8 && (transaction.params.smtputf8 || needs_smtputf8(transaction))
}

pub(super) fn write_mail(transaction: &Transaction, offered: &Offered, out: &mut Vec<u8>) {
    // Writing to a Vec cannot fail.
    let _ = write!(out, "MAIL FROM:{}", transaction.reverse_path);
    if offered.size.is_some() {
        let _ = write!(out, " SIZE={}", transaction.content_octets);
    }
    // Where 8BITMIME is not offered the content goes as it is, as it does from other MTAs: hosts
    // that cannot take it died out, and refusing would lose mail.
    if transaction.params.eight_bit && offered.eight_bit_mime {
        out.extend_from_slice(b" BODY=8BITMIME");
    }
    if says_smtputf8(transaction, offered) {
        out.extend_from_slice(b" SMTPUTF8");
    }
    if offered.dsn {
        parameter::write_mail_dsn(&transaction.params, out);
    }
    if offered.deliver_by.is_some() {
        parameter::write_mail_by(&transaction.params, out);
    }
    if offered.mt_priority {
        parameter::write_mail_priority(&transaction.params, out);
    }
    if offered.mesh {
        parameter::write_mail_passage(&transaction.params, out);
    }
    out.extend_from_slice(b"\r\n");
}

pub(super) fn write_rcpt(transaction: &Transaction, recipient: &Recipient, offered: &Offered, out: &mut Vec<u8>) {
    let _ = write!(out, "RCPT TO:{}", recipient.forward_path);
    if offered.dsn {
        parameter::write_rcpt_dsn(recipient, says_smtputf8(transaction, offered), out);
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::MailParams;
    use crate::path::ReversePath;

    #[test]
    fn the_passage_is_for_members_only() {
        let transaction = Transaction {
            reverse_path: ReversePath::Null,
            params: MailParams { passage: "a:b:c".parse().ok(), ..MailParams::default() },
            recipients: Vec::new(),
            content_octets: 1,
            needs_smtputf8: false,
        };
        for (list, want) in
            [("XMESH 1", "MAIL FROM:<> XMESH=a:b:c\r\n"), ("XMESH 2", "MAIL FROM:<>\r\n"), ("", "MAIL FROM:<>\r\n")]
        {
            let mut out = Vec::new();
            write_mail(&transaction, &Offered::parse(&format!("x\n{list}")), &mut out);
            assert_eq!(String::from_utf8_lossy(&out), want, "{list}");
        }
    }
}
