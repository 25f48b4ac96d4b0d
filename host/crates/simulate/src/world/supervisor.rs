//! The lifecycle of one engine as its supervisor in the fleet sees it, including injected faults.
//!
//! ```text
//!   Off ──load──> Loading ──> Serving ──stop──> Stopping ──> Off
//!                   │           │ crash: at once ──> Off
//!                   │           └ hang: when it is detected ──> Dying ──> Off
//!                   └ failed load ──> Off
//! ```

use std::time::Duration;

use pointsman_domain::dispatch::{EngineEvent, Problem, Residency};

use crate::engine::{Engine, Job, RequestKey, ResponseProgress, ScrapedMetrics, TokenUsage};
use crate::fault::FaultKind;
use crate::fleet::{EngineModel, Lane};
use crate::random::{Distribution, Random, seconds};

/// A signal from an engine to the simulation.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum EngineSignal {
    /// A response made progress.
    Progress(ResponseProgress),
    /// The connections of these requests were lost.
    Disconnected(Vec<(RequestKey, TokenUsage)>),
    /// An event for the dispatcher.
    Event(EngineEvent),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lifecycle {
    Off,
    Loading { until: Duration, fails: bool },
    Serving,
    Stopping { until: Duration },
    Dying { until: Duration },
}

/// A condition that lasts until a point in time.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Until<T> {
    until: Duration,
    value: T,
}

/// The detection time of a hang that was detected already.
const DETECTED: Duration = Duration::MAX;

/// The engine of one lane with its supervisor.
#[derive(Debug)]
pub(super) struct Supervisor {
    model: EngineModel,
    /// Whether the engine is not started by the host.
    external: bool,
    lifecycle: Lifecycle,
    engine: Engine,
    load_random: Random,
    /// The number of loads that have begun.
    loads: usize,
    /// The number of stops that have begun.
    stops: usize,
    fault_random: Random,
    loads_fail_until: Duration,
    /// The factor of load times.
    slow_load: Option<Until<f64>>,
    /// The factor of the engine's speed.
    slowdown: Option<Until<f64>>,
    /// The hang, and when it is detected if it lasts until then.
    hang: Option<Until<Duration>>,
}

impl Supervisor {
    pub(super) fn new(lane: &Lane, seed: u64) -> Self {
        let stream = |what: &str| Random::new(seed, &format!("{what} of {}", lane.info.name));
        Self {
            model: lane.engine.clone(),
            external: lane.setup.residency == Residency::External,
            lifecycle: Lifecycle::Off,
            engine: Engine::new(&lane.engine, stream("requests")),
            load_random: stream("loads"),
            loads: 0,
            stops: 0,
            fault_random: stream("troubles"),
            loads_fail_until: Duration::ZERO,
            slow_load: None,
            slowdown: None,
            hang: None,
        }
    }

    /// Starts the simulation: an external engine serves from the beginning.
    pub(super) fn start(&mut self, signals: &mut Vec<EngineSignal>) {
        if self.external {
            self.become_ready(Duration::ZERO, signals);
        }
    }

    /// Starts to load the engine.
    pub(super) fn load(&mut self, now: Duration) {
        let factor = self.slow_load.filter(|slow| slow.until > now).map_or(1.0, |slow| slow.value);
        let load_time =
            seconds(self.model.load_time.nth_sample(self.loads, &mut self.load_random) * factor);
        self.loads += 1;
        self.lifecycle = Lifecycle::Loading {
            until: now.saturating_add(load_time),
            fails: !self.external && now < self.loads_fail_until,
        };
    }

    /// Stops the engine. It may have crashed while the command was on its way.
    pub(super) fn unload(&mut self, now: Duration) {
        if matches!(self.lifecycle, Lifecycle::Loading { .. } | Lifecycle::Serving) {
            let stop_time = self.next_stop_time();
            self.stop_engine(now);
            self.lifecycle = Lifecycle::Stopping { until: now.saturating_add(stop_time) };
        }
    }

    /// Returns true if requests can be sent to the engine.
    pub(super) fn is_serving(&self) -> bool {
        self.lifecycle == Lifecycle::Serving
    }

    /// Sends a request to the engine.
    pub(super) fn submit(&mut self, key: RequestKey, job: Job, now: Duration) {
        self.engine.submit(key, job, now);
    }

