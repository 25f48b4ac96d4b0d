//! The life of one engine, as its supervisor in the fleet would lead and see it; what the scenario has go wrong happens here.
//!
//! ```text
//!   off ──order──> loading ──> serving ──order──> stopping ──> off
//!                     │           │ crash: at once
//!                     │           └ hang: when it is noticed ──> dying ──> off
//!                     └ a load that fails ──> off
//! ```

use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::dispatch::{EngineEvent, Residency};

use crate::engine::{Engine, Job, Key, Progress, Told, Used};
use crate::fault::Trouble;
use crate::fleet::{EngineModel, Lane};
use crate::random::{Random, Spread};

/// Something that the world has to know of.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Said {
    /// An answer went on.
    Progress(Progress),
    /// Its answers broke off.
    Broken(Vec<(Key, Used)>),
    /// News for the dispatcher.
    News(EngineEvent),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Off,
    Loading { until: Duration, fails: bool },
    Serving,
    Stopping { until: Duration },
    Dying { until: Duration },
}

/// Something that goes on for a time.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Lasting<T> {
    until: Duration,
    what: T,
}

/// When a hang is noticed that has been noticed.
const NOTICED: Duration = Duration::MAX;

/// An engine and whoever looks after it.
#[derive(Debug)]
pub(super) struct Supervisor {
    model: EngineModel,
    external: bool,
    life: Life,
    engine: Engine,
    loads: Random,
    /// Loads that have begun, and stops.
    loaded: usize,
    stopped: usize,
    troubles: Random,
    loads_fail_until: Duration,
    slow_loads: Option<Lasting<f64>>,
    slow: Option<Lasting<f64>>,
    /// It works on nothing; and when that is noticed, if it is still so.
    hangs: Option<Lasting<Duration>>,
}

impl Supervisor {
    pub(super) fn new(lane: &Lane, seed: u64) -> Self {
        let stream = |of: &str| Random::new(seed, &format!("{of} of {}", lane.info.name));
        Self {
            model: lane.engine.clone(),
            external: lane.setup.residency == Residency::External,
            life: Life::Off,
            engine: Engine::new(&lane.engine, stream("requests")),
            loads: stream("loads"),
            loaded: 0,
            stopped: 0,
            troubles: stream("troubles"),
            loads_fail_until: Duration::ZERO,
            slow_loads: None,
            slow: None,
            hangs: None,
        }
    }

    /// The simulation begins: an engine that is not ours serves.
    pub(super) fn begin(&mut self, said: &mut Vec<Said>) {
        if self.external {
            self.serve(Duration::ZERO, said);
        }
    }

    /// It is to be loaded.
    pub(super) fn load(&mut self, now: Duration) {
        let slow = self.slow_loads.filter(|slow| slow.until > now).map_or(1.0, |slow| slow.what);
        let takes =
            crate::random::seconds(self.model.load.nth(self.loaded, &mut self.loads) * slow);
        self.loaded += 1;
        self.life = Life::Loading {
            until: now.saturating_add(takes),
            fails: !self.external && now < self.loads_fail_until,
        };
    }

    /// It is to be stopped, if there is anything to stop: it may have crashed when the order was on its way.
    pub(super) fn unload(&mut self, now: Duration) {
        if matches!(self.life, Life::Loading { .. } | Life::Serving) {
            let takes = self.stops();
            self.down(now);
            self.life = Life::Stopping { until: now.saturating_add(takes) };
        }
    }

    /// Is there somebody to send requests to?
    pub(super) fn serves(&self) -> bool {
        self.life == Life::Serving
    }

    /// A request is sent to it.
    pub(super) fn send(&mut self, key: Key, job: Job, now: Duration) {
        self.engine.begin(key, job, now);
    }

    /// Nobody wants an answer any more; what was done for it.
    pub(super) fn leave(&mut self, key: Key, now: Duration) -> Used {
        self.engine.leave(key, now)
    }

    /// What it last told of itself. Nobody looks at an engine that is not ours.
    pub(super) fn told(&mut self, now: Duration) -> Option<Told> {
        if self.external { None } else { self.engine.told(now) }
    }

    /// When it was last looked at.
    pub(super) fn looked_at(&self, now: Duration) -> Option<Duration> {
        if self.external { None } else { self.engine.looked_at(now) }
    }

    /// When something happens next.
    pub(super) fn next(&self) -> Option<Duration> {
        let life = match self.life {
            Life::Off => None,
            Life::Loading { until, .. } | Life::Stopping { until } | Life::Dying { until } => {
                Some(until)
            }
            Life::Serving => self.engine.next(),
        };
        let hang = self.hangs.map(|hang| hang.until.min(hang.what));
        let slow = self.slow.map(|slow| slow.until);
        [life, hang, slow].into_iter().flatten().min()
    }

