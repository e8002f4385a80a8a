//! What a message waits for and how destinations stand, as the control socket and `--json` show it:
//! one word for programs, a sentence for people, and the command that would change it. Fields are
//! only ever added.

use postroad_queue::UnixMillis;
use postroad_queue::schedule::{AGE_MINUTES, Ahead, DestinationStats, Lane, Standing, Why};
use serde::{Deserialize, Serialize};

use super::backend::Entry;
use super::request::Id;
use super::view::{RecipientView, Time, is_pending};

/// What one job of a message waits for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WaitView {
    /// The next hop's key.
    pub destination: String,
    /// Whose sessions and rates it shares with other destinations: the host or set of hosts.
    #[serde(default)]
    pub site: String,
    /// `urgent`, `normal` or `bulk`.
    pub lane: String,
    /// One word for programs.
    pub reason: String,
    /// A sentence for people.
    pub text: String,
    /// Until when, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Time>,
    /// Members of the mesh on the way for less that cannot be reached, each with what was said of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passed_by: Vec<String>,
    /// The command that changes it, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// The pending recipients there.
    pub recipients: Vec<RecipientView>,
}

/// How a destination stands; or a site, or all of them together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestinationView {
    /// The next hop's key.
    pub destination: String,
    /// Whose sessions and rates it shares with other destinations.
    #[serde(default)]
    pub site: String,
    /// How many destinations are counted here.
    #[serde(default)]
    pub destinations: u64,
    /// Jobs, those in flight included.
    #[serde(default)]
    pub jobs: u64,
    /// Jobs that are due.
    pub ready: u64,
    /// Jobs that wait for their time.
    pub deferred: u64,
    /// Jobs held.
    pub held: u64,
    /// Attempts in flight.
    pub in_flight: u64,
    /// How many attempts may be in flight.
    pub window: u32,
    /// Waiting jobs, by lane: urgent, normal, bulk.
    #[serde(default)]
    pub lanes: [u64; 3],
    /// Jobs by the age of their messages: below 5 minutes, below 10, 20, 40, 80, 160, 320, 640,
    /// 1280, and older.
    #[serde(default)]
    pub ages: [u64; AGE_MINUTES.len() + 1],
    /// Whether an admin holds all that goes there.
    #[serde(default)]
    pub is_held: bool,
    /// When its rates allow one more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paced_until: Option<Time>,
    /// When it is probed, while it cannot be reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed_until: Option<Time>,
    /// Failures in a row.
    #[serde(default)]
    pub failures: u32,
    /// What was said last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub said: Option<String>,
    /// The oldest message that goes there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest: Option<Id>,
}

impl WaitView {
    /// Shows what a job waits for, with the message's pending recipients at its destination.
    pub fn of(entry: &Entry, standing: &Standing, is_memory_full: bool) -> WaitView {
        let there = |place: &usize| {
            is_pending(&entry.item.state.recipients[*place])
                && entry.destinations.get(*place).is_none_or(|key| *key == standing.destination)
        };
        let places = (0..entry.item.state.recipients.len()).filter(there);
        let (reason, until) = reason_of(&standing.why);
        let released = entry.item.released();
        let (reason, text) = match standing.why {
            // Nobody holds it: the destination is there when its customer is.
            Why::DestinationHeld if let Some(user) = customer(&standing.destination) => {
                ("not_fetched", format!("waits for {user} to fetch it{}", ahead(entry, &standing.ahead)))
            }
            Why::DestinationHeld if standing.destination.starts_with("mesh:") => (
                "not_fetched",
                format!("waits for a member of the mesh to come for it{}", ahead(entry, &standing.ahead)),
            ),
            // Its first attempt is due when its sender wants it to be.
            Why::Deferred { due } if due == released && due > entry.item.arrived => {
                ("future_release", format!("its sender asked for its release at {}", Time(released)))
            }
            Why::Turn if is_memory_full => (
                "memory",
                "is ready, but memory is full: few attempts run at a time (see `postroad status`)".to_owned(),
            ),
            _ => (reason, sentence(entry, standing)),
        };
        WaitView {
            destination: standing.destination.to_string(),
            site: standing.site.to_string(),
            lane: lane_name(standing.lane).to_owned(),
            reason: reason.to_owned(),
            text,
            until: until.map(Time),
            passed_by: Vec::new(),
            remedy: remedy(entry, standing),
            recipients: places.map(|place| RecipientView::of(entry, place).with_history(entry, place)).collect(),
        }
    }
}

