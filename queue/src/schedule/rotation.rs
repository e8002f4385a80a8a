//! Whose turn it is: sites in the rotation, lines within a site, and the start of an attempt.
//!
//! In the rotation a site stands for the sender of its next job, so that a sender with mail for ten
//! thousand destinations has no more turns than one with mail for one.

use super::book::{Entry, Phase, row};
use super::job::{LANES, Lane};
use super::line::Head;
use super::site::{PROVEN, UNPROVEN};
use super::turns::MESSAGE;
use super::{Attempt, Next, Schedule, Timer, WakeReason, clock};
use crate::id::UnixMillis;

/// The clocks of the rotations come first, one for each class and lane.
pub(super) const CLOCKS: u32 = 2 * LANES as u32;

impl Schedule {
    /// Puts a site where it belongs after anything changed about it: into the rotation of each lane
    /// that has a job it may start, or among the timers when it has to wait.
    pub(super) fn place(&mut self, number: u32) {
        let site = self.sites.get(number);
        let mut timer = None;
        if site.waiting != [0; LANES] && site.has_slot() {
            let gate = self.gate(number);
            let (class, listed) = (site.class(), site.listed[site.class()]);
            for lane in Lane::ALL {
                let site = self.sites.get(number);
                if site.waiting[lane as usize] == 0 || !site.fits(lane) {
                    continue;
                }
                if gate > self.now {
                    timer = Some(gate);
                } else if listed[lane as usize] == 0 {
                    self.enlist(number, class, lane);
                }
            }
        }
        let site = self.sites.at(number);
        if site.timer != timer {
            if let Some(at) = std::mem::replace(&mut site.timer, timer) {
                self.timers.remove(&(at, Timer::Site(number)));
            }
            if let Some(at) = timer {
                self.timers.insert((at, Timer::Site(number)));
            }
        }
    }

    /// Takes a site out of all rotations and timers.
    pub(super) fn unlist(&mut self, number: u32) {
        let site = self.sites.at(number);
        let (listed, timer) = (std::mem::take(&mut site.listed), site.timer.take());
        for (class, lanes) in listed.into_iter().enumerate() {
            for (lane, turn) in lanes.into_iter().enumerate() {
                self.rotation[class][lane].remove(&(turn, number));
            }
        }
        if let Some(at) = timer {
            self.timers.remove(&(at, Timer::Site(number)));
        }
    }

    /// Finds out who is next in a line's lane.
    pub(super) fn rehead(&mut self, number: u32, lane: Lane) {
        let line = self.lines.get(number);
        let first = if line.held { None } else { self.book.in_turn(number, lane).next() };
        let head = first.map(|(turn, job)| Head { turn: line.at_site(lane, turn), job });
        self.set_head(number, lane, head);
    }

    /// Takes a line's lane from among those of its site.
    pub(super) fn behead(&mut self, number: u32, lane: Lane) {
        self.set_head(number, lane, None);
    }

    /// Notes who is next in a line's lane.
    pub(super) fn set_head(&mut self, number: u32, lane: Lane, head: Option<Head>) {
        let line = self.lines.at(number);
        let key = row(line.site, lane);
        let site = line.site;
        let old = std::mem::replace(&mut line.heads[lane as usize], head);
        if old.map(|head| head.turn) != head.map(|head| head.turn) {
            if let Some(head) = old {
                self.heads.remove(&(key, head.turn, number));
            }
            if let Some(head) = head {
                self.heads.insert((key, head.turn, number));
            }
        }
        let waiting = &mut self.sites.at(site).waiting[lane as usize];
        *waiting = *waiting + u32::from(head.is_some()) - u32::from(old.is_some());
    }

    /// Returns whether a site may start one more now: a slot is free, it is not closed and its rates
    /// allow it.
    pub(super) fn may_start(&self, number: u32) -> bool {
        self.sites.get(number).has_slot() && self.gate(number) <= self.now
    }

    /// Returns the time before which nothing starts at a site that has a slot.
    pub(super) fn gate(&self, number: u32) -> UnixMillis {
        let site = self.sites.get(number);
        site.closed_until().max(site.paced_until(&self.limits.allowance(site.allowance)))
    }

    pub(super) fn has_unproven_session(&self, lane: Lane) -> bool {
        self.unproven < self.limits.unproven_max(lane)
    }

    /// Returns both classes; either comes first half of the turns of every lane.
    pub(super) fn classes_in_turn(&self) -> [usize; 2] {
        if (self.turn ^ (self.turn >> 3)) & 1 == 0 { [PROVEN, UNPROVEN] } else { [UNPROVEN, PROVEN] }
    }

    /// Returns whether a site other than this one stands in a rotation.
    pub(super) fn others_wait(&self, number: u32) -> bool {
        let is_other = |(_, first): &(u64, u32)| *first != number;
        self.rotation.iter().flatten().any(|lane| lane.len() > 1 || lane.first().is_some_and(is_other))
    }