    /// Cancels a request, and returns the tokens that it used.
    pub(super) fn cancel(&mut self, key: RequestKey, now: Duration) -> TokenUsage {
        self.engine.cancel(key, now)
    }

    /// Returns the metrics of the last scrape. External engines are not scraped.
    pub(super) fn metrics(&mut self, now: Duration) -> Option<ScrapedMetrics> {
        if self.external { None } else { self.engine.metrics(now) }
    }

    /// Returns the time of the last scrape.
    pub(super) fn last_scrape(&self, now: Duration) -> Option<Duration> {
        if self.external { None } else { self.engine.last_scrape(now) }
    }

    /// Returns the time of the next event.
    pub(super) fn next_event(&self) -> Option<Duration> {
        let lifecycle = match self.lifecycle {
            Lifecycle::Off => None,
            Lifecycle::Loading { until, .. }
            | Lifecycle::Stopping { until }
            | Lifecycle::Dying { until } => Some(until),
            Lifecycle::Serving => self.engine.next_event(),
        };
        let hang = self.hang.map(|hang| hang.until.min(hang.value));
        let slowdown = self.slowdown.map(|slowdown| slowdown.until);
        [lifecycle, hang, slowdown].into_iter().flatten().min()
    }

    /// Processes all events up to `now`.
    pub(super) fn advance(&mut self, now: Duration, signals: &mut Vec<EngineSignal>) {
        if self.lifecycle == Lifecycle::Serving {
            let mut progress = Vec::new();
            self.engine.advance(now, &mut progress);
            signals.extend(progress.into_iter().map(EngineSignal::Progress));
        }
        if self.slowdown.is_some_and(|slowdown| slowdown.until <= now) {
            self.slowdown = None;
            self.update_speed(now);
        }
        if let Some(hang) = self.hang.filter(|hang| hang.until <= now) {
            self.hang = None;
            self.update_speed(now);
            // An external engine that was reported as lost responds again.
            if hang.value == DETECTED {
                signals.push(EngineSignal::Event(EngineEvent::Ready));
            }
        }
        if self.hang.is_some_and(|hang| hang.value <= now) {
            self.hang_detected(now, signals);
        }
        match self.lifecycle {
            Lifecycle::Loading { until, fails } if until <= now => {
                if fails {
                    self.lifecycle = Lifecycle::Off;
                    let reason = "injected load failure".into();
                    signals.push(EngineSignal::Event(EngineEvent::LoadFailed(reason)));
                } else {
                    self.become_ready(now, signals);
                }
            }
            Lifecycle::Stopping { until } if until <= now => {
                self.lifecycle = Lifecycle::Off;
                signals.push(EngineSignal::Event(EngineEvent::Stopped { asleep: false }));
            }
            Lifecycle::Dying { until } if until <= now => {
                self.lifecycle = Lifecycle::Off;
                signals.push(EngineSignal::Event(EngineEvent::Lost(hang_reason())));
            }
            Lifecycle::Off
            | Lifecycle::Loading { .. }
            | Lifecycle::Serving
            | Lifecycle::Stopping { .. }
            | Lifecycle::Dying { .. } => {}
        }
    }

    /// Injects a fault.
    pub(super) fn inject(
        &mut self,
        fault: &FaultKind,
        now: Duration,
        signals: &mut Vec<EngineSignal>,
    ) {
        let mut end = |duration: &Distribution| {
            now.saturating_add(duration.sample_time(&mut self.fault_random))
        };
        match fault {
            FaultKind::Crash => self.crash(now, signals),
            FaultKind::Hang(duration) => {
                let until = end(duration);
                self.start_hang(until, now);
            }
            FaultKind::LoadFailure(duration) => {
                self.loads_fail_until = self.loads_fail_until.max(end(duration));
            }
            FaultKind::SlowLoad { load_time_factor, duration } => {
                let value = load_time_factor.max(0.0);
                self.slow_load = Some(Until { until: end(duration), value });
            }
            FaultKind::Slowdown { speed_factor, duration } => {
                self.slowdown = Some(Until { until: end(duration), value: *speed_factor });
                self.update_speed(now);
            }
        }
    }