/// Returns who fetches the mail of a destination, of those where customers do: `turn:branch/branch.example`.
fn customer(destination: &str) -> Option<&str> {
    let (user, _) = destination.strip_prefix("turn:")?.rsplit_once('/')?;
    Some(user)
}

fn lane_name(lane: Lane) -> &'static str {
    match lane {
        Lane::Urgent => "urgent",
        Lane::Normal => "normal",
        Lane::Bulk => "bulk",
    }
}

fn reason_of(why: &Why) -> (&'static str, Option<UnixMillis>) {
    match why {
        Why::InFlight => ("in_flight", None),
        Why::Held => ("held", None),
        Why::DestinationHeld => ("destination_held", None),
        Why::AllHeld => ("all_held", None),
        Why::Deferred { due } => ("deferred", Some(*due)),
        Why::Closed { until, .. } => ("destination_unreachable", Some(*until)),
        Why::Probing { .. } => ("destination_probed", None),
        Why::Window { .. } => ("destination_busy", None),
        Why::Lane { .. } => ("lane_busy", None),
        Why::Rate { at } => ("destination_rate", Some(*at)),
        Why::Total { .. } | Why::Unproven { .. } => ("agent_busy", None),
        Why::Turn => ("turn", None),
    }
}

fn sentence(entry: &Entry, standing: &Standing) -> String {
    let text = match &standing.why {
        Why::InFlight => "is being delivered now".to_owned(),
        Why::Held => "is held".to_owned(),
        Why::DestinationHeld => "its destination is held".to_owned(),
        Why::AllHeld => "the whole queue is held".to_owned(),
        Why::Deferred { due } => format!("was put off; the next attempt is due at {}", Time(*due)),
        Why::Closed { until, failures, said } => {
            format!(
                "cannot be reached ({}) and is tried again at {}: {said}",
                failures_in_a_row(*failures),
                Time(*until)
            )
        }
        Why::Probing { failures, said } => {
            format!("could not be reached ({}) and is being tried now: {said}", failures_in_a_row(*failures))
        }
        Why::Window { in_flight, window } => {
            format!("waits for one of its site's sessions: {in_flight} of {window} are in use")
        }
        Why::Lane { in_flight, limit } => {
            let lane = lane_name(standing.lane);
            format!("waits for one of its site's sessions for {lane} mail: {in_flight} of {limit} are in use")
        }
        Why::Rate { at } => format!("waits for the rate of its site, which allows one more at {}", Time(*at)),
        Why::Total { in_flight, limit } => {
            format!(
                "waits for one of the agent's sessions (outbound.connections_max): {in_flight} of {limit} are in use"
            )
        }
        Why::Unproven { in_flight, limit } => format!(
            "waits for one of the sessions for destinations that have not answered yet: {in_flight} of {limit} are in use"
        ),
        Why::Turn => "is ready and starts within moments".to_owned(),
    };
    format!("{text}{}", ahead(entry, &standing.ahead))
}

fn failures_in_a_row(failures: u32) -> String {
    if failures == 1 { "1 failure".to_owned() } else { format!("{failures} failures in a row") }
}

/// Says who goes before it.
fn ahead(entry: &Entry, ahead: &Ahead) -> String {
    let Ahead { same_sender, others, is_more } = *ahead;
    let least = if is_more { "at least " } else { "" };
    let whose = match (
        &entry.item.origin.user,
        entry.item.envelope.reverse_path.mailbox().and_then(|mailbox| mailbox.domain()),
    ) {
        (Some(_), _) => "user",
        (None, Some(_)) => "sender's domain",
        (None, None) => "client",
    };
    let go = if same_sender + others == 1 { "goes" } else { "go" };
    match (same_sender, others) {
        (0, 0) => String::new(),
        (own, 0) => format!("; {least}{own} of the same {whose} {go} before it"),
        (0, others) => format!("; {least}{others} of other senders {go} before it: senders take turns"),
        (own, others) => {
            format!("; {least}{own} of the same {whose} and {others} of others go before it: senders take turns")
        }
    }
}

