//! Members that misbehave: too much mail for the world, mail that the world refuses, and a member in bad
//! hands that says what it may not. Each is refused and reported, and the others go on. Agents as processes
//! of their own; the rogue is a session of this test under the key of a member.

mod support;

use postroad_mesh::frame::{Frame, Item};
use postroad_mesh::link::{LENGTH_OCTETS, MESSAGE_OCTETS_MAX, Message, message_octets};
use postroad_mesh::question::{Fault, Question, kind};
use postroad_mesh::record::Said;
use postroad_mesh::statement::{Policy, What};
use postroad_mesh::{
    Caps, Directory, Invitation, MeshMessageId, Passage, Record, Roster, SecretKey, Statement, archive,
};
use serde_json::Value;
use support::agent::Agent;
use support::client::{Client, Way};
use support::mesh::{self, host, join, status, wait_routed};
use support::net::{SOON, wait_until};
use support::sink::Sink;

/// Waits until everybody knows what all say of themselves.
fn wait_known(agents: &[&Agent]) {
    wait_routed(agents, SOON, |member| member["serves"] != Value::Array(Vec::new()));
}

fn send(agent: &Agent, from: &str, to: &[&str]) {
    Client::hand_over(agent.smtp(), from, to, b"Subject: x\r\n\r\nhello\r\n", Way::Data);
}

fn mailbox(agent: &Agent) -> usize {
    std::fs::read_dir(agent.path("mail/user/new")).expect("a Maildir").count()
}

/// Returns a member that sends mail out to the sink, with this quota of messages, and one that sends through it.
fn egress_with(messages: u32, sink: &Sink) -> (Agent, Agent) {
    let egress = host("a").set("mesh.egress", "true").route("sink.test", sink.address());
    let a = egress.set("mesh.quota.messages", &messages.to_string()).metrics().start();
    let b = host("b").start();
    join(&a, &b, "b.example");
    wait_known(&[&a, &b]);
    (a, b)
}

#[test]
fn beyond_its_quota_a_member_is_told_to_come_again_and_loses_nothing() {
    let sink = Sink::new();
    let (a, b) = egress_with(4, &sink);
    (0..7).for_each(|_| send(&b, "user@b.example", &["user@sink.test"]));
    sink.expect(4, SOON);
    b.wait_logged("450 4.7.28");
    let said = a.ok(&["mesh", "status"]);
    assert!(said.contains("over its quota: b, "), "{said}");
    assert!(a.metric("postroad_mesh_misdeeds_total{what=\"over_quota\"}") > 0);
    // Notices, and all that stays in the mesh, go on.
    send(&b, "", &["user@sink.test"]);
    send(&b, "user@b.example", &["user@a.example"]);
    sink.expect(5, SOON);
    wait_until("it is in the mailbox", SOON, || mailbox(&a) == 1);
    wait_until("the others wait there, and they alone", SOON, || b.queued() == 3);
    a.edit_config("quota.messages = 4", "quota.messages = 400");
    a.ok(&["reload"]);
    sink.expect(8, 3 * SOON);
    b.wait_empty(SOON);
}

/// A flood of mail for the mailboxes of the mesh itself.
#[test]
fn a_member_that_floods_the_mesh_itself_is_told_to_come_again_and_loses_nothing() {
    let (a, b) = (host("a").set("mesh.quota.all_messages", "30").start(), host("b").start());
    join(&a, &b, "b.example");
    wait_known(&[&a, &b]);
    (0..33).for_each(|_| send(&b, "user@b.example", &["user@a.example"]));
    b.wait_logged("quota of all_messages in an hour");
    wait_until("as many as may are taken", SOON, || mailbox(&a) >= 30);
    // From nobody: what is said of the flood comes through it.
    send(&b, "", &["user@a.example"]);
    wait_until("notices come through", SOON, || mailbox(&a) >= 31);
    assert!(a.ok(&["mesh", "status"]).contains("over its quota: b, "));
    a.edit_config("quota.all_messages = 30", "quota.all_messages = 3000");
    a.ok(&["reload"]);
    b.cli(&["queue", "retry", "--all"]);
    wait_until("nothing is lost", 3 * SOON, || mailbox(&a) == 34);
}

