//! What can be asked about the mesh over the control socket, and how it is shown.

use serde::{Deserialize, Serialize};

/// What is asked of the mesh.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum MeshRequest {
    /// Found a mesh with this host as its first member. Shows a [`MeshView`].
    Init {
        /// What it is called, for people.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        label: Option<String>,
        /// How many independent voices make a member, and end a membership.
        admit_by: u8,
        /// See `admit_by`.
        revoke_by: u8,
        /// The cards of those who found it, too.
        #[serde(default)]
        founders: Vec<String>,
    },
    /// Invite; found a mesh first when this host is in none. Shows an [`InviteView`].
    Invite {
        /// How long the invitation is open, in milliseconds.
        ttl_ms: u64,
        /// How many may join by it.
        uses: u32,
        /// What they may do: names with commas between them.
        caps: String,
        /// The domains whose mail they may take.
        #[serde(default)]
        serves: Vec<String>,
    },
    /// Join by an invitation. Shows a [`MeshView`].
    Join {
        /// The invitation.
        token: String,
    },
    /// Show the card of this host. Shows a [`CardView`].
    Card {},
    /// Admit a host by its card. Shows an [`InviteView`].
    Admit {
        /// The card.
        card: String,
        /// What it is called, for people.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        label: Option<String>,
        /// What it may do.
        caps: String,
        /// The domains whose mail it may take.
        #[serde(default)]
        serves: Vec<String>,
    },
    /// Grant a member domains and rights. Shows a [`MeshView`].
    Grant {
        /// Its label, its id, or what its id begins with.
        node: String,
        /// What it may do besides.
        #[serde(default)]
        caps: String,
        /// The domains whose mail it may take.
        #[serde(default)]
        serves: Vec<String>,
    },
    /// How the mesh is. Shows a [`MeshView`].
    Status {},
    /// What to publish in DNS. Shows a [`DnsView`].
    Dns {},
    /// Where members may be found. Shows a [`CandidatesView`].
    Candidates {},
    /// What leads where. Shows a [`MapView`].
    Map {},
    /// Say that a node is to be a member no more. Shows a [`VoteView`].
    Revoke {
        /// Its label, its id, or what its id begins with.
        node: String,
        /// Why, for people.
        #[serde(default)]
        reason: String,
    },
    /// Add this host's voice to what lacks voices, or with no node only show that. Shows a [`VotesView`].
    Vote {
        /// Whom it is about: a label, an id, or what an id begins with.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        node: Option<String>,
    },
    /// Take a node for no member here, whatever the others say. Shows a [`MeshView`].
    Refuse {
        /// Which.
        node: String,
        /// No longer.
        #[serde(default)]
        lift: bool,
    },
    /// Let of a member's mail only a trickle leave the mesh here. Shows a [`MeshView`].
    Contain {
        /// Which.
        node: String,
        /// No longer.
        #[serde(default)]
        lift: bool,
    },
    /// Leave the mesh and forget it, when no mail waits here for its members. Shows a [`MeshView`].
    Leave {
        /// Also when some does.
        #[serde(default)]
        now: bool,
    },
    /// Go on under a new key. Shows a [`MeshView`].
    Rotate {
        /// Instead give the old one up now, whoever has not heard of the new one.
        #[serde(default)]
        finish: bool,
    },
    /// Ask a member whether it is there. Shows a [`PingView`].
    Ping {
        /// Which.
        node: String,
    },
}

/// What a voice against a node came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VoteView {
    /// The node.
    pub node: String,
    /// What it is called.
    pub label: String,
    /// It is a member no more.
    pub is_revoked: bool,
    /// How many voices it takes.
    pub voices_needed: u8,
}

/// What lacks voices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VotesView {
    /// What the voice that was added just now came to.
    pub done: Option<String>,
    /// What lacks voices still.
    pub open: Vec<OpenVoteView>,
}

/// An admission or a revocation that lacks voices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OpenVoteView {
    /// Whom it is about.
    pub node: String,
    /// What that one is called.
    pub label: String,
    /// What it is: `admit` or `revoke`.
    pub what: String,
    /// With which rights and domains, or why.
    pub detail: String,
    /// Who spoke for it.
    pub by: Vec<String>,
    /// How many independent voices these have.
    pub voices: u8,
    /// How many it takes.
    pub needed: u8,
    /// This host has spoken for it.
    pub is_said: bool,
}