fn remedy(entry: &Entry, standing: &Standing) -> Option<String> {
    let id = entry.item.id;
    match standing.why {
        Why::Held => Some(format!("postroad queue release {id}")),
        Why::Deferred { .. } | Why::Closed { .. }
            if entry.destinations.iter().all(|key| *key == standing.destination) =>
        {
            Some(format!("postroad queue retry {id}"))
        }
        Why::Deferred { .. } | Why::Closed { .. } => {
            Some(format!("postroad queue retry {id} --destination '{}'", standing.destination))
        }
        _ => None,
    }
}

impl DestinationView {
    /// Shows how a destination stands.
    pub fn of(stats: &DestinationStats) -> DestinationView {
        let sum = |lanes: [usize; 3]| lanes.iter().sum::<usize>() as u64;
        let lane = |lane: usize| (stats.ready[lane] + stats.deferred[lane]) as u64;
        let (ready, deferred, held) = (sum(stats.ready), sum(stats.deferred), stats.held as u64);
        DestinationView {
            destination: stats.destination.to_string(),
            site: stats.site.to_string(),
            destinations: 1,
            jobs: ready + deferred + held + stats.in_flight as u64,
            ready,
            deferred,
            held,
            in_flight: stats.in_flight as u64,
            window: stats.window,
            lanes: [lane(0), lane(1), lane(2)],
            ages: stats.ages.map(|count| count as u64),
            is_held: stats.is_held,
            paced_until: stats.paced_until.map(Time),
            closed_until: stats.closed_until.map(Time),
            failures: stats.failures,
            said: stats.said.as_deref().map(str::to_owned),
            oldest: stats.oldest.map(Id),
        }
    }

