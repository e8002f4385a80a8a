//! Delivery status notifications, read back by an independent parser: every field, every kind
//! (against `tests/golden/dsn`), who is told when, and what a hostile reply or message does.

use mail_parser::{Message, MessageParser, MimeHeaders, PartType};
use postroad::dsn::{
    Composed, Due, Kind, Notification, Policy, Terms, compose, due_notifications, expire, octets_wanted,
};
use postroad_queue::{History, Item, Origin, QueueId, RecipientState, Report, State, UnixMillis};
use postroad_smtp::{
    Domain, Envelope, MailParams, Notify, OriginalRecipient, Recipient, Reply, Ret, ReversePath, Status,
};

const ARRIVED: UnixMillis = UnixMillis(1_795_320_000_000);
const HOUR_MS: u64 = 3_600_000;
const ORIGINAL: &str = "Received: from client.example.org by mx.example.org; Sun, 22 Nov 2026 04:00:00 +0000\r\n\
    From: Alice <alice@example.org>\r\nTo: bob@example.net\r\nSubject: The quarterly figures\r\n\
    Message-ID: <figures.1@example.org>\r\n\r\nDear Bob,\r\n\r\n--see below--\r\n.\r\n";

fn policy() -> Policy {
    Policy::default()
}

fn hostname() -> Domain {
    "mx.example.org".parse().expect("valid")
}

fn recipient(address: &str, notify: Option<Notify>) -> Recipient {
    Recipient { forward_path: address.parse().expect("valid"), notify, original: None }
}

fn report(code: u16, status: Option<Status>, text: &str) -> Report {
    Report {
        at: ARRIVED.plus(30_000),
        remote: Some("mx2.example.net [192.0.2.7]".into()),
        reply: Reply::of(code, status, "").with_text(text),
    }
}

fn failed(code: u16, status: Option<Status>, text: &str) -> RecipientState {
    RecipientState::Failed { report: report(code, status, text), notified: false }
}

fn unknown_user() -> RecipientState {
    failed(550, Some(Status::new(5, 1, 1)), "No such user here\nsee https://example.net/why")
}

fn delivered() -> RecipientState {
    RecipientState::Delivered { report: report(250, Some(Status::new(2, 0, 0)), "queued as 7F"), notified: false }
}

fn pending(attempts: u32) -> RecipientState {
    let last = (attempts > 0).then(|| report(450, Some(Status::new(4, 2, 0)), "Greylisted, try again later"));
    RecipientState::Pending { attempts, due: ARRIVED.plus(HOUR_MS), last, earlier: History::default() }
}

fn item(reverse_path: &str, recipients: Vec<(Recipient, RecipientState)>, content: &[u8]) -> Item {
    let (recipients, states): (Vec<_>, Vec<_>) = recipients.into_iter().unzip();
    let params = MailParams { envid: Some("QQ314159".into()), ..MailParams::default() };
    let reverse_path: ReversePath = reverse_path.parse().expect("valid");
    Item {
        id: QueueId::from_u64(ARRIVED.0 << 20 | 5),
        arrived: ARRIVED,
        envelope: Envelope::new(reverse_path, params, recipients).expect("not empty"),
        origin: Origin { helo: Some("client.example.org".into()), ..Origin::default() },
        content_octets: content.len() as u64,
        state: State {
            held: false,
            delay_notified: false,
            expires: ARRIVED.plus(5 * 24 * HOUR_MS),
            recipients: states,
        },
    }
}

/// Mail for local.example ends here; everybody hears of a delay after four hours.
fn terms(item: &Item, place: usize) -> Terms {
    let domain = item.envelope.recipients()[place].forward_path.domain();
    let is_final = domain.is_some_and(|domain| domain.as_str() == "local.example");
    Terms { is_final, expires: item.state.expires, late: Some(item.arrived.plus(4 * HOUR_MS)) }
}

fn due(item: &Item, now: UnixMillis) -> Due {
    due_notifications(item, now, &policy(), |place| terms(item, place))
}

/// Composes what is due at `now`, which is one notification.
fn compose_one(item: &Item, content: &[u8], now: UnixMillis) -> Composed {
    let due = due(item, now);
    let [notification] = &due.notifications[..] else { panic!("one is due: {due:?}") };
    compose_it(item, notification, content, now)
}

fn compose_it(item: &Item, notification: &Notification, content: &[u8], now: UnixMillis) -> Composed {
    let wanted = octets_wanted(item, notification.kind, &policy()) as usize;
    compose(item, notification, &hostname(), &policy(), &content[..wanted], now).expect("there is a sender")
}