    fn crash(&mut self, now: Duration, signals: &mut Vec<EngineSignal>) {
        let reason = Problem::from("injected crash");
        match self.lifecycle {
            // An engine that is ending anyway cannot crash.
            Lifecycle::Off | Lifecycle::Stopping { .. } | Lifecycle::Dying { .. } => {}
            Lifecycle::Loading { .. } if self.external => {}
            Lifecycle::Loading { .. } => {
                self.lifecycle = Lifecycle::Off;
                signals.push(EngineSignal::Event(EngineEvent::LoadFailed(reason)));
            }
            // The host sees the lost connections before the lost engine. An external engine comes
            // back by itself, after its load time.
            Lifecycle::Serving if self.external => {
                signals.push(EngineSignal::Disconnected(self.stop_engine(now)));
                signals.push(EngineSignal::Event(EngineEvent::Lost(reason)));
                self.load(now);
            }
            Lifecycle::Serving => {
                signals.push(EngineSignal::Disconnected(self.stop_engine(now)));
                self.lifecycle = Lifecycle::Off;
                signals.push(EngineSignal::Event(EngineEvent::Dying(reason.clone())));
                signals.push(EngineSignal::Event(EngineEvent::Lost(reason)));
            }
        }
    }

    /// Stops all progress until a point in time.
    fn start_hang(&mut self, until: Duration, now: Duration) {
        match &mut self.lifecycle {
            Lifecycle::Loading { until: loaded_at, .. } => {
                *loaded_at = loaded_at.saturating_add(until.saturating_sub(now));
            }
            Lifecycle::Serving => {
                let detected_at = now.saturating_add(self.model.hang_detection_time);
                // A hang within a hang prolongs the first one, and is detected with it.
                let before = self.hang.unwrap_or(Until { until, value: detected_at });
                self.hang = Some(Until { until: before.until.max(until), value: before.value });
                self.update_speed(now);
            }
            Lifecycle::Off | Lifecycle::Stopping { .. } | Lifecycle::Dying { .. } => {}
        }
    }

    /// Kills a hanging engine. An external engine only gets no new requests, and continues with its
    /// current ones after the hang.
    fn hang_detected(&mut self, now: Duration, signals: &mut Vec<EngineSignal>) {
        if self.external {
            if let Some(hang) = &mut self.hang {
                hang.value = DETECTED;
            }
            signals.push(EngineSignal::Event(EngineEvent::Lost(hang_reason())));
            return;
        }
        signals.push(EngineSignal::Event(EngineEvent::Dying(hang_reason())));
        signals.push(EngineSignal::Disconnected(self.stop_engine(now)));
        let stop_time = self.next_stop_time();
        self.lifecycle = Lifecycle::Dying { until: now.saturating_add(stop_time) };
    }

    /// Draws the time until the stopped engine's memory is free.
    fn next_stop_time(&mut self) -> Duration {
        self.stops += 1;
        self.model.stop_time.nth_sample_time(self.stops - 1, &mut self.load_random)
    }

    fn become_ready(&mut self, now: Duration, signals: &mut Vec<EngineSignal>) {
        self.lifecycle = Lifecycle::Serving;
        self.engine.start(now);
        self.update_speed(now);
        signals.push(EngineSignal::Event(EngineEvent::Ready));
    }

    /// Returns the number of requests in the engine.
    #[cfg(test)]
    pub(super) fn busy(&self) -> usize {
        self.engine.len()
    }

    /// Returns true if the engine holds memory of its group.
    #[cfg(test)]
    pub(super) fn holds_memory(&self) -> bool {
        self.lifecycle != Lifecycle::Off && !self.external
    }

    /// Ends the engine's work and any hang, and returns the aborted requests.
    fn stop_engine(&mut self, now: Duration) -> Vec<(RequestKey, TokenUsage)> {
        self.hang = None;
        self.engine.stop(now)
    }

    fn update_speed(&mut self, now: Duration) {
        let fraction = match (self.hang, self.slowdown) {
            (Some(_), _) => 0.0,
            (None, Some(slowdown)) => slowdown.value,
            (None, None) => 1.0,
        };
        self.engine.set_speed(fraction, now);
    }
}

fn hang_reason() -> Problem {
    "injected hang".into()
}
