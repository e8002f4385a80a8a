//! What DNS has to do with a mesh: the records that `postroad mesh dns` prints, and what is said of domains that
//! nobody granted.

use postroad_mesh::proof;

use super::short;
use crate::admin::mesh::{DnsView, MemberView, MeshView, ProofView};
use crate::telemetry::escaped;

/// Returns the records as a zone file has them, each kind behind a comment that says what it is good for.
pub(super) fn zone(view: &DnsView) -> Vec<String> {
    if view.records.is_empty() {
        return vec!["; nothing to publish: this host serves no domain".to_owned()];
    }
    let line = |record: &crate::admin::mesh::DnsRecordView| {
        let comment = format!("; {}", escaped(&record.why));
        [comment, format!("{}\tIN\t{}\t{}", escaped(&record.name), escaped(&record.kind), escaped(&record.data))]
    };
    view.records.iter().flat_map(line).collect()
}

/// Says which domains no mail comes for, and what to do about it.
pub(super) fn claimed_in_vain(view: &MeshView) -> Vec<String> {
    let of = |member: &MemberView| {
        let (label, node) = (escaped(&member.label), short(&member.node));
        let domains: Vec<String> = member.claims.iter().map(|domain| escaped(domain)).collect();
        let grant: Vec<String> = domains.iter().map(|domain| format!(" --serves {domain}")).collect();
        let said = |domain: &String| {
            let is_it = |proof: &&ProofView| proof.node == member.node && proof.domain == *domain;
            view.proofs.iter().find(is_it).map_or("", |proof| proof.dns.as_str())
        };
        let remedy = |domain: &String| {
            format!("\n  or in DNS: {}{}", record(&escaped(domain), &escaped(&member.node)), why(said(domain)))
        };
        format!(
            "claimed without a grant, so not used: {} by {label}\n  on a member that may admit: postroad mesh grant {node}{}{}",
            domains.join(", "),
            grant.concat(),
            member.claims.iter().map(remedy).collect::<String>()
        )
    };
    view.members.iter().filter(|member| !member.claims.is_empty()).map(of).collect()
}

/// Returns the record that proves a domain to be a node's.
pub(in crate::cli) fn record(domain: &str, node: &str) -> String {
    format!("{}. IN TXT \"{}\"", proof::name(&domain), proof::text(&node))
}

/// Says which domains are used because DNS names their member.
pub(super) fn proven(view: &MeshView) -> Vec<String> {
    let proven = view.proofs.iter().filter(|proof| proof.is_proven);
    let line = |proof: &ProofView| {
        let doubt = match proof.dns.as_str() {
            "denied" | "unclear" | "unchecked" => why(&proof.dns),
            _ => "",
        };
        format!("by DNS: {} of {}{doubt}", escaped(&proof.domain), escaped(&proof.label))
    };
    proven.map(line).collect()
}

/// Says what came of the last question.
fn why(dns: &str) -> &'static str {
    match dns {
        "found" => " (DNS names other nodes)",
        "denied" => " (DNS has no such record)",
        "unclear" => " (DNS does not answer)",
        "unchecked" => {
            " (the domain is signed, and the name server does not check it: set [dns] servers to one that does)"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::mesh::DnsRecordView;

    #[test]
    fn records_stand_as_in_a_zone_file() {
        let record = DnsRecordView {
            name: "_smtp-mesh.a.example.".into(),
            kind: "TXT".into(),
            data: "\"v=postroad1; id=k5\"".into(),
            why: "mail".into(),
        };
        let lines = zone(&DnsView { records: vec![record] });
        assert_eq!(lines, ["; mail", "_smtp-mesh.a.example.\tIN\tTXT\t\"v=postroad1; id=k5\""]);
        assert!(zone(&DnsView::default())[0].starts_with("; nothing"));
    }

    #[test]
    fn what_dns_says_of_a_claim_is_said() {
        let proof = |domain: &str, is_proven, dns: &str| ProofView {
            domain: domain.into(),
            node: "labid".into(),
            label: "lab".into(),
            is_proven,
            dns: dns.into(),
        };
        let lab = MemberView {
            node: "labid".into(),
            label: "lab".into(),
            claims: vec!["d.example".into(), "e.example".into()],
            ..MemberView::default()
        };
        let view = MeshView {
            members: vec![lab],
            proofs: vec![
                proof("b.example", true, "found"),
                proof("c.example", true, "unclear"),
                proof("d.example", false, "denied"),
                proof("e.example", false, "unasked"),
            ],
            ..MeshView::default()
        };
        let want = "\
claimed without a grant, so not used: d.example, e.example by lab
  on a member that may admit: postroad mesh grant labid --serves d.example --serves e.example
  or in DNS: _smtp-mesh.d.example. IN TXT \"v=postroad1; id=labid\" (DNS has no such record)
  or in DNS: _smtp-mesh.e.example. IN TXT \"v=postroad1; id=labid\"
by DNS: b.example of lab
by DNS: c.example of lab (DNS does not answer)";
        assert_eq!([claimed_in_vain(&view), proven(&view)].concat().join("\n"), want);
    }
}
