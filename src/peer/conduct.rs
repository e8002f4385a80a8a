//! How members behave, as far as this host sees it: what they hand over for outside the mesh against their
//! quotas, who is contained, and what they tried that no honest member does.
//!
//! Everything here is charged to the key that proved itself on the session, never to a name that
//! was said. A member that is contained still reaches every mailbox in the mesh: word of it gets through.

use std::collections::BTreeMap;
use std::time::Duration;

use postroad_mesh::archive::{CONTAINED_MAX, Contained};
use postroad_mesh::quota::{Accounts, Foreign, Over, Way};
use postroad_mesh::spread::Fault;
use postroad_mesh::{NodeId, Passage};
use tracing::{info, warn};

use super::members::in_no_mesh;
use super::{Peers, View};
use crate::admin::Failure;
use crate::admin::mesh::{ContainedView, MisdeedView, OverView};
use crate::clock::millis;
use crate::metrics::Misdeed;

/// How often one thing that a member does is said in the log.
const SAID_EVERY: Duration = Duration::from_secs(60);
/// The most things that are remembered of members.
const SEEN_MAX: usize = 1_000;
/// What nodes are called that are no members.
const STRANGERS: &str = "strangers";
/// How long no link is taken of a member that floods.
const SHUT: Duration = Duration::from_secs(60);

/// What is known of how members behave; forgotten at a restart, but for who is contained.
#[derive(Default)]
pub(super) struct Conduct {
    accounts: Accounts,
    /// By member; none: strangers.
    seen: BTreeMap<(Option<NodeId>, Misdeed), Seen>,
    shut: BTreeMap<NodeId, u64>,
}

#[derive(Clone, Copy, Default)]
struct Seen {
    count: u64,
    said: Option<u64>,
}

/// A recipient outside the mesh, of mail that a member hands over.
pub struct Outside<'a> {
    /// Which way the mail came.
    pub way: Way,
    /// The domain, or an address literal.
    pub domain: &'a str,
    /// Whether it is the first one of its message.
    pub is_first: bool,
    /// Whether it is from nobody, or urgent.
    pub is_notice: bool,
}

/// Returns which way mail is charged to. Where its origin is no member, whoever hands it over answers for it: nobody
/// makes accounts out of names.
fn charged(view: &View, way: Way) -> Way {
    let way = view.way(way);
    Way { origin: if view.is_member(&way.origin) { way.origin } else { way.from }, ..way }
}

impl Peers {
    /// Counts a recipient outside the mesh.
    ///
    /// # Errors
    /// What the member has handed over too much of.
    pub fn charge(&self, outside: &Outside<'_>) -> Result<(), Over> {
        let Outside { way, domain, is_first, is_notice } = *outside;
        let view = self.view();
        let (is_contained, way) = (view.is_contained(&way), charged(&view, way));
        let mail = Foreign { domain, is_first, is_notice, is_contained };
        let (quota, now) = (self.config().mesh.quota, self.now());
        let counted = self.conduct().accounts.recipient(way, mail, &quota, now);
        if let Err(over) = counted {
            self.report(way.from, Misdeed::OverQuota, &over.to_string());
        }
        counted
    }

    /// Counts the octets of a message with recipients outside the mesh.
    pub fn charge_octets(&self, way: Way, is_notice: bool, octets: u64) {
        let (view, quota, now) = (self.view(), self.config().mesh.quota, self.now());
        let (is_contained, way) = (view.is_contained(&way), charged(&view, way));
        let mail = Foreign { domain: "", is_first: false, is_notice, is_contained };
        self.conduct().accounts.octets(way, mail, octets, &quota, now);
    }

    /// Counts a message of a member, wherever it goes.
    ///
    /// # Errors
    /// What the member has handed over too much of.
    pub fn pace(&self, node: NodeId, is_notice: bool) -> Result<(), Over> {
        let (quota, now) = (self.config().mesh.quota, self.now());
        let node = self.view().current(&node);
        let counted = self.conduct().accounts.message(node, is_notice, &quota, now);
        self.told(node, counted)
    }

    /// Decides whether octets may be passed on for a member.
    ///
    /// # Errors
    /// It has handed over too much, or had too much passed on.
    pub fn pace_passage(&self, node: NodeId) -> Result<(), Over> {
        let (quota, now) = (self.config().mesh.quota, self.now());
        let node = self.view().current(&node);
        let counted = self.conduct().accounts.passage(node, &quota, now);
        self.told(node, counted)
    }

    fn told(&self, node: NodeId, counted: Result<(), Over>) -> Result<(), Over> {
        counted.inspect_err(|over| self.report(node, Misdeed::OverQuota, &format!("all_{over}")))
    }

    /// Counts octets of a message of a member, or of what is passed on for it; of another node nothing is counted.
    /// Returns whether it is within its quota still.
    pub fn pace_octets(&self, node: NodeId, octets: u64) -> bool {
        let (view, quota, now) = (self.view(), self.config().mesh.quota, self.now());
        !view.is_member(&node) || self.conduct().accounts.all_octets(view.current(&node), octets, &quota, now)
    }

    /// Counts what hosts outside the mesh said to mail that came through it. A member whose mail they
    /// refuse too often is contained.
    pub fn note_outside(&self, passage: &Passage, delivered: u32, refused: u32) {
        let view = self.view();
        let from = passage.visited().last().and_then(|short| view.by_short(short));
        let Some(from) = from.filter(|from| view.me() != Some(*from)) else { return };
        let (way, now) = (charged(&view, Way { from, origin: passage.origin }), self.now());
        let Some(why) = self.conduct().accounts.outcomes(way, delivered, refused, now) else { return };
        if !view.is_contained(&way) {
            let via = (way.origin != way.from).then_some(way.from);
            let (peers, contained) = (self.clone(), Contained { node: way.origin, via, why: why.into() });
            tokio::spawn(async move { peers.contain_by_itself(contained).await });
        }
    }