/// How the members of a mesh decide.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PolicyView {
    /// How many independent voices make a member.
    pub admit_by: u8,
    /// How many end a membership.
    pub revoke_by: u8,
    /// What people compare it by.
    pub hash: String,
}

/// That a member is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PingView {
    /// The node.
    pub node: String,
    /// What it is called.
    pub label: String,
    /// How long its answer took, in milliseconds.
    pub ms: u64,
}

/// What leads a host into the mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct InviteView {
    /// What the host is to be told.
    pub token: String,
    /// The mesh was made with it.
    pub is_founded: bool,
    /// When it ends, in milliseconds since the Unix epoch; 0: when the membership does.
    pub until_ms: u64,
    /// How many may join by it; 0: the host that the card is of.
    pub uses: u32,
    /// What they may do.
    pub caps: String,
}

/// What this host would have published in DNS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsView {
    /// The records.
    pub records: Vec<DnsRecordView>,
}

/// A record of DNS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsRecordView {
    /// The name, with a dot at its end.
    pub name: String,
    /// `TXT`, `SRV`, `A` or `AAAA`.
    pub kind: String,
    /// What stands behind the kind in a zone file.
    pub data: String,
    /// What it is good for.
    pub why: String,
}

/// Where members may be found, in the order in which each is tried.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CandidatesView {
    /// The addresses.
    pub candidates: Vec<CandidateView>,
}

/// An address at which a member may be found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CandidateView {
    /// The member; none when the address is nobody's that is known here: it is never dialled.
    pub node: Option<String>,
    /// What the member is called.
    pub label: String,
    /// Who says so: `configured`, `directory`, `invitation` or `srv`.
    pub source: String,
    /// The address.
    pub address: String,
    /// The member answered there when it was dialled last.
    pub is_reached: bool,
    /// How often in a row it did not.
    pub failures: u32,
    /// For how long the address is left alone for that, in milliseconds.
    pub wait_ms: u64,
}

/// What DNS says of a domain that a member claims without a grant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProofView {
    /// The domain.
    pub domain: String,
    /// The member's id.
    pub node: String,
    /// What it is called.
    pub label: String,
    /// DNS names the member, or did so lately.
    pub is_proven: bool,
    /// What came of the last question: `unasked`, `found`, `denied`, `unclear` or `unchecked`.
    pub dns: String,
}

/// What a host shows of itself to be admitted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CardView {
    /// The card.
    pub card: String,
    /// Its node.
    pub node: String,
}

/// The mesh as this host knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MeshView {
    /// This host; none while it has no key.
    pub node: Option<String>,
    /// The mesh; none in none.
    pub mesh: Option<String>,
    /// What it is called.
    pub label: Option<String>,
    /// Whether this host is a member.
    pub is_member: bool,
    /// Its members, this host with them.
    pub members: Vec<MemberView>,
    /// Nodes that are members no more.
    pub gone: Vec<GoneView>,
    /// Claims to domains that do not count.
    pub conflicts: Vec<String>,
    /// What DNS says of claims that nobody granted.
    pub proofs: Vec<ProofView>,
    /// Nodes that told different things to different members: copies of one host, or one in bad hands.
    pub contradicting: Vec<String>,
    /// Invitations that are open here.
    pub open_invitations: u64,
    /// Statements and records that were not taken in because something is wrong with them.
    pub refused_items: u64,
    /// Members whose mail leaves the mesh here as a trickle.
    pub contained: Vec<ContainedView>,
    /// Members that were told to come again lately, having handed over too much.
    pub over_quota: Vec<OverView>,
    /// What members tried that no honest member does.
    pub misdeeds: Vec<MisdeedView>,
    /// How its members decide; none in none.
    pub policy: Option<PolicyView>,
    /// Admissions and revocations that lack voices.
    pub open_votes: u64,
    /// This host is changing its key.
    pub rotation: Option<RotationView>,
}