    /// Counts another destination in; what is said of sessions and the way stays as it is.
    pub fn add(&mut self, other: &DestinationView) {
        let pairs = [
            (&mut self.destinations, other.destinations),
            (&mut self.jobs, other.jobs),
            (&mut self.ready, other.ready),
            (&mut self.deferred, other.deferred),
            (&mut self.held, other.held),
            (&mut self.in_flight, other.in_flight),
        ];
        pairs.into_iter().for_each(|(sum, more)| *sum += more);
        self.lanes.iter_mut().zip(other.lanes).for_each(|(sum, more)| *sum += more);
        self.ages.iter_mut().zip(other.ages).for_each(|(sum, more)| *sum += more);
        self.oldest = [self.oldest, other.oldest].into_iter().flatten().min();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::admin::testing::{HOUR_MS, NOW, entry};

    fn standing(why: Why, ahead: Ahead) -> Standing {
        let destination: Arc<str> = "mx:dead.example".into();
        Standing { site: destination.clone(), destination, lane: Lane::Bulk, why, ahead }
    }

    #[test]
    fn every_reason_has_its_words() {
        let said: Arc<str> = "451 4.4.1 refused".into();
        let at = NOW.plus(HOUR_MS);
        let none = Ahead::default();
        for (why, ahead, want) in [
            (Why::InFlight, none, "in_flight: is being delivered now"),
            (Why::Held, none, "held: is held"),
            (Why::DestinationHeld, none, "destination_held: its destination is held"),
            (Why::AllHeld, none, "all_held: the whole queue is held"),
            (
                Why::Deferred { due: at },
                none,
                "deferred: was put off; the next attempt is due at 2027-01-15T09:00:00.000Z",
            ),
            (
                Why::Closed { until: at, failures: 4, said: said.clone() },
                none,
                "destination_unreachable: cannot be reached (4 failures in a row) and is tried again at \
                 2027-01-15T09:00:00.000Z: 451 4.4.1 refused",
            ),
            (
                Why::Probing { failures: 1, said },
                none,
                "destination_probed: could not be reached (1 failure) and is being tried now: 451 4.4.1 refused",
            ),
            (
                Why::Window { in_flight: 5, window: 5 },
                Ahead { same_sender: 3, others: 12, is_more: false },
                "destination_busy: waits for one of its site's sessions: 5 of 5 are in use; 3 of the same sender's domain and \
                 12 of others go before it: senders take turns",
            ),
            (
                Why::Lane { in_flight: 4, limit: 4 },
                Ahead { same_sender: 1000, others: 0, is_more: true },
                "lane_busy: waits for one of its site's sessions for bulk mail: 4 of 4 are in use; \
                 at least 1000 of the same sender's domain go before it",
            ),
            (
                Why::Rate { at },
                none,
                "destination_rate: waits for the rate of its site, which allows one more at 2027-01-15T09:00:00.000Z",
            ),
            (
                Why::Total { in_flight: 500, limit: 500 },
                none,
                "agent_busy: waits for one of the agent's sessions (outbound.connections_max): 500 of 500 are in use",
            ),
            (
                Why::Unproven { in_flight: 329, limit: 329 },
                none,
                "agent_busy: waits for one of the sessions for destinations that have not answered yet: 329 of 329 \
                 are in use",
            ),
            (
                Why::Probing { failures: 3, said: "451 4.4.1 timed out".into() },
                none,
                "destination_probed: could not be reached (3 failures in a row) and is being tried now: \
                 451 4.4.1 timed out",
            ),
            (Why::Turn, none, "turn: is ready and starts within moments"),
        ] {
            let standing = standing(why, ahead);
            let view = WaitView::of(&entry(1, 1, "a@b.example", &[("c@dead.example", 1)]), &standing, false);
            assert_eq!(format!("{}: {}", view.reason, view.text), want);
        }
    }

    #[test]
    fn those_in_front_are_of_whoever_takes_turns_with_the_others() {
        let busy = standing(Why::Turn, Ahead { same_sender: 2, others: 0, is_more: false });
        let text = |from: &str, user: Option<&str>| {
            let mut entry = entry(1, 1, from, &[("c@dead.example", 1)]);
            Arc::make_mut(&mut entry.item).origin.user = user.map(Into::into);
            WaitView::of(&entry, &busy, false).text
        };
        assert!(text("a@b.example", Some("alice")).ends_with("; 2 of the same user go before it"));
        assert!(text("a@b.example", None).ends_with("; 2 of the same sender's domain go before it"));
        assert!(text("", None).ends_with("; 2 of the same client go before it"));
    }

    #[test]
    fn what_a_customer_fetches_is_held_by_nobody() {
        let destination: Arc<str> = "turn:branch/branch.example".into();
        let site: Arc<str> = "turn:branch".into();
        let why = Why::DestinationHeld;
        let standing = Standing { site, destination, lane: Lane::Normal, why, ahead: Ahead::default() };
        let view = WaitView::of(&entry(1, 1, "a@b.example", &[("c@branch.example", 1)]), &standing, false);
        assert_eq!((&*view.reason, &*view.text, view.remedy), ("not_fetched", "waits for branch to fetch it", None));
        let destination: Arc<str> = "mesh:k5x2q7abk5x2q7ab".into();
        let why = Why::DestinationHeld;
        let site = destination.clone();
        let standing = Standing { site, destination, lane: Lane::Normal, why, ahead: Ahead::default() };
        let view = WaitView::of(&entry(1, 1, "a@b.example", &[("c@away.example", 1)]), &standing, false);
        let want = ("not_fetched", "waits for a member of the mesh to come for it", None);
        assert_eq!((&*view.reason, &*view.text, view.remedy), want);
    }

    #[test]
    fn the_command_that_changes_it_means_that_part_alone() {
        let deferred = standing(Why::Deferred { due: NOW }, Ahead::default());
        let one = entry(1, 1, "a@b.example", &[("c@dead.example", 1)]);
        assert_eq!(WaitView::of(&one, &deferred, false).remedy.as_deref(), Some("postroad queue retry 0000000000001"));
        let two = entry(1, 1, "a@b.example", &[("c@dead.example", 1), ("d@other.example", 1)]);
        assert_eq!(
            WaitView::of(&two, &deferred, false).remedy.as_deref(),
            Some("postroad queue retry 0000000000001 --destination 'mx:dead.example'")
        );
        let full = WaitView::of(&one, &standing(Why::Turn, Ahead::default()), true);
        assert_eq!((full.reason.as_str(), full.remedy), ("memory", None));
    }
}
