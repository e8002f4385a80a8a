//! The parameters of MAIL and RCPT, read and written (RFC 5321 §4.1.2 `Mail-parameters`).
//!
//! Unknown, doubled and malformed parameters are refused: a parameter that is dropped in silence
//! is a promise broken in silence.

use std::io::Write;

use crate::command::CommandError;
use crate::envelope::{MailParams, Notify, OriginalRecipient, Recipient, Ret};
use crate::path::ForwardPath;
use crate::release::Release;
use crate::xtext::{self, Utf8Xtext, Xtext};

/// Reads a decimal number of at most 20 digits: no sign, no space.
pub(crate) fn number(digits: &str) -> Option<u64> {
    let good = (1..=20).contains(&digits.len()) && digits.bytes().all(|c| c.is_ascii_digit());
    good.then(|| digits.parse().ok()).flatten()
}

/// Reads the parameters of MAIL: those that travel on, and SIZE.
pub(crate) fn parse_mail(text: &str) -> Result<(MailParams, Option<u64>), CommandError> {
    let mut params = MailParams::default();
    let (mut size, mut body, mut auth) = (None, None, None);
    for parameter in split(text) {
        let (keyword, value) = parameter?;
        let once = if is(keyword, "SIZE") {
            size.replace(value.and_then(number).ok_or(CommandError::Size)?).is_none()
        } else if is(keyword, "BODY") {
            body.replace(parse_body(value)?).is_none()
        } else if is(keyword, "SMTPUTF8") {
            value.map_or(Ok(()), |_| Err(CommandError::SmtpUtf8))?;
            !std::mem::replace(&mut params.smtputf8, true)
        } else if is(keyword, "RET") {
            params.ret.replace(parse_ret(value)?).is_none()
        } else if is(keyword, "ENVID") {
            params.envid.replace(value.and_then(xtext::decode).ok_or(CommandError::EnvId)?).is_none()
        } else if is(keyword, "MT-PRIORITY") {
            let priority = value.and_then(|value| value.parse().ok()).ok_or(CommandError::Priority)?;
            params.priority.replace(priority).is_none()
        } else if is(keyword, "BY") {
            let by = value.and_then(|value| value.parse().ok()).ok_or(CommandError::DeliverBy)?;
            params.deliver_by.replace(by).is_none()
        } else if is(keyword, "HOLDFOR") || is(keyword, "HOLDUNTIL") {
            let release = parse_release(keyword, value)?;
            params.release.replace(release).map_or(Ok(true), |_| Err(CommandError::HeldTwice))?
        } else if is(keyword, "XMESH") {
            let passage = value.and_then(|value| value.parse().ok()).ok_or(CommandError::Passage)?;
            params.passage.replace(passage).is_none()
        } else if is(keyword, "AUTH") {
            auth.replace(check_auth(value)?).is_none()
        } else {
            return Err(CommandError::ParameterUnknown);
        };
        if !once {
            return Err(CommandError::ParameterDuplicate);
        }
    }
    params.eight_bit = body == Some(true);
    Ok((params, size))
}

/// Reads the parameters of RCPT.
pub(crate) fn parse_rcpt(forward_path: ForwardPath, text: &str) -> Result<Recipient, CommandError> {
    let mut recipient = Recipient::new(forward_path);
    for parameter in split(text) {
        let (keyword, value) = parameter?;
        let once = if is(keyword, "NOTIFY") {
            recipient.notify.replace(value.and_then(parse_notify).ok_or(CommandError::Notify)?).is_none()
        } else if is(keyword, "ORCPT") {
            let original = value.and_then(parse_original).ok_or(CommandError::OriginalRecipient)?;
            recipient.original.replace(original).is_none()
        } else {
            return Err(CommandError::ParameterUnknown);
        };
        if !once {
            return Err(CommandError::ParameterDuplicate);
        }
    }
    Ok(recipient)
}

fn is(keyword: &str, name: &str) -> bool {
    keyword.eq_ignore_ascii_case(name)
}

type Parameter<'a> = (&'a str, Option<&'a str>);

