//! What one member cannot decide alone: a mesh whose policy wants two voices to admit and three to revoke.

mod support;

use serde_json::Value;
use support::agent::Agent;
use support::mesh::{host, status};
use support::net::{SOON, wait_until};

fn count(agent: &Agent) -> usize {
    status(agent)["members"].as_array().expect("a list").len()
}

fn card(agent: &Agent) -> String {
    agent.ok(&["mesh", "card"]).trim().to_owned()
}

fn fails(agent: &Agent, words: &[&str], what: &str) {
    let output = agent.cli(words);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains(what), "{words:?}: {said}");
}

fn votes(agent: &Agent) -> Vec<Value> {
    agent.json(&["mesh", "vote", "--json"])["open"].as_array().expect("a list").clone()
}

#[test]
fn two_voices_admit_and_three_revoke_where_the_founders_said_so() {
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| host(name).start());
    fails(&a, &["mesh", "init", "--admit-by", "2"], "it could never grow");
    let [of_b, of_c] = [card(&b), card(&c)];
    fails(&a, &["mesh", "init", "--admit-by", "2", "--with", &of_b, "--with", &of_b], "stands twice");
    let init = ["mesh", "init", "--label", "ours", "--admit-by", "2", "--revoke-by", "3"];
    let said = a.ok(&[&init[..], &["--with", &of_b, "--with", &of_c]].concat());
    assert!(said.contains("2 voices to admit, 3 voices to revoke"), "{said}");
    // Who founds it is a member by its key: any token leads it there.
    let token = a.ok(&["mesh", "invite", "--serves", "d.example"]).trim().to_owned();
    for agent in [&b, &c] {
        agent.ok(&["mesh", "join", &token]);
    }
    for agent in [&a, &b, &c] {
        wait_until("three founded it", SOON, || count(agent) == 3);
        assert_eq!(status(agent)["policy"], status(&a)["policy"]);
    }
    fails(&d, &["mesh", "join", &token], "more than one voice");
    wait_until("b hears that d lacks a voice", SOON, || votes(&b).len() == 1);
    let open = &votes(&b)[0];
    assert_eq!((&open["label"], &open["voices"], &open["needed"]), (&"d".into(), &1.into(), &2.into()), "{open}");
    fails(&a, &["mesh", "vote", "d"], "has spoken for that already");
    fails(&d, &["mesh", "join", &token], "more than one voice");
    let said = b.ok(&["mesh", "vote", "d"]);
    assert!(said.contains("d is a member; say there: postroad mesh join mesh1:"), "{said}");
    wait_until("a hears of the second voice", SOON, || count(&a) == 4);
    d.ok(&["mesh", "join", &token]);
    wait_until("d knows all", SOON, || count(&d) == 4);
    assert!(a.ok(&["mesh", "vote"]).contains("nothing lacks voices"));
    // Against one of the founders three speak, however they say it.
    a.ok(&["mesh", "revoke", "c", "--reason", "stolen"]);
    wait_until("b hears of it", SOON, || votes(&b).len() == 1);
    let said = b.ok(&["mesh", "vote", "c"]);
    assert!(said.contains("speaks against c as well") && said.contains("2 of 3 voices"), "{said}");
    wait_until("d hears of both", SOON, || votes(&d).first().is_some_and(|open| open["voices"] == 2));
    assert!(a.ok(&["mesh", "status"]).contains("lacking voices: 1"));
    let said = d.ok(&["mesh", "vote", "c"]);
    assert!(said.contains("c is a member no more"), "{said}");
    wait_until("all know", SOON, || [&a, &b].iter().all(|agent| count(agent) == 3));
}
