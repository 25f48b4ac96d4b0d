//! The dispatcher's state of one lane.

use std::time::Duration;

use super::costs::DurationEstimate;
use super::events::{Generation, LaneHint};
use super::fairness::SlotHolders;
use super::lane_mode::LaneMode;
use super::metrics::LoadMetrics;
use super::problem::Problem;
use super::remote_lane::RemoteLane;
use super::setup::{LaneSetup, Residency};
use super::switch::Switch;
use crate::breaker::{Breaker, BreakerRules};
use crate::fleet_view::LaneState;
use crate::lifecycle::{EngineState, EngineTransition};

/// Expected duration of stopping an engine, until one has been observed.
const EXPECTED_STOP: Duration = Duration::from_secs(5);

/// The circuit breaker of a lane. Only failures of the engine count: no connection, a 5xx status,
/// no response. Errors and disconnects of the client never count.
static BREAKER: BreakerRules = BreakerRules {
    failures: 5,
    window: None,
    initial_backoff: Duration::from_secs(5),
    max_backoff: Duration::from_secs(60),
};

/// Consecutive crashes in service after which waiting requests are rejected instead of waiting for
/// the engine to recover.
const MAX_CRASHES_AWAITED: u32 = 3;

#[derive(Debug)]
pub(super) struct Lane {
    pub(super) setup: LaneSetup,
    pub(super) engine: EngineState,
    /// When the engine entered this state.
    pub(super) since: Duration,
    /// When the engine last became ready.
    pub(super) up_since: Duration,
    /// When a lease was last granted or released.
    pub(super) last_used: Duration,
    /// When the first of the current leases was granted.
    pub(super) busy_since: Duration,
    /// True if the engine is_asleep: its state is `Cold` but it holds the memory of a sleeper.
    pub(super) asleep: bool,
    /// True if the engine was started by an earlier host, until it serves or has ended.
    pub(super) adopted: bool,
    pub(super) generation: Generation,
    pub(super) running: u32,
    /// The flows of the requests that hold slots.
    pub(super) holders: SlotHolders,
    /// Until this time no requests are granted because a connection to the engine broke. Otherwise
    /// an engine that is gone, which its supervisor reports a moment later, would consume the whole
    /// queue.
    pub(super) suspect_until: Duration,
    /// Consecutive failures of the engine.
    pub(super) failures: u32,
    /// Set while remains of a crashed engine are cleaned up: how long the engine had served, or
    /// `None` if it had not become ready.
    pub(super) dying: Option<Option<Duration>>,
    /// True if the engine had served before it last exited.
    pub(super) had_served: bool,
    pub(super) retry_at: Duration,
    pub(super) problem: Option<Problem>,
    pub(super) hint: Option<(LaneHint, Duration)>,
    pub(super) metrics: LoadMetrics,
    pub(super) load: DurationEstimate,
    pub(super) stop: DurationEstimate,
    pub(super) breaker: Breaker,
    /// What another host says of the lane, if it is one of that host.
    pub(super) remote: Option<RemoteLane>,
    /// The switch that ends with the load of this lane.
    pub(super) pending_switch: Option<Switch>,
    /// The operator has removed the lane: it gets no requests and is not loaded again.
    pub(super) retired: bool,
    /// The engine is unloaded, without going to sleep, as soon as it has no leases.
    pub(super) leaving: bool,
    /// The settings that apply once the engine has been unloaded: those of the memory that it
    /// holds count until then. `None` if they apply already.
    pub(super) next: Option<LaneSetup>,
    /// The lane was loaded when its restart began, and is loaded again.
    pub(super) reload: bool,
    /// What remains of a command of the operator, and the time of the command.
    pub(super) manual: Option<(LaneMode, Duration)>,
    /// Leases of all generations.
    pub(super) leases: u32,
    /// Commands to unload the engine that have not been answered. An answer to an earlier command
    /// does not say that the engine which was loaded after it has ended.
    pub(super) unanswered: u32,
}

impl Lane {
    pub(super) fn new(setup: LaneSetup) -> Self {
        let preload = matches!(setup.residency, Residency::OnDemand { preload: true, .. });
        let external = setup.residency == Residency::External;
        Self {
            engine: if external { EngineState::Starting } else { EngineState::Cold },
            since: Duration::ZERO,
            up_since: Duration::ZERO,
            last_used: Duration::ZERO,
            busy_since: Duration::ZERO,
            asleep: false,
            adopted: false,
            generation: Generation::default(),
            running: 0,
            holders: SlotHolders::default(),
            suspect_until: Duration::ZERO,
            failures: 0,
            dying: None,
            had_served: false,
            retry_at: Duration::ZERO,
            problem: None,
            hint: preload.then_some((LaneHint::Load, Duration::MAX)),
            metrics: LoadMetrics::default(),
            load: DurationEstimate::new(setup.expected_load),
            stop: DurationEstimate::new(EXPECTED_STOP),
            breaker: Breaker::new(&BREAKER),
            remote: None,
            pending_switch: None,
            retired: false,
            leaving: false,
            next: None,
            reload: false,
            manual: None,
            leases: 0,
            unanswered: 0,
            setup,
        }
    }

    /// Returns true if the engine may hold memory, awake or asleep.
    pub(super) fn has_engine(&self) -> bool {
        self.engine.holds_memory() && self.setup.residency != Residency::External
            || self.is_asleep()
    }

