//! Who is told what: every wish of a sender against everything that can become of a recipient, as one
//! table (RFC 3461 §4 to §6, RFC 3464 §2). Real deliveries to scripted peers; the notifications are
//! read out of the sender's Maildir.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use mail_parser::{MessageParser, MimeHeaders};
use postroad_queue::{Item, RecipientState};
use postroad_smtp::{Envelope, MailParams, Notify, OriginalRecipient, Recipient, Ret};

use super::super::scenario::{Agent, Peer, text};

const CONTENT: &[u8] = b"From: <s@home.example>\r\nSubject: wishes\r\n\r\nthe body itself\r\n";

/// What becomes of a recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Delivered into a mailbox here.
    Local,
    /// Taken by a host that knows DSN.
    Dsn,
    /// Taken by one that does not.
    Plain,
    /// Refused for good at RCPT.
    Rcpt,
    /// Refused for good after the content.
    Data,
    /// Put off until its time was over.
    Expired,
    /// Put off long enough for a notice.
    Delayed,
    /// Returned by the admin.
    Bounced,
}

const FATES: [Fate; 8] =
    [Fate::Local, Fate::Dsn, Fate::Plain, Fate::Rcpt, Fate::Data, Fate::Expired, Fate::Delayed, Fate::Bounced];

/// A message with one recipient.
#[derive(Clone, Debug)]
struct Case {
    number: usize,
    fate: Fate,
    notify: Option<Notify>,
    ret: Option<Ret>,
    /// Whether ENVID and ORCPT are given.
    named: bool,
    null: bool,
}

/// What the sender reads of a recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Told {
    action: String,
    status: String,
    envid: Option<String>,
    original: Option<String>,
    /// Whether the whole message came back, not its header alone.
    is_whole: bool,
}

fn cases() -> Vec<Case> {
    let wishes = (0..8u8).map(|bits| Notify { success: bits & 1 != 0, failure: bits & 2 != 0, delay: bits & 4 != 0 });
    let wishes: Vec<Option<Notify>> = [None].into_iter().chain(wishes.map(Some)).collect();
    let rets = [None, Some(Ret::Full), Some(Ret::Headers)];
    let mut cases = Vec::new();
    for fate in FATES {
        for notify in &wishes {
            for ret in rets {
                for (named, null) in [(false, false), (true, false), (true, true)] {
                    cases.push(Case { number: cases.len(), fate, notify: *notify, ret, named, null });
                }
            }
        }
    }
    cases
}

