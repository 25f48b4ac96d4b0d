//! The tries of a request: what the gateway's `attempt` and `recover` do, and how an answer ends.

use std::time::Duration;

use pointsman_domain::dispatch::{AcquireError, Event, Generation, Report, Ticket};
use pointsman_domain::{
    AttemptResult, FailureClass, FailureReport, LaneId, NextAction, Recovery, Trace, Trigger,
};

use super::World;
use super::in_flight::{Crowd, Lease, Live, Place};
use crate::engine::{Key, Progress, Used};
use crate::observe::{How, Try};

/// Why a try failed; nothing has been sent to the client.
struct Failed {
    failing: FailureClass,
    problem: String,
}

/// How a lease ends, as far as the dispatcher hears of it.
#[derive(Debug, Clone, Copy, Default)]
struct Ends {
    failed: bool,
    severed: bool,
}

impl World<'_> {
    /// Try the lane at which a request is on its way: first of all, it waits for a slot there.
    pub(super) fn try_lane(&mut self, key: Key) {
        let ticket = self.crowd.ticket(key);
        let Some(live) = self.crowd.get(key) else { return };
        let left = self.setting.fleet.deadline.saturating_sub(live.age(self.now));
        let lane = live.cursor.step().lane;
        // The same lane may be asked once more, which is no falling back.
        live.moved |= live.tries.last().is_some_and(|before| before.lane != lane);
        live.tries.push(Try {
            lane,
            result: AttemptResult::Other,
            begun: self.now,
            queue: Duration::ZERO,
        });
        live.place = Place::Waits(ticket);
        let arrival =
            live.cursor.slot_request(live.ask.tenant.as_deref(), left).arrival(ticket, self.now);
        self.waits(lane, true);
        self.tell(Event::Arrived(arrival));
    }

    /// It has a slot: send it to the engine.
    pub(super) fn granted(&mut self, ticket: Ticket, lane: LaneId, generation: Generation) {
        let key = Crowd::of(ticket);
        self.waits(lane, false);
        let Some(live) = self.crowd.get(key) else { return };
        live.waited(self.now);
        let of = &self.setting.fleet.lanes[lane.index()];
        let left = self.setting.fleet.deadline.saturating_sub(live.age(self.now));
        let job = live.send(of.info.max_context);
        // A plan's limit is one on the first token, which only a stream shows.
        let limit = live.cursor.plan().first_token.filter(|_| live.streams);
        let limit = limit.unwrap_or(of.first_byte).min(left);
        live.place = Place::Leased(Lease {
            lane,
            generation,
            granted: self.now,
            first_byte: (self.now.saturating_add(limit), limit),
        });
        self.observer.granted(self.now, &live.ask, lane);
        if !self.supervisors[lane.index()].serves() {
            return self.cannot_be_reached(key);
        }
        match job {
            Some(job) => {
                self.limit(key);
                self.supervisors[lane.index()].send(key, job, self.now);
            }
            None => self.is_too_long(key),
        }
    }

    /// It gets no slot of this lane.
    pub(super) fn refused(&mut self, ticket: Ticket, refusal: &AcquireError) {
        let key = Crowd::of(ticket);
        let Some(live) = self.crowd.get(key) else { return };
        let lane = live.cursor.step().lane;
        live.waited(self.now);
        live.place = Place::OnItsWay;
        self.waits(lane, false);
        self.failed(key, &Failed { failing: refusal.into(), problem: refusal.to_string() });
    }

    /// An engine got something done.
    pub(super) fn progress(&mut self, progress: Progress) {
        match progress {
            Progress::First(key) => {
                // An answer that is no stream is sent when all of it is there.
                if self.crowd.get(key).is_some_and(|live| live.streams) {
                    self.first_byte(key);
                }
            }
            Progress::Done(key, used) => {
                self.first_byte(key);
                let Some(mut live) = self.leave(key, used, Ends::default()) else { return };
                let how = if live.moved { How::FellBack } else { How::Answered };
                self.end(&mut live, how, AttemptResult::Ok, None);
            }
        }
    }

    fn first_byte(&mut self, key: Key) {
        if let Some(live) = self.crowd.get(key)
            && live.first_byte.is_none()
        {
            live.first_byte = Some(live.age(self.now));
            self.limit(key);
        }
    }

    /// The connection to the engine broke.
    pub(super) fn breaks(&mut self, key: Key, used: Used) {
        self.breaks_off(
            key,
            used,
            Trigger::ServerError,
            Ends { failed: true, severed: true },
            "the connection to the engine broke",
        );
    }

    /// Its lane has been draining for too long.
    pub(super) fn cut(&mut self, key: Key) {
        if let Some(Live { place: Place::Leased(lease), .. }) = self.crowd.get(key) {
            let used = self.supervisors[lease.lane.index()].leave(key, self.now);
            let why = "the lane is exchanged for another one";
            self.breaks_off(key, used, Trigger::EngineRestart, Ends::default(), why);
        }
    }

    /// Before the first byte that is a failed try; after it, the client gets what there is, and an error.
    fn breaks_off(&mut self, key: Key, used: Used, trigger: Trigger, ends: Ends, why: &str) {
        let Some(live) = self.crowd.get(key) else { return };
        if live.first_byte.is_none() {
            self.give_back(key, ends);
            let failing = FailureClass { trigger: Some(trigger), safe_to_resend: false };
            self.failed(key, &Failed { failing, problem: why.to_owned() });
        } else if let Some(mut live) = self.leave(key, used, ends) {
            self.end(&mut live, How::Error, trigger.into(), Some(why));
        }
    }

    /// The engine went down in the moment in which it was to get the request.
    fn cannot_be_reached(&mut self, key: Key) {
        self.give_back(key, Ends { failed: true, severed: true });
        let failing = FailureClass { trigger: Some(Trigger::ConnectError), safe_to_resend: true };
        self.failed(key, &Failed { failing, problem: "the engine cannot be reached".to_owned() });
    }

    /// The engine refuses a prompt that is longer than what it can read, which is no failure of it.
    fn is_too_long(&mut self, key: Key) {
        self.first_byte(key);
        if let Some(mut live) = self.leave(key, Used::default(), Ends::default()) {
            let why = "the prompt is longer than the model can read";
            self.end(&mut live, How::Error, AttemptResult::Other, Some(why));
        }
    }

    /// The client leaves, or the first byte has taken too long.
    pub(super) fn time_is_up(&mut self, key: Key) {
        let Some(live) = self.crowd.get(key) else { return };
        live.limit = None;
        let leaves = live.leaves <= self.now;
        match live.place {
            Place::Leased(lease) => {
                let used = self.supervisors[lease.lane.index()].leave(key, self.now);
                if leaves {
                    let left = self.leave(key, used, Ends::default());
                    left.into_iter().for_each(|mut live| self.client_is_gone(&mut live));
                } else {
                    self.give_back(key, Ends { failed: true, severed: false });
                    let failing = FailureClass {
                        trigger: Some(Trigger::FirstTokenTimeout),
                        safe_to_resend: false,
                    };
                    let problem =
                        format!("no first byte within {} ms", lease.first_byte.1.as_millis());
                    self.failed(key, &Failed { failing, problem });
                }
            }
            Place::Waits(ticket) => {
                live.waited(self.now);
                let lane = live.cursor.step().lane;
                self.waits(lane, false);
                self.tell(Event::Cancelled(ticket));
                let gone = self.crowd.remove(key);
                gone.into_iter().for_each(|mut live| self.client_is_gone(&mut live));
            }
            Place::OnItsWay => {}
        }
    }

    fn client_is_gone(&mut self, live: &mut Live) {
        self.end(live, How::ClientGone, AttemptResult::ClientGone, None);
    }

    /// A try failed: what comes after it?
    fn failed(&mut self, key: Key, failed: &Failed) {
        let result = failed.failing.trigger.map_or(AttemptResult::Other, AttemptResult::from);
        let recovery = self.ask(key, failed, result);
        let Some(live) = self.crowd.get(key) else { return };
        if let Some(tried) = live.tries.last_mut() {
            tried.result = result;
        }
        let in_time = live.age(self.now) < self.setting.fleet.deadline;
        let (how, problem, last) = match live.cursor.after(failed.failing, recovery, in_time) {
            NextAction::Attempt => {
                self.limit(key);
                self.try_lane(key);
                return;
            }
            NextAction::Reject(rejection) => {
                (How::Rejected, rejection.message, AttemptResult::Other)
            }
            NextAction::Fail => (How::Error, failed.problem.clone(), result),
        };
        if let Some(mut live) = self.forget(key) {
            self.end(&mut live, how, last, Some(&problem));
        }
    }

    /// Ask whoever decided about the request what to do now, if it has an opinion on that.
    fn ask(&mut self, key: Key, failed: &Failed, what: AttemptResult) -> Recovery {
        if !self.deciders.advisor().recovers() || failed.failing.trigger.is_none() {
            return Recovery::Planned;
        }
        let fleet = self.view();
        let (now, deadline) = (self.now, self.setting.fleet.deadline);
        let Some(live) = self.crowd.get(key) else { return Recovery::Planned };
        let in_time = live.age(now) < deadline;
        let begun = live.tries.last().map_or(now, |tried| tried.begun);
        let attempts_left = if in_time { live.cursor.attempts_left() } else { 0 };
        let failure = FailureReport {
            lane: live.cursor.step().lane,
            what,
            status: 0,
            sent_bytes: 0,
            elapsed: now.saturating_sub(begun),
            attempts_left: u32::try_from(attempts_left).unwrap_or(u32::MAX),
        };
        let (request, came, tried) = (live.request.clone(), live.ask.at, live.tries.len());
        let facts = self.facts(&request, came, tried);
        let recovery = self.deciders.advisor().recover(&facts, &fleet, &failure, &mut Trace::off());
        let Some(live) = self.crowd.get(key) else { return Recovery::Planned };
        match &recovery {
            Recovery::Retry(wanted) if live.cursor.objection(wanted, &fleet, in_time).is_some() => {
                Recovery::Planned
            }
            _ => recovery,
        }
    }

    /// A request that has a lease is over: give that back, and forget the request.
    fn leave(&mut self, key: Key, used: Used, ends: Ends) -> Option<Live> {
        self.give_back(key, ends);
        let mut live = self.forget(key)?;
        live.used = used;
        Some(live)
    }

    fn forget(&mut self, key: Key) -> Option<Live> {
        let live = self.crowd.remove(key)?;
        if let Some(limit) = live.limit {
            self.limits.remove(&(limit, key));
        }
        Some(live)
    }

    fn give_back(&mut self, key: Key, ends: Ends) {
        let Some(live) = self.crowd.get(key) else { return };
        let Place::Leased(Lease { lane, generation, granted, .. }) = live.place else { return };
        live.place = Place::OnItsWay;
        let before = granted.saturating_sub(live.ask.at);
        let report = Report {
            held: self.now.saturating_sub(granted),
            first_byte: live.first_byte.map(|age| age.saturating_sub(before)),
            failed: ends.failed,
            severed: ends.severed,
        };
        self.tell(Event::Released { lane, generation, report });
    }

    /// Note when something becomes of a request by itself: until the first byte is there, its client may leave, and the
    /// engine's time may be up.
    pub(super) fn limit(&mut self, key: Key) {
        let Some(live) = self.crowd.get(key) else { return };
        let engine = match live.place {
            Place::Leased(lease) => lease.first_byte.0,
            Place::OnItsWay | Place::Waits(_) => Duration::MAX,
        };
        let at = live.leaves.min(engine);
        let limit = (live.first_byte.is_none() && at < Duration::MAX).then_some(at);
        let before = std::mem::replace(&mut live.limit, limit);
        if before != limit {
            if let Some(before) = before {
                self.limits.remove(&(before, key));
            }
            if let Some(limit) = limit {
                self.limits.insert((limit, key));
            }
        }
    }

    /// One more waits for a lane, or one less.
    fn waits(&mut self, lane: LaneId, more: bool) {
        if let Some(waiting) = self.waiting.get_mut(lane.index()) {
            *waiting = if more { *waiting + 1 } else { waiting.saturating_sub(1) };
        }
    }
}
