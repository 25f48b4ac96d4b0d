//! What an engine does with its requests, from the time that it serves.
//!
//! ```text
//!              room in the key-value cache      overhead          one after the other      all at once
//!   begin ────────────────> in line ────────────> before ────────────> reads ────────────> writes ──> done
//!                                                                                   first token ──┘
//! ```
//!
//! Exact, and it costs the same for one request as for many: nothing is looked at between two events (see [`Together`]).
//! Times are rounded to the microsecond, the nearest one.

mod metrics;
mod prefix_cache;
mod processor_sharing;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

pub(crate) use self::metrics::Told;
use self::prefix_cache::{Cache, Owner};
use self::processor_sharing::{Place, Together, micros, time_for};
use crate::fleet::{EngineModel, Service};
use crate::random::Random;
use crate::traffic::ClassId;

/// What whoever asks knows a request by, while the engine works on it.
pub(crate) type Key = usize;

/// A request as an engine sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Job {
    /// Length of its prompt.
    pub(crate) prompt: u32,
    /// Length of its answer.
    pub(crate) output: u32,
    /// Its class, and how many tokens of the prompt all requests of it have in common.
    pub(crate) common: (ClassId, u32),
    /// Its session, and how many tokens of the prompt those of it before had, too.
    pub(crate) history: (u64, u32),
    /// How long it took when it was recorded.
    pub(crate) took: Option<(Duration, Duration)>,
}

/// What an engine got done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// The first token of an answer.
    First(Key),
    /// All of an answer.
    Done(Key, Used),
}

/// The work that a request was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Used {
    /// Tokens of the prompt that the engine had already.
    pub(crate) cached: u32,
    /// Tokens that it has written.
    pub(crate) written: u32,
}

#[derive(Debug)]
struct Work {
    job: Job,
    cached: u32,
    stage: SimulationEnv,
    /// Microseconds from the first byte to the end, where each request takes its time.
    rest: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SimulationEnv {
    InLine,
    Before(Place),
    HostCallLog,
    /// It is about to write its first token.
    Begins(Place),
    Writes(Place),
}

/// The work of one engine.
#[derive(Debug)]
pub(crate) struct Engine {
    model: EngineModel,
    random: Random,
    /// Part of its speed at which it works; 0: it hangs.
    speed: f64,
    /// Until when everything below is worked out.
    at: Duration,
    work: BTreeMap<Key, Work>,
    /// Those that wait for room in the key-value cache.
    line: VecDeque<Key>,
    /// Tokens of the cache that are spoken for.
    reserved: u64,
    /// What takes its time, in microseconds.
    timed: Together,
    /// Whose prompts are read; the first one's is being read, and so many tokens of it are left.
    reads: VecDeque<Key>,
    unread: f64,
    /// Tokens of answers.
    writes: Together,
    cache: Cache,
    figures: metrics::Figures,
}

impl Engine {
    pub(crate) fn new(model: &EngineModel, random: Random) -> Self {
        Self {
            model: model.clone(),
            random,
            speed: 1.0,
            at: Duration::ZERO,
            work: BTreeMap::new(),
            line: VecDeque::new(),
            reserved: 0,
            timed: Together::default(),
            reads: VecDeque::new(),
            unread: 0.0,
            writes: Together::default(),
            cache: Cache::new(model.kv_tokens.unwrap_or(u64::MAX)),
            figures: metrics::Figures::default(),
        }
    }

    /// It serves from now on.
    pub(crate) fn up(&mut self, now: Duration) {
        self.at = now;
        self.figures = metrics::Figures::since(now);
    }

    /// It has ended. Whose answers break off, and what was done for them.
    pub(crate) fn down(&mut self, now: Duration) -> Vec<(Key, Used)> {
        self.catch_up(now);
        let broken = self.work.iter().map(|(key, work)| (*key, self.used(work))).collect();
        self.work.clear();
        self.line.clear();
        self.reads.clear();
        self.timed.clear();
        self.writes.clear();
        self.reserved = 0;
        self.cache.clear();
        self.figures = metrics::Figures::default();
        broken
    }

    /// It works at this part of its speed from now on.
    pub(crate) fn works_at(&mut self, part: f64, now: Duration) {
        self.catch_up(now);
        self.speed = if part.is_finite() { part.max(0.0) } else { 1.0 };
    }

    /// A request comes.
    pub(crate) fn begin(&mut self, key: Key, job: Job, now: Duration) {
        self.catch_up(now);
        let rest = match (&self.model.service, job.took) {
            (Service::Fixed { recorded: true, .. }, Some((_, rest))) => micros(rest),
            (Service::Fixed { rest, .. }, _) => micros(rest.time(&mut self.random)),
            (Service::Rates { .. }, _) => 0.0,
        };
        self.work.insert(key, Work { job, cached: 0, stage: SimulationEnv::InLine, rest });
        self.line.push_back(key);
        self.admit();
    }

