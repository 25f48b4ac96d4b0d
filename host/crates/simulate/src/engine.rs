//! The model of a serving engine.
//!
//! ```text
//!                      space in the          fixed         one at a       in parallel
//!                      key-value cache       delay         time
//!   submit ──> Queued ─────────────> Overhead ──> Prefill ────────> Decode ───────────> done
//!                                                                    └ first token
//! ```
//!
//! The model is exact and event-driven: nothing is computed between two events, and the cost of an
//! event does not grow with the number of requests (see [`ProcessorSharing`]). Times are rounded to
//! the nearest microsecond.

mod metrics;
mod phases;
mod prefix_cache;
mod processor_sharing;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

pub(crate) use self::metrics::ScrapedMetrics;
use self::metrics::{EngineSnapshot, MetricsSampler};
use self::prefix_cache::{PrefixCache, PrefixOwner};
use self::processor_sharing::{FinishTag, ProcessorSharing, micros, time_for};
use crate::fleet::{EngineModel, ServiceModel};
use crate::random::Random;
use crate::traffic::ClassId;

/// The caller's identifier of a request.
pub(crate) type RequestKey = usize;

/// A request as an engine sees it. Lengths are in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Job {
    /// The length of the prompt.
    pub(crate) prompt: u32,
    /// The length of the complete response.
    pub(crate) output: u32,
    /// The class, and the length of the prompt prefix that all of its requests share.
    pub(crate) class_prefix: (ClassId, u32),
    /// The session, and the length of the prompt prefix that its earlier requests had.
    pub(crate) session_prefix: (u64, u32),
    /// The recorded times to the first byte, and from there to the end.
    pub(crate) recorded_times: Option<(Duration, Duration)>,
}

/// Progress of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ResponseProgress {
    /// The first token was generated.
    FirstToken(RequestKey),
    /// The response is complete.
    Done(RequestKey, TokenUsage),
}

/// The tokens that a request used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct TokenUsage {
    /// Prompt tokens that were in the prefix cache.
    pub(crate) cached: u32,
    /// Response tokens that were generated.
    pub(crate) generated: u32,
}

#[derive(Debug)]
struct ActiveJob {
    job: Job,
    cached: u32,
    phase: Phase,
    /// With fixed service times: microseconds from the first token to the end.
    rest: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Waits for space in the key-value cache.
    Queued,
    Overhead(FinishTag),
    /// Waits for prefill, or is being prefilled.
    Prefill,
    /// Its next token is the first one.
    FirstToken(FinishTag),
    Decode(FinishTag),
}

/// The simulated engine of one lane.
#[derive(Debug)]
pub(crate) struct Engine {
    model: EngineModel,
    random: Random,
    /// The fraction of its normal speed at which the engine runs; 0 during a hang.
    speed: f64,
    /// The time up to which the state below has been computed.
    at: Duration,
    jobs: BTreeMap<RequestKey, ActiveJob>,
    /// Requests that wait for space in the key-value cache.
    queue: VecDeque<RequestKey>,
    /// Tokens of the key-value cache that are reserved.
    reserved: u64,
    /// Phases of fixed length, in microseconds.
    timers: ProcessorSharing,
    /// Requests in prefill. Only the first one makes progress.
    prefills: VecDeque<RequestKey>,
    /// Prompt tokens of the first request that have not been prefilled.
    prefill_left: f64,
    /// Responses that are being decoded, in tokens.
    decodes: ProcessorSharing,
    prefix_cache: PrefixCache,
    metrics: MetricsSampler,
}

impl Engine {
    pub(crate) fn new(model: &EngineModel, random: Random) -> Self {
        Self {
            model: model.clone(),
            random,
            speed: 1.0,
            at: Duration::ZERO,
            jobs: BTreeMap::new(),
            queue: VecDeque::new(),
            reserved: 0,
            timers: ProcessorSharing::default(),
            prefills: VecDeque::new(),
            prefill_left: 0.0,
            decodes: ProcessorSharing::default(),
            prefix_cache: PrefixCache::new(model.kv_tokens.unwrap_or(u64::MAX)),
            metrics: MetricsSampler::default(),
        }
    }

    /// Starts serving.
    pub(crate) fn start(&mut self, now: Duration) {
        self.at = now;
        self.metrics = MetricsSampler::started_at(now);
    }