impl Case {
    fn domain(&self) -> &'static str {
        match self.fate {
            Fate::Local => "home.example",
            Fate::Dsn => "dsn.example",
            Fate::Plain => "plain.example",
            Fate::Rcpt => "rcpt.example",
            Fate::Data => "data.example",
            Fate::Delayed => "delayed.example",
            Fate::Expired | Fate::Bounced => "late.example",
        }
    }

    fn to(&self) -> String {
        format!("c{}@{}", self.number, self.domain())
    }

    fn envelope(&self) -> Envelope {
        let params = MailParams {
            ret: self.ret,
            envid: self.named.then(|| format!("e+{}", self.number).into()),
            ..MailParams::default()
        };
        let original =
            OriginalRecipient { addr_type: "rfc822".into(), address: format!("o{}@old.example", self.number).into() };
        let recipient = Recipient {
            forward_path: self.to().parse().expect("a path"),
            notify: self.notify,
            original: self.named.then_some(original),
        };
        let reverse_path = if self.null { "" } else { "s@home.example" }.parse().expect("a path");
        Envelope::new(reverse_path, params, vec![recipient]).expect("a recipient")
    }

    /// What RFC 3461 has the sender read.
    fn told(&self) -> Option<Told> {
        // §4.1: without NOTIFY, of failures and, as we choose, of delays.
        let wants = self.notify.unwrap_or(Notify { success: false, failure: true, delay: true });
        let (action, status, is_wanted) = match self.fate {
            Fate::Local => ("delivered", "2.0.0", wants.success),
            // §5.2.1: the wish went on with the message.
            Fate::Dsn => return None,
            // §5.2.2: nobody behind that host will tell.
            Fate::Plain => ("relayed", "2.0.0", wants.success),
            Fate::Rcpt => ("failed", "5.1.1", wants.failure),
            Fate::Data => ("failed", "5.6.0", wants.failure),
            // RFC 3463 §3.5.
            Fate::Expired => ("failed", "4.4.7", wants.failure),
            Fate::Delayed => ("delayed", "4.2.1", wants.delay),
            Fate::Bounced => ("failed", "5.7.0", wants.failure),
        };
        // §4.2 and RFC 5321 §6.1: nobody is told at the null reverse-path.
        (is_wanted && !self.null).then(|| Told {
            action: action.to_owned(),
            status: status.to_owned(),
            envid: self.named.then(|| format!("e+{}", self.number)),
            original: self.named.then(|| format!("rfc822; o{}@old.example", self.number)),
            // §4.3: RET concerns failures alone.
            is_whole: action == "failed" && self.ret != Some(Ret::Headers),
        })
    }

    /// What a next hop that knows DSN is given: all that the sender wrote, and nothing else (§5.2.1).
    fn passed_on(&self) -> (String, String) {
        let path = if self.null { "" } else { "s@home.example" };
        let ret = match self.ret {
            None => "",
            Some(Ret::Full) => " RET=FULL",
            Some(Ret::Headers) => " RET=HDRS",
        };
        let envid = if self.named { format!(" ENVID=e+2B{}", self.number) } else { String::new() };
        let notify = match self.notify {
            None => String::new(),
            Some(Notify { success: false, failure: false, delay: false }) => " NOTIFY=NEVER".to_owned(),
            Some(notify) => {
                let all = [(notify.success, "SUCCESS"), (notify.failure, "FAILURE"), (notify.delay, "DELAY")];
                let words: Vec<&str> = all.iter().filter(|(wanted, _)| *wanted).map(|(_, word)| *word).collect();
                format!(" NOTIFY={}", words.join(","))
            }
        };
        let original = if self.named { format!(" ORCPT=rfc822;o{}@old.example", self.number) } else { String::new() };
        (format!("MAIL FROM:<{path}>{ret}{envid}"), format!("RCPT TO:<{}>{notify}{original}", self.to()))
    }
}

/// Reads the notifications in a Maildir: by address, what was told of it, in order.
fn read_notifications(maildir: &Path) -> HashMap<String, Vec<Told>> {
    let mut told: HashMap<String, Vec<Told>> = HashMap::new();
    for file in std::fs::read_dir(maildir.join("new")).into_iter().flatten() {
        let octets = std::fs::read(file.expect("readable").path()).expect("readable");
        let message = MessageParser::new().parse(&octets).expect("a message");
        if message.content_type().is_none_or(|kind| kind.subtype() != Some("report")) {
            continue;
        }
        let status = String::from_utf8(message.parts[2].contents().to_vec()).expect("ASCII");
        let status = status.replace("\r\n ", " ");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            line.map(str::to_owned)
        };
        let returned = message.parts[3].content_type().expect("a type").subtype().expect("a subtype").to_owned();
        let is_whole = returned == "rfc822";
        let text = String::from_utf8_lossy(&octets);
        assert_eq!(text.contains("the body itself"), is_whole, "{text}");
        assert!(text.contains("Subject: wishes"), "{text}");
        let to = field("Final-Recipient").expect("RFC 3464 §2.3.2").replace("rfc822; ", "");
        told.entry(to).or_default().push(Told {
            action: field("Action").expect("RFC 3464 §2.3.3"),
            status: field("Status").expect("RFC 3464 §2.3.4"),
            envid: field("Original-Envelope-Id"),
            original: field("Original-Recipient"),
            is_whole,
        });
    }
    told
}