#[test]
fn who_is_contained_sends_a_trickle_out_until_somebody_lifts_it() {
    let sink = Sink::new();
    // A hundredth of it is two.
    let (mut a, b) = egress_with(200, &sink);
    let said = a.ok(&["mesh", "contain", "b"]);
    assert!(said.contains("contained: b (by hand)") && said.contains("--lift"), "{said}");
    a.restart();
    assert_eq!(status(&a)["contained"][0]["label"], "b", "it is kept on disk");
    (0..5).for_each(|_| send(&b, "user@b.example", &["user@sink.test"]));
    sink.expect(2, 2 * SOON);
    b.wait_logged("450 4.7.28");
    send(&b, "", &["user@sink.test"]);
    send(&b, "user@b.example", &["user@a.example"]);
    sink.expect(3, SOON);
    wait_until("it is in the mailbox", SOON, || mailbox(&a) == 1);
    assert_eq!(a.metric("postroad_mesh_contained"), 1);
    let said = a.ok(&["mesh", "contain", "b", "--lift"]);
    assert!(!said.contains("contained:"), "{said}");
    sink.expect(6, 3 * SOON);
}

#[test]
fn a_member_whose_mail_the_world_refuses_is_contained() {
    let sink = Sink::new();
    sink.behave(|sink| sink.rcpt = std::sync::Arc::new(|_, _| "550 5.1.1 No such user".into()));
    let (a, b) = egress_with(1000, &sink);
    let names: Vec<String> = (0..60).map(|n| format!("user{n}@sink.test")).collect();
    send(&b, "user@b.example", &names.iter().map(String::as_str).collect::<Vec<_>>());
    wait_until("it is contained", SOON, || status(&a)["contained"][0]["label"] == "b");
    let said = a.ok(&["mesh", "status"]);
    assert!(said.contains("contained: b (60 of 60 recipients outside refused its mail"), "{said}");
    a.wait_logged("until somebody lifts it");
}

/// A member in bad hands: it joined as any, and this test has its key.
struct Rogue {
    key: SecretKey,
    directory: Directory,
}

impl Rogue {
    /// Takes over from an agent.
    fn of(mut agent: Agent) -> Rogue {
        agent.stop();
        let read = |name: &str| std::fs::read(agent.path(name)).expect("it is a member");
        let key = SecretKey::from_pkcs8(&read("state/mesh/key.der")).expect("a key");
        Rogue { key, directory: archive::read(&read("state/mesh/directory"), Default::default(), 0).expect("sound") }
    }

    fn session(&self, with: &Agent) -> Client {
        let mut client = mesh::session(&self.key, with);
        client.ehlo();
        client
    }

    fn say(&self, to: &Agent, items: Vec<Item>) {
        let mut client = self.session(to);
        client.expect("XLINK 1", 250);
        client.send(Message::Spread(Frame::Give(items)).to_octets());
        // What it asks then is answered when all before it was read.
        let known = status(to)["node"].as_str().expect("a text").parse().expect("an id");
        let question = Question::new(&self.key, known, 1, kind::PING, Box::default());
        answered(&mut client, &question).expect("a member is answered");
    }

    fn said(&self, sequence: u64) -> Said {
        let known = self.directory.records()[&self.key.public().id()].said();
        Said { sequence: known.sequence + sequence, ..known.clone() }
    }
}

fn item(statement: &Statement) -> Item {
    Item::Statement(statement.to_octets().into())
}

/// Returns how often an agent has seen the rogue do this.
fn misdeeds(agent: &Agent, what: &str) -> u64 {
    let status = status(agent);
    let seen = status["misdeeds"].as_array().expect("a list").iter();
    let times = seen.filter(|one| one["what"] == what && one["label"] == "r").map(|one| one["times"].as_u64());
    times.map(|times| times.expect("a number")).sum()
}