fn parse(composed: &Composed) -> Message<'_> {
    check_lines(&composed.content);
    MessageParser::default().parse(&composed.content).expect("a message")
}

fn check_lines(content: &[u8]) {
    assert!(content.ends_with(b"\r\n"));
    for line in content[..content.len() - 2].split(|c| *c == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        assert!(!line.contains(&b'\r') && line.len() <= 998);
    }
    assert_eq!(content.iter().filter(|c| **c == b'\n').count(), content.windows(2).filter(|w| w == b"\r\n").count());
}

/// The three parts: the words without their line ends, the report, the original's octets.
fn parts<'a>(message: &'a Message<'a>) -> (String, String, Vec<u8>) {
    let text = message.body_text(0).expect("words for people");
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let [_, _, status, original] = &message.parts[..4] else { panic!("three parts") };
    let octets = |part: &mail_parser::MessagePart<'_>| match &part.body {
        PartType::Text(text) | PartType::Html(text) => text.as_bytes().to_vec(),
        PartType::Binary(octets) | PartType::InlineBinary(octets) => octets.to_vec(),
        PartType::Message(message) => message.raw_message().to_vec(),
        PartType::Multipart(_) => panic!("no multipart here"),
    };
    (text, String::from_utf8(octets(status)).expect("UTF-8"), octets(original))
}

fn type_of(message: &Message<'_>, part: usize) -> String {
    let content_type = message.parts[part].content_type().expect("typed");
    format!("{}/{}", content_type.ctype(), content_type.subtype().unwrap_or_default())
}

fn unfolded(text: &str) -> String {
    text.replace("\r\n ", " ")
}

/// Compares with a golden file; `UPDATE_GOLDEN=1` writes it.
fn golden(name: &str, content: &[u8]) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/dsn").join(name);
    let text = String::from_utf8(content.to_vec()).expect("UTF-8").replace("\r\n", "\n");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &text).expect("the golden directory is writable");
    }
    let want = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(text == want, "{} differs; got:\n{text}", path.display());
}

#[test]
fn a_failure_says_everything() {
    let mut bob = recipient("bob@example.net", None);
    bob.original = Some(OriginalRecipient { addr_type: "rfc822".into(), address: "Bob@list.example".into() });
    let item = item("alice@example.org", vec![(bob, unknown_user())], ORIGINAL.as_bytes());
    let composed = compose_one(&item, ORIGINAL.as_bytes(), ARRIVED.plus(HOUR_MS));
    golden("failure.eml", &composed.content);

    assert_eq!(composed.envelope.reverse_path, ReversePath::Null);
    assert_eq!(composed.envelope.params, MailParams::default());
    let [to] = composed.envelope.recipients() else { panic!("one recipient") };
    assert_eq!((to.forward_path.to_string().as_str(), to.notify), ("<alice@example.org>", Some(Notify::NEVER)));

    let message = parse(&composed);
    assert_eq!(message.subject(), Some("Your message could not be delivered"));
    let from = message.from().and_then(|from| from.first()).expect("From");
    assert_eq!((from.name(), from.address()), (Some("Mail Delivery System"), Some("MAILER-DAEMON@mx.example.org")));
    let to = message.to().and_then(|to| to.first()).expect("To");
    assert_eq!(to.address(), Some("alice@example.org"));
    assert_eq!(message.header_raw("Auto-Submitted").map(str::trim), Some("auto-replied"));
    assert_eq!(message.header_raw("MIME-Version").map(str::trim), Some("1.0"));
    assert_eq!(message.date().map(|date| date.to_timestamp()), Some((ARRIVED.0 / 1000 + 3600) as i64));
    assert!(message.message_id().is_some_and(|id| id.ends_with(".failure@mx.example.org")));
    assert_eq!(message.in_reply_to().as_text(), Some("figures.1@example.org"));
    let content_type = message.content_type().expect("typed");
    assert_eq!((content_type.ctype(), content_type.subtype()), ("multipart", Some("report")));
    assert_eq!(content_type.attribute("report-type"), Some("delivery-status"));
    let types: Vec<String> = (1..4).map(|part| type_of(&message, part)).collect();
    assert_eq!(types, ["text/plain", "message/delivery-status", "message/rfc822"]);

    let (text, status, original) = parts(&message);
    for words in ["<bob@example.net>", "\"The quarterly figures\"", "550 5.1.1 No such user here", "check the address"]
    {
        assert!(text.contains(words), "{words} is not in {text}");
    }
    assert_eq!(
        unfolded(&status),
        "Original-Envelope-Id: QQ314159\r\nReporting-MTA: dns; mx.example.org\r\n\
         Received-From-MTA: dns; client.example.org\r\nArrival-Date: Sun, 22 Nov 2026 04:00:00 +0000\r\n\r\n\
         Original-Recipient: rfc822; Bob@list.example\r\nFinal-Recipient: rfc822; bob@example.net\r\n\
         Action: failed\r\nStatus: 5.1.1\r\nRemote-MTA: dns; mx2.example.net\r\n\
         Diagnostic-Code: smtp; 550 5.1.1 No such user here see https://example.net/why\r\n\
         Last-Attempt-Date: Sun, 22 Nov 2026 04:00:30 +0000\r\nFinal-Log-ID: 1M0CVHNG00005\r\n"
            .replace("1M0CVHNG00005", &item.id.to_string())
    );
    assert_eq!(String::from_utf8_lossy(&original), ORIGINAL);
}