    /// Stops serving, and returns the aborted requests with the tokens that they used.
    pub(crate) fn stop(&mut self, now: Duration) -> Vec<(RequestKey, TokenUsage)> {
        self.advance_state(now);
        let aborted = self.jobs.iter().map(|(key, job)| (*key, self.usage(job))).collect();
        self.jobs.clear();
        self.queue.clear();
        self.prefills.clear();
        self.timers.clear();
        self.decodes.clear();
        self.reserved = 0;
        self.prefix_cache.clear();
        self.metrics = MetricsSampler::default();
        aborted
    }

    /// Sets the fraction of its normal speed at which the engine runs from now on.
    pub(crate) fn set_speed(&mut self, fraction: f64, now: Duration) {
        self.advance_state(now);
        self.speed = if fraction.is_finite() { fraction.max(0.0) } else { 1.0 };
    }

    /// Submits a request.
    pub(crate) fn submit(&mut self, key: RequestKey, job: Job, now: Duration) {
        self.advance_state(now);
        let rest = match (&self.model.service, job.recorded_times) {
            (ServiceModel::Fixed { use_recorded: true, .. }, Some((_, rest))) => micros(rest),
            (ServiceModel::Fixed { rest, .. }, _) => micros(rest.sample_time(&mut self.random)),
            (ServiceModel::Rates { .. }, _) => 0.0,
        };
        self.jobs.insert(key, ActiveJob { job, cached: 0, phase: Phase::Queued, rest });
        self.queue.push_back(key);
        self.admit();
    }

    /// Cancels a request, and returns the tokens that it used.
    pub(crate) fn cancel(&mut self, key: RequestKey, now: Duration) -> TokenUsage {
        self.advance_state(now);
        let Some(job) = self.jobs.remove(&key) else { return TokenUsage::default() };
        let usage = self.usage(&job);
        match (job.phase, &self.model.service) {
            (Phase::Queued, _) => self.queue.retain(|other| *other != key),
            (Phase::Prefill, _) => {
                let is_first = self.prefills.front() == Some(&key);
                self.prefills.retain(|other| *other != key);
                if is_first {
                    self.start_next_prefill();
                }
            }
            (Phase::FirstToken(tag) | Phase::Decode(tag), ServiceModel::Rates { .. }) => {
                self.decodes.remove(tag);
            }
            (Phase::Overhead(tag) | Phase::FirstToken(tag) | Phase::Decode(tag), _) => {
                self.timers.remove(tag);
            }
        }
        if job.phase != Phase::Queued {
            self.reserved -= self.kv_demand(&job.job);
        }
        self.admit();
        usage
    }

    /// Returns the time of the next event.
    pub(crate) fn next_event(&self) -> Option<Duration> {
        let timer = self.timers.first().and_then(|left| time_for(left, self.speed));
        let prefill =
            self.prefills.front().and_then(|_| time_for(self.prefill_left, self.prefill_rate()));
        let decode = self.decodes.first().and_then(|left| time_for(left, self.decode_rate()));
        let next = [timer, prefill, decode].into_iter().flatten().min();
        next.map(|left| self.at.saturating_add(left))
    }

    /// Processes all events up to `now`, and appends the progress of responses in order.
    pub(crate) fn advance(&mut self, now: Duration, progress: &mut Vec<ResponseProgress>) {
        self.advance_state(now);
        loop {
            let is_due = |left: f64, speed: f64| time_for(left, speed) == Some(Duration::ZERO);
            if self.timers.first().is_some_and(|left| is_due(left, self.speed)) {
                if let Some((key, _)) = self.timers.pop_first() {
                    self.on_timer(key, progress);
                }
            } else if !self.prefills.is_empty() && is_due(self.prefill_left, self.prefill_rate()) {
                self.on_prefill_done(progress);
            } else if self.decodes.first().is_some_and(|left| is_due(left, self.decode_rate())) {
                if let Some((key, left)) = self.decodes.pop_first() {
                    self.on_tokens_decoded(key, left, progress);
                }
            } else {
                return;
            }
        }
    }

    /// Returns the number of requests in the engine, running and queued.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Returns the metrics of the last scrape.
    pub(crate) fn metrics(&mut self, now: Duration) -> Option<ScrapedMetrics> {
        self.scrape(now);
        self.metrics.last()
    }