fn wait_reported(agent: &Agent, what: &str) {
    wait_until(&format!("{what} is reported"), SOON, || misdeeds(agent, what) > 0);
    assert!(agent.metric(&format!("postroad_mesh_misdeeds_total{{what=\"{what}\"}}")) > 0);
    agent.wait_logged("a member does what it may not");
}

fn serves(agent: &Agent, label: &str) -> Value {
    let status = status(agent);
    let members = status["members"].as_array().expect("a list");
    members.iter().find(|member| member["label"] == label).expect("a member")["serves"].clone()
}

/// Returns two members, and a third in bad hands.
fn three() -> (Agent, Agent, Rogue) {
    let (a, b, r) = (host("a").metrics().start(), host("b").start(), host("r").start());
    join(&a, &b, "b.example");
    join(&a, &r, "r.example");
    wait_known(&[&a, &b, &r]);
    (a, b, Rogue::of(r))
}

#[test]
fn a_rogue_claims_no_domain_and_forges_nothing() {
    let (a, b, rogue) = three();
    // It says that a domain is its own, and grants it to itself.
    let claim = Said {
        serves: vec!["r.example".parse().expect("valid"), "b.example".parse().expect("valid")],
        ..rogue.said(1)
    };
    let record = Record::sign(&rogue.key, &claim).expect("it is its own");
    let me = rogue.key.public();
    let head = rogue.directory.roster().next_head(&me.id(), 0);
    let what = What::Admit { node: me, caps: Caps::ALL, serves: claim.serves.clone(), label: "r".into() };
    let grant = Statement::new(&rogue.key, head, what);
    rogue.say(&a, vec![Item::Record(record.to_octets().into()), item(&grant)]);
    for agent in [&a, &b] {
        wait_until("the claim is told of", SOON, || {
            agent.ok(&["mesh", "status"]).contains("claimed without a grant, so not used: b.example by r")
        });
        assert_eq!(serves(agent, "b"), serde_json::json!(["b.example"]));
        assert_eq!(serves(agent, "r"), serde_json::json!(["r.example"]));
    }
    // It says in another's name what that one never said.
    let of_b = rogue.directory.records().values().find(|record| &*record.said().label == "b").expect("it is known");
    let mut forged = of_b.to_octets();
    let place = forged.windows(9).position(|octets| octets == b"b.example").expect("it serves it");
    forged[place] = b'x';
    let mut statement = grant.to_octets();
    *statement.last_mut().expect("a signature") ^= 1;
    rogue.say(&a, vec![Item::Record(forged.into()), Item::Statement(statement.into())]);
    wait_reported(&a, "unsound");
    wait_until("both are reported", SOON, || misdeeds(&a, "unsound") == 2);
    assert!(a.ok(&["mesh", "status"]).contains("suspicious: r passed on what is forged or damaged, 2 times"));
    assert_eq!(serves(&a, "b"), serde_json::json!(["b.example"]));
    assert_eq!(misdeeds(&b, "unsound"), 0, "nothing of it was passed on");
}