    /// Everything that has happened by now.
    pub(super) fn go_on(&mut self, now: Duration, said: &mut Vec<Said>) {
        if self.life == Life::Serving {
            let mut progress = Vec::new();
            self.engine.go_on(now, &mut progress);
            said.extend(progress.into_iter().map(Said::Progress));
        }
        if self.slow.is_some_and(|slow| slow.until <= now) {
            self.slow = None;
            self.set_speed(now);
        }
        if let Some(hang) = self.hangs.filter(|hang| hang.until <= now) {
            self.hangs = None;
            self.set_speed(now);
            // It was taken for lost, and answers again.
            if hang.what == NOTICED {
                said.push(Said::News(EngineEvent::Ready));
            }
        }
        if self.hangs.is_some_and(|hang| hang.what <= now) {
            self.hang_is_noticed(now, said);
        }
        match self.life {
            Life::Loading { until, fails } if until <= now => {
                if fails {
                    self.life = Life::Off;
                    said.push(Said::News(EngineEvent::LoadFailed(
                        "the scenario lets loads fail".into(),
                    )));
                } else {
                    self.serve(now, said);
                }
            }
            Life::Stopping { until } if until <= now => {
                self.life = Life::Off;
                said.push(Said::News(EngineEvent::Stopped { asleep: false }));
            }
            Life::Dying { until } if until <= now => {
                self.life = Life::Off;
                said.push(Said::News(EngineEvent::Lost(hangs())));
            }
            _ => {}
        }
    }

    /// Something goes wrong.
    pub(super) fn suffer(&mut self, trouble: &Trouble, now: Duration, said: &mut Vec<Said>) {
        let mut lasts = |spread: &Spread| now.saturating_add(spread.time(&mut self.troubles));
        match trouble {
            Trouble::Crash => self.crash(now, said),
            Trouble::Hang(spread) => {
                let until = lasts(spread);
                self.hang(until, now);
            }
            Trouble::LoadsFail(spread) => {
                self.loads_fail_until = self.loads_fail_until.max(lasts(spread))
            }
            Trouble::SlowLoads { times, lasts: spread } => {
                self.slow_loads = Some(Lasting { until: lasts(spread), what: times.max(0.0) });
            }
            Trouble::SlowDown { part, lasts: spread } => {
                self.slow = Some(Lasting { until: lasts(spread), what: *part });
                self.set_speed(now);
            }
        }
    }

    fn crash(&mut self, now: Duration, said: &mut Vec<Said>) {
        let why: Arc<str> = "the engine ended: the scenario lets it crash".into();
        match self.life {
            // What is ended anyway ends.
            Life::Off | Life::Stopping { .. } | Life::Dying { .. } => {}
            Life::Loading { .. } if self.external => {}
            Life::Loading { .. } => {
                self.life = Life::Off;
                said.push(Said::News(EngineEvent::LoadFailed(why)));
            }
            // Its connections tell of it first. One that is not ours comes back after as long as it takes to load it.
            Life::Serving if self.external => {
                said.push(Said::Broken(self.down(now)));
                said.push(Said::News(EngineEvent::Lost(why)));
                self.load(now);
            }
            Life::Serving => {
                said.push(Said::Broken(self.down(now)));
                self.life = Life::Off;
                said.push(Said::News(EngineEvent::Dying(Arc::clone(&why))));
                said.push(Said::News(EngineEvent::Lost(why)));
            }
        }
    }

    /// It works on nothing until then.
    fn hang(&mut self, until: Duration, now: Duration) {
        match &mut self.life {
            Life::Loading { until: loaded, .. } => {
                *loaded = loaded.saturating_add(until.saturating_sub(now))
            }
            Life::Serving => {
                let noticed = now.saturating_add(self.model.notices_hang);
                let before = self.hangs.unwrap_or(Lasting { until, what: noticed });
                self.hangs = Some(Lasting { until: before.until.max(until), what: before.what });
                self.set_speed(now);
            }
            Life::Off | Life::Stopping { .. } | Life::Dying { .. } => {}
        }
    }

    /// An engine of ours is ended; of one that is not, nobody is sent there, and what it works on goes on after the hang.
    fn hang_is_noticed(&mut self, now: Duration, said: &mut Vec<Said>) {
        if self.external {
            if let Some(hang) = &mut self.hangs {
                hang.what = NOTICED;
            }
            said.push(Said::News(EngineEvent::Lost(hangs())));
            return;
        }
        said.push(Said::News(EngineEvent::Dying(hangs())));
        said.push(Said::Broken(self.down(now)));
        let takes = self.stops();
        self.life = Life::Dying { until: now.saturating_add(takes) };
    }

    /// How long it takes this time until it is gone.
    fn stops(&mut self) -> Duration {
        self.stopped += 1;
        self.model.stop.nth_time(self.stopped - 1, &mut self.loads)
    }

    fn serve(&mut self, now: Duration, said: &mut Vec<Said>) {
        self.life = Life::Serving;
        self.engine.up(now);
        self.set_speed(now);
        said.push(Said::News(EngineEvent::Ready));
    }

    /// Requests that it works on.
    #[cfg(test)]
    pub(super) fn busy(&self) -> usize {
        self.engine.len()
    }

    /// It holds memory of ours.
    #[cfg(test)]
    pub(super) fn exists(&self) -> bool {
        self.life != Life::Off && !self.external
    }

    /// It has ended, and with it whatever it hung on.
    fn down(&mut self, now: Duration) -> Vec<(Key, Used)> {
        self.hangs = None;
        self.engine.down(now)
    }

    fn set_speed(&mut self, now: Duration) {
        let part = match (self.hangs, self.slow) {
            (Some(_), _) => 0.0,
            (None, Some(slow)) => slow.what,
            (None, None) => 1.0,
        };
        self.engine.works_at(part, now);
    }
}

fn hangs() -> Arc<str> {
    "the engine hangs: the scenario lets it".into()
}