/// Starts a peer for each fate, and the agent between them.
async fn stage() -> (Agent, Peer, Peer) {
    let (knowing, dsn) = Peer::start(|_| None).await;
    let (plain, simple) =
        Peer::start(|heard| heard.line.starts_with("EHLO").then(|| text("250-peer\r\n250 PIPELINING")).flatten()).await;
    let at = |verb: &'static str, reply: &'static str| {
        Peer::start(move |heard| heard.line.starts_with(verb).then(|| text(reply)).flatten())
    };
    let (_, rcpt) = at("RCPT", "550 5.1.1 Nobody of that name").await;
    let (_, data) = at(".", "554 5.6.0 Not like this").await;
    let (_, late) = at("RCPT", "451 4.2.1 Busy").await;
    let mut settings =
        "hostname = \"mx.home.example\"\n[outbound]\ntls = \"never\"\n[[local]]\ndomain = \"home.example\"\n\
        maildir = \"{dir}/mail/{user}\"\n"
            .to_owned();
    for (domain, port) in [("dsn", dsn), ("plain", simple), ("rcpt", rcpt), ("data", data), ("late", late)] {
        settings += &format!("[[route]]\ndomain = \"{domain}.example\"\nvia = \"127.0.0.1:{port}\"\n");
    }
    settings += &format!(
        "[[route]]\ndomain = \"delayed.example\"\nvia = \"127.0.0.1:{late}\"\ndelay_notice = \"1s\"\n\
         retry_first = \"2s\"\nretry_max = \"2s\"\n"
    );
    let agent = Agent::start(&settings);
    let delivery = agent.delivery.clone();
    tokio::spawn(async move { delivery.run().await });
    (agent, knowing, plain)
}

fn attempts(item: &Item) -> u32 {
    match item.state.recipients[0] {
        RecipientState::Pending { attempts, .. } => attempts,
        _ => u32::MAX,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_wish_meets_every_fate() {
    let (agent, knowing, plain) = stage().await;
    let cases = cases();
    for user in ["s".to_owned()].into_iter().chain(cases.iter().map(|case| format!("c{}", case.number))) {
        std::fs::create_dir_all(agent.directory.path().join("mail").join(user)).expect("made");
    }
    let mut ids = Vec::new();
    for case in &cases {
        let lifetime = if case.fate == Fate::Expired { Duration::ZERO } else { Duration::from_secs(3600) };
        ids.push(agent.put_envelope(case.envelope(), lifetime, CONTENT).await);
    }
    for (case, id) in cases.iter().zip(&ids) {
        let tries = |least| move |item: &Item| attempts(item) >= least;
        match case.fate {
            Fate::Bounced => {
                agent.wait(*id, |item| item.is_none_or(tries(1))).await;
                assert_eq!(agent.delivery.bounce(*id, &[0], "uid 0").await, Ok(true), "{case:?}");
                agent.wait_delivered(*id).await;
            }
            // The second attempt comes when the notice is due.
            Fate::Delayed => agent.wait(*id, |item| item.is_none_or(tries(2))).await,
            _ => agent.wait_delivered(*id).await,
        }
    }
    // All that is left are the delayed ones: the notifications are in the Maildir.
    let delayed = cases.iter().filter(|case| case.fate == Fate::Delayed).count();
    let until = std::time::Instant::now() + Duration::from_secs(20);
    while agent.queue.len() > delayed && std::time::Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut told = read_notifications(&agent.directory.path().join("mail/s"));
    for case in &cases {
        let found = told.remove(&case.to()).unwrap_or_default();
        assert_eq!(found, Vec::from_iter(case.told()), "{case:?}");
    }
    assert_eq!(told, HashMap::new(), "about nobody else");

    let heard = |peer: &Peer, verb| peer.heard(verb).into_iter().map(|(_, line)| line).collect::<Vec<String>>();
    let (mails, recipients) = (heard(&knowing, "MAIL"), heard(&knowing, "RCPT"));
    for case in cases.iter().filter(|case| case.fate == Fate::Dsn) {
        let (mail, rcpt) = case.passed_on();
        assert!(mails.contains(&mail), "{mail} was not said for {case:?}");
        assert!(recipients.contains(&rcpt), "{rcpt} was not said for {case:?}");
    }
    for line in [heard(&plain, "MAIL"), heard(&plain, "RCPT")].concat() {
        assert!(line.ends_with('>'), "no parameters for a host that does not know them: {line}");
    }
}
