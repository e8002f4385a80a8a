//! What is written reads back, and what was not written by us never panics.

use super::*;

fn item() -> Item {
    let mut all = Recipient::new("a@example.org".parse().expect("path"));
    all.notify = Some(Notify::NEVER);
    all.original = Some(OriginalRecipient { addr_type: "rfc822".into(), address: "x@y".into() });
    let recipients = vec![
        all,
        Recipient::new("postmaster".parse().expect("path")),
        Recipient::new("\"<>\"@b".parse().expect("path")),
    ];
    let params = MailParams {
        eight_bit: true,
        smtputf8: false,
        ret: Some(Ret::Headers),
        envid: Some("e1".into()),
        priority: Priority::new(-9),
        deliver_by: Some(DeliverBy { seconds: -70_000, mode: ByMode::Notify, trace: true }),
        release: Some(Release::After(3)),
        passage: "aaaa:bbbb:cccc,dddd".parse().ok(),
    };
    let report = Report {
        at: UnixMillis(5),
        remote: Some("mx [192.0.2.1]".into()),
        reply: Reply::of(550, Some(Status::new(5, 1, 999)), "no\nsuch user"),
    };
    let mut earlier = History::default();
    earlier.add(Report { remote: None, ..report.clone() });
    earlier.add(Report { at: UnixMillis(8), ..report.clone() });
    let last = Some(report.clone());
    let states = vec![
        RecipientState::Pending { attempts: 3, due: UnixMillis(9), last, earlier },
        RecipientState::Delivered { report: report.clone(), notified: true },
        RecipientState::Failed { report, notified: false },
    ];
    Item {
        id: QueueId::from_u64(1),
        arrived: UnixMillis(2),
        envelope: Envelope::new("s@example.net".parse().expect("path"), params, recipients).expect("recipients"),
        origin: Origin {
            peer: Some("2001:db8::1".parse().expect("address")),
            helo: Some("h".repeat(200).into()),
            user: Some("u".into()),
            protocol: "ESMTPS".into(),
            session: "s1".into(),
        },
        content_octets: 10,
        state: State { held: true, delay_notified: true, expires: UnixMillis(7), recipients: states },
    }
}

#[test]
fn an_item_reads_back() {
    let mut bare = item();
    let release = Some(Release::At(1_800_000_000_000));
    bare.envelope = Envelope::new(
        "".parse().expect("null"),
        MailParams { release, ..MailParams::default() },
        item().envelope.recipients().to_vec(),
    )
    .expect("recipients");
    bare.origin = Origin { peer: Some("192.0.2.7".parse().expect("address")), ..Origin::default() };
    for item in [item(), bare] {
        let mut octets = Vec::new();
        encode_item(&item, &mut octets);
        assert_eq!(decode_item(&octets, item.id, item.content_octets), Ok(item));
    }
}

#[test]
fn a_field_of_a_later_release_is_skipped() {
    let mut octets = Vec::new();
    put(&mut octets, 200, &[7; 300]);
    encode_item(&item(), &mut octets);
    put(&mut octets, 99, b"");
    assert_eq!(decode_item(&octets, item().id, 10), Ok(item()));
}

#[test]
fn cut_or_altered_octets_never_panic() {
    let mut octets = Vec::new();
    encode_item(&item(), &mut octets);
    for end in 0..octets.len() {
        let _ = decode_item(&octets[..end], item().id, 10);
        for value in [0, 0x7f, 0x80, 0xff, octets[end] ^ 1] {
            let mut altered = octets.clone();
            altered[end] = value;
            let _ = decode_item(&altered, item().id, 10);
        }
    }
    assert_eq!(decode_item(&[], item().id, 10), Err(CodecError("a reverse-path")));
}
