//! One lane, as the dispatcher sees it.

use std::sync::Arc;
use std::time::Duration;

use super::breaker::Breaker;
use super::costs::Cost;
use super::events::{Generation, LaneHint};
use super::figures::LoadFigures;
use super::setup::{LaneSetup, Residency};
use super::switch::Switch;
use crate::fleet_view::LaneState;
use crate::lifecycle::{EngineState, EngineTransition};

/// How long stopping an engine is expected to take, until one has been seen.
const EXPECTED_STOP: Duration = Duration::from_secs(5);

/// So many times in a row may an engine die in service until nobody waits for it to come back any more.
const FAILURES_IN_PATIENCE: u32 = 3;

#[derive(Debug)]
pub(super) struct Lane {
    pub(super) setup: LaneSetup,
    pub(super) engine: EngineState,
    /// When the engine got into that state.
    pub(super) since: Duration,
    /// When the engine last came up.
    pub(super) up_since: Duration,
    /// When a lease was last granted or given back.
    pub(super) last_used: Duration,
    /// The engine sleeps: it is cold, and holds what a sleeper holds.
    pub(super) asleep: bool,
    pub(super) generation: Generation,
    pub(super) running: u32,
    /// A connection to its engine broke: until then nobody is sent there, so that an engine that is gone, which its supervisor
    /// will tell in a moment, does not eat the whole queue.
    pub(super) suspect_until: Duration,
    /// Failed lives in a row.
    pub(super) failures: u32,
    /// Ended unasked, but for what is left of it; how long it had served.
    pub(super) dying: Option<Option<Duration>>,
    /// The last life had served before it ended.
    pub(super) had_served: bool,
    pub(super) retry_at: Duration,
    pub(super) problem: Option<Arc<str>>,
    pub(super) hint: Option<(LaneHint, Duration)>,
    pub(super) figures: LoadFigures,
    pub(super) load: Cost,
    pub(super) stop: Cost,
    pub(super) breaker: Breaker,
    /// The switch that its load is the last part of.
    pub(super) loading: Option<Switch>,
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
            asleep: false,
            generation: Generation::default(),
            running: 0,
            suspect_until: Duration::ZERO,
            failures: 0,
            dying: None,
            had_served: false,
            retry_at: Duration::ZERO,
            problem: None,
            hint: preload.then_some((LaneHint::Load, Duration::MAX)),
            figures: LoadFigures::default(),
            load: Cost::new(setup.expected_load),
            stop: Cost::new(EXPECTED_STOP),
            breaker: Breaker::default(),
            loading: None,
            setup,
        }
    }

    /// Take a step of the engine's life; `false` and nothing changed where it makes no sense now.
    pub(super) fn step(&mut self, event: EngineTransition, now: Duration) -> bool {
        let Some(next) = self.engine.on(event) else { return false };
        self.engine = next;
        self.since = now;
        true
    }

    /// Slots that can be granted now.
    pub(super) fn free(&self, now: Duration) -> u32 {
        let serves = self.engine == EngineState::Ready && self.suspect_until <= now;
        if serves { self.setup.slots.saturating_sub(self.running) } else { 0 }
    }

    /// Bytes it holds of its group's budget.
    pub(super) fn held(&self) -> u64 {
        match self.engine {
            // What is always to be loaded always has its place.
            _ if self.setup.residency == Residency::Always => self.setup.need,
            EngineState::Cold | EngineState::Stopping if self.asleep => self.setup.asleep,
            engine if engine.holds_memory() => self.setup.need,
            _ => 0,
        }
    }

    /// May it be unloaded for another lane at all?
    pub(super) fn may_be_victim(&self) -> bool {
        matches!(self.setup.residency, Residency::OnDemand { .. })
            && (self.engine == EngineState::Ready || self.sleeps())
    }

    pub(super) fn sleeps(&self) -> bool {
        self.asleep && self.engine == EngineState::Cold
    }

    pub(super) fn wish_at(&self, now: Duration) -> Option<LaneHint> {
        self.hint.filter(|(_, until)| *until > now).map(|(hint, _)| hint)
    }

    /// It died while it served, or is dying, not often in a row, and comes back by itself in a moment.
    pub(super) fn recovering(&self) -> bool {
        self.dying.is_some_and(|served| served.is_some()) || self.has_died_a_few_times()
    }

    fn has_died_a_few_times(&self) -> bool {
        self.engine == EngineState::BackingOff
            && self.had_served
            && self.failures <= FAILURES_IN_PATIENCE
            && self.setup.residency != Residency::External
    }

    /// What policies and people see.
    pub(super) fn state(&self) -> LaneState {
        match self.engine {
            EngineState::Ready if self.breaker.is_open() => LaneState::Degraded,
            _ if self.recovering() => LaneState::Starting,
            engine => engine.lane_state(),
        }
    }

    /// How long the engine has served, if it does.
    pub(super) fn served(&self, now: Duration) -> Option<Duration> {
        let serves = matches!(self.engine, EngineState::Ready | EngineState::Draining);
        serves.then(|| now.saturating_sub(self.up_since))
    }

    /// The engine serves, with a new life.
    pub(super) fn came_up(&mut self, now: Duration) {
        self.load.add(now.saturating_sub(self.since));
        self.generation = Generation(self.generation.0 + 1);
        self.running = 0;
        self.asleep = false;
        self.suspect_until = Duration::ZERO;
        self.problem = None;
        (self.up_since, self.last_used) = (now, now);
        self.breaker.reset();
        if matches!(self.hint, Some((LaneHint::Load, Duration::MAX))) {
            // The wish to be loaded at the start is fulfilled.
            self.hint = None;
        }
    }

    /// The engine ended unasked.
    pub(super) fn went_down(&mut self, reason: Arc<str>, served: Option<Duration>, now: Duration) {
        let back_off = self.setup.back_off;
        self.failures = match served {
            Some(served) if served >= back_off.reset_after => 1,
            _ => self.failures.saturating_add(1),
        };
        self.had_served = served.is_some();
        self.dying = None;
        self.asleep = false;
        self.loading = None;
        self.problem = Some(reason);
        self.retry_at = now.saturating_add(back_off.pause(self.failures));
        if back_off.give_up > 0
            && self.failures >= back_off.give_up
            && self.setup.residency != Residency::External
        {
            self.step(EngineTransition::GiveUp, now);
            self.retry_at = now.saturating_add(back_off.failed_retry);
        }
    }
}