/// Splits ` KEY=value KEY` at single spaces.
fn split(text: &str) -> impl Iterator<Item = Result<Parameter<'_>, CommandError>> {
    let (fault, list) = match text.strip_prefix(' ') {
        Some(list) => (None, Some(list)),
        None if text.is_empty() => (None, None),
        None => (Some(Err(CommandError::ParameterSyntax)), None),
    };
    fault.into_iter().chain(list.into_iter().flat_map(|list| list.split(' ')).map(|word| {
        let (keyword, value) = match word.split_once('=') {
            Some((keyword, value)) => (keyword, Some(value)),
            None => (word, None),
        };
        let good = !keyword.is_empty() && keyword.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-');
        let good = good && value.is_none_or(|value| !value.is_empty() && !value.contains('='));
        if good { Ok((keyword, value)) } else { Err(CommandError::ParameterSyntax) }
    }))
}

fn parse_body(value: Option<&str>) -> Result<bool, CommandError> {
    match value {
        Some(value) if is(value, "8BITMIME") => Ok(true),
        Some(value) if is(value, "7BIT") => Ok(false),
        _ => Err(CommandError::Body),
    }
}

fn parse_ret(value: Option<&str>) -> Result<Ret, CommandError> {
    match value {
        Some(value) if is(value, "FULL") => Ok(Ret::Full),
        Some(value) if is(value, "HDRS") => Ok(Ret::Headers),
        _ => Err(CommandError::Ret),
    }
}

fn parse_release(keyword: &str, value: Option<&str>) -> Result<Release, CommandError> {
    if is(keyword, "HOLDFOR") {
        value.and_then(Release::parse_after).ok_or(CommandError::HoldFor)
    } else {
        value.and_then(Release::parse_at).ok_or(CommandError::HoldUntil)
    }
}

/// AUTH= is checked and dropped: no peer is trusted to vouch for another (RFC 4954 §5 allows it).
fn check_auth(value: Option<&str>) -> Result<(), CommandError> {
    match value {
        Some("<>") => Ok(()),
        Some(value) => xtext::decode(value).map(|_| ()).ok_or(CommandError::AuthParameter),
        None => Err(CommandError::AuthParameter),
    }
}

fn parse_notify(value: &str) -> Option<Notify> {
    if is(value, "NEVER") {
        return Some(Notify::NEVER);
    }
    let mut notify = Notify::NEVER;
    for word in value.split(',') {
        match word {
            _ if is(word, "SUCCESS") => notify.success = true,
            _ if is(word, "FAILURE") => notify.failure = true,
            _ if is(word, "DELAY") => notify.delay = true,
            _ => return None,
        }
    }
    Some(notify)
}

fn parse_original(value: &str) -> Option<OriginalRecipient> {
    let (addr_type, address) = value.split_once(';')?;
    let atom = !addr_type.is_empty() && addr_type.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-');
    let addr_type: Box<str> = atom.then(|| addr_type.to_ascii_lowercase().into())?;
    let address = if &*addr_type == "utf-8" { xtext::decode_utf8(address)? } else { xtext::decode(address)? };
    Some(OriginalRecipient { addr_type, address })
}

/// Appends ` RET=…` and ` ENVID=…`.
pub(crate) fn write_mail_dsn(params: &MailParams, out: &mut Vec<u8>) {
    // Writing to a Vec cannot fail.
    if let Some(ret) = params.ret {
        let _ = write!(out, " RET={}", if ret == Ret::Full { "FULL" } else { "HDRS" });
    }
    if let Some(envid) = &params.envid {
        let _ = write!(out, " ENVID={}", Xtext(envid));
    }
}

/// Appends ` MT-PRIORITY=…`.
pub(crate) fn write_mail_priority(params: &MailParams, out: &mut Vec<u8>) {
    if let Some(priority) = params.priority {
        let _ = write!(out, " MT-PRIORITY={priority}");
    }
}

/// Appends ` BY=…`.
pub(crate) fn write_mail_by(params: &MailParams, out: &mut Vec<u8>) {
    if let Some(by) = params.deliver_by {
        let _ = write!(out, " BY={by}");
    }
}

/// Appends ` XMESH=…`.
pub(crate) fn write_mail_passage(params: &MailParams, out: &mut Vec<u8>) {
    if let Some(passage) = &params.passage {
        let _ = write!(out, " XMESH={passage}");
    }
}