/// A change of key that not everybody has heard of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RotationView {
    /// The old id of this host, which is good still.
    pub earlier: String,
    /// When that ends at the latest, in milliseconds since the Unix epoch.
    pub until_ms: u64,
    /// The members that have not said yet that they know the new one.
    pub unheard: Vec<String>,
}

/// A member whose mail leaves the mesh here as a trickle.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainedView {
    /// Its id.
    pub node: String,
    /// What it is called.
    pub label: String,
    /// What the member is called over which its mail has to come for that; none: any.
    pub via: Option<String>,
    /// Why.
    pub why: String,
}

/// A member that handed over more than its quota.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OverView {
    /// Its id.
    pub node: String,
    /// What it is called.
    pub label: String,
    /// How often it was told to come again, within the last hour or two.
    pub times: u64,
}

/// What a member tried.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MisdeedView {
    /// Its id; empty for strangers, who are counted as one.
    pub node: String,
    /// What it is called.
    pub label: String,
    /// What: `unsound`, `other_mesh`, `origin`, `flood`, `question`, `asked` or `join`.
    pub what: String,
    /// How often since the agent started.
    pub times: u64,
}

/// A member.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemberView {
    /// Its id.
    pub node: String,
    /// What it is called.
    pub label: String,
    /// Where it is.
    pub site: String,
    /// Where it is reached.
    pub addresses: Vec<String>,
    /// The domains that are its own.
    pub serves: Vec<String>,
    /// Domains that it claims, nobody granted and DNS does not prove: they are not used.
    pub claims: Vec<String>,
    /// What it may do.
    pub caps: String,
    /// How it is reached: `public`, `dials-out`, `windows`; `unknown` before it said so.
    pub reach: String,
    /// The link with it: `dialled`, `accepted`, `none`; `self` for this host.
    pub link: String,
    /// Connections that it keeps here to be pushed its mail.
    pub connections: u64,
    /// It can push mail to this host, over a connection that this one keeps with it.
    pub pushes: bool,
    /// What was said when this host could not reach it just now: mail is handed to others first.
    pub down: Option<String>,
    /// This host refuses it.
    pub is_refused: bool,
    /// Ids that it had before and that are good still: it is changing its key.
    pub earlier: Vec<String>,
}

/// A node that is a member no more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GoneView {
    /// Its id.
    pub node: String,
    /// Why.
    pub why: String,
}

/// The mesh as mail sees it from this host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MapView {
    /// What the mesh is called.
    pub label: String,
    /// This host; none while it is no member.
    pub node: Option<String>,
    /// The members that are not refused here.
    pub nodes: Vec<PlaceView>,
    /// The links that both ends state, each once.
    pub links: Vec<LinkView>,
}

/// A member on the map.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PlaceView {
    /// Its id.
    pub node: String,
    /// What it is called.
    pub label: String,
    /// Where it is.
    pub site: String,
    /// How it is reached, as in [`MemberView`].
    pub reach: String,
    /// The domains that are its own.
    pub serves: Vec<String>,
    /// Domains that it claims, nobody granted and DNS does not prove: they are not used.
    pub claims: Vec<String>,
    /// Where it sends mail out to.
    pub egress: Vec<EgressView>,
    /// The nodes that hold its mail while it sleeps.
    pub pickups: Vec<String>,
    /// How long it holds mail for others, in days.
    pub holds_days: u16,
    /// The cheapest way from here: the nodes on it, this one last. Empty: none leads there, or it is
    /// this host.
    pub path: Vec<String>,
    /// What that way costs.
    pub cost: Option<u32>,
}

/// An offer to send mail out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EgressView {
    /// The domains it is for, with all below them; empty: every domain.
    pub to: Vec<String>,
    /// The domains of senders that it may speak for; empty: nothing is known.
    pub from: Vec<String>,
    /// What it costs.
    pub cost: u16,
    /// The largest message, in octets; 0: no limit.
    pub octets_max: u64,
}

/// A link.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LinkView {
    /// One end.
    pub a: String,
    /// The other end.
    pub b: String,
    /// What it costs from `a` to `b`.
    pub cost: u32,
    /// What it costs back.
    pub cost_back: u32,
    /// `open`: this host has a session over it now; `stated`: both ends say that mail may go over it.
    pub state: String,
    /// The cheapest way from here to somebody goes over it.
    pub is_used: bool,
}