    /// Returns when the next attempt can start, now that none can.
    pub(super) fn wake(&self) -> Next {
        if self.is_behind() {
            return Next::Wake { at: self.now, why: WakeReason::JobDue };
        }
        let Some((at, timer)) = self.timers.first().copied() else { return Next::Idle };
        let why = match timer {
            Timer::Line(_) => WakeReason::JobDue,
            Timer::Site(site) if self.sites.get(site).closed_until() == at => WakeReason::BackoffEnds,
            Timer::Site(_) => WakeReason::Rate,
        };
        Next::Wake { at, why }
    }

    /// Starts a job of the first site in a rotation that may start one.
    pub(super) fn start_in(&mut self, class: usize, lane: Lane) -> Option<Attempt> {
        let total = self.limits.total_max(lane);
        while self.in_flight < total && (class == PROVEN || self.has_unproven_session(lane)) {
            let (turn, number) = self.rotation[class][lane as usize].pop_first()?;
            self.sites.at(number).listed[class][lane as usize] = 0;
            // One that changed its class takes its turn in the other rotation.
            if self.sites.get(number).class() == class
                && let Some(attempt) = self.start(number)
            {
                self.turn = self.turn.wrapping_add(1);
                self.turns.started(rotation_clock(class, lane), turn);
                self.sites.at(number).taken = 0;
                return Some(attempt);
            }
            self.place(number);
        }
        None
    }

    /// Starts the next job of a site, if it may start one now.
    pub(super) fn start(&mut self, number: u32) -> Option<Attempt> {
        if !self.may_start(number) {
            return None;
        }
        let site = self.sites.get(number);
        let may = |lane: &Lane| {
            site.waiting[*lane as usize] > 0
                && site.fits(*lane)
                && self.in_flight < self.limits.total_max(*lane)
                && (site.class() == PROVEN || self.has_unproven_session(*lane))
        };
        let lane = Lane::in_turn(site.turn).into_iter().find(may)?;
        self.launch(number, lane, false)
    }

    /// Starts the next job of a lane of a site, with a session of its own or behind another.
    pub(super) fn launch(&mut self, number: u32, lane: Lane, is_behind: bool) -> Option<Attempt> {
        let is_unproven = self.sites.get(number).class() == UNPROVEN;
        let (turn, line) = self.first_head(number, lane)?;
        let head = self.lines.get(line).heads[lane as usize].expect("a line among the heads has one");
        let job = head.job;
        self.turns.started(clock(number, lane), turn);
        self.take_out(job);
        self.serial += 1;
        self.in_flight += u32::from(!is_behind);
        self.unproven += u32::from(is_unproven);
        let entry = self.book.at(job);
        entry.phase = Phase::InFlight { held: false, again: false, removed: false };
        let Entry { id, load, .. } = *entry;
        let (now, serial) = (self.now, self.serial);
        let site = self.sites.at(number);
        site.sends(load, &self.limits.allowance(site.allowance), now);
        let is_probe = !is_behind && site.started(serial, lane, now);
        if is_behind {
            site.started_behind();
        }
        let site_name = site.name.clone();
        self.place(number);
        let waited = self.lines.at(line);
        waited.in_flight += 1;
        let (destination, learned) = (waited.name.clone(), waited.learned);
        let site = number;
        Some(Attempt {
            id,
            destination,
            site_name,
            learned,
            serial,
            job,
            line,
            site,
            lane,
            is_probe,
            is_unproven,
            is_behind,
        })
    }

    /// Returns the turn and the line of who is next at a site.
    fn first_head(&self, site: u32, lane: Lane) -> Option<(u64, u32)> {
        let key = row(site, lane);
        let first = self.heads.range((key, 0, 0)..).next().filter(|(found, ..)| *found == key);
        first.map(|(_, turn, line)| (*turn, *line))
    }

    /// Enters a site into the rotation of a class and lane.
    fn enlist(&mut self, number: u32, class: usize, lane: Lane) {
        let Some((_, line)) = self.first_head(number, lane) else { return };
        let head = self.lines.get(line).heads[lane as usize].expect("a line among the heads has one");
        let Entry { sender, load, .. } = *self.book.get(head.job);
        let is_alone = self.rotation[class][lane as usize].is_empty();
        let turn = self.turns.take(rotation_clock(class, lane), sender, load.cost(), is_alone);
        self.sites.at(number).listed[class][lane as usize] = turn;
        self.rotation[class][lane as usize].insert((turn, number));
    }

    /// Lets a site in the rotation take an earlier turn for a new job of a sender who has one. Who
    /// goes first there is for the site to say.
    pub(super) fn hurry(&mut self, number: u32, lane: Lane, sender: u32) {
        let class = self.sites.get(number).class();
        let listed = self.sites.get(number).listed[class][lane as usize];
        let rotation = rotation_clock(class, lane);
        if listed <= self.turns.now(rotation) || listed <= self.turns.peek(rotation, sender) {
            return;
        }
        let turn = self.turns.take(rotation, sender, MESSAGE, false);
        self.rotation[class][lane as usize].remove(&(listed, number));
        self.rotation[class][lane as usize].insert((turn, number));
        self.sites.at(number).listed[class][lane as usize] = turn;
    }
}

fn rotation_clock(class: usize, lane: Lane) -> u32 {
    (class * LANES + lane as usize) as u32
}