#[test]
fn a_delay_says_until_when() {
    let item = item("alice@example.org", vec![(recipient("bob@example.net", None), pending(3))], ORIGINAL.as_bytes());
    let composed = compose_one(&item, ORIGINAL.as_bytes(), ARRIVED.plus(4 * HOUR_MS));
    golden("delay.eml", &composed.content);
    let message = parse(&composed);
    let (text, status, original) = parts(&message);
    assert!(text.contains("You need not do anything"));
    for field in [
        "Action: delayed\r\n",
        "Status: 4.2.0\r\n",
        "Will-Retry-Until: Fri, 27 Nov 2026 04:00:00 +0000\r\n",
        "Diagnostic-Code: smtp; 450 4.2.0 Greylisted, try again later\r\n",
    ] {
        assert!(unfolded(&status).contains(field), "{field} is not in {status}");
    }
    assert_eq!(type_of(&message, 3), "text/rfc822-headers");
    assert!(original.ends_with(b"Message-ID: <figures.1@example.org>\r\n"), "no body, no empty line");
}

#[test]
fn a_success_is_delivered_here_and_relayed_elsewhere() {
    let wants = Some(Notify { success: true, ..Notify::NEVER });
    let recipients = vec![
        (recipient("carol@local.example", wants), delivered()),
        (recipient("bob@example.net", wants), delivered()),
        (recipient("dave@example.net", None), delivered()),
    ];
    let item = item("alice@example.org", recipients, ORIGINAL.as_bytes());
    assert_eq!(due(&item, ARRIVED.plus(1)).silent, [2]);
    let composed = compose_one(&item, ORIGINAL.as_bytes(), ARRIVED.plus(1));
    golden("success.eml", &composed.content);
    let message = parse(&composed);
    let (text, status, _) = parts(&message);
    assert!(text.contains("delivered into the mailbox") && text.contains("sends no notice of delivery"));
    assert!(status.contains("carol@local.example\r\nAction: delivered\r\nStatus: 2.0.0\r\n"));
    assert!(status.contains("bob@example.net\r\nAction: relayed\r\nStatus: 2.0.0\r\n"));
    assert!(!status.contains("dave"));
    assert_eq!(type_of(&message, 3), "text/rfc822-headers", "only a failure returns the message");
}

#[test]
fn utf8_addresses_take_the_global_types() {
    let content = "From: jürgen@example.org\r\nSubject: Grüße\r\n\r\nhallo\r\n";
    let mut to = recipient("bøb@example.net", None);
    to.original = Some(OriginalRecipient { addr_type: "utf-8".into(), address: "bøb@example.net".into() });
    let state = failed(550, None, "Unbekannter Empfänger");
    let mut item = item("jürgen@example.org", vec![(to, state)], content.as_bytes());
    item.envelope.params.smtputf8 = true;
    let composed = compose_one(&item, content.as_bytes(), ARRIVED.plus(1));
    golden("failure-utf8.eml", &composed.content);
    assert!(composed.envelope.params.smtputf8 && composed.envelope.params.eight_bit);
    let message = parse(&composed);
    let types: Vec<String> = (2..4).map(|part| type_of(&message, part)).collect();
    assert_eq!(types, ["message/global-delivery-status", "message/global"]);
    let text = String::from_utf8_lossy(&composed.content);
    for field in [
        "Original-Recipient: utf-8; bøb@example.net",
        "Final-Recipient: utf-8; bøb@example.net",
        "Diagnostic-Code: smtp; 550 Unbekannter Empfänger",
        "Status: 5.0.0",
    ] {
        assert!(text.contains(field), "{field} is not in {text}");
    }
}