    /// Nobody wants the answer any more.
    pub(crate) fn leave(&mut self, key: Key, now: Duration) -> Used {
        self.catch_up(now);
        let Some(work) = self.work.remove(&key) else { return Used::default() };
        let used = self.used(&work);
        match (work.stage, &self.model.service) {
            (SimulationEnv::InLine, _) => self.line.retain(|other| *other != key),
            (SimulationEnv::HostCallLog, _) => {
                let first = self.reads.front() == Some(&key);
                self.reads.retain(|other| *other != key);
                if first {
                    self.read_next();
                }
            }
            (
                SimulationEnv::Begins(place) | SimulationEnv::Writes(place),
                Service::Rates { .. },
            ) => self.writes.remove(place),
            (
                SimulationEnv::Before(place)
                | SimulationEnv::Begins(place)
                | SimulationEnv::Writes(place),
                _,
            ) => self.timed.remove(place),
        }
        if work.stage != SimulationEnv::InLine {
            self.reserved -= self.needs(&work.job);
        }
        self.admit();
        used
    }

    /// When it gets something done next.
    pub(crate) fn next(&self) -> Option<Duration> {
        let timed = self.timed.first().and_then(|left| time_for(left, self.speed));
        let read = self.reads.front().and_then(|_| time_for(self.unread, self.reading()));
        let written = self.writes.first().and_then(|left| time_for(left, self.writing()));
        [timed, read, written].into_iter().flatten().min().map(|left| self.at.saturating_add(left))
    }

    /// What it has got done by now, in order.
    pub(crate) fn go_on(&mut self, now: Duration, progress: &mut Vec<Progress>) {
        self.catch_up(now);
        loop {
            let due = |left: f64, speed: f64| time_for(left, speed) == Some(Duration::ZERO);
            if self.timed.first().is_some_and(|left| due(left, self.speed)) {
                if let Some((key, _)) = self.timed.pop_first() {
                    self.timed_out(key, progress);
                }
            } else if !self.reads.is_empty() && due(self.unread, self.reading()) {
                self.has_read(progress);
            } else if self.writes.first().is_some_and(|left| due(left, self.writing())) {
                if let Some((key, left)) = self.writes.pop_first() {
                    self.has_written(key, left, progress);
                }
            } else {
                return;
            }
        }
    }

    /// Requests that it works on, or that wait in it.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.work.len()
    }

    /// What it said of itself when it was last looked at.
    pub(crate) fn told(&mut self, now: Duration) -> Option<Told> {
        self.look(now);
        self.figures.told()
    }

    /// When it was last looked at.
    pub(crate) fn looked_at(&self, now: Duration) -> Option<Duration> {
        self.figures.last_look(now)
    }

    /// Something that takes its time is over.
    fn timed_out(&mut self, key: Key, progress: &mut Vec<Progress>) {
        let Some(work) = self.work.get_mut(&key) else { return };
        match work.stage {
            SimulationEnv::Before(_) => {
                work.stage = SimulationEnv::HostCallLog;
                self.reads.push_back(key);
                if self.reads.len() == 1 {
                    self.read_next();
                }
            }
            SimulationEnv::Begins(_) => {
                work.stage = SimulationEnv::Writes(self.timed.add(work.rest, key));
                progress.push(Progress::First(key));
            }
            SimulationEnv::InLine | SimulationEnv::HostCallLog | SimulationEnv::Writes(_) => {
                self.done(key, progress)
            }
        }
    }

    /// A prompt was read.
    fn has_read(&mut self, progress: &mut Vec<Progress>) {
        let Some(key) = self.reads.pop_front() else { return };
        if let Some(work) = self.work.get_mut(&key) {
            let job = work.job;
            if job.output > 0 {
                work.stage = SimulationEnv::Begins(self.writes.add(1.0, key));
                self.remember(&job, job.prompt);
            } else {
                progress.push(Progress::First(key));
                self.done(key, progress);
            }
        }
        self.read_next();
    }

    /// A token was written that matters: the first one, or the last one.
    fn has_written(&mut self, key: Key, left: f64, progress: &mut Vec<Progress>) {
        let Some(work) = self.work.get_mut(&key) else { return };
        if matches!(work.stage, SimulationEnv::Begins(_)) {
            progress.push(Progress::First(key));
            if work.job.output > 1 {
                work.stage = SimulationEnv::Writes(
                    self.writes.add(f64::from(work.job.output - 1) + left, key),
                );
                return;
            }
        }
        self.done(key, progress);
    }

    fn done(&mut self, key: Key, progress: &mut Vec<Progress>) {
        let Some(Work { job, cached, .. }) = self.work.remove(&key) else { return };
        self.remember(&job, job.prompt.saturating_add(job.output));
        progress.push(Progress::Done(key, Used { cached, written: job.output }));
        self.reserved -= self.needs(&job);
        self.admit();
    }