#[test]
fn a_rogue_replays_what_was_said_elsewhere_and_earlier() {
    let (a, b, rogue) = three();
    let elsewhere = Roster::new(Statement::found(&rogue.key, Policy::DEFAULT, "elsewhere", 1)).expect("it founds");
    let me = rogue.key.public();
    let what = What::Admit { node: me, caps: Caps::ALL, serves: Vec::new(), label: "r".into() };
    let statement = Statement::new(&rogue.key, elsewhere.next_head(&me.id(), 2), what);
    let said = Said { mesh: elsewhere.mesh(), ..rogue.said(1) };
    let record = Record::sign(&rogue.key, &said).expect("it is its own");
    rogue.say(&a, vec![item(&statement), Item::Record(record.to_octets().into())]);
    wait_reported(&a, "other_mesh");
    wait_until("both are reported", SOON, || misdeeds(&a, "other_mesh") == 2);
    // What was true once is known, and what followed it stands.
    let earlier: Vec<Item> = {
        let records = rogue.directory.records().values().map(|record| Item::Record(record.to_octets().into()));
        records.chain(rogue.directory.roster().statements().values().map(item)).collect()
    };
    let text = std::fs::read_to_string(b.config_path()).expect("readable").replace("label = \"b\"", "label = \"bee\"");
    std::fs::write(b.config_path(), text).expect("writable");
    b.ok(&["reload"]);
    let is_told = || status(&a)["members"].as_array().expect("a list").iter().any(|member| member["label"] == "bee");
    wait_until("the new name is known", SOON, is_told);
    rogue.say(&a, earlier);
    assert!(is_told());
    assert_eq!(status(&a)["members"].as_array().expect("a list").len(), 3);
}

#[test]
fn a_rogue_hands_over_no_mail_in_anothers_name() {
    let (a, b, rogue) = three();
    let [me, honest] = [rogue.key.public().id(), status(&b)["node"].as_str().expect("a text").parse().expect("an id")];
    let begun = |origin| Passage::new(MeshMessageId::new(1_800_000_000_000, &[b"x"]), origin);
    let by = |passage: Passage, node| passage.by_way_of(&node).expect("room");
    let mut client = rogue.session(&a);
    for passage in [by(begun(honest), me), by(by(begun(me), me), honest), begun(me)] {
        let said = client.say(&format!("MAIL FROM:<user@b.example> XMESH={passage}")).text();
        assert!(said.starts_with("451 4.7.1 XMESH says"), "{passage}: {said}");
    }
    wait_reported(&a, "origin");
    wait_until("all three are reported", SOON, || misdeeds(&a, "origin") == 3);
    let own = by(begun(me), me);
    client.expect(&format!("MAIL FROM:<user@r.example> XMESH={own}"), 250);
}

/// Returns what a question is answered with over a link.
fn asked(session: &mut Client, question: &Question) -> Result<Vec<u8>, Fault> {
    session.expect("XLINK 1", 250);
    answered(session, question)
}

/// The same over a link that is open.
fn answered(session: &mut Client, question: &Question) -> Result<Vec<u8>, Fault> {
    session.send(Message::Ask(question.clone()).to_octets());
    loop {
        let length = session.wire().exactly(LENGTH_OCTETS).expect("a length").try_into().expect("four");
        let octets = message_octets(length, MESSAGE_OCTETS_MAX).expect("a length that is allowed");
        let octets = session.wire().exactly(octets).expect("a message");
        if let Message::Answer(answer) = Message::from_octets(&octets).expect("sound") {
            assert_eq!(answer.number, question.number);
            return answer.said.map(|(octets, _)| octets.into());
        }
    }
}