#[test]
fn a_sender_with_an_ascii_address_is_told_of_others_in_ascii() {
    // Whether the hosts on the way back take SMTPUTF8 nobody knows, and a notification is not returned in its turn.
    let to = recipient("bøb@example.net", None);
    let mut item = item("alice@example.org", vec![(to, failed(550, None, "nö"))], ORIGINAL.as_bytes());
    item.envelope.params.smtputf8 = true;
    let composed = compose_one(&item, ORIGINAL.as_bytes(), ARRIVED.plus(1));
    assert!(composed.content.is_ascii() && !composed.envelope.params.smtputf8 && !composed.envelope.params.eight_bit);
    let message = parse(&composed);
    assert_eq!(type_of(&message, 2), "message/delivery-status");
    let (text, status, _) = parts(&message);
    assert!(status.contains("Final-Recipient: utf-8; b\\x{F8}b@example.net\r\n"), "{status}");
    assert!(text.contains("<bøb@example.net>"), "{text}");
}

#[test]
fn an_ascii_report_stays_ascii_whatever_is_said() {
    let mut bob = recipient("bob@example.net", None);
    bob.original = Some(OriginalRecipient { addr_type: "utf-8".into(), address: "bøb@example.net".into() });
    let state = failed(550, Some(Status::new(4, 1, 1)), "nö");
    let item = item("alice@example.org", vec![(bob, state)], ORIGINAL.as_bytes());
    let composed = compose_one(&item, ORIGINAL.as_bytes(), ARRIVED.plus(1));
    let message = parse(&composed);
    let (_, status, _) = parts(&message);
    assert!(status.contains("Original-Recipient: utf-8; b\\x{F8}b@example.net\r\n"), "{status}");
    assert!(status.contains("Diagnostic-Code: smtp; 550 4.1.1 n\\x{F6}\r\n"));
    assert!(status.contains("Status: 5.0.0\r\n"), "a status that contradicts the action is not repeated");
    assert!(!composed.envelope.params.smtputf8);
}

#[test]
fn eight_bit_content_comes_back_as_it_was() {
    let content = b"Subject: x\r\nMIME-Version: 1.0\r\n\r\n\xe9t\xe9 \xff\r\n";
    let recipients = || vec![(recipient("bob@example.net", None), unknown_user())];
    let body = item("alice@example.org", recipients(), content);
    let composed = compose_one(&body, content, ARRIVED.plus(1));
    assert!(composed.envelope.params.eight_bit && !composed.envelope.params.smtputf8);
    let whole = parse(&composed);
    assert_eq!(parts(&whole).2, content);
    assert_eq!(whole.parts[3].content_transfer_encoding(), Some("8bit"));

    let latin1 = b"Subject: \xe9t\xe9\r\n\r\nx\r\n";
    let item = item("alice@example.org", recipients(), latin1);
    let composed = compose_one(&item, latin1, ARRIVED.plus(1));
    assert_eq!(type_of(&parse(&composed), 3), "message/rfc822", "only valid UTF-8 is called so");
}

#[test]
fn ret_and_size_decide_how_much_comes_back() {
    let recipients = || vec![(recipient("bob@example.net", None), unknown_user())];
    let mut asked = item("alice@example.org", recipients(), ORIGINAL.as_bytes());
    asked.envelope.params.ret = Some(Ret::Headers);
    let composed = compose_one(&asked, ORIGINAL.as_bytes(), ARRIVED.plus(1));
    assert_eq!(type_of(&parse(&composed), 3), "text/rfc822-headers");
    assert!(!String::from_utf8_lossy(&composed.content).contains("Dear Bob"));

    let large = [ORIGINAL.as_bytes(), &b"x\r\n".repeat(50_000)[..]].concat();
    let mut large_item = item("alice@example.org", recipients(), &large);
    large_item.envelope.params.ret = Some(Ret::Full);
    assert!(octets_wanted(&large_item, Kind::Failure, &policy()) <= 64 * 1024);
    let composed = compose_one(&large_item, &large, ARRIVED.plus(1));
    assert_eq!(type_of(&parse(&composed), 3), "text/rfc822-headers");
    assert!(composed.content.len() < 4_096);
}