    /// Begin with those in line that there is room for.
    fn admit(&mut self) {
        while let Some(key) = self.line.front().copied()
            && let Some(work) = self.work.get(&key)
        {
            let (needs, took) = (self.needs(&work.job), work.job.took);
            if self.model.kv_tokens.is_some_and(|most| self.reserved + needs > most) {
                return;
            }
            let cached = self.cached(&work.job);
            self.line.pop_front();
            self.reserved += needs;
            let (fixed, before) = match (&self.model.service, took) {
                (Service::Fixed { recorded: true, .. }, Some((first, _))) => (true, first),
                (Service::Fixed { first, .. }, _) => (true, first.time(&mut self.random)),
                (Service::Rates { overhead, .. }, _) => (false, overhead.time(&mut self.random)),
            };
            let place = self.timed.add(micros(before), key);
            if let Some(work) = self.work.get_mut(&key) {
                work.stage =
                    if fixed { SimulationEnv::Begins(place) } else { SimulationEnv::Before(place) };
                work.cached = if fixed { cached } else { 0 };
            }
        }
    }

    /// Begin to read the prompt that is next.
    fn read_next(&mut self) {
        let next = self.reads.front().and_then(|key| Some((*key, self.work.get(key)?.job)));
        let Some((key, job)) = next else { return };
        let cached = self.cached(&job);
        self.unread = f64::from(job.prompt.saturating_sub(cached));
        if let Some(work) = self.work.get_mut(&key) {
            work.cached = cached;
        }
    }

    /// Tokens of a prompt that are here already. The last one has to be read in any case.
    fn cached(&self, job: &Job) -> u32 {
        let ((class, common), (session, history)) = (job.common, job.history);
        let of_class = self.cache.held(Owner::Class(class)).min(common);
        let of_session = self.cache.held(Owner::Session(session)).min(history);
        of_class.max(of_session).min(job.prompt.saturating_sub(1))
    }

    /// The first so many tokens of a request are here now.
    fn remember(&mut self, job: &Job, tokens: u32) {
        if !self.model.prefix_cache {
            return;
        }
        let ((class, common), (session, _)) = (job.common, job.history);
        if common > 0 {
            self.cache.keep(Owner::Class(class), common.min(tokens));
        }
        self.cache.keep(Owner::Session(session), tokens);
    }

    /// Tokens of the key-value cache that it takes. One that is longer than all of it has all of it.
    fn needs(&self, job: &Job) -> u64 {
        (u64::from(job.prompt) + u64::from(job.output))
            .min(self.model.kv_tokens.unwrap_or(u64::MAX))
    }

    fn used(&self, work: &Work) -> Used {
        let all = f64::from(work.job.output);
        let written = match (work.stage, &self.model.service) {
            (SimulationEnv::Writes(place), Service::Rates { .. }) => all - self.writes.left(place),
            (SimulationEnv::Writes(place), Service::Fixed { .. }) if work.rest > 0.0 => {
                all * (1.0 - self.timed.left(place) / work.rest)
            }
            _ => 0.0,
        };
        // A number that is too small or too large for it becomes the nearest one.
        Used { cached: work.cached, written: written.min(all).floor() as u32 }
    }

    /// Tokens of prompts read in a microsecond.
    fn reading(&self) -> f64 {
        match &self.model.service {
            Service::Rates { prefill, .. } => prefill * self.speed / 1e6,
            Service::Fixed { .. } => 0.0,
        }
    }

    /// Tokens of each answer written in a microsecond.
    fn writing(&self) -> f64 {
        match &self.model.service {
            Service::Rates { decode, .. } => {
                decode.each(u32::try_from(self.writes.len()).unwrap_or(u32::MAX)) * self.speed / 1e6
            }
            Service::Fixed { .. } => 0.0,
        }
    }

    /// Work out everything until now.
    fn catch_up(&mut self, now: Duration) {
        let elapsed = micros(now.saturating_sub(self.at));
        if elapsed <= 0.0 {
            return;
        }
        self.look(now);
        self.timed.advance(elapsed * self.speed);
        self.unread -= elapsed * self.reading();
        let each = elapsed * self.writing();
        self.writes.advance(each);
        self.figures.wrote(each * self.writes.len() as f64);
        self.at = now;
    }

    /// It is looked at now and then; what it says is what was so at that moment.
    fn look(&mut self, now: Duration) {
        let Some(at) = self.figures.last_look(now).filter(|at| self.figures.is_news(*at)) else {
            return;
        };
        let permille =
            |most: u64| u16::try_from(self.reserved * 1000 / most.max(1)).unwrap_or(1000);
        let now = metrics::Now {
            at,
            running: self.work.len() - self.line.len(),
            waiting: self.line.len(),
            kv_used: self.model.kv_tokens.map_or(0, permille),
            since: micros(at.saturating_sub(self.at)),
            writes: self.writing() * self.writes.len() as f64,
        };
        self.figures.look(&now);
    }
}

#[cfg(test)]
mod tests;