#[test]
fn a_rogue_asks_in_its_own_name_alone_and_is_told_what_concerns_it() {
    let (a, b, rogue) = three();
    let id = |agent: &Agent| status(agent)["node"].as_str().expect("a text").parse().expect("an id");
    let own = |to| Question::new(&rogue.key, to, 7, kind::QUEUE, br#"{"v":1}"#[..].into());
    let said = asked(&mut rogue.session(&a), &own(id(&a))).expect("it is told something");
    assert!(String::from_utf8_lossy(&said).contains("does not let this host look"), "{said:?}");
    wait_reported(&a, "asked");
    assert!(a.ok(&["mesh", "status"]).contains("refused: r asked what it may not be told, 1 times"));
    // In the name of b, which may know more; for a itself, and for b by way of a.
    for (number, to) in [(1, id(&a)), (2, id(&b))] {
        let forged = Question { from: id(&b), number, ..own(to) };
        assert_eq!(asked(&mut rogue.session(&a), &forged), Err(Fault::Stranger));
    }
    wait_until("both are reported", SOON, || misdeeds(&a, "question") == 2);
    assert_eq!((misdeeds(&b, "question"), misdeeds(&b, "asked")), (0, 0), "nothing of it was passed on");
    wait_reported(&a, "question");
}

/// Whoever passes a question on can keep it and send it again.
#[test]
fn a_question_that_was_overheard_is_answered_once() {
    let (a, _b, rogue) = three();
    let to = status(&a)["node"].as_str().expect("a text").parse().expect("an id");
    let ask = |word: &Value| {
        let octets = serde_json::json!({ "v": 1, "mesh_id": "x", "word": word }).to_string().into_bytes();
        let question = Question::new(&rogue.key, to, 7, kind::TRACE, octets.into());
        let said = asked(&mut rogue.session(&a), &question).expect("it is answered");
        serde_json::from_slice::<Value>(&said).expect("JSON")
    };
    let word = ask(&Value::Null)["word"].clone();
    assert!(word.is_string() && ask(&word)["is_stale"] == false, "a word is good");
    let again = ask(&word);
    assert!(again["is_stale"] == true && again["views"] == serde_json::json!([]), "and not again: {again}");
}

/// Whoever has seen an invitation being used has the proof, and not the session that it is for.
#[test]
fn of_proofs_that_were_overheard_or_are_for_others_none_lets_anybody_in() {
    const ATTEMPTS: u8 = 40;
    let a = host("a").metrics().start();
    let token = a.ok(&["mesh", "invite", "--uses", "100"]);
    let invitation: Invitation = token.trim().parse().expect("an invitation");
    for attempt in 0..ATTEMPTS {
        let key = SecretKey::from_seed(&[attempt + 1; 32]);
        let (me, other) = (key.public().id(), SecretKey::from_seed(&[99; 32]).public().id());
        // The secret is right in all of them: what is missing is this session.
        let proof = match attempt % 3 {
            0 => invitation.prove(&[attempt; 32], &me),
            1 => invitation.prove(&[attempt; 32], &other),
            _ => Invitation { inviter: other, ..invitation.clone() }.prove(&[attempt; 32], &me),
        };
        let mut session = mesh::session(&key, &a);
        session.ehlo();
        session.expect("XLINK 1", 250);
        session.send(Message::Join { proof, label: "r".into() }.to_octets());
        let rest = session.wire().rest();
        let said = Message::from_octets(&rest[LENGTH_OCTETS..]).expect("sound");
        assert!(matches!(&said, Message::Refused { why } if why.contains("no open invitation")), "{said:?}");
    }
    let status = status(&a);
    assert_eq!(status["members"].as_array().map(Vec::len), Some(1), "{status}");
    let reported = serde_json::json!([{ "node": "", "label": "strangers", "what": "join", "times": ATTEMPTS }]);
    assert_eq!(status["misdeeds"], reported);
    assert_eq!(a.metric("postroad_mesh_misdeeds_total{what=\"join\"}"), usize::from(ATTEMPTS));
    let told = a.logged("a member does what it may not");
    assert!(told < usize::from(ATTEMPTS), "the log says it {told} times");
}

#[test]
fn a_rogue_that_floods_loses_its_link_and_nobody_else_does() {
    const MESSAGES: usize = 3_000;
    let (a, b, rogue) = three();
    let mut client = rogue.session(&a);
    client.expect("XLINK 1", 250);
    let flood = Message::Unknown(99).to_octets().repeat(MESSAGES);
    // It is closed in the middle.
    let _ = client.try_send(flood);
    wait_reported(&a, "flood");
    client.wire().rest();
    let mut again = rogue.session(&a);
    again.expect("XLINK 1", 250);
    assert_eq!(again.wire().rest(), b"", "none is taken of it for a while");
    assert!(b.ok(&["mesh", "ping", "a"]).contains("answers"));
    send(&b, "user@b.example", &["user@a.example"]);
    wait_until("mail goes on", SOON, || mailbox(&a) == 1);
}