#[test]
fn a_hostile_reply_is_bounded_and_escaped() {
    for hostile in [
        "x".repeat(1 << 20),
        "\u{202e}".repeat(10_000),
        "a\n".repeat(10_000),
        "550 \n\nFinal-Recipient: rfc822; victim@example.com\nAction: delivered".to_owned(),
        "--=_boundary--\nContent-Type: text/html\n\n<script>".to_owned(),
    ] {
        let state = failed(550, None, &hostile);
        let item = item("alice@example.org", vec![(recipient("bob@example.net", None), state)], ORIGINAL.as_bytes());
        let composed = compose_one(&item, ORIGINAL.as_bytes(), ARRIVED.plus(1));
        assert!(composed.content.len() < 8_192, "{}", composed.content.len());
        let message = parse(&composed);
        assert_eq!(message.parts.iter().filter(|part| part.content_type().is_some()).count(), 4);
        let (_, status, _) = parts(&message);
        assert_eq!(status.lines().filter(|line| line.starts_with("Final-Recipient:")).count(), 1, "{status}");
        assert_eq!(status.lines().filter(|line| line.starts_with("Action:")).count(), 1);
    }
}

#[test]
fn hostile_content_does_not_leave_its_part() {
    let recipients = || vec![(recipient("bob@example.net", None), unknown_user())];
    let honest = item("alice@example.org", recipients(), ORIGINAL.as_bytes());
    let first = compose_one(&honest, ORIGINAL.as_bytes(), ARRIVED.plus(1));
    let boundary = parse(&first).content_type().and_then(|t| t.attribute("boundary").map(str::to_owned)).expect("one");
    // A sender who guesses the boundary and injects through subject and identifier.
    let content = format!(
        "Subject: a\r\n b\u{7} \"<{}>\r\nMessage-ID: <x@y>\r\n evil: field\r\n\r\n--{boundary}\r\n\r\nfake\r\n",
        "s".repeat(900)
    );
    let item = item("alice@example.org", recipients(), content.as_bytes());
    let composed = compose_one(&item, content.as_bytes(), ARRIVED.plus(1));
    let message = parse(&composed);
    let (text, _, original) = parts(&message);
    assert_eq!(original, content.as_bytes());
    assert!(text.len() < 2_000 && !text.contains('\u{7}'));
    assert!(message.header_raw("evil").is_none());
}

#[test]
fn content_of_every_shape_comes_back() {
    for content in [&b""[..], b"\r\n", b"\r\nbody\r\n", b"Subject: only\r\n", b"no header at all\r\n", b"A: b\r\n\r\n"]
    {
        let item = item("alice@example.org", vec![(recipient("bob@example.net", None), unknown_user())], content);
        let composed = compose_one(&item, content, ARRIVED.plus(1));
        check_lines(&composed.content);
        assert!(composed.content.windows(content.len().max(1)).any(|window| window == content) || content.is_empty());
    }
}

#[test]
fn a_very_long_sender_address_is_still_told() {
    let address = format!("{}@{}.example", "v".repeat(250), "d".repeat(60));
    let item = item(&address, vec![(recipient("bob@example.net", None), unknown_user())], ORIGINAL.as_bytes());
    let composed = compose_one(&item, ORIGINAL.as_bytes(), ARRIVED.plus(1));
    let message = parse(&composed);
    assert_eq!(message.to().and_then(|to| to.first()).and_then(|to| to.address()), Some(address.as_str()));
}

#[test]
fn the_null_reverse_path_is_never_told() {
    for state in [unknown_user(), delivered(), pending(9)] {
        let wants = Some(Notify { success: true, failure: true, delay: true });
        let mut item = item("", vec![(recipient("bob@example.net", wants), state)], ORIGINAL.as_bytes());
        let told = due(&item, ARRIVED.plus(10 * HOUR_MS));
        assert!(told.notifications.is_empty());
        told.mark_silent(&mut item.state);
        let is_pending = matches!(item.state.recipients[0], RecipientState::Pending { .. });
        assert_eq!(item.state.is_settled(), !is_pending);
        let anything = Notification { kind: Kind::Failure, notices: Vec::new() };
        assert!(compose(&item, &anything, &hostname(), &policy(), b"", ARRIVED).is_none());
    }
}