    /// Returns the time of the last scrape.
    pub(crate) fn last_scrape(&self, now: Duration) -> Option<Duration> {
        self.metrics.last_scrape(now)
    }

    /// Returns how many tokens of the prompt are in the prefix cache. The last token is always
    /// prefilled, because its output is the first token of the response.
    fn cached_prefix(&self, job: &Job) -> u32 {
        let ((class, common), (session, history)) = (job.class_prefix, job.session_prefix);
        let of_class = self.prefix_cache.get(PrefixOwner::Class(class)).min(common);
        let of_session = self.prefix_cache.get(PrefixOwner::Session(session)).min(history);
        of_class.max(of_session).min(job.prompt.saturating_sub(1))
    }

    /// Caches the first tokens of a request as a prefix of its class and of its session.
    fn cache_prefixes(&mut self, job: &Job, tokens: u32) {
        if !self.model.prefix_cache {
            return;
        }
        let ((class, common), (session, _)) = (job.class_prefix, job.session_prefix);
        if common > 0 {
            self.prefix_cache.insert(PrefixOwner::Class(class), common.min(tokens));
        }
        self.prefix_cache.insert(PrefixOwner::Session(session), tokens);
    }

    /// Returns the tokens that a request reserves in the key-value cache. A request that is larger
    /// than the cache reserves all of it, so that it can run alone.
    fn kv_demand(&self, job: &Job) -> u64 {
        (u64::from(job.prompt) + u64::from(job.output))
            .min(self.model.kv_tokens.unwrap_or(u64::MAX))
    }

    fn usage(&self, active: &ActiveJob) -> TokenUsage {
        let output = f64::from(active.job.output);
        let generated = match (active.phase, &self.model.service) {
            (Phase::Decode(tag), ServiceModel::Rates { .. }) => output - self.decodes.left(tag),
            (Phase::Decode(tag), ServiceModel::Fixed { .. }) if active.rest > 0.0 => {
                output * (1.0 - self.timers.left(tag) / active.rest)
            }
            _ => 0.0,
        };
        // The cast saturates: a rounding error below zero becomes zero.
        TokenUsage { cached: active.cached, generated: generated.min(output).floor() as u32 }
    }

    /// Returns the prefill rate in tokens per microsecond.
    fn prefill_rate(&self) -> f64 {
        match &self.model.service {
            ServiceModel::Rates { prefill, .. } => prefill * self.speed / 1e6,
            ServiceModel::Fixed { .. } => 0.0,
        }
    }

    /// Returns the decode rate of each response in tokens per microsecond.
    fn decode_rate(&self) -> f64 {
        match &self.model.service {
            ServiceModel::Rates { decode, .. } => {
                let responses = u32::try_from(self.decodes.len()).unwrap_or(u32::MAX);
                decode.per_response(responses) * self.speed / 1e6
            }
            ServiceModel::Fixed { .. } => 0.0,
        }
    }

    /// Advances the work in progress to `now`, without processing events.
    fn advance_state(&mut self, now: Duration) {
        let elapsed = micros(now.saturating_sub(self.at));
        if elapsed <= 0.0 {
            return;
        }
        // Before the state changes: a scrape in between needs the rates that applied until now.
        self.scrape(now);
        self.timers.advance(elapsed * self.speed);
        self.prefill_left -= elapsed * self.prefill_rate();
        let each = elapsed * self.decode_rate();
        self.decodes.advance(each);
        self.metrics.add_tokens(each * self.decodes.len() as f64);
        self.at = now;
    }

    /// Takes the scrape that was due since the last event, with the values of that moment.
    fn scrape(&mut self, now: Duration) {
        let Some(at) = self.metrics.last_scrape(now).filter(|at| self.metrics.is_new(*at)) else {
            return;
        };
        let permille =
            |capacity: u64| u16::try_from(self.reserved * 1000 / capacity.max(1)).unwrap_or(1000);
        let snapshot = EngineSnapshot {
            at,
            running: self.jobs.len() - self.queue.len(),
            waiting: self.queue.len(),
            kv_used: self.model.kv_tokens.map_or(0, permille),
            elapsed: micros(at.saturating_sub(self.at)),
            decode_rate: self.decode_rate() * self.decodes.len() as f64,
        };
        self.metrics.scrape(&snapshot);
    }
}

#[cfg(test)]
mod tests;