/// Appends ` NOTIFY=…` and ` ORCPT=…`.
pub(crate) fn write_rcpt_dsn(recipient: &Recipient, utf8: bool, out: &mut Vec<u8>) {
    if let Some(notify) = recipient.notify {
        let _ = write!(out, " NOTIFY={notify}");
    }
    if let Some(OriginalRecipient { addr_type, address }) = &recipient.original {
        let _ = match &**addr_type {
            "utf-8" => write!(out, " ORCPT=utf-8;{}", Utf8Xtext { address, utf8 }),
            other => write!(out, " ORCPT={other};{}", Xtext(address)),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deliver_by::{ByMode, DeliverBy};
    use crate::priority::Priority;

    #[test]
    fn every_parameter_of_mail_is_read() {
        let text = " size=1000 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=a+2Bb mt-priority=-3 by=60;rt holdfor=9 xmesh=a:b AUTH=<>";
        let (params, size) = parse_mail(text).expect("valid");
        assert_eq!(size, Some(1000));
        let want = MailParams {
            eight_bit: true,
            smtputf8: true,
            ret: Some(Ret::Headers),
            envid: Some("a+b".into()),
            priority: Priority::new(-3),
            deliver_by: Some(DeliverBy { seconds: 60, mode: ByMode::Return, trace: true }),
            release: Some(Release::After(9)),
            passage: "a:b".parse().ok(),
        };
        assert_eq!(params, want);
    }

    #[test]
    fn a_fault_is_named() {
        use CommandError as E;
        for (text, want) in [
            (" SIZE", E::Size),
            (" SIZE=-1", E::Size),
            (" SIZE=1 SIZE=1", E::ParameterDuplicate),
            (" BODY=7BIT body=7bit", E::ParameterDuplicate),
            (" SMTPUTF8 SMTPUTF8", E::ParameterDuplicate),
            (" AUTH=a AUTH=<>", E::ParameterDuplicate),
            (" BODY=BINARYMIME", E::Body),
            (" SMTPUTF8=1", E::SmtpUtf8),
            (" RET=ALL", E::Ret),
            (" ENVID=a+0Db", E::EnvId),
            (" AUTH=a+00", E::AuthParameter),
            (" BY=0;R", E::DeliverBy),
            (" BY=1", E::DeliverBy),
            (" BY=1;N BY=1;N", E::ParameterDuplicate),
            (" HOLDFOR=1h", E::HoldFor),
            (" HOLDUNTIL=tomorrow", E::HoldUntil),
            (" HOLDFOR=1 HOLDFOR=1", E::HeldTwice),
            (" HOLDFOR=1 HOLDUNTIL=2027-01-15T08:00:00Z", E::HeldTwice),
            (" MT-PRIORITY", E::Priority),
            (" MT-PRIORITY=10", E::Priority),
            (" MT-PRIORITY=1 MT-PRIORITY=1", E::ParameterDuplicate),
            (" XMESH", E::Passage),
            (" XMESH=A", E::Passage),
            (" XMESH=a XMESH=a", E::ParameterDuplicate),
            (" X-FOO=1", E::ParameterUnknown),
            (" S\u{f6}=1", E::ParameterSyntax),
            (" SIZE=", E::ParameterSyntax),
            ("SIZE=1", E::ParameterSyntax),
        ] {
            assert_eq!(parse_mail(text), Err(want), "{text}");
        }
    }

    #[test]
    fn rcpt_parameters_come_back_as_they_were() {
        for text in [
            " NOTIFY=NEVER",
            " NOTIFY=SUCCESS,DELAY ORCPT=rfc822;a+2Bb@c",
            " ORCPT=utf-8;j\\x{FC}rgen@c",
            " ORCPT=x400;a",
        ] {
            let recipient = parse_rcpt(ForwardPath::Postmaster, text).expect(text);
            let mut out = Vec::new();
            write_rcpt_dsn(&recipient, false, &mut out);
            assert_eq!(String::from_utf8_lossy(&out), text);
        }
        for text in
            [" NOTIFY=NEVER,DELAY", " NOTIFY=", " ORCPT=a", " ORCPT=;a", " ORCPT=rfc822;a+0A", " ORCPT=rfc822;\u{fc}"]
        {
            assert!(parse_rcpt(ForwardPath::Postmaster, text).is_err(), "{text}");
        }
    }
}