#[test]
fn notify_decides_who_is_told() {
    let with = |success, failure, delay| Some(Notify { success, failure, delay });
    let kinds = |notify, state| {
        let item = item("alice@example.org", vec![(recipient("bob@example.net", notify), state)], ORIGINAL.as_bytes());
        let due = due(&item, ARRIVED.plus(5 * HOUR_MS));
        let kinds: Vec<Kind> = due.notifications.iter().map(|n| n.kind).collect();
        (kinds, due.silent.len())
    };
    assert_eq!(kinds(None, unknown_user()), (vec![Kind::Failure], 0));
    assert_eq!(kinds(None, pending(2)), (vec![Kind::Delay], 0));
    assert_eq!(kinds(None, delivered()), (vec![], 1));
    assert_eq!(kinds(Some(Notify::NEVER), unknown_user()), (vec![], 1));
    assert_eq!(kinds(Some(Notify::NEVER), pending(2)), (vec![], 0));
    assert_eq!(kinds(with(true, false, false), unknown_user()), (vec![], 1));
    assert_eq!(kinds(with(true, false, false), delivered()), (vec![Kind::Success], 0));
    assert_eq!(kinds(with(false, true, false), pending(2)), (vec![], 0));
    assert_eq!(kinds(with(false, false, true), pending(2)), (vec![Kind::Delay], 0));
}

#[test]
fn outcomes_are_gathered_into_one_notification_and_told_once() {
    let to = |n: usize, state| (recipient(&format!("r{n}@example.net"), None), state);
    let recipients = vec![to(0, unknown_user()), to(1, unknown_user()), to(2, pending(0))];
    let mut item = item("alice@example.org", recipients, ORIGINAL.as_bytes());
    let early = due(&item, ARRIVED.plus(1_000));
    assert_eq!((early.notifications.len(), early.next), (0, Some(ARRIVED.plus(60_000))));
    let late = due(&item, ARRIVED.plus(60_000));
    assert_eq!((late.notifications.len(), late.notifications[0].notices.len()), (1, 2));
    assert_eq!(late.next, Some(ARRIVED.plus(4 * HOUR_MS)));

    item.state.recipients[2] = pending(1);
    let tried = due(&item, ARRIVED.plus(1_000));
    assert_eq!(tried.notifications[0].notices.len(), 2, "all were tried: nothing to wait for");
    tried.notifications[0].mark(&mut item.state);
    assert!(due(&item, ARRIVED.plus(1_000)).notifications.is_empty());
}

#[test]
fn the_notice_of_delay_is_sent_once() {
    let mut item =
        item("alice@example.org", vec![(recipient("bob@example.net", None), pending(2))], ORIGINAL.as_bytes());
    assert!(due(&item, ARRIVED.plus(4 * HOUR_MS - 1)).notifications.is_empty());
    let told = due(&item, ARRIVED.plus(4 * HOUR_MS));
    assert_eq!(told.notifications[0].kind, Kind::Delay);
    told.notifications[0].mark(&mut item.state);
    let after = due(&item, ARRIVED.plus(5 * HOUR_MS));
    assert_eq!((after.notifications.len(), after.next), (0, Some(item.state.expires)));
}

#[test]
fn when_the_time_is_over_the_last_words_stand_in_the_failure() {
    let recipients = vec![
        (recipient("bob@example.net", None), pending(12)),
        (recipient("carol@dead.example", None), pending(0)),
        (recipient("dave@example.net", None), delivered()),
    ];
    let mut item = item("alice@example.org", recipients, ORIGINAL.as_bytes());
    let end = item.state.expires;
    assert!(!expire(&mut item.state, UnixMillis(end.0 - 1), |_| end));
    assert!(expire(&mut item.state, end, |_| end));
    assert!(!expire(&mut item.state, end, |_| end), "once");
    let composed = compose_one(&item, ORIGINAL.as_bytes(), end);
    golden("failure-expired.eml", &composed.content);
    let message = parse(&composed);
    let (text, status, _) = parts(&message);
    assert!(text.contains("until the time for it ran out"));
    assert_eq!(status.matches("Action: failed\r\nStatus: 4.4.7\r\n").count(), 2);
    assert!(status.contains("450 4.2.0 Greylisted, try again later"));
}

#[test]
fn a_thousand_recipients_make_one_notification() {
    let recipients = (0..1_000).map(|n| (recipient(&format!("r{n}@example.net"), None), unknown_user())).collect();
    let item = item("alice@example.org", recipients, ORIGINAL.as_bytes());
    let composed = compose_one(&item, ORIGINAL.as_bytes(), ARRIVED.plus(1));
    let message = parse(&composed);
    let (text, status, _) = parts(&message);
    assert_eq!(status.matches("Final-Recipient:").count(), 1_000);
    assert!(text.contains("And 900 more"));
}
