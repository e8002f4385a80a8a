//! Whose a domain is, as DNS says: each host asks by itself, as often as `postroad_mesh::proof` allows, and keeps on disk
//! what it was told, so that a restart sends no mail elsewhere.

use std::net::IpAddr;

use postroad_mesh::NodeId;
use postroad_mesh::candidate::SERVICE;
use postroad_mesh::proof::{self, Answer, Last};
use postroad_mesh::record::Address;
use postroad_smtp::Domain;
use tracing::{debug, error, info};

use super::members::in_no_mesh;
use super::{Peers, own};
use crate::admin::Failure;
use crate::admin::mesh::{DnsRecordView, DnsView, ProofView};
use crate::clock::millis;
use crate::route::{Heard, Witness};

impl Peers {
    /// Asks DNS whose a domain is.
    pub(super) async fn look_up(&self, domain: Domain) {
        let heard = Witness::new(&self.config().dns).texts(&proof::name(&domain)).await;
        debug!(%domain, ?heard, "DNS was asked whose a domain is");
        let answer = match heard {
            Heard::Records { records, ttl, security } => {
                let ids = records.iter().flat_map(|text| proof::ids(text)).collect();
                Answer::Found { ids, ttl_ms: millis(ttl), security }
            }
            Heard::Nothing(security) => Answer::Denied { security },
            Heard::Unclear(_) => Answer::Unclear,
        };
        let _alone = self.0.deciding.lock().await;
        let now = self.now();
        let kept = self.state().as_mut().and_then(|state| {
            let before = state.proofs.proven();
            let is_changed = state.proofs.answered(&domain, answer, now);
            let after = state.proofs.proven();
            for (node, domain) in after.difference(&before) {
                info!(%node, %domain, "DNS proves whose a domain is");
            }
            for (node, domain) in before.difference(&after) {
                info!(%node, %domain, "DNS proves no more that a domain is its");
            }
            is_changed.then(|| state.proofs.to_octets())
        });
        if let Some(octets) = kept
            && let Err(error) = self.on_disk(move |files| files.put_proofs(&octets)).await
        {
            error!(%error, "what DNS proved is not on disk");
        }
        self.0.wake.notify_one();
    }

    /// Returns what DNS says of the domains that members claim without a grant.
    pub(super) fn proof_views(&self) -> Vec<ProofView> {
        let view = self.view();
        let guard = self.state();
        let Some(state) = guard.as_ref() else { return Vec::new() };
        let directory = state.spread.directory();
        let mut shown = Vec::new();
        for (node, domains) in directory.not_granted() {
            shown.extend(domains.iter().map(|domain| {
                ProofView {
                    domain: domain.to_string(),
                    node: node.to_string(),
                    label: view.label(&node),
                    is_proven: directory.is_proven(&node, domain),
                    dns: match state.proofs.last(domain) {
                        Last::Unasked => "unasked",
                        Last::Found => "found",
                        Last::Denied => "denied",
                        Last::Unclear => "unclear",
                        Last::Unchecked => "unchecked",
                    }
                    .to_owned(),
                }
            }));
        }
        shown
    }

    /// Returns what DNS could say of this host.
    pub(super) fn dns_view(&self) -> Result<DnsView, Failure> {
        let me = self.view().me().ok_or_else(in_no_mesh)?;
        let proof = |domain: &Domain| DnsRecordView {
            name: format!("{}.", proof::name(domain)),
            kind: "TXT".to_owned(),
            data: format!("\"{}\"", proof::text(&me)),
            why: format!("mail for {domain} is for this host, also where no member granted it"),
        };
        let config = self.config();
        let mut records: Vec<DnsRecordView> = own::serves(&config).iter().map(proof).collect();
        if let Some(domain) = &config.mesh.domain {
            records.extend(own::addresses(&config).iter().flat_map(|address| where_it_is(&me, domain, address)));
        }
        Ok(DnsView { records })
    }
}

/// Returns the records that lead members to a node at an address; SRV leads to SMTP with STARTTLS alone.
fn where_it_is(me: &NodeId, domain: &Domain, address: &Address) -> Vec<DnsRecordView> {
    if address.implicit_tls {
        return Vec::new();
    }
    let target = format!("{me}.{domain}.");
    let ip: Option<IpAddr> = address.host.parse().ok();
    let why = match ip {
        Some(_) => "members find this host here when they find it nowhere else".to_owned(),
        None => format!("members find this host here; {target} needs the A and AAAA records of {}", address.host),
    };
    let service = DnsRecordView {
        name: format!("{SERVICE}.{domain}."),
        kind: "SRV".to_owned(),
        data: format!("0 0 {} {target}", address.port),
        why,
    };
    let host = ip.map(|ip| DnsRecordView {
        name: target,
        kind: if ip.is_ipv4() { "A" } else { "AAAA" }.to_owned(),
        data: ip.to_string(),
        why: "its first label is the id of this host".to_owned(),
    });
    std::iter::once(service).chain(host).collect()
}
