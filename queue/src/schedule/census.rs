//! How every destination stands, counted a piece at a time: whoever asks lets go of the schedule
//! between the pieces, so that a million jobs are counted while mail flows.

use std::collections::HashMap;

use super::job::Lane;
use super::report::DestinationStats;
use super::{Schedule, UNPROVEN};
use crate::id::{QueueId, UnixMillis};

/// How many classes of age there are.
pub const AGES: usize = 10;
/// Below how many minutes a message is of each class but the last (as qshape(1) of Postfix has it).
pub const AGE_MINUTES: [u64; AGES - 1] = [5, 10, 20, 40, 80, 160, 320, 640, 1_280];

const MINUTE_MS: u64 = 60_000;

/// A count that may be under way.
#[derive(Debug, Default)]
pub struct Census {
    /// The job counted last.
    last: Option<(QueueId, u32)>,
    are_jobs_counted: bool,
    line: u32,
    counts: HashMap<u32, Count>,
    stats: Vec<DestinationStats>,
}

/// What is counted by walking over the jobs.
#[derive(Clone, Copy, Debug)]
struct Count {
    oldest: QueueId,
    ages: [usize; AGES],
}

impl Census {
    /// Returns what was counted, in no order.
    pub fn into_stats(self) -> Vec<DestinationStats> {
        self.stats
    }
}

impl Schedule {
    /// Returns how every destination stands at `now`, in no order. Holds everybody else up while it
    /// counts: with many jobs use [`Schedule::count`].
    pub fn stats(&self, now: UnixMillis) -> Vec<DestinationStats> {
        let mut census = Census::default();
        while self.count(&mut census, now, usize::MAX) {}
        census.into_stats()
    }

    /// Goes on with a count by at most `max` jobs or destinations. Returns whether there is more.
    pub fn count(&self, census: &mut Census, now: UnixMillis, max: usize) -> bool {
        if !census.are_jobs_counted {
            census.are_jobs_counted = !self.count_jobs(census, now, max);
            return true;
        }
        let end = self.lines.end();
        let until = end.min(census.line.saturating_add(u32::try_from(max).unwrap_or(u32::MAX)));
        for number in census.line..until {
            if !self.lines.get(number).is_free() {
                census.stats.push(self.stats_of(number, census.counts.get(&number)));
            }
        }
        census.line = until;
        until < end
    }

    /// Returns whether there are more.
    fn count_jobs(&self, census: &mut Census, now: UnixMillis, max: usize) -> bool {
        let mut counted = 0;
        for job in self.book.after(census.last).take(max) {
            let entry = self.book.get(job);
            let new = Count { oldest: entry.id, ages: [0; AGES] };
            census.counts.entry(entry.line).or_insert(new).ages[age_class(entry.id, now)] += 1;
            census.last = Some((entry.id, entry.line));
            counted += 1;
        }
        counted == max
    }

    fn stats_of(&self, number: u32, count: Option<&Count>) -> DestinationStats {
        let line = self.lines.get(number);
        let site = self.sites.get(line.site);
        let outage = site.outage.as_ref();
        let paced = Some(site.paced_until(&self.limits.allowance(site.allowance))).filter(|until| *until > self.now);
        DestinationStats {
            destination: line.name.clone(),
            site: site.name.clone(),
            ready: Lane::ALL.map(|lane| line.ready[lane as usize] as usize),
            deferred: Lane::ALL.map(|lane| line.deferred[lane as usize] as usize),
            held: line.held_jobs as usize,
            is_held: line.held,
            in_flight: line.in_flight as usize,
            site_in_flight: site.attempts() as usize,
            window: site.window,
            is_proven: site.class() != UNPROVEN,
            paced_until: paced,
            closed_until: outage.map(|outage| outage.until),
            is_probed: outage.is_some_and(|outage| outage.probe.is_some()),
            failures: outage.map_or(0, |outage| outage.failures),
            said: outage.map(|outage| outage.said.clone()),
            oldest: count.map(|count| count.oldest),
            ages: count.map(|count| count.ages).unwrap_or_default(),
        }
    }
}

fn age_class(id: QueueId, now: UnixMillis) -> usize {
    let minutes = now.since(id.arrived()) / MINUTE_MS;
    AGE_MINUTES.iter().take_while(|limit| minutes >= **limit).count()
}