    async fn contain_by_itself(&self, contained: Contained) {
        let (member, why) = (self.view().label(&contained.node), contained.why.clone());
        match self.change_contained(|all| all.push(contained)).await {
            Ok(()) => {
                let lift = "postroad mesh contain NAME --lift";
                warn!(member, %why, lift, "contained: of its mail a trickle leaves the mesh here, until somebody lifts it");
            }
            Err(failure) => warn!(member, %why, %failure, "a member is to be contained, and that cannot be kept"),
        }
    }

    /// Contains a member, or lifts that.
    pub(super) async fn contain(&self, name: &str, lift: bool) -> Result<(), Failure> {
        let view = self.view();
        view.me().ok_or_else(in_no_mesh)?;
        let node = self.named_other(name, "to hold back what waits here: postroad queue hold")?;
        self.change_contained(|all| {
            all.retain(|contained| view.current(&contained.node) != node);
            if !lift {
                all.push(Contained { node, via: None, why: "by hand".into() });
            }
        })
        .await?;
        info!(%node, lift, "a member is contained by hand");
        Ok(())
    }

    async fn change_contained(&self, change: impl FnOnce(&mut Vec<Contained>)) -> Result<(), Failure> {
        let _alone = self.0.deciding.lock().await;
        let mut own = self.state().as_ref().ok_or_else(in_no_mesh)?.own.clone();
        change(&mut own.contained);
        let surplus = own.contained.len().saturating_sub(CONTAINED_MAX);
        own.contained.drain(..surplus);
        let kept = own.clone();
        self.on_disk(move |files| files.put_own(&kept)).await?;
        let view = self.state().as_mut().and_then(|state| {
            state.own.contained = own.contained;
            state.view()
        });
        self.show(view);
        Ok(())
    }

    /// Reports what a member tried: counted, and said in the log once a minute.
    pub fn report(&self, node: NodeId, what: Misdeed, detail: &str) {
        self.report_times(Some(node), what, 1, detail);
    }

    /// Reports what somebody tried who is no member. Keys cost nothing: all strangers are counted as one.
    pub(super) fn report_stranger(&self, what: Misdeed, detail: &str) {
        self.report_times(None, what, 1, detail);
    }

    /// Reports what was wrong with what a member passed on.
    pub(super) fn report_faults(&self, node: NodeId, faults: BTreeMap<Fault, u64>) {
        for (fault, times) in faults {
            match fault {
                Fault::Unsound => self.report_times(Some(node), Misdeed::Unsound, times, "statements and records"),
                Fault::OtherMesh => self.report_times(Some(node), Misdeed::OtherMesh, times, "statements and records"),
            }
        }
    }

    fn report_times(&self, node: Option<NodeId>, what: Misdeed, times: u64, detail: &str) {
        self.0.parts.metrics.mesh.count_misdeed(what, times);
        let now = self.now();
        let (count, is_said) = {
            let mut conduct = self.conduct();
            if conduct.seen.len() >= SEEN_MAX {
                conduct.seen.clear();
            }
            let seen = conduct.seen.entry((node, what)).or_default();
            seen.count += times;
            let is_due = seen.said.is_none_or(|said| now.saturating_sub(said) >= millis(SAID_EVERY));
            if is_due {
                seen.said = Some(now);
            }
            (seen.count, is_due)
        };
        if is_said {
            let member = node.map_or_else(|| STRANGERS.to_owned(), |node| self.view().label(&node));
            let node = node.map(tracing::field::display);
            warn!(node, member, what = what.as_str(), count, detail, "a member does what it may not");
        }
    }

    /// Ends the link with a member that floods, and takes none for a while.
    pub(super) fn shut(&self, node: NodeId) {
        self.report(node, Misdeed::Flood, "its link is closed for a minute");
        let now = self.now();
        let mut conduct = self.conduct();
        conduct.shut.retain(|_, until| *until > now);
        conduct.shut.insert(node, now + millis(SHUT));
    }

    /// Returns whether no link is taken of a member.
    pub(super) fn is_shut(&self, node: &NodeId) -> bool {
        let now = self.now();
        self.conduct().shut.get(node).is_some_and(|until| *until > now)
    }

    pub(super) fn contained_views(&self) -> Vec<ContainedView> {
        let view = self.view();
        let shown = |contained: &Contained| ContainedView {
            node: contained.node.to_string(),
            label: view.label(&contained.node),
            via: contained.via.map(|via| view.label(&via)),
            why: contained.why.to_string(),
        };
        view.contained().iter().map(shown).collect()
    }

    pub(super) fn over_views(&self) -> Vec<OverView> {
        let view = self.view();
        let over = self.conduct().accounts.over();
        over.into_iter()
            .map(|(node, times)| OverView { label: view.label(&node), node: node.to_string(), times })
            .collect()
    }

    pub(super) fn misdeed_views(&self) -> Vec<MisdeedView> {
        let view = self.view();
        let conduct = self.conduct();
        let seen = conduct.seen.iter().filter(|((_, what), _)| *what != Misdeed::OverQuota);
        let shown = |((node, what), seen): (&(Option<NodeId>, Misdeed), &Seen)| MisdeedView {
            node: node.map(|node| node.to_string()).unwrap_or_default(),
            label: node.map_or_else(|| STRANGERS.to_owned(), |node| view.label(&node)),
            what: what.as_str().to_owned(),
            times: seen.count,
        };
        seen.map(shown).collect()
    }
}
