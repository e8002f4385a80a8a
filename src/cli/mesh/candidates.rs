//! `postroad mesh candidates`: where members may be found, and how each address did.

use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};

use super::short;
use crate::admin::mesh::{CandidateView, CandidatesView};
use crate::config::show_duration;
use crate::telemetry::escaped;

/// Returns the lines of a table.
pub(super) fn table(view: &CandidatesView) -> Vec<String> {
    if view.candidates.is_empty() {
        return vec!["no other member is known".to_owned()];
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["MEMBER", "NODE", "SOURCE", "ADDRESS", "STATE"]);
    for one in &view.candidates {
        table.add_row([
            escaped(&one.label),
            one.node.as_deref().map(short).unwrap_or_default(),
            escaped(&one.source),
            escaped(&one.address),
            state(one),
        ]);
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect()
}

fn state(one: &CandidateView) -> String {
    match one {
        CandidateView { node: None, .. } => "names no member: not dialled".to_owned(),
        CandidateView { is_reached: true, .. } => "reached".to_owned(),
        CandidateView { failures: 0, .. } => "untried".to_owned(),
        CandidateView { failures, wait_ms: 0, .. } => format!("failed, {failures} times"),
        CandidateView { failures, wait_ms, .. } => {
            let wait = Duration::from_secs(wait_ms.div_ceil(60_000) * 60);
            format!("failed, {failures} times; again in {}", show_duration(wait))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_for_people() {
        let one = |label: &str, source: &str, address: &str| CandidateView {
            node: Some(format!("{label}abcdefghijk")),
            label: label.into(),
            source: source.into(),
            address: address.into(),
            ..CandidateView::default()
        };
        let reached = CandidateView { is_reached: true, ..one("lab", "directory", "lab.example:25") };
        let failed = CandidateView { failures: 2, wait_ms: 119_001, ..one("lab", "srv", "192.0.2.1:25") };
        let strange = CandidateView { node: None, ..one("", "srv", "mx.example:25") };
        let view = CandidatesView { candidates: vec![reached, failed, strange] };
        let want = " MEMBER  NODE      SOURCE     ADDRESS         STATE
 lab     lababcde  directory  lab.example:25  reached
 lab     lababcde  srv        192.0.2.1:25    failed, 2 times; again in 2m
                   srv        mx.example:25   names no member: not dialled";
        assert_eq!(table(&view).join("\n"), want);
        assert_eq!(table(&CandidatesView::default()), ["no other member is known"]);
    }
}