    /// Applies a transition of the engine. Returns false and changes nothing if its state does not
    /// allow it.
    pub(super) fn transition(&mut self, event: EngineTransition, now: Duration) -> bool {
        let Some(next) = self.engine.on(event) else { return false };
        self.engine = next;
        self.since = now;
        true
    }

    /// Returns the number of slots that can be granted now.
    pub(super) fn free_slots(&self, now: Duration) -> u32 {
        let serves =
            self.engine == EngineState::Ready && self.suspect_until <= now && !self.is_paused();
        if serves { self.slots().saturating_sub(self.running) } else { 0 }
    }

    /// Returns the bytes that the lane holds of its group's budget.
    pub(super) fn held_bytes(&self) -> u64 {
        // The memory of an always-on lane is reserved even while the lane is down.
        if self.setup.residency == Residency::Always && !self.retired {
            return self.setup.need;
        }
        if self.asleep && matches!(self.engine, EngineState::Cold | EngineState::Stopping) {
            return self.setup.asleep;
        }
        if self.engine.holds_memory() { self.setup.need } else { 0 }
    }

    /// Returns true if the lane can be evicted at all.
    pub(super) fn can_be_victim(&self) -> bool {
        matches!(self.setup.residency, Residency::OnDemand { .. })
            && !self.leaving
            && (self.engine == EngineState::Ready || self.is_asleep())
    }

    pub(super) fn is_asleep(&self) -> bool {
        self.asleep && self.engine == EngineState::Cold
    }

    pub(super) fn hint_at(&self, now: Duration) -> Option<LaneHint> {
        self.hint.filter(|(_, until)| *until > now).map(|(hint, _)| hint)
    }

    /// Returns true if the engine crashed in service, or is being cleaned up after a crash, and is
    /// about to be restarted.
    pub(super) fn is_recovering(&self) -> bool {
        self.dying.is_some_and(|served| served.is_some()) || self.has_crashed_few_times()
    }

    fn has_crashed_few_times(&self) -> bool {
        self.engine == EngineState::BackingOff
            && self.had_served
            && self.failures <= MAX_CRASHES_AWAITED
            && self.setup.residency != Residency::External
    }

    /// Returns the lane's state as policies and operators see it.
    pub(super) fn state(&self) -> LaneState {
        if self.is_paused() {
            LaneState::Down
        } else if self.engine == EngineState::Ready
            && (self.breaker.is_open() || self.silence().is_some())
        {
            LaneState::Degraded
        } else if let Some(remote) = self.remote.filter(|_| self.engine == EngineState::Ready) {
            remote.state
        } else if self.is_recovering() {
            LaneState::Starting
        } else {
            self.engine.lane_state()
        }
    }

    /// Returns an error with the remaining time if a request with a fallback may not use the lane.
    /// One request per backoff may, as a probe.
    pub(super) fn check_breaker(&self, now: Duration) -> Result<(), Duration> {
        if let Some(left) = self.silence() {
            return Err(left.max(Duration::from_secs(1)));
        }
        // At least one second: the value becomes a `Retry-After` header in whole seconds.
        self.breaker.check(now).map_err(|left| left.max(Duration::from_secs(1)))
    }

    /// Returns how long the engine has been serving; `None` if it is not serving.
    pub(super) fn served_for(&self, now: Duration) -> Option<Duration> {
        let serves = matches!(self.engine, EngineState::Ready | EngineState::Draining);
        serves.then(|| now.saturating_sub(self.up_since))
    }

    /// Starts a new generation: the engine became ready.
    pub(super) fn on_ready(&mut self, now: Duration) {
        if !std::mem::take(&mut self.adopted) {
            self.load.record(now.saturating_sub(self.since));
        }
        self.begin_generation();
        // Its commands are carried out in order.
        self.unanswered = 0;
        self.reload = false;
        self.end_manual_load();
        self.asleep = false;
        self.suspect_until = Duration::ZERO;
        self.problem = None;
        (self.up_since, self.last_used) = (now, now);
        self.breaker.reset();
        if matches!(self.hint, Some((LaneHint::Load, Duration::MAX))) {
            // The hint to load the lane at startup has been followed.
            self.hint = None;
        }
    }

    /// Starts a new generation. Leases of earlier ones do not count any more.
    pub(super) fn begin_generation(&mut self) {
        self.generation = Generation(self.generation.0 + 1);
        self.running = 0;
        self.holders.clear();
    }

    /// Records that the engine exited unexpectedly, and schedules the next attempt to load it.
    pub(super) fn on_lost(&mut self, reason: Problem, served: Option<Duration>, now: Duration) {
        let backoff = self.setup.backoff;
        self.failures = match served {
            Some(served) if served >= backoff.reset_after => 1,
            _ => self.failures.saturating_add(1),
        };
        self.had_served = served.is_some();
        if served.is_none() && !self.leaving {
            // The load has failed.
            self.end_manual_load();
        }
        self.dying = None;
        self.asleep = false;
        self.adopted = false;
        self.pending_switch = None;
        self.problem = Some(reason);
        self.retry_at = now.saturating_add(backoff.pause(self.failures));
        if backoff.max_failures > 0
            && self.failures >= backoff.max_failures
            && self.setup.residency != Residency::External
        {
            self.transition(EngineTransition::GiveUp, now);
            self.retry_at = now.saturating_add(backoff.retry_failed_after);
        }
    }
}
