//! How a mesh is governed, in words: its policy, what lacks voices, who changes a key.

use postroad_queue::UnixMillis;

use super::short;
use crate::admin::mesh::{MeshView, VotesView};
use crate::admin::view::Time;
use crate::telemetry::escaped;

/// Says how the members decide.
pub(super) fn policy(view: &MeshView) -> Vec<String> {
    let voices = |count: u8| if count == 1 { "1 voice".to_owned() } else { format!("{count} voices") };
    let said = view.policy.iter().map(|policy| {
        let (admit, revoke) = (voices(policy.admit_by), voices(policy.revoke_by));
        format!("policy {}: {admit} to admit, {revoke} to revoke", escaped(&policy.hash))
    });
    let open = (view.open_votes > 0).then(|| format!("lacking voices: {} (postroad mesh vote)", view.open_votes));
    said.chain(open).collect()
}

/// Says what lacks voices.
pub(super) fn votes(view: &VotesView) -> Vec<String> {
    let open = view.open.iter().map(|open| {
        let detail = if open.detail.is_empty() { String::new() } else { format!(" ({})", escaped(&open.detail)) };
        let by: Vec<String> = open.by.iter().map(|label| escaped(label)).collect();
        let node = short(&open.node);
        let remedy = match open.is_said {
            true => "this host has spoken for it".to_owned(),
            false => format!("to agree: postroad mesh vote {node}"),
        };
        format!(
            "{} {} {node}{detail}: {} of {} voices, by {}\n  {remedy}",
            open.what,
            escaped(&open.label),
            open.voices,
            open.needed,
            by.join(", ")
        )
    });
    let nothing = (view.open.is_empty() && view.done.is_none()).then(|| "nothing lacks voices".to_owned());
    view.done.iter().map(|done| escaped(done)).chain(open).chain(nothing).collect()
}

/// Says who changes its key, and who has not heard of that yet.
pub(super) fn changing(view: &MeshView) -> Vec<String> {
    let own = view.rotation.iter().map(|rotation| {
        let unheard: Vec<String> = rotation.unheard.iter().map(|label| escaped(label)).collect();
        let unheard = if unheard.is_empty() { "nobody any more".to_owned() } else { unheard.join(", ") };
        format!(
            "this host changes its key: as {} it is known still to {unheard}, until {} at the latest\n  \
             to give the old key up now: postroad mesh rotate --finish",
            short(&rotation.earlier),
            Time(UnixMillis(rotation.until_ms))
        )
    });
    let others = view.members.iter().filter(|member| member.link != "self" && !member.earlier.is_empty());
    let others = others.map(|member| {
        let earlier: Vec<String> = member.earlier.iter().map(|node| short(node)).collect();
        format!("{} changes its key: as {} it is known still", escaped(&member.label), earlier.join(", "))
    });
    own.chain(others).collect()
}

/// Says who is contained, who hands over too much, and who tried what it may not.
pub(super) fn conduct(view: &MeshView) -> Vec<String> {
    let contained = view.contained.iter().map(|one| {
        let via = one.via.as_ref().map(|via| format!(", as {} hands it over", escaped(via))).unwrap_or_default();
        let (label, node, why) = (escaped(&one.label), short(&one.node), escaped(&one.why));
        format!("contained: {label}{via} ({why})\n  to let its mail leave again: postroad mesh contain {node} --lift")
    });
    let over =
        view.over_quota.iter().map(|one| format!("over its quota: {}, {} times", escaped(&one.label), one.times));
    let misdeeds = view.misdeeds.iter().map(|one| {
        let what = match one.what.as_str() {
            "unsound" => "passed on what is forged or damaged",
            "other_mesh" => "passed on what was said in another mesh",
            "origin" => "handed over mail in another member's name",
            "flood" => "flooded its link",
            "question" => "asked something in another member's name",
            "asked" => "asked what it may not be told",
            "join" => "asked to be let in with what fits no invitation",
            "through" => "asked for octets to be passed on that it may not have passed on",
            other => other,
        };
        // Honest people try these as well.
        let how = if ["asked", "join", "through"].contains(&one.what.as_str()) { "refused" } else { "suspicious" };
        format!("{how}: {} {}, {} times", escaped(&one.label), escaped(what), one.times)
    });
    contained.chain(over).chain(misdeeds).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::mesh::{MemberView, OpenVoteView, PolicyView, RotationView};

    #[test]
    fn policy_votes_and_changes_of_keys_for_people() {
        let policy_view = PolicyView { admit_by: 1, revoke_by: 2, hash: "abcdefgh".into() };
        let lab = MemberView { label: "lab".into(), earlier: vec!["labold1234".into()], ..MemberView::default() };
        let rotation =
            RotationView { earlier: "hqold56789".into(), until_ms: 0, unheard: vec!["c".into(), "d".into()] };
        let view = MeshView {
            policy: Some(policy_view),
            open_votes: 1,
            members: vec![lab],
            rotation: Some(rotation),
            ..MeshView::default()
        };
        assert_eq!(
            policy(&view),
            ["policy abcdefgh: 1 voice to admit, 2 voices to revoke", "lacking voices: 1 (postroad mesh vote)"]
        );
        let want = [
            "this host changes its key: as hqold567 it is known still to c, d, until 1970-01-01T00:00:00.000Z at the \
             latest\n  to give the old key up now: postroad mesh rotate --finish",
            "lab changes its key: as labold12 it is known still",
        ];
        assert_eq!(changing(&view), want);
        let open = OpenVoteView {
            node: "labcdefghij".into(),
            label: "lab".into(),
            what: "admit".into(),
            detail: "relay lab.example".into(),
            by: vec!["hq".into()],
            voices: 1,
            needed: 2,
            is_said: false,
        };
        let view = VotesView { done: None, open: vec![open] };
        let want =
            "admit lab labcdefg (relay lab.example): 1 of 2 voices, by hq\n  to agree: postroad mesh vote labcdefg";
        assert_eq!(votes(&view), [want]);
        assert_eq!(votes(&VotesView::default()), ["nothing lacks voices"]);
    }
}
